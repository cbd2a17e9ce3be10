package catalogue

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

// tree is an image: what a path holds; programs begin with "#!" or are "elf".
type tree map[string]string

func (t tree) Text(name string) string { return t[name] }

func (t tree) Program(name string) bool {
	return t[name] == "elf" || strings.HasPrefix(t[name], "#!")
}

func (t tree) Glob(pattern string) []string {
	var out []string
	for p := range t {
		for d := p; d != "/" && d != "."; d = path.Dir(d) {
			if ok, _ := path.Match(pattern, d); ok && (!strings.Contains(d, "/.") || strings.Contains(pattern, "/.")) && !slices.Contains(out, d) {
				out = append(out, d)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (f Fact) String() string {
	var what string
	switch {
	case f.Line != "":
		what = fmt.Sprintf("%s -c %q", cmp.Or(f.Shell, "sh"), f.Line)
	case f.Argv != nil:
		what = fmt.Sprintf("%q", f.Argv)
	case f.Write != "":
		what = "write " + f.Write
		if f.Maps {
			what = "load from " + f.Write
		}
	case f.Port != 0:
		what = fmt.Sprintf("listen %s/%d", f.Proto, f.Port)
	default:
		what = "opens"
	}
	if f.Dir != "" {
		what += " in " + f.Dir
	}
	for _, k := range []string{"PATH", "A", "daemon_directory"} {
		if v := f.Env[k]; v != "" {
			what += " " + k + "=" + v
		}
	}
	if f.Serves {
		what += " serves"
	}
	if f.Becomes {
		what += " becomes"
	}
	return fmt.Sprintf("%s @%s", what, f.At)
}

// Each file of testdata has a command line, an image, and what is known then.
func TestKnown(t *testing.T) {
	files, _ := filepath.Glob("testdata/*.txt")
	if len(files) == 0 {
		t.Fatal("no files")
	}
	seen := map[string]bool{}
	for _, name := range files {
		t.Run(filepath.Base(name), func(t *testing.T) {
			data, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			body, want, ok := strings.Cut(string(data), "\n== known ==\n")
			if !ok {
				t.Fatal("nothing is expected")
			}
			head, rest, _ := strings.Cut(body, "\n-- ")
			tr := tree{}
			for part := range strings.SplitSeq(rest, "\n-- ") {
				if p, text, ok := strings.Cut(part, " --\n"); ok {
					tr[p] = strings.TrimSuffix(text, "\n")
				}
			}
			lines := strings.Split(head, "\n")
			argv := split(lines[len(lines)-1])
			var got []string
			for _, f := range Know(Run{Path: argv[0], Argv: argv, Dir: "/", Env: map[string]string{"HOME": "/h"}, Files: tr}) {
				if kinds := count(f.Argv != nil, f.Line != "", f.Write != "", f.Opens != "", f.Port != 0); kinds != 1 || f.Source == "" || f.Application == "" {
					t.Errorf("%+v says %d things, from %q", f, kinds, f.Source)
				}
				seen[f.Application] = true
				got = append(got, strings.ReplaceAll(f.String(), Unknown, "…"))
			}
			for i := range got {
				got[i] = strings.ReplaceAll(got[i], `\x00`, "…")
			}
			if *update {
				if err := os.WriteFile(name, []byte(body+"\n== known ==\n"+strings.Join(got, "\n")+"\n"), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if g := strings.Join(got, "\n"); g != strings.TrimSpace(want) {
				t.Errorf("known:\n%s\nwant:\n%s", g, want)
			}
		})
	}
	for _, a := range Names() {
		if !seen[a] {
			t.Errorf("no test has %s", a)
		}
	}
}

func count(of ...bool) int {
	n := 0
	for _, b := range of {
		if b {
			n++
		}
	}
	return n
}

// An entry says how it is recognised, and by what it is believed.
func TestEntries(t *testing.T) {
	for _, a := range applications {
		if a.name == "" || len(a.is) == 0 || a.source == "" || a.facts == nil {
			t.Errorf("%+v lacks something", a)
		}
		for _, is := range a.is {
			if _, err := path.Match(is, "x"); err != nil || strings.Contains(is, "/") || is == "*" {
				t.Errorf("%s: %q is no name", a.name, is)
			}
		}
	}
}

// Whatever a file holds: what is found is bounded, and stands in one of its lines.
func FuzzFiles(f *testing.F) {
	texts := []string{"* * * * * root id\n", "PATH=/bin\n@reboot id %in\n", "*/5 1-2 * jan mon\tdate +\\%s\n", "include_shell \"id \\\"x\\\"\"\n", "\x00 % \\% @", "1 1 1 1 1 \\",
		"a = $a$a\nb = ${b}\n", "\\\n \\\n\npostrotate\n\\\nendscript", "[program:\ncommand=%(", "ForceCommand\nMatch\nInclude *", "auth [ [ [", "x: |y, \"|z\""}
	seeds, _ := filepath.Glob("testdata/*.txt")
	for _, name := range seeds {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		texts = append(texts, string(data))
	}
	for i := range applications {
		for _, s := range texts {
			f.Add(uint8(i), s)
		}
	}
	line := regexp.MustCompile(`:([0-9]+)$`)
	f.Fuzz(func(t *testing.T, which uint8, text string) {
		if len(text) > 1<<16 {
			return
		}
		n := strings.Count(text, "\n") + 1
		a := applications[int(which)%len(applications)]
		facts := a.facts(Run{Path: "/usr/sbin/" + a.is[0], Argv: []string{a.is[0], "-c", "/etc/given"}, Dir: "/", Files: everywhere(text)})
		if len(facts) > 2*maxFacts {
			t.Fatalf("%s: %d facts", a.name, len(facts))
		}
		for _, f := range facts {
			if count(f.Argv != nil, f.Line != "", f.Write != "", f.Opens != "", f.Port != 0) != 1 {
				t.Fatalf("%s: %+v", a.name, f)
			}
			if m := line.FindStringSubmatch(f.At); m != nil {
				at := 0
				if fmt.Sscan(m[1], &at); at < 1 || at > n {
					t.Fatalf("%s: %+v in %d lines", a.name, f, n)
				}
			}
		}
	})
}

// everywhere has one text in every file, and a file wherever one is looked for.
type everywhere string

func (e everywhere) Text(string) string  { return string(e) }
func (e everywhere) Program(string) bool { return true }
func (e everywhere) Glob(p string) []string {
	if len(p) > 4096 {
		return nil
	}
	return []string{strings.ReplaceAll(p, "*", "x")}
}
