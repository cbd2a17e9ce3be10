package guard

import (
	"bytes"
	"encoding/binary"
	"io"
	"path"
)

// interpreterOf names the file that the kernel will open besides r to execute
// it: what PT_INTERP or "#!" says. It reads at most 64 program headers and
// 4096 bytes of a name; "" is none, or nothing that the kernel would run.
func interpreterOf(r io.ReaderAt) string {
	var head [256]byte // BINPRM_BUF_SIZE
	n, _ := r.ReadAt(head[:], 0)
	b := head[:n]
	switch {
	case bytes.HasPrefix(b, []byte("#!")):
		line, _, _ := bytes.Cut(b[2:], []byte("\n"))
		f := bytes.FieldsFunc(line, func(c rune) bool { return c == ' ' || c == '\t' || c == 0 })
		if len(f) == 0 || !path.IsAbs(string(f[0])) {
			return ""
		}
		return string(f[0])
	case bytes.HasPrefix(b, []byte("\x7fELF")) && n >= 64:
		return elfInterpreter(r, b)
	}
	return ""
}

func elfInterpreter(r io.ReaderAt, b []byte) string {
	var order binary.ByteOrder = binary.LittleEndian
	if b[5] == 2 {
		order = binary.BigEndian
	}
	var phoff uint64
	var size, count uint16
	wide := b[4] == 2
	if wide {
		phoff, size, count = order.Uint64(b[32:]), order.Uint16(b[54:]), order.Uint16(b[56:])
	} else {
		phoff, size, count = uint64(order.Uint32(b[28:])), order.Uint16(b[42:]), order.Uint16(b[44:])
	}
	if phoff > 1<<40 || size < 32 || wide && size < 56 || size > 256 {
		return ""
	}
	ph := make([]byte, size)
	for i := range min(count, 64) {
		if _, err := r.ReadAt(ph, int64(phoff)+int64(i)*int64(size)); err != nil {
			return ""
		}
		if order.Uint32(ph) != 3 { // PT_INTERP
			continue
		}
		var off, n uint64
		if wide {
			off, n = order.Uint64(ph[8:]), order.Uint64(ph[32:])
		} else {
			off, n = uint64(order.Uint32(ph[4:])), uint64(order.Uint32(ph[16:]))
		}
		if n < 2 || n > 4096 || off > 1<<40 { // the kernel refuses those too
			return ""
		}
		name := make([]byte, n)
		if _, err := r.ReadAt(name, int64(off)); err != nil {
			return ""
		}
		name, _, _ = bytes.Cut(name, []byte{0})
		if !path.IsAbs(string(name)) {
			return ""
		}
		return string(name)
	}
	return ""
}
