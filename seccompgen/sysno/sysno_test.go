package sysno_test

import (
	"testing"

	"github.com/declarun/declarun/seccompgen/sysno"
)

func TestTables(t *testing.T) {
	for _, row := range []struct {
		arch, name string
		nr         int
	}{
		{"amd64", "read", 0},
		{"amd64", "newfstatat", 262},
		{"amd64", "_sysctl", 156},
		{"amd64", "clone3", 435},
		{"amd64", "umount2", 166},
		{"arm64", "newfstatat", 79},
		{"arm64", "execve", 221},
		{"arm64", "clone3", 435},
	} {
		if nr, ok := sysno.Number(row.arch, row.name); !ok || nr != row.nr {
			t.Errorf("Number(%s, %s) = %d, %v; want %d", row.arch, row.name, nr, ok, row.nr)
		}
		if name, ok := sysno.Name(row.arch, row.nr); !ok || name != row.name {
			t.Errorf("Name(%s, %d) = %q, %v; want %q", row.arch, row.nr, name, ok, row.name)
		}
	}
	for _, arch := range []string{"amd64", "arm64"} {
		all := sysno.All(arch)
		if len(all) < 300 {
			t.Errorf("%s has %d names", arch, len(all))
		}
		seen := map[int]string{}
		for _, name := range all {
			nr, ok := sysno.Number(arch, name)
			if !ok {
				t.Errorf("%s %s is listed and has no number", arch, name)
			}
			if other, dup := seen[nr]; dup {
				t.Errorf("%s: %s and %s are both %d", arch, name, other, nr)
			}
			seen[nr] = name
		}
	}
	if _, ok := sysno.Name("mips", 1); ok || sysno.All("mips") != nil {
		t.Error("an architecture without a table has names")
	}
}
