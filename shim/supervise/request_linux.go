package supervise

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

const (
	prepareTimeout = 2 * time.Minute
	retryAfter     = 15 * time.Second
)

// converse answers one request.
func (w *Worker) converse(conn *net.UnixConn) {
	request, files, cred, err := wire.ReadRequest(conn)
	if err != nil {
		if !errors.Is(err, io.EOF) {
			log.Printf("declarund: %v", err)
			if !errors.Is(err, wire.ErrPeer) {
				wire.WriteAnswer(conn, answerOf(err))
			}
		}
		return
	}
	defer closeFiles(files)
	var answer wire.Answer
	var undone func() // after an answer that did not arrive
	func() {
		defer func() { // a panic is a refusal
			if v := recover(); v != nil {
				log.Printf("declarund: %s: panic: %v", request.Operation, v)
				answer = wire.Answer{Error: fmt.Sprintf("%s: declarun's own fault: %v", request.Operation, v), Remedy: "please report this as a bug"}
			}
		}()
		answer, undone, err = w.answer(conn, request, files, cred)
	}()
	if err != nil {
		answer = answerOf(err)
	}
	if request.Operation == wire.Watch && answer.Error == "" {
		w.watch(conn, request.Watch.Container)
		return
	}
	if err := wire.WriteAnswer(conn, answer); err != nil {
		log.Printf("declarund: %v", err)
		if undone != nil {
			undone()
		}
	}
}

func answerOf(err error) wire.Answer {
	a := wire.Answer{Error: err.Error()}
	var known interface{ Remedy() string }
	if errors.As(err, &known) {
		a.Remedy = known.Remedy()
	}
	return a
}

func (w *Worker) answer(conn *net.UnixConn, r wire.Request, files []*os.File, cred wire.Cred) (wire.Answer, func(), error) {
	switch r.Operation {
	case wire.Prepare:
		return w.prepare(*r.Prepare, files[0])
	case wire.Guard:
		return wire.Answer{}, nil, w.guard(*r.Guard, files)
	case wire.Exec:
		return wire.Answer{}, nil, w.announce(*r.Exec)
	case wire.Forget:
		for _, c := range w.all() {
			if c.key == *r.Forget {
				w.forgetDead(c)
			}
		}
		return wire.Answer{}, nil, nil
	case wire.Status:
		return wire.Answer{Status: w.status(*r.Status)}, nil, nil
	case wire.Tree:
		tree, err := w.tree(r.Tree.Container)
		return wire.Answer{Tree: tree}, nil, err
	case wire.Drift:
		drift, err := w.drift(r.Drift.Container)
		return wire.Answer{Drift: drift}, nil, err
	case wire.Watch:
		return wire.Answer{}, nil, nil
	case wire.Ping:
		return wire.Answer{Ping: &wire.Pong{Version: w.o.Version, PID: os.Getpid(), Since: w.since}}, nil, nil
	}
	return wire.Answer{}, nil, fmt.Errorf("unknown operation %q", r.Operation)
}

func (w *Worker) prepare(r wire.PrepareRequest, root *os.File) (wire.Answer, func(), error) {
	if r.ID == "" || !filepath.IsAbs(r.Root) || !filepath.IsAbs(r.Bundle) {
		return wire.Answer{}, nil, fmt.Errorf("prepare %q: want an ID and absolute paths", r.ID)
	}
	w.mu.Lock()
	full := len(w.containers) >= containersMost
	w.mu.Unlock()
	if full {
		return wire.Answer{}, nil, fmt.Errorf("prepare %s: %d containers are supervised, no more are taken", r.ID, containersMost)
	}
	ctx, cancel := context.WithTimeout(w.ctx, prepareTimeout)
	defer cancel()
	select {
	case w.planning <- struct{}{}:
	case <-ctx.Done():
		return wire.Answer{}, nil, fmt.Errorf("prepare %s: wait for a turn: %w", r.ID, ctx.Err())
	}
	token := newToken()
	prepared, err := func() (Prepared, error) {
		defer func() { <-w.planning }()
		return w.o.Planner.Prepare(ctx, Preparation{PrepareRequest: r, Token: token, NotifySocket: w.o.NotifySocket}, root)
	}()
	if refusal := Refusal(nil); errors.As(err, &refusal) {
		reasons, about := refusal.Refusal()
		w.reportAdmission(&container{key: r.Key, plan: &plan.Plan{}, facts: about}, reasons, record.Denied)
		if w.byKey(r.Key) == nil {
			w.o.Events.End(r.ID)
		}
	}
	if err != nil {
		return wire.Answer{}, nil, err
	}
	answer := wire.Answer{Prepare: &wire.PrepareAnswer{Config: prepared.Config}}
	if prepared.Plan == nil {
		return answer, nil, nil
	}
	c := &container{token: token, key: r.Key, plan: prepared.Plan, verdicts: prepared.Verdicts, facts: prepared.Declared, prepared: time.Now(), listeners: map[uint64]*listener{}}
	c.state = stored{Key: c.key, Prepared: c.prepared, Boot: w.boot, Phase: record.Starting, Facts: c.facts}
	// An earlier attempt under the same name that came to nothing. A recent one may
	// be on its way still: which of two wins is runc's to say.
	for _, old := range w.all() {
		if old.key == c.key && time.Since(old.prepared) > retryAfter {
			w.forgetDead(old)
		}
	}
	if err := w.store.create(token, prepared.Plan, prepared.Verdicts, c.state); err != nil {
		return wire.Answer{}, nil, fmt.Errorf("prepare %s: %w", r.ID, err)
	}
	w.add(c)
	if c.mode(record.Admission) == record.Audit {
		w.reportAdmission(c, c.plan.Admission.Reasons, record.Observed)
	}
	return answer, func() { w.forget(c) }, nil
}

// reportAdmission reports what speaks against a container's start. Warnings are
// in its plan only.
func (w *Worker) reportAdmission(c *container, reasons []plan.Reason, v record.Verdict) {
	for _, r := range reasons {
		if r.Verdict != plan.Warn && r.Verdict != plan.Admit {
			w.report(c, record.Event{Dimension: record.Admission, Action: "start", Object: r.ID, Verdict: v, Phase: record.Starting,
				Mechanism: "admission", Origins: r.Origins, Reason: r.Text, Remedy: r.Remedy})
		}
	}
}

// forgetDead forgets a container unless its init lives: then that decides.
func (w *Worker) forgetDead(c *container) {
	c.mu.Lock()
	alive := c.busy || !c.state.Guarded.IsZero() && events.StartTime(c.state.PID) == c.state.Start
	c.mu.Unlock()
	if !alive {
		w.forget(c)
	}
}

// undo is what takes back the steps of something that fails later.
type undo struct{ steps []func() }

func (u *undo) add(step func()) { u.steps = append(u.steps, step) }

func (u *undo) run() {
	for _, step := range slices.Backward(u.steps) {
		step()
	}
	u.steps = nil
}

// guard arms a container's guards, or none of them.
func (w *Worker) guard(r wire.GuardRequest, files []*os.File) (err error) {
	if !validToken(r.Token) {
		return errors.New("guard: not a token")
	}
	c := w.find(r.Token)
	if c == nil {
		return errors.New("guard: the container is not known: its plan was made by another supervisor, or too long ago")
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("guard %s: %w", c.key.ID, err)
		}
	}()
	c.mu.Lock()
	if c.busy || c.gone || !c.state.Guarded.IsZero() {
		c.mu.Unlock()
		return errors.New("it is guarded already")
	}
	c.busy = true
	c.mu.Unlock()
	back := &undo{}
	defer func() {
		v := recover()
		if v != nil || err != nil {
			back.run()
		}
		c.mu.Lock()
		c.busy = false
		c.mu.Unlock()
		if v != nil || err != nil {
			w.forget(c) // the runtime destroys what it has made of it
		}
		if v != nil {
			panic(v)
		}
	}()

	pidfd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("open process %d: %w", r.PID, err)
	}
	back.add(func() { unix.Close(pidfd) })
	start := events.StartTime(r.PID)
	if start == 0 {
		return fmt.Errorf("open process %d: %w", r.PID, errGone)
	}
	target := Target{Token: c.token, Key: c.key, PID: r.PID, Plan: c.plan, Facts: c.facts, Files: map[string]*os.File{}}
	for i, name := range r.Files {
		if target.Files[name] != nil {
			return fmt.Errorf("descriptor %q is there twice", name)
		}
		target.Files[name] = files[i]
	}
	if err := checkNamespaces(target); err != nil {
		return err
	}
	if err := w.arm(c, target, back); err != nil {
		return err
	}
	if events.StartTime(r.PID) != start {
		return fmt.Errorf("process %d: %w", r.PID, errGone)
	}
	c.mu.Lock()
	st := c.state
	st.Guarded, st.PID, st.Start = time.Now(), r.PID, start
	c.mu.Unlock()
	if err := w.store.save(c.token, "state.json", st); err != nil {
		return err
	}
	for name, f := range target.Files {
		fd, err := dup(f)
		if err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
		key := keyFiles + c.token + "/" + name
		w.hold.keep(key, "", os.NewFile(uintptr(fd), name))
		back.add(func() { w.hold.drop(key) })
	}
	loops := loopsOf(c, target.Files["rootfs"])
	if loops != nil {
		w.saveLoops(c.token, loops)
	}
	w.addTree(c, r.PID, false)
	back.add(func() { w.trees.Forget(c.token) })
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.gone {
		return errGone
	}
	c.state, c.pidfd, c.loops = st, pidfd, loops
	if loops != nil {
		go w.watchLoops(c)
	}
	go w.await(c)
	return nil
}

// checkNamespaces sees to it that the descriptors are the process's.
func checkNamespaces(t Target) error {
	for name, link := range map[string]string{"netns": "net", "mntns": "mnt", "pidns": "pid"} {
		f := t.Files[name]
		if f == nil {
			return fmt.Errorf("descriptor %q is missing", name)
		}
		var given, real unix.Stat_t
		if err := control(f, func(fd int) error { return unix.Fstat(fd, &given) }); err != nil {
			return fmt.Errorf("look at descriptor %q: %w", name, err)
		}
		if err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", t.PID, link), &real); err != nil {
			return fmt.Errorf("look at process %d: %w", t.PID, err)
		}
		if given.Dev != real.Dev || given.Ino != real.Ino {
			return fmt.Errorf("descriptor %q is not of process %d", name, t.PID)
		}
	}
	if t.Files["rootfs"] == nil {
		return errors.New(`descriptor "rootfs" is missing`)
	}
	return nil
}

// arm sets what the plan holds the container to. What fails is an error in mode
// enforce and an event in mode audit.
func (w *Worker) arm(c *container, t Target, back *undo) error {
	steps := []struct {
		dimension record.Dimension
		name      string
		wanted    bool
		do        func() error
	}{
		// It also has the sensors of storage.
		{record.Processes, "exec guard", c.mode(record.Processes) != record.Off || c.mode(record.Storage) != record.Off, func() error {
			if w.o.Guard == nil {
				return fmt.Errorf("guard executions: %w", w.noGuard)
			}
			if err := w.o.Guard.Watch(t); err != nil {
				return err
			}
			back.add(func() { w.o.Guard.Forget(c.token) })
			return nil
		}},
		{record.Network, "network guard", c.mode(record.Network) != record.Off && c.plan.Network.Enforced, func() error {
			if w.o.Net == nil {
				return errors.New("guard network: this supervisor has no network guard")
			}
			if err := w.o.Net.Apply(t); err != nil {
				return err
			}
			back.add(func() { w.o.Net.Forget(c.token) })
			return nil
		}},
		{record.Processes, "vm.memfd_noexec", c.mode(record.Processes) == record.Enforce && !t.Adopted, func() error {
			err := forbidMemfdExec(t.Files["pidns"], orElse(w.o.MemfdExecutable, w.o.Executable), w.o.MemfdArgs)
			if errors.Is(err, errNoMemfdSysctl) || errors.Is(err, errSharedPIDNamespace) {
				w.report(c, record.Event{Dimension: record.Supervision, Action: "weaken", Object: "vm.memfd_noexec", Verdict: record.Reported,
					Mechanism: "vm.memfd_noexec", Reason: fmt.Sprintf("files in memory are refused only where they are seen to be executed: %v", err)})
				return nil
			}
			return err
		}},
	}
	for _, step := range steps {
		if !step.wanted {
			continue
		}
		if err := step.do(); err != nil {
			if weaker := (*WeakerError)(nil); c.mode(step.dimension) == record.Enforce && !errors.As(err, &weaker) {
				return err
			}
			w.report(c, record.Event{Dimension: record.Supervision, Action: "weaken", Object: step.name, Verdict: record.Reported,
				Mechanism: "supervisor", Reason: err.Error()})
		}
	}
	return nil
}

// announce takes note of a runc exec.
func (w *Worker) announce(r wire.ExecRequest) error {
	c := w.byKey(r.Key)
	if c == nil {
		return nil // not supervised: left alone, or its notify descriptor is refused
	}
	if !c.guarded() {
		return fmt.Errorf("exec in %s: it is not guarded yet", r.ID)
	}
	args := r.Args
	if len(r.Process) > 0 {
		var process struct {
			Args []string `json:"args"`
		}
		if err := json.Unmarshal(r.Process, &process); err != nil {
			return fmt.Errorf("exec in %s: parse process: %w", r.ID, err)
		}
		args = process.Args
	}
	health := len(c.facts.HealthCheck) > 0 && slices.Equal(args, c.facts.HealthCheck)
	c.announce(announcement{args: bounded(args), health: health, at: time.Now()})
	return nil
}

func (w *Worker) status(r wire.StatusRequest) []wire.Container {
	found := []wire.Container{}
	for _, c := range w.all() {
		if r.Container != "" && !strings.HasPrefix(c.key.ID, r.Container) && !strings.HasPrefix(c.facts.Name, r.Container) {
			continue
		}
		s := w.describe(c)
		if r.WithPlan {
			s.Plan = c.plan
		}
		found = append(found, s)
	}
	slices.SortFunc(found, func(a, b wire.Container) int { return a.Since.Compare(b.Since) })
	return found
}

// describe is what status says of a container.
func (w *Worker) describe(c *container) wire.Container {
	c.mu.Lock()
	s := wire.Container{
		Key: c.key, Name: c.facts.Name, Image: orElse(c.facts.Image, c.plan.Image.Ref), PID: c.state.PID, State: "preparing",
		Phase: c.state.Phase, Mode: c.plan.Mode, Wide: c.plan.Wide, WideReason: c.plan.WideReason, Since: c.prepared, Notes: c.plan.Notes,
	}
	if !c.state.Guarded.IsZero() {
		s.State, s.Since = "created", c.state.Guarded
	}
	if c.running {
		s.State = "running"
	}
	if c.lost {
		s.Notes = append(slices.Clone(s.Notes), plan.Note{Dimension: record.Supervision, Text: lostNote})
	}
	c.mu.Unlock()
	s.Notes = slices.Concat(s.Notes, w.loopNotes(c))
	s.Events = w.o.Events.Counts(c.key.ID)
	return s
}

// watch sends events until the watcher is gone or does not read.
func (w *Worker) watch(conn *net.UnixConn, container string) {
	select {
	case w.watching <- struct{}{}:
		defer func() { <-w.watching }()
	default:
		wire.WriteAnswer(conn, wire.Answer{Error: fmt.Sprintf("watch: %d are watching already", watchersAtOnce)})
		return
	}
	lines, stop := w.o.Events.Subscribe(container)
	defer stop()
	if wire.WriteAnswer(conn, wire.Answer{}) != nil {
		return
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		io.Copy(io.Discard, conn)
	}()
	for {
		select {
		case e, ok := <-lines:
			if !ok || wire.WriteEvent(conn, e) != nil {
				return
			}
		case <-gone:
			return
		case <-w.leaving:
			return
		}
	}
}
