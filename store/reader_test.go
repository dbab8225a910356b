package store

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

func next(t testing.TB, r *Reader, maxRecords int) []int64 {
	t.Helper()
	records, err := r.Next(t.Context(), maxRecords, 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	var seqs []int64
	for _, s := range records {
		if got := int64(s.Record.Seq) + 1; got != s.Seq {
			t.Fatalf("record %d has number %d", got, s.Seq)
		}
		seqs = append(seqs, s.Seq)
	}
	return seqs
}

func wantRange(t testing.TB, got []int64, from, to int64) {
	t.Helper()
	if len(got) != int(to-from+1) {
		t.Fatalf("%d records, want %d to %d", len(got), from, to)
	}
	for i, seq := range got {
		if seq != from+int64(i) {
			t.Fatalf("got %d at place %d, want %d", seq, i, from+int64(i))
		}
	}
}

func TestReaderKeepsItsPlaceAndState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	// More than the memory holds, so that both the file and the memory answer.
	const n = 3 * recentRecords
	add(t, s, 0, n)
	traces, metrics := reader(t, s, "file", "traces"), reader(t, s, "file", "metrics")
	if traces.Seq() != 0 || traces.State() != nil {
		t.Errorf("a new cursor stands at %d with state %q", traces.Seq(), traces.State())
	}
	wantRange(t, next(t, traces, 10), 1, 10)
	if behind := traces.Behind(10); behind != n-10 {
		t.Errorf("%d records stand behind the tenth, want %d", behind, n-10)
	}
	wantRange(t, next(t, traces, 20), 1, 20)
	if err := traces.Advance(t.Context(), 10, []byte("inode 7, 900 bytes")); err != nil {
		t.Fatal(err)
	}
	for at := int64(10); at < n; {
		got := next(t, traces, 100)
		wantRange(t, got, at+1, min(at+100, n))
		at = got[len(got)-1]
		if err := traces.Advance(t.Context(), at, []byte("inode 7, many bytes")); err != nil {
			t.Fatal(err)
		}
	}
	wantRange(t, next(t, metrics, 1), 1, 1)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}

	s = open(t, func(c *Config) { c.Path = path })
	traces, metrics = reader(t, s, "file", "traces"), reader(t, s, "file", "metrics")
	if traces.Seq() != n || string(traces.State()) != "inode 7, many bytes" {
		t.Errorf("after reopening: cursor at %d, state %q", traces.Seq(), traces.State())
	}
	if metrics.Seq() != 0 || metrics.State() != nil {
		t.Errorf("after reopening: cursor at %d, state %q", metrics.Seq(), metrics.State())
	}
	add(t, s, n, n+1)
	wantRange(t, next(t, traces, 10), n+1, n+1)
}

func TestReaderWithStaleStateBlob(t *testing.T) {
	s := open(t)
	add(t, s, 0, 1)
	r := reader(t, s, "file", "traces")
	blob := []byte("kept")
	if err := r.Advance(t.Context(), 1, blob); err != nil {
		t.Fatal(err)
	}
	copy(blob, "lost")
	copy(r.State(), "lost")
	if got := string(r.State()); got != "kept" {
		t.Errorf("state %q: it shares memory with the caller's", got)
	}
	if err := r.Advance(t.Context(), 1, nil); err != nil || r.State() != nil {
		t.Errorf("error %v, state %q, want none", err, r.State())
	}
}

func TestAdvanceRefusesWhatCannotBe(t *testing.T) {
	s := open(t)
	add(t, s, 0, 5)
	r := reader(t, s, "file", "traces")
	if err := r.Advance(t.Context(), 6, nil); err == nil {
		t.Error("moved beyond the last record")
	}
	if err := r.Advance(t.Context(), 3, nil); err != nil {
		t.Fatal(err)
	}
	if err := r.Advance(t.Context(), 2, nil); err == nil {
		t.Error("moved back")
	}
	if r.Seq() != 3 {
		t.Errorf("cursor at %d, want 3", r.Seq())
	}
}

func TestNextKeepsToItsBytesButReturnsOne(t *testing.T) {
	s := open(t)
	add(t, s, 0, 3*recentRecords)
	r := reader(t, s, "file", "traces")
	for _, at := range []int64{0, 2*recentRecords + 100} { // from the file, from memory
		if err := r.Advance(t.Context(), at, nil); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct{ maxBytes, want int }{{1, 1}, {4000, 0}} {
			got, err := r.Next(t.Context(), 100, c.maxBytes)
			if err != nil {
				t.Fatal(err)
			}
			if c.want != 0 && len(got) != c.want || c.want == 0 && (len(got) < 2 || len(got) > 8) {
				t.Errorf("behind %d: %d records of about 900 bytes in %d bytes", at, len(got), c.maxBytes)
			}
		}
	}
	if _, err := r.Next(t.Context(), 0, 1); err == nil {
		t.Error("maxRecords 0 was taken")
	}
}

func TestNextWaitsForARecord(t *testing.T) {
	s := open(t)
	const readers = 3
	var all sync.WaitGroup
	got := make(chan int64, readers)
	for n := range readers {
		r := reader(t, s, "file", string(rune('a'+n)))
		all.Go(func() {
			records, err := r.Next(t.Context(), 10, 1<<20)
			if err != nil {
				t.Error(err)
				return
			}
			got <- records[0].Seq
		})
	}
	time.Sleep(20 * time.Millisecond) // they wait, mostly; the test holds if they don't
	add(t, s, 0, 1)
	all.Wait()
	for range readers {
		if seq := <-got; seq != 1 {
			t.Errorf("record %d, want 1", seq)
		}
	}
}

func TestNextEndsWithItsContextAndWithTheStore(t *testing.T) {
	s := open(t)
	r := reader(t, s, "file", "traces")
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err := r.Next(ctx, 1, 1); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	time.AfterFunc(20*time.Millisecond, func() { _ = s.Close() })
	if _, err := r.Next(t.Context(), 1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("closed: %v", err)
	}
}

func TestAnUnreadableRecordIsPassedOverAndCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	add(t, s, 0, 10)
	if _, err := s.db.readers.Exec(`UPDATE records SET record = x'ffff' WHERE seq BETWEEN 2 AND 9`); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, func(c *Config) { c.Path = path })
	for _, signal := range []string{"traces", "metrics"} {
		r := reader(t, s, "file", signal)
		wantRange(t, next(t, r, 4), 1, 1)
		if err := r.Advance(t.Context(), 1, nil); err != nil {
			t.Fatal(err)
		}
		wantRange(t, next(t, r, 4), 10, 10)
	}
	if st := s.Stats(); st.Unreadable != 8 {
		t.Errorf("%d unreadable records counted, want 8", st.Unreadable)
	}
}
