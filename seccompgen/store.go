package seccompgen

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/shim/rootfs"
)

// version is part of every key: raise it whenever a result could change.
const version = "3"

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
	syms  *symbols
	slots chan struct{} // held while a file is analysed ahead
	under sync.WaitGroup
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

// start analyses a file in the background.
func (s *store) start(ctx context.Context, file string) {
	s.under.Go(func() {
		s.slots <- struct{}{}
		defer func() { <-s.slots }()
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

// byIdentity is from how many bytes on a file is known by what it is, and not by
// its content: making the digest would take about as long as the analysis does.
const byIdentity = 16 << 20

// cacheFrom is from how many bytes on what is found out about a file is kept by
// itself: below, finding it out again is as quick as reading it back.
const cacheFrom = 32 << 10

// readAhead is from how many bytes on a file is read while its digest is made.
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
	var ef *elfread.File
	read := sync.OnceValue(func() (err error) {
		ef, err = elfread.Read(f, size)
		return err
	})
	defer func() {
		if ef != nil {
			ef.Close()
		}
	}()
	kept := s.cache != (NoCache{}) && size >= cacheFrom
	key := ""
	if kept {
		digest, err := s.digest(f, func() { _ = read() })
		if err != nil {
			return nil, fmt.Errorf("analyse %s: %w", file, err)
		}
		key = "module " + version + " " + digest + " " + s.knownKey()
		if b, ok := s.cache.Get(key); ok {
			if sum, err := decodeSummary(b); err == nil {
				return sum, nil
			}
		}
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
	if err := read(); err != nil {
		return nil, &NotProgram{file, err, "check that the file is whole"}
	}
	sum, err = summarise(ctx, ef, s.known)
	if err != nil {
		return nil, fmt.Errorf("analyse %s: %w", file, err)
	}
	if kept {
		s.cache.Put(key, sum.encode())
	}
	return sum, nil
}

// digest names the content of a file. Who it was last time is remembered by
// identity. meanwhile is done beside the reading of a larger file.
func (s *store) digest(f *rootfs.File, meanwhile func()) (string, error) {
	size := f.Info.Size()
	idKey := "id " + version + " " + identity("", &f.Stat)
	if size >= byIdentity {
		return idKey, nil
	}
	if b, ok := s.cache.Get(idKey); ok {
		return string(b), nil
	}
	var beside sync.WaitGroup
	if size >= readAhead {
		beside.Go(meanwhile)
	}
	h := sha256.New()
	_, err := io.Copy(h, io.NewSectionReader(f, 0, size))
	beside.Wait()
	if err != nil {
		return "", err
	}
	digest := hex.EncodeToString(h.Sum(nil))
	s.cache.Put(idKey, []byte(digest))
	return digest, nil
}
