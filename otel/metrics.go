package otel

import (
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// StepMode says how a metric point shows its step.
type StepMode string

// The modes of --metrics-step.
const (
	// StepAttribute: each (context, step) is a series of its own, whose sums are that set's totals.
	StepAttribute StepMode = "attribute"
	// StepExemplar: each context is a series of running totals; the step is in the point's exemplar and in the gauge
	// prov4ml.step. For stores that keep an index of series, like Prometheus.
	StepExemplar StepMode = "exemplar"
)

// Validate says what the modes are.
func (m StepMode) Validate() error {
	if m != StepAttribute && m != StepExemplar {
		return fmt.Errorf("metrics step is %q; it must be %q or %q", string(m), StepAttribute, StepExemplar)
	}
	return nil
}

// metricBuilder makes metric points of records. One goroutine uses it.
type metricBuilder struct {
	mode      StepMode
	scope     instrumentation.Scope
	resources resources
	// last is the time of the newest point of each process. A receiver that keeps series in order refuses a whole request for
	// one point that is older than its resource's newest.
	last map[processKey]int64
	// moved counts points whose own time would not have kept the order: they have the call's.
	moved uint64
}

func newMetricBuilder(version string, mode StepMode) *metricBuilder {
	return &metricBuilder{mode: mode, scope: newScope(version), resources: resources{}, last: map[processKey]int64{}}
}

// Metrics returns the points of the records, one ResourceMetrics for each process, in the order of the records. version is
// the agent's.
func Metrics(recs []*record.LogCall, version string, mode StepMode) []*metricdata.ResourceMetrics {
	return newMetricBuilder(version, mode).metrics(recs)
}

// group collects the points of one process.
type group struct {
	metrics *metricdata.ResourceMetrics
	series  []series // by metricEntry.order
	logged  []metricdata.DataPoint[float64]
	steps   []metricdata.DataPoint[int64]
	latency []metricdata.HistogramDataPoint[float64]
}

// series is the points of one metric.
type series struct {
	*metricEntry
	integers []metricdata.DataPoint[int64]
	reals    []metricdata.DataPoint[float64]
}

func (b *metricBuilder) metrics(recs []*record.LogCall) []*metricdata.ResourceMetrics {
	t := theTable()
	groups := map[processKey]*group{}
	var order []*group
	for _, rec := range recs {
		p := rec.GetProcess()
		res := b.resources.of(p)
		g := groups[keyOf(p)]
		// A description that changed (the rank became known) is another resource.
		if g == nil || g.metrics.Resource != res {
			g = &group{metrics: &metricdata.ResourceMetrics{Resource: res}, series: make([]series, t.metrics)}
			groups[keyOf(p)] = g
			order = append(order, g)
		}
		b.add(g, rec)
	}
	var out []*metricdata.ResourceMetrics
	for _, g := range order {
		if metrics := g.finish(); len(metrics) > 0 {
			g.metrics.ScopeMetrics = []metricdata.ScopeMetrics{{Scope: b.scope, Metrics: metrics}}
			out = append(out, g.metrics)
		}
	}
	return out
}

// point is what the points of one record share.
type point struct {
	rec  *record.LogCall
	time time.Time
	// base are the attributes; sets are base with a metric's fixed attributes, made when needed.
	base []attribute.KeyValue
	sets []attribute.Set
	made []bool
	// start is when the sums began to be counted.
	start time.Time
	// exemplar: the step is in the exemplar.
	exemplar bool
	traceID  []byte
	spanID   []byte
}

// add puts the record's points into the group.
func (b *metricBuilder) add(g *group, rec *record.LogCall) {
	t := theTable()
	p := b.newPoint(rec)
	for _, m := range rec.GetLoggedMetrics() {
		b.addLogged(g, p, m)
	}
	p.time = b.timeOf(rec)

	system := rec.GetFunction() == record.Function_LOG_SYSTEM_METRICS
	end := rec.GetFunction() == record.Function_RUN_END
	var totals map[string]*record.Total
	if system {
		set := rec.GetStepTotals()
		if b.mode == StepExemplar {
			set = rec.GetContextTotals()
		}
		p.start = unixTime(set.GetStartUnixNanos())
		totals = make(map[string]*record.Total, len(set.GetTotals()))
		for _, total := range set.GetTotals() {
			totals[total.GetName()] = total
		}
	} else if end {
		p.start = unixTime(rec.GetStartUnixNanos())
	}

	name := functionName(rec.GetFunction())
	for _, r := range rec.GetReadings() {
		at := p
		e := t.entries[r.GetName()]
		if directory, ok := watched(r.GetName()); ok {
			e = t.entries[record.DiskUsage]
			at = p.with(attribute.String(names.Mountpoint, directory))
		}
		if e == nil || !shown(r) {
			continue
		}
		// The FLOPs functions have windows of their own, which overlap those of log_system_metrics: summed, a byte would count
		// twice.
		if (e.Scope == names.Model) == (system || end) {
			continue
		}
		for i := range e.metrics {
			m := &e.metrics[i]
			if m.Function != "" && m.Function != name {
				continue
			}
			s := &g.series[m.order]
			s.metricEntry = m
			switch {
			case m.Kind == names.RunningSum:
				s.add(p.running(rec), t, r, r)
			case m.Kind == names.Sum && system:
				if total, ok := totals[r.GetName()]; ok {
					s.add(at, t, r, asReading(total))
				}
			default:
				s.add(at, t, r, r)
			}
		}
	}

	// A series that runs on over steps would need running counts: Prometheus and its kin, which want such series, refuse a whole
	// request for one histogram that is a window's own.
	if (system || end) && !p.exemplar {
		for _, h := range rec.GetHistograms() {
			g.addHistogram(p, h)
		}
	}

	if system && rec.Step != nil && b.mode == StepExemplar {
		g.steps = append(g.steps, metricdata.DataPoint[int64]{Attributes: p.set(t, 0), Time: p.time, Value: rec.GetStep()})
	}
	if end {
		delete(b.last, keyOf(rec.GetProcess()))
	}
}

// newPoint prepares what the points of a record share.
func (b *metricBuilder) newPoint(rec *record.LogCall) *point {
	own := own(rec, parent(rec))
	traceID, spanID := own.TraceID(), own.SpanID()
	p := &point{
		rec:      rec,
		exemplar: b.mode == StepExemplar || rec.GetStepCapped(),
		traceID:  traceID[:],
		spanID:   spanID[:],
	}
	if rec.GetFunction() == record.Function_RUN_END {
		p.base = append(p.base, attribute.Bool(names.RunEnd, true))
	}
	if rec.Context != nil {
		p.base = append(p.base, attribute.String(names.Context, rec.GetContext()))
	}
	if rec.Step != nil && !p.exemplar {
		p.base = append(p.base, attribute.Int64(names.Step, rec.GetStep()))
	}
	if rec.GetStepCapped() && b.mode == StepAttribute {
		p.base = append(p.base, attribute.Bool(names.StepCapped, true))
	}
	if rec.GetLabel() != "" {
		p.base = append(p.base, attribute.String(names.Label, rec.GetLabel()))
	}
	return p
}

// timeOf is the time of the record's points: the label that the script gave if it keeps the order, else the window's end.
func (b *metricBuilder) timeOf(rec *record.LogCall) time.Time {
	end := rec.GetEndUnixNanos()
	at := end
	if rec.Timestamp != nil {
		at = b.inOrder(rec, millisToNanos(rec.GetTimestamp()), rec.GetStartUnixNanos())
	}
	b.note(rec, at)
	return unixTime(at)
}

// note remembers the time of a process's newest point. The window's start bounds a label too, so that what is forgotten here
// costs no order among the points of one function.
func (b *metricBuilder) note(rec *record.LogCall, at int64) {
	if len(b.last) >= maxResources {
		clear(b.last)
	}
	b.last[keyOf(rec.GetProcess())] = at
}

// inOrder returns at if a point of that time can stand behind all that came before, else the window's end.
func (b *metricBuilder) inOrder(rec *record.LogCall, at, after int64) int64 {
	if at > after && at >= b.last[keyOf(rec.GetProcess())] && at <= rec.GetEndUnixNanos() {
		return at
	}
	b.moved++
	return rec.GetEndUnixNanos()
}

// millisToNanos saturates: the label is any number that a script gives.
func millisToNanos(ms int64) int64 {
	const limit = (1<<63 - 1) / int64(time.Millisecond)
	return min(max(ms, -limit), limit) * int64(time.Millisecond)
}

// addLogged puts a metric of the script's own into the group. They come before the record's own points: they are older.
func (b *metricBuilder) addLogged(g *group, p *point, m *record.LoggedMetric) {
	attrs := []attribute.KeyValue{attribute.String(names.LoggedKey, m.GetKey())}
	if m.Context != nil {
		attrs = append(attrs, attribute.String(names.Context, m.GetContext()))
	}
	if m.Step != nil && !p.exemplar {
		attrs = append(attrs, attribute.Int64(names.Step, m.GetStep()))
	}
	at := b.inOrder(p.rec, m.GetTimeUnixNanos(), 0)
	b.note(p.rec, at)
	d := metricdata.DataPoint[float64]{Attributes: attribute.NewSet(attrs...), Time: unixTime(at), Value: m.GetValue()}
	if p.exemplar {
		d.Exemplars = []metricdata.Exemplar[float64]{{
			FilteredAttributes: stepAttributes(m.Step), Time: d.Time, Value: d.Value, SpanID: p.spanID, TraceID: p.traceID,
		}}
	}
	g.logged = append(g.logged, d)
}

// running is the point of a running total that the process keeps over all steps.
func (p *point) running(rec *record.LogCall) *point {
	q := *p
	q.exemplar = true
	q.start = unixTime(rec.GetProcess().GetStartUnixNanos())
	q.sets, q.made = nil, nil
	q.base = nil
	for _, kv := range p.base {
		if kv.Key != names.Step {
			q.base = append(q.base, kv)
		}
	}
	scope := "batch"
	if rec.GetFunction() == record.Function_LOG_FLOPS_PER_EPOCH {
		scope = "epoch"
	}
	q.base = append(q.base, attribute.String(names.FlopsScope, scope))
	return &q
}

// with is the point with a further attribute.
func (p *point) with(kv attribute.KeyValue) *point {
	q := *p
	q.base = append(slices.Clone(p.base), kv)
	q.sets, q.made = nil, nil
	return &q
}

// set is the attribute set of the points of a metric with these fixed attributes.
func (p *point) set(t *table, fixed int) attribute.Set {
	if p.sets == nil {
		p.sets = make([]attribute.Set, len(t.fixed))
		p.made = make([]bool, len(t.fixed))
	}
	if !p.made[fixed] {
		attrs := make([]attribute.KeyValue, 0, len(p.base)+len(t.fixed[fixed]))
		attrs = append(append(attrs, p.base...), t.fixed[fixed]...)
		p.sets[fixed] = attribute.NewSet(attrs...)
		p.made[fixed] = true
	}
	return p.sets[fixed]
}

// add appends a point with the value of shown; window is the reading of the window, for the exemplar.
func (s *series) add(p *point, t *table, window, shown *record.Reading) {
	start := p.start
	if s.Kind == names.Gauge {
		start = time.Time{}
	}
	if s.real {
		v, ok := real(shown)
		w, wok := real(window)
		if ok && wok {
			s.reals = append(s.reals, dataPoint(p, p.set(t, s.fixed), start, v/s.divisor(), w/s.divisor()))
		}
		return
	}
	v, ok := integer(shown)
	w, wok := integer(window)
	if ok && wok {
		s.integers = append(s.integers, dataPoint(p, p.set(t, s.fixed), start, v, w))
	}
}

func (m *metricEntry) divisor() float64 {
	if m.Divisor == 0 {
		return 1
	}
	return m.Divisor
}

func dataPoint[N int64 | float64](p *point, set attribute.Set, start time.Time, value, window N) metricdata.DataPoint[N] {
	d := metricdata.DataPoint[N]{Attributes: set, StartTime: start, Time: p.time, Value: value}
	if p.exemplar {
		d.Exemplars = []metricdata.Exemplar[N]{{
			FilteredAttributes: stepAttributes(p.rec.Step), Time: p.time, Value: window, SpanID: p.spanID, TraceID: p.traceID,
		}}
	}
	return d
}

func stepAttributes(step *int64) []attribute.KeyValue {
	if step == nil {
		return nil
	}
	return []attribute.KeyValue{attribute.Int64(names.Step, *step)}
}

func asReading(t *record.Total) *record.Reading {
	r := &record.Reading{Name: t.GetName(), State: record.State_OK}
	switch v := t.GetValue().(type) {
	case *record.Total_Integer:
		r.Value = &record.Reading_Integer{Integer: v.Integer}
	case *record.Total_Real:
		r.Value = &record.Reading_Real{Real: v.Real}
	}
	return r
}

// finish returns the group's metrics in the order of the table.
func (g *group) finish() []metricdata.Metrics {
	var out []metricdata.Metrics
	for i := range g.series {
		s := &g.series[i]
		switch {
		case len(s.integers) > 0:
			out = append(out, metricOf(s.metricEntry, s.integers))
		case len(s.reals) > 0:
			out = append(out, metricOf(s.metricEntry, s.reals))
		}
	}
	if len(g.steps) > 0 {
		out = append(out, metricdata.Metrics{
			Name: names.MetricStep, Unit: "{step}", Description: "The newest step of the context.",
			Data: metricdata.Gauge[int64]{DataPoints: g.steps},
		})
	}
	if len(g.latency) > 0 {
		out = append(out, latencyMetric(g.latency))
	}
	if len(g.logged) > 0 {
		out = append(out, metricdata.Metrics{
			Name: names.MetricLogged, Unit: "1", Description: "A metric that the script logged.",
			Data: metricdata.Gauge[float64]{DataPoints: g.logged},
		})
	}
	return out
}

func metricOf[N int64 | float64](m *metricEntry, points []metricdata.DataPoint[N]) metricdata.Metrics {
	out := metricdata.Metrics{Name: m.Name, Unit: m.Unit, Description: m.description}
	if m.Kind == names.Gauge {
		out.Data = metricdata.Gauge[N]{DataPoints: points}
	} else {
		out.Data = metricdata.Sum[N]{DataPoints: points, Temporality: metricdata.CumulativeTemporality, IsMonotonic: true}
	}
	return out
}
