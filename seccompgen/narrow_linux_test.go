package seccompgen_test

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// Of two modules one, which reboots, is not named by the configuration. It
// counts as soon as anything about that is not certain.
func TestModulesThatAreConfigured(t *testing.T) {
	gcc := need.Program(t, "gcc")
	const (
		nginx = opener + `void ngx_add_module(void) { } const char where[] = "/etc/nginx/nginx.conf"; const char *volatile keep = where;`
		httpd = opener + `void ap_add_module(void) { } const char where[] = "/etc/apache2"; const char *volatile keep = where;`
	)
	for _, row := range []struct {
		claim      string
		program    string
		source     string
		files      map[string]string
		args       string
		changeable []string
		writable   bool
		narrowed   bool
	}{
		{claim: "nginx, no module", files: map[string]string{"etc/nginx/nginx.conf": "user x;\nevents { }\nhttp { include conf.d/*.conf; }"}, narrowed: true},
		{claim: "nginx, one module", files: map[string]string{"etc/nginx/nginx.conf": "load_module modules/one.so; events { }"}, narrowed: true},
		{claim: "nginx, the module", files: map[string]string{"etc/nginx/nginx.conf": "load_module modules/other.so; events { }"}},
		{claim: "nginx, the module in quotes behind a comment", files: map[string]string{"etc/nginx/nginx.conf": "# {\nload_module \"modules/other.so\"; events { }"}},
		{claim: "nginx, the module in an included file", files: map[string]string{"etc/nginx/nginx.conf": "include modules-enabled/*.conf; events { }", "etc/nginx/modules-enabled/50-x.conf": "load_module /usr/lib/nginx/modules/other.so;"}},
		{claim: "nginx, another module in an included file", files: map[string]string{"etc/nginx/nginx.conf": "include modules-enabled/*.conf; events { }", "etc/nginx/modules-enabled/50-x.conf": "load_module /usr/lib/nginx/modules/one.so;"}, narrowed: true},
		{claim: "nginx, a module that is not there", files: map[string]string{"etc/nginx/nginx.conf": "load_module modules/third.so; events { }"}},
		{claim: "nginx, an include that is not there", files: map[string]string{"etc/nginx/nginx.conf": "include more.conf; events { }"}},
		{claim: "nginx, the module on the command line", args: "nginx|-g|load_module modules/other.so; daemon off;", files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "nginx, another text on the command line", args: "nginx|-g|daemon off;", files: map[string]string{"etc/nginx/nginx.conf": "events { }"}, narrowed: true},
		{claim: "nginx, another file", args: "nginx|-c|/srv/n.conf", files: map[string]string{"etc/nginx/nginx.conf": "events { }", "srv/n.conf": "load_module modules/other.so; events { }"}},
		{claim: "nginx, another prefix", args: "nginx|-p|/srv", files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "nginx, arguments that are not known", args: "?", files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "nginx, the configuration is on a mount", changeable: []string{"/etc/nginx"}, files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "nginx, a mount covers the file", changeable: []string{"/etc/nginx/nginx.conf"}, files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "nginx, a directory that is included on the main level is writable", changeable: []string{"/etc/nginx/modules-enabled"}, files: map[string]string{"etc/nginx/nginx.conf": "include modules-enabled/*.conf; events { }", "etc/nginx/modules-enabled/50-x.conf": "#"}},
		{claim: "nginx, what http includes is writable", changeable: []string{"/etc/nginx/conf.d"}, files: map[string]string{"etc/nginx/nginx.conf": "events { } http { include conf.d/*; }"}, narrowed: true},
		{claim: "nginx, a writable image", writable: true, files: map[string]string{"etc/nginx/nginx.conf": "events { }"}},
		{claim: "Apache, one module", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "IncludeOptional mods-enabled/*.load\n", "etc/apache2/mods-enabled/one.load": "LoadModule one_module /usr/lib/apache2/modules/one.so\n"}, narrowed: true},
		{claim: "Apache, the module", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "Include mods-enabled/*.load\n", "etc/apache2/mods-enabled/one.load": "<IfModule x>\n  loadmodule other_module \"modules/other.so\"\n"}},
		{claim: "Apache, the module over two lines", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "LoadModule other_module \\\n modules/other.so\n"}},
		{claim: "Apache, the module as a file", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "LoadFile modules/one.so modules/other.so\n"}},
		{claim: "Apache, a directory below another root", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "ServerRoot /srv\nInclude conf\n", "srv/conf/a/b.conf": "LoadModule other_module other.so\n"}},
		{claim: "Apache, an include by a variable", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "Include ${X}/*.conf\n"}},
		{claim: "Apache, macros", source: httpd, files: map[string]string{"etc/apache2/apache2.conf": "Use M other.so\n"}},
		{claim: "Apache, a directive on the command line", source: httpd, args: "apache2|-C|LoadModule x other.so", files: map[string]string{"etc/apache2/apache2.conf": ""}},
		{claim: "Apache in the foreground", source: httpd, args: "apache2|-D|FOREGROUND", files: map[string]string{"etc/apache2/apache2.conf": "Include absent.d/*.conf\n"}, narrowed: true},
	} {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			dir := image(t)
			source, program, uses := nginx, "usr/sbin/nginx", "ngx_add_module"
			if row.source != "" {
				source, program, uses = httpd, "usr/sbin/apache2", "ap_add_module"
			}
			for name, text := range row.files {
				write(t, filepath.Join(dir, name), text)
			}
			for name, call := range map[string]string{"one": "SYS_acct", "other": "SYS_reboot"} {
				file := "usr/lib/modules/" + name + ".so"
				write(t, filepath.Join(dir, file), "")
				build(t, gcc, dir, file, "#include <unistd.h>\n#include <sys/syscall.h>\nvoid "+uses+"(void); void *ngx_modules; long any(void) { "+uses+"(); return syscall("+call+", 0); }", "-shared", "-fPIC", "-O1")
			}
			write(t, filepath.Join(dir, program), "")
			build(t, gcc, dir, program, source, "-O1", "-rdynamic")
			root, err := rootfs.Open(dir)
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			p := seccompgen.Program{Path: "/" + program, Phase: record.Serving, Args: [][]string{{filepath.Base(program)}}}
			switch row.args {
			case "?":
				p.Args = nil
			case "":
			default:
				p.Args = append(p.Args, strings.Split(row.args, "|"))
			}
			res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{Programs: []seccompgen.Program{p}, Immutable: !row.writable, Changeable: row.changeable}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got := !slices.Contains(names(res), "reboot"); got != row.narrowed {
				t.Errorf("narrowed is %v, want %v: %v", got, row.narrowed, res.Libraries)
			}
			for name, text := range row.files {
				if strings.Contains(text, "one.so") && !slices.Contains(names(res), "acct") {
					t.Errorf("%s names a module whose calls are not allowed", name)
				}
			}
		})
	}
}
