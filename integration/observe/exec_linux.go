package observe

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// dockers are the capabilities of a Docker container.
var dockers = []uintptr{unix.CAP_CHOWN, unix.CAP_DAC_OVERRIDE, unix.CAP_FSETID, unix.CAP_FOWNER, unix.CAP_MKNOD, unix.CAP_NET_RAW, unix.CAP_SETGID,
	unix.CAP_SETUID, unix.CAP_SETFCAP, unix.CAP_SETPCAP, unix.CAP_NET_BIND_SERVICE, unix.CAP_SYS_CHROOT, unix.CAP_KILL, unix.CAP_AUDIT_WRITE}

// execute becomes the command. It returns only with an error.
func execute(arg string) error {
	var s start
	if err := json.Unmarshal([]byte(arg), &s); err != nil {
		return err
	}
	runtime.LockOSThread() // what follows is about one thread: the one that executes
	if s.Root != "" {
		if err := unix.Chroot(s.Root); err != nil {
			return fmt.Errorf("change root: %w", err)
		}
	}
	if err := os.Chdir(s.Dir); err != nil {
		return err
	}
	for c := uintptr(0); c <= unix.CAP_LAST_CAP; c++ {
		if !slices.Contains(dockers, c) && !(s.Tracer && c == unix.CAP_SYS_PTRACE) {
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, c, 0, 0, 0); err != nil && err != unix.EINVAL {
				return fmt.Errorf("drop capability %d: %w", c, err)
			}
		}
	}
	env := os.Environ()
	if s.Filter {
		program, err := io.ReadAll(os.NewFile(3, "program"))
		if err != nil {
			return err
		}
		unix.CloseOnExec(4)
		// Between the filter and its listener's arrival nobody answers, so this
		// thread must make no call: it waits for the other one by looking.
		debug.SetGCPercent(-1)
		var listener, handed atomic.Int32
		listener.Store(-1)
		var failed error
		go func() {
			for listener.Load() < 0 {
				time.Sleep(100 * time.Microsecond)
			}
			failed = hand(4, int(listener.Load()))
			handed.Store(1)
		}()
		fd, err := load(program)
		if err != nil {
			return fmt.Errorf("load the filter: %w", err)
		}
		listener.Store(int32(fd))
		for handed.Load() == 0 {
		}
		if failed != nil {
			return failed
		}
	}
	return fmt.Errorf("execute %s: %w", s.Argv[0], unix.Exec(s.Argv[0], s.Argv, env))
}

// hand gives a descriptor to the other end of a socket, and waits for its word.
func hand(socket, fd int) error {
	if err := unix.Sendmsg(socket, []byte{0}, unix.UnixRights(fd), nil, 0); err != nil {
		return fmt.Errorf("hand over the listener: %w", err)
	}
	var b [1]byte
	if n, err := unix.Read(socket, b[:]); err != nil || n != 1 {
		return fmt.Errorf("hand over the listener: no answer: %w", err)
	}
	return nil
}
