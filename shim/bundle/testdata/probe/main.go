// Command probe is the first process of a test's container: it tries things
// and prints what came of each, one per line.
package main

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
)

func main() {
	if len(os.Args) > 1 {
		fmt.Println("ran", os.Args[1])
		return
	}
	say := func(what string, err error) { fmt.Printf("%s: %v\n", what, err) }
	say("write /tmp", os.WriteFile("/tmp/x", nil, 0o600))
	say("write /", os.WriteFile("/x", nil, 0o600))
	say("write /vol", os.WriteFile("/vol/x", nil, 0o600))
	say("copy", copyTo("/tmp/probe"))
	say("copy to volume", copyTo("/vol/probe"))
	say("exec /probe", exec.Command("/probe", "child").Run())
	say("exec /tmp/probe", exec.Command("/tmp/probe", "child").Run())
	say("exec /vol/probe", exec.Command("/vol/probe", "child").Run())
	say("chroot", syscall.Chroot("/"))
	say("umask", nil)
	syscall.Umask(0)
	_, _, e := syscall.RawSyscall(syscall.SYS_SETUID, 0, 0, 0)
	say("setuid", err(e))
	_, _, e = syscall.RawSyscall(435, 0, 0, 0)
	say("clone3", err(e))
	_, _, e = syscall.RawSyscall(500, 0, 0, 0)
	say("call 500", err(e))
	b, _ := os.ReadFile("/proc/self/status")
	fmt.Printf("%s", b)
}

func err(e syscall.Errno) error {
	if e == 0 {
		return nil
	}
	return e
}

func copyTo(name string) error {
	in, err := os.Open("/probe")
	if err != nil {
		return err
	}
	out, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o755)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}
