// Package elfread reads the parts of an ELF file that the analysis needs, from
// files that nobody vouches for.
//
// Guarantees: memory and time are bounded by the limits below and by the size
// of the file, whatever the headers say; it does not panic; strings have no
// control characters. What the loader uses (program headers, the dynamic
// section) is preferred to what it ignores (section headers).
//
// Not guaranteed: that the file would load. Section headers and symbol tables
// are taken where they are plausible and missed silently where they are not.
//
// Sources: the System V ABI and its AMD64 supplement, ELF for the Arm 64-bit
// Architecture (AAELF64), elf(5), the RELR proposal
// (as in glibc 2.36), LSB 5.0 for .eh_frame.
package elfread

import (
	"bytes"
	"cmp"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
)

// Limits on what is read.
const (
	MaxFile    = 1 << 30
	MaxLoad    = 512 << 20 // bytes of all PT_LOAD segments
	maxHeaders = 512
	maxSymbols = 4 << 20
	maxRelocs  = 16 << 20
	maxNeeded  = 4096
	maxString  = 4096
	maxFuncs   = 8 << 20
)

// ErrNotELF is returned for a file that does not begin like an ELF file.
var ErrNotELF = errors.New("not an ELF file")

// Segment is one PT_LOAD with the bytes that the file has for it.
type Segment struct {
	Addr  uint64
	Flags elf.ProgFlag
	Data  []byte
}

// Range is a half-open range of addresses.
type Range struct{ Lo, Hi uint64 }

// Symbol is a symbol of .dynsym or .symtab.
type Symbol struct {
	Name    string
	Value   uint64
	Size    uint64
	Func    bool
	IFunc   bool
	Defined bool
	Local   bool
}

// Reloc is a dynamic relocation. Sym is "" where there is none. Type is that of
// x86-64; those of another machine are given as the one that means the same, or
// as R_X86_64_NONE.
type Reloc struct {
	Off    uint64
	Type   elf.R_X86_64
	Sym    string
	Def    uint64 // value of the symbol where this file defines it, else 0
	Addend int64
}

// File is what was read.
type File struct {
	Class   elf.Class
	Machine elf.Machine
	Type    elf.Type
	Entry   uint64

	Segments []Segment
	Exec     []Range // where code is
	PLT      []Range // .plt and its relatives, by section name
	Interp   string

	Dynamic bool
	Soname  string
	Needed  []string
	Rpath   string
	Runpath string
	// Flags1 is DT_FLAGS_1.
	Flags1 uint64

	Dynsym []Symbol
	Symtab []Symbol // functions only
	Relocs []Reloc
	Init   []uint64 // DT_INIT, DT_FINI
	// InitFunc is DT_INIT, InitArrays DT_INIT_ARRAY and DT_PREINIT_ARRAY: what loading runs.
	InitFunc   uint64
	InitArrays []Range
	Arrays     []Range // DT_INIT_ARRAY, DT_FINI_ARRAY, DT_PREINIT_ARRAY
	TLS        Range   // what thread-local variables start with
	PLTGOT     uint64  // DT_PLTGOT
	Frames     []Range // functions by .eh_frame
	GoPCLn     uint64  // address of the pclntab of a Go program, 0 for none
	goText     uint64
	BuildID    string
	Strtab     Range // .dynstr
	// Tables are what the loader reads itself: headers, symbols, relocations.
	Tables []Range

	sections []elf.Section64
	shnames  []byte
	ehHdr    uint64
	mapped   [][]byte
}

// mapFrom is from how many bytes on a segment is kept outside the heap.
const mapFrom = 1 << 20

// Close gives the memory of the segments back; nothing of them may be used any
// more. Strings remain.
func (f *File) Close() {
	for _, b := range f.mapped {
		free(b)
	}
	f.mapped, f.Segments = nil, nil
}

type reader struct {
	r    io.ReaderAt
	size int64
}

func (r reader) at(off, n uint64) ([]byte, error) {
	if off > uint64(r.size) || n > uint64(r.size)-off {
		return nil, io.ErrUnexpectedEOF
	}
	b := make([]byte, n)
	if _, err := r.r.ReadAt(b, int64(off)); err != nil {
		return nil, err
	}
	return b, nil
}

// Header reads only what decides whether a file is to be read at all.
func Header(src io.ReaderAt, size int64) (*File, error) {
	h, err := reader{src, size}.at(0, 20)
	if err != nil || !bytes.Equal(h[:4], []byte(elf.ELFMAG)) {
		return nil, ErrNotELF
	}
	f := &File{Class: elf.Class(h[4]), Type: elf.Type(binary.LittleEndian.Uint16(h[16:])), Machine: elf.Machine(binary.LittleEndian.Uint16(h[18:]))}
	if elf.Data(h[5]) == elf.ELFDATA2MSB {
		f.Type = elf.Type(binary.BigEndian.Uint16(h[16:]))
		f.Machine = elf.Machine(binary.BigEndian.Uint16(h[18:]))
	}
	return f, nil
}

// Read reads a 64-bit little-endian file. Close it when done.
func Read(src io.ReaderAt, size int64) (f *File, err error) {
	var opened *File
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("read ELF file: %v", v)
		}
		if err != nil && opened != nil {
			opened.Close()
			f = nil
		}
	}()
	if size > MaxFile {
		return nil, fmt.Errorf("read ELF file: %d bytes are more than the limit of %d", size, MaxFile)
	}
	f, err = Header(src, size)
	if err != nil {
		return nil, err
	}
	opened = f
	r := reader{src, size}
	h, err := r.at(0, 64)
	if err != nil {
		return nil, fmt.Errorf("read ELF header: %w", err)
	}
	if f.Class != elf.ELFCLASS64 || elf.Data(h[5]) != elf.ELFDATA2LSB {
		return nil, fmt.Errorf("read ELF header: %v %v is not 64-bit little-endian", f.Class, elf.Data(h[5]))
	}
	var hdr elf.Header64
	if err := binary.Read(bytes.NewReader(h), binary.LittleEndian, &hdr); err != nil {
		return nil, err
	}
	f.Entry = hdr.Entry
	if hdr.Phnum > maxHeaders || hdr.Phnum > 0 && hdr.Phentsize != 56 {
		return nil, fmt.Errorf("read ELF header: %d program headers of %d bytes", hdr.Phnum, hdr.Phentsize)
	}
	ph, err := r.at(hdr.Phoff, uint64(hdr.Phnum)*56)
	if err != nil {
		return nil, fmt.Errorf("read program headers: %w", err)
	}
	progs := make([]elf.Prog64, hdr.Phnum)
	if err := binary.Read(bytes.NewReader(ph), binary.LittleEndian, progs); err != nil {
		return nil, err
	}
	var total uint64
	var dyn Range
	for _, p := range progs {
		switch elf.ProgType(p.Type) {
		case elf.PT_LOAD:
			n := min(p.Filesz, p.Memsz)
			if total += n; n > MaxLoad || total > MaxLoad {
				return nil, fmt.Errorf("read segments: more than %d bytes", MaxLoad)
			}
			if p.Vaddr > 1<<62 || p.Memsz > 1<<62 {
				return nil, errors.New("read segments: address out of range")
			}
			data, err := f.segment(r, p.Off, n)
			if err != nil {
				return nil, fmt.Errorf("read segment at %#x: %w", p.Vaddr, err)
			}
			f.Segments = append(f.Segments, Segment{p.Vaddr, elf.ProgFlag(p.Flags), data})
			if p.Off == 0 {
				f.Tables = append(f.Tables, Range{p.Vaddr, p.Vaddr + 64 + uint64(hdr.Phnum)*56})
			}
		case elf.PT_INTERP:
			b, err := r.at(p.Off, min(p.Filesz, maxString))
			if err != nil {
				return nil, fmt.Errorf("read interpreter name: %w", err)
			}
			f.Interp = clean(cstring(b))
		case elf.PT_DYNAMIC:
			f.Dynamic = true
			dyn = Range{p.Vaddr, p.Vaddr + p.Filesz}
		case elf.PT_TLS:
			f.TLS = Range{p.Vaddr, p.Vaddr + min(p.Filesz, 1<<40)}
		case elf.PT_GNU_EH_FRAME:
			f.ehHdr = p.Vaddr
		case elf.PT_NOTE:
			if p.Filesz < 4096 && f.BuildID == "" {
				if b, err := r.at(p.Off, p.Filesz); err == nil {
					f.BuildID = buildID(b)
				}
			}
		}
	}
	f.readSections(r, &hdr)
	for _, s := range f.Segments {
		if s.Flags&elf.PF_X != 0 {
			f.Exec = append(f.Exec, f.narrow(Range{s.Addr, s.Addr + uint64(len(s.Data))})...)
		}
	}
	f.Exec = merge(f.Exec)
	if f.Dynamic {
		if err := f.readDynamic(dyn); err != nil {
			return nil, err
		}
	}
	f.readFrames()
	f.findPCLn()
	return f, nil
}

// Content is a whole file in memory: what is made of it is made of these very
// bytes, whatever becomes of the file meanwhile.
type Content struct {
	data   []byte
	mapped bool
}

// ReadContent reads size bytes. Close it when done, after what was read of it.
func ReadContent(src io.ReaderAt, size int64) (*Content, error) {
	if size < 0 || size > MaxFile {
		return nil, fmt.Errorf("read file: %d bytes are more than the limit of %d", size, MaxFile)
	}
	c := &Content{}
	c.data, c.mapped = space(uint64(size))
	if n, err := src.ReadAt(c.data, 0); n < len(c.data) {
		c.Close()
		return nil, fmt.Errorf("read file: %w", cmp.Or(err, io.ErrUnexpectedEOF))
	}
	return c, nil
}

// Bytes are the file's; they must not be changed, nor used after Close.
func (c *Content) Bytes() []byte { return c.data }

// ReadAt implements io.ReaderAt.
func (c *Content) ReadAt(b []byte, off int64) (int, error) {
	return bytes.NewReader(c.data).ReadAt(b, off)
}

// Close gives the memory back.
func (c *Content) Close() {
	if c.mapped {
		free(c.data)
	}
	c.data, c.mapped = nil, false
}

// segment reads n bytes at off.
func (f *File) segment(r reader, off, n uint64) ([]byte, error) {
	if n == 0 { // nothing but zeros, wherever it says it is
		return nil, nil
	}
	if off > uint64(r.size) || n > uint64(r.size)-off {
		return nil, io.ErrUnexpectedEOF
	}
	if c, ok := r.r.(*Content); ok {
		return c.data[off : off+n : off+n], nil
	}
	b, mapped := space(n)
	if mapped {
		f.mapped = append(f.mapped, b)
	}
	if _, err := r.r.ReadAt(b, int64(off)); err != nil {
		return nil, err
	}
	return b, nil
}

// narrow keeps the parts of an executable segment that section headers call
// code, provided that they are there and lie inside.
func (f *File) narrow(r Range) []Range {
	var out []Range
	for _, s := range f.sections {
		if s.Flags&uint64(elf.SHF_EXECINSTR) != 0 && s.Addr >= r.Lo && s.Addr < r.Hi && s.Size > 0 && s.Size <= r.Hi-s.Addr {
			out = append(out, Range{s.Addr, s.Addr + s.Size})
		}
	}
	// A file packed after linking keeps headers that say nothing of the entry.
	if len(out) == 0 || f.Entry != 0 && f.Entry >= r.Lo && f.Entry < r.Hi && !slices.ContainsFunc(out, func(x Range) bool { return f.Entry >= x.Lo && f.Entry < x.Hi }) {
		return []Range{r}
	}
	return out
}

func merge(rs []Range) []Range {
	sort.Slice(rs, func(i, j int) bool { return rs[i].Lo < rs[j].Lo })
	var out []Range
	for _, r := range rs {
		if n := len(out); n > 0 && r.Lo < out[n-1].Hi {
			out[n-1].Hi = max(out[n-1].Hi, r.Hi)
			continue
		}
		out = append(out, r)
	}
	return out
}

// Bytes gives what the file has from addr on, to the end of the segment.
func (f *File) Bytes(addr uint64) []byte {
	for i := range f.Segments {
		s := &f.Segments[i]
		if addr >= s.Addr && addr-s.Addr < uint64(len(s.Data)) {
			return s.Data[addr-s.Addr:]
		}
	}
	return nil
}

// Data gives the parts of the segments that are not code. Linkers put read-only
// data into the segment of the code, unless they were told to keep them apart
// (ld -z separate-code, the default on x86-64 since binutils 2.31). Where no
// section headers say which part is what, all of such a segment is given.
func (f *File) Data() []Segment {
	var out []Segment
	for i := range f.Segments {
		s := &f.Segments[i]
		if s.Flags&elf.PF_X == 0 {
			out = append(out, *s)
			continue
		}
		at, hi := s.Addr, s.Addr+uint64(len(s.Data))
		part := func(lo, hi uint64) {
			if lo = max(lo&^7, s.Addr); lo < hi { // words are where they would be
				out = append(out, Segment{lo, s.Flags, s.Data[lo-s.Addr : hi-s.Addr]})
			}
		}
		if slices.Contains(f.Exec, Range{at, hi}) {
			apart := slices.ContainsFunc(f.Segments[i+1:], func(t Segment) bool { return t.Flags&(elf.PF_X|elf.PF_W) == 0 })
			if !apart {
				out = append(out, *s)
			}
			continue
		}
		for _, x := range f.Exec {
			if x.Hi <= at || x.Lo >= hi {
				continue
			}
			part(at, x.Lo)
			at = x.Hi
		}
		part(at, hi)
	}
	return out
}

// IsCode tells whether addr lies in an executable range.
func (f *File) IsCode(addr uint64) bool {
	i := sort.Search(len(f.Exec), func(i int) bool { return f.Exec[i].Hi > addr })
	return i < len(f.Exec) && addr >= f.Exec[i].Lo
}

// Word reads the 8 bytes at addr.
func (f *File) Word(addr uint64) (uint64, bool) {
	b := f.Bytes(addr)
	if len(b) < 8 {
		return 0, false
	}
	return binary.LittleEndian.Uint64(b), true
}

func (f *File) readSections(r reader, hdr *elf.Header64) {
	if hdr.Shnum == 0 || hdr.Shentsize != 64 { // Shnum is 16 bits: at most 65,535
		return
	}
	b, err := r.at(hdr.Shoff, uint64(hdr.Shnum)*64)
	if err != nil {
		return
	}
	secs := make([]elf.Section64, hdr.Shnum)
	if binary.Read(bytes.NewReader(b), binary.LittleEndian, secs) != nil {
		return
	}
	f.sections = secs
	if int(hdr.Shstrndx) < len(secs) {
		if s := secs[hdr.Shstrndx]; s.Size < 1<<20 {
			f.shnames, _ = r.at(s.Off, s.Size)
		}
	}
	for i := range secs {
		s := &secs[i]
		switch f.sectionName(s) {
		case ".plt", ".plt.sec", ".plt.got", ".iplt":
			if s.Size < 1<<40 && s.Addr < 1<<62 {
				f.PLT = append(f.PLT, Range{s.Addr, s.Addr + s.Size})
			}
		}
		if elf.SectionType(s.Type) != elf.SHT_SYMTAB || s.Entsize != 24 || s.Size/24 > maxSymbols || int(s.Link) >= len(secs) || f.Symtab != nil {
			continue
		}
		str := secs[s.Link]
		if str.Size > 256<<20 {
			continue
		}
		names, err := r.at(str.Off, str.Size)
		if err != nil {
			continue
		}
		tab, err := r.at(s.Off, s.Size/24*24)
		if err != nil {
			continue
		}
		for _, sym := range symbols(tab, names) {
			if sym.Defined && (sym.Func || sym.IFunc) {
				f.Symtab = append(f.Symtab, sym)
			}
		}
	}
}

func (f *File) sectionName(s *elf.Section64) string {
	if int64(s.Name) >= int64(len(f.shnames)) {
		return ""
	}
	return cstring(f.shnames[s.Name:])
}

// Section gives the address range of a section by name.
func (f *File) Section(name string) (Range, bool) {
	for i := range f.sections {
		s := &f.sections[i]
		if f.sectionName(s) == name && s.Addr != 0 && s.Addr < 1<<62 && s.Size < 1<<40 {
			return Range{s.Addr, s.Addr + s.Size}, true
		}
	}
	return Range{}, false
}

// Section is a section that is loaded.
type Section struct {
	Name string
	Range
}

// Sections lists the sections that are loaded, as far as the file says.
func (f *File) Sections() []Section {
	var out []Section
	for i := range f.sections {
		if s := &f.sections[i]; s.Addr != 0 && s.Addr < 1<<62 && s.Size < 1<<40 && s.Flags&uint64(elf.SHF_TLS) == 0 {
			out = append(out, Section{f.sectionName(s), Range{s.Addr, s.Addr + s.Size}})
		}
	}
	return out
}

func symbols(tab, names []byte) []Symbol {
	out := make([]Symbol, 0, len(tab)/24)
	for ; len(tab) >= 24; tab = tab[24:] {
		name := binary.LittleEndian.Uint32(tab)
		typ := tab[4] & 15
		s := Symbol{
			Func:    typ == byte(elf.STT_FUNC),
			IFunc:   typ == byte(elf.STT_GNU_IFUNC),
			Local:   tab[4]>>4 == byte(elf.STB_LOCAL),
			Defined: binary.LittleEndian.Uint16(tab[6:]) != 0,
			Value:   binary.LittleEndian.Uint64(tab[8:]),
			Size:    binary.LittleEndian.Uint64(tab[16:]),
		}
		if uint64(name) < uint64(len(names)) {
			s.Name = cstring(names[name:])
		}
		out = append(out, s)
	}
	return out
}

func (f *File) readDynamic(dyn Range) error {
	b := f.Bytes(dyn.Lo)
	if uint64(len(b)) > dyn.Hi-dyn.Lo {
		b = b[:dyn.Hi-dyn.Lo]
	}
	tags := map[elf.DynTag]uint64{}
	var needed []uint64
	for ; len(b) >= 16; b = b[16:] {
		tag, val := elf.DynTag(binary.LittleEndian.Uint64(b)), binary.LittleEndian.Uint64(b[8:])
		if tag == elf.DT_NULL {
			break
		}
		if tag == elf.DT_NEEDED {
			if len(needed) == maxNeeded {
				return fmt.Errorf("read dynamic section: more than %d needed libraries", maxNeeded)
			}
			needed = append(needed, val)
			continue
		}
		if _, dup := tags[tag]; !dup {
			tags[tag] = val
		}
	}
	strs := f.Bytes(tags[elf.DT_STRTAB])
	if n := tags[elf.DT_STRSZ]; n < uint64(len(strs)) {
		strs = strs[:n]
	}
	str := func(off uint64) string {
		if off >= uint64(len(strs)) {
			return ""
		}
		return clean(cstring(strs[off:]))
	}
	f.Strtab = Range{tags[elf.DT_STRTAB], tags[elf.DT_STRTAB] + uint64(len(strs))}
	for _, off := range needed {
		f.Needed = append(f.Needed, str(off))
	}
	text := func(tag elf.DynTag) string {
		if off, ok := tags[tag]; ok {
			return str(off)
		}
		return ""
	}
	f.Soname, f.Rpath, f.Runpath = text(elf.DT_SONAME), text(elf.DT_RPATH), text(elf.DT_RUNPATH)
	f.Flags1, f.InitFunc = tags[elf.DT_FLAGS_1], tags[elf.DT_INIT]
	f.PLTGOT = tags[elf.DT_PLTGOT]
	for _, tag := range []elf.DynTag{elf.DT_INIT, elf.DT_FINI} {
		if v := tags[tag]; v != 0 {
			f.Init = append(f.Init, v)
		}
	}
	for _, a := range [][2]elf.DynTag{{elf.DT_INIT_ARRAY, elf.DT_INIT_ARRAYSZ}, {elf.DT_FINI_ARRAY, elf.DT_FINI_ARRAYSZ}, {elf.DT_PREINIT_ARRAY, elf.DT_PREINIT_ARRAYSZ}} {
		if v, n := tags[a[0]], tags[a[1]]; v != 0 && v < 1<<62 && n < 1<<30 {
			f.Arrays = append(f.Arrays, Range{v, v + n})
			if a[0] != elf.DT_FINI_ARRAY {
				f.InitArrays = append(f.InitArrays, Range{v, v + n})
			}
		}
	}

	type block struct{ addr, size, ent uint64 }
	blocks := []block{{tags[elf.DT_RELA], tags[elf.DT_RELASZ], 24}}
	if elf.DynTag(tags[elf.DT_PLTREL]) == elf.DT_RELA {
		blocks = append(blocks, block{tags[elf.DT_JMPREL], tags[elf.DT_PLTRELSZ], 24})
	}
	nsyms := f.symbolCount(tags)
	raw := make([][]byte, len(blocks))
	for i, bl := range blocks {
		if bl.addr == 0 {
			continue
		}
		d := f.Bytes(bl.addr)
		if bl.size < uint64(len(d)) {
			d = d[:bl.size]
		}
		if len(d)/24 > maxRelocs {
			return fmt.Errorf("read relocations: more than %d", maxRelocs)
		}
		raw[i] = d
		f.Tables = append(f.Tables, Range{bl.addr, bl.addr + uint64(len(d))})
		for ; len(d) >= 24; d = d[24:] {
			nsyms = max(nsyms, uint64(binary.LittleEndian.Uint32(d[12:]))+1)
		}
	}
	if at := tags[elf.DT_SYMTAB]; at != 0 {
		d := f.Bytes(at)
		if n := min(nsyms, maxSymbols) * 24; n < uint64(len(d)) {
			d = d[:n]
		}
		f.Dynsym = symbols(d, strs)
		f.Tables = append(f.Tables, Range{at, at + uint64(len(d))}, dyn)
	}
	n := 0
	for _, d := range raw {
		n += len(d) / 24
	}
	f.Relocs = make([]Reloc, 0, n)
	for _, d := range raw {
		for ; len(d) >= 24; d = d[24:] {
			r := Reloc{
				Off:    binary.LittleEndian.Uint64(d),
				Type:   f.relocType(binary.LittleEndian.Uint32(d[8:])),
				Addend: int64(binary.LittleEndian.Uint64(d[16:])),
			}
			if i := binary.LittleEndian.Uint32(d[12:]); i != 0 && int(i) < len(f.Dynsym) {
				s := &f.Dynsym[i]
				r.Sym = s.Name
				if s.Defined {
					r.Def = s.Value
				}
			}
			f.Relocs = append(f.Relocs, r)
		}
	}
	f.readRELR(tags)
	return nil
}

// relocType gives the x86-64 type of a relocation of this file (AAELF64, "Dynamic
// relocations", for AArch64).
func (f *File) relocType(t uint32) elf.R_X86_64 {
	if f.Machine != elf.EM_AARCH64 {
		return elf.R_X86_64(t)
	}
	switch elf.R_AARCH64(t) {
	case elf.R_AARCH64_ABS64:
		return elf.R_X86_64_64
	case elf.R_AARCH64_COPY:
		return elf.R_X86_64_COPY
	case elf.R_AARCH64_GLOB_DAT:
		return elf.R_X86_64_GLOB_DAT
	case elf.R_AARCH64_JUMP_SLOT:
		return elf.R_X86_64_JMP_SLOT
	case elf.R_AARCH64_RELATIVE:
		return elf.R_X86_64_RELATIVE
	case elf.R_AARCH64_IRELATIVE:
		return elf.R_X86_64_IRELATIVE
	case elf.R_AARCH64_TLS_DTPMOD64:
		return elf.R_X86_64_DTPMOD64
	case elf.R_AARCH64_TLS_DTPREL64:
		return elf.R_X86_64_DTPOFF64
	case elf.R_AARCH64_TLS_TPREL64:
		return elf.R_X86_64_TPOFF64
	case elf.R_AARCH64_TLSDESC:
		return elf.R_X86_64_TLSDESC
	case elf.R_AARCH64_ABS32:
		return elf.R_X86_64_32
	case elf.R_AARCH64_PREL32:
		return elf.R_X86_64_PC32
	case elf.R_AARCH64_PREL64:
		return elf.R_X86_64_PC64
	}
	return elf.R_X86_64_NONE
}

const (
	dtRELRSZ = 35
	dtRELR   = 36
)

// readRELR appends the packed relative relocations; their addend is the word
// in place.
func (f *File) readRELR(tags map[elf.DynTag]uint64) {
	at, size := tags[dtRELR], tags[dtRELRSZ]
	if at == 0 {
		return
	}
	d := f.Bytes(at)
	if size < uint64(len(d)) {
		d = d[:size]
	}
	add := func(off uint64) {
		if len(f.Relocs) >= 2*maxRelocs {
			return
		}
		if w, ok := f.Word(off); ok {
			f.Relocs = append(f.Relocs, Reloc{Off: off, Type: elf.R_X86_64_RELATIVE, Addend: int64(w)})
		}
	}
	var where uint64
	for ; len(d) >= 8; d = d[8:] {
		w := binary.LittleEndian.Uint64(d)
		if w&1 == 0 {
			add(w)
			where = w + 8
			continue
		}
		for i := uint64(0); i < 63; i++ {
			if w>>(i+1)&1 != 0 {
				add(where + i*8)
			}
		}
		where += 63 * 8
	}
}

// symbolCount works out how many dynamic symbols there are from the hash tables.
func (f *File) symbolCount(tags map[elf.DynTag]uint64) uint64 {
	var n uint64
	if at := tags[elf.DT_HASH]; at != 0 {
		if b := f.Bytes(at); len(b) >= 8 {
			n = uint64(binary.LittleEndian.Uint32(b[4:]))
		}
	}
	if at := tags[elf.DT_GNU_HASH]; at != 0 {
		b := f.Bytes(at)
		if len(b) >= 16 {
			buckets := uint64(binary.LittleEndian.Uint32(b))
			first := uint64(binary.LittleEndian.Uint32(b[4:]))
			bloom := uint64(binary.LittleEndian.Uint32(b[8:]))
			off := 16 + bloom*8
			chains := off + buckets*4
			n = max(n, first)
			if chains <= uint64(len(b)) {
				var last uint64
				for i := range buckets {
					last = max(last, uint64(binary.LittleEndian.Uint32(b[off+i*4:])))
				}
				if last >= first && last > 0 {
					for i := last - first; chains+i*4+4 <= uint64(len(b)); i++ {
						n = max(n, first+i+1)
						if binary.LittleEndian.Uint32(b[chains+i*4:])&1 != 0 {
							break
						}
					}
				}
			}
		}
	}
	return min(n, maxSymbols)
}

func cstring(b []byte) string {
	if i := bytes.IndexByte(b[:min(len(b), maxString)], 0); i >= 0 {
		return string(b[:i])
	}
	return ""
}

// clean makes a string that can be shown: control characters end it.
func clean(s string) string {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] == 0x7f {
			return s[:i]
		}
	}
	return s
}

func buildID(note []byte) string {
	for len(note) >= 12 {
		namesz, descsz, typ := binary.LittleEndian.Uint32(note), binary.LittleEndian.Uint32(note[4:]), binary.LittleEndian.Uint32(note[8:])
		name := (uint64(namesz) + 3) &^ 3
		desc := (uint64(descsz) + 3) &^ 3
		if 12+name+desc > uint64(len(note)) {
			return ""
		}
		if typ == 3 && namesz == 4 && string(note[12:15]) == "GNU" {
			return fmt.Sprintf("%x", note[12+name:12+name+uint64(descsz)])
		}
		note = note[12+name+desc:]
	}
	return ""
}
