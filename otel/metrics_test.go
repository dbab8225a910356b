package otel

import (
	"fmt"
	"math"
	"slices"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// points are all points of one metric.
func points(all []*metricdata.ResourceMetrics, name string) []metricdata.DataPoint[int64] {
	var out []metricdata.DataPoint[int64]
	for _, rm := range all {
		for _, sm := range rm.ScopeMetrics {
			for _, m := range sm.Metrics {
				if m.Name != name {
					continue
				}
				switch d := m.Data.(type) {
				case metricdata.Sum[int64]:
					out = append(out, d.DataPoints...)
				case metricdata.Gauge[int64]:
					out = append(out, d.DataPoints...)
				}
			}
		}
	}
	return out
}

// sumOf adds up a sum as a consumer does: the newest point of each attribute set and start.
func sumOf(all []*metricdata.ResourceMetrics, name string) int64 {
	newest := map[string]int64{}
	for _, p := range points(all, name) {
		newest[fmt.Sprint(p.Attributes.Encoded(attribute.DefaultEncoder()), p.StartTime)] = p.Value
	}
	var sum int64
	for _, v := range newest {
		sum += v
	}
	return sum
}

// stepped is a run of windows with the totals that package runs would give them.
type stepped struct {
	recs  []*record.LogCall
	sets  map[string]*record.TotalSet
	total int64
	now   int64
}

func (s *stepped) log(context string, step *int64, bytes int64, capped bool) {
	start := s.now
	s.now += second
	rec := &record.LogCall{
		Process: trainer(), Function: record.Function_LOG_SYSTEM_METRICS, Seq: uint64(len(s.recs)), Context: proto.String(context), Step: step,
		StartUnixNanos: start, EndUnixNanos: s.now, StepCapped: capped,
		Readings: []*record.Reading{ok(record.DiskWriteBytes, bytes)},
		Segment:  &record.Segment{Context: context, HasContext: true},
	}
	set := func(key string) *record.TotalSet {
		if s.sets[key] == nil {
			s.sets[key] = &record.TotalSet{StartUnixNanos: start, Totals: []*record.Total{total(record.DiskWriteBytes, 0)}}
		}
		t := s.sets[key]
		t.Totals[0] = total(record.DiskWriteBytes, t.Totals[0].GetInteger()+bytes)
		return proto.Clone(t).(*record.TotalSet)
	}
	rec.ContextTotals = set(context)
	key := context + "/none"
	switch {
	case capped:
		key = context + "/capped"
	case step != nil:
		key = fmt.Sprint(context, "/", *step)
	}
	rec.StepTotals = set(key)
	s.total += bytes
	s.recs = append(s.recs, rec)
}

func (s *stepped) end(bytes int64) {
	s.recs = append(s.recs, &record.LogCall{
		Process: trainer(), Function: record.Function_RUN_END,
		StartUnixNanos: s.now, EndUnixNanos: s.now + second, Readings: []*record.Reading{ok(record.DiskWriteBytes, bytes)},
	})
	s.now += second
	s.total += bytes
}

func TestSumsAddUpToTheRun(t *testing.T) {
	s := &stepped{sets: map[string]*record.TotalSet{}, now: hello}
	for n := range int64(5) {
		s.log("training", proto.Int64(n), 100+n, false)
		s.log("training", proto.Int64(n), 7, false) // twice in one step
		s.log("validation", proto.Int64(n), 1000, false)
		s.log("training", nil, 3, false)
	}
	s.log("training", proto.Int64(9), 50, true)
	s.log("training", proto.Int64(10), 60, true)
	s.end(11)
	// The FLOPs functions have windows of their own over the same bytes.
	s.recs = append(s.recs, &record.LogCall{
		Process: trainer(), Function: record.Function_LOG_FLOPS_PER_BATCH, StartUnixNanos: hello, EndUnixNanos: s.now + second,
		Readings: []*record.Reading{ok(record.DiskWriteBytes, 1<<40), ok(record.FlopsTotal, 5.0)},
	})
	// The run goes on after its end.
	s.now += second
	s.log("training", proto.Int64(11), 5, false)
	s.end(13)

	for _, mode := range []StepMode{StepAttribute, StepExemplar} {
		// All at once, and record by record: batches make no difference.
		all := Metrics(s.recs, "1", mode)
		var single []*metricdata.ResourceMetrics
		b := newMetricBuilder("1", mode)
		for _, rec := range s.recs {
			single = append(single, b.metrics([]*record.LogCall{rec})...)
		}
		for name, got := range map[string][]*metricdata.ResourceMetrics{"at once": all, "record by record": single} {
			if sum := sumOf(got, "prov4ml.disk.write_bytes"); sum != s.total {
				t.Errorf("%s, %s: the sums add up to %d, the run's total is %d", mode, name, sum, s.total)
			}
		}
	}
}

func TestPointsOfAMode(t *testing.T) {
	s := &stepped{sets: map[string]*record.TotalSet{}, now: hello}
	s.log("training", proto.Int64(1), 10, false)
	s.log("training", proto.Int64(2), 20, false)
	s.log("training", proto.Int64(3), 30, true)
	s.log("training", proto.Int64(4), 40, true)

	step := func(p metricdata.DataPoint[int64]) int64 {
		if v, ok := p.Attributes.Value(names.Step); ok {
			return v.AsInt64()
		}
		return -1
	}
	got := points(Metrics(s.recs, "1", StepAttribute), "prov4ml.disk.write_bytes")
	if len(got) != 4 {
		t.Fatalf("%d points, want 4", len(got))
	}
	for i, want := range []struct{ step, value, start int64 }{{1, 10, 0}, {2, 20, 1}, {-1, 30, 2}, {-1, 70, 2}} {
		p := got[i]
		if step(p) != want.step || p.Value != want.value || p.StartTime.UnixNano() != hello+want.start*second {
			t.Errorf("point %d: step %d, value %d, start %v; want %+v", i, step(p), p.Value, p.StartTime, want)
		}
		if (len(p.Exemplars) == 1) != (want.step == -1) {
			t.Errorf("point %d has %d exemplars", i, len(p.Exemplars))
		}
	}
	if v, ok := got[2].Attributes.Value(names.StepCapped); !ok || !v.AsBool() {
		t.Error("the point behind the limit of steps does not say so")
	}

	all := Metrics(s.recs, "1", StepExemplar)
	got = points(all, "prov4ml.disk.write_bytes")
	for i, want := range []int64{10, 30, 60, 100} {
		p := got[i]
		if step(p) != -1 || p.Value != want || p.StartTime.UnixNano() != hello {
			t.Errorf("point %d: step %d, value %d, start %v", i, step(p), p.Value, p.StartTime)
		}
		if len(p.Exemplars) != 1 {
			t.Fatalf("point %d has %d exemplars", i, len(p.Exemplars))
		}
		e := p.Exemplars[0]
		traceID, spanID := SpanOf(s.recs[i])
		if fmt.Sprintf("%x", e.TraceID) != traceID || fmt.Sprintf("%x", e.SpanID) != spanID {
			t.Errorf("point %d: the exemplar leads to %x %x, the span is %s %s", i, e.TraceID, e.SpanID, traceID, spanID)
		}
		if len(e.FilteredAttributes) != 1 || e.FilteredAttributes[0] != attribute.Int64(names.Step, int64(i+1)) {
			t.Errorf("point %d: the exemplar has %v", i, e.FilteredAttributes)
		}
	}
	if got := points(all, names.MetricStep); len(got) != 4 || got[3].Value != 4 {
		t.Errorf("the gauge of steps is %v", got)
	}
}

func TestTimestampLabels(t *testing.T) {
	for _, test := range []struct {
		name      string
		timestamp []*int64 // ms after hello, of windows of one second
		want      []int64  // ms after hello
		moved     uint64
	}{
		{"none", []*int64{nil, nil}, []int64{1000, 2000}, 0},
		{"inside the window", []*int64{proto.Int64(400), proto.Int64(1999)}, []int64{400, 1999}, 0},
		{"at its end", []*int64{proto.Int64(1000), proto.Int64(2000)}, []int64{1000, 2000}, 0},
		{"before it", []*int64{proto.Int64(-5), proto.Int64(1000)}, []int64{1000, 2000}, 2},
		{"in the future", []*int64{proto.Int64(1001), proto.Int64(math.MaxInt64)}, []int64{1000, 2000}, 2},
		{"negative", []*int64{proto.Int64(math.MinInt64), nil}, []int64{1000, 2000}, 1},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := &stepped{sets: map[string]*record.TotalSet{}, now: hello}
			for i, ms := range test.timestamp {
				s.log("training", proto.Int64(1), 1, false)
				if ms != nil {
					at := *ms
					if at > math.MinInt64/2 && at < math.MaxInt64/2 {
						at += hello / int64(time.Millisecond)
					}
					s.recs[i].Timestamp = &at
				}
			}
			b := newMetricBuilder("1", StepAttribute)
			var got []int64
			for _, p := range points(b.metrics(s.recs), "prov4ml.disk.write_bytes") {
				got = append(got, p.Time.UnixMilli()-hello/int64(time.Millisecond))
			}
			if !slices.Equal(got, test.want) || b.moved != test.moved {
				t.Errorf("times %v, moved %d; want %v, %d", got, b.moved, test.want, test.moved)
			}
		})
	}
}

// A label must not put a point before one of another function of the same process.
func TestTimestampBehindAnotherFunction(t *testing.T) {
	flops := &record.LogCall{
		Process: trainer(), Function: record.Function_LOG_FLOPS_PER_BATCH, StartUnixNanos: hello, EndUnixNanos: hello + second/2,
		Readings: []*record.Reading{ok(record.FlopsTotal, 5.0)},
	}
	s := &stepped{sets: map[string]*record.TotalSet{}, now: hello}
	s.log("training", nil, 1, false)
	s.recs[0].Timestamp = proto.Int64((hello + second/4) / int64(time.Millisecond))
	got := points(Metrics([]*record.LogCall{flops, s.recs[0]}, "1", StepAttribute), "prov4ml.disk.write_bytes")
	if len(got) != 1 || got[0].Time.UnixNano() != hello+second {
		t.Errorf("points are %v", got)
	}
}

func TestLoggedMetricsComeBeforeTheCall(t *testing.T) {
	s := &stepped{sets: map[string]*record.TotalSet{}, now: hello}
	s.log("training", proto.Int64(1), 1, false)
	s.recs[0].LoggedMetrics = []*record.LoggedMetric{
		{Key: "loss", Value: 1, TimeUnixNanos: hello + 1},
		{Key: "loss", Value: math.NaN(), TimeUnixNanos: hello + 2},
		{Key: "loss", Value: 3, TimeUnixNanos: hello + 1}, // behind the one before
		{Key: "loss", Value: 4, TimeUnixNanos: hello + 100*second},
	}
	b := newMetricBuilder("1", StepAttribute)
	var times []int64
	for _, m := range b.metrics(s.recs)[0].ScopeMetrics[0].Metrics {
		if m.Name == names.MetricLogged {
			for _, p := range m.Data.(metricdata.Gauge[float64]).DataPoints {
				times = append(times, p.Time.UnixNano()-hello)
			}
		}
	}
	if want := []int64{1, 2, second, second}; !slices.Equal(times, want) || b.moved != 2 {
		t.Errorf("times are %v and %d moved, want %v and 2", times, b.moved, want)
	}
}

func TestStepMode(t *testing.T) {
	for mode, valid := range map[StepMode]bool{StepAttribute: true, StepExemplar: true, "": false, "off": false} {
		if err := mode.Validate(); (err == nil) != valid {
			t.Errorf("%q: %v", mode, err)
		}
	}
}
