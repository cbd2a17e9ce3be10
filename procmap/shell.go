package procmap

import (
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/declarun/declarun/shim/record"
)

const (
	maxNest      = 400 // of statements, and of function calls and sourced files together
	maxFrames    = 20_000
	maxCalls     = 32 // of functions within functions
	maxLoops     = 8  // rounds until a loop's values settle
	maxSubscript = 24 // scripts sourced or evaluated within one
)

// place is where in a script a command stands.
type place struct {
	sub  bool // in a subshell: exec does not end the script
	loop bool
	back bool // in the background
	tail bool // evaluated by a trap or in another way that flow does not tell about
	in   *input
}

// home is the text that a function's positions point into.
type home struct {
	file, src string
	evalLine  int
}

// script follows one run of a shell.
type script struct {
	b    *builder
	r    *run
	file string // whose lines are being followed
	src  string
	arg0 string
	bash bool // it sets UID and EUID
	flow *flows

	homes map[*syntax.Stmt]home // where functions are defined

	execs    bool // it can end by exec
	served   bool // a foreground command is not followed by exec
	lives    bool // the shell itself lives on in the background
	here     flow // what follows the statement at hand
	inLoop   bool
	nest     int
	calls    []string
	locals   []map[string]value
	returns  []*state
	exported map[string]bool
	// exportAll: set -a was met; when it is switched off again is not followed.
	exportAll bool
	depth     int // of sourced files
	evalLine  int // of the eval whose text is being followed
	busy      map[string]int
}

// tick counts work; true means that the limit is met.
func (b *builder) tick() bool {
	return b.charge(1)
}

// charge counts n pieces of work.
func (b *builder) charge(n int) bool {
	before := b.work
	b.work += n
	if b.work < maxWork {
		return b.work/256 != before/256 && b.ctx.Err() != nil
	}
	if before < maxWork {
		b.exhausted("the scripts are too large to be followed to the end")
	}
	return true
}

// exhausted: what was not looked at may run anything, and not at the start only.
func (b *builder) exhausted(why string) {
	if b.checking {
		b.note(record.Processes, "health check: %s", why)
		return
	}
	b.note(record.Processes, "%s: any program of the image may run", why)
	if b.starting == "" {
		b.starting = why
	}
	if b.wide == "" {
		b.wide = why
	}
}

// errDeep is what a script nested so deeply that it endangers the parser's stack gives.
var errDeep = errors.New("nested too deeply")

// shallow hands a source to the parser in small pieces and looks at the depth
// of the stack before each: the parser is recursive, and Go cannot recover
// from an exhausted stack.
type shallow struct {
	s    string
	base int
	pcs  []uintptr
}

func (r *shallow) Read(p []byte) (int, error) {
	if runtime.Callers(maxFrames, r.pcs[:1]) > 0 {
		return 0, errDeep
	}
	if r.s == "" {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), 512)], r.s)
	r.s = r.s[n:]
	return n, nil
}

// parseScript reads a script in the dialect of its shell, in bash's where that fails.
func parseScript(src, name, shell string) (f *syntax.File, err error) {
	defer func() {
		if v := recover(); v != nil {
			f, err = nil, fmt.Errorf("parse script: %v", v)
		}
	}()
	if len(src) > maxSource {
		return nil, fmt.Errorf("larger than %d bytes", maxSource)
	}
	dialects := []syntax.LangVariant{syntax.LangBash}
	switch shell {
	case "sh", "dash", "ash", "busybox", "posh", "yash":
		dialects = []syntax.LangVariant{syntax.LangPOSIX, syntax.LangBash}
	case "ksh", "mksh", "lksh", "pdksh", "oksh", "ksh93":
		dialects = []syntax.LangVariant{syntax.LangMirBSDKorn, syntax.LangBash}
	case "zsh", "zsh5":
		dialects = []syntax.LangVariant{syntax.LangZsh, syntax.LangBash}
	}
	src = strings.TrimPrefix(src, "\ufeff")
	for _, d := range dialects {
		f, err = syntax.NewParser(syntax.Variant(d)).Parse(&shallow{s: src, pcs: make([]uintptr, 1)}, name)
		if err == nil {
			return f, nil
		}
		if errors.Is(err, errDeep) {
			return nil, errDeep
		}
	}
	return nil, err
}

// parse is parseScript at the builder's expense: a script that sources itself
// in many ways is mostly parsed.
func (b *builder) parse(src, name, shell string) (*syntax.File, error) {
	if b.charge(parseWork + len(src)/32) {
		return nil, errors.New("more scripts than are followed")
	}
	return parseScript(src, name, shell)
}

// parseWork is what reading the smallest script costs.
const parseWork = 40

// shell follows what a shell runs. It gives the phase of the shell's own exec,
// and the phase in which its system calls are made.
func (b *builder) shell(o *object, base string, r *run) (phase, calls record.Phase) {
	phase = r.phase
	if base == "fish" || base == "csh" || base == "tcsh" {
		c := parseShell(r.argv[1:])
		if c.stdin {
			b.interactive(r, base)
		} else {
			b.dynamic(r, base+" scripts are not understood")
		}
		return phase, phase
	}
	c := parseShell(r.argv[1:])
	s := &script{b: b, r: r, arg0: r.argv[0], exported: map[string]bool{}, busy: map[string]int{}}
	s.bash = base == "bash" || base == "bash-static" || base == "rbash"
	args := fields(c.args)
	var src string
	switch {
	case c.inline:
		if c.code == "" {
			return phase, phase
		}
		src = c.code
		if !known(src) {
			b.dynamic(r, base+" -c "+src)
			// What is known of it is still followed.
			src = strings.NewReplacer(unknown, "${__unknown__}", glob, "*").Replace(src)
		}
		if len(args) > 0 {
			s.arg0, args = args[0], args[1:]
		}
	case c.file != "":
		if !known(c.file) {
			b.dynamic(r, base+" "+c.file)
			return phase, phase
		}
		so := b.scriptFile(c.file, r)
		if so == nil {
			b.note(record.Processes, "%s%s: no such script in the image", at(r), c.file)
			return phase, phase
		}
		data, err := so.root.ReadFile(so.name, maxSource)
		if err != nil {
			b.dynamic(r, fmt.Sprintf("%s: %v", so.path, err))
			return phase, phase
		}
		src, s.file, s.arg0 = string(data), so.as, c.file
	default:
		if r.input != nil && r.input.known {
			src = r.input.text
			break
		}
		if r.input != nil {
			b.dynamic(r, base+" reads its commands from another program")
			return phase, phase
		}
		b.interactive(r, base)
		b.serve(o, r)
		return phase, phase
	}
	f, err := b.parse(src, s.file, base)
	if err != nil {
		b.dynamic(r, fmt.Sprintf("%s cannot be read: %v", scriptName(s.file), err))
		return phase, phase
	}
	s.src = src
	s.homes = map[*syntax.Stmt]home{}
	s.flow = &flows{funcs: map[string]*syntax.Stmt{}, memo: map[*syntax.Stmt]flow{}, busy: map[*syntax.Stmt]bool{}}
	s.declare(f)
	s.execs = s.flow.list(f.Stmts)&execs != 0
	st := &state{vars: map[string]value{}, args: value{args}, cwd: r.cwd}
	for k, v := range r.vars {
		st.vars[k] = v
		s.exported[k] = true
	}
	st.vars["__unknown__"] = scalar(unknown)
	s.stmts(f.Stmts, st, falls, place{in: r.input})
	if r.chain && s.execs && !s.served {
		phase = record.Starting
	}
	calls = phase
	if s.lives {
		calls = record.Serving
	}
	return phase, calls
}

func at(r *run) string {
	if len(r.origins) == 0 {
		return ""
	}
	return r.origins[0].At + ": "
}

func scriptName(file string) string {
	if file == "" {
		return "the command line"
	}
	return file
}

// scriptFile finds a shell's script operand: in the working directory, else in PATH.
func (b *builder) scriptFile(name string, r *run) *object {
	p := name
	if !path.IsAbs(p) {
		p = path.Join("/", r.cwd, p)
	}
	if o, err := b.view.stat(p); err == nil && o.regular() {
		return o
	}
	if strings.Contains(name, "/") {
		return nil
	}
	for _, search := range searchPaths(r.vars) {
		if o := b.view.lookPath(name, search, r.cwd); o != nil {
			return o
		}
	}
	return nil
}

// declare remembers the functions of a file wherever they are defined: a
// function is only called after that, and which of two is not told apart.
func (s *script) declare(f *syntax.File) {
	syntax.Walk(f, func(n syntax.Node) bool {
		if d, ok := n.(*syntax.FuncDecl); ok && d.Name != nil && len(s.flow.funcs) < 10_000 {
			s.flow.funcs[d.Name.Value] = d.Body
			s.homes[d.Body] = home{s.file, s.src, s.evalLine}
		}
		return true
	})
	clear(s.flow.memo)
}

// origin names the line of a node.
func (s *script) origin(n syntax.Node) record.Origin {
	line := int(n.Pos().Line())
	if s.evalLine > 0 {
		line = s.evalLine
	}
	text := ""
	if off, end := int(n.Pos().Offset()), int(n.End().Offset()); off >= 0 && off < end && end <= len(s.src) {
		text, _, _ = strings.Cut(s.src[off:end], "\n")
	}
	if s.file == "" { // -c, a here-document, eval
		o := record.Origin{Source: record.FromEngine, At: "the command line"}
		if len(s.r.origins) > 0 {
			o = s.r.origins[0]
		}
		o.Text = clip(text, 120)
		return o
	}
	return record.Origin{Source: record.FromScript, At: s.file + ":" + strconv.Itoa(line), Text: clip(strings.TrimSpace(text), 120)}
}

func (s *script) stmts(list []*syntax.Stmt, st *state, next flow, c place) {
	after := s.flow.after(list, next)
	for i, x := range list {
		if st.dead || s.b.tick() {
			return
		}
		s.stmt(x, st, after[i], c)
	}
}

func (s *script) stmt(x *syntax.Stmt, st *state, next flow, c place) {
	if x == nil || st.dead || s.b.tick() {
		return
	}
	if s.nest++; s.nest > maxNest {
		s.nest--
		s.b.dynamic(s.r, scriptName(s.file)+" is nested too deeply")
		return
	}
	here, loop := s.here, s.inLoop
	s.here, s.inLoop = next, c.loop
	defer func() { s.nest--; s.here, s.inLoop = here, loop }()

	if len(x.Redirs) > 0 {
		if in := s.redirects(x, st, c); in != nil {
			c.in = in
		}
	}
	if x.Background || x.Coprocess || x.Disown {
		c.back, c.sub = true, true
		st = st.clone()
		if _, simple := x.Cmd.(*syntax.CallExpr); !simple {
			s.lives = s.lives || s.r.chain
		}
	}
	switch cmd := x.Cmd.(type) {
	case *syntax.CallExpr:
		s.call(cmd, st, next, c)
	case *syntax.Block:
		s.stmts(cmd.Stmts, st, next, c)
	case *syntax.Subshell:
		c.sub = true
		s.stmts(cmd.Stmts, st.clone(), next, c)
	case *syntax.IfClause:
		s.ifClause(cmd, st, next, c)
	case *syntax.WhileClause:
		s.loop(st, next, c, append(slices.Clip(cmd.Cond), cmd.Do...), nil)
	case *syntax.ForClause:
		s.forClause(cmd, st, next, c)
	case *syntax.CaseClause:
		s.caseClause(cmd, st, next, c)
	case *syntax.BinaryCmd:
		s.binary(cmd, st, next, c)
	case *syntax.DeclClause:
		s.declClause(cmd, st)
	case *syntax.TimeClause:
		s.stmt(cmd.Stmt, st, next, c)
	case *syntax.CoprocClause:
		c.back, c.sub = true, true
		s.stmt(cmd.Stmt, st.clone(), next, c)
	case *syntax.TestClause:
		s.testEffects(cmd.X, st)
	case *syntax.ArithmCmd:
		s.arithm(cmd.X, st)
	case *syntax.LetClause:
		for _, e := range cmd.Exprs {
			s.arithm(e, st)
		}
	case *syntax.FuncDecl, nil:
	default:
		s.b.note(record.Processes, "%s: a construct that is not understood", s.origin(x).At)
	}
}

// arithm runs the substitutions in an expression and forgets what it assigns.
func (s *script) arithm(e syntax.ArithmExpr, st *state) {
	if e == nil {
		return
	}
	syntax.Walk(e, func(n syntax.Node) bool {
		switch x := n.(type) {
		case *syntax.CmdSubst:
			s.substitution(x, st, false)
			return false
		case *syntax.BinaryArithm:
			compares := x.Op == syntax.Eql || x.Op == syntax.Neq || x.Op == syntax.Leq || x.Op == syntax.Geq
			if w, ok := x.X.(*syntax.Word); ok && strings.HasSuffix(x.Op.String(), "=") && !compares {
				if name := w.Lit(); name != "" {
					st.vars[name] = scalar(unknown)
				}
			}
		case *syntax.UnaryArithm:
			if w, ok := x.X.(*syntax.Word); ok && w.Lit() != "" && (x.Op == syntax.Inc || x.Op == syntax.Dec) {
				st.vars[w.Lit()] = scalar(unknown)
			}
		}
		return !s.b.tick()
	})
}

// redirects records what is written to and gives what standard input is.
func (s *script) redirects(x *syntax.Stmt, st *state, c place) *input {
	c.back = c.back || x.Background
	var in *input
	for _, r := range x.Redirs {
		fd := ""
		if r.N != nil {
			fd = r.N.Value
		}
		switch r.Op {
		case syntax.Hdoc, syntax.DashHdoc:
			if fd != "" && fd != "0" {
				continue
			}
			in = &input{}
			if texts := s.text(r.Hdoc, st, false); len(texts) == 1 && known(texts[0]) {
				in.text, in.known = texts[0], true
			}
		case syntax.WordHdoc:
			in = &input{}
			if texts := s.text(r.Word, st, false); len(texts) == 1 && known(texts[0]) {
				in.text, in.known = texts[0]+"\n", true
				in.lines = strings.Split(texts[0], "\n")
			}
		case syntax.RdrIn:
			if fd != "" && fd != "0" {
				continue
			}
			in = &input{}
			if len(r.Word.Parts) == 1 {
				if p, ok := r.Word.Parts[0].(*syntax.ProcSubst); ok {
					s.stmts(p.Stmts, st.clone(), s.here, place{sub: true, loop: s.inLoop})
					if len(p.Stmts) == 1 {
						in.lines, _ = s.output(p.Stmts[0], st)
					}
					continue
				}
			}
			if texts := s.text(r.Word, st, false); len(texts) == 1 && known(texts[0]) {
				p := texts[0]
				if !path.IsAbs(p) && known(st.cwd) {
					p = path.Join(st.cwd, p)
				}
				if o, err := s.b.view.stat(p); err == nil && o.regular() && o.st.Size <= 64<<10 {
					if data, err := o.root.ReadFile(o.name, 64<<10); err == nil {
						in.text, in.known = strip(string(data)), true
					}
				}
			}
		case syntax.DplIn, syntax.DplOut:
		default: // every other one writes
			for _, f := range s.word(r.Word, st, false) {
				for _, t := range f {
					s.b.target(s.child(nil, st, x, c, s.here), t, file)
				}
			}
		}
	}
	return in
}

// child is the run of a command that stands at n.
func (s *script) child(argv []string, st *state, n syntax.Node, c place, next flow) *run {
	r := s.r.child(argv, s.origin(n))
	r.cwd = st.cwd
	r.input = c.in
	r.phase, r.chain, r.serves = s.where(c, next)
	return r
}

// where decides the phase of a command from what follows it.
func (s *script) where(c place, next flow) (phase record.Phase, chain, serves bool) {
	switch {
	case !s.r.chain:
		return s.r.phase, false, false
	case c.back: // it lives on, whatever the script becomes
		return record.Serving, false, next&execs == 0
	case next&execs != 0, s.execs && next == fails:
		return record.Starting, false, false
	case c.loop:
		return record.Serving, false, true
	}
	return record.Serving, true, true
}

// environment of a child: what is exported.
func (s *script) exports(st *state, extra map[string]value) map[string]value {
	vars := make(map[string]value, len(s.exported)+len(extra))
	for k, v := range st.vars {
		if s.exportAll || s.exported[k] {
			vars[k] = v
		}
	}
	if st.havoc {
		vars[anyVariable] = scalar(unknown)
	}
	for k, v := range extra {
		vars[k] = v
	}
	return vars
}

var positional = regexp.MustCompile(`\$\{?[!]?[1-9@*#]`)

// usesArgs tells whether a piece of a script mentions the positional parameters.
func (s *script) usesArgs(n syntax.Node) bool {
	off, end := int(n.Pos().Offset()), int(n.End().Offset())
	if off < 0 || end > len(s.src) || off > end {
		return true
	}
	return positional.MatchString(s.src[off:end])
}

// each runs f once for every possible "$@", so that $1 and "$@" agree.
func (s *script) each(n syntax.Node, st *state, f func(*state)) {
	if len(st.args) < 2 || !s.usesArgs(n) {
		f(st)
		return
	}
	var out *state
	for _, a := range st.args {
		c := st.clone()
		c.args = value{a}
		f(c)
		if out == nil {
			out = c
		} else {
			out.join(c)
		}
	}
	*st = *out
}

func (s *script) call(x *syntax.CallExpr, st *state, next flow, c place) {
	s.each(x, st, func(st *state) { s.call1(x, st, next, c) })
}

func (s *script) call1(x *syntax.CallExpr, st *state, next flow, c place) {
	if len(x.Args) == 0 {
		for _, a := range x.Assigns {
			s.assign(a, st, true)
		}
		return
	}
	if x.Args[0].Lit() == "exec" && len(x.Args) > 1 {
		s.here |= execs // what its words run, runs before
	}
	extra := map[string]value{}
	for _, a := range x.Assigns {
		if a.Name != nil {
			extra[a.Name.Value] = scalar(s.text(a.Value, st, false)...)
		}
	}
	argvs := s.words(x.Args, st, false)
	if len(argvs) == 1 {
		s.command(argvs[0], x, st, next, c, extra)
		return
	}
	var out *state
	for _, argv := range argvs {
		one := st.clone()
		s.command(argv, x, one, next, c, extra)
		if out == nil {
			out = one
		} else {
			out.join(one)
		}
	}
	if out != nil {
		*st = *out
	}
}

// Builtins without an effect that matters here.
var inert = map[string]bool{
	":": true, "true": true, "false": true, "echo": true, "printf": true, "[": true, "test": true, "wait": true, "kill": true,
	"ulimit": true, "umask": true, "pwd": true, "type": true, "hash": true, "jobs": true, "fg": true, "bg": true, "shopt": true,
	"times": true, "alias": true, "unalias": true, "caller": true, "dirs": true, "history": true, "enable": true, "disown": true,
	"suspend": true, "logout": true, "bind": true, "complete": true, "compgen": true, "compopt": true, "fc": true, "setopt": true, "unsetopt": true,
	"autoload": true, "whence": true, "print": true, "emulate": true, "break": true, "continue": true, "typeset": true, "getopts": true, "let": true,
}

func (s *script) command(argv []string, n *syntax.CallExpr, st *state, next flow, c place, extra map[string]value) {
	if len(argv) == 0 || s.b.tick() {
		return
	}
	name := argv[0]
	if body, ok := s.flow.funcs[name]; ok {
		s.function(name, body, argv[1:], st, next, c, extra)
		return
	}
	for name == "builtin" || name == "command" {
		i := 1
		look := false
		for i < len(argv) && strings.HasPrefix(argv[i], "-") {
			look = look || strings.ContainsAny(argv[i], "vV")
			i++
		}
		if argv = argv[i:]; look || len(argv) == 0 {
			return
		}
		name = argv[0]
	}
	args := argv[1:]
	switch name {
	case "exec":
		s.exec(args, n, st, next, c, extra)
		return
	case "exit":
		st.dead = true
		return
	case "return":
		if len(s.calls)+s.depth > 0 {
			s.returns = append(s.returns, st.clone())
		}
		st.dead = true
		return
	case "eval":
		text := strings.Join(args, " ")
		if rest, ok := strings.CutPrefix(text, "set -- "); ok && !known(rest) {
			// The getopt(1) idiom: its output is quoted, and are arguments only.
			st.args = value{{unknown}}
			return
		}
		if !known(text) {
			if strings.Trim(text, wildcards+" ") != "" || len(args) > 0 {
				s.dynamic(n, st, c, next, "eval "+text)
			}
			st.havoc = true
			return
		}
		s.source(text, s.file, "", n, nil, st, next, c)
		return
	case ".", "source":
		s.dot(args, n, st, next, c)
		return
	case "set":
		s.set(args, st)
		return
	case "shift":
		k := 1
		if len(args) > 0 {
			var err error
			if k, err = strconv.Atoi(args[0]); err != nil {
				k = -1
			}
		}
		var out value
		for _, a := range st.args {
			switch {
			case k < 0:
				for i := range a {
					out = out.add(a[i:])
				}
			case k <= len(a):
				out = out.add(a[k:])
			default:
				out = out.add(a)
			}
		}
		st.args = out
		return
	case "unset":
		for _, a := range args {
			if known(a) && !strings.HasPrefix(a, "-") {
				delete(st.vars, a)
				if shellVars[a] {
					st.vars[a] = value{fields{}}
				}
			}
		}
		return
	case "cd", "pushd", "popd", "chdir":
		s.cd(args, st)
		return
	case "trap":
		s.trap(args, n, st, next, c)
		return
	case "read", "mapfile", "readarray":
		s.read(name, args, st, c.in)
		return
	case "export", "readonly", "local", "declare", "typeset":
		for _, a := range args {
			s.define(name, a, st)
		}
		return
	case "printf":
		if len(args) > 1 && args[0] == "-v" && known(args[1]) {
			st.vars[args[1]] = scalar(unknown)
		}
		return
	case "getopts":
		if len(args) > 1 && known(args[1]) {
			st.vars[args[1]] = scalar(unknown)
		}
		return
	}
	if inert[name] {
		return
	}
	s.external(argv, n, st, next, c, extra)
}

func (s *script) dynamic(n syntax.Node, st *state, c place, next flow, what string) {
	s.b.dynamic(s.child(nil, st, n, c, next), what)
	if s.r.chain && !c.back {
		_, chain, _ := s.where(c, next)
		s.served = s.served || chain
	}
}

// external follows a program.
func (s *script) external(argv []string, n syntax.Node, st *state, next flow, c place, extra map[string]value) {
	r := s.child(argv, st, n, c, next)
	r.vars = s.exports(st, extra)
	if s.r.chain && !c.back && r.phase == record.Serving {
		s.served = true
	}
	// An unquoted expansion before the command may be empty: $WRAPPER cmd.
	if strings.Trim(argv[0], unknown) == "" && len(argv) > 1 && known(argv[1]) && !strings.HasPrefix(argv[1], "-") {
		o := *r
		o.argv = argv[1:]
		s.run(&o)
	}
	s.run(r)
}

func (s *script) run(r *run) {
	if err := s.b.follow(r); err != nil {
		s.b.note(record.Processes, "%v", err)
	}
}

func (s *script) exec(args []string, n *syntax.CallExpr, st *state, next flow, c place, extra map[string]value) {
	clearEnv := false
	for len(args) > 0 && strings.HasPrefix(args[0], "-") && len(args[0]) > 1 {
		a := args[0]
		args = args[1:]
		if a == "--" {
			break
		}
		clearEnv = clearEnv || strings.Contains(a, "c")
		if strings.HasSuffix(a, "a") && len(args) > 0 {
			args = args[1:]
		}
	}
	if len(args) == 0 {
		return // only redirections
	}
	if c.sub {
		s.external(args, n, st, next, c, extra)
		st.dead = true
		return
	}
	r := s.r.child(args, s.origin(n))
	r.cwd, r.input, r.vars = st.cwd, c.in, s.exports(st, extra)
	if c.in == nil {
		r.input = s.r.input
	}
	if clearEnv {
		r.vars = extra
	}
	s.run(r)
	st.dead = true
}

func (s *script) function(name string, body *syntax.Stmt, args []string, st *state, next flow, c place, extra map[string]value) {
	recursive := count(s.calls, name)
	if len(s.calls) >= maxCalls && recursive == 0 {
		// What it runs may not have been seen anywhere else.
		s.b.dynamic(s.r, fmt.Sprintf("%s: functions call each other more than %d deep", scriptName(s.file), maxCalls))
	}
	if len(s.calls) >= maxCalls || recursive > 2 {
		st.havoc = true // recursion: its values do not settle here
		return
	}
	key := fmt.Sprint(name, next, c.back, c.sub, c.loop, strings.Join(args, "\x02"))
	if s.busy[key]++; s.busy[key] > 64 {
		if s.busy[key] == 65 {
			s.b.note(record.Processes, "%s: function %s is called more often than it is followed", scriptName(s.file), name)
		}
		return
	}
	saved, returns := st.args, s.returns
	s.calls = append(s.calls, name)
	s.locals = append(s.locals, map[string]value{})
	s.returns = nil
	st.args = value{slices.Clone(args)}
	for k, v := range extra {
		s.local(k, st)
		st.vars[k] = v
	}
	at := home{s.file, s.src, s.evalLine}
	if h, ok := s.homes[body]; ok {
		s.file, s.src, s.evalLine = h.file, h.src, h.evalLine
	}
	s.stmt(body, st, next, c)
	s.file, s.src, s.evalLine = at.file, at.src, at.evalLine
	for _, r := range s.returns {
		st.join(r)
	}
	for k, v := range s.locals[len(s.locals)-1] {
		if v == nil {
			delete(st.vars, k)
		} else {
			st.vars[k] = v
		}
	}
	s.locals = s.locals[:len(s.locals)-1]
	s.calls = s.calls[:len(s.calls)-1]
	s.returns = returns
	st.args = saved
}

func count(list []string, what string) int {
	n := 0
	for _, s := range list {
		if s == what {
			n++
		}
	}
	return n
}

// local remembers a variable's value for when the function returns.
func (s *script) local(name string, st *state) {
	if len(s.locals) == 0 {
		return
	}
	top := s.locals[len(s.locals)-1]
	if _, done := top[name]; !done {
		top[name] = st.vars[name]
	}
}

// source follows more source text in the same shell.
func (s *script) source(src, file, shell string, n syntax.Node, args []fields, st *state, next flow, c place) {
	if s.depth >= maxSubscript {
		s.dynamic(n, st, c, next, "scripts nested more than they are followed")
		return
	}
	f, err := s.b.parse(src, file, shell)
	if err != nil {
		s.dynamic(n, st, c, next, fmt.Sprintf("%s cannot be read: %v", scriptName(file), err))
		st.havoc = true
		return
	}
	oldFile, oldSrc, returns, saved := s.file, s.src, s.returns, st.args
	s.depth++
	s.returns = nil
	evalLine := s.evalLine
	if file == oldFile && shell != "." { // eval: its lines are the caller's
		if s.evalLine == 0 {
			s.evalLine = int(n.Pos().Line())
		}
		s.src = src
	} else {
		s.file, s.src, s.evalLine = file, src, 0
	}
	s.declare(f)
	if args != nil {
		st.args = args
	}
	s.stmts(f.Stmts, st, next, c)
	if file != oldFile || shell == "." {
		for _, r := range s.returns {
			st.join(r)
		}
		s.returns = returns
	} else {
		s.returns = append(returns, s.returns...)
	}
	if args != nil {
		st.args = saved
	}
	s.depth--
	s.file, s.src, s.evalLine = oldFile, oldSrc, evalLine
}

// dot follows a sourced file.
func (s *script) dot(args []string, n syntax.Node, st *state, next flow, c place) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) == 0 {
		return
	}
	name := args[0]
	var params []fields
	if len(args) > 1 {
		params = []fields{args[1:]}
	}
	var files []*object
	switch {
	case !known(name):
		if strings.Contains(strings.Trim(name, wildcards), "/") && strings.Trim(path.Dir(name), wildcards+"/.") != "" {
			for _, p := range s.b.view.glob(name, st.cwd, 64) {
				if o, err := s.b.view.stat(p); err == nil && o.regular() {
					files = append(files, o)
				}
			}
		}
		if len(files) == 0 {
			s.dynamic(n, st, c, next, ". "+name)
			st.havoc = true
			return
		}
	case strings.HasPrefix(name, "/dev/"), strings.HasPrefix(name, "/proc/"):
		s.dynamic(n, st, c, next, ". "+name)
		st.havoc = true
		return
	default:
		r := &run{vars: st.vars, cwd: st.cwd}
		if !known(r.cwd) {
			r.cwd = s.r.cwd
		}
		o := s.b.scriptFile(name, r)
		if o == nil {
			s.b.note(record.Processes, "%s: %s: no such script in the image", s.origin(n).At, name)
			return
		}
		files = []*object{o}
	}
	for _, o := range files {
		key := ". " + o.path
		if s.busy[key]++; s.busy[key] > 16 {
			s.b.note(record.Processes, "%s is sourced more often than it is followed", o.path)
			continue
		}
		data, err := o.root.ReadFile(o.name, maxSource)
		if err != nil {
			s.dynamic(n, st, c, next, fmt.Sprintf(". %s: %v", o.path, err))
			st.havoc = true
			continue
		}
		if len(files) > 1 {
			one := st.clone()
			s.source(string(data), o.path, ".", n, params, one, next, c)
			st.join(one)
		} else {
			s.source(string(data), o.path, ".", n, params, st, next, c)
		}
	}
}

func (s *script) set(args []string, st *state) {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			st.args = value{slices.Clone(args[i+1:])}
			return
		case a == "-" || a == "+":
		case len(a) > 1 && (a[0] == '-' || a[0] == '+'):
			if strings.HasSuffix(a, "o") {
				i++
			}
			if a[0] == '-' && strings.Contains(a, "a") || strings.HasSuffix(a, "o") && i < len(args) && args[i] == "allexport" {
				s.exportAll = true
			}
		default:
			st.args = value{slices.Clone(args[i:])}
			return
		}
	}
}

func (s *script) cd(args []string, st *state) {
	args = slices.DeleteFunc(slices.Clone(args), func(a string) bool { return len(a) > 1 && a[0] == '-' })
	dir := unknown
	switch {
	case len(args) == 0:
		if t := s.lookup("HOME", st).texts(); len(t) == 1 {
			dir = t[0]
		}
	case args[0] == "-":
	case path.IsAbs(args[0]) || strings.HasPrefix(args[0], unknown):
		dir = args[0]
	default:
		dir = st.cwd + "/" + args[0]
	}
	if known(dir) {
		dir = path.Clean(dir)
	}
	st.cwd = dir
}

func (s *script) trap(args []string, n syntax.Node, st *state, next flow, c place) {
	if len(args) > 0 && args[0] == "--" {
		args = args[1:]
	}
	if len(args) < 2 || args[0] == "-" || args[0] == "" || strings.HasPrefix(args[0], "-") {
		return
	}
	if !known(args[0]) {
		s.dynamic(n, st, c, next, "trap "+args[0])
		return
	}
	// A handler runs at any time until the script execs: then handlers are gone.
	served := s.served
	k := falls
	if s.execs {
		k = execs
	}
	c.loop = true // any number of times
	s.source(args[0], s.file, "", n, nil, st.clone(), k, c)
	s.served = served
}

func (s *script) read(name string, args []string, st *state, in *input) {
	var names []string
	for i := 0; i < len(args); i++ {
		a := args[i]
		if strings.HasPrefix(a, "-") && len(a) > 1 {
			if last := a[len(a)-1]; strings.IndexByte("aidnNptuOCcs", last) >= 0 && !(last == 's' && name == "read") && !(last == 't' && name != "read") {
				if last == 'a' && i+1 < len(args) {
					names = append(names, args[i+1])
				}
				i++
			}
			continue
		}
		names = append(names, a)
	}
	if len(names) == 0 {
		names = []string{"REPLY"}
		if name != "read" {
			names = []string{"MAPFILE"}
		}
	}
	for i, v := range names {
		if !known(v) {
			st.havoc = true
			continue
		}
		val := scalar(unknown)
		if in != nil && len(in.lines) > 0 && i == 0 {
			if name == "read" && len(names) == 1 {
				val = nil
				for _, l := range in.lines {
					val = val.add(fields{l})
				}
			} else if name != "read" {
				val = value{slices.Clone(in.lines)}
			}
		}
		st.vars[v] = val
	}
}

func (s *script) assign(a *syntax.Assign, st *state, global bool) {
	if a.Name == nil {
		return
	}
	name := a.Name.Value
	var v value
	switch {
	case a.Array != nil:
		var ws []*syntax.Word
		for _, e := range a.Array.Elems {
			if e.Value != nil {
				ws = append(ws, e.Value)
			}
		}
		for _, f := range s.words(ws, st, false) {
			v = v.add(f)
		}
	case a.Value != nil:
		v = scalar(s.text(a.Value, st, false)...)
	case a.Naked:
		return
	default:
		v = scalar("")
	}
	switch {
	case a.Append:
		var out value
		old := s.lookup(name, st)
		for _, o := range old {
			for _, f := range v {
				switch {
				case a.Array != nil:
					out = out.add(slices.Concat(o, f))
				case len(o) == 0:
					out = out.add(f)
				default:
					out = out.add(fields{bounded(o[0] + strings.Join(f, " "))})
				}
			}
		}
		v = out
	case a.Index != nil: // one element
		var out value
		for _, o := range s.lookup(name, st) {
			for _, f := range v {
				out = out.add(slices.Concat(o, f))
			}
		}
		v = out
	}
	st.vars[name] = v
	_ = global
}

// define is export, local, declare with an argument that was computed.
func (s *script) define(variant, a string, st *state) {
	if strings.HasPrefix(a, "-") || strings.HasPrefix(a, "+") {
		return
	}
	name, v, has := strings.Cut(a, "=")
	if !known(name) {
		st.havoc = true
		return
	}
	if variant == "local" || variant == "declare" || variant == "typeset" {
		s.local(name, st)
	}
	if variant == "export" {
		s.exported[name] = true
	}
	if has {
		st.vars[name] = scalar(v)
	}
}

func (s *script) declClause(x *syntax.DeclClause, st *state) {
	variant := x.Variant.Value
	global := false
	for _, a := range x.Args {
		if a.Name == nil { // an option, or a word that is computed
			for _, t := range s.text(a.Value, st, false) {
				global = global || strings.HasPrefix(t, "-") && strings.Contains(t, "g")
				if strings.HasPrefix(t, "-") && strings.Contains(t, "x") {
					variant = "export"
				}
				one := st.clone()
				s.define(variant, t, one)
				st.join(one)
			}
			continue
		}
		name := a.Name.Value
		if !global && (variant == "local" || variant == "declare" || variant == "typeset") {
			s.local(name, st)
			if a.Naked && variant == "local" {
				st.vars[name] = value{fields{}}
			}
		}
		if variant == "export" {
			s.exported[name] = true
		}
		s.assign(a, st, global)
	}
}

// loop follows a body until the values in it settle.
func (s *script) loop(st *state, next flow, c place, body []*syntax.Stmt, before func(*state)) {
	inner := s.flow.list(body)
	if inner&falls != 0 {
		inner = inner&^falls | next
	}
	c.loop = true
	// Inside, what follows the body is the body again, or what follows the loop.
	for range maxLoops {
		one := st.clone()
		if before != nil {
			before(one)
		}
		s.stmts(body, one, inner|next, c)
		size := st.size()
		st.join(one)
		if st.size() == size || s.b.tick() {
			return
		}
	}
	// Values that grow with every round are unknown after it.
	for k, v := range st.vars {
		if len(v) >= maxLoops {
			st.vars[k] = union(v, scalar(unknown))
		}
	}
}

// size grows with every join that adds something.
func (s *state) size() int {
	n := len(s.args) + len(s.vars)
	for _, v := range s.vars {
		n += len(v)
	}
	if s.havoc {
		n++
	}
	if s.cwd == unknown {
		n++
	}
	return n
}

func (s *script) forClause(x *syntax.ForClause, st *state, next flow, c place) {
	switch l := x.Loop.(type) {
	case *syntax.WordIter:
		var items []string
		if !l.InPos.IsValid() {
			for _, a := range st.args {
				items = append(items, a...)
			}
		} else {
			for _, f := range s.words(l.Items, st, false) {
				items = append(items, f...)
			}
		}
		var v value
		for _, it := range items {
			v = v.add(fields{it})
		}
		if len(v) == 0 {
			return
		}
		s.loop(st, next, c, x.Do, func(one *state) { one.vars[l.Name.Value] = v })
	case *syntax.CStyleLoop:
		s.arithm(l.Init, st)
		s.arithm(l.Cond, st)
		s.arithm(l.Post, st)
		s.loop(st, next, c, x.Do, nil)
	default:
		s.loop(st, next, c, x.Do, nil)
	}
}

func (s *script) binary(x *syntax.BinaryCmd, st *state, next flow, c place) {
	switch x.Op {
	case syntax.AndStmt, syntax.OrStmt:
		y := s.flow.stmt(x.Y).then(next)
		t, f := s.condition(x.X, st, y|next, c)
		run, skip := t, f
		if x.Op == syntax.OrStmt {
			run, skip = f, t
		}
		s.stmt(x.Y, run, next, c)
		run.join(skip)
		*st = *run
	default: // a pipe: both sides in subshells (the last one not, in some shells)
		c.sub = true
		s.stmt(x.X, st.clone(), next, c)
		in := &input{}
		if lines, ok := s.output(x.X, st); ok {
			in.lines = lines
			if call, isCall := x.X.Cmd.(*syntax.CallExpr); isCall && len(call.Args) > 0 && len(lines) == 1 && known(lines[0]) {
				if n := call.Args[0].Lit(); n == "echo" || n == "printf" {
					in.text, in.known = lines[0]+"\n", true
				}
			}
		}
		c.in = in
		y := st.clone()
		s.stmt(x.Y, y, next, c)
		y.dead = false
		st.join(y)
	}
}
