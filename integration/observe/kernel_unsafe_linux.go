package observe

import (
	"errors"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// notification is struct seccomp_notif.
type notification struct {
	id    uint64
	pid   uint32
	flags uint32
	nr    int32
	arch  uint32
	ip    uint64
	args  [6]uint64
}

// response is struct seccomp_notif_resp.
type response struct {
	id    uint64
	val   int64
	error int32
	flags uint32
}

func receive(fd int) (notification, error) {
	var n notification
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
		return n, e
	}
	return n, nil
}

func reply(fd int, id uint64, let bool, errno int32) {
	r := response{id: id, error: -errno}
	if let {
		r = response{id: id, flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}
	}
	// It fails only when the caller is gone.
	_, _, _ = unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
}

// load puts a filter, an array of struct sock_filter, on the calling thread and
// gives its listener.
func load(program []byte) (int, error) {
	return setFilter(program, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER)
}

// loadPlain puts a filter that asks nobody on the calling thread.
func loadPlain(program []byte) error {
	_, err := setFilter(program, 0)
	return err
}

func setFilter(program []byte, flags uintptr) (int, error) {
	if len(program) == 0 || len(program)%8 != 0 {
		return -1, errors.New("no whole instructions")
	}
	f := make([]unix.SockFilter, len(program)/8)
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&f[0])), len(program)), program)
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(f)
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// reads reads n times into a buffer of one byte.
func reads(fd int, buf []byte, n int) unix.Errno {
	for range n {
		if r, _, e := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&buf[0])), 1); r != 1 {
			return max(e, 1)
		}
	}
	return 0
}
