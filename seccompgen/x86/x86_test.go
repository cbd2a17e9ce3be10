package x86_test

import (
	"encoding/hex"
	"strings"
	"testing"

	"github.com/declarun/declarun/seccompgen/x86"
	"golang.org/x/arch/x86/x86asm"
)

func TestDecode(t *testing.T) {
	for _, row := range []struct {
		claim, code string
		want        x86.Class
		length      int
		writes      uint32
	}{
		{"syscall changes rax, rcx and r11", "0f05", x86.Syscall, 2, 1<<x86.RAX | 1<<x86.RCX | 1<<x86.R11},
		{"int 0x80 is an interrupt", "cd80", x86.Int, 2, 1 << x86.RAX},
		{"endbr64 is four bytes", "f30f1efa", x86.Endbr, 4, 0},
		{"vzeroupper has no ModRM", "c5f877c3", x86.Other, 3, 0},
		{"crc32 with 66 and REX", "66f2480f38f1c0", x86.Other, 7, 1},
		{"adcx", "66490f38f6c0", x86.Other, 6, 1 | 1<<x86.R8},
		{"rdpkru", "0f01ee", x86.Other, 3, 1<<x86.RAX | 1<<x86.RCX | 1<<x86.RDX},
		{"rdseed", "0fc7f8", x86.Other, 3, 1 << x86.RAX},
		{"an AVX-512 compare with disp8", "62f37d483f4701" + "04", x86.Other, 8, 0},
		{"movabs", "48b8efcdab8967452301", x86.MovImm, 10, 1},
		{"test r/m8, imm8 has an immediate", "f60701", x86.Other, 3, 0},
		{"not r/m8 has none", "f617", x86.Not, 2, 0},
		{"call padded with data16 keeps its 32-bit displacement", "666648e800000000", x86.Call, 8, 0},
		{"enter", "c8100000", x86.Other, 4, 1<<x86.RSP | 1<<x86.RBP},
		{"call through memory", "ff1500000000", x86.CallInd, 6, 0},
		{"mov with moffs64", "48a1" + "0011223344556677", x86.Other, 10, 1},
		{"a REX prefix before another prefix does not count", "4866b80100", x86.MovImm, 5, 1},
		{"the reg field of bt is no register", "0fbae009", x86.Other, 4, 0xffff},
		{"xop", "8fe9789bc1", x86.Other, 5, 0xffff},
	} {
		code, err := hex.DecodeString(row.code)
		if err != nil {
			t.Fatal(err)
		}
		var in x86.Inst
		if !x86.Decode(code, &in) || in.Class != row.want || int(in.Len) != row.length {
			t.Errorf("%s: class %d, length %d; want %d, %d", row.claim, in.Class, in.Len, row.want, row.length)
		}
		if row.writes != 0xffff && in.Writes()&row.writes != row.writes {
			t.Errorf("%s: writes %#x; want at least %#x", row.claim, in.Writes(), row.writes)
		}
	}
	var in x86.Inst
	if !x86.Decode([]byte{0x0f, 0xba, 0xe0, 0x09}, &in) || in.Writes()&(1<<x86.RSP) != 0 {
		t.Errorf("bt eax, 9 changes the stack pointer: %#x", in.Writes())
	}
}

func TestRIPRelativeDisplacementIsSigned(t *testing.T) {
	var in x86.Inst
	if !x86.Decode([]byte{0x48, 0x8d, 0x3d, 0xf5, 0xf3, 0xff, 0xff}, &in) || in.Class != x86.Lea || !in.RIP {
		t.Fatalf("lea rdi, [rip-0xc0b]: %+v", in)
	}
	if got := in.Address(0x2000); got != 0x2007-0xc0b {
		t.Errorf("address %#x, want %#x", got, 0x2007-0xc0b)
	}
}

func TestTruncatedIsRefused(t *testing.T) {
	for _, s := range []string{"", "48", "0f", "e800", "c5", "c4e2", "62f1", "8f", "488d3d00", "66666666666666666666666666666666"} {
		code, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		var in x86.Inst
		if x86.Decode(code, &in) {
			t.Errorf("%q decodes as %d bytes", s, in.Len)
		}
	}
}

// x86asm disagrees where it is known to be wrong (v0.32): vzeroupper, endbr64,
// REX between mandatory prefix and 0F 38; and it gives prefixes of their own.
func known(code []byte, ref x86asm.Inst) bool {
	switch {
	case ref.Op == 0, ref.Len <= 1 && code[0] >= 0x40:
		return true
	case strings.Contains(ref.Op.String(), "PREFETCH"):
		return true
	}
	for _, p := range ref.Prefix {
		if p == 0 {
			break
		}
		if p&(x86asm.PrefixInvalid|x86asm.PrefixIgnored) != 0 {
			return true
		}
	}
	for _, b := range code[:min(ref.Len, len(code))] {
		switch {
		case b == 0xc4, b == 0xc5, b == 0x62, b == 0x8f, b == 0x66, b == 0x67, b == 0x0f:
			return true // its VEX support is partial; 66 and 67: see package x86
		}
	}
	return false
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{"0f05", "f30f1efa", "c5f877", "62f37d483f470104", "48b8efcdab8967452301", "ff1500000000",
		"8fe9789bc1", "f60701", "c8100000", "4889e5", "e9ffffffff", "660f38f6c0", "0f01ee", "c4e27df2c0", "f2480f38f1c0"} {
		b, err := hex.DecodeString(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, code []byte) {
		var in x86.Inst
		ok := x86.Decode(code, &in)
		if ok && (in.Len == 0 || int(in.Len) > len(code) || in.Len > 15) {
			t.Fatalf("% x: length %d", code, in.Len)
		}
		if len(code) == 0 {
			return
		}
		ref, err := x86asm.Decode(code, 64)
		if err != nil || !ok || known(code, ref) {
			return
		}
		if ref.Len != int(in.Len) {
			t.Fatalf("% x: length %d, x86asm says %d (%v)", code, in.Len, ref.Len, ref)
		}
	})
}

func BenchmarkDecode(b *testing.B) {
	code, err := hex.DecodeString("f30f1efa554889e5488d3df5f3ffff8b4508e800000000c5f877b80000000085c074054883c4105dc3")
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(int64(len(code)))
	var in x86.Inst
	for b.Loop() {
		for p := 0; p < len(code); p += int(in.Len) {
			if !x86.Decode(code[p:], &in) {
				b.Fatal(p)
			}
		}
	}
}
