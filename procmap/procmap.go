// Package procmap derives from what a container declares which programs it may
// run, in which phase and on whose behalf, and what it may write.
//
// It follows the declared command through shebang lines, launchers (env, gosu,
// tini, su …) and shell scripts to the programs that serve, and through the
// strings of those programs to what they start in turn. It reads the files of
// the image and of the operator's mounts, and runs nothing.
//
// What it guarantees: every program on a path that the script follower
// understands is in the closure, all branches that are not decided by known
// values taken. Where a command's name cannot be known the closure says so
// (WideStarting and a note); nothing is dropped silently. Time and memory are
// bounded whatever the image contains.
//
// Programs that configuration files name (supervisord, cron, Postfix, inetd and
// others) are found where package catalogue knows the application.
//
// What it does not guarantee: programs that Python, Perl, Ruby and so on start
// are only found where their path stands literally in the script; programs
// named in configuration files of other applications are not found; values
// that scripts read from files or from other programs' output are unknown.
//
// Facts: a script's interpreter line is read by the kernel up to 256 bytes and
// with one argument at most (Linux 5.1, fs/binfmt_script.c), interpreters nest
// up to 5 deep (execve(2)). fanotify's FAN_OPEN_EXEC_PERM fires for the file
// named, for a script's interpreter and for the ELF interpreter
// (fanotify_mark(2)): all of them are entries.
package procmap

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// Closure is what one container may run and write.
type Closure struct {
	// Processes are the files that may be executed: programs, scripts that are
	// executed by name, their interpreters, ELF interpreters. Sorted by path.
	Processes []plan.Process `json:"processes"`
	// Main are the programs that serve.
	Main []string `json:"main"`
	// Writable are the trees and files that stay writable. Sorted by path.
	Writable []plan.Writable `json:"writable"`
	// Listen are ports that known applications listen on whatever is exposed. Sorted.
	Listen []plan.Listen `json:"listen,omitempty"`
	// Wide: the main process is a shell or an interpreter without a script.
	Wide       bool   `json:"wide,omitempty"`
	WideReason string `json:"wide_reason,omitempty"`
	// WideStarting: a script runs a command that cannot be known beforehand, so
	// that any program of the image's layers may run until the container serves.
	WideStarting       bool   `json:"wide_starting,omitempty"`
	WideStartingReason string `json:"wide_starting_reason,omitempty"`
	// Unrunnable is the writable mount that the declared program lies on, where
	// nothing may be executed; empty: it does not.
	Unrunnable string `json:"unrunnable,omitempty"`
	// Analyse are the ELF programs of the application and the health check
	// whose system calls count.
	Analyse []Program `json:"analyse"`
	// ServesUnprivileged: whatever runs once the container serves was started
	// by a user other than root, or after a launcher (gosu, setpriv …) had
	// changed to one, and so without any of root's capabilities. It does not
	// count setuid programs that were not seen to be run, file capabilities, the
	// health check (which the engine starts as the declared user), an
	// operator's exec, nor a user namespace that a program makes for itself.
	ServesUnprivileged bool `json:"serves_unprivileged,omitempty"`
	// SettledEnv: every program starts with the declared values of the variables
	// that say where libraries find their configuration (see settings), as far as
	// scripts, launchers and crontabs can change them. What programs do to their
	// own environment is not seen.
	SettledEnv bool        `json:"settled_env,omitempty"`
	Notes      []plan.Note `json:"notes,omitempty"`
}

// Program is one ELF program to be analysed.
type Program struct {
	Path string `json:"path"`
	// Host is where the file is when an operator's mount provides it; empty: in the root filesystem.
	Host    string          `json:"host,omitempty"`
	Phase   record.Phase    `json:"phase"`
	Origins []record.Origin `json:"origins"`
	// Args are all command lines that it is started with, apart from those of
	// an operator; empty: not all are known.
	Args [][]string `json:"args,omitempty"`
	// Loads: it loads libraries that it makes at run time.
	Loads bool `json:"loads,omitempty"`
}

// FormatError is the main program's when the kernel could not start it
// although it is there.
type FormatError struct {
	Path   string
	Reason string
	Way    string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("run %s: exec format error: %s", e.Path, e.Reason)
}

// Remedy says what to do about it.
func (e *FormatError) Remedy() string { return e.Way }

// Derive works out the closure of a container. An error means that the
// container cannot work as declared (a FormatError) or that ctx is done. A
// command that does not exist is not an error but a note: runc says it better.
func Derive(ctx context.Context, root *rootfs.Root, d *declared.Declared) (*Closure, error) {
	b := newBuilder(ctx, root, d)
	defer b.view.close()
	if err := b.application(); err != nil {
		return nil, err
	}
	b.healthCheck()
	b.operatorMounts()
	b.throughShell()
	c := b.closure()
	c.Writable = b.writable()
	c.Notes = b.notes
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("derive processes: %w", err)
	}
	return c, nil
}

const (
	maxOrigins = 8
	maxNotes   = 64
	maxDepth   = 32      // programs started by programs
	maxWork    = 200_000 // nodes of scripts looked at
	maxRuns    = 4096    // distinct command lines followed
	maxSource  = 1 << 20 // bytes of one script
)

type processKey struct {
	path     string
	identity record.Identity
}

type builder struct {
	ctx  context.Context
	view *view
	d    *declared.Declared

	processes map[processKey]*plan.Process
	programs  map[processKey]*Program
	args      map[processKey]commandLines
	main      map[string]bool
	seen      map[string]bool
	noted     map[string]bool
	notes     []plan.Note
	targets   []target
	wide      string
	starting  string // why any program may run while starting

	unrunnable string // the writable mount that the first program lies on
	work       int
	runs       int
	checking   bool // the health check is followed
	known      int  // facts of the catalogue
	listens    []plan.Listen
	// rootServes: what runs once the container serves may have root's capabilities.
	rootServes bool
	// unsettled: a program may start with a variable of settings that is not as declared.
	unsettled bool
	// accounts: a script may change the user database.
	accounts bool
	// byShell are programs that one which serves can only start through
	// /bin/sh: followed to the end if the shell may serve too.
	byShell []func()
	scanned map[objectKey]scanned
}

func newBuilder(ctx context.Context, root *rootfs.Root, d *declared.Declared) *builder {
	return &builder{
		ctx: ctx, view: newView(root, d.Mounts), d: d,
		processes: map[processKey]*plan.Process{}, programs: map[processKey]*Program{}, args: map[processKey]commandLines{},
		main: map[string]bool{}, seen: map[string]bool{}, noted: map[string]bool{}, scanned: map[objectKey]scanned{},
	}
}

func (b *builder) note(dim record.Dimension, format string, args ...any) {
	text := clip(fmt.Sprintf(format, args...), 300)
	if b.noted[text] {
		return
	}
	b.noted[text] = true
	switch {
	case len(b.notes) < maxNotes:
		b.notes = append(b.notes, plan.Note{Dimension: dim, Text: text})
	case len(b.notes) == maxNotes:
		b.notes = append(b.notes, plan.Note{Dimension: dim, Text: "more notes were left out"})
	}
}

// clip shortens s to n bytes and keeps it printable.
func clip(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case r == 0 || r == globChar:
			return '…'
		case r < ' ' || r == 0x7f:
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "�"))
	if len(s) <= n {
		return s
	}
	for n > 0 && s[n]&0xc0 == 0x80 {
		n--
	}
	return s[:n] + "…"
}

func addOrigins(list []record.Origin, more ...record.Origin) []record.Origin {
	for _, o := range more {
		if len(list) >= maxOrigins {
			break
		}
		if !slices.Contains(list, o) {
			list = append(list, o)
		}
	}
	return list
}

// allow enters a file into the closure.
func (b *builder) allow(o *object, r *run, phase record.Phase, origins ...record.Origin) *plan.Process {
	if o.mount != nil {
		origins = append(slices.Clip(origins), o.mount.m.Origin)
	}
	k := processKey{o.path, r.identity}
	p := b.processes[k]
	if p == nil {
		p = &plan.Process{Path: o.path, Phase: phase, Identity: r.identity, Mounted: o.mount != nil}
		b.processes[k] = p
	}
	p.Phase = p.Phase.Widest(phase)
	p.Loader = false
	p.Origins = addOrigins(p.Origins, origins...)
	return p
}

// loader enters the ELF interpreter of a program. It is not run by itself
// unless something declared does.
func (b *builder) loader(o *object, r *run, phase record.Phase, origin record.Origin) {
	p := b.processes[processKey{o.path, r.identity}]
	alone := p == nil || p.Loader
	b.allow(o, r, phase, origin).Loader = alone
}

// analyse enters an ELF program whose calls count.
func (b *builder) analyse(o *object, r *run, phase record.Phase, origins ...record.Origin) {
	if r.identity == record.Operator {
		return
	}
	if r.identity == record.Application && phase == record.Serving && !r.unprivileged {
		b.rootServes = true
	}
	k := processKey{path: o.path}
	p := b.programs[k]
	if p == nil {
		p = &Program{Path: o.path, Host: o.host(), Phase: phase}
		b.programs[k] = p
	}
	b.startedWith(k, r)
	p.Phase = p.Phase.Widest(phase)
	p.Origins = addOrigins(p.Origins, origins...)
}

// startedWith notes a command line of a program. One that was found as a string
// in another program may come with any arguments.
func (b *builder) startedWith(k processKey, r *run) {
	const most = 16
	b.unsettled = b.unsettled || unsettled(r.vars, b.d.Process.Env)
	list := b.args[k]
	known := r.helper == 0 && r.input == nil && !slices.ContainsFunc(r.argv, func(s string) bool { return strings.ContainsAny(s, wildcards) })
	switch {
	case list.any:
	case !known || len(list.argv) >= most:
		list = commandLines{any: true}
	case !slices.ContainsFunc(list.argv, func(a []string) bool { return slices.Equal(a, r.argv) }):
		list.argv = append(list.argv, slices.Clone(r.argv))
	}
	b.args[k] = list
}

// commandLines are those of one program, as far as they are known.
type commandLines struct {
	argv [][]string
	any  bool
}

// application follows the declared process.
func (b *builder) application() error {
	p := b.d.Process
	if len(p.Args) == 0 {
		b.note(record.Processes, "no command is declared")
		return nil
	}
	origins := p.Origins
	if len(origins) > len(p.Args) {
		origins = origins[:len(p.Args)]
	}
	var distinct []record.Origin
	distinct = addOrigins(distinct, origins...)
	if len(distinct) == 0 {
		distinct = []record.Origin{{Source: record.FromEngine, At: "config.json process.args", Text: clip(strings.Join(p.Args, " "), 120)}}
	}
	cwd := p.Cwd
	if !path.IsAbs(cwd) {
		cwd = "/"
	}
	r := &run{
		argv: literals(p.Args), vars: environment(p.Env), cwd: cwd,
		identity: record.Application, phase: record.Serving, chain: true, serves: true, first: true,
		origins: distinct,
	}
	r.uid, r.unprivileged = b.user()
	return b.follow(r)
}

// healthCheck follows the declared check under its own identity.
func (b *builder) healthCheck() {
	// However large the application is: the check is followed to its own end.
	b.work, b.runs, b.checking = 0, 0, true
	defer func() { b.checking = false }()
	args := b.d.HealthCheck
	if len(args) == 0 || args[0] == "" || args[0] == "NONE" {
		return
	}
	origins := b.d.HealthCheckOrigin
	if len(origins) == 0 {
		origins = []record.Origin{{Source: record.FromImage, At: "config.Healthcheck", Text: clip(strings.Join(args, " "), 120)}}
	}
	cwd := b.d.Process.Cwd
	if !path.IsAbs(cwd) {
		cwd = "/"
	}
	r := &run{
		argv: literals(args), vars: environment(b.d.Process.Env), cwd: cwd,
		identity: record.HealthCheck, phase: record.Serving, origins: origins,
	}
	r.uid, r.unprivileged = b.user()
	// Whatever is wrong with a check, the container starts: it is noted.
	if err := b.follow(r); err != nil {
		b.note(record.Processes, "health check: %v", err)
	}
}

// operatorMounts enters what an operator's read-only mounts bring, and what
// writable ones bring where the operator said exec. Shells and interpreters
// are left out: they are entered when something declared runs them. Scripts
// that nothing declared runs may run while starting only: to keep their
// interpreter for good would give a shell to whoever breaks in.
func (b *builder) operatorMounts() {
	const most = 512
	for _, m := range b.view.mounts {
		if m.m.Origin.Source != record.FromOperator && m.m.Origin.Source != record.FromCompose {
			continue
		}
		if !m.runnable() || !m.bound() {
			continue
		}
		if !m.m.Exec && b.view.writableElsewhere(m) {
			b.note(record.Processes, "mount %s: its programs are not entered, since another mount makes them writable", m.dest)
			continue
		}
		left := most
		names, whole := b.view.executables(m.dest, &left)
		if !whole {
			b.note(record.Processes, "mount %s: only %d of its programs were entered", m.dest, len(names))
		}
		for _, name := range names {
			o, err := b.view.stat(name)
			if err != nil || o.mount != m || isShell(path.Base(name)) || isInterpreter(path.Base(name)) {
				continue
			}
			if b.processes[processKey{o.path, record.Application}] != nil {
				continue // something declared runs it, and says in which phase
			}
			r := &run{identity: record.Application, phase: record.Serving, depth: maxDepth - 3, origins: []record.Origin{m.m.Origin},
				argv: []string{o.path}, vars: environment(b.d.Process.Env), cwd: "/",
				unprivileged: true} // as far as whoever runs it is
			if !b.isELF(o) {
				r.phase = record.Starting
			}
			if err := b.follow(r); err != nil {
				b.note(record.Processes, "mount %s: %v", m.dest, err)
			}
		}
	}
}

func (b *builder) closure() *Closure {
	c := &Closure{Processes: []plan.Process{}, Main: []string{}, Analyse: []Program{}}
	for _, p := range b.processes {
		p.Main = p.Identity == record.Application && b.main[p.Path]
		c.Processes = append(c.Processes, *p)
	}
	slices.SortFunc(c.Processes, func(x, y plan.Process) int {
		if n := strings.Compare(x.Path, y.Path); n != 0 {
			return n
		}
		return strings.Compare(string(x.Identity), string(y.Identity))
	})
	for m := range b.main {
		c.Main = append(c.Main, m)
	}
	slices.Sort(c.Main)
	for k, p := range b.programs {
		if list := b.args[k]; !list.any && b.wide == "" && b.starting == "" {
			p.Args = list.argv
		}
		c.Analyse = append(c.Analyse, *p)
	}
	slices.SortFunc(c.Analyse, func(x, y Program) int { return strings.Compare(x.Path, y.Path) })
	c.Listen = b.listens
	slices.SortFunc(c.Listen, func(x, y plan.Listen) int { return strings.Compare(x.String(), y.String()) })
	c.SettledEnv = !b.unsettled && b.wide == "" && b.starting == ""
	c.Unrunnable = b.unrunnable
	if b.wide != "" {
		c.Wide, c.WideReason = true, b.wide
	}
	if b.starting != "" {
		c.WideStarting, c.WideStartingReason = true, b.starting
	}
	c.ServesUnprivileged = len(c.Main) > 0 && !b.rootServes && !c.Wide && !c.WideStarting
	return c
}
