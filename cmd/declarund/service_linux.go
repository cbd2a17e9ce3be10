package main

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// underServiceManager says whether systemd started this very process. Its
// variables are inherited, so that a supervisor that a runtime call started on
// first use may have INVOCATION_ID and NOTIFY_SOCKET of the engine's service:
// only those that name a process count. LISTEN_PID (sd_listen_fds(3)) is there
// whenever declarun.socket is used, SYSTEMD_EXEC_PID (systemd.exec(5)) since
// systemd 248.
func underServiceManager(getenv func(string) string, pid int) bool {
	own := strconv.Itoa(pid)
	return getenv("LISTEN_PID") == own || getenv("SYSTEMD_EXEC_PID") == own
}

// readiness gives what tells the service manager that the supervisor answers
// (sd_notify(3)). The variable is taken away: no child speaks for the service.
func readiness() (func(), error) {
	path := os.Getenv("NOTIFY_SOCKET")
	os.Unsetenv("NOTIFY_SOCKET")
	if path == "" {
		return func() {}, nil
	}
	if path[0] != '/' && path[0] != '@' { // @: an abstract name, which x/sys spells so too
		return nil, fmt.Errorf("tell the service manager: NOTIFY_SOCKET=%q is no local socket", path)
	}
	return func() {
		if err := tell(path, "READY=1"); err != nil {
			fmt.Fprintln(os.Stderr, "declarund: tell the service manager:", err)
		}
	}, nil
}

func tell(path, state string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Sendto(fd, []byte(state), unix.MSG_NOSIGNAL, &unix.SockaddrUnix{Name: path})
}
