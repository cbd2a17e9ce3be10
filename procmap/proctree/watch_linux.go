package proctree

import (
	"context"
	"errors"
	"fmt"
	"log"
	"math/bits"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
)

// Options say who is told what. All are called from one goroutine, without a lock.
type Options struct {
	Found func(token string, f Finding)
	// Lost says that events are missing, and why that is known.
	Lost func(n uint64, reason string)
	// Phase is the container's.
	Phase func(token string) record.Phase

	open  func() (*Connector, error) // a test's
	sweep time.Duration
}

// Kind of Finding.
type Kind string

const (
	Gain  Kind = "gain"  // a process has rights that it had not
	Crash Kind = "crash" // a process was ended by a signal of its own making
)

// Finding is something odd about a process.
type Finding struct {
	Kind    Kind
	Object  string // what was gained, or the program that crashed
	Detail  string // half a sentence
	Process record.LiveProcess
	By      []record.LiveProcess // its ancestors in the container, nearest first
}

// Container is one that is to be watched.
type Container struct {
	Token       string
	Init        int      // its process, in this pid namespace
	HealthCheck []string // tells a health check from an operator's exec where nobody said what it is
	// Running is true where its own programs run already: a worker took it over.
	Running bool
	// Earlier is what an earlier worker knew; nil: nothing.
	Earlier *record.Tree
}

// Asked is what a thread was let execute. It becomes the process's program
// when the kernel says that it executed something.
type Asked struct {
	Token    string
	Exe      string
	Argv     []string
	Identity record.Identity
	Phase    record.Phase
}

const (
	askedMost = 4096
	askedLife = 10 * time.Second
	// lookAfter is how long a process has to live before it is looked at, where
	// it is known what it executed: most do not.
	lookAfter = 50 * time.Millisecond
	tickEvery = 200 * time.Millisecond // while there are containers
	// linger keeps the connector open when the last container is gone: a
	// container that is restarted needs it again.
	linger = 10 * time.Second
)

// Watch keeps the trees of containers. It listens while there are any.
type Watch struct {
	o Options

	askedMu sync.Mutex
	asked   map[int]askedAt
	order   []int
	refused []refusal // not entered yet: who refuses does not wait for a tree

	mu         sync.Mutex
	containers map[string]*watched
	byPID      map[int]*watched // live processes
	outer      map[int]int      // parents of what came from outside: how many such
	session    *session
	unable     error // why there are no events
	looks      []toLook
	odd        []finding // to be told
	closed     bool
}

// session is one time that the connector is open.
type session struct {
	cancel context.CancelFunc
	ended  chan struct{}
	lost   uint64
}

type askedAt struct {
	Asked
	at time.Time
}

type refusal struct {
	token, by, exe, reason string
	identity               record.Identity
	verdict                record.Verdict
	at                     time.Time
}

type watched struct {
	*container
	token  string
	place  place
	root   uint32 // user 0 of its user namespace
	bounds uint64 // capabilities of init's bounding set, once it is the container's own program
	health []string
	before string // init's program before the container's first
	outers []int
	gone   []Gone // the latest that ended
}

// Gone is a process that is gone, with its ancestors as they were then.
type Gone struct {
	record.LiveProcess
	By []record.LiveProcess
	At time.Time
}

const (
	goneMost = 128
	// goneLife is how long a number still means the process that had it: what is
	// asked about it comes from the kernel's queues, a moment late.
	goneLife = 10 * time.Second
)

type toLook struct {
	pid int
	due time.Time
}

// New makes a Watch. Nothing is opened until there is a container.
func New(o Options) *Watch {
	if o.open == nil {
		o.open = OpenConnector
	}
	if o.sweep <= 0 {
		o.sweep = time.Minute
	}
	return &Watch{o: o, asked: map[int]askedAt{}, containers: map[string]*watched{}, byPID: map[int]*watched{}, outer: map[int]int{}}
}

// Add begins to keep a container's tree. An error says that its processes are
// not known; that it is not watched as it happens is no error (Tree tells).
func (w *Watch) Add(c Container) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return errors.New("watch processes: closed")
	}
	w.listen() // before /proc is read: what begins meanwhile is seen twice rather than not at all
	s, ok := look(c.Init)
	if !ok {
		return fmt.Errorf("watch processes of container %s: process %d is gone", c.Token, c.Init)
	}
	taken := func(ns uint64) bool {
		for _, other := range w.containers {
			if other.place.pidns == ns && other.token != c.Token {
				return true
			}
		}
		return false
	}
	where, err := placeOf(c.Init, taken)
	if err != nil {
		return fmt.Errorf("watch processes of container %s: %w", c.Token, err)
	}
	w.forget(c.Token)
	now := time.Now()
	x := &watched{container: newContainer(c.Init, now), token: c.Token, place: where, root: rootUser(c.Init), health: c.HealthCheck, before: s.exe}
	if c.Earlier != nil {
		x.restore(*c.Earlier)
		for pid := range x.live {
			w.byPID[pid] = x
		}
	}
	w.containers[c.Token] = x
	if !c.Running {
		w.enter(x, s, now).Identity = record.Application
		w.outside(x, s.parent)
		return nil
	}
	w.resync([]*watched{x}, now)
	return nil
}

// rootUser is user 0 of a process's user namespace, as this one has it: uid_map
// of user_namespaces(7).
func rootUser(pid int) uint32 {
	var inside, outside, count uint64
	if n, _ := fmt.Sscan(string(readSome("/proc/"+strconv.Itoa(pid)+"/uid_map", 4096)), &inside, &outside, &count); n == 3 && inside == 0 {
		return uint32(outside)
	}
	return 0
}

// Forget ends the tree of a container.
func (w *Watch) Forget(token string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forget(token)
}

func (w *Watch) forget(token string) {
	x := w.containers[token]
	if x == nil {
		return
	}
	delete(w.containers, token)
	for pid := range x.live {
		if w.byPID[pid] == x {
			delete(w.byPID, pid)
		}
	}
	for _, pid := range x.outers {
		if w.outer[pid]--; w.outer[pid] <= 0 {
			delete(w.outer, pid)
		}
	}
}

// Close ends listening.
func (w *Watch) Close() {
	w.mu.Lock()
	w.closed = true
	s := w.session
	w.mu.Unlock()
	if s != nil {
		s.cancel()
		<-s.ended
	}
}

// Ask notes what a thread is let execute. It does not wait for anything.
func (w *Watch) Ask(tid int, a Asked) {
	a.Exe, a.Argv = short(a.Exe), shortArgs(a.Argv)
	w.askedMu.Lock()
	defer w.askedMu.Unlock()
	if _, again := w.asked[tid]; !again {
		if len(w.order) >= askedMost {
			delete(w.asked, w.order[0])
			w.order = w.order[1:]
		}
		w.order = append(w.order, tid)
	}
	w.asked[tid] = askedAt{a, time.Now()}
}

func (w *Watch) take(pid int) (Asked, bool) {
	w.askedMu.Lock()
	defer w.askedMu.Unlock()
	a, ok := w.asked[pid]
	if ok {
		delete(w.asked, pid)
		if i := slices.Index(w.order, pid); i >= 0 {
			w.order = slices.Delete(w.order, i, i+1)
		}
	}
	return a.Asked, ok && time.Since(a.at) < askedLife
}

// Refuse notes an execution that was refused, or would have been. It does not
// wait for anything.
func (w *Watch) Refuse(token, by, exe string, id record.Identity, v record.Verdict, reason string) {
	w.askedMu.Lock()
	defer w.askedMu.Unlock()
	if len(w.refused) < askedMost {
		w.refused = append(w.refused, refusal{token, short(by), short(exe), short(reason), id, v, time.Now()})
	}
}

// enterRefused needs mu.
func (w *Watch) enterRefused() {
	w.askedMu.Lock()
	refused := w.refused
	w.refused = nil
	w.askedMu.Unlock()
	for _, r := range refused {
		if x := w.containers[r.token]; x != nil {
			x.refuse(r.by, r.exe, r.identity, r.verdict, r.reason, r.at)
		}
	}
}

// Tree gives what is known of a container, with what /proc has now. err says
// why nothing is told as it happens: then Before has only what was noticed.
func (w *Watch) Tree(token string) (t record.Tree, unwatched error, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.containers[token]
	if x == nil {
		return record.Tree{}, nil, false
	}
	w.enterRefused()
	w.resync([]*watched{x}, time.Now())
	return x.tree(), w.unable, true
}

// Stored is what a later worker needs. It reads nothing.
func (w *Watch) Stored(token string) (record.Tree, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.containers[token]
	if x == nil {
		return record.Tree{}, false
	}
	w.enterRefused()
	return x.tree(), true
}

// listen needs mu.
func (w *Watch) listen() {
	if w.session != nil || w.closed {
		return
	}
	if unsupported := (*UnsupportedError)(nil); errors.As(w.unable, &unsupported) {
		return // a kernel does not learn it
	}
	c, err := w.o.open()
	if err != nil {
		if w.unable == nil {
			log.Printf("declarund: process trees are read from /proc when somebody asks: %v", err)
		}
		w.unable = err
		return
	}
	w.unable = nil
	ctx, cancel := context.WithCancel(context.Background())
	w.session = &session{cancel: cancel, ended: make(chan struct{})}
	go w.run(ctx, c, w.session)
}

// again is how long to wait after a connector that failed.
const again = 10 * time.Second

// run listens until there has been no container for a while.
func (w *Watch) run(ctx context.Context, c *Connector, s *session) {
	defer close(s.ended)
	ticked := make(chan struct{})
	go func() {
		defer close(ticked)
		w.tick(ctx, s)
	}()
	err := c.Run(ctx, w.happened, func(n uint64) {
		w.mu.Lock()
		defer w.mu.Unlock()
		s.lost += n
	})
	s.cancel()
	<-ticked
	c.Close()
	w.mu.Lock()
	if w.session == s {
		w.session = nil
	}
	if err != nil {
		w.unable = err
	}
	w.mu.Unlock()
	if err != nil {
		w.o.Lost(1, fmt.Sprintf("the process connector failed: %v", err))
		time.AfterFunc(again, func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			if len(w.containers) > 0 {
				w.listen()
				w.resync(w.every(), time.Now())
			}
		})
	}
}

// tick looks at what lives long enough to be looked at, reads /proc anew after a
// loss and now and then, and ends listening when nobody needs it.
func (w *Watch) tick(ctx context.Context, s *session) {
	ticker := time.NewTicker(tickEvery)
	defer ticker.Stop()
	swept, used := time.Now(), time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		now := time.Now()
		w.mu.Lock()
		w.enterRefused()
		w.due(now)
		lost, untold, idle := s.lost, uint64(0), len(w.containers) == 0
		s.lost = 0
		if lost > 0 || now.Sub(swept) >= w.o.sweep && !idle {
			for _, x := range w.containers {
				x.lost += lost
			}
			untold = w.resync(w.every(), now)
			swept = now
		}
		found := w.odd
		w.odd = nil
		if !idle {
			used = now
		} else if now.Sub(used) > linger {
			w.session = nil // the next container opens another
			s.cancel()
		}
		w.mu.Unlock()
		for _, f := range found {
			w.o.Found(f.token, f.Finding)
		}
		switch {
		case lost > 0:
			w.o.Lost(lost, "the kernel could not deliver them in time; trees were read anew from /proc")
		case untold > 0:
			w.o.Lost(untold, "processes were found in /proc that nothing had told of")
		}
	}
}

func (w *Watch) every() []*watched {
	var xs []*watched
	for _, x := range w.containers {
		xs = append(xs, x)
	}
	return xs
}

type finding struct {
	token string
	Finding
}

// due looks at the processes whose time has come. It needs mu.
func (w *Watch) due(now time.Time) {
	n := 0
	for _, l := range w.looks {
		if l.due.After(now) {
			break
		}
		n++
		if x := w.byPID[l.pid]; x != nil {
			if p := x.live[l.pid]; p != nil {
				w.refresh(x, p)
			}
		}
	}
	w.looks = slices.Delete(w.looks, 0, n)
}

// happened takes in one event.
func (w *Watch) happened(e Event) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.byPID[e.PID]
	switch e.What {
	case Forked:
		w.forked(e, now)
	case Executed:
		w.executed(x, e, now)
	case ChangedUser:
		if x != nil {
			p := x.live[e.PID]
			before := *p
			if s, ok := look(e.PID); ok {
				p.take(s)
			} else {
				p.RealUID, p.UID, p.saved = e.Real, e.UID, e.UID
			}
			w.gained(x, &before, p)
		}
	case Renamed:
		if x != nil {
			x.live[e.PID].Comm = e.Comm
		}
	case DumpedCore:
		if x != nil {
			x.live[e.PID].crashed = true
		}
	case Ended:
		if x != nil {
			w.exited(x, e, now)
		}
	}
}

// forked needs mu.
func (w *Watch) forked(e Event, now time.Time) {
	parent := w.byPID[e.Parent]
	if old := w.byPID[e.PID]; old != nil {
		p := old.live[e.PID]
		if p.StartTime != 0 && sameStart(p.StartTime, e.Time) {
			return // /proc had it first
		}
		delete(w.byPID, e.PID)
		old.end(p, "not seen", now)
	}
	if parent == nil {
		if w.outer[e.Parent] > 0 {
			w.foreign(e.PID, now)
		}
		return
	}
	if parent.fork(parent.live[e.Parent], e.PID, e.Time, now) != nil {
		w.byPID[e.PID] = parent
	}
}

// foreign enters a process that came into a container from outside, if it did.
func (w *Watch) foreign(pid int, now time.Time) *watched {
	token, ok := w.finder(w.every()).owner(pid)
	x := w.containers[token]
	if !ok || x == nil {
		return nil
	}
	s, ok := look(pid)
	if !ok {
		return nil
	}
	p := w.enter(x, s, now)
	if p == nil {
		return nil
	}
	if parent := x.live[p.Parent]; parent != nil {
		p.Identity = parent.Identity
	} else {
		p.Identity = x.stranger(s.argv)
		w.outside(x, s.parent)
	}
	return x
}

// stranger is on whose behalf a process from outside runs.
func (x *watched) stranger(argv []string) record.Identity {
	if len(x.health) > 0 && slices.Equal(argv, shortArgs(x.health)) {
		return record.HealthCheck
	}
	return record.Operator
}

// outside remembers a parent that is not the container's: with CLONE_PARENT, what
// it brought in has children that are its.
func (w *Watch) outside(x *watched, parent int) {
	if parent > 1 && len(x.outers) < 64 && !slices.Contains(x.outers, parent) {
		x.outers = append(x.outers, parent)
		w.outer[parent]++
	}
}

// enter needs mu; nil: there are too many.
func (w *Watch) enter(x *watched, s seen, now time.Time) *process {
	if old := x.live[s.pid]; old != nil {
		x.end(old, "not seen", now)
	} else if len(x.live) >= maxLive {
		x.omitted++
		return nil
	}
	p := &process{LiveProcess: record.LiveProcess{PID: s.pid, Since: since(s.start, now)}}
	p.take(s)
	if p.Parent != 0 && x.live[p.Parent] == nil {
		p.Parent = 0
	}
	x.live[s.pid] = p
	w.byPID[s.pid] = x
	return p
}

// take takes over what /proc says.
func (p *process) take(s seen) {
	p.StartTime, p.Inside, p.Parent = s.start, s.inside, s.parent
	p.looked = s.at
	p.Comm, p.RealUID, p.UID, p.saved, p.user = s.comm, s.real, s.uid, s.saved, true
	p.caps, p.capsKnown, p.missing = s.permitted, true, false
	if p.Ran {
		p.Argv = s.argv
		if s.exe != "" {
			p.Exe = s.exe
		}
	}
}

// executed needs mu.
func (w *Watch) executed(x *watched, e Event, now time.Time) {
	a, known := w.take(e.PID)
	if x == nil {
		if known && w.containers[a.Token] != nil {
			x = w.containers[a.Token]
			s, ok := look(e.PID)
			if !ok {
				s = seen{pid: e.PID}
			}
			if w.enter(x, s, now) == nil {
				return
			}
			w.outside(x, s.parent)
		} else if x = w.foreign(e.PID, now); x == nil {
			return
		}
	}
	p := x.live[e.PID]
	if p == nil {
		return
	}
	if p.executed {
		x.ran(p, "executed another", now)
	}
	p.Ran, p.executed, p.Since = true, true, now
	if known && a.Token == x.token {
		p.Exe, p.Argv, p.Phase = a.Exe, a.Argv, a.Phase
		if a.Identity != "" {
			p.Identity = a.Identity
		}
		w.looks = append(w.looks, toLook{e.PID, now.Add(lookAfter)})
		return
	}
	if p.looked <= e.Time { // else /proc has shown what it executed
		p.Exe, p.Argv = "", nil
	}
	p.Phase = w.o.Phase(x.token)
	w.refresh(x, p)
}

// refresh looks at a process. It needs mu.
func (w *Watch) refresh(x *watched, p *process) {
	if s, ok := look(p.PID); ok { // else its end is on its way
		w.update(x, p, s)
	}
}

// update needs mu.
func (w *Watch) update(x *watched, p *process, s seen) {
	before := *p
	p.take(s)
	if p.Parent != 0 && x.live[p.Parent] == nil {
		p.Parent = 0
		w.outside(x, s.parent) // another one may have taken it over
	}
	if p.PID == x.init && p.Ran && x.bounds == 0 {
		x.bounds = s.bounding
	}
	w.gained(x, &before, p)
}

// exited needs mu.
func (w *Watch) exited(x *watched, e Event, now time.Time) {
	p := x.live[e.PID]
	signal := e.Status & 0x7f
	status := fmt.Sprintf("exit %d", e.Status>>8&0xff)
	if signal != 0 {
		status = fmt.Sprintf("signal %d", signal)
		if name, ok := crashes[signal]; ok || p.crashed {
			if name == "" {
				name = status
			}
			status = name
			p.Odd = merge(p.Odd, []string{"crashed: " + name})
			if p.Ran {
				w.note(x, Finding{Kind: Crash, Object: p.name(), Detail: "was ended by " + name, Process: p.LiveProcess, By: x.ancestors(p)})
			}
		}
	}
	delete(w.byPID, e.PID)
	if p.Ran {
		if len(x.gone) >= goneMost {
			x.gone = slices.Delete(x.gone, 0, 1)
		}
		x.gone = append(x.gone, Gone{p.LiveProcess, x.ancestors(p), now})
	}
	x.end(p, status, now)
}

// Lately gives a process of a container that ended a moment ago: the last that
// had the number. It does not look at /proc.
func (w *Watch) Lately(token string, pid int) (Gone, bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.containers[token]
	if x == nil {
		return Gone{}, false
	}
	if p := x.live[pid]; p != nil { // its end is on its way
		return Gone{p.LiveProcess, x.ancestors(p), time.Now()}, p.Exe != ""
	}
	for _, e := range slices.Backward(x.gone) {
		if e.PID == pid && time.Since(e.At) < goneLife {
			return e, true
		}
	}
	return Gone{}, false
}

// oddMost bounds what waits to be told.
const oddMost = 1024

func (w *Watch) note(x *watched, f Finding) {
	if len(w.odd) < oddMost {
		w.odd = append(w.odd, finding{x.token, f})
	}
}

func (p *process) name() string {
	switch {
	case p.Exe != "":
		return p.Exe
	case p.Comm != "":
		return p.Comm
	}
	return fmt.Sprintf("process %d", p.PID)
}

const maxAncestors = 4

func (x *watched) ancestors(p *process) (all []record.LiveProcess) {
	for len(all) < maxAncestors {
		parent := x.live[p.Parent]
		if parent == nil || parent == p {
			return all
		}
		all = append(all, parent.LiveProcess)
		p = parent
	}
	return all
}

// gained compares what a process may with what it could before. It needs mu.
func (w *Watch) gained(x *watched, before, p *process) {
	if !p.Ran || !before.Ran {
		return // the runtime prepares the first program
	}
	for _, g := range x.gains(before, p) {
		odd := "gained " + g.object
		if !slices.Contains(p.Odd, odd) {
			p.Odd = merge(p.Odd, []string{odd})
			w.note(x, Finding{Kind: Gain, Object: g.object, Detail: g.detail, Process: p.LiveProcess, By: x.ancestors(p)})
		}
	}
}

type gain struct{ object, detail string }

func (x *watched) gains(before, p *process) (all []gain) {
	if before.user && p.UID == x.root && before.RealUID != x.root && before.UID != x.root && before.saved != x.root {
		all = append(all, gain{"root", fmt.Sprintf("user %d became root", before.UID)})
	}
	// In a user namespace of its own everything is had, and counts for nothing outside.
	if ns, err := namespace(p.PID, "user"); err != nil || ns != x.place.userns || !p.capsKnown {
		return all
	}
	// What came in from outside has the rights that the engine gave it: a health
	// check, or an operator's exec, has those that the plan took from the application.
	if more := p.caps &^ x.bounds; p.Identity == record.Application && x.bounds != 0 && more != 0 {
		all = append(all, gain{capabilities(more), "more than the container may have"})
	} else if before.capsKnown && before.UID != x.root && before.caps == 0 && p.UID != x.root && p.caps != 0 {
		all = append(all, gain{capabilities(p.caps), fmt.Sprintf("user %d had none", p.UID)})
	}
	return all
}

// capabilities names a set by numbers of linux/capability.h.
func capabilities(set uint64) string {
	n := bits.OnesCount64(set)
	first := bits.TrailingZeros64(set)
	name := fmt.Sprintf("capability %d", first)
	if first < len(capabilityNames) {
		name = capabilityNames[first]
	}
	if n > 1 {
		return fmt.Sprintf("%s and %d more", name, n-1)
	}
	return name
}

var capabilityNames = []string{"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE",
	"CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN",
	"CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE"}

func (w *Watch) finder(xs []*watched) *finder {
	f := &finder{byNS: map[uint64]string{}, byCgroup: map[string]string{}}
	for _, x := range xs {
		if x.place.pidns != 0 {
			f.byNS[x.place.pidns] = x.token
		} else if x.place.cgroup != "" {
			f.byCgroup[x.place.cgroup] = x.token
		}
	}
	return f
}

// resync makes trees what /proc shows. It counts processes that are older than
// what may be on its way, and that nobody had told of. It needs mu.
func (w *Watch) resync(xs []*watched, now time.Time) (untold uint64) {
	pids, err := all()
	if err != nil {
		return 0
	}
	f := w.finder(xs)
	there := map[*watched][]seen{}
	for _, pid := range pids {
		x := w.byPID[pid]
		if x == nil || !slices.Contains(xs, x) {
			token, ok := f.owner(pid)
			if !ok {
				continue
			}
			x = w.containers[token]
		}
		if s, ok := look(pid); ok && x != nil {
			there[x] = append(there[x], s)
		}
	}
	for _, x := range xs {
		untold += w.reconcile(x, there[x], now)
	}
	return untold
}

// inFlight is how old something may be that nobody has told of yet.
const inFlight = 2 * time.Second

func (w *Watch) reconcile(x *watched, there []seen, now time.Time) (untold uint64) {
	slices.SortFunc(there, func(a, b seen) int { return int(int64(a.start) - int64(b.start)) })
	present := map[int]bool{}
	for _, s := range there {
		present[s.pid] = true
		p := x.live[s.pid]
		if p != nil && (p.StartTime == s.start || p.StartTime == 0 && sameStart(s.start, p.forked)) {
			if !p.Ran && w.session == nil && s.exe != x.before { // nobody tells of it
				p.Ran, p.Phase = true, w.o.Phase(x.token)
			}
			w.update(x, p, s)
			continue
		}
		if p != nil {
			x.end(p, "not seen", now)
		} else if w.byPID[s.pid] != nil {
			continue // another container's, by descent
		}
		entered := w.enter(x, s, now)
		if entered == nil {
			continue
		}
		entered.Ran, entered.Exe, entered.Argv = true, s.exe, s.argv
		if s.pid == x.init {
			x.bounds = s.bounding
		}
		entered.Phase = w.o.Phase(x.token)
		parent := x.live[s.parent]
		switch {
		case s.pid == x.init:
			entered.Identity = record.Application
		case parent != nil:
			entered.Identity = parent.Identity
		default:
			entered.Identity = x.stranger(s.argv)
			w.outside(x, s.parent)
		}
		if now.Sub(entered.Since) > inFlight && entered.Since.After(x.since) {
			untold++
		}
	}
	for pid, p := range x.live {
		if present[pid] {
			continue
		}
		if p.missing || w.session == nil { // nobody is going to tell of its end
			delete(w.byPID, pid)
			x.end(p, "not seen", now)
			continue
		}
		p.missing = true
	}
	return untold
}

// ticksPerSecond is USER_HZ, 100 on everything that Go runs on: time(7).
const ticksPerSecond = 100

func clocks() (mono, boot int64) {
	var m, b unix.Timespec
	unix.ClockGettime(unix.CLOCK_MONOTONIC, &m)
	unix.ClockGettime(unix.CLOCK_BOOTTIME, &b)
	return m.Nano(), b.Nano()
}

// sameStart tells whether a process that began at start (ticks since boot) is the
// one whose fork was told of at mono. The message is made a moment after the start.
func sameStart(start uint64, mono uint64) bool {
	m, b := clocks()
	told := (int64(mono) + b - m) / (int64(time.Second) / ticksPerSecond)
	late := told - int64(start)
	return late >= -1 && late <= 10
}

func since(start uint64, now time.Time) time.Time {
	_, b := clocks()
	return now.Add(time.Duration(int64(start)*(int64(time.Second)/ticksPerSecond) - b))
}
