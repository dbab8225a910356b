package otel

import (
	"crypto/sha256"
	"encoding/binary"
	"hash"

	"go.opentelemetry.io/otel/trace"

	"github.com/prov4ml/agent/record"
)

// hasher makes ids of a record's identity. Each field goes in with its length, so that no two lists of fields are the same
// bytes.
type hasher struct{ h hash.Hash }

// newHasher starts with what the id is for and whose it is.
func newHasher(purpose string, p *record.Process) hasher {
	x := hasher{sha256.New()}
	x.text(purpose)
	x.text(p.GetRunId())
	x.text(p.GetBootId())
	x.number(uint64(p.GetPid()))
	x.number(p.GetStartTicks())
	return x
}

func (x hasher) text(s string) {
	x.number(uint64(len(s)))
	x.h.Write([]byte(s))
}

func (x hasher) number(n uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], n)
	x.h.Write(b[:])
}

func (x hasher) segment(s *record.Segment) {
	x.number(boolNumber(s.GetHasContext()))
	x.text(s.GetContext())
	x.number(uint64(s.GetNumber()))
}

func (x hasher) traceID() (id trace.TraceID) {
	copy(id[:], x.h.Sum(nil))
	if !id.IsValid() { // all zeroes is no id
		id[15] = 1
	}
	return id
}

func (x hasher) spanID() (id trace.SpanID) {
	copy(id[:], x.h.Sum(nil))
	if !id.IsValid() {
		id[7] = 1
	}
	return id
}

func boolNumber(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// sampled is the context of one of our own spans.
func sampled(t trace.TraceID, s trace.SpanID) trace.SpanContext {
	return trace.NewSpanContext(trace.SpanContextConfig{TraceID: t, SpanID: s, TraceFlags: trace.FlagsSampled})
}

// runMarker is the root of the process's run trace.
func runMarker(p *record.Process) trace.SpanContext {
	return sampled(newHasher("run trace", p).traceID(), newHasher("run marker", p).spanID())
}

// segmentMarker is the root of a segment's trace.
func segmentMarker(p *record.Process, s *record.Segment) trace.SpanContext {
	t, m := newHasher("segment trace", p), newHasher("segment marker", p)
	t.segment(s)
	m.segment(s)
	return sampled(t.traceID(), m.spanID())
}

// segmentEnd is the last span of a segment's trace.
func segmentEnd(p *record.Process, s *record.Segment) trace.SpanContext {
	x := newHasher("segment end", p)
	x.segment(s)
	return sampled(segmentMarker(p, s).TraceID(), x.spanID())
}

// parent is the marker below which the record's own span hangs: its segment's, or the run's for the run's end.
func parent(rec *record.LogCall) trace.SpanContext {
	if s := rec.GetSegment(); s != nil && rec.GetFunction() != record.Function_RUN_END {
		return segmentMarker(rec.GetProcess(), s)
	}
	return runMarker(rec.GetProcess())
}

// own is the record's own span.
func own(rec *record.LogCall, parent trace.SpanContext) trace.SpanContext {
	x := newHasher("call", rec.GetProcess())
	x.number(uint64(rec.GetFunction()))
	x.number(rec.GetSeq())
	return sampled(parent.TraceID(), x.spanID())
}

// SpanOf returns the ids of the span that the record becomes, in hex.
func SpanOf(rec *record.LogCall) (traceID, spanID string) {
	c := own(rec, parent(rec))
	return c.TraceID().String(), c.SpanID().String()
}
