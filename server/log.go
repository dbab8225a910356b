package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime/debug"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

// callHead is what the three log calls have in common.
type callHead struct {
	context        *string
	step           *int64
	seq            uint64
	timestamp      *int64
	monotonicNanos uint64
	subject        prov4mlv1.Subject
	traceparent    string
	dropped        uint64
}

func systemMetricsHead(m *prov4mlv1.LogSystemMetricsRequest) callHead {
	return callHead{m.Context, m.Step, m.GetSeq(), m.Timestamp, m.GetMonotonicNanos(), m.GetSubject(), m.GetTraceparent(), m.GetDroppedCalls()}
}

func flopsPerBatchHead(m *prov4mlv1.LogFlopsPerBatchRequest) callHead {
	return callHead{m.Context, m.Step, m.GetSeq(), m.Timestamp, m.GetMonotonicNanos(), m.GetSubject(), m.GetTraceparent(), m.GetDroppedCalls()}
}

func flopsPerEpochHead(m *prov4mlv1.LogFlopsPerEpochRequest) callHead {
	return callHead{m.Context, m.Step, m.GetSeq(), m.Timestamp, m.GetMonotonicNanos(), m.GetSubject(), m.GetTraceparent(), m.GetDroppedCalls()}
}

// waitFunc returns the number of the record once it is committed.
type waitFunc = func(context.Context) (int64, error)

// take measures one log call and enqueues its record; it does not wait for the commit. make gives what the function's own fields
// say, before anything is measured. Its errors are *refusal, not counted yet.
func (s *Server) take(c *conn, h callHead, streamed bool, make func(runs.Caller) (runs.Call, error)) (*record.LogCall, waitFunc, error) {
	if err := known(c); err != nil {
		return nil, nil, err
	}
	// Refused or not, nobody waits for this call any more once it is through.
	defer c.seq.measured(h.seq)
	if err := firstError(s.withinRate(c), checkHead(h)); err != nil {
		return nil, nil, err
	}
	caller, err := subject(c, h.subject)
	if err != nil {
		return nil, nil, err
	}
	call, err := make(caller)
	if err != nil {
		return nil, nil, err
	}
	call.Context = h.context
	call.Step = h.step
	call.Traceparent = s.traceparent(h.traceparent)
	if h.timestamp != nil && *h.timestamp != 0 {
		call.Timestamp = h.timestamp
	}
	if h.dropped > 0 {
		s.counters.add(countDropped, h.dropped)
		call.DroppedCalls = h.dropped
	}
	if !streamed {
		c.seq.drainRings()
		waited, complete := c.seq.await(h.seq, maxSeqWait)
		if waited {
			s.counters.add(countSeqWaits, 1)
		}
		if !complete {
			s.counters.add(countSeqTimeouts, 1)
		}
	}
	call.Lag = lag(h.monotonicNanos)
	return s.measure(caller, call)
}

// known refuses a connection of which the kernel did not say who is at its other end.
func known(c *conn) error {
	if c.callerErr == nil {
		return nil
	}
	return refusef(refusedCaller, connect.CodeFailedPrecondition, "the caller is not known: %s", c.callerErr)
}

// withinRate says whether the connection may make a call now.
func (s *Server) withinRate(c *conn) error {
	if c.limit.take(s.uptime(), s.cfg.CallsPerSecond) {
		return nil
	}
	return refusef(refusedRate, connect.CodeResourceExhausted, "the connection makes more than %d calls a second: log less often", s.cfg.CallsPerSecond)
}

func checkHead(h callHead) error {
	if h.context != nil {
		if err := checkText("context", *h.context, MaxTextBytes); err != nil {
			return err
		}
	}
	if h.timestamp != nil {
		if err := checkMillis("timestamp", *h.timestamp); err != nil {
			return err
		}
	}
	return checkText("traceparent", h.traceparent, MaxTextBytes)
}

// measure asks the tracker. A panic there costs this call only.
func (s *Server) measure(caller runs.Caller, call runs.Call) (rec *record.LogCall, wait waitFunc, err error) {
	defer func() {
		if p := recover(); p != nil {
			rec, wait, err = nil, nil, s.panicked(p)
		}
	}()
	rec, wait, err = s.tracker.Log(caller, call)
	if err != nil {
		return nil, nil, trackerRefusal(err)
	}
	return rec, wait, nil
}

// commit waits until the record is safe.
func (s *Server) commit(ctx context.Context, wait waitFunc) (int64, error) {
	number, err := wait(ctx)
	switch {
	case err == nil:
		return number, nil
	case ctx.Err() != nil:
		return 0, refusef(countAbandoned, connect.CodeCanceled, "the call was measured; its answer was given up before the commit: %s", context.Cause(ctx))
	default:
		return 0, refusef(refusedCommit, connect.CodeUnavailable, "the call was measured and could not be recorded: %s", err)
	}
}

func (s *Server) takeSystemMetrics(c *conn, m *prov4mlv1.LogSystemMetricsRequest, streamed bool) (*record.LogCall, waitFunc, error) {
	return s.take(c, systemMetricsHead(m), streamed, func(runs.Caller) (runs.Call, error) {
		return runs.Call{Function: record.Function_LOG_SYSTEM_METRICS}, nil
	})
}

func (s *Server) logSystemMetrics(ctx context.Context, c *conn, m *prov4mlv1.LogSystemMetricsRequest) (*prov4mlv1.LogResponse, error) {
	rec, wait, err := s.takeSystemMetrics(c, m, false)
	return s.acknowledge(ctx, rec, wait, err)
}

// acknowledge waits for the commit of a call that was taken, and says where it went.
func (s *Server) acknowledge(ctx context.Context, rec *record.LogCall, wait waitFunc, err error) (*prov4mlv1.LogResponse, error) {
	if err != nil {
		return nil, err
	}
	number, err := s.commit(ctx, wait)
	if err != nil {
		return nil, err
	}
	s.counters.add(callCounter(rec.GetFunction()), 1)
	answer := &prov4mlv1.LogResponse{Record: number}
	if s.cfg.SpanIDs != nil {
		answer.TraceId, answer.SpanId = s.cfg.SpanIDs(rec)
	}
	return answer, nil
}

func (s *Server) describe(ctx context.Context, c *conn, m *prov4mlv1.DescribeRunRequest) (_ *prov4mlv1.DescribeRunResponse, err error) {
	if err := known(c); err != nil {
		return nil, err
	}
	if err := firstError(s.withinRate(c), checkDescription(m)); err != nil {
		return nil, err
	}
	caller, err := subject(c, m.GetSubject())
	if err != nil {
		return nil, err
	}
	metrics := make([]*record.LoggedMetric, len(m.GetMetrics()))
	for i, lm := range m.GetMetrics() {
		metrics[i] = &record.LoggedMetric{
			Key:           lm.GetKey(),
			Value:         lm.GetValue(),
			Context:       lm.Context,
			Step:          lm.Step,
			TimeUnixNanos: unixNanos(lm.GetTimestamp()),
		}
	}
	defer func() {
		if p := recover(); p != nil {
			err = s.panicked(p)
		}
	}()
	info, err := s.tracker.Describe(ctx, caller, runs.Description{
		Name:        m.GetName(),
		Environment: m.GetEnvironment(),
		Script:      m.GetScript(),
		Attributes:  m.GetAttributes(),
		Metrics:     metrics,
		End:         m.GetEnd(),
		Traceparent: s.traceparent(m.GetTraceparent()),
	})
	if err != nil {
		return nil, trackerRefusal(err)
	}
	s.counters.add(countDescribed, 1)
	s.cfg.Logger.Debug("a process describes its run", "pid", caller.PID, "run", info.RunID, "client", m.GetClientVersion())
	return &prov4mlv1.DescribeRunResponse{RunId: info.RunID, AgentVersion: s.cfg.Version, RingVersion: ringVersion}, nil
}

// subject returns whom the call is about.
func subject(c *conn, subject prov4mlv1.Subject) (runs.Caller, error) {
	switch subject {
	case prov4mlv1.Subject_SUBJECT_UNSPECIFIED, prov4mlv1.Subject_CALLER:
		return c.caller, nil
	case prov4mlv1.Subject_PARENT:
		parent, err := c.caller.Parent()
		if err != nil {
			return runs.Caller{}, refusef(refusedParent, connect.CodeFailedPrecondition, "subject is PARENT, and the caller's parent cannot be taken: %s", err)
		}
		return parent, nil
	default:
		return runs.Caller{}, refusef(refusedValue, connect.CodeInvalidArgument, "subject is %d: it must be CALLER or PARENT", subject)
	}
}

func trackerRefusal(err error) error {
	code := connect.CodeInternal
	switch {
	case errors.Is(err, runs.ErrClosed):
		code = connect.CodeUnavailable
	case errors.Is(err, runs.ErrLimit):
		code = connect.CodeResourceExhausted
	case errors.Is(err, runs.ErrGone):
		code = connect.CodeFailedPrecondition
	}
	return refusef(refusedMeasure, code, "the call could not be measured: %s", err)
}

// panicked counts a panic and makes an answer of it.
func (s *Server) panicked(p any) error {
	s.cfg.Logger.Error("a call panicked", "panic", p, "stack", string(debug.Stack()))
	return refusef(countPanics, connect.CodeInternal, "the agent failed on this call (%s): please report it", fmt.Sprint(p))
}

// lag is how long ago the script made the call, by the clock that both read. A caller in a time namespace of its own may
// read another one; what is not plausible is not said.
func lag(monotonicNanos uint64) time.Duration {
	if monotonicNanos == 0 {
		return 0
	}
	var now unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC, &now) != nil {
		return 0
	}
	nanos := uint64(now.Nano())
	if nanos <= monotonicNanos {
		return 0
	}
	return time.Duration(min(nanos-monotonicNanos, math.MaxInt64))
}

func unixNanos(millis int64) int64 {
	if millis == 0 {
		return time.Now().UnixNano()
	}
	return time.UnixMilli(millis).UnixNano()
}

// traceparent returns the W3C header if it is one, else nothing: the specification says to ignore what is not, and a broken
// launcher variable is no reason to lose the call.
func (s *Server) traceparent(header string) string {
	if header == "" {
		return ""
	}
	// version - trace id - span id - flags; a later version may have more behind it.
	if len(header) < 55 || (len(header) > 55 && header[55] != '-') || header[2] != '-' || header[35] != '-' || header[52] != '-' ||
		!isHex(header[:2]) || !isHex(header[3:35]) || !isHex(header[36:52]) || !isHex(header[53:55]) || header[:2] == "ff" ||
		strings.Trim(header[3:35], "0") == "" || strings.Trim(header[36:52], "0") == "" {
		s.counters.add(countBadParents, 1)
		return ""
	}
	return header
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }
