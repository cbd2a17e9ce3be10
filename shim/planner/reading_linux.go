package planner

import (
	"context"
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/admission"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/rootfs"
)

// Reading is all that a plan takes from the files of the image and of the
// mounts over it. They may be made by an attacker: nothing else of declarun
// looks into them before the container runs.
type Reading struct {
	OSRelease map[string]string   `json:"os_release,omitempty"`
	Packages  *admission.AptState `json:"packages,omitempty"`
	Closure   *procmap.Closure    `json:"closure,omitempty"`
	// Calls is nil where the closure is wide: what runs is then not known.
	Calls *seccompgen.Result `json:"calls,omitempty"`
}

// read reads an image. With an error comes what was read until then. Where
// unseen is given, it answers for programs that the cache does not know.
func read(ctx context.Context, root *rootfs.Root, d *declared.Declared, cache seccompgen.Cache, unseen func() (Reading, error)) (Reading, error) {
	var r Reading
	var err error
	if r.OSRelease, r.Packages, err = admission.Inspect(root); err != nil {
		return r, fmt.Errorf("look at the image's packages: %w", err)
	}
	if r.Closure, err = procmap.Derive(ctx, root, d); err != nil {
		return r, fmt.Errorf("work out which programs run: %w", err)
	}
	if r.Closure.Wide {
		return r, nil
	}
	req, err := request(root, d, r.Closure)
	if err != nil {
		return r, fmt.Errorf("work out the system calls: %w", err)
	}
	if len(req.Programs) == 0 {
		// The command is not there, or nothing that can be executed: runc says
		// so better than anybody, and nothing of the image will run.
		r.Calls = &seccompgen.Result{}
		return r, nil
	}
	var result seccompgen.Result
	if unseen == nil {
		result, err = seccompgen.Analyse(ctx, root, req, cache)
	} else if kept, ok := seccompgen.Kept(root, req, cache); ok {
		result = kept
	} else {
		return unseen()
	}
	if err != nil {
		return r, fmt.Errorf("work out the system calls: %w", err)
	}
	r.Calls = &result
	return r, nil
}

// brings tells whether a mount may bring scripts: an operator's directory or
// file, and not a volume that the image declares, which is for data.
func brings(d *declared.Declared, m declared.Mount) bool {
	return bound(m) && !slices.Contains(engineFiles, m.Destination) && !slices.Contains(d.Image.Volumes, m.Destination)
}

// bound tells whether a mount shows what lies elsewhere.
func bound(m declared.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// engineFiles are what every engine mounts into a container by itself.
var engineFiles = []string{"/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/dev/shm", "/dev/termination-log"}

// request asks for the system calls of a closure. The programs that mounts will
// bring are put into the root.
func request(root *rootfs.Root, d *declared.Declared, c *procmap.Closure) (seccompgen.Request, error) {
	req := seccompgen.Request{Env: d.Process.Env, Answered: d.Answered, Immutable: d.ReadonlyRoot || d.Image.Known && d.StorageHeld, SettledEnv: c.SettledEnv}
	for _, w := range c.Writable {
		req.Changeable = append(req.Changeable, w.Path)
	}
	for _, m := range d.Mounts {
		req.Changeable = append(req.Changeable, m.Destination)
		if brings(d, m) {
			req.Mounted = append(req.Mounted, m.Destination)
		}
	}
	for _, a := range c.Analyse {
		if a.Host != "" {
			f, err := os.OpenFile(a.Host, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
			if err != nil {
				return req, fmt.Errorf("open mounted program: %w", err)
			}
			root.Put(a.Path, f)
		}
		req.Programs = append(req.Programs, seccompgen.Program{Path: a.Path, Phase: a.Phase, Origins: a.Origins, Args: a.Args, Loads: a.Loads})
	}
	return req, nil
}
