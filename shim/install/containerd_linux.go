package install

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Containerd is where containerd's files are.
type Containerd struct {
	Config  string // empty: /etc/containerd/config.toml
	Program string // declarun, absolute
	Default bool   // make it the CRI plugin's default runtime
}

func (c Containerd) config() string {
	if c.Config != "" {
		return c.Config
	}
	return "/etc/containerd/config.toml"
}

func (c Containerd) dropIn() string {
	return filepath.Join(filepath.Dir(c.config()), "conf.d", Name+".toml")
}

// Install writes the drop-in and has config.toml import it. containerd cannot
// read its configuration again; when to restart it is its owner's to say.
func (c Containerd) Install() (Report, error) {
	var r Report
	if !filepath.IsAbs(c.Program) {
		return r, fmt.Errorf("install for containerd: %q is not an absolute path", c.Program)
	}
	before, err := read(c.config())
	if err != nil {
		return r, fmt.Errorf("install for containerd: %w", err)
	}
	dropIn, err := ContainerdDropIn(before, c.Program, c.Default)
	if err != nil {
		return r, fmt.Errorf("install for containerd: %s: %w", c.config(), err)
	}
	after, err := ContainerdImports(before, c.dropIn())
	if err != nil {
		return r, fmt.Errorf("install for containerd: %s: %w", c.config(), err)
	}
	changed := false
	if old, err := read(c.dropIn()); err != nil {
		return r, fmt.Errorf("install for containerd: %w", err)
	} else if !bytes.Equal(old, dropIn) {
		if err := replace(c.dropIn(), dropIn); err != nil {
			return r, fmt.Errorf("install for containerd: %w", err)
		}
		r.done("wrote %s", c.dropIn())
		changed = true
	}
	if !bytes.Equal(before, after) {
		made, err := backUp(c.config(), before)
		if err != nil {
			return r, fmt.Errorf("back up %s: %w", c.config(), err)
		}
		if made {
			r.done("kept %s as %s", c.config(), backupOf(c.config()))
		}
		if err := replace(c.config(), after); err != nil {
			return r, fmt.Errorf("install for containerd: %w", err)
		}
		r.done("%s imports it", c.config())
		changed = true
	}
	if !changed {
		r.done("%s is as it should be", c.dropIn())
		return r, nil
	}
	r.next("systemctl restart containerd   # running containers go on")
	return r, nil
}

// Uninstall removes the drop-in and its import.
func (c Containerd) Uninstall() (Report, error) {
	var r Report
	switch err := os.Remove(c.dropIn()); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return r, fmt.Errorf("uninstall from containerd: %w", err)
	default:
		r.done("removed %s", c.dropIn())
		_ = os.Remove(filepath.Dir(c.dropIn())) // only if it is empty
	}
	content, err := read(c.config())
	if err != nil {
		return r, fmt.Errorf("uninstall from containerd: %w", err)
	}
	before, err := read(backupOf(c.config()))
	if err != nil {
		return r, fmt.Errorf("uninstall from containerd: %w", err)
	}
	after := ContainerdWithoutImport(content, c.dropIn())
	if before != nil && sameConfig(after, before) {
		after = before // to the letter
	}
	switch {
	case bytes.Equal(content, after):
	case before == nil && string(after) == "version = 2\n": // what install had made
		if err := os.Remove(c.config()); err != nil {
			return r, fmt.Errorf("uninstall from containerd: %w", err)
		}
		r.done("removed %s, which install had made", c.config())
	default:
		if err := replace(c.config(), after); err != nil {
			return r, fmt.Errorf("uninstall from containerd: %w", err)
		}
		r.done("%s does not import it any more", c.config())
	}
	if before != nil && bytes.Equal(before, after) {
		if err := os.Remove(backupOf(c.config())); err != nil {
			return r, fmt.Errorf("uninstall from containerd: %w", err)
		}
	}
	if len(r.Done) == 0 {
		r.done("%s does not mention declarun", c.config())
		return r, nil
	}
	r.next("systemctl restart containerd   # running containers go on")
	return r, nil
}
