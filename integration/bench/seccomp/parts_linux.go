package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/seccompgen/sysno"
	"github.com/declarun/declarun/shim/plan"
)

// telling are the names that decide most of what an attacker can do.
var telling = strings.Fields(`execve execveat setuid setgid setreuid setregid setresuid setresgid setgroups chroot bind listen accept accept4
	clone clone3 fork vfork chmod fchmod fchmodat dup2 ptrace`)

func intersection(a, b []string) []string {
	var out []string
	for _, name := range a {
		if slices.Contains(b, name) {
			out = append(out, name)
		}
	}
	return out
}

// kept are the calls that the filter lets a program make under Docker's default
// profile; once it serves, if by says so.
func kept(calls []plan.Syscall, unresolved int, by filter.Caller) ([]string, error) {
	p, v, err := inEngine(calls, unresolved)
	if err != nil {
		return nil, err
	}
	f, err := compiled(p, v)
	if err != nil {
		return nil, err
	}
	names, tried := try()
	answers, err := observe.Simulate(f, by, tried)
	if err != nil {
		return nil, err
	}
	proved := map[string]bool{}
	for _, c := range calls {
		proved[c.Name] = true
	}
	var out []string
	for i, name := range names { // runc's own few calls end with the first execution
		if answers[i].Allowed && (proved[name] || unresolved > 0) && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out, nil
}

func measureServers(ctx context.Context, b *bench, r *report) error {
	var table strings.Builder
	fmt.Fprintf(&table, "Six C servers: application closure (the program, its libraries, what its own root's nsswitch.conf and configuration load).\n")
	fmt.Fprintf(&table, "proved: calls the analysis finds; whole life and serving: of these, what the filter lets through under Docker's default profile.\n")
	fmt.Fprintf(&table, "%-10s %7s %6s %8s %9s %5s %6s %8s\n", "", "proved", "whole", "serving", "unproved", "seen", "ratio", "missing")
	var proved, life, serve, ratio float64
	lost, gone := 0, 0
	var open []string
	for _, s := range six {
		m, err := s.measure(ctx, b.cache)
		if err != nil {
			return err
		}
		b.servers = append(b.servers, m)
		w, err := kept(m.calls, len(m.unresolved), beforeServing)
		if err != nil {
			return err
		}
		during, err := kept(m.calls, len(m.unresolved), whileServing)
		if err != nil {
			return err
		}
		miss := missing(m.seen, m.names(whole))
		lost += len(miss)
		proved += float64(len(m.calls)) / 6
		life += float64(len(w)) / 6
		serve += float64(len(during)) / 6
		ratio += float64(len(w)) / float64(len(m.seen)) / 6
		fmt.Fprintf(&table, "%-10s %7d %6d %8d %9d %5d %6.2f %8s\n", s.name, len(m.calls), len(w), len(during), len(m.unresolved), len(m.seen),
			float64(len(w))/float64(len(m.seen)), strings.Join(append([]string{fmt.Sprint(len(miss))}, miss...), " "))
		left := intersection(telling, during)
		if !slices.ContainsFunc(left, func(n string) bool {
			return strings.HasPrefix(n, "execve") || strings.HasPrefix(n, "set") || n == "chroot"
		}) {
			gone++
		}
		open = append(open, fmt.Sprintf("  %-10s %s", s.name, strings.Join(left, " ")))
		var idle []string
		for _, c := range m.calls {
			if m.seen[c.Name] == "" {
				idle = append(idle, c.Name)
			}
		}
		r.note("%s: allowed and not seen: %s", s.name, strings.Join(idle, " "))
		why, err := m.reasons(ctx, b.cache, idle)
		if err != nil {
			return err
		}
		r.note("%s: why these are reachable, by the shortest way that the analysis could not rule out:\n%s", s.name, why)
	}
	check := fmt.Sprintf("strace over start, load, reload, log rotation, signals, stop: %d calls seen that are not allowed; allowed/seen %.2f", lost, ratio)
	r.add(row{"six C servers, whole life, mean allowed", "99.5", "95", fmt.Sprintf("%.1f (%.1f before the engine's profile and arguments)", life, proved), met(life <= 95 && lost == 0), check})
	r.add(row{"six C servers, serving phase, mean allowed; execve, set*id, chroot gone on at least five", "93.7 (84.5 with source)", "82, five",
		fmt.Sprintf("%.1f, %d of 6", serve, gone), met(serve <= 82 && gone >= 5 && lost == 0), check})
	r.notes = append([]string{table.String(), "Telling names left while serving:\n" + strings.Join(open, "\n")}, r.notes...)
	return nil
}

func measurePayloads(ctx context.Context, b *bench, r *report) error {
	known := func(name string) bool { _, ok := sysno.Number("amd64", name); return ok }
	x := row{what: "payloads stopped while serving, each of the six servers", published: "36-78 % of 36 CVEs, 30-77 % of 535 (SysPart)", bar: "70 % each", measured: "-"}
	y, err := readYardsticks(os.Getenv("PAYLOAD_DATA"), known)
	if err != nil {
		return err
	}
	if y == nil {
		x.verdict = "not measured: no data (PAYLOAD_DATA=DIR)"
		r.add(x)
		return nil
	}
	var table strings.Builder
	fmt.Fprintf(&table, "Payloads stopped by the filter while serving; %d payloads (names that are no call of this architecture left out: %d), %d CVEs (stopped when every call that reaches it is gone).\n",
		len(y.payloads), y.left, len(y.cves))
	fmt.Fprintf(&table, "With the exec guard: the same, execve counting as gone where no shell or interpreter is among the programs that may be executed while serving.\n")
	fmt.Fprintf(&table, "%-10s %9s %9s %12s %12s  %s\n", "", "payloads", "CVEs", "with guard", "CVEs", "programs that may be executed while serving")
	var dig strings.Builder
	least, leastGuarded, leastCVE, differ := 100.0, 100.0, 100.0, 0
	for _, m := range b.servers {
		j, err := m.judge(ctx, whileServing)
		if err != nil {
			return err
		}
		differ += len(j.differ)
		programs, err := m.executable(ctx)
		if err != nil {
			return err
		}
		byFilter := func(name string) bool { return j.allowed[name] }
		guarded := func(name string) bool {
			return j.allowed[name] && (!strings.HasPrefix(name, "execve") || shellAmong(programs))
		}
		p, _, _ := share(y.payloads, byFilter)
		c, _, _ := share(y.cves, byFilter)
		pg, _, _ := share(y.payloads, guarded)
		cg, _, _ := share(y.cves, guarded)
		least, leastGuarded, leastCVE = min(least, p), min(leastGuarded, pg), min(leastCVE, c)
		fmt.Fprintf(&dig, "  %-10s until 70 %%: %s; one of these alone:", m.name, strings.Join(decisive(y.payloads, guarded, 70), ", "))
		for _, group := range []string{"setuid", "setgid", "chroot", "bind", "listen", "accept", "connect", "clone", "chmod", "dup2", "kill", "unlink", "mprotect"} {
			less, _, _ := share(y.payloads, func(name string) bool {
				return guarded(name) && name != group && !slices.Contains(alike[group], name)
			})
			if less > pg {
				fmt.Fprintf(&dig, " %s %.1f", group, less)
			}
		}
		fmt.Fprintln(&dig)
		fmt.Fprintf(&table, "%-10s %8.1f%% %8.1f%% %11.1f%% %11.1f%%  %s\n", m.name, p, c, pg, cg, strings.Join(programs, " "))
	}
	x.measured = fmt.Sprintf("filter alone: payloads at least %.1f %%, CVEs at least %.1f %%; with the exec guard payloads at least %.1f %%", least, leastCVE, leastGuarded)
	x.verdict = met(least >= 70 && leastCVE >= 70)
	x.check = fmt.Sprintf("interpreter and kernel judge every call of every server's filter: %d differences", differ)
	r.add(x)
	r.note("%s", table.String())
	r.note("Calls that would have to go, too, with the exec guard in place:\n%s", dig.String())
	if differ > 0 {
		return errors.New("the interpreter and the kernel differ")
	}
	return nil
}

func measurePrograms(ctx context.Context, b *bench, r *report) error {
	c, err := newChecker(ctx, b.cache)
	if err != nil {
		return err
	}
	defer c.close()
	var failures []string
	alike, total, widened := 0, 0, 0
	c.all(ctx, rows(), func(line string, v *verdict, err error) {
		total++
		if err != nil {
			failures = append(failures, fmt.Sprintf("%.80s: %v", line, err))
			return
		}
		for _, f := range v.failures() {
			failures = append(failures, fmt.Sprintf("%.80s: %.300s", line, f))
		}
		if v.alike {
			alike++
		}
		if v.widened {
			widened++
		}
	})
	var sum, seen float64
	proved := 0
	var without []string
	for path, p := range c.programs {
		if p.err != nil {
			return p.err
		}
		if len(p.unresolved) > 0 {
			without = append(without, filepath.Base(path))
			continue
		}
		proved++
		sum += float64(len(p.calls))
		seen += float64(len(p.seen))
	}
	if proved == 0 {
		return errors.New("no program was executed")
	}
	slices.Sort(without)
	mean := sum / float64(proved)
	r.add(row{fmt.Sprintf("%d Debian programs, mean allowed, whole life", proved), "callander 56.6 (319), B-Side 43 (557)", "56",
		fmt.Sprintf("%.1f", mean), met(mean <= 56 && len(failures) == 0),
		fmt.Sprintf("%d command lines of real work, %d of them compared to the byte under the kernel's filter: %d false denials; %.1f calls seen on average", total, alike, len(failures), seen/float64(proved))})
	after, told, err := c.afterStart(ctx)
	if err != nil {
		return err
	}
	r.add(row{"the same, after start", "-", "46", fmt.Sprintf("%.1f", after), met(after <= 46),
		fmt.Sprintf("from when main is entered; for %d programs that is not told apart, and their whole life counts", proved-told)})
	r.add(row{"false denials, 300 Debian programs on real input", "Chestnut ships hand-written whitelists", "0", fmt.Sprint(len(failures)), met(len(failures) == 0 && proved >= 300),
		fmt.Sprintf("%d programs; not proved and so widened to the engine's profile: %s", len(c.programs), strings.Join(without, " "))})
	for _, f := range failures {
		r.note("false denial? %s", f)
	}
	return nil
}

// afterStart is the mean of calls that the proved programs can make once main was
// entered, and for how many of them that is less than the whole life by what the
// analysis says.
func (c *checker) afterStart(ctx context.Context) (mean float64, told int, err error) {
	n := 0
	for path, p := range c.programs {
		if len(p.unresolved) > 0 {
			continue
		}
		n++
		names, ok, err := seccompgen.AfterStart(ctx, c.files, request(path, usual), c.cache)
		if err != nil {
			return 0, 0, fmt.Errorf("tell the start of %s: %w", path, err)
		}
		if ok {
			told++
			mean += float64(len(names))
		} else {
			mean += float64(len(p.calls))
		}
	}
	return mean / float64(n), told, nil
}

// buildGo builds the Go server of the integration images: static, stripped.
func buildGo(ctx context.Context, tree, to string) error {
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags=-s -w", "-o", to, "./integration/images/hello/server")
	build.Dir, build.Env = tree, append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the Go server: %w: %s", err, out)
	}
	return nil
}

func measureGo(ctx context.Context, b *bench, r *report) error {
	tree, err := engine.Tree()
	if err != nil {
		return err
	}
	root, err := os.MkdirTemp("", "declarun-go-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(root)
	if err := buildGo(ctx, tree, filepath.Join(root, "server")); err != nil {
		return err
	}
	a, err := analyse(ctx, root, "/server", usual, b.cache)
	if err != nil {
		return err
	}
	run, err := observe.Run(ctx, observe.Job{Root: root, Dir: "/", Argv: []string{"/server"}, Env: usual, Trace: true, Drive: "hello", Timeout: 60 * time.Second})
	if err != nil {
		return err
	}
	seen := run.Trace.Seen["/server"]
	names := a.names(whole)
	miss := missing(seen, names)
	f, err := forItsLife(a)
	if err != nil {
		return err
	}
	held, err := observe.Run(ctx, observe.Job{Root: root, Dir: "/", Argv: []string{"/server"}, Env: usual, Filter: f, Drive: "hello", Timeout: 60 * time.Second})
	if err != nil {
		return err
	}
	r.add(row{"Go static HTTP server, stripped", "elastic: 17 missed", "66, none missed", fmt.Sprintf("%d, %d missed", len(names), len(miss)),
		met(len(names) <= 66 && len(miss)+len(held.Refused)+len(a.unresolved) == 0),
		fmt.Sprintf("%d seen under load; missed %v; refused by the kernel under load %v; %d unproved sites; %d after its start-up", len(seen), miss, held.Refused, len(a.unresolved), len(a.names(serving)))})
	return nil
}

// forItsLife is the filter of a program's whole life.
func forItsLife(a *analysed) (*observe.Filter, error) {
	var all []plan.Syscall
	for _, c := range a.calls {
		all = append(all, forLife(c))
	}
	return build(all, len(a.unresolved) > 0)
}

// large is an image of more than 500 MB with a server in it.
var large = observe.Spec{Name: "large", Packages: strings.Fields("postgresql-15 postgresql-contrib gosu python3 perl git curl")}

func measureAnalysis(ctx context.Context, _ *bench, r *report) error {
	spec := large
	tree, err := engine.Tree()
	if err != nil {
		return err
	}
	script, err := os.ReadFile(filepath.Join(tree, "integration/images/postgres/docker-entrypoint.sh"))
	if err != nil {
		return err
	}
	spec.Setup = "cat > /usr/local/bin/docker-entrypoint.sh <<'END-OF-ENTRYPOINT'\n" + string(script) + "\nEND-OF-ENTRYPOINT\nchmod 755 /usr/local/bin/docker-entrypoint.sh; mkdir -p /var/lib/postgresql/data; chown postgres:postgres /var/lib/postgresql/data"
	root, err := observe.Root(ctx, spec)
	if err != nil {
		return err
	}
	size, err := exec.CommandContext(ctx, "du", "-sm", root).Output()
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "declarun-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	in, err := engine.Build(ctx, dir, "")
	if err != nil {
		return err
	}
	config := filepath.Join(dir, "image.json")
	raw, err := json.Marshal(map[string]any{"config": map[string]any{"Entrypoint": []string{"docker-entrypoint.sh"}, "Cmd": []string{"postgres"},
		"Env": []string{"PATH=/usr/lib/postgresql/15/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PGDATA=/var/lib/postgresql/data"}, "Volumes": map[string]any{"/var/lib/postgresql/data": map[string]any{}}}})
	if err != nil {
		return err
	}
	if err := os.WriteFile(config, raw, 0o644); err != nil {
		return err
	}
	var p *plan.Plan
	once := func() (float64, int64, error) {
		before := time.Now()
		var rss int64
		var err error
		p, rss, err = planOnce(exec.CommandContext(ctx, filepath.Join(in.Bin, "declarund"), "--config", in.Config, "plan", "--rootfs", root, "--config", config, "--json"))
		return time.Since(before).Seconds(), rss, err
	}
	var cold, warm []float64
	peak := int64(0)
	for range 3 {
		if err := os.RemoveAll(in.CacheDir); err != nil {
			return err
		}
		s, rss, err := once()
		if err != nil {
			return err
		}
		cold, peak = append(cold, s), max(peak, rss)
	}
	for range 9 {
		s, _, err := once()
		if err != nil {
			return err
		}
		warm = append(warm, s)
	}
	c, w := median(cold), 1000*median(warm)
	r.add(row{fmt.Sprintf("analysis of an image of %s MB, first sight", strings.Fields(string(size))[0]), "SysPart 0.45-5 s for one server", "3 s; 30 ms cached; 300 MiB",
		fmt.Sprintf("%.2f s (%.2f to %.2f); %.0f ms cached; peak %d MiB", c, slices.Min(cold), slices.Max(cold), w, peak/1024), met(c <= 3 && w <= 30 && peak <= 300*1024),
		fmt.Sprintf("the whole of \"declarun plan\" with a cache of its own, process start included: %d programs, %d calls, %d unproved sites", len(p.Processes), len(p.Syscalls.Allow), len(p.Syscalls.Unresolved))})
	return nil
}

func median(v []float64) float64 {
	v = slices.Sorted(slices.Values(v))
	return v[len(v)/2]
}
