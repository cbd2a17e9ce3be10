package guards

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/declarun/declarun/procmap/drift"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/supervise"
)

const (
	// sweepEvery is how soon an executable is reported that nobody saw being
	// written: it was made executable, linked or moved into the layer.
	sweepEvery = 30 * time.Second
	// A sweep is one lstat an entry. What a layer has beyond that is found by
	// whoever asks.
	sweepEntries = 20_000
	sweepTime    = time.Second
	toldMost     = 4096
)

// dropped is an executable that was reported.
type dropped struct {
	path string
	size int64
}

// tell remembers d; false: it was reported already.
func (x *Execs) tell(token string, d dropped) bool {
	x.mu.Lock()
	defer x.mu.Unlock()
	told := x.told[token]
	if told == nil || len(told) >= toldMost {
		told = map[dropped]bool{}
		x.told[token] = told
	}
	if told[d] {
		return false
	}
	told[d] = true
	return true
}

// errNotWatched is a container that the guard does not hold.
var errNotWatched = errors.New("the container's files are not guarded")

// Drift implements supervise.Drifts.
func (x *Execs) Drift(ctx context.Context, token string, made time.Time) (record.Drift, error) {
	var r record.Drift
	err := x.layers(token, made, func(c drift.Container) { r = drift.Walk(ctx, c, drift.Limits{}) })
	for i, c := range r.Changes {
		r.Changes[i].Made = x.made(token, c.Path, c.Program == "elf")
	}
	return r, err
}

func (x *Execs) layers(token string, made time.Time, read func(drift.Container)) error {
	x.mu.Lock()
	w, ok := x.containers[token]
	x.mu.Unlock()
	if !ok {
		return errNotWatched
	}
	l, err := x.guard.Layers(token)
	if err != nil {
		return err
	}
	defer l.Close()
	c := drift.Container{Upper: l.Upper, Lower: l.Lower, Root: l.Root, Made: made, Mounts: l.Mounts}
	for _, p := range w.writable {
		c.Declared = append(c.Declared, p.Path)
	}
	read(c)
	return nil
}

// runSweeps looks for executables that appeared in writable layers without having
// been seen to be written.
func (x *Execs) runSweeps(ctx context.Context, look supervise.Lookup) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		x.mu.Lock()
		var tokens []string
		for token := range x.containers {
			tokens = append(tokens, token)
		}
		x.mu.Unlock()
		for _, token := range tokens {
			x.sweep(ctx, token, look)
		}
	}
}

// clockSlack is what a file's ctime may be behind the clock: the kernel takes it
// from a clock that it turns on each tick.
const clockSlack = time.Second

func (x *Execs) sweep(ctx context.Context, token string, look supervise.Lookup) {
	x.mu.Lock()
	w, ok := x.containers[token]
	x.mu.Unlock()
	if !ok || !look.Executed(token, 0).Running {
		return // the runtime prepares the root for the first program
	}
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, sweepTime)
	defer cancel()
	var r record.Drift
	err := x.layers(token, w.swept, func(c drift.Container) {
		r = drift.Programs(ctx, c, w.swept, drift.Limits{Entries: sweepEntries, Changes: 256})
	})
	if err != nil {
		if !errors.Is(err, errNotWatched) {
			log.Printf("declarund: look for executables in a writable layer: %v", err)
		}
		return
	}
	for _, c := range r.Changes {
		if !x.tell(token, dropped{c.Path, c.Size}) || x.made(token, c.Path, c.Program == "elf" && c.Mode&0o6000 == 0 && !c.Capabilities) {
			continue
		}
		what := map[string]string{"elf": "a program or shared object", "script": "an executable script"}[c.Program]
		if what == "" {
			what = "a file with rights of its own"
		}
		mechanism, then := x.afterDrop(token, c.Path, w.programs)
		look.Report(token, record.Event{Dimension: record.Storage, Action: "drop", Object: c.Path, Verdict: record.Reported, Mechanism: mechanism,
			Reason: fmt.Sprintf("%s of %d bytes appeared in the writable layer; who put it there was not seen: it was made executable, linked or moved; %s", what, c.Size, then)})
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if w, ok := x.containers[token]; ok {
		w.swept = began.Add(-clockSlack)
		x.containers[token] = w
	}
}

var _ supervise.Drifts = (*Execs)(nil)
