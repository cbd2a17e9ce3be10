package a64_test

// The second judge of the decoder: binutils, over real libraries and over
// words drawn at random, which are mostly instructions that no compiler makes.

import (
	"bufio"
	"encoding/binary"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/a64"
)

const objdump = "aarch64-linux-gnu-objdump"

func TestAgreesWithObjdump(t *testing.T) {
	tool := need.Program(t, objdump)
	for _, file := range []string{"libc.so.6", "ld-linux-aarch64.so.1", "libm.so.6", "libgcc_s.so.1"} {
		t.Run(file, func(t *testing.T) {
			lib := "/usr/aarch64-linux-gnu/lib/" + file // libc6-arm64-cross
			need.File(t, lib)
			agree(t, 10_000, tool, "-d", "-w", lib)
		})
	}
}

func TestAgreesWithObjdumpOnAnyWord(t *testing.T) {
	tool := need.Program(t, objdump)
	r := rand.New(rand.NewPCG(3, 4))
	const n = 400_000
	b := make([]byte, 0, 4*n)
	for i := range n {
		w := r.Uint32()
		if i%2 == 0 { // half of them where operands of general registers are
			w = w&^(15<<25) | []uint32{4, 5, 6, 8, 9, 10, 11, 12, 13, 14}[r.IntN(10)]<<25
		}
		b = binary.LittleEndian.AppendUint32(b, w)
	}
	file := filepath.Join(t.TempDir(), "words")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	agree(t, n/10, tool, "-D", "-w", "-b", "binary", "-m", "aarch64", file)
}

var (
	register        = regexp.MustCompile(`^(?:[wx](\d+)|w?sp)$`)
	scalable        = regexp.MustCompile(`^\{?[zp]a?\d*\b`)
	storesExclusive = regexp.MustCompile(`^(stl?xp|stl?xr|stxp)`)
	swaps           = regexp.MustCompile(`^(swp|ld(add|clr|eor|set|[us]max|[us]min)([abhl]*)$)`)
	loadsTwo        = regexp.MustCompile(`^ld(n?p|psw|xp|axp)$`)
	// silent write none of their operands.
	silent = regexp.MustCompile(`^(st[^x]|stx?p$|cmp|cmn|tst|ccm|cbn?z|tbn?z|b\.|bc\.|b$|bl|br|ret|eret|msr|pr|dc$|ic$|at$|tlbi|sys$|sysp|cfp|cpp|dvp|cosp|svc|hvc|smc|brk|hlt|udf|dcps|nop|hint|dsb|dmb|isb|clrex|setf|rmif|f?cterm|w?f[cr]|axflag|xaflag|cfinv|drps|wfet|wfit|tcancel|tcommit|gcs|trcit|cb[a-z])`)
)

func number(r string) uint32 {
	m := register.FindStringSubmatch(r)
	switch {
	case m == nil:
		return 0
	case m[1] == "":
		return 1 << 31
	}
	n, _ := strconv.Atoi(m[1])
	return 1 << n
}

// written gives the general registers that an instruction changes, by what
// objdump says of it.
func written(name string, args []string) uint32 {
	var w uint32
	for i, a := range args {
		if base, ok := strings.CutPrefix(a, "["); ok && (strings.HasSuffix(args[len(args)-1], "!") || strings.HasSuffix(base, "]") && i < len(args)-1 && name[0] != 'p') && !strings.Contains(name, "cpy") && !strings.HasPrefix(name, "set") {
			w |= number(strings.Trim(base, "]!")) // written back
		}
		if strings.HasSuffix(a, "!") && (strings.HasPrefix(name, "cpy") || strings.HasPrefix(name, "set")) {
			w |= number(strings.Trim(a, "[]!"))
		}
	}
	switch {
	case len(args) == 0:
	case storesExclusive.MatchString(name):
		w |= number(args[0])
	case strings.HasPrefix(name, "casp"):
		w |= number(args[0]) | number(args[1])
	case strings.HasPrefix(name, "cas"):
		w |= number(args[0])
	case swaps.MatchString(name):
		w |= number(args[1])
	case silent.MatchString(name):
	case loadsTwo.MatchString(name), name == "mrrs":
		w |= number(args[0]) | number(args[1])
	default:
		w |= number(args[0])
	}
	return w
}

var classOf = map[string]a64.Class{
	"svc": a64.Syscall, "bl": a64.Call, "b": a64.Jmp, "adrp": a64.Page, "adr": a64.Addr, "movk": a64.MovKeep,
	"ret": a64.Ret, "retaa": a64.Ret, "retab": a64.Ret, "brk": a64.Trap, "udf": a64.Trap, "hlt": a64.Trap,
	"cbz": a64.Jcc, "cbnz": a64.Jcc, "tbz": a64.Jcc, "tbnz": a64.Jcc, "csel": a64.Sel, "csinc": a64.Sel, "csinv": a64.Sel, "csneg": a64.Sel, "cset": a64.Sel, "cinc": a64.Sel,
	"blr": a64.CallInd, "blraa": a64.CallInd, "blraaz": a64.CallInd, "blrab": a64.CallInd, "blrabz": a64.CallInd,
	"br": a64.JmpInd, "braa": a64.JmpInd, "braaz": a64.JmpInd, "brab": a64.JmpInd, "brabz": a64.JmpInd,
	"nop": a64.Nop, "bti": a64.Bti, "paciasp": a64.Nop, "autiasp": a64.Nop, "dmb": a64.Nop,
	"uxtb": a64.Extend, "uxth": a64.Extend, "sxtw": a64.Extend, "sxtb": a64.Extend, "sxth": a64.Extend,
}

func agree(t *testing.T, atLeast int, name string, args ...string) {
	cmd := exec.Command(name, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, 1<<20)
	total, wrong, loose := 0, 0, 0
	for scan.Scan() {
		field := strings.Split(scan.Text(), "\t")
		if len(field) < 3 || wrong > 20 {
			continue
		}
		pc, err1 := strconv.ParseUint(strings.Trim(field[0], " :"), 16, 64)
		w, err2 := strconv.ParseUint(strings.TrimSpace(field[1]), 16, 32)
		if err1 != nil || err2 != nil || strings.HasPrefix(field[2], ".") {
			continue
		}
		total++
		op := field[2]
		text := op
		if len(field) > 3 {
			text += " " + field[3]
		}
		bad := func(what string, got any) {
			wrong++
			t.Errorf("%08x %s: %s: %v", w, text, what, got)
		}
		var in a64.Inst
		if !a64.Decode(uint32(w), &in) {
			bad("decoded", false)
			continue
		}
		operands := ""
		if len(field) > 3 {
			operands, _, _ = strings.Cut(field[3], "//")
		}
		ops := strings.FieldsFunc(operands, func(r rune) bool { return r == ',' || r == ' ' })
		if want := written(op, ops); want&^in.Writes() != 0 {
			bad("writes", in.Writes())
		} else if want != in.Writes() {
			if in.Class != a64.Other && in.Class != a64.StoreAny && in.Class != a64.Nop && in.Class != a64.Call && in.Class != a64.CallInd {
				bad("writes more", in.Writes())
			}
			loose++
		}
		want, is := classOf[op]
		switch {
		case strings.HasPrefix(op, "b."):
			want, is = a64.Jcc, op != "b.al" && op != "b.nv"
		case op == "mov" && len(ops) == 2 && strings.HasPrefix(ops[1], "#") && register.MatchString(ops[0]):
			want, is = a64.MovImm, true
			if v, err := strconv.ParseInt(ops[1][1:], 0, 64); err != nil || v != in.Imm && uint32(v) != uint32(in.Imm) {
				if u, err := strconv.ParseUint(ops[1][1:], 0, 64); err != nil || int64(u) != in.Imm {
					bad("immediate", in.Imm)
				}
			}
		case op == "mov" && len(ops) == 2 && register.MatchString(ops[0]) && register.MatchString(ops[1]):
			want, is = a64.Mov, true
		case (op == "add" || op == "sub") && len(ops) >= 3 && strings.HasPrefix(ops[2], "#"):
			if want, is = a64.AddImm, register.MatchString(ops[0]); !is {
				break
			}
			v, _ := strconv.ParseInt(ops[2][1:], 0, 64)
			if len(ops) > 4 {
				v <<= 12
			}
			if op == "sub" {
				v = -v
			}
			if in.Imm != v {
				bad("immediate", in.Imm)
			}
		case slices.Contains(strings.Fields("ldr ldrb ldrh ldrsb ldrsh ldrsw ldur ldurb ldurh ldursw"), op) && len(ops) >= 2 && strings.HasPrefix(ops[1], "["):
			want, is = a64.Load, true
		case slices.Contains(strings.Fields("str strb strh stur sturb sturh"), op):
			want, is = a64.Store, true
		case (op == "ldp" || op == "stp") && len(ops) >= 3:
			want, is = a64.Load, true
			if op == "stp" {
				want = a64.Store
			}
			if !in.Pair {
				bad("pair", false)
			}
		}
		if len(ops) > 0 && scalable.MatchString(ops[0]) {
			continue // SVE, by names of other instructions
		}
		if is && in.Class != want {
			bad("class", in.Class)
		}
		if (in.Class == a64.Load || in.Class == a64.Store) && len(ops) > 1 && (register.MatchString(ops[0]) || in.Vector) {
			at := slices.IndexFunc(ops, func(s string) bool { return strings.HasPrefix(s, "[") })
			if at < 0 {
				continue
			}
			base := number(strings.Trim(ops[at], "[]!"))
			if base == 0 || 1<<in.Base != base {
				bad("base", in.Base)
			}
			if at+1 < len(ops) {
				next := strings.Trim(ops[at+1], "]!")
				if v, err := strconv.ParseInt(strings.TrimPrefix(next, "#"), 0, 64); strings.HasPrefix(next, "#") && (err != nil || v != in.Imm) {
					bad("offset", in.Imm)
				} else if !strings.HasPrefix(next, "#") && in.Index == a64.None {
					bad("index", in.Index)
				}
			} else if in.Imm != 0 {
				bad("offset", in.Imm)
			}
		}
		switch in.Class {
		case a64.Jmp, a64.Jcc, a64.Call, a64.Addr, a64.Page, a64.LoadLit:
			if len(ops) == 0 {
				break
			}
			last := ops[len(ops)-1]
			if i := slices.IndexFunc(ops, func(s string) bool { return strings.HasPrefix(s, "<") }); i > 0 {
				last = ops[i-1]
			}
			to, err := strconv.ParseUint(strings.TrimPrefix(last, "0x"), 16, 64)
			got := in.Target(pc)
			if in.Class == a64.Page {
				got = in.Page(pc)
			}
			if err != nil || got != to {
				bad("target "+last, got)
			}
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if total < atLeast {
		t.Fatalf("only %d instructions compared", total)
	}
	t.Logf("%d instructions, %d wrong, %d said to write more than they do", total, wrong, loose)
}
