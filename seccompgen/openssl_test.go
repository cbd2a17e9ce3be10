package seccompgen

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/rootfs"
)

// opensslRows are configurations, in DIR, and whether OpenSSL loads the engine
// for them. Where it does not, a reader that is not sure may still say so.
var opensslRows = []struct {
	claim  string
	text   string
	loads  bool
	unsure bool
}{
	{claim: "nothing", text: "HOME = .\n"},
	{claim: "engines", text: "openssl_conf = init\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "by another name", text: "openssl_conf = init\n[init]\nengines = all\n[all]\nx = a\n[a]\nengine_id = afalg\ninit = 0\n", loads: true},
	{claim: "the name cut short", text: "openssl_conf = init\n[init]\neng = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "a suffix", text: "openssl_conf = init\n[init]\nengines.2.3 = all\n[all]\nafalg = a\n[a]\ninit = 0\n", unsure: true},
	{claim: "a suffix of one part", text: "openssl_conf = init\n[init]\nengines.2 = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "spaces, comments and empty lines", text: "\ufeff  openssl_conf=init # x = y\r\n\n#[x]\n [  init  ]  \nengines\t=\tall\n[all]\nafalg = a\n[a]\ninit = 0", loads: true},
	{claim: "the default section again", text: "[x]\na = b\n[default]\nopenssl_conf = init\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "a section in two parts", text: "openssl_conf = init\n[init]\noid_section = s\n[s]\nmyoid = 1.2.3.4\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "the name of a section before the name", text: "default::openssl_conf = init\ninit::engines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "quotes", text: "openssl_conf = \"in\"'it'\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "quotes elsewhere", text: "openssl_conf = init\n[init]\nssl_conf = s\n[s]\nx = y\n[y]\nCiphers = \"DEFAULT # all\"\n[insta]\nsubject = \"/CN=x\" # \"\n"},
	{claim: "a comment behind a quoted sign", text: "x = '#'\nopenssl_conf = init\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "a quote without end", text: "x = 'a\nopenssl_conf = init\n", unsure: true},
	{claim: "a name in quotes", text: "\"openssl_conf\" = init\n[init]\n", unsure: true},
	{claim: "a line that goes on", text: "openssl_conf = in\\\nit\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "a variable", text: "x = init\nopenssl_conf = $x\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "an escape", text: "openssl_conf = in\\it\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "a value twice, the last counts", text: "openssl_conf = x\nopenssl_conf = init\n[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "a value twice, the first does not", text: "openssl_conf = init\nopenssl_conf = x\n[init]\nengines = all\n[x]\nssl_conf = y\n[all]\nafalg = a\n[a]\ninit = 0\n[y]\n", unsure: true},
	{claim: "an include", text: "openssl_conf = init\n.include DIR/engines\n", loads: true},
	{claim: "an include with a sign", text: "openssl_conf = init\n.include=DIR/engines\n", loads: true},
	{claim: "an include of a directory", text: "openssl_conf = init\n.include DIR/more\n", loads: true},
	{claim: "an include that leaves another section open", text: ".include DIR/engines\nopenssl_conf = init\n"},
	{claim: "an include within a section", text: "openssl_conf = init\n[init]\n.include DIR/line\n[all]\nafalg = a\n[a]\ninit = 0\n", loads: true},
	{claim: "an include without a place to be found", text: "openssl_conf = init\n.include engines\n", unsure: true},
	{claim: "providers", text: "openssl_conf = init\n[init]\nproviders = p\n[p]\ndefault = d\n[d]\nactivate = 1\n"},
	{claim: "engines of nobody", text: "openssl_conf = init\n[init]\nssl_conf = s\n[s]\n[other]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n"},
	{claim: "no section that is open", text: "openssl_conf = init\n[init\nengines = all\n", unsure: true},
}

func opensslConfig(t testing.TB, text string) (root *rootfs.Root, dir string) {
	dir = t.TempDir()
	for name, s := range map[string]string{
		"openssl.cnf": text, "engines": "[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n",
		"more/a.cnf": "[init]\nengines = all\n[all]\nafalg = a\n[a]\ninit = 0\n", "more/README": "}", "line": "engines = all\n",
	} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(strings.ReplaceAll(s, "DIR", dir)), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root, dir
}

// asksFor reads a configuration as noEngines does.
func asksFor(root *rootfs.Root, file string) (asks, understood bool) {
	l := &loader{r: newReader(root), req: &Request{Immutable: true}}
	cf := &configured{l: l, seen: map[string]bool{}, ok: true}
	o := opensslFile{cf: cf, section: "default", values: map[string][]confLine{}}
	o.read(file, 0)
	return !cf.ok || o.asks(true), cf.ok
}

// OpenSSL and the reader of its configuration agree: the reader misses no engine.
func TestOpenSSLAgrees(t *testing.T) {
	openssl := need.Program(t, "openssl")
	for _, row := range opensslRows {
		t.Run(row.claim, func(t *testing.T) {
			root, dir := opensslConfig(t, row.text)
			cmd := exec.CommandContext(t.Context(), openssl, "rand", "-hex", "1")
			cmd.Env = []string{"LD_DEBUG=files", "OPENSSL_CONF=" + filepath.Join(dir, "openssl.cnf")}
			out, _ := cmd.CombinedOutput() // it may not like the file
			if loads := strings.Contains(string(out), "afalg.so"); loads != row.loads {
				t.Errorf("openssl loads the engine: %v, want %v", loads, row.loads)
			}
			if asks, _ := asksFor(root, filepath.Join(dir, "openssl.cnf")); asks != (row.loads || row.unsure) {
				t.Errorf("an engine may be loaded: %v, want %v", asks, row.loads || row.unsure)
			}
		})
	}
}

func FuzzOpenSSLConfiguration(f *testing.F) {
	for _, row := range opensslRows {
		f.Add(row.text)
	}
	f.Add(strings.Repeat(".include DIR/openssl.cnf\n", 3))
	f.Fuzz(func(t *testing.T, text string) {
		root, dir := opensslConfig(t, text)
		asks, understood := asksFor(root, filepath.Join(dir, "openssl.cnf"))
		if !understood && !asks {
			t.Error("what is not understood asks for nothing")
		}
		// A name in the clear is not missed.
		if !strings.ContainsAny(text, "[]\\\"'`;:#.$=\x00") {
			more := "openssl_conf = init\n[init]\nengines = a\n" + text
			root, dir := opensslConfig(t, more)
			if asks, _ := asksFor(root, filepath.Join(dir, "openssl.cnf")); !asks {
				t.Errorf("%q asks for nothing", more)
			}
		}
	})
}

func FuzzPAMConfiguration(f *testing.F) {
	f.Add("auth [success=1 default=ignore] pam_unix.so nullok # pam_x.so\n@include common\n")
	f.Add("auth include /x\n")
	f.Add("-session\trequired\\\n \tpam_a.so")
	f.Add("auth\\ x\n[]#[#]")
	f.Fuzz(func(t *testing.T, text string) {
		words := map[string]bool{}
		if !pamText(text, words) {
			return
		}
		between := func(r rune) bool { return strings.ContainsRune(" \t\n", r) } // libpam's
		for _, w := range strings.FieldsFunc(text, between) {
			if !strings.ContainsAny(w, "[]#\\\r") && !words[w] {
				t.Errorf("%q is no word of %q: %v", w, text, words)
			}
		}
	})
}

// nginxRows are texts with their directives: the words of each behind a "|".
var nginxRows = []struct{ text, main, whole string }{
	{"user x; # y;\nevents { worker_connections 1; }\nload_module late;", "|user x", "|user x|events|worker_connections 1|load_module late"},
	{"a \"b ; c\" 'd\\'e' f\\;g;", "|a b ; c d'e f;g", "|a b ; c d'e f;g"},
	{"http { map $a $b { ~^x\\{2\\} \"${c}\"; } log_format x '{'; }\ninclude ${x}/y;", "", "|http|map $a $b|~^x{2} ${c}|log_format x {|include ${x}/y"},
	{"a;}b", "|a|b", "|a|b"},
	{"a 'b", "|a b", "|a b"},
}

func TestNginxDirectives(t *testing.T) {
	for _, row := range nginxRows {
		for whole, want := range map[bool]string{false: row.main, true: row.whole} {
			var got strings.Builder
			for d := range nginxDirectives(row.text, whole) {
				fmt.Fprintf(&got, "|%s", strings.Join(d, " "))
			}
			if got.String() != want {
				t.Errorf("%q, whole %v: %q, want %q", row.text, whole, got.String(), want)
			}
		}
	}
}

func FuzzNginxConfiguration(f *testing.F) {
	for _, row := range nginxRows {
		f.Add(row.text)
	}
	f.Add("load_module modules/a.so; include /etc/*; events {")
	f.Fuzz(func(t *testing.T, text string) {
		for _, whole := range []bool{false, true} {
			n := 0
			for d := range nginxDirectives(text, whole) {
				if n += len(strings.Join(d, "")); len(d) == 0 {
					t.Fatal("a directive without words")
				}
			}
			if n > len(text) {
				t.Errorf("%d bytes of words in %d", n, len(text))
			}
		}
		// What is said before anything else is heard.
		first := ""
		for d := range nginxDirectives("load_module x;"+text, false) {
			first = strings.Join(d, " ")
			break
		}
		if first != "load_module x" {
			t.Errorf("the first directive is %q", first)
		}
		serverConfiguration(t, text, (*configured).readNginx)
	})
}

func FuzzApacheConfiguration(f *testing.F) {
	f.Add("LoadModule a_module modules/a.so\nIncludeOptional /etc/x/*.conf\n")
	f.Add("<IfModule x>\nloadFile \"a.so\" b.so \\\n c.so\nServerRoot /srv\nInclude c\nSSLCryptoDevice x\n")
	f.Add("Use M\nInclude ${X}\nInclude /etc\n")
	f.Add(strings.Repeat("Include /etc/x/*\n", 50))
	f.Fuzz(func(t *testing.T, text string) {
		serverConfiguration(t, text, (*configured).apache)
	})
}

func (cf *configured) readNginx(file string) {
	cf.nginx(file, nil)
	cf.nginxKeys(file, nil)
}

// serverConfiguration reads a hostile configuration that includes itself.
func serverConfiguration(t *testing.T, text string, read func(*configured, string)) {
	dir := t.TempDir()
	for _, name := range []string{"etc/main.conf", "etc/x/a.conf", "etc/x/b"} {
		file := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := rootfs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	r := newReader(root)
	st := newStore(r, NoCache{}, nil)
	l := newLoader(t.Context(), r, st, nil)
	l.req = &Request{Immutable: true}
	cf := &configured{l: l, seen: map[string]bool{}, named: map[string]bool{}, ok: true}
	read(cf, "/etc/main.conf")
	if len(cf.seen) > 3 {
		t.Errorf("%d files were read", len(cf.seen))
	}
	if len(cf.named) > 0 && cf.ok {
		t.Errorf("modules that the image does not have: %v", cf.named)
	}
}

// FuzzProse: what Perl's interpreter leaves out is documentation, and nothing else.
func FuzzProse(f *testing.F) {
	for _, s := range []string{"=pod\n\nsyscall($x)\n\n=cut\nsyscall($y)", "a\n\n=head1 x\nb\n=cut\nc\n__END__\nd", "=cut\na\n=begin\n", "x =pod\ny", "__DATA__", "=\n=1\n=A\n=z"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 1<<12 {
			return
		}
		prose := proseOf([]byte(s), &languages[0])
		pod, ended, at := false, false, 0
		for line := range strings.Lines(s) {
			text := strings.TrimSuffix(line, "\n")
			switch {
			case ended:
			case strings.HasPrefix(line, "=cut"):
				pod = false
			case !pod && len(text) > 1 && text[0] == '=' && text[1] >= 'a' && text[1] <= 'z' && (at < 2 || s[at-2] == '\n'):
				pod = true
			case !pod && (text == "__END__" || text == "__DATA__"):
				ended = true
			}
			if strings.HasPrefix(line, "=cut") && !ended {
				at += len(line)
				continue // the line itself is neither
			}
			for k := range text {
				if got := prose(at + k); got != (pod || ended) {
					t.Fatalf("%q at %d is documentation: %v, want %v", s, at+k, got, pod || ended)
				}
			}
			at += len(line)
		}
		if none := proseOf([]byte(s), &languages[1]); len(s) > 0 && none(0) {
			t.Error("documentation of another language")
		}
	})
}
