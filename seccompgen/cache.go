package seccompgen

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
)

// Cache keeps results by key. Get may miss for any reason; what it returns is
// what Put was given. Both are safe for concurrent use.
type Cache interface {
	Get(key string) ([]byte, bool)
	Put(key string, data []byte)
}

// NoCache keeps nothing.
type NoCache struct{}

func (NoCache) Get(string) ([]byte, bool) { return nil, false }
func (NoCache) Put(string, []byte)        {}

// DirCache keeps every entry in a file of one directory, which nobody else may
// write to. An entry is written whole or not at all; one that was damaged is a
// miss.
type DirCache struct{ dir string }

// maxEntry bounds what is read back.
const maxEntry = 256 << 20

// OpenDirCache makes the directory if it is not there.
func OpenDirCache(dir string) (*DirCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open analysis cache: %w", err)
	}
	return &DirCache{dir}, nil
}

func (c *DirCache) file(key string) string {
	sum := sha256.Sum256([]byte(key))
	return filepath.Join(c.dir, hex.EncodeToString(sum[:16]))
}

// Get reads an entry. Its file holds the digest of key and data, then the data.
func (c *DirCache) Get(key string) ([]byte, bool) {
	name := c.file(key)
	info, err := os.Stat(name)
	if err != nil || info.Size() > maxEntry || info.Size() < sha256.Size {
		return nil, false
	}
	b, err := os.ReadFile(name)
	if err != nil || len(b) < sha256.Size {
		return nil, false
	}
	if sum := digest(key, b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	return b[sha256.Size:], true
}

// Put writes an entry. A cache that cannot be written is a slow one, not an error.
func (c *DirCache) Put(key string, data []byte) {
	f, err := os.CreateTemp(c.dir, ".new-*")
	if err != nil {
		return
	}
	sum := digest(key, data)
	_, err1 := f.Write(sum[:])
	_, err2 := f.Write(data)
	err3 := f.Close()
	if err1 != nil || err2 != nil || err3 != nil || os.Rename(f.Name(), c.file(key)) != nil {
		os.Remove(f.Name())
	}
}

func digest(key string, data []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write(data)
	return [sha256.Size]byte(h.Sum(nil))
}
