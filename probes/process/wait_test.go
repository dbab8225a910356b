package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prov4ml/agent/record"
)

// A direct read waits for the disk; what a child waits is not the root's.
func TestWaitForADisk(t *testing.T) {
	k := shareTestKernel(t)
	v := newVolume(t, "ext4", filepath.Join(t.TempDir(), "image"), 1, mkfsExt4)
	file := filepath.Join(v.dir, "a")
	if err := (step{Do: "write", Path: file, Bytes: 32 * mib}).Act(); err != nil {
		t.Fatal(err)
	}
	v.sync(t)
	read := step{Do: "read-direct", Path: file, Bytes: 32 * mib}
	a := play(t, read, step{Do: "pause"}, step{Do: "spawn", Steps: []step{read}}, step{Do: "pause"})
	tree := k.mustTrack(t, a)
	if got := k.mustSnapshot(t, tree).Trees[0].Waits; got.DiskNanos != 0 || got.ReclaimNanos != 0 {
		t.Errorf("at the start %+v", got)
	}
	began := time.Now()
	a.next()
	a.paused()
	took := time.Since(began)
	s := k.mustSnapshot(t, tree)
	waited := s.Trees[0].Waits.DiskNanos
	if waited == 0 || waited > uint64(took) || s.DiskWait.State != record.State_OK {
		t.Errorf("blocked for %d ns of %v, %v", waited, took, s.DiskWait)
	}
	a.next()
	a.paused()
	after := k.mustSnapshot(t, tree)
	if more := after.Trees[0].Waits.DiskNanos - waited; more > waited/4 {
		t.Errorf("blocked for another %d ns while a child read", more)
	}
	if after.Trees[0].DiskReadBytes != 64*mib {
		t.Errorf("read %d bytes", after.Trees[0].DiskReadBytes)
	}
}

// What the scheduler says of the threads is what is told, from the moment of tracking.
func TestWaitForACPU(t *testing.T) {
	k := shareTestKernel(t)
	a := play(t, step{Do: "spin", N: 100}, step{Do: "pause"})
	b := play(t, step{Do: "spin", N: 150}, step{Do: "pause"})
	for _, one := range []*played{a, b} {
		run(t, "taskset", "-a", "-p", "1", strconv.Itoa(one.PID))
	}
	base := runDelay(t, a.PID)
	tree := k.mustTrack(t, a)
	tracked := runDelay(t, a.PID)
	b.next()
	a.next()
	a.paused()
	lower := runDelay(t, a.PID)
	got := k.mustSnapshot(t, tree)
	upper := runDelay(t, a.PID)
	waited := got.Trees[0].Waits.RunQueueNanos
	if waited < lower-tracked || waited > upper-base || waited == 0 || got.RunQueue.State != record.State_OK {
		t.Errorf("waited %d ns, want %d to %d; %v", waited, lower-tracked, upper-base, got.RunQueue)
	}
	b.paused()
}

// runDelay is what the threads of a process waited for a CPU: the second number of their schedstat
// (Documentation/scheduler/sched-stats.rst).
func runDelay(t *testing.T, pid int) uint64 {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		t.Fatalf("schedstat of %d: %v", pid, err)
	}
	var sum uint64
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		n, err := strconv.ParseUint(strings.Fields(string(text))[1], 10, 64)
		if err != nil {
			t.Fatal(err)
		}
		sum += n
	}
	return sum
}
