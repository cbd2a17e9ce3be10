package runtime

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
)

// configPath is a variable so that a test binary can be built with its own
// (-ldflags -X); a caller cannot change it.
var configPath = defaultConfigPath

const defaultConfigPath = "/etc/declarun/config.toml"

// settings are the keys of the site's configuration that this program needs.
// Package site reads the whole file, for the supervisor, and refuses what it
// does not know; but a TOML parser, and the image formats that package site
// knows modes of, are a price that every runc state and kill would pay.
type settings struct {
	runc      string // empty: look in runcDirectories
	socket    string
	stateDir  string
	logFile   string
	onFailure string // "enforce" or "audit"
}

func loadSettings(file string) (settings, error) {
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		return parseSettings("")
	}
	if err != nil {
		return settings{}, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, 1<<20))
	if err != nil {
		return settings{}, fmt.Errorf("read configuration: %w", err)
	}
	s, err := parseSettings(string(content))
	if err != nil {
		return settings{}, fmt.Errorf("read configuration %s: %w", file, err)
	}
	return s, nil
}

const settingLine = `^\s*(?:(KEY)|"(KEY)"|'(KEY)')\s*=\s*(.*?)\s*$`

// parseSettings understands strings on one line before the first table, and
// refuses anything else under one of its keys: a value that is silently not the
// one configured is worse than an error.
func parseSettings(content string) (settings, error) {
	s := settings{stateDir: "/run/declarun", logFile: "/var/log/declarun/events.jsonl", onFailure: "enforce"}
	if content == "" {
		s.socket = path.Join(s.stateDir, "declarun.sock")
		return s, nil
	}
	pattern := regexp.MustCompile(strings.ReplaceAll(settingLine, "KEY", "runc|socket|state-dir|log-file|on-failure"))
	for line := range strings.Lines(content) {
		if strings.HasPrefix(strings.TrimSpace(line), "[") {
			break
		}
		m := pattern.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		key := m[1] + m[2] + m[3]
		value, ok := plainString(m[4])
		if !ok {
			return settings{}, fmt.Errorf("%s = %s: want plain quotes on one line", key, m[4])
		}
		switch key {
		case "runc":
			s.runc = value
		case "socket":
			s.socket = value
		case "state-dir":
			s.stateDir = value
		case "log-file":
			s.logFile = value
		case "on-failure":
			if value != "enforce" && value != "audit" {
				return settings{}, fmt.Errorf("on-failure = %q: want enforce or audit", value)
			}
			s.onFailure = value
		}
	}
	for _, p := range []string{s.socket, s.stateDir, s.logFile, s.runc} {
		if p != "" && !path.IsAbs(p) {
			return settings{}, fmt.Errorf("%q is not an absolute path", p)
		}
	}
	if s.socket == "" {
		s.socket = path.Join(s.stateDir, "declarun.sock")
	}
	return s, nil
}

// plainString reads a TOML string without escapes, and a comment after it.
func plainString(value string) (string, bool) {
	for _, quote := range []string{`"`, `'`} {
		rest, quoted := strings.CutPrefix(value, quote)
		body, after, closed := strings.Cut(rest, quote)
		after = strings.TrimSpace(after)
		if quoted && closed && (after == "" || after[0] == '#') && !(quote == `"` && strings.Contains(body, `\`)) {
			return body, true
		}
	}
	return "", false
}
