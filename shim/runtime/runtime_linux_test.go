package runtime

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/wire"
)

func TestPlainLeavesNoWordThatEnginesLookFor(t *testing.T) {
	for in, want := range map[string]string{
		"open /x: permission denied":                   "open /x: access refused",
		"Permission Denied\nNO SUCH FILE or so":        "access refused nothing is there or so",
		"open /ÜÄẞ: Not a Directory, İ is a directory": "open /ÜÄẞ: no folder, İ is a folder",
		"\xff does not exist":                          "? is missing",
	} {
		if got := plain(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
}

func FuzzPlain(f *testing.F) {
	f.Add("permission permission denied denied")
	f.Add("no such no such filefile")
	f.Fuzz(func(t *testing.T, s string) {
		out := strings.ToLower(plain(s))
		for _, m := range magic {
			if strings.Contains(out, m.phrase) && strings.ToLower(plain(plain(s))) != out {
				t.Errorf("%q still says %q", s, m.phrase)
			}
		}
	})
}

// Two readers of one file: where both understand it, they agree.
func TestSettingsAgainstSite(t *testing.T) {
	for _, content := range []string{
		"", string(site.Example),
		`runc = "/opt/runc" # here`,
		"state-dir = '/s'\non-failure = \"audit\"\nlog-file=\"/l\"",
		"socket = \"/s/x.sock\"\nexclude = [\n  \"socket=y\",\n \"runc = z\"]\n[modes]\nsyscalls = \"audit\"\n",
		`"runc" = "/quoted"`,
	} {
		want, err := site.Parse([]byte(content))
		if err != nil {
			t.Fatalf("%s: %v", content, err)
		}
		got, err := parseSettings(content)
		if err != nil || got != (settings{want.Runc, want.Socket, want.StateDir, want.LogFile, string(want.OnFailure)}) {
			t.Errorf("%s\n got %+v, %v\nwant %+v", content, got, err, want)
		}
	}
	for _, content := range []string{`runc = "a\u0062"`, `runc = """/x"""`, `runc = 7`, `runc = "relative"`, `on-failure = "off"`, `socket = "/x`, `state-dir = ["/x"]`} {
		if s, err := parseSettings(content); err == nil {
			t.Errorf("%s: read as %+v", content, s)
		}
	}
	if defaultConfigPath != site.DefaultPath {
		t.Error(site.DefaultPath)
	}
}

func claimed(t *testing.T, dir, id string) *claim {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := claimBundle(ctx, dir, id)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// The owner of a claim that is edited and then dies.
func abandoned(t *testing.T, dir, token string) {
	t.Helper()
	c := claimed(t, dir, "dead")
	config, err := c.readConfig()
	if err != nil {
		t.Fatal(err)
	}
	c.owner.PID, c.owner.Start = os.Getpid(), 1 // same number, another process
	if err := c.edit(withHook(t, config, token)); err != nil {
		t.Fatal(err)
	}
}

func TestABundleIsStartedAgain(t *testing.T) {
	tests := []struct {
		claim   string
		between func(t *testing.T, dir string)
		want    string // of the configuration, or of the error
	}{
		{"after a create that never came to its hook", func(t *testing.T, dir string) { abandoned(t, dir, "t") }, "/app"},
		{"after two of them", func(t *testing.T, dir string) { abandoned(t, dir, "t"); abandoned(t, dir, "u") }, "/app"},
		{"with the configuration written anew meanwhile", func(t *testing.T, dir string) {
			abandoned(t, dir, "t")
			os.WriteFile(filepath.Join(dir, configName), []byte(strings.Replace(plainConfig, "/app", "/new", 1)), 0o644)
		}, "/new"},
		{"with our own edit changed by hand: refused, the original kept", func(t *testing.T, dir string) {
			abandoned(t, dir, "t")
			content, _ := os.ReadFile(filepath.Join(dir, configName))
			os.WriteFile(filepath.Join(dir, configName), append(content, '\n'), 0o644)
		}, "made by declarun for another start"},
		{"killed between the two names", func(t *testing.T, dir string) {
			abandoned(t, dir, "t")
			os.Rename(filepath.Join(dir, originalName), filepath.Join(dir, configName))
			os.Link(filepath.Join(dir, configName), filepath.Join(dir, originalName))
		}, "/app"},
		{"after its hook", func(t *testing.T, dir string) {
			abandoned(t, dir, "t")
			if err := putBack(dir, "t"); err != nil {
				t.Fatal(err)
			}
		}, "/app"},
		{"as a symbolic link", func(t *testing.T, dir string) {
			os.Rename(filepath.Join(dir, configName), filepath.Join(dir, "shared.json"))
			os.Symlink("shared.json", filepath.Join(dir, configName))
			abandoned(t, dir, "t")
			if err := putBack(dir, "t"); err != nil {
				t.Fatal(err)
			}
			if target, _ := os.Readlink(filepath.Join(dir, configName)); target != "shared.json" {
				t.Error("the link is gone")
			}
		}, "/app"},
	}
	setup(t)
	for _, test := range tests {
		t.Run(test.claim, func(t *testing.T) {
			dir := newBundle(t)
			test.between(t, dir)
			c := claimed(t, dir, "next")
			config, err := c.readConfig()
			if got := string(config) + fmt.Sprint(err); !strings.Contains(got, test.want) {
				t.Errorf("%s, want %q", got, test.want)
			}
			if err == nil {
				if err := c.edit(withHook(t, config, "next")); err != nil {
					t.Error(err)
				}
				c.release()
				if again, err := os.ReadFile(filepath.Join(dir, configName)); err != nil || strings.TrimSpace(string(again)) != string(config) {
					t.Errorf("after release %s %v", again, err)
				}
				for _, name := range []string{originalName, ownerName, newName} {
					if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
						t.Error("left behind: " + name)
					}
				}
			}
		})
	}
}

func FuzzTokenOf(f *testing.F) {
	f.Add([]byte(plainConfig))
	f.Add([]byte(`{"Hooks":{"CREATERUNTIME":[{"args":["x","__guard","--token","t"]},null]}}`))
	f.Add([]byte(`{"hooks":{"createRuntime":[{"args":["__guard"]}]}}`))
	f.Fuzz(func(t *testing.T, config []byte) {
		tokenOf(config)
		var s spec
		if json.Unmarshal(config, &s) == nil {
			for _, d := range writableMounts(s) {
				if !filepath.IsAbs(d) || d == "/" {
					t.Errorf("mount %q", d)
				}
			}
		}
	})
}

func TestWritableMounts(t *testing.T) {
	var s spec
	if err := json.Unmarshal([]byte(`{"mounts":[
		{"destination":"/proc","type":"proc"},{"destination":"/dev","type":"tmpfs"},{"destination":"/dev/shm","type":"tmpfs"},
		{"destination":"/data/","type":"bind","options":["rbind","rw"]},{"destination":"/etc/hosts","options":["bind","ro"]},
		{"destination":"/a","options":["bind"]},{"destination":"/a","options":["bind","ro"]},{"destination":"../up","options":["ro","bind","rw"]}]}`), &s); err != nil {
		t.Fatal(err)
	}
	if got := writableMounts(s); !slices.Equal(got, []string{"/dev/shm", "/data", "/up"}) {
		t.Error(got)
	}
}

func TestCgroupMounts(t *testing.T) {
	got := cgroupMounts("29 23 0:26 / /sys/fs/cgroup/mem\\040ory rw,nosuid shared:9 - cgroup cgroup rw,memory\n30 23 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n31 23 0:5 / /x rw - tmpfs cgroup rw\nbroken - cgroup\n")
	if !slices.Equal(got, []string{"/sys/fs/cgroup/mem ory", "/sys/fs/cgroup/unified"}) {
		t.Errorf("%q", got)
	}
}

// The whole way with the real runc and a supervisor that adds nothing but the
// hook: the container runs, its guard is armed before it does, and the bundle
// is what it was.
func TestRunOfABareBundleUnderRealRunc(t *testing.T) {
	runc := need.Runc(t)
	setup(t)
	configure(t, "runc = "+strconv.Quote(runc))
	bundle := newBundle(t)
	app := filepath.Join(t.TempDir(), "main.go")
	if err := os.WriteFile(app, []byte("package main\n\nimport (\n\t\"fmt\"\n\t\"os\"\n)\n\nfunc main() {\n\tfmt.Println(\"in the container\", os.Args[1:])\n\tos.Exit(7)\n}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	build := exec.Command("go", "build", "-o", filepath.Join(bundle, "rootfs/app"), app)
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for _, dir := range []string{"proc", "data"} {
		if err := os.Mkdir(filepath.Join(bundle, "rootfs", dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	config := `{"ociVersion":"1.0.2","process":{"cwd":"/","args":["/app","x"],"user":{"uid":0,"gid":0}},"root":{"path":"rootfs"},
		"mounts":[{"destination":"/proc","type":"proc","source":"proc"},{"destination":"/data","type":"tmpfs","source":"tmpfs"}],
		"linux":{"cgroupsPath":"` + "declarun-test-" + strconv.Itoa(os.Getpid()) + `","namespaces":[{"type":"pid"},{"type":"mount"},{"type":"ipc"},{"type":"uts"},{"type":"network"}]}}`
	if err := os.WriteFile(filepath.Join(bundle, configName), []byte(config), 0o640); err != nil {
		t.Fatal(err)
	}
	before := listing(t, bundle)
	var mu sync.Mutex
	refuse, others := "", 0
	var guarded *wire.GuardRequest
	supervisor(t, func(r wire.Request, files []*os.File) wire.Answer {
		mu.Lock()
		defer mu.Unlock()
		switch r.Operation {
		case wire.Prepare:
			return wire.Answer{Prepare: &wire.PrepareAnswer{Config: withHook(t, r.Prepare.Config, "token-"+r.Prepare.ID)}}
		case wire.Guard:
			guarded = r.Guard
			if _, err := os.Stat("/proc/" + strconv.Itoa(r.Guard.PID)); err != nil {
				return wire.Answer{Error: "no process " + strconv.Itoa(r.Guard.PID)}
			}
			return wire.Answer{Error: refuse}
		default:
			others++
		}
		return wire.Answer{}
	})
	root := t.TempDir()
	command := func(id string) *exec.Cmd {
		return exec.Command(box.declarun, "--root", root, "run", "--bundle", bundle, id)
	}
	for range 2 { // twice the same bundle
		id := fmt.Sprintf("declarun-test-%d", os.Getpid())
		mu.Lock()
		guarded = nil
		mu.Unlock()
		o := run(t, command(id))
		if o.code != 7 || o.stdout != "in the container [x]\n" || o.stderr != "" {
			t.Fatalf("%+v", o)
		}
		mu.Lock()
		if guarded == nil || guarded.Token != "token-"+id || guarded.ID != id ||
			!slices.Equal(guarded.Files, []string{"netns", "mntns", "pidns", "rootfs", "mount:/data"}) {
			t.Errorf("%+v", guarded)
		}
		mu.Unlock()
		if after := listing(t, bundle); !slices.Equal(before, after) {
			t.Errorf("bundle before %v\nafter %v", before, after)
		}
	}
	mu.Lock()
	refuse = "no fanotify here"
	mu.Unlock()
	o := run(t, command("declarun-test-refused"))
	if o.code != 1 || strings.Contains(o.stdout, "in the container") || !strings.Contains(o.stderr, "declarun: guard declarun-test-refused: no fanotify here") {
		t.Errorf("%+v", o)
	}
	if after := listing(t, bundle); !slices.Equal(before, after) {
		t.Errorf("bundle before %v\nafter a refusal %v", before, after)
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Errorf("left in runc's root: %v", left)
	}
}

func TestAHungSupervisorIsGivenUpAndTheBundleIsAsItWas(t *testing.T) {
	setup(t)
	bundle := newBundle(t)
	before := listing(t, bundle)
	hang := make(chan struct{})
	supervisor(t, func(wire.Request, []*os.File) wire.Answer { <-hang; return wire.Answer{} })
	defer close(hang)
	defer func(d time.Duration) { prepareTimeout = d }(prepareTimeout)
	prepareTimeout = 200 * time.Millisecond
	_, err := prepare(Invocation{Verb: Create, Bundle: bundle, ID: "c1", Root: "/r"}, settings{socket: socketPath(), stateDir: filepath.Join(box.dir, "state")})
	if err == nil || !strings.Contains(err.Error(), "supervisor does not answer") || remedyOf(err) == "" {
		t.Error(err)
	}
	if after := listing(t, bundle); !slices.Equal(before, after) {
		t.Errorf("before %v\nafter %v", before, after)
	}
}

// What every state and kill pays for starts with what is linked in.
func TestDeclarunStaysThin(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/declarun/declarun/cmd/declarun").Output()
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"golang.org/x/sys/unix"}
	for _, own := range []string{"cmd/declarun", "shim/runtime", "shim/wire", "shim/plan", "shim/record"} {
		allowed = append(allowed, "github.com/declarun/declarun/"+own)
	}
	for dep := range strings.FieldsSeq(string(out)) {
		host, _, _ := strings.Cut(dep, "/")
		if strings.Contains(host, ".") && !slices.Contains(allowed, dep) {
			t.Errorf("imports %s", dep)
		}
	}
}
