package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
)

func (c command) read(t *testing.T, name string) string {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(c.dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func TestInstallAndUninstall(t *testing.T) {
	c := newCommand(t)
	const before = "{\n  \"debug\": true\n}\n"
	c.write(t, "daemon.json", before, 0o600)
	o := c.run(t, "install", "docker", "--file", "daemon.json", "--default", "--units")
	if o.code != 0 || o.stderr != "" {
		t.Fatalf("%+v", o)
	}
	got := c.read(t, "daemon.json")
	if !strings.Contains(got, c.dir+"/bin/declarun\"") || !strings.Contains(got, `"default-runtime": "declarun"`) || !strings.Contains(got, `"debug": true`) {
		t.Errorf("%s", got)
	}
	for _, want := range []string{"wrote daemon.json\n", "kept daemon.json as daemon.json.declarun-backup\n", "units/declarun.service\n", "etc/config.toml: every line a comment\n",
		"now: systemctl daemon-reload && systemctl enable --now declarun.socket declarun.service\n", "now: kill -HUP "} {
		if !strings.Contains(o.stdout, want) {
			t.Errorf("no %q in %s", want, o.stdout)
		}
	}
	if unit := c.read(t, "units/declarun.service"); !strings.Contains(unit, "\nExecStart="+c.program+" supervise\n") {
		t.Errorf("%s", unit)
	}
	if example := c.read(t, "etc/config.toml"); strings.TrimSpace(example) == "" {
		t.Error("the example is empty")
	}
	again := c.run(t, "install", "docker", "--file", "daemon.json", "--default", "--units")
	if again.code != 0 || again.stdout != "daemon.json is as it should be\n" {
		t.Errorf("a second time: %+v", again)
	}
	o = c.run(t, "uninstall", "docker", "--file", "daemon.json", "--units")
	if o.code != 0 || c.read(t, "daemon.json") != before || !strings.Contains(o.stdout, "units/declarun.socket\n") {
		t.Errorf("%+v: %s", o, c.read(t, "daemon.json"))
	}
	if left, _ := os.ReadDir(filepath.Join(c.dir, "units")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if o := c.run(t, "uninstall", "docker", "--file", "daemon.json"); o.code != 0 || o.stdout != "daemon.json does not mention declarun\n" {
		t.Errorf("%+v", o)
	}

	o = c.run(t, "install", "containerd", "--file", "cd/config.toml", "--units=false")
	if o.code != 0 || !strings.Contains(c.read(t, "cd/conf.d/declarun.toml"), "BinaryName = \""+c.dir+"/bin/declarun\"") || !strings.Contains(c.read(t, "cd/config.toml"), "imports") {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, "uninstall", "containerd", "--file", "cd/config.toml"); o.code != 0 {
		t.Errorf("%+v", o)
	}
	if left, _ := filepath.Glob(filepath.Join(c.dir, "cd/*")); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestInstallErrors(t *testing.T) {
	c := newCommand(t)
	c.write(t, "broken.json", `{"runtimes":`, 0o600)
	if o := c.run(t, "install", "docker", "--file", "broken.json", "--units=false"); o.code != 1 || !strings.Contains(o.stderr, "\ndeclarun: try: correct broken.json first") || o.stdout != "" {
		t.Errorf("%+v", o)
	}
	if _, err := os.Stat(filepath.Join(c.dir, "etc/config.toml")); err == nil {
		t.Error("a failed install wrote a configuration")
	}
	if err := os.Remove(filepath.Join(c.dir, "bin/declarun")); err != nil {
		t.Fatal(err)
	}
	if o := c.run(t, "install", "docker", "--file", "daemon.json"); o.code != 1 || o.stderr != "declarun: find declarun beside DIR/bin/declarund: there is none\ndeclarun: try: make install\n" {
		t.Errorf("%+v", o)
	}
	// Taking it out needs no runtime to be there.
	if o := c.run(t, "uninstall", "docker", "--file", "daemon.json"); o.code != 0 {
		t.Errorf("%+v", o)
	}
	need.Root(t)
	c.write(t, "bin/declarun", "#!/bin/sh\n", 0o755)
	if o := c.runAs(t, 65534, "install", "docker", "--file", "daemon.json", "--units=false"); o.code != 1 || !strings.HasSuffix(o.stderr, "permission denied\ndeclarun: try: run it as root\n") {
		t.Errorf("%+v", o)
	}
}
