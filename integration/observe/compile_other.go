//go:build !(cgo && amd64)

package observe

import (
	"errors"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Compile needs libseccomp, as runc does.
func Compile(*specs.LinuxSeccomp) ([]byte, error) {
	return nil, errors.New("compile filter: built without libseccomp (cgo)")
}
