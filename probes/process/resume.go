package process

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/probes"
)

// KeepStatus is the name of the status line about pins, which is there when Config.StateDir is given.
const KeepStatus = "counting across restarts"

// takeOver goes on with the set that the agent before this one has left. It returns nil when there is none that can be used, and why.
func takeOver(refuse func(program string) error, set *pinSet) (*kernel, error) {
	left, err := set.take()
	if left == nil {
		return nil, err
	}
	k := newKernel(load(refuse, set.limit, left))
	k.set = set
	if k.unlike {
		err = errors.New("what works on this node has changed since it was made")
	} else if !k.complete() {
		err = errors.New("not all of it works any more")
	}
	if err == nil {
		err = k.heart.start(k.maps[heartbeatFile])
	}
	if err == nil {
		err = k.prepare()
	}
	if err == nil {
		err = k.resume()
	}
	if err != nil {
		return nil, errors.Join(err, k.detach())
	}
	return k, nil
}

// resume reads the trees that are there, and finishes what the agent before this one was in the middle of.
func (k *kernel) resume() error {
	k.last = TreeID(k.set.value.LastTree)
	unfinished := map[TreeID]root{}
	var id uint32
	var entry root
	all := k.set.rootsMap.Iterate()
	for all.Next(&id, &entry) {
		k.last = max(k.last, TreeID(id))
		k.trees[TreeID(id)] = &tree{parent: TreeID(entry.Parent), root: probes.Process{PID: int(entry.PID), StartTicks: entry.StartTicks}}
		if entry.State != rootMade || entry.NoteBytes > maxNote {
			unfinished[TreeID(id)] = entry
			continue
		}
		k.resumed = append(k.resumed, Resumed{
			Tracked: Tracked{ID: TreeID(id), Parent: TreeID(entry.Parent), Set: k.set.value.Set},
			Root:    k.trees[TreeID(id)].root, Note: slices.Clone(entry.Note[:entry.NoteBytes]),
		})
	}
	if err := all.Err(); err != nil {
		return fmt.Errorf("read the trees of a pinned set: %w", err)
	}
	var last bpf.AdoptAdoption
	if err := k.maps[bpf.AdoptMapAdoptions].Lookup(uint32(0), &last); err != nil {
		return fmt.Errorf("read the iterator's last answer: %w", err)
	}
	for id, entry := range unfinished {
		if entry.State == rootMaking && TreeID(last.To) == id && last.Found != 0 {
			k.trees[id].parent = TreeID(last.From) // where its root came from
		}
		k.release(id)
	}
	for id, known := range k.trees {
		known.parent = k.answering(known.parent)
		if known.parent == id {
			known.parent = 0
		}
	}
	for i := range k.resumed {
		k.resumed[i].Parent = k.trees[k.resumed[i].ID].parent
	}
	return k.removeStrays()
}

// answering is the tree that answers for an id, as in bpf/maps.h: itself, or what it was released to.
func (k *kernel) answering(id TreeID) TreeID {
	for range 64 {
		if id == 0 || k.trees[id] != nil {
			return id
		}
		var next uint32
		if k.maps[bpf.LineageMapForwards].Lookup(uint32(id), &next) != nil {
			return 0
		}
		id = TreeID(next)
	}
	return 0
}

// removeStrays removes what the kernel holds of trees that nobody knows: the agent before this one was ended within makeTree or
// removeTree.
func (k *kernel) removeStrays() error {
	var strays []TreeID
	for _, name := range mapsOfTrees {
		var id uint32
		// The key alone: a value of a map of maps is an open descriptor.
		for key := any(nil); ; key = id {
			var next uint32
			err := k.maps[name].NextKey(key, &next)
			if errors.Is(err, ebpf.ErrKeyNotExist) {
				break
			}
			if err != nil {
				return fmt.Errorf("list trees: %w", err)
			}
			id = next
			if k.trees[TreeID(id)] == nil && !slices.Contains(strays, TreeID(id)) {
				strays = append(strays, TreeID(id))
			}
		}
	}
	var errs error
	for _, id := range strays {
		errs = errors.Join(errs, k.removeTree(id))
	}
	return errs
}

// Resumed implements Probe.
func (k *kernel) Resumed() []Resumed { return k.resumed }

// Note implements Probe.
func (k *kernel) Note(id, parent TreeID, note []byte) error {
	k.lineage.Lock()
	defer k.lineage.Unlock()
	k.mu.Lock()
	known := k.trees[id]
	if known == nil {
		k.mu.Unlock()
		return fmt.Errorf("note on tree %d: not tracked", id)
	}
	known.parent = parent
	k.mu.Unlock()
	if k.set == nil {
		return nil
	}
	if len(note) > maxNote {
		return fmt.Errorf("note on tree %d: %d bytes, and at most %d are kept", id, len(note), maxNote)
	}
	return k.putRoot(id, rootMade, known, note)
}

// putRoot writes what the next agent needs of a tree, in one step.
func (k *kernel) putRoot(id TreeID, state rootState, t *tree, note []byte) error {
	entry := root{StartTicks: t.root.StartTicks, PID: int32(t.root.PID), Parent: uint32(t.parent), State: state}
	entry.NoteBytes = uint32(copy(entry.Note[:], note))
	if err := k.set.rootsMap.Put(uint32(id), &entry); err != nil {
		return fmt.Errorf("keep tree %d for the next agent: %w", id, err)
	}
	return nil
}
