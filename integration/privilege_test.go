package integration

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
)

// What no program of the image can use is taken from the container, and an
// operator's exec misses none of it: not a setuid program, not a terminal.
func TestAnOperatorKeepsWhatTheContainerLoses(t *testing.T) {
	l := open(t)
	need.Program(t, "script")
	id := l.container(t, "--runtime", "declarun", l.images["redis"])
	l.healthy(t, id)
	main := l.run(t, "exec", id, "cat", "/proc/1/status")
	if !strings.Contains(main, "NoNewPrivs:\t1") {
		t.Errorf("the application may gain privileges by an execve though no program of the image gives any:\n%s", main)
	}
	if own := l.run(t, "exec", id, "cat", "/proc/self/status"); !strings.Contains(own, "NoNewPrivs:\t0") {
		t.Errorf("an operator's exec:\n%s", own)
	}
	if out := l.run(t, "exec", "-u", "nobody", id, "passwd", "-S", "nobody"); !strings.HasPrefix(out, "nobody ") {
		t.Errorf("a setuid program in an operator's exec: %s", out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	line := strings.Join(l.docker.CLI(ctx, "exec", "-it", id, "bash", "-ic", "'stty raw; stty sane; stty size; sleep 0.1 & wait; jobs; tty'").Args, " ")
	cmd := exec.CommandContext(ctx, "script", "-qec", line, "/dev/null")
	cmd.Env = l.docker.CLI(ctx).Env
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "/dev/pts/0") || strings.Contains(string(out), "not permitted") {
		t.Errorf("a shell with a terminal: %v\n%s", err, out)
	}
}
