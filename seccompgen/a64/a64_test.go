package a64_test

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"golang.org/x/arch/arm64/arm64asm"

	"github.com/declarun/declarun/seccompgen/a64"
)

func TestDecode(t *testing.T) {
	const pc = 0x400ffc
	for _, row := range []struct {
		claim string
		word  uint32
		want  a64.Inst
	}{
		{"svc #0", 0xd4000001, a64.Inst{Class: a64.Syscall}},
		{"svc with another immediate enters the kernel too", 0xd4001001, a64.Inst{Class: a64.Syscall}},
		{"mov w8, #63", 0x528007e8, a64.Inst{Class: a64.MovImm, Rd: 8, Imm: 63, Size: 4}},
		{"mov x8, #-1", 0x92800008, a64.Inst{Class: a64.MovImm, Rd: 8, Imm: -1, Size: 8}},
		{"movk x8, #1, lsl #16", 0xf2a00028, a64.Inst{Class: a64.MovKeep, Rd: 8, Imm: 1, Shift: 16, Size: 8}},
		{"uxtw x8, w0", 0xd3407c08, a64.Inst{Class: a64.Extend, Rd: 8, Rn: 0, Bits: 32, Size: 8}},
		{"mov w8, w0", 0x2a0003e8, a64.Inst{Class: a64.Mov, Rd: 8, Rn: 0, Size: 4}},
		{"mov x29, sp", 0x910003fd, a64.Inst{Class: a64.Mov, Rd: 29, Rn: a64.SP, Size: 8}},
		{"orr w8, wzr, #0xc0", 0x321a07e8, a64.Inst{Class: a64.MovImm, Rd: 8, Imm: 0xc0, Size: 4}},
		{"sub sp, sp, #0x1, lsl #12", 0xd14007ff, a64.Inst{Class: a64.AddImm, Rd: a64.SP, Rn: a64.SP, Imm: -4096, Size: 8}},
		{"cset w8, eq", 0x1a9f17e8, a64.Inst{Class: a64.Sel, Rd: 8, Rn: a64.ZR, Rm: a64.ZR, Change: a64.Inc, Size: 4, Cond: 1}},
		{"ldr x8, [sp, #16]", 0xf9400be8, a64.Inst{Class: a64.Load, Rd: 8, Base: a64.SP, Imm: 16, Width: 8, Size: 8}},
		{"stp x29, x30, [sp, #-32]!", 0xa9be7bfd, a64.Inst{Class: a64.Store, Rd: 29, R2: 30, Pair: true, Base: a64.SP, Imm: -32, Mode: a64.Pre, Width: 8, Size: 8}},
		{"ldp x29, x30, [sp], #32", 0xa8c27bfd, a64.Inst{Class: a64.Load, Rd: 29, R2: 30, Pair: true, Base: a64.SP, Imm: 32, Mode: a64.Post, Width: 8, Size: 8}},
		{"retaa", 0xd65f0bff, a64.Inst{Class: a64.Ret}},
		{"braa x16, x17", 0xd71f0a11, a64.Inst{Class: a64.JmpInd, Rn: 16}},
		{"blraaz x3", 0xd63f087f, a64.Inst{Class: a64.CallInd, Rn: 3}},
		{"paciasp", 0xd503233f, a64.Inst{Class: a64.Nop}},
		{"bti c", 0xd503245f, a64.Inst{Class: a64.Bti}},
		{"b.al goes on nowhere else", 0x5400000e, a64.Inst{Class: a64.Jmp}},
	} {
		var in a64.Inst
		if !a64.Decode(row.word, &in) {
			t.Errorf("%s: not decoded", row.claim)
			continue
		}
		w := row.want
		if in.Class != w.Class || in.Imm != w.Imm || in.Change != w.Change || in.Shift != w.Shift || in.Mode != w.Mode || in.Pair != w.Pair || w.Width != 0 && in.Width != w.Width {
			t.Errorf("%s: %+v", row.claim, in)
		}
		if w.Size != 0 && (in.Size != w.Size || in.Rd != w.Rd) || w.Rn != 0 && in.Rn != w.Rn || w.Rm != 0 && in.Rm != w.Rm || w.Base != 0 && in.Base != w.Base || w.Bits != 0 && in.Bits != w.Bits {
			t.Errorf("%s: %+v", row.claim, in)
		}
	}
	var in a64.Inst
	if !a64.Decode(0xb0000008, &in) || in.Page(pc) != 0x401000 { // adrp x8, +1 page
		t.Errorf("adrp: %#x", in.Page(pc))
	}
	if !a64.Decode(0x97ffffff, &in) || in.Target(pc) != pc-4 { // bl -4
		t.Errorf("bl: %#x", in.Target(pc))
	}
	for _, w := range []uint32{0x02000000, 0x06000000, 0xd4000000, 0xd61e0000} {
		if a64.Decode(w, &in) {
			t.Errorf("%#x is no instruction", w)
		}
	}
}

// FuzzDecode holds the decoder against arm64asm, over all words.
func FuzzDecode(f *testing.F) {
	for _, w := range []uint32{0xd4000001, 0x528007e8, 0xa9be7bfd, 0x54000000, 0xf9400be8, 0x08a07c41, 0x9e660020, 0x04bf5000} {
		f.Add(w)
	}
	f.Fuzz(func(t *testing.T, w uint32) { judge(t, w) })
}

// arm64asm is wrong or silent about some words; everywhere else both must agree.
func judge(t *testing.T, w uint32) {
	var in a64.Inst
	ok := a64.Decode(w, &in)
	if in.Writes()>>8&1 != 0 && in.Class == a64.Syscall {
		t.Errorf("%08x: a system call writes its number", w)
	}
	var b [4]byte
	binary.LittleEndian.PutUint32(b[:], w)
	theirs, err := arm64asm.Decode(b[:])
	if err != nil {
		return
	}
	if !ok && w>>23&63 == 36 {
		return // a reserved immediate of a logical instruction (DecodeBitMasks)
	}
	if !ok && w>>24&31 == 11 && w>>21&1 == 1 && (w>>10&7 > 4 || w>>22&3 != 0) {
		return // shifts of extended registers go up to 4: C6.2, ADD (extended register)
	}
	if !ok {
		t.Errorf("%08x: %v is not decoded", w, theirs)
		return
	}
	want := in.Class
	switch theirs.Op {
	case arm64asm.SVC:
		want = a64.Syscall
	case arm64asm.BL:
		want = a64.Call
	case arm64asm.BLR:
		want = a64.CallInd
	case arm64asm.BR:
		want = a64.JmpInd
	case arm64asm.RET, arm64asm.ERET, arm64asm.DRPS:
		want = a64.Ret
	case arm64asm.CBZ, arm64asm.CBNZ, arm64asm.TBZ, arm64asm.TBNZ:
		want = a64.Jcc
	case arm64asm.B:
		want = a64.Jmp
		if _, conditional := theirs.Args[0].(arm64asm.Cond); conditional && w&15 < 14 {
			want = a64.Jcc
		}
	case arm64asm.ADRP:
		want = a64.Page
	case arm64asm.ADR:
		want = a64.Addr
	case arm64asm.MOVK:
		want = a64.MovKeep
	case arm64asm.BRK, arm64asm.HLT, arm64asm.HVC, arm64asm.SMC:
		want = a64.Trap
	}
	if in.Class != want {
		t.Errorf("%08x: %v is of class %d, want %d", w, theirs, in.Class, want)
	}
	for _, a := range theirs.Args {
		if rel, is := a.(arm64asm.PCRel); is && in.Class != a64.Other {
			if in.Imm != int64(rel) {
				t.Errorf("%08x: %v: %#x", w, theirs, in.Imm)
			}
		}
	}
}

func TestAgreesWithArm64asm(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 2_000_000 {
		judge(t, r.Uint32())
		if t.Failed() {
			return
		}
	}
}
