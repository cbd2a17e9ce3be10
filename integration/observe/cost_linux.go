package observe

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	wordLoad = "__observe-load"
	wordCall = "__observe-call"
)

// LoadTime is how long the kernel takes to accept a filter.
func LoadTime(ctx context.Context, program []byte) (time.Duration, error) {
	return timed(ctx, wordLoad, program)
}

// CallTime is how long a read of one byte takes two million times, under a
// filter, or without one where program is nil.
func CallTime(ctx context.Context, program []byte) (time.Duration, error) {
	return timed(ctx, wordCall, program)
}

func timed(ctx context.Context, word string, program []byte) (time.Duration, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, word, "p"+base64.StdEncoding.EncodeToString(program))
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("measure a filter: %w: %s", err, last(said.Bytes(), 3))
	}
	ns, err := strconv.ParseInt(strings.TrimSpace(out.String()), 10, 64)
	return time.Duration(ns), err
}

// measureHere is the child of timed.
func measureHere(word, arg string) error {
	program, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(arg, "p"))
	if err != nil {
		return err
	}
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	took := make(chan time.Duration)
	failed := make(chan error)
	go func() {
		runtime.LockOSThread() // for good
		before := time.Now()
		if len(program) > 0 {
			if _, err := load(program); err != nil {
				failed <- err
				return
			}
		}
		if word == wordLoad {
			took <- time.Since(before)
			return
		}
		var buf [1]byte
		if e := reads(zero, buf[:], 200_000); e != 0 { // warm
			failed <- e
			return
		}
		before = time.Now()
		e := reads(zero, buf[:], 2_000_000)
		d := time.Since(before)
		if e != 0 {
			failed <- e
			return
		}
		took <- d
	}()
	select {
	case d := <-took:
		_, err = fmt.Println(d.Nanoseconds())
		return err
	case err := <-failed:
		return errors.Join(errors.New("the filter refuses what is measured, or was not loaded"), err)
	}
}
