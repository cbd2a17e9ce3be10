package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/declarun/declarun/shim/wire"
)

// driftTime bounds one look at a writable layer. What was found by then is told.
const driftTime = 20 * time.Second

// drift answers for one container.
func (w *Worker) drift(which string) (*wire.DriftAnswer, error) {
	c, err := w.named(which)
	if err != nil {
		return nil, err
	}
	guard, ok := w.o.Guard.(Drifts)
	if !ok {
		return nil, fmt.Errorf("drift of %s: this supervisor cannot tell", c.key.ID)
	}
	select {
	case w.drifting <- struct{}{}:
		defer func() { <-w.drifting }()
	default:
		return nil, &busyError{errors.New("others are asking already")}
	}
	c.mu.Lock()
	made := c.state.Guarded
	c.mu.Unlock()
	if made.IsZero() {
		return nil, fmt.Errorf("drift of %s: it has not been started", c.key.ID)
	}
	ctx, cancel := context.WithTimeout(w.ctx, driftTime)
	defer cancel()
	report, err := guard.Drift(ctx, c.token, made)
	if err != nil {
		return nil, fmt.Errorf("drift of %s: %w", c.key.ID, err)
	}
	return &wire.DriftAnswer{Container: w.describe(c), Drift: report}, nil
}

type busyError struct{ error }

// Remedy says what to do.
func (e *busyError) Remedy() string { return "ask again in a moment" }
