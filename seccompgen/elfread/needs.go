package elfread

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"io"
)

// Needs lists the libraries that a file names, without reading the rest of it.
// It is empty where it would take more than a look.
func Needs(src io.ReaderAt, size int64) []string {
	r := reader{src, size}
	h, err := r.at(0, 64)
	if err != nil || !bytes.Equal(h[:4], []byte(elf.ELFMAG)) || elf.Class(h[4]) != elf.ELFCLASS64 || elf.Data(h[5]) != elf.ELFDATA2LSB {
		return nil
	}
	le := binary.LittleEndian
	n := uint64(le.Uint16(h[56:]))
	if n > maxHeaders || le.Uint16(h[54:]) != 56 {
		return nil
	}
	ph, err := r.at(le.Uint64(h[32:]), n*56)
	if err != nil {
		return nil
	}
	const maxDynamic = 1 << 16
	var dyn []byte
	for p := ph; len(p) >= 56; p = p[56:] {
		if elf.ProgType(le.Uint32(p)) == elf.PT_DYNAMIC && le.Uint64(p[32:]) <= maxDynamic {
			dyn, _ = r.at(le.Uint64(p[8:]), le.Uint64(p[32:]))
		}
	}
	var names []uint64
	var table, length uint64
	for ; len(dyn) >= 16; dyn = dyn[16:] {
		v := le.Uint64(dyn[8:])
		switch elf.DynTag(le.Uint64(dyn)) {
		case elf.DT_NEEDED:
			names = append(names, v)
		case elf.DT_STRTAB:
			table = v
		case elf.DT_STRSZ:
			length = v
		}
	}
	var out []string
	for p := ph; len(p) >= 56; p = p[56:] {
		off, at, fill := le.Uint64(p[8:]), le.Uint64(p[16:]), le.Uint64(p[32:])
		if elf.ProgType(le.Uint32(p)) != elf.PT_LOAD || table < at || table-at >= fill || off > uint64(size) {
			continue
		}
		for _, k := range names {
			if k >= length || len(out) >= 256 {
				continue
			}
			where := off + (table - at) + k
			if where >= uint64(size) {
				continue
			}
			if b, err := r.at(where, min(256, uint64(size)-where)); err == nil {
				if s := clean(cstring(b)); s != "" {
					out = append(out, s)
				}
			}
		}
		break
	}
	return out
}
