package seccompgen_test

// AArch64: files of that machine are read here as they would be there, and run
// by qemu, which says what system calls they make.

import (
	"bufio"
	"context"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/sysno"
)

const armPrelude = `
#define INLINE static inline __attribute__((always_inline))
#define APART __attribute__((noinline))
INLINE long sys(long nr, long a) { register long x8 asm("x8") = nr; register long x0 asm("x0") = a; asm volatile("svc #0" : "+r"(x0) : "r"(x8) : "memory"); return x0; }
`

func TestArm64Fixtures(t *testing.T) {
	gcc := need.Program(t, "aarch64-linux-gnu-gcc")
	for _, row := range []struct {
		claim      string
		flags      string
		source     string
		want       string // beside those always allowed
		not        string
		unresolved string // part of the reason; "" for none
	}{
		{claim: "a constant", source: `void _start(void) { sys(172, 0); sys(93, 0); }`, want: "getpid"},
		{claim: "one of two constants", source: `volatile int x; void _start(void) { sys(x ? 172 : 174, 0); sys(93, 0); }`, want: "getpid getuid"},
		{claim: "a constant and the next one", source: `volatile int x; void _start(void) { sys(172 + (x == 3), 0); sys(93, 0); }`, want: "getpid getppid"},
		{claim: "a switch with a table of bytes", flags: "-O2 -fPIE -fno-tree-switch-conversion", source: `volatile int x; void _start(void) { long n; switch (x) { case 0: n = 172; break; case 1: n = 174; break; case 2: n = 176; break; case 3: n = 175; break; case 4: n = 177; break; case 5: n = 173; break; default: n = 93; } sys(n, 0); for (;;); }`, want: "getpid getuid getgid geteuid getegid getppid"},
		{claim: "a switch with calls in its cases", flags: "-O1 -fPIE", source: `volatile int x; APART void f(int n) { switch (n) { case 0: sys(172, n); break; case 1: sys(174, n); x++; case 2: sys(176, n); break; case 3: sys(175, 1); break; case 4: sys(177, n); break; case 5: sys(173, 2); break; } } void _start(void) { f(x); sys(93, 0); }`, want: "getpid getuid getgid geteuid getegid getppid"},
		{claim: "an argument through two functions", source: `APART long w(long nr, long a) { return sys(nr, a); } APART long v(long a, long nr) { return w(nr, a); } void _start(void) { v(1, 172); w(174, 2); sys(93, 0); }`, want: "getpid getuid"},
		{claim: "the ninth argument", source: `APART long w(long a, long b, long c, long d, long e, long f, long g, long h, long nr) { asm volatile(""); return sys(nr, a); } void _start(void) { w(1, 2, 3, 4, 5, 6, 7, 8, 172); sys(93, 0); }`, want: "getpid"},
		{claim: "an argument kept on the stack", flags: "-O0", source: `APART long w(int nr, long a) { return sys(nr, a); } void _start(void) { w(172, 2); sys(93, 0); }`, want: "getpid"},
		{claim: "a function pointer in data", flags: "-O1 -fPIE", source: `static void f(void) { sys(172, 0); } static void (*volatile table[])(void) = {f}; void _start(void) { table[0](); sys(93, 0); }`, want: "getpid"},
		{claim: "a function pointer in data of a fixed-address program", flags: "-O1 -no-pie -fno-pie", source: `static void f(void) { sys(172, 0); } static void (*volatile table[])(void) = {f}; void _start(void) { table[0](); sys(93, 0); }`, want: "getpid"},
		{claim: "a function pointer in read-only data next to code", flags: "-O1 -no-pie -fno-pie -Wl,-z,noseparate-code", source: `volatile int x; static void f(void) { sys(172, 0); } static void g(void) { sys(174, 0); } static void (*const table[])(void) = {f, g}; void _start(void) { table[x](); sys(93, 0); }`, want: "getpid getuid"},
		{claim: "a function pointer made in the code", flags: "-O1 -fPIE", source: `static void f(void) { sys(172, 0); } void (*volatile p)(void); void _start(void) { p = f; p(); sys(93, 0); }`, want: "getpid"},
		{claim: "a page that is far from what is made of it", source: `asm(".globl _start\n.type _start,@function\n_start: .cfi_startproc\n adrp x19, f\n b 2f\n1: add x19, x19, :lo12:f\n blr x19\n mov x8, #93\n svc #0\n2: str x19, [sp, #-16]!\n cbz x0, 3f\n nop\n3: ldr x19, [sp], #16\n b 1b\n.cfi_endproc\n.size _start,.-_start\n.type f,@function\nf: .cfi_startproc\n mov x8, #172\n svc #0\n ret\n.cfi_endproc\n.size f,.-f\n");`, want: "getpid"},
		{claim: "code that nothing leads to does not count", source: `void dead(void) { sys(142, 0); } void _start(void) { sys(93, 0); }`, not: "reboot"},
		{claim: "a number from memory is reported", source: `volatile long n; void _start(void) { sys(n, 0); sys(93, 0); }`, unresolved: "loaded from a variable"},
		{claim: "a number that is computed is reported", source: `volatile long n; void _start(void) { sys(n * 3, 0); sys(93, 0); }`, unresolved: "computed"},
		{claim: "a number that a call returns is reported", source: `volatile long n; APART long g(void) { return n; } void _start(void) { sys(g(), 0); sys(93, 0); }`, unresolved: "the result of a call"},
		{claim: "the result of a system call is no number", source: `asm(".globl _start\n_start: mov x8, #172\n svc #0\n mov x8, x0\n svc #0\n mov x8, #93\n svc #0\n");`, want: "getpid", unresolved: "the result of a system call"},
		{claim: "a wrapper called through a pointer with a constant", flags: "-O1 -fPIE", source: `APART long w(long nr, long a) { return sys(nr, a); } long (*volatile p)(long, long) = w; void _start(void) { p(172, 0); sys(93, 0); }`, want: "getpid"},
		{claim: "a wrapper called through a pointer with anything is reported", flags: "-O1 -fPIE", source: `APART long w(long nr, long a) { return sys(nr, a); } long (*volatile p)(long, long) = w; volatile long n; void _start(void) { p(n, 0); sys(93, 0); }`, unresolved: "loaded from a variable"},
		{claim: "exit does not go on in the function behind it", source: `asm(".globl _start\n_start: mov x1, #172\n bl w\n blr x1\n mov x8, #93\n svc #0\nw: mov x8, x1\n svc #0\n ret\n");`, want: "getpid"},
		{claim: "what a zero test proves", source: `asm(".globl _start\n.type _start,@function\n_start: adrp x1, x\n ldr w8, [x1, :lo12:x]\n cbz w8, 1f\n mov w8, #93\n1: svc #0\n udf #0\n.size _start,.-_start\n.data\nx: .long 0\n.text\n");`, want: "io_setup"},
		{claim: "code with signed return addresses and landing pads", flags: "-O1 -fPIE -mbranch-protection=standard -march=armv8.3-a", source: `APART long w(long nr, long a) { asm volatile(""); return sys(nr, a); } APART long v(long nr) { long r = w(nr, 1); asm volatile("" :: "r"(r)); return r + 1; } void _start(void) { v(172); sys(93, 0); }`, want: "getpid"},
		{claim: "the cancellation point of musl, whose address is only compared", source: `asm(".globl cp\n.type cp,@function\ncp: .cfi_startproc\nmark: ldr w0, [x0]\n cbnz w0, 2f\n mov x8, x1\n mov x0, x2\n mov x1, x3\n mov x2, x4\n mov x3, x5\n mov x4, x6\n mov x5, x7\n svc #0\n ret\n2: udf #0\n.cfi_endproc\n.size cp,.-cp\n");
extern char mark[]; extern long cp(void *, long, long, long, long, long, long, long); volatile int flag; char *volatile pc;
APART long cancel(long nr, long a) { return cp((void *)&flag, nr, a, 0, 0, 0, 0, 0); }
void _start(void) { if (pc < mark) sys(93, 0); cancel(172, 1); cancel(73, 1); sys(93, 0); }`, want: "getpid ppoll"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			for _, strip := range []bool{false, true} {
				dir := t.TempDir()
				build(t, gcc, dir, "p", armPrelude+row.source, append([]string{"-nostdlib", "-static", "-fasynchronous-unwind-tables", "-fno-stack-protector"}, strings.Fields(or(row.flags, "-O1"))...)...)
				if strip {
					run(t, "", need.Program(t, "aarch64-linux-gnu-strip"), filepath.Join(dir, "p"))
				}
				res, err := analyse(t, dir, nil, "/p")
				if err != nil {
					t.Fatal(err)
				}
				if res.Machine != "arm64" {
					t.Errorf("machine %s", res.Machine)
				}
				got := names(res)
				want := append(strings.Fields(row.want), "rt_sigreturn", "restart_syscall", "exit", "exit_group")
				for _, n := range want {
					if !slices.Contains(got, n) {
						t.Errorf("stripped %v: %s is missing from %v", strip, n, got)
					}
				}
				if row.unresolved == "" && len(got) != len(want) {
					t.Errorf("stripped %v: got %v, want %v", strip, got, want)
				}
				if row.not != "" && slices.Contains(got, row.not) {
					t.Errorf("stripped %v: %s is allowed", strip, row.not)
				}
				switch {
				case row.unresolved == "" && len(res.Unresolved) > 0:
					t.Errorf("stripped %v: unresolved %+v", strip, res.Unresolved)
				case row.unresolved != "" && (len(res.Unresolved) == 0 || !strings.Contains(res.Unresolved[0].Reason, row.unresolved)):
					t.Errorf("stripped %v: unresolved %+v, want %q", strip, res.Unresolved, row.unresolved)
				}
			}
		})
	}
}

// guest runs an arm64 program and gives the system calls that it made.
func guest(t *testing.T, qemu, root, program string, args ...string) map[string]string {
	t.Helper()
	log := filepath.Join(t.TempDir(), "log")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, append([]string{"-strace", "-D", log, "-L", root, filepath.Join(root, program)}, args...)...)
	cmd.WaitDelay = time.Second
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%s %v: %v: %s", program, args, err, out)
	}
	return guestCalls(t, log)
}

var (
	guestCall    = regexp.MustCompile(`^\d+ ([a-z_][a-z0-9_]*)\(`)
	guestUnknown = regexp.MustCompile(`^\d+ Unknown syscall (\d+)`)
)

// guestCalls reads what qemu logged, by the kernel's names.
func guestCalls(t *testing.T, log string) map[string]string {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seen := map[string]string{}
	for scan := bufio.NewScanner(f); scan.Scan(); {
		line := scan.Text()
		name := ""
		if m := guestCall.FindStringSubmatch(line); m != nil {
			name = m[1]
		} else if m := guestUnknown.FindStringSubmatch(line); m != nil {
			nr, _ := strconv.Atoi(m[1])
			name, _ = sysno.Name("arm64", nr)
		}
		if name == "" {
			continue
		}
		if _, ok := sysno.Number("arm64", name); !ok {
			t.Errorf("qemu's name for a call is none of the kernel's: %s", line)
		}
		if seen[name] == "" {
			seen[name] = line
		}
	}
	if len(seen) < 5 {
		t.Fatalf("nothing was seen: %v", seen)
	}
	return seen
}

// within fails for what was seen and is not allowed.
func within(t *testing.T, seen map[string]string, res seccompgen.Result) {
	t.Helper()
	got := names(res)
	for name, line := range seen {
		if !slices.Contains(got, name) {
			t.Errorf("%s was seen and is not allowed: %s", name, line)
		}
	}
	t.Logf("%d calls, %d seen, %d unresolved, %d libraries", len(got), len(seen), len(res.Unresolved), len(res.Libraries))
}

// armPackages are unpacked for TestArm64ObservedIsAllowed.
var armPackages = strings.Fields("coreutils dash bash sed grep tar gzip findutils busybox-static libc-bin curl openssl nginx-light redis-server memcached lighttpd perl-base musl util-linux")

// Programs of Debian's arm64 packages. Those here make no other program run:
// the machine need not know how to start them.
func TestArm64ObservedIsAllowed(t *testing.T) {
	qemu := need.Program(t, "qemu-aarch64-static")
	root := need.Debian(t, "arm64", armPackages...)
	cacheDir := t.TempDir()
	check := func(t *testing.T, program string, seen map[string]string, complete bool) {
		cache, err := seccompgen.OpenDirCache(cacheDir)
		if err != nil {
			t.Fatal(err)
		}
		res, err := analyse(t, root, cache, program)
		if err != nil {
			t.Fatal(err)
		}
		within(t, seen, res)
		if complete && len(res.Unresolved) > 0 {
			t.Errorf("unresolved: %+v", res.Unresolved)
		}
		if len(names(res)) > 170 {
			t.Errorf("%d calls are hardly less than all", len(names(res)))
		}
	}
	data := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(data, []byte("b\na\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, row := range [][]string{
		{"/bin/true"},
		{"/bin/ls", "-laR", "/etc/ssl"},
		{"/bin/cat", "/etc/passwd"},
		{"/bin/cp", "-a", "/etc/passwd", "g"},
		{"/bin/mv", data, data + "2"},
		{"/bin/mkdir", "-p", "a/b"},
		{"/bin/touch", "h"},
		{"/usr/bin/stat", "/etc/passwd"},
		{"/bin/df"},
		{"/usr/bin/id"},
		{"/bin/sleep", "0.01"},
		{"/usr/bin/sort", "--parallel=2", "/etc/passwd"},
		{"/bin/sed", "s/a/c/", "/etc/passwd"},
		{"/bin/grep", "-r", "x", "/etc/ssl/openssl.cnf"},
		{"/bin/tar", "cf", "x.tar", "/etc/ssl/openssl.cnf"},
		{"/usr/bin/find", "/etc/ssl", "-name", "x"},
		{"/usr/bin/getent", "passwd", "root"},
		{"/usr/bin/getent", "hosts", "localhost"},
		{"/usr/bin/curl", "-m", "2", "http://127.0.0.1:9/"},
		{"/usr/bin/openssl", "genrsa", "1024"},
		{"/bin/dash", "-c", "echo $(echo x); cd /; umask 22; (exit 3); kill -0 $$; read x < /etc/passwd; ulimit -a; test -r /etc/passwd; trap : TERM; kill -TERM $$; wait"},
		{"/bin/bash", "-c", "echo $(echo x); ulimit -n; (exit 3); trap : TERM; kill -TERM $$; read x < /etc/passwd; [[ -w /etc/passwd ]]; wait"},
		{"/bin/busybox", "ls", "-la", "/"},
		{"/bin/busybox", "sh", "-c", "echo $(echo x); umask; (exit 2)"},
		{"/usr/bin/setpriv", "--dump"},
	} {
		t.Run(strings.Join(row, " "), func(t *testing.T) {
			t.Parallel()
			check(t, row[0], guest(t, qemu, root, row[0], row[1:]...), true)
		})
	}
	for _, s := range armServers {
		t.Run(s.program, func(t *testing.T) {
			t.Parallel()
			check(t, s.program, serve(t, qemu, root, s), true)
		})
	}
}

// armServer is a server that listens on a socket of its directory.
type armServer struct {
	program string
	as      string // its argument 0
	args    string // $PWD stands for the directory
	conf    string // written to $PWD/conf
	ask     []string
}

var armServers = []armServer{
	{program: "/usr/bin/memcached", args: "-u root -s $PWD/sock -m 16", ask: []string{"set a 0 0 1\r\nx\r\nget a\r\nstats\r\nquit\r\n"}},
	{program: "/usr/bin/redis-check-rdb", as: "redis-server", args: "--port 0 --unixsocket $PWD/sock --appendonly yes --dir $PWD",
		ask: []string{"SET a 1\r\n", "EVAL 'return 1' 0\r\n", "BGSAVE\r\n", "BGREWRITEAOF\r\n", "DEBUG SLEEP 0.5\r\n", "PING\r\n"}},
	{program: "/usr/sbin/nginx", args: "-c $PWD/conf -g 'daemon off; master_process off;'",
		conf: "error_log stderr; pid $PWD/pid; events {} http { access_log $PWD/l; client_body_temp_path $PWD/b; proxy_temp_path $PWD/p; fastcgi_temp_path $PWD/f; uwsgi_temp_path $PWD/u; scgi_temp_path $PWD/s; server { listen unix:$PWD/sock; root $PWD; location /p { proxy_pass http://unix:$PWD/sock:/conf; } } }",
		ask:  []string{"GET /conf HTTP/1.0\r\n\r\n", "GET /p HTTP/1.0\r\n\r\n", "POST /p HTTP/1.0\r\nContent-Length: 2\r\n\r\nab"}},
	{program: "/usr/sbin/lighttpd", args: "-D -f $PWD/conf", conf: "server.document-root = \"$PWD\"\nserver.bind = \"$PWD/sock\"\n", ask: []string{"GET /conf HTTP/1.0\r\n\r\n"}},
}

func serve(t *testing.T, qemu, root string, s armServer) map[string]string {
	t.Helper()
	dir := t.TempDir()
	fill := strings.NewReplacer("$PWD", dir)
	if err := os.WriteFile(filepath.Join(dir, "conf"), []byte(fill.Replace(s.conf)), 0o644); err != nil {
		t.Fatal(err)
	}
	log := filepath.Join(dir, "log")
	argv := []string{"-strace", "-D", log, "-L", root, "-0", or(s.as, s.program), filepath.Join(root, s.program)}
	for i, a := range strings.Split(fill.Replace(s.args), "'") {
		if i%2 == 1 {
			argv = append(argv, a)
		} else {
			argv = append(argv, strings.Fields(a)...)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, qemu, argv...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	answered := 0
	for _, q := range s.ask {
		for range 200 {
			c, err := net.Dial("unix", filepath.Join(dir, "sock"))
			if err != nil {
				time.Sleep(50 * time.Millisecond)
				continue
			}
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := c.Write([]byte(q)); err == nil {
				if n, _ := c.Read(make([]byte, 4096)); n > 0 {
					answered++
				}
			}
			c.Close()
			break
		}
	}
	if len(s.ask) > 0 {
		_ = cmd.Process.Signal(os.Interrupt)
	}
	select {
	case <-ended:
	case <-ctx.Done():
	}
	if answered != len(s.ask) {
		t.Fatalf("%d of %d requests were answered: %s", answered, len(s.ask), out.String())
	}
	return guestCalls(t, log)
}

func TestArm64Go(t *testing.T) {
	goTool := need.Program(t, "go")
	qemu := need.Program(t, "qemu-aarch64-static")
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte(`package main

import (
	"net"
	"os"
	"syscall"
)

func main() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	go func() {
		c, err := l.Accept()
		if err == nil {
			c.Close()
		}
	}()
	c, err := net.Dial("tcp", l.Addr().String())
	if err == nil {
		c.Read(make([]byte, 1))
	}
	os.ReadDir("/")
	syscall.Syscall(syscall.SYS_MINCORE, 0, 0, 0)
	syscall.RawSyscall6(syscall.SYS_ACCT, 1, 0, 0, 0, 0, 0)
	syscall.AllThreadsSyscall(syscall.SYS_PERSONALITY, 0xffffffff, 0, 0)
}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{nil, {"-ldflags=-s -w"}} {
		cmd := exec.Command(goTool, append(append([]string{"build", "-o", filepath.Join(dir, "p")}, flags...), src)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off", "GOARCH=arm64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		res, err := analyse(t, dir, nil, "/p")
		if err != nil {
			t.Fatal(err)
		}
		got := names(res)
		for _, n := range strings.Fields("mincore acct personality clone futex epoll_pwait socket bind listen accept4 mmap rt_sigaction") {
			if !slices.Contains(got, n) {
				t.Errorf("%v: %s is missing", flags, n)
			}
		}
		if len(res.Unresolved) > 0 {
			t.Errorf("%v: unresolved %+v", flags, res.Unresolved)
		}
		if len(got) > 90 {
			t.Errorf("%v: %d calls: %v", flags, len(got), got)
		}
		within(t, guest(t, qemu, dir, "/p"), res)
	}
}

// A C program in every form of linking that the cross compiler knows.
func TestArm64C(t *testing.T) {
	gcc := need.Program(t, "aarch64-linux-gnu-gcc")
	qemu := need.Program(t, "qemu-aarch64-static")
	need.File(t, "/usr/aarch64-linux-gnu/lib/libc.a") // libc6-dev-arm64-cross
	const source = `#include <unistd.h>
#include <stdio.h>
#include <pthread.h>
#include <sys/syscall.h>
static void *f(void *p) { return p; }
int main(void) { pthread_t t; pthread_create(&t, 0, f, 0); pthread_join(t, 0); printf("%d\n", (int)syscall(SYS_getpgid, 0)); return setgid(getgid()); }`
	for _, flags := range []string{"-O1", "-O2 -no-pie", "-O1 -static", "-O1 -static-pie", "-O0", "-O2 -fno-plt"} {
		t.Run(flags, func(t *testing.T) {
			dir := t.TempDir()
			build(t, gcc, dir, "p", source, strings.Fields(flags)...)
			if err := os.CopyFS(filepath.Join(dir, "lib"), os.DirFS("/usr/aarch64-linux-gnu/lib")); err != nil && !strings.Contains(err.Error(), "exist") {
				t.Fatal(err)
			}
			res, err := analyse(t, dir, nil, "/p")
			if err != nil {
				t.Fatal(err)
			}
			if len(res.Unresolved) > 0 {
				t.Errorf("unresolved: %+v", res.Unresolved)
			}
			within(t, guest(t, qemu, dir, "/p"), res)
			for _, n := range []string{"getpgid", "setgid", "clone"} {
				if !slices.Contains(names(res), n) {
					t.Errorf("%s is missing", n)
				}
			}
		})
	}
}
