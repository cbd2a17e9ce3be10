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
	var ours, theirs []float64
	var f *observe.Filter
	for range 15 { // in turns
		before := time.Now()
		p, v, err := filter.Build(input)
		if err != nil {
			return err
		}
		if f, err = compiled(p, v); err != nil {
			return err
		}
		made := time.Since(before)
		loaded, err := observe.LoadTime(ctx, f.Program)
		if err != nil {
			return err
		}
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
		fmt.Sprintf("Docker's default profile through the same loader in the same run, in turns: %.2f ms; ours is %.2f of it", d, o/d)})
	var ratios []float64
	for i := range 11 {
		pair := make([]float64, 2)
		for k := range pair {
			which := (i + k) % 2 // the order alternates
			program := f.Program
			if which == 0 {
				program = nil
			}
			t, err := observe.CallTime(ctx, program)
			if err != nil {
				return err
			}
			pair[which] = t.Seconds()
		}
		ratios = append(ratios, pair[1]/pair[0])
	}
	x := median(ratios)
	r.add(row{"an allowed call under the filter against no filter", "-", "1.02", fmt.Sprintf("%.3f (%.3f to %.3f)", x, slices.Min(ratios), slices.Max(ratios)), met(x <= 1.02),
		"read of one byte in a loop, 11 pairs of processes in turns"})
	return nil
}
