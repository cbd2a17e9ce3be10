package declared

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/declarun/declarun/shim/declared/ctrd"
)

// StoredImage is an image in an engine's store on this machine.
type StoredImage struct {
	Declared *Declared
	// Layers are the directories of its layers, topmost first: the lowerdir= of
	// a read-only overlay mount, or the root filesystem itself if there is one only.
	Layers  []string
	release func()
}

// Close gives back what was borrowed from the engine.
func (i *StoredImage) Close() {
	if i.release != nil {
		i.release()
	}
}

// Stores says where images are looked for. The zero value looks where Docker
// and containerd keep theirs by default.
type Stores struct {
	DaemonJSON string   // Docker's daemon.json, for its data-root; "": /etc/docker/daemon.json
	DataRoots  []string // Docker data directories; nil: daemon.json's, /var/lib/docker
	Containerd []string // sockets; nil: containerd's own and the one dockerd starts
	Namespaces []string // containerd namespaces; nil: moby, default, k8s.io
	Timeout    time.Duration
}

func (s Stores) defaults() (Stores, error) {
	if s.DataRoots == nil {
		if s.DaemonJSON == "" {
			s.DaemonJSON = "/etc/docker/daemon.json"
		}
		var daemon struct {
			DataRoot string `json:"data-root"`
			Graph    string `json:"graph"` // its name before Docker 17.05
		}
		if err := parseFile(s.DaemonJSON, &daemon); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return s, err
		}
		for _, r := range []string{daemon.DataRoot, daemon.Graph, "/var/lib/docker"} {
			if r != "" && !slices.Contains(s.DataRoots, r) {
				s.DataRoots = append(s.DataRoots, r)
			}
		}
	}
	if s.Containerd == nil {
		s.Containerd = []string{"/run/containerd/containerd.sock", "/run/docker/containerd/containerd.sock"}
	}
	if s.Namespaces == nil {
		s.Namespaces = []string{"moby", "default", "k8s.io"}
	}
	if s.Timeout <= 0 {
		s.Timeout = 5 * time.Second
	}
	return s, nil
}

// FindImage looks an image up by reference ("postgres:15"), digest or ID, first
// in Docker's overlay2 store, then in containerd. command is the operator's.
func FindImage(ctx context.Context, ref string, s Stores, command ...string) (*StoredImage, error) {
	s, err := s.defaults()
	if err != nil {
		return nil, err
	}
	want, err := parseReference(ref)
	if err != nil {
		return nil, err
	}
	for _, root := range s.DataRoots {
		img, err := findDockerImage(root, want, command)
		if err == nil || !errors.Is(err, errNoImage) {
			return img, err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, s.Timeout)
	defer cancel()
	var asked []string
	for _, socket := range s.Containerd {
		if _, err := os.Stat(socket); err != nil {
			continue
		}
		for _, ns := range s.Namespaces {
			img, err := findContainerdImage(ctx, socket, ns, want, command)
			if err == nil || !errors.Is(err, errNoImage) {
				return img, err
			}
		}
		asked = append(asked, socket)
	}
	return nil, &Error{
		fmt.Errorf("find image %s: not in %s", clip(ref, 200), strings.Join(append(s.DataRoots, asked...), ", ")),
		"pull it first (docker pull, ctr images pull), or export it and use --rootfs DIR --config IMAGE.json",
	}
}

var errNoImage = errors.New("no such image")

// reference is a parsed image reference.
type reference struct {
	id        string // hexadecimal prefix, if the whole reference could be one
	canonical string // docker.io/library/postgres:15
	familiar  string // postgres:15
	repo      string // postgres
}

// parseReference follows docker.io's rules: the first element is a registry if
// it has a dot, a colon or is "localhost".
func parseReference(ref string) (reference, error) {
	bad := func(why string) (reference, error) {
		return reference{}, fmt.Errorf("parse image reference %q: %s", clip(ref, 200), why)
	}
	if ref == "" || len(ref) > 1024 || strings.ContainsAny(ref, " \t\r\n\x00") {
		return bad("empty, too long, or with white space")
	}
	var r reference
	if id := strings.TrimPrefix(ref, "sha256:"); len(id) >= 4 && len(id) <= 64 && strings.Trim(id, "0123456789abcdef") == "" {
		r.id = id
	}
	name, digest, hasDigest := strings.Cut(ref, "@")
	domain, rest, ok := strings.Cut(name, "/")
	if !ok || !strings.ContainsAny(domain, ".:") && domain != "localhost" {
		domain, rest = "docker.io", name
	}
	if domain == "docker.io" && !strings.Contains(rest, "/") {
		rest = "library/" + rest
	}
	repo, tag, hasTag := rest, "latest", false
	if i := strings.LastIndex(rest, ":"); i > strings.LastIndex(rest, "/") {
		repo, tag, hasTag = rest[:i], rest[i+1:], true
	}
	if repo == "" || tag == "" || strings.HasSuffix(repo, "/") {
		return bad("no name or no tag")
	}
	suffix := ":" + tag
	if hasDigest {
		if h, ok := strings.CutPrefix(digest, "sha256:"); !ok || !isHex64(h) {
			return bad("digest is not sha256:…")
		}
		suffix = "@" + digest
		if hasTag {
			suffix = ":" + tag + suffix
		}
	}
	r.canonical = domain + "/" + repo + suffix
	short := domain + "/" + repo
	if domain == "docker.io" {
		short = strings.TrimPrefix(repo, "library/")
	}
	if hasDigest { // stores list digests without the tag
		suffix = "@" + digest
	}
	r.repo, r.familiar = short, short+suffix
	return r, nil
}

// findDockerImage reads <data-root>/image/overlay2: repositories.json, imagedb,
// and for each layer layerdb/sha256/<chain ID>/cache-id, which names the
// directory below overlay2.
func findDockerImage(dataRoot string, want reference, command []string) (*StoredImage, error) {
	store := filepath.Join(dataRoot, "image", "overlay2")
	if _, err := os.Stat(store); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, errNoImage
		}
		return nil, fmt.Errorf("find image %s: %w", want.familiar, err)
	}
	var repos struct {
		Repositories map[string]map[string]string
	}
	if err := parseFile(filepath.Join(store, "repositories.json"), &repos); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	id := repos.Repositories[want.repo][want.familiar]
	if id == "" && want.id != "" {
		found, err := completeID(filepath.Join(store, "imagedb", "content", "sha256"), want.id)
		if err != nil {
			return nil, err
		}
		id = found
	}
	if id == "" {
		return nil, errNoImage
	}
	hexID, ok := strings.CutPrefix(id, "sha256:")
	if !ok || !isHex64(hexID) {
		return nil, fmt.Errorf("find image %s: repositories.json gives it ID %q", want.familiar, clip(id, 100))
	}
	raw, err := readFile(filepath.Join(store, "imagedb", "content", "sha256", hexID))
	if err != nil {
		return nil, fmt.Errorf("find image %s: %w", want.familiar, err)
	}
	d, err := FromImageConfig(raw, command...)
	if err != nil {
		return nil, fmt.Errorf("find image %s: %w", want.familiar, err)
	}
	d.Image.Ref, d.Image.Digest = want.familiar, id
	img := &StoredImage{Declared: d}
	for _, chain := range chainIDs(d.Image.Layers) {
		hexChain, ok := strings.CutPrefix(chain, "sha256:")
		if !ok || !isHex64(hexChain) {
			return nil, fmt.Errorf("find layers of image %s: layer %q is not a sha256 digest", want.familiar, clip(chain, 100))
		}
		data, err := readFile(filepath.Join(store, "layerdb", "sha256", hexChain, "cache-id"))
		if err != nil {
			return nil, fmt.Errorf("find layers of image %s: %w", want.familiar, err)
		}
		cache := strings.TrimSpace(string(data))
		if cache == "" || cache != filepath.Base(cache) || cache == ".." || cache == "." {
			return nil, fmt.Errorf("find layers of image %s: layer %s has cache-id %q", want.familiar, chain, clip(cache, 100))
		}
		img.Layers = append(img.Layers, filepath.Join(dataRoot, "overlay2", cache, "diff"))
	}
	slices.Reverse(img.Layers)
	return img, nil
}

func completeID(dir, prefix string) (string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	found := ""
	for _, e := range entries {
		if isHex64(e.Name()) && strings.HasPrefix(e.Name(), prefix) {
			if found != "" {
				return "", fmt.Errorf("find image %s: several images have an ID that begins so", prefix)
			}
			found = "sha256:" + e.Name()
		}
	}
	return found, nil
}

// chainIDs names each stack of layers (image-spec config.md, "Layer ChainID").
func chainIDs(diffIDs []string) []string {
	var out []string
	for i, d := range diffIDs {
		if i > 0 {
			sum := sha256.Sum256([]byte(out[i-1] + " " + d))
			d = "sha256:" + hex.EncodeToString(sum[:])
		}
		out = append(out, d)
	}
	return out
}

func findContainerdImage(ctx context.Context, socket, namespace string, want reference, command []string) (*StoredImage, error) {
	client, err := ctrd.Dial(socket, namespace)
	if err != nil {
		return nil, err
	}
	img, err := readContainerdImage(ctx, client, want, command)
	if err != nil {
		client.Close()
		return nil, err
	}
	giveBack := img.release
	img.release = func() {
		giveBack()
		client.Close()
	}
	return img, nil
}

func readContainerdImage(ctx context.Context, client *ctrd.Client, want reference, command []string) (*StoredImage, error) {
	target, err := client.Image(ctx, want.canonical)
	if IsNotFound(err) {
		return nil, errNoImage
	}
	if err != nil {
		return nil, err
	}
	digest, raw, err := ctrd.Config(ctx, target, ctrd.Host(), client.Blob)
	if err != nil {
		return nil, err
	}
	d, err := FromImageConfig(raw, command...)
	if err != nil {
		return nil, fmt.Errorf("find image %s: %w", want.familiar, err)
	}
	d.Engine = Containerd
	d.Image.Ref, d.Image.Digest = want.canonical, digest
	chain := chainIDs(d.Image.Layers)
	if len(chain) == 0 {
		return nil, fmt.Errorf("find layers of image %s: it has none", want.familiar)
	}
	layers, release, err := client.View(ctx, "overlayfs", chain[len(chain)-1])
	if err != nil {
		return nil, &Error{err, "unpack the image for this machine (\"ctr images pull\", or run it once with plain runc), or export it and use --rootfs DIR --config IMAGE.json"}
	}
	return &StoredImage{Declared: d, Layers: layers, release: release}, nil
}
