package guards

import (
	"fmt"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// byteCode tells whether a path is one of those that Python tries to write beside
// every module that it loads (PEP 3147). An attempt by a program without the
// right to it is its everyday work there, and worth a report elsewhere.
func byteCode(name string) bool {
	return path.Base(path.Dir(name)) == "__pycache__" || path.Base(name) == "__pycache__"
}

// refusedAnyway tells whether a write that a read-only mount refused would have
// been refused by the permissions of what it was about: the kernel looks at the
// mount first, so that a program without rights is told EROFS instead of
// EACCES. What cannot be told is not: the process is gone,
// has CAP_DAC_OVERRIDE, or some bit lets somebody beside the owner write.
func refusedAnyway(tid int, name string) bool {
	uid, capable, err := credentials(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil || capable || !path.IsAbs(name) {
		return false
	}
	root, err := os.Open(fmt.Sprintf("/proc/%d/root", tid))
	if err != nil {
		return false
	}
	defer root.Close()
	name = path.Clean(name)
	st, err := statIn(root, name)
	switch {
	case err == unix.ENOENT:
	case err != nil || writable(st, uid):
		return false
	}
	// The nearest directory that is there.
	for name != "/" {
		name = path.Dir(name)
		if st, err = statIn(root, name); err != unix.ENOENT {
			break
		}
	}
	return err == nil && !writable(st, uid)
}

// writable tells whether the bits of a file may let a user write to it.
func writable(st unix.Stat_t, uid uint64) bool {
	if uint64(st.Uid) == uid {
		return true // who owns it can change the bits
	}
	return st.Mode&0o022 != 0
}

func statIn(root *os.File, name string) (st unix.Stat_t, err error) {
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS}
	rel := strings.TrimLeft(name, "/")
	if rel == "" {
		rel = "."
	}
	fd, err := unix.Openat2(int(root.Fd()), rel, &how)
	if err != nil {
		return st, err
	}
	defer unix.Close(fd)
	return st, unix.Fstat(fd, &st)
}

const capDACOverride = 1

// credentials reads the user that a thread writes files as, and whether
// permissions count for it (proc_pid_status(5)).
func credentials(status string) (uid uint64, capable bool, err error) {
	text, err := os.ReadFile(status)
	if err != nil {
		return 0, false, err
	}
	found := 0
	for line := range strings.SplitSeq(string(text), "\n") {
		f := strings.Fields(line)
		switch {
		case len(f) == 5 && f[0] == "Uid:":
			uid, err = strconv.ParseUint(f[4], 10, 32)
			found++
		case len(f) == 2 && f[0] == "CapEff:":
			var caps uint64
			caps, err = strconv.ParseUint(f[1], 16, 64)
			capable = caps&(1<<capDACOverride) != 0
			found++
		}
		if err != nil {
			return 0, false, err
		}
	}
	if found != 2 {
		return 0, false, fmt.Errorf("read %s: no credentials", status)
	}
	return uid, capable, nil
}
