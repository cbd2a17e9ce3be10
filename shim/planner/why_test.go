package planner

import (
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Why a call is allowed or not: rows are claims. The plan itself is the judge of
// whether it is.
func TestReasons(t *testing.T) {
	way := func(phase record.Phase) []plan.Way { return []plan.Way{{Program: "/usr/sbin/db", Phase: phase}} }
	for _, row := range []struct {
		claim, call string
		change      func(*facts)
		ways        []plan.Way
		allowed     bool
		phase       record.Phase
		because     string
	}{
		{"what a server makes", "read", nil, way(record.Serving), true, record.Serving, "runs once the container serves"},
		{"what only a script's program makes", "chown", nil, way(record.Starting), true, record.Starting, "only programs that run before the container serves"},
		{"what the server makes before it serves", "chown", nil, way(record.Serving), true, record.Starting, "only before they serve"},
		{"what needs a capability that the server has not", "chroot", nil, way(record.Serving), true, record.Starting, "needs CAP_SYS_CHROOT, which nothing has any more"},
		{"what needs a capability that the container has not", "mount", nil, way(record.Serving), false, "", "without CAP_SYS_ADMIN it can only fail"},
		{"what nothing reaches", "bpf", nil, nil, false, "", "no code that can run reaches it, in 1 program and the 2 libraries"},
		{"what the engine refuses", "unshare", nil, way(record.Serving), false, "", "the engine's own seccomp profile refuses it"},
		{"what the engine refuses and nothing reaches", "clone3", nil, nil, false, "", "the engine's own seccomp profile refuses it"},
		{"what was cut for a reason not known here", "openat2", nil, way(record.Serving), false, "", "the plan leaves it out"},
		{"what only runc makes for good", "nanosleep", nil, nil, true, record.Serving, "runc itself makes it in the container"},
		{"what only runc makes at first", "capset", nil, nil, false, "", "runc itself makes it before the first program"},
		{"a site that is not proved opens everything", "bpf", func(f *facts) {
			f.calls.Unresolved = []plan.Site{{File: "/x", Address: 0x10, Reason: "computed"}}
		}, nil, true, record.Serving, "not proved at 1 place (/x+0x10: computed): the filter is as wide as the engine's own profile, which is why"},
		{"but not what the engine refuses", "unshare", func(f *facts) {
			f.calls.Unresolved = []plan.Site{{File: "/x", Address: 0x10, Reason: "computed"}}
		}, nil, false, "", "the engine's own seccomp profile refuses it"},
		{"a shell may run everything", "bpf", func(f *facts) {
			f.calls, f.closure.Wide, f.closure.WideReason = nil, true, "bash"
		}, nil, true, record.Serving, "may run every program of the image (bash)"},
		{"so may a script for a while", "bpf", func(f *facts) {
			f.closure.WideStarting, f.closure.WideStartingReason = true, "$CMD"
		}, nil, true, record.Serving, "a script runs a command that cannot be known ($CMD)"},
	} {
		f := database()
		f.closure.Analyse = []procmap.Program{{Path: "/usr/sbin/db"}}
		f.closure.Processes = []plan.Process{{Path: "/usr/sbin/db", Origins: []record.Origin{{Source: record.FromImage, At: "config.Cmd"}}}}
		f.calls.Libraries = []string{"/a", "/b"}
		if row.change != nil {
			row.change(&f)
		}
		p := compose(f)
		r := f.reasons(p, row.call, slices.Clone(row.ways))
		if r.Allowed != row.allowed || r.Phase != row.phase || !strings.Contains(strings.Join(r.Because, "; "), row.because) || len(r.Because) == 0 {
			t.Errorf("%s: %s: allowed %v %s because %q, want %v %s %q", row.claim, row.call, r.Allowed, r.Phase, r.Because, row.allowed, row.phase, row.because)
		}
		if i := slices.IndexFunc(p.Syscalls.Allow, func(c plan.Syscall) bool { return c.Name == row.call }); i >= 0 && !r.Allowed {
			t.Errorf("%s: %s is in the plan", row.claim, row.call)
		}
		for _, w := range r.Ways {
			if len(w.Chain) != 1 || w.Chain[0].At != "config.Cmd" {
				t.Errorf("%s: chain %v", row.claim, w.Chain)
			}
		}
	}
}
