package main

import (
	"context"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"

	"github.com/prov4ml/agent/flops"
	"github.com/prov4ml/agent/otel"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/runs"
	"github.com/prov4ml/agent/server"
	"github.com/prov4ml/agent/store"
)

type serveCommand struct {
	Socket      string        `help:"Unix socket of the log calls." default:"/run/prov4ml/agent.sock" env:"PROV4ML_SOCKET,PROV4ML_AGENT_SOCKET"`
	SocketMode  string        `help:"Mode of the socket, octal; 0666 lets every user log." default:"0660" env:"PROV4ML_SOCKET_MODE"`
	SocketGroup string        `help:"Group of the socket (default: prov4ml if it exists, else root's)." placeholder:"NAME" env:"PROV4ML_SOCKET_GROUP"`
	State       string        `help:"Directory of the record store." default:"/var/lib/prov4ml" env:"PROV4ML_STATE"`
	Out         string        `help:"Write traces.jsonl and metrics.jsonl (OTLP JSON lines) here too." placeholder:"DIR" env:"PROV4ML_OUT"`
	MetricsStep string        `help:"How a metric point shows its step: attribute, or exemplar for stores that index series (Prometheus)." enum:"attribute,exemplar" default:"attribute" env:"PROV4ML_METRICS_STEP"`
	NoPin       bool          `help:"Pin nothing, and remove what an earlier serve has pinned: counting then stops while the agent restarts." env:"PROV4ML_NO_PIN"`
	PinDir      string        `help:"Where counting is pinned, in a bpf file system: it goes on for 10 minutes without the agent, and the next serve with the same --state takes it over." default:"/sys/fs/bpf/prov4ml" env:"PROV4ML_PIN_DIR"`
	Settle      time.Duration `help:"How long after a process's end its late writeback and orphans still count." default:"60s" env:"PROV4ML_SETTLE"`
	PeakFlops   string        `help:"Dense peak FLOP/s of the devices by dtype, for MFU, where the built-in table does not know them: bf16=989e12,tf32=494.7e12." placeholder:"DTYPE=FLOPS,..." env:"PROV4ML_PEAK_FLOPS"`
	MaxBytes    int64         `help:"Bytes of records kept; beyond it the oldest go, the delivered first." default:"1073741824" env:"PROV4ML_MAX_BYTES"`
	MaxAge      time.Duration `help:"Age of records kept; 0 = any." default:"168h" env:"PROV4ML_MAX_AGE"`
	Takeover    time.Duration `help:"How long to wait for another serve to end." default:"60s" env:"PROV4ML_TAKEOVER"`
}

// Run serves until SIGTERM or SIGINT.
func (c serveCommand) Run(s streams) error {
	mode, err := strconv.ParseUint(c.SocketMode, 8, 12)
	if err != nil || mode > 0o777 {
		return fmt.Errorf("--socket-mode %s: want an octal mode such as 0660", c.SocketMode)
	}
	receiver, err := otel.ReadEnvironment(os.Getenv)
	if err != nil {
		return err
	}
	peak, err := flops.ParseOverride(c.PeakFlops)
	if err != nil {
		return fmt.Errorf("--peak-flops: %w", err)
	}
	log := slog.New(slog.NewTextHandler(s.err, nil))
	for _, note := range receiver.Notes {
		log.Warn(note)
	}
	if system, err := store.NetworkFileSystem(c.State); err != nil {
		return fmt.Errorf("--state %s: %w", c.State, err)
	} else if system != "" {
		return fmt.Errorf("--state %s is on %s, where the record store cannot live; name a local directory", c.State, system)
	}
	for _, dir := range []string{c.State, c.Out} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make a missing directory: %w", err)
		}
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	a, err := startAgent(ctx, agentConfig{
		socket: server.SocketConfig{Path: c.Socket, Mode: fs.FileMode(mode), Group: c.SocketGroup, Wait: c.Takeover},
		store: store.Config{
			Path: filepath.Join(c.State, recordsFile), MaxBytes: c.MaxBytes, MaxAge: c.MaxAge, LockWait: c.Takeover, Log: log,
		},
		pipeline: otel.Config{
			MetricsStep: otel.StepMode(c.MetricsStep), OTLP: receiver, Directory: c.Out, Log: log,
		},
		probe: process.Config{StateDir: c.State, PinDir: c.PinDir, NoPin: c.NoPin},
		runs:  runs.Config{Settle: settle(c.Settle), Resource: nodeResource()},
		peak:  peak,
		log:   log,
	})
	if err != nil {
		return err
	}
	working, broken, restarts := 0, 0, ""
	for _, status := range a.probe.Status() {
		if status.Name == process.KeepStatus {
			restarts = status.Reason
		}
		if status.OK {
			working++
			continue
		}
		broken++
		log.Warn("probe does not work", "probe", status.Name, "reason", status.Reason, "cure", status.Cure)
	}
	log.Info("ready", "version", version, "socket", c.Socket, "state", c.State, "out", c.Out,
		"otlp_traces", receiver.Traces.String(), "otlp_metrics", receiver.Metrics.String(),
		"probes_working", working, "probes_not_working", broken,
		"counting_across_restarts", restarts)
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		log.Warn("systemd is not told that the agent is ready", "error", err)
	}
	select {
	case <-ctx.Done():
	case err := <-a.served: // accepting failed for good
		a.served <- err
	}
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	log.Info("ending")
	if err := a.end(context.Background(), false); err != nil {
		return fmt.Errorf("end: %w", err)
	}
	log.Info("ended")
	return nil
}

// nodeResource are the resource attributes of every process of this node that its environment gives (the downward API).
func nodeResource() map[string]string {
	resource := map[string]string{}
	for variable, attribute := range map[string]string{
		"NODE_NAME": "k8s.node.name", "K8S_NODE_NAME": "k8s.node.name", "K8S_CLUSTER_NAME": "k8s.cluster.name",
	} {
		if value := os.Getenv(variable); value != "" {
			resource[attribute] = value
		}
	}
	return resource
}
