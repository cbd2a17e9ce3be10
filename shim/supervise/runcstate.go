package supervise

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

const maxProcessState = 1 << 20

// processState is the containerProcessState of the runtime specification
// (config-linux.md, "Seccomp"), as far as it is used.
type processState struct {
	FDs      []string `json:"fds"`
	PID      int      `json:"pid"`
	Metadata string   `json:"metadata"`
	State    struct {
		ID     string `json:"id"`
		Status string `json:"status"`
		PID    int    `json:"pid"`
		Bundle string `json:"bundle"`
	} `json:"state"`
}

var errNotComplete = errors.New("ends before it is complete")

// readProcessState reads one JSON value and not one byte further than the reader
// gives with it: runc before 1.2.7 keeps the connection open (runc#4796).
func readProcessState(r io.Reader) (processState, error) {
	limited := &io.LimitedReader{R: r, N: maxProcessState}
	var raw json.RawMessage
	if err := json.NewDecoder(limited).Decode(&raw); err != nil {
		if limited.N == 0 {
			return processState{}, fmt.Errorf("read process state: more than %d bytes", maxProcessState)
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			err = errNotComplete
		}
		return processState{}, fmt.Errorf("read process state: %w", err)
	}
	return parseProcessState(raw)
}

func parseProcessState(raw []byte) (processState, error) {
	var s processState
	if !bytes.HasPrefix(bytes.TrimSpace(raw), []byte("{")) {
		return s, errors.New("parse process state: not an object")
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return processState{}, fmt.Errorf("parse process state: %w", err)
	}
	index := -1
	for i, name := range s.FDs {
		if name == "seccompFd" {
			index = i
		}
	}
	switch {
	case index != 0 || len(s.FDs) != 1:
		return processState{}, fmt.Errorf("parse process state: descriptors %.100q, want one seccompFd", s.FDs)
	case s.PID <= 0 || s.State.PID < 0:
		return processState{}, fmt.Errorf("parse process state: pid %d", s.PID)
	case !validToken(s.Metadata):
		return processState{}, fmt.Errorf("parse process state: metadata is not a token")
	case s.State.Status != "creating" && s.State.Status != "created" && s.State.Status != "running":
		return processState{}, fmt.Errorf("parse process state: status %.40q", s.State.Status)
	}
	return s, nil
}
