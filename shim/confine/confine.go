// Package confine takes away from the calling process what it does not need:
// system calls (seccomp), changes to files (Landlock), memory and open files
// (resource limits). It is for processes of
// declarun's own that read what nobody vouches for.
//
// Guarantees: after Install, every thread of the process is under the filter,
// those that start later too; a call that the list does not allow is never
// made. Where the process has a listener (Listener), the call waits there until
// whoever holds it has ended the process, and so can name it; without one the
// kernel ends the process at once. A foreign calling convention (32-bit, x32)
// ends the process in any case.
//
// Not guaranteed: arguments behind pointers cannot be judged, so openat2(2)'s
// flags are not: what it must not do is for Landlock and the limit on file
// sizes. Landlock is used as far as the kernel has it (Linux 5.13, truncation
// since 6.2, device ioctls since 6.10).
//
// Sources: seccomp(2), seccomp_unotify(2), landlock(7), setrlimit(2), and
// linux/seccomp.h and linux/landlock.h for the numbers.
package confine

import (
	"cmp"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
)

// Rule allows a system call, where all conditions hold.
type Rule struct {
	Name string
	If   []Cond
	// Refuse, where it is not 0, has the call fail with this error instead, and
	// the process live on: for calls that have a second best.
	Refuse unix.Errno
}

func (r Rule) verdict() unix.SockFilter {
	if r.Refuse != 0 {
		return ret(unix.SECCOMP_RET_ERRNO | uint32(r.Refuse)&unix.SECCOMP_RET_DATA)
	}
	return ret(unix.SECCOMP_RET_ALLOW)
}

// Cond holds where the argument, masked, has the value.
type Cond struct {
	Arg         int
	Mask, Value uint64
}

// Is is the condition that an argument of the kernel's type int has a value: the
// kernel looks at 32 bits of it, and so must the filter.
func Is(arg int, value uint32) Cond { return Cond{arg, 0xffffffff, uint64(value)} }

// None is the condition that of an argument none of the bits is set.
func None(arg int, bits uint64) Cond { return Cond{arg, bits, 0} }

// Offsets in struct seccomp_data.
const (
	dataNr   = 0
	dataArch = 4
	dataArgs = 16
)

var auditArch = map[string]uint32{"amd64": unix.AUDIT_ARCH_X86_64, "arm64": unix.AUDIT_ARCH_AARCH64}

// x32 marks the calls of that ABI on amd64.
const x32 = 0x40000000

// Program compiles rules. What none of them allows gets the action otherwise.
func Program(arch string, rules []Rule, otherwise uint32) ([]unix.SockFilter, error) {
	audit, ok := auditArch[arch]
	if !ok {
		return nil, fmt.Errorf("compile filter: %s is not supported", arch)
	}
	out := []unix.SockFilter{
		load(dataArch), {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jt: 1, K: audit}, ret(unix.SECCOMP_RET_KILL_PROCESS),
		load(dataNr), {Code: unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K, Jf: 1, K: x32}, ret(unix.SECCOMP_RET_KILL_PROCESS),
	}
	byNr := map[int][]Rule{}
	var order []int
	for _, r := range rules {
		nr, ok := sysno.Number(arch, r.Name)
		if !ok {
			return nil, fmt.Errorf("compile filter: %s has no call %q", arch, r.Name)
		}
		if byNr[nr] == nil {
			order = append(order, nr)
		}
		byNr[nr] = append(byNr[nr], r)
	}
	for _, nr := range order {
		body, err := alternatives(byNr[nr], otherwise)
		if err != nil {
			return nil, err
		}
		if len(body) > 255 {
			return nil, fmt.Errorf("compile filter: too many conditions on %s", byNr[nr][0].Name)
		}
		out = append(append(out, jumpUnless(uint32(nr), uint8(len(body)))), body...)
	}
	out = append(out, ret(otherwise))
	if len(out) > 4096 {
		return nil, fmt.Errorf("compile filter: %d instructions", len(out))
	}
	return out, nil
}

// alternatives allows where all conditions of one rule hold.
func alternatives(rules []Rule, otherwise uint32) ([]unix.SockFilter, error) {
	if i := slices.IndexFunc(rules, func(r Rule) bool { return len(r.If) == 0 }); i >= 0 {
		return []unix.SockFilter{rules[i].verdict()}, nil
	}
	// From the last one on: each jumps over its own rest to the one behind it.
	var out []unix.SockFilter
	for _, r := range rules {
		var body []unix.SockFilter
		for _, c := range slices.Backward(r.If) {
			if c.Arg < 0 || c.Arg > 5 {
				return nil, fmt.Errorf("compile filter: %s has no argument %d", r.Name, c.Arg)
			}
			var test []unix.SockFilter
			for half := range uint32(2) {
				mask, value := uint32(c.Mask>>(32*half)), uint32(c.Value>>(32*half))
				if mask == 0 && value == 0 {
					continue
				}
				test = append(test, load(dataArgs+8*uint32(c.Arg)+4*half), // little-endian
					unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask}, jumpUnless(value, 0))
			}
			body = append(test, body...)
		}
		body = append(body, r.verdict())
		for i := range body {
			if body[i].Code == unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K {
				if len(body)-i-1 > 255 {
					return nil, fmt.Errorf("compile filter: too many conditions on %s", r.Name)
				}
				body[i].Jf = uint8(len(body) - i - 1)
			}
		}
		out = append(out, body...)
	}
	return append(out, ret(otherwise)), nil
}

func load(off uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: off}
}

func jumpUnless(value uint32, over uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: over, K: value}
}

func ret(action uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: action}
}

// GoRuntime are the calls that Go's runtime makes in a program that has started:
// memory without execution, threads, timers, the network poller and signals to
// itself. pid is the process.
//
// Sources: runtime/sys_linux_*.s, runtime/os_linux.go and netpoll_epoll.go of
// Go 1.26.
//
// With cgo, threads are made by the C library: clone3(2), whose flags no filter
// can judge, fails as it does on older kernels.
func GoRuntime(pid int) []Rule {
	rules := []Rule{
		{Name: "futex"}, {Name: "nanosleep"}, {Name: "clock_gettime"}, {Name: "sched_yield"}, {Name: "restart_syscall"},
		{Name: "sched_getaffinity"}, {Name: "getpid"}, {Name: "gettid"}, {Name: "getrandom"},
		{Name: "rt_sigprocmask"}, {Name: "rt_sigaction"}, {Name: "rt_sigreturn"}, {Name: "sigaltstack"},
		{Name: "exit"}, {Name: "exit_group"}, {Name: "munmap"}, {Name: "madvise"}, {Name: "mincore"},
		{Name: "mmap", If: []Cond{None(2, unix.PROT_EXEC), None(3, unix.MAP_SHARED)}},
		{Name: "mprotect", If: []Cond{None(2, unix.PROT_EXEC)}},
		{Name: "clone", If: []Cond{{0, ^uint64(unix.CLONE_SETTLS), goThread}}}, // with thread-local storage where the machine has it in a register
		{Name: "tgkill", If: []Cond{Is(0, uint32(pid))}},                       // preemption
		{Name: "epoll_pwait"}, {Name: "epoll_ctl"},
		{Name: "prctl", If: []Cond{Is(0, unix.PR_SET_VMA), Is(1, unix.PR_SET_VMA_ANON_NAME)}}, // names for its memory
	}
	if withCgo {
		rules = append(rules, Rule{Name: "clone3", Refuse: unix.ENOSYS}, Rule{Name: "clone", If: []Cond{{0, ^uint64(0), cThread}}},
			Rule{Name: "rseq"}, Rule{Name: "set_robust_list"})
	}
	return rules
}

// goThread are the flags that Go's runtime starts threads with
// (runtime/os_linux.go, cloneFlags).
const goThread = unix.CLONE_VM | unix.CLONE_FS | unix.CLONE_FILES | unix.CLONE_SIGHAND | unix.CLONE_SYSVSEM | unix.CLONE_THREAD

// cThread are those of glibc's and musl's pthread_create without clone3.
const cThread = goThread | unix.CLONE_SETTLS | unix.CLONE_PARENT_SETTID | unix.CLONE_CHILD_CLEARTID

// Names lists the calls that rules allow, sorted.
func Names(rules []Rule) []string {
	var out []string
	for _, r := range rules {
		if r.Refuse == 0 {
			out = append(out, r.Name)
		}
	}
	slices.SortFunc(out, cmp.Compare[string])
	return slices.Compact(out)
}
