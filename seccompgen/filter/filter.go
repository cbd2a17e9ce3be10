// Package filter turns the system calls of a plan and the engine's own profile
// into the seccomp profile that runc loads, and into the supervisor's answer
// for every call that this profile notifies. It is pure: it reads no kernel
// and no library.
//
// It guarantees:
//   - Allow-list only: the default action is ERRNO(EPERM).
//   - Nothing that the engine's profile refuses becomes allowed, in the kernel
//     or by the supervisor. Arguments that the kernel cuts to 32 bits are
//     compared in 32 bits, which the engine's profile does not do.
//   - What is needed for the container's whole life is an ALLOW without
//     conditions, which the kernel answers from a bitmap (since Linux 5.11),
//     but for the few calls with a proved argument (plan.Syscall.Args): these
//     are an ALLOW of the proved values and a NOTIFY of all others.
//   - Every other call with a known name is a NOTIFY, so that it is refused
//     with an errno that its callers understand, and reported. execve, execveat
//     and listen are NOTIFY even when allowed, and so is what a program needs
//     only before its service loop (plan.Syscall.UntilLoop).
//   - Verdicts decide by number and scalar arguments, never by what a pointer
//     points at.
//
// It does not guarantee that a refused call is reported when it has no name in
// the tables or none in the runtime's libseccomp (then: ENOSYS above the
// highest known number, else EPERM), or when it is refused for a socket domain
// newer than the tables.
// A call through an architecture that the filter does not list kills the
// caller; that is libseccomp's answer and runc has no setting for it.
//
// Sources: runc libcontainer/seccomp (1.1.5 to 1.5.1), libseccomp 2.5.4,
// seccomp(2), seccomp_unotify(2).
package filter

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Input is all that a filter depends on.
type Input struct {
	Arch string // GOARCH of the image's programs
	// Allow is the plan's list, serving and starting.
	Allow []plan.Syscall
	// Widened allows whatever the engine's profile allows, because a site in
	// the image could not be resolved or the container is wide.
	Widened bool
	// Engine is the engine's own profile. nil: it gave none, so it refuses
	// nothing; whether that is accepted is the caller's decision.
	Engine *specs.LinuxSeccomp
	// Has32: the image has 32-bit programs. Their calls behind the multiplexers
	// socketcall and ipc are allowed in the kernel if the plan needs them and
	// refused otherwise; only Widened opens the multiplexers as a whole.
	Has32 bool
	// RuncVersion is for the record only: before the first execve everything
	// that the engine allows is continued, whatever the version.
	RuncVersion     string
	NoNewPrivileges bool

	ListenerPath, ListenerMetadata string
	// WaitKillable adds SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV; only for a
	// runtime whose features list it as supported.
	WaitKillable bool
	Mode         record.Mode
	// Known tells whether the runtime's libseccomp has a number for a name;
	// nil: for all.
	Known func(name string) bool
}

// ListenerConflict says that somebody else listens to this container's
// notifications already. One filter has one listener.
type ListenerConflict struct{ Path string }

func (e *ListenerConflict) Error() string {
	if e.Path == "" {
		return "the engine's seccomp profile has SCMP_ACT_NOTIFY rules"
	}
	return "the engine's seccomp profile has the listener " + e.Path
}

// Remedy says what to do about it.
func (e *ListenerConflict) Remedy() string {
	return "run the container without the other seccomp listener, or exclude its image in /etc/declarun/config.toml"
}

// notified calls go to the supervisor even when allowed: it learns who runs
// what from the first two and performs the third itself.
var notified = []string{"execve", "execveat", "listen"}

var auditArches = map[uint32]string{
	unix.AUDIT_ARCH_X86_64:      "amd64",
	unix.AUDIT_ARCH_I386:        "386",
	unix.AUDIT_ARCH_AARCH64:     "arm64",
	unix.AUDIT_ARCH_ARM:         "arm",
	unix.AUDIT_ARCH_RISCV64:     "riscv64",
	unix.AUDIT_ARCH_S390X:       "s390x",
	unix.AUDIT_ARCH_PPC64LE:     "ppc64le",
	unix.AUDIT_ARCH_LOONGARCH64: "loong64",
}

var scmpArches = map[string]specs.Arch{
	"amd64": specs.ArchX86_64, "386": specs.ArchX86,
	"arm64": specs.ArchAARCH64, "arm": specs.ArchARM,
	"riscv64": specs.ArchRISCV64, "s390x": specs.ArchS390X, "ppc64le": specs.ArchPPC64LE,
	"loong64": specs.ArchLOONGARCH64,
}

var half = map[string]string{"amd64": "386", "arm64": "arm"}

// multiplexed calls are also reached through socketcall and ipc on 32-bit x86.
var multiplexed = func() map[string]bool {
	out := make(map[string]bool)
	for n := range strings.FieldsSeq(`socket bind connect listen accept accept4 getsockname getpeername socketpair
		send recv sendto recvfrom shutdown setsockopt getsockopt sendmsg recvmsg recvmmsg sendmmsg
		semop semget semctl semtimedop msgsnd msgrcv msgget msgctl shmat shmdt shmget shmctl`) {
		out[n] = true
	}
	return out
}()

// Build makes the profile and the verdicts. In mode off the engine's profile
// stays as it is and there are no verdicts.
func Build(in Input) (*specs.LinuxSeccomp, *Verdicts, error) {
	if in.Mode == record.Off {
		return in.Engine, nil, nil
	}
	p, v, err := grouped(in)
	if err == nil {
		p.Syscalls = ordered(in.Arch, p.Syscalls)
	}
	return p, v, err
}

// grouped is Build with rules in the order of their actions, as people read them.
func grouped(in Input) (*specs.LinuxSeccomp, *Verdicts, error) {
	switch in.Mode {
	case record.Enforce, record.Audit:
	default:
		return nil, nil, fmt.Errorf("build filter: mode %q", in.Mode)
	}
	if in.ListenerPath == "" {
		return nil, nil, errors.New("build filter: no listener path for refused calls")
	}
	if in.Engine != nil && in.Engine.ListenerPath != "" && in.Engine.ListenerPath != in.ListenerPath {
		return nil, nil, fmt.Errorf("build filter: %w", &ListenerConflict{Path: in.Engine.ListenerPath})
	}
	engine, err := parseProfile(in.Engine)
	if err != nil {
		return nil, nil, fmt.Errorf("build filter: %w", err)
	}
	arches, err := arches(in)
	if err != nil {
		return nil, nil, fmt.Errorf("build filter: %w", err)
	}
	b := newBuilder(in, engine, arches)
	for _, name := range b.names() {
		b.add(name)
	}
	return b.profile(), b.verdicts(), nil
}

// arches lists the GOARCHes that the filter covers. 32-bit calls are covered
// only where the engine's profile covers them.
func arches(in Input) ([]string, error) {
	native, ok := scmpArches[in.Arch]
	if !ok || names(in.Arch) == nil {
		return nil, fmt.Errorf("architecture %q has no table of system calls", in.Arch)
	}
	out := []string{in.Arch}
	if e := in.Engine; e != nil && len(e.Architectures) > 0 && !slices.Contains(e.Architectures, native) {
		return nil, fmt.Errorf("the engine's seccomp profile does not cover %s", native)
	}
	// Outside the filter's architectures a call kills; audit kills nothing.
	if h := half[in.Arch]; h != "" && (in.Has32 || in.Mode == record.Audit) {
		if in.Engine == nil || slices.Contains(in.Engine.Architectures, scmpArches[h]) {
			out = append(out, h)
		}
	}
	return out, nil
}

// builder collects rules. Names are decided once for all architectures: a
// profile names calls, not numbers.
type builder struct {
	in      Input
	engine  *profile
	arches  []string
	plan    map[string]record.Phase
	loop    map[string]bool // every entry of the plan says UntilLoop
	runtime map[string]record.Phase
	args    map[string][]Restriction

	allow, notify []string
	fixed         map[outcome][]string
	conditional   []specs.LinuxSyscall
	classes       map[string]Class
	unknown       []string
}

func newBuilder(in Input, engine *profile, arches []string) *builder {
	b := &builder{in: in, engine: engine, arches: arches,
		plan: make(map[string]record.Phase), loop: make(map[string]bool), runtime: make(map[string]record.Phase), args: make(map[string][]Restriction),
		fixed: make(map[outcome][]string), classes: make(map[string]Class)}
	for _, s := range in.Allow {
		phase, until := s.Phase, s.UntilLoop
		had, ok := b.plan[s.Name]
		if ok {
			phase, until = phase.Widest(had), until && b.loop[s.Name]
		}
		b.plan[s.Name], b.loop[s.Name] = phase, until
		b.args[s.Name] = proved(b.args[s.Name], s, !ok)
	}
	for _, s := range RuntimeNeeds(in.RuncVersion, in.NoNewPrivileges) {
		b.runtime[s.Name] = s.Phase
	}
	b.runtime["sigreturn"] = record.Serving
	return b
}

// names lists every call that the filter can say something about.
func (b *builder) names() []string {
	var all []string
	for _, a := range b.arches {
		all = append(all, names(a)...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	if len(b.arches) > 1 {
		// On 32-bit x86, libseccomp derives the rules of the multiplexers from
		// those of the calls behind them. A rule of their own would open all.
		if !b.in.Widened && b.in.Mode != record.Audit {
			all = slices.DeleteFunc(all, func(n string) bool { return n == "socketcall" || n == "ipc" })
		}
	}
	return all
}

// untilLoop tells whether a call is taken away from a process that is proved to
// be in its service loop: then the supervisor has to be asked each time. Not
// where sites are unresolved (they may be calls of the loop), not what runc's
// init needs all along, and not write, which runc does not let anybody notify.
func (b *builder) untilLoop(name string) bool {
	return b.loop[name] && !b.in.Widened && b.runtime[name] != record.Serving && name != "write"
}

// class decides what happens with a call; the kernel rules follow from it.
func (b *builder) class(name string, r Rule) Class {
	phase, planned := b.plan[name]
	if b.in.Widened {
		phase, planned = record.Serving, planned || !r.Never()
	}
	if p, ok := b.runtime[name]; ok && p == record.Serving {
		phase, planned = record.Serving, true
	}
	switch {
	case planned && r.Never():
		return Withheld
	case planned && phase == record.Starting:
		return StartingOnly
	case planned && (slices.Contains(notified, name) || b.untilLoop(name)):
		return Judged
	case planned && b.holds(name, r):
		return AllowedByArgument
	case planned && r.Always():
		return Allowed
	case planned:
		if _, _, ok := split(name, r); !ok && name != "write" {
			return Judged
		}
		return AllowedByArgument
	case b.runtime[name] != "":
		return RuntimeOnly
	}
	return Undeclared
}

// holds tells whether the kernel holds an allowed call to the arguments that
// the programs were proved to pass.
func (b *builder) holds(name string, r Rule) bool {
	_, ok := inKernel(b.restrictions(name), r)
	return ok
}

func (b *builder) add(name string) {
	r := b.engine.rule(name)
	class := b.class(name, r)
	b.classes[name] = class
	if _, planned := b.plan[name]; planned && b.in.Known != nil && !b.in.Known(name) {
		b.unknown = append(b.unknown, name)
	}
	own, explicit := b.engine.refusal(name)
	switch {
	case r.Never() && explicit && (own.action != specs.ActErrno && own.action != specs.ActTrace || own.action == specs.ActErrno && own.errno == 0):
		b.fixed[own] = append(b.fixed[own], name) // kills, traps and faked successes stay what they are
	case class == Withheld || name == "write" && r.Never():
		if e := b.errno(name); e != int32(unix.EPERM) { // EPERM is the default action already
			o := outcome{specs.ActErrno, uint(e)}
			b.fixed[o] = append(b.fixed[o], name)
		}
	case class == Allowed:
		b.allow = append(b.allow, name)
	case class == AllowedByArgument:
		allow, notify, ok := split(name, r)
		if own, held := inKernel(b.restrictions(name), r); held {
			allow, notify = own.kernel(own.looksAt(name, r))
			ok = true
		}
		if !ok { // write, which cannot be notified
			allow = r.Allowed
		}
		if multiplexed[name] && slices.Contains(b.arches, "386") {
			// Behind socketcall libseccomp drops the conditions, and then refuses
			// two actions for one call (EEXIST). The rest is refused unreported.
			notify = nil
		}
		for _, all := range allow {
			b.conditional = append(b.conditional, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: all})
		}
		for _, all := range notify {
			b.conditional = append(b.conditional, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActNotify, Args: all})
		}
	default:
		b.notify = append(b.notify, name)
	}
}

func (b *builder) errno(name string) int32 {
	nr := -1
	if n, ok := number(b.in.Arch, name); ok {
		nr = n
	}
	return b.engine.refusalErrno(b.in.Arch, name, nr)
}

func (b *builder) profile() *specs.LinuxSeccomp {
	out := &specs.LinuxSeccomp{
		DefaultAction:    specs.ActErrno, // EPERM
		ListenerPath:     b.in.ListenerPath,
		ListenerMetadata: b.in.ListenerMetadata,
	}
	if b.in.Engine != nil && b.in.Engine.Flags != nil {
		out.Flags = slices.Clone(b.in.Engine.Flags)
	}
	if b.in.WaitKillable && !slices.Contains(out.Flags, specs.LinuxSeccompFlagWaitKillableRecv) {
		if out.Flags == nil { // naming a flag would lose the runtime's default
			out.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagSpecAllow}
		}
		out.Flags = append(out.Flags, specs.LinuxSeccompFlagWaitKillableRecv)
	}
	for _, a := range b.arches {
		out.Architectures = append(out.Architectures, scmpArches[a])
	}
	out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: b.allow, Action: specs.ActAllow})
	out.Syscalls = append(out.Syscalls, b.conditional...)
	fixed := make([]outcome, 0, len(b.fixed))
	for o := range b.fixed {
		fixed = append(fixed, o)
	}
	slices.SortFunc(fixed, func(a, c outcome) int {
		if d := strings.Compare(string(a.action), string(c.action)); d != 0 {
			return d
		}
		return int(a.errno) - int(c.errno)
	})
	for _, o := range fixed {
		s := specs.LinuxSyscall{Names: b.fixed[o], Action: o.action}
		if o.action == specs.ActErrno {
			s.ErrnoRet = &o.errno
		}
		out.Syscalls = append(out.Syscalls, s)
	}
	out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: b.notify, Action: specs.ActNotify})
	return out
}

func (b *builder) verdicts() *Verdicts {
	v := &Verdicts{Arch: b.in.Arch, Entries: make(map[string][]Entry), Unknown: b.unknown, Widened: b.in.Widened}
	for _, a := range b.arches {
		for _, name := range names(a) {
			class, ok := b.classes[name]
			nr, has := number(a, name)
			if !ok || !has {
				continue
			}
			e := Entry{Nr: nr, Name: name, Class: class, UntilLoop: b.untilLoop(name),
				Errno: b.engine.refusalErrno(a, name, nr), Engine: b.engine.rule(name)}
			switch class {
			case AllowedByArgument:
				if own, ok := inKernel(b.restrictions(name), e.Engine); ok {
					e.Args = []Restriction{own}
				}
			case StartingOnly, Judged:
				e.Args = b.restrictions(name)
			}
			v.Entries[a] = append(v.Entries[a], e)
		}
		slices.SortFunc(v.Entries[a], func(x, y Entry) int { return x.Nr - y.Nr })
	}
	return v
}
