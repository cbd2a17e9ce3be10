package supervise

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// The test program is also the supervisor's two processes, the child in the pid
// namespace, and the container.
func TestMain(m *testing.M) {
	mode := ""
	if len(os.Args) > 1 {
		mode = os.Args[1]
	}
	dir := os.Getenv("SUPERVISE_TEST_DIR")
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, mode+":", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	switch mode {
	case "__monitor":
		fail(Monitor(context.Background(), testMonitor(dir, false)))
	case "__takeover":
		o := testMonitor(dir, false)
		o.TakeOver = true
		fail(Monitor(context.Background(), o))
	case "__adopt":
		fail(Monitor(context.Background(), testMonitor(dir, true)))
	case "__worker":
		log.SetPrefix(fmt.Sprintf("worker %d: ", os.Getpid()))
		fail(testWorker(dir))
	case "__memfd":
		fail(ForbidMemfdExec())
	case "__container":
		fail(container1(os.Args[2:]))
	case "__hook":
		fail(testHook(os.Args[2], os.Args[3]))
	case "__inside":
		fail(container2())
	}
	os.Exit(m.Run())
}

func testMonitor(dir string, adopt bool) MonitorOptions {
	patience := time.Duration(0)
	if _, err := os.Stat(dir + "/impatient"); err == nil {
		patience = 4 * time.Second
	}
	return MonitorOptions{
		Patience: patience,
		Socket:   dir + "/declarun.sock", NotifySocket: dir + "/notify.sock", Lock: dir + "/lock",
		WorkerArgs: []string{"__worker"}, MonitorArgs: []string{"__adopt"}, Adopt: adopt,
		Ready: func() { os.WriteFile(dir+"/monitor.pid", []byte(strconv.Itoa(os.Getpid())), 0o600) },
	}
}

const (
	argPanic = 0xdead // getpgid arguments that make the worker misbehave
	argHang  = 0xbeef // …until a file says otherwise
	argDie   = 0xd1e
	argPoor  = 0x7fff_0b00 // beyond every process number: its container has next to no share of the supervisor's time from now on
)

func testWorker(dir string) error {
	sink, err := events.Open(dir + "/events.jsonl")
	if err != nil {
		return err
	}
	o := WorkerOptions{
		StateDir: dir + "/state", NotifySocket: dir + "/notify.sock", Version: "test", Events: sink,
		Planner: fakePlanner{}, OpenGuard: func(*os.File) (ExecGuard, error) { return &fakeGuard{dir: dir}, nil },
		Net: fakeNet{dir}, Lock: dir + "/lock", MonitorArgs: []string{"__adopt"}, MemfdArgs: []string{"__memfd"},
		beforeAnswer: func(_ *listener, n *notification) {
			if n.Nr == unix.SYS_EXECVE && os.Remove(dir+"/slow") == nil {
				time.Sleep(300 * time.Millisecond)
			}
		},
		beforeDecide: func(l *listener, n *notification) {
			if n.Nr != unix.SYS_GETPGID {
				return
			}
			switch n.Args[0] {
			case argPanic:
				panic("as asked")
			case argHang:
				os.WriteFile(dir+"/hanging", nil, 0o600)
				if _, err := os.Stat(dir + "/nohang"); err != nil {
					select {}
				}
			case argPoor:
				l.c.share.mu.Lock()
				l.c.share.Rate, l.c.share.Most = 10*time.Millisecond, time.Microsecond
				l.c.share.mu.Unlock()
			case argDie:
				unix.Kill(os.Getpid(), unix.SIGKILL)
				select {}
			}
		},
	}
	return RunWorker(o)
}

type refused struct{ fakeConfig }

func (refused) Error() string                     { return "admission refuses it" }
func (r refused) Refusal() ([]plan.Reason, Facts) { return r.Plan.Admission.Reasons, r.Facts }

// fakePlanner takes the plan from the configuration.
type fakePlanner struct{}

type fakeConfig struct {
	Plan  *plan.Plan
	Facts Facts
	Error string
	// NoExec: no program of the image executes another.
	NoExec bool
}

func (fakePlanner) Prepare(_ context.Context, p Preparation, root *os.File) (Prepared, error) {
	var c fakeConfig
	if err := json.Unmarshal(p.Config, &c); err != nil {
		return Prepared{}, err
	}
	if c.Error == "panic" {
		panic("as asked")
	}
	if c.Error == "admission" {
		return Prepared{}, fmt.Errorf("plan: %w", refused{c})
	}
	if c.Error != "" {
		return Prepared{}, errors.New(c.Error)
	}
	config, _ := json.Marshal(map[string]string{"token": p.Token, "notify": p.NotifySocket})
	verdicts := testVerdicts()
	for i, e := range verdicts.Entries["amd64"] {
		if c.NoExec && e.Name == "execve" {
			verdicts.Entries["amd64"][i].Class = filter.RuntimeOnly
		}
	}
	return Prepared{Config: config, Plan: c.Plan, Verdicts: verdicts, Declared: c.Facts}, nil
}

type fakeGuard struct {
	dir string
}

func (g *fakeGuard) File() *os.File { return nil }
func (g *fakeGuard) Sweep([]int32)  {}
func (g *fakeGuard) Watch(t Target) error {
	if string(t.Facts.Extra) == `"guard fails"` {
		return errors.New("as asked")
	}
	if string(t.Facts.Extra) == `"weaker guard"` {
		return fmt.Errorf("watch: %w", &WeakerError{errors.New("as asked")})
	}
	return appendLine(g.dir+"/guard.log", "watch "+t.Token+fmt.Sprintf(" adopted=%t files=%d", t.Adopted, len(t.Files)))
}
func (g *fakeGuard) Forget(token string)  { appendLine(g.dir+"/guard.log", "forget "+token) }
func (g *fakeGuard) Serving(token string) { appendLine(g.dir+"/guard.log", "serving "+token) }
func (g *fakeGuard) Allowed(_ string, f *os.File, id record.Identity, phase record.Phase) (Permission, string) {
	name := ""
	control(f, func(fd int) error { name, _ = os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); return nil })
	if strings.Contains(filepath.Base(name), "forbidden") && id != record.Operator {
		return Forbidden, "as asked"
	}
	return Permitted, ""
}
func (g *fakeGuard) Run(ctx context.Context, _ Lookup) error { <-ctx.Done(); return nil }

type fakeNet struct{ dir string }

func (n fakeNet) Apply(t Target) error {
	if string(t.Facts.Extra) == `"net fails"` {
		return errors.New("as asked")
	}
	return nil
}
func (n fakeNet) Forget(token string)                        { appendLine(n.dir+"/net.log", "forget "+token) }
func (n fakeNet) Run(ctx context.Context, look Lookup) error { <-ctx.Done(); return nil }

func appendLine(name, line string) error {
	f, err := os.OpenFile(name, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.WriteString(line + "\n")
	return err
}

// The calls that a container of these tests notifies.
var notified = []struct {
	nr    int
	name  string
	class filter.Class
	errno unix.Errno
}{
	{unix.SYS_LISTEN, "listen", filter.Judged, unix.EPERM},
	{unix.SYS_EXECVE, "execve", filter.Judged, unix.EPERM},
	{unix.SYS_GETPGID, "getpgid", filter.Judged, unix.EPERM},
	{unix.SYS_GETSID, "getsid", filter.StartingOnly, unix.EPERM},
	{unix.SYS_CHROOT, "chroot", filter.Undeclared, unix.EPERM},
	{unix.SYS_SETHOSTNAME, "sethostname", filter.Undeclared, unix.ENOSYS},
	{unix.SYS_GETPRIORITY, "getpriority", filter.Judged, unix.EPERM}, // until the loop
	{unix.SYS_EXECVEAT, "execveat", filter.Judged, unix.EPERM},
}

func testVerdicts() *filter.Verdicts {
	v := &filter.Verdicts{Arch: "amd64", Entries: map[string][]filter.Entry{}}
	for _, c := range notified {
		v.Entries["amd64"] = append(v.Entries["amd64"], filter.Entry{Nr: c.nr, Name: c.name, Class: c.class, Errno: int32(c.errno), Engine: filter.Rule{Allow: true}, UntilLoop: c.nr == unix.SYS_GETPRIORITY})
	}
	entries := v.Entries["amd64"]
	for i := range entries {
		for j := i; j > 0 && entries[j].Nr < entries[j-1].Nr; j-- {
			entries[j], entries[j-1] = entries[j-1], entries[j]
		}
	}
	return v
}

// container1 is runc: it loads the filter, hands over the descriptor, and executes the container's program.
func container1(args []string) error {
	socket, token, status, program := args[0], args[1], args[2], args[3:]
	runtime.LockOSThread()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		return err
	}
	var code []unix.SockFilter
	code = append(code, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0})
	for _, c := range notified {
		code = append(code, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: uint32(c.nr), Jf: 1},
			unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_USER_NOTIF})
	}
	code = append(code, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW})
	prog := unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	fd, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER,
		unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH, uintptr(unsafe.Pointer(&prog)))
	if errno != 0 {
		return errno
	}
	state := map[string]any{"ociVersion": "1.0.2", "fds": []string{"seccompFd"}, "pid": os.Getpid(), "metadata": token,
		"state": map[string]any{"id": "c", "status": status, "pid": os.Getpid(), "bundle": "/b", "annotations": map[string]string{"a": strings.Repeat("x", 10000)}}}
	body, _ := json.Marshal(state)
	if _, _, err := conn.(*net.UnixConn).WriteMsgUnix(body, unix.UnixRights(int(fd)), nil); err != nil {
		return err
	}
	unix.Close(int(fd))
	// The connection stays open, as with runc before 1.2.7.
	raw, _ := conn.(*net.UnixConn).SyscallConn()
	raw.Control(func(fd uintptr) { unix.FcntlInt(fd, unix.F_SETFD, 0) })
	return unix.Exec(program[0], program, os.Environ())
}

// container2 does what it reads on standard input.
func container2() error {
	in := bufio.NewScanner(os.Stdin)
	fmt.Println("up")
	held := map[string]int{}
	for in.Scan() {
		words := strings.Fields(in.Text())
		var err error
		switch words[0] {
		case "getpgid":
			var n uint64
			n, _ = strconv.ParseUint(words[1], 0, 64)
			_, err = unix.Getpgid(int(n))
		case "getpgidlater": // by somebody else, and nobody waits for it
			n, _ := strconv.ParseUint(words[1], 0, 64)
			// Not unix.Getpgid: it tells the scheduler nothing, which waits for it then.
			go unix.Syscall(unix.SYS_GETPGID, uintptr(n), 0, 0)
		case "getpgids":
			count, _ := strconv.Atoi(words[1])
			for range count {
				unix.Getpgid(0)
			}
		case "execs":
			count, _ := strconv.Atoi(words[1])
			for range count {
				err = errors.Join(err, exec.Command(words[2]).Run())
			}
		case "getsid":
			_, err = unix.Getsid(0)
		case "chroot":
			err = unix.Chroot("/")
		case "sethostname":
			err = unix.Sethostname([]byte("x"))
		case "exec":
			var out []byte
			out, err = exec.Command(words[1], words[2:]...).CombinedOutput()
			if err == nil {
				fmt.Println(strings.TrimSpace(string(out)))
				continue
			}
			var pe *os.PathError
			var xe *exec.Error
			if errors.As(err, &pe) {
				err = pe.Err
			} else if errors.As(err, &xe) {
				err = xe.Err
			}
		case "execmemfd":
			var fd int
			if fd, err = unix.MemfdCreate("prog", unix.MFD_CLOEXEC); err == nil {
				data, _ := os.ReadFile("/bin/true")
				unix.Write(fd, data)
				err = exec.Command(fmt.Sprintf("/proc/self/fd/%d", fd)).Run()
				var pe *os.PathError
				if errors.As(err, &pe) {
					err = pe.Err
				}
			}
		case "listen": // listen 127.0.0.1 8080
			var fd int
			if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err != nil {
				break
			}
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
			sa := &unix.SockaddrInet4{}
			copy(sa.Addr[:], net.ParseIP(words[1]).To4())
			sa.Port, _ = strconv.Atoi(words[2])
			if words[2] != "-" {
				if err = unix.Bind(fd, sa); err != nil {
					fmt.Println("bind", err)
					continue
				}
			}
			if err = unix.Listen(fd, 5); err == nil {
				if n, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN); n != 1 {
					fmt.Println("listen succeeded and the socket does not listen")
					continue
				}
				held[words[2]] = fd
			} else {
				unix.Close(fd)
			}
		case "listenunix":
			var fd int
			fd, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			unix.Bind(fd, &unix.SockaddrUnix{Name: words[1]})
			if err == nil {
				err = unix.Listen(fd, 5)
			}
			if err == nil { // who do those who connect see?
				var client int
				if client, err = unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0); err == nil {
					err = unix.Connect(client, &unix.SockaddrUnix{Name: words[1]})
				}
				if err == nil {
					peer, _ := unix.GetsockoptUcred(client, unix.SOL_SOCKET, unix.SO_PEERCRED)
					if peer == nil || int(peer.Pid) != os.Getpid() {
						fmt.Printf("the listener is %+v for those who connect\n", peer)
						continue
					}
				}
			}
		case "listennone":
			err = unix.Listen(9999, 5)
		case "listenfile":
			err = unix.Listen(0, 5)
		case "quit":
			return nil
		}
		if err == nil {
			fmt.Println("ok")
		} else {
			fmt.Println(err)
		}
	}
	return nil
}

// world is one supervisor with its directory.
type world struct {
	t   testing.TB
	dir string
	cmd *exec.Cmd
	own string // a copy of the test program: as if it were in the image
}

func newWorld(t testing.TB) *world {
	need.Root(t)
	need.Seccomp(t)
	if runtime.GOARCH != "amd64" {
		t.Skip("the test's filter is for amd64")
	}
	dir, err := os.MkdirTemp("", "declarun-supervise-")
	if err != nil {
		t.Fatal(err)
	}
	os.Chmod(dir, 0o700)
	w := &world{t: t, dir: dir}
	w.own, _ = os.Executable()
	w.start()
	t.Cleanup(func() {
		w.stop()
		if t.Failed() {
			log, _ := os.ReadFile(dir + "/log")
			t.Logf("supervisor's log:\n%s", log)
			ev, _ := os.ReadFile(dir + "/events.jsonl")
			t.Logf("events:\n%s", ev)
		}
		os.RemoveAll(dir)
	})
	return w
}

func (w *world) start() { w.t.Helper(); w.startWith(w.own, []string{"__monitor"}, nil) }

func (w *world) startWith(program string, args []string, files []*os.File) {
	w.t.Helper()
	os.Remove(w.dir + "/monitor.pid")
	logFile, err := os.OpenFile(w.dir+"/log", os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		w.t.Fatal(err)
	}
	defer logFile.Close()
	w.cmd = exec.Command(program, args...)
	w.cmd.ExtraFiles = files
	w.cmd.Env = append(os.Environ(), "SUPERVISE_TEST_DIR="+w.dir)
	w.cmd.Stderr, w.cmd.Stdout = logFile, logFile
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := w.cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	go w.cmd.Wait()
	w.ping()
}

func (w *world) monitor() int {
	data, _ := os.ReadFile(w.dir + "/monitor.pid")
	pid, _ := strconv.Atoi(string(data))
	return pid
}

// stop ends both processes, and waits for that.
func (w *world) stop() {
	var pids []int
	if pid := w.monitor(); pid > 0 {
		pids = append(pids, pid)
	}
	if pid := w.pingOnce(); pid > 0 {
		pids = append(pids, pid)
	}
	if len(pids) > 0 {
		unix.Kill(pids[0], unix.SIGTERM)
	}
	for _, pid := range pids {
		if !eventually(func() bool { return gone(pid) }) {
			w.t.Errorf("process %d of the supervisor does not end", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
}

// pause stops every thread of a process. The signal only asks for that: a thread
// on another cpu goes on until it is seen to be stopped.
func (w *world) pause(pid int) {
	w.t.Helper()
	unix.Kill(pid, unix.SIGSTOP)
	w.must("the process is stopped", func() bool {
		threads, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		for _, name := range threads {
			if data, err := os.ReadFile(name); err == nil && !strings.Contains(string(data), ") T ") {
				return false
			}
		}
		return len(threads) > 0
	})
	w.t.Cleanup(func() { unix.Kill(pid, unix.SIGCONT) })
}

func gone(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(data), ") Z ")
}

func eventually(f func() bool) bool {
	for range 1500 {
		if f() {
			return true
		}
		time.Sleep(10 * time.Millisecond)
	}
	return false
}

func (w *world) must(what string, f func() bool) {
	w.t.Helper()
	if !eventually(f) {
		w.t.Fatalf("never: %s", what)
	}
}

func (w *world) call(r wire.Request, files ...*os.File) (wire.Answer, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	c, err := wire.Dial(ctx, w.dir+"/declarun.sock")
	if err != nil {
		return wire.Answer{}, err
	}
	defer c.Close()
	return c.Call(r, files)
}

func (w *world) pingOnce() int {
	a, err := w.call(wire.Request{Operation: wire.Ping})
	if err != nil || a.Ping == nil {
		return 0
	}
	return a.Ping.PID
}

func (w *world) ping() (pid int) {
	w.t.Helper()
	w.must("an answer to ping", func() bool { pid = w.pingOnce(); return pid > 0 })
	return pid
}

func (w *world) status(id string) *wire.Container {
	a, err := w.call(wire.Request{Operation: wire.Status, Status: &wire.StatusRequest{Container: id}})
	if err != nil || len(a.Status) != 1 {
		return nil
	}
	return &a.Status[0]
}

func (w *world) events(match func(record.Event) bool) []record.Event {
	data, _ := os.ReadFile(w.dir + "/events.jsonl")
	var out []record.Event
	for line := range strings.SplitSeq(string(data), "\n") {
		var e record.Event
		if json.Unmarshal([]byte(line), &e) == nil && match(e) {
			out = append(out, e)
		}
	}
	return out
}

func (w *world) event(container string, d record.Dimension, action, object string) (found record.Event) {
	w.t.Helper()
	w.must(fmt.Sprintf("event %s %s %s", d, action, object), func() bool {
		for _, e := range w.events(func(e record.Event) bool {
			return e.Container == container && e.Dimension == d && e.Action == action && (object == "" || e.Object == object)
		}) {
			found = e
			return true
		}
		return false
	})
	return found
}

func testPlan(m record.Mode) *plan.Plan {
	p := &plan.Plan{Mode: map[record.Dimension]record.Mode{}}
	for _, d := range record.Dimensions() {
		p.Mode[d] = m
	}
	p.Network = plan.Network{Enforced: true, Listen: []plan.Listen{{Proto: "tcp", Port: 18080, Last: 18085,
		Origins: []record.Origin{{Source: record.FromImage, At: "config.ExposedPorts", Text: "EXPOSE 18080"}}}}}
	return p
}

func (w *world) prepare(id string, c fakeConfig) (string, error) {
	config, _ := json.Marshal(c)
	root, err := os.OpenFile("/", unix.O_PATH, 0)
	if err != nil {
		return "", err
	}
	defer root.Close()
	a, err := w.call(wire.Request{Operation: wire.Prepare, Prepare: &wire.PrepareRequest{
		Key: wire.Key{Root: "/run/test", ID: id}, Verb: "create", Bundle: "/b", Config: config, Executable: "/x"}}, root)
	if err != nil {
		return "", err
	}
	if a.Error != "" {
		return "", errors.New(a.Error)
	}
	var answer struct{ Token string }
	if err := json.Unmarshal(a.Prepare.Config, &answer); err != nil {
		return "", err
	}
	return answer.Token, nil
}

func (w *world) guard(token string, pid int) error {
	proc := "/proc/" + strconv.Itoa(pid)
	var files []*os.File
	names := []string{"netns", "mntns", "pidns", "rootfs"}
	for i, p := range []string{"/ns/net", "/ns/mnt", "/ns/pid", "/root"} {
		flags := os.O_RDONLY
		if names[i] == "rootfs" {
			flags = unix.O_PATH
		}
		f, err := os.OpenFile(proc+p, flags, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		files = append(files, f)
	}
	a, err := w.call(wire.Request{Operation: wire.Guard, Guard: &wire.GuardRequest{Token: token, PID: pid, Files: names}}, files...)
	if err != nil {
		return err
	}
	if a.Error != "" {
		return errors.New(a.Error)
	}
	return nil
}

// inside is a running container.
type inside struct {
	w     *world
	id    string
	token string
	init  *exec.Cmd // what stands for the container's init
	procs []*process
}

type process struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
	mu  sync.Mutex

	stdout io.Closer
}

func (w *world) container(id string, c fakeConfig) (*inside, *process) {
	w.t.Helper()
	token, err := w.prepare(id, c)
	if err != nil {
		w.t.Fatal(err)
	}
	in := &inside{w: w, id: id, token: token}
	in.init = exec.Command("/bin/sleep", "600")
	if err := in.init.Start(); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(in.kill)
	if err := w.guard(token, in.init.Process.Pid); err != nil {
		w.t.Fatal(err)
	}
	return in, in.enter("creating", w.own, "__inside")
}

func (in *inside) kill() {
	in.init.Process.Kill()
	in.init.Wait()
	for _, p := range in.procs {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	}
	in.procs = nil
}

func (in *inside) enter(status string, program ...string) *process {
	in.w.t.Helper()
	cmd := exec.Command(in.w.own, append([]string{"__container", in.w.dir + "/notify.sock", in.token, status}, program...)...)
	return in.run(cmd, len(program) > 1 && program[1] == "__inside")
}

func (in *inside) run(cmd *exec.Cmd, talks bool) *process {
	in.w.t.Helper()
	p := &process{t: in.w.t, cmd: cmd}
	p.in, _ = cmd.StdinPipe()
	stdout, _ := cmd.StdoutPipe()
	cmd.Stderr = os.Stderr
	p.out, p.stdout = bufio.NewScanner(stdout), stdout
	if err := cmd.Start(); err != nil {
		in.w.t.Fatal(err)
	}
	in.procs = append(in.procs, p)
	if talks {
		if got := p.read(); got != "up" {
			in.w.t.Fatalf("the container's program says %q", got)
		}
	}
	return p
}

func (p *process) read() string {
	timer := time.AfterFunc(40*time.Second, func() {
		p.cmd.Process.Kill()
		p.stdout.Close() // a child of it may hold the other end
	})
	defer timer.Stop()
	if !p.out.Scan() {
		return "(ended)"
	}
	return p.out.Text()
}

func (p *process) do(line string) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	fmt.Fprintln(p.in, line)
	return p.read()
}

func (p *process) want(line, want string) {
	p.t.Helper()
	if got := p.do(line); got != want {
		p.t.Errorf("%s: %s, want %s", line, got, want)
	}
}
