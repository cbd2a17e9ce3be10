// Package observe is the dynamic check that stands beside every count of the
// analysis: it runs real programs on real input, says which of them made which
// system call, and runs them again under the real kernel filter.
//
// A command runs in namespaces of its own (mounts, processes, network with
// nothing but loopback, names) on a private overlay of a root file system, so
// that it meets the same files each time and leaves nothing behind. It has the
// capabilities of a Docker container, no more.
//
// It guarantees that a call is held against the program that made it: the
// process's own executable, not everything the command started.
//
// It does not guarantee that everything is seen that a program could do: what a
// run shows is a lower bound, which is what an allow-list is judged by.
//
// The roots are made from Debian's own packages with debootstrap and apt, and
// kept in the cache of the integration tests.
//
// Sources: strace(1), seccomp(2), seccomp_unotify(2), Docker's list of
// capabilities (moby oci/caps/defaults.go).
package observe
