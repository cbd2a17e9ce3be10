package install

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"

	"github.com/declarun/declarun/integration/need"
)

var update = flag.Bool("update", false, "write the golden files")

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", name, got, want)
	}
}

const program = "/usr/local/bin/declarun"

func TestDocker(t *testing.T) {
	tests := []struct {
		name, before string
		asDefault    bool
	}{
		{"none", "", false},
		{"none-default", "", true},
		{"order-and-numbers", "{\n  \"log-opts\": {\"max-size\": \"10m\"},\n  \"default-runtime\": \"nvidia\",\n  \"runtimes\": {\n    \"nvidia\": {\"args\": [], \"path\": \"nvidia-container-runtime\"}\n  },\n  \"x\": 18446744073709551615,\n  \"a\": \"<&>\"\n}\n", true},
		{"tabs", "{\n\t\"debug\": true\n}", false},
		{"already", "{\n  \"runtimes\": {\n    \"declarun\": {\n      \"path\": \"/old\"\n    }\n  }\n}\n", false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var before []byte
			if test.before != "" {
				before = []byte(test.before)
			}
			after, err := DockerInstalled(before, program, test.asDefault)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "docker-"+test.name+".json", after)
			again, err := DockerInstalled(after, program, test.asDefault)
			if err != nil || !bytes.Equal(after, again) {
				t.Errorf("a second install: %s %v", again, err)
			}
			if test.name == "already" {
				return
			}
			back, err := DockerUninstalled(after, before)
			if err != nil || !bytes.Equal(back, before) {
				t.Errorf("uninstall: %q %v, want %q", back, err, before)
			}
		})
	}
}

func TestDockerUninstallKeepsWhatCameSince(t *testing.T) {
	got, err := DockerUninstalled([]byte(`{"default-runtime":"declarun","runtimes":{"declarun":{"path":"/x"},"kata":{"path":"/k"}},"debug":true}`), []byte(`{"default-runtime":"kata"}`))
	if want := "{\n    \"default-runtime\": \"kata\",\n    \"runtimes\": {\n        \"kata\": {\n            \"path\": \"/k\"\n        }\n    },\n    \"debug\": true\n}\n"; err != nil || string(got) != want {
		t.Errorf("%s %v", got, err)
	}
	if _, err := DockerUninstalled([]byte(`{"debug":true}`), nil); !errors.Is(err, ErrUnchanged) {
		t.Error(err)
	}
}

func TestABrokenDaemonJSONIsNotTouched(t *testing.T) {
	for _, content := range []string{`{"runtimes":`, `[]`, `{} {}`, `{"a":1,"a":2}`, `{"runtimes":[]}`, `{"runtimes":{"x":1,"x":2}}`} {
		path := filepath.Join(t.TempDir(), "daemon.json")
		os.WriteFile(path, []byte(content), 0o600)
		_, err := Docker{Config: path, Program: program}.Install()
		var remedy interface{ Remedy() string }
		if !errors.As(err, &remedy) {
			t.Errorf("%s: %v", content, err)
		}
		if after, _ := os.ReadFile(path); string(after) != content {
			t.Errorf("%s became %s", content, after)
		}
		if left, _ := os.ReadDir(filepath.Dir(path)); len(left) != 1 {
			t.Errorf("left behind: %v", left)
		}
	}
}

func TestDockerFilesComeAndGo(t *testing.T) {
	dir := t.TempDir()
	real := filepath.Join(dir, "real.json")
	d := Docker{Config: filepath.Join(dir, "daemon.json"), PIDFile: filepath.Join(dir, "none"), Program: program}
	before := []byte("{\n  \"debug\": true\n}\n")
	os.WriteFile(real, before, 0o600)
	os.Symlink("real.json", d.Config)
	for range 2 { // the second keeps the first backup
		r, err := d.Install()
		if err != nil {
			t.Fatal(err, r)
		}
	}
	if content, _ := os.ReadFile(real); !strings.Contains(string(content), program) {
		t.Errorf("%s", content)
	}
	if st, err := os.Lstat(d.Config); err != nil || st.Mode()&os.ModeSymlink == 0 {
		t.Error("the link was replaced")
	}
	if st, err := os.Stat(real); err != nil || st.Mode().Perm() != 0o600 {
		t.Error("the mode changed")
	}
	if backup, _ := os.ReadFile(backupOf(d.Config)); !bytes.Equal(backup, before) {
		t.Errorf("backup %s", backup)
	}
	r, err := d.Uninstall()
	if err != nil || !slices.Equal(r.Next, []string{"systemctl reload docker"}) {
		t.Error(err, r)
	}
	if content, _ := os.ReadFile(real); !bytes.Equal(content, before) {
		t.Errorf("%s", content)
	}
	if left, _ := os.ReadDir(dir); len(left) != 2 {
		t.Errorf("left behind: %v", left)
	}
	os.Remove(d.Config)
	if _, err := d.Install(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Uninstall(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Config); !errors.Is(err, os.ErrNotExist) {
		t.Error("a file that install made is still there")
	}
}

func TestDockerdAcceptsTheResult(t *testing.T) {
	dockerd := need.Program(t, "dockerd")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := Docker{Dockerd: dockerd}
	good, err := DockerInstalled([]byte(`{"debug":true}`), self, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.validate(good); err != nil {
		t.Error(err)
	}
	if out, _ := exec.Command(dockerd, "--help").CombinedOutput(); bytes.Contains(out, []byte("--validate")) {
		if err := d.validate([]byte(`{"no-such-key":1}`)); err == nil {
			t.Error("dockerd accepts a key that does not exist")
		}
	}
}

const kubernetes = `# the site's own words
version = 2
imports = [
  "/etc/containerd/other.toml",
]

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "registry.k8s.io/pause:3.9"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      pod_annotations = ["a.*"]
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = true
`

func TestContainerd(t *testing.T) {
	tests := []struct {
		name, before string
		asDefault    bool
	}{
		{"none", "", false},
		{"kubernetes", kubernetes, true},
		{"debian", "version = 2\n\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n  [plugins.\"io.containerd.internal.v1.opt\"]\n    path = \"/var/lib/containerd/opt\"\n", false},
		{"version3", "version = 3\nimports = []\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'kata'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = '/usr/sbin/runc'\nSystemdCgroup = true\n", false},
	}
	const dropIn = "/etc/containerd/conf.d/declarun.toml"
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, err := ContainerdDropIn([]byte(test.before), program, test.asDefault)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "containerd-"+test.name+".toml", got)
			after, err := ContainerdImports([]byte(test.before), dropIn)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "containerd-"+test.name+"-config.toml", after)
			again, err := ContainerdImports(after, dropIn)
			if err != nil || !bytes.Equal(after, again) {
				t.Errorf("a second import: %s %v", again, err)
			}
			want := test.before
			if want == "" {
				want = "version = 2\n"
			}
			want = strings.Replace(want, "imports = []\n", "", 1) // says nothing
			if back := ContainerdWithoutImport(after, dropIn); string(back) != want {
				t.Errorf("without the import\n%s\nwant\n%s", back, want)
			}
		})
	}
	covered := []byte("version = 2\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n")
	if after, err := ContainerdImports(covered, dropIn); err != nil || !bytes.Equal(after, covered) {
		t.Errorf("%s %v", after, err)
	}
	for _, content := range []string{"version = 1\n", "[plugins.cri]\n", "version = 2\nimports = [[\n", "version = \"2\"\n"} {
		if _, err := ContainerdImports([]byte(content), dropIn); err == nil {
			t.Errorf("%q was edited", content)
		}
	}
	// Not understood, so not guessed.
	odd := "version = 2\n\"imports\" = [\"/x.toml\"]\n"
	if after, err := ContainerdImports([]byte(odd), dropIn); err == nil {
		t.Errorf("%s", after)
	}
}

// The second judge: containerd itself, on what it makes of both files together.
func TestContainerdReadsTheResult(t *testing.T) {
	containerd := need.Program(t, "containerd")
	for name, before := range map[string]string{"none": "",
		"kubernetes": strings.Replace(kubernetes, "  \"/etc/containerd/other.toml\",\n", "", 1),
		"no imports": "version = 2\nimports = []\n",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := Containerd{Config: filepath.Join(dir, "config.toml"), Program: program}
			if before != "" {
				os.WriteFile(c.Config, []byte(before), 0o600)
			}
			r, err := c.Install()
			if err != nil || len(r.Next) != 1 {
				t.Fatal(err, r)
			}
			dump, err := exec.Command(containerd, "--config", c.Config, "config", "dump").Output()
			if err != nil {
				t.Fatal(err)
			}
			var config table
			if err := toml.Unmarshal(dump, &config); err != nil {
				t.Fatal(err)
			}
			plugin := criV2
			if config["version"] == int64(3) {
				plugin = criV3
			}
			cri := child(child(config, "plugins"), plugin)
			runtimes := child(child(cri, "containerd"), "runtimes")
			options := child(child(runtimes, Name), "options")
			if options["BinaryName"] != program || child(runtimes, "runc")["runtime_type"] != runcType {
				t.Errorf("%s", dump)
			}
			if name == "kubernetes" && (options["SystemdCgroup"] != true || child(child(runtimes, "runc"), "options")["SystemdCgroup"] != true) {
				t.Errorf("SystemdCgroup was lost: %v", runtimes)
			}
			if _, err := c.Install(); err != nil {
				t.Error(err)
			}
			if _, err := c.Uninstall(); err != nil {
				t.Error(err)
			}
			left, _ := os.ReadDir(dir)
			if after, _ := os.ReadFile(c.Config); string(after) != before || len(left) > 1 {
				t.Errorf("%s, %v", after, left)
			}
		})
	}
}

func TestUnits(t *testing.T) {
	units := Units("/opt/de cla/100%/declarund")
	for name, content := range units {
		golden(t, name, []byte(content))
	}
	if len(units) != 2 {
		t.Error(units)
	}
	for claim, line := range map[string]string{
		"a monitor that dies leaves the worker and its containers alone": "KillMode=process",
		"and the next takes over":       "Restart=always",
		"it is never given up on":       "StartLimitIntervalSec=0",
		"engines wait until it answers": "Type=notify",
		"and start after it":            "Before=docker.service containerd.service",
		"a reload replaces the worker":  "ExecReload=/bin/kill -HUP $MAINPID",
	} {
		if !strings.Contains(units["declarun.service"], "\n"+line+"\n") {
			t.Errorf("%s: no %s", claim, line)
		}
	}
	for _, namespace := range []string{"PrivateTmp=", "ProtectSystem=", "ProtectHome=", "PrivateMounts="} {
		if strings.Contains(units["declarun.service"], "\n"+namespace) {
			t.Errorf("%s gives it a mount namespace", namespace)
		}
	}
	if verify, err := exec.LookPath("systemd-analyze"); err == nil {
		dir := t.TempDir()
		paths := []string{}
		for name, content := range Units("/bin/true") {
			path := filepath.Join(dir, name)
			os.WriteFile(path, []byte(content), 0o644)
			paths = append(paths, path)
		}
		if out, err := exec.Command(verify, append([]string{"verify"}, paths...)...).CombinedOutput(); err != nil {
			t.Logf("systemd-analyze verify: %v: %s", err, out) // it needs a running systemd for some of it
		}
	}
}

func FuzzDocker(f *testing.F) {
	f.Add([]byte(`{"runtimes":{"nvidia":{"path":"x"}},"default-runtime":"nvidia"}`))
	f.Add([]byte(``))
	f.Add([]byte(`{"a":[1,{"b":null}],"runtimes":{}}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		after, err := DockerInstalled(content, program, true)
		if err != nil {
			return
		}
		back, err := DockerUninstalled(after, content)
		if err != nil {
			t.Fatalf("%s\n%s: %v", content, after, err)
		}
		before, _, err := parseDaemon(content)
		if err != nil {
			t.Fatal(err)
		}
		restored, _, err := parseDaemon(back)
		if err != nil || string(before.get("default-runtime")) != string(restored.get("default-runtime")) && string(before.get("default-runtime")) != `"declarun"` {
			t.Fatalf("%s\n%s: %v", content, back, err)
		}
	})
}

func FuzzContainerdImports(f *testing.F) {
	f.Add([]byte(kubernetes))
	f.Add([]byte("version = 2\nimports = [ # why\n]\n"))
	f.Add([]byte("version = 3\nx = \"\"\"\nimports = [\n\"\"\"\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		after, err := ContainerdImports(content, "/etc/containerd/conf.d/declarun.toml")
		if err != nil {
			return
		}
		if _, _, err := parseContainerd(after); err != nil {
			t.Fatalf("%s\nbecame %s: %v", content, after, err)
		}
		ContainerdWithoutImport(after, "/etc/containerd/conf.d/declarun.toml")
		ContainerdDropIn(content, program, false)
	})
}
