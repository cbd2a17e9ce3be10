package seccompgen

import (
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/sysno"
)

// What interpreters do on behalf of a script, beyond what their own code and
// their extensions say.
//
// Perl and Ruby have a builtin, syscall, that makes the call whose number the
// script gives. Python's ctypes and cffi, Ruby's Fiddle and ffi, PHP's FFI and
// LuaJIT's ffi call any function of any library by name. Both are looked for in
// the image's scripts: a number, or a SYS_ constant, that stands at the builtin
// is allowed; any other use of it is reported as unresolved with the script's
// line. In scripts that have to do with a foreign function interface every
// word counts as a function that may be called, and every name of a library as
// one that may be opened.
//
// Scripts that are not files of the image (typed in, sent, generated, packed in
// archives) are not seen; neither are names that a script puts together.

// scripted is the reason of a site whose number a script gives.
const scripted = "the number comes from a script"

// language is one whose scripts can do so.
type language struct {
	kind    kind
	ext     []string
	builtin bool     // syscall is a function of the language
	words   []string // of which a script that uses a foreign function interface has at least one
	comment string
}

var languages = []language{
	{forPerl, []string{".pl", ".pm", ".ph", ".al", ".psgi", ".cgi", ".plx", ".t"}, true, []string{"FFI::Platypus", "FFI::Raw"}, "#"},
	{forRuby, []string{".rb", ".ru", ".rake", ".erb", ".gemspec"}, true, []string{"Fiddle", "fiddle", "FFI", "ffi"}, "#"},
	{forPython, []string{".py", ".pyw", ".pyc"}, false, []string{"ctypes", "cffi", "_ctypes", "_cffi_backend"}, "#"},
	{forPHP, []string{".php", ".inc", ".phtml", ".phar"}, false, []string{"FFI"}, "//"},
	{forLua, []string{".lua", ".conf", ".cfg"}, false, []string{"ffi"}, "--"},
}

// builtin tells whether a function is that of Perl or Ruby: perl's Perl_pp_syscall
// (pp_sys.c), which every perl exports to its extensions, and Ruby's rb_f_syscall
// (process.c), which has no name once it is stripped but speaks of itself in its
// messages.
func (b *builder) builtin(fi int32) bool {
	ruby := false
	for _, list := range [][]elfread.Symbol{b.f.Dynsym, b.f.Symtab} {
		for i := range list {
			switch s := &list[i]; {
			case !s.Defined:
			case s.Name == "rb_num2long":
				ruby = true
			case (s.Name == "Perl_pp_syscall" || s.Name == "rb_f_syscall") && b.at(s.Value) == fi:
				return true
			}
		}
	}
	if !ruby {
		return false
	}
	d := b.body(fi)
	for i := range d.ins {
		in := &d.ins[i]
		if !in.IsMem || !in.RIP {
			continue
		}
		text := b.f.Bytes(in.Address(d.pcs[i]))
		text = text[:min(len(text), 128)]
		if k := bytes.IndexByte(text, 0); k > 0 && bytes.HasSuffix(text[:k], []byte(" arguments for syscall")) {
			return true
		}
	}
	return false
}

const (
	maxScript  = 4 << 20
	maxScripts = 100_000
)

// words is what scripts of the image ask for.
type words struct {
	libraries, names []string
	calls            []call
	unresolved       []unresolved
	dirs             map[string]bool // of scripts with a foreign function interface
}

// script is where a script may lie: with an extension that says so, or with none.
func script(name string) bool { return scriptExt[path.Ext(name)] }

var scriptExt = func() map[string]bool {
	m := set("", ".sh")
	for _, l := range languages {
		for _, ext := range l.ext {
			m[ext] = true
		}
	}
	return m
}()

// scripts reads the image's scripts for the languages whose interpreters are
// among kinds. builtins are those whose builtin is there.
func (l *loader) scripts(kinds, builtins kind, arch string) words {
	out := words{dirs: map[string]bool{}}
	names, libraries, calls := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range languages {
		lang := &languages[i]
		if kinds&lang.kind == 0 {
			continue
		}
		for _, file := range l.texts {
			ext := path.Ext(file)
			if own := slices.Contains(lang.ext, ext); !own && ext != "" && ext != ".sh" {
				continue
			}
			text, ok := l.scriptText(file)
			if !ok {
				if ext != "" && ext != ".sh" {
					out.unresolved = append(out.unresolved, unresolved{File: file, Reason: "the script is too large to be read"})
				}
				continue
			}
			if ext == "" && !bytes.HasPrefix(text, []byte("#!")) {
				text = nil
			}
			uses := slices.ContainsFunc(lang.words, func(w string) bool { return hasWord(text, w) })
			if lang.builtin && builtins&lang.kind != 0 || uses {
				l.numbers(file, text, lang, arch, &out, calls)
			}
			if uses {
				out.dirs[path.Dir(file)] = true
				for _, m := range identifier1.FindAll(text, -1) {
					names[string(m)] = true
				}
				for _, m := range libraryName.FindAll(text, -1) {
					libraries[string(m)] = true
				}
				for _, m := range libraryStem.FindAllSubmatch(text, -1) {
					for _, p := range l.byStem(string(m[1])) {
						libraries[p] = true
					}
				}
			}
		}
	}
	for n := range names {
		out.names = append(out.names, n)
	}
	for n := range libraries {
		out.libraries = append(out.libraries, n)
	}
	slices.Sort(out.names)
	slices.Sort(out.libraries)
	return out
}

var (
	identifier1 = regexp.MustCompile(`[A-Za-z_][A-Za-z0-9_]{2,63}`)
	libraryName = regexp.MustCompile(`[A-Za-z0-9_./+-]*lib[A-Za-z0-9_+.-]*\.so[0-9.]*`)
	libraryStem = regexp.MustCompile(`(?:find_library|ffi_lib|load|dlopen|CDLL|LoadLibrary|cdef)\s*\(?\s*['"]([A-Za-z0-9_+-]{1,40})['"]`)
)

// scriptText reads a file, once, if it is text; a program is an empty text.
func (l *loader) scriptText(file string) ([]byte, bool) {
	if text, ok := l.read[file]; ok {
		return text, text != nil
	}
	text := []byte{} // nothing that matters; nil: not known
	defer func() {
		if l.kept+len(text) < maxKept {
			l.read[file] = text
			l.kept += len(text)
		}
	}()
	_, st, ok := l.r.regular(file)
	if !ok {
		return text, true
	}
	ext := path.Ext(file)
	if st.Size > maxScript {
		text = nil
		return nil, false
	}
	f, err := l.r.root.Open(file)
	if err != nil {
		return text, true
	}
	defer f.Close()
	b := l.buffer(st.Size)
	head, err := io.ReadFull(f, b[:min(len(b), 512)])
	if err != nil || ext != ".pyc" && bytes.IndexByte(b[:head], 0) >= 0 {
		return text, true
	}
	n, err := io.ReadFull(f, b[head:])
	b = b[:head+n]
	if err != nil || !hasWord(b, "ffi") && !slices.ContainsFunc(interesting, func(w []byte) bool { return bytes.Contains(b, w) }) {
		return text, true
	}
	text = slices.Clone(b)
	return text, true
}

// interesting, and ffi by itself, decide whether a script matters at all.
var interesting = [][]byte{[]byte("syscall"), []byte("ctypes"), []byte("cffi"), []byte("iddle"), []byte("FFI")}

// buffer is for reading one script after the other.
func (l *loader) buffer(n int64) []byte {
	if int64(len(l.space)) < n {
		l.space = make([]byte, max(n, 1<<20))
	}
	return l.space[:n]
}

// maxKept bounds what is kept of scripts in memory.
const maxKept = 64 << 20

func wordAt(text []byte, i, n int) bool {
	return (i == 0 || !wordByte(text[i-1])) && (i+n == len(text) || !wordByte(text[i+n]))
}

func wordByte(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

func hasWord(text []byte, word string) bool {
	for p := 0; ; {
		k := bytes.Index(text[p:], []byte(word))
		if k < 0 {
			return false
		}
		if wordAt(text, p+k, len(word)) {
			return true
		}
		p += k + len(word)
	}
}

var (
	named   = regexp.MustCompile(`^\s*\(?\s*(?:(?:ctypes\.)?c_(?:u?long|u?int)\(\s*)?&?\s*(?:\w+(?:::|\.))*(?:SYS|__NR|NR)_(\w+)`)
	literal = regexp.MustCompile(`^\s*\(?\s*(?:(?:ctypes\.)?c_(?:u?long|u?int)\(\s*)?(0x[0-9a-fA-F]+|[0-9]+)\b`)
)

// numbers finds what a script does with syscall.
func (l *loader) numbers(file string, text []byte, lang *language, arch string, out *words, seen map[string]bool) {
	const word = "syscall"
	add := func(name string, line int) {
		if !seen[name] {
			seen[name] = true
			out.calls = append(out.calls, call{name, fmt.Sprintf("%s:%d", file, line)})
		}
	}
	compiled := path.Ext(file) == ".pyc"
	prose := proseOf(text, lang)
	for p := 0; ; {
		k := bytes.Index(text[p:], []byte(word))
		if k < 0 {
			return
		}
		at := p + k
		p = at + len(word)
		if !wordAt(text, at, len(word)) {
			continue
		}
		line := 1 + bytes.Count(text[:at], []byte("\n"))
		rest := text[p:min(len(text), p+200)]
		begin := 1 + bytes.LastIndexByte(text[:at], '\n')
		if !compiled {
			if m := named.FindSubmatch(rest); m != nil {
				if _, ok := sysno.Number(arch, string(m[1])); ok {
					add(string(m[1]), line)
				}
				continue // the interpreter knows no other constants either
			}
			if m := literal.FindSubmatch(rest); m != nil {
				nr, err := strconv.ParseInt(string(m[1]), 0, 32)
				if name, ok := sysno.Name(arch, int(nr)); ok && err == nil {
					add(name, line)
				}
				continue
			}
			if prose(at) || !calls(text[begin:at], rest, lang) {
				continue
			}
		}
		if len(out.unresolved) < 100 {
			out.unresolved = append(out.unresolved, unresolved{File: file, Reason: fmt.Sprintf("line %d makes a system call by number", line)})
		}
	}
}

// calls tells whether syscall between before and rest, on its line, can be a
// call of it, or something that takes its value.
func calls(before, rest []byte, lang *language) bool {
	trimmed := bytes.TrimSpace(before)
	if bytes.HasPrefix(trimmed, []byte(lang.comment)) || bytes.HasPrefix(trimmed, []byte("*")) {
		return false
	}
	quoted := bytes.Count(before, []byte(`"`))%2 == 1 || bytes.Count(before, []byte(`'`))%2 == 1
	rest = bytes.TrimLeft(rest, " \t")
	next, last := byte('\n'), byte('\n')
	if len(rest) > 0 {
		next = rest[0]
	}
	if len(before) > 0 {
		last = before[len(before)-1]
	}
	if !lang.builtin {
		return true // it stands in a script that can call it
	}
	switch {
	case strings.IndexByte("$@%-/|*", last) >= 0, bytes.HasSuffix(before, []byte("->")), bytes.HasSuffix(before, []byte("sub ")), bytes.HasSuffix(before, []byte("def ")):
		return false
	case last == ':' && lang.kind == forPerl && !bytes.HasSuffix(before, []byte("CORE::")) && !bytes.HasSuffix(before, []byte("GLOBAL::")):
		return false
	case last == ':' && lang.kind == forRuby:
		return true // the builtin by its name
	case last == '.' && lang.kind == forRuby && !bytes.HasSuffix(before, []byte("Kernel.")):
		return false
	case next == '(' || next == '&' || next == '$' || next == '@':
		return !bytes.Contains(before, []byte(lang.comment+" ")) && (!quoted || next != '(' || bytes.Contains(before, []byte("eval")) || bytes.Contains(before, []byte(" -e")))
	case wordByte(next):
		return !quoted && !bytes.Contains(before, []byte(lang.comment))
	}
	return false
}

// proseOf tells which places of a script are documentation: Perl's POD, and
// what follows its end.
func proseOf(text []byte, lang *language) func(int) bool {
	if lang.kind != forPerl {
		return func(int) bool { return false }
	}
	var ranges [][2]int
	pod, begin := false, 0
	for p := 0; p < len(text); {
		end := bytes.IndexByte(text[p:], '\n')
		if end < 0 {
			end = len(text) - p
		}
		line := text[p : p+end]
		switch {
		case bytes.HasPrefix(line, []byte("=cut")):
			if pod {
				ranges = append(ranges, [2]int{begin, p})
			}
			pod = false
		case !pod && len(line) > 1 && line[0] == '=' && (line[1] >= 'a' && line[1] <= 'z') && (p < 2 || text[p-2] == '\n'):
			pod, begin = true, p
		case !pod && (bytes.Equal(line, []byte("__END__")) || bytes.Equal(line, []byte("__DATA__"))):
			pod, begin, p = true, p, len(text)
			continue
		}
		p += end + 1
	}
	if pod {
		ranges = append(ranges, [2]int{begin, len(text)})
	}
	return func(at int) bool {
		return slices.ContainsFunc(ranges, func(r [2]int) bool { return at >= r[0] && at < r[1] })
	}
}

// byStem are the libraries of the loader's directories that -lstem would mean.
func (l *loader) byStem(stem string) []string {
	var out []string
	for _, d := range slices.Concat(l.dirs, l.musl) {
		entries, _ := l.r.dir(d)
		prefix := "lib" + stem + ".so"
		i, _ := slices.BinarySearchFunc(entries, prefix, func(e fs.DirEntry, s string) int { return strings.Compare(e.Name(), s) })
		for ; i < len(entries) && strings.HasPrefix(entries[i].Name(), prefix); i++ {
			if p, _, ok := l.r.regular(path.Join(d, entries[i].Name())); ok && !slices.Contains(out, p) {
				out = append(out, p)
			}
		}
	}
	return out
}
