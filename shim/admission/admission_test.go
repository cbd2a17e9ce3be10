package admission

import (
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
	"github.com/declarun/declarun/shim/site"
)

func history(lines ...string) declared.Image {
	img := declared.Image{Known: true}
	for i, l := range lines {
		in := declared.Instruction{Index: i, Raw: l}
		in.Keyword, in.Arguments = declared.ParseInstruction(l)
		img.History = append(img.History, in)
	}
	return img
}

var now = time.Date(2026, 8, 31, 12, 0, 0, 0, time.UTC)

func ids(a plan.Admission) (out []string) {
	for _, r := range a.Reasons {
		out = append(out, r.ID)
	}
	return out
}

func TestAptNeverUpdated(t *testing.T) {
	for _, row := range []struct {
		claim   string
		history []string
		at      int // -1: no finding
	}{
		{"updated in an instruction before", []string{"RUN apt-get update", "RUN apt-get install -y x"}, -1},
		{"updated in the same instruction", []string{"RUN set -eux; apt-get update && apt-get install -y x"}, -1},
		{"never updated", []string{"COPY a /", "RUN apt-get install -y x"}, 1},
		{"updated only afterwards", []string{"RUN apt-get install -y x && apt-get update"}, 0},
		{"updated only in a later instruction", []string{"RUN apt install x", "RUN apt update"}, 0},
		{"classic builder", []string{"/bin/sh -c #(nop) ADD file:a in / ", "/bin/sh -c apt-get install -y x"}, 1},
		{"BuildKit with build arguments", []string{"RUN |1 A=b /bin/sh -c apt-get -qq -o a=b install x # buildkit"}, 0},
		{"variables, sudo and env in front", []string{"RUN DEBIAN_FRONTEND=noninteractive sudo -E env A=b apt-get install x"}, 0},
		{"a shell in a shell", []string{`RUN bash -ec "apt-get update; apt-get install x"`}, -1},
		{"a shell in a shell that never updates", []string{`RUN bash -c 'apt-get install x'`}, 0},
		{"exec form, as the classic builder writes it", []string{"apt-get install x", "RUN true"}, 0},
		{"in a function and a condition", []string{"RUN f() { apt-get update; }; if true; then f; fi; apt-get install x"}, -1},
		{"quoted words are no command", []string{`RUN echo "apt-get install x"`, "RUN echo apt-get install"}, -1},
		{"a word that only begins like it", []string{"RUN apt-getter install x", "RUN apt-cache install"}, -1},
		{"upgrading counts as installing", []string{"RUN apt-get dist-upgrade -y"}, 0},
		{"removing does not", []string{"RUN apt-get purge x && apt-get clean"}, -1},
		{"apk needs lists of its own", []string{"RUN apt-get update", "RUN apk add x"}, 1},
		{"apk add --no-cache fetches them", []string{"RUN apk add --no-cache x"}, -1},
		{"apk -U fetches them", []string{"RUN apk -U add x", "RUN apk add y"}, -1},
		{"yum cannot be used without", []string{"RUN yum install -y x && dnf install -y y"}, -1},
		{"a script that is not shell", []string{"RUN ((( ; apt-get install x"}, 0},
		{"a here-document's text is no command", []string{"RUN cat > f <<EOF\napt-get install x\nEOF\n"}, -1},
		{"a here-document given to a shell is not followed", []string{"RUN sh <<EOF\napt-get install x\nEOF\n"}, -1},
	} {
		img := history(row.history...)
		a := Judge(&declared.Declared{Image: img}, nil, nil, now, nil)
		i := slices.Index(ids(a), AptNeverUpdated)
		if (i >= 0) != (row.at >= 0) {
			t.Errorf("%s: %+v", row.claim, a)
			continue
		}
		if i >= 0 && a.Reasons[i].Origins[0].At != img.History[row.at].Origin().At {
			t.Errorf("%s: origin %+v, want history[%d]", row.claim, a.Reasons[i].Origins, row.at)
		}
	}
}

func TestFindings(t *testing.T) {
	op := record.Origin{Source: record.FromOperator, At: "docker run -v"}
	mount := func(source string, ro bool) func(*declared.Declared) {
		return func(d *declared.Declared) {
			d.Mounts = append(d.Mounts, declared.Mount{Destination: "/x", Source: source, ReadOnly: ro, Origin: op})
		}
	}
	for _, row := range []struct {
		claim string
		is    func(*declared.Declared)
		os    map[string]string
		want  string
	}{
		{"an ordinary container", nil, map[string]string{"ID": "debian", "VERSION_ID": "12"}, ""},
		{"an old Debian", nil, map[string]string{"ID": "debian", "VERSION_ID": "10"}, DistributionEndOfLife},
		{"a Debian on its last day", nil, map[string]string{"ID": "debian", "VERSION_ID": "11"}, ""},
		{"an old Alpine, by its patch release", nil, map[string]string{"ID": "alpine", "VERSION_ID": "3.15.4"}, DistributionEndOfLife},
		{"a new Alpine", nil, map[string]string{"ID": "alpine", "VERSION_ID": "3.22.1"}, ""},
		{"an old Ubuntu", nil, map[string]string{"ID": "ubuntu", "VERSION_ID": "20.04"}, DistributionEndOfLife},
		{"a release nobody knows", nil, map[string]string{"ID": "debian", "VERSION_ID": "99"}, ""},
		{"another distribution", nil, map[string]string{"ID": "plan9", "VERSION_ID": "4"}, ""},
		{"privileged", func(d *declared.Declared) { d.Operator.Privileged = true }, nil, Privileged},
		{"the host's network", func(d *declared.Declared) { d.Network.Kind = declared.HostNet }, nil, HostNetwork},
		{"the host's processes", func(d *declared.Declared) { d.HostPID = true }, nil, HostPID},
		{"Docker's socket", mount("/var/run/docker.sock", true), nil, DockerSocketMount},
		{"containerd's socket", mount("/run/containerd/containerd.sock", false), nil, DockerSocketMount},
		{"the host's root", mount("/", true), nil, SensitiveHostPath},
		{"/etc to write", mount("/etc/", false), nil, SensitiveHostPath},
		{"/etc to read", mount("/etc", true), nil, ""},
		{"some other directory", mount("/srv/www", false), nil, ""},
		{"the engine's own mounts", func(d *declared.Declared) {
			d.Mounts = []declared.Mount{{Source: "/dev", Origin: record.Origin{Source: record.FromEngine}}}
		}, nil, ""},
		{"an image without history", func(d *declared.Declared) { d.Image.History = nil }, nil, UnknownHistory},
		{"an image that tells nothing of itself", func(d *declared.Declared) { d.Image = history("import", "-c x") }, nil, UnknownHistory},
		{"a bare bundle has none", func(d *declared.Declared) { d.Image = declared.Image{} }, nil, ""},
		{"a sandbox is not judged", func(d *declared.Declared) { d.Sandbox, d.HostPID = true, true }, nil, ""},
	} {
		d := &declared.Declared{Image: history("COPY a /")}
		if row.is != nil {
			row.is(d)
		}
		a := Judge(d, row.os, nil, now, nil)
		if got := strings.Join(ids(a), " "); got != row.want {
			t.Errorf("%s: %q, want %q", row.claim, got, row.want)
		}
		if (a.Verdict == plan.Admit) != (row.want == "") || row.want != "" && a.Verdict != plan.Warn {
			t.Errorf("%s: verdict %s", row.claim, a.Verdict)
		}
		if a.Reasons == nil {
			t.Errorf("%s: reasons are null in JSON", row.claim)
		}
	}
}

func TestRules(t *testing.T) {
	d := &declared.Declared{Image: history("RUN apt-get install x"), HostPID: true, Operator: declared.Operator{Privileged: true}}
	a := Judge(d, nil, nil, now, map[string]site.Rule{Privileged: site.RuleDeny, HostPID: site.RuleOff})
	if a.Verdict != plan.Refuse || strings.Join(ids(a), " ") != AptNeverUpdated+" "+Privileged || a.Reasons[0].Verdict != plan.Warn || a.Reasons[1].Verdict != plan.Refuse {
		t.Errorf("%+v", a)
	}
}

// What the site may name is what is found here.
func TestFindingsAreTheSites(t *testing.T) {
	mine := []string{AptNeverUpdated, DistributionEndOfLife, Privileged, HostNetwork, HostPID, DockerSocketMount, SensitiveHostPath, UnknownHistory}
	if !slices.Equal(mine, site.Findings()) {
		t.Errorf("%q, the site knows %q", mine, site.Findings())
	}
}

func TestEndOfLifeDates(t *testing.T) {
	n := 0
	for id, versions := range endOfLife {
		for v := range versions {
			if _, ok := lastDay(id, v); !ok {
				t.Errorf("%s %s has no date", id, v)
			}
			n++
		}
	}
	if n == 0 {
		t.Error("the table is empty")
	}
}

func TestInspect(t *testing.T) {
	dir := t.TempDir()
	write := func(name, data string) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(data), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if rel, lists, err := Inspect(root); rel != nil || lists != nil || err != nil {
		t.Errorf("an empty image: %v %v %v", rel, lists, err)
	}
	write("usr/lib/os-release", "ID=debian\n# c\nVERSION_ID=\"10\"\nPRETTY_NAME='Debian \\$10'\nbroken\n")
	if err := os.MkdirAll(filepath.Join(dir, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../usr/lib/os-release", filepath.Join(dir, "etc/os-release")); err != nil {
		t.Fatal(err)
	}
	write("var/lib/apt/lists/lock", "")
	write("var/lib/apt/lists/deb_main_Packages", "x")
	day := time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)
	if err := os.Chtimes(filepath.Join(dir, "var/lib/apt/lists/deb_main_Packages"), day, day); err != nil {
		t.Fatal(err)
	}
	rel, lists, err := Inspect(root)
	if err != nil || rel["VERSION_ID"] != "10" || rel["PRETTY_NAME"] != "Debian $10" || lists == nil || lists.Lists != 1 || !lists.Newest.Equal(day) {
		t.Errorf("%v %+v %v", rel, lists, err)
	}
	a := Judge(&declared.Declared{Image: history("RUN apt-get install x")}, rel, lists, now, nil)
	if !strings.Contains(a.Reasons[0].Text, "2020-01-02") || !strings.Contains(a.Reasons[1].Text, "Debian $10") {
		b, _ := json.Marshal(a)
		t.Errorf("%s", b)
	}
	write("etc/x", "")
	if err := os.Remove(filepath.Join(dir, "etc/os-release")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/zero", filepath.Join(dir, "etc/os-release")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := Inspect(root); err != nil {
		t.Errorf("a link out of the image is followed or fatal: %v", err)
	}
}

func FuzzPackageSteps(f *testing.F) {
	for _, s := range []string{"apt-get update && apt-get install x", "sh -c \"bash -c 'apk add x'\"", "((((", "$(`${", "env", "sudo -E", "sh -c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		for _, st := range packageSteps(s) {
			if st.tool != "apt" && st.tool != "apk" {
				t.Errorf("%q: %+v", s, st)
			}
		}
	})
}

func FuzzOSRelease(f *testing.F) {
	f.Add([]byte("ID=debian\nVERSION_ID=\"12\"\n# x\nPRETTY_NAME='a \\\"b'\n=\nA=\"\nB=''"))
	f.Fuzz(func(t *testing.T, data []byte) {
		all := ParseOSRelease(data)
		if len(all) > 200 || all[""] != "" {
			t.Errorf("%q", all)
		}
		for name, value := range all {
			if strings.Contains(name+value, "\n") {
				t.Errorf("%q=%q", name, value)
			}
		}
	})
}
