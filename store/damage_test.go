package store

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// logged returns a change of Config that logs into the buffer.
func logged(b *bytes.Buffer) func(*Config) {
	return func(c *Config) { c.Log = slog.New(slog.NewTextHandler(b, nil)) }
}

// filled makes a closed store with n records and a cursor at 10.
func filled(t *testing.T, n int) (path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "records.db")
	s := open(t, func(c *Config) { c.Path = path })
	add(t, s, 0, n)
	if err := reader(t, s, "file", "traces").Advance(t.Context(), 10, []byte("state")); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func overwrite(t *testing.T, path string, offset int64, data []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(data, offset); err != nil {
		t.Fatal(err)
	}
}

func TestADamagedFileIsSetAsideWhenOpened(t *testing.T) {
	garbage := bytes.Repeat([]byte{0xa5}, 4096)
	for _, c := range []struct {
		name string
		harm func(t *testing.T, path string)
		left func(records int64) bool
	}{
		{"garbage", func(t *testing.T, path string) {
			if err := os.WriteFile(path, bytes.Repeat(garbage, 10), 0o644); err != nil {
				t.Fatal(err)
			}
		}, func(n int64) bool { return n == 0 }},
		{"header", func(t *testing.T, path string) { overwrite(t, path, 0, garbage[:100]) }, func(n int64) bool { return n == 0 }},
		{"schema page", func(t *testing.T, path string) { overwrite(t, path, 100, garbage[:3996]) }, func(n int64) bool { return n == 0 }},
		{"a page in the middle", func(t *testing.T, path string) { overwrite(t, path, 100*4096, garbage) }, func(n int64) bool {
			return n > 900 && n < 1000
		}},
		{"cut", func(t *testing.T, path string) {
			if err := os.Truncate(path, 100*4096); err != nil {
				t.Fatal(err)
			}
		}, func(n int64) bool { return n > 100 && n < 1000 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filled(t, 1000)
			c.harm(t, path)
			var log bytes.Buffer
			s := open(t, func(c *Config) { c.Path = path }, logged(&log))
			st := s.Stats()
			if st.SetAside != 1 || !strings.HasPrefix(st.SetAsidePath, path+".damaged-") {
				t.Fatalf("stats: %+v", st)
			}
			if _, err := os.Stat(st.SetAsidePath); err != nil {
				t.Error(err)
			}
			if lines := strings.Count(log.String(), "\n"); lines != 1 {
				t.Errorf("%d log lines:\n%s", lines, &log)
			}
			n := int64(0)
			for r, err := range s.Records(t.Context()) {
				if err != nil {
					t.Fatal(err)
				}
				if int64(r.Record.Seq)+1 != r.Seq {
					t.Fatalf("record %d has number %d", r.Record.Seq, r.Seq)
				}
				n++
			}
			if !c.left(n) {
				t.Errorf("%d records were read from the damaged file", n)
			}
			t.Log(log.String())
			seq, err := s.Append(sample(0), "p", nil)(t.Context())
			if err != nil || n > 0 && seq <= n {
				t.Errorf("the next record: number %d, %v", seq, err)
			}
		})
	}
}

func TestAFileDamagedWhileOpenIsReplaced(t *testing.T) {
	for _, who := range []string{"reader", "writer"} {
		t.Run(who, func(t *testing.T) {
			path := filled(t, 3000)
			var log bytes.Buffer
			s := open(t, func(c *Config) { c.Path = path }, logged(&log))
			r := reader(t, s, "file", "traces")
			if who == "reader" {
				// Its pages are in no connection's cache yet.
				overwrite(t, path, 300*4096, bytes.Repeat([]byte{0xa5}, 100*4096))
			} else {
				info, err := os.Stat(path)
				if err != nil {
					t.Fatal(err)
				}
				overwrite(t, path, 4096, bytes.Repeat([]byte{0xa5}, int(info.Size()-4096)))
				if _, err := s.db.conn.ExecContext(t.Context(), `PRAGMA shrink_memory`); err != nil { // empties its cache
					t.Fatal(err)
				}
			}
			var got []int64
			if who == "reader" {
				for r.Seq() < 3000 {
					got = next(t, r, 100)
					if err := r.Advance(t.Context(), got[len(got)-1], nil); err != nil {
						t.Fatal(err)
					}
				}
			}
			if seq, err := s.Append(sample(3000), "p", []byte("new"))(t.Context()); err != nil || seq != 3001 {
				t.Fatalf("the record after the damage: number %d, %v", seq, err)
			}
			wantRange(t, next(t, r, 100), 3001, 3001)
			if state, err := s.Recall("p"); err != nil || string(state) != "new" {
				t.Errorf("state %q, %v", state, err)
			}
			if st := s.Stats(); st.SetAside != 1 {
				t.Errorf("stats: %+v", st)
			}
			if lines := strings.Count(log.String(), "\n"); lines != 1 {
				t.Errorf("%d log lines:\n%s", lines, &log)
			}
			if err := s.Close(); err != nil {
				t.Fatal(err)
			}
			s = open(t, func(c *Config) { c.Path = path })
			if seq := reader(t, s, "file", "traces").Seq(); who == "reader" && seq != 3000 || who == "writer" && seq != 10 {
				t.Errorf("after reopening the cursor is at %d", seq)
			}
		})
	}
}

func TestWhenTheDamagedFileCannotBeReplacedCallsFailAndLaterSucceed(t *testing.T) {
	path := filled(t, 10)
	s := open(t, func(c *Config) { c.Path = path })
	// A directory under the new file's name stands for a disk without space.
	block := func() error { return os.Mkdir(path, 0o755) }
	s.swap.Lock()
	aside, err := setAside(path, s.config.Now())
	if err == nil {
		err = block()
	}
	_ = s.db.close()
	s.broken = true // the writer is idle
	s.swap.Unlock()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Append(sample(0), "p", nil)(t.Context()); err == nil {
		t.Fatal("recorded without a file")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if seq, err := s.Append(sample(0), "p", nil)(t.Context()); err != nil || seq != 11 {
		t.Errorf("number %d, error %v", seq, err)
	}
	if _, err := os.Stat(aside); err != nil {
		t.Error(err)
	}
}

func TestWhatIsNotOursIsRefused(t *testing.T) {
	for _, c := range []struct {
		name, change string
		want         error
		says         string
	}{
		{"newer", `PRAGMA user_version = 99`, ErrTooNew, "99"},
		{"foreign", `PRAGMA application_id = 1`, ErrForeign, "records.db"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filled(t, 10)
			db, err := openDatabase(context.Background(), path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.conn.ExecContext(t.Context(), c.change); err != nil {
				t.Fatal(err)
			}
			if err := db.close(); err != nil {
				t.Fatal(err)
			}
			_, err = Open(t.Context(), Config{Path: path})
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("Open: %v", err)
			}
			_, err = OpenArchive(t.Context(), path)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("OpenArchive: %v", err)
			}
			if left, _ := filepath.Glob(path + "*"); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}
