package events

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

const (
	maxParents = 4
	maxCmdline = 16 << 10
)

// Snapshot describes a process (or the process of a thread) as far as it can be
// read now, with up to four of its ancestors in the same pid namespace. It is nil
// for a process that is gone.
func Snapshot(tid int) *record.Process { return snapshot("/proc", tid) }

func snapshot(proc string, tid int) *record.Process {
	tgid, _, _, ok := status(proc, tid)
	if !ok {
		return nil
	}
	first := describe(proc, tgid)
	if first == nil {
		return nil
	}
	ns, _ := os.Readlink(filepath.Join(proc, strconv.Itoa(tgid), "ns/pid"))
	child := first
	for range maxParents {
		_, ppid, _, ok := status(proc, child.PID)
		if !ok || ppid <= 1 {
			break
		}
		if other, _ := os.Readlink(filepath.Join(proc, strconv.Itoa(ppid), "ns/pid")); other != ns {
			break
		}
		if child.Parent = describe(proc, ppid); child.Parent == nil {
			break
		}
		child = child.Parent
	}
	return first
}

func describe(proc string, pid int) *record.Process {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	_, _, uid, ok := status(proc, pid)
	if !ok {
		return nil
	}
	p := &record.Process{PID: pid, UID: uid, StartTime: startTime(dir)}
	p.Exe, _ = os.Readlink(dir + "/exe")
	p.Exe = strings.TrimSuffix(p.Exe, " (deleted)")
	p.Comm = strings.TrimRight(string(readSome(dir+"/comm", 64)), "\n")
	cmdline := bytes.TrimRight(readSome(dir+"/cmdline", maxCmdline), "\x00")
	if len(cmdline) == 0 {
		return p
	}
	for arg := range bytes.SplitSeq(cmdline, []byte{0}) {
		if len(p.Argv) == 64 {
			break
		}
		p.Argv = append(p.Argv, string(arg[:min(len(arg), 256)]))
	}
	return p
}

// Tgid gives the process that a thread belongs to.
func Tgid(tid int) (int, bool) {
	tgid, _, _, ok := status("/proc", tid)
	return tgid, ok
}

// Parent gives the process that a process is a child of.
func Parent(pid int) (int, bool) {
	_, ppid, _, ok := status("/proc", pid)
	return ppid, ok && ppid > 0
}

// Filtered tells whether a process has a seccomp filter.
func Filtered(pid int) bool {
	for line := range strings.SplitSeq(string(readSome("/proc/"+strconv.Itoa(pid)+"/status", 8<<10)), "\n") {
		if mode, ok := strings.CutPrefix(line, "Seccomp:"); ok {
			return strings.TrimSpace(mode) == "2"
		}
	}
	return false
}

// StartTime is field 22 of proc_pid_stat(5), 0 for a process that is gone.
func StartTime(pid int) uint64 { return startTime("/proc/" + strconv.Itoa(pid)) }

func status(proc string, tid int) (tgid, ppid, uid int, ok bool) {
	for line := range strings.SplitSeq(string(readSome(filepath.Join(proc, strconv.Itoa(tid), "status"), 8<<10)), "\n") {
		name, value, _ := strings.Cut(line, ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		n, err := strconv.Atoi(fields[0])
		if err != nil {
			continue
		}
		switch name {
		case "Tgid":
			tgid = n
		case "PPid":
			ppid = n
		case "Uid":
			if len(fields) > 1 {
				uid, _ = strconv.Atoi(fields[1])
			} // effective
			return tgid, ppid, uid, tgid > 0
		}
	}
	return 0, 0, 0, false
}

func startTime(dir string) uint64 {
	stat := readSome(dir+"/stat", 4096)
	i := bytes.LastIndexByte(stat, ')') // the name may contain anything
	if i < 0 {
		return 0
	}
	fields := strings.Fields(string(stat[i+1:]))
	if len(fields) < 20 {
		return 0
	}
	n, _ := strconv.ParseUint(fields[19], 10, 64)
	return n
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
