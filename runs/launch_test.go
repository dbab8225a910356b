package runs

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/prov4ml/agent/record"
)

func TestRunID(t *testing.T) {
	for name, row := range map[string]struct {
		environment map[string]string
		want        string
	}{
		"nothing": {nil, "derived"},
		"the agent's own goes before all": {map[string]string{
			"PROV4ML_RUN_ID": "mine", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "t",
		}, "mine"},
		"srun":                        {map[string]string{"SLURM_PROCID": "3", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "2"}, "slurm-7.2"},
		"srun, old names":             {map[string]string{"SLURM_PROCID": "3", "SLURM_JOBID": "7", "SLURM_STEPID": "0"}, "slurm-7.0"},
		"sbatch without srun":         {map[string]string{"SLURM_JOB_ID": "7", "TORCHELASTIC_RUN_ID": "t"}, "t"},
		"srun goes before torchrun":   {map[string]string{"SLURM_PROCID": "0", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "TORCHELASTIC_RUN_ID": "t"}, "slurm-7.1"},
		"JobSet":                      {map[string]string{"JOBSET_NAME": "train", "POD_NAMESPACE": "ml", "TORCHELASTIC_RUN_ID": "t"}, "jobset-ml/train"},
		"Kubeflow":                    {map[string]string{"PET_RDZV_ID": "job", "JOBSET_NAME": "x", "TORCHELASTIC_RUN_ID": "job"}, "kubeflow-job"},
		"torchrun's default by PET":   {map[string]string{"PET_RDZV_ID": "none", "TORCHELASTIC_RUN_ID": "none"}, "derived"},
		"Ray":                         {map[string]string{"RAY_JOB_ID": "01000000", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "ray-01000000"},
		"torchrun":                    {map[string]string{"TORCHELASTIC_RUN_ID": "t", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "t"},
		"torchrun's default":          {map[string]string{"TORCHELASTIC_RUN_ID": "none", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "a:1-42"},
		"torchrun's empty":            {map[string]string{"TORCHELASTIC_RUN_ID": "", "MASTER_ADDR": "a", "MASTER_PORT": "1"}, "a:1-42"},
		"none and no rendezvous":      {map[string]string{"TORCHELASTIC_RUN_ID": "none"}, "derived"},
		"rendezvous":                  {map[string]string{"MASTER_ADDR": "node0", "MASTER_PORT": "29500"}, "node0:29500-42"},
		"rendezvous without port":     {map[string]string{"MASTER_ADDR": "node0"}, "derived"},
		"variables of something else": {map[string]string{"HOME": "/root", "RUN_ID": "x"}, "derived"},
	} {
		t.Run(name, func(t *testing.T) {
			var l launch
			l.take(row.environment)
			got := l.runID(func() (uint64, bool) { return 42, true }, func() string { return "derived" })
			if got != row.want {
				t.Errorf("got %q, want %q", got, row.want)
			}
		})
	}
	var l launch
	l.take(map[string]string{"MASTER_ADDR": "node0", "MASTER_PORT": "29500"})
	if got := l.runID(func() (uint64, bool) { return 0, false }, func() string { return "derived" }); got != "derived" {
		t.Errorf("launcher that is gone: %q", got)
	}
}

func TestRankAndAttempt(t *testing.T) {
	for name, row := range map[string]struct {
		environment   map[string]string
		rank, attempt int32
	}{
		"nothing":              {nil, -1, 0},
		"torchrun":             {map[string]string{"RANK": "5", "LOCAL_RANK": "1", "TORCHELASTIC_RESTART_COUNT": "2"}, 5, 2},
		"srun":                 {map[string]string{"SLURM_PROCID": "9", "SLURM_RESTART_COUNT": "1"}, 9, 1},
		"torchrun under srun":  {map[string]string{"RANK": "17", "SLURM_PROCID": "2", "TORCHELASTIC_RESTART_COUNT": "1", "SLURM_RESTART_COUNT": "3"}, 17, 4},
		"Open MPI":             {map[string]string{"OMPI_COMM_WORLD_RANK": "3"}, 3, 0},
		"PMIx":                 {map[string]string{"PMIX_RANK": "4"}, 4, 0},
		"MPICH and Intel MPI":  {map[string]string{"PMI_RANK": "6"}, 6, 0},
		"MVAPICH":              {map[string]string{"MV2_COMM_WORLD_RANK": "7"}, 7, 0},
		"rank 0 is a rank":     {map[string]string{"RANK": "0"}, 0, 0},
		"no number, next one":  {map[string]string{"RANK": "zero", "SLURM_PROCID": "2"}, 2, 0},
		"negative is none":     {map[string]string{"RANK": "-1"}, -1, 0},
		"too large":            {map[string]string{"RANK": "99999999999", "TORCHELASTIC_RESTART_COUNT": "99999999999"}, -1, 2147483647},
		"counts that overflow": {map[string]string{"TORCHELASTIC_RESTART_COUNT": "2147483647", "SLURM_RESTART_COUNT": "2"}, -1, 2147483647},
		"the user's word": {map[string]string{
			"PROV4ML_RANK": "8", "RANK": "1", "PROV4ML_ATTEMPT": "5", "SLURM_RESTART_COUNT": "1",
		}, 8, 5},
		"JobSet":                   {map[string]string{"JOBSET_RESTART_ATTEMPT": "1"}, -1, 1},
		"empty count of a restart": {map[string]string{"SLURM_RESTART_COUNT": ""}, -1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			var l launch
			l.take(row.environment)
			if rank, attempt := l.rank(), l.attempt(); rank != row.rank || attempt != row.attempt {
				t.Errorf("rank %d attempt %d, want %d and %d", rank, attempt, row.rank, row.attempt)
			}
		})
	}
}

func TestServiceName(t *testing.T) {
	for name, row := range map[string]struct {
		launch launch
		want   string
	}{
		"variable":    {launch{environment: map[string]string{"PROV4ML_RUN_NAME": "a"}, name: "b", script: "c.py"}, "a"},
		"description": {launch{name: "b", script: "c.py"}, "b"},
		"script":      {launch{script: "c.py"}, "c.py"},
		"program":     {launch{}, "bash"},
	} {
		if got := row.launch.serviceName("bash"); got != row.want {
			t.Errorf("%s: got %q, want %q", name, got, row.want)
		}
	}
}

func TestLauncherVariablesAreBounded(t *testing.T) {
	var l launch
	l.take(map[string]string{"PROV4ML_RUN_ID": string(make([]byte, maxVariable+1)), "SECRET_TOKEN": "x", "RANK": "1"})
	if len(l.environment) != 1 || l.environment["RANK"] != "1" {
		t.Errorf("%v", l.environment)
	}
}

// What the client does not send, no rule can use; what no rule uses is nobody's business.
func TestClientSendsWhatTheRulesRead(t *testing.T) {
	source, err := os.ReadFile("../client/python/prov4ml/_environment.py")
	if err != nil {
		t.Fatal(err)
	}
	_, list, found := strings.Cut(string(source), "_NAMES = (\n")
	list, _, closed := strings.Cut(list, "\n)\n")
	if !found || !closed {
		t.Fatal("the client has no list _NAMES")
	}
	sent := []string{"TRACEPARENT"} // in a field of its own
	for _, quoted := range regexp.MustCompile(`"(\w+)"`).FindAllStringSubmatch(list, -1) {
		sent = append(sent, quoted[1])
	}
	read := launcherVariables()
	slices.Sort(sent)
	slices.Sort(read)
	if diff := cmp.Diff(read, sent); diff != "" {
		t.Errorf("read by a rule (-), sent by the client (+):\n%s", diff)
	}
}

func TestContextNames(t *testing.T) {
	for given, want := range map[string]string{
		"TRAINING": "training", "Validation": "validation", "evaluation": "evaluation", "tEsTiNg": "testing",
		"Train": "Train", "": "", "training ": "training ", "Fine-Tuning": "Fine-Tuning", "TESTİNG": "TESTİNG",
	} {
		if got := normalContext(given); got != want {
			t.Errorf("%q: got %q, want %q", given, got, want)
		}
	}
}

// Neither a process's name, cut to 15 bytes, nor its environment need be UTF-8; a record with another text would be refused.
func TestAProcessWithAStrangeNameIsLogged(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "a训练训练训练")
	if err := os.Symlink(sleep, file); err != nil {
		t.Fatal(err)
	}
	for _, environment := range [][]string{nil, {"PROV4ML_RUN_NAME=a\xff", "PROV4ML_RUN_ID=b\xff"}} {
		cmd := exec.Command(file, "1000")
		cmd.Env = environment
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		})
		b := newBench(t)
		rec := b.call(t, callerOf(t, cmd.Process.Pid), Call{})
		if err := record.CheckText(rec); err != nil {
			t.Error(err)
		}
		want := "a训练训练\uFFFD"
		if environment != nil {
			want = "a\uFFFD"
		}
		if got := rec.GetProcess().GetServiceName(); got != want {
			t.Errorf("service name %q, want %q", got, want)
		}
	}
}
