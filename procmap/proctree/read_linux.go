package proctree

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"path"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// seen is what /proc says of a process.
type seen struct {
	pid, parent, inside int
	at                  uint64 // CLOCK_MONOTONIC, before it was read
	start               uint64
	exe, comm           string
	argv                []string
	real, uid, saved    uint32
	permitted, bounding uint64
}

// look reads a process; ok is false where it is gone (or only waits to be waited for).
func look(pid int) (s seen, ok bool) {
	dir := "/proc/" + strconv.Itoa(pid)
	s.pid = pid
	mono, _ := clocks()
	s.at = uint64(mono)
	s.start, s.parent, ok = parseStat(readSome(dir+"/stat", 4096))
	if !ok {
		return s, false
	}
	if !s.parseStatus(readSome(dir+"/status", 8<<10)) {
		return s, false
	}
	s.exe, _ = os.Readlink(dir + "/exe")
	s.exe = short(strings.TrimSuffix(s.exe, " (deleted)"))
	cmdline := bytes.TrimRight(readSome(dir+"/cmdline", 16<<10), "\x00")
	if len(cmdline) > 0 {
		for arg := range bytes.SplitSeq(cmdline, []byte{0}) {
			if len(s.argv) == maxArgs {
				break
			}
			s.argv = append(s.argv, string(arg[:min(len(arg), maxArg)]))
		}
	}
	start, _, still := parseStat(readSome(dir+"/stat", 4096))
	return s, still && start == s.start
}

// parseStat reads start time and parent of proc_pid_stat(5). A zombie is gone.
func parseStat(stat []byte) (start uint64, parent int, ok bool) {
	i := bytes.LastIndexByte(stat, ')') // the name may contain anything
	if i < 0 {
		return 0, 0, false
	}
	f := strings.Fields(string(stat[i+1:]))
	if len(f) < 20 || f[0] == "X" || f[0] == "x" {
		return 0, 0, false
	}
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		return 0, 0, false
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, parent, err == nil && f[0] != "Z"
}

// parseStatus reads proc_pid_status(5).
func (s *seen) parseStatus(status []byte) bool {
	uid := false
	for line := range strings.SplitSeq(string(status), "\n") {
		name, value, _ := strings.Cut(line, ":")
		f := strings.Fields(value)
		if len(f) == 0 {
			continue
		}
		switch name {
		case "Name":
			s.comm = strings.TrimPrefix(value, "\t")
		case "Uid":
			if len(f) < 3 {
				return false
			}
			for i, into := range []*uint32{&s.real, &s.uid, &s.saved} {
				n, err := strconv.ParseUint(f[i], 10, 32)
				if err != nil {
					return false
				}
				*into = uint32(n)
			}
			uid = true
		case "NSpid":
			s.inside, _ = strconv.Atoi(f[len(f)-1])
		case "CapPrm":
			s.permitted, _ = strconv.ParseUint(f[0], 16, 64)
		case "CapBnd":
			s.bounding, _ = strconv.ParseUint(f[0], 16, 64)
		}
	}
	return uid
}

func readSome(name string, limit int64) []byte {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	data, _ := io.ReadAll(io.LimitReader(f, limit))
	return data
}

// place is how a container's processes are told from others.
type place struct {
	pidns  uint64 // 0: shared with others
	userns uint64
	cgroup string // where pidns is 0; of one hierarchy, "5:pids:/docker/…"
}

// placeOf reads where a container's init is. own is the supervisor's own pid
// namespace, taken tells which others are another container's.
func placeOf(init int, taken func(uint64) bool) (place, error) {
	var p place
	ns, err := namespace(init, "pid")
	if err != nil {
		return p, fmt.Errorf("read process %d: %w", init, err)
	}
	own, err := namespace(os.Getpid(), "pid")
	if err != nil {
		return p, fmt.Errorf("read own namespace: %w", err)
	}
	if ns != own && !taken(ns) {
		p.pidns = ns
	}
	p.cgroup = cgroupOf(init)
	p.userns, _ = namespace(init, "user")
	return p, nil
}

func namespace(pid int, kind string) (uint64, error) {
	var st unix.Stat_t
	err := unix.Stat(fmt.Sprintf("/proc/%d/ns/%s", pid, kind), &st)
	return st.Ino, err
}

// cgroupOf is the deepest of a process's cgroups, "" where it has none of its own.
func cgroupOf(pid int) string {
	deepest := ""
	for line := range strings.SplitSeq(string(readSome(fmt.Sprintf("/proc/%d/cgroup", pid), 16<<10)), "\n") {
		if f := strings.SplitN(line, ":", 3); len(f) == 3 && path.Clean(f[2]) != "/" && strings.Count(line, "/") > strings.Count(deepest, "/") {
			deepest = line
		}
	}
	return deepest
}

// finder tells whose a process is, and remembers namespaces while it is used.
type finder struct {
	byNS     map[uint64]string // of the containers, then of namespaces below
	byCgroup map[string]string // where the namespace does not tell
}

func (f *finder) owner(pid int) (token string, ok bool) {
	if len(f.byNS) > 0 {
		ns, err := namespace(pid, "pid")
		if err != nil {
			return "", false
		}
		token, known := f.byNS[ns]
		if !known {
			token = f.above(pid)
			f.byNS[ns] = token // "": nobody's
		}
		if token != "" {
			return token, true
		}
	}
	if len(f.byCgroup) > 0 {
		for line := range strings.SplitSeq(string(readSome(fmt.Sprintf("/proc/%d/cgroup", pid), 16<<10)), "\n") {
			for group, token := range f.byCgroup {
				if line == group || strings.HasPrefix(line, group+"/") {
					return token, true
				}
			}
		}
	}
	return "", false
}

// above looks for a container's pid namespace among the ancestors of a process's:
// ioctl_nsfs(2), NS_GET_PARENT; 32 levels are as deep as the kernel goes.
func (f *finder) above(pid int) string {
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/pid", pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	for range 33 {
		up, err := unix.IoctlRetInt(fd, unix.NS_GET_PARENT)
		unix.Close(fd)
		if err != nil {
			return ""
		}
		fd = up
		var st unix.Stat_t
		if unix.Fstat(fd, &st) == nil {
			if token := f.byNS[st.Ino]; token != "" {
				unix.Close(fd)
				return token
			}
		}
	}
	unix.Close(fd)
	return ""
}

// all are the numbers of all processes.
func all() ([]int, error) {
	d, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer d.Close()
	names, err := d.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, n := range names {
		if pid, err := strconv.Atoi(n); err == nil && pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
