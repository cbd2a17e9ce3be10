package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/install"
	"github.com/declarun/declarun/shim/site"
)

// target is an engine that declarun can be made known to.
type target interface {
	Install() (install.Report, error)
	Uninstall() (install.Report, error)
}

func fileFlag(usual string) cli.Flag {
	return &cli.StringFlag{Name: "file", Usage: "its configuration `FILE`", DefaultText: usual}
}

func installFlags(usual string) []cli.Flag {
	return []cli.Flag{
		fileFlag(usual),
		&cli.BoolFlag{Name: "default", Usage: "make declarun the runtime of every container that asks for none", DisableDefaultText: true},
		&cli.BoolFlag{Name: "units", Usage: "also write systemd units for the supervisor", Value: hasSystemd(), DefaultText: "where systemd runs"},
	}
}

func hasSystemd() bool {
	_, err := os.Stat("/run/systemd/system") // sd_booted(3)
	return err == nil
}

const (
	dockerFile     = "/etc/docker/daemon.json"
	containerdFile = "/etc/containerd/config.toml"
)

// unitDir is where units are written; a test has another.
var unitDir = "/etc/systemd/system"

func docker(c *cli.Context, program string) target {
	return install.Docker{Config: c.String("file"), Program: program, Default: c.Bool("default")}
}

func containerd(c *cli.Context, program string) target {
	return install.Containerd{Config: c.String("file"), Program: program, Default: c.Bool("default")}
}

func installCommand() *cli.Command {
	return &cli.Command{
		Name:        "install",
		ArgsUsage:   "docker|containerd",
		Description: "Edits the engine's configuration, keeps a copy of it, has it read again. Restarts nothing.",
		Action:      whichEngine,
		Subcommands: []*cli.Command{
			{Name: "docker", Usage: "add the runtime to daemon.json and have dockerd read it", Flags: installFlags(dockerFile), Before: none,
				Action: func(c *cli.Context) error { return installInto(c, docker) }},
			{Name: "containerd", Usage: "add the runtime in a drop-in of config.toml", Flags: installFlags(containerdFile), Before: none,
				Action: func(c *cli.Context) error { return installInto(c, containerd) }},
		},
	}
}

func whichEngine(c *cli.Context) error {
	if c.Args().Present() {
		return &advice{fmt.Errorf("%s: no engine %q", c.Command.Name, c.Args().First()), called(c) + " docker, or " + called(c) + " containerd"}
	}
	return &advice{fmt.Errorf("%s: which engine?", c.Command.Name), called(c) + " docker, or " + called(c) + " containerd"}
}

func installInto(c *cli.Context, engine func(*cli.Context, string) target) error {
	program, err := ownRuntime()
	if err != nil {
		return err
	}
	report, err := engine(c, program).Install()
	if err != nil && !errors.Is(err, install.ErrUnchanged) {
		return needsRoot(err)
	}
	if c.Bool("units") {
		if err := writeUnits(&report); err != nil {
			return needsRoot(err)
		}
	}
	if err := writeExample(&report); err != nil {
		return needsRoot(err)
	}
	printReport(c.App.Writer, report)
	return nil
}

func needsRoot(err error) error {
	if errors.Is(err, os.ErrPermission) && os.Geteuid() != 0 {
		return &advice{err, "run it as root"}
	}
	return err
}

func uninstallCommand() *cli.Command {
	units := func() cli.Flag {
		return &cli.BoolFlag{Name: "units", Usage: "also remove the supervisor's systemd units", DisableDefaultText: true}
	}
	return &cli.Command{
		Name:        "uninstall",
		ArgsUsage:   "docker|containerd",
		Description: "Containers that were made with declarun go on, and do not start again until they are made anew.",
		Action:      whichEngine,
		Subcommands: []*cli.Command{
			{Name: "docker", Usage: "take the runtime out of daemon.json", Flags: []cli.Flag{fileFlag(dockerFile), units()}, Before: none,
				Action: func(c *cli.Context) error { return uninstallFrom(c, docker) }},
			{Name: "containerd", Usage: "remove the drop-in of config.toml", Flags: []cli.Flag{fileFlag(containerdFile), units()}, Before: none,
				Action: func(c *cli.Context) error { return uninstallFrom(c, containerd) }},
		},
	}
}

func uninstallFrom(c *cli.Context, engine func(*cli.Context, string) target) error {
	report, err := engine(c, "").Uninstall()
	if err != nil && !errors.Is(err, install.ErrUnchanged) {
		return needsRoot(err)
	}
	if c.Bool("units") {
		for _, name := range slices.Sorted(maps.Keys(install.Units(""))) {
			file := filepath.Join(unitDir, name)
			switch err := os.Remove(file); {
			case errors.Is(err, os.ErrNotExist):
			case err != nil:
				return needsRoot(err)
			default:
				report.Done = append(report.Done, "removed "+file)
				report.Next = append(report.Next, "systemctl stop "+name+"; systemctl daemon-reload")
			}
		}
	}
	printReport(c.App.Writer, report)
	return nil
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
	changed, units := false, install.Units(self)
	for _, name := range slices.Sorted(maps.Keys(units)) {
		file, text := filepath.Join(unitDir, name), units[name]
		if old, err := os.ReadFile(file); err == nil && string(old) == text {
			continue
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			return fmt.Errorf("write systemd unit: %w", err)
		}
		r.Done = append(r.Done, "wrote "+file)
		changed = true
	}
	if changed {
		r.Next = append(r.Next, "systemctl daemon-reload && systemctl enable --now declarun.socket declarun.service")
	}
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
