// Command declarund is the part of declarun that is not on the way of every
// container call: the supervisor, one per machine, and the commands for
// people. "declarun plan" and the others come here; call it by that name.
//
// It is a separate program so that runc's frequent small calls (state, kill,
// delete) do not pay for starting all of this.
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/runtime"
	"github.com/declarun/declarun/shim/site"
)

func main() {
	if code, done := internal(os.Args); done {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := newApp().RunContext(ctx, os.Args)
	stop()
	os.Exit(complain(os.Stderr, err))
}

// complain is the one place that prints an error and its remedy.
func complain(w io.Writer, err error) int {
	if err == nil {
		return 0
	}
	if text := err.Error(); text != "" { // a status may say all
		fmt.Fprintf(w, "declarun: %s\n", clean(strings.ReplaceAll(text, "\n", "; ")))
	}
	var way interface{ Remedy() string }
	if errors.As(err, &way) && way.Remedy() != "" {
		fmt.Fprintf(w, "declarun: try: %s\n", clean(way.Remedy()))
	}
	var code cli.ExitCoder
	if errors.As(err, &code) {
		return code.ExitCode()
	}
	return 1
}

// advice is an error somebody knows the way out of.
type advice struct {
	error
	remedy string
}

func (a *advice) Unwrap() error  { return a.error }
func (a *advice) Remedy() string { return a.remedy }

func newApp() *cli.App {
	name := "declarun"
	if base := filepath.Base(os.Args[0]); base != "declarund" {
		name = base
	}
	config := &cli.StringFlag{Name: "config", Usage: "site configuration `FILE`", Value: site.DefaultPath}
	app := &cli.App{
		Name:                   name,
		HelpName:               name,
		Usage:                  "holds a container to what its image declares",
		Version:                runtime.Version,
		Flags:                  []cli.Flag{config},
		UseShortOptionHandling: true,
		HideHelpCommand:        true,
		ExitErrHandler:         func(*cli.Context, error) {},
		OnUsageError:           usageError,
		Commands: []*cli.Command{
			planCommand(),
			explainCommand(),
			watchCommand(),
			statusCommand(),
			treeCommand(),
			driftCommand(),
			doctorCommand(),
			installCommand(),
			uninstallCommand(),
			superviseCommand(),
		},
		Action: func(c *cli.Context) error {
			if c.Args().Present() {
				return &advice{fmt.Errorf("no command %q", c.Args().First()), "declarun --help"}
			}
			return cli.ShowAppHelp(c)
		},
	}
	for _, c := range app.Commands {
		i := slices.IndexFunc(runtime.People, func(p runtime.Command) bool { return p.Name == c.Name })
		if i >= 0 { // a test says that it is
			c.Usage = runtime.People[i].Usage
		}
		c.HideHelpCommand, c.OnUsageError = true, usageError
		for _, sub := range c.Subcommands {
			sub.HideHelpCommand, sub.OnUsageError = true, usageError
		}
	}
	return app
}

func usageError(c *cli.Context, err error, _ bool) error {
	return &advice{err, called(c) + " --help"}
}

// called is a command's name with those that it is under.
func called(c *cli.Context) string {
	if c.Command != nil && c.Command.HelpName != "" {
		return c.Command.HelpName
	}
	return c.App.HelpName
}

// atMostOne is for commands with one argument: a flag behind it would be taken
// for another and be lost.
func atMostOne(c *cli.Context) error {
	if c.NArg() > 1 {
		return &advice{fmt.Errorf("%s: %q is one argument too many", c.Command.Name, c.Args().Get(1)),
			"flags come before the argument: " + called(c) + " --help"}
	}
	return nil
}

func none(c *cli.Context) error {
	if c.Args().Present() {
		return &advice{fmt.Errorf("%s: %q is one argument too many", c.Command.Name, c.Args().First()), called(c) + " --help"}
	}
	return nil
}

func loadSite(c *cli.Context) (*site.Config, error) {
	return site.Load(cmp.Or(c.String("config"), site.DefaultPath))
}
