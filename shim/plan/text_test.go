package plan

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"

	"github.com/declarun/declarun/shim/record"
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

func from(source record.Source, at, text string) []record.Origin {
	return []record.Origin{{Source: source, At: at, Text: text}}
}

func enforced() map[record.Dimension]record.Mode {
	m := map[record.Dimension]record.Mode{}
	for _, d := range record.Dimensions() {
		m[d] = record.Enforce
	}
	return m
}

func calls(phase record.Phase, names ...string) []Syscall {
	var all []Syscall
	for _, name := range names {
		all = append(all, Syscall{Name: name, Phase: phase, Origins: from(record.FromFile, "/srv/server+0x1000", "")})
	}
	return all
}

const loader = "/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"

// database is an image with everything: a script, helpers, a health check,
// paths of every kind.
func database() *Plan {
	engine := from(record.FromEngine, "default mounts", "")
	caps := from(record.FromEngine, "process.capabilities", "")
	fhs := func(path string) []record.Origin { return from(record.FromDefault, "FHS", path+" holds variable data") }
	untilLoop := calls(record.Serving, "execve", "setsid")
	for i := range untilLoop {
		untilLoop[i].UntilLoop = true
	}
	return &Plan{
		Mode:  enforced(),
		Image: Image{Ref: "demo/postgres:latest", Digest: "sha256:a7b5fe7ff278"},
		Syscalls: Syscalls{Architecture: "amd64", Allow: append(calls(record.Serving, strings.Fields(
			"accept4 bind brk chdir chmod clone clone3 close connect dup2 epoll_create1 epoll_ctl epoll_wait exit exit_group fallocate fcntl fdatasync fstat")...),
			append(untilLoop, calls(record.Starting, "chown", "setgid", "setuid")...)...), Unresolved: []Site{}, Loops: []Loop{{File: "/usr/lib/postgresql/15/bin/postgres", Returns: []uint64{0x1234}}}},
		Processes: []Process{
			{Path: "/usr/bin/bash", Phase: record.Starting, Identity: record.Application, Origins: from(record.FromScript, "/usr/local/bin/docker-entrypoint.sh:1", "#!/bin/bash")},
			{Path: "/usr/bin/mkdir", Phase: record.Starting, Identity: record.Application, Origins: from(record.FromScript, "/usr/local/bin/docker-entrypoint.sh:7",
				`mkdir -p "$PGDATA" /var/run/postgresql "${PGDATA}/a/long/path/that/goes/on/and/on/and/on"`)},
			{Path: "/usr/lib/postgresql/15/bin/pg_isready", Phase: record.Serving, Identity: record.HealthCheck, Origins: from(record.FromImage, "config.Healthcheck", "pg_isready -q")},
			{Path: "/usr/lib/postgresql/15/bin/postgres", Phase: record.Serving, Identity: record.Application, Main: true, Origins: append(
				from(record.FromFile, "/usr/lib/postgresql/15/bin/initdb", `string "postgres" beside it`), from(record.FromScript, "/usr/local/bin/docker-entrypoint.sh:22", `exec "$@"`)...)},
			{Path: loader, Phase: record.Serving, Identity: record.Application, Origins: from(record.FromFile, "/usr/bin/id", "ELF interpreter of /usr/bin/id")},
			{Path: "/opt/a/vendor/with/a/path/that/is/much/too/long/for/its/column/bin/tool", Mounted: true, Phase: record.Serving, Identity: record.Application, Origins: from(record.FromOperator, "mount /opt/a", "")},
		},
		Storage: Storage{ReadonlyRoot: true, Writable: []Writable{
			{Path: "/dev/shm", Mounted: true, Origins: engine},
			{Path: "/etc/hostname", Mounted: true, Origins: engine},
			{Path: "/etc/hosts", Mounted: true, Origins: engine},
			{Path: "/etc/resolv.conf", Mounted: true, Origins: engine},
			{Path: "/home", Phase: record.Starting, Origins: from(record.FromScript, "/usr/local/bin/docker-entrypoint.sh:3", "> /home/x")},
			{Path: "/run", Origins: fhs("/run")},
			{Path: "/scripts", Mounted: true, Exec: true, Origins: from(record.FromOperator, "-v", "declarun.exec=/scripts")},
			{Path: "/tmp", Origins: fhs("/tmp")},
			{Path: "/var/lib/postgresql/data", Mounted: true, Origins: from(record.FromImage, "config.Volumes", "VOLUME /var/lib/postgresql/data")},
		}},
		Network: Network{Enforced: true, Listen: []Listen{
			{Proto: "tcp", Port: 5432, Origins: from(record.FromImage, "config.ExposedPorts", "EXPOSE 5432/tcp")},
			{Proto: "udp", Port: 7000, Last: 7010, Origins: from(record.FromOperator, "docker run -p", "7000-7010/udp")},
		}, Connect: []Peer{
			{CIDR: "10.0.0.2/32", Proto: "udp", Port: 53, Origins: from(record.FromEngine, "/etc/resolv.conf", "nameserver 10.0.0.2")},
			{CIDR: "fd00::2/128", Proto: "udp", Port: 53, Origins: from(record.FromEngine, "/etc/resolv.conf", "nameserver fd00::2")},
			{Name: "cache", Proto: "tcp", Port: 6379, Origins: from(record.FromCompose, "depends_on", "cache")},
		}},
		Capabilities: []Capability{{"CAP_CHOWN", caps}, {"CAP_SETUID", caps}, {"CAP_SYS_NICE", from(record.FromOperator, "--cap-add SYS_NICE", "")}},
		Admission: Admission{Verdict: Warn, Reasons: []Reason{{ID: "apt-never-updated", Verdict: Warn, Text: "packages are installed from lists that are not updated",
			Remedy: "apt-get update in the same RUN", Origins: from(record.FromHistory, "history[3]", "RUN apt-get install -y postgresql")}}},
		Notes: []Note{{record.Network, "CAP_NET_RAW: packet sockets send and receive what nftables does not see"}},
	}
}

func wide() *Plan {
	p := &Plan{Mode: enforced(), Image: Image{Ref: "debian:12"}, Wide: true, WideReason: "bash without a script (docker run)",
		Syscalls:  Syscalls{Architecture: "amd64", Widened: true, Allow: []Syscall{}, Unresolved: []Site{}},
		Processes: []Process{{Path: "/usr/bin/bash", Phase: record.Serving, Identity: record.Application, Main: true, Origins: from(record.FromOperator, "docker run", "bash")}},
		Storage:   Storage{ReadonlyRoot: true}, Network: Network{Enforced: false, Reason: "the network namespace is the host's"},
		Admission: Admission{Verdict: Admit}}
	p.Mode[record.Storage] = record.Audit
	return p
}

func unproved() *Plan {
	p := database()
	p.WideStarting, p.WideStartingReason = true, `dynamic command at /entrypoint.sh:4: "$CMD" start`
	p.Syscalls.Widened = true
	for i := range uint64(4) {
		p.Syscalls.Unresolved = append(p.Syscalls.Unresolved, Site{"/usr/sbin/gosu", 0x1000 + i, "loaded from a variable"}, Site{"/usr/bin/other", 0x2000 + i, "loaded from memory"})
	}
	p.Syscalls.Unresolved = p.Syscalls.Unresolved[:7]
	return p
}

func TestText(t *testing.T) {
	for name, p := range map[string]*Plan{
		"database.txt": database(),
		"wide.txt":     wide(),
		"unproved.txt": unproved(),
		"bundle.txt": {Mode: enforced(), Storage: Storage{Writable: []Writable{{Path: "/data", Origins: from(record.FromOperator, "config.json mounts", "")}}},
			Network: Network{Enforced: true}, Syscalls: Syscalls{Allow: calls(record.Serving, "read", "write")}},
	} {
		t.Run(name, func(t *testing.T) {
			var b bytes.Buffer
			if err := p.Text(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, name, b.Bytes())
			for line := range strings.Lines(b.String()) {
				if n := len([]rune(line)); n > 170 || strings.HasSuffix(strings.TrimSuffix(line, "\n"), " ") {
					t.Errorf("a line of %d characters: %q", n, line)
				}
			}
		})
	}
}

// What is on the screen is the image's: names of files, lines of scripts.
func TestTextNeverDrivesTheTerminal(t *testing.T) {
	const evil = "a\x1b[2J\x07\r\nb\u009b31m\u202e\u2028\x7f\xff"
	o := from(record.FromScript, evil, evil)
	p := &Plan{Mode: enforced(), Image: Image{Ref: evil, Digest: evil}, Wide: true, WideReason: evil, WideStarting: true, WideStartingReason: evil,
		Syscalls:  Syscalls{Allow: []Syscall{{Name: evil, Origins: o}}, Unresolved: []Site{{File: evil, Reason: evil}}},
		Processes: []Process{{Path: evil, Origins: o}, {Path: strings.Repeat(evil, 10), Origins: o}}, Storage: Storage{Writable: []Writable{{Path: evil, Origins: o}}},
		Network:      Network{Reason: evil, Listen: []Listen{{Proto: evil, Origins: o}}, Connect: []Peer{{Name: evil, Origins: o}}},
		Capabilities: []Capability{{evil, o}}, Admission: Admission{Reasons: []Reason{{ID: evil, Text: evil, Remedy: evil, Origins: o}}}, Notes: []Note{{record.Network, evil}}}
	var b bytes.Buffer
	if err := p.Text(&b); err != nil {
		t.Fatal(err)
	}
	if _, err := p.Why(&b, evil); err != nil {
		t.Fatal(err)
	}
	for _, r := range b.String() {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Fatalf("%q in %q", r, b.String())
		}
	}
	if strings.Contains(b.String(), "\nb") {
		t.Error("an image breaks lines")
	}
}

func TestWhy(t *testing.T) {
	for what, want := range map[string]string{
		"postgres":  "program /usr/lib/postgresql/15/bin/postgres (main)\n  ← file /usr/lib/postgresql/15/bin/initdb: string \"postgres\" beside it\n  ← script /usr/local/bin/docker-entrypoint.sh:22: exec \"$@\"\n",
		loader:      "program " + loader + " (serving)\n",
		"/tmp":      "writable /tmp\n",
		"/tmp/x/y":  "writable /tmp\n",
		"5432":      "listen 5432/tcp\n",
		"5432/tcp":  "listen 5432/tcp\n",
		"cache":     "connect cache:6379/tcp\n",
		"CAP_CHOWN": "capability CAP_CHOWN\n",
		"sys_nice":  "capability CAP_SYS_NICE\n  ← operator --cap-add SYS_NICE\n",
	} {
		var b bytes.Buffer
		if found, err := database().Why(&b, what); err != nil || !found || !strings.HasPrefix(b.String(), want) {
			t.Errorf("%s: %v %v %s", what, found, err, b.String())
		}
	}
	for _, what := range []string{"", "ptrace", "/tmpx", "/etc", "22", "bin"} {
		var b bytes.Buffer
		if found, err := database().Why(&b, what); found || err != nil || b.Len() != 0 {
			t.Errorf("%q: %v %s", what, err, b.String())
		}
	}
}

// The names that people's own programs read.
func TestJSONHasTheNamesOfTheInterface(t *testing.T) {
	raw, err := json.Marshal(database())
	if err != nil {
		t.Fatal(err)
	}
	var p map[string]any
	if err := json.Unmarshal(raw, &p); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"mode.syscalls", "image.ref", "syscalls.allow.name", "syscalls.allow.phase", "syscalls.allow.origins", "syscalls.unresolved",
		"processes.path", "processes.phase", "processes.identity", "processes.origins", "storage.writable.path", "storage.writable.origins",
		"network.listen.proto", "network.listen.port", "network.listen.origins", "network.connect", "capabilities", "admission.verdict", "admission.reasons",
		"processes.origins.source", "processes.origins.at"} {
		var at any = p
		for name := range strings.SplitSeq(path, ".") {
			if list, ok := at.([]any); ok {
				at = list[0]
			}
			object, _ := at.(map[string]any)
			next, ok := object[name]
			if !ok || next == nil {
				t.Errorf("%s: no %s in %s", path, name, fmt.Sprint(object))
				break
			}
			at = next
		}
	}
}
