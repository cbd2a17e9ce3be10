package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/urfave/cli/v2"

	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/guards"
	"github.com/declarun/declarun/shim/planner"
	"github.com/declarun/declarun/shim/runtime"
	"github.com/declarun/declarun/shim/site"
	"github.com/declarun/declarun/shim/supervise"
)

// The supervisor's own processes are this program with one of these first
// arguments. They are not for people.
const (
	argWorker  = "__worker"
	argAdopt   = "__adopt"
	argMemfd   = runtime.MemfdWord
	argAnalyse = "__analyse"
	argProbe   = "__probe"
)

func internal(args []string) (code int, done bool) {
	if len(args) < 2 {
		return 0, false
	}
	config := site.DefaultPath
	if len(args) > 2 {
		config = args[2]
	}
	var err error
	switch args[1] {
	case argWorker:
		err = work(config)
	case argAdopt:
		err = monitor(context.Background(), config, true)
	case argMemfd:
		err = supervise.ForbidMemfdExec()
	case argAnalyse:
		err = planner.AnalyseChild()
	case argProbe:
		err = probeChild()
	default:
		return 0, false
	}
	return complain(os.Stderr, err), true
}

func superviseCommand() *cli.Command {
	return &cli.Command{
		Name:   "supervise",
		Before: none,
		Description: "Answers for every container that declarun starts, until SIGTERM. SIGHUP reopens the event log\n" +
			"and replaces the working process with the installed version; containers do not notice.\n" +
			"It is started by itself with the first container where no service manager does it.",
		Action: func(c *cli.Context) error {
			if os.Geteuid() != 0 {
				return &advice{errors.New("supervise containers: not root"), "sudo declarun supervise"}
			}
			err := monitor(context.WithoutCancel(c.Context), c.String("config"), false)
			if errors.Is(err, supervise.ErrRunning) {
				return &advice{err, "declarun status"}
			}
			return err
		},
	}
}

func notifySocket(cfg *site.Config) string {
	return filepath.Join(filepath.Dir(cfg.Socket), "notify.sock")
}

func lockFile(cfg *site.Config) string { return filepath.Join(cfg.StateDir, "lock") }

func monitor(ctx context.Context, config string, adopt bool) error {
	cfg, err := site.Load(config)
	if err != nil {
		return err
	}
	managed, ready := underServiceManager(os.Getenv, os.Getpid()), func() {}
	if managed && !adopt {
		if ready, err = readiness(); err != nil {
			return err
		}
	}
	return supervise.Monitor(ctx, supervise.MonitorOptions{
		Socket:       cfg.Socket,
		NotifySocket: notifySocket(cfg),
		Lock:         lockFile(cfg),
		WorkerArgs:   []string{argWorker, config},
		MonitorArgs:  []string{argAdopt, config},
		Adopt:        adopt,
		TakeOver:     managed && !adopt,
		Ready:        ready,
	})
}

func work(config string) error {
	cfg, err := site.Load(config)
	if err != nil {
		return err
	}
	for _, dir := range []string{cfg.CacheDir, filepath.Dir(cfg.LogFile)} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory: %w", err)
		}
	}
	sink, err := events.Open(cfg.LogFile)
	if err != nil {
		return err
	}
	defer sink.Close()
	plans := &planner.Planner{Site: func() (*site.Config, error) { return site.Load(config) }}
	plans.Analyse = planner.GuardedAnalyser(cfg.CacheDir, argAnalyse)
	if runc, err := findRunc(cfg); err == nil {
		if version, err := runcVersion(runc); err == nil {
			plans.RuncVersion = version
		}
		plans.RecursiveMounts = recursiveMounts(runc)
	}
	small, err := ownRuntime()
	if err != nil {
		small = ""
	}
	return supervise.RunWorker(supervise.WorkerOptions{
		StateDir:     cfg.StateDir,
		NotifySocket: notifySocket(cfg),
		Version:      runtime.Version,
		Events:       sink,
		Planner:      plans,
		OpenGuard: func(inherited *os.File) (supervise.ExecGuard, error) {
			x, err := guards.OpenExecs(inherited, cfg.ReportWrites)
			if err != nil {
				return nil, err
			}
			return x, nil
		},
		Net:         guards.NewNets(),
		Lock:        lockFile(cfg),
		MonitorArgs: []string{argAdopt, config},
		MemfdArgs:   []string{runtime.MemfdWord},
		// This program does the same where the small one is not beside it.
		MemfdExecutable: small,
		PrepareLife:     3 * time.Minute,
	})
}
