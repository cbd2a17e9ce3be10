package seccompgen

import (
	"debug/elf"
	"encoding/binary"
	"slices"
	"sort"
	"strings"

	"github.com/declarun/declarun/seccompgen/a64"
	"github.com/declarun/declarun/seccompgen/elfread"
)

// arm64 is AArch64. What differs from x86-64 in kind: an address is made in two
// instructions, a page and an offset in it, which a compiler may put far apart,
// so that pages are followed through the function (follow); calls leave nothing
// on the stack; and jump tables hold distances from a label in the code, of one,
// two or four bytes (armjump.go).
//
// Sources: Procedure Call Standard for the Arm 64-bit Architecture (AAPCS64),
// Go's internal ABI specification for arm64.
type arm64 struct{}

// What calls change: in C X0 to X18 and the link register, in Go all but the
// goroutine, the frame pointer and the platform register.
const (
	armClobberC  = 1<<19 - 1 | 1<<30
	armClobberGo = 1<<28 - 1 | 1<<30
	armLink      = 30
	armFrame     = 29
)

var arm64Calls = conventions{
	goarch: "arm64", number: 8, first: 0, firstG: 0,
	argsC: 1<<19 - 1, argsGo: armClobberGo &^ (1 << 30), direct: 1<<19 - 1<<8,
	pushed: 0, slotC: 0, slotGo: 8,
	dirs: []string{"/lib/aarch64-linux-gnu", "/usr/lib/aarch64-linux-gnu"},
	lib:  "lib/aarch64-linux-gnu", platform: "aarch64", muslPath: "/etc/ld-musl-aarch64.path",
}

func (arm64) conventions() *conventions { return &arm64Calls }

// coarse: all of a file is decoded, which four bytes at a time is quick.
func (arm64) coarse(*builder) (bool, error) { return false, nil }

// fetch decodes the instruction at pc.
func fetch(f *elfread.File, pc uint64, in *a64.Inst) bool {
	d := f.Bytes(pc)
	return len(d) >= 4 && a64.Decode(binary.LittleEndian.Uint32(d), in)
}

// stubLength is how many instructions a procedure linkage stub has at most.
const stubLength = 6

func (arm64) stub(b *builder, addr uint64) (string, bool) {
	sym, ok, _ := armStub(b, addr)
	return sym, ok
}

// armStub also gives the length of the stub. It is a page, a load from it, and
// a jump to what was loaded, with landing pads and authentication between.
func armStub(b *builder, addr uint64) (string, bool, uint64) {
	code := b.f.Bytes(addr)
	var in a64.Inst
	var page, slot uint64
	pageReg, loaded := uint8(a64.None), uint8(a64.None)
	for i := uint64(0); i < stubLength && len(code) >= 4; i, code = i+1, code[4:] {
		if !a64.Decode(binary.LittleEndian.Uint32(code), &in) {
			return "", false, 0
		}
		switch {
		case in.Class == a64.Nop || in.Class == a64.Bti:
		case in.Class == a64.Page && pageReg == a64.None:
			page, pageReg = in.Page(addr+i*4), in.Rd
		case in.Class == a64.Load && in.Base == pageReg && loaded == a64.None && in.Index == a64.None && in.Mode == a64.Offset && in.Width == 8 && !in.Pair && !in.Vector:
			slot, loaded = page+uint64(in.Imm), in.Rd
		case in.Class == a64.AddImm && in.Rn == pageReg && in.Rd == pageReg && pageReg != loaded:
		case in.Class == a64.JmpInd && in.Rn == loaded && loaded != a64.None:
			sym, ok := b.slots[slot]
			return sym, ok, i*4 + 4
		default:
			return "", false, 0
		}
	}
	return "", false, 0
}

func (arm64) sweepFunc(b *builder, fi int32, r elfread.Range) {
	if b.inPLT(r) {
		b.isPLT[fi] = true
		return
	}
	code := b.f.Bytes(r.Lo)
	if uint64(len(code)) > r.Hi-r.Lo {
		code = code[:r.Hi-r.Lo]
	}
	var in a64.Inst
	fn := &b.out.Funcs[fi]
	fall := true
	var last uint64
	stubs, others := 0, 0
	lengths := func() [5]int {
		return [...]int{len(b.calls), len(b.imports), len(b.indirect), len(b.syscalls), len(fn.Sites)}
	}
	end := lengths() // what was found up to the last instruction that ends a path
	mark := end
	back := func(to [5]int) {
		b.calls, b.imports, b.indirect, b.syscalls, fn.Sites = b.calls[:to[0]], b.imports[:to[1]], b.indirect[:to[2]], b.syscalls[:to[3]], fn.Sites[:to[4]]
	}
	// Labels of the function itself that adr makes: where switches count from.
	var labels []uint64 // pairs of where and what
	var bases []uint64
	for p := 0; p+4 <= len(code); p += 4 {
		pc := r.Lo + uint64(p)
		if p&0xfffff == 0 && b.ctx.Err() != nil {
			return
		}
		if !a64.Decode(binary.LittleEndian.Uint32(code[p:]), &in) {
			if !b.exact[fi] {
				// Data between functions, or after one: what follows the last
				// end of a path was no code.
				back(end)
				return
			}
			continue
		}
		if p > 0 && !fall {
			end = lengths()
		}
		if in.Class == a64.Nop || in.Class == a64.Bti {
			continue
		}
		if in.Class == a64.Trap {
			fall = false
			others++
			continue
		}
		fall = true
		last = pc
		if in.Class == a64.Page && in.Rd >= 16 && in.Rd <= 17 {
			if sym, ok, n := armStub(b, pc); ok {
				if sym != "" {
					b.imports = append(b.imports, importRef{pc + n - 4, b.importOf(sym), fi, true})
				}
				if !neverReturns[sym] {
					b.returns[fi] = true
				}
				stubs++
				p += int(n) - 4
				fall = false
				continue
			}
		}
		others++
		switch in.Class {
		case a64.Call, a64.Jmp, a64.Jcc:
			t := in.Target(pc)
			jump := in.Class != a64.Call
			if in.Class == a64.Jmp || in.Class == a64.Call && b.exact[fi] && p+4 == len(code) {
				fall = false // in the second case the callee does not return
			}
			if t >= r.Lo && t < r.Hi {
				if !jump {
					b.inner.add(t)
					b.calls = append(b.calls, ref{pc, t, fi, false, false})
				}
				continue
			}
			b.branch(fi, pc, t, jump)
		case a64.CallInd:
			if b.exact[fi] && p+4 == len(code) {
				fall = false
			}
			b.indirect = append(b.indirect, importRef{pc, 0, fi, false})
		case a64.JmpInd:
			fall = false
			b.returns[fi] = true
			b.indirect = append(b.indirect, importRef{pc, 0, fi, true})
			if j, ok := b.jumpTable(r, pc, in.Rn); ok && j.from != 0 {
				bases = append(bases, j.from)
			}
		case a64.Ret:
			fall = false
			b.returns[fi] = true
		case a64.Syscall:
			b.syscalls = append(b.syscalls, siteRef{pc, fi})
			if p >= 4 && exits(b.f, pc) {
				fall = false
			}
		case a64.Addr:
			if t := in.Target(pc); t > r.Lo && t < r.Hi {
				labels = append(labels, pc, t)
			} else {
				b.take(fi, t)
			}
		case a64.Page:
			b.follow(fi, r, pc, in.Rd, in.Page(pc), true)
		case a64.MovImm:
			if b.fixed && !b.isGo[fi] {
				b.take(fi, uint64(in.Imm))
				if b.continued(pc, in.Rd) {
					b.follow(fi, r, pc, in.Rd, uint64(in.Imm), false)
				}
			}
		case a64.LoadLit:
			a := in.Target(pc)
			if sym, ok := b.slots[a]; ok && sym != "" {
				b.imports = append(b.imports, importRef{0, b.importOf(sym), fi, false})
			}
			if w, ok := b.f.Word(a); ok && b.fixed {
				b.take(fi, w)
			}
		}
	}
	for i := 0; i < len(labels); i += 2 {
		if !slices.Contains(bases, labels[i]) {
			b.take(fi, labels[i+1])
		}
	}
	if stubs > 0 && others == 0 {
		b.isPLT[fi] = true // callers are linked to the symbol of the stub they call
		back(mark)
		return
	}
	if fall && int(fi)+1 < len(b.funcs) && b.funcs[fi+1].Lo == r.Hi {
		b.calls = append(b.calls, ref{last, r.Hi, fi, true, true})
		b.inner.add(r.Hi)
	}
}

// exits tells whether the system call at pc is exit or exit_group, by the
// instruction before it: such a call does not come back. musl's assembly has
// another function right behind.
func exits(f *elfread.File, pc uint64) bool {
	var in a64.Inst
	return fetch(f, pc-4, &in) && in.Class == a64.MovImm && in.Rd == 8 && (in.Imm == 93 || in.Imm == 94)
}

// holding is a register with a known value at one point.
type holding struct {
	pc  uint64
	reg uint8
	val uint64
}

// Bounds on following values: instructions per value, and per file as a
// multiple of its own.
const (
	maxFollow  = 300_000
	followWork = 200
)

// continued tells whether a constant is put together from more than one part.
func (b *builder) continued(pc uint64, reg uint8) bool {
	var in a64.Inst
	for range 8 {
		if pc += 4; fetch(b.f, pc, &in) && in.Class == a64.MovKeep && in.Rd == reg {
			return true
		}
	}
	return false
}

// followLimit bounds the work on one file.
func (b *builder) followLimit() int {
	if b.followMax == 0 {
		b.followMax = 1_000_000
		for _, r := range b.f.Exec {
			b.followMax += int((r.Hi-r.Lo)/4) * followWork
		}
	}
	return b.followMax
}

// follow goes on from the instruction at pc, which leaves val in reg, along
// every path for as long as the register holds it, and notes what addresses of
// code and which slots of the offset table are made from it.
//
// A page that is kept on the stack may be in whatever the function loads from
// there. One that is stored elsewhere, or that nothing is seen to be made of, may
// be completed anywhere: then everything in it counts.
func (b *builder) follow(fi int32, r elfread.Range, pc uint64, reg uint8, val uint64, page bool) {
	if reg > 30 || page && !b.worthKeeping(val) {
		return
	}
	todo := []holding{{pc + 4, reg, val}}
	var seen map[holding]bool
	escaped := false
	used, spilled := !page, false
	push := func(h holding) {
		if !b.f.IsCode(h.pc) || seen[h] {
			return
		}
		if len(seen) >= maxFollow {
			escaped = true
			return
		}
		if seen == nil {
			seen = map[holding]bool{}
		}
		seen[h] = true
		todo = append(todo, h)
	}
	var in a64.Inst
	steps := 0
	for len(todo) > 0 {
		h := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		first := h
	path:
		for {
			steps++
			b.followed++
			if steps > maxFollow || b.followed > b.followLimit() || steps&0xffff == 0 && b.ctx.Err() != nil {
				escaped = true
				todo = nil
				break
			}
			if !fetch(b.f, h.pc, &in) || h != first && seen[h] {
				break
			}
			reads := false // a use that completes it
			switch in.Class {
			case a64.AddImm:
				if in.Rn == h.reg && in.Size == 8 {
					reads = true
					if !page || h.val&0xfff != 0 {
						break // whole already: what is counted on from there is no address of code
					}
					to := h.val + uint64(in.Imm)
					b.take(fi, to)
					if in.Rd <= 30 && (b.f.IsCode(to) || b.nearSlots(to)) {
						push(holding{h.pc + 4, in.Rd, to})
					}
				}
			case a64.MovKeep:
				if in.Rd == h.reg {
					reads = true
					to := h.val&^(0xffff<<in.Shift) | uint64(in.Imm)<<in.Shift
					b.take(fi, to)
					push(holding{h.pc + 4, in.Rd, to})
				}
			case a64.Load:
				if in.Base == h.reg {
					reads = true
					if in.Index == a64.None && in.Mode != a64.Post && in.Width == 8 {
						b.loadsSlot(fi, r, h.pc, in.Rd, h.val+uint64(in.Imm))
						if in.Pair {
							b.loadsSlot(fi, r, h.pc, in.R2, h.val+uint64(in.Imm)+8)
						}
					}
				}
			case a64.Store:
				reads = in.Base == h.reg
				if page && h.val == val && !in.Vector && (in.Rd == h.reg || in.Pair && in.R2 == h.reg) {
					switch {
					case spilled:
					case in.Base == a64.SP || in.Base == armFrame:
						spilled = true
						b.reloads(r, func(pc uint64, reg uint8) { push(holding{pc, reg, val}) })
					default:
						escaped = true
					}
				}
			case a64.StoreAny:
				reads = in.Base == h.reg
			case a64.Other:
				reads = in.Base == h.reg
			case a64.Mov:
				if in.Rn == h.reg && in.Rd <= 30 {
					reads = true
					push(holding{h.pc + 4, in.Rd, h.val})
				}
			case a64.Sel:
				if (in.Rn == h.reg || in.Rm == h.reg) && in.Rd <= 30 {
					reads = true
					push(holding{h.pc + 4, in.Rd, h.val})
				}
			case a64.CallInd, a64.JmpInd:
				if in.Rn == h.reg && b.f.IsCode(h.val) {
					reads = true
					b.branch(fi, h.pc, h.val, in.Class == a64.JmpInd)
				}
			case a64.Add, a64.Sub:
				if in.Rn == h.reg || in.Rm == h.reg {
					reads = true // an element of an array that begins with the page
				}
			}
			used = used || reads && h.val == val
			if in.Writes()>>h.reg&1 != 0 {
				break
			}
			switch in.Class {
			case a64.Ret, a64.Trap:
				break path
			case a64.Call, a64.CallInd:
				if armClobberC>>h.reg&1 != 0 {
					break path
				}
				if k := b.at(h.pc + 4); k >= 0 && b.exact[k] && b.funcs[k].Lo == h.pc+4 {
					break path // the callee does not return
				}
			case a64.Jcc:
				push(holding{in.Target(h.pc), h.reg, h.val})
			case a64.Jmp:
				push(holding{in.Target(h.pc), h.reg, h.val})
				break path
			case a64.JmpInd:
				to := b.mayJump(r, h.pc, in.Rn)
				steps += len(to)
				b.followed += len(to)
				for _, t := range to {
					push(holding{t, h.reg, h.val})
				}
				break path
			}
			h.pc += 4
		}
	}
	if escaped || !used && !spilled {
		b.escapes(fi, val)
	}
}

// worthKeeping tells whether anything of interest can be made from a page: an
// address of code, or a load from the offset table.
func (b *builder) worthKeeping(page uint64) bool {
	for _, r := range b.f.Exec {
		if r.Lo < page+4096 && r.Hi > page {
			return true
		}
	}
	return b.nearSlots(page)
}

// reloads yields every place of a function, and of the parts that it jumps to,
// where something from the stack has been loaded into a register.
func (b *builder) reloads(r elfread.Range, each func(pc uint64, reg uint8)) {
	parts := []elfread.Range{r}
	var in a64.Inst
	for i := 0; i < len(parts); i++ {
		for pc := parts[i].Lo; pc+4 <= parts[i].Hi; pc += 4 {
			if !fetch(b.f, pc, &in) {
				continue
			}
			switch in.Class {
			case a64.Load:
				if (in.Base == a64.SP || in.Base == armFrame) && in.Width == 8 && !in.Vector {
					for _, reg := range []uint8{in.Rd, in.R2} {
						if reg <= 30 {
							each(pc+4, reg)
						}
					}
				}
			case a64.Jmp, a64.Jcc:
				t := in.Target(pc)
				if k := b.at(t); i == 0 && k >= 0 && (t < r.Lo || t >= r.Hi) && len(parts) < 64 && !slices.Contains(parts, b.funcs[k]) {
					parts = append(parts, b.funcs[k])
				}
			}
		}
	}
}

// reach is how far from a page what is made of it can lie: a scaled offset of 12 bits.
const reach = 4095 * 8

// nearSlots tells whether a load relative to a may read the offset table.
func (b *builder) nearSlots(a uint64) bool {
	s := b.sortedSlots()
	i := sort.Search(len(s), func(i int) bool { return s[i] >= a })
	return i < len(s) && s[i]-a <= reach
}

// sortedSlots are the slots that code reads by itself: linkers make the others
// for the procedure linkage table alone.
func (b *builder) sortedSlots() []uint64 {
	if b.slotList == nil {
		b.slotList = []uint64{}
		for i := range b.f.Relocs {
			if r := &b.f.Relocs[i]; r.Type == elf.R_X86_64_GLOB_DAT {
				b.slotList = append(b.slotList, r.Off)
			}
		}
		slices.Sort(b.slotList)
	}
	return b.slotList
}

// loadsSlot notes that the instruction at pc loads a into a register. Where that
// is a function that takes a call number, and code made without a procedure
// linkage table calls it there and then, its calls are as good as direct ones.
func (b *builder) loadsSlot(fi int32, r elfread.Range, pc uint64, reg uint8, a uint64) {
	sym := b.slots[a]
	if _, ok := slices.BinarySearch(b.sortedSlots(), a); !ok || sym == "" {
		return
	}
	if len(b.known[sym]) > 0 {
		if site, jump, ok := b.calledOnce(r, pc, reg); ok {
			b.imports = append(b.imports, importRef{site, b.importOf(sym), fi, jump})
			return
		}
	}
	b.imports = append(b.imports, importRef{0, b.importOf(sym), fi, false})
}

// calledOnce tells whether all that is done with a register after pc is to call
// what it holds.
func (b *builder) calledOnce(r elfread.Range, pc uint64, reg uint8) (site uint64, jump, ok bool) {
	var in a64.Inst
	for pc += 4; pc+4 <= r.Hi && armClobberC>>reg&1 != 0; pc += 4 {
		d := b.f.Bytes(pc)
		if len(d) < 4 {
			return 0, false, false
		}
		w := binary.LittleEndian.Uint32(d)
		if !a64.Decode(w, &in) {
			return 0, false, false
		}
		if (in.Class == a64.CallInd || in.Class == a64.JmpInd) && in.Rn == reg {
			return pc, in.Class == a64.JmpInd, true
		}
		switch in.Class {
		case a64.Call, a64.CallInd, a64.Jmp, a64.JmpInd, a64.Jcc, a64.Ret, a64.Trap, a64.Syscall:
			return 0, false, false
		case a64.Nop, a64.Bti, a64.Page, a64.Addr, a64.MovImm, a64.LoadLit, a64.CmpImm, a64.AddImm, a64.Extend, a64.Load, a64.Mov, a64.Store:
			if in.Rd == reg || in.Rn == reg || in.R2 == reg || in.Base == reg || in.Index == reg {
				return 0, false, false
			}
		default: // wherever its encoding could name the register
			if n := uint32(reg); w&31 == n || w>>5&31 == n || w>>10&31 == n || w>>16&31 == n {
				return 0, false, false
			}
		}
	}
	return 0, false, false
}

// escapes notes everything that can be made from a page.
func (b *builder) escapes(fi int32, page uint64) {
	s := b.sortedSlots()
	for i := sort.Search(len(s), func(i int) bool { return s[i] >= page }); i < len(s) && s[i]-page <= reach; i++ {
		if sym := b.slots[s[i]]; sym != "" {
			b.imports = append(b.imports, importRef{0, b.importOf(sym), fi, false})
		}
	}
	for i := sort.Search(len(b.funcs), func(i int) bool { return b.funcs[i].Lo >= page }); i < len(b.funcs) && b.funcs[i].Lo-page < 4096; i++ {
		b.take(fi, b.funcs[i].Lo)
	}
}

func (arm64) benign(b *builder, fi int32, pc uint64, reason string) ([]int32, bool) {
	if b.isGo[fi] {
		name := b.out.Funcs[fi].Name
		return nil, strings.HasPrefix(name, "runtime.runPerThreadSyscall") || strings.HasPrefix(name, allThreads)
	}
	if reason != "loaded from memory" && reason != "loaded from a variable" || !b.isLibc() {
		return nil, false
	}
	d := b.armBody(fi)
	i := d.index(pc)
	if i < 0 {
		return nil, false
	}
	type field struct {
		base uint8
		disp int64
	}
	from := map[uint8]field{}
	for k := i - 1; k >= 0 && k >= i-16; k-- {
		in := &d.ins[k]
		if in.Class != a64.Load || in.Vector || in.Index != a64.None || in.Mode != a64.Offset {
			continue
		}
		set := func(r uint8, disp int64) {
			if _, dup := from[r]; !dup {
				from[r] = field{in.Base, disp}
			}
		}
		set(in.Rd, in.Imm)
		if in.Pair {
			set(in.R2, in.Imm+int64(in.Width))
		}
	}
	nr, ok := from[8]
	if !ok {
		return nil, false
	}
	is := func(at ...int64) bool {
		for r, disp := range at {
			if f, ok := from[uint8(r)]; !ok || f.disp != disp || f.base != nr.base {
				return false
			}
		}
		return true
	}
	switch {
	case nr.disp == 0 && is(8, 16, 24): // glibc: each set*id function also makes its call itself
		return nil, true
	case nr.disp == 12 && is(0, 4, 8), // musl 1.2
		nr.disp == 24 && is(0, 8, 16): // musl 1.1
		return arm64Calls.setxid(), true
	}
	return nil, false
}

// musl: src/thread/aarch64/syscall_cp.s; glibc since 2.41:
// sysdeps/unix/sysv/linux/aarch64/syscall_cancel.S.
func (arm64) onlyCompared(b *builder, fi int32) bool {
	d := b.armBody(fi)
	moves := [][2]uint8{{8, 1}, {0, 2}, {1, 3}, {2, 4}, {3, 5}, {4, 6}, {5, 7}}
	k := 0
	for i := range d.ins {
		in := &d.ins[i]
		if k < len(moves) && in.Class == a64.Mov && in.Size == 8 && in.Rd == moves[k][0] && in.Rn == moves[k][1] {
			k++
		}
		if in.Class == a64.Syscall {
			return k == len(moves) && len(d.ins) < 64
		}
	}
	return false
}

// insideGo tells whether an address lies in a Go function, and not at its start.
// Data of a Go program has no such address but in the tables of its switches,
// which are read where they are used. On arm64 such programs are linked at
// 0x10000, so that many a small number looks like one.
func (b *builder) insideGo(a uint64) bool {
	if b.f.Machine != elf.EM_AARCH64 || b.f.GoPCLn == 0 {
		return false
	}
	if b.goFuncs == nil {
		b.goFuncs = append([]elfread.GoFunc{}, b.f.GoFuncs()...)
	}
	i := sort.Search(len(b.goFuncs), func(i int) bool { return b.goFuncs[i].Hi > a })
	return i < len(b.goFuncs) && a > b.goFuncs[i].Lo
}

// armVariable gives the value of a package variable of a Go program that no
// instruction stores to and whose address none takes. Go's assembler puts the
// two halves of an address next to each other; where it did not, the whole page
// counts as changed.
func (b *builder) armVariable(addr uint64, width uint8) (int64, bool) {
	if b.written == nil {
		b.written = []uint64{}
		for _, r := range b.f.Exec {
			for pc := r.Lo; pc+8 <= r.Hi; pc += 4 {
				b.noteWritten(pc)
			}
		}
		slices.Sort(b.written)
		b.written = slices.Clip(slices.Compact(b.written))
	}
	if i, _ := slices.BinarySearch(b.written, addr-15); addr < 16 || i < len(b.written) && b.written[i] < addr+8 {
		return 0, false
	}
	w, ok := b.f.Word(addr)
	if !ok || width != 8 {
		return 0, false
	}
	return int64(w), true
}

func (b *builder) noteWritten(pc uint64) {
	var in, next a64.Inst
	if !fetch(b.f, pc, &in) {
		return
	}
	if in.Class == a64.Addr {
		b.written = append(b.written, in.Target(pc))
	}
	if in.Class != a64.Page {
		return
	}
	page := in.Page(pc)
	if fetch(b.f, pc+4, &next) && next.Index == a64.None && next.Mode == a64.Offset {
		switch {
		case next.Class == a64.Load && next.Base == in.Rd:
			return
		case next.Class == a64.Store && next.Base == in.Rd && next.Rd != in.Rd, next.Class == a64.AddImm && next.Rn == in.Rd && next.Rd == in.Rd:
			b.written = append(b.written, page+uint64(next.Imm))
			return
		}
	}
	for a := page; a < page+4096; a += 8 {
		b.written = append(b.written, a)
	}
}
