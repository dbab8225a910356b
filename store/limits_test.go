package store

import (
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// settle waits until the writer has nothing left to do: everything before a cursor's move is done when the move is, except
// the housekeeping after it, so two moves are made.
func settle(t testing.TB, r *Reader) {
	t.Helper()
	for range 2 {
		if err := r.Advance(t.Context(), r.Seq(), r.State()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestLimitByBytesRemovesTheOldestAndCounts(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	limit := func(c *Config) { c.Path = path; c.MaxBytes = 1 << 20 }
	s := open(t, limit)
	traces, metrics := reader(t, s, "file", "traces"), reader(t, s, "file", "metrics")
	const n = 8000 // about 8 MB
	for from := 0; from < n; from += 100 {
		add(t, s, from, from+100)
		if from < 2000 {
			for _, r := range []*Reader{traces, metrics} {
				if err := r.Advance(t.Context(), int64(from+100), nil); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	if err := traces.Advance(t.Context(), 2100, nil); err != nil {
		t.Fatal(err)
	}
	settle(t, traces)
	var used int64
	if err := s.db.readers.QueryRow(sqlUsed).Scan(&used); err != nil {
		t.Fatal(err)
	}
	if used > 1<<20+lookBytes+256<<10 {
		t.Errorf("the records take %d bytes", used)
	}
	st := s.Stats()
	removed := n - st.Records
	if st.Records < 200 || st.Records > 1400 {
		t.Errorf("%d records are left", st.Records)
	}
	if st.RemovedDelivered != 2000 || st.RemovedUndelivered != removed-2000 {
		t.Errorf("removed %d: %d delivered, %d not", removed, st.RemovedDelivered, st.RemovedUndelivered)
	}
	for _, u := range st.Undelivered {
		if u.Records != st.Records {
			t.Errorf("%+v undelivered, want the %d that are left", u, st.Records)
		}
	}
	wantRange(t, next(t, metrics, 100), removed+1, removed+100)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, limit)
	if again := s.Stats(); again.Records != st.Records || again.RemovedDelivered != st.RemovedDelivered || again.RemovedUndelivered != st.RemovedUndelivered {
		t.Errorf("before %+v, after reopening %+v", st, again)
	}
}

func TestLimitByAge(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	add(t, s, 0, 5000) // one a millisecond
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	const maxAge = 2500 * time.Millisecond
	s = open(t, func(c *Config) {
		c.Path = path
		c.MaxAge = maxAge
		c.Now = func() time.Time { return time.Unix(0, sample(4000).EndUnixNanos).Add(maxAge) }
	})
	r := reader(t, s, "file", "traces")
	for range 6 { // each removes a bounded number
		settle(t, r)
	}
	if st := s.Stats(); st.Records != 1000 || st.RemovedUndelivered != 4000 {
		t.Errorf("%d records are left, want 1000: %+v", st.Records, st)
	}
	wantRange(t, next(t, r, 1), 4001, 4001)
}

func TestNumbersAreNotGivenTwice(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	add(t, s, 0, 10)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, func(c *Config) { c.Path = path })
	if err := s.remove(10); err != nil { // the writer is idle
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, func(c *Config) { c.Path = path })
	if seq, err := s.Append(sample(0), "p", nil)(t.Context()); err != nil || seq != 11 {
		t.Errorf("number %d, error %v, want 11", seq, err)
	}
	if state, err := s.Recall("p"); err != nil || state == nil {
		t.Errorf("the process went with its records: %q, %v", state, err)
	}
}

func TestProcessesAreForgottenOldestFirst(t *testing.T) {
	s := open(t)
	s.keptProcesses = 100
	for n := range 250 {
		if _, err := s.Append(sample(n), fmt.Sprint(n), []byte("state"))(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	settle(t, reader(t, s, "file", "traces"))
	// The writer looks after each hundred records or more, as it comes to it.
	for n, want := range map[int]bool{0: false, 150: true, 249: true} {
		if state, err := s.Recall(fmt.Sprint(n)); err != nil || (state != nil) != want {
			t.Errorf("process %d: %q, %v", n, state, err)
		}
	}
}

func TestAFullDiskIsAnErrorToTheCallerAndPasses(t *testing.T) {
	s := open(t)
	add(t, s, 0, 10)
	var pages, unlimited int64
	if err := s.db.conn.QueryRowContext(t.Context(), `PRAGMA page_count`).Scan(&pages); err != nil {
		t.Fatal(err)
	}
	// SQLite answers an exceeded max_page_count as it does ENOSPC.
	if err := s.db.conn.QueryRowContext(t.Context(), `PRAGMA max_page_count = 1`).Scan(&unlimited); err != nil {
		t.Fatal(err)
	}
	var failed int
	for n := 10; n < 200; n++ {
		if _, err := s.Append(sample(n), "p", nil)(t.Context()); errors.Is(err, ErrNoSpace) {
			failed++
		} else if err != nil {
			t.Fatal(err)
		}
	}
	if failed == 0 {
		t.Fatal("no append failed")
	}
	if err := s.db.conn.QueryRowContext(t.Context(), `PRAGMA max_page_count = 1000000`).Scan(&unlimited); err != nil {
		t.Fatal(err)
	}
	add(t, s, 200, 210)
	st := s.Stats()
	if int(st.Failed) != failed || st.LastError == "" || st.Records != int64(10+190-failed+10) {
		t.Errorf("%d failed, stats %+v", failed, st)
	}
}

func TestTheLogStartsAnewUnderALoadWithoutAPause(t *testing.T) {
	s := open(t)
	s.heldPages = 1024 // nothing was written yet, so nobody reads it
	stop := make(chan struct{})
	var load sync.WaitGroup
	defer load.Wait()
	defer close(stop)
	for range 4 {
		load.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if _, err := s.Append(sample(n), "p", nil)(t.Context()); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	longest := int64(0)
	for {
		time.Sleep(10 * time.Millisecond)
		var busy, pages, copied int64
		if err := s.db.readers.QueryRow(`PRAGMA wal_checkpoint(NOOP)`).Scan(&busy, &pages, &copied); err != nil {
			t.Fatal(err)
		}
		if longest = max(longest, pages); longest > s.heldPages && pages < longest {
			t.Logf("from %d pages to %d", longest, pages)
			return
		}
		if longest > 100*s.heldPages {
			t.Fatalf("the log holds %d pages and did not start anew", pages)
		}
	}
}

func TestAFullFileSystemIsAnErrorToTheCallerAndPasses(t *testing.T) {
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=3m"); err != nil {
		if errors.Is(err, unix.EPERM) {
			t.Skip("mounting a tmpfs needs CAP_SYS_ADMIN")
		}
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	recorded := map[int64]bool{}
	failed := 0
	for n := 0; failed < 20; n++ {
		seq, err := s.Append(sample(n), "p", []byte("state"))(t.Context())
		switch {
		case err == nil:
			recorded[seq] = true
		case errors.Is(err, ErrNoSpace):
			failed++
		default:
			t.Fatal(err)
		}
	}
	if err := unix.Mount("", dir, "tmpfs", unix.MS_REMOUNT, "size=64m"); err != nil {
		t.Fatal(err)
	}
	for n := range 100 {
		seq, err := s.Append(sample(n), "p", []byte("state"))(t.Context())
		if err != nil || recorded[seq] {
			t.Fatalf("after there is space again: number %d, error %v", seq, err)
		}
		recorded[seq] = true
	}
	if st := s.Stats(); st.Failed != uint64(failed) || st.SetAside != 0 {
		t.Errorf("stats: %+v", st)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, func(c *Config) { c.Path = path })
	for r, err := range s.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if !recorded[r.Seq] {
			t.Errorf("record %d was refused and is there", r.Seq)
		}
		delete(recorded, r.Seq)
	}
	if len(recorded) > 0 {
		t.Errorf("%d acknowledged records are lost", len(recorded))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
