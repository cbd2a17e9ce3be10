package observe

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/filter"
)

// Answer is what becomes of a call.
type Answer struct {
	Allowed bool  `json:"allowed"`
	Errno   int32 `json:"errno,omitempty"` // where it is not allowed
	Asked   bool  `json:"asked,omitempty"` // the supervisor decided
}

// Simulate interprets a filter's program for some calls and has the verdicts
// decide where the program asks.
func Simulate(f *Filter, by filter.Caller, calls []filter.Call) ([]Answer, error) {
	raw := make([]bpf.RawInstruction, len(f.Program)/8)
	for i := range raw {
		in := f.Program[i*8:]
		raw[i] = bpf.RawInstruction{Op: native16(in), Jt: in[2], Jf: in[3], K: native32(in[4:])}
	}
	instructions, ok := bpf.Disassemble(raw)
	if !ok {
		return nil, errors.New("simulate filter: it has instructions that are unknown")
	}
	vm, err := bpf.NewVM(instructions)
	if err != nil {
		return nil, fmt.Errorf("simulate filter: %w", err)
	}
	out := make([]Answer, len(calls))
	for i, c := range calls {
		got, err := vm.Run(data(c))
		if err != nil {
			return nil, fmt.Errorf("simulate filter: call %d: %w", c.Nr, err)
		}
		switch ret := uint32(got); ret & unix.SECCOMP_RET_ACTION_FULL {
		case unix.SECCOMP_RET_ALLOW:
			out[i] = Answer{Allowed: true}
		case unix.SECCOMP_RET_ERRNO:
			out[i] = Answer{Errno: int32(ret & unix.SECCOMP_RET_DATA)}
		case unix.SECCOMP_RET_USER_NOTIF:
			d := f.Verdicts.Judge(c, by)
			out[i] = Answer{Allowed: d.Continue, Errno: d.Errno, Asked: true}
		default:
			return nil, fmt.Errorf("simulate filter: call %d: verdict %#x", c.Nr, ret)
		}
	}
	return out, nil
}

// data is struct seccomp_data. A seccomp filter loads words in the machine's
// byte order, package bpf in the network's: words are stored so.
func data(c filter.Call) []byte {
	words := []uint32{uint32(c.Nr), unix.AUDIT_ARCH_X86_64, 0, 0}
	for _, a := range c.Args {
		words = append(words, uint32(a), uint32(a>>32))
	}
	var b []byte
	for _, w := range words {
		b = append(b, byte(w>>24), byte(w>>16), byte(w>>8), byte(w))
	}
	return b
}

func native16(b []byte) uint16 { return uint16(b[0]) | uint16(b[1])<<8 }
func native32(b []byte) uint32 { return uint32(native16(b)) | uint32(native16(b[2:]))<<16 }

// How the kernel is asked without letting a call happen: beside the filter a
// second one answers calls that carry a mark in their sixth argument, which no
// rule looks at. RET_TRACE without a tracer answers ENOSYS, and ranks below
// RET_ERRNO and RET_USER_NOTIF but above RET_ALLOW (seccomp(2)): ENOSYS is then
// what an allowed call gets. Where the filter itself says ENOSYS, the second
// one is loaded first and answers RET_ERRNO: of equal ranks the filter loaded
// last wins, so that its own ENOSYS shows. The supervisor's answers are marked.
const (
	mark      = 0x6d61726b
	continued = 4000 // errno for a call that the supervisor would let through
	offset    = 2000 // added to an errno of the supervisor's
	unheard   = 4001 // what the second filter answers in the second round
)

const wordProbe = "__observe-probe"

// probe is what the child of Kernel does.
type probe struct {
	Calls  []filter.Call
	Marked uint32 // verdict on marked calls
}

// Kernel has the kernel itself judge calls, none of which happens.
func Kernel(ctx context.Context, f *Filter, by filter.Caller, calls []filter.Call) ([]Answer, error) {
	first, err := round(ctx, f, by, probe{calls, unix.SECCOMP_RET_TRACE})
	if err != nil {
		return nil, err
	}
	second, err := round(ctx, f, by, probe{calls, unix.SECCOMP_RET_ERRNO | unheard})
	if err != nil {
		return nil, err
	}
	out := make([]Answer, len(calls))
	for i := range calls {
		switch e := first[i]; {
		case e == continued:
			out[i] = Answer{Allowed: true, Asked: true}
		case e >= offset:
			out[i] = Answer{Errno: e - offset, Asked: true}
		case e == int32(unix.ENOSYS) && second[i] == unheard:
			out[i] = Answer{Allowed: true}
		case e == 0:
			return nil, fmt.Errorf("probe the kernel: call %d happened", calls[i].Nr)
		default:
			out[i] = Answer{Errno: e}
		}
	}
	return out, nil
}

func round(ctx context.Context, f *Filter, by filter.Caller, p probe) ([]int32, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	raw, err := json.Marshal(p)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, wordProbe, "-")
	// The thread under the filter must not be made to call the kernel by the Go runtime.
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	cmd.Stdin = bytes.NewReader(raw)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	q, err := ask(cmd, f)
	if err != nil {
		return nil, err
	}
	q.by, q.pretend = by, true
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	err = q.begin()
	err = errors.Join(err, cmd.Wait())
	if err != nil {
		return nil, fmt.Errorf("probe the kernel: %w: %s", err, said.Bytes()[:min(said.Len(), 500)])
	}
	q.end()
	var errnos []int32
	if err := json.Unmarshal(out.Bytes(), &errnos); err != nil {
		return nil, fmt.Errorf("probe the kernel: %w", err)
	}
	if len(errnos) != len(p.Calls) {
		return nil, fmt.Errorf("probe the kernel: %d answers to %d calls", len(errnos), len(p.Calls))
	}
	return errnos, nil
}

// marked is the second filter.
func marked(verdict uint32) ([]byte, error) {
	const sixth = 16 + 5*8 // offset of the sixth argument in struct seccomp_data
	raw, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: sixth, Size: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: mark, SkipFalse: 1},
		bpf.RetConstant{Val: verdict},
		bpf.RetConstant{Val: unix.SECCOMP_RET_ALLOW},
	})
	if err != nil {
		return nil, err
	}
	var out []byte
	for _, in := range raw {
		out = append(out, byte(in.Op), byte(in.Op>>8), in.Jt, in.Jf, byte(in.K), byte(in.K>>8), byte(in.K>>16), byte(in.K>>24))
	}
	return out, nil
}

// makeCalls is the child: it makes the calls on a thread under both filters and
// writes their errnos.
func makeCalls() error {
	var p probe
	raw, err := io.ReadAll(os.Stdin)
	if err == nil {
		err = json.Unmarshal(raw, &p)
	}
	if err != nil {
		return err
	}
	program, err := io.ReadAll(os.NewFile(3, "program"))
	if err != nil {
		return err
	}
	second, err := marked(p.Marked)
	if err != nil {
		return err
	}
	errnos := make([]int32, len(p.Calls))
	var listener, handed, done atomic.Int32
	listener.Store(-1)
	failed := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: it has the filters
		if err := loadPlain(second); err != nil {
			failed <- err
			return
		}
		fd, err := load(program)
		if err != nil {
			failed <- err
			return
		}
		listener.Store(int32(fd))
		for handed.Load() == 0 {
		}
		for i := range p.Calls {
			c := &p.Calls[i]
			_, _, e := unix.RawSyscall6(uintptr(c.Nr), uintptr(c.Args[0]), uintptr(c.Args[1]), uintptr(c.Args[2]), uintptr(c.Args[3]), uintptr(c.Args[4]), mark)
			errnos[i] = int32(e)
		}
		done.Store(1)
		for { // it may make no call any more; the process ends without it
		}
	}()
	for listener.Load() < 0 {
		select {
		case err := <-failed:
			return fmt.Errorf("load the filters: %w", err)
		case <-time.After(100 * time.Microsecond):
		}
	}
	if err := hand(4, int(listener.Load())); err != nil {
		return err
	}
	handed.Store(1)
	for done.Load() == 0 {
		time.Sleep(time.Millisecond)
	}
	if raw, err = json.Marshal(errnos); err != nil {
		return err
	}
	_, err = os.Stdout.Write(raw)
	return err
}
