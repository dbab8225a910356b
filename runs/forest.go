package runs

import (
	"sync"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/runs/state"
)

// tree is the tree of one process that has said hello or logged.
type tree struct {
	id process.TreeID
	// set is process.Tracked.Set: 0 = its counters end with this agent.
	set    uint64
	root   probes.Process
	peak   process.Peak
	parent *tree
	// inner are the trees directly inside.
	inner []*tree
	// folded is what the trees inside counted that have been given up.
	folded process.Counters
	// folding is the last of those.
	folding process.TreeID
	// start is where the first windows of its process start.
	start treeStart

	// all is this tree and every tree inside it, ids their ids in the same order. Replaced, never changed, when the forest changes.
	all []*tree
	ids []process.TreeID
}

type treeStart struct {
	base      *state.Sample
	unixNanos int64
	hello     bool
}

// forest says which tree is in which. A read lock is held over a snapshot, so that no tree is given up between reading the list
// of trees and reading their counters: else its share would be lost or counted twice.
type forest struct {
	mu   sync.RWMutex
	byID map[process.TreeID]*tree
}

// insert puts a new tree into the tree with id outside (0 = none). Trees already inside outside whose root satisfies below move
// into the new one, and are returned: a process between two logging processes has said hello later than both.
func (f *forest) insert(t *tree, outside process.TreeID, below func(probes.Process) bool) (moved []*tree) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.byID[t.id] = t
	t.parent = f.byID[outside]
	if t.parent != nil {
		kept := t.parent.inner[:0]
		for _, sibling := range t.parent.inner {
			if below(sibling.root) {
				sibling.parent = t
				t.inner = append(t.inner, sibling)
			} else {
				kept = append(kept, sibling)
			}
		}
		clear(t.parent.inner[len(kept):])
		t.parent.inner = append(kept, t)
	}
	for up := t; up != nil; up = up.parent {
		up.gather()
	}
	return t.inner
}

// remove takes t out. What it counted, last read by final, stays with the tree around it. It returns the trees whose notes have changed.
func (f *forest) remove(t *tree, final func() process.Counters) (changed []*tree) {
	f.mu.Lock()
	defer f.mu.Unlock()
	own := final()
	delete(f.byID, t.id)
	for _, inner := range t.inner {
		inner.parent = t.parent
	}
	if t.parent == nil {
		return t.inner
	}
	add(&t.parent.folded, &t.folded)
	add(&t.parent.folded, &own)
	t.parent.folding = t.id
	kept := t.parent.inner[:0]
	for _, sibling := range t.parent.inner {
		if sibling != t {
			kept = append(kept, sibling)
		}
	}
	clear(t.parent.inner[len(kept):])
	t.parent.inner = append(kept, t.inner...)
	for up := t.parent; up != nil; up = up.parent {
		up.gather()
	}
	return append([]*tree{t.parent}, t.inner...)
}

// gather renews the lists of the trees inside t. Those of the trees inside it must be right.
func (t *tree) gather() {
	t.all, t.ids = []*tree{t}, []process.TreeID{t.id}
	for _, inner := range t.inner {
		t.all = append(t.all, inner.all...)
		t.ids = append(t.ids, inner.ids...)
	}
	if t.peak != nil {
		t.peak.SetTrees(t.ids)
	}
}

// enclosing appends the roots of the trees around t, innermost first. The caller holds mu.
func (t *tree) enclosing(roots []probes.Process) []probes.Process {
	for up := t.parent; up != nil; up = up.parent {
		roots = append(roots, up.root)
	}
	return roots
}
