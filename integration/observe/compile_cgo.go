//go:build cgo && amd64

package observe

import (
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/sys/unix"
)

var operators = map[specs.LinuxSeccompOperator]libseccomp.ScmpCompareOp{
	specs.OpNotEqual: libseccomp.CompareNotEqual, specs.OpLessThan: libseccomp.CompareLess,
	specs.OpLessEqual: libseccomp.CompareLessOrEqual, specs.OpEqualTo: libseccomp.CompareEqual,
	specs.OpGreaterEqual: libseccomp.CompareGreaterEqual, specs.OpGreaterThan: libseccomp.CompareGreater,
	specs.OpMaskedEqual: libseccomp.CompareMaskedEqual,
}

func action(a specs.LinuxSeccompAction, errno *uint) (libseccomp.ScmpAction, error) {
	code := int16(unix.EPERM)
	if errno != nil {
		code = int16(*errno)
	}
	switch a {
	case specs.ActAllow:
		return libseccomp.ActAllow, nil
	case specs.ActErrno:
		return libseccomp.ActErrno.SetReturnCode(code), nil
	case specs.ActNotify:
		return libseccomp.ActNotify, nil
	}
	return libseccomp.ActInvalid, fmt.Errorf("action %s", a)
}

// Compile makes the kernel's program of a profile, through libseccomp and in
// the steps that runc takes (libcontainer/seccomp/seccomp_linux.go).
func Compile(p *specs.LinuxSeccomp) ([]byte, error) {
	def, err := action(p.DefaultAction, p.DefaultErrnoRet)
	if err != nil {
		return nil, fmt.Errorf("compile filter: %w", err)
	}
	f, err := libseccomp.NewFilter(def)
	if err != nil {
		return nil, fmt.Errorf("compile filter: %w", err)
	}
	defer f.Release()
	for _, a := range p.Architectures {
		names := map[specs.Arch]string{specs.ArchX86_64: "amd64", specs.ArchX86: "x86", specs.ArchX32: "x32", specs.ArchAARCH64: "arm64"}
		arch, err := libseccomp.GetArchFromString(names[a])
		if err != nil {
			return nil, fmt.Errorf("compile filter: architecture %s: %w", a, err)
		}
		if err := f.AddArch(arch); err != nil {
			return nil, fmt.Errorf("compile filter: architecture %s: %w", a, err)
		}
	}
	if err := f.SetOptimize(2); err != nil { // as runc does since 1.1
		return nil, fmt.Errorf("compile filter: %w", err)
	}
	for _, s := range p.Syscalls {
		act, err := action(s.Action, s.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("compile filter: %w", err)
		}
		if act == def {
			continue
		}
		if err := add(f, s, act); err != nil {
			return nil, fmt.Errorf("compile filter: %w", err)
		}
	}
	// libseccomp writes to a descriptor only.
	tmp, err := os.CreateTemp("", "bpf")
	if err != nil {
		return nil, err
	}
	defer os.Remove(tmp.Name())
	defer tmp.Close()
	if err := f.ExportBPF(tmp); err != nil {
		return nil, fmt.Errorf("compile filter: %w", err)
	}
	return os.ReadFile(tmp.Name())
}

// add adds the rules of one entry. Two conditions on one argument are one rule
// each, as in runc: libseccomp takes no more than one per argument in a rule.
func add(f *libseccomp.ScmpFilter, s specs.LinuxSyscall, act libseccomp.ScmpAction) error {
	var all []libseccomp.ScmpCondition
	var used [6]bool
	shared := false
	for _, a := range s.Args {
		c, err := libseccomp.MakeCondition(a.Index, operators[a.Op], a.Value, a.ValueTwo)
		if err != nil {
			return err
		}
		all = append(all, c)
		shared = shared || used[a.Index]
		used[a.Index] = true
	}
	rules := [][]libseccomp.ScmpCondition{all}
	if shared {
		rules = nil
		for _, c := range all {
			rules = append(rules, []libseccomp.ScmpCondition{c})
		}
	}
	for _, name := range s.Names {
		nr, err := libseccomp.GetSyscallFromName(name)
		if err != nil {
			continue // runc leaves out what its libseccomp does not know
		}
		for _, r := range rules {
			if len(r) == 0 {
				err = f.AddRule(nr, act)
			} else {
				err = f.AddRuleConditional(nr, act, r)
			}
			if err != nil {
				return fmt.Errorf("rule for %s: %w", name, err)
			}
		}
	}
	return nil
}
