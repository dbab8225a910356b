package runs

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

// What testdata/python/job.py writes.
const mainBytes, workerBytes = 1_000_000, 10_000_000

// TestProcessTrees runs real jobs in each of the ways in which Python makes processes, measured by /proc and by what this node has
// (eBPF, given the right).
func TestProcessTrees(t *testing.T) {
	for name, config := range map[string]process.Config{"procfs": {NoEBPF: "the test asks for procfs"}, "node": {}} {
		t.Run(name, func(t *testing.T) {
			probe, err := process.Open(config)
			if err != nil {
				t.Fatal(err)
			}
			defer probe.Close()
			testProcessTrees(t, probe)
		})
	}
}

func testProcessTrees(t *testing.T, probe process.Probe) {
	python := os.Getenv("PYTHON")
	if python == "" {
		python = "python3"
	}
	torch := exec.Command(python, "-c", "import torch").Run() == nil
	for _, row := range []struct {
		mode    string
		command []string // before the mode; default job.py
		torch   bool
		// mains log twice, the second time after their workers; workers say hello and log once.
		mains, workers int
		// written by all processes, the silent ones included.
		bytes int64
	}{
		{mode: "alone", workers: 1, bytes: workerBytes},
		{mode: "silent", mains: 1, bytes: mainBytes + workerBytes},
		{mode: "fork", mains: 1, workers: 1, bytes: mainBytes + workerBytes},
		{mode: "spawn", mains: 1, workers: 1, bytes: mainBytes + workerBytes},
		{mode: "forkserver", mains: 1, workers: 1, bytes: mainBytes + workerBytes},
		{mode: "child", mains: 1, workers: 1, bytes: mainBytes + workerBytes},
		{mode: "orphan", mains: 1, bytes: mainBytes + workerBytes},
		{mode: "mp.spawn", torch: true, mains: 1, workers: 2, bytes: mainBytes + 2*workerBytes},
		{mode: "torchrun", torch: true, workers: 2, bytes: 2 * workerBytes, command: []string{
			"-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=29512",
		}},
	} {
		t.Run(row.mode, func(t *testing.T) {
			if row.torch && !torch {
				t.Skip("the Python in PYTHON has no torch")
			}
			store := newFakeStore()
			tracker := New(Config{Settle: 200 * time.Millisecond}, probe, host.New(host.Config{}), store, store)
			name, listener := listen(t)
			served := serveLines(t, tracker, listener)

			job, err := filepath.Abs("testdata/python/job.py")
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(python, append(row.command, job, row.mode, name)...)
			cmd.Env = append(os.Environ(), "OMP_NUM_THREADS=1")
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			// A file, for an orphan keeps a pipe open.
			output, err := os.Create(filepath.Join(t.TempDir(), "output"))
			if err != nil {
				t.Fatal(err)
			}
			cmd.Stdout, cmd.Stderr = output, output
			if err := cmd.Run(); err != nil {
				out, _ := os.ReadFile(output.Name())
				t.Fatalf("%v\n%s", err, out)
			}
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // the orphan
			eventually(t, "all runs are closed", func() bool { return tracker.Status().Processes == 0 })
			if err := tracker.Close(context.Background()); err != nil {
				t.Error(err)
			}
			_ = listener.Close()
			served.Wait()
			checkTrees(t, store.all(), row.mains, row.workers, row.bytes)
		})
	}
}

// serveLines answers the job's lines until the listener is closed.
func serveLines(t *testing.T, tracker *Tracker, listener *net.UnixListener) *sync.WaitGroup {
	var served sync.WaitGroup
	serve := func(conn *net.UnixConn) {
		defer conn.Close()
		caller, err := Identify(conn)
		if err != nil {
			t.Error(err)
			return
		}
		lines := bufio.NewScanner(conn)
		for lines.Scan() {
			var line struct {
				Do          string
				Environment map[string]string
			}
			err := json.Unmarshal(lines.Bytes(), &line)
			if err == nil && line.Do == "hello" {
				_, err = tracker.Describe(context.Background(), caller, Description{Script: "job.py", Environment: line.Environment})
			} else if err == nil {
				_, _, err = tracker.Log(caller, Call{Function: record.Function_LOG_SYSTEM_METRICS, Context: pointer("training")})
			}
			answer := "ok\n"
			if err != nil {
				answer = err.Error() + "\n"
			}
			if _, err := conn.Write([]byte(answer)); err != nil {
				return
			}
		}
	}
	served.Go(func() {
		for {
			conn, err := listener.AcceptUnix()
			if err != nil {
				return
			}
			served.Go(func() { serve(conn) })
		}
	})
	return &served
}

func checkTrees(t *testing.T, records []*record.LogCall, mains, workers int, bytes int64) {
	t.Helper()
	// A process writes a little by itself: the lines to the socket, what multiprocessing says through pipes.
	const slack = 200_000
	type story struct {
		process   *record.Process
		calls     int
		ended     bool
		bytes     int64
		enclosing []int32
	}
	stories := map[int32]*story{}
	for _, rec := range records {
		s := stories[rec.GetProcess().GetPid()]
		if s == nil {
			s = &story{process: rec.GetProcess()}
			stories[s.process.GetPid()] = s
		}
		if s.ended {
			t.Errorf("pid %d: a record after its end", s.process.GetPid())
		}
		s.bytes += reading(rec, record.IOWriteBytes).GetInteger()
		if rec.GetFunction() == record.Function_RUN_END {
			s.ended = true
			continue
		}
		s.calls++
		s.enclosing = nil
		for _, key := range rec.GetEnclosing() {
			s.enclosing = append(s.enclosing, key.GetPid())
		}
		if rec.GetWindowFirst() || rec.GetWindowGap() {
			t.Errorf("pid %d: %v", s.process.GetPid(), rec)
		}
	}
	var outermost int64
	var gotMains, gotWorkers int
	runs := map[string]bool{}
	var ranks []int32
	for pid, s := range stories {
		if !s.ended {
			t.Errorf("pid %d has no end", pid)
		}
		if len(s.enclosing) == 0 {
			outermost += s.bytes
		}
		if s.calls == 2 {
			gotMains++
			if len(s.enclosing) > 0 {
				t.Errorf("a main is inside %v", s.enclosing)
			}
			continue
		}
		gotWorkers++
		runs[s.process.GetRunId()] = true
		ranks = append(ranks, s.process.GetRank())
		if s.bytes < workerBytes || s.bytes > workerBytes+slack {
			t.Errorf("a worker wrote %d, counted %d", workerBytes, s.bytes)
		}
		if len(s.enclosing) != mains || mains == 1 && stories[s.enclosing[0]] == nil {
			t.Errorf("a worker is inside %v", s.enclosing)
		}
	}
	if gotMains != mains || gotWorkers != workers {
		t.Errorf("%d mains and %d workers logged, want %d and %d: %s", gotMains, gotWorkers, mains, workers, describeAll(records))
	}
	// Nested trees are in the outer one's values: the outermost ones hold all, once.
	if outermost < bytes || outermost > bytes+slack {
		t.Errorf("the job wrote %d, counted %d", bytes, outermost)
	}
	if workers == 2 {
		slices.Sort(ranks)
		if len(runs) != 1 || mains == 0 && !slices.Equal(ranks, []int32{0, 1}) {
			t.Errorf("two ranks of one run: run ids %v, ranks %v", runs, ranks)
		}
	}
}

func describeAll(records []*record.LogCall) string {
	var all []string
	for _, rec := range records {
		all = append(all, fmt.Sprint(rec.GetProcess().GetPid(), rec.GetFunction()))
	}
	return strings.Join(all, ", ")
}
