package procmap

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/declared"
	"github.com/declarun/declarun/shim/rootfs"
)

// What is said of a directory's entries as they are listed is what is said of
// their paths.
func TestEntriesAreWhatTheirPathsLeadTo(t *testing.T) {
	dir, host := t.TempDir(), t.TempDir()
	must := func(errs ...error) {
		t.Helper()
		for _, err := range errs {
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, d := range []string{"srv/a/sub", "srv/covered", "opt"} {
		must(os.MkdirAll(filepath.Join(dir, d), 0o755))
	}
	for _, f := range []string{"srv/a/file", "srv/a/sub/deep", "srv/covered/hidden", "opt/other"} {
		must(os.WriteFile(filepath.Join(dir, f), []byte("x"), 0o755))
	}
	must(os.WriteFile(host+"/mounted", []byte("x"), 0o755),
		os.Symlink("/opt/other", dir+"/srv/a/link"), os.Symlink("../../opt", dir+"/srv/a/linked"), os.Symlink("/nowhere", dir+"/srv/a/dangling"),
		os.Symlink("srv", dir+"/www"), unix.Mkfifo(dir+"/srv/a/fifo", 0o644))
	fresh := func() *view {
		root, err := rootfs.Open(dir)
		must(err)
		t.Cleanup(func() { root.Close() })
		v := newView(root, []declared.Mount{{Destination: "/srv/covered", Source: host, Type: "bind"}, {Destination: "/srv/a/file2", Source: host + "/mounted", Type: "bind"}})
		t.Cleanup(v.close)
		return v
	}
	n := 0
	for _, d := range []string{"/", "/srv", "/srv/a", "/srv/a/sub", "/srv/covered", "/www", "/www/a", "/srv/a/linked", "/nowhere"} {
		listing := fresh()
		for _, name := range append(listing.names(d, 100), "absent", "file2") {
			n++
			p := filepath.Join(d, name)
			got, err1 := listing.entry(d, p)
			want, err2 := fresh().stat(p)
			if (err1 == nil) != (err2 == nil) {
				t.Errorf("%s: %v, want %v", p, err1, err2)
				continue
			}
			if err1 != nil {
				continue
			}
			if got.path != want.path || got.as != want.as || got.name != want.name || got.st != want.st || got.host() != want.host() || (got.root == listing.root) != (want.mount == nil) {
				t.Errorf("%s: %+v, want %+v", p, got, want)
			}
		}
	}
	if n < 25 {
		t.Errorf("only %d entries", n)
	}
}
