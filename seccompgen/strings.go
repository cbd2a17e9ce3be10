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
	seen, names, made := map[string]bool{}, map[string]bool{}, map[string]bool{}
	given, known := b.lookedUp()
	looksUp := !known && slices.ContainsFunc(b.out.Imports, func(s string) bool { return dlsym[s] })
	for _, s := range b.f.Data() {
		lo, hi := b.f.Strtab.Lo, b.f.Strtab.Hi // names of symbols, not strings of the program
		n := uint64(len(s.Data))
		if lo < s.Addr || lo-s.Addr >= n || hi < lo {
			pathStrings(s.Data, seen)
			tellingStrings(s.Data, seen)
			if looksUp {
				identifiers(s.Data, names)
				formats(s.Data, made)
			}
			continue
		}
		for _, d := range [][]byte{s.Data[:lo-s.Addr], s.Data[min(n, hi-s.Addr):]} {
			pathStrings(d, seen)
			tellingStrings(d, seen)
			if looksUp {
				identifiers(d, names)
				formats(d, made)
			}
		}
	}
	for _, name := range given {
		names[name] = true
	}
	// A name put together from a format is one of the file's own: iproute2 looks
	// up "%s_genl_util" in itself.
	for _, e := range b.out.Exports {
		for m := range made {
			if makes(m, e.Name) {
				b.out.Roots = append(b.out.Roots, e.Func)
			}
		}
	}
	slices.Sort(b.out.Roots)
	b.out.Roots = slices.Compact(b.out.Roots)
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

// telling are strings that matter for what a library is asked for (openssl.go).
var telling = []string{"OPENSSL_CONF", "OPENSSL_ENGINES", "OPENSSL_MODULES", "OPENSSL_CONF_INCLUDE", "engine"}

// tellingStrings finds those: linkers store a string as the end of another, too.
func tellingStrings(data []byte, seen map[string]bool) {
	for _, s := range telling {
		if bytes.Contains(data, append([]byte(s), 0)) {
			seen[s] = true
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

// maxFormats bounds how many formats are compared with names.
const maxFormats = 200

// formats finds the strings that names of functions may be made from: one %s in
// an identifier of some length.
func formats(data []byte, made map[string]bool) {
	for p := 0; len(made) < maxFormats; {
		k := bytes.Index(data[p:], []byte("%s"))
		if k < 0 {
			return
		}
		lo, hi := p+k, p+k+2
		p = hi
		for lo > 0 && printable(data[lo-1]) && hi-lo < 64 {
			lo--
		}
		for hi < len(data) && printable(data[hi]) && hi-lo < 64 {
			hi++
		}
		if hi >= len(data) || data[hi] != 0 {
			continue
		}
		before, after, _ := strings.Cut(string(data[lo:hi]), "%s")
		if len(before)+len(after) >= 4 && identifier([]byte("_"+before+after)) {
			made[string(data[lo:hi])] = true
		}
	}
}

// makes tells whether a format with one %s gives a name.
func makes(format, name string) bool {
	before, after, _ := strings.Cut(format, "%s")
	return len(name) > len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}

func identifier(d []byte) bool {
	for i, c := range d {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}
