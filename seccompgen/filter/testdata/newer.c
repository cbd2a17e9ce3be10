// One success of a newer system call, by number (argument 1), in a directory of
// its own (argument 3): with the call "allowed", or "refused" with ENOSYS. The
// exit status is 0 where it succeeds, 1 where it fails, 90 and up where nothing
// was tried.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static void refuse(int nr) {
	struct sock_filter f[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, nr, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog p = {4, f};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &p)) exit(99);
}
static void *thread(void *a) { return a; }
int main(int c, char **v) {
	int refused = !strcmp(v[2], "refused"), nr = atoi(v[1]);
	char *dir = v[3];
	if (nr == SYS_faccessat2 && (mkdir("own", 0700) || setreuid(65534, 0))) return 98;
	if (nr == SYS_close_range && chroot(dir)) return 98;
	int a = open("f", O_RDWR | O_CREAT, 0600), b = open("g", O_RDWR | O_CREAT, 0600);
	if (refused) refuse(nr);
	pthread_t t;
	struct statx s;
	char x = 'x';
	struct iovec io = {&x, 1};
	switch (nr) {
	case SYS_rseq: return pthread_create(&t, NULL, thread, NULL) || pthread_join(t, NULL);
	case SYS_statx: return statx(AT_FDCWD, "/", 0, STATX_BTIME, &s) || !(s.stx_mask & STATX_BTIME);
	case SYS_faccessat2: return faccessat(AT_FDCWD, "own/.", X_OK, AT_EACCESS) != 0;
	case SYS_close_range: closefrom(3); return 0;
	case SYS_copy_file_range: return copy_file_range(a, NULL, b, NULL, 1, 0) < 0;
	case SYS_pwritev2: return pwritev2(a, &io, 1, 0, RWF_APPEND) != 1;
	}
	return 97;
}
