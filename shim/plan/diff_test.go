package plan

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/record"
)

// said are the changes in short: "widens port 80/tcp listen".
func said(d Diff) []string {
	var out []string
	for _, c := range d.Changes {
		out = append(out, fmt.Sprintf("%s %s %s [%s>%s]", c.Effect, c.Kind, c.What, c.Old, c.New))
	}
	return out
}

func TestCompare(t *testing.T) {
	for _, row := range []struct {
		claim  string
		change func(p *Plan)
		want   string // of the change; the other way round widens and narrows swap
	}{
		{"the same plan", func(p *Plan) {}, ""},
		{"where an entry comes from, its note and the image's name are no differences", func(p *Plan) {
			p.Syscalls.Allow[0].Origins, p.Notes, p.Image = nil, nil, Image{Ref: "other"}
			slices.Reverse(p.Processes)
		}, ""},
		{"a system call more", func(p *Plan) { p.Syscalls.Allow = append(p.Syscalls.Allow, calls(record.Serving, "ptrace")...) }, "widens system call ptrace [>serving]"},
		{"one of the start that becomes one of the whole life", func(p *Plan) { set(t, p, "setuid").Phase = record.Serving }, "widens system call setuid [starting>serving]"},
		{"one that a process loses in its loop", func(p *Plan) { set(t, p, "bind").UntilLoop = true }, "narrows system call bind [serving>serving, until its loop]"},
		{"one that lasts until the loop is more than one of the start", func(p *Plan) { c := set(t, p, "setuid"); c.Phase, c.UntilLoop = record.Serving, true }, "widens system call setuid [starting>serving, until its loop]"},
		{"another value of an argument", func(p *Plan) { set(t, p, "fcntl").Args = held(1, 1, 2, 3) }, "widens system call fcntl [serving, argument 2 one of 0x1 0x2>serving, argument 2 one of 0x1 0x2 0x3]"},
		{"other values", func(p *Plan) { set(t, p, "fcntl").Args = held(1, 2, 3) }, "changes system call fcntl [serving, argument 2 one of 0x1 0x2>serving, argument 2 one of 0x2 0x3]"},
		{"an argument that is held no more", func(p *Plan) { set(t, p, "fcntl").Args = nil }, "widens system call fcntl [serving, argument 2 one of 0x1 0x2>serving]"},
		{"the same, though not for as long", func(p *Plan) { c := set(t, p, "fcntl"); c.Args, c.Phase = nil, record.Starting }, "changes system call fcntl [serving, argument 2 one of 0x1 0x2>starting]"},
		{"the order of values is no difference", func(p *Plan) { set(t, p, "fcntl").Args = held(1, 2, 1) }, ""},
		{"a list that is as wide as the engine's", func(p *Plan) { p.Syscalls.Widened = true }, "widens guard system calls [those listed>all that the engine's profile allows]"},
		{"a program more", func(p *Plan) { p.Processes = append(p.Processes, Process{Path: "/bin/nc", Phase: record.Starting}) }, "widens program /bin/nc [>starting]"},
		{"a program that only the health check ran", func(p *Plan) { p.Processes[2].Identity = record.Application }, "widens program /usr/lib/postgresql/15/bin/pg_isready [>serving]; narrows program /usr/lib/postgresql/15/bin/pg_isready (healthcheck) [serving>]"},
		{"every program", func(p *Plan) { p.Wide = true }, "widens guard programs [those listed>every one of the image]"},
		{"every program at the start", func(p *Plan) { p.WideStarting = true }, "widens guard programs [those listed>every one of the image until it serves]"},
		{"a writable path more", func(p *Plan) { p.Storage.Writable = append(p.Storage.Writable, Writable{Path: "/etc/x"}) }, "widens writable path /etc/x [>serving]"},
		{"one that lies in another is nothing new", func(p *Plan) { p.Storage.Writable = append(p.Storage.Writable, Writable{Path: "/tmp/x"}) }, ""},
		{"unless the other is of the start", func(p *Plan) { p.Storage.Writable = append(p.Storage.Writable, Writable{Path: "/home/x"}) }, "widens writable path /home/x [>serving]"},
		{"or cannot be executed from", func(p *Plan) { p.Storage.Writable = append(p.Storage.Writable, Writable{Path: "/tmp/x", Exec: true}) }, "widens writable path /tmp/x [>serving, executable]"},
		{"a place to execute from", func(p *Plan) { p.Storage.Writable[7].Exec = true }, "widens writable path /tmp [serving>serving, executable]"},
		{"a place to load libraries from", func(p *Plan) { p.Storage.Writable[7].Maps = true }, "widens writable path /tmp [serving>serving, libraries are loaded from it]"},
		{"or nothing is loaded from", func(p *Plan) { p.Storage.Writable = append(p.Storage.Writable, Writable{Path: "/tmp/x", Maps: true}) }, "widens writable path /tmp/x [>serving, libraries are loaded from it]"},
		{"a writable root", func(p *Plan) { p.Storage.ReadonlyRoot = false }, "widens guard root file system [read-only>writable]"},
		{"a port more", func(p *Plan) { p.Network.Listen = append(p.Network.Listen, Listen{Proto: "tcp", Port: 22}) }, "widens port 22/tcp [>listen]"},
		{"a port that a known application listens on inside", func(p *Plan) { p.Network.Inside = []Listen{{Proto: "tcp", Port: 22}} }, "widens port 22/tcp inside [>listen]"},
		{"a peer less", func(p *Plan) { p.Network.Connect = p.Network.Connect[:2] }, "narrows peer cache:6379/tcp [connect>]"},
		{"a network that is not held", func(p *Plan) { p.Network.Enforced = false }, "widens guard network [held to the plan>not enforced]"},
		{"a capability less", func(p *Plan) { p.Capabilities = p.Capabilities[1:] }, "narrows capability CAP_CHOWN [kept>]"},
		{"a mode that stops nothing", func(p *Plan) { p.Mode[record.Network] = record.Audit }, "widens mode network [enforce>audit]"},
		{"a refusal", func(p *Plan) { p.Admission.Verdict = Refuse }, "narrows admission verdict [warn>refuse]"},
		{"a verdict that was never given refuses", func(p *Plan) { p.Admission.Verdict = "" }, "narrows admission verdict [warn>refuse]"},
		{"another machine is neither", func(p *Plan) { p.Syscalls.Architecture = "arm64" }, "changes guard architecture [amd64>arm64]"},
	} {
		old, new := database(), database()
		for _, p := range []*Plan{old, new} {
			set(t, p, "fcntl").Args = held(1, 1, 2)
		}
		row.change(new)
		if got := strings.Join(said(Compare(old, new)), "; "); got != row.want {
			t.Errorf("%s: %s, want %s", row.claim, got, row.want)
		}
		// The reverse says the reverse.
		swap := map[Effect]Effect{Widens: Narrows, Narrows: Widens, Changes: Changes}
		there, back := Compare(old, new).Changes, Compare(new, old).Changes
		if len(there) != len(back) {
			t.Errorf("%s: %d changes there, %d back", row.claim, len(there), len(back))
		}
		for _, c := range there {
			if !slices.ContainsFunc(back, func(b Change) bool {
				return b.Kind == c.Kind && b.What == c.What && b.Effect == swap[c.Effect] && b.Old == c.New && b.New == c.Old
			}) {
				t.Errorf("%s: %+v is not reversed in %+v", row.claim, c, back)
			}
		}
	}
}

func held(index uint8, values ...uint32) []Arg {
	a := Arg{Index: index}
	for _, v := range values {
		a.Values = append(a.Values, ArgValue{Value: v})
	}
	return []Arg{a}
}

func set(t *testing.T, p *Plan, name string) *Syscall {
	t.Helper()
	for i := range p.Syscalls.Allow {
		if p.Syscalls.Allow[i].Name == name {
			return &p.Syscalls.Allow[i]
		}
	}
	t.Fatalf("no call %s", name)
	return nil
}

func TestDiffText(t *testing.T) {
	old, new := database(), database()
	new.Image = Image{Ref: "demo/postgres:next"}
	new.Syscalls.Allow = append(new.Syscalls.Allow, calls(record.Serving, "io_uring_setup")...)
	set(t, new, "chown").Phase = record.Serving
	new.Network.Listen = new.Network.Listen[:1]
	new.Syscalls.Architecture = "arm64"
	var b bytes.Buffer
	if err := Compare(old, new).Text(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "diff.txt", b.Bytes())
	b.Reset()
	if err := Compare(old, old).Text(&b); err != nil || b.Len() != 0 {
		t.Errorf("no difference, and yet %q %v", b.String(), err)
	}
	// A plan that went through JSON is the same plan.
	raw, err := json.Marshal(old)
	if err != nil {
		t.Fatal(err)
	}
	back := &Plan{}
	if err := json.Unmarshal(raw, back); err != nil {
		t.Fatal(err)
	}
	if d := Compare(old, back); len(d.Changes) != 0 {
		t.Errorf("%+v", d)
	}
}
