package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Keys of the table.
const (
	keyLock    = "lock"
	keyWire    = "wire"
	keyNotify  = "notify"
	keyJournal = "journal"
	keyGroup   = "fanotify"
	keySeccomp = "seccomp/" // + token + "/" + serial
)

// MonitorOptions say where the supervisor listens and how its processes are started.
type MonitorOptions struct {
	Socket       string // for requests; its directory is made, 0700
	NotifySocket string // for runc
	Lock         string // held while a monitor or a worker lives
	// Executable is this program's path; empty: found. It is looked up anew for every
	// start, so that a worker after SIGHUP is the newly installed version.
	Executable  string
	WorkerArgs  []string // what makes the program call RunWorker
	MonitorArgs []string // what makes it call Monitor with Adopt
	// Adopt takes everything over from the worker that started this process.
	Adopt bool
	// TakeOver makes this process the monitor of a supervisor that runs already,
	// in place of the monitor that it has. For a service manager, which starts the
	// service again when its main process died: the worker has started another
	// monitor by then. Not for a start on first use, where many race.
	TakeOver bool
	// Ready is called once both sockets accept connections.
	Ready func()
	// Pause is the first wait before a worker that died is started again. It
	// doubles up to a hundred times itself. Zero: 50 ms.
	Pause time.Duration
	// Patience is how long a worker may be silent before it is replaced. It says
	// that it works every two seconds. Zero: a minute.
	Patience time.Duration
}

// descriptors is how many a process may have. Worker.serve sweeps as many.
const descriptors = 1 << 16

// ErrRunning says that another supervisor holds the lock.
var ErrRunning = errors.New("a supervisor is running already")

type monitor struct {
	o        MonitorOptions
	table    *table
	external bool // the sockets are systemd's: never unlinked here
}

// Monitor runs the outer of the two processes until SIGTERM or SIGINT: it owns
// the sockets and a copy of every notify and fanotify descriptor, reads nothing that
// comes from outside, and starts a worker whenever there is none.
//
// SIGHUP replaces the worker without closing anything: callers wait meanwhile.
// SIGTERM stops both. Then the kernel refuses every notified call (ENOSYS),
// execve among them, in the containers that still run.
func Monitor(ctx context.Context, o MonitorOptions) error {
	if o.Pause <= 0 {
		o.Pause = 50 * time.Millisecond
	}
	if o.Patience <= 0 {
		o.Patience = time.Minute
	}
	executable, err := ownPath(o.Executable)
	if err != nil {
		return err
	}
	o.Executable = executable
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)
	// A host short of memory should lose a container before its guard. Best effort.
	os.WriteFile("/proc/self/oom_score_adj", []byte("-900"), 0)

	// A container is about ten descriptors, in both processes. Through package
	// syscall, so that the worker inherits it.
	limit := syscall.Rlimit{Cur: descriptors, Max: descriptors}
	var now syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &now) == nil {
		limit.Max = max(limit.Max, now.Max)
		syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}

	m := &monitor{o: o, table: newTable()}
	var l *link
	switch {
	case o.Adopt:
		if l, err = linkFrom(linkFD); err != nil {
			return err
		}
		if err := l.meet(0); err != nil {
			log.Printf("declarund: monitor: %v", err) // then there is nothing to end
		}
	case o.TakeOver:
		// Between two workers nobody listens: ask for a while.
		for deadline := time.Now().Add(10 * time.Second); l == nil; time.Sleep(50 * time.Millisecond) {
			f, err := lock(o.Lock)
			if err == nil {
				m.table.put(keyLock, "", f)
				break
			}
			if !errors.Is(err, ErrRunning) {
				return err
			}
			if l, err = dialLink(takeOverSocket(o.Lock)); err != nil && time.Now().After(deadline) {
				return err
			}
		}
	}
	if l != nil {
		if err := m.table.fill(l); err != nil {
			log.Printf("declarund: monitor: %v", err) // the worker died meanwhile: go on with what came
		}
	}
	if err := m.open(); err != nil {
		return err
	}
	if o.Ready != nil {
		o.Ready()
	}

	pause := o.Pause
	for {
		if l == nil {
			var cmd *exec.Cmd
			if cmd, l, err = start(o.Executable, o.WorkerArgs, nil); err != nil {
				log.Printf("declarund: monitor: %v", err)
			} else {
				go cmd.Wait()
				if err := m.table.hand(l); err != nil {
					log.Printf("declarund: monitor: %v", err) // it ends, or is ended below
				}
			}
		}
		began := time.Now()
		stopped, replaced := false, false
		if l != nil {
			stopped, replaced = m.tend(ctx, l, signals)
			l.end(time.Second)
			l.close()
			l = nil
		}
		if stopped {
			m.close()
			return nil
		}
		if replaced || time.Since(began) > time.Minute {
			pause = m.o.Pause
		}
		if replaced {
			continue
		}
		log.Printf("declarund: monitor: worker ended after %v, next one in %v", time.Since(began).Round(time.Millisecond), pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case s := <-signals:
			if s != syscall.SIGHUP {
				m.close()
				return nil
			}
		case <-ctx.Done():
			m.close()
			return nil
		}
		pause = min(2*pause, 100*m.o.Pause)
	}
}

// tend serves one worker until it is gone.
func (m *monitor) tend(ctx context.Context, l *link, signals <-chan os.Signal) (stopped, replaced bool) {
	gone := make(chan struct{})
	heard := make(chan struct{}, 1)
	go func() {
		defer close(gone)
		for {
			msg, file, err := l.recv()
			select {
			case heard <- struct{}{}:
			default:
			}
			if err != nil {
				if !errors.Is(err, io.EOF) {
					log.Printf("declarund: monitor: %v", err)
				}
				return
			}
			switch msg.Op {
			case opKeep, opNote:
				m.table.put(msg.Key, msg.Meta, file)
			case opDrop:
				m.table.drop(msg.Key)
			}
		}
	}()
	var patience <-chan time.Time
	silence := time.NewTimer(m.o.Patience)
	defer silence.Stop()
	done := ctx.Done()
	for {
		var op string
		select {
		case <-gone:
			return stopped, replaced
		case <-heard:
			silence.Reset(m.o.Patience)
			continue
		case <-silence.C:
			log.Printf("declarund: monitor: worker is silent for %v: ending it", m.o.Patience)
			l.kill()
			continue
		case <-patience:
			l.kill()
			patience = nil
			continue
		case <-done:
			op, stopped, done = opStop, true, nil
		case s := <-signals:
			op = opStop
			if s == syscall.SIGHUP {
				op = opHandover
			}
			stopped, replaced = stopped || op == opStop, op == opHandover
		}
		if err := l.send(message{Op: op}, nil); err != nil {
			l.kill()
		}
		patience = time.After(20 * time.Second)
	}
}

func ownPath(given string) (string, error) {
	if given != "" {
		return given, nil
	}
	p, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	return strings.TrimSuffix(p, " (deleted)"), nil
}

// open makes what is not in the table yet.
func (m *monitor) open() error {
	if m.table.get(keyLock) == nil {
		f, err := lock(m.o.Lock)
		if err != nil {
			return err
		}
		m.table.put(keyLock, "", f)
	}
	given, err := socketsGiven()
	if err != nil {
		return err
	}
	for key, path := range map[string]string{keyWire: m.o.Socket, keyNotify: m.o.NotifySocket} {
		if m.table.get(key) != nil {
			continue
		}
		if f := given[path]; f != nil {
			delete(given, path)
			m.external = true
			m.table.put(key, "external", f)
			continue
		}
		f, err := listenUnix(path)
		if err != nil {
			return err
		}
		m.table.put(key, "", f)
	}
	for _, f := range given {
		f.Close()
	}
	if m.table.get(keyJournal) == nil {
		fd, err := newJournalFile()
		if err != nil {
			return err
		}
		m.table.put(keyJournal, "", os.NewFile(uintptr(fd), "journal"))
	}
	return nil
}

// close ends everything for good.
func (m *monitor) close() {
	for key, path := range map[string]string{keyWire: m.o.Socket, keyNotify: m.o.NotifySocket} {
		if h := m.table.under(key)[key]; h.file != nil && h.meta != "external" {
			os.Remove(path)
		}
	}
	os.Remove(takeOverSocket(m.o.Lock))
	for key := range m.table.under("") {
		if key != keyLock {
			m.table.drop(key)
		}
	}
	m.table.drop(keyLock)
}

// lock takes the lock that one supervisor holds. It belongs to the open file,
// which monitor and worker share: it is free when both are gone.
func lock(path string) (*os.File, error) {
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock supervisor: %w", err)
	}
	err = control(f, func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
	if err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("lock supervisor %s: %w", path, ErrRunning)
		}
		return nil, fmt.Errorf("lock supervisor %s: %w", path, err)
	}
	return f, nil
}

// privateDir makes dir for this user alone, or checks that nobody else can
// put something into what is there. It never changes a directory it did not make.
func privateDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory for sockets: %w", err)
	}
	info, err := os.Lstat(dir)
	if err != nil {
		return fmt.Errorf("check directory for sockets: %w", err)
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !ok || !info.IsDir():
		return fmt.Errorf("check directory for sockets: %s is not a directory", dir)
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("check directory for sockets: %s belongs to user %d", dir, st.Uid)
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("check directory for sockets: others may write to %s", dir)
	}
	return nil
}

// listenUnix listens at path, replacing what a dead supervisor left there. The
// caller holds the lock. The name appears when connections are accepted, with its mode.
func listenUnix(path string) (*os.File, error) {
	if err := privateDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if info, err := os.Lstat(path); err == nil && info.Mode()&fs.ModeSocket == 0 {
		return nil, fmt.Errorf("listen on %s: something else is there", path)
	}
	tmp := path + ".new"
	os.Remove(tmp)
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: tmp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	defer ln.Close()
	ln.SetUnlinkOnClose(false)
	if err := os.Chmod(tmp, 0o600); err != nil {
		os.Remove(tmp)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	f, err := ln.File()
	if err != nil {
		os.Remove(tmp)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.Rename(tmp, path); err != nil {
		f.Close()
		os.Remove(tmp)
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	return f, nil
}

// socketsGiven takes listening sockets from systemd (sd_listen_fds(3)), by path.
func socketsGiven() (map[string]*os.File, error) {
	given := map[string]*os.File{}
	pid, count := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_PID")
	os.Unsetenv("LISTEN_FDS")
	os.Unsetenv("LISTEN_FDNAMES")
	if pid == "" || pid != strconv.Itoa(os.Getpid()) {
		return given, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > 64 {
		return nil, fmt.Errorf("take sockets from systemd: LISTEN_FDS=%q", count)
	}
	for fd := 3; fd < 3+n; fd++ {
		unix.CloseOnExec(fd)
		addr, err := unix.Getsockname(fd)
		if err != nil {
			return nil, fmt.Errorf("take sockets from systemd: descriptor %d: %w", fd, err)
		}
		if ua, ok := addr.(*unix.SockaddrUnix); ok {
			given[ua.Name] = os.NewFile(uintptr(fd), ua.Name)
		}
	}
	return given, nil
}
