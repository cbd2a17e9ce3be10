package seccompgen_test

// What is taken away from a process that is in its loop is worth nothing if the
// process still needs it. Here servers live whole lives under strace, which
// writes the stack of every call: from the first that has one of the return
// addresses on it, everything the process does must be among what is left.

import (
	"bufio"
	"context"
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/seccompgen"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

func TestObservedInTheLoop(t *testing.T) {
	strace := need.Program(t, "strace")
	if out, err := exec.CommandContext(t.Context(), strace, "-k", "-o", "/dev/null", "true").CombinedOutput(); err != nil {
		t.Fatalf("strace -k: %v\n%s", err, out)
	}
	for _, row := range []struct {
		program string
		proved  bool // a loop is found, and a life comes to it
		life    string
	}{
		{"nginx", true, `mkdir n; chmod 777 . n; echo "error_log stderr; pid $PWD/n/pid; worker_processes 2; events {} http { access_log $PWD/n/l; client_body_temp_path $PWD/n/b; proxy_temp_path $PWD/n/p; fastcgi_temp_path $PWD/n/f; uwsgi_temp_path $PWD/n/u; scgi_temp_path $PWD/n/c;
			server { listen unix:$PWD/n/s; root $PWD; location /p { proxy_pass http://unix:$PWD/n/s:/f; } } }" > n.conf
			nginx -c $PWD/n.conf -g 'daemon off;' & sleep 3; get() { curl -s -m 5 "$@" --unix-socket n/s http://x/f; }
			get; get -d @f; kill -HUP $!; sleep 3; get; kill -USR1 $!; sleep 1; get; kill -9 $(cut -d' ' -f1 /proc/$!/task/$!/children); sleep 2; get; kill -QUIT $!; sleep 2; kill $!; wait $!`},
		{"memcached", true, `memcached -u nobody -s $PWD/m & sleep 3; printf 'set a 0 0 1\r\n1\r\nget a\r\nstats\r\nflush_all\r\nquit\r\n' | timeout 5 curl -s -m 3 --unix-socket m telnet://x; kill -HUP $!; sleep 1; kill $!; wait $!`},
		{"redis-server", true, `redis-server --port 0 --unixsocket $PWD/r --appendonly yes --save 1 1 --dir $PWD & c="timeout 20 redis-cli -s r"; for i in 1 2 3 4 5 6 7 8 9; do sleep 0.5; $c ping && break; done
			$c set a 1; $c eval 'return 1' 0; $c bgsave; sleep 2; $c bgrewriteaof; sleep 2; $c config rewrite; $c debug sleep 0; $c shutdown; wait $!`},
		{"named", true, `mkdir d; chmod 777 . d; echo 'options { directory "'$PWD'/d"; pid-file "'$PWD'/d/pid"; listen-on port 15353 { 127.0.0.1; }; listen-on-v6 { none; }; recursion no; }; controls { }; zone "x" { type primary; file "'$PWD'/d/x"; };' > n.conf
			printf '$TTL 60\n@ SOA a. b. 1 60 60 60 60\n@ NS ns\nns A 127.0.0.1\n' > d/x
			named -f -c $PWD/n.conf & sleep 4; for i in 1 2 3; do timeout 5 dig +time=2 +tries=1 @127.0.0.1 -p 15353 ns.x; done; kill -HUP $!; sleep 3; timeout 5 dig +time=2 +tries=1 @127.0.0.1 -p 15353 x ns; kill $!; wait $!`},
		{"lighttpd", true, `chmod 777 .; printf 'server.document-root="%s"\nserver.bind="%s/s"\nserver.errorlog="%s/e"\nserver.pid-file="%s/pid"\nserver.max-worker=2\n' $PWD $PWD $PWD $PWD > l.conf
			setsid lighttpd -D -f l.conf & sleep 2; curl -s -m 5 --unix-socket s http://x/f; kill -HUP $!; sleep 1; kill -USR1 $!; sleep 2; curl -s -m 5 --unix-socket s http://x/f; kill -INT $!; sleep 1; kill $!; wait $!`},
		{"haproxy", false, `printf 'global\n nbthread 2\ndefaults\n mode http\n timeout client 5s\n timeout server 5s\n timeout connect 1s\nfrontend f\n bind unix@%s/s mode 777\n http-request return status 200\n' $PWD > h.conf; chmod 777 .
			haproxy -W -db -f h.conf & sleep 2; curl -s -m 5 --unix-socket s http://x/f; kill -USR2 $!; sleep 3; curl -s -m 5 --unix-socket s http://x/f; kill -USR1 $!; sleep 2; kill $!; wait $!`},
	} {
		t.Run(row.program, func(t *testing.T) {
			t.Parallel()
			program, err := filepath.EvalSymlinks(need.Program(t, row.program))
			if err != nil {
				t.Fatal(err)
			}
			root, err := rootfs.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			res, err := seccompgen.Analyse(t.Context(), root, seccompgen.Request{Answered: answered(), Programs: []seccompgen.Program{{Path: program, Phase: record.Serving}}}, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !row.proved && len(res.Loops) == 0 {
				t.Log("nothing is taken away from it") // the row is for the day when something is
				return
			}
			if len(res.Loops) != 1 {
				t.Fatalf("%d loops", len(res.Loops))
			}
			gone := map[string]bool{}
			for _, c := range res.Calls {
				gone[c.Name] = c.UntilLoop
			}
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("b\na\n"), 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 150*time.Second)
			defer cancel()
			traces := t.TempDir()
			cmd := exec.CommandContext(ctx, strace, "-ff", "-k", "-ttt", "-qq", "-o", filepath.Join(traces, "t"), "--", "bash", "-c", row.life)
			cmd.Dir = dir
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // lighttpd sends signals to its whole process group
			cmd.WaitDelay = time.Second
			out, err := cmd.CombinedOutput()
			if ctx.Err() != nil {
				t.Fatalf("%v: %v\n%s", row.life, err, out)
			}
			h := history{program: program, returns: addresses(t, program, res.Loops[0].Returns), traces: traces, group: map[string]*group{}}
			h.read(t)
			proved, after, before := 0, 0, 0
			counted := map[*group]bool{}
			for _, g := range h.group {
				if !g.proved || counted[g] {
					continue
				}
				counted[g] = true
				proved++
				for _, c := range g.calls {
					if c.at < g.since {
						before++
						continue
					}
					after++
					if gone[c.name] {
						t.Errorf("%s is made after the loop was reached: %s", c.name, c.line)
					}
				}
			}
			t.Logf("%d processes are proved, with %d calls before and %d after\n%s", proved, before, after, out)
			if row.proved && (proved == 0 || after < 20) {
				t.Errorf("the life of %s does not come to its loop:\n%s", program, out)
			}
		})
	}
}

// addresses turns those of the program headers into places of the file, as
// strace prints them.
func addresses(t *testing.T, program string, returns []uint64) map[uint64]bool {
	t.Helper()
	f, err := elf.Open(program)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out := map[uint64]bool{}
	for _, r := range returns {
		for _, p := range f.Progs {
			if p.Type == elf.PT_LOAD && r >= p.Vaddr && r < p.Vaddr+p.Filesz {
				out[r-p.Vaddr+p.Off] = true
			}
		}
	}
	if len(out) != len(returns) {
		t.Fatalf("%d of %d return addresses lie in the file", len(out), len(returns))
	}
	return out
}

// group is a process with its threads from one execution of the program on.
type group struct {
	proved bool
	since  float64
	calls  []made
}

type made struct {
	at         float64
	name, line string
}

// history puts together what strace wrote, a file for every thread.
type history struct {
	program string
	returns map[uint64]bool
	traces  string
	group   map[string]*group
}

var (
	madeCall = regexp.MustCompile(`^(\d+\.\d+) ([a-z_][a-z0-9_]*)\(`)
	onStack  = regexp.MustCompile(`^ > (/[^ (]+)\(.*\) \[0x([0-9a-f]+)\]`)
	madePID  = regexp.MustCompile(`\) += (\d+)`)
)

func (h *history) read(t *testing.T) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(h.traces, "t.*"))
	if err != nil || len(files) == 0 {
		t.Fatalf("nothing was traced: %v", err)
	}
	child := map[string]bool{}
	lines := map[string][]string{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		pid := strings.TrimPrefix(filepath.Ext(name), ".")
		scan := bufio.NewScanner(f)
		scan.Buffer(nil, 1<<20)
		for scan.Scan() {
			lines[pid] = append(lines[pid], scan.Text())
			if m := madeCall.FindStringSubmatch(scan.Text()); m != nil && forks(m[2]) {
				if r := madePID.FindStringSubmatch(scan.Text()); r != nil {
					child[r[1]] = true
				}
			}
		}
		f.Close()
	}
	for pid := range lines {
		if !child[pid] {
			h.follow(lines, pid, nil)
		}
	}
}

func forks(name string) bool {
	return slices.Contains([]string{"clone", "clone3", "fork", "vfork"}, name)
}

// follow reads the calls of a thread, and of what it starts. in is the group
// that it begins in, nil while another program is executed.
func (h *history) follow(lines map[string][]string, pid string, in *group) {
	own := 0
	if in != nil {
		h.group[pid+" fork"] = in
	}
	type start struct {
		pid string
		in  *group
	}
	var starts []start
	last := 0.0
	for _, line := range lines[pid] {
		if m := onStack.FindStringSubmatch(line); m != nil {
			a, err := strconv.ParseUint(m[2], 16, 64)
			if err == nil && in != nil && m[1] == h.program && (h.returns[a] || h.returns[a+1]) && (!in.proved || last < in.since) {
				in.proved, in.since = true, last
			}
			continue
		}
		m := madeCall.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		last, _ = strconv.ParseFloat(m[1], 64)
		if in != nil {
			in.calls = append(in.calls, made{last, m[2], line})
		}
		if m[2] == "execve" && strings.HasSuffix(line, "= 0") {
			in = nil
			file, _, _ := strings.Cut(strings.TrimPrefix(line[len(m[0]):], `"`), `"`)
			if real, err := filepath.EvalSymlinks(file); err == nil && real == h.program {
				own++
				in = &group{}
				h.group[pid+" "+strconv.Itoa(own)] = in
			}
		}
		if r := madePID.FindStringSubmatch(line); r != nil && forks(m[2]) {
			switch {
			case strings.Contains(line, "CLONE_THREAD"):
				starts = append(starts, start{r[1], in})
			case in == nil:
				starts = append(starts, start{r[1], nil})
			default:
				// What was proved before is; what is found on the parent's stack
				// later says nothing of the child.
				starts = append(starts, start{r[1], &group{proved: in.proved && last >= in.since, since: in.since}})
			}
		}
	}
	for _, s := range starts {
		h.follow(lines, s.pid, s.in)
	}
}
