// Package server is the agent's socket: it decodes what training processes send, holds them to the limits, and answers.
//
// One Unix socket and one http.Server speak gRPC, gRPC-Web, Connect and plain HTTP/1.1 with JSON, so grpcurl, curl and a
// client of nothing but a standard library all work. The log calls in JSON take a short way past connect, with the same
// messages, checks and answers.
//
// Who calls is read from the kernel once, when the connection is accepted; nothing in a message says so. What the caller did
// is measured behind Tracker, and a unary call is answered after its record is committed.
//
// It cannot see that a connection has been inherited by a forked child: the credentials are those of the process that
// connected, so a client connects anew after a fork.
package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/grpchealth"

	"github.com/prov4ml/agent/api/prov4ml/v1/prov4mlv1connect"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

const (
	// headerTimeout bounds the headers of a request, from its first byte; of a connection's first request, from accept. A
	// connection may stay idle between requests for as long as it likes.
	headerTimeout = 10 * time.Second
	// maxHeaderBytes bounds a request's headers.
	maxHeaderBytes = 32 << 10
	// maxStreamsPerConn bounds the requests that one HTTP/2 connection has open.
	maxStreamsPerConn = 128

	defaultShutdown = 10 * time.Second
)

// Config is what the server is made with.
type Config struct {
	Socket SocketConfig
	// Version of the agent.
	Version string
	// ShutdownTimeout bounds the clean end; 0 = 10 s.
	ShutdownTimeout time.Duration
	// Connections and CallsPerSecond lower the limits; 0 = MaxConnections and MaxCallsPerSecond.
	Connections, CallsPerSecond int
	// Identify says who is at the other end; nil = runs.Identify.
	Identify func(*net.UnixConn) (runs.Caller, error)
	// SpanIDs returns the hex ids of the span that a record becomes; nil = the answers carry none.
	SpanIDs func(*record.LogCall) (traceID, spanID string)
	// PeakOverride is what the user says that the devices can do at most; nil = the table of package flops alone.
	PeakOverride *flops.Override
	// Devices names the GPUs that the caller's tree uses; nil = nothing measures GPUs.
	Devices func(runs.Caller) []string
	// Store and Counters fill GetStatus beside the tracker; each may be nil.
	Store    func() StoreStatus
	Counters []func() map[string]uint64
	// Logger; nil = slog.Default().
	Logger *slog.Logger
}

// Server answers on the socket. Make it with New.
type Server struct {
	cfg       Config
	tracker   Tracker
	started   time.Time
	counters  counters
	conns     connections
	sequences sequences
	health    *grpchealth.StaticChecker
	mux       *http.ServeMux
	http      *http.Server
	// buffers holds *bytes.Buffer for request bodies.
	buffers  sync.Pool
	handlers handlers
	costs    costs
	// largeReads and largeDecodes hold one element for each large message in memory.
	largeReads, largeDecodes chan struct{}

	socket *socket

	// drain ends when the agent is to end, hard when it may wait no longer.
	drain, hard         context.Context
	startDrain, endHard context.CancelFunc
	// drainEnd is when reading the streams ends at the latest; set before drain ends.
	drainEnd time.Time
	rings    *ringPoller
	// drainQuiet is defaultDrainQuiet; tests change it.
	drainQuiet time.Duration
}

// New makes a server that measures and records through tracker.
func New(cfg Config, tracker Tracker) (*Server, error) {
	if tracker == nil {
		return nil, errors.New("no tracker is given")
	}
	if cfg.Identify == nil {
		cfg.Identify = runs.Identify
	}
	if cfg.ShutdownTimeout <= 0 {
		cfg.ShutdownTimeout = defaultShutdown
	}
	if cfg.Connections <= 0 {
		cfg.Connections = MaxConnections
	}
	if cfg.CallsPerSecond <= 0 {
		cfg.CallsPerSecond = MaxCallsPerSecond
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.Default()
	}
	s := &Server{
		cfg:       cfg,
		tracker:   tracker,
		costs:     costs{flops.NewMemo(flops.DefaultMemoBytes)},
		started:   time.Now(),
		conns:     connections{max: cfg.Connections, open: map[*conn]struct{}{}},
		sequences: sequences{byProcess: map[probes.Process]*sequence{}},
		health:    grpchealth.NewStaticChecker(prov4mlv1connect.AgentServiceName),
		buffers:   sync.Pool{New: func() any { return new(bytes.Buffer) }},

		rings:        newRingPoller(),
		drainQuiet:   defaultDrainQuiet,
		largeReads:   make(chan struct{}, maxLargeReads),
		largeDecodes: make(chan struct{}, maxLargeDecodes),
	}
	s.drain, s.startDrain = context.WithCancel(context.Background())
	s.hard, s.endHard = context.WithCancel(context.Background())
	s.mux = s.newMux()

	var protocols http.Protocols
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	s.http = &http.Server{
		Handler:           s,
		Protocols:         &protocols,
		ReadHeaderTimeout: headerTimeout,
		MaxHeaderBytes:    maxHeaderBytes,
		HTTP2: &http.HTTP2Config{
			MaxConcurrentStreams: maxStreamsPerConn,
			CountError:           func(string) { s.counters.add(refusedHTTP, 1) },
		},
		ConnState: connState,
		// OPTIONS * is no method of this service.
		DisableGeneralOptionsHandler: true,
		ConnContext:                  func(ctx context.Context, c net.Conn) context.Context { return context.WithValue(ctx, connKey{}, c) },
		BaseContext:                  func(net.Listener) context.Context { return s.hard },
		// Whatever it says was caused by a caller, and is counted.
		ErrorLog: slog.NewLogLogger(cfg.Logger.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Listen binds the socket; callers may connect from then on. Serve does it when it has not been done.
func (s *Server) Listen(ctx context.Context) error {
	sock, err := listen(ctx, s.cfg.Socket)
	if err != nil {
		return err
	}
	s.socket = sock
	return nil
}

// Serve answers until ctx ends. Then it stops accepting, reads what has been written to the streams, answers what is in
// flight, and returns, at the latest after Config.ShutdownTimeout. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	defer s.startDrain()
	if s.socket == nil {
		if err := s.Listen(ctx); err != nil {
			return err
		}
	}
	var polling sync.WaitGroup
	polling.Go(func() { s.rings.run(s.hard.Done()) })
	defer polling.Wait()
	defer s.endHard()
	served := make(chan error, 1)
	go func() { served <- s.http.Serve(&acceptor{socket: s.socket, server: s}) }()
	select {
	case err := <-served:
		// It ends by itself only when accepting fails for good.
		return errors.Join(fmt.Errorf("accept: %w", err), s.stop())
	case <-ctx.Done():
	}
	err := s.stop()
	<-served
	return err
}

// stop ends everything.
func (s *Server) stop() error {
	s.health.SetStatus(prov4mlv1connect.AgentServiceName, grpchealth.StatusNotServing)
	closeErr := s.socket.Close()
	s.drainEnd = time.Now().Add(s.cfg.ShutdownTimeout / 2)
	s.startDrain()
	// net/http would give a connection that has said nothing five seconds.
	for _, c := range s.conns.silent() {
		_ = c.Close()
	}
	deadline, cancel := context.WithTimeout(context.Background(), s.cfg.ShutdownTimeout)
	defer cancel()
	err := s.http.Shutdown(deadline)
	if err != nil {
		err = errors.Join(fmt.Errorf("end the open calls: %w", err), s.http.Close())
	}
	s.endHard()
	s.handlers.close()
	return errors.Join(closeErr, err)
}

func (s *Server) uptime() time.Duration { return time.Since(s.started) }

// handlers counts the running ones, so that the server's end can wait for them: http.Server.Close does not.
type handlers struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{}
}

func (h *handlers) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		return false
	}
	h.n++
	return true
}

func (h *handlers) leave() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n--; h.n == 0 && h.idle != nil {
		close(h.idle)
		h.idle = nil
	}
}

// close refuses new ones and waits for the others.
func (h *handlers) close() {
	h.mu.Lock()
	h.closed = true
	idle := make(chan struct{})
	if h.n > 0 {
		h.idle = idle
	} else {
		close(idle)
	}
	h.mu.Unlock()
	<-idle
}
