package guard

import (
	"slices"
	"testing"
)

func TestLowerDirectories(t *testing.T) {
	for _, row := range []struct {
		claim, super string
		want         []string
	}{
		{"none", "rw,upperdir=/u", nil},
		{"as Docker mounts", "rw,lowerdir=/a/l/X:/a/l/Y,upperdir=/a/x/diff,workdir=/a/x/work", []string{"/a/l/X", "/a/l/Y"}},
		{"relative ones", "rw,lowerdir=l/X:l/Y,upperdir=x/diff", []string{"l/X", "l/Y"}},
		{"a colon and a comma in a name", `rw,lowerdir=/a\134:b:/c\134\054d,upperdir=/u`, []string{"/a:b", "/c,d"}},
		{"a blank in a name", `rw,lowerdir=/a\040b,upperdir=/u`, []string{"/a b"}},
		{"one option for each", "rw,lowerdir+=/a,lowerdir+=/b,datadir+=/data,upperdir=/u", []string{"/a", "/b"}},
		{"what holds data only is none", "rw,lowerdir=/a:/b::/data::/more,upperdir=/u", []string{"/a", "/b"}},
		{"one alone", "rw,lowerdir=/a", []string{"/a"}},
		{"nothing", "", nil},
	} {
		if got := (mount{Super: row.super}).lowerOf(); !slices.Equal(got, row.want) {
			t.Errorf("%s: %q, want %q", row.claim, got, row.want)
		}
	}
}

func FuzzLowerDirectories(f *testing.F) {
	f.Add(`rw,lowerdir=/a\134:b::c,lowerdir+=x`)
	f.Add("lowerdir+=")
	f.Fuzz(func(t *testing.T, super string) {
		m := mount{Super: super}
		m.upperOf()
		for _, d := range m.lowerOf() {
			if d == "" {
				t.Fatalf("%q has a layer without a name", super)
			}
		}
	})
}
