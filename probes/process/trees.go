package process

import (
	"errors"
	"fmt"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/probes"
)

// maxAdoptionPasses bounds the walks over all tasks that moving a tree takes: two normally, one more for each time that a fork storm
// outruns the walk.
const maxAdoptionPasses = 16

// Track implements Probe.
func (k *kernel) Track(p probes.Process) (Tracked, error) {
	k.lineage.Lock()
	defer k.lineage.Unlock()
	id := k.last + 1
	if id >= maxTreeID {
		return Tracked{}, fmt.Errorf("track process %d: tree numbers are used up: restart the agent", p.PID)
	}
	// A number that came to nothing may be in a process's storage all the same.
	k.last = id
	made := &tree{root: p}
	if k.set != nil {
		// First, so that the next agent can undo what this one does not finish.
		if err := k.putRoot(id, rootMaking, made, nil); err != nil {
			return Tracked{}, fmt.Errorf("track process %d: %w", p.PID, err)
		}
	}
	if err := k.makeTree(id); err != nil {
		return Tracked{}, errors.Join(fmt.Errorf("track process %d: %w", p.PID, err), k.removeTree(id))
	}
	adopted, err := k.adoptAll(bpf.AdoptAdoption{
		Mode: bpf.AdoptAdoptModeADOPT_ROOT, Pid: int32(p.PID), StartTicks: p.StartTicks, To: uint32(id),
	})
	if err == nil && adopted.Found == 0 {
		err = ErrGone
	}
	if err != nil {
		return Tracked{}, errors.Join(fmt.Errorf("track process %d: %w", p.PID, err), k.removeTree(id))
	}
	made.parent = TreeID(adopted.From)
	k.mu.Lock()
	k.trees[id] = made
	k.mu.Unlock()
	adopted.Mode = bpf.AdoptAdoptModeADOPT_DESCENDANTS
	if _, err := k.adoptAll(adopted); err != nil {
		k.release(id)
		return Tracked{}, fmt.Errorf("track process %d: move its descendants: %w", p.PID, err)
	}
	tracked := Tracked{ID: id, Parent: made.parent}
	if k.set != nil {
		tracked.Set = k.set.value.Set
		k.set.value.LastTree = uint32(id)
		if err := errors.Join(k.putRoot(id, rootMade, made, nil), k.set.save()); err != nil {
			k.release(id)
			return Tracked{}, fmt.Errorf("track process %d: %w", p.PID, err)
		}
	}
	return tracked, nil
}

// maxTreeID is where the numbers begin that stand for no tree (TREE_SPECIAL in bpf/maps.h).
const maxTreeID TreeID = 0xfffffff0

// Release implements Probe.
func (k *kernel) Release(id TreeID) {
	k.lineage.Lock()
	defer k.lineage.Unlock()
	k.release(id)
}

// release needs the lineage lock.
func (k *kernel) release(id TreeID) {
	k.mu.Lock()
	released := k.trees[id]
	if released == nil {
		k.mu.Unlock()
		return
	}
	delete(k.trees, id)
	parent := released.parent
	if k.trees[parent] == nil {
		parent = 0
	}
	for _, other := range k.trees {
		if other.parent == id {
			other.parent = parent
		}
	}
	k.mu.Unlock()
	var errs error
	if k.set != nil {
		errs = k.putRoot(id, rootLeaving, &tree{root: released.root, parent: parent}, nil)
	}
	// In this order: whatever is still found with the old number answers to the parent, then living processes get the new
	// number, then the old one's sums go. What fails leaves an entry in the kernel that nobody reads.
	errs = errors.Join(errs, k.maps[bpf.LineageMapForwards].Put(uint32(id), uint32(parent)))
	_, err := k.adoptAll(bpf.AdoptAdoption{Mode: bpf.AdoptAdoptModeADOPT_MEMBERS, From: uint32(id), To: uint32(parent)})
	_ = errors.Join(errs, err, k.removeTree(id))
}

// mapsOfTrees are keyed by tree. removeTree clears them in this order: without members a tree gets no crowd.
var mapsOfTrees = [...]string{bpf.LineageMapMembers, bpf.LineageMapCrowds, bpf.LineageMapCrowded, bpf.LineageMapLatencies, bpf.LineageMapTrees}

// makeTree makes the kernel's entries of a tree: sums, latencies, members. Changing a map of maps waits for an RCU grace period,
// some ms, so that neither this nor removeTree is called with mu held.
func (k *kernel) makeTree(id TreeID) error {
	key := uint32(id)
	members, err := ebpf.NewMap(k.membersSpec)
	if err != nil {
		return fmt.Errorf("make member map: %w", err)
	}
	defer members.Close() // the outer map holds it
	crowd, err := ebpf.NewMap(k.crowdSpec)
	if err != nil {
		return fmt.Errorf("make crowd map: %w", err)
	}
	defer crowd.Close()
	zeroes := make([]byte, max(len(k.sumsBuffer), len(k.histogramsBuffer)))
	if err := errors.Join(
		updateElement(k.maps[bpf.LineageMapTrees].FD(), &key, zeroes),
		updateElement(k.maps[bpf.LineageMapLatencies].FD(), &key, zeroes),
		k.maps[bpf.LineageMapCrowds].Put(key, crowd),
		k.maps[bpf.LineageMapMembers].Put(key, members),
	); err != nil {
		return fmt.Errorf("make tree (at most %d at a time): %w", k.maps[bpf.LineageMapTrees].MaxEntries(), err)
	}
	return nil
}

func (k *kernel) removeTree(id TreeID) error {
	var errs error
	for _, name := range mapsOfTrees {
		if err := k.maps[name].Delete(uint32(id)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = errors.Join(errs, fmt.Errorf("remove tree: %w", err))
		}
	}
	if k.set != nil {
		if err := k.set.rootsMap.Delete(uint32(id)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = errors.Join(errs, fmt.Errorf("remove tree: %w", err))
		}
	}
	return errs
}

// adoptAll walks over all tasks until a walk changes nothing, and returns what the last one found.
func (k *kernel) adoptAll(adoption bpf.AdoptAdoption) (bpf.AdoptAdoption, error) {
	for range maxAdoptionPasses {
		adoption.Changed = 0
		after, err := k.adopt(adoption)
		if err != nil {
			return after, err
		}
		if after.Changed == 0 {
			return after, nil
		}
	}
	return adoption, fmt.Errorf("processes are made faster than they can be moved (%d walks)", maxAdoptionPasses)
}

// adopt walks over all tasks once.
func (k *kernel) adopt(adoption bpf.AdoptAdoption) (bpf.AdoptAdoption, error) {
	questions := k.maps[bpf.AdoptMapAdoptions]
	if err := questions.Put(uint32(0), &adoption); err != nil {
		return adoption, fmt.Errorf("ask iterator: %w", err)
	}
	iterator, err := link.AttachIter(link.IterOptions{Program: k.programs[bpf.AdoptProgAdopt]})
	if err != nil {
		return adoption, fmt.Errorf("attach iterator: %w", err)
	}
	defer iterator.Close()
	if err := readIterator(iterator); err != nil {
		return adoption, err
	}
	if err := questions.Lookup(uint32(0), &adoption); err != nil {
		return adoption, fmt.Errorf("read iterator's answer: %w", err)
	}
	return adoption, nil
}

// readIterator lets an iterator's program run over everything once. It writes nothing.
func readIterator(iterator *link.Iter) error {
	walk, err := iterator.Open()
	if err != nil {
		return fmt.Errorf("open iterator: %w", err)
	}
	defer walk.Close()
	if _, err := io.Copy(io.Discard, walk); err != nil {
		return fmt.Errorf("read iterator: %w", err)
	}
	return nil
}
