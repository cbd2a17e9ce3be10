package wire

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/need"
	"github.com/declarun/declarun/shim/record"
)

func TestMain(m *testing.M) {
	if socket := os.Getenv("WIRE_TEST_PING"); socket != "" {
		conn, err := Dial(context.Background(), socket)
		if err != nil {
			fmt.Println(err)
			os.Exit(3)
		}
		answer, err := conn.Call(Request{Operation: Ping}, nil)
		fmt.Println(answer, err)
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// listen serves connections one after the other.
func listen(t *testing.T, serve func(*net.UnixConn)) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "wire") // t.TempDir is too long for sun_path
	if err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.AcceptUnix()
			if err != nil {
				return
			}
			serve(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done; os.RemoveAll(dir) })
	return socket
}

func dial(t *testing.T, socket string) *Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	conn, err := Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(); cancel() })
	return conn
}

func openFDs(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

func guard(files int) Request {
	names := make([]string, files)
	for i := range names {
		names[i] = fmt.Sprintf("mount:/%d", i)
	}
	return Request{Operation: Guard, Guard: &GuardRequest{Token: "t", PID: 1, Files: names}}
}

func TestDescriptorsArriveInOrderAndCloseOnExec(t *testing.T) {
	for _, count := range []int{0, 1, 63, 64, 65, 128, 300} {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			socket := listen(t, func(c *net.UnixConn) {
				request, files, cred, err := ReadRequest(c)
				if err != nil {
					WriteAnswer(c, Answer{Error: err.Error()})
					return
				}
				answer := Answer{}
				for i, f := range files {
					var st unix.Stat_t
					raw, _ := f.SyscallConn()
					raw.Control(func(fd uintptr) {
						unix.Fstat(int(fd), &st)
						if flags, _ := unix.FcntlInt(fd, unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
							answer.Error = "a descriptor without close-on-exec"
						}
					})
					if st.Size != int64(i) {
						answer.Error = fmt.Sprintf("descriptor %d is number %d", i, st.Size)
					}
				}
				closeAll(files)
				if len(files) != count || len(request.Guard.Files) != count || cred.PID != os.Getpid() {
					answer.Error = fmt.Sprintf("%d files, cred %+v", len(files), cred)
				}
				WriteAnswer(c, answer)
			})
			dir := t.TempDir()
			var files []*os.File
			for i := range count {
				f, err := os.Create(filepath.Join(dir, fmt.Sprint(i)))
				if err != nil {
					t.Fatal(err)
				}
				f.Truncate(int64(i)) // its number is its size
				files = append(files, f)
			}
			defer closeAll(files)
			answer, err := dial(t, socket).Call(guard(count), files)
			if err != nil || answer.Error != "" {
				t.Fatal(answer, err)
			}
		})
	}
}

func TestBigNumbersAndUnknownFieldsSurvive(t *testing.T) {
	config := `{"x":18446744073709551615,"unknown":{"a":[1e400]}}`
	socket := listen(t, func(c *net.UnixConn) {
		request, files, _, err := ReadRequest(c)
		closeAll(files)
		if err != nil {
			WriteAnswer(c, Answer{Error: err.Error()})
			return
		}
		WriteAnswer(c, Answer{Prepare: &PrepareAnswer{Config: request.Prepare.Config}})
	})
	f, err := os.Open("/")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	answer, err := dial(t, socket).Call(Request{Operation: Prepare, Prepare: &PrepareRequest{Config: json.RawMessage(config)}}, []*os.File{f})
	if err != nil || answer.Error != "" || string(answer.Prepare.Config) != config {
		t.Fatalf("%+v %v", answer, err)
	}
}

// What a client that is not ours may send; every row must be refused with no
// descriptor kept.
func TestBadRequestsAreRefusedAndNothingLeaks(t *testing.T) {
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	framed := func(s string) []byte { return append(binary.BigEndian.AppendUint32(nil, uint32(len(s))), s...) }
	tests := []struct {
		claim string
		bytes []byte
		fds   int
		want  string
	}{
		{"nothing at all is the end", nil, 0, "EOF"},
		{"half a length", []byte{0, 0}, 1, "unexpected EOF"},
		{"a length without its body", []byte{0, 0, 0, 9}, 1, "unexpected EOF"},
		{"a length of 4 GiB", []byte{255, 255, 255, 255, 1}, 1, "more than"},
		{"not JSON", framed("hello"), 1, "parse message"},
		{"an empty body", framed(""), 1, "parse message"},
		{"no operation", framed(`{}`), 0, "unknown operation"},
		{"an unknown operation", framed(`{"operation":"format"}`), 0, "unknown operation"},
		{"an operation without its field", framed(`{"operation":"guard"}`), 1, "field"},
		{"an operation with another's field", framed(`{"operation":"ping","forget":{}}`), 1, "field"},
		{"two fields", framed(`{"operation":"exec","exec":{},"forget":{}}`), 0, "field"},
		{"prepare without its root", framed(`{"operation":"prepare","prepare":{}}`), 0, "0 descriptors, want 1"},
		{"more descriptors than names", framed(`{"operation":"guard","guard":{"files":["netns"]}}`), 2, "2 descriptors, want 1"},
		{"fewer descriptors than names", framed(`{"operation":"guard","guard":{"files":["netns","mntns"]}}`), 1, "1 descriptors, want 2"},
		{"descriptors where none belong", framed(`{"operation":"ping"}`), 3, "3 descriptors, want 0"},
	}
	for _, test := range tests {
		t.Run(test.claim, func(t *testing.T) {
			result := make(chan error, 1)
			socket := listen(t, func(c *net.UnixConn) {
				_, files, _, err := ReadRequest(c)
				if len(files) != 0 {
					err = fmt.Errorf("%d descriptors handed out: %w", len(files), err)
				}
				result <- err
			})
			c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if len(test.bytes) > 0 {
				fds := make([]int, test.fds)
				for i := range fds {
					fds[i] = int(null.Fd())
				}
				var oob []byte
				if test.fds > 0 {
					oob = unix.UnixRights(fds...)
				}
				if _, _, err := c.WriteMsgUnix(test.bytes, oob, nil); err != nil {
					t.Fatal(err)
				}
			}
			c.CloseWrite()
			if err := <-result; err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
	before := openFDs(t)
	socket := listen(t, func(c *net.UnixConn) { ReadRequest(c) })
	for range 50 {
		c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		c.WriteMsgUnix(framed(`{"operation":"ping"}`), unix.UnixRights(int(null.Fd()), int(null.Fd())), nil)
		c.CloseWrite()
		io.Copy(io.Discard, c)
		c.Close()
	}
	if after := openFDs(t); after > before+2 { // the listener and one connection
		t.Errorf("%d descriptors before, %d after 50 refused requests", before, after)
	}
}

func TestTooManyDescriptorsAreRefused(t *testing.T) {
	files := make([]*os.File, MaxFiles+1)
	socket := listen(t, func(c *net.UnixConn) { ReadRequest(c) })
	if _, err := dial(t, socket).Call(guard(len(files)), files); err == nil || !strings.Contains(err.Error(), "more than 1024") {
		t.Error(err)
	}
}

func TestTheContextEndsACallToAHungSupervisor(t *testing.T) {
	hang := make(chan struct{})
	socket := listen(t, func(*net.UnixConn) { <-hang })
	t.Cleanup(func() { close(hang) })
	ctx, cancel := context.WithCancel(context.Background())
	conn, err := Dial(ctx, socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := conn.Call(Request{Operation: Ping}, nil); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error(err)
	}
}

func TestWatchDeliversEventsUntilTheEnd(t *testing.T) {
	socket := listen(t, func(c *net.UnixConn) {
		if _, _, _, err := ReadRequest(c); err != nil {
			return
		}
		WriteAnswer(c, Answer{})
		for i := range 3 {
			WriteEvent(c, record.Event{Count: uint64(i)})
		}
	})
	conn := dial(t, socket)
	if answer, err := conn.Call(Request{Operation: Watch, Watch: &WatchRequest{}}, nil); err != nil || answer.Error != "" {
		t.Fatal(answer, err)
	}
	for i := range 3 {
		if event, err := conn.ReadEvent(); err != nil || event.Count != uint64(i) {
			t.Fatal(event, err)
		}
	}
	if _, err := conn.ReadEvent(); !errors.Is(err, io.EOF) {
		t.Error(err)
	}
}

func TestAnotherUserIsRefusedBeforeAnythingIsRead(t *testing.T) {
	need.Root(t)
	result := make(chan error, 1)
	socket := listen(t, func(c *net.UnixConn) {
		_, _, cred, err := ReadRequest(c)
		if cred.UID != 65534 {
			err = fmt.Errorf("cred %+v, %w", cred, err)
		}
		result <- err
	})
	os.Chmod(filepath.Dir(socket), 0o755)
	os.Chmod(socket, 0o777)
	self := filepath.Join(filepath.Dir(socket), "test") // where nobody may run it
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(self, program, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Dir = "/"
	cmd.Env = []string{"WIRE_TEST_PING=" + socket}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if err := <-result; !errors.Is(err, ErrPeer) {
		t.Error(err)
	}
}

// FuzzReadFrame: whatever arrives, at most what arrived is kept, and a frame
// that is read is the one that was sent.
func FuzzReadFrame(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 0, 0})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte("\x00\x00\x00\x02{}rest"))
	f.Add([]byte{255, 255, 255, 255})
	f.Add([]byte("\x00\x00\x00\x14{\"operation\":\"ping\"}"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		body, err := readFrame(bytes.NewReader(stream))
		if err != nil {
			return
		}
		if !bytes.HasPrefix(stream[4:], body) || binary.BigEndian.Uint32(stream) != uint32(len(body)) {
			t.Fatalf("frame %q of %q", body, stream)
		}
		var request Request
		if json.Unmarshal(body, &request) == nil {
			_ = request.check(0)
		}
	})
}
