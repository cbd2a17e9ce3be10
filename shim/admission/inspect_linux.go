package admission

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/rootfs"
)

// Inspect reads what Judge wants to know of an image's files: os-release(5)
// and apt's package lists. A file that is not there is no error.
func Inspect(root *rootfs.Root) (osRelease map[string]string, lists *AptState, err error) {
	for _, name := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		data, err := root.ReadFile(name, 64<<10)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			continue
		}
		if err != nil {
			return nil, nil, fmt.Errorf("inspect image: %w", err)
		}
		osRelease = ParseOSRelease(data)
		break
	}
	const dir = "/var/lib/apt/lists"
	entries, err := root.ReadDir(dir, 10_000)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return osRelease, nil, nil
	}
	if err != nil {
		return osRelease, nil, fmt.Errorf("inspect image: %w", err)
	}
	lists = &AptState{}
	for _, e := range entries {
		if !e.Type().IsRegular() || e.Name() == "lock" {
			continue
		}
		_, st, err := root.Lstat(dir + "/" + e.Name())
		if err != nil {
			return osRelease, nil, fmt.Errorf("inspect image: %w", err)
		}
		lists.Lists++
		if t := time.Unix(st.Mtim.Unix()); t.After(lists.Newest) {
			lists.Newest = t
		}
	}
	return osRelease, lists, nil
}

// ParseOSRelease reads os-release(5): NAME=value, with a shell's quotes.
func ParseOSRelease(data []byte) map[string]string {
	out := map[string]string{}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() && len(out) < 200 {
		name, value, ok := strings.Cut(strings.TrimSpace(sc.Text()), "=")
		if !ok || name == "" || strings.HasPrefix(name, "#") {
			continue
		}
		if n := len(value); n >= 2 && (value[0] == '"' || value[0] == '\'') && value[n-1] == value[0] {
			value = value[1 : n-1]
		}
		out[name] = strings.NewReplacer(`\"`, `"`, `\$`, `$`, `\\`, `\`, "\\`", "`").Replace(value)
	}
	return out
}
