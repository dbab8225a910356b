package e2e

import (
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const mib = 1 << 20

// stranger writes 48 MiB and calls sync, as any other process of the machine might.
func stranger(t *testing.T, dir string) {
	t.Helper()
	write := exec.Command("sh", "-c", `dd if=/dev/zero of="$1" bs=1M count=48 status=none && sync`, "sh", filepath.Join(dir, "stranger"))
	if out, err := write.CombinedOutput(); err != nil {
		t.Fatalf("stranger: %v: %s", err, out)
	}
}

// sum adds an attribute over the log_system_metrics spans and the run's end.
func sum(t *testing.T, spans []span, name string) int64 {
	t.Helper()
	var total int64
	for _, s := range append(named(spans, "log_system_metrics"), named(spans, "training_run_end")...) {
		total += s.integer(t, name)
	}
	return total
}

// atStep returns the log_system_metrics span of a step.
func atStep(t *testing.T, spans []span, step int64) span {
	t.Helper()
	for _, s := range named(spans, "log_system_metrics") {
		if s.Attributes["prov4ml.step"] == step {
			return s
		}
	}
	t.Fatalf("no log_system_metrics span of step %d", step)
	return span{}
}

func TestKnownBytesAreChargedExactly(t *testing.T) {
	data, out := dataDir(t), filepath.Join(dataDir(t), "run")
	// Once without the agent: Python's own modules are in the page cache then.
	warm := exec.Command(python(), "-c", "import prov4ml")
	_ = warm.Run()
	j := startRun(t, out, nil, python(), script(t, "known_bytes.py"), data)
	j.awaitText(t, "flush")
	stranger(t, data)
	if _, err := io.WriteString(j.input, "go\n"); err != nil {
		t.Fatal(err)
	}
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	const written = (64 + 32 + 16 + 8) * mib
	if got := sum(t, spans, "disk.write_bytes"); got != written {
		t.Errorf("written %d, want %d: %+d", got, written, got-written)
	}
	const dirtied = (64 + 16 + 8) * mib
	if got := sum(t, spans, "disk.dirtied_bytes"); got != dirtied {
		t.Errorf("dirtied %d, want %d: %+d", got, dirtied, got-dirtied)
	}
	if got := atStep(t, spans, 1).integer(t, "disk.dirtied_bytes"); got != (64+16)*mib {
		t.Errorf("dirtied in step 1: %d, want %d", got, (64+16)*mib)
	}
	const read = (64 + 32 + 16) * mib
	if got := atStep(t, spans, 3).integer(t, "disk.read_bytes"); got != read {
		t.Errorf("read in step 3: %d, want %d: %+d", got, read, got-read)
	}
	if got := atStep(t, spans, 2).integer(t, "disk.other_write_bytes"); got < 48*mib {
		t.Errorf("the stranger's 48 MiB are not in other_write_bytes: %d", got)
	}
	for _, s := range named(spans, "log_system_metrics") {
		if s.Attributes["prov4ml.source.disk"] != "ebpf" {
			t.Errorf("step %v: source.disk is %v", s.Attributes["prov4ml.step"], s.Attributes["prov4ml.source.disk"])
		}
	}
}

func TestWindowsHoldTheirOwnBytes(t *testing.T) {
	data, out := dataDir(t), filepath.Join(dataDir(t), "run")
	j := startRun(t, out, nil, python(), script(t, "steps.py"), data, "3", "11", "7")
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	spans := readSpans(t, filepath.Join(out, "traces.jsonl"))
	previous := atStep(t, spans, 0)
	for step, size := range []int64{3, 11, 7} {
		s := atStep(t, spans, int64(step+1))
		if got := s.integer(t, "disk.write_bytes"); got != size*mib {
			t.Errorf("step %d: written %d, want %d", step+1, got, size*mib)
		}
		if got := s.integer(t, "disk.dirtied_bytes"); got != size*mib {
			t.Errorf("step %d: dirtied %d, want %d", step+1, got, size*mib)
		}
		if s.Start != previous.End {
			t.Errorf("step %d: the window starts %d ns after the end of the previous one", step+1, s.Start-previous.End)
		}
		previous = s
	}
	// The same totals from the points: step is an attribute, so every step is a set of its own.
	written := map[int64]float64{}
	for _, p := range readPoints(t, filepath.Join(out, "metrics.jsonl")) {
		if p.Metric == "prov4ml.disk.write_bytes" && p.Attributes["disk.io.direction"] == "write" {
			if step, ok := p.Attributes["prov4ml.step"].(int64); ok {
				written[step] = p.Value
			}
		}
	}
	for step, size := range []float64{3, 11, 7} {
		if written[int64(step+1)] != size*mib {
			t.Errorf("step %d: the point says %v bytes written, want %v", step+1, written[int64(step+1)], size*mib)
		}
	}
}

func TestRunPassesTheExitStatusOn(t *testing.T) {
	plain := filepath.Join(dataDir(t), "script")
	if err := os.WriteFile(plain, []byte("exit $1\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name    string
		command []string
		want    int
	}{
		{"status", []string{"sh", "-c", "exit 42"}, 42},
		{"signal", []string{"sh", "-c", "kill -9 $$"}, 128 + 9},
		{"not found", []string{"/no/such/command"}, 127},
		{"not found on the path", []string{"no-such-command-anywhere"}, 127},
		{"not executable", []string{"/etc/passwd"}, 126},
		{"script that names no shell", []string{plain, "43"}, 43},
	} {
		t.Run(row.name, func(t *testing.T) {
			j := startRun(t, filepath.Join(dataDir(t), "run"), nil, row.command...)
			if got := j.exit(t); got != row.want {
				t.Errorf("exit status %d, want %d", got, row.want)
			}
		})
	}
}

func TestRunPassesSignalsOn(t *testing.T) {
	for sig, want := range map[syscall.Signal]int{
		syscall.SIGINT: 3, syscall.SIGTERM: 4, syscall.SIGHUP: 5, syscall.SIGUSR1: 6, syscall.SIGUSR2: 7,
	} {
		t.Run(sig.String(), func(t *testing.T) {
			j := startRun(t, filepath.Join(dataDir(t), "run"), nil, "sh", "-c",
				`trap 'exit 3' INT; trap 'exit 4' TERM; trap 'exit 5' HUP; trap 'exit 6' USR1; trap 'exit 7' USR2; echo ready; while :; do sleep 0.05; done`)
			j.awaitText(t, "ready")
			if err := j.Process.Signal(sig); err != nil {
				t.Fatal(err)
			}
			if got := j.exit(t); got != want {
				t.Errorf("exit status %d, want %d", got, want)
			}
		})
	}
}

// nohup(1) starts its command with SIGHUP ignored.
func TestRunLeavesIgnoredSignalsIgnored(t *testing.T) {
	run := runCommand(filepath.Join(dataDir(t), "run"), nil, "sh", "-c", `echo ready; read line; exit 5`)
	cmd := exec.Command("sh", append([]string{"-c", `trap '' HUP; exec "$0" "$@"`}, run.Args...)...)
	cmd.Env = run.Env
	j := startJob(t, cmd)
	j.awaitText(t, "ready")
	if err := j.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(j.input, "go on\n"); err != nil {
		t.Fatal(err)
	}
	if got := j.exit(t); got != 5 {
		t.Errorf("exit status %d, want 5", got)
	}
}

func TestSignalEndsSettling(t *testing.T) {
	out := filepath.Join(dataDir(t), "run")
	// The orphan keeps the tree from being empty.
	j := startRun(t, out, []string{"--settle", "1h"}, "sh", "-c", `sleep 1000 >/dev/null 2>&1 </dev/null & echo $!; exit 9`)
	await(t, "the orphan's pid", func() bool { return strings.HasSuffix(j.out.String(), "\n") })
	orphan, err := strconv.Atoi(strings.TrimSpace(j.out.String()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Kill(orphan, syscall.SIGKILL) })
	// The agent may not have waited for the command yet: the signal is the command's then, which is no more.
	await(t, "the end", func() bool {
		_ = j.Process.Signal(syscall.SIGTERM)
		select {
		case <-j.waited:
			return true
		default:
			return false
		}
	})
	if got := j.exit(t); got != 9 {
		t.Errorf("exit status %d, want 9", got)
	}
	if !strings.Contains(j.err.String(), filepath.Join(out, "records.db")) {
		t.Error("the run has no summary")
	}
}

func TestRunMakesNothingWithBadSettings(t *testing.T) {
	out := filepath.Join(dataDir(t), "run")
	cmd := runCommand(out, nil, "true")
	cmd.Env = append(cmd.Env, "OTEL_EXPORTER_OTLP_ENDPOINT=http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_CERTIFICATE=/no/such/file")
	if code := startJob(t, cmd).exit(t); code != 125 {
		t.Errorf("exit status %d, want 125", code)
	}
	if _, err := os.Stat(out); !os.IsNotExist(err) {
		t.Errorf("%s was made: %v", out, err)
	}
}

func TestRunRefusesADirectoryThatHoldsARun(t *testing.T) {
	out := filepath.Join(dataDir(t), "run")
	if code := startRun(t, out, nil, "true").exit(t); code != 0 {
		t.Fatalf("first run: exit status %d", code)
	}
	before, err := os.ReadFile(filepath.Join(out, "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	if code := startRun(t, out, nil, "true").exit(t); code != 125 {
		t.Errorf("second run: exit status %d, want 125", code)
	}
	after, err := os.ReadFile(filepath.Join(out, "records.db"))
	if err != nil {
		t.Fatal(err)
	}
	if string(before) != string(after) {
		t.Error("the refused run changed records.db")
	}
}

func TestSettleEndsWhenNothingIsPending(t *testing.T) {
	data, out := dataDir(t), filepath.Join(dataDir(t), "run")
	started := time.Now()
	j := startRun(t, out, []string{"--settle", "90s"}, python(), script(t, "steps.py"), data, "1")
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	if took := time.Since(started); took > time.Minute {
		t.Errorf("all bytes were written, yet the run took %v of its 90 s of settling", took)
	}
}
