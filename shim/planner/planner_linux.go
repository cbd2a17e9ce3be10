package planner

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/netpolicy"
	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/admission"
	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/supervise"
)

// Analyser reads the files of an image. In the supervisor it is a guarded child
// process. With an error it may give what it read before.
type Analyser func(ctx context.Context, root *rootfs.Root, d *declared.Declared) (Reading, error)

// Planner plans containers. It is safe for concurrent use.
type Planner struct {
	// Site is asked for every container, so that a changed file counts at once.
	Site    func() (*site.Config, error)
	Analyse Analyser
	// RuncVersion is of the low-level runtime, where it is known.
	RuncVersion string
	// RecursiveMounts: the runtime and the kernel can restrict what is mounted
	// below a recursive bind mount (bundle.Options).
	RecursiveMounts bool
	// Now is the time admission judges by; nil: time.Now.
	Now func() time.Time
}

// Extra is what the guards need of a container besides its plan.
type Extra struct {
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"`
	Search    []string         `json:"search,omitempty"`
	Created   time.Time        `json:"created"`
}

// Refused is a container that admission does not let in.
type Refused struct {
	Reasons []plan.Reason
	Facts   supervise.Facts
}

// Refusal implements supervise.Refusal.
func (e *Refused) Refusal() ([]plan.Reason, supervise.Facts) { return e.Reasons, e.Facts }

func (e *Refused) Error() string {
	for _, r := range e.Reasons {
		if r.Verdict == plan.Refuse {
			return fmt.Sprintf("admission refuses it: %s: %s", r.ID, r.Text)
		}
	}
	return "admission refuses it"
}

// Remedy is the first refusal's.
func (e *Refused) Remedy() string {
	for _, r := range e.Reasons {
		if r.Verdict == plan.Refuse {
			return cmp.Or(r.Remedy, fmt.Sprintf("set %s = \"warn\" under [admission.rules] in %s", r.ID, site.DefaultPath))
		}
	}
	return ""
}

// Prepare implements supervise.Planner.
func (p *Planner) Prepare(ctx context.Context, req supervise.Preparation, dir *os.File) (supervise.Prepared, error) {
	cfg, err := p.Site()
	if err != nil {
		return supervise.Prepared{}, err
	}
	spec, err := bundle.Parse(req.Config)
	if err != nil {
		return supervise.Prepared{}, fmt.Errorf("read config.json: %w", err)
	}
	d, err := declared.Find(ctx, req.PrepareRequest, declared.Options{})
	if err != nil {
		return supervise.Prepared{}, fmt.Errorf("find what is declared: %w", err)
	}
	if _, excluded := cfg.Excluded(d.Image.Ref); excluded || d.Sandbox {
		return supervise.Prepared{}, nil
	}
	root, err := own(dir)
	if err != nil {
		return supervise.Prepared{}, err
	}
	defer root.Close()
	var engine *specs.LinuxSeccomp
	if spec.Linux != nil {
		engine = spec.Linux.Seccomp
	}
	made, err := p.plan(ctx, cfg, d, root, engine)
	if err != nil {
		return supervise.Prepared{}, err
	}
	if made == nil { // every dimension is off
		return supervise.Prepared{}, nil
	}
	about := supervise.Facts{Name: cmp.Or(d.Name, d.ID), Image: d.Image.Ref, HealthCheck: d.HealthCheck}
	if made.plan.Admission.Verdict != plan.Admit && made.plan.Admission.Verdict != plan.Warn && made.plan.Mode[record.Admission] == record.Enforce {
		return supervise.Prepared{}, &Refused{made.plan.Admission.Reasons, about}
	}
	if err := foreign(made.plan, nativeArch); err != nil {
		return supervise.Prepared{}, err
	}
	config, verdicts, err := p.apply(made, spec, req, root)
	if err != nil {
		return supervise.Prepared{}, err
	}
	if about.Extra, err = json.Marshal(Extra{Resolvers: d.Resolvers, Search: d.Search, Created: p.now()}); err != nil {
		return supervise.Prepared{}, err
	}
	return supervise.Prepared{
		Config:   config,
		Plan:     made.plan,
		Verdicts: verdicts,
		Declared: about,
	}, nil
}

func own(dir *os.File) (*rootfs.Root, error) {
	if dir == nil {
		return nil, errors.New("no root filesystem was handed over")
	}
	root, err := rootfs.Open(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, err
	}
	return root, nil
}

func (p *Planner) now() time.Time {
	if p.Now != nil {
		return p.Now()
	}
	return time.Now()
}

// made is a plan with what it was made from.
type made struct {
	plan     *plan.Plan
	declared *declared.Declared
	engine   *specs.LinuxSeccomp
	has32    bool
	// withheld are calls that programs of the image make and that the engine's
	// profile never allows. They are not in the plan; but being refused them is
	// no deviation of the container's.
	withheld []plan.Syscall
	facts    facts
}

// Plan is for people: what would be planned for a container that nobody runs yet.
func (p *Planner) Plan(ctx context.Context, d *declared.Declared, root *rootfs.Root, engine *specs.LinuxSeccomp) (*plan.Plan, error) {
	made, err := p.made(ctx, d, root, engine)
	if err != nil {
		return nil, err
	}
	return made.plan, nil
}

func (p *Planner) made(ctx context.Context, d *declared.Declared, root *rootfs.Root, engine *specs.LinuxSeccomp) (*made, error) {
	cfg, err := p.Site()
	if err != nil {
		return nil, err
	}
	made, err := p.plan(ctx, cfg, d, root, engine)
	if err == nil && made == nil {
		err = errors.New("plan: every dimension is off for this container")
	}
	return made, err
}

func (p *Planner) plan(ctx context.Context, cfg *site.Config, d *declared.Declared, root *rootfs.Root, engine *specs.LinuxSeccomp) (*made, error) {
	modes, notes, err := cfg.EffectiveModes(d)
	if err != nil {
		return nil, err
	}
	if !slices.ContainsFunc(record.Dimensions(), func(dim record.Dimension) bool { return modes[dim] != record.Off }) {
		return nil, nil
	}
	f := facts{declared: d, modes: modes, notes: notes}
	d.StorageHeld = modes[record.Storage] == record.Enforce
	if !d.Elsewhere {
		allowed, err := filter.AlwaysAllowedBy(engine)
		if err != nil {
			return nil, fmt.Errorf("read the engine's seccomp profile: %w", err)
		}
		d.Answered = seccompgen.Answered(allowed)
		if !slices.ContainsFunc(d.Mounts, func(m declared.Mount) bool { return bound(m) && seccompgen.Brings(m.Destination) }) {
			d.Answered = append(d.Answered, seccompgen.NoNSCD)
		}
	}
	reading, failed := p.Analyse(ctx, root, d)
	if reading.Closure != nil {
		if err := unrunnable(reading.Closure, d, modes); err != nil {
			return nil, err
		}
	}
	if failed != nil {
		return nil, failed
	}
	if reading.Closure == nil || reading.Calls == nil && !reading.Closure.Wide {
		return nil, errors.New("analyse the image's programs: the answer is not whole")
	}
	f.closure, f.calls = reading.Closure, reading.Calls
	f.arch = archOf(f.calls)
	f.admission = admission.Judge(d, reading.OSRelease, reading.Packages, p.now(), cfg.AdmissionRules)
	f.notes = append(f.notes, f.closure.Notes...)
	if engine != nil {
		if f.engine, err = filter.AllowedBy(engine); err != nil {
			return nil, fmt.Errorf("read the engine's seccomp profile: %w", err)
		}
	}
	var netNotes []plan.Note
	f.network, netNotes = netpolicy.Derive(d)
	f.notes = append(f.notes, netNotes...)
	out := &made{plan: compose(f), declared: d, engine: engine, facts: f}
	if f.calls != nil {
		out.has32 = f.calls.Has32
		for _, c := range f.calls.Calls {
			if f.engine != nil && !f.engine(c.Name) {
				out.withheld = append(out.withheld, c)
			}
		}
	}
	if f.arch != nativeArch {
		out.plan.Notes = append(out.plan.Notes, plan.Note{Dimension: record.Syscalls,
			Text: fmt.Sprintf("the programs are for %s: the plan is for a machine that runs it, which this one, of %s, is not", f.arch, nativeArch)})
	}
	out.plan.Notes = append(out.plan.Notes, netpolicy.CapabilityNotes(out.plan.Capabilities)...)
	return out, nil
}

// UnrunnableError is the declared program's when it lies on a mount on which
// nothing may be executed. runc would say "permission denied", and no more.
type UnrunnableError struct{ Program, Mount string }

func (e *UnrunnableError) Error() string {
	return fmt.Sprintf("run %s: it is on the writable mount %s, where nothing may be executed", e.Program, e.Mount)
}

// Remedy says what to do about it.
func (e *UnrunnableError) Remedy() string {
	return fmt.Sprintf("mount it read-only (-v …:%s:ro), or start with --label %s=%s", e.Mount, declared.ExecKey, e.Mount)
}

// unrunnable: where mounts are not restricted, nothing stops it (bundle.FromPlan).
func unrunnable(c *procmap.Closure, d *declared.Declared, modes map[record.Dimension]record.Mode) error {
	if c.Unrunnable == "" || modes[record.Processes] != record.Enforce || !d.Image.Known && !d.ReadonlyRoot {
		return nil
	}
	return &UnrunnableError{Program: d.Process.Args[0], Mount: c.Unrunnable}
}

// apply turns a plan into the edited config.json and the verdicts.
func (p *Planner) apply(m *made, spec *bundle.Spec, req supervise.Preparation, root *rootfs.Root) (json.RawMessage, *filter.Verdicts, error) {
	seccomp, verdicts, err := filter.Build(p.filterInput(m, spec, req))
	if err != nil {
		return nil, nil, fmt.Errorf("build the seccomp filter: %w", err)
	}
	edit, err := bundle.FromPlan(m.plan, spec, bundle.Options{
		Bundle: req.Bundle,
		Resolve: func(name string) (string, error) {
			at, _, err := root.Stat(name)
			return at, err
		},
		Seccomp:            seccomp,
		CreateRuntimeHooks: []specs.Hook{{Path: req.Executable, Args: []string{"declarun", "__guard", "--token", req.Token}}},
		RecursiveMounts:    p.RecursiveMounts,
		NoNewPrivileges:    setsNoNewPrivileges(m, spec),
	})
	if err != nil {
		return nil, nil, err
	}
	config, err := spec.Apply(edit)
	return config, verdicts, err
}

func setsNoNewPrivileges(m *made, spec *bundle.Spec) bool {
	return m.plan.NoNewPrivileges && freeOfDomains(spec)
}

// filterInput: also where system calls are not held to the plan, executions
// and listening sockets are still learnt through the filter.
func (p *Planner) filterInput(m *made, spec *bundle.Spec, req supervise.Preparation) filter.Input {
	mode := m.plan.Mode[record.Syscalls]
	in := filter.Input{
		Arch: m.plan.Syscalls.Architecture, Allow: slices.Concat(m.plan.Syscalls.Allow, m.withheld), Widened: m.plan.Syscalls.Widened,
		Engine: m.engine, Has32: m.has32, RuncVersion: p.RuncVersion,
		ListenerPath: req.NotifySocket, ListenerMetadata: req.Token, Mode: mode,
	}
	if spec.Process != nil {
		in.NoNewPrivileges = spec.Process.NoNewPrivileges || setsNoNewPrivileges(m, spec)
	}
	if mode == record.Off {
		in.Mode, in.Widened = record.Audit, true
	}
	if in.Arch != nativeArch { // not enforced: see foreign
		in.Arch, in.Widened = nativeArch, true
	}
	return in
}
