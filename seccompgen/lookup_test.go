package seccompgen

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// A program finds its own functions by name, whether the name is a constant or
// comes from a table.
func TestLooksUpItself(t *testing.T) {
	cc := need.Program(t, "gcc")
	for how, lookup := range map[string]string{"a constant": `"hidden_a"`, "a table": `names[argc & 1]`} {
		t.Run(how, func(t *testing.T) {
			dir := t.TempDir()
			src, bin := filepath.Join(dir, "p.c"), filepath.Join(dir, "p")
			code := `#define _GNU_SOURCE
#include <dlfcn.h>
#include <unistd.h>
#include <sys/syscall.h>
long hidden_a(void) { return syscall(SYS_mincore, 0, 0, 0); }
long hidden_b(void) { return syscall(SYS_mincore, 0, 0, 0); }
const char *names[] = {"hidden_b", "hidden_a"};
int main(int argc, char **argv) { long (*f)(void) = (long (*)(void))dlsym(RTLD_DEFAULT, ` + lookup + `); return f ? f() & 0 : 1; }`
			if err := os.WriteFile(src, []byte(code), 0o600); err != nil {
				t.Fatal(err)
			}
			compile(t, cc, "-O2", "-rdynamic", "-o", bin, src)
			root, err := rootfs.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			res, err := Analyse(t.Context(), root, Request{Programs: []Program{{Path: bin, Phase: record.Serving}}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.ContainsFunc(res.Calls, func(c plan.Syscall) bool { return c.Name == "mincore" }) {
				t.Error("what it looks up is not found")
			}
		})
	}
}

// The names that libcrypto looks up are known from its code, and no function of
// the C library is among them.
func TestOpenSSLLooksUp(t *testing.T) {
	files, _ := filepath.Glob("/usr/lib/x86_64-linux-gnu/libcrypto.so.*[0-9]")
	tested := 0
	for _, file := range files {
		b := swept(t, file)
		if !slices.Contains(b.out.Imports, "dlsym") {
			continue
		}
		tested++
		names, ok := b.lookedUp()
		if !ok {
			t.Errorf("%s: not known", file)
		}
		for _, want := range []string{"OSSL_provider_init", "bind_engine", "v_check"} {
			if !slices.Contains(names, want) {
				t.Errorf("%s looks up %v, %s is missing", file, names, want)
			}
		}
		if len(names) > 10 || slices.Contains(names, "socket") {
			t.Errorf("%s looks up %v", file, names)
		}
	}
	if tested == 0 {
		t.Error("no libcrypto is installed")
	}
}
