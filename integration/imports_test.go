package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
)

const module = "github.com/declarun/declarun/"

// allowedImports is the import policy: what each package takes from the others.
// Facts → plan → apply, arrows one way. A new arrow is a decision, and so is one
// that goes away.
var allowedImports = map[string]string{
	"cmd/declarun":                    "shim/runtime",
	"cmd/declarund":                   "netpolicy procmap/guard procmap/proctree procmap/sensor shim/bundle shim/declared shim/events shim/guards shim/install shim/plan shim/planner shim/record shim/rootfs shim/runtime shim/site shim/supervise shim/wire",
	"integration":                     "",
	"integration/bench":               "integration/engine",
	"integration/bench/seccomp":       "integration/engine integration/observe procmap seccompgen seccompgen/filter seccompgen/sysno shim/declared shim/plan shim/record shim/rootfs",
	"integration/breakin":             "integration/inject",
	"integration/demo":                "integration/breakin integration/engine shim/record",
	"integration/engine":              "shim/record",
	"integration/images/hello/server": "",
	"integration/inject":              "",
	"integration/need":                "",
	"integration/observe":             "integration/engine seccompgen/filter shim/record",
	"netpolicy":                       "shim/declared shim/plan shim/record",
	"procmap":                         "procmap/catalogue procmap/elfstrings shim/declared shim/plan shim/record shim/rootfs",
	"procmap/catalogue":               "",
	"procmap/drift":                   "shim/record",
	"procmap/elfstrings":              "",
	"procmap/guard":                   "shim/record",
	"procmap/internal/elftest":        "",
	"procmap/proctree":                "shim/record",
	"procmap/sensor":                  "",
	"seccompgen":                      "seccompgen/a64 seccompgen/elfread seccompgen/sysno seccompgen/x86 shim/plan shim/record shim/rootfs",
	"seccompgen/a64":                  "",
	"seccompgen/elfread":              "",
	"seccompgen/filter":               "seccompgen/sysno shim/plan shim/record",
	"seccompgen/filter/gen32":         "",
	"seccompgen/sysno":                "",
	"seccompgen/sysno/gen":            "",
	"seccompgen/x86":                  "",
	"shim/admission":                  "shim/declared shim/plan shim/record shim/rootfs shim/site",
	"shim/bundle":                     "shim/plan shim/record",
	"shim/confine":                    "seccompgen/sysno",
	"shim/declared":                   "shim/declared/ctrd shim/record shim/rootfs shim/wire",
	"shim/declared/ctrd":              "",
	"shim/events":                     "shim/record",
	"shim/guards":                     "netpolicy procmap/drift procmap/guard procmap/sensor shim/events shim/plan shim/planner shim/record shim/site shim/supervise",
	"shim/install":                    "",
	"shim/plan":                       "shim/record",
	"shim/planner":                    "netpolicy procmap seccompgen seccompgen/filter shim/admission shim/bundle shim/confine shim/declared shim/plan shim/record shim/rootfs shim/site shim/supervise",
	"shim/record":                     "",
	"shim/rootfs":                     "",
	"shim/runtime":                    "shim/record shim/wire",
	"shim/site":                       "shim/declared shim/plan shim/record",
	"shim/supervise":                  "procmap/proctree seccompgen/filter shim/events shim/plan shim/record shim/wire",
	"shim/wire":                       "shim/plan shim/record",
}

// testImports is what tests take beyond that.
var testImports = map[string]string{
	"integration":        "integration/breakin integration/engine integration/inject shim/record",
	"procmap":            "procmap/internal/elftest",
	"procmap/elfstrings": "procmap/internal/elftest",
	"shim/bundle":        "seccompgen/filter shim/rootfs",
	"shim/runtime":       "shim/site",
}

// never are arrows that no path of imports may make.
var never = []struct{ from, to string }{
	// The runtime is started for every call of an engine: it must not pay for the
	// initialisation of what only a supervisor or a person's command needs.
	{"cmd/declarun", "google.golang.org/grpc"},
	{"cmd/declarun", "google.golang.org/protobuf"},
	{"cmd/declarun", "github.com/cilium/ebpf"},
	{"cmd/declarun", "github.com/containerd"},
	{"cmd/declarun", "github.com/moby"},
	{"cmd/declarun", "github.com/google/nftables"},
	{"cmd/declarun", "github.com/urfave/cli"},
	{"cmd/declarun", "github.com/BurntSushi/toml"},
	{"cmd/declarun", "mvdan.cc/sh"},
	{"cmd/declarun", "net/http"},
	// What decides knows nothing of what applies it.
	{"seccompgen", module + "shim/supervise"}, {"seccompgen", module + "cmd"},
	{"procmap", module + "shim/supervise"}, {"procmap", module + "cmd"},
	{"netpolicy", module + "shim/supervise"}, {"netpolicy", module + "cmd"},
	{"shim", module + "cmd"}, {"shim", module + "integration"}, {"cmd", module + "integration"},
}

// pkg is what "go list -json" says of a package.
type pkg struct {
	ImportPath, Name                         string
	Standard                                 bool
	Imports, TestImports, XTestImports, Deps []string
}

func goList(t *testing.T, args ...string) []pkg {
	t.Helper()
	need.Program(t, "go")
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Name,Standard,Imports,TestImports,XTestImports,Deps"}, args...)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v: %s", err, stderr.String())
	}
	var all []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

// ours are the module's own of a list of imports, without its name.
func ours(imports []string) []string {
	var own []string
	for _, i := range imports {
		if name, ok := strings.CutPrefix(i, module); ok {
			own = append(own, name)
		}
	}
	slices.Sort(own)
	return slices.Compact(own)
}

func TestImportsAreThoseOfTheTable(t *testing.T) {
	seen, seenTests := map[string]bool{}, map[string]bool{}
	for _, p := range goList(t, "./...") {
		name := strings.TrimPrefix(p.ImportPath, module)
		seen[name] = true
		want, listed := allowedImports[name]
		if !listed {
			t.Errorf("%s is in no table: decide what it may import (it imports %q)", name, ours(p.Imports))
			continue
		}
		imports := ours(p.Imports)
		compare(t, name, imports, strings.Fields(want))
		var extra []string
		for _, i := range ours(append(p.TestImports, p.XTestImports...)) {
			if !slices.Contains(imports, i) && i != name && i != "integration/need" {
				extra = append(extra, i)
			}
		}
		compare(t, name+" (tests)", extra, strings.Fields(testImports[name]))
		seenTests[name] = true
	}
	for name := range allowedImports {
		if !seen[name] {
			t.Errorf("%s is in the table, and not in the tree", name)
		}
	}
	for name := range testImports {
		if !seenTests[name] {
			t.Errorf("%s is in the table of tests, and not in the tree", name)
		}
	}
}

func compare(t *testing.T, name string, got, want []string) {
	t.Helper()
	for _, i := range got {
		if !slices.Contains(want, i) {
			t.Errorf("%s → %s is a new arrow", name, i)
		}
	}
	for _, i := range want {
		if !slices.Contains(got, i) {
			t.Errorf("%s → %s is an arrow no more", name, i)
		}
	}
}

func TestImportsThatMustNeverBe(t *testing.T) {
	within := func(p, tree string) bool { return p == tree || strings.HasPrefix(p, strings.TrimSuffix(tree, "/")+"/") }
	all := goList(t, "./...")
	for _, rule := range never {
		used := false
		for _, p := range all {
			if !within(strings.TrimPrefix(p.ImportPath, module), rule.from) {
				continue
			}
			used = true
			// A prefix without a version, such as urfave/cli, covers all of them.
			for _, d := range p.Deps {
				if within(d, rule.to) {
					t.Errorf("%s imports %s", p.ImportPath, d)
				}
			}
		}
		if !used {
			t.Errorf("no package in %s", rule.from)
		}
	}
}

// The shared nouns and the plan can be read without anything else.
func TestImportsOfNounsAreTheStandardLibrary(t *testing.T) {
	for _, p := range goList(t, "-deps", "./shim/record", "./shim/plan") {
		if !p.Standard && p.ImportPath != module+"shim/record" && p.ImportPath != module+"shim/plan" {
			t.Errorf("they import %s", p.ImportPath)
		}
	}
}

// The table would not be worth much if it were not held against something wrong.
func TestImportsCheckFails(t *testing.T) {
	if got := ours([]string{"fmt", module + "shim/wire", module + "cmd/x", module + "shim/wire"}); !slices.Equal(got, []string{"cmd/x", "shim/wire"}) {
		t.Errorf("%q", got)
	}
}

// goFiles parses every Go file of the module.
func goFiles(t *testing.T, mode parser.Mode, each func(path string, f *ast.File)) {
	t.Helper()
	n := 0
	err := filepath.WalkDir("..", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && path != ".." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return fs.SkipDir
		}
		if !d.Type().IsRegular() || filepath.Ext(path) != ".go" {
			return nil
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, mode)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		n++
		rel, err := filepath.Rel("..", path)
		each(filepath.ToSlash(rel), f)
		return err
	})
	if err != nil || n == 0 {
		t.Fatalf("%d files: %v", n, err)
	}
}

// unsafeTests are tests that hand structures to the kernel themselves. Programs
// have no such list: unsafe is in files of that name.
var unsafeTests = []string{
	"seccompgen/filter/kernel_linux_test.go",
	"shim/bundle/runc_linux_test.go",
	"shim/runtime/blackbox_linux_test.go",
	"shim/supervise/world_linux_test.go",
}

func TestImportsOfUnsafe(t *testing.T) {
	listed := map[string]bool{}
	goFiles(t, parser.ImportsOnly, func(path string, f *ast.File) {
		for _, i := range f.Imports {
			if i.Path.Value != `"unsafe"` || strings.Contains(filepath.Base(path), "_unsafe") {
				continue
			}
			if !slices.Contains(unsafeTests, path) {
				t.Errorf("%s imports unsafe: move that part to a file named *_unsafe_linux.go", path)
			}
			listed[path] = true
		}
	})
	for _, path := range unsafeTests {
		if !listed[path] || !strings.HasSuffix(path, "_test.go") {
			t.Errorf("%s is listed, and not a test that imports unsafe", path)
		}
	}
}

// skips are tests that may skip other than through integration/need, and why.
var skips = map[string]string{
	"seccompgen/x86/objdump_test.go":         "go test -short leaves out the largest library; a second judge where the machine has what it judges",
	"seccompgen/analyse_linux_test.go":       "programs and libraries of the machine, in Debian's places",
	"seccompgen/coarse_test.go":              "libraries of the machine, in Debian's places",
	"seccompgen/observed_linux_test.go":      "one program of the machine of many",
	"netpolicy/watch_linux_test.go":          "a kernel without NFQUEUE holds no answers: the weaker way has a test of its own",
	"procmap/fuzz_test.go":                   "inputs beyond the size that is of interest",
	"procmap/guard/guard_linux_test.go":      "programs of the machine that a jail is furnished with, and a file system that not every kernel has",
	"procmap/sensor/sensor_linux_test.go":    "one kind of probe of several: doctor says which this kernel has",
	"shim/supervise/supervise_linux_test.go": "go test -short starts no hundred containers",
	"shim/supervise/memfd_linux_test.go":     "Linux before 6.3 has no vm.memfd_noexec",
	"shim/supervise/world_linux_test.go":     "the filter that the test loads is written for one architecture",
}

// A test that skips where nobody looks tests nothing.
func TestImportsNoSkips(t *testing.T) {
	found := map[string]bool{}
	goFiles(t, 0, func(path string, f *ast.File) {
		if strings.HasPrefix(path, "integration/need/") {
			return
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			s, ok := call.Fun.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && slices.Contains([]string{"t", "b", "f", "tb"}, x.Name) && slices.Contains([]string{"Skip", "Skipf", "SkipNow"}, s.Sel.Name) {
				found[path] = true
			}
			return true
		})
	})
	for path := range found {
		if skips[path] == "" {
			t.Errorf("%s skips a test: let integration/need decide, so that it fails where the need is required", path)
		}
	}
	for path := range skips {
		if !found[path] {
			t.Errorf("%s is listed, and skips nothing", path)
		}
	}
}

// The top level is fixed: room is found inside.
func TestImportsTopLevel(t *testing.T) {
	allowed := strings.Fields("cmd shim seccompgen netpolicy procmap integration go.mod go.sum Makefile README.md LICENSE CHANGELOG.md")
	untracked := strings.Fields("bin") // make build; in .gitignore
	entries, err := os.ReadDir("..")
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := os.ReadFile("../.gitignore")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range untracked {
		if !slices.ContainsFunc(strings.Fields(string(ignored)), func(l string) bool { return strings.Trim(l, "/") == name }) {
			t.Errorf(".gitignore lacks %s", name)
		}
	}
	there := map[string]bool{}
	for _, e := range entries {
		there[e.Name()] = true
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(allowed, e.Name()) && !slices.Contains(untracked, e.Name()) {
			t.Errorf("%s at the top level", e.Name())
		}
	}
	for _, name := range allowed {
		if !there[name] && name != "README.md" && name != "CHANGELOG.md" {
			t.Errorf("no %s at the top level", name)
		}
	}
	if t.Failed() {
		t.Log(fmt.Sprint(slices.Sorted(maps.Keys(there))))
	}
}
