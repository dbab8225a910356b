package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"

	client "github.com/prov4ml/agent/client/python"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
	"github.com/prov4ml/agent/server"
	"github.com/prov4ml/agent/store"
)

// demoFlopsScript is the job: it needs torch, and uses fvcore and numpy where they are installed.
//
//go:embed demo_flops.py
var demoFlopsScript []byte

// demoFlopsCommand counts three models the way a training would, compares with other counters and the truth by formula, and
// trains with and without the calls.
type demoFlopsCommand struct {
	Python string `help:"Python that imports torch; default: .venv/bin/python, else python3." env:"PYTHON" placeholder:"PATH"`
}

// demoFlopsResult is what the script found.
type demoFlopsResult struct {
	Torch  string
	Models []demoFlopsModel
	Steps  int
	// Trainings without calls, with them, and without them again.
	Trainings []demoTraining
}

// demoTraining is one training of the same model on the same batches.
type demoTraining struct {
	Name string
	// Digest of weights, statistics, optimizer and random generators at its end.
	Digest      string
	StepSeconds float64 `json:"step_seconds"`
	// CallSeconds are the shortest, the median and the 90th percentile; none without calls.
	CallSeconds      []float64 `json:"call_seconds"`
	FirstCallSeconds float64   `json:"first_call_seconds"`
}

// demoFlopsModel is a model with its truth and what other counters say.
type demoFlopsModel struct {
	Model             string
	Forward, Backward string
	Others            map[string]struct {
		Forward, Backward *json.Number
		Error             string
	}
	ours *record.LogCall
}

// Run counts, trains and prints the table.
func (c demoFlopsCommand) Run(s streams) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	d := &flopsDemo{streams: s}
	result, err := d.play(ctx, c.Python)
	if ctx.Err() != nil {
		return exitStatus(128 + int(syscall.SIGINT))
	}
	if err != nil {
		return fmt.Errorf("demo flops: %w", err)
	}
	if !printFlops(s.out, result) {
		return exitStatus(1)
	}
	return nil
}

// flopsDemo is one play.
type flopsDemo struct {
	streams

	mu      sync.Mutex
	records []*record.LogCall
}

func (d *flopsDemo) saw(rec *record.LogCall) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.records = append(d.records, rec)
}

func (d *flopsDemo) play(ctx context.Context, python string) (_ *demoFlopsResult, err error) {
	python, err = findTorch(ctx, python)
	if err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp("/tmp", "prov4ml-") // short: bind(2) takes 107 bytes
	if err != nil {
		return nil, fmt.Errorf("make a directory for the socket: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	if err := client.Write(filepath.Join(private, clientDirectory)); err != nil {
		return nil, fmt.Errorf("write the Python client: %w", err)
	}
	script := filepath.Join(private, "demo_flops.py")
	if err := os.WriteFile(script, demoFlopsScript, 0o600); err != nil {
		return nil, fmt.Errorf("write the job: %w", err)
	}
	log := slog.New(slog.NewTextHandler(d.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	socket, found := filepath.Join(private, socketFile), filepath.Join(private, "found.json")
	a, err := startAgent(ctx, agentConfig{
		socket: server.SocketConfig{Path: socket, Mode: 0o600},
		store:  store.Config{Path: filepath.Join(private, recordsFile), Log: log},
		runs:   runs.Config{Settle: -1},
		saw:    d.saw,
		log:    log,
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, a.end(context.WithoutCancel(ctx), true)) }()
	fmt.Fprintf(d.err, "three models and 200 training steps with %s ...\n", python)
	cmd := exec.CommandContext(ctx, python, script, found)
	cmd.Env = append(withoutSettings(os.Environ()), "PROV4ML_AGENT_SOCKET="+socket, "PYTHONPATH="+filepath.Join(private, clientDirectory),
		"PROV4ML_EXIT_SECONDS=120", "PYTHONDONTWRITEBYTECODE=1")
	cmd.Stdout, cmd.Stderr = d.err, d.err
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("the job failed: %w", err)
	}
	return d.read(found)
}

// withoutSettings leaves out what would steer the client or have Python import another one.
func withoutSettings(environment []string) []string {
	var kept []string
	for _, entry := range environment {
		if !strings.HasPrefix(entry, "PROV4ML_") && !strings.HasPrefix(entry, "PYTHONPATH=") {
			kept = append(kept, entry)
		}
	}
	return kept
}

// findTorch returns a Python that imports torch.
func findTorch(ctx context.Context, given string) (string, error) {
	candidates := []string{filepath.Join(".venv", "bin", "python"), "python3"}
	if given != "" {
		candidates = []string{given}
	}
	for _, python := range candidates {
		if exec.CommandContext(ctx, python, "-c", "import torch").Run() == nil {
			return python, nil
		}
	}
	return "", fmt.Errorf("%s does not import torch: name a Python that does with --python", strings.Join(candidates, " or "))
}

// read takes what the script found, with the record of each model.
func (d *flopsDemo) read(path string) (*demoFlopsResult, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read what the job found: %w", err)
	}
	result := &demoFlopsResult{}
	if err := json.Unmarshal(data, result); err != nil {
		return nil, fmt.Errorf("read what the job found: %w", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	logged := 0
	for _, rec := range d.records {
		if rec.GetLabel() == "training" {
			logged++
		}
		for i := range result.Models {
			if rec.GetLabel() == result.Models[i].Model {
				result.Models[i].ours = rec
			}
		}
	}
	steps := 0
	for _, training := range result.Trainings {
		if len(training.CallSeconds) > 0 {
			steps += result.Steps
		}
	}
	if logged != steps {
		return nil, fmt.Errorf("%d steps were logged and %d have a record", steps, logged)
	}
	return result, nil
}

// counted is a count as one source gives it; nil = it gives none.
type counted struct{ forward, backward *big.Int }

// otherCounters are those of the script, in the order of the table's columns.
var otherCounters = [...]string{"FlopCounterMode", "fvcore"}

// counts are the model's by source, in the order of the table's columns: truth, ours, FlopCounterMode, fvcore.
func (m *demoFlopsModel) counts() (truth, ours counted, others [2]counted) {
	truth = counted{decimal(m.Forward), decimal(m.Backward)}
	for _, r := range m.ours.GetReadings() {
		// Doubles are exact to 2^53, far more than these models cost.
		n, _ := new(big.Float).SetFloat64(r.GetReal()).Int(nil)
		switch r.GetName() {
		case record.FlopsForward:
			ours.forward = n
		case record.FlopsBackward:
			ours.backward = n
		}
	}
	for i, name := range otherCounters {
		other := m.Others[name]
		if other.Forward != nil {
			others[i].forward = decimal(other.Forward.String())
		}
		if other.Backward != nil {
			others[i].backward = decimal(other.Backward.String())
		}
	}
	return truth, ours, others
}

// decimal is nil for what is no integer.
func decimal(text string) *big.Int {
	n, ok := new(big.Int).SetString(text, 10)
	if !ok {
		return nil
	}
	return n
}
