package seccompgen

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/shim/rootfs"
)

// tiny builds a program of one segment.
func tiny(code []byte, machine elf.Machine, vaddr, memsz uint64) []byte {
	var b bytes.Buffer
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Entry: vaddr + 120, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 1}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[4], h.Ident[5], h.Ident[6] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	p := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 5, Vaddr: vaddr, Filesz: 120 + uint64(len(code)), Memsz: memsz}
	_ = binary.Write(&b, binary.LittleEndian, h)
	_ = binary.Write(&b, binary.LittleEndian, p)
	b.Write(code)
	return b.Bytes()
}

func FuzzELF(f *testing.F) {
	f.Add(tiny([]byte{0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xf4}, elf.EM_X86_64, 0x400000, 4096))
	f.Add(tiny([]byte{0xb8, 60, 0, 0, 0, 0xeb, 0xf9, 0x0f, 0x05}, elf.EM_X86_64, 0xfffffffffffff000, 1<<63))
	f.Add(tiny([]byte{0xe8, 0xfb, 0xff, 0xff, 0xff, 0x50, 0x0f, 0x05}, elf.EM_X86_64, 0, 4<<30))
	f.Add(tiny([]byte{0xff, 0x24, 0xc5, 0x78, 0, 0x40, 0, 0x0f, 0x05}, elf.EM_X86_64, 0x400000, 4096))
	for _, words := range [][]uint32{
		{0xd2800ba8, 0xd4000001, 0},                                              // mov x8, #93; svc
		{0x90000000, 0xf9400000, 0x91010000, 0xd63f0000, 0xd61f0000},             // adrp, ldr, add, blr, br
		{0x10000060, 0x38616801, 0x8b218800, 0xd61f0000, 0xd4000001},             // a switch with a table of bytes
		{0xa9be7bfd, 0x910003fd, 0xb9001fe0, 0xb9401fe8, 0xd4000001, 0x17fffffb}, // a number on the stack, in a loop
		{0x90000013, 0x34ffffe0, 0xf90003f3, 0xf94003f3, 0x54ffffa0, 0xd61f0260}, // a page on the stack, in loops
	} {
		var code []byte
		for _, w := range words {
			code = binary.LittleEndian.AppendUint32(code, w)
		}
		f.Add(tiny(code, elf.EM_AARCH64, 0x400000, 4096))
		f.Add(tiny(code, elf.EM_AARCH64, 0xfffffffffffff000, 1<<63))
	}
	f.Add([]byte("\x7fELF"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if len(data) > 1<<16 {
			return
		}
		ef, err := elfread.Read(bytes.NewReader(data), int64(len(data)))
		if err != nil || machines[ef.Machine] == nil {
			return
		}
		defer ef.Close()
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		s, err := summarise(ctx, ef, map[string][]location{"syscall": {reg(machines[ef.Machine].conventions().first)}})
		if err != nil {
			t.Fatal(err)
		}
		g := link(newSymbols(), []*module{{path: "/p", sum: s}}, nil)
		g.run()
		g.calls(goarch(ef.Machine, ef.Class))
		// As a very large library is taken.
		c := newBuilder(ctx, ef, map[string][]location{"syscall": {reg(machines[ef.Machine].conventions().first)}})
		c.coarseSize = 0
		if _, err := c.coarse(); err != nil {
			t.Fatal(err)
		}
		back, err := decodeSummary(s.encode())
		if err != nil || len(back.Funcs) != len(s.Funcs) {
			t.Fatalf("the cached form does not read back: %v", err)
		}
	})
}

// The configuration that libraries are found by.
func FuzzLoaderConfiguration(f *testing.F) {
	f.Add("/opt/lib\ninclude /etc/ld.so.conf.d/*.conf # x\ninclude ld.so.conf\n", "hosts: files dns [NOTFOUND=return] mdns4_minimal\npasswd:\tfiles systemd # x\n", "/lib/a.so libb.so", "/lib:/usr/lib\n", "$ORIGIN/../lib:${LIB}:$PLATFORM:/x:", "libc.so.6")
	f.Add(strings.Repeat("include /etc/[*\n", 100), "a:b:c\n::[[]!/=\n", "\x00", "::", "::$ORIGIN$ORIGIN", "../../x\n")
	f.Fuzz(func(t *testing.T, conf, nsswitch, preload, musl, runpath, name string) {
		dir := t.TempDir()
		for file, text := range map[string]string{"etc/ld.so.conf": conf, "etc/ld.so.conf.d/a.conf": conf, "etc/nsswitch.conf": nsswitch, "etc/ld.so.preload": preload, "etc/ld-musl-x86_64.path": musl} {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "p"), tiny([]byte{0x0f, 0x05, 0xf4}, elf.EM_X86_64, 0x400000, 4096), 0o755); err != nil {
			t.Fatal(err)
		}
		root, err := rootfs.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		r := newReader(root)
		st := newStore(r, NoCache{}, []Program{{Path: "/p"}})
		defer st.wait()
		l := newLoader(context.Background(), r, st, []string{"LD_LIBRARY_PATH=" + runpath, "LD_PRELOAD=" + preload, "LC_ALL=" + nsswitch})
		for _, d := range l.dirs {
			if !path.IsAbs(d) || d != path.Clean(d) {
				t.Errorf("directory %q", d)
			}
		}
		if n := len(l.services()); n > 52 || len(l.dirs) > 220 {
			t.Errorf("%d services, %d directories", n, len(l.dirs))
		}
		if _, err := l.program("/p", nil); err != nil {
			t.Error(err)
		}
		m := &module{path: "/p", sum: &summary{Runpath: runpath}}
		if p, ok := l.find(name, m, l.expand(runpath, "/x"), musl != ""); ok && !path.IsAbs(p) {
			t.Errorf("library %q", p)
		}
	})
}

func FuzzDecodeSummary(f *testing.F) {
	s := &summary{Soname: "x", Needed: []string{"a"}, Entry: 0, Funcs: []function{{Addr: 1, Calls: []int32{0}, Sites: []site{{1, 2, ""}}}}, Exports: []export{{"e", 0}}}
	f.Add(s.encode())
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0x0f})
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeSummary(b)
		if err != nil {
			return
		}
		g := link(newSymbols(), []*module{{path: "/p", sum: s, exported: true}}, nil)
		g.run()
	})
}

func TestHostileHeaders(t *testing.T) {
	good := tiny([]byte{0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xf4}, elf.EM_X86_64, 0x400000, 4096)
	for _, row := range []struct {
		claim string
		edit  func(b []byte)
	}{
		{"65,535 program headers", func(b []byte) { binary.LittleEndian.PutUint16(b[56:], 0xffff) }},
		{"program headers outside the file", func(b []byte) { binary.LittleEndian.PutUint64(b[32:], 1<<63) }},
		{"a segment of 4 GB", func(b []byte) {
			binary.LittleEndian.PutUint64(b[64+32:], 4<<30)
			binary.LittleEndian.PutUint64(b[64+40:], 4<<30)
		}},
		{"a segment at the end of the address space", func(b []byte) { binary.LittleEndian.PutUint64(b[64+16:], ^uint64(0)-16) }},
	} {
		b := bytes.Clone(good)
		row.edit(b)
		if _, err := elfread.Read(bytes.NewReader(b), int64(len(b))); err == nil {
			t.Errorf("%s: no error", row.claim)
		}
	}
	if _, err := elfread.Read(bytes.NewReader(good), int64(len(good))); err != nil {
		t.Error(err)
	}
}
