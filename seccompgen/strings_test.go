package seccompgen

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// A program may look up its own functions by names that it puts together:
// genl of iproute2 serves nobody when they do not count.
func TestNamesMadeFromFormats(t *testing.T) {
	for data, want := range map[string]string{
		"%s_genl_util\x00":            "%s_genl_util",
		"x\x00ctl_%s\x00y\x00":        "ctl_%s",
		"init_%s_module\x00":          "init_%s_module",
		"%s\x00":                      "", // anything at all
		"a%s\x00":                     "", // as good as anything
		"cannot open %s\x00":          "", // a sentence
		"%s/%s.so\x00":                "", // a path
		"%s_%s_util\x00":              "", // two of them
		"%s_util":                     "", // not ended
		"\x01\x02%s_end_mark\x00":     "%s_end_mark",
		"%s_genl_util\x00%s_link\x00": "%s_genl_util %s_link",
	} {
		made := map[string]bool{}
		formats([]byte(data), made)
		if got := strings.Join(slices.Sorted(maps.Keys(made)), " "); got != want {
			t.Errorf("%q: %q, want %q", data, got, want)
		}
	}
	for _, row := range []struct {
		format, name string
		want         bool
	}{
		{"%s_genl_util", "ctrl_genl_util", true},
		{"%s_genl_util", "_genl_util", false},
		{"%s_genl_util", "ctrl_genl_utils", false},
		{"init_%s_module", "init_x_module", true},
		{"init_%s_module", "init_module", false},
	} {
		if got := makes(row.format, row.name); got != row.want {
			t.Errorf("%s from %s: %v", row.name, row.format, got)
		}
	}
}
