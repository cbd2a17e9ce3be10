package seccompgen

import (
	"slices"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
)

// flow is one function as blocks, for telling what it can still do after one of
// its calls. It leaves nothing out: where the code could not be followed,
// Opaque says that any block may come after any other.
type flow struct {
	Fn     int32
	Opaque bool
	Blocks []block // by address; the function is entered at the first
}

// block is instructions that run one after the other. It ends at the latest
// with a call or a jump.
type block struct {
	Lo   uint64
	Next []int32
	// Lands is true where control can arrive in a way that no instruction of the
	// file shows: where exceptions land, and labels whose address is taken.
	Lands bool
	Kind  blockEnd
	To    int32  // the function, or the import
	At    uint64 // of a call where it returns to, of a jump where it leads
}

// blockEnd is how a block ends, as far as other functions are concerned.
type blockEnd uint8

const (
	endsInside blockEnd = iota
	endsCall            // of To
	endsCallImport
	endsCallIndirect
	endsJump // to At in To
	endsJumpImport
	endsJumpIndirect
	endsReturn
)

// calls tells whether a return address is pushed.
func (e blockEnd) calls() bool {
	return e == endsCall || e == endsCallImport || e == endsCallIndirect
}

const (
	maxFlows     = 4096
	maxFlowDepth = 8
)

// starter finds the function that hands main to the C library, as every
// program's entry point does or what it leads to, and main.
func (b *builder) starter() (starter, main int32) {
	entry := b.at(b.f.Entry)
	if entry < 0 || b.fixed || b.out.Go || !b.f.IsCode(b.f.Entry) {
		return -1, -1
	}
	// musl: _start, _start_c; in a program that relocates itself also __dls2,
	// by its address.
	near := []int32{entry}
	for round := 0; round < 3 && len(near) < maxNear; round++ {
		for i := range b.calls {
			if r := &b.calls[i]; slices.Contains(near, r.fn) {
				if k := b.at(r.to); k >= 0 && !slices.Contains(near, k) && len(near) < maxNear {
					near = append(near, k)
				}
			}
		}
	}
	if b.f.Interp != "" {
		for i := range b.imports {
			r := &b.imports[i]
			if r.site != 0 && b.out.Imports[r.sym] == startMain && slices.Contains(near, r.fn) {
				if k := b.firstArgument(r.fn, r.site); k >= 0 {
					return r.fn, k
				}
			}
		}
		return -1, -1
	}
	// Static: without names of its own setjmp could not be told either.
	for _, start := range b.defining(startMain) {
		for i := range b.calls {
			r := &b.calls[i]
			if r.site != 0 && !r.after && b.at(r.to) == start && slices.Contains(near, r.fn) {
				if k := b.firstArgument(r.fn, r.site); k >= 0 {
					return r.fn, k
				}
			}
		}
	}
	return -1, -1
}

const (
	// startMain is the function of glibc and musl that calls main.
	startMain = "__libc_start_main"
	// maxNear bounds how many functions are taken to be near the entry point.
	maxNear = 64
)

// firstArgument gives the function whose address code without branches leaves
// in the first argument's register before the call at pc.
func (b *builder) firstArgument(fi int32, pc uint64) int32 {
	d := b.body(fi)
	i := d.index(pc)
	for i--; i >= 0; i-- {
		in := &d.ins[i]
		if in.Class == x86.Call || in.Class == x86.CallInd || in.Class == x86.Jcc || in.Class == x86.Jmp {
			return -1
		}
		if in.Writes()>>x86.RDI&1 == 0 {
			continue
		}
		switch {
		case in.Class == x86.Lea && in.RIP:
			return b.functionAt(in.Address(d.pcs[i]))
		case in.Class == x86.Mov && in.RIP && in.Load && in.Size == 8:
			slot := in.Address(d.pcs[i])
			for k := range b.f.Relocs {
				if r := &b.f.Relocs[k]; r.Off == slot {
					if r.Sym != "" {
						return b.functionAt(r.Def)
					}
					return b.functionAt(uint64(r.Addend))
				}
			}
		}
		return -1
	}
	return -1
}

// functionAt gives the function that begins at an address, or -1.
func (b *builder) functionAt(a uint64) int32 {
	if k := b.at(a); k >= 0 && b.funcs[k].Lo == a && !b.isPLT[k] {
		return k
	}
	return -1
}

// flows adds to the summary what telling a program's start from its later life
// takes: which functions only loading runs, which addresses are taken as opposed
// to called, and the functions near main as blocks.
func (b *builder) flows() {
	if _, ok := b.m.(amd64); !ok {
		return // bodies are those of x86-64
	}
	noreturn := b.neverReturning(false)
	b.calls = slices.DeleteFunc(b.calls, func(r ref) bool { return r.after && b.stops(r.site, noreturn) })
	starter, main := b.starter()
	b.out.Main, b.out.Starter = main, starter
	loader := b.loaderMain()
	b.calls = slices.DeleteFunc(b.calls, func(r ref) bool { // where it is only compared with
		return loader >= 0 && r.site == 0 && !r.after && (r.to == b.f.Entry || b.at(r.to) == loader && b.passedTo(r.fn, r.to, x86.RDX) >= 0)
	})
	b.takes(starter, main, loader)
	b.initOnly()
	calls := make([][]int32, len(b.funcs)) // by function: indexes of b.calls that are no takes
	for i := range b.calls {
		if r := &b.calls[i]; r.site != 0 || r.after {
			calls[r.fn] = append(calls[r.fn], int32(i))
		}
	}
	imports := make([][]int32, len(b.funcs))
	for i := range b.imports {
		if r := &b.imports[i]; r.site != 0 {
			imports[r.fn] = append(imports[r.fn], int32(i))
		}
	}
	indirect := make([]bool, len(b.funcs))
	for i := range b.indirect {
		indirect[b.indirect[i].fn] = true
	}
	depth := map[int32]int{}
	var order []int32
	visit := func(k int32, d int) {
		if _, ok := depth[k]; ok || k < 0 || b.isPLT[k] || len(order) >= maxFlows {
			return
		}
		depth[k] = d
		order = append(order, k)
	}
	if main >= 0 {
		visit(main, 0)
		// Parts of a function that are kept elsewhere jump back into it.
		parts := map[int32][]int32{}
		for i := range b.calls {
			if r := &b.calls[i]; r.jump {
				if k := b.at(r.to); k >= 0 && k != r.fn && b.funcs[k].Lo != r.to {
					parts[k] = append(parts[k], r.fn)
				}
			}
		}
		for n := 0; n < len(order); n++ {
			k := order[n]
			if depth[k] == maxFlowDepth {
				continue
			}
			for _, i := range calls[k] {
				visit(b.at(b.calls[i].to), depth[k]+1)
			}
			for _, p := range parts[k] {
				visit(p, depth[k]+1)
			}
		}
	}
	// What calls main.
	var starts []int32
	for _, k := range b.defining(startMain) {
		starts = append(starts, k)
		for i := range b.calls {
			if r := &b.calls[i]; r.fn == k {
				starts = append(starts, b.at(r.to))
			}
		}
	}
	for _, k := range starts {
		if k >= 0 && indirect[k] {
			visit(k, maxFlowDepth)
			b.out.CallMain = append(b.out.CallMain, k)
		}
	}
	slices.Sort(b.out.CallMain)
	b.out.CallMain = slices.Compact(b.out.CallMain)
	slices.Sort(order)
	for _, k := range order {
		b.out.Flows = append(b.out.Flows, b.flow(k, calls[k], imports[k], noreturn))
	}
}

// defining lists the functions of the file that a symbol names.
func (b *builder) defining(name string) []int32 {
	var out []int32
	for _, tab := range [][]elfread.Symbol{b.f.Dynsym, b.f.Symtab} {
		for i := range tab {
			if s := &tab[i]; s.Defined && s.Name == name {
				if k := b.functionAt(s.Value); k >= 0 && !slices.Contains(out, k) {
					out = append(out, k)
				}
			}
		}
	}
	return out
}

// takes notes for each function whose address it takes. That main's address is
// handed to the C library is no reason to think that anybody else calls it; nor
// is what the loader hands to itself.
func (b *builder) takes(starter, main, loader int32) {
	b.labels = map[int32][]uint64{}
	hands := 0
	for i := range b.calls {
		if r := &b.calls[i]; main >= 0 && r.fn == starter && b.at(r.to) == main {
			hands++
		}
	}
	if hands > 1 {
		b.out.Main = -1 // it does something else with it, too
	}
	for i := range b.calls {
		r := &b.calls[i]
		if r.site != 0 || r.after {
			continue
		}
		k := b.at(r.to)
		switch {
		case k < 0 || k == loader || k == main && r.fn == starter && b.funcs[k].Lo == r.to:
			continue
		case k == r.fn && b.funcs[k].Lo != r.to:
			b.labels[k] = append(b.labels[k], r.to)
			continue
		}
		b.out.Funcs[r.fn].Takes = append(b.out.Funcs[r.fn].Takes, k)
	}
	for i := range b.imports {
		if r := &b.imports[i]; r.site == 0 {
			b.out.Funcs[r.fn].TakesImports = append(b.out.Funcs[r.fn].TakesImports, r.sym)
		}
	}
	for i := range b.out.Funcs {
		f := &b.out.Funcs[i]
		slices.Sort(f.Takes)
		f.Takes = slices.Clip(slices.Compact(f.Takes))
		slices.Sort(f.TakesImports)
		f.TakesImports = slices.Clip(slices.Compact(f.TakesImports))
	}
}

// initOnly finds the roots that are there for loading the file alone: what
// DT_INIT, DT_INIT_ARRAY and DT_PREINIT_ARRAY name and nothing else points to.
func (b *builder) initOnly() {
	init := map[int32]bool{}
	add := func(a uint64) {
		if k := b.at(a); k >= 0 && b.f.IsCode(a) {
			init[k] = true
		}
	}
	if b.f.InitFunc != 0 {
		add(b.f.InitFunc)
	}
	in := func(off uint64) bool {
		for _, r := range b.f.InitArrays {
			if off >= r.Lo && off < r.Hi {
				return true
			}
		}
		return false
	}
	for _, r := range b.f.InitArrays {
		for a := r.Lo; a+8 <= r.Hi; a += 8 {
			w, ok := b.f.Word(a)
			if !ok {
				break
			}
			add(w)
		}
	}
	for i := range b.f.Relocs {
		if r := &b.f.Relocs[i]; in(r.Off) && r.Sym == "" {
			add(uint64(r.Addend))
		}
	}
	keep := func(a uint64) {
		if k := b.at(a); k >= 0 {
			delete(init, k)
		}
	}
	for i := range b.f.Relocs {
		if r := &b.f.Relocs[i]; !in(r.Off) {
			keep(uint64(r.Addend))
			if r.Def != 0 {
				keep(r.Def + uint64(r.Addend))
			}
		}
	}
	for _, a := range b.f.Arrays {
		for at := a.Lo; at+8 <= a.Hi && !in(a.Lo); at += 8 {
			w, ok := b.f.Word(at)
			if !ok {
				break
			}
			keep(w)
		}
	}
	for _, a := range b.f.Init {
		if a != b.f.InitFunc {
			keep(a)
		}
	}
	if b.fixed {
		return // words of data are not told apart
	}
	for k := range init {
		b.out.InitOnly = append(b.out.InitOnly, k)
	}
	slices.Sort(b.out.InitOnly)
}

// flow cuts a function into blocks.
func (b *builder) flow(fi int32, calls, imports []int32, noreturn []bool) flow {
	d := newBody(b.f, b.funcs[fi], &b.inner, false, func(in *x86.Inst, pc uint64) bool { return b.ends(in, pc, noreturn) })
	out := flow{Fn: fi}
	n := len(d.ins)
	if n == 0 {
		out.Opaque = true
		out.Blocks = []block{{Lo: b.funcs[fi].Lo}}
		return out
	}
	// What follows each instruction.
	next := make([][]int32, n)
	for to, from := range d.preds[:n] {
		for _, f := range from {
			next[f] = append(next[f], int32(to))
		}
	}
	out.Opaque = b.unfollowed(d)
	lands := b.lands(fi, d, next)
	type end struct {
		kind blockEnd
		to   int32
		at   uint64
	}
	ends := map[int32]end{}
	for i := range d.ins {
		in, pc := &d.ins[i], d.pcs[i]
		switch in.Class {
		case x86.Call, x86.CallInd:
			ends[int32(i)] = end{endsCallIndirect, 0, pc + uint64(in.Len)}
		case x86.JmpInd:
			ends[int32(i)] = end{endsJumpIndirect, 0, 0}
		case x86.Ret:
			ends[int32(i)] = end{endsReturn, 0, 0}
		}
	}
	for _, k := range calls {
		r := &b.calls[k]
		i := d.index(r.site)
		if i < 0 {
			out.Opaque = true
			continue
		}
		switch {
		case r.after && ends[i].kind != endsInside: // a call whose end is the next function's start
			out.Opaque = true
		case r.jump:
			ends[i] = end{endsJump, b.at(r.to), r.to}
		default:
			ends[i] = end{endsCall, b.at(r.to), d.pcs[i] + uint64(d.ins[i].Len)}
		}
	}
	for _, k := range imports {
		r := &b.imports[k]
		i := d.index(r.site)
		if i < 0 {
			out.Opaque = true
			continue
		}
		if r.jump {
			ends[i] = end{endsJumpImport, r.sym, 0}
		} else {
			ends[i] = end{endsCallImport, r.sym, d.pcs[i] + uint64(d.ins[i].Len)}
		}
	}
	leader := make([]bool, n+1)
	for i := range d.ins {
		p := d.preds[i]
		if i == 0 || d.entry[i] || lands[i] || len(p) != 1 || p[0] != int32(i-1) {
			leader[i] = true
		}
		if _, ok := ends[int32(i)]; ok || len(next[i]) != 1 || next[i][0] != int32(i+1) {
			leader[i+1] = true
		}
	}
	number := make([]int32, n)
	k := int32(-1)
	for i := range number {
		if leader[i] {
			k++
		}
		number[i] = k
	}
	for i := range d.ins {
		if leader[i] {
			out.Blocks = append(out.Blocks, block{Lo: d.pcs[i], Lands: lands[i]})
		}
		if i+1 == n || leader[i+1] {
			bl := &out.Blocks[number[i]]
			e := ends[int32(i)]
			bl.Kind, bl.To, bl.At = e.kind, e.to, e.at
			if bl.To < 0 {
				out.Opaque = true
				bl.To = 0
				bl.Kind = endsInside
			}
			for _, t := range next[i] {
				bl.Next = append(bl.Next, number[t])
			}
			slices.Sort(bl.Next)
			bl.Next = slices.Clip(slices.Compact(bl.Next))
		}
	}
	return out
}

// stops tells whether the instruction at pc is a call that does not come back:
// where bounds of functions are not known, what follows it is none of its own.
func (b *builder) stops(pc uint64, noreturn []bool) bool {
	var in x86.Inst
	return x86.Decode(b.f.Bytes(pc), &in) && b.ends(&in, pc, noreturn)
}

// ends tells whether a call does not come back. Only structure counts for the
// file's own functions: a program may have an err that returns.
func (b *builder) ends(in *x86.Inst, pc uint64, noreturn []bool) bool {
	switch in.Class {
	case x86.Call:
		t := in.Target(pc)
		if sym, ok := b.stub(t); ok {
			return neverReturns[sym]
		}
		k := b.at(t)
		return k >= 0 && b.funcs[k].Lo == t && noreturn[k]
	case x86.CallInd:
		if in.IsMem && in.RIP {
			return neverReturns[b.slots[in.Address(pc)]]
		}
	}
	return false
}

// unfollowed tells whether control can go from one place of the function to
// another in a way that its edges do not show.
func (b *builder) unfollowed(d *body) bool {
	n := len(d.ins)
	end := d.pcs[n-1] + uint64(d.ins[n-1].Len)
	if end < d.r.Hi {
		return true
	}
	jumps := 0
	for i := range d.ins {
		in, pc := &d.ins[i], d.pcs[i]
		if i+1 < n && d.pcs[i+1] != pc+uint64(in.Len) {
			return true // bytes that are no instruction
		}
		switch in.Class {
		case x86.Jmp, x86.Jcc:
			if t := in.Target(pc); t >= d.r.Lo && t < d.r.Hi && d.index(t) < 0 {
				return true
			}
		case x86.JmpInd:
			if in.IsMem && in.RIP {
				if _, ok := b.slots[in.Address(pc)]; ok {
					continue
				}
			}
			if d.delta[i] != 0 { // with nothing on the stack and no table, it is a call in place of a return
				jumps++
			}
		}
	}
	return jumps > d.tables
}

// lands finds where control arrives that no edge from the function's start
// leads to: landing pads of exceptions, and labels whose address the function
// takes. Padding leads nowhere.
func (b *builder) lands(fi int32, d *body, next [][]int32) []bool {
	n := len(d.ins)
	out := make([]bool, n)
	reached := make([]bool, n)
	var work []int32
	from := func(i int32) {
		work = append(work[:0], i)
		reached[i] = true
		for len(work) > 0 {
			i := work[len(work)-1]
			work = work[:len(work)-1]
			for _, t := range next[i] {
				if reached[t] {
					continue
				}
				if _, ok := slices.BinarySearch(d.cases, t); d.ins[i].Class == x86.JmpInd && !ok {
					continue
				}
				reached[t] = true
				work = append(work, t)
			}
		}
	}
	from(0)
	for _, t := range b.labels[fi] {
		if i := d.index(t); i > 0 {
			out[i] = true
			from(i)
		}
	}
	for i := range n {
		if c := d.ins[i].Class; !reached[i] && c != x86.Nop && c != x86.Trap {
			out[i] = true
			from(int32(i))
		}
	}
	return out
}
