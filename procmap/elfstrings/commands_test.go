package elfstrings

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/declarun/declarun/integration/need"
)

func TestCommandLinesAndStateDirectoriesAreFoundAmongStrings(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	source := filepath.Join(dir, "a.c")
	if err := os.WriteFile(source, []byte(`
#include <stdio.h>
int main(int c, char **v) {
	puts("sort order - none");
	puts("file %s not found");
	puts("/var/lib/nginx/body");
	puts("/var/lib/x y");
	return popen(c > 1 ? "locale -a" : "gzip --stdout", "r") == 0;
}`), 0o644); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "a")
	if out, err := exec.Command(gcc, "-O1", "-o", file, source).CombinedOutput(); err != nil {
		t.Fatalf("compile: %v: %s", err, out)
	}
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Read(f, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"gzip", "locale"}; !slices.Equal(p.Commands, want) {
		t.Errorf("commands %q, want %q", p.Commands, want)
	}
	if want := []string{"/var/lib/nginx/body"}; !slices.Equal(p.State, want) {
		t.Errorf("state %q, want %q", p.State, want)
	}
}
