package proctree

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

// What the kernel's copy of the filter lets through is what is parsed, and
// nothing else: two judges of the same messages.
func TestFilterAndParserAgree(t *testing.T) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	program := filter()
	if err := unix.SetsockoptSockFprog(pair[1], unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		t.Fatal(err)
	}
	kinds := []What{acknowledged, Forked, Executed, ChangedUser, Renamed, DumpedCore, Ended, 0x40, 0x80, 0x100, 0x2000_0000, 3, 0xffff_ffff}
	r := rand.New(rand.NewPCG(1, 2))
	buf := make([]byte, maxDatagram)
	passed := 0
	for range 4000 {
		m := message(kinds[r.IntN(len(kinds))], 1+r.Uint32N(2), 1+r.Uint32N(2), 1+r.Uint32N(2), 1+r.Uint32N(2))
		events, ack, err := parse(m)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Send(pair[0], m, 0); err != nil && err != unix.EPERM {
			t.Fatal(err)
		}
		n, _, err := unix.Recvfrom(pair[1], buf, unix.MSG_DONTWAIT)
		if got, want := err == nil && n == len(m), len(events) > 0 || ack != nil; got != want {
			t.Fatalf("% x: the kernel %t, the parser %t", m[eventAt:], got, want)
		} else if got {
			passed++
		}
	}
	if passed == 0 {
		t.Error("nothing passed")
	}
}

// world is a Watch with everything that it told.
type world struct {
	*Watch
	mu    sync.Mutex
	found []string
	lost  []string
	phase record.Phase
}

func newWorld(t *testing.T, o Options) *world {
	need.Root(t)
	w := &world{phase: record.Starting}
	o.Found = func(token string, f Finding) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.found = append(w.found, fmt.Sprintf("%s %s %s: %s", token, f.Kind, f.Object, f.Detail))
	}
	o.Lost = func(n uint64, reason string) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.lost = append(w.lost, fmt.Sprintf("%d %s", n, reason))
	}
	o.Phase = func(string) record.Phase { return w.phase }
	w.Watch = New(o)
	t.Cleanup(w.Close)
	return w
}

// shell is the init of a pid namespace that does what it is told.
type shell struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func newShell(t *testing.T) *shell {
	cmd := exec.Command("/bin/sh")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID | syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := &shell{t, cmd, in, bufio.NewReader(out)}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	s.run("mount -t proc proc /proc")
	return s
}

// run waits until the commands are done, and gives the first line they print.
func (s *shell) run(commands string) string {
	s.t.Helper()
	fmt.Fprintf(s.in, "%s\necho done\n", commands)
	line := make(chan string, 1)
	go func() {
		first := ""
		for {
			l, err := s.out.ReadString('\n')
			if l == "done\n" || err != nil {
				line <- first
				return
			}
			if first == "" {
				first = strings.TrimSpace(l)
			}
		}
	}()
	select {
	case l := <-line:
		return l
	case <-time.After(60 * time.Second):
		s.t.Fatalf("%q takes a minute", commands)
		return ""
	}
}

func (w *world) add(t *testing.T, s *shell) {
	t.Helper()
	if err := w.Add(Container{Token: "c", Init: s.cmd.Process.Pid, Running: true}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) tree(t *testing.T) record.Tree {
	t.Helper()
	tree, _, ok := w.Tree("c")
	if !ok {
		t.Fatal("no tree")
	}
	return tree
}

func programs(tree record.Tree) (all []string) {
	for _, p := range tree.Live {
		all = append(all, filepath.Base(p.Exe))
	}
	return all
}

// until asks a few seconds long for what must become true.
func until(t *testing.T, what string, is func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !is(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 20 s: %s", what)
		}
	}
}

func ranTimes(tree record.Tree, base string) (n uint64) {
	for _, r := range tree.Before {
		if filepath.Base(r.Exe) == base {
			n += r.Count
		}
	}
	return n
}

func TestTreeOfANamespace(t *testing.T) {
	w, s := newWorld(t, Options{}), newShell(t)
	w.add(t, s)
	s.run("sleep 100 & a=$!; sleep 100 & b=$!")
	until(t, "both sleep", func() bool { return slices.Equal(programs(w.tree(t))[1:], []string{"sleep", "sleep"}) })
	tree := w.tree(t)
	for i, p := range tree.Live {
		if p.Identity != record.Application || p.Inside == 0 || p.StartTime == 0 || (p.Parent == 0) != (i == 0) {
			t.Errorf("%+v", p)
		}
	}
	s.run("kill $a $b; wait")
	until(t, "both sleeps are over", func() bool { return ranTimes(w.tree(t), "sleep") == 2 })
	for _, r := range w.tree(t).Before {
		if filepath.Base(r.Exe) == "sleep" && r.Status != "signal 15" {
			t.Errorf("%+v", r)
		}
	}
	if got := programs(w.tree(t)); len(got) != 1 {
		t.Errorf("%q", got)
	}
	w.Forget("c")
	if _, _, ok := w.Tree("c"); ok {
		t.Error("it is forgotten, and there")
	}
}

// A process inside a pid namespace of its own is the container's, also where it
// came while nobody listened.
func TestTreeOfNestedNamespaces(t *testing.T) {
	need.Program(t, "unshare")
	w, s := newWorld(t, Options{}), newShell(t)
	s.run("unshare -p -f --mount-proc unshare -p -f sleep 101 & sleep 0.3")
	w.add(t, s)
	s.run("unshare -p -f sleep 102 & sleep 0.3")
	tree := w.tree(t)
	inside := map[string]int{}
	for _, p := range tree.Live {
		if len(p.Argv) == 2 && p.Argv[0] == "sleep" {
			inside[p.Argv[1]] = p.Inside
			if p.Identity != record.Application {
				t.Errorf("%+v", p)
			}
		}
	}
	if inside["101"] != 1 || inside["102"] != 1 {
		t.Errorf("%v in %q", inside, programs(tree))
	}
}

func TestTreeOfAThousandShortLives(t *testing.T) {
	w, s := newWorld(t, Options{}), newShell(t)
	w.add(t, s)
	s.run("i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done")
	total := func() (n uint64) {
		for _, r := range w.tree(t).Before {
			n += r.Count
		}
		return n
	}
	until(t, "a thousand ran", func() bool { return total() >= 1000 })
	tree := w.tree(t)
	if len(tree.Before) > 4 || len(tree.Live) != 1 {
		t.Errorf("%d kinds, %d live: %+v", len(tree.Before), len(tree.Live), tree.Before)
	}
	if total() != 1000 || tree.Lost != 0 {
		t.Errorf("%d ran, %d lost", total(), tree.Lost)
	}
}

// What a process was let execute is known also when it is gone before anybody
// can look at it.
func TestTreeKnowsWhatWasAsked(t *testing.T) {
	w := newWorld(t, Options{})
	w.Watch.containers["c"] = &watched{container: newContainer(1, time.Now()), token: "c"}
	x := w.containers["c"]
	x.live[500] = &process{LiveProcess: record.LiveProcess{PID: 500, Ran: true, Exe: "/bin/sh", Identity: record.Application}}
	w.byPID[500] = x
	w.happened(Event{What: Forked, PID: 4_000_000, Parent: 500})
	w.Ask(4_000_000, Asked{Token: "c", Exe: "/usr/bin/pg_isready", Argv: []string{"pg_isready"}, Identity: record.HealthCheck, Phase: record.Serving})
	w.happened(Event{What: Executed, PID: 4_000_000})
	w.happened(Event{What: Ended, PID: 4_000_000, Status: 2 << 8})
	got, _ := w.Stored("c")
	if len(got.Before) != 1 {
		t.Fatalf("%+v", got)
	}
	if e, ok := w.Lately("c", 4_000_000); !ok || e.Exe != "/usr/bin/pg_isready" || len(e.By) != 1 || e.By[0].Exe != "/bin/sh" {
		t.Errorf("lately: %+v, %t", e, ok)
	}
	if e, ok := w.Lately("c", 4_000_001); ok {
		t.Errorf("lately: %+v", e)
	}
	r := got.Before[0]
	if r.Exe != "/usr/bin/pg_isready" || r.Parent != "/bin/sh" || r.Identity != record.HealthCheck || r.Status != "exit 2" || r.Count != 1 {
		t.Errorf("%+v", r)
	}
}

// The number of a process whose end nobody told of is given again.
func TestTreeOfNumbersGivenAgain(t *testing.T) {
	w := newWorld(t, Options{})
	x := &watched{container: newContainer(1, time.Now()), token: "c"}
	w.containers["c"] = x
	x.live[500] = &process{LiveProcess: record.LiveProcess{PID: 500, Ran: true, Exe: "/bin/sh", Identity: record.Application}}
	w.byPID[500] = x
	mono, _ := clocks()
	w.happened(Event{What: Forked, PID: 4_000_000, Parent: 500, Time: uint64(mono)})
	w.Ask(4_000_000, Asked{Token: "c", Exe: "/bin/first"})
	w.happened(Event{What: Executed, PID: 4_000_000})
	w.happened(Event{What: Forked, PID: 4_000_000, Parent: 500, Time: uint64(mono) + 5e9})
	got, _ := w.Stored("c")
	if len(got.Before) != 1 || got.Before[0].Exe != "/bin/first" || got.Before[0].Status != "not seen" {
		t.Errorf("%+v", got.Before)
	}
	if p := x.live[4_000_000]; p == nil || p.Exe != "/bin/sh" {
		t.Errorf("%+v", p)
	}
	// One that /proc showed before its own fork was told of is not another.
	_, boot := clocks()
	x.live[4_000_000].StartTime = uint64(boot / 10_000_000)
	w.happened(Event{What: Forked, PID: 4_000_000, Parent: 500, Time: uint64(mono) + uint64(time.Millisecond)})
	if got, _ := w.Stored("c"); len(got.Before) != 1 {
		t.Errorf("%+v", got.Before)
	}
	// A stranger that has the number of a container's process is nobody's.
	delete(x.live, 500)
	delete(w.byPID, 500)
	w.happened(Event{What: Forked, PID: 4_000_000, Parent: 1, Time: uint64(mono) + 60e9})
	if _, ok := x.live[4_000_000]; ok {
		t.Error("a stranger is the container's")
	}
}

// Losses are made on purpose: a socket that holds a few messages, and nobody
// who reads it while hundreds of processes begin and end.
func TestTreeAfterLoss(t *testing.T) {
	w := newWorld(t, Options{open: func() (*Connector, error) { return openAnywhere(4096) }})
	s := newShell(t)
	w.add(t, s)
	w.Watch.mu.Lock() // its reader stops at the next event
	s.run("i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done; sleep 103 &")
	w.Watch.mu.Unlock()
	until(t, "the loss is told", func() bool {
		w.world().Lock()
		defer w.world().Unlock()
		return len(w.lost) > 0
	})
	until(t, "what lives is in the tree", func() bool { return slices.Equal(programs(w.tree(t))[1:], []string{"sleep"}) })
	until(t, "all that were lost are counted, of about a thousand", func() bool { return w.tree(t).Lost >= 100 })
	w.world().Lock()
	defer w.world().Unlock()
	if !strings.Contains(w.lost[0], "could not deliver") {
		t.Errorf("%q", w.lost)
	}
}

func (w *world) world() *sync.Mutex { return &w.mu }

func (w *world) told(t *testing.T, part string) {
	t.Helper()
	until(t, part, func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.ContainsFunc(w.found, func(f string) bool { return strings.Contains(f, part) })
	})
}

func TestCrashesAreTold(t *testing.T) {
	w, s := newWorld(t, Options{}), newShell(t)
	w.add(t, s)
	s.run("sh -c 'kill -TERM $$'; sh -c 'kill -SEGV $$'")
	w.told(t, "ended by SIGSEGV")
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.found) != 1 {
		t.Errorf("%q", w.found)
	}
}

// Rights that a process did not have are told once; those that it gives up, and
// takes back because it kept them, are not.
func TestGainsAreTold(t *testing.T) {
	need.Program(t, "setpriv")
	w, s := newWorld(t, Options{}), newShell(t)
	w.add(t, s)
	dir := t.TempDir()
	for d := dir; len(d) > len(os.TempDir()); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	sleep, err := os.ReadFile(need.Program(t, "sleep"))
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(dir, "rootsleep")
	if err := os.WriteFile(root, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Chmod(root, 0o4755); err != nil {
		t.Fatal(err)
	}
	s.run("setpriv --reuid 65534 --clear-groups sleep 0.2")
	w.mu.Lock()
	if len(w.found) != 0 {
		t.Errorf("%q", w.found)
	}
	w.mu.Unlock()
	s.run("setpriv --reuid 65534 --clear-groups sh -c 'sleep 0.2; " + root + " 5' & sleep 1")
	w.told(t, "gain root: user 65534 became root")
	odd := false
	for _, p := range w.tree(t).Live {
		odd = odd || slices.Contains(p.Odd, "gained root") && p.UID == 0 && p.RealUID == 65534
	}
	if !odd {
		t.Errorf("%+v", w.tree(t).Live)
	}
}

// A worker that takes a container over knows what the earlier one stored, of the
// processes that are the same.
func TestTreeIsTakenOver(t *testing.T) {
	w, s := newWorld(t, Options{}), newShell(t)
	w.add(t, s)
	s.run("/bin/true; sleep 104 &")
	until(t, "one ran", func() bool { return len(w.tree(t).Before) > 0 })
	earlier := w.tree(t)
	for i := range earlier.Live {
		if earlier.Live[i].Argv[0] == "sleep" {
			earlier.Live[i].Identity = record.Operator
		}
	}
	stale := earlier.Live[1]
	stale.PID, stale.Exe = 4_000_001, "/gone"
	earlier.Live = append(earlier.Live, stale)
	w.Close()
	s.run("sleep 105 & sleep 0.3")
	next := newWorld(t, Options{})
	if err := next.Add(Container{Token: "c", Init: s.cmd.Process.Pid, Running: true, Earlier: &earlier}); err != nil {
		t.Fatal(err)
	}
	until(t, "what is gone is gone", func() bool { return len(next.tree(t).Live) == 3 && ranTimes(next.tree(t), "gone") == 1 })
	tree := next.tree(t)
	if !tree.Since.Equal(earlier.Since) || ranTimes(tree, "true") != ranTimes(earlier, "true") {
		t.Errorf("%+v", tree)
	}
	for _, p := range tree.Live {
		want := record.Application
		if slices.Equal(p.Argv, []string{"sleep", "104"}) {
			want = record.Operator
		}
		if p.Identity != want {
			t.Errorf("%+v", p)
		}
	}
}

// Without a connector the tree is what /proc has when somebody asks.
func TestTreeWithoutConnector(t *testing.T) {
	w := newWorld(t, Options{open: func() (*Connector, error) { return nil, &UnsupportedError{Err: errors.New("none here")} }})
	s := newShell(t)
	w.add(t, s)
	s.run("sleep 106 & a=$!")
	until(t, "it sleeps", func() bool { return slices.Equal(programs(w.tree(t))[1:], []string{"sleep"}) })
	tree, why, _ := w.Tree("c")
	if got := programs(tree); why == nil || !strings.Contains(why.Error(), "none here") {
		t.Errorf("%q, %v", got, why)
	}
	s.run("kill $a; wait")
	if got := w.tree(t); len(got.Live) != 1 || ranTimes(got, "sleep") != 1 {
		t.Errorf("%+v", got)
	}
}

// In a network namespace of its own nobody answers, and soon. The socket can be
// the machine's all the same.
func TestConnectorElsewhere(t *testing.T) {
	need.Root(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		var unsupported *UnsupportedError
		if c, err := openConnector(4096); !errors.As(err, &unsupported) || !errors.Is(err, errElsewhere) || unsupported.Remedy() == "" {
			t.Errorf("%v, %v", c, err)
		}
		c, err := OpenConnector()
		if err != nil {
			t.Error(err)
			return
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	<-done
}

// Another process that may write to the socket is not the kernel.
func TestConnectorHearsTheKernelOnly(t *testing.T) {
	need.Root(t)
	c, err := OpenConnector()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var self unix.Sockaddr
	if err := control(c.file, func(fd int) (err error) { self, err = unix.Getsockname(fd); return err }); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, unix.NETLINK_CONNECTOR)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	const nobody = 0x7fff_fff0
	if err := unix.Sendto(fd, message(Executed, nobody, nobody), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Pid: self.(*unix.SockaddrNetlink).Pid}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	go exec.CommandContext(ctx, "/bin/true").Run()
	heard := 0
	if err := c.Run(ctx, func(e Event) {
		if e.PID == nobody {
			t.Error("it was believed")
		}
		heard++
	}, func(uint64) {}); err != nil {
		t.Error(err)
	}
	if heard == 0 {
		t.Error("nothing of the kernel's, either")
	}
}

// An engine gives what it runs in a container the rights that it has written
// down, more than the plan left the application: only the application's count.
func TestWhatTheEngineGaveIsNoGain(t *testing.T) {
	ns, err := namespace(os.Getpid(), "user")
	if err != nil {
		t.Fatal(err)
	}
	x := &watched{bounds: 1, place: place{userns: ns}}
	for id, want := range map[record.Identity]int{record.Application: 1, record.HealthCheck: 0, record.Operator: 0} {
		before := &process{}
		p := &process{capsKnown: true, caps: 3}
		p.PID, p.Identity = os.Getpid(), id
		if have := x.gains(before, p); len(have) != want {
			t.Errorf("%s: %v", id, have)
		}
	}
}
