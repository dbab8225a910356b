package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// leftovers are what a demo makes in the directories that it uses.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func TestDemoTruthIsRightAndLeavesNothing(t *testing.T) {
	dir := dataDir(t)
	cmd := exec.Command(binary, "demo", "truth", "--dir", dir, "--python", python())
	j := startJob(t, cmd)
	if code := j.exit(t); code != 0 {
		t.Errorf("exit status %d", code)
	}
	table := j.out.String()
	for _, want := range []string{
		"child, late writeback", "orphan", "grandchild", "O_DIRECT", "cold read", "warm read", "300 MiB for 0.2 s",
		"67,108,864", "right: every byte of disk data",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("the table lacks %q", want)
		}
	}
	if !strings.Contains(j.err.String(), "8/8 ") {
		t.Error("no progress lines")
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDemoTruthEndsCleanlyWhenInterrupted(t *testing.T) {
	dir := dataDir(t)
	j := startJob(t, exec.Command(binary, "demo", "truth", "--dir", dir))
	await(t, "the first act", func() bool { return strings.Contains(j.err.String(), "1/8 ") })
	if err := j.Process.Signal(syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	if code := j.exit(t); code != 130 {
		t.Errorf("exit status %d, want 130", code)
	}
	if left := leftovers(t, dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestDemoTruthRefusesMemory(t *testing.T) {
	const memory = "/dev/shm"
	if _, err := os.Stat(memory); err != nil {
		t.Fatal(err)
	}
	j := startJob(t, exec.Command(binary, "demo", "truth", "--dir", memory))
	if code := j.exit(t); code != 125 {
		t.Errorf("exit status %d, want 125", code)
	}
	if said := j.err.String(); !strings.Contains(said, "--dir "+memory) || !strings.Contains(said, "on a disk") {
		t.Errorf("it says %q, and not which flag is wrong and what to do", said)
	}
}
