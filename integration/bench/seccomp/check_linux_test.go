package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/seccompgen/sysno"
)

func TestMain(m *testing.M) {
	observe.Child(drivers)
	os.Exit(m.Run())
}

// atLeast is how many programs the rows have to execute.
const atLeast = 300

// Every program that a row executes makes only calls that are allowed to it,
// and does the same under the kernel's filter as without.
func TestProgramsOnRealInput(t *testing.T) {
	lab(t)
	cache, err := seccompgen.OpenDirCache(engine.Cache() + "/analysis")
	if err != nil {
		t.Fatal(err)
	}
	c, err := newChecker(t.Context(), cache)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	alike, total, widened := 0, 0, 0
	c.all(t.Context(), rows(), func(line string, v *verdict, err error) {
		total++
		if err != nil {
			t.Errorf("%.120s: %v", line, err)
			return
		}
		for _, f := range v.failures() {
			t.Errorf("%.120s: %s", line, f)
		}
		if v.alike {
			alike++
		}
		if v.widened {
			widened++
		}
	})
	proved := 0
	for _, p := range c.programs {
		if p.analysed != nil && len(p.unresolved) == 0 {
			proved++
		}
	}
	if proved < atLeast {
		t.Errorf("only %d programs were executed whose calls are proved, want %d", proved, atLeast)
	}
	if 3*alike < total {
		t.Errorf("only %d of %d rows say the same each time: too few to compare with", alike, total)
	}
	t.Logf("%d programs in %d rows, %d of them proved; %d rows were compared to the byte; %d hold programs that are not proved", len(c.programs), total, proved, alike, widened)
}

// The six servers make no call over their whole life that is not allowed to
// them, and are refused none under the kernel's filter.
func TestServersWholeLife(t *testing.T) {
	lab(t)
	cache, err := seccompgen.OpenDirCache(engine.Cache() + "/analysis")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range six {
		t.Run(s.name, func(t *testing.T) {
			m, err := s.measure(t.Context(), cache)
			if err != nil {
				t.Fatal(err)
			}
			if len(m.unresolved) > 0 {
				t.Fatalf("sites that are not proved: %v", m.unresolved)
			}
			for _, name := range missing(m.seen, m.names(whole)) {
				t.Errorf("%s was seen and is not allowed: %s", name, m.seen[name])
			}
			if len(m.seen) < 40 {
				t.Errorf("only %d calls were seen: that is not a server's life", len(m.seen))
			}
			refused, err := m.underFilter(t.Context(), cache)
			if err != nil {
				t.Fatal(err)
			}
			if len(refused) > 0 {
				t.Errorf("refused by the kernel: %v", refused)
			}
			t.Logf("%d allowed, %d seen", len(m.calls), len(m.seen))
		})
	}
}

// lab is what these tests need of the machine.
func lab(t *testing.T) {
	t.Helper()
	need.Root(t)
	need.Seccomp(t)
	need.Netns(t)
	for _, p := range []string{"strace", "debootstrap", "setpriv", "ip"} {
		need.Program(t, p)
	}
}

// The interpreter and the kernel say the same about every call of every
// server's filter, before it serves and while it does.
func TestTwoJudges(t *testing.T) {
	lab(t)
	cache, err := seccompgen.OpenDirCache(engine.Cache() + "/analysis")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range six {
		t.Run(s.name, func(t *testing.T) {
			m, err := s.analyse(t.Context(), cache)
			if err != nil {
				t.Fatal(err)
			}
			counts := map[bool]int{}
			for _, by := range []filter.Caller{beforeServing, whileServing} {
				j, err := m.judge(t.Context(), by)
				if err != nil {
					t.Fatal(err)
				}
				for _, d := range j.differ {
					t.Error(d)
				}
				for _, allowed := range j.allowed {
					counts[allowed]++
				}
				if !j.allowed["read"] || j.allowed["kexec_load"] || j.allowed["mount"] {
					t.Errorf("read %v, kexec_load %v, mount %v", j.allowed["read"], j.allowed["kexec_load"], j.allowed["mount"])
				}
			}
			t.Logf("%d allowed, %d refused", counts[true], counts[false])
		})
	}
}

// What stops a payload: nothing that does the same is left.
func TestPayloadIsStoppedWhenNoEquivalentIsLeft(t *testing.T) {
	known := func(name string) bool { _, ok := sysno.Number("amd64", name); return ok }
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("payload-syscalls.txt", "1: fork,execve\n2: syscall_0xffffffffffffff03,socket,\n3: syscall_0x1,\n4: recv,\n5.1 open,read\n")
	write("cve-syscalls.txt", "CVE-1;__x64_sys_add_key, __x64_sys_keyctl\n")
	y, err := readYardsticks(dir, known)
	if err != nil {
		t.Fatal(err)
	}
	if len(y.payloads) != 5 || y.left != 2 || len(y.cves) != 1 {
		t.Fatalf("%d payloads, %d names left out, %d CVEs", len(y.payloads), y.left, len(y.cves))
	}
	for _, row := range []struct {
		allowed string
		want    string // numbers of those stopped
	}{
		{"", "1 2 4 5.1 CVE-1"},
		{"clone3 execve", "2 4 5.1 CVE-1"},
		{"clone3", "1 2 4 5.1 CVE-1"},
		{"clone execveat socket read openat", "CVE-1"},
		{"keyctl", "1 2 4 5.1"},
		{"recvmsg", "1 2 5.1 CVE-1"},
	} {
		allowed := func(name string) bool { return slices.Contains(strings.Fields(row.allowed), name) }
		var got []string
		for _, p := range slices.Concat(y.payloads, y.cves) {
			if p.stopped(allowed) {
				got = append(got, p.name)
			}
		}
		if strings.Join(got, " ") != row.want {
			t.Errorf("allowed %q: stopped %v, want %s", row.allowed, got, row.want)
		}
	}
	if _, _, of := share(y.payloads, func(string) bool { return false }); of != 4 {
		t.Errorf("%d payloads can be judged, want 4: one has only numbers", of)
	}
	if got := decisive(y.payloads, func(name string) bool {
		return name == "clone" || name == "execve" || name == "read" || name == "openat"
	}, 70); strings.Join(got, " ") != "read" {
		t.Errorf("decisive %v", got)
	}
	if none, err := readYardsticks("", known); none != nil || err != nil {
		t.Errorf("without data: %v, %v", none, err)
	}
}
