// Package engine runs a private Docker for tests, benchmarks and the demo: own
// sockets, data root, configuration, and own network namespace with no way
// out, so that it disturbs nobody and nothing in it can reach another host.
//
// Images are built before, by the same engine started once in the host's
// network namespace without a bridge and without touching its packet filter,
// since "RUN apt-get update" needs the package mirror.
package engine

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// Docker is a running private engine.
type Docker struct {
	Dir      string // everything of it is in here
	Declarun string // path of the runtime binary that it knows as "declarun"

	options Options
	daemon  *exec.Cmd
	exited  chan error
}

// Network says where the daemon's bridges live.
type Network string

const (
	// Isolated is a network namespace of the engine's own.
	Isolated Network = "isolated"
	// OnHost is the host's network without bridges: containers of "docker
	// build --network host" reach what the host reaches.
	OnHost Network = "host"
)

// Options of Start.
type Options struct {
	Dir         string // of this run: sockets, logs, the installed binaries
	Data        string // data root; kept, so that built images are found again
	Network     Network
	Bin         string // directory holding declarun and declarund; empty: no such runtime
	Config      string // additional lines for declarun's config.toml
	LiveRestore bool
}

// Start starts a daemon and waits until it serves.
func Start(ctx context.Context, o Options) (*Docker, error) {
	d := &Docker{Dir: o.Dir, exited: make(chan error, 1)}
	for _, dir := range []string{o.Dir, o.Data} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, err
		}
	}
	daemon := map[string]any{"features": map[string]bool{"buildkit": false}, "live-restore": o.LiveRestore}
	if o.Bin != "" {
		d.Declarun = filepath.Join(o.Bin, "declarun")
		daemon["runtimes"] = map[string]any{"declarun": map[string]string{"path": d.Declarun}}
	}
	raw, err := json.Marshal(daemon)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(d.path("daemon.json"), raw, 0o644); err != nil {
		return nil, err
	}
	d.options = o
	if err := d.start(ctx); err != nil {
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

// Restart stops the daemon and starts it anew with the same data. An isolated
// engine gets a new network namespace.
func (d *Docker) Restart(ctx context.Context) error {
	if err := d.Stop(); err != nil {
		return err
	}
	return d.start(ctx)
}

func (d *Docker) path(name string) string { return filepath.Join(d.Dir, name) }

func (d *Docker) start(ctx context.Context) error {
	o := d.options
	args := []string{"--data-root", o.Data, "--exec-root", d.path("exec"), "-H", "unix://" + d.path("docker.sock"),
		"--pidfile", d.path("docker.pid"), "--config-file", d.path("daemon.json"), "--storage-driver", "overlay2"}
	var cmd *exec.Cmd
	if o.Network == OnHost {
		cmd = exec.Command("dockerd", append(args, "--bridge=none", "--iptables=false", "--ip6tables=false")...)
	} else {
		script := `ip link set lo up && exec dockerd "$@"`
		cmd = exec.Command("sh", append([]string{"-c", script, "dockerd"}, args...)...)
	}
	attr := &syscall.SysProcAttr{Setsid: true}
	if o.Network == Isolated {
		attr.Cloneflags = syscall.CLONE_NEWNET
	}
	cmd.SysProcAttr = attr
	log, err := os.OpenFile(d.path("dockerd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start dockerd: %w", err)
	}
	d.daemon = cmd
	d.exited = make(chan error, 1)
	go func(exited chan<- error) { exited <- cmd.Wait() }(d.exited)
	limit := time.Now().Add(60 * time.Second)
	for {
		if _, err := d.Run(ctx, "version", "--format", "{{.Server.Version}}"); err == nil {
			return nil
		}
		select {
		case err := <-d.exited:
			return fmt.Errorf("start dockerd: it ended (%w); its log: %s", err, d.path("dockerd.log"))
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
		if time.Now().After(limit) {
			return fmt.Errorf("start dockerd: not serving after 60 s; its log: %s", d.path("dockerd.log"))
		}
	}
}

// PID is the daemon's process, whose network namespace holds the bridges.
func (d *Docker) PID() int { return d.daemon.Process.Pid }

// Command prepares a program on the host that runs in the engine's network
// namespace, from where containers' addresses can be reached.
func (d *Docker) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "nsenter", append([]string{"-t", strconv.Itoa(d.PID()), "-n", name}, args...)...)
}

// CLI prepares a docker command against this engine.
func (d *Docker) CLI(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "docker", args...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST=unix://"+d.path("docker.sock"), "DOCKER_CONFIG="+d.path("client"), "DOCKER_CLI_HINTS=false")
	return cmd
}

// Run runs a docker command and gives its standard output; the error holds
// what it said on standard error.
func (d *Docker) Run(ctx context.Context, args ...string) (string, error) {
	cmd := d.CLI(ctx, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("docker %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimRight(stdout.String(), "\n"), nil
}

// Address gives a container's address on the default network, or on the named one.
func (d *Docker) Address(ctx context.Context, container, network string) (string, error) {
	format := "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
	if network != "" {
		format = `{{(index .NetworkSettings.Networks "` + network + `").IPAddress}}`
	}
	out, err := d.Run(ctx, "inspect", "--format", format, container)
	if err != nil {
		return "", err
	}
	fields := strings.Fields(out)
	if len(fields) == 0 {
		return "", fmt.Errorf("address of %s: it has none", container)
	}
	return fields[0], nil
}

// Stop ends the daemon and waits for it. Containers go with it unless live restore is on.
func (d *Docker) Stop() error {
	if d.daemon == nil {
		return nil
	}
	if err := d.daemon.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-d.exited:
	case <-time.After(60 * time.Second):
		_ = d.daemon.Process.Kill()
		<-d.exited
		return errors.New("stop dockerd: killed after 60 s")
	}
	d.daemon = nil
	return d.unmount()
}

// unmount undoes what a daemon leaves mounted: the namespace file of host
// networking, and its data root on itself where it was killed.
func (d *Docker) unmount() error {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		if len(f) > 4 && (strings.HasPrefix(f[4], d.Dir+"/") || f[4] == d.options.Data || strings.HasPrefix(f[4], d.options.Data+"/")) {
			points = append(points, f[4])
		}
	}
	for _, p := range slices.Backward(points) {
		if err := syscall.Unmount(p, syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", p, err)
		}
	}
	return nil
}

// Events reads a supervisor's event log: every line so far.
func Events(logFile string) ([]record.Event, error) {
	raw, err := os.ReadFile(logFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var events []record.Event
	for line := range bytes.Lines(raw) {
		if len(bytes.TrimSpace(line)) == 0 || line[len(line)-1] != '\n' {
			continue
		}
		var e record.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("read %s: %w", logFile, err)
		}
		events = append(events, e)
	}
	return events, nil
}
