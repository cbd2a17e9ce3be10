package filter

import (
	"cmp"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// ordered gives rules in the order that costs the runtime least at each start,
// the highest number first: libseccomp keeps the calls of a filter in a list by
// number, and walks it from its beginning for the place of each new one (db.c,
// 2.5.4). Rules of one call keep their order. Names that the architecture has
// no number for come last.
func ordered(arch string, rules []specs.LinuxSyscall) []specs.LinuxSyscall {
	type single struct{ nr, rule, name int }
	var all []single
	for i, r := range rules {
		for k, name := range r.Names {
			nr, ok := number(arch, name)
			if !ok {
				nr = -1
			}
			all = append(all, single{nr, i, k})
		}
	}
	slices.SortFunc(all, func(a, b single) int { return cmp.Or(b.nr-a.nr, a.rule-b.rule, a.name-b.name) })
	var out []specs.LinuxSyscall
	for i, s := range all {
		name := rules[s.rule].Names[s.name]
		if i > 0 && all[i-1].rule == s.rule && len(rules[s.rule].Args) == 0 {
			last := &out[len(out)-1]
			last.Names = append(last.Names, name)
			continue
		}
		r := rules[s.rule]
		r.Names = []string{name}
		out = append(out, r)
	}
	return out
}
