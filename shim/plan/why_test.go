package plan

import (
	"bytes"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/record"
)

// chained is an entrypoint script that runs a program, which runs a helper.
func chained() *Plan {
	return &Plan{Processes: []Process{
		{Path: "/entry.sh", Origins: from(record.FromImage, "config.Entrypoint", `ENTRYPOINT ["/entry.sh"]`)},
		{Path: "/usr/bin/bash", Origins: append(from(record.FromFile, "/usr/sbin/server", "imports system"), from(record.FromScript, "/entry.sh:1", "#!/bin/bash")...)},
		{Path: "/usr/sbin/server", Origins: append(from(record.FromFile, "/usr/sbin/server", `string "server", imports execv`), from(record.FromScript, "/entry.sh:12", `exec "$@"`)...)},
		{Path: "/usr/bin/gzip", Origins: from(record.FromFile, "/usr/sbin/server+0x4a10", `string "gzip"`)},
		{Path: "/a", Origins: from(record.FromScript, "/b:1", "")},
		{Path: "/b", Origins: from(record.FromScript, "/a:1", "")},
		{Path: "/c", Origins: from(record.FromScript, "/lib/sourced.sh:3", "c")},
	}}
}

func TestChain(t *testing.T) {
	for program, want := range map[string]string{
		"/entry.sh":        "image config.Entrypoint",
		"/usr/bin/bash":    "script /entry.sh:1 < image config.Entrypoint",
		"/usr/sbin/server": "script /entry.sh:12 < image config.Entrypoint",
		"/usr/bin/gzip":    "file /usr/sbin/server+0x4a10 < script /entry.sh:12 < image config.Entrypoint",
		"/a":               "script /b:1",
		"/c":               "script /lib/sourced.sh:3",
		"/nothing":         "",
	} {
		var got []string
		for _, o := range chained().Chain(program) {
			got = append(got, string(o.Source)+" "+o.At)
		}
		if s := strings.Join(got, " < "); s != want {
			t.Errorf("%s: %s, want %s", program, s, want)
		}
	}
}

func TestReasonsText(t *testing.T) {
	p := chained()
	way := Way{Program: "/usr/bin/gzip", Phase: record.Starting, Chain: p.Chain("/usr/bin/gzip"), Start: "the program starts here", Site: 0x77, Call: 41,
		Steps: []Step{{File: "/usr/bin/gzip", Func: "main", Addr: 0x1000}, {File: "/usr/bin/gzip", Addr: 0x1100}, {File: "/lib/libc.so.6", Data: true, Addr: 0x500}, {File: "/lib/libc.so.6", Func: "socket", Addr: 0x70}}}
	var b bytes.Buffer
	for _, r := range []Reasons{
		{Call: "socket", Allowed: true, Phase: record.Starting, Because: []string{"only programs that run before the container serves make it"}, Origins: from(record.FromFile, "/usr/bin/gzip+0x1000", ""), Ways: []Way{way}},
		{Call: "bpf", Because: []string{"no code that can run reaches it"}},
		{Call: "read", Allowed: true, Phase: record.Serving, Origins: from(record.FromRuntime, "runc", "its own"), Ways: []Way{{Program: "/a", Phase: record.Serving, Start: "the kernel"}}},
		{Call: "setuid", Allowed: true, Phase: record.Serving, UntilLoop: true, Args: held(0, 7, 8)},
	} {
		if err := r.Text(&b); err != nil {
			t.Fatal(err)
		}
	}
	golden(t, "why.txt", b.Bytes())
	evil := Reasons{Call: "\x1b[2J", Because: []string{"\x1b"}, Ways: []Way{{Program: "\x1b", Start: "\x1b", Chain: from("\x1b", "\x1b", "\n\x1b"), Steps: []Step{{File: "\x1b\n", Func: "\x1b\n"}}}}}
	b.Reset()
	if err := evil.Text(&b); err != nil || strings.ContainsRune(b.String(), '\x1b') {
		t.Errorf("%q %v", b.String(), err)
	}
}
