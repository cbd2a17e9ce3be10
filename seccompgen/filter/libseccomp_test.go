//go:build cgo && amd64

package filter

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/record"
)

// This file is the first judge of the filter: the profile is compiled by
// libseccomp in the steps that runc takes (libcontainer/seccomp), the BPF
// program is interpreted for every call, and the result compared with the
// verdicts.

var scmpOps = map[specs.LinuxSeccompOperator]libseccomp.ScmpCompareOp{
	specs.OpNotEqual: libseccomp.CompareNotEqual, specs.OpLessThan: libseccomp.CompareLess,
	specs.OpLessEqual: libseccomp.CompareLessOrEqual, specs.OpEqualTo: libseccomp.CompareEqual,
	specs.OpGreaterEqual: libseccomp.CompareGreaterEqual, specs.OpGreaterThan: libseccomp.CompareGreater,
	specs.OpMaskedEqual: libseccomp.CompareMaskedEqual,
}

func scmpAction(t testing.TB, a specs.LinuxSeccompAction, errno *uint) libseccomp.ScmpAction {
	code := int16(unix.EPERM)
	if errno != nil {
		code = int16(*errno)
	}
	switch a {
	case specs.ActAllow:
		return libseccomp.ActAllow
	case specs.ActErrno:
		return libseccomp.ActErrno.SetReturnCode(code)
	case specs.ActNotify:
		return libseccomp.ActNotify
	case specs.ActKillProcess:
		return libseccomp.ActKillProcess
	}
	t.Fatalf("test cannot compile action %s", a)
	return libseccomp.ActInvalid
}

func compile(t testing.TB, p *specs.LinuxSeccomp) *libseccomp.ScmpFilter {
	t.Helper()
	def := scmpAction(t, p.DefaultAction, p.DefaultErrnoRet)
	f, err := libseccomp.NewFilter(def)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(f.Release)
	for _, a := range p.Architectures {
		names := map[specs.Arch]string{specs.ArchX86_64: "amd64", specs.ArchX86: "x86", specs.ArchX32: "x32", specs.ArchAARCH64: "arm64"}
		arch, err := libseccomp.GetArchFromString(names[a])
		if err != nil {
			t.Fatal(err)
		}
		if err := f.AddArch(arch); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.SetOptimize(2); err != nil {
		t.Fatal(err)
	}
	for _, s := range p.Syscalls {
		act := scmpAction(t, s.Action, s.ErrnoRet)
		if act == def {
			continue
		}
		var conds []libseccomp.ScmpCondition
		var used [6]bool
		shared := false
		for _, a := range s.Args {
			c, err := libseccomp.MakeCondition(a.Index, scmpOps[a.Op], a.Value, a.ValueTwo)
			if err != nil {
				t.Fatal(err)
			}
			conds = append(conds, c)
			shared = shared || used[a.Index]
			used[a.Index] = true
		}
		for _, name := range s.Names {
			nr, err := libseccomp.GetSyscallFromName(name)
			if err != nil {
				continue
			}
			switch {
			case len(conds) == 0:
				err = f.AddRule(nr, act)
			case shared:
				for _, c := range conds {
					if err = f.AddRuleConditional(nr, act, []libseccomp.ScmpCondition{c}); err != nil {
						break
					}
				}
			default:
				err = f.AddRuleConditional(nr, act, conds)
			}
			if err != nil {
				t.Fatalf("add rule for %s %v: %v", name, s.Args, err)
			}
		}
	}
	return f
}

func export(t testing.TB, f *libseccomp.ScmpFilter) []bpf.RawInstruction {
	t.Helper()
	tmp, err := os.CreateTemp(t.TempDir(), "bpf")
	if err != nil {
		t.Fatal(err)
	}
	defer tmp.Close()
	if err := f.ExportBPF(tmp); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(tmp.Name())
	if err != nil {
		t.Fatal(err)
	}
	out := make([]bpf.RawInstruction, len(b)/8)
	for i := range out {
		in := b[i*8:]
		out[i] = bpf.RawInstruction{Op: binary.NativeEndian.Uint16(in), Jt: in[2], Jf: in[3], K: binary.NativeEndian.Uint32(in[4:])}
	}
	return out
}

// program runs a filter on seccomp_data. A seccomp filter loads words in the
// machine's byte order, package bpf in the network's: words are stored so.
type program struct{ vm *bpf.VM }

func load(t testing.TB, p *specs.LinuxSeccomp) program {
	t.Helper()
	ins, ok := bpf.Disassemble(export(t, compile(t, p)))
	if !ok {
		t.Fatal("cannot disassemble the filter")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return program{vm}
}

func (p program) run(t testing.TB, arch uint32, nr int, args [6]uint64) uint32 {
	t.Helper()
	var b bytes.Buffer
	for _, w := range []uint32{uint32(nr), arch, 0, 0} {
		binary.Write(&b, binary.BigEndian, w)
	}
	for _, a := range args {
		binary.Write(&b, binary.BigEndian, []uint32{uint32(a), uint32(a >> 32)})
	}
	got, err := p.vm.Run(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

const (
	retAllow  = unix.SECCOMP_RET_ALLOW
	retNotify = unix.SECCOMP_RET_USER_NOTIF
	retErrno  = unix.SECCOMP_RET_ERRNO
)

// expected says in the kernel's words what the verdicts say about a call.
func expected(e Entry, args [6]uint64) uint32 {
	switch e.Class {
	case Allowed:
		return retAllow
	case Withheld:
		return retErrno | uint32(e.Errno)
	case AllowedByArgument:
		if e.Name == "socket" {
			args[0] &= 0xffffffff // the kernel's reading
			if args[0] >= unix.AF_MAX {
				return retErrno | uint32(unix.EPERM)
			}
		}
		if e.Engine.Allows(e.Name, args) {
			return retAllow
		}
	}
	return retNotify
}

// arguments are values at which conditions change their mind.
func arguments(name string) [][6]uint64 {
	out := [][6]uint64{{}, {^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0), ^uint64(0)}}
	switch name {
	case "socket":
		for d := range uint64(70) {
			out = append(out, [6]uint64{d}, [6]uint64{1<<32 | d}, [6]uint64{0xffffffff_00000000 | d})
		}
	case "clone", "unshare":
		for bit := range 64 {
			out = append(out, [6]uint64{1 << bit}, [6]uint64{1<<bit | 17}, [6]uint64{1<<bit | unix.CLONE_VM | unix.CLONE_NEWUSER})
		}
	case "personality":
		for _, v := range []uint64{1, 7, 8, 9, 0x20000, 0x20008, 0x20009, 0xffffffff, 1 << 32, 1<<32 | 8} {
			out = append(out, [6]uint64{v})
		}
	}
	return out
}

// domains restricts socket as moby/profiles does since 2024 (AF_ALG and
// AF_VSOCK) in place of the rule that is there.
func domains(p *specs.LinuxSeccomp) *specs.LinuxSeccomp {
	for i, s := range p.Syscalls {
		p.Syscalls[i].Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == "socket" })
	}
	for _, a := range []specs.LinuxSeccompArg{{Value: unix.AF_ALG, Op: specs.OpLessThan}, {Value: 39, Op: specs.OpEqualTo}, {Value: unix.AF_VSOCK, Op: specs.OpGreaterThan}} {
		p.Syscalls = append(p.Syscalls, specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{a}})
	}
	return p
}

func inputs(t testing.TB) map[string]Input {
	plain, widened, admin, none, newer, widenedNewer := input(t), input(t), input(t), input(t), input(t), input(t)
	widened.Widened = true
	admin.Engine = engineProfile(t, "docker-20.10-sys_admin")
	none.Engine = nil
	newer.Engine = domains(newer.Engine)
	widenedNewer.Engine, widenedNewer.Widened = domains(widenedNewer.Engine), true
	return map[string]Input{"plain": plain, "widened": widened, "sys_admin": admin, "no engine profile": none,
		"socket domains": newer, "widened, socket domains": widenedNewer}
}

func TestFilterIsWhatTheVerdictsSay(t *testing.T) {
	for name, in := range inputs(t) {
		t.Run(name, func(t *testing.T) {
			p, v := build(t, in)
			ours := load(t, p)
			var engine *program
			if in.Engine != nil {
				e := load(t, in.Engine)
				engine = &e
			}
			checked := 0
			for nr := range 600 {
				name, named := sysno.Name("amd64", nr)
				_, err := libseccomp.GetSyscallFromName(name)
				known := named && err == nil
				for _, args := range arguments(name) {
					got := ours.run(t, unix.AUDIT_ARCH_X86_64, nr, args)
					want := uint32(retErrno | uint32(unix.EPERM)) // the default; runc puts ENOSYS before it for the highest
					if known {
						i := slices.IndexFunc(v.Entries["amd64"], func(e Entry) bool { return e.Nr == nr })
						want = expected(v.Entries["amd64"][i], args)
					}
					if got != want {
						t.Errorf("%s(%#x) %d: filter says %#x, verdicts %#x", name, args[0], nr, got, want)
					}
					if engine != nil && got == retAllow {
						kernel := args
						if i, ok := intArgument[name]; ok {
							kernel[i] &= 0xffffffff
						}
						if e := engine.run(t, unix.AUDIT_ARCH_X86_64, nr, kernel); e != retAllow {
							t.Errorf("%s(%#x): allowed, but the engine says %#x", name, args[0], e)
						}
					}
					checked++
				}
			}
			if checked < 1200 {
				t.Errorf("only %d calls checked", checked)
			}
			if got := ours.run(t, unix.AUDIT_ARCH_I386, 11, [6]uint64{}); got != unix.SECCOMP_RET_KILL_THREAD {
				t.Errorf("32-bit execve: %#x", got)
			}
			if got := ours.run(t, unix.AUDIT_ARCH_X86_64, 0x40000000|59, [6]uint64{}); got == retAllow {
				t.Errorf("x32: %#x", got)
			}
		})
	}
}

// A profile without a supervisor allows, of what the plan and runc need, what
// the engine allows; nothing else; and it asks nobody.
func TestPlainFilterIsWhatThePlanAndTheEngineSay(t *testing.T) {
	all := inputs(t)
	usual := input(t)
	usual.Engine = Usual("amd64")
	all["usual profile"] = usual
	for name, in := range all {
		t.Run(name, func(t *testing.T) {
			p, err := Plain(in)
			if in.Widened && in.Engine == nil {
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			ours := load(t, p)
			engine, err := parseProfile(in.Engine)
			if err != nil {
				t.Fatal(err)
			}
			needed := map[string]bool{"execve": true}
			for _, c := range slices.Concat(in.Allow, RuntimeNeeds(in.RuncVersion, in.NoNewPrivileges)) {
				needed[c.Name] = true
			}
			allowed := 0
			for nr := range 600 {
				name, named := sysno.Name("amd64", nr)
				if _, err := libseccomp.GetSyscallFromName(name); !named || err != nil {
					continue
				}
				for _, args := range arguments(name) {
					got := ours.run(t, unix.AUDIT_ARCH_X86_64, nr, args)
					if name == "socket" && args[0] >= unix.AF_MAX {
						continue // as TestFilterIsWhatTheVerdictsSay has it
					}
					want := (needed[name] || in.Widened) && engine.rule(name).Allows(name, args)
					if (got == retAllow) != want || got == retNotify {
						t.Errorf("%s(%#x): filter says %#x, want allowed %v", name, args[0], got, want)
					}
					if !want && got&0xffff0000 != retErrno {
						t.Errorf("%s(%#x): refused with %#x", name, args[0], got)
					}
					if want {
						allowed++
					}
				}
			}
			if allowed < 50 {
				t.Errorf("only %d calls allowed", allowed)
			}
		})
	}
}

func TestFilterIsWhatTheVerdictsSayOnARM64(t *testing.T) {
	in := input(t)
	in.Arch, in.Engine.Architectures = "arm64", []specs.Arch{specs.ArchAARCH64}
	in.Engine = domains(in.Engine)
	p, v := build(t, in)
	prog := load(t, p) // covers this machine's architecture as well
	for _, e := range v.Entries["arm64"] {
		if _, err := libseccomp.GetSyscallFromNameByArch(e.Name, libseccomp.ArchARM64); err != nil {
			continue
		}
		for _, args := range arguments(e.Name) {
			if got, want := prog.run(t, unix.AUDIT_ARCH_AARCH64, e.Nr, args), expected(e, args); got != want {
				t.Errorf("%s(%#x) %d: filter says %#x, verdicts %#x", e.Name, args[0], e.Nr, got, want)
			}
		}
	}
}

func TestEngineRuleIsWhatTheEnginesFilterDoes(t *testing.T) {
	for _, name := range []string{"docker-20.10", "docker-20.10-sys_admin"} {
		for _, newer := range []bool{false, true} {
			p := engineProfile(t, name)
			if newer {
				p = domains(p)
			}
			prog := load(t, p)
			parsed, err := parseProfile(p)
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range sysno.All("amd64") {
				nr, _ := sysno.Number("amd64", call)
				if _, err := libseccomp.GetSyscallFromName(call); err != nil {
					continue
				}
				for _, args := range arguments(call) {
					if got, want := parsed.rule(call).allows(args), prog.run(t, unix.AUDIT_ARCH_X86_64, nr, args) == retAllow; got != want {
						t.Errorf("%s: %s(%#x): rule %v, filter %v", name, call, args[0], got, want)
					}
				}
			}
		}
	}
}

// Random profiles for one call. Conditions of one profile all allow, so that
// no overlap leaves the answer to libseccomp's order of tests. Several rules
// compare one argument for equality only: libseccomp before 2.6.1 merges other
// rules wrongly, in both directions (GHSA-4q85-33p6-j5g6; one in a hundred of
// such profiles), and it is the profile's words that a Rule follows. Filters of
// Build have no other conditions than that.
func TestRandomEngineRules(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	ops := []specs.LinuxSeccompOperator{specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpEqualTo, specs.OpGreaterEqual, specs.OpGreaterThan, specs.OpMaskedEqual}
	values := []uint64{0, 1, 2, 3, 1 << 31, 1<<32 - 1, 1 << 32, 1<<32 + 1, 1 << 63, ^uint64(0)}
	pick := func() uint64 { return values[rnd.IntN(len(values))] }
	const call = "ptrace"
	differ := 0
	for round := range 400 {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
		rules, ops := 1, ops
		if round%2 == 0 {
			rules, ops = 2+rnd.IntN(3), []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpMaskedEqual}
		}
		for range rules {
			s := specs.LinuxSyscall{Names: []string{call}, Action: specs.ActAllow}
			conditions := rnd.IntN(3)
			if rules > 1 {
				conditions = 1
			}
			for range conditions {
				a := specs.LinuxSeccompArg{Index: uint(rnd.IntN(3)), Op: ops[rnd.IntN(len(ops))], Value: pick()}
				if rules > 1 {
					a.Index = 0
				}
				switch a.Op {
				case specs.OpMaskedEqual:
					a.ValueTwo = a.Value & pick()
				case specs.OpEqualTo, specs.OpNotEqual:
				default:
					a.Value &= 0x7fff_ffff
				}
				s.Args = append(s.Args, a)
			}
			p.Syscalls = append(p.Syscalls, s)
		}
		parsed, err := parseProfile(p)
		if err != nil {
			t.Fatal(err)
		}
		prog := load(t, p)
		nr, _ := sysno.Number("amd64", call)
		for range 200 {
			args := [6]uint64{pick(), pick(), pick()}
			rule, filter := parsed.rule(call).allows(args), prog.run(t, unix.AUDIT_ARCH_X86_64, nr, args) == retAllow
			if rule != filter {
				differ++
				if differ < 5 {
					t.Logf("%v(%#x): rule %v, filter %v", fmt.Sprint(p.Syscalls), args, rule, filter)
				}
				break
			}
		}
	}
	if differ > 0 {
		t.Errorf("%d of 400 profiles differ", differ)
	}
}

// Recorded because the shape of the filter rests on it.
func TestLibseccompLetsTheUnconditionalRuleSwallowTheOthers(t *testing.T) {
	conditional := specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{{Value: 40, Op: specs.OpNotEqual}}}
	plain := specs.LinuxSyscall{Names: []string{"socket"}, Action: specs.ActNotify}
	for _, rules := range [][]specs.LinuxSyscall{{conditional, plain}, {plain, conditional}} {
		prog := load(t, &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: rules})
		if got := prog.run(t, unix.AUDIT_ARCH_X86_64, unix.SYS_SOCKET, [6]uint64{2}); got != retNotify {
			t.Errorf("%#x", got)
		}
	}
}

func Test32Bit(t *testing.T) {
	in := input(t)
	in.Has32 = true
	p, _ := build(t, in)
	if !slices.Equal(p.Architectures, []specs.Arch{specs.ArchX86_64, specs.ArchX86}) {
		t.Fatalf("architectures %v", p.Architectures)
	}
	prog := load(t, p)
	for claim, row := range map[string]struct {
		nr   int
		args [6]uint64
		want uint32
	}{
		"32-bit execve is notified":              {11, [6]uint64{}, retNotify},
		"32-bit ptrace is notified":              {26, [6]uint64{}, retNotify},
		"32-bit read is allowed":                 {3, [6]uint64{}, retAllow},
		"listen behind socketcall is notified":   {102, [6]uint64{4}, retNotify},
		"bind behind socketcall is allowed":      {102, [6]uint64{2}, retAllow},
		"shutdown behind socketcall is notified": {102, [6]uint64{13}, retNotify},
	} {
		if got := prog.run(t, unix.AUDIT_ARCH_I386, row.nr, row.args); got != row.want {
			t.Errorf("%s: %#x, want %#x", claim, got, row.want)
		}
	}
	_, v := build(t, in)
	app := Caller{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce}
	for nr, want := range map[int]bool{11: true, 26: false, 102: false} { // execve, ptrace, socketcall
		if d := v.Judge(Call{AuditArch: unix.AUDIT_ARCH_I386, Nr: nr}, app); d.Continue != want || d.Report == want {
			t.Errorf("32-bit call %d: %+v", nr, d)
		}
	}
	in.Widened = true
	p, v = build(t, in)
	prog = load(t, p)
	if got := prog.run(t, unix.AUDIT_ARCH_I386, 102, [6]uint64{13}); got != retAllow {
		t.Errorf("widened: socketcall %#x", got)
	}
	if d := v.Judge(Call{AuditArch: unix.AUDIT_ARCH_I386, Nr: 11}, app); !d.Continue {
		t.Errorf("widened: 32-bit execve %+v", d)
	}
	in.Widened = false
	in.Engine.Architectures = []specs.Arch{specs.ArchX86_64}
	if p, _ = build(t, in); len(p.Architectures) != 1 {
		t.Errorf("the engine does not cover 32-bit calls, the filter does: %v", p.Architectures)
	}
}

func TestAuditStopsNo32BitCallThatTheEngineAllows(t *testing.T) {
	in := input(t)
	in.Mode = record.Audit
	p, v := build(t, in)
	prog := load(t, p)
	engine, err := parseProfile(in.Engine)
	if err != nil {
		t.Fatal(err)
	}
	asked := 0
	for _, name := range names("386") {
		nr, _ := number("386", name)
		if _, err := libseccomp.GetSyscallFromNameByArch(name, libseccomp.ArchX86); err != nil || !engine.rule(name).Always() {
			continue
		}
		switch got := prog.run(t, unix.AUDIT_ARCH_I386, nr, [6]uint64{}); got {
		case retAllow:
		case retNotify:
			asked++
			if d := v.Judge(Call{AuditArch: unix.AUDIT_ARCH_I386, Nr: nr}, Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Audit}); !d.Continue {
				t.Errorf("%s: %+v", name, d)
			}
		default:
			t.Errorf("%s: %#x", name, got)
		}
	}
	if asked < 200 {
		t.Errorf("only %d calls asked for", asked)
	}
}

// A multiplexed call's arguments lie in memory, so conditions on them cannot be
// followed behind socketcall; what becomes of such rules is libseccomp's choice
// and must not be an error, nor open what the engine's own profile closes.
func Test32BitWithConditionsOnAMultiplexedCall(t *testing.T) {
	for _, mode := range []record.Mode{record.Enforce, record.Audit} {
		for _, widened := range []bool{false, true} {
			in := input(t)
			in.Engine, in.Has32, in.Mode, in.Widened = domains(in.Engine), true, mode, widened
			p, _ := build(t, in)
			ours, theirs := load(t, p), load(t, in.Engine)
			for _, args := range [][6]uint64{{1}, {2}, {4}, {13}} {
				if got := ours.run(t, unix.AUDIT_ARCH_I386, 102, args); got == retAllow && theirs.run(t, unix.AUDIT_ARCH_I386, 102, args) != retAllow {
					t.Errorf("%s, widened %v: socketcall(%d): %#x", mode, widened, args[0], got)
				}
			}
			for _, args := range arguments("socket") {
				kernel := args
				kernel[0] &= 0xffffffff
				if got := ours.run(t, unix.AUDIT_ARCH_I386, 359, args); got == retAllow && theirs.run(t, unix.AUDIT_ARCH_I386, 359, kernel) != retAllow {
					t.Errorf("%s, widened %v: 32-bit socket(%#x): %#x", mode, widened, args[0], got)
				}
			}
		}
	}
}

func TestTablesAreLibseccomps(t *testing.T) {
	for arch, scmp := range map[string]libseccomp.ScmpArch{"amd64": libseccomp.ArchAMD64, "arm64": libseccomp.ArchARM64, "386": libseccomp.ArchX86, "arm": libseccomp.ArchARM} {
		same := 0
		for _, name := range names(arch) {
			theirs, err := libseccomp.GetSyscallFromNameByArch(name, scmp)
			if err != nil {
				continue // newer than the library
			}
			if theirs < 0 {
				continue // reached through a multiplexer too, which libseccomp has pseudo numbers for
			}
			if ours, _ := number(arch, name); ours != int(theirs) {
				t.Errorf("%s %s: %d, libseccomp says %d", arch, name, ours, theirs)
			}
			same++
		}
		if same < 280 {
			t.Errorf("%s: only %d names in common", arch, same)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	for name, in := range map[string]Input{"declarun": input(b)} {
		p, _ := build(b, in)
		b.Run(name, func(b *testing.B) {
			n := 0
			for b.Loop() {
				n = len(export(b, compile(b, p)))
			}
			b.ReportMetric(float64(n), "instructions")
		})
	}
	p := engineProfile(b, "docker-20.10")
	b.Run("docker default", func(b *testing.B) {
		n := 0
		for b.Loop() {
			n = len(export(b, compile(b, p)))
		}
		b.ReportMetric(float64(n), "instructions")
	})
}

var _ = record.Enforce
