package store

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/testing/protocmp"

	"github.com/prov4ml/agent/record"
)

// sample is a record of about 900 bytes, as a log_system_metrics call makes it.
func sample(n int) *record.LogCall {
	rec := &record.LogCall{
		Schema:         1,
		Process:        &record.Process{BootId: "6d2c1f2e-5d3a-4a3e-9d43-0c6f6b1f9a10", Pid: 4711, StartTicks: 123456, RunId: "run-1", ServiceName: "train"},
		Function:       record.Function_LOG_SYSTEM_METRICS,
		Seq:            uint64(n),
		Context:        proto.String("training"),
		Step:           proto.Int64(int64(n)),
		StartUnixNanos: 1_700_000_000_000_000_000 + int64(n)*1_000_000,
		EndUnixNanos:   1_700_000_000_000_000_000 + int64(n+1)*1_000_000,
	}
	for _, name := range []string{
		record.MemoryUsage, record.DiskUsage, record.CPUUsage, record.DiskReadBytes, record.DiskWriteBytes, record.DiskReadOps,
		record.DiskWriteOps, record.DiskDirtiedBytes, record.DiskPendingWriteBytes, record.IOReadBytes, record.IOWriteBytes,
		record.CacheMissBytes, record.MemoryRSSBytes, record.MemoryRSSPeakBytes, record.MemoryMinorFaults, record.MemoryMajorFaults,
		record.CPUSeconds, record.Processes, record.ProcessesExited, record.DiskReadLatencyP50,
	} {
		rec.Readings = append(rec.Readings, &record.Reading{
			Name: name, Value: &record.Reading_Integer{Integer: int64(n) * 4096}, State: record.State_OK, Source: record.Source_EBPF,
		})
	}
	return rec
}

func open(t testing.TB, change ...func(*Config)) *Store {
	t.Helper()
	config := Config{Path: filepath.Join(t.TempDir(), "records.db")}
	for _, c := range change {
		c(&config)
	}
	s, err := Open(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// add appends records from to to-1 and waits for them.
func add(t testing.TB, s *Store, from, to int) {
	t.Helper()
	var waits []func(context.Context) (int64, error)
	for n := from; n < to; n++ {
		waits = append(waits, s.Append(sample(n), "p", fmt.Appendf(nil, "state %d", n)))
	}
	for _, wait := range waits {
		if _, err := wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func reader(t testing.TB, s *Store, destination, signal string) *Reader {
	t.Helper()
	r, err := s.Reader(destination, signal)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestAppendIsNumberedInOrderAndReadBackUnchanged(t *testing.T) {
	path := filepath.Join(t.TempDir(), "new", "directory", "records ?#%41.db")
	s := open(t, func(c *Config) { c.Path = path })
	for n := range 3 {
		seq, err := s.Append(sample(n), "p", nil)(t.Context())
		if err != nil || seq != int64(n)+1 {
			t.Fatalf("record %d: number %d, error %v", n, seq, err)
		}
	}
	check := func(s *Store) {
		t.Helper()
		want := int64(1)
		for got, err := range s.Records(t.Context()) {
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(Stored{want, sample(int(want - 1))}, got, protocmp.Transform()); diff != "" {
				t.Errorf("record %d (-want +got):\n%s", want, diff)
			}
			want++
		}
		if want != 4 {
			t.Errorf("%d records, want 3", want-1)
		}
	}
	check(s)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, func(c *Config) { c.Path = path })
	check(s)
	if seq, err := s.Append(sample(3), "p", nil)(t.Context()); err != nil || seq != 4 {
		t.Errorf("after reopening: number %d, error %v", seq, err)
	}
}

func TestColumnsForPeople(t *testing.T) {
	s := open(t)
	none := sample(1)
	none.Context, none.Step, none.Function = nil, nil, record.Function_RUN_END
	for _, rec := range []*record.LogCall{sample(0), none} {
		if _, err := s.Append(rec, "p", nil)(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rows, err := s.db.readers.Query(`SELECT concat_ws('|', seq, run, function, ifnull(context, '-'), ifnull(step, '-'), start, end) FROM records`)
	if err != nil {
		t.Fatal(err)
	}
	defer rows.Close()
	var got []string
	for rows.Next() {
		var line string
		if err := rows.Scan(&line); err != nil {
			t.Fatal(err)
		}
		got = append(got, line)
	}
	want := []string{
		"1|run-1|log_system_metrics|training|0|1700000000000000000|1700000000001000000",
		"2|run-1|run_end|-|-|1700000000001000000|1700000000002000000",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestRememberedGivesTheStatesThatAreWanted(t *testing.T) {
	s := open(t)
	for process, state := range map[string]string{"a": "open", "b": "ended", "c": "open"} {
		if _, err := s.Append(sample(1), process, []byte(state))(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	got, err := s.Remembered(func(state []byte) bool { return string(state) == "open" })
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || string(got["a"]) != "open" || string(got["c"]) != "open" {
		t.Errorf("%q", got)
	}
}

func TestRecallGivesTheLastCommittedState(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	if state, err := s.Recall("p"); state != nil || err != nil {
		t.Errorf("unknown process: %q, %v", state, err)
	}
	add(t, s, 0, 100)
	if _, err := s.Append(sample(100), "other", []byte{0, 1, 2})(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(sample(101), "p", nil)(t.Context()); err != nil {
		t.Fatal(err)
	}
	for again := range 2 {
		for process, want := range map[string]string{"p": "state 99", "other": "\x00\x01\x02"} {
			if state, err := s.Recall(process); err != nil || string(state) != want {
				t.Errorf("open %d: state of %s is %q, %v; want %q", again, process, state, err, want)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		s = open(t, func(c *Config) { c.Path = path })
	}
}

func TestConcurrentWritersKeepTheirOrder(t *testing.T) {
	s := open(t)
	const writers, each = 16, 200
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			last := int64(0)
			for n := range each {
				rec := sample(n)
				rec.Process.Pid = int32(w)
				seq, err := s.Append(rec, fmt.Sprint(w), nil)(t.Context())
				if err != nil || seq <= last {
					t.Errorf("writer %d, record %d: number %d after %d, error %v", w, n, seq, last, err)
					return
				}
				last = seq
			}
		})
	}
	all.Wait()
	next := map[int32]uint64{}
	seq := int64(0)
	for r, err := range s.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if seq++; r.Seq != seq {
			t.Fatalf("number %d, want %d", r.Seq, seq)
		}
		if r.Record.Seq != next[r.Record.Process.Pid] {
			t.Fatalf("writer %d: record %d, want %d", r.Record.Process.Pid, r.Record.Seq, next[r.Record.Process.Pid])
		}
		next[r.Record.Process.Pid]++
	}
	if seq != writers*each {
		t.Errorf("%d records, want %d", seq, writers*each)
	}
	if st := s.Stats(); st.Commits >= writers*each {
		t.Errorf("%d commits for %d records: nothing was grouped", st.Commits, writers*each)
	}
}

func TestCloseCommitsWhatIsQueuedAndRefusesTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	waits := make([]func(context.Context) (int64, error), 0, 3000)
	for n := range 3000 {
		waits = append(waits, s.Append(sample(n), "p", nil))
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	for n, wait := range waits {
		if seq, err := wait(t.Context()); err != nil || seq != int64(n)+1 {
			t.Fatalf("record %d: number %d, error %v", n, seq, err)
		}
	}
	if _, err := s.Append(sample(0), "p", nil)(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Append after Close: %v", err)
	}
	if _, err := s.Recall("p"); !errors.Is(err, ErrClosed) {
		t.Errorf("Recall after Close: %v", err)
	}
	if _, err := reader(t, s, "d", "traces").Next(t.Context(), 1, 1); !errors.Is(err, ErrClosed) {
		t.Errorf("Next after Close: %v", err)
	}
	if left, _ := filepath.Glob(path + "*"); len(left) != 1 {
		t.Errorf("Close leaves %v", left)
	}
	s = open(t, func(c *Config) { c.Path = path })
	if st := s.Stats(); st.Records != 3000 {
		t.Errorf("%d records after reopening, want 3000", st.Records)
	}
}

func TestAppendRefusesWhenTheQueueIsFull(t *testing.T) {
	s := open(t, func(c *Config) { c.MaxQueueBytes = 16 << 10 })
	s.turn.Lock() // the disk hangs
	refused, waits := 0, []func(context.Context) (int64, error){}
	for n := range 100 {
		wait := s.Append(sample(n), "p", nil)
		canceled, cancel := context.WithCancel(t.Context())
		cancel()
		switch _, err := wait(canceled); {
		case errors.Is(err, ErrQueueFull):
			refused++
		case errors.Is(err, context.Canceled):
			waits = append(waits, wait)
		default:
			t.Fatal(err)
		}
	}
	if refused == 0 || len(waits) < 16 {
		t.Errorf("%d refused, %d taken", refused, len(waits))
	}
	if st := s.Stats(); st.Refused != uint64(refused) || st.QueuedBytes > 16<<10 {
		t.Errorf("stats: %+v", st)
	}
	s.endTurn()
	for _, wait := range waits {
		if _, err := wait(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	add(t, s, 0, 1)
}

func TestARecordThatCannotBeEncodedIsRefused(t *testing.T) {
	s := open(t)
	rec := sample(0)
	rec.Label = "\xff"
	if _, err := s.Append(rec, "p", nil)(t.Context()); err == nil || !strings.Contains(err.Error(), "label") {
		t.Errorf("error %v does not name the label", err)
	}
	add(t, s, 0, 1)
}

func TestConfigIsChecked(t *testing.T) {
	for _, c := range []struct {
		config Config
		names  string
	}{
		{Config{}, "Path"},
		{Config{Path: "x", MaxBytes: -1}, "MaxBytes"},
		{Config{Path: "x", MaxAge: -1}, "MaxAge"},
		{Config{Path: "x", MaxQueueBytes: -1}, "MaxQueueBytes"},
		{Config{Path: "x", SyncEvery: -1}, "SyncEvery"},
		{Config{Path: "x", LockWait: -time.Second}, "LockWait"},
	} {
		if _, err := Open(t.Context(), c.config); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("%+v: error %v does not name %s", c.config, err, c.names)
		}
	}
}
