package otel

import (
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// The bounds of the latency histogram: powers of two of a ns from 1 µs to 69 s, the same on every point so that receivers can add
// them up. What is outside is in the first and the last bucket.
const (
	firstBound = 10
	lastBound  = 36
)

func latencyBounds() []float64 {
	bounds := make([]float64, 0, lastBound-firstBound+1)
	for power := firstBound; power <= lastBound; power++ {
		bounds = append(bounds, float64(uint64(1)<<power)/1e9)
	}
	return bounds
}

// latencyDirections says which direction a histogram of a record is about.
var latencyDirections = map[string]string{record.DiskReadLatency: "read", record.DiskWriteLatency: "write"}

// addHistogram puts a histogram of a record into the group: one point of its window, whose exemplar leads to the window's span. Each
// begins anew at its window's start.
func (g *group) addHistogram(p *point, h *record.Histogram) {
	direction, known := latencyDirections[h.GetName()]
	if !known {
		return
	}
	bounds := latencyBounds()
	counts := make([]uint64, len(bounds)+1)
	var total uint64
	for i, n := range h.GetCounts() {
		// A value from 2^power on, and below the next, is in the bucket that ends there.
		power := int(h.GetFirst()) + i
		counts[min(max(power-firstBound+1, 0), len(counts)-1)] += n
		total += n
	}
	if total == 0 {
		return
	}
	d := metricdata.HistogramDataPoint[float64]{
		Attributes: attribute.NewSet(append([]attribute.KeyValue{attribute.String(names.DiskDirection, direction)}, p.base...)...),
		StartTime:  unixTime(p.rec.GetStartUnixNanos()), Time: p.time,
		Count: total, Sum: h.GetSumSeconds(), Bounds: bounds, BucketCounts: counts,
		Exemplars: []metricdata.Exemplar[float64]{{
			FilteredAttributes: stepAttributes(p.rec.Step), Time: p.time, Value: h.GetSumSeconds() / float64(total),
			SpanID: p.spanID, TraceID: p.traceID,
		}},
	}
	if p.time.Before(d.StartTime) {
		d.StartTime = p.time
	}
	g.latency = append(g.latency, d)
}

// latencyMetric is the metric of a group's histograms.
func latencyMetric(points []metricdata.HistogramDataPoint[float64]) metricdata.Metrics {
	return metricdata.Metrics{
		Name: names.MetricLatency, Unit: "s",
		Description: "Time of the tree's requests from issue to completion, of each window. The exemplar is the window's mean and leads to its span.",
		Data:        metricdata.Histogram[float64]{DataPoints: points, Temporality: metricdata.CumulativeTemporality},
	}
}
