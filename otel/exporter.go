package otel

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/prov4ml/agent/record"
)

// The signals.
const (
	signalTraces  = "traces"
	signalMetrics = "metrics"
)

// encoded is what one request holds. It is made once, so that each attempt sends the same.
type encoded struct {
	records []*record.LogCall
	spans   []sdktrace.ReadOnlySpan
	metrics *metricdata.ResourceMetrics
	// before is where the process's points stood before this request, and moved how many of its points lost their own time.
	before int64
	moved  uint64
}

// exporter makes requests of records and sends them.
type exporter interface {
	// encode makes the requests, in order.
	encode(recs []*record.LogCall) []*encoded
	// rewind forgets that e was made, so that its records can be encoded again in smaller requests.
	rewind(e *encoded)
	export(ctx context.Context, e *encoded) error
	// moved counts points that could not keep their own time.
	moved() uint64
	shutdown(ctx context.Context) error
}

// traceExporter sends spans.
type traceExporter struct {
	exporter *otlptrace.Exporter
	builder  *spanBuilder
}

func newTraceExporter(ctx context.Context, version string, options ...otlptracegrpc.Option) (*traceExporter, error) {
	e, err := otlptracegrpc.New(ctx, append(options, otlptracegrpc.WithRetry(otlptracegrpc.RetryConfig{Enabled: false}))...)
	if err != nil {
		return nil, fmt.Errorf("make the exporter of traces: %w", err)
	}
	return &traceExporter{exporter: e, builder: newSpanBuilder(version)}, nil
}

func (x *traceExporter) encode(recs []*record.LogCall) []*encoded {
	e := &encoded{records: recs}
	for _, rec := range recs {
		e.spans = x.builder.spans(e.spans, rec)
	}
	return []*encoded{e}
}

func (x *traceExporter) rewind(*encoded) {}

func (x *traceExporter) export(ctx context.Context, e *encoded) error {
	return x.exporter.ExportSpans(ctx, e.spans)
}

func (x *traceExporter) moved() uint64 { return 0 }

func (x *traceExporter) shutdown(ctx context.Context) error { return x.exporter.Shutdown(ctx) }

// metricExporter sends metric points: a request holds those of one process.
type metricExporter struct {
	exporter *otlpmetricgrpc.Exporter
	builder  *metricBuilder
}

func newMetricExporter(ctx context.Context, version string, mode StepMode, options ...otlpmetricgrpc.Option) (*metricExporter, error) {
	e, err := otlpmetricgrpc.New(ctx, append(options, otlpmetricgrpc.WithRetry(otlpmetricgrpc.RetryConfig{Enabled: false}))...)
	if err != nil {
		return nil, fmt.Errorf("make the exporter of metrics: %w", err)
	}
	return &metricExporter{exporter: e, builder: newMetricBuilder(version, mode)}, nil
}

func (x *metricExporter) encode(recs []*record.LogCall) []*encoded {
	var order []*encoded
	of := map[processKey]*encoded{}
	for _, rec := range recs {
		key := keyOf(rec.GetProcess())
		e := of[key]
		// A description that changed makes another resource, and a request holds one.
		if e == nil || !sameProcess(e.records[0].GetProcess(), rec.GetProcess()) {
			e = &encoded{}
			of[key] = e
			order = append(order, e)
		}
		e.records = append(e.records, rec)
	}
	out := order[:0]
	for _, e := range order {
		moved := x.builder.moved
		e.before = x.builder.last[keyOf(e.records[0].GetProcess())]
		if metrics := x.builder.metrics(e.records); len(metrics) == 1 {
			e.metrics = metrics[0]
			e.moved = x.builder.moved - moved
			out = append(out, e)
		}
	}
	return out
}

func (x *metricExporter) rewind(e *encoded) {
	x.builder.last[keyOf(e.records[0].GetProcess())] = e.before
	x.builder.moved -= e.moved
}

func (x *metricExporter) export(ctx context.Context, e *encoded) error {
	return x.exporter.Export(ctx, e.metrics)
}

func (x *metricExporter) moved() uint64 { return x.builder.moved }

func (x *metricExporter) shutdown(ctx context.Context) error { return x.exporter.Shutdown(ctx) }

// dialOptions are those of a connection to a receiver. The keepalive's time-out is what matters: with it grpc sets
// TCP_USER_TIMEOUT, so a connection whose peer has vanished ends after 20 s instead of TCP's quarter of an hour. Pings
// themselves are rarer than any server's limit (5 minutes by default).
func dialOptions() []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithUnaryInterceptor(observe),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 6 * time.Minute, Timeout: 20 * time.Second}),
	}
}
