package sensor

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Tree is where a container can write. Watch uses its files only while it runs.
type Tree struct {
	ID string
	// Overlay is the root (O_PATH) where it is a whole overlay superblock of
	// the container's own; nil otherwise. Never set it for one that is shared.
	Overlay *os.File
	// Mounts are the writable mounts (O_PATH), by destination. The root belongs
	// here, as "/", where it is not an Overlay and Writes is wanted.
	Mounts map[string]*os.File
	// Writes asks for a Write for every file of the root that is written, unless
	// it is, or lies below, one of Declared.
	Writes   bool
	Declared []string
}

type tree struct {
	id       string
	mounts   []uint64
	dev      uint64
	overlay  bool
	marks    []dropMark
	root     *os.File // one of the marks' files; nil: writes are not asked for
	rootMnt  uint64
	declared []string

	told map[told]struct{} // of Run's goroutine
}

// told is a write that was reported already.
type told struct {
	pid  int
	path string
}

// maxTold bounds what is remembered of a container; then it begins anew.
const maxTold = 4096

type dropMark struct {
	flags uint
	file  *os.File
}

// Drops is one fanotify group without permission events, for any number of
// containers. It is safe for concurrent use.
type Drops struct {
	fd   int
	file *os.File

	writing atomic.Int32 // containers whose writes are asked for
	mu      sync.RWMutex
	trees   map[string]*tree
	byMount map[uint64]*tree
	byDev   map[uint64]*tree
}

// OpenDrops makes the group.
func OpenDrops() (*Drops, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK|unix.O_NOATIME)
	if err != nil {
		hint := "run the supervisor as root of the initial user namespace, on a kernel with CONFIG_FANOTIFY=y"
		if errors.Is(err, unix.EMFILE) {
			hint = "raise the sysctl fs.fanotify.max_user_groups"
		}
		return nil, &UnsupportedError{What: "dropped programs", Err: err, Hint: hint}
	}
	return &Drops{
		fd:      fd,
		file:    os.NewFile(uintptr(fd), "fanotify"),
		trees:   map[string]*tree{},
		byMount: map[uint64]*tree{},
		byDev:   map[uint64]*tree{},
	}, nil
}

// Close ends the sensor; Run must have returned.
func (d *Drops) Close() error {
	d.mu.Lock()
	ids := make([]string, 0, len(d.trees))
	for id := range d.trees {
		ids = append(ids, id)
	}
	d.mu.Unlock()
	for _, id := range ids {
		d.Forget(id)
	}
	return d.file.Close()
}

// Watch begins to report on a container. It keeps copies of the files, and so
// the mounts, until Forget.
func (d *Drops) Watch(t Tree) error {
	d.Forget(t.ID)
	w := &tree{id: t.ID, told: map[told]struct{}{}}
	for _, p := range t.Declared {
		w.declared = append(w.declared, path.Clean("/"+p))
	}
	err := func() error {
		if t.Overlay != nil {
			dev, mnt, err := identify(t.Overlay)
			if err != nil {
				return fmt.Errorf("read root: %w", err)
			}
			w.dev, w.overlay = dev, true
			w.mounts = append(w.mounts, mnt)
			if err := w.keep(unix.FAN_MARK_FILESYSTEM, t.Overlay); err != nil {
				return err
			}
			if t.Writes {
				w.root, w.rootMnt = w.marks[0].file, mnt
			}
		}
		for dest, f := range t.Mounts {
			dev, mnt, err := identify(f)
			if err != nil {
				return fmt.Errorf("read mount %s: %w", dest, err)
			}
			w.mounts = append(w.mounts, mnt)
			if w.overlay && dev == w.dev {
				continue // the file system's mark covers it
			}
			if err := w.keep(unix.FAN_MARK_MOUNT, f); err != nil {
				return err
			}
			if t.Writes && !w.overlay && path.Clean(dest) == "/" {
				w.root, w.rootMnt = w.marks[len(w.marks)-1].file, mnt
			}
		}
		if t.Writes && w.root == nil {
			return errors.New("no root to watch writes of")
		}
		return nil
	}()
	if err != nil {
		w.close()
		return fmt.Errorf("watch writes of container %s: %w", t.ID, err)
	}
	d.mu.Lock()
	d.trees[t.ID] = w
	for _, m := range w.mounts {
		d.byMount[m] = w
	}
	if w.overlay {
		d.byDev[w.dev] = w
	}
	if w.root != nil {
		d.writing.Add(1)
	}
	d.mu.Unlock()
	for _, m := range w.marks {
		if err := d.mark(unix.FAN_MARK_ADD, m); err != nil {
			name := m.file.Name()
			d.Forget(t.ID)
			return fmt.Errorf("watch writes of container %s: mark %s: %w", t.ID, name, err)
		}
	}
	return nil
}

func (w *tree) keep(flags uint, f *os.File) error {
	return withFD(f, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			w.marks = append(w.marks, dropMark{flags, os.NewFile(uintptr(dup), f.Name())})
		}
		return err
	})
}

func (w *tree) close() {
	for _, m := range w.marks {
		m.file.Close()
	}
}

func (d *Drops) mark(op uint, m dropMark) error {
	return withFD(m.file, func(fd int) error {
		return unix.FanotifyMark(d.fd, op|m.flags, unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, proc(fd))
	})
}

// Forget ends reporting on a container.
func (d *Drops) Forget(id string) {
	d.mu.Lock()
	w := d.trees[id]
	delete(d.trees, id)
	for m, owner := range d.byMount {
		if owner == w {
			delete(d.byMount, m)
		}
	}
	for dev, owner := range d.byDev {
		if owner == w {
			delete(d.byDev, dev)
		}
	}
	d.mu.Unlock()
	if w == nil {
		return
	}
	if w.root != nil {
		d.writing.Add(-1)
	}
	for _, m := range w.marks {
		d.mark(unix.FAN_MARK_REMOVE, m)
	}
	w.close()
}

type dropped struct {
	Drop
	file *os.File
}

// Reports are what Run tells. Drop and Write are called from one goroutine each.
type Reports struct {
	Drop  func(Drop)
	Write func(Write)
	// Lost says how many writes (at least) nobody looked at because too many
	// came at once.
	Lost func(n int)
}

// Run reports until ctx ends.
func (d *Drops) Run(ctx context.Context, to Reports) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("run sensor for dropped programs: %w", err)
	}
	defer unix.Close(wake)
	stop := context.AfterFunc(ctx, func() { unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()

	// Hashing waits for disks; reading must not.
	drops, writes := make(chan dropped, 64), make(chan Write, 256)
	var reporting sync.WaitGroup
	defer reporting.Wait()
	defer close(drops)
	defer close(writes)
	reporting.Go(func() {
		for x := range drops {
			x.SHA256 = hash(x.file)
			x.file.Close()
			to.Drop(x.Drop)
		}
	})
	reporting.Go(func() {
		for x := range writes {
			to.Write(x)
		}
	})

	buf := make([]byte, 64*unix.FAN_EVENT_METADATA_LEN)
	for ctx.Err() == nil {
		n, err := unix.Read(d.fd, buf)
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN):
			poll := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
			if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("poll sensor for dropped programs: %w", err)
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFAULT):
			return fmt.Errorf("read sensor for dropped programs: %w", err)
		default: // no descriptor could be made for that event
			to.Lost(1)
			continue
		}
		for b := buf[:n]; len(b) >= unix.FAN_EVENT_METADATA_LEN; {
			size := binary.NativeEndian.Uint32(b)
			if size < unix.FAN_EVENT_METADATA_LEN || uint64(size) > uint64(len(b)) {
				break
			}
			mask := binary.NativeEndian.Uint64(b[8:])
			fd := int32(binary.NativeEndian.Uint32(b[16:]))
			pid := int32(binary.NativeEndian.Uint32(b[20:]))
			b = b[size:]
			if mask&unix.FAN_Q_OVERFLOW != 0 {
				to.Lost(1)
			}
			if fd < 0 {
				continue
			}
			if !d.look(int(fd), int(pid), drops, writes) {
				to.Lost(1)
			}
		}
	}
	return nil
}

// look takes over fd; false: something could not be reported. It costs one
// read for what is no program, and where no container's writes are asked for
// nothing more.
func (d *Drops) look(fd, pid int, drops chan<- dropped, writes chan<- Write) (whole bool) {
	keep := false
	defer func() {
		if !keep {
			unix.Close(fd)
		}
	}()
	var head [headSize]byte
	n, err := unix.Pread(fd, head[:], 0)
	_, program := kindOf(head[:max(n, 0)], 0o111)
	if (err != nil || !program) && d.writing.Load() == 0 {
		return true
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return true
	}
	w, mnt, own := d.owner(fd, pid, st.Dev)
	if w == nil {
		return true // forgotten meanwhile
	}
	whole = true
	if w.root != nil && (mnt == w.rootMnt || !own) {
		whole = w.write(fd, pid, own, st, writes)
	}
	kind, program := kindOf(head[:max(n, 0)], st.Mode)
	if !program {
		return whole
	}
	x := dropped{Drop: Drop{Container: w.id, PID: pid, Kind: kind, Size: st.Size}}
	x.Path, _ = os.Readlink(proc(fd))
	x.Comm, x.Exe = describe(pid)
	if len(drops) == cap(drops) { // this goroutine is the only one that sends
		return false
	}
	x.file, keep = os.NewFile(uintptr(fd), x.Path), true
	drops <- x
	return whole
}

// owner finds the container of a written file. own is true where the file was
// reached through a mount that Watch was told of. What comes by another one is
// on an overlay that is marked as a whole.
func (d *Drops) owner(fd, pid int, dev uint64) (w *tree, mnt uint64, own bool) {
	_, mnt, err := identifyFD(fd)
	if err != nil {
		return nil, 0, false
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	if w = d.byMount[mnt]; w != nil {
		return w, mnt, true
	}
	if w = d.byDev[dev]; w == nil {
		var root unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/root", pid), &root) == nil {
			w = d.byDev[root.Dev]
		}
	}
	return w, mnt, false
}

// write reports a file of the root unless it is declared or known.
func (w *tree) write(fd, pid int, own bool, st unix.Stat_t, writes chan<- Write) bool {
	name, err := os.Readlink(proc(fd))
	if err != nil {
		return false
	}
	if st.Nlink == 0 {
		name = strings.TrimSuffix(name, " (deleted)")
	}
	name = w.inside(name)
	if declared(w.declared, name) {
		return true
	}
	key := told{pid, name}
	if _, ok := w.told[key]; ok {
		return true
	}
	if len(writes) == cap(writes) { // this goroutine is the only one that sends
		return false
	}
	if len(w.told) == maxTold {
		clear(w.told)
	}
	w.told[key] = struct{}{}
	x := Write{Container: w.id, Path: name, PID: pid, Size: st.Size, Own: own}
	x.Comm, x.Exe = describe(pid)
	writes <- x
	return true
}

// inside makes a path one in the container. What is no longer below its root
// is seen from where the writer sees it.
func (w *tree) inside(name string) string {
	root := ""
	withFD(w.root, func(fd int) (err error) {
		root, err = os.Readlink(proc(fd))
		return err
	})
	if rest, ok := strings.CutPrefix(name, strings.TrimSuffix(root, "/")+"/"); ok {
		return "/" + rest
	}
	return name
}

func hash(f *os.File) string {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, HashLimit)); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

func describe(pid int) (comm, exe string) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	exe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return strings.TrimSuffix(string(b), "\n"), exe
}

func identify(f *os.File) (dev, mnt uint64, err error) {
	if f == nil {
		return 0, 0, errors.New("no descriptor")
	}
	err = withFD(f, func(fd int) error {
		dev, mnt, err = identifyFD(fd)
		return err
	})
	return dev, mnt, err
}

func identifyFD(fd int) (dev, mnt uint64, err error) {
	var sx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_MNT_ID, &sx); err != nil {
		return 0, 0, err
	}
	if sx.Mask&unix.STATX_MNT_ID == 0 {
		return 0, 0, errors.New("kernel tells no mount IDs (Linux 5.8 and later)")
	}
	return unix.Mkdev(sx.Dev_major, sx.Dev_minor), sx.Mnt_id, nil
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

func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
