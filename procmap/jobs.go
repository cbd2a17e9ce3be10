package procmap

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// Some programs are there to run command lines that the image's own files hold:
// a line of a crontab is a declaration like one of a script. It holds for as long
// as the program that reads the file.

const (
	maxJobFiles = 256
	maxJobs     = 512
)

// job is a command line in a file.
type job struct {
	command string
	line    int
	shell   string            // "": /bin/sh
	vars    map[string]string // set above it in the file
}

// jobFile is where a program finds jobs, as globs, and how they are written there.
type jobFile struct {
	globs []string
	parse func(text string) []job
}

// jobFiles by the program that reads them. Sources: crontab(5) of cron and of
// busybox, lighttpd's documentation of its configuration (include_shell).
var jobFiles = map[string][]jobFile{
	"cron":     cronFiles,
	"crond":    cronFiles,
	"lighttpd": {{[]string{"/etc/lighttpd/*.conf", "/etc/lighttpd/*/*.conf"}, includedByShell}},
}

var cronFiles = []jobFile{
	{[]string{"/etc/crontab", "/etc/cron.d/*"}, func(text string) []job { return crontab(text, true) }},
	{[]string{"/var/spool/cron/crontabs/*", "/var/spool/cron/*", "/etc/crontabs/*"}, func(text string) []job { return crontab(text, false) }},
}

// jobs follows what a program's job files say.
func (b *builder) jobs(base string, r *run) {
	if r.helper > 0 {
		return
	}
	files, found := 0, 0
	for _, f := range jobFiles[base] {
		for _, g := range f.globs {
			for _, name := range b.view.glob(strings.ReplaceAll(g, "*", glob), "/", maxJobFiles) {
				o, err := b.view.stat(name)
				if err != nil || !o.regular() {
					continue
				}
				if files++; files > maxJobFiles {
					b.note(record.Processes, "%s reads more than %d files with command lines: the rest were left out", base, maxJobFiles)
					return
				}
				text, err := o.root.ReadFile(o.name, maxSource)
				if err != nil {
					b.note(record.Processes, "read %s: %v", o.path, err)
					continue
				}
				for _, j := range f.parse(string(text)) {
					if found++; found > maxJobs {
						b.note(record.Processes, "%s runs more than %d command lines: the rest were left out", base, maxJobs)
						return
					}
					b.job(j, o.path, r)
				}
			}
		}
	}
}

func (b *builder) job(j job, file string, r *run) {
	shell := j.shell
	if shell == "" {
		shell = "/bin/sh"
	}
	c := r.child([]string{shell, "-c", j.command}, record.Origin{Source: record.FromScript, At: fmt.Sprintf("%s:%d", file, j.line), Text: clip(j.command, 120)})
	c.chain, c.serves, c.input = false, false, nil
	if len(j.vars) > 0 {
		c.vars = maps.Clone(c.vars)
		if c.vars == nil {
			c.vars = map[string]value{}
		}
		for name, v := range j.vars {
			c.vars[name] = scalar(v)
		}
	}
	if err := b.follow(c); err != nil {
		b.note(record.Processes, "%v", err)
	}
}

var (
	cronVariable = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)$`)
	cronTime     = regexp.MustCompile(`^[-0-9*/,A-Za-z~]+$`)
)

// crontab reads the command lines of one. withUser is true where a column before
// the command names who runs it. What follows a percent sign is the command's input.
func crontab(text string, withUser bool) []job {
	// cron starts jobs with a path of its own.
	vars := map[string]string{"PATH": "/usr/bin:/bin"}
	var out []job
	n := 0
	for line := range strings.SplitSeq(text, "\n") {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		if m := cronVariable.FindStringSubmatch(line); m != nil {
			vars = maps.Clone(vars)
			vars[m[1]] = strings.Trim(strings.TrimSpace(m[2]), `"'`)
			continue
		}
		fields := 5
		if line[0] == '@' {
			fields = 1
		}
		ok := true
		for i := range fields {
			word, rest := cutField(line)
			ok = ok && (i == 0 && fields == 1 || cronTime.MatchString(word))
			line = rest
		}
		if withUser {
			_, line = cutField(line)
		}
		if line = beforePercent(line); !ok || line == "" {
			continue
		}
		j := job{command: line, line: n, vars: vars}
		if s := vars["SHELL"]; path.IsAbs(s) {
			j.shell = s
		}
		out = append(out, j)
	}
	return out
}

func cutField(s string) (word, rest string) {
	if i := strings.IndexAny(s, " \t"); i >= 0 {
		return s[:i], strings.TrimLeft(s[i:], " \t")
	}
	return s, ""
}

func beforePercent(s string) string {
	var out []byte
	for i := 0; i < len(s); i++ {
		switch {
		case s[i] == '\\' && i+1 < len(s) && s[i+1] == '%':
			i++
			out = append(out, '%')
		case s[i] == '%':
			return string(out)
		default:
			out = append(out, s[i])
		}
	}
	return string(out)
}

var includeShell = regexp.MustCompile(`^\s*include_shell\s+"((?:[^"\\]|\\.)*)"`)

// includedByShell reads lighttpd's configuration: it runs the commands whenever
// it reads it, at the start and when it is told to start anew.
func includedByShell(text string) []job {
	var out []job
	lines := slices.Collect(strings.SplitSeq(text, "\n"))
	for i, line := range lines {
		if m := includeShell.FindStringSubmatch(line); m != nil {
			out = append(out, job{command: strings.ReplaceAll(m[1], `\"`, `"`), line: i + 1})
		}
	}
	return out
}
