// Package declared holds what an image, its history, its compose project and
// the run command declare about one container, and finds it.
//
// What the image declares and what the operator added are kept apart: the
// image declares behaviour, only the operator and the site may loosen. A label,
// annotation, command or variable that the operator gave with the very value
// that the image has cannot be told from the image's, and counts as the image's.
//
// Guarantees: every file is read to at most MaxFile bytes, every question to
// containerd has a deadline, and a source that is there but unreadable is an
// error that names it. The Docker API and containerd's tasks service are never
// asked: the engine holds its lock on the container while the runtime creates
// it, and dockerd serves nothing while it boots.
//
// It does not verify that an image's history tells the truth, nor any
// signature: an image's author may write whatever he likes into it.
//
// Sources: moby daemon/container (config.v2.json, hostconfig.json), image
// store v1 layout (imagedb, layerdb), containerd api/services, OCI image-spec
// config.md, and the files that Docker 20.10 and containerd 1.6 wrote for the
// runs under testdata.
package declared

import (
	"net/netip"
	"time"

	"github.com/declarun/declarun/shim/record"
)

// Declared is everything known about one container before it runs. It is
// plain data; nothing in it has been checked against the files of the image.
type Declared struct {
	Engine   Engine   `json:"engine"`
	ID       string   `json:"id"`             // the container's ID as the runtime got it
	Name     string   `json:"name,omitempty"` // the name people call it by
	Image    Image    `json:"image"`
	Operator Operator `json:"operator"`
	// Process is the process that will really be started: what the image
	// declares with the operator's changes applied, from config.json.
	Process Process `json:"process"`
	// HealthCheck is the effective health check in exec form (a CMD-SHELL check
	// is {"/bin/sh", "-c", …}), empty if there is none.
	HealthCheck       []string        `json:"health_check,omitempty"`
	HealthCheckOrigin []record.Origin `json:"health_check_origin,omitempty"`
	// Mounts are the mounts of config.json, in its order.
	Mounts []Mount `json:"mounts,omitempty"`
	// Rootless facts of config.json that plans depend on.
	ReadonlyRoot bool `json:"readonly_root"`
	// StorageHeld: the site has storage enforced, so that of a known image only
	// what the plan says is writable.
	StorageHeld bool `json:"storage_held,omitempty"`
	// Elsewhere: what is planned will run on machines that are not known.
	Elsewhere bool `json:"elsewhere,omitempty"`
	// Answered is what the machine and the engine's profile are known to answer
	// (seccompgen.Request).
	Answered []string     `json:"answered,omitempty"`
	Network  NetNamespace `json:"network"`
	UserNS   bool         `json:"user_namespace"`
	HostPID  bool         `json:"host_pid,omitempty"`
	HostIPC  bool         `json:"host_ipc,omitempty"`
	// Resolvers are the name servers that the container's resolv.conf names,
	// with the engine's "ExtServers" comment included.
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"`
	// Search are that file's search domains.
	Search []string `json:"search,omitempty"`
	// Hosts are the extra entries of /etc/hosts that the operator or engine wrote.
	Hosts []Host `json:"hosts,omitempty"`
	// Sandbox is true for a pod's "pause" container.
	Sandbox bool `json:"sandbox,omitempty"`
	// Annotations of config.json. Those an image can set are not in it.
	Annotations map[string]string `json:"annotations,omitempty"`
	// Missing says in plain words which source could not be read and why:
	// "image config: …". A plan says so too.
	Missing []string `json:"missing,omitempty"`

	ownNames []string // the container's own, in its /etc/hosts
}

// Engine is who called the runtime.
type Engine string

const (
	Docker     Engine = "docker"
	Containerd Engine = "containerd" // ctr, nerdctl, Kubernetes through CRI
	Bundle     Engine = "bundle"     // nobody in particular: a bare OCI bundle
)

// Image is what the image alone declares.
type Image struct {
	// Known is false for a bare bundle without an image config beside it. Then
	// config.json itself is the only declaration.
	Known        bool              `json:"known"`
	Ref          string            `json:"ref,omitempty"`    // as typed: "postgres:15"
	Digest       string            `json:"digest,omitempty"` // of the image config: "sha256:…"
	Created      time.Time         `json:"created,omitzero"`
	Architecture string            `json:"architecture,omitempty"`
	Entrypoint   []string          `json:"entrypoint,omitempty"`
	Cmd          []string          `json:"cmd,omitempty"`
	Env          []string          `json:"env,omitempty"`
	User         string            `json:"user,omitempty"`
	WorkingDir   string            `json:"working_dir,omitempty"`
	ExposedPorts []Port            `json:"exposed_ports,omitempty"`
	Volumes      []string          `json:"volumes,omitempty"`
	Labels       map[string]string `json:"labels,omitempty"`
	HealthCheck  []string          `json:"health_check,omitempty"` // exec form, as Declared.HealthCheck
	StopSignal   string            `json:"stop_signal,omitempty"`
	Shell        []string          `json:"shell,omitempty"`
	History      []Instruction     `json:"history,omitempty"`
	Layers       []string          `json:"layers,omitempty"` // diff IDs, base first
}

// Instruction is one Dockerfile instruction, read back from the history.
type Instruction struct {
	Index      int       `json:"index"`           // in the image's history[]
	Layer      string    `json:"layer,omitempty"` // diff ID; empty if it made no layer
	Created    time.Time `json:"created,omitzero"`
	Keyword    string    `json:"keyword"`   // "RUN", "EXPOSE", "COPY"…; "" if it could not be told
	Arguments  string    `json:"arguments"` // the rest, with /bin/sh -c and build-args prefixes removed
	EmptyLayer bool      `json:"empty_layer,omitempty"`
	Raw        string    `json:"raw"`            // created_by, at most 64 KiB of it
	Line       int       `json:"line,omitempty"` // of the Dockerfile, for ParseDockerfile
}

// Operator is what the run command (docker run, compose, ctr) adds to or
// changes of what the image declares.
type Operator struct {
	Command        []string          `json:"command,omitempty"`    // given on the command line, instead of the image's Cmd
	Entrypoint     []string          `json:"entrypoint,omitempty"` // given instead of the image's
	User           string            `json:"user,omitempty"`
	Env            []string          `json:"env,omitempty"`             // only what differs from the image's
	PublishedPorts []Port            `json:"published_ports,omitempty"` // container side
	ExposedPorts   []Port            `json:"exposed_ports,omitempty"`   // --expose
	Labels         map[string]string `json:"labels,omitempty"`          // only what the image does not carry with the same value
	Privileged     bool              `json:"privileged,omitempty"`
	CapAdd         []string          `json:"cap_add,omitempty"`
	Unconfined     bool              `json:"unconfined,omitempty"` // seccomp=unconfined
	Links          []Host            `json:"links,omitempty"`
	Compose        *Compose          `json:"compose,omitempty"`
	TTY            bool              `json:"tty,omitempty"`
	Init           bool              `json:"init,omitempty"` // --init: process.args starts with docker-init --
}

// Compose is what the compose labels say.
type Compose struct {
	Project     string   `json:"project"`
	Service     string   `json:"service"`
	WorkingDir  string   `json:"working_dir,omitempty"`
	ConfigFiles []string `json:"config_files,omitempty"`
	DependsOn   []string `json:"depends_on,omitempty"`
}

// Process is the process of config.json.
type Process struct {
	Args            []string `json:"args"`
	Env             []string `json:"env,omitempty"`
	Cwd             string   `json:"cwd,omitempty"`
	UID             uint32   `json:"uid"`
	GID             uint32   `json:"gid"`
	AdditionalGIDs  []uint32 `json:"additional_gids,omitempty"`
	Terminal        bool     `json:"terminal,omitempty"`
	NoNewPrivileges bool     `json:"no_new_privileges,omitempty"`
	Capabilities    []string `json:"capabilities,omitempty"` // bounding set
	// Origins of the command, by element of Args: "image config.Entrypoint",
	// "operator command".
	Origins []record.Origin `json:"origins,omitempty"`
}

// Mount is one mount of config.json, with who asked for it.
type Mount struct {
	Destination string        `json:"destination"`
	Type        string        `json:"type,omitempty"`
	Source      string        `json:"source,omitempty"`
	Options     []string      `json:"options,omitempty"`
	ReadOnly    bool          `json:"read_only,omitempty"`
	Exec        bool          `json:"exec,omitempty"` // the operator said "exec" in so many words
	Origin      record.Origin `json:"origin"`
}

// Port is a port inside the container, or an inclusive range of them.
type Port struct {
	Proto  string        `json:"proto"` // "tcp", "udp", "sctp"
	Port   uint16        `json:"port"`
	Last   uint16        `json:"last,omitempty"` // 0: just Port
	Origin record.Origin `json:"origin"`
}

// Host is a name with an address.
type Host struct {
	Name   string        `json:"name"`
	Addr   netip.Addr    `json:"addr,omitzero"` // may be unknown: then only DNS tells
	Origin record.Origin `json:"origin"`
}

// NetNamespace says which network namespace the container will use.
type NetNamespace struct {
	Kind NetKind `json:"kind"`
	Path string  `json:"path,omitempty"` // for Joined
}

// NetKind is the zero value only when nothing was decided.
type NetKind string

const (
	OwnNet    NetKind = "own"    // a new namespace made by runc
	JoinedNet NetKind = "joined" // a path: a pod's, another container's, or one prepared by the engine for this container alone
	HostNet   NetKind = "host"
)
