package e2e

import (
	"path/filepath"
	"strings"
	"testing"
)

// TestAgentYieldsAndItsCommandDoesNot checks SCHED_BATCH (3) for all threads of the agent and SCHED_OTHER (0) for its command.
func TestAgentYieldsAndItsCommandDoesNot(t *testing.T) {
	j := startRun(t, filepath.Join(dataDir(t), "run"), nil, python(), "-c", `
import os
agent = {os.sched_getscheduler(int(t)) for t in os.listdir(f"/proc/{os.getppid()}/task")}
print("agent", agent, "command", os.sched_getscheduler(0))
`)
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	if want := "agent {3} command 0"; !strings.Contains(j.out.String(), want) {
		t.Errorf("got %q, want %q", j.out.String(), want)
	}
}
