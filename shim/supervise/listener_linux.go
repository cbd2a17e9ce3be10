package supervise

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
)

// inFlight is how many notifications of one listener are decided on at once.
// The others wait in the kernel.
const inFlight = 48

// listener answers the notifications of one filter.
type listener struct {
	w      *Worker
	c      *container
	serial uint64
	file   *os.File // in the runtime's poller: no thread waits for it
	raw    syscall.RawConn
	slots  chan struct{}
	busy   sync.WaitGroup

	mu   sync.Mutex
	meta listenerMeta
	// runtime is the auxiliary vector of meta.PID when its execve was let through;
	// empty once another one was seen. It is random for each executed program.
	runtime string
}

// handOver remembers the program that goes on to execute the first one. It is
// false if it does not wait for this answer any more, and so does not go on.
func (l *listener) handOver(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	runtime, _ := auxiliaryVector(l.meta.PID)
	if !l.valid(id) { // it may be another program's
		return false
	}
	l.runtime = runtime
	return true
}

// asksAgain tells whether meta.PID is still the program whose execve was let
// through. A signal can interrupt the wait for the answer; the call is then made
// again. Go's own preemption does that to runc after 10 ms.
func (l *listener) asksAgain(tid int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.runtime == "" || tid != l.meta.PID {
		return false
	}
	now, ok := auxiliaryVector(l.meta.PID)
	if !ok || now != l.runtime {
		l.runtime = ""
		return false
	}
	return true
}

func auxiliaryVector(pid int) (string, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/auxv", pid))
	return string(data), err == nil && len(data) > 0
}

// listenerMeta travels with the descriptor from worker to worker.
type listenerMeta struct {
	Exec bool `json:"exec,omitempty"` // a runc exec's, not the container's own
	PID  int  `json:"pid"`            // of the process that runc sent the descriptor for
	// Identity is empty for an exec that has not executed its command yet.
	Identity record.Identity `json:"identity,omitempty"`
	// Executed is true once PID was let through an execve: what is notified
	// before comes from runc itself.
	Executed bool `json:"executed,omitempty"`
}

func listenerKey(token string, serial uint64) string {
	return fmt.Sprintf("%s%s/%016x", keySeccomp, token, serial)
}

// newListener takes over fd.
func newListener(w *Worker, c *container, serial uint64, meta listenerMeta, fd int) (*listener, error) {
	if name, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd)); err != nil || name != "anon_inode:seccomp notify" {
		unix.Close(fd)
		return nil, fmt.Errorf("open listener: descriptor is %.100q, want a seccomp listener", name)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // for the poller; RECV does not look at it
		unix.Close(fd)
		return nil, fmt.Errorf("open listener: %w", err)
	}
	file := os.NewFile(uintptr(fd), "seccomp listener")
	// Only a descriptor in the poller can have a deadline.
	if err := file.SetReadDeadline(time.Time{}); err != nil {
		file.Close()
		return nil, fmt.Errorf("open listener: %w", err)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("open listener: %w", err)
	}
	setSyncWakeUp(fd)
	return &listener{w: w, c: c, serial: serial, file: file, raw: raw, slots: make(chan struct{}, inFlight), meta: meta}, nil
}

func (l *listener) with(f func(fd int) error) error {
	var inner error
	if err := l.raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// hot is how long a listener waits in the kernel for the next notification
// after one, rather than in the poller: a container that executes one program
// after the other is then answered on the processor it runs on, without waking
// another (SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP, since Linux 6.6, does not reach
// through epoll). At most lingering listeners hold a thread for it.
const hot = 10 * time.Millisecond

var lingering = make(chan struct{}, 4)

func (l *listener) linger() {
	select {
	case lingering <- struct{}{}:
	default:
		return
	}
	l.raw.Control(func(fd uintptr) {
		unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(hot/time.Millisecond))
	})
	<-lingering
}

var errHangup = errors.New("nobody uses the filter any more")

// run serves until the last process with the filter is gone (nil), or until
// the listener is told to stop.
func (l *listener) run() error {
	ended := make(chan error, 1)
	go l.serve(ended)
	return <-ended
}

// patience is how long a reader may take over an answer of its own before another
// one reads in its place. A caller can make that long: its memory is read, and what
// it has mapped there can keep whoever reads it waiting (userfaultfd, FUSE).
const patience = 20 * time.Millisecond

// What a reader does.
const (
	reading int32 = iota
	answering
	replaced
)

// serve reads and answers, until somebody else has to read for it.
func (l *listener) serve(ended chan<- error) {
	var doing atomic.Int32
	relief := time.AfterFunc(time.Hour, func() {
		if doing.CompareAndSwap(answering, replaced) {
			go l.serve(ended)
		}
	})
	defer relief.Stop()
	ends, err := l.read(func(slot int) (goOn bool) {
		doing.Store(answering)
		relief.Reset(patience)
		l.answer(slot)
		relief.Stop()
		return doing.CompareAndSwap(answering, reading)
	})
	if ends {
		ended <- err
	}
}

// read hands what it reads to answer while nobody else waits, until that gives
// false. ends says that nobody reads any more.
func (l *listener) read(answer func(slot int) (goOn bool)) (ends bool, err error) {
	failures := 0
	var last time.Time
	for {
		slot, more := -1, false
		var recvErr error
		if time.Since(last) < hot {
			l.linger()
		}
		err := l.raw.Read(func(fd uintptr) bool {
			// RECV waits where there is nothing, so ask first. What was there may be
			// gone by then (the caller was killed): ENOENT.
			fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			if _, err := unix.Poll(fds, 0); err != nil {
				recvErr = err
				return true
			}
			switch {
			case fds[0].Revents&unix.POLLIN != 0:
				l.slots <- struct{}{}
				slot = l.w.journal.take(l.serial)
				recvErr = l.w.journal.Recv(int(fd), slot)
				fds[0].Revents = 0
				if n, err := unix.Poll(fds, 0); err != nil || n > 0 {
					more = true
				}
				return true
			case fds[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0:
				recvErr = errHangup
				return true
			}
			return false
		})
		if err = errors.Join(err, recvErr); err == nil {
			failures, last = 0, time.Now()
			l.busy.Add(1)
			if more {
				go l.answer(slot)
			} else {
				// Nobody else waits: handing it to another thread would cost more
				// than the answer. If that is slow another reader takes over.
				if !answer(slot) {
					return false, nil
				}
			}
			continue
		}
		if slot >= 0 {
			l.w.journal.give(slot)
			<-l.slots
		}
		switch {
		case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EINTR):
		case errors.Is(err, errHangup), errors.Is(err, unix.ENOTCONN):
			return true, nil
		case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, os.ErrClosed):
			return true, err
		default:
			if failures++; failures > 100 {
				return true, fmt.Errorf("read notification: %w", err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// stop makes run return. What was read is still answered.
func (l *listener) stop() { l.file.SetReadDeadline(time.Unix(1, 0)) }

// answer decides on the notification in a slot and sends the answer. A slot
// taken over from an earlier worker holds no place in slots.
func (l *listener) answer(slot int) {
	defer l.busy.Done()
	l.c.share.wait(l.w.ctx)
	began := time.Now()
	l.reply(slot)
	l.c.share.charge(time.Since(began))
	<-l.slots
}

// share is how much of the supervisor's time a container can take for its
// notifications: what it takes more is taken from it by answering later. Nothing is
// answered otherwise for that.
type share struct {
	mu   sync.Mutex
	left time.Duration
	at   time.Time
	// Rate is how much it gets in a second, Most how much it can save up; zero: shareRate, shareMost.
	Rate, Most time.Duration
}

const (
	shareRate = 500 * time.Millisecond // half of one processor: some thousand executions a second
	shareMost = time.Second
	shareCost = 5 * time.Millisecond // what takes longer waits for something
	shareWait = 250 * time.Millisecond
)

// spend takes from the share, and gives how long to wait for it to be even again.
func (s *share) spend(d time.Duration, now time.Time) (wait time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	rate, most := cmp.Or(s.Rate, shareRate), cmp.Or(s.Most, shareMost)
	if s.at.IsZero() {
		s.left, s.at = most, now
	}
	passed := max(now.Sub(s.at), 0)
	s.at = now
	s.left = min(most, s.left+time.Duration(float64(min(passed, time.Hour))*rate.Seconds()))
	s.left = max(s.left-min(d, shareCost), -most)
	if s.left >= 0 {
		return 0
	}
	return min(shareWait, time.Duration(float64(-s.left)/rate.Seconds()))
}

func (s *share) charge(d time.Duration) { s.spend(d, time.Now()) }

// wait holds a caller up for as long as its container is in debt. Its other
// callers that come meanwhile find the debt paid off by less.
func (s *share) wait(ctx context.Context) {
	wait := s.spend(0, time.Now())
	if wait == 0 {
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// fatal is how many workers may end with the same call in hand.
const fatal = 2

func (l *listener) reply(slot int) {
	n := *l.w.journal.at(slot)
	var r response
	if l.w.journal.suspected(slot) >= fatal {
		r = refuse(unix.EPERM)
		l.w.report(l.c, record.Event{Dimension: record.Supervision, Action: "refuse", Object: l.c.verdicts.Name(call(n)),
			Verdict: record.Denied, Mechanism: "seccomp", Reason: "more than one worker ended while it decided on this call",
			Remedy: "please report this line, with the supervisor's log, as a bug"})
	} else {
		r = l.decide(&n)
	}
	if l.w.o.beforeAnswer != nil {
		l.w.o.beforeAnswer(l, &n)
	}
	l.w.journal.clear(slot)
	r.ID = n.ID
	l.sendAnswer(r)
	l.w.journal.give(slot)
}

func (l *listener) sendAnswer(r response) {
	err := l.with(func(fd int) error {
		for {
			err := send(fd, &r)
			if err != unix.EINTR {
				return err
			}
		}
	})
	// ENOENT: the caller is gone or was interrupted, and asks again.
	if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, os.ErrClosed) {
		log.Printf("declarund: answer notification: %v", err)
	}
}

// decide never panics and never lets a call through that it did not decide on.
func (l *listener) decide(n *notification) (r response) {
	defer func() {
		if v := recover(); v != nil {
			r = response{Error: -int32(unix.EPERM)}
			log.Printf("declarund: decide on a notification: panic: %v\n%s", v, debug.Stack())
			l.w.report(l.c, record.Event{Dimension: record.Supervision, Action: "refuse", Object: fmt.Sprintf("call %d", n.Nr),
				Verdict: record.Denied, Mechanism: "seccomp", Reason: fmt.Sprintf("declarun's own fault while deciding: %v", v),
				Remedy: "please report this line, with the supervisor's log, as a bug"})
		}
	}()
	return l.w.decide(l, n)
}

func (l *listener) valid(id uint64) bool {
	return l.with(func(fd int) error {
		if !idValid(fd, id) {
			return unix.ENOENT
		}
		return nil
	}) == nil
}

func (l *listener) snapshot() listenerMeta {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.meta
}

// update changes the meta and tells the monitor.
func (l *listener) update(change func(*listenerMeta)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.meta
	change(&l.meta)
	if l.meta != before {
		l.w.hold.note(listenerKey(l.c.token, l.serial), l.meta.String())
	}
}

func (m listenerMeta) String() string {
	data, _ := json.Marshal(m) // plain data
	return string(data)
}

func parseListenerMeta(s string) (listenerMeta, error) {
	var m listenerMeta
	if err := json.Unmarshal([]byte(s), &m); err != nil {
		return m, fmt.Errorf("parse listener: %w", err)
	}
	switch m.Identity {
	case record.Application, record.HealthCheck, record.Operator:
	case "":
		if m.Exec && !m.Executed {
			break
		}
		fallthrough
	default:
		m.Identity = record.Application
	}
	return m, nil
}
