package planner

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// profile is an engine's that allows all but some calls.
func profile(withheld ...string) func(string) bool {
	return func(name string) bool { return !slices.Contains(withheld, name) }
}

// database is a container whose server was left by root for good.
func database() facts {
	call := func(name string, p record.Phase) plan.Syscall { return plan.Syscall{Name: name, Phase: p} }
	return facts{
		declared: &declared.Declared{
			Image:   declared.Image{Known: true},
			Process: declared.Process{Capabilities: []string{"CAP_SYS_CHROOT", "CAP_CHOWN", "CAP_NET_RAW"}},
		},
		modes:   map[record.Dimension]record.Mode{record.Syscalls: record.Enforce},
		closure: &procmap.Closure{Main: []string{"/usr/sbin/db"}, ServesUnprivileged: true},
		calls: &seccompgen.Result{Calls: []plan.Syscall{
			call("chroot", record.Serving), call("mount", record.Serving), call("open_tree", record.Serving),
			call("chown", record.Starting), call("read", record.Serving),
		}},
		engine: profile("unshare", "clone3"),
		arch:   "amd64",
	}
}

// When a call that needs a capability is allowed: rows are claims.
func TestPrivilegedCalls(t *testing.T) {
	const none = record.Phase("")
	tests := []struct {
		claim         string
		change        func(*facts)
		chroot, mount record.Phase
	}{
		{"one that a user's server can only fail at ends with the start; without the capability it is not allowed at all",
			func(*facts) {}, record.Starting, none},
		{"a server that may have root's capabilities keeps what they give",
			func(f *facts) { f.closure.ServesUnprivileged = false }, record.Serving, none},
		{"a capability that the container has and nobody may use once it serves",
			func(f *facts) {
				f.declared.Process.Capabilities = append(f.declared.Process.Capabilities, "CAP_SYS_ADMIN")
			}, record.Starting, record.Starting},
		{"a setuid program may have them", func(f *facts) { f.calls.Setuid = []string{"/usr/bin/su"} }, record.Serving, none},
		{"a program with file capabilities too", func(f *facts) { f.calls.FileCaps = []string{"/usr/bin/ping"} }, record.Serving, none},
		{"where a user namespace can be made all capabilities are to be had in it", func(f *facts) { f.engine = profile("clone3") }, record.Serving, record.Serving},
		{"by clone3 as well", func(f *facts) { f.engine = profile("unshare") }, record.Serving, record.Serving},
		{"without an engine's profile nothing keeps one from it", func(f *facts) { f.engine = nil }, record.Serving, record.Serving},
		{"what the engine withholds stays out", func(f *facts) { f.engine = profile("unshare", "clone3", "chroot") }, none, none},
		{"of a wide container nothing is concluded", func(f *facts) { f.closure.Wide = true }, record.Serving, record.Serving},
		{"what only a start needs stays with it", func(f *facts) {
			f.closure.ServesUnprivileged = false
			f.calls.Calls[0].Phase = record.Starting
		}, record.Starting, none},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			f := database()
			tt.change(&f)
			p := compose(f)
			for name, want := range map[string]record.Phase{
				"chroot": tt.chroot, "mount": tt.mount, "open_tree": record.Serving, "chown": record.Starting, "read": record.Serving,
			} {
				got := none
				if i := slices.IndexFunc(p.Syscalls.Allow, func(c plan.Syscall) bool { return c.Name == name }); i >= 0 {
					got = p.Syscalls.Allow[i].Phase
				}
				if got != want {
					t.Errorf("%s: %q, want %q", name, got, want)
				}
			}
		})
	}
}

// A call that ends with the start leaves the analyser's own list as it was.
func TestComposeKeepsItsFacts(t *testing.T) {
	f := database()
	compose(f)
	if f.calls.Calls[0].Phase != record.Serving {
		t.Error("the facts were changed")
	}
}

// The start still uses the capability of a call that ends with it.
func TestCapabilityOfTheStartIsKept(t *testing.T) {
	has := func(p *plan.Plan, name string) bool {
		return slices.ContainsFunc(p.Capabilities, func(c plan.Capability) bool { return c.Name == name })
	}
	f := database()
	if p := compose(f); !has(p, "CAP_SYS_CHROOT") || !has(p, "CAP_CHOWN") || has(p, "CAP_NET_RAW") {
		t.Errorf("got %v", p.Capabilities)
	}
}

// Every capability has a name that config.json uses, and no doubtful call is there.
func TestPrivilegedTable(t *testing.T) {
	for name, c := range privileged {
		if len(c) < 5 || c[:4] != "CAP_" {
			t.Errorf("%s: %q", name, c)
		}
	}
	for _, name := range []string{"setns", "open_tree", "iopl", "ioperm", "clock_settime", "adjtimex", "open_by_handle_at", "mknod", "quotactl", "unshare"} {
		if _, ok := privileged[name]; ok {
			t.Errorf("%s can succeed without a capability", name)
		}
	}
}

func TestUnrunnable(t *testing.T) {
	d := &declared.Declared{Process: declared.Process{Args: []string{"/e.sh"}}, Image: declared.Image{Known: true}}
	c := &procmap.Closure{Unrunnable: "/e.sh"}
	modes := map[record.Dimension]record.Mode{record.Processes: record.Enforce}
	var e *UnrunnableError
	if err := unrunnable(c, d, modes); !errors.As(err, &e) || !strings.Contains(e.Remedy(), "/e.sh:ro") || !strings.Contains(e.Remedy(), "io.declarun.exec=/e.sh") {
		t.Errorf("%v", err)
	}
	if err := unrunnable(&procmap.Closure{}, d, modes); err != nil {
		t.Error(err)
	}
	modes[record.Processes] = record.Audit
	if err := unrunnable(c, d, modes); err != nil {
		t.Errorf("nothing is refused in mode audit: %v", err)
	}
	modes[record.Processes] = record.Enforce
	d.Image.Known = false
	if err := unrunnable(c, d, modes); err != nil {
		t.Errorf("a bundle's mounts are taken at their word: %v", err)
	}
}

// What a program needs until its loop goes with the loops that prove it, and
// with a list that is known.
func TestUntilLoop(t *testing.T) {
	with := func(change func(*facts)) plan.Syscalls {
		f := database()
		f.calls.Calls[4].UntilLoop = true
		f.calls.Loops = []plan.Loop{{File: "/usr/sbin/db", Returns: []uint64{0x1234}}}
		change(&f)
		return f.syscalls()
	}
	if s := with(func(*facts) {}); len(s.Loops) != 1 || !slices.ContainsFunc(s.Allow, func(c plan.Syscall) bool { return c.Name == "read" && c.UntilLoop }) {
		t.Errorf("%+v", s)
	}
	for claim, change := range map[string]func(*facts){
		"a call whose number is not known widens the list": func(f *facts) { f.calls.Unresolved = []plan.Site{{}} },
		"nothing is taken away":                            func(f *facts) { f.calls.Calls[4].UntilLoop = false },
	} {
		if s := with(change); len(s.Loops) != 0 || slices.ContainsFunc(s.Allow, func(c plan.Syscall) bool { return c.UntilLoop }) {
			t.Errorf("%s: %+v", claim, s)
		}
	}
}
