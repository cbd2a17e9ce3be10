// Package breakin plays an intruder who runs code inside a container's own
// server process. Each attack answers with the error that the process got:
// nil means that it got through.
package breakin

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/integration/inject"
)

func within(pid int, attack func(s *inject.Session) error) (err error) {
	s, err := inject.Attach(pid)
	if err != nil {
		return &NotTried{err}
	}
	defer func() {
		if cerr := s.Close(); cerr != nil && err == nil {
			err = &NotTried{cerr}
		}
	}()
	return attack(s)
}

// NotTried says that an attack could not be carried out at all, which is
// neither a success nor a refusal.
type NotTried struct{ Cause error }

func (e *NotTried) Error() string { return "attack not tried: " + e.Cause.Error() }
func (e *NotTried) Unwrap() error { return e.Cause }

// Refused tells whether an attack was tried and refused.
func Refused(err error) bool {
	var nottried *NotTried
	return err != nil && !errors.As(err, &nottried)
}

// Chroot makes the process call chroot(2), which no server here needs.
func Chroot(pid int) error {
	return within(pid, func(s *inject.Session) error {
		dir, err := s.String("/")
		if err != nil {
			return &NotTried{err}
		}
		_, err = s.Call(unix.SYS_CHROOT, dir)
		return err
	})
}

// SetUser makes the process call setuid(2) with the user that it is already,
// which needs no privilege.
func SetUser(pid int) error {
	return within(pid, func(s *inject.Session) error {
		uid, err := s.Call(unix.SYS_GETEUID)
		if err != nil {
			return &NotTried{err}
		}
		_, err = s.Call(unix.SYS_SETUID, uint64(uid))
		return err
	})
}

// PerfEvent makes the process call perf_event_open(2), which no server here
// needs, whoever it runs as.
func PerfEvent(pid int) error {
	return within(pid, func(s *inject.Session) error {
		_, err := s.Call(unix.SYS_PERF_EVENT_OPEN, 0, 0, 0, 0, 0)
		return err
	})
}

// Shell makes the process execute a shell in its own place.
func Shell(pid int, path string) error {
	return within(pid, func(s *inject.Session) error { return execute(s, path, "sh", "-c", "id") })
}

func execute(s *inject.Session, path string, argv ...string) error {
	name, err := s.String(path)
	if err != nil {
		return &NotTried{err}
	}
	var args []uint64
	for _, a := range argv {
		p, err := s.String(a)
		if err != nil {
			return &NotTried{err}
		}
		args = append(args, p)
	}
	list, err := s.Pointers(args...)
	if err != nil {
		return &NotTried{err}
	}
	none, err := s.Pointers()
	if err != nil {
		return &NotTried{err}
	}
	_, err = s.Call(unix.SYS_EXECVE, name, list, none)
	return err
}

// Listen makes the process open a listening TCP socket on every address.
func Listen(pid int, port uint16) error {
	return within(pid, func(s *inject.Session) error {
		fd, err := s.Call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer s.Call(unix.SYS_CLOSE, uint64(fd))
		addr, err := s.Bytes(sockaddr(netip.AddrPortFrom(netip.IPv4Unspecified(), port)))
		if err != nil {
			return &NotTried{err}
		}
		if _, err := s.Call(unix.SYS_BIND, uint64(fd), addr, 16); err != nil {
			return err
		}
		_, err = s.Call(unix.SYS_LISTEN, uint64(fd), 8)
		return err
	})
}

func sockaddr(to netip.AddrPort) []byte {
	raw := make([]byte, 16)
	binary.LittleEndian.PutUint16(raw, unix.AF_INET)
	binary.BigEndian.PutUint16(raw[2:], to.Port())
	a := to.Addr().As4()
	copy(raw[4:], a[:])
	return raw
}

// Connect makes the process connect to an IPv4 address over TCP; it gives up after two seconds.
func Connect(pid int, to netip.AddrPort) error {
	return within(pid, func(s *inject.Session) error {
		fd, err := s.Call(unix.SYS_SOCKET, unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer s.Call(unix.SYS_CLOSE, uint64(fd))
		limit := make([]byte, 16)
		binary.LittleEndian.PutUint64(limit, 2) // struct timeval
		p, err := s.Bytes(limit)
		if err != nil {
			return &NotTried{err}
		}
		if _, err := s.Call(unix.SYS_SETSOCKOPT, uint64(fd), unix.SOL_SOCKET, unix.SO_SNDTIMEO, p, 16); err != nil {
			return err
		}
		addr, err := s.Bytes(sockaddr(to))
		if err != nil {
			return &NotTried{err}
		}
		_, err = s.Call(unix.SYS_CONNECT, uint64(fd), addr, 16)
		return err
	})
}

// Write makes the process create a file.
func Write(pid int, path string) error {
	return within(pid, func(s *inject.Session) error {
		fd, err := open(s, path, unix.O_WRONLY|unix.O_CREAT, 0o644)
		if err == nil {
			_, _ = s.Call(unix.SYS_CLOSE, uint64(fd))
		}
		return err
	})
}

func open(s *inject.Session, path string, flags uint64, mode uint64) (int64, error) {
	p, err := s.String(path)
	if err != nil {
		return 0, &NotTried{err}
	}
	at := unix.AT_FDCWD
	return s.Call(unix.SYS_OPENAT, uint64(at), p, flags, mode)
}

// Drop makes the process write a small executable and run it. The error says
// which of the two was refused.
func Drop(pid int, path string) error {
	return within(pid, func(s *inject.Session) error {
		fd, err := open(s, path, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, 0o755)
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		program := Program()
		body, err := s.Bytes(program)
		if err != nil {
			return &NotTried{err}
		}
		_, err = s.Call(unix.SYS_WRITE, uint64(fd), body, uint64(len(program)))
		_, _ = s.Call(unix.SYS_CLOSE, uint64(fd))
		if err != nil {
			return fmt.Errorf("write %s: %w", path, err)
		}
		if err := execute(s, path, "dropped"); err != nil {
			var nottried *NotTried
			if errors.As(err, &nottried) {
				return err
			}
			return fmt.Errorf("execute %s: %w", path, err)
		}
		return nil
	})
}

// Program is a complete static program that ends with status 42: an ELF
// header, one program header and twelve bytes of code.
func Program() []byte {
	const base, header = 0x400000, 64 + 56
	code := []byte{0xbf, 42, 0, 0, 0, 0xb8, 231, 0, 0, 0, 0x0f, 0x05} // mov edi,42; mov eax,exit_group; syscall
	le := binary.LittleEndian
	out := append([]byte("\x7fELF\x02\x01\x01"), make([]byte, 9)...)
	out = le.AppendUint16(out, 2)  // ET_EXEC
	out = le.AppendUint16(out, 62) // EM_X86_64
	out = le.AppendUint32(out, 1)
	out = le.AppendUint64(out, base+header) // entry
	out = le.AppendUint64(out, 64)          // program headers
	out = le.AppendUint64(out, 0)
	out = le.AppendUint32(out, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		out = le.AppendUint16(out, v)
	}
	out = le.AppendUint32(out, 1) // PT_LOAD
	out = le.AppendUint32(out, 5) // R+X
	size := uint64(header + len(code))
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		out = le.AppendUint64(out, v)
	}
	return append(out, code...)
}
