package runtime

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Where runc is looked for. Never the caller's PATH.
var runcDirectories = []string{
	"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin",
	"/usr/libexec/runc", "/usr/libexec", "/usr/lib/runc", "/usr/lib/cri-o-runc/sbin",
}

// findRunc finds the low-level runtime: what the site's configuration names, or the
// first runc in a fixed list of directories that is not declarun itself.
func (s settings) findRunc() (string, error) {
	own, err := os.Stat("/proc/self/exe")
	if err != nil {
		return "", fmt.Errorf("find runc: %w", err)
	}
	if named := s.runc; named != "" {
		if err := usable(named, own); err != nil {
			return "", advise("correct runc = "+strconv.Quote(named)+" in "+configPath, "find runc: %s: %w", named, err)
		}
		return named, nil
	}
	for _, dir := range runcDirectories {
		path := filepath.Join(dir, "runc")
		if usable(path, own) == nil {
			return path, nil
		}
	}
	return "", advise(`install runc 1.1 or later, or set runc = "/path/to/runc" in `+configPath,
		"find runc: it is in none of %s", strings.Join(runcDirectories, " "))
}

var errItself = errors.New("is declarun itself")

// usable says why path is no runtime to hand over to.
func usable(path string, own os.FileInfo) error {
	st, err := os.Stat(path)
	switch {
	case !filepath.IsAbs(path):
		return errors.New("not an absolute path")
	case errors.Is(err, fs.ErrNotExist):
		return errors.New("not there")
	case err != nil:
		return err
	case !st.Mode().IsRegular() || st.Mode()&0o111 == 0:
		return errors.New("not a program")
	case os.SameFile(st, own) || st.Size() == own.Size() && sameContent(path, "/proc/self/exe"):
		return errItself
	}
	return nil
}

// sameContent is asked only of files of the same size: a copy of declarun under
// runc's name would otherwise exec itself for ever.
func sameContent(a, b string) bool {
	fa, err := os.Open(a)
	if err != nil {
		return false
	}
	defer fa.Close()
	fb, err := os.Open(b)
	if err != nil {
		return false
	}
	defer fb.Close()
	ra, rb := bufio.NewReaderSize(fa, 1<<16), bufio.NewReaderSize(fb, 1<<16)
	for {
		pa, errA := ra.Peek(1 << 16)
		pb, errB := rb.Peek(1 << 16)
		if !bytes.Equal(pa, pb) {
			return false
		}
		if errA != nil || errB != nil {
			return errors.Is(errA, io.EOF) && errors.Is(errB, io.EOF)
		}
		ra.Discard(len(pa))
		rb.Discard(len(pb))
	}
}

// declarund finds the other program: beside this one or in ../libexec/declarun.
func declarund() (string, error) {
	self, err := os.Executable() // free of symbolic links: /proc/self/exe
	if err != nil {
		return "", fmt.Errorf("find declarund: %w", err)
	}
	dir := filepath.Dir(self)
	for _, path := range []string{filepath.Join(dir, "declarund"), filepath.Join(dir, "../libexec/declarun/declarund")} {
		if st, err := os.Stat(path); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", advise("install declarund beside "+self, "find declarund: neither beside %s nor in ../libexec/declarun", self)
}
