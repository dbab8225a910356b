package otel

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/collector/pdata/pmetric"
	"go.opentelemetry.io/collector/pdata/ptrace"
	colmetricpb "go.opentelemetry.io/proto/otlp/collector/metrics/v1"
	coltracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	metricpb "go.opentelemetry.io/proto/otlp/metrics/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/prov4ml/agent/otel/otlptest"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

// openStore opens the store in dir.
func openStore(t *testing.T, dir string) *store.Store {
	t.Helper()
	s, err := store.Open(context.Background(), store.Config{Path: filepath.Join(dir, "records.db")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// call is the n-th log_system_metrics record of a process.
func call(pid int32, n int) *record.LogCall {
	p := trainer()
	p.Pid, p.Rank = pid, -1
	rec := &record.LogCall{
		Schema: 1, Process: p, Function: record.Function_LOG_SYSTEM_METRICS, Seq: uint64(n),
		Context: proto.String("training"), Step: proto.Int64(int64(n)),
		StartUnixNanos: hello + int64(n)*second, EndUnixNanos: hello + int64(n+1)*second,
		Readings: []*record.Reading{ok(record.DiskWriteBytes, n+1), ok(record.MemoryRSSBytes, 1<<20)},
		OpensRun: n == 0,
		Segment:  &record.Segment{Context: "training", HasContext: true, StartUnixNanos: hello, Opens: n == 0, Spans: uint32(n + 1)},
		StepTotals: &record.TotalSet{
			StartUnixNanos: hello + int64(n)*second, Totals: []*record.Total{total(record.DiskWriteBytes, n+1)},
		},
		ContextTotals: &record.TotalSet{
			StartUnixNanos: hello, Totals: []*record.Total{total(record.DiskWriteBytes, (n+1)*(n+2)/2)},
		},
	}
	return rec
}

// add stores records and waits for the last commit.
func add(t *testing.T, s *store.Store, recs ...*record.LogCall) {
	t.Helper()
	var wait func(context.Context) (int64, error)
	for _, rec := range recs {
		wait = s.Append(rec, "p", nil)
	}
	if _, err := wait(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func calls(pid int32, from, to int) []*record.LogCall {
	var out []*record.LogCall
	for n := from; n < to; n++ {
		out = append(out, call(pid, n))
	}
	return out
}

// environment is what a user sets for an endpoint. The exporters read the process's variables, so they are set too.
func environment(t *testing.T, variables map[string]string) Environment {
	t.Helper()
	for k, v := range variables {
		t.Setenv(k, v)
	}
	env, err := ReadEnvironment(os.Getenv)
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func receiver(t *testing.T, r *otlptest.Receiver) *otlptest.Receiver {
	t.Helper()
	if err := r.Start(""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Stop)
	return r
}

func start(t *testing.T, c Config) *Pipeline {
	t.Helper()
	c.Version = "1.2.3"
	if c.Linger == 0 {
		c.Linger = time.Millisecond
	}
	if c.RetryInitial == 0 {
		c.RetryInitial, c.RetryMax = time.Millisecond, 5*time.Millisecond
	}
	p, err := Start(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return p
}

func flushed(t *testing.T, p *Pipeline) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := p.Flush(ctx); err != nil {
		t.Fatal(err)
	}
}

// eventually waits for what a goroutine does.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain until %s", what)
		}
	}
}

func statsOf(t *testing.T, p *Pipeline, destination, signal string) Stats {
	t.Helper()
	for _, s := range p.Stats() {
		if s.Destination == destination && s.Signal == signal {
			return s
		}
	}
	t.Fatalf("no worker for %s %s", destination, signal)
	return Stats{}
}

// linesOf are the files' lines, each checked to be JSON.
func linesOf(t *testing.T, path string) []string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(b) > 0 && b[len(b)-1] != '\n' {
		t.Fatalf("%s ends in a torn line", path)
	}
	var out []string
	for line := range strings.Lines(string(b)) {
		if !json.Valid([]byte(line)) {
			t.Fatalf("%s: a line is no JSON: %q", path, line)
		}
		out = append(out, line)
	}
	return out
}

// stepsIn are the steps of the log calls in a file of spans, in order.
func stepsIn(t *testing.T, path string) []string {
	t.Helper()
	var steps []string
	for _, line := range linesOf(t, path) {
		var doc struct {
			ResourceSpans []struct {
				ScopeSpans []struct {
					Spans []struct {
						Name       string
						Attributes []struct {
							Key   string
							Value struct{ IntValue string }
						}
					}
				}
			}
		}
		if err := json.Unmarshal([]byte(line), &doc); err != nil {
			t.Fatal(err)
		}
		for _, rs := range doc.ResourceSpans {
			for _, ss := range rs.ScopeSpans {
				for _, s := range ss.Spans {
					for _, a := range s.Attributes {
						if a.Key == "prov4ml.step" {
							steps = append(steps, a.Value.IntValue)
						}
					}
				}
			}
		}
	}
	return steps
}

func wantSteps(from, to int) []string {
	var out []string
	for n := from; n < to; n++ {
		out = append(out, fmt.Sprint(n))
	}
	return out
}

func TestFilesAndReceiverGetTheSame(t *testing.T) {
	r := receiver(t, &otlptest.Receiver{})
	env := environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_ENDPOINT": r.Endpoint(),
		"OTEL_EXPORTER_OTLP_HEADERS":  "x-tenant=a%20b",
	})
	dir := t.TempDir()
	s := openStore(t, dir)
	out := filepath.Join(dir, "out")
	p := start(t, Config{Store: s, OTLP: env, Directory: out})
	add(t, s, training()...)
	flushed(t, p)

	memory := t.TempDir()
	traces, metrics := lines(t, training(), StepAttribute)
	for name, content := range map[string]string{TracesFile: traces, MetricsFile: metrics} {
		if err := os.WriteFile(filepath.Join(memory, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want := contentOfFiles(t, memory)
	if len(want.spans) != 11 || len(want.points) != 26 {
		t.Fatalf("the records become %d spans and %d points", len(want.spans), len(want.points))
	}
	if diff := cmp.Diff(want, contentOfFiles(t, out), cmp.AllowUnexported(content{})); diff != "" {
		t.Errorf("the files differ from the records (-want +got):\n%s", diff)
	}
	var got content
	for _, req := range r.TraceRequests() {
		got.addSpans(t, req.GetResourceSpans())
	}
	for _, req := range r.MetricRequests() {
		got.addPoints(t, req.GetResourceMetrics())
	}
	if diff := cmp.Diff(want, got.sorted(), cmp.AllowUnexported(content{})); diff != "" {
		t.Errorf("what was received differs from the records (-want +got):\n%s", diff)
	}
	for _, h := range r.Headers() {
		if got := h.Get("x-tenant"); len(got) != 1 || got[0] != "a b" {
			t.Errorf("header x-tenant is %q, want \"a b\"", got)
		}
	}
	for _, st := range p.Stats() {
		if st.Refused != 0 || st.Rejected != 0 || st.LastError != "" || st.Records != 4 {
			t.Errorf("stats are %+v", st)
		}
	}
}

// content is spans and points, each with its resource, as text, whatever requests they came in.
type content struct{ spans, points []string }

func (c *content) sorted() content {
	slices.Sort(c.spans)
	slices.Sort(c.points)
	return *c
}

func (c *content) addSpans(t *testing.T, resources []*tracepb.ResourceSpans) {
	t.Helper()
	for _, rs := range resources {
		for _, ss := range rs.GetScopeSpans() {
			for _, s := range ss.GetSpans() {
				c.spans = append(c.spans, textOf(t, rs.GetResource(), ss.GetScope(), s)+rs.GetSchemaUrl())
			}
		}
	}
}

func (c *content) addPoints(t *testing.T, resources []*metricpb.ResourceMetrics) {
	t.Helper()
	for _, rm := range resources {
		for _, sm := range rm.GetScopeMetrics() {
			for _, m := range sm.GetMetrics() {
				points := m.GetGauge().GetDataPoints()
				if m.GetSum() != nil {
					points = m.GetSum().GetDataPoints()
				}
				for _, p := range points {
					c.points = append(c.points, m.GetName()+m.GetUnit()+m.GetDescription()+textOf(t, rm.GetResource(), sm.GetScope(), p)+
						fmt.Sprint(m.GetSum().GetIsMonotonic(), m.GetSum().GetAggregationTemporality())+rm.GetSchemaUrl())
				}
			}
		}
	}
}

func textOf(t *testing.T, messages ...proto.Message) string {
	t.Helper()
	var b strings.Builder
	for _, m := range messages {
		wire, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%q ", wire)
	}
	return b.String()
}

// contentOfFiles reads the two files back as the collector would.
func contentOfFiles(t *testing.T, dir string) content {
	t.Helper()
	var c content
	for _, line := range linesOf(t, filepath.Join(dir, TracesFile)) {
		data, err := (&ptrace.JSONUnmarshaler{}).UnmarshalTraces([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		wire, err := (&ptrace.ProtoMarshaler{}).MarshalTraces(data)
		if err != nil {
			t.Fatal(err)
		}
		var m tracepb.TracesData
		if err := proto.Unmarshal(wire, &m); err != nil {
			t.Fatal(err)
		}
		c.addSpans(t, m.GetResourceSpans())
	}
	for _, line := range linesOf(t, filepath.Join(dir, MetricsFile)) {
		data, err := (&pmetric.JSONUnmarshaler{}).UnmarshalMetrics([]byte(line))
		if err != nil {
			t.Fatal(err)
		}
		wire, err := (&pmetric.ProtoMarshaler{}).MarshalMetrics(data)
		if err != nil {
			t.Fatal(err)
		}
		var m metricpb.MetricsData
		if err := proto.Unmarshal(wire, &m); err != nil {
			t.Fatal(err)
		}
		c.addPoints(t, m.GetResourceMetrics())
	}
	return c.sorted()
}

func TestOutageLosesNothing(t *testing.T) {
	var down atomic.Bool
	down.Store(true)
	r := receiver(t, &otlptest.Receiver{
		Traces: func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			if down.Load() {
				return nil, status.Error(codes.Unavailable, "later")
			}
			return &coltracepb.ExportTraceServiceResponse{}, nil
		},
		Metrics: func(context.Context, *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error) {
			if down.Load() {
				return nil, status.Error(codes.Unavailable, "later")
			}
			return &colmetricpb.ExportMetricsServiceResponse{}, nil
		},
	})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": r.Endpoint()})
	s := openStore(t, t.TempDir())
	var log syncBuffer
	p := start(t, Config{Store: s, OTLP: env, Log: slog.New(slog.NewTextHandler(&log, nil))})
	add(t, s, calls(1, 0, 700)...)

	eventually(t, "both signals fail", func() bool {
		return statsOf(t, p, "otlp", "traces").Retries > 0 && statsOf(t, p, "otlp", "metrics").Retries > 0
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	err := p.Flush(ctx)
	if !errors.Is(err, ErrUndelivered) || !strings.Contains(err.Error(), "700 records wait for otlp traces") {
		t.Errorf("Flush during the outage said %v", err)
	}
	down.Store(false)
	flushed(t, p)

	checkCalls(t, r, 1, 700)
	if st := statsOf(t, p, "otlp", "traces"); st.Retries == 0 || st.Records != 700 || st.Refused != 0 || st.LastError != "" {
		t.Errorf("stats are %+v", st)
	}
	if n := strings.Count(log.String(), "cannot deliver now"); n != 2 {
		t.Errorf("the outage was logged %d times, want once a signal:\n%s", n, log.String())
	}
	if n := strings.Count(log.String(), "delivering again"); n != 2 {
		t.Errorf("the return was logged %d times, want once a signal", n)
	}
}

// checkCalls checks that each call of the process arrived once, and its points in order.
func checkCalls(t *testing.T, r *otlptest.Receiver, pid int64, n int) {
	t.Helper()
	seen := map[string]int{}
	for _, span := range r.Spans() {
		if span.GetName() == "log_system_metrics" && resourceInt(span.Resource.GetAttributes(), "process.pid") == pid {
			seen[string(span.GetSpanId())]++
		}
	}
	if len(seen) != n {
		t.Errorf("process %d: %d spans arrived, want %d", pid, len(seen), n)
	}
	for id, times := range seen {
		if times != 1 {
			t.Errorf("span %x arrived %d times", id, times)
		}
	}
	var newest uint64
	var sum int64
	for _, point := range r.Points() {
		if resourceInt(point.Resource.GetAttributes(), "process.pid") != pid || point.Metric.GetName() != "prov4ml.disk.write_bytes" {
			continue
		}
		if point.GetTimeUnixNano() <= newest {
			t.Errorf("process %d: a point of %d came after one of %d", pid, point.GetTimeUnixNano(), newest)
		}
		newest = point.GetTimeUnixNano()
		sum += point.GetAsInt()
	}
	if want := int64(n) * int64(n+1) / 2; sum != want {
		t.Errorf("process %d: the sets add up to %d, want %d", pid, sum, want)
	}
}

func TestOrderPerProcess(t *testing.T) {
	r := receiver(t, &otlptest.Receiver{})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": r.Endpoint()})
	s := openStore(t, t.TempDir())
	p := start(t, Config{Store: s, OTLP: env})
	var mixed []*record.LogCall
	for n := range 200 {
		for pid := int32(1); pid <= 3; pid++ {
			mixed = append(mixed, call(pid, n))
		}
	}
	add(t, s, mixed...)
	flushed(t, p)
	for pid := int64(1); pid <= 3; pid++ {
		checkCalls(t, r, pid, 200)
	}
}

func TestRetryInfoIsHonoured(t *testing.T) {
	const delay = 60 * time.Millisecond
	var mu sync.Mutex
	var times []time.Time
	r := receiver(t, &otlptest.Receiver{
		Traces: func(context.Context, *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			mu.Lock()
			defer mu.Unlock()
			if times = append(times, time.Now()); len(times) > 1 {
				return &coltracepb.ExportTraceServiceResponse{}, nil
			}
			st, err := status.New(codes.ResourceExhausted, "slow down").WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(delay)})
			if err != nil {
				return nil, err
			}
			return nil, st.Err()
		},
	})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": r.Endpoint()})
	s := openStore(t, t.TempDir())
	add(t, s, call(1, 0))
	p := start(t, Config{Store: s, OTLP: env})
	// No Flush while it waits: that would end the wait.
	eventually(t, "the records are settled", func() bool {
		st := statsOf(t, p, "otlp", "traces")
		return st.Records+st.Refused > 0
	})
	mu.Lock()
	defer mu.Unlock()
	if len(times) != 2 || times[1].Sub(times[0]) < delay {
		t.Errorf("requests came at %v; the second must wait %v", times, delay)
	}
	if len(p.Stats()) != 1 {
		t.Errorf("only traces have an endpoint, but there are %d workers", len(p.Stats()))
	}
}

func TestExhaustedIsSplitOnce(t *testing.T) {
	var mu sync.Mutex
	var sizes []int
	spans := func(req *coltracepb.ExportTraceServiceRequest) int {
		n := 0
		for _, rs := range req.GetResourceSpans() {
			for _, ss := range rs.GetScopeSpans() {
				for _, s := range ss.GetSpans() {
					if s.GetName() == "log_system_metrics" {
						n++
					}
				}
			}
		}
		return n
	}
	r := receiver(t, &otlptest.Receiver{
		Traces: func(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			mu.Lock()
			defer mu.Unlock()
			n := spans(req)
			sizes = append(sizes, n)
			if n > 60 || n == 30 {
				return nil, status.Error(codes.ResourceExhausted, "message larger than max")
			}
			return &coltracepb.ExportTraceServiceResponse{}, nil
		},
	})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": r.Endpoint()})
	s := openStore(t, t.TempDir())
	add(t, s, calls(1, 0, 100)...)
	p := start(t, Config{Store: s, OTLP: env})
	flushed(t, p)
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	add(t, s, calls(2, 0, 61)...) // 30 + 31: the first half is refused again
	p = start(t, Config{Store: s, OTLP: env})
	flushed(t, p)
	if want := []int{100, 50, 50, 61, 30, 31}; !slices.Equal(sizes, want) {
		t.Errorf("requests held %v log calls, want %v", sizes, want)
	}
	if st := statsOf(t, p, "otlp", "traces"); st.Refused != 30 || st.Records != 31 {
		t.Errorf("stats are %+v", st)
	}
}

// A request of points that is made again in halves has the times that it had.
func TestSplitKeepsTimes(t *testing.T) {
	recs := calls(1, 0, 64)
	for n, rec := range recs {
		ms := (rec.StartUnixNanos + second/2) / int64(time.Millisecond)
		if n%8 == 7 {
			ms = 5 // out of order: counted once, however often it is made
		}
		rec.Timestamp = &ms
	}
	r := receiver(t, &otlptest.Receiver{
		Metrics: func(_ context.Context, req *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error) {
			if len(req.GetResourceMetrics()[0].GetScopeMetrics()[0].GetMetrics()[0].GetSum().GetDataPoints()) > 32 {
				return nil, status.Error(codes.ResourceExhausted, "too much")
			}
			return &colmetricpb.ExportMetricsServiceResponse{}, nil
		},
	})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": r.Endpoint()})
	s := openStore(t, t.TempDir())
	add(t, s, recs...)
	p := start(t, Config{Store: s, OTLP: env})
	flushed(t, p)
	n := 0
	for _, point := range r.Points() {
		if point.Metric.GetName() != "prov4ml.disk.write_bytes" {
			continue
		}
		want := recs[n].StartUnixNanos + second/2
		if n%8 == 7 {
			want = recs[n].EndUnixNanos
		}
		if got := int64(point.GetTimeUnixNano()); got != want {
			t.Errorf("point %d is of %d, want %d", n, got-hello, want-hello)
		}
		n++
	}
	if st := statsOf(t, p, "otlp", "metrics"); n != 64 || st.Moved != 8 {
		t.Errorf("%d points, stats are %+v", n, st)
	}
}

func TestFinalAnswersAreCountedAndSkipped(t *testing.T) {
	r := receiver(t, &otlptest.Receiver{
		Traces: func(_ context.Context, req *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			if req.GetResourceSpans()[0].GetScopeSpans()[0].GetSpans()[0].GetName() == "training_run" {
				return nil, status.Error(codes.InvalidArgument, "no such thing")
			}
			return &coltracepb.ExportTraceServiceResponse{
				PartialSuccess: &coltracepb.ExportTracePartialSuccess{RejectedSpans: 2, ErrorMessage: "two too many"},
			}, nil
		},
		Metrics: func(context.Context, *colmetricpb.ExportMetricsServiceRequest) (*colmetricpb.ExportMetricsServiceResponse, error) {
			return nil, status.Error(codes.Unimplemented, "unknown service MetricsService")
		},
	})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": r.Endpoint()})
	s := openStore(t, t.TempDir())
	var log syncBuffer
	p := start(t, Config{Store: s, OTLP: env, Log: slog.New(slog.NewTextHandler(&log, nil))})
	add(t, s, call(1, 0))
	flushed(t, p)
	add(t, s, calls(1, 1, 6)...)
	flushed(t, p)

	st := statsOf(t, p, "otlp", "traces")
	if st.Refused != 1 || st.Rejected == 0 || st.Records != 5 || st.Retries != 0 || st.LastError != "two too many" {
		t.Errorf("stats of traces are %+v", st)
	}
	st = statsOf(t, p, "otlp", "metrics")
	if !st.Stopped || st.Refused != 6 || st.Records != 0 {
		t.Errorf("stats of metrics are %+v", st)
	}
	if n := strings.Count(log.String(), "does not take this signal"); n != 1 {
		t.Errorf("Unimplemented was logged %d times, want once:\n%s", n, log.String())
	}
	if !strings.Contains(log.String(), "OTEL_METRICS_EXPORTER=none") {
		t.Errorf("the cure is not in the log:\n%s", log.String())
	}
	if n := len(r.Headers()); n > 8 {
		t.Errorf("%d requests; the stopped signal must not be sent again", n)
	}
}

func TestHangingReceiver(t *testing.T) {
	var hung atomic.Int32
	r := receiver(t, &otlptest.Receiver{
		Traces: func(ctx context.Context, _ *coltracepb.ExportTraceServiceRequest) (*coltracepb.ExportTraceServiceResponse, error) {
			if hung.Add(1) <= 2 {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			return &coltracepb.ExportTraceServiceResponse{}, nil
		},
	})
	env := environment(t, map[string]string{
		"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": r.Endpoint(),
		"OTEL_EXPORTER_OTLP_TIMEOUT":         "50",
	})
	s := openStore(t, t.TempDir())
	p := start(t, Config{Store: s, OTLP: env})
	add(t, s, call(1, 0))
	flushed(t, p)
	if st := statsOf(t, p, "otlp", "traces"); st.Retries < 2 || st.Records != 1 {
		t.Errorf("stats are %+v", st)
	}
}

func TestReceiverThatComesLater(t *testing.T) {
	r := receiver(t, &otlptest.Receiver{})
	address := r.Address()
	r.Stop()
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": address, "OTEL_EXPORTER_OTLP_INSECURE": "true"})
	s := openStore(t, t.TempDir())
	p := start(t, Config{Store: s, OTLP: env})
	add(t, s, calls(1, 0, 3)...)
	eventually(t, "delivery fails", func() bool { return statsOf(t, p, "otlp", "metrics").Retries > 0 })
	late := &otlptest.Receiver{}
	if err := late.Start(address); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(late.Stop)
	flushed(t, p)
	checkCalls(t, late, 1, 3)
}

func TestABatchCutShortByItsBytesIsFollowedAtOnce(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	recs := calls(1, 0, 20)
	for _, rec := range recs {
		rec.Label = strings.Repeat("x", maxRequestBytes/8)
	}
	add(t, s, recs...)
	p := start(t, Config{Store: s, Directory: filepath.Join(dir, "out"), Linger: time.Hour})
	eventually(t, "all batches are written without lingering", func() bool {
		for _, u := range s.Stats().Undelivered {
			if u.Records > 0 {
				return false
			}
		}
		return statsOf(t, p, filepath.Join(dir, "out"), signalTraces).Records == 20
	})
}

// Many records are announced before they are read, until they are delivered; few are not.
func TestABurstIsAnnounced(t *testing.T) {
	for _, row := range []struct{ records, bursts int }{{burstRecords, 0}, {burstRecords + 1, 2}} {
		s := openStore(t, t.TempDir())
		add(t, s, calls(1, 0, row.records)...)
		var running, begun atomic.Int32
		p := start(t, Config{Store: s, Directory: t.TempDir(), Burst: func() func() {
			begun.Add(1)
			running.Add(1)
			return func() { running.Add(-1) }
		}})
		flushed(t, p)
		if err := p.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		if int(begun.Load()) != row.bursts || running.Load() != 0 {
			t.Errorf("%d records in two files: %d bursts, %d of them not over; want %d", row.records, begun.Load(), running.Load(), row.bursts)
		}
	}
}

// While a receiver is down nothing is under way.
func TestABurstIsOverWhileItIsRetried(t *testing.T) {
	s := openStore(t, t.TempDir())
	add(t, s, calls(1, 0, burstRecords+1)...)
	down := receiver(t, &otlptest.Receiver{})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": down.Endpoint(), "OTEL_METRICS_EXPORTER": "none"})
	down.Stop()
	var running atomic.Int32
	p := start(t, Config{Store: s, OTLP: env, Burst: func() func() {
		running.Add(1)
		return func() { running.Add(-1) }
	}})
	eventually(t, "the request is tried again", func() bool { return statsOf(t, p, DestinationOTLP, signalTraces).Retries > 2 })
	if got := running.Load(); got != 0 {
		t.Errorf("%d bursts are not over", got)
	}
}

func TestRequestsStayBelowTheLimit(t *testing.T) {
	r := receiver(t, &otlptest.Receiver{})
	env := environment(t, map[string]string{"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": r.Endpoint()})
	dir := t.TempDir()
	s := openStore(t, dir)
	recs := calls(1, 0, 40)
	for _, rec := range recs {
		rec.Unavailable = []string{strings.Repeat("x", 300<<10)}
	}
	recs[20].Unavailable = []string{strings.Repeat("y", 3<<20)} // more than a request may hold, by itself
	add(t, s, recs...)
	p := start(t, Config{Store: s, OTLP: env, Directory: dir})
	flushed(t, p)
	large := 0
	for _, req := range r.TraceRequests() {
		if proto.Size(req) > maxRequestBytes {
			large++
		}
	}
	if large != 1 {
		t.Errorf("%d requests are over the limit, want the single record alone", large)
	}
	if got := len(r.Spans()); got != 42 {
		t.Errorf("%d spans arrived, want 42", got)
	}
	if got := stepsIn(t, filepath.Join(dir, TracesFile)); !slices.Equal(got, wantSteps(0, 40)) {
		t.Errorf("the file holds steps %v", got)
	}
}

// syncBuffer is a log that several goroutines write.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func resourceInt(attrs []*commonpb.KeyValue, key string) int64 {
	for _, a := range attrs {
		if a.GetKey() == key {
			return a.GetValue().GetIntValue()
		}
	}
	return -1
}
