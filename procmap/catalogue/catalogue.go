// Package catalogue holds what is known of common applications and cannot be
// read from what an image declares: programs that a configuration file names,
// directories that hold nothing but programs of theirs, places that they write
// to, and that they give a shell to whoever logs in.
//
// It is reviewed data (the tables in applications.go) with a source for each
// entry: the manual page or the project's documentation. An application is
// recognised by the program that a declaration runs, by its path's last
// element, and in some cases by a file that only it has; never by the name of
// an image. An application that is not in it works from its declarations alone.
//
// What it guarantees: it reads the files that the image and the operator's
// mounts have, in bounded time and memory whatever they hold, and each Fact
// says where it stands and why it is believed. A fact only ever adds a program
// that is there, or a place to write to.
//
// What it does not guarantee: a configuration that is written when the
// container starts, or fetched, is not seen; neither are names that a
// configuration language of its own puts together (Lua, Exim's expansions).
package catalogue

import (
	"path"
	"slices"
	"strings"
)

// Unknown stands in arguments and values for text that is not known.
const Unknown = "\x00"

// Files are those of the image with the mounts over it.
type Files interface {
	// Text gives what a regular file holds, and "" where there is none or it is too large.
	Text(name string) string
	// Glob gives the paths that match; * stands for text without a slash. They
	// are sorted and bounded in number.
	Glob(pattern string) []string
	// Program tells whether a path is an executable file.
	Program(name string) bool
}

// Run is a program that is being started.
type Run struct {
	Path string   // of the program, or of the script
	Argv []string // with its name; may hold Unknown
	Env  map[string]string
	Dir  string
	Files
}

// Fact is one thing that is known of an application in an image. Exactly one of
// Argv, Line, Write, Port and Opens says what.
type Fact struct {
	// Argv is a command that it runs.
	Argv []string
	// Line is a command line that it gives to a shell: Shell, or /bin/sh.
	Line, Shell string
	// Write is a path that it writes to; with Maps it also loads libraries
	// from there that it made itself.
	Write string
	Maps  bool
	// Alone: nothing in the directory but this file.
	Alone bool
	// Port is one that it listens on without being told to, with its Proto. That
	// it listens there does not mean that anybody may connect.
	Port  uint16
	Proto string
	// Opens says that it runs whatever those ask for who use it, and why.
	Opens string

	Env map[string]string // of the command, besides the application's own
	Dir string            // "": the application's own
	// Becomes: it is replaced by the command.
	Becomes bool
	// Serves: the command is a server of its own, not a helper.
	Serves bool

	Application string
	At          string // the file and line that say so; "": the entry itself
	Source      string // why what stands there is believed
}

// application is one entry: how it is recognised, and what is known of it.
type application struct {
	name   string
	is     []string // last elements of the program's path; * stands for anything
	has    string   // a path that the image must have, too
	source string   // for everything that facts gives
	facts  func(r Run) []Fact
}

const (
	maxFacts = 512
	maxFiles = 256
	maxLine  = 4096
)

// Know tells what is known of a program that is started.
func Know(r Run) []Fact {
	base := path.Base(r.Path)
	var out []Fact
	for _, a := range applications {
		if !slices.ContainsFunc(a.is, func(is string) bool { ok, _ := path.Match(is, base); return ok }) {
			continue
		}
		if a.has != "" && len(r.Glob(a.has)) == 0 {
			continue
		}
		for _, f := range a.facts(r) {
			if f.Application = a.name; f.Source == "" {
				f.Source = a.source
			}
			if len(out) >= maxFacts {
				return out
			}
			out = append(out, f)
		}
	}
	return out
}

// Names lists the applications.
func Names() []string {
	var out []string
	for _, a := range applications {
		out = append(out, a.name)
	}
	return out
}

// option gives the values of options: "-c VALUE", "-cVALUE", "--conf VALUE", "--conf=VALUE".
func (r Run) option(names ...string) []string {
	var out []string
	for i := 1; i < len(r.Argv); i++ {
		for _, n := range names {
			v, ok := strings.CutPrefix(r.Argv[i], n)
			switch {
			case !ok:
			case v == "" && i+1 < len(r.Argv):
				out = append(out, r.Argv[i+1])
			case strings.HasPrefix(n, "--"):
				if v, ok := strings.CutPrefix(v, "="); ok {
					out = append(out, v)
				}
			case v != "":
				out = append(out, v)
			}
		}
	}
	return out
}

// configs gives the configuration files that are read: those that options name,
// else those that match the globs.
func (r Run) configs(options []string, globs ...string) []string {
	var out []string
	for _, v := range r.option(options...) {
		if strings.Contains(v, Unknown) {
			out = nil // it may be any of those that are usual
			break
		}
		out = append(out, r.abs(v))
	}
	if out != nil {
		return out
	}
	for _, g := range globs {
		out = append(out, r.Glob(g)...)
	}
	return out[:min(len(out), maxFiles)]
}

// more adds files to be read, each once.
func more(files []string, names ...string) []string {
	for _, n := range names {
		if len(files) < maxFiles && !slices.Contains(files, n) {
			files = append(files, n)
		}
	}
	return files
}

func (r Run) abs(p string) string {
	if !path.IsAbs(p) {
		p = path.Join("/", r.Dir, p)
	}
	return path.Clean(p)
}
