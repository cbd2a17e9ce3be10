package seccompgen

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// However a program gets at a table of functions, what the table holds is
// found; a table that nothing alive refers to adds nothing.
func TestPointerTables(t *testing.T) {
	cc := need.Program(t, "gcc")
	src, err := os.ReadFile("testdata/tables.c")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]bool{}
	for _, m := range regexp.MustCompile(`(?m)^CALL\((\w+)\)`).FindAllStringSubmatch(string(src), -1) {
		want[m[1]] = true
	}
	delete(want, "reboot")
	for _, flags := range []string{
		"-O0", "-O1", "-O2", "-O3", "-Os", "-O2 -fno-plt", "-O3 -march=haswell", "-O2 -static-pie", "-O2 -no-pie", "-O2 -static", "-O2 -Wl,-z,pack-relative-relocs",
		"-O2 -fdata-sections -ffunction-sections -Wl,--gc-sections", "-O2 -flto", "-O2 -DLIBRARY", "-O0 -DLIBRARY", "-O3 -DLIBRARY",
	} {
		t.Run(flags, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			bin := filepath.Join(dir, "tables")
			args := append(strings.Fields(flags), "-w", "-o", bin, "testdata/tables.c")
			if strings.Contains(flags, "LIBRARY") {
				lib := filepath.Join(dir, "libtables.so")
				compile(t, cc, append(strings.Fields(flags), "-w", "-fPIC", "-shared", "-o", lib, "testdata/tables.c")...)
				main := filepath.Join(dir, "main.c")
				if err := os.WriteFile(main, []byte("long used(void); int main(void) { return used(); }"), 0o600); err != nil {
					t.Fatal(err)
				}
				args = []string{"-o", bin, main, lib, "-Wl,-rpath," + dir}
			}
			compile(t, cc, args...)
			if out, err := exec.CommandContext(t.Context(), bin).CombinedOutput(); err != nil {
				t.Fatalf("run it: %v: %s", err, out)
			}
			root, err := rootfs.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			res, err := Analyse(t.Context(), root, Request{Programs: []Program{{Path: bin, Phase: record.Serving}}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]bool{}
			for _, c := range res.Calls {
				got[c.Name] = true
			}
			for name := range want {
				if !got[name] {
					t.Errorf("%s is not found", name)
				}
			}
			// Of programs at a fixed address all tables count; without optimisation
			// neighbours are taken for one object.
			whole := strings.Contains(flags, "-no-pie") || flags == "-O2 -static" || strings.HasPrefix(flags, "-O0")
			if got["reboot"] && !whole {
				t.Error("a table that nothing refers to counts")
			}
			if len(res.Unresolved) > 0 {
				t.Errorf("unresolved: %v", res.Unresolved)
			}
		})
	}
}

func compile(t *testing.T, cc string, args ...string) {
	t.Helper()
	if out, err := exec.CommandContext(t.Context(), cc, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", cc, args, err, out)
	}
}
