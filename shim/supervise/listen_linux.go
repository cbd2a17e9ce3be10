package supervise

import (
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// place is where a socket listens, as far as plans speak of it.
type place struct {
	proto string // "tcp", "sctp"…; "" where the domain has no ports
	name  string // "unix", "vsock"…: of a domain without ports
	addr  netip.AddrPort
	local bool // nobody outside the container can connect
}

func (p place) String() string {
	if p.proto == "" {
		return p.name
	}
	return fmt.Sprintf("%s/%d", p.proto, p.addr.Port())
}

// placeOf tells where a socket is bound.
func placeOf(fd int) (place, error) {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return place{}, err
	}
	switch domain {
	case unix.AF_UNIX:
		return place{name: "unix", local: true}, nil
	case unix.AF_INET, unix.AF_INET6:
	default:
		return place{name: fmt.Sprintf("address family %d", domain)}, nil
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return place{}, err
	}
	proto := map[int]string{unix.IPPROTO_TCP: "tcp", unix.IPPROTO_MPTCP: "tcp", unix.IPPROTO_SCTP: "sctp", unix.IPPROTO_DCCP: "dccp", unix.IPPROTO_UDP: "udp"}[protocol]
	if proto == "" {
		proto = fmt.Sprintf("ip-%d", protocol)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return place{}, err
	}
	p := place{proto: proto}
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		p.addr = netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		p.addr = netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	default:
		return place{}, fmt.Errorf("socket of an unknown kind %T", sa)
	}
	p.local = p.addr.Addr().IsLoopback()
	return p, nil
}

// takeFD copies a descriptor of another thread.
func takeFD(tid, fd int) (int, error) {
	// A thread may have descriptors of its own (CLONE_FILES undone); Linux 6.9.
	pidfd, err := unix.PidfdOpen(tid, unix.PIDFD_THREAD)
	if errors.Is(err, unix.EINVAL) {
		tgid, ok := events.Tgid(tid)
		if !ok {
			return -1, unix.ESRCH
		}
		pidfd, err = unix.PidfdOpen(tgid, 0)
	}
	if err != nil {
		return -1, err
	}
	defer unix.Close(pidfd)
	return unix.PidfdGetfd(pidfd, fd, 0)
}

// decideListen makes the call itself, on its own copy of the socket, where the
// socket has a port: what was looked at is what listens, whatever the caller does
// to its descriptor.
func (w *Worker) decideListen(l *listener, n *notification, by filter.Caller) response {
	c := l.c
	fd, err := takeFD(int(n.PID), int(int32(n.Args[0])))
	if !l.valid(n.ID) { // it may have been another thread's
		if err == nil {
			unix.Close(fd)
		}
		return refuse(unix.EPERM)
	}
	mode := c.mode(record.Network)
	watched := mode != record.Off && c.plan.Network.Enforced
	switch {
	case errors.Is(err, unix.EBADF):
		return refuse(unix.EBADF)
	case err != nil && (!watched || mode == record.Audit):
		return w.obey(l, n, by, "?")
	case err != nil:
		w.report(c, record.Event{Dimension: record.Supervision, Action: "refuse", Object: "listen", Verdict: record.Denied, Mechanism: "seccomp",
			Process: snapshotOf(n), Reason: fmt.Sprintf("cannot copy the caller's socket: %v", err)})
		return refuse(unix.EACCES)
	}
	defer unix.Close(fd)

	where, err := placeOf(fd)
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			return refuse(errno) // ENOTSOCK: as listen would answer
		}
		return refuse(unix.EACCES)
	}
	deviates := watched && w.undeclared(c, where)
	verdict := record.Denied
	switch {
	case by.Identity == record.Operator:
		verdict = record.Reported
	case mode == record.Audit:
		verdict = record.Observed
	}
	chosen := deviates && verdict == record.Denied && w.kernelChose(by, where)
	if chosen {
		verdict = record.Reported
	}
	if deviates && verdict == record.Denied {
		w.reportListen(l, n, by, where, verdict)
		return refuse(unix.EACCES)
	}
	if r := w.obey(l, n, by, where.String()); r != goOn {
		return r
	}
	if where.proto == "" {
		// The kernel shows who made a unix socket listen to those who connect
		// (SO_PEERCRED): that must not be the supervisor, who is root. If the caller
		// puts a socket with a port in its place meanwhile, packets to an undeclared
		// port are still refused by the network guard.
		if deviates {
			w.reportListen(l, n, by, where, verdict)
		}
		return goOn
	}
	if err := unix.Listen(fd, int(int32(n.Args[1]))); err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			return refuse(errno)
		}
		return refuse(unix.EACCES)
	}
	// A socket that was not bound got a port only now; one that was can have
	// been disconnected and bound again by another thread meanwhile.
	after, err := placeOf(fd)
	if err != nil || after != where {
		if err != nil || watched && w.undeclared(c, after) {
			if verdict == record.Denied || chosen && (err != nil || !w.kernelChose(by, after)) {
				unix.Shutdown(fd, unix.SHUT_RDWR)
				w.reportListen(l, n, by, after, record.Denied)
				return refuse(unix.EACCES)
			}
		}
		where = after
	}
	if deviates {
		w.reportListen(l, n, by, where, verdict)
	}
	if w.serves(l, n, where, by) {
		w.serving(c)
	}
	return response{}
}

// kernelChose tells whether the application listens, while it starts, where the
// kernel chooses the port: to learn what sockets can do (varnishd does not start
// if that fails), or to talk to itself. Nobody can expect such a port to be
// declared, and nobody outside reaches it: the packet filter holds from before
// the first program. It is reported. Once the container serves, it is refused.
//
// That the kernel chose cannot be seen; the port lies in its default range (ip(7),
// ip_local_port_range), or is not chosen yet.
func (w *Worker) kernelChose(by filter.Caller, p place) bool {
	port := p.addr.Port()
	return by.Phase == record.Starting && by.Identity == record.Application && !by.BeforeExec &&
		p.proto == "tcp" && (port == 0 || port >= 32768 && port <= 60999)
}

func (w *Worker) undeclared(c *container, p place) bool {
	return !p.local && (p.proto == "" || !declares(c.plan, p.proto, p.addr.Port()) && !within(c.plan.Network.Inside, p.proto, p.addr.Port()))
}

func (w *Worker) reportListen(l *listener, n *notification, by filter.Caller, p place, v record.Verdict) {
	reason := events.Reason(record.Network, "listen", p.String(), v, by.Phase)
	if p.proto != "" {
		reason += fmt.Sprintf(" (on %s)", p.addr.Addr())
	}
	w.report(l.c, record.Event{Dimension: record.Network, Action: "listen", Object: p.String(), Verdict: v, Phase: by.Phase, Identity: by.Identity,
		Mechanism: "seccomp", Process: snapshotOf(n), Origins: nearestPorts(l.c.plan), Reason: reason})
}

// serves tells whether this listen is the one that ends start-up: a main
// program of the application, no longer below what only starts it, on a declared
// port that others can reach.
func (w *Worker) serves(l *listener, n *notification, p place, by filter.Caller) bool {
	if by.Identity != record.Application || by.Phase != record.Starting || by.BeforeExec ||
		p.local || p.proto != "tcp" || !declares(l.c.plan, "tcp", p.addr.Port()) {
		return false
	}
	tgid, ok := events.Tgid(int(n.PID))
	if !ok {
		return false
	}
	l.c.mu.Lock()
	init := l.c.state.PID
	l.c.mu.Unlock()
	exe := exeOf(tgid)
	return exe != "" && isMain(l.c.plan, exe) && !prepares(l.c.plan, tgid, init)
}

func exeOf(pid int) string {
	exe, _ := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return strings.TrimSuffix(exe, " (deleted)")
}

// prepares tells whether a process was started by something that is only there
// until the container serves: an entrypoint's script that lets the server run for
// a moment, to fill it, before it executes it for good.
func prepares(p *plan.Plan, pid, init int) bool {
	for range 64 {
		if pid == init {
			return false
		}
		parent, ok := events.Parent(pid)
		if !ok || parent <= 1 {
			return false
		}
		if pid = parent; onlyStarts(p, exeOf(pid)) {
			return true
		}
	}
	return false
}

// serving takes away what only start-up needed: before the call that ends it is answered.
func (w *Worker) serving(c *container) {
	c.mu.Lock()
	if c.state.Phase == record.Serving {
		c.mu.Unlock()
		return
	}
	c.state.Phase = record.Serving
	st := c.state
	c.mu.Unlock()
	c.loops.serve()
	if w.o.Guard != nil {
		w.o.Guard.Serving(c.token)
	}
	if err := w.store.save(c.token, "state.json", st); err != nil {
		log.Printf("declarund: %v", err)
		w.report(c, record.Event{Dimension: record.Supervision, Action: "store", Object: "phase", Verdict: record.Reported, Mechanism: "supervisor",
			Reason: fmt.Sprintf("the container serves, which a restarted supervisor would not know: %v", err), Remedy: "make room in the state directory"})
	}
}
