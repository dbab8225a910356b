package main

import (
	"cmp"
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
	"sync"
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
	j := &jobRun{runCommand: c, streams: s, command: command}
	var err error
	if j.trainer, err = findTrainingUser(c.User); err != nil {
		return err
	}
	if err := j.readSettings(); err != nil {
		return err
	}
	out, err := makeOutDir(c.Out, command, time.Now())
	if err != nil {
		return err
	}
	if err := out.give(j.trainer); err != nil {
		return err
	}
	if j.place, err = store.FindPlace(out.path); err != nil {
		return err
	}
	if note := j.place.Note(); note != "" {
		say(s.err, "%s", note)
	}
	status, err := j.run()
	if err = errors.Join(err, out.give(j.trainer)); err != nil {
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
	// What the environment and the flags say, checked.
	receiver    otel.Environment
	serviceName string
	resource    map[string]string
	peak        *flops.Override
	// private holds the socket and the client's copy, and is gone afterwards.
	private string
}

// readSettings checks the settings, before anything is made on the disk.
func (j *jobRun) readSettings() (err error) {
	if j.receiver, err = otel.ReadEnvironment(os.Getenv); err != nil {
		return err
	}
	for _, note := range j.receiver.Notes {
		say(j.err, "%s", note)
	}
	if j.serviceName, j.resource, err = otel.ResourceFromEnvironment(); err != nil {
		return err
	}
	if j.peak, err = flops.ParseOverride(j.PeakFlops); err != nil {
		return fmt.Errorf("--peak-flops: %w", err)
	}
	return nil
}

func (j *jobRun) run() (status int, err error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, passedOn()...)
	defer signal.Stop(signals)
	if j.private, err = j.makePrivate(); err != nil {
		return 0, err
	}
	defer os.RemoveAll(j.private)
	live := newLive(os.Stderr, j.Plain)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	a, err := startAgent(ctx, j.config(live))
	if err != nil {
		return 0, err
	}
	status, err = j.follow(ctx, a, live, signals)
	// From here on a signal is for the agent: it waits no longer for late writeback.
	var listening sync.WaitGroup
	ended := make(chan struct{})
	listening.Go(func() {
		select {
		case <-signals:
			stop()
		case <-ended:
		}
	})
	err = errors.Join(err, a.end(ctx, true))
	close(ended)
	listening.Wait()
	if err != nil {
		return 0, err
	}
	return status, j.finish(context.WithoutCancel(ctx))
}

// passedOn are the signals that CMD gets from the agent: those by which a user, a batch system or a container's runtime speaks to
// a job (SLURM's --signal sends USR1 and USR2 as a rule). One that is ignored when the agent starts, as nohup(1) has it,
// stays ignored, for CMD too.
func passedOn() []os.Signal {
	all := []os.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGUSR1, syscall.SIGUSR2}
	return slices.DeleteFunc(all, signal.Ignored)
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
	return dir, j.trainer.give(dir)
}

// follow runs the command to its end, with its tree counted from its first instruction.
func (j *jobRun) follow(ctx context.Context, a *agent, live *live, signals <-chan os.Signal) (int, error) {
	select {
	case sig := <-signals: // nothing has started yet
		return 128 + int(sig.(syscall.Signal)), nil
	default:
	}
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

	ended := make(chan struct{})
	var passing sync.WaitGroup
	passing.Go(func() {
		for {
			select {
			case sig := <-signals:
				if (sig == syscall.SIGINT || sig == syscall.SIGQUIT) && inTerminalForeground() {
					continue // the terminal has sent it to the command as well
				}
				_ = child.cmd.Process.Signal(sig)
			case <-ended:
				return
			}
		}
	})
	defer passing.Wait()
	defer close(ended)

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
func (j *jobRun) config(live *live) agentConfig {
	log := slog.New(slog.NewTextHandler(j.err, &slog.HandlerOptions{Level: slog.LevelWarn}))
	return agentConfig{
		socket: server.SocketConfig{Path: filepath.Join(j.private, socketFile), Mode: 0o666}, // the directory is private
		store:  store.Config{Path: filepath.Join(j.place.Live, recordsFile), Log: log},
		pipeline: otel.Config{
			MetricsStep: otel.StepMode(j.MetricsStep),
			OTLP:        j.receiver,
			Directory:   j.place.Dir,
			Log:         log,
		},
		runs: runs.Config{Resource: j.resource, Settle: settle(j.Settle)},
		peak: j.peak,
		saw:  live.saw,
		log:  log,
	}
}

// settle is the flag as package runs has it, where 0 stands for its default.
func settle(flag time.Duration) time.Duration {
	if flag <= 0 {
		return -1
	}
	return flag
}

// environment is the command's: the user's own, with the socket, the run's name and id, and the client added.
func (j *jobRun) environment() []string {
	environment := j.trainer.environment(ownEnvironment())
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
	// Under sudo the user's own variables are known here only.
	if name := cmp.Or(known["OTEL_SERVICE_NAME"], j.serviceName); name != "" && known["PROV4ML_RUN_NAME"] == "" {
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

// finish prints the summary.
func (j *jobRun) finish(ctx context.Context) error {
	if err := j.place.Finish(recordsFile); err != nil {
		return err
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
