package runs

import (
	"context"
	"fmt"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/prov4ml/agent/record"
)

// batchCost is a batch of a signature that costs 10 forward, 20 backward per unit.
func batchCost(units int64, signature string) *Cost {
	return &Cost{
		Work: Work{
			Forward: big.NewInt(10 * units), Backward: big.NewInt(20 * units), MACs: float64(15 * units), Executed: float64(33 * units),
			CausalDiscount: float64(units), Elementwise: float64(2 * units), Transcendentals: float64(3 * units), Bytes: float64(4 * units),
			Samples: uint64(units), IdealSeconds: float64(units) / 10, IdealExecutedSeconds: float64(units) * 33 / 300,
		},
		Complete: true, Method: "meta", Signatures: []string{signature}, PeakSource: "override",
		Details: func() []*record.Event { return []*record.Event{{Name: record.EventFlopsOperator}} },
	}
}

func (b *bench) batch(t *testing.T, c Caller, context, label string, cost *Cost) *record.LogCall {
	t.Helper()
	return b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_BATCH, Context: &context, Label: label, Cost: cost})
}

func (b *bench) epoch(t *testing.T, c Caller, context, label string, cost *Cost) *record.LogCall {
	t.Helper()
	return b.call(t, c, Call{Function: record.Function_LOG_FLOPS_PER_EPOCH, Context: &context, Label: label, Cost: cost})
}

func real(rec *record.LogCall, name string) float64 { return reading(rec, name).GetReal() }

func text(rec *record.LogCall, name string) string { return reading(rec, name).GetText() }

func says(rec *record.LogCall, sentence string) bool {
	return strings.Contains(strings.Join(rec.GetUnavailable(), "\n"), sentence)
}

// A rate is over the time between two calls of the script, however late either was read.
func TestRateIsOverTheScriptsTime(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	context := "training"
	var last *record.LogCall
	for _, lag := range []time.Duration{0, 900 * time.Millisecond, 5 * time.Millisecond} {
		b.clock.add(2*time.Second + lag)
		last = b.call(t, c, Call{
			Function: record.Function_LOG_FLOPS_PER_BATCH, Context: &context, Label: "f", Cost: batchCost(2, "a"), Lag: lag,
		})
		b.clock.add(-lag)
		if want := lag >= 10*time.Millisecond; (last.GetLagSeconds() > 0) != want {
			t.Errorf("a lag of %v: %v s on the record", lag, last.GetLagSeconds())
		}
	}
	if got := real(last, record.FlopsRate); got != 30 {
		t.Errorf("%v FLOP/s, want 30", got)
	}
}

func TestBatchReadings(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	first := b.batch(t, c, "training", "f", batchCost(2, "a"))
	for name, want := range map[string]float64{
		record.FlopsTotal: 60, record.FlopsForward: 20, record.FlopsBackward: 40, record.FlopsMACs: 30, record.FlopsExecuted: 66,
		record.FlopsCausalDiscount: 2, record.FlopsElementwise: 4, record.FlopsTranscendentals: 6, record.FlopsBytes: 8,
		record.FlopsCumulative: 60, record.FlopsPeak: 300,
	} {
		if r := reading(first, name); r.GetReal() != want || r.GetState() != record.State_OK {
			t.Errorf("%s: %v, want %v", name, r, want)
		}
	}
	if text(first, record.FlopsExact) != "60" || text(first, record.FlopsMethod) != "meta" || text(first, record.FlopsPeakSource) != "override" ||
		text(first, record.FlopsConvention) == "" || reading(first, record.FlopsSamples).GetInteger() != 2 || !reading(first, record.FlopsComplete).GetBoolean() {
		t.Errorf("%v", first)
	}
	for _, name := range []string{record.FlopsRate, record.MFU, record.HFU, record.FlopsSuspect, record.FlopsBasis, record.FlopsMeasured, record.FlopsUnknownOps} {
		if r := reading(first, name); r.GetValue() != nil {
			t.Errorf("the first call has %v", r)
		}
	}
	b.clock.add(4 * time.Second)
	second := b.batch(t, c, "training", "f", batchCost(2, "a"))
	if real(second, record.FlopsCumulative) != 120 || real(second, record.FlopsRate) != 15 || real(second, record.MFU) != 0.05 || real(second, record.HFU) != 0.055 {
		t.Errorf("%v", second)
	}
	// Another label or context has sums and times of its own.
	for _, other := range []*record.LogCall{b.batch(t, c, "training", "g", batchCost(1, "a")), b.batch(t, c, "validation", "f", batchCost(1, "a"))} {
		if real(other, record.FlopsCumulative) != 30 || reading(other, record.FlopsRate).GetState() != record.State_ABSENT {
			t.Errorf("%v", other)
		}
	}
}

func TestMoreThanThePeakIsSuspect(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.batch(t, c, "training", "f", batchCost(20, "a"))
	for _, row := range []struct {
		elapsed time.Duration
		suspect bool
	}{{3 * time.Second, false}, {2100 * time.Millisecond, true}, {time.Second, true}} {
		b.clock.add(row.elapsed)
		rec := b.batch(t, c, "training", "f", batchCost(20, "a"))
		if r := reading(rec, record.FlopsSuspect); r.GetBoolean() != row.suspect || says(rec, "flops.suspect") != row.suspect {
			t.Errorf("after %v: %v, %q", row.elapsed, r, rec.GetUnavailable())
		}
	}
}

func TestDetailsWhereTheyChange(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	for i, row := range []struct {
		signature string
		events    int
	}{{"a", 1}, {"a", 0}, {"b", 1}, {"a", 1}, {"a", 0}, {"", 1}, {"", 1}} {
		cost := batchCost(1, row.signature)
		rec := b.batch(t, c, "training", "f", cost)
		if got := len(rec.GetEvents()); got != row.events {
			t.Errorf("call %d: %d events, want %d", i, got, row.events)
		}
		for _, e := range rec.GetEvents() {
			if e.GetTimeUnixNanos() != rec.GetEndUnixNanos() {
				t.Errorf("call %d: %v", i, e)
			}
		}
	}
	for range 2 {
		if rec := b.epoch(t, c, "training", "f", batchCost(1, "a")); len(rec.GetEvents()) != 1 {
			t.Errorf("epoch: %v", rec.GetEvents())
		}
	}
}

func TestNothingCounted(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	rec := b.batch(t, c, "training", "f", &Cost{Nothing: true, Missing: "no such kernel", Method: "meta", Notes: []string{"a note"}})
	for _, name := range []string{record.FlopsTotal, record.FlopsExact, record.FlopsCumulative, record.FlopsRate} {
		if r := reading(rec, name); r != nil {
			t.Errorf("unknown became %v", r)
		}
	}
	if reading(rec, record.FlopsComplete).GetBoolean() || !says(rec, "flops: no such kernel") || !says(rec, "flops: a note") {
		t.Errorf("%v", rec)
	}
}

func TestUnknownOperatorsAreBounded(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	cost := batchCost(1, "a")
	cost.Complete = false
	for i := range maxUnknownOps + 3 {
		cost.UnknownOps = append(cost.UnknownOps, fmt.Sprintf("my.op%d", i))
	}
	rec := b.batch(t, c, "training", "f", cost)
	if names := strings.Split(text(rec, record.FlopsUnknownOps), "\n"); len(names) != maxUnknownOps || !says(rec, "3 more operators") {
		t.Errorf("%d names, %q", len(names), rec.GetUnavailable())
	}
	if r := reading(rec, record.FlopsTotal); r.GetState() != record.State_INCOMPLETE || r.GetReal() != 30 {
		t.Errorf("%v", r)
	}
}

func TestMeasuredEpochWins(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	apriori := func() *Cost {
		cost := batchCost(30, "a")
		cost.Batches, cost.Details = 30, nil
		return cost
	}
	// Batches of another context are another epoch's.
	b.batch(t, c, "validation", "batches", batchCost(100, "v"))
	for epoch := range 2 {
		b.clock.add(time.Minute)
		for range 3 {
			b.batch(t, c, "training", "batches", batchCost(8, "a"))
		}
		b.batch(t, c, "training", "batches", batchCost(3, "b"))
		rec := b.epoch(t, c, "training", "epochs", apriori())
		if real(rec, record.FlopsTotal) != 810 || real(rec, record.FlopsForward) != 270 || real(rec, record.FlopsBackward) != 540 || text(rec, record.FlopsExact) != "810" {
			t.Errorf("epoch %d: %v", epoch, rec)
		}
		if text(rec, record.FlopsBasis) != "measured" || real(rec, record.FlopsMeasured) != 810 || reading(rec, record.FlopsMeasuredBatches).GetInteger() != 4 ||
			real(rec, record.FlopsApriori) != 900 || reading(rec, record.FlopsAprioriBatches).GetInteger() != 30 {
			t.Errorf("epoch %d: %v", epoch, rec)
		}
		if reading(rec, record.FlopsSamples).GetInteger() != 27 || real(rec, record.FlopsExecuted) != 27*33 || real(rec, record.FlopsCumulative) != float64(810*(epoch+1)) {
			t.Errorf("epoch %d: %v", epoch, rec)
		}
		if mfu := real(rec, record.MFU); epoch == 1 && (mfu < 0.0449 || mfu > 0.0451) { // 2.7 s of 60
			t.Errorf("mfu %v", mfu)
		}
	}
	// An epoch without batches.
	rec := b.epoch(t, c, "training", "epochs", apriori())
	if text(rec, record.FlopsBasis) != "apriori" || real(rec, record.FlopsTotal) != 900 || reading(rec, record.FlopsMeasured) != nil || real(rec, record.FlopsApriori) != 900 {
		t.Errorf("%v", rec)
	}
	if rec := b.epoch(t, c, "validation", "epochs", apriori()); real(rec, record.FlopsMeasured) != 3000 {
		t.Errorf("%v", rec)
	}
}

func TestMeasuredEpochWithoutAnApriori(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.batch(t, c, "training", "f", batchCost(1, "a"))
	rec := b.epoch(t, c, "training", "e", &Cost{Nothing: true, Missing: "IterableDataset has no length"})
	if real(rec, record.FlopsTotal) != 30 || !reading(rec, record.FlopsComplete).GetBoolean() || reading(rec, record.FlopsTotal).GetState() != record.State_OK ||
		reading(rec, record.FlopsApriori) != nil || !says(rec, "flops.apriori: IterableDataset has no length") {
		t.Errorf("%v", rec)
	}
}

func TestMeasuredEpochWithLosses(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	unknown := batchCost(1, "a")
	unknown.Complete, unknown.UnknownOps, unknown.IdealSeconds, unknown.NoPeak, unknown.Samples = false, []string{"my.op"}, 0, "no device", 0
	b.batch(t, c, "training", "f", unknown)
	b.batch(t, c, "training", "f", &Cost{Nothing: true, Missing: "why"})
	b.call(t, c, Call{DroppedCalls: 2})
	b.batch(t, c, "training", "f", batchCost(1, "a"))
	rec := b.epoch(t, c, "training", "e", batchCost(5, "a"))
	if r := reading(rec, record.FlopsMeasured); r.GetReal() != 60 || r.GetState() != record.State_INCOMPLETE || reading(rec, record.FlopsMeasuredBatches).GetInteger() != 2 {
		t.Errorf("%v", r)
	}
	if reading(rec, record.FlopsComplete).GetBoolean() || text(rec, record.FlopsUnknownOps) != "my.op" || !says(rec, "3 batches") || !says(rec, "mfu: no device") {
		t.Errorf("%v", rec)
	}
	if reading(rec, record.FlopsSamples) != nil || reading(rec, record.FlopsPeak) != nil {
		t.Errorf("parts that are not known were added up: %v", rec)
	}
}

// What the client drops before the first batch that gets here is of this epoch as well, and not of the next one.
func TestMeasuredEpochWhoseFirstBatchesWereDropped(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	for _, row := range []struct {
		dropped uint64
		state   record.State
	}{{2, record.State_INCOMPLETE}, {0, record.State_OK}} {
		b.call(t, c, Call{DroppedCalls: row.dropped})
		b.batch(t, c, "training", "f", batchCost(1, "a"))
		rec := b.epoch(t, c, "training", "f", batchCost(3, "a"))
		if r := reading(rec, record.FlopsMeasured); r.GetReal() != 30 || r.GetState() != row.state {
			t.Errorf("%d dropped: %v", row.dropped, r)
		}
		if complete := reading(rec, record.FlopsComplete).GetBoolean(); complete != (row.dropped == 0) {
			t.Errorf("%d dropped: complete %v", row.dropped, complete)
		}
	}
}

// Two models in turn have labels of their own; whose batches an epoch has is told by label, then by signature, or not at all.
func TestEpochsOfSeveralModels(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	log := func() {
		b.batch(t, c, "training", "generator", batchCost(1, "g"))
		b.batch(t, c, "training", "critic", batchCost(5, "c"))
	}
	log()
	for label, want := range map[string]float64{"generator": 30, "critic": 150} {
		if rec := b.epoch(t, c, "training", label, batchCost(9, "other")); real(rec, record.FlopsMeasured) != want {
			t.Errorf("%s: %v", label, rec)
		}
	}
	log()
	for _, row := range []struct {
		signature string
		want      float64
	}{{"c", 150}, {"g", 30}} {
		if rec := b.epoch(t, c, "training", "epoch", batchCost(9, row.signature)); real(rec, record.FlopsMeasured) != row.want {
			t.Errorf("%s: %v", row.signature, rec)
		}
	}
	log()
	rec := b.epoch(t, c, "training", "epoch", batchCost(9, "other"))
	if r := reading(rec, record.FlopsMeasured); r.GetState() != record.State_ABSENT || !strings.Contains(r.GetReason(), "2 labels") || real(rec, record.FlopsTotal) != 270 {
		t.Errorf("%v", rec)
	}
}

func TestEpochSumsAreBounded(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	for i := range maxEpochSums + 1 {
		b.batch(t, c, fmt.Sprint("context", i), "f", batchCost(1, "a"))
	}
	rec := b.epoch(t, c, fmt.Sprint("context", maxEpochSums), "f", batchCost(1, "a"))
	if r := reading(rec, record.FlopsMeasured); r.GetState() != record.State_ABSENT || r.GetReason() == "" {
		t.Errorf("%v", r)
	}
	if rec := b.epoch(t, c, "context0", "f", batchCost(1, "a")); real(rec, record.FlopsMeasured) != 30 {
		t.Errorf("%v", rec)
	}
}

func TestCostsOutliveTheAgent(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	large := batchCost(1, "a")
	large.Forward, _ = new(big.Int).SetString("340282366920938463463374607431768211456", 10)
	b.batch(t, c, "training", "f", large)
	if err := b.Detach(context.Background()); err != nil {
		t.Fatal(err)
	}
	b.probe = newFakeProbe()
	b.open(t)
	b.clock.add(time.Second)
	second := b.batch(t, c, "training", "f", batchCost(1, "a"))
	if real(second, record.FlopsCumulative) <= 3e38 || real(second, record.FlopsRate) != 30 || len(second.GetEvents()) != 1 {
		t.Errorf("%v", second)
	}
	rec := b.epoch(t, c, "training", "e", batchCost(1, "a"))
	if text(rec, record.FlopsExact) != "340282366920938463463374607431768211506" || reading(rec, record.FlopsMeasuredBatches).GetInteger() != 2 ||
		reading(rec, record.FlopsSamples).GetInteger() != 2 || real(rec, record.FlopsBytes) != 8 || text(rec, record.FlopsMethod) != "meta" {
		t.Errorf("%v", rec)
	}
}

func TestAnotherRunBeginsAnotherEpoch(t *testing.T) {
	b := newBench(t)
	c, _ := sleeper(t)
	b.batch(t, c, "training", "f", batchCost(1, "a"))
	b.hello(t, c, Description{End: true})
	b.store.await(t, 2)
	b.batch(t, c, "training", "f", batchCost(2, "a"))
	if rec := b.epoch(t, c, "training", "e", batchCost(9, "a")); real(rec, record.FlopsMeasured) != 60 {
		t.Errorf("%v", rec)
	}
}
