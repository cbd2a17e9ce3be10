// Package elftest writes small ELF files for tests: valid enough for
// debug/elf, with the imports and strings asked for. They do not run.
package elftest

import (
	"bytes"
	"encoding/binary"
	"strings"
)

// Program describes one file.
type Program struct {
	Interpreter string
	Imports     []string
	Strings     []string // NUL-terminated, in .rodata
	Go          string   // if not empty: a Go program with this text as .rodata and os/exec linked in
}

// Build gives the bytes of a 64-bit little-endian x86-64 executable.
func Build(p Program) []byte {
	var (
		le      = binary.LittleEndian
		rodata  = []byte(strings.Join(p.Strings, "\x00") + "\x00")
		dynstr  = []byte{0}
		dynsym  = make([]byte, 24)
		names   = []byte{0}
		body    bytes.Buffer
		headers bytes.Buffer
	)
	if p.Go != "" {
		rodata = []byte(p.Go)
	}
	for _, i := range p.Imports {
		sym := make([]byte, 24)
		le.PutUint32(sym, uint32(len(dynstr)))
		sym[4] = 0x12 // global function, undefined
		dynsym = append(dynsym, sym...)
		dynstr = append(append(dynstr, i...), 0)
	}
	type section struct {
		name        string
		typ, flags  uint64
		data        []byte
		link, entry uint64
	}
	sections := []section{{}, {name: ".rodata", typ: 1, flags: 2, data: rodata}}
	if p.Go != "" {
		sections = append(sections, section{name: ".gopclntab", typ: 1, flags: 2, data: []byte("\x00syscall.forkExec\x00")})
	} else if len(p.Imports) > 0 || p.Interpreter != "" {
		n := uint64(len(sections))
		sections = append(sections,
			section{name: ".dynsym", typ: 11, flags: 2, data: dynsym, link: n + 1, entry: 24},
			section{name: ".dynstr", typ: 3, flags: 2, data: dynstr})
	}
	sections = append(sections, section{name: ".shstrtab", typ: 3})
	offsets := make([]uint32, len(sections))
	for i := range sections {
		if i > 0 {
			offsets[i] = uint32(len(names))
			names = append(append(names, sections[i].name...), 0)
		}
	}
	sections[len(sections)-1].data = names

	phnum := 0
	base := 64
	interp := []byte(p.Interpreter + "\x00")
	if p.Interpreter != "" {
		phnum = 1
		base += 56
	}
	interpOff := base
	if phnum > 0 {
		body.Write(interp)
	}
	for i, s := range sections {
		h := make([]byte, 64)
		if i > 0 {
			le.PutUint32(h[0:], offsets[i])
			le.PutUint32(h[4:], uint32(s.typ))
			le.PutUint64(h[8:], s.flags)
			le.PutUint64(h[24:], uint64(base+body.Len()))
			le.PutUint64(h[32:], uint64(len(s.data)))
			le.PutUint32(h[40:], uint32(s.link))
			if s.typ == 11 {
				le.PutUint32(h[44:], 1)
			}
			le.PutUint64(h[48:], 1)
			le.PutUint64(h[56:], s.entry)
			body.Write(s.data)
		}
		headers.Write(h)
	}
	out := make([]byte, 64)
	copy(out, "\x7fELF\x02\x01\x01")
	le.PutUint16(out[16:], 3)  // ET_DYN
	le.PutUint16(out[18:], 62) // x86-64
	le.PutUint32(out[20:], 1)
	if phnum > 0 {
		le.PutUint64(out[32:], 64)
	}
	le.PutUint64(out[40:], uint64(base+body.Len()))
	le.PutUint16(out[52:], 64)
	le.PutUint16(out[54:], 56)
	le.PutUint16(out[56:], uint16(phnum))
	le.PutUint16(out[58:], 64)
	le.PutUint16(out[60:], uint16(len(sections)))
	le.PutUint16(out[62:], uint16(len(sections)-1))
	if phnum > 0 {
		ph := make([]byte, 56)
		le.PutUint32(ph[0:], 3) // PT_INTERP
		le.PutUint32(ph[4:], 4)
		le.PutUint64(ph[8:], uint64(interpOff))
		le.PutUint64(ph[32:], uint64(len(interp)))
		le.PutUint64(ph[40:], uint64(len(interp)))
		out = append(out, ph...)
	}
	out = append(out, body.Bytes()...)
	return append(out, headers.Bytes()...)
}
