package observe

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/moby/buildkit/frontend/dockerfile/parser"
)

// Image is what a Dockerfile makes.
type Image struct {
	Root   string
	Config Config
}

// Config is an image's configuration, in Docker's words.
type Config struct {
	Env, Entrypoint, Cmd []string
	WorkingDir, User     string
	StopSignal           string              `json:",omitempty"`
	Volumes              map[string]struct{} `json:",omitempty"`
	ExposedPorts         map[string]struct{} `json:",omitempty"`
	Healthcheck          *struct{ Test []string }
}

// JSON is the configuration as "docker image inspect" prints it.
func (c *Config) JSON() ([]byte, error) { return json.Marshal(map[string]any{"config": c}) }

// Build makes an image's root from the Dockerfile in a directory, without an
// engine: of what the integration tests' own Dockerfiles use, nothing is left
// out, and anything else is an error.
func Build(ctx context.Context, dir string) (*Image, error) {
	raw, err := os.ReadFile(filepath.Join(dir, "Dockerfile"))
	if err != nil {
		return nil, err
	}
	parsed, err := parser.Parse(bytes.NewReader(raw))
	if err != nil {
		return nil, fmt.Errorf("parse %s/Dockerfile: %w", dir, err)
	}
	img := new(Image)
	var todo []func(root string) error
	base := ""
	for _, n := range parsed.AST.Children {
		words := arguments(n)
		if len(words) == 0 {
			return nil, fmt.Errorf("build %s: line %d: nothing follows %s", dir, n.StartLine, n.Value)
		}
		switch strings.ToLower(n.Value) {
		case "from":
			base = words[0]
		case "run":
			env := slices.Clone(img.Config.Env)
			todo = append(todo, func(root string) error { return inRoot(ctx, root, strings.Join(words, " "), env) })
		case "copy":
			todo = append(todo, func(root string) error { return copyInto(dir, root, words) })
		case "label":
		default:
			if err := img.Config.set(n, words); err != nil {
				return nil, fmt.Errorf("build %s: line %d: %w", dir, n.StartLine, err)
			}
		}
	}
	sum, err := contents(dir)
	if err != nil {
		return nil, err
	}
	minimal := ""
	switch base {
	case "scratch":
	case "debian:12":
		if minimal, err = Root(ctx, Spec{Name: "base"}); err != nil {
			return nil, err
		}
	default:
		return nil, fmt.Errorf("build %s: FROM %s: only debian:12 and scratch are made here", dir, base)
	}
	img.Root, err = kept(ctx, "image-"+filepath.Base(dir)+"-"+sum, func(root string) error {
		if minimal == "" {
			if err := os.MkdirAll(root, 0o755); err != nil {
				return err
			}
		} else if err := furnishApt(ctx, minimal, root); err != nil {
			return err
		}
		for _, do := range todo {
			if err := do(root); err != nil {
				return err
			}
		}
		if minimal == "" {
			return nil
		}
		return unfurnishApt(root)
	})
	return img, err
}

// arguments are the words after an instruction.
func arguments(n *parser.Node) []string {
	var out []string
	for a := n.Next; a != nil; a = a.Next {
		out = append(out, a.Value)
	}
	return out
}

// command is what CMD and ENTRYPOINT say: words, or a line for the shell.
func command(n *parser.Node, words []string) []string {
	if n.Attributes["json"] {
		return words
	}
	return []string{"/bin/sh", "-c", strings.Join(words, " ")}
}

func (c *Config) set(n *parser.Node, words []string) error {
	switch strings.ToLower(n.Value) {
	case "env":
		for i := 0; i+1 < len(words); i += 3 { // name, value, separator
			c.Env = append(c.Env, words[i]+"="+strings.Trim(words[i+1], `"`))
		}
	case "entrypoint":
		c.Entrypoint = command(n, words)
	case "cmd":
		c.Cmd = command(n, words)
	case "workdir":
		c.WorkingDir = words[0]
	case "user":
		c.User = words[0]
	case "stopsignal":
		c.StopSignal = words[0]
	case "volume":
		c.Volumes = map[string]struct{}{}
		for _, v := range words {
			c.Volumes[v] = struct{}{}
		}
	case "expose":
		if c.ExposedPorts == nil {
			c.ExposedPorts = map[string]struct{}{}
		}
		for _, p := range words {
			if !strings.Contains(p, "/") {
				p += "/tcp"
			}
			c.ExposedPorts[p] = struct{}{}
		}
	case "healthcheck":
		test := []string{"CMD-SHELL", strings.Join(words[1:], " ")}
		if n.Attributes["json"] {
			test = append([]string{"CMD"}, words[1:]...)
		}
		c.Healthcheck = &struct{ Test []string }{test}
	default:
		return fmt.Errorf("%s is not known here", n.Value)
	}
	return nil
}

// Health is the health check's command; none: nil.
func (c *Config) Health() []string {
	if c.Healthcheck == nil || len(c.Healthcheck.Test) < 2 {
		return nil
	}
	if c.Healthcheck.Test[0] == "CMD-SHELL" {
		return []string{"/bin/sh", "-c", c.Healthcheck.Test[1]}
	}
	return c.Healthcheck.Test[1:]
}

// inRoot runs a shell line in a root, as RUN does.
func inRoot(ctx context.Context, root, line string, env []string) error {
	cmd := exec.CommandContext(ctx, "unshare", "-m", "--propagation", "private", "sh", "-c", `mount -t proc proc "$0/proc" && exec chroot "$0" /bin/sh -c "$1"`, root, line)
	cmd.Env = append([]string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C"}, env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%.60s: %w: %s", line, err, last(out, 8))
	}
	return nil
}

func copyInto(dir, root string, words []string) error {
	to := words[len(words)-1]
	for _, w := range words[:len(words)-1] {
		if strings.HasPrefix(w, "--") || strings.ContainsAny(w, "*?[") {
			return fmt.Errorf("COPY %s is not known here", w)
		}
		b, err := os.ReadFile(filepath.Join(dir, w))
		if err != nil {
			return err
		}
		info, err := os.Stat(filepath.Join(dir, w))
		if err != nil {
			return err
		}
		name := filepath.Join(root, to)
		if strings.HasSuffix(to, "/") || len(words) > 2 {
			name = filepath.Join(name, path.Base(w))
		}
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(name, b, info.Mode().Perm()); err != nil {
			return err
		}
	}
	return nil
}

// contents names what lies in a directory.
func contents(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		fmt.Fprintln(h, strings.TrimPrefix(p, dir), info.Mode(), len(b))
		_, err = h.Write(b)
		return err
	})
	return hex.EncodeToString(h.Sum(nil)[:6]), err
}
