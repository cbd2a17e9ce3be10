// Command seccomp prints what the analysis of system calls is judged by: each
// count with the dynamic check beside it. "make bench-seccomp" runs it.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/declarun/declarun/integration/engine"
	"github.com/declarun/declarun/integration/observe"
	"github.com/declarun/declarun/seccompgen"
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
	cache, err := seccompgen.OpenDirCache(engine.Cache() + "/analysis")
	if err != nil {
		return err
	}
	for _, s := range six {
		if o := os.Getenv("ONLY"); o != "" && o != s.name {
			continue
		}
		m, err := s.measure(ctx, cache)
		if err != nil {
			fmt.Println(s.name, err)
			continue
		}
		fmt.Printf("%s: whole %d serving %d unresolved %d seen %d missing %v\n", s.name, len(m.names(whole)), len(m.names(serving)), len(m.unresolved), len(m.seen), missing(m.seen, m.names(whole)))
		for _, name := range missing(m.seen, m.names(whole)) {
			fmt.Println("   MISSING", m.seen[name])
		}
		for p, seen := range m.other {
			fmt.Println("   also", p, len(seen))
		}
		for _, c := range m.calls {
			if m.seen[c.Name] == "" {
				var at []string
				for _, o := range c.Origins {
					at = append(at, o.At)
				}
				fmt.Printf("   %s %s\n", c.Name, strings.Join(at, " | "))
			}
		}
	}
	return nil
}
