package seccompgen

import (
	"path"
	"slices"
	"strings"
)

// Which of its modules a server loads, where its configuration says so.
//
// nginx loads a module for a load_module directive and no other reason
// (ngx_load_module in nginx.c), Apache for LoadModule and LoadFile (mod_so.c).
// So the files of modules that no directive names need not be allowed for,
// when all of this holds:
//
//   - every command line that starts the server is known, and each of its
//     options is one that names no other configuration (arguments below);
//   - every file of the configuration that is read is one of the image, below
//     no directory that the container may write to or that a mount covers;
//   - every directive is understood: no include leads to where nothing is, or
//     is put together from variables;
//   - every module that is named is found in the image, by the name of its
//     file: which directory a relative path begins at does not matter then.
//
// Otherwise all modules of the image count.

// fixed tells whether nothing that runs in the container can change a file of
// the image, and no mount takes its place. The path is free of symbolic links.
func (r *Request) fixed(file string) bool {
	if !r.Immutable {
		return false
	}
	for _, d := range r.Changeable {
		if d = path.Clean(d); d == "/" || file == d || strings.HasPrefix(file, d+"/") || strings.HasPrefix(d, file+"/") {
			return false
		}
	}
	return true
}

// has tells whether there is a regular file.
func (r *reader) has(name string) bool { _, _, ok := r.regular(name); return ok }

// configured is a server's configuration as it is read.
type configured struct {
	l     *loader
	seen  map[string]bool
	named map[string]bool // file names of modules
	ok    bool
	// engine: it may name an engine of OpenSSL (openssl.go).
	engine bool
}

const maxConfigFiles = 2000

// started is one way in which a server begins: the file of its configuration
// and texts of the command line that come before it.
type started struct {
	file  string
	texts []string
}

// loads gives the file names of the modules that a server's configuration
// loads; false: any may be.
func (l *loader) loads(c *closure) (map[string]bool, bool) {
	cf := &configured{l: l, seen: map[string]bool{}, named: map[string]bool{}, ok: true}
	server, ways, ok := l.startedBy(c)
	if !ok {
		return nil, false
	}
	for _, w := range ways {
		if server == forNginx {
			cf.nginx(w.file, w.texts)
		} else {
			cf.apache(w.file)
		}
	}
	return cf.named, cf.ok && len(cf.seen) > 0
}

// startedBy gives all configurations that a program, which is nginx or Apache,
// is started with; false: it is neither, or they are not known.
func (l *loader) startedBy(c *closure) (server kind, ways []started, ok bool) {
	p := l.running
	if p == nil || len(p.Args) == 0 || c.mods[0].path != p.Path {
		return 0, nil, false
	}
	var main []string
	kinds := (&closure{mods: c.mods[:1]}).hosted()
	strs := c.mods[0].sum.Strings
	var options map[string]int
	switch {
	case kinds&forNginx != 0:
		server = forNginx
		options = map[string]int{"-q": 0, "-t": 0, "-T": 0, "-v": 0, "-V": 0, "-h": 0, "-?": 0, "-s": 1, "-e": 1, "-g": inline, "-c": config}
		for _, s := range strs {
			if path.Base(s) == "nginx.conf" {
				main = append(main, s)
			}
		}
	case kinds&forApache != 0:
		server = forApache
		options = map[string]int{"-DFOREGROUND": 0, "-D": 1, "-k": 1, "-X": 0, "-e": 1, "-E": 1, "-S": 0, "-t": 0, "-M": 0, "-l": 0, "-L": 0, "-v": 0, "-V": 0, "-h": 0}
		for _, s := range strs {
			for _, name := range []string{"apache2.conf", "conf/httpd.conf", "httpd.conf"} {
				if f := path.Join(s, name); l.r.has(f) && !slices.Contains(main, f) {
					main = append(main, f)
				}
			}
		}
	default:
		return 0, nil, false
	}
	for _, args := range p.Args {
		texts, given, ok := arguments(args, options)
		if !ok {
			return 0, nil, false
		}
		if len(given) == 0 {
			if len(main) != 1 {
				return 0, nil, false // which of them is not known
			}
			given = main
		}
		for _, f := range given {
			ways = append(ways, started{f, texts})
		}
	}
	return server, ways, true
}

// What follows an option: that many arguments that do not matter, text of the
// configuration, or its file.
const (
	inline = -1
	config = -2
)

// arguments reads a command line; false: something in it is not understood.
func arguments(args []string, options map[string]int) (texts, files []string, ok bool) {
	for i := 1; i < len(args); i++ {
		n, known := options[args[i]]
		if !known {
			return nil, nil, false
		}
		if n == 0 {
			continue
		}
		if i++; i >= len(args) {
			return nil, nil, false
		}
		switch n {
		case inline:
			texts = append(texts, args[i])
		case config:
			if !path.IsAbs(args[i]) {
				return nil, nil, false
			}
			files = append(files, args[i])
		}
	}
	return texts, files, true
}

// file reads one file of the configuration, once.
func (cf *configured) file(name string) (string, bool) {
	p, st, ok := cf.l.r.regular(name)
	if !ok || !cf.l.req.fixed(p) || !cf.l.req.fixed(path.Clean(name)) || st.Size > 1<<20 || len(cf.seen) >= maxConfigFiles {
		cf.ok = false
		return "", false
	}
	if cf.seen[p] {
		return "", false
	}
	cf.seen[p] = true
	b, err := cf.l.r.root.ReadFile(p, 1<<20)
	if err != nil {
		cf.ok = false
		return "", false
	}
	return string(b), true
}

// glob gives the files that a pattern of an include means. A directory that
// could be added to is none of the image's; of patterns only those in the last
// two elements are understood.
func (cf *configured) glob(pattern string, optional bool) []string {
	if !path.IsAbs(pattern) || strings.ContainsAny(pattern, "$[\\{") {
		cf.ok = false
		return nil
	}
	names := []string{"/"}
	for part := range strings.SplitSeq(strings.Trim(path.Clean(pattern), "/"), "/") {
		var next []string
		for _, dir := range names {
			if !strings.ContainsAny(part, "*?") {
				next = append(next, path.Join(dir, part))
				continue
			}
			p, _, ok := cf.l.r.stat(dir)
			if !cf.l.req.fixed(path.Clean(dir)) || ok && !cf.l.req.fixed(p) {
				cf.ok = false
				return nil
			}
			entries, _ := cf.l.r.dir(dir)
			for _, e := range entries {
				if ok, _ := path.Match(part, e.Name()); ok && (e.Name()[0] != '.' || part[0] == '.') {
					next = append(next, path.Join(dir, e.Name()))
				}
			}
		}
		if names = next; len(names) > maxConfigFiles {
			cf.ok = false
			return nil
		}
	}
	if !strings.ContainsAny(pattern, "*?") && optional && !cf.l.r.has(names[0]) {
		if _, _, there := cf.l.r.stat(names[0]); !there {
			cf.ok = cf.ok && cf.l.req.fixed(names[0])
			return nil
		}
	}
	return names
}

// module notes one that is loaded.
func (cf *configured) module(name string) {
	base := path.Base(name)
	if name == "" || strings.ContainsAny(name, "$") {
		cf.ok = false
		return
	}
	for _, n := range cf.l.natives() {
		if path.Base(n.path) == base {
			cf.named[base] = true
			return
		}
	}
	// A link of another name?
	if p, _, ok := cf.l.r.regular(name); ok && path.IsAbs(name) {
		cf.named[path.Base(p)] = true
		return
	}
	cf.ok = false
}

// nginx reads a configuration of nginx, and what is given on the command line.
func (cf *configured) nginx(main string, texts []string) {
	dir := path.Dir(main)
	work := []string{main}
	read := func(text string) {
		for d := range nginxDirectives(text, false) {
			switch d[0] {
			case "load_module":
				if len(d) == 2 {
					cf.module(d[1])
				} else {
					cf.ok = false
				}
			case "include":
				if len(d) != 2 {
					cf.ok = false
					continue
				}
				f := d[1]
				if !path.IsAbs(f) {
					f = path.Join(dir, f)
				}
				work = append(work, cf.glob(f, false)...)
			}
		}
	}
	for _, t := range texts {
		read(t)
	}
	for len(work) > 0 && cf.ok {
		text, ok := cf.file(work[0])
		work = work[1:]
		if ok {
			read(text)
		}
	}
}

// nginxDirectives splits a configuration of nginx into directives: the whole
// of it, with what precedes a block as one, or up to the first block: load_module is allowed on the main level only, and "is specified
// too late" behind events, http, mail or stream (ngx_load_module). So what these
// include does not matter, and may well change.
func nginxDirectives(text string, whole bool) func(func([]string) bool) {
	return func(yield func([]string) bool) {
		var words []string
		var word []byte
		in := false
		flush := func() {
			if in {
				words, word, in = append(words, string(word)), word[:0], false
			}
		}
		for i := 0; i < len(text); i++ {
			switch c := text[i]; {
			case c == ' ' || c == '\t' || c == '\n' || c == '\r':
				flush()
			case c == '#' && !in:
				for i < len(text) && text[i] != '\n' {
					i++
				}
			case (c == '"' || c == '\'') && !in:
				in = true
				for i++; i < len(text) && text[i] != c; i++ {
					if text[i] == '\\' && i+1 < len(text) {
						i++
					}
					word = append(word, text[i])
				}
			case c == '\\' && i+1 < len(text):
				i++
				in, word = true, append(word, text[i])
			case c == '{' && whole && in && len(word) > 0 && word[len(word)-1] == '$': // ${name}
				word = append(word, c)
				for i++; i < len(text) && text[i] != '}'; i++ {
					word = append(word, text[i])
				}
				word = append(word, '}')
			case c == '{' && !whole:
				return
			case c == ';' || c == '}' || c == '{':
				flush()
				if len(words) > 0 && !yield(words) {
					return
				}
				words = nil
			default:
				in, word = true, append(word, c)
			}
		}
		flush()
		if len(words) > 0 {
			yield(words)
		}
	}
}

// apache reads a configuration of Apache. Conditions count as met.
func (cf *configured) apache(main string) {
	root := path.Dir(main)
	if path.Base(root) == "conf" {
		root = path.Dir(root)
	}
	type item struct {
		name     string
		optional bool
	}
	work := []item{{main, false}}
	for len(work) > 0 && cf.ok {
		w := work[0]
		work = work[1:]
		if _, entries := cf.l.r.dir(w.name); entries { // all below
			p, _, _ := cf.l.r.stat(w.name)
			if !cf.l.req.fixed(p) || len(cf.seen) > maxConfigFiles {
				cf.ok = false
				return
			}
			list, _ := cf.l.r.dir(w.name)
			for _, e := range list {
				work = append(work, item{path.Join(w.name, e.Name()), true})
			}
			if len(work) > maxConfigFiles {
				cf.ok = false
			}
			continue
		}
		if w.optional && !cf.l.r.has(w.name) && cf.l.req.fixed(w.name) {
			continue
		}
		text, ok := cf.file(w.name)
		if !ok {
			continue
		}
		cf.engine = cf.engine || apacheEngine.MatchString(strings.ReplaceAll(strings.ReplaceAll(text, "\r", ""), "\\\n", " "))
		for line := range strings.Lines(strings.ReplaceAll(strings.ReplaceAll(text, "\r", ""), "\\\n", " ")) {
			d := strings.Fields(strings.ReplaceAll(line, `"`, " "))
			if len(d) < 2 || d[0][0] == '#' {
				continue
			}
			switch strings.ToLower(d[0]) {
			case "serverroot":
				if root = d[1]; !path.IsAbs(root) || len(d) != 2 {
					cf.ok = false
				}
			case "loadmodule":
				if len(d) != 3 {
					cf.ok = false
					continue
				}
				cf.module(d[2])
			case "loadfile":
				for _, f := range d[1:] {
					cf.module(f)
				}
			case "include", "includeoptional":
				f := d[1]
				if len(d) != 2 {
					cf.ok = false
					continue
				}
				if !path.IsAbs(f) {
					f = path.Join(root, f)
				}
				optional := strings.EqualFold(d[0], "includeoptional")
				for _, name := range cf.glob(f, optional) {
					work = append(work, item{name, optional})
				}
			case "use": // mod_macro puts directives together
				cf.ok = false
			}
		}
	}
}
