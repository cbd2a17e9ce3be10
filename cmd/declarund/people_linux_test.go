package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

var noon = time.Date(2024, 5, 1, 12, 0, 0, 0, time.UTC)

func modes(all record.Mode) map[record.Dimension]record.Mode {
	m := map[record.Dimension]record.Mode{}
	for _, d := range record.Dimensions() {
		m[d] = all
	}
	return m
}

func containers() []wire.Container {
	mixed := modes(record.Enforce)
	mixed[record.Storage] = record.Audit
	mixed[record.Network] = record.Off
	return []wire.Container{
		{Key: wire.Key{Root: "/run/runc", ID: "0123456789abcdef0123"}, Name: "db", Image: "demo/postgres:latest", State: "running", Phase: record.Serving,
			Mode: modes(record.Enforce), Since: noon.Add(-90 * time.Second), Events: map[record.Dimension]uint64{record.Processes: 2, record.Network: 1, record.Storage: 0}},
		{Key: wire.Key{ID: "c2"}, Image: "debian:12", State: "created", Phase: record.Starting, Mode: mixed, Since: noon, Wide: true, WideReason: "bash without a script",
			Notes: []plan.Note{{Dimension: record.Network, Text: "shared with c1"}}},
	}
}

func TestStatusText(t *testing.T) {
	var b bytes.Buffer
	if err := printStatus(&b, containers(), noon); err != nil {
		t.Fatal(err)
	}
	const want = `CONTAINER     NAME  IMAGE                 STATE    PHASE     MODE                                SINCE  DEVIATIONS
0123456789ab  db    demo/postgres:latest  running  serving   enforce                             1m30s  network 1, processes 2
c2                  debian:12             created  starting  enforce, storage=audit network=off  0s     none
c2 is wide: bash without a script
c2 network: shared with c1
`
	if b.String() != want {
		t.Errorf("%s\nwant\n%s", b.String(), want)
	}
	b.Reset()
	if err := printStatus(&b, nil, noon); err != nil || b.String() != "no container is supervised\n" {
		t.Errorf("%q %v", b.String(), err)
	}
}

func denied() record.Event {
	return record.Event{Time: noon, ID: "e1", Container: "0123456789abcdef", Name: "db", Image: "demo/postgres:latest", Dimension: record.Processes, Action: "execve",
		Object: "/usr/bin/wget", Verdict: record.Denied, Mode: record.Enforce, Phase: record.Serving, Identity: record.Application, Mechanism: "fanotify",
		Process: &record.Process{PID: 812, Exe: "/usr/bin/dash", Argv: []string{"sh", "-c", "wget evil"}, UID: 101,
			Parent: &record.Process{PID: 700, Exe: "/usr/lib/postgresql/15/bin/postgres", UID: 101}},
		Reason: "nothing in the image declares that /usr/bin/wget is run", Remedy: "name it in ENTRYPOINT, CMD, HEALTHCHECK or a script", Count: 3}
}

func TestEventLine(t *testing.T) {
	e := denied()
	e.Time = e.Time.Local()
	at := e.Time.Format("15:04:05.000")
	if got, want := eventLine(e, false), at+" db denied processes execve /usr/bin/wget (fanotify) by /usr/bin/dash[812] ×3"; got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
	if got := eventLine(e, true); !strings.Contains(got, " \x1b[31mdenied\x1b[0m ") {
		t.Errorf("%q", got)
	}
	e.Verdict, e.Name, e.Process, e.Count = record.Observed, "", nil, 1
	if got, want := eventLine(e, true), at+" 0123456789ab \x1b[33mobserved\x1b[0m processes execve /usr/bin/wget (fanotify)"; got != want {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}

// Paths, arguments and names are a container's to choose.
func TestNothingOfAContainerDrivesTheTerminal(t *testing.T) {
	const evil = "a\x1b]0;x\x07\x1b[2J\r\nb\u009b31m\u202e\u2028\xff"
	process := &record.Process{Exe: evil, Argv: []string{evil}, Parent: &record.Process{Exe: evil}}
	e := record.Event{ID: evil, Container: evil, Name: evil, Image: evil, Action: evil, Object: evil, Process: process, Reason: evil, Remedy: evil,
		Origins: []record.Origin{{Source: record.FromScript, At: evil, Text: evil}}}
	var b bytes.Buffer
	if err := explain(&b, []record.Event{e}, "", 0); err != nil {
		t.Fatal(err)
	}
	c := wire.Container{Key: wire.Key{ID: evil}, Name: evil, Image: evil, Wide: true, WideReason: evil, Mode: modes(record.Enforce),
		Notes: []plan.Note{{Text: evil}}, Plan: &plan.Plan{Image: plan.Image{Ref: evil}}}
	if err := printStatus(&b, []wire.Container{c}, noon); err != nil {
		t.Fatal(err)
	}
	if err := printFindings(&b, []finding{{what: "x", detail: evil, remedy: evil}}); err != nil {
		t.Fatal(err)
	}
	b.WriteString(eventLine(e, false))
	for _, r := range b.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%q in %q", r, b.String())
		}
	}
	if strings.Contains(b.String(), "\nb") {
		t.Error("a container breaks lines")
	}
}

func TestExplain(t *testing.T) {
	listen := record.Event{Time: noon, ID: "e2", Container: "fedcba", Dimension: record.Network, Action: "listen", Object: "tcp/4444", Verdict: record.Denied, Mechanism: "seccomp",
		Reason: "nothing declares listen tcp/4444", Origins: []record.Origin{{Source: record.FromImage, At: "config.ExposedPorts", Text: "EXPOSE 5432/tcp"}}, Count: 1}
	events := []record.Event{denied(), listen}
	at := noon.Local().Format("15:04:05.000")
	first := at + ` db denied processes execve /usr/bin/wget (fanotify) by /usr/bin/dash[812] ×3
  event      e1
  why        nothing in the image declares that /usr/bin/wget is run
  process    812 /usr/bin/dash sh -c wget evil uid 101
  process    700 /usr/lib/postgresql/15/bin/postgres  uid 101
  declared   by nothing
  way out    name it in ENTRYPOINT, CMD, HEALTHCHECK or a script
`
	second := at + ` fedcba denied network listen tcp/4444 (seccomp)
  event      e2
  why        nothing declares listen tcp/4444
  declared   image config.ExposedPorts: EXPOSE 5432/tcp
`
	for _, test := range []struct {
		which string
		last  int
		want  string
	}{{"", 10, first + "\n" + second}, {"", 1, second}, {"db", 10, first}, {"e1", 10, first}, {"0123", 10, first}, {"e2", 0, second}, {"fed", 10, second}} {
		var b bytes.Buffer
		if err := explain(&b, events, test.which, test.last); err != nil || b.String() != test.want {
			t.Errorf("%q: %v\n%s\nwant\n%s", test.which, err, b.String(), test.want)
		}
	}
	var b bytes.Buffer
	var way interface{ Remedy() string }
	if err := explain(&b, events, "other", 10); !errors.As(err, &way) || b.Len() != 0 {
		t.Errorf("%v %s", err, b.String())
	}
	if err := explain(&b, nil, "", 10); err != nil || b.String() != "nothing has deviated from its plan\n" {
		t.Errorf("%v %s", err, b.String())
	}
}

func TestReadEvents(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.jsonl")
	if events, err := readEvents(path); err != nil || events != nil {
		t.Errorf("no log is an error: %v %v", events, err)
	}
	content := `{"id":"a","time":"2024-05-01T12:00:00Z","count":1}
{"id":"b","count":1}
garbage
{"id":"","count":9}
[1]
{"id":"a","time":"2024-05-01T13:00:00Z","count":7}
{"id":"c","cou`
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	events, err := readEvents(path)
	if err != nil || len(events) != 2 || events[0].ID != "a" || events[0].Count != 7 || !events[0].Time.Equal(noon) || events[1].ID != "b" {
		t.Errorf("%v %+v", err, events)
	}
}

func TestCommandsThatAskTheSupervisor(t *testing.T) {
	c := newCommand(t)
	asked := make(chan wire.Request, 10)
	c.supervisor(t, func(conn *net.UnixConn, req wire.Request) {
		asked <- req
		switch {
		case req.Operation == wire.Status && req.Status.Container == "gone":
			wire.WriteAnswer(conn, wire.Answer{Error: "no container gone", Remedy: "declarun status"})
		case req.Operation == wire.Status && req.Status.Container == "none":
			wire.WriteAnswer(conn, wire.Answer{})
		case req.Operation == wire.Status:
			wire.WriteAnswer(conn, wire.Answer{Status: containers()})
		case req.Operation == wire.Watch && req.Watch.Container == "gone":
			wire.WriteAnswer(conn, wire.Answer{Error: "too many watchers"})
		case req.Operation == wire.Watch:
			wire.WriteAnswer(conn, wire.Answer{})
			time.Sleep(4 * patienceOfTest) // longer than an answer may take
			wire.WriteEvent(conn, denied())
			wire.WriteEvent(conn, denied())
		}
	})
	o := c.run(t, "status", "--plan", "db")
	if req := <-asked; o.code != 0 || !strings.Contains(o.stdout, "0123456789ab  db ") || req.Status.Container != "db" || !req.Status.WithPlan {
		t.Errorf("%+v %+v", o, req)
	}
	o = c.run(t, "status", "--json")
	var all []wire.Container
	if err := json.Unmarshal([]byte(o.stdout), &all); err != nil || len(all) != 2 || all[0].Name != "db" || o.code != 0 {
		t.Errorf("%+v %v", o, err)
	}
	if o := c.run(t, "status", "--json", "none"); o.stdout != "[]\n" || o.code != 0 {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "status", "none"); o.code != 1 || !strings.HasPrefix(o.stderr, "declarun: status: no container \"none\" is supervised\n") {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "status", "gone"); o.code != 1 || o.stderr != "declarun: no container gone\ndeclarun: try: declarun status\n" {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "watch", "gone"); o.code != 1 || o.stderr != "declarun: too many watchers\n" {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "watch", "db"); o.code != 0 || strings.Count(o.stdout, " db denied processes execve /usr/bin/wget (fanotify) by /usr/bin/dash[812] ×3\n") != 2 {
		t.Errorf("%+v", o)
	}
	o = c.run(t, "watch", "--json")
	var e record.Event
	first, _, _ := strings.Cut(o.stdout, "\n")
	if err := json.Unmarshal([]byte(first), &e); err != nil || e.Object != "/usr/bin/wget" || o.code != 0 {
		t.Errorf("%+v %v", o, err)
	}

	raw, err := json.Marshal(denied())
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, "events.jsonl", string(raw)+"\n", 0o644)
	if o := c.run(t, "explain", "db"); o.code != 0 || !strings.HasPrefix(o.stdout, "12:00:00.000 db denied") || !strings.Contains(o.stdout, "  way out    name it") {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "explain", "other"); o.code != 1 || !strings.Contains(o.stderr, `no deviation of "other" in the event log`) {
		t.Errorf("%+v", o)
	}
}

func TestProbeTracing(t *testing.T) {
	for _, row := range []struct {
		claim  string
		scope  string
		err    error
		answer answer
		needed bool
	}{
		{"only parents may attach", "1\n", nil, can, false},
		{"only administrators may", "2\n", nil, can, false},
		{"everybody may", "0\n", nil, cannot, false},
		{"nobody may", "3\n", nil, cannot, true},
		{"no Yama", "", os.ErrNotExist, cannot, false},
		{"who knows", "", os.ErrPermission, untold, false},
	} {
		if f := probeTracing([]byte(row.scope), row.err); f.answer != row.answer || f.needed != row.needed {
			t.Errorf("%s: %+v", row.claim, f)
		}
	}
}

func TestDoctorText(t *testing.T) {
	all := []finding{
		{what: "runs as root", answer: can, needed: true},
		{what: "low-level runtime", answer: can, detail: "/usr/sbin/runc 1.1.5", needed: true},
		{what: "reports of refused writes", answer: cannot, detail: "no kprobes", remedy: "another kernel"},
		{what: "packet filter", answer: untold, detail: "too many open files", remedy: "close some"},
	}
	const want = `yes            runs as root
yes            low-level runtime          /usr/sbin/runc 1.1.5
NO             reports of refused writes  no kprobes
               try: another kernel
could not tell packet filter              too many open files
               try: close some
`
	var b bytes.Buffer
	if err := printFindings(&b, all); err != nil || b.String() != want {
		t.Errorf("%v\n%s\nwant\n%s", err, b.String(), want)
	}
	all[0].answer = cannot
	all[1].answer = untold // what is needed and not known is not there
	if err := printFindings(&bytes.Buffer{}, all); err == nil || complain(&b, err) != 1 || !strings.HasPrefix(err.Error(), "2 of the above") {
		t.Error(err)
	}
}

func TestProbe(t *testing.T) {
	for _, test := range []struct {
		claim string
		err   error
		want  answer
	}{{"it did it", nil, can}, {"it is not known there", os.ErrInvalid, cannot}, {"no descriptor was left to ask with", os.NewSyscallError("open", unix.EMFILE), untold}} {
		if f := probe("x", true, "", func() (string, error) { return "", test.err }); f.answer != test.want {
			t.Errorf("%s: %v", test.claim, f)
		}
	}
	if got := brief(errors.Join(errors.New(strings.Repeat("é", 200)), errors.New("second"))); len([]rune(got)) != 120 || !strings.HasSuffix(got, "…") {
		t.Errorf("%q", got)
	}
}
