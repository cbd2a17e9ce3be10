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
	"iter"
	"regexp"
	"slices"
	"strings"
)

// Limits on what is read of one file.
const (
	maxData    = 64 << 20 // read-only data
	maxDynamic = 16 << 20 // each of .dynsym, .dynstr
	maxSyms    = 1 << 20
	maxFound   = 4096    // strings reported
	maxText    = 8 << 20 // bytes of strings kept of a C program
	maxRuns    = 100_000 // places of a Go program
	maxName    = 64      // bytes of a bare name
	maxInterp  = 4096
	chunk      = 64 << 10 // read at a time
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

// Read examines an ELF file. Bare names are kept if they are among names; exists
// decides, for Go programs only, whether a candidate path is a file. Either may
// be nil.
func Read(r io.ReaderAt, names map[string]bool, exists func(string) bool) (*Program, error) {
	f, err := Scan(r)
	if err != nil {
		return nil, err
	}
	return f.Program(names, exists), nil
}

// File is what Scan found: all that can be said of a file without knowing what
// else there is. It is not changed any more.
type File struct {
	base Program
	// Of a C program, each once and in the order of the file.
	texts []text
	// What could be bare names, each with a zero byte behind it.
	names []byte
	// Of a Go program, what follows the name of a directory of programs there,
	// as far as it could be a path's.
	runs []string
}

// text is a string of a C program, by what it could be.
type text struct {
	kind byte
	s    string
}

const (
	aState = iota
	aCommand
	aPath
)

// Program picks what Read gives.
func (f *File) Program(names map[string]bool, exists func(string) bool) *Program {
	p := f.base
	p.Shell, p.Exec = slices.Clone(p.Shell), slices.Clone(p.Exec)
	found := [...]map[string]bool{aState: {}, aCommand: {}, aPath: {}}
	for i, t := range f.texts {
		if i >= maxFound {
			p.Truncated = true
			break
		}
		found[t.kind][t.s] = true
	}
	p.existing(f.runs, exists, found[aPath])
	p.State = sorted(found[aState])
	if p.Starts() {
		p.Paths, p.Names = sorted(found[aPath]), f.among(names, &p.Truncated)
	}
	if len(p.Shell) > 0 {
		p.Commands = sorted(found[aCommand])
	}
	return &p
}

// among gives the bare names that are among others.
func (f *File) among(names map[string]bool, truncated *bool) []string {
	if len(names) == 0 {
		return nil
	}
	// By length and first byte nearly all of the file's are none of them.
	var could [256]uint64
	for n := range names {
		if len(n) > 0 && len(n) <= maxName {
			could[n[0]] |= 1 << (len(n) - 1)
		}
	}
	found := map[string]bool{}
	for left := f.names; len(left) > 0; {
		end := bytes.IndexByte(left, 0)
		if n := left[:end]; could[n[0]]>>(end-1)&1 != 0 && names[string(n)] {
			if len(found) >= maxFound {
				*truncated = true
				break
			}
			found[string(n)] = true
		}
		left = left[end+1:]
	}
	return sorted(found)
}

// Scan examines an ELF file.
func Scan(r io.ReaderAt) (out *File, err error) {
	defer func() {
		if v := recover(); v != nil {
			out, err = nil, fmt.Errorf("read ELF file: %v", v)
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
	out = &File{base: Program{Machine: f.Machine, Class: f.Class}}
	p := &out.base
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
	out.strings(f, r)
	return out, nil
}

func plain(s *elf.Section) bool {
	return s != nil && s.Type != elf.SHT_NOBITS && s.Flags&elf.SHF_COMPRESSED == 0
}

func (p *Program) imports(f *elf.File) {
	n := 0
	for name := range imported(f) {
		if n++; n > maxSyms {
			p.Truncated = true
			break
		}
		p.Spawns = p.Spawns || spawning.Match(name)
		switch {
		case slices.Contains(shellCalls, string(name)):
			p.Shell = append(p.Shell, string(name))
		case string(name) == "daemon" || string(name) == "setsid":
			p.Detaches = true
		case slices.Contains(execCalls, string(name)):
			p.Exec = append(p.Exec, string(name))
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

// imported gives the names of the symbols that a file takes from others: global
// ones of .dynsym that are not defined (System V ABI, figures 4-16 and 4-17).
func imported(f *elf.File) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) {
		sym := f.SectionByType(elf.SHT_DYNSYM)
		if !plain(sym) || sym.FileSize > maxDynamic || int(sym.Link) >= len(f.Sections) ||
			!plain(f.Sections[sym.Link]) || f.Sections[sym.Link].FileSize > maxDynamic {
			return
		}
		table, err1 := sym.Data()
		names, err2 := f.Sections[sym.Link].Data()
		if err1 != nil || err2 != nil {
			return
		}
		size, info, section := elf.Sym64Size, 4, 6
		if f.Class == elf.ELFCLASS32 {
			size, info, section = elf.Sym32Size, 12, 14
		}
		for ; len(table) >= size; table = table[size:] {
			at := f.ByteOrder.Uint32(table)
			if elf.ST_BIND(table[info]) != elf.STB_GLOBAL || f.ByteOrder.Uint16(table[section:]) != uint16(elf.SHN_UNDEF) || uint64(at) >= uint64(len(names)) {
				continue
			}
			name := names[at:]
			if end := bytes.IndexByte(name, 0); end > 0 && !yield(name[:end]) {
				return
			}
		}
	}
}

// contains searches a section without holding all of it.
func contains(s *elf.Section, what string) bool {
	buf := make([]byte, min(chunk+len(what), int(s.FileSize))) // of at most maxData bytes
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

func (f *File) strings(e *elf.File, r io.ReaderAt) {
	p := &f.base
	if p.Go && !p.Starts() {
		return
	}
	var parts []extent
	for _, s := range e.Sections {
		// Gcc and clang put string literals into .rodata*, and pointers' targets
		// of static const arrays with relocations into the same.
		if plain(s) && strings.HasPrefix(s.Name, ".rodata") && s.Flags&elf.SHF_ALLOC != 0 {
			parts = append(parts, extent{s.Offset, s.FileSize})
		}
	}
	if len(e.Sections) == 0 { // section headers stripped
		for _, ph := range e.Progs {
			if ph.Type == elf.PT_LOAD && ph.Flags&elf.PF_W == 0 {
				parts = append(parts, extent{ph.Off, ph.Filesz})
			}
		}
	}
	left := uint64(maxData)
	c := collector{f: f, had: [...]map[string]bool{aState: {}, aCommand: {}, aPath: {}}, left: maxText}
	for _, part := range parts {
		if part.size > left {
			part.size, p.Truncated = left, true
		}
		left -= part.size
		if p.Go {
			f.scanGo(r, part)
		} else {
			c.scan(r, part)
		}
	}
}

// collector collects the strings of a C program.
type collector struct {
	f    *File
	had  [3]map[string]bool
	left int // bytes
}

func (c *collector) add(kind byte, b []byte) {
	if c.had[kind][string(b)] {
		return
	}
	if c.left -= len(b); c.left < 0 {
		c.f.base.Truncated = true
		return
	}
	s := string(b)
	c.had[kind][s] = true
	c.f.texts = append(c.f.texts, text{kind, s})
}

func sorted(m map[string]bool) []string {
	var s []string
	for k := range m {
		s = append(s, k)
	}
	slices.Sort(s)
	return s
}

// What a byte can be part of; class of zero: the end of a string.
const (
	cEnd   = 1 << iota
	cName  // a name
	cSlash // between names
	cBlank // between words
	cMark  // between what a shell's line is made of
	cOther
)

var class = func() (t [256]byte) {
	for i := range t {
		switch c := byte(i); {
		case clean([]byte{c}, false):
			t[i] = cName
		case c == '/':
			t[i] = cSlash
		case c == ' ':
			t[i] = cBlank
		case bytes.IndexByte([]byte("\t\n'\"`;|&<>(),="), c) >= 0:
			t[i] = cMark
		default:
			t[i] = cOther
		}
	}
	t[0] = cEnd
	return t
}()

// scan walks NUL-terminated strings.
func (c *collector) scan(r io.ReaderAt, e extent) {
	buf := make([]byte, min(uint64(chunk), e.size))
	for off := uint64(0); off < e.size; {
		n, err := r.ReadAt(buf[:min(uint64(len(buf)), e.size-off)], int64(e.off+off))
		if n <= 0 {
			return
		}
		last := off+uint64(n) >= e.size || err != nil
		start, kinds := 0, byte(0)
		for i, x := range buf[:n] {
			k := class[x]
			if k != cEnd {
				kinds |= k
				continue
			}
			// Most strings are neither names nor lines, or end at once.
			if i-start > 1 && (kinds == cName || kinds&(cSlash|cBlank) != 0) {
				c.found(buf[start:i], kinds)
			}
			start, kinds = i+1, 0
		}
		if last {
			return
		}
		rest := uint64(n - start)
		if rest >= uint64(n) { // one string longer than a chunk is no name
			rest = 0
		}
		off += uint64(n) - rest
	}
}

// found sorts a string by what it could be. kinds are the classes of its bytes.
func (c *collector) found(b []byte, kinds byte) {
	if len(b) > 1024 {
		return
	}
	if kinds&cSlash != 0 && bytes.HasPrefix(b, []byte("/var/lib/")) && clean(b, true) {
		c.add(aState, b)
	}
	if kinds&cBlank != 0 {
		if word, rest, ok := bytes.Cut(b, []byte(" ")); ok && len(rest) > 1 && rest[0] == '-' && (rest[1] == '-' || 'a' <= rest[1]|0x20 && rest[1]|0x20 <= 'z') &&
			len(word) > 1 && len(word) <= 64 && word[0] != '-' && clean(word, false) {
			c.add(aCommand, word)
		}
	}
	switch {
	case kinds&cSlash != 0:
		// A command line for popen: its first word, and what it names by path.
		for i := 0; i < len(b); {
			end := i
			for end < len(b) && class[b[end]]&(cBlank|cMark) == 0 {
				end++
			}
			if w := b[i:end]; len(w) > 1 && w[0] == '/' && clean(w[1:], true) {
				c.add(aPath, w)
			}
			i = end + 1
		}
	case kinds == cName && len(b) <= maxName:
		if c.left -= len(b); c.left < 0 {
			c.f.base.Truncated = true
			return
		}
		c.f.names = append(append(c.f.names, b...), 0)
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

// scanGo finds where paths may begin in Go's unterminated strings.
func (f *File) scanGo(r io.ReaderAt, e extent) {
	const overlap = 128
	buf := make([]byte, chunk+overlap)
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
				}
				if end == at {
					continue
				}
				if len(f.runs) >= maxRuns {
					f.base.Truncated = true
					return
				}
				f.runs = append(f.runs, string(b[start:end]))
			}
		}
	}
}

// existing finds paths in Go's unterminated strings by what exists: every prefix
// that is a file counts.
func (p *Program) existing(runs []string, exists func(string) bool, paths map[string]bool) {
	if exists == nil {
		return
	}
	tried := 0
	for _, run := range runs {
		dir := ""
		for _, d := range programDirs {
			if strings.HasPrefix(run, d) {
				dir = d
			}
		}
		for end := len(dir) + 1; end <= len(run); end++ {
			if tried++; tried > 100_000 || len(paths) > maxFound {
				p.Truncated = true
				return
			}
			if c := run[:end]; !paths[c] && exists(c) {
				paths[c] = true
			}
		}
	}
}
