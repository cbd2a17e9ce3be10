package catalogue

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Programs that people log in with: what they run then is the shell of their
// account and whatever it is told.

// sshd reads sshd_config: for each keyword the first value counts, and Match
// blocks override what stands above them. Only a ForceCommand for everybody
// says what is run; internal-sftp is no program.
func sshd(r Run) []Fact {
	files := r.configs([]string{"-f"}, "/etc/ssh/sshd_config")
	c := &sshdConfig{r: r}
	for _, f := range files {
		c.read(f, 0)
	}
	switch {
	case len(r.option("-o")) > 0:
		return []Fact{{Opens: "sshd gives a shell to who logs in, unless -o says otherwise"}}
	case c.forced == "" || c.match && c.loose:
		return []Fact{{Opens: "sshd gives a shell to who logs in: no ForceCommand holds for everybody", At: slices.Concat(files, []string{""})[0]}}
	}
	var out []Fact
	for _, command := range c.commands {
		if word, _, _ := strings.Cut(command.text, " "); word == "internal-sftp" {
			continue
		}
		for _, shell := range loginShells(r) {
			out = append(out, Fact{Line: command.text, Shell: shell, At: command.at, Source: "sshd_config(5): ForceCommand is run by the user's login shell"})
		}
	}
	return out
}

type sshdConfig struct {
	r        Run
	forced   string
	match    bool // in a Match block
	loose    bool // one of them lifts the command again
	commands []struct{ text, at string }
	files    int
}

func (c *sshdConfig) read(name string, depth int) {
	if c.files++; depth > 4 || c.files > maxFiles {
		c.loose, c.match = true, true
		return
	}
	for n, line := range lines(c.r.Text(name)) {
		if c.files > maxFiles {
			return
		}
		key, value := cutField(strings.TrimSpace(strings.Replace(line, "=", " ", 1)))
		value = strings.Trim(strings.TrimSpace(value), `"`)
		switch strings.ToLower(key) {
		case "include":
			for _, g := range strings.Fields(value) {
				if !path.IsAbs(g) {
					g = path.Join("/etc/ssh", g)
				}
				for _, f := range c.r.Glob(g) {
					c.read(f, depth+1)
				}
			}
		case "match":
			c.match = true
		case "forcecommand":
			switch {
			case strings.EqualFold(value, "none"):
				c.loose = true
			case len(c.commands) < 64:
				c.commands = append(c.commands, struct{ text, at string }{value, fmt.Sprintf("%s:%d", name, n)})
			default:
				c.loose = true
			}
			if !c.match && c.forced == "" {
				c.forced = value
			}
		}
	}
}

// loginShells are those of the accounts that can log in.
func loginShells(r Run) []string {
	var out []string
	for line := range strings.SplitSeq(r.Text("/etc/passwd"), "\n") {
		f := strings.Split(strings.TrimSpace(line), ":")
		if len(f) < 7 || f[0] == "sync" {
			continue
		}
		shell := f[6]
		if shell == "" {
			shell = "/bin/sh"
		}
		if base := path.Base(shell); base == "nologin" || base == "false" || slices.Contains(out, shell) || !r.Program(shell) || len(out) >= 16 {
			continue
		}
		out = append(out, shell)
	}
	return out
}

// dropbear has one command for everybody with -c.
func dropbear(r Run) []Fact {
	var out []Fact
	for _, command := range r.option("-c") {
		for _, shell := range loginShells(r) {
			out = append(out, Fact{Line: command, Shell: shell, Source: "dropbear(8): -c"})
		}
	}
	if out == nil {
		out = []Fact{{Opens: "dropbear gives a shell to who logs in: it has no -c"}}
	}
	return out
}

// login is for programs that do nothing but to let people log in.
func login(r Run) []Fact {
	return []Fact{{Opens: path.Base(r.Path) + " gives a shell to who logs in"}}
}

// pam reads the stack of the PAM service that has the program's name.
func pam(r Run) []Fact {
	p := &pamStack{r: r, seen: map[string]bool{}}
	p.read(path.Join("/etc/pam.d", path.Base(r.Path)), 0)
	return p.facts
}

type pamStack struct {
	r     Run
	seen  map[string]bool
	facts []Fact
}

func (p *pamStack) read(file string, depth int) {
	if p.seen[file] || depth > 8 || len(p.seen) > 64 {
		return
	}
	p.seen[file] = true
	for n, line := range lines(p.r.Text(file)) {
		f := strings.Fields(line)
		if len(f) >= 2 && f[0] == "@include" {
			p.read(path.Join(path.Dir(file), f[1]), depth+1)
			continue
		}
		if len(f) > 2 && strings.HasPrefix(f[1], "[") { // [value=action …]
			for len(f) > 3 && !strings.HasSuffix(f[1], "]") {
				f = slices.Delete(f, 1, 2)
			}
		}
		if len(f) < 3 {
			continue
		}
		if f[1] == "include" || f[1] == "substack" {
			p.read(path.Join(path.Dir(file), f[2]), depth+1)
			continue
		}
		at := fmt.Sprintf("%s:%d", file, n)
		switch path.Base(f[2]) {
		case "pam_motd.so":
			if slices.Contains(f[3:], "noupdate") || len(p.r.Glob("/etc/update-motd.d")) == 0 {
				continue
			}
			p.facts = append(p.facts, Fact{Line: motd, At: at, Source: "pam_motd(8) of Debian and Ubuntu: update-motd(5)"})
		case "pam_exec.so":
			args := f[3:]
			for len(args) > 0 && !path.IsAbs(args[0]) {
				args = args[1:]
			}
			if len(args) > 0 {
				p.facts = append(p.facts, Fact{Argv: args, At: at, Source: "pam_exec(8)"})
			}
		}
	}
}

const motd = "/usr/bin/env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin run-parts --lsbsysinit /etc/update-motd.d > /run/motd.dynamic.new"
