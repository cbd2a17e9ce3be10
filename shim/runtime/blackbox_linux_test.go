package runtime

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/wire"
)

// The built declarun as a black box, in a directory with the test binary as
// "declarund" beside it and a configuration that names the test binary as runc.

var box struct {
	once             sync.Once
	dir              string // declarun, declarund, fakerunc, config.toml
	declarun, config string
	err              error
}

func TestMain(m *testing.M) {
	self, _ := os.Executable()
	switch filepath.Base(self) {
	case "fakerunc":
		fakeRunc()
	case "declarund":
		fakeDeclarund()
	}
	code := m.Run()
	if box.dir != "" {
		os.RemoveAll(box.dir)
	}
	os.Exit(code)
}

// fakeRunc says what it was started with.
func fakeRunc() {
	if marker := os.Getenv("FAKE_MARKER"); marker != "" {
		os.WriteFile(marker, nil, 0o600)
	}
	var seen seenByRunc
	seen.Args, seen.Env = os.Args, os.Environ()
	seen.Dir, _ = os.Getwd()
	if os.Getenv("FAKE_STDIN") != "" {
		in, _ := io.ReadAll(os.Stdin)
		seen.Stdin = string(in)
	}
	var sig int32
	unix.Prctl(unix.PR_GET_PDEATHSIG, uintptr(unsafe.Pointer(&sig)), 0, 0, 0)
	seen.DeathSignal = int(sig)
	if config, err := os.ReadFile(filepath.Join(os.Getenv("FAKE_BUNDLE"), configName)); err == nil {
		seen.Config = string(config)
	}
	seen.PID = os.Getpid()
	json.NewEncoder(os.Stdout).Encode(seen)
	fmt.Fprint(os.Stderr, "fake runc's stderr")
	if ready := os.Getenv("FAKE_WAIT"); ready != "" {
		os.WriteFile(ready, nil, 0o600)
		time.Sleep(time.Minute)
	}
	code, _ := strconv.Atoi(os.Getenv("FAKE_EXIT"))
	os.Exit(code)
}

type seenByRunc struct {
	Args, Env   []string
	Dir, Stdin  string
	DeathSignal int
	Config      string
	PID         int
}

func setup(t *testing.T) {
	t.Helper()
	box.once.Do(func() { box.err = buildBox() })
	if box.err != nil {
		t.Fatal(box.err)
	}
	configure(t, "")
}

func buildBox() (err error) {
	if box.dir, err = os.MkdirTemp("", "declarun"); err != nil {
		return err
	}
	box.declarun = filepath.Join(box.dir, "declarun")
	box.config = filepath.Join(box.dir, "config.toml")
	build := exec.Command("go", "build", "-o", box.declarun, "-ldflags",
		"-X github.com/declarun/declarun/shim/runtime.configPath="+box.config+" -X github.com/declarun/declarun/shim/runtime.Version=1.2.3-test",
		"github.com/declarun/declarun/cmd/declarun")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build declarun: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	for _, name := range []string{"declarund", "fakerunc"} {
		if err := copyFile(self, filepath.Join(box.dir, name)); err != nil {
			return err
		}
	}
	return nil
}

func copyFile(from, to string) error {
	content, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// configure writes the configuration, with what is given in front of it.
func configure(t *testing.T, lines string) {
	t.Helper()
	state := filepath.Join(box.dir, "state")
	os.RemoveAll(state)
	if !strings.Contains(lines, "runc =") {
		lines += "\nrunc = " + strconv.Quote(filepath.Join(box.dir, "fakerunc"))
	}
	lines += "\nstate-dir = " + strconv.Quote(state) + "\nlog-file = " + strconv.Quote(filepath.Join(box.dir, "events.jsonl")) + "\n"
	if err := os.WriteFile(box.config, []byte(lines), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(state, 0o700); err != nil {
		t.Fatal(err)
	}
}

func socketPath() string { return filepath.Join(box.dir, "state", "declarun.sock") }

// supervisor serves the configured socket until the test ends.
func supervisor(t *testing.T, answer func(wire.Request, []*os.File) wire.Answer) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketPath(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				request, files, _, err := wire.ReadRequest(c)
				if err != nil {
					return
				}
				a := answer(request, files)
				for _, f := range files {
					f.Close()
				}
				wire.WriteAnswer(c, a)
			})
		}
	})
	t.Cleanup(func() { l.Close(); serving.Wait() })
}

// noEdits answers everything with "leave it alone".
func noEdits(wire.Request, []*os.File) wire.Answer {
	return wire.Answer{Prepare: &wire.PrepareAnswer{}}
}

// withHook is config with declarun's hook in it, as a supervisor adds it.
func withHook(t testing.TB, config json.RawMessage, token string) json.RawMessage {
	t.Helper()
	var top map[string]json.RawMessage
	if err := json.Unmarshal(config, &top); err != nil {
		t.Fatal(err)
	}
	top["hooks"] = json.RawMessage(fmt.Sprintf(`{"createRuntime":[{"path":%q,"args":["declarun","__guard","--token",%q]}]}`, box.declarun, token))
	edited, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	return edited
}

func newBundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, configName), []byte(plainConfig), 0o640); err != nil {
		t.Fatal(err)
	}
	return dir
}

const plainConfig = `{"ociVersion":"1.0.2","root":{"path":"rootfs"},"process":{"args":["/app"]}, "x":18446744073709551615}` + "\n"

type outcome struct {
	stdout, stderr string
	code           int
	seen           seenByRunc
}

func run(t *testing.T, cmd *exec.Cmd) outcome {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	o := outcome{stdout: stdout.String(), stderr: stderr.String(), code: cmd.ProcessState.ExitCode()}
	json.Unmarshal(stdout.Bytes(), &o.seen)
	return o
}

func TestWhatIsNotOursReachesRuncAsItWas(t *testing.T) {
	setup(t)
	dir := t.TempDir()
	for _, args := range [][]string{
		{"state", "c1"},
		{"--root", "/r", "--log=/dev/null", "-log-format", "json", "--debug", "kill", "--all", "c1", "9"},
		{"list", "--format=json", "", "with space", "with\nline", "\xff\xfe"},
		{"features"},
		{"--unknown-flag", "x", "newverb", "--", "-y"},
		{"create", "--help"},
		{"create"},
		{"exec", "not-there", "sh", "-c", "exit 3"},
		{"delete", "--force", "not-there"},
		{"start", "create"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			start := func(program string) outcome {
				cmd := exec.Command(program, args...)
				cmd.Args[0] = "runc"
				cmd.Dir = dir
				cmd.Env = []string{"B=2", "A=1", "FAKE_STDIN=1", "FAKE_EXIT=37", "PWD=" + dir, "LISTEN_FDS=1"}
				cmd.Stdin = strings.NewReader("\x00to the container\n")
				cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGUSR2}
				o := run(t, cmd)
				o.seen.PID, o.stdout = 0, regexp.MustCompile(`"PID":\d+`).ReplaceAllString(o.stdout, "")
				return o
			}
			direct, through := start(filepath.Join(box.dir, "fakerunc")), start(box.declarun)
			if fmt.Sprintf("%+v", direct) != fmt.Sprintf("%+v", through) {
				t.Errorf("\ndirect  %+v\nthrough %+v", direct, through)
			}
			if through.code != 37 || through.seen.DeathSignal != int(syscall.SIGUSR2) || through.seen.Stdin != "\x00to the container\n" {
				t.Errorf("%+v", through)
			}
		})
	}
}

func TestDescriptorsSignalsAndLimitsReachRuncAsTheyWere(t *testing.T) {
	setup(t)
	script := filepath.Join(t.TempDir(), "runc")
	// dash keeps its script on descriptor 10; sh as a file has none of its own otherwise.
	if err := os.WriteFile(script, []byte("#!/bin/sh\nulimit -Sn; ulimit -Hn; ls /proc/$$/fd; readlink /proc/$$/fd/3 /proc/$$/fd/7; cat <&3; umask\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	configure(t, "runc = "+strconv.Quote(script))
	start := func(program string) string {
		// HUP is ignored and USR1 blocked on the way in; descriptor 7 besides 3 and 4.
		cmd := exec.Command("/bin/sh", "-c", `trap "" HUP; umask 027; ulimit -Sn 500; exec 7>/dev/null; exec env --block-signal=USR1 "$0" state c1`, program)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		w.WriteString("through descriptor 3\n")
		w.Close()
		defer r.Close()
		cmd.ExtraFiles = []*os.File{r, r}
		o := run(t, cmd)
		return regexp.MustCompile(`pipe:\[\d+\]`).ReplaceAllString(o.stdout+o.stderr, "pipe")
	}
	direct, through := start(script), start(box.declarun)
	if direct != through || !strings.Contains(through, "through descriptor 3") || !strings.HasPrefix(through, "500\n") {
		t.Errorf("direct\n%s\nthrough\n%s", direct, through)
	}
}

func TestSignalsReachRuncAsTheyWere(t *testing.T) {
	setup(t)
	grep := need.Program(t, "grep") // an unknown command is passed through, whatever runc is
	configure(t, "runc = "+strconv.Quote(grep))
	start := func(program string) string {
		cmd := exec.Command("/bin/sh", "-c", `trap "" HUP INT; exec env --block-signal=USR1 "$0" -E '^(SigBlk|SigIgn|NoNewPrivs|Seccomp):' /proc/self/status`, program)
		o := run(t, cmd)
		return o.stdout + o.stderr
	}
	direct, through := start(grep), start(box.declarun)
	// Whoever runs the tests may have more signals ignored or blocked: the lowest
	// bits are HUP and INT, the tenth is USR1.
	if direct != through || !regexp.MustCompile(`SigBlk:\t[0-9a-f]{13}[2367abef]`).MatchString(through) || !regexp.MustCompile(`SigIgn:\t[0-9a-f]{15}[37bf]`).MatchString(through) {
		t.Errorf("direct\n%s\nthrough\n%s", direct, through)
	}
}

func TestDeclarunIsRuncsProcess(t *testing.T) {
	setup(t)
	supervisor(t, noEdits)
	bundle := newBundle(t)
	ready := filepath.Join(t.TempDir(), "ready")
	cmd := exec.Command(box.declarun, "create", "--bundle", bundle, "c1")
	cmd.Env = []string{"FAKE_WAIT=" + ready}
	var out bytes.Buffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "runc", func() bool { _, err := os.Stat(ready); return err == nil })
	cmd.Process.Signal(syscall.SIGTERM)
	cmd.Wait()
	var seen seenByRunc
	if err := json.Unmarshal(out.Bytes(), &seen); err != nil || seen.PID != cmd.Process.Pid {
		t.Errorf("%+v %v, want process %d", seen, err, cmd.Process.Pid)
	}
	if got := cmd.ProcessState.Sys().(syscall.WaitStatus); !got.Signaled() && got.ExitStatus() == 0 {
		t.Errorf("the signal did not reach runc: %v", got)
	}
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		if ok() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatalf("%s: waited in vain", what)
}

// Every row is a way in which a container cannot be prepared. runc must not be
// started, and nothing may be left of it.
func TestAPrepareErrorDoesNotForward(t *testing.T) {
	setup(t)
	refuse := func(wire.Request, []*os.File) wire.Answer {
		return wire.Answer{Error: "read image: open /x: permission denied: no such file or directory", Remedy: "chmod it, Permission Denied"}
	}
	tests := []struct {
		claim      string
		arrange    func(t *testing.T, bundle string)
		supervisor func(wire.Request, []*os.File) wire.Answer
		want       string
	}{
		{"refused", nil, refuse, "read image: open /x: access refused: nothing is there"},
		{"an answer without a decision", nil, func(wire.Request, []*os.File) wire.Answer { return wire.Answer{} }, "no decision"},
		{"an edit without a hook", nil, func(r wire.Request, _ []*os.File) wire.Answer {
			return wire.Answer{Prepare: &wire.PrepareAnswer{Config: r.Prepare.Config}}
		}, "no guard hook"},
		{"no config.json", func(_ *testing.T, b string) { os.Remove(filepath.Join(b, configName)) }, noEdits, "JSON specification file config.json not found"},
		{"an empty config.json", func(_ *testing.T, b string) { os.Truncate(filepath.Join(b, configName), 0) }, noEdits, "ends before it is complete"},
		{"half a config.json", func(_ *testing.T, b string) { os.Truncate(filepath.Join(b, configName), 20) }, noEdits, "ends before it is complete"},
		{"a config.json of 17 MiB", func(_ *testing.T, b string) { os.Truncate(filepath.Join(b, configName), 17<<20) }, noEdits, "more than 16777216 bytes"},
		{"a config.json that is a FIFO", func(t *testing.T, b string) {
			os.Remove(filepath.Join(b, configName))
			if err := unix.Mkfifo(filepath.Join(b, configName), 0o600); err != nil {
				t.Fatal(err)
			}
		}, noEdits, "not a regular file"},
		{"root is a number", func(_ *testing.T, b string) {
			os.WriteFile(filepath.Join(b, configName), []byte(`{"root":{"path":7}}`), 0o600)
		}, noEdits, "parse config.json"},
		{"no root file system", func(_ *testing.T, b string) { os.Remove(filepath.Join(b, "rootfs")) }, noEdits, `open root file system "rootfs"`},
		{"a root file system that is a file", func(_ *testing.T, b string) {
			os.Remove(filepath.Join(b, "rootfs"))
			os.WriteFile(filepath.Join(b, "rootfs"), nil, 0o600)
		}, noEdits, "no folder"},
		{"no bundle", func(_ *testing.T, b string) { os.RemoveAll(b) }, noEdits, "nothing is there"},
		{"a copy of an edited configuration", func(t *testing.T, b string) {
			os.WriteFile(filepath.Join(b, configName), withHook(t, []byte(plainConfig), "old"), 0o600)
		}, noEdits, "made by declarun for another start"},
		{"a supervisor that cannot be started", nil, nil, "fake declarund will not"},
		{"a bundle that another create works on", func(t *testing.T, b string) {
			start, _ := startTime(os.Getpid())
			(&claim{dir: b, owner: owner{PID: os.Getpid(), Start: start, ID: "other"}}).writeOwner()
		}, noEdits, "container other is being made from it"},
	}
	for _, test := range tests {
		for _, verb := range []string{"create", "run", "restore"} {
			if verb != "create" && test.claim != "refused" {
				continue
			}
			t.Run(verb+" "+test.claim, func(t *testing.T) {
				configure(t, "")
				if test.supervisor != nil {
					supervisor(t, test.supervisor)
				}
				bundle := newBundle(t)
				if test.arrange != nil {
					test.arrange(t, bundle)
				}
				before := listing(t, bundle)
				dir := t.TempDir()
				marker, log := filepath.Join(dir, "marker"), filepath.Join(dir, "log.json")
				os.WriteFile(log, []byte("earlier\n"), 0o600)
				cmd := exec.Command(box.declarun, "--log", log, "--log-format", "json", verb, "--bundle", bundle, "c1")
				cmd.Env = []string{"FAKE_MARKER=" + marker, "FAKE_SUPERVISE=refuse"}
				o := run(t, cmd)
				if _, err := os.Stat(marker); err == nil {
					t.Error("runc was started")
				}
				if o.code != 1 || o.stdout != "" || !strings.HasPrefix(o.stderr, "declarun: "+verb+" c1: ") || !strings.Contains(o.stderr, test.want) {
					t.Errorf("%+v, want %q", o, test.want)
				}
				written, _ := os.ReadFile(log)
				line, ok := strings.CutPrefix(string(written), "earlier\n")
				var record struct{ Level, Msg, Time string }
				if err := json.Unmarshal([]byte(line), &record); !ok || err != nil || strings.Count(line, "\n") != 1 {
					t.Fatalf("log %q: %v", written, err)
				}
				if _, err := time.Parse(time.RFC3339, record.Time); err != nil || record.Level != "error" || !strings.Contains(record.Msg, test.want) {
					t.Errorf("log record %+v", record)
				}
				for _, m := range magic {
					if strings.Contains(strings.ToLower(record.Msg+o.stderr), m.phrase) {
						t.Errorf("%q has the engines' words %q", record.Msg, m.phrase)
					}
				}
				if after := listing(t, bundle); !slices.Equal(before, after) {
					t.Errorf("bundle before %v\nafter %v", before, after)
				}
			})
		}
	}
}

// listing is names, inodes, modes and sizes, so that a file that was put back
// is told from a copy.
func listing(t *testing.T, dir string) []string {
	t.Helper()
	var lines []string
	entries, _ := os.ReadDir(dir)
	for _, e := range entries {
		st, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		lines = append(lines, fmt.Sprintf("%s %d %s %d", e.Name(), st.Sys().(*syscall.Stat_t).Ino, st.Mode(), st.Size()))
	}
	return lines
}

func TestTheTextLogFormatIsLogrus(t *testing.T) {
	setup(t)
	supervisor(t, func(wire.Request, []*os.File) wire.Answer {
		return wire.Answer{Error: `said "no"`, Remedy: "ask again"}
	})
	log := filepath.Join(t.TempDir(), "log")
	o := run(t, exec.Command(box.declarun, "--log="+log, "run", "-b", newBundle(t), "c1"))
	written, _ := os.ReadFile(log)
	if !regexp.MustCompile(`^time="[^"]+" level=error msg="declarun: run c1: said \\"no\\" \(try: ask again\)"\n$`).Match(written) {
		t.Errorf("%s", written)
	}
	if want := "declarun: run c1: said \"no\"\ndeclarun: try: ask again\n"; o.stderr != want {
		t.Errorf("%q, want %q", o.stderr, want)
	}
}

func TestOnFailureAuditStartsUnderRuncAloneAndSaysSo(t *testing.T) {
	setup(t)
	configure(t, `on-failure = "audit"`)
	supervisor(t, func(wire.Request, []*os.File) wire.Answer { return wire.Answer{Error: "cannot"} })
	bundle := newBundle(t)
	cmd := exec.Command(box.declarun, "create", "-b", bundle, "c1")
	cmd.Env = []string{"FAKE_BUNDLE=" + bundle}
	o := run(t, cmd)
	events, _ := os.ReadFile(filepath.Join(box.dir, "events.jsonl"))
	os.Remove(filepath.Join(box.dir, "events.jsonl"))
	if o.code != 0 || o.seen.Config != plainConfig || !strings.Contains(string(events), `"reason":"not guarded: create c1: cannot"`) {
		t.Errorf("%+v\n%s", o, events)
	}
}

func TestRuncGetsTheEditAndTheHookPutsTheFileBack(t *testing.T) {
	setup(t)
	bundle := newBundle(t)
	before := listing(t, bundle)
	var mu sync.Mutex
	var asked wire.PrepareRequest
	supervisor(t, func(r wire.Request, files []*os.File) wire.Answer {
		mu.Lock()
		defer mu.Unlock()
		asked = *r.Prepare
		var st, want unix.Stat_t
		raw, _ := files[0].SyscallConn()
		raw.Control(func(fd uintptr) { unix.Fstat(int(fd), &st) })
		unix.Stat(filepath.Join(bundle, "rootfs"), &want)
		if st.Ino != want.Ino || st.Dev != want.Dev {
			return wire.Answer{Error: "another directory"}
		}
		return wire.Answer{Prepare: &wire.PrepareAnswer{Config: withHook(t, r.Prepare.Config, "tok")}}
	})
	cmd := exec.Command(box.declarun, "--root", "r", "run", "c1") // relative root, bundle by default
	cmd.Dir = bundle
	cmd.Env = []string{"FAKE_BUNDLE=" + bundle}
	o := run(t, cmd)
	if o.code != 0 || tokenOf([]byte(o.seen.Config)) != "tok" || !strings.Contains(o.seen.Config, "18446744073709551615") {
		t.Fatalf("%+v", o)
	}
	mu.Lock()
	defer mu.Unlock()
	if asked.Root != filepath.Join(bundle, "r") || asked.Bundle != bundle || asked.ID != "c1" || asked.Verb != "run" ||
		asked.Executable != box.declarun || len(asked.ParentArgs) == 0 || asked.ParentArgs[0] != os.Args[0] {
		t.Errorf("%+v", asked)
	}
	st, err := os.Stat(filepath.Join(bundle, configName))
	if err != nil || st.Mode().Perm() != 0o640 {
		t.Errorf("mode of the edited file %v %v", st.Mode(), err)
	}
	if err := putBack(bundle, "other"); err != nil || slices.Equal(listing(t, bundle), before) {
		t.Error("put back by another's hook")
	}
	if err := putBack(bundle, "tok"); err != nil || !slices.Equal(listing(t, bundle), before) {
		t.Errorf("%v\nbefore %v\nafter  %v", err, before, listing(t, bundle))
	}
}

func TestExecIsAnnouncedForSupervisedContainersOnly(t *testing.T) {
	setup(t)
	root := t.TempDir()
	for id, state := range map[string]string{"ours": `{"config":{"Hooks":{"createRuntime":[{"args":["declarun","__guard","--token","t"]}]}}}`, "other": `{"config":{}}`} {
		os.Mkdir(filepath.Join(root, id), 0o755)
		os.WriteFile(filepath.Join(root, id, "state.json"), []byte(state), 0o600)
	}
	process := filepath.Join(t.TempDir(), "process.json")
	os.WriteFile(process, []byte(`{"args":["pg_isready"],"x":18446744073709551615}`), 0o600)
	var mu sync.Mutex
	var asked []wire.Request
	refuse := false
	supervisor(t, func(r wire.Request, _ []*os.File) wire.Answer {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r)
		if refuse {
			return wire.Answer{Error: "not now"}
		}
		return wire.Answer{}
	})
	for _, args := range []string{"exec other sh", "exec ../ours sh", "exec nobody sh", "exec ours sh -c x", "exec --detach --process " + process + " ours", "exec -p /dev/null ours", "delete ours"} {
		if o := run(t, exec.Command(box.declarun, append([]string{"--root", root}, strings.Fields(args)...)...)); o.code != 0 || o.stderr != "fake runc's stderr" {
			t.Errorf("%s: %+v", args, o)
		}
	}
	mu.Lock()
	got, _ := json.Marshal(asked)
	mu.Unlock()
	key := fmt.Sprintf(`"root":%q,"id":"ours"`, root)
	want := fmt.Sprintf(`[{"operation":"exec","exec":{%s,"args":["sh","-c","x"]}},`+
		`{"operation":"exec","exec":{%s,"process":{"args":["pg_isready"],"x":18446744073709551615}}},`+
		`{"operation":"exec","exec":{%s}},{"operation":"forget","forget":{%s}}]`, key, key, key, key)
	if string(got) != want {
		t.Errorf("\n got %s\nwant %s", got, want)
	}
	mu.Lock()
	refuse = true
	mu.Unlock()
	if o := run(t, exec.Command(box.declarun, "--root", root, "exec", "ours", "sh")); o.code != 1 || o.stderr != "declarun: exec ours: not now\n" {
		t.Errorf("%+v", o)
	}
	if o := run(t, exec.Command(box.declarun, "--root", root, "delete", "ours")); o.code != 0 {
		t.Errorf("a refused Forget failed a delete: %+v", o)
	}
}

func TestVersionAndUsage(t *testing.T) {
	setup(t)
	script := filepath.Join(t.TempDir(), "runc")
	os.WriteFile(script, []byte("#!/bin/sh\ncase \"$1\" in --version|-v) printf 'runc version 1.9.9+x\\ncommit: v1.9.9-0-gabc\\nspec: 1.2.0\\n';; *) printf 'NAME:\\n   runc - x\\n\\nCOMMANDS:\\n   create  create it\\n';; esac\n"), 0o755)
	configure(t, "runc = "+strconv.Quote(script))
	for _, flag := range []string{"--version", "-v"} {
		o := run(t, exec.Command(box.declarun, flag))
		if o.stdout != "runc version 1.9.9+x\ncommit: v1.9.9-0-gabc\nspec: 1.2.0\ndeclarun: 1.2.3-test\n" {
			t.Errorf("%q", o.stdout)
		}
		// As Docker reads it: the last line with "version", and "commit:".
		// As CRI-O does: the last word of the first line.
		var version, commit string
		lines := strings.Split(strings.TrimSpace(o.stdout), "\n")
		for _, line := range lines {
			if _, v, ok := strings.Cut(line, "version"); ok {
				version = strings.TrimSpace(v)
			}
			if c, ok := strings.CutPrefix(line, "commit:"); ok {
				commit = strings.TrimSpace(c)
			}
		}
		if version != "1.9.9+x" || commit != "v1.9.9-0-gabc" || !strings.HasSuffix(lines[0], " "+version) {
			t.Errorf("Docker reads %q %q", version, commit)
		}
	}
	other := filepath.Join(box.dir, "box-runtime")
	os.Symlink(box.declarun, other)
	defer os.Remove(other)
	for _, args := range [][]string{nil, {"--help"}, {"-h"}} {
		o := run(t, exec.Command(other, args...))
		if !strings.HasPrefix(o.stdout, "NAME:\n   box-runtime - ") || !strings.HasSuffix(o.stdout, "   create  create it\n") || !strings.Contains(o.stdout, "   explain ") {
			t.Errorf("%v: %s", args, o.stdout)
		}
	}
}

func TestCommandsForPeopleAreDeclarunds(t *testing.T) {
	setup(t)
	for _, args := range [][]string{{"plan", "--json", "x"}, {"--config", "/f", "status"}, {"doctor"}} {
		o := run(t, exec.Command(box.declarun, args...))
		if want := fmt.Sprintf("declarund %q\n", append([]string{box.declarun}, args...)); o.stdout != want || o.code != 0 {
			t.Errorf("%+v, want %q", o, want)
		}
	}
}

func TestRuncIsNeverDeclarun(t *testing.T) {
	setup(t)
	dir := t.TempDir()
	clone := filepath.Join(dir, "copy")
	if err := copyFile(box.declarun, clone); err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(dir, "link")
	os.Symlink(box.declarun, link)
	for runc, want := range map[string]string{
		box.declarun: "is declarun itself", link: "is declarun itself", clone: "is declarun itself",
		"relative": "not an absolute path", dir: "not a program", dir + "/none": "not there",
	} {
		configure(t, "runc = "+strconv.Quote(runc))
		o := run(t, exec.Command(box.declarun, "state", "c1"))
		if o.code != 1 || !strings.Contains(o.stderr, want) {
			t.Errorf("%s: %+v", runc, o)
		}
	}
}

// fakeDeclarund is a supervisor that says where it finds itself.
func fakeDeclarund() {
	if len(os.Args) < 2 || os.Args[len(os.Args)-1] != "supervise" {
		fmt.Printf("declarund %q\n", os.Args)
		os.Exit(0)
	}
	self, _ := os.Executable()
	dir := filepath.Dir(self)
	if _, err := os.Stat(filepath.Join(dir, "state", "serve")); err != nil {
		fmt.Fprintln(os.Stderr, "fake declarund will not")
		os.Exit(1)
	}
	f, _ := os.OpenFile(filepath.Join(dir, "state", "started"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	fmt.Fprintln(f, os.Getpid())
	f.Close()
	var report strings.Builder
	cwd, _ := os.Getwd()
	fmt.Fprintln(&report, "cwd", cwd)
	fmt.Fprintln(&report, "args", os.Args[1:])
	fmt.Fprintln(&report, "env", len(os.Environ()))
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, _ := os.Readlink("/proc/self/fd/" + e.Name())
		if target != "" && !strings.HasPrefix(target, "anon_inode") && !strings.HasPrefix(target, "/proc/") && !strings.HasPrefix(target, "/sys/fs/cgroup") {
			fmt.Fprintln(&report, "fd", e.Name(), target)
		}
	}
	sid, _ := unix.Getsid(0)
	parent, _ := unix.Getsid(os.Getppid())
	fmt.Fprintln(&report, "own session", sid != parent)
	os.WriteFile(filepath.Join(dir, "state", "report"), []byte(report.String()), 0o600)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "state", "declarun.sock"), Net: "unix"})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	time.AfterFunc(60*time.Second, func() { os.Exit(0) }) // should the test be killed
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			os.Exit(0)
		}
		go func() {
			defer c.Close()
			if _, _, _, err := wire.ReadRequest(c); err == nil {
				wire.WriteAnswer(c, noEdits(wire.Request{}, nil))
			}
		}()
	}
}

func TestManyStartsAtOnceStartOneDetachedSupervisor(t *testing.T) {
	need.Root(t)
	setup(t)
	if err := os.WriteFile(filepath.Join(box.dir, "state", "serve"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var starts sync.WaitGroup
	for i := range 12 {
		bundle := newBundle(t)
		starts.Go(func() {
			r, w, err := os.Pipe()
			if err != nil {
				t.Error(err)
				return
			}
			defer r.Close()
			defer w.Close()
			cmd := exec.Command(box.declarun, "create", "--bundle", bundle, fmt.Sprint("c", i))
			cmd.Dir = bundle
			cmd.ExtraFiles = []*os.File{r, w} // must not reach the supervisor
			var stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = io.Discard, &stderr
			// Wait returns when the last holder of stderr is gone: a supervisor
			// that kept it would hang the engine.
			if err := cmd.Run(); err != nil {
				t.Errorf("%v: %s", err, stderr.String())
			}
		})
	}
	starts.Wait()
	started, err := os.ReadFile(filepath.Join(box.dir, "state", "started"))
	if err != nil {
		t.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(started)) {
		p, _ := strconv.Atoi(pid)
		defer syscall.Kill(p, syscall.SIGKILL)
		cgroups, _ := os.ReadFile("/proc/" + pid + "/cgroup")
		for line := range strings.Lines(string(cgroups)) {
			if path := strings.SplitN(strings.TrimSpace(line), ":", 3)[2]; path != "/" {
				t.Logf("not at the root: %s", line) // where the test itself may not move it
			}
		}
	}
	if n := len(strings.Fields(string(started))); n != 1 {
		t.Errorf("%d supervisors were started", n)
	}
	report, _ := os.ReadFile(filepath.Join(box.dir, "state", "report"))
	want := fmt.Sprintf("cwd /\nargs [--config %s supervise]\nenv 2\nfd 0 /dev/null\nfd 1 %[2]s/state/supervise.log\nfd 2 %[2]s/state/supervise.log\nown session true\n", box.config, box.dir)
	if string(report) != want {
		t.Errorf("supervisor says\n%s\nwant\n%s", report, want)
	}
}
