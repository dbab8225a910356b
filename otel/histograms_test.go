package otel

import (
	"testing"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

func TestLatencyHistogram(t *testing.T) {
	step := int64(3)
	rec := &record.LogCall{
		Schema: 1, Process: &record.Process{RunId: "r", Pid: 1, StartTicks: 2, Rank: -1}, Function: record.Function_LOG_SYSTEM_METRICS,
		Step: &step, StartUnixNanos: 1_000, EndUnixNanos: 2_000, Segment: &record.Segment{Opens: true},
		Histograms: []*record.Histogram{
			// Faster than the first bound, two in the middle, slower than the last.
			{Name: record.DiskReadLatency, First: 9, Counts: append([]uint64{1, 2}, append(make([]uint64, 26), 4)...), SumSeconds: 300},
			{Name: record.DiskWriteLatency, First: 20, Counts: []uint64{0}},
			{Name: "unknown", First: 20, Counts: []uint64{1}},
		},
	}
	metrics := Metrics([]*record.LogCall{rec}, "v", StepAttribute)
	var found *metricdata.Histogram[float64]
	for _, m := range metrics[0].ScopeMetrics[0].Metrics {
		if m.Name == names.MetricLatency {
			h := m.Data.(metricdata.Histogram[float64])
			found = &h
		}
	}
	if found == nil || len(found.DataPoints) != 1 || found.Temporality != metricdata.CumulativeTemporality {
		t.Fatalf("%+v, want one point", found)
	}
	for _, m := range Metrics([]*record.LogCall{rec}, "v", StepExemplar)[0].ScopeMetrics[0].Metrics {
		if m.Name == names.MetricLatency {
			t.Error("a series over all steps got the counts of one window")
		}
	}
	p := found.DataPoints[0]
	if p.Count != 7 || p.Sum != 300 || len(p.BucketCounts) != len(p.Bounds)+1 {
		t.Errorf("count %d, sum %v, %d buckets of %d bounds", p.Count, p.Sum, len(p.BucketCounts), len(p.Bounds))
	}
	// 2^10 ns and more is in the bucket between the bounds 2^10 and 2^11 ns.
	if p.BucketCounts[0] != 1 || p.BucketCounts[1] != 2 || p.Bounds[0] != 1.024e-6 || p.BucketCounts[len(p.BucketCounts)-1] != 4 {
		t.Errorf("buckets %v, bounds %v", p.BucketCounts, p.Bounds)
	}
	span := Spans(rec, "v")[1].SpanContext()
	trace, id := span.TraceID(), span.SpanID()
	if len(p.Exemplars) != 1 || string(p.Exemplars[0].TraceID) != string(trace[:]) || string(p.Exemplars[0].SpanID) != string(id[:]) {
		t.Errorf("exemplars %+v, want one that leads to %v", p.Exemplars, span)
	}
	if direction, _ := p.Attributes.Value(names.DiskDirection); direction.AsString() != "read" {
		t.Errorf("attributes %v", p.Attributes)
	}
}

func TestARunThatFailedEndsWithStatusError(t *testing.T) {
	rec := &record.LogCall{
		Schema: 1, Process: &record.Process{RunId: "r", Pid: 1, Rank: -1}, Function: record.Function_RUN_END, Error: "killed",
	}
	for _, s := range Spans(rec, "v") {
		want := codes.Unset
		if s.Name() == names.SpanRunEnd {
			want = codes.Error
		}
		if s.Status().Code != want {
			t.Errorf("%s has status %v", s.Name(), s.Status())
		}
	}
}
