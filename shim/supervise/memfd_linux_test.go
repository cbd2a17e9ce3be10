package supervise

import (
	"errors"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
)

func TestMemfdNoexec(t *testing.T) {
	need.Root(t)
	before, err := os.ReadFile(memfdSysctl)
	if err != nil {
		t.Skip("kernel has no vm.memfd_noexec")
	}
	own, _ := os.Executable()
	init := exec.Command("/bin/sleep", "60")
	init.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWPID}
	if err := init.Start(); err != nil {
		t.Skip(err)
	}
	defer func() { init.Process.Kill(); init.Wait() }()
	pidns, err := os.Open("/proc/" + strconv.Itoa(init.Process.Pid) + "/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer pidns.Close()
	for range 2 { // may be repeated
		if err := forbidMemfdExec(pidns, own, []string{"__memfd"}); err != nil {
			t.Fatal(err)
		}
	}
	out, err := exec.Command("nsenter", "-p", "-t", strconv.Itoa(init.Process.Pid), "cat", memfdSysctl).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != "2" {
		t.Errorf("in the namespace: %q, %v", out, err)
	}
	if after, _ := os.ReadFile(memfdSysctl); string(after) != string(before) {
		t.Errorf("the host's value became %q", after)
	}
	host, err := os.Open("/proc/self/ns/pid")
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	if err := forbidMemfdExec(host, own, []string{"__memfd"}); !errors.Is(err, errSharedPIDNamespace) {
		t.Errorf("the host's own namespace: %v", err)
	}
	if err := forbidMemfdExec(pidns, "/bin/false", nil); err == nil {
		t.Error("a child that fails is no error")
	}
}
