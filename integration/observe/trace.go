package observe

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
)

// Trace is what strace saw, by program.
type Trace struct {
	// Seen is, by the path that was executed and the call's name, one line that
	// shows it.
	Seen map[string]map[string]string
	// Executed are the paths in the order of their first execution.
	Executed []string
}

// Unreadable stands for the program of an execution whose path strace did not
// print.
const Unreadable = "?"

var (
	lineOf   = regexp.MustCompile(`^(\d+) +(.*)$`)
	callOf   = regexp.MustCompile(`^([a-z_][a-z0-9_]*)\(`)
	execOf   = regexp.MustCompile(`^execve(?:at)?\((?:[A-Z_0-9]+(?:<[^>]*>)?, )?"([^"]*)"`)
	resumed  = regexp.MustCompile(`^<\.\.\. ([a-z_0-9]+) resumed>`)
	threadOf = regexp.MustCompile(`^\+\+\+ superseded by execve in pid (\d+) \+\+\+`)
	valueOf  = regexp.MustCompile(`= (-?\d+)(?: |$)`)
	children = map[string]bool{"clone": true, "clone3": true, "fork": true, "vfork": true}
)

// process is what is known of one while a trace is read.
type process struct {
	program   string
	pending   string // of an execve that has not returned
	preparing bool   // it is unshare, before the command
	forking   string // the program that a fork was called by which has not returned
}

// ParseTrace reads what "strace -f -o" wrote. start is the path whose first
// execution begins the part that counts: what came before is strace's and the
// preparation's; "" is whatever unshare executes. A process runs what it
// executed last, or what its parent ran.
func ParseTrace(r io.Reader, start string) (*Trace, error) {
	t := &Trace{Seen: map[string]map[string]string{}}
	procs := map[int]*process{}
	early := map[int][]string{} // lines of children whose parent's call has not returned yet
	scan := bufio.NewScanner(r)
	scan.Buffer(nil, 4<<20)
	for scan.Scan() {
		m := lineOf.FindStringSubmatch(scan.Text())
		if m == nil {
			continue
		}
		pid, err := strconv.Atoi(m[1])
		if err != nil {
			return nil, fmt.Errorf("parse trace: %w", err)
		}
		if procs[pid] == nil && len(procs) > 0 {
			early[pid] = append(early[pid], m[2])
			if len(early[pid]) > 1<<16 {
				return nil, fmt.Errorf("parse trace: process %d has no parent", pid)
			}
			continue
		}
		t.line(procs, early, pid, m[2], start)
	}
	if err := scan.Err(); err != nil {
		return nil, fmt.Errorf("parse trace: %w", err)
	}
	for pid, lines := range early { // the parent was killed before it heard of the child
		if p := adopted(procs); p != nil {
			procs[pid] = &process{program: p.forking}
			for _, l := range lines {
				t.line(procs, nil, pid, l, start)
			}
			continue
		}
		return nil, fmt.Errorf("parse trace: process %d has no parent", pid)
	}
	if len(t.Executed) == 0 {
		return nil, fmt.Errorf("parse trace: %s was not executed", cmp.Or(start, "nothing"))
	}
	return t, nil
}

func adopted(procs map[int]*process) *process {
	var found *process
	for _, p := range procs {
		if p.forking != "" {
			if found != nil && found.forking != p.forking {
				return nil
			}
			found = p
		}
	}
	return found
}

func (t *Trace) line(procs map[int]*process, early map[int][]string, pid int, text, start string) {
	p := procs[pid]
	if p == nil {
		p = &process{}
		procs[pid] = p
	}
	name := ""
	if m := callOf.FindStringSubmatch(text); m != nil {
		name = m[1]
		// strace prints a negative number for a process that is killed: no call.
		if p.program != "" && !strings.HasPrefix(name, "syscall_0xfffffff") {
			t.add(p.program, name, text)
		}
		if m := execOf.FindStringSubmatch(text); m != nil {
			p.pending = m[1]
		} else if strings.HasPrefix(name, "execve") {
			p.pending = Unreadable
		}
		if children[name] {
			p.forking = p.program
		}
	} else if m := threadOf.FindStringSubmatch(text); m != nil { // another thread's execution is this one's from here on
		if n, _ := strconv.Atoi(m[1]); procs[n] != nil {
			p.pending = procs[n].pending
		}
	} else if m := resumed.FindStringSubmatch(text); m != nil {
		name = m[1]
	}
	if name == "" || strings.Contains(text, "<unfinished ...>") {
		return
	}
	value := -1
	if m := valueOf.FindAllStringSubmatch(text, -1); m != nil {
		value, _ = strconv.Atoi(m[len(m)-1][1])
	}
	switch {
	case strings.HasPrefix(name, "execve") && value == 0 && p.pending != "":
		if p.program != "" || p.pending == start || start == "" && p.preparing {
			p.program = p.pending
			if t.Seen[p.program] == nil {
				t.Executed = append(t.Executed, p.program)
				t.Seen[p.program] = map[string]string{}
			}
		}
		p.preparing = strings.HasSuffix(p.pending, "/unshare") && p.program == ""
		p.pending = ""
	case children[name] && value > 0:
		parent := p.forking
		p.forking = ""
		procs[value] = &process{program: parent}
		lines := early[value]
		delete(early, value)
		for _, l := range lines {
			t.line(procs, early, value, l, start)
		}
	}
}

func (t *Trace) add(program, name, line string) {
	if t.Seen[program][name] == "" {
		t.Seen[program][name] = line
	}
}
