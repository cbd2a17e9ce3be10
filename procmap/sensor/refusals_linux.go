package sensor

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"
)

// Hook is where Refusals looks.
type Hook string

const (
	// FunctionExit (fexit) and ReturnProbe (kretprobe) are on the function by
	// which every write takes its right to a mount: nothing else pays for them.
	FunctionExit Hook = "fexit"
	ReturnProbe  Hook = "kretprobe"
	// SyscallExit is the sys_exit tracepoint: exact, and every system call of
	// the machine pays for it. Only where somebody asked for it.
	SyscallExit Hook = "sys_exit"
)

// takesWriteAccess: since Linux 6.8, before.
var takesWriteAccess = []string{"mnt_get_write_access", "__mnt_want_write"}

// Refusals reports writing system calls that a read-only mount refused.
type Refusals struct {
	hook   Hook
	exact  bool
	ring   *ebpf.Map
	lost   *ebpf.Map
	prog   *ebpf.Program
	link   link.Link
	reader *ringbuf.Reader
}

// OpenRefusals loads and attaches a program (Linux 5.15, BTF). Without hooks
// it tries FunctionExit and ReturnProbe. Where none can be had the error is an
// *UnsupportedError.
func OpenRefusals(hooks ...Hook) (*Refusals, error) {
	if len(hooks) == 0 {
		hooks = []Hook{FunctionExit, ReturnProbe}
	}
	var errs []error
	if !archSupported {
		errs = append(errs, errors.New("processor architecture is not known"))
		hooks = nil
	}
	for _, hook := range hooks {
		r, err := openRefusals(hook)
		if err == nil {
			return r, nil
		}
		errs = append(errs, fmt.Errorf("%s: %w", hook, err))
	}
	return nil, &UnsupportedError{
		What: "refused writes",
		Err:  oneLine{errors.Join(errs...)},
		Hint: "use a kernel with CONFIG_KPROBES=y and CONFIG_DEBUG_INFO_BTF=y (5.15 or later); writes are refused all the same, only not reported",
	}
}

// oneLine is a joined error on one line.
type oneLine struct{ error }

func (e oneLine) Error() string { return strings.ReplaceAll(e.error.Error(), "\n", "; ") }
func (e oneLine) Unwrap() error { return e.error }

func openRefusals(hook Hook) (r *Refusals, err error) {
	r = &Refusals{hook: hook, exact: hook == SyscallExit}
	defer func() {
		if err != nil {
			r.Close()
			r = nil
		}
	}()
	if r.ring, err = ebpf.NewMap(&ebpf.MapSpec{Name: "declarun_erofs", Type: ebpf.RingBuf, MaxEntries: 256 << 10}); err != nil {
		return r, err
	}
	if r.lost, err = ebpf.NewMap(&ebpf.MapSpec{Name: "declarun_lost", Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1}); err != nil {
		return r, err
	}
	if err = r.attach(); err != nil {
		return r, err
	}
	r.reader, err = ringbuf.NewReader(r.ring)
	return r, err
}

func (r *Refusals) attach() error {
	var errs []error
	load := func(spec ebpf.ProgramSpec, ret int16) error {
		spec.Name, spec.License = "declarun_erofs", "GPL" // probe_read_user_str is for GPL-compatible programs
		spec.Instructions = refusalProgram(r.ring.FD(), r.lost.FD(), ret)
		var err error
		r.prog, err = ebpf.NewProgram(&spec)
		return err
	}
	switch r.hook {
	case SyscallExit: // arguments: pt_regs, result
		err := load(ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sys_exit"}, 8)
		if err == nil {
			r.link, err = link.AttachTracing(link.TracingOptions{Program: r.prog})
		}
		return err
	case FunctionExit: // arguments: the mount, result
		for _, f := range takesWriteAccess {
			err := load(ebpf.ProgramSpec{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFExit, AttachTo: f}, 8)
			if err == nil {
				if r.link, err = link.AttachTracing(link.TracingOptions{Program: r.prog}); err == nil {
					return nil
				}
				r.prog.Close()
				r.prog = nil
			}
			errs = append(errs, err)
		}
	case ReturnProbe:
		if err := load(ebpf.ProgramSpec{Type: ebpf.Kprobe}, regReturn); err != nil {
			return err
		}
		for _, f := range takesWriteAccess {
			var err error
			if r.link, err = link.Kretprobe(f, r.prog, nil); err == nil {
				return nil
			}
			errs = append(errs, err)
		}
	default:
		return fmt.Errorf("unknown hook %q", r.hook)
	}
	return errors.Join(errs...)
}

// refusalProgram returns at once unless the 32 bits at ret of its context are -EROFS.
func refusalProgram(ring, lost int, ret int16) asm.Instructions {
	at := func(off int32) []asm.Instruction { // R1 = event + off
		return []asm.Instruction{asm.Mov.Reg(asm.R1, asm.R6), asm.Add.Imm(asm.R1, off)}
	}
	var p asm.Instructions
	add := func(i ...asm.Instruction) { p = append(p, i...) }

	add(asm.LoadMem(asm.R2, asm.R1, ret, asm.DWord),
		asm.JNE.Imm32(asm.R2, -int32(unix.EROFS), "exit"),
		asm.LoadMapPtr(asm.R1, ring),
		asm.Mov.Imm(asm.R2, eventSize),
		asm.Mov.Imm(asm.R3, 0),
		asm.FnRingbufReserve.Call(),
		asm.JEq.Imm(asm.R0, 0, "lost"),
		asm.Mov.Reg(asm.R6, asm.R0),
		asm.FnGetCurrentPidTgid.Call(),
		asm.StoreMem(asm.R6, offPIDTGID, asm.R0, asm.DWord),
		asm.FnGetCurrentUidGid.Call(),
		asm.StoreMem(asm.R6, offUIDGID, asm.R0, asm.DWord))
	add(at(offComm)...)
	add(asm.Mov.Imm(asm.R2, 16),
		asm.FnGetCurrentComm.Call(),
		asm.FnGetCurrentTaskBtf.Call(),
		asm.Mov.Reg(asm.R1, asm.R0),
		asm.FnTaskPtRegs.Call(),
		asm.Mov.Reg(asm.R7, asm.R0),
		asm.Mov.Imm(asm.R1, 0),
		asm.StoreMem(asm.R6, offNumber, asm.R1, asm.DWord))
	read := func(off int32, size int32, reg int16) {
		add(at(off)...)
		add(asm.Mov.Imm(asm.R2, size),
			asm.Mov.Reg(asm.R3, asm.R7),
			asm.Add.Imm(asm.R3, int32(reg)),
			asm.FnProbeReadKernel.Call())
	}
	read(offNumber, 4, regNumber)
	for i, reg := range regArgs {
		read(int32(offArgs+8*i), 8, reg)
	}
	add(asm.LoadMem(asm.R3, asm.R6, offArgs, asm.DWord))
	add(at(offPath)...)
	add(asm.Mov.Imm(asm.R2, pathSize),
		asm.FnProbeReadUserStr.Call(),
		asm.LoadMem(asm.R4, asm.R6, offNumber, asm.DWord),
		asm.LoadMem(asm.R3, asm.R6, offArgs+8, asm.DWord),
		asm.JNE.Imm(asm.R4, unix.SYS_SYMLINKAT, "not_symlinkat"),
		asm.LoadMem(asm.R3, asm.R6, offArgs+16, asm.DWord),
		asm.JNE.Imm(asm.R4, unix.SYS_LINKAT, "not_linkat").WithSymbol("not_symlinkat"),
		asm.LoadMem(asm.R3, asm.R6, offArgs+24, asm.DWord),
		asm.Mov.Reg(asm.R1, asm.R6).WithSymbol("not_linkat"),
		asm.Add.Imm(asm.R1, offPath+pathSize),
		asm.Mov.Imm(asm.R2, pathSize),
		asm.FnProbeReadUserStr.Call(),
		asm.Mov.Reg(asm.R1, asm.R6),
		asm.Mov.Imm(asm.R2, 0),
		asm.FnRingbufSubmit.Call(),
		asm.Mov.Imm(asm.R0, 0).WithSymbol("exit"),
		asm.Return(),
		asm.LoadMapValue(asm.R1, lost, 0).WithSymbol("lost"),
		asm.Mov.Imm(asm.R2, 1),
		asm.StoreXAdd(asm.R1, asm.R2, asm.DWord),
		asm.Ja.Label("exit"))
	return p
}

// Hook tells where it looks.
func (r *Refusals) Hook() Hook { return r.hook }

// Lost counts refusals that nobody could be told of since it was opened.
func (r *Refusals) Lost() uint64 {
	var n uint64
	if err := r.lost.Lookup(uint32(0), &n); err != nil {
		return 0
	}
	return n
}

// Close detaches the program; a Run returns.
func (r *Refusals) Close() error {
	var errs []error
	if r.link != nil {
		errs = append(errs, r.link.Close())
	}
	if r.reader != nil {
		errs = append(errs, r.reader.Close())
	}
	if r.prog != nil {
		errs = append(errs, r.prog.Close())
	}
	for _, m := range []*ebpf.Map{r.ring, r.lost} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(errs...)
}

// Run reports the refusals of processes that owner knows until ctx ends.
// report and owner are called from one goroutine.
func (r *Refusals) Run(ctx context.Context, owner func(pid int) (string, bool), report func(Refusal)) error {
	stop := context.AfterFunc(ctx, func() { r.reader.Flush() }) // a deadline does not end a Read that waits
	defer stop()
	var rec ringbuf.Record
	for ctx.Err() == nil {
		if err := r.reader.ReadInto(&rec); err != nil {
			if errors.Is(err, ringbuf.ErrFlushed) {
				continue
			}
			if errors.Is(err, ringbuf.ErrClosed) {
				break
			}
			return fmt.Errorf("read refused writes: %w", err)
		}
		e, err := parseRefusal(rec.RawSample)
		if err != nil {
			return err
		}
		id, ok := owner(e.pid)
		if !ok {
			continue
		}
		if x, ok := e.refusal(r.exact); ok {
			x.Container = id
			report(x)
		}
	}
	return nil
}

// refusal puts an event into words. false: it was none.
func (e refusalEvent) refusal(exact bool) (Refusal, bool) {
	x := Refusal{PID: e.pid, TID: e.tid, UID: e.uid, Comm: e.comm}
	c, known := calls[e.nr]
	if !known {
		c, known = oldCalls[e.nr]
	}
	if !known {
		if exact && slices.Contains(asks, e.nr) {
			return x, false
		}
		x.Syscall = fmt.Sprintf("syscall %d", e.nr)
		_, x.Exe = describe(e.pid)
		return x, true
	}
	x.Syscall, x.Path = c.name, e.path(c)
	if x.Path != "" && !path.IsAbs(x.Path) {
		base := fmt.Sprintf("/proc/%d/cwd", e.pid)
		if c.dir != none && int32(e.args[c.dir]) >= 0 {
			base = fmt.Sprintf("/proc/%d/fd/%d", e.pid, int32(e.args[c.dir]))
		}
		if dir, err := os.Readlink(base); err == nil {
			x.Path = path.Join(dir, x.Path)
		}
	}
	if !exact && e.doubtful(c) && existsOrUnknown(e.pid, x.Path) {
		return x, false
	}
	_, x.Exe = describe(e.pid)
	return x, true
}

// existsOrUnknown is false only when the process is there and the path is not.
func existsOrUnknown(pid int, name string) bool {
	if !path.IsAbs(name) {
		return true
	}
	root, err := unix.Open(fmt.Sprintf("/proc/%d/root", pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return true
	}
	defer unix.Close(root)
	fd, err := unix.Openat2(root, "./"+strings.TrimLeft(name, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err == nil {
		unix.Close(fd)
	}
	return !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENOTDIR)
}

// asks are calls that answer EROFS to a question: nothing was to be written.
var asks = append([]uint64{unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2}, oldAsks...)

var calls = map[uint64]call{
	unix.SYS_OPENAT:       {"openat", 1, 0, 2, false},
	unix.SYS_OPENAT2:      {"openat2", 1, 0, none, false},
	unix.SYS_MKDIRAT:      {"mkdirat", 1, 0, none, true},
	unix.SYS_MKNODAT:      {"mknodat", 1, 0, none, true},
	unix.SYS_UNLINKAT:     {"unlinkat", 1, 0, none, false},
	unix.SYS_RENAMEAT2:    {"renameat2", 1, 0, none, false},
	unix.SYS_SYMLINKAT:    {"symlinkat", 2, 1, none, true},
	unix.SYS_LINKAT:       {"linkat", 3, 2, none, true},
	unix.SYS_FCHMODAT:     {"fchmodat", 1, 0, none, false},
	unix.SYS_FCHMODAT2:    {"fchmodat2", 1, 0, none, false},
	unix.SYS_FCHOWNAT:     {"fchownat", 1, 0, none, false},
	unix.SYS_UTIMENSAT:    {"utimensat", 1, 0, none, false},
	unix.SYS_TRUNCATE:     {"truncate", 0, none, none, false},
	unix.SYS_SETXATTR:     {"setxattr", 0, none, none, false},
	unix.SYS_LSETXATTR:    {"lsetxattr", 0, none, none, false},
	unix.SYS_REMOVEXATTR:  {"removexattr", 0, none, none, false},
	unix.SYS_LREMOVEXATTR: {"lremovexattr", 0, none, none, false},
	unix.SYS_FCHMOD:       {"fchmod", none, none, none, false},
	unix.SYS_FCHOWN:       {"fchown", none, none, none, false},
	unix.SYS_BIND:         {"bind", none, none, none, false},
}
