package procmap

import (
	"context"
	"testing"

	"github.com/declarun/declarun/shim/rootfs"
)

func BenchmarkPostgres(b *testing.B) {
	tr, d := scenario(b, "testdata/entrypoints/postgres.txt")
	dir := b.TempDir()
	tr.write(b, dir)
	root, err := rootfs.Open(dir)
	must(b, err)
	defer root.Close()
	for b.Loop() {
		if _, err := Derive(context.Background(), root, d); err != nil {
			b.Fatal(err)
		}
	}
}
