package supervise

import (
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"sync"
	"time"
)

// hold is the worker's side of what monitor and worker both keep open. When the
// monitor is gone it starts another and hands everything over.
type hold struct {
	table       *table
	executable  string
	monitorArgs []string
	told        chan string // what the monitor says: stop, handover

	mu      sync.Mutex // of link, and of the order of table and link
	link    *link      // nil while there is no monitor
	next    *link      // of a monitor that takes over
	leaving bool
}

// offer makes the process at the other end of l the monitor. The old one is
// ended first.
func (h *hold) offer(l *link) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.next != nil || h.leaving {
		l.close()
		return
	}
	h.next = l
	if h.link != nil {
		h.link.conn.SetReadDeadline(time.Unix(1, 0)) // wakes listen
	}
}

// keep takes the file over, in both processes once it returns.
func (h *hold) keep(key, meta string, file *os.File) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.put(key, meta, file)
	h.send(message{Op: opKeep, Key: key, Meta: meta}, file)
}

func (h *hold) note(key, meta string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.put(key, meta, nil)
	h.send(message{Op: opNote, Key: key, Meta: meta}, nil)
}

func (h *hold) drop(key string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.table.drop(key)
	h.send(message{Op: opDrop, Key: key}, nil)
}

// send needs mu. A monitor that does not take messages is replaced.
func (h *hold) send(m message, file *os.File) {
	if h.link == nil {
		return // the next one gets the table
	}
	if err := h.link.send(m, file); err != nil {
		log.Printf("declarund: worker: tell monitor: %v", err)
		h.link.conn.SetReadDeadline(time.Unix(1, 0)) // wakes listen, which replaces it
	}
}

// alive tells the monitor that this worker works.
func (h *hold) alive() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.send(message{Op: opAlive}, nil)
}

// listen reads what the monitor says, and replaces it when it is gone.
func (h *hold) listen() {
	pause := 50 * time.Millisecond
	for {
		began := time.Now()
		err := h.hear()
		h.mu.Lock()
		l, leaving, offered := h.link, h.leaving, h.next != nil
		h.link = nil
		h.mu.Unlock()
		if leaving {
			return
		}
		log.Printf("declarund: worker: monitor is gone (%v) or replaced", err)
		if l != nil {
			if offered {
				l.kill()
			}
			l.end(time.Second)
			l.close()
		}
		if time.Since(began) > time.Minute {
			pause = 50 * time.Millisecond
		}
		for {
			if err = h.startMonitor(); err == nil {
				break
			}
			log.Printf("declarund: worker: %v", err)
			time.Sleep(pause)
			pause = min(2*pause, 5*time.Second)
		}
	}
}

func (h *hold) hear() error {
	h.mu.Lock()
	l := h.link
	h.mu.Unlock()
	if l == nil {
		return io.EOF
	}
	for {
		m, file, err := l.recv()
		if err != nil {
			return err
		}
		if file != nil {
			file.Close()
		}
		if m.Op == opStop || m.Op == opHandover {
			select {
			case h.told <- m.Op:
			default:
			}
		}
	}
}

func (h *hold) startMonitor() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.leaving {
		return nil
	}
	if l := h.next; l != nil {
		h.next = nil
		if err := h.table.hand(l); err != nil {
			l.kill() // it never began
			l.close()
			return err
		}
		h.link = l
		return nil
	}
	if h.monitorArgs == nil {
		return errors.New("start monitor: not told how")
	}
	cmd, l, err := start(h.executable, h.monitorArgs, nil)
	if err != nil {
		return fmt.Errorf("start monitor: %w", err)
	}
	go cmd.Wait()
	if err := h.table.hand(l); err != nil {
		cmd.Process.Kill()
		l.close()
		return err
	}
	h.link = l
	return nil
}

// leave makes the end of the monitor nothing to act on.
func (h *hold) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.leaving = true
}
