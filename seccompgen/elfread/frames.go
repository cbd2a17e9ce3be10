package elfread

import (
	"encoding/binary"
	"sort"
)

// readFrames takes the bounds of functions from .eh_frame, which every C and
// C++ program of a distribution has, stripped or not.
func (f *File) readFrames() {
	at, whole := Range{}, false
	if s, ok := f.Section(".eh_frame"); ok {
		at, whole = s, true
	} else if b := f.Bytes(f.ehHdr); f.ehHdr != 0 && len(b) >= 8 && b[0] == 1 {
		p, _, ok := pointer(b[4:], b[1], f.ehHdr+4)
		if !ok {
			return
		}
		at = Range{p, p + 1<<40}
	} else {
		return
	}
	b := f.Bytes(at.Lo)
	if n := at.Hi - at.Lo; n < uint64(len(b)) {
		b = b[:n]
	}
	f.Frames = ParseFrames(b, at.Lo, whole)
	out := f.Frames[:0]
	for _, r := range f.Frames {
		if r.Hi > r.Lo && f.IsCode(r.Lo) && f.IsCode(r.Hi-1) {
			out = append(out, r)
		}
	}
	f.Frames = out
}

// ParseFrames gives the ranges of the frame descriptions in b, which is
// .eh_frame loaded at addr, sorted. A zero length ends the table, unless whole
// says that b is exactly the table: linkers leave terminators of input files in it.
func ParseFrames(b []byte, addr uint64, whole bool) []Range {
	var out []Range
	type cie struct {
		enc    byte
		signal bool
	}
	cies := map[int]cie{}
	for off := 0; off+8 <= len(b) && len(out) < maxFuncs; {
		n := uint64(binary.LittleEndian.Uint32(b[off:]))
		if n == 0 {
			if !whole {
				break
			}
			off += 4
			continue
		}
		start := off + 4
		if n == 0xffffffff {
			if off+20 > len(b) {
				break
			}
			n = binary.LittleEndian.Uint64(b[off+4:])
			start = off + 12
		}
		if n < 4 || n > uint64(len(b)-start) {
			break
		}
		body := b[start : start+int(n)]
		id := binary.LittleEndian.Uint32(body)
		if id == 0 {
			if enc, signal, ok := cieEncoding(body); ok {
				cies[off] = cie{enc, signal}
			}
		} else if c, ok := cies[start-int(int64(id)&0x7fffffff)]; ok {
			lo, used, ok := pointer(body[4:], c.enc, addr+uint64(start)+4)
			if ok {
				if size, _, ok := pointer(body[4+used:], c.enc&0x0f, 0); ok && size < 1<<32 && lo < 1<<62 {
					// The frame of a signal trampoline begins one byte early, so
					// that an unwinder that looks one byte back finds it (glibc).
					if c.signal && size > 1 {
						lo, size = lo+1, size-1
					}
					out = append(out, Range{lo, lo + size})
				}
			}
		}
		off = start + int(n)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Lo < out[j].Lo })
	return out
}

// cieEncoding gives the pointer encoding of the frame descriptions of a CIE,
// and whether they describe signal trampolines.
func cieEncoding(b []byte) (enc byte, signal, ok bool) {
	if len(b) < 6 {
		return 0, false, false
	}
	b = b[4:]
	version := b[0]
	b = b[1:]
	end := 0
	for end < len(b) && b[end] != 0 {
		end++
	}
	if end == len(b) {
		return 0, false, false
	}
	aug := string(b[:end])
	b = b[end+1:]
	if aug == "" {
		return enc, signal, true
	}
	if aug[0] != 'z' {
		return 0, false, false
	}
	skip := func() bool { // one LEB128
		for i := range b {
			if b[i]&0x80 == 0 {
				b = b[i+1:]
				return true
			}
		}
		return false
	}
	if !skip() || !skip() {
		return 0, false, false
	}
	if version == 1 {
		if len(b) == 0 {
			return 0, false, false
		}
		b = b[1:]
	} else if !skip() {
		return 0, false, false
	}
	if !skip() { // length of the augmentation
		return 0, false, false
	}
	for _, c := range aug[1:] {
		switch c {
		case 'R':
			if len(b) == 0 {
				return 0, false, false
			}
			enc, b = b[0], b[1:]
		case 'L':
			if len(b) == 0 {
				return 0, false, false
			}
			b = b[1:]
		case 'P':
			if len(b) == 0 {
				return 0, false, false
			}
			_, used, ok := pointer(b[1:], b[0]&0x7f, 0)
			if !ok {
				return 0, false, false
			}
			b = b[1+used:]
		case 'S':
			signal = true
		case 'B', 'G': // AArch64: signed return addresses, tagged frames
		default:
			return 0, false, false
		}
	}
	return enc, signal, true
}

// pointer decodes one DW_EH_PE value that lies at addr.
func pointer(b []byte, enc byte, addr uint64) (uint64, int, bool) {
	if enc == 0xff {
		return 0, 0, false
	}
	var v uint64
	var n int
	switch enc & 0x0f {
	case 0x00, 0x04, 0x0c:
		if len(b) < 8 {
			return 0, 0, false
		}
		v, n = binary.LittleEndian.Uint64(b), 8
	case 0x02:
		if len(b) < 2 {
			return 0, 0, false
		}
		v, n = uint64(binary.LittleEndian.Uint16(b)), 2
	case 0x03:
		if len(b) < 4 {
			return 0, 0, false
		}
		v, n = uint64(binary.LittleEndian.Uint32(b)), 4
	case 0x0a:
		if len(b) < 2 {
			return 0, 0, false
		}
		v, n = uint64(int64(int16(binary.LittleEndian.Uint16(b)))), 2
	case 0x0b:
		if len(b) < 4 {
			return 0, 0, false
		}
		v, n = uint64(int64(int32(binary.LittleEndian.Uint32(b)))), 4
	default:
		return 0, 0, false
	}
	switch enc & 0x70 {
	case 0x00:
	case 0x10:
		v += addr
	default:
		return 0, 0, false
	}
	return v, n, true
}
