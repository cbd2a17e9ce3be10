package supervise

import (
	"context"
	"encoding/json"
	"os"
	"sync/atomic"
	"time"

	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// Planner makes a container's plan and the configuration that holds it to it.
type Planner interface {
	// Prepare plans one container. root is the caller's and is closed after the call.
	Prepare(ctx context.Context, p Preparation, root *os.File) (Prepared, error)
}

// Preparation is what a Planner is told.
type Preparation struct {
	wire.PrepareRequest
	Token        string // for linux.seccomp.listenerMetadata and the createRuntime hook
	NotifySocket string // for linux.seccomp.listenerPath
}

// Prepared is what a Planner answers. A nil Plan leaves the container alone.
type Prepared struct {
	Config   json.RawMessage // replaces config.json; empty: leave it
	Plan     *plan.Plan
	Verdicts *filter.Verdicts
	Declared Facts
}

// Refusal is a Planner's error where admission does not let a container in:
// each reason to refuse it is reported.
type Refusal interface {
	error
	Refusal() ([]plan.Reason, Facts)
}

// Facts are what else the supervisor keeps of a container.
type Facts struct {
	Name        string   `json:"name,omitempty"`
	Image       string   `json:"image,omitempty"`
	HealthCheck []string `json:"health_check,omitempty"` // exec form
	// Extra is the Planner's own, handed to the guards unread.
	Extra json.RawMessage `json:"extra,omitempty"`
}

// Permission is an ExecGuard's answer. Only Forbidden makes the supervisor
// refuse by itself.
type Permission int

const (
	Unsure    Permission = iota // fanotify decides
	Permitted                   // by this list; fanotify has the last word all the same
	Forbidden                   // for certain, whatever happens to the path meanwhile
	Unwatched                   // permitted where it lies, and fanotify is not asked about it
)

// WeakerError is a guard's that cannot do all it is for in this container, by
// what the operator asked for. The container starts, and that is an event.
type WeakerError struct{ Err error }

func (e *WeakerError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *WeakerError) Unwrap() error { return e.Err }

// Target is a container that guards are set on.
type Target struct {
	Token string
	Key   wire.Key
	PID   int
	Plan  *plan.Plan
	Facts Facts
	// Files are the descriptors of the Guard request by name ("netns", "rootfs",
	// "mount:/data"). They are closed after the call; a guard that needs one
	// longer duplicates it.
	Files map[string]*os.File
	// Adopted is true for a container that an earlier worker has guarded. Files
	// are opened anew through /proc/PID then.
	Adopted bool
}

// Executed is what is known about a thread that executes a file.
type Executed struct {
	Token    string
	Identity record.Identity // never empty: the narrowest if nothing is known
	Phase    record.Phase
	Mode     record.Mode // of processes
	Path     string      // as the caller gave it: advisory
	Argv     []string    // advisory
	// Opened counts the events of this execve, for the guard to do: the first is
	// about the file that was asked for, the next about what the kernel needs to
	// execute it. nil: not known.
	Opened *atomic.Int32
	// Running is true once the container's own first program was executed: what
	// was done before was the runtime's.
	Running bool
}

// ExecGuard decides on files that are executed, by file object.
type ExecGuard interface {
	// File is the fanotify group, kept open by the monitor; nil if there is none.
	File() *os.File
	// Sweep refuses what an earlier worker had read from the group and not
	// answered. fds are all numbers its descriptors may have had. Before Run.
	Sweep(fds []int32)
	Watch(Target) error
	Forget(token string)
	// Allowed says whether file (O_PATH) may be executed. It must not block.
	// reason is half a sentence for people.
	Allowed(token string, file *os.File, id record.Identity, phase record.Phase) (p Permission, reason string)
	// Serving says that what only start-up needed is taken away from now on.
	Serving(token string)
	// Run answers events until ctx ends.
	Run(ctx context.Context, look Lookup) error
}

// Drifts is an ExecGuard that can also tell what in a container's writable layer
// differs from its image.
type Drifts interface {
	// Drift reads until ctx ends. made is when the container's files were made.
	Drift(ctx context.Context, token string, made time.Time) (record.Drift, error)
}

// Lookup is what the supervisor tells guards while they run.
type Lookup interface {
	// Executed tells on whose behalf the thread tid of the container executes.
	Executed(token string, tid int) Executed
	// Report takes an event. What is empty of Container, Name, Image, Mode and
	// Phase is filled in from the container with the token.
	Report(token string, e record.Event)
}

// NetGuard holds a network namespace to the plan.
type NetGuard interface {
	// Apply sets rules (or, for an adopted container, finds them) and starts to
	// watch what they refuse.
	Apply(Target) error
	Forget(token string)
	// Run reports until ctx ends.
	Run(ctx context.Context, look Lookup) error
}
