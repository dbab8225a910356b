package otel

import (
	"context"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/otel/otlptest"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

// full is a record with as many values as a system-metrics call has.
func full(n int) *record.LogCall {
	rec := proto.Clone(training()[0]).(*record.LogCall)
	rec.Seq, rec.Step, rec.OpensRun, rec.Segment.Opens = uint64(n), proto.Int64(int64(n)), n == 0, n == 0
	rec.StartUnixNanos, rec.EndUnixNanos = hello+int64(n)*second, hello+int64(n+1)*second
	rec.StepTotals.Totals = nil
	for _, r := range rec.Readings {
		if v, ok := r.Value.(*record.Reading_Integer); ok {
			rec.StepTotals.Totals = append(rec.StepTotals.Totals, total(r.Name, v.Integer))
		}
	}
	return rec
}

func BenchmarkSpans(b *testing.B) {
	recs := make([]*record.LogCall, 100)
	for i := range recs {
		recs[i] = full(i)
	}
	builder := newSpanBuilder("1")
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		builder.spans(nil, recs[i%len(recs)])
	}
}

func BenchmarkMetrics(b *testing.B) {
	recs := make([]*record.LogCall, 100)
	for i := range recs {
		recs[i] = full(i)
	}
	builder := newMetricBuilder("1", StepAttribute)
	b.ReportAllocs()
	for b.Loop() {
		builder.metrics(recs)
	}
	b.ReportMetric(float64(b.Elapsed().Microseconds())/float64(b.N*len(recs)), "us/record")
}

// BenchmarkDelivery takes records from the store to two files and a receiver, all in this process.
func BenchmarkDelivery(b *testing.B) {
	const records = 5000
	for b.Loop() {
		b.StopTimer()
		ctx := context.Background()
		r := &otlptest.Receiver{}
		if err := r.Start(""); err != nil {
			b.Fatal(err)
		}
		b.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", r.Endpoint())
		env, err := ReadEnvironment(func(k string) string { return map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": r.Endpoint()}[k] })
		if err != nil {
			b.Fatal(err)
		}
		dir := b.TempDir()
		s, err := store.Open(ctx, store.Config{Path: dir + "/records.db"})
		if err != nil {
			b.Fatal(err)
		}
		var wait func(context.Context) (int64, error)
		for n := range records {
			wait = s.Append(full(n), "p", nil)
		}
		if _, err := wait(ctx); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		p, err := Start(ctx, Config{Store: s, Directory: dir, OTLP: env, Linger: time.Millisecond})
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Flush(ctx); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := p.Close(ctx); err != nil {
			b.Fatal(err)
		}
		r.Stop()
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
	b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
}
