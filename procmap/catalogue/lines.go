package catalogue

import (
	"fmt"
	"iter"
	"regexp"
	"strings"
)

// how says how a command stands in a configuration file.
type how uint8

const (
	words how = iota // split into words by blanks, quotes kept together; run as it is
	shell            // given to /bin/sh -c
	alone            // one program
	open             // one program, with arguments that are not known
)

// directive finds commands: the first group that took part in the match is one.
type directive struct {
	match *regexp.Regexp
	how   how
}

// says makes the facts of directives in configuration files. Lines that end in
// a backslash go on.
func says(directives []directive, options []string, globs ...string) func(Run) []Fact {
	return func(r Run) []Fact {
		var out []Fact
		for _, name := range r.configs(options, globs...) {
			for n, line := range lines(r.Text(name)) {
				for _, d := range directives {
					if command := d.in(line); command != "" && len(out) < maxFacts {
						out = append(out, d.fact(command, fmt.Sprintf("%s:%d", name, n)))
					}
				}
			}
		}
		return out
	}
}

func (d directive) in(line string) string {
	m := d.match.FindStringSubmatch(line)
	for i := 1; i < len(m); i++ {
		if m[i] != "" {
			return strings.TrimSpace(m[i])
		}
	}
	return ""
}

func (d directive) fact(command, at string) Fact {
	switch d.how {
	case shell:
		return Fact{Line: command, At: at}
	case words:
		argv := split(command)
		for i, a := range argv {
			if i > 0 && strings.Contains(a, "$") { // the application's own variables
				argv[i] = Unknown
			}
		}
		return Fact{Argv: argv, At: at}
	case open:
		return Fact{Argv: []string{command, Unknown}, At: at}
	}
	return Fact{Argv: []string{command}, At: at}
}

// lines gives the lines of a text by number, without comments that begin them.
func lines(text string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		n, first, held := 0, 0, ""
		for line := range strings.SplitSeq(text, "\n") {
			n++
			if held == "" {
				first = n
			}
			line = strings.TrimRight(line, "\r")
			if t := strings.TrimSpace(line); held == "" && (t == "" || t[0] == '#' || t[0] == ';') {
				continue
			}
			if len(held)+len(line) < maxLine {
				if rest, ok := strings.CutSuffix(line, `\`); ok {
					held += rest + " "
					continue
				}
				line = held + line
			}
			held = ""
			if !yield(first, line) {
				return
			}
		}
	}
}

// split takes words apart as shells do, without expanding anything.
func split(s string) []string {
	var (
		out   []string
		word  strings.Builder
		begun bool
		quote byte
	)
	for i := 0; i < len(s) && len(out) < 256; i++ {
		c := s[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, begun = c, true
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			word.WriteByte(s[i])
			begun = true
		case quote == 0 && (c == ' ' || c == '\t'):
			if begun {
				out = append(out, word.String())
				word.Reset()
				begun = false
			}
		default:
			word.WriteByte(c)
			begun = true
		}
	}
	if begun {
		out = append(out, word.String())
	}
	return out
}

// pattern compiles a directive's expression: names of directives are not told
// apart by case in it.
func pattern(s string) *regexp.Regexp { return regexp.MustCompile(`(?i)` + s) }
