package rootfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"

	"golang.org/x/sys/unix"
)

// maxWalkDepth bounds how deep Walk goes, and so how many directories it holds open.
const maxWalkDepth = 128

// Walk calls visit for every directory, each before those below it, with its
// status and entries (names and types only). It follows no symbolic link and
// does not leave the file system that the root is on. What cannot be read is
// left out; visit says which of the entries to go into, by an error that the
// walk is over.
func (r *Root) Walk(visit func(dir string, st *unix.Stat_t, entries []fs.DirEntry) (into []string, err error)) error {
	fd, err := unix.Openat(int(r.dir.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("walk root filesystem: %w", err)
	}
	var root unix.Stat_t
	if err := unix.Fstat(fd, &root); err != nil {
		unix.Close(fd)
		return fmt.Errorf("walk root filesystem: %w", err)
	}
	return walk(os.NewFile(uintptr(fd), "/"), "/", root.Dev, 0, visit)
}

func walk(d *os.File, name string, dev uint64, depth int, visit func(string, *unix.Stat_t, []fs.DirEntry) ([]string, error)) error {
	defer d.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(d.Fd()), &st); err != nil || st.Dev != dev {
		return nil
	}
	entries, err := d.ReadDir(MaxEntries)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil
	}
	into, err := visit(name, &st, entries)
	if err != nil || depth >= maxWalkDepth {
		return err
	}
	for _, e := range into {
		fd, err := unix.Openat(int(d.Fd()), e, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		if err := walk(os.NewFile(uintptr(fd), e), path.Join(name, e), dev, depth+1, visit); err != nil {
			return err
		}
	}
	return nil
}
