package supervise

import (
	"fmt"
	"runtime"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

const noFollow = unix.O_NOFOLLOW | unix.O_NONBLOCK

// struct seccomp_notif and seccomp_notif_resp of linux/seccomp.h, unchanged
// since Linux 5.0.
type notification struct {
	ID    uint64
	PID   uint32
	Flags uint32
	Nr    int32
	Arch  uint32
	IP    uint64
	Args  [6]uint64
}

type response struct {
	ID    uint64
	Val   int64
	Error int32
	Flags uint32
}

var (
	_ [80]byte = [unsafe.Sizeof(notification{})]byte{}
	_ [24]byte = [unsafe.Sizeof(response{})]byte{}
)

// notifSizes asks the kernel how large its structures are. A kernel may only
// append to them.
var notifSizes = sync.OnceValues(func() (uint16, error) {
	var sizes struct{ notif, resp, data uint16 }
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_NOTIF_SIZES, 0, uintptr(unsafe.Pointer(&sizes)))
	if errno != 0 {
		return 0, fmt.Errorf("ask kernel for the size of seccomp notifications: %w", errno)
	}
	if sizes.resp != 24 || sizes.notif < 80 || sizes.notif > slotSize-slotHeader {
		return 0, fmt.Errorf("seccomp notifications of %d and %d bytes: %w", sizes.notif, sizes.resp, unix.ENOTSUP)
	}
	return sizes.notif, nil
})

// ioctls of linux/seccomp.h; x/sys has some of them per architecture only.
const (
	notifRecv     = 0xc0502100
	notifSend     = 0xc0182101
	notifIDValid  = 0x40082102
	notifSetFlags = 0x40082104
)

func notifIoctl(fd int, request uintptr, arg unsafe.Pointer) error {
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg))
	if errno != 0 {
		return errno
	}
	return nil
}

// Recv reads a notification straight into a journal slot, which has to be
// zero: from the moment the kernel takes it for delivered it is in the journal.
func (j *journal) Recv(fd, slot int) error {
	return notifIoctl(fd, notifRecv, unsafe.Pointer(&j.mem[slot*slotSize+slotHeader]))
}

func send(fd int, r *response) error {
	err := notifIoctl(fd, notifSend, unsafe.Pointer(r))
	runtime.KeepAlive(r)
	return err
}

func idValid(fd int, id uint64) bool {
	return notifIoctl(fd, notifIDValid, unsafe.Pointer(&id)) == nil
}

// setSyncWakeUp asks for the caller to be woken on this CPU: Linux 6.6, best effort.
func setSyncWakeUp(fd int) {
	unix.Syscall(unix.SYS_IOCTL, uintptr(fd), notifSetFlags, unix.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP)
}

// The journal is memory that the monitor and its worker both hold. A slot is
// used while a notification has been read and not been answered, so that the
// next worker can answer what a killed one left.
const (
	slotSize   = 256
	slotHeader = 24
	slotCount  = 4096
	suspectsAt = slotSize * slotCount
	suspectMax = 512
	journalLen = suspectsAt + suspectMax*int(unsafe.Sizeof(suspect{}))
)

// suspect is a call that was in hand when a worker ended. The caller may have
// been interrupted and have come back with another notification, so it is known
// by who calls what.
type suspect struct {
	Listener uint64
	TID      uint32
	Nr       int32
	Arg      uint64 // the first: a call that is made again has the same
	Times    uint64
}

// slotHead is the start of a slot. Listener 0: the slot is free.
type slotHead struct {
	Listener uint64
	_        [2]uint64
}

type journal struct {
	mem  []byte
	mu   sync.Mutex
	free []int
	wake *sync.Cond
	next int // the suspect that is given up for another
	some bool
}

func newJournalFile() (int, error) {
	fd, err := unix.MemfdCreate("declarun-journal", unix.MFD_CLOEXEC|unix.MFD_NOEXEC_SEAL)
	if err == unix.EINVAL { // before Linux 6.3
		fd, err = unix.MemfdCreate("declarun-journal", unix.MFD_CLOEXEC)
	}
	if err != nil {
		return -1, fmt.Errorf("make journal: %w", err)
	}
	if err := unix.Ftruncate(fd, int64(journalLen)); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("make journal: %w", err)
	}
	return fd, nil
}

func mapJournal(fd int) (*journal, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	if st.Size != int64(journalLen) {
		return nil, fmt.Errorf("map journal: %d bytes, want %d", st.Size, journalLen)
	}
	mem, err := unix.Mmap(fd, 0, journalLen, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	j := &journal{mem: mem}
	j.wake = sync.NewCond(&j.mu)
	for i := slotCount - 1; i >= 0; i-- {
		if j.head(i).Listener == 0 {
			j.free = append(j.free, i)
		}
	}
	for _, s := range j.suspects() {
		j.some = j.some || s.Times > 0
	}
	return j, nil
}

func (j *journal) suspects() []suspect {
	return unsafe.Slice((*suspect)(unsafe.Pointer(&j.mem[suspectsAt])), suspectMax)
}

// suspect counts one more worker that ended with the slot's call in hand.
func (j *journal) suspect(slot int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.some = true
	listener, n, all := j.head(slot).Listener, j.at(slot), j.suspects()
	for i := range all {
		if s := &all[i]; s.Times > 0 && s.Listener == listener && s.TID == n.PID && s.Nr == n.Nr && s.Arg == n.Args[0] {
			s.Times++
			return
		}
	}
	for i := range all {
		if all[i].Times == 0 {
			j.next = i
			break
		}
	}
	all[j.next%suspectMax] = suspect{listener, n.PID, n.Nr, n.Args[0], 1}
	j.next++
}

// suspected gives how many workers ended with a call like the slot's in hand.
func (j *journal) suspected(slot int) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.some {
		return 0
	}
	listener, n := j.head(slot).Listener, j.at(slot)
	for _, s := range j.suspects() {
		if s.Times > 0 && s.Listener == listener && s.TID == n.PID && s.Nr == n.Nr && s.Arg == n.Args[0] {
			return s.Times
		}
	}
	return 0
}

// clear takes the suspicion from a call like the slot's: it was decided on.
func (j *journal) clear(slot int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if !j.some {
		return
	}
	listener, n, all := j.head(slot).Listener, j.at(slot), j.suspects()
	j.some = false
	for i := range all {
		if s := &all[i]; s.Listener == listener && s.TID == n.PID && s.Nr == n.Nr && s.Arg == n.Args[0] {
			*s = suspect{}
		}
		j.some = j.some || all[i].Times > 0
	}
}

func (j *journal) head(slot int) *slotHead {
	return (*slotHead)(unsafe.Pointer(&j.mem[slot*slotSize]))
}

func (j *journal) at(slot int) *notification {
	return (*notification)(unsafe.Pointer(&j.mem[slot*slotSize+slotHeader]))
}

// take gives a zeroed slot, waiting for one if there is none.
func (j *journal) take(listener uint64) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	for len(j.free) == 0 {
		j.wake.Wait()
	}
	slot := j.free[len(j.free)-1]
	j.free = j.free[:len(j.free)-1]
	clear(j.mem[slot*slotSize : (slot+1)*slotSize])
	j.head(slot).Listener = listener
	return slot
}

func (j *journal) give(slot int) {
	j.mu.Lock()
	defer j.mu.Unlock()
	clear(j.mem[slot*slotSize : (slot+1)*slotSize])
	j.free = append(j.free, slot)
	j.wake.Signal()
}

// left lists the slots that an earlier worker did not finish. Those in which
// no notification had arrived are freed.
func (j *journal) left() []int {
	var slots []int
	for i := range slotCount {
		switch {
		case j.head(i).Listener == 0:
		case j.at(i).ID == 0:
			j.give(i)
		default:
			slots = append(slots, i)
		}
	}
	return slots
}
