package netpolicy

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// Derive works out from what is declared which ports others may connect to
// and whom the container may connect to, and what a reader should know about
// it. It is pure: no name is resolved.
func Derive(d *declared.Declared) (plan.Network, []plan.Note) {
	b := builder{hosts: map[string][]declared.Host{}}
	enforced, reason := enforceable(d)

	for _, ports := range [][]declared.Port{d.Image.ExposedPorts, d.Operator.ExposedPorts, d.Operator.PublishedPorts} {
		for _, p := range ports {
			b.listen(p)
		}
	}
	for _, r := range d.Resolvers {
		b.resolver(r)
	}
	for _, h := range slices.Concat(d.Operator.Links, d.Hosts) {
		b.host(h)
	}
	if c := d.Operator.Compose; c != nil {
		for _, name := range c.DependsOn {
			name, _, _ = strings.Cut(name, ":")
			if name, ok := hostname(name); ok && name != strings.ToLower(c.Service) {
				b.peer(endpoint{host: name}, record.Origin{Source: record.FromCompose, At: "depends_on", Text: name})
			}
		}
	}
	b.environment(d)
	b.command(d)

	if d.Engine == declared.Bundle && !d.Image.Known && enforced {
		b.note("config.json cannot declare ports or peers: only resolvers and what its environment and command line name are allowed; an image config beside it can declare more")
	}
	return plan.Network{
		Enforced: enforced,
		Reason:   reason,
		Listen:   sorted(b.listens, func(l plan.Listen) string { return fmt.Sprintf("%s %05d %05d", l.Proto, l.Port, l.Last) }),
		Connect: sorted(b.peers, func(p plan.Peer) string {
			return fmt.Sprintf("%s\x00%s\x00%s\x00%05d", p.Name, p.CIDR, p.Proto, p.Port)
		}),
	}, b.notes
}

// enforceable says whether rules can be made for this container alone.
func enforceable(d *declared.Declared) (bool, string) {
	switch {
	case d.Sandbox:
		return false, "a pod's sandbox passes through untouched: it runs no program of its own, and its network namespace is the pod's"
	case d.Network.Kind == declared.OwnNet:
		return true, ""
	case d.Network.Kind == declared.HostNet:
		return false, "the container uses the host's network namespace: rules there would bind the host; ports and peers are neither enforced nor observed"
	case d.Network.Kind == declared.JoinedNet:
		return false, fmt.Sprintf("the container joins the network namespace %s: it may be shared (a pod's or another container's), and rules for this container would bind everybody in it; ports and peers are neither enforced nor observed", d.Network.Path)
	}
	return false, fmt.Sprintf("the kind of network namespace is not known (%q): ports and peers are neither enforced nor observed", d.Network.Kind)
}

// CapabilityNotes says how capabilities that a plan leaves to a container
// weaken what nftables enforces.
func CapabilityNotes(kept []plan.Capability) []plan.Note {
	var notes []plan.Note
	for _, c := range kept {
		switch c.Name {
		case "CAP_NET_RAW":
			notes = append(notes, plan.Note{Dimension: record.Network, Text: "CAP_NET_RAW: packet sockets send and receive what nftables does not see"})
		case "CAP_NET_ADMIN":
			notes = append(notes, plan.Note{Dimension: record.Network, Text: "CAP_NET_ADMIN: the container can add interfaces, traffic control and tables of its own that rewrite packets behind the rules"})
		}
	}
	return notes
}

type builder struct {
	listens []plan.Listen
	peers   []plan.Peer
	hosts   map[string][]declared.Host // by lower-case name, those with an address
	notes   []plan.Note
}

func (b *builder) note(format string, args ...any) {
	n := plan.Note{Dimension: record.Network, Text: fmt.Sprintf(format, args...)}
	if !slices.Contains(b.notes, n) {
		b.notes = append(b.notes, n)
	}
}

func (b *builder) listen(p declared.Port) {
	proto := strings.ToLower(cmp.Or(p.Proto, "tcp"))
	if _, ok := protocols[proto]; !ok || p.Port == 0 || p.Last != 0 && p.Last < p.Port {
		b.note("port %d-%d/%s (%s) is not a port of tcp, udp or sctp: not allowed", p.Port, p.Last, p.Proto, p.Origin)
		return
	}
	last := p.Last
	if last == p.Port {
		last = 0
	}
	for i := range b.listens {
		if l := &b.listens[i]; l.Proto == proto && l.Port == p.Port && l.Last == last {
			l.Origins = addOrigin(l.Origins, p.Origin)
			return
		}
	}
	b.listens = append(b.listens, plan.Listen{Proto: proto, Port: p.Port, Last: last, Origins: []record.Origin{p.Origin}})
}

func (b *builder) resolver(r netip.AddrPort) {
	addr := r.Addr().Unmap().WithZone("")
	if !addr.IsValid() || addr.IsUnspecified() {
		return
	}
	port := cmp.Or(r.Port(), 53)
	origin := record.Origin{Source: record.FromEngine, At: "resolv.conf", Text: "nameserver " + addr.String()}
	for _, proto := range []string{"tcp", "udp"} {
		b.add(plan.Peer{CIDR: hostPrefix(addr), Proto: proto, Port: port}, origin)
	}
}

// host takes an entry of /etc/hosts or a link. One that names this container
// itself, or everybody, declares nothing.
func (b *builder) host(h declared.Host) {
	name := strings.ToLower(strings.TrimSuffix(h.Name, "."))
	if !h.Addr.IsValid() {
		b.peer(endpoint{host: name}, h.Origin)
		return
	}
	if !peerAddr(h.Addr) {
		return
	}
	b.hosts[name] = append(b.hosts[name], h)
	b.add(plan.Peer{CIDR: hostPrefix(h.Addr.Unmap())}, h.Origin)
}

// peer adds what an endpoint names: an address as it is, a name that the
// container's /etc/hosts knows by its addresses, and any other name for DNS to tell.
func (b *builder) peer(e endpoint, origin record.Origin) {
	if e.srv {
		b.note("%s: the hosts behind the SRV records of %s have names of their own, which nothing declares: connections to them are refused until they are declared", origin.At, e.host)
	}
	if addr, err := netip.ParseAddr(e.host); err == nil {
		if peerAddr(addr) {
			b.add(plan.Peer{CIDR: hostPrefix(addr.Unmap()), Proto: e.proto, Port: e.port}, origin)
		}
		return
	}
	name, ok := hostname(e.host)
	if !ok || !isPeer(name) {
		return
	}
	if known := b.hosts[name]; len(known) > 0 {
		for _, h := range known {
			b.add(plan.Peer{CIDR: hostPrefix(h.Addr.Unmap()), Proto: e.proto, Port: e.port}, origin)
		}
		return
	}
	b.add(plan.Peer{Name: name, Proto: e.proto, Port: e.port}, origin)
}

func (b *builder) add(p plan.Peer, origin record.Origin) {
	for i := range b.peers {
		if q := &b.peers[i]; q.CIDR == p.CIDR && q.Name == p.Name && q.Proto == p.Proto && q.Port == p.Port {
			q.Origins = addOrigin(q.Origins, origin)
			return
		}
	}
	if len(b.peers) >= maxEndpoints {
		b.note("more than %d peers are declared: the rest is not allowed", maxEndpoints)
		return
	}
	p.Origins = []record.Origin{origin}
	b.peers = append(b.peers, p)
}

// environment reads the environment in force: the operator's variables over
// the image's, or config.json's own where nothing else is known.
func (b *builder) environment(d *declared.Declared) {
	env, sources := d.Process.Env, make([]record.Origin, len(d.Process.Env))
	for i := range sources {
		sources[i] = record.Origin{Source: record.FromOperator, At: "config.json process.env"}
	}
	if d.Image.Known {
		env, sources = nil, nil
		overridden := map[string]bool{}
		for _, e := range d.Operator.Env {
			key, _, _ := strings.Cut(e, "=")
			overridden[key] = true
			env, sources = append(env, e), append(sources, record.Origin{Source: record.FromOperator, At: "environment"})
		}
		for _, e := range d.Image.Env {
			if key, _, _ := strings.Cut(e, "="); !overridden[key] {
				env, sources = append(env, e), append(sources, record.Origin{Source: record.FromImage, At: "config.Env"})
			}
		}
	}
	for _, v := range parseEnv(b.bounded(env, "environment")) {
		for _, e := range v.endpoints {
			origin := sources[v.index]
			origin.Text = v.key + "=" + e.text
			if e.download && origin.Source == record.FromImage {
				b.note("%s: a file to download, taken for something the image was built from, not for a peer", origin)
				continue
			}
			b.peer(e, origin)
		}
	}
}

// bounded cuts a list of strings where it is longer than anybody's own.
func (b *builder) bounded(list []string, what string) []string {
	total := 0
	for i, s := range list {
		if total += len(s); total > maxTotal || i >= maxVariables || len(s) > maxValue {
			b.note("the %s is read for peers up to its entry %d only: what follows is too long", what, i)
			return list[:i]
		}
	}
	return list
}

func (b *builder) command(d *declared.Declared) {
	for _, a := range parseArgs(b.bounded(d.Process.Args, "command line")) {
		origin := record.Origin{Source: record.FromOperator, At: fmt.Sprintf("process.args[%d]", a.index)}
		if a.index < len(d.Process.Origins) {
			origin = d.Process.Origins[a.index]
		}
		for _, e := range a.endpoints {
			origin.Text = e.text
			b.peer(e, origin)
		}
	}
	for _, a := range parseArgs(b.bounded(d.HealthCheck, "health check")) {
		origin := record.Origin{Source: record.FromImage, At: "config.Healthcheck"}
		if len(d.HealthCheckOrigin) > 0 {
			origin = d.HealthCheckOrigin[0]
		}
		for _, e := range a.endpoints {
			origin.Text = e.text
			b.peer(e, origin)
		}
	}
}

func hostPrefix(addr netip.Addr) string { return netip.PrefixFrom(addr, addr.BitLen()).String() }

func addOrigin(origins []record.Origin, o record.Origin) []record.Origin {
	if slices.Contains(origins, o) {
		return origins
	}
	return append(origins, o)
}

// sorted gives a plan the same order every time, and never nil.
func sorted[T any](list []T, key func(T) string) []T {
	out := make([]T, len(list))
	copy(out, list)
	slices.SortStableFunc(out, func(a, b T) int { return strings.Compare(key(a), key(b)) })
	return out
}
