package seccompgen

import (
	"encoding/binary"
	"errors"
)

// The cached form of a summary: variable-length integers, everything in order.
// It is only ever read back behind a digest, but reading it is bounded anyway.

var errCorrupt = errors.New("decode summary: corrupt")

type encoder struct{ b []byte }

func (e *encoder) num(v uint64) { e.b = binary.AppendUvarint(e.b, v) }
func (e *encoder) str(s string) { e.num(uint64(len(s))); e.b = append(e.b, s...) }
func (e *encoder) strs(s []string) {
	e.num(uint64(len(s)))
	for _, x := range s {
		e.str(x)
	}
}

// ints writes a sorted list as differences.
func (e *encoder) ints(s []int32) {
	e.num(uint64(len(s)))
	var last int32
	for _, x := range s {
		e.b = binary.AppendVarint(e.b, int64(x-last))
		last = x
	}
}

func (e *encoder) sites(s []site) {
	e.num(uint64(len(s)))
	for _, x := range s {
		e.num(x.Addr)
		e.b = binary.AppendVarint(e.b, int64(x.Nr))
		e.str(x.Reason)
	}
}

func (e *encoder) args(s []argSite) {
	e.num(uint64(len(s)))
	for _, x := range s {
		e.num(x.Addr)
		e.b = binary.AppendVarint(e.b, int64(x.Nr))
		e.num(uint64(x.Index))
		e.num(uint64(x.Value))
		e.str(x.Reason)
	}
}

func (e *encoder) location(l location) {
	e.flag(l.Slot)
	e.num(uint64(l.Reg))
	e.b = binary.AppendVarint(e.b, int64(l.Off))
	e.num(uint64(l.Size))
}

func (e *encoder) flag(v bool) {
	if v {
		e.num(1)
	} else {
		e.num(0)
	}
}

func (s *summary) encode() []byte {
	e := &encoder{b: make([]byte, 0, len(s.Funcs)*12+1024)}
	for _, x := range []string{s.Soname, s.Interp, s.Rpath, s.Runpath} {
		e.str(x)
	}
	e.strs(s.Needed)
	e.num(uint64(s.Entry + 1))
	e.flag(s.Go)
	e.flag(s.NoDefaultLib)
	e.num(uint64(len(s.Funcs)))
	for i := range s.Funcs {
		f := &s.Funcs[i]
		e.num(f.Addr)
		e.str(f.Name)
		e.flag(f.Data)
		e.ints(f.Calls)
		e.ints(f.Imports)
		e.sites(f.Sites)
		e.args(f.Args)
		e.ints(f.Takes)
		e.ints(f.TakesImports)
	}
	e.ints(s.Roots)
	e.strs(s.Imports)
	e.num(uint64(len(s.Exports)))
	for _, x := range s.Exports {
		e.str(x.Name)
		e.num(uint64(x.Func))
	}
	e.num(uint64(len(s.Wrappers)))
	for _, w := range s.Wrappers {
		e.str(w.Name)
		e.location(w.Arg)
	}
	e.num(uint64(len(s.ArgWrappers)))
	for _, w := range s.ArgWrappers {
		e.str(w.Name)
		e.b = binary.AppendVarint(e.b, int64(w.Nr))
		e.num(uint64(w.Index))
		e.location(w.At)
	}
	e.strs(s.Strings)
	e.strs(s.Names)
	e.ints(s.Asking)
	e.ints(s.Answering)
	e.sites(s.Trouble)
	e.num(uint64(s.Main + 1))
	e.num(uint64(s.Starter + 1))
	e.ints(s.CallMain)
	e.ints(s.InitOnly)
	e.num(uint64(len(s.Flows)))
	for i := range s.Flows {
		f := &s.Flows[i]
		e.num(uint64(f.Fn))
		e.flag(f.Opaque)
		e.num(uint64(len(f.Blocks)))
		for k := range f.Blocks {
			b := &f.Blocks[k]
			e.num(b.Lo)
			e.ints(b.Next)
			e.flag(b.Lands)
			e.num(uint64(b.Kind))
			e.num(uint64(b.To))
			e.num(b.At)
		}
	}
	return e.b
}

type decoder struct {
	b   []byte
	bad bool
}

func (d *decoder) num() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) signed() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count reads a length; every element takes at least one byte.
func (d *decoder) count() int {
	n := d.num()
	if n > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n)
}

func (d *decoder) str() string {
	n := d.count()
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) strs() []string {
	n := d.count()
	if n == 0 {
		return nil
	}
	s := make([]string, n)
	for i := range s {
		s[i] = d.str()
	}
	return s
}

func (d *decoder) ints() []int32 {
	n := d.count()
	if n == 0 {
		return nil
	}
	s := make([]int32, n)
	var last int32
	for i := range s {
		last += int32(d.signed())
		s[i] = last
	}
	return s
}

func (d *decoder) sites() []site {
	n := d.count()
	if n == 0 {
		return nil
	}
	s := make([]site, n)
	for i := range s {
		s[i] = site{d.num(), int32(d.signed()), d.str()}
	}
	return s
}

func (d *decoder) args() []argSite {
	n := d.count()
	if n == 0 {
		return nil
	}
	s := make([]argSite, n)
	for i := range s {
		s[i] = argSite{d.num(), int32(d.signed()), uint8(d.num()), uint32(d.num()), d.str()}
	}
	return s
}

func (d *decoder) location() location {
	return location{d.num() == 1, uint8(d.num()), int32(d.signed()), uint8(d.num())}
}

func decodeSummary(b []byte) (*summary, error) {
	d := &decoder{b: b}
	s := &summary{Soname: d.str(), Interp: d.str(), Rpath: d.str(), Runpath: d.str(), Needed: d.strs()}
	s.Entry = int32(d.num()) - 1
	s.Go = d.num() == 1
	s.NoDefaultLib = d.num() == 1
	s.Funcs = make([]function, d.count())
	n := int32(len(s.Funcs))
	for i := range s.Funcs {
		if d.bad {
			return nil, errCorrupt
		}
		s.Funcs[i] = function{d.num(), d.str(), d.num() == 1, d.ints(), d.ints(), d.sites(), d.args(), d.ints(), d.ints()}
	}
	s.Roots = d.ints()
	s.Imports = d.strs()
	s.Exports = make([]export, d.count())
	for i := range s.Exports {
		s.Exports[i] = export{d.str(), int32(d.num())}
	}
	s.Wrappers = make([]wrapper, d.count())
	for i := range s.Wrappers {
		s.Wrappers[i] = wrapper{d.str(), d.location()}
	}
	s.ArgWrappers = make([]argWrapper, d.count())
	for i := range s.ArgWrappers {
		s.ArgWrappers[i] = argWrapper{d.str(), passing{int32(d.signed()), uint8(d.num()), d.location()}}
	}
	s.Strings = d.strs()
	s.Names = d.strs()
	s.Asking = d.ints()
	s.Answering = d.ints()
	s.Trouble = d.sites()
	s.Main = int32(d.num()) - 1
	s.Starter = int32(d.num()) - 1
	s.CallMain = d.ints()
	s.InitOnly = d.ints()
	s.Flows = make([]flow, d.count())
	for i := range s.Flows {
		s.Flows[i] = flow{Fn: int32(d.num()), Opaque: d.num() == 1, Blocks: make([]block, d.count())}
		for k := range s.Flows[i].Blocks {
			if d.bad {
				return nil, errCorrupt
			}
			s.Flows[i].Blocks[k] = block{d.num(), d.ints(), d.num() == 1, blockEnd(d.num()), int32(d.num()), d.num()}
		}
	}
	if d.bad || len(d.b) != 0 {
		return nil, errCorrupt
	}
	ok := func(list []int32, max int32) bool {
		for _, x := range list {
			if x < 0 || x >= max {
				return false
			}
		}
		return true
	}
	for i := range s.Funcs {
		f := &s.Funcs[i]
		if !ok(f.Calls, n) || !ok(f.Takes, n) || !ok(f.Imports, int32(len(s.Imports))) || !ok(f.TakesImports, int32(len(s.Imports))) {
			return nil, errCorrupt
		}
	}
	for i := range s.Flows {
		f := &s.Flows[i]
		if f.Fn < 0 || f.Fn >= n || len(f.Blocks) == 0 {
			return nil, errCorrupt
		}
		for k := range f.Blocks {
			b := &f.Blocks[k]
			most := n
			if b.Kind == endsCallImport || b.Kind == endsJumpImport {
				most = int32(len(s.Imports))
			}
			if b.Kind > endsReturn || b.To < 0 || b.Kind != endsInside && b.Kind != endsCallIndirect && b.Kind != endsJumpIndirect && b.Kind != endsReturn && b.To >= most || !ok(b.Next, int32(len(f.Blocks))) {
				return nil, errCorrupt
			}
		}
	}
	if !ok(s.Roots, n) || !ok(s.CallMain, n) || !ok(s.Asking, n) || !ok(s.Answering, n) || !ok(s.InitOnly, n) || s.Entry >= n || s.Main >= n || s.Starter >= n {
		return nil, errCorrupt
	}
	for _, e := range s.Exports {
		if e.Func < 0 || e.Func >= n {
			return nil, errCorrupt
		}
	}
	return s, nil
}
