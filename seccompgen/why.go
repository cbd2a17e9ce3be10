package seccompgen

import (
	"cmp"
	"context"
	"debug/elf"
	"fmt"
	"path"
	"slices"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/rootfs"
)

// Why gives, for every program of the request that can make a system call, the
// way to it with the fewest functions; the shortest way first. It does not use
// kept results, since those hold no ways, but what is kept of single files.
//
// A way that begins in the program's own code is preferred to one that begins
// with what loading one of its libraries makes live, even where that is
// shorter: it is what a person who knows the program looks for. Among the ways
// from one beginning no other has fewer functions.
func Why(ctx context.Context, root *rootfs.Root, req Request, cache Cache, name string) ([]plan.Way, error) {
	ways, err := Ways(ctx, root, req, cache, name)
	return ways[name], err
}

// Ways is Why for many system calls at once, by their names.
func Ways(ctx context.Context, root *rootfs.Root, req Request, cache Cache, names ...string) (map[string][]plan.Way, error) {
	if cache == nil {
		cache = NoCache{}
	}
	r := newReader(root)
	st, out, err := settle(ctx, r, req, cache)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if _, ok := sysno.Number(out.Machine, name); !ok {
			return nil, fmt.Errorf("look for %s: no such system call", name)
		}
	}
	l := newLoader(ctx, r, st, req.Env)
	defer st.wait()
	ways := map[string][]plan.Way{}
	for _, p := range req.Programs {
		h, err := st.head(p.Path)
		if err != nil {
			return nil, &NotProgram{p.Path, err, "name a program, or the interpreter of the script"}
		}
		if h.Class == elf.ELFCLASS32 {
			continue
		}
		l.req, l.running = &req, &p
		g, err := l.graph(p.Path, req.ExtraLibraries)
		if err != nil {
			return nil, err
		}
		for _, name := range names {
			nr, _ := sysno.Number(out.Machine, name)
			w, ok := g.way(int32(nr), name)
			if !ok && slices.Contains(always, name) {
				w, ok = plan.Way{Start: "every program: the kernel makes it at the return of a signal handler, or a runtime to end"}, true
			}
			if ok {
				w.Program, w.Phase = p.Path, p.Phase
				ways[name] = append(ways[name], w)
			}
		}
	}
	for _, w := range ways {
		slices.SortStableFunc(w, func(a, b plan.Way) int { return cmp.Compare(len(a.Steps), len(b.Steps)) })
	}
	return ways, nil
}

// IsCall tells whether a word names a system call of an architecture.
func IsCall(goarch, name string) bool {
	_, ok := sysno.Number(goarch, name)
	return ok
}

// search goes through a linked closure, nearest functions first.
type search struct {
	g    *graph
	name string // of the call
	from [][]node
	seen [][]bool
	// also are edges that only the graph's own record of parents shows.
	also  map[node][]node
	queue []node
}

// successors lists what a function leads to.
func (s *search) successors(n node, each func(node)) {
	f := &s.g.mods[n.mod].sum.Funcs[n.fn]
	for _, c := range f.Calls {
		if _, closed := s.g.closed(n, c); !closed {
			each(node{n.mod, c})
		}
	}
	for _, i := range f.Imports {
		if s.g.barred(n, i) {
			continue
		}
		for _, e := range s.g.by[s.g.link[n.mod].imports[i]] {
			each(e)
		}
	}
	for _, to := range s.also[n] {
		each(to)
	}
}

func (s *search) reach(n, from node) {
	if n.fn < 0 || !s.g.isLive(n) || s.seen[n.mod][n.fn] {
		return
	}
	s.seen[n.mod][n.fn] = true
	s.from[n.mod][n.fn] = from
	s.queue = append(s.queue, n)
}

// first goes on from what is queued until a function makes the call.
func (s *search) first(nr int32) (node, uint64, bool) {
	for k := 0; k < len(s.queue); k++ {
		n := s.queue[k]
		for _, site := range s.g.mods[n.mod].sum.Funcs[n.fn].Sites {
			if site.Reason == "" && site.Nr == nr && s.g.counts(n, s.name) {
				return n, site.Addr, true
			}
		}
		s.successors(n, func(to node) { s.reach(to, n) })
	}
	s.queue = s.queue[:0]
	return nowhere, 0, false
}

func (g *graph) isLive(n node) bool {
	return int(n.fn) < len(g.live[n.mod]) && g.live[n.mod][n.fn]
}

// way is the shortest way to a live site of a call.
func (g *graph) way(nr int32, name string) (plan.Way, bool) {
	s := &search{g: g, name: name, also: map[node][]node{}}
	for i, m := range g.mods {
		s.from = append(s.from, make([]node, len(m.sum.Funcs)))
		s.seen = append(s.seen, make([]bool, len(m.sum.Funcs)))
		for k := range m.sum.Funcs {
			if n := (node{int32(i), int32(k)}); g.isLive(n) {
				if p := g.parent[i][k]; p != nowhere {
					s.also[p] = append(s.also[p], n)
				}
			}
		}
	}
	own := g.mods[0].sum
	s.reach(node{0, own.Entry}, nowhere)
	for _, r := range own.Roots {
		s.reach(node{0, r}, nowhere)
	}
	at, site, ok := s.first(nr)
	if !ok { // then what libraries bring along
		for i, m := range g.mods[1:] {
			i := int32(i + 1)
			s.reach(node{i, m.sum.Entry}, nowhere)
			for _, r := range m.sum.Roots {
				s.reach(node{i, r}, nowhere)
			}
			for k := range m.sum.Funcs {
				if g.parent[i][k] == nowhere {
					s.reach(node{i, int32(k)}, nowhere)
				}
			}
		}
		at, site, ok = s.first(nr)
	}
	if !ok { // and whatever else is live
		for i, m := range g.mods {
			for k := range m.sum.Funcs {
				s.reach(node{int32(i), int32(k)}, nowhere)
			}
		}
		at, site, ok = s.first(nr)
	}
	if !ok {
		return plan.Way{}, false
	}
	w := plan.Way{Site: site, Call: int(nr)}
	for n := at; n != nowhere; n = s.from[n.mod][n.fn] {
		f := &g.mods[n.mod].sum.Funcs[n.fn]
		step := plan.Step{File: g.mods[n.mod].path, Func: f.Name, Addr: f.Addr, Data: f.Data}
		if from := s.from[n.mod][n.fn]; from == nowhere {
			w.Start = g.start(n)
		} else if name := g.called(from, n); name != "" {
			step.Func = name
		}
		w.Steps = append(w.Steps, step)
	}
	slices.Reverse(w.Steps)
	return w, true
}

// called is the name by which a function uses one of another file: of several
// for the same code, the one that a person finds in the source.
func (g *graph) called(from, to node) string {
	for _, i := range g.mods[from.mod].sum.Funcs[from.fn].Imports {
		if slices.Contains(g.by[g.link[from.mod].imports[i]], to) {
			return g.mods[from.mod].sum.Imports[i]
		}
	}
	return ""
}

// start says what makes a function live that no other leads to.
func (g *graph) start(n node) string {
	m := g.mods[n.mod]
	name := path.Base(m.path)
	switch {
	case n.mod == 0 && n.fn == m.sum.Entry:
		return "the program starts here"
	case n.mod == 0 && m.sum.Go:
		return "every function of a Go program counts"
	case n.mod == 0:
		return "the program's data points here, or starting it runs this"
	case n.fn == m.sum.Entry && m.sum.Entry >= 0 && n.mod == 1:
		return "the kernel starts the program with its loader, " + name
	case slices.Contains(m.sum.Roots, n.fn):
		return "data of " + name + ", which the program loads, points here, or loading it runs this"
	case m.exported:
		return "the program may open " + name + " by name, and look up what it exports"
	}
	return "a function that is looked up by name (dlsym)"
}
