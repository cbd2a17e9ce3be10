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
// libraries that hand the name on to it, with the register of the name.
var lookups = map[string]uint8{
	"dlsym": x86.RSI, "dlvsym": x86.RSI,
	"DSO_bind_func": x86.RSI, "DSO_global_lookup": x86.RDI, // OpenSSL
	"uv_dlsym":        x86.RSI,
	"xmlModuleSymbol": x86.RSI,
	"apr_dso_sym":     x86.RDX,
	"g_module_symbol": x86.RSI,
	"lt_dlsym":        x86.RSI,
}

// maxLookups bounds how many functions a name is followed through.
const maxLookups = 100

// lookedUp gives the names that the file hands to such functions, when every
// call of them passes constants, or what its own caller passes. Otherwise any
// name that lies in its data may be meant.
func (b *builder) lookedUp() ([]string, bool) {
	if _, ok := b.m.(amd64); !ok || b.partial {
		return nil, false
	}
	openssl := strings.HasPrefix(b.f.Soname, "libcrypto.so.") && slices.ContainsFunc(b.f.Dynsym, func(s elfread.Symbol) bool { return s.Defined && s.Name == "DSO_bind_func" })
	found := map[string]bool{}
	unknown := 0
	type passed struct {
		fn  int32
		reg uint8
	}
	var queue []passed
	asked := map[passed]bool{}
	// name notes what a call passes, or who is to be asked.
	name := func(fi int32, pc uint64, r uint8) bool {
		names, params, ok := b.stringsAt(fi, pc, r)
		if !ok {
			unknown++
			return openssl && unknown <= len(engine)
		}
		for _, n := range names {
			found[n] = true
		}
		for _, p := range params {
			if q := (passed{fi, p}); !asked[q] {
				asked[q] = true
				queue = append(queue, q)
			}
		}
		return len(asked) <= maxLookups
	}
	for i := range b.imports {
		r := &b.imports[i]
		sym := b.out.Imports[r.sym]
		arg, ok := lookups[sym]
		if !ok || openssl && dlsymOnly[sym] {
			continue
		}
		if r.site == 0 || b.takenSym[r.sym] || !name(r.fn, r.site, arg) {
			return nil, false // called through a pointer, or with anything
		}
	}
	for len(queue) > 0 {
		q := queue[0]
		queue = queue[1:]
		if b.taken[q.fn] || slices.Contains(b.out.Roots, q.fn) || q.fn == b.out.Entry {
			return nil, false
		}
		for i := range b.f.Dynsym {
			// Who imports it is looked at, if it is one of lookups.
			if s := &b.f.Dynsym[i]; s.Defined && !s.Local && s.Name != "" && b.at(s.Value) == q.fn && lookups[s.Name] != q.reg {
				return nil, false
			}
		}
		for i := range b.calls {
			r := &b.calls[i]
			if r.site == 0 || r.after || b.at(r.to) != q.fn {
				continue
			}
			if r.to != b.funcs[q.fn].Lo || !name(r.fn, r.site, q.reg) {
				return nil, false
			}
		}
	}
	if openssl {
		for _, n := range engine {
			found[n] = true
		}
	}
	return slices.Sorted(maps.Keys(found)), true
}

// stringsAt gives the constant strings that a register may point to at pc, and
// the registers of the function's own caller that it may come from, when there
// is nothing else.
func (b *builder) stringsAt(fi int32, pc uint64, r uint8) (names []string, params []uint8, ok bool) {
	d := b.body(fi)
	k := d.index(pc)
	if k < 0 {
		return nil, nil, false
	}
	q := &query{f: b.f, d: d, open: map[point]bool{}, addresses: true}
	v := q.before(k, reg(r), 0)
	if v.unknown != "" || len(v.consts)+len(v.params) == 0 {
		return nil, nil, false
	}
	for _, a := range v.consts {
		s, ok := b.constantString(uint64(a))
		if !ok {
			return nil, nil, false
		}
		names = append(names, s)
	}
	for _, p := range v.params {
		if p.Slot || b.m.conventions().argsC>>p.Reg&1 == 0 {
			return nil, nil, false
		}
		params = append(params, p.Reg)
	}
	return names, params, true
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
