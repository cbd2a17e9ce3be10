package seccompgen

import (
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/declarun/declarun/seccompgen/sysno"
)

// module is a file in the closure of a program.
type module struct {
	path string
	sum  *summary
	// exported is true where exports are roots: the file may be opened by
	// name, and its functions be looked up by name.
	exported bool
	// late is true where loading the file, and so its initialisers, may come at any time.
	late bool
}

type node struct{ mod, fn int32 }

var nowhere = node{-1, -1}

// symbols numbers the names that files export and import, so that linking one
// program after the other compares numbers.
type symbols struct {
	ids   map[string]int32
	files map[*summary]*linkage
}

// linkage is the names of one summary as numbers.
type linkage struct {
	imports []int32 // by index in summary.Imports
	exports []int32 // by index in summary.Exports
}

func newSymbols() *symbols {
	return &symbols{ids: map[string]int32{}, files: map[*summary]*linkage{}}
}

func (s *symbols) id(name string) int32 {
	i, ok := s.ids[name]
	if !ok {
		i = int32(len(s.ids))
		s.ids[name] = i
	}
	return i
}

func (s *symbols) of(sum *summary) *linkage {
	l := s.files[sum]
	if l == nil {
		l = &linkage{make([]int32, len(sum.Imports)), make([]int32, len(sum.Exports))}
		for i, name := range sum.Imports {
			l.imports[i] = s.id(name)
		}
		for i := range sum.Exports {
			l.exports[i] = s.id(sum.Exports[i].Name)
		}
		s.files[sum] = l
	}
	return l
}

// graph is the closure of one program, linked.
type graph struct {
	syms *symbols
	mods []*module
	link []*linkage
	// by lists who exports a symbol; used is who live code first used it
	// from, when it is used.
	by     [][]node
	used   []node
	asked  []bool // used by a file that is no part of the C library
	live   [][]bool
	free   map[node]bool // live by other ways than a call
	parent [][]node
	queue  []node
	env    map[string]string
	// answered is what the machine is known to answer.
	answered []string
	// Behind gates, by module: functions and imports; and edges that led there.
	gated [][2]map[int32]int
	held  []passage
	// said is what scripts that the program may run add.
	said words
	read bool // every script of the image was looked at
}

func link(syms *symbols, mods []*module, env map[string]string) *graph {
	g := &graph{syms: syms, env: env, free: map[node]bool{}}
	g.add(mods)
	return g
}

// add links further files. What is live stays so; run finds what they add.
func (g *graph) add(mods []*module) {
	first := len(g.mods)
	for _, m := range mods {
		g.mods = append(g.mods, m)
		g.link = append(g.link, g.syms.of(m.sum))
		g.live = append(g.live, make([]bool, len(m.sum.Funcs)))
		g.parent = append(g.parent, make([]node, len(m.sum.Funcs)))
	}
	n := len(g.syms.ids)
	g.by = append(g.by, make([][]node, n-len(g.by))...)
	for len(g.used) < n {
		g.used = append(g.used, nowhere)
	}
	g.asked = append(g.asked, make([]bool, n-len(g.asked))...)
	for i := first; i < len(g.mods); i++ {
		functions, imports := g.shut(int32(i))
		g.gated = append(g.gated, [2]map[int32]int{functions, imports})
	}
	for i := first; i < len(g.mods); i++ {
		for k, id := range g.link[i].exports {
			e := node{int32(i), g.mods[i].sum.Exports[k].Func}
			g.by[id] = append(g.by[id], e)
			if from := g.used[id]; from != nowhere {
				g.mark(e, from)
			}
		}
	}
}

func (g *graph) mark(n, from node) {
	if n.fn < 0 || int(n.fn) >= len(g.live[n.mod]) {
		return
	}
	if from == nowhere {
		g.free[n] = true
	}
	if g.live[n.mod][n.fn] {
		return
	}
	g.live[n.mod][n.fn] = true
	g.queue = append(g.queue, n)
	g.parent[n.mod][n.fn] = from
}

func (g *graph) drain() {
	for k := 0; k < len(g.queue); k++ {
		n := g.queue[k]
		f := &g.mods[n.mod].sum.Funcs[n.fn]
		outside := !isLibc(g.mods[n.mod])
		for _, c := range f.Calls {
			if t, closed := g.closed(n, c); closed {
				g.held = append(g.held, passage{n, node{n.mod, c}, t})
				continue
			}
			g.mark(node{n.mod, c}, n)
		}
		for _, i := range f.Imports {
			if g.barred(n, i) {
				continue // these never open
			}
			id := g.link[n.mod].imports[i]
			g.asked[id] = g.asked[id] || outside
			if g.used[id] != nowhere {
				continue
			}
			g.used[id] = n
			for _, e := range g.by[id] {
				g.mark(e, n)
			}
		}
	}
	g.queue = g.queue[:0]
}

// run marks what can run: what the program starts first, so that origins name
// it, then what loading the libraries runs.
func (g *graph) run() {
	for i, m := range g.mods {
		if i == 0 || m.sum.Entry >= 0 && i == 1 { // the program and its interpreter
			g.mark(node{int32(i), m.sum.Entry}, nowhere)
		}
		if i == 0 {
			for _, r := range m.sum.Roots {
				g.mark(node{0, r}, nowhere)
			}
			g.drain()
		}
	}
	for i, m := range g.mods {
		for _, r := range m.sum.Roots {
			g.mark(node{int32(i), r}, nowhere)
		}
		if m.exported {
			for _, e := range m.sum.Exports {
				g.mark(node{int32(i), e.Func}, nowhere)
			}
		}
	}
	g.drain()
	// Functions looked up by a name that is in the data of who looks.
	if g.imported(dlsym) {
		for _, m := range g.mods {
			if isLibc(m) {
				continue
			}
			for _, name := range m.sum.Names {
				id, ok := g.syms.ids[name]
				if !ok || int(id) >= len(g.by) {
					continue
				}
				for _, e := range g.by[id] { // of its own, too
					g.asked[id] = true
					g.mark(e, nowhere)
				}
			}
		}
		g.drain()
	}
	for _, name := range g.said.names {
		if id, ok := g.syms.ids[name]; ok && int(id) < len(g.by) {
			g.asked[id] = true
			for _, e := range g.by[id] {
				g.mark(e, nowhere)
			}
		}
	}
	g.drain()
	for g.unlock() {
		g.drain()
	}
}

var dlsym = set(slices.Collect(maps.Keys(lookups))...)

// scripted tells whether live code makes calls that scripts give the number of.
func (g *graph) scripted() bool {
	for i, m := range g.mods {
		for k := range m.sum.Funcs {
			if g.live[i][k] && slices.ContainsFunc(m.sum.Funcs[k].Sites, func(s site) bool { return s.Reason == scripted }) {
				return true
			}
		}
	}
	return false
}

// imported tells whether live code uses a symbol of another file.
func (g *graph) imported(names map[string]bool) bool {
	for name := range names {
		if id, ok := g.syms.ids[name]; ok && int(id) < len(g.used) && g.used[id] != nowhere {
			return true
		}
	}
	return false
}

// call is one system call that a program can make.
type call struct {
	Name   string
	Origin string
}

// calls lists the live sites of the closure.
func (g *graph) calls(arch string) (calls []call, unresolved []unresolved) {
	byName := map[string]bool{}
	for _, c := range g.said.calls {
		byName[c.Name] = true
	}
	calls = append(calls, g.said.calls...)
	unresolved = append(unresolved, g.said.unresolved...)
	for i, m := range g.mods {
		for _, s := range m.sum.Trouble {
			unresolved = append(unresolved, unresolvedSite(m.path, s))
		}
		for k := range m.sum.Funcs {
			if !g.live[i][k] {
				continue
			}
			for _, s := range m.sum.Funcs[k].Sites {
				if s.Reason == scripted && g.read {
					continue // g.said has what the scripts do
				}
				if s.Reason != "" {
					unresolved = append(unresolved, unresolvedSite(m.path, s))
					continue
				}
				name, ok := sysno.Name(arch, int(s.Nr))
				if !ok {
					continue // no such call: the kernel answers ENOSYS whatever the filter says
				}
				if !byName[name] && g.counts(node{int32(i), int32(k)}, name) {
					byName[name] = true
					calls = append(calls, call{name, g.origin(node{int32(i), int32(k)}, s)})
				}
			}
		}
	}
	return calls, unresolved
}

type unresolved struct {
	File   string
	Addr   uint64
	Reason string
}

func unresolvedSite(file string, s site) unresolved { return unresolved{file, s.Addr, s.Reason} }

// origin says how a program comes to a site: the last of its own functions on
// the way, and the function of the library that makes the call.
func (g *graph) origin(n node, s site) string {
	m := g.mods[n.mod]
	if n.mod == 0 {
		return fmt.Sprintf("%s+%#x", m.path, s.Addr)
	}
	// Walk back to the program, remembering where its libraries were entered.
	enter, at := n, n
	for range 10_000 {
		if at.mod == 0 {
			f := &g.mods[0].sum.Funcs[at.fn]
			via := path.Base(g.mods[enter.mod].path)
			if name := g.mods[enter.mod].sum.Funcs[enter.fn].Name; name != "" {
				via += " " + name
			}
			if enter.mod != n.mod {
				via += " → " + path.Base(m.path)
			}
			return fmt.Sprintf("%s+%#x → %s+%#x", g.mods[0].path, f.Addr, via, s.Addr)
		}
		enter = at
		p := g.parent[at.mod][at.fn]
		if p == nowhere {
			break
		}
		at = p
	}
	name := ""
	if f := m.sum.Funcs[n.fn].Name; f != "" {
		name = " " + f
	}
	return fmt.Sprintf("%s → %s%s+%#x", g.mods[0].path, path.Base(m.path), name, s.Addr)
}
