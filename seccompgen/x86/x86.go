// Package x86 decodes x86-64 machine code as far as finding system calls needs:
// the length of every instruction, including VEX, EVEX and XOP encodings, the
// control flow, and the operands of the integer instructions that a system call
// number can travel through.
//
// Guarantees: Decode never reads past the slice, never panics and never
// allocates. An instruction whose length it knows has Len between 1 and 15.
//
// Not guaranteed: that an instruction it accepts is valid on any processor, or
// what an instruction of class Other computes; Writes over-approximates the
// general registers it changes.
//
// Sources: Intel SDM volume 2 (2.1 to 2.7, appendix A), AMD APM volume 3
// (appendix A; XOP). Near branches take a 32-bit displacement even under a 66
// prefix, as on Intel processors: linkers pad calls for TLS with it.
package x86

import "encoding/binary"

// Class is what an instruction is to the analysis.
type Class uint8

const (
	Other Class = iota
	Nop
	Endbr
	Call    // direct, Target
	CallInd // through a register or memory
	Jmp     // direct, Target
	JmpInd
	Jcc // direct, Target; Cond; also loop and jrcxz, where Cond is None
	Ret
	Trap // ud2, hlt, int3: control does not continue
	Syscall
	Sysenter
	Int     // int n, n in Imm
	Mov     // Dst ← Src
	MovImm  // Dst ← Imm
	Lea     // Reg ← address of Mem
	Movx    // Reg ← zero- or sign-extended RM
	Cmov    // Reg ← Reg or RM
	Setcc   // RM8 ← 0 or 1
	Test    // flags of RM & Reg
	Alu     // Dst ← Dst op Src; op in Alu
	AluImm  // Dst ← Dst op Imm
	Not     // RM ← ^RM
	Neg     // RM ← -RM
	Push    // register or memory (RM)
	PushImm // Imm
	Pop     // RM
	Leave
	Xchg // RM ↔ Reg
)

// AluOp is the operation of Alu and AluImm, numbered as in the opcode.
type AluOp uint8

const (
	Add AluOp = iota
	Or
	Adc
	Sbb
	And
	Sub
	Xor
	Cmp
)

// General registers, by number.
const (
	RAX = iota
	RCX
	RDX
	RBX
	RSP
	RBP
	RSI
	RDI
	R8
	R9
	R10
	R11
	R12
	R13
	R14
	R15
	None = 0xff
)

// Inst is one decoded instruction.
type Inst struct {
	Len   uint8
	Class Class
	Alu   AluOp
	// Size is the operand size in bytes: 1, 2, 4 or 8.
	Size uint8
	// SrcSize is the size of the source of Movx.
	SrcSize uint8
	// Load is true when RM is the source and Reg the destination.
	Load bool
	// HasModRM tells whether Reg, RM and the memory fields mean something.
	HasModRM bool
	// IsMem is true when RM is memory: Base + Index*Scale + Disp.
	IsMem bool
	// RIP is true when the memory operand is relative to the next instruction.
	RIP bool
	// Seg is true under an FS or GS prefix.
	Seg bool
	// Cond is the condition of Jcc, as in the low four bits of the opcode.
	Cond   uint8
	Signed bool // Movx sign-extends
	// Privileged is true for what faults in a program: in data taken for code.
	Privileged bool
	Reg        uint8
	RM         uint8 // register number when not IsMem
	Base       uint8 // None without one
	Index      uint8 // None without one
	Scale      uint8
	// High is true for an 8-bit operand in AH, CH, DH or BH.
	High bool
	Disp int32
	Imm  int64 // immediate, or the displacement of a direct branch

	writes uint32
}

// Target gives the target of a direct branch at address pc.
func (i *Inst) Target(pc uint64) uint64 { return pc + uint64(i.Len) + uint64(i.Imm) }

// Address gives the address of a RIP-relative memory operand at address pc.
func (i *Inst) Address(pc uint64) uint64 { return pc + uint64(i.Len) + uint64(int64(i.Disp)) }

// Writes is the set of general registers, as bits, that the instruction may
// change. Calls are not included: what they change is a matter of convention.
func (i *Inst) Writes() uint32 { return i.writes }

const (
	fModRM = 1 << iota
	fImm8
	fImm16
	fImmZ
	fImmV
	fMoffs
	fBad
	fPrefix
	fRel8
	fRel32
)

var oneByte = buildOneByte()
var twoByte = buildTwoByte()

func buildOneByte() (t [256]uint16) {
	for op := 0; op < 0x40; op += 8 {
		for k := range 4 {
			t[op+k] = fModRM
		}
		t[op+4], t[op+5], t[op+6], t[op+7] = fImm8, fImmZ, fBad, fBad
	}
	for _, p := range []int{0x26, 0x2e, 0x36, 0x3e, 0x64, 0x65, 0x66, 0x67, 0xf0, 0xf2, 0xf3} {
		t[p] = fPrefix
	}
	for op := 0x40; op < 0x50; op++ {
		t[op] = fPrefix // REX
	}
	for _, p := range []int{0x60, 0x61, 0x62, 0x82, 0x9a, 0xce, 0xd4, 0xd5, 0xd6, 0xea} {
		t[p] = fBad
	}
	t[0x63] = fModRM
	t[0x68], t[0x69], t[0x6a], t[0x6b] = fImmZ, fModRM|fImmZ, fImm8, fModRM|fImm8
	for op := 0x70; op < 0x80; op++ {
		t[op] = fRel8
	}
	t[0x80], t[0x81], t[0x83] = fModRM|fImm8, fModRM|fImmZ, fModRM|fImm8
	for op := 0x84; op < 0x90; op++ {
		t[op] = fModRM
	}
	for op := 0xa0; op < 0xa4; op++ {
		t[op] = fMoffs
	}
	t[0xa8], t[0xa9] = fImm8, fImmZ
	for op := 0xb0; op < 0xb8; op++ {
		t[op] = fImm8
	}
	for op := 0xb8; op < 0xc0; op++ {
		t[op] = fImmV
	}
	t[0xc0], t[0xc1], t[0xc2] = fModRM|fImm8, fModRM|fImm8, fImm16
	t[0xc6], t[0xc7], t[0xc8] = fModRM|fImm8, fModRM|fImmZ, fImm16|fImm8
	t[0xca], t[0xcd] = fImm16, fImm8
	for op := 0xd0; op < 0xd4; op++ {
		t[op] = fModRM
	}
	for op := 0xd8; op < 0xe0; op++ {
		t[op] = fModRM
	}
	for op := 0xe0; op < 0xe4; op++ {
		t[op] = fRel8
	}
	for op := 0xe4; op < 0xe8; op++ {
		t[op] = fImm8
	}
	t[0xe8], t[0xe9], t[0xeb] = fRel32, fRel32, fRel8
	t[0xf6], t[0xf7], t[0xfe], t[0xff] = fModRM, fModRM, fModRM, fModRM
	return t
}

func buildTwoByte() (t [256]uint16) {
	for op := range t {
		t[op] = fModRM
	}
	for _, op := range []int{0x05, 0x06, 0x07, 0x08, 0x09, 0x0b, 0x0e, 0x30, 0x31, 0x32, 0x33, 0x34, 0x35, 0x37, 0x77,
		0xa0, 0xa1, 0xa2, 0xa8, 0xa9, 0xaa, 0xc8, 0xc9, 0xca, 0xcb, 0xcc, 0xcd, 0xce, 0xcf} {
		t[op] = 0
	}
	for _, op := range []int{0x04, 0x0a, 0x0c, 0x24, 0x25, 0x26, 0x27, 0x36, 0x39, 0x3b, 0x3c, 0x3d, 0x3e, 0x3f, 0x7a, 0x7b} {
		t[op] = fBad
	}
	for op := 0x80; op < 0x90; op++ {
		t[op] = fRel32
	}
	for _, op := range []int{0x0f, 0x70, 0x71, 0x72, 0x73, 0xa4, 0xac, 0xba, 0xc2, 0xc4, 0xc5, 0xc6} {
		t[op] = fModRM | fImm8
	}
	return t
}

// gprTwoByte are the opcodes of map 0F that write a general register: 1 the
// reg field, 2 the r/m field, 3 both.
var gprTwoByte = func() (t [256]uint8) {
	set := func(v uint8, ops ...int) {
		for _, op := range ops {
			t[op] = v
		}
	}
	set(3, 0x02, 0x03, 0x20, 0x21, 0x22, 0x23, 0x78, 0x7e, 0xa4, 0xa5, 0xab, 0xac, 0xad, 0xb0, 0xb1, 0xb3, 0xbb, 0xc0, 0xc1, 0x1e)
	set(2, 0x00, 0x01, 0xae, 0xba, 0xc7) // the reg field is part of the opcode
	set(1, 0x2c, 0x2d, 0x50, 0xaf, 0xb2, 0xb4, 0xb5, 0xb6, 0xb7, 0xb8, 0xbc, 0xbd, 0xbe, 0xbf, 0xc5, 0xd7)
	for op := 0x40; op < 0x50; op++ {
		t[op] = 1
	}
	for op := 0x90; op < 0xa0; op++ {
		t[op] = 2
	}
	return t
}()

const all = 0xffff

// Decode decodes the instruction at the start of code into in. It is false for
// bytes that are no instruction, or not a whole one.
func Decode(code []byte, in *Inst) bool {
	*in = Inst{Base: None, Index: None, RM: None, Reg: None}
	n := len(code)
	if n > 15 {
		n = 15
		code = code[:15]
	}
	var rex byte
	var opsize16, addr32, rep, repne bool
	p := 0
	var op byte
prefixes:
	for {
		if p >= n {
			return false
		}
		op = code[p]
		if oneByte[op]&fPrefix == 0 {
			break
		}
		if op&0xf0 == 0x40 {
			rex = op
			p++
			// A REX prefix counts only directly before the opcode.
			if p < n && oneByte[code[p]]&fPrefix != 0 {
				rex = 0
			}
			continue
		}
		switch op {
		case 0x66:
			opsize16 = true
		case 0x67:
			addr32 = true
		case 0xf2:
			repne, rep = true, false
		case 0xf3:
			rep, repne = true, false
		case 0x64, 0x65:
			in.Seg = true
		}
		p++
		continue prefixes
	}
	p++
	in.Size = 4
	if rex&8 != 0 {
		in.Size = 8
	} else if opsize16 {
		in.Size = 2
	}

	switch op {
	case 0x0f:
		if p >= n {
			return false
		}
		return decode0F(code, p, n, in, rex, opsize16, rep, repne)
	case 0xc4, 0xc5, 0x62:
		return decodeVEX(code, p, n, in, op)
	case 0x8f:
		if p < n && code[p]&0x1f >= 8 {
			return decodeXOP(code, p, n, in)
		}
	}
	f := oneByte[op]
	if f&fBad != 0 {
		return false
	}
	if f&fModRM != 0 {
		if p = modrm(code, p, n, in, rex); p < 0 {
			return false
		}
		if (op == 0xf6 || op == 0xf7) && in.Reg&7 <= 1 {
			if op == 0xf6 {
				f |= fImm8
			} else {
				f |= fImmZ
			}
		}
	}
	if f&fImm16 != 0 { // before fImm8: enter has both
		if p+2 > n {
			return false
		}
		in.Imm = int64(binary.LittleEndian.Uint16(code[p:]))
		p += 2
	}
	if f&(fImm8|fRel8) != 0 {
		if p >= n {
			return false
		}
		in.Imm = int64(int8(code[p]))
		p++
	}
	if f&fRel32 != 0 {
		if p+4 > n {
			return false
		}
		in.Imm = int64(int32(binary.LittleEndian.Uint32(code[p:])))
		p += 4
	}
	if f&(fImmZ|fImmV) != 0 {
		switch {
		case f&fImmV != 0 && in.Size == 8:
			if p+8 > n {
				return false
			}
			in.Imm = int64(binary.LittleEndian.Uint64(code[p:]))
			p += 8
		case in.Size == 2:
			if p+2 > n {
				return false
			}
			in.Imm = int64(int16(binary.LittleEndian.Uint16(code[p:])))
			p += 2
		default:
			if p+4 > n {
				return false
			}
			in.Imm = int64(int32(binary.LittleEndian.Uint32(code[p:])))
			p += 4
		}
	}
	if f&fMoffs != 0 {
		w := 8
		if addr32 {
			w = 4
		}
		if p += w; p > n {
			return false
		}
	}
	in.Len = uint8(p)
	classify(op, in, rex, rep)
	switch {
	case op >= 0x6c && op <= 0x6f, op >= 0xe4 && op <= 0xe7, op >= 0xec && op <= 0xef, op == 0xfa, op == 0xfb, op == 0xcf, op == 0xca, op == 0xcb:
		in.Privileged = true
	}
	return true
}

// modrm reads a ModRM byte with what belongs to it, and gives the next position or -1.
func modrm(code []byte, p, n int, in *Inst, rex byte) int {
	if p >= n {
		return -1
	}
	b := code[p]
	p++
	in.HasModRM = true
	in.Reg = b>>3&7 | rex<<1&8
	mod, rm := b>>6, b&7
	if mod == 3 {
		in.RM = rm | rex<<3&8
		return p
	}
	in.IsMem = true
	in.Scale = 1
	disp := 0
	switch mod {
	case 1:
		disp = 1
	case 2:
		disp = 4
	}
	if rm == 4 {
		if p >= n {
			return -1
		}
		sib := code[p]
		p++
		in.Scale = 1 << (sib >> 6)
		if idx := sib>>3&7 | rex<<2&8; idx != 4 {
			in.Index = idx
		}
		if base := sib & 7; base == 5 && mod == 0 {
			disp = 4
		} else {
			in.Base = base | rex<<3&8
		}
	} else if rm == 5 && mod == 0 {
		in.RIP = true
		disp = 4
	} else {
		in.Base = rm | rex<<3&8
	}
	if p+disp > n {
		return -1
	}
	switch disp {
	case 1:
		in.Disp = int32(int8(code[p]))
	case 4:
		in.Disp = int32(binary.LittleEndian.Uint32(code[p:]))
	}
	return p + disp
}

func bit(r uint8) uint32 {
	if r > 15 {
		return 0
	}
	return 1 << r
}

// byteReg turns an operand into its 8-bit form: without REX, 4 to 7 are AH to BH.
func (i *Inst) byteReg(r *uint8, rex byte) {
	if rex == 0 && *r >= 4 && *r <= 7 {
		*r -= 4
		i.High = true
	}
}

func (i *Inst) dst() uint32 {
	if i.Load {
		return bit(i.Reg)
	}
	return bit(i.RM)
}

func classify(op byte, in *Inst, rex byte, rep bool) {
	rexB := rex & 1 << 3
	switch {
	case op < 0x40:
		in.Alu = AluOp(op >> 3)
		switch op & 7 {
		case 0, 2:
			in.Size = 1
			in.byteReg(&in.Reg, rex)
			if !in.IsMem {
				in.byteReg(&in.RM, rex)
			}
			fallthrough
		case 1, 3:
			in.Class = Alu
			in.Load = op&2 != 0
		case 4:
			in.Size = 1
			fallthrough
		default:
			in.Class = AluImm
			in.RM = RAX
		}
		if in.Alu != Cmp {
			in.writes = in.dst()
		}
	case op < 0x58:
		in.Class = Push
		in.Size = 8
		in.RM = op&7 | rexB
		in.writes = 1 << RSP
	case op < 0x60:
		in.Class = Pop
		in.Size = 8
		in.RM = op&7 | rexB
		in.writes = 1<<RSP | bit(in.RM)
	case op == 0x63:
		in.Class = Movx
		in.Signed = true
		in.SrcSize = 4
		in.Load = true
		in.writes = bit(in.Reg)
	case op == 0x68 || op == 0x6a:
		in.Class = PushImm
		in.Size = 8
		in.writes = 1 << RSP
	case op == 0x69 || op == 0x6b:
		in.writes = bit(in.Reg)
	case op >= 0x6c && op <= 0x6f:
		in.writes = 1<<RDI | 1<<RSI | 1<<RCX
	case op >= 0x70 && op < 0x80:
		in.Class = Jcc
		in.Cond = op & 15
	case op == 0x80 || op == 0x81 || op == 0x83:
		in.Class = AluImm
		in.Alu = AluOp(in.Reg & 7)
		if op == 0x80 {
			in.Size = 1
			if !in.IsMem {
				in.byteReg(&in.RM, rex)
			}
		}
		if in.Alu != Cmp {
			in.writes = bit(in.RM)
		}
	case op == 0x84 || op == 0x85:
		in.Class = Test
		if op == 0x84 {
			in.Size = 1
		}
	case op == 0x86 || op == 0x87:
		in.Class = Xchg
		if op == 0x86 {
			in.Class = Other
			in.writes = 0xf
		}
		in.writes |= bit(in.Reg) | bit(in.RM)
	case op >= 0x88 && op <= 0x8b:
		in.Class = Mov
		in.Load = op&2 != 0
		if op&1 == 0 {
			in.Size = 1
			in.byteReg(&in.Reg, rex)
			if !in.IsMem {
				in.byteReg(&in.RM, rex)
			}
		}
		in.writes = in.dst()
	case op == 0x8c:
		in.writes = bit(in.RM)
	case op == 0x8d:
		in.Class = Lea
		in.Load = true
		in.writes = bit(in.Reg)
	case op == 0x8f:
		in.Class = Pop
		in.Size = 8
		in.writes = 1<<RSP | bit(in.RM)
	case op == 0x90 && rexB == 0:
		in.Class = Nop
	case op >= 0x90 && op < 0x98:
		in.Class = Xchg
		in.Reg, in.RM = RAX, op&7|rexB
		in.writes = 1<<RAX | bit(in.RM)
	case op == 0x98:
		in.writes = 1 << RAX
		if in.Size == 8 { // cdqe is movsxd rax, eax
			in.Class, in.Signed, in.SrcSize, in.Load = Movx, true, 4, true
			in.Reg, in.RM = RAX, RAX
		}
	case op == 0x99:
		in.writes = 1 << RDX
	case op == 0x9c || op == 0x9d:
		in.writes = 1 << RSP
	case op == 0x9f:
		in.writes = 1 << RAX
	case op == 0xa0 || op == 0xa1:
		in.writes = 1 << RAX
	case op >= 0xa4 && op <= 0xa7:
		in.writes = 1<<RSI | 1<<RDI | 1<<RCX
	case op == 0xaa || op == 0xab:
		in.writes = 1<<RDI | 1<<RCX
	case op >= 0xac && op <= 0xaf:
		in.writes = 1<<RAX | 1<<RDI | 1<<RSI | 1<<RCX
	case op >= 0xb0 && op < 0xb8:
		in.Class = MovImm
		in.Size = 1
		in.RM = op&7 | rexB
		in.byteReg(&in.RM, rex)
		in.writes = bit(in.RM)
	case op >= 0xb8 && op < 0xc0:
		in.Class = MovImm
		in.RM = op&7 | rexB
		in.writes = bit(in.RM)
	case op == 0xc0 || op == 0xc1 || op >= 0xd0 && op <= 0xd3:
		if op&1 == 0 && !in.IsMem {
			in.byteReg(&in.RM, rex)
		}
		in.writes = bit(in.RM)
	case op == 0xc2 || op == 0xc3 || op == 0xca || op == 0xcb || op == 0xcf:
		in.Class = Ret
	case op == 0xc6 || op == 0xc7:
		in.Class = MovImm
		if in.Reg&7 != 0 { // xabort, xbegin
			in.Class = Other
			in.writes = 1 << RAX
			return
		}
		if op == 0xc6 {
			in.Size = 1
			if !in.IsMem {
				in.byteReg(&in.RM, rex)
			}
		}
		in.writes = bit(in.RM)
	case op == 0xc8:
		in.writes = 1<<RSP | 1<<RBP
	case op == 0xc9:
		in.Class = Leave
		in.writes = 1<<RSP | 1<<RBP
	case op == 0xcc || op == 0xf4 || op == 0xf1:
		in.Class = Trap
	case op == 0xcd:
		in.Class = Int
		in.Imm &= 0xff
		in.writes = 1 << RAX
	case op == 0xd7 || op >= 0xe4 && op <= 0xe5 || op == 0xec || op == 0xed:
		in.writes = 1 << RAX
	case op == 0xdf && !in.IsMem && in.Reg&7 == 4: // fnstsw ax
		in.writes = 1 << RAX
	case op >= 0xe0 && op <= 0xe3:
		in.Class = Jcc
		in.Cond = None
		in.writes = 1 << RCX
	case op == 0xe8:
		in.Class = Call
	case op == 0xe9 || op == 0xeb:
		in.Class = Jmp
	case op == 0xf6 || op == 0xf7:
		if op == 0xf6 {
			in.Size = 1
			if !in.IsMem {
				in.byteReg(&in.RM, rex)
			}
		}
		switch in.Reg & 7 {
		case 0, 1: // test
		case 2:
			in.Class = Not
			in.writes = bit(in.RM)
		case 3:
			in.Class = Neg
			in.writes = bit(in.RM)
		default:
			in.writes = 1<<RAX | 1<<RDX
		}
	case op == 0xfe:
		if !in.IsMem {
			in.byteReg(&in.RM, rex)
		}
		in.writes = bit(in.RM)
	case op == 0xff:
		switch in.Reg & 7 {
		case 0, 1:
			in.Class = AluImm
			in.Alu = Add
			in.Imm = 1
			if in.Reg&7 == 1 {
				in.Imm = -1
			}
			in.writes = bit(in.RM)
		case 2, 3:
			in.Class = CallInd
			in.Load = true
		case 4, 5:
			in.Class = JmpInd
			in.Load = true
		case 6:
			in.Class = Push
			in.Size = 8
			in.Load = true
			in.writes = 1 << RSP
		}
	}
}

func decode0F(code []byte, p, n int, in *Inst, rex byte, opsize16, rep, repne bool) bool {
	op := code[p]
	p++
	switch op {
	case 0x38, 0x3a:
		if p >= n {
			return false
		}
		op3 := code[p]
		p++
		if p = modrm(code, p, n, in, rex); p < 0 {
			return false
		}
		if op == 0x3a {
			if p++; p > n {
				return false
			}
			if op3 >= 0x14 && op3 <= 0x17 {
				in.writes = bit(in.RM)
			}
		} else if op3 >= 0xc0 { // crc32, movbe, adcx, adox, movdiri, key locker, …
			in.writes = bit(in.Reg) | bit(in.RM)
		}
		in.Len = uint8(p)
		return true
	}
	f := twoByte[op]
	if f&fBad != 0 {
		return false
	}
	if f&fModRM != 0 {
		if op >= 0x20 && op <= 0x23 { // mov to and from control registers: mod is ignored
			if p >= n {
				return false
			}
			in.HasModRM = true
			in.Reg, in.RM = code[p]>>3&7|rex<<1&8, code[p]&7|rex<<3&8
			p++
		} else if p = modrm(code, p, n, in, rex); p < 0 {
			return false
		}
	}
	if f&fImm8 != 0 {
		if p >= n {
			return false
		}
		in.Imm = int64(int8(code[p]))
		p++
	}
	if op == 0x78 && (opsize16 || repne) { // extrq, insertq
		if p += 2; p > n {
			return false
		}
	}
	if f&fRel32 != 0 {
		if p+4 > n {
			return false
		}
		in.Imm = int64(int32(binary.LittleEndian.Uint32(code[p:])))
		p += 4
	}
	in.Len = uint8(p)
	switch g := gprTwoByte[op]; g {
	case 1:
		in.writes = bit(in.Reg)
	case 2:
		in.writes = bit(in.RM)
	case 3:
		in.writes = bit(in.Reg) | bit(in.RM)
	}
	switch {
	case op == 0x05:
		in.Class = Syscall
		in.writes = 1<<RAX | 1<<RCX | 1<<R11
	case op == 0x34:
		in.Class = Sysenter
		in.writes = all
	case op == 0x0b || op == 0xb9 || op == 0xff:
		in.Class = Trap
	case op == 0x01:
		in.writes |= 1<<RAX | 1<<RDX | 1<<RCX
	case op == 0x1e && rep && !in.IsMem && (code[p-1] == 0xfa || code[p-1] == 0xfb):
		in.Class = Endbr
		in.writes = 0
	case op == 0x1e && rep: // rdssp
		in.writes = bit(in.RM)
	case op >= 0x18 && op <= 0x1f || op == 0x0d:
		in.Class = Nop
		in.writes = 0
	case op >= 0x40 && op < 0x50:
		in.Class = Cmov
		in.Load = true
	case op >= 0x80 && op < 0x90:
		in.Class = Jcc
		in.Cond = op & 15
	case op >= 0x90 && op < 0xa0:
		in.Class = Setcc
		in.Size = 1
		if !in.IsMem {
			in.byteReg(&in.RM, rex)
			in.writes = bit(in.RM)
		}
	case op == 0x31 || op == 0x32 || op == 0x33:
		in.writes = 1<<RAX | 1<<RDX | 1<<RCX
	case op == 0xa0 || op == 0xa1 || op == 0xa8 || op == 0xa9:
		in.writes = 1 << RSP
	case op == 0xa2:
		in.writes = 1<<RAX | 1<<RBX | 1<<RCX | 1<<RDX
	case op == 0xb6 || op == 0xb7 || op == 0xbe || op == 0xbf:
		in.Class = Movx
		in.Load = true
		in.Signed = op >= 0xbe
		in.SrcSize = 1 + op&1
		if in.SrcSize == 1 && !in.IsMem {
			in.byteReg(&in.RM, rex)
		}
	case op == 0xb0 || op == 0xb1:
		in.writes |= 1 << RAX
	case op == 0xc7:
		in.writes |= 1<<RAX | 1<<RDX
	case op >= 0xc8 && op <= 0xcf:
		in.writes = bit(op&7 | rex&1<<3)
	}
	return true
}

// vexImm8 tells whether an opcode of a VEX or EVEX map carries an immediate byte.
func vexImm8(mapNo, op byte) bool {
	switch mapNo {
	case 1:
		return op >= 0x70 && op <= 0x73 || op == 0xc2 || op >= 0xc4 && op <= 0xc6
	case 3:
		return true
	}
	return false
}

func decodeVEX(code []byte, p, n int, in *Inst, first byte) bool {
	var mapNo, rex byte
	vvvv := uint8(None)
	evex := false
	switch first {
	case 0xc5:
		if p >= n {
			return false
		}
		mapNo = 1
		rex = (^code[p] >> 7 & 1) << 2
		vvvv = ^code[p] >> 3 & 15
		p++
	case 0xc4:
		if p+1 >= n {
			return false
		}
		mapNo = code[p] & 0x1f
		rex = ^code[p] >> 5 & 7
		vvvv = ^code[p+1] >> 3 & 15
		p += 2
		if mapNo < 1 || mapNo > 3 && mapNo != 7 {
			return false
		}
	case 0x62:
		if p+2 >= n {
			return false
		}
		evex = true
		mapNo = code[p] & 7
		rex = ^code[p] >> 5 & 7
		if code[p+1]&4 == 0 || mapNo == 0 || mapNo == 4 || mapNo == 7 {
			return false
		}
		p += 3
	}
	if p >= n {
		return false
	}
	op := code[p]
	p++
	if mapNo == 1 && op == 0x77 && !evex { // vzeroupper, vzeroall: no ModRM
		in.Len = uint8(p)
		return true
	}
	if p = modrm(code, p, n, in, rex); p < 0 {
		return false
	}
	if evex && in.IsMem && !in.RIP && p > 0 {
		in.Disp = 0 // disp8 is scaled by what we do not decode; nothing needs it
	}
	switch {
	case vexImm8(mapNo, op):
		p++
	case mapNo == 7:
		p += 4
	}
	if p > n {
		return false
	}
	in.Len = uint8(p)
	switch {
	case mapNo == 1 && (op == 0x2c || op == 0x2d || op == 0x50 || op == 0xc5 || op == 0xd7 || op == 0x78 || op == 0x79 || op == 0x93):
		in.writes = bit(in.Reg)
	case mapNo == 1 && op == 0x7e, mapNo == 3 && op >= 0x14 && op <= 0x17:
		in.writes = bit(in.RM)
	case mapNo == 5 && (op == 0x2c || op == 0x2d || op == 0x78 || op == 0x79 || op == 0x7e):
		in.writes = bit(in.Reg) | bit(in.RM)
	case !evex && (mapNo == 2 && op >= 0xf0 || mapNo == 2 && op >= 0xe0 && op <= 0xef || mapNo == 3 && op >= 0xf0):
		in.writes = bit(in.Reg) | bit(vvvv) | bit(in.RM)
	case mapNo == 2 && (op == 0xf0 || op >= 0xf2 && op <= 0xf7):
		in.writes = all &^ (1 << RSP)
	}
	return true
}

func decodeXOP(code []byte, p, n int, in *Inst) bool {
	if p+2 >= n {
		return false
	}
	mapNo := code[p] & 0x1f
	rex := ^code[p] >> 5 & 7
	vvvv := ^code[p+1] >> 3 & 15
	if mapNo > 10 {
		return false
	}
	p += 3
	if p = modrm(code, p, n, in, rex); p < 0 {
		return false
	}
	switch mapNo {
	case 8:
		p++
	case 10:
		p += 4
	}
	if p > n {
		return false
	}
	in.Len = uint8(p)
	in.writes = bit(in.Reg) | bit(in.RM) | bit(vvvv)
	return true
}

// DstReg and SrcReg give the operands of a Mov or Alu between registers.
func (i *Inst) DstReg() uint8 {
	if i.Load {
		return i.Reg
	}
	return i.RM
}

// SrcReg is the other operand.
func (i *Inst) SrcReg() uint8 {
	if i.Load {
		return i.RM
	}
	return i.Reg
}
