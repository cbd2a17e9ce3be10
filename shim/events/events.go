// Package events writes what deviates from a plan: one JSON line for each
// distinct deviation when it is first seen, and one more whenever its count
// has grown.
//
// It guarantees: a line is one write(2) of at most 64 KiB to a file opened with
// O_APPEND, so that lines of two writers never mix (true of local file systems;
// not of NFS); memory is bounded whatever a container does; a container that
// causes more distinct deviations than are written is itself reported, with how
// many were not written ("lost"); no subscriber can hold up a writer.
//
// It does not guarantee that a line is on the medium: there is no fsync. A count
// that grows is written again after ten seconds, then after twice as long each
// time, up to five minutes: what it grew by since is not written when the process
// is killed.
//
// A file that was renamed or removed (logrotate) is noticed within a second of
// the next write, and a new one is made.
package events

import (
	"container/list"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/declarun/declarun/shim/record"
)

const (
	maxLine     = 64 << 10
	maxDistinct = 16384 // deviations remembered in all
	maxPerOwner = 1024  // …of them of one container
	rate        = 50    // new lines a second and container, in the long run
	burst       = 200
	updateEvery = 10 * time.Second // the first time
	updateSlow  = 5 * time.Minute  // in the long run: a thousand deviations must not fill a disk
	lookEvery   = time.Second
	maxOwners   = 4096
)

// Sink is an open event file. It is safe for concurrent use.
type Sink struct {
	mu     sync.Mutex
	path   string
	file   *os.File // nil while it cannot be opened
	dev    uint64
	ino    uint64
	looked time.Time
	now    func() time.Time

	seen   map[string]*list.Element // by ID
	recent *list.List               // of *deviation, latest first
	owners map[string]*owner

	subscribers map[*subscriber]struct{}
	failed      uint64 // lines that could not be written
	failure     error
	closed      bool
	stop        chan struct{}
	done        chan struct{}
}

type deviation struct {
	event   record.Event
	written uint64 // count on the last line written
	at      time.Time
	every   time.Duration // until the next line
}

// due says that a count may be written again.
func (d *deviation) due(now time.Time) bool { return now.Sub(d.at) >= d.every }

// owner is what is accounted for one container.
type owner struct {
	counts   map[record.Dimension]uint64
	distinct int
	tokens   float64
	refilled time.Time
	lost     uint64
	lostSaid uint64
	lostAt   time.Time
	example  record.Event // of what was lost: container, name, image
}

type subscriber struct {
	container string
	ch        chan record.Event
}

// Open opens the event file, making it and its directory where they do not exist.
func Open(path string) (*Sink, error) { return open(path, time.Now) }

func open(path string, now func() time.Time) (*Sink, error) {
	s := &Sink{
		path: path, now: now,
		seen: map[string]*list.Element{}, recent: list.New(), owners: map[string]*owner{},
		subscribers: map[*subscriber]struct{}{},
		stop:        make(chan struct{}), done: make(chan struct{}),
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make directory of event file: %w", err)
	}
	if err := s.reopen(); err != nil {
		return nil, err
	}
	go s.update()
	return s, nil
}

// reopen needs mu, or a Sink nobody else knows yet.
func (s *Sink) reopen() error {
	// O_NONBLOCK and O_NOFOLLOW: neither a FIFO nor a link put there blocks or diverts.
	f, err := os.OpenFile(s.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK|syscall.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("open event file: %w", err)
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("open event file %s: not a regular file", s.path)
	}
	if err != nil {
		f.Close()
		return err
	}
	if s.file != nil {
		s.file.Close()
	}
	st := info.Sys().(*syscall.Stat_t)
	s.file, s.dev, s.ino, s.looked = f, uint64(st.Dev), st.Ino, s.now()
	return nil
}

// Reopen closes and opens the file again, for SIGHUP.
func (s *Sink) Reopen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.reopen()
}

// ID is what all lines on one distinct deviation have in common.
func ID(e *record.Event) string {
	exe := ""
	if e.Process != nil {
		exe = e.Process.Exe
	}
	h := sha256.New()
	for _, field := range []string{e.Container, string(e.Dimension), e.Action, e.Object, string(e.Verdict), exe} {
		fmt.Fprintf(h, "%d:%s;", len(field), field)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}

// Report takes one occurrence of a deviation. Time, ID and Count are filled in here.
func (s *Sink) Report(e record.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	now := s.now()
	if e.Time.IsZero() {
		e.Time = now
	}
	if e.Verdict == "" {
		e.Verdict = record.Denied
	}
	if e.Origins == nil {
		e.Origins = []record.Origin{}
	}
	bound(&e, 4096)
	e.ID, e.Count = ID(&e), 1
	o := s.owner(e.Container)
	o.counts[e.Dimension]++

	if el, ok := s.seen[e.ID]; ok {
		d := el.Value.(*deviation)
		s.recent.MoveToFront(el)
		d.event.Count++
		d.event.Time = e.Time
		if e.Process != nil {
			d.event.Process = e.Process
		}
		if d.due(now) {
			s.write(d, now)
		}
		return
	}
	if o.distinct >= maxPerOwner || !o.take(now) {
		o.lost++
		o.example = e
		return
	}
	d := &deviation{event: e}
	s.seen[e.ID] = s.recent.PushFront(d)
	o.distinct++
	s.write(d, now)
	if s.recent.Len() > maxDistinct {
		s.drop(s.recent.Back(), now)
	}
}

// owner needs mu.
func (s *Sink) owner(container string) *owner {
	o, ok := s.owners[container]
	if ok {
		return o
	}
	if len(s.owners) >= maxOwners { // only of containers that nobody ended
		for name, old := range s.owners {
			if old.distinct == 0 {
				delete(s.owners, name)
				break
			}
		}
	}
	o = &owner{counts: map[record.Dimension]uint64{}, tokens: burst, refilled: s.now()}
	s.owners[container] = o
	return o
}

func (o *owner) take(now time.Time) bool {
	o.tokens = min(burst, o.tokens+now.Sub(o.refilled).Seconds()*rate)
	o.refilled = now
	if o.tokens < 1 {
		return false
	}
	o.tokens--
	return true
}

// drop forgets a deviation after writing what has grown. It needs mu.
func (s *Sink) drop(el *list.Element, now time.Time) {
	d := el.Value.(*deviation)
	if d.event.Count > d.written {
		s.write(d, now)
	}
	s.recent.Remove(el)
	delete(s.seen, d.event.ID)
	if o, ok := s.owners[d.event.Container]; ok {
		o.distinct--
	}
}

// write needs mu.
func (s *Sink) write(d *deviation, now time.Time) {
	d.written, d.at = d.event.Count, now
	d.every = min(max(updateEvery, 2*d.every), updateSlow)
	s.append(d.event)
}

// append needs mu.
func (s *Sink) append(e record.Event) {
	for sub := range s.subscribers {
		if sub.container == "" || sub.container == e.Container || sub.container == e.Name {
			select {
			case sub.ch <- e:
			default: // too slow: the file has it
			}
		}
	}
	if err := s.put(encode(e)); err != nil {
		s.failed++
		s.failure = err
	}
}

// put needs mu.
func (s *Sink) put(line []byte) error {
	now := s.now()
	if s.file == nil || now.Sub(s.looked) >= lookEvery {
		s.looked = now
		var st syscall.Stat_t
		err := syscall.Lstat(s.path, &st)
		if s.file == nil || err != nil || uint64(st.Dev) != s.dev || st.Ino != s.ino {
			if err := s.reopen(); err != nil && s.file == nil {
				return err
			} // a file that was taken away still takes lines until another can be made
		}
	}
	n, err := s.file.Write(line)
	if err == nil && n < len(line) {
		err = errors.New("short write")
	}
	if err != nil {
		return fmt.Errorf("write event: %w", err)
	}
	return nil
}

func encode(e record.Event) []byte {
	for _, limit := range []int{4096, 512, 64} {
		bound(&e, limit)
		line, err := json.Marshal(e)
		if err == nil && len(line) < maxLine {
			return append(line, '\n')
		}
		if limit == 512 {
			e.Process, e.Origins = nil, []record.Origin{}
		}
	}
	// Every string is at most 64 bytes long now and there are no lists.
	panic("events: event has no bounded form")
}

// bound cuts strings and lists. It never changes what others hold.
func bound(e *record.Event, limit int) {
	for _, p := range []*string{&e.Container, &e.Name, &e.Image, &e.Action, &e.Object, &e.Mechanism, &e.Reason, &e.Remedy} {
		*p = cut(*p, limit)
	}
	e.Origins = append([]record.Origin{}, e.Origins[:min(len(e.Origins), max(1, limit/512))]...)
	for i := range e.Origins {
		e.Origins[i].At, e.Origins[i].Text = cut(e.Origins[i].At, limit), cut(e.Origins[i].Text, limit)
	}
	e.Process = boundProcess(e.Process, limit, 5)
}

func boundProcess(p *record.Process, limit, depth int) *record.Process {
	if p == nil || depth == 0 {
		return nil
	}
	q := *p
	q.Exe, q.Comm = cut(q.Exe, limit), cut(q.Comm, limit)
	q.Argv = append([]string(nil), q.Argv[:min(len(q.Argv), 64)]...)
	for i := range q.Argv {
		q.Argv[i] = cut(q.Argv[i], min(256, limit))
	}
	q.Parent = boundProcess(q.Parent, limit, depth-1)
	return &q
}

func cut(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	s = s[:limit-3]
	for len(s) > 0 && !utf8.RuneStart(s[len(s)-1]) {
		s = s[:len(s)-1]
	}
	return s + "…"
}

// update writes counts that have grown.
func (s *Sink) update() {
	defer close(s.done)
	ticker := time.NewTicker(updateEvery / 4)
	defer ticker.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-ticker.C:
			s.Flush(false)
		}
	}
}

// Flush writes what has grown since it was last written: what has waited for
// long enough, or everything.
func (s *Sink) Flush(everything bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for el := s.recent.Front(); el != nil; el = el.Next() {
		d := el.Value.(*deviation)
		if d.event.Count > d.written && (everything || d.due(now)) {
			s.write(d, now)
		}
	}
	for _, o := range s.owners {
		s.sayLost(o, now, everything)
	}
	s.sayFailed()
}

// sayLost needs mu.
func (s *Sink) sayLost(o *owner, now time.Time, everything bool) {
	if o.lost == o.lostSaid || !everything && now.Sub(o.lostAt) < updateEvery {
		return
	}
	o.lostSaid, o.lostAt = o.lost, now
	e := record.Event{
		Time: now, Container: o.example.Container, Name: o.example.Name, Image: o.example.Image,
		Dimension: record.Supervision, Action: "lost", Object: "events", Verdict: record.Reported,
		Mode: o.example.Mode, Mechanism: "events", Origins: []record.Origin{}, Count: o.lost,
		Reason: fmt.Sprintf("the container deviates in more ways than are written; the last was %s %s", o.example.Action, cut(o.example.Object, 200)),
		Remedy: Remedy(record.Supervision, "lost", ""),
	}
	e.ID = ID(&e)
	s.append(e)
}

// sayFailed needs mu.
func (s *Sink) sayFailed() {
	if s.failed == 0 {
		return
	}
	e := record.Event{
		Time: s.now(), Dimension: record.Supervision, Action: "lost", Object: "lines", Verdict: record.Reported,
		Mechanism: "events", Origins: []record.Origin{}, Count: s.failed,
		Reason: cut(fmt.Sprint(s.failure), 1024), Remedy: "make room on the file system of the event file",
	}
	e.ID = ID(&e)
	if s.put(encode(e)) == nil {
		s.failed, s.failure = 0, nil
	}
}

// Counts gives how many deviations of a container there were, by dimension.
func (s *Sink) Counts(container string) map[record.Dimension]uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := map[record.Dimension]uint64{}
	if o, ok := s.owners[container]; ok {
		for d, n := range o.counts {
			counts[d] = n
		}
	}
	return counts
}

// Restore sets counts that an earlier process had reached.
func (s *Sink) Restore(container string, counts map[record.Dimension]uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.owner(container)
	for d, n := range counts {
		o.counts[d] = max(o.counts[d], n)
	}
}

// End writes what has grown of a container that is gone, and forgets it.
func (s *Sink) End(container string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for el := s.recent.Front(); el != nil; {
		next := el.Next()
		if el.Value.(*deviation).event.Container == container {
			s.drop(el, now)
		}
		el = next
	}
	if o, ok := s.owners[container]; ok {
		s.sayLost(o, now, true)
		delete(s.owners, container)
	}
}

// Subscribe gives the lines written from now on, of one container (by ID or
// name) or, empty, of all. Who does not keep up misses lines. The channel is closed
// by stop and when the Sink is.
func (s *Sink) Subscribe(container string) (lines <-chan record.Event, stop func()) {
	sub := &subscriber{container: container, ch: make(chan record.Event, 256)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		close(sub.ch)
		return sub.ch, func() {}
	}
	s.subscribers[sub] = struct{}{}
	return sub.ch, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if _, ok := s.subscribers[sub]; ok {
			delete(s.subscribers, sub)
			close(sub.ch)
		}
	}
}

// Close writes all that has grown and closes the file.
func (s *Sink) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	s.mu.Unlock()
	close(s.stop)
	<-s.done
	s.Flush(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	for sub := range s.subscribers {
		delete(s.subscribers, sub)
		close(sub.ch)
	}
	if s.file == nil {
		return nil
	}
	return s.file.Close()
}
