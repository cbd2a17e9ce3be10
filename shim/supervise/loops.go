package supervise

import (
	"cmp"
	"maps"
	"slices"
)

// A call that a program needs only before its service loop (plan.Syscall.UntilLoop)
// is taken away from each of its processes once that is proved to be in the loop.
// There are two proofs:
//
//   - Its own stack: one of the loop's return addresses (plan.Loop) is a word of
//     it, so that the process, or the one it was forked from, has made a call
//     within the loop.
//   - Descent: it was forked by a process that was in the loop by then. This is
//     for a process that wiped its stack before anybody looked at it.
//
// The ledger decides on descent. It is pure, and it errs to one side only: what
// is not certain is not proved. A helper that the program forked before its loop
// (Apache's cgid daemon, the early children of postgres) is not in the loop, and
// nor is what it forks. Such a child loses its parent when the helper ends, and is
// then a child of the container's init or of a subreaper, which may well be the
// very process that is proved to be in the loop. So a parent says something only
// if no process of the program that was not proved was below it at that time: what
// is born below it later can then only have been forked by a proved one. Where
// every process of the program was proved at some time, whatever is born later
// is, whoever its parent is now.
//
// Not in between: an execution. A program that is executed again starts from the
// beginning. Forks of one execution have the same image (see sight); where images
// differ, nothing is concluded, unless nobody has executed anything since long
// before: a process can change what tells its image, and would otherwise be free
// by that.

// proc is one process: a number is given again, with another start.
type proc struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // clock ticks since boot
}

// member is a process that runs the program.
type member struct {
	proc
	image string
	seen  bool   // its own stack proves it
	above []proc // its ancestors, nearest first
	whole bool   // above goes up to the end
}

// census is what was found of one program in one container.
type census struct {
	at      uint64 // clock ticks when it ended
	members []member
	// stable: a second look found no other members, so that none was missed that
	// was alive when the census ended.
	stable bool
}

// record of one process that is in its loop.
type proof struct {
	Image string `json:"image"`
	// Born is true where it was forked in the loop: then all it forks is, too.
	Born bool `json:"born,omitempty"`
	// Clear is the first time when no process below it was left unproved, and Still
	// the last; 0 for never. What is forked below it after either is in the loop.
	Clear uint64 `json:"clear,omitempty"`
	Still uint64 `json:"still,omitempty"`
}

// ledger keeps the proofs of one program in one container. The zero ledger has none.
type ledger struct {
	Proofs map[proc]*proof `json:"-"`
	// Sealed is, by image, the first time when every process of the program was
	// proved, and Still the last time.
	Sealed map[string]uint64 `json:"sealed,omitempty"`
	Still  uint64            `json:"still,omitempty"`
	// Executed is when the application last was let through an execve.
	Executed uint64 `json:"executed,omitempty"`
}

// settled is how long after an execve was let through it is certain to be over,
// in clock ticks (100 a second on every architecture). The exec guard can hold one up.
const settled = 60 * 100

// quiet tells whether no execution can have ended after a time.
func (l *ledger) quiet(since uint64) bool { return since > 0 && l.Executed+settled <= since }

// prove records what a process's own stack or its descent says.
func (l *ledger) prove(p proc, image string, born bool) *proof {
	if l.Proofs == nil {
		l.Proofs = map[proc]*proof{}
	}
	had := l.Proofs[p]
	if had == nil {
		had = &proof{Image: image}
		l.Proofs[p] = had
	}
	had.Born = had.Born || born
	return had
}

// descends tells whether chain[0] was forked in the loop. What follows in chain
// are its parent, the parent of that one, and so on, as long as they run the
// program: only what a fork makes runs what its parent runs.
func (l *ledger) descends(chain []member) bool {
	if len(chain) == 0 {
		return false
	}
	p := chain[0]
	if at := l.Sealed[p.image]; at > 0 && p.Start > at || p.Start > l.Still && l.quiet(l.Still) {
		return true
	}
	if len(chain) == 1 {
		return false
	}
	parent := chain[1]
	known := l.Proofs[parent.proc]
	switch {
	case known == nil:
		return p.image == parent.image && l.descends(chain[1:])
	case p.image == known.Image:
		return known.Born || known.Clear > 0 && p.Start > known.Clear
	case known.Born:
		return l.quiet(parent.Start)
	}
	return p.Start > known.Still && l.quiet(known.Still)
}

// take draws the conclusions from a census. It gives how many are proved.
func (l *ledger) take(c census) (proved int) {
	slices.SortStableFunc(c.members, func(a, b member) int { return cmp.Compare(a.Start, b.Start) })
	by := map[proc]member{}
	for _, m := range c.members {
		by[m.proc] = m
	}
	if c.stable { // the others are gone, or execute something else
		maps.DeleteFunc(l.Proofs, func(p proc, _ *proof) bool { _, alive := by[p]; return !alive })
	}
	var unproved []member
	for _, m := range c.members {
		switch {
		case l.Proofs[m.proc] != nil:
		case m.seen:
			l.prove(m.proc, m.image, false)
		case l.descends(chainOf(m, by)):
			l.prove(m.proc, m.image, true)
		default:
			unproved = append(unproved, m)
		}
	}
	proved = len(c.members) - len(unproved)
	if !c.stable {
		return proved
	}
	for p, had := range l.Proofs {
		if _, alive := by[p]; alive && !slices.ContainsFunc(unproved, func(m member) bool { return !m.whole || slices.Contains(m.above, p) }) {
			had.Still = c.at
			if had.Clear == 0 {
				had.Clear = c.at
			}
		}
	}
	if len(unproved) == 0 && len(c.members) > 0 {
		l.Still = c.at
		if l.Sealed == nil {
			l.Sealed = map[string]uint64{}
		}
		for _, m := range c.members {
			if l.Sealed[m.image] == 0 && len(l.Sealed) < imagesMost {
				l.Sealed[m.image] = c.at
			}
		}
	}
	return proved
}

const imagesMost = 64

// chainOf gives a member and those above it that run the program.
func chainOf(m member, by map[proc]member) []member {
	chain := []member{m}
	for _, p := range m.above {
		parent, ok := by[p]
		if !ok {
			break
		}
		chain = append(chain, parent)
	}
	return chain
}
