package otel

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

// deliver runs a pipeline on the store's directory until all is in the files.
func deliver(t *testing.T, dir string, recs ...*record.LogCall) {
	t.Helper()
	s := openStore(t, dir)
	defer s.Close()
	p, err := Start(context.Background(), Config{Store: s, Directory: dir, Linger: time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	if len(recs) > 0 {
		add(t, s, recs...)
	}
	flushed(t, p)
	if err := p.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

func TestFileIsCutBackToItsCursor(t *testing.T) {
	for _, test := range []struct {
		name string
		tail string
	}{
		{"nothing behind it", ""},
		{"a torn line", `{"resourceSpans":[{"resou`},
		{"whole lines that the cursor does not know", `{"resourceSpans":[]}` + "\n" + `{"resourceSpans":[]}` + "\n"},
		{"zeroes", strings.Repeat("\x00", 5000)},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			deliver(t, dir, calls(1, 0, 5)...)
			path := filepath.Join(dir, TracesFile)
			appendText(t, path, test.tail)
			deliver(t, dir, calls(1, 5, 9)...)
			if got := stepsIn(t, path); !slices.Equal(got, wantSteps(0, 9)) {
				t.Errorf("the file holds steps %v", got)
			}
		})
	}
}

// An agent that is killed between its first write and its cursor's first move.
func TestFirstBatchThatTheCursorDoesNotKnow(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	add(t, s, calls(1, 0, 5)...)
	ctx := context.Background()
	p := &Pipeline{config: Config{Store: s, Directory: dir, Log: slog.New(slog.DiscardHandler)}, flush: newFlush(), stop: func() {}}
	p.config.setDefaults()
	if err := p.prepare(ctx); err != nil {
		t.Fatal(err)
	}
	for _, w := range p.workers {
		batch, err := w.reader.Next(ctx, 100, 1<<20)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.writeFile(ctx, batch); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.Close(ctx); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	deliver(t, dir, calls(1, 5, 7)...)
	if got := stepsIn(t, filepath.Join(dir, TracesFile)); !slices.Equal(got, wantSteps(0, 7)) {
		t.Errorf("the file holds steps %v", got)
	}
}

func appendText(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// A file that the cursor has never seen keeps its whole lines: it is somebody's.
func TestForeignFileKeepsItsLines(t *testing.T) {
	for _, test := range []struct{ name, before, want string }{
		{"whole lines", "{}\n{}\n", "{}\n{}\n"},
		{"a torn one", "{}\n{\"a", "{}\n"},
		{"a long torn one", "{}\n{\"a" + strings.Repeat("b", 200<<10), "{}\n"},
		{"nothing but a torn one", "{\"a", ""},
		{"empty", "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, TracesFile)
			if err := os.WriteFile(path, []byte(test.before), 0o644); err != nil {
				t.Fatal(err)
			}
			deliver(t, dir, calls(1, 0, 3)...)
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			rest, ok := strings.CutPrefix(string(got), test.want+`{"resourceSpans"`)
			if !ok {
				t.Fatalf("the file begins with %.80q, want %q first", got, test.want)
			}
			if !strings.HasSuffix(rest, "\n") {
				t.Error("the file ends in a torn line")
			}
		})
	}
}

func TestFileThatIsShorterThanItsCursor(t *testing.T) {
	dir := t.TempDir()
	deliver(t, dir, calls(1, 0, 5)...)
	path := filepath.Join(dir, TracesFile)
	if err := os.Truncate(path, 100); err != nil {
		t.Fatal(err)
	}
	s := openStore(t, dir)
	var log syncBuffer
	p := start(t, Config{Store: s, Directory: dir, Log: slog.New(slog.NewTextHandler(&log, nil))})
	add(t, s, calls(1, 5, 7)...)
	flushed(t, p)
	if got := stepsIn(t, path); !slices.Equal(got, wantSteps(5, 7)) {
		t.Errorf("the file holds steps %v", got)
	}
	if !strings.Contains(log.String(), "shorter than what was delivered") {
		t.Errorf("nobody was told: %q", log.String())
	}
}

func TestFileThatIsRotated(t *testing.T) {
	dir := t.TempDir()
	s := openStore(t, dir)
	p := start(t, Config{Store: s, Directory: dir})
	path := filepath.Join(dir, TracesFile)
	add(t, s, calls(1, 0, 3)...)
	flushed(t, p)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	add(t, s, calls(1, 3, 6)...)
	flushed(t, p)
	if got := stepsIn(t, path+".1"); !slices.Equal(got, wantSteps(0, 3)) {
		t.Errorf("the rotated file holds steps %v", got)
	}
	if got := stepsIn(t, path); !slices.Equal(got, wantSteps(3, 6)) {
		t.Errorf("the new file holds steps %v", got)
	}
}

func TestDirectoryOfAnyName(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a run?", "100%", "#1 é\n")
	deliver(t, dir, calls(1, 0, 2)...)
	if got := stepsIn(t, filepath.Join(dir, TracesFile)); !slices.Equal(got, wantSteps(0, 2)) {
		t.Errorf("the file holds steps %v", got)
	}
}

func TestFileThatAnotherAgentWrites(t *testing.T) {
	dir := t.TempDir()
	start(t, Config{Store: openStore(t, t.TempDir()), Directory: dir})
	_, err := Start(context.Background(), Config{Store: openStore(t, t.TempDir()), Directory: dir})
	if err == nil || !strings.Contains(err.Error(), "another prov4ml-agent writes this file") {
		t.Errorf("a second agent got %v", err)
	}
}

func TestWriteThatFailsIsRepeated(t *testing.T) {
	dir := t.TempDir()
	f, err := openLineFile(filepath.Join(dir, TracesFile), nil, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if err := f.append([]byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	// A descriptor that can only be read fails like a full disk.
	writable := f.file
	readOnly, err := os.Open(f.path)
	if err != nil {
		t.Fatal(err)
	}
	f.file = readOnly
	if err := f.append([]byte("{}\n")); err == nil {
		t.Error("a write to a read-only file succeeded")
	}
	if err := readOnly.Close(); err != nil {
		t.Fatal(err)
	}
	f.file = writable
	if err := f.append([]byte("{}\n")); err != nil {
		t.Fatal(err)
	}
	if f.length != 6 {
		t.Errorf("the length is %d, want 6", f.length)
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
}

// killedDirectory is set in the process that TestKilledAgent kills.
const killedDirectory = "PROV4ML_TEST_KILLED_DIRECTORY"

// TestMain runs the agent that TestKilledAgent kills, in a process of its own.
func TestMain(m *testing.M) {
	if dir := os.Getenv(killedDirectory); dir != "" {
		if err := logUntilKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	code := m.Run()
	if err := goleak.Find(); code == 0 && err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// logUntilKilled stores records and delivers them, and says on standard output the number of each that is committed.
func logUntilKilled(dir string) error {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{Path: filepath.Join(dir, "records.db"), LockWait: 5 * time.Second})
	if err != nil {
		return err
	}
	next, err := strconv.Atoi(os.Getenv("PROV4ML_TEST_KILLED_NEXT"))
	if err != nil {
		return err
	}
	if _, err := Start(ctx, Config{Store: s, Directory: dir, Linger: time.Nanosecond}); err != nil {
		return err
	}
	for n := next; ; n++ {
		if _, err := s.Append(call(1, n), "p", nil)(ctx); err != nil {
			return err
		}
		fmt.Println(n)
	}
}

func TestKilledAgent(t *testing.T) {
	dir := t.TempDir()
	next := 0
	for kill := range 8 {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), killedDirectory+"="+dir, fmt.Sprintf("PROV4ML_TEST_KILLED_NEXT=%d", next))
		var out, errs syncBuffer
		cmd.Stdout, cmd.Stderr = &out, &errs
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// At least one is acknowledged, then at any moment.
		for deadline := time.Now().Add(20 * time.Second); out.String() == "" && time.Now().Before(deadline); {
			time.Sleep(time.Millisecond)
		}
		time.Sleep(time.Duration(kill*17) * time.Millisecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if errs.String() != "" {
			t.Fatalf("the agent failed: %s", errs.String())
		}
		printed := strings.Fields(out.String())
		if len(printed) == 0 {
			t.Fatal("the agent acknowledged nothing")
		}
		// What is committed may not be printed yet: the store knows.
		s := openStore(t, dir)
		next = int(s.Stats().Records)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		last, err := strconv.Atoi(printed[len(printed)-1])
		if err == nil && last >= next {
			t.Fatalf("record %d was acknowledged, the store holds %d", last, next)
		}
	}
	deliver(t, dir)
	if got, want := stepsIn(t, filepath.Join(dir, TracesFile)), wantSteps(0, next); !slices.Equal(got, want) {
		t.Errorf("after 8 kills the file does not hold each of %d records once and in order", next)
	}
	// Two points a record carry the step.
	points := 0
	for _, line := range linesOf(t, filepath.Join(dir, MetricsFile)) {
		points += strings.Count(line, `"prov4ml.step"`)
	}
	if points != 2*next {
		t.Errorf("after 8 kills the file of metrics holds %d points, want %d", points, 2*next)
	}
	t.Logf("%d records over 8 kills", next)
}
