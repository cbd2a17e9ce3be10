package guard

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"os"
	"testing"

	"github.com/declarun/declarun/shim/record"
)

func TestJudge(t *testing.T) {
	app := Who{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	starting := Who{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce}
	health := Who{Identity: record.HealthCheck, Phase: record.Serving, Mode: record.Enforce}
	operator := Who{Identity: record.Operator, Phase: record.Serving, Mode: record.Enforce}
	file := Exec{ContainerID: "c", Regular: true, Place: Image}
	with := func(f func(*Exec)) Exec { e := file; f(&e); return e }

	for _, row := range []struct {
		claim string
		e     Exec
		who   Who
		want  Decision // Reason is not compared
	}{
		{"the zero event is refused", Exec{}, operator, Decision{Verdict: record.Denied}},
		{"an event of no container is refused, in any mode", Exec{Regular: true, Place: Image, Application: always}, Who{Mode: record.Off}, Decision{Verdict: record.Denied}},
		{"what is in no list is refused", file, app, Decision{Verdict: record.Denied}},
		{"and observed in audit mode", file, Who{Mode: record.Audit}, Decision{Allow: true, Verdict: record.Observed}},
		{"and not even seen when off", file, Who{Mode: record.Off}, Decision{Allow: true}},
		{"an unknown process is the application that serves", with(func(e *Exec) { e.Application = untilServing }), Who{}, Decision{Verdict: record.Denied}},
		{"a program of the plan runs and is cached", with(func(e *Exec) { e.Application = always }), app, Decision{Allow: true, Cache: true}},
		{"one that only starting needs is not cached", with(func(e *Exec) { e.Application = untilServing }), starting, Decision{Allow: true}},
		{"nor allowed once the guard was told that it serves", with(func(e *Exec) { e.Application = untilServing; e.Serving = true }), starting, Decision{Verdict: record.Denied}},
		{"a changed program is not the image's", with(func(e *Exec) { e.Application = always; e.Place = Changed }), app, Decision{Verdict: record.Denied}},
		{"not for an operator either", with(func(e *Exec) { e.Place = Changed }), operator, Decision{Verdict: record.Denied}},
		{"a file that is not regular never runs", with(func(e *Exec) { e.Application = always; e.Regular = false }), app, Decision{Verdict: record.Denied}},
		{"an operator runs what is in the image, reported, never cached", with(func(e *Exec) { e.Application = always }), operator, Decision{Allow: true, Verdict: record.Reported}},
		{"the health check runs what the application may", with(func(e *Exec) { e.Application = always }), health, Decision{Allow: true, Cache: true}},
		{"and its own, which is not cached", with(func(e *Exec) { e.HealthCheck = always }), health, Decision{Allow: true}},
		{"which the application may not", with(func(e *Exec) { e.HealthCheck = always }), app, Decision{Verdict: record.Denied}},
		{"a wide application runs anything in the image", with(func(e *Exec) { e.Wide = always }), app, Decision{Allow: true, Cache: true}},
		{"but nothing written later", with(func(e *Exec) { e.Wide = always; e.Place = Changed }), app, Decision{Verdict: record.Denied}},
		{"wide while starting ends", with(func(e *Exec) { e.Wide = untilServing }), app, Decision{Verdict: record.Denied}},
		{"a program with an interpreter runs and is not cached", with(func(e *Exec) { e.Application = always; e.Interpreted = true }), app, Decision{Allow: true}},
		{"where the application has a shell for life, the interpreter is cached", with(func(e *Exec) { e.Interpreter = always; e.Scriptable = true }), app, Decision{Allow: true, Cache: true}},
		{"and so is what it interprets", with(func(e *Exec) { e.Application = always; e.Interpreted = true; e.Scriptable = true }), app, Decision{Allow: true, Cache: true}},
		{"but a shell allows nothing else", with(func(e *Exec) { e.Scriptable = true }), app, Decision{Verdict: record.Denied}},
		{"in a wide container it is", with(func(e *Exec) { e.Wide = always; e.Application = always; e.Interpreted = true }), app, Decision{Allow: true, Cache: true}},
		{"an interpreter may be opened by the kernel, which asks each time", with(func(e *Exec) { e.Interpreter = always }), app, Decision{Allow: true}},
		{"but not asked for", with(func(e *Exec) { e.Interpreter = always; e.Direct = true }), app, Decision{Verdict: record.Denied}},
		{"a health check's interpreter is not the application's", with(func(e *Exec) { e.HealthInterpreter = always }), app, Decision{Verdict: record.Denied}},
		{"a read-only mount of the operator's is allowed", with(func(e *Exec) { e.Place = ReadOnlyMount }), app, Decision{Allow: true}},
		{"a noexec one is not", with(func(e *Exec) { e.Place = NoExec; e.Application = always }), app, Decision{Verdict: record.Denied}},
		{"a place that is not known is refused", with(func(e *Exec) { e.Place = 99; e.Application = always }), app, Decision{Verdict: record.Denied}},
	} {
		got := Judge(row.e, row.who)
		if got.Reason == "" && got.Verdict != "" {
			t.Errorf("%s: no reason given", row.claim)
		}
		got.Reason = ""
		if got != row.want {
			t.Errorf("%s: got %+v, want %+v", row.claim, got, row.want)
		}
	}
}

func TestMountinfo(t *testing.T) {
	const text = `21 27 0:51 / /proc rw - proc proc rw
1203 27 0:55 / /var/lib/docker/overlay2/ab\040c/merged rw,relatime shared:1 master:2 - overlay overlay rw,lowerdir=/l/A:/l/B,upperdir=/var/lib/docker/overlay2/ab\040c/diff,workdir=/w
1204 27 0:56 / /m rw - overlay  rw,lowerdir=l/A,upperdir=a\134\054b/diff,workdir=w
1205 27 0:57 /sub /n ro - overlay overlay ro,lowerdir=/a:/b
`
	mounts, err := parseMountinfo([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "/var/lib/docker/overlay2/ab c/diff", "a,b/diff", ""} {
		if got, _ := mounts[i].upperOf(); got != want {
			t.Errorf("upper of %s: got %q, want %q", mounts[i].Point, got, want)
		}
	}
	if m := mounts[1]; m.ID != 1203 || m.Minor != 55 || m.Point != "/var/lib/docker/overlay2/ab c/merged" {
		t.Errorf("got %+v", m)
	}
	if mounts[3].Root != "/sub" {
		t.Errorf("root of a bind mount: got %q", mounts[3].Root)
	}
}

func TestMountinfoOfThisProcess(t *testing.T) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := parseMountinfo(data); err != nil || len(m) != bytes.Count(data, []byte("\n")) {
		t.Errorf("got %d mounts, %v", len(m), err)
	}
}

func FuzzMountinfo(f *testing.F) {
	f.Add([]byte("1203 27 0:55 / /m rw shared:1 - overlay overlay rw,lowerdir=/a,upperdir=/b\\040c\n"))
	f.Add([]byte("1 2 3:4 / / rw - x \\"))
	f.Fuzz(func(t *testing.T, b []byte) {
		mounts, _ := parseMountinfo(b)
		for _, m := range mounts {
			m.upperOf()
		}
	})
}

func TestInterpreterAgreesWithDebugELF(t *testing.T) {
	for _, name := range []string{"/bin/sh", "/bin/true", "/proc/self/exe", "/usr/bin/env", "/lib64/ld-linux-x86-64.so.2"} {
		f, err := elf.Open(name)
		if err != nil {
			continue
		}
		want := ""
		for _, p := range f.Progs {
			if p.Type == elf.PT_INTERP {
				b := make([]byte, p.Filesz)
				p.ReadAt(b, 0)
				want = string(bytes.TrimRight(b, "\x00"))
			}
		}
		f.Close()
		r, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := interpreterOf(r); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		r.Close()
	}
	for text, want := range map[string]string{
		"#!/bin/sh\n": "/bin/sh", "#! \t/usr/bin/env -S x\n": "/usr/bin/env", "#!/bin/sh": "/bin/sh", "#!": "", "#!sh\n": "", "": "", "\x7fELF": "",
	} {
		if got := interpreterOf(bytes.NewReader([]byte(text))); got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

func FuzzInterpreter(f *testing.F) {
	h := make([]byte, 160)
	copy(h, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint64(h[32:], 64)
	binary.LittleEndian.PutUint16(h[54:], 56)
	binary.LittleEndian.PutUint16(h[56:], 1)
	binary.LittleEndian.PutUint32(h[64:], 3)
	binary.LittleEndian.PutUint64(h[72:], 120)
	binary.LittleEndian.PutUint64(h[96:], 8)
	copy(h[120:], "/lib/ld\x00")
	f.Add(h)
	f.Add([]byte("#!/bin/sh -e\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if got := interpreterOf(bytes.NewReader(b)); got != "" && got[0] != '/' {
			t.Errorf("got %q", got)
		}
	})
}

func TestEventsOfForeignBytes(t *testing.T) {
	good := make([]byte, 24)
	binary.NativeEndian.PutUint32(good, 24)
	good[4] = 3
	binary.NativeEndian.PutUint32(good[16:], 7)
	if ev := parseEvents(append(bytes.Clone(good), good[:10]...)); len(ev) != 1 || ev[0].fd != 7 {
		t.Errorf("got %+v", ev)
	}
	binary.NativeEndian.PutUint32(good, 0)
	if ev := parseEvents(good); len(ev) != 0 {
		t.Errorf("a record of no length: got %+v", ev)
	}
}
