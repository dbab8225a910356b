package otel

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/instrumentation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"

	"github.com/prov4ml/agent/otel/names"
	"github.com/prov4ml/agent/record"
)

// OpenTelemetry's default limits of a span. Receivers enforce them, so more is left out here, and counted on the span.
const (
	maxAttributes = 128
	maxEvents     = 128
)

// markerLength is how long a root marker lasts. It is exported when the trace begins, before anybody knows its end, and
// never again: two spans with one id are two spans in Jaeger. A length of 0 gives "negative duration" warnings there.
const markerLength = time.Millisecond

// lagShown is the lag from which on a span says how long the call was under way.
const lagShown = 0.010

// snapshot is a finished span. The embedded interface is nil; it is there for the interface's private method alone, and
// every public one is implemented below.
type snapshot struct {
	sdktrace.ReadOnlySpan

	name              string
	context, parent   trace.SpanContext
	start, end        time.Time
	attributes        []attribute.KeyValue
	links             []sdktrace.Link
	events            []sdktrace.Event
	droppedAttributes int
	droppedEvents     int
	status            sdktrace.Status
	scope             instrumentation.Scope
	resource          *resource.Resource
}

func (s *snapshot) Name() string                                { return s.name }
func (s *snapshot) SpanContext() trace.SpanContext              { return s.context }
func (s *snapshot) Parent() trace.SpanContext                   { return s.parent }
func (s *snapshot) SpanKind() trace.SpanKind                    { return trace.SpanKindInternal }
func (s *snapshot) StartTime() time.Time                        { return s.start }
func (s *snapshot) EndTime() time.Time                          { return s.end }
func (s *snapshot) Attributes() []attribute.KeyValue            { return s.attributes }
func (s *snapshot) Links() []sdktrace.Link                      { return s.links }
func (s *snapshot) Events() []sdktrace.Event                    { return s.events }
func (s *snapshot) Status() sdktrace.Status                     { return s.status }
func (s *snapshot) InstrumentationScope() instrumentation.Scope { return s.scope }
func (s *snapshot) InstrumentationLibrary() instrumentation.Scope {
	return s.scope
}
func (s *snapshot) Resource() *resource.Resource { return s.resource }
func (s *snapshot) DroppedAttributes() int       { return s.droppedAttributes }
func (s *snapshot) DroppedLinks() int            { return 0 }
func (s *snapshot) DroppedEvents() int           { return s.droppedEvents }
func (s *snapshot) ChildSpanCount() int          { return 0 }

// spanBuilder makes spans of records. One goroutine uses it.
type spanBuilder struct {
	scope     instrumentation.Scope
	resources resources
}

func newSpanBuilder(version string) *spanBuilder {
	return &spanBuilder{scope: newScope(version), resources: resources{}}
}

func newScope(version string) instrumentation.Scope {
	return instrumentation.Scope{Name: names.ScopeName, Version: version}
}

// Spans returns the spans that a record becomes: the markers that it opens, its own, and the ends of segments that it
// closes. version is the agent's.
func Spans(rec *record.LogCall, version string) []sdktrace.ReadOnlySpan {
	return newSpanBuilder(version).spans(nil, rec)
}

// spans appends the record's spans to dst.
func (b *spanBuilder) spans(dst []sdktrace.ReadOnlySpan, rec *record.LogCall) []sdktrace.ReadOnlySpan {
	p := rec.GetProcess()
	res := b.resources.of(p)
	run := runMarker(p)
	end := rec.GetFunction() == record.Function_RUN_END

	if rec.GetOpensRun() {
		s := b.marker(names.SpanRun, run, rec.GetStartUnixNanos(), res)
		s.attributes = identity(p)
		s.links = caller(rec)
		s.setParameters(rec)
		dst = append(dst, s)
	}
	if seg := rec.GetSegment(); seg.GetOpens() && !end {
		s := b.marker(names.SpanSegment, segmentMarker(p, seg), seg.GetStartUnixNanos(), res)
		s.attributes = segmentAttributes(p, seg)
		s.links = []sdktrace.Link{{SpanContext: run, Attributes: []attribute.KeyValue{attribute.String(names.Link, "run")}}}
		dst = append(dst, s)
	}

	dst = append(dst, b.own(rec, res))

	for _, seg := range rec.GetClosedSegments() {
		root := segmentMarker(p, seg)
		start := seg.GetStartUnixNanos()
		s := &snapshot{
			name:       names.SpanSegmentEnd,
			context:    segmentEnd(p, seg),
			parent:     root,
			start:      unixTime(start),
			end:        later(unixTime(seg.GetEndUnixNanos()), unixTime(start).Add(markerLength)),
			attributes: append(segmentAttributes(p, seg), attribute.Int64(names.SegmentSpans, int64(seg.GetSpans()))),
			scope:      b.scope,
			resource:   res,
		}
		dst = append(dst, s)
	}
	return dst
}

// marker is the root of a trace.
func (b *spanBuilder) marker(name string, c trace.SpanContext, startUnixNanos int64, res *resource.Resource) *snapshot {
	start := unixTime(startUnixNanos)
	return &snapshot{name: name, context: c, start: start, end: start.Add(markerLength), scope: b.scope, resource: res}
}

// own is the span of the log call itself, or of the run's end.
func (b *spanBuilder) own(rec *record.LogCall, res *resource.Resource) *snapshot {
	t := theTable()
	root := parent(rec)
	s := &snapshot{
		name:     functionName(rec.GetFunction()),
		context:  own(rec, root),
		parent:   root,
		start:    unixTime(rec.GetStartUnixNanos()),
		end:      unixTime(max(rec.GetEndUnixNanos(), rec.GetStartUnixNanos())),
		links:    caller(rec),
		scope:    b.scope,
		resource: res,
	}

	attrs := make([]attribute.KeyValue, 0, len(rec.GetReadings())+len(rec.GetRunTotals())+14)
	if rec.Context != nil {
		attrs = append(attrs, attribute.String(names.Context, rec.GetContext()))
	}
	if rec.Step != nil {
		attrs = append(attrs, attribute.Int64(names.Step, rec.GetStep()))
	}
	if rec.GetLabel() != "" {
		attrs = append(attrs, attribute.String(names.Label, rec.GetLabel()))
	}
	attrs = append(attrs, identity(rec.GetProcess())...)
	attrs = append(
		attrs,
		attribute.Bool(names.WindowFirst, rec.GetWindowFirst()),
		attribute.Bool(names.WindowGap, rec.GetWindowGap()),
		attribute.Bool(names.WindowIncomplete, incomplete(rec)),
	)
	if rec.Timestamp != nil {
		attrs = append(attrs, attribute.Int64(names.Timestamp, rec.GetTimestamp()))
	}
	if rec.GetLagSeconds() > lagShown {
		attrs = append(attrs, attribute.Float64(names.LagSeconds, rec.GetLagSeconds()))
	}
	if pids := enclosing(rec); pids != nil {
		attrs = append(attrs, attribute.Int64Slice(names.EnclosingPIDs, pids))
	}
	for _, r := range rec.GetReadings() {
		if kv, ok := t.attributeOf(r, false); ok {
			attrs = append(attrs, kv)
		}
	}
	for _, r := range rec.GetRunTotals() {
		if kv, ok := t.attributeOf(r, true); ok {
			attrs = append(attrs, kv)
		}
	}
	if reasons := Reasons(rec); len(reasons) > 0 {
		attrs = append(attrs, attribute.StringSlice(names.Unavailable, reasons))
	}
	s.attributes = attrs
	if rec.GetError() != "" {
		s.status = sdktrace.Status{Code: codes.Error, Description: rec.GetError()}
	}
	s.addEvents(rec)
	if rec.GetFunction() == record.Function_RUN_END {
		s.setParameters(rec)
	}
	if n := len(s.attributes) - maxAttributes; n > 0 {
		s.attributes, s.droppedAttributes = s.attributes[:maxAttributes], n
	}
	return s
}

// addEvents puts the record's events and the metrics that the script logged on the span.
func (s *snapshot) addEvents(rec *record.LogCall) {
	for _, e := range rec.GetEvents() {
		var attrs []attribute.KeyValue
		for _, r := range e.GetAttributes() {
			if kv, ok := untyped(attribute.Key(names.Prefix+r.GetName()), r); ok && r.GetName() != "" {
				attrs = append(attrs, kv)
			}
		}
		s.events = append(s.events, sdktrace.Event{Name: names.Prefix + e.GetName(), Time: unixTime(e.GetTimeUnixNanos()), Attributes: attrs})
	}
	for _, m := range rec.GetLoggedMetrics() {
		attrs := []attribute.KeyValue{attribute.String(names.LoggedKey, m.GetKey()), attribute.Float64(names.LoggedValue, m.GetValue())}
		if m.Context != nil {
			attrs = append(attrs, attribute.String(names.Context, m.GetContext()))
		}
		if m.Step != nil {
			attrs = append(attrs, attribute.Int64(names.Step, m.GetStep()))
		}
		s.events = append(s.events, sdktrace.Event{Name: names.EventLoggedMetric, Time: unixTime(m.GetTimeUnixNanos()), Attributes: attrs})
	}
	if n := len(s.events) - maxEvents; n > 0 {
		s.events, s.droppedEvents = s.events[:maxEvents], n
	}
}

// setParameters puts what the script said about the run on its marker; what finds no room goes into events.
func (s *snapshot) setParameters(rec *record.LogCall) {
	parameters := rec.GetRunAttributes()
	if len(parameters) == 0 {
		return
	}
	var rest []attribute.KeyValue
	for _, k := range slices.Sorted(maps.Keys(parameters)) {
		kv := attribute.String(names.ParameterPrefix+k, parameters[k])
		if len(s.attributes) < maxAttributes {
			s.attributes = append(s.attributes, kv)
		} else {
			rest = append(rest, kv)
		}
	}
	for part := range slices.Chunk(rest, maxAttributes) {
		if len(s.events) == maxEvents {
			s.droppedEvents++
			continue
		}
		s.events = append(s.events, sdktrace.Event{Name: names.EventParameters, Time: s.end, Attributes: part})
	}
}

func segmentAttributes(p *record.Process, seg *record.Segment) []attribute.KeyValue {
	var attrs []attribute.KeyValue
	if seg.GetHasContext() {
		attrs = append(attrs, attribute.String(names.Context, seg.GetContext()))
	}
	attrs = append(attrs, identity(p)...)
	return append(attrs, attribute.Int64(names.SegmentNumber, int64(seg.GetNumber())))
}

// caller is the link to the trace that the script itself is in. A traceparent that is not valid is none.
func caller(rec *record.LogCall) []sdktrace.Link {
	if rec.GetTraceparent() == "" {
		return nil
	}
	ctx := propagation.TraceContext{}.Extract(context.Background(), propagation.MapCarrier{"traceparent": rec.GetTraceparent()})
	c := trace.SpanContextFromContext(ctx)
	if !c.IsValid() {
		return nil
	}
	return []sdktrace.Link{{SpanContext: c, Attributes: []attribute.KeyValue{attribute.String(names.Link, "caller")}}}
}

// incomplete says whether a part of what the window holds is missing.
func incomplete(rec *record.LogCall) bool {
	return rec.GetWindowIncomplete() || slices.ContainsFunc(rec.GetReadings(), func(r *record.Reading) bool {
		return r.GetState() == record.State_INCOMPLETE
	})
}

func enclosing(rec *record.LogCall) []int64 {
	var pids []int64
	for _, k := range rec.GetEnclosing() {
		pids = append(pids, int64(k.GetPid()))
	}
	return pids
}

// Reasons says what the record does not know and why, a sentence each: what it was given, and the readings that are not OK
// whose reason is not in there. A reading without a reason of its own belongs to a group whose reason is among those given.
func Reasons(rec *record.LogCall) []string {
	reasons := slices.Clone(rec.GetUnavailable())
	given := len(reasons)
	var by []string // reasons in order of appearance
	lacking := map[string][]string{}
	for _, r := range rec.GetReadings() {
		if r.GetState() == record.State_OK || r.GetName() == "" {
			continue
		}
		why := r.GetReason()
		if why == "" && given > 0 {
			continue
		}
		if why == "" {
			why = stateWord(r.GetState())
		}
		if slices.ContainsFunc(reasons[:given], func(s string) bool { return strings.Contains(s, why) }) {
			continue
		}
		if lacking[why] == nil {
			by = append(by, why)
		}
		lacking[why] = append(lacking[why], r.GetName())
	}
	for _, why := range by {
		reasons = append(reasons, fmt.Sprintf("%s: %s", strings.Join(lacking[why], ", "), why))
	}
	return reasons
}

func stateWord(s record.State) string {
	switch s {
	case record.State_ABSENT:
		return "there is nothing to measure"
	case record.State_UNSUPPORTED:
		return "cannot be measured here"
	case record.State_STALE:
		return "measured too long ago"
	case record.State_INCOMPLETE:
		return "a part is missing"
	default:
		return "not measured"
	}
}

func functionName(f record.Function) string {
	switch f {
	case record.Function_LOG_SYSTEM_METRICS:
		return names.SpanSystemMetrics
	case record.Function_LOG_FLOPS_PER_BATCH:
		return names.SpanFlopsPerBatch
	case record.Function_LOG_FLOPS_PER_EPOCH:
		return names.SpanFlopsPerEpoch
	case record.Function_RUN_END:
		return names.SpanRunEnd
	default:
		return "log_call"
	}
}

func later(a, b time.Time) time.Time {
	if a.Before(b) {
		return b
	}
	return a
}

func unixTime(nanos int64) time.Time { return time.Unix(0, nanos).UTC() }
