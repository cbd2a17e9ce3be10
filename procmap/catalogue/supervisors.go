package catalogue

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

// Programs that do nothing but to start others.

// supervisord reads its ini file with what it includes.
func supervisord(r Run) []Fact {
	var out []Fact
	files := r.configs([]string{"-c", "--configuration"}, "/etc/supervisord.conf", "/etc/supervisor/supervisord.conf", "/usr/etc/supervisord.conf", "/usr/supervisord.conf")
	if len(r.option("-c", "--configuration")) == 0 {
		files = append(files, r.abs("supervisord.conf"), r.abs("etc/supervisord.conf"))
	}
	for i := 0; i < len(files) && i < maxFiles; i++ {
		here := path.Dir(files[i])
		section, env, dir := "", map[string]string(nil), ""
		first := len(out)
		flush := func() {
			for j := first; j < len(out); j++ {
				out[j].Env, out[j].Dir = env, dir
			}
			first, env, dir = len(out), nil, ""
		}
		for n, line := range lines(r.Text(files[i])) {
			t := strings.TrimSpace(line)
			if strings.HasPrefix(t, "[") {
				flush()
				section, _, _ = strings.Cut(strings.Trim(t, "[]"), ":")
				continue
			}
			if k := strings.Index(t, " ;"); k >= 0 {
				t = strings.TrimSpace(t[:k])
			}
			key, value, ok := strings.Cut(t, "=")
			if !ok {
				key, value, ok = strings.Cut(t, ":")
			}
			key, value = strings.TrimSpace(key), expand(strings.TrimSpace(value), here, r.Env)
			at := fmt.Sprintf("%s:%d", files[i], n)
			starts := section == "program" || section == "eventlistener" || section == "fcgi-program"
			switch {
			case !ok || len(out) >= maxFacts:
			case key == "command" && starts && strings.TrimSpace(value) != "":
				out = append(out, Fact{Argv: split(value), At: at, Serves: true})
			case key == "directory" && starts:
				dir = value
			case key == "environment" && starts:
				env = assignments(value)
			case key == "files" && section == "include":
				for _, g := range strings.Fields(value) {
					if !path.IsAbs(g) {
						g = path.Join(here, g)
					}
					files = more(files, r.Glob(g)...)
				}
			case (strings.HasSuffix(key, "logfile") || key == "pidfile" || section == "unix_http_server" && key == "file") && path.IsAbs(value) && !strings.HasPrefix(value, "/dev/"):
				out = append(out, Fact{Write: path.Dir(value), At: at})
			case key == "childlogdir" && path.IsAbs(value):
				out = append(out, Fact{Write: value, At: at})
			}
		}
		flush()
	}
	return out
}

var supervisorName = regexp.MustCompile(`%\((\w+)\)[0-9]*[sd]`)

// expand replaces %(here)s and %(ENV_X)s; what else there is stays unknown.
func expand(s, here string, env map[string]string) string {
	return strings.ReplaceAll(supervisorName.ReplaceAllStringFunc(s, func(m string) string {
		name := supervisorName.FindStringSubmatch(m)[1]
		if name == "here" {
			return here
		}
		if v, ok := env[strings.TrimPrefix(name, "ENV_")]; ok && strings.HasPrefix(name, "ENV_") {
			return v
		}
		return Unknown
	}), "%%", "%")
}

// assignments reads KEY="value",OTHER=value.
func assignments(s string) map[string]string {
	out := map[string]string{}
	for _, m := range assignment.FindAllStringSubmatch(s, 64) {
		out[m[1]] = strings.Trim(m[2], `"'`)
	}
	return out
}

var assignment = regexp.MustCompile(`(\w+)\s*=\s*("[^"]*"|'[^']*'|[^,]*)`)

// services is for the daemontools family: a directory of service directories.
// Each has a program called run and perhaps others.
func services(supervise string, standard ...string) func(Run) []Fact {
	return func(r Run) []Fact {
		var dirs []string
		for _, a := range r.Argv[min(1, len(r.Argv)):] {
			if !strings.HasPrefix(a, "-") && !strings.Contains(a, Unknown) && strings.Contains(a, "/") {
				dirs = append(dirs, r.abs(a))
			}
		}
		if dirs == nil {
			dirs = standard
		}
		var out []Fact
		for _, d := range dirs {
			for _, name := range r.Glob(path.Join(d, "*")) {
				for _, sub := range []string{name, path.Join(name, "log")} {
					for _, g := range []string{"run", "finish", "check", "crash", "control/*", "data/check"} {
						for _, p := range r.Glob(path.Join(sub, g)) {
							if r.Program(p) && len(out) < maxFacts {
								out = append(out, Fact{Argv: []string{p}, Dir: sub, At: p, Serves: true})
							}
						}
					}
					out = append(out, Fact{Write: path.Join(sub, "supervise"), At: sub})
				}
			}
			for _, p := range r.Glob(path.Join(d, ".s6-svscan/*")) {
				if r.Program(p) {
					out = append(out, Fact{Argv: []string{p, Unknown}, Dir: d, At: p})
				}
			}
		}
		if supervise != "" && len(out) > 0 {
			out = append(out, Fact{Argv: []string{supervise, Unknown}})
		}
		return out
	}
}

// inetd reads inetd.conf: the server is the sixth column, its arguments follow.
func inetd(r Run) []Fact {
	files := r.Glob("/etc/inetd.conf")
	for _, a := range r.Argv[min(1, len(r.Argv)):] {
		if path.IsAbs(a) && !strings.Contains(a, Unknown) {
			files = append(files, a)
		}
	}
	files = append(files, r.Glob("/etc/inetd.d/*")...)
	var out []Fact
	for _, name := range files {
		for n, line := range lines(r.Text(name)) {
			f := strings.Fields(line)
			if len(f) < 6 || f[5] == "internal" || !path.IsAbs(f[5]) {
				continue
			}
			argv := append([]string{f[5]}, f[min(7, len(f)):]...)
			if path.Base(f[5]) == "tcpd" && len(f) > 6 { // it becomes what the seventh column names
				out = append(out, Fact{Argv: []string{f[5], Unknown}, At: fmt.Sprintf("%s:%d", name, n)})
				argv = f[6:]
			}
			out = append(out, Fact{Argv: argv, At: fmt.Sprintf("%s:%d", name, n), Serves: true})
		}
	}
	return out
}

// xinetd reads blocks with "server = /path" and "server_args = …".
func xinetd(r Run) []Fact {
	var out []Fact
	for _, name := range r.configs([]string{"-f"}, "/etc/xinetd.conf", "/etc/xinetd.d/*") {
		var server, args, at string
		for n, line := range lines(r.Text(name)) {
			key, value, _ := strings.Cut(line, "=")
			switch key, value = strings.TrimSpace(key), strings.TrimSpace(value); {
			case key == "server":
				server, at = value, fmt.Sprintf("%s:%d", name, n)
			case key == "server_args":
				args = value
			case key == "}":
				if path.IsAbs(server) {
					out = append(out, Fact{Argv: append([]string{server}, strings.Fields(args)...), At: at, Serves: true})
				}
				server, args = "", ""
			}
		}
	}
	return out
}
