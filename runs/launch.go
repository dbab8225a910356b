package runs

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

// launch is what a process, or its environment, says about how it was started. It may change until the process's first record.
type launch struct {
	// environment holds the variables of launcherVariables only.
	environment  map[string]string
	name, script string
	traceparent  string
}

// rankVariables give the rank in the whole job: the user's word, then the innermost launcher's. torchrun inside srun sets RANK, and SLURM_PROCID is
// then the number of the torchrun.
var rankVariables = [...]string{
	"PROV4ML_RANK", "RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "MV2_COMM_WORLD_RANK", "PALS_RANKID", "FLUX_TASK_RANK",
}

// attemptVariables count restarts; where two launchers count, the attempt is the sum.
var attemptVariables = [...]string{"TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT", "JOBSET_RESTART_ATTEMPT"}

// clusterVariables name a job of a cluster's controller, each after a prefix that keeps the ids of two kinds apart: Kubeflow's
// training operator sets PET_RDZV_ID, pods of a JobSet get JOBSET_NAME by the downward API (as XPK does it), Ray sets RAY_JOB_ID.
var clusterVariables = [...]struct{ name, prefix string }{
	{"PET_RDZV_ID", "kubeflow-"},
	{"JOBSET_UID", "jobset-"},
	{"JOBSET_NAME", "jobset-"},
	{"RAY_JOB_ID", "ray-"},
}

// otherVariables are those that the rules below read by name.
var otherVariables = [...]string{
	"PROV4ML_RUN_ID", "PROV4ML_RUN_NAME", "PROV4ML_ATTEMPT", "SLURM_JOB_ID", "SLURM_JOBID", "SLURM_STEP_ID", "SLURM_STEPID", "POD_NAMESPACE",
	"TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "TRACEPARENT",
}

// maxVariable is how long a launcher's variable may be, in bytes; a longer one is not taken.
const maxVariable = 1024

// launcherVariables are all that a rule below reads.
func launcherVariables() []string {
	names := slices.Concat(rankVariables[:], attemptVariables[:], otherVariables[:])
	for _, cluster := range clusterVariables {
		names = append(names, cluster.name)
	}
	return names
}

// take keeps what the rules read of an environment.
func (l *launch) take(environment map[string]string) {
	for _, name := range launcherVariables() {
		value, there := environment[name]
		if !there || len(value) > maxVariable {
			continue
		}
		if l.environment == nil {
			l.environment = map[string]string{}
		}
		l.environment[name] = value
	}
}

// runID applies the rules in their order. launcherStart gives when the launcher started, for the rule that needs it; derived is the
// id of a process that nothing names.
func (l *launch) runID(launcherStart func() (uint64, bool), derived func() string) string {
	env := l.environment
	if id := env["PROV4ML_RUN_ID"]; id != "" {
		return id
	}
	if env["SLURM_PROCID"] != "" {
		job, step := first(env["SLURM_JOB_ID"], env["SLURM_JOBID"]), first(env["SLURM_STEP_ID"], env["SLURM_STEPID"])
		switch {
		case job != "" && step != "":
			return "slurm-" + job + "." + step
		case job != "":
			return "slurm-" + job
		}
	}
	for _, variable := range clusterVariables {
		if id := env[variable.name]; id != "" && id != "none" {
			if namespace := env["POD_NAMESPACE"]; variable.name == "JOBSET_NAME" && namespace != "" {
				id = namespace + "/" + id
			}
			return variable.prefix + id
		}
	}
	// torchrun's default is the string "none".
	if id := env["TORCHELASTIC_RUN_ID"]; id != "" && id != "none" {
		return id
	}
	if address, port := env["MASTER_ADDR"], env["MASTER_PORT"]; address != "" && port != "" {
		if start, known := launcherStart(); known {
			return address + ":" + port + "-" + strconv.FormatUint(start, 10)
		}
	}
	return derived()
}

func first(values ...string) string {
	for _, value := range values {
		if value != "" {
			return value
		}
	}
	return ""
}

// rank returns the rank that a launcher gave; -1 = none did.
func (l *launch) rank() int32 {
	for _, name := range rankVariables {
		if rank, err := strconv.ParseInt(l.environment[name], 10, 32); err == nil && rank >= 0 {
			return int32(rank)
		}
	}
	return -1
}

// attempt counts the restarts so far.
func (l *launch) attempt() int32 {
	if attempt, err := strconv.ParseInt(l.environment["PROV4ML_ATTEMPT"], 10, 32); err == nil && attempt >= 0 {
		return int32(attempt)
	}
	var attempt int64
	for _, name := range attemptVariables {
		if count, err := strconv.ParseInt(l.environment[name], 10, 64); err == nil && count > 0 {
			attempt = min(attempt+min(count, math.MaxInt32), math.MaxInt32)
		}
	}
	return int32(attempt)
}

// serviceName names the training: as the user called it, else as its script is called.
func (l *launch) serviceName(comm string) string {
	return first(l.environment["PROV4ML_RUN_NAME"], l.name, l.script, comm, "unknown_service")
}

// describe takes a description and answers with what holds. The caller holds s.mu.
func (t *Tracker) describe(s *subject, d *Description) (Info, error) {
	more := 0
	for key := range d.Attributes {
		if _, there := s.attributes[key]; !there {
			more++
		}
	}
	if len(s.attributes)+more > maxAttributes {
		t.counters.refusedAttributes.Add(uint64(more))
		return Info{}, fmt.Errorf("%w: attributes: a run has at most %d, this one has %d and %d new ones came; log fewer parameters",
			ErrLimit, maxAttributes, len(s.attributes), more)
	}
	if s.attributes == nil && more > 0 {
		s.attributes = make(map[string]string, more)
	}
	maps.Copy(s.attributes, d.Attributes)

	s.launch.take(d.Environment)
	s.launch.name = first(d.Name, s.launch.name)
	s.launch.script = first(d.Script, s.launch.script)
	s.launch.traceparent = first(d.Traceparent, s.launch.traceparent)

	who := s.identity
	switch {
	case who == nil:
		who = t.identityOf(s)
	case d.Name != "" && !s.unfinished && !s.ending:
		// A run after the one that has ended may have another name. The records of the ended one keep theirs.
		who = proto.Clone(who).(*record.Process)
		who.ServiceName = s.launch.serviceName(who.GetServiceName())
		s.identity = who
	}
	for _, metric := range d.Metrics {
		if metric.Context != nil {
			metric.Context = proto.String(normalContext(metric.GetContext()))
		}
	}
	room := min(len(d.Metrics), maxMetrics-len(s.metrics))
	s.metrics = append(s.metrics, d.Metrics[:room]...)
	s.metricsDropped += uint64(len(d.Metrics) - room)
	t.counters.droppedMetrics.Add(uint64(len(d.Metrics) - room))
	s.unfinished = s.unfinished || len(d.Metrics) > 0

	return Info{RunID: who.GetRunId(), ServiceName: who.GetServiceName(), Rank: who.GetRank(), Attempt: who.GetAttempt()}, nil
}

// identify fixes who the process is, at its first record. The caller holds s.mu.
func (t *Tracker) identify(s *subject) {
	if s.identity == nil {
		s.identity = t.identityOf(s)
	}
}

// identityOf applies the rules to what is known now.
func (t *Tracker) identityOf(s *subject) *record.Process {
	pid := strconv.Itoa(s.key.PID)
	l := s.launch
	if l.environment == nil {
		// It has not said hello (curl for a shell): the environment it was started with says the same, where it may be read.
		l.take(startEnvironment(filepath.Join(t.config.ProcRoot, pid, "environ")))
	}
	if s.launch.traceparent == "" {
		s.launch.traceparent = l.environment["TRACEPARENT"]
	}
	var comm string
	stat, err := pinned(t.config.ProcRoot, s.key)
	if err == nil {
		comm = strings.ToValidUTF8(stat.Comm, "\uFFFD") // 15 bytes, which may end within a letter
	}
	id := l.runID(func() (uint64, bool) {
		if err != nil || stat.PPID <= 0 {
			return 0, false
		}
		launcher, err := process.ReadStat(t.config.ProcRoot, stat.PPID)
		return launcher.StartTicks, err == nil
	}, func() string {
		sum := sha256.Sum256([]byte(s.store))
		return hex.EncodeToString(sum[:8])
	})
	container, pod := containerOf(t.config.ProcRoot, s.key.PID)
	return &record.Process{
		BootId: t.bootID, Pid: int32(s.key.PID), StartTicks: s.key.StartTicks,
		StartUnixNanos: startUnixNanos(t.config.Now(), s.key.StartTicks),
		RunId:          id, Rank: l.rank(), Attempt: l.attempt(), ServiceName: l.serviceName(comm),
		HostName: t.config.HostName, ContainerId: container, PodUid: pod, Resource: t.config.Resource,
	}
}

// startEnvironment reads /proc/PID/environ: the environment at exec, without what the process changed since.
func startEnvironment(name string) map[string]string {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil // another user's process: then nothing names the run
	}
	environment := map[string]string{}
	for variable := range strings.SplitSeq(string(text), "\x00") {
		if name, value, ok := strings.Cut(variable, "="); ok {
			environment[name] = strings.ToValidUTF8(value, "\uFFFD") // a record's texts are
		}
	}
	return environment
}

// NamesRun says whether the launcher's variables name the run, so that all its processes find the same id by themselves.
func NamesRun(environment map[string]string) bool {
	var l launch
	l.take(environment)
	start := func() (uint64, bool) { return 0, true }
	return l.runID(start, func() string { return "" }) != ""
}
