package netpolicy

import (
	"net/netip"
	"strconv"
	"strings"
)

// Bounds on what is read out of an environment and a command line. Both are
// foreign text; what lies past a bound declares nothing.
const (
	maxValue     = 64 << 10 // bytes of one variable or argument
	maxVariables = 4096
	maxTotal     = 1 << 20 // bytes of all variables, or of all arguments
	maxEndpoints = 1024
)

// endpoint is a host and port as somebody wrote it.
type endpoint struct {
	host  string // lower case, without brackets and trailing dot
	port  uint16 // 0: not said
	proto string // "tcp", "udp", or "" if every protocol
	// text is the declaration rebuilt from the parts that were understood:
	// never user names, passwords, paths or queries.
	text string
	// download is true for a URL of a file, such as a release archive that a
	// Dockerfile fetched: it says where something came from, not who is a peer.
	download bool
	// srv is true when the name is looked up by SRV records, whose targets are
	// other names.
	srv bool
}

// schemePorts are the ports that a URL means without saying so.
var schemePorts = map[string]uint16{
	"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21, "ftps": 990, "sftp": 22, "ssh": 22, "git": 9418,
	"postgres": 5432, "postgresql": 5432, "pgsql": 5432, "psql": 5432, "postgis": 5432, "cockroachdb": 26257,
	"mysql": 3306, "mysql2": 3306, "mysqlx": 33060, "mariadb": 3306, "sqlserver": 1433, "mssql": 1433, "oracle": 1521, "db2": 50000,
	"redis": 6379, "rediss": 6379, "valkey": 6379, "valkeys": 6379, "memcached": 11211, "memcache": 11211,
	"amqp": 5672, "amqps": 5671, "mqtt": 1883, "mqtts": 8883, "stomp": 61613, "nats": 4222, "pulsar": 6650, "kafka": 9092,
	"mongodb": 27017, "mongo": 27017, "cassandra": 9042, "couchbase": 11210, "couchdb": 5984, "neo4j": 7687, "bolt": 7687,
	"elasticsearch": 9200, "clickhouse": 9000, "influxdb": 8086, "etcd": 2379, "consul": 8500, "vault": 8200, "zookeeper": 2181, "zk": 2181,
	"ldap": 389, "ldaps": 636, "smtp": 25, "smtps": 465, "imap": 143, "imaps": 993, "syslog": 514, "nfs": 2049,
}

// databaseSchemes have no "@" in what follows the authority, so that one there
// belongs to a password somebody did not escape.
var databaseSchemes = map[string]bool{
	"postgres": true, "postgresql": true, "pgsql": true, "mysql": true, "mysql2": true, "mariadb": true, "redis": true, "rediss": true,
	"amqp": true, "amqps": true, "mongodb": true, "mongo": true, "mssql": true, "sqlserver": true, "mqtt": true, "mqtts": true, "nats": true,
	"valkey": true, "smtp": true, "smtps": true, "ldap": true, "ldaps": true,
}

// localSchemes name no peer.
var localSchemes = map[string]bool{
	"unix": true, "file": true, "sqlite": true, "sqlite3": true, "data": true, "fd": true, "npipe": true, "systemd": true,
	"docker-image": true, "oci": true, "containers-storage": true, "classpath": true, "jar": true, "urn": true, "mem": true, "memory": true,
}

var udpSchemes = map[string]bool{"udp": true, "udp4": true, "udp6": true, "statsd": true, "syslog": true, "quic": true}

// keywordPorts guess the port of "POSTGRES_HOST=db" from the variable's name.
// In order: the first that matches decides.
var keywordPorts = []struct {
	word string
	port uint16
}{
	{"POSTGRES", 5432}, {"PSQL", 5432}, {"PGHOST", 5432}, {"PG_", 5432}, {"MYSQL", 3306}, {"MARIADB", 3306}, {"WORDPRESS_DB", 3306},
	{"REDIS", 6379}, {"VALKEY", 6379}, {"MONGO", 27017}, {"RABBIT", 5672}, {"AMQP", 5672}, {"KAFKA", 9092}, {"ELASTIC", 9200},
	{"OPENSEARCH", 9200}, {"MEMCACHE", 11211}, {"NATS", 4222}, {"ETCD", 2379}, {"CONSUL", 8500}, {"VAULT", 8200}, {"ZOOKEEPER", 2181},
	{"CASSANDRA", 9042}, {"INFLUX", 8086}, {"CLICKHOUSE", 9000}, {"MSSQL", 1433}, {"SQLSERVER", 1433}, {"ORACLE", 1521}, {"LDAP", 389},
	{"MQTT", 1883}, {"SMTP", 25}, {"STATSD", 8125},
}

// parseURLs finds every URL in text: comma- or blank-separated lists, hosts
// lists inside an authority (MongoDB, etcd, Kafka) and JDBC's forms included.
func parseURLs(text string) []endpoint {
	if len(text) > maxValue || !strings.Contains(text, "//") {
		return nil
	}
	var out []endpoint
	for word := range strings.FieldsFuncSeq(text, func(r rune) bool {
		return r <= ' ' || strings.ContainsRune("\"'`<>", r)
	}) {
		out = appendWordURLs(out, word)
		if len(out) >= maxEndpoints {
			return out[:maxEndpoints]
		}
	}
	return out
}

func appendWordURLs(out []endpoint, word string) []endpoint {
	jdbc := ""
	if i := strings.Index(strings.ToLower(word), "jdbc:"); i >= 0 {
		rest := word[i+len("jdbc:"):]
		jdbc, _, _ = strings.Cut(strings.ToLower(rest), ":")
		if at := strings.Index(rest, ":@"); at >= 0 && !strings.Contains(rest, "://") { // Oracle's thin driver
			rest = strings.TrimLeft(rest[at+2:], "/")
			host, port, _ := strings.Cut(rest, ":")
			port, _, _ = strings.Cut(port, ":")
			port, _, _ = strings.Cut(port, "/")
			host, _, _ = strings.Cut(host, "/")
			return appendHosts(out, jdbc, host+portSuffix(port), false)
		}
	}
	for {
		i := strings.Index(word, "://")
		if i < 0 {
			return out
		}
		scheme := strings.ToLower(word[schemeStart(word, i):i])
		rest := word[i+3:]
		// The next URL in the same word, "PLAINTEXT://a:1,SSL://b:2", ends this one.
		next := len(rest)
		if j := strings.Index(rest, "://"); j >= 0 {
			if s := schemeStart(rest, j); s < j && s > 0 && rest[s-1] == ',' {
				next = s - 1
			}
		}
		out = appendURL(out, scheme, jdbc, rest[:next])
		if len(out) >= maxEndpoints {
			return out
		}
		word = rest[next:]
		if next == len(rest) {
			return out
		}
	}
}

// schemeStart is where the scheme that ends at i begins.
func schemeStart(s string, i int) int {
	for i > 0 && (isAlnum(s[i-1]) || strings.IndexByte("+-._", s[i-1]) >= 0) {
		i--
	}
	return i
}

func appendURL(out []endpoint, scheme, jdbc, rest string) []endpoint {
	if jdbc != "" {
		scheme = jdbc
	}
	srv := strings.HasSuffix(scheme, "+srv")
	base, _, _ := strings.Cut(scheme, "+")
	if localSchemes[base] || base == "" {
		return out
	}
	authority, tail := splitAuthority(rest)
	if at := strings.LastIndexByte(authority, '@'); at >= 0 {
		authority = authority[at+1:]
		if at := strings.LastIndexByte(tail, '@'); at >= 0 && databaseSchemes[base] {
			authority, tail = splitAuthority(tail[at+1:])
		}
	} else if at := strings.LastIndexByte(tail, '@'); at >= 0 {
		switch {
		case databaseSchemes[base]: // an unescaped "/", "?", "#" or ";" in a password
			authority, tail = splitAuthority(tail[at+1:])
		case strings.Contains(authority, ":"): // host:port/…@… or user:pa/ss@host: cannot be told apart
			if _, port, ok := splitHostPort(authority); !ok || port == 0 {
				return out
			}
		}
	}
	before := len(out)
	out = appendHosts(out, base, authority, udpSchemes[base])
	path, _, _ := strings.Cut(tail, "?")
	path, _, _ = strings.Cut(path, "#")
	for i := before; i < len(out); i++ {
		out[i].srv = srv
		out[i].download = isDownload(base, path)
	}
	return out
}

// splitAuthority cuts where an authority ends; ";" begins SQL Server's properties.
func splitAuthority(s string) (authority, tail string) {
	if end := strings.IndexAny(s, "/?#;"); end >= 0 {
		return s[:end], s[end:]
	}
	return s, ""
}

func isDownload(scheme, path string) bool {
	if scheme != "http" && scheme != "https" && scheme != "ftp" {
		return false
	}
	for _, suffix := range []string{".tar", ".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip", ".py", ".sh", ".deb", ".rpm", ".apk", ".whl", ".jar", ".asc", ".sig", ".exe", ".pem", ".key"} {
		if strings.HasSuffix(strings.ToLower(path), suffix) {
			return true
		}
	}
	return false
}

// appendHosts splits a comma-separated list of host[:port].
func appendHosts(out []endpoint, scheme, hosts string, udp bool) []endpoint {
	// "h1,h2:9000": PostgreSQL and MongoDB give each its own port, or the default.
	for item := range strings.SplitSeq(hosts, ",") {
		host, port, ok := splitHostPort(item)
		if !ok || !isPeer(host) {
			continue
		}
		if port == 0 {
			port = schemePorts[scheme]
		}
		proto := "tcp"
		if udp {
			proto = "udp"
		}
		out = append(out, endpoint{host: host, port: port, proto: proto, text: scheme + "://" + joinHostPort(host, port)})
		if len(out) >= maxEndpoints {
			break
		}
	}
	return out
}

// parseHostPorts reads "h1:9092,h2:9092" (or blanks, or semicolons): nothing
// unless every item is a host with a port.
func parseHostPorts(text string) []endpoint {
	if len(text) > maxValue || !strings.Contains(text, ":") {
		return nil
	}
	var out []endpoint
	for item := range strings.FieldsFuncSeq(text, func(r rune) bool { return r == ',' || r == ' ' || r == ';' }) {
		host, port, ok := splitHostPort(item)
		if !ok || port == 0 || len(out) >= maxEndpoints {
			return nil
		}
		out = append(out, endpoint{host: host, port: port, proto: "tcp", text: joinHostPort(host, port)})
	}
	peers := out[:0]
	for _, e := range out {
		if isPeer(e.host) {
			peers = append(peers, e)
		}
	}
	return peers
}

// splitHostPort reads host, host:port, [v6] and [v6]:port. Port 0 means that
// none was given.
func splitHostPort(s string) (host string, port uint16, ok bool) {
	s = strings.TrimSpace(s)
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil && addr.Zone() == "" {
		return addr.Unmap().String(), 0, true
	}
	digits := ""
	if i := strings.LastIndexByte(s, ':'); i >= 0 {
		s, digits = s[:i], s[i+1:]
		n, err := strconv.ParseUint(digits, 10, 16)
		if err != nil || n == 0 {
			return "", 0, false
		}
		port = uint16(n)
	}
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		s = s[1 : len(s)-1]
		if addr, err := netip.ParseAddr(s); err == nil && addr.Zone() == "" {
			return addr.Unmap().String(), port, true
		}
		return "", 0, false
	}
	if addr, err := netip.ParseAddr(s); err == nil {
		if addr.Is6() { // a bare v6 address with something behind a colon: cannot be told apart
			return "", 0, false
		}
		return addr.String(), port, true
	}
	host, ok = hostname(s)
	return host, port, ok
}

// hostname accepts what a resolver would be asked for, in lower case.
func hostname(s string) (string, bool) {
	s = strings.ToLower(strings.TrimSuffix(s, "."))
	if len(s) == 0 || len(s) > 253 {
		return "", false
	}
	letter := false
	for label := range strings.SplitSeq(s, ".") {
		if len(label) == 0 || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return "", false
		}
		for i := range len(label) {
			c := label[i]
			switch {
			case 'a' <= c && c <= 'z':
				letter = true
			case '0' <= c && c <= '9', c == '-', c == '_':
			default:
				return "", false
			}
		}
	}
	return s, letter
}

// isPeer tells whether a host can be somebody else: not this container itself,
// not a wildcard to listen on, not a word that only looks like a name.
func isPeer(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return peerAddr(addr)
	}
	switch host {
	case "", "localhost", "localhost.localdomain", "ip6-localhost", "true", "false", "yes", "no", "on", "off", "none", "null", "nil", "any", "all":
		return false
	}
	return !strings.HasSuffix(host, ".localhost")
}

func peerAddr(addr netip.Addr) bool {
	addr = addr.Unmap()
	return addr.IsValid() && addr.Zone() == "" && !addr.IsUnspecified() && !addr.IsLoopback() && !addr.IsMulticast() &&
		addr != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

func joinHostPort(host string, port uint16) string {
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port == 0 {
		return host
	}
	return host + ":" + strconv.Itoa(int(port))
}

func portSuffix(port string) string {
	if port == "" {
		return ""
	}
	return ":" + port
}

func isAlnum(c byte) bool {
	return '0' <= c && c <= '9' || 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
}

// parseEnv reads the peers that an environment declares. Variables are
// KEY=value; a later one with the same key is read as well, so pass the
// effective environment.
func parseEnv(env []string) []variable {
	if len(env) > maxVariables {
		env = env[:maxVariables]
	}
	byKey := make(map[string]string, len(env))
	for _, e := range env {
		if key, value, ok := strings.Cut(e, "="); ok && len(value) <= maxValue {
			byKey[strings.ToUpper(key)] = value
		}
	}
	var out []variable
	total := 0
	for i, e := range env {
		key, value, ok := strings.Cut(e, "=")
		if !ok || key == "" || len(value) > maxValue || total >= maxEndpoints {
			continue
		}
		found := parseVariable(strings.ToUpper(key), value, byKey)
		if len(found) == 0 {
			continue
		}
		total += len(found)
		out = append(out, variable{index: i, key: key, endpoints: found})
	}
	return out
}

// variable is one variable and the endpoints found in it.
type variable struct {
	index     int
	key       string
	endpoints []endpoint
}

func parseVariable(key, value string, all map[string]string) []endpoint {
	value = strings.Trim(strings.TrimSpace(value), `"'`)
	if value == "" || ownKey(key) {
		return nil
	}
	if strings.Contains(value, "//") {
		return parseURLs(value)
	}
	if secretKey(key) {
		return nil // whatever looks like host:port in it may be half a password
	}
	if prefix, ok := hostKey(key); ok {
		if found := parseHostPorts(value); len(found) > 0 {
			return found
		}
		var out []endpoint
		for item := range strings.SplitSeq(value, ",") {
			host, port, ok := splitHostPort(item)
			if !ok || !isPeer(host) {
				return nil
			}
			if port == 0 {
				port = pairedPort(key, prefix, all)
			}
			out = append(out, endpoint{host: host, port: port, proto: "tcp", text: joinHostPort(host, port)})
			if len(out) >= maxEndpoints {
				break
			}
		}
		return out
	}
	if strings.Contains(value, "host=") { // libpq: "host=db port=5432 dbname=x"
		return parseKeywords(value)
	}
	if endpointKey(key) {
		return parseHostPorts(value)
	}
	return nil
}

// parseKeywords reads libpq's keyword form and its like: "host=db port=5432".
func parseKeywords(value string) []endpoint {
	var hosts, ports string
	for field := range strings.FieldsFuncSeq(value, func(r rune) bool { return r <= ' ' || r == ';' }) {
		k, v, _ := strings.Cut(field, "=")
		switch strings.ToLower(k) {
		case "host", "hostaddr", "server":
			hosts = strings.Trim(v, `'"`)
		case "port":
			ports = strings.Trim(v, `'"`)
		}
	}
	var out []endpoint
	for item := range strings.SplitSeq(hosts, ",") {
		host, port, ok := splitHostPort(item)
		if !ok || !isPeer(host) {
			continue
		}
		first, _, _ := strings.Cut(ports, ",")
		if n, err := strconv.ParseUint(first, 10, 16); err == nil && port == 0 {
			port = uint16(n)
		}
		if port == 0 {
			port = 5432
		}
		out = append(out, endpoint{host: host, port: port, proto: "tcp", text: "host=" + joinHostPort(host, port)})
		if len(out) >= maxEndpoints {
			break
		}
	}
	return out
}

// hostKey tells whether a variable's name says that its value is a host, and
// what comes before that: "DB_" of DB_HOST.
func hostKey(key string) (prefix string, ok bool) {
	for _, suffix := range []string{"HOST", "HOSTNAME", "HOSTS", "SERVER", "SERVERS", "ADDR", "ADDRESS", "SERVICE_NAME"} {
		if p, cut := strings.CutSuffix(key, suffix); cut && p != "" && (strings.HasSuffix(p, "_") || suffix == "HOST") {
			return p, true
		}
	}
	return "", false
}

// ownKey names variables about the container itself rather than a peer.
func ownKey(key string) bool {
	switch key {
	case "HOST", "HOSTNAME", "NO_PROXY", "PATH", "PWD", "HOME", "LS_COLORS", "VIRTUAL_HOST", "LETSENCRYPT_HOST", "SERVER_NAME":
		return true
	}
	return listenWord(key)
}

// listenWord tells whether a name is about an address to listen on.
func listenWord(key string) bool {
	for _, word := range []string{"LISTEN", "BIND", "ALLOWED", "TRUSTED", "CORS", "ADVERTISE_ADDR"} {
		if strings.Contains(key, word) {
			return !strings.Contains(key, "ADVERTISED_LISTENERS")
		}
	}
	return false
}

// endpointKey names variables whose value may well be a list of host:port.
func endpointKey(key string) bool {
	for _, word := range []string{"URL", "URI", "ENDPOINT", "BROKER", "SERVER", "NODE", "PEER", "SEED", "TARGET", "UPSTREAM", "BACKEND",
		"CONNECT", "BOOTSTRAP", "CLUSTER", "MASTER", "PRIMARY", "REPLICA", "SENTINEL", "PROXY", "ADDR", "HOST", "DSN", "KAFKA", "QUORUM"} {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}

func secretKey(key string) bool {
	for _, word := range []string{"PASS", "PWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "PRIVATE", "SALT", "HASH", "CERT", "SIGN", "AUTH"} {
		if strings.Contains(key, word) {
			return true
		}
	}
	return false
}

// pairedPort looks for the port that belongs to a host variable.
func pairedPort(key, prefix string, all map[string]string) uint16 {
	for _, k := range []string{prefix + "PORT", prefix + "PORT_NUMBER", prefix + "TCP_PORT", prefix + "PORT_HTTPS", prefix + "PORT_HTTP"} {
		value, ok := all[k]
		if !ok {
			continue
		}
		if n, err := strconv.ParseUint(strings.TrimSpace(value), 10, 16); err == nil && n != 0 {
			return uint16(n)
		}
		if found := parseURLs(value); len(found) == 1 && found[0].port != 0 { // DB_PORT=tcp://172.17.0.2:5432
			return found[0].port
		}
	}
	for _, k := range keywordPorts {
		if strings.Contains(key, k.word) {
			return k.port
		}
	}
	return 0
}

// argument is one argument of a command line and the endpoints found in it.
type argument struct {
	index     int
	endpoints []endpoint
}

// clients take -h HOST -p PORT; elsewhere -h is a question for help.
var clients = map[string]uint16{
	"psql": 5432, "pg_isready": 5432, "pgbench": 5432, "pg_dump": 5432, "mysql": 3306, "mysqladmin": 3306, "mysqldump": 3306, "mariadb": 3306,
	"redis-cli": 6379, "valkey-cli": 6379, "mongo": 27017, "mongosh": 27017, "nc": 0, "telnet": 0,
}

// parseArgs reads the peers that a command line declares. The command string
// of "sh -c" is read word by word as well.
func parseArgs(args []string) []argument {
	if len(args) > maxVariables {
		args = args[:maxVariables]
	}
	var out []argument
	total := 0
	program, words, at := "", args, []int(nil)
	for i, a := range args {
		if len(a) > maxValue {
			continue
		}
		if i > 0 && strings.ContainsAny(a, " \n") { // a command string
			var fields []string
			for f := range strings.FieldsFuncSeq(a, func(r rune) bool { return r <= ' ' || strings.ContainsRune(";&|()\"'`", r) }) {
				fields = append(fields, f)
			}
			for _, found := range parseArgs(noBlanks(fields)) {
				if total += len(found.endpoints); total > maxEndpoints {
					return out
				}
				out = append(out, argument{i, found.endpoints})
			}
			continue
		}
		at = append(at, i)
	}
	if len(at) == 0 {
		return out
	}
	program = base(words[at[0]])
	flagPort := func(prefix string) uint16 {
		for k, i := range at {
			name, value, joined := splitFlag(words[i])
			if name != prefix+"port" && !(prefix == "" && (name == "p" || name == "P") && isClient(program)) {
				continue
			}
			if !joined && k+1 < len(at) {
				value = words[at[k+1]]
			}
			if n, err := strconv.ParseUint(value, 10, 16); err == nil {
				return uint16(n)
			}
		}
		return 0
	}
	for k := 0; k < len(at); k++ {
		i := at[k]
		word := words[i]
		if isClient(base(word)) { // "until pg_isready -h db"
			program = base(word)
		}
		name, value, joined := splitFlag(word)
		var found []endpoint
		switch {
		case strings.Contains(word, "//"):
			found = parseURLs(word)
		case name != "":
			if !joined && k+1 < len(at) && !strings.HasPrefix(words[at[k+1]], "-") {
				value = words[at[k+1]]
				if strings.Contains(value, "//") {
					continue // read when its turn comes
				}
				i = at[k+1]
			}
			found = flagEndpoints(program, name, value, flagPort)
			if i != at[k] && (len(found) > 0 || quietFlag(name)) {
				k++
			}
		case k > 0:
			if key, value, ok := strings.Cut(word, "="); ok {
				if !secretKey(strings.ToUpper(key)) && !ownKey(strings.ToUpper(key)) {
					found = parseHostPorts(value)
				}
			} else {
				found = parseHostPorts(word)
			}
		}
		if total += len(found); total > maxEndpoints {
			return out
		}
		if len(found) > 0 {
			out = append(out, argument{i, found})
		}
	}
	return out
}

// noBlanks drops words with blanks, so that reading them again ends.
func noBlanks(words []string) []string {
	out := words[:0]
	for _, w := range words {
		if !strings.ContainsAny(w, " \n") {
			out = append(out, w)
		}
	}
	return out
}

func flagEndpoints(program, name, value string, port func(prefix string) uint16) []endpoint {
	upper := strings.ToUpper(strings.NewReplacer("-", "_", ".", "_").Replace(name))
	if value == "" || quietFlag(name) {
		return nil
	}
	prefix, ok := "", name == "host" || name == "hostname" || name == "server" || name == "h" && isClient(program)
	if !ok {
		for _, suffix := range []string{"-host", "-hostname", "-server", "-addr", "-address"} {
			if p, cut := strings.CutSuffix(name, suffix); cut {
				prefix, ok = p+"-", true
			}
		}
	}
	if found := parseHostPorts(value); len(found) > 0 {
		return found
	}
	if !ok {
		return nil
	}
	host, given, valid := splitHostPort(value)
	if !valid || !isPeer(host) {
		return nil
	}
	if given == 0 {
		given = port(prefix)
	}
	if given == 0 {
		given = clients[program]
	}
	if given == 0 {
		given = pairedPort(upper, "", nil)
	}
	return []endpoint{{host: host, port: given, proto: "tcp", text: "--" + name + " " + joinHostPort(host, given)}}
}

// quietFlag names flags whose value looks like host:port and is not one.
func quietFlag(name string) bool {
	switch name {
	case "u", "user", "chown", "p", "publish", "v", "volume", "l", "listen", "b", "bind", "name", "t", "tag", "image", "e":
		return true
	}
	upper := strings.ToUpper(name)
	return listenWord(upper) || secretKey(upper)
}

// splitFlag splits "--name=value", "--name" and "-n".
func splitFlag(word string) (name, value string, joined bool) {
	if len(word) < 2 || word[0] != '-' {
		return "", "", false
	}
	word = strings.TrimLeft(word, "-")
	name, value, joined = strings.Cut(word, "=")
	return strings.ToLower(name), value, joined
}

func isClient(program string) bool {
	_, ok := clients[program]
	return ok
}

func base(path string) string {
	return path[strings.LastIndexByte(path, '/')+1:]
}
