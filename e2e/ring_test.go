package e2e

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// Calls of log_flops_per_batch that wait for nothing go through memory shared with the agent. None is lost when the client is killed,
// each has its own step and the FLOPs of its own shape, and a fork's child logs for itself.
func TestFlopsCallsSurviveTheClientsDeath(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir, "--settle", "1s")
	j := startJob(t, clientCommand(t, s.socket, "flops_killed.py"))
	j.awaitText(t, "called")
	time.Sleep(10 * time.Millisecond)
	// Its client is idle: what is in the ring now is read when the client is gone.
	if err := j.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) >= 1 })
	through, _ := strconv.Atoi(s.counters(t)["calls.ring"])
	s.stop(t)

	steps := map[string]map[int64]bool{"mine": {}, "child": {}, "after": {}}
	pids := map[string]int64{}
	for _, one := range named(readSpans(t, traces), "log_flops_per_batch") {
		label := one.Attributes["prov4ml.label"].(string)
		if label == "first" {
			continue
		}
		step := one.Attributes["prov4ml.step"].(int64)
		if steps[label][step] {
			t.Errorf("%s: step %d is there twice", label, step)
		}
		steps[label][step] = true
		pids[label] = one.Resource["process.pid"].(int64)
		// Linear(8, 4) with a bias: forward, and backward for the weight alone.
		samples := int64(16)
		if step/2%2 == 1 {
			samples = 2
		}
		if got, want := one.Attributes["prov4ml.flops"], float64(2*2*samples*8*4); got != want {
			t.Errorf("%s, step %d: %v FLOP, want %v", label, step, got, want)
		}
	}
	for label, want := range map[string]int{"mine": 300, "child": 10, "after": 5} {
		if len(steps[label]) != want {
			t.Errorf("%s: %d calls in the file, want %d", label, len(steps[label]), want)
		}
	}
	if pids["mine"] != int64(j.Process.Pid) || pids["after"] != pids["mine"] || pids["child"] == pids["mine"] {
		t.Errorf("pids %v, the script's is %d", pids, j.Process.Pid)
	}
	if through < 150 {
		t.Errorf("%d calls came through the ring: it is not used", through)
	}
	t.Logf("%d calls through the ring", through)
}

// The agent is killed and started again in the middle: what it has not read waits for the next one, no call is there twice, and a second
// later the FLOPs are known again.
func TestFlopsCallsOverARestart(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir, "--settle", "1s")
	j := startJob(t, clientCommand(t, s.socket, "flops_restart.py"))
	j.awaitText(t, "under way")
	s.kill(t)
	s.start(t, s.command("--no-pin", "--settle", "1s", "--out", s.out))
	if code := j.exit(t); code != 0 {
		t.Fatalf("the script ended with status %d", code)
	}
	s.stop(t)
	seen := map[int64]bool{}
	unknown, last := 0, 0
	for _, one := range named(readSpans(t, filepath.Join(s.out, "traces.jsonl")), "log_flops_per_batch") {
		if one.Attributes["prov4ml.label"] != "f" {
			continue
		}
		step := one.Attributes["prov4ml.step"].(int64)
		if seen[step] {
			t.Errorf("step %d is there twice", step)
		}
		seen[step] = true
		want := float64(2 * 2 * 16 * 8 * 4)
		if step/10%2 == 1 {
			want /= 8
		}
		switch got := one.Attributes["prov4ml.flops"]; got {
		case want:
		case nil:
			unknown, last = unknown+1, max(last, int(step))
		default:
			t.Errorf("step %d: %v FLOP, want %v", step, got, want)
		}
	}
	if len(seen) < 880 {
		t.Errorf("%d of 900 calls are there", len(seen))
	}
	for step := int64(800); step < 900; step++ {
		if !seen[step] {
			t.Errorf("step %d is missing", step)
		}
	}
	if last >= 800 || unknown > 450 {
		t.Errorf("%d calls have no number, the last of them step %d", unknown, last)
	}
	t.Logf("%d calls, %d without a number, the last step %d", len(seen), unknown, last)
}

// counters asks the agent.
func (s *serve) counters(t *testing.T) map[string]string {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.socket)
		},
	}}
	defer client.CloseIdleConnections()
	answer, err := client.Post("http://agent/prov4ml.v1.AgentService/GetStatus", "application/json", strings.NewReader(`{}`))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	var status struct{ Counters map[string]string }
	if err := json.NewDecoder(answer.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	return status.Counters
}
