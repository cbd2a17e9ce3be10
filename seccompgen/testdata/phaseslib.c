/* What some tricks of phases.c load. */
#define _GNU_SOURCE
#include <dlfcn.h>
void late(void);
#if TRICK == 19
void call(void) { ((void (*)(void))dlsym(RTLD_DEFAULT, "late"))(); }
#elif TRICK == 25
static void chosen(void) {}
static void (*choose(void))(void) { late(); return chosen; }
__attribute__((ifunc("choose"))) void pick(void);
void call(void) { pick(); }
#elif TRICK == 29
void hook(void);
void call(void) { hook(); }
#elif TRICK == 30
__attribute__((constructor)) static void load(void) { late(); }
void call(void) {}
#endif
