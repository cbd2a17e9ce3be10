package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// plainFilter is what "declarun plan --format oci" says of a bundle's directory
// that has the image's config beside it, as a file.
func (l *lab) plainFilter(t *testing.T, dir string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, l.docker.Declarun, "plan", "--rootfs", filepath.Join(dir, "rootfs"), "--config", filepath.Join(dir, "image-config.json"), "--format", "oci")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %v", cmd.Args, err)
	}
	file := filepath.Join(dir, "seccomp.json")
	if err := os.WriteFile(file, out, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// without is the profile less one call.
func without(t *testing.T, file, call string) string {
	t.Helper()
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	found := false
	for _, s := range p["syscalls"].([]any) {
		rule := s.(map[string]any)
		names := rule["names"].([]any)
		rule["names"] = slices.DeleteFunc(names, func(n any) bool { found = found || n == call; return n == call })
	}
	if !found {
		t.Fatalf("no %s in the profile", call)
	}
	if raw, err = json.Marshal(p); err != nil {
		t.Fatal(err)
	}
	file += ".without-" + call
	if err := os.WriteFile(file, raw, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// The profile for use without declarun: plain Docker with plain runc, start,
// load, reload, restart and stop.
func TestPlainFilterUnderDocker(t *testing.T) {
	l := open(t)
	for name, load := range map[string]func(t *testing.T, id, addr string){
		"nginx": func(t *testing.T, id, addr string) {
			url := "http://" + addr + "/"
			must(t, "load", l.client("ab", "-q", "-n", "2000", "-c", "8", url))
			must(t, "keep-alive load", l.client("ab", "-q", "-k", "-n", "2000", "-c", "8", url))
			for _, signal := range []string{"HUP", "USR1"} {
				l.run(t, "kill", "--signal", signal, id)
				time.Sleep(500 * time.Millisecond)
				must(t, "GET after SIG"+signal, l.client("curl", "-fsS", "-o", "/dev/null", url))
			}
		},
		"redis": func(t *testing.T, id, addr string) {
			must(t, "benchmark", l.client("redis-benchmark", "-q", "-h", addr, "-n", "5000", "-c", "20", "-t", "set,get,lpush,lrange_100,mset"))
			for _, command := range []string{"CONFIG SET appendonly yes", "BGREWRITEAOF", "SAVE", "FLUSHALL ASYNC", "EVAL return(1) 0"} {
				out, err := l.clientOutput("redis-cli", append([]string{"-h", addr}, strings.Fields(command)...)...)
				if must(t, command, err); strings.HasPrefix(out, "ERR") {
					t.Errorf("%s: %s", command, out)
				}
				time.Sleep(500 * time.Millisecond)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			profile := l.plainFilter(t, l.bundle(t, l.images[name], true, "unused"))
			id := l.container(t, "--runtime", "runc", "--security-opt", "seccomp="+profile, l.images[name])
			for range 2 {
				l.healthy(t, id) // the health check runs under the filter, too
				load(t, id, l.address(t, id))
				l.run(t, "restart", "-t", "20", id)
			}
			l.healthy(t, id)
			l.run(t, "stop", "-t", "20", id)
			if out := l.run(t, "inspect", "--format", "{{.State.ExitCode}}", id); out != "0" {
				t.Errorf("exit status %s", out)
			}
			logs, err := l.docker.CLI(context.Background(), "logs", id).CombinedOutput()
			if err != nil || strings.Contains(string(logs), "not permitted") || strings.Contains(string(logs), "not implemented") {
				t.Errorf("%v: %s", err, logs)
			}
			// The filter is in force: without a call that it needs it does not serve.
			if out, err := l.try("run", "--rm", "--runtime", "runc", "--security-opt", "seccomp="+without(t, profile, "execve"), l.images[name], "true"); err == nil {
				t.Errorf("without execve it started: %s", out)
			}
		})
	}
}

func TestPlainFilterUnderRunc(t *testing.T) {
	l := open(t)
	dir := l.bundle(t, l.images["redis"], true, "docker-entrypoint.sh", "redis-server", "--bind", "0.0.0.0", "--protected-mode", "no", "--dir", "/data")
	profile, err := os.ReadFile(l.plainFilter(t, dir))
	if err != nil {
		t.Fatal(err)
	}
	edit(t, dir, func(c map[string]any) {
		var p map[string]any
		if err := json.Unmarshal(profile, &p); err != nil {
			t.Fatal(err)
		}
		c["linux"].(map[string]any)["seccomp"] = p
	})
	root, pidFile, id := filepath.Join(dir, "state"), filepath.Join(dir, "pid"), "plain-redis"
	log, err := os.Create(filepath.Join(dir, "output"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	runc := func(args ...string) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, "runc", append([]string{"--root", root}, args...)...)
		cmd.Stdout, cmd.Stderr = log, log
		if err := cmd.Run(); err != nil {
			out, _ := os.ReadFile(log.Name())
			return fmt.Errorf("runc %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return nil
	}
	if err := runc("run", "-d", "--bundle", dir, "--pid-file", pidFile, id); err != nil {
		t.Fatal(err)
	}
	defer runc("delete", "--force", id)
	raw, err := os.ReadFile(pidFile)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil {
		t.Fatal(err)
	}
	inside := func(name string, args ...string) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(pid), "-n", name}, args...)...).CombinedOutput()
		if err != nil || strings.Contains(string(out), "ERR") {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	}
	if !await(30*time.Second, func() bool { return inside("redis-cli", "-h", "127.0.0.1", "set", "k", "v") == nil }) {
		out, _ := os.ReadFile(log.Name())
		t.Fatalf("it does not serve: %s", out)
	}
	must(t, "load", inside("redis-benchmark", "-q", "-h", "127.0.0.1", "-n", "5000", "-c", "20", "-t", "set,get,lpush"))
	must(t, "save", inside("redis-cli", "-h", "127.0.0.1", "save"))
	must(t, "runc exec", runc("exec", id, "redis-cli", "-h", "127.0.0.1", "ping"))
	must(t, "runc kill", runc("kill", id, "TERM"))
	if !await(20*time.Second, func() bool { out, _ := os.ReadFile(log.Name()); return strings.Contains(string(out), "bye bye") }) {
		t.Error("no graceful stop")
	}
}
