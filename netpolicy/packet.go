package netpolicy

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// packet is what the headers of an IP packet say. The payload points into the
// bytes that were parsed.
type packet struct {
	proto    Proto
	src, dst netip.AddrPort // port 0 where the protocol has none, or in a later fragment
	icmpType uint8
	fragment bool // a later fragment: nothing is known beyond addresses and protocol
	tcpSeq   uint32
	tcpFlags uint8
	payload  []byte // behind the transport header
}

const (
	tcpFIN = 0x01
	tcpSYN = 0x02
	tcpRST = 0x04
)

var errPacket = errors.New("not an IP packet")

// maxExtensions bounds the chain of IPv6 extension headers.
const maxExtensions = 16

// parsePacket reads an IPv4 or IPv6 packet that may be cut short: what is
// beyond the end is left zero.
func parsePacket(b []byte) (packet, error) {
	if len(b) < 1 {
		return packet{}, errPacket
	}
	var p packet
	var src, dst netip.Addr
	var rest []byte
	switch b[0] >> 4 {
	case 4:
		header := int(b[0]&0x0f) * 4
		if len(b) < 20 || header < 20 || len(b) < header {
			return packet{}, errPacket
		}
		src, dst = netip.AddrFrom4([4]byte(b[12:16])), netip.AddrFrom4([4]byte(b[16:20]))
		p.proto = Proto(b[9])
		p.fragment = binary.BigEndian.Uint16(b[6:8])&0x1fff != 0
		end := len(b)
		if total := int(binary.BigEndian.Uint16(b[2:4])); total >= header && total < end {
			end = total
		}
		rest = b[header:end]
	case 6:
		if len(b) < 40 {
			return packet{}, errPacket
		}
		src, dst = netip.AddrFrom16([16]byte(b[8:24])), netip.AddrFrom16([16]byte(b[24:40]))
		end := len(b)
		if total := 40 + int(binary.BigEndian.Uint16(b[4:6])); total > 40 && total < end {
			end = total
		}
		p.proto, rest = Proto(b[6]), b[40:end]
		if !p.extensions(&rest) {
			p.src, p.dst = netip.AddrPortFrom(src, 0), netip.AddrPortFrom(dst, 0)
			return p, nil
		}
	default:
		return packet{}, errPacket
	}
	var sport, dport uint16
	if !p.fragment {
		sport, dport = p.transport(rest)
	}
	p.src, p.dst = netip.AddrPortFrom(src, sport), netip.AddrPortFrom(dst, dport)
	return p, nil
}

// extensions skips IPv6 extension headers. False: the chain is cut short or too long.
func (p *packet) extensions(rest *[]byte) bool {
	for range maxExtensions {
		b := *rest
		size := 0
		switch p.proto {
		case 0, 43, 60, 135, 139, 140: // hop-by-hop, routing, destination options, mobility, HIP, shim6
			if len(b) < 8 {
				return false
			}
			size = (int(b[1]) + 1) * 8
		case 44: // fragment
			if len(b) < 8 {
				return false
			}
			size = 8
			p.fragment = binary.BigEndian.Uint16(b[2:4])&0xfff8 != 0
		case 51: // authentication
			if len(b) < 8 {
				return false
			}
			size = (int(b[1]) + 2) * 4
		default:
			return true
		}
		if len(b) < size {
			return false
		}
		p.proto, *rest = Proto(b[0]), b[size:]
		if p.fragment {
			return true
		}
	}
	return false
}

func (p *packet) transport(b []byte) (sport, dport uint16) {
	switch p.proto {
	case protoICMP, protoICMPv6:
		if len(b) > 0 {
			p.icmpType = b[0]
		}
		return 0, 0
	case protoTCP, protoUDP, protoSCTP, 33, 136: // and DCCP, UDP-Lite
		if len(b) < 4 {
			return 0, 0
		}
		sport, dport = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	}
	switch {
	case p.proto == protoUDP && len(b) >= 8:
		p.payload = b[8:]
	case p.proto == protoTCP && len(b) >= 20:
		p.tcpSeq, p.tcpFlags = binary.BigEndian.Uint32(b[4:]), b[13]
		if offset := int(b[12]>>4) * 4; offset >= 20 && offset <= len(b) {
			p.payload = b[offset:]
		}
	}
	return sport, dport
}
