// Package admission judges whether a container should start at all, from what
// is declared about it: before runc is called, and before anything of the image
// has run.
//
// Every finding has a stable ID and is a warning unless the site's
// [admission.rules] say "deny" or "off". Judge is a pure function; Inspect is
// what reads the image's files for it.
//
// It does not look at the versions of packages, and it believes the image's
// history: what a script in the image installs is not seen.
package admission

import (
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/site"
)

// The findings.
const (
	AptNeverUpdated       = "apt-never-updated"
	DistributionEndOfLife = "distribution-end-of-life"
	Privileged            = "privileged"
	HostNetwork           = "host-network"
	HostPID               = "host-pid"
	DockerSocketMount     = "docker-socket-mount"
	SensitiveHostPath     = "sensitive-host-path"
	UnknownHistory        = "unknown-history"
)

// AptState is what the image's package lists look like. Nil: not looked at.
type AptState struct {
	Lists  int       // files of package lists
	Newest time.Time // the newest of them
}

// Judge decides on a container. osRelease is the image's os-release(5); now is
// the time to judge the end of support by.
func Judge(d *declared.Declared, osRelease map[string]string, lists *AptState, now time.Time, rules map[string]site.Rule) plan.Admission {
	j := judgement{rules: rules, out: plan.Admission{Verdict: plan.Admit, Reasons: []plan.Reason{}}}
	if d.Sandbox {
		return j.out
	}
	j.history(d, lists)
	j.distribution(osRelease, now)
	j.operator(d)
	j.mounts(d)
	return j.out
}

type judgement struct {
	rules map[string]site.Rule
	out   plan.Admission
}

func (j *judgement) find(id, text, remedy string, origins ...record.Origin) {
	verdict := plan.Warn
	switch j.rules[id] {
	case site.RuleOff:
		return
	case site.RuleDeny:
		verdict = plan.Refuse
	}
	if origins == nil {
		origins = []record.Origin{}
	}
	j.out.Reasons = append(j.out.Reasons, plan.Reason{ID: id, Verdict: verdict, Text: text, Remedy: remedy, Origins: origins})
	if verdict == plan.Refuse || j.out.Verdict == plan.Admit {
		j.out.Verdict = verdict
	}
}

func (j *judgement) history(d *declared.Declared, lists *AptState) {
	if !d.Image.Known {
		return // a bare bundle declares by config.json alone
	}
	told := slices.ContainsFunc(d.Image.History, func(i declared.Instruction) bool { return i.Keyword != "" })
	if !told {
		j.find(UnknownHistory, "the image's history does not say how it was made", "build the image from a Dockerfile, and do not squash or import it")
		return
	}
	if in, tool, found := neverUpdated(d.Image.History); found {
		text := fmt.Sprintf("%s installs packages and nothing before it has fetched the lists of packages: what is installed is as old as the base image", tool)
		if lists != nil && lists.Lists > 0 {
			text += " (its newest list is of " + lists.Newest.UTC().Format(time.DateOnly) + ")"
		}
		j.find(AptNeverUpdated, text, fmt.Sprintf("write \"RUN %s && …\" in the same instruction", map[string]string{"apt": "apt-get update", "apk": "apk update"}[tool]), in.Origin())
	}
}

func (j *judgement) distribution(osRelease map[string]string, now time.Time) {
	id, version := osRelease["ID"], osRelease["VERSION_ID"]
	if id == "alpine" {
		if parts := strings.SplitN(version, ".", 3); len(parts) > 2 {
			version = parts[0] + "." + parts[1]
		}
	}
	last, known := lastDay(id, version)
	if !known || !now.After(last.AddDate(0, 0, 1)) {
		return
	}
	name := osRelease["PRETTY_NAME"]
	if name == "" || len(name) > 100 {
		name = id + " " + version
	}
	j.find(DistributionEndOfLife, fmt.Sprintf("%s has had no security updates since %s", name, last.Format(time.DateOnly)),
		"build the image on a supported release", record.Origin{Source: record.FromFile, At: "/etc/os-release", Text: id + " " + version})
}

func (j *judgement) operator(d *declared.Declared) {
	said := func(at string) record.Origin { return record.Origin{Source: record.FromOperator, At: at} }
	if d.Operator.Privileged {
		j.find(Privileged, "the container is privileged: nothing in it is held to a declaration", "drop --privileged and give the one capability or device that is needed (--cap-add, --device)", said("docker run --privileged"))
	}
	if d.Network.Kind == declared.HostNet {
		j.find(HostNetwork, "the container shares the host's network: who it connects to is not held to a declaration", "publish ports (-p) instead of --network host", said("docker run --network host"))
	}
	if d.HostPID {
		j.find(HostPID, "the container sees and can signal the host's processes", "drop --pid host", said("docker run --pid host"))
	}
}

// engineSockets are those that give their holder root on the host.
var engineSockets = []string{"docker.sock", "containerd.sock", "crio.sock", "podman.sock", "buildkitd.sock"}

// sensitive are directories whose writing, and for those marked true also
// reading, gives away the host.
var sensitive = map[string]bool{
	"/": true, "/etc": false, "/root": true, "/proc": false, "/sys": false, "/dev": true, "/boot": false,
	"/usr": false, "/bin": false, "/sbin": false, "/lib": false, "/lib64": false, "/run": false, "/var/run": false,
	"/var/lib": false, "/var/lib/docker": true, "/var/lib/containerd": true, "/var/lib/kubelet": true,
	"/etc/shadow": true, "/etc/ssh": true, "/etc/declarun": false, "/run/declarun": true, "/var/log/declarun": false,
}

func (j *judgement) mounts(d *declared.Declared) {
	for _, m := range d.Mounts {
		if m.Origin.Source == record.FromEngine || m.Origin.Source == record.FromImage || !path.IsAbs(m.Source) {
			continue
		}
		source := path.Clean(m.Source)
		reading, is := sensitive[source]
		switch {
		case slices.Contains(engineSockets, path.Base(source)):
			j.find(DockerSocketMount, fmt.Sprintf("%s is mounted: whoever controls the container controls the host", source),
				"use a proxy for the engine's API that lets through only what is needed", m.Origin)
		case is && (reading || !m.ReadOnly):
			how := "to write"
			if m.ReadOnly {
				how = "to read"
			}
			j.find(SensitiveHostPath, fmt.Sprintf("the host's %s is mounted %s", source, how), "mount the one directory that is needed, read-only", m.Origin)
		}
	}
}
