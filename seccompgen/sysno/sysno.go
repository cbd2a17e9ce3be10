// Package sysno names system calls: the number ↔ name tables of the
// architectures that programs are analysed for.
//
// Names are the kernel's and libseccomp's ("newfstatat", "_sysctl"), not the C
// library's. The tables are generated from golang.org/x/sys/unix, which
// generates them from the kernel's headers; a number that is not in them is a
// call newer than the tables, and no name is made up for it.
package sysno

//go:generate go run ./gen

import "slices"

type table struct {
	names   map[int]string
	numbers map[string]int
	sorted  []string
}

func newTable(names map[int]string) *table {
	t := &table{names: names, numbers: make(map[string]int, len(names))}
	for nr, name := range names {
		t.numbers[name] = nr
		t.sorted = append(t.sorted, name)
	}
	slices.Sort(t.sorted)
	return t
}

var tables = map[string]*table{
	"amd64": newTable(amd64),
	"arm64": newTable(arm64),
}

// Name gives the name of a call. arch is a GOARCH.
func Name(arch string, nr int) (string, bool) {
	t := tables[arch]
	if t == nil {
		return "", false
	}
	name, ok := t.names[nr]
	return name, ok
}

// Number gives the number of a call. arch is a GOARCH.
func Number(arch, name string) (int, bool) {
	t := tables[arch]
	if t == nil {
		return 0, false
	}
	nr, ok := t.numbers[name]
	return nr, ok
}

// All lists the names of every call of arch in byte order; nil for an
// architecture without a table.
func All(arch string) []string {
	t := tables[arch]
	if t == nil {
		return nil
	}
	return slices.Clone(t.sorted)
}
