package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"os"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// loops is what is known of the processes of one container that are in their
// service loop. A process is refused something only where that is proved. What
// cannot be looked at is not proved, neither before the container serves nor
// after: the plan has the call, and a supervisor that may not read memory (an LSM,
// kernel.yama.ptrace_scope 3) would otherwise refuse it to everybody. That is said
// once (an event "weaken").
type loops struct {
	lookAt func(tid int, programs []program) (sight, error)
	kick   chan struct{} // somebody asked who was not proved
	begin  chan struct{} // it serves from now on
	over   chan struct{} // closed when the container is gone
	ended  sync.Once

	mu       sync.Mutex
	programs []program
	missing  []string // why a program's processes are never proved
	ledgers  []ledger // one a program
	// memory of each proved process, which outlives no execution: that it can be
	// read says that the proof still holds. Every proof in ledgers has one.
	memory map[proc]*os.File
	tried  map[proc]*budget
	hung   map[proc]bool // who keeps a look at it from ending
	said   bool
	dirty  bool
	saving sync.Mutex
}

const (
	memoryMost  = 512 // of one container
	memoryAll   = 16384
	triedMost   = 1024
	sampleEvery = 250 * time.Millisecond
)

var memories atomic.Int64

// samples are the pauses between two looks at the processes of a container that
// serves. After the last only who makes such a call is looked at. The late ones
// are for what is concluded only when nobody has executed anything for a while.
var samples = []time.Duration{50 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 200 * time.Millisecond, 400 * time.Millisecond,
	800 * time.Millisecond, 1600 * time.Millisecond, 3 * time.Second, 5 * time.Second, 20 * time.Second, 40 * time.Second, time.Minute, 3 * time.Minute}

const lateSamples = 9 // from here on; the earlier ones end once every process is proved

// loopsOf is nil where no call is taken away by processes.
func loopsOf(c *container, root *os.File) *loops {
	if v, ok := c.verdicts.(interface{ LoopsMatter() bool }); !ok || !v.LoopsMatter() || len(c.plan.Syscalls.Loops) == 0 {
		return nil
	}
	k := newLoops()
	for _, l := range c.plan.Syscalls.Loops[:min(len(c.plan.Syscalls.Loops), 64)] {
		p, err := programOf(root, l)
		if err != nil { // on a mount: what is below it is not the file that was analysed
			k.missing = append(k.missing, err.Error())
			continue
		}
		k.programs = append(k.programs, p)
	}
	k.ledgers = make([]ledger, len(k.programs))
	return k
}

func newLoops() *loops {
	return &loops{lookAt: lookAt, kick: make(chan struct{}, 1), begin: make(chan struct{}, 1), over: make(chan struct{}), memory: map[proc]*os.File{}, tried: map[proc]*budget{}, hung: map[proc]bool{}}
}

// ticks is now as start times count.
func ticks() uint64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return 0
	}
	return uint64(ts.Sec)*100 + uint64(ts.Nsec)/1e7
}

func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}

// end lets go of the processes.
func (k *loops) end() {
	k.ended.Do(func() { close(k.over) })
	k.mu.Lock()
	defer k.mu.Unlock()
	for p := range k.memory {
		k.forget(p)
	}
}

// forget needs mu.
func (k *loops) forget(p proc) {
	if f := k.memory[p]; f != nil {
		f.Close()
		memories.Add(-1)
		delete(k.memory, p)
		k.dirty = true
	}
	for i := range k.ledgers {
		delete(k.ledgers[i].Proofs, p)
	}
}

// proved tells which program's loop a process was found to be in before, with
// the image it had. That it runs the program still is asked besides: somebody else
// could keep its memory in use.
func (k *loops) proved(p proc) (program int, image string, ok bool) {
	k.mu.Lock()
	f := k.memory[p]
	k.mu.Unlock()
	if f == nil {
		return 0, "", false
	}
	holds := alive(f)
	now, err := runs(p.PID, k.programs)
	k.mu.Lock()
	defer k.mu.Unlock()
	if !holds || errors.Is(err, errOther) {
		if k.memory[p] == f {
			k.forget(p)
		}
		return 0, "", false
	}
	for i := range k.ledgers {
		if had := k.ledgers[i].Proofs[p]; had != nil && (err != nil || now == i) {
			return i, had.Image, true
		}
	}
	return 0, "", false
}

// keep takes memory over, for a process that was just proved. Where too many
// are kept already, or the memory is its parent's, it is proved anew each time. It
// needs mu.
func (k *loops) keep(s *sight, born bool) {
	select {
	case <-k.over:
		s.mem.Close()
		return
	default:
	}
	if k.memory[s.proc] != nil || len(k.memory) >= memoryMost || memories.Load() >= memoryAll || s.shares(k.programs) {
		s.mem.Close()
		return
	}
	memories.Add(1)
	k.memory[s.proc] = s.mem
	k.ledgers[s.program].prove(s.proc, s.image, born)
	k.dirty = true
}

// executed says that the application goes on to execute something.
func (k *loops) executed() {
	if k == nil {
		return
	}
	now := ticks()
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range k.ledgers {
		k.ledgers[i].Executed = now
	}
}

// inLoop gives the program whose service loop the caller's process is in, "" if
// that is not proved.
func (w *Worker) inLoop(l *listener, n *notification) string {
	k := l.c.loops
	tgid, ok := events.Tgid(int(n.PID))
	if k == nil || !ok {
		return ""
	}
	p := proc{tgid, events.StartTime(tgid)}
	if i, _, ok := k.proved(p); ok && l.valid(n.ID) {
		return k.programs[i].File
	}
	if !k.affords(p) {
		return ""
	}
	s, err := lookAt(int(n.PID), k.programs)
	if errors.Is(err, errOther) {
		return ""
	}
	proved, born := false, false
	if err == nil {
		proved, err = s.inLoop(k.programs[s.program], slices.Compact([]int{int(n.PID), s.tgid})...)
		if !proved {
			chain := k.chain(&s)
			k.mu.Lock()
			born = k.ledgers[s.program].descends(chain)
			k.mu.Unlock()
		}
	}
	if !l.valid(n.ID) { // whoever was looked at, it is not the caller any more
		if s.mem != nil {
			s.mem.Close()
		}
		return ""
	}
	defer poke(k.kick)
	if proved || born {
		k.mu.Lock()
		k.keep(&s, born)
		k.mu.Unlock()
		w.saveLoops(l.c.token, k) // before anything is refused by it
		return k.programs[s.program].File
	}
	if s.mem != nil {
		s.mem.Close()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if err != nil && !errors.Is(err, errRunning) && !k.said {
		k.said = true
		w.report(l.c, record.Event{Dimension: record.Supervision, Action: "weaken", Object: "service loop", Verdict: record.Reported, Mechanism: "seccomp",
			Process: snapshotOf(n), Reason: fmt.Sprintf("a process could not be looked at, so it keeps what it needs only before it serves: %v", err)})
	}
	return ""
}

// budget is how many looks at one process are left: a flood of calls must not
// cost a look each. Start-up makes a few of them, and each of those is looked at.
type budget struct {
	looks float64
	at    time.Time
}

const (
	looksAtOnce    = 256
	looksPerSecond = 100
)

func (k *loops) affords(p proc) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	b := k.tried[p]
	if b == nil {
		if len(k.tried) >= triedMost {
			clear(k.tried)
		}
		b = &budget{looks: looksAtOnce, at: now}
		k.tried[p] = b
	}
	b.looks, b.at = min(looksAtOnce, b.looks+looksPerSecond*now.Sub(b.at).Seconds()), now
	if b.looks < 1 {
		return false
	}
	b.looks--
	return true
}

// chain gives a process and those above it that run the same program.
func (k *loops) chain(s *sight) []member {
	chain := []member{{proc: s.proc, image: s.image}}
	for at := s.proc; len(chain) < aboveMost; {
		parent, ok := parentOf(at)
		if !ok {
			break
		}
		if i, image, ok := k.proved(parent); ok {
			if i != s.program {
				break
			}
			chain = append(chain, member{proc: parent, image: image})
		} else {
			above, err := lookAt(parent.PID, k.programs)
			if err != nil {
				break
			}
			above.mem.Close()
			if above.program != s.program || above.proc != parent {
				break
			}
			chain = append(chain, member{proc: parent, image: above.image})
		}
		at = parent
	}
	return chain
}

const aboveMost = 64

// parentOf gives the process that another is a child of now.
func parentOf(p proc) (proc, bool) {
	pid, ok := events.Parent(p.PID)
	if !ok {
		return proc{}, false
	}
	parent := proc{pid, events.StartTime(pid)}
	if parent.Start == 0 || parent.Start > p.Start { // the number was given again meanwhile
		return proc{}, false
	}
	return parent, true
}

// found is a process of one of the programs, by number.
type found map[proc]int

// find lists the processes that run one of the programs, in the pid namespace
// of a process. certain is false where one could not be told.
func find(programs []program, init int) (all found, certain bool) {
	all, certain = found{}, true
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", init))
	if err != nil {
		return all, false
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return all, false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return all, false
	}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		i, err := runs(pid, programs)
		switch {
		case errors.Is(err, errOther), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ESRCH):
			continue
		case err != nil: // one with more capabilities than the supervisor's
			certain = certain && outside(pid, init)
			continue
		}
		if in, err := os.Readlink("/proc/" + name + "/ns/pid"); err == nil && in != ns {
			continue
		}
		if start := events.StartTime(pid); start != 0 {
			all[proc{pid, start}] = i
		}
	}
	return all, certain
}

// sample looks at every process of the programs. proved says that there
// is nobody left to prove.
func (w *Worker) sample(c *container) (proved bool) {
	k := c.loops
	c.mu.Lock()
	init := c.state.PID
	c.mu.Unlock()
	if len(k.programs) == 0 || init == 0 {
		return true
	}
	all, certain := find(k.programs, init)
	counts := make([]census, len(k.programs))
	sights := map[proc]*sight{}
	for p, i := range all {
		m := member{proc: p}
		if at, image, ok := k.proved(p); ok && at == i {
			m.image = image
		} else {
			s, seen, err := k.look(p, i)
			if err != nil {
				certain = certain && (errors.Is(err, errGone) || ended(p))
				m.image = "?"
			} else {
				m.image, m.seen = s.image, seen
				sights[p] = s
			}
		}
		m.above, m.whole = above(p, init)
		counts[i].members = append(counts[i].members, m)
	}
	again, still := find(k.programs, init)
	for p, i := range again {
		if j, ok := all[p]; !ok || i != j {
			still = false
		}
	}
	proved = certain && still
	k.mu.Lock()
	for i := range counts {
		counts[i].stable = certain && still
		counts[i].at = ticks()
		sealed := len(k.ledgers[i].Sealed)
		known := k.ledgers[i].take(counts[i])
		proved = proved && known == len(counts[i].members) && known > 0
		k.dirty = k.dirty || len(k.ledgers[i].Sealed) > sealed
		for p, had := range k.ledgers[i].Proofs {
			if s := sights[p]; s != nil && k.memory[p] == nil {
				delete(sights, p)
				k.keep(s, had.Born)
			}
		}
		// Only what has memory is kept.
		maps.DeleteFunc(k.ledgers[i].Proofs, func(p proc, _ *proof) bool { return k.memory[p] == nil })
	}
	for p := range k.memory {
		if _, ok := again[p]; !ok && certain && still {
			k.forget(p)
		}
	}
	dirty := k.dirty
	k.dirty = false
	k.mu.Unlock()
	for _, s := range sights {
		s.mem.Close()
	}
	if dirty {
		w.saveLoops(c.token, k)
	}
	return proved
}

var errHung = errors.New("its memory cannot be read in time")

const (
	lookMost = time.Second
	hungMost = 16
)

// look tells whether a process is in its loop by its own stack. It is given up
// where it takes long: what lies there can be a file's of a file system that does
// not answer. (Not userfaultfd(2): reading through /proc does not wait for that.)
func (k *loops) look(p proc, program int) (*sight, bool, error) {
	k.mu.Lock()
	skip := k.hung[p] || len(k.hung) >= hungMost
	k.mu.Unlock()
	if skip {
		return nil, false, errHung
	}
	type found struct {
		s    *sight
		seen bool
		err  error
	}
	done := make(chan found, 1)
	go func() {
		s, err := k.lookAt(p.PID, k.programs)
		switch {
		case err != nil:
			done <- found{nil, false, err}
		case s.proc != p || s.program != program:
			s.mem.Close()
			done <- found{nil, false, errGone}
		default:
			seen, _ := s.inLoop(k.programs[program], s.tgid)
			done <- found{&s, seen, nil}
		}
	}()
	timer := time.NewTimer(lookMost)
	defer timer.Stop()
	select {
	case f := <-done:
		return f.s, f.seen, f.err
	case <-timer.C:
	}
	k.mu.Lock()
	k.hung[p] = true
	k.mu.Unlock()
	go func() {
		if f := <-done; f.s != nil {
			f.s.mem.Close()
		}
		k.mu.Lock()
		defer k.mu.Unlock()
		delete(k.hung, p)
	}()
	return nil, false, errHung
}

// ended tells whether a process is gone.
func ended(p proc) bool { return events.StartTime(p.PID) != p.Start }

// outside tells whether a process is certainly not below a container's init.
func outside(pid, init int) bool {
	if pid == 1 && init != 1 {
		return true
	}
	all, whole := above(proc{pid, events.StartTime(pid)}, init)
	return pid != init && whole && all[len(all)-1].PID != init
}

// above lists the ancestors of a process, up to a container's init or the first
// process of all.
func above(p proc, init int) (all []proc, whole bool) {
	for len(all) < aboveMost {
		parent, ok := parentOf(p)
		if !ok {
			return all, false
		}
		all = append(all, parent)
		if parent.PID == init || parent.PID == 1 {
			return all, true
		}
		p = parent
	}
	return all, false
}

// watchLoops samples until the container is gone.
func (w *Worker) watchLoops(c *container) {
	k := c.loops
	next := len(samples)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var last time.Time
	var took time.Duration
	for {
		wait := time.Hour
		if next < len(samples) {
			wait = samples[next]
		}
		timer.Reset(wait)
		select {
		case <-w.ctx.Done():
			return
		case <-k.over:
			return
		case <-k.begin:
			next = 0
			continue
		case <-timer.C:
			next = min(next+1, len(samples))
		case <-k.kick:
			// Nobody can ask for more than a small part of the supervisor's time.
			if rest := max(sampleEvery, 20*took) - time.Since(last); rest > 0 {
				select {
				case <-w.ctx.Done():
					return
				case <-k.over:
					return
				case <-time.After(rest):
				}
			}
		}
		began := time.Now()
		if w.sample(c) && next < lateSamples {
			next = lateSamples
		}
		last = time.Now()
		took = last.Sub(began)
	}
}

// serve begins to sample: the container serves, or nothing will say when it does.
func (k *loops) serve() {
	if k != nil {
		poke(k.begin)
	}
}

// saysWhen tells whether a plan has a port whose socket says that it serves.
func saysWhen(p *plan.Plan) bool {
	return slices.ContainsFunc(p.Network.Listen, func(l plan.Listen) bool { return l.Proto == "tcp" && l.Port != 0 })
}

// storedLoops is loops.json.
type storedLoops struct {
	Programs []storedProgram `json:"programs"`
	Missing  []string        `json:"missing,omitempty"`
}

type storedProgram struct {
	program
	ledger
	Proved []storedProof `json:"proved"`
}

type storedProof struct {
	proc
	proof
}

func (w *Worker) saveLoops(token string, k *loops) {
	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.Lock()
	st := storedLoops{Missing: k.missing}
	for i, p := range k.programs {
		s := storedProgram{program: p, ledger: k.ledgers[i]}
		s.Sealed = maps.Clone(s.Sealed)
		for at, had := range k.ledgers[i].Proofs {
			s.Proved = append(s.Proved, storedProof{at, *had})
		}
		st.Programs = append(st.Programs, s)
	}
	k.mu.Unlock()
	if err := w.store.save(token, "loops.json", st); err != nil {
		log.Printf("declarund: %v", err)
	}
}

// loadLoops goes on with what an earlier worker had proved. Of a proof that was
// not stored any more, the stack tells again, or it is lost with the stack.
func (w *Worker) loadLoops(c *container, root *os.File) *loops {
	data, err := w.store.read(c.token, "loops.json")
	var st storedLoops
	if err == nil {
		err = json.Unmarshal(data, &st)
	}
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) {
			log.Printf("declarund: container %s: read loops.json: %v", c.key.ID, err)
		}
		return loopsOf(c, root)
	}
	k := newLoops()
	k.missing = st.Missing
	for _, s := range st.Programs[:min(len(st.Programs), 64)] {
		s.ledger.Executed = ticks() // nobody noted what was let through just before
		k.programs, k.ledgers = append(k.programs, s.program), append(k.ledgers, s.ledger)
	}
	for i, s := range st.Programs[:len(k.programs)] {
		for _, had := range s.Proved {
			at, err := lookAt(had.PID, k.programs)
			if err != nil {
				continue
			}
			if at.proc != had.proc || at.image != had.Image || at.program != i {
				at.mem.Close()
				continue
			}
			k.keep(&at, had.Born)
			if p := k.ledgers[i].Proofs[had.proc]; p != nil {
				*p = had.proof
			}
		}
	}
	return k
}

// loopNotes tell how many processes are proved.
func (w *Worker) loopNotes(c *container) (notes []plan.Note) {
	c.mu.Lock()
	k, init := c.loops, c.state.PID
	c.mu.Unlock()
	if k == nil {
		return nil
	}
	for _, m := range k.missing {
		notes = append(notes, plan.Note{Dimension: record.Syscalls, Text: "what a program needs only before it serves is not taken away from it: " + m})
	}
	if init == 0 {
		return notes
	}
	all, _ := find(k.programs, init)
	for i, p := range k.programs {
		total, proved := 0, 0
		for at, j := range all {
			if i != j {
				continue
			}
			total++
			if _, _, ok := k.proved(at); ok {
				proved++
			}
		}
		if total > 0 {
			notes = append(notes, plan.Note{Dimension: record.Syscalls, Text: fmt.Sprintf("%d of %d processes of %s are in their service loop: what is needed only before it is taken away from them", proved, total, p.File)})
		}
	}
	return notes
}
