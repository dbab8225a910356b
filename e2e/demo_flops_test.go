package e2e

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestDemoFlopsIsRight(t *testing.T) {
	cmd := exec.Command(binary, "demo", "flops", "--python", python())
	cmd.Env = trainingEnvironment("OMP_NUM_THREADS=1")
	j := startJob(t, cmd)
	if code := j.exit(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	for _, want := range []string{"convolutions, backward", "decoder, forward", "LSTM, backward", "350,023,680", "right: every count to the integer"} {
		if !strings.Contains(j.out.String(), want) {
			t.Errorf("the table lacks %q", want)
		}
	}
}

func TestDemoFlopsNeedsTorch(t *testing.T) {
	cmd := exec.Command(binary, "demo", "flops", "--python", filepath.Join(t.TempDir(), "python"))
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 125 || !strings.Contains(string(out), "does not import torch") || !strings.Contains(string(out), "--python") {
		t.Errorf("%v: %s", err, out)
	}
}
