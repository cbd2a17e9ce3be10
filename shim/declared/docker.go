package declared

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/declared/ctrd"
	"github.com/declarun/declarun/shim/record"
)

// containerFile is config.v2.json (moby daemon/container/container.go).
type containerFile struct {
	ID            string
	Name          string
	Image         string // the image's ID or, in a containerd image store, its target
	Driver        string
	Config        *execConfig
	ImageManifest *struct {
		Digest string `json:"digest"`
	}
	MountPoints map[string]struct {
		Type   string
		Name   string
		Driver string
		Spec   struct{ Source, Target, Type string }
	}
	NetworkSettings *struct {
		Networks map[string]*struct {
			Links []string
		}
	}
	SeccompProfile string
}

// hostConfig is hostconfig.json (moby api/types/container/hostconfig.go).
type hostConfig struct {
	NetworkMode  string
	PidMode      string
	IpcMode      string
	PortBindings map[string]json.RawMessage
	CapAdd       words
	SecurityOpt  []string
	Privileged   bool
	ExtraHosts   []string
	Links        []string
	Tmpfs        map[string]string
	Init         *bool
}

const dockerRemedy = "run \"docker inspect\" on the container and \"docker image inspect\" on its image; if either is gone, pull or build the image again and create the container anew"

// dockerDir finds the directory of the container's metadata. isDocker is
// false for a container that dockerd did not make; an error means that it did
// and the directory is not to be had.
//
// The files that dockerd mounts over /etc/hostname, /etc/hosts and
// /etc/resolv.conf lie in <data-root>/containers/<id>, and the root filesystem
// in one of <data-root>/<driver>/…, <data-root>/rootfs/<snapshotter>/…. With
// --network container:… the mounted files are another container's, so they
// tell the data root only.
func dockerDir(s *ociSpec, id string, shim shimArgs) (dir string, isDocker bool, err error) {
	if id == "" || id != filepath.Base(id) || id == "." || id == ".." {
		return "", false, fmt.Errorf("find container %q: not a container ID", id)
	}
	var roots []string
	looksDocker := shim.namespace == "moby"
	for _, m := range s.Mounts {
		if !slices.Contains([]string{"/etc/hostname", "/etc/hosts", "/etc/resolv.conf"}, m.Destination) {
			continue
		}
		owner := filepath.Dir(filepath.Clean(m.Source))
		if containers := filepath.Dir(owner); filepath.IsAbs(containers) && filepath.Base(containers) == "containers" && isHex64(filepath.Base(owner)) {
			roots = append(roots, filepath.Dir(containers))
			looksDocker = looksDocker || filepath.Base(owner) == id && filepath.Base(filepath.Clean(m.Source)) == filepath.Base(m.Destination)
		}
	}
	if s.Root != nil && filepath.IsAbs(s.Root.Path) {
		p := filepath.Clean(s.Root.Path)
		for range 4 {
			p = filepath.Dir(p)
			roots = append(roots, p)
		}
	}
	for _, r := range roots {
		dir := filepath.Join(r, "containers", id)
		var c struct{ ID string }
		switch err := parseFile(filepath.Join(dir, "config.v2.json"), &c); {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
			return "", true, &Error{err, dockerRemedy}
		case c.ID == id:
			return dir, true, nil
		}
	}
	if looksDocker {
		return "", true, &Error{
			fmt.Errorf("find container %s: dockerd's config.v2.json is in none of its data directories (%s)", clip(id, 12), strings.Join(slices.Compact(roots), ", ")),
			dockerRemedy,
		}
	}
	return "", false, nil
}

func (d *Declared) fromDocker(ctx context.Context, s *ociSpec, dir string, shim shimArgs) error {
	var c containerFile
	if err := parseFile(filepath.Join(dir, "config.v2.json"), &c); err != nil {
		return &Error{err, dockerRemedy}
	}
	var h hostConfig
	if err := parseFile(filepath.Join(dir, "hostconfig.json"), &h); err != nil {
		return &Error{err, dockerRemedy}
	}
	if c.Config == nil {
		return &Error{fmt.Errorf("parse %s: it has no Config", filepath.Join(dir, "config.v2.json")), dockerRemedy}
	}
	d.Engine, d.ID = Docker, c.ID
	d.Name = strings.TrimPrefix(c.Name, "/")
	dataRoot := filepath.Dir(filepath.Dir(dir))
	raw, digest, source, err := dockerImage(ctx, dataRoot, c, shim)
	if err != nil {
		return &Error{fmt.Errorf("read image of container %s: %w", d.Name, err), dockerRemedy}
	}
	if err := d.setImage(raw, source, digest); err != nil {
		return &Error{err, dockerRemedy}
	}
	d.Image.Ref = c.Config.Image
	if err := d.dockerOperator(c, h); err != nil {
		return err
	}
	d.dockerHealthCheck(c.Config)
	d.dockerMounts(c, h)
	if mode := h.NetworkMode; mode == "host" {
		d.Network.Kind = HostNet
	} else if strings.HasPrefix(mode, "container:") && d.Network.Kind == OwnNet {
		return fmt.Errorf("read network of container %s: hostconfig.json says %q, config.json makes a new namespace", d.Name, clip(mode, 80))
	}
	d.ownNames = []string{c.Config.Hostname, s.Hostname}
	if c.Config.Domainname != "" {
		d.ownNames = append(d.ownNames, c.Config.Hostname+"."+c.Config.Domainname)
	}
	d.commandOrigins("docker run")
	return nil
}

// dockerImage reads the image's configuration from the graph driver's image
// store or, since Docker 29 by default, from containerd's content store.
func dockerImage(ctx context.Context, dataRoot string, c containerFile, shim shimArgs) (raw []byte, digest, source string, err error) {
	hexID, ok := strings.CutPrefix(c.Image, "sha256:")
	if !ok || !isHex64(hexID) {
		return nil, "", "", fmt.Errorf("config.v2.json names image %q, not a sha256 digest", clip(c.Image, 100))
	}
	if c.Driver == "" || c.Driver != filepath.Base(c.Driver) {
		return nil, "", "", fmt.Errorf("config.v2.json names storage driver %q", clip(c.Driver, 100))
	}
	name := filepath.Join(dataRoot, "image", c.Driver, "imagedb", "content", "sha256", hexID)
	raw, err = readFile(name)
	if err == nil {
		return raw, c.Image, name, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, "", "", err
	}
	target := c.Image
	if c.ImageManifest != nil && c.ImageManifest.Digest != "" {
		target = c.ImageManifest.Digest
	} else if st, statErr := os.Stat(filepath.Join(dataRoot, "image", c.Driver, "imagedb")); statErr == nil && st.IsDir() {
		return nil, "", "", err // a graph driver's store that has lost this image
	}
	digest, raw, err = ctrd.Config(ctx, target, ctrd.Host(), blobSource(dataRoot, shim))
	if err != nil {
		return nil, "", "", err
	}
	return raw, digest, "blob " + digest, nil
}

// blobSource reads blobs through containerd if its shim called, else from the
// files of the content stores that Docker uses.
func blobSource(dataRoot string, shim shimArgs) func(context.Context, string) ([]byte, error) {
	return func(ctx context.Context, digest string) ([]byte, error) {
		hexID, ok := strings.CutPrefix(digest, "sha256:")
		if !ok || !isHex64(hexID) {
			return nil, fmt.Errorf("read blob %q: not a sha256 digest", clip(digest, 100))
		}
		var asked error
		if shim.address != "" {
			client, err := ctrd.Dial(shim.address, shim.namespace)
			if err != nil {
				return nil, err
			}
			defer client.Close()
			data, err := client.Blob(ctx, digest)
			if err == nil {
				return data, nil
			}
			asked = err
		}
		for _, root := range []string{filepath.Join(dataRoot, "containerd", "daemon"), "/var/lib/containerd"} {
			data, err := readFile(filepath.Join(root, "io.containerd.content.v1.content", "blobs", "sha256", hexID))
			if err == nil {
				return data, ctrd.Verify(data, digest)
			}
			if !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
		}
		if asked != nil {
			return nil, asked
		}
		return nil, fmt.Errorf("read blob %s: %w in %s and /var/lib/containerd", digest, fs.ErrNotExist, dataRoot)
	}
}

// dockerOperator separates what the run command said from what the image says:
// config.v2.json has the union of both.
func (d *Declared) dockerOperator(c containerFile, h hostConfig) error {
	img, e, o := d.Image, c.Config, &d.Operator
	if !slices.Equal(e.Entrypoint, img.Entrypoint) {
		o.Entrypoint = append([]string{}, e.Entrypoint...) // not nil: taking it away is a change
		o.Command = e.Cmd                                  // an --entrypoint clears the image's CMD
	} else if !slices.Equal(e.Cmd, img.Cmd) {
		o.Command = append([]string{}, e.Cmd...)
	}
	if e.User != img.User {
		o.User = e.User
	}
	for _, v := range e.Env {
		if !slices.Contains(img.Env, v) && v != "PATH="+defaultPath {
			o.Env = append(o.Env, v)
		}
	}
	o.Labels = labelsBeyond(e.Labels, img.Labels)
	o.Compose = compose(e.Labels, o.Labels)
	var err error
	publish, expose := d.by("docker run -p", "ports"), d.by("docker run --expose", "expose")
	if o.PublishedPorts, err = ports(h.PortBindings, publish, ""); err != nil {
		return fmt.Errorf("parse hostconfig.json: %w", err)
	}
	extra := map[string]struct{}{}
	for key := range e.ExposedPorts {
		p, err := ParsePort(key)
		if err != nil {
			return fmt.Errorf("parse config.v2.json: %w", err)
		}
		if _, published := h.PortBindings[key]; !published && !slices.ContainsFunc(img.ExposedPorts, func(q Port) bool { return q.Contains(p.Proto, p.Port) }) {
			extra[key] = struct{}{}
		}
	}
	if o.ExposedPorts, err = ports(extra, expose, ""); err != nil {
		return fmt.Errorf("parse config.v2.json: %w", err)
	}
	o.Privileged, o.CapAdd, o.TTY = h.Privileged, h.CapAdd, e.Tty
	o.Init = isInit(d.Process.Args)
	for _, opt := range h.SecurityOpt {
		if opt == "seccomp=unconfined" || opt == "seccomp:unconfined" {
			o.Unconfined = true
		}
	}
	d.HostPID = d.HostPID || h.PidMode == "host"
	d.HostIPC = d.HostIPC || h.IpcMode == "host"
	d.dockerLinks(c, h)
	return nil
}

// by is the origin of something the operator said: on the command line, or in
// a compose file if there is one.
func (d *Declared) by(flag, key string) record.Origin {
	if c := d.Operator.Compose; c != nil {
		return record.Origin{Source: record.FromCompose, At: "services." + c.Service + "." + key}
	}
	return record.Origin{Source: record.FromOperator, At: flag}
}

// dockerLinks reads --link and --add-host. Links of the default bridge are
// kept in hostconfig.json, those of other networks in config.v2.json.
func (d *Declared) dockerLinks(c containerFile, h hostConfig) {
	links := slices.Clone(h.Links)
	if c.NetworkSettings != nil {
		for _, n := range c.NetworkSettings.Networks {
			if n != nil {
				links = append(links, n.Links...)
			}
		}
	}
	slices.Sort(links)
	for _, l := range slices.Compact(links) {
		target, alias, ok := strings.Cut(l, ":")
		if !ok {
			alias = target
		}
		o := d.by("docker run --link", "links")
		o.Text = l
		d.Operator.Links = append(d.Operator.Links, Host{Name: path.Base(alias), Origin: o})
	}
	for _, x := range h.ExtraHosts {
		name, addr, ok := strings.Cut(x, ":")
		if !ok {
			continue
		}
		o := d.by("docker run --add-host", "extra_hosts")
		o.Text = x
		a, err := netip.ParseAddr(strings.Trim(addr, "[]"))
		if err != nil { // host-gateway: /etc/hosts has its address
			a = netip.Addr{}
		}
		d.Operator.Links = append(d.Operator.Links, Host{Name: name, Addr: a, Origin: o})
	}
}

func (d *Declared) dockerHealthCheck(e *execConfig) {
	if e.Healthcheck == nil {
		return
	}
	d.HealthCheck = e.Healthcheck.command(e.Shell)
	if d.HealthCheck == nil {
		return
	}
	if slices.Equal(d.HealthCheck, d.Image.HealthCheck) {
		d.HealthCheckOrigin = []record.Origin{imageHealthCheck(d.Image)}
		return
	}
	o := d.by("docker run --health-cmd", "healthcheck")
	o.Text = clip(strings.Join(e.Healthcheck.Test, " "), 200)
	d.HealthCheckOrigin = []record.Origin{o}
}

// dockerMounts tells apart the engine's mounts, the image's volumes and the
// operator's.
func (d *Declared) dockerMounts(c containerFile, h hostConfig) {
	for i := range d.Mounts {
		m := &d.Mounts[i]
		at := path.Clean(m.Destination)
		p, isPoint := c.MountPoints[at]
		_, isTmpfs := h.Tmpfs[at]
		switch {
		case isPoint && p.Spec.Type == "" && slices.Contains(d.Image.Volumes, at):
			m.Origin = volumeOrigin(at)
		case isPoint:
			m.Origin = d.by("docker run -v", "volumes")
			m.Origin.Text = at
			if p.Spec.Source != "" {
				m.Origin.Text = p.Spec.Source + ":" + at
			}
		case isTmpfs:
			m.Origin = d.by("docker run --tmpfs", "tmpfs")
			m.Origin.Text = strings.TrimSuffix(at+":"+h.Tmpfs[at], ":")
		case slices.Contains([]string{"/etc/resolv.conf", "/etc/hostname", "/etc/hosts"}, at) || d.Operator.Init && at == d.Process.Args[0]:
			m.Origin = record.Origin{Source: record.FromEngine, At: "default mounts", Text: at}
		case m.Origin.Source == record.FromEngine:
			m.Origin = record.Origin{Source: record.FromEngine, At: "default mounts", Text: at}
		case strings.HasPrefix(at, "/run/secrets"): // swarm
			m.Origin = record.Origin{Source: record.FromOperator, At: "docker service create --secret", Text: at}
		case m.Type == "tmpfs": // --mount type=tmpfs
			m.Origin = d.by("docker run --mount type=tmpfs", "tmpfs")
			m.Origin.Text = at
		}
	}
}

func labelsBeyond(all, image map[string]string) map[string]string {
	var out map[string]string
	for k, v := range all {
		if w, ok := image[k]; ok && v == w {
			continue
		}
		if out == nil {
			out = map[string]string{}
		}
		out[k] = v
	}
	return out
}

// compose reads the compose labels (docker/compose pkg/api/labels.go). Compose
// labels the images that it builds with project and service, so those two may
// come from all labels; what widens anything must be the operator's.
func compose(all, operator map[string]string) *Compose {
	const prefix = "com.docker.compose."
	isCompose := false
	for k := range operator {
		isCompose = isCompose || strings.HasPrefix(k, prefix)
	}
	if !isCompose || all[prefix+"service"] == "" {
		return nil
	}
	c := &Compose{
		Project: all[prefix+"project"], Service: all[prefix+"service"],
		WorkingDir: operator[prefix+"project.working_dir"],
	}
	for f := range strings.SplitSeq(operator[prefix+"project.config_files"], ",") {
		if f != "" && len(c.ConfigFiles) < 100 {
			c.ConfigFiles = append(c.ConfigFiles, f)
		}
	}
	// "cache:service_started:false,queue:service_healthy:true"
	for dep := range strings.SplitSeq(operator[prefix+"depends_on"], ",") {
		if name, _, _ := strings.Cut(dep, ":"); name != "" && len(c.DependsOn) < 1000 {
			c.DependsOn = append(c.DependsOn, name)
		}
	}
	return c
}
