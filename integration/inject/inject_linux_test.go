package inject

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
)

func TestAProcessMakesACallThatIsNotInItsProgramAndGoesOn(t *testing.T) {
	need.Root(t)
	victim := exec.Command("sleep", "1.5")
	if err := victim.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(200 * time.Millisecond)
	s, err := Attach(victim.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	pid, err := s.Call(unix.SYS_GETPID)
	if err != nil || int(pid) != victim.Process.Pid {
		t.Errorf("getpid in the victim: %d, %v; want %d", pid, err, victim.Process.Pid)
	}
	path, err := s.String("/nowhere/at/all")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Call(unix.SYS_CHROOT, path); !errors.Is(err, unix.ENOENT) {
		t.Errorf("chroot to nowhere: %v, want ENOENT", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := victim.Wait(); err != nil {
		t.Errorf("the victim did not go on as before: %v", err)
	}
}
