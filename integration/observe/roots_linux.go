package observe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/engine"
)

// Spec is a root file system: Debian's minimal base and packages.
type Spec struct {
	Name     string
	Packages []string
	// Setup is a shell script that is run in the root at the end, for what an
	// image's author would write in a Dockerfile.
	Setup string
}

// suite is the release that the roots are made of.
const suite = "bookworm"

// Root gives the directory of a root, made unless it was made before. Nothing
// may write to it: commands run on an overlay.
func Root(ctx context.Context, s Spec) (string, error) {
	if os.Geteuid() != 0 {
		return "", errors.New("make a root file system: needs root")
	}
	base, err := kept(ctx, "base", func(dir string) error {
		if out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", suite, dir).CombinedOutput(); err != nil {
			return fmt.Errorf("debootstrap: %w: %s", err, last(out, 5))
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	if len(s.Packages) == 0 && s.Setup == "" {
		return base, nil
	}
	sum := sha256.Sum256([]byte(strings.Join(append(slices.Sorted(slices.Values(s.Packages)), s.Setup), "\n")))
	return kept(ctx, s.Name+"-"+hex.EncodeToString(sum[:6]), func(dir string) error { return install(ctx, base, dir, s) })
}

// kept makes a directory in the cache once, whole or not at all, whoever else
// wants it at the same time.
func kept(ctx context.Context, name string, make func(dir string) error) (string, error) {
	home := filepath.Join(engine.Cache(), "roots")
	if err := os.MkdirAll(home, 0o755); err != nil {
		return "", err
	}
	lock, err := os.OpenFile(filepath.Join(home, "."+name+".lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX); err != nil {
		return "", fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	dir := filepath.Join(home, name)
	if _, err := os.Stat(dir); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return dir, err
	}
	unfinished := dir + ".unfinished"
	if err := os.RemoveAll(unfinished); err != nil {
		return "", err
	}
	if err := make(unfinished); err != nil {
		return "", fmt.Errorf("make root %s: %w", name, err)
	}
	return dir, os.Rename(unfinished, dir)
}

// install lets the base's own apt install packages in a copy of it.
func install(ctx context.Context, base, dir string, s Spec) error {
	if err := furnishApt(ctx, base, dir); err != nil {
		return err
	}
	for _, line := range []string{"apt-get update -q",
		"apt-get install -y -q --no-install-recommends -o Dpkg::Options::=--force-unsafe-io " + strings.Join(s.Packages, " "),
		"apt-get clean; rm -rf /var/lib/apt/lists/*", "set -e\n" + s.Setup} {
		if err := inRoot(ctx, dir, line, nil); err != nil {
			return err
		}
	}
	return unfurnishApt(dir)
}

// furnishApt copies the base and puts in it what apt needs. Services that
// packages bring are not started.
func furnishApt(ctx context.Context, base, dir string) error {
	if out, err := exec.CommandContext(ctx, "cp", "-a", base, dir).CombinedOutput(); err != nil {
		return fmt.Errorf("copy the base: %w: %s", err, last(out, 3))
	}
	for _, name := range []string{"/etc/resolv.conf", "/etc/hosts"} {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "usr/sbin/policy-rc.d"), []byte("#!/bin/sh\nexit 101\n"), 0o755)
}

// unfurnishApt takes out what an image does not have.
func unfurnishApt(dir string) error {
	return errors.Join(os.Remove(filepath.Join(dir, "etc/resolv.conf")), os.Remove(filepath.Join(dir, "usr/sbin/policy-rc.d")))
}

func last(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
