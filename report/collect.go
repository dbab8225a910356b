package report

import (
	"iter"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/store"
)

// processKey names a process for ever on its host.
type processKey struct {
	bootID     string
	pid        int32
	startTicks uint64
}

func keyOf(p *record.Process) processKey {
	return processKey{p.GetBootId(), p.GetPid(), p.GetStartTicks()}
}

// amount is a sum over windows or the largest value of them. Its zero value was never measured.
type amount struct {
	value float64
	// measured windows and windows in which it could not be measured, or only a part of it.
	measured, lacking int
}

func (a amount) known() bool { return a.measured > 0 }

// partial: the amount is a lower bound.
func (a amount) partial() bool { return a.lacking > 0 }

func (a *amount) add(b amount) {
	a.value += b.value
	a.measured += b.measured
	a.lacking += b.lacking
}

func (a *amount) largest(b amount) {
	if b.known() && (!a.known() || b.value > a.value) {
		a.lacking = 0
	} else if !a.known() || b.value < a.value {
		b.lacking = 0
	}
	a.value = math.Max(a.value, b.value)
	a.measured += b.measured
	a.lacking = max(a.lacking, b.lacking)
}

// The summed quantities of a row.
var summed = []string{
	record.DiskReadBytes, record.DiskWriteBytes, record.DiskDirtiedBytes, record.IOReadBytes, record.IOWriteBytes,
	record.MemoryMinorFaults, record.MemoryMajorFaults, record.CPUSeconds,
}

// tally is what one context of a process did.
type tally struct {
	context  string
	none     bool
	calls    int
	steps    map[int64]bool
	duration time.Duration
	sums     map[string]amount
	peak     amount
	// FLOPs of batches and of epochs: two views of the same work, so they are never added.
	batch, epoch amount
	mfu          amount
}

func newTally(context string, none bool) *tally {
	return &tally{context: context, none: none, steps: map[int64]bool{}, sums: map[string]amount{}}
}

// merge adds the same context of another process. Processes run side by side: the longest time and the largest peak stand.
func (r *tally) merge(o *tally) {
	r.calls += o.calls
	maps.Copy(r.steps, o.steps)
	r.duration = max(r.duration, o.duration)
	for name, a := range o.sums {
		sum := r.sums[name]
		sum.add(a)
		r.sums[name] = sum
	}
	r.peak.largest(o.peak)
	r.batch.add(o.batch)
	r.epoch.add(o.epoch)
	r.mfu.add(o.mfu)
}

// process is what one logging process did.
type process struct {
	key       processKey
	described *record.Process
	rows      []*tally
	// left is what RUN_END carries: the remainder since the last log_system_metrics.
	left *tally
	// totals are those of the newest RUN_END; nil when the run has not ended.
	totals *tally
	// unattributed are bytes that the node wrote for nobody known, in this process's windows.
	unattributed, pending amount
	start, end            int64
	enclosing             []*record.ProcessKey
}

// run is everything that the records say.
type run struct {
	processes []*process
	byKey     map[processKey]*process
	calls     int
	sources   map[string][]string // of disk and memory, in order of appearance
	reasons   []reason
	first     int // windows that do not start at hello
	gaps      int
	partial   int
	windows   int
	dropped   int64
}

// reason is why a value is not there, and in how many windows.
type reason struct {
	text    string
	windows int
}

// collect reads the records.
func collect(records iter.Seq2[store.Stored, error]) (*run, error) {
	r := &run{byKey: map[processKey]*process{}, sources: map[string][]string{}}
	for stored, err := range records {
		if err != nil {
			return nil, err
		}
		r.add(stored.Record)
	}
	return r, nil
}

func (r *run) add(rec *record.LogCall) {
	p := r.byKey[keyOf(rec.GetProcess())]
	if p == nil {
		p = &process{key: keyOf(rec.GetProcess()), start: rec.GetStartUnixNanos()}
		r.byKey[p.key] = p
		r.processes = append(r.processes, p)
	}
	p.described = rec.GetProcess()
	p.enclosing = rec.GetEnclosing()
	p.start = min(p.start, rec.GetStartUnixNanos())
	p.end = max(p.end, rec.GetEndUnixNanos())
	r.note(rec)

	switch rec.GetFunction() {
	case record.Function_RUN_END:
		left := newTally("", true)
		left.addWindow(rec)
		if p.left == nil {
			p.left = left
		} else {
			left.duration += p.left.duration
			p.left.merge(left)
		}
		p.totals = totalsOf(rec)
		p.pending, _ = amountOf(rec.GetReadings(), record.DiskPendingWriteBytes)
		p.unattributed = amount{}
		if a, ok := amountOf(rec.GetRunTotals(), record.DiskUnattributedWriteBytes); ok {
			p.unattributed = a
		}
	case record.Function_LOG_SYSTEM_METRICS:
		r.calls++
		row := p.row(rec)
		row.addWindow(rec)
		if a, ok := amountOf(rec.GetReadings(), record.DiskUnattributedWriteBytes); ok {
			p.unattributed.add(a)
		}
	default:
		r.calls++
		p.row(rec).addFlops(rec)
	}
}

// row is the tally of the record's context, with the call counted.
func (p *process) row(rec *record.LogCall) *tally {
	none := rec.Context == nil
	i := slices.IndexFunc(p.rows, func(r *tally) bool { return r.context == rec.GetContext() && r.none == none })
	if i < 0 {
		i = len(p.rows)
		p.rows = append(p.rows, newTally(rec.GetContext(), none))
	}
	row := p.rows[i]
	row.calls++
	if rec.Step != nil {
		row.steps[rec.GetStep()] = true
	}
	return row
}

func (r *tally) addWindow(rec *record.LogCall) {
	r.duration += time.Duration(max(rec.GetEndUnixNanos()-rec.GetStartUnixNanos(), 0))
	for _, name := range summed {
		a, _ := amountOf(rec.GetReadings(), name)
		sum := r.sums[name]
		sum.add(a)
		r.sums[name] = sum
	}
	r.peak.largest(peakOf(rec.GetReadings()))
}

func (r *tally) addFlops(rec *record.LogCall) {
	a, ok := amountOf(rec.GetReadings(), record.FlopsTotal)
	if !ok {
		a = amount{lacking: 1}
	}
	if complete, ok := find(rec.GetReadings(), record.FlopsComplete); ok && !complete.GetBoolean() {
		a.lacking = 1
	}
	if rec.GetFunction() == record.Function_LOG_FLOPS_PER_EPOCH {
		r.epoch.add(a)
	} else {
		r.batch.add(a)
	}
	if m, ok := amountOf(rec.GetReadings(), record.MFU); ok {
		r.mfu.add(m)
	}
}

// totalsOf is the tally of the run's totals.
func totalsOf(rec *record.LogCall) *tally {
	total := newTally("", true)
	for _, name := range summed {
		a, _ := amountOf(rec.GetRunTotals(), name)
		total.sums[name] = a
	}
	total.peak = peakOf(rec.GetRunTotals())
	return total
}

func find(readings []*record.Reading, name string) (*record.Reading, bool) {
	for _, r := range readings {
		if r.GetName() == name {
			return r, true
		}
	}
	return nil, false
}

// amountOf is one reading as an amount. Without a value it counts as a window that lacks it; ok is false then.
func amountOf(readings []*record.Reading, name string) (a amount, ok bool) {
	r, found := find(readings, name)
	if !found {
		return amount{lacking: 1}, false
	}
	switch v := r.GetValue().(type) {
	case *record.Reading_Integer:
		a.value = float64(v.Integer)
	case *record.Reading_Real:
		a.value = v.Real
	default:
		return amount{lacking: 1}, false
	}
	switch r.GetState() {
	case record.State_OK:
		a.measured = 1
	case record.State_INCOMPLETE, record.State_STALE:
		a.measured, a.lacking = 1, 1
	default:
		return amount{lacking: 1}, false
	}
	return a, true
}

// peakOf is the largest memory, a lower bound unless the kernel kept it.
func peakOf(readings []*record.Reading) amount {
	a, ok := amountOf(readings, record.MemoryRSSPeakBytes)
	if !ok {
		return amount{}
	}
	if exact, ok := find(readings, record.MemoryRSSPeakExact); ok && !exact.GetBoolean() {
		a.lacking = 1
	}
	return a
}

// note keeps what is told below the table.
func (r *run) note(rec *record.LogCall) {
	r.windows++
	if rec.GetWindowFirst() {
		r.first++
	}
	if rec.GetWindowGap() {
		r.gaps++
	}
	partial := rec.GetWindowIncomplete()
	reasons := slices.Clone(rec.GetUnavailable())
	for _, reading := range rec.GetReadings() {
		partial = partial || reading.GetState() == record.State_INCOMPLETE
		switch reading.GetState() {
		case record.State_OK, record.State_ABSENT:
		default:
			reasons = append(reasons, reading.GetReason())
		}
		if reading.GetName() == record.SourceDisk || reading.GetName() == record.SourceMemory {
			r.source(reading.GetName(), reading.GetText())
		}
	}
	if partial {
		r.partial++
	}
	slices.Sort(reasons)
	for _, text := range slices.Compact(reasons) {
		r.reason(text)
	}
	for _, e := range rec.GetEvents() {
		if e.GetName() == "dropped_calls" {
			a, _ := amountOf(e.GetAttributes(), "dropped_calls")
			r.dropped += int64(a.value)
		}
	}
}

// reason notes why a window lacks a value.
func (r *run) reason(text string) {
	if text == "" {
		return
	}
	i := slices.IndexFunc(r.reasons, func(known reason) bool { return known.text == text })
	if i < 0 {
		i = len(r.reasons)
		r.reasons = append(r.reasons, reason{text: text})
	}
	r.reasons[i].windows++
}

func (r *run) source(name, source string) {
	if source != "" && !slices.Contains(r.sources[name], source) {
		r.sources[name] = append(r.sources[name], source)
	}
}

// inside returns the logging process around p; nil when p is an outermost one.
func (r *run) inside(p *process) *process {
	for _, e := range p.enclosing {
		if outer := r.byKey[processKey{p.key.bootID, e.GetPid(), e.GetStartTicks()}]; outer != nil {
			return outer
		}
	}
	return nil
}
