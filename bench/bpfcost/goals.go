package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"time"

	gopsutil "github.com/shirou/gopsutil/v3/process"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/otel/otlptest"
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
)

const (
	treeProcesses  = 200
	otherProcesses = 1000
	loggingTrees   = 64
	// Idle children of each, as a DataLoader's workers are.
	loggerChildren = 4
	// windows is how often the agent's CPU time is measured.
	windows = 3
)

// goals are the costs of the agent itself.
type goals struct {
	// Nanoseconds of a look at the tree, a median for each round: without and with the other processes.
	alone, among map[string][]float64
	rounds       int
	// Shares of one core, and memory when loaded; one for each window.
	idle, loaded, anonymousBytes []float64
	window                       time.Duration
	calls, exported              int
}

func measureGoals(ctx context.Context, c config, work string) (*goals, error) {
	g := &goals{alone: map[string][]float64{}, among: map[string][]float64{}, rounds: c.rounds, window: c.window}
	if err := g.measureSnapshots(ctx); err != nil {
		return nil, fmt.Errorf("snapshots: %w", err)
	}
	if err := g.measureAgent(ctx, c.agent, work); err != nil {
		return nil, fmt.Errorf("the agent's own cost: %w", err)
	}
	return g, nil
}

// Whoever looks at the tree.
const (
	byEBPF     = "a snapshot by eBPF"
	byProcfs   = "a snapshot by the agent without eBPF"
	byGopsutil = "gopsutil"
)

func (g *goals) measureSnapshots(ctx context.Context) (err error) {
	tree, err := startSleepers(treeProcesses)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tree.stop()) }()
	kernel, err := process.Open(process.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kernel.Close()) }()
	files := process.NewProcfs(process.ProcfsConfig{})
	defer func() { err = errors.Join(err, files.Close()) }()

	root, err := tree.root()
	if err != nil {
		return err
	}
	looks := map[string]func() (uint64, error){
		byGopsutil: func() (uint64, error) { return lookByGopsutil(int32(root.PID)) },
	}
	for name, probe := range map[string]process.Probe{byEBPF: kernel, byProcfs: files} {
		tracked, err := probe.Track(root)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		ids, snapshot := []process.TreeID{tracked.ID}, &process.Snapshot{}
		looks[name] = func() (uint64, error) {
			if err := probe.Snapshot(ids, nil, snapshot); err != nil {
				return 0, err
			}
			return snapshot.Trees[0].Processes, nil
		}
	}
	for round := range g.rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		for _, others := range [][]bool{{false, true}, {true, false}}[round%2] {
			into := g.alone
			if others {
				into = g.among
			}
			if err := measureLooks(looks, others, into); err != nil {
				return err
			}
		}
	}
	return nil
}

// measureLooks adds a round to each.
func measureLooks(looks map[string]func() (uint64, error), others bool, into map[string][]float64) (err error) {
	if others {
		crowd, err := startSleepers(otherProcesses)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, crowd.stop()) }()
	}
	for _, name := range []string{byEBPF, byProcfs, byGopsutil} { // a map's order would be random within a round, too
		times := 5
		if name == byEBPF {
			times = 100
		}
		var took []float64
		for range times {
			begin := time.Now()
			processes, err := looks[name]()
			took = append(took, float64(time.Since(begin)))
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if processes != treeProcesses {
				return fmt.Errorf("%s: sees %d processes of %d", name, processes, treeProcesses)
			}
		}
		into[name] = append(into[name], median(took))
	}
	return nil
}

// lookByGopsutil reads what a snapshot has and /proc tells: memory, I/O, CPU time and page faults of each process of a tree. It finds
// the tree as gopsutil's users do who cannot wait for its Children, which starts a pgrep for each process.
func lookByGopsutil(root int32) (processes uint64, err error) {
	all, err := gopsutil.Processes()
	if err != nil {
		return 0, err
	}
	children := map[int32][]*gopsutil.Process{}
	var level []*gopsutil.Process
	for _, p := range all {
		if p.Pid == root {
			level = append(level, p)
		}
		if parent, err := p.Ppid(); err == nil {
			children[parent] = append(children[parent], p)
		}
	}
	for len(level) > 0 {
		p := level[0]
		level = append(level[1:], children[p.Pid]...)
		_, memoryErr := p.MemoryInfo()
		_, ioErr := p.IOCounters()
		_, timesErr := p.Times()
		_, faultsErr := p.PageFaults()
		if err := errors.Join(memoryErr, ioErr, timesErr, faultsErr); err != nil {
			return 0, err
		}
		processes++
	}
	return processes, nil
}

// sleepers are a shell and its sleeping children.
type sleepers struct{ command *exec.Cmd }

func startSleepers(processes int) (*sleepers, error) {
	command := exec.Command("sh", "-c",
		`i=1; while [ $i -lt `+strconv.Itoa(processes)+` ]; do sleep 1000000 & i=$((i+1)); done; echo; exec sleep 1000000`)
	command.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	ready, err := command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := command.Start(); err != nil {
		return nil, fmt.Errorf("start processes: %w", err)
	}
	s := &sleepers{command}
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return nil, errors.Join(fmt.Errorf("start processes: %w", err), s.stop())
	}
	time.Sleep(500 * time.Millisecond) // the last of them load their program
	return s, nil
}

func (s *sleepers) root() (probes.Process, error) {
	p := probes.Process{PID: s.command.Process.Pid}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.PID))
	if err != nil {
		return p, err
	}
	// The name is in parentheses and has none here. Field 22.
	var skipped string
	fields := []any{}
	for range 21 {
		fields = append(fields, &skipped)
	}
	_, err = fmt.Sscan(string(stat), append(fields, &p.StartTicks)...)
	return p, err
}

func (s *sleepers) stop() error {
	err := unix.Kill(-s.command.Process.Pid, unix.SIGKILL)
	_ = s.command.Wait() // killed
	// Its children are nobody's of ours: wait until they are gone too.
	for deadline := time.Now().Add(patience); unix.Kill(-s.command.Process.Pid, 0) == nil && time.Now().Before(deadline); {
		time.Sleep(5 * time.Millisecond)
	}
	return err
}

// measureAgent measures an agent that exports to a receiver of ours: with nobody, and with trees that log once a second.
func (g *goals) measureAgent(ctx context.Context, binary, work string) (err error) {
	receiver := &otlptest.Receiver{}
	if err := receiver.Start(""); err != nil {
		return err
	}
	defer receiver.Stop()
	a, err := startAgent(binary, work, "OTEL_EXPORTER_OTLP_ENDPOINT="+receiver.Endpoint())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.stop()) }()
	time.Sleep(3 * time.Second) // what starting leaves to do
	if g.idle, _, err = a.use(ctx, g.window); err != nil {
		return err
	}

	var loggers []*playing
	defer func() {
		for _, l := range loggers {
			err = errors.Join(err, l.stop())
		}
	}()
	for i := range loggingTrees {
		l, err := startWorker(exec.Command("/proc/self/exe", loggerCommand, a.socket, strconv.Itoa(i)))
		if err != nil {
			return err
		}
		loggers = append(loggers, l)
	}
	for _, l := range loggers {
		if _, err := l.ask(order{Do: "start"}); err != nil {
			return err
		}
	}
	time.Sleep(3 * time.Second)
	if g.loaded, g.anonymousBytes, err = a.use(ctx, g.window); err != nil {
		return err
	}
	for _, l := range loggers {
		answered, err := l.ask(order{Do: "stop"})
		if err != nil {
			return err
		}
		g.calls += int(answered.Operations)
	}
	for deadline := time.Now().Add(patience); g.exported < g.calls && time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		g.exported = 0
		for _, span := range receiver.Spans() {
			if span.GetName() == "log_system_metrics" {
				g.exported++
			}
		}
	}
	if g.exported < g.calls {
		return fmt.Errorf("only %d of %d calls were exported", g.exported, g.calls)
	}
	return nil
}

// use is what the agent uses of one core, and its memory at the end, in windows one behind the other.
func (a *agent) use(ctx context.Context, window time.Duration) (shares, anonymous []float64, err error) {
	for range windows {
		before, err := a.cpu()
		if err != nil {
			return nil, nil, err
		}
		begin := time.Now()
		select {
		case <-ctx.Done():
			return nil, nil, ctx.Err()
		case <-time.After(window):
		}
		after, err := a.cpu()
		if err != nil {
			return nil, nil, err
		}
		shares = append(shares, (after-before).Seconds()/time.Since(begin).Seconds())
		bytes, err := a.anonymousBytes()
		if err != nil {
			return nil, nil, err
		}
		anonymous = append(anonymous, bytes)
	}
	return shares, anonymous, nil
}

// A logger is this binary again: the root of a tree, which logs once a second from "start" to "stop".
const loggerCommand = "logger"

func logRegularly(arguments []string) (err error) {
	if len(arguments) != 2 {
		return errors.New("a logger takes a socket and its number")
	}
	agent := newCaller(arguments[0])
	number, err := strconv.Atoi(arguments[1])
	if err != nil {
		return fmt.Errorf("number of the logger: %w", err)
	}
	children, err := startSleepers(loggerChildren)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, children.stop()) }()
	orders, answers := make(chan order), json.NewEncoder(os.Stdout)
	go func() { // ends with the process
		defer close(orders)
		for in := json.NewDecoder(os.Stdin); ; {
			var o order
			if in.Decode(&o) != nil {
				return
			}
			orders <- o
		}
	}()
	if _, ok := <-orders; !ok {
		return nil
	}
	if err := agent.callAgain("DescribeRun", `{}`); err != nil {
		return answers.Encode(answer{Error: err.Error()})
	}
	if err := answers.Encode(answer{}); err != nil {
		return err
	}
	// Spread over the second, as loggers of many jobs are.
	time.Sleep(time.Second * time.Duration(number) / loggingTrees)
	second := time.NewTicker(time.Second)
	defer second.Stop()
	for calls := 0; ; {
		select {
		case <-second.C:
			if err := agent.callAgain("LogSystemMetrics", fmt.Sprintf(`{"context":"TRAINING","step":%d}`, calls)); err != nil {
				return err
			}
			calls++
		case _, ok := <-orders:
			if !ok {
				return nil
			}
			if err := answers.Encode(answer{Operations: float64(calls)}); err != nil {
				return err
			}
			orders = nil // and no more calls
			second.Stop()
			return nil
		}
	}
}
