package main

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestFdinfo(t *testing.T) {
	fields := parseFdinfo([]byte("pos:\t0\nprog_type:\t26\nprog_id:\t53399\nrun_time_ns:\t1871\nrun_cnt:\t7\nlock:\t1: POSIX\n"))
	if fields["prog_type"] != "26" || fields.number("run_time_ns") != 1871 || fields.number("run_cnt") != 7 || fields.number("no such") != 0 {
		t.Errorf("read %v", fields)
	}
}

func TestFioReport(t *testing.T) {
	got, err := readFio([]byte(`{"jobs":[{"jobname":"job","read":{"total_ios":0,"runtime":0},"write":{"total_ios":3000,"runtime":1500}}]}`), "write")
	if err != nil || got.rate() != 2000 {
		t.Errorf("%v a second, %v", got.rate(), err)
	}
	for name, report := range map[string]string{
		"nothing done": `{"jobs":[{"write":{"total_ios":0,"runtime":0}}]}`,
		"no job":       `{"jobs":[]}`,
		"no JSON":      `fio: unrecognised option`,
	} {
		if got, err := readFio([]byte(report), "write"); err == nil {
			t.Errorf("%s: %v", name, got)
		}
	}
}

// Two programs of 300 and 50 ns, 100 and 200 times in a second in which 50 operations were made; an empty one takes 20 ns.
func made() measured {
	round := []counted{
		{event: "writeback_dirty_folio", runStatistics: runStatistics{30_000, 100}, empty: runStatistics{2000, 100}, took: time.Second},
		{event: "sched_switch", runStatistics: runStatistics{10_000, 200}, empty: runStatistics{4000, 200}, took: time.Second},
		{name: "read_live", runStatistics: runStatistics{1_000_000, 10}, took: time.Second},
		{event: "block_split", took: time.Second},
	}
	return measured{
		workload: workload{name: "write-4k", title: "writes"},
		off:      []float64{100}, on: []float64{90}, countedRate: []float64{50}, counted: [][]counted{round},
	}
}

func TestCosts(t *testing.T) {
	m := made()
	near := func(what string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-9*want {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	// Without read_live, which runs on the agent's time.
	near("share of a core", m.share(0), 40e-6)
	near("ns an operation", m.nanosPerOperation(0), 800)
	near("ns an operation without the clock", m.netNanosPerOperation(0), 680)
	if got := strings.Join(m.programs(), " "); got != "read_live writeback_dirty_folio sched_switch" {
		t.Errorf("programs %s", got)
	}
	var b strings.Builder
	(&pairs{rounds: 1, measured: []measured{m}}).writeGoals(&b)
	// 40,000 ns for 100 folios.
	if !strings.Contains(b.String(), "| 400 ns (400 to 400) | 340 ns (340 to 340) | missed |") {
		t.Errorf("goals:\n%s", b.String())
	}
}

func TestVerdict(t *testing.T) {
	for _, c := range []struct {
		gross, net float64
		want       string
	}{{1, 0.5, "reached"}, {1.1, 1, "reached without the clock"}, {1.2, 1.1, "missed"}} {
		if got := verdict(c.gross, c.net, 1); got != c.want {
			t.Errorf("%v, %v of 1: %s", c.gross, c.net, got)
		}
	}
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		values []float64
		f      format
		want   string
	}{
		{[]float64{3, 1, 2}, number(), "2 (1 to 3)"},
		{[]float64{1234567, 999.6, 0.01234}, number(), "1,000 (0.012 to 1,234,567)"},
		{[]float64{0.0123, 0.0101}, percent(), "1.12 % (1.01 to 1.23)"},
		{[]float64{math.NaN(), 7}, nanos(), "7 ns (7 to 7)"},
		{[]float64{math.NaN()}, nanos(), "none"},
		{[]float64{63_300}, micros(), "63.3 (63.3 to 63.3)"},
	} {
		if got := spread(c.values, c.f); got != c.want {
			t.Errorf("%v: %s, want %s", c.values, got, c.want)
		}
	}
}

func TestReplaceSection(t *testing.T) {
	path := filepath.Join(t.TempDir(), "document.md")
	write := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("before\n" + sectionBegin + "old\n" + sectionEnd + "after\n")
	for range 2 {
		if err := replaceSection(path, "new\n"); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if want := "before\n" + sectionBegin + "new\n" + sectionEnd + "after\n"; err != nil || string(text) != want {
		t.Errorf("%q, %v", text, err)
	}
	write("no marks")
	if err := replaceSection(path, "new\n"); err == nil {
		t.Error("a document without the marks was taken")
	}
}
