package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const memfdSysctl = "/proc/sys/vm/memfd_noexec"

// errNoMemfdSysctl says that the kernel is older than 6.3.
var errNoMemfdSysctl = errors.New("kernel has no vm.memfd_noexec (Linux 6.3 and later)")

// errSharedPIDNamespace says that the container has no pid namespace of its own.
var errSharedPIDNamespace = errors.New("the container shares the host's pid namespace")

// forbidMemfdExec sets vm.memfd_noexec=2 in a pid namespace: memory files can be
// made and not be executed. The setting is the namespace's own, and it is a
// process's own namespace that counts: so a child is started in it.
func forbidMemfdExec(pidns *os.File, executable string, args []string) error {
	if _, err := os.Stat(memfdSysctl); errors.Is(err, fs.ErrNotExist) {
		return errNoMemfdSysctl
	}
	var own, theirs unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &own); err != nil {
		return fmt.Errorf("forbid execution of memory files: %w", err)
	}
	if err := control(pidns, func(fd int) error { return unix.Fstat(fd, &theirs) }); err != nil {
		return fmt.Errorf("forbid execution of memory files: %w", err)
	}
	if own.Ino == theirs.Ino && own.Dev == theirs.Dev {
		return errSharedPIDNamespace
	}
	done := make(chan error, 1)
	go func() {
		// Never unlocked: the thread, whose children would be born into the
		// container, ends with this goroutine.
		runtime.LockOSThread()
		done <- func() error {
			if err := control(pidns, func(fd int) error { return unix.Setns(fd, unix.CLONE_NEWPID) }); err != nil {
				return fmt.Errorf("enter pid namespace: %w", err)
			}
			r, wr, err := os.Pipe()
			if err != nil {
				return err
			}
			defer r.Close()
			p, err := os.StartProcess(executable, append([]string{executable}, args...), &os.ProcAttr{Dir: "/", Env: []string{}, Files: []*os.File{nil, nil, wr}})
			wr.Close()
			if err != nil {
				return err
			}
			timer := time.AfterFunc(10*time.Second, func() { p.Kill() })
			defer timer.Stop()
			said := make([]byte, 512)
			n, _ := r.Read(said)
			state, err := p.Wait()
			if err == nil && !state.Success() {
				err = fmt.Errorf("%v: %s", state, strings.TrimSpace(string(said[:n])))
			}
			return err
		}()
	}()
	if err := <-done; err != nil {
		return fmt.Errorf("forbid execution of memory files: %w", err)
	}
	return nil
}

// ForbidMemfdExec is what the child runs: WorkerOptions.MemfdArgs make the
// program call it and exit with 1, and the error on stderr, if it fails.
func ForbidMemfdExec() error {
	f, err := os.OpenFile(memfdSysctl, os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("set vm.memfd_noexec: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteString("2"); err != nil {
		return fmt.Errorf("set vm.memfd_noexec: %w", err)
	}
	return nil
}
