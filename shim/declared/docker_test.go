package declared

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

var update = flag.Bool("update", false, "write golden files instead of comparing with them")

const dataMark = "@DATA@"

// dockerCase lays out one of the containers that Docker 20.10 made (testdata/docker/cases),
// with the image store they share, and gives what the runtime is called with.
func dockerCase(t testing.TB, name string) (wire.PrepareRequest, string) {
	t.Helper()
	root := t.TempDir()
	if err := os.CopyFS(filepath.Join(root, "image"), os.DirFS("testdata/docker/image")); err != nil {
		t.Fatal(err)
	}
	names := []string{name}
	if name == "joined" {
		names = append(names, "image") // whose network, and /etc files, it uses
	}
	var req wire.PrepareRequest
	for i, n := range names {
		dir := filepath.Join("testdata/docker/cases", n)
		var c struct{ ID string }
		read := func(f string) []byte {
			b, err := os.ReadFile(filepath.Join(dir, f))
			if err != nil && !(errors.Is(err, os.ErrNotExist) && (f == "hosts" || f == "resolv.conf")) {
				t.Fatal(err)
			}
			return bytes.ReplaceAll(b, []byte(dataMark), []byte(root))
		}
		if err := json.Unmarshal(read("config.v2.json"), &c); err != nil {
			t.Fatal(err)
		}
		to := filepath.Join(root, "containers", c.ID)
		if err := os.MkdirAll(to, 0o700); err != nil {
			t.Fatal(err)
		}
		for _, f := range []string{"config.v2.json", "hostconfig.json", "hosts", "resolv.conf"} {
			if b := read(f); b != nil {
				if err := os.WriteFile(filepath.Join(to, f), b, 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
		if i == 0 {
			req = wire.PrepareRequest{
				Key: wire.Key{Root: "/run/docker/runtime-runc/moby", ID: c.ID}, Verb: "create", Config: read("config.json"),
				ParentArgs: []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "moby", "-id", c.ID, "-address", filepath.Join(root, "no.sock")},
			}
		}
	}
	return req, root
}

func find(t testing.TB, req wire.PrepareRequest) *Declared {
	t.Helper()
	d, err := Find(context.Background(), req, Options{HostNetwork: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// What is found of genuine Docker containers, in full.
func TestDockerGolden(t *testing.T) {
	cases, err := filepath.Glob("testdata/docker/cases/*")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases: %v", err)
	}
	for _, dir := range cases {
		name := filepath.Base(dir)
		t.Run(name, func(t *testing.T) {
			req, root := dockerCase(t, name)
			d := find(t, req)
			got, err := json.MarshalIndent(d, "", "\t")
			if err != nil {
				t.Fatal(err)
			}
			got = append(bytes.ReplaceAll(got, []byte(root), []byte(dataMark)), '\n')
			golden := filepath.Join(dir, "declared.golden.json")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("differs from %s (run with -update and look at the difference):\n%s", golden, firstDifference(string(want), string(got)))
			}
			var back Declared
			if err := json.Unmarshal(want, &back); err != nil {
				t.Fatal(err)
			}
			again, _ := json.MarshalIndent(back, "", "\t")
			if !bytes.Equal(append(again, '\n'), want) {
				t.Errorf("does not survive JSON:\n%s", firstDifference(string(want), string(again)))
			}
		})
	}
}

func firstDifference(want, got string) string {
	w, g := strings.Split(want, "\n"), strings.Split(got, "\n")
	for i := range min(len(w), len(g)) {
		if w[i] != g[i] {
			return "- " + w[i] + "\n+ " + g[i]
		}
	}
	return "one is longer"
}

// The claims that the golden files must never be updated away from.
func TestDockerClaims(t *testing.T) {
	got := map[string]*Declared{}
	for _, name := range []string{"image", "flags", "privileged", "unconfined", "no-entrypoint", "shell-form", "joined", "linked", "compose"} {
		req, _ := dockerCase(t, name)
		got[name] = find(t, req)
	}
	mount := func(d *Declared, at string) Mount {
		i := slices.IndexFunc(d.Mounts, func(m Mount) bool { return m.Destination == at })
		if i < 0 {
			t.Fatalf("%s: no mount at %s", d.Name, at)
		}
		return d.Mounts[i]
	}
	sources := func(d *Declared) (s []record.Source) {
		for _, o := range d.Process.Origins {
			s = append(s, o.Source)
		}
		return s
	}
	flags := got["flags"]
	for _, row := range []struct {
		claim string
		holds bool
	}{
		{"without flags the operator says nothing but what Docker always writes", got["image"].Operator.Labels == nil && got["image"].Operator.Env == nil && got["image"].Operator.Command == nil && got["image"].Operator.PublishedPorts == nil && !got["image"].Operator.Privileged},
		{"without flags the whole command is the image's", slices.Equal(sources(got["image"]), []record.Source{"image", "image", "image"})},
		{"every word of the command has an origin", len(flags.Process.Origins) == len(flags.Process.Args)},
		{"--init is not the image's word", flags.Operator.Init && flags.Process.Origins[0].At == "docker run --init"},
		{"an image's label is not the operator's, whatever it says", got["image"].Image.Labels["io.declarun.mode"] == "off" && got["image"].Operator.Labels["io.declarun.mode"] == ""},
		{"an operator's label with another value is his", flags.Operator.Labels["io.declarun.mode"] == "audit"},
		{"an operator's label with the image's value counts as the image's", flags.Operator.Labels["org.example.role"] == ""},
		{"a variable with the image's value counts as the image's", slices.Equal(flags.Operator.Env, []string{"EXTRA=1", "LANG=de"})},
		{"published ports are the container's side", len(flags.Operator.PublishedPorts) == 2 && flags.Operator.PublishedPorts[0].Port == 5432},
		{"--expose is neither EXPOSE nor -p", len(flags.Operator.ExposedPorts) == 2 && flags.Operator.ExposedPorts[0].Port == 7000},
		{"--entrypoint is the operator's", slices.Equal(flags.Operator.Entrypoint, []string{"/bin/sh"})},
		{"the health check of --health-cmd is the operator's", slices.Equal(flags.HealthCheck, []string{"/bin/sh", "-c", "true"}) && flags.HealthCheckOrigin[0].Source == record.FromOperator},
		{"a VOLUME's mount is the image's", mount(flags, "/data").Origin.Source == record.FromImage},
		{"an anonymous volume of -v is the operator's", mount(flags, "/anonymous").Origin.Source == record.FromOperator},
		{"exec is said by --tmpfs", mount(flags, "/scratch").Exec},
		{"exec is said by the operator's label", mount(flags, "/mnt/rw").Exec},
		{"nothing else is exec", !mount(flags, "/mnt/ro").Exec && !mount(flags, "/named").Exec && !mount(flags, "/ram").Exec && !mount(flags, "/data").Exec && !mount(flags, "/dev").Exec},
		{"a read-only mount is", mount(flags, "/mnt/ro").ReadOnly && !mount(flags, "/mnt/rw").ReadOnly},
		{"--add-host has its address", slices.ContainsFunc(flags.Operator.Links, func(h Host) bool { return h.Name == "peer" && h.Addr.String() == "10.1.2.3" })},
		{"host-gateway gets its address from the hosts file", slices.ContainsFunc(flags.Operator.Links, func(h Host) bool { return h.Name == "gw" && h.Addr.String() == "172.17.0.1" })},
		{"--link gets its address from the hosts file", len(got["linked"].Operator.Links) == 1 && got["linked"].Operator.Links[0].Name == "db" && got["linked"].Operator.Links[0].Addr.String() == "172.17.0.2"},
		{"a container's own name is no peer", !slices.ContainsFunc(got["image"].Hosts, func(Host) bool { return true })},
		{"--privileged", got["privileged"].Operator.Privileged && got["privileged"].Operator.TTY},
		{"seccomp=unconfined", got["unconfined"].Operator.Unconfined && !got["unconfined"].Operator.Privileged},
		{"--net host is the host's network, though it is a path", got["unconfined"].Network.Kind == HostNet},
		{"--pid host", got["unconfined"].HostPID && !flags.HostPID},
		{"--no-healthcheck", got["unconfined"].HealthCheck == nil},
		{"--entrypoint '' is a change", got["no-entrypoint"].Operator.Entrypoint != nil && slices.Equal(sources(got["no-entrypoint"]), []record.Source{"operator", "operator"})},
		{"CMD in shell form with SHELL", slices.Equal(got["shell-form"].Process.Args, []string{"/bin/sh", "-e", "-c", "run the app"})},
		{"--net container: joins, and is itself, not the other", got["joined"].Network.Kind == JoinedNet && got["joined"].Name == "joined"},
		{"compose is told from its labels", got["compose"].Operator.Compose != nil && got["compose"].Operator.Compose.Service == "db" && slices.Equal(got["compose"].Operator.Compose.DependsOn, []string{"cache", "queue"})},
		{"what compose declares says so", got["compose"].Operator.PublishedPorts[0].Origin.Source == record.FromCompose},
		{"--dns is the resolver", len(got["compose"].Resolvers) == 1 && got["compose"].Resolvers[0].String() == "9.9.9.9:53"},
	} {
		if !row.holds {
			t.Errorf("does not hold: %s", row.claim)
		}
	}
}

// A container whose declaration cannot be read in full is not planned.
func TestDockerFailsClosed(t *testing.T) {
	for _, row := range []struct {
		claim, wants string
		harm         func(t *testing.T, root, dir string)
	}{
		{"the container's directory is gone", "config.v2.json is in none", func(t *testing.T, _, dir string) { must(t, os.RemoveAll(dir)) }},
		{"config.v2.json is cut off", "config.v2.json", func(t *testing.T, _, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "config.v2.json"), []byte(`{"ID":"`), 0o600))
		}},
		{"config.v2.json is another container's", "config.v2.json is in none", func(t *testing.T, _, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "config.v2.json"), []byte(`{"ID":"other"}`), 0o600))
		}},
		{"config.v2.json has no Config", "has no Config", func(t *testing.T, _, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "config.v2.json"), []byte(`{"ID":"`+filepath.Base(dir)+`"}`), 0o600))
		}},
		{"config.v2.json names an image outside the store", "not a sha256 digest", func(t *testing.T, _, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "config.v2.json"), []byte(`{"ID":"`+filepath.Base(dir)+`","Driver":"overlay2","Config":{},"Image":"sha256:../../x"}`), 0o600))
		}},
		{"hostconfig.json is gone", "hostconfig.json", func(t *testing.T, _, dir string) { must(t, os.Remove(filepath.Join(dir, "hostconfig.json"))) }},
		{"hostconfig.json is no file", "not a regular file", func(t *testing.T, _, dir string) {
			must(t, os.Remove(filepath.Join(dir, "hostconfig.json")))
			must(t, os.Mkdir(filepath.Join(dir, "hostconfig.json"), 0o700))
		}},
		{"the image has been removed", "imagedb", func(t *testing.T, root, _ string) {
			must(t, os.RemoveAll(filepath.Join(root, "image/overlay2/imagedb/content/sha256")))
		}},
		{"the resolv.conf that is mounted is gone", "resolv.conf", func(t *testing.T, _, dir string) { must(t, os.Remove(filepath.Join(dir, "resolv.conf"))) }},
	} {
		t.Run(row.claim, func(t *testing.T) {
			req, root := dockerCase(t, "image")
			row.harm(t, root, filepath.Join(root, "containers", req.ID))
			d, err := Find(context.Background(), req, Options{})
			if err == nil {
				t.Fatalf("found %+v", d)
			}
			if !strings.Contains(err.Error(), row.wants) {
				t.Errorf("error %q does not name %q", err, row.wants)
			}
		})
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Docker 29 keeps images in containerd's content store by default; its files are
// read where containerd does not answer.
func TestDockerContainerdStore(t *testing.T) {
	req, root := dockerCase(t, "image")
	content := filepath.Join(root, "containerd/daemon/io.containerd.content.v1.content/blobs/sha256")
	must(t, os.MkdirAll(content, 0o700))
	put := func(data []byte) string {
		d := digestOf(data)
		must(t, os.WriteFile(filepath.Join(content, strings.TrimPrefix(d, "sha256:")), data, 0o600))
		return d
	}
	config, err := filepath.Glob(filepath.Join(root, "image/overlay2/imagedb/content/sha256/*"))
	must(t, err)
	var raw []byte
	for _, c := range config {
		if b, _ := os.ReadFile(c); bytes.Contains(b, []byte(`"CMD [\"serve\"`)) && !bytes.Contains(b, []byte("MAINTAINER")) {
			raw = b
		}
	}
	manifest := put([]byte(`{"schemaVersion":2,"config":{"digest":"` + put(raw) + `"}}`))
	must(t, os.RemoveAll(filepath.Join(root, "image")))
	file := filepath.Join(root, "containers", req.ID, "config.v2.json")
	var c map[string]any
	b, err := os.ReadFile(file)
	must(t, err)
	must(t, json.Unmarshal(b, &c))
	c["Image"], c["Driver"], c["ImageManifest"] = digestOf([]byte("index")), "overlayfs", map[string]any{"digest": manifest}
	b, err = json.Marshal(c)
	must(t, err)
	must(t, os.WriteFile(file, b, 0o600))
	d := find(t, req)
	if d.Image.Digest != digestOf(raw) || !slices.Equal(d.Image.Entrypoint, []string{"/bin/app"}) {
		t.Errorf("image %+v", d.Image)
	}
	must(t, os.WriteFile(filepath.Join(content, strings.TrimPrefix(digestOf(raw), "sha256:")), append(raw, ' '), 0o600))
	if _, err := Find(context.Background(), req, Options{}); err == nil || !strings.Contains(err.Error(), "digest") {
		t.Errorf("a blob whose content is not its digest: %v", err)
	}
}

func TestFindImageInDocker(t *testing.T) {
	_, root := dockerCase(t, "image")
	stores := Stores{DataRoots: []string{"/nonexistent", root}, Containerd: []string{}}
	for _, ref := range []string{"db:1", "docker.io/library/db:1"} {
		img, err := FindImage(context.Background(), ref, stores)
		if err != nil {
			t.Fatal(err)
		}
		if len(img.Layers) != 3 || !strings.HasPrefix(img.Layers[0], filepath.Join(root, "overlay2")) || filepath.Base(img.Layers[0]) != "diff" {
			t.Errorf("%s: layers %q", ref, img.Layers)
		}
		top, err := os.ReadFile(filepath.Join(root, "image/overlay2/layerdb/sha256", strings.TrimPrefix(chainIDs(img.Declared.Image.Layers)[2], "sha256:"), "cache-id"))
		if err != nil || !strings.Contains(img.Layers[0], string(top)) {
			t.Errorf("%s: the first layer is not the topmost: %v", ref, err)
		}
		byID, err := FindImage(context.Background(), img.Declared.Image.Digest[:19], stores)
		if err != nil || byID.Declared.Image.Digest != img.Declared.Image.Digest {
			t.Errorf("by ID: %v", err)
		}
		img.Close()
	}
	for _, ref := range []string{"db:2", "db", "nothing:1", "ffffffffffff", "library/other"} {
		_, err := FindImage(context.Background(), ref, stores)
		var way interface{ Remedy() string }
		if err == nil || !errors.As(err, &way) {
			t.Errorf("%s: %v: want an error with a remedy", ref, err)
		}
	}
	for _, ref := range []string{"", "a b", "x@sha256:zz", ":tag", "name:", "../../etc:1 "} {
		if _, err := FindImage(context.Background(), ref, stores); err == nil {
			t.Errorf("%q is taken for a reference", ref)
		}
	}
}

func TestParseReference(t *testing.T) {
	hex := strings.Repeat("a", 64)
	for _, row := range []struct{ ref, canonical, familiar, repo string }{
		{"postgres", "docker.io/library/postgres:latest", "postgres:latest", "postgres"},
		{"postgres:15", "docker.io/library/postgres:15", "postgres:15", "postgres"},
		{"me/app:1", "docker.io/me/app:1", "me/app:1", "me/app"},
		{"registry.example/app", "registry.example/app:latest", "registry.example/app:latest", "registry.example/app"},
		{"localhost:5000/app:2", "localhost:5000/app:2", "localhost:5000/app:2", "localhost:5000/app"},
		{"app@sha256:" + hex, "docker.io/library/app@sha256:" + hex, "app@sha256:" + hex, "app"},
		{"docker.io/library/app:1", "docker.io/library/app:1", "app:1", "app"},
	} {
		r, err := parseReference(row.ref)
		if err != nil || r.canonical != row.canonical || r.familiar != row.familiar || r.repo != row.repo {
			t.Errorf("%s: %+v, %v", row.ref, r, err)
		}
	}
}
