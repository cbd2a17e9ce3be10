package elfstrings

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/procmap/internal/elftest"
)

func TestRead(t *testing.T) {
	all := map[string]bool{"cat": true, "postgres": true, "two words": true, "-c": true, "": true, strings.Repeat("x", 100): true}
	tests := []struct {
		claim        string
		in           elftest.Program
		shell, exec  []string
		paths, names []string
		interp       string
	}{
		{"a program without exec keeps its strings to itself",
			elftest.Program{Interpreter: "/lib64/ld.so", Imports: []string{"puts"}, Strings: []string{"/bin/cat", "cat"}},
			nil, nil, nil, nil, "/lib64/ld.so"},
		{"popen makes paths and names count",
			elftest.Program{Interpreter: "/ld", Imports: []string{"popen"}, Strings: []string{"\"/opt/x/server\" --check", "postgres", "two words"}},
			[]string{"popen"}, nil, []string{"/opt/x/server"}, []string{"postgres"}, "/ld"},
		{"the exec family does too",
			elftest.Program{Imports: []string{"execvp", "posix_spawn"}, Strings: []string{"/usr/sbin/sendmail -t"}},
			nil, []string{"execvp", "posix_spawn"}, []string{"/usr/sbin/sendmail"}, nil, ""},
		{"a Go program's strings have no end: what exists counts",
			elftest.Program{Go: "xx/usr/bin/gitfoo/bin/true"},
			nil, []string{"syscall.forkExec"}, []string{"/usr/bin/git"}, nil, ""},
		{"a static program with a shell's path may call system",
			elftest.Program{Strings: []string{"-c", "/bin/sh"}},
			[]string{"/bin/sh (static program)"}, []string{"/bin/sh (static program)"}, []string{"/bin/sh"}, []string{"-c"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			p, err := Read(bytes.NewReader(elftest.Build(tt.in)), all, func(s string) bool { return s == "/usr/bin/git" })
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(p.Shell, tt.shell) || !slices.Equal(p.Exec, tt.exec) || !slices.Equal(p.Paths, tt.paths) ||
				!slices.Equal(p.Names, tt.names) || p.Interpreter != tt.interp {
				t.Errorf("got %+v", p)
			}
		})
	}
}

func TestRealProgram(t *testing.T) {
	f, err := os.Open("/proc/self/exe") // a Go test binary
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p, err := Read(f, nil, nil)
	if err != nil || !p.Go || !p.Starts() {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestNotELF(t *testing.T) {
	for _, in := range []string{"", "\x7fEL", "#!/bin/sh\n"} {
		if _, err := Read(bytes.NewReader([]byte(in)), nil, nil); !errors.Is(err, ErrNotELF) {
			t.Errorf("%q: got %v", in, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add(elftest.Build(elftest.Program{Interpreter: "/lib/ld.so", Imports: []string{"popen", "execve"}, Strings: []string{"/bin/sh", "x"}}))
	f.Add(elftest.Build(elftest.Program{Go: "/usr/bin/git"}))
	f.Add([]byte("\x7fELF\x02\x01\x01"))
	f.Fuzz(func(t *testing.T, data []byte) {
		p, err := Read(bytes.NewReader(data), map[string]bool{"x": true, "git": true, string(data): true}, func(string) bool { return true })
		if err == nil && len(p.Paths)+len(p.Names) > 2*maxFound {
			t.Error("more was found than may be")
		}
	})
}
