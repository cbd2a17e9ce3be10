package seccompgen

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/shim/rootfs"
)

// version is part of every key: raise it whenever a result could change.
const version = "27"

var errTooLarge = errors.New("file is too large to analyse")

// store gives summaries by path: from memory, from the cache, or by analysis.
type store struct {
	r     *reader
	cache Cache
	mu    sync.Mutex
	mem   map[string]*entry
	heads map[string]*elfread.File
	// machine is that of the container's programs.
	machine elf.Machine
	// known are the functions that take a call number as an argument, by
	// name, over all files seen so far.
	known map[string][]location
	// answered is what the request says of the machine, as far as it is taken
	// for granted.
	answered []string
	cached   bool // a program is a name service cache daemon, maybe
	syms     *symbols
	slots    chan struct{} // held while a file is analysed ahead
	turn     sync.Mutex    // held while slots are waited for
	under    sync.WaitGroup
}

type entry struct {
	once    sync.Once
	sum     *summary
	err     error
	started bool
}

func newStore(r *reader, cache Cache, programs []Program) *store {
	s := &store{
		r: r, cache: cache, mem: map[string]*entry{}, heads: map[string]*elfread.File{},
		syms: newSymbols(), slots: make(chan struct{}, parallel),
	}
	s.machine = machineOf(s, programs)
	s.known = map[string][]location{"syscall": {reg(s.conventions().first)}}
	return s
}

func (s *store) conventions() *conventions { return machines[s.machine].conventions() }

// ahead tells whether a file is still to be started, and that it now is.
func (s *store) ahead(file string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.mem[file]
	if e == nil {
		e = &entry{}
		s.mem[file] = e
	}
	was := e.started
	e.started = true
	return !was
}

// needs lists what a file names, for reading ahead.
func (s *store) needs(file string) []string {
	f, err := s.r.root.Open(file)
	if err != nil {
		return nil
	}
	defer f.Close()
	return elfread.Needs(f, f.Info.Size())
}

// aloneFrom is from how many bytes on nothing is analysed ahead beside a file:
// all of it is in memory meanwhile (libLLVM has 110 MB).
const aloneFrom = 64 << 20

// start analyses a file in the background.
func (s *store) start(ctx context.Context, file string, size int64) {
	s.under.Go(func() {
		takes := 1
		if size >= aloneFrom {
			takes = cap(s.slots)
		}
		s.turn.Lock()
		for range takes {
			s.slots <- struct{}{}
		}
		s.turn.Unlock()
		defer func() {
			for range takes {
				<-s.slots
			}
		}()
		if ctx.Err() == nil {
			_, _ = s.summary(ctx, file)
		}
	})
}

// wait waits for what was started.
func (s *store) wait() { s.under.Wait() }

// head reads what kind of file it is.
func (s *store) head(file string) (*elfread.File, error) {
	s.mu.Lock()
	h, ok := s.heads[file]
	s.mu.Unlock()
	if ok {
		if h == nil {
			return nil, elfread.ErrNotELF
		}
		return h, nil
	}
	f, err := s.r.root.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	h, err = elfread.Header(f, f.Info.Size())
	s.mu.Lock()
	s.heads[file] = h
	s.mu.Unlock()
	return h, err
}

// wholeUpTo is up to how many bytes a file is taken into memory as a whole, so
// that what is kept of it is of the bytes that its digest is of, even if
// somebody writes to it. Nothing is kept of larger ones.
const wholeUpTo = 192 << 20

// cacheFrom is from how many bytes on what is found out about a file is kept by
// itself: below, finding it out again is as quick as reading it back.
const cacheFrom = 32 << 10

// readAhead is from how many bytes on a file is taken apart while its digest is made.
const readAhead = 1 << 20

// loadable tells whether the loader would take the file and not look further.
func (s *store) loadable(file string) bool {
	h, err := s.head(file)
	return err == nil && h.Class == elf.ELFCLASS64 && h.Machine == s.machine
}

func (s *store) summary(ctx context.Context, file string) (*summary, error) {
	s.mu.Lock()
	e := s.mem[file]
	if e == nil {
		e = &entry{}
		s.mem[file] = e
	}
	e.started = true
	s.mu.Unlock()
	e.once.Do(func() { e.sum, e.err = s.analyse(ctx, file) })
	return e.sum, e.err
}

func (s *store) analyse(ctx context.Context, file string) (sum *summary, err error) {
	defer func() {
		if v := recover(); v != nil {
			sum, err = nil, &NotProgram{file, fmt.Errorf("internal error: %v", v), "report the file; run the container with the syscalls dimension in audit mode"}
		}
	}()
	f, err := s.r.root.Open(file)
	if err != nil {
		return nil, fmt.Errorf("analyse %s: %w", file, err)
	}
	defer f.Close()
	size := f.Info.Size()
	if size > elfread.MaxFile {
		return nil, &NotProgram{file, errTooLarge, fmt.Sprintf("files up to %d bytes are analysed", elfread.MaxFile)}
	}
	h, err := elfread.Header(f, size)
	if err != nil {
		return nil, &NotProgram{file, err, "name a program, or give the script's interpreter"}
	}
	if machines[h.Machine] == nil || h.Class != elf.ELFCLASS64 {
		return nil, &NotProgram{file, fmt.Errorf("%s: %w", goarch(h.Machine, h.Class), errMachine),
			"programs for amd64 and arm64 are analysed; exclude the image, or use one for those"}
	}
	if h.Machine != s.machine {
		return nil, &NotProgram{file, fmt.Errorf("%w: it is for %s, other programs of the container are for %s", errMachine, goarch(h.Machine, h.Class), s.conventions().goarch),
			"use an image whose programs are all for one architecture"}
	}
	kept := s.cache != (NoCache{}) && size >= cacheFrom && size <= wholeUpTo
	t := &taken{f: f, size: size, whole: size <= wholeUpTo}
	defer t.close()
	if kept {
		digest, err := s.digest(t)
		if err != nil {
			return nil, fmt.Errorf("analyse %s: %w", file, err)
		}
		if b, ok := s.cache.Get(s.moduleKey(digest)); ok {
			if sum, err := decodeSummary(b); err == nil {
				return sum, nil
			}
		}
	}
	ef, err := t.elf()
	if err != nil {
		return nil, &NotProgram{file, err, "check that the file is whole"}
	}
	sum, err = summarise(ctx, ef, s.known)
	if err != nil {
		return nil, fmt.Errorf("analyse %s: %w", file, err)
	}
	if kept {
		// Where the digest was known by the file's identity, it is now made of
		// what was read.
		s.cache.Put(s.moduleKey(t.contentDigest()), sum.encode())
	}
	return sum, nil
}

// taken is a file with as much of it as was read so far.
type taken struct {
	f       *rootfs.File
	size    int64
	whole   bool
	content *elfread.Content
	digest  string // of content, "" until it is known
	file    *elfread.File
	err     error
}

func (t *taken) close() {
	if t.file != nil {
		t.file.Close()
	}
	if t.content != nil {
		t.content.Close()
	}
}

// read takes the file into memory.
func (t *taken) read() (err error) {
	if t.content == nil {
		t.content, err = elfread.ReadContent(t.f, t.size)
	}
	return err
}

// elf takes it apart.
func (t *taken) elf() (*elfread.File, error) {
	if t.file != nil || t.err != nil {
		return t.file, t.err
	}
	if !t.whole {
		t.file, t.err = elfread.Read(t.f, t.size)
	} else if t.err = t.read(); t.err == nil {
		t.file, t.err = elfread.Read(t.content, t.size)
	}
	return t.file, t.err
}

// contentDigest is of what was read.
func (t *taken) contentDigest() string {
	if t.digest == "" {
		sum := sha256.Sum256(t.content.Bytes())
		t.digest = hex.EncodeToString(sum[:])
	}
	return t.digest
}

func (s *store) moduleKey(digest string) string {
	return "module " + version + " " + digest + " " + s.knownKey()
}

// digest names the content of a file. Which content a file had when it was seen
// last is remembered by its identity.
func (s *store) digest(t *taken) (string, error) {
	id := s.r.identity(&t.f.Stat)
	idKey := "id " + version + " " + id
	if id != unsure {
		if b, ok := s.cache.Get(idKey); ok {
			return string(b), nil
		}
	}
	if err := t.read(); err != nil {
		return "", err
	}
	var beside sync.WaitGroup
	if t.size >= readAhead {
		beside.Go(func() { _, _ = t.elf() })
	}
	t.contentDigest()
	beside.Wait()
	var now unix.Stat_t
	if err := unix.Fstat(int(t.f.Fd()), &now); err == nil && id != unsure && s.r.identity(&now) == id {
		s.cache.Put(idKey, []byte(t.digest))
	}
	return t.digest, nil
}
