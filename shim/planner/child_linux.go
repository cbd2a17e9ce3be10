package planner

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/confine"
	"github.com/declarun/declarun/shim/rootfs"
)

// What the analyser's process starts with: its parent, and the directory of the
// cache, or something that is no directory.
const (
	parentFd = 3
	cacheFd  = 4
)

const (
	// analyserGarbage is how much, in percent of what is in use, may have been
	// thrown away before it is collected: an image of 500 MB in less than 300 MiB,
	// for a twentieth more of processor time than with Go's own 100.
	analyserGarbage = 50

	analyserHeap   = 1 << 30    // from here on it would rather collect than grow
	analyserMemory = 1536 << 20 // here it ends
)

// The first byte to the parent says how forbidden calls end.
const (
	helloListener = 'l'
	helloFatal    = 'k'
)

// childRules are the system calls of the analyser: Go's runtime, reading, and
// its words to its parent. polled is the descriptor that wakes Go's poller.
func childRules(pid, polled int) []confine.Rule {
	const changes = unix.O_ACCMODE | unix.O_CREAT | unix.O_TRUNC | unix.O_APPEND
	rules := append(confine.GoRuntime(pid),
		confine.Rule{Name: "openat", If: []confine.Cond{confine.None(2, changes)}},
		confine.Rule{Name: "openat2"}, // Landlock, and a file size of 0, for its flags
		confine.Rule{Name: "close"}, confine.Rule{Name: "read"}, confine.Rule{Name: "pread64"}, confine.Rule{Name: "lseek"},
		confine.Rule{Name: "fstat"}, confine.Rule{Name: "newfstatat"}, confine.Rule{Name: "fstatfs"}, confine.Rule{Name: "readlinkat"},
		confine.Rule{Name: "getdents64"}, confine.Rule{Name: "fgetxattr"},
		confine.Rule{Name: "recvmsg", If: []confine.Cond{confine.Is(0, parentFd)}},
		// A listener is sent through it once; the parent takes no other descriptor.
		confine.Rule{Name: "sendmsg", If: []confine.Cond{confine.Is(0, parentFd)}},
	)
	for _, fd := range []int{2, parentFd, polled} {
		rules = append(rules, confine.Rule{Name: "write", If: []confine.Cond{confine.Is(0, uint32(fd))}})
	}
	for _, what := range []uint32{unix.F_GETFL, unix.F_GETFD, unix.F_SETFD, unix.F_DUPFD_CLOEXEC} {
		rules = append(rules, confine.Rule{Name: "fcntl", If: []confine.Cond{confine.Is(1, what)}})
	}
	// To be blocking or not, and nothing else.
	rules = append(rules, confine.Rule{Name: "fcntl", If: []confine.Cond{confine.Is(1, unix.F_SETFL), confine.None(2, unix.O_APPEND|unix.O_DIRECT|unix.O_NOATIME)}})
	return rules
}

// AnalyseChild is the child's main program. It ends with its parent.
func AnalyseChild() error {
	debug.SetMemoryLimit(analyserHeap)
	debug.SetGCPercent(analyserGarbage)
	unix.CloseOnExec(parentFd)
	unix.CloseOnExec(cacheFd)
	var cache seccompgen.Cache = seccompgen.NoCache{}
	toParent := &relay{}
	if dir, err := seccompgen.ReadDirCache(os.NewFile(cacheFd, "cache")); err == nil {
		cache, toParent.from = toParent, dir
	}
	if err := confineChild(); err != nil {
		return fmt.Errorf("confine the analyser: %w", err)
	}
	for {
		if err := serveQuestion(cache); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		debug.FreeOSMemory()
	}
}

// confineChild comes before the first byte of any image.
func confineChild() error {
	polled, err := poller()
	if err != nil {
		return err
	}
	if err := (confine.Limits{Data: analyserMemory, Files: 1024}).Apply(); err != nil {
		return err
	}
	rules := childRules(os.Getpid(), polled)
	listener, err := confine.Install(rules)
	if errors.Is(err, confine.ErrNoListener) {
		if err := confine.InstallFatal(rules); err != nil {
			return err
		}
		return unix.Sendmsg(parentFd, []byte{helloFatal}, nil, nil, 0)
	}
	if err != nil {
		return err
	}
	if err := unix.Sendmsg(parentFd, []byte{helloListener}, unix.UnixRights(int(listener.Fd())), nil, 0); err != nil {
		return err
	}
	return listener.Close() // nobody answers for himself
}

// poller has Go's runtime make its poller, and finds the descriptor that it
// writes to in order to wake it; -1 where it has none.
func poller() (int, error) {
	f, err := os.Open("/proc/self/fd")
	if err != nil {
		return 0, err
	}
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil {
		return 0, err
	}
	found := -1
	for _, name := range names {
		to, err := os.Readlink(filepath.Join("/proc/self/fd", name))
		if err != nil || !strings.HasPrefix(to, "anon_inode:[eventfd") {
			continue
		}
		if _, err := fmt.Sscan(name, &found); err != nil {
			return 0, err
		}
	}
	return found, nil
}

// relay reads what was kept, and has its parent keep more.
type relay struct {
	from *seccompgen.DirCache
	mu   sync.Mutex
}

// Get implements seccompgen.Cache.
func (c *relay) Get(key string) ([]byte, bool) { return c.from.Get(key) }

// Put implements seccompgen.Cache.
func (c *relay) Put(key string, data []byte) {
	if len(data) > seccompgen.MaxEntry || len(key) > 4096 {
		return
	}
	head := appendFrame(nil, framePut, 4+len(key)+len(data))
	head = append(binary.BigEndian.AppendUint32(head, uint32(len(key))), key...)
	c.mu.Lock()
	defer c.mu.Unlock()
	if writeAll(head) == nil {
		_ = writeAll(data) // a parent that is gone is noticed at the answer
	}
}

func writeAll(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(parentFd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write to the parent: %w", err)
		}
		b = b[n:]
	}
	return nil
}

// fromParent reads what the parent says.
type fromParent struct{}

func (fromParent) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(parentFd, b)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 0, fmt.Errorf("read from the parent: %w", err)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

func serveQuestion(cache seccompgen.Cache) error {
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4))
	var n, oobn int
	for {
		var err error
		if n, oobn, _, _, err = unix.Recvmsg(parentFd, head, oob, unix.MSG_CMSG_CLOEXEC); err == unix.EINTR {
			continue
		} else if err != nil {
			return fmt.Errorf("read question: %w", err)
		}
		break
	}
	if n == 0 {
		return io.EOF
	}
	files, err := received(oob[:oobn])
	if err != nil {
		return err
	}
	if n != 4 || len(files) != 1 {
		return errors.New("read question: no size or no image")
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxQuestion {
		return errors.New("read question: too large")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(fromParent{}, body); err != nil {
		return err
	}
	var q question
	if err := json.Unmarshal(body, &q); err != nil {
		return fmt.Errorf("read question: %w", err)
	}
	raw, err := json.Marshal(answer(q, files[0], cache))
	if err != nil {
		return err
	}
	return writeAll(append(appendFrame(nil, frameAnswer, len(raw)), raw...))
}

func received(oob []byte) ([]*os.File, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "given"))
		}
	}
	return files, nil
}

func answer(q question, dir *os.File, cache seccompgen.Cache) (r reply) {
	defer func() {
		if p := recover(); p != nil {
			r = reply{Error: fmt.Sprintf("analyse the image's programs: %v", p), Remedy: "report the image; " + without}
		}
	}()
	root, err := rootfs.FromFile(dir)
	if err != nil {
		return reply{Error: err.Error()}
	}
	defer root.Close()
	ctx, cancel := context.WithTimeout(context.Background(), q.Limit)
	defer cancel()
	r.Reading, err = read(ctx, root, q.Declared, cache, nil)
	if err == nil && q.Why != "" {
		r.Ways, err = trace(ctx, root, q.Declared, r.Reading.Closure, q.Why, cache)
	}
	if err == nil {
		return r
	}
	r.Error, r.Remedy = err.Error(), "correct the image; "+without
	var way interface{ Remedy() string }
	switch {
	case errors.As(err, &way):
		r.Remedy = way.Remedy()
	case errors.Is(err, context.DeadlineExceeded):
		r.Error = fmt.Sprintf("analyse the image's programs: it took longer than %v", q.Limit.Round(100_000_000))
		r.Remedy = "the image is very large, or made to take long: try again, since what was found is kept; " + without
	}
	return r
}
