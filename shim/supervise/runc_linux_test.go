package supervise

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// testHook is the createRuntime hook.
func testHook(dir, token string) error {
	var state specs.State
	if err := json.NewDecoder(os.Stdin).Decode(&state); err != nil {
		return err
	}
	w := &world{dir: dir}
	return w.guard(token, state.Pid)
}

// bundle makes one whose root has this machine's programs, read-only.
func (w *world) bundle(id string, args []string, facts Facts, mode record.Mode) string {
	w.t.Helper()
	token, err := w.prepare(id, fakeConfig{Plan: testPlan(mode), Facts: facts})
	if err != nil {
		w.t.Fatal(err)
	}
	dir := filepath.Join(w.dir, "bundle-"+id)
	os.MkdirAll(dir+"/rootfs", 0o755)
	spec := specs.Spec{
		Version:  "1.0.2",
		Process:  &specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin:/usr/bin:/sbin:/usr/sbin"}, Capabilities: &specs.LinuxCapabilities{}},
		Root:     &specs.Root{Path: "rootfs"},
		Hostname: "c",
		Hooks:    &specs.Hooks{CreateRuntime: []specs.Hook{{Path: w.own, Args: []string{"hook", "__hook", w.dir, token}}}},
		Linux: &specs.Linux{
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.NetworkNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace}},
			Seccomp: &specs.LinuxSeccomp{
				DefaultAction: specs.ActAllow, Architectures: []specs.Arch{specs.ArchX86_64},
				ListenerPath: w.dir + "/notify.sock", ListenerMetadata: token,
			},
		},
	}
	for _, c := range notified {
		spec.Linux.Seccomp.Syscalls = append(spec.Linux.Seccomp.Syscalls, specs.LinuxSyscall{Names: []string{c.name}, Action: specs.ActNotify})
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/proc", Type: "proc", Source: "proc"},
		specs.Mount{Destination: "/tmp", Type: "tmpfs", Source: "tmpfs", Options: []string{"noexec"}})
	for _, d := range []string{"/bin", "/lib", "/lib64", "/usr", "/sbin", "/etc"} {
		if real, err := filepath.EvalSymlinks(d); err == nil {
			spec.Mounts = append(spec.Mounts, specs.Mount{Destination: d, Type: "bind", Source: real, Options: []string{"rbind", "ro"}})
		}
	}
	data, _ := json.Marshal(spec)
	if err := os.WriteFile(dir+"/config.json", data, 0o644); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

func (w *world) runc(args ...string) (string, error) {
	out, err := os.CreateTemp(w.dir, "out")
	if err != nil {
		w.t.Fatal(err)
	}
	defer out.Close()
	cmd := exec.Command("runc", append([]string{"--root", w.dir + "/runc"}, args...)...)
	cmd.Stdout, cmd.Stderr = out, out // a file: a pipe would wait for the container
	if err := cmd.Start(); err != nil {
		w.t.Fatal(err)
	}
	timer := time.AfterFunc(60*time.Second, func() { cmd.Process.Kill() })
	defer timer.Stop()
	err = cmd.Wait()
	data, _ := os.ReadFile(out.Name())
	return strings.TrimSpace(string(data)), err
}

func TestRunc(t *testing.T) {
	need.Runc(t)
	w := newWorld(t)
	w.t.Cleanup(func() { w.runc("delete", "--force", "real") })
	health := []string{"/bin/sh", "-c", "echo healthy; cp /bin/echo /tmp/dropped; /tmp/dropped no"}
	dir := w.bundle("real", []string{"/bin/sleep", "600"}, Facts{HealthCheck: health}, record.Enforce)
	if out, err := w.runc("create", "--bundle", dir, "real"); err != nil {
		t.Fatal(out, err)
	}
	if s := w.status("real"); s == nil || s.State != "created" || s.PID == 0 {
		t.Errorf("status: %+v", s)
	}
	if out, err := w.runc("start", "real"); err != nil {
		t.Fatal(out, err)
	}
	w.must("running", func() bool { s := w.status("real"); return s != nil && s.State == "running" })

	announce := func(args ...string) {
		if a, err := w.call(wire.Request{Operation: wire.Exec, Exec: &wire.ExecRequest{Key: wire.Key{Root: "/run/test", ID: "real"}, Args: args}}); err != nil || a.Error != "" {
			t.Fatal(err, a.Error)
		}
	}
	announce(health...)
	out, err := w.runc(append([]string{"exec", "real"}, health...)...)
	if err == nil || !strings.HasPrefix(out, "healthy") {
		t.Errorf("health check: %q, %v", out, err)
	}
	if e := w.event("real", record.Processes, "execve", "/tmp/dropped"); e.Verdict != record.Denied || e.Identity != record.HealthCheck || !strings.Contains(e.Reason, "noexec") {
		t.Errorf("event: %+v", e)
	}
	announce("/bin/echo", "by", "hand")
	if out, err := w.runc("exec", "real", "/bin/echo", "by", "hand"); err != nil || out != "by hand" {
		t.Errorf("exec: %q, %v", out, err)
	}
	if e := w.event("real", record.Processes, "exec", "/bin/echo by hand"); e.Identity != record.Operator || e.Verdict != record.Reported || e.Process == nil {
		t.Errorf("event: %+v", e)
	}
	// A path is what it is in the container.
	if out, err := w.runc("exec", "--cwd", "/usr", "real", "/bin/sh", "-c", "cat /proc/sys/vm/memfd_noexec; bin/../bin/echo relative"); err != nil || !strings.HasSuffix(out, "relative") {
		t.Errorf("exec: %q, %v", out, err)
	} else if _, err := os.Stat(memfdSysctl); err == nil && !strings.HasPrefix(out, "2") {
		t.Errorf("memfd_noexec in the container: %q", out)
	}
	// Killed and back: exec goes on working.
	before := w.ping()
	unix.Kill(before, unix.SIGKILL)
	if out, err := w.runc("exec", "real", "/bin/echo", "again"); err != nil || out != "again" {
		t.Errorf("exec: %q, %v", out, err)
	}
	// Stopped and back: what is lost is said, and exec works with a filter of its own.
	w.stop()
	w.start()
	if s := w.status("real"); s == nil || len(s.Notes) != 1 {
		t.Errorf("status: %+v", s)
	}
	w.event("real", record.Supervision, "adopt", "notifications")
	if out, err := w.runc("exec", "real", "/bin/echo", "anew"); err != nil || out != "anew" {
		t.Errorf("exec: %q, %v", out, err)
	}
	if out, err := w.runc("kill", "real", "KILL"); err != nil {
		t.Error(out, err)
	}
	w.must("no state", w.empty)
	w.must("delete", func() bool { _, err := w.runc("delete", "real"); return err == nil })

	// Guards that cannot be set: the engine reads why, and nothing is left.
	w.t.Cleanup(func() { w.runc("delete", "--force", "half") })
	dir = w.bundle("half", []string{"/bin/true"}, Facts{Extra: []byte(`"guard fails"`)}, record.Enforce)
	if out, err := w.runc("create", "--bundle", dir, "half"); err == nil || !strings.Contains(out, "guard half: as asked") {
		t.Errorf("create: %q, %v", out, err)
	}
	if !w.empty() {
		t.Error("state is left")
	}
	var exit *exec.ExitError
	if out, err := w.runc("state", "half"); !errors.As(err, &exit) {
		t.Errorf("the container is there: %s", out)
	}
}
