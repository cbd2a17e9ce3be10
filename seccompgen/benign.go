package seccompgen

import (
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/x86"
)

// benign knows the few sites whose number lies in memory by design, and gives
// the numbers that it can be.
//
// glibc (nptl/nptl_setxid.c: __nptl_setxid, __nptl_setxid_sighandler) and musl
// (src/unistd/setxid.c: do_setxid) repeat one set*id call on every thread, with
// number and arguments in a structure that only their own set*id functions
// fill. Go (runtime.runPerThreadSyscall) does so for syscall.AllThreadsSyscall,
// whose callers are followed like those of any other function that takes the
// number.
func (amd64) benign(b *builder, fi int32, pc uint64, reason string) ([]int32, bool) {
	if b.isGo[fi] {
		name := b.out.Funcs[fi].Name
		return nil, strings.HasPrefix(name, "runtime.runPerThreadSyscall") || strings.HasPrefix(name, allThreads)
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
		return amd64Calls.setxid(), true
	}
	return nil, false
}

// allThreads runs a call on every thread; its first argument is the number.
const allThreads = "syscall.runtime_doAllThreadsSyscall"

// onlyCompared tells whether a function is the cancellation point of a C
// library, whose address a signal handler compares the interrupted one with:
// musl's __syscall_cp_asm (src/thread/x86_64/syscall_cp.s) and glibc's
// __syscall_cancel_arch (sysdeps/unix/sysv/linux/x86_64/syscall_cancel.S, since
// 2.41). Both move every argument down by two and nothing else does.
func (amd64) onlyCompared(b *builder, fi int32) bool {
	d := b.body(fi)
	moves := [][2]uint8{{x86.RAX, x86.RSI}, {x86.RDI, x86.RDX}, {x86.RSI, x86.RCX}, {x86.RDX, x86.R8}, {x86.R10, x86.R9}}
	k := 0
	for i := range d.ins {
		in := &d.ins[i]
		if k < len(moves) && in.Class == x86.Mov && !in.IsMem && in.Size == 8 && in.DstReg() == moves[k][0] && in.SrcReg() == moves[k][1] {
			k++
		}
		if in.Class == x86.Syscall {
			return k == len(moves) && len(d.ins) < 64
		}
	}
	return false
}

// goVariable gives the value of a package variable that no instruction of the
// program stores to and whose address none takes, such as
// syscall.fcntl64Syscall.
func (b *builder) goVariable(addr uint64, size uint8) (int64, bool) {
	if b.written == nil {
		b.written = []uint64{}
		var in x86.Inst
		for _, r := range b.funcs {
			code := b.f.Bytes(r.Lo)
			if uint64(len(code)) > r.Hi-r.Lo {
				code = code[:r.Hi-r.Lo]
			}
			for p := 0; p < len(code); {
				if !x86.Decode(code[p:], &in) {
					p++
					continue
				}
				if in.IsMem && in.RIP && !in.Load && in.Class != x86.Test && (in.Class != x86.AluImm || in.Alu != x86.Cmp) || in.IsMem && in.RIP && in.Class == x86.Lea {
					b.written = append(b.written, in.Address(r.Lo+uint64(p)))
				}
				p += int(in.Len)
			}
		}
		slices.Sort(b.written)
		b.written = slices.Clip(slices.Compact(b.written))
	}
	if i, _ := slices.BinarySearch(b.written, addr-7); addr < 8 || i < len(b.written) && b.written[i] < addr+8 {
		return 0, false
	}
	w, ok := b.f.Word(addr)
	if !ok || size != 8 {
		return 0, false
	}
	return int64(w), true
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
