package integration

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/breakin"
	"github.com/declarun/declarun/integration/inject"
	"github.com/declarun/declarun/shim/record"
)

// audited is where a server shows what mode audit does to a break-in.
type audited struct {
	options []string
	// writer matches the process that writes outside the declared paths; it must
	// be permitted to by the files' owners and modes.
	writer             string
	scratch, forbidden string
}

var auditedServers = map[string]audited{
	"postgres": {writer: "checkpointer", scratch: "/var/lib/postgresql/data/x", forbidden: "/etc/postgresql/x"},
	"nginx":    {writer: "nginx: master", scratch: "/var/lib/nginx/body/x", forbidden: "/usr/share/nginx/html/x"},
	"redis":    {writer: "redis-server", scratch: "/data/x", forbidden: "/etc/redis/x"},
	// In an empty image nothing belongs to the user nobody.
	"hello": {options: []string{"--user", "0"}, writer: "/server", forbidden: "/x"},
}

// Mode audit: nothing is stopped, what happens is what happens under runc, and
// the same events come with the verdict "observed".
func TestAuditStopsNothingAndObservesTheSame(t *testing.T) {
	l := open(t)
	for name, a := range auditedServers {
		s := servers[name]
		t.Run(name, func(t *testing.T) {
			options := append(append([]string{}, s.options...), a.options...)
			id := l.container(t, append(append([]string{"--runtime", "declarun", "--label", "io.declarun.mode=audit"}, options...), l.images[s.image])...)
			plain := l.container(t, append(append([]string{"--runtime", "runc"}, options...), l.images[s.image])...)
			l.ready(t, id, s)
			s.exercise(t, l, id, l.address(t, id))
			for _, e := range l.events(t, id) {
				if e.Verdict != record.Reported {
					t.Errorf("in use: %s %s %s %s (%s): %s; by %+v", e.Verdict, e.Dimension, e.Action, e.Object, e.Mechanism, e.Reason, e.Process)
				}
			}
			l.ready(t, plain, s)
			outside := l.outside(t)
			same := func(t *testing.T, do func(pid int) error, title string) error {
				t.Helper()
				audit, runc := do(l.victim(t, id, title)), do(l.victim(t, plain, title))
				if fmt.Sprint(audit) != fmt.Sprint(runc) {
					t.Errorf("in audit: %v; under runc: %v", audit, runc)
				}
				return audit
			}
			t.Run("an undeclared system call", func(t *testing.T) {
				before := time.Now()
				// The kernel's own answer: EPERM without CAP_SYS_CHROOT.
				if err := same(t, breakin.Chroot, s.process); err != nil && !errors.Is(err, unix.EPERM) {
					t.Error(err)
				}
				l.observed(t, id, before, record.Syscalls, "chroot", "chroot")
			})
			t.Run("an undeclared system call that the kernel grants", func(t *testing.T) {
				before := time.Now()
				if err := same(t, interval, s.process); err != nil {
					t.Errorf("stopped: %v", err)
				}
				l.observed(t, id, before, record.Syscalls, "sched_rr_get_interval", "sched_rr_get_interval")
			})
			t.Run("an undeclared system call that the engine's profile may refuse", func(t *testing.T) {
				before := time.Now()
				_ = same(t, spy, s.process)
				l.observed(t, id, before, record.Syscalls, "process_vm_readv", "process_vm_readv")
			})
			t.Run("a listening port nobody exposed", func(t *testing.T) {
				before := time.Now()
				if err := same(t, func(pid int) error { return breakin.Listen(pid, 4444) }, s.process); err != nil {
					t.Errorf("stopped: %v", err)
				}
				e := l.observed(t, id, before, record.Network, "listen", "tcp/4444")
				if !strings.Contains(fmt.Sprint(e.Origins), "EXPOSE") {
					t.Errorf("origins %v do not name EXPOSE", e.Origins)
				}
			})
			t.Run("a connection to a host it has no business with", func(t *testing.T) {
				before := time.Now()
				if err := same(t, func(pid int) error { return breakin.Connect(pid, outside) }, s.process); err != nil {
					t.Errorf("stopped: %v", err)
				}
				l.observed(t, id, before, record.Network, "connect", outside.String())
			})
			t.Run("a write outside its data", func(t *testing.T) {
				before := time.Now()
				if err := same(t, func(pid int) error { return breakin.Write(pid, a.forbidden) }, a.writer); err != nil {
					t.Errorf("stopped: %v", err)
				}
				if e := l.observed(t, id, before, record.Storage, "write", a.forbidden); e.Process == nil || e.Process.PID == 0 || e.Mechanism != "fanotify" {
					t.Errorf("event says %+v", e)
				}
			})
			t.Run("a dropped executable", func(t *testing.T) {
				before := time.Now()
				path, title := a.scratch, s.process
				if path == "" {
					path, title = a.forbidden+"-program", a.writer
				}
				if err := same(t, func(pid int) error { return plant(pid, path) }, title); err != nil {
					t.Fatalf("stopped: %v", err)
				}
				for _, c := range []string{plain, id} {
					_, err := l.try("exec", c, path)
					var exit *exec.ExitError
					if !errors.As(err, &exit) || exit.ExitCode() != 42 {
						t.Errorf("it ran with %v, want exit status 42", err)
					}
				}
				l.observed(t, id, before, record.Processes, "execve", path)
			})
			if name == "postgres" {
				t.Run("a program through SQL", func(t *testing.T) {
					before := time.Now()
					out, err := l.try("exec", id, "psql", "-U", "postgres", "-d", "app", "-At",
						"-c", "CREATE TABLE t (line text)", "-c", "COPY t FROM PROGRAM 'id'", "-c", "SELECT line FROM t")
					if err != nil || !strings.Contains(out, "(postgres)") {
						t.Errorf("COPY FROM PROGRAM gave %q, %v", out, err)
					}
					for _, program := range []string{"/usr/bin/dash", "/usr/bin/id"} {
						if e := l.observed(t, id, before, record.Processes, "execve", program); e.Identity != record.Application {
							t.Errorf("%s was run by %q", program, e.Identity)
						}
					}
				})
			}
			l.ready(t, id, s)
			l.run(t, "stop", "-t", "20", id)
			l.quiet(t, id, "in mode audit")
			for _, e := range l.events(t, id) {
				if e.Dimension != record.Supervision && e.Mode != record.Audit {
					t.Errorf("event in mode %q: %+v", e.Mode, e)
				}
			}
		})
	}
}

// observed waits for an event on something that went on.
func (l *lab) observed(t *testing.T, id string, since time.Time, d record.Dimension, action, object string) (found record.Event) {
	t.Helper()
	if !await(5*time.Second, func() bool {
		for _, e := range l.events(t, id) {
			if !e.Time.Before(since) && e.Dimension == d && e.Action == action && strings.Contains(e.Object, object) {
				found = e
				return true
			}
		}
		return false
	}) {
		t.Errorf("no event %s %s %s", d, action, object)
		return found
	}
	if found.Verdict != record.Observed || found.Mode != record.Audit || found.Reason == "" || found.Remedy == "" || found.Mechanism == "" {
		t.Errorf("event says %+v; want observed, audit, and why", found)
	}
	return found
}

// inside runs an attack in the process.
func inside(pid int, attack func(*inject.Session) error) (err error) {
	s, err := inject.Attach(pid)
	if err != nil {
		return &breakin.NotTried{Cause: err}
	}
	defer func() {
		if cerr := s.Close(); err == nil && cerr != nil {
			err = &breakin.NotTried{Cause: cerr}
		}
	}()
	return attack(s)
}

// interval asks for a time slice, which no server needs to know and everybody may.
func interval(pid int) error {
	return inside(pid, func(s *inject.Session) error {
		slice, err := s.Bytes(make([]byte, 16)) // struct timespec
		if err != nil {
			return &breakin.NotTried{Cause: err}
		}
		_, err = s.Call(unix.SYS_SCHED_RR_GET_INTERVAL, 0, slice)
		return err
	})
}

// spy reads nothing from the process's own memory. Engines' profiles refuse the
// call where they think the kernel is too old for it.
func spy(pid int) error {
	return inside(pid, func(s *inject.Session) error {
		self, err := s.Call(unix.SYS_GETPID)
		if err == nil {
			_, err = s.Call(unix.SYS_PROCESS_VM_READV, uint64(self))
		}
		return err
	})
}

// plant makes the process write a small executable.
func plant(pid int, path string) error {
	return inside(pid, func(s *inject.Session) error {
		name, err := s.String(path)
		if err != nil {
			return &breakin.NotTried{Cause: err}
		}
		program := breakin.Program()
		body, err := s.Bytes(program)
		if err != nil {
			return &breakin.NotTried{Cause: err}
		}
		at := unix.AT_FDCWD
		fd, err := s.Call(unix.SYS_OPENAT, uint64(at), name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o755)
		if err != nil {
			return err
		}
		_, err = s.Call(unix.SYS_WRITE, uint64(fd), body, uint64(len(program)))
		_, _ = s.Call(unix.SYS_CLOSE, uint64(fd))
		return err
	})
}

// An image does not choose how it is watched.
func TestAuditCannotBeChosenByAnImage(t *testing.T) {
	l := open(t)
	made := l.run(t, "create", l.images["hello"])
	defer l.try("rm", "-f", "-v", made)
	for _, mode := range []string{"off", "audit"} {
		t.Run(mode, func(t *testing.T) {
			image := "declarun-test/loosened-" + mode
			l.run(t, "commit", "-c", "LABEL io.declarun.mode="+mode, "-c", "LABEL io.declarun.mode.network="+mode, made, image)
			defer l.try("rmi", "-f", image)
			id := l.container(t, "--runtime", "declarun", image)
			l.ready(t, id, servers["hello"])
			pid := l.victim(t, id, "/server")
			before := time.Now()
			for what, do := range map[string]func() error{
				"sched_rr_get_interval": func() error { return interval(pid) },
				"listen":                func() error { return breakin.Listen(pid, 4444) },
			} {
				if err := do(); !breakin.Refused(err) {
					t.Errorf("%s was not refused: %v", what, err)
				}
				l.denied(t, id, before, what)
			}
		})
	}
}

func (l *lab) denied(t *testing.T, id string, since time.Time, action string) {
	t.Helper()
	var seen []string
	if !await(5*time.Second, func() bool {
		seen = nil
		for _, e := range l.events(t, id) {
			if !e.Time.Before(since) && e.Action == action {
				seen = append(seen, fmt.Sprintf("%s in mode %s: %s", e.Verdict, e.Mode, e.Object))
				if e.Verdict == record.Denied && e.Mode == record.Enforce {
					return true
				}
			}
		}
		return false
	}) {
		t.Errorf("%s is not reported as denied: %v", action, seen)
	}
}

// One dimension in audit leaves the others enforced.
func TestAuditOfOneDimension(t *testing.T) {
	l := open(t)
	s := servers["redis"]
	ask := func(pid int, _ netip.AddrPort) error { return interval(pid) }
	listen := func(pid int, _ netip.AddrPort) error { return breakin.Listen(pid, 4444) }
	connect := func(pid int, outside netip.AddrPort) error { return breakin.Connect(pid, outside) }
	write := func(pid int, _ netip.AddrPort) error { return breakin.Write(pid, s.forbidden) }
	type attack struct {
		action string
		do     func(int, netip.AddrPort) error
	}
	attacks := map[record.Dimension][]attack{
		record.Syscalls: {{"sched_rr_get_interval", ask}},
		record.Network:  {{"listen", listen}, {"connect", connect}},
		record.Storage:  {{"write", write}},
	}
	for _, audited := range []record.Dimension{record.Syscalls, record.Network, record.Storage, record.Processes} {
		t.Run(string(audited), func(t *testing.T) {
			id := l.container(t, "--runtime", "declarun", "--label", "io.declarun.mode."+string(audited)+"=audit", l.images["redis"])
			l.ready(t, id, s)
			outside := l.outside(t)
			for d, list := range attacks {
				for _, a := range list {
					before := time.Now()
					err := a.do(l.victim(t, id, s.process), outside)
					switch {
					case d != audited:
						if !breakin.Refused(err) {
							t.Errorf("%s was not refused: %v", a.action, err)
						}
						l.denied(t, id, before, a.action)
					default:
						if err != nil {
							t.Errorf("%s was stopped: %v", a.action, err)
						}
						l.observed(t, id, before, d, a.action, "")
					}
				}
			}
			// The engine's own writing is not the container's.
			local := filepath.Join(t.TempDir(), "file")
			if err := os.WriteFile(local, []byte("copied"), 0o644); err != nil {
				t.Fatal(err)
			}
			l.run(t, "cp", local, id+":/etc/copied")
			// A program in the data directory, which is a mount, and one beside it,
			// where it can be written at all.
			paths := []string{s.scratch}
			if audited == record.Storage {
				paths = append(paths, s.forbidden+"-program") // the file of the attack is not executable
			}
			for _, path := range paths {
				before := time.Now()
				if err := plant(l.victim(t, id, s.process), path); err != nil {
					t.Fatalf("write %s: %v", path, err)
				}
				ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
				out, err := l.docker.CLI(ctx, "exec", id, "sh", "-c", path).CombinedOutput()
				cancel()
				var exit *exec.ExitError
				if !errors.As(err, &exit) {
					t.Fatalf("execute %s: %v", path, err)
				}
				if audited == record.Processes {
					if exit.ExitCode() != 42 {
						t.Errorf("execute %s: status %d, want 42: %s", path, exit.ExitCode(), out)
					}
					l.observed(t, id, before, record.Processes, "execve", path)
					continue
				}
				if exit.ExitCode() != 126 {
					t.Errorf("execute %s: status %d, want 126: %s", path, exit.ExitCode(), out)
				}
				l.denied(t, id, before, "execve")
			}
			for _, e := range l.events(t, id) {
				if e.Dimension == record.Storage && strings.Contains(e.Object, "copied") {
					t.Errorf("docker cp is told as %s %s %s by %+v", e.Verdict, e.Action, e.Object, e.Process)
				}
			}
		})
	}
}
