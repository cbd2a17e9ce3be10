package netpolicy

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

var update = flag.Bool("update", false, "write the golden files")

func TestRulesGolden(t *testing.T) {
	audit := namedOptions()
	audit.Mode = record.Audit
	rows := map[string]Ruleset{
		"everything":      Rules(everything(), everythingOptions()),
		"nothing":         Rules(plan.Network{Enforced: true}, Options{}),
		"audit":           Rules(named(), audit),
		"embedded-dns":    Rules(named(), Options{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.11:53"), netip.MustParseAddrPort("10.0.0.2:53")}}),
		"only-the-ports":  Rules(plan.Network{Enforced: true, Listen: []plan.Listen{{Proto: "tcp", Port: 80}, {Proto: "tcp", Port: 443}}}, Options{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:53")}}),
		"not-enforced":    Rules(plan.Network{Listen: []plan.Listen{{Proto: "tcp", Port: 80}}}, Options{}),
		"off":             Rules(named(), Options{Mode: record.Off}),
		"unknown-is-none": Rules(plan.Network{Enforced: true, Listen: []plan.Listen{{Proto: "gre", Port: 1}, {Proto: "tcp"}}, Connect: []plan.Peer{{CIDR: "bad"}, {CIDR: "10.0.0.0/8", Proto: "gre"}}}, Options{}),
	}
	files, err := filepath.Glob("testdata/rules/*.nft")
	if err != nil || len(files) == 0 && !*update {
		t.Fatalf("no golden files: %v", err)
	}
	for _, f := range files {
		if _, ok := rows[strings.TrimSuffix(filepath.Base(f), ".nft")]; !ok {
			t.Errorf("%s belongs to no row", f)
		}
	}
	for name, rs := range rows {
		t.Run(name, func(t *testing.T) {
			file := "testdata/rules/" + name + ".nft"
			got := rs.String()
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if got != string(want) {
				t.Errorf("got\n%s\nwant\n%s", got, want)
			}
		})
	}
}

// everything uses every kind of rule.
func everything() plan.Network {
	return plan.Network{
		Enforced: true,
		Listen:   []plan.Listen{{Proto: "tcp", Port: 5432}, {Proto: "udp", Port: 8000, Last: 8010}, {Proto: "sctp", Port: 99}},
		Connect: []plan.Peer{
			{Name: "db", Proto: "tcp", Port: 5432}, {Name: "DB.", Port: 53}, {Name: "web.example"},
			{CIDR: "10.199.0.1/32", Proto: "tcp", Port: 7000}, {CIDR: "fd99::1/128", Proto: "tcp", Port: 7000},
			{CIDR: "10.199.0.0/30", Proto: "udp", Port: 7001}, {CIDR: "10.199.0.1/32", Proto: "udp", Port: 7001},
			{CIDR: "192.0.2.0/24"}, {CIDR: "255.255.255.0/24", Proto: "tcp"}, {CIDR: "127.0.0.11/32", Proto: "udp", Port: 53},
		},
	}
}

func everythingOptions() Options {
	return Options{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("10.199.0.1:53"), netip.MustParseAddrPort("127.0.0.11:53"), netip.MustParseAddrPort("[fd99::1]:53")}, Search: []string{"example."}}
}

// named declares one peer by name.
func named() plan.Network {
	return plan.Network{Enforced: true, Listen: []plan.Listen{{Proto: "udp", Port: 8000}}, Connect: []plan.Peer{{Name: "db", Proto: "tcp", Port: 5432}}}
}

func namedOptions() Options {
	return Options{Resolvers: []netip.AddrPort{netip.MustParseAddrPort("10.199.0.1:53"), netip.MustParseAddrPort("127.0.0.11:53")}, Search: []string{"test"}}
}

func TestRules(t *testing.T) {
	if a, b := Rules(everything(), everythingOptions()), Rules(everything(), everythingOptions()); !reflect.DeepEqual(a, b) {
		t.Error("the same plan gave two rulesets")
	}
	shuffled := everything()
	slices.Reverse(shuffled.Connect)
	if a, b := Rules(everything(), Options{}), Rules(shuffled, Options{}); !reflect.DeepEqual(a, b) {
		t.Errorf("the order of peers matters:\n%s\n%s", a, b)
	}
	if rs := Rules(plan.Network{Enforced: true}, Options{}); rs.Mode != record.Enforce || rs.Chains[0].Accept {
		t.Error("the zero mode does not enforce")
	}
	for _, c := range Rules(everything(), everythingOptions()).Chains {
		if c.Accept {
			t.Errorf("chain %s accepts by policy", c.Name)
		}
	}
	long := strings.Repeat("a", 63) + "." + strings.Repeat("b", 63) + "." + strings.Repeat("c", 63) + "." + strings.Repeat("d", 50)
	other := strings.TrimSuffix(long, "d") + "e"
	if a, b := nameSet(long, true), nameSet(other, true); a == b || len(a) > 255 {
		t.Errorf("set names %q and %q", a, b)
	}
	for _, f := range []struct{ in, want string }{{"10.0.0.0/8 10.1.0.0/16 10.0.0.0/8 9.0.0.0/8", "9.0.0.0/8 10.0.0.0/8"}, {"10.0.0.0/9 10.128.0.0/9", "10.0.0.0/9 10.128.0.0/9"}} {
		var list []netip.Prefix
		for p := range strings.FieldsSeq(f.in) {
			list = append(list, netip.MustParsePrefix(p))
		}
		var got []string
		for _, p := range disjoint(list) {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != f.want {
			t.Errorf("%s: %v", f.in, got)
		}
	}
}
