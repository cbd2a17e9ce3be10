// Package record holds the nouns that every part of declarun shares: where an
// entry of a plan comes from, what was decided, and what is reported.
//
// It imports only the standard library, and everything in it is plain data.
package record

import (
	"fmt"
	"time"
)

// Dimension is one of the ways in which a container is held to its
// declaration.
type Dimension string

// The dimensions of a plan. Supervision is not enforced on a container: it is
// where declarun reports on itself (lost events, a supervisor that restarted).
const (
	Syscalls    Dimension = "syscalls"
	Processes   Dimension = "processes"
	Storage     Dimension = "storage"
	Network     Dimension = "network"
	Admission   Dimension = "admission"
	Supervision Dimension = "supervision"
)

// Dimensions lists those that a mode can be set for.
func Dimensions() []Dimension {
	return []Dimension{Syscalls, Processes, Storage, Network, Admission}
}

// Mode says what happens to a deviation. The zero Mode is invalid, so that a
// mode that was never decided is never taken for "off".
type Mode string

const (
	Enforce Mode = "enforce" // refused and reported
	Audit   Mode = "audit"   // allowed and reported
	Off     Mode = "off"     // neither
)

// ParseMode reads a mode as written in a configuration file, label or annotation.
func ParseMode(s string) (Mode, error) {
	switch m := Mode(s); m {
	case Enforce, Audit, Off:
		return m, nil
	}
	return "", fmt.Errorf("parse mode %q: want enforce, audit or off", s)
}

// Strictness orders modes: the higher the stricter. Unknown modes are strictest.
func (m Mode) Strictness() int {
	switch m {
	case Off:
		return 0
	case Audit:
		return 1
	}
	return 2
}

// Phase is the part of a container's life an entry is needed in.
type Phase string

const (
	// Starting entries are taken away once the container serves.
	Starting Phase = "starting"
	// Serving entries hold for the whole life of the container.
	Serving Phase = "serving"
)

// Widest returns the phase that covers both.
func (p Phase) Widest(q Phase) Phase {
	if p == Starting && q == Starting {
		return Starting
	}
	return Serving
}

// Identity tells on whose behalf a process runs.
type Identity string

const (
	Application Identity = "application" // the entrypoint and all it starts
	HealthCheck Identity = "healthcheck" // the declared health check
	Operator    Identity = "operator"    // somebody's exec or attach
)

// Verdict is what was decided on a deviation. The zero Verdict is a denial.
type Verdict string

const (
	Denied   Verdict = "denied"   // refused
	Observed Verdict = "observed" // not stopped by declarun because the mode is audit
	Reported Verdict = "reported" // seen after the fact, or allowed but worth knowing (an operator's exec)
)

// Source is the kind of declaration an Origin points into.
type Source string

const (
	FromImage     Source = "image"      // the image's config: EXPOSE, VOLUME, USER, ENTRYPOINT…
	FromHistory   Source = "history"    // one instruction of the image's history
	FromFile      Source = "file"       // a property of a file in the image: its owner, an ELF file's code
	FromScript    Source = "script"     // a line of a script in the image
	FromCompose   Source = "compose"    // the compose project
	FromOperator  Source = "operator"   // the run command: flags, command line, mounts
	FromEngine    Source = "engine"     // what the engine adds by itself: its profile, its mounts, its resolver
	FromRuntime   Source = "runtime"    // what runc needs
	FromSite      Source = "site"       // /etc/declarun/config.toml
	FromCatalogue Source = "catalogue"  // knowledge of a common application
	FromDefault   Source = "convention" // true of every Linux system (FHS, POSIX)
)

// Origin names the declaration that an entry of a plan follows from.
type Origin struct {
	Source Source `json:"source"`
	// At is where: "config.ExposedPorts", "history[3]",
	// "/docker-entrypoint.sh:12", "/usr/bin/nginx+0x4a10", "docker run -p".
	At string `json:"at"`
	// Text is the declaration in its own words: "EXPOSE 5432".
	Text string `json:"text,omitempty"`
}

func (o Origin) String() string {
	if o.Text == "" {
		return fmt.Sprintf("%s %s", o.Source, o.At)
	}
	return fmt.Sprintf("%s %s: %s", o.Source, o.At, o.Text)
}

// Process describes the process an event is about, as far as it could be read
// while it was there. Argv is advisory: a process can rewrite it.
type Process struct {
	PID       int      `json:"pid"`
	StartTime uint64   `json:"start_time,omitempty"` // clock ticks since boot, field 22 of proc_pid_stat(5)
	Exe       string   `json:"exe,omitempty"`
	Comm      string   `json:"comm,omitempty"`
	Argv      []string `json:"argv,omitempty"`
	UID       int      `json:"uid"`
	Parent    *Process `json:"parent,omitempty"`
}

// Event is one deviation from a plan, or one fact about supervision. An event
// is written once when the deviation is first seen and again when its count
// has grown.
type Event struct {
	Time      time.Time `json:"time"`
	ID        string    `json:"id"` // same for every line on one distinct deviation
	Container string    `json:"container"`
	Name      string    `json:"name,omitempty"`
	Image     string    `json:"image,omitempty"`
	Dimension Dimension `json:"dimension"`
	// Action is a verb: "execve", "listen", "connect", "write", "chroot".
	Action   string   `json:"action"`
	Object   string   `json:"object"`
	Verdict  Verdict  `json:"verdict"`
	Mode     Mode     `json:"mode"`
	Phase    Phase    `json:"phase,omitempty"`
	Identity Identity `json:"identity,omitempty"`
	// Mechanism is what stopped or saw it: "seccomp", "fanotify", "nftables", "read-only root".
	Mechanism string   `json:"mechanism"`
	Process   *Process `json:"process,omitempty"`
	Origins   []Origin `json:"origins"` // what declares the nearest allowed thing; empty: nothing declares it
	Reason    string   `json:"reason"`
	Remedy    string   `json:"remedy"`
	Count     uint64   `json:"count"`
}
