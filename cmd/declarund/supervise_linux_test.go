package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/wire"
)

// As systemd does it: the main process is killed, the worker stays, the next
// main process takes over and says that it is ready.
func TestTheServiceTakesOver(t *testing.T) {
	need.Root(t)
	need.Seccomp(t)
	need.Fanotify(t)
	c := newCommand(t)
	cfg := &site.Config{Socket: filepath.Join(c.dir, "run/s"), StateDir: filepath.Join(c.dir, "run")}
	c.write(t, "etc/config.toml", fmt.Sprintf("socket = %q\nstate-dir = %q\nlog-file = %q\ncache-dir = %q\nreport-writes = \"off\"\n",
		cfg.Socket, cfg.StateDir, filepath.Join(c.dir, "log/events.jsonl"), filepath.Join(c.dir, "cache")), 0o600)
	if err := os.Mkdir(cfg.StateDir, 0o700); err != nil {
		t.Fatal(err)
	}
	notify := filepath.Join(c.dir, "n")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: notify, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()

	start := func() *exec.Cmd {
		t.Helper()
		// The shell becomes the program: its process ID is the one that is named.
		cmd := exec.Command("/bin/sh", "-c", `SYSTEMD_EXEC_PID=$$ exec "$0" supervise`, c.program)
		cmd.Env = []string{"DECLARUND_TEST=" + c.dir, "NOTIFY_SOCKET=" + notify, "PATH=/usr/bin:/bin"}
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
		conn.SetReadDeadline(time.Now().Add(30 * time.Second))
		b := make([]byte, 100)
		if n, err := conn.Read(b); err != nil || string(b[:n]) != "READY=1" {
			t.Fatalf("%q %v", b[:n], err)
		}
		return cmd
	}
	worker := func() int {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			conn, err := wire.Dial(ctx, cfg.Socket)
			if err == nil {
				answer, callErr := conn.Call(wire.Request{Operation: wire.Ping}, nil)
				conn.Close()
				if err = callErr; err == nil && answer.Ping != nil {
					cancel()
					return answer.Ping.PID
				}
			}
			cancel()
			if time.Now().After(deadline) {
				t.Fatalf("ask the worker: %v", err)
			}
		}
	}
	first := start()
	before := worker()
	t.Cleanup(func() { // whatever failed: the worker ends, and with it the monitor that it may have started
		if exe, err := os.Readlink("/proc/" + strconv.Itoa(before) + "/exe"); err == nil && exe == c.program {
			syscall.Kill(before, syscall.SIGKILL)
		}
	})
	if before == first.Process.Pid {
		t.Error("one process is monitor and worker")
	}
	first.Process.Kill()
	first.Wait()
	second := start()
	if after := worker(); after != before {
		t.Errorf("worker %d became %d", before, after)
	}
	if o := c.run(t, "status"); o.code != 0 || o.stdout != "no container is supervised\n" {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "supervise"); o.code != 1 || o.stderr == "" {
		t.Errorf("a second supervisor: %+v", o)
	}
	if err := second.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := second.Wait(); err != nil {
		t.Errorf("it ends: %v", err)
	}
	if _, err := os.Stat(cfg.Socket); !os.IsNotExist(err) {
		t.Errorf("its socket stays: %v", err)
	}
}
