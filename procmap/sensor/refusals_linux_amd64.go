package sensor

import "golang.org/x/sys/unix"

// Offsets into struct pt_regs (arch/x86/include/asm/ptrace.h).
const (
	archSupported = true
	regReturn     = 80  // ax
	regNumber     = 120 // orig_ax
)

var regArgs = [4]int16{112, 104, 96, 56} // di, si, dx, r10

// oldCalls are those that later architectures have only in their "at" form.
var oldCalls = map[uint64]call{
	unix.SYS_OPEN:      {"open", 0, none, 1, false},
	unix.SYS_CREAT:     {"creat", 0, none, none, false},
	unix.SYS_MKDIR:     {"mkdir", 0, none, none, true},
	unix.SYS_MKNOD:     {"mknod", 0, none, none, true},
	unix.SYS_RMDIR:     {"rmdir", 0, none, none, false},
	unix.SYS_UNLINK:    {"unlink", 0, none, none, false},
	unix.SYS_RENAME:    {"rename", 0, none, none, false},
	unix.SYS_RENAMEAT:  {"renameat", 1, 0, none, false},
	unix.SYS_SYMLINK:   {"symlink", 1, none, none, true},
	unix.SYS_LINK:      {"link", 1, none, none, true},
	unix.SYS_CHMOD:     {"chmod", 0, none, none, false},
	unix.SYS_CHOWN:     {"chown", 0, none, none, false},
	unix.SYS_LCHOWN:    {"lchown", 0, none, none, false},
	unix.SYS_UTIME:     {"utime", 0, none, none, false},
	unix.SYS_UTIMES:    {"utimes", 0, none, none, false},
	unix.SYS_FUTIMESAT: {"futimesat", 1, 0, none, false},
}

var oldAsks = []uint64{unix.SYS_ACCESS}
