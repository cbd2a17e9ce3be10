package main

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
	"strings"
	"time"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/rootfs"
)

// lived is an integration image that lived its whole life under strace: with
// its entrypoint, health check and everything they run.
type lived struct {
	name string
	plan *plan.Plan
	seen map[string]string
}

// images builds and runs the images of integration/images.
func images(ctx context.Context) ([]*lived, error) {
	tree, err := engine.Tree()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "declarun-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	in, err := engine.Build(ctx, dir, "")
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(tree, "integration/images/*/Dockerfile"))
	if err != nil {
		return nil, err
	}
	var out []*lived
	for _, f := range files {
		name := filepath.Base(filepath.Dir(f))
		if drivers[name] == nil {
			continue
		}
		l, err := live(ctx, in, tree, dir, name)
		if err != nil {
			return out, fmt.Errorf("image %s: %w", name, err)
		}
		out = append(out, l)
	}
	if len(out) == 0 {
		return nil, errors.New("no image has a driver")
	}
	return out, nil
}

func live(ctx context.Context, in *engine.Install, tree, dir, name string) (*lived, error) {
	from := filepath.Join(tree, "integration/images", name)
	if name == "hello" { // its Dockerfile copies what is built here
		built := filepath.Join(dir, "hello")
		if err := os.CopyFS(built, os.DirFS(from)); err != nil {
			return nil, err
		}
		if err := os.RemoveAll(filepath.Join(built, "server")); err != nil {
			return nil, err
		}
		if err := buildGo(ctx, tree, filepath.Join(built, "server")); err != nil {
			return nil, err
		}
		from = built
	}
	img, err := observe.Build(ctx, from)
	if err != nil {
		return nil, err
	}
	raw, err := img.Config.JSON()
	if err != nil {
		return nil, err
	}
	config := filepath.Join(dir, name+".json")
	if err := os.WriteFile(config, raw, 0o644); err != nil {
		return nil, err
	}
	p, err := planned(ctx, in, img.Root, config)
	if err != nil {
		return nil, err
	}
	root, err := rootfs.Open(img.Root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	argv := slices.Concat(img.Config.Entrypoint, img.Config.Cmd)
	env := append(slices.Clone(img.Config.Env), "POSTGRES_PASSWORD=x", "PGPASSWORD=x", "HOME=/root")
	search := "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	for _, kv := range env {
		if v, ok := strings.CutPrefix(kv, "PATH="); ok {
			search = v
		}
	}
	env = append(env, "PATH="+search)
	work := img.Config.WorkingDir
	if work == "" {
		work = "/"
	}
	for _, d := range strings.Split(search, ":") {
		if _, _, err := root.Stat(d + "/" + argv[0]); err == nil && !strings.HasPrefix(argv[0], "/") {
			argv[0] = d + "/" + argv[0]
		}
	}
	run, err := observe.Run(ctx, observe.Job{Root: img.Root, Dir: work, Argv: argv, Env: env, Trace: true, Drive: name, Health: img.Config.Health(), Timeout: 3 * time.Minute})
	if err != nil {
		return nil, err
	}
	l := &lived{name: name, plan: p, seen: map[string]string{}}
	for program, calls := range run.Trace.Seen {
		for call, line := range calls {
			l.seen[call] = program + ": " + line
		}
	}
	return l, nil
}

// planned is what "declarun plan" says of an unpacked image.
func planned(ctx context.Context, in *engine.Install, root, config string) (*plan.Plan, error) {
	p, _, err := planOnce(exec.CommandContext(ctx, filepath.Join(in.Bin, "declarund"), "--config", in.Config, "plan", "--rootfs", root, "--config", config, "--json"))
	return p, err
}

// planOnce runs it and gives the largest resident set of it or one of its
// children, in KiB: the analyser is one.
func planOnce(cmd *exec.Cmd) (*plan.Plan, int64, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		return nil, 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	peak := int64(0)
	for {
		select {
		case err := <-ended:
			if err != nil {
				return nil, 0, fmt.Errorf("declarun plan: %w: %s", err, stderr.String())
			}
			p := new(plan.Plan)
			return p, peak, json.Unmarshal(stdout.Bytes(), p)
		case <-time.After(10 * time.Millisecond):
			peak = max(peak, resident(cmd.Process.Pid, 0))
		}
	}
}

// resident is the largest VmHWM of a process and what is below it. It only
// grows in a process, so that the last look is what counts.
func resident(pid, depth int) int64 {
	most := int64(0)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil || depth > 4 {
		return 0
	}
	for line := range strings.Lines(string(status)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			if _, err := fmt.Sscan(v, &most); err != nil {
				return 0
			}
		}
	}
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		return most
	}
	for _, t := range tasks {
		raw, err := os.ReadFile(t)
		if err != nil {
			continue
		}
		for child := range strings.FieldsSeq(string(raw)) {
			n := 0
			if _, err := fmt.Sscan(child, &n); err == nil {
				most = max(most, resident(n, depth+1))
			}
		}
	}
	return most
}

func measureImages(ctx context.Context, _ *bench, r *report) error {
	all, err := images(ctx)
	if err != nil {
		return err
	}
	profile, err := dockers()
	if err != nil {
		return err
	}
	engine, err := filter.AllowedBy(profile)
	if err != nil {
		return err
	}
	sum, lost := 0.0, 0
	var each []string
	for _, l := range all {
		allowed := map[string]bool{}
		for _, c := range l.plan.Syscalls.Allow {
			allowed[c.Name] = true
		}
		note := ""
		if l.plan.Syscalls.Widened {
			note = " WIDENED"
		}
		var idle, miss []string
		for name := range l.seen {
			if !engine(name) { // no container of the engine is ever let: clone3
				delete(l.seen, name)
				delete(allowed, name)
			} else if !allowed[name] {
				miss = append(miss, name)
				r.note("image %s: seen and not allowed: %s by %.200s", l.name, name, l.seen[name])
			}
		}
		lost += len(miss)
		for _, c := range l.plan.Syscalls.Allow {
			if l.seen[c.Name] == "" && !slices.Contains(idle, c.Name) {
				idle = append(idle, c.Name)
			}
		}
		r.note("image %s: allowed and not seen: %s", l.name, strings.Join(idle, " "))
		ratio := float64(len(allowed)) / float64(len(l.seen))
		sum += ratio
		each = append(each, fmt.Sprintf("%s %d/%d=%.2f%s", l.name, len(allowed), len(l.seen), ratio, note))
	}
	mean := sum / float64(len(all))
	r.add(row{fmt.Sprintf("allowed over observed, mean over the %d integration images, whole life", len(all)), "about 1.8", "1.35", fmt.Sprintf("%.2f", mean), met(mean <= 1.35 && lost == 0),
		fmt.Sprintf("with entrypoint and health check: %s; %d seen that are not allowed", strings.Join(each, ", "), lost)})
	return nil
}
