package main

import (
	"context"
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// recursiveMounts tells whether the low-level runtime and the kernel can
// restrict what is mounted below a recursive bind mount: runc 1.1.0 and
// Linux 5.12.
func recursiveMounts(runc string) bool {
	if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); errors.Is(err, unix.ENOSYS) {
		return false
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, runc, "features").Output()
	return err == nil && listsRecursive(out)
}

// listsRecursive reads the answer of "runc features" (runtime-spec
// features.md). A runtime that does not know the command has none.
func listsRecursive(features []byte) bool {
	var f struct {
		MountOptions []string `json:"mountOptions"`
	}
	if json.Unmarshal(features, &f) != nil {
		return false
	}
	return !slices.ContainsFunc([]string{"rnoexec", "rnosuid", "rnodev", "rro"}, func(o string) bool { return !slices.Contains(f.MountOptions, o) })
}
