package seccompgen

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// Libraries that choose among the files of a directory whose name is in them.
// Without a reason to know better all of those count (plugins.go).

// choice tells which files of a directory a library of the closure may load; nil: any.
type choice func(file string) bool

func none(string) bool { return false }

// chooser finds out once what is chosen by whom.
type chooser struct {
	l *loader
	c *closure
	g *graph
	// Answers that hold for every string.
	engines, sasl *bool
}

func (ch *chooser) of(m *module, dir string) choice {
	switch soname := m.sum.Soname; {
	case m.engineDir(dir):
		if once(&ch.engines, func() bool { return ch.l.noEngines(ch.c, ch.g) }) {
			return none
		}
	case strings.HasPrefix(soname, "libsasl2.so.") && path.Base(dir) == "sasl2":
		if once(&ch.sasl, func() bool { return ch.l.noSASL(ch.c) }) {
			return none
		}
	case strings.HasPrefix(soname, "libaprutil-1.so.") && path.Base(dir) == "apr-util-1":
		return ch.aprDrivers()
	case strings.HasPrefix(soname, "libpam.so.") && path.Base(dir) == "security":
		return ch.pamModules(m, dir)
	}
	return nil
}

func once(answer **bool, find func() bool) bool {
	if *answer == nil {
		a := find()
		*answer = &a
	}
	return **answer
}

// aprLoads are APR's drivers by the beginnings of their files' names, and the
// functions of libaprutil that load one (apr-util's dbd/apr_dbd.c,
// dbm/apr_dbm.c, crypto/apr_crypto.c, ldap/apr_ldap_stub.c: who calls
// apu_dso_load, which nothing outside of it is to call).
var aprLoads = []struct {
	file string
	by   *regexp.Regexp
}{
	{"apr_dbd", regexp.MustCompile(`^(apr_dbd_get_driver|apu_dso_load)$`)},
	{"apr_dbm", regexp.MustCompile(`^(apr_dbm_(open|get_).*|apu_dso_load)$`)},
	{"apr_crypto", regexp.MustCompile(`^(apr_crypto_get_driver|apu_dso_load)$`)},
	{"apr_ldap", regexp.MustCompile(`^(apr_ldap_.*|apu_dso_load)$`)},
}

// aprDrivers leaves out the drivers that nobody in the closure asks for. Of the
// program only live code counts: httpd refers to every function of APR, so that
// its modules find them (server/exports.c).
func (ch *chooser) aprDrivers() choice {
	var used []string
	for _, d := range aprLoads {
		for i, m := range ch.c.mods {
			if strings.HasPrefix(m.sum.Soname, "libaprutil-1.so.") {
				continue
			}
			names := map[string]bool{}
			for _, s := range slices.Concat(m.sum.Imports, m.sum.Names) {
				if d.by.MatchString(s) {
					names[s] = true
				}
			}
			looked := slices.ContainsFunc(m.sum.Names, func(s string) bool { return names[s] })
			if len(names) > 0 && (i > 0 || looked || ch.g.uses(i, names)) {
				used = append(used, d.file)
				break
			}
		}
	}
	return func(file string) bool {
		base := path.Base(file)
		return !slices.ContainsFunc(aprLoads, func(d struct {
			file string
			by   *regexp.Regexp
		}) bool {
			return strings.HasPrefix(base, d.file)
		}) || slices.ContainsFunc(used, func(s string) bool { return strings.HasPrefix(base, s) })
	}
}

// noSASL tells whether a program whose closure has libsasl2 is one that starts
// it only when asked to, and is not. libsasl2 loads all its plug-ins when it is
// started (sasl_server_init and sasl_client_init, lib/server.c and lib/client.c),
// and no configuration tells it to leave one out.
//
//   - memcached starts it for -S, --enable-sasl (memcached.c, main and init_sasl).
//   - libldap does, which curl uses for URLs of LDAP only (libcurl's lib/url.c:
//     their scheme or, without one, a host name that begins so; a redirection
//     could lead there before 7.65.2).
func (l *loader) noSASL(c *closure) bool {
	p := l.running
	if p == nil || len(p.Args) == 0 || c.mods[0].path != p.Path {
		return false
	}
	switch path.Base(p.Path) {
	case "memcached":
		return c.onlyBy("sasl_", c.mods[0].path) && l.memcachedNoSASL()
	case "curl":
		return c.onlyBy("sasl_", "libldap") && c.onlyBy("ldap_", "libcurl.so.") && l.curlArgs(func(a string, long bool) bool {
			return strings.Contains(a, "ldap") || strings.HasPrefix(a, "--proto") || strings.HasPrefix(a, "--loc") || !long && len(a) > 1 && a[0] == '-' && strings.Contains(a, "l")
		}) && l.curlFiles()
	}
	return false
}

// onlyBy tells whether functions whose names begin so are used by nothing but
// one file, given by its path or the beginning of its soname, the library that
// has them, and plug-ins of libsasl2.
func (c *closure) onlyBy(function, file string) bool {
	return !slices.ContainsFunc(c.mods, func(m *module) bool {
		begins := func(s string) bool { return strings.HasPrefix(s, function) }
		return m.path != file && !strings.HasPrefix(m.sum.Soname, file) && !saslPart.MatchString(m.sum.Soname+" "+m.path) && !slices.ContainsFunc(m.sum.Exports, func(e export) bool { return begins(e.Name) }) &&
			(slices.ContainsFunc(m.sum.Imports, begins) || slices.ContainsFunc(m.sum.Names, begins))
	})
}

func (l *loader) memcachedNoSASL() bool {
	const long = "--enable-sasl"
	for _, args := range l.running.Args {
		for _, a := range args[min(1, len(args)):] {
			switch {
			case strings.HasPrefix(a, "--"):
				if strings.HasPrefix(long, a) || strings.HasPrefix(a, long) { // options may be cut short
					return false
				}
			case strings.HasPrefix(a, "-") && strings.Contains(a, "S"):
				return false
			}
		}
	}
	return true
}

// saslPart is libsasl2 itself, and its plug-ins.
var saslPart = regexp.MustCompile(`^libsasl2\.so\.|/sasl2/[^/]*$`)

// pamModules leaves out the modules that no file of PAM's configuration names.
// libpam loads the modules that the file of a service names, in its directories
// of configuration or in /etc/pam.conf, and those that such a file includes
// (libpam/pam_handlers.c); the service and the part of it do not matter here: any
// word of any of the files counts as a name. These must all be the image's, and
// nothing may use another directory (pam_start_confdir).
func (ch *chooser) pamModules(m *module, dir string) choice {
	l := ch.l
	if l.req == nil || slices.ContainsFunc(ch.c.mods, func(m *module) bool {
		return slices.Contains(m.sum.Imports, "pam_start_confdir") || slices.Contains(m.sum.Names, "pam_start_confdir")
	}) {
		return nil
	}
	words, ok := l.pamWords(m)
	if !ok {
		return nil
	}
	files := map[string]bool{}
	for w := range words {
		if p, _, ok := l.r.regular(path.Join(dir, path.Base(w))); ok {
			files[p] = true // free of symbolic links, as what is asked about
		}
	}
	return func(file string) bool { return files[file] }
}

const (
	maxPAMFiles = 500
	maxPAMBytes = 4 << 20
)

// pamWords gives the words of all files of a libpam's configuration, with what
// is in brackets apart; false: they may not be all.
func (l *loader) pamWords(m *module) (map[string]bool, bool) {
	cf := &configured{l: l, seen: map[string]bool{}, ok: true}
	files := []string{"/etc/pam.conf"}
	known := false
	for _, dir := range m.sum.Strings {
		if dir = path.Clean(dir); !path.IsAbs(dir) || path.Base(dir) != "pam.d" {
			continue
		}
		known = true
		if cf.absent(dir) {
			continue
		}
		p, _, there := l.r.stat(dir)
		entries, ok := l.r.dir(dir)
		if !there || !ok || !l.req.fixed(p) || !l.req.fixed(dir) || len(entries) > maxPAMFiles {
			return nil, false
		}
		for _, e := range entries {
			files = append(files, path.Join(dir, e.Name()))
		}
	}
	words := map[string]bool{}
	size := 0
	for _, f := range files {
		if cf.absent(f) {
			continue
		}
		text, ok := cf.file(f)
		if size += len(text); !ok && !cf.ok || size > maxPAMBytes || !pamText(text, words) {
			return nil, false
		}
	}
	return words, known && cf.ok
}

// pamText adds the words of one file; false: it includes what lies elsewhere, or
// has escapes.
func pamText(text string, words map[string]bool) bool {
	text = strings.ReplaceAll(text, "\\\n", " ")
	if strings.ContainsAny(text, "\\\x00") {
		return false
	}
	for line := range strings.Lines(text) {
		include := false
		for _, w := range strings.FieldsFunc(line, func(r rune) bool {
			return r == ' ' || r == '\t' || r == '\n' || r == '\r' || r == '[' || r == ']' || r == '#'
		}) {
			if include && strings.Contains(w, "/") {
				return false
			}
			switch strings.ToLower(w) {
			case "include", "substack", "@include":
				include = true
			}
			words[w] = true
		}
	}
	return true
}
