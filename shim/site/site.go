// Package site reads /etc/declarun/config.toml: what the owner of a machine
// says about all containers on it. A missing file means defaults.
//
// Keys, all optional (Example has each with its default):
//
//	mode               "enforce", "audit" or "off" for every dimension
//	[modes]            the same for one: syscalls, processes, storage, network, admission
//	on-failure         "enforce" or "audit": when a plan cannot be made or applied
//	runc               absolute path of the low-level runtime
//	exclude            list of image patterns (path.Match) that pass through untouched
//	allow-override     may an operator's label or annotation weaken a mode?
//	honour-unconfined  are --privileged and seccomp=unconfined honoured, as audit?
//	report-writes      "cheap", "always" or "off": how refused writes are noticed
//	state-dir, socket, log-file, cache-dir   absolute paths
//	[admission.rules]  finding = "off", "warn" or "deny"
//
// Guarantees: a key that is not in this list, a value of the wrong kind and a
// file that cannot be read or parsed are errors with key and line: a misspelt
// "enforce" never becomes a default. Nothing that an image carries chooses a
// mode.
package site

import (
	_ "embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"github.com/declarun/declarun/shim/record"
)

// DefaultPath is where the file is looked for.
//
// It is a variable so that a build can set another (-ldflags -X): engines give a
// runtime neither arguments nor environment, and a test must not meet the
// configuration of the machine it runs on.
var DefaultPath = "/etc/declarun/config.toml"

const maxSize = 1 << 20

// Example is a configuration file with every key commented out.
//
//go:embed config.toml.example
var Example []byte

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
	// ReportWrites says how writes that the read-only root refuses are noticed.
	ReportWrites ReportWrites
	// AdmissionRules changes what a finding of admission leads to, by its ID.
	AdmissionRules map[string]Rule
}

// ReportWrites says at what price refused writes are noticed. They are refused
// whatever it says. The zero value is invalid.
type ReportWrites string

const (
	// ReportCheaply notices them where the kernel has function probes: reads,
	// and everything else, cost nothing.
	ReportCheaply ReportWrites = "cheap"
	// ReportAlways falls back to a tracepoint at the end of every system call
	// of the machine, which each of them pays for.
	ReportAlways ReportWrites = "always"
	ReportNever  ReportWrites = "off"
)

// Rule is what a finding of admission leads to. The zero Rule is invalid.
type Rule string

const (
	RuleOff  Rule = "off"
	RuleWarn Rule = "warn"
	RuleDeny Rule = "deny"
)

// Error is a configuration that cannot be used.
type Error struct {
	Path string
	Err  error
}

func (e *Error) Error() string { return fmt.Sprintf("read configuration %s: %v", e.Path, e.Err) }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Remedy says what to do about it.
func (e *Error) Remedy() string {
	return "correct " + e.Path + ", or move it away to use the defaults"
}

// Defaults is the configuration of an empty file.
func Defaults() *Config {
	c := &Config{
		Modes: map[record.Dimension]record.Mode{}, OnFailure: record.Enforce,
		StateDir: "/run/declarun", LogFile: "/var/log/declarun/events.jsonl", CacheDir: "/var/cache/declarun",
		AllowOverride: true, HonourUnconfined: true, ReportWrites: ReportCheaply,
	}
	for _, d := range record.Dimensions() {
		c.Modes[d] = record.Enforce
	}
	c.Socket = path.Join(c.StateDir, "declarun.sock")
	return c
}

// Load reads the file at name, or DefaultPath if name is empty.
func Load(name string) (*Config, error) {
	if name == "" {
		name = DefaultPath
	}
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Defaults(), nil
	}
	if err != nil {
		return nil, &Error{name, err}
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err != nil {
		return nil, &Error{name, err}
	}
	c, err := Parse(data)
	if err != nil {
		return nil, &Error{name, err}
	}
	return c, nil
}

// file is the form of the file. Pointers tell what is not there.
type file struct {
	Mode             string            `toml:"mode"`
	Modes            map[string]string `toml:"modes"`
	Runc             string            `toml:"runc"`
	OnFailure        string            `toml:"on-failure"`
	Exclude          []string          `toml:"exclude"`
	AllowOverride    *bool             `toml:"allow-override"`
	HonourUnconfined *bool             `toml:"honour-unconfined"`
	StateDir         string            `toml:"state-dir"`
	LogFile          string            `toml:"log-file"`
	Socket           string            `toml:"socket"`
	CacheDir         string            `toml:"cache-dir"`
	ReportWrites     string            `toml:"report-writes"`
	Admission        struct {
		Rules map[string]string `toml:"rules"`
	} `toml:"admission"`
}

func (f file) empty(key string) bool {
	switch key {
	case "mode":
		return f.Mode == ""
	case "runc":
		return f.Runc == ""
	case "on-failure":
		return f.OnFailure == ""
	case "state-dir":
		return f.StateDir == ""
	case "log-file":
		return f.LogFile == ""
	case "socket":
		return f.Socket == ""
	case "cache-dir":
		return f.CacheDir == ""
	case "report-writes":
		return f.ReportWrites == ""
	}
	return true // its name differs from the documented one in case
}

// Parse reads the content of a configuration file.
func Parse(data []byte) (*Config, error) {
	if len(data) > maxSize {
		return nil, fmt.Errorf("larger than %d bytes", maxSize)
	}
	var f file
	meta, err := toml.Decode(string(data), &f)
	if err != nil {
		var parse toml.ParseError
		if errors.As(err, &parse) {
			return nil, fmt.Errorf("line %d: %s", parse.Position.Line, parse.Message)
		}
		return nil, err
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("%sunknown key %q", lineOf(data, unknown[0]), unknown[0].String())
	}
	for _, k := range meta.Keys() {
		if len(k) == 1 && meta.Type(k...) == "String" && f.empty(k[0]) {
			return nil, fmt.Errorf("%s%s is empty: leave it out to use the default", lineOf(data, k), k)
		}
	}
	c := Defaults()
	if err := c.modes(data, f); err != nil {
		return nil, err
	}
	if f.OnFailure != "" {
		if c.OnFailure, err = record.ParseMode(f.OnFailure); err != nil || c.OnFailure == record.Off {
			return nil, fmt.Errorf("%son-failure = %q: want enforce or audit", lineOf(data, toml.Key{"on-failure"}), f.OnFailure)
		}
	}
	switch r := ReportWrites(f.ReportWrites); r {
	case "":
	case ReportCheaply, ReportAlways, ReportNever:
		c.ReportWrites = r
	default:
		return nil, fmt.Errorf("%sreport-writes = %q: want cheap, always or off", lineOf(data, toml.Key{"report-writes"}), f.ReportWrites)
	}
	if f.AllowOverride != nil {
		c.AllowOverride = *f.AllowOverride
	}
	if f.HonourUnconfined != nil {
		c.HonourUnconfined = *f.HonourUnconfined
	}
	for _, pattern := range f.Exclude {
		if _, err := path.Match(pattern, ""); err != nil || pattern == "" {
			return nil, fmt.Errorf("%sexclude: pattern %q is malformed", lineOf(data, toml.Key{"exclude"}), pattern)
		}
	}
	c.Exclude = f.Exclude
	if f.StateDir != "" {
		c.Socket = path.Join(f.StateDir, "declarun.sock")
	}
	for _, p := range []struct {
		key, value string
		into       *string
	}{
		{"runc", f.Runc, &c.Runc}, {"state-dir", f.StateDir, &c.StateDir}, {"log-file", f.LogFile, &c.LogFile},
		{"socket", f.Socket, &c.Socket}, {"cache-dir", f.CacheDir, &c.CacheDir},
	} {
		if p.value == "" {
			continue
		}
		if !filepath.IsAbs(p.value) || strings.ContainsRune(p.value, 0) {
			return nil, fmt.Errorf("%s%s = %q: want an absolute path", lineOf(data, toml.Key{p.key}), p.key, p.value)
		}
		*p.into = filepath.Clean(p.value)
	}
	// sockaddr_un(7): sun_path has 108 bytes with the zero at the end.
	if len(c.Socket) > 107 {
		return nil, fmt.Errorf("%ssocket: %d bytes, longer than a unix socket's path can be", lineOf(data, toml.Key{"socket"}), len(c.Socket))
	}
	return c, c.rules(data, f)
}

func (c *Config) modes(data []byte, f file) error {
	if f.Mode != "" {
		m, err := record.ParseMode(f.Mode)
		if err != nil {
			return fmt.Errorf("%smode: %w", lineOf(data, toml.Key{"mode"}), err)
		}
		for d := range c.Modes {
			c.Modes[d] = m
		}
	}
	for name, mode := range f.Modes {
		key := toml.Key{"modes", name}
		if !slices.Contains(record.Dimensions(), record.Dimension(name)) {
			return fmt.Errorf("%sunknown key %q: there is no such dimension", lineOf(data, key), key.String())
		}
		m, err := record.ParseMode(mode)
		if err != nil {
			return fmt.Errorf("%s%s: %w", lineOf(data, key), key, err)
		}
		c.Modes[record.Dimension(name)] = m
	}
	return nil
}

func (c *Config) rules(data []byte, f file) error {
	for id, value := range f.Admission.Rules {
		key := toml.Key{"admission", "rules", id}
		if !slices.Contains(Findings(), id) {
			return fmt.Errorf("%sunknown key %q: admission has no such finding", lineOf(data, key), key.String())
		}
		switch r := Rule(value); r {
		case RuleOff, RuleWarn, RuleDeny:
			if c.AdmissionRules == nil {
				c.AdmissionRules = map[string]Rule{}
			}
			c.AdmissionRules[id] = r
		default:
			return fmt.Errorf("%s%s = %q: want off, warn or deny", lineOf(data, key), key, value)
		}
	}
	return nil
}

// Findings lists the IDs that [admission.rules] may name. Package admission's
// tests hold it to what is found there.
func Findings() []string {
	return []string{
		"apt-never-updated", "distribution-end-of-life", "privileged", "host-network", "host-pid",
		"docker-socket-mount", "sensitive-host-path", "unknown-history",
	}
}

// lineOf finds the line of a key, as "line 3: ", for messages only: the TOML
// library tells lines of syntax errors but not of keys.
func lineOf(data []byte, key toml.Key) string {
	table := ""
	for i, line := range strings.Split(string(data), "\n") {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			table = strings.Trim(line, "[] \t")
			if table == key.String() {
				return fmt.Sprintf("line %d: ", i+1)
			}
			continue
		}
		name, _, ok := strings.Cut(line, "=")
		if !ok {
			continue
		}
		name = strings.Trim(strings.TrimSpace(name), `"'`)
		if table != "" {
			name = table + "." + name
		}
		if name == key.String() || strings.ReplaceAll(name, `"`, "") == strings.Join(key, ".") {
			return fmt.Sprintf("line %d: ", i+1)
		}
	}
	return ""
}

// Excluded tells whether an image passes through untouched, and by which
// pattern. A reference is matched as typed and, for Docker's own registry, in
// its long form.
func (c *Config) Excluded(ref string) (pattern string, ok bool) {
	if ref == "" {
		return "", false
	}
	names := []string{ref}
	for _, prefix := range []string{"docker.io/library/", "docker.io/"} {
		if short, ok := strings.CutPrefix(ref, prefix); ok {
			names = append(names, short)
		}
	}
	for _, p := range c.Exclude {
		for _, n := range names {
			if ok, _ := path.Match(p, n); ok {
				return p, true
			}
		}
	}
	return "", false
}
