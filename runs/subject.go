package runs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs/state"
)

// functions is one more than the largest record.Function.
const functions = int(record.Function_RUN_END) + 1

// subject is a process that has said hello or logged.
type subject struct {
	// Fixed when it is made.
	key   probes.Process
	store string // its name in the store
	// layout is sampleLayout's.
	layout uint64
	tree   *tree // nil when it could not be followed
	// untracked says why tree is nil.
	untracked string
	// heard wakes the watcher.
	heard chan struct{}
	// holds counts the connections that may still have calls of the process in their buffers.
	holds atomic.Int64

	mu sync.Mutex // guards all below

	// snapshot and now are what measure read last; their memory is reused.
	snapshot  process.Snapshot
	now       sample
	enclosing []probes.Process
	// unread says why the last snapshot failed; empty = it did not.
	unread string

	windows [functions]window
	// edge is the latest end of any window: wall time does not go back behind it.
	edge int64

	launch    launch
	identity  *record.Process // nil until the first record
	contexts  contexts
	steps     steps
	costs     map[costKey]*spent
	epochs    map[costKey]*epochSum // by label and context; the function is unset
	total     sums
	totalPeak peak

	// epochsFull says that epochs had no room for a further set.
	epochsFull bool
	// lostBatches since the latest epoch may be of a set that is not in epochs yet.
	lostBatches uint64

	// events are for the next record; failure is why the run fails, empty = it does not, as far as is known.
	events  []*record.Event
	failure string

	attributes map[string]string
	metrics    []*record.LoggedMetric
	// metricsDropped counts those that found metrics full since the last record.
	metricsDropped uint64

	opened     bool // its first record is out
	unfinished bool // something was logged since the last RUN_END
	ending     bool // RUN_END is due at endBy, or when nothing is pending
	endBy      time.Time
	finished   bool // given up: not to be used
	left       bool // lives on, and the next agent takes it up
	called     time.Time
	committed  func(context.Context) (int64, error) // waits for the latest record
}

// window is where one function's next window starts, and what the counters stood at then.
type window struct {
	nextSeq uint64
	// start is the wall clock in ns, the end of the window before.
	start int64
	base  sample
	// kept is base as it is stored: made once, stored with each record.
	kept *state.Sample
	peak peak
	// first: the window starts when the agent first heard of the process. gap: the agent did not count over the whole of it.
	first, gap bool
	// unread: the window before it could not be read; its values are in this one.
	unread bool
}

// start opens the first windows at what was just measured.
func (s *subject) start(hello bool) {
	kept := s.packNow()
	for i := range s.windows {
		w := &s.windows[i]
		w.start, w.base, w.kept, w.first = s.edge, s.now, kept, !hello
		w.peak.floor(s.now.gauges.RSSBytes)
	}
}

// measure reads the tree, and the trees inside it, into s.now, and moves the edge to the present. With readPeak the peak since the
// last such reading goes into each function's window. The caller holds s.mu, or is the only one to know s.
func (t *Tracker) measure(s *subject, readPeak bool) {
	s.now = sample{cpu: s.now.cpu, cgroup: t.cgroup.Read(s.key.PID, &s.now.cgroup)}
	s.unread = s.untracked
	if s.tree != nil {
		var follow process.Peak
		if readPeak {
			follow = s.tree.peak
		}
		t.forest.mu.RLock()
		err := t.probe.Snapshot(s.tree.ids, follow, &s.snapshot)
		if err == nil {
			for i := range s.snapshot.Trees {
				read := &s.snapshot.Trees[i]
				add(&s.now.tree, &read.Counters)
				s.now.gauges.RSSBytes += read.RSSBytes
				s.now.gauges.SwapBytes += read.SwapBytes
				s.now.gauges.Processes += read.Processes
			}
			if len(s.snapshot.Trees) > 0 {
				s.now.waits = s.snapshot.Trees[0].Waits // its own tree stands first
			}
			for _, inner := range s.tree.all {
				add(&s.now.tree, &inner.folded)
			}
		}
		s.enclosing = s.tree.enclosing(s.enclosing[:0])
		t.forest.mu.RUnlock()
		if err != nil {
			t.counters.unread.Add(1)
			s.unread = "the tree could not be read: " + err.Error()
		} else {
			s.now.known = true
			s.now.node, s.now.loss = s.snapshot.Node, s.snapshot.LossCount
			if readPeak {
				for i := range s.windows {
					s.windows[i].peak.include(s.snapshot.Peak)
				}
				s.totalPeak.include(s.snapshot.Peak)
			}
		}
	}
	s.edge = max(s.edge, t.config.Now().UnixNano())
}

// minLag is the lag from which on it is worth saying: below it is the ordinary way through the socket.
const minLag = 10 * time.Millisecond

func lagSeconds(lag time.Duration) float64 {
	if lag < minLag {
		return 0
	}
	return lag.Seconds()
}

// measured says whether values of a group have a meaning.
func measured(snapshot *process.Snapshot, g group) bool {
	switch groupOf(snapshot, g).State {
	case record.State_OK, record.State_INCOMPLETE, record.State_STALE:
		return true
	}
	return false
}

// log ends the window of call's function at the present, and appends its record. The caller holds s.mu.
func (t *Tracker) log(s *subject, call *Call) (*record.LogCall, func(context.Context) (int64, error)) {
	t.measure(s, true)
	t.identify(s)
	ends := call.Function == record.Function_RUN_END

	// RUN_END carries what is left since the last log_system_metrics, so it ends that function's window.
	w := &s.windows[call.Function]
	if ends {
		w = &s.windows[record.Function_LOG_SYSTEM_METRICS]
	}
	rec := &record.LogCall{
		Schema: 1, Process: s.identity, Function: call.Function, Label: call.Label, Step: call.Step,
		StartUnixNanos: w.start, EndUnixNanos: s.edge, WindowFirst: w.first, WindowGap: w.gap,
		Timestamp: call.Timestamp, LagSeconds: lagSeconds(call.Lag), Traceparent: call.Traceparent,
		Events:   append(s.events, call.Events...),
		OpensRun: !s.opened, Enclosing: keys(s.enclosing),
	}
	if call.Context != nil {
		name := normalContext(*call.Context)
		rec.Context = &name
	}
	if rec.Traceparent == "" && (ends || !s.opened) {
		rec.Traceparent = s.launch.traceparent
	}
	if ends || !s.opened {
		rec.RunAttributes = copyOf(s.attributes)
	}
	rec.Seq = s.windows[call.Function].nextSeq
	s.windows[call.Function].nextSeq++

	var delta sums
	t.fill(s, w, rec, &delta)
	rec.Readings = append(rec.Readings, call.Readings...)
	rec.Unavailable = append(rec.Unavailable, call.Unavailable...)
	s.loseBatches(call.DroppedCalls)
	if call.Cost != nil {
		s.addCost(rec, call.Cost, call.Lag)
	}
	s.countDrops(rec, call.DroppedCalls)
	t.counters.clientDrops.Add(call.DroppedCalls)
	rec.LoggedMetrics, s.metrics = s.metrics, nil
	s.events = nil

	if ends {
		rec.ClosedSegments = s.contexts.closeAll()
		s.total.add(&delta)
		rec.RunTotals = s.runTotals()
		rec.Error, s.failure = s.failure, ""
		// What the process logs from now on is another run's.
		s.attributes, s.total, s.totalPeak = nil, sums{}, peak{}
		s.epochs, s.epochsFull, s.lostBatches = nil, false, 0
	} else {
		entered, evicted := s.contexts.enter(rec)
		if evicted != nil {
			t.steps.Add(-int64(s.steps.drop(evicted.id)))
		}
		if call.Function == record.Function_LOG_SYSTEM_METRICS {
			s.total.add(&delta)
			entered.totals.addFrom(&delta, rec.StartUnixNanos)
			rec.ContextTotals = entered.totals.set()
			t.addStep(s, entered, rec, &delta)
		}
	}
	w.advance(s)

	s.opened, s.unfinished, s.called = true, !ends, time.Now()
	t.counters.records.Add(1)
	s.committed = t.sink.Append(rec, s.store, s.marshal())
	return rec, s.committed
}

// advance opens the next window where this one ends.
func (w *window) advance(s *subject) {
	w.start, w.first = s.edge, false
	if !s.now.known {
		// The base stays: what could not be read now is in the next window.
		w.unread = true
		return
	}
	w.base, w.kept, w.gap, w.unread = s.now, s.packNow(), false, false
	w.peak = peak{}
	w.peak.floor(s.now.gauges.RSSBytes)
}

func keys(processes []probes.Process) []*record.ProcessKey {
	if len(processes) == 0 {
		return nil
	}
	out := make([]*record.ProcessKey, len(processes))
	for i, p := range processes {
		out[i] = &record.ProcessKey{Pid: int32(p.PID), StartTicks: p.StartTicks}
	}
	return out
}

func copyOf(attributes map[string]string) map[string]string {
	if len(attributes) == 0 {
		return nil
	}
	out := make(map[string]string, len(attributes))
	for key, value := range attributes {
		out[key] = value
	}
	return out
}

// countDrops puts what was dropped on the way here on the record.
func (s *subject) countDrops(rec *record.LogCall, calls uint64) {
	for _, drop := range []struct {
		name  string
		count uint64
	}{{"dropped_calls", calls}, {"dropped_metrics", s.metricsDropped}} {
		if drop.count > 0 {
			rec.Events = append(rec.Events, &record.Event{
				Name: drop.name, TimeUnixNanos: rec.EndUnixNanos,
				Attributes: []*record.Reading{{
					Name: drop.name, Value: &record.Reading_Integer{Integer: int64(drop.count)}, State: record.State_OK,
				}},
			})
		}
	}
	s.metricsDropped = 0
}
