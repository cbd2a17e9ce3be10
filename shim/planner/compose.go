// Package planner makes a container's plan: it brings the facts of all
// dimensions together (what is declared, what the image's files say), and
// turns the plan into the edited config.json and the tables the supervisor
// works with.
//
// It guarantees that an error in any dimension is an error of the whole: a
// container is never planned from some of its dimensions.
package planner

import (
	"slices"
	"strings"

	"github.com/declarun/declarun/procmap"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// facts is all that a plan follows from.
type facts struct {
	declared  *declared.Declared
	modes     map[record.Dimension]record.Mode
	closure   *procmap.Closure
	calls     *seccompgen.Result // nil for a wide container
	network   plan.Network
	admission plan.Admission
	notes     []plan.Note
	engine    func(name string) bool // does the engine's profile allow it at all; nil: it gave none
	arch      string
}

// compose is the pure part: facts to plan.
func compose(f facts) *plan.Plan {
	d := f.declared
	p := &plan.Plan{
		Mode:               f.modes,
		Image:              plan.Image{Ref: d.Image.Ref, Digest: d.Image.Digest},
		Wide:               f.closure.Wide,
		WideReason:         f.closure.WideReason,
		WideStarting:       f.closure.WideStarting,
		WideStartingReason: f.closure.WideStartingReason,
		Processes:          f.closure.Processes,
		Network:            f.network,
		Admission:          f.admission,
		Notes:              f.notes,
	}
	for i := range p.Processes {
		p.Processes[i].Main = p.Processes[i].Main || slices.Contains(f.closure.Main, p.Processes[i].Path)
	}
	p.Network.Inside = f.closure.Listen
	p.Syscalls = f.syscalls()
	p.Storage = plan.Storage{ReadonlyRoot: d.Image.Known || d.ReadonlyRoot, Writable: f.closure.Writable}
	p.Capabilities = f.capabilities(p.Syscalls)
	p.NoNewPrivileges = f.noNewPrivileges()
	for _, m := range d.Missing {
		p.Notes = append(p.Notes, plan.Note{Dimension: record.Admission, Text: m})
	}
	if !d.Image.Known {
		p.Notes = append(p.Notes, plan.Note{Dimension: record.Storage,
			Text: "no image config: config.json itself is the declaration, its root, mounts and capabilities are taken at their word"})
	}
	return p
}

func (f facts) syscalls() plan.Syscalls {
	s := plan.Syscalls{Architecture: f.arch, Allow: []plan.Syscall{}, Unresolved: []plan.Site{}}
	if f.calls == nil {
		s.Widened = true
		return s
	}
	for _, c := range f.calls.Calls {
		if f.engine != nil && !f.engine(c.Name) {
			continue
		}
		switch f.use(c.Name) {
		case never:
			continue
		case untilServing:
			c.Phase = record.Starting
		}
		s.Allow = append(s.Allow, c)
	}
	s.Unresolved = append(s.Unresolved, f.calls.Unresolved...)
	// A command that cannot be known makes calls that cannot be known.
	s.Widened = len(s.Unresolved) > 0 || f.closure.WideStarting
	for i := range s.Allow {
		s.Allow[i].UntilLoop = s.Allow[i].UntilLoop && !s.Widened
		if s.Allow[i].UntilLoop {
			s.Loops = f.calls.Loops
		}
	}
	return s
}

// privileged are calls that fail with EPERM whatever their arguments for a
// caller without the capability in the user namespace of its container
// (capabilities(7) and each call's manual page).
//
// Not here, because something succeeds without: setns (into a namespace that
// the caller owns), open_tree (without OPEN_TREE_CLONE it opens a path),
// fsconfig (its object was checked by fsopen), iopl and ioperm (giving access
// back), clock_settime (a clock that is a device asks for the device to be
// writable), adjtimex and clock_adjtime (reading), open_by_handle_at (handles
// of processes, Linux 6.14), quotactl (one's own quota), syslog (as
// kernel.dmesg_restrict says), fanotify_init, bpf and perf_event_open
// (restricted use), mknod (pipes and sockets).
var privileged = map[string]string{
	"chroot":          "CAP_SYS_CHROOT",
	"mount":           "CAP_SYS_ADMIN",
	"umount":          "CAP_SYS_ADMIN",
	"umount2":         "CAP_SYS_ADMIN",
	"pivot_root":      "CAP_SYS_ADMIN",
	"move_mount":      "CAP_SYS_ADMIN",
	"fsopen":          "CAP_SYS_ADMIN",
	"fsmount":         "CAP_SYS_ADMIN",
	"fspick":          "CAP_SYS_ADMIN",
	"mount_setattr":   "CAP_SYS_ADMIN",
	"swapon":          "CAP_SYS_ADMIN",
	"swapoff":         "CAP_SYS_ADMIN",
	"sethostname":     "CAP_SYS_ADMIN",
	"setdomainname":   "CAP_SYS_ADMIN",
	"reboot":          "CAP_SYS_BOOT",
	"kexec_load":      "CAP_SYS_BOOT",
	"kexec_file_load": "CAP_SYS_BOOT",
	"init_module":     "CAP_SYS_MODULE",
	"finit_module":    "CAP_SYS_MODULE",
	"delete_module":   "CAP_SYS_MODULE",
	"settimeofday":    "CAP_SYS_TIME",
	"stime":           "CAP_SYS_TIME",
	"acct":            "CAP_SYS_PACCT",
	"vhangup":         "CAP_SYS_TTY_CONFIG",
}

type use uint8

const (
	always use = iota
	untilServing
	never
)

// use tells when a call can do anything but fail for the container's programs.
//
// A process that makes a user namespace of its own has every capability in it:
// nothing is concluded unless the engine's profile keeps it from that. Whether
// the profile allows clone with CLONE_NEWUSER is not seen here; one that
// withholds unshare and clone3 withholds it too (Docker's, containerd's and
// Podman's do).
//
// Once the container serves, the health check counts as what serves does,
// although the engine may run it as root: no check is known that changes its
// root directory or mounts anything.
func (f facts) use(name string) use {
	capability, ok := privileged[name]
	if !ok || f.closure.Wide || f.namespaces() {
		return always
	}
	switch {
	case !slices.Contains(f.declared.Process.Capabilities, capability):
		return never
	case f.closure.ServesUnprivileged && len(f.calls.Setuid) == 0 && len(f.calls.FileCaps) == 0:
		return untilServing
	}
	return always
}

// needs lists, for capabilities that are of use in particular system calls
// only, those calls (capabilities(7)). A container whose filter refuses all of
// them cannot use the capability. That runc's init uses some before the first
// program is no matter: it drops them from the bounding set last
// (finalizeNamespace), and keeps what it has until then.
//
// Of those that engines give by default, not here:
//
//   - DAC_OVERRIDE, FOWNER, FSETID: of use in every call that names a file.
//   - KILL: of use in tgkill, with which programs abort, and fcntl (F_SETOWN).
//   - NET_RAW, AUDIT_WRITE: here, but kept where there is a socket at all. Which
//     domains and types are asked for is proved of no server: they come from
//     getaddrinfo and from configurations. Beside sockets, NET_RAW is of use
//     for SO_MARK, SO_BINDTODEVICE and IP_TRANSPARENT.
var needs = map[string][]string{
	"CAP_MKNOD":            {"mknod", "mknodat"},
	"CAP_SYS_CHROOT":       {"chroot", "setns"},
	"CAP_CHOWN":            {"chown", "fchown", "lchown", "fchownat", "io_uring_setup"},
	"CAP_NET_BIND_SERVICE": {"bind", "io_uring_setup"},
	"CAP_NET_RAW":          {"socket", "setsockopt"},
	"CAP_AUDIT_WRITE":      {"socket"},
	// Also for mapping user ID 0 in a user namespace (Linux 5.12).
	"CAP_SETFCAP": {"setxattr", "lsetxattr", "fsetxattr", "setxattrat", "unshare", "clone3", "io_uring_setup"},
	"CAP_SETPCAP": {"capset", "prctl"},
	// Also for user or group IDs of another in the credentials that go with a
	// message (SCM_CREDENTIALS in unix(7)), and in maps of a user namespace.
	"CAP_SETUID": {"setuid", "setreuid", "setresuid", "setfsuid", "sendmsg", "sendmmsg", "unshare", "clone3", "io_uring_setup"},
	"CAP_SETGID": {"setgid", "setregid", "setresgid", "setfsgid", "setgroups", "sendmsg", "sendmmsg", "unshare", "clone3", "io_uring_setup"},
}

// capabilities are those of config.json that the filter leaves a use for. What
// the operator added stays.
func (f facts) capabilities(s plan.Syscalls) []plan.Capability {
	d := f.declared
	kept := []plan.Capability{}
	for _, name := range d.Process.Capabilities {
		origin := record.Origin{Source: record.FromEngine, At: "process.capabilities"}
		none, by := f.useless(name, s)
		switch {
		case slices.ContainsFunc(d.Operator.CapAdd, func(c string) bool {
			c = strings.ToUpper(c)
			return c == "ALL" || strings.TrimPrefix(c, "CAP_") == strings.TrimPrefix(name, "CAP_")
		}):
			origin = record.Origin{Source: record.FromOperator, At: "--cap-add " + name}
		case s.Widened || !d.Image.Known || f.modes[record.Syscalls] != record.Enforce:
		case none:
			continue
		case by != "":
			origin.Text = "of use in " + by
		}
		kept = append(kept, plan.Capability{Name: name, Origins: []record.Origin{origin}})
	}
	return kept
}
