package procmap

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/procmap/internal/elftest"
	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// tree is a root filesystem by path. A value that starts with "-> " is a link,
// "dir" a directory ("dir 999" owned by that user), "elf" an ELF program
// ("elf popen execve : string | string"); all else is the text of an executable file.
type tree map[string]string

const elfLoader = "/lib64/ld-linux-x86-64.so.2"

func (tr tree) write(t testing.TB, dir string) {
	t.Helper()
	for _, d := range []string{"lib64"} {
		must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	must(t, os.WriteFile(filepath.Join(dir, elfLoader), elftest.Build(elftest.Program{}), 0o755))
	var names []string
	for n := range tr {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		p, v := filepath.Join(dir, n), tr[n]
		must(t, os.MkdirAll(filepath.Dir(p), 0o755))
		switch kind, rest, _ := strings.Cut(v, " "); kind {
		case "->":
			must(t, os.Symlink(rest, p))
		case "dir":
			must(t, os.MkdirAll(p, 0o755))
			if rest == "shared" {
				must(t, os.Chmod(p, 0o733|os.ModeSticky))
				break
			}
			if rest != "" {
				uid := 0
				for _, c := range rest {
					uid = uid*10 + int(c-'0')
				}
				need.Root(t) // to give files away
				must(t, os.Chown(p, uid, uid))
			}
		case "elf":
			imports, strs, _ := strings.Cut(rest, " : ")
			prog := elftest.Program{Interpreter: elfLoader, Imports: strings.Fields(imports)}
			if strs != "" {
				prog.Strings = strings.Split(strs, " | ")
			}
			must(t, os.WriteFile(p, elftest.Build(prog), 0o755))
		case "data":
			must(t, os.WriteFile(p, []byte(rest), 0o644))
		default:
			must(t, os.WriteFile(p, []byte(v), 0o755))
		}
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// base is what every test image has.
func base() tree {
	tr := tree{
		"/tmp": "dir", "/run": "dir", "/var/log": "dir", "/var/lib": "dir", "/var/run": "-> /run", "/etc/passwd": "data root:x:0:0:root:/root:/bin/bash\npostgres:x:999:999::/var/lib/postgresql:/bin/bash\napp:x:1000:1000::/home/app:/bin/sh\n",
		"/bin": "-> usr/bin", "/usr/bin/sh": "-> dash", "/usr/bin/dash": "elf", "/usr/bin/bash": "elf execve",
	}
	for _, n := range []string{"env", "cat", "chown", "chmod", "mkdir", "id", "find", "sed", "grep", "sleep", "ls", "rm", "sort", "date", "xargs", "tee", "cp", "true", "nohup", "timeout", "su"} {
		tr["/usr/bin/"+n] = "elf"
	}
	return tr
}

func (tr tree) with(more tree) tree {
	for k, v := range more {
		tr[k] = v
	}
	return tr
}

func image(args ...string) *declared.Declared {
	return &declared.Declared{
		Image: declared.Image{Known: true},
		Process: declared.Process{Args: args, Cwd: "/", Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
			Origins: []record.Origin{{Source: record.FromImage, At: "config.Entrypoint"}}},
	}
}

func derive(t testing.TB, tr tree, d *declared.Declared) (*Closure, error) {
	t.Helper()
	dir := t.TempDir()
	tr.write(t, dir)
	return deriveDir(t, dir, d)
}

func deriveDir(t testing.TB, dir string, d *declared.Declared) (*Closure, error) {
	t.Helper()
	root, err := rootfs.Open(dir)
	must(t, err)
	defer root.Close()
	return Derive(context.Background(), root, d)
}

// list gives the programs of the application in a phase, without ELF loaders.
func list(c *Closure, phase record.Phase, identity record.Identity) string {
	var out []string
	for _, p := range c.Processes {
		if p.Phase == phase && p.Identity == identity && p.Path != elfLoader {
			out = append(out, p.Path)
		}
	}
	return strings.Join(out, " ")
}

func noted(c *Closure, what string) bool {
	return slices.ContainsFunc(c.Notes, func(n plan.Note) bool { return strings.Contains(n.Text, what) })
}

func writable(c *Closure, p string) *plan.Writable {
	for i := range c.Writable {
		if c.Writable[i].Path == p {
			return &c.Writable[i]
		}
	}
	return nil
}
