package procmap

import (
	"mvdan.cc/sh/v3/syntax"
)

// flow is a set of ways in which a piece of a script can end.
type flow uint8

const (
	falls  flow = 1 << iota // goes on with what follows
	execs                   // becomes another program
	exits                   // ends, perhaps well
	fails                   // ends with an error
	leaves                  // returns from the function or sourced file
)

// then is the flow of a piece with flow f followed by one with flow g.
func (f flow) then(g flow) flow {
	if f&falls == 0 {
		return f
	}
	return f&^falls | g
}

// flows works out and remembers the flow of statements. It is syntax only: no
// value decides a branch, except that a function's name leads to its body.
type flows struct {
	funcs map[string]*syntax.Stmt
	memo  map[*syntax.Stmt]flow
	busy  map[*syntax.Stmt]bool
	nest  int
}

func (f *flows) list(stmts []*syntax.Stmt) flow {
	out := falls
	for _, s := range stmts {
		if out&falls == 0 {
			break
		}
		out = out.then(f.stmt(s))
	}
	return out
}

// after gives for each statement the flow of those that follow it; a return is
// taken for leave, falling off the end for next.
func (f *flows) after(stmts []*syntax.Stmt, next flow) []flow {
	out := make([]flow, len(stmts))
	for i := len(stmts) - 1; i >= 0; i-- {
		out[i] = next
		next = f.stmt(stmts[i]).then(next)
	}
	return out
}

func (f *flows) stmt(s *syntax.Stmt) flow {
	if s == nil {
		return falls
	}
	if v, ok := f.memo[s]; ok {
		return v
	}
	if f.busy[s] || f.nest > maxNest { // recursion of functions
		return falls
	}
	f.busy[s] = true
	f.nest++
	v := f.eval(s)
	f.nest--
	delete(f.busy, s)
	if f.nest == 0 || len(f.busy) == 0 {
		f.memo[s] = v
	} else if _, calls := s.Cmd.(*syntax.CallExpr); !calls {
		f.memo[s] = v
	}
	return v
}

func (f *flows) eval(s *syntax.Stmt) flow {
	if s.Background || s.Coprocess || s.Disown {
		return falls
	}
	switch x := s.Cmd.(type) {
	case *syntax.CallExpr:
		if len(x.Args) == 0 {
			return falls
		}
		name := x.Args[0].Lit()
		args := x.Args[1:]
		for (name == "command" || name == "builtin") && len(args) > 0 {
			name, args = args[0].Lit(), args[1:]
		}
		if body, ok := f.funcs[name]; ok && name != "" {
			v := f.stmt(body)
			if v&leaves != 0 {
				v = v&^leaves | falls
			}
			return v
		}
		switch name {
		case "exec":
			if len(args) > 0 {
				return execs
			}
		case "exit":
			switch {
			case len(args) == 0 || args[0].Lit() == "0" || args[0].Lit() == "":
				return exits
			default:
				return fails
			}
		case "return":
			return leaves
		}
	case *syntax.Block:
		return f.list(x.Stmts)
	case *syntax.IfClause:
		return f.ifClause(x)
	case *syntax.WhileClause:
		// A loop on a constant only ends from within, but a break is not told apart.
		return f.list(x.Cond).then(falls | f.list(x.Do))
	case *syntax.ForClause:
		return falls | f.list(x.Do)
	case *syntax.CaseClause:
		return f.caseClause(x)
	case *syntax.BinaryCmd:
		switch x.Op {
		case syntax.AndStmt, syntax.OrStmt:
			return f.stmt(x.X).then(falls | f.stmt(x.Y))
		}
	case *syntax.TimeClause:
		return f.stmt(x.Stmt)
	}
	return falls
}

func (f *flows) caseClause(x *syntax.CaseClause) flow {
	out, all := flow(0), false
	for _, it := range x.Items {
		out |= f.list(it.Stmts)
		if it.Op == syntax.Fallthrough || it.Op == syntax.Resume {
			out |= falls
		}
		for _, p := range it.Patterns {
			all = all || p.Lit() == "*"
		}
	}
	if !all {
		out |= falls
	}
	return out
}

func (f *flows) ifClause(x *syntax.IfClause) flow {
	if x == nil {
		return falls
	}
	if len(x.Cond) == 0 { // else
		return f.list(x.Then)
	}
	return f.list(x.Cond).then(f.list(x.Then) | f.ifClause(x.Else))
}
