package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	client "github.com/prov4ml/agent/client/python"
	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/otel"
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/runs"
	"github.com/prov4ml/agent/server"
	"github.com/prov4ml/agent/store"
)

type runCommand struct {
	Out         string        `help:"Directory for records.db, traces.jsonl and metrics.jsonl (default: prov4ml-runs/TIME-NAME). One that holds a run is refused." placeholder:"DIR" env:"PROV4ML_OUT"`
	User        string        `help:"Run CMD as this user; under sudo the default is who called it." placeholder:"NAME" env:"PROV4ML_USER"`
	Settle      time.Duration `help:"How long to wait after CMD for its late writeback and orphans; ends when nothing is pending." default:"1s" env:"PROV4ML_SETTLE"`
	MetricsStep string        `help:"How a metric point shows its step: attribute or exemplar." enum:"attribute,exemplar" default:"attribute" env:"PROV4ML_METRICS_STEP"`
	PeakFlops   string        `help:"Dense peak FLOP/s of the devices by dtype, for MFU, where the built-in table does not know them: bf16=989e12,tf32=494.7e12." placeholder:"DTYPE=FLOPS,..." env:"PROV4ML_PEAK_FLOPS"`
	Plain       bool          `help:"No live line on the terminal." env:"PROV4ML_PLAIN"`
	Command     []string      `arg:"" passthrough:"" name:"cmd" help:"The command and its arguments, after --."`
}

// Run runs CMD and returns its exit status.
func (c runCommand) Run(s streams) error {
	command := trimSeparator(c.Command)
	if len(command) == 0 {
		return errors.New("run: no command; say what to run: prov4ml-agent run -- python train.py")
	}
	trainer, err := findTrainingUser(c.User)
	if err != nil {
		return err
	}
	out, made, err := makeOutDir(c.Out, command, time.Now())
	if err != nil {
		return err
	}
	if err := trainer.give(made); err != nil {
		return fmt.Errorf("give %s to %s: %w", made, trainer.name, err)
	}
	place, err := store.FindPlace(out)
	if err != nil {
		return err
	}
	if note := place.Note(); note != "" {
		say(s.err, "%s", note)
	}
	j := &jobRun{runCommand: c, streams: s, command: command, trainer: trainer, place: place}
	status, err := j.run()
	if err != nil {
		return err
	}
	if status != 0 {
		return exitStatus(status)
	}
	return nil
}

// jobRun is one job under its own agent.
type jobRun struct {
	runCommand
	streams
	command []string
	trainer *trainingUser
	place   store.Place
	// private holds the socket and the client's copy, and is gone afterwards.
	private string
}

func (j *jobRun) run() (status int, err error) {
	ctx := context.Background()
	if j.private, err = j.makePrivate(); err != nil {
		return 0, err
	}
	defer os.RemoveAll(j.private)
	live := newLive(os.Stderr, j.Plain)
	config, err := j.config(live)
	if err != nil {
		return 0, err
	}
	a, err := startAgent(ctx, config)
	if err != nil {
		return 0, err
	}
	status, err = j.follow(ctx, a, live)
	err = errors.Join(err, a.end(ctx, true))
	if err != nil {
		return 0, err
	}
	return status, j.finish(ctx)
}

// socketFile lies in the private directory.
const socketFile = "agent.sock"

// makePrivate makes a directory that only the training user may enter, with a short path: bind(2) takes 107 bytes.
func (j *jobRun) makePrivate() (string, error) {
	dir, err := os.MkdirTemp("/tmp", "prov4ml-")
	if err != nil {
		return "", fmt.Errorf("make a directory for the socket: %w", err)
	}
	if err := client.Write(filepath.Join(dir, clientDirectory)); err != nil {
		return "", fmt.Errorf("write the Python client: %w", err)
	}
	if err := j.trainer.give(dir); err != nil {
		return "", fmt.Errorf("give %s to %s: %w", dir, j.trainer.name, err)
	}
	return dir, nil
}

// follow runs the command to its end, with its tree counted from its first instruction.
func (j *jobRun) follow(ctx context.Context, a *agent, live *live) (int, error) {
	environment := j.environment()
	child, err := launch(j.command, environment, j.trainer.credential(), a.background)
	if err != nil {
		return 0, err
	}
	pid := child.cmd.Process.Pid
	stat, err := process.ReadStat("/proc", pid)
	if err != nil {
		return 0, errors.Join(fmt.Errorf("read the command's start time: %w", err), child.kill())
	}
	caller := runs.Caller{Process: probes.Process{PID: pid, StartTicks: stat.StartTicks}}
	description := runs.Description{Environment: asMap(environment), Script: jobName(j.command)}
	if _, err := a.tracker.Describe(ctx, caller, description); err != nil {
		return 0, errors.Join(fmt.Errorf("follow the command: %w", err), child.kill())
	}

	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	ended := make(chan struct{})
	defer close(ended)
	go func() {
		for {
			select {
			case sig := <-signals:
				if sig != syscall.SIGTERM && sig != syscall.SIGHUP && inTerminalForeground() {
					continue // the terminal has sent it to the command as well
				}
				_ = child.cmd.Process.Signal(sig)
			case <-ended:
				return
			}
		}
	}()

	live.start()
	defer live.close()
	if err := child.release(); err != nil {
		return 0, errors.Join(fmt.Errorf("let the command start: %w", err), child.kill())
	}
	return child.wait()
}

// clientDirectory holds the copy of the Python client that CMD imports when none is installed.
const clientDirectory = "python"

// config is the agent's for this job.
func (j *jobRun) config(live *live) (agentConfig, error) {
	receiver, err := otel.ReadEnvironment(os.Getenv)
	if err != nil {
		return agentConfig{}, err
	}
	for _, note := range receiver.Notes {
		say(j.err, "%s", note)
	}
	resource, err := otel.ResourceFromEnvironment()
	if err != nil {
		return agentConfig{}, err
	}
	peak, err := flops.ParseOverride(j.PeakFlops)
	if err != nil {
		return agentConfig{}, fmt.Errorf("--peak-flops: %w", err)
	}
	log := slog.New(slog.NewTextHandler(j.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return agentConfig{
		socket: server.SocketConfig{Path: filepath.Join(j.private, socketFile), Mode: 0o666}, // the directory is private
		store:  store.Config{Path: filepath.Join(j.place.Live, recordsFile), Log: log},
		pipeline: otel.Config{
			MetricsStep: otel.StepMode(j.MetricsStep),
			OTLP:        receiver,
			Directory:   j.place.Dir,
			Log:         log,
		},
		runs: runs.Config{Resource: resource, Settle: j.Settle},
		peak: peak,
		saw:  live.saw,
		log:  log,
	}, nil
}

// environment is the command's: the user's own, with the socket, the run's name and id, and the client added.
func (j *jobRun) environment() []string {
	environment := j.trainer.environment(os.Environ())
	known := asMap(environment)
	set := func(key, value string) {
		if _, there := known[key]; there { // getenv(3) finds the first of two
			environment = slices.DeleteFunc(environment, func(entry string) bool { return strings.HasPrefix(entry, key+"=") })
		}
		environment = append(environment, key+"="+value)
	}
	set("PROV4ML_AGENT_SOCKET", filepath.Join(j.private, socketFile))
	if !runs.NamesRun(known) {
		set("PROV4ML_RUN_ID", rand.Text())
	}
	if name := known["OTEL_SERVICE_NAME"]; name != "" && known["PROV4ML_RUN_NAME"] == "" {
		set("PROV4ML_RUN_NAME", name)
	}
	path := filepath.Join(j.private, clientDirectory)
	if own := known["PYTHONPATH"]; own != "" {
		path = own + string(os.PathListSeparator) + path
	}
	set("PYTHONPATH", path)
	return environment
}

func asMap(environment []string) map[string]string {
	known := make(map[string]string, len(environment))
	for _, entry := range environment {
		if key, value, ok := strings.Cut(entry, "="); ok {
			known[key] = value
		}
	}
	return known
}

// finish prints the summary and hands the directory over.
func (j *jobRun) finish(ctx context.Context) error {
	if err := j.place.Finish(recordsFile); err != nil {
		return err
	}
	if err := j.trainer.give(j.place.Dir); err != nil {
		return fmt.Errorf("give %s to %s: %w", j.place.Dir, j.trainer.name, err)
	}
	return printSummary(ctx, j.err, j.place.Dir)
}

// inTerminalForeground says whether the agent is in the foreground process group of its terminal: Ctrl-C then reaches the command
// without the agent.
func inTerminalForeground() bool {
	tty, err := os.Open("/dev/tty")
	if err != nil {
		return false
	}
	defer tty.Close()
	group, err := unix.IoctlGetInt(int(tty.Fd()), unix.TIOCGPGRP)
	return err == nil && group == unix.Getpgrp()
}
