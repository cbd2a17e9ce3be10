package runtime

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/urfave/cli" // v1: what runc parses with

	"github.com/declarun/declarun/integration/need"
)

func TestParse(t *testing.T) {
	tests := []struct {
		claim string
		args  string
		want  Invocation
	}{
		{"what containerd's shim sends", "--root /run/docker/moby --log /b/log.json --log-format json --systemd-cgroup create --bundle /b --pid-file /b/init.pid c1",
			Invocation{Verb: Create, Word: "create", Root: "/run/docker/moby", Log: "/b/log.json", LogFormat: "json", Bundle: "/b", ID: "c1"}},
		{"all spellings", "-root=/r --log=/l -log-format json create -b=/b c1",
			Invocation{Verb: Create, Word: "create", Root: "/r", Log: "/l", LogFormat: "json", Bundle: "/b", ID: "c1"}},
		{"no bundle is the current directory", "create c1", Invocation{Verb: Create, Word: "create", ID: "c1"}},
		{"flags after the ID", "run c1 -d --bundle /b", Invocation{Verb: Run, Word: "run", Bundle: "/b", ID: "c1"}},
		{"the last one counts", "--root /a --root /b run -b /x -b /y c1", Invocation{Verb: Run, Word: "run", Root: "/b", Bundle: "/y", ID: "c1"}},
		{"a container named create is deleted", "delete create", Invocation{Verb: Delete, Word: "delete", ID: "create"}},
		{"a container named run is killed", "kill run KILL", Invocation{Word: "kill"}},
		{"a bundle named create is started", "run --bundle create c1", Invocation{Verb: Run, Word: "run", Bundle: "create", ID: "c1"}},
		{"a root named run is a value", "--root run state c1", Invocation{Root: "run", Word: "state"}},
		{"single dashes as containerd restores", "restore --image-path /i --work-path /w --detach --pid-file /p --no-pivot -no-subreaper --bundle /b c1",
			Invocation{Verb: Restore, Word: "restore", Bundle: "/b", ID: "c1"}},
		{"-- before the command", "-- create c1", Invocation{Verb: Create, Word: "create", ID: "c1"}},
		{"-- before the ID", "create --bundle /b -- c1", Invocation{Verb: Create, Word: "create", Bundle: "/b", ID: "c1"}},
		{"-- as a value", "create --bundle -- c1", Invocation{Verb: Create, Word: "create", Bundle: "--", ID: "c1"}},
		{"a flag as a value", "create --bundle --no-pivot c1", Invocation{Verb: Create, Word: "create", Bundle: "--no-pivot", ID: "c1"}},
		{"exec with a command line", "exec -e A=b -t --cap CAP_X c1 sh -c run", Invocation{Verb: Exec, Word: "exec", ID: "c1", Args: []string{"sh", "-c", "run"}}},
		{"exec's command has its own flags", "exec c1 sh -p x --help", Invocation{Verb: Exec, Word: "exec", ID: "c1", Args: []string{"sh", "-p", "x", "--help"}}},
		{"exec with a file", "exec --process /p --detach --pid-file /q c1", Invocation{Verb: Exec, Word: "exec", ID: "c1", Process: "/p", Args: []string{}}},
		{"an unknown global flag with a value", "--new 1 create -b /b c1", Invocation{Verb: Create, Word: "create", Bundle: "/b", ID: "c1"}},
		{"an unknown global flag without", "--new create -b /b c1", Invocation{Verb: Create, Word: "create", Bundle: "/b", ID: "c1"}},
		{"an unknown global flag spelt out", "--new=x create c1", Invocation{Verb: Create, Word: "create", ID: "c1"}},
		{"an unknown flag with a value", "create --new 1 -b /b c1", Invocation{Verb: Create, Word: "create", Bundle: "/b", ID: "c1"}},
		{"an unknown flag without", "create --new -b /b c1", Invocation{Verb: Create, Word: "create", Bundle: "/b", ID: "c1"}},
		{"an unknown command", "freeze --hard create", Invocation{Word: "freeze"}},
		{"unknown flags before a command of runc's own", "--a --b --c --d --e --f --g --h --i --j state c1", Invocation{}},
		{"a command for people after a flag of theirs", "--config /f plan --json", Invocation{Word: "plan"}},
		{"help is runc's", "create --help", Invocation{Word: "create"}},
		{"help about create is runc's", "help create", Invocation{Word: "help"}},
		{"a help that is false is none", "create --help=false c1", Invocation{Verb: Create, Word: "create", ID: "c1"}},
		{"version comes before the command", "--version create c1", Invocation{Word: "create", Version: true}},
		{"-v", "-v", Invocation{Version: true}},
		{"no ID is runc's to complain about", "create --bundle /b", Invocation{Word: "create"}},
		{"two IDs as well", "create a b", Invocation{Word: "create"}},
		{"nothing", "", Invocation{}},
		{"a lone dash is no flag", "- create c1", Invocation{Word: "-"}},
	}
	for _, test := range tests {
		t.Run(test.claim, func(t *testing.T) {
			got, err := Parse(strings.Fields(test.args))
			if err != nil || fmt.Sprintf("%#v", got) != fmt.Sprintf("%#v", test.want) {
				t.Errorf("Parse(%s)\n got %#v, %v\nwant %#v", test.args, got, err, test.want)
			}
		})
	}
}

func TestALineWithTwoReadingsIsRefused(t *testing.T) {
	for _, args := range []string{
		"--new run create c1",                 // run "create"? no: run takes one; create c1, or run with two IDs
		"create --new c1 c2",                  // is c1 the value?
		"--new create run c1 --bundle /b",     // run c1, or create with two
		"create --a --b --c /x",               // IDs differ
		"--new --root /a create --bundle x y", // is --root a value?
	} {
		inv, err := Parse(strings.Fields(args))
		var ambiguous *AmbiguousError
		if err != nil && !errors.As(err, &ambiguous) {
			t.Errorf("%s: %v", args, err)
		}
		if err == nil && inv.Verb == "" {
			t.Errorf("%s: passed through", args)
		}
	}
	if _, err := Parse(strings.Fields("create --new c1 --other c2")); err == nil {
		t.Error("c1 or c2: not refused")
	} else if remedy := err.(interface{ Remedy() string }).Remedy(); !strings.Contains(remedy, "=value") {
		t.Error(remedy)
	}
	if _, err := Parse(strings.Fields("--a --b --c --d --e --f --g --h1 --i create c1")); !errors.Is(err, errTooManyUnknown) {
		t.Error(err)
	}
}

// oracle runs urfave/cli v1 with runc's flags and says what it would act on.
func oracle(args []string) (inv Invocation, acted bool) {
	app := cli.NewApp()
	app.Name = "runc"
	app.Writer = io.Discard
	app.ErrWriter = io.Discard
	app.Flags = oracleFlags(globalFlags)
	for verb, flags := range commandFlags {
		app.Commands = append(app.Commands, cli.Command{
			Name:           string(verb),
			Flags:          oracleFlags(flags),
			SkipArgReorder: verb == Exec,
			Action: func(c *cli.Context) error {
				if c.NArg() < 1 || verb != Exec && c.NArg() != 1 {
					return nil
				}
				acted = true
				inv = Invocation{
					Verb: verb, Root: c.GlobalString("root"), Bundle: c.String("bundle"),
					Process: c.String("process"), ID: c.Args().First(),
				}
				if verb == Exec {
					inv.Args = c.Args().Tail()
				}
				return nil
			},
		})
	}
	cli.OsExiter = func(int) {}
	cli.ErrWriter = io.Discard
	_ = app.Run(append([]string{"runc"}, args...))
	return inv, acted
}

func oracleFlags(flags takesValue) []cli.Flag {
	long := map[string]string{"b": "bundle", "d": "detach", "e": "env", "t": "tty", "u": "user", "g": "additional-gids", "p": "process", "c": "cap", "f": "force"}
	var all []cli.Flag
	for name, takes := range flags {
		if long[name] != "" || slices.Contains([]string{"help", "h", "version", "v"}, name) {
			continue
		}
		for short, l := range long {
			if _, has := flags[short]; has && l == name {
				name += ", " + short
			}
		}
		if takes {
			all = append(all, cli.StringFlag{Name: name})
		} else {
			all = append(all, cli.BoolFlag{Name: name})
		}
	}
	return all
}

// Whatever runc's own parser acts on, Parse acts on in the same way or refuses.
func holdToOracle(t *testing.T, args []string) {
	t.Helper()
	want, acted := oracle(args)
	if !acted {
		return
	}
	got, err := Parse(args)
	if err != nil {
		return
	}
	if !got.same(want) {
		t.Fatalf("%q\nruns  %#v\nParse %#v", args, want, got)
	}
}

var vocabulary = strings.Fields(`create run restore exec delete state c1 c2 - -- --root /r --root=/q -root --log l --debug -debug=false
	--systemd-cgroup --bundle -b /b --bundle=/c -b=/d --no-pivot -no-subreaper -d --detach --pid-file p --preserve-fds 3 --help -h --help=false
	--version -v --process -p f -e A=b --cwd -t --force -f --unknown --unknown=x ---bad -=x`)

func TestParseAgainstRuncsParserOnRandomLines(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	acted := 0
	for range 10_000 {
		args := make([]string, 1+r.IntN(7))
		for i := range args {
			args[i] = vocabulary[r.IntN(len(vocabulary))]
		}
		if r.IntN(2) == 0 { // most random lines are no command at all
			args[0] = vocabulary[r.IntN(5)]
		}
		if _, ok := oracle(args); ok {
			acted++
		}
		holdToOracle(t, args)
	}
	if acted < 200 {
		t.Errorf("only %d lines made runc act: the test tests nothing", acted)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("--root /r create --bundle /b c1")
	f.Add("exec -p f c1")
	f.Add("-- run c1 -- -d")
	f.Add("create --bundle -- c1")
	f.Add("create --no-pivot -- c1 --bundle x")
	f.Fuzz(func(t *testing.T, line string) {
		if args := strings.Split(line, " "); len(args) < 40 {
			if _, err := Parse(args); errors.Is(err, flag.ErrHelp) {
				t.Fatal(err)
			}
			holdToOracle(t, args)
		}
	})
}

var helpFlag = regexp.MustCompile(`^   (--[a-z-]+( value)?(, -[a-z]( value)?)*|--help, -h|--version, -v) `)

// The second judge: the flags that the installed runc prints.
func TestFlagsAgainstRuncHelp(t *testing.T) {
	runc := need.Program(t, "runc")
	check := func(where string, known takesValue, args ...string) {
		out, err := exec.Command(runc, args...).Output()
		if err != nil {
			t.Fatal(err)
		}
		seen := 0
		for line := range strings.Lines(string(out)) {
			m := helpFlag.FindStringSubmatch(line)
			if m == nil {
				continue
			}
			for spelling := range strings.SplitSeq(m[1], ", ") {
				name, takes := strings.CutSuffix(strings.TrimLeft(spelling, "-"), " value")
				if arity, ok := known[name]; !ok || arity != takes {
					t.Errorf("%s: runc has %q, the table has it: %t, with a value: %t", where, spelling, ok, arity)
				}
				seen++
			}
		}
		if seen == 0 {
			t.Errorf("%s: no flag read from the help text", where)
		}
	}
	check("global", globalFlags, "--help")
	for verb, known := range commandFlags {
		check(string(verb), known, string(verb), "--help")
	}
}

func TestNoCommandForPeopleShadowsRunc(t *testing.T) {
	// Of runc 1.0 to 1.5, and the installed one's own.
	verbs := strings.Fields("checkpoint create delete events exec features help h init kill list pause ps restore resume run spec start state update version")
	if runc, err := exec.LookPath("runc"); err == nil {
		out, err := exec.Command(runc, "--help").Output()
		if err != nil {
			t.Fatal(err)
		}
		_, commands, _ := strings.Cut(string(out), "COMMANDS:\n")
		commands, _, _ = strings.Cut(commands, "\n\n")
		for line := range strings.Lines(commands) {
			for _, word := range strings.Fields(strings.ReplaceAll(line, ",", " "))[:1] {
				verbs = append(verbs, word)
			}
		}
	}
	for _, command := range People {
		if slices.Contains(verbs, command.Name) {
			t.Errorf("%s is a command of runc", command.Name)
		}
	}
}
