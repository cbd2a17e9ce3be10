package rootfs

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"
)

func tree(t *testing.T) (string, *Root) {
	t.Helper()
	dir := t.TempDir()
	for name, content := range map[string]string{"bin/real": "real", "etc/passwd": "of the image"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"absolute": "/bin/real", "out": "../../../../../../../../etc/passwd", "loop": "loop",
		"sbin": "bin", "magic": "/proc/self/root/etc/passwd",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return dir, root
}

func TestPathsAreTakenAsTheContainerWillTakeThem(t *testing.T) {
	_, root := tree(t)
	for _, row := range []struct{ claim, name, path, content string }{
		{"a plain path", "/bin/real", "/bin/real", "real"},
		{"an absolute link stays inside", "/absolute", "/bin/real", "real"},
		{"a link upwards stays inside", "/out", "/etc/passwd", "of the image"},
		{"a linked directory is resolved", "/sbin/real", "/bin/real", "real"},
		{"dots above the root stay inside", "/../../bin/real", "/bin/real", "real"},
	} {
		f, err := root.Open(row.name)
		if err != nil {
			t.Errorf("%s: %v", row.claim, err)
			continue
		}
		data, err := root.ReadFile(row.name, 100)
		if f.Path != row.path || string(data) != row.content || err != nil {
			t.Errorf("%s: %s with %q, %v; want %s with %q", row.claim, f.Path, data, err, row.path, row.content)
		}
		f.Close()
	}
	for claim, name := range map[string]string{"a link to itself": "/loop", "a magic link": "/magic", "nothing there": "/nowhere"} {
		if f, err := root.Open(name); err == nil {
			t.Errorf("%s: opened %s", claim, f.Path)
		}
	}
	if _, err := root.Open("/fifo"); !errors.Is(err, ErrNotRegular) {
		t.Errorf("a FIFO: %v, want ErrNotRegular", err)
	}
	if _, err := root.ReadFile("/bin/real", 3); err == nil {
		t.Error("a file over the limit was read")
	}
}

func TestAMountedFileTakesThePlaceOfTheImages(t *testing.T) {
	_, root := tree(t)
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("mounted"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(other)
	if err != nil {
		t.Fatal(err)
	}
	root.Put("/bin/real", f)
	if data, err := root.ReadFile("/bin/real", 100); err != nil || string(data) != "mounted" {
		t.Errorf("read %q, %v", data, err)
	}
	if p, ok := root.LookPath("real", "/usr/bin:/bin", "/"); !ok || p != "/bin/real" {
		t.Errorf("found %q, %v", p, ok)
	}
}

func TestVolumeKeepsTimes(t *testing.T) {
	for _, row := range []struct {
		claim string
		v     Volume
		ino   uint64
		want  bool
	}{
		{"the kernel's own file system", Volume{kind: unix.EXT4_SUPER_MAGIC}, 1 << 60, true},
		{"a FUSE program says what it likes", Volume{kind: unix.FUSE_SUPER_MAGIC, plain: true}, 5, false},
		{"a server says what it likes", Volume{kind: unix.NFS_SUPER_MAGIC, plain: true}, 5, false},
		{"the maker of the image chose it", Volume{kind: unix.SQUASHFS_MAGIC, plain: true}, 5, false},
		{"an overlay's file on the file system of its uppermost layer", Volume{kind: unix.OVERLAYFS_SUPER_MAGIC, plain: true}, 5, true},
		{"an overlay's file on another device", Volume{kind: unix.OVERLAYFS_SUPER_MAGIC}, 5, false},
		{"an overlay's file on another file system by its number", Volume{kind: unix.OVERLAYFS_SUPER_MAGIC, plain: true}, 1 << 62, false},
		{"nothing is known", Volume{}, 5, false},
	} {
		if got := row.v.Keeps(&unix.Stat_t{Ino: row.ino}); got != row.want {
			t.Errorf("%s: %v", row.claim, got)
		}
	}
}

func TestWalkStaysInside(t *testing.T) {
	dir := t.TempDir()
	for _, d := range []string{"a/b/c", "skip/x", "d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"a/up": "..", "d/out": "/etc", "d/loop": "loop"} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	root, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var seen []string
	all := func(name string, st *unix.Stat_t, entries []fs.DirEntry) (into []string, err error) {
		if _, want, err := root.Stat(name); err != nil || want.Ino != st.Ino {
			t.Errorf("%s is not what it is: %v", name, err)
		}
		seen = append(seen, name)
		for _, e := range entries {
			if e.Name() != "skip" {
				into = append(into, e.Name()) // links and files too: they must not be followed
			}
		}
		return into, nil
	}
	if err := root.Walk(all); err != nil {
		t.Fatal(err)
	}
	slices.Sort(seen)
	if want := []string{"/", "/a", "/a/b", "/a/b/c", "/d"}; !slices.Equal(seen, want) {
		t.Errorf("walked %v, want %v", seen, want)
	}
	over := errors.New("over")
	if err := root.Walk(func(string, *unix.Stat_t, []fs.DirEntry) ([]string, error) { return nil, over }); !errors.Is(err, over) {
		t.Errorf("an end asked for: %v", err)
	}
}

func TestAtSaysWhatTheEntryItselfIs(t *testing.T) {
	dir := t.TempDir()
	for _, err := range []error{os.MkdirAll(dir+"/a/b", 0o755), os.WriteFile(dir+"/a/f", []byte("x"), 0o600), os.Symlink("/a/f", dir+"/l")} {
		if err != nil {
			t.Fatal(err)
		}
	}
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for name, want := range map[string]uint32{"/": unix.S_IFDIR, "/a": unix.S_IFDIR, "/a/b": unix.S_IFDIR, "/a/f": unix.S_IFREG, "/l": unix.S_IFLNK} {
		st, err := r.At(name)
		if err != nil || st.Mode&unix.S_IFMT != want {
			t.Errorf("%s: mode %o, %v", name, st.Mode, err)
		}
		if _, known := r.Volume(st.Dev); !known {
			t.Errorf("%s: its volume is not known", name)
		}
	}
	if _, err := r.At("/a/x"); !errors.Is(err, unix.ENOENT) {
		t.Error(err)
	}
	if _, err := r.At("/a/f/x"); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
	if to, err := r.LinkAt("/l"); to != "/a/f" || err != nil {
		t.Errorf("%q, %v", to, err)
	}
	if _, err := r.LinkAt("/a/f"); err == nil {
		t.Error("a file has a target")
	}
	f, err := os.Open(dir + "/a/f")
	if err != nil {
		t.Fatal(err)
	}
	r.Put("/opt/p", f)
	if !r.Given("/opt/p") || r.Given("/a/f") {
		t.Error("what was put there is not told apart")
	}
}
