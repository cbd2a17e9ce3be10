// looper stands for a server: main prepares, loop serves. In both it does what
// it is told through a pair of FIFOs. getpriority is the call that it may make
// only before its loop.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <link.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

extern void *__libc_stack_end;
static const char *self, *dir;
static int probe;
static uintptr_t marker, bias;

static void serve(const char *name);
#pragma GCC diagnostic ignored "-Winfinite-recursion"

static int first(struct dl_phdr_info *info, size_t size, void *data) {
	bias = info->dlpi_addr;
	return 1;
}

// The return address of this one call is the proof.
__attribute__((noinline, noipa)) static void loop(const char *name) {
	for (;;) {
		serve(name);
		__asm__ volatile("" ::: "memory");
	}
}

__attribute__((noinline, noipa)) static void deep(const char *name, int frames) {
	volatile char room[64 << 10];
	room[0] = room[sizeof room - 1] = (char)frames;
	if (frames > 0)
		deep(name, frames - 1);
	else
		serve(name);
	room[1] = room[0];
}

static void *thread(void *name) { serve(name); return NULL; }
static void *loopingThread(void *name) { loop(name); return NULL; }

static const char *pivoted;
static void *oldStart, *oldEnd;
static int trap; // whoever reads it waits for this process
static void onOther(void) {
	size_t size = (char *)oldEnd - (char *)oldStart;
	if (trap) {
		struct uffdio_api api = {.api = UFFD_API};
		struct uffdio_register range = {.range = {(uintptr_t)oldStart, size}, .mode = UFFDIO_REGISTER_MODE_MISSING};
		int fd = syscall(SYS_userfaultfd, O_CLOEXEC);
		if (fd < 0 || ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &range)) _exit(5);
		madvise(oldStart, size, MADV_DONTNEED);
	} else {
		munmap(oldStart, size);
	}
	serve(pivoted);
	_exit(0);
}

static void reply(int out, const char *s) {
	char line[128];
	int n = snprintf(line, sizeof line, "%s\n", s);
	if (write(out, line, n) != n) _exit(3);
}

__attribute__((noinline, noipa)) static void serve(const char *name) {
	char path[512], line[256];
	if (probe) {
		printf("%lx\n", (unsigned long)((uintptr_t)__builtin_return_address(0) - bias));
		exit(0);
	}
	snprintf(path, sizeof path, "%s/%s.in", dir, name);
	int in = open(path, O_RDONLY | O_CLOEXEC);
	snprintf(path, sizeof path, "%s/%s.out", dir, name);
	int out = open(path, O_WRONLY | O_CLOEXEC);
	if (in < 0 || out < 0) _exit(4);
	for (;;) {
		size_t n = 0;
		while (n < sizeof line - 1 && read(in, line + n, 1) == 1 && line[n] != '\n') n++;
		line[n] = 0;
		if (n == 0) _exit(0);
		char *arg = strchr(line, ' ');
		if (arg) *arg++ = 0;
		char *kept = arg ? strdup(arg) : "";
		pthread_t t;
		if (!strcmp(line, "call")) {
			long got = syscall(SYS_getpriority, PRIO_PROCESS, 0);
			reply(out, got < 0 ? strerror(errno) : "ok");
		} else if (!strcmp(line, "calls")) {
			for (int i = atoi(kept); i > 0; i--) syscall(SYS_getpriority, PRIO_PROCESS, 0);
			reply(out, "ok");
		} else if (!strcmp(line, "loop")) {
			reply(out, "ok");
			close(in), close(out);
			loop(name);
		} else if (!strcmp(line, "deep")) {
			reply(out, "ok");
			close(in), close(out);
			deep(name, atoi(kept));
		} else if (!strcmp(line, "fork")) {
			if (fork() == 0) serve(kept);
			reply(out, "ok");
		} else if (!strcmp(line, "vfork")) { // goes on when the child executes or ends
			if (vfork() == 0) serve(kept);
			reply(out, "ok");
		} else if (!strcmp(line, "orphan")) {
			pid_t p = fork();
			if (p == 0) {
				if (fork() == 0) serve(kept);
				_exit(0);
			}
			waitpid(p, NULL, 0);
			reply(out, "ok");
		} else if (!strcmp(line, "thread")) {
			pthread_create(&t, NULL, thread, kept);
			reply(out, "ok");
		} else if (!strcmp(line, "threadloop")) {
			pthread_create(&t, NULL, loopingThread, kept);
			reply(out, "ok");
		} else if (!strcmp(line, "wipe")) {
			int wiped = 0;
			for (uintptr_t *w = __builtin_frame_address(0); (void *)w < __libc_stack_end; w++)
				if (*w == marker) *w = 0, wiped++;
			reply(out, wiped ? "ok" : "nothing to wipe");
		} else if (!strcmp(line, "scrub")) {
			memset((void *)getauxval(AT_RANDOM), 'x', 16);
			reply(out, "ok");
		} else if (!strcmp(line, "pivot") || !strcmp(line, "trap")) {
			trap = line[0] == 't';
			static ucontext_t there, here;
			size_t size = 1 << 20;
			char *stack = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			long page = sysconf(_SC_PAGESIZE);
			oldEnd = (void *)(((uintptr_t)__libc_stack_end + page) & -page);
			oldStart = (char *)oldEnd - 32 * page;
			pivoted = strdup(name);
			getcontext(&there);
			there.uc_stack.ss_sp = stack, there.uc_stack.ss_size = size;
			makecontext(&there, onOther, 0);
			reply(out, "ok");
			close(in), close(out);
			swapcontext(&here, &there);
		} else if (!strcmp(line, "exec")) {
			execl(self, self, dir, kept, NULL);
			reply(out, strerror(errno));
		} else if (!strcmp(line, "execother")) {
			snprintf(path, sizeof path, "%s/other", dir);
			execl(path, path, dir, kept, NULL);
			reply(out, strerror(errno));
		} else if (!strcmp(line, "execfail")) {
			execl("/nonexistent", "x", NULL);
			reply(out, strerror(errno));
		} else if (!strcmp(line, "execforever")) {
			execl(self, self, dir, "--exec", kept, NULL);
		} else if (!strcmp(line, "pid")) {
			char s[32];
			snprintf(s, sizeof s, "%d", getpid());
			reply(out, s);
		} else {
			_exit(0);
		}
	}
}

int main(int argc, char **argv) {
	dl_iterate_phdr(first, NULL);
	// Copies: pivot takes the stack away, and what lies beside it.
	self = strdup(argv[0]), dir = strdup(argv[1]);
	if (!strcmp(dir, "--returns")) {
		probe = 1;
		loop("");
	}
	// What was found of loop's call is handed over as an environment variable.
	const char *m = getenv("LOOPER_MARKER");
	marker = bias + (m ? strtoul(m, NULL, 16) : 0);
	if (!strcmp(argv[2], "--exec")) { // over and over, as often as the letters of its argument
		if (argv[3][0] != 0) execl(self, self, dir, "--exec", argv[3] + 1, NULL);
		serve("execed");
	}
	serve(strdup(argv[2]));
	return 0;
}
