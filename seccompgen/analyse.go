package seccompgen

import (
	"cmp"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
	"golang.org/x/sys/unix"
)

// Program is one program that a container may run.
type Program struct {
	Path    string // in the image, free of symbolic links
	Phase   record.Phase
	Origins []record.Origin
	// Args are all command lines that it is started with, each with its name;
	// none: they are not known.
	Args [][]string
	// Loads: it loads libraries that it makes at run time, which may call
	// whatever it exports (varnishd's compiled configuration).
	Loads bool `json:",omitempty"`
}

// Request asks for the system calls of a container.
type Request struct {
	Programs []Program
	// Env is the environment they start with; LD_LIBRARY_PATH, LD_PRELOAD,
	// LANG and LC_* matter.
	Env []string
	// Immutable: nothing that runs can change files of the image, but for those
	// in and below Changeable; mounts lie there too.
	Immutable  bool
	Changeable []string
	// SettledEnv: nothing is known to start a program with other values than
	// those in Env of the variables that say where libraries find their
	// configuration.
	SettledEnv bool
	// Mounted are files and directories that an operator's mounts bring. Scripts
	// there are not read: what an interpreter's syscall builtin is asked for by
	// them is not known.
	Mounted []string
	// Answered is what the machine that they run on, and the engine's profile,
	// are known to do: of Answerable, the calls that do not fail with ENOSYS,
	// and VDSO. See Machine.
	Answered []string
	// ExtraLibraries are opened at run time: paths, or names that the loader finds.
	ExtraLibraries []string
}

// Result is what the programs can ask of the kernel.
type Result struct {
	Calls      []plan.Syscall // sorted by name
	Loops      []plan.Loop    // of programs that serve: see phases.go
	Unresolved []plan.Site
	Machine    string // GOARCH
	Has32      bool   // a 32-bit program is among them
	Libraries  []string
	Setuid     []string // programs that are setuid or setgid
	FileCaps   []string // programs that carry file capabilities
}

// always are calls that no program is seen to make: the kernel's own returns
// from signals and stops, and the ends that every runtime falls back on.
var always = []string{"rt_sigreturn", "restart_syscall", "exit", "exit_group"}

const maxOrigins = 3

// Analyse works out the system calls of every program of the request, with
// everything it loads.
func Analyse(ctx context.Context, root *rootfs.Root, req Request, cache Cache) (Result, error) {
	if cache == nil {
		cache = NoCache{}
	}
	if len(req.Programs) == 0 {
		return Result{}, errors.New("analyse programs: none given")
	}
	r := newReader(root)
	key := requestKey(r, req)
	if res, ok := answered(root, key, cache); ok {
		return res, nil
	}
	res, err := analyse(ctx, r, req, cache)
	if err != nil {
		return Result{}, err
	}
	if all, ok := r.sights(); ok {
		if b, err := json.Marshal(res); err == nil {
			cache.Put(key, all.encode(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)))
		}
	}
	return res, nil
}

// Kept gives what Analyse found before, where the image has not changed since.
// It looks at the names and times of files, and reads none.
func Kept(root *rootfs.Root, req Request, cache Cache) (Result, bool) {
	if len(req.Programs) == 0 {
		return Result{}, false
	}
	return answered(root, requestKey(newReader(root), req), cache)
}

func answered(root *rootfs.Root, key string, cache Cache) (Result, bool) {
	b, ok := cache.Get(key)
	if !ok {
		return Result{}, false
	}
	if len(b) < 4 {
		return Result{}, false
	}
	n := binary.BigEndian.Uint32(b)
	if b = b[4:]; n > uint32(len(b)) || !newReader(root).unchanged(b[n:]) {
		return Result{}, false
	}
	var res Result
	if json.Unmarshal(b[:n], &res) != nil {
		return Result{}, false
	}
	return res, true
}

// requestKey names a request by its words and the identity of its programs.
func requestKey(r *reader, req Request) string {
	h := sha256.New()
	enc := json.NewEncoder(h)
	env := slices.DeleteFunc(slices.Clone(req.Env), func(kv string) bool {
		return !strings.HasPrefix(kv, "LD_") && !strings.HasPrefix(kv, "LANG") && !strings.HasPrefix(kv, "LC_") && !setting(kv)
	})
	if err := enc.Encode([]any{req.Programs, env, req.Immutable, req.Changeable, req.SettledEnv, req.Mounted, req.Answered, req.ExtraLibraries}); err != nil {
		return ""
	}
	for _, p := range req.Programs {
		r.stat(p.Path)
		fmt.Fprintln(h, r.seen[p.Path])
	}
	return "request " + version + " " + hex.EncodeToString(h.Sum(nil))
}

func (s *store) knownKey() string {
	if len(s.known) == 1 {
		return "syscall"
	}
	h := sha256.New()
	for _, name := range slices.Sorted(maps.Keys(s.known)) {
		fmt.Fprintln(h, name, s.known[name])
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

func analyse(ctx context.Context, r *reader, req Request, cache Cache) (Result, error) {
	_, out, err := settle(ctx, r, req, cache)
	return out, err
}

// settle analyses, and takes what the kernel answers for granted only where no
// program can have another answer given to what it starts. It gives what is
// known of every file, too.
func settle(ctx context.Context, r *reader, req Request, cache Cache) (*store, Result, error) {
	has := map[string]bool{NoNSCD: !r.nscdInstalled()}
	grant := func() []string {
		return slices.DeleteFunc(slices.Clone(req.Answered), func(a string) bool { v, known := has[a]; return known && !v })
	}
	all := req.Answered
	req.Answered = grant()
	st, out, err := grow(ctx, r, req, cache)
	if err != nil {
		return st, out, err
	}
	traces, filters := alters(out)
	has[VDSO] = !traces
	for _, name := range Answerable {
		has[name] = !traces && !filters
	}
	has[NoNSCD] = has[NoNSCD] && !st.cached
	before := req.Answered
	if req.Answered = all; !slices.Equal(grant(), before) {
		req.Answered = grant()
		return grow(ctx, r, req, cache)
	}
	return st, out, nil
}

// alters tells whether a program may trace others, and so change what the kernel
// does for them, or load a seccomp filter, which its children keep.
func alters(out Result) (traces, filters bool) {
	unknown := len(out.Unresolved) > 0
	traces, filters = unknown, unknown
	for _, c := range out.Calls {
		switch c.Name {
		case "seccomp":
			filters = true
		case "ptrace":
			traces = true
		case "prctl":
			held := slices.IndexFunc(c.Args, func(a plan.Arg) bool { return a.Index == 0 && a.Proved() })
			if held < 0 || slices.ContainsFunc(c.Args[held].Values, func(v plan.ArgValue) bool { return v.Value == unix.PR_SET_SECCOMP }) {
				filters = true
			}
		}
	}
	return traces, filters
}

// grow analyses until no further function turns out to take a call number.
func grow(ctx context.Context, r *reader, req Request, cache Cache) (*store, Result, error) {
	st := newStore(r, cache, req.Programs)
	defer st.wait()
	for range maxKnown {
		out, err := st.result(ctx, r, req)
		if err != nil {
			return nil, out, err
		}
		st.wait()
		if !st.learn() {
			return st, out, nil
		}
	}
	return nil, Result{}, errors.New("analyse programs: functions that take a call number refer to each other without end")
}

// maxKnown bounds how often the closure is looked at again because a library
// turned out to export a function that takes a call number.
const maxKnown = 5

// learn adds to the known functions those that files seen export and import,
// and forgets the summaries that depend on them.
func (s *store) learn() bool {
	imported := map[string]bool{}
	for _, e := range s.mem {
		if e.sum != nil {
			for _, name := range e.sum.Imports {
				imported[name] = true
			}
		}
	}
	known := maps.Clone(s.known)
	grew := map[string]bool{}
	for _, e := range s.mem {
		if e.sum == nil {
			continue
		}
		for _, w := range e.sum.Wrappers {
			if imported[w.Name] && !slices.Contains(known[w.Name], w.Arg) {
				known[w.Name] = append(slices.Clone(known[w.Name]), w.Arg)
				grew[w.Name] = true
			}
		}
	}
	for _, l := range known {
		slices.SortFunc(l, func(a, b location) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	}
	s.known = known
	for file, e := range s.mem {
		if e.sum != nil && slices.ContainsFunc(e.sum.Imports, func(name string) bool { return grew[name] }) {
			delete(s.mem, file)
			delete(s.syms.files, e.sum)
		}
	}
	return len(grew) > 0
}

func (st *store) result(ctx context.Context, r *reader, req Request) (Result, error) {
	var out Result
	out.Machine = st.conventions().goarch
	l := newLoader(ctx, r, st, req.Env)
	st.answered = req.Answered
	if out.Machine != "amd64" { // others' vDSO has not the same functions
		st.answered = slices.DeleteFunc(slices.Clone(st.answered), func(a string) bool { return a == VDSO })
	}
	type found struct {
		phase   record.Phase
		origins []record.Origin
	}
	calls := map[string]*found{}
	args := argSet{}
	sites := map[plan.Site]bool{}
	until := untilLoop{map[string]bool{}, map[string]bool{}, map[string]bool{}}
	libs := map[string]bool{}
	first := make([]string, len(req.Programs))
	for i, p := range req.Programs {
		first[i] = p.Path
	}
	for _, p := range req.Programs {
		for _, d := range catalogue(p.Path) {
			l.below(d, 0, func(file string) { first = append(first, file) })
		}
	}
	l.prefetch(first)
	for _, p := range req.Programs {
		h, err := st.head(p.Path)
		if err != nil {
			return out, &NotProgram{p.Path, err, "name a program, or the interpreter of the script"}
		}
		r.privileged(p.Path, &out)
		if h.Class == elf.ELFCLASS32 && (half[h.Machine] == st.machine || h.Machine == st.machine) {
			out.Has32 = true
			sites[plan.Site{File: p.Path, Reason: "a 32-bit program is not analysed"}] = true
			continue
		}
		l.req, l.running = &req, &p
		g, err := l.graph(p.Path, req.ExtraLibraries)
		if err != nil {
			return out, err
		}
		for _, m := range g.mods[1:] {
			libs[m.path] = true
		}
		if l.opened > maxPlugins {
			sites[plan.Site{File: p.Path, Reason: fmt.Sprintf("may open more than %d libraries", maxPlugins)}] = true
		}
		if l.walked && l.unseen {
			sites[plan.Site{File: p.Path, Reason: "not every file of the image was looked at for what it opens"}] = true
		}
		st.cached = st.cached || cached(g)
		cs, un := g.calls(out.Machine)
		g.args(args)
		for _, u := range un {
			sites[plan.Site{File: u.File, Address: u.Addr, Reason: u.Reason}] = true
		}
		for _, name := range always {
			cs = append(cs, call{name, p.Path})
		}
		if p.Phase == record.Serving {
			if loop := until.program(g, p.Path, cs, l.opened > maxPlugins); loop != nil {
				out.Loops = append(out.Loops, *loop)
			}
		}
		for _, c := range cs {
			f := calls[c.Name]
			if f == nil {
				f = &found{phase: p.Phase}
				calls[c.Name] = f
			}
			f.phase = f.phase.Widest(p.Phase)
			if len(f.origins) < maxOrigins {
				f.origins = append(f.origins, record.Origin{Source: record.FromFile, At: c.Origin})
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(calls)) {
		f := calls[name]
		c := plan.Syscall{Name: name, Phase: f.phase, UntilLoop: until.decide(name), Origins: f.origins}
		if nr, ok := sysno.Number("amd64", name); ok && out.Machine == "amd64" {
			c.Args = args.plan(int32(nr))
		}
		out.Calls = append(out.Calls, c)
	}
	for s := range sites {
		out.Unresolved = append(out.Unresolved, s)
	}
	slices.SortFunc(out.Unresolved, func(a, b plan.Site) int {
		return cmp.Or(strings.Compare(a.File, b.File), cmp.Compare(a.Address, b.Address), strings.Compare(a.Reason, b.Reason))
	})
	out.Libraries = slices.Sorted(maps.Keys(libs))
	return out, nil
}

// privileged notes what a program's file gives it, or may give it where that
// cannot be read.
func (r *reader) privileged(name string, out *Result) {
	if _, st, ok := r.stat(name); ok && st.Mode&(unix.S_ISUID|unix.S_ISGID) != 0 {
		out.Setuid = append(out.Setuid, name)
	}
	f, err := r.root.Open(name)
	if err != nil {
		out.FileCaps = append(out.FileCaps, name)
		return
	}
	defer f.Close()
	var buf [64]byte
	if _, err := unix.Fgetxattr(int(f.Fd()), "security.capability", buf[:]); !errors.Is(err, unix.ENODATA) && !errors.Is(err, unix.EOPNOTSUPP) {
		out.FileCaps = append(out.FileCaps, name)
	}
}

// graph links a program, adds what it may open by name, and links again until
// nothing new can be opened.
func (l *loader) graph(file string, extra []string) (*graph, error) {
	c, err := l.program(file, extra)
	if err != nil {
		return nil, err
	}
	c.mods[0].exported = l.running != nil && l.running.Loads && l.running.Path == file
	g := link(l.store.syms, c.mods, l.env)
	g.answered = l.store.answered
	g.run()
	for range 8 {
		before := len(c.mods)
		plugins := l.plugins(c, g)
		l.prefetch(plugins)
		for _, p := range plugins {
			if err := l.add(c, p, true, nil); err != nil {
				return nil, err
			}
		}
		if len(c.mods) == before {
			break
		}
		g.add(c.mods[before:])
		g.run()
	}
	return g, l.interpret(c, g)
}

// interpret adds what scripts of the image ask of the interpreters in the closure.
func (l *loader) interpret(c *closure, g *graph) error {
	kinds, builtins := c.hosted(), kind(0)
	if g.scripted() {
		builtins = kinds & (forPerl | forRuby)
	}
	if !g.imported(dlopen) && !c.foreign() {
		kinds = 0
	}
	if kinds|builtins == 0 {
		return nil
	}
	l.natives()
	g.read = !l.unseen && (l.req == nil || len(l.req.Mounted) == 0)
	g.said = l.scripts(kinds|builtins, builtins, "amd64")
	before := len(c.mods)
	for _, p := range g.said.own(l) {
		if err := l.add(c, p, true, nil); err != nil {
			return err
		}
	}
	for _, name := range g.said.libraries {
		if p, ok := l.find(name, c.mods[0], nil, c.musl); ok {
			if _, loaded := c.index[p]; loaded {
				continue
			}
			if err := l.add(c, p, false, nil); err != nil {
				if l.ctx.Err() != nil {
					return err
				}
				// As dlopen(3) fails then.
			}
		}
	}
	g.add(c.mods[before:])
	g.run()
	return nil
}

// parallel is how many files are analysed ahead at a time.
const parallel = 2

// prefetch analyses files side by side, with what they will load and the
// largest first, while the caller goes on. It is a guess about what will be
// asked for; errors come back when it is.
func (l *loader) prefetch(files []string) {
	var todo []string
	seen := map[string]bool{}
	for work := slices.Clone(files); len(work) > 0 && len(seen) < maxModules; {
		file := work[0]
		work = work[1:]
		if seen[file] || !l.store.ahead(file) {
			continue
		}
		seen[file] = true
		todo = append(todo, file)
		for _, need := range l.store.needs(file) {
			for _, d := range l.dirs {
				if p, _, ok := l.r.regular(path.Join(d, need)); ok && !strings.Contains(need, "/") {
					work = append(work, p)
					break
				}
			}
		}
	}
	slices.SortStableFunc(todo, func(a, b string) int { return cmp.Compare(l.r.size[b], l.r.size[a]) })
	for _, file := range todo {
		l.store.start(l.ctx, file, l.r.size[file])
	}
}
