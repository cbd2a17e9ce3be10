package confine

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
)

// Limits are resource limits; a limit of 0 is one.
type Limits struct {
	// Data is how many bytes of memory the process may have that it can write to.
	Data, Files uint64
	// FileSize is how far a file may be written: with 0 no write to a regular
	// file succeeds, whatever it was opened with.
	FileSize uint64
}

// Apply sets the limits, and no core files.
func (l Limits) Apply() error {
	for _, row := range []struct {
		what  int
		limit uint64
	}{
		{unix.RLIMIT_DATA, l.Data}, {unix.RLIMIT_NOFILE, l.Files}, {unix.RLIMIT_FSIZE, l.FileSize}, {unix.RLIMIT_CORE, 0}, {unix.RLIMIT_MEMLOCK, 0}, {unix.RLIMIT_MSGQUEUE, 0},
	} {
		if err := unix.Setrlimit(row.what, &unix.Rlimit{Cur: row.limit, Max: row.limit}); err != nil {
			return fmt.Errorf("limit process: resource %d: %w", row.what, err)
		}
	}
	return nil
}

// ErrNoListener: the kernel, or a filter around this process, gives no listener.
var ErrNoListener = errors.New("no seccomp listener")

// Install puts every thread of the process under a filter that allows rules.
// The listener is for somebody else to hold: closed by everybody, what is not
// allowed fails with ENOSYS. Without one (ErrNoListener) no filter is in force.
func Install(rules []Rule) (listener *os.File, err error) {
	prog, err := Program(runtime.GOARCH, rules, unix.SECCOMP_RET_USER_NOTIF)
	if err != nil {
		return nil, err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("install filter: %w", err)
	}
	// TSYNC sets no_new_privs on the other threads too.
	fd, err := setFilter(prog, unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_NEW_LISTENER|unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH)
	switch {
	case errors.Is(err, unix.EBUSY), errors.Is(err, unix.EINVAL): // one around us; before Linux 5.7
		return nil, fmt.Errorf("install filter: %w: %w", ErrNoListener, err)
	case err != nil:
		return nil, fmt.Errorf("install filter: %w", err)
	}
	return os.NewFile(uintptr(fd), "seccomp listener"), nil
}

// InstallFatal is Install without a listener: the kernel ends the process.
func InstallFatal(rules []Rule) error {
	prog, err := Program(runtime.GOARCH, rules, unix.SECCOMP_RET_KILL_PROCESS)
	if err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("install filter: %w", err)
	}
	if _, err := setFilter(prog, unix.SECCOMP_FILTER_FLAG_TSYNC|unix.SECCOMP_FILTER_FLAG_TSYNC_ESRCH); err != nil {
		return fmt.Errorf("install filter: %w", err)
	}
	return nil
}

// Watch waits at a listener until the process makes a call that is not allowed,
// and names it. It is "" where the process ended without making one. The call
// waits; the caller is to end the process before closing the listener.
func Watch(listener *os.File) string {
	raw, err := listener.SyscallConn()
	if err != nil {
		return ""
	}
	name := ""
	_ = raw.Control(func(fd uintptr) {
		for {
			p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(p, -1); err == unix.EINTR {
				continue
			} else if err != nil || p[0].Revents&unix.POLLIN == 0 {
				return
			}
			nr, err := recv(int(fd))
			if err == unix.EINTR || err == unix.ENOENT { // its thread went away
				continue
			}
			if err != nil {
				return
			}
			var ok bool
			if name, ok = sysno.Name(runtime.GOARCH, nr); !ok {
				name = fmt.Sprintf("number %d", nr)
			}
			return
		}
	})
	return name
}

// handled are the rights that each version of Landlock knows beyond those of
// the one before: those that change or run something. Reading stays as it is.
var handled = []uint64{
	1: unix.LANDLOCK_ACCESS_FS_WRITE_FILE | unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
		unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG | unix.LANDLOCK_ACCESS_FS_MAKE_SOCK |
		unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK | unix.LANDLOCK_ACCESS_FS_MAKE_SYM,
	2: unix.LANDLOCK_ACCESS_FS_REFER,
	3: unix.LANDLOCK_ACCESS_FS_TRUNCATE,
	5: unix.LANDLOCK_ACCESS_FS_IOCTL_DEV,
}

// Landlock keeps the calling thread, and every thread and process that it will
// start, from changing any file. It gives the kernel's version of Landlock, 0
// for none. Threads that run already are not restricted (landlock(7)): restrict the one that starts the process.
func Landlock() (version int, err error) {
	version = landlockVersion()
	if version <= 0 {
		return 0, nil
	}
	var attr unix.LandlockRulesetAttr
	for v, rights := range handled {
		if v <= version {
			attr.Handled_access_fs |= rights
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return 0, fmt.Errorf("restrict with Landlock: %w", err)
	}
	if err := landlockSelf(&attr); err != nil {
		return 0, fmt.Errorf("restrict with Landlock: %w", err)
	}
	return version, nil
}
