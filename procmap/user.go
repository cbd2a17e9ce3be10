package procmap

import (
	"slices"
	"strconv"
	"strings"

	"github.com/declarun/declarun/shim/declared"
)

// Whose privileges a run has. Changing all of its user IDs from root's to
// another's takes a process's capabilities away, and an execve by a user other
// than root gives none but ambient ones and those of the file
// (capabilities(7)). Engines give no ambient capabilities; what a bare bundle
// gives is its own affair, so that nothing is concluded from its user.

// user is whom the engine starts the declared process as.
func (b *builder) user() (uid string, unprivileged bool) {
	id := b.d.Process.UID
	return strconv.FormatUint(uint64(id), 10), id != 0 && b.d.Engine != declared.Bundle
}

// credentials are those of what a launcher runs. What is not understood leaves
// the privileges that there were, and the user unknown.
func (b *builder) credentials(base string, l launcher, in launch, args []string, r *run) (uid string, unprivileged bool) {
	targets := in.as
	if l.permute { // su, runuser
		targets = []string{in.user}
	}
	if (l.permute || l.raises) && (len(targets) == 0 || targets[0] == "") {
		targets = []string{"root"}
	}
	switch base {
	case "setpriv":
		// --ruid and --euid each change one of them only.
		odd := func(a string) bool { return strings.HasPrefix(a, "--ruid") || strings.HasPrefix(a, "--euid") }
		if slices.ContainsFunc(args, odd) {
			return "", r.unprivileged
		}
		for i, a := range args {
			// getopt_long(3) takes abbreviations.
			if name, v, has := strings.Cut(a, "="); strings.HasPrefix(name, "--am") && len(name) <= len("--ambient-caps") {
				if !has && i+1 < len(args) {
					v = args[i+1]
				}
				if v != "-all" {
					return "", false
				}
			}
		}
	case "chroot": // its users are those of the other root
		if len(targets) > 0 {
			return "", r.unprivileged
		}
	case "s6-applyuidgid": // -U: what the environment says
		if slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "-") && strings.Contains(a, "U") }) {
			return "", r.unprivileged
		}
	case "start-stop-daemon": // --user changes to a user (OpenRC), or looks for its processes (Debian)
		of := func(a string) bool { return strings.HasPrefix(a, "-u") || strings.HasPrefix(a, "--user") }
		if len(targets) == 0 && slices.ContainsFunc(args, of) {
			return "", r.unprivileged
		}
	}
	if len(targets) == 0 {
		return r.uid, r.unprivileged
	}
	uid = b.uidOf(targets[len(targets)-1])
	switch {
	case uid == "0":
		return uid, false
	case uid == "":
		return "", r.unprivileged && !l.raises
	}
	return uid, true
}

// uidOf gives the number of a launcher's USER[:GROUP], empty if it is not known.
func (b *builder) uidOf(spec string) string {
	if !known(spec) {
		return ""
	}
	// chpst writes numbers as ":UID:GID", sudo as "#UID".
	name, _, _ := strings.Cut(strings.TrimLeft(spec, ":#"), ":")
	if n, err := strconv.ParseUint(name, 10, 32); err == nil {
		return strconv.FormatUint(n, 10)
	}
	if name == "" || !b.accountsStay() {
		return ""
	}
	a, ok := b.passwd(func(a account) bool { return a.name == name })
	if !ok {
		return ""
	}
	return strconv.FormatUint(uint64(a.uid), 10)
}

// Programs that change the user database (shadow, Debian's adduser, BusyBox).
var accountPrograms = []string{"useradd", "usermod", "userdel", "adduser", "deluser", "newusers", "vipw"}

// accountsStay tells whether /etc/passwd still says in the container what it
// says now: the root file system of an image is read-only.
func (b *builder) accountsStay() bool {
	const file = "/etc/passwd"
	if b.accounts || !b.d.Image.Known && !b.d.ReadonlyRoot {
		return false
	}
	o, err := b.view.stat(file)
	if err != nil || o.mount != nil && !o.mount.m.ReadOnly {
		return false
	}
	return !slices.ContainsFunc(b.targets, func(t target) bool { return t.path == file || t.path == "/etc" && t.kind == below })
}

// id gives the output of id -u without a user.
func (s *script) id(argv []string, st *state) ([]string, bool) {
	number := false
	for _, a := range argv[1:] {
		switch a {
		case "-u", "--user", "-ru", "-ur":
			number = true
		case "-r", "--real":
		default:
			return nil, false
		}
	}
	if !number || s.r.uid == "" || !known(argv[0]) {
		return nil, false
	}
	for _, search := range searchPaths(st.vars) {
		if s.b.view.lookPath(argv[0], search, st.cwd) == nil {
			return nil, false
		}
	}
	return []string{s.r.uid}, true
}
