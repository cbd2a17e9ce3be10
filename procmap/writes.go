package procmap

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// kind says what of a path a command writes.
type kind uint8

const (
	file  kind = iota // the file: its directory must be writable
	below             // the directory and what is in it
)

// target is one path that a script writes.
type target struct {
	path   string // may hold unknown
	kind   kind
	phase  record.Phase
	origin record.Origin
	maps   bool // libraries are loaded from there
}

const maxTargets = 4096

func (b *builder) target(r *run, p string, k kind) {
	if p == "" || p == "-" || r.identity == record.Operator {
		return
	}
	if !path.IsAbs(p) && !strings.HasPrefix(p, unknown) {
		p = r.cwd + "/" + p
	}
	t := target{path: p, kind: k, phase: r.phase}
	if len(r.origins) > 0 {
		t.origin = r.origins[0]
	}
	if len(b.targets) >= maxTargets {
		b.note(record.Storage, "scripts write to more than %d places: the rest were left out", maxTargets)
		return
	}
	if !slices.Contains(b.targets, t) {
		b.targets = append(b.targets, t)
	}
}

// writer is a program that writes to what its operands name.
type writer struct {
	short string   // one-letter options that take a value
	long  []string // long options that take a value as the next argument
	skip  int      // operands before the first path (mode, owner, expression)
	kind  kind
	last  bool   // only the last operand is written (cp, ln)
	first bool   // the others too: mv removes its sources
	into  string // option whose value is the directory written to: cp -t, tar -C
	only  string // nothing is written without one of these options: sed -i
	// skipNot: with one of these options the operand of skip is not there (chown --reference).
	skipNot []string
}

// writers by name. Sources: POSIX and GNU coreutils' manual pages.
var writers = map[string]writer{
	"mkdir":    {short: "mZ", long: []string{"--mode"}, kind: below},
	"rmdir":    {kind: file},
	"touch":    {short: "drt", long: []string{"--date", "--reference"}, kind: file},
	"truncate": {short: "sr", long: []string{"--size", "--reference"}, kind: file},
	"rm":       {kind: file}, "unlink": {kind: file}, "shred": {short: "nsu", kind: file},
	"chown":   {long: []string{"--from"}, skip: 1, kind: below, skipNot: []string{"--reference"}},
	"chgrp":   {skip: 1, kind: below, skipNot: []string{"--reference"}},
	"chmod":   {skip: 1, kind: below, skipNot: []string{"--reference"}},
	"setfacl": {short: "mxMX", kind: below},
	"install": {short: "mogStZ", long: []string{"--mode", "--owner", "--group", "--suffix", "--target-directory"}, kind: file, last: true, into: "t"},
	"cp":      {short: "St", long: []string{"--suffix", "--target-directory"}, kind: file, last: true, into: "t"},
	"mv":      {short: "St", long: []string{"--suffix", "--target-directory"}, kind: file, last: true, first: true, into: "t"},
	"ln":      {short: "St", long: []string{"--suffix", "--target-directory"}, kind: file, last: true, into: "t"},
	"rsync":   {short: "eTf", long: []string{"--rsh", "--exclude", "--include"}, kind: below, last: true},
	"tee":     {kind: file}, "sponge": {kind: file},
	"sed":    {short: "efl", long: []string{"--expression", "--file", "--line-length"}, skip: 1, kind: file, only: "i", skipNot: []string{"-e", "-f", "--expression", "--file"}},
	"perl":   {short: "eEI", skip: 0, kind: file, only: "i"},
	"mkfifo": {short: "m", kind: file},
	"tar":    {short: "fCTX", kind: below, last: true, into: "C", only: "x"},
	"unzip":  {short: "dx", kind: below, last: true, into: "d"},
	"wget":   {short: "OoaPtTwQ", kind: file, last: true, into: "P"},
	"mktemp": {short: "p", kind: file, into: "p"},
}

// writes records what a program is asked to write.
func (b *builder) writes(name string, args []string, r *run) {
	if name == "dd" {
		for _, a := range args {
			if p, ok := strings.CutPrefix(a, "of="); ok {
				b.target(r, p, file)
			}
		}
		return
	}
	if name == "curl" || name == "wget" || name == "openssl" || name == "gpg" || name == "sort" {
		for i, a := range args {
			flag := map[string][]string{"curl": {"-o", "--output"}, "wget": {"-O"}, "openssl": {"-out", "-keyout"}, "gpg": {"-o", "--output"}, "sort": {"-o"}}[name]
			if i > 0 && slices.Contains(flag, args[i-1]) {
				b.target(r, a, file)
			}
		}
		return
	}
	w, ok := writers[name]
	if !ok {
		return
	}
	var operands []string
	skip, writes := w.skip, w.only == ""
	directory := false // install -d
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--":
			operands = append(operands, args[i+1:]...)
			i = len(args)
		case strings.HasPrefix(a, "--"):
			opt, v, has := strings.Cut(a, "=")
			if slices.Contains(w.skipNot, opt) {
				skip = 0
			}
			if !has && slices.Contains(w.long, opt) && i+1 < len(args) {
				i++
				v = args[i]
			}
			switch opt {
			case "--in-place":
				writes = writes || w.only == "i"
			case "--extract":
				writes = writes || w.only == "x"
			case "--directory":
				directory = name == "install"
				if name == "tar" {
					b.target(r, v, below)
				}
			case "--target-directory":
				b.target(r, v, below)
				w.last = false
				w.skip = len(args)
			}
		case len(a) > 1 && a[0] == '-' && !strings.HasPrefix(a, "-"+unknown):
			for j := 1; j < len(a); j++ {
				c := a[j : j+1]
				if c == w.only {
					writes = true
					if c == "i" { // the rest is a suffix
						break
					}
				}
				if name == "install" && c == "d" {
					directory = true
				}
				if slices.Contains(w.skipNot, "-"+c) {
					skip = 0
				}
				if !strings.Contains(w.short, c) {
					continue
				}
				v := a[j+1:]
				if v == "" && i+1 < len(args) {
					i++
					v = args[i]
				}
				if c == w.into {
					b.target(r, v, below)
					if name != "tar" {
						w.first = w.first || false
						w.last = true
						operands = append(operands, "")
					}
				}
				break
			}
		default:
			if name == "tar" && len(operands) == 0 && i == 0 && !strings.ContainsAny(a, "/.") { // tar xzf
				writes = writes || strings.Contains(a, "x")
				continue
			}
			operands = append(operands, a)
		}
	}
	if !writes {
		return
	}
	if name == "chmod" && skip == 1 && len(operands) == 1 { // chmod -x file: the mode looked like an option
		skip = 0
	}
	operands = operands[min(skip, len(operands)):]
	k := w.kind
	if directory {
		k, w.last = below, false
	}
	if w.last && !w.first && len(operands) > 0 {
		operands = operands[len(operands)-1:]
	}
	if name == "tar" {
		operands = nil
		b.target(r, ".", below)
	}
	for i, p := range operands {
		kk := k
		if w.last && i == len(operands)-1 {
			// cp into a directory writes in it; onto a file, beside it.
			if q := p; known(q) {
				if !path.IsAbs(q) {
					q = r.cwd + "/" + q
				}
				if o, err := b.view.stat(q); err == nil && o.dir() || strings.HasSuffix(p, "/") {
					kk = below
				}
			}
		}
		b.target(r, p, kk)
	}
}

// account is a line of /etc/passwd.
type account struct {
	name, home, shell string
	uid               uint32
}

// passwd finds the first account that a function accepts.
func (b *builder) passwd(accept func(account) bool) (account, bool) {
	o, err := b.view.stat("/etc/passwd")
	if err != nil {
		return account{}, false
	}
	data, err := o.root.ReadFile(o.name, maxSource)
	if err != nil {
		return account{}, false
	}
	for line := range strings.SplitSeq(string(data), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 7 {
			continue
		}
		uid, err := strconv.ParseUint(f[2], 10, 32)
		if err != nil {
			continue
		}
		a := account{name: f[0], uid: uint32(uid), home: strip(f[5]), shell: strip(strings.TrimSpace(f[6]))}
		if accept(a) {
			return a, true
		}
	}
	return account{}, false
}

// stateOf records where a program that serves was built to keep its state: the
// subdirectory of /var/lib that is its own (FHS 3.0, 5.8: "an application must
// use a subdirectory of /var/lib for its data"). Only one that the image has.
func (b *builder) stateOf(o *object, at string) {
	rest := strings.TrimPrefix(path.Clean(at), "/var/lib/")
	own, _, _ := strings.Cut(rest, "/")
	dir := "/var/lib/" + own
	if d, err := b.view.stat(dir); own == "" || err != nil || !d.dir() || never(dir) {
		return
	}
	t := target{path: dir, kind: below, phase: record.Serving,
		origin: record.Origin{Source: record.FromFile, At: o.path, Text: clip(fmt.Sprintf("string %q", at), 120)}}
	if len(b.targets) < maxTargets && !slices.ContainsFunc(b.targets, func(x target) bool { return x.path == dir && x.phase == record.Serving }) {
		b.targets = append(b.targets, t)
	}
}
