// Package bundle reads and edits the config.json of an OCI bundle.
//
// It guarantees:
//   - Only what an Edit names changes. Everything else keeps its bytes: fields
//     that nobody here knows, the order of keys, numbers of any size.
//   - A document that two readers could take differently is refused: a key
//     twice in an object, or twice up to letter case where an object is edited.
//   - Memory and time are bounded by MaxSize and MaxDepth.
//   - An Edit of FromPlan only tightens: it makes nothing writable, executable
//     or permitted that config.json does not.
//
// It does not check that a bundle will run. It does not reach the mounts below
// the top of a recursive bind mount unless Options.RecursiveMounts is set.
//
// Sources: runtime-spec 1.3.0, runc libcontainer/specconv (mount options, also
// "runc features"), encoding/json.
package bundle

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Spec is what a config.json says, as far as declarun needs it, to read. The
// document itself is kept beside it.
type Spec struct {
	Version     string            `json:"ociVersion"`
	Process     *specs.Process    `json:"process"`
	Root        *specs.Root       `json:"root"`
	Mounts      []specs.Mount     `json:"mounts"`
	Hooks       *specs.Hooks      `json:"hooks"`
	Annotations map[string]string `json:"annotations"`
	Linux       *Linux            `json:"linux"`

	raw []byte
}

// Linux is the part of linux that declarun needs.
type Linux struct {
	UIDMappings   []specs.LinuxIDMapping `json:"uidMappings"`
	GIDMappings   []specs.LinuxIDMapping `json:"gidMappings"`
	Namespaces    []specs.LinuxNamespace `json:"namespaces"`
	Seccomp       *specs.LinuxSeccomp    `json:"seccomp"`
	CgroupsPath   string                 `json:"cgroupsPath"`
	MaskedPaths   []string               `json:"maskedPaths"`
	ReadonlyPaths []string               `json:"readonlyPaths"`
}

// Parse reads a config.json.
func Parse(raw []byte) (*Spec, error) {
	if err := check(raw); err != nil {
		return nil, err
	}
	if kind(raw) != '{' {
		return nil, fault("", "not an object")
	}
	s := new(Spec)
	if err := json.Unmarshal(raw, s); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			return nil, fault("/"+strings.ReplaceAll(wrong.Field, ".", "/"), "a %s where %s belongs", wrong.Value, wrong.Type)
		}
		return nil, &Error{"", err}
	}
	if _, err := members("", raw); err != nil {
		return nil, err
	}
	s.raw = raw
	return s, nil
}

// Edit is what changes. The zero Edit changes nothing.
type Edit struct {
	ReadonlyRoot *bool
	// SelfBinds are directories and files of the root filesystem that are
	// mounted onto themselves, before all other mounts and in this order.
	SelfBinds []SelfBind
	// MountOptions are added to the mounts of config.json, by index.
	MountOptions map[int][]string
	// Seccomp replaces linux.seccomp.
	Seccomp *specs.LinuxSeccomp
	// DropCapabilities are taken out of all five sets of process.capabilities.
	DropCapabilities []string
	NoNewPrivileges  *bool
	// CreateRuntimeHooks come after those that are there.
	CreateRuntimeHooks []specs.Hook
	// MaskedPaths and ReadonlyPaths are added to those of linux.
	MaskedPaths, ReadonlyPaths []string
}

// SelfBind keeps a part of a read-only root writable, in the container's own
// layer.
type SelfBind struct {
	Path   string // in the container, clean and free of symbolic links
	Source string // the same on the host
	Exec   bool   // without noexec
}

func (b SelfBind) mount() specs.Mount {
	options := []string{"bind", "rw", "nosuid", "nodev"}
	if !b.Exec {
		options = append(options, "noexec")
	}
	return specs.Mount{Destination: b.Path, Type: "bind", Source: b.Source, Options: options}
}

// Apply makes the edited config.json.
func (s *Spec) Apply(e Edit) ([]byte, error) {
	if s.raw == nil {
		return nil, errors.New("edit config.json: not parsed")
	}
	out := json.RawMessage(s.raw)
	edit := func(wanted bool, f func(pointer string, old json.RawMessage) (json.RawMessage, error), path ...string) error {
		if !wanted {
			return nil
		}
		changed, err := change("", out, path, f)
		if err != nil {
			return fmt.Errorf("edit %w", err)
		}
		out = changed
		return nil
	}
	err := errors.Join(
		edit(e.ReadonlyRoot != nil, value(e.ReadonlyRoot), "root", "readonly"),
		edit(len(e.SelfBinds)+len(e.MountOptions) > 0, e.mounts, "mounts"),
		edit(e.Seccomp != nil, value(e.Seccomp), "linux", "seccomp"),
		edit(len(e.DropCapabilities) > 0 && s.Process != nil && s.Process.Capabilities != nil, e.capabilities, "process", "capabilities"),
		edit(e.NoNewPrivileges != nil, value(e.NoNewPrivileges), "process", "noNewPrivileges"),
		edit(len(e.CreateRuntimeHooks) > 0, appendTo(e.CreateRuntimeHooks), "hooks", "createRuntime"),
		edit(len(e.MaskedPaths) > 0, appendTo(e.MaskedPaths), "linux", "maskedPaths"),
		edit(len(e.ReadonlyPaths) > 0, appendTo(e.ReadonlyPaths), "linux", "readonlyPaths"),
	)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func value(v any) func(string, json.RawMessage) (json.RawMessage, error) {
	return func(pointer string, _ json.RawMessage) (json.RawMessage, error) {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, &Error{pointer, err}
		}
		return b, nil
	}
}

func appendTo[T any](add []T) func(string, json.RawMessage) (json.RawMessage, error) {
	return func(pointer string, old json.RawMessage) (json.RawMessage, error) {
		var es []json.RawMessage
		if old != nil {
			var err error
			if es, err = elements(pointer, old); err != nil {
				return nil, err
			}
		}
		for _, v := range add {
			b, err := json.Marshal(v)
			if err != nil {
				return nil, &Error{pointer, err}
			}
			es = append(es, b)
		}
		return joinElements(es), nil
	}
}

func (e Edit) mounts(pointer string, old json.RawMessage) (json.RawMessage, error) {
	var theirs []json.RawMessage
	if old != nil {
		var err error
		if theirs, err = elements(pointer, old); err != nil {
			return nil, err
		}
	}
	for i, add := range e.MountOptions {
		at := below(pointer, strconv.Itoa(i))
		if i < 0 || i >= len(theirs) {
			return nil, fault(at, "no such mount")
		}
		m, err := change(at, theirs[i], []string{"options"}, appendTo(add))
		if err != nil {
			return nil, err
		}
		theirs[i] = m
	}
	var all []json.RawMessage
	for _, b := range e.SelfBinds {
		m, err := json.Marshal(b.mount())
		if err != nil {
			return nil, &Error{pointer, err}
		}
		all = append(all, m)
	}
	return joinElements(append(all, theirs...)), nil
}

func (e Edit) capabilities(pointer string, old json.RawMessage) (json.RawMessage, error) {
	if old == nil {
		return json.RawMessage("null"), nil
	}
	ms, err := members(pointer, old)
	if err != nil {
		return nil, err
	}
	for i, m := range ms {
		if !slices.ContainsFunc(capabilitySets, func(s string) bool { return strings.EqualFold(s, m.name) }) {
			continue
		}
		var names []string
		if err := json.Unmarshal(m.value, &names); err != nil {
			return nil, &Error{below(pointer, m.name), err}
		}
		kept := slices.DeleteFunc(slices.Clone(names), func(n string) bool {
			return slices.ContainsFunc(e.DropCapabilities, func(d string) bool { return capability(d) == capability(n) })
		})
		if len(kept) == len(names) {
			continue
		}
		if ms[i].value, err = json.Marshal(kept); err != nil {
			return nil, &Error{below(pointer, m.name), err}
		}
	}
	return joinMembers(ms), nil
}

var capabilitySets = []string{"bounding", "effective", "inheritable", "permitted", "ambient"}

// capability spells a name as runc does: CAP_ in front, upper case.
func capability(n string) string {
	n = strings.ToUpper(n)
	if !strings.HasPrefix(n, "CAP_") {
		n = "CAP_" + n
	}
	return n
}
