package netpolicy

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/declarun/declarun/shim/record"
	"github.com/mdlayher/netlink"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// Direction of a refused packet, as the container sees it.
type Direction string

const (
	Inbound   Direction = "in"
	Outbound  Direction = "out"
	Forwarded Direction = "forward" // neither from nor to the container: it routes for somebody
)

// Refusal is one packet that no rule accepts. At most a hundred a second and
// direction are reported; Table.Refused counts all.
type Refusal struct {
	Time      time.Time
	Direction Direction
	// Verdict is Denied, or Observed where the mode is audit.
	Verdict  record.Verdict
	Proto    Proto
	ICMPType uint8 // for protocols 1 and 58
	Src, Dst netip.AddrPort
	UID, GID int // who owns the sending socket, in the supervisor's user namespace; -1: not known
	Prefix   string
	// Name is the declared name that the peer's address was learnt for, where
	// there is one: then it is the port that is not declared.
	Name string
	// Lost is how many refusals before this one could not be read. With no
	// valid Src it is all that this Refusal says.
	Lost uint64
	// Problem is something that went wrong while names were learnt. Then the
	// rest is not set.
	Problem error
}

// Peer is the other side.
func (r Refusal) Peer() netip.AddrPort {
	if r.Direction == Inbound {
		return r.Src
	}
	return r.Dst
}

func (r Refusal) String() string {
	switch {
	case r.Problem != nil:
		return r.Problem.Error()
	case !r.Src.IsValid():
		return fmt.Sprintf("%d refusals were not read", r.Lost)
	}
	s := fmt.Sprintf("%s %s %s -> %s", r.Direction, r.Proto, r.Src, r.Dst)
	if r.UID >= 0 {
		s += fmt.Sprintf(" uid %d", r.UID)
	}
	if r.Name != "" {
		s += " (" + r.Name + ")"
	}
	return s
}

// readBuffer holds a burst of refusals of about 400 bytes each.
const readBuffer = 1 << 20

// Watcher reads what one table refuses and feeds its names. Its sockets are
// bound when NewWatcher returns, so that no answer is missed that comes after.
// It takes two descriptors and two goroutines, and no thread.
type Watcher struct {
	table  *Table
	log    *netlink.Conn
	names  *netlink.Conn // NFQUEUE, or NFLOG where that is not there; nil: no declared names
	held   bool          // names is a queue
	seq    uint32
	hasSeq bool
	// Packets that came before the answer to the bind request.
	early, earlyLog []netlink.Message
}

// NewWatcher opens the sockets in the namespace netnsFD, which t is in. The
// names that are learnt are those declared when it is called.
func NewWatcher(netnsFD int, t *Table) (*Watcher, error) {
	ns, err := openNamespace(netnsFD)
	if err != nil {
		return nil, fmt.Errorf("watch network: %w", err)
	}
	defer ns.Close()
	w := &Watcher{table: t}
	if len(t.Ruleset().Names) > 0 {
		m := bindQueue(QueueNumber)
		if w.held = t.HoldsAnswers(); !w.held {
			m = bindLog(NamesGroup, 0xffff)
		}
		if w.names, w.early, err = bind(ns, m); err != nil {
			return nil, fmt.Errorf("watch network: bind DNS answers: %w", err)
		}
	}
	if w.log, w.earlyLog, err = bind(ns, bindLog(Group, snaplen)); err != nil {
		w.Close()
		return nil, fmt.Errorf("watch network: bind log group: %w", err)
	}
	return w, nil
}

// bind opens a socket in the namespace and sends it one request that binds it.
func bind(ns *os.File, m netlink.Message) (conn *netlink.Conn, early []netlink.Message, err error) {
	if conn, err = dial(unix.NETLINK_NETFILTER, ns); err != nil {
		return nil, nil, err
	}
	_ = conn.SetReadBuffer(readBuffer) // a smaller buffer loses refusals earlier, and says so
	_ = conn.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err = conn.Send(m); err != nil {
		conn.Close()
		return nil, nil, err
	}
	for {
		messages, err := conn.Receive()
		if err != nil {
			conn.Close()
			return nil, nil, err
		}
		for i, m := range messages {
			if m.Header.Type == netlink.Error {
				early = append(early, messages[i+1:]...)
				return conn, early, conn.SetReadDeadline(time.Time{})
			}
			early = append(early, m)
		}
	}
}

// Close closes the sockets. Answers that wait in the queue are dropped; the
// resolver asks again.
func (w *Watcher) Close() error {
	var err error
	for _, c := range []*netlink.Conn{w.log, w.names} {
		if c != nil {
			err = errors.Join(err, c.Close())
		}
	}
	return err
}

// Run reports refusals until ctx ends, and closes the watcher. The function is
// called from more than one goroutine and must be quick: while it works the kernel's buffer fills.
func (w *Watcher) Run(ctx context.Context, report func(Refusal)) error {
	group, ctx := errgroup.WithContext(ctx)
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	group.Go(func() error { return w.readLog(ctx, report) })
	if w.names != nil {
		group.Go(func() error { return w.readNames(ctx, report) })
	}
	err := group.Wait()
	w.Close()
	return err
}

// Watch is NewWatcher and Run.
func Watch(ctx context.Context, netnsFD int, t *Table, report func(Refusal)) error {
	w, err := NewWatcher(netnsFD, t)
	if err != nil {
		return err
	}
	return w.Run(ctx, report)
}

// receive reads messages, those that came early first. An overrun lost some.
func receive(ctx context.Context, conn *netlink.Conn, early *[]netlink.Message) (messages []netlink.Message, overrun bool, err error) {
	if messages, *early = *early, nil; len(messages) > 0 {
		return messages, false, nil
	}
	messages, err = conn.Receive()
	switch {
	case err == nil:
		return messages, false, nil
	case ctx.Err() != nil:
		return nil, false, ctx.Err()
	case errors.Is(err, unix.ENOBUFS):
		return nil, true, nil
	}
	return nil, false, err
}

func (w *Watcher) readLog(ctx context.Context, report func(Refusal)) error {
	var lost uint64
	for {
		messages, overrun, err := receive(ctx, w.log, &w.earlyLog)
		if err != nil {
			return fmt.Errorf("read refusals: %w", err)
		}
		if overrun && !w.hasSeq { // how many is told by the next number
			lost++
		}
		for _, m := range messages {
			e, err := parseLogEntry(m)
			if err != nil {
				continue // the end of a multi-part message
			}
			if e.hasSeq {
				if w.hasSeq {
					lost += uint64(e.seq - w.seq - 1)
				}
				w.seq, w.hasSeq = e.seq, true
			}
			r, ok := w.refusal(e)
			if !ok {
				lost++
				continue
			}
			r.Lost, lost = lost, 0
			report(r)
		}
		if lost > 0 {
			report(Refusal{Time: time.Now(), UID: -1, GID: -1, Lost: lost})
			lost = 0
		}
	}
}

func (w *Watcher) refusal(e logEntry) (Refusal, bool) {
	p, err := parsePacket(e.payload)
	if err != nil {
		return Refusal{}, false
	}
	r := Refusal{Time: e.time, Verdict: record.Denied, Proto: p.proto, ICMPType: p.icmpType, Src: p.src, Dst: p.dst, UID: e.uid, GID: e.gid, Prefix: e.prefix}
	if r.Time.IsZero() {
		r.Time = time.Now()
	}
	if w.table.Ruleset().Mode == record.Audit {
		r.Verdict = record.Observed
	}
	switch strings.TrimSpace(e.prefix) {
	case prefixIn:
		r.Direction = Inbound
	case prefixOut:
		r.Direction = Outbound
	default:
		r.Direction = Forwarded
	}
	r.Name = w.table.NameOf(r.Peer().Addr())
	return r, true
}

// readNames learns from DNS answers. Where there is a queue each answer waits
// until its addresses are allowed; whatever happens it is then let through:
// DNS goes on, and what was not learnt is refused.
func (w *Watcher) readNames(ctx context.Context, report func(Refusal)) error {
	tcp := streams{}
	for {
		messages, _, err := receive(ctx, w.names, &w.early)
		if err != nil {
			return fmt.Errorf("read DNS answers: %w", err)
		}
		for _, m := range messages {
			if !w.held {
				if e, err := parseLogEntry(m); err == nil {
					w.learn(tcp, e.payload, report)
				}
				continue
			}
			e, err := parseQueueEntry(m)
			if err != nil {
				continue
			}
			w.learn(tcp, e.payload, report)
			if _, err := w.names.Send(accept(QueueNumber, e.id)); err != nil && ctx.Err() == nil {
				return fmt.Errorf("release DNS answer: %w", err)
			}
		}
	}
}

// learn takes one packet of a resolver. A panic learns nothing, and the next
// packet is still served.
func (w *Watcher) learn(tcp streams, payload []byte, report func(Refusal)) {
	defer func() {
		if p := recover(); p != nil {
			report(Refusal{Time: time.Now(), UID: -1, GID: -1, Problem: fmt.Errorf("read DNS answer: panic: %v", p)})
		}
	}()
	p, err := parsePacket(payload)
	if err != nil || p.fragment {
		return
	}
	messages := [][]byte{p.payload}
	if p.proto == protoTCP {
		messages = tcp.feed(p)
	}
	rs := w.table.Ruleset()
	for _, msg := range messages {
		a, ok := parseAnswer(msg)
		if !ok {
			continue
		}
		name, ok := rs.declaredName(a.name)
		if !ok {
			continue
		}
		if err := w.table.Learn(name, a.addrs, a.ttl); err != nil {
			report(Refusal{Time: time.Now(), UID: -1, GID: -1, Problem: err})
		}
	}
}
