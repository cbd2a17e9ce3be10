package filter

import (
	"errors"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
)

func TestPlain(t *testing.T) {
	in := input(t)
	p, err := Plain(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		claim, name string
		action      specs.LinuxSeccompAction
		errno       int
	}{
		{"what the server needs", "accept4", specs.ActAllow, 0},
		{"what only its start needs: there are no phases", "setuid", specs.ActAllow, 0},
		{"execve, which its own start needs", "execve", specs.ActAllow, 0},
		{"a listening socket is not asked about", "listen", specs.ActAllow, 0},
		{"runc sets capabilities after it has loaded the filter", "capset", specs.ActAllow, 0},
		{"and closes descriptors", "getdents64", specs.ActAllow, 0},
		{"namespaces stay closed", "clone", "by argument", 0},
		{"what the engine allows with some arguments only", "personality", "by argument", 0},
		{"needed, but withheld with an errno of its own", "clone3", specs.ActErrno, 38},
		{"needed, but withheld", "add_key", specs.ActErrno, int(unix.EPERM)},
		{"what nothing needs", "ptrace", specs.ActErrno, int(unix.EPERM)},
		{"what nothing needs and libraries probe for", "openat2", specs.ActErrno, int(unix.ENOSYS)},
		{"the same of a call newer than the engine's profile", "cachestat", specs.ActErrno, int(unix.ENOSYS)},
	} {
		if a, e := action(p, row.name); a != row.action || e != row.errno {
			t.Errorf("%s: %s: %s %d, want %s %d", row.claim, row.name, a, e, row.action, row.errno)
		}
	}
	seen := map[string]bool{}
	for _, s := range p.Syscalls {
		if s.Action == specs.ActNotify {
			t.Errorf("notifies %v", s.Names)
		}
		if len(s.Names) == 0 {
			t.Error("a rule without names")
		}
		for _, n := range s.Names {
			if seen[n] && len(s.Args) == 0 {
				t.Errorf("%s is in two rules", n)
			}
			seen[n] = true
		}
	}
	if p.ListenerPath != "" || p.ListenerMetadata != "" || p.DefaultErrnoRet == nil || len(p.Architectures) == 0 {
		t.Errorf("%+v", p)
	}

	in.NoNewPrivileges = true
	if p, err = Plain(in); err != nil {
		t.Fatal(err)
	}
	if a, _ := action(p, "capset"); a == specs.ActAllow {
		t.Error("with no_new_privs runc sets capabilities before it loads the filter")
	}
}

func TestPlainRefuses(t *testing.T) {
	var unproved *UnprovedError
	if _, err := Plain(Input{Arch: "amd64", Allow: server(), Widened: true}); !errors.As(err, &unproved) || unproved.Remedy() == "" {
		t.Errorf("what is not proved and nobody bounds: %v", err)
	}
	in := input(t)
	in.Widened = true
	if p, err := Plain(in); err != nil {
		t.Error(err)
	} else if a, _ := action(p, "adjtimex"); a != specs.ActAllow {
		t.Error("what is not proved is not as wide as the engine's profile")
	} else if a, _ := action(p, "add_key"); a == specs.ActAllow {
		t.Error("it is wider")
	}
	var deny *DenyListError
	in = Input{Arch: "amd64", Allow: needed(record.Serving, "personality"), Engine: &specs.LinuxSeccomp{DefaultAction: specs.ActAllow,
		Syscalls: []specs.LinuxSyscall{{Names: []string{"personality"}, Action: specs.ActErrno, Args: []specs.LinuxSeccompArg{{Index: 0, Value: 5, Op: specs.OpEqualTo}}}}}}
	if _, err := Plain(in); !errors.As(err, &deny) || deny.Remedy() == "" {
		t.Errorf("a deny list: %v", err)
	}
}

// What stands for an engine's profile that is not known refuses nothing that
// Docker 20.10's allows, but for io_uring, which later versions refuse.
func TestUsual(t *testing.T) {
	usual, err := parseProfile(Usual("amd64"))
	if err != nil {
		t.Fatal(err)
	}
	docker, err := parseProfile(engineProfile(t, "docker-20.10"))
	if err != nil {
		t.Fatal(err)
	}
	uring := []string{"io_uring_setup", "io_uring_enter", "io_uring_register"}
	both := 0
	for _, name := range names("amd64") {
		u, d := usual.rule(name), docker.rule(name)
		if u.Never() && !d.Never() && !slices.Contains(uring, name) {
			t.Errorf("%s is refused, and Docker's profile allows it", name)
		}
		if !u.Never() && !d.Never() {
			both++
		}
	}
	if both < 280 {
		t.Errorf("only %d calls in common", both)
	}
	for _, row := range []struct {
		name string
		arg  uint64
		want bool
	}{
		{"clone", uint64(unix.SIGCHLD), true}, {"clone", unix.CLONE_NEWUSER, false}, {"socket", unix.AF_INET, true}, {"socket", unix.AF_VSOCK, false}, {"socket", unix.AF_ALG, false},
		{"personality", 8, true}, {"personality", 1, false}, {"mount", 0, false}, {"futex_waitv", 0, true},
	} {
		if got := usual.rule(row.name).Allows(row.name, [6]uint64{row.arg}); got != row.want {
			t.Errorf("%s(%#x): %v", row.name, row.arg, got)
		}
	}
}
