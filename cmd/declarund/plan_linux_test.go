package main

import (
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"fmt"
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
	for _, what := range []string{"/nowhere", "no_such_call"} {
		if o := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json", "--why", what); o.code != 1 || o.stdout != "" || !strings.Contains(o.stderr, "plan: nothing allows \""+what+"\"\ndeclarun: try: ") {
			t.Errorf("--why %s: %+v", what, o)
		}
	}
	// A command on the command line replaces the image's.
	if o := c.runAs(t, uid, "plan", "--rootfs", "root", "--config", "image.json", "/bin/server", "--json"); o.code != 0 || !strings.HasPrefix(o.stdout, "image") || !strings.Contains(o.stdout, "/bin/server") {
		t.Errorf("with a command: %+v", o)
	}
}

// --why says how each program comes to a call, or why it is not allowed.
func TestPlanWhySystemCall(t *testing.T) {
	c := newCommand(t)
	c.image(t)
	ask := func(what string, more ...string) outcome {
		return c.run(t, append(append([]string{"plan", "--rootfs", "root", "--config", "image.json"}, more...), "--why", what)...)
	}
	o := ask("accept4")
	for _, want := range []string{"system call accept4 (serving): for the container's whole life\n", "/bin/server (serving): ", "/bin/sh (starting): ",
		"← script /start.sh:", "← image config.Entrypoint", "syscall.accept4 (+0x", "makes system call 288 at +0x"} {
		if o.code != 0 || o.stderr != "" || !strings.Contains(o.stdout, want) {
			t.Errorf("no %q: %+v", want, o)
		}
	}
	for what, want := range map[string]string{
		"ptrace":          "system call ptrace: NOT ALLOWED\n  no code that can run reaches it, in 2 programs",
		"perf_event_open": "system call perf_event_open: NOT ALLOWED\n  the engine's own seccomp profile refuses it",
	} {
		if o := ask(what); o.code != 1 || !strings.HasPrefix(o.stdout, want) || !strings.Contains(o.stderr, "plan: nothing allows the system call "+what) {
			t.Errorf("--why %s: %+v", what, o)
		}
	}
	var r struct {
		Allowed bool
		Phase   string
		Ways    []struct {
			Program string
			Chain   []any
			Steps   []struct{ File, Function string }
		}
	}
	o = ask("accept4", "--json")
	if err := json.Unmarshal([]byte(o.stdout), &r); err != nil || !r.Allowed || r.Phase != "serving" || len(r.Ways) != 2 || len(r.Ways[0].Steps) == 0 || len(r.Ways[0].Chain) == 0 {
		t.Errorf("%v %+v", err, r)
	}
	// The way is there the second time too, when the result is known.
	if again := ask("accept4", "--json"); again != o {
		t.Errorf("%+v\nand then\n%+v", o, again)
	}
}

// The exit status of --diff is diff's.
func TestPlanDiff(t *testing.T) {
	c := newCommand(t)
	c.image(t)
	saved := c.run(t, "plan", "--rootfs", "root", "--config", "image.json", "--json")
	c.write(t, "old.json", saved.stdout, 0o644)
	raw, err := os.ReadFile(filepath.Join(c.dir, "image.json"))
	if err != nil {
		t.Fatal(err)
	}
	c.write(t, "next.json", strings.NewReplacer(`"8080/tcp":{}`, `"8080/tcp":{},"9090/tcp":{}`, `"Volumes":{"/data":{}}`, `"Volumes":{}`).Replace(string(raw)), 0o644)
	for _, row := range []struct {
		claim string
		args  []string
		code  int
		out   string // each line is in what is printed
		err   string
	}{
		{"a plan and itself", []string{"old.json", "old.json"}, 0, "", ""},
		{"a saved plan and the image that it is of", []string{"old.json", "root,image.json"}, 0, "", ""},
		{"an update", []string{"old.json", "root,next.json"}, 1, "widens (1)\n+ port          9090/tcp (listen)\n← image config.ExposedPorts: EXPOSE 9090/tcp\nnarrows (1)\n- writable path /data (was serving)", ""},
		{"the update undone", []string{"root,next.json", "old.json"}, 1, "narrows (1)\n- port          9090/tcp (was listen)\nwidens (1)\n+ writable path /data (serving)", ""},
		{"as JSON", []string{"--json", "old.json", "root,next.json"}, 1, `"effect": "widens"` + "\n" + `"what": "9090/tcp"`, ""},
		{"one argument", []string{"old.json"}, 2, "", "--diff wants two arguments and got 1"},
		{"no plan", []string{"old.json", "image.json"}, 2, "", "read plan image.json: "},
		{"what is not there", []string{"old.json", "nowhere,image.json"}, 2, "", "declarun: try: "},
		{"with the flags of one plan", []string{"--rootfs", "root", "old.json", "old.json"}, 2, "", "--diff with --rootfs"},
		{"with another format", []string{"--format", "oci", "old.json", "old.json"}, 2, "", "--format oci is of a whole plan"},
	} {
		o := c.run(t, append([]string{"plan", "--diff"}, row.args...)...)
		if o.code != row.code || !strings.Contains(o.stderr, row.err) || (row.err == "") != (o.stderr == "") || (row.out == "") != (o.stdout == "") {
			t.Errorf("%s: %+v", row.claim, o)
		}
		for want := range strings.SplitSeq(row.out, "\n") {
			if !strings.Contains(o.stdout, want) {
				t.Errorf("%s: no %q in %s", row.claim, want, o.stdout)
			}
		}
	}
}

// What runc, Docker and Kubernetes read: the tests that run containers with it
// are in integration.
func TestPlanFormats(t *testing.T) {
	c := newCommand(t)
	c.image(t)
	args := []string{"plan", "--rootfs", "root", "--config", "image.json"}
	o := c.run(t, append(args, "--format", "oci")...)
	var p struct {
		DefaultAction   string
		DefaultErrnoRet int
		Architectures   []string
		Syscalls        []struct {
			Names    []string
			Action   string
			ErrnoRet int
		}
	}
	if err := json.Unmarshal([]byte(o.stdout), &p); err != nil || o.code != 0 || p.DefaultAction != "SCMP_ACT_ERRNO" || p.DefaultErrnoRet != 1 || len(p.Architectures) == 0 {
		t.Fatalf("%v %+v", err, o)
	}
	actions := map[string]string{}
	for _, s := range p.Syscalls {
		for _, n := range s.Names {
			actions[n] += fmt.Sprint(s.Action, s.ErrnoRet)
		}
	}
	for name, want := range map[string]string{"execve": "SCMP_ACT_ALLOW0", "accept4": "SCMP_ACT_ALLOW0", "getdents64": "SCMP_ACT_ALLOW0", "ptrace": "", "clone3": "SCMP_ACT_ERRNO38", "memfd_secret": "SCMP_ACT_ERRNO38"} {
		if actions[name] != want {
			t.Errorf("%s: %q, want %q", name, actions[name], want)
		}
	}
	asJSON, format := c.run(t, append(args, "--json")...), c.run(t, append(args, "--format", "json")...)
	if asJSON.code != 0 || asJSON != format {
		t.Errorf("--json and --format json differ: %+v, %+v", asJSON, format)
	}
	if o := c.run(t, append(args, "--format", "yaml")...); o.code != 1 || o.stdout != "" || !strings.Contains(o.stderr, `no format "yaml"`) {
		t.Errorf("%+v", o)
	}
	if o := c.run(t, append(args, "--format", "oci", "--json")...); o.code != 1 || o.stdout != "" {
		t.Errorf("%+v", o)
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

// An image's programs say what machine its plan is for.
func TestPlanOfAnArm64Image(t *testing.T) {
	c := newCommand(t)
	gcc := need.Program(t, "aarch64-linux-gnu-gcc")
	c.write(t, "server.c", "#include <unistd.h>\n#include <sys/epoll.h>\nint main(void) { struct epoll_event e; return epoll_wait(epoll_create1(0), &e, 1, 0) + rmdir(\"/x\"); }\n", 0o644)
	c.write(t, "root/etc/passwd", "root:x:0:0::/:/bin/sh\n", 0o644)
	c.write(t, "root/bin/server", "", 0o755)
	cmd := exec.Command(gcc, "-O1", "-static", "-o", filepath.Join(c.dir, "root/bin/server"), filepath.Join(c.dir, "server.c"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build a server: %v: %s", err, out)
	}
	c.write(t, "image.json", `[{"Id":"sha256:00","Architecture":"arm64","Os":"linux","Config":{"Cmd":["/bin/server"]}}]`, 0o644)
	o := c.run(t, "plan", "--rootfs", "root", "--config", "image.json", "--json")
	if o.code != 0 {
		t.Fatalf("%+v", o)
	}
	var p struct {
		Syscalls struct {
			Architecture string
			Unresolved   []any
			Allow        []struct{ Name string }
		}
	}
	if err := json.Unmarshal([]byte(o.stdout), &p); err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, a := range p.Syscalls.Allow {
		got[a.Name] = true
	}
	// What only x86-64 has is not there.
	if p.Syscalls.Architecture != "arm64" || len(p.Syscalls.Unresolved) > 0 || !got["epoll_pwait"] || !got["unlinkat"] || got["epoll_wait"] || got["rmdir"] {
		t.Errorf("%+v", p)
	}
	if o := c.run(t, "plan", "--rootfs", "root", "--config", "image.json", "--format", "oci"); o.code != 0 || !strings.Contains(o.stdout, `"SCMP_ARCH_AARCH64"`) || strings.Contains(o.stdout, "X86") {
		t.Errorf("%+v", o)
	}
}
