// Package inject makes a running process execute system calls that are not in
// its program, with ptrace(2): what an attacker does who has taken over a
// process through a memory error. The demo and the break-in tests use it where
// no query language or script can ask for a call directly.
//
// The process is left as it was found: registers, memory, and a system call
// that was interrupted is restarted by the kernel.
package inject

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// Session is an attached process. All calls must come from the goroutine that
// opened it: ptrace belongs to a thread.
type Session struct {
	pid     int
	saved   unix.PtraceRegs
	mem     *os.File
	scratch uint64 // below the red zone of the stopped thread
	used    uint64
	old     []byte
	site    uint64 // address of a syscall instruction
}

const scratchSize = 4096

// Attach stops a process that is waiting inside a system call, or soon will be.
func Attach(pid int) (*Session, error) {
	runtime.LockOSThread()
	for try := 0; ; try++ {
		s := &Session{pid: pid}
		err := s.attach()
		if err == nil {
			return s, nil
		}
		if !errors.Is(err, errRuns) || try == attempts {
			runtime.UnlockOSThread()
			return nil, fmt.Errorf("attach %d: %w", pid, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A server works now and then without being asked: it is tried again.
const attempts = 200

var errRuns = errors.New("not inside a system call")

func (s *Session) attach() error {
	if err := unix.PtraceAttach(s.pid); err != nil {
		return err
	}
	var status unix.WaitStatus
	if _, err := unix.Wait4(s.pid, &status, unix.WALL, nil); err != nil {
		return err
	}
	if err := unix.PtraceGetRegs(s.pid, &s.saved); err != nil {
		return s.abandon(err)
	}
	mem, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", s.pid), os.O_RDWR, 0)
	if err != nil {
		return s.abandon(err)
	}
	s.mem = mem
	code := make([]byte, 2)
	s.site = s.saved.Rip - 2
	if _, err := mem.ReadAt(code, int64(s.site)); err != nil {
		return s.abandon(err)
	}
	if code[0] != 0x0f || code[1] != 0x05 {
		return s.abandon(fmt.Errorf("%w (code % x before %#x)", errRuns, code, s.saved.Rip))
	}
	s.scratch = (s.saved.Rsp - 128 - scratchSize) &^ 15
	s.old = make([]byte, scratchSize)
	if _, err := mem.ReadAt(s.old, int64(s.scratch)); err != nil {
		return s.abandon(err)
	}
	return nil
}

func (s *Session) abandon(err error) error {
	if s.mem != nil {
		s.mem.Close()
	}
	_ = unix.PtraceDetach(s.pid)
	return err
}

// Bytes puts data into the process and gives its address there.
func (s *Session) Bytes(data []byte) (uint64, error) {
	size := (uint64(len(data)) + 15) &^ 15
	if s.used+size > scratchSize {
		return 0, fmt.Errorf("no room for %d bytes", len(data))
	}
	addr := s.scratch + s.used
	s.used += size
	if _, err := s.mem.WriteAt(data, int64(addr)); err != nil {
		return 0, err
	}
	return addr, nil
}

// String puts a NUL-terminated string into the process.
func (s *Session) String(text string) (uint64, error) { return s.Bytes(append([]byte(text), 0)) }

// Pointers puts a NULL-terminated array of pointers into the process.
func (s *Session) Pointers(addrs ...uint64) (uint64, error) {
	var raw []byte
	for _, a := range append(addrs, 0) {
		raw = binary.LittleEndian.AppendUint64(raw, a)
	}
	return s.Bytes(raw)
}

// Call makes the process execute one system call. The error is the call's errno.
func (s *Session) Call(nr uint64, args ...uint64) (int64, error) {
	regs := s.saved
	var a [6]uint64
	copy(a[:], args)
	regs.Rax, regs.Orig_rax = nr, ^uint64(0)
	regs.Rdi, regs.Rsi, regs.Rdx, regs.R10, regs.R8, regs.R9 = a[0], a[1], a[2], a[3], a[4], a[5]
	regs.Rip = s.site
	if err := unix.PtraceSetRegs(s.pid, &regs); err != nil {
		return 0, fmt.Errorf("inject call %d: %w", nr, err)
	}
	// One step executes the instruction; a call that waits in the kernel is
	// still one step. Signals that arrive meanwhile stay pending.
	for range 16 {
		if err := unix.PtraceSingleStep(s.pid); err != nil {
			return 0, fmt.Errorf("inject call %d: %w", nr, err)
		}
		var status unix.WaitStatus
		if _, err := unix.Wait4(s.pid, &status, unix.WALL, nil); err != nil {
			return 0, fmt.Errorf("inject call %d: %w", nr, err)
		}
		if status.Exited() || status.Signaled() {
			return 0, fmt.Errorf("inject call %d: the process ended: %v", nr, status)
		}
		var now unix.PtraceRegs
		if err := unix.PtraceGetRegs(s.pid, &now); err != nil {
			return 0, fmt.Errorf("inject call %d: %w", nr, err)
		}
		if now.Rip != s.site {
			if r := int64(now.Rax); r < 0 && r > -4096 {
				return r, unix.Errno(-r)
			}
			return int64(now.Rax), nil
		}
	}
	return 0, fmt.Errorf("inject call %d: it never returned", nr)
}

// Close puts the process back as it was and lets it go on.
func (s *Session) Close() error {
	defer runtime.UnlockOSThread()
	defer s.mem.Close()
	_, werr := s.mem.WriteAt(s.old, int64(s.scratch))
	err := unix.PtraceSetRegs(s.pid, &s.saved)
	if derr := unix.PtraceDetach(s.pid); err == nil {
		err = derr
	}
	if err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("leave %d: %w", s.pid, err)
	}
	return nil
}
