package procmap

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/rootfs"
)

// view is the file tree as the container will see it: the root filesystem with
// the mounts of config.json over it. Symbolic links inside a mount are resolved
// within that mount; one that leads out of it is not found.
type view struct {
	root   *rootfs.Root
	mounts []*mount // longest destination first
	stats  map[string]statResult
	looked map[string]*object
	listed map[string][]string // by limit and directory
	kept   int                 // names in it
}

type statResult struct {
	o   *object
	err error
}

// mount is one mount with its source opened on first use.
type mount struct {
	m      declared.Mount
	dest   string // free of symbolic links as far as the root filesystem tells
	opened bool
	root   *rootfs.Root // of a directory, or of the directory a file is in
	file   string       // name in root, when a file is mounted
}

// object is a file or directory in the view.
type object struct {
	path  string // in the container, free of symbolic links
	as    string // as it was asked for
	st    unix.Stat_t
	mount *mount
	root  *rootfs.Root
	name  string // in root
}

func (o *object) regular() bool { return o.st.Mode&unix.S_IFMT == unix.S_IFREG }
func (o *object) dir() bool     { return o.st.Mode&unix.S_IFMT == unix.S_IFDIR }
func (o *object) executable() bool {
	return o.regular() && o.st.Mode&0o111 != 0
}

func (o *object) host() string {
	if o.mount == nil {
		return ""
	}
	if o.mount.file != "" {
		return o.mount.m.Source
	}
	return filepath.Join(o.mount.m.Source, o.name)
}

func newView(root *rootfs.Root, mounts []declared.Mount) *view {
	v := &view{root: root, stats: map[string]statResult{}, looked: map[string]*object{}, listed: map[string][]string{}}
	for _, m := range mounts {
		dest := path.Clean("/" + m.Destination)
		if dest == "/" {
			continue
		}
		dest = v.canonical(dest)
		// A later mount on the same place covers the earlier one.
		v.mounts = slices.DeleteFunc(v.mounts, func(x *mount) bool { return x.dest == dest })
		v.mounts = append(v.mounts, &mount{m: m, dest: dest})
	}
	slices.SortStableFunc(v.mounts, func(a, b *mount) int { return len(b.dest) - len(a.dest) })
	return v
}

func (v *view) close() {
	for _, m := range v.mounts {
		if m.root != nil {
			m.root.Close()
		}
	}
}

// canonical frees a path from symbolic links as far as it exists.
func (v *view) canonical(p string) string {
	rest := ""
	for {
		if c, _, err := v.root.Stat(p); err == nil {
			return path.Join(c, rest)
		}
		if p == "/" || p == "." {
			return path.Join("/", rest)
		}
		rest = path.Join(path.Base(p), rest)
		p = path.Dir(p)
	}
}

func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

func (v *view) mountOf(p string) *mount {
	for _, m := range v.mounts {
		if within(p, m.dest) {
			return m
		}
	}
	return nil
}

// bound tells whether the mount brings a part of the host's file tree.
func (m *mount) bound() bool {
	return filepath.IsAbs(m.m.Source) && (m.m.Type == "bind" || slices.Contains(m.m.Options, "bind") || slices.Contains(m.m.Options, "rbind"))
}

// runnable tells whether programs on the mount may be executed.
func (m *mount) runnable() bool {
	if slices.Contains(m.m.Options, "noexec") {
		return false
	}
	return m.m.ReadOnly || m.m.Exec
}

// writableElsewhere tells whether what a mount brings is also brought, or a
// part of it, or with more around it, by a mount that can be written to.
func (v *view) writableElsewhere(m *mount) bool {
	source := filepath.Clean(m.m.Source)
	return slices.ContainsFunc(v.mounts, func(o *mount) bool {
		if !o.bound() || o.m.ReadOnly {
			return false
		}
		other := filepath.Clean(o.m.Source)
		return within(source, other) || within(other, source)
	})
}

func (m *mount) open() error {
	if m.opened {
		if m.root == nil {
			return fs.ErrNotExist
		}
		return nil
	}
	m.opened = true
	if !m.bound() {
		return fs.ErrNotExist
	}
	info, err := os.Stat(m.m.Source)
	if err != nil {
		return err
	}
	source := m.m.Source
	switch {
	case info.Mode().IsRegular():
		if source, err = filepath.EvalSymlinks(source); err != nil {
			return err
		}
		m.file = filepath.Base(source)
		source = filepath.Dir(source)
	case !info.IsDir():
		return rootfs.ErrNotRegular
	}
	m.root, err = rootfs.Open(source)
	return err
}

func (m *mount) stat(p string) (*object, error) {
	if err := m.open(); err != nil {
		return nil, err
	}
	rel := strings.TrimPrefix(p, m.dest)
	if m.file != "" {
		if rel != "" {
			return nil, unix.ENOTDIR
		}
		_, st, err := m.root.Stat(m.file)
		if err != nil {
			return nil, err
		}
		return &object{path: m.dest, st: st, mount: m, root: m.root, name: m.file}, nil
	}
	name, st, err := m.root.Stat("/" + rel)
	if err != nil {
		return nil, err
	}
	return &object{path: path.Join(m.dest, name), st: st, mount: m, root: m.root, name: name}, nil
}

// stat finds what a path leads to.
func (v *view) stat(p string) (*object, error) {
	if len(p) > 4096 || strings.ContainsRune(p, 0) {
		return nil, unix.ENAMETOOLONG
	}
	p = path.Clean("/" + p)
	if r, ok := v.stats[p]; ok {
		return r.o, r.err
	}
	o, err := v.statUncached(p)
	if o != nil {
		o.as = p
	}
	if len(v.stats) < 100_000 {
		v.stats[p] = statResult{o, err}
	}
	return o, err
}

func (v *view) statUncached(p string) (*object, error) {
	if m := v.mountOf(p); m != nil {
		return m.stat(p)
	}
	c, st, err := v.root.Stat(p)
	if err != nil {
		if len(v.mounts) == 0 || !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		c = v.canonical(p)
		if m := v.mountOf(c); m != nil && c != p {
			return m.stat(c)
		}
		return nil, err
	}
	if m := v.mountOf(c); m != nil {
		return m.stat(c)
	}
	return &object{path: c, st: st, root: v.root, name: c}, nil
}

func (v *view) open(o *object) (*rootfs.File, error) { return o.root.Open(o.name) }

// lookPath finds a command as execvp(3) does; found but not executable files
// are skipped.
func (v *view) lookPath(command, searchPath, cwd string) *object {
	if command == "" {
		return nil
	}
	if strings.Contains(command, "/") {
		if !path.IsAbs(command) {
			command = path.Join("/", cwd, command)
		}
		if o, err := v.stat(command); err == nil && o.executable() {
			return o
		}
		return nil
	}
	if searchPath == "" {
		searchPath = defaultPath
	}
	key := command + "\x00" + searchPath + "\x00" + cwd
	if o, ok := v.looked[key]; ok {
		return o
	}
	var found *object
	for dir := range strings.SplitSeq(searchPath, ":") {
		if !path.IsAbs(dir) {
			dir = path.Join("/", cwd, dir)
		}
		if o, err := v.stat(path.Join(dir, command)); err == nil && o.executable() {
			found = o
			break
		}
	}
	if len(v.looked) < 100_000 {
		v.looked[key] = found
	}
	return found
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// names lists a directory of the view, sorted; at most limit of them. The list
// is not to be changed.
func (v *view) names(dir string, limit int) []string {
	key := fmt.Sprintf("%d %s", limit, dir)
	names, known := v.listed[key]
	if !known {
		names = v.namesUncached(dir, limit)
		if v.kept += len(names); v.kept < 100_000 {
			v.listed[key] = names
		}
	}
	return names
}

func (v *view) namesUncached(dir string, limit int) []string {
	o, err := v.stat(dir)
	if err != nil || !o.dir() {
		return nil
	}
	entries, err := o.root.ReadDir(o.name, limit)
	if err != nil {
		return nil
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	for _, m := range v.mounts { // mount points that exist only as mounts
		if path.Dir(m.dest) == o.path && !slices.Contains(names, path.Base(m.dest)) {
			names = append(names, path.Base(m.dest))
		}
	}
	slices.Sort(names)
	return names
}

// entry is stat for something in a directory that was listed. Files and
// directories of the image in a directory whose path is free of symbolic links
// are where their names say: one system call tells what they are.
func (v *view) entry(dir, p string) (*object, error) {
	if _, known := v.stats[p]; known || len(p) > 4096 {
		return v.stat(p)
	}
	if d, err := v.stat(dir); err != nil || d.path != dir || d.mount != nil || v.mountOf(p) != nil || v.root.Given(p) {
		return v.stat(p)
	}
	st, err := v.root.At(p)
	if kind := st.Mode & unix.S_IFMT; err != nil || kind != unix.S_IFREG && kind != unix.S_IFDIR {
		return v.stat(p)
	}
	o := &object{path: p, as: p, st: st, root: v.root, name: p}
	if len(v.stats) < 100_000 {
		v.stats[p] = statResult{o, nil}
	}
	return o, nil
}

// files lists the regular files below dir, links followed for files only; it
// takes what it lists from left.
func (v *view) files(dir string, left *int) (files []string, whole bool) {
	o, err := v.stat(dir)
	if err != nil {
		return nil, true
	}
	if o.regular() {
		return []string{o.path}, true
	}
	queue := []string{dir}
	for depth := 0; len(queue) > 0 && depth < 16; depth++ {
		var next []string
		for _, d := range queue {
			for _, n := range v.names(d, 10_000) {
				if *left--; *left < 0 {
					return files, false
				}
				p := path.Join(d, n)
				o, err := v.entry(d, p)
				switch {
				case err != nil:
				case o.regular():
					files = append(files, p)
				case o.dir() && path.Base(o.path) == n:
					next = append(next, p)
				}
			}
		}
		queue = next
	}
	return files, len(queue) == 0
}

func (v *view) executables(dir string, left *int) ([]string, bool) {
	files, whole := v.files(dir, left)
	return slices.DeleteFunc(files, func(p string) bool {
		o, err := v.stat(p)
		return err != nil || !o.executable()
	}), whole
}

// glob finds the paths that match a pattern in which globChar and unknown
// stand for any text without a slash. At most limit are given.
func (v *view) glob(pattern, cwd string, limit int) []string {
	if !path.IsAbs(pattern) {
		if strings.Contains(cwd, unknown) {
			return nil
		}
		pattern = path.Join("/", cwd) + "/" + pattern
	}
	dirs := []string{"/"}
	budget := 10_000
	for elem := range strings.SplitSeq(strings.Trim(pattern, "/"), "/") {
		var next []string
		for _, d := range dirs {
			if !strings.ContainsAny(elem, wildcards) {
				if p := path.Join(d, elem); elem == "." || elem == "" {
					next = append(next, d)
				} else if _, err := v.stat(p); err == nil {
					next = append(next, p)
				}
				continue
			}
			for _, n := range v.names(d, 10_000) {
				if budget--; budget < 0 || len(next) >= limit {
					break
				}
				if wild(elem, n) && (n[0] != '.' || elem[0] == '.') {
					next = append(next, path.Join(d, n))
				}
			}
		}
		if dirs = next; len(dirs) == 0 {
			return nil
		}
	}
	return dirs
}

// wild matches s against a pattern of literal text, globChar and unknown.
func wild(pattern, s string) bool {
	parts := strings.FieldsFunc(pattern, func(r rune) bool { return r == 0 || r == globChar })
	anchoredStart := pattern != "" && pattern[0] != 0 && pattern[0] != globChar
	anchoredEnd := pattern != "" && pattern[len(pattern)-1] != 0 && pattern[len(pattern)-1] != globChar
	if len(parts) == 0 {
		return pattern != "" || s == ""
	}
	if !strings.ContainsAny(pattern, wildcards) {
		return pattern == s
	}
	if anchoredStart {
		if !strings.HasPrefix(s, parts[0]) {
			return false
		}
		s, parts = s[len(parts[0]):], parts[1:]
	}
	var last string
	if anchoredEnd && len(parts) > 0 {
		last, parts = parts[len(parts)-1], parts[:len(parts)-1]
	}
	for _, p := range parts {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return strings.HasSuffix(s, last)
}
