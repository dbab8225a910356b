package process

import (
	"maps"
	"sync"
	"time"

	"github.com/prov4ml/agent/bpf"
)

// The peak of the RSS sum of a set of trees within a window, from three sources:
//
//   - samples of the sum: never more than the peak;
//   - mm->hiwater_rss of each process, which the kernel keeps for the life of the program: where it grew within the window, the
//     process's own peak lies in the window; where it did not, the process was never above it;
//   - CPU time: a process that did not run in the window did not grow.
//
// So with at most one process that ran, and whose mark grew, the peak is exact: the mark and what the sleeping ones hold. Otherwise
// the largest sample (or mark + the sleeping ones) is a lower bound and the sum of all marks an upper one. The kernel keeps
// hiwater_rss from the inexact value of the per-CPU counters, so "exact" is within counterSlack of each process.
type kernelPeak struct {
	kernel *kernel
	ids    []TreeID
	// pages is the largest sample of this window.
	pages uint64
	// start is each process at the start of the window; its map is kept and emptied.
	start map[processID]processMemory
	// exits of each tree at the start of the window.
	exits map[TreeID]treeExits
	now   []bpf.LiveLiveProcess
}

type processID struct {
	startNanos uint64
	tgid       uint32
}

type processMemory struct {
	mm, rssPages, highestPages, cpuNanos uint64
}

type treeExits struct {
	processes, peakPages uint64
	// torn: one exited between the reading of the living and that of the sums, and may be in both.
	torn bool
}

// The sampler's rate: as often as it can at this share of a core, between the two bounds.
const (
	samplerShare   = 0.002
	minSampleHertz = 1
	maxSampleHertz = 100
	// wakeup is what waking up costs beside the sample itself.
	wakeup = 8 * time.Microsecond
)

// kernelSampler is the goroutine that samples for all peaks. Guarded by kernel.mu, but for done.
type kernelSampler struct {
	peaks map[*kernelPeak]struct{}
	// cost is what a sample of all peaks takes, smoothed.
	cost time.Duration
	// rss is a tree's sum in the sample being taken.
	rss  map[TreeID]uint64
	wake chan struct{}
	done chan struct{}
	wg   sync.WaitGroup
}

func (s *kernelSampler) start(k *kernel) {
	s.peaks, s.rss = map[*kernelPeak]struct{}{}, map[TreeID]uint64{}
	s.wake, s.done = make(chan struct{}, 1), make(chan struct{})
	s.wg.Go(func() { s.run(k) })
}

func (s *kernelSampler) stop() {
	close(s.done)
	s.wg.Wait()
}

func (s *kernelSampler) run(k *kernel) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	timer.Stop()
	for {
		select {
		case <-s.done:
			return
		case <-s.wake:
		case <-timer.C:
		}
		if next, again := s.sample(k); again {
			timer.Reset(next)
		}
	}
}

// sample takes one of every followed tree and says when to take the next.
func (s *kernelSampler) sample(k *kernel) (next time.Duration, again bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(s.peaks) == 0 || k.reasons[groupTask] != "" {
		return 0, false
	}
	began := time.Now()
	clear(s.rss)
	for p := range s.peaks {
		var pages uint64
		for _, id := range p.ids {
			sum, known := s.rss[id]
			if !known {
				// A tree that has gone has no memory.
				if k.trees[id] != nil && k.readLive(id, false) == nil {
					sum = k.live.RssPages
				}
				s.rss[id] = sum
			}
			pages += sum
		}
		p.pages = max(p.pages, pages)
	}
	cost := time.Since(began) + wakeup
	if s.cost == 0 {
		s.cost = cost
	}
	s.cost += (cost - s.cost) / 8
	return time.Duration(float64(time.Second) / s.hertz()), true
}

func (s *kernelSampler) hertz() float64 {
	if s.cost <= 0 {
		return maxSampleHertz
	}
	return min(max(samplerShare/s.cost.Seconds(), minSampleHertz), maxSampleHertz)
}

// NewPeak implements Probe.
func (k *kernel) NewPeak(ids []TreeID) Peak {
	k.mu.Lock()
	defer k.mu.Unlock()
	p := &kernelPeak{
		kernel: k, ids: append([]TreeID(nil), ids...),
		start: map[processID]processMemory{}, exits: map[TreeID]treeExits{},
	}
	k.readings, k.processes = k.readings[:0], k.processes[:0]
	// An error leaves the window without a start: no bound is known then, and the reading says so.
	_ = k.readPeak(p, &PeakReading{})
	k.sampler.peaks[p] = struct{}{}
	select {
	case k.sampler.wake <- struct{}{}:
	default:
	}
	return p
}

// SetTrees implements Peak.
func (p *kernelPeak) SetTrees(ids []TreeID) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.ids = append(p.ids[:0], ids...)
}

// Close implements Peak.
func (p *kernelPeak) Close() {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	delete(p.kernel.sampler.peaks, p)
}

// readPeak ends the window, reads its peak and starts the next.
func (k *kernel) readPeak(p *kernelPeak, dst *PeakReading) error {
	if k.reasons[groupTask] != "" {
		return nil
	}
	p.now = p.now[:0]
	var exited treeExits
	var rss uint64
	for _, id := range p.ids {
		if k.trees[id] == nil {
			continue // released in the window
		}
		r, err := k.readingOf(id)
		if err != nil {
			return err
		}
		p.now = append(p.now, r.processes...)
		rss += r.living.RssPages
		// A tree made in the window begins at 0.
		sums, before := &r.sums, p.exits[id]
		exited.torn = exited.torn || !r.whole
		exited.processes += sums.ProcessesExited - before.processes
		exited.peakPages += sums.ExitedPeakPages - before.peakPages
		p.exits[id] = treeExits{processes: sums.ProcessesExited, peakPages: sums.ExitedPeakPages}
	}
	bounds := p.bounds(exited)
	lower := max(p.pages, rss, bounds.lower)
	dst.SampleHertz = k.sampler.hertz()
	upper := bounds.upper + bounds.ran*k.counterSlack()
	// A sample is read from exact counters, the marks are not: one that reaches the marks alone is no proof.
	dst.Exact = bounds.exact || lower >= upper
	if dst.Exact {
		lower = max(lower, bounds.upper)
	}
	dst.Bytes = lower * k.pageBytes
	dst.UpperBytes = max(lower, upper) * k.pageBytes
	p.pages = rss
	clear(p.start)
	for i := range p.now {
		e := &p.now[i]
		p.start[processID{e.Id.StartNanos, e.Id.Tgid}] = processMemory{e.Mm, e.RssPages, max(e.HiwaterPages, e.RssPages), e.CpuNanos}
	}
	return nil
}

// readingOf is the snapshot's reading of a tree, or one made now.
func (k *kernel) readingOf(id TreeID) (*reading, error) {
	for i := range k.readings {
		if k.readings[i].id == id {
			return &k.readings[i], nil
		}
	}
	k.readings = append(k.readings, reading{})
	r := &k.readings[len(k.readings)-1]
	return r, k.read(id, true, r)
}

type peakBounds struct {
	lower, upper, ran uint64
	exact             bool
}

// bounds compares each process with what it was at the start of the window.
func (p *kernelPeak) bounds(exited treeExits) peakBounds {
	var b peakBounds
	var sleeping, grown, stayed uint64
	tight := true
	for i := range p.now {
		e := &p.now[i]
		highest := max(e.HiwaterPages, e.RssPages)
		before, known := p.start[processID{e.Id.StartNanos, e.Id.Tgid}]
		if known {
			stayed++
		}
		switch {
		case known && e.CpuNanos == before.cpuNanos:
			b.upper += max(before.rssPages, e.RssPages)
			sleeping += min(before.rssPages, e.RssPages)
			tight = tight && before.rssPages == e.RssPages
			continue
		case !known || e.Mm != before.mm:
			// Made in the window, or a new program since: its mark is the window's. What it was before exec may be older.
			b.upper += max(highest, e.BeforeExecPages)
			grown = max(grown, highest)
			tight = tight && highest >= e.BeforeExecPages
		case highest > before.highestPages:
			b.upper += highest
			grown = max(grown, highest)
		default:
			b.upper += before.highestPages
			tight = tight && e.RssPages == before.highestPages
		}
		b.ran++
	}
	if exited.processes == 1 && !exited.torn && stayed == uint64(len(p.start)) {
		// The only one that has exited was made in the window, and so was its peak.
		grown = max(grown, exited.peakPages)
	}
	b.lower = grown + sleeping
	b.exact = tight && b.ran <= 1 && exited.processes == 0 && !exited.torn && stayed == uint64(len(p.start))
	// Those that have exited: each was at most at its own peak, which may be older than the window.
	b.upper += exited.peakPages
	b.ran += exited.processes
	if exited.torn {
		// One that was exiting may be neither among the living nor among the exited yet.
		gone := maps.Clone(p.start)
		for i := range p.now {
			delete(gone, processID{p.now[i].Id.StartNanos, p.now[i].Id.Tgid})
		}
		for _, before := range gone {
			b.upper += before.highestPages
		}
	}
	return b
}

// counterSlack is how far the kernel's inexact sum of the three RSS counters of one process may be below the exact one, in pages:
// each CPU keeps less than percpu_counter_batch (lib/percpu_counter.c) to itself.
func (k *kernel) counterSlack() uint64 {
	batch := max(32, 2*k.cpus)
	return uint64(3 * k.cpus * batch)
}
