package supervise

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

// tree is a container's processes, with the truth about each.
type tree struct {
	now    uint64
	next   int
	procs  map[int]*treeProc
	memory map[proc]uint64 // of those that are proved: which execution's it is
}

type treeProc struct {
	member
	parent  int
	program bool // it runs the program with the loop
	loop    bool // in truth: it made a call within the loop, or was forked by one that did
	wiped   bool // nobody can read that from its stack
	reaper  bool // orphans below it become its children
	pending bool // an execution of it was let through and is not over
	memory  uint64
}

// newTree has an init with the number 1, which may be the program itself.
func newTree(program bool) *tree {
	t := &tree{procs: map[int]*treeProc{}, memory: map[proc]uint64{}}
	t.procs[1] = &treeProc{member: member{proc: proc{1, 0}, image: "1"}, program: program, reaper: true}
	t.next = 2
	return t
}

func (t *tree) fork(parent int) int {
	p := *t.procs[parent]
	t.now++
	p.proc, p.parent, p.reaper, p.pending = proc{t.next, t.now}, parent, false, false
	t.procs[t.next] = &p
	t.next++
	return p.PID
}

func (t *tree) exec(pid int, program bool) {
	t.now++
	p := t.procs[pid]
	p.program, p.loop, p.wiped, p.pending = program, false, false, false
	p.image, p.memory = fmt.Sprint("image ", t.now), t.now
}

func (t *tree) exit(pid int) {
	t.now++
	to := t.procs[pid].parent
	for ; to != 1 && !t.procs[to].reaper; to = t.procs[to].parent {
	}
	delete(t.procs, pid)
	for _, p := range t.procs {
		if p.parent == pid {
			p.parent = to
		}
	}
}

// census is what a look at all processes gives now.
func (t *tree) census(l *ledger) census {
	t.now++
	c := census{at: t.now, stable: true}
	t.now++
	for _, p := range t.procs {
		if !p.program {
			continue
		}
		m := p.member
		m.seen, m.whole = p.loop && !p.wiped, true
		if had := t.proved(l, p); had != nil {
			m.image = had.Image
		}
		for at := p.parent; at != 0; at = t.procs[at].parent {
			m.above = append(m.above, t.procs[at].proc)
		}
		c.members = append(c.members, m)
	}
	return c
}

// proved is what the ledger has of a process that has not executed since.
func (t *tree) proved(l *ledger, p *treeProc) *proof {
	had := l.Proofs[p.proc]
	if had == nil {
		return nil
	}
	if at, ok := t.memory[p.proc]; ok && at != p.memory {
		delete(l.Proofs, p.proc)
		delete(t.memory, p.proc)
		return nil
	}
	t.memory[p.proc] = p.memory
	return had
}

// take is what the supervisor does with a look at all processes.
func (t *tree) take(l *ledger) {
	l.take(t.census(l))
	for _, p := range t.procs {
		t.proved(l, p)
	}
}

// chain is what is found above a process that makes a call.
func (t *tree) chain(l *ledger, pid int) (chain []member) {
	for p := t.procs[pid]; p != nil && p.program; p = t.procs[p.parent] {
		m := p.member
		if had := t.proved(l, p); had != nil {
			m.image = had.Image
		}
		chain = append(chain, m)
	}
	return chain
}

func TestLedger(t *testing.T) {
	for _, row := range []struct {
		claim  string
		init   bool // init is the program
		do     func(*tree, *ledger) int
		proved bool
	}{
		{"a process that nobody looked at is not proved", true, func(tr *tree, l *ledger) int { return 1 }, false},
		{"a worker that a proved master forks is", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.take(l)
			return tr.fork(1)
		}, true},
		{"and what that one forks", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.take(l)
			return tr.fork(tr.fork(tr.fork(1)))
		}, true},
		{"and an orphan of it", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.take(l)
			worker := tr.fork(1)
			child := tr.fork(worker)
			tr.exit(worker)
			return child
		}, true},
		{"also below an init that is another program", false, func(tr *tree, l *ledger) int {
			master := tr.fork(1)
			tr.exec(master, true)
			tr.procs[master].loop = true
			tr.take(l)
			worker := tr.fork(master)
			child := tr.fork(worker)
			tr.exit(worker)
			return child
		}, true},
		{"a helper forked before the loop is not", true, func(tr *tree, l *ledger) int {
			helper := tr.fork(1)
			tr.procs[1].loop = true
			tr.take(l)
			return helper
		}, false},
		{"nor what it forks later", true, func(tr *tree, l *ledger) int {
			helper := tr.fork(1)
			tr.procs[1].loop = true
			tr.take(l)
			return tr.fork(helper)
		}, false},
		{"nor its orphan, which init has adopted", true, func(tr *tree, l *ledger) int {
			helper := tr.fork(1)
			tr.procs[1].loop = true
			tr.take(l)
			between := tr.fork(helper)
			child := tr.fork(between)
			tr.exit(between)
			tr.take(l)
			tr.exit(helper)
			tr.take(l)
			return child
		}, false},
		{"nor an orphan that a subreaper in the loop has adopted", false, func(tr *tree, l *ledger) int {
			master := tr.fork(1)
			tr.exec(master, true)
			tr.procs[master].reaper = true
			helper := tr.fork(master)
			tr.procs[master].loop = true
			tr.take(l)
			between := tr.fork(helper)
			child := tr.fork(between)
			tr.exit(between)
			return child
		}, false},
		{"a worker beside an early helper is not: it may be the helper's", true, func(tr *tree, l *ledger) int {
			tr.fork(1)
			tr.procs[1].loop = true
			tr.take(l)
			return tr.fork(1)
		}, false},
		{"but where the helper is not below its parent it is", false, func(tr *tree, l *ledger) int {
			launcher := tr.fork(1)
			tr.exec(launcher, true)
			master := tr.fork(launcher)
			tr.procs[master].loop = true
			tr.take(l)
			return tr.fork(master)
		}, true},
		{"and again once the helper is gone", true, func(tr *tree, l *ledger) int {
			helper := tr.fork(1)
			tr.procs[1].loop = true
			tr.take(l)
			tr.exit(helper)
			tr.take(l)
			return tr.fork(1)
		}, true},
		{"who was forked in the same tick as the look is not", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			c := tr.census(l)
			l.take(c)
			child := tr.fork(1)
			tr.procs[child].Start = c.at
			return child
		}, false},
		{"also where its image says nothing", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.now += settled
			c := tr.census(l)
			l.take(c)
			child := tr.fork(1)
			tr.procs[child].Start, tr.procs[child].image = c.at, "changed"
			return child
		}, false},
		{"nor beside a launcher that is not in the loop", false, func(tr *tree, l *ledger) int {
			launcher := tr.fork(1)
			tr.exec(launcher, true)
			master := tr.fork(launcher)
			tr.procs[master].loop = true
			tr.now += settled
			c := tr.census(l)
			l.take(c)
			child := tr.fork(master)
			tr.procs[child].Start, tr.procs[child].image = c.at, "changed"
			return child
		}, false},
		{"nothing follows from a look that may have missed somebody", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			c := tr.census(l)
			c.stable = false
			l.take(c)
			return tr.fork(1)
		}, false},
		{"a child that executes the program again is not", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.take(l)
			child := tr.fork(1)
			l.Executed = tr.now
			tr.exec(child, true)
			return child
		}, false},
		{"nor what that one forks", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.take(l)
			child := tr.fork(1)
			l.Executed = tr.now
			tr.exec(child, true)
			tr.take(l)
			return tr.fork(child)
		}, false},
		{"a worker that changes its own image is, where nobody has executed anything for a while", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.now += settled
			tr.take(l)
			child := tr.fork(1)
			tr.procs[child].image = "changed"
			return child
		}, true},
		{"and is not where somebody has", true, func(tr *tree, l *ledger) int {
			tr.procs[1].loop = true
			tr.now += settled
			tr.take(l)
			child := tr.fork(1)
			l.Executed = tr.now
			tr.procs[child].image = "changed"
			return child
		}, false},
		{"who wiped its stack stays proved", true, func(tr *tree, l *ledger) int {
			worker := tr.fork(1)
			tr.procs[1].loop, tr.procs[worker].loop = true, true
			tr.take(l)
			tr.procs[worker].wiped = true
			tr.take(l)
			return worker
		}, true},
	} {
		tr, l := newTree(row.init), &ledger{}
		pid := row.do(tr, l)
		p := tr.procs[pid]
		if got := l.Proofs[p.proc] != nil || l.descends(tr.chain(l, pid)); got != row.proved {
			t.Errorf("%s: %t", row.claim, got)
		}
		if row.proved && !(p.loop || tr.procs[1].loop) {
			t.Errorf("%s: it is not in the loop at all", row.claim)
		}
	}
}

// Whatever a tree of processes does, who is not in the loop is not proved.
func TestLedgerNeverProvesWhoIsNotInTheLoop(t *testing.T) {
	proved, born := 0, 0
	for seed := range uint64(4000) {
		random := rand.New(rand.NewPCG(seed, 7))
		tr, l := newTree(random.IntN(2) == 0), &ledger{}
		var log []string
		for range 60 {
			pids := make([]int, 0, len(tr.procs))
			for pid := range tr.procs {
				pids = append(pids, pid)
			}
			slices.Sort(pids)
			pid := pids[random.IntN(len(pids))]
			p := tr.procs[pid]
			what := random.IntN(20)
			log = append(log, fmt.Sprintf("%d: %d", pid, what))
			switch {
			case what < 6 && len(pids) < 12:
				tr.fork(pid)
			case what == 6 && pid != 1:
				tr.exit(pid)
			case what == 7: // let through…
				l.Executed = tr.now
				p.pending = true
			case what < 10 && p.pending: // …and over
				tr.exec(pid, random.IntN(3) > 0)
			case what < 13 && p.program:
				p.loop = true
			case what == 13 && p.loop:
				p.wiped = true
			case what == 14 && p.loop && p.program: // nobody else does
				p.image = fmt.Sprint("changed ", tr.now)
			case what == 15:
				p.reaper = true
			case what == 16:
				tr.now += settled / 2
				// What was let through is over after a while.
				for _, q := range tr.procs {
					if q.pending && l.Executed+settled <= tr.now {
						q.pending = false
					}
				}
			case what > 16:
				tr.take(l)
			}
			for pid, p := range tr.procs {
				if !p.program {
					continue
				}
				had := tr.proved(l, p)
				is := l.descends(tr.chain(l, pid))
				if (had != nil || is) && !p.loop {
					t.Fatalf("seed %d: %d is taken for one in the loop: %+v\n%v", seed, pid, p, log)
				}
				if had != nil {
					proved++
				} else if is {
					born++
				}
			}
		}
	}
	if proved == 0 || born == 0 {
		t.Errorf("%d proved by their stack, %d by descent: nothing was tried", proved, born)
	}
}
