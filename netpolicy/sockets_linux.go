package netpolicy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Socket is one socket of a namespace, as sock_diag(7) tells.
type Socket struct {
	Proto  Proto
	Local  netip.AddrPort
	Remote netip.AddrPort // of a listening socket: unspecified
	UID    int
	Inode  uint32
}

const (
	sockDiagByFamily = 20
	tcpListen        = 10
	tcpClose         = 7 // what an unconnected UDP socket is in
	maxSockets       = 65536
)

// ListeningSockets lists what can be connected to in a network namespace: TCP
// sockets that listen, and UDP sockets that are bound and not connected. One
// that serves IPv6 and IPv4 has the address [::].
func ListeningSockets(netnsFD int) ([]Socket, error) {
	return sockets(netnsFD, map[Proto]uint32{protoTCP: 1 << tcpListen, protoUDP: 1 << tcpClose})
}

func sockets(netnsFD int, want map[Proto]uint32) ([]Socket, error) {
	ns, err := openNamespace(netnsFD)
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer ns.Close()
	conn, err := dial(unix.NETLINK_SOCK_DIAG, ns)
	if err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	defer conn.Close()
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		return nil, fmt.Errorf("list sockets: %w", err)
	}
	var out []Socket
	for proto, states := range want {
		for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
			// struct inet_diag_req_v2: the socket ID is left zero.
			request := append([]byte{family, byte(proto), 0, 0}, binary.NativeEndian.AppendUint32(nil, states)...)
			request = append(request, make([]byte, 48)...)
			messages, err := conn.Execute(netlink.Message{Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump}, Data: request})
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EAFNOSUPPORT) {
				continue // no such protocol here
			}
			if err != nil {
				return nil, fmt.Errorf("list %s sockets: %w", proto, err)
			}
			for _, m := range messages {
				if s, ok := parseSocket(m.Data); ok && len(out) < maxSockets {
					s.Proto = proto
					out = append(out, s)
				}
			}
		}
	}
	return out, nil
}

// parseSocket reads struct inet_diag_msg.
func parseSocket(b []byte) (Socket, bool) {
	if len(b) < 72 {
		return Socket{}, false
	}
	addr := func(b []byte) netip.Addr { return netip.AddrFrom16([16]byte(b[:16])) }
	local, remote := addr(b[8:]), addr(b[24:])
	if b[0] == unix.AF_INET {
		local, remote = netip.AddrFrom4([4]byte(b[8:12])), netip.AddrFrom4([4]byte(b[24:28]))
	}
	return Socket{
		Local:  netip.AddrPortFrom(local.Unmap(), binary.BigEndian.Uint16(b[4:])),
		Remote: netip.AddrPortFrom(remote.Unmap(), binary.BigEndian.Uint16(b[6:])),
		UID:    int(binary.NativeEndian.Uint32(b[64:])),
		Inode:  binary.NativeEndian.Uint32(b[68:]),
	}, true
}

// ErrNoOwner means that no process of those asked about holds the socket any
// more: a refused connect(2) has usually ended before anybody can look.
var ErrNoOwner = errors.New("no process holds the socket")

// SocketOwner finds the process, among pids, that holds the local socket a
// refusal is about. It is a best effort: the socket may be gone, and a number
// may since belong to another one.
func SocketOwner(netnsFD int, r Refusal, pids []int) (int, error) {
	if r.Proto != protoTCP && r.Proto != protoUDP {
		return 0, ErrNoOwner
	}
	own := r.Src
	if r.Direction == Inbound {
		own = r.Dst
	}
	all, err := sockets(netnsFD, map[Proto]uint32{r.Proto: 0xffffffff})
	if err != nil {
		return 0, err
	}
	links := map[string]bool{}
	for _, s := range all {
		if s.Local.Port() == own.Port() && s.Inode != 0 && (s.Local.Addr() == own.Addr() || s.Local.Addr().IsUnspecified()) {
			links[fmt.Sprintf("socket:[%d]", s.Inode)] = true
		}
	}
	if len(links) == 0 {
		return 0, ErrNoOwner
	}
	for _, pid := range pids {
		dir := "/proc/" + strconv.Itoa(pid) + "/fd"
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue // gone
		}
		for _, e := range entries {
			if link, err := os.Readlink(dir + "/" + e.Name()); err == nil && strings.HasPrefix(link, "socket:") && links[link] {
				return pid, nil
			}
		}
	}
	return 0, ErrNoOwner
}
