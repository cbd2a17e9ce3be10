package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"
	"golang.org/x/term"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/wire"
)

// patience is how long an answer may take.
var patience = 10 * time.Second

func ask(ctx context.Context, cfg *site.Config, req wire.Request) (wire.Answer, error) {
	return askFor(ctx, patience, cfg, req)
}

// askFor waits longer for what takes longer.
func askFor(ctx context.Context, patience time.Duration, cfg *site.Config, req wire.Request) (wire.Answer, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := wire.Dial(ctx, cfg.Socket)
	if err != nil {
		return wire.Answer{}, noSupervisor(cfg, err)
	}
	defer conn.Close()
	answer, err := conn.Call(req, nil)
	if err != nil {
		return answer, err
	}
	return answer, refused(answer)
}

// refused is the supervisor's no, with its remedy.
func refused(a wire.Answer) error {
	if a.Error == "" {
		return nil
	}
	return &advice{errors.New(a.Error), a.Remedy}
}

func noSupervisor(cfg *site.Config, err error) error {
	if errors.Is(err, os.ErrPermission) {
		return &advice{fmt.Errorf("ask the supervisor on %s: %w", cfg.Socket, err), "run it as root"}
	}
	return &advice{fmt.Errorf("ask the supervisor on %s: %w", cfg.Socket, err),
		"it starts with the first container; or start it now: declarun supervise"}
}

func statusCommand() *cli.Command {
	return &cli.Command{
		Name:      "status",
		ArgsUsage: "[CONTAINER]",
		Before:    atMostOne,
		Description: "Mode and phase of what is supervised, and how much was refused. CONTAINER is a name, or the\n" +
			"beginning of an ID.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "as JSON", DisableDefaultText: true}, &cli.BoolFlag{Name: "plan", Usage: "with each container's plan", DisableDefaultText: true}},
		Action: func(c *cli.Context) error {
			cfg, err := loadSite(c)
			if err != nil {
				return err
			}
			answer, err := ask(c.Context, cfg, wire.Request{Operation: wire.Status,
				Status: &wire.StatusRequest{Container: c.Args().First(), WithPlan: c.Bool("plan")}})
			if err != nil {
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, append([]wire.Container{}, answer.Status...)) // never null
			}
			if which := c.Args().First(); which != "" && len(answer.Status) == 0 {
				return &advice{fmt.Errorf("status: no container %q is supervised", which), "see them all: declarun status"}
			}
			return printStatus(c.App.Writer, answer.Status, time.Now())
		},
	}
}

func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// notesShown is how many notes status shows of a container unasked.
const notesShown = 3

func printStatus(w io.Writer, all []wire.Container, now time.Time) error {
	if len(all) == 0 {
		_, err := fmt.Fprintln(w, "no container is supervised")
		return err
	}
	tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
	fmt.Fprintln(tab, "CONTAINER\tNAME\tIMAGE\tSTATE\tPHASE\tMODE\tSINCE\tDEVIATIONS")
	for _, c := range all {
		id := c.ID
		if len(id) > 12 {
			id = id[:12]
		}
		var counts []string
		for _, d := range slices.Sorted(maps.Keys(c.Events)) {
			if c.Events[d] > 0 {
				counts = append(counts, fmt.Sprintf("%s %d", d, c.Events[d]))
			}
		}
		deviations := strings.Join(counts, ", ")
		if deviations == "" {
			deviations = "none"
		}
		fmt.Fprintf(tab, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", clean(id), clean(c.Name), clean(c.Image), c.State, c.Phase, modeText(c.Mode),
			now.Sub(c.Since).Round(time.Second), deviations)
	}
	if err := tab.Flush(); err != nil {
		return err
	}
	for _, c := range all {
		if c.Wide {
			fmt.Fprintf(w, "%.12s is wide: %s\n", clean(c.ID), clean(c.WideReason))
		}
		for i, n := range c.Notes {
			if i == notesShown && c.Plan == nil {
				fmt.Fprintf(w, "%.12s and %d more notes: declarun status --plan %.12s\n", clean(c.ID), len(c.Notes)-i, clean(c.ID))
				break
			}
			fmt.Fprintf(w, "%.12s %s: %s\n", clean(c.ID), n.Dimension, clean(n.Text))
		}
		if c.Plan != nil {
			if err := c.Plan.Text(w); err != nil {
				return err
			}
		}
	}
	return nil
}

func modeText(m map[record.Dimension]record.Mode) string {
	var distinct []string
	for _, d := range record.Dimensions() {
		if mode, ok := m[d]; ok && !slices.Contains(distinct, string(mode)) {
			distinct = append(distinct, string(mode))
		}
	}
	if len(distinct) == 1 {
		return distinct[0]
	}
	var parts []string
	for _, d := range record.Dimensions() {
		if mode, ok := m[d]; ok && mode != record.Enforce {
			parts = append(parts, fmt.Sprintf("%s=%s", d, mode))
		}
	}
	return "enforce, " + strings.Join(parts, " ")
}

func watchCommand() *cli.Command {
	return &cli.Command{
		Name:      "watch",
		ArgsUsage: "[CONTAINER]",
		Before:    atMostOne,
		Flags:     []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "one JSON object a line, as in the event log", DisableDefaultText: true}},
		Action: func(c *cli.Context) error {
			cfg, err := loadSite(c)
			if err != nil {
				return err
			}
			// The context is the whole conversation's: only its beginning is bounded.
			ctx, cancel := context.WithCancel(c.Context)
			defer cancel()
			late := time.AfterFunc(patience, cancel)
			conn, err := wire.Dial(ctx, cfg.Socket)
			if err != nil {
				return noSupervisor(cfg, err)
			}
			defer conn.Close()
			answer, err := conn.Call(wire.Request{Operation: wire.Watch, Watch: &wire.WatchRequest{Container: c.Args().First()}}, nil)
			if err != nil {
				return err
			}
			if err := refused(answer); err != nil {
				return err
			}
			if !late.Stop() {
				return errors.New("watch events: the supervisor was too slow to answer")
			}
			colour := isTerminal(c.App.Writer)
			for {
				e, err := conn.ReadEvent()
				if err != nil {
					if c.Context.Err() != nil || errors.Is(err, io.EOF) {
						return nil
					}
					return fmt.Errorf("watch events: %w", err)
				}
				if c.Bool("json") {
					raw, err := json.Marshal(e)
					if err != nil {
						return err
					}
					fmt.Fprintln(c.App.Writer, string(raw))
					continue
				}
				fmt.Fprintln(c.App.Writer, eventLine(e, colour))
			}
		},
	}
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == ""
}

func eventLine(e record.Event, colour bool) string {
	verdict := string(e.Verdict)
	if colour {
		switch e.Verdict {
		case record.Denied:
			verdict = "\x1b[31m" + verdict + "\x1b[0m"
		case record.Observed:
			verdict = "\x1b[33m" + verdict + "\x1b[0m"
		}
	}
	name := e.Name
	if name == "" {
		name = fmt.Sprintf("%.12s", e.Container)
	}
	line := fmt.Sprintf("%s %s %s %s %s %s (%s)", e.Time.Local().Format("15:04:05.000"), clean(name), verdict, e.Dimension, clean(e.Action), clean(e.Object), e.Mechanism)
	if e.Process != nil {
		line += fmt.Sprintf(" by %s[%d]", clean(e.Process.Exe), e.Process.PID)
	}
	if e.Count > 1 {
		line += fmt.Sprintf(" ×%d", e.Count)
	}
	return line
}

// clean keeps what a container wrote from driving the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
}

func explainCommand() *cli.Command {
	return &cli.Command{
		Name:      "explain",
		ArgsUsage: "[CONTAINER or EVENT-ID]",
		Before:    atMostOne,
		Description: "Says what was refused and by what, what declares the nearest allowed thing, and the way out. It\n" +
			"reads the event log, so it also answers for containers that are gone. Without an argument it\n" +
			"explains the latest deviations.",
		Flags: []cli.Flag{&cli.IntFlag{Name: "last", Value: 10, Usage: "at most `N` deviations"}},
		Action: func(c *cli.Context) error {
			cfg, err := loadSite(c)
			if err != nil {
				return err
			}
			events, err := readEvents(cfg.LogFile)
			if err != nil {
				return err
			}
			return explain(c.App.Writer, events, c.Args().First(), c.Int("last"))
		},
	}
}

// readEvents reads the last 16 MiB of the event log, newest line of each
// distinct deviation, oldest first. Lines that are no events are skipped: a
// log that was cut by a full disk still explains the rest.
func readEvents(path string) ([]record.Event, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	const limit = 16 << 20
	if info, err := f.Stat(); err == nil && info.Size() > limit {
		if _, err := f.Seek(-limit, io.SeekEnd); err != nil {
			return nil, err
		}
	}
	raw, err := io.ReadAll(io.LimitReader(f, limit))
	if err != nil {
		return nil, err
	}
	at := map[string]int{}
	var events []record.Event
	for line := range bytes.Lines(raw) {
		var e record.Event
		if json.Unmarshal(line, &e) != nil || e.ID == "" {
			continue
		}
		if i, ok := at[e.ID]; ok {
			first := events[i].Time
			events[i] = e
			events[i].Time = first
			continue
		}
		at[e.ID] = len(events)
		events = append(events, e)
	}
	return events, nil
}

func explain(w io.Writer, events []record.Event, which string, last int) error {
	var chosen []record.Event
	for _, e := range events {
		if which == "" || e.ID == which || e.Name == which || strings.HasPrefix(e.Container, which) {
			chosen = append(chosen, e)
		}
	}
	if len(chosen) == 0 {
		if which == "" {
			_, err := fmt.Fprintln(w, "nothing has deviated from its plan")
			return err
		}
		return &advice{fmt.Errorf("no deviation of %q in the event log", which), "declarun status shows which containers are supervised"}
	}
	if last > 0 && len(chosen) > last {
		chosen = chosen[len(chosen)-last:]
	}
	for i, e := range chosen {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintln(w, eventLine(e, false))
		fmt.Fprintf(w, "  event      %s\n", clean(e.ID))
		if e.Reason != "" {
			fmt.Fprintf(w, "  why        %s\n", clean(e.Reason))
		}
		for p := e.Process; p != nil; p = p.Parent {
			fmt.Fprintf(w, "  process    %d %s %s uid %d\n", p.PID, clean(p.Exe), clean(strings.Join(p.Argv, " ")), p.UID)
		}
		if len(e.Origins) == 0 {
			fmt.Fprintln(w, "  declared   by nothing")
		}
		for _, o := range e.Origins {
			fmt.Fprintf(w, "  declared   %s\n", clean(o.String()))
		}
		if e.Remedy != "" {
			fmt.Fprintf(w, "  way out    %s\n", clean(e.Remedy))
		}
	}
	return nil
}
