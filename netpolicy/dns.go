package netpolicy

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

const (
	maxAnswers = 512
	maxAliases = 16 // CNAMEs followed
	maxTTL     = 24 * time.Hour
)

// answer is what one DNS response says about the name that was asked for.
type answer struct {
	name  string // lower case, no trailing dot
	addrs []netip.Addr
	ttl   time.Duration // the shortest of the records used
}

// parseAnswer reads a DNS response. Only addresses count that the name asked
// for leads to, directly or through aliases in the same response: other
// records, whatever they claim, are ignored.
func parseAnswer(msg []byte) (answer, bool) {
	if len(msg) > 0xffff {
		return answer{}, false
	}
	var p dnsmessage.Parser
	h, err := p.Start(msg)
	if err != nil || !h.Response || h.OpCode != 0 || h.RCode != dnsmessage.RCodeSuccess {
		return answer{}, false
	}
	q, err := p.Question()
	if err != nil || q.Class != dnsmessage.ClassINET {
		return answer{}, false
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone {
		return answer{}, false
	}
	type address struct {
		addr netip.Addr
		ttl  uint32
	}
	type alias struct {
		to  string
		ttl uint32
	}
	addresses, aliases := map[string][]address{}, map[string]alias{}
	for range maxAnswers {
		r, err := p.AnswerHeader()
		if err != nil { // the end, or a truncated response: what came is what counts
			break
		}
		owner := dnsName(r.Name.String())
		if r.Class != dnsmessage.ClassINET {
			err = p.SkipAnswer()
		} else {
			switch r.Type {
			case dnsmessage.TypeA:
				var a dnsmessage.AResource
				if a, err = p.AResource(); err == nil {
					addresses[owner] = append(addresses[owner], address{netip.AddrFrom4(a.A), r.TTL})
				}
			case dnsmessage.TypeAAAA:
				var a dnsmessage.AAAAResource
				if a, err = p.AAAAResource(); err == nil {
					addresses[owner] = append(addresses[owner], address{netip.AddrFrom16(a.AAAA), r.TTL})
				}
			case dnsmessage.TypeCNAME:
				var c dnsmessage.CNAMEResource
				if c, err = p.CNAMEResource(); err == nil {
					aliases[owner] = alias{dnsName(c.CNAME.String()), r.TTL}
				}
			default:
				err = p.SkipAnswer()
			}
		}
		if err != nil {
			break
		}
	}
	a := answer{name: dnsName(q.Name.String()), ttl: maxTTL}
	name := a.name
	for range maxAliases {
		for _, found := range addresses[name] {
			a.addrs = append(a.addrs, found.addr)
			a.ttl = min(a.ttl, time.Duration(found.ttl)*time.Second)
		}
		next, ok := aliases[name]
		if !ok || len(a.addrs) > 0 {
			break
		}
		a.ttl = min(a.ttl, time.Duration(next.ttl)*time.Second)
		name = next.to
	}
	return a, len(a.addrs) > 0
}

func dnsName(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }

// declaredName tells which declared name an answer is for: itself, or itself
// within a search domain.
func (r *Ruleset) declaredName(asked string) (string, bool) {
	for _, name := range r.Names {
		rest, ok := strings.CutPrefix(asked, name)
		if !ok {
			continue
		}
		if rest == "" {
			return name, true
		}
		for _, s := range r.Search {
			if rest == "."+s {
				return name, true
			}
		}
	}
	return "", false
}

// streams puts DNS over TCP together again: each message is preceded by its
// length (RFC 1035, 4.2.2) and may span segments. What arrives out of order is
// given up: nothing is learnt from it, which refuses rather than allows.
type streams map[flow]*stream

type flow struct{ src, dst netip.AddrPort }

type stream struct {
	next uint32 // sequence number awaited
	buf  []byte
}

const (
	maxStreams = 64
	maxStream  = 2 + 0xffff
)

// feed takes one segment and gives the messages that it completes.
func (s streams) feed(p packet) [][]byte {
	key := flow{p.src, p.dst}
	st := s[key]
	if p.tcpFlags&(tcpFIN|tcpRST) != 0 {
		defer delete(s, key)
	}
	if p.tcpFlags&tcpSYN != 0 || st == nil {
		if st == nil && len(s) >= maxStreams {
			for old := range s { // any: its messages are not learnt from
				delete(s, old)
				break
			}
		}
		st = &stream{next: p.tcpSeq}
		if p.tcpFlags&tcpSYN != 0 {
			st.next++
			p.tcpSeq++
		}
		s[key] = st
	}
	skip := st.next - p.tcpSeq // what of this segment was there before
	if skip > uint32(len(p.payload)) {
		if int32(skip) < 0 { // a gap
			delete(s, key)
		}
		return nil
	}
	payload := p.payload[skip:]
	st.next += uint32(len(payload))
	st.buf = append(st.buf, payload...)
	var out [][]byte
	for len(st.buf) >= 2 {
		n := int(binary.BigEndian.Uint16(st.buf)) + 2
		if len(st.buf) < n {
			break
		}
		out = append(out, st.buf[2:n:n])
		st.buf = st.buf[n:]
	}
	if len(st.buf) > maxStream {
		delete(s, key)
	}
	return out
}
