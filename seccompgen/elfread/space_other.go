//go:build !linux

package elfread

func space(n uint64) (b []byte, mapped bool) { return make([]byte, n), false }

func free([]byte) {}
