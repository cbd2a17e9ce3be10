// Package elfstrings reads from an ELF file what tells which other programs it
// may start: its ELF interpreter, whether it imports popen, system, posix_spawn
// or a member of the exec family, and which strings of its read-only data name
// programs.
//
// It guarantees bounded memory and that hostile input gives an error, never a
// panic (debug/elf is documented as not hardened). It does not guarantee to
// find names that a program computes, decrypts or reads from a file.
package elfstrings

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
)

// Limits on what is read of one file.
const (
	maxData    = 64 << 20 // read-only data
	maxDynamic = 16 << 20 // each of .dynsym, .dynstr
	maxSyms    = 1 << 20
	maxFound   = 4096 // strings reported
	maxInterp  = 4096
	chunk      = 1 << 20
)

// ErrNotELF is returned for a file that does not start with the ELF magic.
var ErrNotELF = errors.New("not an ELF file")

// Program is what was found in one file.
type Program struct {
	Interpreter string // PT_INTERP, empty for a static program
	Machine     elf.Machine
	Class       elf.Class
	Go          bool
	// Shell lists the imports through which the program runs a command line
	// with /bin/sh: popen, system, wordexp.
	Shell []string
	// Exec lists the imports through which it starts programs by name.
	Exec []string
	// Spawns: by its name an import may start programs through a library
	// (g_subprocess_newv, QProcess::start), besides those that Exec lists.
	Spawns bool
	// Detaches: it imports daemon or setsid, and may live on in the background
	// after it has returned to whoever ran it.
	Detaches bool
	// Paths are absolute paths among its strings; Names are strings without a
	// slash for which the caller's filter was true. Both are only looked for
	// when the program can start programs at all, and are sorted.
	Paths, Names []string
	// Commands are the first words of what looks like command lines among its
	// strings ("locale -a"): a bare name, then an option. Only looked for when
	// it runs command lines with a shell; sorted.
	Commands []string
	// State are absolute paths below /var/lib among its strings: where it was
	// built to keep its state. Looked for in every C program; sorted.
	State []string
	// Truncated is true when a limit was met.
	Truncated bool
}

// Starts tells whether the program can start another one.
func (p *Program) Starts() bool { return len(p.Shell)+len(p.Exec) > 0 }

var shellCalls = []string{"popen", "system", "wordexp", "_IO_popen", "__libc_system"}
var execCalls = []string{
	"execve", "execv", "execvp", "execvpe", "execl", "execlp", "execle", "fexecve", "execveat",
	"posix_spawn", "posix_spawnp", "uv_spawn", "g_spawn_async", "g_spawn_sync", "apr_proc_create",
}

var spawning = regexp.MustCompile(`(?i)exec|spawn|subprocess|qprocess`)

// Directories whose programs are looked for in Go programs, where strings have
// no terminator and a path can only be recognised by what exists.
var programDirs = []string{"/usr/local/sbin/", "/usr/local/bin/", "/usr/sbin/", "/usr/bin/", "/sbin/", "/bin/"}

// Read examines an ELF file. The filter decides which bare names are kept;
// exists decides, for Go programs only, whether a candidate path is a file.
// Either may be nil.
func Read(r io.ReaderAt, filter, exists func(string) bool) (p *Program, err error) {
	defer func() {
		if v := recover(); v != nil {
			p, err = nil, fmt.Errorf("read ELF file: %v", v)
		}
	}()
	var magic [4]byte
	if _, err := r.ReadAt(magic[:], 0); err != nil || string(magic[:]) != elf.ELFMAG {
		return nil, ErrNotELF
	}
	f, err := elf.NewFile(r)
	if err != nil {
		return nil, fmt.Errorf("read ELF file: %w", err)
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return nil, fmt.Errorf("read ELF file: type %s cannot be executed", f.Type)
	}
	p = &Program{Machine: f.Machine, Class: f.Class}
	for _, ph := range f.Progs {
		if ph.Type != elf.PT_INTERP {
			continue
		}
		if ph.Filesz == 0 || ph.Filesz > maxInterp {
			return nil, fmt.Errorf("read ELF file: interpreter name of %d bytes", ph.Filesz)
		}
		b := make([]byte, ph.Filesz)
		if _, err := r.ReadAt(b, int64(ph.Off)); err != nil {
			return nil, fmt.Errorf("read ELF interpreter name: %w", err)
		}
		name, _, _ := bytes.Cut(b, []byte{0})
		p.Interpreter = string(name)
	}
	p.Go = f.Section(".gopclntab") != nil || f.Section(".data.rel.ro.gopclntab") != nil || f.Section(".go.buildinfo") != nil
	p.imports(f)
	p.strings(f, r, filter, exists)
	return p, nil
}

func plain(s *elf.Section) bool {
	return s != nil && s.Type != elf.SHT_NOBITS && s.Flags&elf.SHF_COMPRESSED == 0
}

func (p *Program) imports(f *elf.File) {
	sym := f.SectionByType(elf.SHT_DYNSYM)
	if plain(sym) && sym.FileSize <= maxDynamic && int(sym.Link) < len(f.Sections) &&
		plain(f.Sections[sym.Link]) && f.Sections[sym.Link].FileSize <= maxDynamic {
		syms, err := f.ImportedSymbols()
		if err == nil {
			for i, s := range syms {
				if i > maxSyms {
					p.Truncated = true
					break
				}
				p.Spawns = p.Spawns || spawning.MatchString(s.Name)
				switch {
				case slices.Contains(shellCalls, s.Name):
					p.Shell = append(p.Shell, s.Name)
				case s.Name == "daemon" || s.Name == "setsid":
					p.Detaches = true
				case slices.Contains(execCalls, s.Name):
					p.Exec = append(p.Exec, s.Name)
				}
			}
		}
	}
	slices.Sort(p.Shell)
	slices.Sort(p.Exec)
	p.Shell, p.Exec = slices.Compact(p.Shell), slices.Compact(p.Exec)
	if p.Go {
		for _, name := range []string{".gopclntab", ".data.rel.ro.gopclntab"} {
			if s := f.Section(name); plain(s) && s.FileSize <= maxData {
				if contains(s, "syscall.forkExec") || contains(s, "syscall.Exec") {
					p.Exec = append(p.Exec, "syscall.forkExec")
				}
			}
		}
	}
	if !p.Go && f.Section(".dynsym") == nil {
		// A static C program: its imports cannot be seen. A libc's system() and
		// popen() are the usual reason for this string.
		for _, s := range f.Sections {
			if strings.HasPrefix(s.Name, ".rodata") && plain(s) && s.FileSize <= maxData && contains(s, "/bin/sh\x00") {
				p.Shell = append(p.Shell, "/bin/sh (static program)")
				p.Exec = append(p.Exec, "/bin/sh (static program)")
				break
			}
		}
	}
}

// contains searches a section without holding all of it.
func contains(s *elf.Section, what string) bool {
	buf := make([]byte, chunk+len(what))
	for off := int64(0); off < int64(s.FileSize); off += chunk {
		n, err := s.ReadAt(buf[:min(int64(len(buf)), int64(s.FileSize)-off)], off)
		if bytes.Contains(buf[:n], []byte(what)) {
			return true
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return false
		}
	}
	return false
}

type extent struct{ off, size uint64 }

func (p *Program) strings(f *elf.File, r io.ReaderAt, filter, exists func(string) bool) {
	if p.Go && !p.Starts() {
		return
	}
	var parts []extent
	for _, s := range f.Sections {
		// Gcc and clang put string literals into .rodata*, and pointers' targets
		// of static const arrays with relocations into the same.
		if plain(s) && strings.HasPrefix(s.Name, ".rodata") && s.Flags&elf.SHF_ALLOC != 0 {
			parts = append(parts, extent{s.Offset, s.FileSize})
		}
	}
	if len(f.Sections) == 0 { // section headers stripped
		for _, ph := range f.Progs {
			if ph.Type == elf.PT_LOAD && ph.Flags&elf.PF_W == 0 {
				parts = append(parts, extent{ph.Off, ph.Filesz})
			}
		}
	}
	left := uint64(maxData)
	paths, names := map[string]bool{}, map[string]bool{}
	found := &found{paths: paths, names: names, commands: map[string]bool{}, state: map[string]bool{}}
	for _, e := range parts {
		if e.size > left {
			e.size, p.Truncated = left, true
		}
		left -= e.size
		if p.Go {
			p.scanGo(r, e, exists, paths)
		} else {
			p.scanC(r, e, filter, found)
		}
	}
	p.State = sorted(found.state)
	if p.Starts() {
		p.Paths, p.Names = sorted(paths), sorted(names)
	}
	if len(p.Shell) > 0 {
		p.Commands = sorted(found.commands)
	}
}

// found collects strings.
type found struct{ paths, names, commands, state map[string]bool }

func (f *found) size() int { return len(f.paths) + len(f.names) + len(f.commands) + len(f.state) }

func sorted(m map[string]bool) []string {
	var s []string
	for k := range m {
		s = append(s, k)
	}
	slices.Sort(s)
	return s
}

// scanC walks NUL-terminated strings.
func (p *Program) scanC(r io.ReaderAt, e extent, filter func(string) bool, found *found) {
	buf := make([]byte, min(uint64(chunk), e.size))
	for off := uint64(0); off < e.size; {
		n, err := r.ReadAt(buf[:min(uint64(len(buf)), e.size-off)], int64(e.off+off))
		if n <= 0 {
			return
		}
		b := buf[:n]
		last := off+uint64(n) >= e.size || err != nil
		for len(b) > 0 {
			i := bytes.IndexByte(b, 0)
			if i < 0 {
				break
			}
			p.stringFound(b[:i], filter, found)
			b = b[i+1:]
		}
		if last {
			return
		}
		rest := uint64(len(b))
		if rest >= uint64(n) { // one string longer than a chunk is no name
			rest = 0
		}
		off += uint64(n) - rest
	}
}

func (p *Program) stringFound(b []byte, filter func(string) bool, found *found) {
	if len(b) < 2 || len(b) > 1024 {
		return
	}
	if found.size() >= maxFound {
		p.Truncated = true
		return
	}
	if bytes.HasPrefix(b, []byte("/var/lib/")) && clean(b, true) {
		found.state[string(b)] = true
	}
	if word, rest, ok := bytes.Cut(b, []byte(" ")); ok && len(word) > 1 && len(word) <= 64 && clean(word, false) && len(rest) > 1 &&
		word[0] != '-' && rest[0] == '-' && (rest[1] == '-' || 'a' <= rest[1]|0x20 && rest[1]|0x20 <= 'z') {
		found.commands[string(word)] = true
	}
	// A command line for popen: its first word, and what it names by path.
	if b[0] == '/' || bytes.IndexByte(b, '/') > 0 {
		for _, w := range bytes.FieldsFunc(b, func(r rune) bool { return strings.ContainsRune(" \t\n'\"`;|&<>(),=", r) }) {
			if len(w) > 1 && w[0] == '/' && clean(w[1:], true) {
				found.paths[string(w)] = true
			}
		}
		return
	}
	if filter != nil && len(b) <= 64 && clean(b, false) && filter(string(b)) {
		found.names[string(b)] = true
	}
}

func clean(b []byte, slash bool) bool {
	for _, c := range b {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case c == '.', c == '_', c == '-', c == '+', c == '[':
		case c == '/' && slash:
		default:
			return false
		}
	}
	return len(b) > 0
}

// scanGo finds paths in Go's unterminated strings by what exists: every prefix
// that is a file counts.
func (p *Program) scanGo(r io.ReaderAt, e extent, exists func(string) bool, paths map[string]bool) {
	if exists == nil {
		return
	}
	const overlap = 128
	buf := make([]byte, chunk+overlap)
	tried := 0
	for off := uint64(0); off < e.size; off += chunk {
		n, _ := r.ReadAt(buf[:min(uint64(len(buf)), e.size-off)], int64(e.off+off))
		b := buf[:max(n, 0)]
		for _, dir := range programDirs {
			for at := 0; ; {
				i := bytes.Index(b[at:], []byte(dir))
				if i < 0 {
					break
				}
				start := at + i
				at = start + len(dir)
				end := at
				for end < len(b) && end-at < 64 && clean(b[end:end+1], true) {
					end++
					if tried++; tried > 100_000 || len(paths) > maxFound {
						p.Truncated = true
						return
					}
					if c := string(b[start:end]); !paths[c] && exists(c) {
						paths[c] = true
					}
				}
			}
		}
	}
}
