package planner

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

func option(values ...uint32) []plan.Arg {
	a := plan.Arg{}
	for _, v := range values {
		a.Values = append(a.Values, plan.ArgValue{Value: v})
	}
	return []plan.Arg{a}
}

// Which capability nothing can use: rows are claims.
func TestUselessCapabilities(t *testing.T) {
	all := []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE"}
	prctl := func(args []plan.Arg) func(*facts) {
		return func(f *facts) {
			f.calls.Calls = append(f.calls.Calls, plan.Syscall{Name: "prctl", Phase: record.Serving, Args: args})
		}
	}
	calls := func(names ...string) func(*facts) {
		return func(f *facts) {
			for _, n := range names {
				f.calls.Calls = append(f.calls.Calls, plan.Syscall{Name: n, Phase: record.Serving})
			}
		}
	}
	for _, row := range []struct {
		claim      string
		change     func(*facts)
		kept, gone []string
	}{
		{"what files and signals are about stays", func(*facts) {}, []string{"CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_KILL", "CAP_CHOWN", "CAP_SYS_CHROOT"},
			[]string{"CAP_SETUID", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETFCAP", "CAP_MKNOD", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE", "CAP_AUDIT_WRITE"}},
		{"prctl that names a thread changes no bounding set", prctl(option(15)), nil, []string{"CAP_SETPCAP"}},
		{"prctl that drops from the bounding set", prctl(option(15, 24)), []string{"CAP_SETPCAP"}, nil},
		{"prctl that sets securebits", prctl(option(28)), []string{"CAP_SETPCAP"}, nil},
		{"prctl with anything", prctl([]plan.Arg{{Unproved: &plan.Site{}}}), []string{"CAP_SETPCAP"}, nil},
		{"prctl whose argument was not looked at", prctl(nil), []string{"CAP_SETPCAP"}, nil},
		{"capset beside a harmless prctl", func(f *facts) { prctl(option(15))(f); calls("capset")(f) }, []string{"CAP_SETPCAP"}, nil},
		{"messages can carry the credentials of others", calls("sendmsg"), []string{"CAP_SETUID", "CAP_SETGID"}, []string{"CAP_SETFCAP"}},
		{"setgroups is a matter of groups", calls("setgroups"), []string{"CAP_SETGID"}, []string{"CAP_SETUID"}},
		{"setresuid one of users", calls("setresuid"), []string{"CAP_SETUID"}, []string{"CAP_SETGID"}},
		{"a new process is no user namespace where the engine sees to that", calls("clone"), nil, []string{"CAP_SETUID", "CAP_SETFCAP"}},
		{"and may be one where it does not", func(f *facts) { calls("clone")(f); f.engine = nil }, []string{"CAP_SETUID", "CAP_SETGID", "CAP_SETFCAP"}, nil},
		{"a program whose file has capabilities needs them to start", func(f *facts) { f.calls.FileCaps = []string{"/usr/bin/ping"} }, all, nil},
		{"a wide list is nothing to conclude from", func(f *facts) { f.calls.Unresolved = []plan.Site{{}} }, all, nil},
		{"what only the start needs is needed", func(f *facts) { calls("setuid")(f); f.calls.Calls[len(f.calls.Calls)-1].Phase = record.Starting }, []string{"CAP_SETUID"}, nil},
		{"what the operator added stays", func(f *facts) { f.declared.Operator.CapAdd = []string{"SETPCAP"} }, []string{"CAP_SETPCAP"}, nil},
	} {
		f := database()
		f.declared.Process.Capabilities = all
		row.change(&f)
		var got []string
		for _, c := range compose(f).Capabilities {
			got = append(got, c.Name)
		}
		for _, name := range row.kept {
			if !slices.Contains(got, name) {
				t.Errorf("%s: %s is gone", row.claim, name)
			}
		}
		for _, name := range row.gone {
			if slices.Contains(got, name) {
				t.Errorf("%s: %s is kept", row.claim, name)
			}
		}
	}
}

// When programs can be kept from gaining privileges without any missing them.
func TestNoNewPrivileges(t *testing.T) {
	for _, row := range []struct {
		claim  string
		change func(*facts)
		want   bool
	}{
		{"no program's file gives anything", func(*facts) {}, true},
		{"a setuid program", func(f *facts) { f.calls.Setuid = []string{"/usr/bin/su"} }, false},
		{"a program with file capabilities", func(f *facts) { f.calls.FileCaps = []string{"/usr/bin/ping"} }, false},
		{"programs that are not known", func(f *facts) { f.closure.Wide = true }, false},
		{"programs that are not known while it starts", func(f *facts) { f.closure.WideStarting = true }, false},
		{"other programs may run", func(f *facts) { f.modes[record.Processes] = record.Audit }, false},
		{"a bundle is taken at its word", func(f *facts) { f.declared.Image.Known = false }, false},
		{"a mounted program that nobody looked at", func(f *facts) { f.closure.Processes = []plan.Process{{Path: "/m", Mounted: true}} }, false},
		{"a mounted program that was looked at", func(f *facts) {
			f.closure.Processes = []plan.Process{{Path: "/m", Mounted: true}}
			f.closure.Analyse = []procmap.Program{{Path: "/m"}}
		}, true},
	} {
		f := database()
		f.modes[record.Processes] = record.Enforce
		row.change(&f)
		if got := compose(f).NoNewPrivileges; got != row.want {
			t.Errorf("%s: %v, want %v", row.claim, got, row.want)
		}
	}
	for _, row := range []struct {
		claim   string
		process *specs.Process
		want    bool
	}{
		{"no policy", &specs.Process{}, true},
		{"an engine's profile for AppArmor", &specs.Process{ApparmorProfile: "docker-default"}, true},
		{"one that may change with the program", &specs.Process{ApparmorProfile: "mine"}, false},
		{"a policy of SELinux", &specs.Process{SelinuxLabel: "system_u:system_r:container_t:s0"}, false},
		{"no process", nil, false},
	} {
		if got := freeOfDomains(&bundle.Spec{Process: row.process}); got != row.want {
			t.Errorf("%s: %v, want %v", row.claim, got, row.want)
		}
	}
}
