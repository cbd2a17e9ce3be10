package seccompgen

import (
	"maps"
	"math/bits"
	"slices"

	"github.com/declarun/declarun/seccompgen/elfread"
)

// addrSet is a set of addresses, compact where code lies close together.
type addrSet struct {
	base uint64
	bits []uint64
	far  map[uint64]bool
}

func newAddrSet(code []elfread.Range) addrSet {
	s := addrSet{far: map[uint64]bool{}}
	var size uint64
	for _, r := range code {
		size += r.Hi - r.Lo
	}
	if len(code) == 0 {
		return s
	}
	s.base = code[0].Lo
	// A file may say that its code is far apart; a bit for each byte of it is all it gets.
	if span := code[len(code)-1].Hi - s.base; span <= 8*size+1<<16 {
		s.bits = make([]uint64, span/64+1)
	}
	return s
}

func (s *addrSet) add(a uint64) {
	if d := a - s.base; d/64 < uint64(len(s.bits)) {
		s.bits[d/64] |= 1 << (d % 64)
		return
	}
	s.far[a] = true
}

func (s *addrSet) has(a uint64) bool {
	if d := a - s.base; d/64 < uint64(len(s.bits)) {
		return s.bits[d/64]>>(d%64)&1 != 0
	}
	return s.far[a]
}

// all yields every address of the set, in order within the code.
func (s *addrSet) all(yield func(uint64) bool) {
	for i, w := range s.bits {
		for ; w != 0; w &= w - 1 {
			if !yield(s.base + uint64(i)*64 + uint64(bits.TrailingZeros64(w))) {
				return
			}
		}
	}
	for _, a := range slices.Sorted(maps.Keys(s.far)) {
		if !yield(a) {
			return
		}
	}
}
