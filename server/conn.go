package server

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/runs"
)

// writeTimeout bounds one write to a caller that does not read.
const writeTimeout = 10 * time.Second

// conn is one connection and what is known about its other end.
type conn struct {
	*net.UnixConn
	server *Server
	// caller is read from the kernel at accept, and callerErr says why it could not be. The credentials are those of connect(2):
	// they stay when the descriptor is inherited or passed on.
	caller    runs.Caller
	callerErr error
	// seq orders the calls of the caller's process; nil without a caller.
	seq *sequence

	// usedNanos is when bytes last came in or went out, in ns since the server was made.
	usedNanos atomic.Int64
	// unary counts the requests that await their answer.
	unary atomic.Int32
	// heard says that bytes have come in, asked that a request has reached the handler.
	heard, asked atomic.Bool
	// handling says that a handler is or was in charge of the present request: else what net/http writes is its own refusal.
	handling atomic.Bool
	// refused says that the bytes were no HTTP, and that this has been counted.
	refused atomic.Bool
	// ring came with the first bytes, until a stream takes it.
	ring   atomic.Pointer[ring]
	closed atomic.Bool

	limit bucket
	once  sync.Once
}

// Read refuses at once what is certainly no HTTP: net/http would wait for the end of the line.
func (c *conn) Read(p []byte) (int, error) {
	read := c.UnixConn.Read
	if !c.heard.Load() {
		read = c.readFirst
	}
	n, err := read(p)
	if n > 0 {
		c.usedNanos.Store(int64(c.server.uptime()))
		if !c.heard.Swap(true) && !methodStarts(p[:n]) {
			c.countNoHTTP()
			c.refuseBytes()
			// net/http answers every error but this one.
			return 0, io.EOF
		}
	}
	return n, err
}

// readFirst reads the first bytes, with which a ring may come. A descriptor that comes later is closed by the kernel.
func (c *conn) readFirst(p []byte) (int, error) {
	control := make([]byte, unix.CmsgSpace(4))
	n, controls, _, _, err := c.ReadMsgUnix(p, control)
	if controls == 0 {
		return n, err
	}
	messages, parseErr := unix.ParseSocketControlMessage(control[:controls])
	if parseErr != nil {
		return n, err
	}
	for i := range messages {
		fds, rightsErr := unix.ParseUnixRights(&messages[i])
		if rightsErr != nil {
			continue
		}
		for _, fd := range fds {
			r, ringErr := openRing(fd)
			if ringErr != nil {
				c.server.counters.add(refusedRing, 1)
				c.server.cfg.Logger.Warn("a descriptor that came with a connection is no ring", "pid", c.caller.PID, "reason", ringErr)
				continue
			}
			if former := c.ring.Swap(r); former != nil {
				former.close()
			}
			if c.closed.Load() {
				c.closeRing()
			}
		}
	}
	return n, err
}

func (c *conn) refuseBytes() {
	body := errorJSON(connect.CodeInvalidArgument, "these bytes are no HTTP: the socket speaks HTTP/1.1 and HTTP/2, both without TLS")
	answer := fmt.Appendf(nil, "HTTP/1.1 400 Bad Request\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	// The caller may have gone: there is nobody to tell then.
	_, _ = c.Write(answer)
}

// methodStarts says whether p may be the start of an HTTP request: RFC 9112 allows empty lines before the method.
func methodStarts(p []byte) bool {
	for i, b := range p[:min(len(p), 16)] {
		switch {
		case b >= 'A' && b <= 'Z', b >= 'a' && b <= 'z', i > 0 && (b == '-' || b == '_'):
		case b == ' ':
			return i > 0
		case b == '\r', b == '\n':
			return true
		default:
			return false
		}
	}
	return true
}

// Write gives up on a caller that does not read for writeTimeout, and notices net/http's own refusals.
func (c *conn) Write(p []byte) (int, error) {
	if !c.handling.Load() && !c.refused.Load() && bytes.HasPrefix(p, []byte("HTTP/1.1 ")) {
		c.countNoHTTP()
	}
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := c.UnixConn.Write(p)
	c.usedNanos.Store(int64(c.server.uptime()))
	return n, err
}

func (c *conn) countNoHTTP() {
	if !c.refused.Swap(true) {
		c.server.counters.add(refusedHTTP, 1)
	}
}

// Close may be called many times; net/http does.
func (c *conn) Close() error {
	c.once.Do(func() {
		if c.heard.Load() && !c.asked.Load() {
			// Bytes came and never became a request.
			c.countNoHTTP()
		}
		c.server.conns.remove(c)
		c.closed.Store(true)
		c.closeRing()
		if c.seq != nil {
			c.server.sequences.release(c)
		}
	})
	return c.UnixConn.Close()
}

// closeRing gives back a ring that no stream has taken.
func (c *conn) closeRing() {
	if r := c.ring.Swap(nil); r != nil {
		r.close()
	}
}

// begin notes that the connection has got as far as a handler.
func (c *conn) begin() {
	c.handling.Store(true)
	if !c.asked.Swap(true) && c.seq != nil {
		c.seq.settle()
	}
}

type connKey struct{}

func connOf(ctx context.Context) *conn {
	c, _ := ctx.Value(connKey{}).(*conn)
	return c
}

// connState is net/http's hook.
func connState(nc net.Conn, state http.ConnState) {
	if c, ok := nc.(*conn); ok && state == http.StateIdle {
		c.handling.Store(false)
	}
}

// connections are the open ones.
type connections struct {
	max int

	mu   sync.Mutex
	open map[*conn]struct{}
}

// admit adds c. When there are too many it returns the one to close: the longest idle of those that await no answer, which
// is c itself when every other one does.
func (cs *connections) admit(c *conn) (victim *conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if len(cs.open) >= cs.max {
		victim = c
		for o := range cs.open {
			if o.unary.Load() == 0 && (victim == c || o.usedNanos.Load() < victim.usedNanos.Load()) {
				victim = o
			}
		}
		if victim == c {
			return c
		}
		delete(cs.open, victim)
	}
	cs.open[c] = struct{}{}
	return victim
}

func (cs *connections) remove(c *conn) {
	cs.mu.Lock()
	delete(cs.open, c)
	cs.mu.Unlock()
}

// silent returns those from which no byte has come.
func (cs *connections) silent() []*conn {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	var out []*conn
	for c := range cs.open {
		if !c.heard.Load() {
			out = append(out, c)
		}
	}
	return out
}

func (cs *connections) len() int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.open)
}

// bucket is a token bucket that holds one second's worth.
type bucket struct {
	mu sync.Mutex
	// at is when tokens were last added; zero = the bucket is full.
	at     time.Duration
	tokens float64
	began  bool
}

// take takes one token at time now, if there is one.
func (b *bucket) take(now time.Duration, perSecond int) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	full := float64(perSecond)
	if !b.began {
		b.began, b.tokens = true, full
	} else {
		b.tokens = min(full, b.tokens+(now-b.at).Seconds()*full)
	}
	b.at = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}

// acceptor makes conns of what the socket accepts.
type acceptor struct {
	*socket
	server *Server
}

func (a *acceptor) Accept() (net.Conn, error) {
	for {
		uc, err := a.AcceptUnix()
		if err != nil {
			return nil, err
		}
		if c := a.server.newConn(uc); c != nil {
			return c, nil
		}
	}
}

// newConn returns nil when the connection was refused.
func (s *Server) newConn(uc *net.UnixConn) *conn {
	c := &conn{UnixConn: uc, server: s}
	c.usedNanos.Store(int64(s.uptime()))
	s.counters.add(countConnections, 1)
	c.caller, c.callerErr = s.cfg.Identify(uc)
	if c.callerErr == nil && c.caller.PID == 0 {
		c.callerErr = runs.ErrNamespace
	}
	if c.callerErr == nil {
		s.sequences.attach(c)
	}
	switch victim := s.conns.admit(c); victim {
	case nil:
	case c:
		s.counters.add(refusedConnections, 1)
		_ = c.Close()
		return nil
	default:
		s.counters.add(closedIdle, 1)
		_ = victim.Close()
	}
	if s.drain.Err() != nil {
		_ = c.Close()
		return nil
	}
	return c
}
