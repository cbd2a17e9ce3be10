// Package guards connects the supervisor to what holds a container while it
// runs: the exec guard and the sensors of package procmap, and the network
// tables of package netpolicy. It translates between their words and the
// plan's, and decides nothing itself.
package guards

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/procmap/guard"
	"github.com/declarun/declarun/procmap/sensor"
	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/planner"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/supervise"
)

// Execs is the exec guard with the sensors that watch the same files.
type Execs struct {
	guard    *guard.Guard
	drops    *sensor.Drops    // nil: this machine has none
	refusals *sensor.Refusals // nil: this machine has none

	mu         sync.Mutex
	containers map[string]watched          // by token
	byPIDNS    map[string]string           // pid namespace → token
	told       map[string]map[dropped]bool // by token: executables that were reported
}

type watched struct {
	pid      int
	pidns    string
	writable []plan.Writable
	readonly bool        // the plan made the root so
	swept    time.Time   // executables are looked for that changed since
	programs record.Mode // of processes
}

// OpenExecs opens the guard, or takes over the group of an earlier worker. What
// is missing of the sensors is said in notes and missing from the events; what
// is missing of the guard is an error.
func OpenExecs(inherited *os.File, writes site.ReportWrites) (*Execs, error) {
	x := &Execs{containers: map[string]watched{}, byPIDNS: map[string]string{}, told: map[string]map[dropped]bool{}}
	var err error
	if inherited != nil {
		x.guard, err = guard.FromFile(inherited)
	} else {
		x.guard, err = guard.Open()
	}
	if err != nil {
		return nil, err
	}
	if x.drops, err = sensor.OpenDrops(); err != nil {
		log.Printf("declarund: dropped executables are not reported: %v", err)
	}
	var hooks []sensor.Hook // none: the cheap ones
	switch writes {
	case site.ReportNever:
		return x, nil
	case site.ReportAlways:
		hooks = []sensor.Hook{sensor.FunctionExit, sensor.ReturnProbe, sensor.SyscallExit}
	}
	if x.refusals, err = sensor.OpenRefusals(hooks...); err != nil {
		var without *sensor.UnsupportedError
		if errors.As(err, &without) { // doctor prints the causes
			err = errors.New(without.Hint)
		}
		log.Printf("declarund: no reports of refused writes on this machine: %v", err)
	}
	return x, nil
}

// File implements supervise.ExecGuard.
func (x *Execs) File() *os.File { return x.guard.File() }

// Watch implements supervise.ExecGuard.
func (x *Execs) Watch(t supervise.Target) error {
	var extra planner.Extra
	if len(t.Facts.Extra) > 0 {
		if err := json.Unmarshal(t.Facts.Extra, &extra); err != nil {
			return fmt.Errorf("read stored facts: %w", err)
		}
	}
	root, err := dupOr(t.Files["rootfs"], fmt.Sprintf("/proc/%d/root", t.PID), t.Adopted)
	if err != nil {
		return err
	}
	c := guard.Container{ID: t.Token, PID: t.PID, Root: root, Mounts: map[string]guard.Mount{},
		Wide: t.Plan.Wide, WideStarting: t.Plan.WideStarting, Scriptable: scriptable(t.Plan), Created: extra.Created}
	trees := map[string]*os.File{}
	for _, w := range t.Plan.Storage.Writable {
		f, err := dupOr(t.Files["mount:"+w.Path], fmt.Sprintf("/proc/%d/root%s", t.PID, w.Path), t.Adopted)
		if errors.Is(err, errNotGiven) || t.Adopted && err != nil {
			continue
		}
		if err != nil {
			closeAll(trees)
			root.Close()
			return err
		}
		trees[w.Path] = f
		if w.Executes() {
			own, err := dup(f)
			if err != nil {
				closeAll(trees)
				root.Close()
				return err
			}
			c.Mounts[w.Path] = guard.Mount{File: own, Exec: w.Exec, Guarded: !w.Exec, Own: !w.Mounted}
		}
	}
	defer closeAll(trees)
	for _, p := range t.Plan.Processes {
		program := guard.Program{Path: p.Path, Starting: p.Phase == record.Starting, Loader: p.Loader}
		if p.Identity == record.HealthCheck {
			c.HealthCheck = append(c.HealthCheck, program)
		} else {
			c.Application = append(c.Application, program)
		}
	}
	overlay, err := dup(root)
	if err != nil {
		root.Close()
		return err
	}
	defer overlay.Close()
	switch err := x.guard.Watch(c); {
	case errors.Is(err, guard.ErrSharedMount):
		// The operator gave it the host's mounts. What it executes is still
		// refused by what was asked for, but not by file.
		return &supervise.WeakerError{Err: fmt.Errorf("executions are not guarded by file, only by the path that is asked for: %w", err)}
	case err != nil:
		return err
	}
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", t.PID))
	if err != nil {
		x.guard.Forget(t.Token)
		return fmt.Errorf("name pid namespace: %w", err)
	}
	if x.drops != nil {
		tree := sensor.Tree{ID: t.Token, Mounts: trees, Writes: t.Plan.Mode[record.Storage] == record.Audit && t.Plan.Storage.ReadonlyRoot}
		for _, w := range t.Plan.Storage.Writable {
			tree.Declared = append(tree.Declared, w.Path)
		}
		if x.guard.Marked(t.Token) == "filesystem" {
			tree.Overlay = overlay
		} else if tree.Writes {
			tree.Mounts = maps.Clone(trees)
			tree.Mounts["/"] = overlay
		}
		if err := x.drops.Watch(tree); err != nil {
			log.Printf("declarund: container %s: dropped executables and, in mode audit, written files are not reported: %v", t.Key.ID, err)
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	x.containers[t.Token] = watched{pid: t.PID, pidns: ns, writable: t.Plan.Storage.Writable,
		readonly: t.Plan.Storage.ReadonlyRoot && enforced(t.Plan, record.Storage), programs: t.Plan.Mode[record.Processes], swept: time.Now()}
	// Where the container shares the supervisor's, it does not tell whose a process is.
	if own, err := os.Readlink("/proc/self/ns/pid"); err != nil || own != ns {
		x.byPIDNS[ns] = t.Token
	}
	return nil
}

// enforced is true where no mode was decided, too.
func enforced(p *plan.Plan, d record.Dimension) bool {
	return p.Mode[d].Strictness() == record.Enforce.Strictness()
}

// scriptable tells whether the application may run a shell for its whole life.
func scriptable(p *plan.Plan) bool {
	shells := []string{"sh", "bash", "dash", "ash", "zsh", "ksh", "mksh", "busybox"}
	return slices.ContainsFunc(p.Processes, func(e plan.Process) bool {
		return e.Identity == record.Application && e.Phase == record.Serving && slices.Contains(shells, path.Base(e.Path))
	})
}

var errNotGiven = errors.New("not handed over")

func dupOr(f *os.File, path string, adopted bool) (*os.File, error) {
	if f != nil {
		return dup(f)
	}
	if !adopted {
		return nil, errNotGiven
	}
	fd, err := unix.Open(path, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

func dup(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate descriptor: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}

func closeAll(files map[string]*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// Forget implements supervise.ExecGuard.
func (x *Execs) Forget(token string) {
	x.mu.Lock()
	if w, ok := x.containers[token]; ok {
		delete(x.containers, token)
		delete(x.told, token)
		if x.byPIDNS[w.pidns] == token {
			delete(x.byPIDNS, w.pidns)
		}
	}
	x.mu.Unlock()
	if x.drops != nil {
		x.drops.Forget(token)
	}
	x.guard.Forget(token)
}

// Allowed implements supervise.ExecGuard.
func (x *Execs) Allowed(token string, file *os.File, id record.Identity, phase record.Phase) (supervise.Permission, string) {
	d, e, known := x.guard.Allowed(token, file, guard.Who{Identity: id, Phase: phase, Mode: record.Enforce})
	switch {
	case !known:
		return supervise.Unsure, d.Reason
	case d.Allow && e.Place == guard.ReadOnlyMount:
		return supervise.Unwatched, d.Reason
	case d.Allow:
		return supervise.Permitted, d.Reason
	}
	return supervise.Forbidden, d.Reason
}

// Sweep implements supervise.ExecGuard.
func (x *Execs) Sweep(fds []int32) {
	if n := x.guard.SweepPending(fds); n > 0 {
		log.Printf("declarund: %d executions that an earlier worker left undecided are refused", n)
	}
}

// Serving implements supervise.ExecGuard.
func (x *Execs) Serving(token string) { x.guard.Serving(token) }

// Run implements supervise.ExecGuard.
func (x *Execs) Run(ctx context.Context, look supervise.Lookup) error {
	var all sync.WaitGroup
	defer all.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if x.drops != nil {
		all.Go(func() { x.runDrops(ctx, look) })
	}
	all.Go(func() { x.runSweeps(ctx, look) })
	if x.refusals != nil {
		all.Go(func() { x.runRefusals(ctx, look) })
	}
	return x.guard.Run(ctx, func(e guard.Exec) guard.Decision {
		by := look.Executed(e.ContainerID, e.TID)
		e.Direct = by.Opened != nil && by.Opened.Add(1) == 1
		d := guard.Judge(e, guard.Who{Identity: by.Identity, Phase: by.Phase, Mode: by.Mode})
		if d.Verdict == record.Denied || d.Verdict == record.Observed {
			look.Report(e.ContainerID, record.Event{
				Dimension: record.Processes, Action: "execve", Object: e.Path, Verdict: d.Verdict, Identity: by.Identity,
				Mechanism: "fanotify", Reason: fmt.Sprintf("%s is %s", e.Path, d.Reason), Process: asked(events.Snapshot(e.TID), by),
			})
		}
		return d
	})
}

// asked gives a process the arguments it asked to be executed with.
func asked(p *record.Process, by supervise.Executed) *record.Process {
	if p != nil && len(by.Argv) > 0 && len(p.Argv) == 0 {
		p.Argv = by.Argv
	}
	return p
}

func (x *Execs) runDrops(ctx context.Context, look supervise.Lookup) {
	for ctx.Err() == nil {
		err := x.drops.Run(ctx, sensor.Reports{
			Drop: func(d sensor.Drop) {
				x.tell(d.Container, dropped{d.Path, d.Size})
				if !x.made(d.Container, d.Path, d.Kind == sensor.ELF) {
					look.Report(d.Container, x.drop(d))
				}
			},
			Write: func(w sensor.Write) { x.write(w, look) },
			Lost: func(n int) {
				look.Report("", record.Event{Dimension: record.Supervision, Action: "lost", Object: "written files", Verdict: record.Reported,
					Mechanism: "fanotify", Reason: fmt.Sprintf("at least %d written files were not looked at: too many at once", n)})
			},
		})
		pause(ctx, "watch for written files", err)
	}
}

// made tells whether a library was written where the plan says that libraries
// are made and loaded: nothing deviates.
func (x *Execs) made(token, name string, elf bool) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	return elf && slices.ContainsFunc(x.containers[token].writable, func(w plan.Writable) bool {
		return w.Maps && strings.HasPrefix(name, w.Path+"/")
	})
}

func (x *Execs) drop(d sensor.Drop) record.Event {
	x.mu.Lock()
	mode := x.containers[d.Container].programs
	x.mu.Unlock()
	mechanism, then := x.afterDrop(d.Container, d.Path, mode)
	what := map[sensor.Kind]string{sensor.ELF: "a program or shared object", sensor.Script: "an executable script"}[d.Kind]
	return record.Event{
		Dimension: record.Storage, Action: "drop", Object: d.Path, Verdict: record.Reported,
		Mechanism: mechanism, Process: writer(d.PID, d.Comm, d.Exe),
		Reason: fmt.Sprintf("%s of %d bytes was written (sha256 %.16s…); %s", what, d.Size, d.SHA256, then),
	}
}

// afterDrop says what stops a dropped program, or that nothing does.
func (x *Execs) afterDrop(token, name string, mode record.Mode) (mechanism, then string) {
	switch mode {
	case record.Audit:
		return "fanotify", "executing it is let through and reported: the mode of processes is audit"
	case record.Off:
		return "fanotify", "it can be executed: the mode of processes is off"
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if mode == record.Enforce && slices.ContainsFunc(x.containers[token].writable, func(w plan.Writable) bool {
		return (w.Maps || w.Holds) && strings.HasPrefix(name, w.Path+"/")
	}) {
		return "fanotify", "it cannot be executed; a library could be loaded, since the image has some in the same tree"
	}
	return "noexec mount", "nothing that is written later can be executed"
}

// write reports what a read-only root would have refused to the container.
func (x *Execs) write(w sensor.Write, look supervise.Lookup) {
	by := look.Executed(w.Container, w.PID)
	if !by.Running {
		return // the runtime prepares the root for the first program
	}
	if !w.Own {
		if token, ok := x.owner(w.PID); !ok || token != w.Container {
			return // the engine, through a mount of its own
		}
	}
	look.Report(w.Container, record.Event{
		Dimension: record.Storage, Action: "write", Object: w.Path, Verdict: record.Observed, Identity: by.Identity,
		Mechanism: "fanotify", Process: writer(w.PID, w.Comm, w.Exe), Origins: x.nearest(w.Container, w.Path),
	})
}

// writer describes a process that may be gone.
func writer(pid int, comm, exe string) *record.Process {
	if p := events.Snapshot(pid); p != nil {
		return p
	}
	return &record.Process{PID: pid, Exe: exe, Comm: comm}
}

func (x *Execs) runRefusals(ctx context.Context, look supervise.Lookup) {
	for ctx.Err() == nil {
		err := x.refusals.Run(ctx, x.owner, func(r sensor.Refusal) {
			if !x.ours(r.Container, r.Path) || byteCode(r.Path) && refusedAnyway(r.TID, r.Path) {
				return
			}
			p := events.Snapshot(r.PID)
			if p == nil {
				p = &record.Process{PID: r.PID, UID: int(r.UID), Exe: r.Exe, Comm: r.Comm}
			}
			by := look.Executed(r.Container, r.PID)
			look.Report(r.Container, record.Event{
				Dimension: record.Storage, Action: "write", Object: r.Path, Verdict: record.Denied, Identity: by.Identity,
				Mechanism: "read-only root", Process: p, Origins: x.nearest(r.Container, r.Path),
				Reason: fmt.Sprintf("%s on a path that nothing declares writable", r.Syscall),
			})
		})
		pause(ctx, "watch for refused writes", err)
	}
}

// ours tells whether the plan is what made a path read-only. What the engine
// and the operator mount read-only is refused without declarun, too.
func (x *Execs) ours(token, path string) bool {
	for _, tree := range []string{"/proc/", "/sys/", "/dev/"} {
		if strings.HasPrefix(path, tree) {
			return false
		}
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.containers[token].readonly
}

// nearest names the declarations of what is writable nearby: they share the
// longest beginning with the path.
func (x *Execs) nearest(token, path string) []record.Origin {
	x.mu.Lock()
	defer x.mu.Unlock()
	common := func(a string) int { // path elements
		n := 0
		mine, theirs := strings.Split(path, "/"), strings.Split(a, "/")
		for n < len(mine) && n < len(theirs) && mine[n] == theirs[n] {
			n++
		}
		return n - 1 // the first is before the leading slash
	}
	writable := slices.DeleteFunc(slices.Clone(x.containers[token].writable), func(w plan.Writable) bool { return common(w.Path) < 2 })
	slices.SortStableFunc(writable, func(a, b plan.Writable) int { return common(b.Path) - common(a.Path) })
	var origins []record.Origin
	for _, w := range writable[:min(2, len(writable))] {
		if len(w.Origins) > 0 {
			o := w.Origins[0]
			o.Text = strings.TrimSpace(fmt.Sprintf("%s is writable: %s", w.Path, o.Text))
			origins = append(origins, o)
		}
	}
	return origins
}

// owner finds a process's container by its pid namespace.
func (x *Execs) owner(pid int) (string, bool) {
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", pid))
	if err != nil {
		return "", false
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	token, ok := x.byPIDNS[ns]
	return token, ok
}

// pause keeps a sensor that fails from spinning.
func pause(ctx context.Context, what string, err error) {
	if ctx.Err() != nil {
		return
	}
	log.Printf("declarund: %s: %v; again in 10 s", what, err)
	select {
	case <-ctx.Done():
	case <-time.After(10 * time.Second):
	}
}
