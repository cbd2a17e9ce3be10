package seccompgen

import (
	"cmp"
	"maps"
	"slices"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
)

// A program's start and its later life.
//
// A process whose stack holds the return address of a call has made that call,
// or a process that it was forked from has: the address lies in the middle of a
// function, no table, label or initialiser has it, and the program lies where
// the kernel chose. What the process can do from then on is bounded without
// knowing any value:
//
//   - the function that is called, and in the function that calls it whatever its
//     blocks lead to;
//   - where that function can return, what comes behind the calls of it, and so
//     on up to main and to what the C library does when main returns. Only
//     functions count of which every caller is known: none of them, up to main,
//     has its address taken by anything but the entry point. So the stack below
//     holds these functions and no other, whatever interrupts or threads there
//     are: those begin in functions whose address is taken;
//   - in all of these functions, what comes behind calls that return twice
//     (setjmp, getcontext, vfork), system calls that split the process, landing
//     pads, and labels whose address is taken;
//   - every function whose address any live code ever took, also before, or that
//     live data points to, or that is looked up by name: signal handlers, thread
//     routines, callbacks, coroutines, destructors, IFUNC resolvers, the loader's
//     lazy binding; and what files do that are loaded later, their initialisers
//     included;
//   - whatever these call.
//
// What is left out is what only the loader's own start, the initialisers of
// files that are there from the start, and calls by name before the loop lead
// to.
//
// Any call of such a function could serve as proof. Those in cycles that come to
// wait are what a server spends its life in, so of these the set is made; which
// are taken decides how much is gained and for which processes, not whether it
// is right.
//
// # Not seen
//
//   - A program that looks up its own main by name and calls it.
//   - Programs linked at a fixed address: small numbers could be taken for their
//     addresses. Go programs, whose main is entered through a pointer.

// serves are the calls in which a server waits for work.
var serves = numbers("epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6", "accept", "accept4",
	"rt_sigsuspend", "rt_sigtimedwait", "io_uring_enter", "io_getevents")

func numbers(names ...string) map[int32]bool {
	out := map[int32]bool{}
	for _, name := range names {
		if nr, ok := sysno.Number("amd64", name); ok {
			out[int32(nr)] = true
		}
	}
	return out
}

// twice are the functions that come back a second time, with the stack as it
// was. A child of vfork has its parent's.
var twice = set("setjmp", "_setjmp", "sigsetjmp", "__sigsetjmp", "getcontext", "swapcontext", "vfork", "__vfork")

// splits are the calls behind which two threads of a process may go on in one
// place.
var splits = numbers("clone", "clone3", "vfork")

// later is what can still run after a certain point.
type later struct {
	g     *graph
	live  [][]bool
	used  []bool
	queue []node
	nrs   map[int32]bool
	bad   bool              // a call without a number, or a caller nobody knows
	jump  func(*block) bool // follows a jump to the middle of a function
	// What to take back: see back.
	marked []node
	named  []int32
}

func newLater(g *graph) *later {
	l := &later{g: g, live: make([][]bool, len(g.live)), used: make([]bool, len(g.used)), nrs: map[int32]bool{}}
	for i := range l.live {
		l.live[i] = make([]bool, len(g.live[i]))
	}
	return l
}

// back undoes what was marked since keep.
func (l *later) back(nrs map[int32]bool) {
	for _, n := range l.marked {
		l.live[n.mod][n.fn] = false
	}
	for _, id := range l.named {
		l.used[id] = false
	}
	l.marked, l.named, l.nrs, l.bad, l.jump = l.marked[:0], l.named[:0], nrs, false, nil
}

func (l *later) mark(n node) {
	if n.fn < 0 || int(n.fn) >= len(l.live[n.mod]) || l.live[n.mod][n.fn] || !l.g.live[n.mod][n.fn] {
		return // what never runs does not run later either
	}
	l.live[n.mod][n.fn] = true
	l.marked = append(l.marked, n)
	l.queue = append(l.queue, n)
}

func (l *later) use(mod, sym int32) {
	id := l.g.link[mod].imports[sym]
	if l.used[id] {
		return
	}
	l.used[id] = true
	l.named = append(l.named, id)
	for _, e := range l.g.by[id] {
		l.mark(e)
	}
}

func (l *later) site(s *site) {
	if s.Reason != "" {
		l.bad = true
		return
	}
	l.nrs[s.Nr] = true
}

func (l *later) drain() {
	for k := 0; k < len(l.queue); k++ {
		n := l.queue[k]
		f := &l.g.mods[n.mod].sum.Funcs[n.fn]
		for _, c := range f.Calls {
			if _, closed := l.g.closed(n, c); !closed {
				l.mark(node{n.mod, c})
			}
		}
		for _, i := range f.Imports {
			if !l.g.barred(n, i) {
				l.use(n.mod, i)
			}
		}
		for i := range f.Sites {
			l.site(&f.Sites[i])
		}
	}
	l.queue = l.queue[:0]
}

// phases tells the start of one program from its later life.
type phases struct {
	g     *graph
	sum   *summary // of the program
	flows map[int32]*flow
	// callers are the calls and jumps to functions of the program that are not
	// made through pointers; foreign are functions that other files call by name.
	callers map[int32][]caller
	foreign map[int32]bool
	taken   []bool         // functions of the program that may be called through pointers
	base    *later         // what runs whatever the program does, and scratch for more
	nrs     map[int32]bool // the calls of base
	waiting [][]bool       // functions that come to wait without calls through pointers
}

// caller is a block of a function that ends with a call or a jump elsewhere.
type caller struct {
	fn    int32
	block int32 // -1 where the function is not cut into blocks
}

// newPhases prepares for a program, or gives nil where nothing can be proved.
func newPhases(g *graph) *phases {
	p := &phases{g: g, sum: g.mods[0].sum, flows: map[int32]*flow{}, callers: map[int32][]caller{}, foreign: map[int32]bool{}}
	if p.sum.Main < 0 || !g.live[0][p.sum.Main] {
		return nil
	}
	for _, m := range g.mods {
		if len(m.sum.Trouble) > 0 {
			return nil
		}
		if systemFile(m) {
			continue
		}
		for i := range m.sum.Exports {
			if neverReturns[m.sum.Exports[i].Name] {
				return nil // what it does is not what everybody knows
			}
		}
	}
	for i := range p.sum.Flows {
		p.flows[p.sum.Flows[i].Fn] = &p.sum.Flows[i]
	}
	p.roots()
	if p.base.bad {
		return nil
	}
	p.nrs, p.base.marked, p.base.named = p.base.nrs, nil, nil
	p.findCallers()
	p.findWaiting()
	return p
}

// systemFile tells whether a file may define what a C library or the C++
// runtime does.
func systemFile(m *module) bool {
	switch m.sum.Soname {
	case "libgcc_s.so.1", "libstdc++.so.6", "libc++.so.1", "libc++abi.so.1":
		return true
	}
	return isLibc(m) || slices.ContainsFunc(m.sum.Exports, func(e export) bool { return e.Name == "__libc_start_main" }) // musl's has no name
}

// roots marks what can run whatever the program does: everything that may be
// called through a pointer, by name, or by the loader when it ends or loads
// more.
func (p *phases) roots() {
	g := p.g
	p.taken = make([]bool, len(p.sum.Funcs))
	p.base = newLater(g)
	take := func(n node) {
		if n.mod == 0 && n.fn >= 0 {
			p.taken[n.fn] = true
		}
		p.base.mark(n)
	}
	byName := func(id int32) {
		for _, e := range g.by[id] {
			take(e)
		}
	}
	again, lookedUp := g.imported(dlmopen), g.imported(dlsym) // dlmopen loads everything anew
	for i, m := range g.mods {
		mi := int32(i)
		for _, r := range m.sum.Roots {
			if _, init := slices.BinarySearch(m.sum.InitOnly, r); again || m.late || !init {
				take(node{mi, r})
			}
		}
		if m.exported {
			for k := range m.sum.Exports {
				take(node{mi, m.sum.Exports[k].Func})
			}
		}
		for k := range m.sum.Funcs {
			if !g.live[i][k] {
				continue
			}
			f := &m.sum.Funcs[k]
			calls, imports := f.Takes, f.TakesImports
			if f.Data || f.Addr == 0 { // stands for data
				calls, imports = f.Calls, f.Imports
			}
			for _, c := range calls {
				take(node{mi, c})
			}
			for _, s := range imports {
				byName(g.link[i].imports[s])
			}
		}
		if lookedUp && !isLibc(m) {
			for _, name := range m.sum.Names {
				id, ok := g.syms.ids[name]
				if !ok || int(id) >= len(g.by) {
					continue
				}
				for _, e := range g.by[id] {
					if e != (node{0, p.sum.Main}) {
						take(e)
					}
				}
			}
		}
		p.returns(i)
	}
	p.base.drain()
}

var dlmopen = set("dlmopen")

// returns marks what runs when main returns to the C library.
func (p *phases) returns(mod int) {
	m := p.g.mods[mod]
	for _, fn := range m.sum.CallMain {
		k, ok := slices.BinarySearchFunc(m.sum.Flows, fn, func(f flow, fn int32) int { return cmp.Compare(f.Fn, fn) })
		if !ok {
			p.base.mark(node{int32(mod), fn})
			continue
		}
		f := &m.sum.Flows[k]
		part := make([]bool, len(f.Blocks))
		for i := range f.Blocks {
			b := &f.Blocks[i]
			if b.Kind == endsCallIndirect || p.comesBack(mod, f, i) {
				p.base.run(int32(mod), f, part, b.Next)
			}
			if b.Lands {
				p.base.run(int32(mod), f, part, []int32{int32(i)})
			}
		}
	}
}

// run marks what runs from some blocks of a function on, but for those in part,
// and adds them to it. It tells whether the function may return from there.
func (l *later) run(mod int32, f *flow, part []bool, from []int32) bool {
	sites := l.g.mods[mod].sum.Funcs[f.Fn].Sites
	returns := false
	work := slices.Clone(from)
	if f.Opaque {
		for i := range f.Blocks {
			work = append(work, int32(i))
		}
	}
	for len(work) > 0 {
		i := work[len(work)-1]
		work = work[:len(work)-1]
		if part[i] {
			continue
		}
		part[i] = true
		for k := range sites {
			if f.holds(int(i), sites[k].Addr) {
				l.site(&sites[k])
			}
		}
		b := &f.Blocks[i]
		switch b.Kind {
		case endsCall:
			l.mark(node{mod, b.To})
		case endsCallImport:
			l.use(mod, b.To)
		case endsJump:
			if l.jump == nil || !l.jump(b) {
				l.mark(node{mod, b.To})
			}
			returns = true
		case endsJumpImport:
			l.use(mod, b.To)
			returns = true
		case endsJumpIndirect, endsReturn:
			returns = true
		}
		work = append(work, b.Next...)
	}
	return returns
}

// holds tells whether an address lies in a block.
func (f *flow) holds(i int, addr uint64) bool {
	return addr >= f.Blocks[i].Lo && (i+1 == len(f.Blocks) || addr < f.Blocks[i+1].Lo)
}

// comesBack tells whether control may come behind a block once more than the
// block is run: it ends with a call that returns twice, or makes a system call
// that splits the process.
func (p *phases) comesBack(mod int, f *flow, i int) bool {
	sum := p.g.mods[mod].sum
	b := &f.Blocks[i]
	switch {
	case b.Kind == endsCallImport && twice[sum.Imports[b.To]], b.Kind == endsCall && twice[sum.Funcs[b.To].Name]:
		return true
	}
	return slices.ContainsFunc(sum.Funcs[f.Fn].Sites, func(s site) bool { return splits[s.Nr] && f.holds(i, s.Addr) })
}

// findCallers lists who calls the program's functions by name.
func (p *phases) findCallers() {
	g := p.g
	add := func(to, fn, block int32) { p.callers[to] = append(p.callers[to], caller{fn, block}) }
	named := func(id int32, do func(int32)) {
		for _, e := range g.by[id] {
			if e.mod == 0 {
				do(e.fn)
			}
		}
	}
	for k := range p.sum.Funcs {
		fn := int32(k)
		if !g.live[0][k] {
			continue
		}
		if f := p.flows[fn]; f != nil {
			for i := range f.Blocks {
				switch b := &f.Blocks[i]; b.Kind {
				case endsCall, endsJump:
					add(b.To, fn, int32(i))
				case endsCallImport, endsJumpImport:
					named(g.link[0].imports[b.To], func(to int32) { add(to, fn, int32(i)) })
				}
			}
			continue
		}
		for _, c := range p.sum.Funcs[k].Calls {
			if fn != p.sum.Starter || c != p.sum.Main {
				add(c, fn, -1)
			}
		}
		for _, s := range p.sum.Funcs[k].Imports {
			named(g.link[0].imports[s], func(to int32) { add(to, fn, -1) })
		}
	}
	for i := range g.mods[1:] {
		for _, id := range g.link[i+1].imports {
			named(id, func(to int32) { p.foreign[to] = true })
		}
	}
}

// findWaiting finds the functions that come to a call that waits for work.
func (p *phases) findWaiting() {
	g := p.g
	back := make([]map[int32][]node, len(g.mods))
	p.waiting = make([][]bool, len(g.mods))
	var work []node
	for i, m := range g.mods {
		back[i] = map[int32][]node{}
		p.waiting[i] = make([]bool, len(m.sum.Funcs))
	}
	reach := func(n node) {
		if !p.waiting[n.mod][n.fn] {
			p.waiting[n.mod][n.fn] = true
			work = append(work, n)
		}
	}
	for i, m := range g.mods {
		for k := range m.sum.Funcs {
			f := &m.sum.Funcs[k]
			if !g.live[i][k] || f.Data || f.Addr == 0 {
				continue
			}
			from := node{int32(i), int32(k)}
			if slices.ContainsFunc(f.Sites, func(s site) bool { return s.Reason == "" && serves[s.Nr] }) {
				reach(from)
			}
			for _, c := range f.Calls {
				if _, taken := slices.BinarySearch(f.Takes, c); !taken {
					back[i][c] = append(back[i][c], from)
				}
			}
			for _, s := range f.Imports {
				if _, taken := slices.BinarySearch(f.TakesImports, s); !taken {
					for _, e := range g.by[g.link[i].imports[s]] {
						back[e.mod][e.fn] = append(back[e.mod][e.fn], from)
					}
				}
			}
		}
	}
	for len(work) > 0 {
		n := work[len(work)-1]
		work = work[:len(work)-1]
		for _, from := range back[n.mod][n.fn] {
			reach(from)
		}
	}
}

// cone lists the functions that can be on the stack below an activation of fn,
// with it. It is false where they are not known: somebody may call one of them
// through a pointer.
func (p *phases) cone(fn int32) ([]int32, bool) {
	seen := map[int32]bool{fn: true}
	out := []int32{fn}
	for n := 0; n < len(out); n++ {
		k := out[n]
		if p.flows[k] == nil || p.taken[k] || p.foreign[k] || k == p.sum.Entry || k == p.sum.Starter {
			return nil, false
		}
		if _, root := slices.BinarySearch(p.sum.Roots, k); root {
			return nil, false
		}
		for _, c := range p.callers[k] {
			if c.block < 0 {
				return nil, false
			}
			if !seen[c.fn] {
				seen[c.fn] = true
				out = append(out, c.fn)
			}
		}
	}
	return out, seen[p.sum.Main]
}

// after gives the calls that can be made once one of the calls that end the
// blocks was, and is false where they are not known. cone is that of fn.
func (p *phases) after(fn int32, blocks, cone []int32) (map[int32]bool, bool) {
	l := p.base
	l.nrs = maps.Clone(p.nrs)
	defer l.back(p.nrs)
	parts := map[int32][]bool{}
	returned := map[int32]bool{}
	type place struct{ fn, block int32 }
	var left []int32   // functions that may return
	var jumped []place // where jumps to the middle of functions lead
	run := func(k int32, from []int32) {
		if parts[k] == nil {
			parts[k] = make([]bool, len(p.flows[k].Blocks))
		}
		if l.run(0, p.flows[k], parts[k], from) && !returned[k] {
			returned[k] = true
			left = append(left, k)
		}
	}
	l.jump = func(b *block) bool {
		f := p.flows[b.To]
		if f == nil || b.At == f.Blocks[0].Lo {
			return false
		}
		i, ok := slices.BinarySearchFunc(f.Blocks, b.At, func(x block, at uint64) int { return cmp.Compare(x.Lo, at) })
		if ok {
			jumped = append(jumped, place{b.To, int32(i)})
		}
		return ok
	}
	for _, i := range blocks {
		switch b := &p.flows[fn].Blocks[i]; b.Kind {
		case endsCall:
			l.mark(node{0, b.To})
		case endsCallImport:
			l.use(0, b.To)
		}
		run(fn, p.flows[fn].Blocks[i].Next)
	}
	// Where the functions below go on without being returned to. Parts of them
	// that lie elsewhere are jumped to.
	below, seen := slices.Clone(cone), map[int32]bool{}
	for _, k := range below {
		seen[k] = true
	}
	for n := 0; n < len(below); n++ {
		f := p.flows[below[n]]
		for i := range f.Blocks {
			b := &f.Blocks[i]
			if b.Lands {
				run(f.Fn, []int32{int32(i)})
			}
			if p.comesBack(0, f, i) {
				run(f.Fn, b.Next)
			}
			if b.Kind == endsJump && !seen[b.To] && p.flows[b.To] != nil {
				seen[b.To] = true
				below = append(below, b.To)
			}
		}
	}
	for len(left)+len(jumped) > 0 {
		if n := len(jumped); n > 0 {
			j := jumped[n-1]
			jumped = jumped[:n-1]
			run(j.fn, []int32{j.block})
			continue
		}
		k := left[len(left)-1]
		left = left[:len(left)-1]
		for _, c := range p.callers[k] {
			if c.block < 0 {
				return nil, false
			}
			b := &p.flows[c.fn].Blocks[c.block]
			if b.Kind == endsJump || b.Kind == endsJumpImport {
				if !returned[c.fn] {
					returned[c.fn] = true
					left = append(left, c.fn)
				}
				continue
			}
			run(c.fn, b.Next)
		}
	}
	l.drain()
	return l.nrs, !l.bad
}

// proof is calls of one function after any of which the same can still run.
type proof struct {
	fn     int32
	blocks []int32
	waits  bool // they lead to a call that waits for work
	cone   []int32
	nrs    map[int32]bool
}

// maxProofs bounds how many places are looked at in a program.
const maxProofs = 1000

// cyclic lists the calls that are made in cycles of functions of which every
// caller is known. Those that come to wait are first.
func (p *phases) cyclic() []proof {
	var first, then []proof
	for i := range p.sum.Flows {
		f := &p.sum.Flows[i]
		if !p.g.live[0][f.Fn] {
			continue
		}
		cone, ok := p.cone(f.Fn)
		if !ok {
			continue
		}
		for _, c := range cycles(f) {
			x := proof{fn: f.Fn, cone: cone}
			for _, k := range c {
				b := &f.Blocks[k]
				if !b.Kind.calls() {
					continue
				}
				x.blocks = append(x.blocks, k)
				switch b.Kind {
				case endsCall:
					x.waits = x.waits || p.waiting[0][b.To]
				case endsCallImport:
					for _, e := range p.g.by[p.g.link[0].imports[b.To]] {
						x.waits = x.waits || p.waiting[e.mod][e.fn]
					}
				}
			}
			switch {
			case len(x.blocks) == 0:
			case x.waits:
				first = append(first, x)
			default:
				then = append(then, x)
			}
		}
	}
	all := append(first, then...)
	return all[:min(len(all), maxProofs)]
}

// find gives return addresses that prove a process to be past its start, and
// the calls that it may still make then. whole are those of its whole life.
func (p *phases) find(whole map[int32]bool) ([]uint64, map[int32]bool) {
	all := p.cyclic()
	for i := range all {
		x := &all[i]
		if nrs, ok := p.after(x.fn, x.blocks, x.cone); ok && len(nrs) < len(whole) {
			x.nrs = nrs
		}
	}
	s := choose(all, len(whole))
	if s == nil {
		return nil, nil
	}
	set := map[uint64]bool{}
	add := func(x *proof) {
		if x.nrs == nil || !within(x.nrs, s) {
			return
		}
		for _, i := range x.blocks {
			if at := p.flows[x.fn].Blocks[i].At; at != 0 && len(set) < plan.MaxReturns {
				set[at] = true
			}
		}
	}
	asked := map[caller]bool{}
	for i := range all {
		x := &all[i]
		add(x)
		if !x.waits || x.nrs == nil || !within(x.nrs, s) {
			continue
		}
		// And the calls that lead there.
		for _, k := range x.cone {
			for _, c := range p.callers[k] {
				if f := p.flows[c.fn]; asked[c] || len(asked) >= maxProofs || !f.Blocks[c.block].Kind.calls() {
					continue
				}
				asked[c] = true
				if cone, ok := p.cone(c.fn); ok {
					y := proof{fn: c.fn, blocks: []int32{c.block}}
					if nrs, ok := p.after(c.fn, y.blocks, cone); ok {
						y.nrs = nrs
						add(&y)
					}
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(set)), s
}

// choose makes the set of calls that stay: those after the waiting loop that
// leaves the fewest, and of others as long as half of what is gone stays gone,
// so that masters and workers are both proved where that costs little.
func choose(all []proof, whole int) map[int32]bool {
	var loops []*proof
	for i := range all {
		if x := &all[i]; x.waits && x.nrs != nil {
			loops = append(loops, x)
		}
	}
	if len(loops) == 0 {
		return nil
	}
	slices.SortStableFunc(loops, func(a, b *proof) int { return cmp.Compare(len(a.nrs), len(b.nrs)) })
	out := maps.Clone(loops[0].nrs)
	least := whole - (whole-len(out)+1)/2
	for _, x := range loops[1:] {
		more := maps.Clone(out)
		maps.Copy(more, x.nrs)
		if len(more) <= least {
			out = more
		}
	}
	return out
}

func within(a, b map[int32]bool) bool {
	for nr := range a {
		if !b[nr] {
			return false
		}
	}
	return true
}

// untilLoop collects, over the programs that serve, who needs a call when.
type untilLoop struct {
	before map[string]bool // a program with a loop, in its whole life
	after  map[string]bool // a program with a loop, once it is in it
	always map[string]bool // a program without one
}

// program adds one with the calls of its whole life, and gives its loop if it
// has one. unknown says that it may load more than is known.
func (u *untilLoop) program(g *graph, file string, calls []call, unknown bool) *plan.Loop {
	var returns []uint64
	var left map[string]bool
	if !unknown {
		returns, left = g.afterLoop()
	}
	for _, c := range calls {
		switch {
		case len(returns) == 0:
			u.always[c.Name] = true
		default:
			u.before[c.Name] = true
		}
	}
	if len(returns) == 0 {
		return nil
	}
	maps.Copy(u.after, left)
	for _, name := range always {
		u.after[name] = true
	}
	return &plan.Loop{File: file, Returns: returns}
}

// afterLoop gives return addresses that prove the program to be in its loop, and
// the names of the calls that it may still make then.
func (g *graph) afterLoop() ([]uint64, map[string]bool) {
	p := newPhases(g)
	if p == nil {
		return nil, nil
	}
	whole := map[int32]bool{}
	for i, m := range g.mods {
		for k := range m.sum.Funcs {
			if g.live[i][k] {
				for _, s := range m.sum.Funcs[k].Sites {
					whole[s.Nr] = true
				}
			}
		}
	}
	returns, nrs := p.find(whole)
	names := map[string]bool{}
	for nr := range nrs {
		if name, ok := sysno.Name("amd64", int(nr)); ok {
			names[name] = true
		}
	}
	return returns, names
}

// decide tells whether a call is taken away from processes that are in a loop.
func (u *untilLoop) decide(name string) bool {
	switch {
	case len(u.before) == 0, u.after[name], kept[name]:
		return false
	case grave[name]:
		return true
	}
	return u.before[name] && !u.always[name]
}

// kept are never taken away. To take a call away the kernel asks the supervisor
// each time anybody makes it, which costs some microseconds. These are made all
// the time by any program, or by what starts containers between loading the
// filter and executing the program, and nobody is harmed by them.
var kept = set("read", "write", "readv", "writev", "pread64", "pwrite64", "open", "openat", "close", "close_range", "lseek", "fcntl", "dup", "dup2", "dup3",
	"stat", "fstat", "lstat", "newfstatat", "statx", "access", "faccessat", "faccessat2", "getdents64", "readlink", "getcwd", "pipe", "pipe2",
	"mmap", "munmap", "mprotect", "mremap", "madvise", "brk", "futex", "sched_yield", "restart_syscall",
	"rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack", "exit", "exit_group", "wait4",
	"getpid", "getppid", "gettid", "getuid", "geteuid", "getgid", "getegid", "getpgrp", "uname", "getrandom",
	"clock_gettime", "clock_getres", "clock_nanosleep", "nanosleep", "gettimeofday", "time",
	"epoll_create1", "epoll_ctl", "epoll_wait", "epoll_pwait", "epoll_pwait2", "poll", "ppoll", "select", "pselect6",
	"sendto", "recvfrom", "sendmsg", "recvmsg", "sendmmsg", "recvmmsg", "accept", "accept4")

// grave are worth asking about even where a program without a loop, such as a
// health check, needs them all its life. None of them is made often.
var grave = set("execve", "execveat", "setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups", "capset",
	"chroot", "pivot_root", "mount", "umount2", "move_mount", "open_tree", "fsopen", "fsmount", "fsconfig", "fspick", "mount_setattr",
	"unshare", "setns", "ptrace", "process_vm_readv", "process_vm_writev", "bpf", "perf_event_open", "userfaultfd", "add_key", "request_key", "keyctl",
	"init_module", "finit_module", "delete_module", "kexec_load", "kexec_file_load", "reboot", "swapon", "swapoff", "settimeofday", "clock_settime",
	"open_by_handle_at", "io_uring_setup", "io_uring_register", "mknod", "mknodat", "bind", "listen")

// cycles gives the strongly connected parts of a function that control can go
// round in, by Tarjan's algorithm without recursion.
func cycles(f *flow) [][]int32 {
	n := len(f.Blocks)
	index, low := make([]int32, n), make([]int32, n)
	on := make([]bool, n)
	var stack []int32
	var out [][]int32
	next := int32(1)
	type frame struct {
		v int32
		k int
	}
	for root := range n {
		if index[root] != 0 {
			continue
		}
		calls := []frame{{int32(root), 0}}
		for len(calls) > 0 {
			fr := &calls[len(calls)-1]
			v := fr.v
			if fr.k == 0 {
				index[v], low[v] = next, next
				next++
				stack = append(stack, v)
				on[v] = true
			}
			if fr.k < len(f.Blocks[v].Next) {
				w := f.Blocks[v].Next[fr.k]
				fr.k++
				if index[w] == 0 {
					calls = append(calls, frame{w, 0})
				} else if on[w] {
					low[v] = min(low[v], index[w])
				}
				continue
			}
			calls = calls[:len(calls)-1]
			if len(calls) > 0 {
				u := calls[len(calls)-1].v
				low[u] = min(low[u], low[v])
			}
			if low[v] != index[v] {
				continue
			}
			var c []int32
			for {
				w := stack[len(stack)-1]
				stack = stack[:len(stack)-1]
				on[w] = false
				c = append(c, w)
				if w == v {
					break
				}
			}
			if len(c) > 1 || slices.Contains(f.Blocks[v].Next, v) {
				slices.Sort(c)
				out = append(out, c)
			}
		}
	}
	return out
}
