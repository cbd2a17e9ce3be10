package procmap

import (
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/record"
)

func paths(c *Closure) string {
	var out []string
	for _, w := range c.Writable {
		out = append(out, w.Path)
	}
	return strings.Join(out, " ")
}

func TestWritable(t *testing.T) {
	const usual = "/run /tmp /var/log"
	tests := []struct {
		claim  string
		tree   tree
		change func(*declared.Declared)
		want   string // besides the usual
		note   string
		holds  string // of those, what has programs or libraries of the image
	}{
		{claim: "the usual variable directories, links resolved"},
		{claim: "a VOLUME", tree: tree{"/data": "dir"}, change: func(d *declared.Declared) { d.Image.Volumes = []string{"/data/"} }, want: "/data"},
		{claim: "a VOLUME that is not there is said", change: func(d *declared.Declared) { d.Image.Volumes = []string{"/data"} }, note: "VOLUME /data does not exist"},
		{claim: "a VOLUME over programs is not honoured", change: func(d *declared.Declared) { d.Image.Volumes = []string{"/usr/bin"} }, note: "VOLUME /usr/bin stays read-only"},
		{claim: "a directory that belongs to a user, wherever it lies", tree: tree{"/var/lib/db": "dir 999", "/srv/x": "dir 999"}, want: "/srv/x /var/lib/db"},
		{claim: "one that everybody may write in, as in /tmp", tree: tree{"/var/lib/php/sessions": "dir shared", "/etc/shared": "dir shared"}, want: "/var/lib/php/sessions"},
		{claim: "but not among programs, configuration or /opt", tree: tree{"/usr/share/x": "dir 999", "/etc/x": "dir 999", "/opt/x": "dir 999", "/lib/x": "dir 999"}},
		{claim: "/opt where it belongs to the declared user", tree: tree{"/opt/x": "dir 999"}, change: func(d *declared.Declared) { d.Image.User = "postgres"; d.Process.UID = 999 }, want: "/opt/x"},
		{claim: "a mount that is there anyway", change: func(d *declared.Declared) {
			d.Mounts = []declared.Mount{{Destination: "/m", Type: "bind", Source: "/nowhere"}, {Destination: "/ro", Type: "bind", Source: "/nowhere", ReadOnly: true}, {Destination: "/proc", Type: "proc"}, {Destination: "/dev/shm", Type: "tmpfs"}}
		}, want: "/dev/shm /m"},
		{claim: "an empty directory of RUN mkdir", tree: tree{"/made/empty": "dir", "/made/full/f": "data x"}, change: func(d *declared.Declared) {
			d.Image.History = []declared.Instruction{{Index: 3, Keyword: "RUN", Arguments: "apt-get update && mkdir -p -m 0755 /made/{empty,full} && rm -rf /x"}}
		}, want: "/made/empty"},
		{claim: "an empty WORKDIR", tree: tree{"/app": "dir"}, change: func(d *declared.Declared) { d.Process.Cwd, d.Image.WorkingDir = "/app", "/app" }, want: "/app"},
		{claim: "not one with root's files in it", tree: tree{"/app/main.py": "data"}, change: func(d *declared.Declared) { d.Process.Cwd, d.Image.WorkingDir = "/app", "/app" }},
		{claim: "the home of the declared user", tree: tree{"/home/app": "dir 1000"}, change: func(d *declared.Declared) { d.Image.User = "app"; d.Process.UID = 1000 }, want: "/home/app"},
		{claim: "what is below something writable is not told again", tree: tree{"/var/log/nginx": "dir 33", "/data/x": "dir 5"}, change: func(d *declared.Declared) { d.Image.Volumes = []string{"/data"} }, want: "/data"},
		{claim: "a redirection makes its directory writable, also below /etc", tree: tree{"/etc/nginx/conf.d/d.conf": "data", "/e.sh": "#!/bin/sh\ncat x > /etc/nginx/conf.d/d.conf\nexec sleep 1\n"},
			change: entry, want: "/etc/nginx/conf.d"},
		{claim: "sed -i and cp and tee and install do", tree: tree{"/etc/a/f": "data", "/srv/b/f": "data", "/srv/c/f": "data", "/srv/d": "dir", "/usr/bin/install": "elf",
			"/e.sh": "#!/bin/sh\nsed -i -e 's/a/b/' /etc/a/f\ncp /x /srv/b/\necho x | tee -a /srv/c/f\ninstall -d -m 755 -o app /srv/d\nexec sleep 1\n"},
			change: entry, want: "/etc/a /srv/b /srv/c /srv/d"},
		{claim: "sed without -i does not", tree: tree{"/etc/a/f": "data", "/e.sh": "#!/bin/sh\nsed -e s/i/j/ /etc/a/f\nexec sleep 1\n"}, change: entry},
		{claim: "values are followed to the path", tree: tree{"/srv/db": "dir", "/e.sh": "#!/bin/bash\nD=\"${DIR:-/srv}\"\nfind \"$D/db\" -exec chown app '{}' +\nexec sleep 1\n"}, change: entry, want: "/srv/db"},
		{claim: "cd decides where a relative path is", tree: tree{"/srv/w": "dir", "/e.sh": "#!/bin/sh\ncd /srv/w\n> pid\nexec sleep 1\n"}, change: entry, want: "/srv/w"},
		{claim: "a single file where its directory is too wide", tree: tree{"/etc/motd": "data", "/e.sh": "#!/bin/sh\necho > /etc/motd\nexec sleep 1\n"}, change: entry, want: "/etc/motd"},
		{claim: "accounts, programs and package lists never", tree: tree{"/var/lib/dpkg/status": "data", "/e.sh": "#!/bin/sh\necho >> /etc/passwd\ncp a /usr/bin/x\nrm /var/lib/dpkg/status\nexec sleep 1\n"}, change: entry, note: "/etc/passwd, which stays read-only"},
		{claim: "what cannot be made is said with a remedy", tree: tree{"/e.sh": "#!/bin/sh\nmkdir -p /var/lib/new\nexec sleep 1\n"}, change: entry, note: "declare VOLUME /var/lib/new"},
		{claim: "a home with a program in it", tree: tree{"/home/app": "dir 1000", "/home/app/bin/run": "elf"}, change: func(d *declared.Declared) { d.Image.User = "app"; d.Process.UID = 1000 }, want: "/home/app", holds: "/home/app"},
		{claim: "or a library", tree: tree{"/srv/x": "dir 999", "/srv/x/a/lib/y.so.1": "data"}, want: "/srv/x", holds: "/srv/x"},
		{claim: "not one with data", tree: tree{"/srv/x": "dir 999", "/srv/x/a/y": "data"}, want: "/srv/x"},
		{claim: "what lies in /tmp was left behind", tree: tree{"/tmp/installer": "elf"}},
		{claim: "unless something declared runs it", tree: tree{"/tmp/e.sh": "#!/bin/sh\nexec sleep 1\n"}, change: func(d *declared.Declared) { d.Process.Args = []string{"/tmp/e.sh"} }, holds: "/tmp"},
		{claim: "a known program's own place to load libraries from, though more is writable", tree: tree{"/usr/sbin/varnishd": "elf", "/srv/v/x": "dir"}, change: func(d *declared.Declared) {
			d.Process.Args, d.Image.Volumes = []string{"varnishd", "-n", "/srv/v/x"}, []string{"/srv/v"}
		}, want: "/srv/v /srv/v/x"},
		{claim: "not one that is everybody's", tree: tree{"/usr/sbin/varnishd": "elf"}, change: func(d *declared.Declared) {
			d.Process.Args = []string{"varnishd", "-n", "/tmp"}
		}},
		{claim: "a bare bundle has its mounts only", tree: tree{"/var/lib/db": "dir 999"}, change: func(d *declared.Declared) { d.Image.Known = false }, want: "-"},
	}
	for _, tt := range tests {
		t.Run(tt.claim, func(t *testing.T) {
			d := image("sleep", "1")
			if tt.change != nil {
				tt.change(d)
			}
			c, err := derive(t, base().with(tt.tree), d)
			must(t, err)
			want := strings.Fields(usual + " " + tt.want)
			if tt.want == "-" {
				want = nil
			}
			slices.Sort(want)
			if got := paths(c); got != strings.Join(want, " ") {
				t.Errorf("\n got %s\nwant %s", got, strings.Join(want, " "))
			}
			if tt.note != "" && !noted(c, tt.note) {
				t.Errorf("no note with %q: %v", tt.note, c.Notes)
			}
			for _, w := range c.Writable {
				if w.Maps != (w.Path == "/srv/v/x") {
					t.Errorf("%s: libraries %v", w.Path, w.Maps)
				}
				if w.Holds != strings.Contains(tt.holds, w.Path) {
					t.Errorf("%s: holds programs %v", w.Path, w.Holds)
				}
				if p := c.Analyse[len(c.Analyse)-1]; w.Maps && !p.Loads {
					t.Errorf("%+v loads nothing", p)
				}
				if len(w.Origins) == 0 || w.Phase == "" {
					t.Errorf("%s has no origin or phase", w.Path)
				}
			}
		})
	}
}

func entry(d *declared.Declared) { d.Process.Args = []string{"/e.sh"} }

func TestWritablePhase(t *testing.T) {
	c, err := derive(t, base().with(tree{"/etc/x/f": "data", "/e.sh": "#!/bin/sh\n> /etc/x/f\nexec sleep 1\n"}), image("/e.sh"))
	must(t, err)
	w := writable(c, "/etc/x")
	if w == nil || w.Phase != record.Starting || w.Origins[0].At != "/e.sh:2" || w.Origins[0].Source != record.FromScript {
		t.Errorf("got %+v", w)
	}
}
