package procmap

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/procmap/elfstrings"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// run is one execution of a program to be followed.
type run struct {
	argv     []string         // elements may hold unknown
	vars     map[string]value // the environment
	cwd      string
	identity record.Identity
	// phase holds for the program and all it runs, unless chain is set.
	phase record.Phase
	// chain: this is the main process, or what it becomes: a script on it
	// decides by its own flow which commands only start.
	chain bool
	// serves: it may be the program that serves.
	serves bool
	// first: runc itself starts it.
	first bool
	// input is what it reads from standard input, nil if that is the container's own.
	input   *input
	origins []record.Origin
	// uid is what "id -u" prints in it, empty if that is not known.
	uid string
	// unprivileged: for certain it has none of root's capabilities.
	unprivileged bool
	depth        int
	scripts      int // interpreters nested by "#!" lines
	helper       int // found by string, so many steps from a declared command
}

type input struct {
	text  string // of a here-document
	known bool
	lines []string // or names that are known to arrive line by line
}

func (r *run) child(argv []string, origins ...record.Origin) *run {
	c := *r
	c.argv, c.depth, c.first, c.scripts = argv, r.depth+1, false, 0
	if len(origins) > 0 {
		c.origins = origins
	}
	return &c
}

// dynamic records a command that cannot be known.
func (b *builder) dynamic(r *run, what string) {
	at := "the command line"
	if len(r.origins) > 0 {
		at = r.origins[0].At
	}
	if r.identity != record.Application {
		b.note(record.Processes, "dynamic command at %s: %s", at, clip(what, 120))
		return
	}
	b.note(record.Processes, "dynamic command at %s: %s; until the container serves any program of the image may run", at, clip(what, 120))
	if b.starting == "" {
		b.starting = fmt.Sprintf("dynamic command at %s: %s", at, clip(what, 120))
	}
}

// follow enters what a command line runs. The error is for the first program
// only, and means that the kernel would not start it.
func (b *builder) follow(r *run) error {
	if b.ctx.Err() != nil {
		return nil
	}
	if len(r.argv) == 0 {
		return nil
	}
	if r.depth > maxDepth {
		b.note(record.Processes, "%s: programs that start programs are followed %d deep", clip(r.argv[0], 80), maxDepth)
		return nil
	}
	key := fmt.Sprintf("%s\x02%s\x02%v%v%v%v%s\x02%s\x02%s", r.phase, r.identity, r.chain, r.serves, r.input != nil, r.unprivileged, r.uid, r.cwd, strings.Join(r.argv, "\x02"))
	if b.seen[key] {
		return nil
	}
	b.seen[key] = true
	if b.runs++; b.runs > maxRuns {
		if b.runs == maxRuns+1 {
			b.exhausted("more command lines than are followed")
		}
		return nil
	}
	name := r.argv[0]
	if !known(name) {
		return b.followPattern(r)
	}
	if name == "" {
		return nil
	}
	found := false
	var first error
	for _, search := range searchPaths(r.vars) {
		o := b.view.lookPath(name, search, r.cwd)
		if o == nil {
			continue
		}
		found = true
		if err := b.object(o, r); err != nil && first == nil {
			first = err
		}
	}
	if !found {
		b.notFound(r)
	}
	return first
}

// searchPaths gives the possible values of PATH without their unknown parts.
func searchPaths(vars map[string]value) []string {
	v, ok := vars["PATH"]
	if !ok {
		return []string{defaultPath}
	}
	var out []string
	for _, t := range v.texts() {
		dirs := slices.DeleteFunc(strings.Split(t, ":"), func(d string) bool { return !known(d) })
		if s := strings.Join(dirs, ":"); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	if len(out) > 4 {
		out = out[:4]
	}
	return out
}

// followPattern runs every program that a partly known path matches.
func (b *builder) followPattern(r *run) error {
	name := r.argv[0]
	if strings.Contains(strings.Trim(name, wildcards), "/") && strings.Trim(path.Dir(name), wildcards+"/.") != "" {
		var matches int
		for _, p := range b.view.glob(name, r.cwd, 64) {
			if o, err := b.view.stat(p); err != nil || !o.executable() {
				continue
			}
			matches++
			c := *r
			c.argv = append([]string{p}, r.argv[1:]...)
			if err := b.follow(&c); err != nil {
				return err
			}
		}
		if matches > 0 {
			b.note(record.Processes, "%s: every program that matches %s is allowed", r.origins[0].At, name)
			return nil
		}
	}
	b.dynamic(r, strings.Join(r.argv, " "))
	return nil
}

func (b *builder) notFound(r *run) {
	name := r.argv[0]
	at := ""
	if len(r.origins) > 0 {
		at = r.origins[0].At + ": "
	}
	if strings.Contains(name, "/") {
		p := name
		if !path.IsAbs(p) {
			p = path.Join("/", r.cwd, p)
		}
		o, err := b.view.stat(p)
		switch {
		case err == nil && o.dir():
			b.note(record.Processes, "%s%s is a directory", at, name)
			return
		case err == nil:
			b.note(record.Processes, "%s%s is not executable", at, name)
			return
		}
	}
	b.note(record.Processes, "%s%s: no such program in the image", at, name)
}

// object enters a file that is executed.
func (b *builder) object(o *object, r *run) error {
	if o.mount != nil && !o.mount.runnable() {
		b.note(record.Processes, "%s is on the writable mount %s, where nothing may be executed: mount it read-only, or say exec", o.path, o.mount.dest)
		if r.first {
			b.unrunnable = o.mount.dest
		}
		return nil
	}
	f, err := b.view.open(o)
	if err != nil {
		b.note(record.Processes, "open %s: %v", o.path, err)
		return nil
	}
	defer f.Close()
	head := make([]byte, shebangSize)
	n, err := f.ReadAt(head, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		b.note(record.Processes, "read %s: %v", o.path, err)
		return nil
	}
	head = head[:n]
	switch {
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return b.elf(o, f, r)
	case bytes.HasPrefix(head, []byte("#!")):
		return b.script(o, head, r)
	case r.first:
		return &FormatError{Path: o.path, Reason: "it is neither an ELF program nor a script with a #! line",
			Way: "put #!/bin/sh (or its interpreter) on the first line of " + o.path + ", with nothing before it, not even a byte order mark"}
	case bytes.IndexByte(head, 0) >= 0:
		b.note(record.Processes, "%s: no format that Linux executes", o.path)
		return nil
	}
	// execvp(3) and every shell run it with sh.
	b.allow(o, r, b.scriptPhase(r), r.origins...)
	c := r.child(append([]string{"/bin/sh", o.as}, r.argv[1:]...), record.Origin{Source: record.FromFile, At: o.path, Text: "text without a #! line: run by sh"})
	return b.follow(c)
}

func (b *builder) begins(o *object, with string) bool {
	f, err := b.view.open(o)
	if err != nil {
		return false
	}
	defer f.Close()
	head := make([]byte, len(with))
	_, err = f.ReadAt(head, 0)
	return err == nil && string(head) == with
}

func (b *builder) isELF(o *object) bool    { return b.begins(o, "\x7fELF") }
func (b *builder) isScript(o *object) bool { return b.begins(o, "#!") }

// scriptPhase is the phase of a script's own exec: it is opened once, when the
// chain reaches it.
func (b *builder) scriptPhase(r *run) record.Phase {
	if r.chain {
		return record.Starting
	}
	return r.phase
}

// script enters a file with a #! line, and what it runs.
func (b *builder) script(o *object, head []byte, r *run) error {
	s, ok := parseShebang(head)
	fail := func(reason, way string) error {
		if r.first {
			return &FormatError{Path: o.path, Reason: reason, Way: way}
		}
		b.note(record.Processes, "%s: %s", o.path, reason)
		return nil
	}
	b.allow(o, r, b.scriptPhase(r), r.origins...)
	switch {
	case !ok:
		return fail("its #! line names no interpreter", "name the interpreter on the first line of "+o.path+", for example #!/bin/sh")
	case s.CRLF:
		return fail(fmt.Sprintf("its #! line ends in a carriage return, so that the interpreter would be %q", s.Interpreter+"\r"),
			"save "+o.path+" with Unix line endings (dos2unix), and tell git to keep them: *.sh text eol=lf")
	case r.scripts >= 5: // execve(2): ELOOP
		return fail("more than five scripts are each other's interpreters", "name a program on the first line of "+o.path)
	}
	interp := s.Interpreter
	if !path.IsAbs(interp) {
		interp = path.Join("/", r.cwd, interp)
	}
	p, err := b.view.stat(interp)
	if err != nil || !p.executable() {
		return fail(fmt.Sprintf("its interpreter %s is not in the image", s.Interpreter),
			fmt.Sprintf("install %s in the image, or change the first line of %s", s.Interpreter, o.path))
	}
	argv := []string{interp}
	if s.Argument != "" {
		argv = append(argv, literals([]string{s.Argument})...)
	}
	argv = append(append(argv, o.as), r.argv[1:]...)
	line := "#!" + s.Interpreter
	if s.Argument != "" {
		line += " " + s.Argument
	}
	c := *r
	c.argv = argv
	c.scripts++
	c.depth++
	c.origins = addOrigins([]record.Origin{{Source: record.FromScript, At: o.path + ":1", Text: clip(line, 120)}}, r.origins...)
	return b.object(p, &c)
}

// elf enters an ELF program and what it runs.
func (b *builder) elf(o *object, f io.ReaderAt, r *run) error {
	base := path.Base(o.path)
	args := r.argv[1:]
	if multicall(base) {
		applet := path.Base(r.argv[0])
		if multicall(applet) && len(args) > 0 {
			applet, args = args[0], args[1:]
		}
		base = applet
	}
	if a := path.Base(r.argv[0]); !isShell(base) && isShell(a) {
		base = a
	}
	phase := r.phase
	as := r // whose calls the program makes itself
	launch, launches := launchers[base]
	lang, interprets := interpreterOf(base)
	if r.chain && launches && !launch.stays {
		phase = record.Starting
	}
	switch {
	case launches && !launch.root:
		// Besides changing to a user it does nothing that is root's to do: what
		// matters is what it runs.
		c := *r
		c.unprivileged = true
		as = &c
	case o.st.Mode&unix.S_ISUID != 0:
		c := *r
		c.uid, c.unprivileged = "", c.unprivileged && o.st.Uid != 0
		r, as = &c, &c
	}
	if slices.Contains(accountPrograms, base) {
		b.accounts = true
	}
	var prog *elfstrings.Program
	enter := func(phase record.Phase, calls record.Phase) error {
		var err error
		prog, err = b.enter(o, f, as, phase, calls)
		return err
	}
	b.writes(base, args, r)
	switch {
	case isShell(base):
		// A login shell's name starts with a dash; its phase follows from what it runs.
		sh := *r
		sh.argv = append([]string{r.argv[0]}, args...)
		phase, calls := b.shell(o, base, &sh)
		return enter(phase, calls)
	case launches:
		if err := enter(phase, phase); err != nil {
			return err
		}
		b.launch(o, base, launch, args, r)
		return nil
	case base == "find":
		if err := enter(phase, phase); err != nil {
			return err
		}
		b.find(args, r)
		return nil
	case base == "run-parts":
		if err := enter(phase, phase); err != nil {
			return err
		}
		b.runParts(args, r)
		return nil
	case interprets:
		if err := enter(phase, phase); err != nil {
			return err
		}
		b.serve(o, r)
		b.apply(b.know(path.Join(path.Dir(o.path), base), r.argv, r), o.path, r)
		b.interpreted(o, base, lang, args, r)
		return nil
	}
	facts := b.know(path.Join(path.Dir(o.path), base), r.argv, r)
	if becomes(facts) && r.chain {
		phase = record.Starting
	}
	if err := enter(phase, phase); err != nil {
		return err
	}
	if !becomes(facts) {
		b.serve(o, r)
	}
	b.helpers(o, f, prog, r)
	b.own(o, r)
	b.apply(facts, o.path, r)
	return nil
}

func (b *builder) serve(o *object, r *run) {
	if r.serves && r.identity == record.Application {
		b.rootServes = b.rootServes || !r.unprivileged
		if len(b.main) < 64 {
			b.main[o.path] = true
		}
	}
}

// enter allows an ELF program with its ELF interpreter.
func (b *builder) enter(o *object, f io.ReaderAt, r *run, phase, calls record.Phase) (*elfstrings.Program, error) {
	b.allow(o, r, phase, r.origins...)
	dir := path.Dir(o.path)
	var names map[string]bool
	shared := sharedDir(dir)
	if !shared || phase == record.Starting {
		names = map[string]bool{}
		// What a program of a shared directory names is only believed of one that
		// a declaration runs: names like "sort" and "file" are also words.
		if r.helper == 0 || !shared {
			for _, n := range b.view.names(dir, 5000) {
				names[n] = true
			}
		}
	}
	exists := func(s string) bool { o, err := b.view.stat(s); return err == nil && o.executable() }
	p, err := b.program(o, f, names, exists)
	if err != nil {
		if r.first {
			return nil, &FormatError{Path: o.path, Reason: err.Error(), Way: "check that " + o.path + " was copied whole and is built for this machine"}
		}
		b.note(record.Processes, "%s: %v", o.path, err)
		return &elfstrings.Program{}, nil
	}
	if p.Detaches { // run by an entrypoint's script it may still be there when the container serves
		calls = record.Serving
	}
	b.analyse(o, r, calls, r.origins...)
	if p.Interpreter == "" {
		return p, nil
	}
	li, err := b.view.stat(p.Interpreter)
	if err != nil || !li.regular() {
		if r.first {
			return nil, &FormatError{Path: o.path, Reason: fmt.Sprintf("its ELF interpreter %s is not in the image", p.Interpreter),
				Way: "build " + o.path + " statically (CGO_ENABLED=0 for Go), or base the image on one with the C library it was built for (glibc and musl differ)"}
		}
		b.note(record.Processes, "%s: its ELF interpreter %s is not in the image", o.path, p.Interpreter)
		return p, nil
	}
	b.loader(li, r, phase, record.Origin{Source: record.FromFile, At: o.path, Text: "ELF interpreter of " + o.path})
	return p, nil
}

// program reads what an ELF file says it may start. Each file is read once: a
// script runs the same few programs over and over.
func (b *builder) program(o *object, f io.ReaderAt, names map[string]bool, exists func(string) bool) (*elfstrings.Program, error) {
	k := objectKey{o.root, o.name}
	had, known := b.scanned[k]
	if !known {
		had.file, had.err = elfstrings.Scan(f)
		b.scanned[k] = had
	}
	if had.err != nil {
		return nil, had.err
	}
	return had.file.Program(names, exists), nil
}

// objectKey is a file, wherever it is seen.
type objectKey struct {
	root *rootfs.Root
	name string
}

type scanned struct {
	file *elfstrings.File
	err  error
}

// sharedDir tells whether programs of many packages live in a directory: then
// a bare name among a program's strings proves little.
func sharedDir(dir string) bool {
	return slices.Contains([]string{"/usr/bin", "/bin", "/usr/sbin", "/sbin"}, dir)
}

const maxHelperSteps = 3

// helpers enters what a program's strings say that it starts.
func (b *builder) helpers(o *object, f io.ReaderAt, p *elfstrings.Program, r *run) {
	if p == nil {
		return
	}
	if r.serves && r.identity == record.Application {
		for _, s := range p.State {
			b.stateOf(o, s)
		}
		// What the configuration names there is its own too: monit's and others'.
		b.stateOf(o, "/var/lib/"+path.Base(o.path))
	}
	if !p.Starts() || r.helper >= maxHelperSteps {
		return
	}
	starting := r.phase == record.Starting && r.identity == record.Application
	via := strings.Join(slices.Concat(p.Shell, p.Exec), ", ")
	if r.identity == record.Application && len(p.Shell) > 0 {
		b.commandLines(o, p, r)
	}
	// A program that starts others through a shell alone has none to do it with
	// once the container serves.
	start := b.helper
	if r.identity == record.Application && !starting && !p.Spawns && len(p.Exec) == 0 {
		start = b.shellOnly
	}
	for _, s := range p.Paths {
		h, err := b.view.stat(s)
		if err != nil || !h.executable() || h.path == o.path {
			continue
		}
		if !starting && openEnded(h) {
			continue
		}
		start(h, r, record.Origin{Source: record.FromFile, At: o.path, Text: clip(fmt.Sprintf("string %q, imports %s", s, via), 120)})
	}
	for i, s := range p.Names {
		if i >= 64 {
			b.note(record.Processes, "%s names more than 64 programs of its directory: the rest were left out", o.path)
			break
		}
		h, err := b.view.stat(path.Join(path.Dir(o.path), s))
		if err != nil || !h.executable() || h.path == o.path || openEnded(h) {
			continue
		}
		c := *r
		if sharedDir(path.Dir(o.path)) {
			c.helper = maxHelperSteps
		}
		start(h, &c, record.Origin{Source: record.FromFile, At: o.path, Text: clip(fmt.Sprintf("string %q beside it, imports %s", s, via), 120)})
	}
}

// shellOnly enters a program that one which serves can only start through
// /bin/sh: until the container serves, unless it turns out that the shell may
// be executed for as long.
func (b *builder) shellOnly(h *object, r *run, origin record.Origin) {
	if !b.isELF(h) {
		return
	}
	c, whole := *r, *r
	c.phase = record.Starting
	b.helper(h, &c, origin)
	b.byShell = append(b.byShell, func() { b.helper(h, &whole, origin) })
}

func (b *builder) throughShell() {
	sh, err := b.view.stat("/bin/sh")
	if err != nil {
		return
	}
	for i := 0; i < len(b.byShell); i++ { // each may add to them
		if p := b.processes[processKey{sh.path, record.Application}]; p == nil || p.Phase != record.Serving {
			return
		}
		b.byShell[i]()
	}
}

// commandLines enters the shell, and what the program's strings say it lets the
// shell run: until the container serves, whatever the program's own phase. A
// server that legitimately needs a shell later has to declare it.
func (b *builder) commandLines(o *object, p *elfstrings.Program, r *run) {
	c := *r
	c.phase = record.Starting
	if sh, err := b.view.stat("/bin/sh"); err == nil && sh.executable() {
		b.helper(sh, &c, record.Origin{Source: record.FromFile, At: o.path, Text: clip("imports "+strings.Join(p.Shell, ", "), 120)})
	}
	c.helper = maxHelperSteps - 1 // and no further than what they name
	for i, name := range p.Commands {
		if i >= 64 {
			b.note(record.Processes, "%s has more than 64 command lines among its strings: the rest were left out", o.path)
			break
		}
		for _, search := range searchPaths(r.vars) {
			h := b.view.lookPath(name, search, r.cwd)
			if h == nil || h.path == o.path || openEnded(h) {
				continue
			}
			b.helper(h, &c, record.Origin{Source: record.FromFile, At: o.path,
				Text: clip(fmt.Sprintf("a command line among its strings starts with %q, imports %s", name, strings.Join(p.Shell, ", ")), 120)})
		}
	}
}

// helper enters a program found by string. Shells and interpreters are entered
// without following what they would run; a script is only entered where its
// interpreter may be, which is while starting.
func (b *builder) helper(h *object, r *run, origin record.Origin) {
	if !b.isELF(h) {
		if r.phase != record.Starting || !b.isScript(h) {
			return
		}
	}
	c := r.child([]string{h.path}, origin)
	c.chain, c.serves, c.helper = false, false, r.helper+1
	if openEnded(h) {
		if f, err := b.view.open(h); err == nil {
			defer f.Close()
			if _, err := b.enter(h, f, c, c.phase, c.phase); err != nil {
				b.note(record.Processes, "%v", err)
			}
		}
		return
	}
	if err := b.follow(c); err != nil {
		b.note(record.Processes, "%v", err)
	}
}

// launch follows what a launcher runs.
func (b *builder) launch(o *object, base string, l launcher, args []string, r *run) {
	in := l.parse(args)
	c := r.child(in.argv)
	c.uid, c.unprivileged = b.credentials(base, l, in, args, r)
	if l.many {
		c.chain, c.serves = false, r.serves
	}
	if (l.daemon || len(l.program) > 0) && c.identity == record.Application { // a daemon: it lives on
		c.phase, c.serves = record.Serving, true
	}
	if in.clear {
		c.vars = map[string]value{}
	}
	if len(in.vars) > 0 {
		vars := make(map[string]value, len(c.vars)+len(in.vars))
		for k, v := range c.vars {
			vars[k] = v
		}
		for k, v := range in.vars {
			vars[k] = scalar(v)
		}
		c.vars = vars
	}
	switch {
	case in.noneOf:
		if base == "xargs" { // echo is its default
			c.argv = []string{"echo"}
			break
		}
		return
	case in.shell != "":
		c.argv = []string{b.userShell(in), "-c", in.shell}
	case in.login:
		c.argv = append([]string{b.userShell(in)}, in.argv...)
	}
	if base == "xargs" {
		if r.input != nil && len(r.input.lines) > 0 && len(r.input.lines) <= 64 {
			c.argv = append(slices.Clone(c.argv), r.input.lines...)
		} else {
			c.argv = append(slices.Clone(c.argv), unknown)
		}
		c.input = &input{}
	}
	if base == "busybox" {
		return
	}
	if err := b.follow(c); err != nil {
		b.note(record.Processes, "%v", err)
	}
}

// userShell finds the shell that su and its kin start.
func (b *builder) userShell(in launch) string {
	if in.with != "" && known(in.with) {
		return in.with
	}
	user := in.user
	if user == "" {
		user = "root"
	}
	if u, ok := b.passwd(func(u account) bool { return u.name == user }); ok && u.shell != "" {
		if o, err := b.view.stat(u.shell); err == nil && isShell(path.Base(o.path)) {
			return u.shell
		}
	}
	return "/bin/sh"
}

// find follows find's -exec and kin.
func (b *builder) find(args []string, r *run) {
	var roots []string
	i := 0
	for ; i < len(args); i++ {
		if a := args[i]; strings.HasPrefix(a, "-") || a == "!" || a == "(" || a == "," {
			if slices.Contains([]string{"-H", "-L", "-P"}, a) {
				continue
			}
			break
		}
		roots = append(roots, args[i])
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	for ; i < len(args); i++ {
		switch args[i] {
		case "-delete":
			for _, root := range roots {
				b.target(r, root, below)
			}
		case "-fprint", "-fprint0", "-fls", "-fprintf":
			if i+1 < len(args) {
				b.target(r, args[i+1], file)
			}
		case "-exec", "-execdir", "-ok", "-okdir":
			var argv []string
			for i++; i < len(args) && args[i] != ";" && args[i] != "+"; i++ {
				argv = append(argv, args[i])
			}
			for _, root := range roots {
				one := make([]string, len(argv))
				for j, a := range argv {
					one[j] = strings.ReplaceAll(a, "{}", strings.TrimRight(root, "/")+"/"+unknown)
				}
				c := r.child(one)
				c.chain, c.serves = false, false
				if err := b.follow(c); err != nil {
					b.note(record.Processes, "%v", err)
				}
			}
		}
	}
}

// runParts follows run-parts(8): every program in a directory.
func (b *builder) runParts(args []string, r *run) {
	var dir string
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-a" || a == "-u":
			i++
		case strings.HasPrefix(a, "-"):
		default:
			dir = a
		}
	}
	if dir == "" {
		return
	}
	if !known(dir) {
		b.dynamic(r, "run-parts of an unknown directory")
		return
	}
	if !path.IsAbs(dir) {
		dir = path.Join("/", r.cwd, dir)
	}
	for _, n := range b.view.names(dir, 1000) {
		if o, err := b.view.stat(path.Join(dir, n)); err != nil || !o.executable() {
			continue
		}
		c := r.child([]string{path.Join(dir, n)})
		c.chain, c.serves = false, false
		if err := b.follow(c); err != nil {
			b.note(record.Processes, "%v", err)
		}
	}
}

// interpreted follows a program in a language other than the shell's.
func (b *builder) interpreted(o *object, base string, lang interpreter, args []string, r *run) {
	in := lang.parse(args)
	if in.file != "" && slices.Contains(consoles, path.Base(in.file)) {
		in.given = false
	}
	if !in.given || in.stays {
		if r.input == nil || !r.input.known {
			b.interactive(r, base)
		}
		if !in.given {
			return
		}
	}
	text := in.code
	name := "the text given to " + base
	if in.file != "" && known(in.file) {
		p := in.file
		if !path.IsAbs(p) {
			p = path.Join("/", r.cwd, p)
		}
		so, err := b.view.stat(p)
		if err == nil && so.dir() { // python DIR, node DIR
			return
		}
		if (err != nil || !so.regular()) && !strings.Contains(in.file, "/") {
			for _, s := range searchPaths(r.vars) {
				if found := b.view.lookPath(in.file, s, r.cwd); found != nil {
					so, err = found, nil
				}
			}
		}
		if err != nil || !so.regular() {
			b.note(record.Processes, "%s: no such script in the image", in.file)
			return
		}
		src, err := so.root.ReadFile(so.name, maxSource)
		if err != nil {
			b.note(record.Processes, "read script %s: %v", so.path, err)
			return
		}
		text, name = text+"\n"+string(src), so.path
	}
	if strings.HasPrefix(strings.TrimPrefix(text, "\n"), "#!") {
		_, text, _ = strings.Cut(strings.TrimPrefix(text, "\n"), "\n")
	}
	b.scanText(text, name, r)
	if in.file != "" && known(in.file) {
		b.apply(b.know(name, args[max(0, slices.Index(args, in.file)):], r), name, r)
	}
	if in.file != "" {
		b.wrapped(path.Base(in.file), name, r)
	}
}

// Where packages keep the programs that a script of the same name in PATH
// chooses from, by version or by flavour.
var privateDirs = []string{"/usr/lib/*/bin/", "/usr/lib/*/*/bin/", "/usr/libexec/*/"}

// wrapped enters the programs that a wrapper in another language than the
// shell's stands for: those of its own name in their packages' directories, as
// postgresql-common's pg_wrapper does for psql and pg_isready.
func (b *builder) wrapped(name, script string, r *run) {
	if !known(name) || r.helper >= maxHelperSteps {
		return
	}
	for _, d := range privateDirs {
		for _, p := range b.view.glob(strings.ReplaceAll(d, "*", glob)+name, "/", 16) {
			h, err := b.view.stat(p)
			if err != nil || !h.executable() || openEnded(h) {
				continue
			}
			b.helper(h, r, record.Origin{Source: record.FromScript, At: script, Text: "stands for the program " + name})
			if r.identity == record.Application && r.serves {
				b.serve(h, r)
			}
		}
	}
}

// interactive records a shell or interpreter that takes its commands from
// whoever is at the other end.
func (b *builder) interactive(r *run, base string) {
	at := "the command line"
	if len(r.origins) > 0 {
		at = r.origins[0].At
	}
	if r.identity != record.Application {
		b.note(record.Processes, "%s: %s reads its commands from standard input", at, base)
		return
	}
	if r.phase == record.Starting && !r.chain {
		b.dynamic(r, base+" reads its commands from standard input")
		return
	}
	if b.wide == "" {
		b.wide = fmt.Sprintf("%s without a script (%s)", base, at)
	}
}

// scanText enters the programs whose absolute paths stand in a script's text.
func (b *builder) scanText(text, name string, r *run) {
	if r.helper >= maxHelperSteps {
		return
	}
	starting := r.phase == record.Starting && r.identity == record.Application
	line, n := 1, 0
	for text != "" {
		i := strings.IndexAny(text, "/\n")
		if i < 0 {
			return
		}
		if text[i] == '\n' {
			line++
			text = text[i+1:]
			continue
		}
		end := i + 1
		for end < len(text) && (text[end] == '/' || pathByte(text[end])) {
			end++
		}
		s := text[i:end]
		before := byte(' ')
		if i > 0 {
			before = text[i-1]
		}
		text = text[end:]
		if len(s) < 4 || len(s) > 1024 || !strings.Contains(s[1:], "/") || pathByte(before) {
			continue
		}
		if n++; n > 4096 {
			b.note(record.Processes, "%s: only its first 4096 paths were looked at", name)
			return
		}
		h, err := b.view.stat(s)
		if err != nil || !h.executable() || (!starting && openEnded(h)) {
			continue
		}
		b.helper(h, r, record.Origin{Source: record.FromScript, At: fmt.Sprintf("%s:%d", name, line), Text: s})
	}
}

func pathByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '.' || c == '_' || c == '-' || c == '+'
}
