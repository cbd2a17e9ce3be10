package integration

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/breakin"
	"github.com/declarun/declarun/shim/record"
)

func fields(s string) []string { return strings.Fields(s) }

// server is one of the images that must work unhindered and resist.
type server struct {
	image   string
	options []string
	health  bool
	// exercise does what clients and operators do, and fails the test if something does not work.
	exercise func(t *testing.T, l *lab, id, addr string)
	// process matches the title of one of the server's processes that waits in a system call.
	process string
	port    uint16
	// scratch is a file the server may write; forbidden is one that its user could
	// write if the root were not read-only. Empty: there is none.
	scratch, forbidden string
	stop               string // what its log says when it stops gracefully
}

var servers = map[string]server{
	"postgres": {image: "postgres", options: []string{"-e", "POSTGRES_PASSWORD=test"}, health: true, exercise: usePostgres,
		process: "checkpointer", port: 5432, scratch: "/var/lib/postgresql/data/x", forbidden: "/etc/postgresql/x", stop: "database system is shut down"},
	"nginx": {image: "nginx", health: true, exercise: useNginx, process: "nginx: worker", port: 80, scratch: "/var/lib/nginx/body/x",
		forbidden: "/usr/share/nginx/html/x"},
	"redis": {image: "redis", health: true, exercise: useRedis, process: "redis-server", port: 6379, scratch: "/data/x", forbidden: "/etc/redis/x",
		stop: "bye bye"},
	"hello": {image: "hello", exercise: useHello, process: "/server", port: 8080, forbidden: "/x", stop: "stopped"},
}

func TestServersWorkUnhinderedAndIntrudersAreStopped(t *testing.T) {
	l := open(t)
	for name, s := range servers {
		t.Run(name, func(t *testing.T) {
			id := l.container(t, append(append([]string{"--runtime", "declarun"}, s.options...), l.images[s.image])...)
			l.ready(t, id, s)
			s.exercise(t, l, id, l.address(t, id))
			l.run(t, "restart", id)
			l.ready(t, id, s)
			s.exercise(t, l, id, l.address(t, id))
			l.quiet(t, id, "in use, after a restart too")
			if t.Failed() {
				return
			}
			l.attack(t, id, s)
			l.run(t, "stop", "-t", "20", id)
			if s.stop != "" {
				if logs, err := l.docker.CLI(context.Background(), "logs", "--tail", "30", id).CombinedOutput(); err != nil || !strings.Contains(string(logs), s.stop) {
					t.Errorf("no graceful stop: %q is not in its last words (%v):\n%s", s.stop, err, logs)
				}
			}
		})
	}
}

func (l *lab) address(t *testing.T, id string) string {
	t.Helper()
	addr, err := l.docker.Address(context.Background(), id, "")
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

func (l *lab) ready(t *testing.T, id string, s server) {
	t.Helper()
	if s.health {
		l.healthy(t, id)
		return
	}
	addr := l.address(t, id)
	if !await(30*time.Second, func() bool {
		return l.client("curl", "-fsS", "-m", "2", fmt.Sprintf("http://%s:%d/", addr, s.port)) == nil
	}) {
		t.Fatalf("it does not serve on %s:%d", addr, s.port)
	}
}

// client runs a program in the engine's network namespace.
func (l *lab) client(name string, args ...string) error {
	_, err := l.clientOutput(name, args...)
	return err
}

func (l *lab) clientOutput(name string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var out bytes.Buffer
	cmd := l.docker.Command(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out.String())
	}
	return out.String(), nil
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
}

func usePostgres(t *testing.T, l *lab, id, addr string) {
	client := func(program string, args ...string) error {
		_, err := l.try(append([]string{"run", "--rm", "-e", "PGPASSWORD=test", "--entrypoint", program, l.images["postgres"], "-h", addr, "-U", "postgres"}, args...)...)
		return err
	}
	must(t, "pgbench -i", client("pgbench", "-i", "-q", "app"))
	must(t, "pgbench", client("pgbench", "-c", "4", "-t", "200", "app"))
	for _, statement := range []string{
		"SELECT pg_reload_conf()", "CHECKPOINT", "VACUUM ANALYZE", "SELECT pg_switch_wal()",
		"CREATE TABLE IF NOT EXISTS big AS SELECT generate_series(1,200000) AS n", "SELECT count(*) FROM big a JOIN big b USING (n)",
		"CREATE INDEX ON big (n)", "SET work_mem='64kB'; SELECT n FROM big ORDER BY n DESC LIMIT 1", "DROP TABLE big",
		"SELECT to_tsvector('english', 'the quick brown foxes')", "CREATE EXTENSION IF NOT EXISTS pgcrypto; SELECT digest('x','sha256')",
		"DO $$ BEGIN PERFORM 1; END $$", "SET max_parallel_workers_per_gather=2; SET parallel_setup_cost=0; SET parallel_tuple_cost=0; SET min_parallel_table_scan_size=0; SELECT count(*) FROM pgbench_accounts",
		"COPY pgbench_branches TO '/var/lib/postgresql/data/out.csv'", "SELECT pg_rotate_logfile()", "CREATE DATABASE other", "DROP DATABASE other",
	} {
		_, err := l.try("exec", id, "psql", "-U", "postgres", "-d", "app", "-c", statement)
		must(t, statement, err)
	}
	_, err := l.try("exec", id, "bash", "-c", "pg_dump -U postgres app | gzip -c | wc -c")
	must(t, "an operator's pg_dump through a shell", err)
}

func useNginx(t *testing.T, l *lab, id, addr string) {
	url := "http://" + addr + "/"
	must(t, "GET", l.client("curl", "-fsS", "-o", "/dev/null", url))
	must(t, "load", l.client("ab", "-q", "-n", "2000", "-c", "8", url))
	must(t, "keep-alive load", l.client("ab", "-q", "-k", "-n", "2000", "-c", "8", url))
	if out, err := l.clientOutput("curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", "--data-binary", "@/etc/services", url+"nothing"); err != nil || (out != "404" && out != "405") {
		t.Errorf("a POST with a body gave %q, %v", out, err)
	}
	for _, signal := range []string{"HUP", "USR1", "HUP"} {
		l.run(t, "kill", "--signal", signal, id)
		time.Sleep(500 * time.Millisecond)
		must(t, "GET after SIG"+signal, l.client("curl", "-fsS", "-o", "/dev/null", url))
	}
	_, err := l.try("exec", id, "nginx", "-t")
	must(t, "an operator's nginx -t", err)
	_, err = l.try("exec", id, "nginx", "-s", "reload")
	must(t, "an operator's nginx -s reload", err)
}

func useRedis(t *testing.T, l *lab, id, addr string) {
	cli := func(args ...string) error {
		out, err := l.clientOutput("redis-cli", append([]string{"-h", addr}, args...)...)
		if err == nil && strings.HasPrefix(out, "ERR") {
			err = fmt.Errorf("%s", out)
		}
		return err
	}
	must(t, "benchmark", l.client("redis-benchmark", "-q", "-h", addr, "-n", "5000", "-c", "20", "-t", "set,get,lpush,lrange_100,mset"))
	for _, command := range [][]string{
		{"SET", "k", "v"}, {"CONFIG", "SET", "appendonly", "yes"}, {"BGREWRITEAOF"}, {"EVAL", "return redis.call('GET', KEYS[1])", "1", "k"},
		{"SAVE"}, {"CLIENT", "LIST"}, {"MEMORY", "DOCTOR"}, {"CONFIG", "RESETSTAT"}, {"INFO"}, {"LATENCY", "DOCTOR"},
		{"FLUSHALL", "ASYNC"}, {"CONFIG", "SET", "appendonly", "no"},
	} {
		must(t, strings.Join(command, " "), cli(command...))
		time.Sleep(100 * time.Millisecond)
	}
	time.Sleep(time.Second)
	must(t, "BGSAVE", cli("BGSAVE"))
	time.Sleep(time.Second)
	_, err := l.try("exec", id, "redis-cli", "ping")
	must(t, "an operator's redis-cli", err)
	_, err = l.try("exec", id, "sh", "-c", "ls -l /data && df -h / | tail -1")
	must(t, "an operator's shell", err)
}

func useHello(t *testing.T, l *lab, id, addr string) {
	url := fmt.Sprintf("http://%s:8080/", addr)
	must(t, "load", l.client("ab", "-q", "-n", "3000", "-c", "16", url))
	must(t, "keep-alive load", l.client("ab", "-q", "-k", "-n", "3000", "-c", "16", url))
	l.run(t, "pause", id)
	l.run(t, "unpause", id)
	must(t, "after pause and unpause", l.client("curl", "-fsS", "-o", "/dev/null", url))
}

// victim finds the host's process ID of one of the server's processes.
func (l *lab) victim(t *testing.T, id, title string) int {
	t.Helper()
	out := l.run(t, "top", id, "-eo", "pid,args")
	for line := range strings.Lines(out) {
		f := strings.Fields(line)
		if len(f) > 1 && strings.Contains(line, title) && f[0] != "PID" {
			pid, err := strconv.Atoi(f[0])
			if err == nil {
				return pid
			}
		}
	}
	t.Fatalf("no process %q in:\n%s", title, out)
	return 0
}

// attack breaks in from inside the server, in every dimension.
func (l *lab) attack(t *testing.T, id string, s server) {
	time.Sleep(2 * time.Second) // processes that a reload replaced are gone then
	pid := l.victim(t, id, s.process)
	outside := l.outside(t)
	attacks := []struct {
		name      string
		dimension record.Dimension
		action    string
		origin    string // a word of the origin of what is declared; empty: nothing declares it
		do        func() error
	}{
		{"an undeclared system call", record.Syscalls, "chroot", "", func() error { return breakin.Chroot(pid) }},
		{"a listening port nobody exposed", record.Network, "listen", "EXPOSE", func() error { return breakin.Listen(pid, 4444) }},
		{"a connection to a host it has no business with", record.Network, "connect", "", func() error { return breakin.Connect(pid, outside) }},
	}
	if s.image != "hello" { // an empty image has no shell
		attacks = append(attacks, struct {
			name      string
			dimension record.Dimension
			action    string
			origin    string
			do        func() error
		}{"a shell", record.Processes, "execve", "", func() error { return breakin.Shell(pid, "/bin/sh") }})
	}
	type attack = struct {
		name      string
		dimension record.Dimension
		action    string
		origin    string
		do        func() error
	}
	if s.scratch != "" {
		attacks = append(attacks, attack{"a dropped executable", record.Processes, "execve", "", func() error { return breakin.Drop(pid, s.scratch) }})
	}
	attacks = append(attacks, attack{"a write outside its data", record.Storage, "write", "", func() error { return breakin.Write(pid, s.forbidden) }})
	for _, a := range attacks {
		t.Run(a.name, func(t *testing.T) {
			before := time.Now()
			if err := a.do(); !breakin.Refused(err) {
				t.Errorf("not refused: %v", err)
			} else {
				t.Logf("the process got: %v", err)
			}
			var found record.Event
			if !await(5*time.Second, func() bool {
				for _, e := range l.events(t, id) {
					if !e.Time.Before(before) && e.Dimension == a.dimension && e.Action == a.action {
						found = e
						return true
					}
				}
				return false
			}) {
				t.Fatalf("no event %s %s", a.dimension, a.action)
			}
			if found.Verdict != record.Denied || found.Mode != record.Enforce {
				t.Errorf("event says verdict %q, mode %q; want denied, enforce", found.Verdict, found.Mode)
			}
			if found.Remedy == "" || found.Reason == "" || found.Mechanism == "" {
				t.Errorf("event lacks reason, remedy or mechanism: %+v", found)
			}
			if a.origin != "" && !strings.Contains(fmt.Sprint(found.Origins), a.origin) {
				t.Errorf("event's origins %v do not name %s", found.Origins, a.origin)
			}
			if found.Process == nil || found.Process.PID == 0 {
				if a.dimension != record.Network {
					t.Errorf("event names no process: %+v", found)
				}
			}
		})
	}
}

// outside gives the address of a host that is on the network and serves, but
// that no container has a declared reason to talk to.
func (l *lab) outside(t *testing.T) netip.AddrPort {
	t.Helper()
	id := l.container(t, l.images["hello"])
	addr, err := netip.ParseAddr(l.address(t, id))
	if err != nil {
		t.Fatal(err)
	}
	if !await(20*time.Second, func() bool { return l.client("curl", "-fsS", "-m", "2", fmt.Sprintf("http://%s:8080/", addr)) == nil }) {
		t.Fatal("the outside host does not serve")
	}
	return netip.AddrPortFrom(addr, 8080)
}
