package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// analysed is what the analysis says of one program of a root.
type analysed struct {
	calls      []plan.Syscall
	unresolved []plan.Site
	took       time.Duration
}

func (a *analysed) names(which func(plan.Syscall) bool) []string {
	var out []string
	for _, c := range a.calls {
		if which(c) {
			out = append(out, c.Name)
		}
	}
	return out
}

func whole(plan.Syscall) bool { return true }

// serving is what the program may still do once it serves.
func serving(c plan.Syscall) bool { return c.Phase == record.Serving && !c.UntilLoop }

// analyse works out one program's calls: the application's closure, which is
// the program with the libraries and plug-ins that it loads.
func analyse(ctx context.Context, root, program string, env []string, cache seccompgen.Cache) (*analysed, error) {
	return analysis(ctx, root, request(program, env), cache)
}

func analysis(ctx context.Context, root string, req seccompgen.Request, cache seccompgen.Cache) (*analysed, error) {
	r, err := rootfs.Open(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	before := time.Now()
	res, err := seccompgen.Analyse(ctx, r, req, cache)
	if err != nil {
		return nil, fmt.Errorf("analyse %s: %w", req.Programs[0].Path, err)
	}
	return &analysed{res.Calls, res.Unresolved, time.Since(before)}, nil
}

func request(program string, env []string) seccompgen.Request {
	return seccompgen.Request{Env: env, Answered: append(seccompgen.Answered(func(string) bool { return true }), seccompgen.NoNSCD), Programs: []seccompgen.Program{{Path: program, Phase: record.Serving}}}
}

// programs gives what the kernel ran for an executed path: the program free of
// symbolic links, or a script's interpreter. None for what was made in the run.
func programs(root *rootfs.Root, name string) []string {
	for range 4 {
		real, _, err := root.Stat(name)
		if err != nil {
			return nil
		}
		b, err := root.ReadFile(real, 1<<30)
		if err != nil {
			return nil
		}
		line, script := strings.CutPrefix(string(b[:min(len(b), 200)]), "#!")
		if !script {
			return []string{real}
		}
		line, _, _ = strings.Cut(line, "\n")
		f := strings.Fields(line)
		if len(f) == 0 {
			return nil
		}
		name = f[0]
	}
	return nil
}

// observed sorts what a trace saw by the program that the kernel ran.
func observed(root string, t *observe.Trace) (map[string]map[string]string, error) {
	r, err := rootfs.Open(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	out := map[string]map[string]string{}
	for path, seen := range t.Seen {
		real := programs(r, path)
		if real == nil {
			real = []string{path + " (made in the run)"}
		}
		for _, p := range real {
			if out[p] == nil {
				out[p] = map[string]string{}
			}
			maps.Copy(out[p], seen)
		}
	}
	return out, nil
}

// missing are calls that were seen and are not allowed.
func missing(seen map[string]string, allowed []string) []string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(seen)) {
		if !slices.Contains(allowed, name) {
			out = append(out, name)
		}
	}
	return out
}

// underFilter repeats the server's life under the kernel's filter of it and of
// the programs that it was seen to execute, and gives the calls it was refused.
func (s *served) underFilter(ctx context.Context, cache seccompgen.Cache) ([]string, error) {
	var allowed []plan.Syscall
	for _, c := range s.calls {
		allowed = append(allowed, forLife(c))
	}
	for p := range s.other {
		a, err := analyse(ctx, s.root, p, s.env, cache)
		if err != nil {
			return nil, err
		}
		for _, c := range a.calls {
			allowed = append(allowed, forLife(c))
		}
	}
	f, err := build(allowed, false)
	if err != nil {
		return nil, err
	}
	out, err := observe.Run(ctx, observe.Job{Root: s.root, Dir: "/", Argv: s.argv, Env: s.env, Filter: f, Drive: s.name, Timeout: 90 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("%s under its filter: %w", s.name, err)
	}
	if out.Asked == 0 {
		return nil, fmt.Errorf("%s: the filter asked nothing", s.name)
	}
	return out.Refused, nil
}

// served is the result of one of the six.
type served struct {
	server
	root, program string
	*analysed
	seen  map[string]string // of the server's own program
	other map[string]map[string]string
}

// analyse makes the server's root and works out its calls.
func (s server) analyse(ctx context.Context, cache seccompgen.Cache) (*served, error) {
	root, err := observe.Root(ctx, observe.Spec{Name: s.name, Packages: s.packages, Setup: s.setup})
	if err != nil {
		return nil, err
	}
	out := &served{server: s, root: root}
	r, err := rootfs.Open(root)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	real := programs(r, s.argv[0])
	if len(real) != 1 {
		return nil, fmt.Errorf("%s: no program", s.argv[0])
	}
	out.env = append(slices.Clone(usual), s.env...)
	out.program = real[0]
	if out.analysed, err = analysis(ctx, root, out.request(), cache); err != nil {
		return nil, err
	}
	return out, nil
}

// request is the server's as a container of its root would have it: with its
// command line, the configuration of its package, and nothing to write to but
// variable data.
func (s *served) request() seccompgen.Request {
	req := request(s.program, s.env)
	req.Programs[0].Args = [][]string{s.argv}
	req.Immutable, req.SettledEnv, req.Changeable = true, true, []string{"/tmp", "/run", "/var"}
	return req
}

// measure has the server live its life under strace, too.
func (s server) measure(ctx context.Context, cache seccompgen.Cache) (*served, error) {
	out, err := s.analyse(ctx, cache)
	if err != nil {
		return nil, err
	}
	run, err := observe.Run(ctx, observe.Job{Root: out.root, Dir: "/", Argv: s.argv, Env: out.env, Trace: true, Drive: s.name, Timeout: 90 * time.Second})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.name, err)
	}
	if out.other, err = observed(out.root, run.Trace); err != nil {
		return nil, err
	}
	out.seen = out.other[out.program]
	delete(out.other, out.program)
	return out, nil
}

// reasons gives a line for each call: the shortest way to it; and says for how
// many of them the server's own code asks, itself or by a function of a library
// that does nothing else.
func (s *served) reasons(ctx context.Context, cache seccompgen.Cache, names []string) (string, error) {
	root, err := rootfs.Open(s.root)
	if err != nil {
		return "", err
	}
	defer root.Close()
	ways, err := seccompgen.Ways(ctx, root, s.request(), cache, names...)
	if err != nil {
		return "", fmt.Errorf("look for the ways to calls of %s: %w", s.program, err)
	}
	var out strings.Builder
	own := 0
	for _, name := range names {
		if len(ways[name]) == 0 {
			fmt.Fprintf(&out, "  %-18s no single way\n", name)
			continue
		}
		w := ways[name][0]
		if n := len(w.Steps); n > 0 && (w.Steps[n-1].File == s.program || n > 1 && w.Steps[n-2].File == s.program) {
			own++
		}
		// The way's ends tell most; what lies between is a number.
		steps := []string{}
		for i, step := range w.Steps {
			if i >= 4 && i < len(w.Steps)-3 {
				if i == 4 {
					steps = append(steps, fmt.Sprintf("… %d more …", len(w.Steps)-7))
				}
				continue
			}
			steps = append(steps, filepath.Base(step.File)+" "+cmp.Or(step.Func, fmt.Sprintf("%#x", step.Addr)))
		}
		fmt.Fprintf(&out, "  %-18s %s\n", name, cmp.Or(strings.Join(steps, " → "), w.Start))
	}
	return fmt.Sprintf("  the server's own code asks for %d of the %d\n", own, len(names)) + out.String(), nil
}
