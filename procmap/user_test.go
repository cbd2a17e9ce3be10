package procmap

import (
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/record"
)

func uid(n uint32) func(*declared.Declared) {
	return func(d *declared.Declared) { d.Process.UID = n }
}

// Whether what serves has none of root's capabilities: rows are claims.
func TestServesUnprivileged(t *testing.T) {
	bin := tree{"/usr/sbin/server": "elf", "/usr/sbin/other": "elf daemon"}
	for _, n := range []string{"gosu", "su-exec", "s6-setuidgid", "setpriv", "runuser", "chpst", "start-stop-daemon", "sudo", "tini", "chroot", "useradd", "s6-applyuidgid", "doas"} {
		bin["/usr/bin/"+n] = "elf"
	}
	entry := func(script string) tree { return base().with(bin).with(tree{"/entry.sh": script}) }
	const self = "#!/bin/bash\nif [ \"$(id -u)\" = 0 ]; then chown -R app /var/lib; exec gosu app \"$0\" \"$@\"; fi\nexec \"$@\"\n"
	tests := []struct {
		claim  string
		script string
		args   string // "/entry.sh server" if empty
		change func(*declared.Declared)
		want   bool
	}{
		{claim: "an image that runs as root does not", args: "server"},
		{claim: "one that declares a user does", args: "server", change: uid(999), want: true},
		{claim: "with a user namespace root is root inside", args: "server", change: func(d *declared.Declared) { d.UserNS = true }},
		{claim: "a bare bundle may give its user ambient capabilities", args: "server",
			change: func(d *declared.Declared) { d.Process.UID, d.Engine = 999, declared.Bundle }},
		{claim: "root's run of a script ends where it becomes a user", script: self, want: true},
		{claim: "the shape of PostgreSQL's", want: true,
			script: "#!/bin/bash\nmain() { local user; user=\"$(id -u)\"; if [ \"$1\" = server ]; then if [ \"$user\" = '0' ]; then find /var/lib \\! -user postgres -exec chown postgres '{}' +; fi; if [ \"$(id -u)\" = '0' ]; then exec gosu postgres \"$BASH_SOURCE\" \"$@\"; fi; fi; exec \"$@\"; }\nmain \"$@\"\n"},
		{claim: "the shape of Redis's", want: true,
			script: "#!/bin/sh\nset -e\nif [ \"$1\" = 'server' -a \"$(id -u)\" = '0' ]; then find . \\! -user app -exec chown app '{}' +; exec gosu app \"$0\" \"$@\"; fi\nexec \"$@\"\n"},
		{claim: "the shape of MongoDB's", want: true,
			script: "#!/bin/bash\nset -Eeuo pipefail\noriginal=\"$1\"\nif [[ \"$original\" == serv* ]] && [ \"$(id -u)\" = '0' ]; then exec gosu app \"$BASH_SOURCE\" \"$@\"; fi\nexec \"$@\"\n"},
		{claim: "numbers are compared as numbers", script: strings.Replace(self, "= 0", "-eq 0", 1), want: true},
		{claim: "in [[ ]] too", script: strings.Replace(self, `[ "$(id -u)" = 0 ]`, `[[ $(id -u) -ne 1000 ]]`, 1), want: true},
		{claim: "bash knows EUID", script: strings.Replace(self, `[ "$(id -u)" = 0 ]`, `(( EUID == 0 ))`, 1), want: true},
		{claim: "and UID", script: strings.Replace(self, `"$(id -u)"`, `"$UID"`, 1), want: true},
		{claim: "other shells do not", script: strings.Replace(strings.Replace(self, `"$(id -u)"`, `"$UID"`, 1), "bash", "sh", 1)},
		{claim: "the environment's UID is what bash takes", script: strings.Replace(self, `"$(id -u)"`, `"$UID"`, 1),
			change: func(d *declared.Declared) { d.Process.Env = append(d.Process.Env, "UID=7") }},
		{claim: "a case on it is decided", want: true,
			script: "#!/bin/sh\ncase \"$(id -u)\" in 0) exec gosu app \"$0\" \"$@\";; *) exec \"$@\";; esac\n"},
		{claim: "id -un is not known", script: strings.Replace(self, `"$(id -u)" = 0`, `"$(id -un)" = root`, 1)},
		{claim: "id -u -n neither", script: strings.Replace(self, `"$(id -u)" = 0`, `"$(id -u -n)" = root`, 1)},
		{claim: "id -g neither", script: strings.Replace(self, `id -u`, `id -g`, 1)},
		{claim: "nor another user's number", script: strings.Replace(self, `id -u`, `id -u root`, 1)},
		{claim: "output that goes elsewhere is not the value", script: strings.Replace(self, `id -u`, `id -u >&2`, 1)},
		{claim: "errors may", script: strings.Replace(self, `id -u`, `id -u 2>/dev/null`, 1), want: true},
		{claim: "a branch that the state of files decides leaves both", script: strings.Replace(self, `[ "$(id -u)" = 0 ]`, `[ -f /x ]`, 1)},
		{claim: "a number is a user", args: "gosu 1000:1000 server", want: true},
		{claim: "root's is not", args: "gosu 0 server"},
		{claim: "nor is root's name", args: "su-exec root:root server"},
		{claim: "a user whom nobody knows may be anyone", args: "gosu nobody-knows server"},
		{claim: "su-exec", args: "su-exec app server", want: true},
		{claim: "s6-setuidgid", args: "s6-setuidgid app server", want: true},
		{claim: "s6-applyuidgid", args: "s6-applyuidgid -u 1000 -g 1000 server", want: true},
		{claim: "s6-applyuidgid by the environment", args: "s6-applyuidgid -U server"},
		{claim: "chpst", args: "chpst -u app:app server", want: true},
		{claim: "chpst with numbers", args: "chpst -u :1000:1000 server", want: true},
		{claim: "setpriv", args: "setpriv --reuid=app --regid app --clear-groups --inh-caps=-all server", want: true},
		{claim: "setpriv without a user", args: "setpriv --clear-groups server"},
		{claim: "setpriv that keeps a capability", args: "setpriv --reuid=app --inh-caps=+sys_chroot --ambient-caps=+sys_chroot server"},
		{claim: "setpriv of one of the user IDs", args: "setpriv --euid=app server"},
		{claim: "an init stays root and does nothing with it", args: "tini -- gosu app server", want: true},
		{claim: "su stays root and may do anything", args: "su app -c server"},
		{claim: "runuser too", args: "runuser -u app -- server"},
		{claim: "from a user, sudo leads to root", args: "sudo server", change: uid(999)},
		{claim: "and doas", args: "doas server", change: uid(999)},
		{claim: "gosu does not lead anywhere from a user", args: "gosu app server", change: uid(1000), want: true},
		{claim: "what stays in the background as root serves too", script: "#!/bin/sh\nother &\nexec gosu app server\n"},
		{claim: "so does what detaches itself", script: "#!/bin/sh\nother\nexec gosu app server\n"},
		{claim: "as a user it may", script: "#!/bin/sh\ngosu app other &\nexec gosu app server\n", want: true},
		{claim: "a shell that does not exec stays root", script: "#!/bin/sh\ngosu app server\n"},
		{claim: "chroot in the background is root's", script: "#!/bin/sh\nchroot /x server &\nexec gosu app server\n"},
		{claim: "start-stop-daemon runs what it starts as the user", script: "#!/bin/sh\nstart-stop-daemon --start --chuid app --exec /usr/sbin/server\nexec gosu app sleep 1\n", want: true},
		{claim: "without one as root", script: "#!/bin/sh\nstart-stop-daemon --start --exec /usr/sbin/server\nexec gosu app sleep 1\n"},
		{claim: "what cannot be known may be root's", script: "#!/bin/sh\n$(cat /x)\nexec gosu app server\n"},
		{claim: "a script that changes the accounts leaves names open", script: "#!/bin/sh\nuseradd app\nexec gosu app server\n"},
		{claim: "also by writing the file", script: "#!/bin/sh\necho app:x:0:0::/:/bin/sh >> /etc/passwd\nexec gosu app server\n"},
		{claim: "a writable bundle's names are open too", script: self,
			change: func(d *declared.Declared) { d.Image.Known = false }},
		{claim: "a shell without a script is anyone", args: "gosu app bash"},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			if tt.args == "" {
				tt.args = "/entry.sh server"
			}
			d := image(strings.Fields(tt.args)...)
			if tt.change != nil {
				tt.change(d)
			}
			c, err := derive(t, entry(tt.script), d)
			must(t, err)
			if c.ServesUnprivileged != tt.want {
				t.Errorf("got %v; main %v, serving %s, notes %v", c.ServesUnprivileged, c.Main, list(c, record.Serving, record.Application), c.Notes)
			}
		})
	}
}

// The branches of a script that a user does not reach are not followed.
func TestBranchesByUser(t *testing.T) {
	script := "#!/bin/sh\nif [ \"$(id -u)\" = 0 ]; then chown app /x; exec gosu app \"$0\" \"$@\"; fi\ndate\nexec \"$@\"\n"
	tests := []struct {
		claim  string
		tree   tree
		change func(*declared.Declared)
		want   string
	}{
		{claim: "root follows both, one after the other",
			want: "/entry.sh /usr/bin/chown /usr/bin/dash /usr/bin/date /usr/bin/gosu /usr/bin/id"},
		{claim: "a user only what is left", change: uid(1000), want: "/entry.sh /usr/bin/dash /usr/bin/date /usr/bin/id"},
		{claim: "without id in the image nothing is known", change: uid(1000), tree: tree{"/usr/bin/id": "data"},
			want: "/entry.sh /usr/bin/chown /usr/bin/dash /usr/bin/date /usr/bin/gosu"},
		{claim: "a function named id is not id", change: uid(1000), tree: tree{"/entry.sh": strings.Replace(script, "\n", "\nid() { cat; }\n", 1)},
			want: "/entry.sh /usr/bin/cat /usr/bin/chown /usr/bin/dash /usr/bin/date /usr/bin/gosu"},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			d := image("/entry.sh", "server")
			if tt.change != nil {
				tt.change(d)
			}
			tr := base().with(tree{"/usr/sbin/server": "elf", "/usr/bin/gosu": "elf", "/entry.sh": script}).with(tt.tree)
			if v, ok := tr["/usr/bin/id"]; ok && v == "data" {
				delete(tr, "/usr/bin/id")
			}
			c, err := derive(t, tr, d)
			must(t, err)
			if got := list(c, record.Starting, record.Application); got != tt.want {
				t.Errorf("starting\n got %s\nwant %s", got, tt.want)
			}
			if got := list(c, record.Serving, record.Application); got != "/usr/sbin/server" {
				t.Errorf("serving %s", got)
			}
		})
	}
}

// What a program that serves could only start through a shell: rows are claims.
func TestThroughShell(t *testing.T) {
	db := func(imports string) tree {
		return base().with(tree{"/opt/db/bin/db": "elf " + imports + " : helper | /usr/bin/date", "/opt/db/bin/helper": "elf",
			"/exec.sh": "#!/bin/sh\nexec /opt/db/bin/db\n", "/stay.sh": "#!/bin/sh\n/opt/db/bin/db\n"})
	}
	tests := []struct {
		claim   string
		imports string
		args    string
		serving string
	}{
		{"it starts them until it serves: then there is no shell", "popen system", "/exec.sh", "/opt/db/bin/db"},
		{"what it can execute itself stays", "popen execv", "/exec.sh", "/opt/db/bin/db /opt/db/bin/helper /usr/bin/date"},
		{"also where a library does it", "popen g_subprocess_newv", "/exec.sh", "/opt/db/bin/db /opt/db/bin/helper /usr/bin/date"},
		{"a shell that serves keeps them", "popen", "/stay.sh", "/opt/db/bin/db /opt/db/bin/helper /usr/bin/dash /usr/bin/date"},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			c, err := derive(t, db(tt.imports), image(tt.args))
			must(t, err)
			if got := list(c, record.Serving, record.Application); got != tt.serving {
				t.Errorf("serving\n got %s\nwant %s", got, tt.serving)
			}
			for _, p := range []string{"/opt/db/bin/helper", "/usr/bin/date"} {
				if !strings.Contains(list(c, record.Starting, record.Application)+list(c, record.Serving, record.Application), p) {
					t.Errorf("%s is not allowed at all", p)
				}
			}
		})
	}
}
