package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/filter"
)

// Job is one command to run.
type Job struct {
	Root string   `json:"root"` // directory of the root file system
	Dir  string   `json:"dir"`  // working directory in it
	Argv []string `json:"argv"` // the first is an absolute path
	Env  []string `json:"env"`
	// Stdin is a file in the root; empty: /dev/null.
	Stdin string `json:"stdin,omitempty"`
	// Files are made before.
	Files map[string]string `json:"files,omitempty"`
	// Trace records the calls.
	Trace bool `json:"trace,omitempty"`
	// Filter, if it is not nil, is held to by the kernel.
	Filter *Filter `json:"filter,omitempty"`
	// Drive is the name of one of the drivers that use the command, a server,
	// while it runs.
	Drive string `json:"drive,omitempty"`
	// Health is what the driver finds in its Server.
	Health  []string      `json:"health,omitempty"`
	Timeout time.Duration `json:"timeout"`
}

// Filter is a program for the kernel and the answers to what it asks.
type Filter struct {
	Program  []byte           `json:"program"` // of struct sock_filter
	Verdicts *filter.Verdicts `json:"verdicts"`
}

// Outcome is what a command did.
type Outcome struct {
	Stdout []byte `json:"stdout"`
	Stderr []byte `json:"stderr"`
	Status int    `json:"status"` // as a shell says it: 128 and the signal
	// Refused are calls that the filter refused.
	Refused []string `json:"refused,omitempty"`
	// Asked is how many calls the filter asked about.
	Asked int    `json:"asked,omitempty"`
	Error string `json:"error,omitempty"`
	Trace *Trace `json:"-"`
}

// Driver uses a server through the loopback of its namespace. Signal sends to
// the server's first process. It returns when the server is to end by itself,
// or was told to.
type Driver func(ctx context.Context, s *Server) error

// Server is a running command as a driver sees it.
type Server struct {
	Root   string   // where its files are
	Health []string // the command that asks whether it is well; or nil
	Signal func(syscall.Signal) error
	// Run runs another command in the root: a health check, which counts as the
	// container's own, or an operator's or client's, which does not.
	Run func(ctx context.Context, own bool, argv ...string) (string, error)
}

// words that say what a process started from this executable is to do.
const (
	wordInside = "__observe-inside"
	wordExec   = "__observe-exec"
)

// Child does the work of a process that Run started. It is called first in main,
// and in TestMain: it returns only in processes that Run did not start.
func Child(drivers map[string]Driver) {
	if len(os.Args) < 3 {
		return
	}
	switch os.Args[1] {
	case wordInside:
		os.Exit(inside(os.Args[2], drivers))
	case wordExec:
		fmt.Fprintln(os.Stderr, "observe:", execute(os.Args[2]))
		os.Exit(125)
	case wordLoad, wordCall:
		if err := measureHere(os.Args[1], os.Args[2]); err != nil {
			fmt.Fprintln(os.Stderr, "observe:", err)
			os.Exit(1)
		}
		os.Exit(0)
	case wordProbe:
		if err := makeCalls(); err != nil {
			fmt.Fprintln(os.Stderr, "observe:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// Run runs a command in namespaces of its own and waits for its end.
func Run(ctx context.Context, j Job) (*Outcome, error) {
	dir, err := os.MkdirTemp("", "declarun-observe-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	raw, err := json.Marshal(j)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(dir, "job"), raw, 0o600); err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, j.Timeout+20*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, wordInside, dir)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL,
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS}
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("run %s: %w: %s", strings.Join(j.Argv, " "), err, last(said.Bytes(), 5))
	}
	if raw, err = os.ReadFile(filepath.Join(dir, "outcome")); err != nil {
		return nil, err
	}
	out := new(Outcome)
	if err := json.Unmarshal(raw, out); err != nil {
		return nil, err
	}
	if out.Error != "" {
		return out, fmt.Errorf("run %s: %s; it said: %s", strings.Join(j.Argv, " "), out.Error, last(slices.Concat(out.Stdout, out.Stderr), 8))
	}
	if j.Trace {
		if out.Trace, err = traces(dir, j.Argv[0]); err != nil {
			return out, fmt.Errorf("run %s: %w", strings.Join(j.Argv, " "), err)
		}
	}
	return out, nil
}

// traces reads what strace wrote of the command and of what ran beside it.
func traces(dir, start string) (*Trace, error) {
	files, err := filepath.Glob(filepath.Join(dir, "trace*"))
	if err != nil {
		return nil, err
	}
	all := &Trace{Seen: map[string]map[string]string{}}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		first := start
		if filepath.Base(name) != "trace" {
			first = "" // whatever is executed after the preparation
		}
		t, err := ParseTrace(f, first)
		f.Close()
		if err != nil {
			return nil, err
		}
		for _, p := range t.Executed {
			if all.Seen[p] == nil {
				all.Seen[p] = map[string]string{}
				all.Executed = append(all.Executed, p)
			}
			maps.Copy(all.Seen[p], t.Seen[p])
		}
	}
	return all, nil
}

// inside is the first process of the namespaces.
func inside(dir string, drivers map[string]Driver) int {
	out := Outcome{}
	var j Job
	raw, err := os.ReadFile(filepath.Join(dir, "job"))
	if err == nil {
		err = json.Unmarshal(raw, &j)
	}
	if err == nil {
		err = do(dir, j, drivers, &out)
	}
	if err != nil {
		out.Error = err.Error()
	}
	raw, err = json.Marshal(out)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, "outcome"), raw, 0o600)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// furnish mounts a private copy of the root, and what a container has in it.
func furnish(dir string, j Job) (string, error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", fmt.Errorf("make mounts private: %w", err)
	}
	top, root := filepath.Join(dir, "top"), filepath.Join(dir, "root")
	for _, d := range []string{top, root} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	if err := unix.Mount("tmpfs", top, "tmpfs", 0, "mode=755"); err != nil {
		return "", fmt.Errorf("mount tmpfs: %w", err)
	}
	for _, d := range []string{"upper", "work"} {
		if err := os.Mkdir(filepath.Join(top, d), 0o755); err != nil {
			return "", err
		}
	}
	in := func(name string) string { return filepath.Join(root, name) }
	overlay := fmt.Sprintf("lowerdir=%s,upperdir=%s/upper,workdir=%s/work", j.Root, top, top)
	if err := unix.Mount("overlay", root, "overlay", 0, overlay); err != nil {
		return "", fmt.Errorf("mount overlay: %w", err)
	}
	for _, d := range []string{"proc", "sys", "dev"} {
		if err := os.MkdirAll(in(d), 0o755); err != nil {
			return "", err
		}
	}
	for _, m := range []struct{ kind, source, at, data string }{
		{"proc", "proc", "/proc", ""},
		{"proc", "proc", in("proc"), ""},
		{"sysfs", "sysfs", in("sys"), "ro"},
		{"tmpfs", "tmpfs", in("dev"), "mode=755"},
	} {
		flags := uintptr(0)
		if m.data == "ro" {
			flags, m.data = unix.MS_RDONLY, ""
		}
		if err := unix.Mount(m.source, m.at, m.kind, flags, m.data); err != nil {
			return "", fmt.Errorf("mount %s on %s: %w", m.kind, m.at, err)
		}
	}
	for _, name := range strings.Fields("null zero full random urandom tty") {
		f, err := os.Create(in("dev/" + name))
		if err != nil {
			return "", err
		}
		f.Close()
		if err := unix.Mount("/dev/"+name, in("dev/"+name), "", unix.MS_BIND, ""); err != nil {
			return "", fmt.Errorf("bind /dev/%s: %w", name, err)
		}
	}
	for _, d := range []string{"dev/pts", "dev/shm", j.Dir} {
		if err := os.MkdirAll(in(d), 0o1777); err != nil {
			return "", err
		}
	}
	if err := unix.Mount("devpts", in("dev/pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=620,gid=5"); err != nil {
		return "", fmt.Errorf("mount devpts: %w", err)
	}
	for to, from := range map[string]string{"dev/ptmx": "pts/ptmx", "dev/fd": "/proc/self/fd", "dev/stdin": "/proc/self/fd/0", "dev/stdout": "/proc/self/fd/1", "dev/stderr": "/proc/self/fd/2"} {
		if err := os.Symlink(from, in(to)); err != nil {
			return "", err
		}
	}
	for name, text := range j.Files {
		if err := os.MkdirAll(filepath.Dir(in(name)), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			return "", err
		}
	}
	if err := unix.Sethostname([]byte("lab")); err != nil {
		return "", err
	}
	if out, err := exec.Command("ip", "link", "set", "lo", "up").CombinedOutput(); err != nil {
		return "", fmt.Errorf("bring loopback up: %w: %s", err, out)
	}
	return root, nil
}

// start is what the process that becomes the command has to do before.
type start struct {
	Root   string // empty: none, as for strace
	Dir    string
	Argv   []string
	Filter bool // program on descriptor 3; the listener goes to the socket on 4
	Tracer bool // it keeps the right to read others' memory
}

func do(dir string, j Job, drivers map[string]Driver, out *Outcome) error {
	root, err := furnish(dir, j)
	if err != nil {
		return err
	}
	if j.Filter != nil && j.Trace {
		return errors.New("a command is either traced or filtered")
	}
	s := start{Root: root, Dir: j.Dir, Argv: j.Argv, Filter: j.Filter != nil}
	if j.Trace {
		s.Root, s.Dir, s.Tracer = "", "/", true
		s.Argv = append([]string{"strace", "-f", "-qq", "-s", "256", "-o", filepath.Join(dir, "trace"), "--", "setpriv", "--bounding-set=-sys_ptrace", "unshare", "-R", root, "-w", j.Dir}, j.Argv...)
		if s.Argv[0], err = exec.LookPath("strace"); err != nil {
			return err
		}
	}
	raw, err := json.Marshal(s)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	cmd := exec.Command(self, wordExec, string(raw))
	cmd.Env = j.Env
	stdin := "/dev/null"
	if j.Stdin != "" {
		stdin = filepath.Join(root, j.Stdin)
	}
	in, err := os.Open(stdin)
	if err != nil {
		return err
	}
	defer in.Close()
	cmd.Stdin = in
	var std [2]*os.File
	for i := range std { // files and not pipes: nobody waits for what daemons keep open
		if std[i], err = os.Create(filepath.Join(dir, fmt.Sprint("std", i+1))); err != nil {
			return err
		}
		defer std[i].Close()
	}
	cmd.Stdout, cmd.Stderr = std[0], std[1]
	var asked *questions
	if j.Filter != nil {
		if asked, err = ask(cmd, j.Filter); err != nil {
			return err
		}
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	if asked != nil {
		if err := asked.begin(); err != nil {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
			return err
		}
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if j.Trace && j.Drive == "" {
		go leave(cmd.Process.Pid)
	}
	driven := make(chan error, 1)
	ctx, cancel := context.WithTimeout(context.Background(), j.Timeout)
	defer cancel()
	if j.Drive != "" {
		d := drivers[j.Drive]
		if d == nil {
			return fmt.Errorf("no driver %q", j.Drive)
		}
		server := &Server{Root: root, Health: j.Health, Signal: func(sig syscall.Signal) error { return signal(cmd.Process.Pid, j.Trace, sig) }}
		further := 0
		server.Run = func(ctx context.Context, own bool, argv ...string) (string, error) {
			args := slices.Concat([]string{"unshare", "-R", root, "-w", j.Dir}, argv)
			if own && j.Trace {
				further++
				args = slices.Concat([]string{"strace", "-f", "-qq", "-s", "256", "-o", filepath.Join(dir, fmt.Sprint("trace.", further)), "--"}, args)
			}
			c := exec.CommandContext(ctx, args[0], args[1:]...)
			c.Env = j.Env
			said, err := c.CombinedOutput()
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, last(said, 3))
			}
			return string(said), err
		}
		go func() { driven <- d(ctx, server) }()
	} else {
		driven <- nil
	}
	var derr error
	select {
	case derr = <-driven:
	case <-ctx.Done():
	}
	if derr != nil {
		_ = cmd.Process.Kill()
	}
	select {
	case <-ended:
	case <-ctx.Done():
		_ = cmd.Process.Kill()
		<-ended
		err = errors.Join(derr, fmt.Errorf("not ended after %s", j.Timeout))
	}
	out.Status = status(cmd.ProcessState)
	if asked != nil {
		out.Refused, out.Asked = asked.end()
	}
	for i, to := range []*[]byte{&out.Stdout, &out.Stderr} {
		b, e := os.ReadFile(std[i].Name())
		if e != nil {
			return e
		}
		*to = b[:min(len(b), 1<<20)]
	}
	return errors.Join(derr, err)
}

// leave ends strace a little after what it was given to run: it would wait for
// every daemon that was left behind.
func leave(strace int) {
	pid, err := 0, error(nil)
	for range 100 {
		if pid, err = tracee(strace); err == nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	for err == nil {
		time.Sleep(20 * time.Millisecond)
		err = syscall.Kill(pid, 0)
	}
	time.Sleep(300 * time.Millisecond)
	_ = syscall.Kill(strace, syscall.SIGTERM)
}

// tracee is what strace runs: its only child.
func tracee(strace int) (int, error) {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", strace, strace))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, syscall.ESRCH
	}
	pid := 0
	if err == nil {
		_, err = fmt.Sscan(string(raw), &pid)
	}
	if err != nil {
		return 0, fmt.Errorf("find what strace runs: %w", err)
	}
	return pid, nil
}

func status(s *os.ProcessState) int {
	w, ok := s.Sys().(syscall.WaitStatus)
	if ok && w.Signaled() {
		return 128 + int(w.Signal())
	}
	return s.ExitCode()
}

// signal sends to the command, or to what strace runs.
func signal(pid int, traced bool, sig syscall.Signal) error {
	if traced {
		var err error
		if pid, err = tracee(pid); err != nil {
			return err
		}
	}
	return syscall.Kill(pid, sig)
}
