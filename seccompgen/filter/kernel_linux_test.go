//go:build cgo && amd64

package filter

import (
	"encoding/json"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"testing"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	libseccomp "github.com/seccomp/libseccomp-golang"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

// This file is the second judge: the kernel runs the filter on a thread of its
// own, another thread answers the notifications with Judge.

type notification struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

type response struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

type observed struct {
	Call     Call
	Decision Decision
}

// answer serves notifications until the filter has no users left.
func answer(fd int, v *Verdicts, by func() Caller, mu *sync.Mutex, log *[]observed) {
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, -1); err == unix.EINTR {
			continue
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return
		}
		var n notification
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_RECV, uintptr(unsafe.Pointer(&n))); e != 0 {
			continue
		}
		c := Call{AuditArch: n.Arch, Nr: int(n.Nr), Args: n.Args}
		d := v.Judge(c, by())
		mu.Lock()
		*log = append(*log, observed{c, d})
		mu.Unlock()
		r := response{ID: n.ID, Error: -d.Errno}
		if d.Continue {
			r.Flags = unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE
		}
		unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SECCOMP_IOCTL_NOTIF_SEND, uintptr(unsafe.Pointer(&r)))
	}
}

func install(ins []bpf.RawInstruction) (int, error) {
	f := make([]unix.SockFilter, len(ins))
	for i, in := range ins {
		f[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	prog := unix.SockFprog{Len: uint16(len(f)), Filter: &f[0]}
	fd, _, e := unix.RawSyscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_NEW_LISTENER, uintptr(unsafe.Pointer(&prog)))
	if e != 0 {
		return -1, e
	}
	return int(fd), nil
}

// The filter cannot be taken off again, so all of this happens in a child.
func TestKernel(t *testing.T) {
	need.Root(t)
	need.Seccomp(t)
	if os.Getenv("FILTER_TEST_CHILD") != "" {
		inChild(t)
		return
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernel$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), "FILTER_TEST_CHILD=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}

func inChild(t *testing.T) {
	in := input(t)
	in.Engine = domains(in.Engine)
	p, v := build(t, in)
	b, err := json.Marshal(v) // as it reaches the supervisor
	if err != nil {
		t.Fatal(err)
	}
	if v, err = ParseVerdicts(b); err != nil {
		t.Fatal(err)
	}
	ins := export(t, compile(t, p))

	var mu sync.Mutex
	var log []observed
	by := Caller{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce}
	as := func(f func(*Caller)) {
		mu.Lock()
		defer mu.Unlock()
		f(&by)
	}
	caller := func() Caller {
		mu.Lock()
		defer mu.Unlock()
		return by
	}
	type result struct {
		r uintptr
		e unix.Errno
	}
	calls, results, loaded := make(chan Call), make(chan result), make(chan int)
	go func() {
		runtime.LockOSThread()
		fd, err := install(ins)
		if err != nil {
			t.Error(err)
			fd = -1
		}
		loaded <- fd
		for c := range calls {
			r, _, e := unix.RawSyscall6(uintptr(c.Nr), uintptr(c.Args[0]), uintptr(c.Args[1]), uintptr(c.Args[2]), uintptr(c.Args[3]), uintptr(c.Args[4]), uintptr(c.Args[5]))
			results <- result{r, e}
		}
		select {} // the thread has the filter; it ends with the process
	}()
	fd := <-loaded
	if fd < 0 {
		t.FailNow()
	}
	go answer(fd, v, caller, &mu, &log)
	do := func(c Call) (uintptr, unix.Errno, []observed) {
		mu.Lock()
		log = nil
		mu.Unlock()
		calls <- c
		r := <-results
		mu.Lock()
		defer mu.Unlock()
		var own []observed // the Go runtime may have made others
		for _, o := range log {
			if o.Call.Nr == c.Nr {
				own = append(own, o)
			}
		}
		return r.r, r.e, own
	}

	const bad = ^uint64(0)
	for _, row := range []struct {
		claim    string
		phase    record.Phase
		identity record.Identity
		call     Call
		errno    unix.Errno
		asked    bool
	}{
		{"an allowed call goes unasked", record.Serving, record.Application, call(t, "getpid"), 0, false},
		{"a start-up call while starting", record.Starting, record.Application, call(t, "setuid", uint64(os.Getuid())), 0, true},
		{"a start-up call while serving", record.Serving, record.Application, call(t, "setuid", uint64(os.Getuid())), unix.EPERM, true},
		{"the same by a health check", record.Serving, record.HealthCheck, call(t, "setuid", uint64(os.Getuid())), 0, true},
		{"chroot while serving, before its path is looked at", record.Serving, record.Application, call(t, "chroot", 0), unix.EPERM, true},
		{"chroot while starting reaches the kernel", record.Starting, record.Application, call(t, "chroot", 0), unix.EFAULT, true},
		{"listen reaches the kernel", record.Serving, record.Application, call(t, "listen", bad), unix.EBADF, true},
		{"execve while starting reaches the kernel", record.Starting, record.Application, call(t, "execve", 0), unix.EFAULT, true},
		{"execve while serving does not", record.Serving, record.Application, call(t, "execve", 0), unix.EPERM, true},
		{"ptrace by the application", record.Starting, record.Application, call(t, "ptrace", bad, bad), unix.EPERM, true},
		{"ptrace by an operator reaches the kernel", record.Serving, record.Operator, call(t, "ptrace", bad, 0x7fffffff), unix.ESRCH, true},
		{"what is needed and withheld is answered in the kernel", record.Serving, record.Application, call(t, "clone3"), unix.ENOSYS, false},
		{"and so is what the engine's default withholds", record.Serving, record.Application, call(t, "add_key"), unix.EPERM, false},
		{"an AF_INET socket", record.Serving, record.Application, call(t, "socket", unix.AF_INET, unix.SOCK_STREAM), 0, false},
		{"an AF_VSOCK socket", record.Serving, record.Application, call(t, "socket", unix.AF_VSOCK, unix.SOCK_STREAM), unix.EPERM, true},
		{"an AF_VSOCK socket in 32 bits", record.Serving, record.Application, call(t, "socket", 1<<32|unix.AF_VSOCK, unix.SOCK_STREAM), unix.EPERM, true},
		{"an AF_VSOCK socket by an operator", record.Serving, record.Operator, call(t, "socket", unix.AF_VSOCK, unix.SOCK_STREAM), unix.EPERM, true},
		{"a new user namespace by clone", record.Starting, record.Application, call(t, "clone", unix.CLONE_NEWUSER|uint64(unix.SIGCHLD)), unix.EPERM, true},
		{"the personality one has", record.Serving, record.Application, call(t, "personality", 0xffffffff), 0, true},
		{"a personality without address randomisation", record.Serving, record.Application, call(t, "personality", 0x40000), unix.EPERM, true},
		{"io_uring", record.Serving, record.Application, call(t, "io_uring_setup", 1, 0), unix.ENOSYS, true},
	} {
		as(func(c *Caller) { c.Phase, c.Identity = row.phase, row.identity })
		_, e, asked := do(row.call)
		if e != row.errno || (len(asked) > 0) != row.asked {
			t.Errorf("%s: errno %d (%v), asked %d times; want %d, asked %v", row.claim, e, e, len(asked), row.errno, row.asked)
		}
	}

	// Every call that the application is refused, with arguments that would do
	// nothing if it were let through.
	as(func(c *Caller) { c.Phase, c.Identity = record.Serving, record.Application })
	refused := 0
	for _, entry := range v.Entries["amd64"] {
		if _, err := libseccomp.GetSyscallFromName(entry.Name); err != nil {
			continue
		}
		switch entry.Class {
		case Undeclared, StartingOnly, RuntimeOnly, Withheld:
		default:
			continue
		}
		_, e, asked := do(Call{Nr: entry.Nr, Args: [6]uint64{bad, bad, bad, bad, bad, bad}})
		if int32(e) != entry.Errno || (len(asked) > 0) == (entry.Class == Withheld) {
			t.Errorf("%s (%s): errno %d, asked %d times; want %d", entry.Name, entry.Class, e, len(asked), entry.Errno)
		}
		refused++
	}
	if refused < 250 {
		t.Errorf("only %d calls refused", refused)
	}
	t.Logf("%d calls refused by the kernel as the verdicts say", refused)
}
