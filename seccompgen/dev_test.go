package seccompgen

import (
	"context"
	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
	"os"
	"strings"
	"testing"
	"time"
)

func TestDevSummary(t *testing.T) {
	for _, file := range strings.Fields(os.Getenv("DEVM")) {
		fh, err := os.Open(file)
		if err != nil {
			t.Log(err)
			continue
		}
		st, _ := fh.Stat()
		t0 := time.Now()
		f, err := elfread.Read(fh, st.Size())
		if err != nil {
			t.Error(file, err)
			continue
		}
		t1 := time.Now()
		s, err := summarise(context.Background(), f, map[string][]location{"syscall": {reg(x86.RDI)}})
		if err != nil {
			t.Error(file, err)
			continue
		}
		t2 := time.Now()
		n, nr, sites := 0, map[int32]bool{}, 0
		for _, fn := range s.Funcs {
			for _, x := range fn.Sites {
				sites++
				if x.Reason != "" {
					n++
					if n < 30 {
						t.Logf("  unresolved %#x in %s (%#x): %s", x.Addr, fn.Name, fn.Addr, x.Reason)
					}
				} else {
					nr[x.Nr] = true
				}
			}
		}
		t.Logf("%s: read %v sum %v funcs %d exact %d roots %d sites %d unresolved %d numbers %d go %v wrappers %v strings %d", file, t1.Sub(t0), t2.Sub(t1), len(s.Funcs), len(f.Frames), len(s.Roots), sites, n, len(nr), s.Go, s.Wrappers, len(s.Strings))
	}
}

func TestDevAnalyse(t *testing.T) {
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range strings.Fields(os.Getenv("DEV")) {
		t0 := time.Now()
		res, err := Analyse(context.Background(), root, Request{Programs: []Program{{Path: f, Phase: record.Serving}}}, nil)
		if err != nil {
			t.Error(f, err)
			continue
		}
		t.Logf("%s: %d calls, %d unresolved, %d libs, %v", f, len(res.Calls), len(res.Unresolved), len(res.Libraries), time.Since(t0))
		for _, u := range res.Unresolved {
			t.Logf("   %s %#x %s", u.File, u.Address, u.Reason)
		}
		if os.Getenv("DEVV") != "" {
			for _, c := range res.Calls {
				t.Log("   ", c.Name, c.Origins[0].At)
			}
		}
	}
}
