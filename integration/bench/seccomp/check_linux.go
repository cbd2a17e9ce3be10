package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// checker runs rows and holds what programs do against what is allowed to them.
type checker struct {
	root  string
	files *rootfs.Root
	cache seccompgen.Cache

	mu       sync.Mutex
	programs map[string]*program
}

// program is one that rows executed.
type program struct {
	once sync.Once
	*analysed
	err  error
	seen map[string]string
}

func newChecker(ctx context.Context, cache seccompgen.Cache) (*checker, error) {
	root, err := observe.Root(ctx, programsRoot)
	if err != nil {
		return nil, err
	}
	files, err := rootfs.Open(root)
	if err != nil {
		return nil, err
	}
	return &checker{root: root, files: files, cache: cache, programs: map[string]*program{}}, nil
}

func (c *checker) close() error { return c.files.Close() }

// of gives a program, analysed.
func (c *checker) of(ctx context.Context, path string) (*program, error) {
	c.mu.Lock()
	p := c.programs[path]
	if p == nil {
		p = &program{seen: map[string]string{}}
		c.programs[path] = p
	}
	c.mu.Unlock()
	p.once.Do(func() { p.analysed, p.err = analyse(ctx, c.root, path, usual, c.cache) })
	return p, p.err
}

// verdict is what a row showed.
type verdict struct {
	// missing are calls that a program made and that are not allowed to it.
	missing []string
	// refused are calls that the kernel's filter refused.
	refused []string
	// differs says how the filtered run differs from the unfiltered ones.
	differs string
	// alike is true where two unfiltered runs were the same to the byte, so that
	// the filtered one had to be too.
	alike bool
	// widened is true where a program has sites whose call is not proved: the
	// product then allows what the engine allows, and the row proves nothing.
	widened bool
	// foreign are programs that the row made itself: they are in no image.
	foreign []string
}

func (v *verdict) failures() []string {
	out := slices.Clone(v.missing)
	for _, name := range v.refused {
		out = append(out, "refused by the kernel: "+name)
	}
	if v.differs != "" {
		out = append(out, v.differs)
	}
	return out
}

// attempts bounds how often runs that differ are compared anew: process numbers
// and the order of a directory's entries differ by chance, a refusal does not.
const attempts = 4

// row runs a command line as it is, traced, and under the filter made of what is
// allowed to the programs that it executes.
func (c *checker) row(ctx context.Context, line string) (*verdict, error) {
	job := observe.Job{Root: c.root, Dir: "/desk", Argv: []string{"/bin/sh", "-c", line}, Env: usual, Files: input, Timeout: 60 * time.Second}
	traced := job
	traced.Trace = true
	t, err := observe.Run(ctx, traced)
	if err != nil {
		return nil, err
	}
	v := new(verdict)
	allowed, err := c.judge(ctx, t.Trace, v)
	if err != nil {
		return nil, err
	}
	filtered := job
	if filtered.Filter, err = build(allowed, v.widened); err != nil {
		return nil, err
	}
	var without []*observe.Outcome
	for range 2 {
		o, err := observe.Run(ctx, job)
		if err != nil {
			return nil, err
		}
		without = append(without, o)
	}
	v.alike = same(without[0], without[1]) == ""
	for range attempts {
		f, err := observe.Run(ctx, filtered)
		if err != nil {
			return nil, err
		}
		if f.Asked == 0 {
			return nil, errors.New("the filter asked nothing, not even about the first execution")
		}
		v.refused = append(v.refused, f.Refused...)
		if v.differs = v.compare(without, f); v.differs == "" {
			break
		}
		o, err := observe.Run(ctx, job)
		if err != nil {
			return nil, err
		}
		without = append(without, o)
		// Two runs may be alike by chance, such as by a duration that they print.
		v.alike = v.alike && same(without[0], o) == ""
	}
	return v, nil
}

// compare says how a filtered run differs from every unfiltered one.
func (v *verdict) compare(without []*observe.Outcome, with *observe.Outcome) string {
	first := ""
	for _, w := range without {
		how := ""
		if v.alike {
			how = same(w, with)
		} else if w.Status != with.Status {
			how = fmt.Sprintf("status %d, without %d", with.Status, w.Status)
		}
		if how == "" {
			return ""
		}
		if first == "" {
			first = "under the filter: " + how
		}
	}
	return first
}

func same(without, with *observe.Outcome) string {
	switch {
	case without.Status != with.Status:
		return fmt.Sprintf("status %d, without %d", with.Status, without.Status)
	case !bytes.Equal(without.Stdout, with.Stdout):
		return "output " + difference(without.Stdout, with.Stdout)
	case !bytes.Equal(without.Stderr, with.Stderr):
		return "errors " + difference(without.Stderr, with.Stderr)
	}
	return ""
}

// difference shows the first line in which two outputs differ.
func difference(without, with []byte) string {
	a, b := strings.Split(string(without), "\n"), strings.Split(string(with), "\n")
	for i := range max(len(a), len(b)) {
		var x, y string
		if i < len(a) {
			x = a[i]
		}
		if i < len(b) {
			y = b[i]
		}
		if x != y {
			return fmt.Sprintf("%.200q, without %.200q", y, x)
		}
	}
	return "none"
}

// judge holds each program's calls against its own list, and gives the lists of
// all of them together.
func (c *checker) judge(ctx context.Context, t *observe.Trace, v *verdict) ([]plan.Syscall, error) {
	var all []plan.Syscall
	for path, seen := range t.Seen {
		if !strings.HasPrefix(path, "/") {
			path = filepath.Join("/desk", path)
		}
		real := programs(c.files, path)
		if real == nil {
			v.foreign = append(v.foreign, path)
			for name := range seen {
				all = append(all, plan.Syscall{Name: name, Phase: record.Serving})
			}
			continue
		}
		for _, r := range real {
			p, err := c.of(ctx, r)
			if err != nil {
				return nil, err
			}
			c.mu.Lock()
			maps.Copy(p.seen, seen)
			c.mu.Unlock()
			var names []string
			for _, s := range p.calls {
				names = append(names, s.Name)
				all = append(all, forLife(s))
			}
			if len(p.unresolved) > 0 {
				v.widened = true
				continue
			}
			for _, name := range missing(seen, names) {
				v.missing = append(v.missing, fmt.Sprintf("%s: %s was seen and is not allowed: %s", r, name, seen[name]))
			}
		}
	}
	slices.Sort(v.missing)
	return all, nil
}

// forLife is a call as it is before anybody says that the program serves.
func forLife(s plan.Syscall) plan.Syscall {
	s.Phase, s.UntilLoop = record.Serving, false
	return s
}

// build makes the kernel's filter of a list, with no engine's profile: what is
// in the list is allowed and nothing else, unless it is widened.
func build(allowed []plan.Syscall, widened bool) (*observe.Filter, error) {
	p, v, err := filter.Build(filter.Input{Arch: "amd64", Allow: allowed, Widened: widened, ListenerPath: "/listener", Mode: record.Enforce})
	if err != nil {
		return nil, err
	}
	return compiled(p, v)
}

func compiled(p *specs.LinuxSeccomp, v *filter.Verdicts) (*observe.Filter, error) {
	program, err := observe.Compile(p)
	if err != nil {
		return nil, err
	}
	return &observe.Filter{Program: program, Verdicts: v}, nil
}

// all runs rows, two at a time, and reports each.
func (c *checker) all(ctx context.Context, lines []string, report func(line string, v *verdict, err error)) {
	work := make(chan string)
	var wait sync.WaitGroup
	var mu sync.Mutex
	for range 2 {
		wait.Go(func() {
			for line := range work {
				v, err := c.row(ctx, line)
				mu.Lock()
				report(line, v, err)
				mu.Unlock()
			}
		})
	}
	for _, line := range lines {
		work <- line
	}
	close(work)
	wait.Wait()
}
