package main

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/runtime"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/wire"
)

// The test program is declarund itself where the environment says so.
func TestMain(m *testing.M) {
	// The analyser is started without an environment.
	if code, done := internal(os.Args); done {
		os.Exit(code)
	}
	if dir := os.Getenv("DECLARUND_TEST"); dir != "" {
		site.DefaultPath, unitDir = filepath.Join(dir, "etc/config.toml"), filepath.Join(dir, "units")
		patience = patienceOfTest
		main()
	}
	os.Exit(m.Run())
}

// patienceOfTest is enough for an answer and short enough to be waited out.
const patienceOfTest = 500 * time.Millisecond

type outcome struct {
	stdout, stderr string
	code           int
}

// command is this program as declarun in a directory of its own, which anybody
// may read: as others than root, too.
type command struct{ dir, program string }

func newCommand(t *testing.T) command {
	t.Helper()
	dir, err := os.MkdirTemp("", "declarund") // t.TempDir is for its owner only
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, d := range []string{"", "bin", "etc", "units", "home"} {
		if err := errors.Join(os.MkdirAll(filepath.Join(dir, d), 0o755), os.Chmod(filepath.Join(dir, d), 0o755)); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(self)
	if err != nil {
		t.Fatal(err)
	}
	c := command{dir, filepath.Join(dir, "bin/declarund")}
	c.write(t, "bin/declarund", string(content), 0o755)
	c.write(t, "bin/declarun", "#!/bin/sh\n", 0o755)
	return c
}

func (c command) write(t *testing.T, name, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(c.dir, name)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), mode)); err != nil {
		t.Fatal(err)
	}
	return path
}

func (c command) run(t *testing.T, args ...string) outcome {
	t.Helper()
	return c.runAs(t, os.Geteuid(), args...)
}

func (c command) runAs(t *testing.T, uid int, args ...string) outcome {
	t.Helper()
	cmd := exec.Command(c.program)
	cmd.Args = append([]string{"/usr/bin/declarun"}, args...)
	cmd.Dir = c.dir
	cmd.Env = []string{"DECLARUND_TEST=" + c.dir, "HOME=" + filepath.Join(c.dir, "home"), "PATH=/usr/bin:/bin", "TZ=UTC"}
	if uid != os.Geteuid() {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(uid)}}
	}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return outcome{stdout.String(), strings.ReplaceAll(stderr.String(), c.dir, "DIR"), cmd.ProcessState.ExitCode()}
}

// supervisor answers requests as one would, at the default socket of c.
func (c command) supervisor(t *testing.T, answer func(*net.UnixConn, wire.Request)) {
	t.Helper()
	socket := filepath.Join(c.dir, "s")
	c.write(t, "etc/config.toml", fmt.Sprintf("socket = %q\nlog-file = %q\n", socket, filepath.Join(c.dir, "events.jsonl")), 0o644)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.AcceptUnix()
			if err != nil {
				return
			}
			req, files, _, err := wire.ReadRequest(conn)
			for _, f := range files {
				f.Close()
			}
			if err == nil {
				answer(conn, req)
			}
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })
}

func TestCommandsAreThoseThatTheRuntimePassesOn(t *testing.T) {
	var want, got []string
	usages := map[string]string{}
	for _, p := range runtime.People {
		want = append(want, p.Name)
		usages[p.Name] = p.Usage
	}
	for _, c := range newApp().Commands {
		got = append(got, c.Name)
		if c.Usage == "" || c.Usage != usages[c.Name] {
			t.Errorf("%s: %q and %q", c.Name, c.Usage, usages[c.Name])
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestHelp(t *testing.T) {
	c := newCommand(t)
	for _, args := range [][]string{{}, {"--help"}, {"-h"}} {
		o := c.run(t, args...)
		if o.code != 0 || o.stderr != "" || !strings.HasPrefix(o.stdout, "NAME:\n   declarun - ") {
			t.Errorf("%q: %+v", args, o)
		}
		for _, p := range runtime.People {
			if !strings.Contains(o.stdout, "   "+p.Name+" ") || !strings.Contains(o.stdout, p.Usage+"\n") {
				t.Errorf("%q: no %s", args, p.Name)
			}
		}
	}
	for _, args := range [][]string{{"plan"}, {"explain"}, {"watch"}, {"status"}, {"doctor"}, {"install"}, {"install", "docker"}, {"uninstall", "containerd"}, {"supervise"}} {
		o := c.run(t, append(args, "--help")...)
		if o.code != 0 || o.stderr != "" || !strings.HasPrefix(o.stdout, "NAME:\n   declarun "+strings.Join(args, " ")+" - ") || strings.Contains(o.stdout, "default: false") {
			t.Errorf("%q: %+v", args, o)
		}
		for line := range strings.Lines(o.stdout) {
			if len(line) > 120 {
				t.Errorf("%q: a long line: %s", args, line)
			}
		}
	}
}

// Each is said in one line, with the way out in the next.
func TestErrors(t *testing.T) {
	c := newCommand(t)
	root := filepath.Join(c.dir, "root")
	os.Mkdir(root, 0o755)
	c.write(t, "good.json", `{"config":{"Cmd":["/server"]}}`, 0o644)
	c.write(t, "garbage.json", "\x7fELF", 0o644)
	c.write(t, "bundle/config.json", "{", 0o644)
	c.write(t, "bad.toml", `mode = "enforced"`, 0o644)
	tests := []struct{ claim, args, want string }{
		{"no source", "plan", "declarun: plan: want one of --image, --rootfs and --bundle\ndeclarun: try: declarun plan --image IMAGE\n"},
		{"two sources", "plan --image a --bundle b", "declarun: plan: want one of --image, --rootfs and --bundle\ndeclarun: try: declarun plan --image IMAGE\n"},
		{"a root filesystem without its configuration", "plan --rootfs root", "declarun: plan: --rootfs without --config\ndeclarun: try: docker image inspect IMAGE > image.json, then --config image.json\n"},
		{"no such configuration", "plan --rootfs root --config none.json", "declarun: plan: read the image's configuration: open none.json: no such file or directory\ndeclarun: try: docker image inspect"},
		{"a configuration that is none", "plan --rootfs root --config garbage.json", "declarun: plan: read the image's configuration garbage.json: "},
		{"no such root", "plan --rootfs none --config good.json", "declarun: plan: open root filesystem none: no such file or directory\ndeclarun: try: unpack the image"},
		{"a root that is a file", "plan --rootfs good.json --config good.json", "declarun: plan: open root filesystem good.json: not a directory\ndeclarun: try: unpack the image"},
		{"a configuration without a root", "plan --image a --config good.json", "declarun: plan: --config goes with --rootfs\ndeclarun: try: "},
		{"a bundle with a command", "plan --bundle bundle sh", "declarun: plan: a bundle's command is in its config.json\ndeclarun: try: "},
		{"no bundle", "plan --bundle root", "declarun: plan: read the bundle: open root/config.json: no such file or directory\ndeclarun: try: --bundle wants"},
		{"a broken bundle", "plan --bundle bundle", "declarun: plan: read the bundle bundle: "},
		{"a flag that is not there", "plan --nope", "declarun: flag provided but not defined: -nope\ndeclarun: try: declarun plan --help\n"},
		{"a command that is not there", "pln", "declarun: no command \"pln\"\ndeclarun: try: declarun --help\n"},
		{"a flag after the argument would be lost", "status c1 --json", "declarun: status: \"--json\" is one argument too many\ndeclarun: try: flags come before the argument: declarun status --help\n"},
		{"an argument where there is none", "doctor now", "declarun: doctor: \"now\" is one argument too many\n"},
		{"no engine", "install", "declarun: install: which engine?\ndeclarun: try: declarun install docker, or declarun install containerd\n"},
		{"another engine", "uninstall podman", "declarun: uninstall: no engine \"podman\"\ndeclarun: try: declarun uninstall docker, or declarun uninstall containerd\n"},
		{"an argument too many for an engine", "install docker now", "declarun: docker: \"now\" is one argument too many\ndeclarun: try: declarun install docker --help\n"},
		{"no supervisor", "--config sock.toml status", "declarun: ask the supervisor on DIR/none.sock: "},
		{"a site configuration that is misspelt", "--config bad.toml plan --image x", "declarun: read configuration bad.toml: "},
		{"a site configuration that is misspelt, for status", "--config bad.toml status", "declarun: read configuration bad.toml: "},
	}
	c.write(t, "sock.toml", fmt.Sprintf("socket = %q\n", filepath.Join(c.dir, "none.sock")), 0o644)
	for _, test := range tests {
		t.Run(test.claim, func(t *testing.T) {
			o := c.run(t, strings.Fields(test.args)...)
			if o.code != 1 || o.stdout != "" || !strings.HasPrefix(o.stderr, test.want) {
				t.Errorf("exit %d, %q, %s\nwant %s", o.code, o.stdout, o.stderr, test.want)
			}
			if lines := strings.Split(strings.TrimSuffix(o.stderr, "\n"), "\n"); len(lines) != 2 || !strings.HasPrefix(lines[1], "declarun: try: ") {
				t.Errorf("no way out, or more than a line: %q", o.stderr)
			}
		})
	}
}

func TestComplaint(t *testing.T) {
	var b bytes.Buffer
	err := &advice{errors.Join(errors.New("plan \x1b[2J\u202e"), errors.New("and\rmore")), "do \x07it"}
	if code := complain(&b, fmt.Errorf("x: %w", err)); code != 1 || b.String() != "declarun: x: plan ?[2J?; and?more\ndeclarun: try: do ?it\n" {
		t.Errorf("%d %q", code, b.String())
	}
	b.Reset()
	if code := complain(&b, nil); code != 0 || b.Len() != 0 {
		t.Errorf("%d %q", code, b.String())
	}
}

func TestSuperviseNeedsRoot(t *testing.T) {
	need.Root(t)
	o := newCommand(t).runAs(t, 65534, "supervise")
	if o.code != 1 || o.stderr != "declarun: supervise containers: not root\ndeclarun: try: sudo declarun supervise\n" {
		t.Errorf("%+v", o)
	}
}
