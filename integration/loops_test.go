package integration

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/breakin"
	"github.com/declarun/declarun/shim/record"
)

// A server that has dropped its privileges cannot do so again once it is in its
// service loop, though no declaration says a word about it: the file says it.
func TestWhatAServerNeedsBeforeItsLoopIsTakenFromItThen(t *testing.T) {
	l := open(t)
	id := l.container(t, "--runtime", "declarun", l.images["memcached"])
	url := fmt.Sprintf("gopher://%s:11211/_", l.address(t, id))
	ask := func(commands string) (string, error) {
		return l.clientOutput("curl", "-sS", "-m", "5", url+strings.ReplaceAll(commands, " ", "%20")+"%0d%0aquit") // curl ends the line
	}
	if !await(30*time.Second, func() bool { out, err := ask("version"); return err == nil && strings.Contains(out, "VERSION") }) {
		t.Fatal("it does not serve")
	}
	var status string
	if !await(20*time.Second, func() bool {
		status, _ = l.declarun("status", id[:12])
		return strings.Contains(status, "1 of 1 processes of /usr/bin/memcached are in their service loop")
	}) {
		t.Fatalf("not proved:\n%s", status)
	}
	for range 20 {
		if out, err := ask("stats"); err != nil || !strings.Contains(out, "END") {
			t.Fatalf("stats: %q, %v", out, err)
		}
	}
	l.run(t, "kill", "--signal", "USR1", id)
	l.quiet(t, id, "in use")
	before := time.Now()
	if err := breakin.SetUser(l.victim(t, id, "memcached")); !errors.Is(err, unix.EPERM) {
		t.Errorf("setuid: %v", err)
	}
	var found record.Event
	if !await(5*time.Second, func() bool {
		for _, e := range l.events(t, id) {
			if !e.Time.Before(before) && e.Dimension == record.Syscalls && e.Action == "setuid" {
				found = e
				return true
			}
		}
		return false
	}) {
		t.Fatal("no event")
	}
	if found.Verdict != record.Denied || !strings.Contains(found.Reason, "/usr/bin/memcached") || !strings.Contains(found.Reason, "service loop") {
		t.Errorf("event: %+v", found)
	}
	l.run(t, "stop", "-t", "20", id)
}
