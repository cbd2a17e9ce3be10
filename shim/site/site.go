// Package site reads /etc/declarun/config.toml: what the owner of a machine
// says about all containers on it. A missing file means defaults.
package site

import "github.com/declarun/declarun/shim/record"

// DefaultPath is where the file is looked for.
const DefaultPath = "/etc/declarun/config.toml"

// Config is the content of the file with defaults filled in.
type Config struct {
	// Mode per dimension; every dimension of record.Dimensions is in it.
	Modes map[record.Dimension]record.Mode
	// Runc is the absolute path of the low-level runtime; empty: found once in
	// a fixed list of directories, never through the caller's PATH.
	Runc string
	// OnFailure is what happens when a plan cannot be made or applied: Enforce
	// (the container does not start) or Audit (it starts under runc alone, and
	// that is an event).
	OnFailure record.Mode
	// Exclude lists image references (path.Match patterns) that pass through untouched.
	Exclude []string
	// StateDir, LogFile and Socket default to /run/declarun, /var/log/declarun/events.jsonl
	// and /run/declarun/declarun.sock; CacheDir to /var/cache/declarun.
	StateDir, LogFile, Socket, CacheDir string
	// AllowOverride lets operators' labels and annotations (never an image's
	// own) choose a weaker mode than Modes; default true.
	AllowOverride bool
	// HonourUnconfined treats --privileged and seccomp=unconfined as audit for
	// the container; false refuses them. Default true.
	HonourUnconfined bool
}
