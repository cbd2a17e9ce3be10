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

// Text writes the plan for a person: one line an entry, each with the
// declaration it follows from.
func (p *Plan) Text(w io.Writer) error {
	out := &printer{w: bufio.NewWriter(w)}
	out.line("image         %s", cmp.Or(p.Image.Ref, "(none: a bare bundle)"))
	if p.Image.Digest != "" {
		out.line("digest        %s", p.Image.Digest)
	}
	out.line("mode          %s", modes(p.Mode))
	if p.Wide {
		out.line("WIDE          %s", p.WideReason)
	}
	if p.WideStarting {
		out.line("WIDE AT START %s", p.WideStartingReason)
	}
	out.admission(p.Admission)
	out.processes(p.Processes)
	out.syscalls(p.Syscalls)
	out.storage(p.Storage)
	out.network(p.Network)
	out.section(fmt.Sprintf("capabilities (%d)", len(p.Capabilities)))
	for _, c := range p.Capabilities {
		out.entry(c.Name, "", c.Origins)
	}
	if len(p.Notes) > 0 {
		out.section("notes")
		for _, n := range p.Notes {
			out.line("  %-10s %s", n.Dimension, n.Text)
		}
	}
	return out.w.Flush()
}

type printer struct{ w *bufio.Writer }

func (p *printer) line(format string, args ...any) { fmt.Fprintf(p.w, format+"\n", args...) }

func (p *printer) section(title string) { p.line("\n%s", title) }

func (p *printer) entry(what, detail string, origins []record.Origin) {
	because := "nothing"
	if len(origins) > 0 {
		because = origins[0].String()
		if n := len(origins) - 1; n > 0 {
			because += fmt.Sprintf(" (and %d more)", n)
		}
	}
	p.line("  %-34s %-22s ← %s", what, detail, because)
}

func modes(m map[record.Dimension]record.Mode) string {
	var distinct []string
	for _, mode := range m {
		if !slices.Contains(distinct, string(mode)) {
			distinct = append(distinct, string(mode))
		}
	}
	if len(distinct) == 1 {
		return distinct[0]
	}
	var parts []string
	for _, d := range slices.Sorted(maps.Keys(m)) {
		parts = append(parts, fmt.Sprintf("%s=%s", d, m[d]))
	}
	return strings.Join(parts, " ")
}

func (p *printer) admission(a Admission) {
	p.line("admission     %s", a.Verdict)
	for _, r := range a.Reasons {
		p.line("  %-7s %s: %s", r.Verdict, r.ID, r.Text)
		for _, o := range r.Origins {
			p.line("          ← %s", o)
		}
		if r.Remedy != "" {
			p.line("          try: %s", r.Remedy)
		}
	}
}

func (p *printer) processes(all []Process) {
	p.section(fmt.Sprintf("programs that may run (%d)", len(all)))
	for _, e := range all {
		detail := string(e.Phase)
		if e.Identity != record.Application {
			detail = string(e.Identity)
		}
		if e.Main {
			detail += ", main"
		}
		p.entry(e.Path, detail, e.Origins)
	}
}

func (p *printer) syscalls(s Syscalls) {
	var starting, serving []string
	for _, c := range s.Allow {
		if c.Phase == record.Starting {
			starting = append(starting, c.Name)
		} else {
			serving = append(serving, c.Name)
		}
	}
	title := fmt.Sprintf("system calls: %d allowed (%d once it serves)", len(s.Allow), len(serving))
	if s.Widened {
		title += "; WIDENED to the engine's own profile"
	}
	p.section(title)
	p.words("serving", serving)
	p.words("starting", starting)
	for _, u := range s.Unresolved {
		p.line("  unresolved  %s+%#x: %s", u.File, u.Address, u.Reason)
	}
	if len(s.Allow) > 0 {
		p.line("  why one of them: declarun plan --json, .syscalls.allow[].origins")
	}
}

func (p *printer) words(title string, words []string) {
	const width = 100
	line := fmt.Sprintf("  %-10s", title)
	for _, w := range words {
		if len(line)+1+len(w) > width {
			p.line("%s", line)
			line = strings.Repeat(" ", 12)
		}
		line += " " + w
	}
	if len(words) > 0 {
		p.line("%s", line)
	}
}

func (p *printer) storage(s Storage) {
	title := "storage: read-only root, writable (never executable):"
	if !s.ReadonlyRoot {
		title = "storage: the root is writable, as config.json declares; also:"
	}
	p.section(title)
	for _, e := range s.Writable {
		detail := "in its own layer"
		if e.Mounted {
			detail = "mounted"
		}
		if e.Exec {
			detail += ", executable"
		}
		p.entry(e.Path, detail, e.Origins)
	}
}

func (p *printer) network(n Network) {
	if !n.Enforced {
		p.section("network: not enforced: " + n.Reason)
	} else {
		p.section("network")
	}
	for _, l := range n.Listen {
		port := fmt.Sprintf("%d/%s", l.Port, l.Proto)
		if l.Last > l.Port {
			port = fmt.Sprintf("%d-%d/%s", l.Port, l.Last, l.Proto)
		}
		p.entry("listen "+port, "", l.Origins)
	}
	for _, c := range n.Connect {
		to := cmp.Or(c.Name, c.CIDR)
		if c.Port != 0 {
			to += fmt.Sprintf(":%d", c.Port)
		}
		p.entry("connect "+to, c.Proto, c.Origins)
	}
	if len(n.Listen) == 0 && n.Enforced {
		p.line("  no port: nothing is exposed or published")
	}
}
