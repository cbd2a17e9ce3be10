package seccompgen

import (
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/x86"
)

// loaderMain finds what the loader of glibc hands to itself: _dl_start passes
// dl_main to _dl_sysdep_start, which calls it once and keeps it nowhere
// (elf/rtld.c, sysdeps/unix/sysv/linux/dl-sysdep.c). That makes it no function
// whose address is taken. The only other use of the address is in dlmopen_doit,
// as the third argument of _dl_open: where the call comes from, which is only
// compared with where files are loaded (elf/dl-open.c). Where that much is found,
// the address of the loader's own entry point is no pointer to call either: it
// is what _dl_sysdep_start begins with for that of the program, and what dl_main
// compares that with, to see whether the loader was executed as a program.
//
// What _dl_open and dl_main compare is not checked in the code, all else is;
// where it does not look like that, -1 is the answer.
func (b *builder) loaderMain() int32 {
	entry := b.at(b.f.Entry)
	if b.f.Interp != "" || !strings.HasPrefix(b.f.Soname, "ld-linux") || entry < 0 {
		return -1
	}
	near := []int32{entry}
	for i := range b.calls {
		if r := &b.calls[i]; r.fn == entry && r.site != 0 && !r.after {
			near = append(near, b.at(r.to))
		}
	}
	main := int32(-1)
	for i := range b.calls {
		r := &b.calls[i]
		if k := b.functionAt(r.to); r.site == 0 && !r.after && k >= 0 && slices.Contains(near, r.fn) {
			if callee := b.passedTo(r.fn, r.to, x86.RSI); callee >= 0 && b.onlyCalls(callee, x86.RSI) {
				if main >= 0 {
					return -1
				}
				main = k
			}
		}
	}
	if main < 0 {
		return -1
	}
	for _, r := range b.f.Relocs { // in data it would be a pointer like any other
		if b.functionAt(uint64(r.Addend)) == main {
			return -1
		}
	}
	for i := range b.calls {
		r := &b.calls[i]
		if r.site != 0 || r.after || b.at(r.to) != main || slices.Contains(near, r.fn) {
			continue
		}
		if b.passedTo(r.fn, r.to, x86.RDX) < 0 {
			return -1
		}
	}
	return main
}

// passedTo gives the function that an address goes to in the register of an
// argument: the function fi takes it in one place, loads it there and does
// nothing with it before the next call. It is -1 for anything else.
func (b *builder) passedTo(fi int32, addr uint64, register uint8) int32 {
	d := b.body(fi)
	at := int32(-1)
	for i := range d.ins {
		if in := &d.ins[i]; in.IsMem && in.RIP && in.Address(d.pcs[i]) == addr {
			if at >= 0 || in.Class != x86.Lea || in.Reg != register {
				return -1
			}
			at = int32(i)
		}
	}
	if at < 0 {
		return -1
	}
	for i := at + 1; i < int32(len(d.ins)); i++ {
		in := &d.ins[i]
		switch {
		case in.Class == x86.Call:
			return b.functionAt(in.Target(d.pcs[i]))
		case leaves(in), mentions(in, register), d.entry[i], !slices.Equal(d.preds[i], []int32{i - 1}):
			return -1
		}
	}
	return -1
}

// onlyCalls tells whether a function keeps an argument in one register that
// calls preserve, and uses that for nothing but one call of it.
func (b *builder) onlyCalls(fi int32, register uint8) bool {
	d := b.body(fi)
	if len(d.ins) == 0 || b.unfollowed(d) {
		return false
	}
	// Kept before anything else looks at it.
	at, keep := 0, uint8(x86.None)
	for ; at < len(d.ins) && keep == x86.None; at++ {
		in := &d.ins[at]
		switch {
		case leaves(in):
			return false
		case in.Class == x86.Mov && !in.IsMem && in.Size == 8 && in.SrcReg() == register:
			keep = in.DstReg()
		case mentions(in, register):
			return false
		}
	}
	if keep == x86.None || keep == x86.RSP || clobberC>>keep&1 != 0 {
		return false
	}
	// Gone from where it was passed before anything can look there.
	for i := at; ; i++ {
		if i == len(d.ins) || leaves(&d.ins[i]) || reads(&d.ins[i], register) {
			return false
		}
		if d.ins[i].Writes()>>register&1 != 0 {
			break
		}
	}
	calls := 0
	for i := at; i < len(d.ins); i++ {
		in := &d.ins[i]
		switch {
		case in.Class == x86.CallInd && !in.IsMem && in.RM == keep:
			calls++
		case in.Class == x86.Pop && !in.IsMem && in.RM == keep:
		case mentions(in, keep):
			return false
		}
	}
	return calls == 1
}

// leaves tells whether control may go elsewhere than to the next instruction,
// or come back from elsewhere.
func leaves(in *x86.Inst) bool {
	switch in.Class {
	case x86.Call, x86.CallInd, x86.Jmp, x86.Jcc, x86.JmpInd, x86.Ret, x86.Trap, x86.Syscall, x86.Sysenter, x86.Int:
		return true
	}
	return false
}

// mentions tells whether an instruction may read or write a register.
func mentions(in *x86.Inst, register uint8) bool {
	if in.Writes()>>register&1 != 0 || in.Class == x86.Other && !in.HasModRM && register != x86.RBX && register < x86.R8 {
		return true
	}
	return reads(in, register)
}

// reads tells whether an operand of an instruction is in a register.
func reads(in *x86.Inst, register uint8) bool {
	if in.IsMem && (in.Base == register || in.Index == register) {
		return true
	}
	switch in.Class {
	case x86.Push, x86.CallInd, x86.JmpInd:
		return !in.IsMem && in.RM == register
	case x86.Lea, x86.MovImm:
		return false
	case x86.Mov:
		if in.Load && in.IsMem {
			return false
		}
		if !in.IsMem {
			return in.SrcReg() == register
		}
		return in.Reg == register
	}
	return in.HasModRM && (in.Reg == register || !in.IsMem && in.RM == register)
}
