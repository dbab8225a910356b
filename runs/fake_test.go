package runs

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

// fakeProbe counts what a test tells it to.
type fakeProbe struct {
	mu       sync.Mutex
	next     process.TreeID
	trees    map[process.TreeID]*process.Tree
	outside  map[int]process.TreeID // pid -> innermost tree before it is tracked
	node     process.NodeCounters
	peak     process.PeakReading
	groups   [6]process.Group
	loss     uint64
	lossText string
	released []process.TreeID
	// notes, and the trees that an agent before this one has left.
	notes    map[process.TreeID]process.Resumed
	set      uint64
	resumed  []process.Resumed
	followed map[*fakePeak][]process.TreeID
	trackErr error
	snapErr  error
}

func newFakeProbe() *fakeProbe {
	p := &fakeProbe{
		trees: map[process.TreeID]*process.Tree{}, outside: map[int]process.TreeID{}, followed: map[*fakePeak][]process.TreeID{},
		notes: map[process.TreeID]process.Resumed{},
	}
	for i := range p.groups {
		p.groups[i] = process.Group{State: record.State_OK, Source: record.Source_EBPF}
	}
	return p
}

func (p *fakeProbe) Track(who probes.Process) (process.Tracked, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.trackErr != nil {
		return process.Tracked{}, p.trackErr
	}
	p.next++
	p.trees[p.next] = &process.Tree{ID: p.next, Gauges: process.Gauges{Processes: 1}}
	tracked := process.Tracked{ID: p.next, Parent: p.outside[who.PID], Set: p.set}
	p.notes[p.next] = process.Resumed{Tracked: tracked, Root: who}
	return tracked, nil
}

func (p *fakeProbe) Release(id process.TreeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.released = append(p.released, id)
	delete(p.trees, id)
	delete(p.notes, id)
}

type fakePeak struct{ probe *fakeProbe }

func (f *fakePeak) SetTrees(ids []process.TreeID) {
	f.probe.mu.Lock()
	defer f.probe.mu.Unlock()
	f.probe.followed[f] = ids
}

func (f *fakePeak) Close() {
	f.probe.mu.Lock()
	defer f.probe.mu.Unlock()
	delete(f.probe.followed, f)
}

func (p *fakeProbe) NewPeak(ids []process.TreeID) process.Peak {
	f := &fakePeak{probe: p}
	f.SetTrees(ids)
	return f
}

func (p *fakeProbe) Snapshot(ids []process.TreeID, peak process.Peak, dst *process.Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.snapErr != nil {
		return p.snapErr
	}
	dst.Trees = dst.Trees[:0]
	for _, id := range ids {
		tree := p.trees[id]
		if tree == nil {
			return errors.New("no such tree")
		}
		dst.Trees = append(dst.Trees, *tree)
	}
	dst.Node = p.node
	dst.Peak = process.PeakReading{}
	if peak != nil {
		dst.Peak = p.peak
		p.peak = process.PeakReading{}
	}
	dst.Disk, dst.Dirty, dst.Latency, dst.Task, dst.Memory, dst.Reclaim =
		p.groups[0], p.groups[1], p.groups[2], p.groups[3], p.groups[4], p.groups[5]
	dst.LossCount, dst.Incomplete = p.loss, p.lossText
	return nil
}

func (p *fakeProbe) Resumed() []process.Resumed { return p.resumed }

func (p *fakeProbe) Note(id, parent process.TreeID, note []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	kept := p.notes[id]
	kept.Parent, kept.Note = parent, note
	p.notes[id] = kept
	return nil
}

// successor is the probe of the next agent, over the same trees.
func (p *fakeProbe) successor() *fakeProbe {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := newFakeProbe()
	next.set, next.next, next.node, next.outside = p.set, p.next, p.node, p.outside
	for id, tree := range p.trees {
		same := *tree
		next.trees[id] = &same
	}
	for id, kept := range p.notes {
		next.notes[id] = kept
		next.resumed = append(next.resumed, kept)
	}
	return next
}

func (p *fakeProbe) Status() []probes.Status { return nil }
func (p *fakeProbe) Close() error            { return nil }

// with changes the counters of a tree.
func (p *fakeProbe) with(id process.TreeID, change func(*process.Tree)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	change(p.trees[id])
}

// fakeStore is Sink and Memory.
type fakeStore struct {
	mu      sync.Mutex
	records []*record.LogCall
	states  map[string][]byte
	added   chan struct{}
}

func newFakeStore() *fakeStore {
	return &fakeStore{states: map[string][]byte{}, added: make(chan struct{}, 1<<16)}
}

func (f *fakeStore) Append(rec *record.LogCall, name string, state []byte) func(context.Context) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	// As the real one: what is stored is what the record holds now.
	f.records = append(f.records, proto.Clone(rec).(*record.LogCall))
	f.states[name] = state
	number := int64(len(f.records))
	f.added <- struct{}{}
	return func(context.Context) (int64, error) { return number, nil }
}

func (f *fakeStore) Recall(name string) ([]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.states[name], nil
}

func (f *fakeStore) Remembered(keep func([]byte) bool) (map[string][]byte, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	kept := map[string][]byte{}
	for name, state := range f.states {
		if keep(state) {
			kept[name] = state
		}
	}
	return kept, nil
}

func (f *fakeStore) all() []*record.LogCall {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]*record.LogCall(nil), f.records...)
}

// await waits for n records in all.
func (f *fakeStore) await(t *testing.T, n int) []*record.LogCall {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		if records := f.all(); len(records) >= n {
			return records
		}
		select {
		case <-f.added:
		case <-deadline:
			t.Fatalf("%d records, want %d", len(f.all()), n)
		}
	}
}

// clock is a wall clock that a test sets.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// bench is a tracker with everything around it faked but the processes.
type bench struct {
	*Tracker
	probe *fakeProbe
	store *fakeStore
	clock *clock
}

func newBench(t *testing.T, change ...func(*Config)) *bench {
	t.Helper()
	b := &bench{probe: newFakeProbe(), store: newFakeStore(), clock: &clock{now: time.Unix(1_800_000_000, 0)}}
	b.open(t, change...)
	return b
}

// open makes a new tracker over the same store, as an agent that starts again.
func (b *bench) open(t *testing.T, change ...func(*Config)) {
	t.Helper()
	config := Config{Now: b.clock.Now, HostName: "node", Settle: 50 * time.Millisecond}
	for _, c := range change {
		c(&config)
	}
	tracker := New(config, b.probe, host.New(host.Config{}), b.store, b.store)
	b.Tracker = tracker
	t.Cleanup(func() { _ = tracker.Close(context.Background()) })
}

// sleeper starts a process that lives until the test ends or kills it.
func sleeper(t *testing.T) (Caller, *exec.Cmd) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return callerOf(t, cmd.Process.Pid), cmd
}

func callerOf(t *testing.T, pid int) Caller {
	t.Helper()
	stat, err := process.ReadStat("/proc", pid)
	if err != nil {
		t.Fatal(err)
	}
	return Caller{Process: stat.Process, UID: uint32(os.Getuid()), GID: uint32(os.Getgid())}
}

func (b *bench) hello(t *testing.T, c Caller, d Description) Info {
	t.Helper()
	info, err := b.Describe(context.Background(), c, d)
	if err != nil {
		t.Fatal(err)
	}
	return info
}

func (b *bench) call(t *testing.T, c Caller, call Call) *record.LogCall {
	t.Helper()
	if call.Function == 0 {
		call.Function = record.Function_LOG_SYSTEM_METRICS
	}
	rec, wait, err := b.Log(c, call)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := wait(context.Background()); err != nil {
		t.Fatal(err)
	}
	return rec
}

func reading(rec *record.LogCall, name string) *record.Reading {
	for _, r := range rec.GetReadings() {
		if r.GetName() == name {
			return r
		}
	}
	return nil
}

func pointer[T any](v T) *T { return &v }
