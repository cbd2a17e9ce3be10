package procmap

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/declarun/declarun/shim/rootfs"
)

func FuzzShebang(f *testing.F) {
	for _, s := range []string{"#!/bin/sh\n", "#! /usr/bin/env -S bash -e\r\n", "#!", "#!\n", "#!\x00", "#!/a\tb c  \n", "x", "#!" + strings.Repeat("a", 300)} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, head []byte) {
		s, ok := parseShebang(head)
		if ok && (s.Interpreter == "" || strings.ContainsAny(s.Interpreter, " \t\n\x00")) {
			t.Errorf("%q gave %+v", head, s)
		}
		if len(s.Interpreter)+len(s.Argument) > shebangSize {
			t.Errorf("longer than the kernel reads: %+v", s)
		}
	})
}

func FuzzLaunch(f *testing.F) {
	f.Add("env", "-S\x1fbash -c 'x'\x1fA=1")
	f.Add("su", "-\x1fapp\x1f-c\x1fid")
	f.Add("start-stop-daemon", "--start\x1f--exec\x1f/x\x1f--\x1f-d")
	f.Add("timeout", "-k\x1f5\x1f10")
	f.Fuzz(func(t *testing.T, name, args string) {
		argv := strings.Split(args, "\x1f")
		if l, ok := launchers[name]; ok {
			l.parse(argv)
		}
		for _, i := range interpreters {
			i.parse(argv)
		}
		parseShell(argv)
	})
}

func FuzzScript(f *testing.F) {
	files, _ := filepath.Glob("testdata/entrypoints/*.txt")
	for _, name := range files {
		data, err := os.ReadFile(name)
		must(f, err)
		for part := range strings.SplitSeq(string(data), "\n-- ") {
			if _, body, ok := strings.Cut(part, " --\n"); ok && strings.HasPrefix(body, "#!") {
				f.Add(body)
			}
		}
	}
	f.Add("for f in /*; do \"$f\" & done; trap 'x' 0; . /lib; eval \"$1\"; ${x:-{a,b}} <(y) <<E\n$(z)\nE\n")
	f.Add("f(){ f \"$@\" x; }; f; while shift; do set -- \"$@\" a; done; exec \"${a[@]:1:2}\" ${!b} ${c/d/e} ${f%%*}")
	dir := f.TempDir()
	base().with(tree{"/srv": "elf popen : x", "/lib/x": "data y"}).write(f, dir)
	root, err := rootfs.Open(dir)
	must(f, err)
	f.Cleanup(func() { root.Close() })
	f.Fuzz(func(t *testing.T, src string) {
		if len(src) > 16<<10 {
			t.Skip()
		}
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		c, err := Derive(ctx, root, image("bash", "-c", "#\n"+src, "sh", "a", "b"))
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range c.Processes {
			if !strings.HasPrefix(p.Path, "/") || len(p.Origins) == 0 || p.Phase == "" || p.Identity == "" {
				t.Errorf("incomplete entry %+v", p)
			}
		}
	})
}

func FuzzPasswd(f *testing.F) {
	f.Add([]byte("root:x:0:0:root:/root:/bin/sh\napp:x:999:998::/srv:/bin/false\n"), "app")
	f.Add([]byte("app:x:4294967296:::\x00:\x00\n:::::::\n"), "app:x")
	f.Fuzz(func(t *testing.T, data []byte, user string) {
		dir := t.TempDir()
		must(t, os.MkdirAll(filepath.Join(dir, "etc"), 0o755))
		must(t, os.WriteFile(filepath.Join(dir, "etc/passwd"), data, 0o644))
		root, err := rootfs.Open(dir)
		must(t, err)
		defer root.Close()
		b := newBuilder(t.Context(), root, image("/x"))
		for _, spec := range []string{user, user + ":" + user} {
			if uid := b.uidOf(spec); strings.Trim(uid, "0123456789") != "" {
				t.Errorf("%q is user %q", spec, uid)
			}
		}
		if a, ok := b.passwd(func(a account) bool { return a.name == user }); ok && (!known(a.home) || !known(a.shell)) {
			t.Errorf("%+v", a)
		}
	})
}
