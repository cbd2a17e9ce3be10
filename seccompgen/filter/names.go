package filter

import (
	"maps"
	"slices"

	"github.com/declarun/declarun/seccompgen/sysno"
)

//go:generate go run ./gen32

// numbers32 are the tables that package sysno has no programs to analyse for.
var numbers32 = map[string]map[string]int{"386": numbers386, "arm": numbersARM}

func names(arch string) []string {
	if t := numbers32[arch]; t != nil {
		return slices.Sorted(maps.Keys(t))
	}
	return sysno.All(arch)
}

func number(arch, name string) (int, bool) {
	if t := numbers32[arch]; t != nil {
		nr, ok := t[name]
		return nr, ok
	}
	return sysno.Number(arch, name)
}
