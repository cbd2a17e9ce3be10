package filter

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// withheld are calls that Docker's default profile refuses a container without
// added capabilities, in every version from 20.10 (io_uring: from 25.0) to
// moby/profiles of June 2026. Names that only some of these versions refuse
// because they are older than the call are not among them.
const withheld = `
acct add_key bpf clock_settime create_module delete_module fanotify_init finit_module
fsconfig fsmount fsopen fspick get_kernel_syms get_mempolicy init_module
io_uring_setup io_uring_enter io_uring_register ioperm iopl kcmp kexec_file_load kexec_load keyctl
listmount lookup_dcookie mbind migrate_pages mount mount_setattr move_mount move_pages nfsservctl
open_by_handle_at open_tree open_tree_attr perf_event_open pidfd_getfd pivot_root process_madvise query_module
quotactl quotactl_fd reboot request_key set_mempolicy set_mempolicy_home_node setdomainname sethostname
setns settimeofday statmount swapoff swapon sysfs syslog _sysctl umount umount2 unshare uselib
userfaultfd ustat vhangup vm86 vm86old stime
`

// namespaces are CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET.
const namespaces = unix.CLONE_NEWNS | unix.CLONE_NEWCGROUP | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWUSER | unix.CLONE_NEWPID | unix.CLONE_NEWNET

// Usual stands for the profile of an engine that is not known: it refuses what
// Docker's default profile refuses, and allows everything else. clone makes no
// namespaces; clone3, whose flags a filter cannot see, does not exist; sockets
// are not of AF_ALG or AF_VSOCK; personality has the five values that programs
// are run with.
//
// It is for plans that people ask for. A container is held to the profile that
// its engine gave it.
func Usual(arch string) *specs.LinuxSeccomp {
	refused := make(map[string]bool)
	for n := range strings.FieldsSeq(withheld) {
		refused[n] = true
	}
	refused["clone"], refused["clone3"], refused["socket"], refused["personality"] = true, true, true, true
	var allowed []string
	arches := []string{arch}
	if h := half[arch]; h != "" {
		arches = append(arches, h)
	}
	out := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno}
	for _, a := range arches {
		out.Architectures = append(out.Architectures, scmpArches[a])
		for _, n := range names(a) {
			if !refused[n] && !slices.Contains(allowed, n) {
				allowed = append(allowed, n)
			}
		}
	}
	slices.Sort(allowed)
	when := func(name string, a specs.LinuxSeccompArg) {
		out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: []string{name}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{a}})
	}
	out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: allowed, Action: specs.ActAllow})
	when("clone", specs.LinuxSeccompArg{Index: 0, Value: namespaces, ValueTwo: 0, Op: specs.OpMaskedEqual})
	for _, p := range []uint64{0, 0x8, 0x20000, 0x20008, 0xffffffff} {
		when("personality", specs.LinuxSeccompArg{Index: 0, Value: p, Op: specs.OpEqualTo})
	}
	for d := range uint64(unix.AF_MAX) {
		if d != unix.AF_ALG && d != unix.AF_VSOCK {
			when("socket", specs.LinuxSeccompArg{Index: 0, Value: d, Op: specs.OpEqualTo})
		}
	}
	enosys := uint(unix.ENOSYS)
	out.Syscalls = append(out.Syscalls, specs.LinuxSyscall{Names: []string{"clone3"}, Action: specs.ActErrno, ErrnoRet: &enosys})
	return out
}
