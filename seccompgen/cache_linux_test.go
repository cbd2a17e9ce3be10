package seccompgen

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

func openTestCache(t *testing.T, dir string) *DirCache {
	t.Helper()
	c, err := OpenDirCache(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestCacheEntryWithAnyByteChangedIsAMiss(t *testing.T) {
	dir := t.TempDir()
	c := openTestCache(t, dir)
	c.Put("key", []byte("what was found out"))
	file := filepath.Join(dir, entryName("key"))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	write := func(b []byte) {
		if err := os.WriteFile(file, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			write(bad)
			if b, ok := c.Get("key"); ok {
				t.Fatalf("byte %d changed: %q", i, b)
			}
		}
	}
	for n := range good { // what a crash may leave
		write(good[:n])
		if b, ok := c.Get("key"); ok {
			t.Fatalf("cut to %d bytes: %q", n, b)
		}
	}
	write(append(bytes.Clone(good), 0))
	if _, ok := c.Get("key"); ok {
		t.Error("with a byte more")
	}
	write(good)
	if b, ok := c.Get("key"); !ok || string(b) != "what was found out" {
		t.Error("as it was:", b, ok)
	}
	if err := os.Rename(file, filepath.Join(dir, entryName("other"))); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.Get("other"); ok {
		t.Error("an entry is taken for another key's")
	}
}

func TestCacheTakesNothingThatOthersCouldHaveWritten(t *testing.T) {
	dir := t.TempDir()
	c := openTestCache(t, dir)
	file := filepath.Join(dir, entryName("key"))
	elsewhere := filepath.Join(t.TempDir(), "entry")
	for claim, spoil := range map[string]func() error{
		"it is writable for others": func() error { return os.Chmod(file, 0o666) },
		"it is a link": func() error {
			return errors.Join(os.Rename(file, elsewhere), os.Symlink(elsewhere, file))
		},
		"it is a FIFO":      func() error { return errors.Join(os.Remove(file), unix.Mkfifo(file, 0o600)) },
		"it is a directory": func() error { return errors.Join(os.Remove(file), os.Mkdir(file, 0o700)) },
		"it is another user's": func() error {
			if os.Geteuid() != 0 {
				return os.Remove(file)
			}
			return os.Chown(file, 65534, 65534)
		},
	} {
		os.RemoveAll(file)
		c.Put("key", []byte("x"))
		if _, ok := c.Get("key"); !ok {
			t.Fatalf("before %s: a miss", claim)
		}
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if _, ok := c.Get("key"); ok {
			t.Errorf("%s, and it is taken", claim)
		}
	}
	for mode, want := range map[os.FileMode]bool{0o700: true, 0o755: true, 0o770: false, 0o707: false, 0o777 | os.ModeSticky: false} {
		if err := os.Chmod(dir, mode); err != nil {
			t.Fatal(err)
		}
		again, err := OpenDirCache(dir)
		var e *CacheError
		if (err == nil) != want || !want && (!errors.As(err, &e) || e.Remedy() == "") {
			t.Errorf("mode %v: %v", mode, err)
		}
		if err == nil {
			again.Close()
		}
	}
}

func cacheSize(t *testing.T, dir string) (files int, bytes int64) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(dir, e.Name()), &st) == nil {
			bytes += st.Blocks * 512
		}
	}
	return len(entries), bytes
}

func TestCacheForgetsWhatWasNotReadForLongest(t *testing.T) {
	dir := t.TempDir()
	c := openTestCache(t, dir)
	c.limit = 1 << 20
	data := make([]byte, 64<<10)
	used := func(key string, ago time.Duration) {
		at := unix.NsecToTimespec(time.Now().Add(-ago).UnixNano())
		if err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(dir, entryName(key)), []unix.Timespec{at, at}, 0); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 32 {
		c.Put(fmt.Sprint(i), data)
		used(fmt.Sprint(i), time.Duration(100-i)*time.Hour)
	}
	used("3", time.Minute) // old, and read a minute ago
	left := filepath.Join(dir, unfinished+"left")
	if err := os.WriteFile(left, data, 0o600); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-abandoned - time.Minute)
	if err := os.Chtimes(left, old, old); err != nil {
		t.Fatal(err)
	}
	c.evict()
	if _, size := cacheSize(t, dir); size > c.limit {
		t.Errorf("%d bytes, want at most %d", size, c.limit)
	}
	for key, want := range map[string]bool{"0": false, "1": false, "3": true, "31": true} {
		if _, ok := c.Get(key); ok != want {
			t.Errorf("%s: %v, want %v", key, ok, want)
		}
	}
	if _, err := os.Stat(left); err == nil {
		t.Error("what a process that died left unfinished is still there")
	}
}

// Several processes write, read, evict and damage the same entries at once.
func TestCacheOfSeveralProcesses(t *testing.T) {
	const env = "DECLARUN_TEST_ENTRIES"
	if dir := os.Getenv(env); dir != "" {
		hammer(t, dir)
		return
	}
	dir := t.TempDir()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			cmd := exec.Command("/proc/self/exe", "-test.run=^TestCacheOfSeveralProcesses$")
			cmd.Env = append(os.Environ(), env+"="+dir)
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
	all.Wait()
	c := openTestCache(t, dir)
	c.limit = 256 << 10
	c.evict()
	if n, size := cacheSize(t, dir); size > c.limit || n == 0 {
		t.Errorf("%d entries of %d bytes", n, size)
	}
}

func hammer(t *testing.T, dir string) {
	c := openTestCache(t, dir)
	c.limit = 256 << 10
	content := func(k int) []byte { return bytes.Repeat([]byte(fmt.Sprintf("%03d", k)), 10_000) }
	for i := range 300 {
		k := (i*7 + os.Getpid()) % 40
		key := fmt.Sprint(k)
		if b, ok := c.Get(key); ok && !bytes.Equal(b, content(k)) {
			t.Fatalf("%s: half an entry, or another's", key)
		}
		c.Put(key, content(k))
		if i%10 == 0 {
			c.evict()
		}
		if i%50 == 0 { // a write that a crash cut off
			_ = os.Truncate(filepath.Join(dir, entryName(key)), 100)
		}
	}
}

// counting is a cache in memory that counts.
type countingCache struct {
	mu   sync.Mutex
	all  map[string][]byte
	hits map[string]int // by the first word of the key
	puts map[string]int
}

func newCounting() *countingCache {
	return &countingCache{all: map[string][]byte{}, hits: map[string]int{}, puts: map[string]int{}}
}

func (c *countingCache) Get(key string) ([]byte, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	b, ok := c.all[key]
	if ok {
		kind, _, _ := strings.Cut(key, " ")
		c.hits[kind]++
	}
	return b, ok
}

func (c *countingCache) Put(key string, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	kind, _, _ := strings.Cut(key, " ")
	c.puts[kind]++
	c.all[key] = data
}

// program is a static program of n bytes that makes the call nr.
func program(nr byte, n int) []byte {
	b := tiny([]byte{0xb8, nr, 0, 0, 0, 0x0f, 0x05, 0xf4}, elf.EM_X86_64, 0x400000, 4096)
	return append(b, make([]byte, n-len(b))...)
}

func openTestRoot(t *testing.T, dir string) *rootfs.Root {
	t.Helper()
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func callsOf(t *testing.T, dir string, cache Cache) []string {
	t.Helper()
	res, err := Analyse(context.Background(), openTestRoot(t, dir), Request{Programs: []Program{{Path: "/p", Phase: record.Serving}}}, cache)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, c := range res.Calls {
		out = append(out, c.Name)
	}
	return out
}

// grownOld waits until a file that was just written has an identity.
func grownOld() { time.Sleep(100 * time.Millisecond) }

func TestCacheKnowsALargeFileInAnotherImageByItsContent(t *testing.T) {
	cache := newCounting()
	for i, size := range []int{100 << 10, 20 << 20} {
		one, two := t.TempDir(), t.TempDir()
		for _, dir := range []string{one, two} {
			if err := os.WriteFile(filepath.Join(dir, "p"), program(39, size+i), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		grownOld()
		first := callsOf(t, one, cache)
		clear(cache.hits)
		clear(cache.puts)
		second := callsOf(t, two, cache)
		if !slices.Contains(first, "getpid") || !slices.Equal(first, second) {
			t.Errorf("%d bytes: %v, then %v", size, first, second)
		}
		if cache.hits["module"] != 1 || cache.puts["module"] != 0 {
			t.Errorf("%d bytes: the second image takes %v hits and %v puts", size, cache.hits, cache.puts)
		}
		clear(cache.hits)
		callsOf(t, two, cache)
		if !maps.Equal(cache.hits, map[string]int{"request": 1}) {
			t.Errorf("%d bytes: the same again takes %v hits", size, cache.hits)
		}
	}
}

// Whoever could pass one file off as another by its identity still cannot have
// what is found in the one kept under the other's content.
func TestCacheKeepsUnderTheContentThatWasRead(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p"), program(39, 100<<10), 0o755); err != nil {
		t.Fatal(err)
	}
	grownOld()
	cache := newCounting()
	want := callsOf(t, dir, cache)
	var module string
	for key := range cache.all {
		if strings.HasPrefix(key, "module ") {
			module = key
		}
	}
	// As if the file had been another when it was seen last.
	for key := range cache.all {
		switch {
		case strings.HasPrefix(key, "id "):
			cache.all[key] = []byte(strings.Repeat("0", 64))
		default:
			delete(cache.all, key)
		}
	}
	if got := callsOf(t, dir, cache); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	for key := range cache.all {
		if strings.HasPrefix(key, "module ") && key != module {
			t.Errorf("kept as %q, want %q", key, module)
		}
	}
}

func TestIdentityIsNotTrustedWhereSomebodyElseMakesIt(t *testing.T) {
	now := time.Unix(1_700_000_000, 500)
	for ago, want := range map[time.Duration]bool{0: true, -time.Hour: true, 20 * time.Millisecond: true, time.Second: false} {
		if got := fresh(unix.NsecToTimespec(now.Add(-ago).UnixNano()), now); got != want {
			t.Errorf("%v ago: fresh is %v", ago, got)
		}
	}
	if !fresh(unix.Timespec{Sec: now.Unix() - 1}, now) || fresh(unix.Timespec{Sec: now.Unix() - 3}, now) {
		t.Error("whole seconds")
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p"), program(39, 100<<10), 0o755); err != nil {
		t.Fatal(err)
	}
	r := newReader(openTestRoot(t, dir))
	_, st, ok := r.stat("/p")
	if !ok || r.seen["/p"] != unsure {
		t.Errorf("a file that was just written is known as %q", r.seen["/p"])
	}
	grownOld()
	if id := r.identity(st); id == unsure {
		t.Fatalf("no file system here is one whose times the kernel keeps: %q", id)
	}
	other := *st
	other.Dev++
	if id := r.identity(&other); id != unsure {
		t.Errorf("a file on a volume that was never looked at is known as %q", id)
	}
}
