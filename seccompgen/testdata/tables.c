// Functions that are only reached through tables, each by another way of
// getting at a table. Every one makes a system call of its own; "never" is in a
// table that nothing alive refers to.
#include <stddef.h>
#include <stdlib.h>
#include <unistd.h>
#include <sys/syscall.h>

#define CALL(name) __attribute__((noinline)) static long do_##name(long a) { return syscall(SYS_##name, a, 0, 0, 0, 0, 0) & 1; }
typedef long (*fn)(long);
volatile int zero, one = 1, many = 3;

// From element -1: loops that count down.
CALL(getpgid)
CALL(getsid)
static fn const down[] = {do_getpgid, do_getsid};
__attribute__((noinline)) long countdown(int n) {
	long r = 0;
	for (int i = n; i > 0; i--)
		r += down[i - 1](r);
	return r;
}

// By a pointer into the middle, before and after it.
CALL(mlock)
CALL(munlock)
CALL(mlockall)
struct op { const char *name; long flags; fn run; long pad[3]; };
static struct op const ops[] = {
	{"a", 1, do_mlock, {0}}, {NULL, 2, NULL, {0}}, {"c", 0, do_munlock, {0}}, {NULL, 0, NULL, {0}}, {"e", 5, do_mlockall, {0}},
};
const struct op *volatile middle = &ops[2];
__attribute__((noinline)) long aside(void) { return middle[-2 * one].run(1) + middle[zero].run(2) + middle[2 * one].run(3); }

// By the end of it.
CALL(munlockall)
CALL(getpriority)
static fn const up[] = {do_munlockall, do_getpriority};
__attribute__((noinline)) long backwards(void) {
	long r = 0;
	for (const fn *p = up + 2; p-- > up;)
		r += (*p)(r);
	return r;
}

// A field of a structure that another field's address leads to.
CALL(setpriority)
struct node { struct node *next, *prev; };
struct item { fn run; long x[5]; struct node link; };
static struct item item = {do_setpriority, {0}, {&item.link, &item.link}};
__attribute__((noinline)) long container(struct node *n) { return ((struct item *)((char *)n - offsetof(struct item, link)))->run(1); }

// Collected by the linker.
CALL(sched_rr_get_interval)
CALL(sched_getattr)
struct entry { fn run; long x[3]; };
#define SET __attribute__((section("handlers"), used, aligned(32)))
static struct entry const SET h1 = {do_sched_rr_get_interval, {0}};
static struct entry const SET h2 = {do_sched_getattr, {0}};
extern struct entry const __start_handlers[] __attribute__((visibility("hidden"))), __stop_handlers[] __attribute__((visibility("hidden")));
__attribute__((noinline)) long collected(void) {
	long r = 0;
	for (const struct entry *e = __start_handlers; e < __stop_handlers; e++)
		r += e->run(r);
	return r;
}
long only_first(void) { return (long)&h1; } // an address of its own within the set
long only_second(void) { return (long)&h2; }

// In thread-local storage, in a writable variable, by a chain of pointers.
CALL(ioprio_get)
CALL(timer_getoverrun)
CALL(io_cancel)
static __thread fn local = do_ioprio_get;
static fn variable = do_timer_getoverrun;
static fn const last[] = {do_io_cancel};
static fn const *const second[] = {last};
static fn const *const *const first[] = {second};
__attribute__((noinline)) long chain(int i) { return first[i][i][i](1); }

// A copy of a structure with functions in it.
CALL(mincore)
CALL(lookup_dcookie)
struct pair { fn a, b; long x[6]; };
static const struct pair pair = {do_mincore, do_lookup_dcookie, {0}};
__attribute__((noinline)) long copied(int i) {
	struct pair p = pair;
	return i ? p.a(1) : p.b(1);
}

// A two-dimensional table whose rows are referred to one by one.
CALL(tee)
CALL(vmsplice)
CALL(swapoff)
static fn const rows[3][4] = {{do_tee}, {do_vmsplice}, {do_swapoff}};
__attribute__((noinline)) long row(const fn *r) { return r[zero](1); }
__attribute__((noinline)) long allrows(void) { return row(rows[zero]) + rows[one][0](1) + rows[2 * one][0](1); }
long onerow(void) { return row(rows[2]); }

// What nobody who is alive refers to, apart from the others: the object behind
// one that is used counts too.
CALL(reboot)
struct wide { const char *name; long x[31]; };
static struct wide const apart = {"apart", {0}};
static fn const never[] = {do_reboot, do_reboot, do_reboot, do_reboot};
const void *alsounused(void) { return &apart; }
#ifdef LIBRARY
long unused(int i) { return never[i](1); }
long used(void)
#else
int main(void)
#endif
{
	long r = countdown(2 * one) + aside() + backwards() + container(&item.link) + collected() + local(1) + variable(1) + chain(zero) + copied(zero) + copied(one) + allrows();
	return (int)(r & 0);
}
