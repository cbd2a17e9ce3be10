package seccompgen

import (
	"fmt"
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
}

type node struct{ mod, fn int32 }

// graph is the closure of one program, linked.
type graph struct {
	mods   []*module
	by     map[string][]node // exports
	live   [][]bool
	parent map[node]node
	queue  []node
}

func link(mods []*module) *graph {
	g := &graph{mods: mods, by: map[string][]node{}, parent: map[node]node{}}
	for i, m := range mods {
		for _, e := range m.sum.Exports {
			g.by[e.Name] = append(g.by[e.Name], node{int32(i), e.Func})
		}
		g.live = append(g.live, make([]bool, len(m.sum.Funcs)))
	}
	return g
}

func (g *graph) mark(n, from node) {
	if n.fn < 0 || int(n.fn) >= len(g.live[n.mod]) || g.live[n.mod][n.fn] {
		return
	}
	g.live[n.mod][n.fn] = true
	g.queue = append(g.queue, n)
	if from.mod >= 0 {
		g.parent[n] = from
	}
}

func (g *graph) drain() {
	for len(g.queue) > 0 {
		n := g.queue[0]
		g.queue = g.queue[1:]
		f := &g.mods[n.mod].sum.Funcs[n.fn]
		for _, c := range f.Calls {
			g.mark(node{n.mod, c}, n)
		}
		for _, i := range f.Imports {
			for _, e := range g.by[g.mods[n.mod].sum.Imports[i]] {
				g.mark(e, n)
			}
		}
	}
}

// run marks what can run: what the program starts first, so that origins name
// it, then what loading the libraries runs.
func (g *graph) run() {
	none := node{-1, -1}
	for i, m := range g.mods {
		if i == 0 || m.sum.Entry >= 0 && i == 1 { // the program and its interpreter
			g.mark(node{int32(i), m.sum.Entry}, none)
		}
		if i == 0 {
			for _, r := range m.sum.Roots {
				g.mark(node{0, r}, none)
			}
			g.drain()
		}
	}
	for i, m := range g.mods {
		for _, r := range m.sum.Roots {
			g.mark(node{int32(i), r}, none)
		}
		if m.exported {
			for _, e := range m.sum.Exports {
				g.mark(node{int32(i), e.Func}, none)
			}
		}
	}
	g.drain()
	// Functions looked up by a name that is in the data of who looks.
	if g.imported(dlsym) {
		for i, m := range g.mods {
			if isLibc(m) {
				continue
			}
			for _, name := range m.sum.Names {
				for _, e := range g.by[name] {
					if int(e.mod) != i {
						g.mark(e, none)
					}
				}
			}
		}
		g.drain()
	}
}

var dlsym = set("dlsym", "dlvsym")

// imported tells whether live code uses a symbol of another file.
func (g *graph) imported(names map[string]bool) bool {
	for i, m := range g.mods {
		want := map[int32]bool{}
		for k, name := range m.sum.Imports {
			if names[name] {
				want[int32(k)] = true
			}
		}
		if len(want) == 0 {
			continue
		}
		for k := range m.sum.Funcs {
			if g.live[i][k] && slices.ContainsFunc(m.sum.Funcs[k].Imports, func(s int32) bool { return want[s] }) {
				return true
			}
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
	for i, m := range g.mods {
		for _, s := range m.sum.Trouble {
			unresolved = append(unresolved, unresolvedSite(m.path, s))
		}
		for k := range m.sum.Funcs {
			if !g.live[i][k] {
				continue
			}
			for _, s := range m.sum.Funcs[k].Sites {
				if s.Reason != "" {
					unresolved = append(unresolved, unresolvedSite(m.path, s))
					continue
				}
				name, ok := sysno.Name(arch, int(s.Nr))
				if !ok {
					continue // no such call: the kernel answers ENOSYS whatever the filter says
				}
				if !byName[name] {
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
		p, ok := g.parent[at]
		if !ok {
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
