package proctree

import (
	"encoding/binary"
	"reflect"
	"testing"
)

// message is a datagram as the kernel makes it.
func message(w What, words ...uint32) []byte {
	b := make([]byte, netlinkHeader+connectorHeader)
	binary.NativeEndian.PutUint32(b[netlinkHeader:], connectorProcess)
	binary.NativeEndian.PutUint32(b[netlinkHeader+4:], connectorProcess)
	b = binary.NativeEndian.AppendUint32(b, uint32(w))
	b = binary.NativeEndian.AppendUint32(b, 0) // processor
	b = binary.NativeEndian.AppendUint64(b, 7) // time
	for i := range 6 {
		var v uint32
		if i < len(words) {
			v = words[i]
		}
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[netlinkHeader+16:], uint16(len(b)-netlinkHeader-connectorHeader))
	return b
}

func TestEvents(t *testing.T) {
	comm := func(s string) uint32 { return binary.NativeEndian.Uint32([]byte(s)) }
	for _, row := range []struct {
		name string
		data []byte
		want []Event
	}{
		{"a fork is the child's", message(Forked, 10, 10, 11, 11), []Event{{What: Forked, Time: 7, PID: 11, Parent: 10}}},
		{"a fork by a thread is its process's", message(Forked, 12, 10, 13, 13), []Event{{What: Forked, Time: 7, PID: 13, Parent: 10}}},
		{"a new thread is nothing", message(Forked, 10, 10, 12, 10), nil},
		{"an execution", message(Executed, 11, 11), []Event{{What: Executed, Time: 7, PID: 11}}},
		{"users: real, then effective", message(ChangedUser, 11, 11, 1000, 0), []Event{{What: ChangedUser, Time: 7, PID: 11, Real: 1000}}},
		{"a thread's user is its process's", message(ChangedUser, 12, 11, 0, 5), []Event{{What: ChangedUser, Time: 7, PID: 11, UID: 5}}},
		{"a name of sixteen bytes has no end", message(Renamed, 11, 11, comm("abcd"), comm("abcd"), comm("abcd"), comm("abcd")), []Event{{What: Renamed, Time: 7, PID: 11, Comm: "abcdabcdabcdabcd"}}},
		{"a thread's name is nothing", message(Renamed, 12, 11, comm("abcd")), nil},
		{"an end by a signal, with a core", message(Ended, 11, 11, 0x8b, 17), []Event{{What: Ended, Time: 7, PID: 11, Status: 0x8b, Signal: 17}}},
		{"the end of a thread is nothing", message(Ended, 12, 11, 0, 0), nil},
		{"a core is the process's whichever thread made it", message(DumpedCore, 12, 11, 1, 1), []Event{{What: DumpedCore, Time: 7, PID: 11}}},
		{"a kind that nobody asked for is nothing", message(0x100, 1, 1), nil},
		{"process 0 is nobody here", message(Executed, 0, 0), nil},
		{"two in one datagram", append(message(Executed, 11, 11), message(Ended, 11, 11, 0, 17)...), []Event{{What: Executed, Time: 7, PID: 11}, {What: Ended, Time: 7, PID: 11, Signal: 17}}},
		{"nothing", nil, nil},
	} {
		got, err := Parse(row.data)
		if err != nil || !reflect.DeepEqual(got, row.want) {
			t.Errorf("%s: %+v, %v; want %+v", row.name, got, err, row.want)
		}
	}
}

func TestEventsThatAreNone(t *testing.T) {
	other := message(Executed, 11, 11)
	other[netlinkHeader] = 9
	long := message(Executed, 11, 11)
	binary.NativeEndian.PutUint32(long, uint32(len(long)+1))
	inner := message(Executed, 11, 11)
	binary.NativeEndian.PutUint16(inner[netlinkHeader+16:], 0xffff)
	empty := message(Executed, 11, 11)
	binary.NativeEndian.PutUint32(empty, 0)
	for name, data := range map[string][]byte{
		"a header alone that is cut":     {1, 2, 3},
		"a message longer than is there": long,
		"a payload longer than that":     inner,
		"a message of no length":         empty, // else it would be read for ever
		"another connector's":            other,
		"a kind without what it needs":   message(Forked)[:eventAt+eventHeader+8],
		"more than a datagram can be":    make([]byte, maxDatagram+1),
	} {
		if got, err := Parse(data); err == nil {
			t.Errorf("%s: %+v and no error", name, got)
		}
	}
}

func TestAcknowledgement(t *testing.T) {
	_, ack, err := parse(message(acknowledged, 1))
	if err != nil || ack == nil || ack.errno != 1 {
		t.Errorf("%+v, %v", ack, err)
	}
}

func FuzzParse(f *testing.F) {
	for _, w := range []What{acknowledged, Forked, Executed, ChangedUser, Renamed, DumpedCore, Ended, 0x100} {
		f.Add(message(w, 11, 11, 12, 12))
	}
	f.Add(append(message(Executed, 1, 1), message(Ended, 1, 1)...))
	f.Fuzz(func(t *testing.T, data []byte) {
		events, err := Parse(data)
		if len(events) > maxEvents {
			t.Fatalf("%d events", len(events))
		}
		for _, e := range events {
			if e.PID <= 0 || e.Parent < 0 || len(e.Comm) > 16 || e.What&^wanted != 0 {
				t.Fatalf("%+v, %v", e, err)
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add([]byte("1 (a b) c) S 0 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 123 1 1"), []byte("Name:\tx\nUid:\t1\t2\t3\t4\nNSpid:\t7\t1\nCapPrm:\tff\n"))
	f.Fuzz(func(t *testing.T, stat, status []byte) {
		parseStat(stat)
		var s seen
		s.parseStatus(status)
		dropsOf(stat, 1)
	})
}

func TestStatus(t *testing.T) {
	var s seen
	ok := s.parseStatus([]byte("Name:\tx\ty\nUid:\t1\t2\t3\t4\nNSpid:\t700\t5\nCapPrm:\t00000000000000c0\nCapBnd:\t00000000a80425fb\n"))
	if !ok || s.comm != "x\ty" || s.real != 1 || s.uid != 2 || s.saved != 3 || s.inside != 5 || s.permitted != 0xc0 || s.bounding != 0xa80425fb {
		t.Errorf("%v %+v", ok, s)
	}
	if start, parent, ok := parseStat([]byte("7 (a) S 1 (b) R 3 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4711 1 1")); !ok || start != 4711 || parent != 3 {
		t.Error(start, parent, ok)
	}
	if _, _, ok := parseStat([]byte("7 (a) Z 3 1 1 0 -1 4194560 1 1 1 1 1 1 1 1 20 0 1 0 4711 1 1")); ok {
		t.Error("a process that waits to be waited for lives")
	}
}
