package guards

import (
	"net/netip"
	"slices"
	"testing"
)

func TestWithEmbedded(t *testing.T) {
	upstream := netip.MustParseAddrPort("192.0.2.1:53")
	given := []netip.AddrPort{upstream}
	if got := withEmbedded(given); !slices.Equal(got, []netip.AddrPort{embedded, upstream}) || len(given) != 1 {
		t.Errorf("Docker adds its resolver after resolv.conf was read: %v", got)
	}
	if got := withEmbedded([]netip.AddrPort{upstream, embedded}); len(got) != 2 {
		t.Errorf("it is there once: %v", got)
	}
	if got := withEmbedded(nil); len(got) != 1 {
		t.Errorf("%v", got)
	}
}
