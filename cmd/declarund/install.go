package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/install"
	"github.com/declarun/declarun/shim/site"
)

// target is an engine that declarun can be made known to.
type target interface {
	Install() (install.Report, error)
	Uninstall() (install.Report, error)
}

func installFlags() []cli.Flag {
	return []cli.Flag{
		&cli.StringFlag{Name: "file", Usage: "the engine's own configuration `FILE`, where it is not in the usual place"},
		&cli.BoolFlag{Name: "default", Usage: "make declarun the runtime of every container that asks for none"},
		&cli.BoolFlag{Name: "units", Usage: "also write systemd units for the supervisor", Value: hasSystemd()},
	}
}

func hasSystemd() bool {
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	return err == nil
}

func installCommand() *cli.Command {
	return &cli.Command{
		Name:      "install",
		Usage:     "make declarun known to an engine: edits its configuration with a backup, reloads it, never restarts it",
		ArgsUsage: "docker|containerd",
		Flags:     installFlags(),
		Action: func(c *cli.Context) error {
			t, err := chosen(c)
			if err != nil {
				return err
			}
			report, err := t.Install()
			if err != nil && !errors.Is(err, install.ErrUnchanged) {
				return err
			}
			if c.Bool("units") {
				if err := writeUnits(&report); err != nil {
					return err
				}
			}
			if err := writeExample(&report); err != nil {
				return err
			}
			printReport(c.App.Writer, report)
			return nil
		},
	}
}

func uninstallCommand() *cli.Command {
	return &cli.Command{
		Name:      "uninstall",
		Usage:     "undo install",
		ArgsUsage: "docker|containerd",
		Flags:     installFlags()[:1],
		Action: func(c *cli.Context) error {
			t, err := chosen(c)
			if err != nil {
				return err
			}
			report, err := t.Uninstall()
			if err != nil && !errors.Is(err, install.ErrUnchanged) {
				return err
			}
			printReport(c.App.Writer, report)
			return nil
		},
	}
}

func chosen(c *cli.Context) (target, error) {
	program, err := ownRuntime()
	if err != nil {
		return nil, err
	}
	switch c.Args().First() {
	case "docker":
		return install.Docker{Config: c.String("file"), Program: program, Default: c.Bool("default")}, nil
	case "containerd":
		return install.Containerd{Config: c.String("file"), Program: program, Default: c.Bool("default")}, nil
	}
	return nil, &advice{fmt.Errorf("%s %q: want docker or containerd", c.Command.Name, c.Args().First()), "declarun " + c.Command.Name + " docker"}
}

// ownRuntime is the declarun beside this declarund.
func ownRuntime() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", err
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", err
	}
	for _, dir := range []string{filepath.Dir(self), filepath.Join(filepath.Dir(self), "..", "..", "bin")} {
		p := filepath.Join(dir, "declarun")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() {
			return p, nil
		}
	}
	return "", &advice{fmt.Errorf("find declarun beside %s: there is none", self), "make install"}
}

func writeUnits(r *install.Report) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for name, text := range install.Units(self) {
		file := filepath.Join("/etc/systemd/system", name)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write systemd unit: %w", err)
		}
		r.Done = append(r.Done, "wrote "+file)
	}
	r.Next = append(r.Next, "systemctl daemon-reload && systemctl enable --now declarun.socket declarun.service")
	return nil
}

// writeExample leaves a configuration file of comments, if there is none.
func writeExample(r *install.Report) error {
	if _, err := os.Lstat(site.DefaultPath); err == nil {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(site.DefaultPath), 0o755); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	if err := os.WriteFile(site.DefaultPath, site.Example, 0o644); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	r.Done = append(r.Done, "wrote "+site.DefaultPath+": every line a comment")
	return nil
}

func printReport(w io.Writer, r install.Report) {
	if len(r.Done) == 0 {
		fmt.Fprintln(w, "nothing to change")
	}
	for _, d := range r.Done {
		fmt.Fprintln(w, d)
	}
	for _, n := range r.Next {
		fmt.Fprintf(w, "now: %s\n", n)
	}
}
