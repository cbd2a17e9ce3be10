package guards

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/netpolicy"
	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/planner"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/supervise"
)

// Nets holds network namespaces to plans and reports what is refused there.
type Nets struct {
	mu      sync.Mutex
	held    map[string]*heldNet // by token
	reports chan refused
}

type heldNet struct {
	table  *netpolicy.Table
	netns  *os.File
	pid    int
	listen []record.Origin
	stop   context.CancelFunc
	done   chan struct{}

	// Flows whose process was looked for already: looking walks /proc.
	seen map[flow]bool
}

type flow struct {
	out  bool
	peer netip.AddrPort
	uid  int
}

type refused struct {
	token string
	netpolicy.Refusal
}

// waiting is how many refusals may wait for the event log; more are counted as lost.
const waiting = 4096

// NewNets makes a guard of no namespace.
func NewNets() *Nets {
	return &Nets{held: map[string]*heldNet{}, reports: make(chan refused, waiting)}
}

// Apply implements supervise.NetGuard.
func (n *Nets) Apply(t supervise.Target) error {
	mode := t.Plan.Mode[record.Network]
	if !t.Plan.Network.Enforced || mode == record.Off {
		return nil
	}
	var extra planner.Extra
	if len(t.Facts.Extra) > 0 {
		if err := json.Unmarshal(t.Facts.Extra, &extra); err != nil {
			return fmt.Errorf("read stored facts: %w", err)
		}
	}
	netns, err := dupOr(t.Files["netns"], fmt.Sprintf("/proc/%d/ns/net", t.PID), false)
	if errors.Is(err, errNotGiven) && t.Adopted {
		netns, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", t.PID))
	}
	if err != nil {
		return fmt.Errorf("find network namespace: %w", err)
	}
	rules := netpolicy.Rules(t.Plan.Network, netpolicy.Options{Mode: mode, Resolvers: withEmbedded(extra.Resolvers), Search: extra.Search})
	var table *netpolicy.Table
	repaired := false
	if t.Adopted {
		table, err = netpolicy.Adopt(int(netns.Fd()), rules)
		if errors.Is(err, netpolicy.ErrNoTable) {
			table, repaired, err = nil, true, nil
		} else if err == nil {
			repaired = table.Repaired()
		}
	}
	if err == nil && table == nil {
		table, err = netpolicy.Apply(int(netns.Fd()), rules)
	}
	if err != nil {
		netns.Close()
		return err
	}
	watcher, err := netpolicy.NewWatcher(int(netns.Fd()), table)
	if err != nil {
		table.Close()
		netns.Close()
		return err
	}
	ctx, stop := context.WithCancel(context.Background())
	h := &heldNet{table: table, netns: netns, pid: t.PID, stop: stop, done: make(chan struct{}), seen: map[flow]bool{}}
	for _, l := range t.Plan.Network.Listen {
		h.listen = append(h.listen, l.Origins...)
	}
	go func() {
		defer close(h.done)
		err := watcher.Run(ctx, func(r netpolicy.Refusal) { n.queue(t.Token, r) })
		watcher.Close()
		if err != nil && ctx.Err() == nil {
			log.Printf("declarund: container %s: refused packets are no longer reported: %v", t.Key.ID, err)
		}
	}()
	n.mu.Lock()
	old := n.held[t.Token]
	n.held[t.Token] = h
	n.mu.Unlock()
	old.close()
	if repaired {
		n.queue(t.Token, netpolicy.Refusal{Problem: errors.New("the network rules were gone or changed and have been restored")})
	}
	return nil
}

// embedded is where Docker answers on networks other than the default one
// (moby libnetwork/sandbox_dns_unix.go).
var embedded = netip.MustParseAddrPort("127.0.0.11:53")

// withEmbedded adds Docker's embedded resolver: Docker writes it into the
// container's resolv.conf only after that was read, in a hook of its own or when
// the container has been created. Where there is none nothing is opened by it: it
// is on loopback, and only answers from behind a redirection are believed.
func withEmbedded(resolvers []netip.AddrPort) []netip.AddrPort {
	if slices.Contains(resolvers, embedded) {
		return resolvers
	}
	return append([]netip.AddrPort{embedded}, resolvers...)
}

func (n *Nets) queue(token string, r netpolicy.Refusal) {
	select {
	case n.reports <- refused{token, r}:
	default: // the log is slower than the refusals; the table counts them all
	}
}

func (h *heldNet) close() {
	if h == nil {
		return
	}
	h.stop()
	<-h.done
	h.table.Close()
	h.netns.Close()
}

// Forget implements supervise.NetGuard. The table goes with its namespace.
func (n *Nets) Forget(token string) {
	n.mu.Lock()
	h := n.held[token]
	delete(n.held, token)
	n.mu.Unlock()
	h.close()
}

// Run implements supervise.NetGuard.
func (n *Nets) Run(ctx context.Context, look supervise.Lookup) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case r := <-n.reports:
			look.Report(r.token, n.event(r))
		}
	}
}

func (n *Nets) event(r refused) record.Event {
	switch {
	case r.Problem != nil:
		return record.Event{Dimension: record.Network, Action: "rules", Object: "inet declarun", Verdict: record.Reported,
			Mechanism: "nftables", Reason: r.Problem.Error()}
	case !r.Src.IsValid():
		return record.Event{Dimension: record.Supervision, Action: "lost", Object: "refused packets", Verdict: record.Reported,
			Mechanism: "NFLOG", Reason: r.Refusal.String()}
	}
	e := record.Event{Dimension: record.Network, Time: r.Time, Verdict: r.Verdict, Mechanism: "nftables"}
	switch r.Direction {
	case netpolicy.Inbound:
		e.Action = "accept"
		e.Object = fmt.Sprintf("%s port %d from %s", r.Proto, r.Dst.Port(), r.Src.Addr())
		e.Reason = fmt.Sprintf("nothing exposes or publishes %s port %d", r.Proto, r.Dst.Port())
	case netpolicy.Outbound:
		e.Action = "connect"
		e.Object = fmt.Sprintf("%s %s", r.Proto, r.Dst)
		e.Reason = fmt.Sprintf("nothing declares %s as a peer", r.Dst)
		if r.Name != "" {
			e.Reason = fmt.Sprintf("%s (%s) is declared, but not on port %d", r.Name, r.Dst.Addr(), r.Dst.Port())
		}
	default:
		e.Action = "forward"
		e.Object = fmt.Sprintf("%s %s to %s", r.Proto, r.Src, r.Dst)
	}
	n.mu.Lock()
	h := n.held[r.token]
	n.mu.Unlock()
	if h != nil {
		if r.Direction == netpolicy.Inbound {
			e.Origins = h.listen
		}
		e.Process = h.owner(r.Refusal)
	}
	return e
}

// owner looks for the process of a flow, once for each. Called from one goroutine.
func (h *heldNet) owner(r netpolicy.Refusal) *record.Process {
	f := flow{r.Direction == netpolicy.Outbound, r.Peer(), r.UID}
	if h.seen[f] {
		return nil
	}
	if len(h.seen) > 4096 {
		clear(h.seen)
	}
	h.seen[f] = true
	pid, err := netpolicy.SocketOwner(int(h.netns.Fd()), r, inNamespaceOf(h.pid))
	if err == nil && pid > 0 {
		return events.Snapshot(pid)
	}
	if r.UID >= 0 {
		return &record.Process{UID: r.UID}
	}
	return nil
}

// inNamespaceOf lists the processes that share a process's network namespace.
func inNamespaceOf(pid int) []int {
	var want unix.Stat_t
	if unix.Stat(fmt.Sprintf("/proc/%d/ns/net", pid), &want) != nil {
		return nil
	}
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, err := dir.Readdirnames(100_000)
	if err != nil && len(names) == 0 {
		return nil
	}
	var pids []int
	for _, name := range names {
		p, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat("/proc/"+name+"/ns/net", &st) == nil && st.Ino == want.Ino && st.Dev == want.Dev {
			pids = append(pids, p)
		}
	}
	return pids
}
