package seccompgen

import (
	"bytes"
	"debug/elf"
	"maps"
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
)

// lookups are the functions that look up others by name, of the C library and of
// OpenSSL, with the register of the name.
var lookups = map[string]uint8{"dlsym": x86.RSI, "dlvsym": x86.RSI, "DSO_bind_func": x86.RSI, "DSO_global_lookup": x86.RDI}

// lookedUp gives the names that the file hands to dlsym(3) and dlvsym(3), when
// every call of them passes constants. Otherwise any name that lies in its data
// may be meant.
func (b *builder) lookedUp() ([]string, bool) {
	if _, ok := b.m.(amd64); !ok || b.partial {
		return nil, false
	}
	found := map[string]bool{}
	openssl := strings.HasPrefix(b.f.Soname, "libcrypto.so.") && slices.ContainsFunc(b.f.Dynsym, func(s elfread.Symbol) bool { return s.Defined && s.Name == "DSO_bind_func" })
	unknown := 0
	for i := range b.imports {
		r := &b.imports[i]
		arg, ok := lookups[b.out.Imports[r.sym]]
		if !ok || openssl && dlsymOnly[b.out.Imports[r.sym]] {
			continue
		}
		if r.site == 0 || b.takenSym[r.sym] {
			return nil, false // called through a pointer
		}
		names, ok := b.stringsAt(r.fn, r.site, arg)
		if !ok {
			if unknown++; !openssl || unknown > len(engine) {
				return nil, false
			}
		}
		for _, name := range names {
			found[name] = true
		}
	}
	if openssl {
		for _, name := range engine {
			found[name] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), true
}

// stringsAt gives the constant strings that a register may point to at pc, when
// it can hold nothing else.
func (b *builder) stringsAt(fi int32, pc uint64, r uint8) ([]string, bool) {
	d := b.body(fi)
	k := d.index(pc)
	if k < 0 {
		return nil, false
	}
	q := &query{f: b.f, d: d, open: map[point]bool{}, addresses: true}
	v := q.before(k, reg(r), 0)
	if !v.finite() || len(v.consts) == 0 {
		return nil, false
	}
	var out []string
	for _, a := range v.consts {
		s, ok := b.constantString(uint64(a))
		if !ok {
			return nil, false
		}
		out = append(out, s)
	}
	return out, true
}

// In libcrypto of OpenSSL 1.1 and 3 a name passes through a table of methods to
// dlsym (crypto/dso/dso_dlfcn.c), where its way cannot be followed. So the calls
// before that count. Two of those pass what lies in a structure that nothing
// changes (crypto/engine/eng_dyn.c: DYNAMIC_F1 and DYNAMIC_F2).
var (
	dlsymOnly = set("dlsym", "dlvsym")
	engine    = []string{"bind_engine", "v_check"}
)

// constantString reads a string that nothing can change.
func (b *builder) constantString(a uint64) (string, bool) {
	for i := range b.f.Segments {
		s := &b.f.Segments[i]
		if a < s.Addr || a-s.Addr >= uint64(len(s.Data)) {
			continue
		}
		d := s.Data[a-s.Addr:]
		n := bytes.IndexByte(d[:min(len(d), maxStringLen)], 0)
		return string(d[:max(n, 0)]), n > 0 && s.Flags&elf.PF_W == 0
	}
	return "", false
}
