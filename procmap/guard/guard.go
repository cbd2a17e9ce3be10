// Package guard holds the processes of containers to the programs that their
// plan names: a fanotify group with one permission event per program that is
// about to be executed.
//
// What it guarantees, while somebody answers the group:
//
//   - The decision is about the very file that will be executed, not about a
//     path that can be swapped after it was read: FAN_OPEN_EXEC_PERM carries a
//     descriptor of the opened file (Linux 5.0, CONFIG_FANOTIFY_ACCESS_PERMISSIONS).
//   - Scripts, the interpreter a script names and the ELF interpreter raise an
//     event each.
//   - Where the container's root is an overlay of its own, the mark is on the
//     superblock: new mount namespaces and bind mounts do not evade it.
//   - What was written, renamed, linked or had its metadata changed since the
//     image was unpacked is not the image's any more, whatever its inode
//     number: a copied-up file keeps that of the lower layer.
//   - No decision, a panic while deciding, and an event that belongs to no
//     known container are FAN_DENY. Every event is answered exactly once.
//
// What it does not:
//
//   - When the last descriptor of the group is closed the kernel allows
//     everything. Somebody else must hold a second one (File, FromFile); until
//     somebody reads again, executions wait (killable).
//   - memfd_create (vm.memfd_noexec closes it), files on mounts that are not
//     marked (noexec closes it), code that a permitted program maps or
//     interprets: "sh file", and "ld.so /usr/bin/x" where the plan has ld.so run
//     by itself. Where it is only the interpreter of permitted programs, it is
//     refused to whoever asks for it (Exec.Direct).
//   - Where the root is a bare directory the mark is on its mount: a new mount
//     namespace has mounts without marks (measured, 6.18), so unshare, setns
//     and mount must be refused by other means. Files of a bare directory that
//     were written by an earlier run of it look like the image's.
//   - On a writable root, and in a writable part of it that is not mounted noexec
//     (Mount.Guarded), a file can change between the answer and the moment its
//     pages are read. On a read-only root it cannot.
//
// The process that answers must never execute, or fork a child that executes,
// a file on a guarded file system: the kernel asks it, it waits for itself.
// That includes os/exec, whose vfork stops a thread that the garbage collector
// waits for.
package guard

import (
	"fmt"
	"os"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// Program is one path that may be executed.
type Program struct {
	Path string // in the container, free of symbolic links
	// Starting programs are refused once the container serves.
	Starting bool
	// Loader: only needed to execute others, not run by itself.
	Loader bool
}

// Mount is a mount of the container other than its root.
type Mount struct {
	File *os.File // O_PATH of what is mounted, as seen in the container's mount namespace
	// Exec is true where the operator allows programs to be executed from a
	// mount that is not the image's.
	Exec bool
	// Guarded is true where it is not mounted noexec although nothing that is
	// written there may be executed.
	Guarded bool
	// Own is true for a part of the root that was mounted upon itself.
	Own bool
}

// Container is what the guard must know of a container. Watch takes over its files.
type Container struct {
	ID string
	// PID of any process in the container's mount namespace: its mountinfo is
	// read once, by Watch.
	PID int
	// Root is an O_PATH descriptor of the container's root mount as seen in its
	// mount namespace.
	Root *os.File
	// Upper is the overlay's upper directory, where the caller knows it; empty:
	// read from mountinfo.
	Upper string
	// Mounts by destination. Only those with Exec or Guarded are marked: the others are
	// mounted noexec, which the kernel checks before it asks.
	Mounts map[string]Mount

	Application []Program // the entrypoint and all it starts
	HealthCheck []Program // what only the health check needs
	// Wide: the application may run whatever is in the image's layers;
	// WideStarting: until it serves.
	Wide, WideStarting bool
	// Scriptable: the application may run a shell for its whole life. Then the
	// kernel may answer for the ELF interpreter too, which costs such a container's
	// many executions nothing, and a race with its own execve can win it what
	// "sh file" gives it anyway.
	Scriptable bool
	// Created is when the container's file system was made. Without an overlay,
	// what changed later is not the image's; zero: nothing is.
	Created time.Time
}

// Grant says by which list, and in which phase, a file may be executed.
type Grant uint8

const (
	never Grant = iota
	untilServing
	always
)

func (g Grant) holds(phase record.Phase) bool {
	return g == always || g == untilServing && phase == record.Starting
}

func (g Grant) or(starting bool) Grant {
	if starting {
		return max(g, untilServing)
	}
	return always
}

// Place is where a file lies.
type Place uint8

const (
	// Elsewhere is not known to be anything better. It is the zero Place.
	Elsewhere Place = iota
	// Image: in the container's root file system and unchanged since the image was unpacked.
	Image
	// Changed: in the container's root file system and written, moved or
	// linked later.
	Changed
	// ReadOnlyMount: a mount of its own that the container cannot write to.
	ReadOnlyMount
	// ExecMount: a writable mount on which the operator allows programs.
	ExecMount
	// NoExec: a noexec mount. The kernel refuses with EACCES before it asks.
	NoExec
)

func (p Place) String() string {
	switch p {
	case Image:
		return "in the image"
	case Changed:
		return "written after the image was made"
	case ReadOnlyMount:
		return "on a read-only mount"
	case ExecMount:
		return "on a mount where the operator allows programs"
	case NoExec:
		return "on a noexec mount"
	}
	return "outside the image"
}

// Exec is one file that is about to be executed.
type Exec struct {
	// ContainerID is empty when the event belongs to no container that is
	// watched; it is refused whatever is decided.
	ContainerID string
	TID         int      // in the guard's pid namespace; blocked until the answer
	File        *os.File // the file; only until the decision is made
	Path        string   // in the container where known; may be hostile
	Dev, Ino    uint64
	Place       Place
	Regular     bool
	// By list: may the application, may the health check.
	Application, HealthCheck Grant
	// Interpreter is set where the file is in no list itself, but a file of the
	// application's (or health check's) list needs it to be executed: its ELF
	// interpreter, or what its first line names.
	Interpreter, HealthInterpreter Grant
	// Interpreted: the kernel opens another file to execute this one, which the
	// application may not execute by itself.
	Interpreted bool
	// Image-wide grant of the application.
	Wide Grant
	// Scriptable is the container's.
	Scriptable bool
	// Direct: this file itself was asked for, and not by the kernel on behalf of
	// another. Allowed sets it. In an event it is for who decides to set: the
	// first event of an execve is about the file that was asked for. That the first
	// event is not missing because the kernel answered it is what Judge sees to.
	Direct bool
	// Serving is what Guard.Serving was told.
	Serving bool
}

// Who asks. Its zero value is the application of an enforced container that
// serves: the strictest.
type Who struct {
	Identity record.Identity
	Phase    record.Phase
	Mode     record.Mode
}

// Decision answers an Exec. Its zero value is a refusal.
type Decision struct {
	Allow bool
	// Verdict is for the report: empty when the file is allowed and nothing is
	// to be said.
	Verdict record.Verdict
	Reason  string
	// Cache lets the kernel answer for this file from now on, for all identities.
	Cache bool
}

// Judge decides. It is a pure function of the facts and of who asks.
func Judge(e Exec, who Who) Decision {
	if who.Mode == record.Off && e.ContainerID != "" {
		return Decision{Allow: true}
	}
	allow, reason := judge(e, who)
	switch {
	case e.ContainerID == "":
		return Decision{Verdict: record.Denied, Reason: "belongs to no container that is known"}
	case !allow && who.Mode == record.Audit:
		return Decision{Allow: true, Verdict: record.Observed, Reason: reason}
	case !allow:
		return Decision{Verdict: record.Denied, Reason: reason}
	case who.Identity == record.Operator:
		return Decision{Allow: true, Verdict: record.Reported, Reason: reason}
	}
	return Decision{
		Allow:  true,
		Reason: reason,
		// Of a file with an interpreter, and of the interpreter, events have to
		// come: without the former, the latter would be the first of its execve.
		Cache: e.Place == Image && (e.Wide == always || e.Application == always && (!e.Interpreted || e.Scriptable) ||
			e.Interpreter == always && e.Scriptable),
	}
}

func judge(e Exec, who Who) (bool, string) {
	phase := who.Phase
	if e.Serving || phase != record.Starting {
		phase = record.Serving
	}
	switch {
	case !e.Regular:
		return false, "not a regular file"
	case e.Place == NoExec, e.Place == Elsewhere, e.Place == Changed:
		return false, e.Place.String()
	case e.Place == ReadOnlyMount, e.Place == ExecMount:
		return true, e.Place.String()
	case e.Place != Image:
		return false, fmt.Sprintf("unknown place %d", e.Place)
	}

	interpreter := !e.Direct
	switch {
	case who.Identity == record.Operator:
		return true, "run by an operator from the image"
	case e.Application.holds(phase):
		return true, "in the plan"
	case interpreter && e.Interpreter.holds(phase):
		return true, "needed by a program in the plan"
	case e.Wide.holds(phase):
		return true, "in the image of a container that may run anything in it"
	case who.Identity == record.HealthCheck && e.HealthCheck.holds(phase):
		return true, "in the plan for the health check"
	case who.Identity == record.HealthCheck && interpreter && e.HealthInterpreter.holds(phase):
		return true, "needed by the health check"
	case e.Application == untilServing || e.Wide == untilServing:
		return false, "only while starting, and the container serves"
	case e.HealthCheck != never:
		return false, "only for the health check"
	case e.Direct && e.Interpreter.holds(phase):
		return false, "only to load or interpret programs in the plan"
	}
	return false, "not in the plan"
}

// UnsupportedError says that this machine has no exec guard.
type UnsupportedError struct {
	Err error
	// Hint is what to do about it.
	Hint string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("open exec guard: kernel has no fanotify permission events for executions (Linux 5.0 and later, CAP_SYS_ADMIN): %v", e.Err)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *UnsupportedError) Remedy() string { return e.Hint }
