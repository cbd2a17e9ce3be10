package runtime

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	configName = "config.json"
	// Beside config.json while a create is under way:
	originalName = "config.json.declarun-original" // the file itself, by another name
	ownerName    = "config.json.declarun-owner"    // whose create it is
	newName      = "config.json.declarun-new"      // half written

	maxConfig = 16 << 20

	// GuardWord is the first argument of declarun as its own createRuntime hook:
	// "declarun __guard --token T".
	GuardWord = "__guard"
)

// claim is a bundle that a create works on. runc reads the configuration from
// one place only, config.json in the bundle, so it is edited there; but the
// file is the user's, who may start the same bundle again, and a plan made from
// an edited configuration would be wrong. So:
//
//   - claimBundle writes an owner file: the process, which stays the same when it
//     becomes runc.
//   - edit gives the original a second name (a hard link: the same file, or the
//     same symbolic link) and renames the edited one over config.json.
//   - The createRuntime hook, which runs after runc has read config.json, calls
//     putBack: the original is renamed over it, the owner file removed. The runtime
//     specification has it that changes to config.json have no effect after create.
//
// If runc fails before its hooks, or anybody is killed on the way, the next
// create finds an owner that is no more and puts the original back, provided
// that config.json is still what was written. An owner that is alive is waited
// for: two creates of one bundle at a time would read each other's edits, and
// the one's hook would put the original back under the other's runc. (The hook
// checks the token besides.)
type claim struct {
	dir    string // absolute
	edited bool
	shared bool // no owner file could be written; edit will say why
	cause  error
	owner  owner
}

// owner is the content of the owner file.
type owner struct {
	PID    int    `json:"pid"`
	Start  uint64 `json:"start"` // field 22 of proc_pid_stat(5)
	ID     string `json:"id"`
	Edited string `json:"edited,omitempty"` // SHA-256 of the edited config.json
}

// alive says that the process of the owner is there and is the same.
func (o owner) alive() bool {
	start, err := startTime(o.PID)
	return err == nil && start == o.Start
}

func startTime(pid int) (uint64, error) {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0, err
	}
	// The second field is the name in parentheses, with anything in it.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 {
		return 0, fmt.Errorf("parse /proc/%d/stat: %d fields", pid, len(fields))
	}
	if fields[0] == "Z" {
		return 0, fs.ErrNotExist
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

// claimBundle waits for a create of the same bundle that is under way, clears up
// after one that is no more, and makes the bundle this process's.
func claimBundle(ctx context.Context, dir, id string) (*claim, error) {
	start, err := startTime(os.Getpid())
	if err != nil {
		return nil, fmt.Errorf("claim bundle: %w", err)
	}
	c := &claim{dir: dir, owner: owner{PID: os.Getpid(), Start: start, ID: id}}
	for {
		other, err := c.try()
		if err != nil {
			return nil, fmt.Errorf("claim bundle: %w", err)
		}
		if other == nil {
			return c, nil
		}
		select {
		case <-ctx.Done():
			return nil, advise(fmt.Sprintf("wait for process %d, or end it", other.PID),
				"claim bundle: container %s is being made from it by process %d", other.ID, other.PID)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (c *claim) path(name string) string { return filepath.Join(c.dir, name) }

// try takes the claim or says who has it.
func (c *claim) try() (*owner, error) {
	unlock, err := lockDir(c.dir)
	if err != nil {
		return nil, err
	}
	defer unlock()
	last, err := readOwner(c.path(ownerName))
	if err != nil {
		return nil, err
	}
	if last != nil && last.alive() && last.PID != c.owner.PID {
		return last, nil
	}
	if err := c.clearUp(last); err != nil {
		return nil, err
	}
	if err := c.writeOwner(); err != nil {
		// A bundle that cannot be written is none of our business until there
		// is something to write.
		c.shared, c.cause = true, err
	}
	return nil, nil
}

// clearUp undoes a create that never came to its hook.
func (c *claim) clearUp(last *owner) error {
	if _, err := os.Lstat(c.path(originalName)); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	sum, err := sumFile(c.path(configName))
	switch {
	case err == nil && last != nil && sum == last.Edited:
		return os.Rename(c.path(originalName), c.path(configName))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return err
	}
	// Somebody has written a new config.json since: that one counts. If it is a
	// changed copy of ours, readConfig refuses it, and the original is still there to compare.
	if content, err := os.ReadFile(c.path(configName)); err == nil && tokenOf(content) != "" {
		return nil
	}
	return os.Remove(c.path(originalName))
}

// readConfig reads config.json as runc will: one JSON value, whatever follows it.
func (c *claim) readConfig() (json.RawMessage, error) {
	f, err := os.OpenFile(c.path(configName), os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, advise("run it in the bundle, or with --bundle DIR", "JSON specification file %s not found in %s", configName, c.dir)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	content, err := readRegular(f, maxConfig)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", c.path(configName), err)
	}
	var config json.RawMessage
	if err := json.NewDecoder(bytes.NewReader(content)).Decode(&config); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errors.New("it ends before it is complete")
		}
		return nil, fmt.Errorf("parse %s: %w", c.path(configName), err)
	}
	if tokenOf(config) != "" {
		return nil, advise("write the configuration anew; what was there before is in "+originalName+" if that is there",
			"read %s: it was made by declarun for another start", c.path(configName))
	}
	return config, nil
}

// edit puts config in place of config.json, with its mode and owner. From here
// on putBack must follow, from the hook or from release.
func (c *claim) edit(config json.RawMessage) error {
	if c.shared {
		return fmt.Errorf("write to bundle: %w", c.cause)
	}
	if tokenOf(config) == "" {
		return errors.New("edited configuration has no guard hook")
	}
	st, err := os.Stat(c.path(configName))
	if err != nil {
		return err
	}
	if err := writeLike(c.path(newName), config, st); err != nil {
		return err
	}
	c.owner.Edited = sum(config)
	if err := c.writeOwner(); err != nil {
		return err
	}
	// Without AT_SYMLINK_FOLLOW: a symbolic link is kept as one.
	if err := os.Link(c.path(configName), c.path(originalName)); err != nil {
		return err
	}
	c.edited = true
	return os.Rename(c.path(newName), c.path(configName))
}

// release gives the claim up before runc was started.
func (c *claim) release() {
	if c.shared {
		return
	}
	unlock, err := lockDir(c.dir)
	if err != nil {
		return
	}
	defer unlock()
	os.Remove(c.path(newName))
	if c.edited {
		os.Rename(c.path(originalName), c.path(configName))
	}
	os.Remove(c.path(ownerName))
}

// putBack is the hook's half: it makes the bundle what it was, if it is still
// as edit left it for the create with this token.
func putBack(dir, token string) error {
	unlock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer unlock()
	c := claim{dir: dir}
	last, err := readOwner(c.path(ownerName))
	if err != nil || last == nil {
		return err
	}
	content, err := os.ReadFile(c.path(configName))
	if err != nil {
		return err
	}
	if sum(content) != last.Edited || tokenOf(content) != token {
		return nil // another create's, or the user's
	}
	if err := os.Rename(c.path(originalName), c.path(configName)); err != nil {
		return err
	}
	return os.Remove(c.path(ownerName))
}

func (c *claim) writeOwner() error {
	content, err := json.Marshal(c.owner)
	if err != nil {
		return err
	}
	temporary := c.path(ownerName + "~")
	if err := os.WriteFile(temporary, content, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, c.path(ownerName))
}

func readOwner(path string) (*owner, error) {
	content, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var o owner
	if err := json.Unmarshal(content, &o); err != nil {
		return nil, fmt.Errorf("parse %s: %w", path, err)
	}
	return &o, nil
}

func lockDir(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(dir, os.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return func() { f.Close() }, nil
}

// writeLike writes a file with the mode and owner of another.
func writeLike(path string, content []byte, like os.FileInfo) error {
	os.Remove(path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	if st, ok := like.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
	}
	if err := f.Chmod(like.Mode().Perm()); err != nil {
		return err
	}
	if _, err := f.Write(content); err != nil {
		return err
	}
	return f.Close()
}

// readRegular reads a regular file of at most limit bytes.
func readRegular(f *os.File, limit int64) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("not a regular file")
	}
	content, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(content)) > limit {
		return nil, fmt.Errorf("more than %d bytes", limit)
	}
	return content, nil
}

// spec is what declarun itself reads of a configuration. encoding/json, as in
// runc: names match in any case and the last of two counts.
type spec struct {
	Root struct {
		Path string `json:"path"`
	} `json:"root"`
	Mounts []struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Options     []string `json:"options"`
	} `json:"mounts"`
	Hooks struct {
		CreateRuntime []struct {
			Args []string `json:"args"`
		} `json:"createRuntime"`
	} `json:"hooks"`
}

// tokenOf finds the token of declarun's own hook; empty: there is none.
func tokenOf(config []byte) string {
	var s spec
	if !bytes.Contains(config, []byte(GuardWord)) || json.Unmarshal(config, &s) != nil {
		return ""
	}
	for _, hook := range s.Hooks.CreateRuntime {
		if i := slices.Index(hook.Args, GuardWord); i == 1 && len(hook.Args) >= 4 && hook.Args[2] == "--token" {
			return hook.Args[3]
		}
	}
	return ""
}

func sum(content []byte) string {
	s := sha256.Sum256(content)
	return hex.EncodeToString(s[:])
}

func sumFile(path string) (string, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	return sum(content), nil
}
