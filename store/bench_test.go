package store

import (
	"fmt"
	"slices"
	"testing"
	"time"
)

// BenchmarkCommit is what a synchronous call waits for: one caller, one record a commit.
func BenchmarkCommit(b *testing.B) {
	s := open(b)
	rec, state := sample(1), make([]byte, 400)
	took := make([]time.Duration, 0, b.N)
	b.ReportAllocs()
	for b.Loop() {
		start := time.Now()
		if _, err := s.Append(rec, "p", state)(b.Context()); err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1e3, "p50-µs")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1e3, "p99-µs")
	b.ReportMetric(float64(took[len(took)-1].Nanoseconds())/1e3, "max-µs")
}

// BenchmarkWriters is many callers that wait for each of their records.
func BenchmarkWriters(b *testing.B) {
	for _, writers := range []int{8, 64} {
		b.Run(fmt.Sprint(writers), func(b *testing.B) {
			s := open(b)
			rec, state := sample(1), make([]byte, 400)
			b.SetParallelism(writers)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					if _, err := s.Append(rec, "p", state)(b.Context()); err != nil {
						b.Error(err)
						return
					}
				}
			})
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(float64(b.N)/float64(max(1, s.Stats().Commits)), "records/commit")
		})
	}
}

// BenchmarkNext is a reader that catches up.
func BenchmarkNext(b *testing.B) {
	s := open(b)
	add(b, s, 0, 2000)
	r := reader(b, s, "file", "traces")
	b.ReportAllocs()
	for b.Loop() {
		records, err := r.Next(b.Context(), 512, 1<<20)
		if err != nil || len(records) != 512 {
			b.Fatal(len(records), err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/512, "ns/record")
}
