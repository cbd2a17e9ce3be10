package wire

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
)

// readFrame reads one length and what it announces. Memory grows with what
// arrives, not with what is announced. io.EOF: the stream ended before a
// frame began.
func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > MaxMessage {
		return nil, fmt.Errorf("message of %d bytes: more than %d", size, MaxMessage)
	}
	var body bytes.Buffer
	n, err := io.Copy(&body, io.LimitReader(r, int64(size)))
	if err != nil {
		return nil, err
	}
	if n != int64(size) {
		return nil, fmt.Errorf("message of %d bytes ends after %d: %w", size, n, io.ErrUnexpectedEOF)
	}
	return body.Bytes(), nil
}

func readJSON(r io.Reader, v any) error {
	body, err := readFrame(r)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(body, v); err != nil {
		return fmt.Errorf("parse message: %w", err)
	}
	return nil
}
