package runs

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/runs/state"
)

// Resume takes up the runs that the agent before this one left open: processes that live are followed from now on, not only from
// their next call, and the runs of those that ended meanwhile are closed. It is to be called before anybody calls.
func (t *Tracker) Resume() error {
	taken := t.resumeTrees()
	open, err := t.memory.Remembered(func(bytes []byte) bool {
		var in state.State
		return proto.Unmarshal(bytes, &in) == nil && in.GetSchema() == stateSchema && in.GetUnfinished()
	})
	if err != nil {
		return fmt.Errorf("take up the open runs: %w", err)
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(open)) {
		var in state.State
		if err := proto.Unmarshal(open[name], &in); err != nil {
			errs = append(errs, fmt.Errorf("take up %s: %w", name, err))
			continue
		}
		p := in.GetProcess()
		who := probes.Process{PID: int(p.GetPid()), StartTicks: p.GetStartTicks()}
		if p.GetBootId() == t.bootID && taken[who] {
			continue
		}
		stat, err := pinned(t.config.ProcRoot, who)
		if err != nil || stat.Zombie() || p.GetBootId() != t.bootID {
			t.closeGone(name, open[name])
			continue
		}
		if _, err := t.subject(Caller{Process: who}, false); err != nil {
			errs = append(errs, fmt.Errorf("take up pid %d: %w", who.PID, err))
		}
	}
	return errors.Join(errs...)
}

// closeGone ends the run of a process that ended while no agent was there. What it did since its last call is not known.
func (t *Tracker) closeGone(name string, bytes []byte) {
	// Without a key: whatever has its pid now is another process.
	s := &subject{store: name, untracked: "the process ended while the agent was not running", heard: make(chan struct{}, 1)}
	s.contexts.init()
	s.mu.Lock()
	defer s.mu.Unlock()
	t.measure(s, false)
	s.start(false)
	if !s.restore(bytes) {
		t.counters.unrecalled.Add(1)
		return
	}
	t.endRun(s)
}

// resumeTrees takes up the trees that the kernel has counted on in. Those of processes that have ended meanwhile are closed as if they
// had ended now, with all that they have done. It returns their processes.
func (t *Tracker) resumeTrees() (taken map[probes.Process]bool) {
	t.making.Lock()
	defer t.making.Unlock()
	left := map[process.TreeID]process.Resumed{}
	notes := map[process.TreeID]*state.Note{}
	for _, r := range t.probe.Resumed() {
		note := new(state.Note)
		if proto.Unmarshal(r.Note, note) != nil {
			note = new(state.Note)
		}
		left[r.ID], notes[r.ID] = r, note
	}
	// A tree whose share is in another's note already was being given up.
	folded := map[process.TreeID]process.TreeID{}
	for _, note := range notes {
		if gone, there := left[process.TreeID(note.GetFolding())]; there {
			folded[gone.ID] = gone.Parent
		}
	}
	for id := range folded {
		t.probe.Release(id)
		delete(left, id)
	}
	var subjects []*subject
	var insert func(id process.TreeID)
	insert = func(id process.TreeID) {
		r, there := left[id]
		if !there {
			return
		}
		delete(left, id)
		for parent, gone := folded[r.Parent]; gone; parent, gone = folded[r.Parent] {
			r.Parent = parent
		}
		insert(r.Parent)
		subjects = append(subjects, t.resumeTree(r, notes[id]))
	}
	for _, id := range slices.Sorted(maps.Keys(left)) {
		insert(id)
	}
	taken = map[probes.Process]bool{}
	for _, s := range subjects {
		t.measure(s, false)
		s.startAt(&s.tree.start, t.layout)
		t.recall(s)
		taken[s.key] = true
	}
	// The last first: of two with the same pid, the other one has ended.
	slices.SortFunc(subjects, func(a, b *subject) int { return cmp.Compare(b.key.StartTicks, a.key.StartTicks) })
	for _, s := range subjects {
		t.mu.Lock()
		reused := t.subjects[s.key.PID] != nil
		if !reused {
			t.subjects[s.key.PID] = s
			t.watchers.Go(func() { t.watch(s) })
		}
		t.mu.Unlock()
		if reused {
			t.finishLocked(s)
		}
	}
	return taken
}

// resumeTree puts a tree back into the forest.
func (t *Tracker) resumeTree(r process.Resumed, note *state.Note) *subject {
	s := t.emptySubject(r.Root)
	s.tree = &tree{
		id: r.ID, set: r.Set, root: r.Root, peak: t.probe.NewPeak([]process.TreeID{r.ID}),
		folded: unpackSample(note.GetFolded(), t.layout).tree, folding: process.TreeID(note.GetFolding()),
		start: treeStart{note.GetStart(), note.GetStartUnixNanos(), note.GetHello()},
	}
	t.forest.insert(s.tree, r.Parent, func(probes.Process) bool { return false })
	return s
}

// startAt opens the first windows where an agent before this one did. Where it did not get to say so, they start now and have a gap.
func (s *subject) startAt(at *treeStart, layout uint64) {
	s.start(at.hello)
	base := unpackSample(at.base, layout)
	for i := range s.windows {
		w := &s.windows[i]
		// Nobody looked meanwhile.
		w.peak.unbounded = true
		if w.gap = !base.known; base.known {
			w.start, w.base, w.kept = at.unixNanos, base, at.base
		}
	}
	s.totalPeak.unbounded = true
}
