package seccompgen

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/rootfs"
)

// What is behind a gate is reached, in the library itself, by nothing but what
// opens the gate and the functions that the gate is about.
func TestGates(t *testing.T) {
	// Functions that do what is behind the gate only where it is open, as the
	// sources that the gate names say.
	about := map[string][]string{
		"sched_getparam":          {"__pthread_tpp_change_priority", "__init_sched_fifo_prio", "__pthread_current_priority", "create_thread", "__pthread_create_2_1", "__spawni_child"},
		"sched_setaffinity":       {"create_thread", "__pthread_create_2_1"},
		"svc_unregister":          {"__rpc_thread_svc_cleanup", "svc_exit"},
		"execve":                  {"dl_main", "rtld_chain_load"},
		"setitimer":               {"_dl_start_profile", "profil"},
		"time":                    {"time", "time_syscall"},
		"getcpu":                  {"sched_getcpu", "getcpu", "__getcpu"},
		"uname":                   {"dl_main", "_dl_print_diagnostics", "_dl_diagnostics_kernel", "print_uname"},
		"ppoll":                   {"__arc4random_buf", "__GI___arc4random_buf"},
		"_nss_dns_getcanonname_r": {"module_load"},
	}
	libs := map[string]bool{}
	for _, lib := range withSymbols(t) {
		b := analysed(t, lib.file)
		for k := range gates {
			g := &gates[k]
			if !g.of(&module{sum: b.out}) || len(g.imports) > 0 {
				continue
			}
			libs[g.lib] = true
			first := slices.Concat(g.calls, g.functions)[0]
			if g.beside != "" || g.daemon || first == "_IO_proc_close" {
				continue // tests of their own
			}
			names := functionNames(t, b, lib)
			behind := map[int32]bool{}
			for i := range b.out.Funcs {
				for _, s := range b.out.Funcs[i].Sites {
					if name, ok := sysno.Name("amd64", int(s.Nr)); ok && slices.Contains(g.calls, name) {
						behind[int32(i)] = true
					}
				}
			}
			opens := map[int32]bool{}
			for _, e := range b.out.Exports {
				if slices.Contains(g.functions, e.Name) {
					behind[e.Func] = true
				}
				if slices.Contains(g.by, e.Name) {
					opens[e.Func] = true
				}
			}
			if len(behind) == 0 {
				t.Errorf("%s: nothing is behind the gate of %s", lib.file, first)
				continue
			}
			is := func(i int32) bool {
				return slices.ContainsFunc(about[first], func(a string) bool {
					return slices.ContainsFunc(names[i], func(n string) bool { n, _, _ = strings.Cut(n, "."); return n == a })
				})
			}
			back := map[int32][]int32{}
			for i := range b.out.Funcs {
				for _, c := range b.out.Funcs[i].Calls {
					back[c] = append(back[c], int32(i))
				}
				for _, imp := range b.out.Funcs[i].Imports {
					for _, e := range b.out.Exports {
						if e.Name == b.out.Imports[imp] {
							back[e.Func] = append(back[e.Func], int32(i))
						}
					}
				}
			}
			seen := maps.Clone(behind)
			work := slices.Collect(maps.Keys(behind))
			met := false
			for len(work) > 0 {
				f := work[len(work)-1]
				work = work[:len(work)-1]
				if is(f) {
					met = true
					if len(g.functions) == 0 || !behind[f] {
						continue
					}
				}
				if opens[f] && !behind[f] {
					continue
				}
				for _, c := range back[f] {
					if !seen[c] {
						seen[c] = true
						work = append(work, c)
					}
				}
			}
			if !met {
				t.Errorf("%s: %v do not lead behind the gate of %s", lib.file, about[first], first)
			}
			loose := func(what string, i int32) {
				if seen[i] && !is(i) && !opens[i] {
					t.Errorf("%s: %s (%v) leads behind the gate of %s", lib.file, what, names[i], first)
				}
			}
			for _, e := range b.out.Exports {
				if !slices.Contains(g.functions, e.Name) { // who asks for it from outside has it
					loose(e.Name, e.Func)
				}
			}
			for _, r := range b.out.Roots {
				loose("a root", r)
			}
			if b.out.Entry >= 0 {
				loose("the entry", b.out.Entry)
			}
		}
	}
	for _, lib := range []string{"libc.so.6", "ld-linux"} {
		if !libs[lib] {
			t.Errorf("no symbols of %s", lib)
		}
	}
}

// Only one function of libcrypto marks that random numbers were ready.
func TestGateOfOpenSSL(t *testing.T) {
	b := analysed(t, "/usr/lib/x86_64-linux-gnu/libcrypto.so.3")
	users, waits := map[int32]bool{}, map[int32]bool{}
	for i := range b.out.Funcs {
		for _, imp := range b.out.Funcs[i].Imports {
			if strings.HasPrefix(b.out.Imports[imp], "shm") {
				users[int32(i)] = true
			}
			if b.out.Imports[imp] == "select" {
				waits[int32(i)] = true
			}
		}
	}
	// It is the one that waits; who waits for a socket has no gate.
	g := link(newSymbols(), []*module{{path: "/lib/libcrypto.so.3", sum: b.out}}, nil)
	barred := 0
	for i := range waits {
		n := node{0, i}
		for _, imp := range b.out.Funcs[i].Imports {
			if b.out.Imports[imp] == "select" && g.barred(n, imp) {
				t.Error("closed although nothing is known of the machine")
			}
		}
		g.answered = []string{"getrandom"}
		for _, imp := range b.out.Funcs[i].Imports {
			if b.out.Imports[imp] == "select" && g.barred(n, imp) {
				barred++
				if !users[i] {
					t.Errorf("the function at %#x waits for something else", b.out.Funcs[i].Addr)
				}
			}
		}
		g.answered = nil
	}
	if barred != 1 || len(waits) < 2 {
		t.Errorf("%d of %d functions that wait are behind the gate", barred, len(waits))
	}
	if len(users) == 0 || len(users) > 2 { // asking for it, and letting go of it at exit
		t.Errorf("%d functions use shared memory", len(users))
	}
}

func analysed(t *testing.T, file string) *builder {
	t.Helper()
	b := swept(t, file)
	if err := b.resolve(); err != nil {
		t.Fatal(err)
	}
	b.finish()
	return b
}

// functionNames names the functions of a library by its symbols.
func functionNames(t *testing.T, b *builder, lib symbolised) map[int32][]string {
	t.Helper()
	out := map[int32][]string{}
	for _, s := range lib.functions {
		if k := b.at(s.Value); k >= 0 && b.funcs[k].Lo == s.Value {
			out[k] = append(out[k], s.Name)
		}
	}
	return out
}

// users gives the functions of libc that compute an address within [lo, hi), by
// the one instruction that does (lea with an offset from the next instruction),
// and the sections of data that hold one. A place that only looks like that counts.
func users(t *testing.T, lib symbolised, lo, hi uint64) map[string]bool {
	t.Helper()
	e, err := elf.Open(lib.file)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	text := e.Section(".text")
	code, err := text.Data()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]bool{}
	// Relocations that hold it: with an addend of their own, or in place.
	for _, sec := range e.Sections {
		if sec.Type != elf.SHT_RELA {
			continue
		}
		data, err := sec.Data()
		if err != nil {
			t.Fatal(err)
		}
		for ; len(data) >= 24; data = data[24:] {
			if v := binary.LittleEndian.Uint64(data[16:]); v >= lo && v < hi {
				out["a relocation"] = true
			}
		}
	}
	for _, sec := range e.Sections {
		if sec.Flags&elf.SHF_ALLOC == 0 || sec.Flags&elf.SHF_WRITE == 0 || sec.Type == elf.SHT_NOBITS {
			continue
		}
		data, err := sec.Data()
		if err != nil {
			t.Fatal(err)
		}
		for ; len(data) >= 8; data = data[8:] {
			if v := binary.LittleEndian.Uint64(data); v >= lo && v < hi {
				out["section "+sec.Name] = true
			}
		}
	}
	for i := 3; i+4 <= len(code); i++ {
		if code[i-3]&0xf8 != 0x48 || code[i-2] != 0x8d || code[i-1]&0xc7 != 0x05 {
			continue
		}
		at := text.Addr + uint64(i)
		if to := at + 4 + uint64(int64(int32(binary.LittleEndian.Uint32(code[i:])))); to < lo || to >= hi {
			continue
		}
		name := fmt.Sprintf("%#x", at)
		for _, f := range lib.functions {
			if at >= f.Value && at < f.Value+f.Size {
				name, _, _ = strings.Cut(strings.ReplaceAll(f.Name, "@", "."), ".")
				out[name] = true
			}
		}
		if name[:2] == "0x" {
			out[name] = true // in no function that is known
		}
	}
	return out
}

func libcWithSymbols(t *testing.T) symbolised {
	t.Helper()
	for _, lib := range withSymbols(t) {
		if strings.HasSuffix(lib.file, "/libc.so.6") {
			return lib
		}
	}
	t.Fatal("no symbols of libc.so.6")
	return symbolised{}
}

// reaching gives the exports from which a function of one of these names can be
// reached, by a way that does not lead through stop.
func reaching(t *testing.T, lib symbolised, names map[string]bool, stop ...string) []string {
	t.Helper()
	b := analysed(t, lib.file)
	called := functionNames(t, b, lib)
	back := map[int32][]int32{}
	seen := map[int32]bool{}
	var work []int32
	for i := range b.out.Funcs {
		for _, c := range b.out.Funcs[i].Calls {
			back[c] = append(back[c], int32(i))
		}
		for _, imp := range b.out.Funcs[i].Imports {
			for _, e := range b.out.Exports {
				if e.Name == b.out.Imports[imp] {
					back[e.Func] = append(back[e.Func], int32(i))
				}
			}
		}
		if slices.ContainsFunc(called[int32(i)], func(n string) bool { n, _, _ = strings.Cut(strings.ReplaceAll(n, "@", "."), "."); return names[n] }) {
			seen[int32(i)] = true
			work = append(work, int32(i))
		}
	}
	if len(work) == 0 {
		t.Fatalf("none of %v was found", names)
	}
	for len(work) > 0 {
		f := work[len(work)-1]
		work = work[:len(work)-1]
		if slices.ContainsFunc(called[f], func(n string) bool { return slices.Contains(stop, n) }) {
			continue
		}
		for _, c := range back[f] {
			if !seen[c] {
				seen[c] = true
				work = append(work, c)
			}
		}
	}
	var out []string
	for _, e := range b.out.Exports {
		if seen[e.Func] {
			out = append(out, e.Name)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func gateOf(t *testing.T, function string) *gate {
	t.Helper()
	for k := range gates {
		if slices.Contains(gates[k].functions, function) {
			return &gates[k]
		}
	}
	t.Fatalf("no gate of %s", function)
	return nil
}

// Nothing but popen uses the function table of its streams.
func TestGateOfPopen(t *testing.T) {
	lib := libcWithSymbols(t)
	g := gateOf(t, "_IO_proc_close")
	i := slices.IndexFunc(lib.objects, func(s elf.Symbol) bool { return s.Name == "_IO_proc_jumps" })
	if i < 0 {
		t.Fatal("no _IO_proc_jumps")
	}
	table := lib.objects[i]
	in := users(t, lib, table.Value, table.Value+table.Size)
	if len(in) == 0 {
		t.Error("nobody uses the table")
	}
	for name := range in {
		if !slices.Contains([]string{"popen", "_IO_popen", "_IO_new_popen", "__new_popen"}, name) {
			t.Errorf("%s uses the table", name)
		}
	}
	for _, name := range reaching(t, lib, in) {
		if !slices.Contains(g.by, name) {
			t.Errorf("%s leads to popen", name)
		}
	}
}

// Who asks a name service for what DNS can answer asks by these names.
func TestGateOfDNS(t *testing.T) {
	lib := libcWithSymbols(t)
	g := gateOf(t, "_nss_dns_gethostbyname_r")
	raw, err := os.ReadFile(lib.file)
	if err != nil {
		t.Fatal(err)
	}
	in := map[string]bool{}
	for _, f := range g.functions {
		name := strings.TrimPrefix(f, "_nss_dns_")
		found := false
		for at := 0; ; {
			// In the read-only segments of a library, a place in the file is its address.
			i := bytes.Index(raw[at:], []byte("\x00"+name+"\x00"))
			if i < 0 {
				break
			}
			at += i + 1
			for user := range users(t, lib, uint64(at), uint64(at)+1) {
				in[user], found = true, true
			}
		}
		if !found {
			t.Logf("nobody asks for %s by its name alone", name)
		}
	}
	t.Logf("asked by %v", slices.Sorted(maps.Keys(in)))
	if len(in) < 5 {
		t.Error("too few were found")
	}
	// The last has a gate of its own, which the same functions open.
	for _, name := range reaching(t, lib, in, "__rpc_thread_svc_cleanup") {
		if !slices.Contains(g.by, name) {
			t.Errorf("%s asks for hosts or networks", name)
		}
	}
}

// Only faccessat makes faccessat2, and what it then does is what it only does
// without it.
func TestGateOfFaccessat(t *testing.T) {
	lib := libcWithSymbols(t)
	b := analysed(t, lib.file)
	g := gateOf(t, "group_member")
	names := functionNames(t, b, lib)
	out := link(newSymbols(), []*module{{path: "/lib/libc.so.6", sum: b.out}}, nil)
	for k := range gates {
		if &gates[k] != g {
			continue
		}
		found := 0
		for i := range b.out.Funcs {
			if out.before(k, node{0, int32(i)}) {
				found++
				if !slices.ContainsFunc(names[int32(i)], func(n string) bool { return n == "faccessat" || n == "__faccessat" }) {
					t.Errorf("%v makes faccessat2", names[int32(i)])
				}
			}
		}
		if found != 1 {
			t.Errorf("%d functions make faccessat2", found)
		}
	}
}

// What is found about the daemon is what its source says.
func TestGateOfNSCD(t *testing.T) {
	lib := libcWithSymbols(t)
	b := analysed(t, lib.file)
	names := functionNames(t, b, lib)
	check := func(what string, found []int32, want ...string) {
		var have []string
		for _, f := range found {
			i := slices.IndexFunc(names[f], func(n string) bool { return slices.Contains(want, n) })
			if i < 0 {
				t.Errorf("%s: %v", what, names[f])
				continue
			}
			have = append(have, names[f][i])
		}
		if slices.Sort(have); !slices.Equal(have, slices.Sorted(slices.Values(want))) {
			t.Errorf("%s: %v, want %v", what, have, want)
		}
	}
	check("asking", b.out.Asking, "open_socket", "__nscd_get_mapping", "__nscd_open_socket")
	check("answering", b.out.Answering, "wait_on_socket", "__readall", "__readvall", "__nscd_cache_search", "__nscd_unmap")
}

func TestBrings(t *testing.T) {
	for mount, want := range map[string]bool{
		"/": true, "/run": true, "/run/": true, "/var": true, "/var/run": true, "/run/nscd": true, "/var/run/nscd/socket": true,
		"/run/nscdx": false, "/run/mysqld": false, "/data": false, "/va": false, "/var/lib": false,
	} {
		if have := Brings(mount); have != want {
			t.Errorf("%s: %t", mount, have)
		}
	}
}

// An image that has a daemon, or the place where one leaves its socket.
func TestNSCDInstalled(t *testing.T) {
	for _, have := range []string{"", "var/run/nscd", "run/nscd", "usr/sbin/nscd"} {
		dir := t.TempDir()
		if have != "" {
			if err := os.MkdirAll(filepath.Join(dir, have), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		root, err := rootfs.Open(dir)
		if err != nil {
			t.Fatal(err)
		}
		r := newReader(root)
		if r.nscdInstalled() != (have != "") {
			t.Errorf("%q is not told", have)
		}
		if _, looked := r.seen["/usr/sbin/nscd"]; !looked && have == "" {
			t.Error("a daemon that is installed later would go unnoticed")
		}
		root.Close()
	}
}
