package filter

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// The profiles in testdata are what dockerd 20.10.24 wrote into config.json,
// without further flags and with --cap-add SYS_ADMIN.
func engineProfile(t testing.TB, name string) *specs.LinuxSeccomp {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".json")
	if err != nil {
		t.Fatal(err)
	}
	p := new(specs.LinuxSeccomp)
	if err := json.Unmarshal(b, p); err != nil {
		t.Fatal(err)
	}
	return p
}

func needed(phase record.Phase, names ...string) []plan.Syscall {
	var out []plan.Syscall
	for _, n := range names {
		out = append(out, plan.Syscall{Name: n, Phase: phase})
	}
	return out
}

// server is about what a database server needs.
func server() []plan.Syscall {
	return slices.Concat(
		needed(record.Serving, "read", "write", "close", "openat", "futex", "mmap", "brk", "clone", "clone3", "socket", "bind",
			"listen", "accept4", "epoll_wait", "sendto", "recvfrom", "exit_group", "personality", "add_key", "getpid"),
		needed(record.Starting, "execve", "setuid", "setgid", "setgroups", "chdir", "chroot", "mbind"))
}

func input(t testing.TB) Input {
	return Input{Arch: "amd64", Allow: server(), Engine: engineProfile(t, "docker-20.10"), Mode: record.Enforce,
		RuncVersion: "1.1.5", ListenerPath: "/run/declarun/notify.sock", ListenerMetadata: "token"}
}

func build(t testing.TB, in Input) (*specs.LinuxSeccomp, *Verdicts) {
	t.Helper()
	p, v, err := Build(in)
	if err != nil {
		t.Fatal(err)
	}
	return p, v
}

func call(t testing.TB, name string, args ...uint64) Call {
	t.Helper()
	nr, ok := sysno.Number("amd64", name)
	if !ok {
		t.Fatalf("no call %s", name)
	}
	c := Call{Nr: nr}
	copy(c.Args[:], args)
	return c
}

// action gives what the kernel does with a call by name alone.
func action(p *specs.LinuxSeccomp, name string) (specs.LinuxSeccompAction, int) {
	for _, s := range p.Syscalls {
		if slices.Contains(s.Names, name) {
			if len(s.Args) > 0 {
				return "by argument", 0
			}
			if s.ErrnoRet != nil {
				return s.Action, int(*s.ErrnoRet)
			}
			return s.Action, 0
		}
	}
	return p.DefaultAction, int(unix.EPERM)
}

func TestBuild(t *testing.T) {
	p, v := build(t, input(t))
	for _, row := range []struct {
		claim, name string
		action      specs.LinuxSeccompAction
		errno       int
		class       Class
	}{
		{"what the server needs is allowed in the kernel", "accept4", specs.ActAllow, 0, Allowed},
		{"write is allowed though nobody may ask", "write", specs.ActAllow, 0, Allowed},
		{"a signal handler may return", "rt_sigreturn", specs.ActAllow, 0, Allowed},
		{"execve is notified", "execve", specs.ActNotify, 0, StartingOnly},
		{"execveat that nothing needs is notified", "execveat", specs.ActNotify, 0, Undeclared},
		{"listen is notified though it is needed for good", "listen", specs.ActNotify, 0, Judged},
		{"start-up calls are notified", "setuid", specs.ActNotify, 0, StartingOnly},
		{"what only runc needs is notified", "capset", specs.ActNotify, 0, RuntimeOnly},
		{"what nothing needs is notified", "ptrace", specs.ActNotify, 0, Undeclared},
		{"what the engine refuses as well is notified", "kexec_load", specs.ActNotify, 0, Undeclared},
		{"needed, but withheld with an errno of its own: answered in the kernel", "clone3", specs.ActErrno, 38, Withheld},
		{"needed, but withheld: the default answers", "add_key", specs.ActErrno, int(unix.EPERM), Withheld},
		{"namespaces stay closed", "clone", "by argument", 0, AllowedByArgument},
		{"domains stay as the engine has them", "socket", specs.ActAllow, 0, Allowed},
		{"conditions that no rule can spell are judged", "personality", specs.ActNotify, 0, Judged},
	} {
		if a, e := action(p, row.name); a != row.action || e != row.errno {
			t.Errorf("%s: %s: %s %d, want %s %d", row.claim, row.name, a, e, row.action, row.errno)
		}
		i := slices.IndexFunc(v.Entries["amd64"], func(e Entry) bool { return e.Name == row.name })
		if i < 0 || v.Entries["amd64"][i].Class != row.class {
			t.Errorf("%s: %s: class %v, want %s", row.claim, row.name, v.Entries["amd64"][i].Class, row.class)
		}
	}
	if p.DefaultAction != specs.ActErrno || p.DefaultErrnoRet != nil {
		t.Errorf("default action %s %v, want ERRNO", p.DefaultAction, p.DefaultErrnoRet)
	}
	if !slices.Equal(p.Architectures, []specs.Arch{specs.ArchX86_64}) {
		t.Errorf("architectures %v", p.Architectures)
	}
	if p.Flags != nil {
		t.Errorf("flags %v take the runtime's default away", p.Flags)
	}
	seen := map[string]bool{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			if len(s.Args) == 0 && seen[n] {
				t.Errorf("%s has two rules, one of them without conditions", n)
			}
			seen[n] = true
			if n == "write" && s.Action == specs.ActNotify {
				t.Error("runc refuses to notify write")
			}
		}
		if s.Action == specs.ActErrno && (s.ErrnoRet == nil || *s.ErrnoRet == uint(unix.EPERM)) {
			t.Errorf("rule %v equals the default action", s.Names)
		}
	}
	for _, n := range sysno.All("amd64") {
		if a, _ := action(p, n); !seen[n] && (a != specs.ActErrno || !slices.Contains(v.Names(Withheld), n)) {
			t.Errorf("%s is in no rule, and not withheld", n)
		}
	}
}

func TestJudge(t *testing.T) {
	_, v := build(t, input(t))
	app := func(p record.Phase) Caller {
		return Caller{Identity: record.Application, Phase: p, Mode: record.Enforce}
	}
	starting, serving := app(record.Starting), app(record.Serving)
	as := func(c Caller, id record.Identity) Caller { c.Identity = id; return c }
	in := func(c Caller, m record.Mode) Caller { c.Mode = m; return c }
	runc := starting
	runc.BeforeExec = true
	const newuser = unix.CLONE_NEWUSER
	for _, row := range []struct {
		claim   string
		call    Call
		by      Caller
		goes    bool
		errno   int32
		verdict record.Verdict // "": not reported
	}{
		{"a start-up call goes through while starting", call(t, "setuid"), starting, true, 0, ""},
		{"and is refused when serving", call(t, "setuid"), serving, false, int32(unix.EPERM), record.Denied},
		{"execve for start-up is refused when serving", call(t, "execve"), serving, false, int32(unix.EPERM), record.Denied},
		{"chroot is the start-up's only", call(t, "chroot"), serving, false, int32(unix.EPERM), record.Denied},
		{"listen goes through for good", call(t, "listen"), serving, true, 0, ""},
		{"an undeclared call is refused from the start", call(t, "ptrace"), starting, false, int32(unix.EPERM), record.Denied},
		{"what libraries do without is ENOSYS", call(t, "memfd_create"), serving, false, int32(unix.ENOSYS), record.Denied},
		{"io_uring is ENOSYS though the engine says EPERM", call(t, "io_uring_setup"), serving, false, int32(unix.ENOSYS), record.Denied},
		{"newer than the engine's profile is ENOSYS", call(t, "cachestat"), serving, false, int32(unix.ENOSYS), record.Denied},
		{"a namespace is refused even to clone", call(t, "clone", newuser), starting, false, int32(unix.EPERM), record.Denied},
		{"personality the engine allows", call(t, "personality", 0xffffffff), serving, true, 0, ""},
		{"personality the engine refuses", call(t, "personality", 0x40000), serving, false, int32(unix.EPERM), record.Denied},
		{"personality with junk above 32 bits", call(t, "personality", 1<<32|8), serving, false, int32(unix.EPERM), record.Denied},
		{"withheld is no deviation", call(t, "add_key"), serving, false, int32(unix.EPERM), ""},
		{"a number without a name", Call{Nr: 100000}, starting, false, int32(unix.ENOSYS), record.Denied},
		{"another architecture", Call{AuditArch: unix.AUDIT_ARCH_I386, Nr: 11}, starting, false, int32(unix.ENOSYS), record.Denied},

		{"audit lets through what the engine allows", call(t, "ptrace"), in(serving, record.Audit), true, 0, record.Observed},
		{"audit does not widen the engine's profile", call(t, "kexec_load"), in(serving, record.Audit), false, int32(unix.EPERM), record.Observed},
		{"off neither widens it nor says so", call(t, "kexec_load"), in(serving, record.Off), false, int32(unix.EPERM), ""},
		{"off lets through what the engine allows", call(t, "ptrace"), in(serving, record.Off), true, 0, ""},
		{"an undecided mode enforces", call(t, "ptrace"), in(serving, ""), false, int32(unix.EPERM), record.Denied},
		{"an undecided phase is serving", call(t, "setuid"), app(""), false, int32(unix.EPERM), record.Denied},
		{"an undecided identity gets no more than the application", call(t, "ptrace"), as(serving, ""), false, int32(unix.EPERM), record.Denied},

		{"runc drops privileges", call(t, "capset"), runc, true, 0, ""},
		{"runc may do what the engine allows", call(t, "ptrace"), runc, true, 0, ""},
		{"runc may not do what the engine refuses, and its probes are not reported", call(t, "kexec_load"), runc, false, int32(unix.EPERM), ""},
		{"after the first execve runc's calls are gone", call(t, "capset"), starting, false, int32(unix.EPERM), record.Denied},

		{"an operator may do what the image does", call(t, "setuid"), as(serving, record.Operator), true, 0, ""},
		{"an operator may do more, and that is told", call(t, "ptrace"), as(serving, record.Operator), true, 0, record.Reported},
		{"an operator has the engine's profile too", call(t, "kexec_load"), as(serving, record.Operator), false, int32(unix.EPERM), record.Denied},
		{"an operator gets no namespaces either", call(t, "clone", newuser), as(serving, record.Operator), false, int32(unix.EPERM), record.Denied},
		{"a health check starts programs when serving", call(t, "execve"), as(serving, record.HealthCheck), true, 0, ""},
		{"a health check is held to the plan", call(t, "ptrace"), as(serving, record.HealthCheck), false, int32(unix.EPERM), record.Denied},
	} {
		d := v.Judge(row.call, row.by)
		if d.Continue != row.goes || d.Errno != row.errno || d.Verdict != row.verdict || d.Report != (row.verdict != "") {
			t.Errorf("%s: %+v", row.claim, d)
		}
		if d.Report && d.Reason == "" {
			t.Errorf("%s: no reason", row.claim)
		}
	}
	var none *Verdicts
	if d := none.Judge(call(t, "read"), starting); d.Continue || d.Errno == 0 {
		t.Errorf("no verdicts: %+v", d)
	}
	if d := new(Verdicts).Judge(call(t, "read"), starting); d.Continue || d.Errno == 0 {
		t.Errorf("zero verdicts: %+v", d)
	}
}

// What a program needs only before its loop is asked each time, and refused to
// its processes that are in the loop.
func TestUntilLoop(t *testing.T) {
	until := func(phase record.Phase, names ...string) (out []plan.Syscall) {
		for _, s := range needed(phase, names...) {
			s.UntilLoop = true
			out = append(out, s)
		}
		return out
	}
	in := input(t)
	in.Allow = slices.Concat(needed(record.Serving, "read", "futex", "setgid"),
		until(record.Serving, "write", "setuid", "setgid", "rt_sigreturn", "personality", "add_key", "execve", "listen"), until(record.Starting, "chroot"))
	p, v := build(t, in)
	for name, want := range map[string]specs.LinuxSeccompAction{
		"setuid": specs.ActNotify, "personality": specs.ActNotify, "chroot": specs.ActNotify, "execve": specs.ActNotify, "listen": specs.ActNotify,
		"write": specs.ActAllow, "rt_sigreturn": specs.ActAllow, "setgid": specs.ActAllow, "read": specs.ActAllow} {
		if a, _ := action(p, name); a != want {
			t.Errorf("%s: %s, want %s", name, a, want)
		}
	}
	starting := Caller{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce}
	serving := Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	loop := func(c Caller) Caller { c.InLoop = "/usr/sbin/served"; return c }
	as := func(c Caller, id record.Identity) Caller { c.Identity = id; return c }
	in1 := func(c Caller, m record.Mode) Caller { c.Mode = m; return c }
	runc := loop(starting)
	runc.BeforeExec = true
	for _, row := range []struct {
		claim   string
		call    Call
		by      Caller
		goes    bool
		verdict record.Verdict
	}{
		{"who is not proved keeps it while starting", call(t, "setuid"), starting, true, ""},
		{"and when serving", call(t, "setuid"), serving, true, ""},
		{"who is proved is refused", call(t, "setuid"), loop(serving), false, record.Denied},
		{"in any phase", call(t, "setuid"), loop(starting), false, record.Denied},
		{"also what starts a program", call(t, "execve"), loop(serving), false, record.Denied},
		{"also listen", call(t, "listen"), loop(serving), false, record.Denied},
		{"what another entry needs for good stays", call(t, "setgid"), loop(serving), true, ""},
		{"what only start-up needs too, before it is retired", call(t, "chroot"), loop(starting), false, record.Denied},
		{"and until then it goes", call(t, "chroot"), starting, true, ""},
		{"and it is retired from all", call(t, "chroot"), serving, false, record.Denied},
		{"the engine's conditions come first", call(t, "personality", 0x40000), serving, false, record.Denied},
		{"an operator is not concerned", call(t, "setuid"), as(loop(serving), record.Operator), true, ""},
		{"nor the health check", call(t, "setuid"), as(loop(serving), record.HealthCheck), true, ""},
		{"nor the runtime", call(t, "setuid"), runc, true, ""},
		{"in audit it is told", call(t, "setuid"), in1(loop(serving), record.Audit), true, record.Observed},
		{"and off says nothing", call(t, "setuid"), in1(loop(serving), record.Off), true, ""},
	} {
		d := v.Judge(row.call, row.by)
		if d.Continue != row.goes || d.Verdict != row.verdict || d.Report != (row.verdict != "") || !d.Continue && d.Errno == 0 {
			t.Errorf("%s: %+v", row.claim, d)
		}
	}
	if d := v.Judge(call(t, "setuid"), loop(serving)); !strings.Contains(d.Reason, "/usr/sbin/served") {
		t.Errorf("reason: %s", d.Reason)
	}
	if !v.LoopsMatter() || !v.UntilLoop(call(t, "setuid")) || v.UntilLoop(call(t, "setgid")) {
		t.Error("which calls depend on the loop")
	}
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if back, err := ParseVerdicts(data); err != nil || !back.UntilLoop(call(t, "setuid")) {
		t.Errorf("read back: %v", err)
	}
	// Where sites are unresolved nobody knows what the loop needs.
	in.Widened = true
	p, v = build(t, in)
	if a, _ := action(p, "setuid"); a != specs.ActAllow || v.LoopsMatter() {
		t.Errorf("widened: %s", a)
	}
	if (*Verdicts)(nil).LoopsMatter() {
		t.Error("nothing is taken away by no verdicts")
	}
}

func TestWidened(t *testing.T) {
	in := input(t)
	in.Widened = true
	p, v := build(t, in)
	for name, want := range map[string]specs.LinuxSeccompAction{
		"ptrace": specs.ActAllow, "setuid": specs.ActAllow, "mbind": specs.ActNotify, "execve": specs.ActNotify,
		"execveat": specs.ActNotify, "listen": specs.ActNotify, "kexec_load": specs.ActNotify, "clone": "by argument",
	} {
		if a, _ := action(p, name); name != "mbind" && a != want {
			t.Errorf("%s: %s, want %s", name, a, want)
		}
	}
	serving := Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	if d := v.Judge(call(t, "execve"), serving); !d.Continue {
		t.Errorf("a wide container may run programs when serving: %+v", d)
	}
	if d := v.Judge(call(t, "kexec_load"), serving); d.Continue || d.Verdict != record.Denied {
		t.Errorf("wide is not wider than the engine: %+v", d)
	}
}

func TestNoEngineProfile(t *testing.T) {
	in := input(t)
	in.Engine = nil
	p, _ := build(t, in)
	for name, want := range map[string]specs.LinuxSeccompAction{
		"add_key": specs.ActAllow, "clone": specs.ActAllow, "clone3": specs.ActAllow, "kexec_load": specs.ActNotify, "mbind": specs.ActNotify} {
		if a, _ := action(p, name); a != want {
			t.Errorf("%s: %s, want %s", name, a, want)
		}
	}
}

func TestEngineProfiles(t *testing.T) {
	one := uint(0)
	five := uint(5)
	arg := func(i uint, op specs.LinuxSeccompOperator, v, w uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Index: i, Op: op, Value: v, ValueTwo: w}
	}
	rule := func(a specs.LinuxSeccompAction, args ...specs.LinuxSeccompArg) specs.LinuxSyscall {
		return specs.LinuxSyscall{Names: []string{"ptrace"}, Action: a, Args: args}
	}
	for _, row := range []struct {
		claim  string
		def    specs.LinuxSeccompAction
		rules  []specs.LinuxSyscall
		args   [6]uint64
		allows bool
		kernel specs.LinuxSeccompAction // ptrace needed by the plan
	}{
		{"conditions on two arguments must both hold", specs.ActErrno,
			[]specs.LinuxSyscall{rule(specs.ActAllow, arg(0, specs.OpEqualTo, 1, 0), arg(1, specs.OpEqualTo, 2, 0))}, [6]uint64{1, 3}, false, specs.ActNotify},
		{"conditions on one argument are alternatives", specs.ActErrno,
			[]specs.LinuxSyscall{rule(specs.ActAllow, arg(0, specs.OpEqualTo, 1, 0), arg(0, specs.OpEqualTo, 2, 0))}, [6]uint64{2}, true, specs.ActNotify},
		{"so are all the others of that rule", specs.ActErrno,
			[]specs.LinuxSyscall{rule(specs.ActAllow, arg(0, specs.OpEqualTo, 1, 0), arg(0, specs.OpEqualTo, 2, 0), arg(1, specs.OpEqualTo, 9, 0))}, [6]uint64{7, 9}, true, specs.ActNotify},
		{"a refusal wins where rules overlap", specs.ActErrno,
			[]specs.LinuxSyscall{rule(specs.ActAllow, arg(0, specs.OpGreaterThan, 1, 0)), {Names: []string{"ptrace"}, Action: specs.ActErrno, ErrnoRet: &five, Args: []specs.LinuxSeccompArg{arg(0, specs.OpEqualTo, 5, 0)}}},
			[6]uint64{5}, false, specs.ActNotify},
		{"a rule without conditions wins over one with", specs.ActErrno,
			[]specs.LinuxSyscall{rule(specs.ActAllow, arg(0, specs.OpEqualTo, 1, 0)), rule(specs.ActAllow)}, [6]uint64{9}, true, specs.ActAllow},
		{"a deny-list's condition", specs.ActAllow, []specs.LinuxSyscall{rule(specs.ActErrno, arg(0, specs.OpEqualTo, 1, 0))}, [6]uint64{1}, false, specs.ActNotify},
		{"a deny-list's rest", specs.ActAllow, []specs.LinuxSyscall{rule(specs.ActErrno, arg(0, specs.OpEqualTo, 1, 0))}, [6]uint64{2}, true, specs.ActNotify},
		{"a kill stays a kill", specs.ActAllow, []specs.LinuxSyscall{rule(specs.ActKillProcess)}, [6]uint64{}, false, specs.ActKillProcess},
		{"a faked success stays one", specs.ActAllow, []specs.LinuxSyscall{{Names: []string{"ptrace"}, Action: specs.ActErrno, ErrnoRet: &one}}, [6]uint64{}, false, specs.ActErrno},
		{"logging is allowing", specs.ActErrno, []specs.LinuxSyscall{rule(specs.ActLog)}, [6]uint64{}, true, specs.ActAllow},
		{"tracing is not", specs.ActErrno, []specs.LinuxSyscall{rule(specs.ActTrace)}, [6]uint64{}, false, specs.ActErrno},
	} {
		in := input(t)
		in.Engine = &specs.LinuxSeccomp{DefaultAction: row.def, Syscalls: row.rules}
		in.Allow = needed(record.Serving, "ptrace")
		p, v := build(t, in)
		d := v.Judge(call(t, "ptrace", row.args[:]...), Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce})
		if d.Continue != row.allows {
			t.Errorf("%s: %+v", row.claim, d)
		}
		if a, _ := action(p, "ptrace"); a != row.kernel {
			t.Errorf("%s: kernel rule %s, want %s", row.claim, a, row.kernel)
		}
	}
}

func TestBuildRefuses(t *testing.T) {
	for claim, change := range map[string]func(*Input){
		"no mode":                         func(in *Input) { in.Mode = "" },
		"no listener":                     func(in *Input) { in.ListenerPath = "" },
		"an unknown architecture":         func(in *Input) { in.Arch = "vax" },
		"an engine without this machine":  func(in *Input) { in.Engine.Architectures = []specs.Arch{specs.ArchX86} },
		"an action that nobody knows":     func(in *Input) { in.Engine.Syscalls[0].Action = "SCMP_ACT_MAYBE" },
		"an operator that nobody knows":   func(in *Input) { in.Engine.Syscalls[2].Args[0].Op = "SCMP_CMP_LIKE" },
		"a seventh argument":              func(in *Input) { in.Engine.Syscalls[2].Args[0].Index = 6 },
		"an engine's own default NOTIFY":  func(in *Input) { in.Engine.DefaultAction = specs.ActNotify },
		"a profile with a listener":       func(in *Input) { in.Engine.ListenerPath = "/run/other.sock" },
		"a profile that notifies a call.": func(in *Input) { in.Engine.Syscalls[0].Action = specs.ActNotify },
	} {
		in := input(t)
		change(&in)
		if p, v, err := Build(in); err == nil || p != nil || v != nil {
			t.Errorf("%s: built", claim)
		} else {
			var c *ListenerConflict
			if errors.As(err, &c) && c.Remedy() == "" {
				t.Errorf("%s: no remedy", claim)
			}
		}
	}
}

func TestOffLeavesTheEnginesProfile(t *testing.T) {
	in := input(t)
	in.Mode = record.Off
	p, v, err := Build(in)
	if err != nil || p != in.Engine || v != nil {
		t.Errorf("%v %v %v", p, v, err)
	}
}

func TestVerdictsSurviveJSON(t *testing.T) {
	_, v := build(t, input(t))
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseVerdicts(b)
	if err != nil {
		t.Fatal(err)
	}
	for nr := range 500 {
		for _, a := range []uint64{0, 8, 40, 1 << 28, 1<<32 | 40} {
			for _, by := range []Caller{{}, {Identity: record.Operator}, {Identity: record.Application, Phase: record.Starting, Mode: record.Audit}} {
				c := Call{Nr: nr, Args: [6]uint64{a}}
				if v.Judge(c, by) != back.Judge(c, by) {
					t.Fatalf("call %d: differs after JSON", nr)
				}
			}
		}
	}
	t.Logf("%d bytes", len(b))
	for _, bad := range []string{`{"entries":{"amd64":[{"nr":2},{"nr":1}]}}`, `{"entries":{"amd64":[{"nr":2,"engine":{"allowed":[[{"index":6}]]}}]}}`, `[]`} {
		if _, err := ParseVerdicts([]byte(bad)); err == nil {
			t.Errorf("parsed %s", bad)
		}
	}
}

func TestFlags(t *testing.T) {
	in := input(t)
	in.WaitKillable = true
	p, _ := build(t, in)
	if !slices.Equal(p.Flags, []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagSpecAllow, specs.LinuxSeccompFlagWaitKillableRecv}) {
		t.Errorf("flags %v", p.Flags)
	}
	in.Engine.Flags = []specs.LinuxSeccompFlag{}
	if p, _ = build(t, in); !slices.Equal(p.Flags, []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}) {
		t.Errorf("an engine that asks for no flags: %v", p.Flags)
	}
}

func TestUnknownToTheRuntimesLibrary(t *testing.T) {
	in := input(t)
	in.Allow = append(in.Allow, needed(record.Serving, "cachestat", "futex_waitv")...)
	in.Known = func(n string) bool { return n != "cachestat" }
	if _, v := build(t, in); !slices.Equal(v.Unknown, []string{"cachestat"}) {
		t.Errorf("unknown %v", v.Unknown)
	}
}

func TestRuntimeNeeds(t *testing.T) {
	for _, row := range []struct {
		version   string
		nnp       bool
		has, lack string
	}{
		{"1.1.5", false, "setgroups", "openat2"},
		{"1.1.5", true, "fstatfs", "setgroups"},
		{"1.5.1", true, "openat2", "capset"},
		{"", false, "openat2", ""},
		{"nonsense", false, "openat2", ""},
	} {
		needs := RuntimeNeeds(row.version, row.nnp)
		has := func(n string) bool {
			return slices.ContainsFunc(needs, func(s plan.Syscall) bool { return s.Name == n })
		}
		if !has(row.has) || has(row.lack) {
			t.Errorf("%+v: %v", row, needs)
		}
		for _, n := range needs {
			if _, ok := sysno.Number("amd64", n.Name); !ok {
				t.Errorf("%s is no call", n.Name)
			}
			if len(n.Origins) == 0 || n.Origins[0].Source != record.FromRuntime {
				t.Errorf("%s has no origin", n.Name)
			}
		}
	}
	for n := range answersENOSYS {
		if _, ok := sysno.Number("amd64", n); !ok {
			t.Errorf("errno table: %s is no call", n)
		}
	}
}

func TestARM64(t *testing.T) {
	in := input(t)
	in.Arch = "arm64"
	in.Engine.Architectures = []specs.Arch{specs.ArchAARCH64, specs.ArchARM}
	p, v := build(t, in)
	if a, _ := action(p, "accept4"); a != specs.ActAllow || !slices.Equal(p.Architectures, []specs.Arch{specs.ArchAARCH64}) {
		t.Errorf("%s %v", a, p.Architectures)
	}
	if len(v.Entries["arm64"]) < 300 {
		t.Errorf("%d entries", len(v.Entries["arm64"]))
	}
}

// The order in which libseccomp takes rules quickest changes none of them.
func TestOrderOfRules(t *testing.T) {
	for _, has32 := range []bool{false, true} {
		in := input(t)
		in.Has32 = has32
		by := func(p *specs.LinuxSeccomp) map[string]string {
			out := map[string]string{}
			for _, s := range p.Syscalls {
				for _, name := range s.Names {
					out[name] += fmt.Sprintln(s.Action, s.ErrnoRet != nil && *s.ErrnoRet != 0, s.Args)
				}
			}
			return out
		}
		p, v := build(t, in)
		before, verdicts, err := grouped(in)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(by(p), by(before)) || !reflect.DeepEqual(v, verdicts) || len(by(p)) < 300 {
			t.Error("in another order the rules are others")
		}
		last := 1 << 30
		for _, s := range p.Syscalls {
			for _, name := range s.Names {
				nr, ok := number("amd64", name)
				if !ok {
					nr = -1
				}
				if nr > last {
					t.Errorf("%s, %d, comes behind %d", name, nr, last)
				}
				last = nr
			}
			if len(s.Args) > 0 && len(s.Names) != 1 {
				t.Errorf("conditions for %v", s.Names)
			}
		}
	}
}

func BenchmarkBuild(b *testing.B) {
	in := input(b)
	for b.Loop() {
		if _, _, err := Build(in); err != nil {
			b.Fatal(err)
		}
	}
	p, v := build(b, in)
	rules := 0
	for _, s := range p.Syscalls {
		rules += len(s.Names)
	}
	b.ReportMetric(float64(rules), "rules")
	b.ReportMetric(float64(len(v.Names(Allowed, AllowedByArgument))), "allowed")
}

// FuzzBuild: whatever an engine writes, nothing panics, and nothing is let
// through that its profile refuses.
func FuzzBuild(f *testing.F) {
	for _, name := range []string{"docker-20.10", "docker-20.10-sys_admin"} {
		b, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
	}
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["ptrace","write"],"action":"SCMP_ACT_ERRNO","errnoRet":0,"args":[{"index":1,"value":7,"op":"SCMP_CMP_LT"}]}]}`), false)
	f.Add([]byte(`{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":70000,"syscalls":[{"names":["socket"],"action":"SCMP_ACT_LOG","args":[{"index":5,"value":18446744073709551615,"valueTwo":1,"op":"SCMP_CMP_MASKED_EQ"}]}]}`), true)
	f.Fuzz(func(t *testing.T, raw []byte, widened bool) {
		engine := new(specs.LinuxSeccomp)
		if json.Unmarshal(raw, engine) != nil {
			return
		}
		in := Input{Arch: "amd64", Allow: server(), Widened: widened, Engine: engine, Mode: record.Audit, ListenerPath: "/s"}
		p, v, err := Build(in)
		if err != nil {
			return
		}
		for _, s := range p.Syscalls {
			if s.Action == specs.ActNotify && slices.Contains(s.Names, "write") {
				t.Fatal("write is notified")
			}
		}
		parsed, err := parseProfile(engine)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range v.Entries["amd64"] {
			for _, a := range []uint64{0, 7, 40} {
				args := [6]uint64{a, a, a, a, a, a}
				for _, by := range []Caller{{BeforeExec: true}, {Identity: record.Operator}, {Mode: record.Audit}} {
					if d := v.Judge(Call{Nr: e.Nr, Args: args}, by); d.Continue && !parsed.rule(e.Name).allows(args) {
						t.Fatalf("%s(%d): %+v, the engine refuses", e.Name, a, d)
					}
				}
			}
			if a, _ := action(p, e.Name); a == specs.ActAllow && !parsed.rule(e.Name).Always() {
				t.Fatalf("%s: allowed, the engine refuses some", e.Name)
			}
		}
	})
}
