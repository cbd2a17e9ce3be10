package declared

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/declared/ctrd"
	"github.com/declarun/declarun/shim/record"
)

// fromContainerd asks the containerd whose shim called the runtime.
func (d *Declared) fromContainerd(ctx context.Context, s *ociSpec, shim shimArgs) error {
	d.Engine = Containerd
	d.ownNames = []string{s.Hostname}
	d.markSandbox()
	if d.Sandbox { // passes through: its image is nobody's declaration
		return nil
	}
	client, err := ctrd.Dial(shim.address, shim.namespace)
	if err != nil {
		return err
	}
	defer client.Close()
	fail := func(err error) error {
		return &Error{err, fmt.Sprintf("check \"ctr -a %s -n %s containers info %s\" and that its image is still there (\"images ls\")", shim.address, shim.namespace, d.ID)}
	}
	c, err := client.Container(ctx, d.ID)
	if err != nil {
		return fail(err)
	}
	d.Operator.Labels = c.Labels
	if c.Image != "" {
		target, err := client.Image(ctx, c.Image)
		if err != nil {
			return fail(err)
		}
		platform := ctrd.Host()
		if os, arch, ok := strings.Cut(c.Labels["nerdctl/platform"], "/"); ok {
			arch, _, _ = strings.Cut(arch, "/")
			platform = ctrd.Platform{OS: os, Architecture: arch}
		}
		digest, raw, err := ctrd.Config(ctx, target, platform, client.Blob)
		if err != nil {
			return fail(err)
		}
		if err := d.setImage(raw, "blob "+digest, digest); err != nil {
			return fail(err)
		}
		d.Image.Ref = c.Image
	}
	if ref := d.Annotations["io.kubernetes.cri.image-name"]; ref != "" {
		d.Image.Ref = ref
	}
	d.containerdOperator(s, c.Labels)
	return nil
}

// containerdOperator tells what the operator added: containerd keeps the result
// only, and nerdctl the words of its command line in labels.
func (d *Declared) containerdOperator(s *ociSpec, labels map[string]string) {
	o := &d.Operator
	if d.Image.Known {
		d.compareWithImage()
	} else {
		o.Command = d.Process.Args
	}
	o.Labels = labelsBeyond(labels, d.Image.Labels)
	for k := range o.Labels {
		if strings.HasPrefix(k, "io.containerd.") {
			delete(o.Labels, k)
		}
	}
	// The image's labels are among the container's, and nerdctl and ctr copy
	// some of those into annotations: dropImageAnnotations sees to it.
	o.Compose = compose(labels, o.Labels)
	for _, key := range []string{"nerdctl/name", "io.kubernetes.container.name"} {
		if n := labels[key]; n != "" {
			d.Name = n
			break
		}
	}
	// ctr --privileged, nerdctl --privileged and securityContext.privileged
	// all unmask /proc and give every capability.
	o.Privileged = slices.Contains(d.Process.Capabilities, "CAP_SYS_ADMIN") &&
		slices.Contains(d.Process.Capabilities, "CAP_SYS_MODULE") &&
		len(s.Linux.MaskedPaths) == 0 && len(s.Linux.ReadonlyPaths) == 0
	if u := labels["nerdctl/user"]; u != "" && u != d.Image.User {
		o.User = u
	}
	command := "ctr run"
	switch {
	case labels["nerdctl/namespace"] != "" || labels["nerdctl/name"] != "":
		command = "nerdctl run"
		d.nerdctl(labels)
	case d.Annotations["io.kubernetes.cri.container-type"] != "":
		command = "pod spec"
	}
	if d.Image.Known {
		d.commandOrigins(command)
	} else {
		d.Process.Origins = slices.Repeat([]record.Origin{{Source: record.FromOperator, At: command + " command"}}, len(d.Process.Args))
	}
	for i := range d.Mounts {
		m := &d.Mounts[i]
		at := path.Clean(m.Destination)
		if m.Origin.Source != record.FromOperator {
			continue
		}
		m.Origin = record.Origin{Source: record.FromOperator, At: command + " mount", Text: strings.TrimPrefix(m.Source+":"+at, ":")}
		switch {
		case at == "/run" && m.Type == "tmpfs", // ctr's default
			slices.Contains([]string{"/etc/resolv.conf", "/etc/hostname", "/etc/hosts", "/dev/termination-log", "/dev/shm"}, at),
			strings.HasPrefix(at, "/var/run/secrets/kubernetes.io/"),
			o.Init && at == d.Process.Args[0]:
			m.Origin = record.Origin{Source: record.FromEngine, At: "default mounts", Text: at}
		}
	}
}

// nerdctl reads what nerdctl notes in labels (containerd/nerdctl pkg/labels).
// One that cannot be read is named in Missing.
func (d *Declared) nerdctl(labels map[string]string) {
	if raw := labels["nerdctl/ports"]; raw != "" {
		var list []struct {
			ContainerPort int
			Protocol      string
		}
		if err := json.Unmarshal([]byte(raw), &list); err != nil || len(list) > 10_000 {
			d.Missing = append(d.Missing, "label nerdctl/ports: not in a form that is known")
			list = nil
		}
		for _, p := range list {
			port, err := ParsePort(fmt.Sprintf("%d/%s", p.ContainerPort, p.Protocol))
			if err != nil {
				d.Missing = append(d.Missing, "label nerdctl/ports: "+err.Error())
				continue
			}
			port.Origin = d.by("nerdctl run -p", "ports")
			port.Origin.Text = fmt.Sprintf("%d/%s", port.Port, port.Proto)
			d.Operator.PublishedPorts = append(d.Operator.PublishedPorts, port)
		}
	}
	if raw := labels["nerdctl/healthcheck"]; raw != "" {
		var h healthConfig
		if err := json.Unmarshal([]byte(raw), &h); err != nil {
			d.Missing = append(d.Missing, "label nerdctl/healthcheck: not in a form that is known")
			return
		}
		if d.HealthCheck = h.command(d.Image.Shell); d.HealthCheck == nil {
			return
		}
		origin := d.by("nerdctl run --health-cmd", "healthcheck")
		if slices.Equal(d.HealthCheck, d.Image.HealthCheck) {
			origin = imageHealthCheck(d.Image)
		}
		d.HealthCheckOrigin = []record.Origin{origin}
	}
}

// IsNotFound tells whether an engine said that it has no such thing.
func IsNotFound(err error) bool { return errors.Is(err, ctrd.ErrNotFound) }
