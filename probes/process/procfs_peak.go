package process

import "time"

const (
	// sampleShare is how many times its own cost a sample of memory is apart from the next: 0.2 % of a core.
	sampleShare = 500
	fastest     = 10 * time.Millisecond
	slowest     = time.Second
)

// procPeak follows the RSS of a set of trees. The probe's mu guards it.
type procPeak struct {
	probe *procfs
	ids   []TreeID
	// most is the largest sum seen since begun, samples how often it was looked at.
	most    uint64
	samples int
	begun   time.Time
	// highest is the sum of the processes' own peaks at begun.
	highest uint64
	// unsettled says that processes of the set have come or gone, or may have, so that the sum of their own peaks bounds nothing.
	unsettled bool
}

// NewPeak starts following. One goroutine samples for all peaks while there is one; the last Close waits for it.
func (p *procfs) NewPeak(ids []TreeID) Peak {
	p.mu.Lock()
	defer p.mu.Unlock()
	follow := &procPeak{probe: p, ids: append([]TreeID(nil), ids...), begun: p.now(), unsettled: true}
	if p.closed {
		return follow
	}
	p.peaks[follow] = struct{}{}
	if p.sampler == nil {
		p.sampler = &procSampler{stop: make(chan struct{}), done: make(chan struct{})}
		go p.sample(p.sampler)
	}
	return follow
}

// SetTrees changes the set.
func (f *procPeak) SetTrees(ids []TreeID) {
	f.probe.mu.Lock()
	defer f.probe.mu.Unlock()
	f.ids = append(f.ids[:0], ids...)
	f.unsettled = true
}

// Close stops following.
func (f *procPeak) Close() {
	p := f.probe
	p.mu.Lock()
	delete(p.peaks, f)
	stop := func() {}
	if len(p.peaks) == 0 {
		stop = p.stopSampler()
	}
	p.mu.Unlock()
	stop()
}

// unsettle says that the members of a tree have changed. The caller holds mu.
func (p *procfs) unsettle(tree *procTree) {
	for f := range p.peaks {
		if asked(f.ids, tree.id) {
			f.unsettled = true
		}
	}
}

// take reads the peak and starts it anew. The members have just been read; fresh says that new ones were looked for as well.
//
// VmHWM is a process's largest RSS in its life. Where the same processes were there all the time, the sum of theirs bounds the
// peak of the sum; of a process alone, a mark that has risen is the peak itself. exec begins a new mark, which bounds nothing of
// what was before.
func (f *procPeak) take(p *procfs, fresh bool) PeakReading {
	m := p.memoryOf(f.ids)
	settled := !f.unsettled && fresh && !m.ignoring && m.highest >= f.highest
	f.most = max(f.most, m.rss)
	if settled && m.processes == 1 && m.highest > f.highest {
		f.most = max(f.most, m.highest)
	}
	f.samples++
	reading := PeakReading{Bytes: f.most}
	now := p.now()
	if window := now.Sub(f.begun).Seconds(); window > 0 {
		reading.SampleHertz = float64(f.samples) / window
	}
	if settled {
		reading.UpperBytes = max(m.highest, f.most)
		reading.Exact = reading.UpperBytes == reading.Bytes
	}
	f.most, f.samples, f.begun, f.highest, f.unsettled = m.rss, 0, now, m.highest, !fresh
	return reading
}

// procMemory is what the living members of a set of trees hold.
type procMemory struct {
	rss, highest uint64
	processes    int
	// ignoring says that one of them ignores SIGCHLD: it may have had children that nobody saw.
	ignoring bool
}

func (p *procfs) memoryOf(ids []TreeID) procMemory {
	var sum procMemory
	for _, m := range p.members {
		if !m.exited && asked(ids, m.tree.id) {
			sum.rss += m.rss
			sum.highest += m.highest
			sum.processes++
			sum.ignoring = sum.ignoring || m.reapsNone
		}
	}
	return sum
}

// procSampler is the goroutine that looks at memory between snapshots.
type procSampler struct{ stop, done chan struct{} }

// sample looks at all followed trees as often as its own cost allows. Each look also renews the last reading of every member.
func (p *procfs) sample(s *procSampler) {
	defer close(s.done)
	timer := time.NewTimer(fastest)
	defer timer.Stop()
	for {
		select {
		case <-s.stop:
			return
		case <-timer.C:
		}
		begin := time.Now()
		p.mu.Lock()
		// Without a list no new process is found; the next sample tries again.
		_, _ = p.listIfDue()
		p.refresh(nil)
		for f := range p.peaks {
			f.most = max(f.most, p.memoryOf(f.ids).rss)
			f.samples++
		}
		p.mu.Unlock()
		timer.Reset(min(max(sampleShare*time.Since(begin), fastest), slowest))
	}
}

// stopSampler tells the sampler to end. The caller holds mu, and calls the function that waits for it without mu.
func (p *procfs) stopSampler() (wait func()) {
	s := p.sampler
	if s == nil {
		return func() {}
	}
	p.sampler = nil
	close(s.stop)
	return func() { <-s.done }
}
