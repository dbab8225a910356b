package server

import (
	"cmp"
	"context"
	"errors"
	"math"
	"strconv"
	"time"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

// takeBatch counts one batch and takes the call.
func (s *Server) takeBatch(c *conn, m *prov4mlv1.LogFlopsPerBatchRequest, streamed bool) (*record.LogCall, waitFunc, error) {
	return s.take(c, flopsPerBatchHead(m), streamed, func(caller runs.Caller) (runs.Call, error) {
		if err := checkBatch(m); err != nil {
			return runs.Call{}, err
		}
		totals, err := s.costs.batch(memoKey(caller), m)
		if r := (*refusal)(nil); streamed && errors.As(err, &r) && r.kind == refusedSignature {
			// Nobody waits for a refusal that would make the client send the operators again: the call is kept, without its number.
			s.counters.add(refusedSignature, 1)
			totals, err = flops.Missing("", r.sentence), nil
		}
		if err != nil {
			return runs.Call{}, err
		}
		cost := s.cost(caller, totals)
		if signature := cmp.Or(m.GetOperators().GetSignature(), m.GetSignature()); signature != "" {
			cost.Signatures = []string{signature}
		}
		return runs.Call{Function: record.Function_LOG_FLOPS_PER_BATCH, Label: m.GetLabel(), Cost: cost}, nil
	})
}

// takeEpoch counts one epoch and takes the call.
func (s *Server) takeEpoch(c *conn, m *prov4mlv1.LogFlopsPerEpochRequest, streamed bool) (*record.LogCall, waitFunc, error) {
	return s.take(c, flopsPerEpochHead(m), streamed, func(caller runs.Caller) (runs.Call, error) {
		if err := checkEpoch(m); err != nil {
			return runs.Call{}, err
		}
		totals, err := s.costs.epoch(memoKey(caller), m)
		if err != nil {
			return runs.Call{}, err
		}
		cost := s.cost(caller, totals)
		for _, b := range m.GetBatches() {
			cost.Signatures = append(cost.Signatures, b.GetSignature())
			if cost.Batches+b.GetBatches() < cost.Batches { // a number that no loader has
				cost.Batches = 0
				break
			}
			cost.Batches += b.GetBatches()
		}
		return runs.Call{Function: record.Function_LOG_FLOPS_PER_EPOCH, Label: m.GetLabel(), Cost: cost}, nil
	})
}

func (s *Server) logFlopsPerBatch(ctx context.Context, c *conn, m *prov4mlv1.LogFlopsPerBatchRequest) (*prov4mlv1.LogResponse, error) {
	rec, wait, err := s.takeBatch(c, m, false)
	return s.acknowledge(ctx, rec, wait, err)
}

func (s *Server) logFlopsPerEpoch(ctx context.Context, c *conn, m *prov4mlv1.LogFlopsPerEpochRequest) (*prov4mlv1.LogResponse, error) {
	rec, wait, err := s.takeEpoch(c, m, false)
	return s.acknowledge(ctx, rec, wait, err)
}

// memoKey names the process whose signatures are remembered.
func memoKey(caller runs.Caller) string {
	return strconv.Itoa(caller.PID) + "@" + strconv.FormatUint(caller.StartTicks, 10)
}

// cost turns totals into what the record needs.
func (s *Server) cost(caller runs.Caller, t *flops.Totals) *runs.Cost {
	cost := &runs.Cost{
		Missing:    t.MissingReason,
		Nothing:    t.FLOPs().IsZero() && t.MissingReason != "",
		Complete:   t.Complete(),
		UnknownOps: t.UnknownNames(),
		Method:     t.Method,
		Notes:      t.Notes,
	}
	if len(t.Operators) > 0 || len(t.Coverage.Unknown) > 0 {
		cost.Details = func() []*record.Event { return flopsEvents(t) }
	}
	if cost.Nothing {
		return cost
	}
	cost.Work = runs.Work{
		Forward:         t.Forward.FLOPs.Big(),
		Backward:        t.Backward.FLOPs.Big(),
		MACs:            t.MACs().Float64(),
		Executed:        t.Executed().Float64(),
		CausalDiscount:  t.CausalDiscount().Float64(),
		Elementwise:     t.Forward.Elementwise.Add(t.Backward.Elementwise).Float64(),
		Transcendentals: t.Forward.Transcendentals.Add(t.Backward.Transcendentals).Float64(),
		Bytes:           t.Forward.Bytes.Add(t.Backward.Bytes).Float64(),
		Samples:         saturated(t.Samples),
	}
	peaks, missing := s.peaks(caller)
	if missing != "" {
		cost.NoPeak = missing
		return cost
	}
	model := flops.Utilize(t.WorkByDType(false), peaks, time.Second)
	if model.Missing != "" {
		cost.NoPeak = model.Missing
		return cost
	}
	cost.IdealSeconds, cost.PeakSource = model.Value, model.Source
	if executed := flops.Utilize(t.WorkByDType(true), peaks, time.Second); executed.Missing == "" {
		cost.IdealExecutedSeconds = executed.Value
	}
	return cost
}

// saturated is n, or the largest integer that a reading holds.
func saturated(n flops.Number) uint64 {
	if b := n.Big(); b.IsInt64() {
		return b.Uint64()
	}
	return math.MaxInt64
}

// peaks returns the peaks of the devices that the caller's tree uses, or why they are not known.
func (s *Server) peaks(caller runs.Caller) (peaks []flops.Peak, missing string) {
	var devices []string
	if s.cfg.Devices != nil {
		devices = s.cfg.Devices(caller)
	}
	if len(devices) == 0 {
		if s.cfg.PeakOverride == nil {
			return nil, "the devices of the process are not known; state their peak with --peak-flops, such as bf16=989e12"
		}
		devices = []string{""} // the stated peak is then the process's whole
	}
	return s.cfg.PeakOverride.PeaksOf(devices)
}
