package guard

import (
	"bufio"
	"bytes"
	"fmt"
	"strconv"
	"strings"
)

// mount is one line of proc_pid_mountinfo(5).
type mount struct {
	ID, Parent   int
	Major, Minor uint32
	Root         string // of the mount within its file system
	Point        string
	Options      string // of the mount
	Type         string
	Super        string // options of the superblock, still escaped
}

// parseMountinfo reads at most 100,000 mounts.
func parseMountinfo(data []byte) ([]mount, error) {
	var mounts []mount
	sc := bufio.NewScanner(bytes.NewReader(data))
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		if len(mounts) == 100_000 {
			return nil, fmt.Errorf("parse mountinfo: more than %d mounts", len(mounts))
		}
		m, err := parseMount(sc.Text())
		if err != nil {
			return nil, fmt.Errorf("parse mountinfo line %d: %w", len(mounts)+1, err)
		}
		mounts = append(mounts, m)
	}
	if err := sc.Err(); err != nil {
		return nil, fmt.Errorf("parse mountinfo: %w", err)
	}
	return mounts, nil
}

func parseMount(line string) (mount, error) {
	var m mount
	// 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
	before, after, ok := strings.Cut(line, " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return m, fmt.Errorf("too few fields in %.80q", line)
	}
	var err error
	if m.ID, err = strconv.Atoi(f[0]); err != nil {
		return m, err
	}
	if m.Parent, err = strconv.Atoi(f[1]); err != nil {
		return m, err
	}
	major, minor, _ := strings.Cut(f[2], ":")
	a, err := strconv.ParseUint(major, 10, 32)
	if err != nil {
		return m, err
	}
	b, err := strconv.ParseUint(minor, 10, 32)
	if err != nil {
		return m, err
	}
	m.Major, m.Minor = uint32(a), uint32(b)
	m.Root, m.Point, m.Options, m.Type = unescape(f[3]), unescape(f[4]), f[5], g[0]
	m.Super = g[len(g)-1] // the source between them may be empty
	return m, nil
}

// upperOf gives the overlay's upper directory; none: it cannot be written to.
func (m mount) upperOf() (string, bool) {
	for opt := range splitOptions(m.Super) {
		if v, ok := strings.CutPrefix(opt, "upperdir="); ok {
			return strings.ReplaceAll(unescape(v), `\,`, `,`), true
		}
	}
	return "", false
}

// splitOptions splits at commas that no backslash escapes: overlay escapes
// those in its paths.
func splitOptions(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		start := 0
		for i := 0; i < len(s); i++ {
			switch s[i] {
			case '\\':
				i++
			case ',':
				if !yield(s[start:i]) {
					return
				}
				start = i + 1
			}
		}
		yield(s[start:])
	}
}

// unescape undoes mangle(): \ooo for blank, tab, newline, backslash and hash.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if v, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(v))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}
