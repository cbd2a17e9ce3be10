package filter

import (
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Rule is what the engine's profile says about one call, ready to be asked
// about arguments. The zero Rule refuses everything.
//
// It mirrors what runc and libseccomp make of a profile:
//   - a rule whose action is the default's is dropped (runc matchCall);
//   - conditions on distinct arguments of one rule must all hold; when two
//     share an argument, every one of them is a rule of its own (runc matchCall);
//   - a rule without conditions beats all that have some, whatever their
//     order, and of several the first holds (libseccomp 2.5.4).
//
// Where conditional rules of different actions overlap, libseccomp's order of
// tests decides. Rule refuses then.
type Rule struct {
	Allow   bool                      `json:"allow,omitempty"`   // when nothing below holds
	Allowed [][]specs.LinuxSeccompArg `json:"allowed,omitempty"` // alternatives, each a conjunction
	Refused [][]specs.LinuxSeccompArg `json:"refused,omitempty"` // stronger than Allowed
}

// Always is true if no argument can get the call refused.
func (r Rule) Always() bool { return r.Allow && len(r.Refused) == 0 }

// Never is true if no argument can get the call allowed.
func (r Rule) Never() bool { return !r.Allow && len(r.Allowed) == 0 }

// Allows tells whether a call named name with these arguments is allowed.
//
// A filter sees 64 bits of an argument of which the kernel may use 32:
// socket(1<<32|AF_VSOCK) passes a rule "domain != AF_VSOCK" and makes an
// AF_VSOCK socket. For the arguments in intArgument both readings must be
// allowed.
func (r Rule) Allows(name string, args [6]uint64) bool {
	if !r.allows(args) {
		return false
	}
	if i, ok := intArgument[name]; ok && args[i]>>32 != 0 {
		args[i] &= 0xffff_ffff
		return r.allows(args)
	}
	return true
}

func (r Rule) allows(args [6]uint64) bool {
	for _, all := range r.Refused {
		if holds(all, args) {
			return false
		}
	}
	for _, all := range r.Allowed {
		if holds(all, args) {
			return true
		}
	}
	return r.Allow
}

// intArgument names arguments that profiles restrict and that the kernel takes
// as 32 bits (SYSCALL_DEFINE3(socket, int, family, …),
// SYSCALL_DEFINE1(personality, unsigned int, personality)). clone needs no
// entry: the kernel uses the lower 32 bits of its flags, and so does a mask.
var intArgument = map[string]uint{"socket": 0, "personality": 0}

func holds(all []specs.LinuxSeccompArg, args [6]uint64) bool {
	for _, c := range all {
		v := args[c.Index]
		ok := false
		switch c.Op {
		case specs.OpNotEqual:
			ok = v != c.Value
		case specs.OpLessThan:
			ok = v < c.Value
		case specs.OpLessEqual:
			ok = v <= c.Value
		case specs.OpEqualTo:
			ok = v == c.Value
		case specs.OpGreaterEqual:
			ok = v >= c.Value
		case specs.OpGreaterThan:
			ok = v > c.Value
		case specs.OpMaskedEqual:
			ok = v&c.Value == c.ValueTwo
		}
		if !ok {
			return false
		}
	}
	return true
}

// outcome is an action with its errno.
type outcome struct {
	action specs.LinuxSeccompAction
	errno  uint // for ERRNO and TRACE
}

func (o outcome) allows() bool {
	return o.action == specs.ActAllow || o.action == specs.ActLog
}

// profile is the engine's profile by call.
type profile struct {
	def   outcome
	calls map[string]*calls
	names []string // every name the profile mentions, for the ENOSYS stub
	top   map[string]int
}

type calls struct {
	fixed *outcome
	given []given
}

type given struct {
	all []specs.LinuxSeccompArg
	outcome
}

// parseProfile reads the engine's profile. A nil profile allows everything.
func parseProfile(p *specs.LinuxSeccomp) (*profile, error) {
	if p == nil || (p.DefaultAction == "" && len(p.Syscalls) == 0) { // runc: "assume seccomp disabled"
		return &profile{def: outcome{action: specs.ActAllow}}, nil
	}
	def, err := readOutcome(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("read the engine's default action: %w", err)
	}
	out := &profile{def: def, calls: make(map[string]*calls), top: make(map[string]int)}
	for i, s := range p.Syscalls {
		o, err := readOutcome(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("read the engine's rule %d: %w", i, err)
		}
		alternatives, err := readConditions(s.Args)
		if err != nil {
			return nil, fmt.Errorf("read the engine's rule %d: %w", i, err)
		}
		for _, name := range s.Names {
			out.names = append(out.names, name)
			for arch := range scmpArches {
				if nr, ok := number(arch, name); ok {
					out.top[arch] = max(out.top[arch], nr)
				}
			}
			if o == def {
				continue
			}
			c := out.calls[name]
			if c == nil {
				c = new(calls)
				out.calls[name] = c
			}
			if alternatives == nil {
				if c.fixed == nil {
					c.fixed = &o
				}
				continue
			}
			for _, all := range alternatives {
				c.given = append(c.given, given{all, o})
			}
		}
	}
	return out, nil
}

func readOutcome(a specs.LinuxSeccompAction, ret *uint) (outcome, error) {
	o := outcome{action: a}
	switch a {
	case specs.ActErrno, specs.ActTrace:
		o.errno = uint(unix.EPERM)
		if ret != nil {
			o.errno = *ret
		}
	case specs.ActKill:
		o.action = specs.ActKillThread
	case specs.ActAllow, specs.ActLog, specs.ActKillProcess, specs.ActKillThread, specs.ActTrap:
	case specs.ActNotify:
		return o, &ListenerConflict{}
	default:
		return o, fmt.Errorf("unknown action %q", a)
	}
	return o, nil
}

// readConditions splits the conditions of one rule into alternatives. nil: no
// condition.
func readConditions(args []specs.LinuxSeccompArg) ([][]specs.LinuxSeccompArg, error) {
	if len(args) == 0 {
		return nil, nil
	}
	var used [6]bool
	shared := false
	for _, a := range args {
		if a.Index > 5 {
			return nil, fmt.Errorf("argument index %d: a call has six arguments", a.Index)
		}
		switch a.Op {
		case specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual:
		default:
			return nil, fmt.Errorf("unknown operator %q", a.Op)
		}
		shared = shared || used[a.Index]
		used[a.Index] = true
	}
	if !shared {
		return [][]specs.LinuxSeccompArg{args}, nil
	}
	var out [][]specs.LinuxSeccompArg
	for i := range args {
		out = append(out, args[i:i+1])
	}
	return out, nil
}

// rule gives what the profile says about a call.
func (p *profile) rule(name string) Rule {
	c := p.calls[name]
	if c == nil {
		return Rule{Allow: p.def.allows()}
	}
	if c.fixed != nil {
		return Rule{Allow: c.fixed.allows()}
	}
	r := Rule{Allow: p.def.allows()}
	for _, g := range c.given {
		if g.allows() {
			r.Allowed = append(r.Allowed, g.all)
		} else {
			r.Refused = append(r.Refused, g.all)
		}
	}
	if r.Allow {
		r.Allowed = nil
	}
	return r
}

// refusal gives how the profile refuses a call for which nothing else holds,
// and whether a rule of its own says so.
func (p *profile) refusal(name string) (outcome, bool) {
	if c := p.calls[name]; c != nil && c.fixed != nil && !c.fixed.allows() {
		return *c.fixed, true
	}
	return p.def, false
}

// newest is the highest number that the profile names on arch. runc answers
// ENOSYS to calls above it (patchbpf), so programs that run under this profile
// today know that answer. -1 where that does not apply.
func (p *profile) newest(arch string) int {
	if p.def.allows() || p.def.action == specs.ActTrace {
		return -1
	}
	if top, ok := p.top[arch]; ok {
		return top
	}
	return -1
}

// split writes a conditional rule as kernel rules: those that allow, and those
// that spell out the refused rest so that a refusal is reported. What is in
// neither falls to the filter's default action. ok is false where that cannot
// be written without two conditions on one argument (runc reads those as
// alternatives); then the supervisor judges every call.
//
// An ALLOW with conditions beside a NOTIFY without any would not do:
// libseccomp lets the unconditional one swallow the other, in either order.
func split(name string, r Rule) (allow, notify [][]specs.LinuxSeccompArg, ok bool) {
	if r.Allow || len(r.Refused) > 0 || len(r.Allowed) == 0 {
		return nil, nil, false
	}
	if name == "socket" {
		return splitDomains(r)
	}
	if len(r.Allowed) != 1 || len(r.Allowed[0]) != 1 {
		return nil, nil, false
	}
	c := r.Allowed[0][0]
	if c.Op != specs.OpMaskedEqual || c.ValueTwo != 0 { // clone: no CLONE_NEW…
		return nil, nil, false
	}
	for bit := range 64 {
		if m := uint64(1) << bit; c.Value&m != 0 {
			notify = append(notify, []specs.LinuxSeccompArg{{Index: c.Index, Value: m, ValueTwo: m, Op: specs.OpMaskedEqual}})
		}
	}
	return r.Allowed, notify, true
}

// splitDomains lists the socket domains one by one, compared in the 32 bits
// that the kernel uses. Domains that this kernel's headers do not know fall to
// the default action.
func splitDomains(r Rule) (allow, notify [][]specs.LinuxSeccompArg, ok bool) {
	for _, all := range r.Allowed {
		if len(all) != 1 || all[0].Index != 0 {
			return nil, nil, false
		}
	}
	for d := range uint64(unix.AF_MAX) {
		c := []specs.LinuxSeccompArg{{Index: 0, Value: 0xffff_ffff, ValueTwo: d, Op: specs.OpMaskedEqual}}
		if r.allows([6]uint64{d}) {
			allow = append(allow, c)
		} else {
			notify = append(notify, c)
		}
	}
	return allow, notify, true
}
