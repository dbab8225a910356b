package e2e

import (
	"context"
	"encoding/hex"
	"net"
	"path/filepath"
	"sync"
	"testing"

	metricspb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"google.golang.org/grpc"
)

// receiver is an OTLP/gRPC receiver that keeps what it gets.
type receiver struct {
	tracepb.UnimplementedTraceServiceServer
	mu     sync.Mutex
	spans  map[string]string // trace and span id -> name
	points int
}

func (r *receiver) Export(_ context.Context, request *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rs := range request.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				r.spans[hex.EncodeToString(s.TraceId)+hex.EncodeToString(s.SpanId)] = s.Name
			}
		}
	}
	return &tracepb.ExportTraceServiceResponse{}, nil
}

type metricsReceiver struct {
	metricspb.UnimplementedMetricsServiceServer
	*receiver
}

func (r metricsReceiver) Export(_ context.Context, request *metricspb.ExportMetricsServiceRequest) (*metricspb.ExportMetricsServiceResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, rm := range request.ResourceMetrics {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				r.points += len(m.GetSum().GetDataPoints()) + len(m.GetGauge().GetDataPoints())
			}
		}
	}
	return &metricspb.ExportMetricsServiceResponse{}, nil
}

func TestRunExportsWhatTheFilesHold(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	got := &receiver{spans: map[string]string{}}
	server := grpc.NewServer()
	tracepb.RegisterTraceServiceServer(server, got)
	metricspb.RegisterMetricsServiceServer(server, metricsReceiver{receiver: got})
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	data, out := dataDir(t), filepath.Join(dataDir(t), "run")
	cmd := runCommand(out, nil, python(), script(t, "steps.py"), data, "1", "1", "1")
	cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+listener.Addr().String())
	if code := startJob(t, cmd).exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	got.mu.Lock()
	defer got.mu.Unlock()
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	if len(spans) != len(got.spans) {
		t.Errorf("%d spans in the file, %d received", len(spans), len(got.spans))
	}
	for _, s := range spans {
		if name, ok := got.spans[s.TraceID+s.SpanID]; !ok || name != s.Name {
			t.Errorf("span %s %s of the file was received as %q", s.Name, s.SpanID, name)
		}
	}
	if points := readPoints(t, filepath.Join(out, "metrics.jsonl")); len(points) != got.points || len(points) == 0 {
		t.Errorf("%d points in the file, %d received", len(points), got.points)
	}
}
