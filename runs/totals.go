package runs

import (
	"time"

	"github.com/prov4ml/agent/record"
)

// sums are running totals of the quantities that add up, over a set of windows.
type sums struct {
	// start is the wall clock in ns at which the first of the windows starts.
	start int64
	// measured has bit i set when quantity i was measured in one of them at least.
	measured uint64
	values   [len(quantities)]uint64
}

func (s *sums) add(delta *sums) {
	s.measured |= delta.measured
	for i := range s.values {
		s.values[i] += delta.values[i]
	}
}

// addFrom adds a window that starts at start.
func (s *sums) addFrom(delta *sums, start int64) {
	if s.start == 0 {
		s.start = start
	}
	s.add(delta)
}

// set gives the sums as they stand in a record.
func (s *sums) set() *record.TotalSet {
	out := &record.TotalSet{StartUnixNanos: s.start, Totals: make([]*record.Total, 0, len(quantities))}
	block := make([]record.Total, len(quantities))
	for i := range quantities {
		if s.measured&(1<<i) == 0 {
			continue
		}
		total := &block[i]
		total.Name = quantities[i].name
		if quantities[i].nanos {
			total.Value = &record.Total_Real{Real: time.Duration(s.values[i]).Seconds()}
		} else {
			total.Value = &record.Total_Integer{Integer: int64(s.values[i])}
		}
		out.Totals = append(out.Totals, total)
	}
	return out
}

// runTotals gives the sums of the whole run, and its largest memory.
func (s *subject) runTotals() []*record.Reading {
	r := newReadings()
	for i := range quantities {
		q := &quantities[i]
		if s.total.measured&(1<<i) == 0 {
			continue
		}
		group := groupOf(&s.snapshot, q.group)
		// The state of the last window; the process may be one that this agent could not read any more.
		state := group.State
		if state == record.State_STATE_UNSPECIFIED {
			state = record.State_STALE
		}
		if q.nanos {
			r.real(q.name, time.Duration(s.total.values[i]).Seconds(), state, group.Source)
		} else {
			r.integer(q.name, s.total.values[i], state, group.Source)
		}
	}
	if s.totalPeak.bytes > 0 {
		state := s.snapshot.Memory.State
		if state == record.State_STATE_UNSPECIFIED {
			state = record.State_STALE
		}
		r.peak(&s.totalPeak, state, s.snapshot.Memory.Source)
	}
	return r.list
}

// stepKey names a (context, step) set of one process.
type stepKey struct {
	context uint32 // contextState.id
	step    int64
	given   bool
}

// steps are the sums of each (context, step).
type steps struct {
	sets map[stepKey]*sums
	// gone counts the sets that an earlier agent had, or whose context was closed: they count against the limit.
	gone uint32
}

// drop forgets the sums of a context's sets, which still count, and returns how many they were.
func (s *steps) drop(context uint32) int {
	before := len(s.sets)
	for key := range s.sets {
		if key.context == context {
			delete(s.sets, key)
		}
	}
	dropped := before - len(s.sets)
	s.gone += uint32(dropped)
	return dropped
}

// addStep adds a window to its (context, step) set. Past the limits it adds it to the one set that all further steps of the context
// share; an agent that starts again begins that one anew, with a start time that says so. The caller holds s.mu.
func (t *Tracker) addStep(s *subject, context *contextState, rec *record.LogCall, delta *sums) {
	key := stepKey{context: context.id, step: rec.GetStep(), given: rec.Step != nil}
	set := s.steps.sets[key]
	if set == nil {
		if len(s.steps.sets)+int(s.steps.gone) >= maxSteps || t.steps.Load() >= maxStepsNode {
			rec.StepCapped = true
			t.counters.cappedSteps.Add(1)
			context.capped.addFrom(delta, rec.StartUnixNanos)
			rec.StepTotals = context.capped.set()
			return
		}
		if s.steps.sets == nil {
			s.steps.sets = map[stepKey]*sums{}
		}
		set = &sums{}
		s.steps.sets[key] = set
		t.steps.Add(1)
	}
	set.addFrom(delta, rec.StartUnixNanos)
	context.last = key
	rec.StepTotals = set.set()
}
