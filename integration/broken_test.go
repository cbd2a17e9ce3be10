package integration

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/breakin"
)

// nothingLeft fails the test if a container that is gone left anything behind.
func (l *lab) nothingLeft(t *testing.T, id string) {
	t.Helper()
	if !await(15*time.Second, func() bool { return len(l.leftovers(id)) == 0 }) {
		t.Errorf("left behind by %s: %v", id, l.leftovers(id))
	}
}

func (l *lab) leftovers(id string) []string {
	var left []string
	states, _ := filepath.Glob(filepath.Join(l.install.State, "containers", "*", "state.json"))
	for _, file := range states {
		raw, err := os.ReadFile(file)
		if err == nil && bytes.Contains(raw, []byte(`"`+id+`"`)) {
			left = append(left, file)
		}
	}
	if mounts, err := os.ReadFile("/proc/self/mountinfo"); err == nil {
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, "/"+id+"/") {
				left = append(left, "mount "+strings.Fields(line)[4])
			}
		}
	}
	for _, controller := range []string{"", "memory", "pids", "devices", "freezer"} {
		dir := filepath.Join("/sys/fs/cgroup", controller, id)
		if _, err := os.Stat(dir); err == nil {
			left = append(left, dir)
		}
	}
	return left
}

// bad is a bundle that must not start.
type bad struct {
	says    string // a word of the error
	prepare func(t *testing.T, dir string)
}

func TestBrokenInputIsAClearErrorAndLeavesNothing(t *testing.T) {
	l := open(t)
	write := func(t *testing.T, dir, name, content string, mode os.FileMode) {
		t.Helper()
		file := filepath.Join(dir, "rootfs", name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	config := func(t *testing.T, dir string, content []byte) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "config.json"), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := 0
	for name, b := range map[string]bad{
		"config.json is cut short": {"config.json", func(t *testing.T, dir string) {
			raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
			if err != nil {
				t.Fatal(err)
			}
			config(t, dir, raw[:len(raw)/2])
		}},
		"config.json is no object":   {"config.json", func(t *testing.T, dir string) { config(t, dir, []byte(`[1,2,3]`)) }},
		"config.json is huge":        {"config.json", func(t *testing.T, dir string) { config(t, dir, append(bytes.Repeat([]byte(" "), 64<<20), '{', '}')) }},
		"config.json nests too deep": {"config.json", func(t *testing.T, dir string) { config(t, dir, []byte(strings.Repeat(`{"a":`, 100_000))) }},
		"config.json has no process": {"process", func(t *testing.T, dir string) { edit(t, dir, func(c map[string]any) { delete(c, "process") }) }},
		"the image config is garbage": {"image-config.json", func(t *testing.T, dir string) {
			if err := os.WriteFile(filepath.Join(dir, "image-config.json"), []byte("{"), 0o644); err != nil {
				t.Fatal(err)
			}
		}},
		"the program is half an ELF file": {"/bad", func(t *testing.T, dir string) {
			write(t, dir, "bad", string(breakin.Program()[:70]), 0o755)
			edit(t, dir, func(c map[string]any) { c["process"].(map[string]any)["args"] = []string{"/bad"} })
		}},
		"the interpreter is missing": {"/no/such/interpreter", func(t *testing.T, dir string) {
			write(t, dir, "script", "#!/no/such/interpreter\n", 0o755)
			edit(t, dir, func(c map[string]any) { c["process"].(map[string]any)["args"] = []string{"/script"} })
		}},
		"the script is its own interpreter": {"/loop", func(t *testing.T, dir string) {
			write(t, dir, "loop", "#!/loop\n", 0o755)
			edit(t, dir, func(c map[string]any) { c["process"].(map[string]any)["args"] = []string{"/loop"} })
		}},
		"the program is a link out of the root": {"", func(t *testing.T, dir string) {
			if err := os.Symlink("../../../../../../../../usr/bin/id", filepath.Join(dir, "rootfs", "out")); err != nil {
				t.Fatal(err)
			}
			edit(t, dir, func(c map[string]any) { c["process"].(map[string]any)["args"] = []string{"/out"} })
		}},
		"the root has no file": {"", func(t *testing.T, dir string) {}},
	} {
		n++
		id := fmt.Sprintf("broken-%d", n)
		t.Run(name, func(t *testing.T) {
			dir := smallBundle(t)
			b.prepare(t, dir)
			log := filepath.Join(dir, "log.json")
			ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
			defer cancel()
			out, err := exec.CommandContext(ctx, l.docker.Declarun, "--root", filepath.Join(dir, "state"), "--log", log, "--log-format", "json",
				"run", "--bundle", dir, id).CombinedOutput()
			if err == nil {
				t.Fatalf("it started: %s", out)
			}
			if ctx.Err() != nil {
				t.Fatal("no answer within 90 s")
			}
			t.Logf("it says: %s", bytes.TrimSpace(out))
			raw, err := os.ReadFile(log)
			if err != nil {
				t.Fatalf("no log for the engine: %v", err)
			}
			var last struct{ Level, Msg string }
			for line := range bytes.Lines(raw) {
				if err := json.Unmarshal(line, &last); err != nil {
					t.Fatalf("the engine's log holds %q: %v", line, err)
				}
			}
			if last.Level != "error" || last.Msg == "" || !strings.Contains(last.Msg, b.says) {
				t.Errorf("the engine would show %q (level %s); want a word on %q", last.Msg, last.Level, b.says)
			}
			l.nothingLeft(t, id)
		})
	}
	t.Run("the next run works", func(t *testing.T) {
		if out := l.run(t, "run", "--rm", "--runtime", "declarun", l.images["debian"], "echo", "fine"); out != "fine" {
			t.Errorf("it said %q", out)
		}
	})
}

// smallBundle is a bundle with an empty root and a config.json from "runc spec".
func smallBundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("runc", "spec", "-b", dir).CombinedOutput(); err != nil {
		t.Fatalf("runc spec: %v: %s", err, out)
	}
	edit(t, dir, func(c map[string]any) { c["process"].(map[string]any)["terminal"] = false })
	return dir
}

func TestARootOfAHundredThousandFilesStarts(t *testing.T) {
	l := open(t)
	dir := smallBundle(t)
	for d := range 100 {
		sub := filepath.Join(dir, "rootfs", "srv", strconv.Itoa(d))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			t.Fatal(err)
		}
		for f := range 1000 {
			if err := os.WriteFile(filepath.Join(sub, strconv.Itoa(f)), nil, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "rootfs", "program"), breakin.Program(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "image-config.json"), []byte(`{"architecture":"amd64","os":"linux","config":{"Entrypoint":["/program"]},"rootfs":{"type":"layers","diff_ids":[]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	edit(t, dir, func(c map[string]any) { c["process"].(map[string]any)["args"] = []string{"/program"} })
	out, err := exec.Command(l.docker.Declarun, "--root", filepath.Join(dir, "state"), "run", "--bundle", dir, "files").CombinedOutput()
	if exit, ok := err.(*exec.ExitError); !ok || exit.ExitCode() != 42 {
		t.Errorf("ended with %v, want the program's status 42: %s", err, out)
	}
	l.nothingLeft(t, "files")
}

func TestAnErrorReachesDockersUser(t *testing.T) {
	l := open(t)
	_, err := l.try("run", "--rm", "--runtime", "declarun", "-v", "/etc/hostname:/bad:ro", l.images["debian"], "/bad")
	if err == nil {
		t.Fatal("a text file ran")
	}
	if strings.Contains(err.Error(), "unable to retrieve OCI runtime error") {
		t.Errorf("the user reads: %v", err)
	}
	t.Logf("the user reads: %v", err)
}

func TestSupervisorsDeathOpensNothingAndTheNextRunWorks(t *testing.T) {
	l := open(t)
	id := l.container(t, "--runtime", "declarun", l.images["redis"])
	l.healthy(t, id)
	use := func(when string) {
		t.Helper()
		must(t, "SET "+when, l.client("redis-cli", "-h", l.address(t, id), "set", "k", "v"))
	}
	kill := func(sig syscall.Signal) {
		t.Helper()
		pids, err := l.install.Supervisors()
		if err != nil || len(pids) == 0 {
			t.Fatalf("no supervisor is running: %v", err)
		}
		for _, pid := range pids {
			_ = syscall.Kill(pid, sig)
		}
	}
	pid := l.victim(t, id, "redis-server")
	t.Run("the worker is killed: it comes back and still supervises", func(t *testing.T) {
		pids, err := l.install.Supervisors()
		if err != nil || len(pids) < 2 {
			t.Fatalf("supervisor processes: %v, %v; want a monitor and a worker", pids, err)
		}
		worker := youngest(pids)
		if err := syscall.Kill(worker, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if !await(10*time.Second, func() bool {
			now, err := l.install.Supervisors()
			return err == nil && len(now) >= 2 && youngest(now) != worker
		}) {
			t.Fatal("no new worker")
		}
		time.Sleep(500 * time.Millisecond)
		use("after the worker died")
		before := len(l.events(t, id))
		if err := breakin.Chroot(pid); !breakin.Refused(err) {
			t.Errorf("chroot: %v", err)
		}
		if err := breakin.Shell(pid, "/bin/sh"); !breakin.Refused(err) {
			t.Errorf("shell: %v", err)
		}
		if !await(5*time.Second, func() bool { return len(l.events(t, id)) > before }) {
			t.Error("refusals are no longer reported")
		}
		_, err = l.try("exec", id, "redis-cli", "ping")
		must(t, "an operator's exec", err)
	})
	t.Run("all of it is killed: closed, and what was allowed goes on", func(t *testing.T) {
		kill(syscall.SIGKILL)
		await(5*time.Second, func() bool { pids, _ := l.install.Supervisors(); return len(pids) == 0 })
		use("without a supervisor")
		if err := breakin.Chroot(pid); !breakin.Refused(err) {
			t.Errorf("chroot: %v", err)
		}
		if err := breakin.Shell(pid, "/bin/sh"); !breakin.Refused(err) {
			t.Errorf("shell: %v", err)
		}
		if err := breakin.Drop(pid, "/data/x"); !breakin.Refused(err) {
			t.Errorf("dropped program: %v", err)
		}
		if err := breakin.Write(pid, "/etc/redis/x"); !breakin.Refused(err) {
			t.Errorf("write: %v", err)
		}
	})
	t.Run("the next run starts a new one", func(t *testing.T) {
		if out := l.run(t, "run", "--rm", "--runtime", "declarun", l.images["debian"], "echo", "fine"); out != "fine" {
			t.Errorf("it said %q", out)
		}
	})
	t.Run("killed while containers start: an error or a container, never half of one", func(t *testing.T) {
		for i := range 8 {
			done := make(chan string, 1)
			go func() {
				out, err := l.try("run", "--rm", "--runtime", "declarun", l.images["debian"], "bash", "-c", "grep Seccomp: /proc/self/status; touch /usr/x 2>/dev/null && echo OPEN; true")
				if err != nil {
					out = "error: " + err.Error()
				}
				done <- out
			}()
			time.Sleep(time.Duration(60+i*90) * time.Millisecond)
			if pids, err := l.install.Supervisors(); err == nil && len(pids) > 0 {
				_ = syscall.Kill(youngest(pids), syscall.SIGKILL)
			}
			out := <-done
			t.Logf("round %d: %s", i, firstLine(out))
			if strings.Contains(out, "\nOPEN") || (!strings.HasPrefix(out, "error:") && !strings.Contains(out, "Seccomp:\t2")) {
				t.Errorf("round %d: half a container: %s", i, out)
			}
		}
		if out := l.run(t, "run", "--rm", "--runtime", "declarun", l.images["debian"], "echo", "fine"); out != "fine" {
			t.Errorf("afterwards it said %q", out)
		}
	})
	t.Run("hung: an error in bounded time", func(t *testing.T) {
		kill(syscall.SIGSTOP)
		ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
		defer cancel()
		_, err := l.docker.Run(ctx, "run", "--rm", "--runtime", "declarun", l.images["debian"], "echo", "hung")
		kill(syscall.SIGCONT)
		if err == nil {
			t.Error("a container started without an answer from the supervisor")
		}
		t.Logf("the user reads: %v", err)
		if out := l.run(t, "run", "--rm", "--runtime", "declarun", l.images["debian"], "echo", "fine"); out != "fine" {
			t.Errorf("afterwards it said %q", out)
		}
	})
}

func firstLine(s string) string {
	first, _, _ := strings.Cut(s, "\n")
	return first
}

// youngest is the process that was started last.
func youngest(pids []int) int {
	best, bestStart := 0, uint64(0)
	for _, pid := range pids {
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			continue
		}
		rest := string(raw[bytes.LastIndexByte(raw, ')')+1:])
		f := strings.Fields(rest)
		if len(f) < 20 {
			continue
		}
		start, err := strconv.ParseUint(f[19], 10, 64)
		if err == nil && start >= bestStart {
			best, bestStart = pid, start
		}
	}
	return best
}
