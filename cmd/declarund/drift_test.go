package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

func driftOf(changes ...record.Change) *wire.DriftAnswer {
	return &wire.DriftAnswer{Container: wire.Container{Key: wire.Key{ID: "0123456789abcdef"}, Name: "db", Image: "postgres:16"},
		Drift: record.Drift{Layers: true, Changes: changes}}
}

func TestDriftForPeople(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	d := driftOf(
		record.Change{Path: "/tmp/\x1b[2Jx\n", How: record.DriftAdded, Type: "file", Program: "elf", Mode: 0o4755, Size: 1234567},
		record.Change{Path: "/data/lib.so", How: record.DriftAdded, Type: "file", Program: "elf", Mode: 0o644, UID: 100, GID: 101, Size: 12, Declared: "/data"},
		record.Change{Path: "/etc/passwd", How: record.DriftChanged, Type: "file", Mode: 0o644, Size: 900, What: []string{"mode"}},
		record.Change{Path: "/bin/gone", How: record.DriftRemoved, Type: "file", Mode: 0o755, Size: 900},
		record.Change{Path: "/l", How: record.DriftAdded, Type: "link", Mode: 0o777, From: "/etc/shadow"},
		record.Change{Path: "/data/1", How: record.DriftAdded, Type: "file", Mode: 0o1600, Size: 2000, Declared: "/data"},
		record.Change{Path: "/data/2", How: record.DriftRemoved, Type: "file", Size: 2000, Declared: "/data"},
	)
	nameWriters(d, []record.Event{
		{ID: "e1", Container: d.ID, Dimension: record.Storage, Action: "drop", Object: "/data/lib.so", Time: at, Process: &record.Process{PID: 7, Exe: "/usr/bin/db", Parent: &record.Process{Exe: "/entry.sh"}}},
		{ID: "e2", Container: "other", Dimension: record.Storage, Action: "drop", Object: "/etc/passwd", Process: &record.Process{PID: 8}},
		{ID: "e3", Container: d.ID, Dimension: record.Storage, Action: "write", Verdict: record.Denied, Object: "/etc/passwd", Process: &record.Process{PID: 8}},
	})
	d.More, d.Incomplete = 3, "it took too long"
	var out bytes.Buffer
	if err := printDrift(&out, d, false); err != nil {
		t.Fatal(err)
	}
	want := `db  postgres:16

programs, and files with rights of their own: 2
  added  -rwsr-xr-x  0:0      1.2 MB  "/tmp/\x1b[2Jx\n"  (program or shared object, runs with its owner's rights)  who wrote it is not known
  added  -rw-r--r--  100:101  12 B    /data/lib.so  (program or shared object)  written by /usr/bin/db[7] of /entry.sh, 2026-01-02 03:04:05, event e1

where nothing declares that it is written: 3
  changed  -rw-r--r--  0:0  900 B  /etc/passwd  (mode)
  removed  -rwxr-xr-x  0:0  900 B  /bin/gone
  added    lrwxrwxrwx  0:0  link   /l → /etc/shadow

data where writing is declared
  /data: 2 entries, 2.0 kB

5 differ from the image
3 more changes are not listed, all less important than these
NOT ALL was looked at: it took too long
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	out.Reset()
	if err := printDrift(&out, d, true); err != nil || !strings.Contains(out.String(), "-rw------T  0:0  2.0 kB  /data/1") {
		t.Errorf("%v: %s", err, out.String())
	}
}

func TestDriftStatus(t *testing.T) {
	data := record.Change{Path: "/data/1", How: record.DriftAdded, Type: "file", Declared: "/data"}
	program := data
	program.Program = "elf"
	made := program
	made.Made = true
	cut := driftOf(data)
	cut.Incomplete = "it took too long"
	cutWith := driftOf(program, data)
	cutWith.Incomplete = "it took too long"
	for _, row := range []struct {
		claim string
		d     *wire.DriftAnswer
		want  int
	}{
		{"nothing", driftOf(), 0},
		{"data where it belongs", driftOf(data), 0},
		{"a program where data belong", driftOf(program, data), 1},
		{"a library that the image's programs make", driftOf(made, data), 0},
		{"a file where none belongs", driftOf(record.Change{Path: "/etc/x", How: record.DriftAdded, Type: "file"}), 1},
		{"something removed", driftOf(record.Change{Path: "/etc/x", How: record.DriftRemoved, Type: "file"}), 1},
		{"not whole, and nothing so far", cut, 2},
		{"not whole, and enough", cutWith, 1},
	} {
		got := 0
		if err := verdictOf(row.d); err != nil {
			var code cli.ExitCoder
			if !errors.As(err, &code) || err.Error() != "" {
				t.Fatalf("%s: %v", row.claim, err)
			}
			got = code.ExitCode()
		}
		if got != row.want {
			t.Errorf("%s: %d, want %d", row.claim, got, row.want)
		}
	}
	var out bytes.Buffer
	if code := complain(&out, trouble{&advice{errors.New("no such container"), "declarun status"}}); code != 2 || !strings.Contains(out.String(), "try: declarun status") {
		t.Errorf("%d: %s", code, out.String())
	}
}

// Two names never look the same, and none drives a terminal.
func TestNamesAreToldApart(t *testing.T) {
	hostile := []string{"/a", "/a ", " /a", "/a\n", "/a\\n", "\"/a\"", "/a\x1b", "/a\xff", "/a\ufffd", "/a\u202e", "/a\u200b", "", "/a\u00a0"}
	var seen []string
	for _, p := range hostile {
		s := name(p)
		if slices.Contains(seen, s) || strings.ContainsAny(s, "\x1b\n") || s == "" {
			t.Errorf("%q is printed %q", p, s)
		}
		seen = append(seen, s)
	}
}
