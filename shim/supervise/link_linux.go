package supervise

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// A link joins the monitor and the worker: a SOCK_SEQPACKET pair on which each
// message is one JSON object with at most one descriptor. Both ends hold every
// descriptor in a table, so that either can start the other anew. A message that
// was sent is not lost with its sender: it stays in the receiver's queue.
type message struct {
	Op   string `json:"op"` // keep, drop, note, go, stop, handover
	Key  string `json:"key,omitempty"`
	Meta string `json:"meta,omitempty"`
}

const (
	opKeep     = "keep"     // hold this descriptor
	opDrop     = "drop"     // let go of it
	opNote     = "note"     // its meta changed
	opGo       = "go"       // that was all of them
	opAlive    = "alive"    // the worker works
	opStop     = "stop"     // finish what was read, and exit for good
	opHandover = "handover" // …and exit for the next worker
)

const (
	maxLinkMessage = 64 << 10
	linkTimeout    = 10 * time.Second
	linkFD         = 3 // in the process that is started
)

type link struct {
	conn   *os.File // non-blocking
	raw    syscall.RawConn
	pidfd  int // of the process at the other end; 0: it was gone already
	sendMu sync.Mutex
}

// linkPair makes a link: this process's end and, blocking or not makes no
// difference, the other's.
func linkPair() (*link, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make link: %w", err)
	}
	l, err := linkFrom(fds[0])
	if err != nil {
		unix.Close(fds[1])
		return nil, nil, err
	}
	return l, os.NewFile(uintptr(fds[1]), "link"), nil
}

func linkFrom(fd int) (*link, error) {
	if typ, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE); err != nil || typ != unix.SOCK_SEQPACKET {
		return nil, fmt.Errorf("open link: descriptor %d is not one (this command is internal)", fd)
	}
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("open link: %w", err)
	}
	f := os.NewFile(uintptr(fd), "link")
	raw, err := f.SyscallConn()
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("open link: %w", err)
	}
	return &link{conn: f, raw: raw}, nil
}

// meet finds the process at the other end. A pair has the credentials of the
// process that made it on both ends, so who made it has to say whom it is for.
func (l *link) meet(pid int) error {
	if pid == 0 {
		err := control(l.conn, func(fd int) error {
			cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
			if err == nil {
				pid = int(cred.Pid)
				if cred.Uid != 0 && cred.Uid != uint32(os.Geteuid()) {
					err = unix.EPERM
				}
			}
			return err
		})
		if err != nil {
			return fmt.Errorf("meet the other process: %w", err)
		}
	}
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("meet the other process: %w", err)
	}
	l.pidfd = pidfd
	return nil
}

// end makes sure that the process at the other end is gone: nothing may ever be
// answered by two workers or held by two monitors. It waits as long as that takes.
func (l *link) end(patience time.Duration) {
	if l.pidfd <= 0 {
		return
	}
	fds := []unix.PollFd{{Fd: int32(l.pidfd), Events: unix.POLLIN}}
	for ; ; patience = 10 * time.Second {
		n, err := unix.Poll(fds, int(patience.Milliseconds()))
		if n > 0 || err != nil && err != unix.EINTR {
			return
		}
		l.kill()
	}
}

func (l *link) kill() {
	if l.pidfd > 0 {
		unix.PidfdSendSignal(l.pidfd, unix.SIGKILL, nil, 0)
	}
}

func (l *link) close() {
	l.conn.Close()
	if l.pidfd > 0 {
		unix.Close(l.pidfd)
	}
}

func (l *link) send(m message, file *os.File) error {
	body, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if len(body) > maxLinkMessage {
		return fmt.Errorf("send %s: message of %d bytes", m.Op, len(body))
	}
	l.sendMu.Lock()
	defer l.sendMu.Unlock()
	l.conn.SetWriteDeadline(time.Now().Add(linkTimeout))
	deliver := func(oob []byte) error {
		var sendErr error
		err := l.raw.Write(func(fd uintptr) bool {
			sendErr = unix.Sendmsg(int(fd), body, oob, nil, unix.MSG_NOSIGNAL)
			return sendErr != unix.EAGAIN
		})
		return errors.Join(err, sendErr)
	}
	if file == nil {
		return deliver(nil)
	}
	return control(file, func(fd int) error { return deliver(unix.UnixRights(fd)) })
}

// recv gives io.EOF when the other end is gone.
func (l *link) recv() (message, *os.File, error) {
	buf, oob := make([]byte, maxLinkMessage+1), make([]byte, unix.CmsgSpace(8*4))
	var n, oobn int
	var recvErr error
	err := l.raw.Read(func(fd uintptr) bool {
		n, oobn, _, _, recvErr = unix.Recvmsg(int(fd), buf, oob, unix.MSG_CMSG_CLOEXEC)
		return recvErr != unix.EAGAIN && recvErr != unix.EINTR
	})
	if err := errors.Join(err, recvErr); err != nil {
		if errors.Is(err, unix.ECONNRESET) {
			err = io.EOF
		}
		return message{}, nil, err
	}
	files := rights(oob[:oobn])
	if n == 0 {
		closeFiles(files)
		return message{}, nil, io.EOF
	}
	var m message
	if err := json.Unmarshal(buf[:n], &m); err != nil || len(files) > 1 {
		closeFiles(files)
		return message{}, nil, fmt.Errorf("read link: %d descriptors: %w", len(files), errors.Join(err, unix.EBADMSG))
	}
	if len(files) == 1 {
		return m, files[0], nil
	}
	return m, nil, nil
}

func rights(oob []byte) []*os.File {
	var files []*os.File
	messages, _ := unix.ParseSocketControlMessage(oob)
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "received descriptor"))
		}
	}
	return files
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}

// control runs f with a file's descriptor, which stays valid meanwhile, and
// without making it blocking as Fd() would.
func control(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

// dup gives a second descriptor for the same open file.
func dup(file *os.File) (int, error) {
	copied := -1
	err := control(file, func(fd int) error {
		var err error
		copied, err = unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		return err
	})
	return copied, err
}

// table holds descriptors by key.
type table struct {
	mu   sync.Mutex
	held map[string]held
}

type held struct {
	file *os.File
	meta string
}

func newTable() *table { return &table{held: map[string]held{}} }

// put takes the file over; nil changes only the meta of what is held.
func (t *table) put(key, meta string, file *os.File) {
	t.mu.Lock()
	defer t.mu.Unlock()
	old, ok := t.held[key]
	if file == nil {
		if ok {
			t.held[key] = held{old.file, meta}
		}
		return
	}
	if ok {
		old.file.Close()
	}
	t.held[key] = held{file, meta}
}

func (t *table) drop(key string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h, ok := t.held[key]; ok {
		h.file.Close()
		delete(t.held, key)
	}
}

func (t *table) get(key string) *os.File {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.held[key].file
}

// under gives what is held with the prefix.
func (t *table) under(prefix string) map[string]held {
	t.mu.Lock()
	defer t.mu.Unlock()
	found := map[string]held{}
	for key, h := range t.held {
		if strings.HasPrefix(key, prefix) {
			found[key] = h
		}
	}
	return found
}

// hand sends everything, then "go".
func (t *table) hand(l *link) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, h := range t.held {
		if err := l.send(message{Op: opKeep, Key: key, Meta: h.meta}, h.file); err != nil {
			return fmt.Errorf("hand over %s: %w", key, err)
		}
	}
	return l.send(message{Op: opGo}, nil)
}

// fill receives until "go". What came before an error is kept.
func (t *table) fill(l *link) error {
	for {
		m, file, err := l.recv()
		if err != nil {
			return fmt.Errorf("take over descriptors: %w", err)
		}
		switch m.Op {
		case opKeep:
			t.put(m.Key, m.Meta, file)
		case opGo:
			return nil
		}
	}
}

// start runs this program again with a link at descriptor 3.
func start(executable string, args []string, env []string) (*exec.Cmd, *link, error) {
	mine, theirs, err := linkPair()
	if err != nil {
		return nil, nil, err
	}
	defer theirs.Close()
	if _, err := os.Stat(executable); err != nil {
		executable = "/proc/self/exe" // uninstalled or being replaced
	}
	cmd := exec.Command(executable, args...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stderr = os.Stderr
	cmd.Dir = "/"
	cmd.ExtraFiles = []*os.File{theirs}
	// An own process group: a terminal's signals are for the monitor alone.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		mine.close()
		return nil, nil, fmt.Errorf("start %s: %w", executable, err)
	}
	if err := mine.meet(cmd.Process.Pid); err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		mine.close()
		return nil, nil, fmt.Errorf("start %s: %w", executable, err)
	}
	return cmd, mine, nil
}

// takeOverSocket is where a worker takes links of new monitors, beside the lock.
func takeOverSocket(lock string) string { return lock + ".sock" }

// listenLink listens for new monitors. The directory is private (lock).
func listenLink(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	os.Remove(path)
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		if err = os.Chmod(path, 0o600); err == nil {
			err = unix.Listen(fd, 4)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("listen for new monitors: %w", err)
	}
	return fd, nil
}

// dialLink asks the running worker to take this process for its monitor.
func dialLink(path string) (*link, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("take over the supervisor: %w", err)
	}
	l, err := linkFrom(fd)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	if err := l.meet(0); err != nil {
		l.close()
		return nil, err
	}
	return l, nil
}
