package main

import (
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
)

// image makes a root filesystem: a Go server, the same program under the name of
// a shell, a script that starts the one with the other. Anybody may read it.
func (c command) image(t *testing.T) {
	t.Helper()
	server := filepath.Join(c.dir, "root/bin/server")
	cmd := exec.Command(need.Program(t, "go"), "build", "-o", server, "../../integration/images/hello/server")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a server: %v: %s", err, out)
	}
	content, err := os.ReadFile(server)
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, "root/bin/sh", string(content), 0o755)
	c.write(t, "root/start.sh", "#!/bin/sh\nset -e\nserver --init\nexec \"$@\"\n", 0o755)
	c.write(t, "root/etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644)
	c.write(t, "image.json", `[{"Id":"sha256:00","RepoTags":["demo/hello:1"],"Architecture":"amd64","Os":"linux","Config":{
		"Entrypoint":["/start.sh"],"Cmd":["server"],"Env":["PATH=/bin"],"ExposedPorts":{"8080/tcp":{}},"Volumes":{"/data":{}},
		"Healthcheck":{"Test":["CMD","/bin/server","--check"]}}}]`, 0o644)
}

// The whole way, as somebody with no privilege.
func TestPlanOfAnUnpackedImage(t *testing.T) {
	c := newCommand(t)
	c.image(t)
	uid := os.Geteuid()
	if uid == 0 {
		uid = 65534
		os.Chown(filepath.Join(c.dir, "home"), uid, uid)
	}
	o := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json", "--json")
	if o.code != 0 || o.stderr != "" {
		t.Fatalf("%+v", o)
	}
	var p map[string]any
	if err := json.Unmarshal([]byte(o.stdout), &p); err != nil {
		t.Fatal(err)
	}
	// Names are people's programs' to rely on; what is a list is never null.
	for path, kind := range map[string]string{
		"mode": "object", "image": "object", "syscalls.allow": "list", "syscalls.unresolved": "list", "processes": "list", "storage.writable": "list",
		"network.listen": "list", "network.connect": "list", "capabilities": "list", "admission.verdict": "string", "admission.reasons": "list",
	} {
		var at any = p
		for name := range strings.SplitSeq(path, ".") {
			object, _ := at.(map[string]any)
			at = object[name]
		}
		got := "null"
		switch at.(type) {
		case map[string]any:
			got = "object"
		case []any:
			got = "list"
		case string:
			got = "string"
		}
		if got != kind {
			t.Errorf("%s is %s, want %s", path, got, kind)
		}
	}
	n := 0
	for path, fields := range map[string][]string{
		"syscalls.allow": {"name", "phase"}, "processes": {"path", "phase", "identity"}, "storage.writable": {"path"}, "network.listen": {"proto", "port"},
		"network.connect": {}, "capabilities": {"name"},
	} {
		var at any = p
		for name := range strings.SplitSeq(path, ".") {
			at = at.(map[string]any)[name]
		}
		for _, e := range at.([]any) {
			entry := e.(map[string]any)
			n++
			for _, f := range fields {
				if v, ok := entry[f]; !ok || v == "" {
					t.Errorf("%s: no %s in %v", path, f, entry)
				}
			}
			origins, _ := entry["origins"].([]any)
			if len(origins) == 0 {
				t.Errorf("%s: nothing declares %v", path, entry)
			}
			for _, o := range origins {
				if origin := o.(map[string]any); origin["source"] == "" || origin["at"] == "" {
					t.Errorf("%s: %v of %v is no origin", path, origin, entry)
				}
			}
		}
	}
	if n < 40 {
		t.Errorf("%d entries", n)
	}

	text := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json")
	if text.code != 0 || text.stderr != "" {
		t.Fatalf("%+v", text)
	}
	for _, want := range []string{
		"image         demo/hello:1\n", "mode          enforce\n",
		"  main         /bin/server  ← ", "  starting     /start.sh    ← image config.Entrypoint: ENTRYPOINT [\"/start.sh\"]", "  healthcheck  /bin/server  ← image config.Healthcheck: ",
		"  mounted  /data  ← image config.Volumes: VOLUME /data\n", "  listen  8080/tcp  ← image config.ExposedPorts: EXPOSE 8080/tcp\n",
		"why one of them: declarun plan --why ",
	} {
		if !strings.Contains(text.stdout, want) {
			t.Errorf("no %q in\n%s", want, text.stdout)
		}
	}
	for what, want := range map[string]string{"8080": "listen 8080/tcp\n  ← image config.ExposedPorts: EXPOSE 8080/tcp\n", "bind": "system call bind (", "/data/x": "writable /data\n"} {
		if o := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json", "--why", what); o.code != 0 || !strings.HasPrefix(o.stdout, want) {
			t.Errorf("--why %s: %+v", what, o)
		}
	}
	if o := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json", "--why", "ptrace"); o.code != 1 || o.stdout != "" || !strings.Contains(o.stderr, `plan: nothing allows "ptrace"`) {
		t.Errorf("--why ptrace: %+v", o)
	}
	// A command on the command line replaces the image's.
	if o := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json", "/bin/server", "--json"); o.code != 0 || !strings.HasPrefix(o.stdout, "image") || !strings.Contains(o.stdout, "/bin/server") {
		t.Errorf("with a command: %+v", o)
	}
}

func TestPlanOfAForeignArchitecture(t *testing.T) {
	c := newCommand(t)
	c.image(t)
	foreign, err := os.ReadFile(filepath.Join(c.dir, "root/bin/server"))
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint16(foreign[18:], uint16(elf.EM_RISCV)) // e_machine
	c.write(t, "root/bin/server", string(foreign), 0o755)
	o := c.run(t, "plan", "--rootfs", "root", "--config", "image.json")
	if o.code != 1 || o.stdout != "" || !strings.Contains(o.stderr, "analyse /bin/server: EM_RISCV: machine is not supported\ndeclarun: try: ") {
		t.Errorf("%+v", o)
	}
}
