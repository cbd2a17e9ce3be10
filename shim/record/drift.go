package record

import "time"

// DriftHow says how a path differs.
type DriftHow string

const (
	DriftAdded   DriftHow = "added"
	DriftChanged DriftHow = "changed"
	DriftRemoved DriftHow = "removed"
	// DriftLater is added or changed: which cannot be told without layers.
	DriftLater DriftHow = "changed later"
)

// Change is one path of a Drift.
type Change struct {
	Path string   `json:"path"` // in the container
	How  DriftHow `json:"how"`
	Type string   `json:"type"` // "file", "directory", "link", "device", "pipe", "socket"
	// Program is "elf" or "script" where it can be executed, or mapped to be.
	Program string    `json:"program,omitempty"`
	Mode    uint32    `json:"mode,omitempty"` // permission bits with set-user-ID, set-group-ID and sticky
	UID     uint32    `json:"uid"`            // on the machine
	GID     uint32    `json:"gid"`
	Size    int64     `json:"size"`
	Changed time.Time `json:"changed,omitzero"` // its ctime
	// Capabilities is true for a file that gives some to whoever executes it.
	Capabilities bool `json:"capabilities,omitempty"`
	// What differs, where it is not the content: "mode", "owner", "metadata", "type",
	// "everything below is hidden".
	What []string `json:"what,omitempty"`
	// From is where a directory was before it was renamed, or a link leads to.
	From string `json:"from,omitempty"`
	// Bytes is the path as it is, in hexadecimal, where it is no text.
	Bytes string `json:"bytes,omitempty"`

	// Declared is the writable path of the plan that it is, or lies below.
	Declared string `json:"declared,omitempty"`
	// Made is true for a library where the plan says that the image's programs make
	// and load some.
	Made bool `json:"made,omitempty"`
	// By is who wrote it; nil: not known.
	By *Writer `json:"by,omitempty"`
}

// Writer is a process that wrote a file.
type Writer struct {
	PID    int       `json:"pid"`
	Exe    string    `json:"exe,omitempty"`
	Comm   string    `json:"comm,omitempty"`
	UID    int       `json:"uid"`
	Parent string    `json:"parent,omitempty"` // its parent's program
	Time   time.Time `json:"time"`
	Event  string    `json:"event,omitempty"`
}

// Drift is what in a container's writable layer differs from its image.
type Drift struct {
	// Layers is false where the root is no overlay: then told is what changed later
	// than the container was made.
	Layers  bool     `json:"layers"`
	Changes []Change `json:"changes"`
	// More is how many changes were found beyond those that are listed.
	More int `json:"more,omitempty"`
	// Entries were looked at.
	Entries int `json:"entries"`
	// Incomplete says why not all was looked at; empty: all was.
	Incomplete string `json:"incomplete,omitempty"`
}

// Special tells whether a change is more than data: a program, or a file with
// rights of its own.
func (c Change) Special() bool {
	return c.How != DriftRemoved && (c.Program != "" && !c.Made || c.Type == "file" && (c.Mode&0o6000 != 0 || c.Capabilities) || c.Type == "device")
}
