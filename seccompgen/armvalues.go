package seccompgen

import (
	"encoding/binary"
	"slices"

	"github.com/declarun/declarun/seccompgen/a64"
	"github.com/declarun/declarun/seccompgen/elfread"
)

// armBody is one AArch64 function decoded for value analysis; the counterpart
// of body.
type armBody struct {
	b     *builder
	r     elfread.Range
	ins   []a64.Inst // one for every word; what is no instruction is a Trap
	preds [][]int32
	entry []bool
	// wild are jumps that may lead anywhere in the function.
	wild     []int32
	switches map[int32]bool // jumps that stay in the function
	delta    []int32        // stack pointer before the instruction, relative to entry
	frame    []int32        // frame pointer likewise
	unwinds  bool
	isGo     bool
	leas     []int32
	clobber  uint32
}

func (arm64) decode(b *builder, fi int32) code { return b.armBody(fi) }

func (b *builder) armBody(fi int32) *armBody {
	if d, ok := b.codes[fi].(*armBody); ok {
		return d
	}
	d := &armBody{b: b, r: b.funcs[fi], isGo: b.isGo[fi], clobber: armClobberC, switches: map[int32]bool{}}
	if d.isGo {
		d.clobber = armClobberGo
	}
	d.unwinds = b.exact[fi] && !d.isGo
	d.build()
	b.codes[fi] = d
	return d
}

func (d *armBody) pc(i int32) uint64 { return d.r.Lo + uint64(i)*4 }

func (d *armBody) index(pc uint64) int32 {
	if pc < d.r.Lo || (pc-d.r.Lo)/4 >= uint64(len(d.ins)) || (pc-d.r.Lo)&3 != 0 {
		return -1
	}
	return int32((pc - d.r.Lo) / 4)
}

func (d *armBody) build() {
	code := d.b.f.Bytes(d.r.Lo)
	code = code[:min(uint64(len(code)), d.r.Hi-d.r.Lo, maxBody*4)]
	d.ins = make([]a64.Inst, len(code)/4)
	for i := range d.ins {
		if !a64.Decode(binary.LittleEndian.Uint32(code[i*4:]), &d.ins[i]) {
			d.ins[i].Class = a64.Trap
		}
	}
	n := len(d.ins)
	d.preds = make([][]int32, n+1)
	d.entry = make([]bool, n+1)
	succs := make([][]int32, n)
	edge := func(from, to int32) {
		d.preds[to] = append(d.preds[to], from)
		if int(to) < n {
			succs[from] = append(succs[from], to)
		}
	}
	var unknown []int32 // jumps without a table
	for i := range d.ins {
		in, pc := &d.ins[i], d.pc(int32(i))
		d.entry[i] = i == 0 || d.b.inner.has(pc)
		switch in.Class {
		case a64.Jmp, a64.Jcc:
			if t := d.index(in.Target(pc)); t >= 0 {
				edge(int32(i), t)
			}
			if in.Class == a64.Jmp {
				continue
			}
		case a64.JmpInd:
			if j, ok := d.b.jumpTable(d.r, pc, in.Rn); ok {
				d.switches[int32(i)] = true
				to := j.targets(d.b.f, d.r)
				slices.Sort(to)
				for _, t := range slices.Compact(to) {
					if k := d.index(t); k >= 0 {
						edge(int32(i), k)
					}
				}
			} else {
				unknown = append(unknown, int32(i))
			}
			continue
		case a64.Ret, a64.Trap:
			continue
		case a64.Syscall:
			if i > 0 && !d.entry[i] && exits(d.b.f, pc) {
				continue
			}
		case a64.Call, a64.CallInd:
			if d.endsPath(int32(i)) {
				continue
			}
		}
		edge(int32(i), int32(i+1)) // n is the virtual end
	}
	if len(unknown) > 0 {
		d.lead(unknown, edge)
	}
	d.flow(succs)
}

// lead finds where jumps without a table lead: to labels that somebody points
// to, and to code that nothing leads to. One whose register is computed like
// that of a switch may lead anywhere.
func (d *armBody) lead(jumps []int32, edge func(from, to int32)) {
	var labels []int32
	for i := 1; i < len(d.ins); i++ {
		if d.entry[i] || len(d.preds[i]) == 0 && d.ins[i].Class != a64.Nop && d.ins[i].Class != a64.Trap {
			labels = append(labels, int32(i))
		}
	}
	var in a64.Inst
	for _, j := range jumps {
		_, ok := d.b.definition(d.r, d.pc(j), d.ins[j].Rn, &in)
		if ok && (in.Class == a64.Add || in.Class == a64.Sub || in.Class == a64.Load && in.Index != a64.None) {
			d.wild = append(d.wild, j)
			d.switches[j] = true
		}
		for _, l := range labels {
			edge(j, l)
		}
	}
}

func (d *armBody) endsPath(i int32) bool {
	in, pc := &d.ins[i], d.pc(i)
	if in.Class != a64.Call {
		return false
	}
	t := in.Target(pc)
	if sym, ok := d.b.stub(t); ok {
		return neverReturns[sym]
	}
	k := d.b.at(t)
	return k >= 0 && d.b.noreturn[k]
}

func (d *armBody) stack(i int32) (int32, bool) {
	sp := d.delta[i]
	return sp, sp > unvisited
}

func (d *armBody) within(i int32) bool {
	sp, ok := d.stack(i)
	return ok && sp != 0 || d.switches[i]
}

// flow finds where the stack and frame pointers are before each instruction.
func (d *armBody) flow(succs [][]int32) {
	n := len(d.ins)
	d.delta = make([]int32, n+1)
	d.frame = make([]int32, n+1)
	for i := range d.delta {
		d.delta[i], d.frame[i] = unvisited, unvisited
	}
	if n == 0 {
		return
	}
	join := func(slot *int32, v int32) bool {
		switch {
		case *slot == v, *slot == unknownDelta:
			return false
		case *slot == unvisited:
			*slot = v
		default:
			*slot = unknownDelta
		}
		return true
	}
	work := []int32{0}
	d.delta[0], d.frame[0] = 0, unknownDelta
	for len(work) > 0 {
		i := work[len(work)-1]
		work = work[:len(work)-1]
		sp, fp := d.pointers(i)
		for _, s := range succs[i] {
			if s == 0 {
				continue // where the function begins is what everything is relative to
			}
			a := join(&d.delta[s], sp)
			if join(&d.frame[s], fp) || a {
				work = append(work, s)
			}
		}
		if int(i) == n-1 {
			d.delta[n], d.frame[n] = sp, fp
		}
	}
	for i := range d.ins {
		in := &d.ins[i]
		if in.Rd == a64.SP || in.Rd == armFrame || in.Rd > 30 {
			continue
		}
		switch in.Class {
		case a64.Mov, a64.AddImm, a64.Add, a64.Sub:
			if base, ok := d.pointer(int32(i), in.Rn); ok {
				if in.Class == a64.AddImm {
					base = shift(base, in.Imm)
				}
				d.leas = append(d.leas, base)
			}
		}
	}
}

// shift moves a distance, within reason.
func shift(sp int32, by int64) int32 {
	if sp <= unvisited || by <= -1<<28 || by >= 1<<28 || int64(sp)+by <= -1<<28 || int64(sp)+by >= 1<<28 {
		return unknownDelta
	}
	return sp + int32(by)
}

// pointer gives the distance that a register is from the stack at entry.
func (d *armBody) pointer(i int32, reg uint8) (int32, bool) {
	v := int32(unknownDelta)
	switch reg {
	case a64.SP:
		v = d.delta[i]
	case armFrame:
		v = d.frame[i]
	}
	return v, v > unvisited
}

// pointers gives the stack and frame pointers after instruction i.
func (d *armBody) pointers(i int32) (sp, fp int32) {
	in := &d.ins[i]
	sp, fp = d.delta[i], d.frame[i]
	w := in.Writes()
	next := int32(unknownDelta)
	switch in.Class {
	case a64.Mov, a64.AddImm:
		if base, ok := d.pointer(i, in.Rn); ok && in.Size == 8 {
			next = base
			if in.Class == a64.AddImm {
				next = shift(base, in.Imm)
			}
		} else if in.Rd == a64.SP && in.Class == a64.Mov {
			next = d.copied(i, in.Rn)
		}
	case a64.Add, a64.Sub:
		base, ok := d.pointer(i, in.Rn)
		c, known := d.constantBefore(i, in.Rm)
		if ok && known && in.Plain && in.Bits == 64 && in.Shift == 0 && in.Size == 8 {
			if in.Class == a64.Sub {
				c = -c
			}
			next = shift(base, c)
		}
	case a64.Load, a64.Store:
		if in.Mode != a64.Offset {
			if base, ok := d.pointer(i, in.Base); ok && in.Rd != in.Base {
				next = shift(base, in.Imm)
			}
		}
	}
	if w>>a64.SP&1 != 0 {
		sp = next
	}
	if w>>armFrame&1 != 0 {
		fp = next
		// Restored together with a change of the stack pointer.
		if in.Class == a64.Load && (in.Rd == armFrame || in.R2 == armFrame) {
			fp = unknownDelta
		}
	}
	return sp, fp
}

// copied gives the stack pointer that was put together in another register just
// before: large frames of Go.
func (d *armBody) copied(i int32, reg uint8) int32 {
	for k := i - 1; k >= 0 && k >= i-16; k-- {
		in := &d.ins[k]
		switch in.Class {
		case a64.Jmp, a64.JmpInd, a64.Ret, a64.Trap, a64.Call, a64.CallInd:
			return unknownDelta
		}
		if in.Writes()>>reg&1 == 0 {
			continue
		}
		base, ok := d.pointer(k, in.Rn)
		switch {
		case !ok || in.Size != 8:
		case in.Class == a64.AddImm:
			return shift(base, in.Imm)
		case in.Class == a64.Sub && in.Plain && in.Shift == 0 && in.Bits == 64:
			if c, ok := d.constantBefore(k, in.Rm); ok {
				return shift(base, -c)
			}
		}
		return unknownDelta
	}
	return unknownDelta
}

// constantBefore gives the constant that was put in a register just before.
func (d *armBody) constantBefore(i int32, reg uint8) (int64, bool) {
	if reg == a64.ZR {
		return 0, true
	}
	keep := ^int64(0)
	patch := int64(0)
	for k := i - 1; k >= 0 && k >= i-8 && reg < 31; k-- {
		in := &d.ins[k]
		if d.entry[k+1] || in.Class == a64.Jmp || in.Class == a64.JmpInd || in.Class == a64.Call || in.Class == a64.CallInd {
			return 0, false
		}
		if in.Writes()>>reg&1 == 0 {
			continue
		}
		switch in.Class {
		case a64.MovKeep:
			m := int64(0xffff) << in.Shift
			patch |= in.Imm << in.Shift & keep
			keep &^= m
			continue
		case a64.MovImm:
			return in.Imm&keep | patch, true
		}
		return 0, false
	}
	return 0, false
}

// slotOf gives the stack slot of a memory operand.
func (d *armBody) slotOf(i int32) (int32, bool) {
	in := &d.ins[i]
	if in.Index != a64.None {
		return 0, false
	}
	base, ok := d.pointer(i, in.Base)
	if !ok {
		return 0, false
	}
	if in.Mode != a64.Post {
		base = shift(base, in.Imm)
	}
	return base, base > unvisited
}

// before gives what loc may hold just before instruction i.
func (d *armBody) before(i int32, loc location) values {
	if i < 0 {
		return values{unknown: "in code that is decoded two ways"}
	}
	q := &armQuery{d: d, open: map[point]bool{}}
	v := q.before(i, loc, 0)
	if v.unknown == "" && len(v.consts) == 0 && len(v.params) == 0 {
		v.unknown = "in code that nothing is seen to lead to"
	}
	return v
}

type armQuery struct {
	d     *armBody
	steps int
	open  map[point]bool
}

func (q *armQuery) before(i int32, loc location, depth int) values {
	var out values
	if depth > maxDepth {
		out.unknown = "computed in too many steps"
		return out
	}
	if !loc.Slot && loc.Reg == a64.ZR {
		out.addConst(0)
		return out
	}
	start := point{i, loc}
	if q.open[start] {
		out.unknown = "computed in a loop"
		return out
	}
	q.open[start] = true
	defer delete(q.open, start)
	seen := map[point]bool{start: true}
	work := []point{start}
	push := func(p point) {
		if !seen[p] {
			seen[p] = true
			work = append(work, p)
		}
	}
	d := q.d
	for len(work) > 0 {
		if q.steps++; q.steps > maxSteps {
			out.unknown = "too many paths"
			return out
		}
		p := work[len(work)-1]
		work = work[:len(work)-1]
		if d.entry[p.at] {
			out.addParam(p.loc)
		}
		for _, w := range d.wild {
			q.after(w, p.loc, depth, &out, push)
		}
		preds := d.preds[p.at]
		if len(preds) == 0 && !d.entry[p.at] {
			// Dead, or where an exception lands: see query.before.
			if int(p.at) < len(d.ins) && d.ins[p.at].Class == a64.Nop {
				continue
			}
			if d.unwinds && (p.loc.Slot || d.clobber>>p.loc.Reg&1 == 0) {
				for k := range d.ins {
					if c := d.ins[k].Class; c == a64.Call || c == a64.CallInd {
						push(point{int32(k), p.loc})
					}
				}
			}
			continue
		}
		for _, pr := range preds {
			if c, ok := q.proved(pr, p); ok {
				out.addConst(c)
				continue
			}
			q.after(pr, p.loc, depth, &out, push)
		}
	}
	return out
}

// proved tells what a branch on equality says of a register.
func (q *armQuery) proved(jcc int32, p point) (int64, bool) {
	d := q.d
	j := &d.ins[jcc]
	if j.Class != a64.Jcc || p.loc.Slot {
		return 0, false
	}
	taken := d.index(j.Target(d.pc(jcc))) == p.at
	if taken == (p.at == jcc+1) {
		return 0, false
	}
	switch j.Test {
	case a64.Zero:
		return 0, taken && j.Rn == p.loc.Reg
	case a64.NotZero:
		return 0, !taken && j.Rn == p.loc.Reg
	case a64.Flags:
		if jcc == 0 || len(d.preds[jcc]) != 1 || d.preds[jcc][0] != jcc-1 || d.entry[jcc] || len(d.wild) > 0 {
			return 0, false
		}
		c := &d.ins[jcc-1]
		if c.Class != a64.CmpImm || c.Rn != p.loc.Reg || j.Cond > 1 || taken != (j.Cond == 0) {
			return 0, false
		}
		return cut(c.Imm, c.Size), true
	}
	return 0, false
}

// cut is what is left of a value in a register of that size.
func cut(c int64, size uint8) int64 {
	if size == 4 {
		return zext32(c)
	}
	return c
}

func (q *armQuery) after(i int32, loc location, depth int, out *values, push func(point)) {
	in := &q.d.ins[i]
	fail := func(why string) {
		if out.unknown == "" {
			out.unknown = why
		}
	}
	if loc.Slot {
		q.afterSlot(i, loc, out, push, fail)
		return
	}
	r := loc.Reg
	switch in.Class {
	case a64.Call, a64.CallInd:
		if q.d.clobber>>r&1 != 0 {
			fail("the result of a call")
			return
		}
		push(point{i, loc})
		return
	case a64.Syscall:
		if r == 0 {
			fail("the result of a system call")
			return
		}
	}
	if r > a64.SP || in.Writes()>>r&1 == 0 {
		push(point{i, loc})
		return
	}
	from := func(reg uint8) values { return q.before(i, location{Reg: reg}, depth+1) }
	switch in.Class {
	case a64.MovImm:
		out.addConst(in.Imm)
	case a64.MovKeep:
		v := q.before(i, loc, depth+1)
		mask := int64(0xffff) << in.Shift
		q.compute(v, out, fail, func(c int64) int64 { return cut(c&^mask|in.Imm<<in.Shift, in.Size) })
	case a64.Mov:
		switch {
		case in.Rn == a64.SP:
			fail(anAddress)
		case in.Rn == a64.ZR:
			out.addConst(0)
		case in.Size == 8:
			push(point{i, reg(in.Rn)})
		default:
			q.apply(from(in.Rn), out, zext32)
		}
	case a64.Page, a64.Addr:
		fail(anAddress)
	case a64.AddImm:
		if in.Rn == a64.SP {
			fail(anAddress)
			return
		}
		v := from(in.Rn)
		if v.unknown == anAddress {
			fail(anAddress)
			return
		}
		q.compute(v, out, fail, func(c int64) int64 { return cut(c+in.Imm, in.Size) })
	case a64.AndImm:
		q.and(from(in.Rn), in, out, fail)
	case a64.OrImm:
		q.compute(from(in.Rn), out, fail, func(c int64) int64 { return cut(c|in.Imm, in.Size) })
	case a64.XorImm:
		q.compute(from(in.Rn), out, fail, func(c int64) int64 { return cut(c^in.Imm, in.Size) })
	case a64.Extend:
		v := from(in.Rn)
		if in.Bits >= 32 {
			q.apply(v, out, func(c int64) int64 { return extend(c, in) })
			return
		}
		q.compute(v, out, fail, func(c int64) int64 { return extend(c, in) })
	case a64.Add, a64.Sub, a64.Or, a64.And:
		q.binary(i, from, out, fail)
	case a64.Sel:
		q.apply(from(in.Rn), out, func(c int64) int64 { return cut(c, in.Size) })
		if in.Change == a64.Same {
			q.apply(from(in.Rm), out, func(c int64) int64 { return cut(c, in.Size) })
			return
		}
		q.compute(from(in.Rm), out, fail, func(c int64) int64 {
			switch in.Change {
			case a64.Inc:
				c++
			case a64.Inv:
				c = ^c
			case a64.Neg:
				c = -c
			}
			return cut(c, in.Size)
		})
	case a64.LoadLit:
		if c, ok := constant(q.d.b.f, in.Target(q.d.pc(i)), in.Width); ok {
			out.addConst(loaded(c, in))
			return
		}
		fail("loaded from a variable")
	case a64.Load:
		q.load(i, r, depth, out, push, fail)
	default:
		fail("computed")
	}
}

// apply adds f of every value. A parameter stays what it is: a call number has
// no more than 32 bits.
func (q *armQuery) apply(v values, out *values, f func(int64) int64) {
	for _, c := range v.consts {
		out.addConst(f(c))
	}
	v.consts = nil
	out.merge(v)
}

// compute adds f of every value, all of which must be known.
func (q *armQuery) compute(v values, out *values, fail func(string), f func(int64) int64) {
	if !v.finite() {
		fail("computed")
		return
	}
	for _, c := range v.consts {
		out.addConst(f(c))
	}
}

func extend(c int64, in *a64.Inst) int64 {
	s := 64 - uint(in.Bits)
	c <<= s
	if in.Signed {
		c >>= s
	} else {
		c = int64(uint64(c) >> s)
	}
	return cut(c, in.Size)
}

func loaded(c int64, in *a64.Inst) int64 {
	if !in.Signed {
		return c
	}
	s := 64 - 8*uint(in.Width)
	return cut(c<<s>>s, in.Size)
}

func (q *armQuery) and(v values, in *a64.Inst, out *values, fail func(string)) {
	if v.finite() {
		q.compute(v, out, fail, func(c int64) int64 { return cut(c&in.Imm, in.Size) })
		return
	}
	// Whatever it was, only these bits are left.
	count := 0
	for m := in.Imm; m != 0 && count <= 5; m &= m - 1 {
		count++
	}
	if count > 5 {
		fail("computed")
		return
	}
	for s := in.Imm; ; s = (s - 1) & in.Imm {
		out.addConst(s)
		if s == 0 {
			return
		}
	}
}

// binary handles an operation on two registers.
func (q *armQuery) binary(i int32, from func(uint8) values, out *values, fail func(string)) {
	in := &q.d.ins[i]
	if !in.Plain || in.Rn == a64.SP {
		fail("computed")
		return
	}
	x, y := from(in.Rn), from(in.Rm)
	if !x.finite() || !y.finite() {
		fail("computed")
		return
	}
	for _, a := range x.consts {
		for _, c := range y.consts {
			if in.Bits < 64 {
				e := *in
				e.Size = 8
				c = extend(c, &e)
			}
			c <<= in.Shift
			switch in.Class {
			case a64.Add:
				c = a + c
			case a64.Sub:
				c = a - c
			case a64.Or:
				c |= a
			case a64.And:
				c &= a
			}
			out.addConst(cut(c, in.Size))
		}
	}
}

// load adds what a load leaves in r.
func (q *armQuery) load(i int32, r uint8, depth int, out *values, push func(point), fail func(string)) {
	in, d := &q.d.ins[i], q.d
	if r != in.Rd && !(in.Pair && r == in.R2) { // the base, written back
		q.compute(q.before(i, reg(r), depth+1), out, fail, func(c int64) int64 { return c + in.Imm })
		return
	}
	disp := int64(0)
	if in.Pair && r == in.R2 {
		disp = int64(in.Width)
	}
	if off, ok := d.slotOf(i); ok {
		loc := location{Slot: true, Off: off + int32(disp), Size: in.Width}
		if in.Width == 8 {
			push(point{i, loc})
			return
		}
		q.apply(q.before(i, loc, depth+1), out, func(c int64) int64 {
			s := 64 - 8*uint(in.Width)
			return loaded(int64(uint64(c)<<s>>s), in)
		})
		return
	}
	if in.Index == a64.None && in.Mode != a64.Post {
		if a, ok := q.static(i, in.Base); ok {
			a += uint64(in.Imm + disp)
			if c, ok := constant(d.b.f, a, in.Width); ok {
				out.addConst(loaded(c, in))
				return
			}
			if d.isGo {
				if c, ok := d.b.armVariable(a, in.Width); ok {
					out.addConst(c)
					return
				}
			}
			fail("loaded from a variable")
			return
		}
	}
	fail("loaded from memory")
}

// static gives the address in a register, where it was made just before.
func (q *armQuery) static(i int32, reg uint8) (uint64, bool) {
	in, at, ok := q.made(i, reg)
	if !ok {
		return 0, false
	}
	switch in.Class {
	case a64.Page:
		return in.Page(q.d.pc(at)), true
	case a64.Addr:
		return in.Target(q.d.pc(at)), true
	case a64.AddImm:
		page, where, ok := q.made(at, in.Rn)
		return page.Page(q.d.pc(where)) + uint64(in.Imm), ok && page.Class == a64.Page
	}
	return 0, false
}

// made finds the instruction that set a register, on the only way from there to i.
func (q *armQuery) made(i int32, reg uint8) (a64.Inst, int32, bool) {
	d := q.d
	var in a64.Inst
	pc, ok := d.b.definition(d.r, d.pc(i), reg, &in)
	at := d.index(pc)
	if !ok || at < 0 || len(d.wild) > 0 {
		return in, 0, false
	}
	for k := at + 1; k <= i; k++ {
		if len(d.preds[k]) != 1 || d.preds[k][0] != k-1 || d.entry[k] {
			return in, 0, false
		}
	}
	return in, at, true
}

// afterSlot is after for a stack slot.
func (q *armQuery) afterSlot(i int32, loc location, out *values, push func(point), fail func(string)) {
	in, d := &q.d.ins[i], q.d
	hi := loc.Off + int32(loc.Size)
	escaped := func() bool {
		for _, a := range d.leas {
			if a <= loc.Off && loc.Off-a < 4096 {
				return true
			}
		}
		return false
	}
	switch in.Class {
	case a64.Call, a64.CallInd:
		if escaped() {
			fail("in memory that a call may change")
			return
		}
	case a64.Store, a64.StoreAny:
		off, ok := d.slotOf(i)
		if !ok {
			base, onStack := d.pointer(i, in.Base)
			switch {
			case onStack && base >= hi: // an array above it
			case in.Base == a64.SP || onStack:
				fail("in a stack that is not followed")
				return
			case escaped():
				fail("in memory that a pointer may change")
				return
			}
			push(point{i, loc})
			return
		}
		width := int32(in.Width)
		total := width
		if in.Pair {
			total *= 2
		}
		if in.Class == a64.StoreAny && in.Width == 0 {
			fail("in a stack that is not followed")
			return
		}
		if off+total <= loc.Off || off >= hi {
			break
		}
		if in.Class == a64.StoreAny || in.Vector {
			fail("computed in memory")
			return
		}
		src := in.Rd
		if in.Pair && loc.Off >= off+width {
			off, src = off+width, in.R2
		}
		if off != loc.Off || width < int32(loc.Size) {
			fail("computed in memory")
			return
		}
		if src == a64.ZR {
			out.addConst(0)
			return
		}
		push(point{i, reg(src)})
		return
	}
	push(point{i, loc})
}
