package seccompgen

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What an analysis looked at, so that its result can be taken again for an image
// in which all of it is the same, without reading the image.
//
// Looking up a name goes from directory to directory and through symbolic links.
// Every entry on the way is a sight, with what matters of it:
//
//	dir      a directory that was passed through: that it is one
//	listed   a directory that was listed: its identity, and the digest of the
//	         names and kinds of its entries
//	link     a symbolic link: where it leads
//	file     a file, or anything else that ends a way: its identity
//	nothing  no such entry
//	given    what Root.Put gives for the name: its identity
//
// If every sight is the same, every name leads to where it led, and every file
// and every listing is what it was. That holds for another mount of the same
// image, too: a new container has directories of its own on top of the image's
// ("/" and what the engine puts files into: /etc, /dev), whose identity is
// another, but which list the same.
//
// Relied upon: identity (see there), and that a directory whose identity is the
// same lists the same. Of an overlay's directory the identity is that of its
// topmost layer: a lower layer that somebody changes below a directory that upper
// layers have as well goes unnoticed if only names come or go there. Engines
// never change a layer, and the kernel calls it undefined while one is in use.
type sights map[string]sight

type sight struct {
	kind byte
	id   string // of what kind says; of a listed directory "" if it has none to rely on
	list string // the digest of a listing
}

const (
	sightDir     = 'd'
	sightListed  = 'l'
	sightLink    = 's'
	sightFile    = 'f'
	sightNothing = 'n'
	sightGiven   = 'p'
)

// maxLinks is how many symbolic links the kernel follows for a name.
const maxLinks = 40

// listing is a directory as it was read.
type listing struct {
	id, digest string
}

func listingOf(id string, entries []fs.DirEntry) listing {
	if id == unsure {
		id = ""
	}
	names := make([]string, len(entries))
	for i, e := range entries {
		names[i] = e.Name() + "\x00" + e.Type().String()
	}
	slices.Sort(names)
	h := sha256.New()
	for _, n := range names {
		h.Write([]byte(n))
		h.Write([]byte{0})
	}
	return listing{id, hex.EncodeToString(h.Sum(nil)[:16])}
}

// sights puts together what the reader looked at. It looks at it once more, and
// gives nothing where something has no identity, or is no longer what it was.
func (r *reader) sights() (sights, bool) {
	if r.partial {
		return nil, false
	}
	all := sights{}
	for name, id := range r.seen {
		if !r.way(all, name, id) {
			return nil, false
		}
	}
	for name, l := range r.lists {
		if !r.way(all, name, isDir) {
			return nil, false
		}
		all[name] = sight{sightListed, l.id, l.digest}
	}
	return all, true
}

// way notes all entries on the way of a name, as path_resolution(7) describes it,
// and tells whether it ends in what was seen there.
func (r *reader) way(all sights, name, seen string) bool {
	if seen == unsure {
		return false
	}
	if clean := path.Clean("/" + name); r.root.Given(clean) {
		all[clean] = sight{kind: sightGiven, id: seen}
		return true
	}
	at, left, links := "/", strings.Split(name, "/"), 0
	if !r.note(all, at) {
		return false
	}
	for len(left) > 0 {
		part := left[0]
		left = left[1:]
		switch part {
		case "", ".":
			continue
		case "..":
			at = path.Dir(at)
			continue
		}
		p := path.Join(at, part)
		if !r.note(all, p) {
			return false
		}
		switch s := all[p]; s.kind {
		case sightDir, sightListed:
			at = p
		case sightLink:
			if links++; links > maxLinks {
				return seen == ""
			}
			if path.IsAbs(s.id) {
				at = "/"
			}
			left = append(strings.Split(s.id, "/"), left...)
		case sightFile:
			for _, rest := range left {
				if rest != "" { // not a directory
					return seen == ""
				}
			}
			return seen == p+" "+s.id
		default:
			return seen == ""
		}
	}
	return seen == isDir
}

// isDir is what is seen of every directory: what is in it is another matter.
const isDir = "dir"

// note looks at an entry, once.
func (r *reader) note(all sights, p string) bool {
	if _, known := all[p]; known {
		return true
	}
	st, err := r.root.At(p)
	switch {
	case err != nil:
		if !absent(err) {
			return false
		}
		all[p] = sight{kind: sightNothing}
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		all[p] = sight{kind: sightDir}
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		to, err := r.root.LinkAt(p)
		if err != nil || to == "" {
			return false
		}
		all[p] = sight{kind: sightLink, id: to}
	default:
		id := r.identity(&st)
		if id == unsure {
			return false
		}
		all[p] = sight{kind: sightFile, id: id}
	}
	return true
}

// absent are the errors of a look-up that say that there is no such entry.
func absent(err error) bool {
	return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ENAMETOOLONG)
}

// encode writes sights, each directory before what is in it: kind, path, id and
// list, each but the kind with a zero byte behind it, which no name has.
func (all sights) encode(b []byte) []byte {
	for _, p := range slices.Sorted(maps.Keys(all)) {
		s := all[p]
		b = append(b, s.kind)
		for _, f := range []string{p, s.id, s.list} {
			b = append(append(b, f...), 0)
		}
	}
	return b
}

// unchanged tells whether encoded sights are still what is seen. It reads no
// file. Every name that it asks the kernel for is below directories that it has
// found to be such before, so that no link is followed.
func (r *reader) unchanged(encoded []byte) bool {
	for len(encoded) > 0 {
		kind := encoded[0]
		encoded = encoded[1:]
		var fields [3]string
		for i := range fields {
			f, rest, ok := bytes.Cut(encoded, []byte{0})
			if !ok {
				return false
			}
			fields[i], encoded = string(f), rest
		}
		if !r.same(fields[0], sight{kind, fields[1], fields[2]}) {
			return false
		}
	}
	return true
}

func (r *reader) same(p string, s sight) bool {
	switch s.kind {
	case sightGiven:
		if !r.root.Given(p) {
			return false
		}
		r.stat(p)
		return r.seen[p] == s.id && s.id != unsure
	case sightLink:
		to, err := r.root.LinkAt(p)
		return err == nil && to == s.id
	}
	st, err := r.root.At(p)
	if err != nil {
		return s.kind == sightNothing && absent(err)
	}
	dir := st.Mode&unix.S_IFMT == unix.S_IFDIR
	switch s.kind {
	case sightDir:
		return dir
	case sightListed:
		if !dir {
			return false
		}
		if s.id != "" && r.identity(&st) == s.id {
			return true
		}
		entries, err := r.root.ReadDir(p, 0)
		return err == nil && listingOf("", entries).digest == s.list
	case sightFile:
		return s.id != "" && r.identity(&st) == s.id
	}
	return false
}
