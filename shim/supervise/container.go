package supervise

import (
	"slices"
	"sync"
	"time"

	"github.com/declarun/declarun/seccompgen/filter"
	"github.com/declarun/declarun/shim/plan"
	"github.com/declarun/declarun/shim/record"
	"github.com/declarun/declarun/shim/wire"
)

// judge is filter.Verdicts, or a test's.
type judge interface {
	Judge(filter.Call, filter.Caller) filter.Decision
	Name(filter.Call) string
	UntilLoop(filter.Call) bool
}

// container is one supervised container. What is above mu never changes.
type container struct {
	token    string
	key      wire.Key
	plan     *plan.Plan
	verdicts judge
	facts    Facts
	prepared time.Time

	permitted permitted
	share     share
	loops     *loops // nil where no call is taken away by processes; set with Guard

	mu        sync.Mutex
	state     stored
	pidfd     int // of init; 0 before Guard
	gone      bool
	busy      bool // a Guard request is at work on it
	running   bool // its own first program was executed
	lost      bool // its notify descriptor was closed while it ran
	listeners map[uint64]*listener
	announced []announcement
}

// announcement is a runc exec that was announced and has not been seen yet.
type announcement struct {
	args   []string
	health bool
	at     time.Time
}

const (
	announcementsKept = 256
	announcementLife  = 2 * time.Minute
)

// notifies tells whether the container's filter notifies anybody.
func (c *container) notifies() bool {
	v, ok := c.verdicts.(*filter.Verdicts)
	return !ok || v != nil
}

// mode is enforce where none was decided.
func (c *container) mode(d record.Dimension) record.Mode {
	if m := c.plan.Mode[d]; m == record.Audit || m == record.Off {
		return m
	}
	return record.Enforce
}

func (c *container) phase() record.Phase {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state.Phase
}

func (c *container) guarded() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return !c.state.Guarded.IsZero() && !c.gone
}

func (c *container) announce(a announcement) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(a.at)
	if len(c.announced) == announcementsKept {
		c.announced = c.announced[1:]
	}
	c.announced = append(c.announced, a)
}

// expire needs mu.
func (c *container) expire(now time.Time) {
	c.announced = slices.DeleteFunc(c.announced, func(a announcement) bool { return now.Sub(a.at) > announcementLife })
}

// claim matches the first command that an exec really runs with what was
// announced. Only a health check that was announced, and is run as the plan
// declares it, is one; everything else is somebody's doing.
func (c *container) claim(argv []string, now time.Time) (id record.Identity, announced bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.expire(now)
	for i, a := range c.announced {
		if a.args != nil && !slices.Equal(a.args, argv) {
			continue
		}
		c.announced = slices.Delete(c.announced, i, i+1)
		if a.health {
			return record.HealthCheck, true
		}
		return record.Operator, true
	}
	return record.Operator, false
}

// declares tells whether a port is declared: "tcp", "sctp"…
func declares(p *plan.Plan, proto string, port uint16) bool {
	return within(p.Network.Listen, proto, port)
}

func within(list []plan.Listen, proto string, port uint16) bool {
	return slices.ContainsFunc(list, func(l plan.Listen) bool {
		return l.Proto == proto && l.Port != 0 && port >= l.Port && port <= max(l.Port, l.Last)
	})
}

// nearestPorts are the origins of what is declared instead of some port.
func nearestPorts(p *plan.Plan) []record.Origin {
	var origins []record.Origin
	for _, l := range p.Network.Listen {
		origins = append(origins, l.Origins...)
	}
	return origins
}

// isMain tells whether a program is one that serves. Where the plan names none, all are.
func isMain(p *plan.Plan, exe string) bool {
	some := false
	for _, process := range p.Processes {
		if process.Main {
			if process.Path == exe {
				return true
			}
			some = true
		}
	}
	return !some
}

// onlyStarts tells whether the plan has a program for starting alone.
func onlyStarts(p *plan.Plan, exe string) bool {
	starts := false
	for _, process := range p.Processes {
		if process.Path != exe || process.Identity == record.HealthCheck {
			continue
		}
		if process.Main || process.Phase != record.Starting {
			return false
		}
		starts = true
	}
	return starts
}
