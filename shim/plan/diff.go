package plan

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// Effect is what a change does to what a container may do.
type Effect string

const (
	Widens  Effect = "widens"
	Narrows Effect = "narrows"
	Changes Effect = "changes" // neither, or both
)

// Change is one difference between two plans.
type Change struct {
	Effect Effect `json:"effect"`
	// Kind is of what: "system call", "program", "writable path", "port",
	// "peer", "capability", "mode", "guard", "admission".
	Kind string `json:"kind"`
	What string `json:"what"`
	// Old and New say in which way it was and is allowed; empty: not.
	Old     string          `json:"old,omitempty"`
	New     string          `json:"new,omitempty"`
	Origins []record.Origin `json:"origins"` // of the new entry, or of the old where it is gone
}

// Diff is what one plan allows and another does not.
type Diff struct {
	Old     Image    `json:"old"`
	New     Image    `json:"new"`
	Changes []Change `json:"changes"` // widening ones first
}

// item is one thing that a plan allows, and how far.
type item struct {
	how     string
	rank    int // the higher the wider
	origins []record.Origin
	args    []Arg // what a call's arguments are held to
}

// against tells what a change of an entry's how does.
func (i item) against(was item) Effect {
	wider := i.rank > was.rank || !within(i.args, was.args)
	narrower := i.rank < was.rank || !within(was.args, i.args)
	switch {
	case wider && !narrower:
		return Widens
	case narrower && !wider:
		return Narrows
	}
	return Changes
}

// within tells whether arguments that a allows are allowed by b, too.
func within(a, b []Arg) bool {
	for _, held := range b {
		if !held.Proved() {
			continue
		}
		i := slices.IndexFunc(a, func(x Arg) bool { return x.Index == held.Index && x.Proved() })
		if i < 0 || slices.ContainsFunc(a[i].Values, func(v ArgValue) bool {
			return !slices.ContainsFunc(held.Values, func(w ArgValue) bool { return w.Value == v.Value })
		}) {
			return false
		}
	}
	return true
}

type items map[string]item

// put keeps the widest of several entries of the same name.
func (m items) put(name string, i item) {
	if had, ok := m[name]; !ok || i.rank > had.rank {
		m[name] = i
	}
}

// Compare says what the newer of two plans widens and narrows. Where an entry
// comes from, notes, and the image's name are no differences.
func Compare(older, newer *Plan) Diff {
	d := Diff{Old: older.Image, New: newer.Image, Changes: []Change{}}
	a, b := older.items(), newer.items()
	for _, k := range kinds {
		for _, what := range slices.Sorted(maps.Keys(merged(a[k], b[k]))) {
			was, had := a[k][what]
			is, has := b[k][what]
			c := Change{Kind: k, What: what, Old: was.how, New: is.how, Origins: is.origins}
			switch {
			case had && has && was.how == is.how:
				continue
			case !had && k == writable && older.covers(what, is), !has && k == writable && newer.covers(what, was):
				continue // it lies in another tree that is as writable
			case !had:
				c.Effect = Widens
			case !has:
				c.Effect, c.Origins = Narrows, was.origins
			default:
				c.Effect = is.against(was)
			}
			if c.Origins == nil {
				c.Origins = []record.Origin{}
			}
			d.Changes = append(d.Changes, c)
		}
	}
	order := []Effect{Widens, Changes, Narrows}
	slices.SortStableFunc(d.Changes, func(x, y Change) int {
		return cmp.Compare(slices.Index(order, x.Effect), slices.Index(order, y.Effect))
	})
	return d
}

func merged(a, b items) items {
	all := maps.Clone(a)
	if all == nil {
		all = items{}
	}
	maps.Copy(all, b)
	return all
}

const (
	mode       = "mode"
	guard      = "guard"
	admission  = "admission"
	call       = "system call"
	program    = "program"
	writable   = "writable path"
	port       = "port"
	peer       = "peer"
	capability = "capability"
)

var kinds = []string{admission, mode, guard, call, program, writable, port, peer, capability}

// items lists everything that a plan allows.
func (p *Plan) items() map[string]items {
	all := map[string]items{}
	for _, k := range kinds {
		all[k] = items{}
	}
	verdict := cmp.Or(p.Admission.Verdict, Refuse)
	all[admission]["verdict"] = item{how: string(verdict), rank: slices.Index([]AdmissionVerdict{Refuse, Warn, Admit}, verdict)}
	for _, d := range record.Dimensions() {
		m := p.Mode[d]
		all[mode][string(d)] = item{how: cmp.Or(string(m), "not decided"), rank: -m.Strictness()}
	}
	all[guard] = p.guards()
	for _, c := range p.Syscalls.Allow {
		all[call].put(c.Name, c.item())
	}
	for _, e := range p.Processes {
		what, how := e.Path, string(cmp.Or(e.Phase, record.Serving))
		if e.Identity != "" && e.Identity != record.Application {
			what += fmt.Sprintf(" (%s)", e.Identity)
		}
		all[program].put(what, item{how: how, rank: reach(e.Phase), origins: e.Origins})
	}
	for _, e := range p.Storage.Writable {
		all[writable].put(e.Path, e.item())
	}
	for _, l := range p.Network.Listen {
		all[port].put(l.String(), item{how: "listen", rank: 1, origins: l.Origins})
	}
	for _, l := range p.Network.Inside {
		all[port].put(l.String()+" inside", item{how: "listen", rank: 1, origins: l.Origins})
	}
	for _, c := range p.Network.Connect {
		all[peer].put(c.String(), item{how: "connect", rank: 1, origins: c.Origins})
	}
	for _, c := range p.Capabilities {
		all[capability].put(c.Name, item{how: "kept", rank: 1, origins: c.Origins})
	}
	return all
}

// reach orders phases; one that was never decided holds for the whole life.
func reach(f record.Phase) int {
	if f == record.Starting {
		return 1
	}
	return 3
}

// item: a call that a process loses in its loop lasts longer than one of the
// start alone.
func (c Syscall) item() item {
	i := item{how: string(cmp.Or(c.Phase, record.Serving)), rank: reach(c.Phase), origins: c.Origins, args: c.Args}
	if c.UntilLoop {
		i.how, i.rank = i.how+", until its loop", i.rank-1
	}
	for _, a := range c.Args {
		if a.Proved() {
			words := a.words()
			slices.Sort(words)
			i.how += fmt.Sprintf(", argument %d one of %s", a.Index+1, strings.Join(words, " "))
		}
	}
	return i
}

// guards are what holds for a whole dimension.
func (p *Plan) guards() items {
	calls, programs := item{how: "those listed"}, item{how: "those listed"}
	if p.Syscalls.Widened {
		calls = item{how: "all that the engine's profile allows", rank: 1}
	}
	switch {
	case p.Wide:
		programs = item{how: "every one of the image", rank: 2}
	case p.WideStarting:
		programs = item{how: "every one of the image until it serves", rank: 1}
	}
	root, network := item{how: "read-only"}, item{how: "held to the plan"}
	if !p.Storage.ReadonlyRoot {
		root = item{how: "writable", rank: 1}
	}
	if !p.Network.Enforced {
		network = item{how: "not enforced", rank: 1}
	}
	return items{
		"system calls": calls, "programs": programs, "root file system": root, "network": network,
		"architecture": {how: strings.Join(append([]string{p.Syscalls.Architecture}, p.Syscalls.Architectures...), " ")},
	}
}

func (e Writable) item() item {
	i := item{how: string(cmp.Or(e.Phase, record.Serving)), rank: reach(e.Phase), origins: e.Origins}
	if e.Exec {
		i.how, i.rank = i.how+", executable", i.rank+executable
	} else if e.Maps || e.Holds {
		i.how, i.rank = i.how+", libraries are loaded from it", i.rank+mapped
	}
	return i
}

// executable is above every phase: what can be executed from a place that can
// be written is not bounded by the list of programs. So is mapped, where libraries
// can be loaded.
const (
	mapped     = 5
	executable = 10
)

// covers tells whether the plan has a tree above name that is at least as
// writable and executable, for at least as long.
func (p *Plan) covers(name string, i item) bool {
	if !p.Storage.ReadonlyRoot && i.rank < mapped {
		return true
	}
	return slices.ContainsFunc(p.Storage.Writable, func(e Writable) bool {
		above, phase := e.Path == "/" || strings.HasPrefix(name, e.Path+"/"), reach(e.Phase)
		if i.rank >= executable {
			return above && e.Exec && phase >= i.rank-executable
		}
		if i.rank >= mapped {
			return above && e.Executes() && phase >= i.rank-mapped
		}
		return above && phase >= i.rank
	})
}

// Text writes the difference for a person.
func (d Diff) Text(w io.Writer) error {
	out := &printer{w: bufio.NewWriter(w)}
	name := func(i Image) string {
		if i.Ref == "" && i.Digest == "" {
			return "a bare bundle"
		}
		return strings.TrimSpace(i.Ref + " " + i.Digest)
	}
	if len(d.Changes) == 0 {
		return out.w.Flush() // as diff(1): nothing to say
	}
	out.line("old  %s", name(d.Old))
	out.line("new  %s", name(d.New))
	signs := map[Effect]string{Widens: "+", Narrows: "-", Changes: "~"}
	last := Effect("")
	for _, c := range d.Changes {
		if c.Effect != last {
			n := 0
			for _, x := range d.Changes {
				if x.Effect == c.Effect {
					n++
				}
			}
			out.section("%s (%d)", c.Effect, n)
			last = c.Effect
		}
		out.line("%s %s", signs[c.Effect], c)
		if len(c.Origins) > 0 {
			out.line("    ← %s", entry{origins: c.Origins}.because())
		}
	}
	return out.w.Flush()
}

func (c Change) String() string {
	switch {
	case c.Old == "":
		return fmt.Sprintf("%-13s %s (%s)", c.Kind, c.What, c.New)
	case c.New == "":
		return fmt.Sprintf("%-13s %s (was %s)", c.Kind, c.What, c.Old)
	}
	return fmt.Sprintf("%-13s %s: %s → %s", c.Kind, c.What, c.Old, c.New)
}
