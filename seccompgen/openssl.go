package seccompgen

import (
	"path"
	"regexp"
	"slices"
	"strings"
)

// Whether OpenSSL loads its engines: libraries below a directory whose name is
// in libcrypto, of which one (afalg) makes calls that nothing else of a server
// does.
//
// libcrypto opens a file of that directory in one place, the dynamic engine's
// LOAD command (crypto/engine/eng_dyn.c, int_load). In 1.1.1 and 3.0 these lead
// there (crypto/engine/eng_list.c, eng_cnf.c, crypto/ts/ts_conf.c,
// crypto/conf/conf_mod.c, providers/common/provider_util.c):
//
//   - who calls one of asks, below;
//   - a configuration whose openssl_conf section has engines, or a module that
//     OpenSSL does not know and looks for as a file. The configuration is
//     openssl.cnf in the directory whose name is in libcrypto, or what
//     OPENSSL_CONF says; a program that loads one itself calls one of asks;
//   - of 3.0, who gives an algorithm a parameter called "engine".
//
// OPENSSL_init_crypto and ENGINE_load_builtin_engines only add engines that are
// compiled in (crypto/engine/eng_all.c, crypto/init.c).
//
// So the directory does not count for a program when nothing in its closure but
// libcrypto and its own legacy provider does any of that, no program of the
// container is one that gives others an environment which is not seen, and the
// configuration is not there or asks for none, cannot change, and is read to the
// end. For nginx, Apache and curl, which take an engine's name from
// configuration or arguments, these must be known and name none; see
// namesNoEngine. Whatever is not understood makes the directory count.
//
// Providers count always: below ossl-modules is nothing that makes a call which
// libcrypto does not.

// asks are functions of libcrypto through which a file is loaded as an engine.
// ENGINE_get_first and ENGINE_get_next hand out engines that are already there
// and ENGINE_ctrl and its kin are what would make the dynamic one load.
var asks = set("ENGINE_by_id", "ENGINE_ctrl", "ENGINE_ctrl_cmd", "ENGINE_ctrl_cmd_string", "ENGINE_get_ctrl_function", "ENGINE_add_conf_module",
	"TS_CONF_set_crypto_device", "TS_CONF_set_default_engine",
	"CONF_modules_load", "CONF_modules_load_file", "CONF_modules_load_file_ex", "CONF_module_add",
	"OPENSSL_INIT_set_config_filename", "OSSL_LIB_CTX_load_config",
	"DSO_load", "DSO_dsobyaddr", "DSO_set_filename", "DSO_ctrl", "DSO_new")

var (
	libcrypto  = regexp.MustCompile(`^libcrypto\.so\.(1\.1|3)$`)
	enginesDir = regexp.MustCompile(`^engines(-[0-9.]+)?$`)
	// functions that take OSSL_PARAMs, and those that make them
	passesParam = regexp.MustCompile(`^(OSSL_PARAM_.*|(EVP|OSSL)_.*_params|EVP_PKEY_fromdata|EVP_MAC_init|EVP_KDF_derive|EVP_RAND_.*|EVP_Q_mac|EVP_PKEY_.*_init_ex|EVP_.*[Ii]nit_ex2|EVP_.*[Ii]nit2|EVP_Digest(Sign|Verify)Init_ex|OSSL_STORE_(open_ex|attach))$`)
)

// engineDir tells whether a string in a module is the directory of its engines.
func (m *module) engineDir(s string) bool {
	return libcrypto.MatchString(m.sum.Soname) && path.IsAbs(s) && enginesDir.MatchString(path.Base(s))
}

// languages run scripts, which may set the environment and ask libraries for anything.
const languageHosts = forPython | forPerl | forRuby | forPHP | forNode | forJava | forErlang | forTcl

// givesEnvironment are programs that take variables for others from files or
// from their own configuration.
var givesEnvironment = regexp.MustCompile(`^(su|sudo|doas|runuser|login|sshd.*|dropbear|cron|crond|anacron|fcron|atd|envdir|chpst|envuidgid|setuidgid|with-contenv|s6-.*|execline.*|runsv.*|svscan|supervise|` +
	`systemd|init|openrc.*|start-stop-daemon|haproxy|dovecot|master|postfix|exim4?|php.*|uwsgi.*|monit|cage|unitd|caddy|traefik|envconsul|consul-template|confd|chamber|dotenv|circusd|inetd|xinetd|tcpserver|pam_.*|machinectl|script|screen|tmux)$`)

// settledEnv tells whether all programs of the container find the variables
// that OpenSSL reads as they are declared.
func (l *loader) settledEnv() bool {
	if l.settled == nil {
		ok := l.req != nil && l.req.Immutable && l.req.SettledEnv
		for i := 0; ok && i < len(l.req.Programs); i++ {
			ok = l.keepsEnv(&l.req.Programs[i])
		}
		l.settled = &ok
	}
	return *l.settled
}

// keepsEnv tells whether a program is none that gives others such variables.
func (l *loader) keepsEnv(p *Program) bool {
	names := []string{path.Base(p.Path)}
	if names[0] == "busybox" || names[0] == "toybox" {
		if len(p.Args) == 0 {
			return false
		}
		for _, a := range p.Args {
			for _, word := range a[:min(len(a), 2)] {
				names = append(names, path.Base(word))
			}
		}
	}
	for _, n := range names {
		if givesEnvironment.MatchString(n) {
			return false
		}
		for i := range hosts {
			if h := &hosts[i]; h.kind&(languageHosts|forLua) != 0 && h.file.MatchString(n) {
				return false
			}
		}
	}
	sum, err := l.store.summary(l.ctx, p.Path)
	return err == nil && (libcrypto.MatchString(sum.Soname) || !speaksOfOpenSSL(sum))
}

func speaksOfOpenSSL(s *summary) bool {
	return slices.ContainsFunc(s.Strings, func(t string) bool { return strings.HasPrefix(t, "OPENSSL_") })
}

// noEngines tells whether a closure loads no engine of OpenSSL.
func (l *loader) noEngines(c *closure, g *graph) bool {
	if !l.settledEnv() || c.hosted()&languageHosts != 0 || c.hosted()&forLua != 0 && c.foreign() {
		return false
	}
	exempt, ok := l.namesNoEngine(c)
	for i, m := range c.mods {
		if libcrypto.MatchString(m.sum.Soname) {
			if !l.opensslConf(m) {
				return false
			}
			continue
		}
		if speaksOfOpenSSL(m.sum) {
			return false
		}
		base := path.Base(m.path)
		if base == "legacy.so" && path.Base(path.Dir(m.path)) == "ossl-modules" {
			continue // it asks for the parameter, as libcrypto does
		}
		if slices.ContainsFunc(m.sum.Names, func(s string) bool { return asks[s] }) || g.hands(i) {
			return false
		}
		if g.uses(i, asks) && !(ok && exempt[base]) {
			return false
		}
	}
	return !slices.ContainsFunc(g.said.names, func(s string) bool { return asks[s] })
}

// uses tells whether live code of a file uses one of these symbols.
func (g *graph) uses(mod int, names map[string]bool) bool {
	sum := g.mods[mod].sum
	if !slices.ContainsFunc(sum.Imports, func(s string) bool { return names[s] }) {
		return false
	}
	for k := range sum.Funcs {
		if g.live[mod][k] && slices.ContainsFunc(sum.Funcs[k].Imports, func(i int32) bool { return names[sum.Imports[i]] }) {
			return true
		}
	}
	return false
}

// hands tells whether a file could give an algorithm a parameter "engine".
// libssl, which is built with libcrypto, has the word in names only.
func (g *graph) hands(mod int) bool {
	sum := g.mods[mod].sum
	_, word := slices.BinarySearch(sum.Strings, "engine")
	return word && !strings.HasPrefix(sum.Soname, "libssl.so.") && slices.ContainsFunc(sum.Imports, passesParam.MatchString)
}

// opensslConf tells whether the configuration that a libcrypto reads by itself
// asks for no engine.
func (l *loader) opensslConf(m *module) bool {
	var files []string
	for _, s := range m.sum.Strings { // X509_get_default_cert_area and what lies there
		if _, ok := slices.BinarySearch(m.sum.Strings, s+"/certs"); ok && path.IsAbs(s) {
			files = append(files, path.Join(s, "openssl.cnf"))
		}
	}
	if len(files) == 0 {
		return false
	}
	if f := l.env["OPENSSL_CONF"]; f != "" { // not for a setuid program
		files = append(files, f)
	}
	for _, f := range files {
		if !path.IsAbs(f) {
			return false
		}
		cf := &configured{l: l, seen: map[string]bool{}, ok: true}
		if cf.absent(f) {
			continue
		}
		o := opensslFile{cf: cf, section: "default", values: map[string][]confLine{}}
		o.read(f, 0)
		if !cf.ok || o.asks(strings.HasSuffix(m.sum.Soname, ".3")) {
			return false
		}
	}
	return true
}

// absent tells whether a file is not there, and cannot come to be.
func (cf *configured) absent(name string) bool {
	name = path.Clean(name)
	if _, _, there := cf.l.r.stat(name); there || !cf.l.req.fixed(name) {
		return false
	}
	for dir := path.Dir(name); ; dir = path.Dir(dir) {
		if p, _, there := cf.l.r.stat(dir); there {
			return cf.l.req.fixed(path.Join(p, strings.TrimPrefix(name, dir)))
		}
		if dir == "/" {
			return false
		}
	}
}

// confLine is one line of a configuration of OpenSSL.
type confLine struct{ name, value string }

// opensslFile is a configuration of OpenSSL (config(5)) as it is read. What is
// escaped or continued is not understood.
type opensslFile struct {
	cf      *configured
	section string
	values  map[string][]confLine // by section
	lines   int
	size    int
}

const (
	maxIncludes  = 10 // nested
	maxConfLines = 100_000
	maxConfBytes = 8 << 20
)

func (o *opensslFile) read(name string, depth int) {
	delete(o.cf.seen, name) // it may be included twice
	text, ok := o.cf.file(name)
	if o.size += len(text); !ok || depth > maxIncludes || o.size > maxConfBytes {
		o.cf.ok = false
		return
	}
	o.parse(text, func(include string) {
		if !path.IsAbs(include) {
			o.cf.ok = false
			return
		}
		p, _, there := o.cf.l.r.stat(include)
		entries, isDir := o.cf.l.r.dir(include)
		switch {
		case !there:
			o.cf.ok = false
		case !isDir:
			o.read(include, depth+1)
		case !o.cf.l.req.fixed(p) || !o.cf.l.req.fixed(path.Clean(include)):
			o.cf.ok = false
		default:
			for _, e := range entries {
				if n := strings.ToLower(e.Name()); strings.HasSuffix(n, ".cnf") || strings.HasSuffix(n, ".conf") {
					o.read(path.Join(include, e.Name()), depth+1)
				}
			}
		}
	})
}

// parse reads the lines of one file.
func (o *opensslFile) parse(text string, include func(string)) {
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		if o.lines++; o.lines > maxConfLines || !o.cf.ok {
			o.cf.ok = false
			return
		}
		line, quoted, ok := plainLine(line)
		if k := strings.IndexByte(line, '='); !ok || quoted >= 0 && (k < 0 || quoted < k) { // names are not quoted
			o.cf.ok = false
			return
		}
		line = strings.TrimSpace(line)
		switch {
		case line == "":
		case line[0] == '[':
			name, rest, closed := strings.Cut(line[1:], "]")
			if o.section = strings.TrimSpace(name); !closed || strings.TrimSpace(rest) != "" || o.section == "" || strings.Contains(name, "$") {
				o.cf.ok = false
			}
		case strings.HasPrefix(line, ".include"):
			include(strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line[len(".include"):]), "=")))
		default:
			name, value, is := strings.Cut(line, "=")
			name, value = strings.TrimSpace(name), strings.TrimSpace(value)
			if !is || name == "" || name[0] == '.' || strings.Contains(name, "::") || strings.ContainsAny(name, "$ \t") {
				o.cf.ok = false // a pragma, a name of another section
				return
			}
			o.values[o.section] = append(o.values[o.section], confLine{name, value})
		}
	}
}

// plainLine takes quotation marks and the comment from a line, and tells where
// the first quotation began, -1: there is none.
func plainLine(line string) (text string, quoted int, ok bool) {
	var out []byte
	quoted = -1
	for i := 0; i < len(line); i++ {
		switch c := line[i]; c {
		case '#':
			return string(out), quoted, true
		case '\\', ';', 0:
			return "", 0, false
		case '"', '\'', '`':
			n := strings.IndexByte(line[i+1:], c)
			if n < 0 || strings.ContainsAny(line[i+1:i+1+n], "\\\x00") {
				return "", 0, false
			}
			if quoted < 0 {
				quoted = len(out)
			}
			out = append(out, line[i+1:i+1+n]...)
			i += n + 1
		default:
			out = append(out, c)
		}
	}
	return string(out), quoted, true
}

// confModules are the modules that OpenSSL knows, but for engines. The name in a
// file may be cut short, and followed by a dot and anything (module_find).
var confModules = []string{"oid_section", "stbl_section", "alg_section", "ssl_conf", "providers", "random"}

// asks tells whether the configuration may load an engine, or a module that
// OpenSSL looks for as a file. Which name in the default section holds that of the
// section is the program's choice: all count but oid_section, which is a list of
// numbers. OpenSSL 1.1 knows fewer modules.
func (o *opensslFile) asks(three bool) bool {
	modules := confModules
	if !three {
		modules = modules[:4]
	}
	for _, v := range o.values["default"] {
		if strings.Contains(v.value, "$") {
			return true
		}
		if v.name == "oid_section" {
			continue
		}
		for _, m := range o.values[v.value] {
			name := m.name
			if k := strings.LastIndexByte(name, '.'); k >= 0 {
				name = name[:k]
			}
			known := slices.ContainsFunc(modules, func(s string) bool { return strings.HasPrefix(s, name) })
			if !known || strings.HasPrefix("engines", name) {
				return true
			}
		}
	}
	return false
}

// namesNoEngine tells, of programs that are known to take the name of an engine
// from their configuration or arguments, that these name none, and gives the
// files of the closure that would ask for it:
//
//   - nginx: ssl_engine, a key that begins with "engine:", or has variables
//     (ngx_openssl_engine, ngx_ssl_load_certificate_key); env for OPENSSL_CONF of a
//     new binary;
//   - Apache: SSLCryptoDevice, names that begin with "pkcs11:" (mod_ssl's
//     modssl_is_engine_id); the driver of APR that asks for one, too, is not in
//     the closure where nothing loads it (choice.go);
//   - curl: --engine, keys and certificates "pkcs11:", and files of options.
func (l *loader) namesNoEngine(c *closure) (map[string]bool, bool) {
	if c.mods[0].sum.Interp != "" && path.Base(c.mods[0].path) == "curl" {
		return c.files("libcurl.so."), l.curlNoEngine()
	}
	server, ways, ok := l.startedBy(c)
	if !ok {
		return nil, false
	}
	cf := &configured{l: l, seen: map[string]bool{}, named: map[string]bool{}, ok: true}
	exempt := map[string]bool{}
	for _, w := range ways {
		if server == forNginx {
			cf.nginxKeys(w.file, w.texts)
			exempt[path.Base(c.mods[0].path)] = true
			continue
		}
		cf.apache(w.file)
		exempt["mod_ssl.so"] = true
	}
	return exempt, cf.ok && !cf.engine && len(cf.seen) > 0
}

// files gives the names of the files of a closure with a soname that begins so.
func (c *closure) files(soname string) map[string]bool {
	out := map[string]bool{}
	for _, m := range c.mods {
		if strings.HasPrefix(m.sum.Soname, soname) {
			out[path.Base(m.path)] = true
		}
	}
	return out
}

var (
	nginxEngine = regexp.MustCompile(`ssl_engine|engine:|OPENSSL_|\bssl_certificate_key[ \t\r\n]+[^;]*\$`)
	// mod_ssl's names in any case; variables may stand for anything.
	apacheEngine = regexp.MustCompile(`(?i)sslcryptodevice|pkcs11:|sslopensslconfcmd|ssl[a-z]*(certificate|key)[a-z]*[ \t]+[^\n]*\$`)
)

// nginxKeys reads all of a configuration of nginx.
func (cf *configured) nginxKeys(main string, texts []string) {
	dir := path.Dir(main)
	work := []string{main}
	read := func(text string) {
		cf.engine = cf.engine || nginxEngine.MatchString(text)
		for d := range nginxDirectives(text, true) {
			if d[0] != "include" {
				continue
			}
			if len(d) != 2 {
				cf.ok = false
				return
			}
			f := d[1]
			if !path.IsAbs(f) {
				f = path.Join(dir, f)
			}
			work = append(work, cf.glob(f, false)...)
		}
	}
	for _, t := range texts {
		read(t)
	}
	for len(work) > 0 && cf.ok {
		text, ok := cf.file(work[0])
		work = work[1:]
		if ok {
			read(text)
		}
	}
}

// curlNoEngine tells whether nothing makes curl load an engine.
func (l *loader) curlNoEngine() bool {
	return l.curlArgs(func(a string, long bool) bool {
		return long && strings.HasPrefix(a, "--eng") || strings.Contains(a, "pkcs11") || a == "eng"
	}) && l.curlFiles()
}

// curlArgs tells whether curl's command lines are known and not one word of
// them, in small letters, is refused, nor names a file of options or begins
// another transfer.
func (l *loader) curlArgs(refused func(word string, long bool) bool) bool {
	p := l.running
	if p == nil || len(p.Args) == 0 {
		return false
	}
	for _, args := range p.Args {
		for _, a := range args[min(1, len(args)):] {
			long := strings.HasPrefix(a, "--")
			switch {
			case long && (strings.HasPrefix(a, "--conf") || strings.HasPrefix(a, "--ne")),
				!long && len(a) > 1 && a[0] == '-' && strings.ContainsAny(a, "K:"),
				refused(strings.ToLower(a), long):
				return false
			}
		}
	}
	return true
}

// curlFiles tells whether curl finds no file of options: those lie in the homes
// of users, where none may be and none may come to be. In a home of an account
// without a shell one may come to be all the same: what a service puts there for
// itself is not seen.
func (l *loader) curlFiles() bool {
	homes := []string{"/", "/root", l.env["HOME"], l.env["CURL_HOME"], l.env["XDG_CONFIG_HOME"]}
	var services []string
	for line := range strings.Lines(l.r.text("/etc/passwd")) {
		f := strings.Split(strings.TrimSpace(line), ":")
		switch {
		case len(f) < 6:
		case len(f) > 6 && slices.Contains([]string{"nologin", "false", "sync"}, path.Base(f[6])):
			services = append(services, f[5])
		default:
			homes = append(homes, f[5])
		}
	}
	if len(homes)+len(services) > 200 {
		return false
	}
	cf := &configured{l: l}
	for i, h := range slices.Concat(homes, services) {
		for _, name := range []string{".curlrc", "curlrc", "_curlrc", ".config/curlrc"} {
			switch file := path.Join(h, name); {
			case h == "":
			case !path.IsAbs(h), i < len(homes) && !cf.absent(file):
				return false
			default:
				if _, _, there := l.r.stat(file); there {
					return false
				}
			}
		}
	}
	return l.req.fixed("/etc/passwd")
}

// setting tells of a variable whether it is one that is looked at here.
func setting(kv string) bool {
	name, _, _ := strings.Cut(kv, "=")
	return strings.HasPrefix(name, "OPENSSL_") || name == "HOME" || name == "CURL_HOME" || name == "XDG_CONFIG_HOME"
}
