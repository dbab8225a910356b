package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"connectrpc.com/connect"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

const (
	// maxPending bounds the records of one stream whose commit has not been looked at. When it is reached the older half is
	// waited for; they were committed long ago, unless the disk is stuck, and then the caller has to wait as well.
	maxPending = 512
	// drainQuiet is how long a stream must be silent at the agent's end to be taken as finished.
	drainQuiet = 100 * time.Millisecond
)

// logStream takes a stream of asynchronous calls. Each is measured when it is read, and nothing waits for its commit: what a
// caller has written is measured even if it is killed right afterwards. At the end of the stream the answer says how many
// have been committed; accepted and refused together are those that have been read, in the stream's order.
//
// A bad message is counted and refused and the stream goes on, as long as the framing is intact.
func (s *Server) logStream(ctx context.Context, c *conn, stream connect.StreamingHandlerConn) (*prov4mlv1.LogStreamResponse, error) {
	if c.callerErr != nil {
		return nil, refusef(refusedCaller, connect.CodeFailedPrecondition, "the caller is not known: %s", c.callerErr)
	}
	c.seq.stream(1)
	defer c.seq.stream(-1)
	defer s.endOnDrain(ctx)()
	release := s.tracker.Hold(c.caller)
	defer func() { release() }()
	held := false

	var res prov4mlv1.LogStreamResponse
	refused := func(sentence string) {
		if res.Refused++; res.FirstRefusal == "" {
			res.FirstRefusal = sentence
		}
	}
	var pending []waitFunc
	settle := func(n int) {
		for _, wait := range pending[:n] {
			// Not the request's context: it ends with the caller, and the record does not.
			if _, err := s.commit(s.hard, wait); err != nil {
				refused(s.answer(err).Message())
			} else {
				res.Accepted++
			}
		}
		pending = append(pending[:0], pending[n:]...)
	}

	for {
		msg := new(prov4mlv1.LogStreamRequest)
		err := stream.Receive(msg)
		if err != nil {
			var bad *refusal
			if !errors.As(err, &bad) {
				if ended := streamEnd(s, err); ended != nil {
					return nil, ended
				}
				break
			}
			// Counted where it was found.
			refused(bad.sentence)
			continue
		}
		s.extendDrain(ctx)
		wait, err := s.takeStreamed(c, msg)
		if err != nil {
			refused(s.answer(err).Message())
			continue
		}
		s.counters.add(countStreamed, 1)
		if !held {
			// The tracker knows the caller from its first call on.
			held = true
			release()
			release = s.tracker.Hold(c.caller)
		}
		if pending = append(pending, wait); len(pending) == maxPending {
			settle(maxPending / 2)
		}
	}
	settle(len(pending))
	return &res, nil
}

// streamEnd returns nil when the stream ended as it may: half-closed, or stopped by the agent's own end.
func streamEnd(s *Server, err error) error {
	if errors.Is(err, io.EOF) || s.drain.Err() != nil {
		return nil
	}
	// The caller has gone or its framing is broken. What has been read is recorded.
	return err
}

func (s *Server) takeStreamed(c *conn, msg *prov4mlv1.LogStreamRequest) (waitFunc, error) {
	switch call := msg.GetCall().(type) {
	case *prov4mlv1.LogStreamRequest_LogSystemMetrics:
		_, wait, err := s.take(c, systemMetricsHead(call.LogSystemMetrics), runs.Call{Function: record.Function_LOG_SYSTEM_METRICS}, true)
		return wait, err
	case *prov4mlv1.LogStreamRequest_LogFlopsPerBatch:
		return nil, s.flops(c, flopsPerBatchHead(call.LogFlopsPerBatch), "LogFlopsPerBatch", checkBatch(call.LogFlopsPerBatch))
	case *prov4mlv1.LogStreamRequest_LogFlopsPerEpoch:
		return nil, s.flops(c, flopsPerEpochHead(call.LogFlopsPerEpoch), "LogFlopsPerEpoch", checkEpoch(call.LogFlopsPerEpoch))
	default:
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "the streamed message holds no call: set log_system_metrics, log_flops_per_batch or log_flops_per_epoch")
	}
}

// endOnDrain makes the stream's reads fail once the agent is to end and nothing more comes. The returned function undoes
// it.
func (s *Server) endOnDrain(ctx context.Context) (stop func() bool) {
	return context.AfterFunc(s.drain, func() { s.setStreamDeadline(ctx) })
}

// extendDrain gives the stream another drainQuiet, if it is being drained.
func (s *Server) extendDrain(ctx context.Context) {
	if s.drain.Err() != nil {
		s.setStreamDeadline(ctx)
	}
}

func (s *Server) setStreamDeadline(ctx context.Context) {
	rc, ok := ctx.Value(controlKey{}).(*http.ResponseController)
	if !ok {
		return
	}
	deadline := time.Now().Add(drainQuiet)
	if last := s.drainUntil(); deadline.After(last) {
		deadline = last
	}
	// Both of net/http's servers have read deadlines.
	_ = rc.SetReadDeadline(deadline)
}
