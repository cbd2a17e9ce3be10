package seccompgen

import (
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/rootfs"
)

func set(names ...string) map[string]bool {
	m := make(map[string]bool, len(names))
	for _, n := range names {
		m[n] = true
	}
	return m
}

var (
	dlopen = set("dlopen", "dlmopen", "__libc_dlopen_mode")
	iconv  = set("iconv_open")
	// nss are the functions behind which the C library opens what
	// nsswitch.conf names.
	nss = set("getpwnam", "getpwnam_r", "getpwuid", "getpwuid_r", "getpwent", "getpwent_r", "setpwent",
		"getgrnam", "getgrnam_r", "getgrgid", "getgrgid_r", "getgrent", "getgrent_r", "setgrent", "getgrouplist", "initgroups",
		"getspnam", "getspnam_r", "getspent", "getspent_r", "putspent", "getsgnam",
		"getaddrinfo", "getnameinfo", "gethostbyname", "gethostbyname2", "gethostbyname_r", "gethostbyname2_r", "gethostbyaddr", "gethostbyaddr_r", "gethostent", "sethostent",
		"getservbyname", "getservbyname_r", "getservbyport", "getservbyport_r", "getservent", "setservent",
		"getprotobyname", "getprotobyname_r", "getprotobynumber", "getprotobynumber_r", "getprotoent",
		"getnetbyname", "getnetbyname_r", "getnetbyaddr", "getnetent", "getrpcbyname", "getrpcbynumber", "getrpcent",
		"getnetgrent", "setnetgrent", "innetgr", "getaliasbyname", "ether_hostton", "ether_ntohost", "getgrouplist", "rcmd", "ruserok", "fgetpwent", "wordexp", "glob", "glob64")
)

// plugins lists the files that a program may open by name, as far as its live
// code can open anything.
func (l *loader) plugins(c *closure, g *graph) []string {
	l.opened = 0
	var out []string
	modules, told := l.loads(c)
	add := func(p string) {
		if told && !modules[path.Base(p)] && l.ofServer(p) {
			return // no directive loads it
		}
		if _, loaded := c.index[p]; !loaded && !slices.Contains(out, p) && l.store.loadable(p) {
			out = append(out, p)
		}
	}
	if c.mods[0].sum.Interp == "" && !c.mods[0].sum.Go {
		// A static program opens what matches its own C library, if anything.
		if len(c.mods) == 1 {
			return nil
		}
	}
	if !c.musl && g.imported(nss) {
		for _, service := range l.services() {
			if p, ok := l.find("libnss_"+service+".so.2", c.mods[0], nil, c.musl); ok {
				add(p)
			}
		}
	}
	opens := g.imported(dlopen)
	if !opens && !g.imported(iconv) {
		return out
	}
	if g.imported(iconv) || l.charset() {
		for _, d := range l.dirs {
			if opens || g.imported(iconv) {
				l.below(path.Join(d, "gconv"), 0, add)
			}
		}
	}
	if !opens {
		return out
	}
	choices := chooser{l: l, c: c, g: g}
	for i, m := range c.mods {
		if isLibc(m) {
			continue // its own strings are the cases above, and libgcc_s
		}
		for _, s := range c.mods[i].sum.Strings {
			if !strings.HasPrefix(s, "/") {
				if !strings.HasPrefix(s, "lib") {
					continue
				}
				if p, ok := l.find(s, m, nil, c.musl); ok {
					add(p)
				}
				continue
			}
			only := choices.of(m, path.Clean(s))
			l.named(path.Clean(s), func(p string) {
				if only == nil || only(p) {
					add(p)
				}
			})
		}
	}
	if p, ok := l.find("libgcc_s.so.1", c.mods[0], nil, c.musl); ok {
		add(p)
	}
	for _, m := range c.mods {
		for _, d := range catalogue(m.path) {
			l.below(d, 0, add)
		}
	}
	for _, p := range l.extensions(c) {
		add(p)
	}
	if told {
		for _, n := range l.natives() {
			if modules[path.Base(n.path)] {
				add(n.path)
			}
		}
	}
	return out
}

// services are the NSS modules that nsswitch.conf names; without it those that
// glibc falls back to.
func (l *loader) services() []string {
	text := l.r.text("/etc/nsswitch.conf")
	out := []string{"files", "dns"}
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		_, list, ok := strings.Cut(line, ":")
		if !ok {
			continue
		}
		for _, f := range strings.Fields(list) {
			if !strings.ContainsAny(f, "[]!=/") && !slices.Contains(out, f) && len(out) < 50 {
				out = append(out, f)
			}
		}
	}
	return out
}

// charset tells whether the environment asks for a character set that glibc
// has no built-in conversion for.
func (l *loader) charset() bool {
	for k, v := range l.env {
		if k != "LANG" && !strings.HasPrefix(k, "LC_") {
			continue
		}
		switch u := strings.ToUpper(v); {
		case u == "", u == "C", u == "POSIX", strings.Contains(u, "UTF-8"), strings.Contains(u, "UTF8"):
		default:
			return true
		}
	}
	return false
}

func isLibc(m *module) bool {
	return strings.HasPrefix(m.sum.Soname, "libc.") || strings.HasPrefix(m.sum.Soname, "ld-linux") || strings.HasPrefix(m.sum.Soname, "libpthread.")
}

// named handles an absolute path in a program's data: a library, or a directory
// of them. The ordinary library directories and what lies above them do not
// count, nor do the trees that hold data.
func (l *loader) named(s string, add func(string)) {
	top, _, _ := strings.Cut(s[1:], "/")
	switch top {
	case "", "proc", "sys", "dev", "etc", "tmp", "run", "home", "root", "boot", "mnt", "media":
		return
	}
	if strings.HasPrefix(s, "/usr/share") || strings.HasPrefix(s, "/var/") || s == "/usr" || s == "/usr/local" || s == "/opt" || s == "/var" {
		return
	}
	if strings.Count(s, "/") == 1 && top != "app" {
		return
	}
	p, st, ok := l.r.stat(s)
	if !ok {
		return
	}
	switch st.Mode & 0o170000 {
	case 0o100000:
		if strings.Contains(path.Base(p), ".so") {
			add(p)
		}
	case 0o040000:
		for d := range l.isDir {
			if d == p || strings.HasPrefix(d, p+"/") {
				return
			}
		}
		l.below(p, 0, add)
	}
}

const (
	maxPluginDepth = 6
	maxPlugins     = 2000
)

var library = regexp.MustCompile(`\.(so|node)(\.[0-9.]+)?$`)

// isLibrary tells by its name whether a file may be one.
func isLibrary(name string) bool {
	return (strings.Contains(name, ".so") || strings.Contains(name, ".node")) && library.MatchString(name)
}

// below adds every library below a directory.
func (l *loader) below(dir string, depth int, add func(string)) {
	if depth > maxPluginDepth || l.ctx.Err() != nil {
		return
	}
	entries, ok := l.r.dir(dir)
	if !ok {
		return
	}
	if len(entries) >= rootfs.MaxEntries { // there are more
		l.opened = max(l.opened, maxPlugins+1)
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if e.IsDir() {
			l.below(p, depth+1, add)
			continue
		}
		if isLibrary(e.Name()) {
			if p, _, ok := l.r.regular(p); ok {
				if l.opened++; l.opened > maxPlugins {
					return // reported as unresolved
				}
				add(p)
			}
		}
	}
}

var (
	postgresBin = regexp.MustCompile(`^(.*/postgresql/[0-9.]+)/bin/[^/]+$`)
	nodejs      = regexp.MustCompile(`^(node|nodejs)$`)
)

// catalogue knows directories that programs find relative to themselves.
func catalogue(file string) []string {
	if m := postgresBin.FindStringSubmatch(file); m != nil {
		return []string{m[1] + "/lib"}
	}
	switch path.Base(file) {
	case "bash": // DEFAULT_LOADABLE_BUILTINS_PATH in its config-top.h
		return []string{"/usr/local/lib/bash", "/usr/lib/bash", "/opt/local/lib/bash", "/usr/pkg/lib/bash", "/opt/pkg/lib/bash"}
	case "postgres":
		return []string{path.Join(path.Dir(file), "../lib/postgresql"), path.Join(path.Dir(file), "../lib")}
	case "libjli.so": // the launcher's, beside the virtual machine and its natives
		return []string{path.Dir(file)}
	}
	return nil
}
