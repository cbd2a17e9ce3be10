package seccompgen_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

const argPrelude = `
#define APART __attribute__((noinline, noipa))
static inline __attribute__((always_inline)) long sys(long nr, long a, long b, long c) { long r; asm volatile("syscall" : "=a"(r) : "0"(nr), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory"); return r; }
volatile long x;
`

// argument says what was found about one, in a word.
func argument(res seccompgen.Result, name string, index uint8) string {
	for _, c := range res.Calls {
		for _, a := range c.Args {
			if c.Name != name || a.Index != index {
				continue
			}
			if !a.Proved() {
				return "? " + a.Unproved.Reason
			}
			var out []string
			for _, v := range a.Values {
				out = append(out, fmt.Sprintf("%#x", v.Value))
				if len(v.Origins) == 0 {
					return "a value without an origin"
				}
			}
			return strings.Join(out, " ")
		}
	}
	return "absent"
}

// What is proved of an argument, and above all what is not: rows are claims.
func TestArgumentFixtures(t *testing.T) {
	gcc := need.Program(t, "gcc")
	for _, row := range []struct {
		claim, flags, source string
		call                 string
		index                uint8
		want                 string
	}{
		{"a constant", "", `void _start(void) { sys(157, 15, 0, 0); sys(60, 0, 0, 0); }`, "prctl", 0, "0xf"},
		{"one of two", "", `void _start(void) { sys(157, x ? 15 : 4, 0, 0); sys(60, 0, 0, 0); }`, "prctl", 0, "0x4 0xf"},
		{"through a function", "", `APART long p(int o, long a) { return sys(157, o, a, 0); } void _start(void) { p(4, 0); p(8, 1); sys(60, 0, 0, 0); }`, "prctl", 0, "0x4 0x8"},
		{"through a function that takes the number", "", `APART long s(long nr, long a, long b) { return sys(nr, a, b, 0); } void _start(void) { s(16, 0, 0x5401); s(157, 8, 0x77); s(60, 0, 0); }`, "ioctl", 1, "0x5401"},
		{"the other call of that function", "", `APART long s(long nr, long a, long b) { return sys(nr, a, b, 0); } void _start(void) { s(16, 0, 0x5401); s(157, 8, 0x77); s(60, 0, 0); }`, "prctl", 0, "0x8"},
		{"through two of them, in other places", "", `APART long s(long nr, long a, long b) { return sys(nr, a, b, 0); } APART long r(long b, long a, long nr) { return s(nr, a, b); } void _start(void) { r(0x5401, 3, 16); r(7, 8, 157); s(60, 0, 0); }`, "ioctl", 1, "0x5401"},
		{"a small number that was compared", "", `asm(".globl p\n.type p,@function\np: cmp $2,%edi\n ja 1f\n lea 0x5402(%rdi),%esi\n mov $16,%eax\n syscall\n1: ret\n.size p,.-p\n"); void p(long); void _start(void) { p(x); sys(60, 0, 0, 0); }`, "ioctl", 1, "0x5402 0x5403 0x5404"},
		{"compared the wrong way round", "", `APART long p(int o) { if ((unsigned)o <= 2) return -1; return sys(16, 0, 0x5402 + o, 0); } void _start(void) { p(x); sys(60, 0, 0, 0); }`, "ioctl", 1, "? "},
		{"compared as signed", "", `APART long p(int o) { if (o > 2) return -1; return sys(16, 0, 0x5402 + o, 0); } void _start(void) { p(x); sys(60, 0, 0, 0); }`, "ioctl", 1, "? "},
		{"compared in eight bits", "", `APART long p(int o) { if ((unsigned char)o > 2) return -1; return sys(16, 0, 0x5402 + o, 0); } void _start(void) { p(x); sys(60, 0, 0, 0); }`, "ioctl", 1, "? "},
		{"from memory", "", `void _start(void) { sys(157, x, 0, 0); sys(60, 0, 0, 0); }`, "prctl", 0, "? loaded from a variable"},
		{"one of them from memory", "", `void _start(void) { sys(157, 4, 0, 0); sys(157, x, 0, 0); sys(60, 0, 0, 0); }`, "prctl", 0, "? loaded from a variable"},
		{"from memory in code that nothing leads to", "", `void dead(void) { sys(157, x, 0, 0); } void _start(void) { sys(157, 4, 0, 0); sys(60, 0, 0, 0); }`, "prctl", 0, "0x4"},
		{"cut to eight bits on the way", "", `APART long p(unsigned char o) { return sys(157, o, 0, 0); } void _start(void) { ((long (*)(int))p)(0x10f); sys(60, 0, 0, 0); }`, "prctl", 0, "? computed"},
		{"cut to sixteen bits on the way", "", `APART long p(int o) { return sys(157, (short)o, 0, 0); } void _start(void) { p(0x1000f); sys(60, 0, 0, 0); }`, "prctl", 0, "? computed"},
		{"cut to thirty-two", "", `APART long p(long o) { return sys(157, (int)o, 0, 0); } void _start(void) { p(0x10000000fl); sys(60, 0, 0, 0); }`, "prctl", 0, "0xf"},
		{"computed from what is passed", "", `APART long p(long o) { return sys(157, o * 3, 0, 0); } void _start(void) { p(5); sys(60, 0, 0, 0); }`, "prctl", 0, "? computed"},
		{"through a pointer in data", "-O1 -fPIE", `static long p(int o) { return sys(157, o, 0, 0); } long (*volatile f)(int) = p; void _start(void) { f(4); sys(60, 0, 0, 0); }`, "prctl", 0, "? its function's address is taken"},
		{"through a pointer in data of a program at a fixed address", "-O1 -no-pie -fno-pie", `static long p(int o) { return sys(157, o, 0, 0); } long (*volatile f)(int) = p; void _start(void) { f(4); sys(60, 0, 0, 0); }`, "prctl", 0, "? its function's address is taken"},
		{"through a pointer in code", "-O1 -fPIE", `APART long p(int o) { return sys(157, o, 0, 0); } long (*volatile f)(int); void _start(void) { f = p; f(4); sys(60, 0, 0, 0); }`, "prctl", 0, "? its function's address is taken"},
		{"by a function that takes the number and is called through a pointer", "-O1 -fPIE", `APART long s(long nr, long a) { return sys(nr, a, 0, 0); } long (*volatile f)(long, long) = s; void _start(void) { f(157, 4); f(60, 0); }`, "prctl", 0, "0x4"},
		{"the same with anything", "-O1 -fPIE", `APART long s(long nr, long a) { return sys(nr, a, 0, 0); } long (*volatile f)(long, long) = s; void _start(void) { f(157, x); f(60, 0); }`, "prctl", 0, "? loaded from a variable"},
		{"where the program begins", "", `void _start(long a) { sys(157, a, 0, 0); sys(60, 0, 0, 0); }`, "prctl", 0, "? where the program begins"},
		{"in another register for a call of the same instruction", "", `APART long s(long nr, long a, long b) { return sys(nr, b, a, 0); } void _start(void) { s(157, 1, 8); s(60, 0, 0); }`, "prctl", 0, "0x8"},
		{"a domain and a type", "", `void _start(void) { sys(41, 1, 0x80001, 0); sys(60, 0, 0, 0); }`, "socket", 1, "0x80001"},
		{"the flags that a mask leaves", "", `APART long k(long o) { return sys(41, 1, (o & 0x80800) | 1, 0); } void _start(void) { k(x); sys(60, 0, 0, 0); }`, "socket", 1, "0x1 0x801 0x80001 0x80801"},
		{"an argument spilled and a call in between", "-O0", `APART long q(void) { return x; } APART long p(int o) { long r = q(); return sys(157, o, r, 0); } void _start(void) { p(4); sys(60, 0, 0, 0); }`, "prctl", 0, "0x4"},
		{"changed by whom it was passed to", "-O0", `APART void q(int *o) { *o = x; } APART long p(int o) { q(&o); return sys(157, o, 0, 0); } void _start(void) { p(4); sys(60, 0, 0, 0); }`, "prctl", 0, "? in memory that a call may change"},
		{"more values than a rule has", "", `void _start(void) { ` + many(30) + ` sys(60, 0, 0, 0); }`, "prctl", 0, "? 30 values"},
		{"recursion that changes it", "", `APART long p(int o, int n) { if (n) return p(o + 1, n - 1) + 1; return sys(157, o, 0, 0); } void _start(void) { p(4, x); sys(60, 0, 0, 0); }`, "prctl", 0, "? computed"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			for _, strip := range []bool{false, true} {
				dir := t.TempDir()
				build(t, gcc, dir, "p", argPrelude+row.source, append([]string{"-nostdlib", "-static", "-fasynchronous-unwind-tables", "-fno-stack-protector"}, strings.Fields(or(row.flags, "-O1"))...)...)
				if strip {
					run(t, "", need.Program(t, "strip"), filepath.Join(dir, "p"))
				}
				res, err := analyse(t, dir, nil, "/p")
				if err != nil {
					t.Fatal(err)
				}
				got := argument(res, row.call, row.index)
				if got != row.want && !(strings.HasPrefix(row.want, "?") && strings.HasPrefix(got, row.want)) {
					t.Errorf("stripped %v: got %q, want %q", strip, got, row.want)
				}
			}
		})
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "sys(157, %d, 0, 0);", i)
	}
	return b.String()
}

// Arguments that cross files: through the C library's functions, and through
// libraries that pass them on.
func TestArgumentsAcrossFiles(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	for _, file := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"} {
		need.File(t, file)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.MkdirAll(filepath.Dir(dir+file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+file, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	build(t, gcc, dir, "libown.so", `#include <sys/prctl.h>
long option(int o) { return prctl(o, 1); }
long fixed(void) { return option(4); }`, "-shared", "-fPIC", "-O1", "-Wl,-soname,libown.so", "-fno-inline")
	// A function of that name that does something else.
	build(t, gcc, dir, "libname.so", `#include <sys/prctl.h>
long personality(int a, int o) { return prctl(o, 1); }`, "-shared", "-fPIC", "-O1", "-Wl,-soname,libname.so")
	for _, row := range []struct {
		claim, source string
		call          string
		want          string
	}{
		{"the library's function", `#include <sys/prctl.h>
int main(void) { return prctl(4, 1) + prctl(8, 1); }`, "prctl", "0x4 0x8"},
		{"syscall", `#include <unistd.h>
#include <sys/syscall.h>
int main(void) { return syscall(SYS_prctl, 4, 1); }`, "prctl", "0x4"},
		{"syscall with anything", `#include <unistd.h>
#include <sys/syscall.h>
int main(int c, char **v) { return syscall(SYS_prctl, c, 1); }`, "prctl", "? "},
		{"a pointer to the library's function", `#include <sys/prctl.h>
int (*volatile f)(int, ...) = prctl; int main(void) { return f(4, 1); }`, "prctl", "? the address of prctl is taken"},
		{"a pointer to syscall", `#include <unistd.h>
#include <sys/syscall.h>
long (*volatile f)(long, ...) = syscall; int main(void) { return f(SYS_prctl, 4, 1); }`, "prctl", "0x4"},
		{"a pointer to syscall with anything", `#include <unistd.h>
#include <sys/syscall.h>
long (*volatile f)(long, ...) = syscall; int main(int c, char **v) { return f(SYS_prctl, c, 1); }`, "prctl", "? "},
		{"looked up by name", `#include <dlfcn.h>
int main(void) { return ((int (*)(int, int))dlsym(RTLD_DEFAULT, "prctl"))(4, 1); }`, "prctl", "? prctl may be looked up by name"},
		{"a library that passes it on", `long option(int); int main(void) { return option(8); }`, "prctl", "? option is called from other files"},
		{"a library that passes only its own", `long fixed(void); int main(void) { return fixed(); }`, "prctl", "0x4"},
		{"a function of the same name that does something else", `long personality(int, int); int main(void) { return personality(1, 8); }`, "prctl", "? personality is called from other files"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			name := "p" + strconv.Itoa(len(row.claim))
			build(t, gcc, dir, name, row.source, "-O1", "-Wl,--as-needed", "-L"+dir, "-l:libname.so", "-l:libown.so", "-Wl,-rpath,/")
			cache, err := seccompgen.OpenDirCache(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			for _, cached := range []bool{false, true} {
				res, err := analyse(t, dir, cache, "/"+name)
				if err != nil {
					t.Fatal(err)
				}
				if got := argument(res, row.call, 0); got != row.want && !(strings.HasPrefix(row.want, "?") && strings.HasPrefix(got, row.want)) {
					t.Errorf("cached %v: got %q, want %q", cached, got, row.want)
				}
			}
		})
	}
}

// Go's calls go through functions that take the number; the call that all
// threads make is one of unknown arguments. Go names its memory (PR_SET_VMA).
func TestArgumentsOfGo(t *testing.T) {
	goTool := need.Program(t, "go")
	dir := t.TempDir()
	for claim, row := range map[string][2]string{
		"constants":                   {`syscall.RawSyscall(syscall.SYS_PRCTL, 4, 0, 0); syscall.Syscall6(syscall.SYS_PRCTL, 8, 1, 0, 0, 0, 0)`, "0x4 0x8 0x53564d41"},
		"what nobody knows":           {`syscall.Syscall(syscall.SYS_PRCTL, uintptr(len(os.Args)), 0, 0)`, "? "},
		"through a function":          {`option(4); option(15)`, "0x4 0xf 0x53564d41"},
		"through a method":            {`var o optioner = one(4); o.option(8)`, "? "},
		"on all threads":              {`syscall.AllThreadsSyscall(syscall.SYS_PRCTL, 8, 1, 0)`, "? "},
		"through a value of function": {`f := option; if len(os.Args) > 3 { f = nil }; keep = f; keep(4)`, "? "},
	} {
		src := filepath.Join(dir, "main.go")
		if err := os.WriteFile(src, []byte(`package main

import (
	"os"
	"syscall"
)

type optioner interface{ option(int) }
type one int

//go:noinline
func (one) option(o int) { option(o) }

var keep func(int)

//go:noinline
func option(o int) { syscall.RawSyscall(syscall.SYS_PRCTL, uintptr(o), 1, 0) }

func main() { `+row[0]+`; if len(os.Args) > 100 { option(4) } }
`), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(goTool, "build", "-ldflags=-s -w", "-o", filepath.Join(dir, "p"), src)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		res, err := analyse(t, dir, nil, "/p")
		if err != nil {
			t.Fatal(err)
		}
		if got := argument(res, "prctl", 0); got != row[1] && !(row[1] == "? " && strings.HasPrefix(got, row[1])) {
			t.Errorf("%s: got %q, want %q", claim, got, row[1])
		}
	}
}

// What a program's file gives it decides about no_new_privs and the bounding set.
func TestPrivilegesOfFiles(t *testing.T) {
	need.Root(t)
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	for _, name := range []string{"plain", "setuid", "setgid", "capable"} {
		build(t, gcc, dir, name, argPrelude+`void _start(void) { sys(60, 0, 0, 0); }`, "-nostdlib", "-static")
	}
	for name, bit := range map[string]os.FileMode{"setuid": os.ModeSetuid, "setgid": os.ModeSetgid} {
		if err := os.Chmod(filepath.Join(dir, name), 0o755|bit); err != nil {
			t.Fatal(err)
		}
	}
	// vfs_cap_data of revision 2 with CAP_NET_BIND_SERVICE (linux/capability.h)
	if err := unix.Setxattr(filepath.Join(dir, "capable"), "security.capability", []byte{1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0); err != nil {
		t.Fatal(err)
	}
	res, err := analyse(t, dir, nil, "/plain", "/setuid", "/setgid", "/capable")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(res.Setuid, []string{"/setuid", "/setgid"}) || !slices.Equal(res.FileCaps, []string{"/capable"}) {
		t.Errorf("setuid or setgid %v, capabilities %v", res.Setuid, res.FileCaps)
	}
}

// Real programs never pass what was not found.
func TestObservedArgumentsAreFound(t *testing.T) {
	strace := need.Program(t, "strace")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	cacheDir := t.TempDir()
	held := map[string]int{} // by call, in how many rows its argument was proved and seen
	for _, row := range [][]string{
		{"ls", "-la", "/etc"},
		{"bash", "-c", "echo $(ls) | cat; read -t 0.1 x; sleep 0 & wait"},
		{"script", "-qec", "bash -ic 'stty -a; stty raw; stty sane; ls --color=auto; exit'", "/dev/null"},
		{"script", "-qec", "dash -ic 'sleep 0; exit'", "/dev/null"},
		{"script", "-qec", "openssl rsa -aes128 -in nosuch -out /dev/null", "/dev/null"},
		{"python3", "-c", "import socket, threading, os, termios, fcntl; t = threading.Thread(target=print); t.start(); t.join(); os.isatty(1); socket.socket().close(); os.openpty()"},
		{"perl", "-e", `$0 = "other"; print -t STDIN; use Socket; socket(S, PF_UNIX, SOCK_STREAM, 0)`},
		{"git", "--version"},
		{"curl", "-s", "http://127.0.0.1:9/"},
		{"getent", "hosts", "nosuch.invalid"},
		{"setpriv", "--no-new-privs", "--bounding-set=-all", "true"},
		{"setarch", "--addr-no-randomize", "true"},
		{"unshare", "-U", "true"},
		{"gosu", "nobody", "true"},
		{"tini", "--", "true"},
		{"redis-server", "--version"},
		{"bash", "-c", `redis-server --port 0 --unixsocket $PWD/r --dir $PWD --appendonly yes & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2; redis-cli -s r ping && break; done; redis-cli -s r bgsave; sleep 0.3; redis-cli -s r shutdown; wait`},
		{"bash", "-c", `mkdir n; chmod 777 n; echo "error_log stderr; pid $PWD/n/pid; events {} http { access_log off; client_body_temp_path n/b; proxy_temp_path n/p; fastcgi_temp_path n/f; uwsgi_temp_path n/u; scgi_temp_path n/s;
			server { listen unix:$PWD/n/s; root $PWD; } }" > n.conf
			nginx -c $PWD/n.conf -g 'daemon off;' & sleep 0.5; curl -s --unix-socket n/s http://x/n.conf > /dev/null; kill -HUP $!; sleep 0.4; curl -s --unix-socket n/s http://x/n.conf > /dev/null; kill -QUIT $!; wait`},
		{"bash", "-c", `memcached -u nobody -s $PWD/m & sleep 0.5; kill $!; wait`},
		{"bash", "-c", `echo "server.document-root = \"$PWD\" server.bind = \"$PWD/l\" server.port = 0" > l.conf; lighttpd -D -f l.conf & sleep 0.5; curl -s --unix-socket l http://x/l.conf > /dev/null; kill -INT $!; wait`},
		{"bash", "-c", `named -V > /dev/null; named-checkconf /dev/null`},
		{"bash", "-c", `b=/usr/lib/postgresql/15/bin; test -x $b/postgres || exit 0; mkdir pg; chown nobody pg; s="setpriv --reuid nobody --clear-groups"
			$s $b/initdb -D $PWD/pg -A trust -U u > /dev/null; $s $b/postgres -D $PWD/pg -k $PWD/pg -c listen_addresses= & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.5; $b/psql -h $PWD/pg -U u -c 'select 1' postgres && break; done; kill -INT $!; wait`},
	} {
		t.Run(strings.Join(row, " "), func(t *testing.T) {
			need.Program(t, row[0])
			programs, seen := traceArguments(t, strace, dir, row)
			cache, err := seccompgen.OpenDirCache(cacheDir)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range analysed(t, cache, programs).Calls {
				for _, a := range c.Args {
					values := seen[argName{c.Name, a.Index}]
					if a.Proved() && len(values) > 0 {
						held[c.Name]++
					}
					for v, line := range values {
						if a.Proved() && !slices.ContainsFunc(a.Values, func(x plan.ArgValue) bool { return x.Value == v }) {
							t.Errorf("%s: argument %d is %#x, which was not found: %s", c.Name, a.Index, v, line)
						}
					}
				}
			}
		})
	}
	for _, name := range []string{"ioctl", "prctl"} {
		if held[name] < 5 {
			t.Errorf("%s was held to its arguments in %d rows only", name, held[name])
		}
	}
	t.Logf("rows in which a proved argument was seen: %v", held)
}

type argName struct {
	call  string
	index uint8
}

// traced are the calls whose arguments are compared.
var traced = map[string][]uint8{"ioctl": {1}, "socket": {0, 1}, "prctl": {0}, "personality": {0}, "unshare": {0}, "ptrace": {0}, "keyctl": {0}, "seccomp": {0}, "bpf": {0}}

func traceArguments(t *testing.T, strace, dir string, argv []string) ([]string, map[argName]map[uint32]string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "trace")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var names []string
	for n := range traced {
		names = append(names, n)
	}
	cmd := exec.CommandContext(ctx, strace, append([]string{"-f", "-qq", "-X", "raw", "-e", "trace=execve," + strings.Join(names, ","), "-o", out, "--"}, argv...)...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); ctx.Err() != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var programs []string
	seen := map[argName]map[uint32]string{}
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	for scan.Scan() {
		line := scan.Text()
		if m := sawExec.FindStringSubmatch(line); m != nil {
			programs = append(programs, interpreters(m[1])...)
			continue
		}
		m := sawCall.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		_, rest, _ := strings.Cut(line, m[1]+"(")
		fields := strings.FieldsFunc(rest, func(r rune) bool { return strings.ContainsRune(", )<", r) })
		for _, i := range traced[m[1]] {
			if int(i) >= len(fields) {
				continue
			}
			var v uint64
			for part := range strings.SplitSeq(fields[i], "|") {
				n, err := strconv.ParseUint(part, 0, 64)
				if s, err2 := strconv.ParseInt(part, 0, 64); err != nil && err2 == nil {
					n, err = uint64(s), nil
				}
				if err != nil {
					t.Errorf("cannot read argument %d of %s", i, line)
				}
				v |= n
			}
			k := argName{m[1], i}
			if seen[k] == nil {
				seen[k] = map[uint32]string{}
			}
			seen[k][uint32(v)] = line
		}
	}
	if len(programs) == 0 {
		t.Fatal("nothing was traced")
	}
	return programs, seen
}

func analysed(t *testing.T, cache seccompgen.Cache, programs []string) seccompgen.Result {
	t.Helper()
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	slices.Sort(programs)
	req := seccompgen.Request{Answered: answered()}
	for _, p := range slices.Compact(programs) {
		req.Programs = append(req.Programs, seccompgen.Program{Path: p, Phase: record.Serving})
	}
	res, err := seccompgen.Analyse(t.Context(), root, req, cache)
	if err != nil {
		t.Fatal(err)
	}
	return res
}
