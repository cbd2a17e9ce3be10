// Package install makes declarun known to container engines and takes it back.
//
// What is to be written is decided by pure functions of what is there (Docker,
// Containerd and their opposites); files are touched last, replaced in one step,
// and a copy of what was there before the first edit is kept beside them.
//
// It guarantees: fields it does not know keep their order and their value to
// the last digit; an edit that cannot be read back as what was meant is not
// written; no engine is restarted.
//
// It does not guarantee the formatting of daemon.json beyond its indentation,
// and a containerd drop-in is a copy of config.toml's own CRI section at the time:
// containerd before 2.0 replaces that section by the drop-in's
// (containerd#5837, #7982; merged since 2.0, #9982), so a later change to
// config.toml needs another "install containerd".
package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Name is the runtime's name in engines' configurations.
const Name = "declarun"

// Report is what was done and what is left to do.
type Report struct {
	Done []string
	Next []string // commands
}

func (r *Report) done(format string, args ...any) {
	r.Done = append(r.Done, fmt.Sprintf(format, args...))
}
func (r *Report) next(command string) { r.Next = append(r.Next, command) }

// ErrUnchanged says that there was nothing to do.
var ErrUnchanged = errors.New("nothing to change")

// Advice is an error with a way out.
type Advice struct {
	Err  error
	Text string
}

func (a *Advice) Error() string  { return a.Err.Error() }
func (a *Advice) Unwrap() error  { return a.Err }
func (a *Advice) Remedy() string { return a.Text }

// read gives a file's content; nil if there is none.
func read(path string) ([]byte, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err == nil && content == nil {
		content = []byte{}
	}
	return content, err
}

func backupOf(path string) string { return path + ".declarun-backup" }

// backUp keeps the first content of a file; a later install must not replace
// it by our own edit.
func backUp(path string, content []byte) (made bool, err error) {
	if content == nil {
		return false, nil
	}
	f, err := os.OpenFile(backupOf(path), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if st, err := os.Stat(path); err == nil {
		if err := f.Chmod(st.Mode().Perm()); err != nil {
			f.Close()
			return false, err
		}
	}
	if _, err := f.Write(content); err != nil {
		f.Close()
		return false, err
	}
	return true, f.Close()
}

// replace writes a file in one step, through a symbolic link, with the mode of
// what it replaces.
func replace(path string, content []byte) error {
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	mode := fs.FileMode(0o644)
	if st, err := os.Stat(path); err == nil {
		mode = st.Mode().Perm()
	} else if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	if err := f.Sync(); err != nil { // a truncated daemon.json after a power cut stops dockerd
		return err
	}
	return os.Rename(f.Name(), path)
}
