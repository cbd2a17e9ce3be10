package seccompgen

import (
	"bytes"
	"maps"
	"slices"
	"strings"
)

const (
	maxStrings   = 20_000
	maxStringLen = 256
)

// strings collects what a program may hand to dlopen: absolute paths, and
// names of libraries, from the data that is not code.
func (b *builder) strings() {
	seen, names := map[string]bool{}, map[string]bool{}
	given, known := b.lookedUp()
	looksUp := !known && slices.ContainsFunc(b.out.Imports, func(s string) bool { return dlsym[s] })
	for _, s := range b.f.Data() {
		lo, hi := b.f.Strtab.Lo, b.f.Strtab.Hi // names of symbols, not strings of the program
		n := uint64(len(s.Data))
		if lo < s.Addr || lo-s.Addr >= n || hi < lo {
			pathStrings(s.Data, seen)
			if looksUp {
				identifiers(s.Data, names)
			}
			continue
		}
		for _, d := range [][]byte{s.Data[:lo-s.Addr], s.Data[min(n, hi-s.Addr):]} {
			pathStrings(d, seen)
			if looksUp {
				identifiers(d, names)
			}
		}
	}
	for _, name := range given {
		names[name] = true
	}
	b.out.Names = slices.Sorted(maps.Keys(names))
	b.out.Strings = slices.Sorted(maps.Keys(seen))
}

func printable(c byte) bool { return c > 0x20 && c < 0x7f }

// pathStrings finds the strings that begin like a path or the name of a library.
func pathStrings(data []byte, seen map[string]bool) {
	for _, begin := range []string{"/", "lib"} {
		pat := []byte(begin)
		for p := 0; len(seen) < maxStrings; {
			k := bytes.Index(data[p:], pat)
			if k < 0 {
				break
			}
			p += k + 1
			if p > 1 && printable(data[p-2]) {
				continue
			}
			d := data[p-1:]
			end := 1
			for end < len(d) && end <= maxStringLen && printable(d[end]) {
				end++
			}
			if end >= len(d) || d[end] != 0 || end < 3 || end > maxStringLen {
				continue
			}
			t := string(d[:end])
			if !strings.Contains(t, "%") && (t[0] == '/' || strings.Contains(t, ".so") && !strings.Contains(t, "/")) {
				seen[t] = true
			}
		}
	}
}

// identifiers finds the strings that could be names of functions.
func identifiers(data []byte, names map[string]bool) {
	for p := 0; p < len(data) && len(names) < maxStrings; {
		if !printable(data[p]) {
			p++
			continue
		}
		end := p
		for end < len(data) && printable(data[end]) {
			end++
		}
		if d := data[p:end]; end < len(data) && data[end] == 0 && len(d) >= 3 && len(d) < 64 && identifier(d) {
			names[string(d)] = true
		}
		p = end + 1
	}
}

func identifier(d []byte) bool {
	for i, c := range d {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}
