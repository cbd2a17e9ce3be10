package planner

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/confine"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// The test binary is the analyser too, and one that was taken over.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 {
		switch what := os.Args[1]; {
		case what == "__analyse":
			exit(AnalyseChild())
		case strings.HasPrefix(what, "__taken-over="):
			if err := confineChild(); err != nil {
				exit(err)
			}
			exit(misdeeds[strings.TrimPrefix(what, "__taken-over=")]())
		case strings.HasPrefix(what, "__openat2="):
			if err := confineChild(); err != nil {
				exit(err)
			}
			exit(throughOpenat2(strings.TrimPrefix(what, "__openat2=")))
		case what == "__nested":
			exit(nested())
		case strings.HasPrefix(what, "__"):
			if err := confineChild(); err != nil {
				exit(err)
			}
			excess(what)
			exit(nil)
		}
	}
	os.Exit(m.Run())
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// done is said where a misdeed was not stopped.
var errDone = errors.New("it was done")

// misdeeds are what code that took the analyser over would try.
var misdeeds = map[string]func() error{
	"execve": func() error { return unix.Exec("/bin/true", []string{"true"}, nil) },
	"socket": func() error {
		_, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
		return errors.Join(errDone, err)
	},
	"ptrace": func() error { return errors.Join(errDone, unix.PtraceAttach(1)) },
	"kill":   func() error { return errors.Join(errDone, unix.Kill(1, 0)) },
	"openat": func() error {
		_, err := unix.Open("/tmp/planted", unix.O_WRONLY|unix.O_CREAT, 0o644)
		return errors.Join(errDone, err)
	},
	"mmap": func() error {
		_, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
		return errors.Join(errDone, err)
	},
	"mprotect": func() error {
		b, err := unix.Mmap(-1, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		return errors.Join(errDone, err, unix.Mprotect(b, unix.PROT_READ|unix.PROT_EXEC))
	},
	"memfd_create": func() error { _, err := unix.MemfdCreate("x", 0); return errors.Join(errDone, err) },
	"prctl": func() error {
		return errors.Join(errDone, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0))
	},
	"tgkill": func() error { return errors.Join(errDone, unix.Tgkill(1, 1, 0)) },
	"write":  func() error { _, err := unix.Write(cacheFd, []byte("x")); return errors.Join(errDone, err) },
	"clone": func() error { // a process, as fork(2) makes it
		_, _, errno := unix.RawSyscall6(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0, 0, 0, 0)
		return errors.Join(errDone, errno)
	},
	// On another thread than the one that installed the filter.
	"unlinkat": func() error {
		done := make(chan error)
		for range 4 {
			go func() {
				runtime.LockOSThread()
				done <- errors.Join(errDone, unix.Unlinkat(unix.AT_FDCWD, "/tmp/nothing-of-that-name", 0))
			}()
		}
		return <-done
	},
}

func pool(t *testing.T, arg, cacheDir string) *analysers {
	t.Helper()
	need.Root(t)
	need.Seccomp(t)
	need.Netns(t)
	p := &analysers{self: "/proc/self/exe", arg: arg, cache: openCache(cacheDir), limit: analyserTime, slots: make(chan *analyser, 1)}
	p.slots <- nil
	t.Cleanup(func() { (<-p.slots).end() })
	return p
}

func TestWhatATakenOverAnalyserTriesEndsItAndIsNamed(t *testing.T) {
	for name := range misdeeds {
		t.Run(name, func(t *testing.T) {
			p := pool(t, "__taken-over="+name, "")
			dir, err := rootfs.Open(t.TempDir())
			if err != nil {
				t.Fatal(err)
			}
			defer dir.Close()
			_, err = p.analyse(context.Background(), dir, &declared.Declared{})
			var e *AnalysisError
			if !errors.As(err, &e) || !strings.Contains(e.Text, "system call "+name+",") || e.Remedy() == "" {
				t.Fatalf("%v", err)
			}
		})
	}
}

// openat2's flags are behind a pointer, so that the filter cannot judge them.
func TestAnalyserChangesNoFileThroughOpenat2(t *testing.T) {
	need.Landlock(t, 3)
	dir, err := os.MkdirTemp("/tmp", "declarun-analyser-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	target := filepath.Join(dir, "there")
	if err := os.WriteFile(target, []byte("as it was"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, mode := range map[string]os.FileMode{dir: 0o777, target: 0o666} {
		if err := os.Chmod(name, mode); err != nil {
			t.Fatal(err)
		}
	}
	p := pool(t, "__openat2="+dir, "")
	_, err = p.analyse(context.Background(), openRoot(t, dir), &declared.Declared{})
	var e *AnalysisError
	if !errors.As(err, &e) || !strings.Contains(e.Text, "exit status 1") {
		t.Fatalf("%v", err)
	}
	if _, err := os.Stat(filepath.Join(dir, "new")); err == nil {
		t.Error("it made a file")
	}
	if b, err := os.ReadFile(target); err != nil || string(b) != "as it was" {
		t.Errorf("it changed a file: %q, %v", b, err)
	}
}

// Where somebody else's listener is around the process, the kernel gives it no
// other: then it is the kernel that ends it.
func TestAnalyserWithoutListenerIsEndedByTheKernel(t *testing.T) {
	p := pool(t, "__nested", "")
	_, err := p.analyse(context.Background(), openRoot(t, t.TempDir()), &declared.Declared{})
	var e *AnalysisError
	if !errors.As(err, &e) || !strings.Contains(e.Text, "was ended by the kernel") || e.Remedy() == "" {
		t.Fatalf("%v", err)
	}
}

func nested() error {
	polled, err := poller()
	if err != nil {
		return err
	}
	around := childRules(os.Getpid(), polled)
	for _, name := range []string{"seccomp", "prctl", "prlimit64", "socket"} {
		around = append(around, confine.Rule{Name: name})
	}
	if _, err := confine.Install(around); err != nil {
		return err
	}
	if err := confineChild(); err != nil {
		return err
	}
	_, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	return errors.Join(errDone, err)
}

func throughOpenat2(dir string) error {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		return err
	}
	_, err1 := unix.Openat2(d, "new", &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_CREAT, Mode: 0o666})
	_, err2 := unix.Openat2(d, "there", &unix.OpenHow{Flags: unix.O_WRONLY | unix.O_TRUNC})
	fd, err3 := unix.Openat2(d, "there", &unix.OpenHow{Flags: unix.O_RDONLY})
	if err3 == nil {
		unix.Close(fd)
	}
	return errors.Join(errDone, err1, err2, err3)
}

func openRoot(t *testing.T, dir string) *rootfs.Root {
	t.Helper()
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

// What the filter allows is what the analyser needs, and none of it reaches
// beyond the process other than to read.
func TestAnalyserFilterHasNothingDangerous(t *testing.T) {
	allowed := confine.Names(childRules(1000, 7))
	for _, name := range strings.Fields("execve execveat fork vfork clone3 ptrace process_vm_readv process_vm_writev kill tkill rt_sigqueueinfo " +
		"pidfd_open pidfd_send_signal pidfd_getfd socket socketpair connect bind accept accept4 sendto sendmmsg listen open creat pwrite64 pwritev writev " +
		"rename renameat renameat2 unlink unlinkat mkdir mkdirat rmdir link linkat symlink symlinkat mknod mknodat truncate ftruncate fallocate " +
		"chmod fchmod fchmodat chown fchown fchownat lchown utimensat setxattr fsetxattr lsetxattr mount umount2 pivot_root chroot unshare setns " +
		"bpf perf_event_open keyctl add_key io_uring_setup io_uring_enter userfaultfd memfd_create ioctl seccomp splice sendfile vmsplice tee copy_file_range " +
		"setuid setgid setreuid setresuid setresgid capset init_module finit_module kexec_load open_by_handle_at name_to_handle_at shmget shmat remap_file_pages pkey_mprotect mremap dup2 dup3") {
		if slices.Contains(allowed, name) {
			t.Errorf("%s is allowed", name)
		}
	}
	for _, arch := range []string{"amd64", "arm64"} {
		if _, err := confine.Program(arch, childRules(1000, 7), unix.SECCOMP_RET_KILL_PROCESS); err != nil {
			t.Errorf("%s: %v", arch, err)
		}
	}
}

// A rule for a call that the program does not have in it is a hole for others.
func TestAnalyserFilterHasNothingUnused(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	res, err := seccompgen.Analyse(context.Background(), openRoot(t, "/"), seccompgen.Request{
		Programs: []seccompgen.Program{{Path: self, Phase: record.Serving}}}, seccompgen.NoCache{})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range confine.Names(childRules(1000, 7)) {
		if !slices.ContainsFunc(res.Calls, func(c plan.Syscall) bool { return c.Name == name }) {
			t.Errorf("%s is allowed, and nothing in the program makes it", name)
		}
	}
}

func TestAnalyserReadsAndKeepsThroughItsParent(t *testing.T) {
	cacheDir := filepath.Join(t.TempDir(), "results")
	p := pool(t, "__analyse", cacheDir)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	d := &declared.Declared{Process: declared.Process{Args: []string{self}, Cwd: "/"}}
	var readings []Reading
	for range 2 {
		r, err := p.analyse(context.Background(), openRoot(t, "/"), d)
		if err != nil {
			t.Fatal(err)
		}
		readings = append(readings, r)
	}
	if len(readings[0].Calls.Calls) < 20 || !reflect.DeepEqual(readings[0], readings[1]) {
		t.Errorf("%d calls, then %d", len(readings[0].Calls.Calls), len(readings[1].Calls.Calls))
	}
	entries, err := os.ReadDir(cacheDir)
	if err != nil || len(entries) < 2 {
		t.Errorf("%d entries: %v", len(entries), err)
	}
}

// The filter is in force while the programs of the machine are read, for the
// first time and from what was kept: a call that reading needs and the filter
// does not have ends the analyser.
func TestAnalyserFilterHasAllThatReadingNeeds(t *testing.T) {
	p := pool(t, "__analyse", filepath.Join(t.TempDir(), "results"))
	read := 0
	for _, name := range strings.Fields("sh bash ls perl python3 git ssh nginx redis-server memcached postgres apache2 named haproxy lighttpd node php busybox runc strace") {
		d := &declared.Declared{Process: declared.Process{Args: []string{name}, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/usr/lib/postgresql/15/bin"}}}
		for range 2 {
			r, err := p.analyse(context.Background(), openRoot(t, "/"), d)
			if err != nil && (strings.Contains(err.Error(), "the analyser was ended") || strings.Contains(err.Error(), "died")) {
				t.Errorf("%s: %v", name, err)
			}
			if r.Calls != nil && len(r.Calls.Calls) > 0 {
				read++
			}
		}
	}
	if read < 2 {
		t.Errorf("%d programs were read", read)
	}
}

func TestAnalyserThatDiedIsReplaced(t *testing.T) {
	p := pool(t, "__analyse", "")
	d := &declared.Declared{Process: declared.Process{Args: []string{"/none"}, Cwd: "/"}}
	for range 3 {
		if _, err := p.analyse(context.Background(), openRoot(t, t.TempDir()), d); err != nil {
			t.Fatal(err)
		}
		a := <-p.slots
		if a == nil {
			t.Fatal("it is not kept")
		}
		if err := a.cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		for a.alive() {
			time.Sleep(time.Millisecond)
		}
		p.slots <- a
	}
}

// Whatever is said on its standard error is bounded, and so is an answer.
func TestAnalyserFloods(t *testing.T) {
	for what, want := range map[string]string{"__flood-answer": "said too much", "__flood-puts": "said too much", "__flood-stderr": "exit status 3",
		"__memory": "1536 MiB of memory", "__sleep": "took longer than"} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			p := pool(t, what, "")
			if what == "__sleep" {
				p.limit = 100 * time.Millisecond
			}
			_, err := p.analyse(context.Background(), openRoot(t, t.TempDir()), &declared.Declared{})
			var e *AnalysisError
			if !errors.As(err, &e) || !strings.Contains(e.Text, want) || e.Remedy() == "" {
				t.Errorf("%v", err)
			}
		})
	}
}

// excess is what an analyser does that a file made grow beyond all bounds.
func excess(what string) {
	switch what {
	case "__flood-answer":
		_ = writeAll(appendFrame(nil, frameAnswer, maxAnswer+1))
	case "__flood-puts":
		c := &relay{}
		data := make([]byte, 64<<20)
		for range 1 << 20 {
			c.Put("x", data)
			if writeAll(nil) != nil {
				return
			}
		}
	case "__flood-stderr":
		line := bytes.Repeat([]byte("x"), 1<<16)
		for range 1 << 10 {
			_, _ = unix.Write(2, line)
		}
		os.Exit(3)
	case "__memory":
		var all [][]byte
		for range 64 {
			b := make([]byte, 64<<20)
			for i := 0; i < len(b); i += 4096 {
				b[i] = 1
			}
			all = append(all, b)
		}
		fmt.Println(len(all))
	case "__sleep":
		time.Sleep(time.Hour)
	}
}

// What a child says is as foreign as the image that may have taken it over.
func FuzzFrame(f *testing.F) {
	f.Add(append(appendFrame(nil, frameAnswer, 2), "{}"...))
	f.Add(append(appendFrame(nil, framePut, 8), 0, 0, 0, 1, 'k', 'a', 'b', 'c'))
	f.Add(append(appendFrame(nil, framePut, 4), 0xff, 0xff, 0xff, 0xff))
	f.Add(appendFrame(nil, frameAnswer, maxAnswer))
	f.Add(appendFrame(nil, 'x', 1))
	f.Fuzz(func(t *testing.T, data []byte) {
		kind, body, err := readFrame(bytes.NewReader(data))
		if err != nil {
			return
		}
		if len(body) > len(data) {
			t.Fatalf("%d bytes of %d", len(body), len(data))
		}
		switch kind {
		case framePut:
			if key, data, ok := splitPut(body); ok && len(key)+len(data)+4 != len(body) {
				t.Errorf("%q, %q of %q", key, data, body)
			}
		case frameAnswer:
			var r reply
			_ = json.Unmarshal(body, &r)
		default:
			if len(body) != 0 {
				t.Errorf("a frame of no kind has %d bytes", len(body))
			}
		}
	})
}
