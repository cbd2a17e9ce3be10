package seccompgen

import (
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/seccompgen/sysno"
)

// What is behind a gate is reached, in the library itself, by nothing but what
// opens the gate and the functions that the gate is about.
func TestGates(t *testing.T) {
	// Functions that do what is behind the gate only where it is open, as the
	// sources that the gate names say.
	about := map[string][]string{
		"sched_getparam":    {"__pthread_tpp_change_priority", "__init_sched_fifo_prio", "__pthread_current_priority", "create_thread", "__pthread_create_2_1", "__spawni_child"},
		"sched_setaffinity": {"create_thread", "__pthread_create_2_1"},
		"svc_unregister":    {"__rpc_thread_svc_cleanup", "svc_exit"},
		"execve":            {"dl_main", "rtld_chain_load"},
		"setitimer":         {"_dl_start_profile", "profil"},
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
			first := g.function
			if first == "" {
				first = g.calls[0]
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
				if e.Name == g.function && g.function != "" {
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
					if g.function == "" || !behind[f] {
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
				loose(e.Name, e.Func)
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
	users := map[int32]bool{}
	for i := range b.out.Funcs {
		for _, imp := range b.out.Funcs[i].Imports {
			if strings.HasPrefix(b.out.Imports[imp], "shm") {
				users[int32(i)] = true
			}
		}
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
