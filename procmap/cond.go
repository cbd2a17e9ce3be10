package procmap

import (
	"slices"
	"strconv"
	"strings"

	"mvdan.cc/sh/v3/syntax"
)

// outcome is a set of truth values.
type outcome uint8

const (
	yes outcome = 1 << iota
	no
	either = yes | no
)

func (o outcome) not() outcome {
	return o&yes<<1 | o&no>>1
}

func (o outcome) and(p outcome) outcome {
	var out outcome
	if o&yes != 0 && p&yes != 0 {
		out |= yes
	}
	if o&no != 0 || p&no != 0 {
		out |= no
	}
	return out
}

func (o outcome) or(p outcome) outcome { return o.not().and(p.not()).not() }

// condition runs a statement and gives the states after success and failure.
func (s *script) condition(x *syntax.Stmt, st *state, next flow, c place) (t, f *state) {
	s.stmt(x, st, next, c)
	if st.dead {
		return st.clone(), st
	}
	t, f = st.clone(), st.clone()
	var yesArgs, noArgs value
	for _, a := range st.args {
		one := *st
		one.args = value{a}
		o := s.test(x, &one)
		if o&yes != 0 {
			yesArgs = yesArgs.add(a)
		}
		if o&no != 0 {
			noArgs = noArgs.add(a)
		}
	}
	if len(st.args) > 0 {
		t.args, f.args = yesArgs, noArgs
		t.dead, f.dead = len(yesArgs) == 0, len(noArgs) == 0
	}
	return t, f
}

// test decides a condition as far as the values in it are known. Only
// comparisons of strings are decided: the state of files and of the system may
// differ when the container runs.
func (s *script) test(x *syntax.Stmt, st *state) outcome {
	if x == nil || s.b.tick() || x.Background {
		return either
	}
	out := either
	switch cmd := x.Cmd.(type) {
	case *syntax.CallExpr:
		if len(cmd.Args) == 0 {
			break
		}
		name := cmd.Args[0].Lit()
		if _, ok := s.flow.funcs[name]; ok {
			break
		}
		switch name {
		case "true", ":":
			out = yes
		case "false":
			out = no
		case "[", "test":
			words := cmd.Args[1:]
			out = 0
			for _, f := range s.words(words, st, true) {
				if name == "[" {
					if len(f) == 0 || f[len(f)-1] != "]" {
						return either
					}
					f = f[:len(f)-1]
				}
				out |= testArgs(f)
			}
			if out == 0 {
				out = either
			}
		}
	case *syntax.TestClause:
		out = s.testExpr(cmd.X, st)
	case *syntax.ArithmCmd:
		out = s.testArithm(cmd.X, st)
	case *syntax.BinaryCmd:
		switch cmd.Op {
		case syntax.AndStmt:
			out = s.test(cmd.X, st).and(s.test(cmd.Y, st))
		case syntax.OrStmt:
			out = s.test(cmd.X, st).or(s.test(cmd.Y, st))
		}
	case *syntax.Block:
		if len(cmd.Stmts) == 1 {
			out = s.test(cmd.Stmts[0], st)
		}
	}
	if x.Negated {
		out = out.not()
	}
	return out
}

func equal(a, b string) outcome {
	switch {
	case known(a) && known(b):
		if a == b {
			return yes
		}
		return no
	}
	// Known beginnings that differ decide.
	pa, _, _ := strings.Cut(a, unknown)
	pb, _, _ := strings.Cut(b, unknown)
	if n := min(len(pa), len(pb)); pa[:n] != pb[:n] {
		return no
	}
	if known(a) && len(pb) > len(a) || known(b) && len(pa) > len(b) {
		return no
	}
	return either
}

// compare decides between numbers in their plain form; all else may be read in
// more than one way.
func compare(op, a, b string) outcome {
	x, err1 := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	if err1 != nil || err2 != nil || strconv.Itoa(x) != a || strconv.Itoa(y) != b {
		return either
	}
	holds := false
	switch op {
	case "-eq", "==":
		holds = x == y
	case "-ne", "!=":
		holds = x != y
	case "-lt", "<":
		holds = x < y
	case "-le", "<=":
		holds = x <= y
	case "-gt", ">":
		holds = x > y
	case "-ge", ">=":
		holds = x >= y
	default:
		return either
	}
	if holds {
		return yes
	}
	return no
}

// testArithm decides (( )) where it compares known numbers.
func (s *script) testArithm(x syntax.ArithmExpr, st *state) outcome {
	if s.b.tick() {
		return either
	}
	if s.nest++; s.nest > maxNest {
		s.nest--
		return either
	}
	defer func() { s.nest-- }()
	switch e := x.(type) {
	case *syntax.ParenArithm:
		return s.testArithm(e.X, st)
	case *syntax.Word:
		var out outcome
		for _, t := range s.number(e, st) {
			out |= compare("!=", t, "0")
		}
		return out
	case *syntax.UnaryArithm:
		if e.Op == syntax.Not {
			return s.testArithm(e.X, st).not()
		}
	case *syntax.BinaryArithm:
		switch e.Op {
		case syntax.AndArit:
			return s.testArithm(e.X, st).and(s.testArithm(e.Y, st))
		case syntax.OrArit:
			return s.testArithm(e.X, st).or(s.testArithm(e.Y, st))
		}
		l, ok1 := e.X.(*syntax.Word)
		r, ok2 := e.Y.(*syntax.Word)
		if !ok1 || !ok2 {
			return either
		}
		var out outcome
		for _, a := range s.number(l, st) {
			for _, b := range s.number(r, st) {
				out |= compare(e.Op.String(), a, b)
			}
		}
		return out
	}
	return either
}

// number gives the possible texts of a word in an arithmetic expression, where
// a bare name is a variable.
func (s *script) number(w *syntax.Word, st *state) []string {
	texts := s.text(w, st, true)
	if name := w.Lit(); name != "" && syntax.ValidName(name) {
		texts = s.lookup(name, st).texts()
	}
	if len(texts) == 0 {
		return []string{unknown}
	}
	return texts
}

func empty(a string) outcome {
	switch {
	case a == "":
		return yes
	case strings.Trim(a, wildcards) == "":
		return either
	}
	return no
}

func testArgs(a []string) outcome {
	if i := slices.Index(a, "-o"); i > 0 && i < len(a)-1 && len(a) > 3 {
		return testArgs(a[:i]).or(testArgs(a[i+1:]))
	}
	if i := slices.Index(a, "-a"); i > 0 && i < len(a)-1 && len(a) > 3 {
		return testArgs(a[:i]).and(testArgs(a[i+1:]))
	}
	switch len(a) {
	case 0:
		return no
	case 1:
		return empty(a[0]).not()
	case 2:
		switch a[0] {
		case "!":
			return testArgs(a[1:]).not()
		case "-z":
			return empty(a[1])
		case "-n":
			return empty(a[1]).not()
		}
	case 3:
		switch a[1] {
		case "=", "==":
			return equal(a[0], a[2])
		case "!=":
			return equal(a[0], a[2]).not()
		case "-eq", "-ne", "-lt", "-le", "-gt", "-ge":
			return compare(a[1], a[0], a[2])
		}
		if a[0] == "!" {
			return testArgs(a[1:]).not()
		}
	case 4:
		if a[0] == "!" {
			return testArgs(a[1:]).not()
		}
	}
	return either
}

func (s *script) testExpr(x syntax.TestExpr, st *state) outcome {
	if s.b.tick() {
		return either
	}
	if s.nest++; s.nest > maxNest {
		s.nest--
		return either
	}
	defer func() { s.nest-- }()
	switch e := x.(type) {
	case *syntax.ParenTest:
		return s.testExpr(e.X, st)
	case *syntax.Word:
		var out outcome
		for _, t := range s.text(e, st, true) {
			out |= empty(t).not()
		}
		return out
	case *syntax.UnaryTest:
		switch e.Op {
		case syntax.TsNot:
			return s.testExpr(e.X, st).not()
		case syntax.TsEmpStr, syntax.TsNempStr:
			w, ok := e.X.(*syntax.Word)
			if !ok {
				return either
			}
			var out outcome
			for _, t := range s.text(w, st, true) {
				out |= empty(t)
			}
			if e.Op == syntax.TsNempStr {
				out = out.not()
			}
			return out
		}
	case *syntax.BinaryTest:
		switch e.Op {
		case syntax.AndTest:
			return s.testExpr(e.X, st).and(s.testExpr(e.Y, st))
		case syntax.OrTest:
			return s.testExpr(e.X, st).or(s.testExpr(e.Y, st))
		case syntax.TsEql, syntax.TsNeq, syntax.TsLss, syntax.TsLeq, syntax.TsGtr, syntax.TsGeq:
			l, ok1 := e.X.(*syntax.Word)
			r, ok2 := e.Y.(*syntax.Word)
			if !ok1 || !ok2 {
				return either
			}
			var out outcome
			for _, a := range s.text(l, st, true) {
				for _, b := range s.text(r, st, true) {
					out |= compare(e.Op.String(), a, b)
				}
			}
			return out
		case syntax.TsMatch, syntax.TsMatchShort, syntax.TsNoMatch:
			l, ok1 := e.X.(*syntax.Word)
			r, ok2 := e.Y.(*syntax.Word)
			if !ok1 || !ok2 {
				return either
			}
			var out outcome
			for _, t := range s.text(l, st, true) {
				for _, p := range s.pattern(r, st) {
					out |= matches(t, p)
				}
			}
			if e.Op == syntax.TsNoMatch {
				out = out.not()
			}
			return out
		}
	}
	return either
}

// matches decides whether a text matches a shell pattern.
func matches(t, pat string) outcome {
	if !known(pat) {
		return either
	}
	if pat == "*" {
		return yes
	}
	if !known(t) {
		if !strings.ContainsAny(pat, `*?[\`) {
			return equal(t, pat)
		}
		return either
	}
	re := compile(pat)
	if re == nil {
		return either
	}
	if re.MatchString(t) {
		return yes
	}
	return no
}

// testEffects runs the substitutions in a [[ ]].
func (s *script) testEffects(x syntax.TestExpr, st *state) {
	syntax.Walk(x, func(n syntax.Node) bool {
		if w, ok := n.(*syntax.Word); ok {
			s.text(w, st, false)
			return false
		}
		return !s.b.tick()
	})
}

func (s *script) ifClause(x *syntax.IfClause, st *state, next flow, c place) {
	if len(x.Cond) == 0 { // else
		s.stmts(x.Then, st, next, c)
		return
	}
	branches := s.flow.list(x.Then).then(next)
	if x.Else != nil {
		branches |= s.flow.ifClause(x.Else).then(next)
	} else {
		branches |= next
	}
	after := s.flow.after(x.Cond, branches)
	for i, q := range x.Cond[:len(x.Cond)-1] {
		s.stmt(q, st, after[i], c)
	}
	t, f := s.condition(x.Cond[len(x.Cond)-1], st, branches, c)
	s.stmts(x.Then, t, next, c)
	if x.Else != nil {
		if s.nest++; s.nest > maxNest {
			s.nest--
			s.b.dynamic(s.r, scriptName(s.file)+" is nested too deeply")
			return
		}
		s.ifClause(x.Else, f, next, c)
		s.nest--
	}
	t.join(f)
	*st = *t
}

func (s *script) caseClause(x *syntax.CaseClause, st *state, next flow, c place) {
	here := s.here
	s.here = s.flow.caseClause(x).then(next) // what the word runs, runs before
	s.text(x.Word, st, false)
	s.here = here
	s.each(x, st, func(st *state) { s.case1(x, st, next, c) })
}

func (s *script) case1(x *syntax.CaseClause, st *state, next flow, c place) {
	// case $f: inside a branch, f has only the values that lead there.
	name := ""
	if p := onlyParam(x.Word); p != nil && p.Exp == nil && p.Repl == nil && p.Slice == nil && p.Index == nil && !p.Excl && !p.Length {
		if v, ok := st.vars[p.Param.Value]; ok && !slices.ContainsFunc(v, func(f fields) bool { return len(f) != 1 }) {
			name = p.Param.Value
		}
	}
	left := s.text(x.Word, st, true)
	out := st.clone()
	out.dead = true
	var through *state // ;& goes on in the next branch
	for _, it := range x.Items {
		var in, rest []string
		for _, t := range left {
			o := outcome(0)
			for _, w := range it.Patterns {
				for _, p := range s.pattern(w, st) {
					s.b.charge(1)
					o |= matches(t, p) & yes
					if matches(t, p) == yes {
						o |= 4 // for certain
					}
				}
			}
			if o&yes != 0 {
				in = append(in, t)
			}
			if o&4 == 0 {
				rest = append(rest, t)
			}
		}
		if len(in) == 0 && through == nil {
			continue
		}
		one := st.clone()
		one.dead = len(in) == 0
		if name != "" && len(in) > 0 {
			one.vars[name] = scalar(in...)
		}
		if through != nil {
			one.join(through)
			through = nil
		}
		s.stmts(it.Stmts, one, next, c)
		switch it.Op {
		case syntax.Fallthrough:
			through = one
		case syntax.Resume, syntax.ResumeKorn:
			out.join(one)
		default:
			out.join(one)
			left = rest
		}
	}
	if through != nil {
		out.join(through)
	}
	if len(left) > 0 {
		out.join(st)
	}
	*st = *out
}

func onlyParam(w *syntax.Word) *syntax.ParamExp {
	if w == nil || len(w.Parts) != 1 {
		return nil
	}
	switch p := w.Parts[0].(type) {
	case *syntax.ParamExp:
		if p.Param != nil {
			return p
		}
	case *syntax.DblQuoted:
		if len(p.Parts) == 1 {
			if e, ok := p.Parts[0].(*syntax.ParamExp); ok && e.Param != nil {
				return e
			}
		}
	}
	return nil
}
