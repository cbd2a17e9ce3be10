package netpolicy

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
)

// show gives peers in one word each: "db:5432/tcp", "10.0.0.2/32:53/udp".
func show(peers []plan.Peer) []string {
	var out []string
	for _, p := range peers {
		host := p.Name + p.CIDR
		out = append(out, joinHostPort("", p.Port)+host+"/"+p.Proto)
		out[len(out)-1] = host + strings.TrimSuffix(":"+itoa(p.Port), ":0") + strings.TrimSuffix("/"+p.Proto, "/")
	}
	return out
}

func itoa(n uint16) string { return strings.TrimPrefix(joinHostPort("", n), ":") + zero(n) }
func zero(n uint16) string {
	if n == 0 {
		return "0"
	}
	return ""
}

func withEnv(env ...string) *declared.Declared {
	return &declared.Declared{
		Engine:  declared.Docker,
		Image:   declared.Image{Known: true, Env: env},
		Network: declared.NetNamespace{Kind: declared.OwnNet},
	}
}

func TestPeersOfEnvironment(t *testing.T) {
	for _, row := range []struct {
		claim string
		env   []string
		want  []string
	}{
		{"a database URL names its host and port", []string{"DATABASE_URL=postgres://u:p@db:5432/x"}, []string{"db:5432/tcp"}},
		{"a scheme means its port", []string{"A=redis://cache", "B=amqp://mq/", "C=https://api.example.com/v1?x=y:1"}, []string{"api.example.com:443/tcp", "cache:6379/tcp", "mq:5672/tcp"}},
		{"a driver in the scheme changes nothing", []string{"U=postgresql+asyncpg://u:p@db/x"}, []string{"db:5432/tcp"}},
		{"MongoDB names several hosts", []string{"M=mongodb://u:p@m1:27018,m2/db?replicaSet=rs"}, []string{"m1:27018/tcp", "m2:27017/tcp"}},
		{"JDBC", []string{"J=jdbc:postgresql://db:5433/x?user=a", "K=jdbc:sqlserver://ms;databaseName=x;password=y", "L=jdbc:oracle:thin:@//ora:1522/svc"}, []string{"db:5433/tcp", "ms:1433/tcp", "ora:1522/tcp"}},
		{"Kafka lists with and without scheme", []string{"KAFKA_A=PLAINTEXT://k1:9092,SSL://k2:9093", "KAFKA_BROKERS=k3:9092,k4:9092"}, []string{"k1:9092/tcp", "k2:9093/tcp", "k3:9092/tcp", "k4:9092/tcp"}},
		{"etcd's list of URLs", []string{"ETCD_ENDPOINTS=http://e1:2379,http://e2:2379"}, []string{"e1:2379/tcp", "e2:2379/tcp"}},
		{"a host and its port in two variables", []string{"DB_HOST=db", "DB_PORT=5432"}, []string{"db:5432/tcp"}},
		{"PGHOST and PGPORT", []string{"PGHOST=db", "PGPORT=6432"}, []string{"db:6432/tcp"}},
		{"the variable's name tells the port", []string{"REDIS_HOST=cache", "MYSQL_HOST=sql"}, []string{"cache:6379/tcp", "sql:3306/tcp"}},
		{"a host whose port nobody tells is a peer on every port", []string{"BACKEND_HOST=api"}, []string{"api/tcp"}},
		{"host and port in one", []string{"WORDPRESS_DB_HOST=db:3307"}, []string{"db:3307/tcp"}},
		{"Kubernetes' own", []string{"KUBERNETES_SERVICE_HOST=10.96.0.1", "KUBERNETES_SERVICE_PORT=443"}, []string{"10.96.0.1/32:443/tcp"}},
		{"Docker's links", []string{"DB_PORT=tcp://172.17.0.3:5432", "DB_PORT_5432_TCP_ADDR=172.17.0.3"}, []string{"172.17.0.3/32/tcp", "172.17.0.3/32:5432/tcp"}},
		{"IPv6", []string{"A=http://[2001:db8::1]:8080/", "B_URL=[2001:db8::2]:99", "C_HOST=2001:db8::3"}, []string{"2001:db8::1/128:8080/tcp", "2001:db8::2/128:99/tcp", "2001:db8::3/128/tcp"}},
		{"libpq keywords", []string{"DSN=host=db port=5433 user=u password=p"}, []string{"db:5433/tcp"}},
		{"own addresses are not peers", []string{"A=http://0.0.0.0:80", "B=http://localhost:1", "C_ADDR=:8080", "D_ADDR=127.0.0.1:80", "E=tcp://[::]:80", "HOST=box", "LISTEN_ADDR=box:80"}, nil},
		{"a password is never taken for a host", []string{"DB_PASSWORD=abc:1234", "API_KEY=foo:443", "PGPASSWORD=h:1"}, nil},
		{"raw @ and / in a password", []string{"A=postgres://u:p@ss@db:5432/x", "B=mysql://u:12/ss@sql/x"}, []string{"db:5432/tcp", "sql:3306/tcp"}},
		{"an @ in a path is a path", []string{"A=https://registry.example/@scope/pkg"}, []string{"registry.example:443/tcp"}},
		{"what an image was built from is not a peer", []string{"PYTHON_GET_PIP_URL=https://github.com/pypa/get-pip/raw/main/get-pip.py"}, nil},
		{"files and sockets are not peers", []string{"A=unix:///run/x.sock", "B=sqlite:///x.db", "C=file:///etc/x"}, nil},
		{"an operator's value replaces the image's", []string{"DB_HOST=old"}, []string{"new:5432/tcp"}},
		{"words are not hosts", []string{"PROXY_HOST=true", "X_HOST=$(OTHER)", "TZ_HOST=a b"}, nil},
		{"no proxy", []string{"NO_PROXY=internal:80", "HTTP_PROXY=http://proxy:3128"}, []string{"proxy:3128/tcp"}},
		{"udp", []string{"METRICS_URL=statsd://stats:8125"}, []string{"stats:8125/udp"}},
	} {
		t.Run(row.claim, func(t *testing.T) {
			d := withEnv(row.env...)
			if strings.Contains(row.claim, "operator") {
				d.Operator.Env = []string{"DB_HOST=new", "DB_PORT=5432"}
			}
			n, _ := Derive(d)
			if got := show(n.Connect); !slices.Equal(got, row.want) {
				t.Errorf("got %q\nwant %q", got, row.want)
			}
		})
	}
}

func TestPeersOfCommandLine(t *testing.T) {
	for _, row := range []struct {
		claim string
		args  []string
		want  []string
	}{
		{"a host and its port", []string{"app", "--host", "db", "--port", "5432"}, []string{"db:5432/tcp"}},
		{"joined flags with a prefix", []string{"app", "--db-host=db", "--db-port=5433"}, []string{"db:5433/tcp"}},
		{"a client's short flags", []string{"/usr/bin/psql", "-h", "db", "-p", "5434"}, []string{"db:5434/tcp"}},
		{"a client's default port", []string{"redis-cli", "-h", "cache"}, []string{"cache:6379/tcp"}},
		{"-h elsewhere asks for help", []string{"app", "-h", "db"}, nil},
		{"a URL", []string{"app", "--dsn", "postgres://u:secret@db/x"}, []string{"db:5432/tcp"}},
		{"wait-for-it", []string{"wait-for-it.sh", "db:5432", "--", "app"}, []string{"db:5432/tcp"}},
		{"a command string", []string{"sh", "-c", "until pg_isready -h db -p 5432; do sleep 1; done; exec app --redis=redis://cache"}, []string{"cache:6379/tcp", "db:5432/tcp"}},
		{"own addresses", []string{"app", "--listen", "0.0.0.0:80", "--http.addr", ":8080", "--bind=box:80"}, nil},
		{"users are not hosts", []string{"setpriv", "--user", "app:1000"}, nil},
	} {
		t.Run(row.claim, func(t *testing.T) {
			d := withEnv()
			d.Process.Args = row.args
			n, _ := Derive(d)
			if got := show(n.Connect); !slices.Equal(got, row.want) {
				t.Errorf("got %q\nwant %q", got, row.want)
			}
		})
	}
}

func TestDerive(t *testing.T) {
	image := record.Origin{Source: record.FromImage, At: "config.ExposedPorts", Text: "EXPOSE 5432"}
	published := record.Origin{Source: record.FromOperator, At: "docker run -p"}
	d := withEnv("DB_HOST=db", "DB_PORT=5432", "OTHER_URL=http://web:8080")
	d.Image.ExposedPorts = []declared.Port{{Proto: "tcp", Port: 5432, Origin: image}, {Proto: "udp", Port: 8000, Last: 8010, Origin: image}}
	d.Operator.PublishedPorts = []declared.Port{{Proto: "tcp", Port: 5432, Origin: published}, {Proto: "sctp", Port: 99, Origin: published}, {Proto: "icmp", Port: 1, Origin: published}}
	d.Operator.Compose = &declared.Compose{Service: "app", DependsOn: []string{"mq:service_started:false", "app"}}
	d.Operator.Links = []declared.Host{{Name: "web", Addr: netip.MustParseAddr("172.17.0.9")}}
	d.Hosts = []declared.Host{{Name: "localhost", Addr: netip.MustParseAddr("127.0.0.1")}}
	d.Resolvers = []netip.AddrPort{netip.MustParseAddrPort("10.0.0.2:53"), netip.MustParseAddrPort("127.0.0.11:53")}
	n, notes := Derive(d)
	if !n.Enforced || n.Reason != "" {
		t.Errorf("own namespace not enforced: %q", n.Reason)
	}
	if want := []string{"10.0.0.2/32:53/tcp", "10.0.0.2/32:53/udp", "127.0.0.11/32:53/tcp", "127.0.0.11/32:53/udp", "172.17.0.9/32", "172.17.0.9/32:8080/tcp", "db:5432/tcp", "mq"}; !slices.Equal(show(n.Connect), want) {
		t.Errorf("connect %q\nwant    %q", show(n.Connect), want)
	}
	if len(n.Listen) != 3 || n.Listen[1].Port != 5432 || !slices.Equal(n.Listen[1].Origins, []record.Origin{image, published}) || n.Listen[2].Last != 8010 {
		t.Errorf("listen %+v", n.Listen)
	}
	if len(notes) != 1 || !strings.Contains(notes[0].Text, "icmp") {
		t.Errorf("a port of no known protocol is noted: %+v", notes)
	}
	for _, p := range n.Connect {
		if len(p.Origins) == 0 {
			t.Errorf("%+v has no origin", p)
		}
	}

	for _, ns := range []declared.NetNamespace{{}, {Kind: declared.HostNet}, {Kind: declared.JoinedNet, Path: "/proc/1/ns/net"}} {
		d.Network = ns
		if n, _ := Derive(d); n.Enforced || n.Reason == "" {
			t.Errorf("%+v: enforced %v, reason %q", ns, n.Enforced, n.Reason)
		}
	}
}

func TestBounds(t *testing.T) {
	var env []string
	for i := range 5000 {
		env = append(env, "K"+strings.Repeat("x", i%7)+"_HOST=h"+string(rune('a'+i%26))+strings.Repeat("y", i%50))
	}
	d := withEnv(append(env, "LAST_HOST=last")...)
	d.Process.Args = []string{"sh", "-c", strings.Repeat("curl http://a ", 1<<20)}
	n, notes := Derive(d)
	if len(n.Connect) == 0 || len(n.Connect) > maxEndpoints || len(notes) != 2 || slices.Contains(show(n.Connect), "last/tcp") {
		t.Errorf("%d peers, notes %+v", len(n.Connect), notes)
	}
}

// A secret in an environment or command line never reaches a plan.
func TestNoSecretInOrigins(t *testing.T) {
	d := withEnv("A=postgres://usr:hunter2@db/x?password=hunter2", "B_HOST=h:1", "B_PASSWORD=hunter2:12", "C_URL=https://hunter2@api/hunter2#hunter2",
		"D=host=db password=hunter2 port=1", "E=jdbc:sqlserver://h;password=hunter2", "F=amqp://u:1/hunter2@mq:5672", "G=redis://:hunter2;x@cache:1")
	d.Process.Args = []string{"app", "--url=mysql://u:hunter2@db", "--password", "hunter2:443", "--token=hunter2:1", "sh -c 'curl http://u:hunter2@web/'"}
	n, notes := Derive(d)
	text, err := json.Marshal([]any{n, notes})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(text), "hunter2") {
		t.Errorf("a secret in %s", text)
	}
	if len(n.Connect) < 7 {
		t.Errorf("too few peers: %q", show(n.Connect))
	}
}

func FuzzEndpoints(f *testing.F) {
	for _, s := range []string{"postgres://u:p@db:5432/x", "mongodb://a:1,b/", "jdbc:oracle:thin:@//h:1/s", "PLAINTEXT://a:1,SSL://b:2", "h:1,h2:2", "[::1]:2", "jdbc:oracle:thin:@h:1:sid",
		"host=db port=5432", "://", "a://@/@", "sh -c 'psql -h db'", "--host=", "http://u:1/@x:3"} {
		f.Add("DB_HOST", s)
		f.Add("URL", s)
	}
	f.Fuzz(func(t *testing.T, key, value string) {
		d := withEnv(key+"="+value, "DB_PORT="+value)
		d.Process.Args = []string{key, value, "--" + key, value}
		n, _ := Derive(d)
		for _, p := range n.Connect {
			if (p.Name == "") == (p.CIDR == "") {
				t.Fatalf("%+v: exactly one of name and address", p)
			}
			if p.CIDR != "" {
				prefix, err := netip.ParsePrefix(p.CIDR)
				if err != nil || !peerAddr(prefix.Addr()) || !prefix.IsSingleIP() {
					t.Fatalf("%+v: %v", p, err)
				}
			} else if name, ok := hostname(p.Name); !ok || name != p.Name || !isPeer(name) {
				t.Fatalf("%+v: not a name", p)
			}
		}
		if len(n.Connect) > maxEndpoints {
			t.Fatalf("%d peers", len(n.Connect))
		}
		_ = Rules(n, Options{}).String()
	})
}
