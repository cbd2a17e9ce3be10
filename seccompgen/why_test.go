package seccompgen

import (
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// closureOf links summaries as if they were the files of a program.
func closureOf(sums ...*summary) *graph {
	var mods []*module
	for i, s := range sums {
		mods = append(mods, &module{path: "/" + string(rune('a'+i)), sum: s})
	}
	g := link(newSymbols(), mods, nil)
	g.run()
	return g
}

func route(w plan.Way) string {
	var out []string
	for _, s := range w.Steps {
		out = append(out, s.File+" "+s.Func)
	}
	return strings.Join(out, ", ")
}

func TestWays(t *testing.T) {
	const nr = 7
	makes := []site{{Addr: 0x99, Nr: nr}}
	// The first call of start leads the long way round.
	program := func() *summary {
		return &summary{Entry: 0, Roots: []int32{6}, Imports: []string{"take"}, Funcs: []function{
			{Name: "start", Calls: []int32{1, 4}}, {Name: "long1", Calls: []int32{2}}, {Name: "long2", Calls: []int32{3}}, {Name: "long3", Imports: []int32{0}},
			{Name: "short", Calls: []int32{5}}, {Name: "other", Imports: []int32{0}}, {Name: "table"}, {Name: "dead", Sites: makes},
		}}
	}
	library := func() *summary {
		return &summary{Entry: -1, Exports: []export{{"take", 0}, {"unused", 2}}, Funcs: []function{{Name: "__take", Calls: []int32{1}}, {Sites: makes}, {Name: "unused", Sites: []site{{Nr: 8}}}}}
	}
	for _, row := range []struct {
		claim  string
		change func(program, library *summary)
		want   string
		start  string
	}{
		{"the fewest functions, whatever was found first; the name that is called, and none where there is none",
			func(p, l *summary) {}, "/a start, /a short, /a other, /b take, /b ", "starts here"},
		{"a function that data points to is a beginning as well",
			func(p, l *summary) { p.Funcs[6].Imports = []int32{0} }, "/a table, /b take, /b ", "data points here"},
		{"a library's own beginning is shorter, but is not what a person looks for",
			func(p, l *summary) { l.Roots = []int32{1} }, "/a start, /a short, /a other, /b take, /b ", "starts here"},
		{"unless there is no other way", func(p, l *summary) { l.Roots, p.Imports = []int32{1}, []string{"nothing"} }, "/b ", "data of b"},
		{"a site whose number is not proved is none", func(p, l *summary) { l.Funcs[1].Sites = []site{{Nr: nr, Reason: "computed"}} }, "", ""},
		{"nor is one that nothing leads to", func(p, l *summary) { l.Funcs[1].Sites = nil }, "", ""},
		{"the one program itself", func(p, l *summary) { p.Funcs[0].Sites = makes }, "/a start", "starts here"},
		{"of a Go program every function counts", func(p, l *summary) { p.Go, p.Roots = true, []int32{3, 6} }, "/a long3, /b take, /b ", "every function"},
	} {
		p, l := program(), library()
		row.change(p, l)
		w, ok := closureOf(p, l).way(nr, "")
		if got := route(w); got != row.want || ok != (row.want != "") || !strings.Contains(w.Start, row.start) {
			t.Errorf("%s: %q (%s), want %q (%s)", row.claim, got, w.Start, row.want, row.start)
		}
		if ok && w.Site != 0x99 {
			t.Errorf("%s: site %#x", row.claim, w.Site)
		}
	}
}

// The length of the way is what relaxing every edge until nothing changes gives.
func TestWaysAreShortest(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	found := 0
	for range 300 {
		n := 2 + rnd.IntN(30)
		s := &summary{Entry: 0, Funcs: make([]function, n)}
		for i := range s.Funcs {
			for range rnd.IntN(3) {
				s.Funcs[i].Calls = append(s.Funcs[i].Calls, int32(rnd.IntN(n)))
			}
			if rnd.IntN(10) == 0 {
				s.Funcs[i].Sites = []site{{Nr: 1}}
			}
		}
		const far = 1 << 20
		dist := slices.Repeat([]int{far}, n)
		dist[0] = 1
		for range n {
			for i := range s.Funcs {
				for _, c := range s.Funcs[i].Calls {
					dist[c] = min(dist[c], dist[i]+1)
				}
			}
		}
		want := far
		for i := range s.Funcs {
			if len(s.Funcs[i].Sites) > 0 {
				want = min(want, dist[i])
			}
		}
		w, ok := closureOf(s).way(1, "")
		if ok != (want < far) || ok && len(w.Steps) != want {
			t.Fatalf("%d functions, want %d", len(w.Steps), want)
		}
		if ok {
			found++
		}
	}
	if found < 50 {
		t.Errorf("only %d of the graphs have a way", found)
	}
}

// What a real program is said to be allowed has a way, and nothing else has:
// the judge of the one is the other.
func TestWaysAreOfWhatIsAllowed(t *testing.T) {
	program, err := filepath.EvalSymlinks(need.Program(t, "env"))
	if err != nil {
		t.Fatal(err)
	}
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	req := Request{Programs: []Program{{Path: program, Phase: record.Serving}}}
	res, err := Analyse(t.Context(), root, req, nil)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, c := range res.Calls {
		allowed[c.Name] = true
	}
	cache, err := OpenDirCache(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"execve", "write", "openat", "mmap", "exit_group", "rt_sigreturn", "restart_syscall", "kexec_load", "bpf", "ptrace", "reboot"} {
		ways, err := Why(t.Context(), root, req, cache, name)
		if err != nil {
			t.Fatal(err)
		}
		if allowed[name] != (len(ways) == 1) {
			t.Errorf("%s: allowed %v, ways %+v", name, allowed[name], ways)
			continue
		}
		if len(ways) == 0 || len(ways[0].Steps) == 0 {
			continue
		}
		w := ways[0]
		if nr, _ := sysno.Number(res.Machine, name); w.Call != nr || w.Program != req.Programs[0].Path || w.Steps[0].File != w.Program && w.Start == "" {
			t.Errorf("%s: %+v", name, w)
		}
		if name == "execve" && (w.Steps[0].File != w.Program || !strings.HasPrefix(filepath.Base(w.Steps[len(w.Steps)-1].File), "libc.so")) {
			t.Errorf("execve is not made by the C library for the program: %s", route(w))
		}
	}
	if _, err := Why(t.Context(), root, req, nil, "no_such_call"); err == nil {
		t.Error("a call that does not exist is looked for")
	}
}
