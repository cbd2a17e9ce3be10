package planner

import (
	"bytes"
	"context"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/declared"
)

// image is a root filesystem that a test makes.
type image struct {
	t   *testing.T
	dir string
}

func (m image) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m image) path(name string) string {
	p := filepath.Join(m.dir, name)
	m.must(os.MkdirAll(filepath.Dir(p), 0o755))
	return p
}

func (m image) file(name string, data []byte) { m.must(os.WriteFile(m.path(name), data, 0o755)) }
func (m image) script(name, text string)      { m.file(name, []byte("#!/bin/sh\n"+text)) }
func (m image) link(to, name string)          { m.must(os.Symlink(to, m.path(name))) }
func (m image) fifo(name string)              { m.must(unix.Mkfifo(m.path(name), 0o755)) }
func (m image) device(name string) {
	m.must(unix.Mknod(m.path(name), unix.S_IFCHR|0o755, int(unix.Mkdev(1, 5)))) // zero
}
func (m image) sparse(name string, size int64) {
	m.must(os.WriteFile(m.path(name), nil, 0o755))
	m.must(os.Truncate(m.path(name), size))
}

// object is an ELF file of one segment at address 0 that holds all of it.
type object struct {
	interp  string
	needed  []string
	soname  string
	runpath string
	dynamic []elf.Dyn64 // further entries
	code    []byte
	pad     []byte // after everything else
	edit    func(h *elf.Header64, load *elf.Prog64)
}

func (o object) bytes() []byte {
	const headers = 64 + 3*56
	strtab := []byte{0}
	str := func(s string) uint64 {
		at := len(strtab)
		strtab = append(append(strtab, s...), 0)
		return uint64(at)
	}
	var dyn []elf.Dyn64
	for _, n := range o.needed {
		dyn = append(dyn, elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: str(n)})
	}
	if o.soname != "" {
		dyn = append(dyn, elf.Dyn64{Tag: int64(elf.DT_SONAME), Val: str(o.soname)})
	}
	if o.runpath != "" {
		dyn = append(dyn, elf.Dyn64{Tag: int64(elf.DT_RUNPATH), Val: str(o.runpath)})
	}
	code := o.code
	if code == nil {
		code = []byte{0xb8, 60, 0, 0, 0, 0x0f, 0x05, 0xf4} // exit
	}
	at := uint64(headers)
	place := func(n int) uint64 { p := at; at = (at + uint64(n) + 7) &^ 7; return p }
	codeAt := place(len(code))
	interpAt := place(len(o.interp) + 1)
	strAt := place(len(strtab))
	dyn = append(dyn, o.dynamic...)
	dyn = append(dyn, elf.Dyn64{Tag: int64(elf.DT_STRTAB), Val: strAt}, elf.Dyn64{Tag: int64(elf.DT_STRSZ), Val: uint64(len(strtab))}, elf.Dyn64{})
	dynAt := place(16 * len(dyn))
	size := at + uint64(len(o.pad))
	h := elf.Header64{Type: uint16(elf.ET_DYN), Machine: uint16(elf.EM_X86_64), Version: 1, Entry: codeAt, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 3}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[4], h.Ident[5], h.Ident[6] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	load := elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 7, Filesz: size, Memsz: size}
	if o.edit != nil {
		o.edit(&h, &load)
	}
	interp := elf.Prog64{Type: uint32(elf.PT_NULL)}
	if o.interp != "" {
		interp = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: interpAt, Vaddr: interpAt, Filesz: uint64(len(o.interp) + 1)}
	}
	d := elf.Prog64{Type: uint32(elf.PT_DYNAMIC), Off: dynAt, Vaddr: dynAt, Filesz: uint64(16 * len(dyn))}
	out := make([]byte, at, size)
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h)
	_ = binary.Write(&b, binary.LittleEndian, []elf.Prog64{load, interp, d})
	copy(out, b.Bytes())
	copy(out[codeAt:], code)
	copy(out[interpAt:], o.interp)
	copy(out[strAt:], strtab)
	b.Reset()
	_ = binary.Write(&b, binary.LittleEndian, dyn)
	copy(out[dynAt:], b.Bytes())
	return append(out, o.pad...)
}

const ldso = "/lib64/ld-linux-x86-64.so.2"

// base gives an image a shell and a loader.
func (m image) base() {
	m.file("/bin/sh", object{}.bytes())
	m.file(ldso, object{soname: "ld-linux-x86-64.so.2"}.bytes())
}

// hostile are images made to hang, crash or exhaust whoever reads them. The
// program is /p.
var hostile = map[string]func(m image){
	"65,535 program headers": func(m image) {
		m.file("/p", object{pad: make([]byte, 4<<20), edit: func(h *elf.Header64, _ *elf.Prog64) { h.Phnum = 0xffff }}.bytes())
	},
	"512 segments over each other, 300 MiB of code in a file of 600 KiB": func(m image) {
		code := make([]byte, 600<<10)
		r := rand.New(rand.NewPCG(1, 1))
		for i := range code {
			code[i] = byte(r.Uint32())
		}
		copy(code[512*56:], bytes.Repeat([]byte{0x0f, 0x05, 0xe8, 1, 0, 0, 0}, 1000))
		var h elf.Header64
		b := object{}.bytes()
		_ = binary.Read(bytes.NewReader(b), binary.LittleEndian, &h)
		h.Phnum, h.Entry, h.Type = 512, 0x400000+512*56+64, uint16(elf.ET_EXEC)
		var out bytes.Buffer
		_ = binary.Write(&out, binary.LittleEndian, h)
		for i := range 512 {
			_ = binary.Write(&out, binary.LittleEndian, elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: 5, Vaddr: 0x400000 + uint64(i)<<20, Filesz: uint64(len(code)), Memsz: uint64(len(code))})
		}
		copy(code, out.Bytes())
		m.file("/p", code)
	},
	"segments at the same address": func(m image) {
		b := object{pad: make([]byte, 1<<20)}.bytes()
		copy(b[64+56:], b[64:64+56]) // twice
		m.file("/p", b)
	},
	"a segment of 4 GB": func(m image) {
		m.file("/p", object{edit: func(_ *elf.Header64, l *elf.Prog64) { l.Filesz, l.Memsz = 4<<30, 4<<30 }}.bytes())
	},
	"a segment of 4 GB that the file has for it, sparse": func(m image) {
		m.file("/p", object{edit: func(_ *elf.Header64, l *elf.Prog64) { l.Filesz, l.Memsz = 4<<30, 4<<30 }}.bytes())
		m.must(os.Truncate(m.path("/p"), 5<<30))
	},
	"a segment of 100 MB of zeros, sparse": func(m image) {
		m.file("/p", object{edit: func(_ *elf.Header64, l *elf.Prog64) { l.Filesz, l.Memsz = 100<<20, 100<<20 }}.bytes())
		m.must(os.Truncate(m.path("/p"), 110<<20))
	},
	"sections of 4 GB": func(m image) {
		var pad bytes.Buffer
		for i := range 100 {
			_ = binary.Write(&pad, binary.LittleEndian, elf.Section64{Type: uint32(elf.SHT_SYMTAB), Flags: uint64(elf.SHF_ALLOC | elf.SHF_EXECINSTR),
				Addr: uint64(i), Size: 4 << 30, Link: uint32(i), Entsize: 24})
		}
		o := object{pad: pad.Bytes()}
		n := uint64(len(object{}.bytes()))
		o.edit = func(h *elf.Header64, _ *elf.Prog64) {
			h.Shoff, h.Shnum, h.Shentsize, h.Shstrndx = n, 100, 64, 3
		}
		m.file("/p", o.bytes())
	},
	"tables of 4 GB": func(m image) {
		var dyn []elf.Dyn64
		for _, tag := range []elf.DynTag{elf.DT_RELASZ, elf.DT_RELSZ, elf.DT_PLTRELSZ, elf.DT_INIT_ARRAYSZ, elf.DT_FINI_ARRAYSZ, elf.DT_PREINIT_ARRAYSZ, 35, elf.DT_VERNEEDNUM} {
			dyn = append(dyn, elf.Dyn64{Tag: int64(tag), Val: 4 << 30})
		}
		for _, tag := range []elf.DynTag{elf.DT_RELA, elf.DT_REL, elf.DT_JMPREL, elf.DT_INIT_ARRAY, elf.DT_FINI_ARRAY, elf.DT_PREINIT_ARRAY, 36, elf.DT_SYMTAB, elf.DT_HASH, elf.DT_GNU_HASH, elf.DT_VERNEED} {
			dyn = append(dyn, elf.Dyn64{Tag: int64(tag), Val: 0})
		}
		m.file("/p", object{dynamic: dyn, pad: bytes.Repeat([]byte{0xff}, 1<<20)}.bytes())
	},
	"relocations that unfold": func(m image) {
		n := uint64(len(object{dynamic: make([]elf.Dyn64, 3)}.bytes()))
		m.file("/p", object{dynamic: []elf.Dyn64{{Tag: 36, Val: n}, {Tag: 35, Val: 8 << 20}, {Tag: 37, Val: 8}}, pad: bytes.Repeat([]byte{0xff}, 8<<20)}.bytes())
	},
	"relocations that never end": func(m image) {
		n := uint64(len(object{dynamic: make([]elf.Dyn64, 3)}.bytes()))
		var pad bytes.Buffer
		for i := range uint64(3 << 20) { // to a symbol, everywhere
			_ = binary.Write(&pad, binary.LittleEndian, []uint64{i * 8, 1<<32 | 6, 0})
		}
		m.file("/p", object{dynamic: []elf.Dyn64{{Tag: int64(elf.DT_RELA), Val: n}, {Tag: int64(elf.DT_RELASZ), Val: uint64(pad.Len())}, {Tag: int64(elf.DT_SYMTAB), Val: n}}, pad: pad.Bytes()}.bytes())
	},
	"libraries that need each other": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"liba.so"}}.bytes())
		m.file("/lib/liba.so", object{needed: []string{"libb.so", "liba.so"}, soname: "liba.so"}.bytes())
		m.file("/lib/libb.so", object{needed: []string{"liba.so", "libc.so", "p"}, soname: "liba.so"}.bytes())
		m.file("/lib/libc.so", object{needed: []string{"libb.so", "liba.so"}}.bytes())
		m.link("/p", "/lib/p")
	},
	"a chain of 5,000 libraries": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"lib0.so"}}.bytes())
		for i := range 5000 {
			m.file(fmt.Sprintf("/lib/lib%d.so", i), object{needed: []string{fmt.Sprintf("lib%d.so", i+1)}}.bytes())
		}
	},
	"4,000 names of libraries that are one file": func(m image) {
		var needed []string
		for i := range 4000 {
			needed = append(needed, fmt.Sprintf("l%d", i))
			m.link("x", fmt.Sprintf("/lib/l%d", i))
		}
		m.file("/lib/x", object{}.bytes())
		m.file("/p", object{interp: ldso, needed: needed}.bytes())
	},
	"a program that is its own loader": func(m image) {
		m.file("/p", object{interp: "/p", needed: []string{"p"}, runpath: "/"}.bytes())
	},
	"a search path of 100,000 directories": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"a", "b", "c"}, runpath: strings.Repeat("/x:", 100_000)}.bytes())
	},
	"names with newlines": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"lib\n\x1b[31ma.so", strings.Repeat("\n", 4000)}}.bytes())
		m.file("/lib/lib\n\x1b[31ma.so", object{soname: "\n\n\x00"}.bytes())
	},
	"links in a circle": func(m image) {
		m.link("/a", "/p")
		m.link("/p", "/a")
	},
	"libraries and directories that are links in a circle": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"liba.so"}}.bytes())
		m.link("liba.so", "/lib/liba.so")
		m.link("/usr/lib", "/usr/lib64")
		m.link("/usr/lib64", "/usr/lib")
		m.link("..", "/lib/glibc-hwcaps")
	},
	"a FIFO as the program":      func(m image) { m.fifo("/p") },
	"a device as the program":    func(m image) { m.device("/p") },
	"1 TB as the program":        func(m image) { m.sparse("/p", 1<<40) },
	"1 GB of zeros, as a script": func(m image) { m.script("/p", "x\n"); m.must(os.Truncate(m.path("/p"), 1<<30)) },
	"FIFOs for everything that is read": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"liba.so"}}.bytes())
		for _, name := range []string{"/lib/liba.so", "/usr/lib/liba.so", "/etc/ld.so.conf", "/etc/ld.so.preload", "/etc/nsswitch.conf", "/etc/passwd", "/etc/os-release", "/etc/group", "/etc/ld-musl-x86_64.path"} {
			m.fifo(name)
		}
	},
	"devices for everything that is read": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"liba.so"}}.bytes())
		for _, name := range []string{"/lib/liba.so", "/usr/lib/liba.so", "/etc/ld.so.conf", "/etc/ld.so.preload", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/ld-musl-x86_64.path"} {
			m.device(name)
		}
	},
	"1 TB for everything that is read": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"liba.so"}}.bytes())
		for _, name := range []string{"/lib/liba.so", "/etc/ld.so.conf", "/etc/ld.so.preload", "/etc/nsswitch.conf", "/etc/passwd", "/etc/group", "/etc/ld-musl-x86_64.path"} {
			m.sparse(name, 1<<40)
		}
	},
	"a FIFO that a script sources and runs": func(m image) {
		m.script("/p", ". /fifo\nexec /fifo\n")
		m.fifo("/fifo")
	},
	"a configuration of the loader that includes itself": func(m image) {
		m.file("/p", object{interp: ldso, needed: []string{"liba.so"}}.bytes())
		m.file("/lib/liba.so", object{}.bytes())
		m.file("/etc/ld.so.conf", []byte(strings.Repeat("include /etc/ld.so.conf /etc/ld.so.conf.d/*.conf\n/x\n", 10_000)))
		for i := range 500 {
			m.file(fmt.Sprintf("/etc/ld.so.conf.d/%d.conf", i), []byte("include /etc/*.conf /etc/ld.so.conf.d/*.conf\n"))
		}
	},
	"interpreters in a circle": func(m image) {
		m.file("/p", []byte("#!/q\n"))
		m.file("/q", []byte("#!/p x\n"))
	},
	"a script that sources itself": func(m image) { m.script("/p", ". /p\n. /p\n./p\n/p &\n/p $0 \"$@\" x\nexec /p y \"$@\"\n") },
	"a chain of 3,000 sourced files": func(m image) {
		m.script("/p", ". /s/0\n")
		for i := range 3_000 {
			m.file(fmt.Sprintf("/s/%d", i), []byte(fmt.Sprintf(". /s/%d\n. /s/%d\n", i+1, i/2)))
		}
	},
	"a variable that doubles 10,000 times": func(m image) {
		m.script("/p", "a=x\n"+strings.Repeat("a=$a$a\n", 10_000)+"exec $a\n")
	},
	"braces that multiply": func(m image) {
		m.file("/p", []byte("#!/bin/bash\nfor x in "+strings.Repeat("{a,b,c}", 40)+"; do $x; done\n"+strings.Repeat("{1..100000}", 10)+"\n"))
		m.link("sh", "/bin/bash")
	},
	"functions that call themselves twice": func(m image) {
		m.script("/p", "f() { f $1 a; f b $1; g; }\ng() { f; f; eval \"f $1\"; }\nf a; g b\nwhile :; do f; done\n")
	},
	"functions that each call the one before ten times": func(m image) {
		var b strings.Builder
		b.WriteString("f0() { /bin/sh -c \"$1\"; }\n")
		for i := range 200 {
			fmt.Fprintf(&b, "f%d() { %s }\n", i+1, strings.Repeat(fmt.Sprintf("f%d $1$1; ", i), 10))
		}
		m.script("/p", b.String()+"f200 x\n")
	},
	"eval of eval": func(m image) {
		m.script("/p", "a='eval \"$a $a\"; eval \"$a\"'\neval \"$a\"\nsh -c \"$a\"\n")
	},
	"loops in loops": func(m image) {
		m.script("/p", strings.Repeat("for i in 1 2 3 4 5 6 7 8 9; do ", 60)+"/p $i; "+strings.Repeat("done; ", 60)+"\n")
	},
	"300,000 brackets": func(m image) { m.script("/p", strings.Repeat("(", 300_000)) },
	"300,000 brackets, closed": func(m image) {
		m.script("/p", strings.Repeat("(", 300_000)+"x"+strings.Repeat(")", 300_000))
	},
	"100,000 substitutions in each other": func(m image) { m.script("/p", strings.Repeat("$(", 100_000)+"x"+strings.Repeat(")", 100_000)) },
	"100,000 conditions in each other":    func(m image) { m.script("/p", strings.Repeat("if x; then ", 80_000)+strings.Repeat("fi;", 80_000)) },
	"arithmetic in 300,000 brackets": func(m image) {
		m.script("/p", "echo $(("+strings.Repeat("(", 300_000)+"1"+strings.Repeat(")", 300_000)+"))")
	},
	"200,000 quotes and backquotes": func(m image) { m.script("/p", strings.Repeat("\"`", 200_000)) },
	"a script of 100 MB":            func(m image) { m.script("/p", strings.Repeat("/bin/true x y z\n", 100<<20/16)) },
	"100,000 commands":              func(m image) { m.script("/p", strings.Repeat("./q a;x", 100_000)) },
	"30,000 files in a directory that runs": func(m image) {
		m.script("/p", "for f in /d/*; do \"$f\"; done\nexec /d/*/*/*\n")
		for i := range 30_000 {
			m.must(os.WriteFile(m.path("/d/x")+fmt.Sprint(i), nil, 0o755))
		}
	},
	"patterns over deep directories": func(m image) {
		m.script("/p", "for f in "+strings.Repeat("/*/../", 50)+"* /d/*/*/*/*/*/*; do . \"$f\"; done\n")
		for i := range 3000 {
			m.file(fmt.Sprintf("/d/%d/%d/%d/x", i%10, i/10%10, i), []byte("x"))
		}
	},
	"a directory that is 1,000 deep": func(m image) {
		m.script("/p", "cd /d; for f in */*/*; do exec \"$f\"; done\n")
		m.must(os.MkdirAll(m.path("/d"+strings.Repeat("/d", 1000)), 0o755))
	},
	"1 MB of path names as strings": func(m image) {
		m.file("/p", object{pad: []byte(strings.Repeat("/usr/lib/x/y\x00lib.so\x00/bin/sh\x00-c\x00/p x\x00", 40_000))}.bytes())
	},
	"16 MB of code": func(m image) {
		code := make([]byte, 16<<20)
		r := rand.New(rand.NewPCG(2, 2))
		for i := range code {
			code[i] = byte(r.Uint32() >> 8)
		}
		m.file("/p", object{code: code}.bytes())
	},
	"16 MB of calls": func(m image) {
		code := bytes.Repeat([]byte{0xe8, 0xf0, 0xff, 0xff, 0x00, 0x0f, 0x05, 0x75, 0xf7}, 16<<20/9)
		m.file("/p", object{code: code}.bytes())
	},
	"1 MB of jumps into each other": func(m image) {
		code := bytes.Repeat([]byte{0xeb, 0xff, 0xc0, 0x74, 0xfd, 0x0f, 0x05}, 1<<20/7)
		m.file("/p", object{code: code}.bytes())
	},
	"stack slots moved through callers without end": func(m image) {
		code := bytes.Repeat([]byte{0x48, 0x8b, 0x44, 0x24, 0x08, 0x0f, 0x05, 0x48, 0x83, 0xec, 0x08, 0xe8, 0xf0, 0xff, 0xff, 0xff, 0xc3}, 30_000)
		m.file("/p", object{code: code}.bytes())
	},
}

// Whatever an image holds, reading it ends in bounded time and memory, with a
// plan or a clear error, and the next image is read as if nothing had been.
func TestHostileImages(t *testing.T) {
	for name, build := range hostile {
		t.Run(name, func(t *testing.T) {
			p := pool(t, "__analyse", filepath.Join(t.TempDir(), "results"))
			p.limit = 10 * time.Second
			m := image{t, t.TempDir()}
			m.base()
			build(m)
			d := &declared.Declared{Process: declared.Process{Args: []string{"/p"}, Cwd: "/", Env: []string{"PATH=/bin:/d:/"}}}
			began := time.Now()
			a, err := p.start()
			if err != nil {
				t.Fatal(err)
			}
			<-p.slots
			p.slots <- a
			r, err := p.analyse(context.Background(), openRoot(t, m.dir), d)
			took := time.Since(began)
			peak := peakMemory(a)
			var e *AnalysisError
			switch {
			case err == nil:
				t.Logf("%v, %d MiB: %d programs, wide %v %v, %d calls", took.Round(time.Millisecond), peak>>20, len(r.Closure.Processes), r.Closure.Wide, r.Closure.WideStarting, callCount(r))
			case !errors.As(err, &e):
				t.Errorf("%v", err)
			default:
				t.Logf("%v, %d MiB: %v", took.Round(time.Millisecond), peak>>20, err)
				if e.Remedy() == "" || strings.Contains(e.Text, "died") || strings.Contains(e.Text, "was ended") ||
					strings.Contains(e.Text, "internal error") || strings.Contains(e.Text, "runtime error") || strings.ContainsAny(e.Text, "\n\x1b") {
					t.Errorf("not a clear error: %v; try: %s", err, e.Remedy())
				}
			}
			if peak > analyserMemory {
				t.Errorf("%d MiB", peak>>20)
			}
			good := image{t, t.TempDir()}
			good.base()
			good.file("/p", object{}.bytes())
			if r, err := p.analyse(context.Background(), openRoot(t, good.dir), d); err != nil || callCount(r) == 0 {
				t.Errorf("the next image: %v", err)
			}
		})
	}
}

func callCount(r Reading) int {
	if r.Calls == nil {
		return -1
	}
	return len(r.Calls.Calls)
}

// peakMemory is the most that a child had of memory at a time.
func peakMemory(a *analyser) (bytes int) {
	status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", a.cmd.Process.Pid))
	for line := range strings.Lines(string(status)) {
		if n, err := fmt.Sscanf(line, "VmHWM: %d kB", &bytes); n == 1 && err == nil {
			return bytes << 10
		}
	}
	if s := a.cmd.ProcessState; s != nil {
		return int(s.SysUsage().(*syscall.Rusage).Maxrss) << 10
	}
	return 0
}
