package filter

import (
	"errors"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
)

// Why no newer call is taken out of a plan for the sake of an older one: each of
// these has a success that glibc's fallback turns into a failure.
func TestNewerCallsAreMissed(t *testing.T) {
	need.Root(t)
	gcc := need.Program(t, "gcc")
	program := filepath.Join(t.TempDir(), "newer")
	if out, err := exec.Command(gcc, "-w", "-O1", "-o", program, "testdata/newer.c", "-lpthread").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, row := range []struct {
		claim  string
		nr     int
		status int // when refused; 134 stands for an abort
	}{
		{"a process that registered for rseq cannot have another thread", unix.SYS_RSEQ, 134},
		{"stat has no time of birth", unix.SYS_STATX, 1},
		{"access by the effective user is asked for the real one", unix.SYS_FACCESSAT2, 1},
		{"closefrom aborts without /proc", unix.SYS_CLOSE_RANGE, 134},
		{"a copy is refused", unix.SYS_COPY_FILE_RANGE, 1},
		{"a write with flags is refused", unix.SYS_PWRITEV2, 1},
	} {
		for how, want := range map[string]int{"allowed": 0, "refused": row.status} {
			dir := t.TempDir()
			cmd := exec.Command(program, strconv.Itoa(row.nr), how, dir)
			cmd.Dir = dir
			out, err := cmd.CombinedOutput()
			got := 0
			var exit *exec.ExitError
			switch {
			case errors.As(err, &exit) && exit.Sys() != nil && exit.ExitCode() < 0:
				got = 134
			case errors.As(err, &exit):
				got = exit.ExitCode()
			case err != nil:
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("%s: %s: status %d, want %d\n%s", row.claim, how, got, want, out)
			}
		}
	}
}
