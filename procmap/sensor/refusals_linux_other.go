//go:build linux && !amd64 && !arm64

package sensor

const (
	archSupported = false
	regReturn     = 0
	regNumber     = 0
)

var (
	regArgs  [4]int16
	oldCalls map[uint64]call
	oldAsks  []uint64
)
