package planner

import (
	"errors"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/supervise"
)

func TestForeignProgramsAreNotHeldToTheirNumbersHere(t *testing.T) {
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[nativeArch]
	if other == "" {
		other = "amd64"
	}
	for _, row := range []struct {
		claim   string
		calls   *seccompgen.Result
		mode    record.Mode
		refused bool
	}{
		{"programs of this machine", &seccompgen.Result{Machine: nativeArch}, record.Enforce, false},
		{"no programs", &seccompgen.Result{}, record.Enforce, false},
		{"a wide container, whose programs are not read", nil, record.Enforce, false},
		{"programs of another machine", &seccompgen.Result{Machine: other}, record.Enforce, true},
		{"programs of another machine, in audit", &seccompgen.Result{Machine: other}, record.Audit, false},
		{"programs of another machine, switched off", &seccompgen.Result{Machine: other}, record.Off, false},
	} {
		t.Run(row.claim, func(t *testing.T) {
			p := &plan.Plan{Mode: map[record.Dimension]record.Mode{record.Syscalls: row.mode}}
			p.Syscalls.Architecture = archOf(row.calls)
			err := foreign(p, nativeArch)
			var f *ForeignError
			if errors.As(err, &f) != row.refused {
				t.Fatalf("%v", err)
			}
			if row.refused {
				if !strings.Contains(err.Error(), other) || f.Remedy() == "" {
					t.Errorf("%v; %s", err, f.Remedy())
				}
				return
			}
			engine := filter.Usual(nativeArch)
			in := (&Planner{}).filterInput(&made{plan: p, engine: engine}, &bundle.Spec{}, supervise.Preparation{NotifySocket: "/s"})
			seccomp, _, err := filter.Build(in)
			if err != nil {
				t.Fatal(err)
			}
			native := map[string]specs.Arch{"amd64": specs.ArchX86_64, "arm64": specs.ArchAARCH64}[nativeArch]
			if seccomp.Architectures[0] != native {
				t.Errorf("the filter is for %v", seccomp.Architectures)
			}
			if row.calls != nil && row.calls.Machine == other && !in.Widened {
				t.Error("calls of another machine's programs are taken for those of this one's")
			}
		})
	}
}
