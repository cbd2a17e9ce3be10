// Package wire is what the runtime binary, its hook and the commands for
// people say to the supervisor: one JSON request and one JSON answer per
// connection on a stream socket in the file system, each preceded by its
// length (4 bytes, big endian), with file descriptors attached to the request.
//
// Access is by file permission (root only) and checked again with
// SO_PEERCRED. Requests are at most MaxMessage bytes.
package wire

import (
	"encoding/json"
	"time"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// MaxMessage bounds one request or answer, in bytes.
const MaxMessage = 64 << 20

// Operation names what is asked.
type Operation string

const (
	// Prepare plans a container: before runc create, run or restore. Attached:
	// the root filesystem directory (O_PATH). Answered with the new config.json.
	Prepare Operation = "prepare"
	// Guard arms a container's guards from the createRuntime hook, when its
	// namespaces and mounts exist and nothing of it has run. Attached, in the
	// order of GuardRequest.Files.
	Guard Operation = "guard"
	// Exec announces a runc exec.
	Exec Operation = "exec"
	// Forget says that a container is being deleted.
	Forget Operation = "forget"
	// Status asks for the state of all or one container.
	Status Operation = "status"
	// Tree asks for the processes of one container.
	Tree Operation = "tree"
	// Drift asks what in one container's writable layer differs from its image.
	Drift Operation = "drift"
	// Watch keeps the connection open: one Answer, then one message per event.
	Watch Operation = "watch"
	// Ping asks who is there.
	Ping Operation = "ping"
)

// Request is one request. Exactly the field named like Operation is set.
type Request struct {
	Operation Operation       `json:"operation"`
	Prepare   *PrepareRequest `json:"prepare,omitempty"`
	Guard     *GuardRequest   `json:"guard,omitempty"`
	Exec      *ExecRequest    `json:"exec,omitempty"`
	Forget    *Key            `json:"forget,omitempty"`
	Status    *StatusRequest  `json:"status,omitempty"`
	Tree      *TreeRequest    `json:"tree,omitempty"`
	Drift     *DriftRequest   `json:"drift,omitempty"`
	Watch     *WatchRequest   `json:"watch,omitempty"`
}

// Key names a container: IDs are unique within one runc --root only.
type Key struct {
	Root string `json:"root"` // runc --root, absolute
	ID   string `json:"id"`
}

// PrepareRequest asks for a plan.
type PrepareRequest struct {
	Key
	Verb   string          `json:"verb"`   // create, run or restore
	Bundle string          `json:"bundle"` // absolute
	Config json.RawMessage `json:"config"` // config.json as the engine wrote it
	// ParentArgs is the command line of the process that called the runtime:
	// containerd's shim names its socket and namespace there.
	ParentArgs []string `json:"parent_args,omitempty"`
	// Executable is the absolute path of the runtime binary, for hooks.
	Executable string `json:"executable"`
}

// PrepareAnswer is the edited configuration.
type PrepareAnswer struct {
	// Config replaces config.json; empty: leave the file alone (mode off, a
	// pod sandbox, an excluded image).
	Config json.RawMessage `json:"config,omitempty"`
}

// GuardRequest names the attached descriptors.
type GuardRequest struct {
	Token string `json:"token"` // from the hook's own arguments, set by Prepare
	PID   int    `json:"pid"`   // of the container's init, in the initial pid namespace
	// ID is the container's, from the state that runc gave the hook. One that
	// is not the token's is another container started with this one's
	// configuration: refuse it.
	ID    string   `json:"id"`
	Files []string `json:"files"` // "netns", "mntns", "pidns", "rootfs", "mount:/data"…
}

// ExecRequest announces an exec.
type ExecRequest struct {
	Key
	Args    []string        `json:"args,omitempty"`    // the command, where it was given as arguments
	Process json.RawMessage `json:"process,omitempty"` // the content of exec --process FILE
	// Privileged etc. are read from Process.
}

// StatusRequest asks for one container (ID or name prefix) or, empty, for all.
type StatusRequest struct {
	Container string `json:"container,omitempty"`
	WithPlan  bool   `json:"with_plan,omitempty"`
}

// TreeRequest asks for the processes of the one container whose name is this, or
// whose ID begins like this.
type TreeRequest struct {
	Container string `json:"container"`
}

// DriftRequest names a container as TreeRequest does.
type DriftRequest struct {
	Container string `json:"container"`
}

// WatchRequest asks for events.
type WatchRequest struct {
	Container string `json:"container,omitempty"`
}

// Answer is the answer to any request. Error is empty on success.
type Answer struct {
	Error  string `json:"error,omitempty"`
	Remedy string `json:"remedy,omitempty"`

	Prepare *PrepareAnswer `json:"prepare,omitempty"`
	Status  []Container    `json:"status,omitempty"`
	Tree    *ProcessTree   `json:"tree,omitempty"`
	Drift   *DriftAnswer   `json:"drift,omitempty"`
	Ping    *Pong          `json:"ping,omitempty"`
}

// DriftAnswer is what differs of a container.
type DriftAnswer struct {
	Container
	record.Drift
}

// ProcessTree is what a container is expected to run, and what it was seen to.
type ProcessTree struct {
	Container
	record.Tree
	Expected []plan.Expected `json:"expected"`
	// Unwatched says why nothing is told as it happens; empty: it is.
	Unwatched string `json:"unwatched,omitempty"`
}

// Pong is who answers.
type Pong struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Since   time.Time `json:"since"`
}

// Container is one supervised container.
type Container struct {
	Key
	Name       string                           `json:"name,omitempty"`
	Image      string                           `json:"image,omitempty"`
	PID        int                              `json:"pid,omitempty"`
	State      string                           `json:"state"` // preparing, created, running
	Phase      record.Phase                     `json:"phase,omitempty"`
	Mode       map[record.Dimension]record.Mode `json:"mode"`
	Wide       bool                             `json:"wide,omitempty"`
	WideReason string                           `json:"wide_reason,omitempty"`
	Since      time.Time                        `json:"since"`
	Events     map[record.Dimension]uint64      `json:"events,omitempty"` // deviations by dimension
	Notes      []plan.Note                      `json:"notes,omitempty"`
	Plan       *plan.Plan                       `json:"plan,omitempty"`
}
