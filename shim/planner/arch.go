package planner

import (
	"fmt"
	"runtime"

	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// nativeArch is what programs run as: containers share the host's kernel.
const nativeArch = runtime.GOARCH

func lockThread() { runtime.LockOSThread() }

// archOf gives the architecture of a plan: that of the programs that were read.
// Where none was, it is what the kernel runs.
func archOf(calls *seccompgen.Result) string {
	if calls != nil && calls.Machine != "" {
		return calls.Machine
	}
	return nativeArch
}

// ForeignError is a container's whose programs are for another machine. Should
// this one run them at all, then through an emulator, which makes calls of its
// own: no filter of the programs' calls would fit.
type ForeignError struct{ Programs, Host string }

func (e *ForeignError) Error() string {
	return fmt.Sprintf("the image's programs are for %s, and this machine runs %s", e.Programs, e.Host)
}

// Remedy says what to do about it.
func (e *ForeignError) Remedy() string {
	return fmt.Sprintf("use the image for linux/%s; or leave the image out in the configuration, or set the mode of syscalls to audit or off for the container", e.Host)
}

// foreign refuses to hold a container to calls of another machine's numbers.
func foreign(p *plan.Plan, host string) error {
	if p.Syscalls.Architecture == host || p.Mode[record.Syscalls] != record.Enforce {
		return nil
	}
	return &ForeignError{Programs: p.Syscalls.Architecture, Host: host}
}
