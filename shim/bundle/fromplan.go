package bundle

import (
	"errors"
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Options are what an Edit depends on besides the plan and config.json.
type Options struct {
	// Bundle is the absolute path of the bundle: root.path may be relative to it.
	Bundle string
	// Resolve gives the path of an existing file or directory of the root
	// filesystem, free of symbolic links; an error if there is none. runc takes
	// the source of a bind mount as a path of the host: a symbolic link in the
	// image would be followed out of it.
	Resolve func(name string) (string, error)
	// Seccomp replaces the engine's profile; nil leaves it.
	Seccomp *specs.LinuxSeccomp
	// NoNewPrivileges sets the flag; it is never cleared.
	NoNewPrivileges bool
	// CreateRuntimeHooks are appended.
	CreateRuntimeHooks []specs.Hook
	// RecursiveMounts also restricts what is mounted below a recursive bind
	// mount (rnoexec, rnosuid, rnodev, and rro where it is read-only): for a
	// runtime whose features list them, on Linux 5.12 or later.
	RecursiveMounts bool
}

// FromPlan computes the edit that holds a container to its plan. A dimension
// that is not enforced is not edited: a read-only root or a dropped capability
// cannot be observed without being felt. Of mount options, noexec and nosuid
// hold processes, nodev holds storage.
func FromPlan(p *plan.Plan, s *Spec, o Options) (Edit, error) {
	if p == nil || s == nil {
		return Edit{}, errors.New("compute the edit of config.json: no plan or no configuration")
	}
	e := Edit{Seccomp: o.Seccomp, CreateRuntimeHooks: o.CreateRuntimeHooks}
	if o.NoNewPrivileges && s.Process != nil && !s.Process.NoNewPrivileges {
		e.NoNewPrivileges = &o.NoNewPrivileges
	}
	processes, storage := held(p, record.Processes), held(p, record.Storage)
	if processes {
		e.DropCapabilities = surplus(p, s)
	}
	// A bundle that declares a writable root is taken at its word, mounts included.
	if !p.Storage.ReadonlyRoot {
		return e, nil
	}
	var options []string
	if processes {
		options = append(options, "noexec", "nosuid")
	}
	if storage {
		options = append(options, "nodev")
	}
	e.MountOptions = restrictions(p, s, options, o.RecursiveMounts)
	if !storage {
		return e, nil
	}
	if s.Root == nil || s.Root.Path == "" {
		return Edit{}, &Error{"/root/path", errors.New("no root filesystem")}
	}
	if s.Root.Readonly {
		return e, nil // the operator's word: nothing of the root is writable
	}
	yes := true
	e.ReadonlyRoot = &yes
	var err error
	e.SelfBinds, err = selfBinds(p, s, o)
	return e, err
}

// held is true where no mode was decided, too.
func held(p *plan.Plan, d record.Dimension) bool {
	return p.Mode[d].Strictness() == record.Enforce.Strictness()
}

func surplus(p *plan.Plan, s *Spec) []string {
	if s.Process == nil || s.Process.Capabilities == nil {
		return nil
	}
	c := s.Process.Capabilities
	var out []string
	for _, name := range slices.Concat(c.Bounding, c.Effective, c.Inheritable, c.Permitted, c.Ambient) {
		kept := slices.ContainsFunc(p.Capabilities, func(k plan.Capability) bool { return capability(k.Name) == capability(name) })
		if !kept && !slices.Contains(out, capability(name)) {
			out = append(out, capability(name))
		}
	}
	slices.Sort(out)
	return out
}

// kernelTrees are mounted and cared for by the engine.
var kernelTrees = []string{"/proc", "/sys", "/dev"}

func selfBinds(p *plan.Plan, s *Spec, o Options) ([]SelfBind, error) {
	root := s.Root.Path
	if !filepath.IsAbs(root) {
		if !filepath.IsAbs(o.Bundle) {
			return nil, fmt.Errorf("compute the edit of config.json: bundle %q is not absolute", o.Bundle)
		}
		root = filepath.Join(o.Bundle, root)
	}
	taken := slices.Clone(kernelTrees)
	for _, m := range s.Mounts {
		taken = append(taken, destination(m))
	}
	var out []SelfBind
	wanted := slices.Clone(p.Storage.Writable)
	slices.SortStableFunc(wanted, func(a, b plan.Writable) int { return strings.Compare(a.Path, b.Path) })
	for _, w := range wanted {
		if w.Mounted {
			continue
		}
		at := path.Clean("/" + w.Path)
		if at == "/" {
			return nil, fmt.Errorf("compute the edit of config.json: writable path %q is the whole root filesystem", w.Path)
		}
		if slices.ContainsFunc(taken, func(t string) bool { return within(at, t) }) {
			continue
		}
		if o.Resolve == nil {
			return nil, errors.New("compute the edit of config.json: no root filesystem to resolve writable paths in")
		}
		real, err := o.Resolve(at)
		if err != nil {
			return nil, fmt.Errorf("compute the edit of config.json: resolve writable path %s: %w", at, err)
		}
		if real != at {
			return nil, fmt.Errorf("compute the edit of config.json: writable path %s is a link to %s", at, real)
		}
		// Sorted: the last that it lies in is the nearest, which makes it
		// writable already. It needs its own mount only to differ.
		nearest := -1
		for i, b := range out {
			if within(at, b.Path) {
				nearest = i
			}
		}
		exec := w.Executes() || !held(p, record.Processes)
		if nearest >= 0 && out[nearest].Exec == exec {
			continue
		}
		out = append(out, SelfBind{Path: at, Source: filepath.Join(root, at), Exec: exec})
	}
	return out, nil
}

// within tells whether name is dir or lies below it.
func within(name, dir string) bool {
	return dir == "/" || name == dir || strings.HasPrefix(name, dir+"/")
}

func destination(m specs.Mount) string { return path.Clean("/" + m.Destination) }

// restrictions are the options that writable mounts of config.json lack, and
// those that are read-only here and can be written to through another mount.
func restrictions(p *plan.Plan, s *Spec, options []string, recursive bool) map[int][]string {
	out := make(map[int][]string)
	for i, m := range s.Mounts {
		dest := destination(m)
		if kernelType(m) {
			continue
		}
		wanted := options
		switch {
		case readOnly(m):
			// Programs may be executed from it. What is mounted below could be
			// written to.
			if recursive && slices.Contains(m.Options, "rbind") && slices.Contains(options, "noexec") && !mentions(m, "rro", "rrw") {
				out[i] = append(out[i], "rro")
			}
			if !slices.Contains(options, "noexec") || !writableElsewhere(s.Mounts, m) || runsFrom(p, dest) {
				continue
			}
			wanted = []string{"noexec"}
		case slices.ContainsFunc(kernelTrees, func(t string) bool { return within(dest, t) }):
			// Devices are what /dev is for. Programs are not, and the tmpfs that
			// engines mount there is root's to write to. (A noexec /dev keeps SGX
			// enclaves from being mapped; nothing else needs it otherwise.)
			wanted = slices.DeleteFunc(slices.Clone(options), func(no string) bool { return no == "nodev" })
		}
		exec := slices.ContainsFunc(p.Storage.Writable, func(w plan.Writable) bool { return w.Executes() && path.Clean("/"+w.Path) == dest })
		var add []string
		for _, no := range wanted {
			yes := strings.TrimPrefix(no, "no")
			if no == "noexec" && exec || mentions(m, yes, no, "r"+yes, "r"+no) {
				continue
			}
			add = append(add, no)
			if recursive && slices.Contains(m.Options, "rbind") {
				add = append(add, "r"+no)
			}
		}
		if add != nil {
			out[i] = append(out[i], add...)
		}
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

// writableElsewhere tells whether what a read-only bind mount shows is also
// there, or a part of it, or with more around it, to be written to.
func writableElsewhere(mounts []specs.Mount, m specs.Mount) bool {
	if !isBind(m) || !path.IsAbs(m.Source) {
		return false
	}
	source := path.Clean(m.Source)
	return slices.ContainsFunc(mounts, func(o specs.Mount) bool {
		if !isBind(o) || readOnly(o) || !path.IsAbs(o.Source) {
			return false
		}
		other := path.Clean(o.Source)
		return within(source, other) || within(other, source)
	})
}

// runsFrom tells whether the plan names a program at or below a path.
func runsFrom(p *plan.Plan, dest string) bool {
	return slices.ContainsFunc(p.Processes, func(r plan.Process) bool { return within(path.Clean("/"+r.Path), dest) })
}

// kernelType is true for filesystems that hold no files of anybody's.
func kernelType(m specs.Mount) bool {
	if isBind(m) {
		return false // the type does not count then
	}
	switch m.Type {
	case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue":
		return true
	}
	return false
}

func isBind(m specs.Mount) bool {
	return slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

func mentions(m specs.Mount, options ...string) bool {
	return slices.ContainsFunc(m.Options, func(o string) bool { return slices.Contains(options, o) })
}

// readOnly follows the last word on it, as mount(8) and runc do.
func readOnly(m specs.Mount) bool {
	ro := false
	for _, o := range m.Options {
		switch o {
		case "ro", "readonly", "rro":
			ro = true
		case "rw", "rrw":
			ro = false
		}
	}
	return ro
}
