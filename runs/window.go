package runs

import (
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/record"
)

// readings collects the readings of one record in three pieces of memory instead of a hundred.
type readings struct {
	block    []record.Reading
	integers []record.Reading_Integer
	reals    []record.Reading_Real
	list     []*record.Reading
}

// expected is how many readings a record has, and some.
const expected = 64

func newReadings() *readings {
	return &readings{
		block:    make([]record.Reading, 0, expected),
		integers: make([]record.Reading_Integer, 0, expected),
		reals:    make([]record.Reading_Real, 0, expected),
		list:     make([]*record.Reading, 0, expected),
	}
}

func (r *readings) add(name string, state record.State, source record.Source) *record.Reading {
	if len(r.block) == cap(r.block) {
		// The full block stays where it is: the list points into it.
		r.block = make([]record.Reading, 0, expected)
	}
	r.block = r.block[:len(r.block)+1]
	reading := &r.block[len(r.block)-1]
	reading.Name, reading.State, reading.Source = name, state, source
	r.list = append(r.list, reading)
	return reading
}

func (r *readings) integer(name string, value uint64, state record.State, source record.Source) {
	if len(r.integers) == cap(r.integers) {
		r.integers = make([]record.Reading_Integer, 0, expected)
	}
	r.integers = append(r.integers, record.Reading_Integer{Integer: int64(min(value, math.MaxInt64))})
	r.add(name, state, source).Value = &r.integers[len(r.integers)-1]
}

func (r *readings) real(name string, value float64, state record.State, source record.Source) {
	if len(r.reals) == cap(r.reals) {
		r.reals = make([]record.Reading_Real, 0, expected)
	}
	r.reals = append(r.reals, record.Reading_Real{Real: value})
	r.add(name, state, source).Value = &r.reals[len(r.reals)-1]
}

func (r *readings) boolean(name string, value bool, state record.State, source record.Source) {
	r.add(name, state, source).Value = &record.Reading_Boolean{Boolean: value}
}

// percent adds a host value; without one it tells the reason.
func (r *readings) percent(rec *record.LogCall, name string, value host.Value) {
	if value.State == record.State_OK {
		r.real(name, value.Percent, value.State, record.Source_HOST)
		return
	}
	r.add(name, value.State, record.Source_HOST).Reason = value.Reason
	rec.Unavailable = append(rec.Unavailable, value.Reason)
}

// fill puts the values of window w, which ends at s.now, into rec, and what adds up into delta.
//
// A reading that could not be taken has a state and no value. The reason of a group of readings stands once, in rec.Unavailable.
func (t *Tracker) fill(s *subject, w *window, rec *record.LogCall, delta *sums) {
	r := newReadings()
	r.percent(rec, record.MemoryUsage, t.host.Memory())
	r.percent(rec, record.DiskUsage, t.host.Disk(s.key.PID, ""))
	for _, path := range t.host.Paths() {
		r.percent(rec, record.DiskUsage+"."+path, t.host.Disk(s.key.PID, path))
	}
	usage, times := t.host.CPU(w.base.cpu)
	r.percent(rec, record.CPUUsage, usage)
	s.now.cpu = times

	if s.unread != "" {
		rec.Unavailable = append(rec.Unavailable, s.unread)
	}
	rec.WindowIncomplete = w.unread || s.tree != nil && !s.now.known
	if w.unread {
		rec.Unavailable = append(rec.Unavailable, "the window before this one could not be read: its values are in this one")
	}
	r.memoryCgroup(rec, &s.now.cgroup, &w.base.cgroup)
	if s.now.known && w.base.known {
		t.fillTree(s, w, rec, r, delta)
	}

	gpu, missing := t.config.GPUs.Window(s.key, rec.StartUnixNanos, rec.EndUnixNanos)
	rec.Unavailable = append(rec.Unavailable, missing...)
	rec.Readings = append(r.list, gpu...)
}

// fillTree puts in what the tree did between w.base and s.now.
func (t *Tracker) fillTree(s *subject, w *window, rec *record.LogCall, r *readings, delta *sums) {
	now, before := &s.now, &w.base
	lost := now.loss != before.loss
	if lost {
		rec.WindowIncomplete = true
		rec.Unavailable = append(rec.Unavailable, fmt.Sprintf("lost in this window: %s", s.snapshot.Incomplete))
	}
	rec.Unavailable = append(rec.Unavailable, s.groupReasons()...)

	for i := range quantities {
		q := &quantities[i]
		group := groupOf(&s.snapshot, q.group)
		if !measured(&s.snapshot, q.group) {
			r.add(q.name, group.State, group.Source)
			continue
		}
		value := grown(q.of(now), q.of(before))
		delta.measured |= 1 << i
		delta.values[i] = value
		if q.nanos {
			r.real(q.name, time.Duration(min(value, math.MaxInt64)).Seconds(), group.State, group.Source)
		} else {
			r.integer(q.name, value, group.State, group.Source)
		}
	}

	if group := &s.snapshot.Dirty; measured(&s.snapshot, dirty) {
		r.integer(record.DiskPendingWriteBytes, now.pending(), group.State, group.Source)
	} else {
		r.add(record.DiskPendingWriteBytes, group.State, group.Source)
	}

	if measured(&s.snapshot, latency) {
		for _, h := range [...]*record.Histogram{
			histogram(record.DiskReadLatency, &now.tree.ReadLatency, &before.tree.ReadLatency, grown(now.tree.ReadLatencyNanos, before.tree.ReadLatencyNanos)),
			histogram(record.DiskWriteLatency, &now.tree.WriteLatency, &before.tree.WriteLatency, grown(now.tree.WriteLatencyNanos, before.tree.WriteLatencyNanos)),
		} {
			if h != nil {
				rec.Histograms = append(rec.Histograms, h)
			}
		}
	}
	group := &s.snapshot.Latency
	for _, l := range []struct {
		p50, p99    string
		now, before *[64]uint64
	}{
		{record.DiskReadLatencyP50, record.DiskReadLatencyP99, &now.tree.ReadLatency, &before.tree.ReadLatency},
		{record.DiskWriteLatencyP50, record.DiskWriteLatencyP99, &now.tree.WriteLatency, &before.tree.WriteLatency},
	} {
		if !measured(&s.snapshot, latency) {
			r.add(l.p50, group.State, group.Source)
			r.add(l.p99, group.State, group.Source)
			continue
		}
		if half, any := percentile(l.now, l.before, 0.5); any {
			most, _ := percentile(l.now, l.before, 0.99)
			r.real(l.p50, half, group.State, group.Source)
			r.real(l.p99, most, group.State, group.Source)
			continue
		}
		const reason = "no request completed in the window"
		r.add(l.p50, record.State_ABSENT, group.Source).Reason = reason
		r.add(l.p99, record.State_ABSENT, group.Source).Reason = reason
	}

	if group := &s.snapshot.Memory; measured(&s.snapshot, memory) {
		w.peak.floor(now.gauges.RSSBytes)
		s.totalPeak.floor(now.gauges.RSSBytes)
		r.integer(record.MemoryRSSBytes, now.gauges.RSSBytes, group.State, group.Source)
		r.peak(&w.peak, group.State, group.Source)
		if w.peak.hertz > 0 {
			r.real(record.MemoryRSSSampleHertz, w.peak.hertz, group.State, group.Source)
		}
		r.integer(record.MemorySwapBytes, now.gauges.SwapBytes, group.State, group.Source)
		r.integer(record.Processes, now.gauges.Processes, group.State, group.Source)
	} else {
		for _, name := range []string{record.MemoryRSSBytes, record.MemoryRSSPeakBytes, record.MemorySwapBytes, record.Processes} {
			r.add(name, group.State, group.Source)
		}
	}
	r.source(record.SourceDisk, s.snapshot.Disk.Source)
	r.source(record.SourceMemory, s.snapshot.Memory.Source)
}

// groupReasons says why groups are not OK, each reason once with all the groups that it is about.
func (s *subject) groupReasons() []string {
	var reasons, about []string
	for g := disk; g <= runQueue; g++ {
		group := groupOf(&s.snapshot, g)
		if group.State == record.State_OK {
			continue
		}
		if i := slices.Index(reasons, group.Reason); i >= 0 {
			about[i] += ", " + groupNames[g]
			continue
		}
		reasons, about = append(reasons, group.Reason), append(about, groupNames[g])
	}
	for i := range reasons {
		reasons[i] = about[i] + ": " + reasons[i]
	}
	return reasons
}

func (r *readings) peak(p *peak, state record.State, source record.Source) {
	r.integer(record.MemoryRSSPeakBytes, p.bytes, state, source)
	r.boolean(record.MemoryRSSPeakExact, p.exact(), state, source)
	if !p.unbounded {
		r.integer(record.MemoryRSSPeakUpperBytes, p.upper, state, source)
	}
}

// sourceNames are the values of source.* on a span.
var sourceNames = map[record.Source]string{
	record.Source_EBPF: "ebpf", record.Source_CGROUP: "cgroup", record.Source_PROCFS: "procfs", record.Source_NVML: "nvml", record.Source_HOST: "host",
}

func (r *readings) source(name string, source record.Source) {
	if text, known := sourceNames[source]; known {
		r.add(name, record.State_OK, source).Value = &record.Reading_Text{Text: text}
	}
}
