package supervise

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	maxPath = 4096
	maxArgs = 64
	maxArg  = 256
)

// execution is what a thread said it executes, in memory that it can change.
type execution struct {
	tid   int
	dirfd int32
	flags int32
	path  string
	argv  []string
	memfd bool // the descriptor it names is a memfd
}

func readExec(n *notification, at bool) execution {
	x := execution{tid: int(n.PID), dirfd: unix.AT_FDCWD}
	name, args := n.Args[0], n.Args[1]
	if at {
		x.dirfd, name, args, x.flags = int32(n.Args[0]), n.Args[1], n.Args[2], int32(n.Args[4])
	}
	if x.tid == 0 {
		return x
	}
	size := 8
	if n.Arch == unix.AUDIT_ARCH_I386 || n.Arch == unix.AUDIT_ARCH_ARM {
		size, name, args = 4, name&0xffff_ffff, args&0xffff_ffff
	}
	x.path, _ = readString(x.tid, name, maxPath)
	x.argv = readStrings(x.tid, args, size)
	if fd, ok := x.descriptor(); ok {
		link, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", x.tid, fd))
		x.memfd = err == nil && strings.HasPrefix(link, "/memfd:") && strings.HasSuffix(link, " (deleted)")
	}
	return x
}

// descriptor gives the number of the descriptor that is executed, where it is
// one: execveat(fd, "", AT_EMPTY_PATH), /proc/self/fd/N, /dev/fd/N.
func (x *execution) descriptor() (int, bool) {
	if x.path == "" && x.flags&unix.AT_EMPTY_PATH != 0 && x.dirfd >= 0 {
		return int(x.dirfd), true
	}
	rest, ok := strings.CutPrefix(x.path, "/dev/fd/")
	if !ok {
		if rest, ok = strings.CutPrefix(x.path, "/proc/"); !ok {
			return 0, false
		}
		if _, rest, ok = strings.Cut(rest, "/fd/"); !ok {
			return 0, false
		}
	}
	fd, err := strconv.ParseUint(rest, 10, 31)
	return int(fd), err == nil
}

// readMemory reads up to len(buf) bytes, fewer where the memory ends.
func readMemory(tid int, addr uint64, buf []byte) int {
	if addr == 0 || len(buf) == 0 {
		return 0
	}
	local := []unix.Iovec{{Base: &buf[0], Len: uint64(len(buf))}}
	// One vector per page: a transfer ends between vectors, not within one.
	var remote []unix.RemoteIovec
	for done := 0; done < len(buf); {
		size := min(len(buf)-done, 4096-int((addr+uint64(done))%4096))
		remote = append(remote, unix.RemoteIovec{Base: uintptr(addr + uint64(done)), Len: size})
		done += size
	}
	n, err := unix.ProcessVMReadv(tid, local, remote, 0)
	if err != nil {
		return 0
	}
	return n
}

func readString(tid int, addr uint64, limit int) (string, bool) {
	buf := make([]byte, limit)
	buf = buf[:readMemory(tid, addr, buf)]
	i := bytes.IndexByte(buf, 0)
	if i < 0 {
		return string(buf), false
	}
	return string(buf[:i]), true
}

func readStrings(tid int, addr uint64, size int) []string {
	buf := make([]byte, maxArgs*size)
	buf = buf[:readMemory(tid, addr, buf)]
	var out []string
	for ; len(buf) >= size; buf = buf[size:] {
		p := uint64(binary.NativeEndian.Uint32(buf))
		if size == 8 {
			p = binary.NativeEndian.Uint64(buf)
		}
		if p == 0 {
			break
		}
		s, _ := readString(tid, p, maxArg)
		out = append(out, s)
	}
	return out
}

// bounded cuts an argument list as readStrings does.
func bounded(args []string) []string {
	out := []string{}
	for _, a := range args[:min(len(args), maxArgs)] {
		out = append(out, a[:min(len(a), maxArg)])
	}
	return out
}

// target is the file that a path led to.
type target struct {
	file    *os.File // O_PATH
	path    string   // in the container
	mode    uint32
	regular bool
	noexec  bool // it lies on a noexec mount
	own     bool // it is this thread's: the same path is another file to others
}

func (t *target) Close() { t.file.Close() }

var errUnsure = errors.New("cannot tell what is executed")

// resolve looks a path up as the thread would. Whatever is not plain (a changed
// root, magic links, procfs) is errUnsure: then others decide.
func (x *execution) resolve() (*target, error) {
	proc := fmt.Sprintf("/proc/%d/", x.tid)
	if x.tid == 0 || strings.IndexByte(x.path, 0) >= 0 {
		return nil, errUnsure
	}
	other := strings.HasPrefix(x.path, "/proc/") && !strings.HasPrefix(x.path, "/proc/self/") && !strings.HasPrefix(x.path, "/proc/thread-self/")
	if fd, ok := x.descriptor(); ok && !other {
		return opened(proc + "fd/" + strconv.Itoa(fd))
	}
	switch x.path {
	case "":
		return nil, errUnsure
	case "/proc/self/exe", "/proc/thread-self/exe":
		return opened(proc + "exe")
	}
	if root, err := os.Readlink(proc + "root"); err != nil || root != "/" {
		return nil, errUnsure // chroot: paths have another meaning
	}
	name := x.path
	if !path.IsAbs(name) {
		link := proc + "cwd"
		if x.dirfd != unix.AT_FDCWD {
			link = proc + "fd/" + strconv.Itoa(int(x.dirfd))
		}
		dir, err := os.Readlink(link)
		if err != nil || !path.IsAbs(dir) || strings.HasSuffix(dir, " (deleted)") {
			return nil, errUnsure
		}
		name = dir + "/" + name // not cleaned: ".." after a link is not what it looks like
	}
	root, err := unix.Open(proc+"root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, errUnsure
	}
	defer unix.Close(root)
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	if x.flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		how.Flags |= unix.O_NOFOLLOW
	}
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		return nil, errUnsure
	}
	fd, err := unix.Openat2(root, rel, &how)
	for i := 0; i < 8 && (err == unix.EAGAIN || err == unix.EINTR); i++ {
		fd, err = unix.Openat2(root, rel, &how)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnsure, err)
	}
	return targetOf(fd, path.Clean("/"+rel))
}

// opened gives the file that a magic link of the thread leads to. Nothing is
// read from it.
func opened(link string) (*target, error) {
	fd, err := unix.Open(link, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errUnsure, err)
	}
	t, err := targetOf(fd, link)
	if err == nil {
		t.own = true
	}
	return t, err
}

// targetOf takes fd over. name is used where the kernel has none.
func targetOf(fd int, name string) (*target, error) {
	t := &target{file: os.NewFile(uintptr(fd), name), path: name}
	var st unix.Stat_t
	var fs unix.Statfs_t
	if unix.Fstat(fd, &st) != nil || unix.Fstatfs(fd, &fs) != nil || fs.Type == unix.PROC_SUPER_MAGIC {
		t.Close()
		return nil, errUnsure
	}
	t.mode, t.regular, t.noexec = st.Mode, st.Mode&unix.S_IFMT == unix.S_IFREG, fs.Flags&unix.ST_NOEXEC != 0
	// The link is by the file's own mount namespace once the container's root is
	// its root; before (runc's init) it is not, and the path as given must do.
	if p, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err == nil && path.IsAbs(p) && !strings.HasSuffix(p, " (deleted)") {
		t.path = p
	}
	return t, nil
}
