package netpolicy

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"golang.org/x/sys/unix"
)

// Addresses of the two namespaces that a test makes: "container" is the one
// that is held to its plan, "outside" is everybody else.
var (
	in4      = netip.MustParseAddr("10.199.0.2")
	out4     = netip.MustParseAddr("10.199.0.1")
	other4   = netip.MustParseAddr("10.199.0.3") // outside's second address
	in6      = netip.MustParseAddr("fd99::2")
	out6     = netip.MustParseAddr("fd99::1")
	resolver = netip.MustParseAddrPort("10.199.0.1:53")
)

// namespace is a network namespace without a name: it is gone with its descriptor.
type namespace struct{ fd int }

// netnsChecked: asking the machine takes a process of its own, and once is enough.
var netnsChecked atomic.Bool

func newNamespace(t testing.TB) *namespace {
	t.Helper()
	if !netnsChecked.Load() {
		need.Netns(t)
		netnsChecked.Store(true)
	}
	fd := make(chan int)
	fail := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			fail <- err
			close(fd)
			return
		}
		n, err := unix.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			fail <- err
			close(fd)
			return
		}
		fd <- n
	}()
	n, ok := <-fd
	if !ok {
		t.Fatal(<-fail)
	}
	t.Cleanup(func() { unix.Close(n) })
	return &namespace{n}
}

// do runs f on a thread in the namespace. Sockets that f makes stay in it.
func (n *namespace) do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.try(f); err != nil {
		t.Fatal(err)
	}
}

func (n *namespace) try(f func() error) error {
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		runtime.LockOSThread() // and never unlocked
		if err = unix.Setns(n.fd, unix.CLONE_NEWNET); err == nil {
			err = f()
		}
	})
	wg.Wait()
	return err
}

func (n *namespace) run(t testing.TB, name string, args ...string) string {
	t.Helper()
	path := need.Program(t, name)
	var out []byte
	n.do(t, func() error {
		var err error
		if out, err = exec.Command(path, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
		}
		return nil
	})
	return string(out)
}

func (n *namespace) ip(t testing.TB, lines ...string) {
	t.Helper()
	for _, l := range lines {
		n.run(t, "ip", strings.Fields(l)...)
	}
}

// pair makes two namespaces joined by a veth pair.
func pair(t testing.TB) (container, outside *namespace) {
	t.Helper()
	container, outside = newNamespace(t), newNamespace(t)
	container.ip(t, "link set lo up")
	outside.ip(t, "link set lo up")
	join(t, container, outside)
	return container, outside
}

func join(t testing.TB, container, outside *namespace) {
	t.Helper()
	outside.ip(t, fmt.Sprintf("link add veth0 type veth peer name eth0 netns /proc/%d/fd/%d", os.Getpid(), container.fd))
	container.ip(t, "addr add 10.199.0.2/24 dev eth0", "addr add fd99::2/64 dev eth0 nodad", "link set eth0 up", "route add default via 10.199.0.1", "-6 route add default via fd99::1")
	outside.ip(t, "addr add 10.199.0.1/24 dev veth0", "addr add 10.199.0.3/24 dev veth0", "addr add fd99::1/64 dev veth0 nodad", "link set veth0 up")
}

// listen serves TCP: every connection is told "hello" and closed.
func (n *namespace) listen(t testing.TB, addr netip.AddrPort) net.Listener {
	t.Helper()
	var l net.Listener
	n.do(t, func() (err error) {
		l, err = net.Listen("tcp", addr.String())
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				fmt.Fprint(c, "hello")
			}()
		}
	}()
	return l
}

func runQuiet(name string, args ...string) error {
	return exec.Command(name, args...).Run()
}
