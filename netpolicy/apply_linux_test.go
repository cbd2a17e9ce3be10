package netpolicy

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

func apply(t testing.TB, n *namespace, rs Ruleset) *Table {
	t.Helper()
	table, err := Apply(n.fd, rs)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { table.Close() })
	return table
}

// nft as installed may be older than the kernel and print a flag, or x_tables'
// queue, in other words.
func normal(s string) string {
	s = regexp.MustCompile(`counter packets \d+ bytes \d+`).ReplaceAllString(s, "counter")
	s = regexp.MustCompile(`(?m)^\tflags .*\n|^# .*\n| # progname.*$`).ReplaceAllString(s, "")
	s = regexp.MustCompile(`(?m)^\s*\n`).ReplaceAllString(s, "")
	s = regexp.MustCompile(`(?s)elements = \{.*?\}`).ReplaceAllStringFunc(s, func(e string) string { return strings.Join(strings.Fields(e), " ") })
	s = regexp.MustCompile(`libxtables: unhandled NFPROTO.*\n`).ReplaceAllString(s, "")
	s = regexp.MustCompile(`xt target "NFQUEUE"|queue num 57025 bypass`).ReplaceAllString(s, "queue flags bypass to 57025")
	return s
}

// Two judges: what we print is what nft prints of the kernel's table.
func TestRulesetIsWhatNftLists(t *testing.T) {
	need.Program(t, "nft")
	for _, mode := range []record.Mode{record.Enforce, record.Audit} {
		t.Run(string(mode), func(t *testing.T) {
			c := newNamespace(t)
			o := everythingOptions()
			o.Mode = mode
			rs := Rules(everything(), o)
			apply(t, c, rs)
			got, want := normal(c.run(t, "nft", "list", "table", "inet", TableName)), normal(rs.String())
			if got != want {
				t.Errorf("nft lists:\n%s\nwe print:\n%s", got, want)
			}
		})
	}
}

func TestApplyRefuses(t *testing.T) {
	c := newNamespace(t)
	own, err := syscall.Open("/proc/thread-self/ns/net", syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(own)
	if _, err := Apply(own, Rules(everything(), Options{})); err == nil {
		t.Fatal("rules for the host's own namespace were not refused")
	}
	if _, err := Apply(c.fd, Rules(everything(), Options{Mode: record.Off})); !errors.Is(err, ErrNothing) {
		t.Errorf("mode off: %v", err)
	}
	if _, err := Apply(c.fd, Ruleset{}); !errors.Is(err, ErrNothing) {
		t.Errorf("the zero ruleset: %v", err)
	}
	if _, err := Adopt(c.fd, Rules(everything(), Options{})); !errors.Is(err, ErrNoTable) {
		t.Errorf("adopting nothing: %v", err)
	}
	bad := Rules(everything(), everythingOptions())
	bad.Sets = bad.Sets[1:] // a rule refers to a set that is not there
	if _, err := Apply(c.fd, bad); err == nil {
		t.Error("a rule without its set was not refused")
	}
	if ok, err := exists(c.fd); ok || err != nil {
		t.Errorf("a table is left behind: %v, %v", ok, err)
	}
}

func dial4(n *namespace, network string, from, to netip.AddrPort) (net.Conn, error) {
	var c net.Conn
	err := n.try(func() (err error) {
		d := net.Dialer{Timeout: 2 * time.Second}
		if from.IsValid() && network == "tcp" {
			d.LocalAddr = net.TCPAddrFromAddrPort(from)
		}
		c, err = d.Dial(network, to.String())
		return err
	})
	return c, err
}

func hello(t testing.TB, n *namespace, to netip.AddrPort) error {
	t.Helper()
	c, err := dial4(n, "tcp", netip.AddrPort{}, to)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	_, err = io.ReadAll(c)
	return err
}

func TestEnforcement(t *testing.T) {
	container, outside := pair(t)
	for _, a := range []netip.Addr{in4, in6} {
		container.listen(t, netip.AddrPortFrom(a, 5432))
		container.listen(t, netip.AddrPortFrom(a, 6666))
	}
	for _, a := range []netip.Addr{out4, out6} {
		outside.listen(t, netip.AddrPortFrom(a, 7000))
		outside.listen(t, netip.AddrPortFrom(a, 7777))
	}
	container.listen(t, netip.MustParseAddrPort("127.0.0.1:1234"))
	apply(t, container, Rules(everything(), everythingOptions()))

	for _, row := range []struct {
		claim string
		from  *namespace
		to    string
		want  error // nil: connected
	}{
		{"declared in, v4", outside, "10.199.0.2:5432", nil},
		{"declared in, v6", outside, "[fd99::2]:5432", nil},
		{"undeclared in, v4, is dropped", outside, "10.199.0.2:6666", errTimeout},
		{"undeclared in, v6, is dropped", outside, "[fd99::2]:6666", errTimeout},
		{"declared out, v4", container, "10.199.0.1:7000", nil},
		{"declared out, v6", container, "[fd99::1]:7000", nil},
		{"undeclared port out, v4, is refused at once", container, "10.199.0.1:7777", syscall.ECONNREFUSED},
		{"undeclared port out, v6, is refused at once", container, "[fd99::1]:7777", syscall.ECONNREFUSED},
		{"undeclared host out is refused at once", container, "10.199.0.3:7000", syscall.ECONNREFUSED},
		{"loopback is free", container, "127.0.0.1:1234", nil},
		{"own address is free", container, "10.199.0.2:6666", nil},
	} {
		t.Run(row.claim, func(t *testing.T) {
			err := hello(t, row.from, netip.MustParseAddrPort(row.to))
			if row.want == errTimeout {
				var ne net.Error
				if !errors.As(err, &ne) || !ne.Timeout() {
					t.Errorf("got %v, want a timeout", err)
				}
				return
			}
			if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
}

var errTimeout = errors.New("timeout")

func TestAdopt(t *testing.T) {
	c := newNamespace(t)
	rs := Rules(everything(), everythingOptions())
	first, err := Apply(c.fd, rs)
	if err != nil {
		t.Fatal(err)
	}
	if first.Ownership() != Owned {
		t.Logf("table is %s: %q", first.Ownership(), first.Notes())
	}
	if first.Ownership() == Owned {
		if _, err := Apply(c.fd, rs); !errors.Is(err, ErrOwned) {
			t.Errorf("a second owner: %v", err)
		}
		if err := Remove(c.fd); !errors.Is(err, ErrOwned) {
			t.Errorf("removed by another: %v", err)
		}
		if err := c.try(func() error { return runQuiet("nft", "delete", "table", "inet", TableName) }); err == nil {
			t.Error("nft deleted an owned table")
		}
		c.run(t, "nft", "flush", "ruleset")
		if err := first.verify(rs); err != nil {
			t.Errorf("after nft flush ruleset: %v", err)
		}
	}
	addr := netip.MustParseAddr("192.0.2.7")
	if err := first.Learn("db", []netip.Addr{addr}, time.Minute); err != nil {
		t.Fatal(err)
	}
	first.Close()

	second, err := Adopt(c.fd, rs)
	if err != nil {
		t.Fatal(err)
	}
	if second.Repaired() {
		t.Error("an unchanged table was repaired")
	}
	if got := second.NameOf(addr); got != "db" {
		t.Errorf("a learnt address is known as %q", got)
	}
	if first.Ownership() != second.Ownership() {
		t.Errorf("ownership %s, then %s", first.Ownership(), second.Ownership())
	}
	second.Close()
	c.run(t, "nft", "flush", "chain", "inet", TableName, "output")
	third, err := Adopt(c.fd, rs)
	if err != nil {
		t.Fatal(err)
	}
	if !third.Repaired() || third.verify(rs) != nil {
		t.Errorf("a changed table was not repaired: %v", third.verify(rs))
	}
	if !slices.Contains(third.Addresses("db"), addr) {
		t.Error("repair forgot the learnt addresses")
	}
	third.Close()
	if err := Remove(c.fd); err != nil {
		t.Fatal(err)
	}
	if ok, _ := exists(c.fd); ok {
		t.Error("still there")
	}
}
