package guard

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

// The test's mounts live in a mount namespace of its own, so nothing is left
// behind whatever kills it. What is executed on guarded file systems is executed by
// inmates, never by the process that answers.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == "inmate" {
		os.Exit(inmate(os.Args[2], os.Args[3], os.Args[4:]))
	}
	if len(os.Args) > 2 && os.Args[1] == "reader" {
		os.Exit(reader(os.Args[2]))
	}
	if os.Geteuid() == 0 && os.Getenv("GUARD_TEST_NAMESPACE") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "GUARD_TEST_NAMESPACE=1")
		cmd.Stdout, cmd.Stderr, cmd.Stdin = os.Stdout, os.Stderr, os.Stdin
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	os.Exit(m.Run())
}

const refused = 77 // exit status of an inmate whose execution got EPERM

// inmate enters a root and executes something there.
func inmate(how, root string, args []string) int {
	runtime.LockOSThread()
	fail := func(err error) int {
		fmt.Println(err)
		switch {
		case errors.Is(err, unix.EPERM):
			return refused
		case errors.Is(err, unix.EACCES):
			return refused + 1
		}
		return refused + 2
	}
	if how == "unshare" { // a mount namespace of its own, and a bind mount elsewhere in it
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return fail(err)
		}
		if err := unix.Mount(filepath.Join(root, args[0]), filepath.Join(root, "/mnt/bound"), "", unix.MS_BIND, ""); err != nil {
			return fail(fmt.Errorf("bind: %w", err))
		}
		how, args = "exec", append([]string{"/mnt/bound"}, args[1:]...)
	}
	if how == "pivot" { // as runc does: the guard is set between the mounts and the pivot
		if err := errors.Join(
			unix.Unshare(unix.CLONE_NEWNS),
			unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""),
			unix.Mount(root, root, "", unix.MS_BIND|unix.MS_REC, ""),
		); err != nil {
			return fail(err)
		}
		fmt.Println("ready")
		os.Stdin.Read(make([]byte, 1))
		if err := errors.Join(
			unix.Chdir(root),
			unix.PivotRoot(".", "."),
			unix.Unmount(".", unix.MNT_DETACH),
			unix.Mount("", "/", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""),
		); err != nil {
			return fail(err)
		}
		root, how = "/", "exec"
	}
	if err := unix.Chroot(root); err != nil {
		return fail(err)
	}
	if err := os.Chdir("/"); err != nil {
		return fail(err)
	}
	env := []string{"PATH=/bin"}
	switch how {
	case "exec":
		return fail(syscall.Exec(args[0], args, env))
	case "execveat", "procfd":
		fd, err := unix.Open(args[0], unix.O_PATH, 0)
		if err != nil {
			return fail(err)
		}
		if how == "procfd" {
			return fail(syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", fd), args, env))
		}
		empty, _ := unix.BytePtrFromString("")
		argv, _ := syscall.SlicePtrFromStrings(args)
		envv, _ := syscall.SlicePtrFromStrings(env)
		return fail(execveat(fd, empty, argv, envv))
	case "loop": // fork and execute args[1] args[0] times
		n, _ := strconv.Atoi(args[0])
		for range n {
			pid, err := syscall.ForkExec(args[1], args[1:], &syscall.ProcAttr{Env: env, Files: []uintptr{0, 1, 2}})
			if err != nil {
				return fail(err)
			}
			var status unix.WaitStatus
			if _, err := unix.Wait4(pid, &status, 0, nil); err != nil || status != 0 {
				return fail(fmt.Errorf("status %d: %w", status, err))
			}
		}
		return 0
	}
	return fail(errors.New("unknown inmate"))
}

// image makes a root filesystem with a few dynamic programs and their libraries.
func image(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"bin", "tmp", "mnt", "proc", "data"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for dst, src := range map[string]string{"/bin/true": "/bin/true", "/bin/false": "/bin/false", "/bin/sh": "/bin/sh", "/bin/echo": "/bin/echo", "/bin/cat": "/bin/cat"} {
		install(t, dir, dst, src)
	}
	write(t, dir+"/bin/script", "#!/bin/sh\nexit 0\n")
	write(t, dir+"/bin/checker", "#!/bin/sh\nexit 0\n")
	write(t, dir+"/mnt/bound", "")
	return dir
}

func write(t testing.TB, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
}

func copyFile(t testing.TB, dst, src string) {
	t.Helper()
	in, err := os.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	os.MkdirAll(filepath.Dir(dst), 0o755)
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(out, in); err != nil {
		t.Fatal(err)
	}
	if err := out.Close(); err != nil {
		t.Fatal(err)
	}
}

// install copies a program with its interpreter and libraries.
func install(t testing.TB, root, dst, src string) {
	t.Helper()
	if _, err := os.Stat(root + dst); err == nil {
		return
	}
	if _, err := os.Stat(src); err != nil {
		t.Skipf("needs %s: %v", src, err)
	}
	copyFile(t, root+dst, src)
	f, err := elf.Open(src)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz-1)
			p.ReadAt(b, 0)
			install(t, root, string(b), string(b))
		}
	}
	libs, _ := f.ImportedLibraries()
	for _, lib := range libs {
		for _, dir := range []string{"/lib/x86_64-linux-gnu/", "/lib/aarch64-linux-gnu/", "/lib64/", "/lib/", "/usr/lib/"} {
			if _, err := os.Stat(dir + lib); err == nil {
				install(t, root, dir+lib, dir+lib)
				break
			}
		}
	}
}

func loader(t testing.TB) string {
	f, err := elf.Open("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			b := make([]byte, p.Filesz-1)
			p.ReadAt(b, 0)
			return string(b)
		}
	}
	t.Skip("needs a dynamic /bin/true")
	return ""
}

// jail is a mounted root: at merged it can be written to (as an engine can),
// at root it is as the container has it.
type jail struct{ lower, upper, merged, root string }

func overlay(t testing.TB, lower string, readonly bool) jail {
	t.Helper()
	base := t.TempDir()
	j := jail{lower: lower, upper: base + "/upper", merged: base + "/merged", root: base + "/root"}
	for _, d := range []string{j.upper, j.merged, j.root, base + "/work"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("overlay", j.merged, "overlay", 0, "lowerdir="+lower+",upperdir="+j.upper+",workdir="+base+"/work"); err != nil {
		t.Fatalf("mount overlay: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(j.merged, unix.MNT_DETACH) })
	bind(t, j.merged, j.root, readonly)
	return j
}

func bind(t testing.TB, from, to string, readonly bool) {
	t.Helper()
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(to, unix.MNT_DETACH) })
	if readonly {
		if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
			t.Fatal(err)
		}
	}
}

func bare(t testing.TB, dir string) jail {
	t.Helper()
	root := t.TempDir()
	bind(t, dir, root, false)
	return jail{lower: dir, merged: dir, root: root}
}

func openPath(t testing.TB, name string) *os.File {
	t.Helper()
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return os.NewFile(uintptr(fd), name)
}

// do runs an inmate in the jail and gives its exit status: 0, refused, or what
// the program said.
func (j jail) do(t testing.TB, how string, args ...string) int {
	t.Helper()
	return inside(t, j.root, how, args...)
}

func inside(t testing.TB, root, how string, args ...string) int {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append([]string{"inmate", how, root}, args...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("inmate %s %v: %v", how, args, err)
	}
	if cmd.ProcessState.ExitCode() > 1 {
		t.Logf("inmate %s %v: %s", how, args, bytes.TrimSpace(out))
	}
	return cmd.ProcessState.ExitCode()
}

// warden is a running guard that remembers what it was asked.
type warden struct {
	*Guard
	mu    sync.Mutex
	seen  []Exec
	who   Who
	panic bool
	// asked: threads of which the file they asked for was seen; nil: do not tell.
	asked map[int]bool
}

func guarded(t testing.TB) *warden {
	t.Helper()
	need.Fanotify(t)
	g, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	w := &warden{Guard: g, who: Who{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce}}
	w.start(t)
	return w
}

func (w *warden) start(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx, w.decide) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		w.Close()
	})
}

func (w *warden) decide(e Exec) Decision {
	w.mu.Lock()
	who, p := w.who, w.panic
	if w.asked != nil { // every inmate executes once
		e.Direct = !w.asked[e.TID]
		w.asked[e.TID] = true
	}
	seen := e
	seen.File = nil
	w.seen = append(w.seen, seen)
	w.mu.Unlock()
	if p {
		panic("as the test wants")
	}
	return Judge(e, who)
}

func (w *warden) as(id record.Identity, phase record.Phase) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.who.Identity, w.who.Phase = id, phase
}

func (w *warden) events() []Exec {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.seen
	w.seen = nil
	return s
}

func (w *warden) watch(t testing.TB, id string, j jail, change func(*Container)) {
	t.Helper()
	c := Container{
		ID: id, PID: os.Getpid(), Root: openPath(t, j.root), Created: time.Now(),
		Application: []Program{{Path: "/bin/true"}, {Path: "/bin/echo", Starting: true}, {Path: "/bin/script"}},
		HealthCheck: []Program{{Path: "/bin/checker"}},
	}
	if change != nil {
		change(&c)
	}
	if err := w.Watch(c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { w.Forget(id) })
}

func want(t testing.TB, claim string, got, want int) {
	t.Helper()
	if got != want {
		t.Errorf("%s: got exit status %d, want %d", claim, got, want)
	}
}

func TestGuardOverlay(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	j := overlay(t, lower, true)
	w.watch(t, "c", j, nil)
	if m := w.Marked("c"); m != "filesystem" {
		t.Fatalf("marked by %q, want the file system", m)
	}

	want(t, "a program of the plan runs", j.do(t, "exec", "/bin/true"), 0)
	want(t, "another does not", j.do(t, "exec", "/bin/cat", "/bin/script"), refused)
	want(t, "a program for starting runs while starting", j.do(t, "exec", "/bin/echo"), 0)
	want(t, "a script of the plan runs, with the interpreter it names", j.do(t, "exec", "/bin/script"), 0)
	want(t, "a script that is in no plan does not", j.do(t, "exec", "/bin/checker"), refused)
	want(t, "execveat of a descriptor is seen", j.do(t, "execveat", "/bin/cat"), refused)
	want(t, "and allowed for what the plan has", j.do(t, "execveat", "/bin/true"), 0)
	want(t, "a new mount namespace and a bind mount do not evade it", j.do(t, "unshare", "/bin/cat"), refused)
	want(t, "nor hinder what is allowed", j.do(t, "unshare", "/bin/true"), 0)
	want(t, "the engine's own mount of the root is guarded too", inside(t, j.merged, "exec", "/bin/cat"), refused)

	// The ELF interpreter is permitted: programs need it. What it maps raises no event.
	want(t, "ld.so runs any program of the image, if nobody tells who asked for it", j.do(t, "exec", loader(t), "/bin/false"), 1)
	w.mu.Lock()
	w.asked = map[int]bool{}
	w.mu.Unlock()
	want(t, "the first event of an execution is about what was asked for: ld.so is refused", j.do(t, "exec", loader(t), "/bin/false"), refused)
	want(t, "also by its descriptor", j.do(t, "execveat", loader(t), "/bin/false"), refused)
	for range 3 { // never answered by the kernel in place of the first
		want(t, "and the interpreter of what the plan has", j.do(t, "exec", "/bin/true"), 0)
		want(t, "also twice removed", j.do(t, "exec", "/bin/script"), 0)
	}
	w.mu.Lock()
	w.asked = nil
	w.mu.Unlock()
	f := openPath(t, j.root+loader(t))
	defer f.Close()
	if d, _, known := w.Allowed("c", f, w.who); !known || d.Allow {
		t.Errorf("Allowed closes it for what is asked for openly: got %+v", d)
	}

	sibling := overlay(t, lower, true)
	want(t, "a sibling that shares the lower layer is unaffected", sibling.do(t, "exec", "/bin/cat", "/bin/script"), 0)
	want(t, "and so is the lower directory", inside(t, lower, "exec", "/bin/cat", "/bin/script"), 0)

	w.Serving("c")
	want(t, "a program for starting is refused once the container serves", j.do(t, "exec", "/bin/echo"), refused)
	w.as(record.HealthCheck, record.Serving)
	want(t, "the health check runs its own", j.do(t, "exec", "/bin/checker"), 0)
	want(t, "and the application's", j.do(t, "exec", "/bin/true"), 0)
	want(t, "and no other", j.do(t, "exec", "/bin/cat"), refused)
	w.as(record.Operator, record.Serving)
	want(t, "an operator runs what is in the image", j.do(t, "exec", "/bin/cat", "/bin/script"), 0)
	w.as(record.Application, record.Serving)
	want(t, "which the application does not inherit", j.do(t, "exec", "/bin/cat"), refused)
	for _, e := range w.events() {
		if e.ContainerID != "c" || !strings.HasPrefix(e.Path, "/") || e.TID == 0 || e.Ino == 0 {
			t.Errorf("event without its facts: %+v", e)
		}
	}

	w.Forget("c")
	want(t, "forget ends it", j.do(t, "exec", "/bin/cat", "/bin/script"), 0)
	if n := len(w.events()); n != 0 {
		t.Errorf("%d events after forget", n)
	}
}

func TestWhatIsWrittenLaterIsRefused(t *testing.T) {
	for _, kind := range []string{"overlay", "bare"} {
		t.Run(kind, func(t *testing.T) {
			for _, row := range []struct {
				claim string
				write func(t *testing.T, root string)
				path  string
			}{
				{"an allowed program that was overwritten in place", func(t *testing.T, root string) {
					f, err := os.OpenFile(root+"/bin/true", os.O_WRONLY, 0)
					if err != nil {
						t.Fatal(err)
					}
					b, _ := os.ReadFile(root + "/bin/cat")
					f.WriteAt(b, 0)
					f.Close()
				}, "/bin/true"},
				{"one whose mode was changed", func(t *testing.T, root string) { os.Chmod(root+"/bin/true", 0o777) }, "/bin/true"},
				{"a copy of an allowed program", func(t *testing.T, root string) { copyFile(t, root+"/tmp/true", root+"/bin/true") }, "/tmp/true"},
				{"an allowed program that was moved", func(t *testing.T, root string) { os.Rename(root+"/bin/true", root+"/tmp/true") }, "/tmp/true"},
				{"a hard link to an allowed program", func(t *testing.T, root string) {
					if err := os.Link(root+"/bin/true", root+"/tmp/true"); err != nil {
						t.Fatal(err)
					}
				}, "/tmp/true"},
				{"a program moved over an allowed one", func(t *testing.T, root string) { os.Rename(root+"/bin/cat", root+"/bin/true") }, "/bin/true"},
				{"a new file in place of an allowed one", func(t *testing.T, root string) {
					os.Remove(root + "/bin/true")
					copyFile(t, root+"/bin/true", root+"/bin/cat")
				}, "/bin/true"},
				{"a new program", func(t *testing.T, root string) { copyFile(t, root+"/tmp/new", root+"/bin/cat") }, "/tmp/new"},
				{"a changed ELF interpreter", func(t *testing.T, root string) {
					f, _ := filepath.EvalSymlinks(root + loader(t))
					if err := os.Chmod(f, 0o755); err != nil {
						t.Fatal(err)
					}
				}, "/bin/true"},
			} {
				t.Run(row.claim, func(t *testing.T) {
					w := guarded(t)
					lower := image(t)
					// Times are those of the clock tick: what follows has to be later.
					time.Sleep(20 * time.Millisecond)
					j := bare(t, lower)
					if kind == "overlay" {
						j = overlay(t, lower, false)
					}
					w.watch(t, "c", j, func(c *Container) { c.Wide = true })
					time.Sleep(20 * time.Millisecond)
					want(t, "before", j.do(t, "exec", "/bin/true"), 0)
					row.write(t, j.root)
					want(t, "application", j.do(t, "exec", row.path), refused)
					w.as(record.Operator, record.Serving)
					want(t, "operator", j.do(t, "exec", row.path), refused)
					w.as(record.Application, record.Serving)
					if kind == "overlay" {
						w.Forget("c")
						w.watch(t, "c", j, func(c *Container) { c.Wide = true })
						want(t, "in the next run of the same container", j.do(t, "exec", row.path), refused)
					}
				})
			}
		})
	}
}

func TestLayersOnSeveralFileSystems(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	base := t.TempDir()
	if err := unix.Mount("tmpfs", base, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(base, unix.MNT_DETACH) })
	j := jail{upper: base + "/u", root: base + "/m"}
	for _, d := range []string{"/u", "/w", "/m"} {
		os.Mkdir(base+d, 0o755)
	}
	if err := unix.Mount("overlay", j.root, "overlay", 0, "lowerdir="+lower+",upperdir="+base+"/u,workdir="+base+"/w"); err != nil {
		t.Skipf("needs tmpfs as upper layer: %v", err)
	}
	t.Cleanup(func() { unix.Unmount(j.root, unix.MNT_DETACH) })
	w.watch(t, "c", j, nil)
	want(t, "a program of the plan runs", j.do(t, "exec", "/bin/true"), 0)
	want(t, "another does not", j.do(t, "exec", "/bin/cat"), refused)
	copyFile(t, j.root+"/tmp/true", j.root+"/bin/true")
	want(t, "nor a copy", j.do(t, "exec", "/tmp/true"), refused)
	f, err := os.OpenFile(j.root+"/bin/true", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{0}, 200)
	f.Close()
	want(t, "nor a changed one", j.do(t, "exec", "/bin/true"), refused)
	w.as(record.Operator, record.Serving)
	want(t, "an operator runs what is in the image", j.do(t, "exec", "/bin/cat", "/bin/script"), 0)
}

func TestBareDirectory(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	time.Sleep(20 * time.Millisecond)
	j := bare(t, lower)
	w.watch(t, "c", j, nil)
	if m := w.Marked("c"); m != "mount" {
		t.Fatalf("marked by %q, want the mount", m)
	}
	want(t, "a program of the plan runs", j.do(t, "exec", "/bin/true"), 0)
	want(t, "another does not", j.do(t, "exec", "/bin/cat"), refused)
	want(t, "the directory itself is not the container", inside(t, lower, "exec", "/bin/cat", "/bin/script"), 0)
	want(t, "a second container on the same directory has a plan of its own", func() int {
		k := bare(t, lower)
		w.watch(t, "d", k, func(c *Container) { c.Application = []Program{{Path: "/bin/cat"}} })
		want(t, "one", j.do(t, "exec", "/bin/cat"), refused)
		return k.do(t, "exec", "/bin/cat", "/bin/script")
	}(), 0)
	want(t, "a new mount namespace evades it (a documented hole)", j.do(t, "unshare", "/bin/cat", "/bin/script"), 0)
}

func TestKernelAnswersForAllowedPrograms(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), true)
	w.watch(t, "c", j, func(c *Container) {
		c.Application = append(c.Application, Program{Path: loader(t)})
	})
	const n = 300
	want(t, "first", j.do(t, "exec", "/bin/true"), 0)
	w.events()
	want(t, "again", j.do(t, "loop", fmt.Sprint(n), "/bin/true"), 0)
	if e := w.events(); len(e) != 0 {
		t.Errorf("%d events for %d executions of an allowed program, want none: %+v", len(e), n, e[0])
	}
	want(t, "one for starting", j.do(t, "loop", "5", "/bin/echo"), 0)
	if e := w.events(); len(e) != 5 {
		t.Errorf("%d events for 5 executions of a program for starting, want all", len(e))
	}

	f, err := os.OpenFile(j.merged+"/bin/true", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{0}, 200)
	f.Close()
	want(t, "a rewritten program is asked for again, and refused", j.do(t, "exec", "/bin/true"), refused)

	w.events()
	k := overlay(t, image(t), false)
	w.watch(t, "d", k, nil)
	want(t, "on a writable root", k.do(t, "loop", "5", "/bin/true"), 0)
	trues := func(e Exec) bool { return e.Path == "/bin/true" }
	if e := slices.DeleteFunc(w.events(), func(e Exec) bool { return !trues(e) }); len(e) != 5 {
		t.Errorf("%d events for 5 executions on a writable root, want all: a shared mapping would not reset the mark", len(e))
	}
}

func TestForgetForgetsWhatTheKernelAnswers(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), true)
	w.watch(t, "c", j, nil)
	want(t, "cached", j.do(t, "exec", "/bin/true"), 0)
	w.Forget("c")
	w.watch(t, "c", j, func(c *Container) { c.Application = []Program{{Path: "/bin/cat"}} })
	want(t, "another plan for the same root", j.do(t, "exec", "/bin/true"), refused)
}

func TestTwoContainersOnOneOverlay(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), true)
	w.watch(t, "c", j, nil)
	want(t, "cached", j.do(t, "exec", "/bin/true"), 0)
	k := j
	k.root = t.TempDir()
	bind(t, j.merged, k.root, true)
	w.watch(t, "d", k, func(c *Container) { c.Application = []Program{{Path: "/bin/cat"}} })
	want(t, "what one may run is not the other's", k.do(t, "exec", "/bin/true"), refused)
	want(t, "each its own", k.do(t, "exec", "/bin/cat", "/bin/script"), 0)
	want(t, "each its own", j.do(t, "exec", "/bin/true"), 0)
	w.Forget("d")
	want(t, "when one is gone the other is still guarded", j.do(t, "exec", "/bin/cat"), refused)
}

func TestMountsOfTheContainer(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	j := overlay(t, lower, true)
	volume, programs := t.TempDir(), t.TempDir()
	copyFile(t, volume+"/tool", "/bin/true")
	copyFile(t, programs+"/tool", "/bin/true")
	bind(t, volume, j.root+"/data", false)
	bind(t, programs, j.root+"/tmp", true)
	w.watch(t, "c", j, func(c *Container) {
		c.Mounts = map[string]Mount{"/data": {File: openPath(t, j.root+"/data"), Exec: true}}
	})
	want(t, "a mount where the operator allows programs", j.do(t, "exec", "/data/tool"), 0)
	if e := w.events(); len(e) == 0 || e[0].Place != ExecMount || e[0].ContainerID != "c" {
		t.Errorf("is seen: got %+v", e)
	}
	for name, place := range map[string]Place{"/data/tool": ExecMount, "/tmp/tool": ReadOnlyMount, "/bin/cat": Image, "/proc": Image} {
		f := openPath(t, j.root+name)
		_, e, known := w.Allowed("c", f, Who{})
		if !known || e.Place != place {
			t.Errorf("%s: got %v %v, want %v", name, known, e.Place, place)
		}
		f.Close()
	}
	if err := unix.Mount("", j.root+"/data", "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_NOEXEC, ""); err != nil {
		t.Fatal(err)
	}
	want(t, "noexec refuses before the guard is asked", j.do(t, "exec", "/data/tool"), refused+1)
	f := openPath(t, j.root+"/data/tool")
	defer f.Close()
	if d, e, known := w.Allowed("c", f, Who{Identity: record.Operator}); !known || d.Allow || e.Place != NoExec {
		t.Errorf("and Allowed knows: got %+v %v", d, e.Place)
	}
	if d, _, known := w.Allowed("nobody", f, Who{Mode: record.Off}); known || d.Allow {
		t.Error("a container that is not known is not decided on")
	}
}

// Writable places that are not mounted noexec, since the image has programs in
// them or libraries are made there: the image's own programs run, and nothing
// that was written there does.
func TestGuardedMounts(t *testing.T) {
	for name, jail := range map[string]func(t testing.TB, lower string) jail{
		"overlay": func(t testing.TB, lower string) jail { return overlay(t, lower, false) }, "bare directory": bare,
	} {
		t.Run(name, func(t *testing.T) {
			w := guarded(t)
			lower := image(t)
			if err := os.Mkdir(lower+"/home", 0o755); err != nil {
				t.Fatal(err)
			}
			install(t, lower, "/home/own", "/bin/true")
			install(t, lower, "/home/other", "/bin/true")
			time.Sleep(20 * time.Millisecond)
			j := jail(t, lower)
			volume := t.TempDir()
			copyFile(t, volume+"/tool", "/bin/true")
			bind(t, volume, j.root+"/data", false)
			bind(t, j.root+"/home", j.root+"/home", false) // as writable paths are
			w.watch(t, "c", j, func(c *Container) {
				c.Application = append(c.Application, Program{Path: "/home/own"})
				c.Created = time.Now()
				c.Mounts = map[string]Mount{"/data": {File: openPath(t, j.root+"/data"), Guarded: true}, "/home": {File: openPath(t, j.root+"/home"), Guarded: true, Own: true}}
			})
			time.Sleep(20 * time.Millisecond)
			copyFile(t, j.root+"/home/tool", "/bin/true")
			want(t, "the image's program runs", j.do(t, "exec", "/home/own"), 0)
			for _, tool := range []string{"/home/other", "/home/tool", "/data/tool"} {
				want(t, tool, j.do(t, "exec", tool), refused)
				f := openPath(t, j.root+tool)
				if d, e, known := w.Allowed("c", f, Who{}); !known || d.Allow || e.Place == ExecMount || e.Place == NoExec {
					t.Errorf("%s: got %+v %v", tool, d, e.Place)
				}
				f.Close()
			}
			f, err := os.OpenFile(j.root+"/home/own", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.WriteAt([]byte{0}, 200)
			f.Close()
			want(t, "nor does the image's when it was written to", j.do(t, "exec", "/home/own"), refused)
		})
	}
}

func TestPanicIsARefusalAndTheNextIsServed(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), true)
	w.watch(t, "c", j, nil)
	w.mu.Lock()
	w.panic = true
	w.mu.Unlock()
	want(t, "a panic is a refusal", j.do(t, "exec", "/bin/true"), refused)
	w.mu.Lock()
	w.panic = false
	w.mu.Unlock()
	want(t, "the next is served", j.do(t, "exec", "/bin/true"), 0)
}

func TestUnknownContainerIsRefused(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), true)
	if err := unix.FanotifyMark(w.fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, j.root); err != nil {
		t.Fatal(err)
	}
	w.mu.Lock()
	w.who = Who{Mode: record.Off}
	w.mu.Unlock()
	want(t, "marked by somebody else, mode off", j.do(t, "exec", "/bin/true"), refused)
}

func TestAuditObserves(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), true)
	w.watch(t, "c", j, nil)
	w.mu.Lock()
	w.who.Mode = record.Audit
	w.mu.Unlock()
	want(t, "nothing is stopped", j.do(t, "exec", "/bin/cat", "/bin/script"), 0)
	want(t, "again", j.do(t, "exec", "/bin/cat", "/bin/script"), 0)
	n := 0
	for _, e := range w.events() {
		if e.Path == "/bin/cat" {
			n++
		}
	}
	if n != 2 {
		t.Errorf("%d events for 2 executions, want all: what is observed is not cached", n)
	}
}

func TestHundredContainersInOneGroup(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	const n = 100
	jails := make([]jail, n)
	for i := range jails {
		jails[i] = overlay(t, lower, true)
		program := []string{"/bin/true", "/bin/echo"}[i%2]
		w.watch(t, fmt.Sprint(i), jails[i], func(c *Container) { c.Application = []Program{{Path: program}} })
	}
	var wg sync.WaitGroup
	slots := make(chan struct{}, 4)
	for i, j := range jails {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			allowed, not := "/bin/true", "/bin/echo"
			if i%2 == 1 {
				allowed, not = not, allowed
			}
			want(t, "its own", j.do(t, "exec", allowed), 0)
			want(t, "its neighbour's", j.do(t, "exec", not), refused)
		})
	}
	wg.Wait()
	for i := range jails {
		w.Forget(fmt.Sprint(i))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	g := w.Guard
	if len(g.containers)+len(g.byDev)+len(g.byMount) != 0 {
		t.Error("something is left behind")
	}
}

// A reader that dies with a question in hand opens nothing: the group lives on
// with whoever holds it, and the next reader refuses what was left.
func TestTakeover(t *testing.T) {
	need.Fanotify(t)
	first, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	j := overlay(t, image(t), true)
	spec := func() Container {
		return Container{ID: "c", PID: os.Getpid(), Root: openPath(t, j.root), Application: []Program{{Path: "/bin/true"}}}
	}
	if err := first.Watch(spec()); err != nil {
		t.Fatal(err)
	}
	dup, err := unix.FcntlInt(uintptr(first.fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}

	// The first reader takes one event and never answers, as if it were dead.
	status := make(chan int, 1)
	go func() { status <- j.do(t, "exec", "/bin/true") }()
	unix.Poll([]unix.PollFd{{Fd: int32(first.fd), Events: unix.POLLIN}}, 30_000)
	buf := make([]byte, 4096)
	n, err := unix.Read(first.fd, buf)
	if err != nil {
		t.Fatal(err)
	}
	ev := parseEvents(buf[:n])
	unix.Close(int(ev[0].fd))
	first.Close()

	g, err := FromFile(os.NewFile(uintptr(dup), "fanotify"))
	if err != nil {
		t.Fatal(err)
	}
	w := &warden{Guard: g, who: Who{Identity: record.Application, Mode: record.Enforce}}
	if n := w.SweepPending(nil); n != 1 {
		t.Errorf("swept %d, want 1", n)
	}
	want(t, "what the dead reader had in hand is refused", <-status, refused)
	if err := w.Watch(spec()); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	want(t, "the next reader allows what the plan has", j.do(t, "exec", "/bin/true"), 0)
	want(t, "and nothing else", j.do(t, "exec", "/bin/cat"), refused)
}

// reader is another process that reads the group (descriptor 3), allows what
// the plan has, says so, and falls silent over anything else.
func reader(root string) int {
	g, err := FromFile(os.NewFile(3, "fanotify"))
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fd, err := unix.Open(root, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	if err := g.Watch(Container{ID: "c", PID: os.Getpid(), Root: os.NewFile(uintptr(fd), root), Application: []Program{{Path: "/bin/true"}}}); err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println("ready")
	g.Run(context.Background(), func(e Exec) Decision {
		d := Judge(e, Who{})
		if !d.Allow {
			fmt.Println("silent")
			select {}
		}
		return d
	})
	return 0
}

func TestReaderKilledAndReplaced(t *testing.T) {
	need.Fanotify(t)
	g, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	j := overlay(t, image(t), true)
	for round := range 2 {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe", "reader", j.root)
		cmd.Stdout, cmd.Stderr = w, os.Stderr
		cmd.ExtraFiles = []*os.File{g.File()}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		w.Close()
		line := func(want string) {
			t.Helper()
			r.SetReadDeadline(time.Now().Add(30 * time.Second))
			buf := make([]byte, 200)
			n, err := r.Read(buf)
			if got := strings.TrimSpace(string(buf[:n])); got != want {
				t.Fatalf("round %d: reader says %q (%v), want %q", round, got, err, want)
			}
		}
		line("ready")
		want(t, "the other process allows what the plan has", j.do(t, "exec", "/bin/true"), 0)
		status := make(chan int, 2)
		go func() { status <- j.do(t, "exec", "/bin/cat") }()
		line("silent")
		cmd.Process.Kill()
		cmd.Wait()
		r.Close()
		go func() { status <- j.do(t, "exec", "/bin/echo") }() // nobody reads: it waits
		select {
		case got := <-status:
			t.Errorf("round %d: an execution was answered (%d) although nobody could", round, got)
		case <-time.After(200 * time.Millisecond):
		}
		if n := g.SweepPending(nil); n != 1 {
			t.Errorf("round %d: swept %d, want 1", round, n)
		}
		want(t, "what was in the dead reader's hand is refused", <-status, refused)
		w2 := &warden{Guard: g}
		if err := g.Watch(Container{ID: "c", PID: os.Getpid(), Root: openPath(t, j.root), Application: []Program{{Path: "/bin/true"}}}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- g.Run(ctx, w2.decide) }()
		want(t, "what waited is refused by the next reader", <-status, refused)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		g.Forget("c")
	}
	g.Close()
}

func TestUpperDirectoryGivenRelative(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	base := t.TempDir()
	for _, d := range []string{"id", "id/diff", "id/work", "id/merged"} {
		os.Mkdir(base+"/"+d, 0o755)
	}
	t.Chdir(base)
	if err := unix.Mount("overlay", base+"/id/merged", "overlay", 0, "lowerdir="+lower+",upperdir=id/diff,workdir=id/work"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(base+"/id/merged", unix.MNT_DETACH) })
	t.Chdir("/")
	j := jail{root: base + "/id/merged"}
	w.watch(t, "c", j, nil)
	want(t, "as the image has it", j.do(t, "exec", "/bin/true"), 0)
	os.Chmod(j.root+"/bin/true", 0o700)
	want(t, "changed", j.do(t, "exec", "/bin/true"), refused)

	w.Forget("c")
	c := Container{ID: "c", PID: os.Getpid(), Root: openPath(t, j.root), Upper: t.TempDir()}
	var hint interface{ Remedy() string }
	if err := w.Watch(c); !errors.As(err, &hint) || hint.Remedy() == "" {
		t.Errorf("a directory that is not the upper one: got %v", err)
	}
}

func TestHardLinksInTheImage(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	if err := os.Link(lower+"/bin/true", lower+"/bin/same"); err != nil {
		t.Fatal(err)
	}
	j := overlay(t, lower, false)
	w.watch(t, "c", j, nil)
	want(t, "another name of the same file is the same program", j.do(t, "exec", "/bin/same"), 0)
	f, err := os.OpenFile(j.root+"/bin/same", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte{0}, 200)
	f.Close()
	want(t, "until it is written to", j.do(t, "exec", "/bin/same"), refused)
	want(t, "which does not touch the program", j.do(t, "exec", "/bin/true"), 0)
}

// A store through a shared mapping raises no event that resets an ignore mark.
func TestMappedStoreIntoAnAllowedProgram(t *testing.T) {
	w := guarded(t)
	j := overlay(t, image(t), false)
	w.watch(t, "c", j, nil)
	want(t, "before", j.do(t, "loop", "3", "/bin/true"), 0)
	f, err := os.OpenFile(j.root+"/bin/true", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		t.Fatal(err)
	}
	b[200]++
	unix.Munmap(b)
	f.Close()
	want(t, "after", j.do(t, "exec", "/bin/true"), refused)
}

// The root is read-only, a part of it is not: what the kernel answers for the
// rest it does not answer for that part, where a store through a shared mapping
// would not make it ask again.
func TestKernelAnswersNotForGuardedMounts(t *testing.T) {
	w := guarded(t)
	lower := image(t)
	if err := os.Mkdir(lower+"/home", 0o755); err != nil {
		t.Fatal(err)
	}
	install(t, lower, "/home/own", "/bin/true")
	j := overlay(t, lower, true)
	bind(t, j.merged+"/home", j.root+"/home", false)
	w.watch(t, "c", j, func(c *Container) {
		c.Application = append(c.Application, Program{Path: "/home/own"}, Program{Path: loader(t)})
		c.Mounts = map[string]Mount{"/home": {File: openPath(t, j.root+"/home"), Guarded: true, Own: true}}
	})
	for name, all := range map[string]bool{"/bin/true": false, "/home/own": true} {
		want(t, name, j.do(t, "exec", name), 0)
		w.events()
		want(t, name, j.do(t, "loop", "20", name), 0)
		if n := len(w.events()); n != map[bool]int{true: 20}[all] {
			t.Errorf("the guard was asked %d times about %s", n, name)
		}
	}
}

func TestSetBeforeThePivot(t *testing.T) {
	w := guarded(t)
	for _, row := range []struct {
		claim, path string
		who         record.Identity
		want        int
	}{
		{"a program of the plan runs", "/bin/true", record.Application, 0},
		{"another does not", "/bin/cat", record.Application, refused},
		{"an operator runs what is in the image", "/bin/echo", record.Operator, 0},
		{"and nothing written later", "/tmp/new", record.Operator, refused},
	} {
		for _, kind := range []string{"overlay", "bare"} {
			lower := image(t)
			time.Sleep(20 * time.Millisecond)
			j := bare(t, lower)
			if kind == "overlay" {
				j = overlay(t, lower, false)
			}
			created := time.Now()
			time.Sleep(20 * time.Millisecond)
			copyFile(t, j.merged+"/tmp/new", "/bin/true")
			cmd := exec.Command("/proc/self/exe", "inmate", "pivot", j.merged, row.path)
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 100)
			if n, _ := out.Read(buf); string(buf[:n]) != "ready\n" {
				t.Fatalf("inmate says %q", buf[:n])
			}
			w.watch(t, kind, j, func(c *Container) {
				c.PID, c.Created = cmd.Process.Pid, created
				c.Root = openPath(t, fmt.Sprintf("/proc/%d/root%s", cmd.Process.Pid, j.merged))
			})
			w.as(row.who, record.Serving)
			w.events()
			in.Write([]byte{1})
			io.Copy(io.Discard, out)
			cmd.Wait()
			want(t, kind+": "+row.claim, cmd.ProcessState.ExitCode(), row.want)
			if e := w.events(); len(e) == 0 || e[0].Path != row.path || e[0].ContainerID != kind {
				t.Errorf("%s: %s: got events %+v", kind, row.claim, e)
			}
			w.Forget(kind)
		}
	}
}

func TestFromFileWantsAGroup(t *testing.T) {
	f, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := FromFile(f); err == nil {
		t.Error("a directory was taken for a group")
	}
}

func TestWatchFailsAsAWhole(t *testing.T) {
	need.Fanotify(t)
	g, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer g.Close()
	for claim, c := range map[string]Container{
		"nothing":     {},
		"no process":  {ID: "c", Root: openPath(t, "/")},
		"no root":     {ID: "c", PID: os.Getpid()},
		"a mount nil": {ID: "c", PID: os.Getpid(), Root: openPath(t, t.TempDir()), Mounts: map[string]Mount{"/x": {Exec: true}}},
	} {
		if err := g.Watch(c); err == nil {
			t.Errorf("%s: no error", claim)
		}
	}
	if len(g.containers) != 0 {
		t.Error("something was kept")
	}
}

func BenchmarkExec(b *testing.B) {
	for _, row := range []struct {
		name            string
		guard, readonly bool
	}{{"unguarded", false, true}, {"asked", true, false}, {"cached", true, true}} {
		b.Run(row.name, func(b *testing.B) {
			j := overlay(b, image(b), row.readonly)
			if row.guard {
				w := guarded(b)
				w.watch(b, "c", j, nil)
			}
			b.ResetTimer()
			if got := j.do(b, "loop", fmt.Sprint(b.N), "/bin/true"); got != 0 {
				b.Fatalf("exit status %d", got)
			}
		})
	}
}
