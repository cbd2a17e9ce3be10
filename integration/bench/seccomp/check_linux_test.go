package main

import (
	"os"
	"testing"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
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
