package plan

import (
	"fmt"

	"github.com/declarun/declarun/shim/record"
)

// Arg is what is known of one scalar argument of a call: all the values it can
// have, or the place that may pass any. The zero Arg restricts nothing.
type Arg struct {
	Index    uint8      `json:"index"`
	Values   []ArgValue `json:"values,omitempty"`
	Unproved *Site      `json:"unproved,omitempty"`
}

// Proved tells whether Values are all that the argument can be.
func (a Arg) Proved() bool { return a.Unproved == nil && len(a.Values) > 0 }

// ArgValue is one value of an argument, in the 32 bits that the kernel looks at.
type ArgValue struct {
	Value   uint32          `json:"value"`
	Origins []record.Origin `json:"origins,omitempty"`
}

func (a Arg) words() []string {
	var out []string
	for _, v := range a.Values {
		out = append(out, fmt.Sprintf("%#x", v.Value))
	}
	return out
}

// args writes what is proved of the calls' arguments.
func (p *printer) args(calls []Syscall) {
	for _, c := range calls {
		for _, a := range c.Args {
			if a.Proved() {
				p.words(fmt.Sprintf("  %-10s", c.Name), append([]string{fmt.Sprintf("argument %d is one of", a.Index+1)}, a.words()...))
			}
		}
	}
}

// whyArgs writes where values come from, or why any is allowed.
func (p *printer) whyArgs(args []Arg) {
	for _, a := range args {
		switch u := a.Unproved; {
		case a.Proved():
			for _, v := range a.Values {
				p.line("  argument %d may be %#x", a.Index+1, v.Value)
				for _, o := range v.Origins {
					p.line("    ← %s", o)
				}
			}
		case u == nil:
		case u.File == "":
			p.line("  argument %d may be anything: %s", a.Index+1, u.Reason)
		default:
			p.line("  argument %d may be anything: %s+%#x: %s", a.Index+1, u.File, u.Address, u.Reason)
		}
	}
}
