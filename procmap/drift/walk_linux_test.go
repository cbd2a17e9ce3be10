package drift

import (
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

// overlay is a container's root on two layers, with the image as it was beside it.
type overlay struct {
	t             *testing.T
	merged, image string
	upper         string
	lower         []string
	container     Container
}

func newOverlay(t *testing.T, options string, fill func(bottom, top string)) *overlay {
	t.Helper()
	need.Root(t)
	dir := t.TempDir()
	o := &overlay{t: t, merged: dir + "/merged", image: dir + "/image", upper: dir + "/upper", lower: []string{dir + "/top", dir + "/bottom"}}
	for _, d := range append([]string{o.merged, o.image, o.upper, dir + "/work"}, o.lower...) {
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	fill(o.lower[1], o.lower[0])
	mount := func(at, options string) {
		if err := unix.Mount("overlay", at, "overlay", 0, options); err != nil {
			t.Fatalf("mount overlay %s: %v", options, err)
		}
		t.Cleanup(func() { unix.Unmount(at, unix.MNT_DETACH) })
	}
	lower := "lowerdir=" + strings.Join(o.lower, ":")
	mount(o.merged, lower+",upperdir="+o.upper+",workdir="+dir+"/work"+options)
	mount(o.image, lower)
	open := func(d string) *os.File {
		fd, err := unix.Open(d, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), d)
		t.Cleanup(func() { f.Close() })
		return f
	}
	o.container = Container{Upper: open(o.upper)}
	for _, l := range o.lower {
		o.container.Lower = append(o.container.Lower, open(l))
	}
	return o
}

func (o *overlay) write(name, content string, mode os.FileMode) {
	o.t.Helper()
	put(o.t, filepath.Join(o.merged, name), content, mode)
}

func put(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(name, mode); err != nil {
		t.Fatal(err)
	}
}

func (o *overlay) do(err error) {
	o.t.Helper()
	if err != nil {
		o.t.Fatal(err)
	}
}

func told(r record.Drift) (all []string) {
	for _, c := range r.Changes {
		line := fmt.Sprintf("%s %s %s", c.How, c.Type, c.Path)
		if c.Program != "" {
			line += " " + c.Program
		}
		if len(c.What) > 0 {
			line += " (" + strings.Join(c.What, ", ") + ")"
		}
		if c.Declared != "" {
			line += " in " + c.Declared
		}
		all = append(all, line)
	}
	return all
}

const elf = "\x7fELF and more"

func TestDriftOfALayer(t *testing.T) {
	o := newOverlay(t, "", func(bottom, top string) {
		for name, content := range map[string]string{"etc/passwd": "root", "etc/same": "same", "etc/touched": "x", "etc/owned": "x", "bin/tool": elf, "bin/gone": elf,
			"var/old/a": "a", "var/old/b": "b", "dir/one": "1", "becomes": "file"} {
			put(t, filepath.Join(bottom, name), content, 0o755)
		}
		put(t, filepath.Join(top, "etc/passwd"), "root, of the upper layer", 0o644)
		if err := unix.Mknod(filepath.Join(top, "bin/gone"), unix.S_IFCHR, 0); err != nil && !os.IsExist(err) {
			if err := os.MkdirAll(filepath.Join(top, "bin"), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := unix.Mknod(filepath.Join(top, "bin/gone"), unix.S_IFCHR, 0); err != nil {
				t.Fatal(err)
			}
		}
	})
	if r := Walk(context.Background(), o.container, Limits{}); len(r.Changes) != 0 || r.Incomplete != "" || !r.Layers {
		t.Fatalf("nothing was done: %+v", r)
	}
	o.write("tmp/x", elf, 0o644)
	o.write("tmp/run.sh", "#!/bin/sh\n", 0o755)
	o.write("tmp/data.sh", "#!/bin/sh\n", 0o644)
	o.write("tmp/root", elf, 0o644)
	o.do(unix.Chmod(o.merged+"/tmp/root", 0o4755))
	o.write("tmp/caps", "text", 0o755)
	// VFS_CAP_REVISION_2 with CAP_NET_RAW: capabilities(7).
	o.do(unix.Setxattr(o.merged+"/tmp/caps", "security.capability", []byte{1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, 0))
	o.write("etc/passwd", "me", 0o644)
	o.write("etc/same", "same", 0o755)                                // written, and what it was
	o.do(os.Chtimes(o.merged+"/etc/touched", time.Now(), time.Now())) // copied up
	o.do(os.Chown(o.merged+"/etc/owned", 7, 7))
	o.write("bin/gone", "back", 0o644) // the image does not show it
	o.do(os.Remove(o.merged + "/dir/one"))
	o.do(os.RemoveAll(o.merged + "/var/old"))
	o.do(os.Mkdir(o.merged+"/var/old", 0o755))
	o.do(os.Remove(o.merged + "/becomes"))
	o.do(os.Mkdir(o.merged+"/becomes", 0o755))
	o.do(unix.Mkfifo(o.merged+"/pipe", 0o600))
	o.do(os.Symlink("/etc/shadow", o.merged+"/link"))
	o.write("data/db/1", "rows", 0o600)
	o.container.Declared = []string{"/data"}
	r := Walk(context.Background(), o.container, Limits{})
	want := []string{
		"added file /tmp/caps", "added file /tmp/root elf",
		"added file /tmp/run.sh script", "added file /tmp/x elf",
		"changed directory /becomes (type)", "changed file /etc/owned (owner)", "changed file /etc/passwd", "changed directory /var/old (what the image had in it is hidden)",
		"removed file /dir/one",
		"added file /bin/gone", "added link /link", "added pipe /pipe", "added directory /tmp", "added file /tmp/data.sh",
		"added directory /data in /data", "added directory /data/db in /data", "added file /data/db/1 in /data",
	}
	if got := told(r); !slices.Equal(got, want) || r.Incomplete != "" {
		t.Errorf("got\n%s\nwant\n%s\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"), r.Incomplete)
	}
	if !r.Changes[0].Capabilities || r.Changes[1].Mode != 0o4755 || r.Changes[1].Size != int64(len(elf)) {
		t.Errorf("%+v", r.Changes[:2])
	}
	p := Programs(context.Background(), o.container, time.Now().Add(-time.Hour), Limits{})
	if got := told(p); !slices.Equal(got, want[:4]) {
		t.Errorf("programs: %q", got)
	}
	if p := Programs(context.Background(), o.container, time.Now().Add(time.Hour), Limits{}); len(p.Changes) != 0 {
		t.Errorf("programs of tomorrow: %q", told(p))
	}
}

// A directory that was renamed, and a file of which only the owner changed, keep
// what they had in the image's layers.
func TestDriftOfRedirectedDirectoriesAndMetadata(t *testing.T) {
	o := newOverlay(t, ",redirect_dir=on,metacopy=on", func(bottom, top string) {
		put(t, bottom+"/opt/app/bin/tool", elf, 0o755)
		put(t, bottom+"/opt/app/lib/a", "a", 0o644)
		put(t, bottom+"/big", elf, 0o755)
	})
	o.do(os.Rename(o.merged+"/opt/app", o.merged+"/opt/moved"))
	o.write("opt/moved/lib/a", "other", 0o644)
	o.do(os.Chown(o.merged+"/big", 7, 7))
	r := Walk(context.Background(), o.container, Limits{})
	want := []string{
		"changed file /big elf (owner, metadata only)",
		"changed file /opt/moved/lib/a", "removed directory /opt/app", "added directory /opt/moved (renamed)",
	}
	if got := told(r); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, c := range r.Changes {
		if c.Path == "/opt/moved" && c.From != "/opt/app" {
			t.Errorf("%+v", c)
		}
	}
}

// Two judges: what the layers say, and what a person sees who compares the image
// with the container, after many random deeds.
func TestDriftIsWhatComparingShows(t *testing.T) {
	for _, options := range []string{"", ",redirect_dir=on,metacopy=on"} {
		for seed := range uint64(8) {
			r := rand.New(rand.NewPCG(seed, 1))
			o := newOverlay(t, options, func(bottom, top string) {
				for i := range 40 {
					layer := []string{bottom, top}[r.IntN(2)]
					put(t, fmt.Sprintf("%s/d%d/e%d/f%d", layer, r.IntN(3), r.IntN(3), i%7), fmt.Sprint(r.IntN(3)), 0o644)
				}
			})
			for range 60 {
				name := func() string { return fmt.Sprintf("%s/d%d/e%d/f%d", o.merged, r.IntN(4), r.IntN(3), r.IntN(8)) }
				switch r.IntN(7) { // what does not apply fails, and that is as well
				case 0, 1:
					os.MkdirAll(filepath.Dir(name()), 0o755)
					os.WriteFile(name(), []byte(fmt.Sprint(r.IntN(3))), 0o644)
				case 2:
					os.Remove(name())
				case 3:
					os.Rename(name(), name())
				case 4:
					os.Chmod(name(), 0o600)
				case 5:
					os.RemoveAll(filepath.Dir(name()))
				case 6:
					os.Rename(filepath.Dir(name()), filepath.Dir(name()))
				}
			}
			want := compared(t, o.image, o.merged)
			var got []string
			report := Walk(context.Background(), o.container, Limits{})
			for _, c := range report.Changes {
				if c.Type == "file" && c.How != record.DriftRemoved {
					got = append(got, c.Path)
				}
			}
			// A directory that was renamed is told, and not what it brought along.
			for _, c := range report.Changes {
				if slices.Contains(c.What, "renamed") {
					want = slices.DeleteFunc(want, func(p string) bool { return strings.HasPrefix(p, c.Path+"/") && !slices.Contains(got, p) })
				}
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("options %q, seed %d: told %q, seen %q: %q", options, seed, got, want, told(report))
			}
		}
	}
}

// compared gives the files that are new or other in b.
func compared(t *testing.T, a, b string) (all []string) {
	err := filepath.WalkDir(b, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		rel := strings.TrimPrefix(p, b)
		x, errX := os.ReadFile(a + rel)
		y, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		sx, _ := os.Lstat(a + rel)
		sy, _ := os.Lstat(p)
		if errX != nil || string(x) != string(y) || sx.Mode() != sy.Mode() {
			all = append(all, rel)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// Whatever a container makes, the walk ends, within its bounds, and says so.
func TestDriftOfHostileLayers(t *testing.T) {
	o := newOverlay(t, "", func(string, string) {})
	for i := range 300 {
		put(t, fmt.Sprintf("%s/many/%03d", o.merged, i), "x", 0o644)
	}
	hostile := "/many/a\nb\x1b[31m\xff"
	put(t, o.merged+hostile, elf, 0o755)
	o.do(os.Symlink("/", o.merged+"/loop"))
	o.do(unix.Mkfifo(o.merged+"/many/pipe", 0o777))
	// Deeper than a path may be long, as mkdirat makes it.
	fd, err := unix.Open(o.merged, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	o.do(err)
	for range 400 {
		o.do(unix.Mkdirat(fd, "deep-deep-deep", 0o755))
		next, err := unix.Openat(fd, "deep-deep-deep", unix.O_RDONLY|unix.O_DIRECTORY, 0)
		o.do(err)
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	t.Cleanup(func() { exec.Command("rm", "-rf", o.merged+"/deep-deep-deep").Run() })

	r := Walk(context.Background(), o.container, Limits{Changes: 20})
	if !strings.Contains(r.Incomplete, "too deep") || len(r.Changes) != 20 || r.More < 300 || r.Changes[0].Path != hostile || r.Changes[0].Bytes == "" {
		t.Errorf("%d changes, %d more, %q, first %+v", len(r.Changes), r.More, r.Incomplete, r.Changes[0])
	}
	if r := Walk(context.Background(), o.container, Limits{Entries: 100}); r.Incomplete == "" || r.Entries > 101 {
		t.Errorf("%d entries: %q", r.Entries, r.Incomplete)
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if r := Walk(ended, o.container, Limits{}); r.Incomplete == "" {
		t.Error("a walk without time is whole")
	}
	if n := openDescriptors(t); n > 200 {
		t.Errorf("%d descriptors are open", n)
	}
}

func openDescriptors(t *testing.T) int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}

// Without layers, what changed later than the container was made is told.
func TestDriftOfADirectory(t *testing.T) {
	dir := t.TempDir()
	put(t, dir+"/bin/tool", elf, 0o755)
	time.Sleep(30 * time.Millisecond)
	made := time.Now()
	time.Sleep(30 * time.Millisecond)
	put(t, dir+"/tmp/new", elf, 0o755)
	put(t, dir+"/tmp/mountpoint", elf, 0o755)
	// Another file system is not the root's, whoever mounted it when.
	if err := os.Mkdir(dir+"/mnt", 0o755); err != nil {
		t.Fatal(err)
	}
	need.Root(t)
	if err := unix.Mount("tmpfs", dir+"/mnt", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(dir+"/mnt", unix.MNT_DETACH) })
	put(t, dir+"/mnt/elsewhere", elf, 0o755)
	root, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := Walk(context.Background(), Container{Root: root, Made: made, Mounts: []string{"/tmp/mountpoint"}}, Limits{})
	if got := told(r); !slices.Equal(got, []string{"changed later file /tmp/new elf"}) || r.Layers {
		t.Errorf("%q", got)
	}
	if r := Walk(context.Background(), Container{Root: root}, Limits{}); r.Incomplete == "" {
		t.Error("nobody knows when it was made, and the report is whole")
	}
}
