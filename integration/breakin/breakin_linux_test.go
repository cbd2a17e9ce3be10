package breakin

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

func TestTheDroppedProgramReallyRuns(t *testing.T) {
	file := filepath.Join(t.TempDir(), "dropped")
	if err := os.WriteFile(file, Program(), 0o755); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := exec.Command(file).Run(); !errors.As(err, &exit) || exit.ExitCode() != 42 {
		t.Errorf("ran with %v, want exit status 42", err)
	}
}
