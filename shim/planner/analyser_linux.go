package planner

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/confine"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/rootfs"
)

// The analyser reads files that an attacker may have made. It is a child of
// its own (child_linux.go): no privilege but to read files whatever their owner
// says (CAP_DAC_READ_SEARCH), no network, no way to write to any file, a
// system call filter, and bounds on time, memory and output. What it asks to be
// kept, its parent keeps. It lives on from image to image, since starting it
// costs more than most answers, and is replaced when it dies or takes too long.
const (
	analyserUser = 65534
	analyserTime = 45 * time.Second
	// analyserGrace is for the child's own word on having taken too long.
	analyserGrace  = 5 * time.Second
	analysersAtMax = 2
	maxAnswer      = 32 << 20
	maxQuestion    = 8 << 20
	maxKept        = 512 << 20 // bytes that one question may have kept
	maxSaid        = 4 << 10   // bytes of its standard error that are passed on
)

// Frames from the child: a kind, a length, and that many bytes.
const (
	frameAnswer = 'a' // a reply as JSON
	framePut    = 'p' // the length of a key, the key, what to keep
)

type question struct {
	Declared *declared.Declared `json:"declared"`
	Limit    time.Duration      `json:"limit"`
	Why      string             `json:"why,omitempty"` // also the ways to this system call
}

type reply struct {
	Reading Reading    `json:"reading"`
	Ways    []plan.Way `json:"ways,omitempty"`
	Error   string     `json:"error,omitempty"`
	Remedy  string     `json:"remedy,omitempty"`
}

// AnalysisError is what the analyser said, or what became of it.
type AnalysisError struct{ Text, Way string }

func (e *AnalysisError) Error() string { return e.Text }

// Remedy is the analyser's advice, if it had any.
func (e *AnalysisError) Remedy() string { return e.Way }

// LocalAnalyser reads in this process, for a person's own command and with that
// person's rights.
func LocalAnalyser(cacheDir string) Analyser {
	cache := openCache(resultsDir(cacheDir))
	return func(ctx context.Context, root *rootfs.Root, d *declared.Declared) (Reading, error) {
		ctx, cancel := context.WithTimeout(ctx, analyserTime)
		defer cancel()
		return read(ctx, root, d, cache, nil)
	}
}

// CarefulAnalyser is for a person's own command that runs as root: what is not
// known from before is read by a child as GuardedAnalyser's; where everything
// is, none is started. Scripts are followed here in any case.
func CarefulAnalyser(cacheDir, arg string) Analyser {
	pool := newAnalysers(cacheDir, arg)
	return func(ctx context.Context, root *rootfs.Root, d *declared.Declared) (Reading, error) {
		return read(ctx, root, d, pool.cache, func() (Reading, error) { return pool.analyse(ctx, root, d) })
	}
}

func resultsDir(cacheDir string) string {
	if cacheDir == "" {
		return ""
	}
	return filepath.Join(cacheDir, "results")
}

func openCache(dir string) seccompgen.Cache {
	if dir == "" {
		return seccompgen.NoCache{}
	}
	cache, err := seccompgen.OpenDirCache(dir)
	if err != nil { // slower, not weaker
		log.Printf("declarund: analyses are not kept: %v", err)
		return seccompgen.NoCache{}
	}
	return cache
}

// GuardedAnalyser reads in children started as "EXECUTABLE arg".
func GuardedAnalyser(cacheDir, arg string) Analyser { return newAnalysers(cacheDir, arg).analyse }

func newAnalysers(cacheDir, arg string) *analysers {
	pool := &analysers{self: "/proc/self/exe", arg: arg, cache: openCache(resultsDir(cacheDir)), limit: analyserTime, slots: make(chan *analyser, analysersAtMax)}
	for range analysersAtMax {
		pool.slots <- nil
	}
	return pool
}

type analysers struct {
	self, arg string
	cache     seccompgen.Cache
	limit     time.Duration
	slots     chan *analyser // nil: not started
}

// analyser is one child.
type analyser struct {
	cmd       *exec.Cmd
	conn      *net.UnixConn
	said      *tail
	forbidden atomic.Pointer[string] // the call that it was ended for
	wait      sync.Once
}

func (p *analysers) analyse(ctx context.Context, root *rootfs.Root, d *declared.Declared) (Reading, error) {
	r, err := p.answer(ctx, root, question{Declared: d})
	return r.Reading, err
}

func (p *analysers) answer(ctx context.Context, root *rootfs.Root, q question) (reply, error) {
	var a *analyser
	select {
	case a = <-p.slots:
	case <-ctx.Done():
		return reply{}, fmt.Errorf("wait for an analyser: %w", ctx.Err())
	}
	keep := false
	defer func() {
		if !keep {
			a.end()
			a = nil
		}
		p.slots <- a
	}()
	limit := time.Now().Add(p.limit)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	if a != nil && !a.alive() { // since it was last asked, and of nothing that this image did
		a.end()
		a = nil
	}
	if a == nil {
		var err error
		if a, err = p.start(); err != nil {
			return reply{}, fmt.Errorf("start the analyser: %w", err)
		}
	}
	r, err := a.ask(root, q, limit, p.cache)
	if err != nil {
		return reply{}, a.postMortem(err, p.limit)
	}
	keep = true
	if r.Error != "" {
		return r, &AnalysisError{r.Error, r.Remedy}
	}
	return r, nil
}

// without is the way out where there is no other.
const without = "list the image under exclude in the site's configuration to run it without declarun"

// postMortem ends a child that gave no answer and says why it did not.
func (a *analyser) postMortem(cause error, limit time.Duration) *AnalysisError {
	a.end()
	const what = "analyse the image's programs: the analyser "
	said := a.said.String()
	if said != "" {
		log.Printf("declarund: the analyser's last words: %s", said)
	}
	state := a.cmd.ProcessState
	switch {
	case a.forbidden.Load() != nil:
		return &AnalysisError{fmt.Sprintf("%swas ended: it made the system call %s, which is not for it", what, *a.forbidden.Load()),
			"a file of the image may have taken it over: do not run the image, and report it; " + without}
	case state != nil && state.Sys().(syscall.WaitStatus).Signal() == unix.SIGSYS:
		return &AnalysisError{what + "was ended by the kernel: it made a system call that is not for it",
			"a file of the image may have taken it over: do not run the image, and report it; " + without}
	case errors.Is(cause, os.ErrDeadlineExceeded):
		return &AnalysisError{fmt.Sprintf("%stook longer than %v", what, limit),
			"the image is very large, or made to take long: try again, since what was found is kept; " + without}
	case errors.Is(cause, errFlood):
		return &AnalysisError{fmt.Sprintf("%ssaid too much: %v", what, cause),
			"the image has more programs than a container needs, or is made to have: give the command to run; " + without}
	case strings.Contains(said, "out of memory") || strings.Contains(said, "cannot allocate memory"):
		return &AnalysisError{fmt.Sprintf("%sneeds more than the %d MiB of memory that it may have", what, analyserMemory>>20),
			"the image is very large, or made to need it: give the command to run; " + without}
	}
	return &AnalysisError{fmt.Sprintf("%sdied: %v: %v", what, state, cause),
		"look at the supervisor's log, and report it; " + without}
}

func (p *analysers) start() (*analyser, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	theirs := os.NewFile(uintptr(pair[1]), "analyser")
	defer theirs.Close()
	ours := os.NewFile(uintptr(pair[0]), "analyser")
	defer ours.Close()
	c, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	// Opened here: the thread that starts it may write to no file, not even this.
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		c.Close()
		return nil, err
	}
	defer null.Close()
	a := &analyser{conn: c.(*net.UnixConn), said: &tail{}}
	a.cmd = exec.Command(p.self, p.arg)
	a.cmd.Env = []string{}
	a.cmd.Dir = "/"
	a.cmd.Stdin, a.cmd.Stdout, a.cmd.Stderr = null, null, a.said
	a.cmd.ExtraFiles = []*os.File{theirs}
	if dir, ok := p.cache.(*seccompgen.DirCache); ok {
		a.cmd.ExtraFiles = append(a.cmd.ExtraFiles, dir.Dir())
	} else {
		a.cmd.ExtraFiles = append(a.cmd.ExtraFiles, null)
	}
	a.cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: analyserUser, Gid: analyserUser},
		AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH},
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:   syscall.SIGKILL,
		Setsid:      true,
	}
	if err := startFromThread(a.cmd); err != nil {
		c.Close()
		return nil, err
	}
	theirs.Close()
	if err := a.greet(); err != nil {
		return nil, a.postMortem(err, startTime)
	}
	return a, nil
}

const startTime = 10 * time.Second

// greet waits until the child is confined, and takes the listener from which
// its forbidden calls are learnt.
func (a *analyser) greet() error {
	if err := a.conn.SetDeadline(time.Now().Add(startTime)); err != nil {
		return err
	}
	hello, oob := make([]byte, 1), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := a.conn.ReadMsgUnix(hello, oob)
	if err != nil {
		return err
	}
	files, err := received(oob[:oobn])
	if err != nil {
		return err
	}
	switch {
	case n == 0:
		return io.EOF
	case hello[0] == helloFatal && len(files) == 0:
		return nil
	case hello[0] != helloListener || len(files) != 1:
		for _, f := range files {
			f.Close()
		}
		return errors.New("it is not confined")
	}
	go func() {
		defer files[0].Close()
		if name := confine.Watch(files[0]); name != "" {
			a.forbidden.Store(&name)
			_ = a.cmd.Process.Kill()
		}
	}()
	return nil
}

// startFromThread: Pdeathsig is about the thread that started the child, and Go
// ends threads as it likes. One thread is kept for it; what it starts may
// change no file, as far as the kernel has Landlock.
func startFromThread(cmd *exec.Cmd) error {
	starter.once.Do(func() {
		starter.work = make(chan func(error))
		go func() {
			lockThread()
			_, err := confine.Landlock()
			for f := range starter.work {
				f(err)
			}
		}()
	})
	done := make(chan error)
	starter.work <- func(err error) {
		if err == nil {
			err = cmd.Start()
		}
		done <- err
	}
	return <-done
}

var starter struct {
	once sync.Once
	work chan func(error)
}

// alive tells whether the other end of the connection is there.
func (a *analyser) alive() bool {
	raw, err := a.conn.SyscallConn()
	if err != nil {
		return false
	}
	gone := true
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		gone = err != nil || n != 0 // it has nothing to say that was not asked
	})
	return err == nil && !gone
}

func (a *analyser) end() {
	if a == nil {
		return
	}
	a.wait.Do(func() {
		a.conn.Close()
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
	})
}

var errFlood = errors.New("more than is allowed")

func (a *analyser) ask(root *rootfs.Root, q question, limit time.Time, cache seccompgen.Cache) (reply, error) {
	q.Limit = time.Until(limit)
	body, err := json.Marshal(q)
	if err != nil {
		return reply{}, err
	}
	if len(body) > maxQuestion {
		return reply{}, fmt.Errorf("a question of %d bytes: %w", len(body), errFlood)
	}
	if err := a.conn.SetDeadline(limit.Add(analyserGrace)); err != nil {
		return reply{}, err
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if _, _, err := a.conn.WriteMsgUnix(head, unix.UnixRights(int(root.File().Fd())), nil); err != nil {
		return reply{}, err
	}
	if _, err := a.conn.Write(body); err != nil {
		return reply{}, err
	}
	kept := 0
	for {
		kind, frame, err := readFrame(a.conn)
		if err != nil {
			return reply{}, err
		}
		switch kind {
		case frameAnswer:
			var r reply
			return r, json.Unmarshal(frame, &r)
		case framePut:
			if kept += len(frame); kept > maxKept {
				return reply{}, fmt.Errorf("%d bytes to be kept: %w", kept, errFlood)
			}
			key, data, ok := splitPut(frame)
			if !ok {
				return reply{}, errors.New("read what is to be kept: no key")
			}
			cache.Put(key, data)
		default:
			return reply{}, fmt.Errorf("read frame: no kind %q", kind)
		}
	}
}

// maxFrame is by kind: what is kept may be larger than what is answered.
var maxFrame = map[byte]uint32{frameAnswer: maxAnswer, framePut: seccompgen.MaxEntry + 4096}

func readFrame(r io.Reader) (kind byte, body []byte, err error) {
	var head [5]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	kind, n := head[0], binary.BigEndian.Uint32(head[1:])
	if n > maxFrame[kind] {
		return 0, nil, fmt.Errorf("a frame of %d bytes: %w", n, errFlood)
	}
	// As it comes: a length is quickly said.
	var b bytes.Buffer
	if _, err := io.CopyN(&b, r, int64(n)); err != nil {
		return 0, nil, err
	}
	return kind, b.Bytes(), nil
}

func appendFrame(b []byte, kind byte, size int) []byte {
	return binary.BigEndian.AppendUint32(append(b, kind), uint32(size))
}

func splitPut(frame []byte) (key string, data []byte, ok bool) {
	if len(frame) < 4 {
		return "", nil, false
	}
	n := binary.BigEndian.Uint32(frame)
	if n > uint32(len(frame)-4) || n > 4096 {
		return "", nil, false
	}
	return string(frame[4 : 4+n]), frame[4+n:], true
}

// tail keeps the first and the last of what is written: Go names a death at
// its beginning.
type tail struct {
	mu   sync.Mutex
	head []byte
	last []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := min(len(b), maxSaid/2-len(t.head))
	t.head = append(t.head, b[:n]...)
	t.last = append(t.last, b[n:]...)
	if over := len(t.last) - maxSaid/2; over > 0 {
		t.last = slices.Delete(t.last, 0, over)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ToValidUTF8(string(t.head)+string(t.last), "�")
}
