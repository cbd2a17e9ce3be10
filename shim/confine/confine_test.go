package confine

import (
	"testing"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/seccompgen/sysno"
)

// run has a second implementation judge what the kernel would.
func run(t *testing.T, prog []unix.SockFilter, arch uint32, nr uint32, args ...uint64) uint32 {
	t.Helper()
	raw := make([]bpf.RawInstruction, len(prog))
	for i, f := range prog {
		raw[i] = bpf.RawInstruction{Op: f.Code, Jt: f.Jt, Jf: f.Jf, K: f.K}
	}
	ins, whole := bpf.Disassemble(raw)
	if !whole {
		t.Fatal("not every instruction is one")
	}
	vm, err := bpf.NewVM(ins)
	if err != nil {
		t.Fatal(err)
	}
	// The machine of that package reads in network order.
	data := make([]byte, 64)
	word := func(at int, v uint32) {
		data[at], data[at+1], data[at+2], data[at+3] = byte(v>>24), byte(v>>16), byte(v>>8), byte(v)
	}
	word(dataNr, nr)
	word(dataArch, arch)
	for i, a := range args {
		word(dataArgs+8*i, uint32(a))
		word(dataArgs+8*i+4, uint32(a>>32))
	}
	got, err := vm.Run(data)
	if err != nil {
		t.Fatal(err)
	}
	return uint32(got)
}

func TestProgram(t *testing.T) {
	rules := []Rule{
		{Name: "read"},
		{Name: "write", If: []Cond{Is(0, 2)}},
		{Name: "write", If: []Cond{Is(0, 3), None(2, 1<<40|1)}},
		{Name: "openat", If: []Cond{None(2, unix.O_ACCMODE|unix.O_CREAT)}},
		{Name: "clone", If: []Cond{{0, ^uint64(0), 0x50f00}}},
		{Name: "clone3", Refuse: unix.ENOSYS},
	}
	const other = unix.SECCOMP_RET_USER_NOTIF
	for arch, audit := range auditArch {
		prog, err := Program(arch, rules, other)
		if err != nil {
			t.Fatal(err)
		}
		nr := func(name string) uint32 {
			n, ok := sysno.Number(arch, name)
			if !ok {
				t.Fatal(name)
			}
			return uint32(n)
		}
		for _, row := range []struct {
			claim string
			arch  uint32
			nr    uint32
			args  []uint64
			want  uint32
		}{
			{"a call without conditions", audit, nr("read"), nil, unix.SECCOMP_RET_ALLOW},
			{"the first rule of two", audit, nr("write"), []uint64{2, 0, 1}, unix.SECCOMP_RET_ALLOW},
			{"the second rule of two", audit, nr("write"), []uint64{3, 0, 2}, unix.SECCOMP_RET_ALLOW},
			{"one condition of two", audit, nr("write"), []uint64{3, 0, 3}, other},
			{"one condition of two, in the upper half", audit, nr("write"), []uint64{3, 0, 1 << 40}, other},
			{"no rule of two", audit, nr("write"), []uint64{4, 0, 2}, other},
			{"an int is 32 bits to the kernel, and so it is here", audit, nr("write"), []uint64{2 | 1<<32}, unix.SECCOMP_RET_ALLOW},
			{"open to read", audit, nr("openat"), []uint64{0, 0, unix.O_RDONLY | unix.O_CLOEXEC}, unix.SECCOMP_RET_ALLOW},
			{"open to write", audit, nr("openat"), []uint64{0, 0, unix.O_WRONLY}, other},
			{"open to make", audit, nr("openat"), []uint64{0, 0, unix.O_CREAT}, other},
			{"a thread", audit, nr("clone"), []uint64{0x50f00}, unix.SECCOMP_RET_ALLOW},
			{"a process", audit, nr("clone"), []uint64{17}, other},
			{"a thread with a bit above", audit, nr("clone"), []uint64{1<<32 | 0x50f00}, other},
			{"a call with a second best", audit, nr("clone3"), nil, unix.SECCOMP_RET_ERRNO | uint32(unix.ENOSYS)},
			{"a call of no rule", audit, nr("execve"), nil, other},
			{"a number that is none", audit, 100_000, nil, other},
			{"x32", audit, x32 | nr("read"), nil, unix.SECCOMP_RET_KILL_PROCESS},
			{"another architecture", unix.AUDIT_ARCH_I386, nr("read"), nil, unix.SECCOMP_RET_KILL_PROCESS},
		} {
			if got := run(t, prog, row.arch, row.nr, row.args...); got != row.want {
				t.Errorf("%s: %s: %#x, want %#x", arch, row.claim, got, row.want)
			}
		}
	}
}

func TestProgramErrors(t *testing.T) {
	for claim, rules := range map[string][]Rule{
		"a call that is none":      {{Name: "no_such_call"}},
		"a seventh argument":       {{Name: "read", If: []Cond{Is(6, 0)}}},
		"more than jumps can span": {{Name: "read", If: make([]Cond, 0)}, {Name: "write", If: many(100)}},
	} {
		if _, err := Program("amd64", rules, 0); err == nil {
			t.Errorf("%s is no error", claim)
		}
	}
	if _, err := Program("s390x", nil, 0); err == nil {
		t.Error("a big-endian machine is no error")
	}
}

func many(n int) []Cond {
	out := make([]Cond, n)
	for i := range out {
		out[i] = Is(0, uint32(i))
	}
	return out
}
