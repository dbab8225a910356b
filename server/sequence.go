package server

import (
	"slices"
	"sync"
	"time"

	"github.com/prov4ml/agent/probes"
)

// maxSeqWait bounds how long a unary call waits for the process's streamed calls before it: they travel on another
// connection, and the order of the windows should be the order of the script.
const maxSeqWait = 50 * time.Millisecond

// maxAhead bounds the calls remembered beyond a missing one.
const maxAhead = 4096

// sequence knows which calls of one process have been measured, by the count that the client gives them.
type sequence struct {
	key probes.Process
	// refs counts the process's connections; guarded by sequences.mu.
	refs int

	mu sync.Mutex
	// streams counts the open streams, fresh the connections that have not said yet what they are.
	streams, fresh int
	// seen: every call up to this one has been measured, or is waited for no more.
	seen uint64
	// ahead are the measured ones beyond a missing one.
	ahead map[uint64]struct{}
	// rings are those of the open streams that have one: it may have calls that nobody has looked for yet. They have no seq.
	rings []*streamed
	// changed is closed when something that waiters look at changes; nil = nobody waits.
	changed chan struct{}
}

// await waits until the calls before seq have been measured, at most limit, and only while some connection may bring them.
// waited says that it had to, complete that they have.
func (q *sequence) await(seq uint64, limit time.Duration) (waited, complete bool) {
	if seq < 2 {
		return false, true
	}
	var timeout <-chan time.Time
	for {
		q.mu.Lock()
		if q.seen >= seq-1 || q.streams+q.fresh == 0 {
			q.mu.Unlock()
			return waited, true
		}
		if q.changed == nil {
			q.changed = make(chan struct{})
		}
		changed := q.changed
		q.mu.Unlock()
		if timeout == nil {
			timer := time.NewTimer(limit)
			defer timer.Stop()
			timeout = timer.C
		}
		waited = true
		select {
		case <-changed:
		case <-timeout:
			// What is missing now was dropped by the client, or is out of order; later calls don't wait for it again.
			q.mu.Lock()
			q.advance(seq - 1)
			q.mu.Unlock()
			return waited, false
		}
	}
}

// measured notes that call seq has been measured; 0 = the client does not count.
func (q *sequence) measured(seq uint64) {
	if seq == 0 {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if seq <= q.seen {
		return
	}
	switch {
	case q.seen == 0 && len(q.ahead) == 0, q.streams+q.fresh == 0, seq == q.seen+1, len(q.ahead) >= maxAhead:
		// The first call heard of may be any: the agent may be younger than the process. Without a stream nothing is under way
		// elsewhere.
		q.advance(seq)
	default:
		if q.ahead == nil {
			q.ahead = map[uint64]struct{}{}
		}
		q.ahead[seq] = struct{}{}
	}
}

// advance raises seen to at least seq. The caller holds mu.
func (q *sequence) advance(seq uint64) {
	if seq > q.seen {
		for s := range q.ahead {
			if s <= seq {
				delete(q.ahead, s)
			}
		}
		q.seen = seq
	}
	for {
		if _, ok := q.ahead[q.seen+1]; !ok {
			break
		}
		q.seen++
		delete(q.ahead, q.seen)
	}
	q.notify()
}

// drainRings measures what is in the rings: it was made before a call that comes now.
func (q *sequence) drainRings() {
	q.mu.Lock()
	rings := slices.Clone(q.rings)
	q.mu.Unlock()
	for _, r := range rings {
		r.drainRing()
	}
}

func (q *sequence) addRing(r *streamed) {
	q.mu.Lock()
	q.rings = append(q.rings, r)
	q.mu.Unlock()
}

func (q *sequence) removeRing(r *streamed) {
	q.mu.Lock()
	q.rings = slices.DeleteFunc(q.rings, func(other *streamed) bool { return other == r })
	q.mu.Unlock()
}

func (q *sequence) notify() {
	if q.changed != nil {
		close(q.changed)
		q.changed = nil
	}
}

// settle says that a new connection has brought its first request.
func (q *sequence) settle() {
	q.mu.Lock()
	q.fresh--
	q.notify()
	q.mu.Unlock()
}

// stream counts open streams up or down.
func (q *sequence) stream(delta int) {
	q.mu.Lock()
	q.streams += delta
	q.notify()
	q.mu.Unlock()
}

// sequences holds those of the processes that are connected.
type sequences struct {
	mu        sync.Mutex
	byProcess map[probes.Process]*sequence
}

func (s *sequences) attach(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	q := s.byProcess[c.caller.Process]
	if q == nil {
		q = &sequence{key: c.caller.Process}
		s.byProcess[q.key] = q
	}
	q.refs++
	q.mu.Lock()
	q.fresh++
	q.mu.Unlock()
	c.seq = q
}

func (s *sequences) release(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.seq.refs--; c.seq.refs == 0 {
		delete(s.byProcess, c.seq.key)
	}
	if !c.asked.Swap(true) {
		c.seq.settle()
	}
}
