package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/procmap/proctree"
	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// WorkerOptions are what a worker works with.
type WorkerOptions struct {
	StateDir     string // containers are kept in its directory "containers"
	NotifySocket string // as told to runc
	Version      string
	Events       *events.Sink
	Planner      Planner
	// OpenGuard makes the exec guard, or takes over the fanotify group of an
	// earlier worker. Where it fails, or is nil, containers whose processes are
	// held to the plan do not start.
	OpenGuard func(inherited *os.File) (ExecGuard, error)
	Net       NetGuard // nil: containers whose network is held to the plan do not start

	Lock        string   // as MonitorOptions.Lock; empty: no monitor can take over
	Executable  string   // this program; empty: found
	MonitorArgs []string // see MonitorOptions
	MemfdArgs   []string // what makes MemfdExecutable set vm.memfd_noexec, or call ForbidMemfdExec
	// MemfdExecutable is started in every container's pid namespace, so better a
	// small program; empty: Executable.
	MemfdExecutable string

	// PrepareLife is how long a container may take from its plan to its Guard
	// request. Zero: three minutes.
	PrepareLife time.Duration

	Guard                      ExecGuard // set by RunWorker
	beforeDecide, beforeAnswer func(*listener, *notification)
}

// Worker answers requests and notifications.
type Worker struct {
	o       WorkerOptions
	hold    *hold
	store   store
	journal *journal
	tids    *tids
	trees   *proctree.Watch
	since   time.Time
	boot    string
	noGuard error // why there is no exec guard

	ctx    context.Context
	cancel context.CancelFunc

	mu         sync.Mutex
	containers map[string]*container // by token
	serial     uint64
	stopping   bool
	leaving    chan struct{} // closed when the worker ends

	requests  sync.WaitGroup
	planning  chan struct{}
	conns     chan struct{}
	notifying chan struct{}
	watching  chan struct{}
	drifting  chan struct{}
	listening []net.Listener
}

const (
	connsAtOnce    = 512
	planningAtOnce = 8
	watchersAtOnce = 64
	driftsAtOnce   = 2
	containersMost = 4096
)

// RunWorker runs the inner of the two processes until the monitor says to end
// (nil) or something it cannot work without fails.
func RunWorker(o WorkerOptions) error {
	signal.Ignore(syscall.SIGINT, syscall.SIGPIPE)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	defer signal.Stop(signals)

	l, err := linkFrom(linkFD)
	if err != nil {
		return err
	}
	if err := l.meet(0); err != nil {
		log.Printf("declarund: worker: %v", err) // the monitor is gone: hold sees to it
	}
	w, err := newWorker(o, l)
	if err != nil {
		return err
	}
	if err := w.serve(); err != nil {
		return err
	}
	for {
		select {
		case s := <-signals:
			if s == syscall.SIGHUP {
				if err := o.Events.Reopen(); err != nil {
					log.Printf("declarund: %v", err)
				}
				continue
			}
			// From whoever stops the whole service, or to replace the worker.
			return w.leave()
		case <-w.hold.told:
			return w.leave()
		}
	}
}

func newWorker(o WorkerOptions, l *link) (*Worker, error) {
	executable, err := ownPath(o.Executable)
	if err != nil {
		return nil, err
	}
	o.Executable = executable
	if o.PrepareLife <= 0 {
		o.PrepareLife = 3 * time.Minute
	}
	if _, err := notifSizes(); err != nil {
		return nil, err
	}
	w := &Worker{
		o: o, store: store{filepath.Join(o.StateDir, "containers")}, tids: newTids(), since: time.Now(), boot: bootID(),
		leaving: make(chan struct{}), containers: map[string]*container{}, planning: make(chan struct{}, planningAtOnce),
		conns: make(chan struct{}, connsAtOnce), notifying: make(chan struct{}, connsAtOnce), watching: make(chan struct{}, watchersAtOnce),
		drifting: make(chan struct{}, driftsAtOnce),
		hold:     &hold{table: newTable(), executable: executable, monitorArgs: o.MonitorArgs, told: make(chan string, 4), link: l},
	}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.trees = proctree.New(proctree.Options{Found: w.found, Lost: w.lostProcesses, Phase: w.phaseOf})
	if err := w.hold.table.fill(l); err != nil {
		return nil, err
	}
	fd := -1
	if f := w.hold.table.get(keyJournal); f == nil {
		return nil, errors.New("take over descriptors: no journal")
	} else if fd, err = dup(f); err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	w.journal, err = mapJournal(fd)
	unix.Close(fd)
	return w, err
}

func bootID() string {
	data, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(data))
}

// serve takes over what is there, then begins.
func (w *Worker) serve() error {
	go w.hold.listen()
	go w.breathe()
	crashed := w.hold.table.under(keyJournal)[keyJournal].meta == "working"
	w.hold.note(keyJournal, "working")
	w.openGuard()
	kept := w.load()
	for key := range w.hold.table.under(keyFiles) {
		if token, _, _ := strings.Cut(strings.TrimPrefix(key, keyFiles), "/"); w.find(token) == nil {
			w.hold.drop(key)
		}
	}
	if w.o.Guard != nil {
		// Whatever an earlier worker left unanswered has a descriptor number of
		// that worker's: the lowest that were free.
		fds := make([]int32, descriptors)
		for i := range fds {
			fds[i] = int32(i)
		}
		w.o.Guard.Sweep(fds)
		go w.runGuard("exec guard", w.o.Guard.Run)
	}
	if w.o.Net != nil {
		go w.runGuard("network guard", w.o.Net.Run)
	}
	w.adoptListeners()
	if crashed {
		w.report(nil, record.Event{Dimension: record.Supervision, Action: "restart", Object: "supervisor", Verdict: record.Reported, Mechanism: "supervisor",
			Reason: fmt.Sprintf("a worker ended without being told to; %d containers were taken over, events of the moment may be missing", kept)})
	}
	for key, each := range map[string]func(*net.UnixConn){keyWire: w.converse, keyNotify: w.receive} {
		f := w.hold.table.get(key)
		if f == nil {
			return fmt.Errorf("take over descriptors: no socket %s", key)
		}
		ln, err := net.FileListener(f) // duplicates
		if err != nil {
			return fmt.Errorf("take over socket %s: %w", key, err)
		}
		ul, ok := ln.(*net.UnixListener)
		if !ok {
			return fmt.Errorf("take over socket %s: not a unix socket", key)
		}
		ul.SetUnlinkOnClose(false)
		w.listening = append(w.listening, ul)
		limit := w.conns
		if key == keyNotify {
			limit = w.notifying
		}
		go w.accept(ul, limit, each)
	}
	go w.sweep()
	if w.o.Lock != "" {
		fd, err := listenLink(takeOverSocket(w.o.Lock))
		if err != nil {
			return err
		}
		go w.takeOvers(fd)
	}
	return nil
}

// takeOvers lets new monitors replace the one there is.
func (w *Worker) takeOvers(fd int) {
	for {
		conn, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			if err != unix.EINTR && err != unix.ECONNABORTED {
				log.Printf("declarund: accept monitor: %v", err)
				time.Sleep(time.Second)
			}
			continue
		}
		l, err := linkFrom(conn)
		if err != nil {
			unix.Close(conn)
			continue
		}
		if err := l.meet(0); err != nil {
			log.Printf("declarund: accept monitor: %v", err)
			l.close()
			continue
		}
		w.hold.offer(l)
	}
}

// breathe says that the worker works for as long as what everything needs can be had.
func (w *Worker) breathe() {
	for {
		w.mu.Lock()
		w.mu.Unlock() //nolint:staticcheck // having had it is the point
		w.journal.mu.Lock()
		w.journal.mu.Unlock() //nolint:staticcheck
		w.hold.alive()
		time.Sleep(2 * time.Second)
	}
}

func (w *Worker) runGuard(name string, run func(context.Context, Lookup) error) {
	for pause := 50 * time.Millisecond; w.ctx.Err() == nil; pause = min(2*pause, 5*time.Second) {
		err := func() (err error) {
			defer func() {
				if v := recover(); v != nil {
					err = fmt.Errorf("panic: %v", v)
				}
			}()
			return run(w.ctx, w)
		}()
		if w.ctx.Err() != nil {
			return
		}
		w.report(nil, record.Event{Dimension: record.Supervision, Action: "restart", Object: name, Verdict: record.Reported, Mechanism: "supervisor",
			Reason: fmt.Sprintf("the %s ended and is started again: %v", name, err)})
		select {
		case <-w.ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (w *Worker) openGuard() {
	if w.o.OpenGuard == nil {
		w.noGuard = errors.New("this supervisor has no exec guard")
		return
	}
	var inherited *os.File
	if f := w.hold.table.get(keyGroup); f != nil {
		fd, err := dup(f)
		if err != nil {
			w.noGuard = err
			return
		}
		inherited = os.NewFile(uintptr(fd), "fanotify")
	}
	guard, err := w.o.OpenGuard(inherited)
	if err != nil {
		w.noGuard = err
		log.Printf("declarund: %v", err)
		return
	}
	w.o.Guard = guard
	if f := guard.File(); f != nil && inherited == nil {
		fd, err := dup(f)
		if err != nil {
			log.Printf("declarund: keep exec guard: %v", err)
			return
		}
		w.hold.keep(keyGroup, "", os.NewFile(uintptr(fd), "fanotify"))
	}
}

// load takes over the containers on disk and removes what is stale.
func (w *Worker) load() (kept int) {
	tokens, err := w.store.tokens()
	if err != nil {
		log.Printf("declarund: %v", err)
	}
	for _, token := range tokens {
		if err := w.adopt(token); err != nil {
			if !errors.Is(err, errStale) {
				log.Printf("declarund: container %s: %v", token, err)
				w.report(nil, record.Event{Dimension: record.Supervision, Action: "adopt", Object: token, Verdict: record.Reported, Mechanism: "supervisor",
					Reason: fmt.Sprintf("what is stored of a container cannot be used; what is notified of it is refused: %v", err)})
			}
			w.store.remove(token)
			continue
		}
		kept++
	}
	return kept
}

var errStale = errors.New("the container is gone")

func (w *Worker) adopt(token string) error {
	st, p, verdicts, err := w.store.load(token)
	if err != nil {
		return err
	}
	c := &container{token: token, key: st.Key, plan: p, verdicts: verdicts, facts: st.Facts, prepared: st.Prepared, state: st, listeners: map[uint64]*listener{}}
	switch {
	case st.Boot != w.boot:
		return errStale
	case st.Guarded.IsZero():
		if time.Since(st.Prepared) > w.o.PrepareLife {
			return errStale
		}
		w.add(c)
		return nil
	}
	pidfd, err := unix.PidfdOpen(st.PID, unix.PIDFD_NONBLOCK)
	if err != nil || events.StartTime(st.PID) != st.Start {
		if err == nil {
			unix.Close(pidfd)
		}
		return errStale
	}
	c.pidfd = pidfd
	c.running = len(w.hold.table.under(keySeccomp+token+"/")) == 0 // else its listener knows
	w.add(c)
	if len(st.Counts) > 0 {
		w.o.Events.Restore(c.key.ID, st.Counts)
	}
	target, closeFiles := w.adoptedTarget(c)
	defer closeFiles()
	if err := w.arm(c, target, &undo{}); err != nil {
		// Its marks are still there and refuse what belongs to nobody; its seccomp
		// filter and its network rules hold. It goes on, held closer.
		w.report(c, record.Event{Dimension: record.Supervision, Action: "adopt", Object: c.key.ID, Verdict: record.Reported, Mechanism: "supervisor",
			Reason: fmt.Sprintf("a guard could not be taken over: %v", err), Remedy: "restart the container"})
	}
	if w.o.Guard != nil && st.Phase == record.Serving {
		w.o.Guard.Serving(token)
	}
	if c.loops = w.loadLoops(c, target.Files["rootfs"]); c.loops != nil {
		if st.Phase == record.Serving || !saysWhen(c.plan) {
			c.loops.serve()
		}
		go w.watchLoops(c)
	}
	w.addTree(c, st.PID, true)
	go w.await(c)
	return nil
}

const keyFiles = "file/" // + token + "/" + name

// adoptedTarget gives the descriptors that the monitor kept, or opens them anew.
func (w *Worker) adoptedTarget(c *container) (Target, func()) {
	t := Target{Token: c.token, Key: c.key, PID: c.state.PID, Plan: c.plan, Facts: c.facts, Adopted: true, Files: map[string]*os.File{}}
	prefix := keyFiles + c.token + "/"
	for key, h := range w.hold.table.under(prefix) {
		if fd, err := dup(h.file); err == nil {
			t.Files[strings.TrimPrefix(key, prefix)] = os.NewFile(uintptr(fd), key)
		}
	}
	if len(t.Files) == 0 {
		proc := "/proc/" + strconv.Itoa(c.state.PID)
		for name, at := range map[string]string{"netns": "/ns/net", "mntns": "/ns/mnt", "pidns": "/ns/pid", "rootfs": "/root"} {
			flags := unix.O_CLOEXEC | unix.O_RDONLY
			if name == "rootfs" {
				flags = unix.O_CLOEXEC | unix.O_PATH
			}
			if fd, err := unix.Open(proc+at, flags, 0); err == nil {
				t.Files[name] = os.NewFile(uintptr(fd), proc+at)
			}
		}
	}
	return t, func() {
		for _, f := range t.Files {
			f.Close()
		}
	}
}

func (w *Worker) add(c *container) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.containers[c.token] = c
}

func (w *Worker) find(token string) *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.containers[token]
}

// byKey gives the container with a key: the guarded one if there are several.
func (w *Worker) byKey(key wire.Key) *container {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found *container
	for _, c := range w.containers {
		if c.key == key && (found == nil || c.guarded()) {
			found = c
		}
	}
	return found
}

func (w *Worker) all() []*container {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := make([]*container, 0, len(w.containers))
	for _, c := range w.containers {
		all = append(all, c)
	}
	return all
}

// adoptListeners goes on with the notify descriptors of an earlier worker, and
// answers what it had read.
func (w *Worker) adoptListeners() {
	bySerial := map[uint64]*listener{}
	for key, h := range w.hold.table.under(keySeccomp) {
		token, hex, _ := strings.Cut(strings.TrimPrefix(key, keySeccomp), "/")
		serial, err := strconv.ParseUint(hex, 16, 64)
		c := w.find(token)
		if err != nil || c == nil {
			w.hold.drop(key) // closed: whoever it belonged to is refused
			continue
		}
		meta, err := parseListenerMeta(h.meta)
		if err != nil {
			meta = listenerMeta{Exec: true, Identity: record.Application, Executed: true}
		}
		if !meta.Exec && meta.Executed {
			c.running = true // nobody else knows the container yet
		}
		fd, err := dup(h.file)
		if err == nil {
			var l *listener
			if l, err = newListener(w, c, serial, meta, fd); err == nil {
				bySerial[serial] = l
				w.serial = max(w.serial, serial)
				continue
			}
		}
		log.Printf("declarund: take over listener of %s: %v", c.key.ID, err)
		w.hold.drop(key)
	}
	type who struct {
		listener uint64
		tid      uint32
		nr       int32
		arg      uint64
	}
	counted := map[who]bool{} // an interrupted caller comes back: several slots, one call
	for _, slot := range w.journal.left() {
		l := bySerial[w.journal.head(slot).Listener]
		if l == nil {
			w.journal.give(slot)
			continue
		}
		n := w.journal.at(slot)
		if one := (who{l.serial, n.PID, n.Nr, n.Args[0]}); !counted[one] {
			counted[one] = true
			w.journal.suspect(slot)
		}
		l.busy.Add(1)
		go func() {
			defer l.busy.Done()
			l.reply(slot)
		}()
	}
	for _, l := range bySerial {
		w.begin(l)
	}
	for _, c := range w.all() {
		c.mu.Lock()
		c.lost = !c.state.Guarded.IsZero() && len(c.listeners) == 0 && c.notifies() && events.Filtered(c.state.PID)
		lost := c.lost
		c.mu.Unlock()
		if lost {
			w.report(c, record.Event{Dimension: record.Supervision, Action: "adopt", Object: "notifications", Verdict: record.Reported, Mechanism: "seccomp",
				Reason: lostNote, Remedy: "restart the container"})
		}
	}
}

const lostNote = "nobody answers this container's notified calls since the supervisor was stopped: they fail, execve and listen among them"

// begin lets a listener serve until nobody uses its filter any more.
func (w *Worker) begin(l *listener) {
	c := l.c
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		l.file.Close()
		w.hold.drop(listenerKey(c.token, l.serial))
		return
	}
	c.listeners[l.serial] = l
	if !l.meta.Exec {
		c.lost = false
	}
	c.mu.Unlock()
	go func() {
		err := l.run()
		if errors.Is(err, os.ErrDeadlineExceeded) { // this worker leaves: the next one goes on
			return
		}
		// Of a container that is gone the file was closed while it was read, for
		// which package os has an error of its own.
		c.mu.Lock()
		gone := c.gone
		c.mu.Unlock()
		if err != nil && !gone && !errors.Is(err, os.ErrClosed) {
			w.report(c, record.Event{Dimension: record.Supervision, Action: "refuse", Object: "notifications", Verdict: record.Denied, Mechanism: "seccomp",
				Reason: fmt.Sprintf("notifications cannot be read; what is notified is refused from now on: %v", err), Remedy: "restart the container"})
		}
		l.busy.Wait()
		l.file.Close()
		c.mu.Lock()
		delete(c.listeners, l.serial)
		c.mu.Unlock()
		w.hold.drop(listenerKey(c.token, l.serial))
	}()
}

func (w *Worker) accept(ln *net.UnixListener, limit chan struct{}, each func(*net.UnixConn)) {
	for {
		limit <- struct{}{}
		conn, err := ln.AcceptUnix()
		if err != nil {
			<-limit
			if errors.Is(err, net.ErrClosed) {
				return
			}
			log.Printf("declarund: accept: %v", err)
			time.Sleep(100 * time.Millisecond) // EMFILE: nothing gets better by hurry
			continue
		}
		w.requests.Add(1)
		go func() {
			defer w.requests.Done()
			defer func() { <-limit }()
			defer conn.Close()
			defer func() {
				if v := recover(); v != nil {
					log.Printf("declarund: request: panic: %v", v)
				}
			}()
			each(conn)
		}()
	}
}

// receive takes a notify descriptor from runc.
func (w *Worker) receive(conn *net.UnixConn) {
	cred, err := wire.PeerCred(conn)
	if err != nil || cred.UID != 0 {
		log.Printf("declarund: notify socket: connection of uid %d: %v", cred.UID, err)
		return
	}
	conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	r := &stateReader{conn: conn}
	defer func() { closeFiles(r.files) }()
	state, err := readProcessState(r)
	if err == nil && len(r.files) != 1 {
		err = fmt.Errorf("read process state: %d descriptors, want 1", len(r.files))
	}
	if err != nil {
		if len(r.files) > 0 || !errors.Is(err, errNotComplete) {
			w.refuseListener(nil, err)
		}
		return
	}
	c := w.find(state.Metadata)
	switch {
	case c == nil:
		w.refuseListener(nil, fmt.Errorf("container %.80q is not known here", state.State.ID))
		return
	case !c.guarded():
		w.refuseListener(c, errors.New("its guards have not been set: the createRuntime hook did not run"))
		return
	}
	fd, err := dup(r.files[0])
	if err != nil {
		w.refuseListener(c, err)
		return
	}
	w.mu.Lock()
	w.serial++
	serial := w.serial
	w.mu.Unlock()
	meta := listenerMeta{Exec: state.State.Status != "creating", PID: state.PID}
	if !meta.Exec {
		meta.Identity = record.Application
	}
	l, err := newListener(w, c, serial, meta, fd)
	if err != nil {
		w.refuseListener(c, err)
		return
	}
	file := r.files[0]
	r.files = nil
	w.hold.keep(listenerKey(c.token, serial), meta.String(), file)
	w.begin(l)
}

func (w *Worker) refuseListener(c *container, err error) {
	w.report(c, record.Event{Dimension: record.Supervision, Action: "refuse", Object: "notifications", Verdict: record.Denied, Mechanism: "seccomp",
		Reason: fmt.Sprintf("a notify descriptor was not taken, so every notified call fails: %v", err), Remedy: "create the container again"})
}

// stateReader reads a connection with the descriptors that come along.
type stateReader struct {
	conn  *net.UnixConn
	files []*os.File
}

func (r *stateReader) Read(p []byte) (int, error) {
	oob := make([]byte, unix.CmsgSpace(16*4))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, oob)
	r.files = append(r.files, rights(oob[:oobn])...)
	switch {
	case err != nil:
		if errors.Is(err, io.EOF) {
			err = io.EOF
		}
		return n, err
	case flags&unix.MSG_CTRUNC != 0 || len(r.files) > 16:
		return n, errors.New("too many descriptors")
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// await ends a container with its init.
func (w *Worker) await(c *container) {
	c.mu.Lock()
	f := os.NewFile(uintptr(c.pidfd), "pidfd")
	c.mu.Unlock()
	defer f.Close()
	raw, err := f.SyscallConn()
	if err == nil {
		err = raw.Read(func(fd uintptr) bool {
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, err := unix.Poll(fds, 0)
			return n > 0 || err != nil && err != unix.EINTR
		})
	}
	if err != nil {
		log.Printf("declarund: wait for container %s: %v", c.key.ID, err)
	}
	w.forget(c)
}

// forget lets go of everything that belongs to a container.
func (w *Worker) forget(c *container) {
	w.mu.Lock()
	if w.stopping { // the next worker sees that it is gone
		w.mu.Unlock()
		return
	}
	delete(w.containers, c.token)
	w.mu.Unlock()
	c.mu.Lock()
	if c.gone {
		c.mu.Unlock()
		return
	}
	c.gone = true
	listeners, loops := c.listeners, c.loops
	c.listeners = map[uint64]*listener{}
	c.mu.Unlock()
	if loops != nil {
		loops.end()
	}
	if w.o.Guard != nil {
		w.o.Guard.Forget(c.token)
	}
	if w.o.Net != nil {
		w.o.Net.Forget(c.token)
	}
	for _, l := range listeners {
		l.file.Close()
	}
	for _, prefix := range []string{keySeccomp, keyFiles} {
		for key := range w.hold.table.under(prefix + c.token + "/") {
			w.hold.drop(key)
		}
	}
	w.tids.forget(c.token)
	w.trees.Forget(c.token)
	if other := w.byKey(c.key); other == nil {
		w.o.Events.End(c.key.ID)
	}
	if err := w.store.remove(c.token); err != nil {
		log.Printf("declarund: %v", err)
	}
}

// sweep forgets what was prepared and never guarded.
func (w *Worker) sweep() {
	ticker := time.NewTicker(min(w.o.PrepareLife/4, 15*time.Second))
	defer ticker.Stop()
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-ticker.C:
		}
		for _, c := range w.all() {
			c.mu.Lock()
			stale := c.state.Guarded.IsZero() && !c.busy && time.Since(c.prepared) > w.o.PrepareLife
			c.mu.Unlock()
			if stale {
				w.forget(c)
			}
		}
	}
}

// leave finishes what was begun. Descriptors stay open in the monitor.
func (w *Worker) leave() error {
	w.hold.leave()
	w.mu.Lock()
	w.stopping = true
	w.mu.Unlock()
	close(w.leaving)
	for _, ln := range w.listening {
		ln.Close()
	}
	waitAtMost(10*time.Second, w.requests.Wait)
	w.cancel()
	for _, c := range w.all() {
		c.mu.Lock()
		var listeners []*listener
		for _, l := range c.listeners {
			listeners = append(listeners, l)
		}
		c.state.Counts = w.o.Events.Counts(c.key.ID)
		st, loops := c.state, c.loops
		c.mu.Unlock()
		for _, l := range listeners {
			l.stop()
		}
		for _, l := range listeners {
			waitAtMost(5*time.Second, l.busy.Wait)
		}
		if err := w.store.save(c.token, "state.json", st); err != nil {
			log.Printf("declarund: %v", err)
		}
		if loops != nil {
			w.saveLoops(c.token, loops)
		}
		w.saveTree(c.token)
	}
	w.trees.Close()
	w.hold.note(keyJournal, "left")
	return w.o.Events.Close()
}

func waitAtMost(d time.Duration, wait func()) {
	done := make(chan struct{})
	go func() { wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(d):
	}
}

// Executed tells a guard on whose behalf a thread executes. What is not known
// is the application's, the narrowest.
func (w *Worker) Executed(token string, tid int) Executed {
	x, ok := w.tids.get(token, tid)
	if !ok {
		x = Executed{Token: token, Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	}
	if c := w.find(token); c != nil {
		x.Phase, x.Mode = c.phase(), c.mode(record.Processes)
		c.mu.Lock()
		x.Running = c.running || !c.notifies()
		c.mu.Unlock()
	}
	return x
}

// Report takes an event of a guard.
func (w *Worker) Report(token string, e record.Event) {
	if p := e.Process; p != nil && p.Exe == "" && p.PID > 0 && e.Dimension == record.Storage { // it was gone when the guard looked at it
		if known, ok := w.trees.Lately(token, p.PID); ok {
			e.Process = ancestry(append([]record.LiveProcess{known.LiveProcess}, known.By...))
		}
	}
	w.report(w.find(token), e)
}

// report fills in what an event has of its container. c may be nil.
func (w *Worker) report(c *container, e record.Event) {
	if c != nil {
		e.Container = c.key.ID
		e.Name, e.Image = orElse(e.Name, c.facts.Name), orElse(e.Image, c.facts.Image)
		if e.Image == "" {
			e.Image = c.plan.Image.Ref
		}
		if e.Phase == "" {
			e.Phase = c.phase()
		}
		if e.Mode == "" {
			e.Mode = c.mode(e.Dimension)
		}
	}
	if e.Reason == "" {
		e.Reason = events.Reason(e.Dimension, e.Action, e.Object, e.Verdict, e.Phase)
	}
	if c != nil && e.Dimension == record.Processes && e.Action == "execve" && e.Verdict != record.Reported {
		by := ""
		if e.Process != nil {
			by = e.Process.Exe
		}
		w.trees.Refuse(c.token, by, e.Object, e.Identity, e.Verdict, e.Reason)
	}
	if e.Remedy == "" {
		e.Remedy = events.Remedy(e.Dimension, e.Action, e.Object)
	}
	w.o.Events.Report(e)
}

func orElse(s, other string) string {
	if s != "" {
		return s
	}
	return other
}

var _ Lookup = (*Worker)(nil)
