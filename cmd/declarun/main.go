// Command declarun is an OCI runtime: runc's command line, with every container
// held to what its image declares. See package runtime.
package main

import (
	"os"

	"github.com/declarun/declarun/shim/runtime"
)

func main() { os.Exit(runtime.Main(os.Args)) }
