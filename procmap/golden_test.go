package procmap

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/record"
)

var update = flag.Bool("update", false, "write the golden files")

// scenario reads a file of testdata: what it shows, its settings, its files.
func scenario(t testing.TB, name string) (tree, *declared.Declared) {
	t.Helper()
	data, err := os.ReadFile(name)
	must(t, err)
	head, rest, _ := strings.Cut("\n"+string(data), "\n-- ")
	d := image()
	for line := range strings.SplitSeq(head, "\n") {
		key, v, _ := strings.Cut(line, ": ")
		switch key {
		case "args":
			d.Process.Args = splitString(v)
		case "env":
			d.Process.Env = append(d.Process.Env, v)
		case "cwd":
			d.Process.Cwd, d.Image.WorkingDir = v, v
		case "volume":
			d.Image.Volumes = append(d.Image.Volumes, v)
		case "user":
			d.Image.User, _, _ = strings.Cut(v, " ")
			d.Process.UID = 1000
			d.Process.GID = 1000
		case "healthcheck":
			d.HealthCheck = splitString(v)
		}
	}
	tr := base()
	for part := range strings.SplitSeq(rest, "\n-- ") {
		p, body, ok := strings.Cut(part, " --\n")
		if !ok {
			t.Fatalf("%s: no file name in %.40q", name, part)
		}
		if !strings.HasPrefix(body, "#!") {
			body = strings.TrimSuffix(body, "\n")
		}
		tr[p] = body
	}
	return tr, d
}

// The shapes of well-known entrypoints, followed to the end.
func TestEntrypoints(t *testing.T) {
	files, _ := filepath.Glob("testdata/entrypoints/*.txt")
	if len(files) == 0 {
		t.Fatal("no scenarios")
	}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			tr, d := scenario(t, name)
			c, err := derive(t, tr, d)
			must(t, err)
			for _, p := range c.Processes {
				if p.Identity == record.Application && p.Phase == record.Serving && (isShell(filepath.Base(p.Path)) || p.Path == "/usr/bin/env") {
					t.Errorf("%s is left to a serving container: %v", p.Path, p.Origins)
				}
			}
			if c.Wide || c.WideStarting {
				t.Errorf("wide: %s%s", c.WideReason, c.WideStartingReason)
			}
			got, err := json.MarshalIndent(c, "", "  ")
			must(t, err)
			got = append(got, '\n')
			golden := strings.TrimSuffix(name, ".txt") + ".json"
			if *update {
				must(t, os.WriteFile(golden, got, 0o644))
				return
			}
			want, err := os.ReadFile(golden)
			must(t, err)
			if string(got) != string(want) {
				t.Errorf("differs from %s (run with -update and look at the difference):\n%s", golden, got)
			}
		})
	}
}
