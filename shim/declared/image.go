package declared

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// imageConfig is an image configuration as Docker and the OCI write it, and
// one element of what docker image inspect prints: encoding/json matches names
// without regard to case, which is also how Docker reads them.
type imageConfig struct {
	ID           string      `json:"Id"`
	RepoTags     []string    `json:"RepoTags"`
	Created      *time.Time  `json:"created"`
	Architecture string      `json:"architecture"`
	Config       *execConfig `json:"config"`
	RootFS       struct {
		DiffIDs []string `json:"diff_ids"`
		Layers  []string `json:"Layers"` // docker image inspect
	} `json:"rootfs"`
	History []historyEntry `json:"history"`
}

type historyEntry struct {
	Created    *time.Time `json:"created"`
	CreatedBy  string     `json:"created_by"`
	Comment    string     `json:"comment"`
	EmptyLayer bool       `json:"empty_layer"`
}

// execConfig is the "config" of an image, and .Config of config.v2.json.
type execConfig struct {
	Hostname, Domainname string
	User                 string
	Tty                  bool
	ExposedPorts         map[string]struct{}
	Env                  []string
	Entrypoint           words
	Cmd                  words
	Healthcheck          *healthConfig
	Image                string
	Volumes              map[string]struct{}
	WorkingDir           string
	Labels               map[string]string
	StopSignal           string
	Shell                words
}

type healthConfig struct {
	Test []string
}

// words is a list that very old images write as one string.
type words []string

func (w *words) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] == '"' {
		var s string
		if err := json.Unmarshal(data, &s); err != nil {
			return err
		}
		*w = words{s}
		return nil
	}
	return json.Unmarshal(data, (*[]string)(w))
}

// parseImage reads an image configuration. source names it in errors.
func parseImage(raw []byte, source string) (imageConfig, error) {
	var c imageConfig
	if t := strings.TrimLeft(string(raw[:min(len(raw), 64)]), " \t\r\n"); strings.HasPrefix(t, "[") {
		var list []imageConfig
		if err := json.Unmarshal(raw, &list); err != nil {
			return c, fmt.Errorf("parse image config %s: %w", source, err)
		}
		if len(list) != 1 {
			return c, fmt.Errorf("parse image config %s: it describes %d images, want one", source, len(list))
		}
		return check(list[0], source)
	}
	if err := json.Unmarshal(raw, &c); err != nil {
		return c, fmt.Errorf("parse image config %s: %w", source, err)
	}
	return check(c, source)
}

func check(c imageConfig, source string) (imageConfig, error) {
	switch {
	case c.Config == nil && c.Architecture == "" && c.RootFS.DiffIDs == nil:
		return c, fmt.Errorf("parse image config %s: it has no config, architecture or rootfs: not an image configuration", source)
	case len(c.History) > maxHistory:
		return c, fmt.Errorf("parse image config %s: %d entries of history, more than %d", source, len(c.History), maxHistory)
	}
	if c.Config == nil {
		c.Config = &execConfig{}
	}
	return c, nil
}

// image turns a configuration into what it declares, and says what of it could
// not be read.
func (c imageConfig) image(source string) (Image, []string, error) {
	e := c.Config
	layers := c.RootFS.DiffIDs
	if layers == nil {
		layers = c.RootFS.Layers
	}
	img := Image{
		Known: true, Architecture: c.Architecture, Digest: c.ID,
		Entrypoint: e.Entrypoint, Cmd: e.Cmd, Env: e.Env, User: e.User, WorkingDir: e.WorkingDir,
		Volumes: slices.Sorted(maps.Keys(e.Volumes)), Labels: e.Labels,
		StopSignal: e.StopSignal, Shell: e.Shell, Layers: layers,
		HealthCheck: e.Healthcheck.command(e.Shell),
	}
	if len(c.RepoTags) > 0 {
		img.Ref = c.RepoTags[0]
	}
	if c.Created != nil {
		img.Created = *c.Created
	}
	var err error
	if img.ExposedPorts, err = ports(e.ExposedPorts, record.Origin{Source: record.FromImage, At: "config.ExposedPorts"}, "EXPOSE "); err != nil {
		return img, nil, fmt.Errorf("parse image config %s: %w", source, err)
	}
	var missing []string
	img.History, missing = instructions(c.History, layers)
	return img, missing, nil
}

// instructions reads the history and gives every entry the layer it made.
func instructions(entries []historyEntry, layers []string) ([]Instruction, []string) {
	var missing []string
	made := 0
	for _, h := range entries {
		if !h.EmptyLayer {
			made++
		}
	}
	if len(entries) > 0 && made != len(layers) {
		missing = append(missing, fmt.Sprintf("history: it describes %d layers, the image has %d: instructions are not tied to layers", made, len(layers)))
	}
	if len(entries) == 0 {
		missing = append(missing, "history: the image has none")
	}
	var out []Instruction
	next := 0
	for i, h := range entries {
		in := Instruction{Index: i, EmptyLayer: h.EmptyLayer, Raw: clip(h.CreatedBy, maxInstruction)}
		in.Keyword, in.Arguments = ParseInstruction(h.CreatedBy)
		if h.Created != nil {
			in.Created = *h.Created
		}
		if !h.EmptyLayer {
			if made == len(layers) {
				in.Layer = layers[next]
			}
			next++
		}
		out = append(out, in)
	}
	return out, missing
}

// command gives the exec form of a health check; nil for none.
func (h *healthConfig) command(shell []string) []string {
	if h == nil || len(h.Test) == 0 {
		return nil
	}
	switch h.Test[0] {
	case "CMD":
		return slices.Clone(h.Test[1:])
	case "CMD-SHELL":
		if len(h.Test) < 2 {
			return nil
		}
		if len(shell) == 0 {
			shell = []string{"/bin/sh", "-c"}
		}
		return append(slices.Clone(shell), h.Test[1:]...)
	}
	return nil // NONE, and what Docker does not know either
}

// ports reads the keys of ExposedPorts and PortBindings, in order of their text.
func ports[V any](set map[string]V, origin record.Origin, prefix string) ([]Port, error) {
	var out []Port
	for _, key := range slices.Sorted(maps.Keys(set)) {
		p, err := ParsePort(key)
		if err != nil {
			return nil, err
		}
		p.Origin = origin
		p.Origin.Text = prefix + key
		out = append(out, p)
	}
	return out, nil
}

// ParsePort reads "5432/tcp", "53/udp", "9000-9002/tcp" or "8080".
func ParsePort(s string) (Port, error) {
	number, proto, _ := strings.Cut(s, "/")
	p := Port{Proto: strings.ToLower(proto)}
	switch p.Proto {
	case "":
		p.Proto = "tcp"
	case "tcp", "udp", "sctp":
	default:
		return Port{}, fmt.Errorf("parse port %q: unknown protocol %q", clip(s, 40), clip(proto, 20))
	}
	first, last, isRange := strings.Cut(number, "-")
	n, err := strconv.ParseUint(first, 10, 16)
	if err != nil || n == 0 {
		return Port{}, fmt.Errorf("parse port %q: not a number from 1 to 65535", clip(s, 40))
	}
	p.Port = uint16(n)
	if isRange {
		m, err := strconv.ParseUint(last, 10, 16)
		if err != nil || m < n {
			return Port{}, fmt.Errorf("parse port %q: the range does not end after it begins", clip(s, 40))
		}
		if m > n {
			p.Last = uint16(m)
		}
	}
	return p, nil
}

// Contains tells whether the port or range covers n of proto.
func (p Port) Contains(proto string, n uint16) bool {
	return p.Proto == proto && (n == p.Port || p.Last != 0 && p.Port <= n && n <= p.Last)
}

// FromImageConfig is what "docker run IMAGE COMMAND…" would declare: for a plan
// without a container. raw is an OCI or Docker image configuration, or what
// docker image inspect prints. A USER given by name is resolved by ResolveUser.
func FromImageConfig(raw []byte, command ...string) (*Declared, error) {
	if len(raw) > MaxFile {
		return nil, fmt.Errorf("parse image config: larger than %d bytes", MaxFile)
	}
	c, err := parseImage(raw, "given")
	if err != nil {
		return nil, err
	}
	img, missing, err := c.image("given")
	if err != nil {
		return nil, err
	}
	if img.Digest == "" {
		sum := sha256.Sum256(raw)
		img.Digest = "sha256:" + hex.EncodeToString(sum[:])
	}
	d := &Declared{Engine: Docker, Image: img, Missing: missing, Network: NetNamespace{Kind: OwnNet}}
	d.Operator.Command = command
	d.Process = Process{
		Env: img.Env, Cwd: img.WorkingDir,
		Capabilities: slices.Clone(engineCapabilities),
	}
	if d.Process.Cwd == "" {
		d.Process.Cwd = "/"
	}
	if !slices.ContainsFunc(img.Env, func(e string) bool { return strings.HasPrefix(e, "PATH=") }) {
		d.Process.Env = append([]string{"PATH=" + defaultPath}, img.Env...)
	}
	d.Process.Args = slices.Concat(img.Entrypoint, img.Cmd)
	if len(command) > 0 {
		d.Process.Args = slices.Concat(img.Entrypoint, command)
	}
	if len(d.Process.Args) == 0 {
		return nil, &Error{Err: errors.New("plan image: it declares neither ENTRYPOINT nor CMD"), Way: "give the command to run after the image"}
	}
	d.commandOrigins("docker run")
	if uid, gid, ok := numericUser(img.User); ok {
		d.Process.UID, d.Process.GID = uid, gid
	} else {
		d.Missing = append(d.Missing, "user: USER "+img.User+" is a name; the image's /etc/passwd knows its number")
	}
	d.HealthCheck = img.HealthCheck
	if d.HealthCheck != nil {
		d.HealthCheckOrigin = []record.Origin{imageHealthCheck(img)}
	}
	d.Mounts = dockerDefaultMounts()
	for _, v := range img.Volumes {
		d.Mounts = append(d.Mounts, Mount{Destination: v, Type: "bind", Options: []string{"rbind"}, Origin: volumeOrigin(v)})
	}
	return d, nil
}

func imageHealthCheck(img Image) record.Origin {
	return record.Origin{Source: record.FromImage, At: "config.Healthcheck", Text: "HEALTHCHECK CMD " + clip(strings.Join(img.HealthCheck, " "), 200)}
}

func volumeOrigin(dest string) record.Origin {
	return record.Origin{Source: record.FromImage, At: "config.Volumes", Text: "VOLUME " + dest}
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// engineCapabilities are what Docker, containerd and Podman give by default
// (moby oci/caps/defaults.go, containerd oci/spec.go; Podman gives fewer).
var engineCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FSETID", "CAP_FOWNER", "CAP_MKNOD", "CAP_NET_RAW", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETFCAP", "CAP_SETPCAP", "CAP_NET_BIND_SERVICE", "CAP_SYS_CHROOT", "CAP_KILL", "CAP_AUDIT_WRITE",
}

// dockerDefaultMounts are the mounts of every Docker container (moby oci/defaults.go).
func dockerDefaultMounts() []Mount {
	engine := record.Origin{Source: record.FromEngine, At: "default mounts"}
	m := func(dest, typ, source string, options ...string) Mount {
		return Mount{Destination: dest, Type: typ, Source: source, Options: options, ReadOnly: slices.Contains(options, "ro"), Origin: engine}
	}
	return []Mount{
		m("/proc", "proc", "proc", "nosuid", "noexec", "nodev"),
		m("/dev", "tmpfs", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
		m("/dev/pts", "devpts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"),
		m("/sys", "sysfs", "sysfs", "nosuid", "noexec", "nodev", "ro"),
		m("/sys/fs/cgroup", "cgroup", "cgroup", "ro", "nosuid", "noexec", "nodev"),
		m("/dev/mqueue", "mqueue", "mqueue", "nosuid", "noexec", "nodev"),
		m("/dev/shm", "tmpfs", "shm", "nosuid", "noexec", "nodev", "mode=1777", "size=67108864"),
		m("/etc/resolv.conf", "bind", "", "rbind", "rprivate"),
		m("/etc/hostname", "bind", "", "rbind", "rprivate"),
		m("/etc/hosts", "bind", "", "rbind", "rprivate"),
	}
}
