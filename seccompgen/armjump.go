package seccompgen

import (
	"encoding/binary"

	"github.com/declarun/declarun/seccompgen/a64"
	"github.com/declarun/declarun/seccompgen/elfread"
)

// jumpTable is what an indirect jump made from a switch reads: at table, count
// entries of width bytes. Each is an address, or a distance from base, counted
// in bytes or, shifted, in instructions.
type jumpTable struct {
	from   uint64 // the instruction that makes base where that is a label, else 0
	base   uint64
	table  uint64
	width  uint8
	signed bool
	shift  uint8
	count  int
}

// Bounds on looking at switches.
const (
	maxBack    = 64
	maxEntries = 4096
)

// jumpTable recognises the switch whose jump is at pc, through reg.
func (b *builder) jumpTable(r elfread.Range, pc uint64, reg uint8) (jumpTable, bool) {
	var in, load a64.Inst
	at, ok := b.definition(r, pc, reg, &in)
	if !ok {
		return jumpTable{}, false
	}
	if in.Class == a64.Load { // a table of addresses
		if in.Index == a64.None || in.Width != 8 || in.Vector {
			return jumpTable{}, false
		}
		table, _, ok := b.address(r, at, in.Base)
		return jumpTable{table: table, width: 8, count: b.bound(r, at, in.Index)}, ok
	}
	if in.Class != a64.Add || in.Size != 8 || !in.Plain || in.SetsFlags {
		return jumpTable{}, false
	}
	for _, order := range [][2]uint8{{in.Rn, in.Rm}, {in.Rm, in.Rn}} {
		base, from, ok := b.address(r, at, order[0])
		if !ok || order[0] == in.Rm && in.Shift != 0 {
			continue
		}
		where, ok := b.definition(r, at, order[1], &load)
		j := jumpTable{from: from, base: base, shift: in.Shift}
		if ok && load.Class == a64.Extend && load.Bits >= 8 {
			j.signed = load.Signed
			where, ok = b.definition(r, where, load.Rn, &load)
		}
		if !ok || load.Class != a64.Load || load.Index == a64.None || load.Vector || load.Pair || load.Width > 4 {
			continue
		}
		j.width, j.signed = load.Width, j.signed || load.Signed || in.Signed && in.Bits <= load.Width*8
		if j.table, _, ok = b.address(r, where, load.Base); !ok {
			continue
		}
		j.count = b.bound(r, where, load.Index)
		return j, true
	}
	return jumpTable{}, false
}

// definition finds the instruction that leaves in reg what it holds before pc,
// where the code above leads straight on to pc.
func (b *builder) definition(r elfread.Range, pc uint64, reg uint8, in *a64.Inst) (uint64, bool) {
	if reg > 30 {
		return 0, false
	}
	for n := 0; n < maxBack && pc > r.Lo; n++ {
		pc -= 4
		if !fetch(b.f, pc, in) {
			return 0, false
		}
		switch in.Class {
		case a64.Jmp, a64.JmpInd, a64.Ret, a64.Trap:
			return 0, false
		case a64.Call, a64.CallInd:
			if armClobberC>>reg&1 != 0 {
				return 0, false
			}
		}
		if in.Writes()>>reg&1 != 0 {
			return pc, true
		}
	}
	return 0, false
}

// Bounds on looking for the one definition that reaches a jump.
const (
	maxReachSize  = 1 << 20
	maxReachSteps = 50_000
)

// reaching finds the one instruction that leaves in reg what it holds before
// pc, whatever way was taken, as far as that is known before the switches of
// the function are.
func (b *builder) reaching(r elfread.Range, pc uint64, reg uint8, out *a64.Inst) (uint64, bool) {
	if reg > 30 || r.Hi-r.Lo > maxReachSize {
		return 0, false
	}
	sources := b.branchSources(r)
	work := []uint64{pc}
	seen := map[uint64]bool{pc: true}
	found := uint64(0)
	var in a64.Inst
	// before handles the instruction at a, from which control comes.
	before := func(a uint64) bool {
		if !fetch(b.f, a, &in) {
			return false
		}
		if (in.Class == a64.Call || in.Class == a64.CallInd) && armClobberC>>reg&1 != 0 {
			return false
		}
		if in.Writes()>>reg&1 == 0 {
			if !seen[a] {
				seen[a] = true
				work = append(work, a)
			}
			return true
		}
		if found != 0 && found != a {
			return false
		}
		found, *out = a, in
		return true
	}
	for n := 0; len(work) > 0; n++ {
		a := work[len(work)-1]
		work = work[:len(work)-1]
		if b.followed++; n > maxReachSteps || a == r.Lo || b.followed > b.followLimit() {
			return 0, false
		}
		for _, s := range sources[a] {
			if !before(s) {
				return 0, false
			}
		}
		if !fetch(b.f, a-4, &in) {
			return 0, false
		}
		switch in.Class {
		case a64.Jmp, a64.JmpInd, a64.Ret, a64.Trap:
			continue
		}
		if !before(a - 4) {
			return 0, false
		}
	}
	return found, found != 0
}

// branchSources gives, for the places of a function that are branched to, from where.
func (b *builder) branchSources(r elfread.Range) map[uint64][]uint64 {
	if m, ok := b.sources[r.Lo]; ok {
		return m
	}
	m := map[uint64][]uint64{}
	var in a64.Inst
	for pc := r.Lo; pc+4 <= r.Hi; pc += 4 {
		if fetch(b.f, pc, &in) && (in.Class == a64.Jmp || in.Class == a64.Jcc) {
			if t := in.Target(pc); t >= r.Lo && t < r.Hi {
				m[t] = append(m[t], pc)
			}
		}
	}
	b.sources = map[uint64]map[uint64][]uint64{r.Lo: m} // the last is enough
	return m
}

// address gives the address that reg holds before pc, and where it was made.
func (b *builder) address(r elfread.Range, pc uint64, reg uint8) (uint64, uint64, bool) {
	var in, page a64.Inst
	at, ok := b.definition(r, pc, reg, &in)
	if !ok {
		at, ok = b.reaching(r, pc, reg, &in)
	}
	for range 2 {
		if !ok || in.Class != a64.Mov || in.Size != 8 {
			break
		}
		reg = in.Rn
		at, ok = b.definition(r, at, reg, &in)
	}
	if !ok {
		return 0, 0, false
	}
	switch in.Class {
	case a64.Addr:
		return in.Target(at), at, true
	case a64.AddImm:
		where, ok := b.definition(r, at, in.Rn, &page)
		if !ok {
			where, ok = b.reaching(r, at, in.Rn, &page)
		}
		if ok && page.Class == a64.Page {
			return page.Page(where) + uint64(in.Imm), 0, true
		}
	}
	return 0, 0, false
}

// bound gives how many entries a table has whose index was compared with a
// constant right before, or -1.
func (b *builder) bound(r elfread.Range, pc uint64, index uint8) int {
	var in, jcc a64.Inst
	for n := 0; n < 24 && pc > r.Lo+4; n++ {
		pc -= 4
		if !fetch(b.f, pc, &in) || in.Writes()>>index&1 != 0 || index > 30 {
			return -1
		}
		switch in.Class {
		case a64.Jmp, a64.JmpInd, a64.Ret, a64.Trap, a64.Call, a64.CallInd:
			return -1
		case a64.CmpImm:
			if in.Rn != index || !fetch(b.f, pc+4, &jcc) || jcc.Class != a64.Jcc || jcc.Test != a64.Flags || in.Imm < 0 || in.Imm >= maxEntries {
				return -1
			}
			switch jcc.Cond {
			case 8: // above goes elsewhere
				return int(in.Imm) + 1
			case 2: // not below goes elsewhere
				return int(in.Imm)
			}
			return -1
		}
	}
	return -1
}

// targets gives where the switch can lead, as far as that is in r.
func (j *jumpTable) targets(f *elfread.File, r elfread.Range) []uint64 {
	var out []uint64
	d := f.Bytes(j.table)
	n := j.count
	if n < 0 {
		n = maxEntries
	}
	for ; n > 0 && len(d) >= int(j.width); n-- {
		var v uint64
		switch j.width {
		case 1:
			v = uint64(d[0])
			if j.signed {
				v = uint64(int8(d[0]))
			}
		case 2:
			v = uint64(binary.LittleEndian.Uint16(d))
			if j.signed {
				v = uint64(int16(v))
			}
		case 4:
			v = uint64(binary.LittleEndian.Uint32(d))
			if j.signed {
				v = uint64(int32(v))
			}
		case 8:
			v = binary.LittleEndian.Uint64(d)
		}
		d = d[j.width:]
		t := j.base + v<<j.shift
		if t < r.Lo || t >= r.Hi || t&3 != 0 {
			if j.count < 0 {
				break
			}
			continue
		}
		out = append(out, t)
	}
	return out
}

// mayJump gives where in its function the jump at pc through reg may lead: the
// entries of its table, or else every place that nothing is seen to lead to.
func (b *builder) mayJump(r elfread.Range, pc uint64, reg uint8) []uint64 {
	if j, ok := b.jumpTable(r, pc, reg); ok {
		return j.targets(b.f, r)
	}
	var in a64.Inst
	if _, ok := b.definition(r, pc, reg, &in); ok && in.Class != a64.Add && in.Class != a64.Sub && (in.Class != a64.Load || in.Index == a64.None) {
		return nil // a call
	}
	out, ok := b.tails[r.Lo]
	if !ok {
		out = b.afterEnds(r)
		b.tails[r.Lo] = out
	}
	return out
}

// afterEnds lists the places of a function that follow the end of a path.
func (b *builder) afterEnds(r elfread.Range) []uint64 {
	var out []uint64
	var in a64.Inst
	ends := false
	for a := r.Lo; a+4 <= r.Hi && len(out) < maxEntries; a += 4 {
		if ends {
			out = append(out, a)
		}
		ends = false
		if !fetch(b.f, a, &in) {
			continue
		}
		switch in.Class {
		case a64.Jmp, a64.JmpInd, a64.Ret, a64.Trap:
			ends = true
		}
	}
	return out
}
