package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/planner"
)

// why answers "declarun plan --why".
func why(c *cli.Context, plans *planning, what, format string) error {
	return plans.with(c, func(s *subject) error {
		if !planner.IsCall(what) {
			p, err := plans.of(c.Context, s)
			if err != nil {
				return err
			}
			found, err := p.Why(c.App.Writer, what)
			if err == nil && !found {
				err = &advice{fmt.Errorf("plan: nothing allows %q", what), "see the whole plan: the same without --why"}
			}
			return err
		}
		p, reasons, err := plans.Why(c.Context, s.declared, s.root, s.engine, plans.trace, what)
		if err != nil {
			return err
		}
		other := new(bytes.Buffer) // a program may have the call's name: mount, kill
		if format == "json" {
			err = printJSON(c.App.Writer, reasons)
		} else if err = reasons.Text(c.App.Writer); err == nil {
			if _, err = p.Why(other, what); err == nil && other.Len() > 0 {
				_, err = fmt.Fprintf(c.App.Writer, "\n%s", other)
			}
		}
		if err == nil && !reasons.Allowed && other.Len() == 0 {
			err = &advice{fmt.Errorf("plan: nothing allows the system call %s", what), "see the whole plan: the same without --why"}
		}
		return err
	})
}

// status is an exit status that says all.
type status int

func (s status) Error() string { return "" }
func (s status) ExitCode() int { return int(s) }

// trouble is any error of a command whose status 1 means something else.
type trouble struct{ error }

func (t trouble) Unwrap() error { return t.error }
func (t trouble) ExitCode() int { return 2 }

func diffPlans(c *cli.Context, format string) error {
	for _, name := range []string{"image", "rootfs", "config", "bundle", "why"} {
		if c.IsSet(name) {
			return trouble{&advice{fmt.Errorf("plan: --diff with --%s", name), "declarun plan --diff OLD NEW, where each is an image, a saved plan, a bundle, or DIR,FILE"}}
		}
	}
	if c.NArg() != 2 {
		return trouble{&advice{fmt.Errorf("plan: --diff wants two arguments and got %d", c.NArg()), "declarun plan --diff OLD NEW; flags come first"}}
	}
	plans, err := planners(c)
	if err != nil {
		return trouble{err}
	}
	var both [2]*plan.Plan
	for i, what := range c.Args().Slice() {
		p, err := plans.operand(c, what)
		if err != nil {
			return trouble{err}
		}
		both[i] = p
	}
	d := plan.Compare(both[0], both[1])
	if format == "json" {
		err = printJSON(c.App.Writer, d)
	} else {
		err = d.Text(c.App.Writer)
	}
	switch {
	case err != nil:
		return trouble{err}
	case len(d.Changes) > 0:
		return status(1)
	}
	return nil
}

// maxPlan bounds a saved plan.
const maxPlan = 64 << 20

// operand is one side of a comparison. What is a file or directory is not
// looked up as an image.
func (p *planning) operand(c *cli.Context, what string) (*plan.Plan, error) {
	s, err := (*subject)(nil), error(nil)
	dir, config, both := strings.Cut(what, ",")
	info, statErr := os.Stat(what)
	switch {
	case statErr == nil && info.Mode().IsRegular():
		return savedPlan(what)
	case statErr == nil && info.IsDir():
		s, err = bundleSubject(what)
	case both:
		s, err = rootfsSubject(dir, config, nil)
	default:
		s, err = imageSubject(c.Context, what, nil)
	}
	if err != nil {
		return nil, err
	}
	defer s.Close()
	return p.of(c.Context, s)
}

func savedPlan(name string) (*plan.Plan, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxPlan))
	if err != nil {
		return nil, fmt.Errorf("read plan: %w", err)
	}
	p := new(plan.Plan)
	if err = json.Unmarshal(raw, p); err == nil && len(p.Mode) == 0 {
		err = errors.New("no modes in it")
	}
	if err != nil {
		return nil, &advice{fmt.Errorf("read plan %s: %w", name, err), "save one: declarun plan --image IMAGE --json > " + name}
	}
	return p, nil
}

func plainFilter(c *cli.Context, plans *planning) error {
	return plans.with(c, func(s *subject) error {
		profile, err := plans.Plain(c.Context, s.declared, s.root, s.engine, s.noNewPrivileges)
		if err != nil {
			return err
		}
		return printJSON(c.App.Writer, profile)
	})
}
