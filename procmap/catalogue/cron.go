package catalogue

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"strings"
)

var (
	cronVariable = regexp.MustCompile(`^\s*([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)$`)
	cronTime     = regexp.MustCompile(`^[-0-9*/,A-Za-z~]+$`)
)

// cron reads crontabs: those of the system have a column for the user.
func cron(r Run) []Fact {
	var out []Fact
	for _, g := range []string{"/etc/crontab", "/etc/cron.d/*"} {
		for _, name := range r.Glob(g) {
			out = append(out, crontab(r.Text(name), name, 5, true)...)
		}
	}
	users := append(r.option("-c"), "/var/spool/cron/crontabs", "/var/spool/cron", "/etc/crontabs") // busybox crond -c DIR
	for _, d := range users {
		for _, name := range r.Glob(path.Join(r.abs(d), "*")) {
			out = append(out, crontab(r.Text(name), name, 5, false)...)
		}
	}
	return out[:min(len(out), maxFacts)]
}

// anacron's table has a period, a delay and a name before the command.
func anacron(r Run) []Fact {
	var out []Fact
	for _, name := range r.configs([]string{"-t"}, "/etc/anacrontab") {
		out = append(out, crontab(r.Text(name), name, 3, false)...)
	}
	return out
}

// crontab reads the command lines of one. withUser is true where a column before
// the command names who runs it. What follows a percent sign is the command's input.
func crontab(text, name string, columns int, withUser bool) []Fact {
	vars := map[string]string{"PATH": "/usr/bin:/bin"} // cron starts jobs with a path of its own
	var out []Fact
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
		fields := columns
		if line[0] == '@' && columns == 5 {
			fields = 1
		}
		ok := true
		for i := range fields {
			word, rest := cutField(line)
			ok = ok && (i == 0 && fields == 1 || columns != 5 || cronTime.MatchString(word))
			line = rest
		}
		if withUser {
			_, line = cutField(line)
		}
		if columns == 5 {
			line = beforePercent(line)
		}
		if !ok || line == "" || len(out) >= maxFacts {
			continue
		}
		f := Fact{Line: line, Env: vars, At: fmt.Sprintf("%s:%d", name, n)}
		if s := vars["SHELL"]; path.IsAbs(s) {
			f.Shell = s
		}
		out = append(out, f)
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
