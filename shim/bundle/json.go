package bundle

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode"
)

// Limits on a config.json. Engines write about 10 KiB.
const (
	MaxSize  = 16 << 20
	MaxDepth = 128
)

// Error is a config.json that cannot be read or edited. Pointer says where
// (RFC 6901); "" is the document itself.
type Error struct {
	Pointer string
	Cause   error
}

func (e *Error) Error() string {
	if e.Pointer == "" {
		return "config.json: " + e.Cause.Error()
	}
	return "config.json " + e.Pointer + ": " + e.Cause.Error()
}

func (e *Error) Unwrap() error { return e.Cause }

func fault(pointer, format string, args ...any) error {
	return &Error{pointer, fmt.Errorf(format, args...)}
}

var escape = strings.NewReplacer("~", "~0", "/", "~1")

func below(pointer, name string) string {
	if len(name) > 64 {
		name = name[:64] + "…"
	}
	return pointer + "/" + escape.Replace(name)
}

// check reads the whole document once: it is one JSON value, not nested too
// deeply, and no object has a key twice. Two readers may disagree on which of
// two equal keys holds, so what was checked need not be what runc sees.
func check(raw []byte) error {
	if len(raw) > MaxSize {
		return fault("", "%d bytes; at most %d are read", len(raw), MaxSize)
	}
	type level struct {
		keys  map[string]bool // nil in an array
		key   string
		index int
		value bool // a key was read, its value is next
	}
	var stack []level
	where := func() string {
		p := ""
		for _, l := range stack {
			if l.keys == nil {
				p = below(p, strconv.Itoa(l.index))
			} else if l.value {
				p = below(p, l.key)
			}
		}
		return p
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	done := false // the document's value has ended
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) && done && len(stack) == 0 {
			return nil
		}
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return &Error{where(), fmt.Errorf("byte %d: %w", d.InputOffset(), err)}
		}
		if done && len(stack) == 0 {
			return fault("", "byte %d: more after the end", d.InputOffset())
		}
		if len(stack) > 0 {
			l := &stack[len(stack)-1]
			if s, ok := t.(string); ok && l.keys != nil && !l.value {
				l.key, l.value = s, true
				if l.keys[s] {
					return fault(where(), "the key is there twice")
				}
				l.keys[s] = true
				continue
			}
		}
		switch t {
		case json.Delim('{'):
			stack = append(stack, level{keys: make(map[string]bool)})
		case json.Delim('['):
			stack = append(stack, level{})
		case json.Delim('}'), json.Delim(']'):
			stack = stack[:len(stack)-1]
			fallthrough
		default:
			if len(stack) > 0 {
				l := &stack[len(stack)-1]
				l.index++
				l.value = false
			}
			done = true
		}
		if len(stack) > MaxDepth {
			return fault(where(), "nested more than %d deep", MaxDepth)
		}
	}
}

// member is one member of an object, its bytes as they were written.
type member struct {
	name  string
	key   []byte
	value json.RawMessage
}

// members splits an object of a checked document.
func members(pointer string, raw json.RawMessage) ([]member, error) {
	if kind(raw) != '{' {
		return nil, fault(pointer, "not an object")
	}
	var out []member
	seen := make(map[string]string)
	i := skipSpace(raw, bytes.IndexByte(raw, '{')+1)
	for raw[i] != '}' {
		k := i
		i = skipValue(raw, i)
		m := member{key: raw[k:i]}
		if err := json.Unmarshal(m.key, &m.name); err != nil {
			return nil, &Error{pointer, err}
		}
		i = skipSpace(raw, skipSpace(raw, i)+1) // the colon
		v := i
		i = skipValue(raw, i)
		m.value = raw[v:i]
		// encoding/json, and so runc, takes a key in any letter case for a
		// field, and the last of several.
		if o, ok := seen[fold(m.name)]; ok {
			return nil, fault(below(pointer, m.name), "the key is there twice, as %q too", o)
		}
		seen[fold(m.name)] = m.name
		out = append(out, m)
		if i = skipSpace(raw, i); raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	return out, nil
}

// fold gives the same for all names that strings.EqualFold takes as equal.
func fold(name string) string {
	return strings.Map(func(r rune) rune {
		least := r
		for f := unicode.SimpleFold(r); f != r; f = unicode.SimpleFold(f) {
			least = min(least, f)
		}
		return least
	}, name)
}

// elements splits an array of a checked document.
func elements(pointer string, raw json.RawMessage) ([]json.RawMessage, error) {
	if kind(raw) == 'n' {
		return nil, nil
	}
	if kind(raw) != '[' {
		return nil, fault(pointer, "not an array")
	}
	var out []json.RawMessage
	i := skipSpace(raw, bytes.IndexByte(raw, '[')+1)
	for raw[i] != ']' {
		v := i
		i = skipValue(raw, i)
		out = append(out, raw[v:i])
		if i = skipSpace(raw, i); raw[i] == ',' {
			i = skipSpace(raw, i+1)
		}
	}
	return out, nil
}

func kind(raw []byte) byte {
	if i := skipSpace(raw, 0); i < len(raw) {
		return raw[i]
	}
	return 0
}

func skipSpace(raw []byte, i int) int {
	for i < len(raw) && (raw[i] == ' ' || raw[i] == '\t' || raw[i] == '\n' || raw[i] == '\r') {
		i++
	}
	return i
}

// skipValue gives the index after the value at i of a checked document.
func skipValue(raw []byte, i int) int {
	depth := 0
	for ; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			for i++; raw[i] != '"'; i++ {
				if raw[i] == '\\' {
					i++
				}
			}
			if depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i // the end of what a number or literal is in
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\n', '\r':
			if depth == 0 {
				return i
			}
		}
	}
	return i
}

func joinMembers(ms []member) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range ms {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(m.key)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes()
}

func joinElements(es []json.RawMessage) json.RawMessage {
	var b bytes.Buffer
	b.WriteByte('[')
	for i, e := range es {
		if i > 0 {
			b.WriteByte(',')
		}
		b.Write(e)
	}
	b.WriteByte(']')
	return b.Bytes()
}

// change replaces the value at a path of names by what f makes of it, and
// leaves every other byte of the objects on the way as it is. Missing (or
// null) objects on the way are made; f gets nil for a missing or null value.
func change(pointer string, raw json.RawMessage, path []string, f func(pointer string, old json.RawMessage) (json.RawMessage, error)) (json.RawMessage, error) {
	if len(path) == 0 {
		if raw != nil && kind(raw) == 'n' {
			raw = nil
		}
		return f(pointer, raw)
	}
	if raw == nil || kind(raw) == 'n' {
		raw = json.RawMessage("{}")
	}
	ms, err := members(pointer, raw)
	if err != nil {
		return nil, err
	}
	at := -1
	for i, m := range ms {
		if strings.EqualFold(m.name, path[0]) {
			at = i
		}
	}
	if at < 0 {
		key, err := json.Marshal(path[0])
		if err != nil {
			return nil, &Error{pointer, err}
		}
		ms = append(ms, member{name: path[0], key: key})
		at = len(ms) - 1
	}
	v, err := change(below(pointer, path[0]), ms[at].value, path[1:], f)
	if err != nil {
		return nil, err
	}
	ms[at].value = v
	return joinMembers(ms), nil
}
