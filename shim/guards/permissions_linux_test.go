package guards

import (
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/declarun/declarun/integration/need"
)

// A write is no deviation where permissions refuse it with or without declarun,
// and one wherever that is not certain.
func TestRefusedAnyway(t *testing.T) {
	need.Root(t) // to be somebody else
	dir := t.TempDir()
	for d := dir; d != "/tmp" && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	put := func(name string, mode os.FileMode, uid int) {
		t.Helper()
		p := filepath.Join(dir, name)
		var err error
		if mode.IsDir() {
			err = os.Mkdir(p, 0o700)
		} else {
			err = os.WriteFile(p, nil, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(p, mode.Perm()); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(p, uid, 0); err != nil {
			t.Fatal(err)
		}
	}
	put("roots", os.ModeDir|0o755, 0)
	put("own", os.ModeDir|0o755, 65534)
	put("closed", os.ModeDir|0o555, 65534)
	put("groups", os.ModeDir|0o775, 0)
	put("everybodys", os.ModeDir|0o777, 0)
	put("roots/file", 0o644, 0)
	put("roots/open", 0o666, 0)
	put("own/file", 0o644, 0)
	start := func(uid uint32) int {
		c := exec.Command("sleep", "60")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
		if err := c.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Process.Kill(); c.Wait() })
		return c.Process.Pid
	}
	nobody, root := start(65534), start(0)
	for _, row := range []struct {
		claim string
		pid   int
		name  string
		want  bool
	}{
		{"a new file in root's directory", nobody, "roots/new", true},
		{"deeper than what is there", nobody, "roots/new/deeper", true},
		{"root's file", nobody, "roots/file", true},
		{"a file that everybody may write", nobody, "roots/open", false},
		{"root's file in a directory of one's own can be replaced", nobody, "own/file", false},
		{"a directory of one's own", nobody, "own/new", false},
		{"whose bits can be changed", nobody, "closed/new", false},
		{"a directory that some group may write", nobody, "groups/new", false},
		{"one that everybody may write", nobody, "everybodys/new", false},
		{"root is refused nothing", root, "roots/new", false},
	} {
		if got := refusedAnyway(row.pid, filepath.Join(dir, row.name)); got != row.want {
			t.Errorf("%s: %v", row.claim, got)
		}
	}
	if refusedAnyway(1<<30, filepath.Join(dir, "roots/new")) || refusedAnyway(nobody, "roots/new") {
		t.Error("what cannot be told is told")
	}
}
