package otel

import (
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"go.opentelemetry.io/otel/attribute"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

func value(s sdktrace.ReadOnlySpan, key string) (attribute.Value, bool) {
	for _, kv := range s.Attributes() {
		if string(kv.Key) == key {
			return kv.Value, true
		}
	}
	return attribute.Value{}, false
}

func named(t *testing.T, spans []sdktrace.ReadOnlySpan, name string) sdktrace.ReadOnlySpan {
	t.Helper()
	for _, s := range spans {
		if s.Name() == name {
			return s
		}
	}
	t.Fatalf("no span %s", name)
	return nil
}

func TestTraceShape(t *testing.T) {
	byID := map[trace.SpanID]sdktrace.ReadOnlySpan{}
	var all []sdktrace.ReadOnlySpan
	for _, rec := range training() {
		for _, s := range Spans(rec, "1") {
			if byID[s.SpanContext().SpanID()] != nil {
				t.Errorf("two spans have the id %s", s.SpanContext().SpanID())
			}
			byID[s.SpanContext().SpanID()] = s
			all = append(all, s)
		}
	}
	roots := map[string]int{}
	for _, s := range all {
		if s.SpanKind() != trace.SpanKindInternal {
			t.Errorf("%s is of kind %s", s.Name(), s.SpanKind())
		}
		if !s.Parent().IsValid() {
			roots[s.Name()]++
			if d := s.EndTime().Sub(s.StartTime()); d < markerLength {
				t.Errorf("the root marker %s lasts %v", s.Name(), d)
			}
			continue
		}
		up := byID[s.Parent().SpanID()]
		if up == nil || up.SpanContext().TraceID() != s.SpanContext().TraceID() {
			t.Errorf("%s has no parent in its trace", s.Name())
		}
	}
	if roots[names.SpanRun] != 1 || roots[names.SpanSegment] != 3 || len(roots) != 2 {
		t.Errorf("roots are %v", roots)
	}
	run := named(t, all, names.SpanRun).SpanContext()
	if end := named(t, all, names.SpanRunEnd); end.Parent().SpanID() != run.SpanID() {
		t.Error("the run's end is not in the run's trace")
	}
	for _, s := range all {
		if s.Name() != names.SpanSegment {
			continue
		}
		if len(s.Links()) != 1 || !s.Links()[0].SpanContext.Equal(run) {
			t.Errorf("a segment links to %v, want the run %v", s.Links(), run)
		}
	}
	var windows []sdktrace.ReadOnlySpan
	for _, s := range all {
		if s.Name() == names.SpanSystemMetrics || s.Name() == names.SpanRunEnd {
			windows = append(windows, s)
		}
	}
	for i := 1; i < len(windows); i++ {
		if !windows[i].StartTime().Equal(windows[i-1].EndTime()) {
			t.Errorf("window %d starts at %v, the one before ends at %v", i, windows[i].StartTime(), windows[i-1].EndTime())
		}
	}
}

// Each part of a process's identity and of a call's place changes the ids; nothing else does.
func TestIDs(t *testing.T) {
	base := training()[0]
	ids := func(rec *record.LogCall) string {
		a, b := SpanOf(rec)
		return a + b
	}
	for name, change := range map[string]func(*record.LogCall){
		"run":      func(r *record.LogCall) { r.Process.RunId += "x" },
		"boot":     func(r *record.LogCall) { r.Process.BootId += "x" },
		"pid":      func(r *record.LogCall) { r.Process.Pid++ },
		"start":    func(r *record.LogCall) { r.Process.StartTicks++ },
		"function": func(r *record.LogCall) { r.Function = record.Function_LOG_FLOPS_PER_BATCH },
		"seq":      func(r *record.LogCall) { r.Seq++ },
		"segment":  func(r *record.LogCall) { r.Segment.Number++ },
		"context":  func(r *record.LogCall) { r.Segment.Context = "validation" },
		"none":     func(r *record.LogCall) { r.Segment.HasContext = false },
		// Fields that are side by side must not flow into each other.
		"boundary": func(r *record.LogCall) {
			r.Process.RunId, r.Process.BootId = r.Process.RunId+r.Process.BootId[:1], r.Process.BootId[1:]
		},
	} {
		rec := proto.Clone(base).(*record.LogCall)
		change(rec)
		if ids(rec) == ids(base) {
			t.Errorf("%s does not change the ids", name)
		}
	}
	for name, change := range map[string]func(*record.LogCall){
		"step":     func(r *record.LogCall) { r.Step = proto.Int64(99) },
		"readings": func(r *record.LogCall) { r.Readings = nil },
		"rank":     func(r *record.LogCall) { r.Process.Rank = 7 },
	} {
		rec := proto.Clone(base).(*record.LogCall)
		change(rec)
		if ids(rec) != ids(base) {
			t.Errorf("%s changes the ids", name)
		}
	}
}

func TestStatesOfReadings(t *testing.T) {
	rec := call(1, 0)
	rec.Readings = []*record.Reading{
		ok(record.DiskReadBytes, 0),
		{Name: record.DiskWriteBytes, Value: &record.Reading_Integer{Integer: 7}, State: record.State_INCOMPLETE, Reason: "exited children are missing"},
		{Name: record.MemorySwapBytes, Value: &record.Reading_Integer{Integer: 7}, State: record.State_STALE, Reason: "measured an hour ago"},
		lacking(record.GPUUsage, record.State_ABSENT, "no NVIDIA driver"),
		lacking(record.MemoryMajorFaults, record.State_UNSUPPORTED, ""),
		{Name: record.MemoryMinorFaults, State: record.State_OK}, // no value
		ok(record.CPUSeconds, math.NaN()),
		ok(record.MemoryRSSBytes, 12.4), // a double where the table says int
		ok(record.DiskReadLatencyP50, 2),
		ok(record.FlopsUnknownOps, "a\nb"),
		ok("brand.new", "x"),
	}
	s := named(t, Spans(rec, "1"), names.SpanSystemMetrics)
	for key, want := range map[string]any{
		"prov4ml.disk.read_bytes":           int64(0),
		"prov4ml.disk.write_bytes":          int64(7),
		"prov4ml.memory.swap_bytes":         nil,
		"prov4ml.gpu_usage":                 nil,
		"prov4ml.memory.major_faults":       nil,
		"prov4ml.memory.minor_faults":       nil,
		"prov4ml.cpu.seconds":               nil,
		"prov4ml.memory.rss_bytes":          int64(12),
		"prov4ml.disk.read_latency_p50":     2.0,
		"prov4ml.flops.unknown_ops":         []string{"a", "b"},
		"prov4ml.brand.new":                 "x",
		"prov4ml.window.incomplete":         true,
		"prov4ml.window.first":              false,
		"prov4ml.label":                     nil,
		"prov4ml.timestamp":                 nil,
		"prov4ml.lag_seconds":               nil,
		"prov4ml.enclosing_pids":            nil,
		"prov4ml.rank":                      nil,
		"prov4ml.disk.pending_write_bytes":  nil,
		"prov4ml.disk.metadata_write_bytes": nil,
	} {
		v, found := value(s, key)
		if found != (want != nil) || found && fmt.Sprint(v.AsInterface()) != fmt.Sprint(want) {
			t.Errorf("%s is %v, want %v", key, v.AsInterface(), want)
		}
	}
	v, _ := value(s, names.Unavailable)
	want := []string{
		"disk.write_bytes: exited children are missing", "memory.swap_bytes: measured an hour ago",
		"gpu_usage: no NVIDIA driver", "memory.major_faults: cannot be measured here",
	}
	if got := v.AsStringSlice(); !slices.Equal(got, want) {
		t.Errorf("unavailable is %q, want %q", got, want)
	}
	const given = "GPU: no NVIDIA driver is loaded"
	rec.Unavailable = []string{given}
	want = []string{given, "disk.write_bytes: exited children are missing", "memory.swap_bytes: measured an hour ago"}
	if got := Reasons(rec); !slices.Equal(got, want) {
		t.Errorf("with a reason given, unavailable is %q, want %q", got, want)
	}
}

func TestLimitsOfASpan(t *testing.T) {
	rec := training()[3]
	rec.OpensRun = true
	rec.RunAttributes = map[string]string{}
	for i := range 300 {
		rec.RunAttributes[fmt.Sprintf("p%03d", i)] = "v"
	}
	for i := range 200 {
		rec.LoggedMetrics = append(rec.LoggedMetrics, &record.LoggedMetric{Key: "k", Value: float64(i), TimeUnixNanos: hello})
	}
	for _, s := range Spans(rec, "1") {
		if len(s.Attributes()) > 128 || len(s.Events()) > 128 {
			t.Errorf("%s has %d attributes and %d events", s.Name(), len(s.Attributes()), len(s.Events()))
		}
		for _, e := range s.Events() {
			if len(e.Attributes) > 128 {
				t.Errorf("an event of %s has %d attributes", s.Name(), len(e.Attributes))
			}
		}
	}
	// Nothing of the parameters is lost on the marker.
	marker := named(t, Spans(rec, "1"), names.SpanRun)
	seen := 0
	for _, kv := range marker.Attributes() {
		if strings.HasPrefix(string(kv.Key), names.ParameterPrefix) {
			seen++
		}
	}
	for _, e := range marker.Events() {
		seen += len(e.Attributes)
	}
	if seen != 300 {
		t.Errorf("the marker shows %d of 300 parameters", seen)
	}
	if end := named(t, Spans(rec, "1"), names.SpanRunEnd); end.DroppedEvents() == 0 {
		t.Error("events were dropped and not counted")
	}
}

func TestCallersTrace(t *testing.T) {
	for traceparent, linked := range map[string]bool{
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01": true,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00": true,
		"":       false,
		"secret": false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01": false,
	} {
		rec := call(1, 3)
		rec.Traceparent = traceparent
		s := named(t, Spans(rec, "1"), names.SpanSystemMetrics)
		if len(s.Links()) == 1 != linked {
			t.Errorf("traceparent %q gives links %v", traceparent, s.Links())
		}
		if s.SpanContext().TraceID().String() == "4bf92f3577b34da6a3ce929d0e0e4736" {
			t.Error("the span is in the caller's trace")
		}
	}
}

// FuzzRecord makes spans and points of whatever a script can bring into a record, and of clocks that are out of their mind.
func FuzzRecord(f *testing.F) {
	f.Add(int32(1), hello, hello+second, hello+second, hello, "training", 0.5, uint8(0))
	f.Add(int32(4), int64(0), int64(-1), int64(math.MinInt64), int64(math.MaxInt64), "\x00\n\u202e", math.NaN(), uint8(255))
	f.Add(int32(99), int64(math.MaxInt64), int64(math.MinInt64), int64(math.MaxInt64), int64(math.MaxInt64), "", math.Inf(-1), uint8(7))
	f.Fuzz(func(t *testing.T, function int32, start, end, timestamp, segment int64, text string, value float64, flags uint8) {
		if !utf8.ValidString(text) {
			return // protobuf holds none
		}
		seg := &record.Segment{Context: text, HasContext: flags&1 != 0, StartUnixNanos: segment, EndUnixNanos: end, Opens: flags&2 != 0}
		rec := &record.LogCall{
			Process:  &record.Process{RunId: text, ServiceName: text, StartUnixNanos: start, Resource: map[string]string{text: text}},
			Function: record.Function(function), Context: &text, Step: &timestamp, Label: text,
			StartUnixNanos: start, EndUnixNanos: end, Timestamp: &timestamp, LagSeconds: value, Traceparent: text,
			Readings: []*record.Reading{
				ok(text, value), ok(record.DiskReadBytes, value), ok(record.FlopsCumulative, start), ok(record.FlopsUnknownOps, text),
				ok(record.MemoryUsage, value), ok(record.DiskUsage+"."+text, value),
				{Name: text, State: record.State(function), Reason: text},
			},
			Unavailable:    []string{text},
			Events:         []*record.Event{{Name: text, TimeUnixNanos: timestamp, Attributes: []*record.Reading{ok(text, text)}}},
			LoggedMetrics:  []*record.LoggedMetric{{Key: text, Value: value, TimeUnixNanos: timestamp, Step: &segment}},
			RunAttributes:  map[string]string{text: text},
			OpensRun:       flags&4 != 0,
			StepCapped:     flags&8 != 0,
			ClosedSegments: []*record.Segment{seg},
		}
		if flags&16 != 0 {
			rec.Segment = seg
		}
		if flags&32 != 0 {
			rec.StepTotals = &record.TotalSet{StartUnixNanos: start, Totals: []*record.Total{total(record.DiskReadBytes, value)}}
			rec.ContextTotals = rec.StepTotals
		}
		for _, s := range Spans(rec, "1") {
			if !s.SpanContext().IsValid() || s.EndTime().Before(s.StartTime()) || len(s.Attributes()) > maxAttributes {
				t.Errorf("%s from %v to %v with %d attributes", s.Name(), s.StartTime(), s.EndTime(), len(s.Attributes()))
			}
		}
		for _, mode := range []StepMode{StepAttribute, StepExemplar} {
			traces, metrics := lines(t, []*record.LogCall{rec, rec}, mode)
			for line := range strings.Lines(traces + metrics) {
				if !json.Valid([]byte(line)) {
					t.Errorf("no JSON: %s", line)
				}
			}
		}
	})
}
