package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/record"
)

// measureFilter measures what the filter of a server costs: made and loaded
// once, and on each allowed call.
func measureFilter(ctx context.Context, b *bench, r *report) error {
	var m *served
	for _, s := range b.servers {
		if s.name == "nginx" {
			m = s
		}
	}
	if m == nil {
		var err error
		if m, err = six[0].analyse(ctx, b.cache); err != nil {
			return err
		}
	}
	engine, err := dockers()
	if err != nil {
		return err
	}
	calls := m.calls
	input := filter.Input{Arch: "amd64", Allow: calls, Widened: len(m.unresolved) > 0, Engine: engine, NoNewPrivileges: true, ListenerPath: "/listener", Mode: record.Enforce}
	var ours, theirs, built, loads []float64
	var f *observe.Filter
	for range 15 { // in turns
		before := time.Now()
		p, v, err := filter.Build(input)
		if err != nil {
			return err
		}
		built = append(built, 1000*time.Since(before).Seconds())
		if f, err = compiled(p, v); err != nil {
			return err
		}
		made := time.Since(before)
		loaded, err := observe.LoadTime(ctx, f.Program)
		if err != nil {
			return err
		}
		loads = append(loads, 1000*loaded.Seconds())
		ours = append(ours, 1000*(made+loaded).Seconds())
		before = time.Now()
		d, err := observe.Compile(engine)
		if err != nil {
			return err
		}
		made = time.Since(before)
		if loaded, err = observe.LoadTime(ctx, d); err != nil {
			return err
		}
		theirs = append(theirs, 1000*(made+loaded).Seconds())
	}
	o, d := median(ours), median(theirs)
	r.add(row{"filter build and load", "Docker's default 15-50 ms", "2 ms", fmt.Sprintf("%.2f ms (%.2f to %.2f)", o, slices.Min(ours), slices.Max(ours)), met(o <= 2),
		fmt.Sprintf("of it the list's own %.2f ms, the kernel %.2f ms (%d instructions), the rest libseccomp; Docker's default profile through the same loader, in turns: %.2f ms; ours is %.2f of it",
			median(built), median(loads), len(f.Program)/8, d, o/d)})
	without, with, err := observe.CallTime(ctx, f.Program)
	if err != nil {
		return err
	}
	var ratios []float64
	for i := range without {
		ratios = append(ratios, with[i]/without[i])
	}
	slices.Sort(ratios)
	x := median(ratios)
	r.add(row{"an allowed call under the filter against no filter", "-", "1.02", fmt.Sprintf("%.3f (quartiles %.3f, %.3f)", x, ratios[len(ratios)/4], ratios[3*len(ratios)/4]), met(x <= 1.02),
		fmt.Sprintf("read of one byte, %d turns on two threads of one process: %.0f ns without, %.0f ns with", len(ratios), median(without), median(with))})
	return nil
}
