package main

import (
	"cmp"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// driftPatience is longer than the supervisor takes at most.
const driftPatience = 30 * time.Second

func driftCommand() *cli.Command {
	return &cli.Command{
		Name:      "drift",
		ArgsUsage: "CONTAINER",
		Before:    exactlyOne,
		Description: "What in the container's own layer was added, changed or removed since it was made from its image:\n" +
			"programs first, then what nothing declares writable, then how much data there is where writing is\n" +
			"declared. Volumes and other mounts are not the container's layer.\n\n" +
			"Exit status, as of diff(1): 0 nothing differs, or only data in declared places; 1 something does;\n" +
			"2 it could not be told.",
		Flags: []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "as JSON", DisableDefaultText: true}, &cli.BoolFlag{Name: "all", Usage: "list data in declared places, too", DisableDefaultText: true}},
		Action: func(c *cli.Context) error {
			cfg, err := loadSite(c)
			if err != nil {
				return trouble{err}
			}
			answer, err := askFor(c.Context, driftPatience, cfg, wire.Request{Operation: wire.Drift, Drift: &wire.DriftRequest{Container: c.Args().First()}})
			if err != nil {
				return trouble{err}
			}
			if answer.Drift == nil {
				return trouble{fmt.Errorf("drift: the supervisor sent no answer")}
			}
			events, err := readEvents(cfg.LogFile)
			if err != nil {
				return trouble{err}
			}
			nameWriters(answer.Drift, events)
			if c.Bool("json") {
				err = printJSON(c.App.Writer, answer.Drift)
			} else {
				err = printDrift(c.App.Writer, answer.Drift, c.Bool("all"))
			}
			if err != nil {
				return trouble{err}
			}
			return verdictOf(answer.Drift)
		},
	}
}

// undeclared tells whether a change is drift: a program anywhere, or anything
// where nothing declares that it is written.
func undeclared(c record.Change) bool { return c.Special() || c.Declared == "" }

// verdictOf is the exit status as an error.
func verdictOf(d *wire.DriftAnswer) error {
	for _, c := range d.Changes { // the most important come first: what is beyond them changes nothing
		if undeclared(c) {
			return status(1)
		}
	}
	if d.Incomplete != "" {
		return status(2)
	}
	return nil
}

// nameWriters finds who wrote a file among the events: what was seen to be written
// as a program, or, in mode audit, anywhere.
func nameWriters(d *wire.DriftAnswer, events []record.Event) {
	by := map[string]record.Event{}
	for _, e := range events {
		if e.Container == d.ID && e.Dimension == record.Storage && (e.Action == "drop" || e.Action == "write" && e.Verdict == record.Observed) && e.Process != nil {
			by[e.Object] = e
		}
	}
	for i, c := range d.Changes {
		e, ok := by[c.Path]
		if !ok || c.How == record.DriftRemoved {
			continue
		}
		w := &record.Writer{PID: e.Process.PID, Exe: e.Process.Exe, Comm: e.Process.Comm, UID: e.Process.UID, Time: e.Time, Event: e.ID}
		if e.Process.Parent != nil {
			w.Parent = e.Process.Parent.Exe
		}
		d.Changes[i].By = w
	}
}

// driftShown bounds what is printed of one kind unasked.
const driftShown = 200

func printDrift(w io.Writer, d *wire.DriftAnswer, all bool) error {
	fmt.Fprintf(w, "%s  %s\n", clean(cmp.Or(d.Name, fmt.Sprintf("%.12s", d.ID))), clean(d.Image))
	if !d.Layers {
		fmt.Fprintln(w, "its root is no overlay: what follows changed since the container was made; what was removed is not known")
	}
	var special, other, data []record.Change
	for _, c := range d.Changes {
		switch {
		case c.Special():
			special = append(special, c)
		case c.Declared == "":
			other = append(other, c)
		default:
			data = append(data, c)
		}
	}
	section := func(title string, changes []record.Change, most int) error {
		if len(changes) == 0 {
			return nil
		}
		fmt.Fprintf(w, "\n%s: %d\n", title, len(changes))
		tab := tabwriter.NewWriter(w, 0, 4, 2, ' ', 0)
		for i, c := range changes {
			if i == most {
				fmt.Fprintf(tab, "  and %d more: --json has them\n", len(changes)-i)
				break
			}
			fmt.Fprintf(tab, "  %s\t%s\t%d:%d\t%s\t%s\n", c.How, modeOf(c), c.UID, c.GID, sizeOf(c), aboutChange(c))
		}
		return tab.Flush()
	}
	if err := section("programs, and files with rights of their own", special, driftShown); err != nil {
		return err
	}
	if err := section("where nothing declares that it is written", other, driftShown); err != nil {
		return err
	}
	if all {
		if err := section("data where writing is declared", data, len(data)); err != nil {
			return err
		}
	} else if len(data) > 0 {
		fmt.Fprintf(w, "\ndata where writing is declared\n")
		printData(w, data)
	}
	fmt.Fprintln(w)
	switch {
	case len(d.Changes) == 0 && d.Incomplete == "":
		fmt.Fprintln(w, "it is what the image is")
	case len(special)+len(other) == 0:
		fmt.Fprintln(w, "nothing differs from the image but data where it belongs")
	default:
		fmt.Fprintf(w, "%d differ from the image\n", len(special)+len(other))
	}
	if d.More > 0 {
		fmt.Fprintf(w, "%d more changes are not listed, all less important than these\n", d.More)
	}
	if d.Incomplete != "" {
		fmt.Fprintf(w, "NOT ALL was looked at: %s\n", clean(d.Incomplete))
	}
	return nil
}

func printData(w io.Writer, data []record.Change) {
	type sum struct {
		n    int
		size int64
	}
	sums, order := map[string]*sum{}, []string{}
	for _, c := range data {
		s := sums[c.Declared]
		if s == nil {
			s = &sum{}
			sums[c.Declared] = s
			order = append(order, c.Declared)
		}
		s.n++
		if c.How != record.DriftRemoved {
			s.size += c.Size
		}
	}
	for _, p := range order {
		fmt.Fprintf(w, "  %s: %d entries, %s\n", name(p), sums[p].n, bytesText(sums[p].size))
	}
}

// modeOf is a mode as ls(1) prints it.
func modeOf(c record.Change) string {
	b := []byte(map[string]string{"file": "-", "directory": "d", "link": "l", "device": "c", "pipe": "p", "socket": "s"}[c.Type])
	if len(b) == 0 {
		b = []byte("?")
	}
	for i := range 9 {
		if c.Mode&(1<<(8-i)) != 0 {
			b = append(b, "rwx"[i%3])
		} else {
			b = append(b, '-')
		}
	}
	for i, bit := range []uint32{0o4000, 0o2000, 0o1000} {
		if c.Mode&bit == 0 {
			continue
		}
		at, letter := 3*(i+1), "sst"[i]
		if b[at] == '-' {
			letter -= 'a' - 'A'
		}
		b[at] = letter
	}
	return string(b)
}

func sizeOf(c record.Change) string {
	if c.Type != "file" {
		return c.Type
	}
	return bytesText(c.Size)
}

func bytesText(n int64) string {
	units := []string{"B", "kB", "MB", "GB", "TB"}
	v, i := float64(n), 0
	for v >= 1000 && i < len(units)-1 {
		v, i = v/1000, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", v, units[i])
}

func aboutChange(c record.Change) string {
	line := name(c.Path)
	if c.From != "" {
		arrow := map[bool]string{true: " → ", false: ", was "}[c.Type == "link"]
		line += arrow + name(c.From)
	}
	var about []string
	if c.Program != "" {
		about = append(about, map[string]string{"elf": "program or shared object", "script": "script"}[c.Program])
	}
	if c.Mode&0o6000 != 0 && c.Type == "file" {
		about = append(about, "runs with its owner's rights")
	}
	if c.Capabilities {
		about = append(about, "gives capabilities")
	}
	about = append(about, c.What...)
	if len(about) > 0 {
		line += "  (" + clean(strings.Join(about, ", ")) + ")"
	}
	switch {
	case c.By != nil:
		line += fmt.Sprintf("  written by %s[%d]", clean(cmp.Or(c.By.Exe, c.By.Comm)), c.By.PID)
		if c.By.Parent != "" {
			line += " of " + clean(c.By.Parent)
		}
		line += ", " + c.By.Time.Local().Format("2006-01-02 15:04:05") + ", event " + clean(c.By.Event)
	case c.Special():
		line += "  who wrote it is not known"
	}
	return line
}

// name prints a path so that two never look the same, and none drives the
// terminal: quoted where it has anything but plain characters.
func name(p string) string {
	plain := p != "" && !strings.HasPrefix(p, `"`) && strings.TrimSpace(p) == p && strings.IndexFunc(p, func(r rune) bool {
		return !unicode.IsPrint(r) || r == unicode.ReplacementChar || r == '\\'
	}) < 0
	if plain {
		return p
	}
	return strconv.QuoteToASCII(p)
}
