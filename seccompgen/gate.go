package seccompgen

import "strings"

// gate is something in a library that does nothing unless something else is
// used first. A call graph cannot know: it sees that every lock of a mutex may
// change the priority of the thread, and not that only a mutex of a kind that
// nobody makes does so.
//
// Every gate states from which source of the library that follows, and is
// checked against the library itself by TestGates: no other function that a
// program can ask for leads to what is behind the gate.
type gate struct {
	lib string // how the library's name begins

	// One of these is behind the gate: system calls that the library makes,
	// one of its functions when called from inside, or what it uses of others.
	calls    []string
	function string
	imports  []string

	// opened by any of these functions of the library being used from outside,
	// or by a variable of the environment; interpreter is true where the
	// library being a program of its own opens it.
	by          []string
	env         string
	interpreter bool
}

var gates = []gate{
	{
		// Priorities of threads (nptl/tpp.c, pthread_mutex_init.c,
		// pthread_create.c, sysdeps/unix/sysv/linux/spawni.c of glibc 2.28 to
		// 2.42): for mutexes of protocol PTHREAD_PRIO_PROTECT, threads with
		// attributes that say so, and posix_spawn with attributes that say so.
		lib:   "libc.so.6",
		calls: []string{"sched_getparam", "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_get_priority_max", "sched_get_priority_min"},
		by: []string{
			"pthread_mutexattr_setprotocol", "pthread_mutexattr_setprioceiling", "pthread_mutex_setprioceiling",
			"pthread_attr_setinheritsched", "pthread_attr_setschedparam", "pthread_attr_setschedpolicy", "pthread_setattr_default_np", "pthread_getattr_np",
			"pthread_getschedparam", "pthread_setschedparam", "pthread_setschedprio",
			"posix_spawnattr_setflags",
			"sched_getparam", "__sched_getparam", "sched_setparam", "__sched_setparam", "sched_getscheduler", "__sched_getscheduler", "sched_setscheduler", "__sched_setscheduler",
			"sched_get_priority_max", "__sched_get_priority_max", "sched_get_priority_min", "__sched_get_priority_min",
			"aio_read", "aio_read64", "aio_write", "aio_write64", "aio_fsync", "aio_fsync64", "lio_listio", "lio_listio64",
		},
	},
	{
		// Processors of threads (nptl/pthread_create.c): for attributes that say so.
		lib:   "libc.so.6",
		calls: []string{"sched_setaffinity"},
		by:    []string{"pthread_attr_setaffinity_np", "pthread_setattr_default_np", "pthread_getattr_np", "pthread_setaffinity_np", "sched_setaffinity"},
	},
	{
		// A thread that ends takes back the Sun RPC services that it
		// registered (sunrpc/svc.c: __rpc_thread_svc_cleanup).
		lib:      "libc.so.6",
		function: "svc_unregister",
		by:       []string{"svc_unregister", "svc_register", "registerrpc"},
	},
	{
		// The loader executes a program only when it was executed by itself
		// with the name of a static program (elf/rtld.c: rtld_chain_load).
		lib:         "ld-linux",
		calls:       []string{"execve"},
		interpreter: true,
	},
	{
		// Profiles of shared objects (elf/dl-profile.c).
		lib:   "ld-linux",
		calls: []string{"setitimer"},
		env:   "LD_PROFILE",
	},
	{
		// What tells other processes that /dev/random was ready once
		// (providers/implementations/rands/seeding/rand_unix.c of OpenSSL 3,
		// crypto/rand/rand_unix.c of 1.1.1): when getrandom(2) fails, which
		// every kernel that declarun runs on has. The segment is asked for
		// before the version of the kernel, and left alone from Linux 4.8 on.
		lib:     "libcrypto.so.",
		imports: []string{"shmget", "shmat", "shmdt"},
	},
}

func (g *gate) of(m *module) bool {
	return strings.HasPrefix(m.sum.Soname, g.lib)
}

// open tells whether what is behind a gate of module i counts.
func (g *graph) open(k int, i int32) bool {
	t := &gates[k]
	m := g.mods[i]
	if m.exported || t.interpreter && i == 0 {
		return true
	}
	if t.env != "" {
		if _, set := g.env[t.env]; set {
			return true
		}
	}
	for _, name := range t.by {
		if id, ok := g.syms.ids[name]; ok && int(id) < len(g.asked) && g.asked[id] {
			return true
		}
	}
	return false
}

// counts tells whether a site of module i can be reached, as far as gates know.
func (g *graph) counts(i int32, name string) bool {
	for k := range gates {
		if gates[k].of(g.mods[i]) {
			for _, c := range gates[k].calls {
				if c == name && !g.open(k, i) {
					return false
				}
			}
		}
	}
	return true
}

// shut lists the functions and imports of a module that are behind gates, by
// index, with the gate.
func (g *graph) shut(i int32) (functions, imports map[int32]int) {
	for k := range gates {
		t := &gates[k]
		if !t.of(g.mods[i]) {
			continue
		}
		if t.function != "" {
			for _, e := range g.mods[i].sum.Exports {
				if e.Name == t.function {
					if functions == nil {
						functions = map[int32]int{}
					}
					functions[e.Func] = k
				}
			}
		}
		for _, name := range t.imports {
			for s, in := range g.mods[i].sum.Imports {
				if in == name {
					if imports == nil {
						imports = map[int32]int{}
					}
					imports[int32(s)] = k
				}
			}
		}
	}
	return functions, imports
}

// unlock goes on behind gates that have opened, and tells whether any has.
func (g *graph) unlock() bool {
	held := g.held
	g.held = nil
	any := false
	for _, h := range held {
		if g.open(h.gate, h.to.mod) {
			any = true
			g.mark(h.to, h.from)
		} else {
			g.held = append(g.held, h)
		}
	}
	return any
}

// passage is an edge into what is behind a gate.
type passage struct {
	from, to node
	gate     int
}
