package process

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/probes"
)

// treeOf asks the kernel which tree a process is in.
func (k *kernel) treeOf(t *testing.T, pid int) TreeID {
	t.Helper()
	id, err := k.lookupTree(pid)
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		t.Fatal(err)
	}
	return id
}

func (k *kernel) lookupTree(pid int) (TreeID, error) {
	var p bpf.LineageProc
	procs := k.maps[bpf.LineageMapProcs]
	if procs.Type() == ebpf.TaskStorage {
		fd, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			return 0, err
		}
		defer unix.Close(fd)
		err = procs.Lookup(int32(fd), &p)
		return TreeID(p.Tree), err
	}
	var id struct { // struct member
		StartNanos uint64
		Tgid, _    uint32
	}
	stat, err := ReadStat("/proc", pid)
	if err != nil {
		return 0, err
	}
	// A process that had the pid before stays until it is freed.
	const nanosPerTick = 10_000_000
	entries := procs.Iterate()
	for entries.Next(&id, &p) {
		if int(id.Tgid) == pid && id.StartNanos/nanosPerTick == stat.StartTicks {
			return TreeID(p.Tree), nil
		}
	}
	return 0, errors.Join(ebpf.ErrKeyNotExist, entries.Err())
}

// descendants are the pids below a process now, as /proc has them.
func descendants(t *testing.T, pid int) []int {
	t.Helper()
	parents := map[int]int{}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			if stat, err := ReadStat("/proc", n); err == nil && !stat.Zombie() {
				parents[n] = stat.PPID
			}
		}
	}
	var below []int
	for n := range parents {
		for at, depth := n, 0; at > 1 && depth < 1000; at, depth = parents[at], depth+1 {
			if parents[at] == pid {
				below = append(below, n)
				break
			}
		}
	}
	return below
}

func TestTrackPresentDescendants(t *testing.T) {
	k := shareTestKernel(t)
	pause := []step{{Do: "pause"}}
	// A child, a grandchild, both waiting; the order of lines does not matter, each sends one.
	a := play(t, step{Do: "spawn", Steps: []step{{Do: "spawn", Steps: pause}}})
	a.next()
	a.paused()
	below := descendants(t, a.PID)
	if len(below) != 2 {
		t.Fatalf("%d descendants, want 2", len(below))
	}
	outer := k.mustTrack(t, a)
	for _, pid := range append(below, a.PID) {
		if got := k.treeOf(t, pid); got != outer {
			t.Errorf("process %d is in tree %d, want %d", pid, got, outer)
		}
	}

	// The lowest becomes a tree of its own, then gives it up.
	var lowest probes.Process
	for _, pid := range below {
		if len(descendants(t, pid)) == 0 {
			lowest = identify(t, pid)
		}
	}
	inner, err := k.Track(lowest)
	if err != nil {
		t.Fatal(err)
	}
	if inner.Parent != outer {
		t.Errorf("parent of the inner tree: %d, want %d", inner.Parent, outer)
	}
	if got := k.treeOf(t, lowest.PID); got != inner.ID {
		t.Errorf("root of the inner tree is in tree %d, want %d", got, inner.ID)
	}
	s := k.mustSnapshot(t, outer, inner.ID)
	if s.Trees[0].Processes != 2 || s.Trees[1].Processes != 1 {
		t.Errorf("processes: %d and %d, want 2 and 1", s.Trees[0].Processes, s.Trees[1].Processes)
	}
	k.Release(inner.ID)
	if got := k.treeOf(t, lowest.PID); got != outer {
		t.Errorf("after release it is in tree %d, want %d", got, outer)
	}
	if s := k.mustSnapshot(t, outer); s.Trees[0].Processes != 3 {
		t.Errorf("processes: %d, want 3", s.Trees[0].Processes)
	}
	k.Release(outer)
	if got := k.treeOf(t, lowest.PID); got != 0 {
		t.Errorf("after release it is in tree %d, want none", got)
	}
	if err := k.Snapshot([]TreeID{outer}, nil, &s); err == nil {
		t.Error("a released tree was read")
	}
}

// A tree around only a part: the parent's other children stay where they are.
func TestTrackLeavesSiblings(t *testing.T) {
	k := shareTestKernel(t)
	a, b := play(t), play(t)
	tree := k.mustTrack(t, a)
	if got := k.treeOf(t, b.PID); got != 0 {
		t.Errorf("a sibling is in tree %d", got)
	}
	if got := k.treeOf(t, os.Getpid()); got != 0 {
		t.Errorf("the parent is in tree %d", got)
	}
	if got := k.treeOf(t, a.PID); got != tree {
		t.Errorf("the root is in tree %d, want %d", got, tree)
	}
}

func TestTrackGone(t *testing.T) {
	k := shareTestKernel(t)
	a := play(t)
	wrong := a.Process
	wrong.StartTicks++
	if _, err := k.Track(wrong); !errors.Is(err, ErrGone) {
		t.Errorf("another start time: %v, want ErrGone", err)
	}
	gone := a.Process
	a.end()
	if _, err := k.Track(gone); !errors.Is(err, ErrGone) {
		t.Errorf("exited: %v, want ErrGone", err)
	}
	if len(k.trees) != 0 {
		t.Errorf("%d trees are left", len(k.trees))
	}
}

// Children made while the walk over the tasks is under way.
func TestTrackDuringForks(t *testing.T) {
	k := shareTestKernel(t)
	passedBy := k.passedBy()
	for range 3 {
		a := play(t, step{Do: "forks", N: 15, Steps: []step{{Do: "orphan", Steps: []step{{Do: "sleep", N: 400}}}, {Do: "sleep", N: 1}}})
		a.next()
		time.Sleep(30 * time.Millisecond)
		tree := k.mustTrack(t, a)
		for range 20 {
			for _, pid := range descendants(t, a.PID) {
				k.awaitTree(t, pid, tree, passedBy)
			}
		}
		a.end()
		k.Release(tree)
	}
}

// awaitTree waits until a process is in a tree: /proc shows a child some moments before the kernel reports its fork. A child that has
// exited meanwhile is in order. passedBy is how many events had passed a program by at the beginning.
func (k *kernel) awaitTree(t *testing.T, pid int, want TreeID, passedBy uint64) {
	t.Helper()
	var id TreeID
	var err error
	for range 50 {
		id, err = k.lookupTree(pid)
		if err == nil && id == want {
			return
		}
		if stat, readErr := ReadStat("/proc", pid); readErr != nil || stat.Zombie() {
			return
		}
		time.Sleep(2 * time.Millisecond)
	}
	if k.passedBy() != passedBy {
		t.Logf("process %d is in no tree: the kernel passed events by, and the probe says so", pid)
		return
	}
	t.Fatalf("process %d is in tree %d, want %d (%v)", pid, id, want, err)
}

// A pid that belongs to another process now carries nothing over.
func TestPIDReuse(t *testing.T) {
	k := shareTestKernel(t)
	dir := t.TempDir()
	for attempt := range 200 {
		a := play(t)
		tree := k.mustTrack(t, a)
		pid := a.PID
		a.end()
		if err := os.WriteFile("/proc/sys/kernel/ns_last_pid", []byte(strconv.Itoa(pid-1)), 0); err != nil {
			t.Fatal(err)
		}
		b := play(t, step{Do: "write", Path: filepath.Join(dir, fmt.Sprint(attempt)), Bytes: mib})
		if b.PID != pid {
			b.end()
			k.Release(tree)
			continue
		}
		if got := k.treeOf(t, pid); got != 0 {
			t.Errorf("the new process is in tree %d", got)
		}
		before := k.mustSnapshot(t, tree).Trees[0]
		b.end()
		after := k.mustSnapshot(t, tree).Trees[0]
		if after.IOWriteBytes != before.IOWriteBytes || after.DirtiedBytes != before.DirtiedBytes || after.Processes != 0 {
			t.Errorf("carried over: %+v", after.Gauges)
		}
		return
	}
	t.Fatal("no pid was given twice in 200 attempts")
}

// The hundredth generation, and a process that another session's leader started.
func TestGenerations(t *testing.T) {
	k := shareTestKernel(t)
	path := filepath.Join(t.TempDir(), "a")
	a := play(t, step{Do: "chain", N: 100, Steps: []step{{Do: "write", Path: path, Bytes: mib}, {Do: "sync", Path: path}}})
	tree := k.mustTrack(t, a)
	a.end()
	got := k.mustSnapshot(t, tree).Trees[0]
	if got.DiskWriteBytes != mib {
		t.Errorf("wrote %d bytes, want %d", got.DiskWriteBytes, mib)
	}
	if got.ProcessesExited < 101 {
		t.Errorf("%d exited, want at least 101", got.ProcessesExited)
	}
}

// A tree of more processes than its first map of members holds: each is counted once, wherever it stands.
func TestCrowd(t *testing.T) {
	k := shareTestKernel(t)
	const n = 150
	a := play(t, step{Do: "crowd", N: n})
	tree := k.mustTrack(t, a)
	check := func(want int) {
		t.Helper()
		if got := k.mustSnapshot(t, tree).Trees[0].Processes; got != uint64(want) {
			t.Errorf("%d processes, want %d", got, want)
		}
	}
	check(1)
	lost := k.losses[bpf.LineageLossLOSS_MEMBERS]
	a.next()
	a.paused()
	check(1 + n)
	var crowded uint32
	if err := k.maps[bpf.LineageMapCrowded].Lookup(uint32(tree), &crowded); err != nil {
		t.Errorf("the tree has no crowd: %v", err)
	}
	// The first that end had a place in the first map, which newcomers take.
	a.next()
	a.paused()
	check(1 + n/2 + n)
	// A tree inside takes the crowd over, and gives it back.
	inner := k.mustTrack(t, a)
	if got := k.mustSnapshot(t, inner, tree); got.Trees[0].Processes != 1+n/2+n || got.Trees[1].Processes != 0 {
		t.Errorf("inside %d processes, around them %d; want %d and 0", got.Trees[0].Processes, got.Trees[1].Processes, 1+n/2+n)
	}
	k.Release(inner)
	check(1 + n/2 + n)
	a.end()
	check(0)
	if got := k.losses[bpf.LineageLossLOSS_MEMBERS]; got != lost {
		t.Errorf("%d processes found no place", got-lost)
	}
	k.Release(tree)
	for _, name := range mapsOfTrees {
		for _, id := range []TreeID{tree, inner} {
			var next uint32
			for key := any(nil); ; key = next {
				err := k.maps[name].NextKey(key, &next)
				if errors.Is(err, ebpf.ErrKeyNotExist) {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				if next == uint32(id) {
					t.Errorf("%s has the released tree %d", name, id)
				}
			}
		}
	}
}

func TestNestedTreesCountOnce(t *testing.T) {
	k := shareTestKernel(t)
	dir := t.TempDir()
	write := func(name string) []step {
		return []step{{Do: "write", Path: filepath.Join(dir, name), Bytes: mib}, {Do: "sync", Path: filepath.Join(dir, name)}}
	}
	// The child pauses, becomes a tree, writes and exits; then the root writes.
	a := play(t, append([]step{{Do: "spawn", Steps: append([]step{{Do: "pause"}}, write("inner")...)}}, write("outer")...)...)
	outer := k.mustTrack(t, a)
	a.next()
	a.paused()
	below := descendants(t, a.PID)
	if len(below) != 1 {
		t.Fatalf("%d descendants, want 1", len(below))
	}
	inner, err := k.Track(identify(t, below[0]))
	if err != nil {
		t.Fatal(err)
	}
	a.end()
	s := k.mustSnapshot(t, outer, inner.ID)
	for i, name := range []string{"outer", "inner"} {
		if got := s.Trees[i].DiskWriteBytes; got != mib {
			t.Errorf("%s tree wrote %d bytes, want %d", name, got, mib)
		}
	}
}

// What a released tree has made dirty and not yet written is its parent's.
func TestReleasedTreeStillOwnsItsPages(t *testing.T) {
	k := shareTestKernel(t)
	v := newVolume(t, "ext4", filepath.Join(t.TempDir(), "image"), 1, mkfsExt4)
	v.sync(t)
	a := play(t, step{Do: "spawn", Steps: []step{{Do: "pause"}, {Do: "write", Path: filepath.Join(v.dir, "a"), Bytes: 4 * mib}}})
	outer := k.mustTrack(t, a)
	a.next()
	a.paused()
	inner, err := k.Track(identify(t, descendants(t, a.PID)[0]))
	if err != nil {
		t.Fatal(err)
	}
	before := v.flows(t, k)
	a.end()
	// Normally nothing is written yet; somebody may have called sync(2).
	already := k.mustSnapshot(t, inner.ID).Trees[0].DiskWriteBytes
	k.Release(inner.ID)
	v.sync(t)
	if got := k.mustSnapshot(t, outer).Trees[0].DiskWriteBytes; got+already != 4*mib {
		t.Errorf("the parent wrote %d bytes, want %d", got, 4*mib-already)
	}
	v.conserved(t, k, before)
}
