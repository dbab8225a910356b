package report

import (
	"bytes"
	"errors"
	"flag"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

var update = flag.Bool("update", false, "rewrite the golden files")

const (
	second = int64(time.Second)
	hello  = 1795507200 * second // 2026-11-24 08:00:00 UTC
)

func ok(name string, value any) *record.Reading {
	r := &record.Reading{Name: name, State: record.State_OK, Source: record.Source_EBPF}
	switch v := value.(type) {
	case int:
		r.Value = &record.Reading_Integer{Integer: int64(v)}
	case float64:
		r.Value = &record.Reading_Real{Real: v}
	case bool:
		r.Value = &record.Reading_Boolean{Boolean: v}
	case string:
		r.Value = &record.Reading_Text{Text: v}
	default:
		panic(v)
	}
	return r
}

func worker(pid int32) *record.Process {
	return &record.Process{BootId: "b", Pid: pid, StartTicks: uint64(pid), RunId: "job-17", Rank: -1, ServiceName: "train.py", HostName: "node-a"}
}

func window(p *record.Process, context string, step, from, to int64, readings ...*record.Reading) *record.LogCall {
	return &record.LogCall{
		Process: p, Function: record.Function_LOG_SYSTEM_METRICS, Context: proto.String(context), Step: proto.Int64(step),
		StartUnixNanos: hello + from*second, EndUnixNanos: hello + to*second, Readings: readings,
	}
}

func measured(read, written, peak int, exact bool) []*record.Reading {
	return []*record.Reading{
		ok(record.DiskReadBytes, read), ok(record.DiskWriteBytes, written), ok(record.DiskDirtiedBytes, written+4096),
		ok(record.IOReadBytes, 2*read), ok(record.IOWriteBytes, written),
		ok(record.MemoryRSSPeakBytes, peak), ok(record.MemoryRSSPeakExact, exact),
		ok(record.MemoryMinorFaults, 123456), ok(record.MemoryMajorFaults, 2), ok(record.CPUSeconds, 61.25),
		ok(record.SourceDisk, "ebpf"), ok(record.SourceMemory, "ebpf"),
	}
}

func ends(p *record.Process, from, to int64, left, totals []*record.Reading) *record.LogCall {
	return &record.LogCall{
		Process: p, Function: record.Function_RUN_END,
		StartUnixNanos: hello + from*second, EndUnixNanos: hello + to*second, Readings: left, RunTotals: totals,
	}
}

func flops(p *record.Process, context string, step, to int64, readings ...*record.Reading) *record.LogCall {
	return &record.LogCall{
		Process: p, Function: record.Function_LOG_FLOPS_PER_BATCH, Context: proto.String(context), Step: proto.Int64(step),
		StartUnixNanos: hello, EndUnixNanos: hello + to*second, Readings: readings,
	}
}

func all(recs ...*record.LogCall) iter.Seq2[store.Stored, error] {
	return func(yield func(store.Stored, error) bool) {
		for i, rec := range recs {
			if !yield(store.Stored{Seq: int64(i + 1), Record: rec}, nil) {
				return
			}
		}
	}
}

func TestSummary(t *testing.T) {
	one, two, inner := worker(4711), worker(4712), worker(4800)
	whole := []*record.LogCall{
		window(one, "training", 0, 0, 60, measured(1<<30, 64<<20, 600<<20, true)...),
		window(one, "validation", 0, 60, 70, measured(32<<20, 0, 500<<20, true)...),
		window(one, "training", 1, 70, 130, measured(12<<20, 64<<20, 610<<20, true)...),
		ends(
			one, 130, 133,
			[]*record.Reading{ok(record.DiskReadBytes, 0), ok(record.DiskWriteBytes, 1<<20), ok(record.CPUSeconds, 0.25), ok(record.DiskPendingWriteBytes, 8192)},
			[]*record.Reading{
				ok(record.DiskReadBytes, 1<<30+44<<20), ok(record.DiskWriteBytes, 129<<20), ok(record.CPUSeconds, 184.0),
				ok(record.MemoryRSSPeakBytes, 610<<20), ok(record.MemoryRSSPeakExact, true), ok(record.DiskUnattributedWriteBytes, 524288),
			},
		),
	}

	procfs := func(from, to int64) *record.LogCall {
		rec := window(one, "training", from, from, to,
			ok(record.IOReadBytes, 5000), ok(record.IOWriteBytes, 1000), ok(record.SourceDisk, "procfs"), ok(record.SourceMemory, "procfs"),
			&record.Reading{Name: record.DiskReadBytes, Value: &record.Reading_Integer{Integer: 4096}, State: record.State_INCOMPLETE},
			&record.Reading{Name: record.DiskWriteBytes, State: record.State_UNSUPPORTED, Source: record.Source_PROCFS},
			&record.Reading{Name: record.DiskReadLatencyP50, State: record.State_ABSENT, Reason: "no request completed in the window"},
		)
		rec.Unavailable = []string{"disk: no right to load BPF programs; run it with sudo", "GPU: this agent has no GPU probe"}
		return rec
	}
	late := procfs(0, 10)
	late.WindowFirst = true
	late.Events = []*record.Event{{Name: "dropped_calls", Attributes: []*record.Reading{ok("dropped_calls", 3)}}}

	nested := window(inner, "augmentation", 0, 10, 50, measured(1<<20, 0, 100<<20, true)...)
	nested.Enclosing = []*record.ProcessKey{{Pid: 1, StartTicks: 1}, {Pid: 4711, StartTicks: 4711}}

	none := window(one, "", 0, 0, 1, measured(1, 1, 1, false)...)
	none.Context, none.Step = nil, nil
	strange := window(one, "\x1b[31mred\n"+strings.Repeat("x", 50), 0, 1, 2, measured(1023, 1024, 1048000, false)...)

	for _, test := range []struct {
		name  string
		width int
		bold  bool
		recs  []*record.LogCall
	}{
		{name: "whole", recs: whole},
		{name: "whole-bold", bold: true, width: 300, recs: whole},
		{name: "whole-narrow", width: 80, recs: whole},
		{name: "whole-tiny", width: 20, recs: whole},
		{name: "empty"},
		{name: "not-ended", recs: whole[:2]},
		{name: "procfs", recs: []*record.LogCall{late, procfs(10, 20)}},
		{name: "ranks", recs: []*record.LogCall{
			window(one, "training", 0, 0, 60, measured(100<<20, 50<<20, 600<<20, true)...),
			window(two, "training", 0, 0, 58, measured(100<<20, 20<<20, 640<<20, false)...),
		}},
		{name: "nested", recs: []*record.LogCall{nested, whole[0], whole[3]}},
		{name: "flops", recs: []*record.LogCall{
			flops(one, "training", 0, 5, ok(record.FlopsTotal, 3.5e12), ok(record.MFU, 0.41), ok(record.FlopsComplete, true)),
			flops(one, "training", 1, 6, ok(record.FlopsTotal, 3.5e12), ok(record.MFU, 0.43), ok(record.FlopsComplete, true)),
			flops(one, "validation", 0, 7, ok(record.FlopsTotal, 1e9), ok(record.FlopsComplete, false)),
			window(one, "training", 0, 0, 60, measured(100<<20, 50<<20, 600<<20, true)...),
		}},
		{name: "strange", recs: []*record.LogCall{none, strange}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r, err := collect(all(test.recs...))
			if err != nil {
				t.Fatal(err)
			}
			got := layout{width: test.width, bold: test.bold}.summary(r, []string{"runs/a/records.db", "runs/a/traces.jsonl"})
			path := filepath.Join("testdata", test.name+".txt")
			if *update {
				if err := os.MkdirAll("testdata", 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s differs; go test -update rewrites it (-want +got):\n%s", path, diff)
			}
		})
	}
}

func TestSummaryIsPlainWithoutTerminal(t *testing.T) {
	var b bytes.Buffer
	if err := Summary(&b, all(window(worker(1), "training", 0, 0, 1, measured(1, 1, 1, true)...))); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(b.String(), "\x1b") {
		t.Errorf("colour in %q", b.String())
	}
}

func TestSummaryOfABrokenStore(t *testing.T) {
	broken := errors.New("disk on fire")
	err := Summary(&bytes.Buffer{}, func(yield func(store.Stored, error) bool) { yield(store.Stored{}, broken) })
	if !errors.Is(err, broken) {
		t.Errorf("error is %v", err)
	}
}

func TestUnits(t *testing.T) {
	for _, test := range []struct{ got, want string }{
		{bytesText(0), "0 B"},
		{bytesText(1023), "1023 B"},
		{bytesText(1024), "1.00 KiB"},
		{bytesText(10 << 10), "10.0 KiB"},
		{bytesText(64 << 20), "64.0 MiB"},
		{bytesText(100 << 20), "100 MiB"},
		{bytesText(1023 << 20), "1.00 GiB"},
		{bytesText(999 << 20), "999 MiB"},
		{bytesText(1<<63 - 1), "8.00 EiB"},
		{durationText(0), "0 s"},
		{durationText(250 * time.Millisecond), "250 ms"},
		{durationText(1234 * time.Microsecond), "1.23 ms"},
		{durationText(999600 * time.Microsecond), "1.00 s"},
		{durationText(9996 * time.Millisecond), "10.0 s"},
		{durationText(59949 * time.Millisecond), "59.9 s"},
		{durationText(59950 * time.Millisecond), "1m00s"},
		{durationText(100 * time.Second), "1m40s"},
		{durationText(2*time.Hour + 3*time.Minute), "2h03m"},
		{durationText(76 * time.Hour), "3d04h"},
		{durationText(-time.Second), "0 s"},
		{countText(0), "0"},
		{countText(999), "999"},
		{countText(1234567), "1,234,567"},
		{countText(-1234), "-1,234"},
		{flopsText(0), "0 FLOP"},
		{flopsText(3e9), "3.00 GFLOP"},
		{flopsText(999.6e9), "1.00 TFLOP"},
		{flopsText(4e22), "40.0 ZFLOP"},
		{flopsText(4e30), "4000000 YFLOP"},
	} {
		if test.got != test.want {
			t.Errorf("%q, want %q", test.got, test.want)
		}
	}
}
