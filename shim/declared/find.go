package declared

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// MaxFile bounds every file that is read, in bytes.
const MaxFile = 64 << 20

// ImageConfigFile is looked for beside the config.json of a bare bundle: an
// OCI image configuration.
const ImageConfigFile = "image-config.json"

// ExecKey is an operator's label or annotation: the destinations, separated by
// commas, of writable mounts whose programs may be executed. Docker has no
// other way to say so for a bind mount or volume.
const ExecKey = "io.declarun.exec"

// Options change how Find looks. The zero value is right for a supervisor.
type Options struct {
	// Timeout bounds all questions to containerd together; 0: 5 seconds.
	Timeout time.Duration
	// HostNetwork is a file of the host's network namespace, to recognise a
	// namespace given by path as the host's; "": /proc/1/ns/net.
	HostNetwork string
}

func (o Options) timeout() time.Duration {
	if o.Timeout <= 0 {
		return 5 * time.Second
	}
	return o.Timeout
}

// Find collects what is declared about the container that is about to be made.
//
// Docker's own files are tried first, then containerd, if a containerd shim is
// the caller; otherwise it is a bare bundle. A source that must be there and is
// not, or cannot be read, is an error: a container is never planned from half
// of its declaration.
func Find(ctx context.Context, req wire.PrepareRequest, opts Options) (*Declared, error) {
	d, spec, err := fromConfig(req.Config, opts)
	if err != nil {
		return nil, err
	}
	d.ID, d.Name = req.ID, req.ID
	ctx, cancel := context.WithTimeout(ctx, opts.timeout())
	defer cancel()

	shim := parseShim(req.ParentArgs)
	dir, isDocker, err := dockerDir(spec, req.ID, shim)
	switch {
	case err != nil:
		return nil, err
	case isDocker:
		err = d.fromDocker(ctx, spec, dir, shim)
	case shim.address != "":
		err = d.fromContainerd(ctx, spec, shim)
	default:
		err = d.fromBundle(req.Bundle)
	}
	if err != nil {
		return nil, err
	}
	d.dropImageAnnotations()
	d.markSandbox()
	d.markExec()
	if err := d.readMounted(); err != nil {
		return nil, err
	}
	return d, nil
}

// FromBundle reads a bare bundle: its config.json and, if it is there, the
// image configuration beside it.
func FromBundle(dir string) (*Declared, error) {
	config, err := readFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return nil, err
	}
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	return Find(context.Background(), wire.PrepareRequest{
		Key: wire.Key{ID: filepath.Base(abs)}, Verb: "create", Bundle: abs, Config: config,
	}, Options{})
}

// spec is the part of config.json that is read here. Everything else in it may
// have any form.
type ociSpec struct {
	Hostname string `json:"hostname"`
	Process  *struct {
		Terminal bool `json:"terminal"`
		User     struct {
			UID            uint32   `json:"uid"`
			GID            uint32   `json:"gid"`
			AdditionalGids []uint32 `json:"additionalGids"`
		} `json:"user"`
		Args            []string `json:"args"`
		Env             []string `json:"env"`
		Cwd             string   `json:"cwd"`
		NoNewPrivileges bool     `json:"noNewPrivileges"`
		Capabilities    *struct {
			Bounding []string `json:"bounding"`
		} `json:"capabilities"`
	} `json:"process"`
	Root *struct {
		Path     string `json:"path"`
		Readonly bool   `json:"readonly"`
	} `json:"root"`
	Mounts []struct {
		Destination string   `json:"destination"`
		Type        string   `json:"type"`
		Source      string   `json:"source"`
		Options     []string `json:"options"`
	} `json:"mounts"`
	Annotations map[string]string `json:"annotations"`
	Linux       *struct {
		Namespaces []struct {
			Type string `json:"type"`
			Path string `json:"path"`
		} `json:"namespaces"`
		MaskedPaths   []string `json:"maskedPaths"`
		ReadonlyPaths []string `json:"readonlyPaths"`
	} `json:"linux"`
}

// fromConfig reads what config.json alone says.
func fromConfig(raw []byte, opts Options) (*Declared, *ociSpec, error) {
	if len(raw) > MaxFile {
		return nil, nil, fmt.Errorf("read config.json: larger than %d bytes", MaxFile)
	}
	var s ociSpec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, nil, fmt.Errorf("parse config.json: %w", err)
	}
	if s.Process == nil || len(s.Process.Args) == 0 {
		return nil, nil, errors.New("read config.json: it names no process to start (process.args)")
	}
	if s.Linux == nil {
		return nil, nil, errors.New("read config.json: it has no linux section: not a Linux container")
	}
	p := s.Process
	d := &Declared{
		Annotations: s.Annotations,
		Process: Process{
			Args: p.Args, Env: p.Env, Cwd: p.Cwd, UID: p.User.UID, GID: p.User.GID,
			AdditionalGIDs: p.User.AdditionalGids, Terminal: p.Terminal, NoNewPrivileges: p.NoNewPrivileges,
		},
		HostPID: true, HostIPC: true, Network: NetNamespace{Kind: HostNet},
	}
	if p.Capabilities != nil {
		d.Process.Capabilities = p.Capabilities.Bounding
	}
	if s.Root != nil {
		d.ReadonlyRoot = s.Root.Readonly
	}
	for _, ns := range s.Linux.Namespaces {
		switch ns.Type {
		case "network":
			d.Network = netNamespace(ns.Path, opts)
		case "user":
			d.UserNS = true
		case "pid":
			d.HostPID = false
		case "ipc":
			d.HostIPC = false
		}
	}
	for i, m := range s.Mounts {
		d.Mounts = append(d.Mounts, Mount{
			Destination: m.Destination, Type: m.Type, Source: m.Source, Options: m.Options,
			ReadOnly: readOnly(m.Options), Origin: specOrigin(i, m.Type, m.Destination),
		})
	}
	return d, &s, nil
}

// netNamespace decides for a namespace by its path: the host's own is
// recognised by its file, whatever name it has (dockerd keeps a "default").
func netNamespace(p string, opts Options) NetNamespace {
	if p == "" {
		return NetNamespace{Kind: OwnNet}
	}
	host := opts.HostNetwork
	if host == "" {
		host = "/proc/1/ns/net"
	}
	a, err1 := os.Stat(host)
	b, err2 := os.Stat(p)
	if err1 == nil && err2 == nil && os.SameFile(a, b) {
		return NetNamespace{Kind: HostNet, Path: p}
	}
	return NetNamespace{Kind: JoinedNet, Path: p}
}

// readOnly follows mount(8): the last word wins; "rro" is runc's recursive form.
func readOnly(options []string) bool {
	ro := false
	for _, o := range options {
		switch o {
		case "ro", "rro":
			ro = true
		case "rw", "rrw":
			ro = false
		}
	}
	return ro
}

// specOrigin is who asked for a mount where nothing but config.json tells:
// kernel file systems and the private /dev come with every engine.
func specOrigin(i int, typ, dest string) record.Origin {
	o := record.Origin{Source: record.FromOperator, At: fmt.Sprintf("config.json mounts[%d]", i), Text: dest}
	switch typ {
	case "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2":
		o.Source = record.FromEngine
	case "tmpfs":
		if dest == "/dev" || dest == "/dev/shm" {
			o.Source = record.FromEngine
		}
	}
	return o
}

func (d *Declared) fromBundle(bundle string) error {
	d.Engine = Bundle
	name := filepath.Join(bundle, ImageConfigFile)
	raw, err := readFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		d.Process.Origins = slices.Repeat([]record.Origin{{Source: record.FromOperator, At: "config.json process.args"}}, len(d.Process.Args))
		return nil
	}
	if err != nil {
		return err
	}
	if err := d.setImage(raw, name, ""); err != nil {
		return err
	}
	d.compareWithImage()
	d.commandOrigins("config.json process.args")
	return nil
}

func (d *Declared) setImage(raw []byte, source, digest string) error {
	c, err := parseImage(raw, source)
	if err != nil {
		return err
	}
	img, missing, err := c.image(source)
	if err != nil {
		return err
	}
	img.Digest = digest
	d.Image, d.Missing = img, append(d.Missing, missing...)
	return nil
}

// compareWithImage fills in what the operator changed where only the result is
// known: config.json.
func (d *Declared) compareWithImage() {
	img, args := d.Image, d.Process.Args
	if len(args) > 2 && isInit(args) {
		args, d.Operator.Init = args[2:], true
	}
	e := len(img.Entrypoint)
	switch {
	case slices.Equal(args, slices.Concat(img.Entrypoint, img.Cmd)):
	case e > 0 && len(args) >= e && slices.Equal(args[:e], img.Entrypoint):
		d.Operator.Command = args[e:]
	case e == 0:
		d.Operator.Command = args
	default:
		d.Operator.Entrypoint = args
	}
	for _, v := range d.Process.Env {
		name, _, _ := strings.Cut(v, "=")
		if !slices.Contains(img.Env, v) && name != "HOSTNAME" && v != "TERM=xterm" && v != "PATH="+defaultPath {
			d.Operator.Env = append(d.Operator.Env, v)
		}
	}
	if uid, gid, ok := numericUser(img.User); ok && (uid != d.Process.UID || gid != 0 && gid != d.Process.GID) {
		d.Operator.User = fmt.Sprintf("%d:%d", d.Process.UID, d.Process.GID)
	}
	d.Operator.TTY = d.Process.Terminal
	for _, c := range d.Process.Capabilities {
		if !slices.Contains(engineCapabilities, c) {
			d.Operator.CapAdd = append(d.Operator.CapAdd, c)
		}
	}
	for i := range d.Mounts {
		m := &d.Mounts[i]
		if m.Origin.Source == record.FromOperator && slices.Contains(img.Volumes, path.Clean(m.Destination)) && anonymous(m.Source) {
			m.Origin = volumeOrigin(m.Destination)
		}
	}
}

// anonymous tells a volume that an engine made up by itself: somewhere in its
// path is a name of 64 hexadecimal digits, as Docker, nerdctl and CRI make them.
func anonymous(source string) bool {
	return slices.ContainsFunc(strings.Split(source, "/"), isHex64)
}

func isHex64(s string) bool {
	return len(s) == 64 && strings.Trim(s, "0123456789abcdef") == ""
}

// isInit recognises what --init puts in front: "/sbin/docker-init -- " (Docker),
// "/sbin/tini -- " (nerdctl), "/run/podman-init -- ".
func isInit(args []string) bool {
	return len(args) > 2 && args[1] == "--" && slices.Contains([]string{"/sbin/docker-init", "/dev/init", "/sbin/tini", "/run/podman-init"}, args[0])
}

// commandOrigins says of every word of the command who gave it. command is how
// the operator gives one: "docker run".
func (d *Declared) commandOrigins(command string) {
	args := d.Process.Args
	d.Process.Origins = make([]record.Origin, 0, len(args))
	add := func(n int, o record.Origin) {
		for ; n > 0; n-- {
			d.Process.Origins = append(d.Process.Origins, o)
		}
	}
	if d.Operator.Init && isInit(args) {
		add(2, record.Origin{Source: record.FromOperator, At: command + " --init"})
		args = args[2:]
	}
	entry, cmd := d.Image.Entrypoint, d.Image.Cmd
	entryOrigin := record.Origin{Source: record.FromImage, At: "config.Entrypoint", Text: "ENTRYPOINT " + jsonList(entry)}
	cmdOrigin := record.Origin{Source: record.FromImage, At: "config.Cmd", Text: "CMD " + jsonList(cmd)}
	if d.Operator.Entrypoint != nil {
		entry, cmd = d.Operator.Entrypoint, nil
		entryOrigin = record.Origin{Source: record.FromOperator, At: command + " --entrypoint", Text: strings.Join(entry, " ")}
	}
	if d.Operator.Command != nil {
		cmd = d.Operator.Command
		cmdOrigin = record.Origin{Source: record.FromOperator, At: command + " command", Text: clip(strings.Join(cmd, " "), 200)}
	}
	if !slices.Equal(args, slices.Concat(entry, cmd)) {
		// An engine that changes the command by itself: nothing but config.json says so.
		add(len(args), record.Origin{Source: record.FromOperator, At: "config.json process.args"})
		return
	}
	add(len(entry), entryOrigin)
	add(len(cmd), cmdOrigin)
}

// Keys that the OCI image conversion (image-spec conversion.md), and nobody
// else, writes into annotations, together with all labels of the image.
var convertedKeys = []string{"org.opencontainers.image.os", "org.opencontainers.image.architecture", "org.opencontainers.image.author", "org.opencontainers.image.created"}

// dropImageAnnotations takes away annotations that come, or may come, from the
// image: some bundle makers copy an image's labels there.
func (d *Declared) dropImageAnnotations() {
	kept := map[string]string{}
	suspect := false
	for k := range d.Annotations {
		suspect = suspect || slices.Contains(convertedKeys, k)
	}
	// Podman copies an image's annotations into config.json, beside the
	// operator's own; nothing tells the two apart.
	suspect = suspect || d.Annotations["io.container.manager"] == "libpod"
	for k, v := range d.Annotations {
		if l, ok := d.Image.Labels[k]; ok && l == v {
			continue
		}
		if suspect && !d.Image.Known && (strings.HasPrefix(k, "io.declarun.") || strings.HasPrefix(k, "io.kubernetes.")) {
			d.Missing = append(d.Missing, "annotation "+k+": ignored, because it may be a label of the image (the annotations have been made from one)")
			continue
		}
		kept[k] = v
	}
	d.Annotations = kept
	if len(kept) == 0 {
		d.Annotations = nil
	}
	slices.Sort(d.Missing)
}

// markSandbox believes the annotation only of the engine that sets it: a
// sandbox passes through untouched, and an image may carry annotations too.
func (d *Declared) markSandbox() {
	switch {
	case d.Engine == Containerd:
		d.Sandbox = d.Annotations["io.kubernetes.cri.container-type"] == "sandbox"
	case d.Annotations["io.container.manager"] == "cri-o":
		d.Sandbox = d.Annotations["io.kubernetes.cri-o.ContainerType"] == "sandbox"
	}
}

// operatorValue is a label or annotation that the operator gave.
func (d *Declared) operatorValue(key string) string {
	if v, ok := d.Operator.Labels[key]; ok {
		return v
	}
	return d.Annotations[key]
}

// markExec sets Exec on the operator's mounts that say so.
func (d *Declared) markExec() {
	var named []string
	for p := range strings.SplitSeq(d.operatorValue(ExecKey), ",") {
		if p = strings.TrimSpace(p); p != "" {
			named = append(named, path.Clean(p))
		}
	}
	for i := range d.Mounts {
		m := &d.Mounts[i]
		if m.Origin.Source == record.FromEngine {
			continue
		}
		m.Exec = slices.Contains(named, path.Clean(m.Destination))
		if m.Origin.Source == record.FromImage { // an option there is the engine's
			continue
		}
		for _, o := range m.Options {
			switch o {
			case "exec":
				m.Exec = true
			case "noexec":
				m.Exec = false
			}
		}
	}
}

// readMounted reads the resolv.conf and hosts files that are mounted into the
// container.
func (d *Declared) readMounted() error {
	hosts := record.Origin{Source: record.FromEngine, At: "/etc/hosts"}
	for _, m := range d.Mounts {
		if m.Source == "" || d.Sandbox {
			continue
		}
		switch path.Clean(m.Destination) {
		case "/etc/resolv.conf":
			data, err := readFile(m.Source)
			if err != nil {
				return fmt.Errorf("read the container's resolv.conf: %w", err)
			}
			d.Resolvers, d.Search = ParseResolvConf(data), ParseSearch(data)
		case "/etc/hosts":
			data, err := readFile(m.Source)
			if err != nil {
				return fmt.Errorf("read the container's hosts file: %w", err)
			}
			d.Hosts = nil
			for _, h := range ParseHosts(data, d.ownNames...) {
				h.Origin = hosts
				for _, l := range d.Operator.Links {
					if l.Name == h.Name {
						h.Origin = l.Origin
					}
				}
				d.Hosts = append(d.Hosts, h)
			}
			for i := range d.Operator.Links { // the engine has resolved them
				for _, h := range d.Hosts {
					if l := &d.Operator.Links[i]; l.Name == h.Name && !l.Addr.IsValid() {
						l.Addr = h.Addr
					}
				}
			}
		}
	}
	return nil
}

// shimArgs is what the command line of a containerd shim says.
type shimArgs struct{ namespace, address string }

func parseShim(args []string) shimArgs {
	var s shimArgs
	if len(args) == 0 || !strings.HasPrefix(filepath.Base(args[0]), "containerd-shim") {
		return s
	}
	for i := 1; i < len(args); i++ {
		name, value, has := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(args[i], "-"), "-"), "=")
		if !strings.HasPrefix(args[i], "-") {
			continue
		}
		if !has && i+1 < len(args) {
			value = args[i+1]
		}
		switch name {
		case "namespace":
			s.namespace = value
		case "address":
			s.address = value
		}
	}
	return s
}

// readFile reads a regular file of at most MaxFile bytes. A FIFO or device in
// its place neither blocks nor is read.
func readFile(name string) ([]byte, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK|syscall.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("read %s: not a regular file", name)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > MaxFile {
		return nil, fmt.Errorf("read %s: larger than %d bytes", name, MaxFile)
	}
	return data, nil
}

// parseFile reads a JSON file of an engine.
func parseFile(name string, into any) error {
	data, err := readFile(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("parse %s: %w", name, err)
	}
	return nil
}
