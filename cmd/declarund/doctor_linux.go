package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v2"
	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/procmap/guard"
	"github.com/declarun/declarun/procmap/sensor"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/wire"
)

// answer is what a probe found. Like a kernel, it has three: it can, it
// cannot, and it could not be told.
type answer int

const (
	untold answer = iota
	can
	cannot
)

func (a answer) String() string {
	return [...]string{"could not tell", "yes", "NO"}[a]
}

// finding is one line of doctor.
type finding struct {
	what   string
	answer answer
	detail string
	remedy string
	needed bool // nothing starts without it
}

func doctorCommand() *cli.Command {
	return &cli.Command{
		Name:  "doctor",
		Usage: "what this kernel and these engines can enforce, and what to do about the rest",
		Action: func(c *cli.Context) error {
			cfg, err := loadSite(c)
			if err != nil {
				return err
			}
			return printFindings(c.App.Writer, examine(c, cfg))
		},
	}
}

func printFindings(w io.Writer, all []finding) error {
	bad := 0
	for _, f := range all {
		fmt.Fprintf(w, "%-46s %-15s %s\n", f.what, f.answer, f.detail)
		if f.answer != can && f.remedy != "" {
			fmt.Fprintf(w, "    try: %s\n", f.remedy)
		}
		if f.needed && f.answer != can {
			bad++
		}
	}
	if bad > 0 {
		return cli.Exit(fmt.Sprintf("%d of the above must be put right before a container can start", bad), 1)
	}
	return nil
}

func examine(c *cli.Context, cfg *site.Config) []finding {
	all := []finding{
		probeRoot(),
		probeRunc(cfg),
		probeSeccomp(),
		probe("exec guard (fanotify permission events)", true, "processes are held by read-only root, noexec and notification only", func() (string, error) {
			g, err := guard.Open()
			if err != nil {
				return "", err
			}
			return "Linux 5.0 and later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS", g.Close()
		}),
		probe("reports of dropped executables (fanotify)", false, "", func() (string, error) {
			fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC)
			if err != nil {
				return "", err
			}
			return "", unix.Close(fd)
		}),
		probe("reports of refused writes (kprobe)", false, "refused writes are still refused, only not reported; a kernel with CONFIG_BPF_SYSCALL and CONFIG_KPROBES, not locked down", func() (string, error) {
			return "", sensor.ProbeRefusedWrites()
		}),
		inOwnNetwork("packet filter (nftables)", "nft", true, "modprobe nf_tables"),
		inOwnNetwork("reports of refused packets (NFLOG)", "nflog", false, "modprobe nfnetlink_log"),
		inOwnNetwork("peers by name (NFQUEUE)", "nfqueue", false, "modprobe nfnetlink_queue"),
		probeMemfd(),
		probeLandlock(),
		probeDocker(),
	}
	if ans, err := ask(c.Context, cfg, wire.Request{Operation: wire.Ping}); err == nil && ans.Ping != nil {
		all = append(all, finding{what: "supervisor", answer: can, detail: fmt.Sprintf("version %s, since %s", ans.Ping.Version, ans.Ping.Since.Format(time.RFC3339))})
	} else {
		all = append(all, finding{what: "supervisor", answer: cannot, detail: "not running", remedy: "it starts with the first container; or now: declarun supervise"})
	}
	return all
}

// probe asks by doing. An answer that is not about the kernel's abilities
// (memory, descriptors) is no answer.
func probe(what string, needed bool, remedy string, do func() (string, error)) finding {
	detail, err := do()
	f := finding{what: what, needed: needed, detail: detail, remedy: remedy}
	switch {
	case err == nil:
		f.answer = can
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOMEM), os.Geteuid() != 0 && errors.Is(err, os.ErrPermission):
		f.answer, f.detail = untold, err.Error()
	default:
		f.answer, f.detail = cannot, err.Error()
	}
	return f
}

func probeRoot() finding {
	if os.Geteuid() == 0 {
		return finding{what: "runs as root", answer: can, needed: true}
	}
	return finding{what: "runs as root", answer: cannot, needed: true, remedy: "sudo declarun doctor"}
}

func probeRunc(cfg *site.Config) finding {
	return probe("low-level runtime", true, "apt-get install runc, or set runc = \"/path\" in "+site.DefaultPath, func() (string, error) {
		path, err := findRunc(cfg)
		if err != nil {
			return "", err
		}
		version, err := runcVersion(path)
		return path + " " + version, err
	})
}

func probeSeccomp() finding {
	return probe("system calls refused and reported (seccomp notify)", true, "Linux 5.7 and later", func() (string, error) {
		actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
		if err != nil {
			return "", err
		}
		if !strings.Contains(string(actions), "user_notif") {
			return "", errors.New("kernel has no user_notif action")
		}
		return "", nil
	})
}

func probeMemfd() finding {
	return probe("no execution from memory (vm.memfd_noexec)", false, "Linux 6.3 and later; without it a memfd can be executed", func() (string, error) {
		_, err := os.Stat("/proc/sys/vm/memfd_noexec")
		if err != nil {
			return "", errors.New("kernel has no vm.memfd_noexec")
		}
		return "", nil
	})
}

func probeLandlock() finding {
	abi, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return finding{what: "Landlock (not used yet)", answer: cannot, detail: errno.Error()}
	}
	return finding{what: "Landlock (not used yet)", answer: can, detail: fmt.Sprintf("ABI %d", abi)}
}

func probeDocker() finding {
	raw, err := os.ReadFile("/etc/docker/daemon.json")
	f := finding{what: "Docker knows the runtime", remedy: "declarun install docker"}
	switch {
	case errors.Is(err, os.ErrNotExist):
		f.answer, f.detail = cannot, "no /etc/docker/daemon.json"
	case err != nil:
		f.detail = err.Error()
	case bytes.Contains(raw, []byte(`"declarun"`)):
		f.answer = can
	default:
		f.answer, f.detail = cannot, "/etc/docker/daemon.json does not name it"
	}
	return f
}

// inOwnNetwork probes in a network namespace that vanishes with the child.
func inOwnNetwork(what, which string, needed bool, remedy string) finding {
	return probe(what, needed, remedy, func() (string, error) {
		self, err := os.Executable()
		if err != nil {
			return "", err
		}
		cmd := exec.Command(self, "__probe", which)
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
		out, err := cmd.CombinedOutput()
		if err == nil {
			return strings.TrimSpace(string(out)), nil
		}
		if text := strings.TrimSpace(string(out)); text != "" {
			return "", errors.New(text)
		}
		return "", err
	})
}

// findRunc is where the low-level runtime is: the site's word, else the first
// of a fixed list. The caller's PATH has no say.
func findRunc(cfg *site.Config) (string, error) {
	if cfg.Runc != "" {
		return cfg.Runc, nil
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		p := filepath.Join(dir, "runc")
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p, nil
		}
	}
	return "", &advice{errors.New("find runc: it is in none of the system's program directories"), "apt-get install runc, or set runc = \"/path\" in " + site.DefaultPath}
}

func runcVersion(path string) (string, error) {
	out, err := exec.Command(path, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("ask %s for its version: %w", path, err)
	}
	first, _, _ := strings.Cut(string(out), "\n")
	return strings.TrimPrefix(first, "runc version "), nil
}
