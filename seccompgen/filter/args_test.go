package filter

import (
	"math/rand/v2"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// arg is a proved argument.
func arg(index uint8, values ...uint32) plan.Arg {
	a := plan.Arg{Index: index}
	for _, v := range values {
		a.Values = append(a.Values, plan.ArgValue{Value: v})
	}
	return a
}

func with(name string, phase record.Phase, args ...plan.Arg) plan.Syscall {
	return plan.Syscall{Name: name, Phase: phase, Args: args}
}

// near are values at which rules for values change their mind.
func near(rnd *rand.Rand, values []uint32) []uint32 {
	out := []uint32{0, 1, ^uint32(0), 1 << 31}
	for _, v := range values {
		out = append(out, v, v+1, v-1, ^v)
		for bit := range 32 {
			out = append(out, v^1<<bit, v^1<<bit^1<<rnd.IntN(32))
		}
	}
	for range 200 {
		out = append(out, rnd.Uint32())
	}
	return out
}

func randomValues(rnd *rand.Rand) []uint32 {
	var out []uint32
	base := rnd.Uint32()
	for range 1 + rnd.IntN(16) {
		switch rnd.IntN(3) {
		case 0:
			out = append(out, rnd.Uint32())
		case 1:
			out = append(out, base&^0xff|rnd.Uint32N(256))
		default:
			out = append(out, rnd.Uint32N(64))
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Of any set, a rule of exactly one of the two kinds holds for every number.
func TestRestrictionIsSpeltOutInFull(t *testing.T) {
	rnd := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		r := Restriction{1, randomValues(rnd)}
		allow, notify := r.kernel(^uint32(0))
		for _, v := range near(rnd, r.Values) {
			match := func(rules [][]specs.LinuxSeccompArg) bool {
				return slices.ContainsFunc(rules, func(all []specs.LinuxSeccompArg) bool { return holds(all, [6]uint64{0, uint64(v) | 7<<32}) })
			}
			in := slices.Contains(r.Values, v)
			if match(allow) != in || match(notify) == in {
				t.Fatalf("%#x of %#x: allowed %v, notified %v", v, r.Values, match(allow), match(notify))
			}
		}
	}
}

// Which argument of which call is held where: rows are claims.
func TestArguments(t *testing.T) {
	serving := Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	starting, operator, health, audit, runc := serving, serving, serving, serving, serving
	starting.Phase, operator.Identity, health.Identity, audit.Mode, runc.BeforeExec = record.Starting, record.Operator, record.HealthCheck, record.Audit, true
	ioctl := with("ioctl", record.Serving, arg(1, 0x5401, 0x5421))
	for _, row := range []struct {
		claim   string
		change  func(*Input)
		call    Call
		by      Caller
		goes    bool
		verdict record.Verdict
	}{
		{"a value that is passed", nil, call(t, "ioctl", 0, 0x5401), serving, true, ""},
		{"one with bits that the kernel does not look at", nil, call(t, "ioctl", 0, 1<<32|0x5421), serving, true, ""},
		{"one that is not", nil, call(t, "ioctl", 0, unix.TIOCSTI), serving, false, record.Denied},
		{"nor before the container serves", nil, call(t, "ioctl", 0, unix.TIOCSTI), starting, false, record.Denied},
		{"nor by a health check", nil, call(t, "ioctl", 0, unix.TIOCSTI), health, false, record.Denied},
		{"an operator's tools are others", nil, call(t, "ioctl", 0, unix.TIOCSTI), operator, true, ""},
		{"runc is not held to it", nil, call(t, "ioctl", 0, unix.TIOCSTI), runc, true, ""},
		{"audit only looks", nil, call(t, "ioctl", 0, unix.TIOCSTI), audit, true, record.Observed},
		{"a wide plan holds nobody to it", func(in *Input) { in.Widened = true }, call(t, "ioctl", 0, unix.TIOCSTI), serving, true, ""},
		{"an argument that was not proved", func(in *Input) { in.Allow[len(in.Allow)-1].Args[0].Unproved = &plan.Site{} }, call(t, "ioctl", 0, unix.TIOCSTI), serving, true, ""},
		{"the same call from elsewhere with anything", func(in *Input) { in.Allow = append(in.Allow, with("ioctl", record.Serving)) }, call(t, "ioctl", 0, unix.TIOCSTI), serving, true, ""},
		{"the same call from elsewhere with another value", func(in *Input) { in.Allow = append(in.Allow, with("ioctl", record.Serving, arg(1, unix.TIOCSTI))) }, call(t, "ioctl", 0, unix.TIOCSTI), serving, true, ""},
		{"a call of the start is held to it while it lasts", func(in *Input) { in.Allow[len(in.Allow)-1].Phase = record.Starting }, call(t, "ioctl", 0, unix.TIOCSTI), starting, false, record.Denied},
		{"and then goes", func(in *Input) { in.Allow[len(in.Allow)-1].Phase = record.Starting }, call(t, "ioctl", 0, 0x5401), serving, false, record.Denied},
	} {
		in := input(t)
		in.Allow = append(in.Allow, ioctl)
		in.Allow[len(in.Allow)-1].Args = slices.Clone(ioctl.Args)
		if row.change != nil {
			row.change(&in)
		}
		_, v := build(t, in)
		d := v.Judge(row.call, row.by)
		if d.Continue != row.goes || d.Verdict != row.verdict || d.Report != (row.verdict != "") || d.Report && d.Reason == "" {
			t.Errorf("%s: %+v", row.claim, d)
		}
	}
}

func TestArgumentsAndTheEnginesProfile(t *testing.T) {
	in := input(t)
	in.Engine = domains(in.Engine)
	in.Allow = slices.DeleteFunc(in.Allow, func(s plan.Syscall) bool { return s.Name == "socket" || s.Name == "personality" })
	in.Allow = append(in.Allow,
		with("socket", record.Serving, arg(0, unix.AF_INET, unix.AF_ALG), arg(1, unix.SOCK_STREAM)),
		with("personality", record.Serving, arg(0, 8, 9)))
	p, v := build(t, in)
	rules := func(name string, a specs.LinuxSeccompAction) (n int) {
		for _, s := range p.Syscalls {
			if slices.Contains(s.Names, name) && s.Action == a {
				n++
			}
		}
		return n
	}
	if rules("socket", specs.ActAllow) != 1 || rules("personality", specs.ActAllow) != 1 {
		t.Errorf("what the engine refuses is allowed: %d, %d", rules("socket", specs.ActAllow), rules("personality", specs.ActAllow))
	}
	by := Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	for _, c := range []Call{call(t, "socket", unix.AF_ALG), call(t, "socket", unix.AF_UNIX), call(t, "personality", 9), call(t, "personality", 0)} {
		if d := v.Judge(c, by); d.Continue || d.Verdict != record.Denied {
			t.Errorf("%+v: %+v", c, d)
		}
	}
}

func TestParseVerdictsRefusesASeventhArgument(t *testing.T) {
	if _, err := ParseVerdicts([]byte(`{"entries":{"amd64":[{"nr":2,"args":[{"index":6,"values":[1]}]}]}}`)); err == nil {
		t.Error("parsed")
	}
}
