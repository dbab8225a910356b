package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pinDir mounts a bpf file system of the test's own, whose pins go with it.
func pinDir(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		t.Fatalf("mount a bpf file system: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Errorf("unmount the bpf file system: %v", err)
		}
	})
	return filepath.Join(dir, "prov4ml")
}

// kill ends the daemon without a chance to do anything.
func (s *serve) kill(t *testing.T) {
	t.Helper()
	if err := s.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-s.waited
}

func (j *job) say(t *testing.T) {
	t.Helper()
	if _, err := io.WriteString(j.input, "\n"); err != nil {
		t.Fatal(err)
	}
}

// ofProcess are the spans of one process in the order of their windows.
func ofProcess(spans []span, pid int64) []span {
	var all []span
	for _, s := range append(named(spans, "log_system_metrics"), named(spans, "training_run_end")...) {
		if s.Resource["process.pid"] == pid {
			all = append(all, s)
		}
	}
	slices.SortFunc(all, func(a, b span) int { return int(a.End - b.End) })
	return all
}

// withoutGap checks that windows follow one another and nothing is missing in them.
func withoutGap(t *testing.T, spans []span) {
	t.Helper()
	for i, s := range spans {
		for _, flaw := range []string{"window.gap", "window.incomplete"} {
			if s.Attributes["prov4ml."+flaw] == true {
				t.Errorf("%s of step %v has %s: %v", s.Name, s.Attributes["prov4ml.step"], flaw, s.Attributes["prov4ml.unavailable"])
			}
		}
		if i > 0 && s.Start != spans[i-1].End {
			t.Errorf("%s of step %v starts %d ns after the window before", s.Name, s.Attributes["prov4ml.step"], s.Start-spans[i-1].End)
		}
	}
}

func wroteBytes(t *testing.T, j *job) int64 {
	t.Helper()
	_, text, found := strings.Cut(j.out.String(), "wrote ")
	if !found {
		t.Fatal("the writer did not print what it wrote")
	}
	var bytes int64
	if _, err := fmt.Sscan(text, &bytes); err != nil {
		t.Fatal(err)
	}
	return bytes
}

func TestServeKilledDuringAWriter(t *testing.T) {
	for _, how := range []string{"killed", "stopped"} {
		t.Run(how, func(t *testing.T) {
			dir, pins := dataDir(t), pinDir(t)
			data := filepath.Join(dir, "data")
			if err := os.Mkdir(data, 0o777); err != nil {
				t.Fatal(err)
			}
			s := startServe(t, dir, "--pin-dir", pins)
			// Long enough for two restarts and calls before, between and after.
			seconds := fromEnvironment(t, "PROV4ML_TEST_WRITER_SECONDS", 20)
			j := startJob(t, clientCommand(t, s.socket, "writer.py", data, strconv.Itoa(seconds), "2"))
			for _, step := range []string{"step 2\n", "step 5\n"} {
				j.awaitText(t, step)
				if how == "killed" {
					s.kill(t)
				} else {
					s.stop(t)
				}
				time.Sleep(1500 * time.Millisecond) // the writer goes on
				s = startServe(t, dir, "--pin-dir", pins)
			}
			if code := j.exit(t); code != 0 {
				t.Fatalf("exit status %d", code)
			}
			traces := filepath.Join(s.out, "traces.jsonl")
			await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
			s.stop(t)
			spans := ofProcess(readSpans(t, traces), int64(j.Process.Pid))
			withoutGap(t, spans)
			got, want := sum(t, spans, "disk.write_bytes"), wroteBytes(t, j)
			if got != want {
				t.Errorf("written %d, want %d: %+d", got, want, got-want)
			}
			t.Logf("%d windows in %d s: %d bytes written, %d charged", len(spans), seconds, want, got)
			if len(spans) < 8 {
				t.Errorf("%d windows", len(spans))
			}
			inexact := 0
			for _, one := range spans {
				if one.Attributes["prov4ml.memory.rss_peak_exact"] == false && one.Attributes["prov4ml.memory.rss_peak_upper_bytes"] == nil {
					inexact++
				}
			}
			if inexact < 2 {
				t.Errorf("%d windows say that nobody looked at their peak all the time, want those of the two restarts", inexact)
			}
			onlyOnce(t, readSpans(t, traces))
		})
	}
}

func TestNestedRunsOutliveTheAgent(t *testing.T) {
	dir, pins := dataDir(t), pinDir(t)
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o777); err != nil {
		t.Fatal(err)
	}
	s := startServe(t, dir, "--pin-dir", pins)
	j := startJob(t, clientCommand(t, s.socket, "inner_outer.py", data))
	j.awaitText(t, "kill\n")
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the first inner run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.kill(t)
	j.say(t)
	j.awaitText(t, "start\n")
	s = startServe(t, dir, "--pin-dir", pins)
	await(t, "the end of the inner run that ended meanwhile", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 2 })
	j.say(t)
	j.awaitText(t, "end\n")
	j.say(t)
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	await(t, "all runs' end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 4 })
	s.stop(t)
	spans := readSpans(t, traces)
	outer := ofProcess(spans, int64(j.Process.Pid))
	withoutGap(t, outer)
	if got := atStep(t, outer, 1).integer(t, "disk.write_bytes"); got != (3+8+16+32)*mib {
		t.Errorf("the outer step is charged %d MiB, want its own and the inner ones'", got/mib)
	}
	byInner := map[int64]int64{}
	for _, end := range named(spans, "training_run_end") {
		if pid := end.Resource["process.pid"].(int64); pid != int64(j.Process.Pid) {
			byInner[end.integer(t, "disk.write_bytes")]++
			withoutGap(t, ofProcess(spans, pid))
		}
	}
	for _, size := range []int64{8, 16, 32} {
		if byInner[size*mib] != 1 {
			t.Errorf("ends of the inner runs by bytes: %v, want one of %d MiB", byInner, size)
		}
	}
}

// A process that has said hello and logged nothing yet.
func TestFirstWindowOutlivesTheAgent(t *testing.T) {
	dir, pins := dataDir(t), pinDir(t)
	s := startServe(t, dir, "--pin-dir", pins)
	j := startJob(t, clientCommand(t, s.socket, "late_call.py", dir))
	j.awaitText(t, "imported\n")
	j.say(t)
	j.awaitText(t, "written\n")
	s.kill(t)
	s = startServe(t, dir, "--pin-dir", pins)
	j.say(t)
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.stop(t)
	spans := ofProcess(readSpans(t, traces), int64(j.Process.Pid))
	withoutGap(t, spans)
	if got := spans[0].integer(t, "disk.write_bytes"); got != 5*mib {
		t.Errorf("the first window has %d bytes, want %d", got, 5*mib)
	}
	if spans[0].Attributes["prov4ml.window.first"] == true {
		t.Error("the first window starts at hello, and says that it does not")
	}
}

func TestCleanup(t *testing.T) {
	dir, pins := dataDir(t), pinDir(t)
	s := startServe(t, dir, "--pin-dir", pins)
	cleanup := func(flags ...string) string {
		t.Helper()
		command := exec.Command(binary, append([]string{"cleanup", "--pin-dir", pins}, flags...)...)
		command.Env = trainingEnvironment()
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("cleanup: %v: %s", err, out)
		}
		return string(out)
	}
	check := func() string {
		t.Helper()
		command := exec.Command(binary, "check", "--pin-dir", pins)
		command.Env = trainingEnvironment()
		out, err := command.CombinedOutput()
		if err != nil {
			t.Fatalf("check: %v: %s", err, out)
		}
		return string(out)
	}
	if out := check(); !strings.Contains(out, s.state) {
		t.Errorf("check does not name the pinned set:\n%s", out)
	}
	if out := cleanup(); !strings.Contains(out, "kept") || !strings.Contains(out, s.state) {
		t.Errorf("of a live agent: %s", out)
	}
	data := filepath.Join(dir, "data")
	if err := os.Mkdir(data, 0o777); err != nil {
		t.Fatal(err)
	}
	j := startJob(t, clientCommand(t, s.socket, "writer.py", data, "6", "0.5"))
	j.awaitText(t, "step 2\n")
	s.kill(t)
	if out := cleanup("--all"); !strings.Contains(out, "removed") || !strings.Contains(out, s.state) {
		t.Errorf("of a dead one: %s", out)
	}
	if out := cleanup("--all"); !strings.Contains(out, "nothing to remove") {
		t.Errorf("once more: %s", out)
	}
	if entries, err := os.ReadDir(pins); err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
	s = startServe(t, dir, "--pin-dir", pins)
	if code := j.exit(t); code != 0 {
		t.Fatalf("exit status %d", code)
	}
	traces := filepath.Join(s.out, "traces.jsonl")
	await(t, "the run's end", func() bool { return len(named(readSpansSoFar(t, traces), "training_run_end")) == 1 })
	s.stop(t)
	gaps := 0
	for _, one := range ofProcess(readSpans(t, traces), int64(j.Process.Pid)) {
		if one.Attributes["prov4ml.window.gap"] == true {
			gaps++
		}
	}
	if gaps != 1 {
		t.Errorf("%d windows have a gap, want the one in which counting was cut off", gaps)
	}
}
