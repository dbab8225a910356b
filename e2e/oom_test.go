package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// smallCgroup makes a memory cgroup with a limit, under v1 or v2, and returns its list of processes.
func smallCgroup(t *testing.T, limitBytes int64) (processes string) {
	t.Helper()
	for _, hierarchy := range []struct{ root, limit string }{
		{"/sys/fs/cgroup/memory", "memory.limit_in_bytes"}, {"/sys/fs/cgroup", "memory.max"},
	} {
		dir := filepath.Join(hierarchy.root, "prov4ml-e2e-"+strconv.Itoa(os.Getpid()))
		if os.Mkdir(dir, 0o755) != nil {
			continue
		}
		t.Cleanup(func() {
			for range 100 { // processes that have exited leave with a delay
				if os.Remove(dir) == nil {
					return
				}
				time.Sleep(10 * time.Millisecond)
			}
			t.Errorf("%s stays", dir)
		})
		if os.WriteFile(filepath.Join(dir, hierarchy.limit), []byte(strconv.FormatInt(limitBytes, 10)), 0) == nil {
			return filepath.Join(dir, "cgroup.procs")
		}
	}
	t.Fatal("no memory cgroups")
	return ""
}

func TestTheSpanTellsOfAKillForWantOfMemory(t *testing.T) {
	processes := smallCgroup(t, 64*mib)
	out := filepath.Join(dataDir(t), "run")
	j := startRun(t, out, nil, python(), script(t, "oom.py"), processes, strconv.Itoa(200*mib))
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	var child, signal int64
	if _, err := fmt.Sscanf(j.out.String(), "child %d signal %d", &child, &signal); err != nil || signal != 9 {
		t.Fatalf("the child was not killed: %q, %v", j.out.String(), err)
	}
	file := filepath.Join(out, "traces.jsonl")
	spans := readSpans(t, file)
	if events := atStep(t, spans, 1).Events; len(events) != 0 {
		t.Errorf("step 1 has events %v", events)
	}
	events := atStep(t, spans, 2).Events
	if len(events) != 1 || events[0].Name != "prov4ml.oom_kill" {
		t.Fatalf("step 2 has events %v", events)
	}
	for name, want := range map[string]any{
		"prov4ml.oom.pid": child, "prov4ml.oom.cgroup.limit_bytes": int64(64 * mib),
		"prov4ml.oom.cgroup.path": "/" + filepath.Base(filepath.Dir(processes)),
	} {
		if got := events[0].Attributes[name]; got != want {
			t.Errorf("%s is %v, want %v", name, got, want)
		}
	}
	if name, _ := events[0].Attributes["prov4ml.oom.process_name"].(string); !strings.HasPrefix(name, "python") {
		t.Errorf("process %q", name)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("the kernel killed process %d", child); !strings.Contains(string(text), want) || strings.Count(string(text), `"code":2`) != 1 {
		t.Errorf("not exactly one span has the status error with %q", want)
	}
}
