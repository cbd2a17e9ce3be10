package seccompgen

import (
	"cmp"
	"context"
	"debug/elf"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
)

// sitesOf lists every site of a summary.
func sitesOf(s *summary) []site {
	var out []site
	for i := range s.Funcs {
		out = append(out, s.Funcs[i].Sites...)
	}
	slices.SortFunc(out, func(a, b site) int { return cmp.Or(cmp.Compare(a.Addr, b.Addr), cmp.Compare(a.Nr, b.Nr)) })
	return slices.Compact(out)
}

// What is said of a very large library must be what the whole analysis would
// say, but for which imports are used: here of libraries small enough for both.
func TestCoarseAgreesWithWhole(t *testing.T) {
	dirs := []string{"/lib/x86_64-linux-gnu", "/lib64", "/usr/lib"}
	if d := os.Getenv("DECLARUN_TEST_LIBRARIES"); d != "" {
		dirs = filepath.SplitList(d)
	}
	judged, withSites := 0, 0
	seen := map[string]bool{}
	for _, d := range dirs {
		files, _ := filepath.Glob(filepath.Join(d, "*.so*"))
		for _, file := range files {
			file, err := filepath.EvalSymlinks(file)
			if err != nil || seen[file] {
				continue
			}
			seen[file] = true
			if info, err := os.Stat(file); err != nil || info.Size() > 8<<20 && os.Getenv("DECLARUN_TEST_LIBRARIES") == "" {
				continue
			}
			f, err := os.Open(file)
			if err != nil {
				continue
			}
			info, _ := f.Stat()
			ef, err := elfread.Read(f, info.Size())
			f.Close()
			if err != nil {
				continue
			}
			defer ef.Close()
			if ef.Machine != elf.EM_X86_64 {
				continue
			}
			known := map[string][]location{"syscall": {reg(x86.RDI)}}
			c := newBuilder(context.Background(), ef, known)
			c.coarseSize = 0
			ok, err := c.coarse()
			if err != nil || !ok {
				continue
			}
			w := newBuilder(context.Background(), ef, known)
			if err := w.whole(); err != nil {
				t.Fatal(err)
			}
			judged++
			a, b := sitesOf(c.out), sitesOf(w.out)
			if len(b) > 0 {
				withSites++
			}
			if !slices.Equal(a, b) {
				t.Errorf("%s: as a whole %v, function by function %v", file, a, b)
			}
			if len(c.out.Wrappers)+len(w.out.Wrappers) != 0 {
				t.Errorf("%s: functions that take a call number: as a whole %v, function by function %v", file, c.out.Wrappers, w.out.Wrappers)
			}
			// Everything live in the one is live in the other.
			one := link(newSymbols(), []*module{{path: file, sum: c.out, exported: true}}, nil)
			one.run()
			other := link(newSymbols(), []*module{{path: file, sum: w.out, exported: true}}, nil)
			other.run()
			for name, id := range other.syms.ids {
				if other.used[id] == nowhere {
					continue
				}
				if k, ok := one.syms.ids[name]; !ok || one.used[k] == nowhere {
					t.Errorf("%s: import %s is used, and not as a whole", file, name)
				}
			}
			x, xu := one.calls("amd64")
			y, yu := other.calls("amd64")
			has := map[string]bool{}
			for _, c := range x {
				has[c.Name] = true
			}
			for _, c := range y {
				if !has[c.Name] {
					t.Errorf("%s: call %s is missed as a whole", file, c.Name)
				}
			}
			if len(yu) > len(xu) {
				t.Errorf("%s: unresolved %v, as a whole %v", file, yu, xu)
			}
		}
	}
	t.Logf("%d libraries, %d of them make system calls", judged, withSites)
	if judged == 0 {
		t.Skip("no x86-64 library where Debian has them")
	}
}
