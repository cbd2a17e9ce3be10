package catalogue

import (
	"path"
	"strings"
)

// Varnish compiles its configuration and loads what came of it, when it starts
// and whenever it is given another one (vcl.load): varnishd(1), cc_command. The
// command is given to /bin/sh with "exec" before the compiler's name. The
// directory is that of -n: absolute, or below the built-in one.
func varnish(r Run) []Fact {
	dir := "/var/lib/varnish"
	for _, n := range r.option("-n") {
		if path.IsAbs(n) && !strings.Contains(n, Unknown) {
			dir = n
		}
	}
	out := []Fact{
		{Write: dir, Maps: true, Source: "varnishd(1): -n, cc_command"},
		// What is left of an earlier child process (mgt_shmem.c of Varnish 6 and 7).
		{Line: "rm -rf _.vsm_child", Source: "Varnish source: mgt_SHM_ChildNew"},
	}
	for _, p := range r.option("-p") {
		if command, ok := strings.CutPrefix(p, "cc_command="); ok {
			return append(out, Fact{Line: strings.NewReplacer("%s", "vgc.c", "%o", "vgc.so", "%w", "").Replace(command), Source: "varnishd(1): cc_command"})
		}
	}
	for _, cc := range r.compilers() {
		out = append(out, Fact{Line: "exec " + cc + " -fpic -shared -o vgc.so vgc.c", Source: "varnishd(1): cc_command"})
	}
	return out
}

// compilers are the C compilers that a package may have built in: by plain name
// and with the machine's before it.
func (r Run) compilers() []string {
	var out []string
	for _, g := range []string{"/usr/bin/cc", "/usr/bin/gcc", "/usr/bin/c99", "/usr/bin/*-linux-gnu-gcc", "/usr/bin/*-linux-musl-gcc", "/usr/bin/clang", "/usr/local/bin/gcc"} {
		for _, p := range r.Glob(g) {
			out = append(out, path.Base(p))
		}
	}
	return out
}

// gcc runs the compiler proper, the assembler and the linker: "gcc and GNU as"
// in gcc(1), COMPILER_PATH, -B. collect2 runs the linker for it, and the linker
// may run the program for link-time optimisation that its plugin names.
func gcc(r Run) []Fact {
	var out []Fact
	for _, g := range []string{"/usr/lib/gcc/*/*/", "/usr/libexec/gcc/*/*/", "/usr/local/libexec/gcc/*/*/"} {
		for _, name := range []string{"cc1", "cc1plus", "collect2", "lto1", "lto-wrapper"} {
			for _, p := range r.Glob(g + name) {
				out = append(out, Fact{Argv: []string{p, Unknown}})
			}
		}
	}
	for _, name := range []string{"as", "ld"} {
		out = append(out, Fact{Argv: []string{name, Unknown}})
	}
	return append(out, Fact{Write: "/tmp", Source: "gcc(1): TMPDIR"})
}

// collect2 and gcc's driver choose among linkers with -fuse-ld.
func linkers(r Run) []Fact {
	var out []Fact
	for _, name := range []string{"ld", "ld.bfd", "ld.gold", "ld.lld"} {
		if r.Program(path.Join("/usr/bin", name)) {
			out = append(out, Fact{Argv: []string{name, Unknown}})
		}
	}
	return out
}

// logrotate runs the scripts of its configuration, and what compresses.
func logrotate(r Run) []Fact {
	var files []string
	for _, a := range r.Argv[min(1, len(r.Argv)):] {
		if !strings.HasPrefix(a, "-") && !strings.Contains(a, Unknown) && strings.Contains(a, "/") {
			files = append(files, r.abs(a))
		}
	}
	if files == nil {
		files = r.Glob("/etc/logrotate.conf")
	}
	out := []Fact{{Write: "/var/lib/logrotate", Source: "logrotate(8): state file"}, {Write: "/var/lib/logrotate.status", Source: "logrotate(8): state file"}}
	for i := 0; i < len(files) && i < maxFiles; i++ {
		var body []string
		script := false
		for _, line := range lines(r.Text(files[i])) {
			f := strings.Fields(line)
			switch {
			case len(f) == 0:
			case script && f[0] == "endscript" && body == nil:
				script = false
			case script && f[0] == "endscript":
				out = append(out, Fact{Line: strings.Join(body, "\n"), At: files[i], Source: "logrotate(8): scripts are run by sh"})
				script, body = false, nil
			case script:
				body = append(body, line)
			case f[0] == "prerotate" || f[0] == "postrotate" || f[0] == "firstaction" || f[0] == "lastaction" || f[0] == "preremove":
				script = true
			case f[0] == "compress":
				out = append(out, Fact{Argv: []string{"/bin/gzip"}, At: files[i]})
			case (f[0] == "compresscmd" || f[0] == "shred") && len(f) > 1:
				out = append(out, Fact{Argv: []string{f[1]}, At: files[i]})
			case f[0] == "include" && len(f) > 1:
				files = more(files, append(r.Glob(f[1]), r.Glob(path.Join(f[1], "*"))...)...)
			}
		}
	}
	return out[:min(len(out), maxFacts)]
}
