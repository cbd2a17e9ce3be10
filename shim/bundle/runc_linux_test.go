//go:build amd64

package bundle_test

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// goCalls is what a static Go program needs, seen with strace.
const goCalls = `read write close openat fstat newfstatat fcntl mmap munmap mprotect madvise brk futex nanosleep sched_yield
 rt_sigaction rt_sigprocmask rt_sigreturn sigaltstack tgkill gettid getpid clone clone3 exit exit_group epoll_create1 epoll_ctl epoll_pwait
 eventfd2 pipe2 dup3 prlimit64 sched_getaffinity getrandom readlinkat uname pidfd_open pidfd_send_signal waitid wait4 copy_file_range sendfile splice
 prctl ioctl faccessat2 lseek arch_prctl set_tid_address set_robust_list rseq umask execve`

// judge is the smallest supervisor: one container, always starting.
type judge struct {
	verdicts   *filter.Verdicts
	mode       record.Mode
	mu         sync.Mutex
	reported   []string
	beforeExec []string
	total      int
}

func (j *judge) serve(l *net.UnixListener) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		b, oob := make([]byte, 64<<10), make([]byte, 256)
		n, on, _, _, err := c.ReadMsgUnix(b, oob)
		if err != nil {
			return
		}
		var state struct {
			PID      int    `json:"pid"`
			Metadata string `json:"metadata"`
		}
		if err := json.Unmarshal(b[:n], &state); err != nil || state.Metadata != "token" {
			return
		}
		msgs, err := unix.ParseSocketControlMessage(oob[:on])
		if err != nil || len(msgs) == 0 {
			return
		}
		fds, err := unix.ParseUnixRights(&msgs[0])
		if err != nil || len(fds) != 1 {
			return
		}
		go j.answer(fds[0], state.PID)
		c.Close()
	}
}

func (j *judge) answer(fd, pid int) {
	defer unix.Close(fd)
	before := true
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n struct {
			ID         uint64
			PID, Flags uint32
			Nr         int32
			Arch       uint32
			IP         uint64
			Args       [6]uint64
		}
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue
		}
		d := j.verdicts.Judge(filter.Call{AuditArch: n.Arch, Nr: int(n.Nr), Args: n.Args},
			filter.Caller{Identity: record.Application, Phase: record.Starting, Mode: j.mode, BeforeExec: before})
		j.mu.Lock()
		j.total++
		if before {
			j.beforeExec = append(j.beforeExec, d.Name)
		}
		if d.Report {
			j.reported = append(j.reported, fmt.Sprintf("%s %s", d.Name, d.Verdict))
		}
		j.mu.Unlock()
		if d.Continue && d.Name == "execve" && int(n.PID) == pid {
			before = false
		}
		r := struct {
			ID           uint64
			Val          int64
			Error, Flags int32
		}{ID: n.ID, Error: -d.Errno}
		if d.Continue {
			r.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

func TestRunc(t *testing.T) {
	runc := need.Runc(t)
	need.Seccomp(t)
	probe := filepath.Join(t.TempDir(), "probe")
	build := exec.Command("go", "build", "-o", probe, "./testdata/probe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	image, err := os.ReadFile(probe)
	if err != nil {
		t.Fatal(err)
	}
	for _, nnp := range []bool{false, true} {
		for _, mode := range []record.Mode{record.Enforce, record.Audit} {
			t.Run(fmt.Sprintf("%s nnp=%v", mode, nnp), func(t *testing.T) { runContainer(t, runc, image, mode, nnp) })
		}
	}
}

func runContainer(t *testing.T, runc string, image []byte, mode record.Mode, nnp bool) {
	dir := t.TempDir()
	root := filepath.Join(dir, "rootfs")
	for _, d := range []string{"rootfs/tmp", "rootfs/proc", "rootfs/dev", "rootfs/vol", "volume", "state"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "probe"), image, 0o755); err != nil {
		t.Fatal(err)
	}
	engine, err := os.ReadFile("../../seccompgen/filter/testdata/docker-20.10.json")
	if err != nil {
		t.Fatal(err)
	}
	caps := `["CAP_CHOWN","CAP_SYS_CHROOT","CAP_SETUID"]`
	raw := fmt.Sprintf(`{"ociVersion":"1.0.2","process":{"args":["/probe"],"cwd":"/","env":["PATH=/"],"user":{"uid":0,"gid":0},"capabilities":{"bounding":%s,"effective":%s,"permitted":%s}},
		"root":{"path":"rootfs"},"hostname":"h","mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/dev","type":"tmpfs","source":"tmpfs"},
		{"destination":"/vol","type":"bind","source":%q,"options":["rbind","rprivate"]}],
		"linux":{"namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"},{"type":"network"}],"seccomp":%s}}`,
		caps, caps, caps, filepath.Join(dir, "volume"), engine)
	s, err := bundle.Parse([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}

	p := &plan.Plan{
		Mode:         map[record.Dimension]record.Mode{record.Syscalls: mode, record.Processes: mode, record.Storage: mode},
		Storage:      plan.Storage{ReadonlyRoot: true, Writable: []plan.Writable{{Path: "/tmp"}, {Path: "/vol", Mounted: true}}},
		Capabilities: []plan.Capability{{Name: "CAP_CHOWN"}},
	}
	for name := range strings.FieldsSeq(goCalls) {
		p.Syscalls.Allow = append(p.Syscalls.Allow, plan.Syscall{Name: name, Phase: record.Serving})
	}
	socket := filepath.Join(dir, "notify.sock")
	profile, verdicts, err := filter.Build(filter.Input{Arch: "amd64", Allow: p.Syscalls.Allow, Engine: s.Linux.Seccomp, Mode: mode,
		NoNewPrivileges: nnp, ListenerPath: socket, ListenerMetadata: "token"})
	if err != nil {
		t.Fatal(err)
	}
	j := &judge{verdicts: verdicts, mode: mode}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go j.serve(l)

	fs, err := rootfs.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer fs.Close()
	e, err := bundle.FromPlan(p, s, bundle.Options{Bundle: dir, Seccomp: profile, NoNewPrivileges: nnp,
		Resolve: func(n string) (string, error) { real, _, err := fs.Stat(n); return real, err }})
	if err != nil {
		t.Fatal(err)
	}
	out, err := s.Apply(e)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "config.json"), out, 0o600); err != nil {
		t.Fatal(err)
	}
	id := fmt.Sprintf("bundle-test-%d", os.Getpid())
	cmd := exec.Command(runc, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, id)
	got, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("runc run: %v\n%s", err, got)
	}

	enforced := mode == record.Enforce
	pick := func(yes, no string) string {
		if enforced {
			return yes
		}
		return no
	}
	for _, line := range []string{
		"write /tmp: <nil>",
		"write /: " + pick("open /x: read-only file system", "<nil>"),
		"write /vol: <nil>",
		"copy: <nil>",
		"exec /probe: <nil>",
		"exec /tmp/probe: " + pick("fork/exec /tmp/probe: permission denied", "<nil>"),
		"exec /vol/probe: " + pick("fork/exec /vol/probe: permission denied", "<nil>"),
		"chroot: " + pick("operation not permitted", "<nil>"),
		"umask: <nil>",
		"setuid: " + pick("operation not permitted", "<nil>"),
		"clone3: function not implemented",
		"call 500: function not implemented",
		"Seccomp_filters:\t1",
		"CapBnd:\t" + pick("0000000000000001", "0000000000040081"),
		fmt.Sprintf("NoNewPrivs:\t%d", map[bool]int{true: 1}[nnp]),
	} {
		if !regexp.MustCompile("(?m)^" + regexp.QuoteMeta(line) + "$").Match(got) {
			t.Errorf("no line %q", line)
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	want := []string{"chroot " + pick("denied", "observed"), "setuid " + pick("denied", "observed")}
	if !slices.Equal(j.reported, want) {
		t.Errorf("reported %v, want %v", j.reported, want)
	}
	if t.Failed() {
		t.Logf("%s", got)
	}
	t.Logf("%d notifications, %d of them before the first execve", j.total, len(j.beforeExec))
	slices.Sort(j.beforeExec)
	for _, name := range slices.Compact(j.beforeExec) {
		if !slices.ContainsFunc(filter.RuntimeNeeds("", nnp), func(s plan.Syscall) bool { return s.Name == name }) {
			t.Errorf("runc calls %s, which the table of its needs does not have", name)
		}
	}
	if _, err := os.Stat(filepath.Join(root, "tmp/x")); err != nil {
		t.Errorf("what is written to a self-bound directory is not in the container's layer: %v", err)
	}
}
