package guard

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
)

// deciding is how many executions are decided on at once; each holds a
// descriptor. The others wait in the kernel's queue.
const deciding = 256

// Guard is one fanotify group for any number of containers: user namespaces
// and fs.fanotify.max_user_groups limit groups, not marks. It is safe for
// concurrent use.
type Guard struct {
	file *os.File
	fd   int // file's; kept because File.Fd could change its blocking mode

	mu         sync.RWMutex
	containers map[string]*container
	byMount    map[uint64]*container   // mount ID of root and exec mounts
	byDev      map[uint64][]*container // what stat gives for files of the root

	pid  int
	self unix.Stat_t // of the guard's own root directory: never marked as a whole
}

// Open makes the group. The kernel must have fanotify permission events for
// executions; if not the error is an *UnsupportedError.
func Open() (*Guard, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|
		unix.FAN_UNLIMITED_MARKS|unix.FAN_UNLIMITED_QUEUE|unix.FAN_REPORT_TID,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK|unix.O_NOATIME)
	if err != nil {
		return nil, unsupported(err)
	}
	// Without CONFIG_FANOTIFY_ACCESS_PERMISSIONS it is the mark that fails.
	// Nothing is ever executed from an anonymous pipe.
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err == nil {
		err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD, unix.FAN_OPEN_EXEC_PERM, unix.AT_FDCWD, proc(p[0]))
		unix.Close(p[0])
		unix.Close(p[1])
		if errors.Is(err, unix.EINVAL) {
			unix.Close(fd)
			return nil, unsupported(err)
		}
		unix.FanotifyMark(fd, unix.FAN_MARK_FLUSH, 0, unix.AT_FDCWD, "/")
	}
	return newGuard(os.NewFile(uintptr(fd), "fanotify"), fd)
}

// FromFile takes over a group that another process made with Open: its marks
// stay. Watch every container again before Run: what belongs to none is refused.
func FromFile(f *os.File) (*Guard, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("take over exec guard: %w", err)
	}
	fd := -1
	if err := raw.Control(func(n uintptr) { fd = int(n) }); err != nil {
		return nil, fmt.Errorf("take over exec guard: %w", err)
	}
	if name, err := os.Readlink(proc(fd)); err != nil || name != "anon_inode:[fanotify]" {
		return nil, fmt.Errorf("take over exec guard: descriptor is %q, want a fanotify group", name)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("take over exec guard: %w", err)
	}
	return newGuard(f, fd)
}

func newGuard(f *os.File, fd int) (*Guard, error) {
	g := &Guard{
		file:       f,
		fd:         fd,
		containers: map[string]*container{},
		byMount:    map[uint64]*container{},
		byDev:      map[uint64][]*container{},
		pid:        os.Getpid(),
	}
	if err := unix.Stat("/", &g.self); err != nil {
		f.Close()
		return nil, fmt.Errorf("open exec guard: %w", err)
	}
	return g, nil
}

func unsupported(err error) error {
	e := &UnsupportedError{Err: err, Hint: `use a kernel with CONFIG_FANOTIFY_ACCESS_PERMISSIONS=y, or set mode processes = "audit" in /etc/declarun/config.toml`}
	switch {
	case errors.Is(err, unix.EPERM):
		e.Hint = "run the supervisor as root of the initial user namespace, with CAP_SYS_ADMIN"
	case errors.Is(err, unix.EMFILE):
		e.Hint = "raise the sysctl fs.fanotify.max_user_groups"
	}
	return e
}

// File is the group, for whoever keeps it open across a restart. It belongs to
// the guard.
func (g *Guard) File() *os.File { return g.file }

// Close gives up this descriptor of the group. When it was the last one every
// pending and future execution is allowed by the kernel.
func (g *Guard) Close() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, c := range g.containers {
		c.close()
	}
	clear(g.containers)
	clear(g.byMount)
	clear(g.byDev)
	return g.file.Close()
}

// SweepPending refuses the executions that another process read from this
// group and died before it answered; without it they would wait for ever. fds
// are the numbers its event descriptors had; nil: all up to 65535. Call it before
// Run: numbers of this process's own events must not be among them.
func (g *Guard) SweepPending(fds []int32) (refused int) {
	if fds == nil {
		fds = make([]int32, 1<<16)
		for i := range fds {
			fds[i] = int32(i)
		}
	}
	for _, fd := range fds {
		for range 1 << 10 { // two predecessors may have used the same number
			if g.respond(fd, false) != nil {
				break
			}
			refused++
		}
	}
	return refused
}

func (g *Guard) respond(fd int32, allow bool) error {
	verdict := uint32(unix.FAN_DENY)
	if allow {
		verdict = unix.FAN_ALLOW
	}
	r := binary.NativeEndian.AppendUint32(nil, uint32(fd)) // struct fanotify_response
	r = binary.NativeEndian.AppendUint32(r, verdict)
	for {
		_, err := unix.Write(g.fd, r)
		if err != unix.EINTR {
			return err
		}
	}
}

// Run reads events and answers them until ctx ends, then waits for those it
// has read. decide is called from many goroutines while the process that
// executes is blocked, so it can be described, and must be quick. What it does not decide
// (a panic, the zero Decision) is refused.
//
// Unread events wait for the next Run, of this process or of another that
// holds the group.
func (g *Guard) Run(ctx context.Context, decide func(Exec) Decision) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("run exec guard: %w", err)
	}
	defer unix.Close(wake)
	ended := make(chan struct{})
	var stopping sync.WaitGroup
	stopping.Go(func() {
		select {
		case <-ctx.Done():
		case <-ended:
		}
		unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0})
	})
	defer stopping.Wait()
	defer close(ended)

	var busy sync.WaitGroup
	defer busy.Wait()
	slots := make(chan struct{}, deciding)
	// Few events at a time: each that was read holds a descriptor and has to
	// wait for a slot of its own.
	buf := make([]byte, 16*unix.FAN_EVENT_METADATA_LEN)
	for {
		if ctx.Err() != nil {
			return nil
		}
		// Polled first: whether a read blocks is up to everybody who holds the group.
		poll := []unix.PollFd{{Fd: int32(g.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
		if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("poll exec guard: %w", err)
		}
		if poll[0].Revents == 0 {
			continue
		}
		n, err := unix.Read(g.fd, buf)
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFAULT):
			return fmt.Errorf("read exec guard: %w", err)
		default:
			// The descriptor could not be made (EMFILE, ENFILE, ENXIO, ETXTBSY…):
			// the kernel has refused that execution itself.
			continue
		}
		for _, ev := range parseEvents(buf[:n]) {
			if ev.fd < 0 {
				continue // FAN_Q_OVERFLOW: cannot be with an unlimited queue
			}
			slots <- struct{}{}
			busy.Go(func() {
				defer func() { <-slots }()
				g.answer(ev, decide)
			})
		}
	}
}

type event struct {
	mask uint64
	fd   int32
	pid  int32
}

// parseEvents stops at the first record that makes no sense.
func parseEvents(b []byte) []event {
	var events []event
	for len(b) >= unix.FAN_EVENT_METADATA_LEN {
		size := binary.NativeEndian.Uint32(b)
		if size < unix.FAN_EVENT_METADATA_LEN || uint64(size) > uint64(len(b)) || b[4] != unix.FANOTIFY_METADATA_VERSION {
			break
		}
		events = append(events, event{
			mask: binary.NativeEndian.Uint64(b[8:]),
			fd:   int32(binary.NativeEndian.Uint32(b[16:])),
			pid:  int32(binary.NativeEndian.Uint32(b[20:])),
		})
		b = b[size:]
	}
	return events
}

// answer answers one event, exactly once, whatever happens.
func (g *Guard) answer(ev event, decide func(Exec) Decision) {
	f := os.NewFile(uintptr(ev.fd), "")
	if f == nil {
		g.respond(ev.fd, false)
		return
	}
	defer f.Close() // after the answer: until then the number names the event
	allow := false
	defer func() {
		if recover() != nil {
			allow = false
		}
		g.respond(ev.fd, allow)
	}()
	if ev.mask&unix.FAN_OPEN_EXEC_PERM == 0 {
		return
	}
	e := Exec{TID: int(ev.pid), File: f}
	c := g.facts(&e, int(ev.fd))
	d := decide(e)
	allow = d.Allow && e.ContainerID != ""
	if allow && d.Cache {
		g.cache(c, int(ev.fd))
	}
}

// Allowed decides on a file that a process asks to execute, before it does:
// for the supervisor's execve notification, which sees what was asked for and
// what the kernel refuses before the guard is asked (noexec). file is the very
// file (O_PATH will do); what the process will execute may be another one.
// known is false when the container is not watched or the file could not be
// judged: then the guard decides.
func (g *Guard) Allowed(id string, file *os.File, who Who) (d Decision, e Exec, known bool) {
	g.mu.RLock()
	c := g.containers[id]
	g.mu.RUnlock()
	if c == nil {
		return Decision{Verdict: record.Denied, Reason: "belongs to no container that is known"}, Exec{}, false
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return Decision{Verdict: record.Denied, Reason: err.Error()}, Exec{}, false
	}
	e = Exec{ContainerID: id, File: file, Direct: true}
	raw.Control(func(fd uintptr) { known = g.describe(c, &e, int(fd)) })
	d = Judge(e, who)
	d.Cache = false
	return d, e, known
}

func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
