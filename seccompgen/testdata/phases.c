/* Ways to come from a server's loop to code that ran, was named or was left
 * before it. Every program calls early() once before its loop, and comes to
 * late() from the loop in the way that TRICK names. It ends with 0 when it did. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define HIDE __attribute__((noinline, noclone))
volatile int turns, yes = 1, no;

static HIDE void early(void) { syscall(SYS_acct, 1); }
HIDE void late(void) {
	if (turns == 0 && yes)
		_exit(2);
	syscall(SYS_mincore, 1, 0, 0);
	if (yes)
		_exit(0);
}
static HIDE void turn(void) {
	poll(0, 0, 1);
	if (++turns > 200)
		_exit(1);
}

#if TRICK == 0 /* nothing: both are gone */
static HIDE void serve(void) { for (;;) turn(); }
int main(void) { early(); if (no) late(); serve(); }

#elif TRICK == 1 /* a call in the loop */
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) late(); } }
int main(void) { early(); serve(); }

#elif TRICK == 2 /* behind the loop, in its function */
static HIDE int serve(void) { do turn(); while (turns < 3); late(); return 0; }
int main(void) { early(); return serve(); }

#elif TRICK == 3 /* behind the call of the function, two levels up */
static HIDE int serve(void) { do turn(); while (turns < 3); return yes; }
static HIDE int run(void) { int r = serve(); return r + 1; }
int main(void) { early(); if (run()) late(); return 3; }

#elif TRICK == 4 /* behind a call in place of a return */
static HIDE int serve(int x) { do turn(); while (turns < 3); return x; }
static HIDE int run(int x) { if (x > 5) early(); return serve(x + 1); }
int main(void) { early(); if (run(yes)) late(); return 3; }

#elif TRICK == 5 /* another caller of the function */
static HIDE void serve(void) { do turn(); while (turns % 3); }
static HIDE void other(void) { serve(); if (turns > 2) late(); }
int main(void) { early(); if (no) { serve(); return 3; } other(); return 3; }

#elif TRICK == 6 /* a signal handler */
static void handler(int s) { (void)s; if (turns > 1) late(); }
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) kill(getpid(), SIGUSR1); } }
int main(void) { early(); signal(SIGUSR1, handler); serve(); }

#elif TRICK == 7 /* a thread that was there before */
static void *routine(void *p) { while (turns < 3) usleep(100); late(); return p; }
static HIDE void serve(void) { for (;;) turn(); }
int main(void) { pthread_t t; early(); pthread_create(&t, 0, routine, 0); serve(); }

#elif TRICK == 8 /* a pointer on the heap */
struct job { void (*run)(void); };
static HIDE struct job *make(void) { struct job *j = malloc(sizeof *j); j->run = late; return j; }
static HIDE void serve(struct job *j) { for (;;) { turn(); if (turns > 2) j->run(); } }
int main(void) { early(); serve(make()); }

#elif TRICK == 9 /* exit handlers */
static void handler(void) { late(); }
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) exit(3); } }
int main(void) { early(); atexit(handler); serve(); }

#elif TRICK == 10 /* destructors */
__attribute__((destructor)) static void end(void) { late(); }
static HIDE int serve(void) { while (turns < 3) turn(); return 3; }
int main(void) { early(); return serve(); }

#elif TRICK == 11 /* a long jump back before the loop */
static jmp_buf env;
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) longjmp(env, 1); } }
int main(void) { early(); if (setjmp(env)) late(); else serve(); return 3; }

#elif TRICK == 12 /* a long jump over a function that returned nothing */
static sigjmp_buf env;
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) siglongjmp(env, 1); } }
static HIDE int run(void) { if (sigsetjmp(env, 1)) return 1; serve(); return 0; }
int main(void) { early(); if (run()) late(); return 3; }

#elif TRICK == 13 /* the loop runs on a stack of its own */
static ucontext_t back, there;
static char stack[65536];
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) swapcontext(&there, &back); } }
static void on(void) { serve(); }
int main(void) {
	early();
	getcontext(&there);
	there.uc_stack.ss_sp = stack, there.uc_stack.ss_size = sizeof stack;
	makecontext(&there, on, 0);
	swapcontext(&back, &there);
	late();
	return 3;
}

#elif TRICK == 14 /* something else is left on another stack */
static ucontext_t back, there;
static char stack[65536];
static void on(void) { swapcontext(&there, &back); late(); }
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) swapcontext(&back, &there); } }
int main(void) {
	early();
	getcontext(&there);
	there.uc_stack.ss_sp = stack, there.uc_stack.ss_size = sizeof stack;
	makecontext(&there, on, 0);
	swapcontext(&back, &there);
	serve();
}

#elif TRICK == 15 /* a switch in the loop, and one before */
static HIDE void one(int n) {
	switch (n) {
	case 0: turn(); break;
	case 1: turns++; break;
	case 2: usleep(1); break;
	case 3: late(); break;
	case 4: turns += 2; break;
	case 5: getppid(); break;
	default: turns--;
	}
}
static HIDE void serve(int n) {
	for (;;) {
		turn();
		switch (n + turns) {
		case 1: usleep(2); break;
		case 2: usleep(3); break;
		case 3: getppid(); break;
		case 4: n = 0; break;
		case 5: one(3); break;
		case 6: usleep(5); break;
		case 7: n = 4; break;
		}
	}
}
int main(int argc, char **argv) {
	(void)argv;
	switch (argc) {
	case 1: early(); break;
	case 2: usleep(5); break;
	case 3: late(); break;
	case 4: exit(3); break;
	case 5: argc = 2; break;
	case 6: early(); break;
	}
	serve(argc - 1);
}

#elif TRICK == 16 /* computed goto */
static HIDE void serve(void) {
	static void *to[] = {&&a, &&b, &&c};
	int i = 0;
a:	turn();
	goto *to[++i % 2 + (turns > 3)];
b:	turn();
	goto *to[0];
c:	late();
	goto a;
}
int main(void) { early(); serve(); }

#elif TRICK == 17 /* called back by a library */
static int compare(const void *a, const void *b) { if (turns > 2) late(); return *(int *)a - *(int *)b; }
static HIDE void serve(void) { int x[] = {3, 1, 2}; for (;;) { turn(); qsort(x, 3, sizeof *x, compare); } }
int main(void) { early(); serve(); }

#elif TRICK == 18 /* a table */
static void a(void) { usleep(1); }
static void (*const table[])(void) = {a, late, a};
static HIDE void serve(void) { for (;;) { turn(); table[turns % 3](); } }
int main(void) { early(); serve(); }

#elif TRICK == 19 /* a library looks it up by name */
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) ((void (*)(void))dlsym(dlopen(getenv("LIB"), RTLD_NOW), "call"))(); } }
int main(void) { early(); if (no) late(); serve(); }

#elif TRICK == 20 /* cleaning up when the thread is cancelled; needs -fexceptions */
static void clean(int *p) { if (turns > *p) late(); }
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) pthread_cancel(pthread_self()); } }
static HIDE void run(void) { __attribute__((cleanup(clean))) int x = no; early(); serve(); }
int main(void) { run(); }

#elif TRICK == 21 /* in a part that is kept apart */
__attribute__((cold)) static HIDE void rare(void) { late(); }
static HIDE void serve(void) { for (;;) { turn(); if (__builtin_expect(turns > 2, 0)) { usleep(3); rare(); usleep(4); } } }
int main(void) { early(); serve(); }

#elif TRICK == 22 /* the parent goes on where its child left */
static HIDE void serve(void) { for (;;) turn(); }
int main(void) {
	early();
	if (vfork() == 0) {
		turns++;
		_exit(0);
	}
	if (turns)
		late();
	serve();
}

#elif TRICK == 23 /* recursion */
int main(int argc, char **argv);
static HIDE void serve(char **argv) { for (;;) { turn(); if (turns == 3) main(2, argv); } }
int main(int argc, char **argv) { early(); if (argc == 2) late(); serve(argv); }

#elif TRICK == 24 /* when another thread ends */
static pthread_key_t key;
static void end(void *p) { (void)p; late(); }
static void *routine(void *p) { pthread_setspecific(key, &key); while (turns < 3) usleep(100); return p; }
static HIDE void serve(void) { for (;;) turn(); }
int main(void) { pthread_t t; early(); pthread_key_create(&key, end); pthread_create(&t, 0, routine, 0); serve(); }

#elif TRICK == 25 /* when a library decides what to call */
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) ((void (*)(void))dlsym(dlopen(getenv("LIB"), RTLD_LAZY), "call"))(); } }
int main(void) { early(); if (no) late(); serve(); }

#elif TRICK == 26 /* an alternate stack */
static char stack[65536];
static void handler(int s) { (void)s; if (turns > 2) late(); }
static HIDE void serve(void) { for (;;) { turn(); if (turns > 3) raise(SIGUSR2); } }
int main(void) {
	stack_t s = {.ss_sp = stack, .ss_size = sizeof stack};
	struct sigaction a = {.sa_handler = handler, .sa_flags = SA_ONSTACK};
	early();
	sigaltstack(&s, 0);
	sigaction(SIGUSR2, &a, 0);
	serve();
}

#elif TRICK == 27 /* behind a label that is stored */
static HIDE void serve(void *to) {
	void *keep = to;
	if (!keep) {
		early();
		keep = &&out;
	}
	for (;;) {
		turn();
		if (turns > 2)
			goto *keep;
	}
out:
	late();
}
int main(void) { serve(0); }

#elif TRICK == 28 /* the loop is in a signal handler that returns to the start */
static HIDE void serve(void) { while (turns < 3) turn(); }
static void handler(int s) { (void)s; serve(); }
int main(void) { early(); signal(SIGUSR1, handler); raise(SIGUSR1); late(); if (no) serve(); return 3; }

#elif TRICK == 29 /* a library calls a function of the program by name */
void hook(void) { if (turns > 2) late(); }
static HIDE void serve(void) { for (;;) { turn(); ((void (*)(void))dlsym(dlopen(getenv("LIB"), RTLD_NOW), "call"))(); } }
int main(void) { early(); if (no) hook(); serve(); }

#elif TRICK == 30 /* constructors of what is loaded later */
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) dlopen(getenv("LIB"), RTLD_NOW); } }
int main(void) { early(); serve(); }

#elif TRICK == 31 /* two threads come out of one system call */
static char stack[65536];
static HIDE void serve(void) { for (;;) turn(); }
int main(void) {
	early();
	if (no && syscall(SYS_clone, 0x100 /* CLONE_VM */, stack + sizeof stack) == 0)
		serve();
	while (turns < 3)
		turn();
	late();
	return 3;
}

#elif TRICK == 34 /* the function with the loop is itself a signal handler, and called, too */
static HIDE void serve(int s) { (void)s; while (turns < 3) turn(); }
int main(void) { early(); signal(SIGUSR1, serve); raise(SIGUSR1); late(); if (no) serve(0); return 3; }

#elif TRICK == 35 /* through a part that lies elsewhere, and back */
void step(void) { turn(); }
__asm__(".text\n.type serve, @function\nserve: .cfi_startproc\nsub $8, %rsp\n.cfi_def_cfa_offset 16\n1: call step\ncmpl $3, turns(%rip)\njl 1b\njmp apart\n"
	"back: call late\nadd $8, %rsp\n.cfi_def_cfa_offset 8\nret\n.cfi_endproc\n.size serve, . - serve\n.p2align 4\n"
	".type apart, @function\napart: .cfi_startproc\n.cfi_def_cfa_offset 16\nnop\njmp back\n.cfi_endproc\n.size apart, . - apart\n");
void serve(void);
int main(void) { early(); serve(); return 3; }

#elif TRICK == 32 /* an exception; C++ */
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) throw 1; } }
static HIDE void run(void) { try { serve(); } catch (int) { late(); } }
int main(void) { early(); run(); return 3; }

#elif TRICK == 33 /* an exception that goes through; C++ */
struct guard { ~guard() { if (turns > 2) late(); } };
static HIDE void serve(void) { for (;;) { turn(); if (turns > 2) throw 1; } }
static HIDE void run(void) { guard g; serve(); }
int main(void) { early(); try { run(); } catch (...) { return 3; } return 3; }
#endif
