// Package a64 decodes AArch64 machine code as far as finding system calls
// needs: the control flow, and the operands of the integer instructions that a
// system call number or the address of a function can travel through.
//
// Guarantees: Decode looks at one word, never panics and never allocates.
// Writes over-approximates the general registers that an instruction changes,
// the stack pointer included.
//
// Not guaranteed: that an instruction it accepts is valid on any processor, or
// what an instruction of class Other computes. Instructions newer than Armv9.4
// may be taken for others of their encoding group.
//
// Sources: Arm Architecture Reference Manual (DDI 0487), chapter C4 (encoding
// index) and C6.
package a64

import "math/bits"

// Class is what an instruction is to the analysis.
type Class uint8

const (
	Other   Class = iota
	Nop           // hints, barriers
	Bti           // landing pads
	Call          // bl, Target
	CallInd       // blr and its authenticated forms, to Rn
	Jmp           // b, Target
	JmpInd        // br and its authenticated forms, to Rn
	Jcc           // Target; Test says on what
	Ret
	Trap // brk, udf, hlt: control does not continue
	Syscall
	Mov      // Rd ← Rn
	MovImm   // Rd ← Imm
	MovKeep  // bits Shift to Shift+15 of Rd ← Imm
	Page     // Rd ← the page of the instruction + Imm
	Addr     // Rd ← the address of the instruction + Imm
	AddImm   // Rd ← Rn + Imm
	AndImm   // Rd ← Rn & Imm
	OrImm    // Rd ← Rn | Imm
	XorImm   // Rd ← Rn ^ Imm
	Add      // Rd ← Rn + Rm, Rm extended and shifted
	Sub      // Rd ← Rn - Rm, likewise
	Or       // Rd ← Rn | Rm, Rm shifted
	And      // Rd ← Rn & Rm, likewise
	Sel      // Rd ← Rn, or Rm changed as Change says
	Extend   // Rd ← the low Bits of Rn, sign-extended when Signed
	CmpImm   // flags of Rn - Imm
	Load     // Rd ← memory, Rt2 too when Pair
	LoadLit  // Rd ← the word at the address of the instruction + Imm
	Store    // memory ← Rd, Rt2 too when Pair
	StoreAny // memory ← something, at Base, of Width bytes
)

// Test is what a conditional branch looks at.
type Test uint8

const (
	Flags   Test = iota // Cond
	Zero                // Rn is zero
	NotZero             // Rn is not zero
	Bit                 // one bit of Rn, or a comparison of registers
)

// Change is what Sel does to Rm.
type Change uint8

const (
	Same Change = iota
	Inc
	Inv
	Neg
)

// Mode is how a memory operand changes its base.
type Mode uint8

const (
	Offset Mode = iota
	Pre         // Base ← Base + Imm first
	Post        // Base ← Base + Imm afterwards; the access is at Base
)

// Registers beyond X0 to X30.
const (
	SP   = 31
	ZR   = 32
	None = 255
)

// Inst is one decoded instruction.
type Inst struct {
	Class Class
	// Size is the size of the result or of the comparison in bytes, 4 or 8.
	Size uint8
	// Width is how many bytes of memory one register is loaded from or stored
	// to; of StoreAny all that it may change, 0 where that is not known.
	Width          uint8
	Rd, Rn, Rm, R2 uint8
	// Base and Index are of memory operands; Index is None without one.
	Base, Index uint8
	Mode        Mode
	// Shift of Index, of Rm, or of MovKeep.
	Shift  uint8
	Bits   uint8 // of Extend, and those of Index or Rm that count
	Signed bool  // of Extend, of a load, or how Index or Rm is extended
	Pair   bool
	// Vector is true where what is loaded or stored is no general register.
	Vector bool
	// SetsFlags is true for adds and subs.
	SetsFlags bool
	Test      Test
	Cond      uint8
	Change    Change
	// Plain is false where a shift is not to the left.
	Plain bool
	Imm   int64

	writes uint32
}

// Target gives the target of a direct branch, or the address that Addr or
// LoadLit refers to, at address pc.
func (i *Inst) Target(pc uint64) uint64 { return pc + uint64(i.Imm) }

// Page gives what Class Page computes at address pc.
func (i *Inst) Page(pc uint64) uint64 { return pc&^0xfff + uint64(i.Imm) }

// Writes is the set of general registers, as bits (SP is bit 31), that the
// instruction may change. Calls are not included, but for the link register:
// what they change is a matter of convention.
func (i *Inst) Writes() uint32 { return i.writes }

func bit(r uint8) uint32 {
	if r > SP {
		return 0
	}
	return 1 << r
}

func sext(v uint32, n uint) int64 { return int64(int32(v<<(32-n))) >> (32 - n) }

func zr(r uint32) uint8 {
	if r &= 31; r == 31 {
		return ZR
	}
	return uint8(r)
}

func size(sf uint32) uint8 { return 4 << (sf & 1) }

// Decode decodes the instruction w. It is false for what is no instruction.
func Decode(w uint32, in *Inst) bool {
	*in = Inst{Rd: ZR, Rn: ZR, Rm: ZR, R2: ZR, Base: None, Index: None, Size: 8, Bits: 64, Plain: true}
	switch w >> 25 & 15 {
	case 0b1000, 0b1001:
		return in.immediate(w)
	case 0b1010, 0b1011:
		return in.branch(w)
	case 0b0100, 0b0110, 0b1100, 0b1110:
		return in.memory(w)
	case 0b0101, 0b1101:
		return in.register(w)
	case 0b0111, 0b1111:
		in.vector(w)
		return true
	case 0b0010:
		in.scalable(w)
		return true
	case 0b0000:
		if w>>16 == 0 {
			in.Class = Trap // udf
			return true
		}
		if w>>31 != 0 {
			in.scalable(w)
			return true
		}
	}
	return false
}

// rd sets the destination, which is the stack pointer where sp says so.
func (i *Inst) rd(w uint32, sp bool) {
	i.Rd = zr(w)
	if sp && i.Rd == ZR {
		i.Rd = SP
	}
	i.writes |= bit(i.Rd)
}

func (i *Inst) rn(w uint32, sp bool) {
	i.Rn = zr(w >> 5)
	if sp && i.Rn == ZR {
		i.Rn = SP
	}
}

func (i *Inst) immediate(w uint32) bool {
	i.Size = size(w >> 31)
	switch w >> 23 & 7 {
	case 0, 1: // adr, adrp
		i.rd(w, false)
		i.Size = 8
		v := sext(w>>5&0x7ffff<<2|w>>29&3, 21)
		i.Class, i.Imm = Addr, v
		if w>>31 != 0 {
			i.Class, i.Imm = Page, v<<12
		}
	case 2: // add, sub
		flags := w>>29&1 != 0
		i.rd(w, !flags)
		i.rn(w, true)
		i.Class, i.Imm, i.SetsFlags = AddImm, int64(w>>10&0xfff), flags
		if w>>22&1 != 0 {
			i.Imm <<= 12
		}
		if w>>30&1 != 0 {
			if flags && i.Rd == ZR {
				i.Class = CmpImm
				return true
			}
			i.Imm = -i.Imm
		} else if flags && i.Rd == ZR {
			i.Class, i.Imm = CmpImm, -i.Imm // cmn
			return true
		}
		if !flags && i.Imm == 0 && (i.Rd == SP || i.Rn == SP) && i.Size == 8 {
			i.Class = Mov
		}
	case 3: // addg, subg; min, max
		i.rd(w, w>>22&1 == 0)
		i.rn(w, true)
	case 4: // and, orr, eor, ands
		opc := w >> 29 & 3
		i.rd(w, opc != 3)
		i.rn(w, false)
		v, ok := bitmask(w>>22&1, w>>16&63, w>>10&63, i.Size)
		if !ok {
			return false
		}
		i.Imm = int64(v)
		switch opc {
		case 0:
			i.Class = AndImm
		case 1:
			i.Class = OrImm
			if i.Rn == ZR {
				i.Class = MovImm
			}
		case 2:
			i.Class = XorImm
		case 3:
			i.Class, i.SetsFlags = AndImm, true
		}
	case 5: // movn, movz, movk
		i.rd(w, false)
		i.Shift = uint8(w>>21&3) * 16
		if i.Size == 4 && i.Shift > 16 {
			return false
		}
		v := uint64(w >> 5 & 0xffff)
		switch w >> 29 & 3 {
		case 0:
			v = ^(v << i.Shift)
			if i.Size == 4 {
				v = uint64(uint32(v))
			}
			i.Class, i.Imm = MovImm, int64(v)
		case 2:
			i.Class, i.Imm = MovImm, int64(v<<i.Shift)
		case 3:
			i.Class, i.Imm = MovKeep, int64(v)
		default:
			return false
		}
	case 6: // sbfm, bfm, ubfm
		opc := w >> 29 & 3
		if opc == 3 || w>>22&1 != w>>31 {
			return false
		}
		i.rd(w, false)
		i.rn(w, false)
		immr, imms := w>>16&63, w>>10&63
		if opc != 1 && immr == 0 {
			i.Class, i.Bits, i.Signed = Extend, uint8(imms+1), opc == 0
		}
	case 7: // extr
		i.rd(w, false)
		i.rn(w, false)
		if i.Rm = zr(w >> 16); i.Rd == ZR {
			i.writes |= 1 << 30 // or an authentication of the link register
		}
	}
	return true
}

// bitmask expands the immediate of a logical instruction (DecodeBitMasks).
func bitmask(n, immr, imms uint32, size uint8) (uint64, bool) {
	length := bits.Len32(n<<6|^imms&63) - 1
	if length < 1 || size == 4 && n != 0 {
		return 0, false
	}
	esize := uint(1) << length
	s, r := uint(imms)&(esize-1), uint(immr)&(esize-1)
	if s == esize-1 {
		return 0, false
	}
	elem := uint64(1)<<(s+1) - 1
	mask := ^uint64(0) >> (64 - esize)
	elem = (elem>>r | elem<<(esize-r)) & mask
	v := uint64(0)
	for at := uint(0); at < 64; at += esize {
		v |= elem << at
	}
	if size == 4 {
		v = uint64(uint32(v))
	}
	return v, true
}

func (i *Inst) branch(w uint32) bool {
	switch {
	case w>>26&31 == 0b00101: // b, bl
		i.Class, i.Imm = Jmp, sext(w, 26)<<2
		if w>>31 != 0 {
			i.Class, i.writes = Call, 1<<30
		}
	case w>>25&63 == 0b011010: // cbz, cbnz
		i.Class, i.Imm, i.Size, i.Rn = Jcc, sext(w>>5, 19)<<2, size(w>>31), zr(w)
		i.Test = Zero
		if w>>24&1 != 0 {
			i.Test = NotZero
		}
	case w>>25&63 == 0b011011: // tbz, tbnz
		i.Class, i.Imm, i.Rn, i.Test = Jcc, sext(w>>5, 14)<<2, zr(w), Bit
	case w>>25&63 == 0b111010: // cb<cc>
		i.Class, i.Imm, i.Rn, i.Test = Jcc, sext(w>>5, 9)<<2, zr(w), Bit
	case w>>24 == 0b01010100: // b.cond, bc.cond
		i.Class, i.Imm, i.Test, i.Cond = Jcc, sext(w>>5, 19)<<2, Flags, uint8(w&15)
		if i.Cond >= 14 {
			i.Class = Jmp // "always" and its twin
		}
	case w>>24 == 0b01010101: // retaasppc
		i.Class = Ret
	case w>>24 == 0b11010100:
		switch op, ll := w>>21&7, w&31; {
		case op == 0 && ll == 1:
			i.Class = Syscall
		case op == 0 && (ll == 2 || ll == 3): // hvc, smc
			i.Class = Trap
		case (op == 1 || op == 2 || op == 3) && ll == 0, op == 5 && ll&3 != 0: // brk, hlt, tcancel; dcps
			i.Class = Trap
		default:
			return false
		}
	case w>>22 == 0b1101010100: // system
		switch {
		case w>>12 == 0xd5032: // hints
			i.Class = Nop
			switch w >> 5 & 127 {
			case 1, 2, 3, 4, 5, 6: // yield, wfe, wfi, sev, sevl, dgh
			case 7: // xpaclri
				i.writes = 1 << 30
			case 8, 10, 12, 14: // pacia1716 …
				i.writes = 1 << 17
			case 24, 25, 26, 27, 28, 29, 30, 31: // paciasp, autiasp …
				i.writes = 1 << 30
			case 32, 34, 36, 38:
				i.Class = Bti
			case 40: // chkfeat
				i.writes = 1 << 16
			}
		case w>>12 == 0xd5033: // barriers
			i.Class = Nop
		case w>>21&1 != 0: // mrs, sysl
			i.Rd = zr(w)
			i.writes = bit(i.Rd)
		case w>>19 == 0xd5080000>>19: // sys: dc zva clears a block
			i.Class, i.Base = StoreAny, zr(w)
		}
	case w>>22 == 0b1101010101: // pairs of registers
		if w>>21&1 != 0 {
			i.writes = bit(zr(w)) | bit(zr(w+1))
		}
	case w>>25 == 0b1101011: // to a register
		if w>>16&31 != 31 {
			return false
		}
		i.rn(w, false)
		op3 := w >> 10 & 63
		if op3 > 3 || op3 == 1 {
			return false
		}
		switch w >> 21 & 15 {
		case 0, 8:
			i.Class = JmpInd
		case 1, 9:
			i.Class, i.writes = CallInd, 1<<30
		case 2, 4, 5: // ret, eret, drps
			i.Class = Ret
		default:
			return false
		}
	default:
		return false
	}
	return true
}

// base sets the base register of a memory operand.
func (i *Inst) base(w uint32) {
	i.Base = uint8(w >> 5 & 31)
}

func (i *Inst) mode(m Mode) {
	i.Mode = m
	if m != Offset {
		i.writes |= bit(i.Base)
	}
}

// access sets what a load or store of one register of 1<<sz bytes moves.
func (i *Inst) access(w, sz, opc uint32, vector bool) bool {
	i.Width, i.Vector = 1<<sz, vector
	i.Rd = zr(w)
	if vector {
		if opc&2 != 0 {
			i.Width = 16
		}
		i.Rd = None
		i.Class = Store
		if opc&1 != 0 {
			i.Class = Load
		}
		return true
	}
	switch {
	case opc == 0:
		i.Class = Store
		return true
	case sz == 3 && opc >= 2: // prfm; 3 is not allocated
		i.Class = Other
		return opc == 2
	case sz == 2 && opc == 3:
		return false
	}
	i.Class, i.Size = Load, 4
	if sz == 3 || opc == 2 {
		i.Size = 8
	}
	i.Signed = opc >= 2
	i.writes |= bit(i.Rd)
	return true
}

func (i *Inst) memory(w uint32) bool {
	vector := w>>26&1 != 0
	i.base(w)
	sz, opc := w>>30, w>>22&3
	switch w >> 27 & 7 {
	case 0b001, 0b000, 0b010, 0b100, 0b110:
		return i.structures(w, vector)
	case 0b101: // pairs
		load := w>>22&1 != 0
		i.Pair, i.Vector = true, vector
		i.Rd, i.R2 = zr(w), zr(w>>10)
		i.Class = Store
		if load {
			i.Class = Load
		}
		switch {
		case vector:
			if sz == 3 {
				return false
			}
			i.Width = 4 << sz
			i.Rd, i.R2 = None, None
		case sz == 1 && load: // ldpsw
			i.Width, i.Size, i.Signed = 4, 8, true
		case sz == 1: // stgp: tags of 16 bytes, and both registers
			i.Width = 8
		case sz == 3: // Armv9.4 translation table descriptors
			i.Width = 8
		default:
			i.Width = 4 << (sz >> 1)
			i.Size = i.Width
		}
		i.Imm = sext(w>>15, 7) * int64(i.Width)
		if sz == 1 && !load && !vector {
			i.Imm *= 2
		}
		if load && !vector {
			i.writes |= bit(i.Rd) | bit(i.R2)
		}
		switch w >> 23 & 3 {
		case 1:
			i.mode(Post)
		case 3:
			i.mode(Pre)
		}
		return true
	case 0b011:
		if w>>24&1 == 0 { // literal
			i.Imm, i.Base = sext(w>>5, 19)<<2, None
			if vector {
				i.Vector = true
				return true // Other: nothing general changes
			}
			if sz == 3 {
				return true // prfm
			}
			i.Rd = zr(w)
			i.writes = bit(i.Rd)
			i.Class, i.Size, i.Width, i.Signed = LoadLit, 8, 8, false
			if sz != 1 {
				i.Width = 4
				i.Size, i.Signed = 4<<(sz>>1), sz == 2
			}
			return true
		}
		return i.unordered(w, vector)
	case 0b111:
		switch {
		case w>>24&1 != 0: // unsigned offset
			if !i.access(w, sz, opc, vector) {
				return false
			}
			i.Imm = int64(w>>10&0xfff) * int64(max(i.Width, 1))
			return true
		case w>>21&1 == 0:
			if !i.access(w, sz, opc, vector) {
				return false
			}
			i.Imm = sext(w>>12, 9)
			switch w >> 10 & 3 {
			case 1:
				i.mode(Post)
			case 3:
				i.mode(Pre)
			}
			return true
		case w>>10&3 == 2: // register offset
			if !i.access(w, sz, opc, vector) {
				return false
			}
			i.Index = zr(w >> 16)
			i.Bits, i.Signed = extension(w>>13&7, i.Signed, &i.Plain)
			if w>>12&1 != 0 {
				i.Shift = log2(i.Width)
			}
			return true
		case w>>10&3 == 0: // atomic
			if vector {
				return false
			}
			i.Class, i.Width = StoreAny, 64
			i.writes = bit(zr(w)) | bit(zr(w>>16))
			return true
		default: // ldraa
			if vector || sz != 3 {
				return false
			}
			i.Class, i.Width, i.Rd, i.Size = Load, 8, zr(w), 8
			i.Imm = sext(w>>12&0x1ff|w>>22&1<<9, 10) << 3
			i.writes = bit(i.Rd)
			if w>>11&1 != 0 {
				i.mode(Pre)
			}
			return true
		}
	}
	return false
}

// extension gives how an index register is extended. A load that is itself
// signed keeps that in Signed; what the index is then hardly matters.
func extension(option uint32, signed bool, plain *bool) (uint8, bool) {
	switch option {
	case 2, 6: // uxtw, sxtw
		if option == 6 {
			*plain = false
		}
		return 32, signed
	}
	return 64, signed
}

func log2(n uint8) uint8 { return uint8(bits.Len8(n) - 1) }

// structures are exclusive and ordered accesses, and those of several vectors.
func (i *Inst) structures(w uint32, vector bool) bool {
	load := w>>22&1 != 0
	if vector {
		i.Vector = true
		if w>>23&1 != 0 { // post-indexed
			i.writes = bit(i.Base)
		}
		if !load {
			i.Class, i.Width = StoreAny, 64
		} else {
			i.Base = None
		}
		return true
	}
	// o2 L o1: exclusives, ordered, compare and swap. Whatever it is, it
	// changes no other general registers than these.
	i.Class, i.Width = StoreAny, 64
	i.writes = bit(zr(w)) | bit(zr(w>>10)) | bit(zr(w>>16))
	if rs := w >> 16 & 31; w>>23&1 == 0 && w>>21&1 != 0 || w>>31 == 0 && rs != 31 { // casp: pairs
		i.writes |= bit(zr(w>>16+1)) | bit(zr(w+1))
	}
	if w>>23&1 != 0 && w>>21&1 == 0 { // ldar, stlr
		i.writes = 0
		if load {
			i.Class, i.writes, i.Rd = Other, bit(zr(w)), zr(w)
			i.Base = None
		}
	}
	return true
}

// unordered are the group of unscaled ordered accesses, tags, and copies.
func (i *Inst) unordered(w uint32, vector bool) bool {
	i.Class, i.Width = StoreAny, 64
	i.writes = bit(zr(w))
	switch w >> 10 & 3 {
	case 1: // copies and fills: all three registers count down
		if w>>21&1 == 0 && w>>30 == 0 {
			i.Width = 0
			i.writes |= bit(zr(w>>5)) | bit(zr(w>>16))
			return true
		}
		i.writes |= bit(uint8(w >> 5 & 31)) // tags, post-indexed
	case 3:
		i.writes |= bit(uint8(w >> 5 & 31))
	case 2: // pairs with ordering, with write-back
		i.writes |= bit(zr(w>>16)) | bit(uint8(w>>5&31))
	}
	if vector && w>>10&3 == 2 {
		i.writes = 0
	}
	if w>>24 == 0b11011001 && w>>21&1 != 0 && w>>10&3 == 0 && w>>22&3 == 0 {
		i.Width = 0 // stzgm
	}
	return true
}

func (i *Inst) register(w uint32) bool {
	i.Size = size(w >> 31)
	i.rn(w, false)
	i.Rm = zr(w >> 16)
	amount := uint8(w >> 10 & 63)
	if w>>28&1 == 0 {
		if w>>24&1 == 0 { // logical
			opc := w >> 29 & 3
			i.rd(w, false)
			i.Shift, i.Plain = amount, w>>22&3 == 0
			if i.Size == 4 && amount > 31 {
				return false
			}
			switch invert := w>>21&1 != 0; {
			case invert:
			case opc == 1 && i.Rn == ZR && amount == 0 && i.Plain:
				i.Class, i.Rn = Mov, i.Rm
			case opc == 1:
				i.Class = Or
			case opc == 0 || opc == 3:
				i.Class, i.SetsFlags = And, opc == 3
			}
			return true
		}
		flags := w>>29&1 != 0
		extended := w>>21&1 != 0
		i.rd(w, extended && !flags)
		i.SetsFlags = flags
		i.Class = Add
		if w>>30&1 != 0 {
			i.Class = Sub
		}
		if extended {
			if w>>22&3 != 0 || amount&7 > 4 {
				return false
			}
			i.rn(w, true)
			option := w >> 13 & 7
			i.Shift, i.Bits, i.Signed = amount&7, 8<<(option&3), option >= 4
			return true
		}
		i.Shift, i.Plain = amount, w>>22&3 == 0
		return w>>22&3 != 3 && (i.Size == 8 || amount < 32)
	}
	switch w >> 21 & 15 {
	case 0b0000: // adc, sbc; rmif, setf
		if w>>10&63 == 0 || w>>13&7 == 1 { // the latter adds pointers
			i.rd(w, w>>10&63 != 0)
		}
		return true
	case 0b0010: // ccmp, ccmn
		i.SetsFlags = true
		return true
	case 0b0100: // csel, csinc, csinv, csneg
		if w>>29&1 != 0 || w>>11&1 != 0 {
			return false
		}
		i.rd(w, false)
		i.Class, i.Cond = Sel, uint8(w>>12&15)
		i.Change = Change(w>>30&1<<1 | w>>10&1)
		return true
	case 0b0110:
		i.rd(w, w>>30&1 == 0 && w>>10&63 == 4) // irg
		return true
	}
	if w>>24&1 != 0 { // madd and the like
		i.rd(w, false)
		return true
	}
	return false
}

// vector are the instructions on vector and floating-point registers. Some
// move their result to a general register.
func (i *Inst) vector(w uint32) {
	switch {
	case w&0x9fe08400 == 0x0e000400 && w>>11&15 != 0: // copies: umov, smov among them
		if w>>29&1 == 0 && (w>>11&15 == 5 || w>>11&15 == 7) {
			i.writes = bit(zr(w))
			i.Rd = zr(w)
		}
	case w>>24&0x5f == 0x1e && w>>21&1 == 0, // fixed point
		w>>24&0x5f == 0x1e && w>>10&63 == 0: // integer
		if op := w >> 16 & 7; op != 2 && op != 3 && op != 7 {
			i.writes = bit(zr(w))
			i.Rd = zr(w)
		}
	}
}

// scalable are SVE and SME. What they compute is not followed: the low bits
// name a general register in some of them.
func (i *Inst) scalable(w uint32) {
	i.writes = 1 << (w & 31)
	i.Rd = uint8(w & 31)
	if w>>25&15 == 2 && w>>29 >= 7 || w>>25&15 == 0 && w>>30 == 3 { // stores
		i.Class, i.Base = StoreAny, uint8(w>>5&31)
		i.writes = 0
		i.Rd = None
	}
}
