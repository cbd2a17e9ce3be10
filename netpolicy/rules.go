package netpolicy

import (
	"cmp"
	"encoding/hex"
	"fmt"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// TableName is the one table, of family inet, that declarun makes in a namespace.
const TableName = "declarun"

// Group is the NFLOG group that refusals are logged to, and QueueNumber the
// NFQUEUE that answers for declared names wait in. Both belong to one network
// namespace and mean nothing outside of it.
const (
	Group       = 57025
	NamesGroup  = 57026 // answers are copied here where there is no NFQUEUE
	QueueNumber = 57025
)

const (
	snaplen      = 192  // bytes of a refused packet: headers, with IPv6 extensions
	setSize      = 4096 // addresses of one declared name
	maxResolvers = 16
	logRate      = 100 // refusals reported per second and direction; the rest is counted
	logBurst     = 200
)

// protocols are those that have ports a ruleset can match, by IANA number.
var protocols = map[string]Proto{"tcp": protoTCP, "udp": protoUDP, "sctp": protoSCTP}

// Options are what a ruleset depends on besides the plan.
type Options struct {
	// Mode: Enforce refuses, Audit lets through and logs, Off makes no rules.
	// The zero Mode is Enforce.
	Mode record.Mode
	// Resolvers are allowed, and only their answers are believed.
	Resolvers []netip.AddrPort
	// Search are resolv.conf's search domains: an answer for "db.example" is
	// one for the declared name "db" if "example" is among them.
	Search []string
}

// Ruleset is what will be in the table, as plain data. The zero Ruleset has no
// chains and is never applied. String prints it as "nft list table" would.
type Ruleset struct {
	Mode   record.Mode
	Sets   []Set
	Chains []Chain
	// Names are the declared names that DNS answers are awaited for, lower case.
	Names  []string
	Search []string
}

// Set is a set of addresses: prefixes that are declared, or (Learnt) single
// addresses that DNS answers add while the container runs.
type Set struct {
	Name     string
	V6       bool
	Learnt   bool
	Prefixes []netip.Prefix // sorted, none within another
}

// Chain is a base chain of type filter at priority 0.
type Chain struct {
	Name   string // that of its hook: input, forward, output
	Accept bool   // the policy; the zero value drops
	Rules  []Rule
}

// Rule is a list of matches and statements.
type Rule []Term

// Term is one match or statement of a rule.
type Term interface {
	String() string // in nft syntax
}

// The terms.
type (
	Loopback struct{ In, Not bool } // by interface index 1, which is the loopback device of every namespace
	CTState  string                 // established, related, invalid
	CTReply  struct{}               // the packet answers one of ours
	CTDNAT   struct{}               // the flow was redirected, as to an engine's embedded resolver
	L4Proto  struct{ Proto Proto }  // protocol behind any IPv6 extension headers
	Port     struct {
		Proto       Proto
		Src         bool
		First, Last uint16
	}
	ICMPv6 struct{ Type uint8 }
	Addr   struct {
		Src  bool
		Addr netip.Addr
	}
	InSet struct {
		V6  bool
		Set string
	} // destination address
	PktType   string // broadcast, multicast
	Counter   struct{}
	RateLimit struct{ PerSecond, Burst uint32 }
	Log       struct {
		Prefix  string
		Group   uint16
		Snaplen uint32
	}
	Queue     struct{ Number uint16 } // with bypass: nobody listens, the packet passes
	RejectTCP struct{}
	Reject    struct{} // ICMP: administratively prohibited
	Accept    struct{}
	Drop      struct{}
)

// Proto is an IANA protocol number.
type Proto uint8

const (
	protoICMP   Proto = 1
	protoTCP    Proto = 6
	protoUDP    Proto = 17
	protoICMPv6 Proto = 58
	protoSCTP   Proto = 132
)

func (p Proto) String() string {
	switch p {
	case protoICMP:
		return "icmp"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	case protoICMPv6:
		return "ipv6-icmp"
	case protoSCTP:
		return "sctp"
	}
	return fmt.Sprint(uint8(p))
}

// Prefixes of the log rules: what Watch learns the direction from.
const (
	prefixIn      = "declarun in"
	prefixForward = "declarun forward"
	prefixOut     = "declarun out"
	prefixNames   = "declarun names"
)

// Rules turns a plan into a ruleset. A plan that is not enforced, or mode off,
// gives the zero Ruleset. It is pure; the same plan gives the same ruleset.
func Rules(n plan.Network, o Options) Ruleset {
	if !n.Enforced || o.Mode == record.Off {
		return Ruleset{}
	}
	mode := cmp.Or(o.Mode, record.Enforce)
	audit := mode == record.Audit
	rs := Ruleset{Mode: mode}
	for _, s := range o.Search {
		if s, ok := searchDomain(s); ok {
			rs.Search = append(rs.Search, s)
		}
	}
	sets, accepts := peers(n.Connect, o.Resolvers)
	rs.Sets = sets
	for _, p := range n.Connect {
		if name := strings.ToLower(strings.TrimSuffix(p.Name, ".")); name != "" && !slices.Contains(rs.Names, name) {
			rs.Names = append(rs.Names, name)
		}
	}
	slices.Sort(rs.Names)

	in := Chain{Name: "input", Accept: audit}
	if len(rs.Names) > 0 {
		in.Rules = append(in.Rules, answers(o.Resolvers)...)
	}
	in.Rules = append(in.Rules, Rule{Loopback{In: true}, Accept{}})
	in.Rules = append(in.Rules, tracked(audit, 130, 134, 135, 136)...)
	for _, l := range n.Listen {
		if proto, ok := protocols[l.Proto]; ok && l.Port != 0 {
			in.Rules = append(in.Rules, Rule{Port{Proto: proto, First: l.Port, Last: max(l.Port, l.Last)}, Accept{}})
		}
	}
	in.Rules = append(in.Rules,
		// What is sent to everybody in the neighbourhood says nothing about this container.
		Rule{PktType("broadcast"), Counter{}, verdict(audit)}, Rule{PktType("multicast"), Counter{}, verdict(audit)},
		logged(prefixIn), Rule{Counter{}, verdict(audit)})

	forward := Chain{Name: "forward", Accept: audit, Rules: []Rule{logged(prefixForward), {Counter{}, verdict(audit)}}}

	out := Chain{Name: "output", Accept: audit, Rules: []Rule{{Loopback{}, Accept{}}}}
	out.Rules = append(out.Rules, tracked(audit, 131, 132, 133, 135, 136, 143)...)
	out.Rules = append(out.Rules, accepts...)
	out.Rules = append(out.Rules, logged(prefixOut))
	if audit {
		out.Rules = append(out.Rules, Rule{Counter{}, Accept{}})
	} else {
		out.Rules = append(out.Rules, Rule{L4Proto{protoTCP}, Counter{}, RejectTCP{}}, Rule{Counter{}, Reject{}})
	}
	rs.Chains = []Chain{in, forward, out}
	return rs
}

func verdict(audit bool) Term {
	if audit {
		return Accept{}
	}
	return Drop{}
}

func logged(prefix string) Rule {
	return Rule{RateLimit{logRate, logBurst}, Log{prefix, Group, snaplen}}
}

// tracked accepts what belongs to accepted flows, and the neighbour discovery
// and listener reports without which IPv6 does not work. Conntrack leaves
// those untracked. Related is only ever an ICMP error: nothing here asks for
// conntrack helpers. Invalid packets belong to no flow; a reset for them would
// end flows that conntrack lost sight of, so they are dropped without one.
func tracked(audit bool, icmpv6 ...uint8) []Rule {
	rules := []Rule{
		{CTState("established"), Accept{}},
		{CTState("related"), L4Proto{protoICMP}, Accept{}},
		{CTState("related"), L4Proto{protoICMPv6}, Accept{}},
	}
	for _, t := range icmpv6 {
		rules = append(rules, Rule{ICMPv6{t}, Accept{}})
	}
	return append(rules, Rule{CTState("invalid"), Counter{}, verdict(audit)})
}

// answers are the rules that hold DNS answers until the sets are filled. Only
// answers to questions of this namespace count, only from the configured
// resolvers, and never over loopback from an address that is not of loopback
// (a forgery). An embedded resolver on loopback is known by the engine's
// redirection, which a program in the container cannot make.
func answers(resolvers []netip.AddrPort) []Rule {
	var rules []Rule
	for i, r := range resolvers {
		addr := r.Addr().Unmap().WithZone("")
		if !addr.IsValid() || addr.IsUnspecified() || i >= maxResolvers {
			continue
		}
		port := cmp.Or(r.Port(), 53)
		for _, proto := range []Proto{protoTCP, protoUDP} {
			rule := Rule{Loopback{In: true, Not: !addr.IsLoopback()}, Addr{Src: true, Addr: addr}, Port{Proto: proto, Src: true, First: port, Last: port}, CTReply{}}
			if addr.IsLoopback() {
				rule = append(rule, CTDNAT{})
			}
			rules = append(rules, append(rule, Queue{QueueNumber}))
		}
	}
	return rules
}

// peers gives the sets of declared peers and the rules that accept them.
func peers(connect []plan.Peer, resolvers []netip.AddrPort) (sets []Set, accepts []Rule) {
	type service struct {
		proto Proto
		port  uint16
	}
	type group struct {
		service
		v6 bool
	}
	prefixes := map[group][]netip.Prefix{}
	names := map[string][]service{}
	for _, r := range resolvers {
		if addr := r.Addr().Unmap().WithZone(""); addr.IsValid() && !addr.IsUnspecified() && !addr.IsLoopback() {
			for _, proto := range []Proto{protoTCP, protoUDP} {
				g := group{service{proto, cmp.Or(r.Port(), 53)}, addr.Is6()}
				prefixes[g] = append(prefixes[g], netip.PrefixFrom(addr, addr.BitLen()))
			}
		}
	}
	for _, p := range connect {
		protos := []Proto{protocols[p.Proto]}
		switch {
		case p.Proto != "" && protos[0] == 0:
			continue // an unknown protocol is not allowed
		case p.Proto == "" && p.Port != 0:
			protos = []Proto{protoTCP, protoUDP}
		}
		for _, proto := range protos {
			s := service{proto, p.Port}
			if p.Name != "" {
				name := strings.ToLower(strings.TrimSuffix(p.Name, "."))
				if !slices.Contains(names[name], s) {
					names[name] = append(names[name], s)
				}
				continue
			}
			prefix, err := netip.ParsePrefix(p.CIDR)
			if err != nil || prefix.Addr().IsLoopback() {
				continue // loopback is open anyway
			}
			g := group{s, prefix.Addr().Is6()}
			prefixes[g] = append(prefixes[g], prefix.Masked())
		}
	}
	rule := func(v6 bool, set string, s service) Rule {
		r := Rule{InSet{v6, set}}
		switch {
		case s.proto != 0 && s.port != 0:
			r = append(r, Port{Proto: s.proto, First: s.port, Last: s.port})
		case s.proto != 0:
			r = append(r, L4Proto{s.proto})
		}
		return append(r, Accept{})
	}
	for g, list := range prefixes {
		s := Set{Name: fmt.Sprintf("net%s/%s", ipVersion(g.v6), serviceName(g.proto, g.port)), V6: g.v6, Prefixes: disjoint(list)}
		sets = append(sets, s)
		accepts = append(accepts, rule(g.v6, s.Name, g.service))
	}
	for name, services := range names {
		for _, v6 := range []bool{false, true} {
			set := nameSet(name, v6)
			sets = append(sets, Set{Name: set, V6: v6, Learnt: true})
			for _, s := range services {
				accepts = append(accepts, rule(v6, set, s))
			}
		}
	}
	slices.SortFunc(sets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(accepts, func(a, b Rule) int { return strings.Compare(a.String(), b.String()) })
	return sets, accepts
}

// nameSet names the set of a declared name's addresses. Set names have at most
// 255 bytes.
func nameSet(name string, v6 bool) string {
	if len(name) > 200 {
		h := fnv.New64a()
		h.Write([]byte(name))
		name = name[:180] + "." + hex.EncodeToString(h.Sum(nil))
	}
	return "peer" + ipVersion(v6) + "/" + name
}

func ipVersion(v6 bool) string {
	if v6 {
		return "6"
	}
	return "4"
}

func serviceName(proto Proto, port uint16) string {
	switch {
	case proto == 0:
		return "any"
	case port == 0:
		return proto.String()
	}
	return fmt.Sprintf("%s/%d", proto, port)
}

// disjoint sorts prefixes and drops those within another: the kernel refuses
// intervals that overlap.
func disjoint(list []netip.Prefix) []netip.Prefix {
	list = slices.Clone(list)
	slices.SortFunc(list, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	out := list[:0]
	for _, p := range list {
		if len(out) == 0 || !out[len(out)-1].Contains(p.Addr()) {
			out = append(out, p)
		}
	}
	return out
}

func searchDomain(s string) (string, bool) {
	s = strings.ToLower(strings.Trim(s, "."))
	if s == "" || len(s) > 253 {
		return "", false
	}
	return s, true
}

func (r Ruleset) String() string {
	if len(r.Chains) == 0 {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "table inet %s {\n", TableName)
	for _, s := range r.Sets {
		fmt.Fprintf(&b, "\tset %s {\n\t\ttype ipv%s_addr\n", s.Name, ipVersion(s.V6))
		if s.Learnt {
			fmt.Fprintf(&b, "\t\tsize %d\n\t\tflags timeout\n", setSize)
		} else {
			b.WriteString("\t\tflags interval\n")
		}
		if len(s.Prefixes) > 0 {
			elements := make([]string, len(s.Prefixes))
			for i, p := range s.Prefixes {
				elements[i] = strings.TrimSuffix(p.String(), fmt.Sprintf("/%d", p.Addr().BitLen()))
				if !p.IsSingleIP() {
					elements[i] = p.String()
				}
			}
			fmt.Fprintf(&b, "\t\telements = { %s }\n", strings.Join(elements, ", "))
		}
		b.WriteString("\t}\n\n")
	}
	for i, c := range r.Chains {
		policy := "drop"
		if c.Accept {
			policy = "accept"
		}
		fmt.Fprintf(&b, "\tchain %s {\n\t\ttype filter hook %s priority filter; policy %s;\n", c.Name, c.Name, policy)
		for _, rule := range c.Rules {
			fmt.Fprintf(&b, "\t\t%s\n", rule)
		}
		b.WriteString("\t}\n")
		if i < len(r.Chains)-1 {
			b.WriteString("\n")
		}
	}
	b.WriteString("}\n")
	return b.String()
}

func (r Rule) String() string {
	words := make([]string, len(r))
	for i, t := range r {
		words[i] = t.String()
	}
	return strings.Join(words, " ")
}

func direction(in bool) string {
	if in {
		return "i"
	}
	return "o"
}

func srcOrDst(src bool) string {
	if src {
		return "s"
	}
	return "d"
}

func (t Loopback) String() string {
	if t.Not {
		return direction(t.In) + `if != "lo"`
	}
	return direction(t.In) + `if "lo"`
}
func (t CTState) String() string { return "ct state " + string(t) }
func (CTReply) String() string   { return "ct direction reply" }
func (CTDNAT) String() string    { return "ct status dnat" }
func (t L4Proto) String() string { return "meta l4proto " + t.Proto.String() }
func (t Port) String() string {
	if t.First != t.Last {
		return fmt.Sprintf("%s %sport %d-%d", t.Proto, srcOrDst(t.Src), t.First, t.Last)
	}
	return fmt.Sprintf("%s %sport %d", t.Proto, srcOrDst(t.Src), t.First)
}

var icmpv6Names = map[uint8]string{
	130: "mld-listener-query", 131: "mld-listener-report", 132: "mld-listener-done", 143: "mld2-listener-report",
	133: "nd-router-solicit", 134: "nd-router-advert", 135: "nd-neighbor-solicit", 136: "nd-neighbor-advert",
}

func (t ICMPv6) String() string { return "icmpv6 type " + icmpv6Names[t.Type] }
func (t Addr) String() string {
	if t.Addr.Is6() {
		return fmt.Sprintf("ip6 %saddr %s", srcOrDst(t.Src), t.Addr)
	}
	return fmt.Sprintf("ip %saddr %s", srcOrDst(t.Src), t.Addr)
}
func (t InSet) String() string {
	if t.V6 {
		return "ip6 daddr @" + t.Set
	}
	return "ip daddr @" + t.Set
}
func (t PktType) String() string { return "meta pkttype " + string(t) }
func (Counter) String() string   { return "counter" }
func (t RateLimit) String() string {
	return fmt.Sprintf("limit rate %d/second burst %d packets", t.PerSecond, t.Burst)
}
func (t Log) String() string {
	return fmt.Sprintf("log prefix %q group %d snaplen %d", t.Prefix, t.Group, t.Snaplen)
}
func (t Queue) String() string   { return fmt.Sprintf("queue flags bypass to %d", t.Number) }
func (RejectTCP) String() string { return "reject with tcp reset" }
func (Reject) String() string    { return "reject with icmpx admin-prohibited" }
func (Accept) String() string    { return "accept" }
func (Drop) String() string      { return "drop" }
