package declared

import (
	"bufio"
	"bytes"
	"net/netip"
	"regexp"
	"slices"
	"strings"
)

const dnsPort = 53

// libnetwork writes the servers that its embedded resolver forwards to into a
// comment: "# ExtServers: [8.8.8.8 host(127.0.0.53)]". host(…) is asked from
// the host's network namespace (Docker 25 and later).
var extServers = regexp.MustCompile(`^[#;]\s*ExtServers:\s*\[(.*)\]\s*$`)

// ParseResolvConf reads the name servers of a resolv.conf(5) and of
// libnetwork's comment in it, in order and without repetition. Lines it does
// not understand are skipped, as the C library does.
func ParseResolvConf(data []byte) []netip.AddrPort {
	var out []netip.AddrPort
	add := func(s string) {
		if a, err := netip.ParseAddr(s); err == nil {
			if p := netip.AddrPortFrom(a.Unmap(), dnsPort); !slices.Contains(out, p) && len(out) < 64 {
				out = append(out, p)
			}
		}
	}
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		line := strings.TrimSpace(sc.Text())
		if m := extServers.FindStringSubmatch(line); m != nil {
			for _, f := range strings.FieldsFunc(m[1], func(r rune) bool { return r == ' ' || r == ',' }) {
				if in, ok := strings.CutPrefix(f, "host("); ok {
					f = strings.TrimSuffix(in, ")")
				}
				add(f)
			}
			continue
		}
		if f := strings.Fields(line); len(f) >= 2 && f[0] == "nameserver" {
			add(f[1])
		}
	}
	return out
}

// hostLine is one line of hosts(5).
type hostLine struct {
	addr  netip.Addr
	names []string
}

func parseHosts(data []byte) []hostLine {
	var out []hostLine
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() && len(out) < 10_000 {
		text, _, _ := strings.Cut(sc.Text(), "#")
		f := strings.Fields(text)
		if len(f) < 2 {
			continue
		}
		if a, err := netip.ParseAddr(f[0]); err == nil {
			out = append(out, hostLine{a.Unmap(), f[1:]})
		}
	}
	return out
}

// ParseHosts reads the entries of a hosts(5) file beyond those that every
// engine writes: localhost and the ip6-* names, and the lines that carry one of
// the container's own names.
func ParseHosts(data []byte, own ...string) []Host {
	var out []Host
	for _, l := range parseHosts(data) {
		if slices.ContainsFunc(l.names, func(n string) bool {
			return slices.Contains(own, n) || n == "localhost" || strings.HasPrefix(n, "ip6-") || strings.HasPrefix(n, "localhost.")
		}) {
			continue
		}
		for _, n := range l.names {
			out = append(out, Host{Name: n, Addr: l.addr})
		}
	}
	return out
}

// ParseSearch reads the search domains of a resolv.conf(5): the last "search"
// or "domain" line counts. At most 32 are kept.
func ParseSearch(data []byte) []string {
	var out []string
	sc := bufio.NewScanner(bytes.NewReader(data))
	for sc.Scan() {
		f := strings.Fields(sc.Text())
		if len(f) >= 2 && (f[0] == "search" || f[0] == "domain") {
			out = f[1:min(len(f), 33)]
		}
	}
	return out
}
