package observe

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/record"
)

// questions are what a filter asks about, answered as the supervisor would for
// an application that has not served yet.
type questions struct {
	socket   int
	verdicts *filter.Verdicts
	theirs   []*os.File
	done     chan struct{}
	refused  []string
	asked    int
	stop     chan struct{}
	by       filter.Caller
	// pretend answers every call with an errno, also those that may go on.
	pretend bool
}

// ask prepares a command to be filtered.
func ask(cmd *exec.Cmd, f *Filter) (*questions, error) {
	if len(f.Program) == 0 || f.Verdicts == nil {
		return nil, errors.New("filter: it is empty")
	}
	program, err := os.CreateTemp("", "filter")
	if err != nil {
		return nil, err
	}
	os.Remove(program.Name())
	if _, err := program.WriteAt(f.Program, 0); err != nil {
		return nil, err
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "listener")
	cmd.ExtraFiles = []*os.File{program, theirs}
	return &questions{socket: pair[0], verdicts: f.Verdicts, theirs: cmd.ExtraFiles, done: make(chan struct{}), stop: make(chan struct{}),
		by: filter.Caller{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce, BeforeExec: true}}, nil
}

// begin receives the listener and answers from then on.
func (q *questions) begin() error {
	for _, f := range q.theirs {
		f.Close()
	}
	var oob [64]byte
	var b [1]byte
	if err := unix.SetsockoptTimeval(q.socket, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 20}); err != nil {
		return err
	}
	_, n, _, _, err := unix.Recvmsg(q.socket, b[:], oob[:], unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return fmt.Errorf("receive the listener: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return fmt.Errorf("receive the listener: the filter was not loaded: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return fmt.Errorf("receive the listener: %w", err)
	}
	go q.answer(fds[0])
	_, err = unix.Write(q.socket, b[:])
	return err
}

func (q *questions) end() ([]string, int) {
	select { // processes that stayed behind keep the filter
	case <-q.done:
	case <-time.After(100 * time.Millisecond):
		close(q.stop)
		<-q.done
	}
	slices.Sort(q.refused)
	return slices.Compact(q.refused), q.asked
}

// answer serves until the filter has no users left, or it is told to stop.
func (q *questions) answer(fd int) {
	defer close(q.done)
	defer unix.Close(fd)
	for {
		select {
		case <-q.stop:
			return
		default:
		}
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if _, err := unix.Poll(p, 50); err != nil || p[0].Revents == 0 {
			continue
		}
		if p[0].Revents&unix.POLLIN == 0 {
			return
		}
		n, err := receive(fd)
		if err != nil {
			continue // its caller is gone
		}
		q.asked++
		d := q.verdicts.Judge(filter.Call{AuditArch: n.arch, Nr: int(n.nr), Args: n.args}, q.by)
		if d.Report && d.Verdict == record.Denied {
			q.refused = append(q.refused, d.Name)
		}
		if d.Continue && d.Name == "execve" {
			q.by.BeforeExec = false
		}
		switch {
		case !q.pretend:
			reply(fd, n.id, d.Continue, d.Errno)
		case d.Continue:
			reply(fd, n.id, false, continued)
		default:
			reply(fd, n.id, false, offset+d.Errno)
		}
	}
}
