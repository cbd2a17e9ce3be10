package elfread

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
)

// look is the dynamic section at a glance: the libraries that it names, as
// offsets into the string table, and where that lies in the file.
type look struct {
	names         []uint64
	start, length uint64
	symbols       uint64 // where the symbol table lies in the file, 0 if it is not known
}

func (r reader) look() (look, bool) {
	var out look
	h, err := r.at(0, 64)
	if err != nil || !bytes.Equal(h[:4], []byte(elf.ELFMAG)) || elf.Class(h[4]) != elf.ELFCLASS64 || elf.Data(h[5]) != elf.ELFDATA2LSB {
		return out, false
	}
	le := binary.LittleEndian
	n := uint64(le.Uint16(h[56:]))
	if n > maxHeaders || le.Uint16(h[54:]) != 56 {
		return out, false
	}
	ph, err := r.at(le.Uint64(h[32:]), n*56)
	if err != nil {
		return out, false
	}
	const maxDynamic = 1 << 16
	var dyn []byte
	for p := ph; len(p) >= 56; p = p[56:] {
		if elf.ProgType(le.Uint32(p)) == elf.PT_DYNAMIC && le.Uint64(p[32:]) <= maxDynamic {
			dyn, _ = r.at(le.Uint64(p[8:]), le.Uint64(p[32:]))
		}
	}
	var table, symbols uint64
	for ; len(dyn) >= 16; dyn = dyn[16:] {
		v := le.Uint64(dyn[8:])
		switch elf.DynTag(le.Uint64(dyn)) {
		case elf.DT_NEEDED:
			out.names = append(out.names, v)
		case elf.DT_STRTAB:
			table = v
		case elf.DT_STRSZ:
			out.length = v
		case elf.DT_SYMTAB:
			symbols = v
		}
	}
	place := func(a uint64) (uint64, bool) {
		for p := ph; len(p) >= 56; p = p[56:] {
			off, at, fill := le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[32:])
			if elf.ProgType(le.Uint32(p)) == elf.PT_LOAD && a >= at && a-at < fill && off <= uint64(r.size) && a-at < uint64(r.size)-off {
				return off + (a - at), true
			}
		}
		return 0, false
	}
	var ok bool
	if out.start, ok = place(table); !ok {
		return out, false
	}
	out.symbols, _ = place(symbols)
	return out, true
}

// Needs lists the libraries that a file names, without reading the rest of it.
// It is empty where it would take more than a look.
func Needs(src io.ReaderAt, size int64) []string {
	r := reader{src, size}
	l, ok := r.look()
	if !ok {
		return nil
	}
	var out []string
	for _, k := range l.names {
		if k >= l.length || len(out) >= 256 || l.start+k >= uint64(size) {
			continue
		}
		if b, err := r.at(l.start+k, min(256, uint64(size)-l.start-k)); err == nil {
			if s := clean(cstring(b)); s != "" {
				out = append(out, s)
			}
		}
	}
	return out
}

// A Dynamic is one name of a file's dynamic symbol table.
type Dynamic struct {
	Name    []byte
	Defined bool
}

// Symbols lists the dynamic symbols of a file, without reading the rest of it.
// It is false where they cannot be told or are larger than limit bytes; what
// stands behind the table may be taken for part of it.
func Symbols(src io.ReaderAt, size, limit int64) ([]Dynamic, bool) {
	r := reader{src, size}
	l, ok := r.look()
	if !ok || l.length > uint64(max(limit, 0)) || l.symbols == 0 {
		return nil, false
	}
	names, err := r.at(l.start, l.length)
	if err != nil {
		return nil, false
	}
	end := uint64(size)
	if l.start > l.symbols {
		end = l.start
	}
	n := end - l.symbols
	whole := n <= uint64(limit)
	table, err := r.at(l.symbols, min(n, uint64(limit)))
	if err != nil {
		return nil, false
	}
	var out []Dynamic
	for le := binary.LittleEndian; len(table) >= 24; table = table[24:] {
		at := uint64(le.Uint32(table))
		if at >= uint64(len(names)) {
			return out, true // not a symbol: the table has ended
		}
		s := names[at:]
		if k := bytes.IndexByte(s, 0); k >= 0 {
			s = s[:k]
		}
		if len(s) > 0 {
			out = append(out, Dynamic{s, le.Uint16(table[6:]) != uint16(elf.SHN_UNDEF)})
		}
	}
	return out, whole
}
