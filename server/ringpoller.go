package server

import (
	"sync"
	"time"
)

// How often the rings are looked at: a client's next call is expected no sooner than a sixteenth of the time that has passed since the
// last one. So a call is read late by a sixteenth of a step at most, or 2 ms where that is more, and an idle training costs four looks a
// second.
const (
	ringLooks    = 16
	ringShortest = 2 * time.Millisecond
	ringLongest  = 250 * time.Millisecond
)

// ringPoller looks at all rings, and wakes whoever reads the one that has something.
type ringPoller struct {
	mu    sync.Mutex
	wakes map[*ring]chan<- struct{}
	// last is when there last was something.
	last time.Time
	// added wakes the poller itself.
	added chan struct{}
	// shortest is ringShortest; tests change it.
	shortest time.Duration
}

func newRingPoller() *ringPoller {
	return &ringPoller{wakes: map[*ring]chan<- struct{}{}, added: make(chan struct{}, 1), shortest: ringShortest}
}

// add follows a ring until remove. wake has room for one message, and gets one when the ring may have calls.
func (p *ringPoller) add(r *ring, wake chan<- struct{}) {
	p.mu.Lock()
	p.wakes[r] = wake
	p.last = time.Now()
	p.mu.Unlock()
	select {
	case p.added <- struct{}{}:
	default:
	}
}

// remove returns when nobody looks at the ring any more.
func (p *ringPoller) remove(r *ring) {
	p.mu.Lock()
	delete(p.wakes, r)
	p.mu.Unlock()
}

// run looks until done is closed.
func (p *ringPoller) run(done <-chan struct{}) {
	timer := time.NewTimer(ringLongest)
	defer timer.Stop()
	for {
		select {
		case <-done:
			return
		case <-p.added:
		case <-timer.C:
		}
		if pause, any := p.look(time.Now()); any {
			timer.Reset(pause)
		}
	}
}

// look looks once, and says when to look again; any is false when there is no ring.
func (p *ringPoller) look(now time.Time) (pause time.Duration, any bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for r, wake := range p.wakes {
		if !r.peek() {
			continue
		}
		p.last = now
		select {
		case wake <- struct{}{}:
		default:
		}
	}
	return max(min(now.Sub(p.last)/ringLooks, ringLongest), p.shortest), len(p.wakes) > 0
}
