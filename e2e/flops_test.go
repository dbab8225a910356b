package e2e

import (
	"bufio"
	"encoding/json"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// flopsRow is a line of flops_rows.py: what a model costs.
type flopsRow struct {
	Group, Name, Forward, Backward, Skipped string
}

// TestFlopsAreExactThroughTheWholePath logs the models of one table from a Python process and compares, to the integer, what
// stands on the spans.
func TestFlopsAreExactThroughTheWholePath(t *testing.T) {
	table, err := filepath.Abs("../client/python/tests/flops")
	if err != nil {
		t.Fatal(err)
	}
	// Another torch than the pinned one may lack some: FLOPS_ROWS names the groups to compare.
	groups := []string{"torchvision", "layer", "language model"}
	if some := os.Getenv("FLOPS_ROWS"); some != "" {
		groups = strings.Split(some, ",")
	}
	out := filepath.Join(dataDir(t), "run")
	cmd := runCommand(out, nil, append([]string{python(), script(t, "flops_rows.py"), table}, groups...)...)
	cmd.Env = append(cmd.Env, "PROV4ML_EXIT_SECONDS=600", "OMP_NUM_THREADS=1")
	j := startJob(t, cmd)
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}

	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	onlyOnce(t, spans)
	calls := map[[2]any]span{}
	for _, s := range named(spans, "log_flops_per_batch") {
		key := [2]any{s.Attributes["prov4ml.label"], s.Attributes["prov4ml.context"]}
		if _, twice := calls[key]; twice {
			t.Errorf("%v has two spans", key)
		}
		calls[key] = s
	}

	compared, skipped := map[string]int{}, []string{}
	lines := bufio.NewScanner(strings.NewReader(j.out.String()))
	for lines.Scan() {
		if !strings.HasPrefix(lines.Text(), "{") {
			continue
		}
		var row flopsRow
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			t.Fatal(err)
		}
		if row.Skipped != "" {
			skipped = append(skipped, row.Name+": "+row.Skipped)
			continue
		}
		row.compare(t, calls[[2]any{row.Name, "training"}], row.Backward)
		row.compare(t, calls[[2]any{row.Name, "evaluation"}], "0")
		compared[row.Group]++
	}
	t.Logf("%d torchvision models, %d layers, %d language models, in training and in evaluation; rows skipped: %q",
		compared["torchvision"], compared["layer"], compared["language model"], skipped)
	for _, group := range groups {
		if want := map[string]int{"torchvision": 17, "layer": 7, "language model": 6}[group]; want == 0 || compared[group] != want {
			t.Errorf("%s: %d rows compared, want %d", group, compared[group], want)
		}
	}
	if len(skipped) > 0 {
		t.Errorf("skipped: %q: is %s the Python of make test?", skipped, python())
	}
}

// compare says where the span of a row differs from it.
func (r flopsRow) compare(t *testing.T, s span, backward string) {
	t.Helper()
	if s.Name == "" {
		t.Errorf("%s %s has no span", r.Group, r.Name)
		return
	}
	n := func(text string) *big.Int {
		n, ok := new(big.Int).SetString(text, 10)
		if !ok {
			t.Fatalf("%s: %q is no integer", r.Name, text)
		}
		return n
	}
	total := new(big.Int).Add(n(r.Forward), n(backward))
	f, _ := new(big.Float).SetInt(n(r.Forward)).Float64()
	b, _ := new(big.Float).SetInt(n(backward)).Float64()
	for name, want := range map[string]any{
		"flops.exact": total.String(), "flops.forward": f, "flops.backward": b, "flops": f + b, "flops.complete": true,
	} {
		if got := s.Attributes["prov4ml."+name]; got != want {
			t.Errorf("%s %s, %v: %s is %v, want %v (unavailable: %v)", r.Group, r.Name, s.Attributes["prov4ml.context"], name, got, want,
				s.Attributes["prov4ml.unavailable"])
		}
	}
}

// TestEpochsAreMeasuredAndKnownBefore trains two epochs of which the second ends early.
func TestEpochsAreMeasuredAndKnownBefore(t *testing.T) {
	out := filepath.Join(dataDir(t), "run")
	// A device that does one FLOP a second is slower than any computer: the utilization cannot be true.
	j := startRun(t, out, []string{"--peak-flops", "fp32=1"}, python(), script(t, "flops_epochs.py"))
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	onlyOnce(t, spans)

	// Per sample: both layers forward; backward the first one's weight, the second one's weight and input.
	const perSample = 2*(8*16+16*4) + 2*(8*16+2*16*4)
	batches := named(spans, "log_flops_per_batch")
	if len(batches) != 5 {
		t.Fatalf("%d batches, want 5", len(batches))
	}
	cumulative := 0.0
	for i, samples := range []int64{4, 4, 2, 4, 4} {
		s := batches[i]
		cumulative += float64(perSample * samples)
		for name, want := range map[string]any{
			"flops": float64(perSample * samples), "flops.samples": samples, "flops.cumulative": cumulative, "flops.executed": float64(perSample * samples),
			"flops.macs": float64(perSample*samples) / 2, "flops.convention": "1 multiply-add = 2 FLOP", "flops.causal_discount": 0.0,
		} {
			if got := s.Attributes["prov4ml."+name]; got != want {
				t.Errorf("batch %d: %s is %v, want %v", i, name, got, want)
			}
		}
		// The first of a shape, and where the shape changes: 4, then 2, then 4 again.
		if got, want := len(s.Events) > 0, i == 0 || i == 2 || i == 3; got != want {
			t.Errorf("batch %d: %d events", i, len(s.Events))
		}
		if _, suspect := s.Attributes["prov4ml.flops.suspect"]; suspect != (i > 0) {
			t.Errorf("batch %d: mfu %v, suspect %v", i, s.Attributes["prov4ml.mfu"], suspect)
		}
	}
	operators, modules := map[any]float64{}, map[any]float64{}
	for _, e := range batches[0].Events {
		flops := func() float64 {
			return e.Attributes["prov4ml.flops.forward"].(float64) + e.Attributes["prov4ml.flops.backward"].(float64)
		}
		switch e.Name {
		case "prov4ml.flops.operator":
			operators[e.Attributes["prov4ml.flops.operator"]] += flops()
		case "prov4ml.flops.module":
			modules[e.Attributes["prov4ml.flops.module"]] += flops()
		}
	}
	if len(operators) != 1 || operators["aten.addmm"]+operators["aten.linear"] != 4*perSample {
		t.Errorf("operators %v", operators)
	}
	if len(modules) != 2 || modules["0"] != 4*2*(2*8*16) || modules["2"] != 4*3*(2*16*4) {
		t.Errorf("modules %v", modules)
	}

	epochs := named(spans, "log_flops_per_epoch")
	if len(epochs) != 2 {
		t.Fatalf("%d epochs, want 2", len(epochs))
	}
	for i, row := range []struct {
		samples, batches int64
	}{{10, 3}, {8, 2}} {
		for name, want := range map[string]any{
			"flops": float64(perSample * row.samples), "flops.basis": "measured", "flops.measured": float64(perSample * row.samples),
			"flops.measured_batches": row.batches, "flops.apriori": float64(perSample * 10), "flops.apriori_batches": int64(3),
			"flops.samples": row.samples, "flops.complete": true,
		} {
			if got := epochs[i].Attributes["prov4ml."+name]; got != want {
				t.Errorf("epoch %d: %s is %v, want %v", i, name, got, want)
			}
		}
	}
	for _, p := range readPoints(t, filepath.Join(out, "metrics.jsonl")) {
		if p.Metric == "prov4ml.model.flops" && p.Attributes["prov4ml.flops.scope"] == "epoch" && p.Value > perSample*18 {
			t.Errorf("an epoch's running total is %v", p.Value)
		}
	}
}
