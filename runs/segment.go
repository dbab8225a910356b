package runs

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"github.com/prov4ml/agent/record"
)

// phases are the contexts that are matched in any case.
var phases = [...]string{"training", "validation", "evaluation", "testing"}

// normalContext returns one of phases where name is one of them in any case, else name as it is.
func normalContext(name string) string {
	for _, phase := range phases {
		if strings.EqualFold(name, phase) {
			return phase
		}
	}
	return name
}

type contextName struct {
	name  string
	given bool
}

// contextState is what is kept of one context of a process.
type contextState struct {
	id      uint32
	name    contextName
	segment *record.Segment // the open one; nil = none
	next    uint32          // number of the next segment
	totals  sums
	capped  sums    // of the windows that came past the limit of steps
	last    stepKey // set of the last log_system_metrics
	used    uint64  // counts calls; the smallest was used least recently
}

// contexts are the contexts of a process that are open.
type contexts struct {
	byName map[contextName]*contextState
	nextID uint32
	calls  uint64
	// floor is past every segment number of a context that was closed to make room, so that its numbers are never given again.
	floor uint32
}

func (c *contexts) init() { c.byName = map[contextName]*contextState{} }

// enter puts rec into the open segment of its context, opening one where needed. Making room for a new context closes another,
// evicted; nil = none.
func (c *contexts) enter(rec *record.LogCall) (entered, evicted *contextState) {
	name := contextName{rec.GetContext(), rec.Context != nil}
	state := c.byName[name]
	if state == nil {
		if len(c.byName) >= maxContexts {
			evicted = c.evict()
			if evicted.segment != nil {
				rec.ClosedSegments = append(rec.ClosedSegments, closing(evicted.segment))
			}
		}
		state = c.add(name)
	}
	c.calls++
	state.used = c.calls
	if state.segment != nil && state.segment.Spans >= segmentSpans {
		rec.ClosedSegments = append(rec.ClosedSegments, closing(state.segment))
		state.segment = nil
	}
	opens := state.segment == nil
	if opens {
		state.segment = &record.Segment{
			Number: state.next, Context: name.name, HasContext: name.given, StartUnixNanos: rec.StartUnixNanos,
		}
		state.next++
	}
	segment := state.segment
	segment.Spans++
	segment.EndUnixNanos = rec.EndUnixNanos
	rec.Segment = &record.Segment{
		Number: segment.Number, Context: segment.Context, HasContext: segment.HasContext, StartUnixNanos: segment.StartUnixNanos,
		Opens: opens, Spans: segment.Spans, EndUnixNanos: segment.EndUnixNanos,
	}
	return state, evicted
}

func (c *contexts) add(name contextName) *contextState {
	state := &contextState{id: c.nextID, name: name, next: c.floor}
	c.nextID++
	c.byName[name] = state
	return state
}

// evict takes out the context used least recently.
func (c *contexts) evict() *contextState {
	var oldest *contextState
	for _, state := range c.byName {
		if oldest == nil || state.used < oldest.used {
			oldest = state
		}
	}
	delete(c.byName, oldest.name)
	c.floor = max(c.floor, oldest.next)
	return oldest
}

// inOrder returns the contexts in the order in which they came.
func (c *contexts) inOrder() []*contextState {
	states := slices.Collect(maps.Values(c.byName))
	slices.SortFunc(states, func(a, b *contextState) int { return cmp.Compare(a.id, b.id) })
	return states
}

// closeAll closes the open segments, in the order in which their contexts came.
func (c *contexts) closeAll() []*record.Segment {
	var closed []*record.Segment
	for _, state := range c.inOrder() {
		if state.segment != nil {
			closed = append(closed, closing(state.segment))
			state.segment = nil
		}
	}
	return closed
}

// closing is a segment as the record that closes it has it.
func closing(segment *record.Segment) *record.Segment {
	segment.Opens = false
	return segment
}
