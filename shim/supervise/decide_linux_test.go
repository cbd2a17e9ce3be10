package supervise

import (
	"slices"
	"strings"
	"testing"

	"github.com/declarun/declarun/shim/record"
)

func TestWhoExecutes(t *testing.T) {
	kept := newTids()
	waits, gone := func() bool { return true }, func() bool { return false }
	long := slices.Repeat([]string{strings.Repeat("x", maxArg)}, maxArgs)
	if !kept.put(7, Executed{Token: "a", Identity: record.Application, Path: strings.Repeat("p", maxPath), Argv: long}, waits) {
		t.Fatal("a thread that waits is remembered")
	}
	if kept.put(7, Executed{Token: "a", Identity: record.Operator}, gone) {
		t.Error("a thread that is gone is remembered")
	}
	x, ok := kept.get("a", 7)
	if !ok || x.Identity != record.Application {
		t.Errorf("%+v: the number belongs to whoever waits", x.Identity)
	}
	size := len(x.Path)
	for _, a := range x.Argv {
		size += len(a)
	}
	if size > maxKeptPath+maxKeptArgs || len(x.Argv) == 0 {
		t.Errorf("%d bytes are kept of what a thread said", size)
	}
	if _, ok := kept.get("b", 7); ok {
		t.Error("another container's thread")
	}
	for tid := range tidsKept + 10 {
		kept.put(tid, Executed{Token: "a"}, waits)
	}
	if len(kept.by) != tidsKept || kept.recent.Len() != tidsKept {
		t.Errorf("%d threads are remembered", len(kept.by))
	}
	kept.forget("a")
	if len(kept.by) != 0 {
		t.Error("a container that is gone")
	}
}
