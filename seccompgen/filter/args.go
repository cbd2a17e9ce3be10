package filter

import (
	"fmt"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Restriction holds one argument of a call to some values, in the low 32 bits,
// which are all that the kernel takes of it (plan.Arg). The zero Restriction
// holds it to none.
type Restriction struct {
	Index  uint8    `json:"index"`
	Values []uint32 `json:"values"`
}

func (r Restriction) holds(args [6]uint64) bool {
	return int(r.Index) < len(args) && slices.Contains(r.Values, uint32(args[r.Index]))
}

// outside gives the first argument that the programs of the image do not pass.
func (e Entry) outside(args [6]uint64) (Restriction, bool) {
	for _, r := range e.Args {
		if !r.holds(args) {
			return r, true
		}
	}
	return Restriction{}, false
}

func (r Restriction) deviation(args [6]uint64) string {
	return fmt.Sprintf("no program of the image passes %#x as argument %d of it", uint32(args[r.Index]), r.Index+1)
}

// proved are the restrictions that a call's programs allow: what holds for all
// of its entries.
func proved(had []Restriction, s plan.Syscall, first bool) []Restriction {
	var out []Restriction
	for _, a := range s.Args {
		if !a.Proved() || a.Index > 5 {
			continue
		}
		r := Restriction{Index: a.Index}
		for _, v := range a.Values {
			r.Values = append(r.Values, v.Value)
		}
		if !first {
			i := slices.IndexFunc(had, func(h Restriction) bool { return h.Index == r.Index })
			if i < 0 {
				continue
			}
			r.Values = append(r.Values, had[i].Values...)
		}
		slices.Sort(r.Values)
		r.Values = slices.Compact(r.Values)
		out = append(out, r)
	}
	return out
}

// restrictions gives what a call's arguments are held to.
//
// Not where the plan is wide, since anybody may make the call then, nor of what
// runc calls at any time. On 32-bit x86 libseccomp drops the conditions of
// calls that socketcall and ipc reach too.
func (b *builder) restrictions(name string) []Restriction {
	if b.in.Widened || b.runtime[name] == record.Serving || multiplexed[name] && slices.Contains(b.arches, "386") {
		return nil
	}
	return b.args[name]
}

// inKernel gives the one restriction of an allowed call that the kernel holds
// it to, together with the engine's rule r: of several, the first that can be
// written. Two conditions on different arguments are not: that is where
// libseccomp before 2.6.1 goes wrong.
func inKernel(list []Restriction, r Rule) (Restriction, bool) {
	for _, own := range list {
		if r.Always() {
			return own, true
		}
		if !r.only(own.Index) {
			continue
		}
		var left []uint32
		for _, v := range own.Values {
			var args [6]uint64
			args[own.Index] = uint64(v)
			if r.allows(args) {
				left = append(left, v)
			}
		}
		if len(left) > 0 {
			return Restriction{own.Index, left}, true
		}
	}
	return Restriction{}, false
}

// only tells whether the rule looks at no other argument.
func (r Rule) only(index uint8) bool {
	for _, all := range slices.Concat(r.Allowed, r.Refused) {
		for _, a := range all {
			if a.Index != uint(index) {
				return false
			}
		}
	}
	return true
}

// lowBits are how many bits of an argument the kernel's rules look at, where
// fewer than 32 tell apart what Linux has: every rule of a profile costs the
// runtime time at each start (libseccomp: about 7 µs), and each bit that is the
// same in all values is a rule. What agrees with a value in these bits reaches
// the kernel. Of options, domains and operations that is nothing that a kernel
// has, but for the two options of prctl that are names in four letters
// (PR_SET_VMA and PR_SET_PTRACER). Of ioctl's requests the low 16 bits are the
// driver's letter and the number; the others are the size and direction of what
// is passed (asm-generic/ioctl.h).
var lowBits = map[string]int{
	"socket": 8, "prctl": 8, "keyctl": 8, "seccomp": 8, "bpf": 8,
	"ioctl": 16, "ptrace": 16,
}

// looksAt gives the bits that the kernel's rules for a call look at. Where the
// engine's profile looks at arguments too, they are all: what it refuses may
// differ in any.
func (r Restriction) looksAt(name string, engine Rule) uint32 {
	n, ok := lowBits[name]
	if !ok || !engine.Always() {
		return ^uint32(0)
	}
	bits := uint32(1)<<n - 1
	if name != "ioctl" && slices.ContainsFunc(r.Values, func(v uint32) bool { return v&^bits != 0 }) {
		return ^uint32(0)
	}
	return bits
}

// kernel writes a restriction as kernel rules: those that allow, and those that
// notify everything else. No two of different actions overlap, and all compare
// the one argument for equality under a mask, which libseccomp gets right.
func (r Restriction) kernel(bits uint32) (allow, notify [][]specs.LinuxSeccompArg) {
	cond := func(mask, value uint32) []specs.LinuxSeccompArg {
		return []specs.LinuxSeccompArg{{Index: uint(r.Index), Value: uint64(mask), ValueTwo: uint64(value), Op: specs.OpMaskedEqual}}
	}
	var values []uint32
	for _, v := range r.Values {
		if v &= bits; !slices.Contains(values, v) {
			values = append(values, v)
		}
	}
	for _, v := range values {
		allow = append(allow, cond(bits, v))
	}
	for _, c := range complement(values, ^bits, 0) {
		notify = append(notify, cond(c.mask&bits, c.value))
	}
	return allow, notify
}

// pattern is every number that has value in the bits of mask.
type pattern struct{ mask, value uint32 }

// complement spells out all numbers but values, of those that have value in the
// bits of mask: where all values agree on a bit, the others are those that do
// not; where they differ, the halves are looked at one by one, split at the bit
// that needs the fewest patterns.
func complement(values []uint32, mask, value uint32) []pattern {
	if len(values) == 0 {
		return []pattern{{mask, value}}
	}
	ones, zeros := ^uint32(0), ^uint32(0)
	for _, v := range values {
		ones &= v
		zeros &= ^v
	}
	var out []pattern
	for left := (ones | zeros) &^ mask; left != 0; left &= left - 1 {
		bit := left & -left
		out = append(out, pattern{mask | bit, value | ^ones&bit})
	}
	mask, value = mask|ones|zeros, value|ones&^mask
	var best []pattern
	for i := 31; i >= 0; i-- {
		bit := uint32(1) << i
		if mask&bit != 0 {
			continue
		}
		var with, without []uint32
		for _, v := range values {
			if v&bit != 0 {
				with = append(with, v)
			} else {
				without = append(without, v)
			}
		}
		split := append(complement(without, mask|bit, value), complement(with, mask|bit, value|bit)...)
		if best == nil || len(split) < len(best) {
			best = split
		}
		if len(values) > 3 {
			break // trying all would take too long: the highest bit is a fair choice
		}
	}
	return append(out, best...)
}
