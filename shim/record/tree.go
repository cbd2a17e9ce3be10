package record

import "time"

// Tree is what is known of the processes of one container: an observation, made
// after the fact. Nothing is decided by it.
type Tree struct {
	// Live are parents before their children, in the order in which they began.
	Live    []LiveProcess `json:"live"`
	Before  []PastProcess `json:"before"`
	Refused []RefusedExec `json:"refused"`
	Since   time.Time     `json:"known_since"`    // nothing is known of what ran before that
	Lost    uint64        `json:"lost,omitempty"` // events of the machine's processes that are missing
	// Omitted processes and kinds of process are beyond what is kept.
	Omitted uint64 `json:"omitted,omitempty"`
}

// LiveProcess is one that lives.
type LiveProcess struct {
	PID       int       `json:"pid"`              // on the machine
	Inside    int       `json:"inside,omitempty"` // in its innermost pid namespace; 0: not known
	Parent    int       `json:"parent,omitempty"` // 0: outside the container
	StartTime uint64    `json:"start_time,omitempty"`
	Since     time.Time `json:"since,omitzero"` // when it executed its program
	Exe       string    `json:"exe,omitempty"`  // in the container; empty: not known
	Argv      []string  `json:"argv,omitempty"`
	Comm      string    `json:"comm,omitempty"`
	RealUID   uint32    `json:"real_uid"` // on the machine
	UID       uint32    `json:"uid"`      // effective
	Identity  Identity  `json:"identity,omitempty"`
	Phase     Phase     `json:"phase,omitempty"` // the container's when it executed its program
	// Ran is false for the runtime, until it executes the first program.
	Ran bool `json:"ran,omitempty"`
	// Odd is what was noticed about it.
	Odd []string `json:"odd,omitempty"`
	// Unexpected says what of it the plan does not have; empty: it is expected.
	Unexpected string `json:"unexpected,omitempty"`
}

// PastProcess is a kind of process that ran before: those of one program with one
// parent program, one identity and one user.
type PastProcess struct {
	Exe      string    `json:"exe,omitempty"`
	Parent   string    `json:"parent,omitempty"` // its program
	Identity Identity  `json:"identity,omitempty"`
	UID      uint32    `json:"uid"`
	Phase    Phase     `json:"phase,omitempty"` // of the last
	Count    uint64    `json:"count"`
	First    time.Time `json:"first"`
	Last     time.Time `json:"last"`
	Argv     []string  `json:"argv,omitempty"` // of the last
	Status   string    `json:"status"`         // of the last: "exit 0", "SIGSEGV", "not seen"
	Odd      []string  `json:"odd,omitempty"`
	// Unexpected is as that of LiveProcess.
	Unexpected string `json:"unexpected,omitempty"`
}

// RefusedExec is a kind of execution that was refused, or would have been.
type RefusedExec struct {
	By       string    `json:"by,omitempty"` // the program that tried
	Exe      string    `json:"exe"`
	Identity Identity  `json:"identity,omitempty"`
	Verdict  Verdict   `json:"verdict"`
	Count    uint64    `json:"count"`
	Last     time.Time `json:"last"`
	Reason   string    `json:"reason,omitempty"`
}
