package otel

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.opentelemetry.io/otel/exporters/otlp/otlpmetric/otlpmetricgrpc"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/record"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	second = int64(time.Second)
	// hello is when the test's process said hello: 2026-11-24 08:00:00 UTC.
	hello = 1795507200 * second
)

// trainer is the process of the tests.
func trainer() *record.Process {
	return &record.Process{
		BootId:         "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0",
		Pid:            4711,
		StartTicks:     123456,
		StartUnixNanos: hello - 2*second,
		RunId:          "job-17",
		Rank:           1,
		Attempt:        2,
		ServiceName:    "resnet",
		HostName:       "node-a",
		ContainerId:    "c0ffee",
		PodUid:         "5c1e7e3e-1111-2222-3333-444455556666",
		Resource:       map[string]string{"k8s.node.name": "node-a", "deployment.environment.name": "test", "service.name": "not this"},
	}
}

func ok(name string, value any) *record.Reading {
	r := &record.Reading{Name: name, State: record.State_OK, Source: record.Source_EBPF}
	switch v := value.(type) {
	case int:
		r.Value = &record.Reading_Integer{Integer: int64(v)}
	case int64:
		r.Value = &record.Reading_Integer{Integer: v}
	case float64:
		r.Value = &record.Reading_Real{Real: v}
	case bool:
		r.Value = &record.Reading_Boolean{Boolean: v}
	case string:
		r.Value = &record.Reading_Text{Text: v}
	default:
		panic(v)
	}
	return r
}

func lacking(name string, state record.State, reason string) *record.Reading {
	return &record.Reading{Name: name, State: state, Reason: reason}
}

func total(name string, value any) *record.Total {
	t := &record.Total{Name: name}
	switch v := value.(type) {
	case int:
		t.Value = &record.Total_Integer{Integer: int64(v)}
	case int64:
		t.Value = &record.Total_Integer{Integer: v}
	case float64:
		t.Value = &record.Total_Real{Real: v}
	default:
		panic(v)
	}
	return t
}

// training is a short run as records: two system-metrics calls of which the second opens a new segment, one FLOPs call, the end.
func training() []*record.LogCall {
	first := &record.LogCall{
		Schema: 1, Process: trainer(), Function: record.Function_LOG_SYSTEM_METRICS, Seq: 0,
		Context: proto.String("training"), Step: proto.Int64(0),
		StartUnixNanos: hello, EndUnixNanos: hello + 10*second,
		WindowFirst: true,
		LagSeconds:  0.0123,
		Readings: []*record.Reading{
			ok(record.MemoryUsage, 41.5), ok(record.DiskUsage, 70.0), ok(record.DiskUsage+"./data", 12.5), ok(record.CPUUsage, 93.75),
			lacking(record.GPUUsage, record.State_ABSENT, "no NVIDIA driver"),
			lacking(record.GPUMemoryUsage, record.State_ABSENT, "no NVIDIA driver"),
			ok(record.DiskReadBytes, 4096000), ok(record.DiskWriteBytes, 8192), ok(record.DiskReadOps, 100), ok(record.DiskWriteOps, 2),
			ok(record.DiskMetadataWriteBytes, 4096), ok(record.DiskDirtiedBytes, 12288), ok(record.DiskPendingWriteBytes, 4096),
			ok(record.DiskOtherWriteBytes, 777), ok(record.DiskUnattributedWriteBytes, 0),
			lacking(record.DiskReadLatencyP50, record.State_UNSUPPORTED, ""),
			ok(record.DiskWriteLatencyP99, 0.004),
			ok(record.IOReadBytes, 5000000), ok(record.IOWriteBytes, 12000),
			ok(record.MemoryRSSBytes, 500<<20), ok(record.MemoryRSSPeakBytes, 600<<20), ok(record.MemoryRSSPeakExact, false),
			ok(record.MemoryRSSPeakUpperBytes, 640<<20), ok(record.MemoryRSSSampleHertz, 25.0),
			ok(record.MemoryMinorFaults, 1000), ok(record.MemoryMajorFaults, 3), ok(record.MemoryReclaimStallSeconds, 0.25),
			ok(record.CPUSeconds, 9.5), ok(record.Processes, 3), ok(record.ProcessesExited, 1),
			ok(record.SourceDisk, "ebpf"), ok(record.SourceMemory, "ebpf"),
		},
		Unavailable: []string{"GPU: no NVIDIA driver is loaded; values appear once it is"},
		Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
		OpensRun:    true,
		Segment:     &record.Segment{Number: 0, Context: "training", HasContext: true, StartUnixNanos: hello, Opens: true, Spans: 1, EndUnixNanos: hello + 10*second},
		StepTotals: &record.TotalSet{StartUnixNanos: hello, Totals: []*record.Total{
			total(record.DiskReadBytes, 4096000), total(record.DiskWriteBytes, 8192), total(record.CPUSeconds, 9.5),
		}},
		ContextTotals: &record.TotalSet{StartUnixNanos: hello, Totals: []*record.Total{
			total(record.DiskReadBytes, 4096000), total(record.DiskWriteBytes, 8192), total(record.CPUSeconds, 9.5),
		}},
		RunAttributes: map[string]string{"lr": "0.1", "batch size": "32"},
	}

	second1 := &record.LogCall{
		Schema: 1, Process: trainer(), Function: record.Function_LOG_SYSTEM_METRICS, Seq: 1,
		Context: proto.String("training"), Step: proto.Int64(1),
		StartUnixNanos: hello + 10*second, EndUnixNanos: hello + 20*second,
		Timestamp: proto.Int64((hello + 19*second) / int64(time.Millisecond)),
		WindowGap: true, WindowIncomplete: true,
		Readings: []*record.Reading{
			ok(record.DiskReadBytes, 1000), ok(record.DiskWriteBytes, 2000), ok(record.CPUSeconds, 8.0), ok(record.MemoryRSSBytes, 510<<20),
		},
		Events: []*record.Event{{
			Name: "oom_kill", TimeUnixNanos: hello + 15*second, Attributes: []*record.Reading{ok("pid", 4800)},
		}},
		Segment:        &record.Segment{Number: 1, Context: "training", HasContext: true, StartUnixNanos: hello + 10*second, Opens: true, Spans: 1, EndUnixNanos: hello + 20*second},
		ClosedSegments: []*record.Segment{{Number: 0, Context: "training", HasContext: true, StartUnixNanos: hello, Spans: 1, EndUnixNanos: hello + 10*second}},
		StepTotals: &record.TotalSet{StartUnixNanos: hello + 10*second, Totals: []*record.Total{
			total(record.DiskReadBytes, 1000), total(record.DiskWriteBytes, 2000), total(record.CPUSeconds, 8.0),
		}},
		ContextTotals: &record.TotalSet{StartUnixNanos: hello, Totals: []*record.Total{
			total(record.DiskReadBytes, 4097000), total(record.DiskWriteBytes, 10192), total(record.CPUSeconds, 17.5),
		}},
		LoggedMetrics: []*record.LoggedMetric{
			{Key: "loss", Value: 0.75, Context: proto.String("training"), Step: proto.Int64(1), TimeUnixNanos: hello + 18*second},
		},
		Enclosing: []*record.ProcessKey{{Pid: 4000, StartTicks: 99}},
	}

	flops := &record.LogCall{
		Schema: 1, Process: trainer(), Function: record.Function_LOG_FLOPS_PER_BATCH, Seq: 0,
		Step: proto.Int64(7), Label: "train_flops",
		StartUnixNanos: hello, EndUnixNanos: hello + 21*second,
		Readings: []*record.Reading{
			ok(record.FlopsTotal, 3e9), ok(record.FlopsForward, 1e9), ok(record.FlopsBackward, 2e9), ok(record.FlopsExact, "3000000000"),
			ok(record.FlopsCumulative, 9e9), ok(record.FlopsRate, 1.5e9), ok(record.FlopsComplete, false), ok(record.FlopsUnknownOps, "aten.foo\naten.bar"),
			ok(record.DiskReadBytes, 5097000),
		},
		Segment: &record.Segment{StartUnixNanos: hello, Opens: true, Spans: 1, EndUnixNanos: hello + 21*second},
	}

	end := &record.LogCall{
		Schema: 1, Process: trainer(), Function: record.Function_RUN_END,
		StartUnixNanos: hello + 20*second, EndUnixNanos: hello + 22*second,
		Readings: []*record.Reading{
			ok(record.DiskReadBytes, 10), ok(record.DiskWriteBytes, 30000), ok(record.CPUSeconds, 0.5),
		},
		RunTotals: []*record.Reading{
			ok(record.DiskReadBytes, 4097010), ok(record.DiskWriteBytes, 40192), ok(record.CPUSeconds, 18.0),
		},
		ClosedSegments: []*record.Segment{
			{Number: 1, Context: "training", HasContext: true, StartUnixNanos: hello + 10*second, Spans: 1, EndUnixNanos: hello + 20*second},
			{StartUnixNanos: hello, Spans: 1, EndUnixNanos: hello + 21*second},
		},
		RunAttributes: map[string]string{"lr": "0.1", "batch size": "32", "optimizer": "sgd"},
	}
	return []*record.LogCall{first, second1, flops, end}
}

// lines makes the JSON lines of the records by the exporters themselves.
func lines(t *testing.T, recs []*record.LogCall, mode StepMode) (traces, metrics string) {
	t.Helper()
	ctx := context.Background()
	f := &lineFile{path: "memory"}
	conn, err := f.connection()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	export := func(x exporter, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer x.shutdown(ctx)
		f.lines.Reset()
		for _, e := range x.encode(recs) {
			if err := x.export(ctx, e); err != nil {
				t.Fatal(err)
			}
		}
		return f.lines.String()
	}
	x, err := newTraceExporter(ctx, "1.2.3", otlptracegrpc.WithGRPCConn(conn))
	traces = export(x, err)
	y, err := newMetricExporter(ctx, "1.2.3", mode, otlpmetricgrpc.WithGRPCConn(conn))
	return traces, export(y, err)
}

func pretty(t *testing.T, lines string) []byte {
	t.Helper()
	var out bytes.Buffer
	for line := range strings.Lines(lines) {
		if err := json.Indent(&out, []byte(line), "", " "); err != nil {
			t.Fatal(err)
		}
	}
	return out.Bytes()
}

func checkGolden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s differs; go test -update rewrites it (-want +got):\n%s", path, diff)
	}
}

func TestGoldenLines(t *testing.T) {
	traces, attribute := lines(t, training(), StepAttribute)
	_, exemplar := lines(t, training(), StepExemplar)
	checkGolden(t, "traces.json", pretty(t, traces))
	checkGolden(t, "metrics-attribute.json", pretty(t, attribute))
	checkGolden(t, "metrics-exemplar.json", pretty(t, exemplar))
}

func TestLinesAreDeterministic(t *testing.T) {
	// Two processes, so that a request holds two resources, and records that went through the store's encoding.
	recs := training()
	for _, rec := range training() {
		rec.Process.Pid, rec.Process.Rank = 4712, 0
		recs = append(recs, rec)
	}
	traces, metrics := lines(t, recs, StepAttribute)
	for range 20 {
		for i, rec := range recs {
			b, err := proto.Marshal(rec)
			if err != nil {
				t.Fatal(err)
			}
			recs[i] = &record.LogCall{}
			if err := proto.Unmarshal(b, recs[i]); err != nil {
				t.Fatal(err)
			}
		}
		traces2, metrics2 := lines(t, recs, StepAttribute)
		if traces2 != traces || metrics2 != metrics {
			t.Fatal("the same records gave other bytes")
		}
	}
}

// A loss that is no number must not make a line unreadable.
func TestLinesOfValuesThatAreNoNumbers(t *testing.T) {
	rec := call(1, 0)
	for _, v := range []float64{math.NaN(), math.Inf(1), math.Inf(-1), 1e300, math.Copysign(0, -1)} {
		rec.LoggedMetrics = append(rec.LoggedMetrics, &record.LoggedMetric{Key: "loss", Value: v, TimeUnixNanos: hello})
	}
	traces, metrics := lines(t, []*record.LogCall{rec}, StepAttribute)
	for _, line := range []string{traces, metrics} {
		if !json.Valid([]byte(line)) || !strings.Contains(line, `"NaN"`) {
			t.Errorf("line is %s", line)
		}
	}
}
