package sensor

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// call says what a system call's arguments mean.
type call struct {
	name string
	path int // which argument is the path that is written to
	dir  int // which is the directory that a relative one begins at; none: the working directory
	open int // which are open(2)'s flags
	// fresh calls make something new: where it exists they fail with EEXIST, not EROFS.
	fresh bool
}

const none = -1

// The event that the programs write, in the machine's byte order.
const (
	offPIDTGID = 0
	offUIDGID  = 8
	offNumber  = 16
	offArgs    = 24
	offComm    = 56
	offPath    = 72
	pathSize   = 256
	eventSize  = offPath + 2*pathSize
)

type refusalEvent struct {
	pid, tid int
	uid      uint32
	nr       uint64
	args     [4]uint64
	comm     string
	paths    [2]string // arguments 0 and 1; for symlinkat 2 and for linkat 3 instead of 1
}

func parseRefusal(b []byte) (refusalEvent, error) {
	var e refusalEvent
	if len(b) < eventSize {
		return e, errors.New("parse refused write: record too short")
	}
	u := func(off int) uint64 { return binary.NativeEndian.Uint64(b[off:]) }
	s := func(off, n int) string {
		v, _, _ := bytes.Cut(b[off:off+n], []byte{0})
		return string(v)
	}
	e.pid, e.tid = int(u(offPIDTGID)>>32), int(uint32(u(offPIDTGID)))
	e.uid = uint32(u(offUIDGID))
	e.nr = u(offNumber)
	for i := range e.args {
		e.args[i] = u(offArgs + 8*i)
	}
	e.comm = s(offComm, 16)
	e.paths = [2]string{s(offPath, pathSize), s(offPath+pathSize, pathSize)}
	return e, nil
}

// path is what the call was asked to write to, as it was written.
func (e refusalEvent) path(c call) string {
	if c.path == none {
		return ""
	}
	return e.paths[min(c.path, 1)]
}

// doubtful calls may have succeeded, or failed for another reason, although
// the kernel found the mount read-only on the way: mkdir of what exists, open
// with O_CREAT for reading.
func (e refusalEvent) doubtful(c call) bool {
	const (
		accmode = 0x3
		trunc   = 0x200
	)
	return c.fresh || c.open != none && e.args[c.open]&(accmode|trunc) == 0
}
