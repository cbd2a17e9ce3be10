// Command seccomp prints what the analysis of system calls is judged by: the
// bars that the project sets itself, what was measured in this run, and beside
// every count the dynamic check. "make bench-seccomp" runs it.
//
// Nothing in it is a recorded number but the published figures of others and
// the bars. A row that could not be measured says why.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
)

func main() {
	observe.Child(drivers)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 60*time.Minute)
	err := run(ctx, os.Args[1:])
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-seccomp:", err)
		os.Exit(1)
	}
}

// row is one of the bars.
type row struct {
	what, published, bar string
	measured             string
	verdict              string // "met", "NOT MET", or why it was not measured
	check                string // the dynamic check beside it
}

// report collects rows, and what stands below the table.
type report struct {
	rows  []row
	notes []string
}

func (r *report) add(row row) {
	r.rows = append(r.rows, row)
	fmt.Fprintf(os.Stderr, "%s: %s (%s)\n", row.what, row.measured, row.verdict)
}

func (r *report) note(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "NOT MET"
}

func (r *report) print() {
	fmt.Printf("\n%s, %d CPUs, %s\n\n", time.Now().UTC().Format(time.DateTime), runtime.NumCPU(), runtime.Version())
	for _, x := range r.rows {
		fmt.Printf("%s\n    best published %s · bar %s · measured %s · %s\n", x.what, x.published, x.bar, x.measured, x.verdict)
		if x.check != "" {
			fmt.Printf("    dynamic check: %s\n", x.check)
		}
	}
	for _, n := range r.notes {
		fmt.Printf("\n%s\n", n)
	}
}

// parts are what a run measures, in order; words on the command line choose.
var parts = []struct {
	name    string
	measure func(context.Context, *bench, *report) error
}{
	{"servers", measureServers},
	{"payloads", measurePayloads},
	{"programs", measurePrograms},
	{"go", measureGo},
	{"images", measureImages},
	{"analysis", measureAnalysis},
	{"filter", measureFilter},
}

// bench is what the parts share.
type bench struct {
	cache   seccompgen.Cache
	servers []*served // of the first part
}

func run(ctx context.Context, words []string) error {
	if os.Geteuid() != 0 {
		return errors.New("namespaces and root file systems need root: try sudo make bench-seccomp")
	}
	cache, err := seccompgen.OpenDirCache(filepath.Join(engine.Cache(), "analysis"))
	if err != nil {
		return err
	}
	b := &bench{cache: cache}
	if len(words) > 1 && words[0] == "row" {
		return b.one(ctx, strings.Join(words[1:], " "))
	}
	if len(words) == 2 && words[0] == "why" {
		return b.why(ctx, words[1])
	}
	var r report
	var failed error
	for _, p := range parts {
		chosen := len(words) == 0
		for _, w := range words {
			chosen = chosen || w == p.name || w == "payloads" && p.name == "servers"
		}
		if !chosen {
			continue
		}
		if err := p.measure(ctx, b, &r); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", p.name, err))
			r.add(row{what: p.name, published: "-", bar: "-", measured: "-", verdict: "not measured: " + strings.ReplaceAll(err.Error(), "\n", " ")})
		}
	}
	r.print()
	return failed
}

// one runs a command line as the rows of programs.txt are run.
func (b *bench) one(ctx context.Context, line string) error {
	c, err := newChecker(ctx, b.cache)
	if err != nil {
		return err
	}
	defer c.close()
	v, err := c.row(ctx, line)
	if err != nil {
		return err
	}
	for path, p := range c.programs {
		fmt.Printf("%s: %d allowed, %d unproved sites, %d seen\n", path, len(p.calls), len(p.unresolved), len(p.seen))
	}
	for _, f := range v.failures() {
		fmt.Println(f)
	}
	return nil
}

// why prints where the calls come from that a server may make and was not seen
// to make: what there is to gain.
func (b *bench) why(ctx context.Context, name string) error {
	for _, s := range six {
		if s.name != name {
			continue
		}
		m, err := s.measure(ctx, b.cache)
		if err != nil {
			return err
		}
		fmt.Printf("%s: %d proved, %d seen\n", s.name, len(m.calls), len(m.seen))
		for _, c := range m.calls {
			if m.seen[c.Name] != "" {
				continue
			}
			var at []string
			for _, o := range c.Origins {
				at = append(at, o.At)
			}
			until := ""
			if !serving(c) {
				until = " (not while it serves)"
			}
			fmt.Printf("  %-18s%s %s\n", c.Name, until, strings.Join(at, " | "))
		}
		return nil
	}
	return fmt.Errorf("no server %q", name)
}
