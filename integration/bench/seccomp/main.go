// Command seccomp prints what the analysis of system calls is judged by: each
// count with the dynamic check beside it. "make bench-seccomp" runs it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/declarun/declarun/integration/observe"
)

func main() {
	observe.Child(drivers)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ctx, cancel := context.WithTimeout(ctx, 45*time.Minute)
	err := run(ctx)
	cancel()
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-seccomp:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	return nil
}
