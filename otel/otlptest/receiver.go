// Package otlptest is an OTLP/gRPC receiver for tests: it keeps what it takes, and answers as a test wants.
package otlptest

import (
	"context"
	"fmt"
	"net"
	"sync"

	colmetricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	metricpb "go.opentelemetry.io/proto/otlp/metrics/v1"
	resourcepb "go.opentelemetry.io/proto/otlp/resource/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"
)

// Receiver is an OTLP receiver on a loopback port. The functions are set before the first request and called by many
// goroutines at the same time; without one, every request is taken.
type Receiver struct {
	// Traces and Metrics answer a request. What is answered without error is kept.
	Traces  func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error)
	Metrics func(context.Context, *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error)

	server  *grpc.Server
	address string
	done    sync.WaitGroup

	mu      sync.Mutex
	traces  []*coltracepb.ExportTraceServiceRequest
	metrics []*colmetricpb.ExportMetricsServiceRequest
	headers []metadata.MD
}

// Start listens on a free loopback port, or on address when it is not empty.
func (r *Receiver) Start(address string, options ...grpc.ServerOption) error {
	if address == "" {
		address = "127.0.0.1:0"
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("listen for OTLP: %w", err)
	}
	r.address = listener.Addr().String()
	r.server = grpc.NewServer(options...)
	coltracepb.RegisterTraceServiceServer(r.server, traceService{r: r})
	colmetricpb.RegisterMetricsServiceServer(r.server, metricService{r: r})
	r.done.Go(func() { _ = r.server.Serve(listener) })
	return nil
}

// Stop ends it and waits.
func (r *Receiver) Stop() {
	r.server.Stop()
	r.done.Wait()
}

// Endpoint is the value for OTEL_EXPORTER_OTLP_ENDPOINT.
func (r *Receiver) Endpoint() string { return "http://" + r.address }

// Address is host:port.
func (r *Receiver) Address() string { return r.address }

// Headers returns the metadata of each request so far.
func (r *Receiver) Headers() []metadata.MD {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]metadata.MD(nil), r.headers...)
}

// TraceRequests returns what was taken, in order.
func (r *Receiver) TraceRequests() []*coltracepb.ExportTraceServiceRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*coltracepb.ExportTraceServiceRequest(nil), r.traces...)
}

// MetricRequests returns what was taken, in order.
func (r *Receiver) MetricRequests() []*colmetricpb.ExportMetricsServiceRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]*colmetricpb.ExportMetricsServiceRequest(nil), r.metrics...)
}

// Span is a span with its resource.
type Span struct {
	Resource *resourcepb.Resource
	*tracepb.Span
}

// Spans returns the spans that were taken, in order.
func (r *Receiver) Spans() []Span {
	var out []Span
	for _, req := range r.TraceRequests() {
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					out = append(out, Span{rs.GetResource(), s})
				}
			}
		}
	}
	return out
}

// Point is a metric point with its metric and resource.
type Point struct {
	Resource *resourcepb.Resource
	Metric   *metricpb.Metric
	*metricpb.NumberDataPoint
}

// Points returns the points of gauges and sums that were taken, in order.
func (r *Receiver) Points() []Point {
	var out []Point
	for _, req := range r.MetricRequests() {
		for _, rm := range req.GetResourceMetrics() {
			for _, sm := range rm.GetScopeMetrics() {
				for _, m := range sm.GetMetrics() {
					points := m.GetGauge().GetDataPoints()
					if m.GetSum() != nil {
						points = m.GetSum().GetDataPoints()
					}
					for _, p := range points {
						out = append(out, Point{rm.GetResource(), m, p})
					}
				}
			}
		}
	}
	return out
}

func (r *Receiver) header(ctx context.Context) {
	md, _ := metadata.FromIncomingContext(ctx)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.headers = append(r.headers, md)
}

type traceService struct {
	coltracepb.UnimplementedTraceServiceServer
	r *Receiver
}

func (s traceService) Export(ctx context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
	s.r.header(ctx)
	answer := &coltracepb.ExportTraceServiceResponse{}
	if s.r.Traces != nil {
		var err error
		if answer, err = s.r.Traces(ctx, req); err != nil {
			return nil, err
		}
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.traces = append(s.r.traces, proto.Clone(req).(*coltracepb.ExportTraceServiceRequest))
	return answer, nil
}

type metricService struct {
	colmetricpb.UnimplementedMetricsServiceServer
	r *Receiver
}

func (s metricService) Export(ctx context.Context, req *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error) {
	s.r.header(ctx)
	answer := &colmetricpb.ExportMetricsServiceResponse{}
	if s.r.Metrics != nil {
		var err error
		if answer, err = s.r.Metrics(ctx, req); err != nil {
			return nil, err
		}
	}
	s.r.mu.Lock()
	defer s.r.mu.Unlock()
	s.r.metrics = append(s.r.metrics, proto.Clone(req).(*colmetricpb.ExportMetricsServiceRequest))
	return answer, nil
}
