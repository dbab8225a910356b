package server

import (
	"context"
	"strconv"
	"strings"
	"time"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

// maxUnknownOps bounds the names of operators that a record lists as not counted.
const maxUnknownOps = 64

// takeBatch counts one batch and takes the call.
func (s *Server) takeBatch(c *conn, m *prov4mlv1.LogFlopsPerBatchRequest, streamed bool) (*record.LogCall, waitFunc, error) {
	return s.take(c, flopsPerBatchHead(m), streamed, func(caller runs.Caller) (runs.Call, error) {
		if err := checkBatch(m); err != nil {
			return runs.Call{}, err
		}
		totals, err := s.costs.batch(memoKey(caller), m)
		if err != nil {
			return runs.Call{}, err
		}
		return s.flopsCall(caller, record.Function_LOG_FLOPS_PER_BATCH, m.GetLabel(), totals), nil
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
		return s.flopsCall(caller, record.Function_LOG_FLOPS_PER_EPOCH, m.GetLabel(), totals), nil
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

// flopsCall turns totals into the call that records them.
func (s *Server) flopsCall(caller runs.Caller, function record.Function, label string, t *flops.Totals) runs.Call {
	call := runs.Call{Function: function, Label: label}
	text := func(name, value string) {
		call.Readings = append(call.Readings, &record.Reading{Name: name, Value: &record.Reading_Text{Text: value}, State: record.State_OK})
	}
	if t.Method != "" {
		text(record.FlopsMethod, t.Method)
	}
	complete := t.Complete()
	call.Readings = append(call.Readings, &record.Reading{
		Name: record.FlopsComplete, Value: &record.Reading_Boolean{Boolean: complete}, State: record.State_OK,
	})
	if unknown := t.UnknownNames(); len(unknown) > 0 {
		text(record.FlopsUnknownOps, strings.Join(unknown[:min(len(unknown), maxUnknownOps)], "\n"))
	}
	for _, note := range t.Notes {
		call.Unavailable = append(call.Unavailable, "flops: "+note)
	}
	nothing := t.FLOPs().IsZero() && t.MissingReason != ""
	if t.MissingReason != "" {
		call.Unavailable = append(call.Unavailable, "flops: "+t.MissingReason)
	}
	if nothing {
		return call
	}

	// What is not complete is a lower bound.
	state := record.State_OK
	if !complete {
		state = record.State_INCOMPLETE
	}
	real := func(name string, n flops.Number) {
		call.Readings = append(call.Readings, &record.Reading{Name: name, Value: &record.Reading_Real{Real: n.Float64()}, State: state})
	}
	total := t.FLOPs()
	real(record.FlopsTotal, total)
	real(record.FlopsForward, t.Forward.FLOPs)
	real(record.FlopsBackward, t.Backward.FLOPs)
	text(record.FlopsExact, total.String())
	call.Cost = &runs.Cost{FLOPs: total.Float64()}
	if peaks, missing := s.peaks(caller); missing != "" {
		call.Unavailable = append(call.Unavailable, "mfu: "+missing)
	} else if ideal := flops.Utilize(t.WorkByDType(false), peaks, time.Second); ideal.Missing != "" {
		call.Unavailable = append(call.Unavailable, "mfu: "+ideal.Missing)
	} else {
		call.Cost.IdealSeconds = ideal.Value
	}
	return call
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
