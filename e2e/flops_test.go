package e2e

import (
	"bufio"
	"encoding/json"
	"math/big"
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
	out := filepath.Join(dataDir(t), "run")
	cmd := runCommand(out, nil, python(), script(t, "flops_rows.py"), table)
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
	if len(skipped) > 0 || compared["torchvision"] != 17 || compared["layer"] != 7 || compared["language model"] != 6 {
		t.Errorf("want 17, 7 and 6, and none skipped: is %s the Python of make test?", python())
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
