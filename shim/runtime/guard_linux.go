package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/wire"
)

// hookState is the state that runc writes to a hook's stdin (runtime-spec,
// runtime.md, "State").
type hookState struct {
	ID     string `json:"id"`
	PID    int    `json:"pid"`
	Bundle string `json:"bundle"`
}

// guard is the createRuntime hook: it hands the supervisor what it needs of a
// container that has its namespaces and mounts but has not run anything, and
// fails if the supervisor cannot guard it; runc then destroys the container.
func guard(stdin io.Reader, token string) error {
	var state hookState
	raw, err := io.ReadAll(io.LimitReader(stdin, 1<<20))
	if err != nil {
		return fmt.Errorf("read state: %w", err)
	}
	if err := json.Unmarshal(raw, &state); err != nil {
		return fmt.Errorf("parse state: %w", err)
	}
	if state.PID <= 0 || !filepath.IsAbs(state.Bundle) || token == "" {
		return fmt.Errorf("parse state: pid %d, bundle %q", state.PID, state.Bundle)
	}
	if err := sendGuard(state, token); err != nil {
		_ = putBack(state.Bundle, token) // the next create would, too
		return fmt.Errorf("guard %s: %w", state.ID, err)
	}
	if err := putBack(state.Bundle, token); err != nil {
		return fmt.Errorf("guard %s: put %s back: %w", state.ID, configName, err)
	}
	return nil
}

// guarded asks whether this very container is guarded already.
func guarded(state hookState) bool {
	c, err := loadSettings(configPath)
	if err != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), guardTimeout)
	defer cancel()
	conn, err := dialPatiently(ctx, c)
	if err != nil {
		return false
	}
	defer conn.Close()
	answer, err := conn.Call(wire.Request{Operation: wire.Status, Status: &wire.StatusRequest{Container: state.ID}}, nil)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(answer.Status, func(s wire.Container) bool { return s.ID == state.ID && s.PID == state.PID })
}

func sendGuard(state hookState, token string) error {
	f, err := os.Open(filepath.Join(state.Bundle, configName))
	if err != nil {
		return err
	}
	config, err := readRegular(f, wire.MaxMessage)
	f.Close()
	if err != nil {
		return fmt.Errorf("read %s: %w", configName, err)
	}
	if tokenOf(config) != token {
		// runc calls createRuntime hooks twice for a container without a mount
		// namespace of its own (1.1.5, measured).
		if guarded(state) {
			return nil
		}
		return advise("start containers of one bundle one after the other", "%s was changed while the container was made", configName)
	}
	var s spec
	if err := json.Unmarshal(config, &s); err != nil {
		return fmt.Errorf("parse %s: %w", configName, err)
	}
	names, files, err := guardFiles(state, s)
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	if err != nil {
		return err
	}
	c, err := loadSettings(configPath)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), guardTimeout)
	defer cancel()
	conn, err := dialPatiently(ctx, c)
	if err != nil {
		return err
	}
	defer conn.Close()
	return callError(conn.Call(wire.Request{Operation: wire.Guard, Guard: &wire.GuardRequest{
		Token: token, PID: state.PID, ID: state.ID, Files: names,
	}}, files))
}

// dialPatiently waits for a supervisor that is just being restarted: it was
// there a moment ago.
func dialPatiently(ctx context.Context, c settings) (*wire.Conn, error) {
	deadline := time.Now().Add(connectTimeout)
	for {
		conn, err := dialOnce(ctx, c.socket, deadline)
		if err == nil || !absent(err) || time.Now().After(deadline) {
			return conn, wrapDial(c, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// guardFiles opens the container's namespaces, its root and its writable mounts.
// On error the caller closes what was opened.
func guardFiles(state hookState, s spec) (names []string, files []*os.File, err error) {
	proc := "/proc/" + strconv.Itoa(state.PID)
	add := func(name string, fd int) {
		names = append(names, name)
		files = append(files, os.NewFile(uintptr(fd), name))
	}
	for _, ns := range []string{"net", "mnt", "pid"} {
		fd, err := unix.Open(proc+"/ns/"+ns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return names, files, fmt.Errorf("open %s namespace of process %d: %w", ns, state.PID, err)
		}
		add(ns+"ns", fd)
	}
	host, err := unix.Open(proc+"/root", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return names, files, fmt.Errorf("open root of process %d: %w", state.PID, err)
	}
	defer unix.Close(host)
	// Before pivot_root the process sees the host's tree in its own mount
	// namespace, with the container's mounts below the root file system.
	root, err := openIn(host, rootPath(state.Bundle, s.Root.Path))
	if err != nil {
		return names, files, fmt.Errorf("open root file system %s: %w", s.Root.Path, err)
	}
	add("rootfs", root)
	for _, destination := range writableMounts(s) {
		fd, err := openIn(root, destination)
		if err != nil {
			return names, files, fmt.Errorf("open mount %s: %w", destination, err)
		}
		add("mount:"+destination, fd)
	}
	return names, files, nil
}

// openIn opens path below the directory as a chroot there would: links in it
// lead nowhere else. openat2 is there since Linux 5.6.
func openIn(dir int, path string) (int, error) {
	fd, err := unix.Openat2(dir, strings.TrimPrefix(path, "/"), &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
	if errors.Is(err, unix.ENOENT) && strings.Trim(path, "/") == "" {
		return unix.Openat(dir, ".", unix.O_PATH|unix.O_CLOEXEC, 0)
	}
	return fd, err
}

// rootPath is root.path as runc takes it: relative to the bundle.
func rootPath(bundle, path string) string {
	if filepath.IsAbs(path) {
		return filepath.Clean(path)
	}
	return filepath.Join(bundle, path)
}

// writableMounts lists the destinations of mounts that files can be written
// to, the last of each only.
func writableMounts(s spec) []string {
	var destinations []string
	for _, m := range s.Mounts {
		destination := filepath.Clean("/" + m.Destination)
		destinations = slices.DeleteFunc(destinations, func(d string) bool { return d == destination })
		switch m.Type {
		case "proc", "sysfs", "cgroup", "cgroup2", "mqueue", "devpts":
			continue
		}
		if destination == "/dev" || destination == "/" || readOnly(m.Options) {
			continue
		}
		destinations = append(destinations, destination)
	}
	return destinations
}

// readOnly: of "ro" and "rw" the last one counts.
func readOnly(options []string) bool {
	readOnly := false
	for _, o := range options {
		switch o {
		case "ro", "rro":
			readOnly = true
		case "rw", "rrw":
			readOnly = false
		}
	}
	return readOnly
}

// callError makes one error of the two ways in which a call can go wrong.
func callError(answer wire.Answer, err error) error {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return advise("declarun doctor; a supervisor that hangs is replaced by systemctl restart declarun, or by ending it: the next start starts another",
			"supervisor does not answer: %w", err)
	case err != nil:
		return fmt.Errorf("ask supervisor: %w", err)
	case answer.Error != "" && answer.Remedy != "":
		return advise(answer.Remedy, "%s", answer.Error)
	case answer.Error != "":
		return errors.New(answer.Error)
	}
	return nil
}
