package filter

import "github.com/opencontainers/runtime-spec/specs-go"

// AllowedBy tells, for a call's name, whether an engine's profile allows it
// with any arguments at all. What it never allows need not be in a plan.
func AllowedBy(engine *specs.LinuxSeccomp) (func(name string) bool, error) {
	p, err := parseProfile(engine)
	if err != nil {
		return nil, err
	}
	return func(name string) bool { return !p.rule(name).Never() }, nil
}

// AlwaysAllowedBy tells, for a call's name, whether an engine's profile allows it
// whatever its arguments are. A nil profile allows everything.
func AlwaysAllowedBy(engine *specs.LinuxSeccomp) (func(name string) bool, error) {
	if engine == nil {
		return func(string) bool { return true }, nil
	}
	p, err := parseProfile(engine)
	if err != nil {
		return nil, err
	}
	return func(name string) bool { return p.rule(name).Always() }, nil
}
