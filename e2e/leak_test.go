package e2e

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	tracepb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	// After each tenth of the storm nothing runs, and what the agent holds must be what it held after the first.
	leakStages = 10
	// As leak_forks.py has it.
	forksPerRun = 500
	// How much more the Go heap may hold live, and how much more memory may be resident, in the last three tenths than in the second
	// to fourth. Both wander by what a collection happens to find in flight. Six tenths of the events lie between the two: of a million
	// 16 bytes lost with each fork, or with each call, are 9 MiB.
	leakLiveMiB, leakResidentMiB = 4, 16
	// Anonymous memory at any time. The budget of 50 MiB is for 64 processes that log once a second. Here the batches of both exports
	// are always full, and the runtime lets the heap grow to twice what is live in them.
	leakMostResidentMiB = 256
	// The runtime makes another thread when all are in system calls at once and never ends one: their number is a high-water mark.
	leakThreads = 4
	// What the state directory may hold beyond --max-bytes: the database's log, and what is written between two looks at the size.
	leakStateMiB = 128
	// Descriptors that come and go by themselves: connections to the database, and two files of its cgroup for each process that has
	// logged, which the garbage collector closes some time after its end: not later than within a tenth of the storm.
	leakLooseDescriptors = 48
	// Of a process that has ended the map of its tree has an entry until the kernel frees it; of one in some hundred in a storm until
	// the tree is next read.
	leakUntoldEnds = 400
)

// TestNothingLeaks forks PROV4ML_TEST_EVENTS times in a tracked tree and logs as often, and looks ten times at what the agent holds:
// entries of its maps, descriptors, threads, heap, memory, files.
func TestNothingLeaks(t *testing.T) {
	events := fromEnvironment(t, "PROV4ML_TEST_EVENTS", 6_000)
	dir, pins := dataDir(t), pinDir(t)
	files := filepath.Join(dir, "files")
	if err := os.Mkdir(files, 0o755); err != nil {
		t.Fatal(err)
	}
	w := &watched{serve: newServe(dir), pins: pins, counter: startCounter(t), maxBytes: int64(max(8*mib, 600*events))}
	cmd := w.command("--pin-dir", pins, "--settle", "1s", "--max-bytes", strconv.FormatInt(w.maxBytes, 10))
	cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://"+w.counter.address, "GODEBUG=gctrace=1")
	w.start(t, cmd)

	bare := func(name, did string, args ...string) *worker {
		cmd := exec.Command(python(), append([]string{"-I", "-S", script(t, name), w.socket}, args...)...)
		cmd.Env = trainingEnvironment()
		return startWorker(t, cmd, did)
	}
	// So few steps that the first tenth has them all, and of 1e6 calls more than the agent keeps totals of.
	startLogger := func() *worker { return bare("leak_calls.py", "logged", strconv.Itoa(max(1, events/30))) }
	// One that comes and goes: the agent opens some of its descriptors with the first.
	startLogger().end(t)
	w.calls++
	w.ends++
	before := w.quiet(t, nil)
	t.Log("before: ", before)

	forks := bare("leak_forks.py", "forked", files)
	workers := []*worker{forks, startLogger(), startLogger(), startLogger()}
	w.calls += int64(len(workers))
	w.living = len(workers)
	var stages []holding
	for stage := range leakStages {
		upTo := events * (stage + 1) / leakStages
		w.calls += int64(upTo-forks.asked) + 1
		w.calls += int64(runsOf(upTo) - runsOf(forks.asked))
		w.ends += int64(runsOf(upTo) - runsOf(forks.asked))
		forks.ask(t, upTo)
		w.forks = upTo
		for i, logger := range workers[1:] {
			logger.ask(t, upTo*(i+1)/3-upTo*i/3)
		}
		w.await(t, workers)
		var first *holding
		if stage > 0 {
			first = &stages[0]
		}
		stages = append(stages, w.quiet(t, first))
		t.Logf("%d forks and calls: %v", upTo, stages[stage])
	}
	for _, worker := range workers {
		worker.end(t)
		w.ends++
	}
	w.living = 0
	t.Log("after: ", w.quiet(t, &before))
	w.swept(t, before, events)

	early, late := stages[1:4], stages[leakStages-3:]
	if grown := grownMiB(t, early, late, func(h holding) int { return h.liveMiB }); grown > leakLiveMiB {
		t.Errorf("the live heap grew by %d MiB", grown)
	}
	if grown := grownMiB(t, early, late, func(h holding) int { return h.residentMiB }); grown > leakResidentMiB {
		t.Errorf("anonymous memory grew by %d MiB", grown)
	}
	for i, h := range stages {
		if h.mostResidentMiB > leakMostResidentMiB {
			t.Errorf("tenth %d: %d MiB of anonymous memory, the budget is %d", i+1, h.mostResidentMiB, leakMostResidentMiB)
		}
		if h.stateBytes > w.maxBytes+leakStateMiB*mib {
			t.Errorf("tenth %d: %d bytes of state, the store's limit is %d", i+1, h.stateBytes, w.maxBytes)
		}
		if h.looseDescriptors > leakLooseDescriptors+2*runsOf(events/leakStages) {
			t.Errorf("tenth %d: %d descriptors of the database and of cgroups", i+1, h.looseDescriptors)
		}
		if h.threads > stages[0].threads+leakThreads {
			t.Errorf("tenth %d: %d threads, %d after the first", i+1, h.threads, stages[0].threads)
		}
	}
	w.stop(t)
}

// fromEnvironment is a number that a long run of the tests raises.
func fromEnvironment(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 {
		t.Fatalf("%s=%s: want a positive number", name, text)
	}
	return n
}

// runsOf says how many of the first forks log.
func runsOf(forks int) int { return (forks + forksPerRun - 1) / forksPerRun }

// grownMiB compares the least of each: how much there is beyond it depends on when it was looked at.
func grownMiB(t *testing.T, early, late []holding, of func(holding) int) int {
	t.Helper()
	least := func(all []holding) int {
		n := math.MaxInt
		for _, h := range all {
			n = min(n, of(h))
		}
		if n == math.MaxInt {
			t.Fatal("the heap was not collected in three tenths of the storm")
		}
		return n
	}
	return least(late) - least(early)
}

// worker is a process that works as its input says and answers with how much it has done in all.
type worker struct {
	*job
	did   string
	asked int
}

func startWorker(t *testing.T, cmd *exec.Cmd, did string) *worker {
	t.Helper()
	w := &worker{job: startJob(t, cmd), did: did}
	w.awaitText(t, "ready\n")
	return w
}

// ask makes it work until it has done that much in all.
func (w *worker) ask(t *testing.T, upTo int) {
	t.Helper()
	if _, err := fmt.Fprintln(w.input, upTo-w.asked); err != nil {
		t.Fatal(err)
	}
	w.asked = upTo
}

func (w *worker) isDone(t *testing.T) bool {
	t.Helper()
	select {
	case <-w.waited:
		t.Fatalf("%v ended: %s", w.Args, w.err.String())
	default:
	}
	return strings.HasSuffix(w.out.String(), fmt.Sprintf("\n%s %d\n", w.did, w.asked))
}

func (w *worker) end(t *testing.T) {
	t.Helper()
	if err := w.input.Close(); err != nil {
		t.Fatal(err)
	}
	if code := w.exit(t); code != 0 {
		t.Fatalf("%v: exit status %d: %s", w.Args, code, w.err.String())
	}
}

// spanCounter is an OTLP/gRPC receiver that counts the spans and takes the metrics unread.
type spanCounter struct {
	tracepb.UnimplementedTraceServiceServer
	address     string
	calls, ends atomic.Int64
}

func (c *spanCounter) Export(_ context.Context, request *tracepb.ExportTraceServiceRequest) (*tracepb.ExportTraceServiceResponse, error) {
	for _, rs := range request.ResourceSpans {
		for _, ss := range rs.ScopeSpans {
			for _, s := range ss.Spans {
				switch s.Name {
				case "log_system_metrics":
					c.calls.Add(1)
				case "training_run_end":
					c.ends.Add(1)
				}
			}
		}
	}
	return &tracepb.ExportTraceServiceResponse{}, nil
}

func startCounter(t *testing.T) *spanCounter {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &spanCounter{address: listener.Addr().String()}
	// Any other service's message: decoded as one without fields, answered by one without fields.
	server := grpc.NewServer(grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error {
		if err := stream.RecvMsg(&emptypb.Empty{}); err != nil {
			return err
		}
		return stream.SendMsg(&emptypb.Empty{})
	}))
	tracepb.RegisterTraceServiceServer(server, c)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	t.Cleanup(func() {
		server.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return c
}

// watched is an agent that is looked at from outside.
type watched struct {
	*serve
	pins     string
	counter  *spanCounter
	maxBytes int64
	// What was made so far: log calls, runs that have ended, forks.
	calls, ends int64
	forks       int
	// How many tracked processes are alive, each with a tree of its own.
	living int
	// How much of the agent's log was read, and the most memory since the last look.
	read            int
	mostResidentKiB int
}

// holding is what the agent and its maps hold at a moment.
type holding struct {
	// Entries by map. own: only tracked processes have any. node: any process of the machine has. capped: full, they push the oldest
	// out, and so are full at some time.
	own, node, capped map[string]int
	// Processes in the trees' maps of them.
	processes int
	// Descriptors by what they are of, without those that come and go by themselves.
	descriptors                  map[string]int
	looseDescriptors             int
	threads                      int
	stateBytes                   int64
	residentMiB, mostResidentMiB int
	// What the collection that found least since the last look left; MaxInt: there was none.
	liveMiB int
}

func (h holding) String() string {
	live := "-"
	if h.liveMiB != math.MaxInt {
		live = strconv.Itoa(h.liveMiB)
	}
	return fmt.Sprintf("heap %s MiB, anonymous %d MiB (at most %d), descriptors %d + %d, threads %d, state %.1f MiB, maps %v, processes %d, node %v, capped %v",
		live, h.residentMiB, h.mostResidentMiB, total(h.descriptors), h.looseDescriptors, h.threads, float64(h.stateBytes)/mib, h.own, h.processes, h.node, h.capped)
}

func total(counts map[string]int) int {
	n := 0
	for _, one := range counts {
		n += one
	}
	return n
}

// await waits for the workers and looks at the agent's memory meanwhile.
func (w *watched) await(t *testing.T, workers []*worker) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Minute); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		w.mostResidentKiB = max(w.mostResidentKiB, w.status(t, "RssAnon"))
		if !slices.ContainsFunc(workers, func(one *worker) bool { return !one.isDone(t) }) {
			return
		}
	}
	t.Fatal("a tenth took more than ten minutes")
}

// quiet waits until all calls and ends are delivered, the agent's own maps have nothing but the living, and its descriptors are those
// of an earlier such moment; nil: until they stand still.
func (w *watched) quiet(t *testing.T, earlier *holding) holding {
	t.Helper()
	var last holding
	for deadline := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		now := w.look(t)
		delivered := w.counter.calls.Load() == w.calls && w.counter.ends.Load() == w.ends
		want := last
		if earlier != nil {
			want = *earlier
		}
		if delivered && w.isLivingOnly(now) && maps.Equal(now.descriptors, want.descriptors) {
			now.liveMiB = w.leastLive(t)
			now.mostResidentMiB, w.mostResidentKiB = max(w.mostResidentKiB>>10, now.residentMiB), 0
			return now
		}
		if time.Now().After(deadline) {
			t.Fatalf("two minutes later: %d of %d calls and %d of %d ends delivered, %v, descriptors %v; want %d in each map, descriptors %v",
				w.counter.calls.Load(), w.calls, w.counter.ends.Load(), w.ends, now, now.descriptors, w.living, want.descriptors)
		}
		last = now
	}
}

// isLivingOnly says whether the maps have entries of living trees and processes alone.
func (w *watched) isLivingOnly(h holding) bool {
	for _, n := range h.own {
		if n != w.living {
			return false
		}
	}
	return h.processes >= w.living && h.processes <= w.living+leakUntoldEnds
}

// swept waits until the maps that other processes have a part in are back where they were. After sync(2) nothing of the storm is
// dirty; a hundredth of the storm is left to the others.
func (w *watched) swept(t *testing.T, before holding, events int) {
	t.Helper()
	var excess []string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Second) {
		unix.Sync()
		now := w.look(t)
		excess = nil
		for name, n := range now.node {
			if n > before.node[name]+max(64, events/100) {
				excess = append(excess, fmt.Sprintf("%s: %d, %d before", name, n, before.node[name]))
			}
		}
		if excess == nil {
			return
		}
	}
	t.Errorf("a minute after the storm maps still have entries of it: %v", excess)
}

func (w *watched) look(t *testing.T) holding {
	t.Helper()
	h := holding{
		own: map[string]int{}, node: map[string]int{}, capped: map[string]int{}, descriptors: map[string]int{},
		threads: w.status(t, "Threads"), residentMiB: w.status(t, "RssAnon") >> 10,
	}
	sets, err := filepath.Glob(filepath.Join(w.pins, "*"))
	if err != nil || len(sets) != 1 {
		t.Fatalf("pinned sets: %v, %v; want one", sets, err)
	}
	pinned, err := filepath.Glob(filepath.Join(sets[0], "maps", "*"))
	if err != nil || len(pinned) == 0 {
		t.Fatalf("pinned maps: %v, %v", pinned, err)
	}
	for _, path := range append(pinned, filepath.Join(sets[0], "roots")) {
		h.count(t, path)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", w.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		of, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", w.Process.Pid, fd.Name()))
		if err != nil { // closed meanwhile
			continue
		}
		if strings.HasPrefix(of, w.state) || strings.HasPrefix(of, "/sys/fs/cgroup/") {
			h.looseDescriptors++
			continue
		}
		if kind, _, found := strings.Cut(of, ":["); found && kind != "anon_inode" { // its number
			of = kind
		}
		h.descriptors[of]++
	}
	err = filepath.WalkDir(w.state, func(_ string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := entry.Info()
		h.stateBytes += info.Size()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// count adds the entries of one pinned map.
func (h *holding) count(t *testing.T, path string) {
	t.Helper()
	m, err := ebpf.LoadPinnedMap(path, &ebpf.LoadPinOptions{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	name := filepath.Base(path)
	switch m.Type() {
	case ebpf.LRUHash, ebpf.LRUCPUHash:
		h.capped[name] = len(entriesOf(t, m))
	case ebpf.HashOfMaps:
		all := entriesOf(t, m)
		h.own[name] = len(all)
		for key := range all {
			var id ebpf.MapID
			if err := m.Lookup([]byte(key), &id); err != nil {
				continue // gone meanwhile
			}
			inner, err := ebpf.NewMapFromID(id)
			if err != nil {
				continue
			}
			h.processes += len(entriesOf(t, inner))
			inner.Close()
		}
	case ebpf.Hash, ebpf.PerCPUHash:
		switch name {
		case "trees", "latencies", "roots", "procs": // of tracked processes alone
			h.own[name] = len(entriesOf(t, m))
		default:
			h.node[name] = len(entriesOf(t, m))
		}
	default:
		// Arrays and rings have one size. Task storage (procs from 5.17 on) lies in the tasks and goes with them: nobody can count it.
	}
}

// entriesOf walks a map that others write to: the walk may begin anew.
func entriesOf(t *testing.T, m *ebpf.Map) map[string]struct{} {
	t.Helper()
	all := map[string]struct{}{}
	var key []byte
	for range 2 * m.MaxEntries() {
		var from any
		if key != nil {
			from = key
		}
		next, err := m.NextKeyBytes(from)
		if err != nil {
			t.Fatal(err)
		}
		if next == nil {
			break
		}
		all[string(next)] = struct{}{}
		key = next
	}
	return all
}

// status is a number of the agent's /proc/PID/status: KiB where it has a unit.
func (w *watched) status(t *testing.T, field string) int {
	t.Helper()
	text := readFile(t, fmt.Sprintf("/proc/%d/status", w.Process.Pid))
	found := regexp.MustCompile(`(?m)^` + field + `:\s+(\d+)`).FindSubmatch(text)
	if found == nil {
		t.Fatalf("no %s in\n%s", field, text)
	}
	n, err := strconv.Atoi(string(found[1]))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// A line of GODEBUG=gctrace=1: the heap when a collection began, when it ended, and what of it is live.
var collection = regexp.MustCompile(`(?m)^gc \d+ .* \d+->\d+->(\d+) MB, `)

// leastLive is the least that a collection since the last look has left.
func (w *watched) leastLive(t *testing.T) int {
	t.Helper()
	text := w.job.err.String()
	least := math.MaxInt
	for _, found := range collection.FindAllStringSubmatch(text[w.read:], -1) {
		n, err := strconv.Atoi(found[1])
		if err != nil {
			t.Fatal(err)
		}
		least = min(least, n)
	}
	w.read = len(text)
	return least
}
