package admission

import (
	"path"
	"slices"
	"strings"

	"mvdan.cc/sh/v3/syntax"

	"github.com/declarun/declarun/shim/declared"
)

// step is one use of a package manager in a RUN, in the order of the script.
type step struct {
	tool   string // "apt" for apt-get and its relatives, "apk"
	update bool   // fetches the lists of packages
	adds   bool   // installs or upgrades packages
}

// packageSteps finds the uses of apt and apk in a shell command. Branches and
// loops count as if they were taken: what might update does update, so that an
// uncertain script is not accused. It never fails: of a script that is not
// shell, its lines are split into words.
func packageSteps(script string) (steps []step) {
	defer func() {
		if recover() != nil { // the parser's fault, not the image's
			steps = wordSteps(script)
		}
	}()
	return shellSteps(script, 0)
}

const maxScript = 64 << 10

func shellSteps(script string, depth int) []step {
	if depth > 3 || len(script) > maxScript || nests(script) {
		return wordSteps(script)
	}
	file, err := syntax.NewParser(syntax.Variant(syntax.LangBash)).Parse(strings.NewReader(script), "")
	if err != nil {
		return wordSteps(script)
	}
	var steps []step
	syntax.Walk(file, func(n syntax.Node) bool {
		call, ok := n.(*syntax.CallExpr)
		if !ok {
			return true
		}
		words := make([]string, 0, len(call.Args))
		for _, w := range call.Args {
			words = append(words, literal(w))
		}
		steps = append(steps, commandSteps(words, depth)...)
		return true
	})
	return steps
}

// nests bounds the recursion of the parser.
func nests(script string) bool {
	return strings.Count(script, "(")+strings.Count(script, "{")+strings.Count(script, "`") > 2000
}

// literal gives a word's text with quotes removed; what is expanded is left out.
func literal(w *syntax.Word) string {
	var b strings.Builder
	var parts func([]syntax.WordPart)
	parts = func(list []syntax.WordPart) {
		for _, p := range list {
			switch p := p.(type) {
			case *syntax.Lit:
				b.WriteString(strings.ReplaceAll(p.Value, "\\\n", ""))
			case *syntax.SglQuoted:
				b.WriteString(p.Value)
			case *syntax.DblQuoted:
				parts(p.Parts)
			}
		}
	}
	parts(w.Parts)
	return b.String()
}

// wordSteps reads a script as lines of words.
func wordSteps(script string) []step {
	var steps []step
	for line := range strings.FieldsFuncSeq(script[:min(len(script), maxScript)], func(r rune) bool { return strings.ContainsRune("\n;&|", r) }) {
		steps = append(steps, commandSteps(strings.Fields(line), 4)...)
	}
	return steps
}

// commandSteps reads one command.
func commandSteps(words []string, depth int) []step {
	for len(words) > 0 { // sudo -E env A=b nice apt-get …
		w := path.Base(words[0])
		switch {
		case slices.Contains([]string{"sudo", "env", "exec", "command", "nice", "time", "eatmydata", "then", "do", "else", "if", "!"}, w):
			words = words[1:]
			for len(words) > 0 && (strings.HasPrefix(words[0], "-") || strings.Contains(words[0], "=")) {
				words = words[1:]
			}
			continue
		case strings.Contains(words[0], "=") && !strings.HasPrefix(words[0], "-"):
			words = words[1:]
			continue
		}
		break
	}
	if len(words) == 0 {
		return nil
	}
	args := words[1:]
	switch name := path.Base(words[0]); name {
	case "sh", "bash", "dash", "ash":
		for i, a := range args {
			if strings.HasPrefix(a, "-") && strings.HasSuffix(a, "c") && i+1 < len(args) {
				return shellSteps(args[i+1], depth+1)
			}
		}
	case "apt-get", "apt", "aptitude":
		return verb("apt", args, []string{"update"}, []string{"install", "upgrade", "dist-upgrade", "full-upgrade", "build-dep"})
	case "apk":
		steps := verb("apk", args, []string{"update"}, []string{"add", "upgrade"})
		for _, a := range args { // these fetch the lists by themselves
			if a == "--no-cache" || a == "--update-cache" || a == "--update" || a == "-U" {
				steps = append([]step{{tool: "apk", update: true}}, steps...)
				break
			}
		}
		return steps
	}
	// yum, dnf, microdnf, zypper and pacman -Sy fetch their lists when they
	// install: they cannot be used without.
	return nil
}

// verb finds the sub-command: the first word that is one, so that options with
// a value of their own ("-o Dir::Cache=x") need not be known.
func verb(tool string, args, updates, adds []string) []step {
	for _, a := range args {
		switch {
		case slices.Contains(updates, a):
			return []step{{tool: tool, update: true}}
		case slices.Contains(adds, a):
			for _, f := range args { // a package given as a file or a simulation needs no lists
				if f == "--download-only" || f == "--simulate" || f == "-s" {
					return nil
				}
			}
			return []step{{tool: tool, adds: true}}
		}
	}
	return nil
}

// neverUpdated finds the first instruction that installs packages although no
// instruction before it, and nothing before it in itself, has fetched the lists.
func neverUpdated(history []declared.Instruction) (at declared.Instruction, tool string, found bool) {
	updated := map[string]bool{}
	for _, in := range history {
		script := in.Arguments
		switch in.Keyword {
		case "RUN":
		case "": // the exec form of RUN, as the classic builder writes it
			script = in.Raw
		default:
			continue
		}
		for _, s := range packageSteps(script) {
			if s.update {
				updated[s.tool] = true
			}
			if s.adds && !updated[s.tool] {
				return in, s.tool, true
			}
		}
	}
	return declared.Instruction{}, "", false
}
