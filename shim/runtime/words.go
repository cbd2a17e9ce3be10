package runtime

import (
	"errors"
	"fmt"
	"strings"
)

// Remedied is an error whose author knows the way out.
type Remedied struct {
	Err  error
	Text string
}

func (e *Remedied) Error() string  { return e.Err.Error() }
func (e *Remedied) Unwrap() error  { return e.Err }
func (e *Remedied) Remedy() string { return e.Text }

func advise(remedy, format string, args ...any) error {
	return &Remedied{Err: fmt.Errorf(format, args...), Text: remedy}
}

// remedyOf finds the first remedy in a chain of errors.
func remedyOf(err error) string {
	var r interface{ Remedy() string }
	if errors.As(err, &r) {
		return plain(r.Remedy())
	}
	return ""
}

// Engines read exit codes and causes out of runtimes' messages: Docker 126 for
// "permission denied" and "is a directory", 127 for "no such file or
// directory", "not a directory" and "executable file not found" (moby
// daemon/errors.go); Podman the like and "operation not permitted"; containerd
// takes "does not exist" and "no such process" for a container that is gone.
// They would tell a user that his command was not found when it was not even
// looked for.
var magic = []struct{ phrase, say string }{
	{"permission denied", "access refused"},
	{"operation not permitted", "not allowed"},
	{"no such file or directory", "nothing is there"},
	{"no such file", "nothing is there"},
	{"not a directory", "no folder"},
	{"is a directory", "is a folder"},
	{"executable file not found", "program missing"},
	{"process already finished", "process is gone"},
	{"container not running", "container is not up"},
	{"no such process", "process is gone"},
	{"does not exist", "is missing"},
}

// plain puts other words for those that engines look for, in any case, and
// makes one line of it.
func plain(s string) string {
	s = strings.ToValidUTF8(strings.Join(strings.Fields(s), " "), "?")
	for _, m := range magic {
		for {
			// ASCII only: strings.ToLower may change the length of others.
			i := strings.Index(strings.Map(lowerASCII, s), m.phrase)
			if i < 0 {
				break
			}
			s = s[:i] + m.say + s[i+len(m.phrase):]
		}
	}
	return s
}

func lowerASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}
