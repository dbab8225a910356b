package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestTwoRunsThroughOneServe(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir)
	var jobs []*job
	for _, name := range []string{"one", "two"} {
		data := filepath.Join(dir, name)
		if err := os.Mkdir(data, 0o777); err != nil {
			t.Fatal(err)
		}
		sizes := map[string][]string{"one": {"5", "2"}, "two": {"1", "9"}}[name]
		cmd := clientCommand(t, s.socket, "steps.py", append([]string{data}, sizes...)...)
		cmd.Env = append(cmd.Env, "PROV4ML_RUN_NAME=job-"+name)
		jobs = append(jobs, startJob(t, cmd))
	}
	for _, j := range jobs {
		if code := j.exit(t); code != 0 {
			t.Fatalf("exit status %d", code)
		}
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "both runs' end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 2 })
	s.stop(t)
	byService := map[string][]span{}
	for _, one := range readSpans(t, traces) {
		service := one.Resource["service.name"].(string)
		byService[service] = append(byService[service], one)
	}
	if len(byService) != 2 {
		t.Fatalf("services %v, want job-one and job-two", keys(byService))
	}
	for service, sizes := range map[string][]int64{"job-one": {5, 2}, "job-two": {1, 9}} {
		for i, size := range sizes {
			if got := atStep(t, byService[service], int64(i+1)).integer(t, "disk.write_bytes"); got != size*mib {
				t.Errorf("%s step %d: written %d, want %d", service, i+1, got, size*mib)
			}
		}
		ids := map[any]bool{}
		for _, one := range byService[service] {
			ids[one.Attributes["prov4ml.run.id"]] = true
		}
		if len(ids) != 1 {
			t.Errorf("%s: run ids %v, want one", service, ids)
		}
	}
}

func keys[K comparable, V any](m map[K]V) []K {
	var all []K
	for k := range m {
		all = append(all, k)
	}
	return all
}

// warnings counts the lines in which the client speaks.
func warnings(stderr string) int {
	return len(regexp.MustCompile(`(?m)^.*prov4ml.*(agent|socket).*$`).FindAllString(stderr, -1))
}

// slowest is the longest call that calls.py saw, in seconds.
func slowest(t *testing.T, j *job) float64 {
	t.Helper()
	_, text, found := strings.Cut(j.out.String(), "slowest ")
	if !found {
		t.Fatal("calls.py did not print its slowest call")
	}
	var seconds float64
	if _, err := fmt.Sscan(text, &seconds); err != nil {
		t.Fatal(err)
	}
	return seconds
}

// sameTraining checks that calls.py computed and ended as it does without an agent.
func sameTraining(t *testing.T, j *job, calls int) {
	t.Helper()
	if code := j.exit(t); code != 7 {
		t.Errorf("exit status %d, want the script's own 7", code)
	}
	total := 0
	for step := range calls {
		total = (total*31 + step) % 1_000_003
	}
	if want := fmt.Sprintf("result %d\n", total); !strings.Contains(j.out.String(), want) {
		t.Errorf("output lacks %q", want)
	}
}

func TestTrainingWithoutAgent(t *testing.T) {
	for _, mode := range []string{"sync", "async"} {
		t.Run(mode, func(t *testing.T) {
			j := startJob(t, clientCommand(t, filepath.Join(dataDir(t), "none.sock"), "calls.py", "50", mode, "0.001"))
			sameTraining(t, j, 50)
			if n := warnings(j.err.String()); n != 1 {
				t.Errorf("%d warnings, want 1:\n%s", n, j.err.String())
			}
		})
	}
}

func TestAgentStartedLate(t *testing.T) {
	dir := dataDir(t)
	j := startJob(t, clientCommand(t, filepath.Join(dir, "agent.sock"), "calls.py", "300", "sync", "0.02"))
	j.awaitText(t, "step 10\n")
	s := startServe(t, dir)
	sameTraining(t, j, 300)
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.stop(t)
	atStep(t, readSpans(t, traces), 299)
	if n := warnings(j.err.String()); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, j.err.String())
	}
}

func TestAgentKilledInMidRun(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir)
	j := startJob(t, clientCommand(t, s.socket, "calls.py", "400", "sync", "0.01"))
	j.awaitText(t, "step 50\n")
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.waited
	j.awaitText(t, "step 100\n")
	s = startServe(t, dir)
	sameTraining(t, j, 400)
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) >= 1 })
	s.stop(t)
	spans := readSpans(t, traces)
	atStep(t, spans, 10)
	atStep(t, spans, 399)
	onlyOnce(t, spans)
	if n := warnings(j.err.String()); n > 2 {
		t.Errorf("%d warnings, want at most one when the agent went and one for the stop:\n%s", n, j.err.String())
	}
}

func TestAgentStopped(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir)
	j := startJob(t, clientCommand(t, s.socket, "calls.py", "300", "sync", "0.01"))
	j.awaitText(t, "step 20\n")
	if err := s.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	j.awaitText(t, "step 100\n")
	if err := s.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	sameTraining(t, j, 300)
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.stop(t)
	atStep(t, readSpans(t, traces), 299)
	if took := slowest(t, j); took > 2.5 {
		t.Errorf("a call took %.3f s, want one second at most (and what this machine adds)", took)
	}
	if n := warnings(j.err.String()); n != 1 {
		t.Errorf("%d warnings, want 1:\n%s", n, j.err.String())
	}
}

// onlyOnce checks that no span is in the file twice.
func onlyOnce(t *testing.T, spans []span) {
	t.Helper()
	seen := map[string]bool{}
	for _, s := range spans {
		if id := s.TraceID + s.SpanID; seen[id] {
			t.Errorf("span %s of step %v is there twice", s.Name, s.Attributes["prov4ml.step"])
		} else {
			seen[id] = true
		}
	}
}

func TestServeKilledTwentyTimesUnderLoad(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir)
	acknowledged := make(chan int64, 1<<20)
	stop := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		logUntil(s.socket, stop, acknowledged)
	}()
	for range 20 {
		time.Sleep(150 * time.Millisecond)
		if err := s.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-s.waited
		s = startServe(t, dir)
	}
	close(stop)
	<-done
	close(acknowledged)
	want := map[int64]bool{}
	for step := range acknowledged {
		want[step] = true
	}
	if len(want) < 100 {
		t.Fatalf("only %d calls were acknowledged: no load", len(want))
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	s.stop(t)
	spans := readSpans(t, traces)
	onlyOnce(t, spans)
	for _, one := range named(spans, "log_system_metrics") {
		delete(want, one.Attributes["prov4ml.step"].(int64))
	}
	if len(want) != 0 {
		t.Errorf("%d acknowledged calls are not in the file: steps %v", len(want), keys(want))
	}
	t.Logf("%d spans in the file after twenty kills", len(spans))
}

func TestAsynchronousCallsSurviveTheClientsDeath(t *testing.T) {
	dir := dataDir(t)
	s := startServe(t, dir)
	j := startJob(t, clientCommand(t, s.socket, "killed.py"))
	j.awaitText(t, "called")
	time.Sleep(10 * time.Millisecond)
	if err := j.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.stop(t)
	if got := len(named(readSpans(t, traces), "log_system_metrics")); got != 100 {
		t.Errorf("%d records, want 100", got)
	}
}
