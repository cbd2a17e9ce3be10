package sensor

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
)

// Mounts live in a mount namespace of the test's own.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 && os.Getenv("SENSOR_TEST_NAMESPACE") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "SENSOR_TEST_NAMESPACE=1")
		cmd.Stdout, cmd.Stderr, cmd.Stdin = os.Stdout, os.Stderr, os.Stdin
		cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(cmd.ProcessState.ExitCode())
	}
	os.Exit(m.Run())
}

func TestKindOf(t *testing.T) {
	for _, row := range []struct {
		head string
		mode uint32
		want Kind
	}{
		{"\x7fELF", 0o644, ELF}, {"\x7fEL", 0o755, ""}, {"#!/b", 0o755, Script}, {"#!", 0o100, Script},
		{"#!/b", 0o644, ""}, {"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00", 0o755, ""}, {"\x7fELF\x02\x02\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", 0o755, ""},
		{"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x03\x00", 0o755, ELF}, {"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00", 0o644, ELF}, {"\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01", 0o644, ELF}, {"", 0o755, ""}, {"text", 0o755, ""},
	} {
		if got, ok := kindOf([]byte(row.head), row.mode); got != row.want || ok != (row.want != "") {
			t.Errorf("%q %o: got %q", row.head, row.mode, got)
		}
	}
}

func mount(t testing.TB, source, target, typ string, flags uintptr, data string) {
	t.Helper()
	if err := unix.Mount(source, target, typ, flags, data); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
	t.Cleanup(func() { unix.Unmount(target, unix.MNT_DETACH) })
}

func openPath(t testing.TB, name string) *os.File {
	t.Helper()
	fd, err := unix.Open(name, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { f.Close() })
	return f
}

func write(t testing.TB, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

func start(t testing.TB, d *Drops) chan Drop {
	drops, _ := startBoth(t, d)
	return drops
}

func startBoth(t testing.TB, d *Drops) (chan Drop, chan Write) {
	ctx, cancel := context.WithCancel(context.Background())
	drops, writes := make(chan Drop, 1000), make(chan Write, 1000)
	done := make(chan error, 1)
	go func() {
		done <- d.Run(ctx, Reports{
			Drop: func(x Drop) { drops <- x }, Write: func(x Write) { writes <- x },
			Lost: func(n int) { t.Errorf("lost %d", n) },
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		d.Close()
	})
	return drops, writes
}

func next(t testing.TB, got chan Drop) Drop {
	t.Helper()
	select {
	case x := <-got:
		return x
	case <-time.After(20 * time.Second):
		t.Fatal("nothing was reported")
		return Drop{}
	}
}

func TestDrops(t *testing.T) {
	need.Fanotify(t)
	d, err := OpenDrops()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	for _, dir := range []string{"lower", "upper", "work", "root", "volume", "tmp"} {
		os.Mkdir(filepath.Join(base, dir), 0o755)
	}
	mount(t, "overlay", base+"/root", "overlay", 0, "lowerdir="+base+"/lower,upperdir="+base+"/upper,workdir="+base+"/work")
	mount(t, "tmpfs", base+"/tmp", "tmpfs", 0, "")
	mount(t, base+"/volume", base+"/volume", "", unix.MS_BIND, "")
	tree := Tree{ID: "c", Overlay: openPath(t, base+"/root"), Mounts: map[string]*os.File{
		"/tmp": openPath(t, base+"/tmp"), "/volume": openPath(t, base+"/volume"),
	}}
	if err := d.Watch(tree); err != nil {
		t.Fatal(err)
	}
	got := start(t, d)

	for _, dir := range []string{"root", "tmp", "volume"} {
		name := filepath.Join(base, dir, "payload")
		text := "\x7fELF and more in " + dir
		write(t, filepath.Join(base, dir, "text"), "no program", 0o755)
		write(t, filepath.Join(base, dir, "script.txt"), "#!/bin/sh\n", 0o644)
		write(t, filepath.Join(base, dir, "empty"), "", 0o755)
		write(t, name, text, 0o644)
		sum := sha256.Sum256([]byte(text))
		want := Drop{Container: "c", Path: name, PID: os.Getpid(), Kind: ELF, Size: int64(len(text)), SHA256: hex.EncodeToString(sum[:])}
		x := next(t, got)
		if x.Comm == "" || x.Exe == "" {
			t.Errorf("no process in %+v", x)
		}
		x.Comm, x.Exe = "", ""
		if x != want {
			t.Errorf("in %s: got %+v, want %+v", dir, x, want)
		}
	}
	write(t, base+"/tmp/script", "#!/bin/sh\n", 0o755)
	if x := next(t, got); x.Kind != Script {
		t.Errorf("an executable script: got %+v", x)
	}
	write(t, base+"/outside", "\x7fELF", 0o755) // the host's own business
	d.Forget("c")
	write(t, base+"/tmp/later", "\x7fELF", 0o755)
	if err := d.Watch(Tree{ID: "d", Mounts: map[string]*os.File{"/tmp": openPath(t, base+"/tmp")}}); err != nil {
		t.Fatal(err)
	}
	write(t, base+"/tmp/again", "\x7fELF", 0o755)
	if x := next(t, got); x.Container != "d" || filepath.Base(x.Path) != "again" {
		t.Errorf("what was forgotten, or is outside, is not reported: got %+v", x)
	}
}

func TestDeclared(t *testing.T) {
	for _, row := range []struct {
		name string
		want bool
	}{
		{"/tmp", true}, {"/tmp/x/y", true}, {"/tmpx", false}, {"/var/lib/app/data", true}, {"/var/lib/app", false}, {"/", false}, {"", false},
	} {
		if got := declared([]string{"/tmp", "/var/lib/app/data"}, row.name); got != row.want {
			t.Errorf("%q: got %v", row.name, got)
		}
	}
	if !declared([]string{"/"}, "/etc/x") || declared(nil, "/etc/x") {
		t.Error("the root holds everything, nothing holds nothing")
	}
}

// What a read-only root would have refused is told, and nothing else.
func TestWritesOutsideTheDeclaredPaths(t *testing.T) {
	need.Fanotify(t)
	for _, overlay := range []bool{true, false} {
		t.Run(map[bool]string{true: "overlay", false: "bare directory"}[overlay], func(t *testing.T) {
			d, err := OpenDrops()
			if err != nil {
				t.Fatal(err)
			}
			base := t.TempDir()
			for _, dir := range []string{"lower", "upper", "work", "root", "volume", "other"} {
				os.Mkdir(filepath.Join(base, dir), 0o755)
			}
			lower := base + "/lower"
			if !overlay {
				lower = base + "/root"
			}
			for _, dir := range []string{"etc", "data", "volume"} {
				os.Mkdir(filepath.Join(lower, dir), 0o755)
			}
			write(t, lower+"/etc/old", "of the image", 0o644)
			root := base + "/root"
			tree := Tree{ID: "c", Writes: true, Declared: []string{"/data/", "volume"}, Mounts: map[string]*os.File{}}
			if overlay {
				mount(t, "overlay", root, "overlay", 0, "lowerdir="+lower+",upperdir="+base+"/upper,workdir="+base+"/work")
				tree.Overlay = openPath(t, root)
			} else {
				mount(t, root, root, "", unix.MS_BIND, "")
				tree.Mounts["/"] = openPath(t, root)
			}
			mount(t, base+"/volume", root+"/volume", "", unix.MS_BIND, "")
			mount(t, root, base+"/other", "", unix.MS_BIND, "") // as an engine has one
			tree.Mounts["/volume"] = openPath(t, root+"/volume")
			if err := d.Watch(tree); err != nil {
				t.Fatal(err)
			}
			drops, writes := startBoth(t, d)
			got := func() Write {
				t.Helper()
				select {
				case x := <-writes:
					if x.Comm == "" || x.Exe == "" || x.PID != os.Getpid() || x.Container != "c" {
						t.Errorf("incomplete: %+v", x)
					}
					return x
				case <-time.After(20 * time.Second):
					t.Fatal("nothing was reported")
					return Write{}
				}
			}

			write(t, root+"/data/declared", "text", 0o644)
			write(t, root+"/volume/declared", "text", 0o644)
			write(t, base+"/outside", "the host's own business", 0o644)
			if _, err := os.ReadFile(root + "/etc/old"); err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(root+"/etc/old", os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			f.Close() // a read-only root would have refused the open already
			if x := got(); x.Path != "/etc/old" || !x.Own || x.Size != 12 {
				t.Errorf("got %+v", x)
			}
			for range 3 {
				write(t, root+"/datax", "", 0o644)
			}
			if x := got(); x.Path != "/datax" || x.Size != 0 {
				t.Errorf("an empty file: got %+v", x)
			}
			if f, err = os.Create(root + "/etc/gone"); err != nil {
				t.Fatal(err)
			}
			os.Remove(root + "/etc/gone")
			f.Close()
			if x := got(); x.Path != "/etc/gone" {
				t.Errorf("repeated writes are told once, removed files are told: got %+v", x)
			}
			write(t, root+"/etc/payload", "\x7fELF", 0o755)
			if x := got(); x.Path != "/etc/payload" {
				t.Errorf("got %+v", x)
			}
			if x := next(t, drops); filepath.Base(x.Path) != "payload" {
				t.Errorf("a program is also a drop: got %+v", x)
			}
			write(t, base+"/other/etc/elsewhere", "", 0o644)
			if overlay {
				if x := got(); x.Own || filepath.Base(x.Path) != "elsewhere" {
					t.Errorf("through another mount: got %+v", x)
				}
			}
			d.Forget("c")
			write(t, root+"/etc/later", "", 0o644)
			tree.ID = "d"
			if err := d.Watch(tree); err != nil {
				t.Fatal(err)
			}
			write(t, root+"/etc/again", "", 0o644)
			select {
			case x := <-writes:
				if x.Container != "d" || x.Path != "/etc/again" {
					t.Errorf("what was forgotten is not told: got %+v", x)
				}
			case <-time.After(20 * time.Second):
				t.Fatal("nothing was reported")
			}
			d.Forget("d")
			if d.writing.Load() != 0 {
				t.Error("nobody asks for writes, and the sensor still looks at them")
			}
		})
	}
	d, err := OpenDrops()
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.Watch(Tree{ID: "c", Writes: true}); err == nil {
		t.Error("without a root there is nothing to watch writes of")
	}
}

// More paths than are remembered, and more than fit the queue: told or counted.
func TestManyWritesAreToldOrCounted(t *testing.T) {
	w := &tree{id: "c", told: map[told]struct{}{}}
	dir := t.TempDir()
	writes := make(chan Write, 2)
	whole := 0
	for i := range 4 {
		f, err := os.Create(fmt.Sprintf("%s/%d", dir, i))
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		w.root = f
		for range 2 {
			if w.write(int(f.Fd()), os.Getpid(), true, unix.Stat_t{Nlink: 1}, writes) {
				whole++
			}
		}
	}
	if whole != 4 || len(w.told) != 2 {
		t.Errorf("%d of 8 were fine, %d are remembered; want 4 and 2: what was lost is told the next time", whole, len(w.told))
	}
}

func TestRefusalProgramLoadsForEveryHook(t *testing.T) {
	need.Root(t)
	ring, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.RingBuf, MaxEntries: 256 << 10})
	if err != nil {
		t.Skipf("needs ring buffers: %v", err)
	}
	defer ring.Close()
	lost, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer lost.Close()
	for _, spec := range []ebpf.ProgramSpec{
		{Type: ebpf.Kprobe, Instructions: refusalProgram(ring.FD(), lost.FD(), regReturn)},
		{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceRawTp, AttachTo: "sys_exit", Instructions: refusalProgram(ring.FD(), lost.FD(), 8)},
		{Type: ebpf.Tracing, AttachType: ebpf.AttachTraceFExit, AttachTo: "mnt_want_write", Instructions: refusalProgram(ring.FD(), lost.FD(), 8)},
	} {
		spec.License = "GPL"
		p, err := ebpf.NewProgram(&spec)
		var bad *ebpf.VerifierError
		if errors.As(err, &bad) {
			t.Errorf("%s %s: the verifier says %+v", spec.Type, spec.AttachTo, bad)
		}
		if err != nil {
			t.Logf("%s %s: %v", spec.Type, spec.AttachTo, err)
			continue
		}
		p.Close()
	}
}

func TestOpenRefusalsSaysWhatToDo(t *testing.T) {
	r, err := OpenRefusals()
	if err == nil {
		t.Logf("this kernel has %s", r.Hook())
		r.Close()
		return
	}
	var u *UnsupportedError
	if !errors.As(err, &u) || u.Remedy() == "" || !strings.Contains(err.Error(), "kretprobe") {
		t.Errorf("got %v", err)
	}
	t.Log(err)
}

// refusals opens with the hook, or says that this kernel has none of the kind.
func refusals(t testing.TB, hook Hook) *Refusals {
	t.Helper()
	need.Root(t)
	r, err := OpenRefusals(hook)
	var u *UnsupportedError
	if errors.As(err, &u) {
		t.Skipf("kernel without %s: %v", hook, err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRefusals(t *testing.T) {
	for _, hook := range []Hook{FunctionExit, ReturnProbe, SyscallExit} {
		t.Run(string(hook), func(t *testing.T) {
			r := refusals(t, hook)
			dir := t.TempDir()
			write(t, dir+"/there", "", 0o644)
			os.Mkdir(dir+"/dir", 0o755)
			mount(t, dir, dir, "", unix.MS_BIND, "")
			if err := unix.Mount("", dir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
				t.Fatal(err)
			}

			ctx, cancel := context.WithCancel(context.Background())
			var got []Refusal
			done := make(chan error, 1)
			end := make(chan struct{})
			go func() {
				done <- r.Run(ctx, func(pid int) (string, bool) { return "c", pid == os.Getpid() }, func(x Refusal) {
					if x.Path == dir+"/end" {
						close(end)
						return
					}
					got = append(got, x)
				})
			}()
			defer r.Close()
			defer cancel()

			at, err := unix.Open(dir, unix.O_PATH, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer unix.Close(at)
			var wants []string
			refuse := func(name, p string, err error) {
				if err != unix.EROFS {
					t.Fatalf("%s: %v", name, err)
				}
				wants = append(wants, name+" "+dir+p)
			}
			fd, err := unix.Open(dir+"/there", unix.O_RDONLY|unix.O_CREAT, 0o600)
			if err != nil {
				t.Fatal(err)
			}
			unix.Close(fd) // read although O_CREAT: nothing was refused
			if err := unix.Mkdir(dir+"/dir", 0o755); err != unix.EEXIST {
				t.Fatal(err)
			}
			if err := unix.Access(dir, unix.W_OK); err != unix.EROFS {
				t.Fatal(err) // a question
			}
			_, err = unix.Open(dir+"/new", unix.O_WRONLY|unix.O_CREAT, 0o600)
			refuse("openat", "/new", err)
			_, err = unix.Open(dir+"/there", unix.O_RDWR, 0)
			refuse("openat", "/there", err)
			_, err = unix.Openat(at, "relative", unix.O_WRONLY|unix.O_CREAT, 0o600)
			refuse("openat", "/relative", err)
			refuse("mkdirat", "/m", unix.Mkdirat(at, "m", 0o755))
			refuse("unlinkat", "/there", unix.Unlinkat(at, "there", 0))
			refuse("symlinkat", "/s", unix.Symlinkat("target", at, "s"))
			refuse("linkat", "/l", unix.Linkat(at, "there", at, "l", 0))
			refuse("fchmodat", "/there", unix.Fchmodat(at, "there", 0o777, 0))
			unix.Unlink(dir + "/end")
			select {
			case <-end:
			case <-time.After(20 * time.Second):
				t.Fatal("the last one was not reported")
			}
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, x := range got {
				if x.Container != "c" || x.Comm == "" || x.TID == 0 || x.Exe == "" {
					t.Errorf("incomplete: %+v", x)
				}
				line := x.Syscall + " " + x.Path
				if len(lines) == 0 || lines[len(lines)-1] != line { // one call may ask twice
					lines = append(lines, line)
				}
			}
			if a, b := strings.Join(lines, "\n"), strings.Join(wants, "\n"); a != b {
				t.Errorf("got\n%s\nwant\n%s", a, b)
			}
			if r.Lost() != 0 {
				t.Errorf("lost %d", r.Lost())
			}
		})
	}
}

func TestDoubtfulCallsAreReportedOnlyWhenNothingWasThere(t *testing.T) {
	dir := t.TempDir()
	e := refusalEvent{pid: os.Getpid(), nr: unix.SYS_MKDIRAT, paths: [2]string{"", dir}}
	if _, ok := e.refusal(false); ok {
		t.Error("mkdir of what exists was taken for a refused write")
	}
	e.paths[1] = dir + "/new"
	if x, ok := e.refusal(false); !ok || x.Path != dir+"/new" {
		t.Errorf("mkdir of something new: got %+v %v", x, ok)
	}
	e.nr, e.args[2] = unix.SYS_OPENAT, unix.O_CREAT
	e.paths[1] = dir
	if _, ok := e.refusal(false); ok {
		t.Error("open for reading of what exists was taken for a refused write")
	}
	e.args[2] |= unix.O_WRONLY
	if _, ok := e.refusal(false); !ok {
		t.Error("open for writing was not reported")
	}
	e.pid, e.args[2] = 1<<30, unix.O_CREAT
	if _, ok := e.refusal(false); ok {
		t.Error("nobody can tell, so nothing is claimed")
	}
}

func FuzzRefusal(f *testing.F) {
	b := make([]byte, eventSize)
	binary.NativeEndian.PutUint64(b[offNumber:], unix.SYS_OPENAT)
	copy(b[offPath+pathSize:], "relative")
	f.Add(b)
	f.Add(bytes.Repeat([]byte{0xff}, eventSize))
	f.Add(b[:10])
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := parseRefusal(b)
		if err != nil {
			return
		}
		e.pid = 1 << 30 // of nobody
		e.refusal(false)
		e.refusal(true)
	})
}

// What opening for write and closing costs.
func BenchmarkWrites(b *testing.B) {
	for _, how := range []string{"alone", "watched", "declared writes", "undeclared writes"} {
		b.Run(how, func(b *testing.B) {
			need.Fanotify(b)
			dir := b.TempDir()
			mount(b, "tmpfs", dir, "tmpfs", 0, "")
			if how != "alone" {
				d, err := OpenDrops()
				if err != nil {
					b.Fatal(err)
				}
				tree := Tree{ID: "c", Mounts: map[string]*os.File{"/": openPath(b, dir)}, Writes: how != "watched"}
				if how == "declared writes" {
					tree.Declared = []string{"/"}
				}
				if err := d.Watch(tree); err != nil {
					b.Fatal(err)
				}
				ctx, cancel := context.WithCancel(context.Background())
				done := make(chan error)
				go func() { done <- d.Run(ctx, Reports{func(Drop) {}, func(Write) {}, func(int) {}}) }()
				defer func() { cancel(); <-done; d.Close() }()
			}
			i := 0
			for b.Loop() {
				i++
				fd, err := unix.Open(fmt.Sprintf("%s/%d", dir, i%1000), unix.O_WRONLY|unix.O_CREAT, 0o600)
				if err != nil {
					b.Fatal(err)
				}
				unix.Write(fd, []byte("data"))
				unix.Close(fd)
			}
		})
	}
}

// What any system call costs while refusals are looked for at its exit.
func BenchmarkSyscalls(b *testing.B) {
	for _, hook := range []Hook{"", FunctionExit, ReturnProbe, SyscallExit} {
		b.Run("hook="+string(hook), func(b *testing.B) {
			if hook != "" {
				r := refusals(b, hook)
				defer r.Close()
			}
			for b.Loop() {
				unix.RawSyscall(unix.SYS_GETPPID, 0, 0, 0)
			}
		})
	}
}
