package seccompgen

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/rootfs"
)

// However control comes from the loop to code that was there before it, the
// calls of that code stay; what only comes before the loop goes.
func TestTricksAfterTheLoop(t *testing.T) {
	gcc, gxx := need.Program(t, "gcc"), need.Program(t, "g++")
	src, err := os.ReadFile("testdata/phases.c")
	if err != nil {
		t.Fatal(err)
	}
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	dir := t.TempDir()
	st := newStore(newReader(root), NoCache{}, nil)
	l := newLoader(t.Context(), st.r, st, nil)
	// Where the loop's callers are not known there is no proof, and nothing goes.
	unproved := []int{13, 16, 23, 28, 34}
	loads := []int{19, 25, 29, 30}
	// So where the code before the loop may run again.
	again := []int{23}
	for _, opt := range []string{"-O0", "-O2 -fno-plt"} {
		for trick := range strings.Count(string(src), " TRICK == ") {
			name := fmt.Sprintf("%d%s", trick, strings.ReplaceAll(opt, " ", ""))
			t.Run(name, func(t *testing.T) {
				bin := filepath.Join(dir, name)
				cc, args := gcc, append(strings.Fields(opt), "-w", "-D_GNU_SOURCE", fmt.Sprintf("-DTRICK=%d", trick), "-rdynamic", "-Wl,-z,lazy", "-o", bin)
				if trick == 20 {
					args = append(args, "-fexceptions")
				}
				if m := regexp.MustCompile(fmt.Sprintf(`TRICK == %d [^\n]*C\+\+`, trick)); m.Match(src) {
					cc, args = gxx, append(args, "-x", "c++")
				}
				compile(t, cc, append(args, "testdata/phases.c")...)
				var extra []string
				if slices.Contains(loads, trick) {
					extra = []string{bin + ".so"}
					compile(t, gcc, "-O1", "-shared", "-fPIC", "-Wl,-z,lazy", fmt.Sprintf("-DTRICK=%d", trick), "-o", extra[0], "testdata/phaseslib.c")
				}
				if trick != 0 {
					cmd := exec.CommandContext(t.Context(), bin)
					cmd.Env = []string{"LIB=" + bin + ".so"}
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Fatalf("the trick does not work: %v\n%s", err, out)
					}
				}
				g, err := l.graph(bin, extra)
				if err != nil {
					t.Fatal(err)
				}
				returns, left := g.afterLoop()
				if slices.Contains(unproved, trick) {
					if len(returns) > 0 && !left["mincore"] {
						t.Errorf("mincore is gone although nothing is proved")
					}
					if slices.Contains(again, trick) && len(returns) > 0 && !left["acct"] {
						t.Error("acct is gone although the start may run again")
					}
					return
				}
				if len(returns) == 0 {
					t.Fatal("no loop is found")
				}
				if left["acct"] {
					t.Error("acct is left although only the start makes it")
				}
				if trick == 0 && (left["arch_prctl"] || left["set_tid_address"]) {
					t.Error("what the loader's start makes is left: see loadermain.go")
				}
				if left["mincore"] != (trick != 0) {
					t.Errorf("mincore is left: %v", left["mincore"])
				}
			})
		}
	}
}

// main is found whatever hands it to the C library, and what runs when it
// returns stays.
func TestMainIsFound(t *testing.T) {
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for _, row := range []struct {
		cc, flags string
		found     bool
	}{
		{"gcc", "", true},
		{"gcc", "-rdynamic", true},
		{"gcc", "-static-pie", false}, // the C library takes the entry point's address
		{"gcc", "-no-pie", false},
		{"gcc", "-static", false},
		{"musl-gcc", "-fPIE -pie", true},
		{"musl-gcc", "-fPIE -pie -s", true},
		{"musl-gcc", "static", false},    // what hands main over is itself called through a pointer
		{"musl-gcc", "static -s", false}, // and setjmp has no name
	} {
		for _, trick := range []int{0, 3, 9, 10} {
			t.Run(fmt.Sprintf("%s %s %d", row.cc, row.flags, trick), func(t *testing.T) {
				cc := need.Program(t, row.cc)
				bin := filepath.Join(t.TempDir(), "p")
				args := append(strings.Fields(row.flags), "-O2", "-w", fmt.Sprintf("-DTRICK=%d", trick), "-o", bin, "testdata/phases.c")
				if args[0] == "static" { // static and position-independent, which musl-gcc does not do by itself
					cc, args = need.Program(t, "gcc"), muslStatic(t, args[1:])
				}
				compile(t, cc, args...)
				if trick != 0 {
					if out, err := exec.CommandContext(t.Context(), bin).CombinedOutput(); err != nil {
						t.Fatalf("the trick does not work: %v\n%s", err, out)
					}
				}
				st := newStore(newReader(root), NoCache{}, nil)
				g, err := newLoader(t.Context(), st.r, st, nil).graph(bin, nil)
				if err != nil {
					t.Fatal(err)
				}
				returns, left := g.afterLoop()
				if row.found != (len(returns) > 0) {
					t.Fatalf("%d places prove the loop", len(returns))
				}
				if !row.found {
					return
				}
				if left["acct"] || left["mincore"] != (trick != 0) || !left["exit_group"] && trick != 0 {
					t.Errorf("left are acct %v, mincore %v, exit_group %v", left["acct"], left["mincore"], left["exit_group"])
				}
			})
		}
	}
}

// muslStatic gives gcc's arguments for a static program with musl.
func muslStatic(t *testing.T, args []string) []string {
	t.Helper()
	lib, headers := "/usr/lib/x86_64-linux-musl", "/usr/include/x86_64-linux-musl" // Debian
	if _, err := os.Stat(lib); err != nil {
		lib, headers = "/usr/lib", "/usr/include" // Alpine
	}
	include, err := exec.CommandContext(t.Context(), "gcc", "-print-file-name=include").Output()
	if err != nil {
		t.Fatal(err)
	}
	in := func(file string) string { return filepath.Join(lib, file) }
	first := []string{"-static-pie", "-fPIE", "-nostdlib", "-nostdinc", "-isystem", headers, "-isystem", strings.TrimSpace(string(include)), in("rcrt1.o"), in("crti.o")}
	return slices.Concat(first, args, []string{in("libc.a"), "-lgcc", in("libc.a"), in("crtn.o")})
}
