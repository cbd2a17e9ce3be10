package supervise

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

func TestCalls(t *testing.T) {
	w := newWorld(t)
	_, p := w.container("calls", fakeConfig{Plan: testPlan(record.Enforce), Facts: Facts{Name: "n", Image: "i"}})
	p.want("getpgid 0", "ok")
	p.want("getsid", "ok") // needed while starting
	p.want("chroot", "operation not permitted")
	p.want("sethostname", "function not implemented")
	e := w.event("calls", record.Syscalls, "chroot", "chroot")
	if e.Verdict != record.Denied || e.Name != "n" || e.Image != "i" || e.Mode != record.Enforce || e.Phase != record.Starting ||
		e.Identity != record.Application || e.Process == nil || e.Process.PID != p.cmd.Process.Pid || e.Process.Exe != w.own || e.Remedy == "" || e.Reason == "" {
		t.Errorf("event: %+v", e)
	}
	// A panic is a refusal, the next is served.
	p.want(fmt.Sprintf("getpgid %d", argPanic), "operation not permitted")
	p.want("getpgid 0", "ok")
	w.event("calls", record.Supervision, "refuse", fmt.Sprintf("call %d", unix.SYS_GETPGID))
	if s := w.status("calls"); s == nil || s.State != "running" || s.Phase != record.Starting || s.Events[record.Syscalls] != 2 {
		t.Errorf("status: %+v", s)
	}
}

func TestAudit(t *testing.T) {
	w := newWorld(t)
	made := testPlan(record.Audit)
	made.Admission = admission()
	_, p := w.container("audit", fakeConfig{Plan: made})
	if e := w.events(func(e record.Event) bool { return e.Dimension == record.Admission }); len(e) != 1 || e[0].Object != "old" || e[0].Verdict != record.Observed || e[0].Mode != record.Audit {
		t.Errorf("what admission would refuse: %+v", e)
	}
	p.want("chroot", "ok")
	forbidden := filepath.Join(w.dir, "forbidden")
	copyProgram(t, "/bin/echo", forbidden)
	p.want("exec "+forbidden+" hello", "hello")
	p.want("listen 0.0.0.0 18099", "ok")
	for _, e := range []record.Event{w.event("audit", record.Syscalls, "chroot", ""), w.event("audit", record.Processes, "execve", forbidden), w.event("audit", record.Network, "listen", "tcp/18099")} {
		if e.Verdict != record.Observed || e.Mode != record.Audit {
			t.Errorf("event: %+v", e)
		}
	}
}

// An answer that takes more than 10 ms: Go's preemption interrupts runc, which
// asks again. That is still runc, and what comes after it is not.
func TestTheRuntimeAsksAgain(t *testing.T) {
	w := newWorld(t)
	if err := os.WriteFile(w.dir+"/slow", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, p := w.container("again", fakeConfig{Plan: testPlan(record.Enforce), NoExec: true})
	if _, err := os.Stat(w.dir + "/slow"); err == nil {
		t.Error("the answer was not slow")
	}
	p.want("exec /bin/true", "operation not permitted")
	if e := w.event("again", record.Syscalls, "execve", ""); e.Process == nil || e.Process.PID == 0 || e.Count != 1 {
		t.Errorf("event: %+v", e)
	}
}

func admission() plan.Admission {
	return plan.Admission{Verdict: plan.Refuse, Reasons: []plan.Reason{
		{ID: "odd", Verdict: plan.Warn, Text: "odd"}, {ID: "old", Verdict: plan.Refuse, Text: "too old", Remedy: "renew it"}}}
}

func TestAuditWithoutGuards(t *testing.T) {
	w := newWorld(t)
	for _, extra := range []string{`"guard fails"`, `"net fails"`} {
		id := strings.Fields(strings.Trim(extra, `"`))[0]
		_, p := w.container(id, fakeConfig{Plan: testPlan(record.Audit), Facts: Facts{Extra: []byte(extra)}})
		p.want("getpgid 0", "ok")
		w.event(id, record.Supervision, "weaken", map[string]string{"guard": "exec guard", "net": "network guard"}[id])
	}
}

func TestWeakerByTheOperatorsWish(t *testing.T) {
	w := newWorld(t)
	_, p := w.container("weaker", fakeConfig{Plan: testPlan(record.Enforce), Facts: Facts{Extra: []byte(`"weaker guard"`)}})
	p.want("getpgid 0", "ok")
	if e := w.event("weaker", record.Supervision, "weaken", "exec guard"); e.Verdict != record.Reported || e.Reason != "watch: as asked" {
		t.Errorf("event: %+v", e)
	}
}

func copyProgram(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestExec(t *testing.T) {
	w := newWorld(t)
	in, p := w.container("exec", fakeConfig{Plan: testPlan(record.Enforce), Facts: Facts{HealthCheck: []string{"/bin/echo", "healthy"}}})
	forbidden := filepath.Join(w.dir, "forbidden")
	copyProgram(t, "/bin/echo", forbidden)
	p.want("exec /bin/echo hello", "hello")
	p.want("exec "+forbidden+" hello", "operation not permitted")
	p.want("exec "+w.dir+"/../"+filepath.Base(w.dir)+"/./forbidden", "operation not permitted")
	p.want("exec "+w.dir+"/absent", "no such file or directory")
	p.want("execmemfd", "permission denied")
	link := filepath.Join(w.dir, "innocent")
	os.Symlink("forbidden", link)
	p.want("exec "+link, "operation not permitted")
	os.Chmod(forbidden, 0o644) // the kernel's own refusal is nobody's deviation
	p.want("exec "+forbidden, "permission denied")
	os.Chmod(forbidden, 0o755)
	e := w.event("exec", record.Processes, "execve", forbidden)
	if e.Verdict != record.Denied || !strings.Contains(e.Reason, "hello") {
		t.Errorf("event: %+v", e)
	}

	// The health check is the health check, and everything else is an operator's.
	announce := func(args ...string) {
		if a, err := w.call(wire.Request{Operation: wire.Exec, Exec: &wire.ExecRequest{Key: wire.Key{Root: "/run/test", ID: "exec"}, Args: args}}); err != nil || a.Error != "" {
			t.Fatal(err, a.Error)
		}
	}
	announce("/bin/echo", "healthy")
	announce("/bin/echo", "by", "hand")
	if got := in.enter("running", "/bin/echo", "by", "hand").read(); got != "by hand" {
		t.Error(got)
	}
	if got := in.enter("running", "/bin/echo", "healthy").read(); got != "healthy" {
		t.Error(got)
	}
	if got := in.enter("running", "/bin/echo", "unannounced").read(); got != "unannounced" {
		t.Error(got)
	}
	if e := w.event("exec", record.Processes, "exec", "/bin/echo by hand"); e.Verdict != record.Reported || e.Identity != record.Operator || strings.Contains(e.Reason, "did not come") {
		t.Errorf("event: %+v", e)
	}
	if e := w.event("exec", record.Processes, "exec", "/bin/echo unannounced"); !strings.Contains(e.Reason, "did not come") {
		t.Errorf("event: %+v", e)
	}
	if es := w.events(func(e record.Event) bool { return e.Action == "exec" && strings.Contains(e.Object, "healthy") }); len(es) > 0 {
		t.Errorf("a health check is reported: %+v", es)
	}
	announce("/bin/echo", "x")
	operator := in.enter("running", w.own, "__inside")
	operator.want("exec "+forbidden+" hello", "hello")
	operator.want("chroot", "ok")
	if e := w.event("exec", record.Syscalls, "chroot", ""); e.Verdict != record.Reported || e.Identity != record.Operator {
		t.Errorf("event: %+v", e)
	}
	// …which the application does not inherit.
	p.want("exec "+forbidden, "operation not permitted")
}

func TestListen(t *testing.T) {
	w := newWorld(t)
	known := testPlan(record.Enforce)
	known.Network.Inside = []plan.Listen{{Proto: "tcp", Port: 18098}} // of a known application
	in, p := w.container("listen", fakeConfig{Plan: known})
	p.want("listen 127.0.0.1 0", "ok")
	p.want("listenunix "+w.dir+"/s", "ok")
	p.want("listennone", "bad file descriptor")
	p.want("listenfile", "socket operation on non-socket")
	p.want("listen 0.0.0.0 18099", "permission denied")
	p.want("listen 0.0.0.0 18098", "ok") // which nobody can connect to: it does not serve yet
	// While it starts it may listen where the kernel chooses the port, which is
	// reported: bound by listen itself, and before.
	p.want("listen 0.0.0.0 -", "ok")
	p.want("listen 0.0.0.0 0", "ok")
	p.want("getsid", "ok")
	if s := w.status("listen"); s == nil || s.Phase != record.Starting {
		t.Fatalf("status: %+v", s)
	}
	w.must("two reports", func() bool {
		return len(w.events(func(e record.Event) bool {
			return e.Container == "listen" && e.Action == "listen" && e.Verdict == record.Reported && e.Phase == record.Starting
		})) == 2
	})
	p.want("listen 0.0.0.0 18081", "ok")
	conn, err := net.Dial("tcp", "127.0.0.1:18081")
	if err != nil {
		t.Error(err)
	} else {
		conn.Close()
	}
	e := w.event("listen", record.Network, "listen", "tcp/18099")
	if e.Verdict != record.Denied || len(e.Origins) != 1 || e.Origins[0].Text != "EXPOSE 18080" || !strings.Contains(e.Remedy, "EXPOSE 18099") {
		t.Errorf("event: %+v", e)
	}
	// It serves: what only start-up needed is taken away.
	p.want("getsid", "operation not permitted")
	p.want("listen 0.0.0.0 -", "permission denied")
	p.want("listen 0.0.0.0 0", "permission denied")
	p.want("getpgid 0", "ok")
	if s := w.status("listen"); s == nil || s.Phase != record.Serving {
		t.Errorf("status: %+v", s)
	}
	// Also for a worker that was not there.
	before := w.ping()
	unix.Kill(before, unix.SIGKILL)
	w.must("another worker", func() bool { pid := w.pingOnce(); return pid > 0 && pid != before })
	p.want("getsid", "operation not permitted")
	data, _ := os.ReadFile(w.dir + "/guard.log")
	if strings.Count(string(data), "serving "+in.token) != 2 {
		t.Errorf("guard log:\n%s", data)
	}
}

func TestWorkerKilled(t *testing.T) {
	w := newWorld(t)
	in, p := w.container("killed", fakeConfig{Plan: testPlan(record.Enforce)})
	others := make([]*process, 3)
	for i := range others {
		_, others[i] = w.container(fmt.Sprintf("other%d", i), fakeConfig{Plan: testPlan(record.Enforce)})
	}

	// A call that had been read when the worker was killed is answered by the next.
	before := w.ping()
	answer := make(chan string, 1)
	go func() { answer <- p.do(fmt.Sprintf("getpgid %d", argHang)) }()
	w.must("a call in hand", func() bool { _, err := os.Stat(w.dir + "/hanging"); return err == nil })
	os.WriteFile(w.dir+"/nohang", nil, 0o600)
	unix.Kill(before, unix.SIGKILL)
	if got := <-answer; got != "no such process" { // getpgid was made: there is no such process
		t.Errorf("the caller got %q", got)
	}
	after := w.ping()
	if after == before {
		t.Fatal("the worker was not replaced")
	}
	for _, o := range others {
		o.want("getpgid 0", "ok")
		o.want("chroot", "operation not permitted")
	}
	if s := w.status("killed"); s == nil || s.State != "running" || s.PID != in.init.Process.Pid {
		t.Errorf("status: %+v", s)
	}
	w.event("", record.Supervision, "restart", "supervisor")

	// A call that kills its worker twice is refused.
	if got := p.do(fmt.Sprintf("getpgid %d", argDie)); got != "operation not permitted" {
		t.Errorf("the caller got %q", got)
	}
	w.event("killed", record.Supervision, "refuse", "getpgid")
	p.want("getpgid 0", "ok")
}

// An answer that never comes keeps nobody else waiting.
func TestHungAnswer(t *testing.T) {
	w := newWorld(t)
	in, p := w.container("hang", fakeConfig{Plan: testPlan(record.Enforce)})
	for range 3 {
		p.want(fmt.Sprintf("getpgidlater %d", argHang), "ok")
		p.want("getpgid 0", "ok")
		p.want("chroot", "operation not permitted")
		p.want("exec /bin/echo hello", "hello")
	}
	w.must("a call in hand", func() bool { _, err := os.Stat(w.dir + "/hanging"); return err == nil })
	p.want("getpgid 0", "ok")
	in.kill()
	w.must("no state", w.empty)
}

// A container that has used up its share of the supervisor's time waits, and gets
// the answers that it would get otherwise.
func TestPoor(t *testing.T) {
	w := newWorld(t)
	_, p := w.container("poor", fakeConfig{Plan: testPlan(record.Enforce)})
	_, other := w.container("other", fakeConfig{Plan: testPlan(record.Enforce)})
	p.want(fmt.Sprintf("getpgid %d", argPoor), "no such process")
	for range 5 {
		p.want("getpgid 0", "ok")
		p.want("chroot", "operation not permitted")
		p.want("exec /bin/echo hello", "hello")
		other.want("getpgid 0", "ok")
	}
}

func TestShare(t *testing.T) {
	now := time.Now()
	s := &share{}
	for range 100 { // what it may save up
		if wait := s.spend(10*time.Millisecond, now); wait != 0 {
			t.Fatalf("waits %v with %v left", wait, s.left)
		}
		if s.left == shareMost {
			t.Fatal("nothing is taken")
		}
	}
	for s.spend(shareCost, now) == 0 {
	}
	if wait := s.spend(0, now); wait <= 0 || wait > shareCost*2 {
		t.Errorf("in debt by %v it waits %v", s.left, wait)
	}
	if wait := s.spend(0, now.Add(shareCost*2)); wait != 0 {
		t.Errorf("paid off, and it waits %v", wait)
	}
	for range 10000 {
		if wait := s.spend(time.Hour, now); wait > shareWait {
			t.Fatalf("waits %v", wait)
		}
	}
	if s.left < -shareMost {
		t.Errorf("a debt of %v", s.left)
	}
	if wait := s.spend(0, now.Add(-time.Hour)); wait > shareWait { // a clock that goes back
		t.Errorf("waits %v", wait)
	}
	if s.spend(0, now.Add(24*time.Hour)); s.left != shareMost {
		t.Errorf("%v left after a day", s.left)
	}
	// In the long run it gets what it is given.
	s, spent := &share{}, time.Duration(0)
	for at := now; at.Before(now.Add(time.Minute)); {
		at = at.Add(s.spend(0, at) + time.Millisecond)
		s.spend(time.Millisecond, at)
		spent += time.Millisecond
	}
	if spent < 25*time.Second || spent > 33*time.Second {
		t.Errorf("%v of a minute", spent)
	}
}

func TestMonitorKilled(t *testing.T) {
	w := newWorld(t)
	_, p := w.container("orphan", fakeConfig{Plan: testPlan(record.Enforce)})
	worker, monitor := w.ping(), w.monitor()
	unix.Kill(monitor, unix.SIGKILL)
	p.want("getpgid 0", "ok") // nothing stops meanwhile
	w.must("another monitor", func() bool { pid := w.monitor(); return pid > 0 && pid != monitor })
	if pid := w.ping(); pid != worker {
		t.Errorf("worker %d became %d", worker, pid)
	}
	// A second supervisor does not start beside it.
	if err := Monitor(t.Context(), testMonitor(w.dir, false)); err == nil || !strings.Contains(err.Error(), "running already") {
		t.Errorf("second monitor: %v", err)
	}
	// The new one does the old one's work.
	unix.Kill(worker, unix.SIGKILL)
	w.must("another worker", func() bool { pid := w.pingOnce(); return pid > 0 && pid != worker })
	p.want("chroot", "operation not permitted")
	p.want("getpgid 0", "ok")
	// …over and over.
	for range 3 {
		worker, monitor = w.ping(), w.monitor()
		unix.Kill(monitor, unix.SIGKILL)
		w.must("another monitor", func() bool { pid := w.monitor(); return pid > 0 && pid != monitor })
		unix.Kill(worker, unix.SIGKILL)
		p.want("getpgid 0", "ok")
	}
}

// What a service manager does when the monitor, its main process, has died.
func TestTakenOver(t *testing.T) {
	w := newWorld(t)
	_, p := w.container("taken", fakeConfig{Plan: testPlan(record.Enforce)})
	for round := range 3 {
		worker, monitor := w.ping(), w.monitor()
		if round > 0 {
			unix.Kill(monitor, unix.SIGKILL)
			w.must("another monitor", func() bool { pid := w.monitor(); return pid > 0 && pid != monitor })
			monitor = w.monitor()
		}
		w.startWith(w.own, []string{"__takeover"}, nil)
		w.must("the new monitor", func() bool { return w.monitor() == w.cmd.Process.Pid })
		w.must("the end of the old one", func() bool { return gone(monitor) })
		if pid := w.ping(); pid != worker {
			t.Errorf("worker %d became %d", worker, pid)
		}
		p.want("getpgid 0", "ok")
		unix.Kill(worker, unix.SIGKILL)
		w.must("another worker", func() bool { pid := w.pingOnce(); return pid > 0 && pid != worker })
		p.want("chroot", "operation not permitted")
	}
	// Several at once: one is left.
	worker := w.ping()
	var rivals []int
	for range 3 {
		cmd := exec.Command(w.own, "__takeover")
		cmd.Env = append(os.Environ(), "SUPERVISE_TEST_DIR="+w.dir)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		rivals = append(rivals, cmd.Process.Pid)
		defer func() { cmd.Process.Kill(); cmd.Wait() }()
	}
	for range 20 {
		p.want("getpgid 0", "ok")
	}
	if pid := w.ping(); pid != worker {
		t.Errorf("worker %d became %d", worker, pid)
	}
	// Without a supervisor it is a start like any other.
	w.must("one monitor", func() bool {
		var left []int
		for _, pid := range rivals {
			if !gone(pid) {
				left = append(left, pid)
			}
		}
		return len(left) == 1 && w.monitor() == left[0]
	})
	w.stop()
	w.startWith(w.own, []string{"__takeover"}, nil)
}

func TestReplaced(t *testing.T) {
	w := newWorld(t)
	_, p := w.container("hup", fakeConfig{Plan: testPlan(record.Enforce)})
	p.want("chroot", "operation not permitted")
	before := w.ping()
	unix.Kill(w.monitor(), unix.SIGHUP)
	w.must("another worker", func() bool { pid := w.pingOnce(); return pid > 0 && pid != before })
	p.want("getpgid 0", "ok")
	p.want("chroot", "operation not permitted")
	if es := w.events(func(e record.Event) bool { return e.Action == "restart" }); len(es) > 0 {
		t.Errorf("an intended replacement is reported as a crash: %+v", es)
	}
	if s := w.status("hup"); s == nil || s.Events[record.Syscalls] != 2 {
		t.Errorf("counts are lost: %+v", s)
	}
}

func TestStopped(t *testing.T) {
	w := newWorld(t)
	in, p := w.container("stopped", fakeConfig{Plan: testPlan(record.Enforce)})
	w.stop()
	p.want("getpgid 0", "function not implemented") // closed
	p.want("exec /bin/echo hello", "function not implemented")
	for _, name := range []string{"declarun.sock", "notify.sock"} {
		if _, err := os.Lstat(filepath.Join(w.dir, name)); err == nil {
			t.Errorf("%s is left behind", name)
		}
	}
	// Sockets of a supervisor that was killed are replaced.
	if ln, err := net.Listen("unix", w.dir+"/declarun.sock"); err == nil {
		ln.(*net.UnixListener).SetUnlinkOnClose(false)
		ln.Close()
	}
	w.start()
	if s := w.status("stopped"); s == nil || s.PID != in.init.Process.Pid {
		t.Errorf("status: %+v", s)
	}
	in.kill()
	w.must("no state of a container that is gone", func() bool { return w.empty() })
}

func (w *world) empty() bool {
	entries, _ := os.ReadDir(w.dir + "/state/containers")
	return len(entries) == 0
}

func TestNothingIsLeft(t *testing.T) {
	w := newWorld(t)
	if _, err := w.prepare("bad", fakeConfig{Error: "no plan"}); err == nil || err.Error() != "no plan" {
		t.Error(err)
	}
	unwanted := testPlan(record.Enforce)
	unwanted.Admission = admission()
	if _, err := w.prepare("unwanted", fakeConfig{Error: "admission", Plan: unwanted, Facts: Facts{Name: "n", Image: "i"}}); err == nil {
		t.Error("admission refuses, and it is let in")
	}
	if e := w.event("unwanted", record.Admission, "start", "old"); e.Verdict != record.Denied || e.Mode != record.Enforce || e.Name != "n" || e.Image != "i" || e.Reason != "too old" {
		t.Errorf("event: %+v", e)
	}
	if _, err := w.prepare("bad", fakeConfig{Error: "panic"}); err == nil || !strings.Contains(err.Error(), "own fault") {
		t.Error(err)
	}
	if !w.empty() {
		t.Error("a plan that could not be made left something")
	}
	for _, extra := range []string{`"guard fails"`, `"net fails"`} {
		token, err := w.prepare("half", fakeConfig{Plan: testPlan(record.Enforce), Facts: Facts{Extra: []byte(extra)}})
		if err != nil {
			t.Fatal(err)
		}
		if err := w.guard(token, os.Getpid()); err == nil || !strings.Contains(err.Error(), "as asked") {
			t.Errorf("guard: %v", err)
		}
		if !w.empty() {
			t.Errorf("%s left something", extra)
		}
		if err := w.guard(token, os.Getpid()); err == nil {
			t.Error("a container whose guards failed was guarded later")
		}
	}
	data, _ := os.ReadFile(w.dir + "/guard.log")
	if !strings.Contains(string(data), "forget") {
		t.Error("the exec guard was not taken back when the network guard failed")
	}
	in, p := w.container("whole", fakeConfig{Plan: testPlan(record.Enforce)})
	if err := w.guard(in.token, os.Getpid()); err == nil {
		t.Error("guarded twice")
	}
	p.want("getpgid 0", "ok")
	in.kill()
	w.must("no state", w.empty)
	if s := w.status("whole"); s != nil {
		t.Errorf("status: %+v", s)
	}
	token, _ := w.prepare("never", fakeConfig{Plan: testPlan(record.Enforce)})
	if w.empty() {
		t.Error("not stored")
	}
	if a, err := w.call(wire.Request{Operation: wire.Forget, Forget: &wire.Key{Root: "/run/test", ID: "never"}}); err != nil || a.Error != "" {
		t.Error(err, a.Error)
	}
	if !w.empty() {
		t.Error("forget left something")
	}
	if err := w.guard(token, os.Getpid()); err == nil {
		t.Error("guarded after forget")
	}
}

func TestStrangers(t *testing.T) {
	w := newWorld(t)
	// What is not runc's state is refused, and the next one is served.
	for _, junk := range []string{"", "{", "[]", "null", "{}", strings.Repeat("[", 100000), `{"fds":["seccompFd"],"pid":1,"metadata":"../../etc","state":{"status":"running"}}`} {
		conn, err := net.Dial("unix", w.dir+"/notify.sock")
		if err != nil {
			t.Fatal(err)
		}
		conn.Write([]byte(junk))
		conn.(*net.UnixConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(15 * time.Second))
		if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
			t.Errorf("%.20q was answered", junk)
		}
		conn.Close()
	}
	in, p := w.container("known", fakeConfig{Plan: testPlan(record.Enforce)})
	p.want("getpgid 0", "ok")
	// A container that nobody prepared gets its descriptor closed: execve fails.
	stranger := &inside{w: w, token: strings.Repeat("0", 32), init: in.init}
	if got := stranger.enter("creating", "/bin/echo", "hello").read(); got != "(ended)" {
		t.Errorf("an unknown container's first program ran: %q", got)
	}
	w.event("", record.Supervision, "refuse", "notifications")
	// …and one that was prepared and never guarded.
	token, err := w.prepare("unguarded", fakeConfig{Plan: testPlan(record.Enforce)})
	if err != nil {
		t.Fatal(err)
	}
	stranger.token = token
	if got := stranger.enter("creating", "/bin/echo", "hello").read(); got != "(ended)" {
		t.Errorf("an unguarded container's first program ran: %q", got)
	}
	w.event("unguarded", record.Supervision, "refuse", "notifications")
	// A descriptor that is no listener.
	conn, err := net.Dial("unix", w.dir+"/notify.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.(*net.UnixConn).WriteMsgUnix([]byte(`{"fds":["seccompFd"],"pid":1,"metadata":"`+in.token+`","state":{"status":"running"}}`), unix.UnixRights(0), nil)
	w.event("known", record.Supervision, "refuse", "notifications")
	p.want("getpgid 0", "ok")
}

func TestHundred(t *testing.T) {
	if testing.Short() {
		t.Skip("starts a hundred containers")
	}
	w := newWorld(t)
	const count = 100
	processes := make([]*process, count)
	var wg sync.WaitGroup
	for i := range count { // prepared at once
		wg.Add(1)
		go func() {
			defer wg.Done()
			if _, err := w.prepare(fmt.Sprintf("p%d", i), fakeConfig{Plan: testPlan(record.Enforce)}); err != nil {
				t.Error(err)
			}
		}()
	}
	wg.Wait()
	for i := range count {
		_, processes[i] = w.container(fmt.Sprintf("c%d", i), fakeConfig{Plan: testPlan(record.Enforce)})
	}
	for range 3 {
		for _, p := range processes {
			wg.Add(1)
			go func() {
				defer wg.Done()
				if got := p.do("getpgid 0"); got != "ok" {
					t.Error(got)
				}
				if got := p.do("chroot"); got != "operation not permitted" {
					t.Error(got)
				}
			}()
		}
		wg.Wait()
	}
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", w.ping()))
	if len(threads) > 60 {
		t.Errorf("%d threads for %d listeners", len(threads), count)
	}
	before := w.ping()
	unix.Kill(before, unix.SIGKILL)
	for _, p := range processes {
		p.want("chroot", "operation not permitted")
	}
	if a, err := w.call(wire.Request{Operation: wire.Status, Status: &wire.StatusRequest{Container: "c"}}); err != nil || len(a.Status) != count {
		t.Errorf("%v, %d containers", err, len(a.Status))
	}
}

func TestSystemdSockets(t *testing.T) {
	w := newWorld(t)
	w.stop()
	var files []*os.File
	for _, name := range []string{"notify.sock", "declarun.sock", "other.sock"} { // in any order, and more than are asked for
		f, err := listenUnix(filepath.Join(w.dir, name))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		fd, _ := dup(f)
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	// The address of a socket stays what it was bound to: tell systemd's from ours.
	if addr, err := unix.Getsockname(int(files[0].Fd())); err != nil || addr.(*unix.SockaddrUnix).Name != filepath.Join(w.dir, "notify.sock.new") {
		t.Fatalf("%v, %v", addr, err)
	}
	files = nil
	for _, name := range []string{"notify.sock", "declarun.sock", "other.sock"} {
		os.Remove(filepath.Join(w.dir, name))
		ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(w.dir, name), Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		ln.SetUnlinkOnClose(false)
		f, err := ln.File()
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
		defer f.Close()
		files = append(files, f)
	}
	w.startWith("/bin/sh", []string{"-c", "LISTEN_PID=$$ LISTEN_FDS=3 exec " + w.own + " __monitor"}, files)
	_, p := w.container("socket", fakeConfig{Plan: testPlan(record.Enforce)})
	p.want("chroot", "operation not permitted")
	w.stop()
	for _, name := range []string{"notify.sock", "declarun.sock"} {
		if _, err := os.Lstat(filepath.Join(w.dir, name)); err != nil {
			t.Errorf("systemd's socket was removed: %v", err)
		}
	}
}

func TestSocketPlaces(t *testing.T) {
	dir := t.TempDir()
	os.Chmod(dir, 0o777)
	if f, err := listenUnix(filepath.Join(dir, "s")); err == nil {
		f.Close()
		t.Error("listened where others may write")
	}
	os.Chmod(dir, 0o700)
	os.WriteFile(filepath.Join(dir, "file"), nil, 0o600)
	if f, err := listenUnix(filepath.Join(dir, "file")); err == nil {
		f.Close()
		t.Error("replaced a file")
	}
	f, err := listenUnix(filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	info, err := os.Lstat(filepath.Join(dir, "s"))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

// A worker that is stopped makes callers wait, and they can be killed.
func TestWorkerStopped(t *testing.T) {
	w := newWorld(t)
	in, p := w.container("waiting", fakeConfig{Plan: testPlan(record.Enforce)})
	pid := w.ping()
	w.pause(pid)
	done := make(chan string, 1)
	go func() { done <- p.do("chroot") }()
	select {
	case got := <-done:
		t.Fatalf("answered while nobody could: %q", got)
	case <-time.After(200 * time.Millisecond):
	}
	in.kill()
	<-done
	unix.Kill(pid, unix.SIGCONT)
	w.must("no state", w.empty)
}

// A worker that hangs is replaced.
func TestWorkerHung(t *testing.T) {
	w := newWorld(t)
	w.stop()
	os.WriteFile(w.dir+"/impatient", nil, 0o600)
	w.start()
	_, p := w.container("hung", fakeConfig{Plan: testPlan(record.Enforce)})
	pid := w.ping()
	w.pause(pid)
	p.want("chroot", "operation not permitted")
	if after := w.ping(); after == pid {
		t.Error("the worker was not replaced")
	}
}

func BenchmarkCall(b *testing.B) {
	w := newWorld(b)
	_, p := w.container("bench", fakeConfig{Plan: testPlan(record.Enforce)})
	b.ResetTimer()
	p.want(fmt.Sprintf("getpgids %d", b.N), "ok")
}

func BenchmarkExec(b *testing.B) {
	w := newWorld(b)
	_, p := w.container("bench", fakeConfig{Plan: testPlan(record.Enforce)})
	b.ResetTimer()
	p.want(fmt.Sprintf("execs %d /bin/true", b.N), "ok")
}

func BenchmarkExecBare(b *testing.B) {
	own, _ := os.Executable()
	p := (&inside{w: &world{t: b, own: own}}).run(exec.Command(own, "__inside"), true)
	defer p.cmd.Process.Kill()
	b.ResetTimer()
	p.want(fmt.Sprintf("execs %d /bin/true", b.N), "ok")
}
