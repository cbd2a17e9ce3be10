package seccompgen

import (
	"slices"
	"strings"

	"github.com/declarun/declarun/seccompgen/sysno"
)

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
	// some of its functions when called from inside, or what it uses of others.
	calls     []string
	functions []string
	imports   []string
	// beside narrows calls and functions to those made by a function that makes
	// this system call itself.
	beside string
	// with narrows imports to those of a function that uses this one, too.
	with string
	// daemon narrows functions to when they are called by those that ask a name
	// service cache daemon, and adds what only works on its answer.
	daemon bool

	// opened by any of these functions of the library being used from outside,
	// or by a variable of the environment; interpreter is true where the
	// library being a program of its own opens it; needs is what the machine
	// must be known to answer (Request.Answered), or it is open.
	by          []string
	env         string
	interpreter bool
	needs       string
}

// VDSO in Request.Answered: the kernel maps its vDSO into every process.
const VDSO = "vdso"

// Answerable are the system calls that Request.Answered may name: what is only
// done where one of them fails with ENOSYS is then not counted.
var Answerable = []string{"faccessat2", "getrandom"}

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
		lib:       "libc.so.6",
		functions: []string{"svc_unregister"},
		by:        []string{"svc_unregister", "svc_register", "registerrpc"},
	},
	{
		// time(2): the symbol is resolved to the vDSO's function, which only
		// reads memory (lib/vdso/gettimeofday.c: __cvdso_time_data), and to a
		// function that makes the call where there is no vDSO
		// (sysdeps/unix/sysv/linux/time.c, before 2.31 …/x86/time.c). The vDSO's
		// gettimeofday and clock_gettime do make the call, with a clock source
		// that cannot be read from user space: they have no gate.
		lib:   "libc.so.6",
		calls: []string{"time"},
		needs: VDSO,
	},
	{
		// getcpu(2): made where the vDSO has no such function, or that answers
		// ENOSYS; x86's reads a segment limit or a register
		// (arch/x86/include/asm/vdso/processor.h: vdso_read_cpunode).
		lib:   "libc.so.6",
		calls: []string{"getcpu"},
		needs: VDSO,
	},
	{
		// The loader's --list-diagnostics (elf/dl-diagnostics.c). Before glibc
		// 2.36 it also asked where the vDSO had no note with the kernel's version,
		// which Linux's always has (sysdeps/unix/sysv/linux/dl-sysdep.c).
		lib:         "ld-linux",
		calls:       []string{"uname"},
		interpreter: true,
		needs:       VDSO,
	},
	{
		// Closing what popen opened: only popen makes a stream with these
		// functions (libio/iopopen.c), every stream's function table lies beside
		// theirs.
		lib:       "libc.so.6",
		functions: []string{"_IO_proc_close"},
		by:        []string{"popen", "_IO_popen", "_IO_proc_open", "_IO_proc_close"},
	},
	{
		// Questions to name servers. The functions of a name service are asked
		// for by name (nss/nsswitch.c: __nss_lookup_function), and the one for
		// DNS has none but these (nss/nss_module.c, resolv/nss_dns): whoever looks
		// up users leads to the table that they are in, and to none of them.
		lib: "libc.so.6",
		functions: []string{
			"_nss_dns_getcanonname_r", "_nss_dns_gethostbyaddr2_r", "_nss_dns_gethostbyaddr_r", "_nss_dns_gethostbyname2_r", "_nss_dns_gethostbyname3_r",
			"_nss_dns_gethostbyname4_r", "_nss_dns_gethostbyname_r", "_nss_dns_getnetbyaddr_r", "_nss_dns_getnetbyname_r",
		},
		by: []string{
			"getaddrinfo", "getnameinfo", "gethostbyname", "gethostbyname_r", "gethostbyname2", "gethostbyname2_r", "gethostbyaddr", "gethostbyaddr_r",
			"getnetbyname", "getnetbyname_r", "getnetbyaddr", "getnetbyaddr_r",
			// What asks for hosts itself.
			"__ivaliduser", "authdes_create", "authdes_pk_create", "callrpc", "clnt_create", "getaddrinfo_a", "gethostid", "getrpcport", "iruserok", "iruserok_af",
			"key_decryptsession", "key_decryptsession_pk", "key_encryptsession", "key_encryptsession_pk", "key_get_conv", "key_secretkey_is_set", "key_setnet",
			"key_setsecret", "rcmd", "rcmd_af", "rexec", "rexec_af", "ruserok", "ruserok_af",
			// Sun RPC, whose functions are in tables that lead to each other.
			"__libc_clntudp_bufcreate", "__libc_rpc_getport", "_authenticate", "authnone_create", "authunix_create", "authunix_create_default", "clnt_broadcast",
			"clntraw_create", "clnttcp_create", "clntudp_bufcreate", "clntudp_create", "clntunix_create", "key_gendes", "pmap_getmaps", "pmap_getport", "pmap_rmtcall",
			"pmap_set", "pmap_unset", "registerrpc", "svc_getreq", "svc_getreq_common", "svc_getreq_poll", "svc_getreqset", "svc_register", "svc_run", "svc_unregister",
			"svcfd_create", "svcraw_create", "svctcp_create", "svcudp_bufcreate", "svcudp_create", "svcunix_create", "svcunixfd_create", "xdr_replymsg", "xdrrec_create",
			// What gives the functions of a name service to somebody else.
			"__nss_lookup_function", "__nss_hosts_lookup2", "__nss_networks_lookup2", "__nss_lookup", "__nss_next2",
		},
	},
	{
		// See nscd.go.
		lib:       "libc.so.6",
		functions: []string{"send", "__send", "recvmsg", "__recvmsg", "poll", "__poll"},
		daemon:    true,
		needs:     NoNSCD,
	},
	{
		// Random numbers where there is no getrandom(2) (stdlib/arc4random.c).
		lib:   "libc.so.6",
		calls: []string{"ppoll"},
		by:    []string{"ppoll", "__ppoll_chk"},
		needs: "getrandom",
	},
	{
		// faccessat with flags, where there is no faccessat2(2)
		// (sysdeps/unix/sysv/linux/faccessat.c of glibc 2.33 and later): the
		// older call, or what the kernel would look at, looked at one by one.
		lib:       "libc.so.6",
		calls:     []string{"faccessat"},
		functions: []string{"group_member", "getuid", "geteuid", "getgid", "getegid"},
		beside:    "faccessat2",
		needs:     "faccessat2",
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
		needs:   "getrandom",
	},
	{
		// Waiting for /dev/random, in the same function. BIO_socket_wait is
		// another one, and waits for what it is asked to.
		lib:     "libcrypto.so.",
		imports: []string{"select"},
		with:    "shmget",
		needs:   "getrandom",
	},
}

func (g *gate) of(m *module) bool {
	return strings.HasPrefix(m.sum.Soname, g.lib)
}

// open tells whether what is behind a gate of module i counts.
func (g *graph) open(k int, i int32) bool {
	t := &gates[k]
	m := g.mods[i]
	if m.exported || t.interpreter && i == 0 || t.needs != "" && !slices.Contains(g.answered, t.needs) {
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

// counts tells whether a site of function n can be reached, as far as gates know.
func (g *graph) counts(n node, name string) bool {
	for k := range gates {
		t := &gates[k]
		if t.of(g.mods[n.mod]) && slices.Contains(t.calls, name) && g.before(k, n) && !g.open(k, n.mod) {
			return false
		}
	}
	return true
}

// before tells whether a function is one that a gate is about.
func (g *graph) before(k int, n node) bool {
	switch {
	case gates[k].daemon:
		return slices.Contains(g.mods[n.mod].sum.Asking, n.fn)
	case gates[k].with != "":
		sum := g.mods[n.mod].sum
		return slices.ContainsFunc(sum.Funcs[n.fn].Imports, func(i int32) bool { return sum.Imports[i] == gates[k].with })
	case gates[k].beside == "":
		return true
	}
	return slices.ContainsFunc(g.mods[n.mod].sum.Funcs[n.fn].Sites, func(s site) bool {
		name, ok := sysno.Name("amd64", int(s.Nr))
		return ok && s.Reason == "" && name == gates[k].beside
	})
}

// shut lists the functions and imports of a module that are behind gates, by
// index, with the gate.
func (g *graph) shut(i int32) (functions, imports map[int32]int) {
	for k := range gates {
		t := &gates[k]
		if !t.of(g.mods[i]) {
			continue
		}
		for _, e := range g.mods[i].sum.Exports {
			if slices.Contains(t.functions, e.Name) {
				if functions == nil {
					functions = map[int32]int{}
				}
				functions[e.Func] = k
			}
		}
		if t.daemon {
			for _, f := range g.mods[i].sum.Answering {
				if functions == nil {
					functions = map[int32]int{}
				}
				functions[f] = k
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

// barred tells whether a gate keeps function n from using an import of its file.
func (g *graph) barred(n node, i int32) bool {
	k, ok := g.gated[n.mod][1][i]
	return ok && g.before(k, n) && !g.open(k, n.mod)
}

// closed tells whether a gate keeps function n of the library from going on to
// its function to.
func (g *graph) closed(n node, to int32) (gate int, closed bool) {
	k, ok := g.gated[n.mod][0][to]
	if !ok || g.open(k, n.mod) {
		return k, false
	}
	return k, gates[k].daemon && slices.Contains(g.mods[n.mod].sum.Answering, to) || g.before(k, n)
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
