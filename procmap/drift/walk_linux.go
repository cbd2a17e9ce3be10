package drift

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
)

// Container is what is compared.
type Container struct {
	Upper *os.File   // of an overlay
	Lower []*os.File // topmost first
	Root  *os.File   // where there is no overlay
	// Made is when the container's files were made. Without layers, what changed
	// later is told.
	Made time.Time
	// Declared are the writable paths of the plan.
	Declared []string
	// Mounts hide what is below them. Empty files and directories there are the runtime's.
	Mounts []string
}

type walk struct {
	ctx      context.Context
	c        Container
	l        Limits
	mounts   map[string]bool
	found    list
	entries  int
	open     int
	compared int64
	since    time.Time // changes before are not told; zero: all are
	special  bool      // only programs and files with rights are told
}

// errInvisible is a directory that is gone by the time it is read.
var errInvisible = errors.New("it is gone")

// Walk compares. It reads until ctx ends: what it has found by then is a report.
func Walk(ctx context.Context, c Container, l Limits) record.Drift {
	return newWalk(ctx, c, l).report()
}

// Programs is Walk for what is more than data and changed later than since: it reads
// the first bytes of such files and compares nothing.
func Programs(ctx context.Context, c Container, since time.Time, l Limits) record.Drift {
	w := newWalk(ctx, c, l)
	w.since, w.special = since, true
	return w.report()
}

func newWalk(ctx context.Context, c Container, l Limits) *walk {
	w := &walk{ctx: ctx, c: c, l: l.orDefault(), mounts: map[string]bool{}}
	w.found.most = w.l.Changes
	for _, m := range c.Mounts {
		w.mounts[m] = true
	}
	return w
}

func (w *walk) report() record.Drift {
	r := record.Drift{Layers: w.c.Upper != nil, Changes: []record.Change{}}
	var err error
	switch {
	case w.c.Upper != nil:
		var lower []int
		if !w.special { // what a program was before does not matter
			lower, err = w.reopened(w.c.Lower)
		}
		if err == nil {
			var upper []int
			if upper, err = w.reopened([]*os.File{w.c.Upper}); err == nil {
				err = w.directory(upper[0], lower, "/", 0)
			}
		}
	case w.c.Root != nil:
		if w.c.Made.IsZero() {
			r.Incomplete = "nobody knows what the image had: the root is a plain directory"
			return r
		}
		w.since = later(w.since, w.c.Made)
		var root []int
		if root, err = w.reopened([]*os.File{w.c.Root}); err == nil {
			err = w.directory(root[0], nil, "/", 0)
		}
	default:
		r.Incomplete = "the root cannot be written to" // a lower layer alone: nothing differs
		return r
	}
	if err != nil && !errors.Is(err, errInvisible) {
		r.Incomplete = why(err)
	}
	w.found.shrink()
	r.Changes, r.More, r.Entries = append(r.Changes, w.found.all...), w.found.more, w.entries
	return r
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// reopened gives descriptors that can be read from.
func (w *walk) reopened(files []*os.File) (fds []int, err error) {
	for _, f := range files {
		raw, err := f.SyscallConn()
		if err != nil {
			return fds, err
		}
		fd, failed := -1, error(nil)
		if err := raw.Control(func(p uintptr) { fd, failed = w.openat(int(p), ".") }); err != nil {
			failed = err
		}
		if failed != nil {
			w.close(fds)
			return nil, fmt.Errorf("open layer: %w", failed)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// openat opens a directory: no link to one, and none of another mount.
func (w *walk) openat(dir int, name string) (int, error) {
	if w.open >= w.l.Open {
		return -1, errOpen
	}
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC | unix.O_NOATIME | unix.O_NONBLOCK,
		Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
	}
	fd, err := unix.Openat2(dir, name, &how)
	if err == unix.EPERM { // O_NOATIME on a file system that maps users
		how.Flags &^= unix.O_NOATIME
		fd, err = unix.Openat2(dir, name, &how)
	}
	if err == nil {
		w.open++
	}
	return fd, err
}

func (w *walk) close(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
		w.open--
	}
}

// directory compares what lies in one directory. It takes the descriptors over.
func (w *walk) directory(fd int, lower []int, name string, depth int) error {
	defer w.close(lower)
	w.open-- // the file's from now on, closed with it
	dir := os.NewFile(uintptr(fd), "directory")
	w.open++
	defer func() { dir.Close(); w.open-- }()
	if depth >= w.l.Depth {
		return errOpen
	}
	whole := error(nil)
	for {
		names, err := dir.Readdirnames(1024)
		for _, n := range names {
			if err := w.ctx.Err(); err != nil {
				return err
			}
			if w.entries++; w.entries > w.l.Entries {
				return errEntries
			}
			if err := w.entry(fd, lower, n, path.Join(name, n), depth); errors.Is(err, errOpen) {
				whole = err // the rest is looked at all the same
			} else if err != nil && !errors.Is(err, errInvisible) {
				return err
			}
		}
		if len(names) == 0 || err != nil {
			return whole
		}
	}
}

// there is an entry of a lower layer.
type there struct {
	st  unix.Stat_t
	dir int // the layer's directory that it lies in
}

// below finds what the lower layers show under a name: the topmost entry, and the
// directories that are merged.
func (w *walk) below(lower []int, name string) (first *there, dirs []int, err error) {
	for _, dir := range lower {
		var st unix.Stat_t
		if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
			continue
		}
		if whiteout(dir, name, &st) {
			return first, dirs, nil
		}
		isDir := st.Mode&unix.S_IFMT == unix.S_IFDIR
		if first == nil {
			first = &there{st, dir}
		} else if !isDir {
			return first, dirs, nil // hidden by the directory above
		}
		if !isDir {
			return first, dirs, nil
		}
		fd, err := w.openat(dir, name)
		if errors.Is(err, errOpen) {
			w.close(dirs)
			return first, nil, err
		}
		if err != nil {
			continue
		}
		dirs = append(dirs, fd)
		if opaque(fd) {
			return first, dirs, nil
		}
	}
	return first, dirs, nil
}

// entry compares one name.
func (w *walk) entry(dir int, lower []int, name, full string, depth int) error {
	var st unix.Stat_t
	if unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil {
		return errInvisible
	}
	if w.c.Upper == nil && w.mounts[full] {
		return nil // what is seen there is not the root's
	}
	if w.c.Upper != nil && whiteout(dir, name, &st) {
		if !w.special {
			w.tell(record.Change{Path: full, How: record.DriftRemoved, Type: "file"}, lower, name)
		}
		return nil
	}
	c := record.Change{Path: full, Type: typeOf(st.Mode), Mode: st.Mode & 0o7777, UID: st.Uid, GID: st.Gid, Changed: time.Unix(st.Ctim.Unix())}
	if c.Type == "directory" {
		return w.subdirectory(dir, lower, name, depth, c, &st)
	}
	if w.since.After(c.Changed) || w.mounts[full] && st.Size == 0 {
		return nil
	}
	redirect, base, data := "", name, (*there)(nil)
	metacopy := c.Type == "file" && w.c.Upper != nil && has(dir, name, "metacopy")
	if metacopy { // its data are a lower layer's, under this name or another
		redirect = attributeOf(dir, name, "redirect")
		var close func()
		data, base, close = w.dataOf(lower, name, redirect)
		defer close()
		if data != nil {
			c.Size = data.st.Size
			c.Program = w.program(data.dir, base, &unix.Stat_t{Size: data.st.Size, Mode: st.Mode})
		}
	} else if c.Type == "file" {
		c.Size = st.Size
		c.Program = w.program(dir, name, &st)
	}
	if c.Type == "file" && st.Mode&0o111 != 0 {
		_, c.Capabilities = ofPath(dir, name, "security.capability")
	}
	if c.Type == "link" {
		c.From = linkOf(dir, name)
	}
	if w.special && !c.Special() {
		return nil
	}
	if w.c.Upper == nil {
		c.How = record.DriftLater
		w.tell(c, nil, name)
		return nil
	}
	was, dirs, err := w.below(lower, name)
	w.close(dirs)
	if err != nil {
		return err
	}
	if was == nil {
		c.How = record.DriftAdded
		w.tell(c, nil, name)
		return nil
	}
	c.How = record.DriftChanged
	c.What = differs(&was.st, &st)
	switch {
	case metacopy && redirect != "":
		if data != nil && len(c.What) == 0 && w.same(was, name, data.dir, base, &data.st) {
			return nil
		}
		c.From = redirect // another file, moved here
	case metacopy && len(c.What) == 0:
		return nil
	case metacopy:
		c.What = append(c.What, "metadata only")
	case len(c.What) > 0:
	case w.same(was, name, dir, name, &st):
		return nil
	}
	w.tell(c, nil, name)
	return nil
}

// subdirectory tells of a directory itself, and of what is in it.
func (w *walk) subdirectory(dir int, lower []int, name string, depth int, c record.Change, st *unix.Stat_t) error {
	fd, err := w.openat(dir, name)
	if errors.Is(err, errOpen) {
		return err
	}
	if err != nil {
		return errInvisible
	}
	was, dirs, err := w.below(lower, name)
	if err != nil {
		w.close([]int{fd})
		return err
	}
	tell := false
	switch {
	case w.c.Upper == nil:
		c.How = record.DriftLater // its time changes with what is in it: only that is told
	case was == nil:
		c.How, tell = record.DriftAdded, true
	case was.st.Mode&unix.S_IFMT != unix.S_IFDIR:
		c.How, c.What, tell = record.DriftChanged, []string{"type"}, true
	default:
		c.How, c.What = record.DriftChanged, differs(&was.st, st)
		tell = len(c.What) > 0
	}
	if w.c.Upper != nil && !w.special {
		if from := attribute(fd, "redirect"); from != "" {
			// What was renamed brings what it had: that is not new.
			c.From, tell = from, true
			if !path.IsAbs(from) {
				c.From = path.Join(path.Dir(c.Path), from)
			}
			c.What = append(c.What, "renamed")
			w.close(dirs)
			dirs = w.fromRoot(c.From)
		} else if opaque(fd) {
			// What it holds is compared with what the image had all the same: a
			// directory that was made anew may hold the same files.
			if was != nil && len(dirs) > 0 {
				c.What, tell = append(c.What, "what the image had in it is hidden"), true
			}
		}
	}
	if tell && !w.special && !(w.mounts[c.Path] && c.How == record.DriftAdded) {
		w.tell(c, nil, name)
	}
	return w.directory(fd, dirs, c.Path, depth+1)
}

// dataOf finds the file whose data a metacopy shows. close ends the use of what it gives.
func (w *walk) dataOf(lower []int, name, redirect string) (data *there, base string, close func()) {
	if redirect == "" {
		redirect = name
	}
	dirs := lower
	close = func() {}
	if path.IsAbs(redirect) {
		dirs = w.fromRoot(path.Dir(redirect))
		close = func() { w.close(dirs) }
	}
	base = path.Base(redirect)
	data, below, err := w.below(dirs, base)
	w.close(below)
	if err != nil || data == nil || data.st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, base, close
	}
	return data, base, close
}

// fromRoot opens a directory of the image by its path.
func (w *walk) fromRoot(name string) []int {
	at, err := w.reopened(w.c.Lower)
	if err != nil {
		return nil
	}
	for part := range strings.SplitSeq(strings.Trim(path.Clean(name), "/"), "/") {
		if part == "" || part == ".." {
			continue
		}
		_, next, err := w.below(at, part)
		w.close(at)
		if err != nil {
			return nil
		}
		at = next
	}
	return at
}

func (w *walk) tell(c record.Change, lower []int, name string) {
	if c.How == record.DriftRemoved {
		was, dirs, _ := w.below(lower, name)
		w.close(dirs)
		if was == nil {
			return // nothing was there: a whiteout that a rename left
		}
		c.Type = typeOf(was.st.Mode)
		if c.Type == "file" {
			c.Size = was.st.Size
		}
		c.Mode, c.UID, c.GID = was.st.Mode&0o7777, was.st.Uid, was.st.Gid
	}
	c.Declared = below(w.c.Declared, c.Path)
	if !utf8.ValidString(c.Path) {
		c.Bytes = hex.EncodeToString([]byte(c.Path))
	}
	w.found.add(c)
}

func typeOf(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "link"
	case unix.S_IFIFO:
		return "pipe"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}

// differs compares what stat(2) tells, but for size and times.
func differs(a, b *unix.Stat_t) (what []string) {
	if a.Mode&unix.S_IFMT != b.Mode&unix.S_IFMT {
		what = append(what, "type")
	}
	if a.Mode&0o7777 != b.Mode&0o7777 {
		what = append(what, "mode")
	}
	if a.Uid != b.Uid || a.Gid != b.Gid {
		what = append(what, "owner")
	}
	return what
}

// whiteout: a device 0:0, or an empty file with an attribute that counts in a
// directory that says so (for layers in layers, Linux 6.7).
func whiteout(dir int, name string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		return st.Rdev == 0
	case unix.S_IFREG:
		return st.Size == 0 && has(dir, name, "whiteout") && attribute(dir, "opaque") == "x"
	}
	return false
}

func opaque(fd int) bool { return attribute(fd, "opaque") == "y" }

// overlay keeps its marks under one of two names (the mount option userxattr).
var prefixes = []string{"trusted.overlay.", "user.overlay."}

func attribute(fd int, name string) string {
	var buf [4096]byte
	for _, mark := range marks(name) {
		if n, err := unix.Fgetxattr(fd, mark, buf[:]); err == nil && n > 0 && n <= len(buf) {
			return string(buf[:n])
		}
	}
	return ""
}

// has asks for an attribute of a file without opening it: it may be a pipe.
func has(dir int, name, attr string) bool {
	_, ok := ofPath(dir, name, marks(attr)...)
	return ok
}

func attributeOf(dir int, name, attr string) string {
	value, _ := ofPath(dir, name, marks(attr)...)
	return value
}

// marks are the names that one of overlay's can have.
func marks(attr string) (names []string) {
	for _, p := range prefixes {
		names = append(names, p+attr)
	}
	return names
}

// ofPath gives the first of a file's attributes that is there.
func ofPath(dir int, name string, attrs ...string) (string, bool) {
	fd, err := unix.Openat(dir, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", false
	}
	defer unix.Close(fd)
	var buf [4096]byte
	for _, attr := range attrs {
		if n, err := unix.Getxattr(fmt.Sprintf("/proc/self/fd/%d", fd), attr, buf[:]); err == nil {
			return string(buf[:n]), true
		}
	}
	return "", false
}

func linkOf(dir int, name string) string {
	var buf [1024]byte
	n, err := unix.Readlinkat(dir, name, buf[:])
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// regular opens a file if it is one.
func regular(dir int, name string) (*os.File, bool) {
	fd, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NOATIME, 0)
	if err != nil {
		return nil, false
	}
	f := os.NewFile(uintptr(fd), "file")
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		f.Close()
		return nil, false
	}
	return f, true
}

// program knows ELF files, whatever their mode, since they are mapped without
// asking for it; and what begins like a script and may be executed.
func (w *walk) program(dir int, name string, st *unix.Stat_t) string {
	if st.Size < 2 {
		return ""
	}
	f, ok := regular(dir, name)
	if !ok {
		return ""
	}
	defer f.Close()
	var head [4]byte
	n, _ := f.ReadAt(head[:], 0)
	switch {
	case bytes.Equal(head[:n], []byte("\x7fELF")):
		return "elf"
	case n >= 2 && string(head[:2]) == "#!" && st.Mode&0o111 != 0:
		return "script"
	}
	return ""
}

// same compares two files byte by byte, or, beyond what is compared, by their
// time: a copy-up keeps it.
func (w *walk) same(was *there, as string, dir int, name string, st *unix.Stat_t) bool {
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return linkOf(was.dir, as) == linkOf(dir, name)
	case unix.S_IFREG:
	default:
		return was.st.Rdev == st.Rdev
	}
	if was.st.Size != st.Size {
		return false
	}
	if w.compared+st.Size > w.l.Compare {
		return was.st.Mtim == st.Mtim
	}
	w.compared += st.Size
	a, ok := regular(was.dir, as)
	if !ok {
		return false
	}
	defer a.Close()
	b, ok := regular(dir, name)
	if !ok {
		return false
	}
	defer b.Close()
	x, y := make([]byte, 64<<10), make([]byte, 64<<10)
	for at := int64(0); at < st.Size; {
		if w.ctx.Err() != nil {
			return false
		}
		n, _ := a.ReadAt(x, at)
		m, _ := b.ReadAt(y, at)
		if n == 0 || n != m || !slices.Equal(x[:n], y[:m]) {
			return false
		}
		at += int64(n)
	}
	return true
}
