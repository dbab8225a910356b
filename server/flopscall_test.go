package server

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protojson"

	prov4mlv1 "github.com/prov4ml/agent/api/prov4ml/v1"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
)

// costOf sends a message and returns what the tracker got.
func costOf(t *testing.T, r *running, function string, body string) *runs.Cost {
	t.Helper()
	if a := r.post(function, body); a.status != 200 {
		t.Fatalf("%s: %d %s", function, a.status, a.raw)
	}
	calls := r.tracker.taken()
	return calls[len(calls)-1].call.Cost
}

func batchBody(t *testing.T, label string, list *prov4mlv1.OperatorList) string {
	t.Helper()
	operators, err := protojson.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf(`{"label":%q,"operators":%s}`, label, operators)
}

func override(t *testing.T, text string) func(*Config) {
	t.Helper()
	peak, err := flops.ParseOverride(text)
	if err != nil {
		t.Fatal(err)
	}
	return func(c *Config) { c.PeakOverride = peak }
}

func TestBatchReachesTheTracker(t *testing.T) {
	r := start(t, &fakeTracker{}, override(t, "bf16=64e3"))
	for _, body := range []string{batchBody(t, "l", linearList("s", 32)), `{"label":"l","signature":"s"}`} {
		cost := costOf(t, r, "LogFlopsPerBatch", body)
		if cost.Forward.String() != "64000" || cost.Backward.String() != "64000" || cost.MACs != 64000 || cost.Executed != 128000 ||
			cost.Samples != 32 || !cost.Complete || cost.Nothing || cost.Method != "meta" || cost.IdealSeconds != 2 || cost.IdealExecutedSeconds != 2 ||
			cost.PeakSource != "override" || cost.NoPeak != "" || len(cost.Signatures) != 1 || cost.Signatures[0] != "s" || cost.Batches != 0 {
			t.Errorf("%s: %+v", body, cost)
		}
	}
	if call := r.tracker.taken()[0].call; call.Label != "l" || call.Function != record.Function_LOG_FLOPS_PER_BATCH {
		t.Errorf("%+v", call)
	}
}

func TestEpochReachesTheTracker(t *testing.T) {
	r := start(t, &fakeTracker{})
	costOf(t, r, "LogFlopsPerBatch", batchBody(t, "l", linearList("full", 32)))
	short, err := protojson.Marshal(linearList("short", 7))
	if err != nil {
		t.Fatal(err)
	}
	cost := costOf(t, r, "LogFlopsPerEpoch", fmt.Sprintf(
		`{"label":"e","operators":[%s],"batches":[{"signature":"full","batches":"10"},{"signature":"short","batches":1}]}`, short))
	if cost.Forward.String() != "654000" || cost.Batches != 11 || cost.Samples != 327 || strings.Join(cost.Signatures, " ") != "full short" || !cost.Complete {
		t.Errorf("%+v", cost)
	}
	if !strings.Contains(cost.NoPeak, "--peak-flops") {
		t.Errorf("no peak: %q", cost.NoPeak)
	}
	// A number of batches that no loader has is no overflow.
	most := costOf(t, r, "LogFlopsPerEpoch", fmt.Sprintf(
		`{"label":"e","batches":[{"signature":"full","batches":"%d"},{"signature":"full","batches":"%d"}]}`, uint64(math.MaxUint64), uint64(math.MaxUint64)))
	if most.Batches != 0 || most.Samples != math.MaxInt64 || most.Forward.String() != "2361183241434822606720000" {
		t.Errorf("%+v", most)
	}
	missing := costOf(t, r, "LogFlopsPerEpoch", `{"label":"e","incompleteReason":"IterableDataset has no length"}`)
	if !missing.Nothing || missing.Missing != "IterableDataset has no length" || missing.Complete || missing.Details != nil {
		t.Errorf("%+v", missing)
	}
}

func TestPeakOfAnUnknownTypeIsNone(t *testing.T) {
	r := start(t, &fakeTracker{}, override(t, "fp32=1e12"))
	cost := costOf(t, r, "LogFlopsPerBatch", batchBody(t, "l", linearList("s", 32)))
	if cost.IdealSeconds != 0 || !strings.Contains(cost.NoPeak, "bfloat16") {
		t.Errorf("%+v", cost)
	}
}

// find returns the events of a name.
func find(events []*record.Event, name string) (some []*record.Event) {
	for _, e := range events {
		if e.GetName() == name {
			some = append(some, e)
		}
	}
	return some
}

func value(e *record.Event, name string) *record.Reading {
	for _, r := range e.GetAttributes() {
		if r.GetName() == name {
			return r
		}
	}
	return nil
}

func TestEventsSayWhatTheNumberIsMadeOf(t *testing.T) {
	list := linearList("s", 32)
	layer := list.Operators[0]
	for i := range 40 {
		list.Operators = append(list.Operators,
			&prov4mlv1.Operator{Name: "aten.addmm", Module: fmt.Sprintf("layers.%d", i), Inputs: layer.GetInputs()},
			&prov4mlv1.Operator{Name: fmt.Sprintf("my.op%02d", i), Module: "my", Count: 3},
		)
	}
	list.Operators = append(list.Operators, &prov4mlv1.Operator{Name: "aten.addmm", Inputs: layer.GetInputs(), Count: 2})
	r := start(t, &fakeTracker{})
	cost := costOf(t, r, "LogFlopsPerBatch", batchBody(t, "l", list))
	if cost.Complete || len(cost.UnknownOps) != 40 {
		t.Errorf("%+v", cost)
	}
	events := cost.Details()
	operators, modules, dtypes := find(events, record.EventFlopsOperator), find(events, record.EventFlopsModule), find(events, record.EventFlopsDType)
	unknown, coverage := find(events, record.EventFlopsUnknown), find(events, record.EventFlopsCoverage)
	if len(operators) != 1 || len(modules) != maxTopGroups || len(dtypes) != 1 || len(unknown) != maxUnknownEvents || len(coverage) != 1 {
		t.Fatalf("%d operators, %d modules, %d types, %d unknown, %d coverage", len(operators), len(modules), len(dtypes), len(unknown), len(coverage))
	}
	addmm := operators[0]
	if value(addmm, record.EventOperator).GetText() != "aten.addmm" || value(addmm, record.EventCount).GetInteger() != 43 ||
		value(addmm, record.FlopsForward).GetReal() != 43*64000 || value(addmm, record.FlopsBackward).GetReal() != 43*64000 || value(addmm, record.EventShare).GetReal() != 1 {
		t.Errorf("%v", addmm)
	}
	root := modules[0]
	if value(root, record.EventModule).GetText() != rootModule || value(root, record.EventCount).GetInteger() != 2 || value(root, record.EventShare).GetReal() != 2.0/43 {
		t.Errorf("%v", root)
	}
	if value(dtypes[0], record.EventDType).GetText() != "bfloat16" {
		t.Errorf("%v", dtypes[0])
	}
	if value(unknown[0], record.EventOperator).GetText() != "my.op00" || value(unknown[0], record.EventReason).GetText() != "no formula" || value(unknown[0], record.EventCount).GetInteger() != 3 {
		t.Errorf("%v", unknown[0])
	}
	if value(coverage[0], record.EventOpsExact).GetInteger() != 43 || value(coverage[0], record.EventOpsUnknown).GetInteger() != 120 {
		t.Errorf("%v", coverage[0])
	}
}

func TestEventsLeaveOutWhatCostsNothing(t *testing.T) {
	r := start(t, &fakeTracker{})
	list := linearList("s", 32)
	list.Operators = append(list.Operators, &prov4mlv1.Operator{
		Name: "aten.relu", Module: "act", Inputs: []*prov4mlv1.Tensor{{Dims: []int64{32, 10}, Dtype: "float32"}},
		Outputs: []*prov4mlv1.Tensor{{Dims: []int64{32, 10}, Dtype: "float32"}},
	})
	cost := costOf(t, r, "LogFlopsPerBatch", batchBody(t, "l", list))
	if cost.Elementwise == 0 {
		t.Errorf("%+v", cost)
	}
	for _, e := range cost.Details() {
		if share := value(e, record.EventShare); share != nil && share.GetReal() == 0 {
			t.Errorf("%v", e)
		}
	}
}
