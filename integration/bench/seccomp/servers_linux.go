package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/integration/observe"
)

// server is one of the six that the literature counts.
type server struct {
	name     string
	packages []string
	setup    string
	argv     []string
	env      []string
}

var usual = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}

// six have the configuration that their packages bring; each in a root of its
// own, as an image has it.
var six = []server{
	{name: "nginx", packages: []string{"nginx"}, argv: []string{"/usr/sbin/nginx", "-g", "daemon off;"},
		setup: `sed -i 's/^\s*client_max_body_size.*//; s/http {/http {\n\tclient_max_body_size 64m;/' /etc/nginx/nginx.conf`},
	{name: "redis", packages: []string{"redis-server"}, argv: []string{"/usr/bin/redis-server", "/etc/redis/redis.conf", "--daemonize", "no", "--supervised", "no"}},
	{name: "memcached", packages: []string{"memcached"}, argv: []string{"/usr/bin/memcached", "-u", "memcache", "-l", "127.0.0.1", "-I", "8m"}},
	{name: "apache", packages: []string{"apache2"}, argv: []string{"/usr/sbin/apache2", "-D", "FOREGROUND"},
		env: []string{"APACHE_CONFDIR=/etc/apache2", "APACHE_RUN_DIR=/var/run/apache2", "APACHE_PID_FILE=/var/run/apache2/apache2.pid", "APACHE_RUN_USER=www-data",
			"APACHE_RUN_GROUP=www-data", "APACHE_LOCK_DIR=/var/lock/apache2", "APACHE_LOG_DIR=/var/log/apache2", "LANG=C"},
		setup: `mkdir -p /var/run/apache2 /var/lock/apache2; echo ServerName localhost > /etc/apache2/conf-enabled/name.conf`},
	{name: "lighttpd", packages: []string{"lighttpd"}, argv: []string{"/usr/sbin/lighttpd", "-D", "-f", "/etc/lighttpd/lighttpd.conf"},
		setup: `mkdir -p /run/lighttpd; chown www-data /run/lighttpd`},
	{name: "bind", packages: []string{"bind9"}, argv: []string{"/usr/sbin/named", "-f", "-u", "bind"}, setup: `mkdir -p /run/named; chown bind /run/named`},
}

// drivers use the servers for their whole life: start, load with connections
// kept open and with large bodies, reload, log rotation, signals, stop.
var drivers = map[string]observe.Driver{
	"nginx":     driveNginx,
	"redis":     driveRedis,
	"memcached": driveMemcached,
	"apache":    driveApache,
	"lighttpd":  driveLighttpd,
	"bind":      driveBind,
	"hello":     driveHello,
	"postgres":  drivePostgres,
}

// await waits until a port takes connections.
func await(ctx context.Context, network, addr string) error {
	for {
		c, err := net.DialTimeout(network, addr, time.Second)
		if err == nil {
			return c.Close()
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w", addr, err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// steps runs what is to be done one after the other.
func steps(all ...func() error) error {
	for _, f := range all {
		if err := f(); err != nil {
			return err
		}
	}
	return nil
}

// web uses a web server: small files with connections kept open, conditional
// and ranged requests, requests that are wrong, a large body up and a large file down.
func web(ctx context.Context, s *observe.Server, addr, docs string) error {
	if err := await(ctx, "tcp", addr); err != nil {
		return err
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<18)
	if err := os.MkdirAll(filepath.Join(s.Root, docs, "dir"), 0o755); err != nil {
		return err
	}
	for name, data := range map[string][]byte{"big.bin": big, "small.html": []byte("<p>x"), "dir/a": nil} {
		if err := os.WriteFile(filepath.Join(s.Root, docs, name), data, 0o644); err != nil {
			return err
		}
	}
	client := &http.Client{Timeout: 20 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	defer client.CloseIdleConnections()
	do := func(method, path string, body []byte, header ...string) (int, error) {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, bytes.NewReader(body))
		if err != nil {
			return 0, err
		}
		for i := 0; i+1 < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := client.Do(req)
		if err != nil {
			return 0, err
		}
		defer resp.Body.Close()
		_, err = io.Copy(io.Discard, resp.Body)
		return resp.StatusCode, err
	}
	for range 50 {
		if code, err := do("GET", "/small.html", nil); err != nil || code != 200 {
			return fmt.Errorf("GET: %d, %w", code, err)
		}
	}
	if code, err := do("GET", "/big.bin", nil, "Accept-Encoding", "identity"); err != nil || code != 200 {
		return fmt.Errorf("GET a large file: %d, %w", code, err)
	}
	for _, r := range []struct {
		method, path string
		body         []byte
		header       []string
	}{
		{"HEAD", "/big.bin", nil, nil},
		{"GET", "/", nil, nil},
		{"GET", "/dir", nil, nil},
		{"GET", "/dir/", nil, nil},
		{"GET", "/missing", nil, nil},
		{"GET", "/big.bin", nil, []string{"Range", "bytes=100-200"}},
		{"GET", "/small.html", nil, []string{"Accept-Encoding", "gzip", "If-Modified-Since", "Mon, 02 Jan 2006 15:04:05 GMT"}},
		{"GET", "/small.html", nil, []string{"Connection", "close"}},
		{"POST", "/small.html", big, nil},
		{"PUT", "/new", []byte("x"), nil},
		{"OPTIONS", "/", nil, nil},
		{"GET", "/server-status", nil, nil},
		{"GET", "/../../etc/passwd", nil, nil},
	} { // whatever the answer is
		_, _ = do(r.method, r.path, r.body, r.header...)
	}
	// Not HTTP, and a client that goes away in the middle.
	for _, text := range []string{"\x16\x03\x01 nonsense\r\n\r\n", "GET /big.bin HTTP/1.1\r\nHost: x\r\n\r\n", "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\nabc"} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		_, _ = c.Write([]byte(text))
		pause(ctx, 50*time.Millisecond)
		c.Close()
	}
	done := make(chan error, 4)
	for range cap(done) {
		go func() {
			var err error
			for range 50 {
				if _, e := do("GET", "/small.html", nil); e != nil {
					err = e
				}
			}
			done <- err
		}()
	}
	var err error
	for range cap(done) {
		err = errors.Join(err, <-done)
	}
	return err
}

func driveNginx(ctx context.Context, s *observe.Server) error {
	const addr, docs = "127.0.0.1:80", "var/www/html"
	use := func() error { return web(ctx, s, addr, docs) }
	to := func(sig syscall.Signal) func() error {
		return func() error { err := s.Signal(sig); pause(ctx, time.Second); return err }
	}
	rotate := func() error {
		return os.Rename(filepath.Join(s.Root, "var/log/nginx/access.log"), filepath.Join(s.Root, "var/log/nginx/access.log.1"))
	}
	health := func() error { return healthy(ctx, s) }
	return steps(use, health, to(syscall.SIGHUP), use, rotate, to(syscall.SIGUSR1), use, health, to(syscall.SIGQUIT))
}

func driveApache(ctx context.Context, s *observe.Server) error {
	const addr, docs = "127.0.0.1:80", "var/www/html"
	use := func() error { return web(ctx, s, addr, docs) }
	to := func(sig syscall.Signal) func() error {
		return func() error { err := s.Signal(sig); pause(ctx, 1500*time.Millisecond); return err }
	}
	rotate := func() error {
		return os.Rename(filepath.Join(s.Root, "var/log/apache2/access.log"), filepath.Join(s.Root, "var/log/apache2/access.log.1"))
	}
	return steps(use, rotate, to(syscall.SIGUSR1), use, to(syscall.SIGHUP), use, to(syscall.SIGWINCH), func() error { return ignoreGone(s.Signal(syscall.SIGTERM)) })
}

func driveLighttpd(ctx context.Context, s *observe.Server) error {
	const addr, docs = "127.0.0.1:80", "var/www/html"
	use := func() error { return web(ctx, s, addr, docs) }
	to := func(sig syscall.Signal) func() error {
		return func() error { err := s.Signal(sig); pause(ctx, time.Second); return err }
	}
	return steps(use, to(syscall.SIGHUP), use, to(syscall.SIGUSR1), use, to(syscall.SIGINT))
}

func driveHello(ctx context.Context, s *observe.Server) error {
	const addr = "127.0.0.1:8080"
	use := func() error {
		if err := await(ctx, "tcp", addr); err != nil {
			return err
		}
		client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8}}
		defer client.CloseIdleConnections()
		done := make(chan error, 8)
		for range cap(done) {
			go func() {
				var err error
				for range 200 {
					resp, e := client.Post("http://"+addr+"/", "text/plain", strings.NewReader(strings.Repeat("x", 5000)))
					if e != nil {
						err = e
						continue
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				done <- err
			}()
		}
		var err error
		for range cap(done) {
			err = errors.Join(err, <-done)
		}
		return err
	}
	return steps(use, func() error { pause(ctx, time.Second); return nil }, use, func() error { return s.Signal(syscall.SIGTERM) })
}

// talk sends lines and wants each answered with something that begins so.
func talk(addr string, pairs ...string) error {
	c, err := net.DialTimeout("tcp", addr, 5*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	r := bufio.NewReader(c)
	for i := 0; i+1 < len(pairs); i += 2 {
		if err := c.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			return err
		}
		if _, err := io.WriteString(c, pairs[i]+"\r\n"); err != nil {
			return fmt.Errorf("%.60q: %w", pairs[i], err)
		}
		line, err := r.ReadString('\n')
		if err != nil {
			return fmt.Errorf("%.60q: %w", pairs[i], err)
		}
		if !strings.HasPrefix(line, pairs[i+1]) {
			return fmt.Errorf("%.60q: answer %.80q, want %q", pairs[i], line, pairs[i+1])
		}
		if size := 0; pairs[i+1] == "$" {
			if _, err := fmt.Sscanf(line, "$%d", &size); err == nil && size >= 0 {
				if _, err := io.CopyN(io.Discard, r, int64(size)+2); err != nil {
					return fmt.Errorf("%.60q: %w", pairs[i], err)
				}
			}
		} else if more := pairs[i+1]; more == "" || more == "*" || more == "STAT" { // nobody knows how long the answer is
			if err := c.SetDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, r)
		}
	}
	return nil
}

func driveRedis(ctx context.Context, s *observe.Server) error {
	const addr = "127.0.0.1:6379"
	if err := await(ctx, "tcp", addr); err != nil {
		return err
	}
	say := func(pairs ...string) func() error {
		return func() error { err := talk(addr, pairs...); pause(ctx, 700*time.Millisecond); return err }
	}
	load := func() error {
		var pairs []string
		for i := range 300 {
			pairs = append(pairs, fmt.Sprintf("SET k%d v%s", i, strings.Repeat("v", i*20)), "+OK", fmt.Sprintf("GET k%d", i), "$")
		}
		return talk(addr, pairs...)
	}
	return steps(load, func() error { return healthy(ctx, s) },
		say("EVAL \"return redis.call('SET','l','1')\" 0", "+OK", "LPUSH q a b c", ":3", "EXPIRE k1 1", ":1", "INFO", "$", "CLIENT LIST", "$", "PUBLISH ch x", ":0", "SUBSCRIBE ch", "*"),
		say("CONFIG SET appendonly yes", "+OK"), load,
		say("BGREWRITEAOF", "+Background"), say("BGSAVE", "+Background"), say("SAVE", "+OK"),
		say("CONFIG SET save \"1 1\"", "+OK", "SET z 1", "+OK"), func() error { pause(ctx, 2500*time.Millisecond); return nil },
		say("CONFIG SET maxmemory 4mb", "+OK", "MEMORY DOCTOR", "$", "FLUSHALL ASYNC", "+OK", "DEBUG SLEEP 0", "-", "SCRIPT FLUSH", "+OK", "REPLICAOF 127.0.0.1 9", "+OK"),
		say("REPLICAOF NO ONE", "+OK", "CONFIG REWRITE", "", "SLOWLOG GET", "*", "nonsense", "-ERR"),
		func() error { return s.Signal(syscall.SIGTERM) })
}

func driveMemcached(ctx context.Context, s *observe.Server) error {
	const addr = "127.0.0.1:11211"
	if err := await(ctx, "tcp", addr); err != nil {
		return err
	}
	load := func() error {
		var pairs []string
		for i := range 200 {
			v := strings.Repeat("v", i*500)
			pairs = append(pairs, fmt.Sprintf("set k%d 0 0 %d\r\n%s", i, len(v), v), "STORED")
		}
		pairs = append(pairs, "touch k1 10", "", "incr k1 1", "", "delete k2", "", "mg k3 v", "", "stats", "STAT", "version", "VERSION", "verbosity 1", "OK", "nonsense", "ERROR")
		return talk(addr, pairs...)
	}
	many := func() error {
		done := make(chan error, 8)
		for range cap(done) {
			go func() { done <- load() }()
		}
		var err error
		for range cap(done) {
			err = errors.Join(err, <-done)
		}
		return err
	}
	big := strings.Repeat("b", 900<<10) // below the limit without -I
	return steps(load, many,
		func() error {
			return talk(addr, fmt.Sprintf("set big 0 0 %d\r\n%s", len(big), big), "STORED", "flush_all", "OK", "stats slabs", "", "slabs automove 1", "")
		},
		func() error { pause(ctx, 2*time.Second); return nil }, load,
		func() error { return s.Signal(syscall.SIGHUP) }, func() error { pause(ctx, time.Second); return nil },
		func() error { err := s.Signal(syscall.SIGTERM); return ignoreGone(err) })
}

// healthy asks the image's own health check until it is content.
func healthy(ctx context.Context, s *observe.Server) error {
	if s.Health == nil {
		return nil
	}
	var err error
	for range 60 {
		if _, err = s.Run(ctx, true, s.Health...); err == nil {
			return nil
		}
		pause(ctx, 500*time.Millisecond)
	}
	return fmt.Errorf("health check: %w", err)
}

func drivePostgres(ctx context.Context, s *observe.Server) error {
	if err := await(ctx, "tcp", "127.0.0.1:5432"); err != nil {
		return err
	}
	if err := healthy(ctx, s); err != nil {
		return err
	}
	for _, statement := range strings.Split(`create table t as select g as a, md5(g::text) as b from generate_series(1, 100000) g
create index on t (b)
select count(*) from t x join t y using (a)
set work_mem = '64kB'; select b from t order by b desc limit 1
set max_parallel_workers_per_gather = 2; set parallel_setup_cost = 0; set parallel_tuple_cost = 0; set min_parallel_table_scan_size = 0; select count(*) from t
set jit_above_cost = 0; select sum(a) from t
create extension if not exists pgcrypto; select digest('x', 'sha256')
do $$ begin perform 1; end $$
select pg_reload_conf()
select pg_rotate_logfile()
select pg_switch_wal()
checkpoint
vacuum analyze
copy t to '/tmp/out.csv'
listen x; notify x
create database other
drop database other
select pg_sleep(0.1)
update t set b = 'x' where a < 1000
nonsense`, "\n") {
		_, err := s.Run(ctx, false, "psql", "-h", "127.0.0.1", "-U", "postgres", "-d", "app", "-c", statement)
		if err != nil && statement != "nonsense" {
			return err
		}
	}
	return steps(func() error { return s.Signal(syscall.SIGHUP) }, func() error { pause(ctx, time.Second); return healthy(ctx, s) },
		func() error { return s.Signal(syscall.SIGINT) })
}

// ignoreGone: a signal to a server that has ended already is no error.
func ignoreGone(err error) error {
	if errors.Is(err, syscall.ESRCH) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

// query is one question to a name server.
func query(id uint16, name string, kind uint16) []byte {
	b := binary.BigEndian.AppendUint16(nil, id)
	b = append(b, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0)
	for label := range strings.SplitSeq(name, ".") {
		b = append(append(b, byte(len(label))), label...)
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint16(b, 1)
}

func driveBind(ctx context.Context, s *observe.Server) error {
	const addr = "127.0.0.1:53"
	if err := await(ctx, "tcp", addr); err != nil {
		return err
	}
	load := func() error {
		c, err := net.Dial("udp", addr)
		if err != nil {
			return err
		}
		defer c.Close()
		var b [4096]byte
		for i := range 100 {
			name, kind := "localhost", uint16(1)
			switch i % 10 {
			case 7:
				name, kind = "1.0.0.127.in-addr.arpa", 12
			case 8:
				kind = 6
			}
			if _, err := c.Write(query(uint16(i), name, kind)); err != nil {
				return err
			}
			if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			if _, err := c.Read(b[:]); err != nil {
				return fmt.Errorf("query: %w", err)
			}
		}
		// A recursion that ends at once: the namespace has no way out.
		_, _ = c.Write(query(999, "example.invalid", 1))
		t, err := net.Dial("tcp", addr)
		if err != nil {
			return err
		}
		defer t.Close()
		for i := range 20 {
			q := query(uint16(i), "localhost", 255)
			if _, err := t.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
				return err
			}
			if err := t.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
				return err
			}
			if _, err := t.Read(b[:]); err != nil {
				return fmt.Errorf("query over TCP: %w", err)
			}
		}
		_, _ = t.Write([]byte{0, 3, 1, 2, 3})
		return nil
	}
	return steps(load, func() error { return s.Signal(syscall.SIGHUP) }, func() error { pause(ctx, 2*time.Second); return nil }, load,
		func() error { return s.Signal(syscall.SIGTERM) })
}
