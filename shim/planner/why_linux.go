package planner

import (
	"context"
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// Tracer finds the ways that the programs of a closure come to a system call.
type Tracer func(ctx context.Context, root *rootfs.Root, d *declared.Declared, c *procmap.Closure, name string) ([]plan.Way, error)

// LocalTracer looks for them in this process, for a person's own command and
// with that person's rights.
func LocalTracer(cacheDir string) Tracer {
	cache := openCache(resultsDir(cacheDir))
	return func(ctx context.Context, root *rootfs.Root, d *declared.Declared, c *procmap.Closure, name string) ([]plan.Way, error) {
		ctx, cancel := context.WithTimeout(ctx, 2*analyserTime)
		defer cancel()
		return trace(ctx, root, d, c, name, cache)
	}
}

// CarefulTracer lets a child as GuardedAnalyser's look for them, which reads the
// image by itself.
func CarefulTracer(cacheDir, arg string) Tracer {
	pool := newAnalysers(cacheDir, arg)
	return func(ctx context.Context, root *rootfs.Root, d *declared.Declared, _ *procmap.Closure, name string) ([]plan.Way, error) {
		r, err := pool.answer(ctx, root, question{Declared: d, Why: name})
		return r.Ways, err
	}
}

func trace(ctx context.Context, root *rootfs.Root, d *declared.Declared, c *procmap.Closure, name string, cache seccompgen.Cache) ([]plan.Way, error) {
	if c == nil || c.Wide {
		return nil, nil
	}
	req, err := request(root, d, c)
	if err != nil || len(req.Programs) == 0 {
		return nil, err
	}
	return seccompgen.Why(ctx, root, req, cache, name)
}

// IsCall tells whether a word names a system call of a machine whose programs
// can be planned for.
func IsCall(name string) bool {
	return seccompgen.IsCall("amd64", name) || seccompgen.IsCall("arm64", name)
}

// UsualProfile stands for an engine's profile that is not known yet, on a
// machine for an image's architecture ("" for this one's).
func UsualProfile(arch string) *specs.LinuxSeccomp {
	if !seccompgen.IsCall(arch, "read") {
		arch = nativeArch
	}
	return filter.Usual(arch)
}

// Why is Plan with the answer why it allows a system call, or why not.
func (p *Planner) Why(ctx context.Context, d *declared.Declared, root *rootfs.Root, engine *specs.LinuxSeccomp, trace Tracer, name string) (*plan.Plan, *plan.Reasons, error) {
	made, err := p.made(ctx, d, root, engine)
	if err != nil {
		return nil, nil, err
	}
	var ways []plan.Way
	if made.facts.calls != nil {
		if ways, err = trace(ctx, root, d, made.facts.closure, name); err != nil {
			return nil, nil, fmt.Errorf("look for what makes the system call %s: %w", name, err)
		}
	}
	return made.plan, made.facts.reasons(made.plan, name, ways), nil
}

// reasons is the pure part of Why.
func (f facts) reasons(p *plan.Plan, name string, ways []plan.Way) *plan.Reasons {
	r := &plan.Reasons{Call: name, Because: []string{}, Origins: []record.Origin{}, Ways: ways}
	if r.Ways == nil {
		r.Ways = []plan.Way{}
	}
	for i := range r.Ways {
		r.Ways[i].Chain = p.Chain(r.Ways[i].Program)
	}
	say := func(format string, args ...any) { r.Because = append(r.Because, fmt.Sprintf(format, args...)) }
	at := slices.IndexFunc(p.Syscalls.Allow, func(c plan.Syscall) bool { return c.Name == name })
	refused := f.engine != nil && !f.engine(name)
	switch {
	case at >= 0:
		c := p.Syscalls.Allow[at]
		r.Allowed, r.Phase, r.UntilLoop, r.Origins = true, c.Phase, c.UntilLoop, c.Origins
		r.Args = c.Args
		f.phase(say, c, ways)
	case refused:
		say("the engine's own seccomp profile refuses it, whatever the arguments; declarun allows nothing that the engine does not")
		if len(ways) > 0 {
			say("%s of the image could make it; without declarun they are refused it too", counted(len(ways), "program"))
		}
	case p.Syscalls.Widened:
		r.Allowed, r.Phase = true, record.Serving
	case len(ways) == 0:
		say("no code that can run reaches it, in %s and the %d libraries that they load or may open", counted(len(f.closure.Analyse), "program"), len(f.libraries()))
	case f.use(name) == never:
		say("without %s it can only fail, and the container does not have that capability", privileged[name])
		say("%s of the image could make it; the operator's --cap-add %s allows it", counted(len(ways), "program"), privileged[name])
	default:
		say("%s could make it, but the plan leaves it out: what needs it falls back on another call", counted(len(ways), "program"))
	}
	if p.Syscalls.Widened {
		f.widened(say, p, at >= 0, refused)
	}
	for _, c := range filter.RuntimeNeeds("", false) {
		if c.Name != name || at >= 0 || refused {
			continue
		}
		if c.Phase == record.Serving {
			r.Allowed, r.Phase, r.Origins = true, record.Serving, c.Origins
			say("runc itself makes it in the container, so that the filter has it for the whole life")
		} else if !r.Allowed {
			say("runc itself makes it before the first program runs (%s), and is let; the image's programs are not", c.Origins[0].Text)
		}
	}
	return r
}

func counted(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func (f facts) libraries() []string {
	if f.calls == nil {
		return nil
	}
	return f.calls.Libraries
}

// phase says why a call is allowed for as long as it is.
func (f facts) phase(say func(string, ...any), c plan.Syscall, ways []plan.Way) {
	serve := slices.ContainsFunc(ways, func(w plan.Way) bool { return w.Phase != record.Starting })
	switch {
	case c.Phase != record.Starting:
		if serve {
			say("a program that runs once the container serves can make it")
		}
	case f.use(c.Name) == untilServing:
		say("it needs %s, which nothing has any more once the container serves: what serves runs as an ordinary user", privileged[c.Name])
	case !serve:
		say("only programs that run before the container serves make it; then it is taken away")
	default:
		say("programs that serve make it only before they serve; then it is taken away")
	}
}

func (f facts) widened(say func(string, ...any), p *plan.Plan, proved, refused bool) {
	then := "the filter is as wide as the engine's own profile"
	if !proved && !refused {
		then += ", which is why it is allowed: nothing is proved to make it"
	}
	switch {
	case p.Wide:
		say("the container may run every program of the image (%s): %s", p.WideReason, then)
	case len(p.Syscalls.Unresolved) > 0:
		s := p.Syscalls.Unresolved[0]
		say("the number of the call is not proved at %s (%s%+#x: %s): %s", counted(len(p.Syscalls.Unresolved), "place"), s.File, s.Address, s.Reason, then)
	case f.closure.WideStarting:
		say("a script runs a command that cannot be known (%s): %s", f.closure.WideStartingReason, then)
	}
}

// Plain is the seccomp profile of a plan for use without a supervisor.
func (p *Planner) Plain(ctx context.Context, d *declared.Declared, root *rootfs.Root, engine *specs.LinuxSeccomp, noNewPrivileges bool) (*specs.LinuxSeccomp, error) {
	d.Elsewhere = true
	made, err := p.made(ctx, d, root, engine)
	if err != nil {
		return nil, err
	}
	return filter.Plain(filter.Input{
		Arch: made.plan.Syscalls.Architecture, Allow: made.plan.Syscalls.Allow, Widened: made.plan.Syscalls.Widened,
		Engine: engine, Has32: made.has32, RuncVersion: p.RuncVersion, NoNewPrivileges: noNewPrivileges,
	})
}
