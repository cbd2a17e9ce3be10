// Command bench measures what declarun costs, each figure as a ratio against
// runc in the same run: the two are taken in turns, so that whatever else the
// machine does meets both, and medians are printed with their spread.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/integration/engine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 30*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

type bench struct {
	docker  *engine.Docker
	install *engine.Install
	images  map[string]string
	serving map[string]service // by runtime and image: measured in turns, started once
}

type service struct{ id, addr string }

func run(ctx context.Context) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("starting a container engine needs root: try sudo make bench")
	}
	dir, err := os.MkdirTemp("", "declarun-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree, err := engine.Tree()
	if err != nil {
		return err
	}
	b := &bench{serving: map[string]service{}, images: map[string]string{"debian": "debian:12"}}
	if b.install, err = engine.Build(ctx, dir, ""); err != nil {
		return err
	}
	data := filepath.Join(engine.Cache(), "lab-data")
	builder, err := engine.Start(ctx, engine.Options{Dir: filepath.Join(dir, "build"), Data: data, Network: engine.OnHost})
	if err != nil {
		return err
	}
	err = builder.Base(ctx)
	for _, name := range []string{"postgres", "redis"} {
		if err == nil {
			b.images[name], err = builder.Image(ctx, name, filepath.Join(tree, "integration/images", name))
		}
	}
	if e := builder.Stop(); err == nil {
		err = e
	}
	if err != nil {
		return err
	}
	if b.docker, err = engine.Start(ctx, engine.Options{Dir: dir, Data: data, Network: engine.Isolated, Bin: b.install.Bin}); err != nil {
		return err
	}
	defer func() {
		for _, s := range b.serving {
			_, e := b.docker.Run(context.WithoutCancel(ctx), "rm", "-f", "-v", s.id)
			err = errors.Join(err, e)
		}
		err = errors.Join(err, b.docker.Stop(), b.install.Stop())
	}()
	fmt.Printf("%-52s %10s %10s %8s   %s\n", "", "runc", "declarun", "ratio", "spread of the ratio")
	for _, m := range []struct {
		name   string
		rounds int
		higher bool // a rate: more is better; the ratio is runc/declarun all the same, so that above 1 is slower
		once   func(ctx context.Context, runtime string, round int) (float64, error)
	}{
		{"container start to end, plan cached (s)", 15, false, b.startCached},
		{"container start to end, image never seen (s)", 3, false, b.startUnseen},
		{"redis-benchmark SET+GET (requests/s)", 15, true, b.redis},
		{"pgbench, 2 clients (transactions/s)", 11, true, b.pgbench},
		{"fork+exec of a program (executions/s)", 9, true, b.forkExec},
	} {
		if err := b.compare(ctx, m.name, m.rounds, m.higher, m.once); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	return nil
}

// compare runs rounds in turns, the order alternating, and prints medians.
func (b *bench) compare(ctx context.Context, name string, rounds int, higher bool, once func(context.Context, string, int) (float64, error)) error {
	var plain, ours, ratios []float64
	for i := range rounds {
		var got [2]float64
		order := []int{0, 1}
		if i%2 == 1 {
			order = []int{1, 0}
		}
		for _, which := range order {
			v, err := once(ctx, []string{"runc", "declarun"}[which], i)
			if err != nil {
				return err
			}
			got[which] = v
		}
		plain, ours = append(plain, got[0]), append(ours, got[1])
		if higher {
			ratios = append(ratios, got[0]/got[1])
		} else {
			ratios = append(ratios, got[1]/got[0])
		}
	}
	slices.Sort(ratios)
	fmt.Printf("%-52s %10.4g %10.4g %8.3f   %.3f to %.3f over %d rounds\n", name, median(plain), median(ours), median(ratios), ratios[0], ratios[len(ratios)-1], rounds)
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}

func (b *bench) timed(ctx context.Context, args ...string) (float64, error) {
	before := time.Now()
	_, err := b.docker.Run(ctx, args...)
	return time.Since(before).Seconds(), err
}

func (b *bench) startCached(ctx context.Context, runtime string, round int) (float64, error) {
	if round == 0 { // not counted: the image is seen for the first time
		if _, err := b.timed(ctx, "run", "--rm", "--runtime", runtime, "--entrypoint", "/usr/bin/true", b.images["redis"]); err != nil {
			return 0, err
		}
	}
	return b.timed(ctx, "run", "--rm", "--runtime", runtime, "--entrypoint", "/usr/bin/true", b.images["redis"])
}

// startUnseen empties declarun's cache first, so that every file is analysed.
func (b *bench) startUnseen(ctx context.Context, runtime string, _ int) (float64, error) {
	if runtime == "declarun" {
		if err := b.install.Stop(); err != nil {
			return 0, err
		}
		if err := os.RemoveAll(b.install.CacheDir); err != nil {
			return 0, err
		}
		if err := os.MkdirAll(b.install.CacheDir, 0o700); err != nil {
			return 0, err
		}
	}
	before := time.Now()
	if _, err := b.docker.Run(ctx, "run", "-d", "--name", "unseen", "--runtime", runtime, "-e", "POSTGRES_PASSWORD=x", b.images["postgres"]); err != nil {
		return 0, err
	}
	took := time.Since(before).Seconds()
	_, err := b.docker.Run(ctx, "rm", "-f", "-v", "unseen")
	return took, err
}

// served gives the address of a server that is started with the first question.
func (b *bench) served(ctx context.Context, runtime, image string, args ...string) (addr string, fresh bool, err error) {
	key := runtime + " " + image
	if s, ok := b.serving[key]; ok {
		return s.addr, false, nil
	}
	id, addr, err := b.serve(ctx, runtime, image, args...)
	if id != "" {
		b.serving[key] = service{id, addr}
	}
	return addr, true, err
}

func (b *bench) serve(ctx context.Context, runtime, image string, args ...string) (id, addr string, err error) {
	if id, err = b.docker.Run(ctx, append([]string{"run", "-d", "--runtime", runtime}, append(args, b.images[image])...)...); err != nil {
		return "", "", err
	}
	for range 240 {
		state, err := b.docker.Run(ctx, "inspect", "--format", "{{.State.Health.Status}}", id)
		if err != nil {
			return id, "", err
		}
		if state == "healthy" {
			addr, err := b.docker.Address(ctx, id, "")
			return id, addr, err
		}
		time.Sleep(250 * time.Millisecond)
	}
	return id, "", errors.New("not healthy after 60 s")
}

func (b *bench) redis(ctx context.Context, runtime string, _ int) (float64, error) {
	addr, _, err := b.served(ctx, runtime, "redis")
	if err != nil {
		return 0, err
	}
	out, err := b.docker.Command(ctx, "redis-benchmark", "--csv", "-h", addr, "-n", "40000", "-c", "20", "-t", "set,get").Output()
	if err != nil {
		return 0, err
	}
	sum := 0.0
	for line := range strings.Lines(string(out)) {
		f := strings.Split(line, ",")
		if len(f) < 2 || strings.Contains(f[0], "test") {
			continue
		}
		rate, err := strconv.ParseFloat(strings.Trim(strings.TrimSpace(f[1]), `"`), 64)
		if err != nil {
			return 0, fmt.Errorf("read redis-benchmark's %q: %w", line, err)
		}
		sum += rate
	}
	if sum == 0 {
		return 0, fmt.Errorf("redis-benchmark printed no rate: %s", out)
	}
	return sum / 2, nil
}

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

func (b *bench) pgbench(ctx context.Context, runtime string, _ int) (float64, error) {
	addr, fresh, err := b.served(ctx, runtime, "postgres", "-e", "POSTGRES_PASSWORD=x")
	if err != nil {
		return 0, err
	}
	client := []string{"run", "--rm", "-e", "PGPASSWORD=x", "--entrypoint", "pgbench", b.images["postgres"], "-h", addr, "-U", "postgres"}
	if fresh {
		if _, err := b.docker.Run(ctx, append(slices.Clone(client), "-i", "-q", "app")...); err != nil {
			return 0, err
		}
	}
	out, err := b.docker.Run(ctx, append(client, "-S", "-c", "2", "-T", "3", "app")...)
	if err != nil {
		return 0, err
	}
	m := tps.FindStringSubmatch(out)
	if m == nil {
		return 0, fmt.Errorf("pgbench printed no rate: %s", out)
	}
	return strconv.ParseFloat(m[1], 64)
}

// forkExec lets a shell start a program a thousand times.
func (b *bench) forkExec(ctx context.Context, runtime string, _ int) (float64, error) {
	const n = 2000
	script := fmt.Sprintf("i=0; s=$(date +%%s%%N); while [ $i -lt %d ]; do /usr/bin/true; i=$((i+1)); done; e=$(date +%%s%%N); echo $((e-s))", n)
	out, err := b.docker.Run(ctx, "run", "--rm", "--runtime", runtime, b.images["debian"], "bash", "-c", script)
	if err != nil {
		return 0, err
	}
	ns, err := strconv.ParseFloat(strings.TrimSpace(out), 64)
	if err != nil {
		return 0, err
	}
	return n / (ns / 1e9), nil
}
