package seccompgen

import (
	"strings"

	"github.com/declarun/declarun/seccompgen/x86"
)

// setxid are the calls that a C library repeats on every thread.
var setxid = []int32{105, 106, 113, 114, 116, 117, 119} // setuid setgid setreuid setregid setgroups setresuid setresgid

// benign knows the few sites whose number lies in memory by design, and gives
// the numbers that it can be.
//
// glibc (nptl/nptl_setxid.c: __nptl_setxid, __nptl_setxid_sighandler) and musl
// (src/unistd/setxid.c: do_setxid) repeat one set*id call on every thread, with
// number and arguments in a structure that only their own set*id functions
// fill. Go (runtime.runPerThreadSyscall) does so for syscall.AllThreadsSyscall,
// whose callers are followed like those of any other function that takes the
// number.
func (b *builder) benign(fi int32, pc uint64, reason string) ([]int32, bool) {
	if b.isGo[fi] {
		return nil, strings.HasPrefix(b.out.Funcs[fi].Name, "runtime.runPerThreadSyscall")
	}
	if reason != "loaded from memory" && reason != "loaded from a variable" {
		return nil, false
	}
	if !b.isLibc() {
		return nil, false
	}
	// The number and the first three arguments come from one structure.
	d := b.body(fi)
	i := d.index(pc)
	if i < 0 {
		return nil, false
	}
	type field struct {
		base uint8
		disp int32
	}
	from := map[uint8]field{}
	for k := i - 1; k >= 0 && k >= i-16; k-- {
		in := &d.ins[k]
		if (in.Class == x86.Mov || in.Class == x86.Movx) && in.IsMem && in.Load && !in.RIP && in.Index == x86.None {
			if _, dup := from[in.Reg]; !dup {
				from[in.Reg] = field{in.Base, in.Disp}
			}
		}
	}
	nr, a, bb, c := from[x86.RAX], from[x86.RDI], from[x86.RSI], from[x86.RDX]
	switch {
	case nr.disp == 0 && a.disp == 8 && bb.disp == 16 && c.disp == 24: // glibc: each set*id function also makes its call itself
		return nil, true
	case nr.disp == 12 && a.disp == 0 && bb.disp == 4 && c.disp == 8, // musl 1.2
		nr.disp == 24 && a.disp == 0 && bb.disp == 8 && c.disp == 16: // musl 1.1
		return setxid, true
	}
	return nil, false
}

// isLibc tells whether the file is a C library or may have one linked in.
func (b *builder) isLibc() bool {
	if !b.f.Dynamic || b.f.Interp == "" && len(b.f.Needed) == 0 && len(b.f.Dynsym) <= 1 {
		return true // static
	}
	found := map[string]bool{}
	for i := range b.f.Dynsym {
		if s := &b.f.Dynsym[i]; s.Defined {
			switch s.Name {
			case "setuid", "setresuid", "__libc_start_main":
				found[s.Name] = true
			}
		}
	}
	return len(found) == 3
}
