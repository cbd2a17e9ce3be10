// Package supervise is the process that answers seccomp notifications, sets the
// guards of containers and watches them: two processes, a monitor and its worker.
//
// What it guarantees:
//
//   - A notified call goes on only when somebody decided so. No decision, a
//     panic, a caller that cannot be looked at, a descriptor for a container that is
//     not known or has no guards: refused. (In mode audit, what would be refused is
//     reported and goes on.)
//   - The monitor holds a copy of the sockets, of every notify descriptor and of
//     the fanotify group, and reads nothing that comes from outside. When the worker
//     is killed callers wait, and the next worker answers them, also those whose
//     call the killed one had read: notifications are read into memory that both
//     hold. A call that was in hand when two workers ended is refused.
//   - When the monitor is killed the worker starts another. Never do two workers
//     answer: each side kills the other before it replaces it.
//   - A container has all the guards its plan wants or the createRuntime hook
//     fails, and so does its creation; what had been set is taken back.
//   - The switch from starting to serving is stored before the call that caused it
//     is answered, and never goes back.
//   - A call that a program needs only before its service loop is refused to a
//     process only where it is proved that the process, or one that it was forked
//     from since it executed the program, has been in the loop: by a return address
//     on its stack, or by descent (loops.go). A proof ends with the execution, and
//     does not end with the stack, the process's own marks, or the worker.
//   - Decisions are made by numbers that the kernel gives (seccomp), by the socket
//     itself, which the supervisor copies and, if it has a port, makes listen, or by
//     the file that is executed (fanotify). A path read from a caller's memory can
//     only make a call be refused.
//   - What is only observed decides nothing: process trees (package proctree) and
//     what differs in a writable layer (package drift) are for people and events.
//
// What it does not:
//
//   - A tree outlives a worker that is replaced. Of one that was killed only what
//     lives is known to the next: what ran before is not, nor on whose behalf a
//     process runs whose parent is gone (the application's, then).
//   - A process that is in its service loop and was not looked at yet keeps what its
//     program needs only before: one that serves before it is looked at for the first
//     time (50 ms after the container serves) and wipes its stack by then; one forked
//     later beside a process of the same program that is not in the loop, or less
//     than a second after the container began to serve; one that, besides, changes
//     what the kernel drew for its execution (AT_RANDOM) within a minute after
//     somebody in the container executed something. So does one that cannot be looked
//     at, and one of a program that lies on a mount or has 32 bits.
//   - A process that executes the same program again, while another one goes on to
//     use the memory that it had before (CLONE_VM without CLONE_THREAD, other than as
//     vfork does it), keeps its proof until that one ends.
//   - SIGTERM to the monitor ends both processes, and with them the descriptors:
//     every notified call, execve among them, then fails with ENOSYS in containers
//     that run. SIGHUP is for upgrades: the worker is replaced, the monitor stays
//     (and stays the old version). Killing both at once is like SIGTERM.
//   - A service manager that ends all processes of a service when its main process
//     dies (systemd without KillMode=process) is like SIGTERM, too. With it, the
//     restarted service has to take over (MonitorOptions.TakeOver).
//   - While there is no worker, or a stopped one, callers of notified calls wait.
//     They can be killed.
//   - 32-bit x86 programs make sockets listen through socketcall, whose arguments
//     are in memory: the verdicts refuse it or not by its number; nftables holds.
//   - A program that may trace a process of an exec (same user, no capability
//     less, kernel.yama.ptrace_scope 0 or no Yama) can write to its memory, and then
//     acts as the operator or as the health check, as far as the engine's profile
//     and the exec guard go.
//   - A health check is told from an operator's exec by its arguments. Whoever may
//     run "docker exec" can run the health check.
//
// Sources: seccomp_unotify(2), pidfd_getfd(2), fanotify(7), unix(7), pid_namespaces(7), proc_pid_mem(5), proc_pid_syscall(5), getauxval(3);
// runtime-spec config-linux.md, "Seccomp"; runc libcontainer/process_linux.go.
package supervise
