package runs

import (
	"time"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs/state"
)

// maxCosts bounds the (function, label, context) sets of one process that have a cumulative value.
const maxCosts = 1024

// Cost is what the batch or epoch of a FLOPs call costs.
type Cost struct {
	// FLOPs of forward and backward; 1 multiply-add = 2.
	FLOPs float64
	// IdealSeconds is how long the devices of the tree would take at their peak; 0 = that is not known.
	IdealSeconds float64
}

// costKey names the calls that add up.
type costKey struct {
	function   record.Function
	label      string
	context    string
	hasContext bool
}

// spent is what the calls of one key cost so far.
type spent struct {
	flops float64
	// last is the wall clock in ns of the latest call.
	last int64
}

// addCost adds the call's cost to its set, and the readings that need the calls before it to the record. The caller holds s.mu.
func (t *Tracker) addCost(s *subject, rec *record.LogCall, cost *Cost) {
	key := costKey{rec.GetFunction(), rec.GetLabel(), rec.GetContext(), rec.Context != nil}
	set := s.costs[key]
	if set == nil {
		if len(s.costs) >= maxCosts {
			rec.Unavailable = append(rec.Unavailable, "flops.cumulative, flops.rate, mfu: the process has more than 1024 pairs of label and context")
			return
		}
		if s.costs == nil {
			s.costs = map[costKey]*spent{}
		}
		set = &spent{}
		s.costs[key] = set
	}
	elapsed := time.Duration(rec.GetEndUnixNanos() - set.last).Seconds()
	first := set.last == 0
	set.flops += cost.FLOPs
	set.last = rec.GetEndUnixNanos()

	r := newReadings()
	r.real(record.FlopsCumulative, set.flops, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	switch {
	case first:
		r.add(record.FlopsRate, record.State_ABSENT, record.Source_SOURCE_UNSPECIFIED).Reason = "first call of this label and context: no time has passed"
	case elapsed > 0:
		r.real(record.FlopsRate, cost.FLOPs/elapsed, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	}
	if cost.IdealSeconds > 0 {
		r.real(record.FlopsPeak, cost.FLOPs/cost.IdealSeconds, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
		if !first && elapsed > 0 {
			r.real(record.MFU, cost.IdealSeconds/elapsed, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
		}
	}
	rec.Readings = append(rec.Readings, r.list...)
}

func (s *subject) packedCosts() []*state.Cost {
	out := make([]*state.Cost, 0, len(s.costs))
	for key, set := range s.costs {
		out = append(out, &state.Cost{
			Function: int32(key.function), Label: key.label, Context: key.context, HasContext: key.hasContext,
			Flops: set.flops, LastUnixNanos: set.last,
		})
	}
	return out
}

func (s *subject) unpackCosts(in []*state.Cost) {
	if len(in) > 0 {
		s.costs = make(map[costKey]*spent, len(in))
	}
	for _, c := range in {
		key := costKey{record.Function(c.GetFunction()), c.GetLabel(), c.GetContext(), c.GetHasContext()}
		s.costs[key] = &spent{c.GetFlops(), c.GetLastUnixNanos()}
	}
}
