package main

import (
	"bufio"
	"bytes"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// payload is something an attacker wants to run: system calls that it needs,
// each given as every call that does the same.
type payload struct {
	name  string
	needs [][]string
}

// alike are calls that do the same for an attacker: one that is left is enough.
var alike = func() map[string][]string {
	out := map[string][]string{}
	for line := range strings.Lines(`fork vfork clone clone3
execve execveat
open openat openat2 creat
accept accept4
dup dup2 dup3
chmod fchmod fchmodat fchmodat2
chown fchown lchown fchownat
read pread64 readv preadv preadv2
write pwrite64 writev pwritev pwritev2
send sendto sendmsg sendmmsg
recv recvfrom recvmsg recvmmsg
select _newselect pselect6 poll ppoll
rename renameat renameat2
unlink unlinkat
mkdir mkdirat
rmdir unlinkat
link linkat
symlink symlinkat
mknod mknodat
readlink readlinkat
stat lstat fstat newfstatat statx
access faccessat faccessat2
setuid setreuid setresuid
setgid setregid setresgid
wait4 waitid waitpid
pipe pipe2
getdents getdents64
kill tkill tgkill
utime utimes utimensat futimesat
nanosleep clock_nanosleep
time gettimeofday clock_gettime
exit exit_group
getrlimit prlimit64
setrlimit prlimit64
chdir fchdir
truncate ftruncate
inotify_init inotify_init1
epoll_create epoll_create1
epoll_wait epoll_pwait epoll_pwait2
signalfd signalfd4
eventfd eventfd2
umount umount2
mmap mmap2
sigaction rt_sigaction signal
sigprocmask rt_sigprocmask
`) {
		f := strings.Fields(line)
		for _, name := range f {
			for _, other := range f {
				if !slices.Contains(out[name], other) {
					out[name] = append(out[name], other)
				}
			}
		}
	}
	// One direction only: what reads a socket can be read with read.
	for name, more := range map[string]string{"recv": "read", "recvfrom": "read", "send": "write", "sendto": "write"} {
		out[name] = append(slices.Clone(out[name]), more)
	}
	return out
}()

// ways gives all calls that serve as a name, or none where the name is a number
// that nobody could name or no call of this architecture and of no equivalent.
func ways(name string, known func(string) bool) []string {
	var out []string
	for _, n := range append([]string{name}, alike[name]...) {
		if known(n) && !slices.Contains(out, n) {
			out = append(out, n)
		}
	}
	return out
}

// readPayloads reads lines "number: call,call,", some without the colon. left counts names that are no
// call here and are left out of the judgement, as the data's README says.
func readPayloads(file string, known func(string) bool) (all []payload, left int, err error) {
	err = lines(file, func(line string) {
		name, calls, ok := strings.Cut(line, " ")
		if !ok {
			return
		}
		p := payload{name: strings.TrimSuffix(name, ":")}
		for c := range strings.SplitSeq(calls, ",") {
			if c = strings.TrimSpace(c); c == "" {
				continue
			}
			n := ways(c, known)
			if len(n) == 0 {
				left++
				continue
			}
			p.needs = append(p.needs, n)
		}
		all = append(all, p)
	})
	return all, left, err
}

// readCVEs reads lines "CVE;__x64_sys_call, __x64_sys_call". Each of the calls
// reaches the defect, so it is stopped only when all are gone.
func readCVEs(file string, known func(string) bool) (all []payload, err error) {
	err = lines(file, func(line string) {
		name, calls, ok := strings.Cut(line, ";")
		if !ok {
			return
		}
		var any []string
		for c := range strings.SplitSeq(calls, ",") {
			if c = strings.TrimPrefix(strings.TrimSpace(c), "__x64_sys_"); known(c) {
				any = append(any, c)
			}
		}
		all = append(all, payload{name, [][]string{any}})
	})
	return all, err
}

func lines(file string, each func(string)) error {
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	scan := bufio.NewScanner(bytes.NewReader(raw))
	for scan.Scan() {
		each(strings.TrimSpace(scan.Text()))
	}
	return scan.Err()
}

// stopped tells whether one thing that the payload needs is gone.
func (p payload) stopped(allowed func(string) bool) bool {
	for _, any := range p.needs {
		if len(any) > 0 && !slices.ContainsFunc(any, allowed) {
			return true
		}
	}
	return false
}

// share is how many of them are stopped, in percent of those that need
// anything that can be judged.
func share(all []payload, allowed func(string) bool) (percent float64, stopped, of int) {
	for _, p := range all {
		if len(p.needs) == 0 {
			continue
		}
		of++
		if p.stopped(allowed) {
			stopped++
		}
	}
	return 100 * float64(stopped) / float64(max(of, 1)), stopped, of
}

// decisive lists the calls whose absence would stop most of the payloads that
// are not stopped, one after the other until enough are: where to dig.
func decisive(all []payload, allowed func(string) bool, enough float64) []string {
	gone := map[string]bool{}
	left := func(name string) bool { return allowed(name) && !gone[name] }
	var out []string
	for range 12 {
		if percent, _, _ := share(all, left); percent >= enough {
			return out
		}
		count := map[string]int{}
		ways := map[string][]string{}
		for _, p := range all {
			if p.stopped(left) {
				continue
			}
			seen := map[string]bool{}
			for _, any := range p.needs {
				var open []string
				for _, n := range any {
					if left(n) {
						open = append(open, n)
					}
				}
				slices.Sort(open)
				key := strings.Join(open, "/")
				if !seen[key] {
					seen[key], ways[key] = true, open
					count[key]++
				}
			}
		}
		best := ""
		for _, key := range slices.Sorted(maps.Keys(count)) {
			if best == "" || count[key] > count[best] {
				best = key
			}
		}
		if best == "" {
			return out
		}
		out = append(out, best)
		for _, n := range ways[best] {
			gone[n] = true
		}
	}
	return out
}

// yardsticks are the published lists, which are no part of this project.
type yardsticks struct {
	payloads, cves []payload
	left           int
}

// readYardsticks gives nil where no directory is named.
func readYardsticks(dir string, known func(string) bool) (*yardsticks, error) {
	if dir == "" {
		return nil, nil
	}
	y := new(yardsticks)
	var err error
	if y.payloads, y.left, err = readPayloads(filepath.Join(dir, "payload-syscalls.txt"), known); err != nil {
		return nil, fmt.Errorf("read payloads: %w", err)
	}
	if y.cves, err = readCVEs(filepath.Join(dir, "cve-syscalls.txt"), known); err != nil {
		return nil, fmt.Errorf("read CVEs: %w", err)
	}
	return y, nil
}
