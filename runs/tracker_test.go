package runs

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

func TestWindowsTouchAndHoldTheirOwnBytes(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{Script: "train.py"})
	if got := b.store.all(); len(got) != 0 {
		t.Fatalf("hello emitted %d records", len(got))
	}
	began := b.clock.Now().UnixNano()
	var end int64
	for i, written := range []uint64{1 << 20, 0, 3 << 20} {
		b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes += written })
		b.clock.add(time.Second)
		rec := b.call(t, c, Call{Context: pointer("Training"), Step: pointer(int64(i))})
		if i == 0 && rec.GetStartUnixNanos() != began {
			t.Errorf("first window starts %d, hello was %d", rec.GetStartUnixNanos(), began)
		}
		if i > 0 && rec.GetStartUnixNanos() != end {
			t.Errorf("call %d: window starts %d, the one before ended %d", i, rec.GetStartUnixNanos(), end)
		}
		end = rec.GetEndUnixNanos()
		if rec.GetWindowFirst() || rec.GetWindowGap() || rec.GetWindowIncomplete() || rec.GetSeq() != uint64(i) ||
			rec.GetContext() != "training" || rec.GetOpensRun() != (i == 0) {
			t.Errorf("call %d: %v", i, rec)
		}
		if got := reading(rec, record.DiskWriteBytes); got.GetInteger() != int64(written) || got.GetState() != record.State_OK ||
			got.GetSource() != record.Source_EBPF {
			t.Errorf("call %d: wrote %d, got %v", i, written, got)
		}
	}
}

func TestFirstWindowHasTheHostsValues(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	time.Sleep(50 * time.Millisecond) // some ticks of the kernel's clock
	rec := b.call(t, c, Call{})
	for _, name := range []string{record.MemoryUsage, record.DiskUsage, record.CPUUsage} {
		if r := reading(rec, name); r.GetState() != record.State_OK || r.GetSource() != record.Source_HOST || r.GetReal() < 0 || r.GetReal() > 100 {
			t.Errorf("%v", r)
		}
	}
}

func TestFirstHeardOfByACall(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	first := b.call(t, c, Call{})
	if !first.GetWindowFirst() || first.GetStartUnixNanos() != first.GetEndUnixNanos() {
		t.Errorf("first: %v", first)
	}
	b.clock.add(time.Second)
	if second := b.call(t, c, Call{}); second.GetWindowFirst() || second.GetStartUnixNanos() != first.GetEndUnixNanos() {
		t.Errorf("second: %v", second)
	}
}

func TestEachFunctionHasItsOwnWindow(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	began := b.clock.Now().UnixNano()
	write := func(bytes uint64) {
		b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes += bytes })
		b.clock.add(time.Second)
	}
	write(10)
	system := b.call(t, c, Call{Step: pointer(int64(1))})
	write(5)
	extra := &record.Reading{Name: record.FlopsTotal, Value: &record.Reading_Real{Real: 8}, State: record.State_OK}
	flops := b.call(t, c, Call{
		Function: record.Function_LOG_FLOPS_PER_BATCH, Label: "forward", Step: pointer(int64(1)),
		Readings: []*record.Reading{extra}, Unavailable: []string{"no peak"},
	})
	write(1)
	again := b.call(t, c, Call{Step: pointer(int64(2))})
	for name, row := range map[string]struct {
		rec     *record.LogCall
		start   int64
		bytes   int64
		seq     uint64
		summing bool
	}{
		"system metrics":       {system, began, 10, 0, true},
		"FLOPs":                {flops, began, 15, 0, false},
		"system metrics again": {again, system.GetEndUnixNanos(), 6, 1, true},
	} {
		if row.rec.GetStartUnixNanos() != row.start || reading(row.rec, record.DiskWriteBytes).GetInteger() != row.bytes || row.rec.GetSeq() != row.seq {
			t.Errorf("%s: %v", name, row.rec)
		}
		if (row.rec.GetStepTotals() != nil) != row.summing || (row.rec.GetContextTotals() != nil) != row.summing {
			t.Errorf("%s: totals %v %v", name, row.rec.GetStepTotals(), row.rec.GetContextTotals())
		}
	}
	if reading(flops, record.FlopsTotal).GetReal() != 8 || flops.GetLabel() != "forward" {
		t.Errorf("FLOPs: %v", flops)
	}
	if missing := flops.GetUnavailable(); missing[len(missing)-1] != "no peak" {
		t.Errorf("%q", missing)
	}
}

func TestWallClockSetBack(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	b.clock.add(time.Second)
	end := b.call(t, c, Call{}).GetEndUnixNanos()
	b.clock.add(-time.Hour)
	back := b.call(t, c, Call{})
	if back.GetStartUnixNanos() != end || back.GetEndUnixNanos() != end {
		t.Errorf("from %d to %d, the edge was %d", back.GetStartUnixNanos(), back.GetEndUnixNanos(), end)
	}
	if flops := b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_EPOCH}); flops.GetEndUnixNanos() != end {
		t.Errorf("another function's edge %d, want %d", flops.GetEndUnixNanos(), end)
	}
}

func TestNestedTreesAreInTheValuesOfTheOuter(t *testing.T) {
	b := newBench(t)
	outer, _ := sleeper(t)
	inner, innerCmd := sleeper(t)
	b.hello(t, outer, Description{})
	b.probe.outside[inner.PID] = 1
	b.hello(t, inner, Description{})
	count := func(id process.TreeID, bytes, rss uint64) {
		b.probe.with(id, func(tree *process.Tree) {
			tree.DiskWriteBytes += bytes
			tree.RSSBytes = rss
			tree.ReadLatency[20]++
		})
	}
	bytes := func(rec *record.LogCall) int64 { return reading(rec, record.DiskWriteBytes).GetInteger() }
	count(1, 100, 1000)
	count(2, 7, 50)
	in, out := b.call(t, inner, Call{}), b.call(t, outer, Call{})
	if bytes(in) != 7 || bytes(out) != 107 || reading(out, record.MemoryRSSBytes).GetInteger() != 1050 || reading(out, record.Processes).GetInteger() != 2 {
		t.Errorf("inner %d, outer %d, %v", bytes(in), bytes(out), reading(out, record.MemoryRSSBytes))
	}
	if len(out.GetEnclosing()) != 0 || len(in.GetEnclosing()) != 1 || in.GetEnclosing()[0].GetPid() != int32(outer.PID) {
		t.Errorf("enclosing: outer %v, inner %v", out.GetEnclosing(), in.GetEnclosing())
	}
	followed := map[int]bool{}
	for _, ids := range b.probe.followed {
		followed[len(ids)] = true
	}
	if !followed[1] || !followed[2] {
		t.Errorf("peaks follow %v", b.probe.followed)
	}

	// The inner process ends: its last bytes are in its RUN_END and, once, in the outer tree, before and after its tree is given up.
	count(2, 3, 0)
	b.probe.with(2, func(tree *process.Tree) { tree.Processes = 0 })
	_ = innerCmd.Process.Kill()
	_ = innerCmd.Wait()
	end := b.store.await(t, 3)[2]
	if end.GetFunction() != record.Function_RUN_END || bytes(end) != 3 {
		t.Errorf("inner's end: %v", end)
	}
	eventually(t, "the inner tree is given up", func() bool {
		b.probe.mu.Lock()
		defer b.probe.mu.Unlock()
		return len(b.probe.released) == 1 && b.probe.released[0] == 2
	})
	count(1, 20, 1000)
	if out := b.call(t, outer, Call{}); bytes(out) != 23 {
		t.Errorf("outer counted %d, want its 20 and the 3 of the tree that is gone", bytes(out))
	}
	if out := b.call(t, outer, Call{}); bytes(out) != 0 {
		t.Errorf("outer counted %d of nothing", bytes(out))
	}
}

// What a tree has taken over from those inside it goes on to the tree around it.
func TestTreesThatAreGoneAddUpOutwards(t *testing.T) {
	b := newBench(t)
	var callers []Caller
	var commands []*exec.Cmd
	for i := range 3 {
		c, cmd := sleeper(t)
		callers, commands = append(callers, c), append(commands, cmd)
		b.probe.outside[c.PID] = process.TreeID(i)
		b.hello(t, c, Description{})
		b.probe.with(process.TreeID(i+1), func(tree *process.Tree) { tree.DiskWriteBytes = 1 << (4 * i) })
	}
	for i := 2; i > 0; i-- {
		b.probe.with(process.TreeID(i+1), func(tree *process.Tree) { tree.Processes = 0 })
		_ = commands[i].Process.Kill()
		_ = commands[i].Wait()
		eventually(t, "it is given up", func() bool { return b.Status().Processes == i })
	}
	if rec := b.call(t, callers[0], Call{}); reading(rec, record.DiskWriteBytes).GetInteger() != 0x111 {
		t.Errorf("%v", reading(rec, record.DiskWriteBytes))
	}
	// The one in the middle goes first: its inner tree is now directly inside the outer.
	c := newBench(t)
	for i := range 3 {
		p, cmd := sleeper(t)
		callers[i], commands[i] = p, cmd
		c.probe.outside[p.PID] = process.TreeID(i)
		c.hello(t, p, Description{})
		c.probe.with(process.TreeID(i+1), func(tree *process.Tree) { tree.DiskWriteBytes = 1 << (4 * i) })
	}
	_ = commands[1].Process.Kill()
	_ = commands[1].Wait()
	eventually(t, "it is given up", func() bool { return c.Status().Processes == 2 })
	c.probe.with(3, func(tree *process.Tree) { tree.DiskWriteBytes += 0x100 })
	if rec := c.call(t, callers[0], Call{}); reading(rec, record.DiskWriteBytes).GetInteger() != 0x211 {
		t.Errorf("%v", reading(rec, record.DiskWriteBytes))
	}
	if rec := c.call(t, callers[2], Call{}); len(rec.GetEnclosing()) != 1 || rec.GetEnclosing()[0].GetPid() != int32(callers[0].PID) {
		t.Errorf("%v", rec.GetEnclosing())
	}
}

func TestProcessBetweenTwoOthersSpeaksLast(t *testing.T) {
	b := newBench(t)
	shell := exec.Command("bash", "-c", "sleep 1000 & echo $!; wait")
	pipe, err := shell.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := shell.Start(); err != nil {
		t.Fatal(err)
	}
	var pid int
	if _, err := fmt.Fscan(pipe, &pid); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = shell.Process.Kill()
		_ = shell.Wait()
		if p, err := os.FindProcess(pid); err == nil {
			_ = p.Kill()
		}
	})
	outer, middle, inner := callerOf(t, os.Getpid()), callerOf(t, shell.Process.Pid), callerOf(t, pid)
	b.hello(t, outer, Description{})
	b.probe.outside[inner.PID], b.probe.outside[middle.PID] = 1, 1
	b.hello(t, inner, Description{})
	stranger, _ := sleeper(t)
	b.probe.outside[stranger.PID] = 1
	b.hello(t, stranger, Description{})
	b.hello(t, middle, Description{})
	for id := process.TreeID(1); id <= 4; id++ {
		b.probe.with(id, func(tree *process.Tree) { tree.DiskReadBytes += 1 << (4 * id) })
	}
	for name, row := range map[string]struct {
		caller    Caller
		bytes     int64
		enclosing []int32
	}{
		"outer":    {outer, 1<<4 + 1<<8 + 1<<12 + 1<<16, nil},
		"middle":   {middle, 1<<8 + 1<<16, []int32{int32(outer.PID)}},
		"inner":    {inner, 1 << 8, []int32{int32(middle.PID), int32(outer.PID)}},
		"stranger": {stranger, 1 << 12, []int32{int32(outer.PID)}},
	} {
		rec := b.call(t, row.caller, Call{})
		var enclosing []int32
		for _, key := range rec.GetEnclosing() {
			enclosing = append(enclosing, key.GetPid())
		}
		if got := reading(rec, record.DiskReadBytes).GetInteger(); got != row.bytes || !cmp.Equal(enclosing, row.enclosing) {
			t.Errorf("%s: %#x in %v, want %#x in %v", name, got, enclosing, row.bytes, row.enclosing)
		}
	}
}

func TestEndOfAProcess(t *testing.T) {
	b := newBench(t)
	c, cmd := sleeper(t)
	silent, silentCmd := sleeper(t)
	b.hello(t, silent, Description{Attributes: map[string]string{"lr": "0.1"}})
	b.hello(t, c, Description{Name: "digits", Attributes: map[string]string{"lr": "0.1"}, Traceparent: "00-aa-bb-01"})
	id := process.TreeID(2)
	b.probe.with(id, func(tree *process.Tree) { tree.DiskWriteBytes, tree.CPUNanos = 10, 2e9 })
	b.clock.add(time.Second)
	first := b.call(t, c, Call{Context: pointer("training"), Step: pointer(int64(0))})
	b.clock.add(time.Second)
	b.call(t, c, Call{Context: pointer("validation")})
	// Late writeback, and a child that outlives the process for a moment.
	b.probe.with(id, func(tree *process.Tree) {
		tree.DiskWriteBytes, tree.DirtiedBytes, tree.DirtiedWrittenBytes = 30, 100, 60
	})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	_ = silentCmd.Process.Kill()
	_ = silentCmd.Wait()
	records := b.store.await(t, 3)
	end := records[2]
	if end.GetFunction() != record.Function_RUN_END || end.GetStartUnixNanos() != records[1].GetEndUnixNanos() ||
		end.Context != nil || end.Segment != nil || end.GetSeq() != 0 {
		t.Errorf("%v", end)
	}
	if got := reading(end, record.DiskWriteBytes).GetInteger(); got != 20 {
		t.Errorf("remainder %d, want 20", got)
	}
	if got := reading(end, record.DiskPendingWriteBytes).GetInteger(); got != 40 {
		t.Errorf("pending %d, want 40", got)
	}
	totals := map[string]*record.Reading{}
	for _, r := range end.GetRunTotals() {
		totals[r.GetName()] = r
	}
	if totals[record.DiskWriteBytes].GetInteger() != 30 || totals[record.CPUSeconds].GetReal() != 2 {
		t.Errorf("totals %v", end.GetRunTotals())
	}
	if closed := end.GetClosedSegments(); len(closed) != 2 || closed[0].GetContext() != "training" || closed[1].GetContext() != "validation" ||
		closed[0].GetEndUnixNanos() != first.GetEndUnixNanos() {
		t.Errorf("closed %v", closed)
	}
	if end.GetRunAttributes()["lr"] != "0.1" || first.GetRunAttributes()["lr"] != "0.1" || records[1].RunAttributes != nil {
		t.Errorf("attributes %v %v %v", first.GetRunAttributes(), records[1].GetRunAttributes(), end.GetRunAttributes())
	}
	if end.GetTraceparent() != "00-aa-bb-01" || first.GetTraceparent() != "00-aa-bb-01" || records[1].GetTraceparent() != "" {
		t.Errorf("traceparents %q %q %q", first.GetTraceparent(), records[1].GetTraceparent(), end.GetTraceparent())
	}
	if p := end.GetProcess(); p.GetServiceName() != "digits" || p.GetRank() != -1 || p.GetHostName() != "node" || p.GetPid() != int32(c.PID) ||
		p.GetStartTicks() != c.StartTicks || len(p.GetRunId()) != 16 {
		t.Errorf("process %v", p)
	}
	eventually(t, "both are forgotten", func() bool { return b.Status().Processes == 0 })
	if got := len(b.store.all()); got != 3 {
		t.Errorf("%d records: a process that never logged emits nothing", got)
	}
}

func TestEndWaitsForTheTreeAndItsPages(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Settle = time.Minute })
	c, cmd := sleeper(t)
	b.call(t, c, Call{})
	b.probe.with(1, func(tree *process.Tree) { tree.DirtiedBytes = 4096 })
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	waits := func(what string) {
		t.Helper()
		time.Sleep(quiet + 5*settleEvery)
		if got := len(b.store.all()); got != 1 {
			t.Fatalf("%s: %d records", what, got)
		}
	}
	waits("an orphan lives and pages are to be written")
	b.probe.with(1, func(tree *process.Tree) { tree.Processes = 0 })
	waits("pages are to be written")
	b.probe.with(1, func(tree *process.Tree) {
		tree.DirtiedWrittenBytes, tree.DiskWriteBytes, tree.Processes = 4096, 4096, 1
	})
	waits("an orphan lives")
	b.probe.with(1, func(tree *process.Tree) { tree.Processes = 0 })
	if end := b.store.await(t, 2)[1]; reading(end, record.DiskWriteBytes).GetInteger() != 4096 {
		t.Errorf("%v", end)
	}
}

func TestRunEndedByTheProcess(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{Name: "one"})
	b.hello(t, c, Description{End: true}) // nothing logged: nothing to end
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes = 10 })
	b.call(t, c, Call{})
	b.hello(t, c, Description{End: true})
	records := b.store.all()
	if len(records) != 2 || records[1].GetFunction() != record.Function_RUN_END {
		t.Fatalf("%v", records)
	}
	b.hello(t, c, Description{End: true}) // once only

	// A second run of the same process: a name of its own, totals of its own, ids that go on.
	b.hello(t, c, Description{Name: "two", Attributes: map[string]string{"a": "b"}})
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes = 14 })
	b.call(t, c, Call{})
	// Pages to be written: the end waits for them, and a call in between does not wait.
	b.probe.with(1, func(tree *process.Tree) { tree.DirtiedBytes = 4096 })
	b.hello(t, c, Description{End: true})
	b.probe.with(1, func(tree *process.Tree) { tree.DirtiedWrittenBytes, tree.DiskWriteBytes = 4096, 14+4096 })
	records = b.store.await(t, 4)
	end := records[3]
	if end.GetFunction() != record.Function_RUN_END || end.GetSeq() != 1 || end.GetProcess().GetServiceName() != "two" ||
		records[1].GetProcess().GetServiceName() != "one" || records[2].GetOpensRun() {
		t.Errorf("%v", end)
	}
	if got := reading(end, record.DiskWriteBytes).GetInteger(); got != 4096 {
		t.Errorf("remainder %d", got)
	}
	for _, r := range end.GetRunTotals() {
		if r.GetName() == record.DiskWriteBytes && r.GetInteger() != 4+4096 {
			t.Errorf("total %d", r.GetInteger())
		}
	}

	b.call(t, c, Call{})
	b.probe.with(1, func(tree *process.Tree) { tree.DirtiedBytes += 4096 })
	b.hello(t, c, Description{End: true})
	b.call(t, c, Call{})
	records = b.store.await(t, 7)
	if records[5].GetFunction() != record.Function_RUN_END || records[6].GetFunction() != record.Function_LOG_SYSTEM_METRICS {
		t.Errorf("a call ends the run before it: %v %v", records[5].GetFunction(), records[6].GetFunction())
	}
}

func TestLoggedMetricsHaveTheirContextsSpelling(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{Metrics: []*record.LoggedMetric{{Key: "a", Context: pointer("TRAINING")}, {Key: "b"}}})
	got := b.call(t, c, Call{}).GetLoggedMetrics()
	if len(got) != 2 || got[0].GetContext() != "training" || got[1].Context != nil {
		t.Errorf("%v", got)
	}
}

func TestLoggedMetricsAreNeverLost(t *testing.T) {
	b := newBench(t)
	c, cmd := sleeper(t)
	metric := func(n int) (out []*record.LoggedMetric) {
		for i := range n {
			out = append(out, &record.LoggedMetric{Key: "loss", Value: float64(i)})
		}
		return out
	}
	b.hello(t, c, Description{Metrics: metric(2)})
	if rec := b.call(t, c, Call{DroppedCalls: 3}); len(rec.GetLoggedMetrics()) != 2 || len(rec.GetEvents()) != 1 ||
		rec.GetEvents()[0].GetName() != "dropped_calls" || rec.GetEvents()[0].GetAttributes()[0].GetInteger() != 3 {
		t.Errorf("%v %v", rec.GetLoggedMetrics(), rec.GetEvents())
	}
	if rec := b.call(t, c, Call{}); len(rec.GetLoggedMetrics()) != 0 || len(rec.GetEvents()) != 0 {
		t.Errorf("again: %v %v", rec.GetLoggedMetrics(), rec.GetEvents())
	}
	b.hello(t, c, Description{Metrics: metric(maxMetrics - 1)})
	b.hello(t, c, Description{Metrics: metric(3)})
	if rec := b.call(t, c, Call{}); len(rec.GetLoggedMetrics()) != maxMetrics || rec.GetEvents()[0].GetAttributes()[0].GetInteger() != 2 {
		t.Errorf("%d metrics, events %v", len(rec.GetLoggedMetrics()), rec.GetEvents())
	}
	b.hello(t, c, Description{Metrics: metric(1)})
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	if end := b.store.await(t, 4)[3]; len(end.GetLoggedMetrics()) != 1 {
		t.Errorf("metrics after the last call: %v", end.GetLoggedMetrics())
	}
}

func TestAttributesAreBounded(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	for i := range maxAttributes {
		b.hello(t, c, Description{Attributes: map[string]string{fmt.Sprint(i): "x"}})
	}
	b.hello(t, c, Description{Attributes: map[string]string{"0": "changed"}})
	_, err := b.Describe(context.Background(), c, Description{Attributes: map[string]string{"more": "x"}, Name: "kept out"})
	if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "attributes") || !strings.Contains(err.Error(), "128") {
		t.Errorf("%v", err)
	}
	if rec := b.call(t, c, Call{}); len(rec.GetRunAttributes()) != maxAttributes || rec.GetRunAttributes()["0"] != "changed" {
		t.Errorf("%d attributes", len(rec.GetRunAttributes()))
	}
}

func TestProcessesAreBounded(t *testing.T) {
	b := newBench(t, func(c *Config) { c.MaxProcesses = 1 })
	one, cmd := sleeper(t)
	two, _ := sleeper(t)
	b.hello(t, one, Description{})
	if _, _, err := b.Log(two, Call{Function: record.Function_LOG_SYSTEM_METRICS}); !errors.Is(err, ErrLimit) {
		t.Errorf("%v", err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "there is room again", func() bool {
		_, _, err := b.Log(two, Call{Function: record.Function_LOG_SYSTEM_METRICS})
		return err == nil
	})
}

func TestSegments(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	var opened, closed []*record.Segment
	for i := range 2*segmentSpans + 1 {
		b.clock.add(time.Millisecond)
		function := record.Function_LOG_SYSTEM_METRICS
		if i%2 == 1 {
			function = record.Function_LOG_FLOPS_PER_BATCH
		}
		rec := b.call(t, c, Call{Function: function, Context: pointer("training")})
		if rec.GetSegment().GetOpens() {
			opened = append(opened, rec.GetSegment())
		}
		closed = append(closed, rec.GetClosedSegments()...)
		if want := uint32(i%segmentSpans + 1); rec.GetSegment().GetSpans() != want {
			t.Fatalf("call %d: %v", i, rec.GetSegment())
		}
	}
	none := b.call(t, c, Call{})
	if s := none.GetSegment(); s.GetHasContext() || !s.GetOpens() || s.GetNumber() != 0 {
		t.Errorf("no context: %v", s)
	}
	if empty := b.call(t, c, Call{Context: pointer("")}).GetSegment(); !empty.GetHasContext() || !empty.GetOpens() {
		t.Errorf("the empty context is another: %v", empty)
	}
	if len(opened) != 3 || len(closed) != 2 {
		t.Fatalf("%d opened, %d closed", len(opened), len(closed))
	}
	for i, s := range closed {
		if s.GetNumber() != uint32(i) || s.GetSpans() != segmentSpans || s.GetStartUnixNanos() != opened[i].GetStartUnixNanos() || s.GetOpens() {
			t.Errorf("closed %v, opened as %v", s, opened[i])
		}
	}
}

// A closed context's segment numbers are never given again: the ids of traces are made from them.
func TestContextsAreBounded(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	seen := map[string]bool{}
	open := map[string]bool{}
	for i := range 3 * maxContexts {
		name := fmt.Sprint("epoch-", i%(maxContexts+2))
		rec := b.call(t, c, Call{Context: &name, Step: pointer(int64(i))})
		for _, s := range rec.GetClosedSegments() {
			if !open[s.GetContext()] {
				t.Errorf("call %d closes %v, which is not open", i, s)
			}
			delete(open, s.GetContext())
		}
		if s := rec.GetSegment(); s.GetOpens() {
			open[name] = true
			key := fmt.Sprint(name, s.GetNumber())
			if seen[key] {
				t.Errorf("call %d: segment %v for the second time", i, s)
			}
			seen[key] = true
		}
		if len(open) > maxContexts {
			t.Errorf("call %d: %d open", i, len(open))
		}
	}
}

// total is what a set has of disk.write_bytes; -1 = nothing.
func total(set *record.TotalSet) int64 {
	for _, each := range set.GetTotals() {
		if each.GetName() == record.DiskWriteBytes {
			return each.GetInteger()
		}
	}
	return -1
}

func TestTotalsByStepAndContext(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	var starts []int64
	for i, row := range []struct {
		context       string
		step          *int64
		step0, whole  int64
		sameStartAs   int
		contextStarts int
	}{
		{"training", pointer(int64(0)), 1, 1, 0, 0},
		{"training", pointer(int64(1)), 1, 2, 1, 0},
		{"training", pointer(int64(0)), 2, 3, 0, 0},
		{"validation", pointer(int64(0)), 1, 1, 3, 3},
		{"training", nil, 1, 4, 4, 0},
	} {
		b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes++ })
		b.clock.add(time.Second)
		rec := b.call(t, c, Call{Context: &row.context, Step: row.step})
		starts = append(starts, rec.GetStartUnixNanos())
		if total(rec.GetStepTotals()) != row.step0 || total(rec.GetContextTotals()) != row.whole {
			t.Errorf("row %d: step %d, context %d", i, total(rec.GetStepTotals()), total(rec.GetContextTotals()))
		}
		if rec.GetStepTotals().GetStartUnixNanos() != starts[row.sameStartAs] || rec.GetContextTotals().GetStartUnixNanos() != starts[row.contextStarts] {
			t.Errorf("row %d: starts %d and %d of %v", i, rec.GetStepTotals().GetStartUnixNanos(), rec.GetContextTotals().GetStartUnixNanos(), starts)
		}
	}
}

func TestStepsAreCapped(t *testing.T) {
	b := newBench(t)
	c, cmd := sleeper(t)
	b.hello(t, c, Description{})
	var capped *record.LogCall // the first
	for i := range maxSteps + 3 {
		b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes += 10 })
		b.clock.add(time.Second)
		rec := b.call(t, c, Call{Context: pointer("training"), Step: pointer(int64(i))})
		if rec.GetStepCapped() != (i >= maxSteps) || rec.GetContextTotals() == nil {
			t.Fatalf("step %d: %v", i, rec)
		}
		if i == maxSteps {
			capped = rec
		}
		// Past the cap one running total, with a start of its own.
		want, start := int64(10), rec.GetStartUnixNanos()
		if i >= maxSteps {
			want, start = int64(10*(i-maxSteps+1)), capped.GetStartUnixNanos()
		}
		if got := rec.GetStepTotals(); total(got) != want || got.GetStartUnixNanos() != start {
			t.Fatalf("step %d: total %d from %d, want %d from %d", i, total(got), got.GetStartUnixNanos(), want, start)
		}
	}
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes += 10 })
	if rec := b.call(t, c, Call{Context: pointer("validation"), Step: pointer(int64(0))}); !rec.GetStepCapped() || total(rec.GetStepTotals()) != 10 {
		t.Errorf("another context past the cap: %v", rec)
	}
	if rec := b.call(t, c, Call{Context: pointer("training"), Step: pointer(int64(7))}); rec.GetStepCapped() {
		t.Error("a step within the cap is capped when it comes again")
	}
	if got := b.Status().Counters["runs.records_without_step"]; got != 4 {
		t.Errorf("%d counted", got)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "its sums are given back", func() bool { return b.steps.Load() == 0 })
}

func TestOpenRunsAreTakenUp(t *testing.T) {
	b := newBench(t)
	lives, _ := sleeper(t)
	ends, cmd := sleeper(t)
	done, _ := sleeper(t)
	for _, c := range []Caller{lives, ends, done} {
		b.hello(t, c, Description{Name: "digits"})
		b.call(t, c, Call{Context: pointer("training"), Step: pointer(int64(1))})
	}
	b.hello(t, done, Description{End: true})
	written := b.store.await(t, 4) // the end of done's run is one
	if err := b.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()

	b.probe = newFakeProbe()
	b.open(t)
	b.clock.add(time.Second)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	records := b.store.all()
	if len(records) != len(written)+1 {
		t.Fatalf("%d records, want one more than %d", len(records), len(written))
	}
	end := records[len(records)-1]
	if end.GetFunction() != record.Function_RUN_END || int(end.GetProcess().GetPid()) != ends.PID || end.GetProcess().GetServiceName() != "digits" {
		t.Errorf("%v", end)
	}
	if !end.GetWindowGap() || end.GetStartUnixNanos() != written[1].GetEndUnixNanos() || reading(end, record.DiskWriteBytes) != nil ||
		len(end.GetClosedSegments()) != 1 || !slices.Contains(end.GetUnavailable(), "the process ended while the agent was not running") {
		t.Errorf("the remainder of what nobody saw: %v", end)
	}
	if got := b.Status().Processes; got != 1 {
		t.Errorf("%d processes are followed, want the one that lives", got)
	}
	// The live one goes on, and what it has done since is in its window.
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes = 7 })
	if rec := b.call(t, lives, Call{}); !rec.GetWindowGap() || rec.GetSeq() != 1 || reading(rec, record.DiskWriteBytes).GetInteger() != 7 {
		t.Errorf("%v", rec)
	}
	// An agent that starts once more has nothing left to close.
	if err := b.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	before := len(b.store.all())
	b.probe = newFakeProbe()
	b.open(t)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	if got := len(b.store.all()); got != before {
		t.Errorf("%d records, want %d", got, before)
	}
}

func TestAgentStartsAgain(t *testing.T) {
	b := newBench(t)
	c, cmd := sleeper(t)
	b.hello(t, c, Description{Name: "digits", Environment: map[string]string{"RANK": "3"}, Attributes: map[string]string{"lr": "1"}})
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes = 10 })
	b.clock.add(time.Second)
	b.call(t, c, Call{Context: pointer("training"), Step: pointer(int64(5))})
	flops := b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_BATCH, Context: pointer("training")})
	before := b.store.all()[0]
	if err := b.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := len(b.store.all()); got != 2 {
		t.Fatalf("%d records: leaving a process that lives ends nothing", got)
	}
	if _, _, err := b.Log(c, Call{Function: record.Function_LOG_SYSTEM_METRICS}); !errors.Is(err, ErrClosed) {
		t.Errorf("after the end: %v", err)
	}

	b.probe = newFakeProbe()
	b.open(t)
	b.clock.add(time.Hour)
	b.hello(t, c, Description{Name: "another"})
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes = 4 })
	after := b.call(t, c, Call{Context: pointer("training"), Step: pointer(int64(5))})
	if after.GetStartUnixNanos() != before.GetEndUnixNanos() || !after.GetWindowGap() || after.GetWindowFirst() || after.GetSeq() != 1 || after.GetOpensRun() {
		t.Errorf("%v", after)
	}
	if diff := cmp.Diff(before.GetProcess().String(), after.GetProcess().String()); diff != "" {
		t.Errorf("the process is the same: %s", diff)
	}
	if s := after.GetSegment(); s.GetOpens() || s.GetNumber() != 0 || s.GetSpans() != 3 {
		t.Errorf("the segment goes on: %v", s)
	}
	for _, set := range []*record.TotalSet{after.GetContextTotals(), after.GetStepTotals()} {
		for _, total := range set.GetTotals() {
			if total.GetName() == record.DiskWriteBytes && total.GetInteger() != 14 {
				t.Errorf("totals go on: %v", set)
			}
		}
		if set.GetStartUnixNanos() != before.GetStartUnixNanos() {
			t.Errorf("totals started at %d, want %d", set.GetStartUnixNanos(), before.GetStartUnixNanos())
		}
	}
	again := b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_BATCH, Context: pointer("training")})
	if again.GetSeq() != 1 || again.GetStartUnixNanos() != flops.GetEndUnixNanos() || !again.GetWindowGap() {
		t.Errorf("%v", again)
	}
	if next := b.call(t, c, Call{}); next.GetWindowGap() || next.GetSeq() != 2 {
		t.Errorf("the gap is one window's: %v", next)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	end := b.store.await(t, 6)[5]
	if end.GetSeq() != 0 || end.GetRunAttributes()["lr"] != "1" {
		t.Errorf("%v", end)
	}
	for _, r := range end.GetRunTotals() {
		if r.GetName() == record.DiskWriteBytes && r.GetInteger() != 14 {
			t.Errorf("run totals go on: %v", r)
		}
	}
}

func TestUnreadableStateIsSetAside(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	name := fmt.Sprintf("%s/%d/%d", b.bootID, c.PID, c.StartTicks)
	b.store.states[name] = []byte("\xff\xff nonsense")
	if rec := b.call(t, c, Call{}); rec.GetSeq() != 0 {
		t.Errorf("%v", rec)
	}
	if got := b.Status().Counters["runs.states_unread"]; got != 1 {
		t.Errorf("%d counted", got)
	}
}

func FuzzRestore(f *testing.F) {
	s := &subject{windows: [functions]window{{nextSeq: 3, start: 5}}, identity: &record.Process{Pid: 1, RunId: "r"}}
	s.contexts.init()
	s.contexts.enter(&record.LogCall{Context: pointer("training"), EndUnixNanos: 9})
	f.Add(s.marshal())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, bytes []byte) {
		s := &subject{}
		s.contexts.init()
		if s.restore(bytes) && len(s.marshal()) == 0 {
			t.Error("a state that was read cannot be written")
		}
	})
}

// A process that has exited may be spoken to again under its pid, by another process or by calls that were still on their way.
func TestPidsAreReused(t *testing.T) {
	b := newBench(t)
	c, cmd := sleeper(t)
	old := c
	old.StartTicks--
	b.call(t, old, Call{})
	b.call(t, c, Call{})
	records := b.store.all()
	if len(records) != 3 || records[1].GetFunction() != record.Function_RUN_END || records[1].GetProcess().GetStartTicks() != old.StartTicks ||
		records[2].GetProcess().GetStartTicks() != c.StartTicks || records[2].GetSeq() != 0 || !records[2].GetOpensRun() {
		t.Errorf("%v", records)
	}
	if records[0].GetProcess().GetRunId() == records[2].GetProcess().GetRunId() {
		t.Error("two processes, one run")
	}
	unpinned := Caller{UID: c.UID}
	unpinned.PID = c.PID
	if rec := b.call(t, unpinned, Call{}); rec.GetSeq() != 1 {
		t.Errorf("a connection that was made in its last moments: %v", rec)
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	eventually(t, "it is forgotten", func() bool { return b.Status().Processes == 0 })
	if _, _, err := b.Log(unpinned, Call{Function: record.Function_LOG_SYSTEM_METRICS}); !errors.Is(err, ErrGone) {
		t.Errorf("nobody: %v", err)
	}
}

func TestRunStaysOpenWhileCallsAreUnread(t *testing.T) {
	b := newBench(t)
	c, cmd := sleeper(t)
	b.call(t, c, Call{})
	release := b.Hold(c)
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	time.Sleep(quiet + 100*time.Millisecond)
	b.call(t, c, Call{})
	release()
	release()
	records := b.store.await(t, 3)
	if records[1].GetFunction() != record.Function_LOG_SYSTEM_METRICS || records[2].GetFunction() != record.Function_RUN_END {
		t.Errorf("%v", records)
	}
	b.Hold(c)()
}

func TestCloseEndsEveryRun(t *testing.T) {
	b := newBench(t)
	for range 3 {
		c, _ := sleeper(t)
		b.call(t, c, Call{})
	}
	quietOne, _ := sleeper(t)
	b.hello(t, quietOne, Description{})
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	ends := 0
	for _, rec := range b.store.all() {
		if rec.GetFunction() == record.Function_RUN_END {
			ends++
		}
	}
	if ends != 3 || len(b.probe.trees) != 0 || len(b.probe.followed) != 0 {
		t.Errorf("%d ends, trees %v, peaks %v", ends, b.probe.trees, b.probe.followed)
	}
}

func TestWhatCannotBeMeasuredHasNoValue(t *testing.T) {
	b := newBench(t)
	for i := range b.probe.groups {
		b.probe.groups[i] = process.Group{State: record.State_UNSUPPORTED, Source: record.Source_PROCFS, Reason: "needs eBPF"}
	}
	b.probe.groups[3] = process.Group{State: record.State_INCOMPLETE, Source: record.Source_PROCFS, Reason: "orphans are lost"}
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes, tree.MinorFaults = 5, 6 })
	rec := b.call(t, c, Call{})
	for _, r := range rec.GetReadings() {
		valued := r.GetValue() != nil
		if known := r.GetState() == record.State_OK || r.GetState() == record.State_INCOMPLETE; valued != known {
			t.Errorf("%v", r)
		}
	}
	if got := reading(rec, record.MemoryMinorFaults); got.GetInteger() != 6 || got.GetState() != record.State_INCOMPLETE {
		t.Errorf("%v", got)
	}
	for _, total := range rec.GetContextTotals().GetTotals() {
		if total.GetName() == record.DiskWriteBytes {
			t.Errorf("a sum of unknown values: %v", total)
		}
	}
	said := strings.Join(rec.GetUnavailable(), "\n")
	for _, want := range []string{"disk, disk operations and node, dirty pages, disk latency, memory, reclaim: needs eBPF", "processes, system calls: orphans are lost", "GPU"} {
		if !strings.Contains(said, want) {
			t.Errorf("%q is not said in\n%s", want, said)
		}
	}
	if r := reading(rec, record.GPUUsage); r.GetState() != record.State_UNSUPPORTED || r.GetReason() == "" {
		t.Errorf("%v", r)
	}
}

func TestLossMarksItsOwnWindow(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.probe.loss, b.probe.lossText = 4, "map full"
	b.hello(t, c, Description{})
	if rec := b.call(t, c, Call{}); rec.GetWindowIncomplete() {
		t.Error("lost before the window")
	}
	b.probe.mu.Lock()
	b.probe.loss++
	b.probe.mu.Unlock()
	if rec := b.call(t, c, Call{}); !rec.GetWindowIncomplete() || !strings.Contains(strings.Join(rec.GetUnavailable(), ""), "map full") {
		t.Errorf("%v", rec)
	}
	if rec := b.call(t, c, Call{}); rec.GetWindowIncomplete() {
		t.Error("lost in the window before")
	}
}

func TestWindowThatCannotBeRead(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	b.probe.with(1, func(tree *process.Tree) { tree.DiskWriteBytes = 5 })
	b.probe.snapErr = errors.New("no memory")
	rec := b.call(t, c, Call{})
	if !rec.GetWindowIncomplete() || reading(rec, record.DiskWriteBytes) != nil || !strings.Contains(strings.Join(rec.GetUnavailable(), ""), "no memory") {
		t.Errorf("%v", rec)
	}
	b.probe.snapErr = nil
	next := b.call(t, c, Call{})
	if !next.GetWindowIncomplete() || reading(next, record.DiskWriteBytes).GetInteger() != 5 || next.GetStartUnixNanos() != rec.GetEndUnixNanos() {
		t.Errorf("%v", next)
	}
	if after := b.call(t, c, Call{}); after.GetWindowIncomplete() {
		t.Errorf("%v", after)
	}
}

func TestProcessThatCannotBeFollowed(t *testing.T) {
	b := newBench(t)
	b.probe.trackErr = process.ErrGone
	c, _ := sleeper(t)
	rec := b.call(t, c, Call{})
	if reading(rec, record.DiskWriteBytes) != nil || !strings.Contains(strings.Join(rec.GetUnavailable(), ""), "exited") {
		t.Errorf("%v", rec)
	}
	if reading(rec, record.MemoryUsage).GetState() != record.State_OK {
		t.Error("the host is measured all the same")
	}
}

func TestPeaks(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	set := func(r process.PeakReading, rss uint64) {
		b.probe.with(1, func(tree *process.Tree) { tree.RSSBytes = rss; b.probe.peak = r })
	}
	check := func(rec *record.LogCall, what string, bytes int64, exact bool, upper int64) {
		t.Helper()
		got := reading(rec, record.MemoryRSSPeakUpperBytes)
		if reading(rec, record.MemoryRSSPeakBytes).GetInteger() != bytes || reading(rec, record.MemoryRSSPeakExact).GetBoolean() != exact ||
			(upper == 0) != (got == nil) || got.GetInteger() != upper {
			t.Errorf("%s: %v %v %v", what, reading(rec, record.MemoryRSSPeakBytes), reading(rec, record.MemoryRSSPeakExact), got)
		}
	}
	// hello's own reading had no bound (0): the first window has none either.
	set(process.PeakReading{Bytes: 500, Exact: true}, 100)
	b.call(t, c, Call{})
	set(process.PeakReading{Bytes: 400, Exact: true}, 100)
	// The FLOPs window takes the reading away from the probe, not from the other window.
	b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_BATCH})
	set(process.PeakReading{Bytes: 300, UpperBytes: 390, SampleHertz: 50}, 100)
	check(b.call(t, c, Call{}), "both stretches", 400, true, 400)
	set(process.PeakReading{Bytes: 300, UpperBytes: 900, SampleHertz: 50}, 100)
	check(b.call(t, c, Call{}), "a bound", 300, false, 900)
	set(process.PeakReading{Bytes: 300}, 700)
	check(b.call(t, c, Call{}), "no bound; more is there now than was sampled", 700, false, 0)
}

func TestPercentile(t *testing.T) {
	var before, now [64]uint64
	if _, any := percentile(&now, &before, 0.5); any {
		t.Error("of nothing")
	}
	now[10], before[10] = 7, 3
	for q, want := range map[float64]float64{0.5: 1536e-9, 0.25: 1280e-9, 1: 2048e-9} {
		if got, any := percentile(&now, &before, q); !any || got != want {
			t.Errorf("%v: %v, want %v", q, got, want)
		}
	}
	now[20] = 1
	if got, _ := percentile(&now, &before, 0.99); got < 1<<20/1e9 || got > 1<<21/1e9 {
		t.Errorf("p99 %v", got)
	}
	if got, _ := percentile(&now, &before, 0.5); got < 1024e-9 || got > 2048e-9 {
		t.Errorf("p50 %v", got)
	}
	now[63] = 1 << 60
	if got, _ := percentile(&now, &before, 0.99); got < 9e9 || got > 1.9e10 {
		t.Errorf("last bucket: %v", got)
	}
}

// Whatever counter the probe gains, a nested tree's share of it must reach the outer tree.
func TestAddTakesEveryCounter(t *testing.T) {
	var from, into process.Counters
	fill := func(v reflect.Value) {
		for i := range v.NumField() {
			field := v.Field(i)
			if field.Kind() == reflect.Array {
				for j := range field.Len() {
					field.Index(j).SetUint(uint64(i + j + 1))
				}
				continue
			}
			field.SetUint(uint64(i + 1))
		}
	}
	fill(reflect.ValueOf(&from).Elem())
	add(&into, &from)
	if diff := cmp.Diff(from, into); diff != "" {
		t.Error(diff)
	}
	names := map[string]bool{}
	for _, q := range quantities {
		if names[q.name] {
			t.Errorf("%s stands twice", q.name)
		}
		names[q.name] = true
	}
}

// Every byte of a tree and the trees inside it is in exactly one window, whoever logs, ends or begins meanwhile.
func TestConservationUnderConcurrency(t *testing.T) {
	b := newBench(t, func(c *Config) { c.Settle = -1 })
	outer, _ := sleeper(t)
	b.hello(t, outer, Description{})
	var inside []Caller
	var commands []*exec.Cmd
	for range 4 {
		c, cmd := sleeper(t)
		b.probe.outside[c.PID] = 1
		inside, commands = append(inside, c), append(commands, cmd)
	}
	var written uint64
	var writtenMu sync.Mutex
	write := func(id process.TreeID) {
		b.probe.mu.Lock()
		defer b.probe.mu.Unlock()
		if tree := b.probe.trees[id]; tree != nil {
			n := rand.Uint64N(1000)
			tree.DiskWriteBytes += n
			writtenMu.Lock()
			written += n
			writtenMu.Unlock()
		}
	}
	var work sync.WaitGroup
	for i, c := range inside {
		work.Go(func() {
			for n := range 60 {
				if _, _, err := b.Log(c, Call{Function: record.Function_LOG_SYSTEM_METRICS}); err != nil {
					t.Error(err)
					return
				}
				write(process.TreeID(1 + (i+n)%5))
			}
			if i%2 == 0 {
				_ = commands[i].Process.Kill()
			}
		})
	}
	work.Go(func() {
		for range 100 {
			b.call(t, outer, Call{})
			write(1)
		}
	})
	work.Wait()
	eventually(t, "two have ended", func() bool { return b.Status().Processes == 3 })
	b.call(t, outer, Call{})
	var counted int64
	seqs := map[string]uint64{}
	for _, rec := range b.store.all() {
		if rec.GetFunction() != record.Function_LOG_SYSTEM_METRICS {
			continue
		}
		key := fmt.Sprint(rec.GetProcess().GetPid())
		if rec.GetSeq() != seqs[key] {
			t.Errorf("pid %s: seq %d, want %d", key, rec.GetSeq(), seqs[key])
		}
		seqs[key]++
		if rec.GetProcess().GetPid() == int32(outer.PID) {
			counted += reading(rec, record.DiskWriteBytes).GetInteger()
		}
	}
	if counted != int64(written) {
		t.Errorf("%d written, %d counted", written, counted)
	}
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
	}
}

func BenchmarkLog(b *testing.B) {
	// With a set, what the next agent needs is stored too.
	for name, set := range map[string]uint64{"run": 0, "serve": 1} {
		b.Run(name, func(b *testing.B) { benchmarkLog(b, set) })
	}
}

func benchmarkLog(b *testing.B, set uint64) {
	probe, store := newFakeProbe(), discard{}
	probe.set = set
	tracker := New(Config{}, probe, host.New(host.Config{}), store, store)
	defer tracker.Close(context.Background())
	stat, err := process.ReadStat("/proc", os.Getpid())
	if err != nil {
		b.Fatal(err)
	}
	c := Caller{Process: stat.Process}
	step := int64(0)
	b.ReportAllocs()
	for b.Loop() {
		step++
		if _, _, err := tracker.Log(c, Call{Function: record.Function_LOG_SYSTEM_METRICS, Context: pointer("training"), Step: &step}); err != nil {
			b.Fatal(err)
		}
	}
}

// discard is a store that keeps nothing but pays for the encoding, as the real one does.
type discard struct{}

func (discard) Append(rec *record.LogCall, _ string, _ []byte) func(context.Context) (int64, error) {
	_, err := proto.Marshal(rec)
	return func(context.Context) (int64, error) { return 1, err }
}

func (discard) Recall(string) ([]byte, error) { return nil, nil }

func (discard) Remembered(func([]byte) bool) (map[string][]byte, error) { return nil, nil }
