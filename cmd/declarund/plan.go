package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/planner"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
	"github.com/declarun/declarun/shim/site"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name:      "plan",
		ArgsUsage: "[COMMAND [ARG...]]   or   --diff OLD NEW",
		Description: "Of one of --image, --rootfs with --config, or --bundle. COMMAND replaces the image's own, as on\n" +
			"the run command; flags come before it. --rootfs needs no privilege but to read the files.\n" +
			"\n" +
			"--why SYSCALL prints, for every program that can make the call, the way to it with the fewest\n" +
			"functions, what runs the program, and in which phase the call is allowed; of a call that is not\n" +
			"allowed it says why, and the exit status is 1.\n" +
			"\n" +
			"--diff prints what NEW widens (+), narrows (-) or changes (~) against OLD. Each of them is an image,\n" +
			"a plan saved with --json, a bundle's directory, or DIR,FILE: an unpacked image and its\n" +
			"configuration. As with diff(1) the exit status is 0 if they allow the same, 1 if they do not,\n" +
			"2 for trouble.\n" +
			"\n" +
			"--format oci prints a seccomp profile for use without declarun: docker run --security-opt\n" +
			"seccomp=FILE, a localhostProfile of Kubernetes, linux.seccomp of a bundle's config.json. It\n" +
			"knows no phases: it allows what the image needs at any time, and what runc itself needs.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "image", Usage: "image `REF` in Docker's or containerd's store"},
			&cli.StringFlag{Name: "rootfs", Usage: "image unpacked in `DIR`"},
			&cli.StringFlag{Name: "config", Aliases: []string{"image-config"}, Usage: "`FILE` with its configuration, or with what docker image inspect prints"},
			&cli.StringFlag{Name: "bundle", Usage: "OCI bundle in `DIR`"},
			&cli.StringFlag{Name: "why", Usage: "only what allows `WHAT`: a system call, program, path, port, peer or capability"},
			&cli.BoolFlag{Name: "diff", Usage: "what NEW allows and OLD does not, and the reverse", DisableDefaultText: true},
			&cli.BoolFlag{Name: "json", Usage: "as JSON", DisableDefaultText: true},
			&cli.StringFlag{Name: "format", Usage: "`text`, json, or oci: a seccomp profile for runc, Docker and Kubernetes"},
		},
		Action: func(c *cli.Context) error {
			format, err := planFormat(c)
			if err != nil && c.Bool("diff") {
				err = trouble{err}
			}
			if err != nil {
				return err
			}
			if c.Bool("diff") {
				return diffPlans(c, format)
			}
			plans, err := planners(c)
			if err != nil {
				return err
			}
			switch {
			case c.IsSet("why"):
				return why(c, plans, c.String("why"), format)
			case format == "oci":
				return plainFilter(c, plans)
			}
			var p *plan.Plan
			err = plans.with(c, func(s *subject) (err error) {
				p, err = plans.of(c.Context, s)
				return err
			})
			if err != nil {
				return err
			}
			if format == "json" {
				return printJSON(c.App.Writer, p)
			}
			return p.Text(c.App.Writer)
		},
	}
}

func planFormat(c *cli.Context) (string, error) {
	format := c.String("format")
	if c.Bool("json") {
		if format != "" && format != "json" {
			return "", &advice{fmt.Errorf("plan: --json with --format %s", format), "give one of them"}
		}
		return "json", nil
	}
	switch format {
	case "":
		return "text", nil
	case "text", "json":
	case "oci":
		if c.Bool("diff") || c.IsSet("why") {
			return "", &advice{errors.New("plan: --format oci is of a whole plan"), "leave out --diff and --why"}
		}
	default:
		return "", &advice{fmt.Errorf("plan: no format %q", format), "--format text, json or oci"}
	}
	return format, nil
}

// subject is what a plan is made of.
type subject struct {
	declared        *declared.Declared
	root            *rootfs.Root
	engine          *specs.LinuxSeccomp
	assumed         bool // the engine's profile is not known: it is taken to be the usual one
	noNewPrivileges bool
	close           []func()
}

func (s *subject) Close() {
	for _, f := range slices.Backward(s.close) {
		f()
	}
}

// planning is a planner for a person's command.
type planning struct {
	*planner.Planner
	trace planner.Tracer
}

func planners(c *cli.Context) (*planning, error) {
	// The flag --config of this command hides the one of the program.
	where := site.DefaultPath
	if up := c.Lineage(); len(up) > 1 {
		where = cmp.Or(up[1].String("config"), where)
	}
	cfg, err := site.Load(where)
	if err != nil {
		return nil, err
	}
	cache := analysisCache(cfg)
	analyser, trace := planner.LocalAnalyser(cache), planner.LocalTracer(cache)
	if os.Geteuid() == 0 { // a person's own rights are enough of a guard
		// What is large is made in a child: this process would collect what it ends with.
		debug.SetGCPercent(400)
		analyser, trace = planner.CarefulAnalyser(cache, argAnalyse), planner.CarefulTracer(cache, argAnalyse)
	}
	return &planning{&planner.Planner{Site: func() (*site.Config, error) { return cfg, nil }, Analyse: analyser}, trace}, nil
}

// of makes the plan. What it assumes, it says.
func (p *planning) of(ctx context.Context, s *subject) (*plan.Plan, error) {
	made, err := p.Plan(ctx, s.declared, s.root, s.engine)
	if err == nil && s.assumed {
		made.Notes = append(made.Notes, plan.Note{Dimension: record.Syscalls,
			Text: "the engine's own profile is known when it starts the container: here it is taken to refuse what Docker's default refuses"})
	}
	return made, err
}

// with opens what the flags name.
func (p *planning) with(c *cli.Context, do func(*subject) error) error {
	s, err := subjectOf(c)
	if err != nil {
		return err
	}
	defer s.Close()
	return do(s)
}

func subjectOf(c *cli.Context) (*subject, error) {
	given := 0
	for _, name := range []string{"bundle", "rootfs", "image"} {
		if c.IsSet(name) {
			given++
		}
	}
	switch {
	case given != 1:
		return nil, &advice{errors.New("plan: want one of --image, --rootfs and --bundle"), "declarun plan --image IMAGE"}
	case c.IsSet("config") && !c.IsSet("rootfs"):
		return nil, &advice{errors.New("plan: --config goes with --rootfs"), "the site's configuration goes before the command: declarun --config FILE plan"}
	case c.IsSet("bundle") && c.Args().Present():
		return nil, &advice{errors.New("plan: a bundle's command is in its config.json"), "edit process.args there"}
	}
	var command []string // nil where none is given: an empty one would be the operator's
	if c.Args().Present() {
		command = c.Args().Slice()
	}
	switch {
	case c.IsSet("bundle"):
		return bundleSubject(c.String("bundle"))
	case c.IsSet("rootfs"):
		if !c.IsSet("config") {
			return nil, &advice{errors.New("plan: --rootfs without --config"), "docker image inspect IMAGE > image.json, then --config image.json"}
		}
		return rootfsSubject(c.String("rootfs"), c.String("config"), command)
	}
	return imageSubject(c.Context, c.String("image"), command)
}

// analysisCache is the supervisor's where it can be used, else the person's own.
func analysisCache(cfg *site.Config) string {
	if os.Geteuid() == 0 {
		return cfg.CacheDir
	}
	if dir, err := os.UserCacheDir(); err == nil {
		return filepath.Join(dir, "declarun")
	}
	return ""
}

func rootfsSubject(dir, config string, command []string) (*subject, error) {
	const way = "docker image inspect IMAGE > image.json, then --config image.json"
	raw, err := os.ReadFile(config)
	if err != nil {
		return nil, &advice{fmt.Errorf("plan: read the image's configuration: %w", err), way}
	}
	d, err := declared.FromImageConfig(raw, command...)
	if err != nil {
		return nil, &advice{fmt.Errorf("plan: read the image's configuration %s: %w", config, err), way}
	}
	return dirSubject(d, dir)
}

func dirSubject(d *declared.Declared, dir string) (*subject, error) {
	root, err := rootfs.Open(dir)
	if err != nil {
		return nil, &advice{fmt.Errorf("plan: %w", err), "unpack the image: docker export $(docker create IMAGE) | tar -x -C DIR"}
	}
	s := &subject{declared: d, root: root, engine: planner.UsualProfile(d.Image.Architecture), assumed: true, close: []func(){func() { root.Close() }}}
	if d.Image.Known {
		if err := d.ResolveUser(root); err != nil {
			s.Close()
			return nil, err
		}
	}
	return s, nil
}

func bundleSubject(dir string) (*subject, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, &advice{fmt.Errorf("plan: read the bundle: %w", err), "--bundle wants the directory with config.json in it; runc spec makes one"}
	}
	spec, err := bundle.Parse(raw)
	if err != nil {
		return nil, &advice{fmt.Errorf("plan: read the bundle %s: %w", dir, err), "correct its config.json; runc spec makes a new one"}
	}
	d, err := declared.FromBundle(dir)
	if err != nil {
		return nil, err
	}
	if spec.Root == nil {
		return nil, fmt.Errorf("plan %s: config.json names no root", dir)
	}
	root := spec.Root.Path
	if !filepath.IsAbs(root) {
		root = filepath.Join(dir, root)
	}
	r, err := rootfs.Open(root)
	if err != nil {
		return nil, err
	}
	s := &subject{declared: d, root: r, close: []func(){func() { r.Close() }}}
	if spec.Linux != nil {
		s.engine = spec.Linux.Seccomp
	}
	s.noNewPrivileges = spec.Process != nil && spec.Process.NoNewPrivileges
	return s, nil
}

func imageSubject(ctx context.Context, ref string, command []string) (*subject, error) {
	stored, err := declared.FindImage(ctx, ref, declared.Stores{}, command...)
	if err != nil {
		return nil, err
	}
	dir, done := "", func() {}
	if len(stored.Layers) == 1 {
		dir = stored.Layers[0]
	} else if dir, done, err = overlayOf(stored.Layers); err != nil {
		stored.Close()
		return nil, err
	}
	s, err := dirSubject(stored.Declared, dir)
	if err != nil {
		done()
		stored.Close()
		return nil, err
	}
	s.close = slices.Insert(s.close, 0, func() { stored.Close() }, done)
	return s, nil
}

// overlayOf mounts layers read-only, in a mount namespace of this thread's own,
// where nobody else sees it and where it ends with the program.
func overlayOf(layers []string) (dir string, done func(), err error) {
	if len(layers) == 0 {
		empty, err := os.MkdirTemp("", "declarun-image-")
		return empty, func() { os.RemoveAll(empty) }, err
	}
	for _, l := range layers {
		if strings.ContainsAny(l, ":,\\") {
			return "", nil, fmt.Errorf("mount image: layer %q has a character that mount options cannot hold", l)
		}
	}
	runtime.LockOSThread() // for good: the thread is not what it was
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return "", nil, &advice{fmt.Errorf("mount image: new mount namespace: %w", err), "run it as root, or unpack the image and use --rootfs"}
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return "", nil, fmt.Errorf("mount image: %w", err)
	}
	dir, err = os.MkdirTemp("", "declarun-image-")
	if err != nil {
		return "", nil, err
	}
	// Layer names are long and a mount takes one page of options (mount(2)):
	// they are given relative to short links.
	var lower []string
	links, err := os.MkdirTemp("", "l")
	if err != nil {
		return "", nil, err
	}
	for i, l := range layers {
		link := filepath.Join(links, fmt.Sprint(i))
		if err := os.Symlink(l, link); err != nil {
			return "", nil, err
		}
		lower = append(lower, link)
	}
	err = unix.Mount("overlay", dir, "overlay", unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, "lowerdir="+strings.Join(lower, ":"))
	os.RemoveAll(links)
	if err != nil {
		os.Remove(dir)
		return "", nil, fmt.Errorf("mount image: overlay of %d layers: %w", len(layers), err)
	}
	return dir, func() {
		_ = unix.Unmount(dir, unix.MNT_DETACH)
		_ = os.Remove(dir)
	}, nil
}
