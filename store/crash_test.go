package store

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childVariable makes the test binary do something else than test.
const childVariable = "PROV4ML_TEST_CHILD"

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv(childVariable) {
	case "":
		goleak.VerifyTestMain(m)
	case "write":
		err = writeMain()
	case "count":
		err = countMain()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// writeMain appends records from several writers, as fast as it can, and prints a line for each one acknowledged and for each
// move of the cursor, until it is killed.
func writeMain() error {
	s, err := Open(context.Background(), Config{Path: os.Getenv("PROV4ML_TEST_FILE"), MaxBytes: 1 << 40, SyncEvery: 20 * time.Millisecond, LockWait: 10 * time.Second})
	if err != nil {
		return err
	}
	var out sync.Mutex
	say := func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		out.Lock()
		defer out.Unlock()
		_, _ = os.Stdout.WriteString(line) // at once: a buffer would die with us
	}
	for w := range 4 {
		go func() {
			process := fmt.Sprintf("%d-%d", os.Getpid(), w)
			for n := 0; ; n++ {
				rec := sample(n)
				rec.Process.BootId = process
				seq, err := s.Append(rec, process, fmt.Append(nil, n))(context.Background())
				if err != nil {
					say("error %v\n", err)
					return
				}
				say("acknowledged %d %s %d\n", seq, process, n)
			}
		}()
	}
	r, err := s.Reader("file", "traces")
	if err != nil {
		return err
	}
	for {
		records, err := r.Next(context.Background(), 10, 1<<20)
		if err != nil {
			return err
		}
		last := records[len(records)-1].Seq
		if err := r.Advance(context.Background(), last, fmt.Append(nil, last)); err != nil {
			return err
		}
		say("moved %d\n", last)
	}
}

// TestKilledAgentLosesNothing kills a writing agent many times and checks the file each time.
func TestKilledAgentLosesNothing(t *testing.T) {
	path := filepath.Join(t.TempDir(), "records.db")
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	type identity struct {
		process string
		n       int
	}
	acknowledged := map[int64]identity{}
	lastOf := map[string]int{} // process -> its last acknowledged record
	var moved int64
	kills := 0
	for start := time.Now(); time.Since(start) < 6*time.Second && kills < 40; kills++ {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), childVariable+"=write", "PROV4ML_TEST_FILE="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewReader(out)
		first := true
		for {
			line, err := lines.ReadString('\n')
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			if first {
				first = false
				time.AfterFunc(time.Duration(50+rand.IntN(150))*time.Millisecond, func() { _ = cmd.Process.Kill() })
			}
			var seq int64
			var who identity
			switch word, _, _ := strings.Cut(line, " "); word {
			case "acknowledged":
				if _, err := fmt.Sscanf(line, "acknowledged %d %s %d", &seq, &who.process, &who.n); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
				if other, ok := acknowledged[seq]; ok {
					t.Fatalf("number %d was given to %v and to %v", seq, other, who)
				}
				acknowledged[seq] = who
				lastOf[who.process] = max(lastOf[who.process], who.n)
			case "moved":
				if _, err := fmt.Sscanf(line, "moved %d", &moved); err != nil {
					t.Fatalf("%q: %v", line, err)
				}
			default:
				t.Fatal(line)
			}
		}
		if err := cmd.Wait(); err == nil || first {
			t.Fatalf("the writer ended by itself: %v", err)
		}
		if kills%4 == 0 { // every kill is checked in the end, some at once
			checkStore(t, path, moved, lastOf, func(s Stored) error { return nil })
		}
	}
	found := 0
	checkStore(t, path, moved, lastOf, func(s Stored) error {
		who, ok := acknowledged[s.Seq]
		if !ok {
			return nil // committed, but the kill came before its line
		}
		found++
		if got := (identity{s.Record.Process.BootId, int(s.Record.Seq)}); got != who {
			return fmt.Errorf("number %d holds %v, acknowledged was %v", s.Seq, got, who)
		}
		return nil
	})
	if found != len(acknowledged) {
		t.Errorf("%d of %d acknowledged records are in the file", found, len(acknowledged))
	}
	t.Logf("%d kills, %d acknowledged records", kills, len(acknowledged))
}

// checkStore opens the file after a kill and checks what must hold of any file.
func checkStore(t *testing.T, path string, moved int64, lastOf map[string]int, each func(Stored) error) {
	t.Helper()
	s, err := Open(t.Context(), Config{Path: path, MaxBytes: 1 << 40})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()
	var verdict string
	if err := s.db.conn.QueryRowContext(t.Context(), `PRAGMA quick_check`).Scan(&verdict); err != nil || verdict != "ok" {
		t.Fatalf("quick_check: %s, %v", verdict, err)
	}
	if s.Stats().SetAside != 0 {
		t.Fatal("the file was taken for damaged")
	}
	type key struct {
		process string
		n       uint64
	}
	seen := map[key]bool{}
	next := map[string]uint64{}
	seq := int64(0)
	for r, err := range s.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if seq++; r.Seq != seq {
			t.Fatalf("number %d, want %d", r.Seq, seq)
		}
		k := key{r.Record.Process.BootId, r.Record.Seq}
		if seen[k] {
			t.Fatalf("%v is in the file twice", k)
		}
		seen[k] = true
		if r.Record.Seq != next[k.process] {
			t.Fatalf("%v is in the file where %d is due", k, next[k.process])
		}
		next[k.process]++
		if err := each(r); err != nil {
			t.Fatal(err)
		}
	}
	for process, n := range lastOf {
		if next[process] <= uint64(n) {
			t.Fatalf("%s: %d records are in the file, number %d was acknowledged", process, next[process], n)
		}
		state, err := s.Recall(process)
		if want := fmt.Sprint(next[process] - 1); err != nil || string(state) != want {
			t.Fatalf("%s: state %q, %v; want %s", process, state, err, want)
		}
	}
	r, err := s.Reader("file", "traces")
	if err != nil {
		t.Fatal(err)
	}
	if r.Seq() < moved || string(r.State()) != fmt.Sprint(r.Seq()) && r.Seq() != 0 {
		t.Fatalf("cursor at %d with state %q; it was acknowledged at %d", r.Seq(), r.State(), moved)
	}
}
