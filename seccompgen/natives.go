package seccompgen

import (
	"errors"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/shim/rootfs"
	"golang.org/x/sys/unix"
)

// What programs open at run time, by what such a file must be.
//
// Where a host looks for its extensions is often put together at run time from
// configuration, environment and the place of a script: a virtual environment,
// a gem, a JAVA_HOME, a LoadModule line. What an extension is, is not: the host
// calls it by a name that the extension has to export (PyInit_x, boot_x,
// JNI_OnLoad …), or the extension uses what only the host's program exports.
// So every library of the image is looked at, wherever it lies, and belongs to
// the closure of a program that can open it by either rule.
//
// Not found this way: a library that exports no such name and uses nothing of
// the program, of a host that has no rule here, opened by a name that is not in
// the data of who opens it. Trees that hold data only (skipped) are not looked
// through.

// kind is a set of hosts.
type kind uint32

const (
	forPython kind = 1 << iota
	forPerl
	forRuby
	forPHP
	forNode
	forJava
	forErlang
	forLua
	forRedis
	forMySQL
	forPostgres
	forBind
	forTcl
	forLighttpd
	forNginx
	forApache
	anyKind kind = 1<<32 - 1
)

// marks are the names of which an extension exports, or uses, at least one;
// "*" stands for anything.
//
// Sources: CPython importdl.c (PyInit_, PyInitU_ with another spelling for
// names outside ASCII), perl's XS and Ruby's C interface (each function of theirs
// begins so), PHP
// ext/standard/dl.c (get_module), Zend/zend_extensions.c (zend_extension_entry,
// extension_version_info), Node src/node_binding.cc (napi_register_module_v1,
// node_register_module_v, or a constructor that calls napi_module_register or
// node_module_register), JNI specification (JNI_OnLoad, Java_), JVM TI
// (Agent_OnLoad, Agent_OnAttach), erl_nif(3), erl_driver(3) (nif_init,
// driver_init), Lua loadlib.c (luaopen_), Redis module.c, MariaDB
// sql_plugin.cc, PostgreSQL dfmgr.c (Pg_magic_func), bind9 hooks.c and
// dlz_dlopen, Tcl load (a name that ends in _Init, with the stubs).
var marks = []struct {
	name string
	kind kind
	uses bool // also where it is imported only
}{
	{"PyInit_*", forPython, false}, {"PyInitU_*", forPython, false}, {"_cffi_pypyinit_*", forPython, false},
	{"Perl_*", forPerl, true},
	{"rb_*", forRuby, true},
	{"get_module", forPHP, false}, {"zend_extension_entry", forPHP, false}, {"extension_version_info", forPHP, false},
	{"napi_*", forNode, true}, {"node_register_module_v*", forNode, false}, {"node_module_register", forNode, true}, {"_ZN2v8*", forNode, true},
	{"JNI_*", forJava, false}, {"Java_*", forJava, false}, {"JIMAGE_*", forJava, false}, {"JVM_*", forJava, true}, {"Agent_On*", forJava, false},
	{"nif_init", forErlang, false}, {"driver_init", forErlang, false},
	{"luaopen_*", forLua, false},
	{"RedisModule_OnLoad", forRedis, false}, {"ValkeyModule_OnLoad", forRedis, false},
	{"_mysql_*", forMySQL, false}, {"_maria_*", forMySQL, false},
	{"Pg_magic_func", forPostgres, false}, {"_PG_*", forPostgres, false},
	{"plugin_register", forBind, false}, {"dlz_version", forBind, false},
	{"tclStubsPtr", forTcl, true}, {"Tcl_InitStubs", forTcl, true},
	{"mod_*_plugin_init", forLighttpd, false},
	{"ngx_modules", forNginx, false}, {"ngx_module_names", forNginx, false},
	{"ap_*", forApache, true},
}

// hosts are the functions that only the host of a kind exports; the second list
// are names that it looks up with dlsym, the third what its file is called.
var hosts = []struct {
	kind    kind
	exports []string
	names   []string
	file    *regexp.Regexp
}{
	{forPython, []string{"Py_BytesMain", "Py_Main", "PyImport_ImportModule", "Py_InitializeFromConfig"}, nil, regexp.MustCompile(`^(python|pypy)[0-9.]*$`)},
	{forPerl, []string{"Perl_newXS", "perl_construct", "Perl_newXS_flags"}, nil, regexp.MustCompile(`^perl`)},
	{forRuby, []string{"ruby_init", "rb_require"}, nil, regexp.MustCompile(`^ruby`)},
	{forPHP, []string{"php_module_startup", "zend_startup_module_ex", "zend_load_extension"}, []string{"get_module"}, regexp.MustCompile(`^php`)},
	{forNode, []string{"napi_create_function", "node_module_register", "_ZN4node5StartEiPPc"}, []string{"napi_register_module_v1"}, nodejs},
	{forJava, []string{"JLI_Launch", "JNI_CreateJavaVM"}, []string{"JNI_CreateJavaVM"}, regexp.MustCompile(`^(java|jsvc)$`)},
	{forErlang, []string{"enif_alloc", "driver_alloc"}, []string{"nif_init"}, regexp.MustCompile(`^beam`)},
	{forLua, []string{"luaopen_package", "luaopen_ffi"}, nil, regexp.MustCompile(`^(lua|texlua)`)},
	{forRedis, nil, []string{"RedisModule_OnLoad", "ValkeyModule_OnLoad"}, regexp.MustCompile(`^(redis|valkey|keydb)-server$`)},
	{forMySQL, nil, []string{"_mysql_plugin_declarations_", "_mysql_client_plugin_declaration_"}, regexp.MustCompile(`^(mysqld|mariadbd)$`)},
	{forPostgres, []string{"load_external_function"}, []string{"Pg_magic_func"}, regexp.MustCompile(`^postgres$`)},
	{forBind, nil, []string{"plugin_register", "dlz_version"}, regexp.MustCompile(`^named$`)},
	{forTcl, []string{"Tcl_CreateInterp"}, nil, regexp.MustCompile(`^(tclsh|wish|expect)`)},
	{forLighttpd, []string{"plugins_load"}, nil, regexp.MustCompile(`^lighttpd`)},
	{forNginx, []string{"ngx_add_module"}, []string{"ngx_module_names"}, regexp.MustCompile(`^(nginx|openresty|angie|freenginx)$`)},
	{forApache, []string{"ap_add_loaded_module", "ap_add_module"}, nil, regexp.MustCompile(`^(apache2|httpd)$`)},
}

// native is a library of the image.
type native struct {
	path  string
	kinds kind
	// uses are names that it imports, where it lies outside the loader's
	// directories and exports no entry point that says whose extension it is.
	uses map[string]bool
}

const (
	maxWalked  = 200_000  // directories
	maxNatives = 20_000   // libraries
	maxSymbols = 16 << 20 // bytes of one library's names
	maxUses    = 2 << 20  // names over all libraries
)

// skipped hold no library that a program opens: the kernel's trees, what is
// new with every start, manuals, the package manager's records and other
// images.
var skipped = set("/proc", "/sys", "/dev", "/run", "/tmp", "/var/tmp", "/var/run", "/var/cache", "/var/log", "/var/lib/dpkg", "/var/lib/apt", "/boot",
	"/usr/share/doc", "/usr/share/man", "/usr/share/info", "/usr/share/locale", "/usr/share/zoneinfo", "/var/lib/docker", "/var/lib/containerd", "/usr/share/icons", "/usr/share/fonts", "/usr/include", "/usr/lib/debug")

var errTooMany = errors.New("too many files")

// natives looks at every library of the image, once.
func (l *loader) natives() []native {
	if l.walked {
		return l.all
	}
	l.walked = true
	var files []string
	walked := 0
	left := map[string]bool{} // directories that the walk is still to come to
	err := l.r.root.Walk(func(dir string, st *unix.Stat_t, entries []fs.DirEntry) (into []string, err error) {
		if walked++; walked > maxWalked || len(files) > maxNatives || len(l.texts) > maxScripts || len(entries) >= rootfs.MaxEntries || l.ctx.Err() != nil {
			return nil, errTooMany
		}
		delete(left, dir)
		l.r.lists[dir] = listingOf(l.r.identity(st), entries)
		compiled := path.Base(dir) == "__pycache__"                                                                   // Python takes nothing from there without the source (PEP 3147)
		data := (strings.HasPrefix(dir, "/usr/share/") || strings.HasPrefix(dir, "/var/")) && path.Base(dir) != "bin" // programs without an extension do not lie there
		for _, e := range entries {
			name := e.Name()
			switch {
			case e.IsDir():
				if !skipped[path.Join(dir, name)] && name != ".git" && name != ".cache" {
					into = append(into, name)
					left[path.Join(dir, name)] = true
				}
			case e.Type()&^fs.ModeSymlink == 0 && isLibrary(name):
				if p, _, ok := l.r.regular(path.Join(dir, name)); ok {
					files = append(files, p)
				}
			case !compiled && e.Type().IsRegular() && script(name) && (!data || strings.Contains(name, ".")):
				l.texts = append(l.texts, path.Join(dir, name))
			}
		}
		return into, nil
	})
	l.unseen = err != nil
	// One that could not be gone into, or that something is mounted on.
	l.r.partial = l.r.partial || err == nil && len(left) > 0
	slices.Sort(files)
	names := maxUses
	for _, file := range slices.Compact(files) {
		f, err := l.r.root.Open(file)
		if err != nil {
			continue
		}
		symbols, ok := elfread.Symbols(f, f.Info.Size(), maxSymbols)
		f.Close()
		n := native{path: file}
		if !ok {
			if !l.store.loadable(file) {
				continue
			}
			n.kinds = anyKind
		}
		claimed := l.isDir[path.Dir(file)] || slices.ContainsFunc(symbols, func(s elfread.Dynamic) bool {
			return s.Defined && entryPoint(s.Name) || !s.Defined && matches("ap_*", s.Name)
		})
		for _, s := range symbols {
			for i := range marks {
				if m := &marks[i]; n.kinds&m.kind == 0 && (s.Defined || m.uses) && matches(m.name, s.Name) {
					n.kinds |= m.kind
				}
			}
			if !claimed && !s.Defined && names > 0 {
				if n.uses == nil {
					n.uses = map[string]bool{}
				}
				names--
				n.uses[string(s.Name)] = true
			}
		}
		l.all = append(l.all, n)
	}
	if names == 0 {
		l.unseen = true
	}
	return l.all
}

// entryPoint tells whether who exports this is nobody's extension but that of
// the host that calls it.
func entryPoint(name []byte) bool {
	for i := range marks {
		if m := &marks[i]; !m.uses && matches(m.name, name) {
			return true
		}
	}
	return matches("boot_*", name) || matches("Init_*", name) || matches("pam_sm_*", name) || matches("_nss_*", name) || matches("gconv", name) ||
		matches("OSSL_provider_init", name) || matches("bind_engine", name) || matches("sasl_*_plug_init", name)
}

func matches(mark string, name []byte) bool {
	k := strings.IndexByte(mark, '*')
	if k < 0 {
		return string(name) == mark
	}
	tail := mark[k+1:]
	return len(name) >= k+len(tail) && string(name[:k]) == mark[:k] && string(name[len(name)-len(tail):]) == tail
}

// hosted gives the kinds of extensions that a closure is host to.
func (c *closure) hosted() kind {
	var k kind
	for _, m := range c.mods {
		for i := range hosts {
			h := &hosts[i]
			if k&h.kind != 0 {
				continue
			}
			if m == c.mods[0] && h.file.MatchString(path.Base(m.path)) ||
				slices.ContainsFunc(h.exports, m.defines) ||
				slices.ContainsFunc(h.names, func(s string) bool { _, ok := slices.BinarySearch(m.sum.Names, s); return ok }) {
				k |= h.kind
			}
		}
	}
	return k
}

func (m *module) defines(name string) bool {
	_, ok := slices.BinarySearchFunc(m.sum.Exports, name, func(e export, s string) int { return strings.Compare(e.Name, s) })
	return ok
}

// own are the functions that the program itself exports to what it opens, apart
// from those that its libraries have too.
func (c *closure) own() map[string]bool {
	out := map[string]bool{}
	for _, e := range c.mods[0].sum.Exports {
		if c.mods[0].sum.Funcs[e.Func].Addr != 0 && !common[e.Name] {
			out[e.Name] = true
		}
	}
	for _, m := range c.mods[1:] {
		if m.exported {
			continue // its plugin
		}
		for _, e := range m.sum.Exports {
			delete(out, e.Name)
		}
	}
	return out
}

// common are names that programs export without meaning to: the start and end
// of their parts, and variables of the C library that they have a copy of.
var common = set("main", "_start", "_init", "_fini", "_edata", "_end", "__bss_start", "data_start", "__data_start", "__libc_csu_init", "__libc_csu_fini",
	"environ", "__environ", "_environ", "stdin", "stdout", "stderr", "optarg", "optind", "opterr", "optopt", "timezone", "daylight", "tzname", "signgam",
	"program_invocation_name", "program_invocation_short_name", "__progname", "__progname_full", "h_errno", "_obstack", "obstack_alloc_failed_handler", "error_print_progname")

var cpython = regexp.MustCompile(`\.cpython-([0-9]+)[a-z]*-[^/]*\.so$`)

// extensions are the libraries of the image that a program's hosts open. Bash
// exports all of its functions for builtins that enable -f loads; they are where
// the catalogue says, and nothing else is looked at for it.
func (l *loader) extensions(c *closure) []string {
	kinds, own := c.hosted(), c.own()
	if kinds == 0 && (len(own) == 0 || own["bash_initialize_history"]) {
		return nil
	}
	version := pythonVersion(c)
	var out []string
	for _, n := range l.natives() {
		switch {
		case n.kinds&kinds != 0:
			// The name says for which interpreter; others do not find it.
			if m := cpython.FindStringSubmatch(n.path); m != nil && n.kinds&kinds == forPython && version != "" && m[1] != version {
				continue
			}
		case !usesAny(n.uses, own):
			continue
		}
		out = append(out, n.path)
	}
	return out
}

// foreign tells whether a foreign function interface is among what is loaded.
func (c *closure) foreign() bool {
	return slices.ContainsFunc(c.mods, func(m *module) bool {
		return strings.HasPrefix(m.sum.Soname, "libffi.") || strings.HasPrefix(m.sum.Soname, "libluajit")
	})
}

// own are the libraries that are nobody's extension, lie where applications
// and their packages do, and that a script with a foreign function interface
// speaks of (by its name up to the first of ". _ -"), or lies beside.
func (w *words) own(l *loader) []string {
	var out []string
	for _, n := range l.all {
		dir := path.Dir(n.path)
		if n.kinds != 0 || l.isDir[dir] || systemLibrary.MatchString(n.path) && !packages.MatchString(n.path) {
			continue
		}
		stem := path.Base(n.path)
		if k := strings.IndexAny(stem, "._-"); k > 0 {
			stem = stem[:k]
		}
		i, _ := slices.BinarySearch(w.names, stem)
		if i < len(w.names) && strings.HasPrefix(w.names[i], stem) || w.dirs[dir] || w.dirs[path.Dir(dir)] {
			out = append(out, n.path)
		}
	}
	return out
}

var (
	systemLibrary = regexp.MustCompile(`^/(usr/)?(lib|lib64|libexec|share)/`)
	packages      = regexp.MustCompile(`/(site-packages|dist-packages|gems|node_modules|[^/]*php[^/]*|lua)/`)
)

func usesAny(uses, own map[string]bool) bool {
	if len(own) < len(uses) {
		uses, own = own, uses
	}
	for s := range uses {
		if own[s] {
			return true
		}
	}
	return false
}

var pythonName = regexp.MustCompile(`^(?:lib)?python([0-9]+)\.([0-9]+)[a-z]*(?:\.so[0-9.]*)?$`)

// pythonVersion is 311 for CPython 3.11, and "" where it is not known or there
// are several.
func pythonVersion(c *closure) string {
	version := ""
	for _, m := range c.mods {
		v := pythonName.FindStringSubmatch(path.Base(m.path))
		switch {
		case v == nil:
		case version == "" || version == v[1]+v[2]:
			version = v[1] + v[2]
		default:
			return ""
		}
	}
	return version
}

// ofServer tells whether a library is a module of nginx or Apache.
func (l *loader) ofServer(file string) bool {
	i, ok := slices.BinarySearchFunc(l.natives(), file, func(n native, s string) int { return strings.Compare(n.path, s) })
	return ok && l.all[i].kinds&(forNginx|forApache) != 0
}

// elsewhere finds a library of the image by its file name, for an extension
// that needs what is not in any directory where the loader looks: whoever opens
// the extension has opened that before.
func (l *loader) elsewhere(name string) []string {
	var out []string
	for _, n := range l.all {
		if path.Base(n.path) == name && len(out) < 16 {
			out = append(out, n.path)
		}
	}
	return out
}
