package seccompgen_test

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// image makes a directory with a C library.
func image(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, file := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatalf("no C library where Debian has it: %v", err)
		}
		write(t, dir+file, string(b))
	}
	return dir
}

func write(t *testing.T, file, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

// What a host opens is found by what it exports, wherever it lies.
func TestExtensions(t *testing.T) {
	gcc := need.Program(t, "gcc")
	for _, row := range []struct {
		claim, program, source, path, entry string
		want                                bool
	}{
		{"a Python extension in a virtual environment", "usr/bin/python3.11", opener, "srv/venv/lib/m.cpython-311-x86_64-linux-gnu.so", "PyInit_m", true},
		{"a Python extension for every version", "usr/bin/python3.11", opener, "app/m.abi3.so", "PyInit_m", true},
		{"a Python extension for another version", "usr/bin/python3.11", opener, "srv/m.cpython-39-x86_64-linux-gnu.so", "PyInit_m", false},
		{"another's library among the distribution's", "usr/bin/python3.11", opener, "usr/lib/other/plugin.so", "other", false},
		{"a Python that was renamed", "opt/interpreter", opener + "int Py_BytesMain(void) { return 0; }", "srv/m.so", "PyInit_m", true},
		{"a Python extension and another program", "usr/bin/other", opener, "srv/m.so", "PyInit_m", false},
		{"a Python extension and a program that opens nothing", "usr/bin/python3.11", "int main(int c, char **v) { return 0; }", "srv/m.so", "PyInit_m", false},
		{"JNI", "opt/jdk/bin/java", opener, "opt/app/native/libx.so.1", "Java_org_example_X_run", true},
		{"a Node add-on", "usr/local/bin/node", opener, "usr/src/app/node_modules/x/build/Release/x.node", "napi_register_module_v1", true},
		{"an Erlang NIF", "usr/lib/erlang/bin/beam.smp", opener, "opt/rel/lib/x/priv/x.so", "nif_init", true},
		{"a Lua library", "usr/bin/lua5.4", opener, "usr/local/lib/lua/5.4/x.so", "luaopen_x", true},
		{"a Redis module that a configuration names", "usr/local/bin/redis-server", opener, "opt/redis-stack/lib/x.so", "RedisModule_OnLoad", true},
		{"a server's module, by the server's functions that it uses", "opt/server/bin/served", opener + "void serve_register(void) { }", "opt/server/modules/x.so", "serve_register", true},
		{"a module that uses functions of another server", "opt/server/bin/served", opener + "void serve_other(void) { }", "opt/server/modules/x.so", "serve_register", false},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			dir := image(t)
			write(t, filepath.Join(dir, row.path), "")
			module := "long " + row.entry + "(void) { return syscall(SYS_reboot, 0); }"
			if strings.HasPrefix(row.entry, "serve_") {
				module = "void serve_register(void); long any(void) { serve_register(); return syscall(SYS_reboot, 0); }"
			}
			build(t, gcc, dir, row.path, "#include <unistd.h>\n#include <sys/syscall.h>\n"+module, "-shared", "-fPIC", "-O1")
			write(t, filepath.Join(dir, row.program), "")
			build(t, gcc, dir, row.program, row.source, "-O1", "-rdynamic")
			res, err := analyse(t, dir, nil, "/"+row.program)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Contains(names(res), "reboot"); got != row.want {
				t.Errorf("reboot allowed is %v, want %v; libraries %v", got, row.want, res.Libraries)
			}
			if len(res.Unresolved) > 0 {
				t.Errorf("unresolved: %+v", res.Unresolved)
			}
		})
	}
}

const opener = `#include <dlfcn.h>
int main(int c, char **v) { return !dlopen(v[1], RTLD_NOW); }
`

// The number that perl's syscall makes a call with comes from scripts.
// What scripts on an operator's mount make the builtin do is not known.
func TestMountedScriptsAreNotKnown(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := image(t)
	write(t, filepath.Join(dir, "usr/bin/perl"), "")
	build(t, gcc, dir, "usr/bin/perl", opener+perlBuiltin, "-O1", "-rdynamic")
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, mounted := range [][]string{nil, {"/app"}} {
		res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{Mounted: mounted, Programs: []seccompgen.Program{{Path: "/usr/bin/perl", Phase: record.Serving}}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		if known := len(res.Unresolved) == 0; known != (mounted == nil) {
			t.Errorf("with mounts %v unresolved are %v", mounted, res.Unresolved)
		}
	}
}

const perlBuiltin = `
#include <unistd.h>
long args[9];
void Perl_newXS(void) { }
long (*volatile table[2])(void);
long Perl_pp_syscall(void) { return syscall(args[0], args[1]); }
__attribute__((constructor)) void c(void) { table[0] = Perl_pp_syscall; }
`

func TestScriptsSayWhichCalls(t *testing.T) {
	gcc := need.Program(t, "gcc")
	const perl = opener + perlBuiltin
	const python = opener + `int Py_BytesMain(void) { return 0; }`
	for _, row := range []struct {
		claim, source, program string
		files                  map[string]string
		want                   string // that is allowed besides
		unresolved             string
	}{
		{"no script makes calls", perl, "usr/bin/perl", map[string]string{"usr/share/perl5/X.pm": "# syscall($x)\n1;"}, "", ""},
		{"a module makes one by name", perl, "usr/bin/perl", map[string]string{"usr/share/perl5/X.pm": "syscall(&SYS_reboot, 1);"}, "reboot", ""},
		{"a script without an extension makes one by number", perl, "usr/bin/perl", map[string]string{"usr/local/bin/tool": "#!/usr/bin/perl\nsyscall 169, 1;"}, "reboot", ""},
		{"a module makes one by a variable", perl, "usr/bin/perl", map[string]string{"usr/share/perl5/X.pm": "\n\nsyscall($x, 1);"}, "", "/usr/share/perl5/X.pm line 3"},
		{"a script for another interpreter", perl, "usr/bin/perl", map[string]string{"app/x.py": "libc.syscall(x)"}, "", ""},
		{"a function by ctypes", python, "usr/bin/python3", map[string]string{"app/x.py": "import ctypes\nctypes.CDLL(None).reboot(1)"}, "reboot", ""},
		{"a function by cffi", python, "usr/bin/python3", map[string]string{"app/x.py": "from cffi import FFI\nffi.cdef('int reboot(int);')"}, "reboot", ""},
		{"a library of the application by ctypes", python, "usr/bin/python3", map[string]string{"app/x.py": "import ctypes\nctypes.CDLL(path + 'libfast-' + v)", "app/native/lib/libfast-1.so": "#"}, "reboot", ""},
		{"a library beside such a script", python, "usr/bin/python3", map[string]string{"app/x.py": "import ctypes\nctypes.CDLL(name)", "app/native/libfast-1.so": "#"}, "reboot", ""},
		{"a library that nobody speaks of", python, "usr/bin/python3", map[string]string{"app/x.py": "import ctypes", "app/a/b/libfast-1.so": "#"}, "", ""},
		{"the same word in a script without either", python, "usr/bin/python3", map[string]string{"app/x.py": "import os\nreboot(1)"}, "", ""},
		{"syscall by ctypes", python, "usr/bin/python3", map[string]string{"app/x.py": "import ctypes\nctypes.CDLL(None).syscall(169)"}, "reboot", ""},
		{"syscall by ctypes with a variable", python, "usr/bin/python3", map[string]string{"app/x.py": "import ctypes\nctypes.CDLL(None).syscall(nr)"}, "", "/app/x.py line 2"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			dir := image(t)
			for name, text := range row.files {
				write(t, filepath.Join(dir, name), text)
				if text == "#" {
					build(t, gcc, dir, name, "#include <unistd.h>\n#include <sys/syscall.h>\nlong f(void) { return syscall(SYS_reboot, 0); }", "-shared", "-fPIC", "-O1")
				}
			}
			write(t, filepath.Join(dir, row.program), "")
			build(t, gcc, dir, row.program, row.source, "-O1", "-rdynamic")
			res, err := analyse(t, dir, nil, "/"+row.program)
			if err != nil {
				t.Fatal(err)
			}
			if got := slices.Contains(names(res), "reboot"); got != (row.want == "reboot") {
				t.Errorf("reboot allowed is %v, want %v", got, !got)
			}
			var unresolved []string
			for _, u := range res.Unresolved {
				unresolved = append(unresolved, u.File+" "+u.Reason)
			}
			if got := strings.Join(unresolved, ";"); row.unresolved == "" && got != "" || !strings.HasPrefix(got, row.unresolved) || len(unresolved) > 1 {
				t.Errorf("unresolved: %q, want %q", got, row.unresolved)
			}
		})
	}
}
