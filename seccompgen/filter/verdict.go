package filter

import (
	"encoding/json"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/record"
)

// Class is what a filter does with a call, and what the supervisor does when
// it is notified of it. The zero Class refuses.
type Class string

const (
	// Allowed calls never leave the kernel.
	Allowed Class = "allowed"
	// AllowedByArgument calls stay in the kernel while the engine's profile
	// allows their arguments and they are among those that the programs were
	// proved to pass; the rest is notified and refused.
	AllowedByArgument Class = "allowed-by-argument"
	// Judged calls are needed for the whole life, and the supervisor is asked
	// each time: execve, execveat and listen, calls whose conditions no kernel
	// rule can spell, and those that are taken away process by process
	// (Entry.UntilLoop).
	Judged Class = "judged"
	// StartingOnly calls are continued until the container serves.
	StartingOnly Class = "starting"
	// RuntimeOnly calls are runc's own, continued until the first execve.
	RuntimeOnly Class = "runtime"
	// Undeclared calls are refused to the application.
	Undeclared Class = "undeclared"
	// Withheld calls are in the plan, but the engine's profile refuses them
	// whatever the arguments. Programs that meet this refusal meet it without
	// declarun too: it is answered in the kernel and is no deviation.
	Withheld Class = "withheld"
)

// declared is true for what the plan needs in some phase.
func (c Class) declared() bool {
	switch c {
	case Allowed, AllowedByArgument, Judged, StartingOnly, Withheld:
		return true
	}
	return false
}

// Entry is the verdict on one call number.
type Entry struct {
	Nr    int    `json:"nr"`
	Name  string `json:"name"`
	Class Class  `json:"class"`
	// UntilLoop calls of the plan are refused to the application's processes that
	// are in their service loop (Caller.InLoop), in any phase.
	UntilLoop bool  `json:"until_loop,omitempty"`
	Errno     int32 `json:"errno"` // the answer when refused; 0 only if the engine's own rule fakes success
	Engine    Rule  `json:"engine"`
	// Args is what the arguments are held to beside the engine's profile.
	Args []Restriction `json:"args,omitempty"`
}

// Verdicts answers for every call that a filter of Build can notify. It is
// plain data, survives JSON, and is safe for concurrent use. A nil Verdicts
// refuses everything.
type Verdicts struct {
	// Arch is the GOARCH of the filter; Entries are by GOARCH and in the order
	// of call numbers.
	Arch    string             `json:"arch"`
	Entries map[string][]Entry `json:"entries"`
	// Unknown names calls of the plan that the runtime's libseccomp has no
	// number for. runc leaves them out, and they get ENOSYS.
	Unknown []string `json:"unknown,omitempty"`
	Widened bool     `json:"widened,omitempty"`
}

// Call is a notified call: seccomp_data without the instruction pointer.
type Call struct {
	AuditArch uint32 // AUDIT_ARCH_…; 0: the native one
	Nr        int
	Args      [6]uint64
}

// Caller is who made a call, as the supervisor knows it.
type Caller struct {
	Identity record.Identity
	Phase    record.Phase
	Mode     record.Mode
	// BeforeExec is true while the process that the runtime handed over with
	// this descriptor (pid of the container process state) has not been let
	// through an execve: then the caller is runc's init, or a startContainer
	// hook, and not yet anything of the image's.
	BeforeExec bool
	// InLoop is the program whose service loop the calling process was proved to
	// be in; empty where that is not proved.
	InLoop string
}

// Decision is what to answer. The zero Decision refuses without a word;
// Judge never gives it for an enforced deviation.
type Decision struct {
	Continue bool
	Errno    int32 // when not continued; see Entry.Errno
	// Report is true for a deviation, or an operator's call that the plan does
	// not declare. Verdict is set whenever Report is.
	Report  bool
	Verdict record.Verdict
	// Taken is true where the call is gone for this process, which is in its loop.
	Taken bool
	Name  string // "" for a number that has no name
	Class Class
	// Reason is half a sentence for people.
	Reason string
}

// Judge decides on one notified call by its number and scalar arguments
// alone, both of which are in the notification itself: nothing is read from
// the caller's memory, so there is nothing to race with. For execve, execveat
// and listen, Continue means that the call may be made at all; what it does is
// for others to judge.
func (v *Verdicts) Judge(c Call, by Caller) Decision {
	e, ok := v.lookup(c)
	if !ok {
		return Decision{Errno: int32(unix.ENOSYS), Report: true, Verdict: record.Denied, Class: Undeclared,
			Reason: fmt.Sprintf("call number %d has no name that the filter knows", c.Nr)}
	}
	d := Decision{Name: e.Name, Class: e.Class, Errno: e.Errno}
	if !e.Engine.Allows(e.Name, c.Args) {
		d.Reason = "the engine's seccomp profile refuses it"
		if !e.Engine.Never() {
			d.Reason = "the engine's seccomp profile refuses it with these arguments"
		}
		// runc probes; and what the plan needs but the engine withholds is the
		// engine's doing. In a widened plan nobody can tell what is needed: an
		// engine that says "not implemented" expects to be asked (clone3).
		probed := v.Widened && e.Errno == int32(unix.ENOSYS)
		if by.BeforeExec || e.Class == Withheld || probed || by.Mode == record.Off {
			return d
		}
		d.Report, d.Verdict = true, record.Denied
		if by.Mode == record.Audit {
			d.Verdict = record.Observed // it is not declarun that stops it
		}
		return d
	}
	d.Continue, d.Errno = true, 0
	if by.BeforeExec {
		return d
	}
	beyond, outside := e.outside(c.Args)
	switch {
	case by.Identity == record.Operator: // an operator's tools are not the image's
		if !e.Class.declared() {
			d.Report, d.Verdict = true, record.Reported
			d.Reason = "called by an operator's exec; the image does not need it"
		}
		return d
	case outside:
	case by.Identity == record.HealthCheck && e.Class.declared():
		return d
	case taken(e, by):
	case e.Class == Allowed || e.Class == AllowedByArgument || e.Class == Judged:
		return d
	case e.Class == StartingOnly && by.Phase == record.Starting:
		return d
	}
	switch {
	case outside:
		d.Reason = beyond.deviation(c.Args)
	case taken(e, by):
		d.Taken = true
		d.Reason = fmt.Sprintf("%s needs it only before it serves, and this process of it is in its service loop", by.InLoop)
	case e.Class == StartingOnly:
		d.Reason = "needed only before the container serves"
	case e.Class == RuntimeOnly:
		d.Reason = "only the runtime needs it, before the first program"
	default:
		d.Reason = "no program of the image needs it"
	}
	switch by.Mode {
	case record.Off:
		return d
	case record.Audit:
		d.Report, d.Verdict = true, record.Observed
		return d
	}
	d.Continue, d.Errno = false, e.Errno
	d.Report, d.Verdict = true, record.Denied
	return d
}

// taken tells whether a call is gone for this process: its program needs it only
// before its loop.
func taken(e Entry, by Caller) bool {
	return e.UntilLoop && by.InLoop != "" && (e.Class == Judged || e.Class == StartingOnly)
}

// UntilLoop tells whether the answer to a call depends on Caller.InLoop.
func (v *Verdicts) UntilLoop(c Call) bool {
	e, ok := v.lookup(c)
	return ok && e.UntilLoop
}

// LoopsMatter tells whether any call is taken away by processes.
func (v *Verdicts) LoopsMatter() bool {
	if v == nil {
		return false
	}
	for _, entries := range v.Entries {
		if slices.ContainsFunc(entries, func(e Entry) bool { return e.UntilLoop }) {
			return true
		}
	}
	return false
}

func (v *Verdicts) lookup(c Call) (Entry, bool) {
	if v == nil {
		return Entry{}, false
	}
	arch, ok := v.Arch, true
	if c.AuditArch != 0 {
		arch, ok = auditArches[c.AuditArch]
	}
	if !ok {
		return Entry{}, false
	}
	entries := v.Entries[arch]
	i, ok := slices.BinarySearchFunc(entries, c.Nr, func(e Entry, nr int) int { return e.Nr - nr })
	if !ok {
		return Entry{}, false
	}
	return entries[i], true
}

// Name gives the name of a notified call, "" if it has none.
func (v *Verdicts) Name(c Call) string {
	if e, ok := v.lookup(c); ok {
		return e.Name
	}
	if v != nil && c.AuditArch == 0 {
		n, _ := sysno.Name(v.Arch, c.Nr)
		return n
	}
	return ""
}

// Names lists the native calls of some classes, in byte order.
func (v *Verdicts) Names(classes ...Class) []string {
	if v == nil {
		return nil
	}
	var out []string
	for _, e := range v.Entries[v.Arch] {
		if slices.Contains(classes, e.Class) {
			out = append(out, e.Name)
		}
	}
	slices.Sort(out)
	return out
}

// ParseVerdicts reads the JSON form back.
func ParseVerdicts(b []byte) (*Verdicts, error) {
	v := new(Verdicts)
	if err := json.Unmarshal(b, v); err != nil {
		return nil, fmt.Errorf("parse verdicts: %w", err)
	}
	for arch, entries := range v.Entries {
		for i, e := range entries {
			if i > 0 && entries[i-1].Nr >= e.Nr {
				return nil, fmt.Errorf("parse verdicts: %s: call %d is out of order", arch, e.Nr)
			}
			for _, r := range e.Args {
				if r.Index > 5 {
					return nil, fmt.Errorf("parse verdicts: %s: call %d: argument index %d", arch, e.Nr, r.Index)
				}
			}
			for _, all := range slices.Concat(e.Engine.Allowed, e.Engine.Refused) {
				for _, a := range all {
					if a.Index > 5 {
						return nil, fmt.Errorf("parse verdicts: %s: call %d: argument index %d", arch, e.Nr, a.Index)
					}
				}
			}
		}
	}
	return v, nil
}
