package filter

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// UnprovedError says that a profile without a supervisor would have to allow
// whatever the engine's does, and the engine's is not known.
type UnprovedError struct{}

func (e *UnprovedError) Error() string {
	return "not every system call of the image is proved, so that all that the engine's own profile allows is needed, and that is not known here"
}

// Remedy says what to do about it.
func (e *UnprovedError) Remedy() string {
	return "use the engine's own profile, or --bundle with a config.json that has one; declarun plan lists the places"
}

// DenyListError says that the engine's profile allows a call but for some
// arguments, which beside a refusing default action cannot be written down.
type DenyListError struct{ Call string }

func (e *DenyListError) Error() string {
	return fmt.Sprintf("the engine's profile allows %s but for some arguments, which a list of what is allowed cannot say", e.Call)
}

// Remedy says what to do about it.
func (e *DenyListError) Remedy() string {
	return "use an engine's profile with a refusing default action, such as Docker's"
}

// Plain makes a profile that needs no supervisor: what the plan allows at any
// time, and what runc itself calls after it has loaded the filter, is allowed
// for the container's whole life; everything else is refused with EPERM, or
// with ENOSYS where libraries probe. There are no NOTIFY rules, so nothing is
// reported, and what Build judges each time (execve, listen) is just allowed.
//
// What runc calls is of a container without no_new_privs unless in says
// otherwise: the filter is loaded earlier there. Other programs of an
// operator's exec are not provided for.
func Plain(in Input) (*specs.LinuxSeccomp, error) {
	in.Mode, in.ListenerPath, in.ListenerMetadata = record.Enforce, "nobody listens", ""
	if in.Widened && in.Engine == nil {
		return nil, fmt.Errorf("write a plain filter: %w", &UnprovedError{})
	}
	var all []plan.Syscall
	for _, c := range slices.Concat(in.Allow, RuntimeNeeds(in.RuncVersion, in.NoNewPrivileges), []plan.Syscall{{Name: "execve"}}) {
		c.Phase, c.UntilLoop = record.Serving, false
		all = append(all, c)
	}
	in.Allow = all
	notifying, verdicts, err := grouped(in)
	if err != nil {
		return nil, err
	}
	out := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: notifying.Architectures}
	eperm := uint(unix.EPERM)
	out.DefaultErrnoRet = &eperm
	var allow, absent []string
	var conditional []specs.LinuxSyscall
	for _, s := range notifying.Syscalls {
		switch {
		case s.Action != specs.ActNotify && len(s.Args) > 0:
			conditional = append(conditional, s)
		case s.Action == specs.ActAllow:
			allow = append(allow, s.Names...)
		case s.Action != specs.ActNotify:
			out.Syscalls = append(out.Syscalls, s) // the engine's own refusals
		case len(s.Args) > 0: // the rest of a conditional rule: the default refuses it
		default:
			for _, name := range s.Names {
				e, ok := verdicts.byName(name)
				switch {
				case ok && e.Class == Judged && e.Engine.Always():
					allow = append(allow, name)
				case ok && e.Class == Judged && e.Engine.Allow:
					return nil, fmt.Errorf("write a plain filter: %w", &DenyListError{name})
				case ok && e.Class == Judged:
					for _, all := range e.Engine.Allowed {
						conditional = append(conditional, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: all})
					}
				case ok && e.Errno == int32(unix.ENOSYS):
					absent = append(absent, name)
				case ok && e.Errno != int32(unix.EPERM):
					errno := uint(e.Errno)
					out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActErrno, ErrnoRet: &errno})
				}
			}
		}
	}
	slices.SortFunc(allow, strings.Compare)
	enosys := uint(unix.ENOSYS)
	out.Syscalls = slices.Concat([]specs.LinuxSyscall{{Names: slices.Compact(allow), Action: specs.ActAllow}}, conditional, out.Syscalls)
	if len(absent) > 0 {
		out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: absent, Action: specs.ActErrno, ErrnoRet: &enosys})
	}
	return out, nil
}

// byName finds a call's entry, the native one first.
func (v *Verdicts) byName(name string) (Entry, bool) {
	is := func(e Entry) bool { return e.Name == name }
	if i := slices.IndexFunc(v.Entries[v.Arch], is); i >= 0 {
		return v.Entries[v.Arch][i], true
	}
	for _, entries := range v.Entries {
		if i := slices.IndexFunc(entries, is); i >= 0 {
			return entries[i], true
		}
	}
	return Entry{}, false
}
