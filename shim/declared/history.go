package declared

import (
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/command"
	"github.com/moby/buildkit/frontend/dockerfile/parser"

	"github.com/declarun/declarun/shim/record"
)

const (
	maxHistory     = 10_000   // entries; more is not an image
	maxInstruction = 64 << 10 // bytes of one created_by that are kept
	maxDockerfile  = 1 << 20  // bytes
)

// Origin names the instruction as the source of a plan entry.
func (i Instruction) Origin() record.Origin {
	text := i.Arguments
	if i.Keyword != "" {
		text = i.Keyword + " " + i.Arguments
	} else if text == "" {
		text = i.Raw
	}
	at := fmt.Sprintf("history[%d]", i.Index)
	if i.Line > 0 {
		at = fmt.Sprintf("Dockerfile:%d", i.Line)
	}
	return record.Origin{Source: record.FromHistory, At: at, Text: clip(text, 200)}
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return strings.ToValidUTF8(s[:n], "") + "…"
}

// The shell in front of a classic builder's instruction: an absolute path (or
// a Windows shell) and its options. Options of "-o" have a word of their own.
const shellPattern = `(?:/[^\s]+|cmd|powershell)(?: +(?:-[A-Za-z]+|/S|pipefail|errexit|nounset))*? +(?:-[A-Za-z]*c|/C)`

var (
	nopPrefix   = regexp.MustCompile(`^` + shellPattern + ` +#\(nop\) +`)
	shellPrefix = regexp.MustCompile(`^` + shellPattern + ` +`)
	buildArgs   = regexp.MustCompile(`^\|[0-9]{1,5} `)
	afterArgs   = regexp.MustCompile(` ` + shellPattern + ` +`)
	// buildah ends created_by with the options that its layer depended on.
	buildahTail = regexp.MustCompile(`(?:\|(?:inheritLabels|unsetLabel|unsetAnnotation|unsetEnv|force-mtime|annotation|mode|link)[^|]*)+$`)
)

// ParseInstruction reads one created_by of an image's history: as the classic
// builder, BuildKit, buildah and kaniko write it. Keyword is empty for what
// none of them wrote: docker commit, other builders, hand-made images.
func ParseInstruction(createdBy string) (keyword, arguments string) {
	s := strings.TrimSpace(createdBy)
	if len(s) > maxInstruction {
		s = s[:maxInstruction]
	}
	if m := nopPrefix.FindString(s); m != "" { // classic builder, buildah
		return instruction(buildahTail.ReplaceAllString(s[len(m):], ""), classic)
	}
	if buildArgs.MatchString(s) || shellPrefix.MatchString(s) {
		return "RUN", strings.TrimSpace(withoutShell(s))
	}
	if bk, ok := strings.CutSuffix(s, "# buildkit"); ok {
		return instruction(strings.TrimSpace(bk), buildkit)
	}
	return instruction(s, verbatim)
}

// withoutShell drops "|2 A=b C=d /bin/sh -c " in front of a RUN's command.
// Values of build arguments are not quoted, so the first shell after them ends them.
func withoutShell(s string) string {
	if buildArgs.MatchString(s) {
		loc := afterArgs.FindStringIndex(s)
		if loc == nil { // the exec form of RUN has no shell; nobody can tell where the arguments end
			return s
		}
		return s[loc[1]:]
	}
	return s[len(shellPrefix.FindString(s)):]
}

// dialect is who wrote a line of history.
type dialect int

const (
	verbatim dialect = iota // kaniko: the Dockerfile's own words
	classic
	buildkit
)

// instruction splits "EXPOSE map[5432/tcp:{}]". Outside the classic builder's
// marked lines the keyword must be in capitals: "add user" is no ADD.
func instruction(s string, d dialect) (string, string) {
	word, rest, _ := strings.Cut(s, " ")
	keyword := strings.ToUpper(word)
	if _, known := command.Commands[strings.ToLower(word)]; !known || d != classic && keyword != word {
		return "", s
	}
	rest = strings.TrimSpace(rest)
	switch keyword {
	case "RUN":
		if d == buildkit {
			rest = withoutShell(rest)
		}
	case "EXPOSE":
		rest = exposed(rest)
	case "VOLUME", "SHELL":
		if in, ok := bracketed(rest, "["); ok && !strings.HasPrefix(in, `"`) { // Go's %v of a list
			rest = in
		}
	case "CMD", "ENTRYPOINT":
		if in, ok := bracketed(rest, "["); ok {
			if words, ok := quoted(in); ok {
				rest = jsonList(words)
			}
		}
	case "HEALTHCHECK":
		rest = healthcheck(rest)
	}
	return keyword, strings.TrimSpace(rest)
}

func bracketed(s, open string) (string, bool) {
	in, ok := strings.CutPrefix(s, open)
	if !ok {
		return "", false
	}
	return strings.CutSuffix(in, "]")
}

// exposed turns BuildKit's "map[53/udp:{} 5432/tcp:{}]" and "[5432/tcp]" into words.
func exposed(s string) string {
	if in, ok := bracketed(s, "map["); ok {
		return strings.ReplaceAll(in, ":{}", "")
	}
	if in, ok := bracketed(s, "["); ok {
		return in
	}
	return s
}

// quoted reads Go-quoted words separated by spaces or commas.
func quoted(s string) ([]string, bool) {
	words := []string{}
	for {
		s = strings.TrimLeft(s, " ,")
		if s == "" {
			return words, true
		}
		q, err := strconv.QuotedPrefix(s)
		if err != nil || q[0] == '\'' {
			return nil, false
		}
		w, err := strconv.Unquote(q)
		if err != nil {
			return nil, false
		}
		words, s = append(words, w), s[len(q):]
	}
}

func jsonList(words []string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(strconv.Quote(w))
	}
	return "[" + b.String() + "]"
}

// healthcheck reads Go's %v of the configuration:
// &{["CMD-SHELL" "true"] "30s" "0s" "0s" '\x00'}.
func healthcheck(s string) string {
	in, ok := strings.CutPrefix(s, "&{[")
	if !ok {
		return s
	}
	var words []string
	for {
		in = strings.TrimLeft(in, " ")
		if strings.HasPrefix(in, "]") {
			break
		}
		q, err := strconv.QuotedPrefix(in)
		if err != nil {
			return s
		}
		w, err := strconv.Unquote(q)
		if err != nil {
			return s
		}
		words, in = append(words, w), in[len(q):]
	}
	switch {
	case len(words) == 0:
		return s
	case words[0] == "CMD":
		return "CMD " + jsonList(words[1:])
	case words[0] == "CMD-SHELL" && len(words) > 1:
		return "CMD " + words[1]
	}
	return words[0]
}

// ParseDockerfile reads the instructions of a Dockerfile, all stages in file
// order, in the words of the file. It expands no variable and reads no other file.
func ParseDockerfile(r io.Reader) ([]Instruction, error) {
	limited := io.LimitReader(r, maxDockerfile+1)
	counted := &countingReader{r: limited}
	res, err := parser.Parse(counted)
	if err != nil {
		return nil, fmt.Errorf("parse Dockerfile: %w", err)
	}
	if counted.n > maxDockerfile {
		return nil, fmt.Errorf("parse Dockerfile: larger than %d bytes", maxDockerfile)
	}
	var out []Instruction
	for i, n := range res.AST.Children {
		original := strings.TrimSpace(n.Original)
		_, arguments, _ := strings.Cut(original, " ")
		if _, tabbed, ok := strings.Cut(original, "\t"); ok && len(tabbed) > len(arguments) {
			arguments = tabbed
		}
		arguments = strings.TrimSpace(arguments)
		for _, doc := range n.Heredocs {
			arguments += "\n" + doc.Content
		}
		out = append(out, Instruction{
			Index: i, Line: n.StartLine, Keyword: strings.ToUpper(n.Value),
			Arguments: arguments, Raw: clip(original, maxInstruction),
		})
	}
	return out, nil
}

type countingReader struct {
	r io.Reader
	n int64
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
