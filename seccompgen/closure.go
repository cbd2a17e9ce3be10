package seccompgen

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/declarun/declarun/shim/rootfs"
	"golang.org/x/sys/unix"
)

// reader reads the image and remembers what it looked at, so that a cached
// result can be checked against the image without reading it again (sights.go).
type reader struct {
	root *rootfs.Root
	// seen are the names that were looked up: where each leads and the identity
	// of what is there, isDir, or "" where nothing is.
	seen    map[string]string
	lists   map[string]listing // directories that were read, by path free of symbolic links
	partial bool               // something was left out that may be there another time
	size    map[string]int64   // of files, by path free of symbolic links
	// What was looked at before: one answer holds for a whole analysis.
	stats map[string]stat
	dirs  map[string][]fs.DirEntry
}

type stat struct {
	path string
	st   *unix.Stat_t
}

func newReader(root *rootfs.Root) *reader {
	return &reader{root: root, seen: map[string]string{}, lists: map[string]listing{}, size: map[string]int64{}, stats: map[string]stat{}, dirs: map[string][]fs.DirEntry{}}
}

// unsure is the identity of a file that has none to rely on.
const unsure = "?"

// identity changes when a file does. It is made of what neither a container nor
// the author of an image chooses: ctime cannot be set, and on the file systems
// of rootfs.Volume.Keeps it is the host's kernel that keeps it. The volume is
// part of it, since inode numbers are only unique within one; the device number
// is not, since it changes with every mount.
//
// A file that changed a moment ago could change again within the same tick of
// the kernel's clock, and look the same: it has no identity yet.
//
// Of an empty file everything is known: it has the same identity everywhere, at once.
func (r *reader) identity(st *unix.Stat_t) string {
	v, known := r.root.Volume(st.Dev)
	if !known || !v.Keeps(st) {
		return unsure
	}
	var b [128]byte
	out := strconv.AppendUint(b[:0], uint64(st.Mode), 8)
	if st.Mode&unix.S_IFMT == unix.S_IFREG && st.Size == 0 {
		return string(append(out, " empty"...))
	}
	if fresh(st.Ctim, time.Now()) {
		return unsure
	}
	out = strconv.AppendUint(append(out, ' '), st.Ino, 10)
	out = strconv.AppendInt(append(out, ' '), st.Size, 10)
	out = strconv.AppendInt(append(out, ' '), st.Ctim.Sec, 10)
	out = strconv.AppendInt(append(out, '.'), st.Ctim.Nsec, 10)
	return string(append(append(out, ' '), v.ID...))
}

// fresh: the kernel's clock for times of files ticks at least every 10 ms; file
// systems that keep seconds only have none below.
func fresh(ctim unix.Timespec, now time.Time) bool {
	tick := 50 * time.Millisecond
	if ctim.Nsec == 0 {
		tick = 2 * time.Second
	}
	return now.Sub(time.Unix(ctim.Unix())) < tick
}

// stat gives the path of a file free of symbolic links, and its identity.
func (r *reader) stat(name string) (string, *unix.Stat_t, bool) {
	if s, ok := r.stats[name]; ok {
		return s.path, s.st, s.st != nil
	}
	p, st, err := r.root.Stat(name)
	if err != nil {
		r.seen[name], r.stats[name] = "", stat{}
		return "", nil, false
	}
	r.seen[name], r.stats[name] = r.sees(p, &st), stat{p, &st}
	r.size[p] = st.Size
	return p, &st, true
}

func (r *reader) sees(p string, st *unix.Stat_t) string {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return isDir
	}
	if id := r.identity(st); id != unsure {
		return p + " " + id
	}
	return unsure
}

func (r *reader) regular(name string) (string, *unix.Stat_t, bool) {
	p, st, ok := r.stat(name)
	if !ok || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", nil, false
	}
	return p, st, true
}

func (r *reader) dir(name string) ([]fs.DirEntry, bool) {
	p, st, ok := r.stat(name)
	if !ok || st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return nil, false
	}
	entries, ok := r.dirs[name]
	if ok {
		return entries, true
	}
	entries, err := r.root.ReadDir(name, 0)
	if err != nil {
		r.partial = true
		return nil, false
	}
	r.dirs[name] = entries
	r.lists[p] = listingOf(r.identity(st), entries)
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return entries, true
}

func (r *reader) text(name string) string {
	if _, _, ok := r.regular(name); !ok {
		return ""
	}
	b, err := r.root.ReadFile(name, 1<<20)
	if err != nil {
		return ""
	}
	return string(b)
}

// MissingLibrary is a library that the loader would not find either.
type MissingLibrary struct{ Name, For string }

func (e *MissingLibrary) Error() string {
	return fmt.Sprintf("find library %s of %s: not in the image", e.Name, e.For)
}

// Remedy says what to do about it.
func (e *MissingLibrary) Remedy() string {
	return "install the library in the image, or mount it where the loader looks; the program would not start without it"
}

// NotProgram is a program that cannot be analysed.
type NotProgram struct {
	Path  string
	Cause error
	Way   string
}

func (e *NotProgram) Error() string { return fmt.Sprintf("analyse %s: %v", e.Path, e.Cause) }
func (e *NotProgram) Unwrap() error { return e.Cause }

// Remedy says what to do about it.
func (e *NotProgram) Remedy() string { return e.Way }

// loader finds libraries the way ld.so(8) does, and reads each file once.
type loader struct {
	ctx    context.Context
	r      *reader
	store  *store
	env    map[string]string
	dirs   []string // ld.so.conf and the default directories of glibc
	musl   []string
	opened int // libraries found below plugin directories of the program at hand
	hwcaps map[string][]string
	isDir  map[string]bool // ordinary library directories, free of symbolic links
	// all are the libraries of the image, once it was walked; unseen, that the
	// walk left some out.
	all            []native
	texts          []string // files that may be scripts
	walked, unseen bool
	req            *Request
	settled        *bool             // settledEnv, once it is known
	running        *Program          // that is looked at
	read           map[string][]byte // scripts
	kept           int               // bytes of them
	space          []byte            // to read scripts into
}

func newLoader(ctx context.Context, r *reader, s *store, env []string) *loader {
	l := &loader{ctx: ctx, r: r, store: s, env: map[string]string{}, isDir: map[string]bool{}, hwcaps: map[string][]string{}, read: map[string][]byte{}}
	for _, kv := range env {
		if k, v, ok := strings.Cut(kv, "="); ok {
			l.env[k] = v
		}
	}
	seen := map[string]bool{}
	l.readConf("/etc/ld.so.conf", seen, 0)
	conv := s.conventions()
	l.dirs = append(l.dirs, "/lib64", "/usr/lib64", "/lib", "/usr/lib")
	l.dirs = append(l.dirs, conv.dirs...)
	l.musl = []string{"/lib", "/usr/local/lib", "/usr/lib"}
	if p := r.text(conv.muslPath); p != "" {
		l.musl = strings.FieldsFunc(p, func(c rune) bool { return c == ':' || c == '\n' })
	}
	for _, d := range slices.Concat(l.dirs, l.musl) {
		l.isDir[path.Clean(d)] = true
		if p, _, ok := r.stat(d); ok {
			l.isDir[p] = true
		}
	}
	return l
}

// readConf reads ld.so.conf. The cache made from it holds nothing that the
// directories do not.
func (l *loader) readConf(name string, seen map[string]bool, depth int) {
	if seen[name] || depth > 4 || len(seen) > 100 {
		return
	}
	seen[name] = true
	for line := range strings.Lines(l.r.text(name)) {
		line, _, _ = strings.Cut(strings.TrimSpace(line), "#")
		f := strings.Fields(line)
		switch {
		case len(f) == 0:
		case f[0] == "include":
			for _, pat := range f[1:] {
				if !path.IsAbs(pat) {
					pat = path.Join(path.Dir(name), pat)
				}
				if !strings.Contains(path.Base(pat), "*") {
					l.readConf(pat, seen, depth+1)
					continue
				}
				entries, _ := l.r.dir(path.Dir(pat))
				for _, e := range entries {
					if ok, _ := path.Match(path.Base(pat), e.Name()); ok {
						l.readConf(path.Join(path.Dir(pat), e.Name()), seen, depth+1)
					}
				}
			}
		case path.IsAbs(f[0]) && len(l.dirs) < 200:
			l.dirs = append(l.dirs, path.Clean(f[0]))
		}
	}
}

func (l *loader) expand(list, origin string) []string {
	conv := l.store.conventions()
	var out []string
	for d := range strings.SplitSeq(list, ":") {
		d = strings.NewReplacer("$ORIGIN", origin, "${ORIGIN}", origin, "$LIB", conv.lib, "${LIB}", conv.lib,
			"$PLATFORM", conv.platform, "${PLATFORM}", conv.platform).Replace(d)
		if path.IsAbs(d) && len(out) < 100 {
			out = append(out, path.Clean(d))
		}
	}
	return out
}

// find gives the path of a library needed by a module. rpaths are those of the
// module and of what loaded it.
func (l *loader) find(name string, m *module, rpaths []string, musl bool) (string, bool) {
	if strings.Contains(name, "/") {
		if !path.IsAbs(name) {
			name = path.Join("/", name) // relative to a working directory that is not known here
		}
		p, _, ok := l.r.regular(name)
		return p, ok
	}
	var dirs []string
	origin := path.Dir(m.path)
	if m.sum.Runpath == "" {
		dirs = append(dirs, rpaths...)
	}
	dirs = append(dirs, l.expand(l.env["LD_LIBRARY_PATH"], origin)...)
	dirs = append(dirs, l.expand(m.sum.Runpath, origin)...)
	if musl {
		dirs = append(dirs, rpaths...)
		dirs = append(dirs, l.musl...)
	} else if !m.sum.NoDefaultLib {
		dirs = append(dirs, l.dirs...)
	}
	for _, d := range dirs {
		p, _, ok := l.r.regular(path.Join(d, name))
		if ok && l.store.loadable(p) {
			return p, true
		}
	}
	return "", false
}

// variants lists what is installed of a library for newer processors (glibc
// 2.33 and later: glibc-hwcaps).
func (l *loader) variants(file, name string) []string {
	dir := path.Join(path.Dir(file), "glibc-hwcaps")
	entries, known := l.hwcaps[dir]
	if !known {
		found, _ := l.r.dir(dir)
		for _, e := range found {
			entries = append(entries, path.Join(dir, e.Name()))
		}
		l.hwcaps[dir] = entries
	}
	var out []string
	for _, d := range entries {
		if p, _, ok := l.r.regular(path.Join(d, name)); ok && l.store.loadable(p) {
			out = append(out, p)
		}
	}
	return out
}

// closure is a program with everything it loads.
type closure struct {
	mods  []*module
	index map[string]int
	names map[string]bool // sonames that are loaded
	musl  bool
	rpath map[string][]string
}

// maxModules bounds a closure.
const maxModules = 4000

// add loads a file and all that it needs. exported marks files opened by name;
// a library that such a file lacks is left out, as dlopen(3) fails then.
func (l *loader) add(c *closure, file string, exported bool, loaderRpath []string) error {
	type todo struct {
		file  string
		rpath []string
	}
	work := []todo{{file, loaderRpath}}
	fetched := 1 // of the list, how many have been started
	for len(work) > 0 {
		if err := l.ctx.Err(); err != nil {
			return err
		}
		if len(work) > fetched {
			files := make([]string, 0, len(work)-fetched)
			for _, w := range work[fetched:] {
				files = append(files, w.file)
			}
			l.prefetch(files)
			fetched = len(work)
		}
		w := work[0]
		fetched--
		work = work[1:]
		if i, ok := c.index[w.file]; ok {
			if exported && w.file == file {
				c.mods[i].exported = true
			}
			continue
		}
		if len(c.mods) >= maxModules {
			return fmt.Errorf("load %s: more than %d libraries", file, maxModules)
		}
		sum, err := l.store.summary(l.ctx, w.file)
		if err != nil {
			if exported && l.ctx.Err() == nil && !errors.Is(err, errTooLarge) {
				continue // not something that could be opened
			}
			return err
		}
		m := &module{path: w.file, sum: sum, exported: exported && w.file == file, late: exported}
		c.index[w.file] = len(c.mods)
		c.mods = append(c.mods, m)
		if sum.Soname != "" {
			c.names[sum.Soname] = true
		}
		c.names[path.Base(w.file)] = true
		rpath := w.rpath
		if sum.Runpath == "" && sum.Rpath != "" {
			rpath = append(l.expand(sum.Rpath, path.Dir(w.file)), w.rpath...)
		} else if c.musl && sum.Runpath != "" {
			rpath = append(l.expand(sum.Runpath, path.Dir(w.file)), w.rpath...)
		}
		if sum.Interp != "" && len(c.mods) == 1 {
			p, _, ok := l.r.regular(sum.Interp)
			if !ok {
				return &MissingLibrary{sum.Interp, w.file}
			}
			c.musl = strings.HasPrefix(path.Base(sum.Interp), "ld-musl-")
			work = append(work, todo{p, nil})
		}
		for _, need := range sum.Needed {
			if c.names[need] || c.musl && muslBuiltin(need) {
				continue
			}
			p, ok := l.find(need, m, rpath, c.musl)
			if !ok {
				if !exported {
					return &MissingLibrary{need, w.file}
				}
				for _, p := range l.elsewhere(need) {
					work = append(work, todo{p, rpath})
				}
				continue
			}
			c.names[need] = true
			work = append(work, todo{p, rpath})
			// Which of them the loader takes is the processor's choice.
			for _, v := range l.variants(p, need) {
				work = append(work, todo{v, rpath})
			}
		}
	}
	return nil
}

// muslBuiltin are the names that musl's loader takes for itself.
func muslBuiltin(name string) bool {
	for _, p := range []string{"libc.", "libpthread.", "librt.", "libm.", "libdl.", "libutil.", "libxnet."} {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// program loads a program with its interpreter, libraries and preloads.
func (l *loader) program(file string, extra []string) (*closure, error) {
	c := &closure{index: map[string]int{}, names: map[string]bool{}}
	if err := l.add(c, file, false, nil); err != nil {
		return nil, err
	}
	if c.mods[0].sum.Interp == "" {
		return c, nil // static
	}
	for name := range strings.FieldsFuncSeq(l.env["LD_PRELOAD"], func(r rune) bool { return r == ' ' || r == ':' }) {
		if p, ok := l.find(name, c.mods[0], nil, c.musl); ok {
			if err := l.add(c, p, true, nil); err != nil {
				return nil, err
			}
		}
	}
	for name := range strings.FieldsSeq(l.r.text("/etc/ld.so.preload")) {
		if p, ok := l.find(name, c.mods[0], nil, c.musl); ok {
			if err := l.add(c, p, true, nil); err != nil {
				return nil, err
			}
		}
	}
	for _, name := range extra {
		p, ok := l.find(name, c.mods[0], nil, c.musl)
		if !ok {
			return nil, &MissingLibrary{name, file}
		}
		if err := l.add(c, p, true, nil); err != nil {
			return nil, err
		}
	}
	return c, nil
}

var errMachine = errors.New("machine is not supported")

// goarch names the architecture of a file.
func goarch(m elf.Machine, c elf.Class) string {
	switch {
	case m == elf.EM_X86_64 && c == elf.ELFCLASS64:
		return "amd64"
	case m == elf.EM_AARCH64 && c == elf.ELFCLASS64:
		return "arm64"
	case m == elf.EM_386:
		return "386"
	case m == elf.EM_ARM:
		return "arm"
	}
	return m.String()
}
