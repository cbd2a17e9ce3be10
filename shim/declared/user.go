package declared

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"

	"github.com/declarun/declarun/shim/rootfs"
)

// numericUser reads "", "1000" and "1000:1000"; ok is false where a name needs
// the image's /etc/passwd. A number without a group may still have one there.
func numericUser(user string) (uid, gid uint32, ok bool) {
	if user == "" {
		return 0, 0, true
	}
	u, g, hasGroup := strings.Cut(user, ":")
	n, err := strconv.ParseUint(u, 10, 31)
	if err != nil {
		return 0, 0, false
	}
	if hasGroup {
		m, err := strconv.ParseUint(g, 10, 31)
		if err != nil {
			return 0, 0, false
		}
		return uint32(n), uint32(m), true
	}
	return uint32(n), 0, true
}

// LookupUser resolves a USER declaration ("postgres", "1000:games") with the
// content of /etc/passwd and /etc/group, the way runc does.
func LookupUser(user string, passwd, group []byte) (uid, gid uint32, err error) {
	if user == "" {
		return 0, 0, nil
	}
	name, groupName, hasGroup := strings.Cut(user, ":")
	found := false
	for f := range colonFields(passwd, 4) {
		if f[0] != name && f[2] != name {
			continue
		}
		u, err1 := strconv.ParseUint(f[2], 10, 31)
		g, err2 := strconv.ParseUint(f[3], 10, 31)
		if err1 != nil || err2 != nil {
			return 0, 0, fmt.Errorf("look up user %q: malformed line in /etc/passwd", name)
		}
		uid, gid, found = uint32(u), uint32(g), true
		break
	}
	if !found {
		n, err := strconv.ParseUint(name, 10, 31)
		if err != nil {
			return 0, 0, fmt.Errorf("look up user %q: not in the image's /etc/passwd", name)
		}
		uid = uint32(n)
	}
	if !hasGroup {
		return uid, gid, nil
	}
	for f := range colonFields(group, 3) {
		if f[0] != groupName && f[2] != groupName {
			continue
		}
		g, err := strconv.ParseUint(f[2], 10, 31)
		if err != nil {
			return 0, 0, fmt.Errorf("look up group %q: malformed line in /etc/group", groupName)
		}
		return uid, uint32(g), nil
	}
	g, err := strconv.ParseUint(groupName, 10, 31)
	if err != nil {
		return 0, 0, fmt.Errorf("look up group %q: not in the image's /etc/group", groupName)
	}
	return uid, uint32(g), nil
}

func colonFields(data []byte, atLeast int) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		sc := bufio.NewScanner(bytes.NewReader(data))
		for sc.Scan() {
			if f := strings.Split(sc.Text(), ":"); len(f) >= atLeast && !yield(f) {
				return
			}
		}
	}
}

// ResolveUser sets Process.UID and GID of a plan without a container from the
// image's user database.
func (d *Declared) ResolveUser(root *rootfs.Root) error {
	read := func(name string) ([]byte, error) {
		data, err := root.ReadFile(name, 4<<20)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, nil
		}
		return data, err
	}
	passwd, err := read("/etc/passwd")
	if err != nil {
		return fmt.Errorf("resolve user %q: %w", d.Image.User, err)
	}
	group, err := read("/etc/group")
	if err != nil {
		return fmt.Errorf("resolve user %q: %w", d.Image.User, err)
	}
	uid, gid, err := LookupUser(d.Image.User, passwd, group)
	if err != nil {
		return err
	}
	d.Process.UID, d.Process.GID = uid, gid
	kept := d.Missing[:0]
	for _, m := range d.Missing {
		if !strings.HasPrefix(m, "user: ") {
			kept = append(kept, m)
		}
	}
	d.Missing = kept
	return nil
}
