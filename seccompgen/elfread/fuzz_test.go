package elfread

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestNeedsIsWhatReadFinds(t *testing.T) {
	for _, file := range []string{"/bin/bash", "/bin/ls", "/lib/x86_64-linux-gnu/libcrypto.so.3", "/lib/x86_64-linux-gnu/libc.so.6"} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		f, err := Read(bytes.NewReader(b), int64(len(b)))
		if err != nil {
			continue // not of this machine
		}
		defer f.Close()
		if got := Needs(bytes.NewReader(b), int64(len(b))); !slices.Equal(got, f.Needed) {
			t.Errorf("%s: %v, want %v", file, got, f.Needed)
		}
		all, ok := Symbols(bytes.NewReader(b), int64(len(b)), 1<<22)
		if !ok {
			t.Fatalf("%s has no symbols", file)
		}
		found := map[string]bool{}
		for _, s := range all {
			found[string(s.Name)] = found[string(s.Name)] || s.Defined
		}
		for i := range f.Dynsym {
			if s := &f.Dynsym[i]; s.Name != "" && (!s.Defined && found[s.Name] && strings.HasPrefix(s.Name, "str") || s.Defined && !found[s.Name]) {
				t.Errorf("%s: %s, defined %v, is not found so", file, s.Name, s.Defined)
			}
		}
	}
}

func FuzzNeeds(f *testing.F) {
	var b [64 + 2*56 + 3*16 + 8]byte
	copy(b[:], "\x7fELF\x02\x01\x01")
	le := binary.LittleEndian
	le.PutUint64(b[32:], 64)
	le.PutUint16(b[54:], 56)
	le.PutUint16(b[56:], 2)
	le.PutUint32(b[64:], 1) // PT_LOAD of everything
	le.PutUint64(b[64+32:], uint64(len(b)))
	le.PutUint32(b[120:], 2) // PT_DYNAMIC
	le.PutUint64(b[120+8:], 176)
	le.PutUint64(b[120+32:], 48)
	for i, v := range []uint64{1, 1, 5, 224, 10, 8} { // NEEDED, STRTAB, STRSZ
		le.PutUint64(b[176+8*i:], v)
	}
	copy(b[225:], "libx")
	f.Add(b[:])
	if got := Needs(bytes.NewReader(b[:]), int64(len(b))); !slices.Equal(got, []string{"libx"}) {
		f.Fatalf("%q", got)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if got := Needs(bytes.NewReader(data), int64(len(data))); len(got) > len(data) {
			t.Fatalf("%d names from %d bytes", len(got), len(data))
		}
		if got, _ := Symbols(bytes.NewReader(data), int64(len(data)), 1<<20); len(got) > len(data)/24 {
			t.Fatalf("%d symbols from %d bytes", len(got), len(data))
		}
	})
}

func FuzzFrames(f *testing.F) {
	f.Add([]byte{
		0x14, 0, 0, 0, 0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 0x10, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0, // CIE, pcrel sdata4
		0x14, 0, 0, 0, 0x1c, 0, 0, 0, 0, 0x10, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // FDE
		0, 0, 0, 0,
	}, uint64(0x1000))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, uint64(0))
	f.Add([]byte{4, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 8, 0, 0, 0}, uint64(1<<63))
	f.Fuzz(func(t *testing.T, b []byte, addr uint64) {
		for _, whole := range []bool{false, true} {
			if got := ParseFrames(b, addr, whole); len(got) > len(b)/8 {
				t.Fatalf("%d functions from %d bytes", len(got), len(b))
			}
		}
	})
}

func TestParseFrames(t *testing.T) {
	b := []byte{
		0x14, 0, 0, 0, 0, 0, 0, 0, 1, 'z', 'R', 0, 1, 0x78, 0x10, 1, 0x1b, 0x0c, 7, 8, 0x90, 1, 0, 0,
		0x14, 0, 0, 0, 0x1c, 0, 0, 0, 0, 0x10, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
		0, 0, 0, 0,
		0x14, 0, 0, 0, 0x38, 0, 0, 0, 0, 0x20, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
	}
	if got := ParseFrames(b, 0x1000, false); len(got) != 1 || got[0] != (Range{0x1000 + 32 + 0x1000, 0x1000 + 32 + 0x1020}) {
		t.Errorf("a zero length ends the table: %x", got)
	}
	if got := ParseFrames(b, 0x1000, true); len(got) != 2 {
		t.Errorf("a terminator inside the section does not: %x", got)
	}
}

func pclntab(names string, funcs ...uint32) []byte {
	b := make([]byte, 72)
	binary.LittleEndian.PutUint32(b, 0xfffffff1)
	b[6], b[7] = 1, 8
	binary.LittleEndian.PutUint64(b[8:], uint64(len(funcs)-1))
	binary.LittleEndian.PutUint64(b[32:], 72)
	b = append(b, names...)
	binary.LittleEndian.PutUint64(b[64:], uint64(len(b)))
	for i, f := range funcs {
		b = binary.LittleEndian.AppendUint32(b, f)
		if i < len(funcs)-1 {
			b = binary.LittleEndian.AppendUint32(b, uint32(len(funcs)*8))
		}
	}
	return append(b, make([]byte, 16)...)
}

func TestParsePCLn(t *testing.T) {
	got := ParsePCLn(pclntab("main.main\x00", 0, 0x20, 0x40), 0x401000)
	if len(got) != 2 || got[0].Range != (Range{0x401000, 0x401020}) || got[0].Name != "main.main" {
		t.Errorf("%+v", got)
	}
}

func FuzzPCLn(f *testing.F) {
	f.Add(pclntab("main.main\x00", 0, 0x20, 0x40), uint64(0x401000))
	f.Add(pclntab("", 0xffffffff, 0, 1), uint64(1<<62))
	f.Fuzz(func(t *testing.T, b []byte, text uint64) {
		for _, fn := range ParsePCLn(b, text) {
			if fn.Hi <= fn.Lo {
				t.Fatalf("%+v", fn)
			}
		}
	})
}
