package catalogue

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
)

var apacheLines = []directive{
	{pattern(`^\s*(?:ErrorLog|GlobalLog)\s+"?\|\|?([^"$][^"]*)`), words},
	{pattern(`^\s*(?:ErrorLog|GlobalLog)\s+"?\|\$([^"]+)`), shell},
	{pattern(`^\s*(?:CustomLog|TransferLog|ForensicLog)\s+"?\|\|?([^"$][^"]*)`), words},
	{pattern(`^\s*(?:CustomLog|TransferLog|ForensicLog)\s+"?\|\$([^"]+)`), shell},
	{pattern(`^\s*RewriteMap\s+\S+\s+"?prg:([^"]+)`), words},
	{pattern(`^\s*(?:FcgidWrapper|SSLPassPhraseDialog\s+exec:|ExtFilterDefine\s.*\bcmd=)\s*"?(/[^"]+)`), words},
}

var (
	scriptAlias = pattern(`^\s*ScriptAlias(?:Match)?\s+\S+\s+"?([^"\s]+)`)
	loadsCGI    = pattern(`^\s*LoadModule\s+cgid?_module\b`)
)

// apache reads its configuration for programs, and for directories whose files
// it runs where a module for that is loaded.
func apache(r Run) []Fact {
	files := r.configs([]string{"-f"}, "/etc/apache2/*.conf", "/etc/apache2/*-enabled/*", "/etc/httpd/conf/*.conf", "/etc/httpd/conf.d/*.conf", "/etc/httpd/conf.modules.d/*.conf",
		"/usr/local/apache2/conf/*.conf", "/usr/local/apache2/conf/extra/*.conf", "/etc/apache2/conf.d/*.conf")
	var out, scripts []Fact
	cgi := false
	for _, name := range files {
		for n, line := range lines(r.Text(name)) {
			at := fmt.Sprintf("%s:%d", name, n)
			cgi = cgi || loadsCGI.MatchString(line)
			for _, d := range apacheLines {
				if command := d.in(line); command != "" && len(out) < maxFacts {
					out = append(out, d.fact(command, at))
				}
			}
			m := scriptAlias.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			for _, g := range []string{m[1], path.Join(m[1], "*"), path.Join(m[1], "*/*")} {
				for _, p := range r.Glob(g) {
					if r.Program(p) && len(scripts) < maxFacts/2 {
						scripts = append(scripts, Fact{Argv: []string{p, Unknown}, At: at, Source: "Apache documentation: ScriptAlias, mod_cgi"})
					}
				}
			}
		}
	}
	if cgi {
		out = append(out, scripts...)
	}
	return out
}

// stunnel has a program and its arguments, beginning with its name, on lines of their own.
func stunnel(r Run) []Fact {
	var out []Fact
	var files []string
	for _, a := range r.Argv[min(1, len(r.Argv)):] {
		if path.IsAbs(a) && !strings.Contains(a, Unknown) {
			files = append(files, a)
		}
	}
	if files == nil {
		files = append(r.Glob("/etc/stunnel/*.conf"), r.Glob("/etc/stunnel/conf.d/*")...)
	}
	for _, name := range files {
		program, at := "", ""
		argv := []string(nil)
		flush := func() {
			if program != "" && len(out) < maxFacts {
				if len(argv) == 0 {
					argv = []string{program}
				}
				out = append(out, Fact{Argv: append([]string{program}, argv[1:]...), At: at})
			}
			program, argv = "", nil
		}
		for n, line := range lines(r.Text(name)) {
			key, value, _ := strings.Cut(line, "=")
			switch key, value = strings.TrimSpace(key), strings.TrimSpace(value); {
			case strings.HasPrefix(key, "["):
				flush()
			case strings.EqualFold(key, "exec"):
				program, at = value, fmt.Sprintf("%s:%d", name, n)
			case strings.EqualFold(key, "execArgs"):
				argv = strings.Fields(value)
			}
		}
		flush()
	}
	return out
}

var redisLine = directive{pattern(`^\s*sentinel\s+(?:notification-script|client-reconfig-script)\s+\S+\s+"?([^"\s]+)`), open}

// redis takes its configuration file as the first argument.
func redis(r Run) []Fact {
	files := append(r.Glob("/etc/redis/*.conf"), r.Glob("/etc/valkey/*.conf")...)
	if len(r.Argv) > 1 && !strings.HasPrefix(r.Argv[1], "-") && !strings.Contains(r.Argv[1], Unknown) {
		files = []string{r.abs(r.Argv[1])}
	}
	var out []Fact
	for _, name := range files {
		for n, line := range lines(r.Text(name)) {
			if command := redisLine.in(line); command != "" && len(out) < maxFacts {
				out = append(out, redisLine.fact(command, fmt.Sprintf("%s:%d", name, n)))
			}
		}
	}
	return out
}

// galera: a node that joins a cluster runs the script of its transfer method by
// name, if the cluster's library is loaded.
func galera(r Run) []Fact {
	var out []Fact
	if len(r.Glob("/usr/lib/galera/*")) == 0 && len(r.Glob("/usr/lib/*/galera*")) == 0 {
		return nil
	}
	for _, f := range append(r.Glob("/etc/mysql/*.cnf"), append(r.Glob("/etc/mysql/*/*.cnf"), r.Glob("/etc/my.cnf.d/*.cnf")...)...) {
		for n, line := range lines(r.Text(f)) {
			key, value, ok := strings.Cut(line, "=")
			if strings.ReplaceAll(strings.TrimSpace(strings.ToLower(key)), "-", "_") != "wsrep_on" || !ok {
				continue
			}
			if v := strings.ToLower(strings.TrimSpace(value)); v != "on" && v != "1" {
				continue
			}
			for _, p := range r.Glob("/usr/bin/wsrep_sst_*") {
				if r.Program(p) {
					out = append(out, Fact{Argv: []string{p, Unknown}, At: fmt.Sprintf("%s:%d", f, n)})
				}
			}
		}
	}
	return out
}

func erlexec(r Run) []Fact {
	dir := path.Dir(r.Path)
	out := []Fact{{Line: path.Join(dir, "epmd") + " -daemon", Serves: true}}
	for _, p := range r.Glob(path.Join(dir, "beam*")) {
		out = append(out, Fact{Argv: []string{p, Unknown}, Becomes: true})
	}
	return out
}

// beam: RabbitMQ looks at the disk and, where there is no /proc, at processes.
func beam(r Run) []Fact {
	dir := path.Dir(r.Path)
	out := directories(path.Join(dir, "../../lib/*/priv/bin"))(r)
	for _, name := range []string{"erl_child_setup", "inet_gethost"} {
		out = append(out, Fact{Argv: []string{path.Join(dir, name), Unknown}})
	}
	if len(r.Glob("/usr/lib/rabbitmq/lib/rabbitmq_server-*")) > 0 || len(r.Glob("/opt/rabbitmq/sbin")) > 0 {
		out = append(out, Fact{Line: "/bin/df -kP /", Source: "RabbitMQ: rabbit_disk_monitor"},
			Fact{Line: "getconf PAGESIZE", Source: "RabbitMQ: vm_memory_monitor"},
			Fact{Argv: []string{path.Join(dir, "erl"), "-noinput"}, Source: "RabbitMQ: rabbit_epmd starts epmd through a node of its own"})
		for _, f := range ports("tcp", 5672, 15672, 15692, 25672)(r) {
			f.Source = "RabbitMQ documentation: Networking, ports"
			out = append(out, f)
		}
	}
	return out
}

// python: what modules of the standard library run by themselves.
func python(Run) []Fact {
	return []Fact{{Argv: []string{"uname", "-p"}}, {Argv: []string{"/sbin/ldconfig", "-p"}}}
}

// ports is for servers that listen on more than images usually expose.
func ports(proto string, numbers ...uint16) func(Run) []Fact {
	return func(Run) []Fact {
		var out []Fact
		for _, n := range numbers {
			out = append(out, Fact{Proto: proto, Port: n})
		}
		return out
	}
}

var (
	nginxRoot   = pattern(`(?:^|[;{\s])(?:root|alias)\s+"?(/[^";\s]*)`)
	nginxScript = pattern(`(?:^|[;{\s])fastcgi_param\s+SCRIPT_FILENAME\s+"?(/[^";$\s]+)`)
)

// fcgiwrap runs the program that the web server names: what its configuration
// says, and programs in the directories that it serves.
func fcgiwrap(r Run) []Fact {
	dirs := map[string]string{"/usr/lib/cgi-bin": "/usr/lib/cgi-bin"}
	var out []Fact
	for _, name := range r.configs(nil, "/etc/nginx/*.conf", "/etc/nginx/*/*", "/etc/lighttpd/*.conf") {
		for n, line := range lines(r.Text(name)) {
			at := fmt.Sprintf("%s:%d", name, n)
			if m := nginxScript.FindStringSubmatch(line); m != nil && len(out) < maxFacts {
				out = append(out, Fact{Argv: []string{m[1], Unknown}, At: at})
			}
			if m := nginxRoot.FindStringSubmatch(line); m != nil && len(dirs) < 64 {
				dirs[path.Clean(m[1])] = at
			}
		}
	}
	for _, d := range slices.Sorted(maps.Keys(dirs)) {
		for _, g := range []string{"*", "*/*", "*/*/*"} {
			for _, p := range r.Glob(path.Join(d, g)) {
				if r.Program(p) && len(out) < maxFacts {
					out = append(out, Fact{Argv: []string{p, Unknown}, At: dirs[d]})
				}
			}
		}
	}
	return out
}
