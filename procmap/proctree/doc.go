// Package proctree keeps the live process tree of containers: what runs in
// each of them now, what ran before, and what was odd about it.
//
// It is an observer. What it guarantees:
//
//   - It never stops, delays or allows anything, and nothing that decides may ask it.
//   - Events that the kernel could not deliver are counted, told to whoever
//     runs it, and the tree is read anew from /proc.
//   - Memory is bounded for each container: live processes, and what ran before,
//     folded by program. What goes beyond is counted.
//   - A process is named by its number and the time it began: a number that was given
//     again is another process.
//
// What it does not:
//
//   - A process that lives for less than it takes to look at it is known by what
//     it asked the supervisor to execute, or else only by number and parent.
//   - The kernel tells nothing of containers. A process is a container's because its
//     parent is, or because /proc shows its pid namespace (or one above it), or
//     its cgroup, as that of the container's init.
//   - The user of a process is what the kernel said when it changed; a kernel that
//     was made to change it without saying so is found out at the next execution
//     or at the next look at /proc (each minute).
//   - The kernel numbers its messages for each processor, before it filters
//     them: the numbers have holes wherever something was not asked for, and are no
//     evidence of a loss. The socket's own count of drops is. A message for which
//     the kernel had no memory is lost without a trace; the look at /proc finds it.
//
// The process connector (CONFIG_PROC_EVENTS) answers only in the initial user,
// pid and network namespaces, to CAP_NET_ADMIN. Since Linux 6.6 it filters by
// the kind of event for each socket. Some stable kernels of early 2024 (6.6.11
// to 6.6.17, 6.7.0 to 6.7.5) take an event that every listener filtered out for
// the last listener's end, and say nothing more: then the look at /proc is all there is.
//
// Sources: drivers/connector/cn_proc.c, linux/cn_proc.h, netlink(7),
// Documentation/driver-api/connector.rst, proc_pid_status(5), pid_namespaces(7).
package proctree
