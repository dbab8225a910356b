package server

import (
	"bufio"
	"context"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
	"github.com/prov4ml/agent/store"
)

// startReal runs a server on the true tracker, measuring by procfs, and the true store.
func startReal(t testing.TB, change ...func(*Config)) (*running, *store.Store) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{Path: filepath.Join(t.TempDir(), "records.db")})
	if err != nil {
		t.Fatal(err)
	}
	probe := process.NewProcfs(process.ProcfsConfig{})
	tracker := runs.New(runs.Config{Settle: -1}, probe, host.New(host.Config{}), st, st)
	t.Cleanup(func() {
		if err := errors.Join(tracker.Close(context.Background()), probe.Close(), st.Close()); err != nil {
			t.Error(err)
		}
	})
	return start(t, tracker, change...), st
}

// stored returns the log calls in the store.
func stored(t *testing.T, st *store.Store) (calls []*record.LogCall) {
	t.Helper()
	for s, err := range st.Records(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Record.GetFunction() == record.Function_LOG_SYSTEM_METRICS {
			calls = append(calls, s.Record)
		}
	}
	return calls
}

// The curl line ends as a record of the shell, in the store by the time of the answer.
func TestRealParent(t *testing.T) {
	r, st := startReal(t)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), clientModeEnv+"=parent", clientSocketEnv+"="+r.path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	calls := stored(t, st)
	if len(calls) != 1 {
		t.Fatalf("%d records", len(calls))
	}
	if got := calls[0]; int(got.GetProcess().GetPid()) != os.Getpid() || got.GetContext() != "training" || got.GetStep() != 3 || len(got.GetReadings()) == 0 {
		t.Errorf("record %v", got)
	}
}

// A hundred asynchronous calls and a SIGKILL leave a hundred records, in order, with windows that touch.
func TestRealKilledClient(t *testing.T) {
	for _, mode := range []string{"connect", "grpc"} {
		t.Run(mode, func(t *testing.T) {
			r, st := startReal(t)
			cmd := exec.Command(os.Args[0])
			cmd.Env = append(os.Environ(), clientModeEnv+"="+mode, clientSocketEnv+"="+r.path)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if line, err := bufio.NewReader(out).ReadString('\n'); line != "written\n" {
				t.Fatalf("the client says %q, %v", line, err)
			}
			if err := cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			_ = cmd.Wait()
			eventually(t, "every call is stored", func() bool { return len(stored(t, st)) == killedCalls })
			var end int64
			for i, call := range stored(t, st) {
				if call.GetStep() != int64(i) || call.GetSeq() != uint64(i) || i > 0 && call.GetStartUnixNanos() != end {
					t.Fatalf("record %d is step %d, seq %d, from %d, after %d", i, call.GetStep(), call.GetSeq(), call.GetStartUnixNanos(), end)
				}
				end = call.GetEndUnixNanos()
			}
		})
	}
}

// Hello, a call, the end: each by its own connection.
func TestRealRun(t *testing.T) {
	r, st := startReal(t)
	hello := r.post("DescribeRun", `{"name":"digits","environment":{"RANK":"3"},"script":"train.py"}`)
	if hello.status != http.StatusOK || hello.text("runId") == "" {
		t.Fatalf("%d %s", hello.status, hello.raw)
	}
	if a := r.post("LogSystemMetrics", `{"context":"TRAINING","step":1}`); a.status != http.StatusOK {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	if a := r.post("DescribeRun", `{"end":true}`); a.status != http.StatusOK || a.text("runId") != hello.text("runId") {
		t.Fatalf("%d %s", a.status, a.raw)
	}
	calls := stored(t, st)
	if len(calls) != 1 {
		t.Fatalf("%d records", len(calls))
	}
	if p := calls[0].GetProcess(); p.GetRunId() != hello.text("runId") || p.GetRank() != 3 || p.GetServiceName() != "digits" || calls[0].GetWindowFirst() {
		t.Errorf("record %v", calls[0])
	}
	if a := r.post("GetStatus", `{}`); a.status != http.StatusOK || len(a.body["probes"].([]any)) == 0 {
		t.Errorf("%d %s", a.status, a.raw)
	}
}
