package filter

import (
	"cmp"
	"slices"
	"strconv"
	"strings"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Never called by a program, yet made: the return from a signal handler, the
// restart of an interrupted call, and the end.
var always = []string{"rt_sigreturn", "sigreturn", "restart_syscall", "exit", "exit_group"}

// hot is what runc's init calls so often, or at such moments, that it is
// allowed in the kernel for the container's whole life; none of it reaches
// anything that a program with a standard library does not reach.
//
// write can be nothing else: runc refuses a profile that notifies it, since it
// hands over the notification descriptor with it.
var hot = []string{
	"write", "read", "close", "openat", "fcntl", "getpid",
	// the Go runtime's scheduler, which may run at any moment
	"futex", "gettid", "mmap", "munmap", "madvise", "nanosleep", "sched_yield",
	"epoll_ctl", "epoll_pwait", "rt_sigprocmask", "tgkill",
}

// runcCall is a call that runc's init makes between loading the filter and the
// container's first execve.
type runcCall struct {
	names string
	since [2]int // first runc version seen to make it
	nnp   bool   // also with noNewPrivileges, where the filter is loaded last
	why   string
}

// runcCalls is measured with a profile that notifies every call but write, on runc
// 1.1.5, 1.2.0 and 1.5.1, and read from libcontainer/standard_init_linux.go,
// init_linux.go (finalizeNamespace) and setns_init_linux.go at those versions.
// The Go runtime and, below it, the C library's thread creation may add theirs
// in any run.
var runcCalls = []runcCall{
	{"execve", [2]int{1, 0}, true, "the container's process"},
	{"fstatfs getdents64", [2]int{1, 1}, true, "close inherited descriptors through /proc/self/fd"},
	{"fstat", [2]int{1, 1}, true, "look at descriptors"},
	{"recvfrom", [2]int{1, 2}, true, "answer of the parent over the init socket"},
	{"openat2 statx readlinkat", [2]int{1, 5}, true, "reopen the exec fifo and procfs safely"},
	{"close_range", [2]int{1, 2}, true, "close inherited descriptors"},
	{"clone clone3 set_robust_list rseq mprotect sigaltstack rt_sigaction sched_getaffinity eventfd2 epoll_create1 epoll_wait pipe2 prlimit64 getrandom clock_gettime", [2]int{1, 0}, true, "threads of the Go runtime and the C library"},
	{"chdir getcwd", [2]int{1, 1}, false, "process.cwd"},
	{"capget capset prctl", [2]int{1, 1}, false, "process.capabilities"},
	{"setgroups setgid setuid setresgid setresuid", [2]int{1, 1}, false, "process.user"},
	{"newfstatat getppid faccessat faccessat2 kill", [2]int{1, 1}, false, "look up the program, watch the parent"},
}

// RuntimeNeeds lists what runc itself calls after it has loaded the filter,
// for a plan to print. Those of phase serving are allowed for good; those of
// phase starting are continued until the container's first execve and refused
// after it unless the image needs them too. version is runc's ("1.1.5"); one
// that cannot be read gets the needs of all.
func RuntimeNeeds(version string, noNewPrivileges bool) []plan.Syscall {
	at := "runc"
	if version != "" {
		at += " " + version
	}
	major, minor, known := parseVersion(version)
	var out []plan.Syscall
	add := func(name string, phase record.Phase, why string) {
		if slices.ContainsFunc(out, func(s plan.Syscall) bool { return s.Name == name }) {
			return
		}
		out = append(out, plan.Syscall{Name: name, Phase: phase,
			Origins: []record.Origin{{Source: record.FromRuntime, At: at, Text: why}}})
	}
	for _, n := range always {
		if n != "sigreturn" { // 32-bit only
			add(n, record.Serving, "made by the kernel's own doing or to end")
		}
	}
	for _, n := range hot {
		add(n, record.Serving, "runc's init and its Go runtime")
	}
	for _, n := range runcCalls {
		if noNewPrivileges && !n.nnp {
			continue
		}
		if known && (major < n.since[0] || major == n.since[0] && minor < n.since[1]) {
			continue
		}
		for name := range strings.FieldsSeq(n.names) {
			add(name, record.Starting, n.why)
		}
	}
	slices.SortFunc(out, func(a, b plan.Syscall) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

func parseVersion(s string) (major, minor int, ok bool) {
	parts := strings.SplitN(s, ".", 3)
	if len(parts) < 2 {
		return 0, 0, false
	}
	major, err1 := strconv.Atoi(parts[0])
	minor, err2 := strconv.Atoi(parts[1])
	return major, minor, err1 == nil && err2 == nil
}
