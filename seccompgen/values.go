package seccompgen

import (
	"encoding/binary"
	"slices"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/x86"
)

// location is where a value lives at one point of a function: a general
// register, or a stack slot by its distance from where the stack pointer was
// on entry (0 is the return address, 8 the first argument on the stack).
type location struct {
	Slot bool
	Reg  uint8
	Off  int32
	Size uint8 // bytes of a slot that matter
}

// values is what a location may hold: the union of all three.
type values struct {
	consts  []int64
	params  []location // whatever the caller left there
	unknown string     // why it may hold anything else
}

const maxConsts = 128

func (v *values) addConst(c int64) {
	if slices.Contains(v.consts, c) {
		return
	}
	if len(v.consts) >= maxConsts {
		v.unknown = "more values than are followed"
		return
	}
	v.consts = append(v.consts, c)
}

func (v *values) addParam(l location) {
	if !slices.Contains(v.params, l) {
		v.params = append(v.params, l)
	}
}

func (v *values) merge(w values) {
	for _, c := range w.consts {
		v.addConst(c)
	}
	for _, p := range w.params {
		v.addParam(p)
	}
	if v.unknown == "" {
		v.unknown = w.unknown
	}
}

func (v *values) finite() bool { return v.unknown == "" && len(v.params) == 0 }

// body is one function decoded for value analysis.
type body struct {
	r     elfread.Range
	ins   []x86.Inst
	pcs   []uint64
	preds [][]int32
	entry []bool
	delta []int32 // stack pointer before the instruction, relative to entry
	frame []int32 // frame pointer likewise
	// switches is true where every indirect jump has a table.
	switches bool
	// tables counts the jump tables, cases are where they and computed labels lead.
	tables int
	cases  []int32
	// unwinds is true where an exception can land: unwinding needs .eh_frame.
	unwinds bool
	// variable gives the value of a variable that nothing changes; may be nil.
	variable func(addr uint64, size uint8) (int64, bool)
	leas     []int32 // slots whose address is computed
	// exact is true where 32 bits of a value matter, and not a call number: a
	// parameter of which an instruction keeps less is no longer that parameter.
	exact   bool
	clobber uint32 // registers that a call changes
}

const (
	unknownDelta = -1 << 31
	unvisited    = -1<<31 + 1
	maxBody      = 1 << 20 // instructions
)

// What calls change: in C everything but the callee-saved registers, in Go
// everything but the stack pointer and, by convention, RBP.
const (
	clobberC  = 1<<x86.RAX | 1<<x86.RCX | 1<<x86.RDX | 1<<x86.RSI | 1<<x86.RDI | 1<<x86.R8 | 1<<x86.R9 | 1<<x86.R10 | 1<<x86.R11
	clobberGo = 0xffff &^ (1<<x86.RSP | 1<<x86.RBP)
)

func (b *builder) body(fi int32) *body {
	if d, ok := b.bodies[fi]; ok {
		return d
	}
	d := newBody(b.f, b.funcs[fi], &b.inner, b.isGo[fi], b.endsPath)
	d.unwinds = b.exact[fi] && !b.isGo[fi]
	if b.isGo[fi] {
		d.variable = b.goVariable
	}
	b.bodies[fi] = d
	return d
}

func newBody(f *elfread.File, r elfread.Range, inner *addrSet, isGo bool, endsPath func(*x86.Inst, uint64) bool) *body {
	d := &body{r: r, clobber: clobberC}
	if isGo {
		d.clobber = clobberGo
	}
	code := f.Bytes(r.Lo)
	if uint64(len(code)) > r.Hi-r.Lo {
		code = code[:r.Hi-r.Lo]
	}
	var in x86.Inst
	for p := 0; p < len(code) && len(d.ins) < maxBody; {
		if !x86.Decode(code[p:], &in) {
			p++
			continue
		}
		d.ins = append(d.ins, in)
		d.pcs = append(d.pcs, r.Lo+uint64(p))
		p += int(in.Len)
	}
	n := len(d.ins)
	d.preds = make([][]int32, n+1)
	d.entry = make([]bool, n+1)
	succs := make([][]int32, n)
	edge := func(from, to int32) {
		d.preds[to] = append(d.preds[to], from)
		succs[from] = append(succs[from], to)
	}
	var jumps []int32
	var tables []int32
	table := func(to []int32) {
		if len(to) > 0 {
			d.tables++
			tables = append(tables, to...)
		}
	}
	for i := range d.ins {
		in, pc := &d.ins[i], d.pcs[i]
		if inner.has(pc) || i == 0 {
			d.entry[i] = true
		}
		switch in.Class {
		case x86.Jmp, x86.Jcc:
			if t := d.index(in.Target(pc)); t >= 0 {
				edge(int32(i), t)
			}
			if in.Class == x86.Jmp {
				continue
			}
		case x86.JmpInd:
			jumps = append(jumps, int32(i))
			if in.IsMem && in.Base == x86.None && !in.RIP {
				table(absTable(f, d, uint64(int64(in.Disp))))
			}
			continue
		case x86.Ret, x86.Trap:
			continue
		case x86.Call, x86.CallInd:
			if endsPath(in, pc) {
				continue
			}
		case x86.Lea:
			if in.RIP {
				a := in.Address(pc)
				if f.IsCode(a) {
					if t := d.index(a); t >= 0 {
						table([]int32{t})
					}
				} else {
					table(relTable(f, d, a))
				}
			}
		case x86.Mov:
			if in.IsMem && in.Load && in.Index != x86.None && in.Base == x86.None {
				table(absTable(f, d, uint64(int64(in.Disp))))
			}
		case x86.MovImm:
			if a := uint64(uint32(in.Imm)); !f.IsCode(a) && in.Size >= 4 {
				table(absTable(f, d, a))
			}
		}
		edge(int32(i), int32(i+1)) // n is the virtual end
		if i+1 == n {
			succs[i] = succs[i][:len(succs[i])-1]
		}
	}
	d.switches = len(tables) > 0 && len(jumps) == 1
	d.cases = slices.Clone(tables)
	slices.Sort(d.cases)
	if len(jumps) > 0 {
		for i := range d.ins {
			// A label that somebody points to, or code that nothing leads to.
			if i > 0 && (d.entry[i] || len(d.preds[i]) == 0 && d.ins[i].Class != x86.Nop && d.ins[i].Class != x86.Trap) {
				tables = append(tables, int32(i))
			}
		}
		slices.Sort(tables)
		for _, t := range slices.Compact(tables) {
			for _, j := range jumps {
				edge(j, t)
			}
		}
	}
	d.flow(succs)
	return d
}

// relTable reads a jump table of 32-bit distances from itself, as far as it
// leads into the function.
func relTable(f *elfread.File, body *body, table uint64) []int32 {
	var out []int32
	d := f.Bytes(table)
	for len(d) >= 4 && len(out) < 4096 {
		t := body.index(table + uint64(int64(int32(binary.LittleEndian.Uint32(d)))))
		if t < 0 {
			break
		}
		out = append(out, t)
		d = d[4:]
	}
	return out
}

// absTable reads a jump table of 64-bit addresses.
func absTable(f *elfread.File, body *body, table uint64) []int32 {
	var out []int32
	d := f.Bytes(table)
	for len(d) >= 8 && len(out) < 4096 {
		t := body.index(binary.LittleEndian.Uint64(d))
		if t < 0 {
			break
		}
		out = append(out, t)
		d = d[8:]
	}
	return out
}

// flow finds where the stack and frame pointers are before each instruction.
func (d *body) flow(succs [][]int32) {
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
		in := &d.ins[i]
		sp, bp := d.delta[i], d.frame[i]
		add := func(k int64) {
			if sp != unknownDelta && k > -1<<28 && k < 1<<28 {
				sp += int32(k)
			} else {
				sp = unknownDelta
			}
			if sp < -1<<28 || sp > 1<<28 {
				sp = unknownDelta
			}
		}
		w := in.Writes()
		switch {
		case in.Class == x86.Push || in.Class == x86.PushImm:
			add(-8)
		case in.Class == x86.Pop && in.RM != x86.RSP:
			add(8)
			if in.RM == x86.RBP && !in.IsMem {
				bp = unknownDelta
			}
		case in.Class == x86.Leave:
			sp = bp
			add(8)
			bp = unknownDelta
		case in.Class == x86.AluImm && !in.IsMem && in.RM == x86.RSP && in.Alu == x86.Add:
			add(in.Imm)
		case in.Class == x86.AluImm && !in.IsMem && in.RM == x86.RSP && in.Alu == x86.Sub:
			add(-in.Imm)
		case in.Class == x86.Lea && in.Reg == x86.RSP && in.Base == x86.RSP && in.Index == x86.None:
			add(int64(in.Disp))
		case in.Class == x86.Lea && in.Reg == x86.RSP && in.Base == x86.RBP && in.Index == x86.None:
			sp = bp
			add(int64(in.Disp))
		case in.Class == x86.Lea && in.Reg == x86.RBP && in.Base == x86.RSP && in.Index == x86.None:
			bp = unknownDelta
			if sp != unknownDelta {
				bp = sp + in.Disp
			}
		case in.Class == x86.Mov && !in.IsMem && in.DstReg() == x86.RBP && in.SrcReg() == x86.RSP:
			bp = sp
		case in.Class == x86.Mov && !in.IsMem && in.DstReg() == x86.RSP && in.SrcReg() == x86.RBP:
			sp = bp
		default:
			if w&(1<<x86.RSP) != 0 {
				sp = unknownDelta
			}
			if w&(1<<x86.RBP) != 0 {
				bp = unknownDelta
			}
		}
		next := succs[i]
		for _, s := range next {
			if s == 0 {
				continue // where the function begins is what everything is relative to
			}
			a := join(&d.delta[s], sp)
			if join(&d.frame[s], bp) || a {
				work = append(work, s)
			}
		}
		if int(i) == n-1 {
			d.delta[n], d.frame[n] = sp, bp
		}
	}
	for i := range d.ins {
		if in := &d.ins[i]; in.Class == x86.Lea && in.Reg != x86.RBP {
			if off, ok := d.slotOf(int32(i)); ok {
				d.leas = append(d.leas, off)
			}
		}
	}
}

// slotOf gives the stack slot of a memory operand.
func (d *body) slotOf(i int32) (int32, bool) {
	in := &d.ins[i]
	if !in.IsMem || in.RIP || in.Seg || in.Index != x86.None {
		return 0, false
	}
	var base int32
	switch in.Base {
	case x86.RSP:
		base = d.delta[i]
	case x86.RBP:
		base = d.frame[i]
	default:
		return 0, false
	}
	if base <= unvisited || in.Disp > 1<<28 || in.Disp < -1<<28 {
		return 0, false
	}
	return base + in.Disp, true
}

// index gives the instruction at pc.
func (d *body) index(pc uint64) int32 {
	i, ok := slices.BinarySearch(d.pcs, pc)
	if !ok {
		return -1
	}
	return int32(i)
}

type point struct {
	at  int32
	loc location
}

type query struct {
	f     *elfread.File
	d     *body
	steps int
	open  map[point]bool // computations under way: meeting one again is a loop
	// addresses is true where the address of something in the file is a value.
	addresses bool
}

const (
	maxSteps = 4000
	maxDepth = 8
)

// valuesBefore gives what loc may hold just before instruction i.
func valuesBefore(f *elfread.File, d *body, i int32, loc location) values {
	q := &query{f: f, d: d, open: map[point]bool{}}
	v := q.before(i, loc, 0)
	if v.unknown == "" && len(v.consts) == 0 && len(v.params) == 0 {
		v.unknown = "in code that nothing is seen to lead to"
	}
	return v
}

func (q *query) before(i int32, loc location, depth int) values {
	var out values
	if depth > maxDepth {
		out.unknown = "computed in too many steps"
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
	for len(work) > 0 {
		if q.steps++; q.steps > maxSteps {
			out.unknown = "too many paths"
			return out
		}
		p := work[len(work)-1]
		work = work[:len(work)-1]
		if q.d.entry[p.at] {
			switch {
			case p.loc.Slot && p.loc.Off < 0 && p.at == 0:
				// Below the entry stack: only a jump from another part of
				// the same function can have written it.
				out.addParam(p.loc)
			default:
				out.addParam(p.loc)
			}
		}
		preds := q.d.preds[p.at]
		if len(preds) == 0 && !q.d.entry[p.at] {
			// Dead, or where an exception lands. There a register that calls
			// change holds the exception, and the others what they held at
			// some call.
			// Padding is no such place.
			if int(p.at) < len(q.d.ins) && q.d.ins[p.at].Class == x86.Nop {
				continue
			}
			if q.d.unwinds && (p.loc.Slot || q.d.clobber>>p.loc.Reg&1 == 0) {
				for k := range q.d.ins {
					if c := q.d.ins[k].Class; c == x86.Call || c == x86.CallInd {
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
			if n, ok := q.bounded(pr, p); ok {
				for c := range n {
					out.addConst(c)
				}
				continue
			}
			q.after(pr, p.loc, depth, &out, push)
		}
	}
	return out
}

// proved tells what a branch on equality says of a register: compilers use
// that it holds what it was compared with.
func (q *query) proved(jcc int32, p point) (int64, bool) {
	j := &q.d.ins[jcc]
	if j.Class != x86.Jcc || p.loc.Slot || jcc == 0 || len(q.d.preds[jcc]) != 1 || q.d.preds[jcc][0] != jcc-1 || q.d.entry[jcc] {
		return 0, false
	}
	taken := int(p.at) < len(q.d.pcs) && j.Target(q.d.pcs[jcc]) == q.d.pcs[p.at]
	if taken == (p.at == jcc+1) || j.Cond != 4 && j.Cond != 5 || taken != (j.Cond == 4) {
		return 0, false
	}
	switch c := &q.d.ins[jcc-1]; {
	case c.IsMem || c.Size < 4 || c.RM != p.loc.Reg:
	case c.Class == x86.Test && c.Reg == c.RM:
		return 0, true
	case c.Class == x86.AluImm && c.Alu == x86.Cmp:
		if c.Size == 4 {
			return zext32(c.Imm), true
		}
		return c.Imm, true
	}
	return 0, false
}

// bounded tells, of an argument, what an unsigned comparison says of a register:
// that its low 32 bits are less than a small number, as before a switch.
func (q *query) bounded(jcc int32, p point) (int64, bool) {
	j := &q.d.ins[jcc]
	if !q.d.exact || j.Class != x86.Jcc || p.loc.Slot || jcc == 0 || len(q.d.preds[jcc]) != 1 || q.d.preds[jcc][0] != jcc-1 || q.d.entry[jcc] {
		return 0, false
	}
	taken := int(p.at) < len(q.d.pcs) && j.Target(q.d.pcs[jcc]) == q.d.pcs[p.at]
	c := &q.d.ins[jcc-1]
	if taken == (p.at == jcc+1) || c.Class != x86.AluImm || c.Alu != x86.Cmp || c.IsMem || c.Size < 4 || c.RM != p.loc.Reg || c.Imm < 0 || c.Imm > 16 {
		return 0, false
	}
	switch {
	case j.Cond == 7 && !taken, j.Cond == 6 && taken: // not above
		return c.Imm + 1, true
	case j.Cond == 3 && !taken, j.Cond == 2 && taken: // below
		return c.Imm, c.Imm > 0
	}
	return 0, false
}

func reg(r uint8) location { return location{Reg: r} }

func zext32(c int64) int64 { return int64(uint32(c)) }

// after adds what loc may hold after instruction i, or pushes the place to
// look further.
func (q *query) after(i int32, loc location, depth int, out *values, push func(point)) {
	in := &q.d.ins[i]
	fail := func(why string) {
		if out.unknown == "" {
			out.unknown = why
		}
	}
	if loc.Slot {
		q.afterSlot(i, loc, depth, out, push, fail)
		return
	}
	r := loc.Reg
	switch in.Class {
	case x86.Call, x86.CallInd:
		if q.d.clobber>>r&1 != 0 {
			fail("the result of a call")
			return
		}
		push(point{i, loc})
		return
	}
	if in.Writes()>>r&1 == 0 {
		push(point{i, loc})
		return
	}
	if in.High {
		fail("computed from parts of a register")
		return
	}
	switch in.Class {
	case x86.MovImm:
		switch in.Size {
		case 8:
			out.addConst(in.Imm)
		case 4:
			out.addConst(zext32(in.Imm))
		default:
			q.patch(i, loc, depth, out, in.Size, []int64{in.Imm})
		}
	case x86.Mov:
		if in.IsMem && in.Load {
			if q.d.exact && in.Size < 4 {
				fail("computed from parts of a register")
				return
			}
			q.load(i, in.Size, depth, out, push, fail)
			return
		}
		src := reg(in.SrcReg())
		switch in.Size {
		case 8:
			push(point{i, src})
		case 4:
			v := q.before(i, src, depth+1)
			q.apply(v, out, zext32)
		default:
			fail("computed from parts of a register")
		}
	case x86.Movx:
		var v values
		if in.IsMem {
			q.load(i, in.SrcSize, depth, &v, nil, func(why string) { v.unknown = why })
		} else {
			v = q.before(i, reg(in.RM), depth+1)
		}
		bits := in.SrcSize * 8
		if in.Size < 4 || q.d.exact && bits < 32 && len(v.params) > 0 {
			fail("computed from parts of a register")
			return
		}
		q.apply(v, out, func(c int64) int64 {
			c = c << (64 - bits)
			if in.Signed {
				c >>= 64 - bits
			} else {
				c = int64(uint64(c) >> (64 - bits))
			}
			if in.Size < 8 {
				c = zext32(c)
			}
			return c
		})
	case x86.Cmov:
		if in.Size < 4 {
			fail("computed from parts of a register")
			return
		}
		f := func(c int64) int64 { return c }
		if in.Size == 4 {
			f = zext32
		}
		q.apply(q.before(i, reg(in.Reg), depth+1), out, f)
		var v values
		if in.IsMem {
			q.load(i, in.Size, depth, &v, nil, func(why string) { v.unknown = why })
		} else {
			v = q.before(i, reg(in.RM), depth+1)
		}
		q.apply(v, out, f)
	case x86.Setcc:
		q.patch(i, loc, depth, out, 1, []int64{0, 1})
	case x86.Alu:
		if in.IsMem {
			fail("computed from memory")
			return
		}
		if in.Reg == in.RM && in.Size >= 4 {
			switch in.Alu {
			case x86.Xor, x86.Sub:
				out.addConst(0)
				return
			case x86.Sbb:
				out.addConst(0)
				if in.Size == 4 {
					out.addConst(0xffffffff)
				} else {
					out.addConst(-1)
				}
				return
			case x86.Or, x86.And:
				push(point{i, reg(in.Reg)})
				return
			}
		}
		x := q.before(i, reg(in.DstReg()), depth+1)
		y := q.before(i, reg(in.SrcReg()), depth+1)
		if !x.finite() || !y.finite() || in.Size < 4 {
			fail("computed")
			return
		}
		for _, c := range y.consts {
			q.alu(in, x, c, out, fail)
		}
	case x86.AluImm:
		if in.Size < 4 {
			fail("computed from parts of a register")
			return
		}
		if in.Alu == x86.Or && in.Imm == -1 {
			c := int64(-1)
			if in.Size == 4 {
				c = zext32(c)
			}
			out.addConst(c)
			return
		}
		q.alu(in, q.before(i, loc, depth+1), in.Imm, out, fail)
	case x86.Neg, x86.Not:
		v := q.before(i, loc, depth+1)
		if !v.finite() || in.Size < 4 {
			fail("computed")
			return
		}
		for _, c := range v.consts {
			if in.Class == x86.Neg {
				c = -c
			} else {
				c = ^c
			}
			if in.Size == 4 {
				c = zext32(c)
			}
			out.addConst(c)
		}
	case x86.Lea:
		if in.RIP && q.addresses {
			out.addConst(int64(in.Address(q.d.pcs[i])))
			return
		}
		if in.RIP || in.Base == x86.None && in.Index == x86.None {
			fail("an address")
			return
		}
		q.lea(i, depth, out, fail)
	case x86.Pop:
		if sp := q.d.delta[i]; sp > unvisited && !in.IsMem && in.RM == r && r != x86.RSP {
			push(point{i, location{Slot: true, Off: sp, Size: 8}})
			return
		}
		fail("loaded from memory")
	case x86.Xchg:
		if !in.IsMem && in.Size == 8 {
			other := in.RM
			if r == in.RM {
				other = in.Reg
			}
			push(point{i, reg(other)})
			return
		}
		fail("loaded from memory")
	case x86.Syscall:
		fail("the result of a system call")
	default:
		fail("computed")
	}
}

// apply adds f of every value. A parameter stays what it is: a call number has
// no more than 32 bits.
func (q *query) apply(v values, out *values, f func(int64) int64) {
	for _, c := range v.consts {
		out.addConst(f(c))
	}
	for _, p := range v.params {
		out.addParam(p)
	}
	if v.unknown != "" && out.unknown == "" {
		out.unknown = v.unknown
	}
}

// patch handles an instruction that replaces the low size bytes of a register.
func (q *query) patch(i int32, loc location, depth int, out *values, size uint8, low []int64) {
	old := q.before(i, loc, depth+1)
	if !old.finite() {
		// Followed by movzx of the low byte, as compilers do after setcc,
		// the rest does not matter; otherwise it does.
		for _, c := range low {
			out.addConst(c)
		}
		if !q.onlyLow(i, loc, size) {
			out.unknown = "computed from parts of a register"
		}
		return
	}
	mask := int64(1)<<(size*8) - 1
	for _, c := range old.consts {
		for _, l := range low {
			out.addConst(c&^mask | l&mask)
		}
	}
}

// onlyLow tells whether the next instruction widens the part that was written.
func (q *query) onlyLow(i int32, loc location, size uint8) bool {
	if int(i)+1 >= len(q.d.ins) {
		return false
	}
	n := &q.d.ins[i+1]
	return n.Class == x86.Movx && !n.IsMem && n.RM == loc.Reg && n.Reg == loc.Reg && n.SrcSize <= size
}

func (q *query) alu(in *x86.Inst, v values, imm int64, out *values, fail func(string)) {
	if in.Alu == x86.And && !v.finite() && imm >= 0 {
		// Whatever it was, only these bits are left.
		bits := 0
		for m := imm; m != 0; m &= m - 1 {
			bits++
		}
		if bits <= 5 {
			for s := imm; ; s = (s - 1) & imm {
				out.addConst(s)
				if s == 0 {
					return
				}
			}
		}
	}
	if !v.finite() {
		fail("computed")
		return
	}
	for _, c := range v.consts {
		var res []int64
		switch in.Alu {
		case x86.Add:
			res = []int64{c + imm}
		case x86.Sub:
			res = []int64{c - imm}
		case x86.And:
			res = []int64{c & imm}
		case x86.Or:
			res = []int64{c | imm}
		case x86.Xor:
			res = []int64{c ^ imm}
		case x86.Adc:
			res = []int64{c + imm, c + imm + 1}
		case x86.Sbb:
			res = []int64{c - imm, c - imm - 1}
		default:
			fail("computed")
			return
		}
		for _, r := range res {
			if in.Size == 4 {
				r = zext32(r)
			}
			out.addConst(r)
		}
	}
}

func (q *query) lea(i int32, depth int, out *values, fail func(string)) {
	in := &q.d.ins[i]
	if in.Base == x86.RSP || in.Base == x86.RBP && q.d.frame[i] > unvisited {
		fail("an address")
		return
	}
	sum := values{consts: []int64{int64(in.Disp)}}
	for _, part := range []struct {
		r     uint8
		scale int64
	}{{in.Base, 1}, {in.Index, int64(in.Scale)}} {
		if part.r == x86.None {
			continue
		}
		v := q.before(i, reg(part.r), depth+1)
		if !v.finite() {
			fail("computed")
			return
		}
		var next values
		for _, a := range sum.consts {
			for _, c := range v.consts {
				next.addConst(a + c*part.scale)
			}
		}
		if next.unknown != "" {
			fail(next.unknown)
			return
		}
		sum = next
	}
	for _, c := range sum.consts {
		if in.Size == 4 {
			c = zext32(c)
		}
		out.addConst(c)
	}
}

// load adds what a memory operand may hold. push may be nil where the value
// still has to be changed.
func (q *query) load(i int32, size uint8, depth int, out *values, push func(point), fail func(string)) {
	in := &q.d.ins[i]
	if off, ok := q.d.slotOf(i); ok {
		loc := location{Slot: true, Off: off, Size: size}
		if push != nil {
			push(point{i, loc})
		} else {
			out.merge(q.before(i, loc, depth+1))
		}
		return
	}
	if in.RIP && !in.Seg {
		// A constant that nothing can change.
		a := in.Address(q.d.pcs[i])
		if v, ok := constant(q.f, a, size); ok {
			out.addConst(v)
			return
		}
		if q.d.variable != nil {
			if v, ok := q.d.variable(a, size); ok {
				out.addConst(v)
				return
			}
		}
		fail("loaded from a variable")
		return
	}
	fail("loaded from memory")
}

// constant reads read-only data.
func constant(f *elfread.File, a uint64, size uint8) (int64, bool) {
	for i := range f.Segments {
		s := &f.Segments[i]
		if a < s.Addr || a-s.Addr >= uint64(len(s.Data)) {
			continue
		}
		if s.Flags&2 != 0 {
			return 0, false
		}
		d := s.Data[a-s.Addr:]
		if len(d) < int(size) {
			return 0, false
		}
		switch size {
		case 4:
			return int64(binary.LittleEndian.Uint32(d)), true
		case 8:
			return int64(binary.LittleEndian.Uint64(d)), true
		case 2:
			return int64(binary.LittleEndian.Uint16(d)), true
		case 1:
			return int64(d[0]), true
		}
	}
	return 0, false
}

// afterSlot is after for a stack slot.
func (q *query) afterSlot(i int32, loc location, depth int, out *values, push func(point), fail func(string)) {
	in := &q.d.ins[i]
	hi := loc.Off + int32(loc.Size)
	escaped := func() bool {
		for _, a := range q.d.leas {
			if a <= loc.Off && loc.Off-a < 4096 {
				return true
			}
		}
		return false
	}
	switch in.Class {
	case x86.Push, x86.PushImm:
		sp := q.d.delta[i]
		if sp <= unvisited {
			fail("in a stack that is not followed")
			return
		}
		if sp-8 != loc.Off {
			if sp-8 < hi && sp > loc.Off {
				fail("computed from parts of the stack")
				return
			}
			push(point{i, loc})
			return
		}
		switch {
		case in.Class == x86.PushImm:
			out.addConst(in.Imm)
		case in.IsMem:
			q.load(i, 8, depth, out, push, fail)
		default:
			push(point{i, reg(in.RM)})
		}
		return
	case x86.Call, x86.CallInd:
		if escaped() {
			fail("in memory that a call may change")
			return
		}
		push(point{i, loc})
		return
	case x86.Lea, x86.Movx, x86.Cmov, x86.Test, x86.Nop, x86.JmpInd, x86.Jmp, x86.Jcc, x86.Endbr, x86.Ret, x86.Trap:
		push(point{i, loc})
		return
	}
	if !in.IsMem || in.Load && (in.Class == x86.Mov || in.Class == x86.Alu) {
		push(point{i, loc})
		return
	}
	off, ok := q.d.slotOf(i)
	if !ok {
		if in.Base == x86.RSP || in.Base == x86.RBP && q.d.frame[i] > unvisited {
			// An array in the frame: it begins at its own slot, and nothing
			// indexes it below that.
			base := q.d.delta[i]
			if in.Base == x86.RBP {
				base = q.d.frame[i]
			}
			if base <= unvisited || base+in.Disp < hi {
				fail("in a stack that is not followed")
				return
			}
			push(point{i, loc})
			return
		}
		if !in.RIP && escaped() && (in.Class != x86.Other) {
			fail("in memory that a pointer may change")
			return
		}
		push(point{i, loc})
		return
	}
	width := int32(in.Size)
	if in.Class == x86.Other {
		width = 64
	}
	if off+width <= loc.Off || off >= hi {
		push(point{i, loc})
		return
	}
	if off == loc.Off && width >= int32(loc.Size) {
		switch in.Class {
		case x86.Mov:
			push(point{i, reg(in.Reg)})
			return
		case x86.MovImm:
			out.addConst(in.Imm)
			return
		case x86.AluImm:
			q.alu(in, q.before(i, loc, depth+1), in.Imm, out, fail)
			return
		}
	}
	if in.Class == x86.Alu && in.Alu == x86.Cmp || in.Class == x86.AluImm && in.Alu == x86.Cmp {
		push(point{i, loc})
		return
	}
	fail("computed in memory")
}
