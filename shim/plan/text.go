package plan

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/declarun/declarun/shim/record"
)

// Text writes the plan for a person: one line an entry, with the declaration
// it follows from. Entries that every container has for the same reason share
// a line, long declarations are cut, and nothing that an image holds reaches the
// terminal as anything but printable characters. JSON has everything.
func (p *Plan) Text(w io.Writer) error {
	out := &printer{w: bufio.NewWriter(w)}
	switch {
	case p.Image.Ref != "":
		out.line("image         %s", p.Image.Ref)
	case p.Image.Digest == "":
		out.line("image         none: a bare bundle")
	}
	if p.Image.Digest != "" {
		out.line("digest        %s", p.Image.Digest)
	}
	out.line("mode          %s", modes(p.Mode))
	if p.Wide {
		out.line("WIDE          it may run every program of the image, and nothing written later: %s", p.WideReason)
	}
	if p.WideStarting {
		out.line("WIDE AT START until it serves it may run every program of the image: %s", p.WideStartingReason)
	}
	out.admission(p.Admission)
	out.processes(p)
	out.syscalls(p)
	out.storage(p.Storage)
	out.network(p.Network)
	out.capabilities(p.Capabilities, p.NoNewPrivileges)
	if len(p.Notes) > 0 {
		out.section("notes")
		for _, n := range p.Notes {
			out.line("  %-11s %s", n.Dimension, n.Text)
		}
	}
	return out.w.Flush()
}

const (
	textWidth = 100 // of lists of words
	whatWidth = 47  // of an entry before its reason; a longer one has its reason on the next line
	whyWidth  = 96  // of a reason
)

type printer struct{ w *bufio.Writer }

func (p *printer) line(format string, args ...any) {
	fmt.Fprintln(p.w, printable(strings.TrimRight(fmt.Sprintf(format, args...), " ")))
}

func (p *printer) section(format string, args ...any) {
	fmt.Fprintln(p.w)
	p.line(format, args...)
}

// printable is s without what drives a terminal, reorders its line or breaks it.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

// entry is one thing that is allowed.
type entry struct {
	kind    string // "serving", "mounted"
	what    string
	origins []record.Origin
}

// general is true of what holds for every container, whatever its image says.
func (e entry) general() bool {
	return len(e.origins) > 0 && !slices.ContainsFunc(e.origins, func(o record.Origin) bool {
		return o.Source != record.FromEngine && o.Source != record.FromDefault && o.Source != record.FromRuntime
	})
}

// telling orders sources by how much they tell a person: what somebody wrote
// before what was found. One that is not listed comes first.
var telling = []record.Source{record.FromOperator, record.FromSite, record.FromImage, record.FromCompose, record.FromScript,
	record.FromHistory, record.FromCatalogue, record.FromFile, record.FromEngine, record.FromRuntime, record.FromDefault}

// because is the most telling declaration, short.
func (e entry) because() string {
	if len(e.origins) == 0 {
		return "nothing"
	}
	o := slices.MinFunc(e.origins, func(a, b record.Origin) int { return slices.Index(telling, a.Source) - slices.Index(telling, b.Source) })
	more := ""
	if n := len(e.origins) - 1; n > 0 {
		more = fmt.Sprintf(" (+%d)", n)
	}
	return clip(o.String(), whyWidth-utf8.RuneCountInString(more)) + more
}

func clip(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return s
}

// entries writes them in columns. General ones of the same kind and place in
// the same declaration share a line, after the others.
func (p *printer) entries(all []entry) {
	type group struct{ kind, because string }
	var order []group
	shared := map[group][]string{}
	var own []entry
	kind, what := 0, 0
	for _, e := range all {
		kind = max(kind, len(e.kind))
		if e.general() {
			g := group{e.kind, string(e.origins[0].Source) + " " + e.origins[0].At}
			if shared[g] == nil {
				order = append(order, g)
			}
			shared[g] = append(shared[g], e.what)
			continue
		}
		own = append(own, e)
		if n := utf8.RuneCountInString(e.what); n <= whatWidth {
			what = max(what, n)
		}
	}
	if kind > 0 {
		kind += 2
	}
	for _, e := range own {
		if utf8.RuneCountInString(e.what) > whatWidth {
			p.line("  %-*s%s", kind, e.kind, e.what)
			p.line("  %-*s%-*s  ← %s", kind, "", what, "", e.because())
			continue
		}
		p.line("  %-*s%-*s  ← %s", kind, e.kind, what, e.what, e.because())
	}
	for _, g := range order {
		p.words(fmt.Sprintf("  %-*s", kind, g.kind), append(shared[g], " ← "+g.because))
	}
}

// words writes a list, broken where a line is full.
func (p *printer) words(title string, words []string) {
	if len(words) == 0 {
		return
	}
	line := title + words[0]
	for _, w := range words[1:] {
		if utf8.RuneCountInString(line)+1+utf8.RuneCountInString(w) > textWidth {
			p.line("%s", line)
			line = strings.Repeat(" ", utf8.RuneCountInString(title)) + w
			continue
		}
		line += " " + w
	}
	p.line("%s", line)
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
	p.line("admission     %s", cmp.Or(a.Verdict, Refuse))
	for _, r := range a.Reasons {
		p.line("  %-7s %s: %s", r.Verdict, r.ID, r.Text)
		for _, o := range r.Origins {
			p.line("          ← %s", clip(o.String(), whyWidth))
		}
		if r.Remedy != "" {
			p.line("          try: %s", r.Remedy)
		}
	}
}

// kind is what a program is there for.
func (e Process) kind() string {
	switch {
	case e.Identity != "" && e.Identity != record.Application:
		return string(e.Identity)
	case e.Main:
		return "main"
	}
	return string(e.Phase)
}

func (p *printer) processes(plan *Plan) {
	if plan.Wide {
		p.section("programs that may run: every one of the image; named are %d", len(plan.Processes))
	} else {
		p.section("programs that may run (%d)", len(plan.Processes))
	}
	rank := map[string]int{"main": 0, string(record.Serving): 1, string(record.Starting): 2}
	var all []entry
	for _, e := range plan.Processes {
		kind := e.kind()
		if _, ok := rank[kind]; !ok {
			rank[kind] = len(rank)
		}
		what := e.Path
		if e.Mounted {
			what += " (mounted)"
		}
		all = append(all, entry{kind, what, e.Origins})
	}
	slices.SortStableFunc(all, func(a, b entry) int { return rank[a.kind] - rank[b.kind] })
	p.entries(all)
}

func (p *printer) syscalls(plan *Plan) {
	s := plan.Syscalls
	var starting, until, serving []string
	for _, c := range s.Allow {
		switch {
		case c.Phase == record.Starting:
			starting = append(starting, c.Name)
		case c.UntilLoop && !s.Widened:
			until = append(until, c.Name)
		default:
			serving = append(serving, c.Name)
		}
	}
	switch {
	case s.Widened && len(s.Allow) == 0:
		p.section("system calls: those of the engine's own profile")
	case s.Widened:
		p.section("system calls: WIDENED to the engine's own profile; proved are %d while it starts, %d once it serves", len(s.Allow), len(serving))
	case len(until) > 0:
		p.section("system calls: %d while it starts, %d once it serves, %d for a process in its service loop", len(s.Allow), len(serving)+len(until), len(serving))
	default:
		p.section("system calls: %d while it starts, %d once it serves", len(s.Allow), len(serving))
	}
	p.words("  serving   ", serving)
	p.words("  till loop ", until)
	p.words("  starting  ", starting)
	if !s.Widened {
		p.args(s.Allow)
	}
	sites := map[string][]Site{}
	for _, u := range s.Unresolved {
		sites[u.File] = append(sites[u.File], u)
	}
	for _, file := range slices.Sorted(maps.Keys(sites)) {
		more := ""
		if n := len(sites[file]) - 1; n > 0 {
			more = fmt.Sprintf(" (and %d more places)", n)
		}
		p.line("  unknown   %s+%#x: %s%s", file, sites[file][0].Address, sites[file][0].Reason, more)
	}
	if len(s.Allow) > 0 {
		p.line("  why one of them: declarun plan --why %s …", example(slices.Concat(serving, until), starting))
	}
}

// example is a call that a reader may wonder about.
func example(serving, starting []string) string {
	for _, name := range []string{"mount", "ptrace", "setns", "unshare", "chroot", "keyctl", "clone3", "socket"} {
		if slices.Contains(serving, name) {
			return name
		}
	}
	return append(serving, starting...)[0]
}

func (p *printer) storage(s Storage) {
	switch {
	case !s.ReadonlyRoot:
		p.section("storage: the root is writable, as config.json declares, and")
	case len(s.Writable) == 0:
		p.section("storage: read-only")
	default:
		p.section("storage: read-only but for these, and nothing in them can be executed unless it is marked")
	}
	var all []entry
	for _, e := range s.Writable {
		kind := "own layer"
		if e.Mounted {
			kind = "mounted"
		}
		if e.Exec {
			kind += ", EXECUTABLE"
		} else if e.Maps || e.Holds {
			kind += ", LIBRARIES"
		}
		if e.Phase == record.Starting {
			kind += ", starting"
		}
		all = append(all, entry{kind, e.Path, e.Origins})
	}
	p.entries(all)
}

func (l Listen) String() string {
	if l.Last > l.Port {
		return fmt.Sprintf("%d-%d/%s", l.Port, l.Last, l.Proto)
	}
	return fmt.Sprintf("%d/%s", l.Port, l.Proto)
}

func (c Peer) String() string {
	to := cmp.Or(c.Name, c.CIDR)
	switch {
	case c.Port != 0 && strings.Contains(to, ":"):
		to = fmt.Sprintf("[%s]:%d", to, c.Port)
	case c.Port != 0:
		to += fmt.Sprintf(":%d", c.Port)
	}
	if c.Proto != "" {
		to += "/" + c.Proto
	}
	return to
}

func (p *printer) network(n Network) {
	if n.Enforced {
		p.section("network: loopback, established connections, and")
	} else {
		p.section("network: NOT ENFORCED: %s", n.Reason)
	}
	var all []entry
	for _, l := range n.Listen {
		all = append(all, entry{"listen", l.String(), l.Origins})
	}
	for _, l := range n.Inside {
		all = append(all, entry{"inside", l.String(), l.Origins})
	}
	for _, c := range n.Connect {
		all = append(all, entry{"connect", c.String(), c.Origins})
	}
	p.entries(all)
	if len(n.Listen) == 0 && n.Enforced {
		p.line("  listen   on no port: nothing is exposed or published")
	}
}

func (p *printer) capabilities(all []Capability, noMore bool) {
	if noMore {
		p.section("capabilities (%d), and no program gets any from its file (no_new_privs)", len(all))
	} else {
		p.section("capabilities (%d)", len(all))
	}
	var entries []entry
	for _, c := range all {
		entries = append(entries, entry{"", c.Name, c.Origins})
	}
	p.entries(entries)
}

// Why writes every declaration that allows what: a program by path or name, a
// writable path, a port, a peer or a capability. It says whether there was any.
// Reasons answers for system calls.
func (p *Plan) Why(w io.Writer, what string) (found bool, err error) {
	out := &printer{w: bufio.NewWriter(w)}
	say := func(title string, origins []record.Origin) {
		found = true
		out.line("%s", title)
		if len(origins) == 0 {
			out.line("  ← nothing")
		}
		for _, o := range origins {
			out.line("  ← %s", o)
		}
	}
	for _, e := range p.Processes {
		if e.Path == what || path.Base(e.Path) == what {
			say(fmt.Sprintf("program %s (%s)", e.Path, e.kind()), e.Origins)
		}
	}
	for _, e := range p.Storage.Writable {
		if e.Path == what || e.Path == "/" || strings.HasPrefix(what, e.Path+"/") {
			say("writable "+e.Path, e.Origins)
		}
	}
	for _, l := range p.Network.Listen {
		if l.String() == what || fmt.Sprint(l.Port) == what {
			say("listen "+l.String(), l.Origins)
		}
	}
	for _, l := range p.Network.Inside {
		if l.String() == what || fmt.Sprint(l.Port) == what {
			say("listen "+l.String()+", which nobody outside may connect to", l.Origins)
		}
	}
	for _, c := range p.Network.Connect {
		if what != "" && (c.String() == what || c.Name == what || c.CIDR == what) {
			say("connect "+c.String(), c.Origins)
		}
	}
	for _, c := range p.Capabilities {
		if c.Name == what || c.Name == "CAP_"+strings.ToUpper(what) {
			say("capability "+c.Name, c.Origins)
		}
	}
	return found, out.w.Flush()
}
