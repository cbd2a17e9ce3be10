package proctree

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// linux/connector.h: CN_IDX_PROC and CN_VAL_PROC. The former is the multicast group, too.
const connectorProcess = 1

// linux/cn_proc.h: enum proc_cn_mcast_op.
const (
	multicastListen = 1
	multicastIgnore = 2
)

// bufferSize holds some ten thousand events: a kernel that forks as fast as it
// can takes seconds to fill it.
const bufferSize = 8 << 20

// ackPatience is how long the kernel may take to say that it listens. It answers
// from within the call that asks.
const ackPatience = 500 * time.Millisecond

// Connector is a socket of the kernel's process connector.
type Connector struct {
	file   *os.File
	inode  uint64
	table  *os.File // of sockets, where its drops are counted; nil: they are not known
	masked bool     // the kernel filters by kind
	drops  uint64   // that were told
}

// UnsupportedError says that this machine tells nothing of its processes. The
// caller goes on without, and says so.
type UnsupportedError struct {
	Err  error
	Hint string
}

func (e *UnsupportedError) Error() string {
	return fmt.Sprintf("listen to process events: %v: unsupported operation", e.Err)
}

// Unwrap gives the cause.
func (e *UnsupportedError) Unwrap() error { return e.Err }

// Remedy says what to do.
func (e *UnsupportedError) Remedy() string { return e.Hint }

// OpenConnector begins to listen. From then on each fork, execution and end on
// this machine costs the kernel one message, until Close.
//
// The connector is in the machine's first network namespace only. A process that
// has another one, as the supervisor of an engine with a network of its own,
// opens its socket where the connector is found to be.
func OpenConnector() (*Connector, error) { return openAnywhere(bufferSize) }

var errElsewhere = errors.New("no process connector in this network namespace")

// namespacesMost bounds how many network namespaces are tried.
const namespacesMost = 256

func openAnywhere(buffer int) (*Connector, error) {
	c, err := openConnector(buffer)
	if !errors.Is(err, errElsewhere) {
		return c, err
	}
	pids, listErr := all()
	if listErr != nil {
		return c, err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		tried := map[uint64]bool{}
		for _, pid := range pids {
			ns, nsErr := namespace(pid, "net")
			if nsErr != nil || tried[ns] || len(tried) >= namespacesMost {
				continue
			}
			tried[ns] = true
			f, openErr := os.Open("/proc/" + strconv.Itoa(pid) + "/ns/net")
			if openErr != nil {
				continue
			}
			setErr := unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
			f.Close()
			if setErr != nil {
				continue
			}
			if found, foundErr := openConnector(buffer); !errors.Is(foundErr, errElsewhere) {
				c, err = found, foundErr
				return
			}
		}
	}()
	<-done
	return c, err
}

func openConnector(buffer int) (c *Connector, err error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_CONNECTOR)
	if err != nil {
		return nil, &UnsupportedError{err, "a kernel with CONFIG_CONNECTOR=y and CONFIG_PROC_EVENTS=y"}
	}
	c = &Connector{file: os.NewFile(uintptr(fd), "process connector")}
	defer func() {
		if err != nil {
			c.Close()
			c = nil
		}
	}()
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return c, fmt.Errorf("listen to process events: %w", err)
	}
	c.inode = st.Ino
	c.table, _ = os.Open("/proc/thread-self/net/netlink") // it stays that of this thread's namespace
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, buffer); err != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, buffer) // smaller: what is lost is told
	}
	program := filter()
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}); err != nil {
		return c, fmt.Errorf("listen to process events: filter: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: connectorProcess}); err != nil {
		return c, &UnsupportedError{err, "run the supervisor with CAP_NET_ADMIN, in the machine's own network namespace"}
	}
	// Before Linux 6.6 a request with a mask is not understood, and not answered.
	// Later, the answer has to pass the mask itself, and passes only that for all.
	if err = c.listen(everything); err == nil {
		c.masked = true
		err = c.send(multicastListen, wanted)
	} else if errors.Is(err, errNoAnswer) {
		err = c.listen(0)
	}
	if err == nil {
		return c, nil
	}
	return c, &UnsupportedError{err, "run the supervisor as root in the machine's own user, pid and network namespaces, on a kernel with CONFIG_PROC_EVENTS=y"}
}

var errNoAnswer = errors.New("the kernel does not answer")

// listen asks the kernel and waits for its acknowledgement, which goes to all
// listeners. Events that come meanwhile are lost to nobody: the tree is read from
// /proc after it listens.
func (c *Connector) listen(mask What) error {
	if err := c.send(multicastListen, mask); err != nil {
		if errors.Is(err, unix.ECONNREFUSED) {
			return errElsewhere
		}
		return err
	}
	return control(c.file, func(fd int) error {
		deadline := time.Now().Add(ackPatience)
		buf := make([]byte, maxDatagram)
		for {
			left := time.Until(deadline)
			if left <= 0 {
				return errNoAnswer
			}
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1); err != nil && err != unix.EINTR {
				return err
			}
			n, from, err := unix.Recvfrom(fd, buf, unix.MSG_DONTWAIT)
			switch {
			case err == unix.EAGAIN || err == unix.EINTR || err == unix.ENOBUFS:
				continue
			case err != nil:
				return err
			case !fromKernel(from):
				continue
			}
			_, ack, _ := parse(buf[:n])
			switch {
			case ack == nil:
			case ack.errno != 0:
				return unix.Errno(ack.errno)
			default:
				return nil
			}
		}
	})
}

func (c *Connector) send(op uint32, mask What) error {
	return control(c.file, func(fd int) error {
		return unix.Sendto(fd, request(op, mask), unix.MSG_DONTWAIT, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
	})
}

// request is a struct nlmsghdr, a struct cn_msg and a struct proc_input, or,
// without a mask, the operation alone.
func request(op uint32, mask What) []byte {
	b := make([]byte, eventAt, eventAt+8)
	b = binary.NativeEndian.AppendUint32(b, op)
	if mask != 0 {
		b = binary.NativeEndian.AppendUint32(b, uint32(mask))
	}
	binary.NativeEndian.PutUint32(b, uint32(len(b)))
	binary.NativeEndian.PutUint16(b[4:], unix.NLMSG_DONE)
	binary.NativeEndian.PutUint32(b[16:], connectorProcess)
	binary.NativeEndian.PutUint32(b[20:], connectorProcess)
	binary.NativeEndian.PutUint16(b[32:], uint16(len(b)-eventAt))
	return b
}

func fromKernel(from unix.Sockaddr) bool {
	a, ok := from.(*unix.SockaddrNetlink)
	return ok && a.Pid == 0
}

// Masked tells whether the kernel filters by kind of event for this socket
// before it makes a copy for it (Linux 6.6). If not, the socket's filter does.
func (c *Connector) Masked() bool { return c.masked }

// Close ends listening. A kernel before 6.6 counts listeners by what they ask
// for: without the request it would go on to make messages for nobody.
func (c *Connector) Close() error {
	return errors.Join(c.send(multicastIgnore, 0), c.file.Close(), c.closeTable()) // there is no answer to wait for
}

func (c *Connector) closeTable() error {
	if c.table == nil {
		return nil
	}
	return c.table.Close()
}

// Run tells what happens until ctx ends or the socket fails. lost says that n
// events, at least one, are missing between those told before and after.
func (c *Connector) Run(ctx context.Context, each func(Event), lost func(n uint64)) error {
	stop := context.AfterFunc(ctx, func() { c.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	raw, err := c.file.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, maxDatagram)
	for {
		var n int
		var from unix.Sockaddr
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			n, from, failed = unix.Recvfrom(int(fd), buf, unix.MSG_DONTWAIT)
			return failed != unix.EAGAIN
		})
		switch {
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return fmt.Errorf("read process events: %w", err)
		case failed == unix.ENOBUFS:
			lost(c.lost())
			continue
		case failed == unix.EINTR:
			continue
		case failed != nil:
			return fmt.Errorf("read process events: %w", failed)
		case !fromKernel(from):
			continue // another process with CAP_NET_ADMIN wrote to this socket
		}
		events, _, err := parse(buf[:n])
		for _, e := range events {
			each(e)
		}
		if err != nil {
			lost(1)
		}
	}
}

// lost counts the drops since it was asked last, at least one.
func (c *Connector) lost() uint64 {
	if c.table == nil {
		return 1
	}
	data, err := io.ReadAll(io.NewSectionReader(c.table, 0, 4<<20))
	if err != nil {
		return 1
	}
	total, ok := dropsOf(data, c.inode)
	if !ok || total <= c.drops {
		return 1
	}
	n := total - c.drops
	c.drops = total
	return n
}

// dropsOf finds a socket's count of drops in /proc/net/netlink.
func dropsOf(table []byte, inode uint64) (uint64, bool) {
	for line := range strings.SplitSeq(string(table), "\n") {
		f := strings.Fields(line)
		if len(f) < 10 || f[9] != strconv.FormatUint(inode, 10) {
			continue
		}
		n, err := strconv.ParseUint(f[8], 10, 64)
		return n, err == nil
	}
	return 0, false
}

func control(f *os.File, do func(fd int) error) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = do(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// filter lets through what parse makes an Event of, and acknowledgements: kinds
// that are asked for, of processes and not of their threads. On Linux before 6.6
// it is all the filter there is; later, the kernel has looked at the kind before.
func filter() []unix.SockFilter {
	const (
		load   = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equals = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		same   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_X
		toX    = unix.BPF_MISC | unix.BPF_TAX
		ret    = unix.BPF_RET | unix.BPF_K
		union  = eventAt + eventHeader
	)
	at := func(i uint32) uint32 { return union + 4*i }
	return []unix.SockFilter{
		{Code: load, K: eventAt},
		{Code: equals, Jt: 7, K: network(Forked)},
		{Code: equals, Jt: 10, K: network(Ended)},
		{Code: equals, Jt: 9, K: network(Renamed)},
		{Code: equals, Jt: 12, K: network(Executed)},
		{Code: equals, Jt: 11, K: network(ChangedUser)},
		{Code: equals, Jt: 10, K: network(DumpedCore)},
		{Code: equals, Jt: 9, K: network(acknowledged)},
		{Code: ret, K: 0},
		{Code: load, K: at(2)}, // a fork: thread and process of the child
		{Code: toX},
		{Code: load, K: at(3)},
		{Code: same, Jt: 4, Jf: 5},
		{Code: load, K: at(0)}, // others
		{Code: toX},
		{Code: load, K: at(1)},
		{Code: same, Jf: 1},
		{Code: ret, K: 0xffff_ffff},
		{Code: ret, K: 0},
	}
}

// network is how a load of the filter, which is big endian, sees a word of this machine.
func network(w What) uint32 {
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(w))
	return binary.BigEndian.Uint32(b[:])
}
