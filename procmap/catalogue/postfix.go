package catalogue

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Postfix: postfix(1) runs postfix-script with what main.cf says in the
// environment; the script becomes master(8), which runs the programs that
// master.cf names; pipe(8) and spawn(8) run what their argv says, local(8) what
// aliases, .forward files and main.cf say.

// postfixDirs are the parameters that postfix(1) puts into the environment, with
// the values that packages build in: Debian's and, behind them, Postfix' own.
var postfixDirs = map[string][]string{
	"command_directory": {"/usr/sbin"},
	"daemon_directory":  {"/usr/lib/postfix/sbin", "/usr/libexec/postfix", "/usr/lib/postfix"},
	"config_directory":  {"/etc/postfix"},
	"meta_directory":    {"/etc/postfix"},
	"shlib_directory":   {"/usr/lib/postfix", "no"},
	"queue_directory":   {"/var/spool/postfix"},
	"data_directory":    {"/var/lib/postfix"},
	"mail_owner":        {"postfix"},
	"setgid_group":      {"postdrop"},
	"sendmail_path":     {"/usr/sbin/sendmail"},
	"mailq_path":        {"/usr/bin/mailq"},
	"newaliases_path":   {"/usr/bin/newaliases"},
	"MAIL_LOGTAG":       {"postfix"},
}

// mainCF reads main.cf: a line that begins with a blank goes on.
func mainCF(r Run) (dir string, settings map[string]string) {
	dir = "/etc/postfix"
	for _, v := range append([]string{r.Env["MAIL_CONFIG"]}, r.option("-c")...) {
		if path.IsAbs(v) && !strings.Contains(v, Unknown) {
			dir = v
		}
	}
	settings = map[string]string{}
	for name, values := range postfixDirs {
		settings[name] = values[0]
		for _, v := range values {
			if len(values) > 1 && path.IsAbs(v) && len(r.Glob(path.Join(v, "*"))) > 0 && (name != "daemon_directory" || r.Program(path.Join(v, "master"))) {
				settings[name] = v
				break
			}
		}
	}
	settings["config_directory"], settings["alias_database"] = dir, "hash:/etc/aliases"
	for _, e := range folded(r.Text(path.Join(dir, "main.cf"))) {
		if k, v, ok := strings.Cut(e.text, "="); ok {
			settings[strings.TrimSpace(k)] = strings.TrimSpace(v)
		}
	}
	for name := range postfixDirs {
		settings[name] = resolve(settings[name], settings)
	}
	for _, name := range []string{"alias_maps", "alias_database", "mailbox_command", "maillog_file"} {
		settings[name] = resolve(settings[name], settings)
	}
	return dir, settings
}

// resolve replaces the names of other parameters in a value; what is too deep
// or too long stays as it is.
func resolve(v string, settings map[string]string) string {
	for range 4 {
		left := maxLine
		v = cfValue.ReplaceAllStringFunc(v, func(s string) string {
			x, ok := settings[strings.Trim(s, "${}()")]
			if left -= len(x); !ok || left < 0 {
				return s
			}
			return x
		})
	}
	return v
}

var cfValue = regexp.MustCompile(`\$(\w+|\{\w+\}|\(\w+\))`)

type entry struct {
	text string
	line int
}

// folded joins lines that begin with a blank to the one before.
func folded(text string) []entry {
	var out []entry
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		t := strings.TrimSpace(line)
		switch {
		case t == "" || t[0] == '#':
		case (line[0] == ' ' || line[0] == '\t') && len(out) > 0:
			if e := &out[len(out)-1]; len(e.text) < maxLine {
				e.text += " " + t
			}
		case len(out) < 4*maxFacts:
			out = append(out, entry{t, n})
		}
	}
	return out
}

func postfixCommand(r Run) []Fact {
	_, settings := mainCF(r)
	env := map[string]string{}
	for name := range postfixDirs {
		env[name] = settings[name]
	}
	argv := []string{path.Join(settings["daemon_directory"], "postfix-script")}
	for i := 1; i < len(r.Argv); i++ {
		switch a := r.Argv[i]; {
		case a == "-c" || a == "-D" || a == "-v":
			if a == "-c" {
				i++
			}
		default:
			argv = append(argv, a)
		}
	}
	return []Fact{{Argv: argv, Env: env, Becomes: true}}
}

// postfixSendmail: sendmail(1), also as newaliases and mailq, becomes a program of its own.
func postfixSendmail(r Run) []Fact {
	_, settings := mainCF(r)
	var out []Fact
	for _, name := range []string{"postalias", "postqueue", "postdrop", "postlog"} {
		p := path.Join(settings["command_directory"], name)
		argv := []string{p}
		if name == "postalias" {
			argv = append(argv, "--", Unknown)
		}
		out = append(out, Fact{Argv: argv})
	}
	if base := path.Base(r.Argv[0]); base == "newaliases" || base == "sendmail" { // sendmail -bi
		out = append(out, tables(settings["alias_database"])...)
	}
	// sendmail -bd starts the mail system, sendmail -bs is an smtpd.
	return append(out, Fact{Argv: []string{path.Join(settings["daemon_directory"], "smtpd"), "-S"}})
}

// tables are the files that postalias(1) and postmap(1) make beside a text.
func tables(lists string) []Fact {
	var out []Fact
	for _, list := range strings.FieldsFunc(lists, func(c rune) bool { return c == ',' || c == ' ' || c == '\t' }) {
		kind, name, ok := strings.Cut(list, ":")
		if !ok {
			kind, name = "", list
		}
		if !path.IsAbs(name) || strings.Contains(name, Unknown) || len(out) >= maxFacts {
			continue
		}
		for suffix, kinds := range map[string]string{".db": "hash btree", ".cdb": "cdb", ".lmdb": "lmdb"} {
			if kind == "" || slices.Contains(strings.Fields(kinds), kind) {
				out = append(out, Fact{Write: name + suffix, Alone: true, Source: "postalias(1), postmap(1): FILES"})
			}
		}
	}
	slices.SortFunc(out, func(a, b Fact) int { return strings.Compare(a.Write, b.Write) })
	return out
}

// postfixTables is for postalias and postmap: their operands name the texts.
func postfixTables(r Run) []Fact {
	var out []Fact
	for _, a := range r.Argv[min(1, len(r.Argv)):] {
		if !strings.HasPrefix(a, "-") {
			out = append(out, tables(a)...)
		}
	}
	return out
}

func postfixMaster(r Run) []Fact {
	dir, settings := mainCF(r)
	file := path.Join(dir, "master.cf")
	daemons := settings["daemon_directory"]
	var out []Fact
	for _, e := range folded(r.Text(file)) {
		f := strings.Fields(e.text)
		if len(f) < 8 {
			continue
		}
		at := fmt.Sprintf("%s:%d", file, e.line)
		program := f[7]
		if !path.IsAbs(program) {
			program = path.Join(daemons, program)
		}
		if r.Program(program) {
			out = append(out, Fact{Argv: []string{program, Unknown}, At: at, Serves: true})
		}
		if _, command, ok := strings.Cut(e.text, " argv="); ok && (f[7] == "pipe" || f[7] == "spawn") {
			argv := split(command)
			for i, a := range argv { // pipe(8): macros
				if i > 0 && strings.Contains(a, "$") {
					argv[i] = Unknown
				}
			}
			if len(argv) == 0 || path.IsAbs(argv[0]) && !r.Program(argv[0]) {
				continue // Debian's master.cf has transports for programs that are not there
			}
			out = append(out, Fact{Argv: argv, At: at, Source: f[7] + "(8): argv"})
		}
	}
	main := path.Join(dir, "main.cf")
	if v := settings["mailbox_command"]; v != "" {
		out = append(out, Fact{Line: v, At: main, Source: "local(8): mailbox_command"})
	}
	for _, list := range strings.FieldsFunc(cmp.Or(settings["alias_maps"], "hash:/etc/aliases"), func(c rune) bool { return c == ',' || c == ' ' }) {
		if _, name, ok := strings.Cut(list, ":"); ok && path.IsAbs(name) {
			out = append(out, aliases(r, name)...)
		}
	}
	// Where it keeps the queue and, for chrooted daemons, copies of files.
	for _, name := range []string{"queue_directory", "data_directory"} {
		out = append(out, Fact{Write: settings[name], At: main, Source: "postconf(5): " + name})
	}
	if v := settings["maillog_file"]; path.IsAbs(v) {
		out = append(out, Fact{Write: path.Dir(v), At: main, Source: "postlogd(8): maillog_file"})
	}
	return out[:min(len(out), maxFacts)]
}

// aliases reads aliases(5): "name: |command" and "name: "|command with arguments"".
func aliases(r Run, name string) []Fact {
	var out []Fact
	for _, e := range folded(r.Text(name)) {
		_, values, ok := strings.Cut(e.text, ":")
		if !ok {
			continue
		}
		for _, m := range piped.FindAllStringSubmatch(values, 16) {
			out = append(out, Fact{Line: strings.TrimSpace(cmp.Or(m[1], m[2])), At: fmt.Sprintf("%s:%d", name, e.line), Source: "aliases(5)"})
		}
	}
	return out
}

var piped = regexp.MustCompile(`"\|([^"]+)"|(?:^|[\s,])\|([^\s,"]+)`)
