package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// dockers is Docker's default profile as it stands in a container's config.json.
func dockers() (*specs.LinuxSeccomp, error) {
	tree, err := engine.Tree()
	if err != nil {
		return nil, err
	}
	raw, err := os.ReadFile(filepath.Join(tree, "seccompgen/filter/testdata/docker-20.10.json"))
	if err != nil {
		return nil, err
	}
	p := new(specs.LinuxSeccomp)
	return p, json.Unmarshal(raw, p)
}

// inEngine builds the filter that a container with these calls has under
// Docker's default profile.
func inEngine(calls []plan.Syscall, unresolved int) (*specs.LinuxSeccomp, *filter.Verdicts, error) {
	engine, err := dockers()
	if err != nil {
		return nil, nil, err
	}
	return filter.Build(filter.Input{Arch: "amd64", Allow: calls, Widened: unresolved > 0, Engine: engine, NoNewPrivileges: true,
		ListenerPath: "/listener", Mode: record.Enforce})
}

// arguments are what a call is tried with: an allow-list by argument lets it
// through if it lets one of these.
var arguments = map[string][][6]uint64{
	"socket":      {{unix.AF_UNIX, unix.SOCK_STREAM}, {unix.AF_INET, unix.SOCK_STREAM}, {unix.AF_INET6, unix.SOCK_DGRAM}, {unix.AF_NETLINK, unix.SOCK_RAW}, {unix.AF_PACKET, unix.SOCK_RAW}},
	"socketpair":  {{unix.AF_UNIX, unix.SOCK_STREAM}},
	"clone":       {{uint64(unix.SIGCHLD)}, {unix.CLONE_VM | unix.CLONE_VFORK | uint64(unix.SIGCHLD)}, {unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_THREAD | unix.CLONE_SYSVSEM}},
	"personality": {{0}, {0xffffffff}},
	"prctl":       {{unix.PR_SET_NAME}, {unix.PR_SET_DUMPABLE}, {unix.PR_SET_NO_NEW_PRIVS, 1}, {unix.PR_CAPBSET_READ}, {unix.PR_SET_KEEPCAPS}, {unix.PR_SET_PDEATHSIG}, {unix.PR_SET_SECCOMP}},
	"ioctl":       {{0, unix.TCGETS}, {0, unix.TCFLSH}, {0, unix.TIOCSTI}},
	"fcntl":       {{0, unix.F_GETFL}, {0, unix.F_DUPFD}, {0, unix.F_SETFL}},
	"mmap":        {{0, 4096, unix.PROT_READ | unix.PROT_WRITE, unix.MAP_PRIVATE}, {0, 4096, unix.PROT_READ | unix.PROT_EXEC, unix.MAP_PRIVATE}},
	"mprotect":    {{0, 4096, unix.PROT_READ}, {0, 4096, unix.PROT_READ | unix.PROT_EXEC}},
	"kill":        {{0, 0}},
}

// try lists every call of the architecture with what it is tried with.
func try() (names []string, calls []filter.Call) {
	for _, name := range sysno.All("amd64") {
		nr, ok := sysno.Number("amd64", name)
		// The kernel lets these past every filter and ends who makes them
		// elsewhere than in its own trampoline (Linux 6.14, kernel/seccomp.c).
		if !ok || name == "uretprobe" || name == "uprobe" {
			continue
		}
		with := arguments[name]
		if with == nil {
			with = [][6]uint64{{}}
		}
		for _, a := range with {
			names = append(names, name)
			calls = append(calls, filter.Call{Nr: nr, Args: a})
		}
	}
	return names, calls
}

// judged is what two judges say about every call of a server.
type judged struct {
	allowed map[string]bool
	// differ are calls about which the kernel says something else.
	differ []string
}

// judge asks the interpreter and the kernel about every call, none of which
// happens. The caller is a process that serves and is in its loop.
func judge(ctx context.Context, f *observe.Filter, by filter.Caller) (*judged, error) {
	names, calls := try()
	simulated, err := observe.Simulate(f, by, calls)
	if err != nil {
		return nil, err
	}
	real, err := observe.Kernel(ctx, f, by, calls)
	if err != nil {
		return nil, err
	}
	out := &judged{allowed: map[string]bool{}}
	for i, name := range names {
		if simulated[i] != real[i] {
			out.differ = append(out.differ, fmt.Sprintf("%s%v: interpreter %+v, kernel %+v", name, calls[i].Args, simulated[i], real[i]))
		}
		// In doubt it counts as allowed.
		out.allowed[name] = out.allowed[name] || simulated[i].Allowed || real[i].Allowed
	}
	return out, nil
}

// judgeServing judges a server's filter as a process meets it that serves.
func (s *served) judge(ctx context.Context, by filter.Caller) (*judged, error) {
	p, v, err := inEngine(s.calls, len(s.unresolved))
	if err != nil {
		return nil, err
	}
	f, err := compiled(p, v)
	if err != nil {
		return nil, err
	}
	return judge(ctx, f, by)
}

var (
	beforeServing = filter.Caller{Identity: record.Application, Phase: record.Starting, Mode: record.Enforce}
	whileServing  = filter.Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce, InLoop: "the server"}
)

// shells are programs that run whatever an attacker hands them.
var shells = []string{"sh", "bash", "dash", "ash", "busybox", "zsh", "ksh", "perl", "python", "python3", "php", "ruby", "lua", "node", "env", "awk", "gawk", "mawk", "socat", "nc"}

// executable are the programs that the exec guard lets the server run once it
// serves, when the image's command is the server.
func (s *served) executable(ctx context.Context) ([]string, error) {
	raw, err := json.Marshal(map[string]any{"config": map[string]any{"Cmd": s.argv, "Env": s.env}})
	if err != nil {
		return nil, err
	}
	d, err := declared.FromImageConfig(raw)
	if err != nil {
		return nil, err
	}
	root, err := rootfs.Open(s.root)
	if err != nil {
		return nil, err
	}
	defer root.Close()
	if err := d.ResolveUser(root); err != nil {
		return nil, err
	}
	c, err := procmap.Derive(ctx, root, d)
	if err != nil {
		return nil, err
	}
	if c.Wide {
		return nil, errors.New("the closure of programs is wide")
	}
	var out []string
	for _, p := range c.Processes {
		if p.Phase == record.Serving && p.Identity != record.HealthCheck && !p.Loader {
			out = append(out, p.Path)
		}
	}
	return out, nil
}

// shellAmong tells whether one of the programs runs whatever it is handed.
func shellAmong(programs []string) bool {
	return slices.ContainsFunc(programs, func(p string) bool {
		base := filepath.Base(p)
		return slices.ContainsFunc(shells, func(s string) bool {
			return base == s || len(base) > len(s) && base[:len(s)] == s && base[len(s)] >= '0' && base[len(s)] <= '9'
		})
	})
}
