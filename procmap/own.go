package procmap

import (
	"path"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// ownDirs is where a package keeps programs for one program alone, by that
// program's name, relative to the directory above its own (FHS 3.0, 4.6 and 4.7:
// "applications may use a single subdirectory under /usr/lib", /usr/libexec; git
// calls its own git-core).
var ownDirs = []string{"lib/NAME", "libexec/NAME", "lib/NAME-core", "libexec/NAME-core"}

// own enters the programs that lie in a directory named after a program that a
// declaration runs: /usr/sbin/dovecot starts what is in /usr/lib/dovecot, by
// names from its configuration and from its libraries, which are not looked at.
// They are there for nothing else. Scripts are left out, as with everything that
// is not declared by name, and so are directories below.
func (b *builder) own(o *object, r *run) {
	dir, base := path.Split(o.path)
	if r.helper > 0 || !known(base) || !slices.Contains([]string{"bin", "sbin"}, path.Base(dir)) {
		return
	}
	above := path.Dir(path.Clean(dir))
	for _, d := range ownDirs {
		where := path.Join(above, strings.ReplaceAll(d, "NAME", base))
		n := 0
		for _, name := range b.view.names(where, 1000) {
			h, err := b.view.stat(path.Join(where, name))
			if err != nil || strings.Contains(name, ".so") || !h.executable() || h.path == o.path || openEnded(h) || path.Dir(h.path) != where || !b.isELF(h) {
				continue
			}
			if n++; n > 64 {
				b.note(record.Processes, "%s has more than 64 programs: the rest were left out", where)
				break
			}
			b.helper(h, r, record.Origin{Source: record.FromFile, At: o.path, Text: "program of its own directory " + where})
		}
	}
}
