package observe

import (
	"maps"
	"slices"
	"strings"
	"testing"
)

// A call is of the program that its process runs at that moment.
func TestTraceBelongsToPrograms(t *testing.T) {
	for claim, row := range map[string]struct {
		trace string
		want  map[string]string // program: calls
	}{
		"what came before the command does not count": {`
10 execve("/usr/bin/setpriv", ["setpriv"], 0x1 /* 3 vars */) = 0
10 prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE) = 0
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 brk(NULL) = 0x1
`, map[string]string{"/bin/sh": "brk"}},
		"a child runs what its parent ran, until it executes": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 clone(child_stack=NULL, flags=SIGCHLD) = 11
11 close(3) = 0
11 execve("/bin/ls", ["ls"], 0x1) = 0
11 getdents64(3, 0x1, 100) = 0
10 wait4(-1, 0x1, 0, NULL) = 11
`, map[string]string{"/bin/sh": "clone close execve wait4", "/bin/ls": "getdents64"}},
		"a child that is seen before its parent's call returned": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 vfork( <unfinished ...>
11 dup2(3, 1) = 1
11 execve("/bin/ls", ["ls"], 0x1 <unfinished ...>
10 <... vfork resumed>) = 11
11 <... execve resumed>) = 0
11 statx(1) = 0
`, map[string]string{"/bin/sh": "dup2 execve vfork", "/bin/ls": "statx"}},
		"an execution that failed changes nothing": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 execve("/bin/none", ["none"], 0x1) = -1 ENOENT (No such file or directory)
10 brk(NULL) = 0x1
`, map[string]string{"/bin/sh": "brk execve"}},
		"a thread that executes becomes the process": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 clone(child_stack=0x1, flags=CLONE_THREAD) = 11
11 execve("/bin/ls", ["ls"], 0x1 <unfinished ...>
10 +++ superseded by execve in pid 11 +++
10 <... execve resumed>) = 0
10 statx(1) = 0
`, map[string]string{"/bin/sh": "clone execve", "/bin/ls": "statx"}},
		"a call that is going on counts": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 pause( <unfinished ...>
10 restart_syscall(<... resuming interrupted nanosleep ...>) = 0
`, map[string]string{"/bin/sh": "pause restart_syscall"}},
		"what strace prints of a process that is killed is no call": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 syscall_0xfffffffffffffffe(0x1, 0x9 <unfinished ...>
10 brk(NULL) = 0x1
`, map[string]string{"/bin/sh": "brk"}},
		"an execution whose path could not be read is of no known program": {`
10 execve("/bin/sh", ["sh"], 0x1) = 0
10 execve(0x5574, 0x7ffe, 0x7ffe) = 0
10 statx(1) = 0
`, map[string]string{"/bin/sh": "execve", Unreadable: "statx"}},
	} {
		t.Run(claim, func(t *testing.T) {
			got, err := ParseTrace(strings.NewReader(row.trace), "/bin/sh")
			if err != nil {
				t.Fatal(err)
			}
			for program, want := range row.want {
				if calls := strings.Join(slices.Sorted(maps.Keys(got.Seen[program])), " "); calls != want {
					t.Errorf("%s made %q, want %q", program, calls, want)
				}
			}
			if len(got.Seen) != len(row.want) {
				t.Errorf("programs %v", slices.Sorted(maps.Keys(got.Seen)))
			}
		})
	}
	if _, err := ParseTrace(strings.NewReader("10 execve(\"/bin/ls\", [], 0x1) = 0\n"), "/bin/sh"); err == nil {
		t.Error("a trace without the command is no error")
	}
	if _, err := ParseTrace(strings.NewReader("10 execve(\"/bin/sh\", [], 0x1) = 0\n12 brk(0) = 0\n"), "/bin/sh"); err == nil {
		t.Error("a process without a parent is no error")
	}
}

func FuzzParseTrace(f *testing.F) {
	f.Add("10 execve(\"/bin/sh\", [], 0x1) = 0\n10 clone() = 11\n11 brk(0) = 0\n")
	f.Add("10 clone( <unfinished ...>\n11 clone( <unfinished ...>\n11 <... clone resumed>) = 10\n10 <... clone resumed>) = 11\n")
	f.Fuzz(func(t *testing.T, text string) {
		_, _ = ParseTrace(strings.NewReader(text), "/bin/sh")
	})
}
