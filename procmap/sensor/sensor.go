// Package sensor reports what containers did or tried to do to their file
// systems. It decides nothing and stops nothing; what it misses is not let
// through, only not told.
//
// Drops sees a program or shared object that was just written (fanotify
// FAN_CLOSE_WRITE). It does not see files that are moved into place from
// where nobody looks, programs kept in memory, or a file written through a
// shared mapping after it was closed. A file that was replaced by the time it
// is looked at is described as it is then.
//
// Where it is asked to, Drops also sees every file of a container's root that
// was opened for writing and is closed, outside the declared paths: what a
// read-only root would have refused. It does not see what is no such file:
// directories made or removed, links, renames, unlinks, changed owners and
// modes, a file that is never closed. A process is told once for each path.
// The path is that of the file when it is looked at, as the writer's mount
// namespace has it: a program that may mount can show another.
//
// Refusals sees writing system calls that fail because the mount is read-only.
// Path and command name come from the process's own memory: advisory.
//
// Both have bounded queues; what overflows is counted and told.
package sensor

import (
	"fmt"
	"strings"
)

// Drop is a file that can be executed, or mapped to be, right after it was written.
type Drop struct {
	Container string
	Path      string // in the container
	PID       int    // of the writer, which may be gone
	Comm, Exe string
	Kind      Kind
	Size      int64
	// SHA256 of the first HashLimit bytes, in hexadecimal; empty: could not be read.
	SHA256 string
}

// Write is a file of the root that was opened for writing and is closed now,
// where nothing declares that it is written.
type Write struct {
	Container string
	Path      string // in the container
	PID       int    // of the writer, which may be gone
	Comm, Exe string
	Size      int64
	// Own is true where the file was reached through the container's own root
	// mount. Otherwise it may be the engine, which has a mount of the same files
	// ("docker cp"), or a mount namespace that was made later.
	Own bool
}

// declared tells whether name is one of the paths or lies below one.
func declared(paths []string, name string) bool {
	for _, p := range paths {
		if name == p || strings.HasPrefix(name, strings.TrimSuffix(p, "/")+"/") {
			return true
		}
	}
	return false
}

// HashLimit bounds how much of a dropped file is read.
const HashLimit = 16 << 20

// Kind is what a file's first bytes say.
type Kind string

const (
	ELF    Kind = "elf"
	Script Kind = "script"
)

// headSize is what kindOf looks at: an ELF header up to its type.
const headSize = 18

// kindOf knows programs by their first bytes; a script only where somebody may
// execute it, an ELF file always: dlopen asks for no permission. What a compiler
// makes for the linker (ET_REL, 1 in either byte order) is refused by execve(2)
// and by dlopen(3).
func kindOf(head []byte, mode uint32) (Kind, bool) {
	switch {
	case len(head) >= headSize && string(head[:4]) == "\x7fELF" && (head[16] == 1 && head[17] == 0 || head[16] == 0 && head[17] == 1):
		return "", false
	case len(head) >= 4 && string(head[:4]) == "\x7fELF":
		return ELF, true
	case len(head) >= 2 && string(head[:2]) == "#!" && mode&0o111 != 0:
		return Script, true
	}
	return "", false
}

// Refusal is a system call that failed with EROFS.
type Refusal struct {
	Container string
	PID, TID  int
	UID       uint32
	Comm, Exe string
	Syscall   string
	Path      string // absolute in the container where that could be told; may be empty
}

// UnsupportedError says that this machine lacks what a sensor needs. The caller
// goes on without it, and says so.
type UnsupportedError struct {
	What string
	Err  error
	Hint string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("open sensor for %s: %v: unsupported operation", e.What, e.Err)
}

func (e *UnsupportedError) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *UnsupportedError) Remedy() string { return e.Hint }
