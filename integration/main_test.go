// Package integration tests the built binaries as black boxes: real runc, real
// Docker and containerd, real kernel, real clients.
package integration

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

// lab is the private engine that all tests of this package share.
type lab struct {
	dir     string
	docker  *engine.Docker
	install *engine.Install
	images  map[string]string
	broken  map[string]error // images that could not be built
}

type onceLab struct {
	once sync.Once
	lab  *lab
	err  error
}

// shared is the lab of most tests; fleetLab has many more images, whose data
// root only its own test pays for.
var shared, fleetLab onceLab

func TestMain(m *testing.M) {
	code := m.Run()
	for _, o := range []*onceLab{&shared, &fleetLab} {
		if l := o.lab; l != nil {
			if err := l.close(); err != nil {
				fmt.Fprintln(os.Stderr, "close the lab:", err)
				if code == 0 {
					code = 1
				}
			}
		}
	}
	os.Exit(code)
}

// open gives the shared lab, which is set up by the first test that asks.
func open(t *testing.T) *lab {
	t.Helper()
	return shared.open(t, "lab-data", 10*time.Minute, (*lab).buildImages)
}

// open sets the lab up unless it is. The data root keeps what build built.
func (o *onceLab) open(t *testing.T, data string, limit time.Duration, build func(l *lab, ctx context.Context, data string) error) *lab {
	t.Helper()
	need.Docker(t)
	need.Program(t, "debootstrap")
	need.Program(t, "nsenter")
	o.once.Do(func() { o.lab, o.err = newLab(filepath.Join(engine.Cache(), data), limit, build) })
	if o.err != nil {
		t.Fatalf("open the lab: %v", o.err)
	}
	return o.lab
}

func newLab(data string, limit time.Duration, build func(l *lab, ctx context.Context, data string) error) (l *lab, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	dir, err := os.MkdirTemp("", "declarun-lab-")
	if err != nil {
		return nil, err
	}
	l = &lab{dir: dir, images: map[string]string{}, broken: map[string]error{}}
	defer func() {
		if err != nil {
			os.RemoveAll(dir)
		}
	}()
	if l.install, err = engine.Build(ctx, dir, `report-writes = "always"`); err != nil {
		return nil, err
	}
	if err := build(l, ctx, data); err != nil {
		return nil, err
	}
	l.docker, err = engine.Start(ctx, engine.Options{Dir: dir, Data: data, Network: engine.Isolated, Bin: l.install.Bin})
	if err != nil {
		return nil, err
	}
	// What an earlier, interrupted run left in the data root.
	if left, err := l.docker.Run(ctx, "ps", "-aq"); err == nil && left != "" {
		for _, id := range fields(left) {
			_, _ = l.docker.Run(ctx, "rm", "-f", "-v", id)
		}
	}
	_, _ = l.docker.Run(ctx, "network", "prune", "-f")
	return l, nil
}

func (l *lab) buildImages(ctx context.Context, data string) (err error) {
	tree, err := engine.Tree()
	if err != nil {
		return err
	}
	builder, err := engine.Start(ctx, engine.Options{Dir: filepath.Join(l.dir, "build"), Data: data, Network: engine.OnHost})
	if err != nil {
		return err
	}
	defer func() {
		if e := builder.Stop(); err == nil {
			err = e
		}
	}()
	if err := builder.Base(ctx); err != nil {
		return err
	}
	hello := filepath.Join(l.dir, "hello")
	if err := os.MkdirAll(hello, 0o755); err != nil {
		return err
	}
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", filepath.Join(hello, "server"), "./integration/images/hello/server")
	build.Dir, build.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the Go server: %w: %s", err, out)
	}
	dockerfile, err := os.ReadFile(filepath.Join(tree, "integration/images/hello/Dockerfile"))
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(hello, "Dockerfile"), dockerfile, 0o644); err != nil {
		return err
	}
	for name, dir := range map[string]string{
		"postgres":  filepath.Join(tree, "integration/images/postgres"),
		"nginx":     filepath.Join(tree, "integration/images/nginx"),
		"redis":     filepath.Join(tree, "integration/images/redis"),
		"memcached": filepath.Join(tree, "integration/images/memcached"),
		"hello":     hello,
	} {
		if l.images[name], err = builder.Image(ctx, name, dir); err != nil {
			return err
		}
	}
	l.images["debian"] = "debian:12"
	return nil
}

func (l *lab) close() error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var first error
	keep := func(err error) {
		if first == nil {
			first = err
		}
	}
	if l.docker != nil {
		if left, err := l.docker.Run(ctx, "ps", "-aq"); err == nil {
			for _, id := range fields(left) {
				_, _ = l.docker.Run(ctx, "rm", "-f", "-v", id)
			}
		}
		keep(l.docker.Stop())
	}
	keep(l.install.Stop())
	if os.Getenv("DECLARUN_TEST_KEEP") == "" {
		keep(os.RemoveAll(l.dir))
	}
	return first
}

// run is docker with a failed test instead of an error.
func (l *lab) run(t *testing.T, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	out, err := l.docker.Run(ctx, args...)
	if err != nil {
		t.Fatalf("%v", err)
	}
	return out
}

// try is docker with an error.
func (l *lab) try(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	return l.docker.Run(ctx, args...)
}

// container starts one in the background and removes it with the test. It
// gives the full ID.
func (l *lab) container(t *testing.T, args ...string) string {
	t.Helper()
	id := l.run(t, append([]string{"run", "-d"}, args...)...)
	t.Cleanup(func() {
		if t.Failed() {
			if out, err := l.docker.CLI(context.Background(), "logs", "--tail", "20", id).CombinedOutput(); err == nil {
				t.Logf("last output of %s:\n%s", id[:12], out)
			}
			for _, e := range l.events(t, id) {
				t.Logf("event: %s %s %s %s (%s): %s", e.Verdict, e.Dimension, e.Action, e.Object, e.Mechanism, e.Reason)
			}
		}
		_, _ = l.try("rm", "-f", "-v", id)
	})
	return id
}

// events gives the events on one container so far.
func (l *lab) events(t *testing.T, id string) []record.Event {
	t.Helper()
	all, err := engine.Events(l.install.Log)
	if err != nil {
		t.Fatal(err)
	}
	var of []record.Event
	for _, e := range all {
		if e.Container == id {
			of = append(of, e)
		}
	}
	return of
}

// quiet fails the test if anything of the container was refused.
func (l *lab) quiet(t *testing.T, id, when string) {
	t.Helper()
	for _, e := range l.events(t, id) {
		if e.Verdict == record.Denied {
			t.Errorf("%s: refused %s %s %s (%s): %s; by %+v", when, e.Dimension, e.Action, e.Object, e.Mechanism, e.Reason, e.Process)
		}
	}
}

// await polls until the condition holds, at most for the given time.
func await(limit time.Duration, holds func() bool) bool {
	for end := time.Now().Add(limit); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		if holds() {
			return true
		}
	}
	return holds()
}

// healthy waits for the container's health check.
func (l *lab) healthy(t *testing.T, id string) {
	t.Helper()
	var state string
	if !await(90*time.Second, func() bool {
		state, _ = l.try("inspect", "--format", "{{.State.Status}} {{if .State.Health}}{{.State.Health.Status}}{{end}}", id)
		return state == "running healthy" || state == "exited" || state == "running "
	}) || state != "running healthy" {
		t.Fatalf("container is %q, want running healthy", state)
	}
}
