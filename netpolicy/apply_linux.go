package netpolicy

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNoTable is returned by Adopt where there is nothing to adopt.
var ErrNoTable = errors.New("no table inet " + TableName)

// ErrOwned means that a live process, an other supervisor, owns the table.
var ErrOwned = errors.New("table is owned by another process")

// ErrNothing is returned for a ruleset that has no rules: mode off, or a plan
// that is not enforced.
var ErrNothing = errors.New("ruleset has no rules")

// Ownership is how far the table is protected from the container itself.
type Ownership string

const (
	// Owned: nobody but this process can change the table while it lives; it
	// outlives the process and can then be adopted (Linux 6.9).
	Owned Ownership = "owned"
	// Unowned: the table outlives the process, and CAP_NET_ADMIN in the
	// container is enough to change it.
	Unowned Ownership = "unowned"
)

// Table is the table in one network namespace. It holds one netlink socket,
// which is what owns the table. It is safe for concurrent use.
type Table struct {
	mu        sync.Mutex
	conn      *netlink.Conn
	netns     *os.File
	ruleset   Ruleset
	ownership Ownership
	queue     queueKind
	learnt    map[string]map[netip.Addr]bool // by declared name: addresses of the latest answers
	repaired  bool
	empty     bool // just made: nothing is in it
}

// knownQueue remembers how this kernel queues packets, once it is sure: a
// queueKind plus one.
var knownQueue atomic.Int32

// Apply makes the table in the network namespace netnsFD, or replaces the
// rules of one that is there, in one transaction: at no moment is the
// namespace without rules it had before. What the kernel then says it has is
// compared with what was meant. On an error nothing is changed, and a table
// that was made is gone. Flows that are established go on.
//
// It refuses the network namespace of the calling process.
func Apply(netnsFD int, rs Ruleset) (*Table, error) {
	t, existed, err := open(netnsFD, rs)
	if err != nil {
		return nil, fmt.Errorf("apply network rules: %w", err)
	}
	if err := t.replace(rs); err != nil {
		if !existed {
			var b batch
			b.delTable()
			err = errors.Join(err, b.send(t.conn))
		}
		t.Close()
		return nil, fmt.Errorf("apply network rules: %w", err)
	}
	return t, nil
}

// Adopt takes over the table that an earlier process left in the namespace.
// Where its rules are not those of rs they are replaced, and Repaired tells.
// Addresses of declared names that were learnt stay known.
func Adopt(netnsFD int, rs Ruleset) (*Table, error) {
	if ok, err := exists(netnsFD); err != nil || !ok {
		return nil, fmt.Errorf("adopt network rules: %w", cmpErr(err, ErrNoTable))
	}
	t, _, err := open(netnsFD, rs)
	if err != nil {
		return nil, fmt.Errorf("adopt network rules: %w", err)
	}
	if t.verify(rs) != nil {
		t.repaired = true
		if err := t.replace(rs); err != nil {
			t.Close()
			return nil, fmt.Errorf("adopt network rules: %w", err)
		}
	}
	t.ruleset = rs
	if err := t.recall(); err != nil {
		t.Close()
		return nil, fmt.Errorf("adopt network rules: %w", err)
	}
	return t, nil
}

// Remove deletes the table of a namespace, if there is one.
func Remove(netnsFD int) error {
	if ok, err := exists(netnsFD); err != nil || !ok {
		return err
	}
	t, _, err := open(netnsFD, Ruleset{Chains: []Chain{{}}})
	if err != nil {
		return fmt.Errorf("remove network rules: %w", err)
	}
	defer t.Close()
	var b batch
	b.delTable()
	if err := b.send(t.conn); err != nil {
		return fmt.Errorf("remove network rules: %w", err)
	}
	return nil
}

// Update replaces the rules of the table in one transaction. Sets of names
// that stay declared keep their addresses.
func (t *Table) Update(rs Ruleset) error {
	if len(rs.Chains) == 0 {
		return fmt.Errorf("update network rules: %w", ErrNothing)
	}
	if err := t.replace(rs); err != nil {
		return fmt.Errorf("update network rules: %w", err)
	}
	return nil
}

// Close releases the table. It stays in force, and can be adopted.
func (t *Table) Close() error {
	return errors.Join(t.conn.Close(), t.netns.Close())
}

// Ruleset is what is in force.
func (t *Table) Ruleset() Ruleset {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ruleset
}

// Ownership tells how far the table is protected from the container.
func (t *Table) Ownership() Ownership { return t.ownership }

// Repaired is true when Adopt found rules other than those meant.
func (t *Table) Repaired() bool { return t.repaired }

// HoldsAnswers tells whether DNS answers wait until their addresses are
// allowed. Without NFQUEUE a program can connect before that, and be refused.
func (t *Table) HoldsAnswers() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.queue != queueNone
}

// Notes says in plain words where this kernel gives less than it could.
func (t *Table) Notes() []string {
	var notes []string
	if t.ownership == Unowned {
		notes = append(notes, "the kernel has no persistent owned tables (Linux 6.9 and later): CAP_NET_ADMIN in the container is enough to change the rules")
	}
	if len(t.Ruleset().Names) > 0 && !t.HoldsAnswers() {
		notes = append(notes, "the kernel has no NFQUEUE: a connection made at once after the first DNS answer for a declared name can be refused")
	}
	return notes
}

func open(netnsFD int, rs Ruleset) (*Table, bool, error) {
	if len(rs.Chains) == 0 {
		return nil, false, ErrNothing
	}
	ns, err := openNamespace(netnsFD)
	if err != nil {
		return nil, false, err
	}
	existed, err := exists(int(ns.Fd()))
	if err != nil {
		ns.Close()
		return nil, false, err
	}
	conn, err := dial(unix.NETLINK_NETFILTER, ns)
	if err != nil {
		ns.Close()
		return nil, false, err
	}
	t := &Table{conn: conn, netns: ns, learnt: map[string]map[netip.Addr]bool{}, empty: !existed}
	if err := t.own(); err != nil {
		t.Close()
		return nil, false, err
	}
	return t, existed, nil
}

// openNamespace duplicates a descriptor of another network namespace. The
// duplicate is never 0, which netlink takes for "the current one".
func openNamespace(fd int) (*os.File, error) {
	kind, err := unix.IoctlRetInt(fd, unix.NS_GET_NSTYPE) // since Linux 4.11
	if err != nil || kind != unix.CLONE_NEWNET {
		return nil, fmt.Errorf("descriptor %d is not a network namespace: %w", fd, cmpErr(err, unix.EINVAL))
	}
	var theirs, ours unix.Stat_t
	if err := unix.Fstat(fd, &theirs); err != nil {
		return nil, fmt.Errorf("stat network namespace: %w", err)
	}
	// Of this thread: another one may be in a container's namespace for a moment, to open a socket there.
	if err := unix.Stat("/proc/thread-self/ns/net", &ours); err != nil {
		return nil, fmt.Errorf("stat own network namespace: %w", err)
	}
	if theirs.Ino == ours.Ino && theirs.Dev == ours.Dev {
		return nil, errors.New("the network namespace is that of this process: rules there would bind the host")
	}
	dup, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("duplicate network namespace: %w", err)
	}
	return os.NewFile(uintptr(dup), "netns"), nil
}

func dial(family int, ns *os.File) (*netlink.Conn, error) {
	conn, err := netlink.Dial(family, &netlink.Config{NetNS: int(ns.Fd())})
	if err != nil {
		return nil, fmt.Errorf("open netlink socket in namespace: %w", err)
	}
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true) // better messages; since Linux 4.12
	return conn, nil
}

func exists(netnsFD int) (bool, error) {
	ns, err := openNamespace(netnsFD)
	if err != nil {
		return false, err
	}
	defer ns.Close()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns.Fd())))
	if err != nil {
		return false, err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return false, fmt.Errorf("list tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == TableName }), nil
}

// own makes the table, without chains, or takes over an orphaned one.
func (t *Table) own() error {
	for _, try := range []struct {
		flags uint32
		means Ownership
	}{{tableOwner | tablePersist, Owned}, {0, Unowned}} {
		var b batch
		b.newTable(try.flags)
		err := b.send(t.conn)
		switch {
		case err == nil:
			t.ownership = try.means
			return nil
		case errors.Is(err, unix.EPERM), errors.Is(err, unix.EBUSY):
			return fmt.Errorf("%w: %w", ErrOwned, err)
		case try.flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)):
		default:
			return fmt.Errorf("make table: %w", err)
		}
	}
	return errors.New("make table: refused with and without an owner")
}

// replace puts the ruleset into the table in place of what is there.
func (t *Table) replace(rs Ruleset) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	var there contents
	if !t.empty {
		var err error
		if there, err = t.read(); err != nil {
			return err
		}
		there.close()
	}
	kinds := []queueKind{queueNative, queueCompat, queueNone}
	if k := knownQueue.Load(); k > 0 {
		kinds = []queueKind{queueKind(k - 1)}
	}
	for i, kind := range kinds {
		b, err := replacement(rs, there, kind)
		if err != nil {
			return err
		}
		err = b.send(t.conn)
		// An expression that the kernel does not have is ENOENT.
		if err != nil && len(rs.Names) > 0 && i < len(kinds)-1 && (errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) {
			continue
		}
		if err != nil {
			return fmt.Errorf("commit rules: %w", err)
		}
		t.queue, t.empty = kind, false
		if len(rs.Names) > 0 && kind != queueNone {
			knownQueue.Store(int32(kind) + 1)
		}
		break
	}
	if err := t.verifyLocked(rs); err != nil {
		return err
	}
	t.ruleset = rs
	maps.DeleteFunc(t.learnt, func(name string, _ map[netip.Addr]bool) bool { return !slices.Contains(rs.Names, name) })
	return nil
}

// replacement is the transaction from what is there to rs.
func replacement(rs Ruleset, there contents, kind queueKind) (*batch, error) {
	b := &batch{}
	if len(there.rules) > 0 {
		b.flushRules()
	}
	for _, c := range there.chains {
		if !slices.ContainsFunc(rs.Chains, func(want Chain) bool { return want.Name == c.Name }) {
			b.delChain(c.Name)
		}
	}
	keep := map[string]bool{}
	for _, have := range there.sets {
		i := slices.IndexFunc(rs.Sets, func(want Set) bool { return want.Name == have.Name })
		if i >= 0 && rs.Sets[i].Learnt && have.HasTimeout && (have.KeyType.Bytes == 16) == rs.Sets[i].V6 {
			keep[have.Name] = true
			continue
		}
		b.delSet(have.Name)
	}
	for i, s := range rs.Sets {
		if !keep[s.Name] {
			b.newSet(s, uint32(i)+1)
		}
	}
	for _, c := range rs.Chains {
		b.newChain(c)
		for _, r := range c.Rules {
			exprs, err := compile(r, kind)
			if err != nil {
				return nil, err
			}
			b.newRule(c.Name, exprs)
		}
	}
	return b, nil
}

// contents is what the kernel says is in the table.
type contents struct {
	chains []*nftables.Chain
	rules  map[string][]*nftables.Rule
	sets   []*nftables.Set
	conn   *nftables.Conn
}

// close closes the socket that the contents were read through.
func (c contents) close() {
	if c.conn != nil {
		_ = c.conn.CloseLasting()
	}
}

func (t *Table) read() (c contents, err error) {
	conn, err := nftables.New(nftables.WithNetNSFd(int(t.netns.Fd())), nftables.AsLasting())
	if err != nil {
		return contents{}, err
	}
	defer func() {
		if err != nil {
			_ = conn.CloseLasting()
		}
	}()
	table, err := conn.ListTableOfFamily(TableName, nftables.TableFamilyINet)
	if err != nil {
		return contents{}, fmt.Errorf("read back table: %w", err)
	}
	c = contents{rules: map[string][]*nftables.Rule{}, conn: conn}
	chains, err := conn.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return c, fmt.Errorf("read back chains: %w", err)
	}
	for _, chain := range chains {
		if chain.Table.Name != TableName {
			continue
		}
		c.chains = append(c.chains, chain)
		rules, err := conn.GetRules(table, chain)
		if err != nil {
			return c, fmt.Errorf("read back rules of %s: %w", chain.Name, err)
		}
		if len(rules) > 0 {
			c.rules[chain.Name] = rules
		}
	}
	if c.sets, err = conn.GetSets(table); err != nil {
		return c, fmt.Errorf("read back sets: %w", err)
	}
	return c, nil
}

func (t *Table) verify(rs Ruleset) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.verifyLocked(rs)
}

// verifyLocked compares what the kernel has with what was meant.
func (t *Table) verifyLocked(rs Ruleset) error {
	c, err := t.read()
	if err != nil {
		return err
	}
	defer c.close()
	kinds := []queueKind{t.queue}
	if k := knownQueue.Load(); k == 0 {
		kinds = []queueKind{queueNative, queueCompat, queueNone}
	} else {
		kinds = append(kinds, queueKind(k-1))
	}
	for _, kind := range kinds {
		if err = c.differs(rs, kind); err == nil {
			t.queue = kind
			return nil
		}
	}
	return err
}

func (c contents) differs(rs Ruleset, kind queueKind) error {
	if len(c.chains) != len(rs.Chains) || len(c.sets) != len(rs.Sets) {
		return fmt.Errorf("read back: %d chains and %d sets, want %d and %d", len(c.chains), len(c.sets), len(rs.Chains), len(rs.Sets))
	}
	for _, want := range rs.Chains {
		i := slices.IndexFunc(c.chains, func(have *nftables.Chain) bool { return have.Name == want.Name })
		if i < 0 {
			return fmt.Errorf("read back: no chain %s", want.Name)
		}
		have := c.chains[i]
		if have.Hooknum == nil || uint32(*have.Hooknum) != hooks[want.Name] || have.Priority == nil || *have.Priority != 0 ||
			have.Type != nftables.ChainTypeFilter || have.Policy == nil || (*have.Policy == nftables.ChainPolicyAccept) != want.Accept {
			return fmt.Errorf("read back: chain %s is not the one meant: %+v", want.Name, have)
		}
		rules := c.rules[want.Name]
		if len(rules) != len(want.Rules) {
			return fmt.Errorf("read back: chain %s has %d rules, want %d", want.Name, len(rules), len(want.Rules))
		}
		for i, r := range want.Rules {
			exprs, err := compile(r, kind)
			if err != nil {
				return err
			}
			meant, err := canonical(exprs)
			if err != nil {
				return err
			}
			got, err := canonical(rules[i].Exprs)
			if err != nil || !bytes.Equal(meant, got) {
				return fmt.Errorf("read back: rule %d of chain %s is not %q: %w", i, want.Name, r, cmpErr(err, errDiffers))
			}
		}
	}
	for _, want := range rs.Sets {
		i := slices.IndexFunc(c.sets, func(have *nftables.Set) bool { return have.Name == want.Name })
		if i < 0 || c.sets[i].Interval == want.Learnt || c.sets[i].HasTimeout != want.Learnt || (c.sets[i].KeyType.Bytes == 16) != want.V6 {
			return fmt.Errorf("read back: set %s is not the one meant", want.Name)
		}
		if want.Learnt {
			continue
		}
		have, err := c.conn.GetSetElements(c.sets[i])
		if err != nil {
			return fmt.Errorf("read back set %s: %w", want.Name, err)
		}
		_, elements := compileSet(nil, want)
		if a, b := elementKeys(have), elementKeys(elements); !slices.Equal(a, b) {
			return fmt.Errorf("read back: set %s has %q, want %q", want.Name, a, b)
		}
	}
	return nil
}

var errDiffers = errors.New("the kernel has other expressions")

func elementKeys(elements []nftables.SetElement) []string {
	keys := map[string]bool{}
	for _, e := range elements {
		addr, _ := netip.AddrFromSlice(e.Key)
		// The kernel adds an element that ends "nothing" before the first interval.
		if e.IntervalEnd && addr.IsUnspecified() {
			continue
		}
		keys[fmt.Sprint(addr, e.IntervalEnd)] = true
	}
	return slices.Sorted(maps.Keys(keys))
}

// canonical encodes expressions without what the kernel fills in: counts.
func canonical(exprs []expr.Any) ([]byte, error) {
	var out []byte
	for _, e := range exprs {
		switch x := e.(type) {
		case *expr.Counter:
			e = &expr.Counter{}
		case *expr.Lookup:
			e = &expr.Lookup{SourceRegister: x.SourceRegister, SetName: x.SetName, Invert: x.Invert}
		case *expr.Log:
			e = &expr.Log{Key: x.Key & (1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN), Group: x.Group, Snaplen: x.Snaplen, Data: slices.Clone(x.Data)}
		}
		data, err := expr.Marshal(unix.NFPROTO_INET, e)
		if err != nil {
			return nil, fmt.Errorf("encode %T: %w", e, err)
		}
		out = append(out, data...)
	}
	return out, nil
}

// superseded is how long an address stays allowed after a later answer for
// its name no longer had it: programs use several answers at a time, and
// round-robin answers name a part of the addresses each.
const superseded = 10 * time.Minute

// Learn allows the addresses of one answer for a declared name. Those of the
// latest answer of each family have no timeout: servers resolve a name when
// they start and connect whenever they like. Earlier ones time out after the
// time to live of the new answer, or ten minutes if that is longer.
func (t *Table) Learn(name string, addrs []netip.Addr, ttl time.Duration) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Contains(t.ruleset.Names, name) {
		return fmt.Errorf("learn addresses of %s: the name is not declared", name)
	}
	known := t.learnt[name]
	if known == nil {
		known = map[netip.Addr]bool{}
	}
	next := maps.Clone(known)
	var b batch
	for _, v6 := range []bool{false, true} {
		fresh := map[netip.Addr]bool{}
		for _, a := range addrs {
			if a = a.Unmap(); a.Is6() == v6 && peerAddr(a) && len(fresh) < setSize/4 {
				fresh[a] = true
			}
		}
		if len(fresh) == 0 {
			continue // an answer about the other family says nothing about this one
		}
		var added, aging []nftables.SetElement
		for a := range fresh {
			if !known[a] {
				added = append(added, nftables.SetElement{Key: a.AsSlice()})
				next[a] = true
			}
		}
		for a := range known {
			if a.Is6() == v6 && !fresh[a] {
				aging = append(aging, nftables.SetElement{Key: a.AsSlice(), Timeout: min(max(ttl, superseded), 24*time.Hour)})
				delete(next, a)
			}
		}
		set := nameSet(name, v6)
		// An element's timeout cannot be changed in place before Linux 6.13, and
		// adding an element that is there changes nothing: delete and add, in
		// one transaction. Deleting one that is not there is an error, so it is
		// added first.
		for _, list := range [][]nftables.SetElement{added, aging} {
			b.elements(unix.NFT_MSG_NEWSETELEM, set, list)
			b.elements(unix.NFT_MSG_DELSETELEM, set, list)
			b.elements(unix.NFT_MSG_NEWSETELEM, set, list)
		}
	}
	if len(b.messages) == 0 {
		return nil
	}
	if err := b.send(t.conn); err != nil {
		return fmt.Errorf("learn addresses of %s: %w", name, err)
	}
	t.learnt[name] = next
	return nil
}

// recall reads the addresses that an earlier process learnt.
func (t *Table) recall() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.read()
	if err != nil {
		return err
	}
	defer c.close()
	for _, name := range t.ruleset.Names {
		known := map[netip.Addr]bool{}
		for _, v6 := range []bool{false, true} {
			for _, s := range c.sets {
				if s.Name != nameSet(name, v6) {
					continue
				}
				elements, err := c.conn.GetSetElements(s)
				if err != nil {
					return fmt.Errorf("read back set %s: %w", s.Name, err)
				}
				for _, e := range elements {
					if a, ok := netip.AddrFromSlice(e.Key); ok && e.Timeout == 0 {
						known[a] = true
					}
				}
			}
		}
		t.learnt[name] = known
	}
	return nil
}

// Refused counts the packets that no rule accepted since the rules were made,
// reported or not. In audit mode they went through.
func (t *Table) Refused() (in, forward, out uint64, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, err := t.read()
	defer c.close()
	if err != nil {
		return 0, 0, 0, fmt.Errorf("count refusals: %w", err)
	}
	count := func(chain string) (n uint64) {
		rules := c.rules[chain]
		logged := -1 // the last: copies of DNS answers may be logged before
		for i, r := range rules {
			if slices.ContainsFunc(r.Exprs, func(e expr.Any) bool { _, ok := e.(*expr.Log); return ok }) {
				logged = i
			}
		}
		for _, r := range rules[logged+1:] {
			for _, e := range r.Exprs {
				if counter, ok := e.(*expr.Counter); ok && logged >= 0 {
					n += counter.Packets
				}
			}
		}
		return n
	}
	return count("input"), count("forward"), count("output"), nil
}

// NameOf tells which declared name an address was learnt for, if any.
func (t *Table) NameOf(addr netip.Addr) string {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, name := range t.ruleset.Names {
		if t.learnt[name][addr.Unmap()] {
			return name
		}
	}
	return ""
}

// Addresses are those that are allowed for a declared name by its latest answers.
func (t *Table) Addresses(name string) []netip.Addr {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.SortedFunc(maps.Keys(t.learnt[name]), netip.Addr.Compare)
}

// cmpErr is the first error that is not nil.
func cmpErr(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}
