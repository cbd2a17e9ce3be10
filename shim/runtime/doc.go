// Package runtime is the OCI runtime that an engine calls: runc's command line
// in, a decision of the supervisor in between, runc itself out.
package runtime
