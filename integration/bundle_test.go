package integration

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/breakin"
	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/shim/record"
)

// bundle unpacks an image into an OCI bundle the way a person without an
// engine would: the files, a config.json from "runc spec", and (declared) the
// image's config beside it.
func (l *lab) bundle(t *testing.T, image string, declared bool, args ...string) string {
	t.Helper()
	dir := t.TempDir()
	rootfs := filepath.Join(dir, "rootfs")
	if err := os.Mkdir(rootfs, 0o755); err != nil {
		t.Fatal(err)
	}
	id := l.run(t, "create", image)
	defer l.try("rm", "-f", "-v", id)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	export := l.docker.CLI(ctx, "export", id)
	untar := exec.CommandContext(ctx, "tar", "-x", "-C", rootfs)
	pipe, err := export.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	untar.Stdin = pipe
	if err := export.Start(); err != nil {
		t.Fatal(err)
	}
	if out, err := untar.CombinedOutput(); err != nil {
		t.Fatalf("unpack: %v: %s", err, out)
	}
	if err := export.Wait(); err != nil {
		t.Fatal(err)
	}
	inspect := l.run(t, "image", "inspect", image)
	if declared {
		if err := os.WriteFile(filepath.Join(dir, "image-config.json"), []byte(inspect), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var parsed []struct {
		Config struct {
			Env        []string
			WorkingDir string
		}
	}
	if err := json.Unmarshal([]byte(inspect), &parsed); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("runc", "spec", "-b", dir).CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v: %s", err, out)
	}
	edit(t, dir, func(c map[string]any) {
		p := c["process"].(map[string]any)
		env := parsed[0].Config.Env
		if len(env) == 0 {
			env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
		}
		p["args"], p["env"], p["terminal"], p["cwd"] = args, env, false, cmp.Or(parsed[0].Config.WorkingDir, "/")
		p["user"] = map[string]any{"uid": 0, "gid": 0}
		caps := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_SETUID", "CAP_SETGID", "CAP_KILL", "CAP_NET_BIND_SERVICE"}
		p["capabilities"] = map[string]any{"bounding": caps, "effective": caps, "permitted": caps}
		p["noNewPrivileges"] = false
		c["root"].(map[string]any)["readonly"] = false
	})
	return dir
}

func edit(t *testing.T, dir string, change func(map[string]any)) {
	t.Helper()
	file := filepath.Join(dir, "config.json")
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var config map[string]any
	if err := json.Unmarshal(raw, &config); err != nil {
		t.Fatal(err)
	}
	change(config)
	if raw, err = json.Marshal(config); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// declarun runs the runtime itself.
func (l *lab) declarun(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.docker.Declarun, args...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("declarun %s: %w: %s", strings.Join(args, " "), err, out.String())
	}
	return out.String(), err
}

func TestABareBundleIsHeldToTheImageConfigBesideIt(t *testing.T) {
	l := open(t)
	dir := l.bundle(t, l.images["redis"], true, "docker-entrypoint.sh", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data")
	root, pidFile, id := filepath.Join(dir, "state"), filepath.Join(dir, "pid"), "bare-redis"
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(l.docker.Declarun, "--root", root, "run", "-d", "--bundle", dir, "--pid-file", pidFile, id)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		out, _ := os.ReadFile(log.Name())
		t.Fatalf("declarun run: %v: %s", err, out)
	}
	defer l.declarun("--root", root, "delete", "--force", id)
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	ping := func() bool {
		out, err := exec.Command("nsenter", "-t", strconv.Itoa(pid), "-n", "redis-cli", "-h", "127.0.0.1", "set", "k", "v").Output()
		return err == nil && strings.TrimSpace(string(out)) == "OK"
	}
	if !await(30*time.Second, ping) {
		out, _ := os.ReadFile(log.Name())
		t.Fatalf("it does not serve; its output:\n%s", out)
	}
	if out, err := l.declarun("--root", root, "exec", id, "sh", "-c", "echo in; ls /data"); err != nil || !strings.Contains(out, "in\n") {
		t.Errorf("exec: %q, %v", out, err)
	}
	l.quiet(t, id, "a bare bundle")
	for name, do := range map[string]func() error{
		"call":   func() error { return breakin.PerfEvent(pid) },
		"shell":  func() error { return breakin.Shell(pid, "/bin/sh") },
		"drop":   func() error { return breakin.Drop(pid, "/data/x") },
		"write":  func() error { return breakin.Write(pid, "/etc/redis/x") },
		"listen": func() error { return breakin.Listen(pid, 4444) },
	} {
		if err := do(); !breakin.Refused(err) {
			t.Errorf("%s: not refused: %v", name, err)
		}
	}
	if !await(5*time.Second, func() bool {
		seen := map[record.Dimension]bool{}
		for _, e := range l.events(t, id) {
			seen[e.Dimension] = true
		}
		return seen[record.Syscalls] && seen[record.Processes] && seen[record.Network]
	}) {
		t.Error("the break-in left no events in some dimension")
	}
}

func TestACommandRunsFromABareBundleWithoutImageConfigAsWithRunc(t *testing.T) {
	l := open(t)
	for _, runtime := range []string{"runc", l.docker.Declarun} {
		dir := l.bundle(t, l.images["debian"], false, "sh", "-c", "echo to the root > /written && cat /written; exit 4")
		before, err := os.ReadFile(filepath.Join(dir, "config.json"))
		if err != nil {
			t.Fatal(err)
		}
		for range 2 { // the same bundle twice
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			out, err := exec.CommandContext(ctx, runtime, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, "bare").CombinedOutput()
			cancel()
			if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 4 || string(out) != "to the root\n" {
				t.Errorf("%s: %v: %q; want status 4 and its output", filepath.Base(runtime), err, out)
			}
		}
		_ = before
	}
}

func TestContainerdRunsIt(t *testing.T) {
	l := open(t)
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	socket := filepath.Join(l.docker.Dir, "exec", "containerd", "containerd.sock")
	ctr := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, "ctr", append([]string{"-a", socket, "-n", "declarun-test"}, args...)...).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("ctr %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return string(out), err
	}
	tar := filepath.Join(t.TempDir(), "image.tar")
	l.run(t, "save", "-o", tar, l.images["hello"])
	if _, err := ctr("images", "import", tar); err != nil {
		t.Fatal(err)
	}
	ref := "docker.io/" + l.images["hello"] + ":latest"
	defer ctr("images", "rm", ref)
	id := "ctr-hello"
	if _, err := ctr("run", "-d", "--runc-binary", l.docker.Declarun, ref, id); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_, _ = ctr("task", "kill", "-s", "SIGKILL", id)
		_, _ = ctr("task", "delete", id)
		_, _ = ctr("container", "delete", id)
	}()
	out, err := ctr("task", "ls")
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == id {
			pid, _ = strconv.Atoi(f[1])
		}
	}
	if pid == 0 {
		t.Fatalf("no task %s in:\n%s", id, out)
	}
	if !await(20*time.Second, func() bool {
		return exec.Command("nsenter", "-t", strconv.Itoa(pid), "-n", "curl", "-fsS", "-m", "2", "-o", "/dev/null", "http://127.0.0.1:8080/").Run() == nil
	}) {
		t.Fatal("it does not serve")
	}
	l.quiet(t, id, "under containerd")
	if err := breakin.Chroot(pid); !breakin.Refused(err) {
		t.Errorf("chroot: not refused: %v", err)
	}
	if err := breakin.Listen(pid, 4444); !breakin.Refused(err) {
		t.Errorf("listen: not refused: %v", err)
	}
	if !await(5*time.Second, func() bool {
		for _, e := range l.events(t, id) {
			if e.Action == "listen" && strings.Contains(fmt.Sprint(e.Origins), "8080") && strings.Contains(e.Image, "declarun-test/hello") {
				return true
			}
		}
		return false
	}) {
		events, _ := engine.Events(l.install.Log)
		t.Errorf("no event on the listening port that names the image and what it exposes: %+v", events)
	}
}
