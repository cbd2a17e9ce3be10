package sensor

import "golang.org/x/sys/unix"

// Offsets into struct pt_regs (arch/arm64/include/asm/ptrace.h). The result
// overwrites regs[0], so the first argument is taken from orig_x0.
const (
	archSupported = true
	regReturn     = 0   // regs[0]
	regNumber     = 280 // syscallno
)

var regArgs = [4]int16{272, 8, 16, 24} // orig_x0, regs[1..3]

var oldCalls = map[uint64]call{
	unix.SYS_RENAMEAT: {"renameat", 1, 0, none, false},
}

var oldAsks []uint64
