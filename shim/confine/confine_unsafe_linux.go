package confine

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

func setFilter(prog []unix.SockFilter, flags uintptr) (int, error) {
	p := unix.SockFprog{Len: uint16(len(prog)), Filter: &prog[0]}
	r, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, flags, uintptr(unsafe.Pointer(&p)))
	if errno != 0 {
		return -1, errno
	}
	return int(r), nil
}

// SECCOMP_IOCTL_NOTIF_RECV, on every architecture that this is built for.
const notifRecv = 0xc0502100

// recv takes one notification and gives the number of its call. The kernel may
// have appended to struct seccomp_notif, whose first 80 bytes stay as they are.
func recv(fd int) (int, error) {
	var sizes struct{ notif, resp, data uint16 }
	if _, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes))); errno != 0 {
		return 0, errno
	}
	buf := make([]uint64, max(80, int(sizes.notif)+7)/8)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), notifRecv, uintptr(unsafe.Pointer(&buf[0]))); errno != 0 {
		return 0, errno
	}
	return int(int32(uint32(buf[2]))), nil // id, pid and flags, nr and arch
}

func landlockVersion() int {
	r, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0
	}
	return int(r)
}

// landlockSelf: a ruleset without rules allows nothing of what it handles.
func landlockSelf(attr *unix.LandlockRulesetAttr) error {
	size := unsafe.Sizeof(attr.Handled_access_fs) // all that version 1 knows, and all that is used
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(attr)), size, 0)
	if errno != 0 {
		return errno
	}
	defer unix.Close(int(fd))
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); errno != 0 {
		return errno
	}
	return nil
}
