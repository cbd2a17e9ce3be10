package netpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
)

// Subsystems, messages and attributes of linux/netfilter/nfnetlink_log.h and
// nfnetlink_queue.h.
const (
	subsysQueue = 3
	subsysLog   = 4

	logPacket      = subsysLog<<8 | 0
	logConfig      = subsysLog<<8 | 1
	logCfgCmd      = 1
	logCfgMode     = 2
	logCfgTimeout  = 4
	logCfgQThresh  = 5
	logCfgFlags    = 6
	logCfgFlagsSeq = 1

	logTimestamp = 3
	logPayload   = 9
	logPrefix    = 10
	logUID       = 11
	logSeq       = 12
	logGID       = 14

	queuePacket     = subsysQueue<<8 | 0
	queueVerdict    = subsysQueue<<8 | 1
	queueConfig     = subsysQueue<<8 | 2
	queueCfgCmd     = 1
	queueCfgParams  = 2
	queueCfgMaxLen  = 3
	queueCfgMask    = 4
	queueCfgFlags   = 5
	queueFailOpen   = 1
	queuePacketHdr  = 1
	queueVerdictHdr = 2
	queuePayload    = 10

	cmdBind    = 1
	copyPacket = 2
	nfAccept   = 1
)

// nfgen is a message with struct nfgenmsg and attributes.
func nfgen(kind uint16, flags netlink.HeaderFlags, resource uint16, attributes []byte) netlink.Message {
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(kind), Flags: netlink.Request | flags},
		Data:   append(binary.BigEndian.AppendUint16([]byte{0, 0}, resource), attributes...),
	}
}

func encode(fill func(*netlink.AttributeEncoder)) []byte {
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	fill(ae)
	b, err := ae.Encode()
	if err != nil { // only for attributes over 64 KiB, and none here is
		panic(fmt.Sprintf("encode attributes: %v", err))
	}
	return b
}

// bindLog asks for the packets of an NFLOG group, each at once, numbered. One
// message says it all: no packet is sent before the group is set up.
func bindLog(group uint16, copyRange uint32) netlink.Message {
	return nfgen(logConfig, netlink.Acknowledge, group, encode(func(ae *netlink.AttributeEncoder) {
		ae.Uint8(logCfgCmd, cmdBind)
		ae.Bytes(logCfgMode, append(binary.BigEndian.AppendUint32(nil, copyRange), copyPacket, 0))
		ae.Uint32(logCfgTimeout, 1) // hundredths of a second
		ae.Uint32(logCfgQThresh, 1)
		ae.Uint16(logCfgFlags, logCfgFlagsSeq)
	}))
}

// bindQueue asks for the packets of an NFQUEUE. When the queue is full packets
// pass: a name is then not learnt, but DNS works.
func bindQueue(number uint16) netlink.Message {
	return nfgen(queueConfig, netlink.Acknowledge, number, encode(func(ae *netlink.AttributeEncoder) {
		ae.Bytes(queueCfgCmd, []byte{cmdBind, 0, 0, 0})
		ae.Bytes(queueCfgParams, append(binary.BigEndian.AppendUint32(nil, 0xffff), copyPacket))
		ae.Uint32(queueCfgMaxLen, 1024)
		ae.Uint32(queueCfgMask, queueFailOpen)
		ae.Uint32(queueCfgFlags, queueFailOpen)
	}))
}

func accept(number uint16, id uint32) netlink.Message {
	return nfgen(queueVerdict, 0, number, encode(func(ae *netlink.AttributeEncoder) {
		ae.Bytes(queueVerdictHdr, binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint32(nil, nfAccept), id))
	}))
}

// logged packets and queued ones, as the kernel sends them.
type logEntry struct {
	time    time.Time
	prefix  string
	payload []byte
	uid     int // -1: not said
	gid     int
	seq     uint32
	hasSeq  bool
}

type queueEntry struct {
	id      uint32
	payload []byte
}

var errMessage = errors.New("not the message expected")

func attributes(data []byte) (*netlink.AttributeDecoder, error) {
	if len(data) < 4 {
		return nil, errMessage
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return nil, err
	}
	ad.ByteOrder = binary.BigEndian
	return ad, nil
}

func parseLogEntry(m netlink.Message) (logEntry, error) {
	if m.Header.Type != logPacket {
		return logEntry{}, errMessage
	}
	ad, err := attributes(m.Data)
	if err != nil {
		return logEntry{}, err
	}
	e := logEntry{uid: -1, gid: -1}
	for ad.Next() {
		switch ad.Type() {
		case logTimestamp:
			if b := ad.Bytes(); len(b) == 16 {
				e.time = time.Unix(int64(binary.BigEndian.Uint64(b)), int64(binary.BigEndian.Uint64(b[8:])%1e6)*1000)
			}
		case logPayload:
			e.payload = ad.Bytes()
		case logPrefix:
			e.prefix = strings.TrimRight(string(ad.Bytes()), "\x00")
		case logUID:
			e.uid = int(ad.Uint32())
		case logGID:
			e.gid = int(ad.Uint32())
		case logSeq:
			e.seq, e.hasSeq = ad.Uint32(), true
		}
	}
	return e, ad.Err()
}

func parseQueueEntry(m netlink.Message) (queueEntry, error) {
	if m.Header.Type != queuePacket {
		return queueEntry{}, errMessage
	}
	ad, err := attributes(m.Data)
	if err != nil {
		return queueEntry{}, err
	}
	var e queueEntry
	header := false
	for ad.Next() {
		switch ad.Type() {
		case queuePacketHdr:
			if b := ad.Bytes(); len(b) >= 4 {
				e.id, header = binary.BigEndian.Uint32(b), true
			}
		case queuePayload:
			e.payload = ad.Bytes()
		}
	}
	if err := ad.Err(); err != nil {
		return e, err
	}
	if !header {
		return e, errMessage
	}
	return e, nil
}
