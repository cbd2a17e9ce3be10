// Package need is how a test says what it needs from the machine. At a desk a
// missing need skips the test; where DECLARUN_REQUIRE names the need, or says
// "all", it fails it: a machine that lost a privilege goes red instead of
// testing nothing.
package need

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func missing(t testing.TB, name, why string) {
	t.Helper()
	required := strings.FieldsFunc(os.Getenv("DECLARUN_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' })
	if slices.Contains(required, name) || slices.Contains(required, "all") {
		t.Fatalf("needs %s: %s", name, why)
	}
	t.Skipf("needs %s: %s (set DECLARUN_REQUIRE=%s to make this a failure)", name, why, name)
}

// Root needs effective user ID 0.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root", "not running as root")
	}
}

// Program needs a program in PATH and gives its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		missing(t, name, err.Error())
	}
	return p
}

// File needs a file that a package brings.
func File(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Stat(name); err != nil {
		missing(t, name, err.Error())
	}
}

// Runc needs root and runc.
func Runc(t testing.TB) string {
	t.Helper()
	Root(t)
	return Program(t, "runc")
}

// Docker needs root and the daemons a private engine is started from.
func Docker(t testing.TB) {
	t.Helper()
	Root(t)
	for _, p := range []string{"dockerd", "containerd", "docker", "runc"} {
		Program(t, p)
	}
}

// Fanotify needs permission events (Linux 5.0, CONFIG_FANOTIFY_ACCESS_PERMISSIONS).
func Fanotify(t testing.TB) {
	t.Helper()
	Root(t)
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_REPORT_TID, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		missing(t, "fanotify", err.Error())
		return
	}
	unix.Close(fd)
}

// Netns needs to be able to make network namespaces.
func Netns(t testing.TB) {
	t.Helper()
	Root(t)
	// Probed in a child: a namespace of this process would change its thread.
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrNotFound) {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			missing(t, "netns", err.Error())
		}
	}
}

// Seccomp needs user notification (Linux 5.0; with continue 5.5).
func Seccomp(t testing.TB) {
	t.Helper()
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil || !strings.Contains(string(actions), "user_notif") {
		missing(t, "seccomp", "kernel has no user_notif action")
	}
}

// Landlock needs a version of it (1: Linux 5.13, 3: 6.2).
func Landlock(t testing.TB, version uintptr) {
	t.Helper()
	const ask = 1 // LANDLOCK_CREATE_RULESET_VERSION
	got, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, ask)
	if errno != 0 {
		missing(t, "landlock", errno.Error())
	}
	if got < version {
		missing(t, "landlock", "kernel has an older version")
	}
}

// Userfaultfd needs page faults that user space answers (Linux 4.3, CONFIG_USERFAULTFD).
func Userfaultfd(t testing.TB) {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		missing(t, "userfaultfd", errno.Error())
		return
	}
	unix.Close(int(fd))
}
