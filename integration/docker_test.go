package integration

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// Everything that people do with docker works as with runc: each command is
// run under both runtimes and must give the same answer.
func TestDockerCommandsAnswerAsWithRunc(t *testing.T) {
	l := open(t)
	shell := l.images["debian"]
	once := func(runtime string, args ...string) (string, string) {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		cmd := l.docker.CLI(ctx, append([]string{"run", "--rm", "--runtime", runtime}, args...)...)
		var stderr strings.Builder
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		status := "0"
		if err != nil {
			status = err.Error()
		}
		text := stderr.String()
		for _, r := range []string{"runc", "declarun"} {
			text = strings.ReplaceAll(text, r, "RUNTIME")
		}
		return string(out) + "status " + status, text
	}
	for name, args := range map[string][]string{
		"the command's output":                   {shell, "echo", "hello"},
		"its exit status":                        {shell, "sh", "-c", "exit 7"},
		"death by signal":                        {shell, "sh", "-c", "kill -9 $$"},
		"a command that is not there":            {shell, "no-such-command"},
		"a command that is a directory":          {shell, "/etc"},
		"a file that is not executable":          {shell, "/etc/passwd"},
		"a working directory":                    {"-w", "/usr", shell, "pwd"},
		"a user":                                 {"-u", "nobody", shell, "id", "-un"},
		"environment":                            {"-e", "A=b c", shell, "sh", "-c", "echo $A"},
		"a script on the command line":           {shell, "bash", "-c", "for i in 1 2 3; do echo $i | tr 1 x; done; cat /etc/hostname | wc -l"},
		"a host name":                            {"-h", "box", shell, "cat", "/etc/hostname"},
		"an init process":                        {"--init", shell, "sh", "-c", "echo from init; exit 3"},
		"a read-only root":                       {"--read-only", shell, "cat", "/etc/debian_version"},
		"tmpfs":                                  {"--tmpfs", "/scratch", shell, "sh", "-c", "echo x > /scratch/y && cat /scratch/y"},
		"memory limits":                          {"-m", "64m", shell, "echo", "limited"},
		"no capabilities":                        {"--cap-drop", "ALL", shell, "grep", "CapEff", "/proc/self/status"},
		"no new privileges":                      {"--security-opt", "no-new-privileges", shell, "grep", "NoNewPrivs", "/proc/self/status"},
		"ulimits":                                {"--ulimit", "nofile=123", shell, "sh", "-c", "ulimit -n"},
		"host networking":                        {"--network", "host", shell, "echo", "host"},
		"no network":                             {"--network", "none", shell, "echo", "none"},
		"writes to the usual places":             {shell, "sh", "-c", "echo 1 > /tmp/a && echo 2 > /var/tmp/b && echo 3 > /run/c && cat /tmp/a /var/tmp/b /run/c"},
		"a pipe line of coreutils":               {shell, "bash", "-c", "ls /etc | sort -r | head -1; date -u +%Y >/dev/null; echo done"},
		"an image whose name is not to be found": {"--pull", "never", "no-such-image:ever"},
	} {
		t.Run(name, func(t *testing.T) {
			want, wantErr := once("runc", args...)
			got, gotErr := once("declarun", args...)
			if got != want {
				t.Errorf("declarun: %q %q\n    runc: %q %q", got, gotErr, want, wantErr)
			}
		})
	}
}

func TestTheFirstThingAnyoneTries(t *testing.T) {
	l := open(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := l.docker.CLI(ctx, "run", "-i", "--rm", "--runtime", "declarun", l.images["debian"], "bash")
	cmd.Stdin = strings.NewReader("ls / | wc -l\nperl -e 'print 6*7, \"\\n\"'\ncp /bin/true /tmp/dropped\n/tmp/dropped; echo dropped gives $?\nexit 5\n")
	out, err := cmd.CombinedOutput()
	exit := &exec.ExitError{}
	if !asExit(err, &exit) || exit.ExitCode() != 5 {
		t.Errorf("the shell ended with %v, want status 5", err)
	}
	if !strings.Contains(string(out), "42\n") {
		t.Errorf("a program of the image did not run in a shell:\n%s", out)
	}
	if !strings.Contains(string(out), "dropped gives 126") {
		t.Errorf("a program that was written later ran:\n%s", out)
	}
}

func asExit(err error, to **exec.ExitError) bool {
	e, ok := err.(*exec.ExitError)
	if ok {
		*to = e
	}
	return ok
}

func TestTerminalWorks(t *testing.T) {
	l := open(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	// script(1) gives the client a terminal.
	line := strings.Join(l.docker.CLI(ctx, "run", "-it", "--rm", "--runtime", "declarun", l.images["debian"], "bash", "-c", "'test -t 0 && tty && stty size'").Args, " ")
	cmd := exec.CommandContext(ctx, "script", "-qec", line, "/dev/null")
	cmd.Env = l.docker.CLI(ctx).Env
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "/dev/pts/0") {
		t.Errorf("in a terminal: %v\n%s", err, out)
	}
}

func TestContainersAreHandledAsWithRunc(t *testing.T) {
	l := open(t)
	id := l.container(t, "--runtime", "declarun", "-v", "/run/declarun-nothing", l.images["redis"])
	l.healthy(t, id)
	dir := t.TempDir()
	local := filepath.Join(dir, "file")
	if err := os.WriteFile(local, []byte("copied\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Run("cp in and out", func(t *testing.T) {
		l.run(t, "cp", local, id+":/var/tmp/file")
		l.run(t, "cp", id+":/var/tmp/file", filepath.Join(dir, "back"))
		if back, err := os.ReadFile(filepath.Join(dir, "back")); err != nil || string(back) != "copied\n" {
			t.Errorf("came back as %q, %v", back, err)
		}
	})
	t.Run("diff shows what was written", func(t *testing.T) {
		l.run(t, "exec", id, "sh", "-c", "echo x > /tmp/written")
		if out := l.run(t, "diff", id); !strings.Contains(out, "A /tmp/written") {
			t.Errorf("docker diff does not show /tmp/written:\n%s", out)
		}
	})
	t.Run("commit keeps it", func(t *testing.T) {
		l.run(t, "commit", id, "declarun-test/committed")
		defer l.try("rmi", "declarun-test/committed")
		if out := l.run(t, "run", "--rm", "--entrypoint", "cat", "declarun-test/committed", "/tmp/written"); out != "x" {
			t.Errorf("committed file holds %q", out)
		}
	})
	t.Run("logs", func(t *testing.T) {
		if out := l.run(t, "logs", id); !strings.Contains(out, "Ready to accept connections") {
			t.Errorf("logs:\n%s", out)
		}
	})
	t.Run("pause, unpause, update, stats, top", func(t *testing.T) {
		l.run(t, "pause", id)
		l.run(t, "unpause", id)
		l.run(t, "update", "--cpu-shares", "512", id)
		l.run(t, "stats", "--no-stream", id)
		l.run(t, "top", id)
	})
	t.Run("exec: output, status, user, environment, stdin, detached", func(t *testing.T) {
		if out := l.run(t, "exec", "-u", "redis", "-e", "A=b", "-w", "/tmp", id, "sh", "-c", "id -un; echo $A; pwd"); out != "redis\nb\n/tmp" {
			t.Errorf("exec said %q", out)
		}
		if _, err := l.try("exec", id, "sh", "-c", "exit 9"); err == nil || !strings.Contains(err.Error(), "exit status 9") {
			t.Errorf("exec's status: %v", err)
		}
		l.run(t, "exec", "-d", id, "sleep", "1")
	})
	t.Run("an operator's exec is reported as such", func(t *testing.T) {
		l.run(t, "exec", id, "bash", "-c", "true")
		if !await(5*time.Second, func() bool {
			for _, e := range l.events(t, id) {
				if e.Identity == record.Operator && e.Verdict == record.Reported && strings.Contains(e.Object, "bash") {
					return true
				}
			}
			return false
		}) {
			t.Error("no event says so")
		}
	})
	t.Run("kill with a signal, stop, start", func(t *testing.T) {
		l.run(t, "kill", "-s", "WINCH", id)
		l.run(t, "stop", id)
		l.run(t, "start", id)
		l.healthy(t, id)
	})
	l.quiet(t, id, "after all of it")
}

func TestRestartPolicySurvivesARestartOfTheEngine(t *testing.T) {
	l := open(t)
	id := l.container(t, "--runtime", "declarun", "--restart", "always", l.images["hello"])
	l.ready(t, id, servers["hello"])
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := l.docker.Restart(ctx); err != nil {
		t.Fatal(err)
	}
	if !await(30*time.Second, func() bool {
		state, _ := l.try("inspect", "--format", "{{.State.Running}}", id)
		return state == "true"
	}) {
		t.Fatal("the container is not running again")
	}
	l.ready(t, id, servers["hello"])
	l.quiet(t, id, "after dockerd came back")
}
