// Package plan is what a container may do, as plain data: every entry says
// where it comes from. A plan can be printed, compared and tested without
// root; applying it is somebody else's work.
package plan

import (
	"github.com/declarun/declarun/shim/record"
)

// Plan is the derived policy of one container. Its JSON form is what
// "declarun plan --json" prints.
type Plan struct {
	// Mode per dimension, as it applies to this container.
	Mode  map[record.Dimension]record.Mode `json:"mode"`
	Image Image                            `json:"image"`
	// Wide is true when the main process is a shell or an interpreter without
	// a script: it may run whatever the image's layers contain.
	Wide       bool   `json:"wide"`
	WideReason string `json:"wide_reason,omitempty"`
	// WideStarting is true when a script runs a command that cannot be known
	// beforehand: until the container serves, any program of the image's layers may run.
	WideStarting       bool   `json:"wide_starting,omitempty"`
	WideStartingReason string `json:"wide_starting_reason,omitempty"`

	Syscalls     Syscalls     `json:"syscalls"`
	Processes    []Process    `json:"processes"`
	Storage      Storage      `json:"storage"`
	Network      Network      `json:"network"`
	Capabilities []Capability `json:"capabilities"`
	// NoNewPrivileges is true where no program that may run has setuid or setgid
	// bits or file capabilities: then none can give any.
	NoNewPrivileges bool      `json:"no_new_privileges,omitempty"`
	Admission       Admission `json:"admission"`
	// Notes are facts a reader should know: a source that could not be read,
	// something that is not enforced on this container and why.
	Notes []Note `json:"notes,omitempty"`
}

// Note is one sentence on a dimension.
type Note struct {
	Dimension record.Dimension `json:"dimension"`
	Text      string           `json:"text"`
}

// Image names what the plan was made for.
type Image struct {
	Ref    string `json:"ref,omitempty"`
	Digest string `json:"digest,omitempty"`
}

// Syscalls is the allow-list. What is not in it is refused and reported.
type Syscalls struct {
	Architecture  string    `json:"architecture"`            // GOARCH of the image's programs
	Architectures []string  `json:"architectures,omitempty"` // SCMP_ARCH_… names that the filter covers
	Allow         []Syscall `json:"allow"`
	// Unresolved are sites whose call number was not proved. When Widened is
	// true they made the list as wide as the engine's own profile.
	Unresolved []Site `json:"unresolved"`
	Widened    bool   `json:"widened,omitempty"`
	// Loops prove, one process at a time, that it is past its start-up.
	Loops []Loop `json:"loops,omitempty"`
}

// Syscall is one allowed call.
type Syscall struct {
	Name  string       `json:"name"`
	Phase record.Phase `json:"phase"`
	// UntilLoop is true where the programs that have Loops need the call only
	// before they are in one: it is taken away from each process as soon as one
	// of the Loops proves it, until it executes another program. Whoever is never
	// proved keeps it, as long as Phase says.
	UntilLoop bool            `json:"until_loop,omitempty"`
	Origins   []record.Origin `json:"origins"`
	// Args are the scalar arguments that were looked at, in order. The call is
	// allowed with what those that were proved can be.
	Args []Arg `json:"args,omitempty"`
}

// Loop is the proof that a process has come to the loop in which it serves: a
// word of its stack is one of these return addresses. They lie in the middle of
// functions, so that nothing but the call before them puts them there.
type Loop struct {
	File    string   `json:"file"`    // in the image, free of symbolic links
	Returns []uint64 `json:"returns"` // as the program headers count, sorted; at most MaxReturns
}

// MaxReturns bounds the return addresses of one Loop.
const MaxReturns = 4096

// Site is a place in a program that makes a call nobody could name.
type Site struct {
	File    string `json:"file"`
	Address uint64 `json:"address"`
	Reason  string `json:"reason"`
}

// Process is one program that may be executed.
type Process struct {
	Path     string          `json:"path"` // in the image, free of symbolic links
	Phase    record.Phase    `json:"phase"`
	Identity record.Identity `json:"identity"`
	// Main is true for the programs that serve, as opposed to their helpers.
	Main bool `json:"main,omitempty"`
	// Mounted is true when an operator's mount provides the file, and not the image.
	Mounted bool `json:"mounted,omitempty"`
	// Loader is true for an ELF interpreter that is only needed to execute other
	// programs: whoever may run it by itself may run everything that can be read.
	Loader  bool            `json:"loader,omitempty"`
	Origins []record.Origin `json:"origins"`
}

// Storage is what may be written.
type Storage struct {
	// ReadonlyRoot is true unless a bare bundle declares a writable root.
	ReadonlyRoot bool       `json:"readonly_root"`
	Writable     []Writable `json:"writable"`
}

// Writable is one directory tree (or file) that stays writable.
type Writable struct {
	Path string `json:"path"`
	// Mounted is true when the engine already mounts something there; then
	// only its options change.
	Mounted bool `json:"mounted,omitempty"`
	// Exec is true where programs may be executed: only where the operator
	// said so.
	Exec bool `json:"exec,omitempty"`
	// Maps is true where a known application loads libraries that it made
	// there: the mount is not noexec, and nothing that is written there may be
	// executed as a program.
	Maps bool `json:"maps,omitempty"`
	// Holds is true where the image itself has programs or libraries: the mount
	// is not noexec, so that they work. What is written there later may not be
	// executed as a program; that a library could be loaded is reported when it
	// is written.
	Holds bool `json:"holds,omitempty"`
	// Phase is Starting where only the entrypoint's scripts write, before they
	// exec the program that serves.
	Phase   record.Phase    `json:"phase,omitempty"`
	Origins []record.Origin `json:"origins"`
}

// Network is who may connect to whom.
type Network struct {
	// Enforced is false for host and shared namespaces; Reason says why.
	Enforced bool     `json:"enforced"`
	Reason   string   `json:"reason,omitempty"`
	Listen   []Listen `json:"listen"`
	// Inside are ports that a known application listens on besides: it may, and
	// nobody outside may connect, since nothing exposes them.
	Inside  []Listen `json:"inside,omitempty"`
	Connect []Peer   `json:"connect"`
}

// Listen is a port, or an inclusive range, that others may connect to.
type Listen struct {
	Proto   string          `json:"proto"`
	Port    uint16          `json:"port"`
	Last    uint16          `json:"last,omitempty"`
	Origins []record.Origin `json:"origins"`
}

// Executes tells whether it must not be mounted noexec.
func (w Writable) Executes() bool { return w.Exec || w.Maps || w.Holds }

// Peer is somewhere the container may connect to. Exactly one of CIDR and Name
// is set. Port 0 means every port, Proto "" every protocol.
type Peer struct {
	CIDR    string          `json:"cidr,omitempty"`
	Name    string          `json:"name,omitempty"`
	Proto   string          `json:"proto,omitempty"`
	Port    uint16          `json:"port,omitempty"`
	Origins []record.Origin `json:"origins"`
}

// Capability is one capability the container keeps (CAP_…) and why.
type Capability struct {
	Name    string          `json:"name"`
	Origins []record.Origin `json:"origins"`
}

// Admission says whether the container may start at all.
type Admission struct {
	Verdict AdmissionVerdict `json:"verdict"`
	Reasons []Reason         `json:"reasons"`
}

// AdmissionVerdict is Refuse when it was never decided.
type AdmissionVerdict string

const (
	Admit  AdmissionVerdict = "admit"
	Warn   AdmissionVerdict = "warn"
	Refuse AdmissionVerdict = "refuse"
)

// Reason is one finding of admission.
type Reason struct {
	ID      string           `json:"id"` // stable: "apt-never-updated"
	Verdict AdmissionVerdict `json:"verdict"`
	Text    string           `json:"text"`
	Remedy  string           `json:"remedy,omitempty"`
	Origins []record.Origin  `json:"origins"`
}
