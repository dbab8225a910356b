package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/otel"
	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
	"github.com/prov4ml/agent/runs"
	"github.com/prov4ml/agent/server"
	"github.com/prov4ml/agent/store"
)

// agentConfig is what serve and run differ in.
type agentConfig struct {
	socket   server.SocketConfig
	store    store.Config
	pipeline otel.Config
	probe    process.Config
	runs     runs.Config
	// peak is what the user says that the devices can do at most; nil = nothing.
	peak *flops.Override
	// saw is called with every record, for the live line; nil = nobody looks.
	saw func(*record.LogCall)
	log *slog.Logger
}

// agent is the wired program: store, delivery, probes, runs and socket, started in this order and stopped in the reverse.
type agent struct {
	store    *store.Store
	pipeline *otel.Pipeline
	probe    process.Probe
	tracker  *runs.Tracker
	server   *server.Server
	log      *slog.Logger

	stopServing context.CancelFunc
	// background: the agent's threads have another scheduling policy than it was started with.
	background bool
	// served gives what Serve returned.
	served chan error
}

// startAgent starts every part; after an error nothing runs. The socket answers when it returns.
func startAgent(ctx context.Context, config agentConfig) (_ *agent, err error) {
	collectEarly()
	config.pipeline.Burst = limitProcessors().burst
	a := &agent{log: config.log, background: beBackground()}
	defer func() {
		if err != nil {
			err = errors.Join(err, a.close(ctx))
		}
	}()
	if a.store, err = store.Open(ctx, config.store); err != nil {
		return nil, fmt.Errorf("open the record store: %w", err)
	}
	config.pipeline.Store = a.store
	config.pipeline.Version = version
	if a.pipeline, err = otel.Start(ctx, config.pipeline); err != nil {
		return nil, fmt.Errorf("set up delivery: %w", err)
	}
	// What dead agents of other state directories have left. This one's own set is its own to judge, now that it has the store's lock.
	abandoned, err := process.RemoveAbandoned(config.probe.PinDir)
	for _, set := range abandoned {
		config.log.Info("removed what an agent that has been gone for long had pinned", "set", describe(set))
	}
	if err != nil && !errors.Is(err, fs.ErrPermission) {
		config.log.Warn("what dead agents have pinned is not all removed", "error", err)
	}
	if a.probe, err = process.Open(config.probe); err != nil {
		return nil, fmt.Errorf("start measuring processes: %w", err)
	}
	hostProbe := host.New(host.Config{})
	a.tracker = runs.New(config.runs, a.probe, hostProbe, sink{a.store, config.saw}, a.store)
	if err := a.tracker.Resume(); err != nil {
		config.log.Warn("some runs that were open at the last end are not taken up until their processes call", "error", err)
	}
	a.server, err = server.New(server.Config{
		PeakOverride: config.peak,
		Socket:       config.socket,
		Version:      version,
		Identify:     runs.Identify,
		SpanIDs:      otel.SpanOf,
		Store:        a.storeStatus,
		Counters:     []func() map[string]uint64{a.storeCounters, a.deliveryCounters},
		Logger:       config.log,
	}, a.tracker)
	if err != nil {
		return nil, err
	}
	if err := a.server.Listen(ctx); err != nil {
		return nil, fmt.Errorf("listen for log calls: %w", err)
	}
	serving, stop := context.WithCancel(context.Background())
	a.stopServing = stop
	a.served = make(chan error, 1)
	go func() { a.served <- a.server.Serve(serving) }()
	return a, nil
}

// sink is the store, looked at on the way.
type sink struct {
	*store.Store
	saw func(*record.LogCall)
}

func (s sink) Append(rec *record.LogCall, process string, state []byte) func(context.Context) (int64, error) {
	if s.saw != nil {
		s.saw(rec)
	}
	return s.Store.Append(rec, process, state)
}

// flushTimeout bounds the wait for receivers at an orderly end: what they have not taken by then stays in the store.
const flushTimeout = 10 * time.Second

// end stops the agent after its last call: what is in flight is recorded, every run that the agent will not see again is
// closed, what is recorded is delivered. last says that no other agent takes the running processes up. When ctx ends, late
// writeback is not waited for any longer; the rest is done all the same.
func (a *agent) end(ctx context.Context, last bool) error {
	var errs []error
	a.stopServing()
	errs = append(errs, <-a.served)
	if last {
		errs = append(errs, a.tracker.Close(ctx))
	} else {
		errs = append(errs, a.tracker.Detach(ctx))
	}
	ctx = context.WithoutCancel(ctx)
	flush, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := a.pipeline.Flush(flush); err != nil {
		a.log.Warn("not everything is delivered; it stays in the store", "error", err)
	}
	return errors.Join(append(errs, a.close(ctx))...)
}

// close ends what the server does not need, in the reverse order of the start.
func (a *agent) close(ctx context.Context) error {
	var errs []error
	if a.probe != nil {
		errs = append(errs, a.probe.Close())
	}
	if a.pipeline != nil {
		errs = append(errs, a.pipeline.Close(ctx))
	}
	if a.store != nil {
		errs = append(errs, a.store.Close())
	}
	return errors.Join(errs...)
}

func (a *agent) storeStatus() server.StoreStatus {
	stats := a.store.Stats()
	status := server.StoreStatus{Records: stats.Records, Undelivered: map[string]int64{}}
	for _, u := range stats.Undelivered {
		status.Undelivered[u.Destination+"/"+u.Signal] = u.Records
	}
	return status
}

func (a *agent) storeCounters() map[string]uint64 {
	stats := a.store.Stats()
	return map[string]uint64{
		"store.commits":             stats.Commits,
		"store.refused":             stats.Refused,
		"store.failed":              stats.Failed,
		"store.failed_syncs":        stats.FailedSyncs,
		"store.removed_delivered":   uint64(stats.RemovedDelivered),
		"store.removed_undelivered": uint64(stats.RemovedUndelivered),
		"store.set_aside":           stats.SetAside,
	}
}

func (a *agent) deliveryCounters() map[string]uint64 {
	counters := map[string]uint64{}
	for _, s := range a.pipeline.Stats() {
		prefix := "delivery." + s.Destination + "." + s.Signal + "."
		counters[prefix+"records"] = s.Records
		counters[prefix+"refused"] = s.Refused
		counters[prefix+"rejected"] = s.Rejected
	}
	return counters
}
