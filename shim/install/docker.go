package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
)

// member is one name and value of a JSON object, in the order of the file.
type member struct {
	name  string
	value json.RawMessage
}

type object []member

// parseObject reads an object; an empty file is an empty one.
func parseObject(content []byte) (object, error) {
	if len(bytes.TrimSpace(content)) == 0 {
		return nil, nil
	}
	d := json.NewDecoder(bytes.NewReader(content))
	if t, err := d.Token(); err != nil {
		return nil, err
	} else if t != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	var o object
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		name, _ := t.(string) // the decoder lets nothing else be a name
		if slices.ContainsFunc(o, func(m member) bool { return m.name == name }) {
			return nil, fmt.Errorf("%q is there twice", name)
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, err
		}
		o = append(o, member{name, value})
	}
	if _, err := d.Token(); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the object")
	}
	return o, nil
}

func (o object) get(name string) json.RawMessage {
	for _, m := range o {
		if m.name == name {
			return m.value
		}
	}
	return nil
}

// set replaces a member in its place or appends it; a nil value removes it.
func (o object) set(name string, value json.RawMessage) object {
	o = slices.Clone(o)
	i := slices.IndexFunc(o, func(m member) bool { return m.name == name })
	switch {
	case i < 0 && value == nil:
	case i < 0:
		o = append(o, member{name, value})
	case value == nil:
		o = slices.Delete(o, i, i+1)
	default:
		o[i].value = value
	}
	return o
}

func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(m.value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// format writes an object with the indentation of the file it replaces.
func (o object) format(like []byte) ([]byte, error) {
	compact, err := o.MarshalJSON()
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Indent(&b, compact, "", indentOf(like)); err != nil {
		return nil, err
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func indentOf(content []byte) string {
	for line := range strings.Lines(string(content)) {
		if trimmed := strings.TrimLeft(line, " \t"); strings.HasPrefix(trimmed, `"`) && len(trimmed) < len(line) {
			return line[:len(line)-len(trimmed)]
		}
	}
	return "    "
}

// DockerInstalled is daemon.json with declarun in it, at the absolute path
// program, and as the default runtime if asked.
func DockerInstalled(content []byte, program string, asDefault bool) ([]byte, error) {
	o, runtimes, err := parseDaemon(content)
	if err != nil {
		return nil, err
	}
	entry, err := json.Marshal(map[string]string{"path": program})
	if err != nil {
		return nil, err
	}
	raw, err := runtimes.set(Name, entry).MarshalJSON()
	if err != nil {
		return nil, err
	}
	o = o.set("runtimes", raw)
	if asDefault {
		o = o.set("default-runtime", json.RawMessage(`"`+Name+`"`))
	}
	return o.format(content)
}

// DockerUninstalled is daemon.json without declarun. before is the content that
// install found (nil: there was none, or it is not known): it says which runtime
// was the default. An empty result means that the file can go.
func DockerUninstalled(content, before []byte) ([]byte, error) {
	o, runtimes, err := parseDaemon(content)
	if err != nil {
		return nil, err
	}
	wasDefault := string(o.get("default-runtime")) == `"`+Name+`"`
	if runtimes.get(Name) == nil && !wasDefault {
		return nil, ErrUnchanged
	}
	runtimes = runtimes.set(Name, nil)
	old, oldRuntimes, err := parseDaemon(before)
	if err != nil {
		old, oldRuntimes = nil, nil // an unreadable backup restores nothing
	}
	if len(runtimes) == 0 && oldRuntimes == nil && old.get("runtimes") == nil {
		o = o.set("runtimes", nil)
	} else {
		raw, err := runtimes.MarshalJSON()
		if err != nil {
			return nil, err
		}
		o = o.set("runtimes", raw)
	}
	if wasDefault {
		previous := old.get("default-runtime")
		if string(previous) == `"`+Name+`"` {
			previous = nil
		}
		o = o.set("default-runtime", previous)
	}
	if len(o) == 0 && before == nil {
		return nil, nil
	}
	if same, err := equalJSON(o, old); before != nil && err == nil && same {
		return before, nil // to the letter
	}
	return o.format(content)
}

func equalJSON(a, b object) (bool, error) {
	x, err := a.format(nil)
	if err != nil {
		return false, err
	}
	y, err := b.format(nil)
	return bytes.Equal(x, y), err
}

func parseDaemon(content []byte) (o, runtimes object, err error) {
	if o, err = parseObject(content); err != nil {
		return nil, nil, fmt.Errorf("parse daemon.json: %w", err)
	}
	if runtimes, err = parseObject(o.get("runtimes")); err != nil {
		return nil, nil, fmt.Errorf("parse daemon.json: runtimes: %w", err)
	}
	return o, runtimes, nil
}
