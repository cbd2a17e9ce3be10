package seccompgen

import (
	"debug/elf"
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
	looksUp := slices.ContainsFunc(b.out.Imports, func(s string) bool { return s == "dlsym" || s == "dlvsym" })
	for i := range b.f.Segments {
		s := &b.f.Segments[i]
		if s.Flags&elf.PF_X != 0 && len(b.f.Segments) > 1 {
			continue
		}
		for p := 0; p < len(s.Data); {
			if a := s.Addr + uint64(p); a >= b.f.Strtab.Lo && a < b.f.Strtab.Hi {
				p = int(b.f.Strtab.Hi - s.Addr) // names of symbols, not strings of the program
				continue
			}
			end := p
			for end < len(s.Data) && s.Data[end] > 0x20 && s.Data[end] < 0x7f {
				end++
			}
			d := s.Data[p:end]
			whole := end < len(s.Data) && s.Data[end] == 0
			p = end + 1
			if !whole || len(d) < 3 || len(d) > maxStringLen {
				continue
			}
			switch {
			case d[0] == '/' || d[0] == 'l' && d[1] == 'i' && d[2] == 'b':
				t := string(d)
				if len(seen) < maxStrings && !strings.Contains(t, "%") && (d[0] == '/' || strings.Contains(t, ".so") && !strings.Contains(t, "/")) {
					seen[t] = true
				}
			case looksUp && len(names) < maxStrings && len(d) < 64 && identifier(d):
				names[string(d)] = true
			}
		}
	}
	for t := range names {
		b.out.Names = append(b.out.Names, t)
	}
	slices.Sort(b.out.Names)
	for t := range seen {
		b.out.Strings = append(b.out.Strings, t)
	}
	slices.Sort(b.out.Strings)
}

func identifier(d []byte) bool {
	for i, c := range d {
		if c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (i == 0 || c < '0' || c > '9') {
			return false
		}
	}
	return true
}
