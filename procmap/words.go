package procmap

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/expand"
	"mvdan.cc/sh/v3/pattern"
	"mvdan.cc/sh/v3/syntax"
)

// Variables that a shell sets by itself.
var shellVars = map[string]bool{
	"HOSTNAME": true, "RANDOM": true, "SRANDOM": true, "UID": true, "EUID": true, "GROUPS": true, "PPID": true, "LINENO": true,
	"SECONDS": true, "EPOCHSECONDS": true, "EPOCHREALTIME": true, "FUNCNAME": true, "BASHPID": true, "BASH_VERSION": true,
	"BASH_VERSINFO": true, "OSTYPE": true, "HOSTTYPE": true, "MACHTYPE": true, "OLDPWD": true, "REPLY": true, "OPTARG": true,
	"OPTIND": true, "PIPESTATUS": true, "BASH_LINENO": true, "BASH_COMMAND": true, "SHLVL": true, "COLUMNS": true, "LINES": true,
	"HOME": true, "SHELL": true, "TERM": true, "IFS": true, "BASH": true, "_": true, "BASH_REMATCH": true, "MAPFILE": true, "SHELLOPTS": true,
}

// words gives the possible field lists of several words together.
func (s *script) words(words []*syntax.Word, st *state, pure bool) []fields {
	var each []value
	for _, w := range words {
		for _, b := range braces(w) {
			each = append(each, s.word(b, st, pure))
		}
	}
	out := product(each)
	s.b.charge(len(out) / 2)
	return out
}

// product combines alternatives. When there are too many combinations each
// alternative still appears in one, and those of the first word in all.
func product(each []value) []fields {
	total := 1
	for _, v := range each {
		if total *= max(len(v), 1); total > maxAlternatives {
			break
		}
	}
	if total <= maxAlternatives {
		out := value{fields{}}
		for _, v := range each {
			var next value
			for _, a := range out {
				for _, b := range v {
					next = next.add(slices.Concat(a, b))
				}
			}
			out = next
		}
		return out
	}
	longest := 0
	for _, v := range each {
		longest = max(longest, len(v))
	}
	var out value
	heads := each[0]
	if len(heads) > 16 && longest > 16 {
		longest = 16
	}
	for _, h := range heads {
		for i := range longest {
			f := slices.Clone(h)
			for _, v := range each[1:] {
				if len(v) > 0 {
					f = append(f, v[min(i, len(v)-1)]...)
				}
			}
			out = append(out, f)
		}
	}
	return out
}

func braces(w *syntax.Word) []*syntax.Word {
	brace := false
	for _, p := range w.Parts {
		if l, ok := p.(*syntax.Lit); ok && strings.Contains(l.Value, "{") && len(l.Value) < maxText {
			brace = true
		}
		if _, ok := p.(*syntax.BraceExp); ok {
			brace = true
		}
	}
	if !brace {
		return []*syntax.Word{w}
	}
	c := &syntax.Word{Parts: slices.Clone(w.Parts)}
	if !syntax.SplitBraces(c) {
		for _, p := range c.Parts {
			if _, ok := p.(*syntax.BraceExp); ok {
				goto split
			}
		}
		return []*syntax.Word{w}
	}
split:
	var out []*syntax.Word
	for b, err := range expand.BracesSeq(nil, c) {
		if err != nil || len(out) >= 64 { // and more that are not looked at
			out = append(out, &syntax.Word{Parts: []syntax.WordPart{&syntax.ParamExp{Short: true, Param: &syntax.Lit{Value: "__unknown__"}}}})
			break
		}
		out = append(out, b)
	}
	return out
}

// partial is a word being built: finished fields and the one under way.
type partial struct {
	done fields
	cur  string
	has  bool
}

func (p partial) finish() fields {
	if p.has {
		return append(slices.Clip(p.done), p.cur)
	}
	return p.done
}

// word gives the possible field lists of one word, wildcards expanded.
func (s *script) word(w *syntax.Word, st *state, pure bool) value {
	if w == nil {
		return scalar("")
	}
	var out value
	for _, f := range s.parts(w.Parts, st, false, pure) {
		if !slices.ContainsFunc(f, func(x string) bool { return strings.Contains(x, glob) }) {
			out = out.add(f)
			continue
		}
		var exp fields
		for _, x := range f {
			if !strings.Contains(x, glob) {
				exp = append(exp, x)
				continue
			}
			if m := s.b.view.glob(x, st.cwd, maxAlternatives); len(m) > 0 {
				exp = append(exp, m...)
			} else if strings.Contains(x, "/") || !strings.Contains(st.cwd, unknown) {
				exp = append(exp, strings.ReplaceAll(x, glob, "*"))
			} else {
				exp = append(exp, strings.ReplaceAll(x, glob, unknown))
			}
		}
		out = out.add(exp)
	}
	return out
}

// text gives a word's possible values as one string each, as in an assignment:
// no splitting and no wildcards.
func (s *script) text(w *syntax.Word, st *state, pure bool) []string {
	if w == nil {
		return []string{""}
	}
	var out []string
	for _, f := range s.parts(w.Parts, st, true, pure) {
		t := strings.ReplaceAll(bounded(strings.Join(f, " ")), glob, "*")
		if !slices.Contains(out, t) {
			out = append(out, t)
		}
	}
	return out
}

func (s *script) parts(parts []syntax.WordPart, st *state, quoted, pure bool) []fields {
	acc := []partial{{}}
	add := func(alts value) {
		var next []partial
		for _, p := range acc {
			for _, a := range alts {
				if len(next) >= maxAlternatives {
					break
				}
				n := partial{done: slices.Clip(p.done), cur: p.cur, has: p.has}
				for i, f := range a {
					if i > 0 {
						n.done = append(n.done, n.cur)
						n.cur = ""
					}
					n.cur, n.has = bounded(n.cur+f), true
				}
				if len(n.done) > maxFields {
					n.done = append(n.done[:maxFields:maxFields], unknown)
				}
				next = append(next, n)
			}
		}
		acc = next
		s.b.charge(len(next) / 4)
	}
	for i, part := range parts {
		if s.b.tick() {
			return []fields{{unknown}}
		}
		switch x := part.(type) {
		case *syntax.Lit:
			t := x.Value
			if i == 0 && strings.HasPrefix(t, "~") && !quoted {
				if t == "~" || strings.HasPrefix(t, "~/") {
					home := s.lookup("HOME", st).texts()
					if len(home) == 1 {
						add(scalar(home[0]))
						t = t[1:]
					}
				} else {
					user, rest, _ := strings.Cut(t[1:], "/")
					if u, ok := s.b.passwd(func(a account) bool { return a.name == user }); ok {
						t = u.home + "/" + rest
					}
				}
			}
			add(scalar(literal(t, quoted)))
		case *syntax.SglQuoted:
			t := x.Value
			if x.Dollar {
				t, _, _ = expand.Format(nil, x.Value, nil)
			}
			add(scalar(strip(t)))
		case *syntax.DblQuoted:
			alts := s.parts(x.Parts, st, true, pure)
			if len(x.Parts) == 0 {
				alts = scalar("")
			}
			add(alts)
		case *syntax.ParamExp:
			alts, list := s.param(x, st, quoted, pure)
			switch {
			case quoted && !list:
				var one value
				for _, t := range alts.texts() {
					one = one.add(fields{bounded(t)})
				}
				alts = one
			case !quoted:
				alts = split(alts)
			}
			add(alts)
		case *syntax.CmdSubst:
			alts := s.substitution(x, st, pure)
			if !quoted {
				alts = split(alts)
			} else {
				alts = scalar(alts.texts()...)
			}
			add(alts)
		case *syntax.ProcSubst:
			if !pure {
				s.stmts(x.Stmts, st.clone(), falls, place{sub: true})
			}
			add(scalar("/dev/fd/" + unknown))
		case *syntax.ExtGlob:
			add(scalar(glob))
		default: // arithmetic: a number
			if a, ok := part.(*syntax.ArithmExp); ok && !pure {
				s.arithm(a.X, st)
			}
			add(scalar(unknown))
		}
	}
	var out value
	for _, p := range acc {
		out = out.add(p.finish())
	}
	return out
}

func strip(t string) string {
	if strings.ContainsAny(t, wildcards) {
		return strings.NewReplacer(unknown, "", glob, "").Replace(t)
	}
	return t
}

// literal takes backslashes out of a literal and marks active wildcards.
func literal(t string, quoted bool) string {
	t = strip(t)
	if !strings.ContainsAny(t, "\\*?[") {
		return t
	}
	var b strings.Builder
	for i := 0; i < len(t); i++ {
		c := t[i]
		switch {
		case c == '\\' && i+1 < len(t):
			n := t[i+1]
			if quoted && !strings.ContainsRune("$`\"\\\n", rune(n)) {
				b.WriteByte(c)
				continue
			}
			i++
			if n != '\n' {
				b.WriteByte(n)
			}
		case quoted:
			b.WriteByte(c)
		case c == '*' || c == '?':
			b.WriteByte(globChar)
		case c == '[' && strings.IndexByte(t[i:], ']') > 1:
			i += strings.IndexByte(t[i:], ']')
			b.WriteByte(globChar)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

// split does field splitting and marks wildcards of unquoted values.
func split(v value) value {
	var out value
	for _, a := range v {
		var f fields
		for _, x := range a {
			f = append(f, strings.FieldsFunc(x, func(r rune) bool { return r == ' ' || r == '\t' || r == '\n' })...)
		}
		for i, x := range f {
			if strings.ContainsAny(x, "*?") {
				f[i] = strings.NewReplacer("*", glob, "?", glob).Replace(x)
			}
		}
		out = out.add(f)
	}
	if len(out) == 0 {
		out = value{fields{}}
	}
	return out
}

// lookup gives a variable's possible values; an unset one has a value without fields.
func (s *script) lookup(name string, st *state) value {
	if v, ok := st.vars[name]; ok {
		return v
	}
	switch {
	case name == "PWD":
		return scalar(st.cwd)
	case name == "BASH_SOURCE":
		return scalar(s.file)
	case s.bash && (name == "UID" || name == "EUID") && s.r.uid != "":
		return scalar(s.r.uid)
	case shellVars[name], st.havoc:
		return scalar(unknown)
	}
	return value{fields{}}
}

// param gives the values of $name in any of its forms, and whether they are
// lists that stay apart inside quotes ("$@", "${array[@]}").
func (s *script) param(x *syntax.ParamExp, st *state, quoted, pure bool) (value, bool) {
	if x.Param == nil || x.Flags != nil || x.NestedParam != nil || len(x.Modifiers) > 0 || x.Names != 0 {
		return scalar(unknown), false
	}
	name := x.Param.Value
	var v value
	list := false
	positional := false
	switch {
	case name == "@" || name == "*":
		v, positional = st.args, true
		list = name == "@"
	case name == "#":
		for _, a := range st.args {
			n := strconv.Itoa(len(a))
			if !allKnown(a) {
				n = unknown
			}
			v = v.add(fields{n})
		}
	case name == "0":
		v = scalar(s.arg0)
	case len(name) > 0 && name[0] >= '1' && name[0] <= '9':
		n, err := strconv.Atoi(name)
		if err != nil {
			return scalar(unknown), false
		}
		for _, a := range st.args {
			switch {
			case n <= len(a):
				v = v.add(fields{a[n-1]})
			case slices.Contains(a, unknown):
				v = v.add(fields{unknown})
			default:
				v = v.add(fields{})
			}
		}
	case name == "?" || name == "$" || name == "!" || name == "-":
		return scalar(unknown), false
	default:
		v = s.lookup(name, st)
	}
	if x.Excl { // ${!name}
		var ind value
		for _, t := range v.texts() {
			if !known(t) || t == "" {
				ind = ind.add(fields{unknown})
				continue
			}
			ref, all := strings.CutSuffix(t, "[@]")
			list = list || all
			ind = union(ind, s.lookup(ref, st))
		}
		v = ind
	}
	if x.Length || x.Width || x.IsSet {
		return scalar(unknown), false
	}
	if x.Index != nil {
		w, ok := x.Index.(*syntax.Word)
		lit := ""
		if ok {
			lit = w.Lit()
		}
		switch {
		case lit == "@" || lit == "*":
			list = lit == "@"
		default:
			n, err := strconv.Atoi(lit)
			var at value
			for _, a := range v {
				switch {
				case err == nil && n >= 0 && n < len(a):
					at = at.add(fields{a[n]})
				case err == nil && n < 0 && -n <= len(a):
					at = at.add(fields{a[len(a)+n]})
				case err == nil:
					at = at.add(fields{})
				default:
					for _, e := range a {
						at = at.add(fields{e})
					}
					at = at.add(fields{})
				}
			}
			v = at
		}
	} else if !positional && !list {
		// $array is its first element.
		if slices.ContainsFunc(v, func(f fields) bool { return len(f) > 1 }) {
			var first value
			for _, a := range v {
				first = first.add(a[:min(len(a), 1)])
			}
			v = first
		}
	}
	if x.Slice != nil {
		v = slice(x.Slice, v, positional, s.arg0)
	}
	if x.Repl != nil {
		v = s.replace(x.Repl, v, st)
	}
	if x.Exp != nil {
		v = s.expansion(x, v, st, quoted, pure)
	}
	if len(v) == 0 {
		v = value{fields{}}
	}
	return v, list
}

func slice(sl *syntax.Slice, v value, positional bool, arg0 string) value {
	num := func(a syntax.ArithmExpr) (int, bool) {
		w, ok := a.(*syntax.Word)
		if !ok {
			return 0, false
		}
		n, err := strconv.Atoi(w.Lit())
		return n, err == nil
	}
	off, okOff := num(sl.Offset)
	count, okLen := -1, true
	if sl.Length != nil {
		count, okLen = num(sl.Length)
	}
	var out value
	for _, a := range v {
		if !positional && len(a) <= 1 { // a substring
			t := strings.Join(a, "")
			if okOff && okLen && known(t) && off >= 0 && off <= len(t) && count <= len(t) && count >= -1 {
				t = t[off:]
				if count >= 0 && count < len(t) {
					t = t[:count]
				}
				out = out.add(fields{t})
			} else {
				out = out.add(fields{unknown})
			}
			continue
		}
		list := a
		if positional {
			list = append(fields{arg0}, a...)
		}
		switch {
		case okOff && okLen && off >= 0:
			rest := list[min(off, len(list)):]
			if count >= 0 && count < len(rest) {
				rest = rest[:count]
			}
			out = out.add(rest)
		default: // any part of it
			for i := range list {
				out = out.add(list[i:])
			}
			out = out.add(fields{})
		}
	}
	return out
}

func (s *script) replace(r *syntax.Replace, v value, st *state) value {
	orig, with := s.text(r.Orig, st, true), s.text(r.With, st, true)
	simple := len(orig) == 1 && len(with) == 1 && known(orig[0]) && known(with[0]) && !strings.ContainsAny(orig[0], `*?[\`) &&
		orig[0] != "" && orig[0][0] != '#' && orig[0][0] != '%'
	var out value
	for _, a := range v {
		f := make(fields, len(a))
		for i, t := range a {
			switch {
			case !simple || !known(t) && orig[0] != "":
				f[i] = unknown
			case r.All:
				f[i] = bounded(strings.ReplaceAll(t, orig[0], with[0]))
			default:
				f[i] = bounded(strings.Replace(t, orig[0], with[0], 1))
			}
		}
		out = out.add(f)
	}
	return out
}

func (s *script) expansion(x *syntax.ParamExp, v value, st *state, quoted, pure bool) value {
	e := x.Exp
	mayUnset, maySet := len(v) == 0, false
	for _, a := range v {
		t := strings.Join(a, "")
		if len(a) == 0 || t == "" || strings.Trim(t, unknown) == "" {
			mayUnset = true
		}
		if len(a) > 0 {
			maySet = true
		}
	}
	other := func() value {
		if e.Word == nil {
			return scalar("")
		}
		return value(s.parts(e.Word.Parts, st, quoted, pure))
	}
	nonEmpty := func() value {
		var out value
		for _, a := range v {
			if len(a) > 0 && strings.Join(a, "") != "" {
				out = out.add(a)
			}
		}
		return out
	}
	switch e.Op {
	case syntax.DefaultUnset, syntax.DefaultUnsetOrNull, syntax.AssignUnset, syntax.AssignUnsetOrNull:
		// Both the value and the default: the script declares the default, and
		// what cleared the environment on the way is not followed.
		out := union(nonEmpty(), other())
		if e.Op == syntax.AssignUnset || e.Op == syntax.AssignUnsetOrNull {
			if !pure {
				st.vars[x.Param.Value] = out
			}
		}
		return out
	case syntax.AlternateUnset, syntax.AlternateUnsetOrNull:
		var out value
		if maySet {
			out = other()
		}
		if mayUnset || !maySet {
			out = union(out, value{fields{}})
		}
		return out
	case syntax.RemSmallSuffix, syntax.RemLargeSuffix, syntax.RemSmallPrefix, syntax.RemLargePrefix:
		pats := s.pattern(e.Word, st)
		var out value
		for _, a := range v {
			for _, p := range pats {
				f := make(fields, len(a))
				for i, t := range a {
					f[i] = trim(t, p, e.Op)
					s.b.charge(1 + len(t)/16)
				}
				out = out.add(f)
			}
		}
		return out
	case syntax.UpperAll, syntax.LowerAll:
		var out value
		for _, a := range v {
			f := make(fields, len(a))
			for i, t := range a {
				if e.Op == syntax.UpperAll {
					f[i] = strings.ToUpper(t)
				} else {
					f[i] = strings.ToLower(t)
				}
			}
			out = out.add(f)
		}
		return out
	case syntax.ErrorUnset, syntax.ErrorUnsetOrNull:
		return v
	}
	return scalar(unknown)
}

// pattern gives a word's possible values as shell patterns: quoted parts escaped.
func (s *script) pattern(w *syntax.Word, st *state) []string {
	if w == nil {
		return []string{""}
	}
	out := []string{""}
	for _, p := range w.Parts {
		var alts []string
		switch x := p.(type) {
		case *syntax.Lit:
			alts = []string{strip(x.Value)}
		case *syntax.SglQuoted:
			alts = []string{pattern.QuoteMeta(strip(x.Value), 0)}
		case *syntax.DblQuoted:
			for _, f := range s.parts(x.Parts, st, true, true) {
				t := strings.Join(f, " ")
				if known(t) {
					t = pattern.QuoteMeta(t, 0)
				}
				alts = append(alts, t)
			}
			if len(x.Parts) == 0 {
				alts = []string{""}
			}
		case *syntax.ExtGlob:
			alts = []string{unknown}
		default:
			for _, f := range s.parts([]syntax.WordPart{p}, st, true, true) {
				alts = append(alts, strings.Join(f, " "))
			}
		}
		var next []string
		for _, o := range out {
			for _, a := range alts {
				if len(next) < 32 {
					next = append(next, bounded(o+a))
				}
			}
		}
		out = next
	}
	return out
}

// compile turns a known shell pattern into a regular expression for a whole text.
func compile(pat string) *regexp.Regexp {
	if len(pat) > 512 {
		return nil
	}
	expr, err := pattern.Regexp(pat, pattern.EntireString)
	if err != nil {
		return nil
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return nil
	}
	return re
}

func trim(t, pat string, op syntax.ParExpOperator) string {
	if !known(pat) || len(t) > 512 {
		return unknown
	}
	if !known(t) {
		// A known end may still decide: ${x%.conf} of "\x00/a.conf".
		return unknown
	}
	re := compile(pat)
	if re == nil {
		return unknown
	}
	n := len(t)
	switch op {
	case syntax.RemSmallPrefix:
		for i := 0; i <= n; i++ {
			if re.MatchString(t[:i]) {
				return t[i:]
			}
		}
	case syntax.RemLargePrefix:
		for i := n; i >= 0; i-- {
			if re.MatchString(t[:i]) {
				return t[i:]
			}
		}
	case syntax.RemSmallSuffix:
		for i := n; i >= 0; i-- {
			if re.MatchString(t[i:]) {
				return t[:i]
			}
		}
	case syntax.RemLargeSuffix:
		for i := 0; i <= n; i++ {
			if re.MatchString(t[i:]) {
				return t[:i]
			}
		}
	}
	return t
}

// substitution runs $(…) for what it executes and gives what is known of its output.
func (s *script) substitution(x *syntax.CmdSubst, st *state, pure bool) value {
	if !pure {
		s.stmts(x.Stmts, st.clone(), s.here, place{sub: true, loop: s.inLoop})
	}
	if len(x.Stmts) != 1 {
		return scalar(unknown)
	}
	stmt := x.Stmts[0]
	if c, ok := stmt.Cmd.(*syntax.CallExpr); ok && len(c.Args) == 0 && len(stmt.Redirs) == 1 { // $(< file)
		return scalar(unknown)
	}
	lines, ok := s.output(stmt, st)
	if !ok {
		return scalar(unknown)
	}
	if len(lines) == 0 {
		return value{fields{}}
	}
	if s.oneLine(stmt) {
		return scalar(lines...)
	}
	return scalar(strings.Join(lines, "\n"))
}

// oneLine tells whether the lines of output are alternatives, not a list.
func (s *script) oneLine(stmt *syntax.Stmt) bool {
	c, ok := stmt.Cmd.(*syntax.CallExpr)
	if !ok || len(c.Args) == 0 {
		return false
	}
	return !slices.Contains([]string{"find", "ls", "run-parts"}, c.Args[0].Lit())
}

// output gives what is known of a command's output, by line.
func (s *script) output(stmt *syntax.Stmt, st *state) ([]string, bool) {
	if stmt == nil || s.b.tick() || slices.ContainsFunc(stmt.Redirs, elsewhere) {
		return nil, false
	}
	switch x := stmt.Cmd.(type) {
	case *syntax.BinaryCmd:
		if x.Op != syntax.Pipe && x.Op != syntax.PipeAll {
			return nil, false
		}
		y, ok := x.Y.Cmd.(*syntax.CallExpr)
		if !ok || len(y.Args) == 0 || !slices.Contains([]string{"sort", "uniq", "head", "tail", "grep", "tac", "shuf"}, y.Args[0].Lit()) {
			return nil, false
		}
		return s.output(x.X, st) // a subset, in another order
	case *syntax.CallExpr:
		if len(x.Args) == 0 {
			return nil, false
		}
		var out []string
		for _, argv := range s.words(x.Args, st, true) {
			lines, ok := s.outputOf(argv, st)
			if !ok {
				return nil, false
			}
			out = append(out, lines...)
			if len(out) > maxFields {
				return nil, false
			}
		}
		return out, true
	}
	return nil, false
}

// elsewhere tells whether a redirection takes standard output away.
func elsewhere(r *syntax.Redirect) bool {
	switch r.Op {
	case syntax.RdrIn, syntax.DplIn, syntax.Hdoc, syntax.DashHdoc, syntax.WordHdoc:
		return r.N != nil && r.N.Value == "1"
	}
	return r.N == nil || r.N.Value == "1"
}

func (s *script) outputOf(argv []string, st *state) ([]string, bool) {
	if len(argv) == 0 {
		return nil, true
	}
	if _, isFunc := s.flow.funcs[argv[0]]; isFunc {
		return nil, false
	}
	args := argv[1:]
	operands := slices.DeleteFunc(slices.Clone(args), func(a string) bool { return strings.HasPrefix(a, "-") })
	abs := func(p string) string {
		if path.IsAbs(p) || strings.HasPrefix(p, unknown) {
			return path.Clean(p)
		}
		return path.Join(st.cwd, p)
	}
	switch path.Base(argv[0]) {
	case "id":
		return s.id(argv, st)
	case "pwd":
		return []string{st.cwd}, true
	case "echo":
		if len(args) > 0 && args[0] == "-n" {
			args = args[1:]
		}
		return []string{bounded(strings.Join(args, " "))}, true
	case "printf":
		if len(args) == 2 && (args[0] == "%s" || args[0] == `%s\n`) {
			return []string{args[1]}, true
		}
		if len(args) == 1 && !strings.ContainsAny(args[0], `%\`) {
			return args, true
		}
	case "dirname":
		if len(operands) == 1 && known(operands[0]) {
			return []string{path.Dir(operands[0])}, true
		}
		if len(operands) == 1 {
			if i := strings.LastIndexByte(operands[0], '/'); i > 0 && known(operands[0][i:]) {
				return []string{operands[0][:i]}, true
			}
		}
	case "basename":
		if len(operands) > 0 && known(operands[0]) {
			b := path.Base(operands[0])
			if len(operands) == 2 && known(operands[1]) {
				b = strings.TrimSuffix(b, operands[1])
			}
			return []string{b}, true
		}
	case "readlink", "realpath":
		if len(operands) == 1 && known(operands[0]) && known(st.cwd) {
			p := abs(operands[0])
			if o, err := s.b.view.stat(p); err == nil {
				p = o.path
			}
			return []string{p}, true
		}
	case "command", "which", "type":
		if argv[0] == "command" && !slices.Contains(args, "-v") {
			return nil, false
		}
		if len(operands) == 1 && known(operands[0]) {
			var out []string
			for _, search := range searchPaths(st.vars) {
				if o := s.b.view.lookPath(operands[0], search, st.cwd); o != nil && !slices.Contains(out, o.path) {
					out = append(out, o.path)
				}
			}
			if len(out) == 0 {
				out = []string{""}
			}
			return out, true
		}
	case "run-parts":
		if len(operands) == 1 && known(operands[0]) && (slices.Contains(args, "--list") || slices.Contains(args, "--test")) {
			var out []string
			for _, n := range s.b.view.names(operands[0], maxAlternatives) {
				out = append(out, path.Join(operands[0], n))
			}
			return out, true
		}
	case "ls":
		if len(operands) == 0 {
			operands = []string{st.cwd}
		}
		var out []string
		for _, d := range operands {
			if !known(d) {
				return nil, false
			}
			o, err := s.b.view.stat(abs(d))
			if err != nil {
				continue
			}
			if !o.dir() {
				out = append(out, d)
				continue
			}
			out = append(out, s.b.view.names(o.path, maxAlternatives)...)
		}
		return out, true
	case "find":
		var out []string
		left := 20_000
		for _, d := range args {
			if strings.HasPrefix(d, "-") {
				if d == "-H" || d == "-L" || d == "-P" {
					continue
				}
				break
			}
			if d == "!" || d == "(" {
				break
			}
			if !known(d) || !known(st.cwd) {
				return nil, false
			}
			files, whole := s.b.view.files(abs(d), &left)
			if !whole {
				return nil, false
			}
			out = append(out, files...)
		}
		return out, len(out) <= maxAlternatives
	}
	return nil, false
}
