package guard

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Layers are the directories that a container's root is made of.
type Layers struct {
	// Upper is what the container writes to. nil: its root is no overlay of its
	// own, or one that cannot be written to.
	Upper *os.File
	// Lower are those of the image, the topmost first, without such as hold the
	// data of files only.
	Lower []*os.File
	// Root is the root itself, where it is not an overlay.
	Root *os.File
	// Mounts are what else is mounted below the root, by path in the container.
	Mounts []string
}

// Close closes all of them.
func (l *Layers) Close() {
	for _, f := range append([]*os.File{l.Upper, l.Root}, l.Lower...) {
		if f != nil {
			f.Close()
		}
	}
}

// lowerMost is how many layers the kernel takes: OVL_MAX_STACK.
const lowerMost = 500

// Layers opens the layers of a container that is guarded.
func (g *Guard) Layers(id string) (l *Layers, err error) {
	l = &Layers{}
	defer func() {
		if err != nil {
			l.Close()
			l, err = nil, fmt.Errorf("open layers: %w", err)
		}
	}()
	g.mu.RLock()
	c := g.containers[id]
	var root, upper *os.File
	if c != nil {
		root, err = again(c.Root)
		if err == nil && c.upper != nil {
			upper, err = again(c.upper)
		}
	}
	g.mu.RUnlock()
	if c == nil {
		return l, errors.New("the container is not guarded")
	}
	l.Root, l.Upper = root, upper
	if err != nil {
		return l, err
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", c.PID))
	if err != nil {
		return l, err
	}
	mounts, err := parseMountinfo(data)
	if err != nil {
		return l, err
	}
	for _, m := range mounts {
		if m.Point != "/" {
			l.Mounts = append(l.Mounts, m.Point)
		}
	}
	if !c.overlay {
		return l, nil
	}
	root.Close()
	l.Root = nil
	i := slices.IndexFunc(mounts, func(m mount) bool { return uint64(m.ID) == c.mnt })
	if i < 0 || upper == nil {
		return l, nil
	}
	given, _ := mounts[i].upperOf()
	base := "/"
	if rest, ok := strings.CutSuffix(c.upper.Name(), "/"+given); ok && !path.IsAbs(given) {
		base = rest
	}
	for _, dir := range mounts[i].lowerOf() {
		if len(l.Lower) == lowerMost {
			return l, fmt.Errorf("more than %d layers", lowerMost)
		}
		if !path.IsAbs(dir) {
			dir = path.Join(base, dir)
		}
		// Not O_NOFOLLOW: Docker's short names of layers are links. They are the engine's.
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return l, fmt.Errorf("%s: %w", dir, err)
		}
		l.Lower = append(l.Lower, os.NewFile(uintptr(fd), dir))
	}
	return l, nil
}

func again(f *os.File) (dup *os.File, err error) {
	err = withFD(f, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			dup = os.NewFile(uintptr(n), f.Name())
		}
		return err
	})
	return dup, err
}

// lowerOf gives the overlay's lower directories: one option with all of them, or
// one for each ("lowerdir+", since Linux 6.5). Behind "::" is what holds data only.
func (m mount) lowerOf() (dirs []string) {
	for opt := range splitOptions(m.Super) {
		if v, ok := strings.CutPrefix(opt, "lowerdir+="); ok && v != "" {
			dirs = append(dirs, strings.ReplaceAll(unescape(v), `\,`, `,`))
		} else if v, ok := strings.CutPrefix(opt, "lowerdir="); ok {
			v = strings.ReplaceAll(unescape(v), `\,`, `,`)
			start := 0
			for i := 0; i <= len(v); i++ {
				switch {
				case i < len(v) && v[i] == '\\':
					i++
				case i == len(v) || v[i] == ':':
					if i == start && start > 0 {
						return dirs
					}
					if i > start {
						dirs = append(dirs, strings.ReplaceAll(v[start:i], `\:`, `:`))
					}
					start = i + 1
				}
			}
		}
	}
	return dirs
}
