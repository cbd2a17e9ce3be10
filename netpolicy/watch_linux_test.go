package netpolicy

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"golang.org/x/sys/unix"
)

// seen collects refusals.
type seen struct {
	mu   sync.Mutex
	list []Refusal
	more chan struct{}
}

func watch(t testing.TB, n *namespace, table *Table) *seen {
	t.Helper()
	s := &seen{more: make(chan struct{}, 1)}
	w, err := NewWatcher(n.fd, table)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- w.Run(ctx, func(r Refusal) {
			s.mu.Lock()
			s.list = append(s.list, r)
			s.mu.Unlock()
			select {
			case s.more <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("watcher ended: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("watcher does not end")
		}
	})
	return s
}

// wait gives the first refusal that f accepts.
func (s *seen) wait(t testing.TB, what string, f func(Refusal) bool) Refusal {
	t.Helper()
	deadline := time.After(10 * time.Second)
	for {
		s.mu.Lock()
		i := slices.IndexFunc(s.list, f)
		var r Refusal
		if i >= 0 {
			r = s.list[i]
		}
		all := fmt.Sprint(s.list)
		s.mu.Unlock()
		if i >= 0 {
			return r
		}
		select {
		case <-s.more:
		case <-deadline:
			t.Fatalf("%s is not reported; reported: %s", what, all)
		}
	}
}

func (s *seen) all() []Refusal {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.list)
}

func to(addr string, d Direction) func(Refusal) bool {
	a := netip.MustParseAddrPort(addr)
	return func(r Refusal) bool { return r.Dst == a && r.Direction == d }
}

// TestMain plays other processes when the environment says so.
func TestMain(m *testing.M) {
	switch os.Getenv("NETPOLICY_TEST_ROLE") {
	case "dial": // as another user, in the namespace of descriptor 3
		runtime.LockOSThread()
		err := unix.Setns(3, unix.CLONE_NEWNET)
		if err == nil {
			err = syscall.Setuid(12345)
		}
		if err == nil {
			_, err = net.DialTimeout("tcp", os.Getenv("NETPOLICY_TEST_ADDR"), 5*time.Second)
		}
		fmt.Println(err)
		os.Exit(0)
	case "supervise": // until killed, in the namespace of descriptor 3
		t, err := Apply(3, Rules(named(), namedOptions()))
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		w, err := NewWatcher(3, t)
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		_ = w.Run(context.Background(), func(Refusal) {})
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func role(t testing.TB, n *namespace, name string, env ...string) *exec.Cmd {
	t.Helper()
	dup, err := unix.FcntlInt(uintptr(n.fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(dup), "netns")
	t.Cleanup(func() { f.Close() })
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), append(env, "NETPOLICY_TEST_ROLE="+name)...)
	cmd.ExtraFiles = []*os.File{f}
	return cmd
}

func TestRefusalsAreReported(t *testing.T) {
	container, outside := pair(t)
	table := apply(t, container, Rules(everything(), everythingOptions()))
	s := watch(t, container, table)

	if out, err := role(t, container, "dial", "NETPOLICY_TEST_ADDR=10.199.0.1:7777").CombinedOutput(); err != nil || !strings.Contains(string(out), "refused") {
		t.Fatalf("%v: %s", err, out)
	}
	r := s.wait(t, "a TCP connection out", to("10.199.0.1:7777", Outbound))
	if r.UID != 12345 || r.Proto != protoTCP || r.Src.Addr() != in4 || r.Src.Port() == 0 || r.Verdict != record.Denied || r.Prefix != prefixOut || time.Since(r.Time).Abs() > time.Hour {
		t.Errorf("%+v", r)
	}

	if err := hello(t, container, netip.MustParseAddrPort("[fd99::1]:7777")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("v6: %v", err)
	}
	s.wait(t, "a TCP connection out over v6", to("[fd99::1]:7777", Outbound))

	go func() { _ = hello(t, outside, netip.MustParseAddrPort("10.199.0.2:6666")) }()
	r = s.wait(t, "a TCP connection in", to("10.199.0.2:6666", Inbound))
	if r.UID != -1 || r.Peer().Addr() != out4 {
		t.Errorf("%+v", r)
	}

	udp := func(n *namespace, addr string, size int) error {
		c, err := dial4(n, "udp", netip.AddrPort{}, netip.MustParseAddrPort(addr))
		if err != nil {
			return err
		}
		defer c.Close()
		_, err = c.Write(make([]byte, size))
		return err
	}
	if err := udp(container, "10.199.0.1:9999", 10); !errors.Is(err, syscall.EPERM) {
		t.Errorf("UDP out: %v", err)
	}
	s.wait(t, "UDP out", to("10.199.0.1:9999", Outbound))
	if err := udp(container, "10.199.0.1:9998", 5000); !errors.Is(err, syscall.EPERM) {
		t.Errorf("UDP in fragments out: %v", err)
	}
	s.wait(t, "UDP in fragments out", to("10.199.0.1:9998", Outbound))
	if err := udp(outside, "10.199.0.2:9997", 5000); err != nil {
		t.Error(err)
	}
	s.wait(t, "UDP in fragments in", to("10.199.0.2:9997", Inbound))

	// A destination options header does not hide the port.
	container.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"); err != nil {
			return err
		}
		if err := unix.Sendto(fd, []byte("x"), 0, &unix.SockaddrInet6{Port: 9996, Addr: out6.As16()}); !errors.Is(err, unix.EPERM) {
			return fmt.Errorf("with an extension header: %v", err)
		}
		// And data in a SYN is refused with the SYN.
		tcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(tcp)
		if err := unix.Sendto(tcp, []byte("x"), unix.MSG_FASTOPEN, &unix.SockaddrInet4{Port: 9995, Addr: out4.As4()}); err == nil {
			_, err = unix.Read(tcp, make([]byte, 1))
			if !errors.Is(err, unix.ECONNREFUSED) {
				return fmt.Errorf("fast open: %v", err)
			}
		}
		// Multipath TCP is TCP.
		mptcp, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 262)
		if errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.ENOPROTOOPT) {
			return nil
		}
		if err != nil {
			return err
		}
		defer unix.Close(mptcp)
		if err := unix.Connect(mptcp, &unix.SockaddrInet4{Port: 9994, Addr: out4.As4()}); !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("multipath: %v", err)
		}
		return nil
	})
	s.wait(t, "UDP behind an extension header", to("[fd99::1]:9996", Outbound))
	s.wait(t, "TCP fast open", to("10.199.0.1:9995", Outbound))

	icmp := func(r Refusal) bool { return r.Proto == protoICMP && r.Direction == Outbound && r.ICMPType == 8 }
	container.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		_ = unix.Sendto(fd, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, 0, &unix.SockaddrInet4{Addr: out4.As4()})
		return nil
	})
	s.wait(t, "an echo request", icmp)

	if in, _, out, err := table.Refused(); err != nil || in < 2 || out < 6 {
		t.Errorf("refused %d in, %d out: %v", in, out, err)
	}
	for _, r := range s.all() {
		if r.Problem != nil || r.Lost != 0 || r.Direction == Forwarded {
			t.Errorf("%+v", r)
		}
	}
}

func TestLargeDatagramsToDeclaredPortsPass(t *testing.T) {
	container, outside := pair(t)
	var server net.PacketConn
	container.do(t, func() (err error) {
		server, err = net.ListenPacket("udp", "10.199.0.2:8005")
		return err
	})
	defer server.Close()
	table := apply(t, container, Rules(everything(), everythingOptions()))
	s := watch(t, container, table)
	c, err := dial4(outside, "udp", netip.AddrPort{}, netip.MustParseAddrPort("10.199.0.2:8005"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write(make([]byte, 9000)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 10000)
	server.SetDeadline(time.Now().Add(10 * time.Second))
	n, from, err := server.ReadFrom(buf)
	if err != nil || n != 9000 {
		t.Fatalf("%d bytes: %v", n, err)
	}
	if _, err := server.WriteTo(buf[:9000], from); err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if n, err := c.Read(buf); err != nil || n != 9000 {
		t.Fatalf("the reply: %d bytes: %v", n, err)
	}
	if got := s.all(); len(got) != 0 {
		t.Errorf("refused %v", got)
	}
}

func TestEstablishedFlowsSurviveAnUpdate(t *testing.T) {
	container, outside := pair(t)
	var l net.Listener
	outside.do(t, func() (err error) {
		l, err = net.Listen("tcp", "10.199.0.1:7000")
		return err
	})
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go io.Copy(c, c)
		}
	}()
	table := apply(t, container, Rules(everything(), everythingOptions()))
	c, err := dial4(container, "tcp", netip.AddrPort{}, netip.MustParseAddrPort("10.199.0.1:7000"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	echo := func() error {
		c.SetDeadline(time.Now().Add(10 * time.Second))
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	if err := echo(); err != nil {
		t.Fatal(err)
	}
	less := plan.Network{Enforced: true}
	for range 2 {
		if err := table.Update(Rules(less, Options{})); err != nil {
			t.Fatal(err)
		}
	}
	if err := echo(); err != nil {
		t.Errorf("an established flow: %v", err)
	}
	if err := hello(t, container, netip.MustParseAddrPort("10.199.0.1:7000")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("a new flow: %v", err)
	}
}

func TestInterfaceAfterApply(t *testing.T) {
	container, outside := newNamespace(t), newNamespace(t)
	table := apply(t, container, Rules(everything(), everythingOptions()))
	s := watch(t, container, table)
	container.ip(t, "link set lo up")
	outside.ip(t, "link set lo up")
	join(t, container, outside)
	container.listen(t, netip.MustParseAddrPort("10.199.0.2:5432"))
	outside.listen(t, netip.MustParseAddrPort("10.199.0.1:7000"))
	if err := hello(t, outside, netip.MustParseAddrPort("10.199.0.2:5432")); err != nil {
		t.Errorf("declared in: %v", err)
	}
	if err := hello(t, container, netip.MustParseAddrPort("10.199.0.1:7000")); err != nil {
		t.Errorf("declared out: %v", err)
	}
	if err := hello(t, container, netip.MustParseAddrPort("10.199.0.1:7001")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("undeclared out: %v", err)
	}
	s.wait(t, "undeclared out", to("10.199.0.1:7001", Outbound))
	for _, r := range s.all() {
		if r.Dst != netip.MustParseAddrPort("10.199.0.1:7001") {
			t.Errorf("an interface that comes up is reported: %v", r)
		}
	}
}

func TestAuditLetsThroughAndReports(t *testing.T) {
	container, outside := pair(t)
	container.listen(t, netip.MustParseAddrPort("10.199.0.2:6666"))
	outside.listen(t, netip.MustParseAddrPort("10.199.0.1:7777"))
	o := everythingOptions()
	o.Mode = record.Audit
	s := watch(t, container, apply(t, container, Rules(everything(), o)))
	if err := hello(t, outside, netip.MustParseAddrPort("10.199.0.2:6666")); err != nil {
		t.Error(err)
	}
	if err := hello(t, container, netip.MustParseAddrPort("10.199.0.1:7777")); err != nil {
		t.Error(err)
	}
	for _, f := range []func(Refusal) bool{to("10.199.0.2:6666", Inbound), to("10.199.0.1:7777", Outbound)} {
		if r := s.wait(t, "an observed connection", f); r.Verdict != record.Observed {
			t.Errorf("%+v", r)
		}
	}
}

// dns answers every question, on UDP and TCP, with what answer gives.
func dns(t testing.TB, n *namespace, at netip.AddrPort, answer func(question string) []byte) {
	t.Helper()
	var udp net.PacketConn
	var tcp net.Listener
	n.do(t, func() (err error) {
		if udp, err = net.ListenPacket("udp", at.String()); err != nil {
			return err
		}
		tcp, err = net.Listen("tcp", at.String())
		return err
	})
	t.Cleanup(func() { udp.Close(); tcp.Close() })
	go func() {
		buf := make([]byte, 512)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(answer(string(buf[:n])), from)
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			buf := make([]byte, 512)
			n, _ := c.Read(buf)
			msg := answer(string(buf[:n]))
			msg = append(binary.BigEndian.AppendUint16(nil, uint16(len(msg))), msg...)
			for len(msg) > 0 { // in small segments
				n := min(len(msg), 7)
				_, _ = c.Write(msg[:n])
				msg = msg[n:]
			}
			c.Close()
		}
	}()
}

// ask sends a question (any bytes: the server here does not read them) and
// returns when the answer has arrived.
func ask(n *namespace, network string, at netip.AddrPort, question string) error {
	c, err := dial4(n, network, netip.AddrPort{}, at)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := c.Write([]byte(question)); err != nil {
		return err
	}
	if network == "tcp" {
		b, err := io.ReadAll(c)
		if err == nil && len(b) < 12 {
			err = fmt.Errorf("%d bytes", len(b))
		}
		return err
	}
	_, err = c.Read(make([]byte, 4096))
	return err
}

func TestNames(t *testing.T) {
	container, outside := pair(t)
	var last atomic.Uint32
	fresh := func() netip.Addr { return netip.AddrFrom4([4]byte{10, 199, 1, byte(last.Add(1))}) }
	var lines []string
	for i := range 130 {
		lines = append(lines, fmt.Sprintf("addr add 10.199.1.%d/32 dev lo", i+1))
	}
	outside.ip(t, lines...)
	outside.listen(t, netip.MustParseAddrPort("0.0.0.0:5432"))
	var current atomic.Value
	current.Store([]byte{})
	dns(t, outside, resolver, func(string) []byte { return current.Load().([]byte) })
	table := apply(t, container, Rules(named(), namedOptions()))
	if !table.HoldsAnswers() {
		t.Skipf("this kernel cannot hold answers: %q", table.Notes())
	}
	s := watch(t, container, table)
	connect := func(a netip.Addr) error { return hello(t, container, netip.AddrPortFrom(a, 5432)) }

	if a := fresh(); !errors.Is(connect(a), syscall.ECONNREFUSED) {
		t.Error("an address that was never answered is open")
	}
	for i := range 50 {
		a := fresh()
		current.Store(response("DB.test.", 30, "db.TEST.", "alias.", "alias.", a.String()))
		network := []string{"udp", "tcp"}[i%2]
		if err := ask(container, network, resolver, "?"); err != nil {
			t.Fatalf("%d: ask over %s: %v", i, network, err)
		}
		if err := connect(a); err != nil {
			t.Fatalf("%d: connect at once after the answer over %s: %v", i, network, err)
		}
	}
	if got := table.Addresses("db"); len(got) != 1 {
		t.Errorf("the latest answer's addresses are %v", got)
	}
	if err := connect(netip.MustParseAddr("10.199.1.2")); err != nil {
		t.Errorf("an address of an earlier answer, before its time: %v", err)
	}
	if err := hello(t, container, netip.MustParseAddrPort("10.199.1.51:5433")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("another port of a declared name: %v", err)
	}
	if r := s.wait(t, "another port", to("10.199.1.51:5433", Outbound)); r.Name != "db" {
		t.Errorf("the name is not told: %+v", r)
	}

	for _, row := range []struct {
		claim string
		msg   func(a string) []byte
		ask   func(msg []byte) error
	}{
		{"an answer for another name", func(a string) []byte { return response("other.", 30, "other.", a) }, func([]byte) error { return ask(container, "udp", resolver, "?") }},
		{"a record beside the answer", func(a string) []byte { return response("other.", 30, "db.", a) }, func([]byte) error { return ask(container, "udp", resolver, "?") }},
		{"an answer from a server on loopback that is no redirection", func(a string) []byte { return response("db.", 30, "db.", a) }, func(msg []byte) error {
			at := netip.MustParseAddrPort("127.0.0.11:53")
			dns(t, container, at, func(string) []byte { return msg })
			return ask(container, "udp", at, "?")
		}},
		{"an answer nobody asked for", func(a string) []byte { return response("db.", 30, "db.", a) }, func(msg []byte) error {
			return outside.try(func() error {
				c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(out4, 5353)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(in4, 8000)))
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write(msg)
				return err
			})
		}},
	} {
		t.Run(row.claim, func(t *testing.T) {
			a := fresh()
			current.Store(row.msg(a.String()))
			if err := row.ask(row.msg(a.String())); err != nil {
				t.Fatal(err)
			}
			if err := connect(a); !errors.Is(err, syscall.ECONNREFUSED) {
				t.Errorf("its address: %v", err)
			}
		})
	}
	for _, r := range s.all() {
		if r.Problem != nil {
			t.Error(r.Problem)
		}
	}
}

// Docker's embedded resolver: 127.0.0.11:53 is redirected, in the container's
// namespace, to a port that a process outside of the container serves; what
// it asks further goes out through the container's interface.
func TestEmbeddedResolver(t *testing.T) {
	container, outside := pair(t)
	outside.listen(t, netip.MustParseAddrPort("10.199.0.3:5432"))
	dns(t, outside, resolver, func(string) []byte { return response("db.", 30, "db.", other4.String()) })
	dns(t, container, netip.MustParseAddrPort("127.0.0.11:40053"), func(string) []byte {
		if err := ask(container, "udp", resolver, "?"); err != nil { // upstream
			t.Error(err)
		}
		return response("db.", 30, "db.", other4.String())
	})
	for _, line := range []string{
		"add table ip nat", "add chain ip nat out { type nat hook output priority -100 ; }", "add chain ip nat post { type nat hook postrouting priority 100 ; }",
		"add rule ip nat out ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:40053", "add rule ip nat out ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:40053",
		"add rule ip nat post ip saddr 127.0.0.11 udp sport 40053 snat to 127.0.0.11:53",
	} {
		container.run(t, "nft", line)
	}
	table := apply(t, container, Rules(named(), namedOptions()))
	s := watch(t, container, table)
	for _, network := range []string{"udp", "tcp"} {
		if err := table.Update(Rules(plan.Network{Enforced: true}, namedOptions())); err != nil { // forget
			t.Fatal(err)
		}
		if err := table.Update(Rules(named(), namedOptions())); err != nil {
			t.Fatal(err)
		}
		if err := hello(t, container, netip.MustParseAddrPort("10.199.0.3:5432")); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Fatalf("before the answer: %v", err)
		}
		if err := ask(container, network, netip.MustParseAddrPort("127.0.0.11:53"), "?"); err != nil {
			t.Fatalf("%s: %v", network, err)
		}
		if err := hello(t, container, netip.MustParseAddrPort("10.199.0.3:5432")); err != nil {
			t.Errorf("after the answer over %s: %v", network, err)
		}
	}
	for _, r := range s.all() {
		if r.Dst.Port() != 5432 {
			t.Errorf("refused %v", r)
		}
	}
}

// Where the kernel has no NFQUEUE, answers are learnt from copies: a little
// later, and the table says so.
func TestNamesWithoutQueue(t *testing.T) {
	was := knownQueue.Swap(int32(queueNone) + 1)
	defer knownQueue.Store(was)
	container, outside := pair(t)
	outside.listen(t, netip.MustParseAddrPort("10.199.0.3:5432"))
	dns(t, outside, resolver, func(string) []byte { return response("db.", 30, "db.", other4.String()) })
	table := apply(t, container, Rules(named(), namedOptions()))
	if table.HoldsAnswers() || len(table.Notes()) == 0 {
		t.Errorf("not said: %q", table.Notes())
	}
	watch(t, container, table)
	if err := ask(container, "udp", resolver, "?"); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(10 * time.Second); len(table.Addresses("db")) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not learnt")
		}
	}
	if err := hello(t, container, netip.MustParseAddrPort("10.199.0.3:5432")); err != nil {
		t.Error(err)
	}
}

func TestSupervisorKilled(t *testing.T) {
	container, outside := pair(t)
	outside.listen(t, netip.MustParseAddrPort("10.199.0.3:5432"))
	dns(t, outside, resolver, func(string) []byte { return response("db.", 30, "db.", other4.String()) })
	supervise := role(t, container, "supervise")
	out, err := supervise.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := supervise.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = supervise.Process.Kill(); _ = supervise.Wait() })
	line := make([]byte, 200)
	if n, err := out.Read(line); err != nil || !strings.HasPrefix(string(line[:n]), "ready") {
		t.Fatalf("%v: %s", err, line[:n])
	}
	db := netip.MustParseAddrPort("10.199.0.3:5432")
	if err := supervise.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = supervise.Wait()

	if err := hello(t, container, netip.MustParseAddrPort("10.199.0.1:7777")); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("undeclared out with a dead supervisor: %v", err)
	}
	if err := ask(container, "udp", resolver, "?"); err != nil {
		t.Errorf("DNS with a dead supervisor: %v", err)
	}
	if err := hello(t, container, db); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("an address nobody learnt: %v", err)
	}
	table, err := Adopt(container.fd, Rules(named(), namedOptions()))
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if table.Repaired() {
		t.Error("the table changed while nobody owned it")
	}
	s := watch(t, container, table)
	if err := ask(container, "udp", resolver, "?"); err != nil {
		t.Error(err)
	}
	if err := hello(t, container, db); err != nil {
		t.Errorf("after the restart: %v", err)
	}
	_ = hello(t, container, netip.MustParseAddrPort("10.199.0.1:7777"))
	s.wait(t, "a refusal after the restart", to("10.199.0.1:7777", Outbound))
}

func TestListeningSockets(t *testing.T) {
	container, _ := pair(t)
	container.listen(t, netip.MustParseAddrPort("10.199.0.2:5432"))
	container.listen(t, netip.MustParseAddrPort("[::]:6666"))
	var udp net.PacketConn
	container.do(t, func() (err error) {
		udp, err = net.ListenPacket("udp4", "0.0.0.0:8000")
		return err
	})
	defer udp.Close()
	list, err := ListeningSockets(container.fd)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprintf("%s %s", s.Proto, s.Local))
	}
	slices.Sort(got)
	if want := []string{"tcp 10.199.0.2:5432", "tcp [::]:6666", "udp 0.0.0.0:8000"}; !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	r := Refusal{Direction: Outbound, Proto: protoUDP, Src: netip.MustParseAddrPort("10.199.0.2:8000")}
	if pid, err := SocketOwner(container.fd, r, []int{1, os.Getpid()}); err != nil || pid != os.Getpid() {
		t.Errorf("owner %d, %v", pid, err)
	}
	r.Src = netip.MustParseAddrPort("10.199.0.2:8001")
	if _, err := SocketOwner(container.fd, r, []int{os.Getpid()}); !errors.Is(err, ErrNoOwner) {
		t.Errorf("nobody's socket: %v", err)
	}
}

// A hundred namespaces take descriptors and goroutines, and no threads.
func TestManyNamespaces(t *testing.T) {
	threads := func() int {
		e, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(e)
	}
	var all []*namespace
	for range 100 {
		all = append(all, newNamespace(t))
	}
	before := threads()
	for _, n := range all {
		watch(t, n, apply(t, n, Rules(named(), namedOptions())))
	}
	if grown := threads() - before; grown > 30 {
		t.Errorf("%d more threads for 100 namespaces", grown)
	}
}

func BenchmarkApply(b *testing.B) {
	n := newNamespace(b)
	rs := Rules(everything(), everythingOptions())
	fastest := time.Hour // what the machine's other work does not hide
	for b.Loop() {
		start := time.Now()
		t, err := Apply(n.fd, rs)
		fastest = min(fastest, time.Since(start))
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		t.Close()
		if err := Remove(n.fd); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(fastest.Microseconds()), "fastest-µs")
}
