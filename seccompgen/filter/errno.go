package filter

import (
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// fallback lists calls that libraries try and do without where the kernel does
// not have them. They look for ENOSYS; EPERM is an error to most of them.
//
// Sources: moby#42680, runc#2151, crun#646 (clone3, faccessat2, openat2: a C
// library update broke containers under EPERM); glibc's
// sysdeps/unix/sysv/linux: clone-internal.c, spawni.c, faccessat.c,
// fchmodat.c, mlock2.c, preadv2.c, pwritev2.c, fexecve.c, renameat2.c;
// util-linux libmount (the new mount API); libuv (io_uring, copy_file_range);
// Go's internal/poll and os (copy_file_range, pidfd_open).
//
// A call of this list that programs do make is not taken from their plan,
// although they would go on to an older one that is in it as well: none of these
// pairs is the same in every case (TestNewerCallsAreMissed shows it of glibc).
//
//   - rseq: a thread of a process that registered before must register as well,
//     or glibc aborts it. runc's init is such a process when it loads the filter.
//   - statx: stat has no time of birth, no mount and no attributes.
//   - faccessat2: without it glibc asks for the real user where the effective
//     one was meant, if these became different after the start.
//   - close_range: without it closefrom needs /proc, or aborts.
//   - copy_file_range, preadv2 and pwritev2 with flags, openat2, pidfd_open and
//     what goes with it, epoll_pwait2: glibc passes the error on. Whether the
//     caller does without is another question for each.
//   - clone3: glibc has clone for everything but CLONE_INTO_CGROUP. Engines'
//     profiles withhold clone3 where that matters.
const fallback = `
clone3 openat2 faccessat2 fchmodat2 statx close_range rseq execveat
io_uring_setup io_uring_enter io_uring_register
futex_waitv futex_wait futex_wake futex_requeue
pidfd_open pidfd_send_signal pidfd_getfd
memfd_create memfd_secret map_shadow_stack mseal mlock2 cachestat
copy_file_range preadv2 pwritev2 getrandom epoll_pwait2 renameat2 membarrier
landlock_create_ruleset landlock_add_rule landlock_restrict_self
open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr
listmount statmount quotactl_fd process_madvise process_mrelease
setxattrat getxattrat listxattrat removexattrat file_getattr file_setattr
lsm_get_self_attr lsm_set_self_attr lsm_list_modules
set_mempolicy_home_node uretprobe uprobe userfaultfd sched_getattr sched_setattr
`

var answersENOSYS = func() map[string]bool {
	out := make(map[string]bool)
	for n := range strings.FieldsSeq(fallback) {
		out[n] = true
	}
	return out
}()

// refusalErrno is what a refused call is answered with: what the engine's own
// rule for it says, else ENOSYS for a call that the engine's profile is too
// old to know or that libraries can do without, else the profile's default,
// else EPERM.
func (p *profile) refusalErrno(arch, name string, nr int) int32 {
	o, own := p.refusal(name)
	if own && o.action == specs.ActErrno {
		return clampErrno(o.errno)
	}
	if top := p.newest(arch); top >= 0 && nr > top && !p.rule(name).Allow {
		return int32(unix.ENOSYS)
	}
	if answersENOSYS[name] {
		return int32(unix.ENOSYS)
	}
	if o.action == specs.ActErrno && o.errno != 0 {
		return clampErrno(o.errno)
	}
	return int32(unix.EPERM)
}

// clampErrno keeps an errno in what the kernel returns (SECCOMP_RET_ERRNO
// takes at most MAX_ERRNO, 4095).
func clampErrno(e uint) int32 {
	if e > 4095 {
		return 4095
	}
	return int32(e)
}
