//go:build cgo && amd64

package filter

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// restricted is a server whose calls are held to what they are given.
func restricted(t testing.TB) Input {
	in := input(t)
	in.Allow = slices.DeleteFunc(in.Allow, func(s plan.Syscall) bool { return s.Name == "socket" || s.Name == "personality" || s.Name == "clone" })
	in.Allow = append(in.Allow,
		with("ioctl", record.Serving, arg(1, 0x5401, 0x5402, 0x5403, 0x5404, 0x5410, 0x541b, 0x5421, 0x5452, 0x8910, 0x8912, 0x891b, 0x8933)), // nginx
		with("prctl", record.Serving, arg(0, 1, 3, 4, 8, 15, 16, 23, 35)),
		with("ptrace", record.Serving, arg(0, 0x4200, 0x4206)),
		with("personality", record.Serving, arg(0, 8, 9, 0xffffffff)),
		with("clone", record.Serving, arg(0, 0x11, 0x1200011, 0x10000011)),
		with("socket", record.Serving, arg(0, 1, 2, 10, 16), arg(1, 1)))
	return in
}

// The filter that libseccomp makes says the same as the verdicts, for every
// call with restrictions and any of them, and the engine's filter allows what
// it allows.
func TestRestrictedFilterIsWhatTheVerdictsSay(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	names := []string{"ioctl", "prctl", "socket", "keyctl", "clone", "personality", "unshare", "ptrace"}
	for round := range 30 {
		in := restricted(t)
		if round%3 == 1 {
			in.Engine = domains(in.Engine)
		}
		if round > 2 {
			in.Allow = server()
			for _, name := range names {
				if rnd.IntN(4) == 0 {
					continue
				}
				in.Allow = slices.DeleteFunc(in.Allow, func(s plan.Syscall) bool { return s.Name == name })
				in.Allow = append(in.Allow, with(name, record.Serving, arg(uint8(rnd.IntN(3)), randomValues(rnd)...)))
			}
		}
		p, v := build(t, in)
		ours, engine := load(t, p), load(t, in.Engine)
		for _, name := range names {
			nr, _ := sysno.Number("amd64", name)
			i := slices.IndexFunc(v.Entries["amd64"], func(e Entry) bool { return e.Nr == nr })
			e := v.Entries["amd64"][i]
			var probes [][6]uint64
			for _, r := range e.Args {
				for _, x := range near(rnd, r.Values) {
					var args [6]uint64
					for k := range args {
						args[k] = rnd.Uint64()
					}
					args[r.Index] = uint64(x)
					probes = append(probes, args)
					args[r.Index] |= uint64(rnd.Uint32()) << 32
					probes = append(probes, args)
				}
			}
			if round == 0 && len(e.Args) > 0 && len(probes) < 200 {
				t.Errorf("%s: %d probes: %+v", name, len(probes), e)
			}
			for _, args := range probes {
				got, want := ours.run(t, unix.AUDIT_ARCH_X86_64, nr, args), expected(e, args)
				if e.Class == AllowedByArgument {
					want = retNotify
					if r := e.Args[0]; slices.ContainsFunc(r.Values, func(v uint32) bool { return (v^uint32(args[r.Index]))&r.looksAt(name, e.Engine) == 0 }) {
						want = retAllow
					}
				}
				if got != want {
					t.Fatalf("round %d: %s%#x: filter says %#x, verdicts %#x: %+v", round, name, args, got, want, e)
				}
				if got == retAllow {
					for _, r := range e.Args {
						args[r.Index] &= 0xffffffff // what the kernel takes of it
					}
					if a := engine.run(t, unix.AUDIT_ARCH_X86_64, nr, args); a != retAllow {
						t.Fatalf("round %d: %s%#x: allowed, but the engine says %#x", round, name, args, a)
					}
				}
			}
		}
		if round == 0 {
			t.Logf("%d instructions; %d without restrictions", len(export(t, compile(t, p))), len(export(t, compile(t, first(build(t, input(t)))))))
		}
	}
}

func first[A, B any](a A, _ B) A { return a }

// The same on the real kernel, and what an allowed call costs under it.
func TestKernelArguments(t *testing.T) {
	need.Root(t)
	need.Seccomp(t)
	if os.Getenv("FILTER_TEST_CHILD") == "" {
		cmd := exec.Command("/proc/self/exe", "-test.run=^TestKernelArguments$", "-test.v", "-test.timeout=60s")
		cmd.Env = append(os.Environ(), "FILTER_TEST_CHILD=1")
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	p, v := build(t, restricted(t))
	b, err := json.Marshal(v) // as it reaches the supervisor
	if err != nil {
		t.Fatal(err)
	}
	if v, err = ParseVerdicts(b); err != nil {
		t.Fatal(err)
	}
	ins := export(t, compile(t, p))
	type result struct {
		e     unix.Errno
		asked bool
	}
	var mu sync.Mutex
	var log []observed
	calls, results, loaded := make(chan Call), make(chan result), make(chan int)
	const bad = ^uint64(0)
	cost := func() time.Duration {
		const n = 100_000
		t0 := time.Now()
		for range n {
			unix.RawSyscall(unix.SYS_IOCTL, uintptr(bad), 0x5421, 0)
		}
		return time.Since(t0) / n
	}
	go func() {
		runtime.LockOSThread()
		before := cost()
		fd, err := install(ins)
		if err != nil {
			t.Error(err)
			fd = -1
		}
		t.Logf("an ioctl that does nothing: %v, under %d instructions %v", before, len(ins), cost())
		loaded <- fd
		for c := range calls {
			_, _, e := unix.RawSyscall6(uintptr(c.Nr), uintptr(c.Args[0]), uintptr(c.Args[1]), uintptr(c.Args[2]), uintptr(c.Args[3]), uintptr(c.Args[4]), uintptr(c.Args[5]))
			results <- result{e: e}
		}
		select {}
	}()
	fd := <-loaded
	if fd < 0 {
		t.FailNow()
	}
	by := Caller{Identity: record.Application, Phase: record.Serving, Mode: record.Enforce}
	go answer(fd, v, func() Caller { return by }, &mu, &log)
	for _, row := range []struct {
		claim string
		call  Call
		errno unix.Errno
		asked bool
	}{
		{"a request that is passed reaches the kernel", call(t, "ioctl", bad, unix.TCGETS), unix.EBADF, false},
		{"with junk above 32 bits too", call(t, "ioctl", bad, 1<<32|0x5421), unix.EBADF, false},
		{"pushing input into a terminal does not", call(t, "ioctl", bad, unix.TIOCSTI), unix.EPERM, true},
		{"nor do a console's requests", call(t, "ioctl", bad, unix.TIOCLINUX), unix.EPERM, true},
		{"an option that is passed", call(t, "prctl", 3), 0, false},
		{"one that is not", call(t, "prctl", unix.PR_SET_SECCOMP), unix.EPERM, true},
		{"one that agrees in the bits that are looked at, and that no kernel has", call(t, "prctl", 0x103), unix.EINVAL, false},
		{"a domain that is passed", call(t, "socket", unix.AF_UNIX, 99), unix.EINVAL, false},
		{"one that is not", call(t, "socket", unix.AF_PACKET, unix.SOCK_RAW), unix.EPERM, true},
		{"a tracer's request that is not", call(t, "ptrace", 16, bad), unix.EPERM, true},
		{"a personality of the engine's", call(t, "personality", 0xffffffff), 0, false},
		{"one of the image's that the engine refuses", call(t, "personality", 9), unix.EPERM, true},
	} {
		mu.Lock()
		log = nil
		mu.Unlock()
		calls <- row.call
		r := <-results
		mu.Lock()
		r.asked = slices.ContainsFunc(log, func(o observed) bool { return o.Call.Nr == row.call.Nr })
		mu.Unlock()
		if r.e != row.errno || r.asked != row.asked {
			t.Errorf("%s: errno %d (%v), asked %v; want %d, %v", row.claim, r.e, r.e, r.asked, row.errno, row.asked)
		}
	}
}
