package events

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/record"
)

type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.t }
func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func sink(t *testing.T) (*Sink, *clock, func() []record.Event) {
	c := &clock{t: time.Unix(1e9, 0)}
	name := filepath.Join(t.TempDir(), "log", "events.jsonl")
	s, err := open(name, c.now)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s, c, func() []record.Event { return lines(t, name) }
}

func lines(t *testing.T, name string) []record.Event {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	var out []record.Event
	for line := range strings.Lines(string(data)) {
		if len(line) > maxLine || !strings.HasSuffix(line, "\n") {
			t.Fatalf("line of %d bytes", len(line))
		}
		var e record.Event
		if err := json.Unmarshal([]byte(line), &e); err != nil {
			t.Fatal(err)
		}
		out = append(out, e)
	}
	return out
}

func chroot(container string) record.Event {
	return record.Event{Container: container, Dimension: record.Syscalls, Action: "chroot", Object: "chroot", Verdict: record.Denied, Mode: record.Enforce}
}

func TestSink(t *testing.T) {
	t.Run("the first occurrence is written at once, more of the same only later", func(t *testing.T) {
		s, c, written := sink(t)
		for range 100 {
			s.Report(chroot("a"))
		}
		if got := written(); len(got) != 1 || got[0].Count != 1 || got[0].ID == "" || got[0].Origins == nil {
			t.Fatalf("%+v", got)
		}
		s.Flush(false)
		if got := written(); len(got) != 1 {
			t.Fatalf("%+v", got)
		}
		c.pass(updateEvery)
		s.Flush(false)
		if got := written(); len(got) != 2 || got[1].Count != 100 || got[1].ID != got[0].ID {
			t.Fatalf("%+v", got)
		}
		s.Flush(true)
		if got := written(); len(got) != 2 {
			t.Fatalf("nothing has grown: %+v", got)
		}
		if n := s.Counts("a")[record.Syscalls]; n != 100 {
			t.Errorf("count %d", n)
		}
	})
	t.Run("what goes on for a day is not written every ten seconds", func(t *testing.T) {
		s, c, written := sink(t)
		for range 24 * 360 {
			s.Report(chroot("a"))
			c.pass(updateEvery)
		}
		got := written()
		if len(got) < 24*60/5 || len(got) > 24*60/5+10 {
			t.Errorf("%d lines", len(got))
		}
		if last := got[len(got)-1].Count; last < 24*360-30 {
			t.Errorf("count %d", last)
		}
	})
	t.Run("every field that makes a deviation distinct does", func(t *testing.T) {
		s, _, written := sink(t)
		for _, change := range []func(*record.Event){
			func(e *record.Event) {}, func(e *record.Event) { e.Container = "b" }, func(e *record.Event) { e.Dimension = record.Network },
			func(e *record.Event) { e.Action = "x" }, func(e *record.Event) { e.Object = "x" }, func(e *record.Event) { e.Verdict = record.Observed },
			func(e *record.Event) { e.Process = &record.Process{Exe: "/x"} },
		} {
			e := chroot("a")
			change(&e)
			s.Report(e)
			s.Report(e)
		}
		if got := written(); len(got) != 7 {
			t.Errorf("%d lines", len(got))
		}
	})
	t.Run("the zero verdict is a denial", func(t *testing.T) {
		s, _, written := sink(t)
		s.Report(record.Event{})
		if got := written(); got[0].Verdict != record.Denied {
			t.Errorf("%+v", got)
		}
	})
	t.Run("the end of a container writes what has grown and forgets it", func(t *testing.T) {
		s, _, written := sink(t)
		s.Report(chroot("a"))
		s.Report(chroot("a"))
		s.Report(chroot("b"))
		s.End("a")
		if got := written(); len(got) != 3 || got[2].Count != 2 || got[2].Container != "a" {
			t.Errorf("%+v", got)
		}
		if len(s.seen) != 1 || len(s.owners) != 1 || s.recent.Len() != 1 {
			t.Error("not forgotten")
		}
	})
	t.Run("a container that deviates endlessly is bounded, and that is said", func(t *testing.T) {
		s, c, written := sink(t)
		for i := range 5 * maxPerOwner {
			e := chroot("loud")
			e.Object = fmt.Sprint(i)
			s.Report(e)
			c.pass(time.Second)
		}
		e := chroot("quiet")
		s.Report(e)
		s.Flush(true)
		got := written()
		if len(s.seen) > maxPerOwner+1 {
			t.Errorf("%d remembered", len(s.seen))
		}
		var lost, quiet bool
		for _, e := range got {
			lost = lost || e.Action == "lost" && e.Container == "loud" && e.Count == 4*maxPerOwner
			quiet = quiet || e.Container == "quiet"
		}
		if !lost || !quiet {
			t.Errorf("lost said: %t, others written: %t", lost, quiet)
		}
		if n := s.Counts("loud")[record.Syscalls]; n != 5*maxPerOwner {
			t.Errorf("count %d", n)
		}
	})
	t.Run("a burst is cut", func(t *testing.T) {
		s, _, written := sink(t)
		for i := range 2 * burst {
			e := chroot("a")
			e.Object = fmt.Sprint(i)
			s.Report(e)
		}
		if got := written(); len(got) != burst {
			t.Errorf("%d lines", len(got))
		}
	})
	t.Run("no event is longer than a line may be", func(t *testing.T) {
		s, _, written := sink(t)
		long := strings.Repeat("\x00é", 100_000)
		p := &record.Process{Exe: long, Comm: long, Argv: make([]string, 5000)}
		for i := range p.Argv {
			p.Argv[i] = long
		}
		p.Parent = p // a loop
		e := record.Event{Container: long, Object: long, Action: long, Reason: long, Process: p, Origins: make([]record.Origin, 5000)}
		for i := range e.Origins {
			e.Origins[i].Text = long
		}
		s.Report(e)
		if got := written(); len(got) != 1 {
			t.Errorf("%d lines", len(got))
		}
		if len(p.Argv) != 5000 || len(p.Exe) != len(long) {
			t.Error("the caller's process was changed")
		}
	})
	t.Run("a renamed file is followed by a new one", func(t *testing.T) {
		s, c, written := sink(t)
		s.Report(chroot("a"))
		if err := os.Rename(s.path, s.path+".1"); err != nil {
			t.Fatal(err)
		}
		c.pass(lookEvery)
		s.Report(chroot("b"))
		if got := written(); len(got) != 1 || got[0].Container != "b" {
			t.Errorf("%+v", got)
		}
	})
	t.Run("what is no regular file is not opened", func(t *testing.T) {
		dir := t.TempDir()
		os.WriteFile(filepath.Join(dir, "target"), nil, 0o600)
		os.Symlink("target", filepath.Join(dir, "link"))
		for _, name := range []string{"link", "."} {
			if s, err := Open(filepath.Join(dir, name)); err == nil {
				s.Close()
				t.Errorf("%s was opened", name)
			}
		}
	})
	t.Run("subscribers get lines, a slow one holds up nobody", func(t *testing.T) {
		s, c, _ := sink(t)
		all, stopAll := s.Subscribe("")
		one, stopOne := s.Subscribe("b")
		_, stopSlow := s.Subscribe("")
		defer stopSlow()
		for i := range 150 {
			e := chroot("a")
			e.Object = fmt.Sprint(i)
			s.Report(e)
			c.pass(time.Second)
		}
		s.Report(chroot("b"))
		if e := <-one; e.Container != "b" {
			t.Errorf("%+v", e)
		}
		if e := <-all; e.Container != "a" {
			t.Errorf("%+v", e)
		}
		stopOne()
		stopOne()
		if _, ok := <-one; ok {
			t.Error("not closed")
		}
		s.Close()
		stopAll()
		for range all {
		}
	})
	t.Run("nothing is written after Close, and Close may be repeated", func(t *testing.T) {
		s, _, written := sink(t)
		s.Close()
		s.Close()
		s.Report(chroot("a"))
		if got := written(); len(got) != 0 {
			t.Errorf("%+v", got)
		}
	})
	t.Run("concurrent reports", func(t *testing.T) {
		s, _, written := sink(t)
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for range 200 {
					s.Report(chroot(fmt.Sprint(i % 4)))
				}
			}()
		}
		wg.Wait()
		s.Flush(true)
		var sum uint64
		last := map[string]uint64{}
		for _, e := range written() {
			last[e.Container] = e.Count
		}
		for _, n := range last {
			sum += n
		}
		if sum != 1600 {
			t.Errorf("%d of 1600", sum)
		}
	})
}

func TestSnapshot(t *testing.T) {
	p := Snapshot(os.Getpid())
	exe, _ := os.Executable()
	if p == nil || p.PID != os.Getpid() || p.Exe != exe || p.StartTime == 0 || p.UID != os.Geteuid() || len(p.Argv) == 0 || p.Argv[0] != os.Args[0] {
		t.Fatalf("%+v", p)
	}
	if p.Parent == nil || p.Parent.PID != os.Getppid() {
		t.Errorf("parent: %+v", p.Parent)
	}
	if parent, ok := Parent(os.Getpid()); !ok || parent != os.Getppid() {
		t.Errorf("parent: %d", parent)
	}
	if _, ok := Parent(1 << 30); ok {
		t.Error("a process that is not there has a parent")
	}
	depth := 0
	for q := p.Parent; q != nil; q = q.Parent {
		depth++
	}
	if depth > maxParents {
		t.Errorf("%d ancestors", depth)
	}
	if p := Snapshot(1 << 30); p != nil {
		t.Errorf("%+v", p)
	}
}

func TestWordsForEveryDimension(t *testing.T) {
	for _, d := range record.Dimensions() {
		for _, v := range []record.Verdict{record.Denied, record.Observed, record.Reported} {
			if Reason(d, "act", "object", v, record.Serving) == "" || Remedy(d, "act", "object") == "" {
				t.Errorf("%s %s: no words", d, v)
			}
		}
	}
	if got := Remedy(record.Network, "listen", "tcp/4444"); !strings.Contains(got, "EXPOSE 4444 ") {
		t.Error(got)
	}
}

func FuzzStatus(f *testing.F) {
	f.Add([]byte("Name:\ta\nTgid:\t12\nPPid:\t1\nUid:\t0\t7\t0\t0\n"), []byte("12 (a) b) S 1 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4711 0\n"))
	f.Add([]byte("Uid:\nTgid:x"), []byte(")"))
	f.Fuzz(func(t *testing.T, stat, st []byte) {
		dir := t.TempDir()
		os.Mkdir(filepath.Join(dir, "7"), 0o700)
		os.WriteFile(filepath.Join(dir, "7", "status"), stat, 0o600)
		os.WriteFile(filepath.Join(dir, "7", "stat"), st, 0o600)
		snapshot(dir, 7)
	})
}
