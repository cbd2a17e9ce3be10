package integration

import (
	"bytes"
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

// The validation programs of opencontainers/runtime-tools, built from the
// module of that name with the versions of its dependencies that it was written for.
const (
	validationTools = "github.com/opencontainers/runtime-tools@v0.9.0"
	validationSpec  = "github.com/opencontainers/runtime-spec@v1.0.2"
	validationLabel = "github.com/opencontainers/selinux@v1.9.1"
)

func TestNoAssertionOfTheValidationProgramsIsWorseThanWithRunc(t *testing.T) {
	l := open(t)
	dir, programs := buildValidation(t)
	worse := 0
	for _, program := range programs {
		t.Run(program, func(t *testing.T) {
			want := validate(dir, program, "runc")
			got := validate(dir, program, l.docker.Declarun)
			bad := missing(want, got)
			if len(bad) > 0 { // once more: some programs race with their own containers
				want = validate(dir, program, "runc")
				got = validate(dir, program, l.docker.Declarun)
				bad = missing(want, got)
			}
			for _, b := range bad {
				t.Errorf("holds with runc but not with declarun: %s", b)
			}
			if len(bad) > 0 {
				worse++
				t.Logf("declarun's output:\n%s", tail(got.raw, 40))
			}
		})
	}
	if len(programs) < 50 {
		t.Errorf("only %d validation programs were built", len(programs))
	}
}

func buildValidation(t *testing.T) (dir string, programs []string) {
	t.Helper()
	dir = t.TempDir()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	goTool := func(args ...string) string {
		cmd := exec.CommandContext(ctx, "go", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=mod", "GOWORK=off")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go %s: %v: %s", strings.Join(args, " "), err, stderr.String())
		}
		return strings.TrimSpace(string(out))
	}
	goTool("mod", "init", "validation")
	module, _, _ := strings.Cut(validationTools, "@")
	goTool("get", module+"/cmd/runtimetest@v0.9.0", module+"/validation/create@v0.9.0")
	goTool("get", validationSpec, validationLabel)
	source := goTool("list", "-m", "-f", "{{.Dir}}", module)
	entries, err := os.ReadDir(filepath.Join(source, "validation"))
	if err != nil {
		t.Fatal(err)
	}
	build := []string{"build", "-o", "bin/", module + "/cmd/runtimetest"}
	for _, e := range entries {
		if e.IsDir() && e.Name() != "util" {
			programs = append(programs, e.Name())
			build = append(build, module+"/validation/"+e.Name())
		}
	}
	goTool(build...)
	for from, to := range map[string]string{
		filepath.Join(source, "rootfs-"+runtime.GOARCH+".tar.gz"): "rootfs-" + runtime.GOARCH + ".tar.gz",
		filepath.Join(dir, "bin", "runtimetest"):                  "runtimetest",
	} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, to), data, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir, programs
}

// assertions counts the outcomes of a TAP stream by what is asserted.
type assertions struct {
	holds map[string]int
	raw   string
}

var (
	tapLine = regexp.MustCompile(`^(not )?ok \d+ ?-? ?(.*)$`)
	varying = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f-]{27}|/tmp/[^ "]*|\b[0-9]{2,}\b`)
)

func validate(dir, program, runtime string) assertions {
	ctx, cancel := context.WithTimeout(context.Background(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(dir, "bin", program))
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "RUNTIME="+runtime)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	a := assertions{holds: map[string]int{}, raw: string(out)}
	for line := range strings.Lines(string(out)) {
		m := tapLine.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if m != nil && m[1] == "" {
			a.holds[varying.ReplaceAllString(m[2], "…")]++
		}
	}
	if err == nil {
		a.holds["(the program ends with status 0)"] = 1
	}
	return a
}

func missing(want, got assertions) []string {
	var bad []string
	for _, what := range slices.Sorted(maps.Keys(want.holds)) {
		if got.holds[what] < want.holds[what] {
			bad = append(bad, what)
		}
	}
	return bad
}

func tail(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
