package declared

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/declarun/declarun/shim/wire"
)

// An image may carry annotations, and an engine may copy them: what switches
// anything off must come from somebody else.
func TestAnnotationsThatAnImageCanCarryLoosenNothing(t *testing.T) {
	for _, row := range []struct {
		claim       string
		annotations map[string]string
		sandbox     bool
		mode        string
	}{
		{"a sandbox is believed of CRI-O", map[string]string{"io.container.manager": "cri-o", "io.kubernetes.cri-o.ContainerType": "sandbox"}, true, ""},
		{"not of Podman", map[string]string{"io.container.manager": "libpod", "io.kubernetes.cri-o.ContainerType": "sandbox"}, false, ""},
		{"containerd's mark not of a bare bundle", map[string]string{"io.kubernetes.cri.container-type": "sandbox"}, false, ""},
		{"a mode is the author's of a bare bundle", map[string]string{"io.declarun.mode": "audit"}, false, "audit"},
		{"but under Podman it may be the image's", map[string]string{"io.container.manager": "libpod", "io.declarun.mode": "audit"}, false, ""},
	} {
		config, err := json.Marshal(map[string]any{
			"ociVersion": "1.0.2", "process": map[string]any{"args": []string{"/x"}, "cwd": "/"}, "root": map[string]any{"path": "rootfs"},
			"annotations": row.annotations, "linux": map[string]any{},
		})
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		d, err := Find(context.Background(), wire.PrepareRequest{Key: wire.Key{ID: "c"}, Verb: "create", Bundle: dir, Config: config}, Options{})
		if err != nil {
			t.Errorf("%s: %v", row.claim, err)
			continue
		}
		if d.Sandbox != row.sandbox || d.Annotations["io.declarun.mode"] != row.mode {
			t.Errorf("%s: sandbox %v, mode %q", row.claim, d.Sandbox, d.Annotations["io.declarun.mode"])
		}
	}
}
