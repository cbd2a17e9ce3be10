package main

import (
	"cmp"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

func treeCommand() *cli.Command {
	return &cli.Command{
		Name:      "tree",
		ArgsUsage: "CONTAINER",
		Before:    exactlyOne,
		Description: "What the image declares that the container runs, what runs in it now, what ran before, and what\n" +
			"was refused; with \"!\" what nothing declares. CONTAINER is a name, or the beginning of an ID.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "as JSON", DisableDefaultText: true}},
		Action: func(c *cli.Context) error {
			cfg, err := loadSite(c)
			if err != nil {
				return err
			}
			answer, err := ask(c.Context, cfg, wire.Request{Operation: wire.Tree, Tree: &wire.TreeRequest{Container: c.Args().First()}})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, answer.Tree)
			}
			return printTree(c.App.Writer, answer.Tree, time.Now(), isTerminal(c.App.Writer))
		},
	}
}

func exactlyOne(c *cli.Context) error {
	if c.NArg() == 0 {
		return &advice{fmt.Errorf("%s: which container?", c.Command.Name), "declarun status lists them"}
	}
	return atMostOne(c)
}

const (
	programWidth = 96 // of a command line
	beforeShown  = 20 // kinds of process that ran before
	expectedList = 6  // programs that one may start
)

func printTree(w io.Writer, t *wire.ProcessTree, now time.Time, colour bool) error {
	if t == nil {
		return fmt.Errorf("print tree: the supervisor sent none")
	}
	mark := func(s string) string {
		if s == "" {
			return ""
		}
		s = "  ! " + clean(s)
		if colour {
			return "\x1b[31m" + s + "\x1b[0m"
		}
		return s
	}
	fmt.Fprintf(w, "%s  %s  %s, %s  mode %s\n", clean(cmp.Or(t.Name, fmt.Sprintf("%.12s", t.ID))), clean(t.Image), t.State, t.Phase, modeText(t.Mode))

	fmt.Fprintf(w, "\nexpected\n")
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	for _, e := range t.Expected {
		fmt.Fprintf(tab, "  %s\t%s\t%s\n", clean(e.Path), roleOf(e), mayStart(e))
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	if t.Wide {
		fmt.Fprintf(w, "  and every other program of the image: %s\n", clean(t.WideReason))
	}

	fmt.Fprintf(w, "\nruns now: %d\n", len(t.Live))
	tab = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "  PID\tINSIDE\tUSER\tFOR\tSINCE\tPROGRAM")
	odd := 0
	for _, row := range branches(t.Live) {
		p := row.LiveProcess
		notes := notesOf(p.Unexpected, p.Odd)
		if notes != "" {
			odd++
		}
		what := "(the runtime, before the first program)"
		if p.Ran {
			what = program(p.Exe, p.Argv, p.Comm)
		}
		fmt.Fprintf(tab, "  %d\t%s\t%d\t%s\t%s\t%s%s%s\n", p.PID, number(p.Inside), p.UID, forWhom(p.Identity), ago(now, p.Since), row.lead, what, mark(notes))
	}
	if err := tab.Flush(); err != nil {
		return err
	}

	fmt.Fprintf(w, "\nran before, since %s\n", t.Tree.Since.Local().Format("2006-01-02 15:04:05"))
	tab = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	before := t.Before
	// What is odd is not what is left out.
	slices.SortStableFunc(before, func(a, b record.PastProcess) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), a.First.Compare(b.First))
	})
	for i, r := range before {
		if i == beforeShown {
			fmt.Fprintf(tab, "  and %d more kinds: --json has them\n", len(before)-i)
			break
		}
		if notes := notesOf(r.Unexpected, r.Odd); notes != "" {
			odd++
		}
		by := ""
		if r.Parent != "" && r.Parent != r.Exe {
			by = "  (by " + clean(path.Base(r.Parent)) + ")"
		}
		fmt.Fprintf(tab, "  %d×\t%s\tuser %d\tlast %s ago: %s\t%s%s%s\n", r.Count, forWhom(r.Identity), r.UID, ago(now, r.Last), clean(r.Status),
			program(r.Exe, r.Argv, ""), by, mark(notesOf(r.Unexpected, r.Odd)))
	}
	if len(before) == 0 {
		fmt.Fprintln(tab, "  nothing")
	}
	if err := tab.Flush(); err != nil {
		return err
	}

	if len(t.Refused) > 0 {
		fmt.Fprintf(w, "\nrefused\n")
		tab = tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		for _, r := range t.Refused {
			odd++
			verdict := ""
			if r.Verdict == record.Observed {
				verdict = " (let through: the mode is audit)"
			}
			fmt.Fprintf(tab, "  %d×\t%s\tlast %s ago\t%s → %s%s%s\n", r.Count, forWhom(r.Identity), ago(now, r.Last), clean(cmp.Or(r.By, "?")), clean(r.Exe), verdict, mark(cut(r.Reason, programWidth)))
		}
		if err := tab.Flush(); err != nil {
			return err
		}
	}

	fmt.Fprintln(w)
	switch {
	case odd == 0:
		fmt.Fprintln(w, "all of it is declared")
	default:
		fmt.Fprintf(w, "%d of the above with \"!\": declarun explain %s\n", odd, clean(cmp.Or(t.Name, fmt.Sprintf("%.12s", t.ID))))
	}
	if t.Unwatched != "" {
		fmt.Fprintf(w, "processes are not told of as they begin and end, so short ones are missing: %s\n", clean(t.Unwatched))
	}
	if t.Lost > 0 {
		fmt.Fprintf(w, "%d events of processes were lost on this machine: what ran before may lack some\n", t.Lost)
	}
	if t.Omitted > 0 {
		fmt.Fprintf(w, "%d processes are beyond what is kept\n", t.Omitted)
	}
	return nil
}

func rank(r record.PastProcess) int {
	if notesOf(r.Unexpected, r.Odd) != "" {
		return 0
	}
	return 1
}

func notesOf(unexpected string, odd []string) string {
	all := slices.Clone(odd)
	if unexpected != "" {
		all = append([]string{unexpected}, all...)
	}
	return strings.Join(all, ", ")
}

func roleOf(e plan.Expected) string {
	switch {
	case e.Identity == record.HealthCheck:
		return "health check"
	case e.Main:
		return "serves"
	case e.Phase == record.Starting:
		return "while starting"
	}
	return "helper"
}

func mayStart(e plan.Expected) string {
	if len(e.Starts) == 0 {
		return ""
	}
	var names []string
	for i, s := range e.Starts {
		if i == expectedList {
			names = append(names, fmt.Sprintf("and %d more", len(e.Starts)-i))
			break
		}
		names = append(names, clean(s))
	}
	return "→ " + strings.Join(names, ", ")
}

func forWhom(id record.Identity) string {
	if id == record.HealthCheck {
		return "health check"
	}
	return string(cmp.Or(id, record.Application))
}

func number(n int) string {
	if n == 0 {
		return "?"
	}
	return fmt.Sprint(n)
}

func ago(now, then time.Time) string {
	switch d := now.Sub(then); {
	case d < time.Minute:
		return fmt.Sprintf("%ds", max(0, int(d.Seconds())))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd", int(d.Hours())/24)
	}
}

// program is a command line. What a process calls itself, where it is not the
// program's own name, is in brackets.
func program(exe string, argv []string, comm string) string {
	switch {
	case exe == "" && comm != "":
		exe = "? (" + comm + ")"
	case exe == "":
		exe = "? (gone before it could be looked at)"
	}
	if len(argv) > 0 {
		line := strings.TrimSpace(strings.Join(argv, " "))
		if path.Base(argv[0]) == path.Base(exe) || strings.TrimPrefix(path.Base(argv[0]), "-") == path.Base(exe) {
			exe = strings.TrimSpace(exe + " " + strings.Join(argv[1:], " "))
		} else if line != exe {
			exe += " (" + line + ")"
		}
	}
	return clean(cut(exe, programWidth))
}

func cut(s string, width int) string {
	if r := []rune(s); len(r) > width {
		return string(r[:width-1]) + "…"
	}
	return s
}

type branch struct {
	record.LiveProcess
	lead string
}

// branches orders processes as a tree is drawn. Whoever has a parent that is not
// there, or one that leads round in a circle, is at the top.
func branches(live []record.LiveProcess) []branch {
	children := map[int][]record.LiveProcess{}
	there := map[int]bool{}
	for _, p := range live {
		there[p.PID] = true
	}
	for _, p := range live {
		parent := p.Parent
		if !there[parent] || parent == p.PID {
			parent = 0
		}
		children[parent] = append(children[parent], p)
	}
	var all []branch
	drawn := map[int]bool{}
	var draw func(p record.LiveProcess, lead, below string, depth int)
	draw = func(p record.LiveProcess, lead, below string, depth int) {
		if drawn[p.PID] {
			return
		}
		drawn[p.PID] = true
		all = append(all, branch{p, lead})
		if depth > 32 { // deeper ones stay in one column
			below = strings.Repeat(" ", 4)
		}
		for i, child := range children[p.PID] {
			if i == len(children[p.PID])-1 {
				draw(child, below+"└─ ", below+"   ", depth+1)
			} else {
				draw(child, below+"├─ ", below+"│  ", depth+1)
			}
		}
	}
	for _, p := range children[0] {
		draw(p, "", "", 0)
	}
	for _, p := range live {
		draw(p, "", "", 0)
	}
	return all
}
