package integration

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// drift is what "declarun drift --json" prints, and its exit status.
func (l *lab) drift(t *testing.T, id string) (record.Drift, int) {
	t.Helper()
	out, err := l.declarun("drift", "--json", id)
	code := 0
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		code = exit.ExitCode()
	}
	var got record.Drift
	if err := json.Unmarshal([]byte(out), &got); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	return got, code
}

func changeOf(d record.Drift, path string) record.Change {
	i := slices.IndexFunc(d.Changes, func(c record.Change) bool { return c.Path == path })
	if i < 0 {
		return record.Change{}
	}
	return d.Changes[i]
}

// What a container's layer gets: by the service itself, by an operator who drops
// programs, removes files and gives one rights of its own; also after the
// supervisor was replaced.
func TestDriftOfAServer(t *testing.T) {
	l := open(t)
	id := l.container(t, "--runtime", "declarun", "--tmpfs", "/scratch", l.images["nginx"])
	l.healthy(t, id)
	if d, code := l.drift(t, id); code != 0 || d.Incomplete != "" || !d.Layers || slices.ContainsFunc(d.Changes, func(c record.Change) bool { return c.Declared == "" || c.Special() }) {
		t.Errorf("a server that nobody touched: status %d, %+v", code, d)
	}
	out, err := l.declarun("drift", id)
	if err != nil {
		t.Error(err)
	}
	t.Log(out)

	// Where the plan lets it write.
	since := time.Now()
	var dir string
	d, _ := l.drift(t, id)
	for _, c := range d.Changes {
		if c.Declared != "" {
			dir = c.Declared
		}
	}
	if dir == "" {
		dir = "/tmp"
	}
	hostile := dir + "/a\nb\x1b[31m"
	for _, command := range [][]string{
		{"cp", "/bin/true", dir + "/tool"},
		{"cp", "/bin/true", hostile},
		{"sh", "-c", "printf '#!/bin/sh\\nid\\n' > " + dir + "/run.sh"},
		{"chmod", "755", dir + "/run.sh"},
		{"chmod", "4755", dir + "/tool"},
	} {
		l.run(t, append([]string{"exec", id}, command...)...)
	}
	d, code := l.drift(t, id)
	tool := changeOf(d, dir+"/tool")
	if code != 1 || tool.Program != "elf" || tool.How != record.DriftAdded || tool.Mode != 0o4755 || tool.By == nil || filepath.Base(tool.By.Exe) != "cp" {
		t.Errorf("status %d, %+v, by %+v", code, tool, tool.By)
	}
	if c := changeOf(d, hostile); c.Program != "elf" {
		t.Errorf("%+v", d.Changes)
	}
	if c := changeOf(d, dir+"/run.sh"); c.Program != "script" || c.By != nil {
		t.Errorf("%+v", c)
	}
	if !d.Changes[0].Special() || d.Changes[0].Path != dir+"/tool" {
		t.Errorf("first: %+v", d.Changes[0])
	}
	out, err = l.declarun("drift", id)
	if err == nil || strings.ContainsAny(out, "\x1b") || !strings.Contains(out, `a\nb\x1b[31m`) || !strings.Contains(out, "-rwsr-xr-x") {
		t.Errorf("%v: %s", err, out)
	}
	t.Log(out)

	// A script that became one is told without anybody who asks, once.
	drops := func(path string) (found []record.Event) {
		for _, e := range l.events(t, id) {
			if e.Dimension == record.Storage && e.Action == "drop" && e.Object == path && e.Time.After(since) {
				found = append(found, e)
			}
		}
		return found
	}
	if !await(75*time.Second, func() bool { return len(drops(dir+"/run.sh")) > 0 }) {
		t.Error("no event of a script that was made executable")
	}
	time.Sleep(35 * time.Second) // another look
	for _, path := range []string{dir + "/run.sh", dir + "/tool"} {
		if found := drops(path); len(found) != 1 || found[0].Count != 1 {
			t.Errorf("%s: %+v", path, found)
		}
	}
	if out, err := l.declarun("drift", "no-such-container"); err == nil {
		t.Error(out)
	} else if exit := (*exec.ExitError)(nil); !errors.As(err, &exit) || exit.ExitCode() != 2 {
		t.Errorf("%v", err)
	}
}

// In a bare bundle without layers, what changed after it began is told.
func TestDriftOfABareBundle(t *testing.T) {
	l := open(t)
	dir := l.bundle(t, l.images["redis"], false, "/bin/sh", "-c", "sleep 1; cp /bin/true /tmp/tool; echo x > /tmp/data; rm /etc/hostname; sleep 600")
	root, id := filepath.Join(dir, "state"), "bare-drift"
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
	var d record.Drift
	code := 0
	if !await(30*time.Second, func() bool { d, code = l.drift(t, id); return changeOf(d, "/tmp/data").Path != "" }) {
		t.Fatalf("status %d: %+v", code, d)
	}
	tool := changeOf(d, "/tmp/tool")
	if code != 1 || d.Layers || tool.Program != "elf" || tool.How != record.DriftLater {
		t.Errorf("status %d, %+v", code, tool)
	}
	for _, c := range d.Changes {
		if !strings.HasPrefix(c.Path, "/tmp/") {
			t.Errorf("%+v", c)
		}
	}
}
