package procmap

import (
	"fmt"
	"maps"
	"path"
	"strings"

	"github.com/declarun/declarun/procmap/catalogue"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// maxKnown bounds what one container is given by the catalogue.
const maxKnown = 1024

// files lets the catalogue read the image with the mounts over it.
type files struct{ b *builder }

// Text implements catalogue.Files.
func (f files) Text(name string) string {
	o, err := f.b.view.stat(name)
	if err != nil || !o.regular() {
		return ""
	}
	text, err := o.root.ReadFile(o.name, maxSource)
	if err != nil {
		f.b.note(record.Processes, "read %s: %v", o.path, err)
		return ""
	}
	return string(text)
}

// Glob implements catalogue.Files.
func (f files) Glob(pattern string) []string {
	return f.b.view.glob(strings.ReplaceAll(pattern, "*", glob), "/", 256)
}

// Program implements catalogue.Files.
func (f files) Program(name string) bool {
	o, err := f.b.view.stat(name)
	return err == nil && o.executable()
}

// know asks the catalogue about a program that a declaration runs. What is only
// a string in another program does not count.
func (b *builder) know(name string, argv []string, r *run) []catalogue.Fact {
	if r.helper > 0 || r.identity == record.Operator || b.known >= maxKnown {
		return nil
	}
	facts := catalogue.Know(catalogue.Run{Path: name, Argv: argv, Env: singles(r.vars), Dir: r.cwd, Files: files{b}})
	if b.known += len(facts); b.known >= maxKnown {
		b.note(record.Processes, "configuration files name more than %d programs: the rest were left out", maxKnown)
		facts = facts[:max(0, len(facts)-(b.known-maxKnown))]
	}
	return facts
}

// singles are the variables with one value that is known.
func singles(vars map[string]value) map[string]string {
	out := map[string]string{}
	for name := range vars {
		if v, ok := one(vars, name); ok {
			out[name] = v
		}
	}
	return out
}

// becomes tells whether the program is replaced by another one.
func becomes(facts []catalogue.Fact) bool {
	for _, f := range facts {
		if f.Becomes {
			return true
		}
	}
	return false
}

// apply follows what is known of a program that was started as r.
func (b *builder) apply(facts []catalogue.Fact, name string, r *run) {
	for _, f := range facts {
		at := f.At
		if at == "" {
			at = name
		}
		origin := record.Origin{Source: record.FromCatalogue, At: at, Text: clip(f.Application+": "+f.Source, 120)}
		switch {
		case f.Opens != "":
			b.opens(f, at, r)
			continue
		case f.Port != 0:
			b.listen(f, origin, r)
			continue
		case f.Write != "":
			t := target{path: f.Write, kind: below, phase: r.phase, origin: origin, maps: f.Maps}
			if f.Alone {
				t.kind = file
			}
			if p := b.programs[processKey{path: name}]; p != nil && f.Maps {
				p.Loads = true
			}
			if len(b.targets) < maxTargets {
				b.targets = append(b.targets, t)
			}
			continue
		}
		argv := f.Argv
		if f.Line != "" {
			shell := f.Shell
			if shell == "" {
				shell = "/bin/sh"
			}
			argv = []string{shell, "-c", f.Line}
		}
		if f.At == "" && f.Line == "" && !b.there(argv[0], r) {
			continue // what such applications may run: no configuration names it
		}
		c := r.child(argv, origin)
		c.input = nil
		if !f.Becomes {
			c.chain, c.serves = false, f.Serves && r.serves
		}
		if f.Dir != "" && path.IsAbs(f.Dir) {
			c.cwd = f.Dir
		}
		if len(f.Env) > 0 {
			if c.vars = maps.Clone(c.vars); c.vars == nil {
				c.vars = map[string]value{}
			}
			for name, v := range f.Env {
				c.vars[name] = scalar(v)
			}
		}
		if err := b.follow(c); err != nil {
			b.note(record.Processes, "%v", err)
		}
	}
}

// opens: whatever the image has may be run, on behalf of who uses the program.
func (b *builder) opens(f catalogue.Fact, at string, r *run) {
	if r.identity != record.Application {
		b.note(record.Processes, "%s: %s", at, f.Opens)
		return
	}
	if b.wide == "" {
		b.wide = fmt.Sprintf("%s (%s)", f.Opens, at)
	}
}

// listen notes a port that the application listens on.
func (b *builder) listen(f catalogue.Fact, origin record.Origin, r *run) {
	if r.identity != record.Application {
		return
	}
	for i := range b.listens {
		if l := &b.listens[i]; l.Proto == f.Proto && l.Port == f.Port {
			l.Origins = addOrigins(l.Origins, origin)
			return
		}
	}
	b.listens = append(b.listens, plan.Listen{Proto: f.Proto, Port: f.Port, Origins: []record.Origin{origin}})
}

// there tells whether a program would be found.
func (b *builder) there(name string, r *run) bool {
	for _, search := range searchPaths(r.vars) {
		if b.view.lookPath(name, search, r.cwd) != nil {
			return true
		}
	}
	return false
}
