// Package runtime is the OCI runtime that an engine calls: runc's command line
// in, a decision of the supervisor in between, runc itself out.
//
// It guarantees:
//   - Every command but create, run, restore, exec, delete and --version is
//     runc's, exec'd at once in this very process: arguments, environment,
//     working directory, descriptors, ignored signals, signal mask, limits and
//     parent-death signal are the caller's.
//   - create, run and restore reach runc only after the supervisor has answered
//     and its answer is in the bundle, unless the site says on-failure = "audit".
//   - An error is one record in --log, in the format asked for, and one line on
//     stderr with a second for the remedy; nothing on stdout. Its words are none
//     that engines take for an exit code (see plain).
//   - The bundle's config.json is edited for runc and put back, the same file,
//     by the createRuntime hook once runc has read it (see claim).
//
// It does not guarantee that a signal other than SIGHUP and SIGINT that was
// ignored, or SIGCHLD and the few others that the Go runtime unblocks for itself,
// reach runc like that; runc's own Go runtime would do the same to them.
//
// Sources: runc 1.1.5 and 1.5.1; containerd/go-runc; moby
// daemon/info_unix.go, parseRuntimeVersion (the last line with "version" in it
// and the "commit:" line); cri-o oci getOCIVersion (last word of the first line).
package runtime

// Version is declarun's own; the build sets it with
// -ldflags "-X github.com/declarun/declarun/shim/runtime.Version=…".
// It must not contain the word "version", which Docker looks for.
var Version = "0.1.0-dev"
