package site

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/record"
)

func TestParse(t *testing.T) {
	c, err := Parse([]byte(`
mode = "audit"
runc = "/usr/bin/runc"
on-failure = "audit"
exclude = ["docker.io/library/*", "registry.example/base/*:1"]
allow-override = false
honour-unconfined = false
state-dir = "/var/run/d/"
[modes]
network = "off"
syscalls = "enforce"
[admission.rules]
privileged = "deny"
"apt-never-updated" = "off"
`))
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	for d := range want.Modes {
		want.Modes[d] = record.Audit
	}
	want.Modes[record.Network], want.Modes[record.Syscalls] = record.Off, record.Enforce
	want.Runc, want.OnFailure, want.AllowOverride, want.HonourUnconfined = "/usr/bin/runc", record.Audit, false, false
	want.Exclude = []string{"docker.io/library/*", "registry.example/base/*:1"}
	want.StateDir, want.Socket = "/var/run/d", "/var/run/d/declarun.sock"
	want.AdmissionRules = map[string]Rule{"privileged": RuleDeny, "apt-never-updated": RuleOff}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("%+v\nwant %+v", c, want)
	}
}

func TestLoad(t *testing.T) {
	c, err := Load(filepath.Join(t.TempDir(), "none"))
	if err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("a missing file: %+v, %v", c, err)
	}
	name := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(name, []byte("mode = \"off\"\nbroken"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err = Load(name)
	var e *Error
	if !errors.As(err, &e) || !strings.Contains(e.Remedy(), name) || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a malformed file: %v", err)
	}
	if _, err := Load(t.TempDir()); err == nil {
		t.Error("a directory is read as a file")
	}
}

func TestErrorsNameKeyAndLine(t *testing.T) {
	for _, row := range []struct{ claim, file, wants string }{
		{"an unknown key", "mode = \"audit\"\nmodus = 1\n", `line 2: unknown key "modus"`},
		{"an unknown key in a table", "[modes]\n\nsyscall = \"audit\"\n", `line 3: unknown key "modes.syscall"`},
		{"an unknown table", "[mode-s]\nx = 1\n", `line 1: unknown key "mode-s"`},
		{"a misspelt mode", "\nmode = \"enforced\"\n", `line 2: mode: parse mode "enforced"`},
		{"a misspelt mode of a dimension", "[modes]\nnetwork = \"\"\n", `line 2: modes.network`},
		{"an empty mode", "mode = \"\"\n", `line 1: mode is empty`},
		{"a failure that is off", "on-failure = \"off\"\n", `line 1: on-failure`},
		{"a relative path", "runc = \"runc\"\n", `line 1: runc = "runc": want an absolute path`},
		{"a malformed pattern", "exclude = [\"a[\"]\n", `line 1: exclude: pattern "a["`},
		{"an unknown finding", "[admission.rules]\nprivilege = \"deny\"\n", `line 2: unknown key "admission.rules.privilege"`},
		{"an unknown rule", "[admission.rules]\nprivileged = \"refuse\"\n", `line 2: admission.rules.privileged = "refuse"`},
		{"a value of the wrong kind", "allow-override = \"yes\"\n", "allow-override"},
		{"a key twice", "mode = \"off\"\nmode = \"audit\"\n", "line 2"},
		{"a socket too long", "socket = \"/" + strings.Repeat("a", 107) + "\"\n", "longer than a unix socket"},
		{"a huge file", strings.Repeat("#\n", maxSize), "larger than"},
	} {
		_, err := Parse([]byte(row.file))
		if err == nil || !strings.Contains(err.Error(), row.wants) {
			t.Errorf("%s: %v: does not say %q", row.claim, err, row.wants)
		}
	}
}

// The example, with every line taken out of its comment, is the defaults.
func TestExampleIsTheDefaults(t *testing.T) {
	if c, err := Parse(Example); err != nil || !reflect.DeepEqual(c, Defaults()) {
		t.Errorf("as it is: %+v, %v", c, err)
	}
	var b bytes.Buffer
	sc := bufio.NewScanner(bytes.NewReader(Example))
	for sc.Scan() {
		line := sc.Text()
		if rest, ok := strings.CutPrefix(line, "#"); ok && !strings.HasPrefix(rest, " ") {
			line = rest
		}
		b.WriteString(line + "\n")
	}
	c, err := Parse(b.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	want := Defaults()
	want.Runc, want.Exclude = "/usr/bin/runc", []string{}
	want.AdmissionRules = map[string]Rule{}
	for _, id := range Findings() {
		want.AdmissionRules[id] = RuleWarn
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("uncommented: %+v\nwant %+v", c, want)
	}
}

func TestExcluded(t *testing.T) {
	c := &Config{Exclude: []string{"pause*", "registry.example/*/*:1", "docker.io/library/x:1"}}
	for ref, want := range map[string]bool{
		"docker.io/library/pause:3": true, "pause:3": true, "registry.example/a/b:1": true, "registry.example/a/b/c:1": false,
		"docker.io/library/x:1": true, "postgres": false, "": false, "evil/pause": false,
	} {
		if _, got := c.Excluded(ref); got != want {
			t.Errorf("%q: %v", ref, got)
		}
	}
}

func TestEffectiveModes(t *testing.T) {
	type labels = map[string]string
	label := func(l labels) func(*declared.Declared) { return func(d *declared.Declared) { d.Operator.Labels = l } }
	for _, row := range []struct {
		claim string
		site  string
		is    func(*declared.Declared)
		want  string // syscalls processes storage network admission
		note  string
	}{
		{"defaults", ``, nil, "enforce enforce enforce enforce enforce", ""},
		{"the site's", "mode=\"audit\"\n[modes]\nnetwork=\"off\"", nil, "audit audit audit off audit", ""},
		{"the operator's label for all", ``, label(labels{"io.declarun.mode": "audit"}), "audit audit audit audit audit", "label io.declarun.mode"},
		{"the one for a dimension comes first", ``, label(labels{"io.declarun.mode": "off", "io.declarun.mode.network": "enforce"}), "off off off enforce off", ""},
		{"an annotation", ``, func(d *declared.Declared) { d.Annotations = labels{"io.declarun.mode.storage": "off"} }, "enforce enforce off enforce enforce", "annotation"},
		{"labels come before annotations", ``, func(d *declared.Declared) {
			d.Annotations, d.Operator.Labels = labels{"io.declarun.mode": "off"}, labels{"io.declarun.mode": "audit"}
		}, "audit audit audit audit audit", ""},
		{"an image's label loosens nothing", ``, func(d *declared.Declared) { d.Image.Labels = labels{"io.declarun.mode": "off"} }, "enforce enforce enforce enforce enforce", "image's own label"},
		{"nor tightens", `mode="off"`, func(d *declared.Declared) { d.Image.Labels = labels{"io.declarun.mode.network": "enforce"} }, "off off off off off", "image's own label"},
		{"nor as an annotation", ``, func(d *declared.Declared) {
			d.Image.Labels, d.Annotations = labels{"io.declarun.mode": "off"}, labels{"io.declarun.mode": "off"}
		}, "enforce enforce enforce enforce enforce", "image's own label"},
		{"the operator may overrule an image's label", ``, func(d *declared.Declared) {
			d.Image.Labels, d.Operator.Labels = labels{"io.declarun.mode": "off"}, labels{"io.declarun.mode": "audit"}
		}, "audit audit audit audit audit", ""},
		{"no weaker mode where the site allows none", `allow-override=false`, label(labels{"io.declarun.mode": "audit"}), "enforce enforce enforce enforce enforce", "allows no weaker"},
		{"a stricter one always", "allow-override=false\nmode=\"audit\"", label(labels{"io.declarun.mode": "enforce"}), "enforce enforce enforce enforce enforce", ""},
		{"--privileged is audit, and judged", ``, func(d *declared.Declared) { d.Operator.Privileged = true }, "audit audit audit audit enforce", "--privileged"},
		{"--privileged does not switch on what is off", `mode="off"`, func(d *declared.Declared) { d.Operator.Privileged = true }, "off off off off off", ""},
		{"seccomp=unconfined is about system calls", ``, func(d *declared.Declared) { d.Operator.Unconfined = true }, "audit enforce enforce enforce enforce", "seccomp=unconfined"},
	} {
		t.Run(row.claim, func(t *testing.T) {
			c, err := Parse([]byte(row.site))
			if err != nil {
				t.Fatal(err)
			}
			d := &declared.Declared{}
			if row.is != nil {
				row.is(d)
			}
			modes, notes, err := c.EffectiveModes(d)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, dim := range record.Dimensions() {
				got = append(got, string(modes[dim]))
			}
			if strings.Join(got, " ") != row.want {
				t.Errorf("%s, want %s", got, row.want)
			}
			var text []string
			for _, n := range notes {
				text = append(text, n.Text)
			}
			if !strings.Contains(strings.Join(text, "\n"), row.note) {
				t.Errorf("notes %q do not say %q", text, row.note)
			}
		})
	}
}

func TestEffectiveModesRefuses(t *testing.T) {
	strict, err := Parse([]byte("honour-unconfined = false"))
	if err != nil {
		t.Fatal(err)
	}
	for claim, op := range map[string]declared.Operator{"privileged": {Privileged: true}, "unconfined": {Unconfined: true}} {
		_, _, err := strict.EffectiveModes(&declared.Declared{Operator: op})
		var way interface{ Remedy() string }
		if !errors.Is(err, ErrRefused) || !errors.As(err, &way) {
			t.Errorf("%s: %v", claim, err)
		}
	}
	for _, l := range []map[string]string{{"io.declarun.mode": "ofF"}, {"io.declarun.mode": ""}, {"io.declarun.mode.netwrok": "off"}} {
		modes, _, err := Defaults().EffectiveModes(&declared.Declared{Operator: declared.Operator{Labels: l}})
		if err == nil {
			t.Errorf("%v is understood as %v", l, modes)
		}
	}
	// A configuration that nobody filled in enforces.
	modes, _, err := (&Config{}).EffectiveModes(&declared.Declared{})
	if err != nil || slices.ContainsFunc(record.Dimensions(), func(d record.Dimension) bool { return modes[d] != record.Enforce }) {
		t.Errorf("%v, %v", modes, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Example)
	f.Add([]byte("mode = \"audit\"\n[modes]\nsyscalls = \"off\"\n[admission.rules]\nprivileged=\"deny\"\n"))
	f.Add([]byte("[[modes]]\nx=1"))
	f.Add([]byte("a.b.c = 1"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if err != nil {
			return
		}
		for _, d := range record.Dimensions() {
			if _, err := record.ParseMode(string(c.Modes[d])); err != nil {
				t.Error(err)
			}
		}
		if c.OnFailure != record.Enforce && c.OnFailure != record.Audit {
			t.Error(c.OnFailure)
		}
	})
}
