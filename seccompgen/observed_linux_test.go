package seccompgen_test

// The analysis is worth nothing if a program needs a call that it did not
// find. Here real programs run under strace, and everything seen must be
// allowed.

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

var (
	sawCall = regexp.MustCompile(`^(?:\d+ +)?([a-z_][a-z0-9_]*)\(`)
	sawExec = regexp.MustCompile(`^(?:\d+ +)?execve\("([^"]+)"`) // also those that fail or are interrupted by other threads' lines
)

// answered is what this machine answers, under no engine's profile.
func answered() []string {
	return append(seccompgen.Answered(func(string) bool { return true }), seccompgen.NoNSCD)
}

// What the machine answers is in the request's key, and nothing of it is taken
// for granted beside a program that may load a filter.
func TestAnswered(t *testing.T) {
	if have := answered(); !slices.Equal(have, append(slices.Clone(seccompgen.Answerable), seccompgen.VDSO, seccompgen.NoNSCD)) {
		t.Fatalf("this machine answers %v", have)
	}
	if have := seccompgen.Answered(func(string) bool { return false }); !slices.Equal(have, []string{seccompgen.VDSO}) {
		t.Errorf("under a profile that allows nothing: %v", have)
	}
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	cache, err := seccompgen.OpenDirCache(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	has := func(name string, answered []string, programs ...string) bool {
		req := seccompgen.Request{Answered: answered}
		for _, p := range programs {
			req.Programs = append(req.Programs, seccompgen.Program{Path: p, Phase: record.Serving})
		}
		res, err := seccompgen.Analyse(t.Context(), root, req, cache)
		if err != nil {
			t.Fatal(err)
		}
		return slices.Contains(names(res), name)
	}
	ls, strace := need.Program(t, "ls"), need.Program(t, "strace")
	if !has("faccessat", nil, ls) || has("faccessat", answered(), ls) {
		t.Error("faccessat of ls does not follow what the machine answers")
	}
	if !has("faccessat", answered(), ls, strace) {
		t.Error("beside a program that traces others, what the machine answers is taken for granted")
	}
}

func TestObservedIsAllowed(t *testing.T) {
	strace := need.Program(t, "strace")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "f"), []byte("b\na\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	cacheDir := t.TempDir()
	for _, row := range [][]string{
		{"true"},
		{"ls", "-laR", "/etc/ssl"},
		{"cat", "/etc/passwd"},
		{"cp", "-a", "f", "g"},
		{"mv", "g", "h"},
		{"touch", "h"},
		{"rm", "h"},
		{"mkdir", "-p", "a/b"},
		{"stat", "f"},
		{"df"},
		{"id"},
		{"date"},
		{"sleep", "0.01"},
		{"head", "-1", "f"},
		{"timeout", "5", "true"},
		{"env", "-i", "true"},
		{"sort", "--parallel=2", "f"},
		{"tar", "czf", "x.tgz", "f"},
		{"tar", "xzf", "x.tgz"},
		{"find", "/etc/ssl", "-name", "x"},
		{"grep", "-r", "x", "/etc/ssl/openssl.cnf"},
		{"sed", "-i", "s/a/c/", "f"},
		{"bash", "-c", "echo $(ls) | cat; ulimit -n; (exit 3); trap : TERM; kill -TERM $$; read x < f; [[ -w f ]]; sleep 0 & wait"},
		{"dash", "-c", "echo $(ls) | cat; cd /; umask 22; test -r /etc/passwd; ulimit -a"},
		{"getent", "passwd", "root"},
		{"getent", "hosts", "localhost"},
		{"getent", "ahosts", "localhost"}, // never a name that a resolver would be asked for
		{"curl", "--version"},
		{"curl", "-m", "2", "http://127.0.0.1:9/"},
		{"openssl", "genrsa", "1024"},
		{"perl", "-e", "use POSIX; use Socket; socket(S, AF_INET, SOCK_STREAM, 0); print getpwuid(0), `echo x`; fork or exit; wait"},
		{"git", "--version"},
		{"iconv", "-f", "latin1", "-t", "utf8", "f"},
		{"gzip", "-k", "f"},
		{"setpriv", "--reuid", "65534", "--clear-groups", "true"},
		{"busybox", "ls", "-la"},
		{"busybox", "sh", "-c", "echo x | cat; id"},
		{"nginx", "-V"},
		{"redis-server", "--version"},
		{"memcached", "-V"},
		{"/usr/lib/postgresql/15/bin/postgres", "--version"},
		{"bash", "-c", `redis-server --port 0 --unixsocket $PWD/r --appendonly yes --dir $PWD & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.2; redis-cli -s r ping && break; done
			redis-cli -s r set a 1; redis-cli -s r eval 'return 1' 0; redis-cli -s r bgsave; sleep 0.3; redis-cli -s r bgrewriteaof; sleep 0.3; redis-cli -s r shutdown; wait`},
		{"bash", "-c", `mkdir n; chmod 777 . n; echo "error_log stderr; pid $PWD/n/pid; events {} http { access_log $PWD/n/l; client_body_temp_path n/b; proxy_temp_path n/p; fastcgi_temp_path n/f; uwsgi_temp_path n/u; scgi_temp_path n/s;
			server { listen unix:$PWD/n/s; root $PWD; location /p { proxy_pass http://unix:$PWD/n/s:/f; } } }" > n.conf
			nginx -c $PWD/n.conf -g 'daemon off;' & sleep 0.5; curl -s --unix-socket n/s http://x/f; curl -s --unix-socket n/s http://x/p; curl -s -d @f --unix-socket n/s http://x/p; kill -HUP $!; sleep 0.4; kill -USR1 $!; sleep 0.2; curl -s --unix-socket n/s http://x/f; kill -QUIT $!; wait`},
		{"bash", "-c", `memcached -u nobody -s $PWD/m & sleep 0.5; kill $!; wait`},
		{"bash", "-c", `chmod 777 .; b=/usr/lib/postgresql/15/bin; test -x $b/postgres || exit; mkdir pg; chown nobody pg; s="setpriv --reuid nobody --clear-groups"
			$s $b/initdb -D $PWD/pg -A trust -U u > /dev/null; $s $b/postgres -D $PWD/pg -k $PWD/pg -c listen_addresses= -c jit_above_cost=0 & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.5; $b/psql -h $PWD/pg -U u -c 'select 1' postgres && break; done
			$b/psql -h $PWD/pg -U u -c 'create table t as select generate_series(1,50000) a; select count(*) from t; vacuum; checkpoint; copy t to program $$cat > /dev/null$$' postgres; kill -INT $!; wait`},
		{"go", "version"},
		{"tini", "--", "true"},
		{"gosu", "nobody", "true"},
	} {
		t.Run(strings.Join(row, " "), func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(row[0]); err != nil && strings.HasPrefix(row[0], "/usr/lib/postgresql") {
				t.Skipf("not installed: %v", err) // a whole life of it is among the integration tests
			}
			need.Program(t, row[0])
			programs, seen := trace(t, strace, dir, row)
			cache, err := seccompgen.OpenDirCache(cacheDir)
			if err != nil {
				t.Fatal(err)
			}
			allowed := allow(t, cache, programs)
			for name, line := range seen {
				if !allowed[name] {
					t.Errorf("%s was seen and is not allowed: %s", name, line)
				}
			}
		})
	}
}

// trace runs a command and gives the programs that were executed and the calls
// that were made, each with one line that shows it.
func trace(t *testing.T, strace, dir string, argv []string) ([]string, map[string]string) {
	t.Helper()
	out := filepath.Join(t.TempDir(), "trace")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, strace, append([]string{"-f", "-qq", "-o", out, "--"}, argv...)...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	if err := cmd.Run(); ctx.Err() != nil {
		t.Fatalf("%v: %v", argv, err)
	}
	f, err := os.Open(out)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var programs []string
	seen := map[string]string{}
	scan := bufio.NewScanner(f)
	scan.Buffer(nil, 1<<20)
	first := true
	for scan.Scan() {
		line := scan.Text()
		if m := sawExec.FindStringSubmatch(line); m != nil {
			programs = append(programs, interpreters(m[1])...)
			if first { // strace's own
				first = false
				continue
			}
		}
		if m := sawCall.FindStringSubmatch(line); m != nil && seen[m[1]] == "" {
			seen[m[1]] = line
		}
	}
	if len(programs) == 0 || len(seen) < 5 {
		t.Fatalf("nothing was traced: %v", programs)
	}
	return programs, seen
}

// interpreters gives what the kernel runs for a file: itself, or for a script
// its interpreter.
func interpreters(file string) []string {
	real, err := filepath.EvalSymlinks(file)
	if err != nil || !filepath.IsAbs(real) {
		return nil
	}
	b, err := os.ReadFile(real)
	if err != nil {
		return nil
	}
	if line, ok := strings.CutPrefix(string(b[:min(len(b), 200)]), "#!"); ok {
		line, _, _ = strings.Cut(line, "\n")
		if f := strings.Fields(line); len(f) > 0 {
			return interpreters(f[0])
		}
	}
	return []string{real}
}

func allow(t *testing.T, cache seccompgen.Cache, programs []string) map[string]bool {
	t.Helper()
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	slices.Sort(programs)
	req := seccompgen.Request{Answered: answered()}
	for _, p := range slices.Compact(programs) {
		req.Programs = append(req.Programs, seccompgen.Program{Path: p, Phase: record.Serving})
	}
	res, err := seccompgen.Analyse(t.Context(), root, req, cache)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{}
	for _, c := range res.Calls {
		allowed[c.Name] = true
		if len(c.Origins) == 0 || len(c.Origins) > 3 {
			t.Errorf("%s has %d origins", c.Name, len(c.Origins))
		}
	}
	t.Logf("%v: %d calls, %d unresolved, %d libraries", programs, len(res.Calls), len(res.Unresolved), len(res.Libraries))
	return allowed
}
