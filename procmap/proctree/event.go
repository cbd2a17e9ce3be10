package proctree

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// What happened to a process. The values are the kernel's, enum proc_cn_event
// of linux/cn_proc.h.
type What uint32

const (
	acknowledged What = 0
	Forked       What = 1
	Executed     What = 2
	ChangedUser  What = 4
	Renamed      What = 0x200
	DumpedCore   What = 0x4000_0000
	Ended        What = 0x8000_0000

	// wanted is the mask that the kernel filters by.
	wanted     = Forked | Executed | ChangedUser | Renamed | DumpedCore | Ended
	everything = 0xffff_ffff // PROC_EVENT_ALL
)

// Event is one thing that happened to a process, in the initial pid namespace.
type Event struct {
	What What
	Time uint64 // nanoseconds of CLOCK_MONOTONIC
	PID  int    // of the process (not of a thread): the new one where it was forked

	Parent    int    // Forked: the process that its parent is, which with CLONE_PARENT is not the one that forked
	Real, UID uint32 // ChangedUser: real and effective
	Comm      string // Renamed
	Status    uint32 // Ended: as wait(2) has it
	Signal    uint32 // Ended: what the parent is told with
}

const (
	netlinkHeader   = 16 // struct nlmsghdr
	connectorHeader = 20 // struct cn_msg
	eventHeader     = 16 // of struct proc_event, before its union
	eventAt         = netlinkHeader + connectorHeader
	// maxDatagram is far more than the kernel sends: 76 bytes.
	maxDatagram = 4096
	// maxEvents bounds the messages of one datagram.
	maxEvents = 64
)

var errShort = errors.New("message ends too early")

// acknowledgement is the answer to a request to listen.
type acknowledgement struct{ errno uint32 }

// Parse reads one datagram of the process connector. What is not about a
// process of its own (a thread, a kind of event that was not asked for) is no Event.
func Parse(data []byte) ([]Event, error) {
	events, _, err := parse(data)
	return events, err
}

func parse(data []byte) (events []Event, ack *acknowledgement, err error) {
	if len(data) > maxDatagram {
		return nil, nil, fmt.Errorf("parse process events: datagram of %d bytes", len(data))
	}
	for n := 0; len(data) > 0; n++ {
		if n == maxEvents {
			return events, ack, fmt.Errorf("parse process events: more than %d messages at once", maxEvents)
		}
		if len(data) < netlinkHeader {
			return events, ack, fmt.Errorf("parse process events: %w", errShort)
		}
		size := binary.NativeEndian.Uint32(data)
		if size < netlinkHeader || uint64(size) > uint64(len(data)) {
			return events, ack, fmt.Errorf("parse process events: message of %d bytes in %d", size, len(data))
		}
		e, a, known, err := parseMessage(data[netlinkHeader:size])
		if err != nil {
			return events, ack, fmt.Errorf("parse process events: %w", err)
		}
		if a != nil {
			ack = a
		}
		if known {
			events = append(events, e)
		}
		next := (uint64(size) + 3) &^ 3 // NLMSG_ALIGN
		data = data[min(next, uint64(len(data))):]
	}
	return events, ack, nil
}

// parseMessage reads a struct cn_msg with its struct proc_event.
func parseMessage(b []byte) (e Event, ack *acknowledgement, known bool, err error) {
	if len(b) < connectorHeader {
		return e, nil, false, errShort
	}
	idx, val := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	size := int(binary.NativeEndian.Uint16(b[16:]))
	b = b[connectorHeader:]
	if idx != connectorProcess || val != connectorProcess {
		return e, nil, false, fmt.Errorf("connector %d.%d is not that of processes", idx, val)
	}
	if size > len(b) {
		return e, nil, false, errShort
	}
	if b = b[:size]; size < eventHeader {
		return e, nil, false, errShort
	}
	word := func(i int) uint32 { return binary.NativeEndian.Uint32(b[eventHeader+4*i:]) }
	e.What = What(binary.NativeEndian.Uint32(b))
	e.Time = binary.NativeEndian.Uint64(b[8:])
	need := map[What]int{acknowledged: 1, Forked: 4, Executed: 2, ChangedUser: 4, Renamed: 6, DumpedCore: 2, Ended: 4}
	words, known := need[e.What]
	if !known {
		return Event{}, nil, false, nil
	}
	if len(b) < eventHeader+4*words {
		return e, nil, false, errShort
	}
	if e.What == acknowledged {
		return Event{}, &acknowledgement{word(0)}, false, nil
	}
	thread, process := word(0), word(1)
	if e.What == Forked {
		thread, process = word(2), word(3)
		e.Parent = int(int32(word(1)))
	}
	e.PID = int(int32(process))
	if e.PID <= 0 || e.Parent < 0 {
		return Event{}, nil, false, nil // of a process that this pid namespace does not have
	}
	switch e.What {
	case ChangedUser:
		e.Real, e.UID = word(2), word(3)
	case Renamed:
		comm := b[eventHeader+8 : eventHeader+8+16]
		if i := bytes.IndexByte(comm, 0); i >= 0 {
			comm = comm[:i]
		}
		e.Comm = string(comm)
	case Ended:
		e.Status, e.Signal = word(2), word(3)
	}
	// What any thread does of these, its process does.
	own := thread == process || e.What == Executed || e.What == ChangedUser || e.What == DumpedCore
	return e, nil, own, nil
}
