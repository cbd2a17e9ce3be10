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

	"github.com/declarun/declarun/netpolicy"
	"github.com/declarun/declarun/procmap/guard"
	"github.com/declarun/declarun/procmap/proctree"
	"github.com/declarun/declarun/procmap/sensor"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
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
		Name:   "doctor",
		Before: none,
		Description: "Asks by trying. What has to be there before a container can start makes it exit with 1; what is\n" +
			"missing besides takes away reports, or one of several locks on the same door.",
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
	bad, width := 0, 0
	for _, f := range all {
		width = max(width, len(f.what))
	}
	for _, f := range all {
		fmt.Fprintln(w, clean(strings.TrimRight(fmt.Sprintf("%-14s %-*s  %s", f.answer, width, f.what, f.detail), " ")))
		if f.answer != can && f.remedy != "" {
			fmt.Fprintf(w, "%14s try: %s\n", "", clean(f.remedy))
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
		probe("exec guard (fanotify permission events)", true, "Linux 5.0 and later with CONFIG_FANOTIFY_ACCESS_PERMISSIONS; or [modes] processes = \"off\" in "+site.DefaultPath, func() (string, error) {
			g, err := guard.Open()
			if err != nil {
				return "", err
			}
			return "", g.Close()
		}),
		probe("reports of dropped executables (fanotify)", false, "", func() (string, error) {
			fd, err := unix.FanotifyInit(unix.FAN_CLASS_NOTIF|unix.FAN_CLOEXEC, unix.O_RDONLY|unix.O_CLOEXEC)
			if err != nil {
				return "", err
			}
			return "", unix.Close(fd)
		}),
		probe("reports of refused writes at no cost (kprobe)", false, "nothing, they are refused all the same; or a kernel with CONFIG_KPROBES; or report-writes = \"always\" in "+site.DefaultPath+", which every system call of the machine pays for", func() (string, error) {
			r, err := sensor.OpenRefusals()
			if err != nil {
				return "", err
			}
			return string(r.Hook()), r.Close()
		}),
		probe("process trees as they happen (process connector)", false, "Linux with CONFIG_PROC_EVENTS, and the supervisor in the machine's own namespaces with CAP_NET_ADMIN; without it declarun tree reads /proc when asked, and short-lived processes are missing", func() (string, error) {
			c, err := proctree.OpenConnector()
			if err != nil {
				return "", err
			}
			detail := "filtered by kind of event in the kernel"
			if !c.Masked() {
				detail = "filtered for each socket: Linux 6.6 and later filters before"
			}
			return detail, c.Close()
		}),
		probeMemfd(),
		probeTracing(os.ReadFile("/proc/sys/kernel/yama/ptrace_scope")),
		probeDocker(),
	}
	all = append(all, probeNetwork()...)
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
		f.answer, f.detail = untold, brief(err)
	default:
		f.answer, f.detail = cannot, brief(err)
	}
	return f
}

// brief is the first of several causes.
func brief(err error) string {
	first, _, _ := strings.Cut(strings.ReplaceAll(err.Error(), "\n", "; "), "; ")
	if r := []rune(first); len(r) > 120 {
		return string(r[:119]) + "…"
	}
	return first
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

// probeTracing reads kernel.yama.ptrace_scope (Documentation/admin-guide/LSM/Yama.rst).
// Without Yama a process may write to the memory of another of the same user, that
// of somebody's exec among them, and so act with its rights. Where Yama forbids
// everybody to attach, the supervisor cannot take a copy of a socket either.
func probeTracing(scope []byte, err error) finding {
	f := finding{what: "an exec is kept apart from the container (Yama)", answer: can, remedy: "sysctl kernel.yama.ptrace_scope=1, on a kernel with CONFIG_SECURITY_YAMA"}
	switch value := strings.TrimSpace(string(scope)); {
	case errors.Is(err, os.ErrNotExist):
		f.answer, f.detail = cannot, "kernel has no Yama: a program can take over what docker exec runs under the same user"
	case err != nil:
		f.answer, f.detail = untold, brief(err)
	case value == "0":
		f.answer, f.detail = cannot, "kernel.yama.ptrace_scope is 0: a program can take over what docker exec runs under the same user"
	case value == "3":
		f.answer, f.needed, f.detail = cannot, true, "kernel.yama.ptrace_scope is 3: nobody may attach, the supervisor included, and no server can listen"
		f.remedy = "kernel.yama.ptrace_scope = 1 or 2 in /etc/sysctl.d; 3 stays until the next boot"
	}
	return f
}

func probeDocker() finding {
	raw, err := os.ReadFile("/etc/docker/daemon.json")
	f := finding{what: "Docker knows the runtime", remedy: "declarun install docker, if Docker is what starts containers here"}
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

// probeNetwork sets real rules in a network namespace that ends with a child.
func probeNetwork() []finding {
	const remedy = "modprobe nf_tables nfnetlink_log nfnetlink_queue nf_conntrack"
	var table *netpolicy.Table
	ns, end, err := emptyNamespace()
	if err != nil {
		return []finding{probe("packet filter (nftables)", true, remedy, func() (string, error) { return "", err })}
	}
	defer end()
	network := plan.Network{Enforced: true, Connect: []plan.Peer{{Name: "probe.invalid", Proto: "tcp", Port: 1}}}
	all := []finding{probe("packet filter (nftables)", true, remedy, func() (string, error) {
		table, err = netpolicy.Apply(int(ns.Fd()), netpolicy.Rules(network, netpolicy.Options{Mode: record.Enforce}))
		if err != nil {
			return "", err
		}
		return fmt.Sprintf("table is %s", table.Ownership()), nil
	})}
	if table == nil {
		return all
	}
	defer table.Close()
	all = append(all, probe("reports of refused packets (NFLOG)", false, remedy, func() (string, error) {
		w, err := netpolicy.NewWatcher(int(ns.Fd()), table)
		if err != nil {
			return "", err
		}
		return "", w.Close()
	}))
	names := finding{what: "peers by name without a race (NFQUEUE)", answer: can, remedy: remedy}
	if !table.HoldsAnswers() {
		names.answer, names.detail = cannot, "a client that connects at once after a DNS answer may have to retry"
	}
	return append(all, names)
}

// emptyNamespace is a network namespace of a child that waits to be ended.
func emptyNamespace() (*os.File, func(), error) {
	cmd := exec.Command("/proc/self/exe", argProbe)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET}
	hold, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, err
	}
	ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	if err != nil {
		hold.Close()
		return nil, nil, errors.Join(err, cmd.Wait())
	}
	return ns, func() {
		ns.Close()
		hold.Close()
		_ = cmd.Wait()
	}, nil
}

// probeChild waits until its parent is done with its namespaces.
func probeChild() error {
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
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
