package supervise

import (
	"container/list"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/procmap/proctree"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

var goOn = response{Flags: unix.SECCOMP_USER_NOTIF_FLAG_CONTINUE}

func refuse(errno unix.Errno) response { return response{Error: -int32(errno)} }

func call(n notification) filter.Call {
	return filter.Call{AuditArch: n.Arch, Nr: int(n.Nr), Args: n.Args}
}

// x32 calls share the architecture of x86-64 and have numbers of their own.
const x32 = 0x40000000

func (w *Worker) decide(l *listener, n *notification) response {
	if w.o.beforeDecide != nil {
		w.o.beforeDecide(l, n)
	}
	c, meta := l.c, l.snapshot()
	if n.Arch == unix.AUDIT_ARCH_X86_64 && n.Nr&x32 != 0 {
		return refuse(unix.ENOSYS)
	}
	k := call(*n)
	id := meta.Identity
	if id == "" {
		id = record.Operator // runc itself, before the command it was asked to run
	}
	by := filter.Caller{Identity: id, Phase: c.phase(), Mode: c.mode(record.Syscalls), BeforeExec: !meta.Executed || l.asksAgain(int(n.PID))}
	if by.Identity == record.Application && !by.BeforeExec && c.loops != nil && c.verdicts.UntilLoop(k) {
		by.InLoop = w.inLoop(l, n)
	}
	switch name := c.verdicts.Name(k); name {
	case "execve", "execveat":
		return w.decideExec(l, n, name, by)
	case "listen":
		return w.decideListen(l, n, by)
	}
	return w.obey(l, n, by, "")
}

// obey does as the verdicts say, by numbers alone.
func (w *Worker) obey(l *listener, n *notification, by filter.Caller, object string) response {
	c, k := l.c, call(*n)
	d := c.verdicts.Judge(k, by)
	if d.Report {
		if d.Name == "" {
			d.Name = fmt.Sprintf("call %d", n.Nr)
		}
		if object == "" {
			object = d.Name
		}
		reason := d.Reason
		if d.Taken && d.Continue {
			reason += "; let through: the mode is audit"
		} else if d.Continue || reason == "" {
			reason = events.Reason(record.Syscalls, d.Name, object, d.Verdict, by.Phase) + suffix(d.Reason)
		}
		remedy := ""
		if d.Taken {
			remedy = events.LoopRemedy(by.InLoop)
		}
		w.report(c, record.Event{Dimension: record.Syscalls, Action: d.Name, Object: object, Verdict: d.Verdict, Phase: by.Phase,
			Identity: by.Identity, Mechanism: "seccomp", Process: snapshotOf(n), Reason: reason, Remedy: remedy, Origins: originsOf(c.plan, d.Name)})
	}
	if d.Continue {
		return goOn
	}
	// Error 0 with value 0: only where the engine's own rule fakes success.
	return response{Error: -d.Errno}
}

func suffix(s string) string {
	if s == "" {
		return ""
	}
	return " (" + s + ")"
}

// originsOf is what declares a call that is needed while starting only.
func originsOf(p *plan.Plan, name string) []record.Origin {
	for _, s := range p.Syscalls.Allow {
		if s.Name == name {
			return s.Origins
		}
	}
	return nil
}

func snapshotOf(n *notification) *record.Process {
	if n.PID == 0 {
		return nil
	}
	return events.Snapshot(int(n.PID))
}

// decideExec reads what is to be executed, for the record and to refuse at
// once what is certainly refused later. What it lets through is not allowed by
// that: the path can change until the kernel reads it again. The exec guard and
// noexec mounts see the file itself.
func (w *Worker) decideExec(l *listener, n *notification, name string, by filter.Caller) response {
	c := l.c
	x := readExec(n, name == "execveat")
	if !l.valid(n.ID) { // the thread is gone: what was read is somebody else's
		return refuse(unix.EPERM)
	}
	first := false
	if by.BeforeExec {
		tgid, ok := events.Tgid(int(n.PID))
		first = ok && tgid == l.snapshot().PID
	}
	object := x.path
	var target *target
	// What was found permitted a moment ago need not be looked up again: this
	// lookup only refuses early, the exec guard decides all the same.
	known := permittedKey{x.path, by.Identity, by.Phase}
	if name, ok := c.permitted.has(known); ok {
		object = name
	} else {
		target, _ = x.resolve()
	}
	if target != nil {
		defer target.Close()
		object = target.path
	}
	if object == "" {
		object = "?"
	}

	if meta := l.snapshot(); meta.Exec && meta.Identity == "" {
		if !first { // a hook of runc's
			return w.obey(l, n, by, object)
		}
		id, announced := c.claim(x.argv, time.Now())
		by.Identity = id
		l.update(func(m *listenerMeta) { m.Identity = id })
		if id == record.Operator {
			e := record.Event{Dimension: record.Processes, Action: "exec", Object: strings.Join(x.argv, " "), Verdict: record.Reported,
				Phase: by.Phase, Identity: id, Mechanism: "seccomp", Process: snapshotOf(n),
				Reason: events.Reason(record.Processes, "exec", strings.Join(x.argv, " "), record.Reported, by.Phase)}
			if e.Process != nil {
				e.Process.Exe, e.Process.Argv = object, x.argv
			}
			if !announced {
				e.Reason += "; it did not come through declarun"
			}
			w.report(c, e)
		}
	}
	executed := Executed{Token: c.token, Identity: by.Identity, Phase: by.Phase, Path: object, Argv: x.argv, Opened: new(atomic.Int32)}
	if !w.tids.put(int(n.PID), executed, func() bool { return l.valid(n.ID) }) {
		return refuse(unix.EPERM)
	}

	mode := c.mode(record.Processes)
	if mode != record.Off && !(by.BeforeExec && !first) {
		errno, reason, permission := w.judgeExec(c, &x, target, by)
		if permission == Unwatched { // there is no event about it: the first is about its interpreter
			executed.Opened.Store(1)
		}
		if permission == Permitted && by == (filter.Caller{Identity: known.id, Phase: known.phase, Mode: by.Mode}) {
			c.permitted.add(known, target.path)
		}
		if errno != 0 {
			verdict := record.Denied
			if mode == record.Audit {
				verdict = record.Observed
			}
			action := "execve"
			w.report(c, record.Event{Dimension: record.Processes, Action: action, Object: object, Verdict: verdict, Phase: by.Phase,
				Identity: by.Identity, Mechanism: "seccomp", Process: snapshotOf(n), Origins: processOrigins(c.plan, object),
				Reason: events.Reason(record.Processes, action, object, verdict, by.Phase) + suffix(reason) + commandLine(x.argv)})
			if verdict == record.Denied {
				return refuse(errno)
			}
		}
	}
	r := w.obey(l, n, by, object)
	if r == goOn && (first || !by.BeforeExec) {
		w.trees.Ask(int(n.PID), proctree.Asked{Token: c.token, Exe: object, Argv: x.argv, Identity: by.Identity, Phase: by.Phase})
	}
	if r == goOn && by.Identity == record.Application {
		c.loops.executed()
	}
	if r == goOn && first && l.handOver(n.ID) {
		l.update(func(m *listenerMeta) { m.Executed = true })
		c.mu.Lock()
		c.running = true
		c.mu.Unlock()
		if !saysWhen(c.plan) {
			c.loops.serve()
		}
	}
	return r
}

// judgeExec gives an errno only where it is certain that the execution is
// refused by what decides on it later.
func (w *Worker) judgeExec(c *container, x *execution, t *target, by filter.Caller) (errno unix.Errno, reason string, p Permission) {
	if x.memfd {
		return unix.EACCES, "a file in memory is nobody's declared program", Forbidden
	}
	if t == nil || !t.regular || t.mode&0o111 == 0 {
		return 0, "", Unsure // the kernel knows: ENOENT, EACCES, a magic link…
	}
	if w.o.Guard != nil {
		p, reason = w.o.Guard.Allowed(c.token, t.file, by.Identity, by.Phase)
	}
	switch {
	case t.noexec && c.mode(record.Processes) == record.Enforce:
		return unix.EACCES, "on a noexec mount", Forbidden
	case p == Forbidden:
		return unix.EPERM, reason, p
	case t.noexec || p == Permitted && (t.own || !path.IsAbs(x.path)):
		return 0, "", Unsure // not for whoever looks it up by this path next
	}
	return 0, "", p
}

// permitted remembers for a moment which paths led to a permitted program.
type permitted struct {
	mu    sync.Mutex
	until map[permittedKey]permittedPath
}

// permittedPath is where a path led.
type permittedPath struct {
	path  string
	until time.Time
}

type permittedKey struct {
	path  string
	id    record.Identity
	phase record.Phase
}

const (
	permittedLife = 2 * time.Second
	permittedMost = 256
)

func (p *permitted) has(k permittedKey) (led string, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	at, ok := p.until[k]
	return at.path, ok && time.Now().Before(at.until)
}

func (p *permitted) add(k permittedKey, led string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.until == nil || len(p.until) >= permittedMost {
		p.until = map[permittedKey]permittedPath{}
	}
	p.until[k] = permittedPath{led, time.Now().Add(permittedLife)}
}

func commandLine(argv []string) string {
	if len(argv) == 0 {
		return ""
	}
	line := strings.Join(argv, " ")
	if len(line) > 300 {
		line = strings.ToValidUTF8(line[:300], "") + "…"
	}
	return ": " + line
}

func processOrigins(p *plan.Plan, program string) []record.Origin {
	for _, process := range p.Processes {
		if process.Path == program {
			return process.Origins
		}
	}
	return nil
}

// tids remembers on whose behalf threads execute, for the exec guard: its event
// follows the notification of the same thread at once.
type tids struct {
	mu     sync.Mutex
	by     map[int]*list.Element
	recent *list.List
}

type tidEntry struct {
	tid int
	at  time.Time
	Executed
}

const (
	tidsKept = 16384
	tidLife  = 2 * time.Minute // a thread may wait that long for its turn
)

func newTids() *tids { return &tids{by: map[int]*list.Element{}, recent: list.New()} }

// put remembers x if the thread still waits for the answer to the call that x is
// about. That is asked under the lock: another thread that has got the number
// since is put later, by its own call, and never overwritten by the first.
func (t *tids) put(tid int, x Executed, waits func() bool) bool {
	x.Path, x.Argv = short(x.Path, maxKeptPath), shortArgs(x.Argv)
	t.mu.Lock()
	defer t.mu.Unlock()
	if !waits() {
		return false
	}
	if el, ok := t.by[tid]; ok {
		t.recent.Remove(el)
	}
	t.by[tid] = t.recent.PushFront(&tidEntry{tid, time.Now(), x})
	if t.recent.Len() > tidsKept {
		last := t.recent.Remove(t.recent.Back()).(*tidEntry)
		delete(t.by, last.tid)
	}
	return true
}

// What is kept of a path and of all arguments together, in bytes: a container
// can have tidsKept of them.
const (
	maxKeptPath = 512
	maxKeptArgs = 512
)

// short gives a copy, so that what is long is not kept for what is short.
func short(s string, limit int) string {
	return strings.Clone(s[:min(len(s), limit)])
}

func shortArgs(args []string) []string {
	var out []string
	left := maxKeptArgs
	for _, a := range args {
		if left <= 0 {
			break
		}
		a = short(a, left)
		left -= len(a) + 16 // with its header
		out = append(out, a)
	}
	return out
}

func (t *tids) get(token string, tid int) (Executed, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	el, ok := t.by[tid]
	if !ok {
		return Executed{}, false
	}
	e := el.Value.(*tidEntry)
	if e.Token != token || time.Since(e.at) > tidLife {
		return Executed{}, false
	}
	return e.Executed, true
}

func (t *tids) forget(token string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for el := t.recent.Front(); el != nil; {
		next := el.Next()
		if e := el.Value.(*tidEntry); e.Token == token {
			t.recent.Remove(el)
			delete(t.by, e.tid)
		}
		el = next
	}
}

var errGone = errors.New("the thread is gone")
