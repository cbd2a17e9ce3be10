package runtime

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

func init() {
	// The parent-death signal that engines set belongs to the main thread; an
	// execve from another one would lose it (prctl(2), PR_SET_PDEATHSIG).
	goruntime.LockOSThread()
}

// Main is the runtime. It returns an exit code where it does not become another
// program.
func Main(argv []string) int {
	switch {
	case len(argv) == 4 && argv[1] == GuardWord && argv[2] == "--token":
		if err := guard(os.Stdin, argv[3]); err != nil {
			report(os.Stderr, Invocation{}, err)
			return 1
		}
		return 0
	case len(argv) == 4 && argv[1] == startWord:
		pid, err := start(argv[2], argv[3])
		if err != nil {
			fmt.Println(err)
			return 1
		}
		fmt.Println(pid)
		return 0
	}
	if len(argv) == 2 && argv[1] == MemfdWord {
		if err := forbidMemfdExec(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		return 0
	}
	inv, err := Parse(argv[1:])
	if err == nil && isForPeople(inv.Word) {
		var program string
		if program, err = declarund(); err == nil {
			err = syscall.Exec(program, argv, os.Environ())
		}
	}
	if err == nil {
		var code int
		if code, err = act(inv, argv); err == nil {
			return code
		}
	}
	report(os.Stderr, inv, err)
	return 1
}

// MemfdWord makes this program forbid the execution of memory files in the pid
// namespace that it was born into. The supervisor starts it there: this program
// is the one that starts quickly.
const MemfdWord = "__memfd"

func forbidMemfdExec() error {
	if err := os.WriteFile("/proc/sys/vm/memfd_noexec", []byte("2"), 0); err != nil {
		return fmt.Errorf("set vm.memfd_noexec: %w", err)
	}
	return nil
}

// act does what declarun does about an invocation and hands it over.
func act(inv Invocation, argv []string) (int, error) {
	config, err := loadSettings(configPath)
	if err != nil {
		return 0, err
	}
	runc, err := config.findRunc()
	if err != nil {
		return 0, err
	}
	undo := func() {}
	switch inv.Verb {
	case Create, Run, Restore:
		if undo, err = prepare(inv, config); err != nil {
			err = fmt.Errorf("%s %s: %w", inv.Verb, inv.ID, err)
			if config.onFailure != string(record.Audit) {
				return 0, err
			}
			unguarded(config, inv, err)
			undo = func() {}
		}
	case Exec:
		if err := announce(inv, config); err != nil {
			err = fmt.Errorf("exec %s: %w", inv.ID, err)
			if config.onFailure != string(record.Audit) {
				return 0, err
			}
			unguarded(config, inv, err)
		}
	case Delete:
		forget(inv, config)
	case "":
		switch {
		case inv.Version && !inv.Help:
			return version(runc, argv)
		case inv.Help || len(argv) == 1:
			return usage(runc, argv)
		}
	}
	err = syscall.Exec(runc, append([]string{"runc"}, argv[1:]...), os.Environ())
	undo()
	return 0, fmt.Errorf("start %s: %w", runc, err)
}

// prepare has the supervisor plan the container and puts its answer into the
// bundle. undo is for when runc is not started after all.
func prepare(inv Invocation, config settings) (undo func(), err error) {
	ctx, cancel := context.WithTimeout(context.Background(), prepareTimeout)
	defer cancel()
	bundle, err := filepath.Abs(inv.Bundle)
	if err != nil {
		return nil, err
	}
	root, err := stateRoot(inv)
	if err != nil {
		return nil, err
	}
	claimCtx, cancelClaim := context.WithTimeout(ctx, connectTimeout)
	defer cancelClaim()
	c, err := claimBundle(claimCtx, bundle, inv.ID)
	if err != nil {
		return nil, err
	}
	done := false
	defer func() {
		if !done {
			c.release()
		}
	}()
	original, err := c.readConfig()
	if err != nil {
		return nil, err
	}
	var s spec
	if err := json.Unmarshal(original, &s); err != nil {
		return nil, fmt.Errorf("parse %s: %w", configName, err)
	}
	rootfs, err := openDir(rootPath(bundle, s.Root.Path))
	if err != nil {
		return nil, fmt.Errorf("open root file system %q: %w", s.Root.Path, err)
	}
	defer rootfs.Close()
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	conn, err := dial(ctx, config, true)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	answer, err := conn.Call(wire.Request{Operation: wire.Prepare, Prepare: &wire.PrepareRequest{
		Key: wire.Key{Root: root, ID: inv.ID}, Verb: string(inv.Verb), Bundle: bundle,
		Config: original, ParentArgs: parentArgs(), Executable: self,
	}}, []*os.File{rootfs})
	if err := callError(answer, err); err != nil {
		return nil, err
	}
	if answer.Prepare == nil {
		return nil, errors.New("supervisor's answer has no decision in it")
	}
	if len(answer.Prepare.Config) == 0 {
		return func() {}, nil // released: the file is as it was
	}
	if err := c.edit(answer.Prepare.Config); err != nil {
		return nil, fmt.Errorf("edit %s: %w", filepath.Join(bundle, configName), err)
	}
	done = true
	return c.release, nil
}

func openDir(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// stateRoot is runc's --root as runc takes it.
func stateRoot(inv Invocation) (string, error) {
	if inv.Root != "" {
		return filepath.Abs(inv.Root)
	}
	// runc rootless_linux.go, shouldHonorXDGRuntimeDir.
	if dir := os.Getenv("XDG_RUNTIME_DIR"); dir != "" && (os.Geteuid() != 0 || inUserNamespace() && os.Getenv("USER") != "root") {
		return filepath.Join(dir, "runc"), nil
	}
	return "/run/runc", nil
}

// inUserNamespace: the initial one maps everything.
func inUserNamespace() bool {
	m, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(m)), " ") != "0 0 4294967295"
}

// supervised says that a container was started by declarun: runc's own state
// names the guard hook. It asks no supervisor, so that exec into any other
// container needs none.
func supervised(root, id string) (bool, error) {
	if id == "" || id != filepath.Base(id) || strings.HasPrefix(id, "..") {
		return false, nil // runc has no such container
	}
	state, err := os.ReadFile(filepath.Join(root, id, "state.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return bytes.Contains(state, []byte(`"`+GuardWord+`"`)), err
}

// announce tells the supervisor about an exec, so that it knows whose process
// runc is about to start.
func announce(inv Invocation, config settings) error {
	root, err := stateRoot(inv)
	if err != nil {
		return err
	}
	if ours, err := supervised(root, inv.ID); !ours {
		return err
	}
	request := &wire.ExecRequest{Key: wire.Key{Root: root, ID: inv.ID}, Args: inv.Args}
	if inv.Process != "" {
		request.Args = nil
		request.Process, err = readProcess(inv.Process)
		if err != nil {
			return fmt.Errorf("read --process: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), execTimeout)
	defer cancel()
	conn, err := dial(ctx, config, true)
	if err != nil {
		return err
	}
	defer conn.Close()
	return callError(conn.Call(wire.Request{Operation: wire.Exec, Exec: request}, nil))
}

// readProcess reads the file of exec --process. What can be read only once (a
// pipe) is left to runc: the supervisor then knows of an exec but not of what.
func readProcess(path string) (json.RawMessage, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, err
	}
	content, err := readRegular(f, maxConfig)
	if err != nil {
		return nil, err
	}
	var process json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(content)).Decode(&process); err != nil {
		return nil, nil // runc will say what is wrong with it
	}
	return process, nil
}

// forget tells the supervisor that runc is asked to delete a container. It is
// a hint: the container may be running, and runc may refuse. Nothing depends
// on it, so it starts no supervisor and fails nothing.
func forget(inv Invocation, config settings) {
	root, err := stateRoot(inv)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), forgetTimeout)
	defer cancel()
	conn, err := dial(ctx, config, false)
	if err != nil {
		return
	}
	defer conn.Close()
	_, _ = conn.Call(wire.Request{Operation: wire.Forget, Forget: &wire.Key{Root: root, ID: inv.ID}}, nil)
}

// unguarded records that a site's on-failure = "audit" let a container go
// without protection. It must not fail the start, and says nothing on stderr:
// that is the container's.
func unguarded(config settings, inv Invocation, cause error) {
	line, err := json.Marshal(record.Event{
		Time: time.Now(), ID: rand.Text(), Container: inv.ID, Dimension: record.Supervision,
		Action: string(inv.Verb), Object: cmp.Or(inv.Bundle, inv.ID), Verdict: record.Observed, Mode: record.Audit,
		Mechanism: "runtime", Origins: []record.Origin{{Source: record.FromSite, At: configPath, Text: `on-failure = "audit"`}},
		Reason: "not guarded: " + cause.Error(), Remedy: remedyOf(cause), Count: 1,
	})
	if err != nil {
		return
	}
	_ = os.MkdirAll(filepath.Dir(config.logFile), 0o750)
	f, err := os.OpenFile(config.logFile, os.O_WRONLY|os.O_CREATE|os.O_APPEND|unix.O_NONBLOCK|unix.O_NOCTTY, 0o640)
	if err != nil {
		return
	}
	defer f.Close()
	_, _ = f.Write(append(line, '\n'))
}

// version is runc's, with a line about declarun that no engine looks at.
func version(runc string, argv []string) (int, error) {
	out, code, err := outputOf(runc, argv)
	if err != nil || code != 0 {
		os.Stdout.Write(out)
		return code, err
	}
	_, err = os.Stdout.Write(append(bytes.TrimRight(out, "\n"), "\ndeclarun: "+Version+"\n"...))
	return 0, err
}

// usage is declarun's commands and then runc's.
func usage(runc string, argv []string) (int, error) {
	out, code, err := outputOf(runc, argv)
	if err != nil {
		return 0, err
	}
	_, err = io.WriteString(os.Stdout, usageText(filepath.Base(argv[0]), string(out)))
	return code, err
}

func usageText(name, runcs string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "NAME:\n   %s - runc, held to what an image declares (declarun %s)\n\n", name, Version)
	fmt.Fprintf(&b, "USAGE:\n   %s [global options] command [command options] [arguments...]\n\n", name)
	fmt.Fprintf(&b, "COMMANDS OF DECLARUN:\n")
	for _, c := range People {
		fmt.Fprintf(&b, "   %-10s  %s\n", c.Name, c.Usage)
	}
	fmt.Fprintf(&b, "\nCOMMANDS OF RUNC (create, run, restore, exec and delete are supervised, the others runc's alone):\n")
	if _, commands, ok := strings.Cut(runcs, "\nCOMMANDS:\n"); ok {
		runcs = commands
	}
	return b.String() + runcs
}

// outputOf runs runc and returns what it writes to stdout.
func outputOf(runc string, argv []string) ([]byte, int, error) {
	cmd := exec.Command(runc)
	cmd.Args = append([]string{"runc"}, argv[1:]...)
	cmd.Stdin, cmd.Stderr = os.Stdin, os.Stderr
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out, max(exit.ExitCode(), 1), nil
	}
	if err != nil {
		return nil, 0, fmt.Errorf("start %s: %w", runc, err)
	}
	return out, 0, nil
}
