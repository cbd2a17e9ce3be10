package plan

import (
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// Expected is one program of the process map with those that it may start.
type Expected struct {
	Path     string          `json:"path"`
	Phase    record.Phase    `json:"phase"`
	Identity record.Identity `json:"identity"`
	Main     bool            `json:"main,omitempty"`
	// Root is true for what nothing else of the map starts: the entrypoint, the
	// health check.
	Root bool `json:"root,omitempty"`
	// Starts are programs that are in the plan because this one names them. The
	// exec guard permits each of them to the whole application: who starts what
	// is for people.
	Starts []string `json:"starts,omitempty"`
}

// Expected is the process map. Who starts what follows from the origins: a
// program is in the plan because a line of a script, or a string in another
// program, names it. Files that only load others are left out.
func (p *Plan) Expected() []Expected {
	all := []Expected{}
	at := map[string][]int{}
	for _, e := range p.Processes {
		if e.Loader {
			continue
		}
		at[e.Path] = append(at[e.Path], len(all))
		all = append(all, Expected{Path: e.Path, Phase: e.Phase, Identity: e.Identity, Main: e.Main, Root: true})
	}
	for _, e := range p.Processes {
		if e.Loader {
			continue
		}
		for _, o := range e.Origins {
			by := starter(o)
			if by == "" || by == e.Path {
				continue
			}
			for _, i := range at[by] {
				if !slices.Contains(all[i].Starts, e.Path) {
					all[i].Starts = append(all[i].Starts, e.Path)
				}
				for _, j := range at[e.Path] {
					all[j].Root = false
				}
			}
		}
	}
	return all
}

// starter is the file that an origin lies in: "/entrypoint.sh:12", "/usr/bin/x+0x40".
func starter(o record.Origin) string {
	if o.Source != record.FromScript && o.Source != record.FromFile {
		return ""
	}
	name := o.At
	if i := strings.LastIndexByte(name, ':'); i > 0 && strings.Trim(name[i+1:], "0123456789") == "" {
		name = name[:i]
	}
	if i := strings.LastIndex(name, "+0x"); i > 0 {
		name = name[:i]
	}
	return name
}

// Unexpected says what a plan has against a program that somebody runs; empty: it
// is in the process map, or it cannot be told. phase is the container's when it was
// executed. It is for people: the exec guard decides on the file itself.
func (p *Plan) Unexpected(exe string, id record.Identity, phase record.Phase) string {
	if exe == "" || id == record.Operator {
		return "" // an operator may run what the image has
	}
	starting, health := false, false
	for _, e := range p.Processes {
		switch {
		case e.Path != exe:
		case e.Identity == record.HealthCheck && id != record.HealthCheck:
			health = true
		case e.Phase == record.Starting && phase != record.Starting:
			starting = true
		default:
			return ""
		}
	}
	switch {
	case p.Wide || p.WideStarting && phase == record.Starting:
		return ""
	case starting:
		return "only while starting, and the container serves"
	case health:
		return "only for the health check"
	}
	return "not in the plan"
}
