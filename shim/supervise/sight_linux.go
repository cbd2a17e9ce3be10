package supervise

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/declarun/declarun/shim/events"
	"github.com/declarun/declarun/shim/plan"
)

// program is a file with a service loop, as it was when the container was made.
// Another file in its place has other addresses, and proves nothing.
type program struct {
	File    string   `json:"file"`
	ID      fileID   `json:"id"`
	Entry   uint64   `json:"entry"` // e_entry
	Returns []uint64 `json:"returns"`
}

// fileID tells one content of one file from others, as far as the kernel tells.
type fileID struct {
	Dev, Ino uint64
	Size     int64
	Modified int64
}

func idOf(st *unix.Stat_t) fileID {
	return fileID{uint64(st.Dev), st.Ino, st.Size, st.Mtim.Nano()}
}

// programOf looks at the file of a loop below root.
func programOf(root *os.File, loop plan.Loop) (program, error) {
	p := program{File: loop.File, Returns: slices.Sorted(slices.Values(loop.Returns[:min(len(loop.Returns), plan.MaxReturns)]))}
	var fd int
	err := control(root, func(at int) (err error) {
		fd, err = unix.Openat2(at, strings.TrimLeft(loop.File, "/"), &unix.OpenHow{Flags: unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NONBLOCK,
			Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS})
		return err
	})
	if err != nil {
		return p, fmt.Errorf("open %s: %w", loop.File, err)
	}
	f := os.NewFile(uintptr(fd), loop.File)
	defer f.Close()
	var st unix.Stat_t
	if err := control(f, func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		return p, fmt.Errorf("look at %s: %w", loop.File, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return p, fmt.Errorf("look at %s: not a regular file", loop.File)
	}
	p.ID = idOf(&st)
	var head [64]byte
	if _, err := io.ReadFull(f, head[:]); err != nil {
		return p, fmt.Errorf("read header of %s: %w", loop.File, err)
	}
	p.Entry, err = entryOf(head)
	if err != nil {
		return p, fmt.Errorf("read header of %s: %w", loop.File, err)
	}
	return p, nil
}

// entryOf reads e_entry. Only 64-bit programs of this machine's byte order.
func entryOf(head [64]byte) (uint64, error) {
	native := byte(elf.ELFDATA2LSB)
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		native = byte(elf.ELFDATA2MSB)
	}
	switch {
	case string(head[:4]) != elf.ELFMAG:
		return 0, errors.New("not an ELF file")
	case head[elf.EI_CLASS] != byte(elf.ELFCLASS64) || head[elf.EI_DATA] != native:
		return 0, errors.New("not a 64-bit ELF file of this machine's byte order")
	}
	return binary.NativeEndian.Uint64(head[24:]), nil
}

// sight is one look at a process. Everything in it is of one execution if alive
// says so at the end: then the memory it was read from is still in use.
type sight struct {
	tid, tgid int // any thread of it, and its number
	proc
	program int // index
	mem     *os.File
	entry   uint64 // AT_ENTRY
	image   string
}

var errOther = errors.New("it runs another program")

// runs tells which of the programs a process runs, by the file.
func runs(tid int, programs []program) (int, error) {
	var st unix.Stat_t
	if err := unix.Stat(fmt.Sprintf("/proc/%d/exe", tid), &st); err != nil {
		return -1, err
	}
	id := idOf(&st)
	if i := slices.IndexFunc(programs, func(p program) bool { return p.ID == id }); i >= 0 {
		return i, nil
	}
	return -1, errOther
}

// lookAt opens a process. The caller closes mem.
func lookAt(tid int, programs []program) (s sight, err error) {
	s.tid = tid
	// The descriptor stays with the memory that the process has now: once it
	// executes another program nothing can be read any more (proc_pid_mem(5)).
	fd, err := unix.Open(fmt.Sprintf("/proc/%d/mem", tid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return s, fmt.Errorf("open memory: %w", err)
	}
	s.mem = os.NewFile(uintptr(fd), "mem")
	defer func() {
		if err != nil {
			s.mem.Close()
		}
	}()
	if s.program, err = runs(tid, programs); err != nil {
		return s, fmt.Errorf("look at program: %w", err)
	}
	var ok bool
	if s.tgid, ok = events.Tgid(tid); !ok {
		return s, errGone
	}
	s.proc = proc{s.tgid, events.StartTime(s.tgid)}
	auxv, err := readFileSome(fmt.Sprintf("/proc/%d/auxv", tid), 4096)
	if err != nil {
		return s, fmt.Errorf("read auxiliary vector: %w", err)
	}
	var random uint64
	for v := auxv; len(v) >= 16; v = v[16:] {
		switch binary.NativeEndian.Uint64(v) {
		case atEntry:
			s.entry = binary.NativeEndian.Uint64(v[8:])
		case atRandom:
			random = binary.NativeEndian.Uint64(v[8:])
		}
	}
	// 16 bytes that the kernel draws for every execution; forks inherit them.
	bytes := make([]byte, 16)
	if random == 0 || s.read(random, bytes) != len(bytes) {
		return s, fmt.Errorf("read AT_RANDOM: %w", unix.EFAULT)
	}
	sum := sha256.Sum256(append(auxv, bytes...))
	s.image = hex.EncodeToString(sum[:])
	if s.Start == 0 || !alive(s.mem) {
		return s, errGone
	}
	return s, nil
}

// include/uapi/linux/auxvec.h
const (
	atEntry  = 9
	atRandom = 25
)

func readFileSome(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, limit))
}

// read gives how many bytes could be read.
func (s *sight) read(addr uint64, buf []byte) (n int) {
	for n < len(buf) {
		got := 0
		err := control(s.mem, func(fd int) (err error) {
			got, err = unix.Pread(fd, buf[n:], int64(addr)+int64(n))
			return err
		})
		if got <= 0 || err != nil {
			break
		}
		n += got
	}
	return n
}

const nowhere = 1 << 62

// shares tells whether a process may use the memory of its parent, as a child of
// vfork does until it executes something: then that the memory is in use says
// nothing about the child.
func (s *sight) shares(programs []program) bool {
	parent, ok := parentOf(s.proc)
	if !ok {
		return false
	}
	if i, err := runs(parent.PID, programs); err != nil || i != s.program {
		return false // it cannot be shared: what runs in it is another program
	}
	const kcmpVM = 1 // linux/kcmp.h; CONFIG_KCMP
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(s.tid), uintptr(parent.PID), kcmpVM, 0, 0, 0)
	return errno != 0 || order == 0
}

// alive tells whether memory is still somebody's: where nobody uses it reading
// gives nothing, and where an address has no page, an error.
//
// Nothing can be mapped there: to touch what a process has mapped can take as
// long as it likes (userfaultfd(2)).
func alive(mem *os.File) bool {
	var b [1]byte
	n := 0
	err := control(mem, func(fd int) (err error) {
		n, err = unix.Pread(fd, b[:], nowhere)
		return err
	})
	return n > 0 || err == unix.EIO
}

// stackMost is how much of a stack is read. Frames of the loop are near its
// start: what the loop calls is below them.
const stackMost = 256 << 10

// inLoop tells whether the stack of one of its threads has a return address of
// the loop. Where a thread runs just now, its stack says nothing.
func (s *sight) inLoop(p program, tids ...int) (bool, error) {
	bias := s.entry - p.Entry
	var err error
	for _, tid := range tids {
		from, to, unknown := s.stack(tid)
		if unknown != nil {
			err = unknown
			continue
		}
		buf := make([]byte, to-from)
		buf = buf[:s.read(from, buf)]
		if returns(buf, bias, p.Returns) {
			if !alive(s.mem) {
				return false, errGone
			}
			return true, nil
		}
	}
	return false, err
}

var errRunning = errors.New("the thread runs")

// returns tells whether a word of memory is one of sorted addresses.
func returns(memory []byte, bias uint64, sorted []uint64) bool {
	if len(sorted) == 0 {
		return false
	}
	first, last := sorted[0], sorted[len(sorted)-1]
	for ; len(memory) >= 8; memory = memory[8:] {
		if a := binary.NativeEndian.Uint64(memory) - bias; a >= first && a <= last {
			if _, ok := slices.BinarySearch(sorted, a); ok {
				return true
			}
		}
	}
	return false
}

// stack gives what is to be read of a thread's stack, word by word.
func (s *sight) stack(tid int) (from, to uint64, err error) {
	sp, err := stackPointer(tid)
	if err != nil {
		return 0, 0, err
	}
	if tid == s.tgid {
		if to, err = stackStart(tid); err != nil {
			return 0, 0, err
		}
		to = (to + 7) &^ 7
		if sp < to { // else on some other stack: what is left on this one is still what it called
			from = sp
		}
	} else if _, to, err = mappingOf(tid, sp); err != nil {
		return 0, 0, err
	} else {
		from = sp
	}
	if from = (from + 7) &^ 7; from >= to {
		return 0, 0, fmt.Errorf("stack pointer %#x beyond its stack", sp)
	}
	if to-from > stackMost {
		from = to - stackMost
	}
	return from, to, nil
}

// stackPointer of a thread that waits in the kernel (proc_pid_syscall(5)).
func stackPointer(tid int) (uint64, error) {
	data, err := readFileSome(fmt.Sprintf("/proc/%d/syscall", tid), 512)
	if err != nil {
		return 0, fmt.Errorf("read stack pointer: %w", err)
	}
	return parseStackPointer(string(data))
}

func parseStackPointer(line string) (uint64, error) {
	fields := strings.Fields(line)
	if len(fields) > 0 && fields[0] == "running" {
		return 0, errRunning
	}
	if len(fields) != 9 && (len(fields) != 3 || fields[0] != "-1") { // number and six arguments, or in no call
		return 0, fmt.Errorf("read stack pointer: %q", line)
	}
	sp, err := strconv.ParseUint(strings.TrimPrefix(fields[len(fields)-2], "0x"), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("read stack pointer: %w", err)
	}
	return sp, nil
}

// stackStart is where the first frame of a program began (field 28 of proc_pid_stat(5)).
func stackStart(pid int) (uint64, error) {
	data, err := readFileSome(fmt.Sprintf("/proc/%d/stat", pid), 4096)
	if err != nil {
		return 0, fmt.Errorf("read start of stack: %w", err)
	}
	i := bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[i+1:]))
	if i < 0 || len(fields) < 26 {
		return 0, errors.New("read start of stack: no such field")
	}
	at, err := strconv.ParseUint(fields[25], 10, 64)
	if err != nil || at == 0 {
		return 0, errors.New("read start of stack: not shown")
	}
	return at, nil
}

// mapsMost bounds how many mappings are looked through; 65530 is the kernel's default limit.
const mapsMost = 1 << 16

// mappingOf gives the private anonymous mapping that holds an address, as the
// stacks of threads are.
func mappingOf(tid int, addr uint64) (from, to uint64, err error) {
	f, err := os.Open(fmt.Sprintf("/proc/%d/maps", tid))
	if err != nil {
		return 0, 0, fmt.Errorf("find stack: %w", err)
	}
	defer f.Close()
	lines := bufio.NewReaderSize(f, 64<<10)
	for range mapsMost {
		line, err := lines.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull {
			break
		}
		from, to, anonymous, err := parseMapping(string(line))
		if err != nil {
			return 0, 0, err
		}
		if addr < from {
			break
		}
		if addr < to {
			if !anonymous {
				return 0, 0, errors.New("find stack: the stack pointer is not in private anonymous memory")
			}
			return from, to, nil
		}
	}
	return 0, 0, errors.New("find stack: the stack pointer is in no mapping")
}

// parseMapping reads one line of proc_pid_maps(5).
func parseMapping(line string) (from, to uint64, anonymous bool, err error) {
	bad := fmt.Errorf("parse mapping: %.100q", line)
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return 0, 0, false, bad
	}
	a, b, ok := strings.Cut(fields[0], "-")
	if from, err = strconv.ParseUint(a, 16, 64); err != nil || !ok {
		return 0, 0, false, bad
	}
	if to, err = strconv.ParseUint(b, 16, 64); err != nil || to <= from {
		return 0, 0, false, bad
	}
	plain := len(fields) == 5 || strings.HasPrefix(fields[5], "[stack") || strings.HasPrefix(fields[5], "[anon")
	return from, to, plain && fields[4] == "0" && strings.HasPrefix(fields[1], "rw") && strings.HasSuffix(fields[1], "p"), nil
}
