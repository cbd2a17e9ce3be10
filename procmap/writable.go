package procmap

import (
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	"mvdan.cc/sh/v3/syntax"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Directories that no rule but a script's own declaration makes writable.
var readOnlyTrees = []string{"/etc", "/usr", "/bin", "/sbin", "/boot", "/proc", "/sys", "/dev"}

// Places that stay read-only whatever a script says: what decides which
// programs run and who may log in.
var neverWritten = []string{
	"/bin", "/sbin", "/boot", "/proc", "/sys", "/dev",
	"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/libx32", "/usr/libexec", "/usr/include",
	"/usr/local/bin", "/usr/local/sbin", "/usr/local/lib", "/usr/local/lib64", "/usr/local/libexec",
	"/var/lib/dpkg", "/var/lib/apt", "/var/lib/rpm", "/var/lib/pacman", "/lib/apk", "/var/lib/apk", "/usr/lib/sysimage",
	"/root/.ssh",
	"/etc/pam.d", "/etc/security", "/etc/sudoers.d", "/etc/ssh", "/etc/ld.so.conf.d", "/etc/profile.d", "/etc/init.d", "/etc/rc.d",
	"/etc/systemd", "/etc/cron.d", "/etc/cron.daily", "/etc/cron.hourly", "/etc/cron.monthly", "/etc/cron.weekly",
	"/etc/apt", "/etc/apk", "/etc/dpkg", "/etc/yum.repos.d", "/etc/alternatives",
}

var neverFiles = []string{
	"/etc/passwd", "/etc/shadow", "/etc/group", "/etc/gshadow", "/etc/sudoers", "/etc/doas.conf", "/etc/ld.so.preload", "/etc/ld.so.conf",
	"/etc/ld.so.cache", "/etc/crontab", "/etc/profile", "/etc/bash.bashrc", "/etc/environment", "/etc/shells", "/etc/nsswitch.conf",
	"/etc/subuid", "/etc/subgid", "/etc/inittab", "/etc/login.defs",
}

// Directories too wide to be made writable for the sake of something in them.
var wideDirs = []string{"/", "/var", "/var/lib", "/home", "/srv", "/opt", "/mnt", "/media", "/usr", "/usr/share", "/usr/local", "/usr/local/share", "/usr/src", "/usr/local/etc", "/etc", "/root"}

// The directories for variable data that every Linux system has (Filesystem
// Hierarchy Standard 3.0, chapters 3.15, 3.18 and 5).
var variable = []string{"/tmp", "/run", "/var/tmp", "/var/log", "/var/cache", "/var/spool", "/var/run", "/var/lock", "/run/lock"}

func libDir(p string) bool {
	first, _, _ := strings.Cut(strings.TrimPrefix(p, "/"), "/")
	return strings.HasPrefix(first, "lib")
}

func readOnlyTree(p string) bool {
	return libDir(p) || slices.ContainsFunc(readOnlyTrees, func(d string) bool { return within(p, d) })
}

func never(p string) bool {
	return libDir(p) || slices.Contains(neverFiles, p) || slices.ContainsFunc(neverWritten, func(d string) bool { return within(p, d) })
}

type writables struct {
	b    *builder
	list map[string]*plan.Writable
}

func (w *writables) add(p string, phase record.Phase, origins ...record.Origin) {
	e := w.list[p]
	if e == nil {
		e = &plan.Writable{Path: p, Phase: phase}
		w.list[p] = e
	}
	e.Phase = e.Phase.Widest(phase)
	e.Origins = addOrigins(e.Origins, origins...)
}

// existing adds a directory that the image has and no mount covers.
func (w *writables) existing(p string, phase record.Phase, origin record.Origin) (string, bool) {
	o, err := w.b.view.stat(p)
	if err != nil || !o.dir() || o.path == "/" || o.mount != nil {
		return "", false
	}
	if w.b.view.mountOf(o.path) != nil {
		return "", false
	}
	w.add(o.path, phase, origin)
	return o.path, true
}

// mapped adds a directory from which a program loads libraries that it made
// there, whether something is mounted on it or not.
func (w *writables) mapped(p string, t target) bool {
	o, err := w.b.view.stat(p)
	if err != nil || !o.dir() || never(o.path) || slices.Contains(wideDirs, o.path) || slices.Contains(variable, o.path) {
		return false
	}
	if m := w.b.view.mountOf(o.path); m != nil && m.dest != o.path {
		w.b.note(record.Storage, "%s: libraries that are made in %s cannot be loaded, since the mount %s is not to execute from: mount something on %s itself", t.origin.At, o.path, m.dest, o.path)
		return false
	}
	w.add(o.path, t.phase, t.origin)
	w.list[o.path].Maps = true
	return true
}

// covered tells whether a path is below something writable already.
func (w *writables) covered(p string, phase record.Phase) bool {
	for d := p; ; d = path.Dir(d) {
		if e := w.list[d]; e != nil && (e.Phase != record.Starting || phase == record.Starting) {
			return true
		}
		if d == "/" || d == "." {
			return false
		}
	}
}

// writable works out what stays writable.
func (b *builder) writable() []plan.Writable {
	w := &writables{b: b, list: map[string]*plan.Writable{}}
	b.writableMounts(w)
	if b.d.Image.Known {
		b.writableImage(w)
		b.writableHistory(w)
		b.writableUser(w)
		b.writableOwned(w)
		b.writableTargets(w)
	}
	b.warnBelow(w)
	list := w.fold()
	for i := range list {
		e := &list[i]
		e.Holds = !e.Mounted && !e.Exec && !e.Maps && b.holds(e.Path)
	}
	return list
}

// maxHeld bounds the files that are looked at below one directory.
const maxHeld = 4096

// holds tells whether the image has programs or libraries below a directory
// that stays writable: an application that belongs to the user it runs as. They
// would not work from a noexec mount. In the directories that every system has
// for variable data only programs count that something declared runs: what else
// can be executed there was left behind. Where there are too many files to look
// at, some of them are taken for libraries.
func (b *builder) holds(dir string) bool {
	for k := range b.processes {
		if within(k.path, dir) {
			return true
		}
	}
	if slices.ContainsFunc(variable, func(v string) bool { return dir == b.view.canonical(v) }) {
		return false
	}
	left := maxHeld
	files, whole := b.view.files(dir, &left)
	return !whole || slices.ContainsFunc(files, func(p string) bool {
		if name := path.Base(p); strings.HasSuffix(name, ".so") || strings.Contains(name, ".so.") || strings.HasSuffix(name, ".node") || strings.HasSuffix(name, ".dll") {
			return true
		}
		o, err := b.view.stat(p)
		return err == nil && o.executable()
	})
}

func (b *builder) writableMounts(w *writables) {
	for _, m := range b.view.mounts {
		if m.m.ReadOnly || slices.Contains(m.m.Options, "ro") {
			continue
		}
		switch m.m.Type {
		case "proc", "sysfs", "cgroup", "cgroup2", "devpts", "mqueue", "devtmpfs", "securityfs", "debugfs", "bpf", "tracefs":
			continue
		}
		if m.dest == "/dev" || within(m.dest, "/proc") || within(m.dest, "/sys") || within(m.dest, "/dev") && m.m.Type != "tmpfs" && m.m.Type != "bind" {
			continue
		}
		e := &plan.Writable{Path: m.dest, Mounted: true, Exec: m.m.Exec, Phase: record.Serving}
		e.Origins = addOrigins(nil, m.m.Origin)
		w.list[m.dest] = e
	}
}

func (b *builder) writableImage(w *writables) {
	for _, v := range b.d.Image.Volumes {
		p := path.Clean("/" + v)
		origin := record.Origin{Source: record.FromImage, At: "config.Volumes", Text: clip("VOLUME "+p, 120)}
		if e := w.list[b.view.canonical(p)]; e != nil {
			e.Origins = addOrigins(e.Origins, origin)
			continue
		}
		c := b.view.canonical(p)
		if never(c) || readOnlyTree(c) && slices.Contains(readOnlyTrees, c) {
			b.note(record.Storage, "VOLUME %s stays read-only", p)
			continue
		}
		if _, ok := w.existing(p, record.Serving, origin); !ok && b.view.mountOf(c) == nil {
			b.note(record.Storage, "VOLUME %s does not exist in the image and the engine mounts nothing there", p)
		}
	}
	for _, p := range variable {
		w.existing(p, record.Serving, record.Origin{Source: record.FromDefault, At: "FHS", Text: p + " holds variable data"})
	}
}

// writableHistory adds what RUN mkdir made and nothing was put into.
func (b *builder) writableHistory(w *writables) {
	cwd := "/"
	budget := 2000
	for _, in := range b.d.Image.History {
		switch in.Keyword {
		case "WORKDIR":
			if d := strings.TrimSpace(in.Arguments); path.IsAbs(d) {
				cwd = path.Clean(d)
			} else {
				cwd = path.Join(cwd, d)
			}
		case "RUN":
			if !strings.Contains(in.Arguments, "mkdir") && !strings.Contains(in.Arguments, "install") {
				continue
			}
			for _, p := range madeDirs(in.Arguments, cwd) {
				if budget--; budget < 0 {
					return
				}
				c := b.view.canonical(p)
				if readOnlyTree(c) || never(c) {
					continue
				}
				o, err := b.view.stat(p)
				if err != nil || !o.dir() || o.mount != nil {
					continue
				}
				if entries, err := o.root.ReadDir(o.name, 1); err != nil || len(entries) > 0 {
					continue
				}
				text, _, _ := strings.Cut(in.Arguments, "\n")
				w.existing(p, record.Serving, record.Origin{Source: record.FromHistory, At: "history[" + strconv.Itoa(in.Index) + "]", Text: clip("RUN "+text, 120)})
			}
		}
	}
}

// madeDirs reads the directories that a RUN instruction's mkdir and install -d make.
func madeDirs(arguments, cwd string) []string {
	f, err := parseScript(arguments, "RUN", "bash")
	if err != nil {
		return nil
	}
	var dirs []string
	n := 0
	syntax.Walk(f, func(node syntax.Node) bool {
		if n++; n > 20_000 || len(dirs) > 256 {
			return false
		}
		c, ok := node.(*syntax.CallExpr)
		if !ok || len(c.Args) < 2 {
			return true
		}
		name := path.Base(c.Args[0].Lit())
		if name == "cd" {
			if d := c.Args[1].Lit(); path.IsAbs(d) {
				cwd = path.Clean(d)
			}
			return true
		}
		if name != "mkdir" && name != "install" {
			return true
		}
		isDir, skip := name == "mkdir", false
		var found []string
		for _, arg := range c.Args[1:] {
			for _, wd := range braces(arg) {
				t, ok := plainText(wd)
				switch {
				case !ok:
				case skip:
					skip = false
				case strings.HasPrefix(t, "--directory"):
					isDir = true
				case strings.HasPrefix(t, "--"):
				case strings.HasPrefix(t, "-"):
					isDir = isDir || strings.Contains(t, "d")
					skip = strings.ContainsAny(t[len(t)-1:], "mogZ")
				default:
					if !path.IsAbs(t) {
						t = path.Join(cwd, t)
					}
					found = append(found, path.Clean(t))
				}
			}
		}
		if isDir {
			dirs = append(dirs, found...)
		}
		return true
	})
	return dirs
}

func plainText(w *syntax.Word) (string, bool) {
	var out strings.Builder
	for _, p := range w.Parts {
		switch x := p.(type) {
		case *syntax.Lit:
			out.WriteString(literal(x.Value, false))
		case *syntax.SglQuoted:
			out.WriteString(x.Value)
		case *syntax.DblQuoted:
			for _, q := range x.Parts {
				l, ok := q.(*syntax.Lit)
				if !ok {
					return "", false
				}
				out.WriteString(l.Value)
			}
		default:
			return "", false
		}
	}
	t := out.String()
	return t, t != "" && known(t)
}

// owner gives a file's owner as the container sees it. The owner of the root
// directory is root: so it is under a user namespace and in a tree that an
// ordinary user unpacked.
func (b *builder) owner(st unix.Stat_t) uint32 {
	root := b.rootUID()
	switch {
	case st.Uid == root:
		return 0
	case b.d.UserNS && st.Uid > root:
		return st.Uid - root
	}
	return st.Uid
}

func (b *builder) rootUID() uint32 {
	if o, err := b.view.stat("/"); err == nil {
		return o.st.Uid
	}
	return 0
}

// writableUser adds the home and working directory of the declared user.
func (b *builder) writableUser(w *writables) {
	uid := b.d.Process.UID
	user := b.d.Image.User
	source, at := record.FromImage, "config.User"
	if b.d.Operator.User != "" {
		user, source, at = b.d.Operator.User, record.FromOperator, "user"
	}
	if user != "" {
		home := ""
		if a, ok := b.passwd(func(a account) bool { return a.uid == uid }); ok {
			home = a.home
		} else if h, ok := one(environment(b.d.Process.Env), "HOME"); ok {
			home = h
		}
		if path.IsAbs(home) {
			if o, err := b.view.stat(home); err == nil && o.dir() && b.owner(o.st) == uid && !readOnlyTree(o.path) && o.path != "/" {
				w.existing(home, record.Serving, record.Origin{Source: source, At: at, Text: clip("home directory of USER "+user, 120)})
			}
		}
	}
	cwd := b.d.Process.Cwd
	if cwd == "" || path.Clean(cwd) == "/" {
		return
	}
	o, err := b.view.stat(cwd)
	if err != nil || !o.dir() || o.mount != nil || readOnlyTree(o.path) {
		return
	}
	origin := record.Origin{Source: record.FromImage, At: "config.WorkingDir", Text: clip("WORKDIR "+cwd, 120)}
	if path.Clean(cwd) != path.Clean("/"+b.d.Image.WorkingDir) {
		origin = record.Origin{Source: record.FromOperator, At: "working directory", Text: clip(cwd, 120)}
	}
	entries, err := o.root.ReadDir(o.name, 1)
	if err == nil && len(entries) == 0 || uid != 0 && b.owner(o.st) == uid {
		w.existing(cwd, record.Serving, origin)
	}
}

const (
	maxWalk      = 100_000
	maxWalkDepth = 16
)

// writableOwned adds the directories that belong to a user other than root, that
// the declared user may write by their mode, or that everybody may, with the
// sticky bit.
func (b *builder) writableOwned(w *writables) {
	uid, gids := b.d.Process.UID, append([]uint32{b.d.Process.GID}, b.d.Process.AdditionalGIDs...)
	declared := uid != 0 && (b.d.Image.User != "" || b.d.Operator.User != "")
	root := b.rootUID()
	names := map[uint32]string{}
	b.passwd(func(a account) bool {
		if _, ok := names[a.uid]; !ok {
			names[a.uid] = a.name
		}
		return false
	})
	left := maxWalk
	type dir struct {
		path  string
		depth int
	}
	queue := []dir{{"/", 0}}
	for len(queue) > 0 {
		d := queue[0]
		queue = queue[1:]
		if d.depth > maxWalkDepth || b.ctx.Err() != nil {
			continue
		}
		entries, err := b.view.root.ReadDir(d.path, left)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if left--; left <= 0 {
				b.note(record.Storage, "the image has more than %d files outside its system directories: the owners of the rest were not looked at", maxWalk)
				return
			}
			if !e.IsDir() {
				continue
			}
			p := path.Join(d.path, e.Name())
			if readOnlyTree(p) || never(p) || b.view.mountOf(p) != nil {
				continue
			}
			if x := w.list[p]; x != nil && x.Phase != record.Starting {
				continue
			}
			_, st, err := b.view.root.Lstat(p)
			if err != nil || st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			owner := b.owner(st)
			byMode := declared && (st.Mode&0o002 != 0 || st.Mode&0o020 != 0 && slices.ContainsFunc(gids, func(g uint32) bool {
				return st.Gid == g || g == 0 && st.Gid == root
			}))
			// As /tmp is: made for whoever runs there (PHP's sessions on Debian).
			shared := st.Mode&unix.S_ISVTX != 0 && st.Mode&0o002 != 0
			switch {
			case shared:
				w.add(p, record.Serving, record.Origin{Source: record.FromFile, At: p, Text: "anybody may write there, as in /tmp"})
				continue
			case owner != 0 && !within(p, "/opt"), declared && owner == uid, byMode:
				name := names[owner]
				if name == "" {
					name = strconv.FormatUint(uint64(owner), 10)
				}
				text := "owned by " + name
				if byMode && (owner == 0 || owner != uid) {
					text = "writable for the declared user"
				}
				w.add(p, record.Serving, record.Origin{Source: record.FromFile, At: p, Text: text})
				continue
			}
			queue = append(queue, dir{p, d.depth + 1})
		}
	}
}

// writableTargets adds what scripts write to.
func (b *builder) writableTargets(w *writables) {
	for _, t := range b.targets {
		b.writableTarget(w, t)
	}
}

func (b *builder) writableTarget(w *writables, t target) {
	p := t.path
	if i := strings.IndexAny(p, wildcards); i >= 0 {
		// What is known of it is its directory.
		if i = strings.LastIndexByte(p[:i], '/'); i <= 0 {
			b.note(record.Storage, "%s: writes to a path that is not known: %s", t.origin.At, t.origin.Text)
			return
		}
		p, t.kind = p[:i], below
		if slices.Contains(wideDirs, b.view.canonical(path.Clean(p))) {
			b.note(record.Storage, "%s: writes to a path that is not known below %s", t.origin.At, p)
			return
		}
	}
	p = path.Clean(p)
	if t.maps && w.mapped(p, t) {
		return
	}
	for _, d := range []string{"/dev", "/proc", "/sys"} {
		if within(p, d) {
			return
		}
	}
	c := b.view.canonical(p)
	if m := b.view.mountOf(c); m != nil {
		if m.m.ReadOnly {
			b.note(record.Storage, "%s writes %s, which is on a read-only mount", t.origin.At, p)
		}
		return
	}
	o, err := b.view.stat(c)
	exists := err == nil
	dir := c
	if t.kind == file || exists && !o.dir() {
		dir = path.Dir(c)
	}
	if never(c) || never(dir) {
		b.note(record.Storage, "%s writes %s, which stays read-only", t.origin.At, c)
		return
	}
	if w.covered(dir, t.phase) {
		return
	}
	// The nearest directory that is there.
	made := dir
	for made != "/" {
		if o, err := b.view.stat(made); err == nil && o.dir() {
			break
		}
		made = path.Dir(made)
	}
	if w.covered(made, t.phase) {
		return
	}
	switch {
	case slices.Contains(wideDirs, made):
		if exists && o.regular() && o.mount == nil { // the file alone
			w.add(c, t.phase, t.origin)
			return
		}
		b.note(record.Storage, "%s writes %s: %s as a whole stays read-only; make the directory in the image, or declare VOLUME %s", t.origin.At, c, made, dir)
		return
	case never(made):
		b.note(record.Storage, "%s writes %s, which stays read-only", t.origin.At, c)
		return
	}
	w.existing(made, t.phase, t.origin)
}

// warnBelow says what a writable directory takes with it.
func (b *builder) warnBelow(w *writables) {
	var names []string
	for p := range w.list {
		names = append(names, p)
	}
	slices.Sort(names)
	for _, p := range names {
		for _, n := range slices.Concat(neverWritten, neverFiles) {
			if n != p && within(n, p) {
				if _, err := b.view.stat(n); err == nil {
					b.note(record.Storage, "%s is writable, and %s in it with it", p, n)
				}
			}
		}
	}
}

// fold drops what lies below something else with the same or a wider phase.
func (w *writables) fold() []plan.Writable {
	out := []plan.Writable{}
	for p, e := range w.list {
		inside := false
		for d := path.Dir(p); !e.Mounted && !e.Maps && !inside; d = path.Dir(d) {
			up := w.list[d]
			inside = up != nil && (up.Phase == e.Phase || up.Phase == record.Serving)
			if d == "/" {
				break
			}
		}
		if !inside {
			out = append(out, *e)
		}
	}
	slices.SortFunc(out, func(a, b plan.Writable) int { return strings.Compare(a.Path, b.Path) })
	return out
}
