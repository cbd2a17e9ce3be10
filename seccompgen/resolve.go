package seccompgen

import (
	"slices"
	"strings"
)

// demand asks what callers of a function leave in a location.
type demand struct {
	fn  int32
	loc location
}

// resolve finds the number of every system call of the file, following
// functions that take it as an argument to their callers.
func (b *builder) resolve() error {
	conv := b.m.conventions()
	var queue []demand
	asked := map[demand]bool{}
	ask := func(fi int32, loc location) {
		if b.partial {
			b.bail = true
			return
		}
		d := demand{fi, loc}
		if loc.Slot && (loc.Off < -maxFrame || loc.Off > maxStackArgs) || len(asked) >= maxDemands {
			if len(b.out.Trouble) >= maxTrouble {
				return
			}
			b.out.Trouble = append(b.out.Trouble, site{Addr: b.out.Funcs[fi].Addr, Reason: "passed through too many functions"})
			return
		}
		if !asked[d] {
			asked[d] = true
			queue = append(queue, d)
		}
	}
	record := func(fi int32, pc uint64, v values) {
		fn := &b.out.Funcs[fi]
		for _, c := range v.consts {
			if b.nsites < maxSites {
				b.nsites++
				fn.Sites = append(fn.Sites, site{Addr: pc, Nr: clampNr(c)})
			}
		}
		for _, p := range v.params {
			if b.argumentLocation(fi, p) {
				ask(fi, p)
				continue
			}
			// Only another part of the same function can have put it there.
			parts := false
			for i := range b.calls {
				if r := &b.calls[i]; r.jump && r.fn != fi && b.at(r.to) == fi {
					parts = true
					break
				}
			}
			if parts {
				ask(fi, p)
			} else if v.unknown == "" {
				v.unknown = "in a register that is no argument"
			}
		}
		if v.unknown == "" {
			return
		}
		if nrs, ok := b.benign(fi, pc, v.unknown); ok {
			for _, nr := range nrs {
				fn.Sites = append(fn.Sites, site{Addr: pc, Nr: nr})
			}
			return
		}
		b.bail = b.partial
		if b.nsites < maxSites {
			b.nsites++
			if b.builtin(fi) {
				v.unknown = scripted
			}
			fn.Sites = append(fn.Sites, site{Addr: pc, Reason: v.unknown})
		}
	}

	for _, s := range b.syscalls {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		c := b.code(s.fn)
		record(s.fn, s.pc, c.before(c.index(s.pc), reg(conv.number)))
	}

	if b.out.Go {
		for i := range b.out.Funcs {
			if b.out.Funcs[i].Name == allThreads {
				ask(int32(i), reg(conv.firstG))
			}
		}
	}
	byTarget := map[int32][]int32{}
	indexed := false
	followIndirect := map[location]bool{}
	// indirect follows a function that takes the number, and whose address
	// is taken, to every place of the file that calls through a pointer. fi
	// is blamed when that leads nowhere; -1 is the file as a whole.
	indirect := func(loc location, fi int32, addr uint64) {
		if followIndirect[loc] {
			return
		}
		followIndirect[loc] = true
		blame := func() {
			s := site{Addr: addr, Reason: "called through a pointer with a number that is not known"}
			if fi >= 0 {
				b.out.Funcs[fi].Sites = append(b.out.Funcs[fi].Sites, s)
			} else {
				b.out.Trouble = append(b.out.Trouble, s)
			}
		}
		if !loc.Slot && conv.direct>>loc.Reg&1 != 0 && !b.out.Go {
			blame() // no calling convention of C passes anything there
			return
		}
		type result struct {
			fi int32
			pc uint64
			v  values
		}
		var results []result
		vague := 0
		for i := range b.indirect {
			r := b.indirect[i]
			fi := r.fn
			if r.jump {
				c := b.code(fi)
				if k := c.index(r.site); k >= 0 && c.within(k) {
					continue
				}
			}
			v, ok := b.argument(fi, r.site, loc, r.jump, false)
			if !ok || v.unknown == anAddress {
				continue
			}
			if v.unknown != "" {
				if vague++; vague > maxVague {
					blame()
					return
				}
			}
			results = append(results, result{fi, r.site, v})
		}
		for _, r := range results {
			record(r.fi, r.pc, r.v)
		}
	}
	for i := range b.imports {
		r := b.imports[i]
		if r.site == 0 {
			continue
		}
		for _, loc := range b.known[b.out.Imports[r.sym]] {
			v, _ := b.argument(r.fn, r.site, loc, r.jump, false)
			record(r.fn, r.site, v)
		}
	}
	for sym := range b.takenSym {
		for _, loc := range b.known[b.out.Imports[sym]] {
			indirect(loc, -1, 0)
		}
	}
	for len(queue) > 0 {
		if err := b.ctx.Err(); err != nil {
			return err
		}
		q := queue[0]
		queue = queue[1:]
		if !indexed {
			indexed = true
			for i := range b.calls {
				if r := &b.calls[i]; r.site != 0 {
					if k := b.at(r.to); k >= 0 {
						byTarget[k] = append(byTarget[k], int32(i))
					}
				}
			}
		}
		for _, i := range byTarget[q.fn] {
			r := b.calls[i]
			fi := r.fn
			if !r.jump && !b.argumentLocation(q.fn, q.loc) {
				continue // what a caller has there is not meant for the function
			}
			if r.after {
				if c := b.code(fi); c.index(r.site) >= 0 && c.endsPath(c.index(r.site)) {
					continue
				}
			}
			v, _ := b.argument(fi, r.site, q.loc, r.jump, r.after)
			record(fi, r.site, v)
		}
		if !b.argumentLocation(q.fn, q.loc) {
			continue
		}
		if b.taken[q.fn] && !b.onlyCompared(q.fn) && b.out.Funcs[q.fn].Addr != 0 {
			indirect(q.loc, q.fn, b.out.Funcs[q.fn].Addr)
		}
		for i := range b.f.Dynsym {
			s := &b.f.Dynsym[i]
			if s.Defined && !s.Local && s.Name != "" && b.at(s.Value) == q.fn {
				w := wrapper{s.Name, q.loc}
				if !slices.Contains(b.out.Wrappers, w) {
					b.out.Wrappers = append(b.out.Wrappers, w)
				}
			}
		}
	}
	for i := range b.out.Funcs {
		s := b.out.Funcs[i].Sites
		slices.SortFunc(s, compareSites)
		b.out.Funcs[i].Sites = slices.Clip(slices.Compact(s))
	}
	return nil
}

// Bounds on following arguments through callers; recursion moves a slot at
// every turn.
const (
	maxFrame     = 4096
	maxStackArgs = 128
	maxDemands   = 10_000
	maxTrouble   = 100
	maxVague     = 16
)

// argumentLocation tells whether a function can be passed a value there.
func (b *builder) argumentLocation(fi int32, loc location) bool {
	conv := b.m.conventions()
	if b.isGo[fi] {
		return loc.Slot && loc.Off >= conv.slotGo || !loc.Slot && conv.argsGo>>loc.Reg&1 != 0
	}
	return loc.Slot && loc.Off >= conv.slotC || !loc.Slot && conv.argsC>>loc.Reg&1 != 0
}

const anAddress = "an address"

func compareSites(x, y site) int {
	switch {
	case x.Addr != y.Addr:
		if x.Addr < y.Addr {
			return -1
		}
		return 1
	case x.Nr != y.Nr:
		return int(x.Nr) - int(y.Nr)
	}
	return strings.Compare(x.Reason, y.Reason)
}

// clampNr keeps what the kernel would look at; everything else is no call.
func clampNr(c int64) int32 {
	n := int32(uint32(c))
	if n < 0 || n > 1<<20 {
		return -1
	}
	return n
}

// argument gives what a call or jump at pc passes in loc.
func (b *builder) argument(fi int32, pc uint64, loc location, jump, after bool) (values, bool) {
	c, conv := b.code(fi), b.m.conventions()
	i := c.index(pc)
	if i < 0 {
		return values{unknown: "in code that is decoded two ways"}, false
	}
	if after {
		i++
	}
	if loc.Slot {
		if !jump && loc.Off < conv.slotC {
			return values{unknown: "in a stack slot that no caller writes"}, true
		}
		sp, ok := c.stack(i)
		if !ok {
			return values{unknown: "in a stack that is not followed"}, true
		}
		loc.Off += sp
		if !jump {
			loc.Off -= conv.pushed
		}
	}
	return c.before(i, loc), true
}
