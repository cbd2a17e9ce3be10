// Package need is how a test says what it needs from the machine. At a desk a
// missing need skips the test; where DECLARUN_REQUIRE names the need, or says
// "all", it fails it: a machine that lost a privilege goes red instead of
// testing nothing.
package need

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func missing(t testing.TB, name, why string) {
	t.Helper()
	required := strings.FieldsFunc(os.Getenv("DECLARUN_REQUIRE"), func(r rune) bool { return r == ',' || r == ' ' })
	if slices.Contains(required, name) || slices.Contains(required, "all") {
		t.Fatalf("needs %s: %s", name, why)
	}
	t.Skipf("needs %s: %s (set DECLARUN_REQUIRE=%s to make this a failure)", name, why, name)
}

// Root needs effective user ID 0.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		missing(t, "root", "not running as root")
	}
}

// Program needs a program in PATH and gives its path.
func Program(t testing.TB, name string) string {
	t.Helper()
	p, err := exec.LookPath(name)
	if err != nil {
		missing(t, name, err.Error())
	}
	return p
}

// File needs a file that a package brings.
func File(t testing.TB, name string) {
	t.Helper()
	if _, err := os.Stat(name); err != nil {
		missing(t, name, err.Error())
	}
}

// Runc needs root and runc.
func Runc(t testing.TB) string {
	t.Helper()
	Root(t)
	return Program(t, "runc")
}

// Docker needs root and the daemons a private engine is started from.
func Docker(t testing.TB) {
	t.Helper()
	Root(t)
	for _, p := range []string{"dockerd", "containerd", "docker", "runc"} {
		Program(t, p)
	}
}

// Fanotify needs permission events (Linux 5.0, CONFIG_FANOTIFY_ACCESS_PERMISSIONS).
func Fanotify(t testing.TB) {
	t.Helper()
	Root(t)
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_REPORT_TID, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		missing(t, "fanotify", err.Error())
		return
	}
	unix.Close(fd)
}

// Netns needs to be able to make network namespaces.
func Netns(t testing.TB) {
	t.Helper()
	Root(t)
	// Probed in a child: a namespace of this process would change its thread.
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}
	if err := cmd.Run(); err != nil && !errors.Is(err, exec.ErrNotFound) {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			missing(t, "netns", err.Error())
		}
	}
}

// Seccomp needs user notification (Linux 5.0; with continue 5.5).
func Seccomp(t testing.TB) {
	t.Helper()
	actions, err := os.ReadFile("/proc/sys/kernel/seccomp/actions_avail")
	if err != nil || !strings.Contains(string(actions), "user_notif") {
		missing(t, "seccomp", "kernel has no user_notif action")
	}
}

// Landlock needs a version of it (1: Linux 5.13, 3: 6.2).
func Landlock(t testing.TB, version uintptr) {
	t.Helper()
	const ask = 1 // LANDLOCK_CREATE_RULESET_VERSION
	got, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, ask)
	if errno != 0 {
		missing(t, "landlock", errno.Error())
	}
	if got < version {
		missing(t, "landlock", "kernel has an older version")
	}
}

// Userfaultfd needs page faults that user space answers (Linux 4.3, CONFIG_USERFAULTFD).
func Userfaultfd(t testing.TB) {
	t.Helper()
	fd, _, errno := unix.Syscall(unix.SYS_USERFAULTFD, unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		missing(t, "userfaultfd", errno.Error())
		return
	}
	unix.Close(int(fd))
}

// debianTime is how long packages may take to arrive.
const debianTime = 60 * time.Second

// Debian needs packages of Debian bookworm for another architecture, from the
// mirrors that this machine's apt knows, and gives a directory with them and
// what they depend on, unpacked. Nothing is installed; the machine's own list of
// architectures and packages stays as it is. They are kept for the next run.
func Debian(t testing.TB, arch string, packages ...string) string {
	t.Helper()
	for _, p := range []string{"apt-get", "dpkg-deb"} {
		Program(t, p)
	}
	cache := os.Getenv("DECLARUN_TEST_CACHE")
	switch {
	case cache != "":
	case os.Geteuid() == 0:
		cache = "/var/cache/declarun-integration"
	default:
		dir, err := os.UserCacheDir()
		if err != nil {
			missing(t, "packages", err.Error())
		}
		cache = filepath.Join(dir, "declarun-integration")
	}
	root := filepath.Join(cache, fmt.Sprintf("debian-%s-%08x", arch, crc32.ChecksumIEEE([]byte(strings.Join(packages, " ")))))
	if _, err := os.Stat(root); err == nil {
		return root
	}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		missing(t, "packages", err.Error())
	}
	work, err := os.MkdirTemp(cache, "unpack")
	if err != nil {
		missing(t, "packages", err.Error())
	}
	defer os.RemoveAll(work)
	if err := unpack(t.Context(), work, arch, packages); err != nil {
		missing(t, "packages", err.Error())
	}
	if err := os.Rename(filepath.Join(work, "root"), root); err != nil && !errors.Is(err, fs.ErrExist) {
		missing(t, "packages", err.Error())
	}
	return root
}

// debianSource is the line of sources.list for the release and the mirror of
// Debian that this machine's apt knows.
func debianSource(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)", "Created-By: Packages").Output()
	if err != nil {
		return "", fmt.Errorf("apt-get indextargets: %w", err)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Split(strings.TrimSpace(line), "|")
		if len(f) == 4 && f[0] == "Debian" && f[1] == "main" && !strings.Contains(f[2], "-") {
			return fmt.Sprintf("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] %s %s main\n", f[3], f[2]), nil
		}
	}
	return "", errors.New("apt-get indextargets: no release of Debian is known")
}

// unpack has apt work out dependencies against an empty list of what is installed.
func unpack(ctx context.Context, dir, arch string, packages []string) error {
	ctx, cancel := context.WithTimeout(ctx, debianTime)
	defer cancel()
	for _, d := range []string{"lists/partial", "archives/partial", "root"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	conf := fmt.Sprintf(`APT::Architecture %q; APT::Architectures { %[1]q; };
Dir::State %[2]q; Dir::State::status %[3]q; Dir::Cache %[2]q; Dir::Etc::sourceparts "-"; Dir::Etc::sourcelist %[4]q;
APT::Install-Recommends "false"; Acquire::Languages "none"; Acquire::Retries "2"; APT::Sandbox::User "root"; Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
`, arch, dir, filepath.Join(dir, "status"), filepath.Join(dir, "sources"))
	source, err := debianSource(ctx)
	if err != nil {
		return err
	}
	for name, text := range map[string]string{"conf": conf, "status": "", "sources": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	run := func(name string, args ...string) error {
		cmd := exec.CommandContext(ctx, name, args...)
		cmd.Env = append(os.Environ(), "APT_CONFIG="+filepath.Join(dir, "conf"))
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
		}
		return nil
	}
	if err := run("apt-get", "update", "-q"); err != nil {
		return err
	}
	if err := run("apt-get", append([]string{"install", "-y", "-q", "--download-only"}, packages...)...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, "archives", "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) < len(packages) {
		return fmt.Errorf("apt-get: only %d packages arrived", len(debs))
	}
	for _, deb := range debs {
		if err := run("dpkg-deb", "-x", deb, filepath.Join(dir, "root")); err != nil {
			return err
		}
	}
	return nil
}
