package seccompgen_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

const callsReboot = "#include <unistd.h>\n#include <sys/syscall.h>\nlong any(void) { return syscall(SYS_reboot, 0); }\n"

// stand-ins for libraries that load files of a directory, with their sonames.
var libraries = map[string]struct{ soname, source string }{
	"crypto": {"libcrypto.so.3", `
const char *volatile area = "/etc/ssl", *volatile certs = "/etc/ssl/certs", *volatile dir = "/usr/lib/engines-3";
void OPENSSL_init_crypto(void) { } void ENGINE_by_id(const char *s) { } void CONF_modules_load_file(void) { } void EVP_MAC_init(void *p) { }`},
	"crypto11": {"libcrypto.so.1.1", `
const char *volatile area = "/etc/ssl", *volatile certs = "/etc/ssl/certs", *volatile dir = "/usr/lib/engines-1.1";
void OPENSSL_init_crypto(void) { } void ENGINE_by_id(const char *s) { } void EVP_MAC_init(void *p) { }`},
	"sasl": {"libsasl2.so.2", `const char *volatile dir = "/usr/lib/sasl2"; void sasl_server_init(void) { }`},
	"pam":  {"libpam.so.0", `const char *volatile dir = "/lib/security/", *volatile conf = "/etc/pam.d", *volatile dist = "/usr/lib/pam.d"; void pam_start(void) { } void pam_start_confdir(void) { }`},
	"apr":  {"libaprutil-1.so.0", `const char *volatile dir = "/usr/lib/apr-util-1"; void apr_dbd_get_driver(void) { } void apr_crypto_get_driver(void) { }`},
}

// narrowing is a program that uses one of them, in an image.
type narrowing struct {
	claim   string
	uses    string // of libraries
	program string // its path; server where it does not matter
	source  string // of the program, beyond that it opens libraries
	second  string // source of a library that the program needs, too
	file    string // that makes the call, "" for the usual one
	files   map[string]string
	links   map[string]string
	env     []string
	args    string
	other   []seccompgen.Program // of the container
	change  []string
	loose   bool // the environment may be another
	mutable bool
	gone    bool // the call is
}

func (row *narrowing) run(t *testing.T, gcc string) {
	dir := image(t)
	lib := libraries[row.uses]
	write(t, filepath.Join(dir, "usr/lib", lib.soname), "")
	build(t, gcc, dir, "usr/lib/"+lib.soname, lib.source, "-shared", "-fPIC", "-O1", "-Wl,-soname,"+lib.soname)
	usual := map[string]string{"crypto": "usr/lib/engines-3/afalg.so", "crypto11": "usr/lib/engines-1.1/afalg.so", "sasl": "usr/lib/sasl2/libsasldb.so", "pam": "lib/security/pam_other.so", "apr": "usr/lib/apr-util-1/apr_dbd_x-1.so"}
	file := row.file
	if file == "" {
		file = usual[row.uses]
	}
	write(t, filepath.Join(dir, file), "")
	build(t, gcc, dir, file, callsReboot, "-shared", "-fPIC", "-O1")
	for name, text := range row.files {
		write(t, filepath.Join(dir, name), text)
	}
	for name, to := range row.links {
		write(t, filepath.Join(dir, name), "")
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
	program := row.program
	if program == "" {
		program = "usr/sbin/server"
	}
	flags := []string{"-O1", "-rdynamic", "-Wl,--no-as-needed", filepath.Join(dir, "usr/lib", lib.soname)}
	if row.second != "" {
		second := filepath.Join(dir, "usr/lib/libsecond.so")
		write(t, second, "")
		build(t, gcc, dir, "usr/lib/libsecond.so", row.second, "-shared", "-fPIC", "-O1", "-Wl,-soname,libsecond.so")
		flags = append(flags, second)
	}
	write(t, filepath.Join(dir, program), "")
	source := row.source
	if !strings.Contains(source, "main(") {
		source += "int main(int c, char **v) { return !dlopen(v[1], RTLD_NOW); }"
	}
	build(t, gcc, dir, program, "#include <dlfcn.h>\n#include <stdlib.h>\n"+source, flags...)
	for _, p := range row.other {
		write(t, filepath.Join(dir, p.Path), "")
		build(t, gcc, dir, p.Path, `int main() { return 0; }`)
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	p := seccompgen.Program{Path: "/" + program, Phase: record.Serving, Args: [][]string{{"/" + program}}}
	if row.args != "" {
		p.Args = append(p.Args, strings.Split(row.args, "|"))
	}
	if row.args == "?" {
		p.Args = nil
	}
	res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{
		Programs: append([]seccompgen.Program{p}, row.other...), Env: row.env, Immutable: !row.mutable, Changeable: row.change, SettledEnv: !row.loose,
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := !slices.Contains(names(res), "reboot"); got != row.gone {
		t.Errorf("the call is gone: %v, want %v; libraries %v", got, row.gone, res.Libraries)
	}
	if len(res.Unresolved) > 0 {
		t.Errorf("unresolved: %+v", res.Unresolved)
	}
}

func narrowings(t *testing.T, library string, rows []narrowing) {
	gcc := need.Program(t, "gcc")
	for _, row := range rows {
		if row.uses == "" {
			row.uses = library
		}
		t.Run(row.claim, func(t *testing.T) { t.Parallel(); row.run(t, gcc) })
	}
}

const (
	asks    = `void ENGINE_by_id(const char *); void more(char *s) { ENGINE_by_id(s); } void (*volatile f)(char *) = more; __attribute__((constructor)) void c(void) { f(0); }`
	cnf     = "HOME = .\nopenssl_conf = init # x\n[ init ]\nproviders = provider_sect\nssl_conf = ssl_sect\n[provider_sect]\ndefault = default_sect\n[ca]\ndir = $ENV::HOME/demo\n"
	engines = "[init]\nengines = all\n[all]\na = a_sect\n[a_sect]\nengine_id = afalg\n"
	passwd  = "root:x:0:0:root:/root:/bin/sh\n"
)

// An engine of OpenSSL counts unless nothing can ask for one.
func TestEnginesThatAreAskedFor(t *testing.T) {
	conf := func(text string) map[string]string { return map[string]string{"etc/ssl/openssl.cnf": text} }
	nginx := `void ngx_add_module(void) { } const char where[] = "/etc/nginx/nginx.conf"; const char *volatile keep = where;` + asks
	httpd := `void ap_add_module(void) { } const char where[] = "/etc/apache2"; const char *volatile keep = where;`
	modSSL := map[string]string{"etc/apache2/apache2.conf": "LoadModule ssl_module modules/mod_ssl.so\n"}
	narrowings(t, "crypto", []narrowing{
		{claim: "no configuration", gone: true},
		{claim: "no configuration, OpenSSL 1.1", uses: "crypto11", gone: true},
		{claim: "a configuration without engines", files: conf(cnf), gone: true},
		{claim: "engines", files: conf("openssl_conf = init\n" + engines)},
		{claim: "engines, OpenSSL 1.1", uses: "crypto11", files: conf("openssl_conf = init\n" + engines)},
		{claim: "engines of a section that a program names", files: conf("nginx = init\n" + engines)},
		{claim: "engines that no section of a program leads to", files: conf("openssl_conf = other\n" + engines + "[other]\nssl_conf = x\n"), gone: true},
		{claim: "a short name with a suffix", files: conf("openssl_conf = init\n[init]\neng.1 = all\n")},
		{claim: "a module that OpenSSL does not know", files: conf("openssl_conf = init\n[init]\nmine = x\n[x]\npath = /usr/lib/engines-3/afalg.so\n")},
		{claim: "a module that only OpenSSL 3 knows", uses: "crypto11", files: conf("openssl_conf = init\n[init]\nproviders = x\n")},
		{claim: "an explicit default section", files: conf("[x]\ny = z\n[default]\nopenssl_conf = init\n" + engines)},
		{claim: "a name of another section", files: conf("default::openssl_conf = init\n" + engines)},
		{claim: "a name with a variable", files: conf("openssl_conf = $ENV::WHICH\n" + engines)},
		{claim: "a line that is continued", files: conf("openssl_conf = in\\\nit\n" + engines)},
		{claim: "a quoted name", files: conf("openssl_conf = \"init\"\n" + engines)},
		{claim: "a pragma", files: conf(".pragma dollarid:true\n" + cnf)},
		{claim: "a byte order mark", files: conf("\ufeffopenssl_conf = init\n" + engines)},
		{claim: "an included file", files: map[string]string{"etc/ssl/openssl.cnf": "openssl_conf = init\n.include /etc/ssl/more\n", "etc/ssl/more": engines}},
		{claim: "an included file, with a sign, in the section that is open", files: map[string]string{"etc/ssl/openssl.cnf": "openssl_conf = init\n[init]\n.include = /etc/ssl/more\n", "etc/ssl/more": "engines = x"}},
		{claim: "an included file without engines", files: map[string]string{"etc/ssl/openssl.cnf": "openssl_conf = init\n.include /etc/ssl/more\n", "etc/ssl/more": "[init]\nssl_conf = x"}, gone: true},
		{claim: "an included directory", files: map[string]string{"etc/ssl/openssl.cnf": "openssl_conf = init\n.include /etc/ssl/d\n", "etc/ssl/d/a.cnf": engines, "etc/ssl/d/b": ""}},
		{claim: "an included directory that is writable", files: map[string]string{"etc/ssl/openssl.cnf": ".include /etc/ssl/d\n", "etc/ssl/d/a.cnf": ""}, change: []string{"/etc/ssl/d"}},
		{claim: "an included file that is not there", files: conf(".include /etc/ssl/more\n")},
		{claim: "an included file that is relative", files: map[string]string{"etc/ssl/openssl.cnf": ".include more\n", "etc/ssl/more": "", "more": ""}},
		{claim: "a file that includes itself", files: conf(".include /etc/ssl/openssl.cnf\n.include /etc/ssl/openssl.cnf\n")},
		{claim: "a link to elsewhere", files: map[string]string{"srv/o.cnf": cnf}, links: map[string]string{"etc/ssl/openssl.cnf": "/srv/o.cnf"}, gone: true},
		{claim: "a link to what is writable", files: map[string]string{"srv/o.cnf": cnf}, links: map[string]string{"etc/ssl/openssl.cnf": "/srv/o.cnf"}, change: []string{"/srv"}},
		{claim: "the configuration is writable", files: conf(cnf), change: []string{"/etc/ssl"}},
		{claim: "a mount covers the file", files: conf(cnf), change: []string{"/etc/ssl/openssl.cnf"}},
		{claim: "none, where one can be made", change: []string{"/etc"}},
		{claim: "none, in a directory that leads to a writable one", files: map[string]string{"srv/x": ""}, links: map[string]string{"etc/ssl": "/srv"}, change: []string{"/srv"}},
		{claim: "certificates on a mount", files: conf(cnf), change: []string{"/etc/ssl/certs"}, gone: true},
		{claim: "a writable image", mutable: true},
		{claim: "the environment names a file", env: []string{"OPENSSL_CONF=/srv/o.cnf"}, files: map[string]string{"srv/o.cnf": "openssl_conf = init\n" + engines}},
		{claim: "the environment names a file without engines", env: []string{"OPENSSL_CONF=/srv/o.cnf"}, files: map[string]string{"srv/o.cnf": cnf}, gone: true},
		{claim: "the environment names a relative file", env: []string{"OPENSSL_CONF=o.cnf"}, files: map[string]string{"o.cnf": cnf}},
		{claim: "a script may set the environment", loose: true},
		{claim: "a program that sets the variable itself", source: `void set(char *s) { setenv("OPENSSL_CONF", s, 1); }`},
		{claim: "another program that sets the variable", other: []seccompgen.Program{{Path: "/usr/bin/su", Phase: record.Starting}}},
		{claim: "another program that does not", other: []seccompgen.Program{{Path: "/usr/bin/id", Phase: record.Starting}}, gone: true},
		{claim: "an interpreter among the programs", other: []seccompgen.Program{{Path: "/usr/bin/python3.11", Phase: record.Starting}}},
		{claim: "busybox as something harmless", other: []seccompgen.Program{{Path: "/bin/busybox", Phase: record.Starting, Args: [][]string{{"/bin/ls", "/"}}}}, gone: true},
		{claim: "busybox as envdir", other: []seccompgen.Program{{Path: "/bin/busybox", Phase: record.Starting, Args: [][]string{{"busybox", "envdir", "/env", "server"}}}}},
		{claim: "the program asks", source: asks},
		{claim: "a library asks", second: asks},
		{claim: "code that is never reached asks", source: `void ENGINE_by_id(const char *); static void never(void) { ENGINE_by_id(0); } int x; void f(void) { if (0) never(); }`, gone: true},
		{claim: "the program loads a configuration", source: strings.ReplaceAll(asks, "ENGINE_by_id", "CONF_modules_load_file")},
		{claim: "the program looks the function up", source: `int main(int c, char **v) { void (*f)(void) = dlsym(dlopen(v[1], RTLD_NOW), v[2]); f(); return 0; } const char *volatile name = "ENGINE_by_id";`},
		{claim: "a parameter of that name", source: `void EVP_MAC_init(void *); const char *volatile key = "engine"; void more(void) { EVP_MAC_init(0); }`},
		{claim: "the word alone", source: `const char *volatile key = "engine";`, gone: true},
		{claim: "nginx without an engine", program: "usr/sbin/nginx", source: nginx, files: map[string]string{"etc/nginx/nginx.conf": "events { }\nhttp { include conf.d/*.conf; server { ssl_certificate_key /etc/key; } }", "etc/nginx/conf.d/a.conf": "#"}, gone: true},
		{claim: "nginx, a map and a variable elsewhere", program: "usr/sbin/nginx", source: nginx, files: map[string]string{"etc/nginx/nginx.conf": "events { }\nhttp { map $a $b { ~^x{2}$ \"${c}d\"; } log_format x '$x # {'; }"}, gone: true},
		{claim: "nginx with an engine", program: "usr/sbin/nginx", source: nginx, files: map[string]string{"etc/nginx/nginx.conf": "events { }\nssl_engine afalg;"}},
		{claim: "nginx with an engine on the command line", program: "usr/sbin/nginx", source: nginx, args: "nginx|-g|ssl_engine afalg;", files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "nginx with a key of an engine, in an included file", program: "usr/sbin/nginx", source: nginx, files: map[string]string{"etc/nginx/nginx.conf": "events { } http { server { include keys; } }", "etc/nginx/keys": "ssl_certificate_key engine:afalg:x;"}},
		{claim: "nginx with a key that a variable names", program: "usr/sbin/nginx", source: nginx, files: map[string]string{"etc/nginx/nginx.conf": "events { } http { server { ssl_certificate_key\n  $key; } }"}},
		{claim: "nginx with a variable for its next binary", program: "usr/sbin/nginx", source: nginx, files: map[string]string{"etc/nginx/nginx.conf": "events { } env OPENSSL_CONF=/tmp/x;"}},
		{claim: "nginx, where http includes what is writable", program: "usr/sbin/nginx", source: nginx, change: []string{"/etc/nginx/conf.d"}, files: map[string]string{"etc/nginx/nginx.conf": "events { } http { include conf.d/*.conf; }", "etc/nginx/conf.d/a.conf": "#"}},
		{claim: "nginx, arguments that are not known", program: "usr/sbin/nginx", source: nginx, args: "?", files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "Apache without an engine", program: "usr/sbin/apache2", source: httpd, second: asks, file: "", files: modSSL},
		{claim: "curl", program: "usr/bin/curl", source: "int more(void);", files: map[string]string{"etc/passwd": passwd}, gone: true},
		{claim: "curl with an engine", program: "usr/bin/curl", source: asks, args: "curl|--engine|afalg", files: map[string]string{"etc/passwd": passwd}},
	})
}

// The functions that ask lie in a library that takes the engine's name from
// what the program reads.
func TestEnginesOfCurl(t *testing.T) {
	gcc := need.Program(t, "gcc")
	libs := maps.Clone(libraries)
	for _, row := range []struct {
		args   string
		files  map[string]string
		change []string
		gone   bool
	}{
		{args: "curl|-fsS|http://localhost/", gone: true},
		{args: "curl|--engine|afalg|https://x/"},
		{args: "curl|--eng|afalg|https://x/"},
		{args: "curl|-fK|/x|https://x/"},
		{args: "curl|--key|pkcs11:x|https://x/"},
		{args: "curl|--key-type|ENG|https://x/"},
		{args: "?"},
		{args: "curl|http://x/", files: map[string]string{"home/a/.curlrc": "engine = afalg"}},
		{args: "curl|http://x/", change: []string{"/home/a"}},
		{args: "curl|http://y/", change: []string{"/home/b"}, gone: true},
		{args: "curl|http://x/", files: map[string]string{"home/b/.config/curlrc": "engine = afalg"}, change: []string{"/home/b"}},
		{args: "curl|http://x/", files: map[string]string{"home/a/.config/x": ""}, change: []string{"/home/a/.config"}},
		{args: "curl|http://x/", change: []string{"/etc/passwd"}},
	} {
		t.Run(row.args, func(t *testing.T) {
			t.Parallel()
			dir := image(t)
			write(t, filepath.Join(dir, "etc/passwd"), passwd+"a:x:1:1::/home/a:/bin/sh\nb:x:2:2::/home/b:/usr/sbin/nologin\n")
			for name, text := range row.files {
				write(t, filepath.Join(dir, name), text)
			}
			crypto, curl := filepath.Join(dir, "usr/lib/libcrypto.so.3"), filepath.Join(dir, "usr/lib/libcurl.so.4")
			write(t, crypto, "")
			build(t, gcc, dir, "usr/lib/libcrypto.so.3", libs["crypto"].source, "-shared", "-fPIC", "-O1", "-Wl,-soname,libcrypto.so.3")
			write(t, filepath.Join(dir, "usr/lib/engines-3/afalg.so"), "")
			build(t, gcc, dir, "usr/lib/engines-3/afalg.so", callsReboot, "-shared", "-fPIC", "-O1")
			build(t, gcc, dir, "usr/lib/libcurl.so.4", "#include <dlfcn.h>\nvoid ENGINE_by_id(const char *); void curl(char *s) { ENGINE_by_id(s); dlopen(s, 1); }", "-shared", "-fPIC", "-O1", "-Wl,-soname,libcurl.so.4", crypto)
			write(t, filepath.Join(dir, "usr/bin/curl"), "")
			build(t, gcc, dir, "usr/bin/curl", "void curl(char *); int main(int c, char **v) { curl(v[1]); return 0; }", "-O1", curl, crypto)
			root, err := rootfs.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			p := seccompgen.Program{Path: "/usr/bin/curl", Phase: record.Serving, Args: [][]string{strings.Split(row.args, "|")}}
			if row.args == "?" {
				p.Args = nil
			}
			res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{Programs: []seccompgen.Program{p}, Immutable: true, SettledEnv: true, Changeable: row.change}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := !slices.Contains(names(res), "reboot"); got != row.gone {
				t.Errorf("the call is gone: %v, want %v; libraries %v", got, row.gone, res.Libraries)
			}
		})
	}
}

// Plug-ins of SASL count unless the program does not start it.
func TestSASLThatIsStarted(t *testing.T) {
	starts := `void sasl_server_init(void); void more(void) { sasl_server_init(); } void (*volatile f)(void) = more;`
	narrowings(t, "sasl", []narrowing{
		{claim: "memcached", program: "usr/bin/memcached", source: starts, args: "memcached|-l|127.0.0.1|-I|8m|--extended|x", gone: true},
		{claim: "memcached with SASL", program: "usr/bin/memcached", source: starts, args: "memcached|-S"},
		{claim: "memcached with SASL among other options", program: "usr/bin/memcached", source: starts, args: "memcached|-vSd"},
		{claim: "memcached with SASL in words", program: "usr/bin/memcached", source: starts, args: "memcached|--enable-sasl"},
		{claim: "memcached with SASL in a short word", program: "usr/bin/memcached", source: starts, args: "memcached|--enable-sa"},
		{claim: "memcached with arguments that are not known", program: "usr/bin/memcached", source: starts, args: "?"},
		{claim: "memcached with a library that starts it", program: "usr/bin/memcached", second: starts},
		{claim: "another program", program: "usr/bin/other", source: starts},
		{claim: "curl without LDAP", program: "usr/bin/curl", files: map[string]string{"etc/passwd": passwd}, args: "curl|-fsS|-o|/dev/null|http://localhost/", gone: true},
		{claim: "curl with LDAP", program: "usr/bin/curl", files: map[string]string{"etc/passwd": passwd}, args: "curl|ldap://localhost/"},
		{claim: "curl with a host that could be LDAP's", program: "usr/bin/curl", files: map[string]string{"etc/passwd": passwd}, args: "curl|LDAP.example.test"},
		{claim: "curl that may be led elsewhere", program: "usr/bin/curl", files: map[string]string{"etc/passwd": passwd}, args: "curl|-fsSL|http://localhost/"},
		{claim: "curl with a file of options", program: "usr/bin/curl", files: map[string]string{"etc/passwd": passwd, "root/.curlrc": "url = x"}, args: "curl|http://localhost/"},
		{claim: "curl with a library that starts it", program: "usr/bin/curl", second: starts, files: map[string]string{"etc/passwd": passwd}, args: "curl|http://localhost/"},
	})
}

// Modules of PAM count where a file names them.
func TestPAMModulesThatAreNamed(t *testing.T) {
	files := func(text string) map[string]string {
		return map[string]string{"etc/pam.d/other": "auth required pam_unix.so\n", "etc/pam.d/x": text}
	}
	narrowings(t, "pam", []narrowing{
		{claim: "nothing names it", files: files("@include other\n"), gone: true},
		{claim: "a service", files: files("auth [success=1 default=ignore] pam_other.so nullok\n")},
		{claim: "a service, by its whole path", files: files("-session\toptional\t/lib/$ISA/security/pam_other.so\n")},
		{claim: "over two lines", files: files("auth required \\\n pam_other.so\n")},
		{claim: "the old single file", files: map[string]string{"etc/pam.d/x": "", "etc/pam.conf": "x auth required pam_other.so\n"}},
		{claim: "the distribution's directory", files: map[string]string{"etc/pam.d/x": "", "usr/lib/pam.d/y": "auth required pam_other.so\n"}},
		{claim: "a link to it", files: files("auth required pam_link.so\n"), links: map[string]string{"lib/security/pam_link.so": "pam_other.so"}},
		{claim: "an include of what lies elsewhere", files: files("auth include /srv/x\n")},
		{claim: "an escape", files: files("auth required [pam_\\]other.so]\n")},
		{claim: "a writable file", files: files(""), change: []string{"/etc/pam.d/x"}},
		{claim: "a writable directory", files: files(""), change: []string{"/etc/pam.d"}},
		{claim: "the old single file can be made", files: files(""), change: []string{"/etc/pam.conf"}},
		{claim: "a writable image", files: files(""), mutable: true},
		{claim: "no configuration", gone: true},
		{claim: "a program with a directory of its own", files: files(""), source: `void pam_start_confdir(void); void more(void) { pam_start_confdir(); }`},
	})
}

// Drivers of APR count where somebody loads their kind.
func TestDriversThatAreLoaded(t *testing.T) {
	uses := func(f string) string {
		return strings.ReplaceAll(`void F(void); void more(void) { F(); } `, "F", f)
	}
	narrowings(t, "apr", []narrowing{
		{claim: "nobody", gone: true},
		{claim: "a library", second: uses("apr_dbd_get_driver")},
		{claim: "a library, another kind", second: uses("apr_crypto_get_driver"), gone: true},
		{claim: "the program", source: `void apr_dbd_get_driver(void); __attribute__((constructor)) void more(void) { apr_dbd_get_driver(); }`},
		{claim: "a table of the program that nothing reads", source: `void apr_dbd_get_driver(void); const void *ap_hack = (const void *)apr_dbd_get_driver;`, gone: true},
		{claim: "a file of another kind", file: "usr/lib/apr-util-1/mine.so"},
	})
}
