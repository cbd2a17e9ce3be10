package runtime

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/wire"
)

const startWord = "__start" // declarun as the process that detaches the supervisor

// Variables for tests only.
var (
	connectTimeout = 10 * time.Second
	prepareTimeout = 60 * time.Second // a first sight of an image includes its analysis
	execTimeout    = 20 * time.Second
	forgetTimeout  = 3 * time.Second
	guardTimeout   = 30 * time.Second
)

// dial connects to the supervisor; one that is not there is started if start
// says so. ctx covers the conversation, connectTimeout the way to it.
func dial(ctx context.Context, config settings, start bool) (*wire.Conn, error) {
	deadline := time.Now().Add(connectTimeout)
	conn, err := dialOnce(ctx, config.socket, deadline)
	if err == nil || !absent(err) || !start {
		return conn, wrapDial(config, err)
	}
	if err := startSupervisor(ctx, config, deadline); err != nil {
		return nil, fmt.Errorf("start supervisor: %w", err)
	}
	conn, err = dialOnce(ctx, config.socket, deadline)
	return conn, wrapDial(config, err)
}

// dialOnce connects, and waits while the supervisor's backlog is full (EAGAIN).
func dialOnce(ctx context.Context, socket string, deadline time.Time) (*wire.Conn, error) {
	for {
		conn, err := wire.Dial(ctx, socket)
		if err == nil || !errors.Is(err, unix.EAGAIN) || time.Now().After(deadline) {
			return conn, err
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// absent tells a supervisor that is not there from one that cannot be reached.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED)
}

func wrapDial(config settings, err error) error {
	switch {
	case err == nil:
		return nil
	case absent(err):
		return advise("declarun supervise, or systemctl start declarun.socket", "connect to supervisor at %s: nobody is there", config.socket)
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return advise("run it as root; rootless containers are not supported", "connect to supervisor at %s: access refused", config.socket)
	}
	return fmt.Errorf("connect to supervisor: %w", err)
}

// startSupervisor starts one, however many ask for it at a time, and returns
// when it answers.
func startSupervisor(ctx context.Context, config settings, deadline time.Time) error {
	log := filepath.Join(config.stateDir, "supervise.log")
	remedy := "see " + log + ", or run declarun supervise and read what it says"
	if os.Geteuid() != 0 {
		return advise("run it as root; rootless containers are not supported", "not root")
	}
	if err := os.MkdirAll(config.stateDir, 0o700); err != nil {
		return err
	}
	program, err := declarund()
	if err != nil {
		return err
	}
	unlock, err := lockFile(filepath.Join(config.stateDir, "start.lock"), deadline)
	if err != nil {
		return advise(remedy, "%w", err)
	}
	defer unlock()
	if ping(ctx, config.socket, deadline) == nil {
		return nil // somebody else's start, while we waited for the lock
	}
	said := size(log)
	pid, err := spawn(ctx, program, log)
	if err != nil {
		return advise(remedy, "%w", err)
	}
	for {
		_, gone := startTime(pid) // asked first: it may answer and then be gone
		err := ping(ctx, config.socket, deadline)
		if err == nil {
			return nil
		}
		if gone != nil || time.Now().After(deadline) {
			if last := lastLine(log, said); last != "" {
				return advise(remedy, "%s", last)
			}
			return advise(remedy, "it does not answer: %w", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func size(path string) int64 {
	st, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return st.Size()
}

// lastLine is what a file was given last, after its first bytes.
func lastLine(path string, after int64) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	content := make([]byte, 4096)
	n, _ := f.ReadAt(content, max(after, size(path)-int64(len(content))))
	lines := strings.Split(strings.TrimSpace(string(content[:n])), "\n")
	return lines[len(lines)-1]
}

func ping(ctx context.Context, socket string, deadline time.Time) error {
	ctx, cancel := context.WithDeadline(ctx, deadline)
	defer cancel()
	conn, err := wire.Dial(ctx, socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := conn.Call(wire.Request{Operation: wire.Ping}, nil)
	if err == nil && answer.Error != "" {
		err = errors.New(answer.Error)
	}
	return err
}

func lockFile(path string, deadline time.Time) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) || time.Now().After(deadline) {
			f.Close()
			return nil, fmt.Errorf("wait for another start (%s): %w", path, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// spawn runs declarun once more as the process between this one and the
// supervisor. This process becomes runc, and runc waits for every child it has;
// the supervisor must be nobody's. It ends up as a child of the nearest
// subreaper: under containerd that is its shim, which reaps strangers without
// ado, and init once the shim is gone.
func spawn(ctx context.Context, program, log string) (pid int, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", startWord, program, log)
	cmd.Args[0] = "declarun"
	cmd.Dir = "/"
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.CombinedOutput()
	message := strings.TrimSpace(string(out))
	switch {
	case err != nil && message != "":
		return 0, errors.New(message)
	case err != nil:
		return 0, err
	}
	return strconv.Atoi(message)
}

// start is that process: in a session of its own, it keeps nothing of the
// caller's (descriptors, cgroups, umask), starts the supervisor, says its
// process ID and ends.
func start(program, log string) (pid int, err error) {
	if err := closeOnExecFrom(3); err != nil {
		return 0, err
	}
	unix.Umask(0o022)
	leaveCgroups()
	out, err := os.OpenFile(log, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NOFOLLOW|unix.O_NOCTTY, 0o600)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	args := []string{"supervise"}
	if configPath != defaultConfigPath {
		args = []string{"--config", configPath, "supervise"}
	}
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return cmd.Process.Pid, nil
}

// closeOnExecFrom marks every descriptor from first on. close_range(2) with
// CLOSE_RANGE_CLOEXEC is there since Linux 5.11.
func closeOnExecFrom(first int) error {
	if err := unix.CloseRange(uint(first), ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC); err == nil {
		return nil
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return fmt.Errorf("close inherited descriptors: %w", err)
	}
	for _, e := range entries {
		if fd, err := strconv.Atoi(e.Name()); err == nil && fd >= first {
			unix.CloseOnExec(fd)
		}
	}
	return nil
}

// leaveCgroups moves this process to the root of every hierarchy: the caller's
// cgroup may be the container's pod and be killed or frozen with it. What cannot be
// left is stayed in: a supervisor there is better than none.
func leaveCgroups() {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return
	}
	for _, point := range cgroupMounts(string(mounts)) {
		f, err := os.OpenFile(filepath.Join(point, "cgroup.procs"), os.O_WRONLY, 0)
		if err != nil {
			continue
		}
		f.WriteString("0") // the writer itself
		f.Close()
	}
}

// cgroupMounts lists where hierarchies are mounted: field 5 of each line whose
// type, after the " - ", is cgroup or cgroup2.
func cgroupMounts(mountinfo string) []string {
	var points []string
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields := strings.Fields(before)
		if !ok || len(fields) < 5 || !strings.HasPrefix(after, "cgroup ") && !strings.HasPrefix(after, "cgroup2 ") {
			continue
		}
		points = append(points, strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`).Replace(fields[4]))
	}
	return points
}

// parentArgs reads the command line of the process that called the runtime.
func parentArgs() []string {
	f, err := os.Open("/proc/" + strconv.Itoa(os.Getppid()) + "/cmdline")
	if errors.Is(err, fs.ErrNotExist) || err != nil {
		return nil
	}
	defer f.Close()
	buffer := make([]byte, 128<<10)
	n, _ := f.Read(buffer)
	if n == 0 {
		return nil
	}
	return strings.Split(strings.TrimSuffix(string(buffer[:n]), "\x00"), "\x00")
}
