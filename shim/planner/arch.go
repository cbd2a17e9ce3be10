package planner

import "runtime"

// nativeArch is what programs run as: containers share the host's kernel.
const nativeArch = runtime.GOARCH

func lockThread() { runtime.LockOSThread() }
