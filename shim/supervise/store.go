package supervise

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// maxStored bounds one state file. Plans list origins: they are the largest.
const maxStored = 64 << 20

// stored is state.json. What is not in it is asked of the kernel.
type stored struct {
	Key      wire.Key     `json:"key"`
	Prepared time.Time    `json:"prepared"`
	Guarded  time.Time    `json:"guarded,omitzero"` // zero: the hook has not been here
	PID      int          `json:"pid,omitempty"`
	Start    uint64       `json:"start,omitempty"` // start time of PID
	Boot     string       `json:"boot"`            // boot id: start times mean nothing in another
	Phase    record.Phase `json:"phase"`
	Facts    Facts        `json:"facts"`

	Counts map[record.Dimension]uint64 `json:"counts,omitempty"`
}

func newToken() string {
	var b [16]byte
	rand.Read(b[:]) // never fails (Go 1.24)
	return hex.EncodeToString(b[:])
}

func validToken(s string) bool {
	if len(s) != 32 {
		return false
	}
	for _, c := range []byte(s) {
		if (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return false
		}
	}
	return true
}

// store is the directory that holds one directory per container.
type store struct{ dir string }

func (s store) path(token, name string) string { return filepath.Join(s.dir, token, name) }

func (s store) save(token, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	if len(data) > maxStored {
		return fmt.Errorf("store %s: %d bytes, more than %d", name, len(data), maxStored)
	}
	target := s.path(token, name)
	tmp := target + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	if err := os.Rename(tmp, target); err != nil {
		return fmt.Errorf("store %s: %w", name, err)
	}
	return nil
}

// create stores a container that has been prepared, or nothing.
func (s store) create(token string, p *plan.Plan, v *filter.Verdicts, st stored) error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("store container: %w", err)
	}
	if err := os.Mkdir(filepath.Join(s.dir, token), 0o700); err != nil {
		return fmt.Errorf("store container: %w", err)
	}
	err := s.save(token, "plan.json", p)
	if err == nil {
		err = s.save(token, "verdicts.json", v)
	}
	if err == nil {
		err = s.save(token, "state.json", st) // last: a directory without it is not a container
	}
	if err != nil {
		s.remove(token)
	}
	return err
}

func (s store) remove(token string) error {
	if !validToken(token) {
		return fmt.Errorf("remove container: not a token")
	}
	return os.RemoveAll(filepath.Join(s.dir, token))
}

func (s store) read(token, name string) ([]byte, error) {
	f, err := os.OpenFile(s.path(token, name), os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxStored {
		return nil, fmt.Errorf("read %s: not a regular file of at most %d bytes", name, maxStored)
	}
	return io.ReadAll(io.LimitReader(f, maxStored))
}

// load reads one container back.
func (s store) load(token string) (stored, *plan.Plan, *filter.Verdicts, error) {
	data, err := s.read(token, "state.json")
	if err != nil {
		return stored{}, nil, nil, fmt.Errorf("load container: %w", err)
	}
	st, err := parseStored(data)
	if err != nil {
		return stored{}, nil, nil, err
	}
	if data, err = s.read(token, "plan.json"); err != nil {
		return stored{}, nil, nil, fmt.Errorf("load container: %w", err)
	}
	var p *plan.Plan
	if err := json.Unmarshal(data, &p); err != nil || p == nil {
		return stored{}, nil, nil, fmt.Errorf("load container: plan.json: %w", errors.Join(err, errIfNil(p)))
	}
	if data, err = s.read(token, "verdicts.json"); err != nil {
		return stored{}, nil, nil, fmt.Errorf("load container: %w", err)
	}
	if string(data) == "null" { // mode off: nothing is notified for its own sake
		return st, p, nil, nil
	}
	verdicts, err := filter.ParseVerdicts(data)
	if err != nil {
		return stored{}, nil, nil, fmt.Errorf("load container: %w", err)
	}
	return st, p, verdicts, nil
}

func errIfNil(p *plan.Plan) error {
	if p == nil {
		return errors.New("no plan")
	}
	return nil
}

func parseStored(data []byte) (stored, error) {
	var st stored
	if err := json.Unmarshal(data, &st); err != nil {
		return stored{}, fmt.Errorf("parse state.json: %w", err)
	}
	switch {
	case st.Key.ID == "":
		return stored{}, errors.New("parse state.json: no container")
	case st.PID < 0 || !st.Guarded.IsZero() && (st.PID == 0 || st.Start == 0):
		return stored{}, errors.New("parse state.json: guarded without a process")
	}
	if st.Phase != record.Starting { // an unknown phase is the narrower one
		st.Phase = record.Serving
	}
	return st, nil
}

// tokens lists what is stored. Anything that is not named like a token is left alone.
func (s store) tokens() ([]string, error) {
	entries, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list containers: %w", err)
	}
	var tokens []string
	for _, e := range entries {
		if e.IsDir() && validToken(e.Name()) {
			tokens = append(tokens, e.Name())
		}
	}
	return tokens, nil
}
