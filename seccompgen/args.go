package seccompgen

import (
	"cmp"
	"debug/elf"
	"fmt"
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/seccompgen/x86"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Scalar arguments. For a few calls whose number is proved, the values that one
// of their arguments can have are followed in the same way as the number:
// backwards from the instruction, through callers, and from file to file
// through the C library's function for the call and through syscall(2).
//
// The values of an argument are proved when every live place that can make the
// call passes a constant. Anything else is kept as the place and the reason,
// and then there is no rule for that argument. In particular it is not proved
//
//   - when it is loaded from memory, returned by a function, or computed;
//   - when a function that passes it on can be called in a way that is not a
//     direct call: its address is taken or is in data, it may be looked up by
//     name, it is a method of a Go type, it is where the program begins;
//   - when a function that passes it on is exported, and is no function of the
//     C library that importers are known to be looked at for (passes);
//   - when a library is taken as a whole (coarse.go) and imports such a function.
//
// Only the low 32 bits are kept. The kernel takes all of these arguments as int
// or unsigned int, or refuses a value with higher bits set, or (clone) drops
// them: whoever compares must compare 32 bits, and allows no less than was
// proved.

// tracked are the arguments that are followed, by amd64 call number.
//
// An argument rule takes its call out of the kernel's bitmap, so that some
// hundred instructions of the filter run each time (80 ns, where an ioctl that
// does nothing takes 150). No program makes these calls at a rate at which that
// is felt. Not here:
//
//   - setsockopt, fcntl, madvise, mmap: servers call them for every request.
//   - mprotect: what the loader passes lies in memory (text relocations, an
//     executable stack, zero fill of a read-only segment: four places in every
//     program), and whoever wants executable memory has mmap.
//   - clone: the C library passes the flags of threads and of posix_spawn in a
//     structure; engines' profiles refuse namespaces by a mask already.
//   - socketpair: of all domains only AF_UNIX (and AF_TIPC) has pairs.
var tracked = map[int32][]uint8{
	16:  {1},    // ioctl: request
	41:  {0, 1}, // socket: domain, type
	101: {0},    // ptrace: request
	135: {0},    // personality: persona
	157: {0},    // prctl: option
	250: {0},    // keyctl: operation
	272: {0},    // unshare: flags
	317: {0},    // seccomp: operation
	321: {0},    // bpf: command
}

// follow is how many arguments of a call are followed at most: the first.
const follow = 3

// nowhereKnown is the place of an argument that cannot be said.
var nowhereKnown = location{Reg: x86.None}

// kernelArgs is where the kernel takes the first arguments of a call.
var kernelArgs = [follow]location{reg(x86.RDI), reg(x86.RSI), reg(x86.RDX)}

// anyCall stands for every tracked call.
const anyCall = -1

// passing says that a function makes call nr, with the argument that it is
// given in at, or, for anyCall, the call whose number it is given.
type passing struct {
	Nr    int32
	Index uint8
	At    location
}

// passes are the C library's functions for these calls (their manual pages),
// whose importers are looked at. That a function of that name takes anything
// else elsewhere is seen when the files are linked.
var passes = map[string][]passing{
	"syscall":     {{anyCall, 0, reg(x86.RSI)}, {anyCall, 1, reg(x86.RDX)}, {anyCall, 2, reg(x86.RCX)}},
	"ioctl":       {{16, 1, reg(x86.RSI)}},
	"__ioctl":     {{16, 1, reg(x86.RSI)}},
	"socket":      {{41, 0, reg(x86.RDI)}, {41, 1, reg(x86.RSI)}},
	"__socket":    {{41, 0, reg(x86.RDI)}, {41, 1, reg(x86.RSI)}},
	"ptrace":      {{101, 0, reg(x86.RDI)}},
	"personality": {{135, 0, reg(x86.RDI)}},
	"prctl":       {{157, 0, reg(x86.RDI)}},
	"__prctl":     {{157, 0, reg(x86.RDI)}},
	"keyctl":      {{250, 0, reg(x86.RDI)}},
	"unshare":     {{272, 0, reg(x86.RDI)}},
}

// argSite is one place that passes an argument of a tracked call.
type argSite struct {
	Addr   uint64
	Nr     int32 // anyCall: whichever it is
	Index  uint8
	Value  uint32 // meaningful when Reason is empty
	Reason string
}

// argWrapper is an exported function that passes an argument on.
type argWrapper struct {
	Name string
	passing
}

// question asks what the callers of a function leave where it takes an
// argument from: of call nr, or of the call whose number they leave in number.
type question struct {
	fn     int32
	nr     int32
	number location
	args   [follow]location
}

// arguments works out the arguments of the file's tracked calls. It comes after
// resolve, which reports what is wrong with the numbers.
func (b *builder) arguments() error {
	if b.f.Machine != elf.EM_X86_64 {
		return nil // nothing is proved, then
	}
	a := &argFinder{builder: b, asked: map[question]bool{}}
	for _, s := range b.syscalls {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		at := place{s.fn, s.pc, true, false}
		a.make(at, reg(x86.RAX), kernelArgs)
	}
	if b.out.Go {
		for i := range b.out.Funcs {
			if b.out.Funcs[i].Name == allThreads { // the arguments lie in memory
				a.ask(question{int32(i), anyCall, reg(x86.RAX), [follow]location{nowhereKnown, nowhereKnown, nowhereKnown}})
			}
		}
	}
	matters := make([]bool, len(b.out.Imports))
	for i, name := range b.out.Imports {
		matters[i] = len(passes[name]) > 0 || len(b.known[name]) > 0
	}
	for i := range b.imports {
		if r := &b.imports[i]; matters[r.sym] {
			a.imported(r.fn, r.site, b.out.Imports[r.sym], r.jump)
		}
	}
	for sym := range a.inDataAtAll() {
		b.dataFunc()
		a.imported(b.data, 0, sym, false)
	}
	for round := 0; len(a.queue) > 0; round++ {
		if round == maxQuestionRounds {
			for _, q := range a.queue {
				a.unknown(place{fn: q.fn, pc: b.out.Funcs[q.fn].Addr}, q.nr, q.args, "passed through too many functions")
			}
			break
		}
		if err := a.answer(); err != nil {
			return err
		}
	}
	for i := range b.out.Funcs {
		s := b.out.Funcs[i].Args
		slices.SortFunc(s, compareArgs)
		b.out.Funcs[i].Args = slices.Clip(slices.Compact(s))
	}
	w := b.out.ArgWrappers
	slices.SortFunc(w, func(x, y argWrapper) int {
		return cmp.Or(strings.Compare(x.Name, y.Name), cmp.Compare(x.Nr, y.Nr), cmp.Compare(x.Index, y.Index), strings.Compare(fmt.Sprint(x.At), fmt.Sprint(y.At)))
	})
	b.out.ArgWrappers = slices.Compact(w)
	return nil
}

func compareArgs(x, y argSite) int {
	return cmp.Or(cmp.Compare(x.Addr, y.Addr), cmp.Compare(x.Nr, y.Nr), cmp.Compare(x.Index, y.Index), cmp.Compare(x.Value, y.Value), strings.Compare(x.Reason, y.Reason))
}

// Bounds on following arguments: how many functions one is passed through, how
// many functions pass one on, and how many places pass one.
const (
	maxQuestionRounds = 12
	maxQuestions      = 2000
	maxArgSites       = 1 << 14
	maxArgWrappers    = 1000 // exported functions that pass one on
)

type argFinder struct {
	*builder
	asked map[question]bool
	queue []question
	sites int
}

// inDataAtAll are the symbols of other files that data points to. What makes
// such data live is not asked: it counts.
func (a *argFinder) inDataAtAll() map[string]bool {
	out := map[string]bool{}
	for sym := range a.inData {
		out[a.out.Imports[sym]] = true
	}
	for i := range a.slotsOf {
		s := &a.slotsOf[i]
		if s.sym != "" && !s.copy {
			out[s.sym] = true
		}
		if a.f.IsCode(s.to) {
			if sym, ok := a.stub(s.to); ok && sym != "" {
				out[sym] = true
			}
		}
	}
	return out
}

// place is an instruction that makes a call or calls a function.
type place struct {
	fn    int32
	pc    uint64
	jump  bool
	after bool
}

func (a *argFinder) put(fn int32, s argSite) {
	if a.sites++; a.sites > maxArgSites {
		s = argSite{s.Addr, anyCall, 0, 0, "more places than are followed"}
		if a.sites > 2*maxArgSites {
			s.Addr = 0 // one per function is enough
			if slices.Contains(a.out.Funcs[fn].Args, s) {
				return
			}
		}
	}
	a.out.Funcs[fn].Args = append(a.out.Funcs[fn].Args, s)
}

// unknown records that nothing is known of the arguments of nr at a place, or
// of those of any call. Where args has only one place, it is about that one.
func (a *argFinder) unknown(at place, nr int32, args [follow]location, why string) {
	if nr == anyCall {
		a.put(at.fn, argSite{at.pc, anyCall, 0, 0, why})
		return
	}
	for _, i := range tracked[nr] {
		if args[i] != notAsked {
			a.put(at.fn, argSite{at.pc, nr, i, 0, why})
		}
	}
}

// notAsked is in question.args for arguments that the question is not about.
var notAsked = location{Reg: x86.None - 1}

// make looks at a place that makes the call whose number is in number.
func (a *argFinder) make(at place, number location, args [follow]location) {
	v := a.value(at, number)
	for _, c := range v.consts {
		nr := clampNr(c)
		for _, i := range tracked[nr] {
			a.pass(at, nr, i, args[i])
		}
	}
	if len(v.params) == 0 {
		return // an unknown number is resolve's to report: it widens everything
	}
	if _, ok := a.benign(at.fn, at.pc, ""); ok {
		return // Go repeats a call on every thread: see arguments
	}
	q := question{nr: anyCall}
	for i, loc := range args {
		q.args[i] = nowhereKnown
		if loc == nowhereKnown {
			continue
		}
		if w := a.value(at, loc); w.unknown == "" && len(w.consts) == 0 && len(w.params) == 1 {
			q.args[i] = w.params[0]
		}
	}
	for _, p := range v.params {
		q.fn, q.number = at.fn, p
		a.ask(q)
	}
}

// pass looks at the argument of a call that a place makes.
func (a *argFinder) pass(at place, nr int32, index uint8, loc location) {
	v := values{unknown: "in a place that is not known"}
	if loc != nowhereKnown {
		v = a.value(at, loc)
	}
	for _, c := range v.consts {
		a.put(at.fn, argSite{at.pc, nr, index, uint32(c), ""})
	}
	for _, p := range v.params {
		q := question{fn: at.fn, nr: nr}
		for i := range q.args {
			q.args[i] = notAsked
		}
		q.args[index] = p
		a.ask(q)
	}
	if v.unknown != "" {
		a.put(at.fn, argSite{at.pc, nr, index, 0, v.unknown})
	}
}

func (a *argFinder) value(at place, loc location) values {
	a.body(at.fn).exact = true
	v, _ := a.argument(at.fn, at.pc, loc, at.jump, at.after)
	return v
}

// imported looks at a use of another file's function; site is 0 where its
// address is taken.
func (a *argFinder) imported(fn int32, site uint64, name string, jump bool) {
	takers := a.known[name]
	list := passes[name]
	if len(takers) == 0 && len(list) == 0 {
		return
	}
	at := place{fn, site, jump, false}
	if site == 0 {
		at.pc = a.out.Funcs[fn].Addr
		for _, p := range list {
			if p.Nr != anyCall {
				a.put(fn, argSite{at.pc, p.Nr, p.Index, 0, "the address of " + name + " is taken"})
			}
		}
	}
	args := [follow]location{nowhereKnown, nowhereKnown, nowhereKnown}
	for _, p := range list {
		switch {
		case p.Nr == anyCall:
			args[p.Index] = p.At
		case site != 0:
			a.pass(at, p.Nr, p.Index, p.At)
		}
	}
	for _, loc := range takers {
		switch {
		case site != 0:
			a.make(at, loc, args)
		case !a.partial: // there every function that uses one was looked at
			a.pointer(loc, args)
		}
	}
}

// pointer looks at every call through a pointer as one of a function that takes
// a call number, as resolve does: what it finds none of, it reports.
func (a *argFinder) pointer(number location, args [follow]location) {
	q := question{-1, anyCall, number, args}
	if a.asked[q] {
		return
	}
	a.asked[q] = true
	for i := range a.indirect {
		r := &a.indirect[i]
		if c := a.code(r.fn); r.jump {
			if k := c.index(r.site); k >= 0 && c.within(k) {
				continue
			}
		}
		a.make(place{r.fn, r.site, r.jump, false}, number, args)
	}
}

// ask puts a question to the callers of a function, unless it can be called
// from where nobody looks.
func (a *argFinder) ask(q question) {
	if a.asked[q] {
		return
	}
	at := place{fn: q.fn, pc: a.out.Funcs[q.fn].Addr}
	if len(a.asked) >= maxQuestions {
		a.unknown(at, q.nr, q.args, "passed through too many functions")
		return
	}
	a.asked[q] = true
	if a.partial {
		a.unknown(at, q.nr, q.args, "in a library that is not followed call by call")
		return
	}
	for _, loc := range q.places() {
		switch {
		case loc.Slot && (loc.Off < -maxFrame || loc.Off > maxStackArgs):
			a.unknown(at, q.nr, q.args, "passed through too many functions")
			return
		case !a.argumentLocation(q.fn, loc) && !a.inParts(q.fn):
			a.unknown(at, q.nr, q.args, "in a register that is no argument")
			return
		}
	}
	if why := a.elsewhere(q.fn); why != "" {
		if q.nr != anyCall {
			a.unknown(at, q.nr, q.args, why)
			return
		}
		if !a.argumentLocation(q.fn, q.number) {
			a.unknown(at, q.nr, q.args, "in a register that is no argument")
			return
		}
		for i, loc := range q.args {
			if loc != nowhereKnown && !a.argumentLocation(q.fn, loc) {
				q.args[i] = nowhereKnown
			}
		}
		a.pointer(q.number, q.args)
	}
	a.queue = append(a.queue, q)
}

// places are the locations that a question is about.
func (q *question) places() []location {
	var out []location
	if q.nr == anyCall {
		out = append(out, q.number)
	}
	for _, loc := range q.args {
		if loc != nowhereKnown && loc != notAsked {
			out = append(out, loc)
		}
	}
	return out
}

// inParts tells whether other parts of the same function jump to this one:
// only they can have put something where no argument is passed.
func (a *argFinder) inParts(fn int32) bool {
	for i := range a.calls {
		if r := &a.calls[i]; r.jump && r.fn != fn && a.at(r.to) == fn {
			return true
		}
	}
	return false
}

// elsewhere says how a function can be called other than by a direct call.
func (a *argFinder) elsewhere(fn int32) string {
	switch {
	case a.taken[fn] && !a.onlyCompared(fn):
		return "its function's address is taken"
	case fn == a.at(a.f.Entry):
		return "where the program begins"
	case a.isGo[fn]:
		// A Go type's methods are found through offsets in its description,
		// and closures through values of their own.
		name := a.out.Funcs[fn].Name
		name = name[strings.LastIndexByte(name, '/')+1:]
		if strings.Count(name, ".") != 1 || strings.ContainsAny(name, "([") {
			return "its function may be called through an interface"
		}
	}
	return ""
}

// answer looks at everything that calls the functions of the queue.
func (a *argFinder) answer() error {
	queue := a.queue
	a.queue = nil
	byFn, byName := map[int32][]question{}, map[string][]question{}
	lo, hi := ^uint64(0), uint64(0)
	for _, q := range queue {
		byFn[q.fn] = append(byFn[q.fn], q)
		lo, hi = min(lo, a.funcs[q.fn].Lo), max(hi, a.funcs[q.fn].Hi)
	}
	for i := range a.calls {
		if i&0xffff == 0 {
			if err := a.ctx.Err(); err != nil {
				return err
			}
		}
		r := &a.calls[i]
		if r.site == 0 || r.to < lo || r.to >= hi {
			continue
		}
		for _, q := range byFn[a.at(r.to)] {
			a.caller(q, r)
		}
	}
	for i := range a.f.Dynsym {
		s := &a.f.Dynsym[i]
		if !s.Defined || s.Local || s.Name == "" || s.Value < lo || s.Value >= hi {
			continue
		}
		for _, q := range byFn[a.at(s.Value)] {
			if len(a.out.ArgWrappers) >= maxArgWrappers {
				a.unknown(place{fn: q.fn, pc: a.out.Funcs[q.fn].Addr}, q.nr, q.args, "passed on by too many functions")
				continue
			}
			for i, loc := range q.args {
				if loc != notAsked {
					a.out.ArgWrappers = append(a.out.ArgWrappers, argWrapper{s.Name, passing{q.nr, uint8(i), loc}})
				}
			}
			byName[s.Name] = append(byName[s.Name], q)
		}
	}
	if len(byName) == 0 {
		return nil
	}
	// A file's own function may be called by its name.
	bySym := map[int32][]question{}
	for i, name := range a.out.Imports {
		if q := byName[name]; len(q) > 0 {
			bySym[int32(i)] = q
		}
	}
	for i := range a.imports {
		r := &a.imports[i]
		for _, q := range bySym[r.sym] {
			a.byName(q, place{r.fn, r.site, r.jump, false})
		}
	}
	for sym := range a.inDataAtAll() {
		for _, q := range byName[sym] {
			a.dataFunc()
			a.byName(q, place{fn: a.data})
		}
	}
	return nil
}

func (a *argFinder) byName(q question, at place) {
	if at.pc == 0 {
		at.pc = a.out.Funcs[at.fn].Addr
		a.unknown(at, q.nr, q.args, "its function's address is taken")
		return
	}
	a.called(q, at)
}

// caller looks at one direct call of a function that a question is about.
func (a *argFinder) caller(q question, r *ref) {
	if r.after {
		c := a.code(r.fn)
		if k := c.index(r.site); k >= 0 && c.endsPath(k) {
			return
		}
	}
	a.called(q, place{r.fn, r.site, r.jump, r.after})
}

func (a *argFinder) called(q question, at place) {
	if !at.jump {
		for _, loc := range q.places() {
			if !a.argumentLocation(q.fn, loc) {
				return // what a caller has there is not meant for the function
			}
		}
	}
	if q.nr == anyCall {
		a.make(at, q.number, q.args)
		return
	}
	for i, loc := range q.args {
		if loc != notAsked {
			a.pass(at, q.nr, uint8(i), loc)
		}
	}
}

// argKey is one argument of one call.
type argKey struct {
	nr    int32
	index uint8
}

// argFound is what is known of an argument over a program.
type argFound struct {
	values map[uint32][]record.Origin
	why    *plan.Site
}

type argSet map[argKey]*argFound

func (s argSet) of(k argKey) *argFound {
	f := s[k]
	if f == nil {
		f = &argFound{values: map[uint32][]record.Origin{}}
		s[k] = f
	}
	return f
}

func (s argSet) unknown(nr int32, index uint8, why plan.Site) {
	if nr == anyCall {
		for nr, indexes := range tracked {
			for _, i := range indexes {
				s.unknown(nr, i, why)
			}
		}
		return
	}
	if f := s.of(argKey{nr, index}); f.why == nil || compareSite(why, *f.why) < 0 {
		f.why = &why
	}
}

func compareSite(x, y plan.Site) int {
	return cmp.Or(strings.Compare(x.File, y.File), cmp.Compare(x.Address, y.Address), strings.Compare(x.Reason, y.Reason))
}

// args adds what live code passes in tracked arguments.
func (g *graph) args(to argSet) {
	// Nothing is known of what scripts pass.
	for _, c := range g.said.calls {
		if nr, ok := sysno.Number("amd64", c.Name); ok {
			for _, index := range tracked[int32(nr)] {
				to.unknown(int32(nr), index, plan.Site{File: c.Origin, Reason: "a script makes the call"})
			}
		}
	}
	for _, u := range g.said.unresolved {
		to.unknown(anyCall, 0, plan.Site{File: u.File, Reason: "a call that may be any: " + u.Reason})
	}
	for i, m := range g.mods {
		for _, t := range m.sum.Trouble {
			to.unknown(anyCall, 0, plan.Site{File: m.path, Address: t.Addr, Reason: "a call that may be any: " + t.Reason})
		}
		for k := range m.sum.Funcs {
			if !g.live[i][k] {
				continue
			}
			for _, s := range m.sum.Funcs[k].Sites {
				if s.Reason == scripted && g.read {
					continue // what the scripts do stands above
				}
				if s.Reason != "" { // it may be any call, with anything
					to.unknown(anyCall, 0, plan.Site{File: m.path, Address: s.Addr, Reason: "a call that may be any: " + s.Reason})
				}
			}
			for _, s := range m.sum.Funcs[k].Args {
				if s.Reason != "" {
					to.unknown(s.Nr, s.Index, plan.Site{File: m.path, Address: s.Addr, Reason: s.Reason})
					continue
				}
				f := to.of(argKey{s.Nr, s.Index})
				if o := f.values[s.Value]; len(o) < maxOrigins {
					f.values[s.Value] = append(o, record.Origin{Source: record.FromFile, At: g.origin(node{int32(i), int32(k)}, site{Addr: s.Addr})})
				}
			}
		}
		for _, w := range m.sum.ArgWrappers {
			why := ""
			switch id, ok := g.syms.ids[w.Name]; {
			case m.exported || g.freed(int32(i), w.Name):
				why = w.Name + " may be looked up by name"
			case !ok || slices.Contains(passes[w.Name], w.passing) || !g.usedElsewhere(i, id):
				continue
			case w.Nr == anyCall && w.Name != "syscall":
				continue // its importers were told that nothing is known of the arguments
			default:
				why = w.Name + " is called from other files"
			}
			to.unknown(w.Nr, w.Index, plan.Site{File: m.path, Reason: why})
		}
	}
}

// freed tells whether an exported function is live by more than calls: it may be
// looked up by name, by whatever means.
func (g *graph) freed(mod int32, name string) bool {
	return slices.ContainsFunc(g.mods[mod].sum.Exports, func(e export) bool { return e.Name == name && g.free[node{mod, e.Func}] })
}

// usedElsewhere tells whether live code of other files than mod uses a symbol.
func (g *graph) usedElsewhere(mod int, id int32) bool {
	if int(id) >= len(g.used) || g.used[id] == nowhere {
		return false
	}
	for i, l := range g.link {
		if i == mod {
			continue
		}
		sym := int32(slices.Index(l.imports, id))
		if sym < 0 {
			continue
		}
		for k := range g.mods[i].sum.Funcs {
			if g.live[i][k] && slices.Contains(g.mods[i].sum.Funcs[k].Imports, sym) {
				return true
			}
		}
	}
	return false
}

// maxArgValues is how many values of an argument make a rule.
const maxArgValues = 24

// of gives the arguments of a call for the plan.
func (s argSet) plan(nr int32) []plan.Arg {
	var out []plan.Arg
	for _, i := range tracked[nr] {
		f := s.of(argKey{nr, i})
		arg := plan.Arg{Index: i}
		switch {
		case f.why != nil:
			arg.Unproved = f.why
		case len(f.values) == 0:
			arg.Unproved = &plan.Site{Reason: "nothing that makes the call is seen to pass it"}
		case len(f.values) > maxArgValues:
			arg.Unproved = &plan.Site{Reason: fmt.Sprintf("%d values, more than a rule has", len(f.values))}
		default:
			for v, origins := range f.values {
				arg.Values = append(arg.Values, plan.ArgValue{Value: v, Origins: origins})
			}
			slices.SortFunc(arg.Values, func(x, y plan.ArgValue) int { return cmp.Compare(x.Value, y.Value) })
		}
		out = append(out, arg)
	}
	return out
}
