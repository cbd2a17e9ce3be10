package seccompgen

import (
	"bytes"
	"slices"
	"strings"
)

// NoNSCD in Request.Answered: no mount brings the socket of a name service cache
// daemon.
const NoNSCD = "no nscd"

// Lookups of users, groups, hosts and services first ask a name service cache
// daemon (nscd(8)) at a path that is fixed in the C library, and go on without it
// when it cannot be reached. What is only done once it was reached is in helper
// functions that nothing else calls (nscd/nscd_helper.c of glibc): sending the
// request (open_socket), waiting for and reading the answer (wait_on_socket,
// __readall, __readvall), and receiving the descriptor of its database
// (__nscd_get_mapping). They fail as one: whatever of them were refused, the
// lookup would go on as without the daemon.
//
// A stripped library does not name them. They are found by the path, which one
// function uses: asking it, its callers and theirs are those who ask the daemon,
// and what nobody calls but these only works on what the daemon said.

// nscdPath is as much of the path as compilers leave in one piece.
var nscdPath = []byte("/var/run/nscd/so")

// nscdAt gives the addresses of the path in a C library.
func (b *builder) nscdAt() []uint64 {
	if b.f.Soname != "libc.so.6" {
		return nil
	}
	var out []uint64
	for _, s := range b.f.Segments {
		for at := 0; ; {
			i := bytes.Index(s.Data[at:], nscdPath)
			if i < 0 || len(out) > 4 {
				break
			}
			at += i + 1
			out = append(out, s.Addr+uint64(at-1))
		}
	}
	return out
}

// daemons finds the functions about the daemon, once all calls are known.
func (b *builder) daemons() {
	funcs := b.out.Funcs
	callers := make([][]int32, len(funcs))
	for i := range funcs {
		for _, c := range funcs[i].Calls {
			callers[c] = append(callers[c], int32(i))
		}
	}
	open := map[int32]bool{} // somebody else may call them
	for _, e := range b.out.Exports {
		open[e.Func] = true
	}
	for _, r := range b.out.Roots {
		open[r] = true
	}
	for i := range funcs {
		if i < len(b.taken) && b.taken[i] {
			open[int32(i)] = true
		}
		if funcs[i].Data {
			for _, c := range funcs[i].Calls {
				open[c] = true
			}
		}
	}
	// Padding between functions looks like a function that runs into the next.
	dead := func(f int32) bool { return len(callers[f]) == 0 && !open[f] && b.out.Entry != f }
	ask := map[int32]bool{}
	for _, pc := range b.nscdUses {
		if k := b.at(pc); k >= 0 {
			ask[k] = true
		}
	}
	if len(ask) == 0 || len(ask) > 2 {
		return
	}
	near := map[int32]bool{}
	for f := range ask {
		near[f] = true
		for _, c := range callers[f] {
			if !dead(c) {
				near[c] = true
			}
		}
	}
	around := map[int32]bool{}
	for f := range near {
		around[f] = true
		for _, c := range callers[f] {
			if !dead(c) {
				around[c] = true
			}
		}
	}
	behind := map[int32]bool{}
	for grown := true; grown; {
		grown = false
		for i := range funcs {
			f := int32(i)
			if behind[f] || around[f] || open[f] || funcs[i].Data || len(callers[f]) == 0 || dead(f) {
				continue
			}
			live := 0
			if !slices.ContainsFunc(callers[f], func(c int32) bool {
				if !dead(c) {
					live++
				}
				return !dead(c) && !around[c] && !behind[c]
			}) && live > 0 {
				behind[f], grown = true, true
			}
		}
	}
	for f := range near {
		b.out.Asking = append(b.out.Asking, f)
	}
	for f := range behind {
		b.out.Answering = append(b.out.Answering, f)
	}
	slices.Sort(b.out.Asking)
	slices.Sort(b.out.Answering)
}

// cached tells whether a program of the image may itself be such a daemon: it
// names the daemon's directory.
func cached(g *graph) bool {
	return slices.ContainsFunc(g.mods, func(m *module) bool {
		return !isLibc(m) && slices.ContainsFunc(m.sum.Strings, func(s string) bool { return strings.HasPrefix(strings.TrimPrefix(s, "/var"), "/run/nscd") })
	})
}

// nscdInstalled tells whether the image has what such a daemon leaves.
func (r *reader) nscdInstalled() bool {
	for _, p := range []string{"/var/run/nscd", "/run/nscd", "/usr/sbin/nscd", "/usr/sbin/unscd", "/usr/sbin/nsncd", "/usr/bin/nsncd"} {
		if _, _, ok := r.stat(p); ok {
			return true
		}
	}
	return false
}

// Brings tells whether a mount at a path could bring the daemon's socket.
func Brings(mount string) bool {
	mount = strings.TrimSuffix(mount, "/")
	for _, dir := range []string{"/run/nscd", "/var/run/nscd"} {
		if strings.HasPrefix(dir+"/", mount+"/") || strings.HasPrefix(mount, dir+"/") {
			return true
		}
	}
	return false
}
