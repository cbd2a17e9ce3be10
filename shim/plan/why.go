package plan

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// Step is one function on the way to a system call.
type Step struct {
	File string `json:"file"`
	Func string `json:"function,omitempty"` // "": the file names none
	Addr uint64 `json:"address"`            // in the file
	Data bool   `json:"data,omitempty"`     // no function, but data that points to the next
}

func (s Step) String() string {
	switch {
	case s.Data && s.Addr == 0:
		return "data that points to"
	case s.Data:
		return strings.TrimSpace(fmt.Sprintf("%s data at %+#x that points to", s.Func, s.Addr))
	case s.Func == "":
		return fmt.Sprintf("%+#x", s.Addr)
	}
	return fmt.Sprintf("%s (%+#x)", s.Func, s.Addr)
}

// Way is how one program comes to a system call.
type Way struct {
	Program string          `json:"program"`
	Phase   record.Phase    `json:"phase"`
	Chain   []record.Origin `json:"chain"` // what runs the program, and what runs that, up to a declaration
	Start   string          `json:"start"` // why the first of Steps counts
	Steps   []Step          `json:"steps"`
	Site    uint64          `json:"site"` // the instruction, in the file of the last step
	Call    int             `json:"call"` // the number it is made with
}

// Reasons answers why a system call is allowed, or why it is not.
type Reasons struct {
	Call    string       `json:"call"`
	Allowed bool         `json:"allowed"`
	Phase   record.Phase `json:"phase,omitempty"`
	// UntilLoop: see Syscall.
	UntilLoop bool `json:"until_loop,omitempty"`
	// Because are sentences, the decisive one first.
	Because []string        `json:"because"`
	Origins []record.Origin `json:"origins"` // of the plan's entry
	Ways    []Way           `json:"ways"`    // shortest first, one of each program
	// Args are the arguments that were looked at.
	Args []Arg `json:"args,omitempty"`
}

// Chain lists what declares that a program may run: the script or program that
// runs it, what runs that, and so on up to somebody's declaration. Lines of
// scripts tell more than the declaration that a script is there for, and that
// tells more than strings in programs do; what the application runs counts
// before what its health check does.
func (p *Plan) Chain(program string) []record.Origin {
	chain, _ := p.chain(program, map[string]bool{})
	return chain
}

// chain is true where it ends in a declaration.
func (p *Plan) chain(program string, seen map[string]bool) (dead []record.Origin, ok bool) {
	seen[program] = true
	var all []record.Origin
	for _, application := range []bool{true, false} {
		var some []record.Origin
		for _, e := range p.Processes {
			if e.Path == program && (e.Identity == record.Application || e.Identity == "") == application {
				some = append(some, e.Origins...)
			}
		}
		rank := map[record.Source]int{record.FromScript: -1, record.FromFile: 1}
		slices.SortStableFunc(some, func(a, b record.Origin) int { return rank[a.Source] - rank[b.Source] })
		all = append(all, some...)
	}
	for _, o := range all {
		by := runner(o)
		if by == "" {
			return []record.Origin{o}, true
		}
		if seen[by] {
			continue
		}
		rest, ok := p.chain(by, seen)
		if ok {
			return append([]record.Origin{o}, rest...), true
		}
		if dead == nil && len(rest) == 0 {
			dead = []record.Origin{o} // in a file that is no program of the plan
		}
	}
	return dead, false
}

// runner is the file in which an origin lies that is itself run; "" for what
// somebody declared.
func runner(o record.Origin) string {
	if o.Source != record.FromScript && o.Source != record.FromFile {
		return ""
	}
	at := o.At
	if o.Source == record.FromScript {
		if i := strings.LastIndexByte(at, ':'); i > 0 {
			at = at[:i]
		}
	}
	if i := strings.LastIndex(at, "+0x"); i > 0 {
		at = at[:i]
	}
	if !path.IsAbs(at) {
		return ""
	}
	return at
}

// Text writes the answer for a person.
func (r *Reasons) Text(w io.Writer) error {
	out := &printer{w: bufio.NewWriter(w)}
	switch {
	case !r.Allowed:
		out.line("system call %s: NOT ALLOWED", r.Call)
	case r.Phase == record.Starting:
		out.line("system call %s (%s): until the container serves", r.Call, r.Phase)
	case r.UntilLoop:
		out.line("system call %s (%s): for each process until it is in the loop in which it serves", r.Call, cmp.Or(r.Phase, record.Serving))
	default:
		out.line("system call %s (%s): for the container's whole life", r.Call, cmp.Or(r.Phase, record.Serving))
	}
	for _, b := range r.Because {
		out.line("  %s", b)
	}
	for _, o := range r.Origins {
		if !slices.Contains([]record.Source{record.FromFile}, o.Source) || len(r.Ways) == 0 {
			out.line("  ← %s", o)
		}
	}
	out.whyArgs(r.Args)
	for _, way := range r.Ways {
		out.way(way)
	}
	return out.w.Flush()
}

func (p *printer) way(w Way) {
	functions := fmt.Sprintf("%d functions", len(w.Steps))
	switch len(w.Steps) {
	case 0:
		functions = "no function"
	case 1:
		functions = "1 function"
	}
	p.section("%s (%s): %s", w.Program, w.Phase, functions)
	for _, o := range w.Chain {
		p.line("  ← %s", clip(o.String(), 2*whyWidth))
	}
	p.line("  %s", w.Start)
	file := ""
	for _, s := range w.Steps {
		if s.File != file {
			file = s.File
			p.line("    %s", file)
		}
		p.line("      %s", s)
	}
	if len(w.Steps) > 0 {
		p.line("      makes system call %d at %+#x", w.Call, w.Site)
	}
}
