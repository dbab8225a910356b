package runs

import (
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/runs/state"
)

// stateSchema is the version of state.State that this package writes and reads.
const stateSchema = 1

// marshal gives what the next agent needs to go on with s. It is written with every record, so it holds of the (context, step)
// sets only each context's latest: a step logged again after a restart begins its sum anew, with a start time that says so.
func (s *subject) marshal() []byte {
	out := state.State{
		Schema: stateSchema, Process: s.identity, EdgeUnixNanos: s.edge, SegmentFloor: s.contexts.floor,
		Steps: uint32(len(s.steps.sets)) + s.steps.gone, Run: packed(&s.total), Attributes: s.attributes,
		Unfinished: s.unfinished, Opened: s.opened, Traceparent: s.launch.traceparent,
		Peak: &state.Peak{
			Bytes: s.totalPeak.bytes, Exact: s.totalPeak.exact(), UpperBytes: s.totalPeak.upper, UpperKnown: !s.totalPeak.unbounded,
		},
		Windows: make(map[int32]*state.Window, functions),
		Costs:   s.packedCosts(),
		Epochs:  s.packedEpochs(),
	}
	if s.tree != nil && s.tree.set != 0 {
		out.Tree = &state.Tree{Set: s.tree.set, Id: uint32(s.tree.id)}
	}
	for i := range s.windows {
		w := &s.windows[i]
		kept := &state.Window{
			NextSeq: w.nextSeq, EndUnixNanos: w.start, First: w.first, Gap: w.gap, Unread: w.unread, PeakBytes: w.peak.bytes,
		}
		// Functions that have not been called share where their windows start.
		if out.Tree != nil && w.kept != nil {
			at := slices.Index(out.Samples, w.kept)
			if at < 0 {
				at = len(out.Samples)
				out.Samples = append(out.Samples, w.kept)
			}
			kept.Sample = uint32(at) + 1
		}
		out.Windows[int32(i)] = kept
	}
	for _, c := range s.contexts.inOrder() {
		kept := &state.Context{
			Name: c.name.name, HasName: c.name.given, Segment: c.segment, NextSegment: c.next, Totals: packed(&c.totals),
		}
		if set := s.steps.sets[c.last]; set != nil && c.last.context == c.id {
			kept.StepTotals = packed(set)
			if c.last.given {
				kept.Step = &c.last.step
			}
		}
		out.Contexts = append(out.Contexts, kept)
	}
	// Marshalling does not fail. Nor does it look at UTF-8, but every text has come through a decoder that did.
	bytes, _ := out.MarshalVT()
	return bytes
}

// restore takes up where the agent before this one stopped. Where the counters of the tree have gone on meanwhile, windows do too; else
// the next one of each function has a gap. It returns false for a state that it cannot read.
func (s *subject) restore(bytes []byte) bool {
	var in state.State
	if err := proto.Unmarshal(bytes, &in); err != nil || in.GetSchema() != stateSchema || in.GetProcess() == nil {
		return false
	}
	s.identity, s.attributes = in.GetProcess(), in.GetAttributes()
	s.opened, s.unfinished = in.GetOpened(), in.GetUnfinished()
	s.launch.traceparent = in.GetTraceparent()
	s.edge = max(s.edge, in.GetEdgeUnixNanos())
	s.total = unpacked(in.GetRun())
	if p := in.GetPeak(); p != nil {
		s.totalPeak = peak{bytes: p.GetBytes(), upper: p.GetUpperBytes(), unbounded: true} // nobody looked meanwhile
	}
	sameTree := s.tree != nil && s.tree.set != 0 && in.GetTree().GetSet() == s.tree.set && in.GetTree().GetId() == uint32(s.tree.id)
	for i, kept := range in.GetWindows() {
		if i < 0 || int(i) >= functions {
			continue
		}
		w := &s.windows[i]
		w.nextSeq, w.start, w.first, w.gap = kept.GetNextSeq(), kept.GetEndUnixNanos(), false, true
		// Nobody looked meanwhile.
		w.peak = peak{bytes: kept.GetPeakBytes(), unbounded: true}
		at := int(kept.GetSample()) - 1
		if !sameTree || at < 0 || at >= len(in.GetSamples()) {
			continue
		}
		if base := unpackSample(in.GetSamples()[at], s.layout); base.known {
			w.base, w.kept = base, in.GetSamples()[at]
			w.first, w.gap, w.unread = kept.GetFirst(), kept.GetGap(), kept.GetUnread()
		}
	}
	s.unpackCosts(in.GetCosts())
	s.unpackEpochs(in.GetEpochs())
	s.contexts.floor = in.GetSegmentFloor()
	for _, kept := range in.GetContexts() {
		c := s.contexts.add(contextName{kept.GetName(), kept.GetHasName()})
		c.segment, c.next, c.totals = kept.GetSegment(), kept.GetNextSegment(), unpacked(kept.GetTotals())
		if kept.GetStepTotals() != nil {
			set := unpacked(kept.GetStepTotals())
			c.last = stepKey{context: c.id, step: kept.GetStep(), given: kept.Step != nil}
			if s.steps.sets == nil {
				s.steps.sets = map[stepKey]*sums{}
			}
			s.steps.sets[c.last] = &set
		}
	}
	s.steps.gone = in.GetSteps() - min(in.GetSteps(), uint32(len(s.steps.sets)))
	return true
}

func packed(s *sums) *state.Sums {
	return &state.Sums{StartUnixNanos: s.start, Measured: s.measured, Values: s.values[:]}
}

func unpacked(in *state.Sums) sums {
	out := sums{start: in.GetStartUnixNanos(), measured: in.GetMeasured() & (1<<len(quantities) - 1)}
	copy(out.values[:], in.GetValues())
	return out
}
