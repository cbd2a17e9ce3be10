package supervise

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

const goodState = `{"ociVersion":"1.0.2-dev","fds":["seccompFd"],"pid":4422,"pidFd":0,"metadata":"0123456789abcdef0123456789abcdef","state":{"ociVersion":"1.0.2-dev","id":"c1","status":"creating","pid":4422,"bundle":"/b","annotations":{"a":"b"}}}`

func TestProcessState(t *testing.T) {
	t.Run("one byte at a time, from a connection that stays open", func(t *testing.T) {
		r, w := io.Pipe()
		go w.Write([]byte(goodState)) // never closed
		s, err := readProcessState(iotest.OneByteReader(r))
		if err != nil || s.PID != 4422 || s.State.Status != "creating" {
			t.Errorf("%+v, %v", s, err)
		}
	})
	for name, bad := range map[string]string{
		"nothing":                ``,
		"cut off":                goodState[:len(goodState)-1],
		"not an object":          `["seccompFd"]`,
		"null":                   `null`,
		"no descriptor":          strings.Replace(goodState, `"seccompFd"`, ``, 1),
		"two descriptors":        strings.Replace(goodState, `"seccompFd"`, `"seccompFd","pidFd"`, 1),
		"another descriptor":     strings.Replace(goodState, `"seccompFd"`, `"pidFd"`, 1),
		"no process":             strings.Replace(goodState, `4422`, `0`, 1),
		"a negative process":     strings.Replace(goodState, `4422`, `-1`, 1),
		"a token that is a path": strings.Replace(goodState, `0123456789abcdef0123456789abcdef`, `../../../../../../../../../../etc`, 1),
		"an unknown status":      strings.Replace(goodState, `creating`, `stopped`, 1),
		"endless":                `{"a":"` + strings.Repeat("x", maxProcessState+1),
		"deep":                   strings.Repeat("[", 200_000),
	} {
		t.Run(name+" is refused", func(t *testing.T) {
			if s, err := readProcessState(strings.NewReader(bad)); err == nil {
				t.Errorf("%+v", s)
			}
		})
	}
}

func FuzzProcessState(f *testing.F) {
	f.Add([]byte(goodState))
	f.Add([]byte(`{"fds":null}`))
	f.Add([]byte(`{}{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := readProcessState(bytes.NewReader(data))
		if err == nil && (!validToken(s.Metadata) || s.PID <= 0 || len(s.FDs) != 1) {
			t.Errorf("%+v", s)
		}
		if err != nil && s.Metadata != "" {
			t.Error("an error and a state")
		}
	})
}

func FuzzStored(f *testing.F) {
	f.Add([]byte(`{"key":{"root":"/r","id":"c"},"guarded":"2026-01-02T03:04:05Z","pid":5,"start":7,"boot":"b","phase":"starting","facts":{"health_check":["a"]}}`))
	f.Add([]byte(`{"key":{"id":"c"},"phase":"x","counts":{"syscalls":18446744073709551615}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		st, err := parseStored(data)
		if err == nil && (st.Key.ID == "" || st.Phase != record.Starting && st.Phase != record.Serving || !st.Guarded.IsZero() && (st.PID <= 0 || st.Start == 0)) {
			t.Errorf("%+v", st)
		}
	})
}

func TestBrokenStateIsNotLoaded(t *testing.T) {
	good := map[string]string{"state.json": `{"key":{"root":"/r","id":"c"}}`, "plan.json": `{}`, "verdicts.json": `null`}
	write := func(t *testing.T, files map[string]string) (store, string) {
		s, token := store{t.TempDir()}, strings.Repeat("a", 32)
		os.Mkdir(filepath.Join(s.dir, token), 0o700)
		for name, data := range files {
			os.WriteFile(s.path(token, name), []byte(data), 0o600)
		}
		return s, token
	}
	s, token := write(t, good)
	if _, _, _, err := s.load(token); err != nil {
		t.Fatal(err)
	}
	for name := range good {
		for _, bad := range []string{"", "{", "[]", `"x"`, "\x00", `{"guarded":"2026-01-02T03:04:05Z"}x`} {
			files := map[string]string{}
			for n, data := range good {
				files[n] = data
			}
			files[name] = bad
			s, token := write(t, files)
			if _, _, _, err := s.load(token); err == nil {
				t.Errorf("%s: %q was loaded", name, bad)
			}
		}
		files := map[string]string{}
		for n, data := range good {
			if n != name {
				files[n] = data
			}
		}
		s, token := write(t, files)
		if _, _, _, err := s.load(token); err == nil {
			t.Errorf("loaded without %s", name)
		}
	}
}

func FuzzListenerMeta(f *testing.F) {
	f.Add(`{"exec":true,"pid":1}`)
	f.Add(`{"identity":"operator","executed":true}`)
	f.Fuzz(func(t *testing.T, s string) {
		m, err := parseListenerMeta(s)
		if err == nil && m.Identity == "" && (!m.Exec || m.Executed) {
			t.Errorf("%+v", m)
		}
	})
}

func TestStore(t *testing.T) {
	s := store{filepath.Join(t.TempDir(), "containers")}
	token := newToken()
	if !validToken(token) || newToken() == token {
		t.Fatalf("token %q", token)
	}
	want := stored{Key: wire.Key{Root: "/r", ID: "c"}, Prepared: time.Now(), Boot: "b", Phase: record.Starting}
	if err := s.create(token, &plan.Plan{Wide: true}, nil, want); err != nil {
		t.Fatal(err)
	}
	if err := s.create(token, &plan.Plan{}, nil, want); err == nil {
		t.Error("stored twice")
	}
	got, p, v, err := s.load(token)
	if err != nil || got.Key != want.Key || !p.Wide || v != nil {
		t.Errorf("%+v, %+v, %v, %v", got, p, v, err)
	}
	for _, name := range []string{"", "state.json", "plan.json", "verdicts.json"} {
		info, err := os.Stat(s.path(token, name))
		if err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%q: %v, %v", name, info, err)
		}
	}
	if err := s.remove("../.."); err == nil {
		t.Error("removed what is no container")
	}
	os.Mkdir(filepath.Join(s.dir, "not-a-token"), 0o700)
	if tokens, err := s.tokens(); err != nil || len(tokens) != 1 {
		t.Errorf("%q, %v", tokens, err)
	}
	// A link in place of a file is not followed.
	os.Rename(s.path(token, "plan.json"), filepath.Join(s.dir, "elsewhere"))
	os.Symlink(filepath.Join(s.dir, "elsewhere"), s.path(token, "plan.json"))
	if _, _, _, err := s.load(token); err == nil {
		t.Error("followed a link")
	}
	if err := s.remove(token); err != nil {
		t.Error(err)
	}
	if _, _, _, err := s.load(token); err == nil {
		t.Error("loaded what was removed")
	}
}

func TestClaim(t *testing.T) {
	now := time.Now()
	c := &container{}
	c.announce(announcement{args: []string{"check"}, health: true, at: now})
	c.announce(announcement{args: []string{"sh"}, at: now})
	for _, row := range []struct {
		argv      string
		id        record.Identity
		announced bool
		claim     string
	}{
		{"sh", record.Operator, true, "order does not matter"},
		{"other", record.Operator, false, "what was not announced is an operator's"},
		{"check", record.HealthCheck, true, "the announced health check is one"},
		{"check", record.Operator, false, "…once"},
	} {
		if id, announced := c.claim([]string{row.argv}, now); id != row.id || announced != row.announced {
			t.Errorf("%s: %s, %t", row.claim, id, announced)
		}
	}
	c.announce(announcement{args: []string{"check"}, health: true, at: now})
	if id, announced := c.claim([]string{"check"}, now.Add(2*announcementLife)); id != record.Operator || announced {
		t.Error("an announcement does not hold for ever")
	}
	for range 3 * announcementsKept {
		c.announce(announcement{at: now})
	}
	if len(c.announced) > announcementsKept {
		t.Errorf("%d announcements kept", len(c.announced))
	}
}

func TestPlanQuestions(t *testing.T) {
	p := &plan.Plan{Network: plan.Network{Listen: []plan.Listen{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 8000, Last: 8010}, {Proto: "udp", Port: 53}, {Proto: "sctp", Port: 3868}, {Proto: "tcp"}}}}
	for port, want := range map[uint16]bool{80: true, 81: false, 8000: true, 8005: true, 8010: true, 8011: false, 53: false, 3868: false, 0: false} {
		if declares(p, "tcp", port) != want {
			t.Errorf("port %d", port)
		}
	}
	if !declares(p, "sctp", 3868) || declares(p, "sctp", 80) || declares(p, "", 80) {
		t.Error("a port is declared for its protocol")
	}
	if !isMain(p, "/any") {
		t.Error("without a main program every program is one")
	}
	p.Processes = []plan.Process{{Path: "/a", Main: true}, {Path: "/b"}}
	if !isMain(p, "/a") || isMain(p, "/b") || isMain(p, "/c") {
		t.Error("main programs")
	}
	p.Processes = []plan.Process{{Path: "/sh", Phase: record.Starting}, {Path: "/tini", Phase: record.Serving}, {Path: "/a", Phase: record.Starting, Main: true},
		{Path: "/check", Phase: record.Starting, Identity: record.HealthCheck}, {Path: "/odd"}}
	for exe, want := range map[string]bool{"/sh": true, "/tini": false, "/a": false, "/check": false, "/odd": false, "": false, "/none": false} {
		if onlyStarts(p, exe) != want {
			t.Errorf("%q", exe)
		}
	}
	if c := (&container{plan: p}); c.mode(record.Syscalls) != record.Enforce {
		t.Error("a mode that was not decided is enforce")
	}
}
