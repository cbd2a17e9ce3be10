package seccompgen

import (
	"debug/elf"
	"slices"

	"github.com/declarun/declarun/seccompgen/elfread"
	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/seccompgen/x86"
)

// machine is what the analysis takes from an instruction set and its calling
// convention. It is asked with the builder of one file.
type machine interface {
	// stub tells whether the code at addr is a procedure linkage stub, and for
	// which symbol ("" for one that a resolver of this file decides).
	stub(b *builder, addr uint64) (string, bool)
	// sweepFunc decodes one function and collects what it refers to.
	sweepFunc(b *builder, fi int32, r elfread.Range)
	// decode prepares a function for value analysis.
	decode(b *builder, fi int32) code
	// benign gives the numbers of a site that lie in memory by design; see
	// benign.go.
	benign(b *builder, fi int32, pc uint64, reason string) ([]int32, bool)
	// onlyCompared tells whether a function is the cancellation point of a C
	// library, whose address is only ever compared.
	onlyCompared(b *builder, fi int32) bool
	// coarse tries to do without decoding everything; see coarse.go.
	coarse(b *builder) (bool, error)
	// conventions are what calls agree on.
	conventions() *conventions
}

// code is one function, decoded for value analysis.
type code interface {
	// index gives the instruction at pc, or -1.
	index(pc uint64) int32
	// before gives what loc may hold just before instruction i.
	before(i int32, loc location) values
	// stack is how far the stack pointer is from where it was on entry, before
	// instruction i; false where it is not followed.
	stack(i int32) (int32, bool)
	// within tells whether the indirect jump at i stays in the function: it is
	// a switch, and no call.
	within(i int32) bool
	// endsPath tells whether instruction i is a call that does not come back.
	endsPath(i int32) bool
}

// conventions are facts about calls on a machine.
type conventions struct {
	goarch string
	number uint8 // register with the number of a system call
	first  uint8 // register with the first argument, in C
	firstG uint8 // likewise in Go
	// argsC and argsGo are registers that a function may be passed something
	// in; direct, those that it may be passed something in by nothing but a
	// jump within one and the same assembly source.
	argsC, argsGo, direct uint32
	// pushed is what a call puts on the stack; slotC and slotGo are where
	// arguments on the stack begin.
	pushed, slotC, slotGo int32
	dirs                  []string // of libraries, beside the common ones
	lib, platform         string   // $LIB and $PLATFORM of ld.so(8)
	muslPath              string
}

// machines are those whose files are analysed.
var machines = map[elf.Machine]machine{elf.EM_X86_64: amd64{}, elf.EM_AARCH64: arm64{}}

// half is the 32-bit machine whose programs a 64-bit one runs, too.
var half = map[elf.Machine]elf.Machine{elf.EM_386: elf.EM_X86_64, elf.EM_ARM: elf.EM_AARCH64}

// machineOf tells which machine the programs of a container are for: that of
// the first that says so.
func machineOf(s *store, programs []Program) elf.Machine {
	for _, p := range programs {
		h, err := s.head(p.Path)
		if err != nil {
			continue
		}
		if machines[h.Machine] != nil {
			return h.Machine
		}
		if m := half[h.Machine]; machines[m] != nil {
			return m
		}
	}
	return elf.EM_X86_64
}

// setxid are the calls that a C library repeats on every thread.
func (c *conventions) setxid() []int32 {
	var out []int32
	for _, name := range []string{"setuid", "setgid", "setreuid", "setregid", "setgroups", "setresuid", "setresgid"} {
		if nr, ok := sysno.Number(c.goarch, name); ok {
			out = append(out, int32(nr))
		}
	}
	slices.Sort(out)
	return out
}

func (b *builder) stub(addr uint64) (string, bool)     { return b.m.stub(b, addr) }
func (b *builder) sweepFunc(fi int32, r elfread.Range) { b.m.sweepFunc(b, fi, r) }
func (b *builder) onlyCompared(fi int32) bool          { return b.m.onlyCompared(b, fi) }
func (b *builder) coarse() (bool, error)               { return b.m.coarse(b) }

func (b *builder) benign(fi int32, pc uint64, reason string) ([]int32, bool) {
	return b.m.benign(b, fi, pc, reason)
}

// code gives a function decoded for value analysis.
func (b *builder) code(fi int32) code {
	c, ok := b.codes[fi]
	if !ok {
		c = b.m.decode(b, fi)
		b.codes[fi] = c
	}
	return c
}

// amd64 is x86-64.
type amd64 struct{}

func (amd64) conventions() *conventions { return &amd64Calls }

var amd64Calls = conventions{
	goarch: "amd64", number: x86.RAX, first: x86.RDI, firstG: x86.RAX,
	argsC: clobberC, argsGo: clobberGo, direct: 1 << x86.RAX,
	pushed: 8, slotC: 8, slotGo: 8,
	dirs: []string{"/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu"},
	lib:  "lib/x86_64-linux-gnu", platform: "x86_64", muslPath: "/etc/ld-musl-x86_64.path",
}

func (amd64) decode(b *builder, fi int32) code { return &amd64Code{b.body(fi), b} }

type amd64Code struct {
	*body
	b *builder
}

func (c *amd64Code) before(i int32, loc location) values {
	return valuesBefore(c.b.f, c.body, i, loc)
}

func (c *amd64Code) stack(i int32) (int32, bool) {
	sp := c.delta[i]
	return sp, sp > unvisited
}

// A jump with anything on the stack is a switch, and so is the only jump of a
// function that has a table.
func (c *amd64Code) within(i int32) bool {
	sp, ok := c.stack(i)
	return ok && sp != 0 || c.switches
}

func (c *amd64Code) endsPath(i int32) bool { return c.b.endsPath(&c.ins[i], c.pcs[i]) }
