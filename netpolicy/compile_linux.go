package netpolicy

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// loopbackIndex is LOOPBACK_IFINDEX: the loopback device is the first device
// of every network namespace, and cannot be renumbered.
const loopbackIndex = 1

// queueKind is how this kernel sends a packet to user space.
type queueKind int

const (
	queueNative queueKind = iota // nft's own expression: CONFIG_NFT_QUEUE
	queueCompat                  // x_tables' NFQUEUE target: CONFIG_NFT_COMPAT and CONFIG_NETFILTER_XT_TARGET_NFQUEUE
	queueNone                    // a copy to NFLOG instead
)

func (k queueKind) String() string {
	return [...]string{"queue", "xt NFQUEUE", "none"}[k]
}

// compile gives the kernel's expressions for a rule.
func compile(r Rule, queue queueKind) ([]expr.Any, error) {
	var out []expr.Any
	for _, t := range r {
		e, err := compileTerm(t, queue)
		if err != nil {
			return nil, fmt.Errorf("compile rule %q: %w", r, err)
		}
		out = append(out, e...)
	}
	return out, nil
}

const reg = unix.NFT_REG_1

func equal(data ...byte) *expr.Cmp {
	return &expr.Cmp{Op: expr.CmpOpEq, Register: reg, Data: data}
}

// masked is true where register & mask is not zero.
func masked(mask uint32) []expr.Any {
	return []expr.Any{
		&expr.Bitwise{SourceRegister: reg, DestRegister: reg, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: reg, Data: make([]byte, 4)},
	}
}

func l4proto(p Proto) []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg}, equal(byte(p))}
}

func address(v6, src bool) []expr.Any {
	family, offset, length := byte(unix.NFPROTO_IPV4), uint32(16), uint32(4)
	if v6 {
		family, offset, length = unix.NFPROTO_IPV6, 24, 16
	}
	if src {
		offset -= length
	}
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: reg}, equal(family),
		&expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
	}
}

func compileTerm(t Term, queue queueKind) ([]expr.Any, error) {
	switch t := t.(type) {
	case Loopback:
		key, op := expr.MetaKeyOIF, expr.CmpOpEq
		if t.In {
			key = expr.MetaKeyIIF
		}
		if t.Not {
			op = expr.CmpOpNeq
		}
		return []expr.Any{&expr.Meta{Key: key, Register: reg}, &expr.Cmp{Op: op, Register: reg, Data: binaryutil.NativeEndian.PutUint32(loopbackIndex)}}, nil
	case CTState:
		bit, ok := map[CTState]uint32{"invalid": expr.CtStateBitINVALID, "established": expr.CtStateBitESTABLISHED, "related": expr.CtStateBitRELATED}[t]
		if !ok {
			return nil, fmt.Errorf("unknown state %q", t)
		}
		return append([]expr.Any{&expr.Ct{Register: reg, Key: expr.CtKeySTATE}}, masked(bit)...), nil
	case CTReply:
		return []expr.Any{&expr.Ct{Register: reg, Key: expr.CtKeyDIRECTION}, equal(1)}, nil // IP_CT_DIR_REPLY
	case CTDNAT:
		return append([]expr.Any{&expr.Ct{Register: reg, Key: expr.CtKeySTATUS}}, masked(1<<5)...), nil // IPS_DST_NAT
	case L4Proto:
		return l4proto(t.Proto), nil
	case Port:
		offset := uint32(2)
		if t.Src {
			offset = 0
		}
		out := append(l4proto(t.Proto), &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2})
		if t.First == t.Last {
			return append(out, equal(binary.BigEndian.AppendUint16(nil, t.First)...)), nil
		}
		return append(out,
			&expr.Cmp{Op: expr.CmpOpGte, Register: reg, Data: binary.BigEndian.AppendUint16(nil, t.First)},
			&expr.Cmp{Op: expr.CmpOpLte, Register: reg, Data: binary.BigEndian.AppendUint16(nil, t.Last)}), nil
	case ICMPv6:
		return append(l4proto(protoICMPv6), &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: 0, Len: 1}, equal(t.Type)), nil
	case Addr:
		return append(address(t.Addr.Is6(), t.Src), equal(t.Addr.AsSlice()...)), nil
	case InSet:
		return append(address(t.V6, false), &expr.Lookup{SourceRegister: reg, SetName: t.Set}), nil
	case PktType:
		code, ok := map[PktType]byte{"broadcast": unix.PACKET_BROADCAST, "multicast": unix.PACKET_MULTICAST}[t]
		if !ok {
			return nil, fmt.Errorf("unknown packet type %q", t)
		}
		return []expr.Any{&expr.Meta{Key: expr.MetaKeyPKTTYPE, Register: reg}, equal(code)}, nil
	case Counter:
		return []expr.Any{&expr.Counter{}}, nil
	case RateLimit:
		return []expr.Any{&expr.Limit{Type: expr.LimitTypePkts, Rate: uint64(t.PerSecond), Unit: expr.LimitTimeSecond, Burst: t.Burst}}, nil
	case Log:
		return []expr.Any{&expr.Log{
			Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN,
			Group: t.Group, Snaplen: t.Snaplen, Data: []byte(t.Prefix),
		}}, nil
	case Queue:
		switch queue {
		case queueNative:
			return []expr.Any{&expr.Queue{Num: t.Number, Total: 1, Flag: expr.QueueFlagBypass}}, nil
		case queueCompat:
			// struct xt_NFQ_info_v3: number, number of queues, flags (1: bypass).
			info := xt.Unknown(binaryutil.NativeEndian.PutUint16(t.Number))
			info = append(info, binaryutil.NativeEndian.PutUint16(1)...)
			info = append(info, binaryutil.NativeEndian.PutUint16(1)...)
			info = append(info, 0, 0) // XT_ALIGN to 8
			return []expr.Any{&expr.Target{Name: "NFQUEUE", Rev: 3, Info: &info}}, nil
		}
		return compileTerm(Log{prefixNames, NamesGroup, 0xffff}, queue)
	case RejectTCP:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}, nil
	case Reject:
		return []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_ICMPX_UNREACH, Code: unix.NFT_REJECT_ICMPX_ADMIN_PROHIBITED}}, nil
	case Accept:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}, nil
	case Drop:
		return []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}, nil
	}
	return nil, fmt.Errorf("unknown term %T", t)
}

// compileSet gives a set and its elements.
func compileSet(table *nftables.Table, s Set) (*nftables.Set, []nftables.SetElement) {
	set := &nftables.Set{Table: table, Name: s.Name, KeyType: nftables.TypeIPAddr, Interval: !s.Learnt, HasTimeout: s.Learnt, KeyByteOrder: binaryutil.BigEndian}
	if s.V6 {
		set.KeyType = nftables.TypeIP6Addr
	}
	if s.Learnt {
		set.Size = setSize
	}
	var elements []nftables.SetElement
	for _, p := range s.Prefixes {
		elements = append(elements, nftables.SetElement{Key: p.Addr().AsSlice()})
		// An interval that reaches to the last address has no end.
		if end := lastOf(p).Next(); end.IsValid() {
			elements = append(elements, nftables.SetElement{Key: end.AsSlice(), IntervalEnd: true})
		}
	}
	return set, elements
}

func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b)
	return a
}
