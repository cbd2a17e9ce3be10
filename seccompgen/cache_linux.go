package seccompgen

import (
	"bytes"
	"cmp"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
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

// DirCache keeps every entry in a file of one directory. Any number of
// processes may use the same one at the same time.
//
// Guarantees: what Get gives was put under that very key by somebody with the
// directory owner's rights: the directory and every entry belong to the owner
// and nobody else may write to them. An entry is there whole or not at all,
// after a crash too: its file begins with a digest of key and data, and one
// that does not match is a miss. The directory does not grow beyond its limit
// for long; what has not been read for the longest time goes first.
//
// Not guaranteed: that an entry stays. Where the file system keeps no access
// times, the oldest goes first.
type DirCache struct {
	dir      *os.File
	owner    uint32
	readOnly bool
	limit    int64

	mu    sync.Mutex
	grown int64 // bytes since the limit was last looked at; <0: never was
}

const (
	// MaxEntry bounds what is kept under one key.
	MaxEntry = 256 << 20
	// maxCache bounds all entries together.
	maxCache = 512 << 20
	// lookAfter is how much may be written before the limit is looked at again.
	lookAfter = maxCache / 16
	// abandoned is the age at which an unfinished entry is nobody's any more.
	abandoned = 10 * time.Minute

	unfinished = ".new-"
)

// CacheError is a directory that somebody else could have put entries in.
type CacheError struct{ Dir, Reason string }

func (e *CacheError) Error() string {
	return fmt.Sprintf("open analysis cache %s: %s", e.Dir, e.Reason)
}

// Remedy says what to do about it.
func (e *CacheError) Remedy() string { return "remove " + e.Dir + "; it is made again" }

// OpenDirCache makes the directory if it is not there.
func OpenDirCache(dir string) (*DirCache, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open analysis cache: %w", err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open analysis cache: %w", err)
	}
	c, err := ReadDirCache(f)
	if err != nil {
		return nil, err
	}
	if c.owner != uint32(os.Geteuid()) {
		c.Close()
		return nil, &CacheError{dir, fmt.Sprintf("it belongs to user %d", c.owner)}
	}
	c.readOnly = false
	return c, nil
}

// ReadDirCache reads the entries of an open directory, which may be another
// user's, and keeps no more. The cache takes over the file.
func ReadDirCache(dir *os.File) (*DirCache, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(dir.Fd()), &st); err != nil {
		dir.Close()
		return nil, fmt.Errorf("open analysis cache: %w", err)
	}
	reason := ""
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		reason = "it is not a directory"
	case st.Mode&0o022 != 0:
		reason = fmt.Sprintf("mode %#o lets others write to it", st.Mode&0o7777)
	}
	if reason != "" {
		dir.Close()
		return nil, &CacheError{dir.Name(), reason}
	}
	return &DirCache{dir: dir, owner: st.Uid, readOnly: true, limit: maxCache, grown: -1}, nil
}

// Dir is the directory, for a process that is to read it.
func (c *DirCache) Dir() *os.File { return c.dir }

// Close closes the directory.
func (c *DirCache) Close() error { return c.dir.Close() }

func entryName(key string) string {
	sum := sha256.Sum256([]byte(key))
	return hex.EncodeToString(sum[:16])
}

func (c *DirCache) open(name string, flags int) (*os.File, error) {
	fd, err := unix.Openat(int(c.dir.Fd()), name, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

// Get reads an entry.
func (c *DirCache) Get(key string) ([]byte, bool) {
	f, err := c.open(entryName(key), unix.O_RDONLY)
	if err != nil {
		return nil, false
	}
	defer f.Close()
	var st unix.Stat_t
	if unix.Fstat(int(f.Fd()), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != c.owner || st.Mode&0o022 != 0 ||
		st.Size < sha256.Size || st.Size > MaxEntry+sha256.Size {
		return nil, false
	}
	b := make([]byte, st.Size)
	if _, err := io.ReadFull(f, b); err != nil {
		return nil, false
	}
	if sum := digest(key, b[sha256.Size:]); !bytes.Equal(sum[:], b[:sha256.Size]) {
		return nil, false
	}
	return b[sha256.Size:], true
}

// Put writes an entry. A cache that cannot be written is a slow one, not an error.
func (c *DirCache) Put(key string, data []byte) {
	if c.readOnly || len(data) > MaxEntry {
		return
	}
	name := unfinished + rand.Text()
	f, err := c.open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL)
	if err != nil {
		return
	}
	sum := digest(key, data)
	_, err1 := f.Write(sum[:])
	_, err2 := f.Write(data)
	err3 := f.Close()
	dir := int(c.dir.Fd())
	if err1 != nil || err2 != nil || err3 != nil || unix.Renameat(dir, name, dir, entryName(key)) != nil {
		_ = unix.Unlinkat(dir, name, 0)
		return
	}
	c.mu.Lock()
	look := c.grown < 0 || c.grown > lookAfter
	if look {
		c.grown = 0
	}
	c.grown += int64(len(data)) + blockSize
	c.mu.Unlock()
	if look {
		c.evict()
	}
}

// blockSize is about what a small file takes.
const blockSize = 4096

func digest(key string, data []byte) [sha256.Size]byte {
	h := sha256.New()
	h.Write([]byte(key))
	h.Write([]byte{0})
	h.Write(data)
	return [sha256.Size]byte(h.Sum(nil))
}

// evict removes what has not been read for the longest time, down to three
// quarters of the limit, and what a process that died left unfinished. One
// process does it at a time; that others read, write and replace entries
// meanwhile costs at most an entry.
func (c *DirCache) evict() {
	lock, err := c.open(".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return
	}
	defer lock.Close() // and with it the lock
	if unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil {
		return
	}
	type aged struct {
		name string
		used int64
		size int64
	}
	var all []aged
	var total int64
	now := time.Now()
	for {
		names, err := lock.Readdirnames(1000)
		for _, name := range names {
			var st unix.Stat_t
			if unix.Fstatat(int(lock.Fd()), name, &st, unix.AT_SYMLINK_NOFOLLOW) != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
				continue
			}
			if strings.HasPrefix(name, unfinished) {
				if now.Sub(time.Unix(st.Mtim.Unix())) > abandoned {
					_ = unix.Unlinkat(int(lock.Fd()), name, 0)
				}
				continue
			}
			all = append(all, aged{name, max(st.Atim.Nano(), st.Mtim.Nano()), st.Blocks * 512})
			total += st.Blocks * 512
		}
		if err != nil {
			break
		}
	}
	if total <= c.limit {
		return
	}
	slices.SortFunc(all, func(a, b aged) int { return cmp.Compare(a.used, b.used) })
	for _, e := range all {
		if total <= c.limit/4*3 {
			return
		}
		if unix.Unlinkat(int(lock.Fd()), e.name, 0) == nil {
			total -= e.size
		}
	}
}
