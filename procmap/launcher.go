package procmap

import (
	"path"
	"slices"
	"strings"
)

// launcher is the option grammar of a program that runs another one: enough of
// it to find where the other one's command line starts.
type launcher struct {
	short  string   // one-letter options that take a value
	long   []string // long options that take a value as the next argument
	skip   int      // operands before the command
	assign bool     // NAME=VALUE operands before the command
	split  string   // option whose value is a command line: env -S
	// command is the option whose value is a shell command: su -c.
	command []string
	// shell: without a command it starts the user's shell.
	shell bool
	// stays: it remains as the parent of what it runs.
	stays bool
	// permute: options may follow operands (su user -c …).
	permute bool
	// program options name the program, "--" starts its arguments (start-stop-daemon).
	program []string
	// detached: what it runs outlives it, or runs any number of times.
	many bool
	// daemon: what it runs lives on in the background.
	daemon bool
	// as are the options whose value is the user that the command runs as; ""
	// is the first of the skipped operands.
	as []string
	// raises: it is setuid, and without a user it changes to root.
	raises bool
	// root: it makes calls of its own, besides changing to a user, that may need root.
	root bool
}

// launchers by the name of the program. Sources: each program's own manual
// page or usage text.
var launchers = map[string]launcher{
	"env":     {short: "uCa", long: []string{"--unset", "--chdir", "--argv0"}, assign: true, split: "S"},
	"nice":    {short: "n", long: []string{"--adjustment"}},
	"ionice":  {short: "cnpPu", long: []string{"--class", "--classdata", "--pid"}},
	"chrt":    {short: "TPD", long: []string{"--sched-runtime", "--sched-period", "--sched-deadline"}, skip: 1},
	"taskset": {skip: 1},
	"numactl": {short: "iNmlCpPo", long: []string{"--interleave", "--membind", "--cpunodebind", "--physcpubind", "--preferred"}},
	"nohup":   {}, "setsid": {}, "catchsegv": {}, "unbuffer": {},
	"stdbuf":  {short: "ioe", long: []string{"--input", "--output", "--error"}},
	"timeout": {short: "ks", long: []string{"--kill-after", "--signal"}, skip: 1, stays: true},
	"time":    {short: "fo", long: []string{"--format", "--output"}, stays: true},
	"flock":   {short: "wEc", long: []string{"--timeout", "--conflict-exit-code", "--command"}, skip: 1, command: []string{"-c", "--command"}, stays: true, permute: false},

	"tini": {short: "pe", stays: true}, "tini-static": {short: "pe", stays: true},
	"docker-init": {short: "pe", stays: true}, "podman-init": {short: "pe", stays: true},
	"catatonit": {stays: true},
	"dumb-init": {short: "r", long: []string{"--rewrite"}, stays: true},

	"gosu": {skip: 1, as: []string{""}}, "su-exec": {skip: 1, as: []string{""}},
	"setuidgid": {skip: 1, as: []string{""}}, "s6-setuidgid": {skip: 1, as: []string{""}},
	"s6-envuidgid": {skip: 1}, "s6-applyuidgid": {short: "ugG", as: []string{"-u"}}, "envdir": {skip: 1}, "s6-envdir": {skip: 1},
	"softlimit": {short: "acdflmnoprst"}, "s6-softlimit": {short: "acdflmnoprstHh"},
	"chpst": {short: "uUbe/nlLmdopfcrst", as: []string{"-u"}},
	"setpriv": {as: []string{"--reuid", "--ruid", "--euid"}, long: []string{
		"--reuid", "--regid", "--ruid", "--euid", "--rgid", "--egid", "--groups", "--inh-caps", "--ambient-caps",
		"--bounding-set", "--securebits", "--pdeathsig", "--selinux-label", "--apparmor-profile", "--landlock-access",
		"--landlock-rule", "--seccomp-filter",
	}},
	"chroot":  {long: []string{"--userspec", "--groups"}, skip: 1, shell: true, as: []string{"--userspec"}, root: true},
	"prlimit": {short: "po", long: []string{"--pid", "--output"}},

	"sudo": {short: "ugChpTrtDRU", long: []string{"--user", "--group", "--close-from", "--host", "--prompt",
		"--command-timeout", "--role", "--type", "--chdir", "--chroot", "--other-user"}, assign: true, shell: true, stays: true,
		as: []string{"-u", "--user"}, raises: true, root: true},
	"doas": {short: "uC", shell: true, as: []string{"-u"}, raises: true, root: true},
	"su": {short: "csgGwT", long: []string{"--command", "--session-command", "--shell", "--group", "--supp-group", "--whitelist-environment"},
		command: []string{"-c", "--command", "--session-command"}, shell: true, stays: true, permute: true, raises: true, root: true},
	"runuser": {short: "ucsgGwT", long: []string{"--user", "--command", "--session-command", "--shell", "--group", "--supp-group", "--whitelist-environment"},
		command: []string{"-c", "--command", "--session-command"}, shell: true, stays: true, permute: true, root: true},
	"start-stop-daemon": {short: "xapnugcsrkdPNIRKt", program: []string{"--startas", "-a", "--exec", "-x"},
		long: []string{"--exec", "--startas", "--pidfile", "--name", "--user", "--group", "--chuid", "--signal", "--retry", "--chroot",
			"--chdir", "--procsched", "--iosched", "--umask", "--pid", "--ppid", "--output"}, stays: true,
		as: []string{"-c", "--chuid"}, root: true},
	"spawn-fcgi": {short: "fadpsMuUgGbFcCPR", command: []string{"-f"}, daemon: true, as: []string{"-u"}, root: true},
	"xargs": {short: "EILPnsad", long: []string{"--arg-file", "--delimiter", "--max-lines", "--max-args", "--max-procs", "--max-chars", "--replace", "--process-slot-var"},
		stays: true, many: true},
	"watch": {short: "n", long: []string{"--interval"}, stays: true, many: true},
}

// multicall programs take their name, or their first argument, as the applet.
func multicall(base string) bool {
	return base == "busybox" || base == "busybox.static" || base == "toybox" || base == "coreutils"
}

var shells = []string{"sh", "bash", "dash", "ash", "zsh", "ksh", "ksh93", "mksh", "lksh", "pdksh", "rbash", "fish", "csh", "tcsh", "yash", "oksh", "posh", "hush", "static-sh", "bash-static", "zsh5"}

func isShell(base string) bool { return slices.Contains(shells, strings.TrimPrefix(base, "-")) }

// open tells whether a program can be made to run anything by its arguments:
// none of these is allowed to a serving program on the word of a string alone.
func openEnded(o *object) bool {
	base := path.Base(o.path)
	_, launches := launchers[base]
	return isShell(base) || isInterpreter(base) || multicall(base) || launches || base == "find" || base == "awk" || base == "gawk" || base == "mawk"
}

// interpreter is the option grammar of a language's interpreter.
type interpreter struct {
	short  string   // options that take a value
	long   []string // long options that take a value
	code   string   // options whose value is the program's text
	source string   // options whose value names the program (module, file) or a mode that needs none
}

var interpreters = map[string]interpreter{
	"python":  {short: "WXQ", code: "c", source: "m"},
	"pypy":    {short: "WX", code: "c", source: "m"},
	"perl":    {short: "I", code: "eE"},
	"ruby":    {short: "IrCEK", code: "e"},
	"node":    {short: "rC", long: []string{"--require", "--import", "--loader", "--experimental-loader", "--conditions", "--eval", "--print", "--env-file"}, code: "ep"},
	"nodejs":  {short: "rC", long: []string{"--require", "--import", "--loader"}, code: "ep"},
	"php":     {short: "cdzt", code: "rBRE", source: "fFS"},
	"lua":     {short: "l", code: "e"},
	"luajit":  {short: "ljO", code: "eb"},
	"tclsh":   {},
	"Rscript": {code: "e"},
	"guile":   {short: "LClxe", code: "c", source: "s"},
	"escript": {},
}

// interpreterOf finds the grammar for a program's name with any version behind
// it: python3.11, lua5.4, php8.2, perl5.36.0.
func interpreterOf(base string) (interpreter, bool) {
	name := strings.TrimRight(base, "0123456789.-")
	if name == "tcl" {
		name = "tclsh"
	}
	i, ok := interpreters[name]
	return i, ok
}

func isInterpreter(base string) bool { _, ok := interpreterOf(base); return ok }

// consoles are programs of an interpreter that read commands from whoever is there.
var consoles = []string{"irb", "pry", "ipython", "ipython3", "bpython", "ptpython", "psysh", "rails-console"}

// launch is what a launcher's command line says.
type launch struct {
	argv   []string          // the command it runs
	shell  string            // or a command line for the user's shell
	login  bool              // or the user's shell with nothing to do
	user   string            // whose shell, where known
	with   string            // shell named by an option
	vars   map[string]string // set for the command
	clear  bool              // env -i
	noneOf bool              // runs nothing
	as     []string          // the users it names to change to
}

// parse applies the grammar to the arguments after the program's name.
func (l launcher) parse(args []string) launch {
	var (
		out      launch
		operands []string
		program  string
		commands []string
	)
	value := func(opt, v string) {
		if slices.Contains(l.as, opt) {
			out.as = append(out.as, v)
		}
		switch {
		case slices.Contains(l.command, opt):
			commands = append(commands, v)
		case slices.Contains(l.program, opt):
			if program == "" || opt == l.program[0] || opt == l.program[1] {
				program = v
			}
		case l.permute && (opt == "-s" || opt == "--shell"):
			out.with = v
		case l.permute && (opt == "-u" || opt == "--user"):
			out.user = v
		}
	}
	i := 0
	dashes := false
scan:
	for ; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			dashes = true
			i++
			break scan
		case strings.HasPrefix(a, "--"):
			name, v, has := strings.Cut(a, "=")
			switch {
			case l.assign && (name == "--ignore-environment"):
				out.clear = true
			case l.split != "" && name == "--split-string":
				if !has && i+1 < len(args) {
					i++
					v = args[i]
				}
				args = slices.Concat(args[:i+1], splitString(v), args[i+1:])
			case has:
				value(name, v)
			case slices.Contains(l.long, name) && i+1 < len(args):
				i++
				value(name, args[i])
			}
		case len(a) > 1 && a[0] == '-' && a != "-":
			for j := 1; j < len(a); j++ {
				c := a[j : j+1]
				if l.split != "" && c == l.split {
					v := a[j+1:]
					if v == "" && i+1 < len(args) {
						i++
						v = args[i]
					}
					args = slices.Concat(args[:i+1], splitString(v), args[i+1:])
					break
				}
				if l.assign && c == "i" {
					out.clear = true
				}
				if !strings.Contains(l.short, c) {
					continue
				}
				v := a[j+1:]
				if v == "" && i+1 < len(args) {
					i++
					v = args[i]
				}
				value("-"+c, v)
				break
			}
		case a == "-" && l.assign:
			out.clear = true
		case a == "-":
		case l.assign && strings.Index(a, "=") > 0:
			name, v, _ := strings.Cut(a, "=")
			if out.vars == nil {
				out.vars = map[string]string{}
			}
			out.vars[name] = v
		case l.permute:
			operands = append(operands, a)
		default:
			break scan
		}
	}
	rest := args[min(i, len(args)):]
	if l.assign { // NAME=VALUE after "--" too
		for len(rest) > 0 && strings.Index(rest[0], "=") > 0 && !strings.HasPrefix(rest[0], "/") {
			name, v, _ := strings.Cut(rest[0], "=")
			if out.vars == nil {
				out.vars = map[string]string{}
			}
			out.vars[name] = v
			rest = rest[1:]
		}
	}
	switch {
	case len(l.program) > 0:
		if program == "" {
			out.noneOf = true
			return out
		}
		if !dashes {
			rest = nil
		}
		out.argv = append([]string{program}, rest...)
		return out
	case len(commands) > 0:
		out.shell = strings.Join(commands, "\n")
		if l.permute && len(operands) > 0 {
			out.user = operands[0]
		}
		return out
	case l.permute: // su, runuser without -c
		if out.user != "" { // runuser -u USER [--] command
			out.argv = append(operands, rest...)
		} else {
			if len(operands) > 0 {
				out.user = operands[0]
			}
			// What follows are arguments of the shell: su user -- -c '…', su user script.
			out.argv = nil
			if shellArgs := append(operands[min(1, len(operands)):], rest...); len(shellArgs) > 0 {
				out.login = true
				out.argv = shellArgs
				return out
			}
		}
	default:
		if len(rest) < l.skip {
			out.noneOf = true
			return out
		}
		out.argv = rest[l.skip:]
		if l.skip > 0 && slices.Contains(l.as, "") {
			out.as = append(out.as, rest[0])
		}
		// timeout -k 5 10 -- cmd; flock /lock -c cmd
		if l.skip > 0 && len(out.argv) > 0 && out.argv[0] == "--" {
			out.argv = out.argv[1:]
		}
		if l.skip > 0 && len(l.command) > 0 && len(out.argv) > 1 && slices.Contains(l.command, out.argv[0]) {
			out.shell, out.argv = out.argv[1], nil
			return out
		}
	}
	if len(out.argv) == 0 {
		out.argv = nil
		out.login, out.noneOf = l.shell, !l.shell
	}
	return out
}

// splitString splits the argument of env -S: quotes and backslashes as in a
// shell, variables are not known here.
func splitString(s string) []string {
	var (
		out   []string
		cur   strings.Builder
		has   bool
		quote byte
	)
	for i := 0; i < len(s) && len(out) < maxFields; i++ {
		c := s[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '\'' || c == '"'):
			quote, has = c, true
		case c == '\\' && i+1 < len(s):
			i++
			switch s[i] {
			case '_':
				if quote == 0 {
					if has {
						out = append(out, cur.String())
						cur.Reset()
						has = false
					}
					continue
				}
				cur.WriteByte(' ')
			case 'c':
				i = len(s)
				continue
			default:
				cur.WriteByte(s[i])
			}
			has = true
		case quote == 0 && (c == ' ' || c == '\t' || c == '\n' || c == '\r' || c == '\v' || c == '\f'):
			if has {
				out = append(out, cur.String())
				cur.Reset()
				has = false
			}
		case quote == 0 && c == '#' && !has && len(out) == 0 && cur.Len() == 0:
			return out
		case c == '$' && quote != '\'' && i+1 < len(s) && s[i+1] == '{':
			if j := strings.IndexByte(s[i:], '}'); j > 0 {
				i += j
			}
			cur.WriteString(unknown)
			has = true
		default:
			cur.WriteByte(c)
			has = true
		}
	}
	if has {
		out = append(out, cur.String())
	}
	return out
}

// shellCommand is what a shell's own command line says.
type shellCommand struct {
	code   string // -c
	inline bool
	file   string
	stdin  bool     // reads commands from standard input
	args   []string // $0 is args[0] for -c; else "$@" starts at args[0]
}

// parseShell reads a shell's arguments (POSIX sh, bash, ksh, zsh, ash).
func parseShell(args []string) shellCommand {
	var s shellCommand
	i := 0
	var interactive bool
scan:
	for ; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--" || a == "-":
			i++
			break scan
		case strings.HasPrefix(a, "--"):
			if a == "--rcfile" || a == "--init-file" {
				i++
			}
		case len(a) > 1 && (a[0] == '-' || a[0] == '+'):
			for _, c := range a[1:] {
				switch c {
				case 'c':
					s.inline = s.inline || a[0] == '-'
				case 's':
					s.stdin = true
				case 'i':
					interactive = true
				case 'o', 'O':
					i++
				}
			}
		default:
			break scan
		}
	}
	rest := args[min(i, len(args)):]
	switch {
	case s.inline && len(rest) == 0:
		return s // sh: -c requires an argument
	case s.inline:
		s.code, s.args = rest[0], rest[1:]
		s.stdin = false
	case s.stdin || len(rest) == 0:
		s.stdin, s.args = true, rest
	default:
		s.file, s.args = rest[0], rest[1:]
		s.stdin = false
	}
	if interactive && s.file == "" && !s.inline {
		s.stdin = true
	}
	return s
}

// interpreted is what an interpreter's command line says.
type interpreted struct {
	code  string
	file  string
	given bool // there is a program: file, module or text
	stays bool // -i: interactive after it
}

func (in interpreter) parse(args []string) interpreted {
	var out interpreted
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			if i+1 < len(args) && !out.given {
				out.file, out.given = args[i+1], true
			}
			return out
		case a == "-":
			return out
		case strings.HasPrefix(a, "--"):
			name, v, has := strings.Cut(a, "=")
			if !has && slices.Contains(in.long, name) && i+1 < len(args) {
				i++
				v = args[i]
			}
			switch name {
			case "--eval", "--print", "--run":
				out.code, out.given = v, true
			case "--version", "--help":
				out.given = true
			case "--interactive":
				out.stays = true
			}
		case len(a) > 1 && a[0] == '-':
			for j := 1; j < len(a); j++ {
				c := a[j : j+1]
				isCode, isSource := strings.Contains(in.code, c), strings.Contains(in.source, c)
				if !isCode && !isSource && !strings.Contains(in.short, c) {
					switch c {
					case "i":
						out.stays = true
					case "V", "v", "h":
						out.given = out.given || len(a) == 2
					}
					continue
				}
				v := a[j+1:]
				if v == "" && i+1 < len(args) {
					i++
					v = args[i]
				}
				switch {
				case isCode:
					out.code, out.given = out.code+"\n"+v, true
				case isSource:
					out.given = true
					if c == "f" || c == "s" {
						out.file = v
					}
				}
				if isSource && c == "m" {
					return out
				}
				break
			}
		default:
			if !out.given {
				out.file, out.given = a, true
			}
			return out
		}
	}
	return out
}
