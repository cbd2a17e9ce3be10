package engine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Cache is where built base systems and data roots are kept between runs.
func Cache() string {
	if dir := os.Getenv("DECLARUN_TEST_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/declarun-integration"
}

// Base makes the image debian:12 with debootstrap, from Debian's own packages,
// unless the engine has it. Nothing is pulled from an image registry.
func (d *Docker) Base(ctx context.Context) error {
	if _, err := d.Run(ctx, "image", "inspect", "debian:12"); err == nil {
		return nil
	}
	if err := os.MkdirAll(Cache(), 0o755); err != nil {
		return err
	}
	tree := filepath.Join(Cache(), fmt.Sprintf("debian-12.%d", os.Getpid()))
	defer os.RemoveAll(tree)
	if out, err := exec.CommandContext(ctx, "debootstrap", "--variant=minbase", "bookworm", tree).CombinedOutput(); err != nil {
		return fmt.Errorf("make the base image: debootstrap: %w: %s", err, lastLines(out, 5))
	}
	if err := os.RemoveAll(filepath.Join(tree, "var/cache/apt/archives")); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(tree, "var/cache/apt/archives/partial"), 0o755); err != nil {
		return err
	}
	tar := exec.CommandContext(ctx, "tar", "-C", tree, "-c", ".")
	load := d.CLI(ctx, "import", "-c", `CMD ["/bin/bash"]`, "-", "debian:12")
	pipe, err := tar.StdoutPipe()
	if err != nil {
		return err
	}
	load.Stdin = pipe
	if err := tar.Start(); err != nil {
		return err
	}
	out, err := load.CombinedOutput()
	if werr := tar.Wait(); err == nil {
		err = werr
	}
	if err != nil {
		return fmt.Errorf("import the base image: %w: %s", err, lastLines(out, 5))
	}
	return nil
}

// Image builds the image in dir (a Dockerfile with its context) under the name
// declarun-test/NAME unless it was built from the same files before.
func (d *Docker) Image(ctx context.Context, name, dir string) (string, error) {
	tag := "declarun-test/" + name
	sum, err := hashTree(dir)
	if err != nil {
		return "", err
	}
	if have, err := d.Run(ctx, "image", "inspect", "--format", `{{index .Config.Labels "io.declarun.test.context"}}`, tag); err == nil && have == sum {
		return tag, nil
	}
	out, err := d.CLI(ctx, "build", "--network", "host", "--label", "io.declarun.test.context="+sum, "-t", tag, dir).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build image %s: %w: %s", name, err, lastLines(out, 15))
	}
	return tag, nil
}

func hashTree(dir string) (string, error) {
	var files []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() {
			files = append(files, p)
		}
		return err
	})
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	sum := sha256.New()
	for _, p := range files {
		data, err := os.ReadFile(p)
		if err != nil {
			return "", err
		}
		info, err := os.Stat(p)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "%s %o %d\n", strings.TrimPrefix(p, dir), info.Mode(), len(data))
		sum.Write(data)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func lastLines(out []byte, n int) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Tree is the source tree that this package belongs to.
func Tree() (string, error) {
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return "", fmt.Errorf("find the source tree: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}

// Install is declarun built for one private engine: its configuration, state,
// sockets and log are in Dir, so that it meets no other installation.
type Install struct {
	Dir, Bin, Config, Log, State, Socket, CacheDir string
}

// Build compiles declarun and declarund into dir, with the path of their
// configuration file set to one in dir. extra is appended to that file.
func Build(ctx context.Context, dir, extra string) (*Install, error) {
	tree, err := Tree()
	if err != nil {
		return nil, err
	}
	in := &Install{Dir: dir, Bin: filepath.Join(dir, "bin"), Config: filepath.Join(dir, "config.toml"),
		Log: filepath.Join(dir, "events.jsonl"), State: filepath.Join(dir, "state"), CacheDir: filepath.Join(dir, "cache")}
	in.Socket = filepath.Join(in.State, "declarun.sock")
	if err := os.MkdirAll(in.Bin, 0o755); err != nil {
		return nil, err
	}
	for _, name := range []string{"declarun", "declarund"} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X github.com/declarun/declarun/shim/site.DefaultPath="+in.Config+" -X github.com/declarun/declarun/shim/runtime.configPath="+in.Config,
			"-o", filepath.Join(in.Bin, name), "./cmd/"+name)
		cmd.Dir = tree
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := cmd.CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build %s: %w: %s", name, err, lastLines(out, 10))
		}
	}
	return in, in.Configure(extra)
}

// Configure rewrites the configuration file.
func (in *Install) Configure(extra string) error {
	text := fmt.Sprintf("state-dir = %q\nlog-file = %q\nsocket = %q\ncache-dir = %q\n%s\n", in.State, in.Log, in.Socket, in.CacheDir, extra)
	return os.WriteFile(in.Config, []byte(text), 0o644)
}

// Supervisors lists the monitor and the worker of this installation's
// supervisor, not the analysers, which end with the worker.
func (in *Install) Supervisors() ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		var pid int
		if _, err := fmt.Sscanf(e.Name(), "%d", &pid); err != nil {
			continue
		}
		exe, err := os.Readlink("/proc/" + e.Name() + "/exe")
		if err != nil || strings.TrimSuffix(exe, " (deleted)") != filepath.Join(in.Bin, "declarund") {
			continue
		}
		if args, err := os.ReadFile("/proc/" + e.Name() + "/cmdline"); err == nil && !strings.Contains(string(args), "__analyse") {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Stop ends this installation's supervisor: first asked, then killed.
func (in *Install) Stop() error {
	for attempt := range 50 {
		pids, err := in.Supervisors()
		if err != nil || len(pids) == 0 {
			return err
		}
		sig := syscall.SIGTERM
		if attempt > 30 {
			sig = syscall.SIGKILL
		}
		for _, pid := range pids {
			if attempt%10 == 0 || sig == syscall.SIGKILL {
				_ = syscall.Kill(pid, sig)
			}
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("stop the supervisor of %s: still running", in.Dir)
}
