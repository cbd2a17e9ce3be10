// Command demo shows declarun's main job on a real database: a PostgreSQL
// image built from an ordinary Dockerfile serves clients under enforcement, and
// an intruder inside the database server is stopped in every dimension.
//
// It ends with a status other than 0 if one attack got through or one
// legitimate action was refused, and leaves nothing running behind.
package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/integration/breakin"
	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/shim/record"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

type demo struct {
	docker  *engine.Docker
	install *engine.Install
	image   string
	outside string // address of a host that the database has no business with

	rows []row
}

type row struct {
	what, outcome, by, declares string
	ms                          string
	good                        bool
}

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("starting a container engine needs root: try sudo make demo")
	}
	dir, err := os.MkdirTemp("", "declarun-demo-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree, err := engine.Tree()
	if err != nil {
		return err
	}
	d := &demo{}
	step("build declarun")
	if d.install, err = engine.Build(ctx, dir, `report-writes = "always"`); err != nil {
		return err
	}
	step("build a PostgreSQL image from an ordinary Dockerfile (a base system from Debian's packages the first time)")
	data := filepath.Join(engine.Cache(), "demo-data")
	if err := d.build(ctx, tree, dir, data); err != nil {
		return err
	}
	step("start a private Docker that knows the runtime \"declarun\"")
	if d.docker, err = engine.Start(ctx, engine.Options{Dir: dir, Data: data, Network: engine.Isolated, Bin: d.install.Bin}); err != nil {
		return err
	}
	defer func() {
		if e := d.end(); e != nil && err == nil {
			err = e
		}
	}()
	if err := d.serve(ctx); err != nil {
		return err
	}
	if err := d.breakIn(ctx); err != nil {
		return err
	}
	d.table()
	for _, r := range d.rows {
		if !r.good {
			return fmt.Errorf("%s: %s", r.what, r.outcome)
		}
	}
	fmt.Print(`
Your own image, with Docker:
  make install                          # declarun and declarund to /usr/local/bin
  declarun install docker               # adds the runtime to daemon.json, reloads, never restarts
  declarun plan --image IMAGE           # what it will be allowed to do, and why
  docker run --runtime=declarun IMAGE
  declarun watch                        # what was refused, as it happens
  declarun explain                      # why, and what declares the nearest allowed thing
`)
	return nil
}

func step(text string) { fmt.Printf("• %s\n", text) }

func (d *demo) build(ctx context.Context, tree, dir, data string) (err error) {
	builder, err := engine.Start(ctx, engine.Options{Dir: filepath.Join(dir, "build"), Data: data, Network: engine.OnHost})
	if err != nil {
		return err
	}
	defer func() {
		if e := builder.Stop(); err == nil {
			err = e
		}
	}()
	if err := builder.Base(ctx); err != nil {
		return err
	}
	d.image, err = builder.Image(ctx, "postgres", filepath.Join(tree, "integration/images/postgres"))
	return err
}

func (d *demo) end() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _ = d.docker.Run(ctx, "rm", "-f", "-v", "db", "outside", "client")
	_, _ = d.docker.Run(ctx, "network", "rm", "demo")
	err := d.docker.Stop()
	if e := d.install.Stop(); err == nil {
		err = e
	}
	return err
}

// legitimate does something that the database is there for. It must work.
func (d *demo) legitimate(what string, do func() error) {
	err := do()
	r := row{what: what, outcome: "works", good: err == nil}
	if err != nil {
		r.outcome = "REFUSED: " + firstLine(err.Error())
	}
	d.rows = append(d.rows, r)
	mark := "✓"
	if err != nil {
		mark = "✗ " + firstLine(err.Error())
	}
	fmt.Printf("    %s %s\n", what, mark)
}

func firstLine(s string) string {
	if i := strings.IndexByte(s, '\n'); i >= 0 {
		return s[:i]
	}
	return s
}

func (d *demo) serve(ctx context.Context) error {
	step("docker run --runtime=declarun: first start, with initialisation, under enforcement")
	if _, err := d.docker.Run(ctx, "network", "create", "--internal", "demo"); err != nil {
		return err
	}
	if _, err := d.docker.Run(ctx, "run", "-d", "--name", "outside", "--network", "demo", "-e", "POSTGRES_PASSWORD=outside", d.image); err != nil {
		return err
	}
	if _, err := d.docker.Run(ctx, "run", "-d", "--name", "db", "--runtime", "declarun", "--network", "demo", "-e", "POSTGRES_PASSWORD=demo", d.image); err != nil {
		return err
	}
	d.legitimate("first start: initdb, privilege drop, health check", func() error { return d.healthy(ctx, "db") })
	var err error
	if d.outside, err = d.docker.Address(ctx, "outside", "demo"); err != nil {
		return err
	}
	client := func(args ...string) error {
		_, err := d.docker.Run(ctx, append([]string{"run", "--rm", "--name", "client", "--network", "demo", "-e", "PGPASSWORD=demo", "--entrypoint"}, args...)...)
		return err
	}
	d.legitimate("pgbench -i, from another container", func() error {
		return client("pgbench", d.image, "-h", "db", "-U", "postgres", "-i", "-q", "app")
	})
	d.legitimate("pgbench: 4 clients, 2000 transactions", func() error {
		return client("pgbench", d.image, "-h", "db", "-U", "postgres", "-c", "4", "-t", "500", "app")
	})
	d.legitimate("docker exec db psql", func() error { _, err := d.sql(ctx, "CHECKPOINT"); return err })
	d.legitimate("pg_reload_conf()", func() error { _, err := d.sql(ctx, "SELECT pg_reload_conf()"); return err })
	d.legitimate("docker restart", func() error {
		if _, err := d.docker.Run(ctx, "restart", "db"); err != nil {
			return err
		}
		return d.healthy(ctx, "db")
	})
	events, err := engine.Events(d.install.Log)
	if err != nil {
		return err
	}
	for _, e := range events {
		if e.Verdict == record.Denied {
			d.rows = append(d.rows, row{what: "nothing legitimate is refused", outcome: fmt.Sprintf("REFUSED %s %s %s", e.Dimension, e.Action, e.Object)})
		}
	}
	return nil
}

func (d *demo) healthy(ctx context.Context, name string) error {
	for range 240 {
		out, err := d.docker.Run(ctx, "inspect", "--format", "{{.State.Status}} {{.State.Health.Status}}", name)
		if err != nil {
			return err
		}
		switch out {
		case "running healthy":
			return nil
		case "running starting", "running unhealthy", "created starting":
		default:
			logs, _ := d.docker.CLI(ctx, "logs", "--tail", "8", name).CombinedOutput()
			return fmt.Errorf("container is %s; its last words: %s", out, strings.ReplaceAll(strings.TrimSpace(string(logs)), "\n", " | "))
		}
		time.Sleep(250 * time.Millisecond)
	}
	logs, _ := d.docker.CLI(ctx, "logs", "--tail", "8", name).CombinedOutput()
	return fmt.Errorf("not healthy after 60 s; its last words: %s", strings.ReplaceAll(strings.TrimSpace(string(logs)), "\n", " | "))
}

// sql runs a statement as the database's superuser, the way an attacker does
// who has found an injection in the application.
func (d *demo) sql(ctx context.Context, statement string) (string, error) {
	return d.docker.Run(ctx, "exec", "db", "psql", "-U", "postgres", "-d", "app", "-At", "-v", "ON_ERROR_STOP=1", "-c", statement)
}

var backend = regexp.MustCompile(`(?m)^\s*(\d+)\s+postgres: (?:\d+/\w+: )?checkpointer`)

// server gives the host's process ID of one of the database's own processes.
func (d *demo) server(ctx context.Context) (int, error) {
	out, err := d.docker.Run(ctx, "top", "db", "-eo", "pid,args")
	if err != nil {
		return 0, err
	}
	m := backend.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("find a server process in:\n%s", out)
	}
	return strconv.Atoi(m[1])
}

func (d *demo) breakIn(ctx context.Context) error {
	step("the break-in: SQL as superuser, and injected machine code in a server process")
	pid, err := d.server(ctx)
	if err != nil {
		return err
	}
	outside, err := netip.ParseAddr(d.outside)
	if err != nil {
		return err
	}
	const data = "/var/lib/postgresql/data"
	if _, err := d.sql(ctx, "CREATE EXTENSION IF NOT EXISTS dblink; CREATE TABLE IF NOT EXISTS loot (line text)"); err != nil {
		return err
	}
	statement := func(s string) func() error { return func() error { _, err := d.sql(ctx, s); return err } }
	attacks := []struct {
		what      string
		dimension record.Dimension
		action    string
		do        func() error
	}{
		{"system call: chroot(\"/\") from injected code", record.Syscalls, "chroot", func() error { return breakin.Chroot(pid) }},
		{"shell: COPY loot FROM PROGRAM 'id'", record.Processes, "execve", statement("COPY loot FROM PROGRAM 'id'")},
		{"dropped library: lo_export, then LOAD", record.Storage, "drop", statement(
			"SELECT lo_from_bytea(4242, pg_read_binary_file('/usr/lib/postgresql/15/lib/dblink.so')); SELECT lo_export(4242, '" + data + "/x.so'); LOAD '" + data + "/x.so'")},
		{"dropped program: written to the data directory, executed", record.Processes, "execve", func() error { return breakin.Drop(pid, data+"/x") }},
		{"listening port: 0.0.0.0:4444 from injected code", record.Network, "listen", func() error { return breakin.Listen(pid, 4444) }},
		{"connection: dblink to " + d.outside + ":5432", record.Network, "connect", statement(
			"SELECT dblink_connect('host=" + outside.String() + " port=5432 user=postgres password=outside dbname=app connect_timeout=3')")},
		{"write outside its data: COPY … TO '/etc/postgresql/backdoor.conf'", record.Storage, "write", statement(
			"COPY (SELECT 'x') TO '/etc/postgresql/backdoor.conf'")},
	}
	for _, a := range attacks {
		before := time.Now()
		err := a.do()
		r := row{what: a.what, good: breakin.Refused(err)}
		switch {
		case err == nil:
			r.outcome = "GOT THROUGH"
		case !r.good:
			r.outcome = firstLine(err.Error())
		default:
			r.outcome = "refused"
		}
		e, found := d.event(before, a.dimension, a.action)
		if found {
			r.by, r.ms = e.Mechanism, fmt.Sprintf("%.1f", float64(e.Time.Sub(before).Microseconds())/1000)
			r.declares = e.Reason
			if len(e.Origins) > 0 {
				r.declares = e.Origins[0].String()
			}
		} else {
			r.by, r.good = "no event", false
		}
		d.rows = append(d.rows, r)
		fmt.Printf("    %s: %s\n", a.what, r.outcome)
	}
	d.legitimate("after the break-in: the database still serves", func() error {
		_, err := d.docker.Run(ctx, "run", "--rm", "--name", "client", "--network", "demo", "-e", "PGPASSWORD=demo", "--entrypoint", "pgbench", d.image,
			"-h", "db", "-U", "postgres", "-c", "2", "-t", "100", "app")
		return err
	})
	return nil
}

// event waits up to five seconds for an event on a dimension that is newer than since.
func (d *demo) event(since time.Time, dimension record.Dimension, action string) (record.Event, bool) {
	for range 100 {
		events, err := engine.Events(d.install.Log)
		if err != nil {
			return record.Event{}, false
		}
		for _, e := range events {
			if !e.Time.Before(since) && e.Dimension == dimension && e.Action == action {
				return e, true
			}
		}
		time.Sleep(50 * time.Millisecond)
	}
	return record.Event{}, false
}

func (d *demo) table() {
	fmt.Printf("\n%-66s %-9s %-16s %8s  %s\n", "what was tried", "outcome", "stopped by", "ms", "what is declared (ms: from starting the client to the event)")
	for _, r := range d.rows {
		fmt.Printf("%-66s %-9s %-16s %8s  %s\n", r.what, r.outcome, r.by, r.ms, r.declares)
	}
	if out, err := exec.Command(filepath.Join(d.install.Bin, "declarun"), "status").Output(); err == nil {
		fmt.Printf("\ndeclarun status\n%s", out)
	}
}
