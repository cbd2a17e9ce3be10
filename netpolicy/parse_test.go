package netpolicy

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/net/dns/dnsmessage"
)

// response builds a DNS response; records are "owner A 192.0.2.1", in pairs of
// owner and address or (not an address) alias.
func response(question string, ttl uint32, records ...string) []byte {
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{Response: true, ID: 7})
	b.EnableCompression()
	must(b.StartQuestions())
	must(b.Question(dnsmessage.Question{Name: dnsmessage.MustNewName(question), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}))
	must(b.StartAnswers())
	for i := 0; i+1 < len(records); i += 2 {
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(records[i]), Class: dnsmessage.ClassINET, TTL: ttl}
		addr, err := netip.ParseAddr(records[i+1])
		switch {
		case err != nil:
			must(b.CNAMEResource(h, dnsmessage.CNAMEResource{CNAME: dnsmessage.MustNewName(records[i+1])}))
		case addr.Is4():
			must(b.AResource(h, dnsmessage.AResource{A: addr.As4()}))
		default:
			must(b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: addr.As16()}))
		}
	}
	out, err := b.Finish()
	must(err)
	return out
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func TestAnswers(t *testing.T) {
	many := []string{}
	for i := range 1000 {
		many = append(many, "db.", netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}).String())
	}
	for _, row := range []struct {
		claim string
		msg   []byte
		name  string
		addrs []string
	}{
		{"an address", response("db.", 60, "db.", "192.0.2.1"), "db", []string{"192.0.2.1"}},
		{"case does not matter", response("Db.Example.", 60, "dB.eXample.", "192.0.2.1"), "db.example", []string{"192.0.2.1"}},
		{"both families", response("db.", 60, "db.", "192.0.2.1", "db.", "2001:db8::1"), "db", []string{"192.0.2.1", "2001:db8::1"}},
		{"aliases in any order", response("db.", 60, "c.", "192.0.2.3", "b.", "c.", "db.", "b."), "db", []string{"192.0.2.3"}},
		{"an alias of itself ends", response("db.", 60, "db.", "db."), "db", nil},
		{"a record of another name is ignored", response("db.", 60, "evil.", "192.0.2.66", "db.", "192.0.2.1"), "db", []string{"192.0.2.1"}},
		{"no answer", response("db.", 60), "db", nil},
		{"a question is not an answer", func() []byte { m := response("db.", 60, "db.", "192.0.2.1"); m[2] &^= 0x80; return m }(), "", nil},
		{"an error is not an answer", func() []byte { m := response("db.", 60, "db.", "192.0.2.1"); m[3] |= 3; return m }(), "", nil},
		{"cut short", response("db.", 60, "db.", "192.0.2.1", "db.", "192.0.2.2")[:45], "db", []string{"192.0.2.1"}},
		{"garbage", bytes.Repeat([]byte{0xc0}, 600), "", nil},
	} {
		t.Run(row.claim, func(t *testing.T) {
			a, ok := parseAnswer(row.msg)
			var got []string
			for _, addr := range a.addrs {
				got = append(got, addr.String())
			}
			if ok != (len(row.addrs) > 0) || !slices.Equal(got, row.addrs) || ok && a.name != row.name {
				t.Errorf("%q %q %v", a.name, got, ok)
			}
		})
	}
	if a, ok := parseAnswer(response("db.", 60, many...)); !ok || len(a.addrs) != maxAnswers {
		t.Errorf("%d addresses, want the bound %d", len(a.addrs), maxAnswers)
	}
	if a, _ := parseAnswer(response("db.", 0xffffffff, "db.", "192.0.2.1")); a.ttl != maxTTL {
		t.Errorf("time to live %s", a.ttl)
	}
	if a, _ := parseAnswer(response("db.", 7, "db.", "192.0.2.1")); a.ttl != 7*time.Second {
		t.Errorf("time to live %s", a.ttl)
	}
}

func TestDeclaredName(t *testing.T) {
	rs := Ruleset{Names: []string{"db", "web.example"}, Search: []string{"default.svc.cluster.local", "example"}}
	for asked, want := range map[string]string{
		"db": "db", "db.example": "db", "db.default.svc.cluster.local": "db", "web.example": "web.example",
		"db.evil": "", "xdb": "", "example": "", "db.": "", "dbexample": "", "web": "",
	} {
		if got, _ := rs.declaredName(asked); got != want {
			t.Errorf("%q is an answer for %q, want %q", asked, got, want)
		}
	}
}

func TestStreams(t *testing.T) {
	a, b := response("db.", 60, "db.", "192.0.2.1"), response("web.", 60, "web.", "192.0.2.2")
	data := append(binary.BigEndian.AppendUint16(nil, uint16(len(a))), a...)
	data = append(binary.BigEndian.AppendUint16(data, uint16(len(b))), b...)
	for size := 1; size <= len(data); size++ {
		s := streams{}
		p := packet{proto: protoTCP, tcpSeq: 0xfffffff0, tcpFlags: tcpSYN}
		s.feed(p)
		p.tcpSeq, p.tcpFlags = p.tcpSeq+1, 0
		var got [][]byte
		for rest := data; len(rest) > 0; {
			n := min(size, len(rest))
			p.payload = rest[:n]
			got = append(got, s.feed(p)...)
			got = append(got, s.feed(p)...) // sent again
			p.tcpSeq += uint32(n)
			rest = rest[n:]
		}
		if len(got) != 2 || !bytes.Equal(got[0], a) || !bytes.Equal(got[1], b) {
			t.Fatalf("segments of %d: %d messages", size, len(got))
		}
		p.tcpFlags, p.payload = tcpFIN, nil
		if s.feed(p); len(s) != 0 {
			t.Error("a closed stream is kept")
		}
	}
	s := streams{}
	s.feed(packet{tcpFlags: tcpSYN})
	if got := s.feed(packet{tcpSeq: 100, payload: data}); got != nil || len(s) != 0 {
		t.Error("a stream with a gap was learnt from")
	}
	for i := range 1000 {
		s.feed(packet{src: netip.AddrPortFrom(netip.Addr{}, uint16(i)), tcpFlags: tcpSYN})
	}
	if len(s) > maxStreams {
		t.Errorf("%d streams", len(s))
	}
}

func ipv6(next byte, rest ...byte) []byte {
	b := make([]byte, 40)
	b[0], b[6], b[7] = 0x60, next, 64
	binary.BigEndian.PutUint16(b[4:], uint16(len(rest)))
	b[23], b[39] = 1, 2
	return append(b, rest...)
}

func TestParsePacket(t *testing.T) {
	udp := []byte{0, 53, 0x1f, 0x40, 0, 10, 0, 0, 'h', 'i'}
	v4 := append([]byte{0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, udp...)
	later := slices.Clone(v4)
	later[7] = 1
	for _, row := range []struct {
		claim    string
		b        []byte
		src, dst string
		proto    Proto
		fragment bool
	}{
		{"IPv4", v4, "10.0.0.1:53", "10.0.0.2:8000", protoUDP, false},
		{"padding behind the packet", append(slices.Clone(v4), 0, 0, 0), "10.0.0.1:53", "10.0.0.2:8000", protoUDP, false},
		{"a later fragment has no ports", later, "10.0.0.1:0", "10.0.0.2:0", protoUDP, true},
		{"IPv6", ipv6(17, udp...), "[::1]:53", "[::2]:8000", protoUDP, false},
		{"behind extension headers", ipv6(0, append([]byte{60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0}, udp...)...), "[::1]:53", "[::2]:8000", protoUDP, false},
		{"a first fragment", ipv6(44, append([]byte{17, 0, 0, 1, 0, 0, 0, 1}, udp...)...), "[::1]:53", "[::2]:8000", protoUDP, false},
		{"a later IPv6 fragment", ipv6(44, append([]byte{17, 0, 0, 9, 0, 0, 0, 1}, udp...)...), "[::1]:0", "[::2]:0", protoUDP, true},
		{"cut in the ports", v4[:22], "10.0.0.1:0", "10.0.0.2:0", protoUDP, false},
	} {
		t.Run(row.claim, func(t *testing.T) {
			p, err := parsePacket(row.b)
			if err != nil || p.src.String() != row.src || p.dst.String() != row.dst || p.proto != row.proto || p.fragment != row.fragment {
				t.Errorf("%+v, %v", p, err)
			}
		})
	}
	if p, _ := parsePacket(v4); string(p.payload) != "hi" {
		t.Errorf("payload %q", p.payload)
	}
	for _, b := range [][]byte{nil, {0x45}, {0x60}, {0x10, 1, 2}, bytes.Repeat([]byte{0x4f}, 20)} {
		if _, err := parsePacket(b); err == nil {
			t.Errorf("%x was taken for a packet", b)
		}
	}
}

func FuzzParsePacket(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 30, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 53, 0x1f, 0x40, 0, 10, 0, 0, 'h', 'i'})
	f.Add(ipv6(0, 60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0, 0, 53, 0, 80))
	f.Add(ipv6(44, 6, 0, 0, 1, 0, 0, 0, 1, 0, 53, 0, 80))
	f.Add(ipv6(51, 6, 255, 0, 1))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := parsePacket(b)
		if err == nil && (!p.src.Addr().IsValid() || len(p.payload) > len(b)) {
			t.Fatalf("%+v", p)
		}
		s := streams{}
		s.feed(p)
		s.feed(p)
	})
}

func FuzzParseAnswer(f *testing.F) {
	f.Add(response("db.", 60, "db.", "192.0.2.1", "db.", "2001:db8::1"))
	f.Add(response("db.", 60, "c.", "192.0.2.3", "b.", "c.", "db.", "b."))
	f.Add(response("db.", 60, "db.", "db."))
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, ok := parseAnswer(b); ok && (len(a.addrs) == 0 || len(a.addrs) > maxAnswers || a.ttl < 0 || a.ttl > maxTTL) {
			t.Fatalf("%+v", a)
		}
	})
}

func FuzzNetlink(f *testing.F) {
	f.Add(append([]byte{2, 0, 0xde, 0xc1}, encode(func(ae *netlink.AttributeEncoder) {
		ae.Bytes(logPayload, []byte{0x45})
		ae.String(logPrefix, prefixIn)
		ae.Uint32(logUID, 7)
		ae.Bytes(logTimestamp, make([]byte, 16))
		ae.Uint32(logSeq, 1)
	})...))
	f.Add(append([]byte{2, 0, 0, 0}, encode(func(ae *netlink.AttributeEncoder) { ae.Bytes(queuePacketHdr, []byte{0, 0, 0, 1, 8, 0, 1}) })...))
	f.Add(make([]byte, 72))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, _ = parseLogEntry(netlink.Message{Header: netlink.Header{Type: logPacket}, Data: b})
		_, _ = parseQueueEntry(netlink.Message{Header: netlink.Header{Type: queuePacket}, Data: b})
		_, _ = parseSocket(b)
	})
}
