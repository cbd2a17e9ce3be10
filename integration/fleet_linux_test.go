package integration

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/shim/record"
)

// ship is one of the images that must work under enforcement as they do
// without: a server from Debian's packages, in the style of its official image.
type ship struct {
	name    string
	recipe  string            // its Dockerfile, behind FROM the base that all share
	files   map[string]string // of the build's context
	options []string          // of docker run
	// What people and clients do with it, as steps: a line for the shell of the
	// client, in which $S is the server's address; "signal NAME"; "exec LINE",
	// an operator's docker exec; "sleep SECONDS"; "log TEXT", which must come.
	load, reload, rotate, operate []string
	status                        string // that it ends with when it is stopped; empty: 0, "any": its own business
	unchecked                     bool   // it declares no health check: an empty image has nothing to check with
}

// fleetBase is debian:12 as its official image has it: services do not start
// while they are installed.
const fleetBase = `FROM debian:12
RUN printf '#!/bin/sh\nexit 101\n' > /usr/sbin/policy-rc.d && chmod 755 /usr/sbin/policy-rc.d
ENV DEBIAN_FRONTEND=noninteractive
`

// install is what most recipes begin with.
func install(packages string) string {
	return "RUN apt-get update && apt-get install -y --no-install-recommends " + packages + " && rm -rf /var/lib/apt/lists/*\n"
}

// client has what talks to the fleet.
var client = ship{name: "client", recipe: install("curl apache2-utils bind9-dnsutils ldap-utils libfcgi-bin mariadb-client memcached mosquitto-clients netcat-openbsd openssh-client postgresql-client python3 redis-tools rsync git sshpass procps ca-certificates")}

func (l *lab) buildFleet(ctx context.Context, data string) (err error) {
	builder, err := engine.Start(ctx, engine.Options{Dir: filepath.Join(l.dir, "build"), Data: data, Network: engine.OnHost})
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
	base, err := l.buildShip(ctx, builder, fleetBase, ship{name: "base"})
	if err != nil {
		return err
	}
	type built struct {
		name, tag string
		err       error
	}
	ships := append([]ship{client}, fleet...)
	work, done := make(chan ship), make(chan built)
	for range 2 { // unpacking packages keeps one processor busy each
		go func() {
			for s := range work {
				tag, err := l.buildShip(ctx, builder, "FROM "+base+"\n", s)
				done <- built{s.name, tag, err}
			}
		}()
	}
	go func() {
		defer close(work)
		for _, s := range ships {
			work <- s
		}
	}()
	for range ships {
		b := <-done
		if l.images[b.name] = b.tag; b.err != nil { // the others sail
			l.broken[b.name] = b.err
		}
	}
	return l.broken[client.name]
}

func (l *lab) buildShip(ctx context.Context, builder *engine.Docker, from string, s ship) (string, error) {
	dir := filepath.Join(l.dir, "fleet", s.name)
	for name, content := range s.files {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			return "", err
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte(from+s.recipe), 0o644); err != nil {
		return "", err
	}
	return builder.Image(ctx, "fleet-"+s.name, dir)
}

// No real server is refused anything: start, first initialisation, load,
// reload, log rotation, health check, an operator's commands, restart, stop.
func TestFleetIsRefusedNothing(t *testing.T) {
	l := fleetLab.open(t, "fleet-data", 25*time.Minute, (*lab).buildFleet)
	crew := l.container(t, "--runtime", "runc", "--init", l.images["client"], "sleep", "infinity")
	if len(fleet) < 20 {
		t.Errorf("%d images", len(fleet))
	}
	t.Run("fleet", func(t *testing.T) { // two at a time, on two processors
		for _, s := range fleet {
			t.Run(s.name, func(t *testing.T) {
				t.Parallel()
				v := &voyage{T: t, lab: l, ship: s, crew: crew}
				v.sail()
			})
		}
	})
}

// voyage is the life of one container of the fleet.
type voyage struct {
	*testing.T
	*lab
	ship
	crew, id string
}

func (v *voyage) sail() {
	if err := v.broken[v.name]; err != nil {
		v.Fatal(err)
	}
	// With runc in its place a failure is the image's own.
	runtime := cmp.Or(os.Getenv("DECLARUN_TEST_RUNTIME"), "declarun")
	v.id = v.container(v.T, append(append([]string{"--runtime", runtime}, v.options...), v.images[v.name])...)
	v.up()
	v.all("load", v.load)
	v.all("reload", v.reload)
	v.all("load after the reload", v.load)
	v.all("log rotation", v.rotate)
	v.all("load after the log rotation", v.load)
	v.all("an operator's commands", v.operate)
	v.run(v.T, "restart", "-t", "20", v.id)
	v.up()
	v.all("load after a restart", v.load)
	if !v.unchecked {
		v.healthy(v.T, v.id)
	}
	v.run(v.T, "stop", "-t", "20", v.id)
	if got, want := v.run(v.T, "inspect", "--format", "{{.State.ExitCode}}", v.id), v.status; want != "any" && got != cmp.Or(want, "0") {
		v.Errorf("it ended with status %s", got)
	}
	v.unhindered()
}

func (v *voyage) up() {
	v.Helper()
	if !v.unchecked {
		v.healthy(v.T, v.id)
		return
	}
	var err error
	if !await(30*time.Second, func() bool { err = v.step(v.load[0]); return err == nil }) {
		v.Fatal(err)
	}
}

func (v *voyage) all(what string, steps []string) {
	v.Helper()
	for _, s := range steps {
		must(v.T, what, v.step(s))
	}
	if v.Failed() {
		v.FailNow()
	}
}

func (v *voyage) step(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	switch word {
	case "signal":
		_, err := v.try("kill", "--signal", rest, v.id)
		time.Sleep(time.Second)
		return err
	case "exec":
		out, err := v.try("exec", v.id, "sh", "-c", rest)
		if err != nil {
			err = fmt.Errorf("%w: %s", err, out)
		}
		return err
	case "sleep":
		d, err := time.ParseDuration(rest + "s")
		time.Sleep(d)
		return err
	case "log":
		var out []byte
		if !await(20*time.Second, func() bool {
			out, _ = v.docker.CLI(context.Background(), "logs", v.id).CombinedOutput()
			return strings.Contains(string(out), rest)
		}) {
			return fmt.Errorf("no %q in its log: %s", rest, out)
		}
		return nil
	}
	out, err := v.try("exec", "-e", "S="+v.address(v.T, v.id), v.crew, "timeout", "60", "sh", "-euc", line)
	if err != nil {
		err = fmt.Errorf("%w: %s", err, out)
	}
	return err
}

// unhindered fails where anything was refused, or would have been. What
// operators' commands do is reported, not refused; so is what only the start may
// do. What the engine's profile refuses is refused without declarun, too.
func (v *voyage) unhindered() {
	v.Helper()
	for _, e := range v.events(v.T, v.id) {
		if e.Verdict == record.Reported && (e.Identity == record.Operator || e.Phase == record.Starting || e.Dimension == record.Supervision) ||
			strings.HasPrefix(e.Reason, "the engine's seccomp profile refuses it") {
			continue
		}
		v.Errorf("%s %s %s %s (%s, %s): %s; by %+v", e.Verdict, e.Dimension, e.Action, e.Object, e.Mechanism, e.Phase, e.Reason, e.Process)
	}
}
