package declared

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	"github.com/containerd/containerd/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// fakeContainerd serves what is in its maps, in namespace "ns" only.
type fakeContainerd struct {
	containersapi.UnimplementedContainersServer
	imagesapi.UnimplementedImagesServer
	contentapi.UnimplementedContentServer
	containers map[string]*containersapi.Container
	images     map[string]string
	blobs      map[string][]byte
	hang       bool
}

type (
	fakeContainers struct {
		containersapi.UnimplementedContainersServer
		*fakeContainerd
	}
	fakeImages struct {
		imagesapi.UnimplementedImagesServer
		*fakeContainerd
	}
	fakeContent struct {
		contentapi.UnimplementedContentServer
		*fakeContainerd
	}
)

func inNamespace(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if !slices.Equal(md.Get("containerd-namespace"), []string{"ns"}) {
		return status.Errorf(codes.FailedPrecondition, "namespace is %q", md.Get("containerd-namespace"))
	}
	return nil
}

func (f fakeContainers) Get(ctx context.Context, r *containersapi.GetContainerRequest) (*containersapi.GetContainerResponse, error) {
	if f.hang {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	if err := inNamespace(ctx); err != nil {
		return nil, err
	}
	c, ok := f.containers[r.GetID()]
	if !ok {
		return nil, status.Error(codes.NotFound, "container "+r.GetID())
	}
	return &containersapi.GetContainerResponse{Container: c}, nil
}

func (f fakeImages) Get(ctx context.Context, r *imagesapi.GetImageRequest) (*imagesapi.GetImageResponse, error) {
	if err := inNamespace(ctx); err != nil {
		return nil, err
	}
	d, ok := f.images[r.GetName()]
	if !ok {
		return nil, status.Error(codes.NotFound, "image "+r.GetName())
	}
	return &imagesapi.GetImageResponse{Image: &imagesapi.Image{Name: r.GetName(), Target: &types.Descriptor{Digest: d}}}, nil
}

func (f fakeContent) Read(r *contentapi.ReadContentRequest, s contentapi.Content_ReadServer) error {
	if err := inNamespace(s.Context()); err != nil {
		return err
	}
	b, ok := f.blobs[r.GetDigest()]
	if !ok {
		return status.Error(codes.NotFound, "content "+r.GetDigest())
	}
	for part := range slices.Chunk(b, 100) { // as containerd does, in pieces
		if err := s.Send(&contentapi.ReadContentResponse{Data: part}); err != nil {
			return err
		}
	}
	return nil
}

func (f *fakeContainerd) put(v string) string {
	d := digestOf([]byte(v))
	f.blobs[d] = []byte(v)
	return d
}

const fakeImage = `{"architecture":"x","config":{"Entrypoint":["/e"],"Cmd":["c"],"User":"7","Env":["A=1"],"Volumes":{"/v":{}},"Labels":{"io.declarun.mode":"off","who":"image"},
"Healthcheck":{"Test":["CMD","/h"]},"ExposedPorts":{"80/tcp":{}}},"rootfs":{"diff_ids":["sha256:a"]},"history":[{"created_by":"COPY x / # buildkit"}]}`

// newFake has an image with an index of two platforms and an attestation.
func newFake() *fakeContainerd {
	f := &fakeContainerd{containers: map[string]*containersapi.Container{}, images: map[string]string{}, blobs: map[string][]byte{}}
	m := f.put(`{"config":{"digest":"` + f.put(fakeImage) + `"},"layers":[]}`)
	other := f.put(`{"config":{"digest":"` + f.put(`{"architecture":"other","config":{"Cmd":["wrong"]}}`) + `"}}`)
	f.images["example.org/app:1"] = f.put(fmt.Sprintf(`{"manifests":[{"digest":%q,"platform":{"os":"linux","architecture":"other"}},{"digest":"sha256:x","platform":{"os":"unknown","architecture":"unknown"}},{"digest":%q,"platform":{"os":"linux","architecture":%q}}]}`, other, m, runtime.GOARCH))
	return f
}

func (f *fakeContainerd) serve(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctrd") // t.TempDir is too long for a socket
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must(t, err)
	s := grpc.NewServer()
	containersapi.RegisterContainersServer(s, fakeContainers{fakeContainerd: f})
	imagesapi.RegisterImagesServer(s, fakeImages{fakeContainerd: f})
	contentapi.RegisterContentServer(s, fakeContent{fakeContainerd: f})
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return l.Addr().String()
}

func request(socket, id, config string) wire.PrepareRequest {
	return wire.PrepareRequest{
		Key: wire.Key{ID: id}, Verb: "create", Bundle: "/run/b/" + id, Config: json.RawMessage(config),
		ParentArgs: []string{"/usr/bin/containerd-shim-runc-v2", "-namespace", "ns", "-id", id, "-address", socket},
	}
}

const containerdConfig = `{"hostname":"h","process":{"args":["/e","c"],"env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=1","HOSTNAME=h"],"cwd":"/","user":{"uid":7,"gid":0},"capabilities":{"bounding":["CAP_CHOWN"]}},
"root":{"path":"rootfs"},"annotations":{"who":"image"},"mounts":[{"destination":"/v","type":"bind","source":"/var/lib/x/0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef/_data"},{"destination":"/run","type":"tmpfs","source":"tmpfs"},{"destination":"/d","type":"bind","source":"/srv/d","options":["ro"]}],
"linux":{"namespaces":[{"type":"network"},{"type":"pid"},{"type":"ipc"}],"maskedPaths":["/proc/kcore"]}}`

func TestContainerd(t *testing.T) {
	f := newFake()
	labels := map[string]string{"io.declarun.mode": "off", "who": "image", "io.containerd.image.config.stop-signal": "SIGTERM"}
	with := func(extra map[string]string) map[string]string {
		m := map[string]string{}
		for k, v := range labels {
			m[k] = v
		}
		for k, v := range extra {
			m[k] = v
		}
		return m
	}
	f.containers["plain"] = &containersapi.Container{ID: "plain", Image: "example.org/app:1", Labels: labels}
	f.containers["rootfs"] = &containersapi.Container{ID: "rootfs"}
	f.containers["gone"] = &containersapi.Container{ID: "gone", Image: "example.org/gone:1"}
	f.containers["nerd"] = &containersapi.Container{ID: "nerd", Image: "example.org/app:1", Labels: with(map[string]string{
		"nerdctl/name": "web", "nerdctl/namespace": "ns", "nerdctl/ports": `[{"HostPort":8080,"ContainerPort":81,"Protocol":"tcp","HostIP":"0.0.0.0"}]`,
		"nerdctl/healthcheck": `{"Test":["CMD-SHELL","true"]}`, "io.declarun.mode": "audit",
	})}
	f.blobs["sha256:"+strings.Repeat("0", 64)] = []byte(`{"config":{}}`)
	f.images["example.org/lies:1"] = "sha256:" + strings.Repeat("0", 64)
	f.containers["lies"] = &containersapi.Container{ID: "lies", Image: "example.org/lies:1"}
	socket := f.serve(t)

	d := find(t, request(socket, "plain", containerdConfig))
	for claim, holds := range map[string]bool{
		"the image for this machine's platform is found": d.Image.Known && slices.Equal(d.Image.Entrypoint, []string{"/e"}) && d.Image.Ref == "example.org/app:1",
		"the command is the image's":                     d.Process.Origins[0].Source == record.FromImage && d.Process.Origins[1].Source == record.FromImage,
		"the image's labels are not the operator's":      len(d.Operator.Labels) == 0,
		"nor are annotations made of them":               d.Annotations == nil,
		"what containerd adds to the environment is not": d.Operator.Env == nil && d.Operator.User == "",
		"containerd runs no health check":                d.HealthCheck == nil && d.Image.HealthCheck != nil,
		"an image's volume is the image's":               d.Mounts[0].Origin.Source == record.FromImage,
		"ctr's own mount is the engine's":                d.Mounts[1].Origin.Source == record.FromEngine,
		"another mount is the operator's":                d.Mounts[2].Origin.Source == record.FromOperator && d.Mounts[2].ReadOnly,
		"it is not privileged":                           !d.Operator.Privileged,
	} {
		if !holds {
			t.Errorf("does not hold: %s: %+v", claim, d)
		}
	}
	d = find(t, request(socket, "rootfs", containerdConfig))
	if d.Image.Known || d.Process.Origins[0].Source != record.FromOperator {
		t.Errorf("a container without an image: %+v", d)
	}
	d = find(t, request(socket, "nerd", strings.Replace(containerdConfig, `["/e","c"]`, `["/e","other"]`, 1)))
	if d.Name != "web" || d.Operator.PublishedPorts[0].Port != 81 || !slices.Equal(d.HealthCheck, []string{"/bin/sh", "-c", "true"}) ||
		!slices.Equal(d.Operator.Command, []string{"other"}) || d.Operator.Labels["io.declarun.mode"] != "audit" {
		t.Errorf("nerdctl's words: %+v", d)
	}
	for _, row := range []struct{ claim, id, wants string }{
		{"containerd does not know the container", "unknown", "not found in containerd"},
		{"the image is gone", "gone", "not found in containerd"},
		{"a blob is not what its digest says", "lies", "digest"},
	} {
		_, err := Find(context.Background(), request(socket, row.id, containerdConfig), Options{})
		var way interface{ Remedy() string }
		if err == nil || !strings.Contains(err.Error(), row.wants) || !errors.As(err, &way) {
			t.Errorf("%s: %v", row.claim, err)
		}
	}
	sandbox := strings.Replace(containerdConfig, `"who":"image"`, `"io.kubernetes.cri.container-type":"sandbox"`, 1)
	if d = find(t, request(socket, "unknown", sandbox)); !d.Sandbox {
		t.Error("a pod's sandbox is not told")
	}
}

// A containerd that does not answer costs the time-out and no more.
func TestContainerdHangs(t *testing.T) {
	f := newFake()
	f.hang = true
	_, err := Find(context.Background(), request(f.serve(t), "plain", containerdConfig), Options{Timeout: 50 * time.Millisecond})
	if status.Code(errors.Unwrap(errors.Unwrap(err))) != codes.DeadlineExceeded && !strings.Contains(fmt.Sprint(err), "DeadlineExceeded") {
		t.Errorf("%v", err)
	}
	if _, err := Find(context.Background(), request("/nonexistent/s", "plain", containerdConfig), Options{Timeout: time.Second}); err == nil {
		t.Error("an absent containerd is no error")
	}
}

// The second judge: a real containerd, with a container that ctr made and that
// has never run.
func TestRealContainerd(t *testing.T) {
	need.Root(t)
	daemon, ctr := need.Program(t, "containerd"), need.Program(t, "ctr")
	dir, err := os.MkdirTemp("", "ctrd")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "config.toml")
	must(t, os.WriteFile(config, []byte("version = 2\nroot = \""+dir+"/root\"\nstate = \""+dir+"/state\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n[grpc]\naddress = \""+dir+"/s\"\n[ttrpc]\naddress = \""+dir+"/t\"\n"), 0o600))
	cmd := exec.Command(daemon, "--config", config)
	var log bytes.Buffer
	cmd.Stderr = &log
	must(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Process.Signal(os.Interrupt)
		_ = cmd.Wait()
	})
	run := func(args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, ctr, append([]string{"-a", dir + "/s", "-n", "ns"}, args...)...).CombinedOutput()
		return string(out), err
	}
	for i := 0; ; i++ {
		out, err := run("version")
		if err == nil {
			break
		}
		if i == 100 {
			t.Fatalf("containerd does not start: %s\n%s", out, log.String())
		}
		time.Sleep(100 * time.Millisecond)
	}
	archive := filepath.Join(dir, "image.tar")
	must(t, os.WriteFile(archive, imageArchive(t), 0o600))
	for _, args := range [][]string{
		{"images", "import", archive},
		{"containers", "create", "--label", "team=blue", "docker.io/library/app:1", "c1"},
	} {
		if out, err := run(args...); err != nil {
			t.Fatalf("ctr %q: %s", args, out)
		}
	}
	d := find(t, request(dir+"/s", "c1", containerdConfig))
	if d.Image.Ref != "docker.io/library/app:1" || !slices.Equal(d.Image.Entrypoint, []string{"/e"}) || d.Operator.Labels["team"] != "blue" || d.Operator.Labels["io.declarun.mode"] != "" {
		t.Errorf("%+v", d)
	}
	stores := Stores{DataRoots: []string{"/nonexistent"}, Containerd: []string{dir + "/s"}, Namespaces: []string{"other", "ns"}}
	img, err := FindImage(context.Background(), "app:1", stores, "x")
	must(t, err)
	if _, err := os.Stat(filepath.Join(img.Layers[0], "hello")); err != nil {
		t.Errorf("the layer is not to be seen: %v", err)
	}
	img.Close()
	if out, err := run("snapshots", "ls"); err != nil || strings.Contains(out, "declarun-view") {
		t.Errorf("a view is left behind: %s", out)
	}
	if out, err := run("leases", "ls"); err != nil || strings.Contains(out, "declarun-view") {
		t.Errorf("a lease is left behind: %s", out)
	}
}

// imageArchive is a Docker archive with one layer of one file.
func imageArchive(t *testing.T) []byte {
	t.Helper()
	pack := func(files map[string][]byte) []byte {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for name, data := range files {
			must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}))
			_, err := w.Write(data)
			must(t, err)
		}
		must(t, w.Close())
		return b.Bytes()
	}
	layer := pack(map[string][]byte{"hello": []byte("hello\n")})
	config := strings.Replace(strings.Replace(fakeImage, `"sha256:a"`, `"`+digestOf(layer)+`"`, 1), `"architecture":"x"`, `"os":"linux","architecture":"`+runtime.GOARCH+`"`, 1)
	return pack(map[string][]byte{
		"manifest.json": []byte(`[{"Config":"config.json","RepoTags":["app:1"],"Layers":["layer.tar"]}]`),
		"config.json":   []byte(config), "layer.tar": layer,
	})
}
