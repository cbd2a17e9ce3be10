package seccompgen

import (
	"bufio"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/elfread"
)

var (
	armLine   = regexp.MustCompile(`^ *([0-9a-f]+):\t[0-9a-f]{8} \t(\S+)(?:\t(.*))?$`)
	armNumber = regexp.MustCompile(`^[wx]8, #0x([0-9a-f]+)`)
)

// Of every system call instruction that binutils sees in C libraries for arm64,
// the analysis knows what number it makes; and where the number is put into the
// register right before, it is that one.
func TestArm64SitesAgreeWithObjdump(t *testing.T) {
	objdump := need.Program(t, "aarch64-linux-gnu-objdump")
	for file, atLeast := range map[string]int{"libc.so.6": 400, "ld-linux-aarch64.so.1": 30} {
		lib := "/usr/aarch64-linux-gnu/lib/" + file // libc6-arm64-cross
		need.File(t, lib)
		f, err := os.Open(lib)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		info, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		ef, err := elfread.Read(f, info.Size())
		if err != nil {
			t.Fatal(err)
		}
		defer ef.Close()
		sum, err := summarise(t.Context(), ef, map[string][]location{"syscall": {reg(0)}})
		if err != nil {
			t.Fatal(err)
		}
		numbers := map[uint64][]int32{}
		for i := range sum.Funcs {
			for _, s := range sum.Funcs[i].Sites {
				if s.Reason != "" {
					t.Errorf("%s: %#x: %s", file, s.Addr, s.Reason)
				}
				numbers[s.Addr] = append(numbers[s.Addr], s.Nr)
			}
		}
		out, err := exec.Command(objdump, "-d", "-w", lib).Output()
		if err != nil {
			t.Fatal(err)
		}
		sites, certain, unknown := 0, 0, 0
		last := int32(-1) // number in x8, where the way here is straight
		for scan := bufio.NewScanner(strings.NewReader(string(out))); scan.Scan(); {
			m := armLine.FindStringSubmatch(scan.Text())
			if m == nil {
				last = -1 // a label, too
				continue
			}
			pc, _ := strconv.ParseUint(m[1], 16, 64)
			switch op := m[2]; {
			case op == "svc":
				sites++
				if len(numbers[pc]) == 0 {
					unknown++ // by way of callers, or of set*id on other threads
				}
				if last >= 0 {
					certain++
					if !slices.Contains(numbers[pc], last) {
						t.Errorf("%s: %#x makes call %d, not %v", file, pc, last, numbers[pc])
					}
				}
			case op == "mov":
				if n := armNumber.FindStringSubmatch(m[3]); n != nil {
					nr, _ := strconv.ParseInt(n[1], 16, 32)
					last = int32(nr)
				} else if strings.HasPrefix(m[3], "x8,") || strings.HasPrefix(m[3], "w8,") {
					last = -1
				}
			case strings.HasPrefix(op, "b"), strings.HasPrefix(op, "cb"), strings.HasPrefix(op, "tb"), op == "ret",
				strings.Contains(m[3], "x8") || strings.Contains(m[3], "w8"):
				last = -1
			}
		}
		if sites < atLeast || certain < sites/2 || unknown > 4 {
			t.Errorf("%s: %d sites, %d with the number right before, %d without one", file, sites, certain, unknown)
		}
		t.Logf("%s: %d sites, %d with the number right before, %d without one", file, sites, certain, unknown)
	}
}
