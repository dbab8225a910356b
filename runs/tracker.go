package runs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

// Sink stores records. Append puts one at the end of its queue without waiting for a disk, together with what the agent keeps of
// its process; wait returns the record's number once both are committed.
type Sink interface {
	Append(rec *record.LogCall, process string, state []byte) (wait func(context.Context) (int64, error))
}

// Memory gives back the latest state that was appended for a process.
type Memory interface {
	// Recall returns a process's state; nil = unknown.
	Recall(process string) ([]byte, error)
	// Remembered returns the states that keep wants, by process.
	Remembered(keep func(state []byte) bool) (map[string][]byte, error)
}

// GPUs gives the GPU readings of one window of a tree.
type GPUs interface {
	// Window returns what the GPUs that the tree uses did between two wall clock times, and in a sentence each what is missing.
	Window(root probes.Process, startUnixNanos, endUnixNanos int64) (readings []*record.Reading, unavailable []string)
}

// Config bounds what a tracker keeps. The zero value is filled with the defaults named here.
type Config struct {
	// Resource are further resource attributes of every process: k8s.node.name, those of OTEL_RESOURCE_ATTRIBUTES in run.
	Resource map[string]string
	// HostName is host.name; default is the kernel's.
	HostName string
	// Settle is how long after a process's end its tree may still run and its dirty pages be written before its run is closed;
	// default 1 s, negative = not at all. It ends early when the tree is empty and nothing is pending.
	Settle time.Duration
	// MaxProcesses is how many processes may have said hello or logged at the same time; default 4096, as many as connections.
	MaxProcesses int
	// GPUs measures GPUs; nil = there is no GPU probe.
	GPUs GPUs
	// ProcRoot is where procfs is mounted; default /proc.
	ProcRoot string
	// Now is the wall clock; default time.Now.
	Now func() time.Time
}

const (
	// maxAttributes is how many attributes (log_param) a run may have: as many as OpenTelemetry's default limit for a span.
	maxAttributes = 128
	// maxMetrics is how many metrics (log_metric) may wait for the process's next record; further ones are dropped and counted.
	maxMetrics = 1000
	// segmentSpans is how many log spans one segment trace holds: Jaeger's pages stay quick and no back end cuts the trace.
	segmentSpans = 2000
	// maxContexts is how many contexts of one process are open at the same time; the one used least recently is closed first.
	maxContexts = 32
	// maxSteps is how many distinct (context, step) sets of one process have totals of their own.
	maxSteps = 10_000
	// maxStepsNode is the same for all processes of the node together: about 20 MB.
	maxStepsNode = 100_000
)

// Tracker turns log calls into records. Its methods may be called from any goroutine.
type Tracker struct {
	config Config
	probe  process.Probe
	host   *host.Probe
	cgroup *cgroup.Probe
	sink   Sink
	memory Memory
	bootID string
	// layout is sampleLayout's.
	layout uint64

	// making is held while a tree is made or given up: both change what the probe counts where.
	making sync.Mutex
	forest forest

	mu       sync.RWMutex // guards subjects and closed
	subjects map[int]*subject
	closed   bool

	steps    atomic.Int64 // (context, step) sets of all processes
	counters counters

	stop     chan struct{} // closed by Close
	watchers sync.WaitGroup
}

// New makes a tracker. Close ends it.
func New(config Config, probe process.Probe, host *host.Probe, sink Sink, memory Memory) *Tracker {
	if config.Settle == 0 {
		config.Settle = time.Second
	}
	if config.MaxProcesses == 0 {
		config.MaxProcesses = 4096
	}
	if config.ProcRoot == "" {
		config.ProcRoot = procRoot
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.HostName == "" {
		config.HostName, _ = os.Hostname() // without a name the attribute is left out
	}
	if config.GPUs == nil {
		config.GPUs = noGPUs{}
	}
	// Without a boot id, pid and start time still tell processes apart until the next boot.
	bootID, _ := os.ReadFile(config.ProcRoot + "/sys/kernel/random/boot_id")
	t := &Tracker{
		config: config, probe: probe, host: host, sink: sink, memory: memory,
		cgroup:   cgroup.New(cgroup.Config{ProcRoot: config.ProcRoot}),
		bootID:   strings.TrimSpace(string(bootID)),
		layout:   sampleLayout(),
		forest:   forest{byID: map[process.TreeID]*tree{}},
		subjects: map[int]*subject{},
		stop:     make(chan struct{}),
	}
	// Where it cannot, Status says so.
	if notifier, ok := probe.(process.KillNotifier); ok {
		_ = notifier.NotifyKills(t.killed)
	}
	return t
}

// Call is one log call.
type Call struct {
	Function record.Function
	// Context as the script gave it; nil = None.
	Context *string
	Step    *int64
	Label   string
	// Timestamp labels the sample, ms since the Unix epoch; nil = not labelled.
	Timestamp *int64
	// Lag is how long the call was under way when it got here.
	Lag         time.Duration
	Traceparent string
	// Cost of the batch or epoch that a FLOPs call is about; nil = another function.
	Cost *Cost
	// Readings of the call's own.
	Readings []*record.Reading
	// Unavailable says in a sentence each what Readings lacks.
	Unavailable []string
	Events      []*record.Event
	// DroppedCalls is how many calls the client had to drop since the last one that it sent.
	DroppedCalls uint64
}

// Log measures the caller's tree now, ends its window of that function, and appends the record to the sink in the order of the
// windows. wait returns when the record is committed.
func (t *Tracker) Log(c Caller, call Call) (*record.LogCall, func(context.Context) (int64, error), error) {
	switch call.Function {
	case record.Function_LOG_SYSTEM_METRICS, record.Function_LOG_FLOPS_PER_BATCH, record.Function_LOG_FLOPS_PER_EPOCH:
	default:
		return nil, nil, fmt.Errorf("log: function %v is not a log call", call.Function)
	}
	for {
		s, err := t.subject(c, false)
		if err != nil {
			return nil, nil, err
		}
		s.mu.Lock()
		if s.finished {
			// Its run was closed between finding and locking it; a process that lives is made anew.
			s.mu.Unlock()
			continue
		}
		if s.ending {
			t.endRun(s)
		}
		rec, wait := t.log(s, &call)
		s.mu.Unlock()
		return rec, wait, nil
	}
}

// Description is what a process says about its run.
type Description struct {
	// Name of the run; empty = not said.
	Name string
	// Environment are the launcher's variables.
	Environment map[string]string
	// Script is the base name of the script; empty = not said.
	Script     string
	Attributes map[string]string
	Metrics    []*record.LoggedMetric
	// End closes the run.
	End         bool
	Traceparent string
}

// Info answers a description.
type Info struct {
	RunID       string
	ServiceName string
	// Rank is -1 when no launcher gave one.
	Rank, Attempt int32
}

// Describe takes hello, name, attributes, metrics and end of a run. The first makes the process's tree, so counting starts here.
// With End the run is closed at once, or, when pages are still to be written, within Config.Settle or at the process's next call.
func (t *Tracker) Describe(_ context.Context, c Caller, d Description) (Info, error) {
	for {
		s, err := t.subject(c, true)
		if err != nil {
			return Info{}, err
		}
		s.mu.Lock()
		if s.finished {
			s.mu.Unlock()
			continue
		}
		if s.ending && !d.End {
			t.endRun(s)
		}
		info, err := t.describe(s, &d)
		if err == nil && d.End {
			t.requestEnd(s)
		}
		s.mu.Unlock()
		return info, err
	}
}

// Hold says that calls of the caller may still be unread, in the buffer of a connection: its run is not closed before release,
// though at most 10 s after its end. A caller that has not spoken is not held.
func (t *Tracker) Hold(c Caller) (release func()) {
	t.mu.RLock()
	s := t.find(c)
	t.mu.RUnlock()
	if s == nil {
		return func() {}
	}
	s.holds.Add(1)
	return sync.OnceFunc(func() { s.holds.Add(-1) })
}

// find returns the subject of c or nil. The caller holds mu.
func (t *Tracker) find(c Caller) *subject {
	s := t.subjects[c.PID]
	if s == nil || c.StartTicks != 0 && s.key.StartTicks != c.StartTicks {
		return nil
	}
	return s
}

// subject finds or makes the subject of c.
func (t *Tracker) subject(c Caller, hello bool) (*subject, error) {
	t.mu.RLock()
	s, closed := t.find(c), t.closed
	t.mu.RUnlock()
	switch {
	case closed:
		return nil, ErrClosed
	case s != nil:
		return s, nil
	case c.StartTicks == 0:
		return nil, fmt.Errorf("pid %d had exited before the agent first heard of it: %w", c.PID, ErrGone)
	}

	t.making.Lock()
	defer t.making.Unlock()
	t.mu.RLock()
	s, before, count := t.find(c), t.subjects[c.PID], len(t.subjects)
	t.mu.RUnlock()
	if s != nil {
		return s, nil
	}
	if before != nil {
		// The pid has a new owner, so the old one has exited, though its watcher has not run yet.
		t.finishLocked(before)
		count--
	}
	if count >= t.config.MaxProcesses {
		t.counters.refusedProcesses.Add(1)
		return nil, fmt.Errorf("%w: %d processes have said hello or logged and still run; the agent follows no more at a time", ErrLimit, count)
	}
	s = t.newSubject(c, hello)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		t.giveUp(s)
		return nil, ErrClosed
	}
	t.subjects[c.PID] = s
	t.watchers.Go(func() { t.watch(s) })
	return s, nil
}

// newSubject makes the tree of c and reads where its counters stand. The caller holds making.
func (t *Tracker) newSubject(c Caller, hello bool) *subject {
	s := t.emptySubject(c.Process)
	var moved []*tree
	tracked, err := t.probe.Track(c.Process)
	switch {
	case errors.Is(err, process.ErrGone):
		s.untracked = "the process had exited when the agent first heard of it"
	case err != nil:
		s.untracked = fmt.Sprintf("the process cannot be followed: %v", err)
	default:
		s.tree = &tree{id: tracked.ID, set: tracked.Set, root: c.Process, peak: t.probe.NewPeak([]process.TreeID{tracked.ID})}
		moved = t.forest.insert(s.tree, tracked.Parent, func(root probes.Process) bool { return descends(t.config.ProcRoot, root, c.Process) })
	}
	t.measure(s, true)
	_, s.now.cpu = t.host.CPU(host.CPUTimes{})
	s.start(hello)
	if s.tree != nil {
		for _, inner := range moved {
			t.keep(inner)
		}
		s.tree.start = treeStart{s.packNow(), s.edge, hello}
		t.keep(s.tree)
	}
	t.recall(s)
	return s
}

func (t *Tracker) emptySubject(key probes.Process) *subject {
	s := &subject{
		key: key, store: fmt.Sprintf("%s/%d/%d", t.bootID, key.PID, key.StartTicks), heard: make(chan struct{}, 1), layout: t.layout,
	}
	s.contexts.init()
	return s
}

// recall takes up what an agent before this one has stored of s.
func (t *Tracker) recall(s *subject) {
	state, err := t.memory.Recall(s.store)
	if err != nil {
		t.counters.unrecalled.Add(1)
	}
	if len(state) > 0 && !s.restore(state) {
		t.counters.unrecalled.Add(1)
	}
	t.steps.Add(int64(len(s.steps.sets)))
}

// descends walks from p up to the process that it descends from, or not.
func descends(procRoot string, p, from probes.Process) bool {
	// 64 generations are more than any launcher has; a loop cannot be, but pids may be reused while this walks.
	for range 64 {
		stat, err := process.ReadStat(procRoot, p.PID)
		if err != nil || p.StartTicks != 0 && stat.StartTicks != p.StartTicks || stat.PPID <= 0 {
			return false
		}
		if stat.PPID == from.PID {
			return true
		}
		p = probes.Process{PID: stat.PPID}
	}
	return false
}

// giveUp releases what the probe keeps for s. The caller holds making.
func (t *Tracker) giveUp(s *subject) {
	t.steps.Add(-int64(len(s.steps.sets)))
	if s.tree == nil {
		return
	}
	s.tree.peak.Close()
	if s.left && s.tree.set != 0 {
		return // the next agent's
	}
	changed := t.forest.remove(s.tree, func() process.Counters {
		var last process.Snapshot
		if err := t.probe.Snapshot([]process.TreeID{s.tree.id}, nil, &last); err != nil || len(last.Trees) == 0 {
			return process.Counters{}
		}
		return last.Trees[0].Counters
	})
	// Before the tree goes: its share is in a note, or the tree is still there.
	for _, other := range changed {
		t.keep(other)
	}
	t.probe.Release(s.tree.id)
}

// Status is what a tracker has done since it was made.
type Status struct {
	// Processes that have said hello or logged and are followed now.
	Processes int
	Probes    []probes.Status
	// Counters by name.
	Counters map[string]uint64
}

// Status says what the tracker follows and has had to refuse.
func (t *Tracker) Status() Status {
	t.mu.RLock()
	count := len(t.subjects)
	t.mu.RUnlock()
	return Status{
		Processes: count,
		Probes:    append(t.probe.Status(), t.host.Status()...),
		Counters:  t.counters.read(),
	}
}

type counters struct {
	records, runsEnded, refusedProcesses, refusedAttributes, droppedMetrics, clientDrops, cappedSteps, unrecalled, unread, unkept atomic.Uint64
}

func (c *counters) read() map[string]uint64 {
	return map[string]uint64{
		"runs.records":              c.records.Load(),
		"runs.ended":                c.runsEnded.Load(),
		"runs.processes_refused":    c.refusedProcesses.Load(),
		"runs.attributes_refused":   c.refusedAttributes.Load(),
		"runs.metrics_dropped":      c.droppedMetrics.Load(),
		"runs.client_calls_dropped": c.clientDrops.Load(),
		"runs.records_without_step": c.cappedSteps.Load(),
		"runs.states_unread":        c.unrecalled.Load(),
		"runs.snapshots_unread":     c.unread.Load(),
		"runs.notes_unkept":         c.unkept.Load(),
	}
}

// noGPUs stands in for a GPU probe.
type noGPUs struct{}

func (noGPUs) Window(probes.Process, int64, int64) ([]*record.Reading, []string) {
	const reason = "GPU: this agent has no GPU probe"
	return []*record.Reading{
		{Name: record.GPUMemoryUsage, State: record.State_UNSUPPORTED, Source: record.Source_NVML, Reason: reason},
		{Name: record.GPUUsage, State: record.State_UNSUPPORTED, Source: record.Source_NVML, Reason: reason},
	}, []string{reason}
}

// startUnixNanos is the wall clock time at which a process started: its ticks count on the boot clock.
func startUnixNanos(now time.Time, startTicks uint64) int64 {
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		return now.UnixNano()
	}
	return now.UnixNano() - boot.Nano() + int64(startTicks)*process.TickNanos
}
