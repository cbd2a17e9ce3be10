package main

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestOnlyTheServicesOwnProcessTakesOver(t *testing.T) {
	for _, test := range []struct {
		claim string
		env   map[string]string
		want  bool
	}{
		{"socket activation names it", map[string]string{"LISTEN_PID": "42", "LISTEN_FDS": "2"}, true},
		{"systemd 248 names it", map[string]string{"SYSTEMD_EXEC_PID": "42"}, true},
		{"on first use it inherits the engine's", map[string]string{"SYSTEMD_EXEC_PID": "7", "INVOCATION_ID": "ab", "NOTIFY_SOCKET": "/run/systemd/notify"}, false},
		{"somebody else's sockets", map[string]string{"LISTEN_PID": "7", "LISTEN_FDS": "1"}, false},
		{"from a shell", nil, false},
	} {
		if got := underServiceManager(func(name string) string { return test.env[name] }, 42); got != test.want {
			t.Errorf("%s: %v", test.claim, got)
		}
	}
}

func TestReadiness(t *testing.T) {
	path := filepath.Join(t.TempDir(), "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	ready, err := readiness()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getenv("NOTIFY_SOCKET") != "" {
		t.Error("children would speak for the service")
	}
	ready()
	b := make([]byte, 100)
	if n, err := conn.Read(b); err != nil || string(b[:n]) != "READY=1" {
		t.Errorf("%q %v", b[:n], err)
	}
	if ready, err = readiness(); err != nil {
		t.Error(err)
	}
	ready() // to nobody
	os.Setenv("NOTIFY_SOCKET", "vsock:2:1")
	if _, err := readiness(); err == nil {
		t.Error("a socket of another kind is taken for a path")
	}
}
