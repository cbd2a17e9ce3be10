package seccompgen

import (
	"path/filepath"
	"slices"
	"testing"
)

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
