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
	read := streamed{server: s, conn: c}
	err := read.readAll(ctx, stream)
	read.settle(len(read.pending))
	if err != nil {
		return nil, err
	}
	return &read.answer, nil
}

// streamed is what has been read of a stream, and of the ring beside it.
type streamed struct {
	server *Server
	conn   *conn
	ring   *ring // nil = none
	// begun: the stream's first message has been measured, or it has ended. The calls that an agent before this one has left in the
	// ring name signatures, which the first message brings.
	begun bool
	// release ends the hold that keeps the caller's tree; known says that the tracker knew the caller when it was taken.
	release func()
	known   bool

	// mu serialises who reads: a message of the stream, the ring's poller, and a unary call that comes after.
	mu      sync.Mutex
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

// readAll measures what comes until the stream ends, or fails.
func (r *streamed) readAll(ctx context.Context, stream connect.StreamingHandlerConn) error {
	s := r.server
	stop := context.AfterFunc(s.drain, func() { s.setStreamDeadline(ctx) })
	defer stop()
	r.release = s.tracker.Hold(r.conn.caller)
	defer func() { r.release() }()
	if r.ring = r.conn.ring.Swap(nil); r.ring != nil {
		defer r.followRing()()
	}
	for {
		msg := new(prov4mlv1.LogStreamRequest)
		err := stream.Receive(msg)
		var bad *refusal
		if err != nil && !errors.As(err, &bad) {
			return streamEnd(s, err)
		}
		s.extendDrain(ctx)
		r.message(msg, bad)
	}
}

// message measures one message of the stream, or counts it as bad.
func (r *streamed) message(msg *prov4mlv1.LogStreamRequest, bad *refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.readRing()
	if bad != nil {
		r.refused(bad.sentence) // counted where it was found
	} else {
		r.take(r.server.takeStreamed(r.conn, msg))
	}
	if !r.begun {
		r.begun = true
		r.readRing()
	}
}

// take notes a call that has been measured, or refused. The caller holds mu.
func (r *streamed) take(wait waitFunc, err error) {
	s := r.server
	if err != nil {
		r.refused(s.answer(err).Message())
		return
	}
	s.counters.add(countStreamed, 1)
	if !r.known {
		// The tracker knows the caller from its first call on.
		r.known = true
		r.release()
		r.release = s.tracker.Hold(r.conn.caller)
	}
	if r.pending = append(r.pending, wait); len(r.pending) == maxPending {
		r.settle(maxPending / 2)
	}
}

// followRing reads the ring when something is in it, until the function that it returns is called: that reads what is left.
func (r *streamed) followRing() (end func()) {
	wake, done := make(chan struct{}, 1), make(chan struct{})
	var reading sync.WaitGroup
	reading.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-wake:
				r.drainRing()
			}
		}
	})
	r.server.rings.add(r.ring, wake)
	r.conn.seq.addRing(r)
	return func() {
		r.server.rings.remove(r.ring)
		close(done)
		reading.Wait()
		r.conn.seq.removeRing(r)
		r.mu.Lock()
		r.begun = true
		r.mu.Unlock()
		r.drainRing()
		r.mu.Lock()
		defer r.mu.Unlock()
		r.ring.close()
		r.ring = nil
	}
}

// drainRing measures the calls that are in the ring now. A panic costs the call that caused it.
func (r *streamed) drainRing() {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		if p := recover(); p != nil {
			r.refused(r.server.answer(r.server.panicked(p)).Message())
		}
	}()
	r.readRing()
}

// readRing does, for who holds mu.
func (r *streamed) readRing() {
	if r.ring == nil || !r.begun {
		return
	}
	for range ringSlots {
		batch, any, err := r.ring.next()
		if !any {
			return
		}
		r.server.counters.add(countRing, 1)
		if err != nil {
			r.refused(r.server.answer(err).Message())
			continue
		}
		_, wait, err := r.server.takeBatch(r.conn, batch, true)
		r.take(wait, err)
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
