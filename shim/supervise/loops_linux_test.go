package supervise

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// looper is a container that runs testdata/looper.c.
type looper struct {
	t    testing.TB
	w    *world
	in   *inside
	dir  string
	file string
	ends map[string]*end
}

// end is the other end of one of its processes, or threads.
type end struct {
	t    testing.TB
	name string
	in   *os.File
	out  *os.File
	read *bufio.Reader
}

func build(t testing.TB, to string, flags ...string) (program string, returns uint64) {
	t.Helper()
	program = filepath.Join(to, "looper")
	args := append([]string{"-O1", "-pthread", "-o", program, "testdata/looper.c"}, flags...)
	if out, err := exec.Command(need.Program(t, "gcc"), args...).CombinedOutput(); err != nil {
		t.Fatalf("gcc: %v\n%s", err, out)
	}
	out, err := exec.Command(program, "--returns").Output()
	if err != nil {
		t.Fatal(err)
	}
	returns, err = strconv.ParseUint(strings.TrimSpace(string(out)), 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return program, returns
}

// newLooper runs it. port says whether the container declares one.
func newLooper(t testing.TB, m record.Mode, port bool, flags ...string) *looper {
	if len(flags) == 0 {
		flags = []string{"-fPIE", "-pie"}
	}
	w := newWorld(t)
	return loopIn(t, w, "looper", m, port, flags...)
}

func loopIn(t testing.TB, w *world, id string, m record.Mode, port bool, flags ...string) *looper {
	l := &looper{t: t, w: w, dir: t.TempDir(), ends: map[string]*end{}}
	program, returns := build(t, l.dir, flags...)
	l.file = program
	made := testPlan(m)
	if !port {
		made.Network.Listen = nil
	}
	made.Syscalls.Loops = []plan.Loop{{File: program, Returns: []uint64{returns + 1000, returns}}}
	token, err := w.prepare(id, fakeConfig{Plan: made, Facts: Facts{Name: "n"}})
	if err != nil {
		t.Fatal(err)
	}
	l.in = &inside{w: w, id: id, token: token, init: exec.Command("/bin/sleep", "600")}
	if err := l.in.init.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, e := range l.ends { // orphans, too
			e.in.Close()
			e.out.Close()
		}
		l.in.kill()
	})
	if err := w.guard(token, l.in.init.Process.Pid); err != nil {
		t.Fatal(err)
	}
	t.Setenv("LOOPER_MARKER", strconv.FormatUint(returns, 16))
	l.end("main")
	l.in.enter("creating", program, l.dir, "main")
	return l
}

func (l *looper) end(name string) *end {
	l.t.Helper()
	if e := l.ends[name]; e != nil {
		return e
	}
	e := &end{t: l.t, name: name}
	for ext, f := range map[string]**os.File{".in": &e.in, ".out": &e.out} {
		p := filepath.Join(l.dir, name+ext)
		if err := unix.Mkfifo(p, 0o600); err != nil {
			l.t.Fatal(err)
		}
		var err error
		if *f, err = os.OpenFile(p, os.O_RDWR|unix.O_CLOEXEC, 0); err != nil { // waits for nobody
			l.t.Fatal(err)
		}
	}
	e.read = bufio.NewReader(e.out)
	l.ends[name] = e
	return e
}

func (e *end) do(command string) string {
	e.t.Helper()
	fmt.Fprintln(e.in, command)
	return e.next()
}

// next reads an answer.
func (e *end) next() string {
	e.t.Helper()
	e.out.SetReadDeadline(time.Now().Add(40 * time.Second))
	line, err := e.read.ReadString('\n')
	if err != nil {
		e.t.Fatalf("%s: %v", e.name, err)
	}
	return strings.TrimSpace(line)
}

func (e *end) want(command, want string) {
	e.t.Helper()
	if got := e.do(command); got != want {
		e.t.Errorf("%s: %s: %s, want %s", e.name, command, got, want)
	}
}

const denied = "Operation not permitted"

// proved waits until status says that so many processes are proved of so many.
func (l *looper) proved(n, of int) {
	l.t.Helper()
	l.w.must(fmt.Sprintf("%d of %d processes are proved", n, of), func() bool {
		s := l.w.status(l.in.id)
		if s == nil {
			return false
		}
		for _, note := range s.Notes {
			if strings.HasPrefix(note.Text, fmt.Sprintf("%d of %d processes of %s ", n, of, l.file)) {
				return true
			}
		}
		return false
	})
}

func TestLoop(t *testing.T) {
	for name, flags := range map[string][]string{"position independent": {"-fPIE", "-pie"}, "static": {"-no-pie", "-static"}, "static-pie": {"-static-pie"}} {
		t.Run(name, func(t *testing.T) {
			l := newLooper(t, record.Enforce, true, flags...)
			main := l.end("main")
			main.want("call", "ok")
			early := l.end("early")
			main.want("fork early", "ok")
			main.want("loop", "ok")
			main.want("call", denied) // its own stack says so
			early.want("call", "ok")  // forked before
			e := l.w.event("looper", record.Syscalls, "getpriority", "")
			if e.Verdict != record.Denied || e.Process == nil || e.Process.Exe != l.file || !strings.Contains(e.Reason, l.file) || !strings.Contains(e.Reason, "service loop") || e.Phase != record.Starting {
				t.Errorf("event: %+v", e)
			}
			// Proved once, it stays proved, whatever its stack says.
			main.want("wipe", "ok")
			main.want("call", denied)
			main.want("scrub", "ok")
			main.want("call", denied)
			// A child that wiped its stack before anybody looked at it may be the
			// early one's.
			late := l.end("late")
			main.want("fork late", "ok")
			late.want("call", "ok")
			early.want("call", "ok")
			early.want("loop", "ok")
			early.want("call", denied)
			if s := l.w.status("looper"); s == nil || s.Phase != record.Starting {
				t.Errorf("status: %+v", s)
			}
		})
	}
}

func TestLoopAudit(t *testing.T) {
	l := newLooper(t, record.Audit, false)
	main := l.end("main")
	main.want("loop", "ok")
	main.want("call", "ok")
	e := l.w.event("looper", record.Syscalls, "getpriority", "")
	if e.Verdict != record.Observed || !strings.Contains(e.Reason, "the mode is audit") {
		t.Errorf("event: %+v", e)
	}
}

// An operator's exec is not concerned, whatever it runs.
func TestLoopOfAnOperator(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	l.end("main").want("loop", "ok")
	l.end("main").want("call", denied)
	operator := l.end("operator")
	l.in.enter("running", l.file, l.dir, "operator")
	operator.want("loop", "ok")
	operator.want("call", "ok")
	l.end("main").want("call", denied)
}

// With no declared port the processes are looked at from the start: one that
// never made such a call cannot escape by wiping its stack, nor can its children.
func TestLoopSampled(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	main := l.end("main")
	main.want("loop", "ok")
	l.proved(1, 1)
	nextTick(t)
	main.want("wipe", "ok")
	child := l.end("child")
	main.want("fork child", "ok")
	child.want("wipe", "nothing to wipe")
	child.want("call", denied) // by descent
	grandchild := l.end("grandchild")
	child.want("orphan grandchild", "ok")
	grandchild.want("call", denied) // whoever its parent is now
	grandchild.want("scrub", "ok")
	grandchild.want("execfail", "No such file or directory")
	grandchild.want("call", denied)
	main.want("execfail", "No such file or directory")
	main.want("call", denied)
}

// nextTick waits for the kernel's start times to tell what comes now from before.
func nextTick(t *testing.T) {
	t.Helper()
	before := ticks()
	if !eventually(func() bool { return ticks() > before }) {
		t.Fatal("time stands still")
	}
}

func TestLoopExecutedAgain(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	main := l.end("main")
	main.want("loop", "ok")
	main.want("call", denied)
	child := l.end("child")
	main.want("fork child", "ok")
	child.want("call", denied)
	again, helper := l.end("again"), l.end("helper")
	fmt.Fprintln(child.in, "exec again")
	again.want("call", "ok")
	again.want("fork helper", "ok")
	helper.want("call", "ok")
	main.want("call", denied)
	orphan := l.end("orphan")
	again.want("orphan orphan", "ok")
	orphan.want("call", "ok")
	again.want("loop", "ok")
	again.want("call", denied)
	helper.want("call", "ok")
	orphan.want("call", "ok")
}

// A child that borrows its parent's memory until it executes something keeps
// nothing of what that memory proved.
func TestLoopVfork(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	copyProgram(t, l.file, filepath.Join(l.dir, "other"))
	main := l.end("main")
	main.want("loop", "ok")
	main.want("call", denied)
	for i, command := range []string{"exec", "execother"} {
		child, executed := l.end(fmt.Sprint("child", i)), l.end(fmt.Sprint("executed", i))
		fmt.Fprintln(main.in, "vfork "+child.name)
		child.want("call", denied)
		l.w.status("looper")
		fmt.Fprintln(child.in, command+" "+executed.name)
		executed.want("call", "ok")
		if got := main.next(); got != "ok" {
			t.Errorf("vfork: %s", got)
		}
		main.want("call", denied)
		executed.want("call", "ok")
	}
}

func TestLoopBeyond(t *testing.T) {
	l := newLooper(t, record.Enforce, true)
	main := l.end("main")
	main.want("deep 100", "ok") // 6 MiB
	main.want("call", "ok")
	main.want("loop", "ok")
	main.want("call", "ok") // beyond what is read: not found is not proved
}

func TestLoopDeep(t *testing.T) {
	l := newLooper(t, record.Enforce, true)
	main := l.end("main")
	thread := l.end("thread")
	main.want("thread thread", "ok")
	main.want("loop", "ok")
	main.want("deep 100", "ok")
	// By the stack of the main thread, once it waits.
	if !eventually(func() bool { return thread.do("call") == denied }) {
		t.Error("not found on the main thread's stack")
	}
	main.want("call", denied)
}

func TestLoopOfAThread(t *testing.T) {
	l := newLooper(t, record.Enforce, true)
	main := l.end("main")
	thread := l.end("thread")
	main.want("threadloop thread", "ok")
	thread.want("call", denied)
	main.want("call", denied)
}

// Nothing is proved of a stack that is not there, and nothing breaks.
func TestLoopWithoutStack(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	main := l.end("main")
	main.want("pivot", "ok")
	main.want("call", "ok")
	main.want("loop", "ok")
	main.want("call", "ok")
	main.want("calls 2000", "ok")
	main.want("call", "ok")
}

// A stack whose pages a process would have to provide itself keeps nobody waiting.
func TestLoopTrap(t *testing.T) {
	need.Userfaultfd(t)
	l := newLooper(t, record.Enforce, false)
	main := l.end("main")
	traps := []string{"a", "b", "c"}
	for _, name := range traps {
		l.end(name)
		main.want("fork "+name, "ok")
		l.end(name).want("trap", "ok")
	}
	for _, name := range traps[1:] {
		fmt.Fprintln(l.end(name).in, "call")
	}
	main.want("call", "ok")
	main.want("loop", "ok")
	l.proved(1, 4) // nobody asked
	main.want("wipe", "ok")
	main.want("call", denied)
	l.in.kill()
	l.w.must("no state", l.w.empty)
}

// A look that does not end is given up, is not tried again, and is over some time.
func TestLoopHung(t *testing.T) {
	k, calls, release := newLoops(), make(chan int, 100), make(chan struct{})
	k.lookAt = func(tid int, _ []program) (sight, error) {
		calls <- tid
		<-release
		return sight{}, errGone
	}
	for range 3 {
		if _, _, err := k.look(proc{7, 1}, 0); !errors.Is(err, errHung) {
			t.Errorf("%v", err)
		}
	}
	if len(calls) != 1 {
		t.Errorf("%d looks", len(calls))
	}
	close(release)
	if !eventually(func() bool { _, _, err := k.look(proc{7, 1}, 0); return errors.Is(err, errGone) }) {
		t.Error("never looked at again")
	}
}

// Processes that execute and end while they are looked at.
func TestLoopRaces(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	main := l.end("main")
	main.want("loop", "ok")
	main.want("call", denied)
	execed := l.end("execed")
	for range 5 {
		child := l.end("child")
		main.want("fork child", "ok")
		fmt.Fprintln(child.in, "execforever "+strings.Repeat("x", 40))
		for range 20 {
			main.want("call", denied)
			l.w.status("looper")
		}
		execed.want("call", "ok") // never refused for what it was
		fmt.Fprintln(execed.in, "end")
	}
}

func TestLoopServes(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	main := l.end("main")
	workers := []string{"a", "b", "c"}
	for _, name := range workers {
		l.end(name)
		main.want("fork "+name, "ok")
	}
	main.want("loop", "ok")
	l.end("a").want("loop", "ok")
	l.end("b").want("loop", "ok")
	main.want("call", denied)
	l.proved(3, 4)
	l.end("a").want("wipe", "ok")
	l.end("a").want("call", denied)
	l.end("c").want("call", "ok")
}

// A restarted worker neither gives a call back nor refuses it wrongly.
func TestLoopRestart(t *testing.T) {
	l := newLooper(t, record.Enforce, false)
	main, early := l.end("main"), l.end("early")
	main.want("fork early", "ok")
	main.want("loop", "ok")
	main.want("call", denied)
	l.proved(1, 2)
	main.want("wipe", "ok")
	restart := func(signal unix.Signal) {
		t.Helper()
		before := l.w.ping()
		if signal == unix.SIGHUP {
			unix.Kill(l.w.monitor(), signal)
		} else {
			unix.Kill(before, signal)
		}
		l.w.must("another worker", func() bool { pid := l.w.pingOnce(); return pid > 0 && pid != before })
	}
	for _, signal := range []unix.Signal{unix.SIGKILL, unix.SIGHUP, unix.SIGKILL} {
		restart(signal)
		main.want("call", denied)
		early.want("call", "ok")
	}
	again := l.end("again")
	fmt.Fprintln(main.in, "exec again")
	again.want("call", "ok")
	restart(unix.SIGKILL)
	again.want("call", "ok")
	early.want("call", "ok")
}

func BenchmarkLoopUnproved(b *testing.B) {
	l := newLooper(b, record.Enforce, true)
	b.ResetTimer()
	l.end("main").want(fmt.Sprintf("calls %d", b.N), "ok")
}

func BenchmarkLoopProved(b *testing.B) {
	l := newLooper(b, record.Enforce, true)
	l.end("main").want("loop", "ok")
	b.ResetTimer()
	l.end("main").want(fmt.Sprintf("calls %d", b.N), "ok")
}
