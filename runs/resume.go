package runs

import (
	"errors"
	"fmt"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/runs/state"
)

// Resume takes up the runs that the agent before this one left open: processes that live are followed from now on, not only from
// their next call, and the runs of those that ended meanwhile are closed. It is to be called before anybody calls.
func (t *Tracker) Resume() error {
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
