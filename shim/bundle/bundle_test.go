package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

var update = flag.Bool("update", false, "write the golden files")

func parse(t testing.TB, raw string) *Spec {
	t.Helper()
	s, err := Parse([]byte(raw))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// config is what dockerd 20.10 wrote, plain and with --read-only,
// --cap-add SYS_ADMIN, a volume and a tmpfs.
func config(t testing.TB, name string) *Spec {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return parse(t, string(b))
}

func enforced() *plan.Plan {
	return &plan.Plan{
		Mode: map[record.Dimension]record.Mode{record.Syscalls: record.Enforce, record.Processes: record.Enforce, record.Storage: record.Enforce},
		Storage: plan.Storage{ReadonlyRoot: true, Writable: []plan.Writable{
			{Path: "/var/log/app"}, {Path: "/tmp"}, {Path: "/var/log"}, {Path: "/dev/shm"}, {Path: "/data", Mounted: true}}},
		Capabilities: []plan.Capability{{Name: "CAP_CHOWN"}, {Name: "CAP_SETUID"}, {Name: "CAP_SETGID"}},
	}
}

func options() Options {
	return Options{Bundle: "/run/b", Resolve: func(p string) (string, error) { return p, nil },
		CreateRuntimeHooks: []specs.Hook{{Path: "/usr/bin/declarun", Args: []string{"declarun", "__guard", "--token", "t"}}},
		Seccomp:            &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: []specs.Arch{specs.ArchX86_64}, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActAllow}}},
		NoNewPrivileges:    true}
}

func indented(t testing.TB, raw []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		t.Fatal(err)
	}
	b.WriteByte('\n')
	return b.Bytes()
}

func TestGolden(t *testing.T) {
	names, _ := filepath.Glob("testdata/*.json")
	if len(names) == 0 {
		t.Fatal("no golden files")
	}
	for _, name := range names {
		name = strings.TrimSuffix(filepath.Base(name), ".json")
		t.Run(name, func(t *testing.T) {
			s := config(t, name)
			e, err := FromPlan(enforced(), s, options())
			if err != nil {
				t.Fatal(err)
			}
			out, err := s.Apply(e)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".golden")
			got := indented(t, out)
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s:\n%s", golden, got)
			}
			if _, err := Parse(out); err != nil {
				t.Errorf("parse what was written: %v", err)
			}
		})
	}
}

func TestNothingElseChanges(t *testing.T) {
	raw := `{ "zzz":{"b":1,"a":[1.50, 18446744073709551615,{"deep":-0.0e+5}]},
	  "ociVersion" : "1.0.2", "process":{"args":["a"],"new":18446744073709551615,"capabilities":{"future":["CAP_X"],"bounding":["CAP_X","CAP_Y"]}},
	  "root":{"path":"r","x":"\u00e9\/\"<&>"}, "linux":{"resources":{"memory":{"limit":9223372036854775807}},"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}},"mounts":[ {"destination":"/a","uidMappings":[{"hostID":4294967295}] } ]}`
	s := parse(t, raw)
	if out, err := s.Apply(Edit{}); err != nil || string(out) != raw {
		t.Errorf("no edit: %s %v", out, err)
	}
	yes := true
	out, err := s.Apply(Edit{ReadonlyRoot: &yes, DropCapabilities: []string{"CAP_X"}, NoNewPrivileges: &yes,
		MountOptions: map[int][]string{0: {"noexec"}}, SelfBinds: []SelfBind{{Path: "/t", Source: "/b/r/t"}}})
	if err != nil {
		t.Fatal(err)
	}
	want := `{"zzz":{"b":1,"a":[1.50, 18446744073709551615,{"deep":-0.0e+5}]},"ociVersion":"1.0.2",` +
		`"process":{"args":["a"],"new":18446744073709551615,"capabilities":{"future":["CAP_X"],"bounding":["CAP_Y"]},"noNewPrivileges":true},` +
		`"root":{"path":"r","x":"\u00e9\/\"<&>","readonly":true},"linux":{"resources":{"memory":{"limit":9223372036854775807}},"seccomp":{"defaultAction":"SCMP_ACT_ALLOW"}},` +
		`"mounts":[{"destination":"/t","type":"bind","source":"/b/r/t","options":["bind","rw","nosuid","nodev","noexec"]},{"destination":"/a","uidMappings":[{"hostID":4294967295}],"options":["noexec"]}]}`
	if string(out) != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
}

func TestParseRefuses(t *testing.T) {
	for _, row := range []struct{ claim, raw, pointer string }{
		{"nothing", ``, ""},
		{"not an object", `[]`, ""},
		{"null", `null`, ""},
		{"cut off", `{"process":{"args":["a"`, "/process/args/1"},
		{"a syntax error deep inside", `{"linux":{"resources":{"memory":{"limit":}}}}`, "/linux/resources/memory/limit"},
		{"more after the end", `{} {}`, ""},
		{"a key twice", `{"mounts":[{},{"type":"a","type":"b"}]}`, "/mounts/1/type"},
		{"a key twice, spelled differently", `{"process":{"args":[],"arg\u0073":[]}}`, "/process/args"},
		{"a key twice up to letter case", `{"process":{},"Process":{}}`, "/Process"},
		{"a key twice up to folding", `{"process":{},"proce\u017fs":{}}`, "/proceſs"},
		{"a key with a slash", `{"a/b~":{"c":1,"c":2}}`, "/a~1b~0/c"},
		{"the wrong type", `{"process":{"args":{}}}`, "/process/args"},
		{"a number where a string belongs", `{"root":{"path":1}}`, "/root/path"},
		{"nested too deeply", `{"x":` + strings.Repeat("[", 200) + strings.Repeat("]", 200) + `}`, "/x" + strings.Repeat("/0", MaxDepth)},
		{"too large", `{"x":"` + strings.Repeat("a", MaxSize) + `"}`, ""},
	} {
		s, err := Parse([]byte(row.raw))
		var e *Error
		if err == nil || s != nil || !errors.As(err, &e) {
			t.Errorf("%s: %v %v", row.claim, s, err)
			continue
		}
		if e.Pointer != row.pointer {
			t.Errorf("%s: %v: at %q, want %q", row.claim, err, e.Pointer, row.pointer)
		}
		if len(err.Error()) > 2000 {
			t.Errorf("%s: %d bytes of error", row.claim, len(err.Error()))
		}
	}
}

func TestApplyRefuses(t *testing.T) {
	yes := true
	for _, row := range []struct {
		claim, raw string
		edit       Edit
		pointer    string
	}{
		{"an edited object with a key twice up to letter case", `{"linux":{"seccomp":null,"SECCOMP":null}}`, Edit{Seccomp: &specs.LinuxSeccomp{}}, "/linux/SECCOMP"},
		{"options for a mount that is not there", `{"mounts":[]}`, Edit{MountOptions: map[int][]string{0: {"noexec"}}}, "/mounts/0"},
		{"a mount that is null", `{"mounts":[null]}`, Edit{MountOptions: map[int][]string{1: {"noexec"}}, ReadonlyRoot: &yes}, "/mounts/1"},
	} {
		out, err := parse(t, row.raw).Apply(row.edit)
		var e *Error
		if !errors.As(err, &e) || out != nil || e.Pointer != row.pointer {
			t.Errorf("%s: %s %v", row.claim, out, err)
		}
	}
	if _, err := new(Spec).Apply(Edit{}); err == nil {
		t.Error("a Spec that was not parsed")
	}
}

func TestMissingParentsAreMade(t *testing.T) {
	yes := true
	out, err := parse(t, `{"hooks":null}`).Apply(Edit{ReadonlyRoot: &yes, Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
		CreateRuntimeHooks: []specs.Hook{{Path: "/h"}}, MaskedPaths: []string{"/m"}, ReadonlyPaths: []string{"/r"}})
	want := `{"hooks":{"createRuntime":[{"path":"/h"}]},"root":{"readonly":true},"linux":{"seccomp":{"defaultAction":"SCMP_ACT_ERRNO"},"maskedPaths":["/m"],"readonlyPaths":["/r"]}}`
	if err != nil || string(out) != want {
		t.Errorf("%s %v", out, err)
	}
}

func TestAKeyInAnotherLetterCaseIsTheField(t *testing.T) {
	yes := true
	out, err := parse(t, `{"ROOT":{"ReadOnly":false}}`).Apply(Edit{ReadonlyRoot: &yes})
	if err != nil || string(out) != `{"ROOT":{"ReadOnly":true}}` {
		t.Errorf("%s %v", out, err)
	}
}

func TestHooksAreAppended(t *testing.T) {
	out, err := parse(t, `{"hooks":{"prestart":[{"path":"/p"}],"createRuntime":[{"path":"/theirs","x":1}]}}`).Apply(Edit{CreateRuntimeHooks: []specs.Hook{{Path: "/ours"}}})
	if err != nil || string(out) != `{"hooks":{"prestart":[{"path":"/p"}],"createRuntime":[{"path":"/theirs","x":1},{"path":"/ours"}]}}` {
		t.Errorf("%s %v", out, err)
	}
}

func TestFromPlan(t *testing.T) {
	mount := func(dest, typ string, opts ...string) specs.Mount {
		return specs.Mount{Destination: dest, Type: typ, Options: opts}
	}
	s := &Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: []specs.Mount{
		0:  mount("/proc", "proc"),
		1:  mount("/dev/shm", "tmpfs", "nosuid"),
		2:  mount("/data", "bind", "rbind"),
		3:  mount("/conf", "bind", "rbind", "ro"),
		4:  mount("/once", "bind", "ro", "rw"),
		5:  mount("/noexec", "tmpfs", "noexec", "nosuid", "nodev"),
		6:  mount("/exec", "tmpfs", "exec"),
		7:  mount("/suid", "", "bind", "suid", "dev"),
		8:  mount("/planned/", "bind", "bind"),
		9:  mount("/rro", "bind", "rbind", "rro"),
		10: mount("/cg", "cgroup2"),
		11: mount("/fake", "proc", "bind"),
		12: mount("/sys/fs/x", "tmpfs"),
	}}
	p := enforced()
	p.Storage.Writable = []plan.Writable{
		{Path: "/planned", Mounted: true, Exec: true},
		{Path: "/var/lib/app/x"}, {Path: "/var/lib/app"}, {Path: "/var/lib/app-2"}, {Path: "/data/sub"}, {Path: "/once"}, {Path: "/proc/x"},
		{Path: "/opt/jit", Exec: true}, {Path: "/opt/jit/data"}, {Path: "/opt/jit/data/more"}, {Path: "/tmp/"}, {Path: "/tmp"},
		{Path: "/home/app", Holds: true}, {Path: "/srv/made", Maps: true}, {Path: "/srv/made/data"}, {Path: "/suid", Mounted: true, Maps: true},
	}
	e, err := FromPlan(p, s, options())
	if err != nil {
		t.Fatal(err)
	}
	all := []string{"noexec", "nosuid", "nodev"}
	want := map[int][]string{1: all[:1], 2: all, 4: all, 6: all[1:], 8: all[1:], 11: all, 12: all[:2]}
	if !reflect.DeepEqual(e.MountOptions, want) {
		t.Errorf("mount options %v, want %v", e.MountOptions, want)
	}
	binds := []SelfBind{
		{"/home/app", "/run/b/rootfs/home/app", true},
		{"/opt/jit", "/run/b/rootfs/opt/jit", true}, {"/opt/jit/data", "/run/b/rootfs/opt/jit/data", false},
		{"/srv/made", "/run/b/rootfs/srv/made", true}, {"/srv/made/data", "/run/b/rootfs/srv/made/data", false},
		{"/tmp", "/run/b/rootfs/tmp", false},
		{"/var/lib/app", "/run/b/rootfs/var/lib/app", false}, {"/var/lib/app-2", "/run/b/rootfs/var/lib/app-2", false},
	}
	if !slices.Equal(e.SelfBinds, binds) {
		t.Errorf("self binds %v, want %v", e.SelfBinds, binds)
	}
	if e.ReadonlyRoot == nil || !*e.ReadonlyRoot {
		t.Error("the root stays writable")
	}

	o := options()
	o.RecursiveMounts = true
	if e, err = FromPlan(p, s, o); err != nil || !slices.Equal(e.MountOptions[2], []string{"noexec", "rnoexec", "nosuid", "rnosuid", "nodev", "rnodev"}) || !slices.Equal(e.MountOptions[4], all) {
		t.Errorf("recursive: %v %v", e.MountOptions, err)
	}
	if !slices.Equal(e.MountOptions[3], []string{"rro"}) || e.MountOptions[9] != nil {
		t.Errorf("what is mounted below a read-only mount: %v", e.MountOptions)
	}

	s.Root.Readonly = true
	if e, err = FromPlan(p, s, options()); err != nil || e.SelfBinds != nil || e.ReadonlyRoot != nil || e.MountOptions == nil {
		t.Errorf("an operator's --read-only makes the whole root read-only: %+v %v", e, err)
	}
	s.Root.Readonly = false
	nothing := func(m record.Mode) func(*plan.Plan) {
		return func(p *plan.Plan) { p.Mode[record.Storage], p.Mode[record.Processes] = m, m }
	}
	for claim, change := range map[string]func(*plan.Plan){
		"audit":                              nothing(record.Audit),
		"off":                                nothing(record.Off),
		"a bundle that declares its root so": func(p *plan.Plan) { p.Storage.ReadonlyRoot = false },
	} {
		p := enforced()
		change(p)
		if e, err = FromPlan(p, s, options()); err != nil || e.SelfBinds != nil || e.ReadonlyRoot != nil || e.MountOptions != nil || e.Seccomp == nil {
			t.Errorf("%s: %+v %v", claim, e, err)
		}
	}
	p = enforced()
	p.Storage.Writable = []plan.Writable{{Path: "/tmp"}, {Path: "/planned", Mounted: true, Exec: true}}
	p.Mode[record.Storage] = record.Audit
	if e, err = FromPlan(p, s, options()); err != nil || e.SelfBinds != nil || e.ReadonlyRoot != nil || !slices.Equal(e.MountOptions[2], []string{"noexec", "nosuid"}) {
		t.Errorf("programs are not executed from mounts because writing is only audited: %+v %v", e, err)
	}
	p.Mode[record.Storage], p.Mode[record.Processes] = record.Enforce, record.Audit
	if e, err = FromPlan(p, s, options()); err != nil || e.ReadonlyRoot == nil || !slices.Equal(e.MountOptions[2], []string{"nodev"}) ||
		!slices.Equal(e.SelfBinds, []SelfBind{{"/tmp", "/run/b/rootfs/tmp", true}}) {
		t.Errorf("a read-only root stops no program where programs are only audited: %+v %v", e, err)
	}
	p = enforced()
	p.Mode = nil
	if e, err = FromPlan(p, s, options()); err != nil || e.ReadonlyRoot == nil {
		t.Errorf("an undecided mode enforces: %+v %v", e, err)
	}
}

func TestNothingThatIsWrittenIsExecuted(t *testing.T) {
	bind := func(source, dest string, opts ...string) specs.Mount {
		return specs.Mount{Destination: dest, Source: source, Type: "bind", Options: append([]string{"rbind"}, opts...)}
	}
	p := enforced()
	p.Processes = []plan.Process{{Path: "/entry.sh"}}
	s := &Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: []specs.Mount{
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755"}},
		{Destination: "/dev/pts", Type: "devpts"},
		bind("/var/lib/engine/volumes/x", "/dev/data"),
		bind("/dev/snd", "/dev/snd"),
		bind("/srv/app", "/app"),
		bind("/srv/app/plugins", "/plugins", "ro"),
		bind("/srv", "/all", "ro"),
		bind("/srv/app/entry.sh", "/entry.sh", "ro"), // the operator's program
		bind("/srv/apple", "/apple", "ro"),
	}}
	e, err := FromPlan(p, s, options())
	if err != nil {
		t.Fatal(err)
	}
	want := map[int][]string{
		0: {"noexec"}, 2: {"noexec", "nosuid"}, 3: {"noexec", "nosuid"}, // their devices can be opened
		4: {"noexec", "nosuid", "nodev"}, 5: {"noexec"}, 6: {"noexec"},
	}
	if !reflect.DeepEqual(e.MountOptions, want) {
		t.Errorf("mount options %v, want %v", e.MountOptions, want)
	}
}

func TestFromPlanRefuses(t *testing.T) {
	for claim, change := range map[string]func(*plan.Plan, *Spec, *Options){
		"a link in the image": func(_ *plan.Plan, _ *Spec, o *Options) {
			o.Resolve = func(string) (string, error) { return "/etc", nil }
		},
		"a path that is missing": func(_ *plan.Plan, _ *Spec, o *Options) {
			o.Resolve = func(string) (string, error) { return "", os.ErrNotExist }
		},
		"nobody to resolve":       func(_ *plan.Plan, _ *Spec, o *Options) { o.Resolve = nil },
		"the whole root writable": func(p *plan.Plan, _ *Spec, _ *Options) { p.Storage.Writable = []plan.Writable{{Path: "/"}} },
		"a relative bundle":       func(_ *plan.Plan, s *Spec, o *Options) { s.Root.Path, o.Bundle = "rootfs", "" },
		"no root":                 func(_ *plan.Plan, s *Spec, _ *Options) { s.Root = nil },
	} {
		p, s, o := enforced(), config(t, "docker"), options()
		change(p, s, &o)
		if e, err := FromPlan(p, s, o); err == nil {
			t.Errorf("%s: %+v", claim, e)
		}
	}
	if _, err := FromPlan(nil, nil, Options{}); err == nil {
		t.Error("no plan")
	}
}

// FuzzApply: nothing panics, and what an edit does not name stays as another
// reader of JSON sees it.
func FuzzApply(f *testing.F) {
	for _, name := range []string{"docker", "docker-readonly"} {
		b, err := os.ReadFile("testdata/" + name + ".json")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	for _, s := range []string{`{}`, `{"a":1e999,"mounts":[{"options":null}],"process":{"capabilities":{"bounding":["CAP_X"]}}}`, `{"root":null,"linux":{},"hooks":{}}`,
		"{\"\\ud800\":[ ] , \"mounts\" : [ { } , null ] }", `{"root":{"path":"x","y":18446744073709551615}}`, `{"":{"":"\\\""}}`} {
		f.Add([]byte(s))
	}
	yes := true
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := Parse(raw)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error without a place: %v", err)
			}
			return
		}
		if e, err := FromPlan(enforced(), s, options()); err == nil {
			if _, err := s.Apply(e); err != nil {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("error without a place: %v", err)
				}
			}
		}
		out, err := s.Apply(Edit{ReadonlyRoot: &yes, SelfBinds: []SelfBind{{Path: "/p", Source: "/s"}}, Seccomp: &specs.LinuxSeccomp{DefaultAction: specs.ActErrno},
			DropCapabilities: []string{"CAP_X"}, CreateRuntimeHooks: []specs.Hook{{Path: "/h"}}, MaskedPaths: []string{"/m"}})
		if err != nil {
			return
		}
		if err := check(out); err != nil {
			t.Fatalf("wrote what it would not read: %v\n%s", err, out)
		}
		before, after := generic(t, raw), generic(t, out)
		for _, m := range []map[string]any{before, after} {
			forget(m, "root", "readonly")
			forget(m, "mounts")
			forget(m, "linux", "seccomp")
			forget(m, "linux", "maskedPaths")
			forget(m, "hooks", "createRuntime")
			forget(m, "process", "capabilities")
		}
		if !reflect.DeepEqual(before, after) {
			t.Fatalf("changed more than asked:\n%s\n%s", raw, out)
		}
	})
}

func generic(t *testing.T, raw []byte) map[string]any {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	m := make(map[string]any)
	if err := d.Decode(&m); err != nil {
		t.Fatal(err)
	}
	return m
}

// forget takes out what an edit names, and objects that were made for it.
func forget(v any, path ...string) {
	m, ok := v.(map[string]any)
	if !ok {
		return
	}
	for k, child := range m {
		if !strings.EqualFold(k, path[0]) {
			continue
		}
		if len(path) == 1 {
			delete(m, k)
			continue
		}
		forget(child, path[1:]...)
		if c, ok := child.(map[string]any); child == nil || ok && len(c) == 0 {
			delete(m, k)
		}
	}
}

func BenchmarkApply(b *testing.B) {
	raw, err := os.ReadFile("testdata/docker.json")
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		s, err := Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		e, err := FromPlan(enforced(), s, options())
		if err != nil {
			b.Fatal(err)
		}
		if _, err := s.Apply(e); err != nil {
			b.Fatal(err)
		}
	}
}
