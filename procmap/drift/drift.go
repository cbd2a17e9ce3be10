// Package drift tells what in a container's writable layer differs from the image.
//
// What it guarantees:
//
//   - It reads directories of the layers themselves, by descriptor: no link that a
//     container made is followed, nothing of the container's is executed, and no
//     file but a regular one is opened.
//   - It is bounded in entries, depth, open descriptors, bytes compared and time;
//     a report that is not whole says so.
//   - A file that was copied up and is what it was is no drift: owner, mode and
//     content are compared.
//
// What it does not:
//
//   - The layer changes while it is read: a file that is moved meanwhile may be
//     missed or told twice.
//   - Extended attributes other than overlay's own, and times, are not compared.
//   - Content beyond what is compared counts as changed where its time differs.
//   - Where the root is no overlay nobody knows what was there before: told is
//     what changed later than the container was made (by ctime, which a container
//     cannot set), and not what was removed.
//
// Sources: Documentation/filesystems/overlayfs.rst (whiteouts and opaque
// directories, redirect_dir, metacopy).
package drift

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/declarun/declarun/shim/record"
)

// Limits bound a Walk. A zero one is the default.
type Limits struct {
	Entries int   // looked at
	Changes int   // listed
	Depth   int   // of directories
	Open    int   // directories open at once
	Compare int64 // bytes
}

func (l Limits) orDefault() Limits {
	return Limits{
		Entries: cmp.Or(l.Entries, 500_000), Changes: cmp.Or(l.Changes, 5000), Depth: cmp.Or(l.Depth, 128),
		Open: cmp.Or(l.Open, 2048), Compare: cmp.Or(l.Compare, 256<<20),
	}
}

var (
	errEntries = errors.New("too many entries")
	errOpen    = errors.New("directories lie too deep")
)

// why is an end of a walk in words.
func why(err error) string {
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return "it took too long"
	}
	return err.Error()
}

// order is programs first, then what has rights, then what was removed or
// changed of the image, then what is new; data in declared places is last.
func order(a, b record.Change) int {
	rank := func(c record.Change) int {
		switch {
		case c.Special() && (c.Mode&0o6000 != 0 || c.Capabilities):
			return 0
		case c.Special():
			return 1
		case c.Declared != "":
			return 5
		case c.How == record.DriftChanged:
			return 2
		case c.How == record.DriftRemoved:
			return 3
		}
		return 4
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), strings.Compare(a.Path, b.Path))
}

// list keeps the most important changes of any number.
type list struct {
	most int
	all  []record.Change
	more int
}

func (l *list) add(c record.Change) {
	l.all = append(l.all, c)
	if len(l.all) >= 2*l.most {
		l.shrink()
	}
}

func (l *list) shrink() {
	slices.SortFunc(l.all, order)
	if n := len(l.all) - l.most; n > 0 {
		l.more += n
		l.all = l.all[:l.most]
	}
}

// below gives the first of paths that name is, or lies below.
func below(paths []string, name string) string {
	for _, p := range paths {
		if name == p || strings.HasPrefix(name, strings.TrimSuffix(p, "/")+"/") {
			return p
		}
	}
	return ""
}
