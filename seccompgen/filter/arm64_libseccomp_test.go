//go:build cgo && amd64

package filter

import (
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	libseccomp "github.com/seccomp/libseccomp-golang"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/record"
)

// loadArm64 is load on an arm64 machine.
func loadArm64(t testing.TB, p *specs.LinuxSeccomp) program {
	t.Helper()
	f := compile(t, p)
	if err := f.RemoveArch(libseccomp.ArchAMD64); err != nil {
		t.Fatal(err)
	}
	ins, ok := bpf.Disassemble(export(t, f))
	if !ok {
		t.Fatal("cannot disassemble the filter")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	return program{vm}
}

// The same names are other numbers there, and some calls do not exist.
func TestFilterForArm64(t *testing.T) {
	in := input(t)
	in.Arch, in.Engine = "arm64", Usual("arm64")
	p, v := build(t, in)
	if !slices.Equal(p.Architectures, []specs.Arch{specs.ArchAARCH64}) {
		t.Fatalf("architectures %v", p.Architectures)
	}
	vm := loadArm64(t, p)
	checked, allowed := 0, 0
	for nr := range 600 {
		name, named := sysno.Name("arm64", nr)
		i := slices.IndexFunc(v.Entries["arm64"], func(e Entry) bool { return e.Nr == nr })
		if named != (i >= 0) {
			t.Errorf("%d %s has a verdict: %v", nr, name, i >= 0)
		}
		if _, err := libseccomp.GetSyscallFromNameByArch(name, libseccomp.ArchARM64); !named || err != nil {
			continue // newer than the library
		}
		for _, args := range arguments(name) {
			got, want := vm.run(t, unix.AUDIT_ARCH_AARCH64, nr, args), expected(v.Entries["arm64"][i], args)
			if got != want {
				t.Errorf("%s(%#x) %d: filter says %#x, verdicts %#x", name, args[0], nr, got, want)
			}
			if got == retAllow {
				allowed++
			}
			checked++
		}
	}
	if checked < 300 || allowed < 20 {
		t.Errorf("%d calls checked, %d allowed", checked, allowed)
	}
	for _, arch := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_ARM} {
		if got := vm.run(t, arch, 59, [6]uint64{}); got != unix.SECCOMP_RET_KILL_THREAD {
			t.Errorf("a call of architecture %#x: %#x", arch, got)
		}
	}
}

// 32-bit ARM is covered where a program needs it and the engine has it.
func TestFilterForArm64Compat(t *testing.T) {
	in := input(t)
	in.Arch, in.Engine, in.Has32 = "arm64", Usual("arm64"), true
	p, v := build(t, in)
	if !slices.Equal(p.Architectures, []specs.Arch{specs.ArchAARCH64, specs.ArchARM}) || len(v.Entries["arm"]) < 300 {
		t.Errorf("architectures %v, %d verdicts", p.Architectures, len(v.Entries["arm"]))
	}
	in.Engine.Architectures = []specs.Arch{specs.ArchAARCH64}
	if p, v := build(t, in); len(p.Architectures) != 1 || len(v.Entries["arm"]) != 0 {
		t.Errorf("without the engine: %v, %d verdicts", p.Architectures, len(v.Entries["arm"]))
	}
	if got := v.Judge(Call{AuditArch: unix.AUDIT_ARCH_ARM, Nr: 11}, Caller{Mode: in.Mode, Phase: record.Starting}); got.Name != "execve" || !got.Continue {
		t.Errorf("execve of a 32-bit program: %+v", got)
	}
}
