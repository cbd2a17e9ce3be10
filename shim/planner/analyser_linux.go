package planner

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/rootfs"
)

// The analyser reads files that an attacker may have made. It is a child of
// its own: no privilege but to read files whatever their owner says
// (CAP_DAC_READ_SEARCH), no network, no descriptors but the image and the
// cache, bounded in time, memory and output. It lives on from image to image,
// since starting it costs more than most answers, and is replaced when it dies
// or takes too long.
const (
	analyserUser   = 65534
	analyserTime   = 45 * time.Second
	analyserMemory = 1 << 30 // bytes of heap; the hard limit is on address space
	analyserSpace  = 8 << 30
	analysersAtMax = 2
	maxAnswer      = 32 << 20
	maxQuestion    = 8 << 20
	maxFiles       = 128
)

type question struct {
	Request seccompgen.Request `json:"request"`
	Put     []string           `json:"put,omitempty"` // paths that the further descriptors stand for
}

type reply struct {
	Result seccompgen.Result `json:"result"`
	Error  string            `json:"error,omitempty"`
	Remedy string            `json:"remedy,omitempty"`
}

// AnalysisError is what the analyser said.
type AnalysisError struct{ Text, Way string }

func (e *AnalysisError) Error() string { return e.Text }

// Remedy is the analyser's advice, if it had any.
func (e *AnalysisError) Remedy() string { return e.Way }

// LocalAnalyser analyses in this process, for a person's own command.
func LocalAnalyser(cacheDir string) Analyser {
	cache := openCache(cacheDir)
	return func(ctx context.Context, root *rootfs.Root, req seccompgen.Request) (seccompgen.Result, error) {
		ctx, cancel := context.WithTimeout(ctx, analyserTime)
		defer cancel()
		return seccompgen.Analyse(ctx, root, req, cache)
	}
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

// GuardedAnalyser analyses in children started as "EXECUTABLE arg". The cache
// directory is given to their user.
func GuardedAnalyser(cacheDir, arg string) (Analyser, error) {
	dir := cacheDir + "/analysis"
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the analysis cache: %w", err)
	}
	if err := os.Chown(dir, analyserUser, analyserUser); err != nil {
		return nil, fmt.Errorf("make the analysis cache: %w", err)
	}
	// Not by its path: the directories above it may be closed to the analyser's user.
	pool := &analysers{self: "/proc/self/exe", arg: arg, cache: dir, slots: make(chan *analyser, analysersAtMax)}
	for range analysersAtMax {
		pool.slots <- nil
	}
	return pool.analyse, nil
}

type analysers struct {
	self, arg, cache string
	slots            chan *analyser // nil: not started
}

type analyser struct {
	cmd  *exec.Cmd
	conn *net.UnixConn
	wait sync.Once
}

func (p *analysers) analyse(ctx context.Context, root *rootfs.Root, req seccompgen.Request) (seccompgen.Result, error) {
	var a *analyser
	select {
	case a = <-p.slots:
	case <-ctx.Done():
		return seccompgen.Result{}, fmt.Errorf("wait for an analyser: %w", ctx.Err())
	}
	keep := false
	defer func() {
		if !keep {
			a.end()
			a = nil
		}
		p.slots <- a
	}()
	limit := time.Now().Add(analyserTime)
	if d, ok := ctx.Deadline(); ok && d.Before(limit) {
		limit = d
	}
	var r reply
	err := errors.New("not started")
	if a != nil {
		// It may have died since it was last asked, of nothing that this image did.
		if r, err = a.ask(root, req, limit); err != nil && time.Now().Before(limit) {
			a.end()
			a = nil
		}
	}
	if a == nil {
		if a, err = p.start(); err != nil {
			return seccompgen.Result{}, fmt.Errorf("start the analyser: %w", err)
		}
		r, err = a.ask(root, req, limit)
	}
	if err != nil {
		return seccompgen.Result{}, &AnalysisError{fmt.Sprintf("analyse the image's programs: the analyser died or took too long: %v", err),
			"look at the supervisor's log; to start the container without it, run it with mode syscalls=off"}
	}
	keep = true
	if r.Error != "" {
		return seccompgen.Result{}, &AnalysisError{r.Error, r.Remedy}
	}
	return r.Result, nil
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
	conn := c.(*net.UnixConn)
	cmd := exec.Command(p.self, p.arg)
	cmd.Env = []string{"DECLARUN_ANALYSIS_CACHE=" + p.cache}
	cmd.Dir = "/"
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{theirs}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: analyserUser, Gid: analyserUser},
		AmbientCaps: []uintptr{unix.CAP_DAC_READ_SEARCH},
		Cloneflags:  syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC,
		Pdeathsig:   syscall.SIGKILL,
		Setsid:      true,
	}
	if err := startFromThread(cmd); err != nil {
		conn.Close()
		return nil, err
	}
	return &analyser{cmd: cmd, conn: conn}, nil
}

// startFromThread: Pdeathsig is about the thread that started the child, and Go
// ends threads as it likes. One thread is kept for it.
func startFromThread(cmd *exec.Cmd) error {
	starter.once.Do(func() {
		starter.work = make(chan func())
		go func() {
			lockThread()
			for f := range starter.work {
				f()
			}
		}()
	})
	done := make(chan error)
	starter.work <- func() { done <- cmd.Start() }
	return <-done
}

var starter struct {
	once sync.Once
	work chan func()
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

func (a *analyser) ask(root *rootfs.Root, req seccompgen.Request, limit time.Time) (reply, error) {
	q := question{Request: req}
	fds := []int{int(root.File().Fd())}
	given := root.Given()
	for _, name := range slices.Sorted(maps.Keys(given)) {
		if len(fds) == maxFiles {
			return reply{}, fmt.Errorf("more than %d mounted programs", maxFiles-1)
		}
		q.Put = append(q.Put, name)
		fds = append(fds, int(given[name].Fd()))
	}
	body, err := json.Marshal(q)
	if err != nil {
		return reply{}, err
	}
	if err := a.conn.SetDeadline(limit); err != nil {
		return reply{}, err
	}
	head := binary.BigEndian.AppendUint32(nil, uint32(len(body)))
	if _, _, err := a.conn.WriteMsgUnix(head, unix.UnixRights(fds...), nil); err != nil {
		return reply{}, err
	}
	if _, err := a.conn.Write(body); err != nil {
		return reply{}, err
	}
	raw, err := readSized(a.conn, maxAnswer)
	if err != nil {
		return reply{}, err
	}
	var r reply
	return r, json.Unmarshal(raw, &r)
}

func readSized(r io.Reader, limit uint32) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > limit {
		return nil, fmt.Errorf("%d bytes where at most %d are allowed", n, limit)
	}
	body := make([]byte, n)
	_, err := io.ReadFull(r, body)
	return body, err
}

// AnalyseChild is the child's main program. It ends with its parent.
func AnalyseChild() error {
	debug.SetMemoryLimit(analyserMemory)
	for what, limit := range map[int]uint64{
		unix.RLIMIT_AS: analyserSpace, unix.RLIMIT_NOFILE: 1024, unix.RLIMIT_FSIZE: 256 << 20, unix.RLIMIT_CORE: 0,
	} {
		if err := unix.Setrlimit(what, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("limit the analyser: %w", err)
		}
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("limit the analyser: %w", err)
	}
	f := os.NewFile(3, "parent")
	c, err := net.FileConn(f)
	if err != nil {
		return fmt.Errorf("talk to the parent: %w", err)
	}
	f.Close()
	conn := c.(*net.UnixConn)
	cache := openCache(os.Getenv("DECLARUN_ANALYSIS_CACHE"))
	for {
		if err := serveQuestion(conn, cache); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		debug.FreeOSMemory()
	}
}

func serveQuestion(conn *net.UnixConn, cache seccompgen.Cache) error {
	head, oob := make([]byte, 4), make([]byte, unix.CmsgSpace(4*maxFiles))
	n, oobn, _, _, err := conn.ReadMsgUnix(head, oob)
	if err != nil {
		return err
	}
	if n == 0 {
		return io.EOF
	}
	files, err := received(oob[:oobn])
	if err != nil {
		return err
	}
	if n != 4 || len(files) == 0 {
		return errors.New("read question: no size or no image")
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxQuestion {
		return errors.New("read question: too large")
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(conn, body); err != nil {
		return err
	}
	var q question
	if err := json.Unmarshal(body, &q); err != nil {
		return err
	}
	raw, err := json.Marshal(answer(q, files, cache))
	if err != nil {
		return err
	}
	if _, err := conn.Write(binary.BigEndian.AppendUint32(nil, uint32(len(raw)))); err != nil {
		return err
	}
	_, err = conn.Write(raw)
	return err
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

func answer(q question, files []*os.File, cache seccompgen.Cache) (r reply) {
	defer func() {
		if p := recover(); p != nil {
			r = reply{Error: fmt.Sprintf("analyse the image's programs: %v", p)}
		}
	}()
	root, err := rootfs.FromFile(files[0])
	if err != nil {
		return reply{Error: err.Error()}
	}
	defer root.Close()
	for i, name := range q.Put {
		if i+1 < len(files) {
			root.Put(name, files[i+1])
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), analyserTime)
	defer cancel()
	result, err := seccompgen.Analyse(ctx, root, q.Request, cache)
	if err != nil {
		r.Error = err.Error()
		var way interface{ Remedy() string }
		if errors.As(err, &way) {
			r.Remedy = way.Remedy()
		}
		return r
	}
	r.Result = result
	return r
}
