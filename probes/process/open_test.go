package process

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/record"
)

var errRefused = errors.New("refused for the test")

// Each program may be missing; the values of the others stay eBPF's, and what procfs knows comes from there.
func TestEachProgramFailsAlone(t *testing.T) {
	shareTestKernel(t) // skips, or says what else fails
	// On kernels where the program is another one.
	variants := map[string]string{
		bpf.BlockProgBlockQueue:     bpf.BlockProgBlockQueueQueue,
		bpf.DirtyProgDirtyFolio:     bpf.DirtyProgDirtyPage,
		bpf.LatencyProgRequestIssue: bpf.LatencyProgRequestIssueQueue,
		bpf.LiveProgReadLive:        bpf.LiveProgWalkLive,
	}
	for _, c := range []struct {
		program             string
		disk, task, latency record.Source
		latencyOK           bool
	}{
		{bpf.BlockProgBlockQueue, record.Source_PROCFS, record.Source_EBPF, record.Source_EBPF, true},
		{bpf.DirtyProgDirtyFolio, record.Source_PROCFS, record.Source_EBPF, record.Source_EBPF, true},
		{bpf.LatencyProgRequestIssue, record.Source_EBPF, record.Source_EBPF, record.Source_EBPF, false},
		{bpf.LiveProgReadLive, record.Source_EBPF, record.Source_PROCFS, record.Source_EBPF, true},
		{bpf.ReclaimProgMemcgReclaimEnd, record.Source_EBPF, record.Source_EBPF, record.Source_EBPF, true},
		{bpf.DirtyProgSweepPages, record.Source_EBPF, record.Source_EBPF, record.Source_EBPF, true},
		{bpf.LineageProgLineageFork, record.Source_PROCFS, record.Source_PROCFS, record.Source_PROCFS, false},
	} {
		t.Run(c.program, func(t *testing.T) {
			p, err := open(Config{}, func(name string) error {
				if name == c.program || name == variants[c.program] {
					return errRefused
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			refused := 0
			for _, line := range p.Status() {
				if !line.OK {
					refused++
					if !strings.Contains(line.Reason, errRefused.Error()) {
						t.Errorf("%s: %s", line.Name, line.Reason)
					}
				}
			}
			if refused != 1 {
				t.Errorf("%d lines of status are not OK, want 1", refused)
			}
			path := filepath.Join(t.TempDir(), "a")
			a := play(t, step{Do: "write", Path: path, Bytes: mib}, step{Do: "sync", Path: path}, step{Do: "pause"})
			tracked, err := p.Track(a.Process)
			if err != nil {
				t.Fatal(err)
			}
			following := p.NewPeak([]TreeID{tracked.ID})
			a.next()
			a.paused()
			var s Snapshot
			if err := p.Snapshot([]TreeID{tracked.ID}, following, &s); err != nil {
				t.Fatal(err)
			}
			following.Close()
			got := s.Trees[0]
			// procfs also counts what the file system writes along.
			if got.DiskWriteBytes < mib || got.DiskWriteBytes > mib+64<<10 || got.IOWriteBytes < mib || got.RSSBytes == 0 || got.Processes != 1 || s.Peak.Bytes == 0 {
				t.Errorf("wrote %d, asked to write %d; %+v, peak %+v", got.DiskWriteBytes, got.IOWriteBytes, got.Gauges, s.Peak)
			}
			if s.Disk.Source != c.disk || s.Task.Source != c.task {
				t.Errorf("disk by %v, tasks by %v; want %v, %v", s.Disk.Source, s.Task.Source, c.disk, c.task)
			}
			if ok := s.Latency.State == record.State_OK; ok != c.latencyOK {
				t.Errorf("latency %+v", s.Latency)
			}
			p.Release(tracked.ID)
		})
	}
}

func TestOpenWithoutEBPF(t *testing.T) {
	p, err := Open(Config{NoEBPF: "switched off"})
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	a := play(t)
	tracked, err := p.Track(a.Process)
	if err != nil {
		t.Fatal(err)
	}
	var s Snapshot
	if err := p.Snapshot([]TreeID{tracked.ID}, nil, &s); err != nil {
		t.Fatal(err)
	}
	if s.Memory.Source != record.Source_PROCFS || s.Trees[0].RSSBytes == 0 || !strings.Contains(s.Latency.Reason, "switched off") {
		t.Errorf("memory %+v, latency %+v", s.Memory, s.Latency)
	}
}
