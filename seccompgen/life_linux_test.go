package seccompgen_test

// Interpreters and servers as images run them: with their extensions, under
// their distribution's configuration, through a whole life. Everything that
// strace sees must be allowed, and nothing be unresolved.

import (
	"context"
	"maps"
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

// lives: the programs that each needs, files of its directory, and a script for
// bash. P is a port of loopback, D a directory that anybody may write to.
var lives = []struct {
	name, programs string
	files          map[string]string
	script         string
	before         string // likewise, not traced
	// unresolved is what may be left, "" for nothing.
	unresolved string
}{
	{name: "python http.server", programs: "/usr/bin/python3", script: `
		/usr/bin/python3 -c '
import asyncio, bz2, ctypes.util, hashlib, http.server, lzma, multiprocessing, os, select, signal, socket, sqlite3, ssl, subprocess, tempfile, threading, time, urllib.request, uuid
s = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
threading.Thread(target=s.serve_forever).start()
print(len(urllib.request.urlopen("http://127.0.0.1:%d/f" % s.server_port).read()))
s.shutdown()
print(subprocess.run(["true"]).returncode, os.system("true"), uuid.uuid4(), os.urandom(3), ssl.create_default_context(), sqlite3.connect("d.db").execute("create table t (a)"))
async def main():
    p = await asyncio.create_subprocess_exec("true")
    await p.wait()
    await asyncio.sleep(0.01)
asyncio.run(main())
def child(q): q.put(1)
q = multiprocessing.Queue()
p = multiprocessing.Process(target=child, args=(q,)); p.start(); print(q.get()); p.join()
with tempfile.TemporaryDirectory() as d: pass
os.sendfile, os.scandir("."), os.get_terminal_size, time.sleep(0.001)
'`},
	{name: "gunicorn and flask", programs: "gunicorn curl", files: map[string]string{"app.py": `
from flask import Flask
app = Flask(__name__)
@app.route("/")
def hello(): return "hello"
`}, script: `gunicorn -w 2 -b unix:$D/s app:app & wait_for $D/s; curl -s --unix-socket $D/s http://x/; kill -HUP $!; sleep 1; curl -s --unix-socket $D/s http://x/; kill -USR1 $!; kill -TTIN $!; sleep 0.5; kill -TERM $!; wait`},
	{name: "perl server", programs: "perl", script: `
		perl -e '
use strict; use IO::Socket::INET; use IO::Socket::UNIX; use POSIX ":sys_wait_h"; use Time::HiRes "sleep"; use Storable; use Digest::SHA; use Sys::Hostname; use File::Temp; use Socket; use Fcntl ":flock"; use IPC::Open3;
my $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1", Listen => 5, Proto => "tcp", ReuseAddr => 1) or die;
my $pid = fork;
if (!$pid) { my $c = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => $s->sockport) or die; print $c "x\n"; my $r = <$c>; exit 0 }
my $c = $s->accept; my $l = <$c>; print $c "y\n"; close $c; waitpid $pid, 0;
print hostname, "\n", join(",", getpwuid($<)), "\n"; flock(STDERR, LOCK_SH); my $p = open3(my $i, my $o, undef, "true"); waitpid $p, 0;
sleep 0.01; my ($fh, $n) = File::Temp::tempfile(DIR => "."); unlink $n; opendir my $d, "."; readdir $d; chmod 0600, "f"; utime 1, 1, "f"; rename "f", "ff"; print system("true"), "\n"; print Digest::SHA::sha1_hex("x");
'`},
	{name: "php -S", programs: "php curl", files: map[string]string{"i.php": `<?php $p = popen("true", "r"); pclose($p); echo extension_loaded("ffi"), gethostbyname("localhost"), getmypid(), file_put_contents("o", "x"), json_encode(array_sum([1])), random_int(1, 2), @mb_strlen("x"); session_start(); ?>`},
		script: `php -S 127.0.0.1:$P -t . & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; curl -s http://127.0.0.1:$P/i.php && break; done; curl -s http://127.0.0.1:$P/f; kill -INT $!; wait; php -r 'pcntl_fork();' || :`},
	{name: "php-fpm behind nginx", programs: "php-fpm8.2 nginx curl", files: map[string]string{
		"fpm.conf":   "[global]\nerror_log = D/e\npid = D/fpid\n[www]\nuser = nobody\ngroup = nogroup\nlisten = D/fs\nlisten.mode = 0666\npm = dynamic\npm.max_children = 3\npm.start_servers = 1\npm.min_spare_servers = 1\npm.max_spare_servers = 2\n",
		"i.php":      `<?php echo "hello", getmypid(), file_put_contents("/tmp/declarun-test-o", "x"), shell_exec("echo y"); unlink("/tmp/declarun-test-o"); ?>`,
		"nginx.conf": "error_log stderr; pid D/npid; include /etc/nginx/modules-enabled/*.conf; events {} http { access_log D/l; client_body_temp_path D/b; proxy_temp_path D/p; fastcgi_temp_path D/f; uwsgi_temp_path D/u; scgi_temp_path D/c; server { listen unix:D/s; root D; location / { include /etc/nginx/fastcgi_params; fastcgi_param SCRIPT_FILENAME D/i.php; fastcgi_pass unix:D/fs; } } }",
	}, script: `php-fpm8.2 -F -y $D/fpm.conf & f=$!; nginx -c $D/nginx.conf -g 'daemon off;' & wait_for $D/fs; wait_for $D/s; for i in 1 2 3; do curl -s --unix-socket $D/s http://x/; done; kill -USR2 $f; sleep 0.7; kill -USR1 $f; kill -HUP $!; sleep 0.5; curl -s --unix-socket $D/s http://x/; kill -QUIT $f $!; wait`},
	{name: "node server", programs: "node", script: `
		node -e '
const http = require("http"), fs = require("fs"), os = require("os"), cp = require("child_process"), dns = require("dns"), crypto = require("crypto"), zlib = require("zlib"), wt = require("worker_threads"), net = require("net");
const s = http.createServer((q, r) => { fs.createReadStream("f").pipe(r) }).listen(0, "127.0.0.1", () => http.get({port: s.address().port, host: "127.0.0.1"}, r => { r.on("data", d => {}); r.on("end", () => {
	s.close(); cp.spawn("true").on("exit", () => cp.exec("echo x", () => { dns.lookup("localhost", () => { new wt.Worker("1", {eval: true}).on("exit", () => { fs.mkdtempSync("t"); fs.watch(".").close(); fs.copyFileSync("f", "g"); os.cpus(); os.networkInterfaces(); process.memoryUsage(); crypto.generateKeyPairSync("ec", {namedCurve: "P-256"}); zlib.gzipSync("x"); const u = net.createServer().listen("u", () => u.close()) }) }) })) }) }));
'`},
	{name: "ruby webrick", programs: "ruby", files: map[string]string{"s.rb": `
require "webrick"; require "json"; require "digest"; require "socket"; require "tempfile"; require "open3"; require "zlib"; require "openssl"; require "etc"; require "io/console"; require "psych"; require "pty"; require "net/http"
s = WEBrick::HTTPServer.new(BindAddress: "127.0.0.1", Port: 0, DocumentRoot: ".")
t = Thread.new { s.start }
sleep 0.5
puts Net::HTTP.get(URI("http://127.0.0.1:#{s.config[:Port]}/f"))
puts Open3.capture2("true").inspect, Digest::SHA256.hexdigest("x"), Etc.getpwuid.name
Process.wait(fork { exit 0 }); system("true"); Tempfile.create("x") { |f| f.flock(File::LOCK_EX); f.fsync }; Process.clock_gettime(Process::CLOCK_MONOTONIC); Signal.trap("TERM") {}; Process.kill("TERM", $$)
File.chmod(0600, "f"); File.utime(1, 1, "f"); File.rename("f", "g"); Dir.children("."); IO.pipe; IO.copy_stream("g", "h")
s.shutdown; t.join
`}, script: `ruby s.rb`},
	{name: "java server", programs: "java javac", files: map[string]string{"S.java": `
import com.sun.net.httpserver.*; import java.net.*; import java.net.http.*; import java.nio.file.*; import java.nio.channels.*; import java.util.concurrent.*;
public class S { public static void main(String[] a) throws Exception { try {
	HttpServer s = HttpServer.create(new InetSocketAddress("127.0.0.1", 0), 0); ExecutorService e = Executors.newFixedThreadPool(3); s.setExecutor(e);
	s.createContext("/", x -> { byte[] b = Files.readAllBytes(Path.of("f")); x.sendResponseHeaders(200, b.length); x.getResponseBody().write(b); x.close(); }); s.start();
	System.out.println(HttpClient.newHttpClient().send(HttpRequest.newBuilder(URI.create("http://127.0.0.1:" + s.getAddress().getPort() + "/")).build(), HttpResponse.BodyHandlers.ofString()).body());
	new ProcessBuilder("true").start().waitFor(); System.out.println(InetAddress.getByName("localhost")); System.out.println(Runtime.getRuntime().availableProcessors());
	FileChannel c = FileChannel.open(Path.of("o"), StandardOpenOption.CREATE, StandardOpenOption.WRITE, StandardOpenOption.READ); c.map(FileChannel.MapMode.READ_WRITE, 0, 100); c.lock().release(); c.force(true);
	WatchService w = FileSystems.getDefault().newWatchService(); Path.of(".").register(w, StandardWatchEventKinds.ENTRY_CREATE); w.close(); Files.move(Path.of("o"), Path.of("p"), StandardCopyOption.REPLACE_EXISTING); try { Files.getFileStore(Path.of(".")).getUsableSpace(); } catch (Exception x) { }
	new java.security.SecureRandom().nextInt(); javax.net.ssl.SSLContext.getDefault(); System.gc(); java.lang.management.ManagementFactory.getOperatingSystemMXBean().getSystemLoadAverage(); Thread.sleep(10); System.exit(0); } catch (Throwable x) { x.printStackTrace(); System.exit(1); }
} }`}, script: `java S; java -XX:+UseSerialGC S; java -XX:+UseZGC S`, before: `javac S.java`},
	{name: "lua", programs: "lua5.4", script: `lua5.4 -e 'local f = io.popen("echo x"); print(f:read("a")); f:close(); os.execute("true"); local t = io.tmpfile(); t:write("x"); t:seek("set"); t:close(); os.rename("f", "g"); print(os.time(), os.tmpname(), os.getenv("HOME"), pcall(require, "socket"))'`},
	{name: "erlang", programs: "erl", script: `erl -noshell -eval '{ok, L} = gen_tcp:listen(0, [binary, {active, false}, {ip, {127,0,0,1}}]), {ok, P} = inet:port(L), spawn(fun() -> {ok, C} = gen_tcp:connect({127,0,0,1}, P, [binary]), gen_tcp:send(C, <<"x">>), timer:sleep(100) end), {ok, S} = gen_tcp:accept(L), io:format("~p~n", [gen_tcp:recv(S, 0)]), file:write_file("o", <<"x">>), file:list_dir("."), os:cmd("true"), inet:gethostbyname("localhost"), catch crypto:hash(sha256, <<"x">>), init:stop().'`},
	{name: "mariadb", programs: "mariadbd mariadb mariadb-install-db", script: `
		chown nobody $D; s="setpriv --reuid nobody --clear-groups"; $s mariadb-install-db --no-defaults --datadir=$D/m --auth-root-authentication-method=normal > /dev/null
		$s mariadbd --no-defaults --datadir=$D/m --socket=$D/s --skip-networking --pid-file=$D/p & wait_for $D/s; q() { mariadb --no-defaults -u root -S $D/s "$@"; }
		q -e 'create database d; create table d.t (a int) engine=innodb; insert into d.t values (1); install soname "ha_archive"; create table d.u (a int) engine=archive; flush logs; select * from d.t; select load_file("/etc/passwd") is null; show engines'; q -e 'shutdown'; wait`},
	{name: "apache2 with Debian's configuration", programs: "apache2 curl", files: map[string]string{"h.html": "x"}, script: `
		cp -a /etc/apache2 $D/a; ports $D/a/ports.conf; sed -i "s#/var/www/html#$D#" $D/a/sites-enabled/*; sed -i "s#<Directory /var/www/>#<Directory $D/>#" $D/a/apache2.conf
		export APACHE_RUN_USER=nobody APACHE_RUN_GROUP=nogroup APACHE_PID_FILE=$D/pid APACHE_RUN_DIR=$D APACHE_LOCK_DIR=$D APACHE_LOG_DIR=$D
		setsid apache2 -d $D/a -DFOREGROUND & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; curl -s http://127.0.0.1:$P/h.html && break; done; curl -s http://127.0.0.1:$P/; apache2 -d $D/a -k graceful; sleep 0.7; curl -s http://127.0.0.1:$P/h.html; kill -WINCH $!; wait`},
	{name: "apache2 with every module that loads", programs: "apache2 curl", files: map[string]string{"h.html": "x"}, script: `
		cp -a /etc/apache2 $D/a; ports $D/a/ports.conf; export APACHE_RUN_USER=nobody APACHE_RUN_GROUP=nogroup APACHE_PID_FILE=$D/pid APACHE_RUN_DIR=$D APACHE_LOCK_DIR=$D APACHE_LOG_DIR=$D; sed -i "s#/var/www/html#$D#" $D/a/sites-enabled/*; sed -i "s#<Directory /var/www/>#<Directory $D/>#" $D/a/apache2.conf
		for m in ssl socache_shmcb proxy proxy_http proxy_fcgi rewrite headers dav dav_fs http2 cache cache_disk session session_cookie lua xml2enc proxy_html watchdog remoteip status info userdir expires deflate brotli ratelimit reqtimeout slotmem_shm proxy_balancer lbmethod_byrequests dbd authn_dbd ldap authnz_ldap md; do test -e $D/a/mods-available/$m.load && for f in $D/a/mods-available/$m.*; do ln -sf ../mods-available/${f##*/} $D/a/mods-enabled/; done; done
		setsid apache2 -d $D/a -DFOREGROUND & for i in 1 2 3 4 5 6 7 8 9; do sleep 0.3; curl -s http://127.0.0.1:$P/h.html && break; done; curl -s -X PROPFIND http://127.0.0.1:$P/; kill -HUP $!; sleep 0.7; curl -s http://127.0.0.1:$P/h.html; kill -TERM $!; wait`},
	{name: "lighttpd", programs: "lighttpd curl", files: map[string]string{"l.conf": "server.document-root = \"D\"\nserver.bind = \"D/s\"\nserver.username = \"nobody\"\nserver.groupname = \"nogroup\"\nserver.errorlog = \"D/e\"\naccesslog.filename = \"D/al\"\nserver.upload-dirs = ( \"D\" )\nserver.modules = ( \"mod_access\", \"mod_alias\", \"mod_redirect\", \"mod_accesslog\", \"mod_dirlisting\", \"mod_staticfile\", \"mod_cgi\", \"mod_proxy\", \"mod_status\" )\ndir-listing.activate = \"enable\"\ncgi.assign = ( \".sh\" => \"/bin/sh\" )\nmimetype.assign = ( \".html\" => \"text/html\" )\n", "c.sh": "printf 'Content-Type: text/plain\\r\\n\\r\\nx'\n"},
		script: `lighttpd -D -f $D/l.conf & wait_for $D/s; for u in f c.sh / ; do curl -s --unix-socket $D/s http://x/$u; done; curl -s -d @f --unix-socket $D/s http://x/c.sh; kill -USR1 $!; sleep 0.5; kill -HUP $!; curl -s --unix-socket $D/s http://x/f; kill -INT $!; wait`},
	{name: "haproxy", programs: "haproxy curl", files: map[string]string{"h.cfg": "global\n user nobody\n group nogroup\n stats socket D/st mode 600 level admin\n master-worker\n nbthread 2\ndefaults\n mode http\n timeout connect 1s\n timeout client 1s\n timeout server 1s\nfrontend f\n bind unix@D/s mode 666\n http-request return status 200 content-type text/plain string x if { path /a }\n default_backend b\nbackend b\n server s unix@D/none check\n"},
		script: `haproxy -W -f $D/h.cfg & wait_for $D/s; curl -s --unix-socket $D/s http://x/a; curl -s --unix-socket $D/s http://x/b > /dev/null; kill -USR2 $!; sleep 0.7; curl -s --unix-socket $D/s http://x/a; kill -USR1 $!; sleep 0.5; kill -TERM $!; wait`},
	{name: "named", programs: "named", files: map[string]string{"n.conf": "options { directory \"D\"; listen-on port P { 127.0.0.1; }; listen-on-v6 { none; }; pid-file \"D/pid\"; session-keyfile \"D/k\"; recursion no; dnssec-validation no; };\ncontrols { };\nzone \"example\" { type master; file \"D/z\"; };\n", "z": "$TTL 60\n@ IN SOA a. b. 1 60 60 60 60\n@ IN NS ns\nns IN A 127.0.0.1\n"},
		script: `chown nobody $D; named -f -u nobody -c $D/n.conf & sleep 1.5; command -v dig > /dev/null && dig +tries=1 +time=1 @127.0.0.1 -p $P ns.example > /dev/null; kill -HUP $!; sleep 0.7; kill -TERM $!; wait`},
}

func TestLives(t *testing.T) {
	strace := need.Program(t, "strace")
	need.Root(t)
	cacheDir := t.TempDir()
	results := map[string]seccompgen.Result{}
	for i, row := range lives {
		t.Run(row.name, func(t *testing.T) {
			for p := range strings.FieldsSeq(row.programs) {
				need.Program(t, p)
			}
			dir := t.TempDir()
			for _, d := range []string{filepath.Dir(dir), dir} { // for those that change their user
				if err := os.Chmod(d, 0o777); err != nil {
					t.Fatal(err)
				}
			}
			port := regexp.MustCompile(`\bP\b`)
			number := string([]byte{'2', byte('0' + i/10), byte('0' + i%10), '7', '1'})
			place := regexp.MustCompile(`\bD\b`)
			for name, text := range row.files {
				if strings.HasSuffix(name, ".conf") || strings.HasSuffix(name, ".cfg") {
					text = place.ReplaceAllString(port.ReplaceAllString(text, number), dir)
				}
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o666); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.WriteFile(filepath.Join(dir, "f"), []byte("b\na\n"), 0o666); err != nil {
				t.Fatal(err)
			}
			script := "D=" + dir + " P=" + number + "\n" + `
wait_for() { for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do test -e $1 && break; sleep 0.3; done; sleep 0.2; }
ports() { echo "Listen 127.0.0.1:$P" > $1; }
` + row.script
			if row.before != "" {
				run(t, dir, "bash", "-c", row.before)
			}
			began := time.Now()
			each, opened := traceEach(t, strace, dir, []string{"bash", "-c", script})
			traced := time.Since(began)
			for p := range strings.FieldsSeq(row.programs) {
				if file, _ := exec.LookPath(p); !strings.Contains(row.before, p+" ") && !slices.ContainsFunc(interpreters(file), func(f string) bool { return len(each[f]) > 5 }) {
					t.Errorf("%s did not run: %v", p, slices.Sorted(maps.Keys(each)))
				}
			}
			cache, err := seccompgen.OpenDirCache(cacheDir)
			if err != nil {
				t.Fatal(err)
			}
			root, err := rootfs.Open("/")
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			total := 0
			for _, p := range slices.Sorted(maps.Keys(each)) {
				res, ok := results[p]
				if !ok {
					if res, err = seccompgen.Analyse(t.Context(), root, seccompgen.Request{Answered: answered(), Programs: []seccompgen.Program{{Path: p, Phase: record.Serving}}}, cache); err != nil {
						t.Fatal(err)
					}
					results[p] = res
				}
				allowed := map[string]bool{}
				for _, c := range res.Calls {
					allowed[c.Name] = true
				}
				for name, line := range each[p] {
					if !allowed[name] {
						t.Errorf("%s: %s was seen and is not allowed: %s", p, name, line)
					}
				}
				for _, u := range res.Unresolved {
					if u.File != p && !opened[u.File] {
						continue // this life has nothing to do with it: the machine may have any scripts
					}
					if row.unresolved == "" || !strings.Contains(u.Reason, row.unresolved) {
						t.Errorf("%s: unresolved %s+%#x: %s", p, u.File, u.Address, u.Reason)
					}
				}
				total += len(each[p])
				t.Logf("%s: %d seen, %d allowed, %d libraries", p, len(each[p]), len(res.Calls), len(res.Libraries))
			}
			t.Logf("%d calls seen in %v", total, traced.Round(time.Millisecond))
		})
	}
}

var (
	began   = regexp.MustCompile(`^execve\("([^"]+)".* = 0$`)
	forked  = regexp.MustCompile(`^(?:clone|clone3|fork|vfork)\(.* = ([0-9]+)$`)
	opens   = regexp.MustCompile(`^open(?:at)?\([^"]*"(/[^"]+)".* = [0-9]+$`)
	ordered = regexp.MustCompile(`^([a-z_][a-z0-9_]*)\(`)
)

// traceEach is trace by program: each process has a file of its own, and is
// what it has executed last, or what its parent was when it was made. opened are
// the files that any of them opened.
func traceEach(t *testing.T, strace, dir string, argv []string) (each map[string]map[string]string, opened map[string]bool) {
	t.Helper()
	traces := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, strace, append([]string{"-ff", "-qq", "-o", filepath.Join(traces, "t"), "--"}, argv...)...)
	cmd.Dir = dir
	cmd.WaitDelay = time.Second
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	t.Logf("%.1500s", out)
	files, err := filepath.Glob(filepath.Join(traces, "t.*"))
	if err != nil || len(files) == 0 {
		t.Fatal("nothing was traced", err)
	}
	type event struct{ call, line, program, child string }
	events := map[string][]event{} // by process
	parent := map[string]string{}
	opened = map[string]bool{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		pid := strings.TrimPrefix(filepath.Ext(file), ".")
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSuffix(line, "\n")
			m := ordered.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			e := event{call: m[1], line: line}
			if m := opens.FindStringSubmatch(line); m != nil {
				if real, err := filepath.EvalSymlinks(m[1]); err == nil {
					opened[real] = true
				}
			}
			if m := began.FindStringSubmatch(line); m != nil {
				if real := interpreters(m[1]); len(real) > 0 && real[0] != "" {
					e.program = real[0]
				}
			}
			if m := forked.FindStringSubmatch(line); m != nil {
				e.child = m[1]
				parent[e.child] = pid
			}
			events[pid] = append(events[pid], e)
		}
	}
	each = map[string]map[string]string{}
	var walk func(pid, program string, depth int)
	walk = func(pid, program string, depth int) {
		if depth > 100 {
			return
		}
		for _, e := range events[pid] {
			if program != "" {
				if each[program] == nil {
					each[program] = map[string]string{}
				}
				each[program][e.call] = e.line
			}
			if e.program != "" {
				program = e.program
			}
			if e.child != "" {
				walk(e.child, program, depth+1)
			}
		}
	}
	for pid := range events {
		if parent[pid] == "" {
			walk(pid, "", 0)
		}
	}
	return each, opened
}
