package install

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

const (
	runcType = "io.containerd.runc.v2"
	criV2    = "io.containerd.grpc.v1.cri"    // version 2 of config.toml
	criV3    = "io.containerd.cri.v1.runtime" // version 3, containerd 2
)

type table = map[string]any

// ContainerdDropIn is the drop-in that adds declarun to a containerd with the
// configuration content (empty: none). It has the whole of the CRI plugin's
// section in it, the runtime it takes its options from included, because
// containerd before 2.0 takes the section from one file only.
func ContainerdDropIn(content []byte, program string, asDefault bool) ([]byte, error) {
	config, version, err := parseContainerd(content)
	if err != nil {
		return nil, err
	}
	plugin := criV2
	if version == 3 {
		plugin = criV3
	}
	cri := child(child(config, "plugins"), plugin)
	containerd := child(cri, "containerd")
	runtimes := child(containerd, "runtimes")
	base, _ := containerd["default_runtime_name"].(string)
	if base == "" || base == Name {
		base = "runc"
	}
	if _, ok := runtimes["runc"]; !ok {
		runtimes["runc"] = table{"runtime_type": runcType} // the built-in entry goes away with a section of one's own
	}
	entry := clone(child(runtimes, base))
	if t, _ := entry["runtime_type"].(string); t != runcType && t != "" {
		entry = clone(child(runtimes, "runc")) // kata and the like: not what declarun can stand in for
	}
	entry["runtime_type"] = runcType
	child(entry, "options")["BinaryName"] = program
	runtimes[Name] = entry
	if asDefault {
		containerd["default_runtime_name"] = Name
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "# Made by \"declarun install containerd\" from config.toml, whose section on the CRI plugin\n")
	fmt.Fprintf(&b, "# it repeats: containerd before 2.0 takes that section from one file only. After a\n")
	fmt.Fprintf(&b, "# change there run it again. \"declarun uninstall containerd\" removes this file.\n\n")
	if err := toml.NewEncoder(&b).Encode(table{"version": version, "plugins": table{plugin: cri}}); err != nil {
		return nil, fmt.Errorf("write drop-in: %w", err)
	}
	return b.Bytes(), nil
}

// ContainerdImports is config.toml with an import of the drop-in; the same
// bytes if one of its patterns covers it already.
func ContainerdImports(content []byte, dropIn string) ([]byte, error) {
	config, _, err := parseContainerd(content)
	if err != nil {
		return nil, err
	}
	imports, _ := config["imports"].([]any)
	for _, pattern := range imports {
		if p, ok := pattern.(string); ok {
			if covered, err := path.Match(p, dropIn); err == nil && covered {
				return content, nil
			}
		}
	}
	text, quoted := string(content), strconv.Quote(dropIn)
	switch line := importsLine.FindStringIndex(beforeTables(text)); {
	case line != nil && len(imports) > 0:
		text = text[:line[1]] + quoted + ", " + text[line[1]:]
	case line != nil:
		text = text[:line[1]] + quoted + text[line[1]:]
	case len(bytes.TrimSpace(content)) == 0:
		text = "version = 2\nimports = [" + quoted + "]\n"
	default:
		text = "imports = [" + quoted + "]\n" + text
	}
	// Read back: that import more, and nothing else.
	edited, _, err := parseContainerd([]byte(text))
	if err != nil {
		return nil, fmt.Errorf("add import: %w", err)
	}
	after, _ := edited["imports"].([]any)
	if !slices.Contains(after, any(dropIn)) || len(after) != len(imports)+1 {
		return nil, &Advice{errors.New("add import: the list is written in a way this does not understand"), "add " + quoted + " to imports in config.toml"}
	}
	delete(edited, "imports")
	rest := maps.Clone(config)
	delete(rest, "imports")
	if len(bytes.TrimSpace(content)) > 0 && !reflect.DeepEqual(edited, rest) {
		return nil, errors.New("add import: it would change something else")
	}
	return []byte(text), nil
}

// ContainerdWithoutImport undoes ContainerdImports.
func ContainerdWithoutImport(content []byte, dropIn string) []byte {
	text, quoted := string(content), strconv.Quote(dropIn)
	top := beforeTables(text)
	rest := text[len(top):]
	if all := "imports = [" + quoted + "]\n"; strings.Contains(top, all) {
		return []byte(strings.Replace(top, all, "", 1) + rest)
	}
	for _, s := range []string{quoted + ", ", ", " + quoted, quoted} {
		if strings.Contains(top, s) {
			return []byte(strings.Replace(top, s, "", 1) + rest)
		}
	}
	return content
}

// sameConfig says that two files mean the same to containerd.
func sameConfig(a, b []byte) bool {
	x, _, errX := parseContainerd(a)
	y, _, errY := parseContainerd(b)
	for _, config := range []table{x, y} {
		if imports, ok := config["imports"].([]any); ok && len(imports) == 0 {
			delete(config, "imports")
		}
	}
	return errX == nil && errY == nil && reflect.DeepEqual(x, y)
}

var (
	importsLine = regexp.MustCompile(`(?m)^[ \t]*imports[ \t]*=[ \t]*\[`)
	tableLine   = regexp.MustCompile(`(?m)^[ \t]*\[`)
)

// beforeTables is where a key is the file's own. A multi-line array whose
// lines begin with "[" ends it too early; what is then done wrong shows when it
// is read back.
func beforeTables(text string) string {
	if i := tableLine.FindStringIndex(text); i != nil {
		return text[:i[0]]
	}
	return text
}

func parseContainerd(content []byte) (table, int64, error) {
	config := table{}
	if err := toml.Unmarshal(content, &config); err != nil {
		return nil, 0, fmt.Errorf("parse config.toml: %w", err)
	}
	if len(config) == 0 {
		return config, 2, nil // understood by containerd 1.3 and later, 2 included
	}
	version, _ := config["version"].(int64)
	if version != 2 && version != 3 {
		return nil, 0, &Advice{fmt.Errorf("parse config.toml: version %d of the format, want 2 or 3", version), "containerd config migrate"}
	}
	return config, version, nil
}

// child is a sub-table, made if it is not there.
func child(t table, name string) table {
	c, ok := t[name].(table)
	if !ok {
		c = table{}
		t[name] = c
	}
	return c
}

func clone(t table) table {
	c := table{}
	for name, value := range t {
		if sub, ok := value.(table); ok {
			value = clone(sub)
		}
		c[name] = value
	}
	return c
}
