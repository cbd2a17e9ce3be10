package seccompgen_test

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// container is a root filesystem as an engine makes it of an image: an overlay
// of a layer of its own, what it puts over every image, and the image's layers.
type container struct{ dir, root string }

func do(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func newContainer(t *testing.T, layers ...string) container {
	t.Helper()
	c := container{dir: t.TempDir()}
	c.root = filepath.Join(c.dir, "merged")
	write(t, c.dir+"/init/etc/hosts", "")
	write(t, c.dir+"/init/etc/hostname", "")
	write(t, c.dir+"/init/.dockerenv", "")
	do(t, os.Symlink("/proc/mounts", c.dir+"/init/etc/mtab"), os.MkdirAll(c.dir+"/init/dev/shm", 0o755),
		os.Mkdir(c.dir+"/upper", 0o755), os.Mkdir(c.dir+"/work", 0o755), os.Mkdir(c.root, 0o755))
	c.mount(t, layers)
	return c
}

func (c container) mount(t *testing.T, layers []string) {
	t.Helper()
	all := append([]string{c.dir + "/init"}, layers...)
	do(t, unix.Mount("overlay", c.root, "overlay", 0, "lowerdir="+strings.Join(all, ":")+",upperdir="+c.dir+"/upper,workdir="+c.dir+"/work"))
	t.Cleanup(func() { _ = unix.Unmount(c.root, unix.MNT_DETACH) })
}

const (
	perlScript  = "usr/share/perl5/X.pm"
	otherScript = "opt/v1/Y.pm"
)

// aged waits until what was just written has an identity.
func aged() { time.Sleep(100 * time.Millisecond) }

// layersOf makes an image of two layers with a perl whose scripts make a call.
func layersOf(t *testing.T, gcc string) []string {
	t.Helper()
	lower, upper := image(t), t.TempDir()
	write(t, filepath.Join(lower, "usr/bin/perl"), "")
	build(t, gcc, lower, "usr/bin/perl", opener+perlBuiltin, "-O1", "-rdynamic")
	for _, d := range []string{"etc", "dev", "proc", "var/log", "var/lib/empty", "usr/share/perl5/Nothing", "lib64", "usr/local/lib", "opt/v2", "srv/empty"} {
		do(t, os.MkdirAll(filepath.Join(lower, d), 0o755))
	}
	write(t, filepath.Join(lower, "etc/app.json"), "{}")
	write(t, filepath.Join(lower, otherScript), "syscall(&SYS_getpid);")
	write(t, filepath.Join(lower, "opt/v2/Y.pm"), "syscall(&SYS_mount);")
	do(t, os.Symlink("v1", filepath.Join(lower, "opt/current")))
	write(t, filepath.Join(upper, perlScript), "syscall(&SYS_reboot, 1);")
	return []string{upper, lower}
}

func perlRequest() seccompgen.Request {
	return seccompgen.Request{Env: []string{"LD_LIBRARY_PATH=/opt/current"}, Programs: []seccompgen.Program{{Path: "/usr/bin/perl", Phase: record.Serving}}}
}

func openRoot(t *testing.T, dir string) *rootfs.Root {
	t.Helper()
	root, err := rootfs.Open(dir)
	do(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

// rewritten changes a file to what is as long and says it was changed when it was.
func rewritten(t *testing.T, file, text string) {
	t.Helper()
	st, err := os.Stat(file)
	do(t, err)
	if int64(len(text)) != st.Size() {
		t.Fatalf("%s: %d bytes, was %d", file, len(text), st.Size())
	}
	do(t, os.WriteFile(file, []byte(text), 0o755), os.Chtimes(file, st.ModTime(), st.ModTime()))
}

// changes are what may happen to a root filesystem between two starts, and
// whether what was found before still holds.
var changes = []struct {
	claim string
	do    func(t *testing.T, root string)
	kept  bool
}{
	{"nothing", func(*testing.T, string) {}, true},
	{"a file where no program is looked for", func(t *testing.T, root string) { write(t, root+"/var/log/x.pl", "syscall(&SYS_mount);") }, true},
	{"a file that is read by nobody is another", func(t *testing.T, root string) { write(t, root+"/etc/app.json", "{ }") }, true},
	{"a script says something else", func(t *testing.T, root string) { rewritten(t, root+"/"+perlScript, "syscall(&SYS_umount2,1);") }, false},
	{"a script is touched", func(t *testing.T, root string) { do(t, os.Chmod(root+"/"+perlScript, 0o700)) }, false},
	{"a script is gone", func(t *testing.T, root string) { do(t, os.Remove(root+"/"+perlScript)) }, false},
	{"a script comes", func(t *testing.T, root string) {
		write(t, root+"/etc/init.sh", "#!/usr/bin/perl\nsyscall(&SYS_mount);")
	}, false},
	{"a script comes in a directory that was empty", func(t *testing.T, root string) { write(t, root+"/srv/empty/x.pl", "syscall(&SYS_mount);") }, false},
	{"a script takes the place of a file of the engine's", func(t *testing.T, root string) {
		write(t, root+"/etc/hosts", "#!/usr/bin/perl\nsyscall(&SYS_mount);")
	}, false},
	{"a directory is another with files of the same names", func(t *testing.T, root string) {
		do(t, os.RemoveAll(root+"/usr/share/perl5"), os.MkdirAll(root+"/usr/share/perl5/Nothing", 0o755))
		write(t, root+"/"+perlScript, "syscall(&SYS_umount2,1);")
	}, false},
	{"a directory is another and empty as it was", func(t *testing.T, root string) {
		do(t, os.RemoveAll(root+"/srv/empty"), os.Mkdir(root+"/srv/empty", 0o755))
	}, true},
	{"a directory becomes a link", func(t *testing.T, root string) {
		do(t, os.Mkdir(root+"/opt/v3", 0o755))
		write(t, root+"/opt/v3/Y.pm", "syscall(&SYS_mount);")
		do(t, os.RemoveAll(root+"/opt/v1"), os.Symlink("v3", root+"/opt/v1"))
	}, false},
	{"a link that the loader follows leads elsewhere", func(t *testing.T, root string) {
		do(t, os.Remove(root+"/opt/current"), os.Symlink("v2", root+"/opt/current"))
	}, false},
	{"a link is made anew as it was", func(t *testing.T, root string) {
		do(t, os.Remove(root+"/opt/current"), os.Symlink("v1", root+"/opt/current"))
	}, true},
	{"a library comes where the loader looks first", func(t *testing.T, root string) {
		b, err := os.ReadFile(root + "/lib/x86_64-linux-gnu/libc.so.6")
		do(t, err)
		write(t, root+"/opt/v1/libc.so.6", string(b))
	}, false},
	{"a configuration of the loader comes", func(t *testing.T, root string) { write(t, root+"/etc/ld.so.conf", "/opt/v2\n") }, false},
	{"the program is another", func(t *testing.T, root string) {
		b, err := os.ReadFile(root + "/usr/bin/perl")
		do(t, err)
		write(t, root+"/usr/bin/perl", string(b)+"x")
	}, false},
	{"a library is another", func(t *testing.T, root string) {
		do(t, os.Chmod(root+"/lib/x86_64-linux-gnu/libc.so.6", 0o700))
	}, false},
	{"something is mounted over a directory", func(t *testing.T, root string) {
		do(t, unix.Mount("tmpfs", root+"/usr/share/perl5", "tmpfs", 0, ""))
		t.Cleanup(func() { _ = unix.Unmount(root+"/usr/share/perl5", unix.MNT_DETACH) })
		do(t, os.Mkdir(root+"/usr/share/perl5/Nothing", 0o755))
		write(t, root+"/"+perlScript, "syscall(&SYS_umount2,1);")
	}, false},
	{"a directory is mounted over another", func(t *testing.T, root string) {
		do(t, unix.Mount(root+"/opt/v2", root+"/opt/v1", "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(root+"/opt/v1", unix.MNT_DETACH) })
	}, false},
	{"a script is mounted over another", func(t *testing.T, root string) {
		do(t, unix.Mount(root+"/opt/v2/Y.pm", root+"/opt/v1/Y.pm", "", unix.MS_BIND, ""))
		t.Cleanup(func() { _ = unix.Unmount(root+"/opt/v1/Y.pm", unix.MNT_DETACH) })
	}, false},
}

// still tells whether the answer is taken from the cache, and sees to it that
// with the cache and without it it is the same.
func still(t *testing.T, dir string, cache seccompgen.Cache) bool {
	t.Helper()
	root := openRoot(t, dir)
	_, kept := seccompgen.Kept(root, perlRequest(), cache)
	with, err := seccompgen.Analyse(t.Context(), root, perlRequest(), cache)
	do(t, err)
	without, err := seccompgen.Analyse(t.Context(), root, perlRequest(), nil)
	do(t, err)
	if !reflect.DeepEqual(with.Calls, without.Calls) || !reflect.DeepEqual(with.Libraries, without.Libraries) || !reflect.DeepEqual(with.Unresolved, without.Unresolved) {
		t.Errorf("with the cache %v %v %v, without %v %v %v", names(with), with.Libraries, with.Unresolved, names(without), without.Libraries, without.Unresolved)
	}
	return kept
}

// primed is a cache that knows the image.
func primed(t *testing.T, dir string) seccompgen.Cache {
	t.Helper()
	cache, err := seccompgen.OpenDirCache(filepath.Join(t.TempDir(), "cache"))
	do(t, err)
	t.Cleanup(func() { cache.Close() })
	res, err := seccompgen.Analyse(t.Context(), openRoot(t, dir), perlRequest(), cache)
	do(t, err)
	if said := fmt.Sprint(names(res)); !strings.Contains(said, "getpid") {
		t.Fatalf("scripts are not read: %v", said)
	}
	return cache
}

// What was found in one container of an image holds in the next, whose upper
// layer and engine's files are new, exactly as long as it is the same.
func TestAnswerHoldsForTheNextContainer(t *testing.T) {
	need.Root(t)
	gcc := need.Program(t, "gcc")
	layers := layersOf(t, gcc)
	aged()
	for _, row := range changes {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			cache := primed(t, newContainer(t, layers...).root)
			c := newContainer(t, layers...)
			row.do(t, c.root)
			if kept := still(t, c.root, cache); kept != row.kept {
				t.Errorf("kept is %v, want %v", kept, row.kept)
			}
		})
	}
}

func TestAnswerHoldsForTheSameContainer(t *testing.T) {
	need.Root(t)
	layers := layersOf(t, need.Program(t, "gcc"))
	aged()
	cache := primed(t, newContainer(t, layers...).root)
	t.Run("it starts again", func(t *testing.T) {
		c := newContainer(t, layers...)
		write(t, c.root+"/var/lib/empty/x", "")
		do(t, os.Remove(c.root+"/var/lib/empty/x"), unix.Unmount(c.root, 0))
		c.mount(t, layers)
		if !still(t, c.root, cache) {
			t.Error("it is not known")
		}
	})
	t.Run("a layer in the same place holds something else", func(t *testing.T) { // pruned and pulled again
		st, err := os.Stat(layers[0] + "/" + perlScript)
		do(t, err)
		do(t, os.RemoveAll(layers[0]), os.Mkdir(layers[0], 0o755))
		write(t, layers[0]+"/"+perlScript, "syscall(&SYS_umount2,1);")
		do(t, os.Chtimes(layers[0]+"/"+perlScript, st.ModTime(), st.ModTime()))
		if still(t, newContainer(t, layers...).root, cache) {
			t.Error("it is taken for the one that was there before")
		}
	})
	t.Run("a file of a layer is changed where it lies", func(t *testing.T) {
		aged()
		cache := primed(t, newContainer(t, layers...).root)
		rewritten(t, layers[1]+"/"+otherScript, "syscall(&SYS_reboot);")
		if still(t, newContainer(t, layers...).root, cache) {
			t.Error("it goes unnoticed")
		}
	})
}

// A root filesystem that is a directory, as of a bundle.
func TestAnswerHoldsForADirectory(t *testing.T) {
	need.Root(t)
	gcc := need.Program(t, "gcc")
	for _, row := range changes {
		t.Run(row.claim, func(t *testing.T) {
			t.Parallel()
			layers := layersOf(t, gcc)
			dir := layers[1]
			write(t, dir+"/"+perlScript, "syscall(&SYS_reboot, 1);")
			write(t, dir+"/etc/hosts", "")
			aged()
			cache := primed(t, dir)
			row.do(t, dir)
			if kept := still(t, dir, cache); kept != row.kept {
				t.Errorf("kept is %v, want %v", kept, row.kept)
			}
		})
	}
}

// Where something covers a part of the tree, nothing is kept: without it there
// would be more.
func TestAnswerOfACoveredTreeIsNotKept(t *testing.T) {
	need.Root(t)
	layers := layersOf(t, need.Program(t, "gcc"))
	aged()
	c := newContainer(t, layers...)
	do(t, unix.Mount("tmpfs", c.root+"/opt/v2", "tmpfs", 0, ""))
	t.Cleanup(func() { _ = unix.Unmount(c.root+"/opt/v2", unix.MNT_DETACH) })
	cache := primed(t, c.root)
	if still(t, c.root, cache) {
		t.Error("it is")
	}
}
