package runtime

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Verb is a runc command that declarun acts on. The zero Verb is every other
// command: it is runc's alone.
type Verb string

const (
	Create  Verb = "create"
	Run     Verb = "run"
	Restore Verb = "restore"
	Exec    Verb = "exec"
	Delete  Verb = "delete"
)

// Invocation is what a command line means to runc, as far as declarun acts on it.
type Invocation struct {
	Verb Verb
	// Word is the command, whatever it is; empty where there is none or where
	// it cannot be told.
	Word string

	Root, Log, LogFormat string // global flags as given; empty: not given
	Help, Version        bool   // global --help and --version

	Bundle  string // create, run, restore; empty: the current directory
	ID      string
	Process string   // exec --process
	Args    []string // exec: the command in the container
}

// AmbiguousError says that a command line has two readings that declarun
// would have to treat differently.
type AmbiguousError struct {
	First, Second string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("parse arguments: with a flag this version does not know they could mean %s or %s", e.First, e.Second)
}

// Remedy says how to write the line so that it has one reading.
func (e *AmbiguousError) Remedy() string {
	return "write flags newer than declarun as --flag=value"
}

var errTooManyUnknown = errors.New("parse arguments: more than 8 unknown flags")

// maxUnknown bounds the readings of one line to 2 to the power of it.
const maxUnknown = 8

// takesValue is the arity of runc's flags by name.
type takesValue map[string]bool

// The flags of runc 1.1 to 1.5. A flag that is not in here may or may not
// take a value.
var (
	globalFlags = takesValue{
		"log": true, "log-format": true, "root": true, "criu": true, "rootless": true,
		"debug": false, "systemd-cgroup": false,
		"help": false, "h": false, "version": false, "v": false,
	}
	commandFlags = map[Verb]takesValue{
		Create: {
			"bundle": true, "b": true, "console-socket": true, "pidfd-socket": true, "pid-file": true, "preserve-fds": true,
			"no-pivot": false, "no-new-keyring": false, "help": false, "h": false,
		},
		Run: {
			"bundle": true, "b": true, "console-socket": true, "pidfd-socket": true, "pid-file": true, "preserve-fds": true,
			"detach": false, "d": false, "keep": false, "no-subreaper": false, "no-pivot": false, "no-new-keyring": false,
			"help": false, "h": false,
		},
		Restore: {
			"console-socket": true, "image-path": true, "work-path": true, "manage-cgroups-mode": true, "bundle": true, "b": true,
			"pid-file": true, "empty-ns": true, "lsm-profile": true, "lsm-mount-context": true,
			"tcp-established": false, "ext-unix-sk": false, "shell-job": false, "file-locks": false, "detach": false, "d": false,
			"no-subreaper": false, "no-pivot": false, "auto-dedup": false, "lazy-pages": false, "help": false, "h": false,
		},
		Exec: {
			"console-socket": true, "pidfd-socket": true, "cwd": true, "env": true, "e": true, "user": true, "u": true,
			"additional-gids": true, "g": true, "process": true, "p": true, "pid-file": true, "process-label": true,
			"apparmor": true, "cap": true, "c": true, "preserve-fds": true, "cgroup": true,
			"tty": false, "t": false, "detach": false, "d": false, "no-new-privs": false, "ignore-paused": false,
			"help": false, "h": false,
		},
		Delete: {"force": false, "f": false, "help": false, "h": false},
	}
)

// Parse reads the arguments after the program's name as runc does: urfave/cli
// v1 over package flag. Flags are -f, --f, -f=v, --f=v, -f v and --f v; global
// ones come before the command, the command's own before or after the
// container's ID (for exec: before it), "--" ends them.
//
// An unknown flag is read both with and without a value. Readings under which
// runc would do nothing but complain (a missing or second ID, --help) do not
// count, and neither do those with a command that declarun does not act on: if
// one reading is left, that is the invocation, and if two are left that
// differ, it is an AmbiguousError. So a create, run or restore is never
// mistaken for another command. The reverse can happen ("--new state create
// c1"), which at worst refuses a line that is none.
func Parse(args []string) (Invocation, error) {
	var found, other []Invocation
	err := eachReading(args, globalFlags, func(flags []flagValue, rest []string) error {
		inv := Invocation{}
		for _, f := range flags {
			switch f.name {
			case "root":
				inv.Root = f.value
			case "log":
				inv.Log = f.value
			case "log-format":
				inv.LogFormat = f.value
			case "help", "h":
				inv.Help = isTrue(f.value)
			case "version", "v":
				inv.Version = isTrue(f.value)
			}
		}
		if len(rest) > 0 {
			inv.Word = rest[0]
		}
		known, acted := commandFlags[Verb(inv.Word)]
		if !acted || inv.Help || inv.Version {
			other = append(other, inv)
			return nil
		}
		valid := false
		if err := eachCommandReading(inv, rest[1:], known, func(inv Invocation) {
			valid = true
			if !slices.ContainsFunc(found, inv.same) {
				found = append(found, inv)
			}
		}); err != nil {
			return err
		}
		if !valid {
			other = append(other, inv)
		}
		return nil
	})
	switch {
	case err != nil && !slices.ContainsFunc(args, isActedOn):
		return Invocation{}, nil // no reading can name a command that is not there
	case err != nil:
		return Invocation{}, err
	case len(found) == 1:
		return found[0], nil
	case len(found) > 1:
		return Invocation{}, &AmbiguousError{First: found[0].String(), Second: found[1].String()}
	case len(other) == 0: // not one flag of it could be read
		return Invocation{}, nil
	}
	inv := other[0]
	for _, o := range other[1:] {
		switch {
		case o.Word == inv.Word || isForPeople(inv.Word):
		case isForPeople(o.Word):
			inv.Word = o.Word
		default:
			inv.Word = ""
		}
		inv.Help = inv.Help && o.Help
		inv.Version = inv.Version && o.Version
	}
	return inv, nil
}

func isActedOn(arg string) bool {
	_, ok := commandFlags[Verb(arg)]
	return ok
}

// same compares what declarun acts on.
func (inv Invocation) same(o Invocation) bool {
	return inv.Verb == o.Verb && inv.Root == o.Root && inv.Bundle == o.Bundle && inv.ID == o.ID &&
		inv.Process == o.Process && slices.Equal(inv.Args, o.Args)
}

func (inv Invocation) String() string {
	s := fmt.Sprintf("%s %q", inv.Verb, inv.ID)
	if inv.Bundle != "" {
		s += fmt.Sprintf(" of bundle %q", inv.Bundle)
	}
	if inv.Root != "" {
		s += fmt.Sprintf(" in root %q", inv.Root)
	}
	return s
}

// eachCommandReading visits the readings of a command's own arguments under
// which runc would act.
func eachCommandReading(inv Invocation, args []string, known takesValue, visit func(Invocation)) error {
	inv.Verb = Verb(inv.Word)
	accept := func(flags []flagValue, operands []string) error {
		inv, help := inv, false
		for _, f := range flags {
			switch f.name {
			case "help", "h":
				help = isTrue(f.value) // the last one counts
			case "bundle", "b":
				inv.Bundle = f.value
			case "process", "p":
				inv.Process = f.value
			}
		}
		if help || len(operands) == 0 || inv.Verb != Exec && len(operands) != 1 {
			return nil
		}
		inv.ID = operands[0]
		if inv.Verb == Exec {
			inv.Args = operands[1:]
		}
		visit(inv)
		return nil
	}
	if inv.Verb == Exec { // SkipArgReorder: what follows the ID is the container's
		return eachReading(args, known, accept)
	}
	if err := eachReading(reorder(args, known), known, accept); err != nil {
		return err
	}
	return eachInterleaved(args, known, nil, nil, maxUnknown, accept)
}

type flagValue struct{ name, value string }

// flagName takes -name, --name, -name=value or --name=value apart.
func flagName(arg string) (name, value string, hasValue, ok bool) {
	name = strings.TrimPrefix(strings.TrimPrefix(arg, "-"), "-")
	name, value, hasValue = strings.Cut(name, "=")
	if name == "" || strings.HasPrefix(name, "-") {
		return "", "", false, false
	}
	return name, value, hasValue, true
}

// isOperand tells what ends flags in package flag: "-" is an operand.
func isOperand(arg string) bool { return len(arg) < 2 || arg[0] != '-' }

// isTrue reads the value of a boolean flag; one that runc would complain about
// counts as false, so that the command is still acted on.
func isTrue(value string) bool {
	b, err := strconv.ParseBool(value)
	return err == nil && b
}

// eachReading visits every reading of the flags that args begins with. A
// reading that is no flag syntax ends without a visit.
func eachReading(args []string, known takesValue, visit func(flags []flagValue, rest []string) error) error {
	return readFlags(args, known, nil, maxUnknown, visit)
}

func readFlags(args []string, known takesValue, flags []flagValue, unknown int, visit func([]flagValue, []string) error) error {
	for len(args) > 0 && !isOperand(args[0]) {
		if args[0] == "--" {
			args = args[1:]
			break
		}
		name, value, hasValue, ok := flagName(args[0])
		if !ok {
			return nil
		}
		args = args[1:]
		takes, isKnown := known[name]
		switch {
		case hasValue:
		case isKnown && !takes:
			value = "true"
		case isKnown:
			if len(args) == 0 {
				return nil
			}
			value, args = args[0], args[1:]
		default:
			if unknown--; unknown < 0 {
				return errTooManyUnknown
			}
			if len(args) > 0 {
				if err := readFlags(args[1:], known, append(slices.Clip(flags), flagValue{name, args[0]}), unknown, visit); err != nil {
					return err
				}
			}
			value = "true"
		}
		flags = append(slices.Clip(flags), flagValue{name, value})
	}
	return visit(flags, args)
}

// reorder puts the flags of a command in front of its operands in the manner of
// urfave/cli v1.22. It has its quirks: what follows a flag moves with it even if
// the flag takes no value, a value missing at the end is taken from the
// operands ("run B c1 --bundle" runs c1 of bundle B), and a "--" moves to the
// front of the operands, so that "run --x --" starts a container named "--x".
func reorder(args []string, known takesValue) []string {
	var flags, operands []string
	mayBeValue := false
	for i, arg := range args {
		name, _, hasValue, _ := flagName(strings.TrimPrefix(arg, "-"))
		_, isKnown := known[name]
		isFlag := isKnown && !isOperand(arg) && arg != "--"
		switch {
		case isFlag:
			flags = append(flags, arg)
			mayBeValue = !hasValue
		case mayBeValue:
			flags = append(flags, arg)
			mayBeValue = false
		case arg == "--":
			operands = append([]string{"--"}, operands...)
			return append(append(flags, operands...), args[i+1:]...)
		default:
			operands = append(operands, arg)
		}
	}
	return append(flags, operands...)
}

// eachInterleaved is eachReading for commands whose flags may stand on both
// sides of the operands, without the quirks of reorder: how any other parser
// (getopt, later versions of urfave/cli) reads the line.
func eachInterleaved(args []string, known takesValue, flags []flagValue, operands []string, unknown int, visit func([]flagValue, []string) error) error {
	for len(args) > 0 {
		if isOperand(args[0]) {
			operands = append(slices.Clip(operands), args[0])
			args = args[1:]
			continue
		}
		if args[0] == "--" {
			operands = append(slices.Clip(operands), args[1:]...)
			break
		}
		name, value, hasValue, ok := flagName(args[0])
		if !ok {
			return nil
		}
		takes, isKnown := known[name]
		args = args[1:]
		switch {
		case hasValue:
		case isKnown && !takes:
			value = "true"
		case isKnown:
			if len(args) == 0 {
				return nil
			}
			value, args = args[0], args[1:]
		default:
			if unknown--; unknown < 0 {
				return errTooManyUnknown
			}
			if len(args) > 0 {
				with := append(slices.Clip(flags), flagValue{name, args[0]})
				if err := eachInterleaved(args[1:], known, with, operands, unknown, visit); err != nil {
					return err
				}
			}
			value = "true"
		}
		flags = append(slices.Clip(flags), flagValue{name, value})
	}
	return visit(flags, operands)
}
