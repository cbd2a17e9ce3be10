package seccompgen

import (
	"cmp"
	"context"
	"debug/elf"
	"slices"
	"sort"
	"strings"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
)

// summary is what one ELF file contributes, independent of what it is linked
// with. It is computed once per content and cached.
type summary struct {
	Soname, Interp, Rpath, Runpath string
	Needed                         []string
	Entry                          int32 // function, -1 for none
	Go                             bool
	NoDefaultLib                   bool // DF_1_NODEFLIB
	Funcs                          []function
	Roots                          []int32 // live as soon as the file is loaded
	Imports                        []string
	Exports                        []export
	Wrappers                       []wrapper // exported, and take a call number
	ArgWrappers                    []argWrapper
	Strings                        []string // absolute paths and names of libraries in its data
	Names                          []string // what it may look up with dlsym, when it imports that
	// Asking are functions that ask a name service cache daemon, Answering what
	// only works on its answer; see nscd.go.
	Asking, Answering []int32
	// Trouble makes every program that loads the file unresolved.
	Trouble []site
	// The rest tells a program's start from its later life; see flow.go.
	Main     int32   // what the entry point hands to the C library, -1 where that is not known
	Starter  int32   // which function hands it over
	CallMain []int32 // what may call main
	InitOnly []int32 // roots that only loading the file runs
	Flows    []flow  // by function
}

type function struct {
	Addr    uint64
	Name    string
	Data    bool    // an object of data, with what it points to in Calls and Imports
	Calls   []int32 // functions and objects of this file that are called, jumped to, or whose address is taken
	Imports []int32 // likewise of other files, by index in summary.Imports
	Sites   []site
	Args    []argSite
	// Takes and TakesImports are those of Calls and Imports whose address is taken.
	Takes, TakesImports []int32
}

// site is one place that makes a system call.
type site struct {
	Addr   uint64
	Nr     int32 // meaningful when Reason is empty
	Reason string
}

type export struct {
	Name string
	Func int32
}

// wrapper is a function that makes the system call whose number is one of its
// arguments.
type wrapper struct {
	Name string
	Arg  location
}

// maxSites bounds what one file can make the result grow to.
const maxSites = 1 << 16

type ref struct {
	site  uint64 // instruction, 0 where the address is taken or nothing but padding leads on
	to    uint64
	fn    int32 // that it is in
	after bool  // control runs off the end behind site
	jump  bool  // control does not come back: no return address is pushed
}

type importRef struct {
	site uint64 // 0 where the address is taken
	sym  int32
	fn   int32
	jump bool
}

type siteRef struct {
	pc uint64
	fn int32
}

type builder struct {
	ctx   context.Context
	f     *elfread.File
	out   *summary
	funcs []elfread.Range // sorted, disjoint, cover all code
	exact []bool          // bounds come from .eh_frame or the pclntab
	isPLT []bool
	isGo  []bool

	importIdx map[string]int32
	slots     map[uint64]string // GOT slot → symbol
	inner     addrSet           // code addresses that somebody refers to
	calls     []ref
	imports   []importRef
	indirect  []importRef // indirect calls and jumps; sym unused
	syscalls  []siteRef
	taken     []bool         // functions whose address is taken
	takenSym  map[int32]bool // imports whose address is taken
	inData    map[int32]bool // imports that data points to
	data      int32          // the pseudo-function of what data refers to, -1 before there is one
	m         machine
	codes     map[int32]code
	slotList  []uint64 // keys of slots, sorted
	followed  int      // work that went into following values, and its bound
	followMax int
	goFuncs   []elfread.GoFunc
	sources   map[uint64]map[uint64][]uint64 // of branches, by function
	tails     map[uint64][]uint64            // places that follow the end of a path, by function
	bodies    map[int32]*body
	pages     []int32 // index from address to function
	base      uint64
	fixed     bool // linked at a fixed address: immediates can be code addresses
	known     map[string][]location
	nsites    int
	returns   []bool // by function: it has an instruction that may return
	noreturn  []bool
	// partial is true where only some functions were decoded; bail, when they
	// turn out not to suffice.
	partial, bail bool
	coarseSize    uint64
	written       []uint64 // variables of a Go program that are stored to, sorted
	// Of data with pointers, where byObject is true: what code refers to, which
	// segments it lies in, its words, and lists that are run as a whole.
	byObject bool
	dataRefs []dataRef
	nscd     []uint64 // where the path of a name service cache daemon lies
	nscdUses []uint64 // instructions that refer to it
	pdata    []elfread.Range
	slotsOf  []slot
	lists    []elfread.Range
	labels   map[int32][]uint64 // by function: places in it whose address it takes
}

// summarise analyses one file. known are functions of other files that
// take a call number, by name.
func summarise(ctx context.Context, f *elfread.File, known map[string][]location) (*summary, error) {
	b := newBuilder(ctx, f, known)
	if len(f.Exec) == 0 {
		b.strings()
		return b.out, nil
	}
	ok, err := b.coarse()
	if err != nil {
		return nil, err
	}
	if !ok {
		b = newBuilder(ctx, f, known)
		if err := b.whole(); err != nil {
			return nil, err
		}
	}
	b.strings()
	return b.out, nil
}

func newBuilder(ctx context.Context, f *elfread.File, known map[string][]location) *builder {
	b := &builder{
		ctx: ctx, f: f, known: known, coarseSize: coarseSize,
		out:       &summary{Soname: f.Soname, Interp: f.Interp, Rpath: f.Rpath, Runpath: f.Runpath, Needed: f.Needed, Entry: -1, Main: -1, Starter: -1},
		importIdx: map[string]int32{},
		slots:     map[uint64]string{},
		inner:     newAddrSet(f.Exec),
		takenSym:  map[int32]bool{},
		inData:    map[int32]bool{},
		m:         machines[f.Machine],
		codes:     map[int32]code{},
		tails:     map[uint64][]uint64{},
		bodies:    map[int32]*body{},
		fixed:     f.Type == elf.ET_EXEC,
		data:      -1,
	}
	b.out.NoDefaultLib = f.Flags1&0x800 != 0
	b.byObject = f.Machine == elf.EM_X86_64 && !b.fixed && f.GoPCLn == 0
	b.pdata = pointerData(f)
	b.nscd = b.nscdAt()
	return b
}

// whole analyses all code of the file.
func (b *builder) whole() error {
	if err := b.sweepAll(); err != nil {
		return err
	}
	b.findNoReturn()
	b.roots()
	if err := b.resolve(); err != nil {
		return err
	}
	if err := b.arguments(); err != nil {
		return err
	}
	b.finish()
	return nil
}

// targets collects what data and tables say are code addresses.
func (b *builder) targets() []uint64 {
	var t []uint64
	add := func(a uint64) {
		if b.f.IsCode(a) {
			t = append(t, a)
		}
	}
	add(b.f.Entry)
	for _, a := range b.f.Init {
		add(a)
	}
	for i := range b.f.Dynsym {
		if s := &b.f.Dynsym[i]; s.Defined {
			add(s.Value)
		}
	}
	for i := range b.f.Symtab {
		add(b.f.Symtab[i].Value)
	}
	for _, a := range b.dataPointers() {
		add(a)
	}
	for _, r := range b.f.Exec {
		add(r.Lo)
	}
	return t
}

// dataPointers lists every value in data that may be a pointer to code:
// relocated words, initialiser arrays, and in a program linked at a fixed
// address every word that looks like one.
func (b *builder) dataPointers() []uint64 {
	t := make([]uint64, 0, len(b.f.Relocs))
	for i := range b.f.Relocs {
		r := &b.f.Relocs[i]
		switch r.Type {
		case elf.R_X86_64_RELATIVE, elf.R_X86_64_IRELATIVE, elf.R_X86_64_RELATIVE64:
			t = append(t, uint64(r.Addend))
		case elf.R_X86_64_64:
			if r.Def != 0 {
				t = append(t, r.Def+uint64(r.Addend))
			} else if r.Sym == "" {
				t = append(t, uint64(r.Addend))
			}
		case elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT:
			// Own symbols are resolved by name, as others are.
		}
	}
	for _, a := range b.f.Arrays {
		for at := a.Lo; at+8 <= a.Hi; at += 8 {
			if w, ok := b.f.Word(at); ok {
				t = append(t, w)
			} else {
				break
			}
		}
	}
	if b.fixed {
		lo, hi := b.f.Exec[0].Lo, b.f.Exec[len(b.f.Exec)-1].Hi
		for _, s := range b.f.Data() {
			step := 4
			if b.f.GoPCLn != 0 {
				step = 8
			}
			for off := 0; off+8 <= len(s.Data); off += step {
				// Little-endian; most words fail on their upper half.
				d := s.Data[off : off+8]
				if d[7]|d[6]|d[5] != 0 {
					continue
				}
				w := uint64(d[0]) | uint64(d[1])<<8 | uint64(d[2])<<16 | uint64(d[3])<<24 | uint64(d[4])<<32
				if w >= lo && w < hi && !b.insideGo(w) && !slices.ContainsFunc(b.f.Tables, func(r elfread.Range) bool { a := s.Addr + uint64(off); return a >= r.Lo && a < r.Hi }) {
					t = append(t, w)
				}
			}
		}
	}
	return t
}

// readSlots reads which symbol each slot of the global offset table is for.
func (b *builder) readSlots() {
	for i := range b.f.Relocs {
		r := &b.f.Relocs[i]
		switch r.Type {
		case elf.R_X86_64_GLOB_DAT, elf.R_X86_64_JMP_SLOT:
			if r.Sym != "" {
				b.slots[r.Off] = r.Sym
			}
		case elf.R_X86_64_IRELATIVE:
			b.slots[r.Off] = "" // its resolver is a root, which covers what it can become
		}
	}
}

// sweepAll finds the functions and decodes each once.
func (b *builder) sweepAll() error {
	b.readSlots()
	// Exact bounds first.
	var exact []elfread.Range
	goFuncs := b.f.GoFuncs()
	b.out.Go = len(goFuncs) > 0
	goAt := map[uint64]string{}
	for _, g := range goFuncs {
		if b.f.IsCode(g.Lo) {
			exact = append(exact, g.Range)
			goAt[g.Lo] = g.Name
		}
	}
	exact = append(exact, b.f.Frames...)
	sort.Slice(exact, func(i, j int) bool { return exact[i].Lo < exact[j].Lo })
	exact = disjoint(exact)

	starts := b.targets()
	for _, t := range starts {
		b.inner.add(t)
	}
	// Gaps between them are cut where anybody points.
	for round := 0; ; round++ {
		old, oldExact := slices.Clone(b.funcs), slices.Clone(b.exact)
		b.layout(exact, starts)
		if err := b.sweep(goAt, old, oldExact); err != nil {
			return err
		}
		before := len(starts)
		for a := range b.inner.all {
			if k := b.at(a); k >= 0 && !b.exact[k] && b.funcs[k].Lo != a {
				starts = append(starts, a)
			}
		}
		if len(starts) == before || round == 8 {
			break
		}
	}
	b.taken = make([]bool, len(b.funcs))
	for i := range b.calls {
		if r := &b.calls[i]; r.site == 0 && !r.after {
			if k := b.at(r.to); k >= 0 {
				b.taken[k] = true
			}
		}
	}
	for i := range b.imports {
		if r := &b.imports[i]; r.site == 0 {
			b.takenSym[r.sym] = true
		}
	}
	return nil
}

func disjoint(rs []elfread.Range) []elfread.Range {
	var out []elfread.Range
	for _, r := range rs {
		if n := len(out); n > 0 && r.Lo < out[n-1].Hi {
			if r.Hi <= out[n-1].Hi {
				continue
			}
			out[n-1].Hi = r.Lo
			if out[n-1].Hi <= out[n-1].Lo {
				out = out[:n-1]
			}
		}
		out = append(out, r)
	}
	return out
}

// layout makes the list of functions: the exact ones, and the gaps between
// them cut at starts.
func (b *builder) layout(exact []elfread.Range, starts []uint64) {
	slices.Sort(starts)
	b.funcs, b.exact = b.funcs[:0], b.exact[:0]
	si := 0
	gap := func(lo, hi uint64) {
		for si < len(starts) && starts[si] <= lo {
			si++
		}
		for lo < hi {
			next := hi
			if si < len(starts) && starts[si] < hi {
				next = starts[si]
				for si < len(starts) && starts[si] == next {
					si++
				}
			}
			if next > lo {
				b.funcs = append(b.funcs, elfread.Range{Lo: lo, Hi: next})
				b.exact = append(b.exact, false)
			}
			lo = next
		}
	}
	ei := 0
	for _, x := range b.f.Exec {
		at := x.Lo
		for ei < len(exact) && exact[ei].Lo < x.Hi {
			e := exact[ei]
			ei++
			if e.Lo < at {
				continue
			}
			e.Hi = min(e.Hi, x.Hi)
			if e.Lo > at {
				gap(at, e.Lo)
			}
			b.funcs = append(b.funcs, e)
			b.exact = append(b.exact, true)
			at = e.Hi
		}
		if at < x.Hi {
			gap(at, x.Hi)
		}
	}
	b.index()
}

const pageShift = 8

// index makes at quick: for every 256 bytes the first function that reaches them.
func (b *builder) index() {
	if len(b.funcs) == 0 {
		return
	}
	b.base = b.funcs[0].Lo
	span := b.funcs[len(b.funcs)-1].Hi - b.base
	if span > 1<<32 { // segments far apart: search instead
		b.pages = nil
		return
	}
	n := int(span>>pageShift) + 1
	if cap(b.pages) < n {
		b.pages = make([]int32, n)
	}
	b.pages = b.pages[:n]
	k := 0
	for p := range b.pages {
		a := b.base + uint64(p)<<pageShift
		for k < len(b.funcs)-1 && b.funcs[k].Hi <= a {
			k++
		}
		b.pages[p] = int32(k)
	}
}

// at gives the function that an address lies in, or -1.
func (b *builder) at(a uint64) int32 {
	if len(b.funcs) == 0 || a < b.base || a >= b.funcs[len(b.funcs)-1].Hi {
		return -1
	}
	k := 0
	if b.pages != nil {
		k = int(b.pages[(a-b.base)>>pageShift])
	} else {
		k = sort.Search(len(b.funcs), func(i int) bool { return b.funcs[i].Hi > a })
	}
	for k < len(b.funcs) && b.funcs[k].Hi <= a {
		k++
	}
	if k == len(b.funcs) || a < b.funcs[k].Lo {
		return -1
	}
	return int32(k)
}

func (b *builder) importOf(sym string) int32 {
	i, ok := b.importIdx[sym]
	if !ok {
		i = int32(len(b.out.Imports))
		b.importIdx[sym] = i
		b.out.Imports = append(b.out.Imports, sym)
	}
	return i
}

func (amd64) stub(b *builder, addr uint64) (string, bool) {
	code := b.f.Bytes(addr)
	var in x86.Inst
	pc := addr
	for range 2 {
		if !x86.Decode(code, &in) {
			return "", false
		}
		if in.Class == x86.Endbr {
			code, pc = code[in.Len:], pc+uint64(in.Len)
			continue
		}
		if in.Class == x86.JmpInd && in.IsMem && in.RIP {
			sym, ok := b.slots[in.Address(pc)]
			return sym, ok
		}
		break
	}
	return "", false
}

// sweep decodes every function and collects what it refers to. What was found
// in those with exact bounds, when the functions were laid out as in old, stays.
func (b *builder) sweep(goAt map[uint64]string, old []elfread.Range, oldExact []bool) error {
	n := len(b.funcs)
	funcs, isPLT, isGo, returns := b.out.Funcs, b.isPLT, b.isGo, b.returns
	b.out.Funcs = make([]function, n, n+1) // and dataFunc
	b.isPLT = make([]bool, n)
	b.isGo = make([]bool, n)
	b.returns = make([]bool, n)
	now := make([]int32, len(old)) // where an exact function is now, -1 for the others
	k := 0
	for i := range old {
		now[i] = -1
		if !oldExact[i] {
			continue
		}
		for !b.exact[k] {
			k++
		}
		now[i] = int32(k)
		b.out.Funcs[k], b.isPLT[k], b.isGo[k], b.returns[k] = funcs[i], isPLT[i], isGo[i], returns[i]
		k++
	}
	b.calls = keep(b.calls, func(r *ref) *int32 { return &r.fn }, now)
	b.imports = keep(b.imports, func(r *importRef) *int32 { return &r.fn }, now)
	b.indirect = keep(b.indirect, func(r *importRef) *int32 { return &r.fn }, now)
	b.dataRefs = keep(b.dataRefs, func(r *dataRef) *int32 { return &r.fn }, now)
	b.syscalls = keep(b.syscalls, func(r *siteRef) *int32 { return &r.fn }, now)
	for i := range b.funcs {
		if i&1023 == 0 {
			if err := b.ctx.Err(); err != nil {
				return err
			}
		}
		if b.exact[i] && len(old) > 0 {
			continue
		}
		r := b.funcs[i]
		b.out.Funcs[i].Addr = r.Lo
		if name, ok := goAt[r.Lo]; ok {
			b.out.Funcs[i].Name = name
			b.isGo[i] = true
		}
		b.sweepFunc(int32(i), r)
	}
	return nil
}

// keep renumbers the functions that are still there and drops what was found
// in others.
func keep[T any](list []T, fn func(*T) *int32, now []int32) []T {
	out := list[:0]
	for i := range list {
		if k := now[*fn(&list[i])]; k >= 0 {
			*fn(&list[i]) = k
			out = append(out, list[i])
		}
	}
	return out
}

func (b *builder) inPLT(r elfread.Range) bool {
	for _, p := range b.f.PLT {
		if r.Lo >= p.Lo && r.Hi <= p.Hi {
			return true
		}
	}
	return false
}

func (amd64) sweepFunc(b *builder, fi int32, r elfread.Range) {
	if b.inPLT(r) {
		b.isPLT[fi] = true
		return
	}
	code := b.f.Bytes(r.Lo)
	if uint64(len(code)) > r.Hi-r.Lo {
		code = code[:r.Hi-r.Lo]
	}
	var in x86.Inst
	fn := &b.out.Funcs[fi]
	fall := true // control may run off the end
	var last uint64
	stubs, others := 0, 0
	mark := [...]int{len(b.calls), len(b.imports), len(b.indirect), len(b.syscalls), 0, len(b.dataRefs)}
	end := mark // what was found up to the last instruction that ends a path
	for p := 0; p < len(code); {
		if !x86.Decode(code[p:], &in) || in.Privileged {
			if !b.exact[fi] {
				// Data between functions, or after one: what follows the
				// last end of a path was no code.
				b.calls = b.calls[:end[0]]
				b.imports = b.imports[:end[1]]
				b.indirect = b.indirect[:end[2]]
				b.syscalls = b.syscalls[:end[3]]
				fn.Sites = fn.Sites[:end[4]]
				b.dataRefs = b.dataRefs[:end[5]]
				return
			}
			p++
			continue
		}
		if p > 0 && !fall {
			end = [...]int{len(b.calls), len(b.imports), len(b.indirect), len(b.syscalls), len(fn.Sites), len(b.dataRefs)}
		}
		pc := r.Lo + uint64(p)
		p += int(in.Len)
		if in.Class == x86.Nop || in.Class == x86.Endbr {
			continue
		}
		if in.Class == x86.Trap {
			fall = false
			others++
			continue
		}
		fall = true
		last = pc
		switch in.Class {
		case x86.Call, x86.Jmp, x86.Jcc:
			t := in.Target(pc)
			jump := in.Class != x86.Call
			if in.Class == x86.Jmp {
				fall = false
			}
			if in.Class == x86.Call && b.exact[fi] && p == len(code) {
				fall = false // the callee does not return
			}
			if t >= r.Lo && t < r.Hi {
				if !jump {
					b.inner.add(t)
					b.calls = append(b.calls, ref{pc, t, fi, false, false})
				}
				others++
				continue
			}
			others++
			b.branch(fi, pc, t, jump)
		case x86.CallInd, x86.JmpInd:
			jump := in.Class == x86.JmpInd
			if jump {
				fall = false
				if sym, ok := "", in.IsMem && in.RIP; !ok {
					b.returns[fi] = true
				} else if sym, ok = b.slots[in.Address(pc)]; !ok || !neverReturns[sym] {
					b.returns[fi] = true
				}
			} else if b.exact[fi] && p == len(code) {
				fall = false
			}
			if in.IsMem && in.RIP {
				if sym, ok := b.slots[in.Address(pc)]; ok {
					if sym != "" {
						b.imports = append(b.imports, importRef{pc, b.importOf(sym), fi, jump})
					}
					if jump {
						stubs++
					} else {
						others++
					}
					continue
				}
			}
			others++
			b.indirect = append(b.indirect, importRef{pc, 0, fi, jump})
			if in.IsMem && in.RIP {
				b.refer(fi, pc, &in, in.Address(pc))
			}
		case x86.Ret:
			fall = false
			others++
			b.returns[fi] = true
		case x86.Syscall:
			others++
			b.syscalls = append(b.syscalls, siteRef{pc, fi})
		case x86.Int:
			others++
			if in.Imm == 0x80 {
				fn.Sites = append(fn.Sites, site{Addr: pc, Reason: "int 0x80: a 32-bit system call in 64-bit code"})
			}
		case x86.Sysenter:
			others++
			fn.Sites = append(fn.Sites, site{Addr: pc, Reason: "sysenter: a 32-bit system call in 64-bit code"})
		case x86.Push:
			if !in.IsMem || !in.RIP {
				others++
			}
			b.operand(fi, pc, &in)
		case x86.PushImm:
			if b.fixed {
				others++
				b.take(fi, uint64(in.Imm))
			}
		case x86.MovImm:
			others++
			if b.fixed || in.Size == 8 && !in.IsMem {
				b.take(fi, uint64(in.Imm)) // 64-bit: also the large code model
				if in.Size == 4 {
					b.take(fi, uint64(uint32(in.Imm)))
				}
			}
			b.operand(fi, pc, &in)
		default:
			others++
			b.operand(fi, pc, &in)
		}
	}
	if stubs > 0 && others == 0 {
		// Nothing but procedure linkage stubs: callers are linked to the
		// symbol of the stub they call.
		b.isPLT[fi] = true
		b.calls = b.calls[:mark[0]]
		b.imports = b.imports[:mark[1]]
		b.indirect = b.indirect[:mark[2]]
		return
	}
	if fall && int(fi)+1 < len(b.funcs) && b.funcs[fi+1].Lo == r.Hi {
		b.calls = append(b.calls, ref{last, r.Hi, fi, true, true})
		b.inner.add(r.Hi)
	}
}

// operand looks at a memory operand for addresses of code and symbols.
func (b *builder) operand(fi int32, pc uint64, in *x86.Inst) {
	if !in.IsMem {
		return
	}
	switch {
	case in.RIP:
		a := in.Address(pc)
		if slices.Contains(b.nscd, a) {
			b.nscdUses = append(b.nscdUses, pc)
		}
		if in.Class == x86.Lea {
			b.refer(fi, pc, in, a)
			b.take(fi, a)
			return
		}
		if sym, ok := b.slots[a]; ok && sym != "" {
			b.imports = append(b.imports, importRef{0, b.importOf(sym), fi, false})
		} else if !ok {
			b.refer(fi, pc, in, a)
		}
	case b.fixed && in.Class == x86.Lea && in.Base == x86.None && in.Index == x86.None:
		b.take(fi, uint64(int64(in.Disp)))
	}
}

// take records that a function uses a as a value.
func (b *builder) take(fi int32, a uint64) {
	if !b.f.IsCode(a) {
		return
	}
	if sym, ok := b.stub(a); ok {
		if sym != "" {
			b.imports = append(b.imports, importRef{0, b.importOf(sym), fi, false})
		}
		return
	}
	b.inner.add(a)
	b.calls = append(b.calls, ref{0, a, fi, false, false})
}

// branch records a direct call or a jump out of a function.
func (b *builder) branch(fi int32, pc, t uint64, jump bool) {
	if !b.f.IsCode(t) {
		return
	}
	if sym, ok := b.stub(t); ok {
		if sym != "" {
			b.imports = append(b.imports, importRef{pc, b.importOf(sym), fi, jump})
		}
		return
	}
	b.inner.add(t)
	b.calls = append(b.calls, ref{pc, t, fi, false, jump})
}

// roots finds what is live as soon as the file is loaded.
func (b *builder) roots() {
	set := map[int32]bool{}
	add := func(a uint64) {
		if k := b.at(a); k >= 0 && !b.isPLT[k] {
			set[k] = true
			b.taken[k] = true
		}
	}
	if b.byObject {
		b.pointerRoots(func(a uint64) {
			if b.f.IsCode(a) {
				add(a)
			}
		})
	} else {
		for _, a := range b.dataPointers() {
			if !b.f.IsCode(a) {
				continue
			}
			if sym, ok := b.stub(a); ok {
				if sym != "" {
					b.takeInData(sym)
				}
				continue
			}
			add(a)
		}
	}
	for _, a := range b.f.Init {
		add(a)
	}
	for i := range b.f.Relocs {
		r := &b.f.Relocs[i]
		if b.byObject && r.Type == elf.R_X86_64_64 {
			continue
		}
		switch r.Type {
		case elf.R_X86_64_64, elf.R_X86_64_PC64, elf.R_X86_64_32, elf.R_X86_64_32S, elf.R_X86_64_PC32:
			if r.Sym != "" {
				b.takeInData(r.Sym)
			}
		}
	}
	// A slot that no code refers to by itself is reached in a way we do not see.
	if len(b.slots) > 0 {
		used := map[string]bool{}
		for i := range b.imports {
			used[b.out.Imports[b.imports[i].sym]] = true
		}
		for i := range b.f.Relocs {
			r := &b.f.Relocs[i]
			if r.Type == elf.R_X86_64_GLOB_DAT && r.Sym != "" && !used[r.Sym] {
				b.takeInData(r.Sym)
			}
		}
	}
	if b.out.Go {
		for i := range b.funcs {
			if b.isGo[i] {
				set[int32(i)] = true
			}
		}
	}
	if b.f.IsCode(b.f.Entry) {
		b.out.Entry = b.at(b.f.Entry)
	}
	for k := range set {
		b.out.Roots = append(b.out.Roots, k)
	}
	slices.Sort(b.out.Roots)
}

// rootSym are the symbols that data of the file points to, as imports of a
// function that stands for the file.
func (b *builder) takeInData(sym string) {
	i := b.importOf(sym)
	if !b.inData[i] {
		b.inData[i], b.takenSym[i] = true, true
		b.dataFunc().Imports = append(b.dataFunc().Imports, i)
	}
}

// dataFunc is the pseudo-function of what data refers to; it is a root.
func (b *builder) dataFunc() *function {
	if b.data < 0 {
		b.data = int32(len(b.out.Funcs))
		b.out.Funcs = append(b.out.Funcs, function{Name: "data", Data: true})
		b.out.Roots = append(b.out.Roots, b.data)
	}
	return &b.out.Funcs[b.data]
}

// finish turns references into edges and names functions.
func (b *builder) finish() {
	if b.byObject && !b.partial {
		b.objects()
	}
	if !b.partial {
		b.flows()
	}
	for i := range b.calls {
		r := &b.calls[i]
		if k := b.at(r.to); k >= 0 && k != r.fn {
			b.out.Funcs[r.fn].Calls = append(b.out.Funcs[r.fn].Calls, k)
		}
	}
	b.calls = nil
	for i := range b.imports {
		f := &b.out.Funcs[b.imports[i].fn]
		f.Imports = append(f.Imports, b.imports[i].sym)
	}
	for i := range b.out.Funcs {
		f := &b.out.Funcs[i]
		slices.Sort(f.Calls)
		f.Calls = slices.Clip(slices.Compact(f.Calls))
		slices.Sort(f.Imports)
		f.Imports = slices.Clip(slices.Compact(f.Imports))
	}
	name := func(s *elfread.Symbol) {
		if k := b.at(s.Value); k >= 0 && b.out.Funcs[k].Name == "" && s.Value == b.funcs[k].Lo {
			b.out.Funcs[k].Name = s.Name
		}
	}
	for i := range b.f.Dynsym {
		s := &b.f.Dynsym[i]
		if !s.Defined || s.Local || s.Name == "" {
			continue
		}
		if k := b.at(s.Value); k >= 0 && b.f.IsCode(s.Value) {
			b.out.Exports = append(b.out.Exports, export{s.Name, k})
			name(s)
		}
	}
	for i := range b.f.Symtab {
		if s := &b.f.Symtab[i]; s.Name != "" {
			name(s)
		}
	}
	slices.SortFunc(b.out.Exports, func(x, y export) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), cmp.Compare(x.Func, y.Func))
	})
	b.out.Exports = slices.Compact(b.out.Exports)
	b.daemons()
}

// neverReturns are functions of C libraries that do not return.
var neverReturns = set("abort", "exit", "_exit", "_Exit", "quick_exit", "pthread_exit", "thrd_exit", "longjmp", "_longjmp", "siglongjmp", "__longjmp_chk",
	"__stack_chk_fail", "__fortify_fail", "__chk_fail", "__assert_fail", "__assert_perror_fail", "__assert", "err", "errx", "verr", "verrx",
	"_Unwind_Resume", "__cxa_throw", "__cxa_rethrow", "__cxa_bad_cast", "_ZSt9terminatev", "__cxa_call_unexpected", "__clang_call_terminate", "__libc_start_main")

// findNoReturn finds the functions without a way back: no return, and no jump
// to a function that has one.
func (b *builder) findNoReturn() { b.noreturn = b.neverReturning(true) }

// neverReturning is by function. The file's own functions are known by their
// names only where that is asked for.
func (b *builder) neverReturning(names bool) []bool {
	n := len(b.funcs)
	may := slices.Clone(b.returns)
	named := make([]bool, n)
	for _, tab := range [][]elfread.Symbol{b.f.Dynsym, b.f.Symtab} {
		for i := range tab {
			if s := &tab[i]; names && s.Defined && neverReturns[s.Name] {
				if k := b.at(s.Value); k >= 0 && b.funcs[k].Lo == s.Value {
					named[k], may[k] = true, false
				}
			}
		}
	}
	back := map[int32][]int32{}
	var work []int32
	for i := range b.calls {
		if r := &b.calls[i]; r.jump {
			if k := b.at(r.to); k >= 0 && k != r.fn {
				back[k] = append(back[k], r.fn)
			}
		}
	}
	for i := range b.imports {
		if r := &b.imports[i]; r.jump && !neverReturns[b.out.Imports[r.sym]] {
			may[r.fn] = !named[r.fn]
		}
	}
	for i := range n {
		if name := b.out.Funcs[i].Name; names && b.isGo[i] && (strings.HasPrefix(name, "runtime.panic") || strings.HasPrefix(name, "runtime.goPanic") ||
			name == "runtime.gopanic" || name == "runtime.throw" || strings.HasPrefix(name, "runtime.fatal") || name == "runtime.goexit0") {
			named[i], may[i] = true, false
		}
	}
	for i := range n {
		// These come back by way of the scheduler, with no return instruction.
		if name := b.out.Funcs[i].Name; b.isGo[i] && (strings.HasPrefix(name, "runtime.morestack") || strings.HasPrefix(name, "runtime.mcall") || strings.HasPrefix(name, "runtime.systemstack")) {
			may[i] = true
		}
		if b.isPLT[i] && !named[i] {
			may[i] = true
		}
		if may[i] {
			work = append(work, int32(i))
		}
	}
	for len(work) > 0 {
		f := work[len(work)-1]
		work = work[:len(work)-1]
		for _, c := range back[f] {
			if !may[c] && !named[c] {
				may[c] = true
				work = append(work, c)
			}
		}
	}
	out := make([]bool, n)
	for i := range n {
		out[i] = !may[i]
	}
	return out
}

// endsPath tells whether the call at pc does not come back.
func (b *builder) endsPath(in *x86.Inst, pc uint64) bool {
	switch in.Class {
	case x86.Call:
		t := in.Target(pc)
		if sym, ok := b.stub(t); ok {
			return neverReturns[sym]
		}
		k := b.at(t)
		return k >= 0 && b.noreturn[k]
	case x86.CallInd:
		if in.IsMem && in.RIP {
			return neverReturns[b.slots[in.Address(pc)]]
		}
	}
	return false
}
