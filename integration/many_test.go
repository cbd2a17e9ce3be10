package integration

import (
	"fmt"
	"sync"
	"testing"
	"time"
)

// inTurns runs n pieces of work, a few at a time, and gives their errors.
func inTurns(n, atOnce int, work func(i int) error) []error {
	errs := make([]error, n)
	slots := make(chan struct{}, atOnce)
	var all sync.WaitGroup
	for i := range n {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			errs[i] = work(i)
		})
	}
	all.Wait()
	return errs
}

func TestTwoTenAndAHundredContainersAtOnce(t *testing.T) {
	l := open(t)
	for _, n := range []int{2, 10, 100} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			ids := make([]string, n)
			failures := func(what string, errs []error) {
				t.Helper()
				for i, err := range errs {
					if err != nil {
						t.Errorf("%s %d: %v", what, i, err)
					}
				}
			}
			failures("start", inTurns(n, 10, func(i int) (err error) {
				ids[i], err = l.try("run", "-d", "--runtime", "declarun", l.images["hello"])
				return err
			}))
			if !t.Failed() {
				failures("serve", inTurns(n, 10, func(i int) error {
					addr, err := l.try("inspect", "--format", "{{.NetworkSettings.IPAddress}}", ids[i])
					if err != nil {
						return err
					}
					if !await(20*time.Second, func() bool {
						err = l.client("curl", "-fsS", "-m", "5", "-o", "/dev/null", "http://"+addr+":8080/")
						return err == nil
					}) {
						return err
					}
					return nil
				}))
			}
			failures("remove", inTurns(n, 10, func(i int) error {
				if ids[i] == "" {
					return nil
				}
				_, err := l.try("rm", "-f", ids[i])
				return err
			}))
			for _, id := range ids {
				if id != "" {
					l.quiet(t, id, "one of many")
					l.nothingLeft(t, id)
				}
			}
		})
	}
}

func TestTheSameImageIsSeenFirstByManyAtOnce(t *testing.T) {
	l := open(t)
	name := fmt.Sprintf("declarun-test/fresh-%d", time.Now().UnixNano())
	id := l.run(t, "create", "--entrypoint", "/bin/bash", l.images["redis"])
	l.run(t, "commit", "-c", `ENTRYPOINT ["/bin/bash","-c","id -un; exec sleep 0.1"]`, id, name)
	l.run(t, "rm", id)
	defer l.try("rmi", name)
	for i, err := range inTurns(6, 6, func(int) error {
		out, err := l.try("run", "--rm", "--runtime", "declarun", name)
		if err == nil && out != "root" {
			err = fmt.Errorf("it said %q", out)
		}
		return err
	}) {
		if err != nil {
			t.Errorf("container %d: %v", i, err)
		}
	}
}

func TestCreateAndDeleteRace(t *testing.T) {
	l := open(t)
	for i, err := range inTurns(20, 4, func(i int) error {
		id, err := l.try("create", "--runtime", "declarun", l.images["hello"])
		if err != nil {
			return err
		}
		started := make(chan struct{})
		go func() { _, _ = l.try("start", id); close(started) }()
		time.Sleep(time.Duration(i*20) * time.Millisecond)
		_, err = l.try("rm", "-f", id)
		<-started
		_, _ = l.try("rm", "-f", id)
		return err
	}) {
		if err != nil {
			t.Errorf("round %d: %v", i, err)
		}
	}
	if out := l.run(t, "run", "--rm", "--runtime", "declarun", l.images["debian"], "echo", "fine"); out != "fine" {
		t.Errorf("afterwards it said %q", out)
	}
}
