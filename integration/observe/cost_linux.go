package observe

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime"
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
	var took time.Duration
	return took, inChild(ctx, wordLoad, program, &took)
}

// CallTime measures a call that a filter allows, a read of one byte: on two
// threads of one process, one of which has the filter, in many short turns. It
// gives nanoseconds a call of each turn, without and with.
func CallTime(ctx context.Context, program []byte) (without, with []float64, err error) {
	var both [2][]float64
	err = inChild(ctx, wordCall, program, &both)
	return both[0], both[1], err
}

func inChild(ctx context.Context, word string, program []byte, answer any) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, word, base64.StdEncoding.EncodeToString(program))
	cmd.Env = append(os.Environ(), "GODEBUG=asyncpreemptoff=1", "GOGC=off")
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("measure a filter: %w: %s", err, last(said.Bytes(), 3))
	}
	return json.Unmarshal(out.Bytes(), answer)
}

// measureHere is the child.
func measureHere(word, arg string) error {
	program, err := base64.StdEncoding.DecodeString(arg)
	if err != nil {
		return err
	}
	var answer any
	if word == wordLoad {
		answer, err = loading(program)
	} else {
		answer, err = calling(program)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(answer)
}

func loading(program []byte) (took time.Duration, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		before := time.Now()
		_, err = load(program)
		took = time.Since(before)
	}()
	<-done
	return took, err
}

const (
	turns = 401
	burst = 20_000
)

func calling(program []byte) (both [2][]float64, err error) {
	zero, err := unix.Open("/dev/zero", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return both, err
	}
	var ask [2]chan struct{}
	answer := make(chan float64)
	failed := make(chan error, 2)
	for i := range ask {
		ask[i] = make(chan struct{})
		go func() {
			runtime.LockOSThread()
			if i == 1 {
				if _, err := load(program); err != nil {
					failed <- err
					return
				}
			}
			var buf [1]byte
			for range ask[i] {
				before := time.Now()
				e := reads(zero, buf[:], burst)
				ns := float64(time.Since(before).Nanoseconds()) / burst
				if e != 0 {
					failed <- e
					return
				}
				answer <- ns
			}
		}()
	}
	for turn := range turns {
		for k := range ask {
			which := (turn + k) % 2 // the order alternates
			select {
			case ask[which] <- struct{}{}:
			case err := <-failed:
				return both, err
			}
			select {
			case ns := <-answer:
				both[which] = append(both[which], ns)
			case err := <-failed:
				return both, fmt.Errorf("the filter refuses what is measured: %w", err)
			}
		}
	}
	return both, nil
}
