package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

func TestTreeForPeople(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.Local)
	at := func(d time.Duration) time.Time { return now.Add(-d) }
	answer := &wire.ProcessTree{
		Container: wire.Container{Key: wire.Key{ID: "0123456789abcdef"}, Name: "db", Image: "postgres:16", State: "running", Phase: record.Serving,
			Mode: map[record.Dimension]record.Mode{record.Processes: record.Enforce}},
		Expected: []plan.Expected{{Path: "/entry.sh", Phase: record.Starting, Root: true, Starts: []string{"/bin/sh", "/usr/bin/db"}}, {Path: "/usr/bin/db", Main: true}, {Path: "/usr/bin/ready", Identity: record.HealthCheck}},
		Tree: record.Tree{Since: at(time.Hour), Lost: 3,
			Live: []record.LiveProcess{
				{PID: 10, Inside: 1, UID: 100, Since: at(90 * time.Second), Ran: true, Exe: "/usr/bin/db", Argv: []string{"db", "-D", "/data"}, Identity: record.Application},
				{PID: 11, Inside: 7, Parent: 10, UID: 100, Since: at(time.Second), Ran: true, Exe: "/usr/bin/db", Argv: []string{"db: writer \x1b[31m"}, Identity: record.Application},
				{PID: 12, Parent: 10, Since: at(time.Second), Ran: true, Exe: "/bin/nc", Argv: []string{"nc"}, Identity: record.Application, Unexpected: "not in the plan", Odd: []string{"gained root"}},
				{PID: 13, Parent: 13, Since: at(time.Second), Comm: "runc"},
			},
			Before:  []record.PastProcess{{Exe: "/usr/bin/ready", Parent: "/bin/sh", Identity: record.HealthCheck, Count: 12, First: at(time.Hour), Last: at(2 * time.Second), Status: "exit 0"}},
			Refused: []record.RefusedExec{{By: "/usr/bin/db", Exe: "/bin/sh", Verdict: record.Denied, Count: 2, Last: at(time.Minute), Reason: "because"}},
		},
	}
	var out bytes.Buffer
	if err := printTree(&out, answer, now, false); err != nil {
		t.Fatal(err)
	}
	want := `db  postgres:16  running, serving  mode enforce

expected
  /entry.sh       while starting  → /bin/sh, /usr/bin/db
  /usr/bin/db     serves
  /usr/bin/ready  health check

runs now: 4
  PID  INSIDE  USER  FOR          SINCE  PROGRAM
  10   1       100   application  1m30s  /usr/bin/db -D /data
  11   7       100   application  1s     ├─ /usr/bin/db (db: writer ?[31m)
  12   ?       0     application  1s     └─ /bin/nc  ! not in the plan, gained root
  13   ?       0     application  1s     (the runtime, before the first program)

ran before, since 2026-01-02 02:04:05
  12×  health check  user 0  last 2s ago: exit 0  /usr/bin/ready  (by sh)

refused
  2×  application  last 1m0s ago  /usr/bin/db → /bin/sh  ! because

2 of the above with "!": declarun explain db
3 events of processes were lost on this machine: what ran before may lack some
`
	var got []string
	for line := range strings.Lines(out.String()) {
		got = append(got, strings.TrimRight(line, " \n"))
	}
	if !slices.Equal(got, strings.Split(strings.TrimSuffix(want, "\n"), "\n")) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), want)
	}
}

// Parents that make a circle, or a chain without an end, are drawn once each.
func TestBranchesEnd(t *testing.T) {
	var live []record.LiveProcess
	for pid := 1; pid <= 300; pid++ {
		live = append(live, record.LiveProcess{PID: pid, Parent: pid - 1})
	}
	live = append(live, record.LiveProcess{PID: 400, Parent: 401}, record.LiveProcess{PID: 401, Parent: 400})
	all := branches(live)
	if len(all) != len(live) {
		t.Errorf("%d of %d are drawn", len(all), len(live))
	}
	for _, b := range all {
		if len(b.lead) > 40*4 {
			t.Fatalf("%d bytes before a program", len(b.lead))
		}
	}
}
