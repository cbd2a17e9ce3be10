package netpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Table flags of linux/netfilter/nf_tables.h.
const (
	tableOwner   = 0x2 // NFT_TABLE_F_OWNER, Linux 5.12
	tablePersist = 0x4 // NFT_TABLE_F_PERSIST, Linux 6.9
)

const maxElements = 512 // per message: a netlink attribute holds 64 KiB

// batch is one nftables transaction: all of it happens, or nothing.
//
// google/nftables has its own, which cannot set table flags (0.3.0), asks for
// an echo of every rule, and forgets commands that could not be encoded.
type batch struct {
	messages []netlink.Message
	err      error
}

func (b *batch) add(kind uint16, flags netlink.HeaderFlags, family uint8, fill func(*netlink.AttributeEncoder)) {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	fill(ae)
	attributes, err := ae.Encode()
	if err != nil && b.err == nil {
		b.err = err
	}
	b.messages = append(b.messages, netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | kind), Flags: netlink.Request | flags},
		Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attributes...),
	})
}

func (b *batch) newTable(flags uint32) {
	b.add(unix.NFT_MSG_NEWTABLE, netlink.Create, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_TABLE_NAME, TableName)
		ae.Uint32(unix.NFTA_TABLE_FLAGS, flags)
	})
}

func (b *batch) delTable() {
	b.add(unix.NFT_MSG_DELTABLE, 0, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) { ae.String(unix.NFTA_TABLE_NAME, TableName) })
}

func (b *batch) flushRules() {
	b.add(unix.NFT_MSG_DELRULE, 0, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) { ae.String(unix.NFTA_RULE_TABLE, TableName) })
}

func (b *batch) delChain(name string) {
	b.add(unix.NFT_MSG_DELCHAIN, 0, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, TableName)
		ae.String(unix.NFTA_CHAIN_NAME, name)
	})
}

var hooks = map[string]uint32{"input": unix.NF_INET_LOCAL_IN, "forward": unix.NF_INET_FORWARD, "output": unix.NF_INET_LOCAL_OUT}

func (b *batch) newChain(c Chain) {
	hook, ok := hooks[c.Name]
	if !ok {
		b.err = fmt.Errorf("chain %q: no such hook", c.Name)
		return
	}
	policy := uint32(0) // NF_DROP
	if c.Accept {
		policy = 1
	}
	b.add(unix.NFT_MSG_NEWCHAIN, netlink.Create, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_CHAIN_TABLE, TableName)
		ae.String(unix.NFTA_CHAIN_NAME, c.Name)
		ae.Nested(unix.NFTA_CHAIN_HOOK, func(ae *netlink.AttributeEncoder) error {
			ae.Uint32(unix.NFTA_HOOK_HOOKNUM, hook)
			ae.Uint32(unix.NFTA_HOOK_PRIORITY, 0)
			return nil
		})
		ae.Uint32(unix.NFTA_CHAIN_POLICY, policy)
		ae.String(unix.NFTA_CHAIN_TYPE, "filter")
	})
}

func (b *batch) newRule(chain string, exprs []expr.Any) {
	b.add(unix.NFT_MSG_NEWRULE, netlink.Create|netlink.Append, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_RULE_TABLE, TableName)
		ae.String(unix.NFTA_RULE_CHAIN, chain)
		ae.Nested(unix.NFTA_RULE_EXPRESSIONS, func(ae *netlink.AttributeEncoder) error {
			for _, e := range exprs {
				data, err := expr.Marshal(unix.NFPROTO_INET, e)
				if err != nil {
					return fmt.Errorf("encode %T: %w", e, err)
				}
				ae.Bytes(unix.NFTA_LIST_ELEM|unix.NLA_F_NESTED, data)
			}
			return nil
		})
	})
}

// Data types of nft, so that "nft list" prints addresses.
func keyType(v6 bool) (magic, length uint32) {
	if v6 {
		return nftables.TypeIP6Addr.GetNFTMagic(), 16
	}
	return nftables.TypeIPAddr.GetNFTMagic(), 4
}

func (b *batch) newSet(s Set, id uint32) {
	magic, length := keyType(s.V6)
	flags := uint32(unix.NFT_SET_INTERVAL)
	if s.Learnt {
		flags = unix.NFT_SET_TIMEOUT
	}
	b.add(unix.NFT_MSG_NEWSET, netlink.Create, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_TABLE, TableName)
		ae.String(unix.NFTA_SET_NAME, s.Name)
		ae.Uint32(unix.NFTA_SET_FLAGS, flags)
		ae.Uint32(unix.NFTA_SET_KEY_TYPE, magic)
		ae.Uint32(unix.NFTA_SET_KEY_LEN, length)
		ae.Uint32(unix.NFTA_SET_ID, id)
		// NFTNL_UDATA_SET_KEYBYTEORDER = big endian, in native byte order: how nft prints the keys.
		ae.Bytes(unix.NFTA_SET_USERDATA, append([]byte{0, 4}, binary.NativeEndian.AppendUint32(nil, 2)...))
		if s.Learnt {
			ae.Nested(unix.NFTA_SET_DESC, func(ae *netlink.AttributeEncoder) error {
				ae.Uint32(unix.NFTA_SET_DESC_SIZE, setSize)
				return nil
			})
		}
	})
	_, elements := compileSet(nil, s)
	b.elements(unix.NFT_MSG_NEWSETELEM, s.Name, elements)
}

func (b *batch) delSet(name string) {
	b.add(unix.NFT_MSG_DELSET, 0, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.NFTA_SET_TABLE, TableName)
		ae.String(unix.NFTA_SET_NAME, name)
	})
}

// elements adds (NFT_MSG_NEWSETELEM) or deletes elements of a set. An element
// without a timeout stays until it is deleted.
func (b *batch) elements(kind uint16, set string, elements []nftables.SetElement) {
	for len(elements) > 0 {
		n := min(len(elements), maxElements)
		chunk := elements[:n]
		elements = elements[n:]
		b.add(kind, netlink.Create, unix.NFPROTO_INET, func(ae *netlink.AttributeEncoder) {
			ae.String(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
			ae.String(unix.NFTA_SET_ELEM_LIST_SET, set)
			ae.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(ae *netlink.AttributeEncoder) error {
				for _, e := range chunk {
					ae.Nested(unix.NFTA_LIST_ELEM, func(ae *netlink.AttributeEncoder) error {
						if e.IntervalEnd {
							ae.Uint32(unix.NFTA_SET_ELEM_FLAGS, unix.NFT_SET_ELEM_INTERVAL_END)
						}
						ae.Nested(unix.NFTA_SET_ELEM_KEY, func(ae *netlink.AttributeEncoder) error {
							ae.Bytes(unix.NFTA_DATA_VALUE, e.Key)
							return nil
						})
						if e.Timeout > 0 && kind == unix.NFT_MSG_NEWSETELEM {
							ae.Uint64(unix.NFTA_SET_ELEM_TIMEOUT, uint64(e.Timeout.Milliseconds()))
						}
						return nil
					})
				}
				return nil
			})
		})
	}
}

// send commits the batch. The kernel works on it, and queues its answers,
// before sendmsg(2) returns.
func (b *batch) send(conn *netlink.Conn) error {
	if b.err != nil {
		return fmt.Errorf("encode transaction: %w", b.err)
	}
	if len(b.messages) == 0 {
		return nil
	}
	// Only the last command asks to be acknowledged; errors come for each.
	b.messages[len(b.messages)-1].Header.Flags |= netlink.Acknowledge
	edge := func(kind int) netlink.Message {
		return netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request},
			Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES},
		}
	}
	messages := append([]netlink.Message{edge(unix.NFNL_MSG_BATCH_BEGIN)}, b.messages...)
	messages = append(messages, edge(unix.NFNL_MSG_BATCH_END))
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return err
	}
	defer conn.SetReadDeadline(time.Time{})
	if _, err := conn.SendMessages(messages); err != nil {
		return fmt.Errorf("send transaction: %w", err)
	}
	_, err := conn.Receive()
	if err == nil {
		return nil
	}
	// Read away what else the kernel says about this batch.
	_ = conn.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
	for range len(messages) {
		if _, more := conn.Receive(); more != nil && isTimeout(more) {
			break
		}
	}
	return err
}

func isTimeout(err error) bool {
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
