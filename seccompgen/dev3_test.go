package seccompgen

import (
	"context"
	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
	"os"
	"strings"
	"testing"
)

func TestDevNames(t *testing.T) {
	for _, file := range strings.Fields(os.Getenv("DEVM")) {
		fh, _ := os.Open(file)
		st, _ := fh.Stat()
		f, err := elfread.Read(fh, st.Size())
		if err != nil {
			t.Fatal(err)
		}
		s, err := summarise(context.Background(), f, map[string][]location{"syscall": {reg(x86.RDI)}})
		if err != nil {
			t.Fatal(err)
		}
		for _, fn := range s.Funcs {
			for _, x := range fn.Sites {
				if x.Reason != "" {
					t.Logf("%#x in %s (%#x): %s", x.Addr, fn.Name, fn.Addr, x.Reason)
				}
			}
		}
		t.Log(file, s.Wrappers)
	}
}
