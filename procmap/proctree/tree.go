package proctree

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// Bounds of one container.
const (
	maxLive    = 16384 // processes; more are counted
	maxBefore  = 256   // kinds of process that ran before; the oldest goes
	maxRefused = 128   // kinds of refused execution
	maxArgs    = 64
	maxArg     = 256
)

// process is one that lives.
type process struct {
	record.LiveProcess

	saved     uint32 // saved set-user-ID
	user      bool   // all three users are known
	caps      uint64 // permitted
	capsKnown bool
	crashed   bool
	executed  bool   // a program by itself, rather than being a copy of its parent
	forked    uint64 // CLOCK_MONOTONIC
	looked    uint64 // at /proc
	missing   bool   // /proc did not have it when it was read last
}

type ranKey struct {
	exe, parent string
	identity    record.Identity
	uid         uint32
}

type refusedKey struct {
	by, exe  string
	identity record.Identity
	verdict  record.Verdict
}

// container is one tree. It knows nothing of /proc.
type container struct {
	live    map[int]*process
	before  map[ranKey]*record.PastProcess
	refused map[refusedKey]*record.RefusedExec
	since   time.Time
	lost    uint64
	omitted uint64
	init    int
}

func newContainer(init int, now time.Time) *container {
	return &container{live: map[int]*process{}, before: map[ranKey]*record.PastProcess{}, refused: map[refusedKey]*record.RefusedExec{}, since: now, init: init}
}

// fork enters a child. It has what its parent has until it executes something.
func (c *container) fork(parent *process, pid int, mono uint64, now time.Time) *process {
	if old := c.live[pid]; old != nil { // its end was not seen: the number was given again
		c.end(old, "not seen", now)
	}
	if len(c.live) >= maxLive {
		c.omitted++
		return nil
	}
	p := *parent
	p.PID, p.Inside, p.Parent, p.StartTime, p.Since, p.forked = pid, 0, parent.PID, 0, now, mono
	p.Odd, p.crashed, p.missing, p.executed = nil, false, false, false
	c.live[pid] = &p
	return &p
}

// end moves a process to what ran before. Its children lose their parent: /proc
// says later who took them.
func (c *container) end(p *process, status string, now time.Time) {
	delete(c.live, p.PID)
	for _, child := range c.live {
		if child.Parent == p.PID {
			child.Parent = c.init
		}
	}
	c.ran(p, status, now)
}

// ran counts a process among what ran before.
func (c *container) ran(p *process, status string, now time.Time) {
	if !p.Ran {
		return // the runtime's own
	}
	key := ranKey{p.Exe, c.program(p.Parent), p.Identity, p.UID}
	r := c.before[key]
	if r == nil {
		if len(c.before) >= maxBefore {
			c.omitted += c.dropOldest()
		}
		r = &record.PastProcess{Exe: key.exe, Parent: key.parent, Identity: key.identity, UID: key.uid, First: p.Since}
		c.before[key] = r
	}
	r.Count++
	r.Last, r.Argv, r.Status, r.Phase = now, p.Argv, status, p.Phase
	r.Odd = merge(r.Odd, p.Odd)
}

func (c *container) dropOldest() (n uint64) {
	var oldest ranKey
	var last time.Time
	for k, r := range c.before {
		if last.IsZero() || r.Last.Before(last) {
			oldest, last = k, r.Last
		}
	}
	n = c.before[oldest].Count
	delete(c.before, oldest)
	return n
}

func (c *container) program(pid int) string {
	if p := c.live[pid]; p != nil {
		return p.Exe
	}
	return ""
}

// maxOdd bounds what is noted of one process, or of one kind.
const maxOdd = 8

func merge(all, more []string) []string {
	for _, m := range more {
		if len(all) < maxOdd && !slices.Contains(all, m) {
			all = append(all[:len(all):len(all)], m)
		}
	}
	return all
}

func (c *container) refuse(by string, exe string, id record.Identity, v record.Verdict, reason string, now time.Time) {
	key := refusedKey{short(by), short(exe), id, v}
	r := c.refused[key]
	if r == nil {
		if len(c.refused) >= maxRefused {
			c.omitted++
			return
		}
		r = &record.RefusedExec{By: key.by, Exe: key.exe, Identity: id, Verdict: v}
		c.refused[key] = r
	}
	r.Count++
	r.Last, r.Reason = now, short(reason)
}

const maxString = 1024

func short(s string) string {
	return strings.Clone(s[:min(len(s), maxString)])
}

func shortArgs(args []string) []string {
	out := make([]string, 0, min(len(args), maxArgs))
	for _, a := range args[:min(len(args), maxArgs)] {
		out = append(out, strings.Clone(a[:min(len(a), maxArg)]))
	}
	return out
}

// tree is a copy, in an order that people expect: parents before children, and
// siblings as they began; kinds by when they were seen last.
func (c *container) tree() record.Tree {
	t := record.Tree{Live: []record.LiveProcess{}, Before: []record.PastProcess{}, Refused: []record.RefusedExec{}, Since: c.since, Lost: c.lost, Omitted: c.omitted}
	for _, p := range c.live {
		if p.missing {
			continue
		}
		q := p.LiveProcess
		q.Odd, q.Argv = slices.Clone(p.Odd), slices.Clone(p.Argv)
		t.Live = append(t.Live, q)
	}
	slices.SortFunc(t.Live, func(a, b record.LiveProcess) int {
		return cmp.Or(cmp.Compare(a.StartTime, b.StartTime), cmp.Compare(a.PID, b.PID))
	})
	for _, r := range c.before {
		q := *r
		q.Argv, q.Odd = slices.Clone(r.Argv), slices.Clone(r.Odd)
		t.Before = append(t.Before, q)
	}
	slices.SortFunc(t.Before, func(a, b record.PastProcess) int {
		return cmp.Or(a.First.Compare(b.First), strings.Compare(a.Exe, b.Exe))
	})
	for _, r := range slices.Collect(maps.Values(c.refused)) {
		t.Refused = append(t.Refused, *r)
	}
	slices.SortFunc(t.Refused, func(a, b record.RefusedExec) int {
		return cmp.Or(a.Last.Compare(b.Last), strings.Compare(a.Exe, b.Exe))
	})
	return t
}

// restore takes back what an earlier worker knew of a container that lives:
// what ran before and was refused, and what is known of processes that are the same still.
func (c *container) restore(t record.Tree) {
	for _, r := range t.Before[:min(len(t.Before), maxBefore)] {
		c.before[ranKey{r.Exe, r.Parent, r.Identity, r.UID}] = &r
	}
	for _, r := range t.Refused[:min(len(t.Refused), maxRefused)] {
		c.refused[refusedKey{r.By, r.Exe, r.Identity, r.Verdict}] = &r
	}
	for _, p := range t.Live[:min(len(t.Live), maxLive)] {
		if p.PID > 0 && p.StartTime > 0 { // else nobody could tell whether it is the same
			c.live[p.PID] = &process{LiveProcess: p}
		}
	}
	c.since, c.lost, c.omitted = t.Since, t.Lost, t.Omitted
}

// crashes says which signals are a crash: those that by default end a process with
// a core, without SIGQUIT, which is somebody's wish.
var crashes = map[uint32]string{4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 11: "SIGSEGV", 24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS"}
