package procmap

import (
	"maps"
	"slices"
	"strings"
)

// In values, the NUL byte (which no shell word can hold) stands for text that
// is not known, and globChar for an active wildcard.
const (
	unknown   = "\x00"
	globChar  = '\x01'
	glob      = "\x01"
	wildcards = unknown + glob
)

const (
	maxAlternatives = 128
	maxFields       = 1024
	maxText         = 4096
	maxArgVectors   = 8
)

// fields is one possible value: the fields of an array or of "$@"; a scalar
// has one. An unset variable has none.
type fields []string

// value is the set of possible values.
type value []fields

func scalar(texts ...string) value {
	v := make(value, 0, len(texts))
	for _, s := range texts {
		v = append(v, fields{s})
	}
	return v
}

func literals(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		out[i] = strings.NewReplacer(unknown, "", glob, "").Replace(a)
	}
	return out
}

func (v value) add(f fields) value {
	for _, x := range v {
		if slices.Equal(x, f) {
			return v
		}
	}
	if len(v) >= maxAlternatives {
		if len(v) == maxAlternatives {
			return append(v, fields{unknown})
		}
		return v
	}
	if len(f) > maxFields {
		f = append(slices.Clone(f[:maxFields]), unknown)
	}
	return append(v, f)
}

func union(a, b value) value {
	if len(a) == len(b) && len(a) > 0 && &a[0] == &b[0] {
		return a
	}
	out := slices.Clip(a)
	for _, f := range b {
		out = out.add(f)
	}
	return out
}

// known tells whether s is fully known.
func known(s string) bool { return !strings.ContainsAny(s, wildcards) }

func allKnown(argv []string) bool {
	for _, s := range argv {
		if !known(s) {
			return false
		}
	}
	return true
}

// bounded keeps a text within maxText, and runs of unknowns short.
func bounded(s string) string {
	for strings.Contains(s, unknown+unknown) {
		s = strings.ReplaceAll(s, unknown+unknown, unknown)
	}
	if len(s) > maxText {
		return s[:maxText] + unknown
	}
	return s
}

// texts gives each alternative as one string.
func (v value) texts() []string {
	var out []string
	for _, f := range v {
		if s := strings.Join(f, " "); !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// state is what is known at one point of a script.
type state struct {
	vars map[string]value
	args value  // "$@", one element per possible vector
	cwd  string // may hold unknown
	dead bool   // not reached: after exit, exec, return
	// havoc: something unknown was sourced or evaluated, unset variables may be anything.
	havoc bool
}

func (s *state) clone() *state {
	c := *s
	c.vars = maps.Clone(s.vars)
	return &c
}

// joinInto makes s what is known after either of s and t.
func (s *state) join(t *state) {
	switch {
	case t.dead:
		return
	case s.dead:
		*s = *t.clone()
		return
	}
	for k, tv := range t.vars {
		sv, ok := s.vars[k]
		if !ok {
			sv = value{fields{}}
		}
		s.vars[k] = union(sv, tv)
	}
	for k, sv := range s.vars {
		if _, ok := t.vars[k]; !ok {
			s.vars[k] = union(sv, value{fields{}})
		}
	}
	s.args = union(s.args, t.args)
	if len(s.args) > maxArgVectors {
		s.args = append(slices.Clone(s.args[:maxArgVectors]), fields{unknown})
	}
	if s.cwd != t.cwd {
		s.cwd = unknown
	}
	s.havoc = s.havoc || t.havoc
}

// environment reads NAME=VALUE strings.
func environment(env []string) map[string]value {
	vars := make(map[string]value, len(env))
	for _, e := range env {
		if name, v, ok := strings.Cut(e, "="); ok && name != "" {
			vars[name] = scalar(bounded(strings.NewReplacer(unknown, "", glob, "").Replace(v)))
		}
	}
	return vars
}

// anyVariable stands in an environment for variables whose names are not known.
const anyVariable = unknown

// settings are the variables, by how their names begin, that say where libraries
// and programs find the configuration which decides what they load: of OpenSSL
// (openssl-env(7)), PHP (php(1)) and curl (curl(1)).
var settings = []string{"OPENSSL_", "PHPRC", "PHP_INI_SCAN_DIR", "CURL_HOME", "XDG_CONFIG_HOME", "HOME"}

// unsettled tells whether an environment may differ from the declared one in
// any of settings.
func unsettled(vars map[string]value, declared []string) bool {
	was := environment(declared)
	for name, v := range vars {
		if strings.ContainsAny(name, wildcards) {
			return true
		}
		if !setting(name) {
			continue
		}
		if now, ok := one(vars, name); !ok || len(was[name]) == 0 || was[name][0][0] != now || len(v) != 1 {
			return true
		}
	}
	for name := range was {
		if _, ok := vars[name]; !ok && setting(name) {
			return true
		}
	}
	return false
}

func setting(name string) bool {
	return slices.ContainsFunc(settings, func(s string) bool { return strings.HasPrefix(name, s) })
}

// one gives a variable's only value, or ok false.
func one(vars map[string]value, name string) (string, bool) {
	v := vars[name]
	if len(v) != 1 || len(v[0]) != 1 || !known(v[0][0]) {
		return "", false
	}
	return v[0][0], true
}
