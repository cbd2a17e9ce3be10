package seccompgen

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// Answered asks the running kernel what Request.Answered may say of it. allowed
// tells whether the engine's profile lets a call through, whatever its
// arguments.
func Answered(allowed func(name string) bool) []string {
	var out []string
	for _, name := range Answerable {
		if allowed(name) && has[name]() {
			out = append(out, name)
		}
	}
	if auxv, err := os.ReadFile("/proc/self/auxv"); err == nil && mapsVDSO(auxv) {
		out = append(out, VDSO)
	}
	return out
}

// has makes calls that do nothing, and tells whether the kernel knows them.
var has = map[string]func() bool{
	"getrandom": func() bool {
		_, _, errno := unix.Syscall(unix.SYS_GETRANDOM, 0, 0, 0)
		return errno == 0
	},
	"faccessat2": func() bool { // a path at no address
		_, _, errno := unix.Syscall6(unix.SYS_FACCESSAT2, ^uintptr(0), 0, 0, 0, 0, 0)
		return errno == unix.EFAULT
	},
}

// mapsVDSO looks for the vDSO's address among what the kernel gave a 64-bit
// process (getauxval(3), AT_SYSINFO_EHDR).
func mapsVDSO(auxv []byte) bool {
	const sysinfoEHDR = 33
	for ; len(auxv) >= 16; auxv = auxv[16:] {
		if binary.NativeEndian.Uint64(auxv) == sysinfoEHDR {
			return binary.NativeEndian.Uint64(auxv[8:]) != 0
		}
	}
	return false
}
