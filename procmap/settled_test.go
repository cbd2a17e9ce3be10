package procmap

import "testing"

// What libraries read from the environment is as declared unless a script, a
// launcher or a crontab says otherwise, or may.
func TestSettledEnvironment(t *testing.T) {
	for _, row := range []struct {
		claim  string
		script string // the entrypoint; "": the server itself
		args   []string
		env    []string
		files  tree
		want   bool
	}{
		{claim: "a program by itself", args: []string{"server"}, want: true},
		{claim: "a script with other variables", script: "export X=1 PATH=/bin:$PATH\nY=2 exec server", want: true},
		{claim: "a script that sets one", script: "export OPENSSL_CONF=/srv/o.cnf\nexec server"},
		{claim: "a script that sets one for one command", script: "OPENSSL_CONF=/srv/o.cnf exec server"},
		{claim: "a script that sets one which it keeps", script: "OPENSSL_CONF=/srv/o.cnf\nexec server", want: true},
		{claim: "a script that sets one in a function", script: "f() { export OPENSSL_ENGINES=/srv; }\nif test -e /x; then f; fi\nexec server"},
		{claim: "a script that sets the same", env: []string{"OPENSSL_CONF=/srv/o.cnf"}, script: "export OPENSSL_CONF=/srv/o.cnf\nexec server", want: true},
		{claim: "a script that takes it away", env: []string{"OPENSSL_CONF=/srv/o.cnf"}, script: "unset OPENSSL_CONF\nexec server"},
		{claim: "a script that sets what is declared already", env: []string{"OPENSSL_CONF=/srv/o.cnf"}, script: "export OPENSSL_CONF=\"$1\"\nexec server"},
		{claim: "a script that sets a name which is not known", script: "read n < /x\nexport \"$n=1\"\nexec server"},
		{claim: "a script that evaluates what is not known", script: "eval \"$(cat /x)\"\nexec server"},
		{claim: "a script that sources a file", script: ". /etc/env\nexec server", files: tree{"/etc/env": "data export OPENSSL_CONF=/srv/o.cnf\n"}},
		{claim: "a script that sources another file", script: ". /etc/env\nexec server", files: tree{"/etc/env": "data export X=1\n"}, want: true},
		{claim: "a script that exports all it sets", script: "set -a\nOPENSSL_CONF=/srv/o.cnf\nexec server"},
		{claim: "a script behind such a script", script: "eval \"$(cat /x)\"\nexec /two.sh", files: tree{"/two.sh": "#!/bin/sh\nexec server\n"}},
		{claim: "env", args: []string{"env", "OPENSSL_CONF=/srv/o.cnf", "server"}},
		{claim: "env with another", args: []string{"env", "X=1", "server"}, want: true},
		{claim: "env that begins with nothing", args: []string{"env", "-i", "server"}, want: true},
		{claim: "env that takes it away", env: []string{"OPENSSL_CONF=/srv/o.cnf"}, args: []string{"env", "-i", "server"}},
		{claim: "env of a name that is not known", script: "read n < /x\nexec env \"$n\" server"},
		{claim: "a home", script: "export HOME=/srv\nexec server"},
		{claim: "a shell without a script", args: []string{"bash"}},
		{claim: "a command that is not known", script: "$(cat /x)\nexec server"},
		{claim: "cron's table", args: []string{"cron", "-f"}, files: tree{"/usr/sbin/cron": "elf", "/etc/cron.d/a": "data OPENSSL_CONF=/srv/o\n* * * * * root id\n"}},
		{claim: "cron's table with another", args: []string{"cron", "-f"}, files: tree{"/usr/sbin/cron": "elf", "/etc/cron.d/a": "data X=/srv/o\n* * * * * root id\n"}, want: true},
	} {
		t.Run(row.claim, func(t *testing.T) {
			tr := base().with(tree{"/usr/sbin/server": "elf"}).with(row.files)
			if row.script != "" {
				tr["/e.sh"] = "#!/bin/sh\n" + row.script + "\n"
				row.args = []string{"/e.sh"}
			}
			d := image(row.args...)
			d.Process.Env = append(d.Process.Env, row.env...)
			c, err := derive(t, tr, d)
			must(t, err)
			if c.SettledEnv != row.want {
				t.Errorf("settled is %v, want %v: %v", c.SettledEnv, row.want, c.Notes)
			}
		})
	}
}
