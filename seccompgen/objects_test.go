package seccompgen

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/elfread"
)

// Real libraries whose objects are known, because their symbols are installed
// beside them, are never split.
func TestObjects(t *testing.T) {
	libc := false
	total := 0
	for _, lib := range withSymbols(t) {
		b := swept(t, lib.file)
		if !b.byObject {
			t.Errorf("%s: objects are not told apart", lib.file)
			continue
		}
		starts := b.starts()
		found := 0
		for _, s := range lib.objects {
			k := sort.Search(len(b.slotsOf), func(i int) bool { return b.slotsOf[i].at >= s.Value })
			if s.Size < 8 || k == len(b.slotsOf) || b.slotsOf[k].at >= s.Value+s.Size || vtable(s.Name) {
				continue
			}
			found++
			for ; k < len(b.slotsOf) && b.slotsOf[k].at < s.Value+s.Size; k++ {
				p := &b.slotsOf[k]
				itself := p.to >= s.Value && p.to < s.Value+s.Size // a pointer to its own object adds nothing
				if starts.object(p.at) != starts.object(s.Value) && !itself {
					t.Errorf("%s: %s+%#x of %#x bytes is apart from its start", lib.file, s.Name, p.at-s.Value, s.Size)
					break
				}
			}
		}
		total += found
		libc = libc || strings.HasSuffix(lib.file, "/libc.so.6")
	}
	t.Logf("%d objects", total)
	if !libc || total < 200 {
		t.Errorf("%d objects, C library among them: %v; symbols are missing", total, libc)
	}
}

// vtable tells whether an object is one that code enters in the middle, and
// uses from there on.
func vtable(name string) bool {
	return slices.ContainsFunc([]string{"_ZTV", "_ZTC", "_ZTT"}, func(p string) bool { return strings.HasPrefix(name, p) })
}

func swept(t *testing.T, file string) *builder {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	ef, err := elfread.Read(f, fi.Size())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(ef.Close)
	b := newBuilder(t.Context(), ef, map[string][]location{})
	if err := b.sweepAll(); err != nil {
		t.Fatal(err)
	}
	b.findNoReturn()
	b.roots()
	return b
}

type symbolised struct {
	file               string
	objects, functions []elf.Symbol
}

// withSymbols finds the libraries of the system that have their symbols
// installed in a file of their own.
func withSymbols(t *testing.T) []symbolised {
	t.Helper()
	need.File(t, "/usr/lib/debug/.build-id") // package libc6-dbg
	var out []symbolised
	seen := map[string]bool{}
	err := filepath.WalkDir("/usr/lib/x86_64-linux-gnu", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() || !strings.Contains(d.Name(), ".so") {
			return err
		}
		objects, functions, err := symbolsOf(p)
		if err != nil || seen[p] {
			return nil // no library, or no symbols of it
		}
		seen[p] = true
		out = append(out, symbolised{p, objects, functions})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func symbolsOf(file string) (objects, functions []elf.Symbol, err error) {
	e, err := elf.Open(file)
	if err != nil {
		return nil, nil, err
	}
	defer e.Close()
	note := e.Section(".note.gnu.build-id")
	if note == nil || e.Machine != elf.EM_X86_64 {
		return nil, nil, errors.New("no build id")
	}
	id, err := note.Data()
	if err != nil || len(id) < 36 {
		return nil, nil, errors.New("no build id")
	}
	name := fmt.Sprintf("%x", id[16:])
	g, err := elf.Open(filepath.Join("/usr/lib/debug/.build-id", name[:2], name[2:]+".debug"))
	if err != nil {
		return nil, nil, err
	}
	defer g.Close()
	syms, err := g.Symbols()
	if err != nil {
		return nil, nil, err
	}
	for _, s := range syms {
		switch elf.ST_TYPE(s.Info) {
		case elf.STT_OBJECT:
			objects = append(objects, s)
		case elf.STT_FUNC, elf.STT_GNU_IFUNC:
			functions = append(functions, s)
		}
	}
	return objects, functions, nil
}
