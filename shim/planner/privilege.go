package planner

import (
	"slices"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// noNewPrivileges tells whether no_new_privs takes nothing from the container's
// programs. It takes from an execve what the file would give: the setuid and
// setgid bits and file capabilities (PR_SET_NO_NEW_PRIVS in prctl(2)). So it is
// set where every program that may be executed is known, only those can be, and
// none of their files gives anything. Files that the container writes itself
// give nothing in any case: they lie on nosuid mounts.
//
// An operator's exec is not touched: engines make its process from their own
// copy of the configuration, so that su and sudo go on working there.
func (f facts) noNewPrivileges() bool {
	c := f.closure
	if f.calls == nil || c.Wide || c.WideStarting || !f.declared.Image.Known ||
		f.modes[record.Processes] != record.Enforce || len(f.calls.Setuid) > 0 || len(f.calls.FileCaps) > 0 {
		return false
	}
	return !slices.ContainsFunc(c.Processes, func(p plan.Process) bool {
		return p.Mounted && !slices.ContainsFunc(c.Analyse, func(a procmap.Program) bool { return a.Path == p.Path })
	})
}

// freeOfDomains: under no_new_privs an execve may be refused the change of
// security domain that a policy wants (SELinux: since Linux 4.14 as the policy
// says; AppArmor: to a profile that is no subset). Engines' own profiles for
// AppArmor ask for none.
func freeOfDomains(s *bundle.Spec) bool {
	p := s.Process
	if p == nil || p.SelinuxLabel != "" {
		return false
	}
	return slices.Contains([]string{"", "unconfined", "docker-default", "containers-default", "cri-containerd.apparmor.d"}, p.ApparmorProfile)
}

// useless tells whether a capability that is of use in particular calls and
// arguments only is of none with those that are allowed; by is what keeps it.
func (f facts) useless(capability string, s plan.Syscalls) (none bool, by string) {
	if f.calls == nil {
		return false, ""
	}
	calls, bound := needs[capability]
	if !bound {
		return false, ""
	}
	if len(f.calls.FileCaps) > 0 {
		return false, "" // a program whose file has capabilities does not start without them
	}
	for _, c := range s.Allow {
		if !slices.Contains(calls, c.Name) && !(c.Name == "clone" && f.namespaces() && slices.Contains(calls, "unshare")) {
			continue
		}
		if options, ok := needsOf[capability][c.Name]; ok && !passes(c, 0, options) {
			continue
		}
		return false, c.Name
	}
	return true, ""
}

// namespaces tells whether the engine may let a process make a user namespace:
// see use.
func (f facts) namespaces() bool {
	return f.engine == nil || f.engine("unshare") || f.engine("clone3")
}

// needsOf narrows needs to values of the first argument.
var needsOf = map[string]map[string][]uint32{
	"CAP_SETPCAP": {"prctl": {prCapBSetDrop, prSetSecurebits}},
}

// Options of prctl(2).
const (
	prCapBSetDrop   = 24
	prSetSecurebits = 28
)

// passes tells whether an argument may be one of values.
func passes(c plan.Syscall, index uint8, values []uint32) bool {
	for _, a := range c.Args {
		if a.Index == index && a.Proved() {
			return slices.ContainsFunc(a.Values, func(v plan.ArgValue) bool { return slices.Contains(values, v.Value) })
		}
	}
	return true
}
