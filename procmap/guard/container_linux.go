package guard

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

type object struct{ dev, ino uint64 }

// entry is what the plan says about one file of the image.
type entry struct {
	paths                      []string // more than one: hard links
	application, health        Grant
	interpreter, healthInterpr Grant
	next                       *entry // what interprets it, among the image's files
}

type container struct {
	Container
	serving atomic.Bool

	dev     uint64 // of the root directory
	mnt     uint64 // ID of the root mount
	execMnt map[uint64]bool
	guarded map[uint64]bool // mounts to be asked about; true: a part of the root
	mntns   uint64
	devs    []uint64 // under which its files are found in byDev
	entries map[object]*entry

	own     bool // the root is a whole overlay of its own: marked as a file system
	overlay bool // changes are found in upper rather than by time
	upper   *os.File
	wide    Grant
	marks   []mark
	// uncached is set when another container shares the superblock: an inode's
	// ignore mark would answer for both.
	uncached atomic.Bool
}

type mark struct {
	flags uint
	file  *os.File
}

func (c *container) close() {
	if c.Root != nil {
		c.Root.Close()
	}
	if c.upper != nil {
		c.upper.Close()
	}
	for _, m := range c.Mounts {
		if m.File != nil {
			m.File.Close()
		}
	}
}

// Watch guards a container from now on. It fails as a whole: after an error
// nothing is marked. The container's files belong to the guard, also then.
//
// They keep the container's file system alive until Forget: call it as soon as the
// container is gone, or its engine cannot mount the upper directory again where
// overlay's index is on.
func (g *Guard) Watch(spec Container) (err error) {
	c := &container{Container: spec, entries: map[object]*entry{}, execMnt: map[uint64]bool{}, guarded: map[uint64]bool{}}
	defer func() {
		if err != nil {
			c.close()
			err = fmt.Errorf("guard executions of container %s: %w", spec.ID, err)
		}
	}()
	if spec.ID == "" || spec.Root == nil || spec.PID <= 0 {
		return errors.New("want an ID, a root and a process")
	}
	if err := c.survey(); err != nil {
		return err
	}
	if c.dev == g.self.Dev {
		c.own = false // the guard's own file system: it would wait for itself
	}
	if !c.own {
		// A mount mark is on the whole mount. If the root is a directory of a
		// larger one, that is somebody else's, the host's own perhaps.
		if top, err := mountRoot(c.Root); err != nil {
			return err
		} else if !top {
			return ErrSharedMount
		}
	}
	if err := c.resolve(); err != nil {
		return err
	}

	// Known before marked: an event of an unknown container is refused.
	g.mu.Lock()
	if g.containers[c.ID] != nil {
		g.mu.Unlock()
		return errors.New("is guarded already")
	}
	g.add(c)
	g.mu.Unlock()
	if err := g.mark(c); err != nil {
		g.mu.Lock()
		g.remove(c)
		g.mu.Unlock()
		g.unmark(c)
		return err
	}
	return nil
}

// ErrSharedMount says that a container's root is not a mount of its own, as
// without a mount namespace: it cannot be guarded without guarding others.
var ErrSharedMount = errors.New("the root is not a mount of its own")

// mountRoot tells whether a directory is the root of its mount (statx(2),
// STATX_ATTR_MOUNT_ROOT, since Linux 5.8). What cannot be told is not.
func mountRoot(f *os.File) (top bool, err error) {
	err = withFD(f, func(fd int) error {
		var sx unix.Statx_t
		if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_BASIC_STATS, &sx); err != nil {
			return fmt.Errorf("read root: %w", err)
		}
		top = sx.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
		return nil
	})
	return top, err
}

// Forget ends the guarding of a container and releases its files.
func (g *Guard) Forget(id string) {
	g.mu.Lock()
	c := g.containers[id]
	if c != nil {
		g.remove(c)
	}
	g.mu.Unlock()
	if c == nil {
		return
	}
	g.unmark(c)
	c.close()
}

// Serving says that a container serves: what only starting needed is refused
// from now on. Such files are never cached, so nothing has to be undone.
func (g *Guard) Serving(id string) {
	g.mu.RLock()
	defer g.mu.RUnlock()
	if c := g.containers[id]; c != nil {
		c.serving.Store(true)
	}
}

// Marked says how a container is guarded: "filesystem" covers every mount of
// its root, "mount" only the one that was there at Watch.
func (g *Guard) Marked(id string) string {
	g.mu.RLock()
	defer g.mu.RUnlock()
	switch c := g.containers[id]; {
	case c == nil:
		return ""
	case c.own:
		return "filesystem"
	}
	return "mount"
}

func (g *Guard) add(c *container) {
	g.containers[c.ID] = c
	g.byMount[c.mnt] = c
	for id := range c.execMnt {
		g.byMount[id] = c
	}
	for id := range c.guarded {
		g.byMount[id] = c
	}
	for _, dev := range c.devs {
		for _, other := range g.byDev[dev] {
			other.uncached.Store(true)
			c.uncached.Store(true)
			g.uncache(other)
		}
		g.byDev[dev] = append(g.byDev[dev], c)
	}
}

func (g *Guard) remove(c *container) {
	delete(g.containers, c.ID)
	for id, o := range g.byMount {
		if o == c {
			delete(g.byMount, id)
		}
	}
	for _, dev := range c.devs {
		g.byDev[dev] = slices.DeleteFunc(g.byDev[dev], func(o *container) bool { return o == c })
		if len(g.byDev[dev]) == 0 {
			delete(g.byDev, dev)
		}
	}
}

func (g *Guard) mark(c *container) error {
	root := mark{unix.FAN_MARK_MOUNT, c.Root}
	if c.own {
		root.flags = unix.FAN_MARK_FILESYSTEM
	}
	c.marks = append(c.marks, root)
	for _, m := range c.Mounts {
		if m.Exec || m.Guarded {
			c.marks = append(c.marks, mark{unix.FAN_MARK_MOUNT, m.File})
		}
	}
	for _, m := range c.marks {
		if err := withFD(m.file, func(fd int) error {
			return unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|m.flags, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, proc(fd))
		}); err != nil {
			return fmt.Errorf("mark %s: %w", m.file.Name(), err)
		}
	}
	return nil
}

func (g *Guard) unmark(c *container) {
	g.uncache(c)
	g.mu.RLock()
	shared := c.own && len(g.byDev[c.dev]) > 0 // the other one still needs it
	g.mu.RUnlock()
	for _, m := range c.marks {
		if shared && m.flags == unix.FAN_MARK_FILESYSTEM {
			continue
		}
		withFD(m.file, func(fd int) error {
			return unix.FanotifyMark(g.fd, unix.FAN_MARK_REMOVE|m.flags, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, proc(fd))
		})
	}
}

// cache lets the kernel allow a file without asking, until it is written to.
//
// Only where nobody in the container can write to it: a store through a shared
// mapping is no FS_MODIFY event and would not reset the mark. And only on a
// superblock of its own: the mark is on the inode, for all containers.
// The kernel does nothing, silently, when the file is open for writing.
func (g *Guard) cache(c *container, fd int) {
	if c == nil || !c.own || c.uncached.Load() || !readOnly(c.Root) {
		return
	}
	if _, mnt, err := identifyFD(fd); err != nil || mnt != c.mnt {
		return // a part of the root that can be written to, or another mount namespace's
	}
	unix.FanotifyMark(g.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_IGNORED_MASK, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, proc(fd))
}

// uncache undoes cache for all files of a container's plan.
func (g *Guard) uncache(c *container) {
	if !c.own {
		return
	}
	for o, e := range c.entries {
		for _, p := range e.paths {
			fd, err := c.open(p)
			if err != nil {
				continue
			}
			var st unix.Stat_t
			if unix.Fstat(fd, &st) == nil && (object{st.Dev, st.Ino}) == o {
				unix.FanotifyMark(g.fd, unix.FAN_MARK_REMOVE|unix.FAN_MARK_IGNORED_MASK, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, proc(fd))
			}
			unix.Close(fd)
		}
	}
}

// survey finds out what the root is.
func (c *container) survey() error {
	if c.Wide {
		c.wide = always
	} else if c.WideStarting {
		c.wide = untilServing
	}
	st, mnt, err := identify(c.Root)
	if err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	c.dev, c.mnt = st.Dev, mnt
	c.devs = []uint64{st.Dev}
	var ns unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", c.PID), &ns) == nil {
		c.mntns = ns.Ino
	}
	for dest, m := range c.Mounts {
		if !m.Exec && !m.Guarded {
			continue
		}
		_, id, err := identify(m.File)
		if err != nil {
			return fmt.Errorf("read mount %s: %w", dest, err)
		}
		if id == c.mnt {
			return fmt.Errorf("read mount %s: is not a mount of its own", dest)
		}
		if m.Exec {
			c.execMnt[id] = true
		} else {
			c.guarded[id] = m.Own
		}
	}

	var fs unix.Statfs_t
	if err := withFD(c.Root, func(fd int) error { return unix.Fstatfs(fd, &fs) }); err != nil {
		return fmt.Errorf("read root: %w", err)
	}
	if fs.Type != unix.OVERLAYFS_SUPER_MAGIC {
		return nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.PID))
	if err != nil {
		return fmt.Errorf("read mounts: %w", err)
	}
	mounts, err := parseMountinfo(data)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(mounts, func(m mount) bool { return uint64(m.ID) == c.mnt })
	if i < 0 {
		return fmt.Errorf("find root among the mounts of process %d: no mount %d", c.PID, c.mnt)
	}
	m := mounts[i]
	if m.Root != "/" {
		return nil // a directory on somebody's overlay: told by time
	}
	c.own, c.overlay = true, true
	upper, writable := m.upperOf()
	if c.Upper == "" && !writable {
		return nil // lower layers only
	}
	return c.openUpper(upper)
}

// openUpper finds the upper directory. Engines mount with relative paths when
// there are many layers (moby overlay2, containerd), relative to a directory above
// that of the mount point or not at all.
func (c *container) openUpper(upper string) error {
	var candidates []string
	switch {
	case c.Upper != "":
		candidates = []string{c.Upper}
	case path.IsAbs(upper):
		candidates = []string{upper}
	default:
		data, err := os.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return fmt.Errorf("find upper directory: %w", err)
		}
		mounts, err := parseMountinfo(data)
		if err != nil {
			return err
		}
		for _, m := range mounts {
			if unix.Mkdev(m.Major, m.Minor) != c.dev {
				continue
			}
			for dir := path.Dir(m.Point); ; dir = path.Dir(dir) {
				candidates = append(candidates, path.Join(dir, upper))
				if dir == "/" || dir == "." {
					break
				}
			}
		}
		candidates = append(candidates, path.Join("/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots", upper))
	}
	for _, dir := range candidates {
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			continue
		}
		if !c.isUpper(fd) {
			unix.Close(fd)
			continue
		}
		c.upper = os.NewFile(uintptr(fd), dir)
		return nil
	}
	return &UpperError{Upper: upper, Tried: candidates}
}

// UpperError says that an overlay's upper directory was not found, so that nobody
// can tell what was written after the image was made.
type UpperError struct {
	Upper string // as mountinfo has it
	Tried []string
}

func (e *UpperError) Error() string {
	return fmt.Sprintf("find upper directory %q of the container's overlay: not at any of %d places", e.Upper, len(e.Tried))
}

// Remedy says what to do.
func (e *UpperError) Remedy() string {
	return "run the supervisor in the mount namespace of the engine that mounted the container's root"
}

// isUpper: the overlay shows the times and the mode of the upper root as its own.
func (c *container) isUpper(fd int) bool {
	var a, b unix.Stat_t
	if unix.Fstat(fd, &a) != nil {
		return false
	}
	if withFD(c.Root, func(root int) error { return unix.Fstat(root, &b) }) != nil {
		return false
	}
	return a.Ctim == b.Ctim && a.Mtim == b.Mtim && a.Mode == b.Mode && a.Uid == b.Uid && a.Gid == b.Gid
}

// resolve finds the files that the plan names, and their interpreters.
func (c *container) resolve() error {
	for _, list := range []struct {
		programs []Program
		health   bool
	}{{c.Application, false}, {c.HealthCheck, true}} {
		for _, p := range list.programs {
			if _, err := c.admit(p, list.health, 0); err != nil {
				return err
			}
		}
	}
	return nil
}

// admit enters one program, and at depth+1 its interpreter. A path that does not
// exist, or lies on another mount, is none of the image's files: nothing to allow, and
// no entry.
func (c *container) admit(p Program, health bool, depth int) (*entry, error) {
	fd, err := c.open(p.Path)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("open program %s: %w", p.Path, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("stat program %s: %w", p.Path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, nil
	}
	e := c.entries[object{st.Dev, st.Ino}]
	if e == nil {
		e = &entry{}
		c.entries[object{st.Dev, st.Ino}] = e
	}
	name := c.path(fd)
	if !slices.Contains(e.paths, name) {
		e.paths = append(e.paths, name)
	}
	if c.own && !slices.Contains(c.devs, st.Dev) {
		c.devs = append(c.devs, st.Dev) // layers on several file systems: overlay makes up numbers
	}
	slot := &e.application
	switch {
	case (depth > 0 || p.Loader) && health:
		slot = &e.healthInterpr
	case depth > 0 || p.Loader:
		slot = &e.interpreter
	case health:
		slot = &e.health
	}
	*slot = slot.or(p.Starting)
	if depth == 5 { // as deep as the kernel goes
		return e, nil
	}
	f, err := os.OpenFile(proc(fd), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, fmt.Errorf("read program %s: %w", p.Path, err)
	}
	interp := interpreterOf(f)
	f.Close()
	if interp == "" {
		return e, nil
	}
	e.next, err = c.admit(Program{Path: interp, Starting: p.Starting}, health, depth+1)
	return e, err
}

// open opens what the container finds at name on its root mount (O_PATH), or on
// a part of it that was mounted upon itself. EXDEV: another mount lies there.
func (c *container) open(name string) (fd int, err error) {
	fd, err = openIn(c.Root, name, unix.RESOLVE_IN_ROOT)
	if err != unix.EXDEV {
		return fd, err
	}
	name = path.Clean("/" + name)
	for dest, m := range c.Mounts {
		if rest, ok := strings.CutPrefix(name, path.Clean("/"+dest)+"/"); ok && m.Own {
			if fd, err = openIn(m.File, rest, unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS); err == nil {
				return fd, nil
			}
		}
	}
	return -1, unix.EXDEV
}

func openIn(dir *os.File, name string, resolve uint64) (fd int, err error) {
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS | unix.RESOLVE_NO_XDEV,
	}
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		return -1, unix.EISDIR
	}
	err = withFD(dir, func(root int) error {
		for range 64 {
			if fd, err = unix.Openat2(root, rel, &how); err != unix.EAGAIN && err != unix.EINTR {
				break
			}
		}
		return err
	})
	return fd, err
}

// path names a file as the container does, if it is reached through the root mount.
func (c *container) path(fd int) string {
	p, err := os.Readlink(proc(fd))
	if err != nil {
		return ""
	}
	base := ""
	// "/" once the container has pivoted, the engine's mount point before.
	if err := withFD(c.Root, func(root int) error { base, err = os.Readlink(proc(root)); return err }); err != nil {
		return ""
	}
	if base != "/" {
		if rest, ok := strings.CutPrefix(p, base); ok && strings.HasPrefix(rest, "/") {
			return rest
		}
	}
	return p
}

// changed tells whether anything is at name in the upper directory: the file,
// a whiteout, a directory or link in its way. Only a sure no is a no.
func (c *container) changed(name string) bool {
	if c.upper == nil {
		return false
	}
	rel := strings.TrimLeft(name, "/")
	if rel == "" || !path.IsAbs(name) {
		return true
	}
	how := unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := -1, error(nil)
	withFD(c.upper, func(dir int) error {
		fd, err = unix.Openat2(dir, rel, &how)
		return err
	})
	if err == nil {
		unix.Close(fd)
		return true
	}
	return err != unix.ENOENT
}

// still tells whether name leads to the file o on the container's root mount.
func (c *container) still(name string, o object) bool {
	fd, err := c.open(name)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	return unix.Fstat(fd, &st) == nil && (object{st.Dev, st.Ino}) == o
}

// facts completes e for the file fd of an event.
func (g *Guard) facts(e *Exec, fd int) *container {
	g.mu.RLock()
	c := g.owner(e.TID, fd)
	g.mu.RUnlock()
	if c == nil {
		e.Path, _ = os.Readlink(proc(fd))
		return nil
	}
	e.ContainerID = c.ID
	if !g.describe(c, e, fd) {
		e.Place = Elsewhere
	}
	return c
}

// owner tells whose event it is: by the mount it came through, by the
// superblock, by the process. nil also where containers share a root and the
// process is in the mount namespace of neither.
func (g *Guard) owner(tid, fd int) *container {
	st, mnt, err := identifyFD(fd)
	if err != nil {
		return nil
	}
	if c := g.byMount[mnt]; c != nil {
		return c
	}
	found := g.byDev[st.Dev]
	if len(found) == 0 {
		// A file of a layer on another file system than the upper one: overlay
		// makes up its device number. That of directories is the overlay's own.
		var root unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/root", tid), &root) == nil {
			found = g.byDev[root.Dev]
		}
	}
	if len(found) == 1 {
		return found[0]
	}
	var ns unix.Stat_t
	if len(found) > 1 && unix.Stat(fmt.Sprintf("/proc/%d/ns/mnt", tid), &ns) == nil {
		i := slices.IndexFunc(found, func(c *container) bool { return c.mntns == ns.Ino })
		if i >= 0 {
			return found[i]
		}
	}
	return nil
}

// describe fills in what is known of fd for container c. false: could not be read.
func (g *Guard) describe(c *container, e *Exec, fd int) bool {
	st, mnt, err := identifyFD(fd)
	if err != nil {
		return false
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return false
	}
	o := object{st.Dev, st.Ino}
	e.Dev, e.Ino = o.dev, o.ino
	e.Regular = st.Mode&unix.S_IFMT == unix.S_IFREG
	e.Path = c.path(fd)
	e.Serving = c.serving.Load()
	e.Wide, e.Scriptable = c.wide, c.Scriptable
	ours := mnt == c.mnt || c.guarded[mnt] || c.own && slices.Contains(c.devs, o.dev)
	var en *entry
	if ours {
		en = c.entries[o]
	}
	if en != nil {
		e.Application, e.HealthCheck = en.application, en.health
		e.Interpreter, e.HealthInterpreter = en.interpreter, en.healthInterpr
		e.Interpreted = en.next != nil && en.next.application != always
	}
	switch {
	case fs.Flags&unix.ST_NOEXEC != 0:
		e.Place = NoExec
	case c.execMnt[mnt]:
		e.Place = ExecMount
	case ours || c.own && fs.Type == unix.OVERLAYFS_SUPER_MAGIC && c.still(e.Path, o):
		e.Place = Image
		if c.later(e.Path, o, en, st) {
			e.Place = Changed
		}
	case fs.Flags&unix.ST_RDONLY != 0:
		e.Place = ReadOnlyMount
	default:
		e.Place = Elsewhere
	}
	return true
}

// later tells whether a file of the root file system is other than the image
// had it. Only what is proved to be the image's is not later.
func (c *container) later(name string, o object, en *entry, st *unix.Stat_t) bool {
	if st.Nlink == 0 {
		return true
	}
	if !c.overlay {
		changed := st.Ctim
		return c.Created.IsZero() || changed.Nano() > c.Created.UnixNano()
	}
	// The path that the kernel tells can be that of a bind mount elsewhere,
	// so it counts only when the root has this file there. For a file of the plan its
	// own path is known.
	if c.changed(name) {
		return true
	}
	if en != nil {
		for _, p := range en.paths {
			if c.changed(p) || !c.still(p, o) {
				return true
			}
		}
		return false
	}
	return !c.still(name, o)
}

func readOnly(f *os.File) bool {
	var fs unix.Statfs_t
	err := withFD(f, func(fd int) error { return unix.Fstatfs(fd, &fs) })
	return err == nil && fs.Flags&unix.ST_RDONLY != 0
}

func identify(f *os.File) (st *unix.Stat_t, mnt uint64, err error) {
	if f == nil {
		return nil, 0, errors.New("no descriptor")
	}
	err = withFD(f, func(fd int) error {
		st, mnt, err = identifyFD(fd)
		return err
	})
	return st, mnt, err
}

// identifyFD gives a file and the ID of the mount it was reached through.
func identifyFD(fd int) (*unix.Stat_t, uint64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, 0, err
	}
	var sx unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_MNT_ID, &sx)
	if err == nil && sx.Mask&unix.STATX_MNT_ID != 0 { // since Linux 5.8
		return &st, sx.Mnt_id, nil
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return nil, 0, err
	}
	for line := range bytes.Lines(data) {
		if v, ok := bytes.CutPrefix(line, []byte("mnt_id:")); ok {
			id, err := strconv.ParseUint(string(bytes.TrimSpace(v)), 10, 64)
			return &st, id, err
		}
	}
	return nil, 0, errors.New("no mnt_id in fdinfo")
}

// withFD runs f with the number of an open file, without changing its blocking mode.
func withFD(file *os.File, f func(int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}
