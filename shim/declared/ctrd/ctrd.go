// Package ctrd asks containerd what it knows about a container and its image,
// over gRPC on its socket: the containers, images, content and, for a read-only
// view of an image, snapshots and leases services.
//
// The tasks service is never asked: it waits for the very shim that is waiting
// for the runtime. Every question has the deadline of its context, every blob a
// size limit, and a blob's content is checked against its digest.
//
// Source: github.com/containerd/containerd/api, services of version v1, which
// containerd 1.x and 2.x serve alike.
package ctrd

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"runtime"
	"strings"
	"time"

	containersapi "github.com/containerd/containerd/api/services/containers/v1"
	contentapi "github.com/containerd/containerd/api/services/content/v1"
	imagesapi "github.com/containerd/containerd/api/services/images/v1"
	leasesapi "github.com/containerd/containerd/api/services/leases/v1"
	snapshotsapi "github.com/containerd/containerd/api/services/snapshots/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// ErrNotFound is the cause where containerd says that there is no such thing.
var ErrNotFound = errors.New("not found in containerd")

// MaxBlob bounds one manifest or image configuration, in bytes.
const MaxBlob = 64 << 20

// Client is a connection to one containerd, in one namespace.
type Client struct {
	conn      *grpc.ClientConn
	namespace string
}

// Dial prepares a connection; it is made with the first question.
func Dial(socket, namespace string) (*Client, error) {
	if !strings.HasPrefix(socket, "/") || namespace == "" {
		return nil, fmt.Errorf("connect to containerd %q in namespace %q: need an absolute path and a namespace", socket, namespace)
	}
	conn, err := grpc.NewClient("unix://"+socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()), // a unix socket: access is by file permission
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20)))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd %s: %w", socket, err)
	}
	return &Client{conn, namespace}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

func (c *Client) with(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "containerd-namespace", c.namespace)
}

func cause(err error) error {
	if status.Code(err) == codes.NotFound {
		return fmt.Errorf("%w: %s", ErrNotFound, status.Convert(err).Message())
	}
	return err
}

// Container is what containerd knows about a container.
type Container struct {
	Image       string // a name in Images; empty: made without one
	Labels      map[string]string
	Snapshotter string
	SnapshotKey string
}

// Container asks about one container.
func (c *Client) Container(ctx context.Context, id string) (Container, error) {
	r, err := containersapi.NewContainersClient(c.conn).Get(c.with(ctx), &containersapi.GetContainerRequest{ID: id})
	if err != nil {
		return Container{}, fmt.Errorf("get container %s from containerd: %w", id, cause(err))
	}
	k := r.GetContainer()
	return Container{k.GetImage(), k.GetLabels(), k.GetSnapshotter(), k.GetSnapshotKey()}, nil
}

// Image gives the digest that an image's name stands for.
func (c *Client) Image(ctx context.Context, name string) (digest string, err error) {
	r, err := imagesapi.NewImagesClient(c.conn).Get(c.with(ctx), &imagesapi.GetImageRequest{Name: name})
	if err != nil {
		return "", fmt.Errorf("get image %s from containerd: %w", name, cause(err))
	}
	return r.GetImage().GetTarget().GetDigest(), nil
}

// Blob reads a blob of the content store.
func (c *Client) Blob(ctx context.Context, digest string) ([]byte, error) {
	stream, err := contentapi.NewContentClient(c.conn).Read(c.with(ctx), &contentapi.ReadContentRequest{Digest: digest})
	if err != nil {
		return nil, fmt.Errorf("read blob %s from containerd: %w", digest, cause(err))
	}
	var b bytes.Buffer
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read blob %s from containerd: %w", digest, cause(err))
		}
		if b.Len()+len(r.GetData()) > MaxBlob {
			return nil, fmt.Errorf("read blob %s from containerd: larger than %d bytes", digest, MaxBlob)
		}
		b.Write(r.GetData())
	}
	return b.Bytes(), Verify(b.Bytes(), digest)
}

// Verify checks data against a sha256 digest.
func Verify(data []byte, digest string) error {
	sum := sha256.Sum256(data)
	if got := "sha256:" + hex.EncodeToString(sum[:]); got != digest {
		return fmt.Errorf("verify blob %s: its content has digest %s", digest, got)
	}
	return nil
}

// Platform is an operating system and architecture in Go's names.
type Platform struct{ OS, Architecture string }

// Host is the platform of this machine.
func Host() Platform { return Platform{"linux", runtime.GOARCH} }

type manifest struct {
	Config    *descriptor  `json:"config"`
	Manifests []descriptor `json:"manifests"`
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Platform  *struct {
		OS           string `json:"os"`
		Architecture string `json:"architecture"`
	} `json:"platform"`
}

// Config follows an index or manifest to the image configuration for a
// platform. blob reads one blob; see Client.Blob.
func Config(ctx context.Context, digest string, p Platform, blob func(context.Context, string) ([]byte, error)) (configDigest string, config []byte, err error) {
	for range 4 { // an index of indexes is legal and nobody makes it
		data, err := blob(ctx, digest)
		if err != nil {
			return "", nil, err
		}
		var m manifest
		if err := json.Unmarshal(data, &m); err != nil {
			return "", nil, fmt.Errorf("parse manifest %s: %w", digest, err)
		}
		if m.Config != nil {
			config, err := blob(ctx, m.Config.Digest)
			return m.Config.Digest, config, err
		}
		next, err := m.choose(p)
		if err != nil {
			return "", nil, fmt.Errorf("read image index %s: %w", digest, err)
		}
		digest = next
	}
	return "", nil, fmt.Errorf("read image index %s: nested too deeply", digest)
}

// choose picks the manifest for a platform. Attestations say unknown/unknown.
func (m manifest) choose(p Platform) (string, error) {
	var only []descriptor
	for _, d := range m.Manifests {
		switch {
		case d.Platform == nil:
			only = append(only, d)
		case d.Platform.OS == p.OS && d.Platform.Architecture == p.Architecture:
			return d.Digest, nil
		case d.Platform.OS != "unknown":
			only = append(only, d)
		}
	}
	if len(only) == 1 {
		return only[0].Digest, nil
	}
	return "", fmt.Errorf("no manifest for %s/%s among %d", p.OS, p.Architecture, len(m.Manifests))
}

// View makes a read-only view of a committed snapshot, held by a lease of ten
// minutes, and gives its directories, topmost first. release removes it.
func (c *Client) View(ctx context.Context, snapshotter, chainID string) (dirs []string, release func(), err error) {
	key := "declarun-view-" + rand.Text()
	leases := leasesapi.NewLeasesClient(c.conn)
	lease, err := leases.Create(c.with(ctx), &leasesapi.CreateRequest{
		ID: key, Labels: map[string]string{"containerd.io/gc.expire": time.Now().Add(10 * time.Minute).UTC().Format(time.RFC3339)},
	})
	if err != nil {
		return nil, nil, fmt.Errorf("lease a view of snapshot %s: %w", chainID, cause(err))
	}
	snapshots := snapshotsapi.NewSnapshotsClient(c.conn)
	release = func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
		defer cancel()
		_, _ = snapshots.Remove(c.with(ctx), &snapshotsapi.RemoveSnapshotRequest{Snapshotter: snapshotter, Key: key})
		_, _ = leases.Delete(c.with(ctx), &leasesapi.DeleteRequest{ID: lease.GetLease().GetID()})
	}
	leased := metadata.AppendToOutgoingContext(c.with(ctx), "containerd-lease", lease.GetLease().GetID())
	r, err := snapshots.View(leased, &snapshotsapi.ViewSnapshotRequest{Snapshotter: snapshotter, Key: key, Parent: chainID})
	if err != nil {
		release()
		return nil, nil, fmt.Errorf("view snapshot %s: %w", chainID, cause(err))
	}
	for _, m := range r.GetMounts() {
		if m.GetType() == "bind" || m.GetType() == "rbind" {
			dirs = append(dirs, m.GetSource())
		}
		for _, o := range m.GetOptions() {
			if lower, ok := strings.CutPrefix(o, "lowerdir="); ok && m.GetType() == "overlay" {
				dirs = append(dirs, strings.Split(lower, ":")...)
			}
		}
	}
	if len(dirs) == 0 {
		release()
		return nil, nil, fmt.Errorf("view snapshot %s: snapshotter %s gives no directories", chainID, snapshotter)
	}
	return dirs, release, nil
}
