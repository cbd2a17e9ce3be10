package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const defaultDaemonJSON = "/etc/docker/daemon.json"

// Docker is where a Docker daemon's files are.
type Docker struct {
	Config  string // daemon.json; empty: /etc/docker/daemon.json
	PIDFile string // empty: /run/docker.pid
	Dockerd string // for --validate; empty: the one in a system directory, if any
	Program string // declarun, absolute
	Default bool   // make it the default runtime
}

func (d Docker) config() string {
	if d.Config != "" {
		return d.Config
	}
	return defaultDaemonJSON
}

// Install edits daemon.json and has dockerd read it again.
func (d Docker) Install() (Report, error) {
	var r Report
	if !filepath.IsAbs(d.Program) {
		return r, fmt.Errorf("install for docker: %q is not an absolute path", d.Program)
	}
	before, err := read(d.config())
	if err != nil {
		return r, fmt.Errorf("install for docker: %w", err)
	}
	after, err := DockerInstalled(before, d.Program, d.Default)
	if err != nil {
		return r, &Advice{fmt.Errorf("install for docker: %s: %w", d.config(), err), "correct " + d.config() + " first: dockerd does not start with it as it is"}
	}
	return r, d.write(&r, before, after, true)
}

// Uninstall takes declarun out of daemon.json. Containers that were made with it
// keep its name: they do not start again until they are made anew.
func (d Docker) Uninstall() (Report, error) {
	var r Report
	content, err := read(d.config())
	if err != nil {
		return r, fmt.Errorf("uninstall from docker: %w", err)
	}
	before, err := read(backupOf(d.config()))
	if err != nil {
		return r, fmt.Errorf("uninstall from docker: %w", err)
	}
	after, err := DockerUninstalled(content, before)
	if errors.Is(err, ErrUnchanged) {
		r.done("%s does not mention declarun", d.config())
		return r, nil
	}
	if err != nil {
		return r, fmt.Errorf("uninstall from docker: %s: %w", d.config(), err)
	}
	if after == nil {
		if err := os.Remove(d.config()); err != nil {
			return r, fmt.Errorf("uninstall from docker: %w", err)
		}
		r.done("removed %s, which install had made", d.config())
		d.reload(&r)
		return r, nil
	}
	if err := d.write(&r, content, after, false); err != nil {
		return r, err
	}
	if before != nil {
		if err := os.Remove(backupOf(d.config())); err != nil {
			return r, fmt.Errorf("uninstall from docker: %w", err)
		}
	}
	return r, nil
}

func (d Docker) write(r *Report, before, after []byte, keep bool) error {
	if before != nil && bytes.Equal(before, after) {
		r.done("%s is as it should be", d.config())
		return nil
	}
	if err := d.validate(after); err != nil {
		return fmt.Errorf("edit %s: %w", d.config(), err)
	}
	if keep {
		made, err := backUp(d.config(), before)
		if err != nil {
			return fmt.Errorf("back up %s: %w", d.config(), err)
		}
		if made {
			r.done("kept %s as %s", d.config(), backupOf(d.config()))
		}
	}
	if err := replace(d.config(), after); err != nil {
		return fmt.Errorf("edit %s: %w", d.config(), err)
	}
	r.done("wrote %s", d.config())
	d.reload(r)
	return nil
}

// validate asks dockerd itself (--validate, since 23.0); an older one or none
// leaves it at the JSON that we made.
func (d Docker) validate(content []byte) error {
	dockerd := d.Dockerd
	if dockerd == "" {
		for _, path := range []string{"/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd"} {
			if _, err := os.Stat(path); err == nil {
				dockerd = path
				break
			}
		}
	}
	if dockerd == "" {
		return nil
	}
	f, err := os.CreateTemp("", "daemon-*.json")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(content); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, dockerd, "--validate", "--config-file", f.Name()).CombinedOutput()
	if err == nil || strings.Contains(string(out), "unknown flag: --validate") {
		return nil
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return fmt.Errorf("dockerd --validate: %w: %s", err, lines[len(lines)-1])
}

// reload sends SIGHUP to the dockerd of the PID file: runtimes and the default
// runtime are among what it reads again. Running containers do not notice.
func (d Docker) reload(r *Report) {
	file := d.PIDFile
	if file == "" && d.Config != "" && d.Config != defaultDaemonJSON {
		r.next("kill -HUP $(pidof dockerd)   # the one with --config-file " + d.Config)
		return
	}
	if file == "" {
		file = "/run/docker.pid"
	}
	content, err := os.ReadFile(file)
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(content)))
	if err == nil && convErr == nil && pid > 1 {
		comm, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
		if err == nil && strings.TrimSpace(string(comm)) == "dockerd" && syscall.Kill(pid, syscall.SIGHUP) == nil {
			r.done("dockerd (process %d) reads it again", pid)
			return
		}
	}
	r.next("systemctl reload docker")
}
