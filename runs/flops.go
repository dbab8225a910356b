package runs

import (
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs/state"
)

const (
	// maxCosts bounds the (function, label, context) sets of one process that have a cumulative value.
	maxCosts = 1024
	// maxEpochSums bounds the (label, context) sets of one process whose batches are added up for its next epoch.
	maxEpochSums = 64
	// maxEpochSignatures is how many signatures of an epoch's batches are kept to tell which epoch they belong to: the full batch
	// and the short last one are two.
	maxEpochSignatures = 8
	// maxUnknownOps bounds the names of operators that a record lists as not counted.
	maxUnknownOps = 64
)

// flopsConvention is on every record of a FLOPs call: half of all tools call a multiply-add one FLOP.
const flopsConvention = "1 multiply-add = 2 FLOP"

// Work is what a batch or an epoch costs; everything in it adds up over batches.
type Work struct {
	// Forward and Backward are model FLOPs, exact; 1 multiply-add = 2. Nil is 0.
	Forward, Backward *big.Int
	// MACs are the multiply-adds of both.
	MACs float64
	// Executed is both and what is computed a second time.
	Executed float64
	// CausalDiscount is the part of both outside causal and windowed masks.
	CausalDiscount float64
	// Elementwise and Transcendentals are estimates of per-element operations, which are not in the others.
	Elementwise, Transcendentals float64
	// Bytes is an estimate of what the operators move.
	Bytes float64
	// Samples of the batches; 0 = not known.
	Samples uint64
	// IdealSeconds is how long the devices of the tree would take at their peak for model FLOPs, IdealExecutedSeconds for
	// everything executed; 0 = not known.
	IdealSeconds, IdealExecutedSeconds float64
}

// FLOPs of forward and backward.
func (w *Work) FLOPs() *big.Int {
	n := new(big.Int)
	for _, part := range []*big.Int{w.Forward, w.Backward} {
		if part != nil {
			n.Add(n, part)
		}
	}
	return n
}

// Cost is what a FLOPs call says about its batch or epoch.
type Cost struct {
	Work
	// Missing says why nothing, or not everything, was counted.
	Missing string
	// Nothing was counted; then Work means nothing.
	Nothing bool
	// Complete: every operator was known and nothing is missing.
	Complete bool
	// UnknownOps are the operators that were not counted, a name each.
	UnknownOps []string
	// Method is how the operations were found; several are joined by "+".
	Method string
	// PeakSource is where the peak in IdealSeconds comes from, NoPeak why there is none.
	PeakSource, NoPeak string
	// Notes on what the count does not say, a sentence each.
	Notes []string
	// Signatures of the batch, or of the epoch's batches; none = they have none.
	Signatures []string
	// Batches of the epoch; 0 = not known, or a batch.
	Batches uint64
	// Details makes the events that say what the number is made of, without a time; nil = nothing is known of it. It is called at
	// most once, and only where they differ from those of the record before.
	Details func() []*record.Event
}

// costKey names the calls that add up.
type costKey struct {
	function   record.Function
	label      string
	context    string
	hasContext bool
}

// spent is what the calls of one key cost so far.
type spent struct {
	flops float64
	// last is when the script made the latest call, wall clock in ns.
	last int64
	// detailed is the signature whose details the latest record with details had.
	detailed string
}

// epochSum is what the batches of one (label, context) set have cost since the epoch before.
type epochSum struct {
	Work
	// batches were counted, at least in part; lost were not, or did not get here.
	batches, lost uint64
	// samplesUnknown and idealUnknown say that one batch did not know its own.
	samplesUnknown, idealUnknown bool
	unknownOps                   []string
	incomplete                   bool
	methods                      []string
	peakSource, noPeak           string
	signatures                   []string
}

// loseBatches says that calls were lost: they may have been batches of any label, also of one whose first batch of the epoch is still
// to come. The caller holds s.mu.
func (s *subject) loseBatches(calls uint64) {
	s.lostBatches += calls
	for _, sum := range s.epochs {
		sum.lost += calls
	}
}

// addCost puts what a FLOPs call costs on its record, with what the calls before it say about it. lag is how long ago the script made
// the call. The caller holds s.mu.
func (s *subject) addCost(rec *record.LogCall, cost *Cost, lag time.Duration) {
	key := costKey{rec.GetFunction(), rec.GetLabel(), rec.GetContext(), rec.Context != nil}
	f := flopsReadings{newReadings(), rec}
	var counted *Work
	switch {
	case key.function == record.Function_LOG_FLOPS_PER_EPOCH:
		counted = f.epoch(s, key, cost)
	default:
		s.addToEpoch(key, cost)
		f.why("flops", cost)
		counted = f.counted(cost)
	}
	if counted != nil {
		f.overTime(s, key, counted, lag)
	}
	f.details(s, key, cost)
	rec.Readings = append(rec.Readings, f.list...)
}

// flopsReadings adds the readings of a FLOPs call to a record.
type flopsReadings struct {
	*readings
	rec *record.LogCall
}

func (f flopsReadings) text(name, value string) {
	if value != "" {
		f.add(name, record.State_OK, record.Source_SOURCE_UNSPECIFIED).Value = &record.Reading_Text{Text: value}
	}
}

func (f flopsReadings) unavailable(format string, arguments ...any) {
	f.rec.Unavailable = append(f.rec.Unavailable, fmt.Sprintf(format, arguments...))
}

// why says what a count does not contain.
func (f flopsReadings) why(name string, cost *Cost) {
	for _, note := range cost.Notes {
		f.unavailable("%s: %s", name, note)
	}
	if cost.Missing != "" {
		f.unavailable("%s: %s", name, cost.Missing)
	}
}

// counted adds the readings of a cost as it came. It returns nil if nothing was counted.
func (f flopsReadings) counted(cost *Cost) *Work {
	f.text(record.FlopsMethod, cost.Method)
	f.coverage(cost.Complete, cost.UnknownOps)
	if cost.Nothing {
		return nil
	}
	f.work(&cost.Work, cost.Complete)
	if cost.NoPeak != "" {
		f.unavailable("mfu: %s", cost.NoPeak)
	}
	f.text(record.FlopsPeakSource, cost.PeakSource)
	return &cost.Work
}

func (f flopsReadings) coverage(complete bool, unknown []string) {
	f.boolean(record.FlopsComplete, complete, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	if more := len(unknown) - maxUnknownOps; more > 0 {
		f.unavailable("flops.unknown_ops: %d more operators were not counted", more)
		unknown = unknown[:maxUnknownOps]
	}
	f.text(record.FlopsUnknownOps, strings.Join(unknown, "\n"))
}

// work adds what was counted. What is not complete is a lower bound.
func (f flopsReadings) work(w *Work, complete bool) {
	state := record.State_OK
	if !complete {
		state = record.State_INCOMPLETE
	}
	flops := w.FLOPs()
	for _, value := range []struct {
		name string
		real float64
	}{
		{record.FlopsTotal, float(flops)},
		{record.FlopsForward, float(w.Forward)},
		{record.FlopsBackward, float(w.Backward)},
		{record.FlopsMACs, w.MACs},
		{record.FlopsExecuted, w.Executed},
		{record.FlopsCausalDiscount, w.CausalDiscount},
		{record.FlopsElementwise, w.Elementwise},
		{record.FlopsTranscendentals, w.Transcendentals},
		{record.FlopsBytes, w.Bytes},
	} {
		f.real(value.name, value.real, state, record.Source_SOURCE_UNSPECIFIED)
	}
	f.text(record.FlopsExact, flops.String())
	f.text(record.FlopsConvention, flopsConvention)
	if w.Samples > 0 {
		f.integer(record.FlopsSamples, w.Samples, state, record.Source_SOURCE_UNSPECIFIED)
	}
}

// float is the nearest double; nil is 0.
func float(n *big.Int) float64 {
	if n == nil {
		return 0
	}
	v, _ := new(big.Float).SetInt(n).Float64()
	return v
}

// overTime adds what needs the calls before this one: sum, rate, utilization.
func (f flopsReadings) overTime(s *subject, key costKey, w *Work, lag time.Duration) {
	set := s.costs[key]
	if set == nil {
		if len(s.costs) >= maxCosts {
			f.unavailable("flops.cumulative, flops.rate, mfu: the process has more than %d pairs of label and context", maxCosts)
			return
		}
		if s.costs == nil {
			s.costs = map[costKey]*spent{}
		}
		set = &spent{}
		s.costs[key] = set
	}
	// Not the window's end: a call that nobody waits for is read a little later, now more, now less.
	end := f.rec.GetEndUnixNanos() - lag.Nanoseconds()
	elapsed, first := time.Duration(end-set.last).Seconds(), set.last == 0
	flops := float(w.FLOPs())
	set.flops += flops
	set.last = max(set.last, end)

	f.real(record.FlopsCumulative, set.flops, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	switch {
	case first:
		f.add(record.FlopsRate, record.State_ABSENT, record.Source_SOURCE_UNSPECIFIED).Reason = "first call of this label and context: no time has passed"
	case elapsed > 0:
		f.real(record.FlopsRate, flops/elapsed, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	}
	if w.IdealSeconds <= 0 {
		return
	}
	f.real(record.FlopsPeak, flops/w.IdealSeconds, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	if first || elapsed <= 0 {
		return
	}
	mfu, hfu := w.IdealSeconds/elapsed, w.IdealExecutedSeconds/elapsed
	f.real(record.MFU, mfu, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	if hfu > 0 {
		f.real(record.HFU, hfu, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
	}
	if most := max(mfu, hfu); most > 1 {
		f.boolean(record.FlopsSuspect, true, record.State_OK, record.Source_SOURCE_UNSPECIFIED)
		f.unavailable("flops.suspect: %.4g %% of the peak: the peak or the count is wrong, or the call was made before the devices were done", 100*most)
	}
}

// details adds the events that say what the number is made of, where the record before did not have the same ones.
func (f flopsReadings) details(s *subject, key costKey, cost *Cost) {
	if cost.Details == nil {
		return
	}
	signature := ""
	if key.function == record.Function_LOG_FLOPS_PER_BATCH && len(cost.Signatures) == 1 {
		signature = cost.Signatures[0]
	}
	if set := s.costs[key]; set != nil {
		if signature != "" && set.detailed == signature {
			return
		}
		set.detailed = signature
	}
	for _, e := range cost.Details() {
		e.TimeUnixNanos = f.rec.GetEndUnixNanos()
		f.rec.Events = append(f.rec.Events, e)
	}
}

// addToEpoch adds a batch to what its label's batches have cost in this epoch.
func (s *subject) addToEpoch(key costKey, cost *Cost) {
	key.function = record.Function_FUNCTION_UNSPECIFIED
	sum := s.epochs[key]
	if sum == nil {
		if len(s.epochs) >= maxEpochSums {
			s.epochsFull = true
			s.lostBatches++
			return
		}
		if s.epochs == nil {
			s.epochs = map[costKey]*epochSum{}
		}
		sum = &epochSum{lost: s.lostBatches}
		s.epochs[key] = sum
	}
	sum.add(cost)
}

func (e *epochSum) add(cost *Cost) {
	e.incomplete = e.incomplete || !cost.Complete
	if cost.Nothing {
		e.lost++
		return
	}
	e.batches++
	w := &cost.Work
	e.Forward, e.Backward = plus(e.Forward, w.Forward), plus(e.Backward, w.Backward)
	e.MACs += w.MACs
	e.Executed += w.Executed
	e.CausalDiscount += w.CausalDiscount
	e.Elementwise += w.Elementwise
	e.Transcendentals += w.Transcendentals
	e.Bytes += w.Bytes
	e.Samples += w.Samples
	e.IdealSeconds += w.IdealSeconds
	e.IdealExecutedSeconds += w.IdealExecutedSeconds
	e.samplesUnknown = e.samplesUnknown || w.Samples == 0
	if w.IdealSeconds == 0 {
		e.idealUnknown, e.noPeak = true, cost.NoPeak
	}
	e.peakSource = cost.PeakSource
	e.unknownOps = appendNew(e.unknownOps, maxUnknownOps, cost.UnknownOps...)
	e.methods = appendNew(e.methods, maxEpochSignatures, cost.Method)
	e.signatures = appendNew(e.signatures, maxEpochSignatures, cost.Signatures...)
}

// plus adds without changing a; nil is 0.
func plus(a, b *big.Int) *big.Int {
	if a == nil {
		a = new(big.Int)
	}
	if b == nil {
		return a
	}
	return new(big.Int).Add(a, b)
}

// appendNew appends what the list does not have, up to a limit.
func appendNew(list []string, limit int, more ...string) []string {
	for _, text := range more {
		if text == "" || len(list) >= limit {
			continue
		}
		known := false
		for _, there := range list {
			known = known || there == text
		}
		if !known {
			list = append(list, text)
		}
	}
	return list
}

// epoch adds the readings of an epoch: what its batches were measured to cost wins over what the loader would give, and both are
// kept. It returns what won; nil = nothing was counted.
func (f flopsReadings) epoch(s *subject, key costKey, cost *Cost) *Work {
	if !cost.Nothing {
		state := record.State_OK
		if !cost.Complete {
			state = record.State_INCOMPLETE
		}
		f.real(record.FlopsApriori, float(cost.FLOPs()), state, record.Source_SOURCE_UNSPECIFIED)
		if cost.Batches > 0 {
			f.integer(record.FlopsAprioriBatches, cost.Batches, state, record.Source_SOURCE_UNSPECIFIED)
		}
	}
	sum, why := s.takeEpoch(key, cost.Signatures)
	if why != "" {
		f.add(record.FlopsMeasured, record.State_ABSENT, record.Source_SOURCE_UNSPECIFIED).Reason = why
	}
	if sum == nil || sum.batches == 0 {
		f.why("flops", cost)
		if sum != nil {
			f.unavailable("flops.measured: none of the %d batches of this epoch was counted", sum.lost)
		}
		if !cost.Nothing {
			f.text(record.FlopsBasis, "apriori")
		}
		return f.counted(cost)
	}
	f.why("flops.apriori", cost)
	f.text(record.FlopsBasis, "measured")
	complete := !sum.incomplete && sum.lost == 0
	state := record.State_OK
	if !complete {
		state = record.State_INCOMPLETE
	}
	f.real(record.FlopsMeasured, float(sum.FLOPs()), state, record.Source_SOURCE_UNSPECIFIED)
	f.integer(record.FlopsMeasuredBatches, sum.batches, state, record.Source_SOURCE_UNSPECIFIED)
	if sum.lost > 0 {
		f.unavailable("flops: %d batches of this epoch were not counted, or dropped by the client (calls of other functions may be among those)", sum.lost)
	}
	f.text(record.FlopsMethod, strings.Join(sum.methods, "+"))
	f.coverage(complete, sum.unknownOps)
	if sum.samplesUnknown {
		sum.Samples = 0
	}
	if sum.idealUnknown {
		sum.IdealSeconds, sum.IdealExecutedSeconds = 0, 0
		if sum.noPeak != "" {
			f.unavailable("mfu: %s", sum.noPeak)
		}
	} else {
		f.text(record.FlopsPeakSource, sum.peakSource)
	}
	f.work(&sum.Work, complete)
	return &sum.Work
}

// takeEpoch finds the batches of an epoch and starts anew for them: those of the epoch's own label; else those of the only label of
// the context; else those of the only label that shares a signature with the epoch. Two models that are trained in turn have
// labels of their own, so where it is not known whose batches they are there is no sum, and why says so.
func (s *subject) takeEpoch(epoch costKey, signatures []string) (sum *epochSum, why string) {
	epoch.function = record.Function_FUNCTION_UNSPECIFIED
	s.lostBatches = 0
	if s.epochsFull {
		why = fmt.Sprintf("the process has batches of more than %d pairs of label and context", maxEpochSums)
	}
	if sum = s.epochs[epoch]; sum != nil {
		delete(s.epochs, epoch)
		return sum, ""
	}
	var labels, shared []costKey
	for key, sum := range s.epochs {
		if key.context != epoch.context || key.hasContext != epoch.hasContext {
			continue
		}
		labels = append(labels, key)
		if overlap(sum.signatures, signatures) {
			shared = append(shared, key)
		}
	}
	switch {
	case len(labels) == 0:
		return nil, why
	case len(shared) == 1:
		labels = shared
	case len(labels) > 1:
		return nil, fmt.Sprintf("batches of %d labels were logged in this context, none of them the epoch's, and it is not known which belong to it: give log_flops_per_batch the epoch's label", len(labels))
	}
	sum = s.epochs[labels[0]]
	delete(s.epochs, labels[0])
	return sum, ""
}

func overlap(a, b []string) bool {
	for _, text := range a {
		for _, other := range b {
			if text == other {
				return true
			}
		}
	}
	return false
}

func (s *subject) packedCosts() []*state.Cost {
	out := make([]*state.Cost, 0, len(s.costs))
	for key, set := range s.costs {
		out = append(out, &state.Cost{
			Function: int32(key.function), Label: key.label, Context: key.context, HasContext: key.hasContext,
			Flops: set.flops, LastUnixNanos: set.last,
		})
	}
	return out
}

func (s *subject) unpackCosts(in []*state.Cost) {
	if len(in) > 0 {
		s.costs = make(map[costKey]*spent, len(in))
	}
	for _, c := range in {
		key := costKey{record.Function(c.GetFunction()), c.GetLabel(), c.GetContext(), c.GetHasContext()}
		s.costs[key] = &spent{flops: c.GetFlops(), last: c.GetLastUnixNanos()}
	}
}

func (s *subject) packedEpochs() []*state.EpochSum {
	out := make([]*state.EpochSum, 0, len(s.epochs))
	for key, sum := range s.epochs {
		out = append(out, &state.EpochSum{
			Label: key.label, Context: key.context, HasContext: key.hasContext,
			Forward: bytesOf(sum.Forward), Backward: bytesOf(sum.Backward),
			Macs: sum.MACs, Executed: sum.Executed, CausalDiscount: sum.CausalDiscount, Elementwise: sum.Elementwise,
			Transcendentals: sum.Transcendentals, Bytes: sum.Bytes, Samples: sum.Samples, IdealSeconds: sum.IdealSeconds,
			IdealExecutedSeconds: sum.IdealExecutedSeconds, Batches: sum.batches, Lost: sum.lost,
			SamplesUnknown: sum.samplesUnknown, IdealUnknown: sum.idealUnknown, UnknownOps: sum.unknownOps,
			Incomplete: sum.incomplete, Methods: sum.methods, PeakSource: sum.peakSource, NoPeak: sum.noPeak,
			Signatures: sum.signatures,
		})
	}
	return out
}

func (s *subject) unpackEpochs(in []*state.EpochSum) {
	if len(in) > 0 {
		s.epochs = make(map[costKey]*epochSum, len(in))
	}
	for _, e := range in {
		key := costKey{label: e.GetLabel(), context: e.GetContext(), hasContext: e.GetHasContext()}
		s.epochs[key] = &epochSum{
			Work: Work{
				Forward: new(big.Int).SetBytes(e.GetForward()), Backward: new(big.Int).SetBytes(e.GetBackward()),
				MACs: e.GetMacs(), Executed: e.GetExecuted(), CausalDiscount: e.GetCausalDiscount(), Elementwise: e.GetElementwise(),
				Transcendentals: e.GetTranscendentals(), Bytes: e.GetBytes(), Samples: e.GetSamples(),
				IdealSeconds: e.GetIdealSeconds(), IdealExecutedSeconds: e.GetIdealExecutedSeconds(),
			},
			batches: e.GetBatches(), lost: e.GetLost(), samplesUnknown: e.GetSamplesUnknown(), idealUnknown: e.GetIdealUnknown(),
			unknownOps: e.GetUnknownOps(), incomplete: e.GetIncomplete(), methods: e.GetMethods(), peakSource: e.GetPeakSource(),
			noPeak: e.GetNoPeak(), signatures: e.GetSignatures(),
		}
	}
}

func bytesOf(n *big.Int) []byte {
	if n == nil {
		return nil
	}
	return n.Bytes()
}
