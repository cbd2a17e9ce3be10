package integration

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// tree is what "declarun tree --json" prints, as far as tests ask.
type tree struct {
	record.Tree
	Expected []struct {
		Path   string
		Main   bool
		Starts []string
	} `json:"expected"`
	Unwatched string `json:"unwatched"`
}

func (l *lab) tree(t *testing.T, id string) tree {
	t.Helper()
	out, err := l.declarun("tree", "--json", id)
	if err != nil {
		t.Fatal(err)
	}
	var got tree
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return got
}

// live are the processes of a program.
func (t tree) live(base string) (all []record.LiveProcess) {
	for _, p := range t.Live {
		if filepath.Base(p.Exe) == base {
			all = append(all, p)
		}
	}
	return all
}

func (t tree) ran(base string) (n uint64) {
	for _, r := range t.Before {
		if filepath.Base(r.Exe) == base {
			n += r.Count
		}
	}
	return n
}

// What the tree shows of a server's whole life: its start, its workers, an
// operator's exec, what is refused, a supervisor that is replaced or killed, and
// the container's own restart.
func TestTreeOfADatabase(t *testing.T) {
	l := open(t)
	id := l.container(t, "--runtime", "declarun", "-e", "POSTGRES_PASSWORD=x", l.images["postgres"])
	l.healthy(t, id)
	l.run(t, "exec", "-d", id, "sleep", "300")
	// An operator may run what the image has; the database may not.
	l.try("exec", id, "psql", "-U", "postgres", "-c", "COPY (SELECT 1) TO PROGRAM 'id'")

	check := func(when string, began bool) tree {
		t.Helper()
		got := l.tree(t, id)
		servers := got.live("postgres")
		if len(servers) < 4 || servers[0].Inside != 1 || servers[0].Identity != record.Application || servers[0].UID == 0 {
			t.Errorf("%s: servers %+v", when, servers)
		}
		for _, p := range got.Live {
			if p.Unexpected != "" || len(p.Odd) > 0 {
				t.Errorf("%s: %+v", when, p)
			}
		}
		if sleeps := got.live("sleep"); len(sleeps) != 1 || sleeps[0].Identity != record.Operator {
			t.Errorf("%s: the operator's %+v", when, sleeps)
		}
		if began && got.ran("initdb") != 1 {
			t.Errorf("%s: initdb ran %d times: %+v", when, got.ran("initdb"), got.Before)
		}
		if got.Unwatched != "" {
			t.Errorf("%s: %s", when, got.Unwatched)
		}
		return got
	}
	got := check("first", true)
	if !slices.ContainsFunc(got.Refused, func(r record.RefusedExec) bool {
		return r.Identity == record.Application && filepath.Base(r.By) == "postgres" && r.Verdict == record.Denied
	}) {
		t.Errorf("nothing was refused: %+v", got.Refused)
	}
	main := false
	for _, e := range got.Expected {
		main = main || e.Main && filepath.Base(e.Path) == "postgres"
	}
	if !main {
		t.Errorf("expected: %+v", got.Expected)
	}
	out, err := l.declarun("tree", id)
	if err != nil || !strings.Contains(out, "└─ ") || !strings.Contains(out, "ran before") || strings.ContainsAny(out, "\x1b\x00") {
		t.Errorf("%v: %s", err, out)
	}
	t.Log(out)

	supervisors := func() []int {
		pids, err := l.install.Supervisors()
		if err != nil || len(pids) < 2 {
			t.Fatalf("supervisors: %v, %v", pids, err)
		}
		return pids
	}
	// Its processes go on with what they know when the worker is replaced.
	pids := supervisors()
	monitor := pids[0]
	if youngest(pids) == monitor {
		monitor = pids[1]
	}
	if err := syscall.Kill(monitor, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if !await(20*time.Second, func() bool {
		now, err := l.install.Supervisors()
		return err == nil && len(now) == 2 && !slices.Equal(now, pids)
	}) {
		t.Fatal("the worker is not replaced")
	}
	check("after the worker was replaced", true)

	// A restart of the container begins a tree of its own.
	l.run(t, "restart", "-t", "20", id)
	l.healthy(t, id)
	got = l.tree(t, id)
	if n := got.ran("initdb"); n != 0 || len(got.live("sleep")) != 0 || len(got.live("postgres")) < 4 {
		t.Errorf("after a restart: %d initdb, %+v", n, got.Live)
	}
	if _, err := l.declarun("tree", "no-such-container"); err == nil {
		t.Error("there is a tree of nothing")
	}
}

// A thousand processes that begin and end at once, in a bare bundle.
func TestTreeOfAThousandProcesses(t *testing.T) {
	l := open(t)
	dir := l.bundle(t, l.images["redis"], false, "/bin/sh", "-c", "i=0; while [ $i -lt 1000 ]; do /bin/true; i=$((i+1)); done; echo over; exec sleep 600")
	root, id := filepath.Join(dir, "state"), "bare-thousand"
	log, err := os.Create(filepath.Join(dir, "output")) // the container keeps it open
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd := exec.Command(l.docker.Declarun, "--root", root, "run", "-d", "--bundle", dir, id)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		out, _ := os.ReadFile(log.Name())
		t.Fatalf("declarun run: %v: %s", err, out)
	}
	defer l.declarun("--root", root, "delete", "--force", id)
	var got tree
	if !await(90*time.Second, func() bool { got = l.tree(t, id); return len(got.live("sleep")) == 1 }) {
		t.Fatalf("%+v", got)
	}
	if n := got.ran("true"); n != 1000 || got.Lost > 0 || len(got.Live) != 1 {
		t.Errorf("%d ran, %d lost, %d live: %+v", n, got.Lost, len(got.Live), got.Before)
	}
	if len(got.Before) > 8 {
		t.Errorf("%d kinds: %+v", len(got.Before), got.Before)
	}
}
