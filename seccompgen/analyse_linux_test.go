package seccompgen_test

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

func analyse(t *testing.T, rootDir string, cache seccompgen.Cache, programs ...string) (seccompgen.Result, error) {
	t.Helper()
	root, err := rootfs.Open(rootDir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	req := seccompgen.Request{Answered: answered()}
	for _, p := range programs {
		req.Programs = append(req.Programs, seccompgen.Program{Path: p, Phase: record.Serving})
	}
	return seccompgen.Analyse(t.Context(), root, req, cache)
}

func names(res seccompgen.Result) []string {
	var out []string
	for _, c := range res.Calls {
		out = append(out, c.Name)
	}
	return out
}

// freestanding programs make exactly the calls that are written in them.
const prelude = `
#define INLINE static inline __attribute__((always_inline))
#define APART __attribute__((noinline))
INLINE long sys(long nr, long a) { long r; asm volatile("syscall" : "=a"(r) : "0"(nr), "D"(a) : "rcx", "r11", "memory"); return r; }
`

func TestFixtures(t *testing.T) {
	gcc := need.Program(t, "gcc")
	for _, row := range []struct {
		claim      string
		flags      string
		source     string
		want       string // beside those always allowed
		not        string
		unresolved string // part of the reason; "" for none
	}{
		{claim: "a constant", source: `void _start(void) { sys(39, 0); sys(60, 0); }`, want: "getpid"},
		{claim: "one of two constants", source: `volatile int x; void _start(void) { sys(x ? 39 : 102, 0); sys(60, 0); }`, want: "getpid getuid"},
		{claim: "a switch", flags: "-O2 -fPIE -fno-tree-switch-conversion", source: `volatile int x; void _start(void) { long n; switch (x) { case 0: n = 39; break; case 1: n = 102; break; case 2: n = 104; break; case 3: n = 107; break; case 4: n = 108; break; case 5: n = 110; break; default: n = 60; } sys(n, 0); for (;;); }`, want: "getpid getuid getgid geteuid getegid getppid"},
		{claim: "an argument through two functions", source: `APART long w(long nr, long a) { return sys(nr, a); } APART long v(long a, long nr) { return w(nr, a); } void _start(void) { v(1, 39); w(102, 2); sys(60, 0); }`, want: "getpid getuid"},
		{claim: "the seventh argument", source: `APART long w(long a, long b, long c, long d, long e, long f, long nr) { asm volatile(""); return sys(nr, a); } void _start(void) { w(1, 2, 3, 4, 5, 6, 39); sys(60, 0); }`, want: "getpid"},
		{claim: "a function pointer in data", flags: "-O1 -fPIE", source: `static void f(void) { sys(39, 0); } static void (*volatile table[])(void) = {f}; void _start(void) { table[0](); sys(60, 0); }`, want: "getpid"},
		{claim: "a function pointer in data of a fixed-address program", flags: "-O1 -no-pie -fno-pie", source: `static void f(void) { sys(39, 0); } static void (*volatile table[])(void) = {f}; void _start(void) { table[0](); sys(60, 0); }`, want: "getpid"},
		{claim: "code that nothing leads to does not count", source: `void dead(void) { sys(169, 0); } void _start(void) { sys(60, 0); }`, not: "reboot"},
		{claim: "a number from memory is reported", source: `volatile long n; void _start(void) { sys(n, 0); sys(60, 0); }`, unresolved: "loaded from a variable"},
		{claim: "a number that is computed is reported", source: `volatile long n; void _start(void) { sys(n * 3, 0); sys(60, 0); }`, unresolved: "computed"},
		{claim: "int 0x80 is reported", source: `void _start(void) { asm volatile("int $0x80" :: "a"(1)); sys(60, 0); }`, unresolved: "int 0x80"},
		{claim: "sysenter is reported", source: `void _start(void) { asm volatile("sysenter" :: "a"(1)); sys(60, 0); }`, unresolved: "sysenter"},
		{claim: "a wrapper called through a pointer with a constant", flags: "-O1 -fPIE", source: `APART long w(long nr, long a) { return sys(nr, a); } long (*volatile p)(long, long) = w; void _start(void) { p(39, 0); sys(60, 0); }`, want: "getpid"},
		{claim: "a wrapper called through a pointer with anything is reported", flags: "-O1 -fPIE", source: `APART long w(long nr, long a) { return sys(nr, a); } long (*volatile p)(long, long) = w; volatile long n; void _start(void) { p(n, 0); sys(60, 0); }`, unresolved: "loaded from a variable"},
		{claim: "what a zero test proves", flags: "-O1", source: `asm(".globl _start\n.type _start,@function\n_start: mov x(%rip), %eax\n test %eax, %eax\n je 1f\n mov $60, %eax\n1: syscall\n hlt\n.size _start,.-_start\n.data\nx: .long 0\n.text\n");`, want: "read"},
		{claim: "the cancellation point of glibc 2.41, whose address is only compared", flags: "-O1", source: `asm(".globl arch\n.type arch,@function\narch: .cfi_startproc\nmark: mov (%rdi),%eax\n test $4,%al\n jne 2f\n mov %rdi,%r11\n mov %rsi,%rax\n mov %rdx,%rdi\n mov %rcx,%rsi\n mov %r8,%rdx\n mov %r9,%r10\n mov 8(%rsp),%r8\n mov 16(%rsp),%r9\n mov %r11,8(%rsp)\n syscall\n ret\n2: hlt\n.cfi_endproc\n.size arch,.-arch\n");
extern char mark[]; extern long arch(void *, long, long, long, long, long, long, long); volatile int flag; char *volatile pc;
APART long cancel(long a, long b, long c, long d, long e, long f, long nr) { return arch((void *)&flag, nr, a, b, c, d, e, f); }
void _start(void) { if (pc < mark) sys(60, 0); cancel(1, 2, 3, 4, 5, 6, 39); cancel(1, 2, 3, 4, 5, 6, 7); sys(60, 0); }`, want: "getpid poll"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			for _, strip := range []bool{false, true} {
				dir := t.TempDir()
				build(t, gcc, dir, "p", prelude+row.source, append([]string{"-nostdlib", "-static", "-fasynchronous-unwind-tables", "-fno-stack-protector"}, strings.Fields(or(row.flags, "-O1"))...)...)
				if strip {
					run(t, "", need.Program(t, "strip"), filepath.Join(dir, "p"))
				}
				res, err := analyse(t, dir, nil, "/p")
				if err != nil {
					t.Fatal(err)
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

func or(a, b string) string {
	if a == "" {
		return b
	}
	return a
}

func run(t *testing.T, dir, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s %v: %v\n%s", name, args, err, out)
	}
}

func build(t *testing.T, gcc, dir, out, source string, flags ...string) {
	t.Helper()
	src := filepath.Join(t.TempDir(), "src.c")
	if err := os.WriteFile(src, []byte(source), 0o644); err != nil {
		t.Fatal(err)
	}
	args := []string{"-w", "-o", filepath.Join(dir, out), src}
	run(t, "", gcc, append(args, flags...)...)
}

// An image with a C library, two programs that open libraries, and a directory
// of libraries that only strings in them name.
func TestPlugins(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	for _, file := range []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Skipf("no C library where Debian has it: %v", err)
		}
		if err := os.MkdirAll(filepath.Dir(dir+file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir+file, b, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	plug := filepath.Join(dir, "opt/app/plug")
	if err := os.MkdirAll(plug, 0o755); err != nil {
		t.Fatal(err)
	}
	build(t, gcc, plug, "p.so", `#include <unistd.h>
#include <sys/syscall.h>
long entry(void) { return syscall(SYS_reboot, 0); }`, "-shared", "-fPIC")
	build(t, gcc, dir, "opens", `#include <dlfcn.h>
int main(void) { void *h = dlopen("/opt/app/plug/p.so", RTLD_NOW); return ((long (*)(void))dlsym(h, "entry"))(); }`, "-O1")
	build(t, gcc, dir, "directory", `#include <dlfcn.h>
#include <stdio.h>
char where[99] = "/opt/app/plug";
int main(int c, char **v) { char b[99]; snprintf(b, 99, "%s/%s", where, v[1]); return !dlopen(b, RTLD_NOW); }`, "-O1")
	build(t, gcc, dir, "doesnot", `char where[99] = "/opt/app/plug/p.so"; int main(void) { return !where[1]; }`, "-O1")
	build(t, gcc, dir, "caller", `#include <unistd.h>
#include <sys/syscall.h>
int main(void) { return syscall(SYS_reboot, 0); }`, "-O1")
	build(t, gcc, dir, "taker", `#include <unistd.h>
#include <sys/syscall.h>
long (*volatile f)(long, ...) = syscall;
int main(void) { return f(SYS_reboot, 0); }`, "-O1")
	build(t, gcc, dir, "byname", `#include <dlfcn.h>
int main(void) { return ((int (*)(int))dlsym(RTLD_DEFAULT, "reboot"))(0); }`, "-O1")
	build(t, gcc, dir, "needs", `int main(void) { return 0; }`, "-O1", "-Wl,--no-as-needed", "-L"+plug, "-l:p.so", "-Wl,-rpath,$ORIGIN/opt/app/plug")
	build(t, gcc, dir, "lost", `int main(void) { return 0; }`, "-O1", "-Wl,--no-as-needed", "-L"+plug, "-l:p.so")
	for _, row := range []struct {
		claim, program string
		want           bool
	}{
		{"a path in the data of a program that opens libraries", "opens", true},
		{"a directory in the data of a program that opens libraries", "directory", true},
		{"a path in the data of one that does not", "doesnot", false},
		{"a constant for the C library's syscall", "caller", true},
		{"a pointer to the C library's syscall", "taker", true},
		{"a function looked up by name", "byname", true},
		{"a needed library whose functions nobody uses", "needs", false},
	} {
		res, err := analyse(t, dir, nil, "/"+row.program)
		if err != nil {
			t.Fatal(err)
		}
		if got := slices.Contains(names(res), "reboot"); got != row.want {
			t.Errorf("%s: reboot allowed is %v, want %v", row.claim, got, row.want)
		}
		if len(res.Unresolved) > 0 {
			t.Errorf("%s: %+v", row.claim, res.Unresolved)
		}
	}
	// The same library for a newer processor makes one more call.
	hwcaps := filepath.Join(plug, "glibc-hwcaps/x86-64-v3")
	if err := os.MkdirAll(hwcaps, 0o755); err != nil {
		t.Fatal(err)
	}
	build(t, gcc, hwcaps, "p.so", prelude+`__attribute__((constructor)) static void c(void) { sys(163, 0); } long entry(void) { return 0; }`, "-shared", "-fPIC", "-nostdlib", "-O1")
	if res, err := analyse(t, dir, nil, "/needs"); err != nil || !slices.Contains(names(res), "acct") {
		t.Errorf("a variant of a library for newer processors: %v, %v", names(res), err)
	}
	var missing *seccompgen.MissingLibrary
	if _, err := analyse(t, dir, nil, "/lost"); !errors.As(err, &missing) || missing.Name != "p.so" || missing.For != "/lost" {
		t.Errorf("a library that the loader would not find: %v", err)
	}
	// What an operator adds is found even so.
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{
		Programs:       []seccompgen.Program{{Path: "/doesnot", Phase: record.Serving}},
		ExtraLibraries: []string{"/opt/app/plug/p.so"},
	}, nil)
	if err != nil || !slices.Contains(names(res), "reboot") {
		t.Errorf("a library asked for: %v, %v", names(res), err)
	}
	// What a library that is made later can call is all that its program exports.
	build(t, gcc, dir, "exports", prelude+`long offered(void) { return sys(163, 0); } int main(void) { return 0; }`, "-O1", "-rdynamic")
	for _, loads := range []bool{false, true} {
		res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{Programs: []seccompgen.Program{{Path: "/exports", Phase: record.Serving, Loads: loads}}}, nil)
		if err != nil || slices.Contains(names(res), "acct") != loads {
			t.Errorf("a program that loads libraries of its own making (%v): %v, %v", loads, names(res), err)
		}
	}
}

func TestGo(t *testing.T) {
	goTool := need.Program(t, "go")
	dir := t.TempDir()
	src := filepath.Join(dir, "main.go")
	if err := os.WriteFile(src, []byte(`package main

import (
	"net"
	"os/exec"
	"syscall"
)

func main() {
	l, _ := net.Listen("tcp", "127.0.0.1:0")
	go l.Accept()
	exec.Command("/bin/true").Run()
	syscall.Syscall(syscall.SYS_MINCORE, 0, 0, 0)
	syscall.RawSyscall6(syscall.SYS_ACCT, 0, 0, 0, 0, 0, 0)
	syscall.AllThreadsSyscall(syscall.SYS_IOPL, 0, 0, 0)
}
`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, flags := range [][]string{nil, {"-ldflags=-s -w"}} {
		cmd := exec.Command(goTool, append(append([]string{"build", "-o", filepath.Join(dir, "p")}, flags...), src)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=", "GO111MODULE=off", "GOARCH=amd64")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		res, err := analyse(t, dir, nil, "/p")
		if err != nil {
			t.Fatal(err)
		}
		got := names(res)
		for _, n := range strings.Fields("mincore acct iopl execve clone futex epoll_pwait socket bind listen accept4 mmap rt_sigaction pipe2 wait4") {
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
	}
}

func TestErrorsNameTheFileAndTheWayOut(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	build(t, gcc, dir, "dynamic", `int main(void) { return 0; }`)
	if err := os.WriteFile(filepath.Join(dir, "script"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	arm, err := os.ReadFile(filepath.Join(dir, "dynamic"))
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint16(arm[18:], uint16(elf.EM_RISCV))
	if err := os.WriteFile(filepath.Join(dir, "riscv"), arm, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct{ program, want string }{
		{"/dynamic", "ld-linux-x86-64.so.2"},
		{"/script", "/script"},
		{"/riscv", "EM_RISCV"},
		{"/absent", "/absent"},
	} {
		_, err := analyse(t, dir, nil, row.program)
		if err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v; want %q named", row.program, err, row.want)
			continue
		}
		var way interface{ Remedy() string }
		if !errors.As(err, &way) || way.Remedy() == "" {
			t.Errorf("%s: %v has no remedy", row.program, err)
		}
	}
}

func TestThirtyTwoBitIsReported(t *testing.T) {
	dir := t.TempDir()
	h := make([]byte, 64)
	copy(h, elf.ELFMAG)
	h[4], h[5], h[6] = byte(elf.ELFCLASS32), byte(elf.ELFDATA2LSB), 1
	binary.LittleEndian.PutUint16(h[16:], uint16(elf.ET_EXEC))
	binary.LittleEndian.PutUint16(h[18:], uint16(elf.EM_386))
	if err := os.WriteFile(filepath.Join(dir, "p"), h, 0o4755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "p"), 0o755|os.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	res, err := analyse(t, dir, nil, "/p")
	if err != nil || !res.Has32 || len(res.Unresolved) == 0 {
		t.Errorf("%+v, %v", res, err)
	}
	if !slices.Equal(res.Setuid, []string{"/p"}) {
		t.Errorf("setuid programs: %v", res.Setuid)
	}
}

func TestPhaseIsTheWidest(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	build(t, gcc, dir, "a", prelude+`void _start(void) { sys(39, 0); sys(102, 0); sys(60, 0); }`, "-nostdlib", "-static", "-O1")
	build(t, gcc, dir, "b", prelude+`void _start(void) { sys(39, 0); sys(60, 0); }`, "-nostdlib", "-static", "-O1")
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{Programs: []seccompgen.Program{
		{Path: "/a", Phase: record.Starting}, {Path: "/b", Phase: record.Serving},
	}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range res.Calls {
		want := record.Serving
		if c.Name == "getuid" {
			want = record.Starting
		}
		if c.Phase != want {
			t.Errorf("%s is %s, want %s", c.Name, c.Phase, want)
		}
	}
}

// counting counts what a cache is asked for.
type counting struct {
	seccompgen.Cache
	hits, misses int
}

func (c *counting) Get(key string) ([]byte, bool) {
	b, ok := c.Cache.Get(key)
	if ok {
		c.hits++
	} else {
		c.misses++
	}
	return b, ok
}

func TestCache(t *testing.T) {
	gcc := need.Program(t, "gcc")
	dir := t.TempDir()
	write := func(nr string) {
		build(t, gcc, dir, "p", prelude+`void _start(void) { sys(`+nr+`, 0); sys(60, 0); }`, "-nostdlib", "-static", "-O1")
		time.Sleep(100 * time.Millisecond) // a file that changed just now is looked at again the next time
	}
	write("39")
	cacheDir := t.TempDir()
	disk, err := seccompgen.OpenDirCache(cacheDir)
	if err != nil {
		t.Fatal(err)
	}
	first, err := analyse(t, dir, disk, "/p")
	if err != nil {
		t.Fatal(err)
	}
	again := &counting{Cache: disk}
	second, err := analyse(t, dir, again, "/p")
	if err != nil || !slices.Equal(names(first), names(second)) {
		t.Fatalf("from the cache: %v, %v; want %v", names(second), err, names(first))
	}
	if again.hits != 1 || again.misses != 0 {
		t.Errorf("an unchanged image takes %d hits and %d misses, want one hit", again.hits, again.misses)
	}
	write("102")
	if res, err := analyse(t, dir, disk, "/p"); err != nil || !slices.Contains(names(res), "getuid") || slices.Contains(names(res), "getpid") {
		t.Errorf("after a change: %v, %v", names(res), err)
	}
	entries, err := os.ReadDir(cacheDir)
	if err != nil || len(entries) == 0 {
		t.Fatal(err, entries)
	}
	for _, e := range entries {
		name := filepath.Join(cacheDir, e.Name())
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		b[len(b)-1] ^= 1
		if err := os.WriteFile(name, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	damaged := &counting{Cache: disk}
	if res, err := analyse(t, dir, damaged, "/p"); err != nil || !slices.Contains(names(res), "getuid") || damaged.hits != 0 {
		t.Errorf("a damaged cache: %v, %v, %d hits", names(res), err, damaged.hits)
	}
}

func TestCacheIsSafeForConcurrentUse(t *testing.T) {
	c, err := seccompgen.OpenDirCache(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan bool)
	data := [][]byte{bytes.Repeat([]byte("a"), 5000), bytes.Repeat([]byte("b"), 3)}
	for i := range 8 {
		go func() {
			for k := range 50 {
				c.Put("k", data[(i+k)%2])
				if b, ok := c.Get("k"); ok && !bytes.Equal(b, data[0]) && !bytes.Equal(b, data[1]) {
					t.Error("half an entry")
				}
			}
			done <- true
		}()
	}
	for range 8 {
		<-done
	}
}

func TestCancelled(t *testing.T) {
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	sh, err := filepath.EvalSymlinks("/bin/sh")
	if err != nil {
		t.Skip(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if _, err := seccompgen.Analyse(ctx, root, seccompgen.Request{Programs: []seccompgen.Program{{Path: sh, Phase: record.Serving}}}, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the deadline: %v", err)
	}
}
