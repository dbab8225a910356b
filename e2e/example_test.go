package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

func TestExampleTrainsUnderTheAgent(t *testing.T) {
	example, err := filepath.Abs("../examples/train.py")
	if err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dataDir(t), "run")
	j := startRun(t, out, nil, python(), example, "--epochs", "2", "--dir", dataDir(t))
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	onlyOnce(t, spans)
	calls := named(spans, "log_system_metrics")
	contexts := map[any]int{}
	var previous *span
	for i := range calls {
		s := &calls[i]
		contexts[s.Attributes["prov4ml.context"]]++
		if _, ok := s.Attributes["prov4ml.step"].(int64); !ok && s.Attributes["prov4ml.context"] != "preparation" {
			t.Errorf("a span of %v has no step", s.Attributes["prov4ml.context"])
		}
		if previous != nil && s.Start != previous.End {
			t.Errorf("step %v: its window starts %d ns after the end of the one before", s.Attributes["prov4ml.step"], s.Start-previous.End)
		}
		if s.End <= s.Start {
			t.Errorf("window from %d to %d", s.Start, s.End)
		}
		if s.Attributes["prov4ml.source.disk"] != "ebpf" {
			t.Errorf("source.disk is %v", s.Attributes["prov4ml.source.disk"])
		}
		if s.integer(t, "memory.rss_bytes") == 0 || s.integer(t, "memory.rss_peak_bytes") == 0 {
			t.Error("no memory")
		}
		previous = s
	}
	if contexts["training"] == 0 || contexts["validation"] == 0 {
		t.Errorf("contexts %v, want training and validation", contexts)
	}
	for _, name := range []string{"disk.read_bytes", "disk.write_bytes", "disk.dirtied_bytes", "io.read_bytes", "memory.minor_faults"} {
		if sum(t, spans, name) == 0 {
			t.Errorf("%s is 0 over the whole run", name)
		}
	}
	for _, text := range []string{"training", "validation", "traces.jsonl", "records.db"} {
		if !strings.Contains(j.out.String()+j.err.String(), text) {
			t.Errorf("the summary lacks %q", text)
		}
	}
}
