package wire

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
)

const (
	// MaxFiles bounds the descriptors attached to one request. A container
	// rarely has more than thirty mounts.
	MaxFiles = 1024
	// filesPerWrite is how many travel in one sendmsg. The kernel's own limit
	// is SCM_MAX_FD, 253 (unix(7)).
	filesPerWrite = 64
	scmMaxFD      = 253

	// RequestTimeout bounds how long a peer may take to send one request, and
	// how long one answer or event may wait for a peer that does not read.
	RequestTimeout = 10 * time.Second
)

// ErrPeer says that a peer is neither root nor the user this process runs as.
var ErrPeer = errors.New("peer is not root")

// Cred is who is at the other end, as the kernel says (SO_PEERCRED: the state
// at connect).
type Cred struct {
	PID int
	UID uint32
	GID uint32
}

// Conn is the client's end of one conversation.
type Conn struct {
	c    *net.UnixConn
	stop func() bool
}

// Dial connects to the supervisor. The context covers the whole conversation:
// when it ends, so does every Call and ReadEvent on the connection.
func Dial(ctx context.Context, socket string) (*Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	conn := &Conn{c: c.(*net.UnixConn)}
	if deadline, ok := ctx.Deadline(); ok {
		conn.c.SetDeadline(deadline)
	}
	conn.stop = context.AfterFunc(ctx, func() { conn.c.SetDeadline(time.Unix(1, 0)) })
	return conn, nil
}

// Close ends the conversation.
func (c *Conn) Close() error {
	c.stop()
	return c.c.Close()
}

// Call sends one request and waits for its answer. The files stay the
// caller's to close. An Answer that carries an Error is not an error of Call:
// the supervisor was reached and refused.
func (c *Conn) Call(request Request, files []*os.File) (Answer, error) {
	if err := request.check(len(files)); err != nil {
		return Answer{}, fmt.Errorf("send %s request: %w", request.Operation, err)
	}
	body, err := json.Marshal(request)
	if err != nil {
		return Answer{}, fmt.Errorf("send %s request: %w", request.Operation, err)
	}
	if err := writeFrame(c.c, body, files); err != nil {
		return Answer{}, fmt.Errorf("send %s request: %w", request.Operation, err)
	}
	var answer Answer
	if err := readJSON(c.c, &answer); err != nil {
		return Answer{}, fmt.Errorf("read answer to %s: %w", request.Operation, err)
	}
	return answer, nil
}

// ReadEvent waits for the next event after a successful Watch. io.EOF means
// that the supervisor closed the connection between two events.
func (c *Conn) ReadEvent() (record.Event, error) {
	var event record.Event
	err := readJSON(c.c, &event)
	return event, err
}

// PeerCred says who is at the other end of conn.
func PeerCred(conn *net.UnixConn) (Cred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return Cred{}, fmt.Errorf("read peer credentials: %w", err)
	}
	var ucred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		ucred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Cred{}, fmt.Errorf("read peer credentials: %w", err)
	}
	if optErr != nil {
		return Cred{}, fmt.Errorf("read peer credentials: %w", optErr)
	}
	return Cred{PID: int(ucred.Pid), UID: ucred.Uid, GID: ucred.Gid}, nil
}

// ReadRequest reads the one request of a connection. It refuses peers that
// are neither root nor this process's own user (ErrPeer, with their Cred),
// requests whose fields do not match their operation, and a number of
// descriptors that does not match the request. On error every descriptor
// received is closed; otherwise they are the caller's, close-on-exec.
//
// io.EOF means that the peer closed without asking anything.
func ReadRequest(conn *net.UnixConn) (Request, []*os.File, Cred, error) {
	cred, err := PeerCred(conn)
	if err != nil {
		return Request{}, nil, cred, err
	}
	if cred.UID != 0 && cred.UID != uint32(os.Geteuid()) {
		return Request{}, nil, cred, fmt.Errorf("read request of pid %d, uid %d: %w", cred.PID, cred.UID, ErrPeer)
	}
	conn.SetReadDeadline(time.Now().Add(RequestTimeout))
	defer conn.SetReadDeadline(time.Time{})

	r := &receiver{conn: conn}
	var request Request
	err = readJSON(r, &request)
	if err == nil {
		err = request.check(len(r.files))
	}
	if err != nil {
		closeAll(r.files)
		if errors.Is(err, io.EOF) {
			return Request{}, nil, cred, io.EOF
		}
		return Request{}, nil, cred, fmt.Errorf("read request of pid %d: %w", cred.PID, err)
	}
	return request, r.files, cred, nil
}

// WriteAnswer answers a request.
func WriteAnswer(conn *net.UnixConn, answer Answer) error {
	return writeJSON(conn, "answer", answer)
}

// WriteEvent sends one event to a watcher.
func WriteEvent(conn *net.UnixConn, event record.Event) error {
	return writeJSON(conn, "event", event)
}

func writeJSON(conn *net.UnixConn, what string, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	conn.SetWriteDeadline(time.Now().Add(RequestTimeout))
	defer conn.SetWriteDeadline(time.Time{})
	if err := writeFrame(conn, body, nil); err != nil {
		return fmt.Errorf("write %s: %w", what, err)
	}
	return nil
}

// check holds a request to its own description: exactly the field named like
// the operation, and the descriptors that go with it.
func (r Request) check(files int) error {
	set := map[Operation]bool{
		Prepare: r.Prepare != nil, Guard: r.Guard != nil, Exec: r.Exec != nil,
		Forget: r.Forget != nil, Status: r.Status != nil, Watch: r.Watch != nil, Tree: r.Tree != nil, Drift: r.Drift != nil,
	}
	for op, isSet := range set {
		if isSet != (op == r.Operation) {
			return fmt.Errorf("operation %q with field %q set=%t", r.Operation, op, isSet)
		}
	}
	want := 0
	switch r.Operation {
	case Prepare:
		want = 1
	case Guard:
		want = len(r.Guard.Files)
	case Exec, Forget, Status, Tree, Drift, Watch, Ping:
	default:
		return fmt.Errorf("unknown operation %q", r.Operation)
	}
	if files != want {
		return fmt.Errorf("operation %q with %d descriptors, want %d", r.Operation, files, want)
	}
	return nil
}

// writeFrame sends the length, then the body. The first descriptors travel
// with the length, each further batch with one byte of the body: a receiver
// gets at most one batch from one recvmsg, because the kernel never glues
// data across a write that carried descriptors (unix(7), SCM_RIGHTS).
func writeFrame(conn *net.UnixConn, body []byte, files []*os.File) error {
	if len(body) > MaxMessage {
		return fmt.Errorf("message of %d bytes: more than %d", len(body), MaxMessage)
	}
	if len(files) > MaxFiles {
		return fmt.Errorf("message with %d descriptors: more than %d", len(files), MaxFiles)
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if len(files) == 0 {
		_, err := (&net.Buffers{head, body}).WriteTo(conn)
		return err
	}
	piece := head
	for len(files) > 0 {
		n := min(len(files), filesPerWrite)
		if err := writeRights(conn, piece, files[:n]); err != nil {
			return err
		}
		files = files[n:]
		if len(files) > 0 {
			if len(body) == 0 {
				return errors.New("message shorter than its descriptors need")
			}
			piece, body = body[:1], body[1:]
		}
	}
	_, err := conn.Write(body)
	return err
}

func writeRights(conn *net.UnixConn, piece []byte, files []*os.File) error {
	fds := make([]int, len(files))
	for i, f := range files {
		raw, err := f.SyscallConn() // f.Fd() would make it blocking
		if err != nil {
			return err
		}
		// The number stays valid: the caller holds the files for the call.
		if err := raw.Control(func(fd uintptr) { fds[i] = int(fd) }); err != nil {
			return err
		}
	}
	n, _, err := conn.WriteMsgUnix(piece, unix.UnixRights(fds...), nil)
	runtime.KeepAlive(files)
	if err != nil {
		return err
	}
	_, err = conn.Write(piece[n:])
	return err
}

// receiver reads a connection and keeps the descriptors that come along.
type receiver struct {
	conn  *net.UnixConn
	files []*os.File
}

// Read is one recvmsg. net sets MSG_CMSG_CLOEXEC.
func (r *receiver) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	oob := make([]byte, unix.CmsgSpace(scmMaxFD*4))
	n, oobn, flags, _, err := r.conn.ReadMsgUnix(p, oob)
	files, rightsErr := parseRights(oob[:oobn])
	r.files = append(r.files, files...)
	switch {
	case errors.Is(err, io.EOF):
		return n, io.EOF // ReadMsgUnix wraps it, io.ReadFull compares it
	case err != nil:
		return n, err
	case rightsErr != nil:
		return n, rightsErr
	case flags&unix.MSG_CTRUNC != 0:
		return n, errors.New("descriptors were lost on the way (RLIMIT_NOFILE reached?)")
	case len(r.files) > MaxFiles:
		return n, fmt.Errorf("more than %d descriptors", MaxFiles)
	}
	return n, nil
}

// parseRights takes every descriptor out of a control message, so that none
// leaks even when the rest of it makes no sense.
func parseRights(oob []byte) ([]*os.File, error) {
	if len(oob) == 0 {
		return nil, nil
	}
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var files []*os.File
	for i := range messages {
		if messages[i].Header.Level != unix.SOL_SOCKET || messages[i].Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return files, fmt.Errorf("parse descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), fmt.Sprintf("received descriptor %d", len(files))))
		}
	}
	return files, nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
