package server

import (
	"context"
	"errors"
	"io"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
)

const (
	// maxPending bounds the records of one stream whose commit has not been looked at. When it is reached the older half is
	// waited for; they were committed long ago, unless the disk is stuck, and then the caller has to wait as well.
	maxPending = 512
	// defaultDrainQuiet is how long a stream must be silent at the agent's end to be taken as finished.
	defaultDrainQuiet = 100 * time.Millisecond
)

// logStream takes a stream of asynchronous calls. Each is measured when it is read, and nothing waits for its commit: what a
// caller has written is measured even if it is killed right afterwards. At the end of the stream the answer says how many
// have been committed; accepted and refused together are those that have been read, in the stream's order.
//
// A bad message is counted and refused and the stream goes on, as long as the framing is intact.
func (s *Server) logStream(ctx context.Context, c *conn, stream connect.StreamingHandlerConn) (*prov4mlv1.LogStreamResponse, error) {
	if err := known(c); err != nil {
		return nil, err
	}
	read := streamed{server: s}
	err := s.readStream(ctx, c, stream, &read)
	read.settle(len(read.pending))
	if err != nil {
		return nil, err
	}
	return &read.answer, nil
}

// streamed is what has been read of a stream.
type streamed struct {
	server  *Server
	answer  prov4mlv1.LogStreamResponse
	pending []waitFunc
}

func (r *streamed) refused(sentence string) {
	if r.answer.Refused++; r.answer.FirstRefusal == "" {
		r.answer.FirstRefusal = sentence
	}
}

// settle waits for the commit of the oldest n.
func (r *streamed) settle(n int) {
	for _, wait := range r.pending[:n] {
		// Not the request's context: it ends with the caller, and the record does not.
		if _, err := r.server.commit(r.server.hard, wait); err != nil {
			r.refused(r.server.answer(err).Message())
		} else {
			r.answer.Accepted++
		}
	}
	rest := copy(r.pending, r.pending[n:])
	clear(r.pending[rest:])
	r.pending = r.pending[:rest]
}

// readStream measures what comes until the stream ends, or fails.
func (s *Server) readStream(ctx context.Context, c *conn, stream connect.StreamingHandlerConn, read *streamed) error {
	stop := context.AfterFunc(s.drain, func() { s.setStreamDeadline(ctx) })
	defer stop()
	release := s.tracker.Hold(c.caller)
	defer func() { release() }()
	held := false

	for {
		msg := new(prov4mlv1.LogStreamRequest)
		if err := stream.Receive(msg); err != nil {
			var bad *refusal
			if !errors.As(err, &bad) {
				return streamEnd(s, err)
			}
			// Counted where it was found.
			read.refused(bad.sentence)
			continue
		}
		s.extendDrain(ctx)
		wait, err := s.takeStreamed(c, msg)
		if err != nil {
			read.refused(s.answer(err).Message())
			continue
		}
		s.counters.add(countStreamed, 1)
		if !held {
			// The tracker knows the caller from its first call on.
			held = true
			release()
			release = s.tracker.Hold(c.caller)
		}
		if read.pending = append(read.pending, wait); len(read.pending) == maxPending {
			read.settle(maxPending / 2)
		}
	}
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
		_, wait, err := s.takeSystemMetrics(c, call.LogSystemMetrics, true)
		return wait, err
	case *prov4mlv1.LogStreamRequest_LogFlopsPerBatch:
		_, wait, err := s.takeBatch(c, call.LogFlopsPerBatch, true)
		return wait, err
	case *prov4mlv1.LogStreamRequest_LogFlopsPerEpoch:
		_, wait, err := s.takeEpoch(c, call.LogFlopsPerEpoch, true)
		return wait, err
	default:
		return nil, refusef(refusedValue, connect.CodeInvalidArgument, "the streamed message holds no call: set log_system_metrics, log_flops_per_batch or log_flops_per_epoch")
	}
}

// extendDrain gives the stream another drainQuiet, if it is being drained.
func (s *Server) extendDrain(ctx context.Context) {
	if s.drain.Err() != nil {
		s.setStreamDeadline(ctx)
	}
}

// setStreamDeadline makes the stream's reads fail when nothing comes for drainQuiet.
func (s *Server) setStreamDeadline(ctx context.Context) {
	control, ok := ctx.Value(controlKey{}).(*control)
	if !ok {
		return
	}
	deadline := time.Now().Add(s.drainQuiet)
	if deadline.After(s.drainEnd) {
		deadline = s.drainEnd
	}
	control.setReadDeadline(deadline)
}

// control sets the deadline of a request from outside its handler: net/http's HTTP/2 server panics when that is done after
// the handler has returned.
type control struct {
	mu    sync.Mutex
	rc    *http.ResponseController
	ended bool
}

// controlKey is the context key of a stream's *control.
type controlKey struct{}

func (c *control) setReadDeadline(t time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.ended {
		// Both of net/http's servers have read deadlines.
		_ = c.rc.SetReadDeadline(t)
	}
}

func (c *control) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ended = true
}
