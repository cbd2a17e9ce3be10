package elfread

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"sort"
)

// GoFunc is one function of a Go program.
type GoFunc struct {
	Range
	Name string
}

// findPCLn looks for the table that every Go program carries for its own stack
// traces, stripped or not.
func (f *File) findPCLn() {
	if s, ok := f.Section(".text"); ok {
		f.goText = s.Lo
	}
	for _, name := range []string{".gopclntab", ".data.rel.ro.gopclntab"} {
		if s, ok := f.Section(name); ok && plausiblePCLn(f.Bytes(s.Lo)) {
			f.GoPCLn = s.Lo
			return
		}
	}
	// Without section headers, by its magic. Only programs whose data says
	// that they are Go are searched: the table of a C program would be a
	// coincidence.
	for _, magic := range []uint32{0xfffffff1, 0xfffffff0} {
		var pat [8]byte
		binary.LittleEndian.PutUint32(pat[:], magic)
		pat[6], pat[7] = f.quantum(), 8
		for _, s := range f.Data() {
			for off := 0; ; {
				k := bytes.Index(s.Data[off:], pat[:])
				if k < 0 {
					break
				}
				off += k
				if plausiblePCLn(s.Data[off:]) && f.looksLikePCLn(s.Addr+uint64(off)) {
					f.GoPCLn = s.Addr + uint64(off)
					return
				}
				off += 8
			}
		}
	}
}

// quantum is the size of the smallest instruction.
func (f *File) quantum() byte {
	if f.Machine == elf.EM_AARCH64 {
		return 4
	}
	return 1
}

func (f *File) looksLikePCLn(addr uint64) bool {
	f.GoPCLn = addr
	fns := f.GoFuncs()
	f.GoPCLn = 0
	return len(fns) > 100
}

func plausiblePCLn(b []byte) bool {
	if len(b) < 72 {
		return false
	}
	switch binary.LittleEndian.Uint32(b) {
	case 0xfffffff1, 0xfffffff0: // Go 1.20 and 1.18
	default:
		return false
	}
	return b[4] == 0 && b[5] == 0 && (b[6] == 1 || b[6] == 4) && b[7] == 8
}

// GoFuncs lists the functions of a Go program (Go 1.18 and later), sorted by
// address. It is empty where the table is missing or not understood.
func (f *File) GoFuncs() []GoFunc {
	b := f.Bytes(f.GoPCLn)
	if f.GoPCLn == 0 || !plausiblePCLn(b) {
		return nil
	}
	text := binary.LittleEndian.Uint64(b[24:])
	if text == 0 { // Go 1.26: left to the loader
		text = f.goText
	}
	if text == 0 && len(f.Exec) > 0 {
		text = f.Exec[0].Lo
	}
	return ParsePCLn(b, text)
}

// ParsePCLn reads a pclntab whose functions begin at text.
func ParsePCLn(b []byte, text uint64) []GoFunc {
	if !plausiblePCLn(b) || text > 1<<62 {
		return nil
	}
	n := binary.LittleEndian.Uint64(b[8:])
	names := binary.LittleEndian.Uint64(b[32:])
	funcs := binary.LittleEndian.Uint64(b[64:])
	size := uint64(len(b))
	if names >= size || funcs >= size || n > maxFuncs || n*8+4 > size-funcs {
		return nil
	}
	tab := b[funcs:]
	out := make([]GoFunc, 0, n)
	for i := range n {
		lo := uint64(binary.LittleEndian.Uint32(tab[i*8:]))
		at := uint64(binary.LittleEndian.Uint32(tab[i*8+4:]))
		hi := uint64(binary.LittleEndian.Uint32(tab[i*8+8:]))
		fn := GoFunc{Range: Range{text + lo, text + hi}}
		if hi <= lo {
			continue
		}
		if at+8 <= uint64(len(tab)) {
			name := uint64(binary.LittleEndian.Uint32(tab[at+4:]))
			if name < size-names {
				fn.Name = clean(cstring(b[names+name:]))
			}
		}
		out = append(out, fn)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Lo < out[j].Lo })
	return out
}
