package seccompgen

import (
	"cmp"
	"debug/elf"
	"encoding/binary"
	"slices"
	"sort"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
)

// coarseSize is from how many bytes of code on a library is taken as a whole:
// all that it imports counts as used. In libraries of that size (compilers,
// solvers, browsers) nearly everything is reached through tables of pointers
// anyway, and following each of their calls costs more than all other files of
// an image together.
const coarseSize = 8 << 20

// coarse summarises a very large library without decoding all of it. The
// functions that make system calls themselves, or use a function that takes a
// call number, are found by their bytes, which decoding confirms, and are
// analysed as in any other file. It is false, and the builder is to be thrown
// away, where that is not enough to know every number.
func (amd64) coarse(b *builder) (bool, error) {
	var size uint64
	for _, r := range b.f.Exec {
		size += r.Hi - r.Lo
	}
	if size < b.coarseSize || b.f.Type != elf.ET_DYN || b.f.Interp != "" || b.f.GoPCLn != 0 || len(b.f.Frames) == 0 {
		return false, nil
	}
	b.readSlots()
	// Where the functions that take a call number are reached from.
	var want []uint64
	for i := range b.f.Relocs {
		r := &b.f.Relocs[i]
		if len(b.known[r.Sym]) == 0 || r.Sym == "" {
			continue
		}
		if r.Type != elf.R_X86_64_GLOB_DAT && r.Type != elf.R_X86_64_JMP_SLOT || len(b.f.PLT) == 0 {
			return false, nil
		}
		want = append(want, r.Off)
	}
	if len(want) > maxWanted {
		return false, nil
	}
	if len(want) > 0 {
		for _, r := range b.f.PLT {
			for a := r.Lo; a < r.Hi && b.f.IsCode(a); a += 8 {
				if sym, ok := b.stub(a); ok && len(b.known[sym]) > 0 {
					want = append(want, a)
				}
			}
		}
	}
	slices.Sort(want)
	exact := slices.Clone(b.f.Frames)
	slices.SortFunc(exact, func(x, y elfread.Range) int { return cmp.Compare(x.Lo, y.Lo) })
	exact = disjoint(exact)
	suspect := map[int]bool{}
	for _, r := range b.f.Exec {
		if err := b.ctx.Err(); err != nil {
			return false, err
		}
		if !b.suspects(r, want, exact, suspect) {
			return false, nil
		}
	}
	var at []int
	for k := range suspect {
		made, odd := b.makesCalls(exact[k], want)
		if odd {
			return false, nil
		}
		if made {
			at = append(at, k)
		}
	}
	slices.Sort(at)
	for _, k := range at {
		b.funcs, b.exact = append(b.funcs, exact[k]), append(b.exact, true)
	}
	b.index()
	entered := b.enteredAt(exact, at)
	if err := b.sweep(nil, nil, nil); err != nil {
		return false, err
	}
	for i := range b.imports {
		if r := &b.imports[i]; r.site == 0 && len(b.known[b.out.Imports[r.sym]]) > 0 {
			return false, nil // called through a pointer, from anywhere
		}
	}
	b.taken = make([]bool, len(b.funcs))
	b.findNoReturn()
	b.partial = true
	if err := b.resolve(); err != nil || b.bail {
		return false, err
	}
	b.finish()
	for i := range b.funcs {
		if entered[i] { // the others are reached by name or not at all
			b.out.Roots = append(b.out.Roots, int32(i))
		}
	}
	for i := range b.f.Relocs {
		if sym := b.f.Relocs[i].Sym; sym != "" {
			b.takeInData(sym)
		}
	}
	slices.Sort(b.out.Roots)
	return true, b.arguments()
}

// maxWanted bounds how many symbols are looked for in the bytes of a file.
const maxWanted = 64

// callByte are the bytes of syscall, sysenter and int 0x80.
var callByte = [256]bool{0x0f: true, 0x05: true, 0x34: true, 0xcd: true, 0x80: true}

func isCall(a, b byte) bool { return a == 0x0f && (b == 0x05 || b == 0x34) || a == 0xcd && b == 0x80 }

// suspects adds the functions whose bytes in r could be a system call or refer
// to one of want. It is false where such bytes lie outside any function.
func (b *builder) suspects(r elfread.Range, want []uint64, exact []elfread.Range, found map[int]bool) bool {
	code := b.f.Bytes(r.Lo)
	code = code[:min(uint64(len(code)), r.Hi-r.Lo)]
	last := -1
	hit := func(p int) bool {
		a := r.Lo + uint64(p)
		if last >= 0 && a >= exact[last].Lo && a < exact[last].Hi {
			return true
		}
		k := sort.Search(len(exact), func(i int) bool { return exact[i].Hi > a })
		if k < len(exact) && exact[k].Lo <= a {
			last, found[k] = k, true
			return true
		}
		return b.inPLT(elfread.Range{Lo: a, Hi: a + 1})
	}
	// Of two bytes one has an odd place.
	for p := 1; p < len(code); p += 2 {
		if !callByte[code[p]] {
			continue
		}
		if isCall(code[p-1], code[p]) && !hit(p-1) || p+1 < len(code) && isCall(code[p], code[p+1]) && !hit(p) {
			return false
		}
	}
	// A distance is the last of an instruction, but for an immediate of up to
	// four bytes.
	for len(want) > 0 {
		n := 1 // those near each other are looked for together
		for n < len(want) && want[n]-want[0] < 1<<16 {
			n++
		}
		lo, span := want[0]-4, want[n-1]-want[0]+4
		from := r.Lo + 4 - lo
		for p := 0; p+4 <= len(code); p++ {
			a := from + uint64(p) + uint64(int64(int32(binary.LittleEndian.Uint32(code[p:p+4:p+4]))))
			if a > span {
				continue
			}
			a += lo
			for _, w := range want[:n] {
				if w-a <= 4 && !hit(p) {
					return false
				}
			}
		}
		want = want[n:]
	}
	return true
}

// makesCalls decodes a function. odd is true for a way to make a call that only
// the whole analysis reports.
func (b *builder) makesCalls(r elfread.Range, want []uint64) (made, odd bool) {
	b.each(r, func(pc uint64, in *x86.Inst) {
		var a uint64
		switch in.Class {
		case x86.Syscall:
			made = true
			return
		case x86.Sysenter:
			odd = true
			return
		case x86.Int:
			odd = odd || in.Imm == 0x80
			return
		case x86.Call, x86.Jmp, x86.Jcc:
			a = in.Target(pc)
		default:
			if !in.IsMem || !in.RIP {
				return
			}
			a = in.Address(pc)
		}
		if _, ok := slices.BinarySearch(want, a); ok {
			made = true
		}
	})
	return made, odd
}

// each decodes a function from its start.
func (b *builder) each(r elfread.Range, do func(pc uint64, in *x86.Inst)) {
	code := b.f.Bytes(r.Lo)
	code = code[:min(uint64(len(code)), r.Hi-r.Lo)]
	var in x86.Inst
	for p := 0; p < len(code); {
		if !x86.Decode(code[p:], &in) {
			p++
			continue
		}
		do(r.Lo+uint64(p), &in)
		p += int(in.Len)
	}
}

// enteredAt tells which of the functions that are analysed, exact[at...], other
// functions or data refer to, and notes where that is into the middle of them.
func (b *builder) enteredAt(exact []elfread.Range, at []int) []bool {
	entered := make([]bool, len(at))
	if len(at) == 0 {
		return entered
	}
	enter := func(t uint64) {
		if k := b.at(t); k >= 0 {
			entered[k] = true
			b.inner.add(t)
		}
	}
	lo, span := b.funcs[0].Lo, b.funcs[len(b.funcs)-1].Hi-b.funcs[0].Lo
	for _, r := range b.f.Exec {
		code := b.f.Bytes(r.Lo)
		code = code[:min(uint64(len(code)), r.Hi-r.Lo)]
		for p := 1; p+4 <= len(code); p++ {
			pc := r.Lo + uint64(p) - 1
			t := pc + 5 + uint64(int64(int32(binary.LittleEndian.Uint32(code[p:]))))
			if t-lo > span {
				continue
			}
			k := b.at(t)
			if k < 0 || b.at(pc) == k {
				continue
			}
			// To its start by whatever instruction; elsewhere by call, jmp and jcc.
			if t == b.funcs[k].Lo || code[p-1]&0xfe == 0xe8 || code[p-1]&0xf0 == 0x80 && p > 1 && code[p-2] == 0x0f {
				enter(t)
			}
		}
	}
	// Short jumps come from the neighbours.
	for i, k := range at {
		for _, n := range []int{k - 1, k + 1} {
			if n < 0 || n >= len(exact) {
				continue
			}
			b.each(exact[n], func(pc uint64, in *x86.Inst) {
				if (in.Class == x86.Jmp || in.Class == x86.Jcc) && b.at(in.Target(pc)) == int32(i) {
					enter(in.Target(pc))
				}
			})
		}
	}
	for _, a := range b.dataPointers() {
		enter(a)
	}
	for _, a := range b.f.Init {
		enter(a)
	}
	for i := range b.f.Relocs { // own symbols in data; by name they are imports
		if r := &b.f.Relocs[i]; r.Sym != "" && r.Def != 0 {
			enter(r.Def)
		}
	}
	enter(b.f.Entry)
	return entered
}
