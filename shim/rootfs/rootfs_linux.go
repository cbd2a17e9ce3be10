// Package rootfs reads files of a container image's root filesystem.
//
// Every path is taken as the container will take it: absolute, and never out
// of the root, whatever symbolic links say (openat2(2) RESOLVE_IN_ROOT, since
// Linux 5.6). Magic links, and opening anything but regular files and
// directories, are refused: a FIFO or a device in an image can neither block
// nor trigger anything.
//
// It does not protect against files that change while they are read.
package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// ErrNotRegular is returned for a file that is neither regular nor, where one
// was asked for, a directory.
var ErrNotRegular = errors.New("not a regular file")

// Root is an open root filesystem. It is safe for concurrent use.
type Root struct {
	dir  *os.File
	base string // what /proc/self/fd says of dir
	// instead holds files that the operator mounts over or beside the image's.
	instead map[string]*os.File

	dev     uint64   // of dir
	volumes sync.Map // device number → Volume
}

// Volume is what a part of a root filesystem lies on.
type Volume struct {
	// ID is the same as long as the volume is, over mounts and restarts, as far
	// as its kind has something that is; overlays only have their kind.
	ID    string
	kind  int64
	plain bool // the overlay's own device: see Keeps
}

// Kinds of volumes whose times of change the host's kernel keeps by itself, and
// nobody else makes (statfs(2)). What a server, a FUSE program or the maker of a
// read-only image (EROFS, SquashFS) says is not among them.
var keeping = map[int64]bool{
	unix.EXT4_SUPER_MAGIC: true, unix.XFS_SUPER_MAGIC: true, unix.BTRFS_SUPER_MAGIC: true, unix.F2FS_SUPER_MAGIC: true,
	unix.TMPFS_MAGIC: true, unix.OVERLAYFS_SUPER_MAGIC: true,
	0x2fc12fc1: true, // ZFS, which statfs(2) does not list
	0xca451a4e: true, // bcachefs
}

// Keeps tells whether the kernel alone keeps the file's time of change. An
// overlay hands on what its layers say: a file that lies on another file system
// than the uppermost layer has another device number, or a number of that file
// system in the upper bits of its inode number (Documentation/filesystems/overlayfs).
func (v Volume) Keeps(st *unix.Stat_t) bool {
	return keeping[v.kind] && (v.kind != unix.OVERLAYFS_SUPER_MAGIC || v.plain && st.Ino>>48 == 0)
}

// Volume describes the volume that has the device number, of a file that was
// looked at before.
func (r *Root) Volume(dev uint64) (Volume, bool) {
	v, ok := r.volumes.Load(dev)
	if !ok {
		return Volume{}, false
	}
	return v.(Volume), true
}

// noteVolume remembers what a file lies on.
func (r *Root) noteVolume(fd int, dev uint64) {
	if _, ok := r.volumes.Load(dev); ok {
		return
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(fd, &fs) != nil {
		return
	}
	v := Volume{ID: fmt.Sprintf("%x", fs.Type), kind: int64(fs.Type), plain: dev == r.dev}
	if v.kind != unix.OVERLAYFS_SUPER_MAGIC { // that of an overlay may be made anew for every container
		v.ID = fmt.Sprintf("%x:%x:%x", fs.Type, fs.Fsid.Val[0], fs.Fsid.Val[1])
	}
	r.volumes.Store(dev, v)
}

// Put makes the path name lead to file, which a mount will put there. Not
// safe while the root is in use. The root takes over the file.
func (r *Root) Put(name string, file *os.File) {
	if r.instead == nil {
		r.instead = map[string]*os.File{}
	}
	if old := r.instead[path.Clean("/"+name)]; old != nil {
		old.Close()
	}
	r.instead[path.Clean("/"+name)] = file
}

// Open opens the directory dir as a root filesystem.
func Open(dir string) (*Root, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open root filesystem %s: %w", dir, err)
	}
	return FromFile(os.NewFile(uintptr(fd), dir))
}

// FromFile takes over an open directory, which may lie in another mount namespace.
func FromFile(f *os.File) (*Root, error) {
	base, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("name root filesystem: %w", err)
	}
	r := &Root{dir: f, base: base}
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) == nil {
		r.dev = st.Dev
	}
	return r, nil
}

// Close releases the root. Files opened through it stay open.
func (r *Root) Close() error {
	for _, f := range r.instead {
		f.Close()
	}
	return r.dir.Close()
}

// File gives the directory itself, for system calls that want a descriptor.
func (r *Root) File() *os.File { return r.dir }

// File is an open regular file of the image.
type File struct {
	*os.File
	Path string      // in the container, free of symbolic links
	Info fs.FileInfo // as of the time it was opened
	Stat unix.Stat_t
}

func (r *Root) openPath(name string, flags uint64) (int, error) {
	how := unix.OpenHow{
		Flags:   flags | unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	}
	if f := r.instead[path.Clean("/"+name)]; f != nil {
		fd, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.O_PATH|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
	for range 64 {
		fd, err := unix.Openat2(int(r.dir.Fd()), below(name), &how)
		if err == unix.EAGAIN || err == unix.EINTR { // a rename somewhere raced with ".."
			continue
		}
		if err != nil {
			return -1, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		return fd, nil
	}
	return -1, &fs.PathError{Op: "open", Path: name, Err: unix.EAGAIN}
}

func (r *Root) pathOf(fd int, name string) string {
	if clean := path.Clean("/" + name); r.instead[clean] != nil {
		return clean
	}
	p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return path.Clean("/" + name)
	}
	if r.base != "/" {
		p = strings.TrimPrefix(p, r.base)
	}
	return path.Clean("/" + strings.TrimPrefix(p, "/"))
}

// Open opens a regular file for reading, following symbolic links inside the root.
func (r *Root) Open(name string) (*File, error) {
	fd, err := r.openPath(name, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return nil, &fs.PathError{Op: "open", Path: name, Err: ErrNotRegular}
	}
	r.noteVolume(fd, st.Dev)
	f, err := os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", fd), os.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: errors.Unwrap(err)}
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	return &File{File: f, Path: r.pathOf(fd, name), Info: info, Stat: st}, nil
}

// ReadFile reads a regular file of at most limit bytes; a larger one is an error.
func (r *Root) ReadFile(name string, limit int64) ([]byte, error) {
	f, err := r.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, limit)
	}
	return data, nil
}

// Stat describes what name leads to, following symbolic links inside the root,
// and gives its path free of symbolic links.
func (r *Root) Stat(name string) (string, unix.Stat_t, error) {
	return r.stat(name, 0)
}

// Lstat is Stat without following a symbolic link in the last element.
func (r *Root) Lstat(name string) (string, unix.Stat_t, error) {
	return r.stat(name, unix.O_NOFOLLOW)
}

func (r *Root) stat(name string, flags uint64) (string, unix.Stat_t, error) {
	var st unix.Stat_t
	fd, err := r.openPath(name, flags)
	if err != nil {
		return "", st, err
	}
	defer unix.Close(fd)
	if err := unix.Fstat(fd, &st); err != nil {
		return "", st, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	r.noteVolume(fd, st.Dev)
	return r.pathOf(fd, name), st, nil
}

// Given tells whether Put put a file there. The path is clean.
func (r *Root) Given(name string) bool { return r.instead[name] != nil }

// At describes the very entry that a path names which is free of symbolic
// links, in one system call. It resolves nothing: where an element before the
// last is a link it may answer for a file outside of the root, so that callers
// look at the elements first, and read nothing by its word.
func (r *Root) At(name string) (unix.Stat_t, error) {
	var st unix.Stat_t
	err := unix.Fstatat(int(r.dir.Fd()), below(name), &st, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err != nil {
		return st, &fs.PathError{Op: "stat", Path: name, Err: err}
	}
	if _, ok := r.volumes.Load(st.Dev); !ok {
		if _, _, err := r.stat(name, unix.O_NOFOLLOW); err != nil {
			return st, err
		}
	}
	return st, nil
}

// LinkAt says where the symbolic link leads that a path names, as At.
func (r *Root) LinkAt(name string) (string, error) {
	var b [unix.PathMax]byte
	n, err := unix.Readlinkat(int(r.dir.Fd()), below(name), b[:])
	if err != nil {
		return "", &fs.PathError{Op: "readlink", Path: name, Err: err}
	}
	return string(b[:n]), nil
}

// below makes a path relative to the root directory.
func below(name string) string {
	if rel := strings.TrimLeft(name, "/"); rel != "" {
		return rel
	}
	return "."
}

// MaxEntries is how many entries of a directory are listed at most.
const MaxEntries = 100_000

// ReadDir lists a directory, at most limit entries (0 means MaxEntries) in directory
// order. Names and types only: the entries' Info must not be called, Lstat is there for that.
func (r *Root) ReadDir(name string, limit int) ([]fs.DirEntry, error) {
	if limit <= 0 {
		limit = MaxEntries
	}
	fd, err := r.openPath(name, unix.O_DIRECTORY)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	d, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return nil, &fs.PathError{Op: "readdir", Path: name, Err: err}
	}
	defer d.Close()
	entries, err := d.ReadDir(limit)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return entries, nil
}

// Executable tells whether name leads to a regular file that somebody may
// execute, and its path free of symbolic links.
func (r *Root) Executable(name string) (string, bool) {
	p, st, err := r.Stat(name)
	if err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o111 == 0 {
		return "", false
	}
	return p, true
}

// LookPath finds a command the way execvp(3) does with the given PATH.
func (r *Root) LookPath(command, searchPath, cwd string) (string, bool) {
	if strings.Contains(command, "/") {
		if !path.IsAbs(command) {
			command = path.Join("/", cwd, command)
		}
		return r.Executable(command)
	}
	if searchPath == "" {
		searchPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	}
	for dir := range strings.SplitSeq(searchPath, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join("/", cwd, dir)
		}
		if p, ok := r.Executable(path.Join(dir, command)); ok {
			return p, true
		}
	}
	return "", false
}
