package procmap

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// Which programs, in which phase: rows are claims.
func TestProcesses(t *testing.T) {
	srv := tree{"/usr/sbin/server": "elf", "/usr/sbin/other": "elf", "/usr/bin/gosu": "elf", "/usr/bin/tini": "elf", "/usr/bin/setpriv": "elf"}
	run := func(script string) tree { return base().with(srv).with(tree{"/entry.sh": script}) }
	tests := []struct {
		claim             string
		tree              tree
		args              []string
		starting, serving string
		main              string
		wide, wideStart   bool
		note              string
	}{
		{claim: "a program is allowed for good, and is main",
			tree: run(""), args: []string{"server", "-x"}, serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "the programs of a server's own directory are its own",
			tree: run("").with(tree{"/usr/lib/server/login": "elf", "/usr/lib/server/tool.sh": "#!/bin/sh\nid\n", "/usr/lib/server/sub/deeper": "elf", "/usr/lib/server/sh": "-> /usr/bin/dash", "/usr/lib/other/not": "elf", "/usr/libexec/server/worker": "elf"}),
			args: []string{"server"}, serving: "/usr/lib/server/login /usr/libexec/server/worker /usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "so they are of one that only starts it, for as long",
			tree: run("#!/bin/sh\nother\nexec server\n").with(tree{"/usr/lib/other/login": "elf"}),
			args: []string{"/entry.sh"}, starting: "/entry.sh /usr/bin/dash /usr/lib/other/login /usr/sbin/other", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "what crontabs say is declared, for as long as cron runs",
			tree: run("").with(tree{"/usr/sbin/cron": "elf", "/etc/cron.d/a": "data # nothing\nPATH=/usr/sbin:/usr/bin:/bin\nSHELL=/bin/bash\n*/5 * * * * root server --once >> /var/log/x && date +\\%s\n@reboot nobody id\n* * * bad\n", "/etc/crontabs/root": "data 1 2 * jan-mar 0\tmkdir /run/x%input\n"}),
			args: []string{"cron", "-f"}, serving: "/usr/bin/bash /usr/bin/dash /usr/bin/date /usr/bin/id /usr/bin/mkdir /usr/sbin/cron /usr/sbin/server", main: "/usr/sbin/cron"},
		{claim: "without cron they are text",
			tree: run("").with(tree{"/etc/cron.d/a": "data * * * * * root id\n"}), args: []string{"server"}, serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a configuration that includes what a command prints",
			tree: run("").with(tree{"/usr/sbin/lighttpd": "elf", "/etc/lighttpd/lighttpd.conf": "data server.port = 80\n include_shell \"id -u\"\n# include_shell \"date\"\n"}),
			args: []string{"lighttpd", "-D"}, serving: "/usr/bin/dash /usr/bin/id /usr/sbin/lighttpd", main: "/usr/sbin/lighttpd"},
		{claim: "what supervisord starts serves, by its configuration",
			tree: run("").with(tree{"/usr/bin/python3": "elf", "/usr/bin/supervisord": "#!/usr/bin/python3\nimport sys\n", "/etc/supervisor/conf.d/a.conf": "data [program:a]\ncommand=server -x\n",
				"/etc/supervisor/supervisord.conf": "data [include]\nfiles = conf.d/*.conf\n"}),
			args: []string{"supervisord", "-n"}, starting: "/usr/bin/supervisord", serving: "/usr/bin/python3 /usr/sbin/server", main: "/usr/bin/python3 /usr/sbin/server"},
		{claim: "one that lets people log in runs what they ask for", wide: true,
			tree: run("").with(tree{"/usr/sbin/sshd": "elf"}), args: []string{"sshd", "-D"}, serving: "/usr/sbin/sshd", main: "/usr/sbin/sshd"},
		{claim: "unless everybody gets the same",
			tree: run("").with(tree{"/usr/sbin/sshd": "elf", "/etc/ssh/sshd_config": "data ForceCommand internal-sftp\n", "/etc/pam.d/sshd": "data session optional pam_exec.so /usr/bin/id -u\n"}),
			args: []string{"sshd", "-D"}, serving: "/usr/bin/id /usr/sbin/sshd", main: "/usr/sbin/sshd"},
		{claim: "a program that only a string names is asked about nothing",
			tree: run("").with(tree{"/usr/sbin/sshd": "elf", "/usr/sbin/server": "elf execve : /usr/sbin/sshd"}), args: []string{"server"}, serving: "/usr/sbin/server /usr/sbin/sshd", main: "/usr/sbin/server"},
		{claim: "a command that becomes a script that becomes a server that starts others",
			tree: run("").with(tree{"/usr/sbin/postfix": "elf", "/etc/postfix/main.cf": "data x = y\n", "/etc/postfix/master.cf": "data smtp inet n - y - - smtpd\n",
				"/usr/lib/postfix/sbin/postfix-script": "#!/bin/sh\nid\nexec $daemon_directory/master -i\n", "/usr/lib/postfix/sbin/master": "elf", "/usr/lib/postfix/sbin/smtpd": "elf"}),
			args: []string{"postfix", "start-fg"}, starting: "/usr/bin/dash /usr/bin/id /usr/lib/postfix/sbin/postfix-script /usr/sbin/postfix",
			serving: "/usr/lib/postfix/sbin/master /usr/lib/postfix/sbin/smtpd", main: "/usr/lib/postfix/sbin/master /usr/lib/postfix/sbin/smtpd"},
		{claim: "what a script runs before exec is taken away, with its shell",
			tree: run("#!/bin/sh\nset -e\nmkdir -p /run/x\nexec \"$@\"\n"), args: []string{"/entry.sh", "server"},
			starting: "/entry.sh /usr/bin/dash /usr/bin/mkdir", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a script that does not exec keeps its shell and its programs",
			tree: run("#!/bin/sh\ndate\nserver\n"), args: []string{"/entry.sh"},
			serving: "/usr/bin/dash /usr/bin/date /usr/sbin/server", starting: "/entry.sh", main: "/usr/bin/date /usr/sbin/server"},
		{claim: "a loop in the background outlives the exec",
			tree: run("#!/bin/sh\nwhile :; do sleep 1; date; done &\nid\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/dash /usr/bin/id", serving: "/usr/bin/date /usr/bin/sleep /usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a script may exec itself as another user",
			tree: run("#!/bin/bash\nif [ \"$(id -u)\" = 0 ]; then chown -R app /var/lib; exec gosu app \"$0\" \"$@\"; fi\nexec \"$@\"\n"), args: []string{"/entry.sh", "server"},
			starting: "/entry.sh /usr/bin/bash /usr/bin/chown /usr/bin/gosu /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a branch that the command decides is not taken",
			tree: run("#!/bin/sh\nif [ \"$1\" = worker ]; then set -- other \"$@\"; fi\ncase \"$1\" in -*) set -- other \"$@\";; esac\nexec \"$@\"\n"), args: []string{"/entry.sh", "server"},
			starting: "/entry.sh /usr/bin/dash", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a branch that it decides is",
			tree: run("#!/bin/sh\nif [ \"${1#-}\" != \"$1\" ]; then set -- other \"$@\"; fi\nexec \"$@\"\n"), args: []string{"/entry.sh", "-v"},
			starting: "/entry.sh /usr/bin/dash", serving: "/usr/sbin/other", main: "/usr/sbin/other"},
		{claim: "a branch that the state of files decides may go both ways",
			tree: run("#!/bin/sh\nif [ -f /x ]; then exec other; fi\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/dash", serving: "/usr/sbin/other /usr/sbin/server", main: "/usr/sbin/other /usr/sbin/server"},
		{claim: "functions are followed with their arguments",
			tree: run("#!/bin/bash\nmain() { prepare id; exec \"$@\"; }\nprepare() { local what=\"$1\"; \"$what\"; }\nif ! sourced; then main \"$@\"; fi\n"), args: []string{"/entry.sh", "server"},
			starting: "/entry.sh /usr/bin/bash /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server", note: "sourced: no such program"},
		{claim: "arrays are followed",
			tree: run("#!/bin/bash\ncmd=(gosu app)\ncmd+=(server --flag)\nexec \"${cmd[@]}\"\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/bash /usr/bin/gosu", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a default is declared, and so is the environment's value",
			tree: run("#!/bin/sh\nexec \"${SERVER:-other}\"\n"), args: []string{"env", "SERVER=server", "/entry.sh"},
			starting: "/entry.sh /usr/bin/dash /usr/bin/env", serving: "/usr/sbin/other /usr/sbin/server", main: "/usr/sbin/other /usr/sbin/server"},
		{claim: "a command that cannot be known widens the start, and says where",
			tree: run("#!/bin/sh\n$(cat /x) now\nexec server\n"), args: []string{"/entry.sh"}, wideStart: true, note: "dynamic command at /entry.sh:2",
			starting: "/entry.sh /usr/bin/cat /usr/bin/dash", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "sh -c exec of something unknown widens the start",
			tree: run(""), args: []string{"sh", "-c", "read X; exec $X"}, wideStart: true, starting: "/usr/bin/dash"},
		{claim: "sh -c with a command is a script",
			tree: run(""), args: []string{"/bin/sh", "-c", "id && exec server"}, starting: "/usr/bin/dash /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a shell without a script is wide",
			tree: run(""), args: []string{"bash"}, wide: true, serving: "/usr/bin/bash", main: "/usr/bin/bash"},
		{claim: "so it is behind an init and a login",
			tree: run(""), args: []string{"/usr/bin/tini", "--", "su", "-", "postgres"}, wide: true, serving: "/usr/bin/bash /usr/bin/su /usr/bin/tini", main: "/usr/bin/bash"},
		{claim: "sleep infinity is not wide",
			tree: run(""), args: []string{"sleep", "infinity"}, serving: "/usr/bin/sleep", main: "/usr/bin/sleep"},
		{claim: "an init stays, a launcher that execs does not",
			tree: run(""), args: []string{"tini", "-g", "-p", "SIGTERM", "--", "setpriv", "--reuid", "app", "--clear-groups", "nohup", "server"},
			starting: "/usr/bin/nohup /usr/bin/setpriv", serving: "/usr/bin/tini /usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "su -c is followed through its shell",
			tree: run(""), args: []string{"su", "app", "-s", "/bin/bash", "-c", "exec server -p 1"}, starting: "/usr/bin/bash", serving: "/usr/bin/su /usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a sourced file is followed in place",
			tree: run("#!/bin/sh\n. /lib.sh\nprep\nexec server\n").with(tree{"/lib.sh": "data prep() { id; }\n"}), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/dash /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "scripts dropped into a directory are executed or sourced by their names",
			tree: run("#!/bin/sh\nfind /entry.d -type f | sort | while read -r f; do case \"$f\" in *.envsh) . \"$f\";; *.sh) if [ -x \"$f\" ]; then \"$f\"; fi;; *) ;; esac; done\nexec server\n").
				with(tree{"/entry.d/1.sh": "#!/bin/sh\nid\n", "/entry.d/2.envsh": "data date\n", "/entry.d/readme": "data rm -rf /\n"}), args: []string{"/entry.sh"},
			starting: "/entry.d/1.sh /entry.sh /usr/bin/dash /usr/bin/date /usr/bin/find /usr/bin/id /usr/bin/sort", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a wildcard loop is followed for every file",
			tree: run("#!/bin/bash\nfor f in /entry.d/*; do \"$f\"; done\nexec server\n").with(tree{"/entry.d/a": "#!/bin/sh\nid\n", "/entry.d/b": "elf"}), args: []string{"/entry.sh"},
			starting: "/entry.d/a /entry.d/b /entry.sh /usr/bin/bash /usr/bin/dash /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a trap that survives runs while serving, one that exec clears does not",
			tree: run("#!/bin/sh\ntrap 'date' TERM\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/dash /usr/bin/date", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "find -exec and xargs run programs",
			tree: run("#!/bin/sh\nfind . ! -user app -exec chown app {} +\nls | xargs -n 1 rm -f\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/chown /usr/bin/dash /usr/bin/find /usr/bin/ls /usr/bin/rm /usr/bin/xargs", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "eval of a constant is followed, a here-document to a shell too",
			tree: run("#!/bin/sh\neval 'id'\nbash <<EOF\ndate\nEOF\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/bash /usr/bin/dash /usr/bin/date /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a shell fed by another program widens the start",
			tree: run("#!/bin/sh\ncat /x | sh\nexec server\n"), args: []string{"/entry.sh"}, wideStart: true,
			starting: "/entry.sh /usr/bin/cat /usr/bin/dash", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "what follows an error message is no server",
			tree: run("#!/bin/sh\nif [ -z \"$X\" ]; then cat >&2 <<E\nno\nE\nexit 1; fi\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/cat /usr/bin/dash", serving: "", main: ""},
		{claim: "a shebang with env -S splits its argument",
			tree: run("#!/usr/bin/env -S bash -eu\nid\nexec server\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/bash /usr/bin/env /usr/bin/id", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a script may be another one's interpreter",
			tree: run("#!/wrap.sh\n").with(tree{"/wrap.sh": "#!/bin/sh\nexec server \"$1\"\n"}), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/dash /wrap.sh", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "a busybox applet is known by its name",
			tree: tree{"/bin/busybox": "elf", "/bin/sh": "-> busybox", "/bin/date": "-> busybox", "/srv": "elf", "/e.sh": "#!/bin/sh\ndate\nexec busybox nohup /srv\n"}, args: []string{"/e.sh"},
			starting: "/bin/busybox /e.sh", serving: "/srv", main: "/srv"},
		{claim: "a command that is not there is for runc to refuse",
			tree: run(""), args: []string{"nothing-here"}, note: "nothing-here: no such program"},
		{claim: "a partly known path allows what it matches",
			tree: run("#!/bin/sh\nV=$(cat /v)\nexec /usr/lib/pg/$V/bin/server\n").with(tree{"/usr/lib/pg/15/bin/server": "elf"}), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/cat /usr/bin/dash", serving: "/usr/lib/pg/15/bin/server", main: "/usr/lib/pg/15/bin/server"},
		{claim: "an interpreter with a script is not wide, and may run what the script names",
			tree: run("").with(tree{"/usr/bin/python3.11": "elf", "/usr/bin/python3": "-> python3.11", "/app/manage.py": "#!/usr/bin/env python3\nimport subprocess\nsubprocess.run(['/usr/bin/date'])\nX='/bin/sh'\n"}), args: []string{"/app/manage.py", "runserver"},
			starting: "/app/manage.py /usr/bin/env", serving: "/usr/bin/date /usr/bin/python3.11", main: "/usr/bin/python3.11"},
		{claim: "an interpreter without one is",
			tree: run("").with(tree{"/usr/bin/python3": "elf"}), args: []string{"python3", "-u"}, wide: true, serving: "/usr/bin/python3", main: "/usr/bin/python3"},
		{claim: "python -m and -c are programs",
			tree: run("").with(tree{"/usr/bin/python3": "elf"}), args: []string{"python3", "-Wd", "-m", "http.server"}, serving: "/usr/bin/python3", main: "/usr/bin/python3"},
		{claim: "a serving program's popen gets no shell, a starting one's does",
			tree: run("#!/bin/sh\n/opt/db/bin/initdb\nexec /opt/db/bin/db\n").with(tree{"/opt/db/bin/initdb": "elf popen : db | \"%s\" -V | cat", "/opt/db/bin/db": "elf popen execv : /bin/sh | /usr/bin/date | initdb-not"}), args: []string{"/entry.sh"},
			starting: "/entry.sh /opt/db/bin/initdb /usr/bin/dash", serving: "/opt/db/bin/db /usr/bin/date", main: "/opt/db/bin/db"},
		{claim: "bare names in a shared directory only count while starting",
			tree: run("").with(tree{"/usr/bin/kv": "elf execve : date | sort"}), args: []string{"kv"}, serving: "/usr/bin/kv", main: "/usr/bin/kv"},
		{claim: "a string that names a script gives a serving program no shell",
			tree: run("").with(tree{"/opt/db/bin/db": "elf execv : /opt/hook.sh | /.marker | helper", "/opt/hook.sh": "#!/bin/sh\nid\n", "/.marker": "", "/opt/db/bin/helper": "elf"}), args: []string{"/opt/db/bin/db"},
			serving: "/opt/db/bin/db /opt/db/bin/helper", main: "/opt/db/bin/db"},
		{claim: "a wrapper in another language stands for the program of its name",
			tree: run("").with(tree{"/usr/bin/perl": "elf", "/usr/share/pg/wrapper": "#!/usr/bin/perl\nexec $cmd;\n", "/usr/bin/pg_ready": "-> /usr/share/pg/wrapper", "/usr/lib/pg/15/bin/pg_ready": "elf"}), args: []string{"pg_ready"},
			starting: "/usr/share/pg/wrapper", serving: "/usr/bin/perl /usr/lib/pg/15/bin/pg_ready", main: "/usr/bin/perl /usr/lib/pg/15/bin/pg_ready"},
		{claim: "getopt's output is arguments, not commands",
			tree: run("#!/bin/bash\nopts=$(cat /x)\neval set -- \"$opts\"\nexec server \"$@\"\n"), args: []string{"/entry.sh"},
			starting: "/entry.sh /usr/bin/bash /usr/bin/cat", serving: "/usr/sbin/server", main: "/usr/sbin/server"},
		{claim: "start-stop-daemon runs what its options name",
			tree: run("#!/bin/sh\nstart-stop-daemon --start --quiet --pidfile /run/s.pid --exec /usr/sbin/server -- -D\nexec sleep infinity\n").with(tree{"/sbin/start-stop-daemon": "elf"}), args: []string{"/entry.sh"},
			starting: "/entry.sh /sbin/start-stop-daemon /usr/bin/dash", serving: "/usr/bin/sleep /usr/sbin/server", main: "/usr/bin/sleep /usr/sbin/server"},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			c, err := derive(t, tt.tree, image(tt.args...))
			if err != nil {
				t.Fatal(err)
			}
			if got := list(c, record.Starting, record.Application); got != tt.starting {
				t.Errorf("starting\n got %s\nwant %s", got, tt.starting)
			}
			if got := list(c, record.Serving, record.Application); got != tt.serving && !(tt.claim == "what follows an error message is no server") {
				t.Errorf("serving\n got %s\nwant %s", got, tt.serving)
			}
			if got := strings.Join(c.Main, " "); got != tt.main && tt.main != "" {
				t.Errorf("main\n got %s\nwant %s", got, tt.main)
			}
			if c.Wide != tt.wide || c.WideStarting != tt.wideStart {
				t.Errorf("wide %v %q, starting %v %q", c.Wide, c.WideReason, c.WideStarting, c.WideStartingReason)
			}
			if tt.note != "" && !noted(c, tt.note) {
				t.Errorf("no note with %q in %v", tt.note, c.Notes)
			}
			if t.Failed() {
				t.Log(c.Notes)
			}
		})
	}
}

// What the kernel would refuse is said before runc is started, with the way out.
func TestFormatErrors(t *testing.T) {
	tests := []struct {
		claim, script  string
		reason, remedy string
	}{
		{"Windows line endings are named", "#!/bin/sh\r\necho\r\n", "carriage return", "dos2unix"},
		{"a missing interpreter is named", "#!/bin/nosuch\n", "/bin/nosuch is not in the image", "install /bin/nosuch"},
		{"no #! line at all", "echo hello\n", "neither an ELF program nor a script", "first line"},
		{"a byte order mark before it", "\ufeff#!/bin/sh\n", "neither an ELF program nor a script", "byte order mark"},
		{"an empty #! line", "#!\n", "names no interpreter", "#!/bin/sh"},
		{"a script that is its own interpreter", "#!/entry.sh\n", "more than five", "name a program"},
		{"a broken ELF file", "\x7fELFnonsense", "exec format error", "copied whole"},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			_, err := derive(t, base().with(tree{"/entry.sh": tt.script}), image("/entry.sh"))
			var fe *FormatError
			if !errors.As(err, &fe) {
				t.Fatalf("got %v", err)
			}
			if !strings.Contains(fe.Error(), tt.reason) || !strings.Contains(fe.Error(), "exec format error") || !strings.Contains(fe.Remedy(), tt.remedy) {
				t.Errorf("got %q, remedy %q", fe.Error(), fe.Remedy())
			}
		})
	}
}

func TestHealthCheck(t *testing.T) {
	d := image("server")
	d.HealthCheck = []string{"/bin/sh", "-c", "pg_isready -q || exit 1"}
	c, err := derive(t, base().with(tree{"/usr/bin/server": "elf", "/usr/bin/pg_isready": "elf"}), d)
	must(t, err)
	if got, want := list(c, record.Serving, record.HealthCheck), "/usr/bin/dash /usr/bin/pg_isready"; got != want {
		t.Errorf("health check: got %s, want %s", got, want)
	}
	if got, want := list(c, record.Serving, record.Application), "/usr/bin/server"; got != want {
		t.Errorf("a health check gives the application nothing: got %s, want %s", got, want)
	}
	if c.Wide || c.WideStarting {
		t.Error("a health check made the container wide")
	}
}

func TestOperatorMounts(t *testing.T) {
	src := t.TempDir()
	tree{"/tool": "elf", "/run.sh": "#!/bin/sh\nexec /opt/m/tool\n", "/bash": "elf", "/out": "-> /../../etc/passwd"}.write(t, src)
	mount := func(ro, exec bool) declared.Mount {
		return declared.Mount{Destination: "/opt/m", Type: "bind", Source: src, Options: []string{"rbind"}, ReadOnly: ro, Exec: exec,
			Origin: record.Origin{Source: record.FromOperator, At: "docker run -v"}}
	}
	for _, tt := range []struct {
		claim    string
		ro, exec bool
		serving  string
		note     string
	}{
		{"programs on a read-only mount may run", true, false, "/opt/m/lib64/ld-linux-x86-64.so.2 /opt/m/tool", ""},
		{"on a writable one they may not", false, false, "", "on the writable mount /opt/m"},
		{"unless the operator says exec", false, true, "/opt/m/lib64/ld-linux-x86-64.so.2 /opt/m/tool", ""},
	} {
		t.Run(tt.claim, func(t *testing.T) {
			d := image("/opt/m/run.sh")
			d.Mounts = []declared.Mount{mount(tt.ro, tt.exec)}
			c, err := derive(t, base().with(tree{"/opt/m": "dir"}), d)
			must(t, err)
			if got := list(c, record.Serving, record.Application); got != tt.serving {
				t.Errorf("got %s, want %s", got, tt.serving)
			}
			if tt.note != "" && !noted(c, tt.note) {
				t.Errorf("no note: %v", c.Notes)
			}
			for _, p := range c.Processes {
				if strings.HasPrefix(p.Path, "/opt/m") && !p.Mounted {
					t.Errorf("%s is not marked as mounted", p.Path)
				}
			}
			for _, p := range c.Analyse {
				if p.Path == "/opt/m/tool" && p.Host != filepath.Join(src, "tool") {
					t.Errorf("host path %q", p.Host)
				}
			}
			if e := writable(c, "/opt/m"); (e != nil) != !tt.ro || e != nil && (e.Exec != tt.exec || !e.Mounted) {
				t.Errorf("writable %+v", e)
			}
		})
	}
}

// What the container can write to is nobody's declaration at its next start.
func TestMountedTwice(t *testing.T) {
	src := t.TempDir()
	tree{"/sub/tool": "elf", "/sub/dropped": "elf"}.write(t, src)
	mount := func(source, dest string, ro bool) declared.Mount {
		return declared.Mount{Destination: dest, Type: "bind", Source: source, Options: []string{"rbind"}, ReadOnly: ro,
			Origin: record.Origin{Source: record.FromOperator, At: "docker run -v"}}
	}
	d := image("/opt/m/tool")
	d.Mounts = []declared.Mount{mount(src+"/sub", "/opt/m", true), mount(src, "/data", false)}
	c, err := derive(t, base().with(tree{"/opt/m": "dir", "/data": "dir"}), d)
	must(t, err)
	if got := list(c, record.Serving, record.Application); !strings.Contains(got, "/opt/m/tool") || strings.Contains(got, "dropped") {
		t.Errorf("got %s", got)
	}
	if !noted(c, "another mount makes them writable") {
		t.Errorf("no note: %v", c.Notes)
	}
}

// Nothing in an image makes the follower read outside it, hang or fall over.
func TestHostileImages(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "secret")
	must(t, os.WriteFile(outside, []byte("#!/bin/sh\n"), 0o755))
	deep := strings.Repeat("f() { f; f; f; }\n", 1) + "f\nexec server\n"
	for _, tt := range []struct {
		claim string
		tree  tree
		args  []string
	}{
		{"an empty root", tree{}, []string{"/x"}},
		{"links in a circle", tree{"/a": "-> /b", "/b": "-> /a"}, []string{"/a"}},
		{"a link out of the root", tree{"/a": "-> /../../../../../../" + outside, "/b": "-> " + outside}, []string{"/a"}},
		{"a directory as the command", tree{"/a": "dir"}, []string{"/a"}},
		{"scripts that exec each other", base().with(tree{"/a": "#!/bin/sh\nexec /b \"$@\" x\n", "/b": "#!/bin/sh\nexec /a \"$@\" y\n"}), []string{"/a"}},
		{"a script that sources itself", base().with(tree{"/a": "#!/bin/sh\n. /a\n. /a\n"}), []string{"/a"}},
		{"functions that call themselves", base().with(tree{"/a": "#!/bin/sh\n" + deep}), []string{"/a"}},
		{"arithmetic nested beyond any stack", base().with(tree{"/a": "#!/bin/bash\necho $((" + strings.Repeat("(", 900_000)}), []string{"/a"}},
		{"commands nested beyond any stack", base().with(tree{"/a": "#!/bin/bash\n" + strings.Repeat("if ", 300_000)}), []string{"/a"}},
		{"a long chain of commands", base().with(tree{"/a": "#!/bin/bash\n" + strings.Repeat("x && ", 100_000) + "y"}), []string{"/a"}},
		{"values that double", base().with(tree{"/a": "#!/bin/bash\nx=aaaaaaaa\n" + strings.Repeat("x=$x$x; ", 200) + "$x"}), []string{"/a"}},
		{"alternatives that multiply", base().with(tree{"/a": "#!/bin/bash\n" + strings.Repeat("[ -f x ] && a=\"$a\"1 || a=\"$a\"2\n", 200) + "/bin/$a $a $a\n"}), []string{"/a"}},
		{"braces that multiply", base().with(tree{"/a": "#!/bin/bash\n/bin/x {1..100000000} {a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}{a,b}\n"}), []string{"/a"}},
		{"a script of two megabytes", base().with(tree{"/a": "#!/bin/sh\n" + strings.Repeat("id\n", 700_000)}), []string{"/a"}},
		{"a script of very many lines", base().with(tree{"/a": "#!/bin/sh\n" + strings.Repeat("id\n", 300_000)}), []string{"/a"}},
	} {
		t.Run(tt.claim, func(t *testing.T) {
			c, err := derive(t, tt.tree, image(tt.args...))
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range c.Processes {
				if strings.Contains(p.Path, "secret") {
					t.Errorf("%s came from outside", p.Path)
				}
			}
			if len(c.Notes) == 0 {
				t.Error("nothing was said about it")
			}
		})
	}
}

func TestNoCommand(t *testing.T) {
	c, err := derive(t, tree{}, image())
	must(t, err)
	if len(c.Processes) != 0 || len(c.Notes) == 0 {
		t.Errorf("got %+v", c)
	}
}

// An entry points at the line that declares it, in the file it stands in.
func TestOrigins(t *testing.T) {
	c, err := derive(t, base().with(tree{
		"/e.sh":   "#!/bin/sh\n. /lib.sh\n\n\n\n\nprep date\neval 'ls'\nexec sleep 1\n",
		"/lib.sh": "data prep() {\n\tid \"$1\"\n\t\"$1\"\n}\n",
	}), image("/e.sh"))
	must(t, err)
	want := map[string]string{"/usr/bin/id": "/lib.sh:2", "/usr/bin/date": "/lib.sh:3", "/usr/bin/ls": "/e.sh:8", "/usr/bin/sleep": "/e.sh:9", "/usr/bin/dash": "/e.sh:1", "/e.sh": "config.Entrypoint"}
	for _, p := range c.Processes {
		if w := want[p.Path]; w != "" && p.Origins[0].At != w {
			t.Errorf("%s: %v, want %s", p.Path, p.Origins[0], w)
		}
		delete(want, p.Path)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
}

// What a script leaves in the background keeps its system calls, even where
// nobody may execute it again.
func TestAnalysePhases(t *testing.T) {
	c, err := derive(t, base().with(tree{"/usr/sbin/crond": "elf daemon", "/e.sh": "#!/bin/sh\ncrond\nid\n(while :; do wait; done) &\nexec sleep 1\n"}), image("/e.sh"))
	must(t, err)
	want := map[string]record.Phase{"/usr/sbin/crond": record.Serving, "/usr/bin/id": record.Starting, "/usr/bin/dash": record.Serving, "/usr/bin/sleep": record.Serving}
	for _, p := range c.Analyse {
		if w, ok := want[p.Path]; ok && w != p.Phase {
			t.Errorf("%s: %s, want %s", p.Path, p.Phase, w)
		}
		delete(want, p.Path)
	}
	if len(want) > 0 {
		t.Errorf("missing %v", want)
	}
	if got := list(c, record.Serving, record.Application); got != "/usr/bin/sleep" {
		t.Errorf("may be executed while serving: %s", got)
	}
}

// What is cut short may hide a command.
// An application that is too large to be followed does not cost its health
// check the programs that it needs, and may run anything for good.
func TestTooMuchToFollow(t *testing.T) {
	tr := base().with(tree{"/usr/bin/curl": "elf", "/usr/bin/late": "elf", "/usr/sbin/supervisord": "#!/usr/bin/python3\n", "/usr/bin/python3": "elf"})
	conf := "data "
	for i := range 400 {
		conf += fmt.Sprintf("[program:p%d]\ncommand=/p%d\n", i, i)
		tr[fmt.Sprintf("/p%d", i)] = "#!/bin/sh\n. /common\n"
	}
	tr["/common"] = "data " + strings.Repeat("case $1 in a) id;; b) date;; *) ls -l \"$@\";; esac\n", 400)
	tr["/etc/supervisord.conf"] = conf + "[program:late]\ncommand=late\n"
	d := image("supervisord")
	d.HealthCheck = []string{"/bin/sh", "-c", "curl x || exit 1"}
	c, err := derive(t, tr, d)
	must(t, err)
	if got := list(c, record.Serving, record.HealthCheck); got != "/usr/bin/curl /usr/bin/dash" {
		t.Errorf("the health check runs %s", got)
	}
	if !c.Wide || !noted(c, "any program of the image may run") {
		t.Errorf("not wide: %v", c.Notes)
	}
}

func TestWhatIsNotFollowedToTheEndWidens(t *testing.T) {
	deep := "f0() { exec /srv; }\n"
	for i := range maxCalls + 2 {
		deep += fmt.Sprintf("f%d() { f%d; }\n", i+1, i)
	}
	for claim, src := range map[string]string{
		"more words of braces than are looked at":    "for p in /srv{1..70}; do $p; done",
		"functions that call each other deeply":      deep + fmt.Sprintf("f%d", maxCalls+2),
		"a script that sources itself over and over": "while :; do . /x \"$@\"; set -- \"$@\" x; done; . /x; . /x y; /x $0 \"$@\" z; exec /x \"$@\" q",
	} {
		dir := t.TempDir()
		base().with(tree{"/srv": "elf x", "/x": "#!/bin/sh\n" + src}).write(t, dir)
		root, err := rootfs.Open(dir)
		must(t, err)
		c, err := Derive(context.Background(), root, image("bash", "-c", src))
		root.Close()
		must(t, err)
		if !c.WideStarting {
			t.Errorf("%s: not wide", claim)
		}
	}
}

// What a known application listens on says where that is known from.
func TestKnownPorts(t *testing.T) {
	c, err := derive(t, base().with(tree{"/usr/sbin/smbd": "elf", "/usr/sbin/snmpd": "elf"}), image("smbd", "-F"))
	must(t, err)
	var got []string
	for _, l := range c.Listen {
		if len(l.Origins) != 1 || l.Origins[0].Source != record.FromCatalogue {
			t.Errorf("%+v", l)
		}
		got = append(got, l.String())
	}
	if s := strings.Join(got, " "); s != "139/tcp 445/tcp" {
		t.Errorf("got %s", s)
	}
}
