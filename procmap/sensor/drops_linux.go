package sensor

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Tree is where a container can write. Watch uses its files only while it runs.
type Tree struct {
	ID string
	// Overlay is the root (O_PATH) where it is a whole overlay superblock of
	// the container's own; nil otherwise. Never set it for one that is shared.
	Overlay *os.File
	// Mounts are the writable mounts (O_PATH), by destination.
	Mounts map[string]*os.File
}

type tree struct {
	mounts  []uint64
	dev     uint64
	overlay bool
	marks   []dropMark
}

type dropMark struct {
	flags uint
	file  *os.File
}

// Drops is one fanotify group without permission events, for any number of
// containers. It is safe for concurrent use.
type Drops struct {
	fd   int
	file *os.File

	mu      sync.RWMutex
	trees   map[string]*tree
	byMount map[uint64]string
	byDev   map[uint64]string
}

// OpenDrops makes the group.
func OpenDrops() (*Drops, error) {
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK|unix.FAN_UNLIMITED_MARKS,
		unix.O_RDONLY|unix.O_CLOEXEC|unix.O_LARGEFILE|unix.O_NONBLOCK|unix.O_NOATIME)
	if err != nil {
		hint := "run the supervisor as root of the initial user namespace, on a kernel with CONFIG_FANOTIFY=y"
		if errors.Is(err, unix.EMFILE) {
			hint = "raise the sysctl fs.fanotify.max_user_groups"
		}
		return nil, &UnsupportedError{What: "dropped programs", Err: err, Hint: hint}
	}
	return &Drops{
		fd:      fd,
		file:    os.NewFile(uintptr(fd), "fanotify"),
		trees:   map[string]*tree{},
		byMount: map[uint64]string{},
		byDev:   map[uint64]string{},
	}, nil
}

// Close ends the sensor; Run must have returned.
func (d *Drops) Close() error {
	d.mu.Lock()
	ids := make([]string, 0, len(d.trees))
	for id := range d.trees {
		ids = append(ids, id)
	}
	d.mu.Unlock()
	for _, id := range ids {
		d.Forget(id)
	}
	return d.file.Close()
}

// Watch begins to report on a container. It keeps copies of the files, and so
// the mounts, until Forget.
func (d *Drops) Watch(t Tree) error {
	d.Forget(t.ID)
	w := &tree{}
	err := func() error {
		if t.Overlay != nil {
			dev, mnt, err := identify(t.Overlay)
			if err != nil {
				return fmt.Errorf("read root: %w", err)
			}
			w.dev, w.overlay = dev, true
			w.mounts = append(w.mounts, mnt)
			if err := w.keep(unix.FAN_MARK_FILESYSTEM, t.Overlay); err != nil {
				return err
			}
		}
		for dest, f := range t.Mounts {
			dev, mnt, err := identify(f)
			if err != nil {
				return fmt.Errorf("read mount %s: %w", dest, err)
			}
			w.mounts = append(w.mounts, mnt)
			if w.overlay && dev == w.dev {
				continue // the file system's mark covers it
			}
			if err := w.keep(unix.FAN_MARK_MOUNT, f); err != nil {
				return err
			}
		}
		return nil
	}()
	if err != nil {
		w.close()
		return fmt.Errorf("watch writes of container %s: %w", t.ID, err)
	}
	d.mu.Lock()
	d.trees[t.ID] = w
	for _, m := range w.mounts {
		d.byMount[m] = t.ID
	}
	if w.overlay {
		d.byDev[w.dev] = t.ID
	}
	d.mu.Unlock()
	for _, m := range w.marks {
		if err := d.mark(unix.FAN_MARK_ADD, m); err != nil {
			name := m.file.Name()
			d.Forget(t.ID)
			return fmt.Errorf("watch writes of container %s: mark %s: %w", t.ID, name, err)
		}
	}
	return nil
}

func (w *tree) keep(flags uint, f *os.File) error {
	return withFD(f, func(fd int) error {
		dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			w.marks = append(w.marks, dropMark{flags, os.NewFile(uintptr(dup), f.Name())})
		}
		return err
	})
}

func (w *tree) close() {
	for _, m := range w.marks {
		m.file.Close()
	}
}

func (d *Drops) mark(op uint, m dropMark) error {
	return withFD(m.file, func(fd int) error {
		return unix.FanotifyMark(d.fd, op|m.flags, unix.FAN_CLOSE_WRITE, unix.AT_FDCWD, proc(fd))
	})
}

// Forget ends reporting on a container.
func (d *Drops) Forget(id string) {
	d.mu.Lock()
	w := d.trees[id]
	delete(d.trees, id)
	for m, owner := range d.byMount {
		if owner == id {
			delete(d.byMount, m)
		}
	}
	for dev, owner := range d.byDev {
		if owner == id {
			delete(d.byDev, dev)
		}
	}
	d.mu.Unlock()
	if w == nil {
		return
	}
	for _, m := range w.marks {
		d.mark(unix.FAN_MARK_REMOVE, m)
	}
	w.close()
}

type dropped struct {
	Drop
	file *os.File
}

// Run reports until ctx ends. report is called from one goroutine; lost says
// how many writes (at least) nobody looked at because too many came at once.
func (d *Drops) Run(ctx context.Context, report func(Drop), lost func(n int)) error {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("run sensor for dropped programs: %w", err)
	}
	defer unix.Close(wake)
	stop := context.AfterFunc(ctx, func() { unix.Write(wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) })
	defer stop()

	// Hashing waits for disks; reading must not.
	queue := make(chan dropped, 64)
	var hashing sync.WaitGroup
	hashing.Go(func() {
		for x := range queue {
			x.SHA256 = hash(x.file)
			x.file.Close()
			report(x.Drop)
		}
	})
	defer hashing.Wait()
	defer close(queue)

	buf := make([]byte, 64*unix.FAN_EVENT_METADATA_LEN)
	for ctx.Err() == nil {
		n, err := unix.Read(d.fd, buf)
		switch {
		case err == nil:
		case errors.Is(err, unix.EAGAIN):
			poll := []unix.PollFd{{Fd: int32(d.fd), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
			if _, err := unix.Poll(poll, -1); err != nil && !errors.Is(err, unix.EINTR) {
				return fmt.Errorf("poll sensor for dropped programs: %w", err)
			}
			continue
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EBADF), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EFAULT):
			return fmt.Errorf("read sensor for dropped programs: %w", err)
		default: // no descriptor could be made for that event
			lost(1)
			continue
		}
		for b := buf[:n]; len(b) >= unix.FAN_EVENT_METADATA_LEN; {
			size := binary.NativeEndian.Uint32(b)
			if size < unix.FAN_EVENT_METADATA_LEN || uint64(size) > uint64(len(b)) {
				break
			}
			mask := binary.NativeEndian.Uint64(b[8:])
			fd := int32(binary.NativeEndian.Uint32(b[16:]))
			pid := int32(binary.NativeEndian.Uint32(b[20:]))
			b = b[size:]
			if mask&unix.FAN_Q_OVERFLOW != 0 {
				lost(1)
			}
			if fd < 0 {
				continue
			}
			x, ok := d.look(int(fd), int(pid))
			if !ok {
				unix.Close(int(fd))
				continue
			}
			x.file = os.NewFile(uintptr(fd), x.Path)
			select {
			case queue <- x:
			default:
				x.file.Close()
				lost(1)
			}
		}
	}
	return nil
}

// look costs one read for what is no program.
func (d *Drops) look(fd, pid int) (dropped, bool) {
	var head [4]byte
	n, err := unix.Pread(fd, head[:], 0)
	if err != nil || n < 2 {
		return dropped{}, false
	}
	if _, ok := kindOf(head[:n], 0o111); !ok {
		return dropped{}, false
	}
	var st unix.Stat_t
	if unix.Fstat(fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return dropped{}, false
	}
	kind, ok := kindOf(head[:n], st.Mode)
	if !ok {
		return dropped{}, false
	}
	_, mnt, err := identifyFD(fd)
	if err != nil {
		return dropped{}, false
	}
	d.mu.RLock()
	id, ok := d.byMount[mnt]
	if !ok {
		id, ok = d.byDev[st.Dev]
	}
	if !ok {
		var root unix.Stat_t
		if unix.Stat(fmt.Sprintf("/proc/%d/root", pid), &root) == nil {
			id, ok = d.byDev[root.Dev]
		}
	}
	d.mu.RUnlock()
	if !ok {
		return dropped{}, false // forgotten meanwhile
	}
	x := dropped{Drop: Drop{Container: id, PID: pid, Kind: kind, Size: st.Size}}
	x.Path, _ = os.Readlink(proc(fd))
	x.Comm, x.Exe = describe(pid)
	return x, true
}

func hash(f *os.File) string {
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, HashLimit)); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}

func describe(pid int) (comm, exe string) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	exe, _ = os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	return strings.TrimSuffix(string(b), "\n"), exe
}

func identify(f *os.File) (dev, mnt uint64, err error) {
	if f == nil {
		return 0, 0, errors.New("no descriptor")
	}
	err = withFD(f, func(fd int) error {
		dev, mnt, err = identifyFD(fd)
		return err
	})
	return dev, mnt, err
}

func identifyFD(fd int) (dev, mnt uint64, err error) {
	var sx unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO|unix.STATX_MNT_ID, &sx); err != nil {
		return 0, 0, err
	}
	if sx.Mask&unix.STATX_MNT_ID == 0 {
		return 0, 0, errors.New("kernel tells no mount IDs (Linux 5.8 and later)")
	}
	return unix.Mkdev(sx.Dev_major, sx.Dev_minor), sx.Mnt_id, nil
}

// withFD runs f with the number of an open file, without changing its blocking mode.
func withFD(file *os.File, f func(int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var inner error
	if err := raw.Control(func(fd uintptr) { inner = f(int(fd)) }); err != nil {
		return err
	}
	return inner
}

func proc(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
