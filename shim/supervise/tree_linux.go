package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log"
	"slices"
	"strings"

	"github.com/declarun/declarun/procmap/proctree"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

const treeFile = "tree.json"

// addTree begins to keep a container's process tree. Nothing depends on it, so
// that it fails is said and no more.
func (w *Worker) addTree(c *container, pid int, adopted bool) {
	spec := proctree.Container{Token: c.token, Init: pid, HealthCheck: c.facts.HealthCheck, Running: adopted}
	if adopted {
		data, err := w.store.read(c.token, treeFile)
		if err == nil {
			err = json.Unmarshal(data, &spec.Earlier)
		}
		if err != nil {
			spec.Earlier = nil
			if !errors.Is(err, fs.ErrNotExist) {
				log.Printf("declarund: container %s: what ran before is not known: %v", c.key.ID, err)
			}
		}
	}
	if err := w.trees.Add(spec); err != nil {
		log.Printf("declarund: container %s: %v", c.key.ID, err)
	}
}

// saveTree stores what a later worker cannot find in /proc.
func (w *Worker) saveTree(token string) {
	if t, ok := w.trees.Stored(token); ok {
		if err := w.store.save(token, treeFile, t); err != nil {
			log.Printf("declarund: %v", err)
		}
	}
}

// tree answers for one container.
func (w *Worker) tree(which string) (*wire.ProcessTree, error) {
	c, err := w.named(which)
	if err != nil {
		return nil, err
	}
	t, unwatched, ok := w.trees.Tree(c.token)
	if !ok {
		return nil, fmt.Errorf("tree %s: its processes are not known: it has not been started", c.key.ID)
	}
	answer := &wire.ProcessTree{Container: w.describe(c), Tree: t, Expected: c.plan.Expected()}
	if unwatched != nil {
		answer.Unwatched = unwatched.Error()
	}
	for i, p := range t.Live {
		if p.Ran {
			t.Live[i].Unexpected = c.plan.Unexpected(p.Exe, p.Identity, p.Phase)
		}
	}
	for i, p := range t.Before {
		t.Before[i].Unexpected = c.plan.Unexpected(p.Exe, p.Identity, p.Phase)
	}
	return answer, nil
}

// unknownError is a container that nobody supervises.
type unknownError struct{ error }

// Remedy says what to do.
func (e *unknownError) Remedy() string { return "see them all: declarun status" }

// named finds the container that has a name, or whose ID begins like this.
func (w *Worker) named(which string) (*container, error) {
	var found []*container
	for _, c := range w.all() {
		if c.facts.Name == which || c.key.ID == which {
			found = []*container{c}
			if c.guarded() {
				return c, nil
			}
		} else if which != "" && strings.HasPrefix(c.key.ID, which) {
			found = append(found, c)
		}
	}
	switch {
	case len(found) == 0:
		return nil, &unknownError{fmt.Errorf("no container %q is supervised", which)}
	case len(found) > 1:
		return nil, &unknownError{fmt.Errorf("%d containers have an ID that begins with %q", len(found), which)}
	}
	return found[0], nil
}

func (w *Worker) phaseOf(token string) record.Phase {
	if c := w.find(token); c != nil {
		return c.phase()
	}
	return record.Serving
}

// lostProcesses reports what the tree misses.
func (w *Worker) lostProcesses(n uint64, reason string) {
	w.report(nil, record.Event{Dimension: record.Supervision, Action: "lost", Object: "process events", Verdict: record.Reported,
		Mechanism: "process events", Reason: fmt.Sprintf("at least %d are missing: %s; nothing is decided by them", n, reason)})
}

// found reports what is odd about a process.
func (w *Worker) found(token string, f proctree.Finding) {
	c := w.find(token)
	if c == nil || c.mode(record.Processes) == record.Off {
		return
	}
	p := f.Process
	e := record.Event{Dimension: record.Processes, Action: string(f.Kind), Object: f.Object, Verdict: record.Reported, Identity: p.Identity,
		Mechanism: "process events", Process: ancestry(append([]record.LiveProcess{p}, f.By...))}
	what := orElse(p.Exe, p.Comm)
	switch f.Kind {
	case proctree.Gain:
		if p.Identity == record.Operator || w.mayGain(c, f) {
			return // it is marked in the tree; the exec itself is an event
		}
		e.Reason = fmt.Sprintf("%s has rights that it did not have: %s; nothing in the image declares that", what, f.Detail)
	case proctree.Crash:
		e.Reason = fmt.Sprintf("%s %s", what, f.Detail)
		e.Remedy = "its own log says more; where it is new, an attempt to break in may have failed"
	}
	w.report(c, e)
}

// mayGain tells whether a process may have got its rights by what the image says.
// Whether a program kept a way back (a saved user, a setuid program that is gone
// by now) is not known for certain of what lives for a moment, and mail and file
// servers go back and forth all the time. So it is only an event where no process
// has a way: nothing executed gives rights, and nobody may change users.
func (w *Worker) mayGain(c *container, f proctree.Finding) bool {
	if !c.plan.NoNewPrivileges || c.mode(record.Processes) != record.Enforce {
		return true
	}
	return f.Object == "root" && slices.ContainsFunc(c.plan.Capabilities, func(k plan.Capability) bool { return k.Name == "CAP_SETUID" })
}

// ancestry chains a process and its ancestors.
func ancestry(all []record.LiveProcess) (first *record.Process) {
	for _, p := range slices.Backward(all) {
		first = &record.Process{PID: p.PID, StartTime: p.StartTime, Exe: p.Exe, Comm: p.Comm, Argv: p.Argv, UID: int(p.UID), Parent: first}
	}
	return first
}
