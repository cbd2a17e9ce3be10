package elfread

import "golang.org/x/sys/unix"

// space gives memory that the garbage collector does not count: a file of a
// hundred megabytes would have it let as much garbage lie about.
func space(n uint64) (b []byte, mapped bool) {
	if n < mapFrom {
		return make([]byte, n), false
	}
	b, err := unix.Mmap(-1, 0, int(n), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
	if err != nil {
		return make([]byte, n), false
	}
	return b, true
}

func free(b []byte) { _ = unix.Munmap(b) }
