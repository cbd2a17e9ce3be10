package x86_test

// The second judge of the decoder: binutils over real libraries. Wherever
// objdump sees an instruction, Decode must see one of the same length, and the
// same calls, jumps and system calls.

import (
	"bufio"
	"encoding/hex"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/x86"
)

func TestAgreesWithObjdump(t *testing.T) {
	objdump := need.Program(t, "objdump")
	tested := 0
	for _, file := range []string{
		"/lib/x86_64-linux-gnu/libc.so.6",
		"/lib/x86_64-linux-gnu/libm.so.6",
		"/lib/x86_64-linux-gnu/libcrypto.so.3",
		"/lib64/ld-linux-x86-64.so.2",
		"/bin/bash",
	} {
		if _, err := os.Stat(file); err != nil {
			continue
		}
		tested++
		t.Run(strings.ReplaceAll(file[1:], "/", "_"), func(t *testing.T) {
			if testing.Short() && strings.Contains(file, "crypto") {
				t.Skip("long")
			}
			agree(t, objdump, file)
		})
	}
	if tested == 0 {
		t.Skip("no x86-64 library where Debian has them")
	}
}

func agree(t *testing.T, objdump, file string) {
	cmd := exec.Command(objdump, "-d", "-w", "--insn-width=15", file)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	scan := bufio.NewScanner(out)
	scan.Buffer(nil, 1<<20)
	var in x86.Inst
	total, wrong := 0, 0
	for scan.Scan() {
		field := strings.Split(scan.Text(), "\t")
		if len(field) < 3 {
			continue
		}
		code, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(field[1]), " ", ""))
		if err != nil {
			continue
		}
		text := field[2]
		name, _, _ := strings.Cut(text, " ")
		if len(code) > 0 && code[0] == 0x9b || name == "jmpw" || name == "callw" {
			continue // fwait belongs to the next instruction for objdump; jmpw: see the package's sources
		}
		if strings.Contains(text, "(bad)") || strings.HasPrefix(name, ".byte") || isLonePrefix(text) {
			continue // objdump lost: a data island
		}
		total++
		ok := x86.Decode(append(code, 0x90, 0x90, 0x90, 0x90), &in)
		if !ok || int(in.Len) != len(code) {
			if wrong++; wrong < 20 {
				t.Errorf("% x %s: length %d ok %v, objdump says %d", code, text, in.Len, ok, len(code))
			}
			continue
		}
		var want x86.Class
		indirect := strings.HasPrefix(strings.TrimLeft(strings.TrimPrefix(text, name), " "), "*")
		switch {
		case name == "syscall":
			want = x86.Syscall
		case name == "call" && !indirect:
			want = x86.Call
		case name == "call":
			want = x86.CallInd
		case name == "jmp" && !indirect:
			want = x86.Jmp
		case name == "jmp":
			want = x86.JmpInd
		case name == "ret":
			want = x86.Ret
		case name == "lea":
			want = x86.Lea
		case name == "endbr64":
			want = x86.Endbr
		default:
			continue
		}
		if in.Class != want {
			t.Errorf("% x %s: class %d, want %d", code, text, in.Class, want)
		}
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if total < 1000 {
		t.Fatalf("only %d instructions compared", total)
	}
	t.Logf("%d instructions, %d wrong", total, wrong)
}

// isLonePrefix tells a line on which objdump shows prefixes without an instruction.
func isLonePrefix(text string) bool {
	for f := range strings.FieldsSeq(text) {
		switch {
		case strings.HasPrefix(f, "rex"), f == "data16", f == "addr32", f == "lock", f == "repz", f == "repnz", f == "cs", f == "ds", f == "es", f == "ss", f == "fs", f == "gs", f == "notrack":
		default:
			return false
		}
	}
	return true
}
