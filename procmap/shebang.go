package procmap

import (
	"bytes"
	"strings"
)

// shebangSize is BINPRM_BUF_SIZE: what the kernel reads of a file to decide
// how to run it (256 since Linux 5.1).
const shebangSize = 256

// shebang is a script's first line as the kernel reads it.
type shebang struct {
	Interpreter string
	Argument    string // all the rest of the line, or empty
	CRLF        bool   // the line ends in carriage return: the kernel takes it for part of the name
}

// parseShebang reads the first line of a script; ok is false when the file does
// not begin with "#!" or names no interpreter.
func parseShebang(head []byte) (s shebang, ok bool) {
	if !bytes.HasPrefix(head, []byte("#!")) {
		return s, false
	}
	if len(head) > shebangSize {
		head = head[:shebangSize]
	}
	line := head[2:]
	if i := bytes.IndexByte(line, '\n'); i >= 0 {
		line = line[:i]
	}
	if i := bytes.IndexByte(line, 0); i >= 0 {
		line = line[:i]
	}
	text := strings.Trim(string(line), " \t")
	if rest, found := strings.CutSuffix(text, "\r"); found {
		s.CRLF = true
		text = strings.TrimRight(rest, " \t")
	}
	if text == "" {
		return shebang{}, false
	}
	if i := strings.IndexAny(text, " \t"); i >= 0 {
		s.Interpreter, s.Argument = text[:i], strings.TrimLeft(text[i:], " \t")
	} else {
		s.Interpreter = text
	}
	return s, true
}
