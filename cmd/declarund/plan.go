package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/shim/bundle"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/planner"
	"github.com/declarun/declarun/shim/rootfs"
	"github.com/declarun/declarun/shim/site"
)

func planCommand() *cli.Command {
	return &cli.Command{
		Name:      "plan",
		ArgsUsage: "[COMMAND [ARG...]]",
		Description: "Of one of --image, --rootfs with --config, or --bundle. COMMAND replaces the image's own, as on\n" +
			"the run command; flags come before it. --rootfs needs no privilege but to read the files.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "image", Usage: "image `REF` in Docker's or containerd's store"},
			&cli.StringFlag{Name: "rootfs", Usage: "image unpacked in `DIR`"},
			&cli.StringFlag{Name: "config", Aliases: []string{"image-config"}, Usage: "`FILE` with its configuration, or with what docker image inspect prints"},
			&cli.StringFlag{Name: "bundle", Usage: "OCI bundle in `DIR`"},
			&cli.StringFlag{Name: "why", Usage: "only what allows `WHAT`: a system call, program, path, port, peer or capability"},
			&cli.BoolFlag{Name: "json", Usage: "as JSON", DisableDefaultText: true},
		},
		Action: func(c *cli.Context) error {
			p, err := makePlan(c)
			if err != nil {
				return err
			}
			if what := c.String("why"); c.IsSet("why") {
				found, err := p.Why(c.App.Writer, what)
				if err == nil && !found {
					err = &advice{fmt.Errorf("plan: nothing allows %q", what), "see the whole plan: the same without --why"}
				}
				return err
			}
			if c.Bool("json") {
				return printJSON(c.App.Writer, p)
			}
			return p.Text(c.App.Writer)
		},
	}
}

func makePlan(c *cli.Context) (*plan.Plan, error) {
	// The flag --config of this command hides the one of the program.
	where := site.DefaultPath
	if up := c.Lineage(); len(up) > 1 {
		where = cmp.Or(up[1].String("config"), where)
	}
	cfg, err := site.Load(where)
	if err != nil {
		return nil, err
	}
	plans := &planner.Planner{Site: func() (*site.Config, error) { return cfg, nil }, Analyse: planner.LocalAnalyser(analysisCache(cfg))}
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
		return planBundle(c.Context, plans, c.String("bundle"))
	case c.IsSet("rootfs"):
		if !c.IsSet("config") {
			return nil, &advice{errors.New("plan: --rootfs without --config"), "docker image inspect IMAGE > image.json, then --config image.json"}
		}
		const way = "docker image inspect IMAGE > image.json, then --config image.json"
		raw, err := os.ReadFile(c.String("config"))
		if err != nil {
			return nil, &advice{fmt.Errorf("plan: read the image's configuration: %w", err), way}
		}
		d, err := declared.FromImageConfig(raw, command...)
		if err != nil {
			return nil, &advice{fmt.Errorf("plan: read the image's configuration %s: %w", c.String("config"), err), way}
		}
		return planDir(c.Context, plans, d, c.String("rootfs"), nil)
	}
	return planImage(c.Context, plans, c.String("image"), command)
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

func planDir(ctx context.Context, plans *planner.Planner, d *declared.Declared, dir string, engine *specs.LinuxSeccomp) (*plan.Plan, error) {
	root, err := rootfs.Open(dir)
	if err != nil {
		return nil, &advice{fmt.Errorf("plan: %w", err), "unpack the image: docker export $(docker create IMAGE) | tar -x -C DIR"}
	}
	defer root.Close()
	if d.Image.Known {
		if err := d.ResolveUser(root); err != nil {
			return nil, err
		}
	}
	return plans.Plan(ctx, d, root, engine)
}

func planBundle(ctx context.Context, plans *planner.Planner, dir string) (*plan.Plan, error) {
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
	defer r.Close()
	var engine *specs.LinuxSeccomp
	if spec.Linux != nil {
		engine = spec.Linux.Seccomp
	}
	return plans.Plan(ctx, d, r, engine)
}

func planImage(ctx context.Context, plans *planner.Planner, ref string, command []string) (*plan.Plan, error) {
	stored, err := declared.FindImage(ctx, ref, declared.Stores{}, command...)
	if err != nil {
		return nil, err
	}
	defer stored.Close()
	if len(stored.Layers) == 1 {
		return planDir(ctx, plans, stored.Declared, stored.Layers[0], nil)
	}
	dir, done, err := overlayOf(stored.Layers)
	if err != nil {
		return nil, err
	}
	defer done()
	return planDir(ctx, plans, stored.Declared, dir, nil)
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
