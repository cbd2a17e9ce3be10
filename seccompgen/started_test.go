package seccompgen

import (
	"slices"
	"testing"

	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/rootfs"
)

// What only the loader's start makes is not among the calls after it, and what
// main makes is.
func TestAfterStart(t *testing.T) {
	root, err := rootfs.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	names, ok, err := AfterStart(t.Context(), root, Request{Programs: []Program{{Path: "/usr/bin/cat", Phase: record.Serving}}}, nil)
	if err != nil || !ok {
		t.Fatalf("told apart is %v: %v", ok, err)
	}
	for _, name := range []string{"arch_prctl", "set_tid_address"} {
		if slices.Contains(names, name) {
			t.Errorf("%s is still made after the start", name)
		}
	}
	for _, name := range []string{"read", "write", "openat", "exit_group", "rt_sigreturn"} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not made after the start", name)
		}
	}
	t.Logf("%d calls", len(names))
}
