package runs

import (
	"context"
	"reflect"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs/state"
)

// die stops the tracker as a SIGKILL would: it says and writes nothing more.
func (b *bench) die() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.closed {
		b.closed = true
		close(b.stop)
	}
}

// abandon makes a tracker over the same store and trees after the death of the one before.
func (b *bench) abandon(t *testing.T) {
	t.Helper()
	b.die()
	b.watchers.Wait()
	b.probe = b.probe.successor()
	b.clock.add(time.Second)
	b.open(t)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
}

func wrote(rec *record.LogCall) int64 { return reading(rec, record.DiskWriteBytes).GetInteger() }

func writes(bytes uint64) func(*process.Tree) {
	return func(tree *process.Tree) { tree.DiskWriteBytes += bytes }
}

func TestWindowsGoOnWithTheCounters(t *testing.T) {
	b := newBench(t)
	b.probe.set = 7
	c, _ := sleeper(t)
	b.hello(t, c, Description{Name: "digits"})
	b.probe.with(1, writes(10))
	b.probe.node.OtherWriteBytes = 100
	b.clock.add(time.Second)
	before := b.call(t, c, Call{})
	b.probe.with(1, writes(5))
	b.probe.node.OtherWriteBytes = 130
	b.abandon(t)
	b.probe.with(1, writes(2))
	b.probe.node.OtherWriteBytes = 140
	after := b.call(t, c, Call{})
	if after.GetWindowGap() || after.GetWindowFirst() || after.GetWindowIncomplete() || after.GetStartUnixNanos() != before.GetEndUnixNanos() || after.GetSeq() != 1 {
		t.Errorf("%v", after)
	}
	if wrote(after) != 7 || reading(after, record.DiskOtherWriteBytes).GetInteger() != 40 {
		t.Errorf("the tree wrote %d, want 7; others %v, want 40", wrote(after), reading(after, record.DiskOtherWriteBytes))
	}
	if reading(after, record.MemoryRSSPeakExact).GetBoolean() || reading(after, record.MemoryRSSPeakUpperBytes) != nil {
		t.Error("a peak at which nobody looked all the time is bounded")
	}
	// That function was not called yet: it starts at hello.
	flops := b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_BATCH})
	if flops.GetWindowGap() || flops.GetStartUnixNanos() != before.GetStartUnixNanos() || wrote(flops) != 17 {
		t.Errorf("%v", flops)
	}
	b.abandon(t)
	b.abandon(t) // an agent that takes no call in between
	if next := b.call(t, c, Call{}); next.GetWindowGap() || wrote(next) != 0 || next.GetStartUnixNanos() != after.GetEndUnixNanos() {
		t.Errorf("%v", next)
	}
}

func TestCountersOfAnotherSetHaveAGap(t *testing.T) {
	b := newBench(t)
	b.probe.set = 7
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	b.probe.with(1, writes(10))
	before := b.call(t, c, Call{})
	// Made anew, and the process in it has the same number as before.
	b.probe = newFakeProbe()
	b.probe.set = 8
	b.open(t)
	if err := b.Resume(); err != nil {
		t.Fatal(err)
	}
	b.probe.with(1, writes(3))
	b.abandon(t) // before any record says so
	b.probe.with(1, writes(1))
	after := b.call(t, c, Call{})
	if !after.GetWindowGap() || after.GetStartUnixNanos() != before.GetEndUnixNanos() || wrote(after) != 4 {
		t.Errorf("%v", after)
	}
	if next := b.call(t, c, Call{}); next.GetWindowGap() {
		t.Errorf("%v", next)
	}
}

func TestHelloIsKeptWithTheTree(t *testing.T) {
	b := newBench(t)
	b.probe.set = 7
	c, _ := sleeper(t)
	b.hello(t, c, Description{})
	hello := b.clock.Now().UnixNano()
	b.probe.with(1, writes(10))
	b.abandon(t)
	rec := b.call(t, c, Call{})
	if rec.GetWindowGap() || rec.GetWindowFirst() || rec.GetStartUnixNanos() != hello || wrote(rec) != 10 || !rec.GetOpensRun() {
		t.Errorf("%v", rec)
	}
}

func TestProcessThatEndsMeanwhileKeepsItsRemainder(t *testing.T) {
	b := newBench(t)
	b.probe.set = 7
	c, cmd := sleeper(t)
	b.call(t, c, Call{})
	b.probe.with(1, writes(10))
	b.die()
	b.watchers.Wait()
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	b.abandon(t)
	end := b.store.await(t, 2)[1]
	if end.GetFunction() != record.Function_RUN_END || end.GetWindowGap() || wrote(end) != 10 {
		t.Errorf("%v", end)
	}
}

// Trees inside one another, of which one is given up before the agent is killed and one was being given up.
func TestNestedTreesGoOn(t *testing.T) {
	b := newBench(t)
	b.probe.set = 7
	outer, _ := sleeper(t)
	var inner []Caller
	b.hello(t, outer, Description{})
	for range 3 {
		c, _ := sleeper(t)
		b.probe.outside[c.PID] = 1
		b.hello(t, c, Description{})
		inner = append(inner, c)
	}
	before := b.call(t, outer, Call{})
	for id, bytes := range map[process.TreeID]uint64{1: 1, 2: 10, 3: 100, 4: 1000} {
		b.probe.with(id, writes(bytes))
	}
	b.making.Lock()
	b.finishLocked(b.subjects[inner[0].PID])
	// Killed between the note of the tree around and the release: the tree is there, and its share is in the note too.
	gone, kept := *b.probe.trees[3], b.probe.notes[3]
	b.finishLocked(b.subjects[inner[1].PID])
	b.making.Unlock()
	b.probe.trees[3], b.probe.notes[3] = &gone, kept

	b.abandon(t)
	b.probe.with(4, writes(1000))
	after := b.call(t, outer, Call{})
	if after.GetWindowGap() || after.GetStartUnixNanos() != before.GetEndUnixNanos() || wrote(after) != 2111 {
		t.Errorf("the outer tree wrote %d, want 2111: %v", wrote(after), after)
	}
	if got := b.Status().Processes; got != 2 {
		t.Errorf("%d processes are followed, want the outer and one inner", got)
	}
	if rec := b.call(t, inner[2], Call{}); len(rec.GetEnclosing()) != 1 || wrote(rec) != 2000 {
		t.Errorf("%v", rec)
	}
}

func TestDetachLeavesTheTrees(t *testing.T) {
	b := newBench(t)
	b.probe.set = 7
	c, _ := sleeper(t)
	b.call(t, c, Call{})
	if err := b.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	if len(b.probe.released) != 0 || len(b.probe.followed) != 0 {
		t.Errorf("released %v, %d peaks followed", b.probe.released, len(b.probe.followed))
	}
}

// Every word of a sample comes back, whatever is added to the counters.
func TestSamplesAreKeptWhole(t *testing.T) {
	var s sample
	next := uint64(0)
	fill := func(of any) {
		words(reflect.ValueOf(of).Elem(), func(w reflect.Value) { next++; w.SetUint(next) })
	}
	fill(&s.tree)
	fill(&s.waits)
	fill(&s.node)
	s.loss, s.known = 5, true
	s.cgroup.Path, s.cgroup.State = "/a", record.State_OK
	s.cgroup.FullMicros.State, s.cgroup.FullMicros.Amount = record.State_OK, 9
	bytes, err := proto.Marshal(s.pack(3))
	if err != nil {
		t.Fatal(err)
	}
	var in state.Sample
	if err := proto.Unmarshal(bytes, &in); err != nil {
		t.Fatal(err)
	}
	if got := unpackSample(&in, 3); got != s {
		t.Errorf("%+v, want %+v", got, s)
	}
	if unpackSample(&in, 4).known {
		t.Error("a sample of another layout is read")
	}
	in.Counters = in.Counters[1:]
	if unpackSample(&in, 3).known {
		t.Error("a sample that is too short is read")
	}
	if len(packWords(&s.tree)) > 192 {
		t.Error("packWords grows its slice")
	}
	if len(bytes) > 4000 {
		t.Errorf("%d bytes: a note holds no two of them", len(bytes))
	}
}
