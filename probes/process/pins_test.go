package process

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
)

// pinDir mounts a bpf file system of the test's own. Unmounting it lets go of all that is pinned there.
func pinDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: loads BPF programs")
	}
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

// openPinned opens an agent's probe. The test closes it.
func openPinned(t *testing.T, config Config) *kernel {
	t.Helper()
	k, status, err := openKernel(nil, config)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range status {
		if !line.OK {
			t.Errorf("%s: %s (%s)", line.Name, line.Reason, line.Cure)
		}
	}
	return k
}

func (k *kernel) mustClose(t *testing.T) {
	t.Helper()
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
}

func keptBy(t *testing.T, k *kernel) string {
	t.Helper()
	for _, line := range k.Status() {
		if line.Name == KeepStatus {
			return line.Reason
		}
	}
	return ""
}

func setsIn(t *testing.T, dir string) []PinnedSet {
	t.Helper()
	sets, err := PinnedSets(dir)
	if err != nil {
		t.Fatal(err)
	}
	return sets
}

func TestTheNextAgentGoesOnCounting(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	dir := t.TempDir()
	a, b, c := filepath.Join(dir, "a"), filepath.Join(dir, "b"), filepath.Join(dir, "c")
	outer := play(t,
		step{Do: "write", Path: a, Bytes: 2 * mib}, step{Do: "sync", Path: a},
		step{Do: "write", Path: c, Bytes: 4 * mib}, // dirty when the agent goes
		step{Do: "pause"},
		step{Do: "spawn", Steps: []step{{Do: "write", Path: b, Bytes: 3 * mib}, {Do: "sync", Path: b}}},
		step{Do: "spawn", Steps: []step{{Do: "pause"}, {Do: "write", Path: b, Bytes: 5 * mib}, {Do: "sync", Path: b}}},
		step{Do: "sync", Path: c},
		step{Do: "pause"})
	first := openPinned(t, config)
	tracked, err := first.Track(outer.Process)
	if err != nil {
		t.Fatal(err)
	}
	if err := first.Note(tracked.ID, 0, []byte("a note")); err != nil {
		t.Fatal(err)
	}
	outer.next()
	outer.paused()
	before := first.mustSnapshot(t, tracked.ID)
	if got := before.Trees[0].DiskWriteBytes; got != 2*mib {
		t.Fatalf("written before: %d, want %d", got, 2*mib)
	}
	if got := len(first.Resumed()); got != 0 {
		t.Errorf("the first agent resumes %d trees", got)
	}
	first.mustClose(t)

	outer.next()
	outer.paused() // the second child, made while nobody was there
	second := openPinned(t, config)
	defer func() { second.mustClose(t) }()
	if kept := keptBy(t, second); !strings.HasPrefix(kept, "goes on in ") {
		t.Errorf("status: %s", kept)
	}
	resumed := second.Resumed()
	if len(resumed) != 1 || resumed[0].ID != tracked.ID || resumed[0].Set != tracked.Set || tracked.Set == 0 ||
		resumed[0].Root != outer.Process || resumed[0].Parent != 0 || string(resumed[0].Note) != "a note" {
		t.Fatalf("resumed %+v, tracked before as %+v", resumed, tracked)
	}
	middle := second.mustSnapshot(t, tracked.ID)
	if got := middle.Trees[0]; got.DiskWriteBytes != 5*mib || got.ProcessesExited < 1 || got.Processes != 2 {
		t.Errorf("at the take-over: written %d, %d exited, %d live; want %d, at least 1, 2", got.DiskWriteBytes, got.ProcessesExited, got.Processes, 5*mib)
	}
	outer.next()
	outer.paused()
	after := second.mustSnapshot(t, tracked.ID)
	exited := middle.Trees[0].ProcessesExited + 1
	if got := after.Trees[0]; got.DiskWriteBytes != 14*mib || got.ProcessesExited != exited || got.Processes != 1 {
		t.Errorf("at the end: written %d, %d exited, %d live; want %d, %d, 1", got.DiskWriteBytes, got.ProcessesExited, got.Processes, 14*mib, exited)
	}
	if got, least := after.Trees[0].IOWriteBytes, before.Trees[0].IOWriteBytes+8*mib; got < least {
		t.Errorf("asked to write %d, want at least %d", got, least)
	}
	if after.LossCount != second.missed.sum {
		t.Errorf("lost: %s", after.Incomplete)
	}
	other := play(t)
	if id := second.mustTrack(t, other); id <= tracked.ID {
		t.Errorf("a new tree has the number %d, and %d was given before", id, tracked.ID)
	}
}

func TestReleasedAndNestedTreesAreResumed(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	first := openPinned(t, config)
	var ids []TreeID
	for range 4 {
		ids = append(ids, first.mustTrack(t, play(t)))
	}
	// In a row: 0 around 1 around 2; 1 is given up.
	for i, id := range ids[1:3] {
		if err := first.Note(id, ids[i], []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	first.Release(ids[1])
	// 3 is the last given out, and is gone.
	first.Release(ids[3])
	first.mustClose(t)
	second := openPinned(t, config)
	defer func() { second.mustClose(t) }()
	parents := map[TreeID]TreeID{}
	for _, r := range second.Resumed() {
		parents[r.ID] = r.Parent
	}
	if len(parents) != 2 || parents[ids[0]] != 0 || parents[ids[2]] != ids[0] {
		t.Errorf("parents %v, want %d in none and %d in %d", parents, ids[0], ids[2], ids[0])
	}
	if id := second.mustTrack(t, play(t)); id <= ids[3] {
		t.Errorf("number %d is used again", id)
	}
}

// An agent may be killed between any two steps of making or giving up a tree.
func TestHalfMadeTreesAreUndone(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	first := openPinned(t, config)
	outer := play(t)
	around := first.mustTrack(t, outer)
	making, leaving, made := first.mustTrack(t, outer), first.mustTrack(t, play(t)), first.mustTrack(t, play(t))
	// The iterator's last answer is of the tree that was being made.
	if err := first.maps[bpf.AdoptMapAdoptions].Put(uint32(0), bpf.AdoptAdoption{To: uint32(making), From: uint32(around), Found: 1}); err != nil {
		t.Fatal(err)
	}
	for id, state := range map[TreeID]rootState{making: rootMaking, leaving: rootLeaving} {
		if err := first.putRoot(id, state, &tree{}, nil); err != nil {
			t.Fatal(err)
		}
	}
	// Half removed, and made without ever having been written down.
	if err := first.maps[bpf.LineageMapMembers].Delete(uint32(leaving)); err != nil {
		t.Fatal(err)
	}
	const stray = 1000
	if err := first.makeTree(stray); err != nil {
		t.Fatal(err)
	}
	first.mustClose(t)

	second := openPinned(t, config)
	defer func() { second.mustClose(t) }()
	resumed := map[TreeID]bool{}
	for _, r := range second.Resumed() {
		resumed[r.ID] = true
	}
	if len(resumed) != 2 || !resumed[around] || !resumed[made] {
		t.Errorf("resumed %v, want %d and %d", resumed, around, made)
	}
	for _, id := range []TreeID{making, leaving, stray} {
		if err := second.readSums(id, &bpf.LineageSums{}); !errors.Is(err, unix.ENOENT) {
			t.Errorf("tree %d is still in the kernel: %v", id, err)
		}
	}
	if got := second.mustSnapshot(t, around).Trees[0].Processes; got != 1 {
		t.Errorf("%d processes in the tree around the one that was being made, want its own", got)
	}
}

func TestAnotherLayoutIsMadeAnew(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	first := openPinned(t, config)
	a := play(t)
	before, err := first.Track(a.Process)
	if err != nil {
		t.Fatal(err)
	}
	value := first.set.value
	value.Layout[0]++
	if err := first.set.ownerMap.Put(uint32(0), &value); err != nil {
		t.Fatal(err)
	}
	first.mustClose(t)
	second := openPinned(t, config)
	defer func() { second.mustClose(t) }()
	if len(second.Resumed()) != 0 {
		t.Errorf("resumed %v", second.Resumed())
	}
	if kept := keptBy(t, second); !strings.Contains(kept, "another version") {
		t.Errorf("status: %s", kept)
	}
	after, err := second.Track(a.Process)
	if err != nil {
		t.Fatal(err)
	}
	if after.Parent != 0 || after.Set == before.Set {
		t.Errorf("tracked as %+v, before as %+v", after, before)
	}
	if sets := setsIn(t, config.PinDir); len(sets) != 1 || sets[0].StateDir != config.StateDir || sets[0].Dead() {
		t.Errorf("sets %+v", sets)
	}
}

// A set without its last pin was being made when its agent was killed.
func TestAnIncompleteSetIsMadeAnew(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	for _, missing := range []string{"links/" + bpf.LineageProgLineageFork, "maps/" + bpf.LineageMapTrees, "roots", "owner", "heartbeats"} {
		t.Run(missing, func(t *testing.T) {
			first := openPinned(t, config)
			first.mustTrack(t, play(t))
			if err := os.Remove(filepath.Join(first.set.dir, missing)); err != nil {
				t.Fatal(err)
			}
			first.mustClose(t)
			second := openPinned(t, config)
			defer func() { second.mustClose(t) }()
			if len(second.Resumed()) != 0 || !strings.HasPrefix(keptBy(t, second), "pinned anew") {
				t.Errorf("%d trees resumed; %s", len(second.Resumed()), keptBy(t, second))
			}
			second.mustTrack(t, play(t))
		})
	}
}

// heartbeatIs puts the time of the last beat of a closed set back.
func heartbeatIs(t *testing.T, set string, ago time.Duration) *ebpf.Map {
	t.Helper()
	beats, err := ebpf.LoadPinnedMap(filepath.Join(set, heartbeatFile), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = beats.Close() })
	if err := beats.Put(uint32(0), heartbeatBytes(&bpf.LineageHeartbeat{BeatNanos: monotonicNanos() - uint64(ago)})); err != nil {
		t.Fatal(err)
	}
	return beats
}

func heartbeatBytes(h *bpf.LineageHeartbeat) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(h)), unsafe.Sizeof(*h))
}

func TestProgramsStopWithoutAnAgent(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	path := filepath.Join(t.TempDir(), "a")
	write := []step{{Do: "write", Path: path, Bytes: mib}, {Do: "sync", Path: path}, {Do: "pause"}}
	a := play(t, append(append([]step(nil), write...), write...)...)
	first := openPinned(t, config)
	id := first.mustTrack(t, a)
	set := first.set.dir
	first.mustClose(t)

	// Not quite: it counts. The maps are read beside the agent.
	heartbeatIs(t, set, heartbeatLimit-time.Minute)
	a.next()
	a.paused()
	trees, err := ebpf.LoadPinnedMap(filepath.Join(set, mapsDir, bpf.LineageMapTrees), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer trees.Close()
	written := func() (all uint64) {
		var sums []bpf.LineageSums
		if err := trees.Lookup(uint32(id), &sums); err != nil {
			t.Fatal(err)
		}
		for _, s := range sums {
			all += s.WriteBytes
		}
		return all
	}
	if got := written(); got != mib {
		t.Errorf("a minute before the limit %d bytes are counted, want %d", got, mib)
	}

	beats := heartbeatIs(t, set, heartbeatLimit+time.Minute)
	for deadline := time.Now().Add(time.Minute); ; {
		var h bpf.LineageHeartbeat
		if err := beats.Lookup(uint32(0), heartbeatBytes(&h)); err != nil {
			t.Fatal(err)
		}
		if h.Alone != 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no program has noticed for a minute")
		}
		_ = exec.Command("sleep", "0").Run() // an event to notice at
	}
	a.next()
	a.paused()
	if got := written(); got != mib {
		t.Errorf("beyond the limit %d bytes are counted, want still %d", got, mib)
	}

	// A fresh start does not go on with it, nor does anybody else's leave it there.
	second := openPinned(t, config)
	if len(second.Resumed()) != 0 {
		t.Errorf("a set whose programs have stopped was taken over")
	}
	second.mustClose(t)
	if removed, err := RemoveAbandoned(config.PinDir); err != nil || len(removed) != 0 {
		t.Errorf("removed %+v, %v: its agent was there just now", removed, err)
	}
	heartbeatIs(t, set, heartbeatLimit+time.Minute)
	foreign := filepath.Join(config.PinDir, "somebody-elses")
	if err := os.Mkdir(foreign, 0o700); err != nil {
		t.Fatal(err)
	}
	removed, err := RemoveAbandoned(config.PinDir)
	if err != nil || len(removed) != 1 || removed[0].StateDir != config.StateDir || removed[0].Age < heartbeatLimit {
		t.Errorf("removed %+v, %v", removed, err)
	}
	if sets := setsIn(t, config.PinDir); len(sets) != 0 {
		t.Errorf("left: %+v", sets)
	}
	if _, err := os.Stat(foreign); err != nil {
		t.Errorf("what is not ours is touched: %v", err)
	}
}

func TestTwoAgentsDoNotDisturbEachOther(t *testing.T) {
	dir := pinDir(t)
	path := filepath.Join(t.TempDir(), "a")
	write := []step{{Do: "write", Path: path, Bytes: mib}, {Do: "sync", Path: path}, {Do: "pause"}}
	a := play(t, append(append([]step(nil), write...), write...)...)
	one, two := openPinned(t, Config{PinDir: dir, StateDir: t.TempDir()}), openPinned(t, Config{PinDir: dir, StateDir: t.TempDir()})
	defer func() { two.mustClose(t) }()
	byOne, byTwo := one.mustTrack(t, a), two.mustTrack(t, a)
	a.next()
	a.paused()
	if got := one.mustSnapshot(t, byOne).Trees[0].DiskWriteBytes; got != mib {
		t.Errorf("the first counts %d, want %d", got, mib)
	}
	if len(setsIn(t, dir)) != 2 {
		t.Errorf("sets: %+v", setsIn(t, dir))
	}
	one.mustClose(t)
	if err := removeSet(one.set.dir); err != nil {
		t.Fatal(err)
	}
	a.next()
	a.paused()
	if got := two.mustSnapshot(t, byTwo).Trees[0].DiskWriteBytes; got != 2*mib {
		t.Errorf("the second counts %d, want %d", got, 2*mib)
	}
}

func TestNoPin(t *testing.T) {
	config := Config{PinDir: pinDir(t), StateDir: t.TempDir()}
	openPinned(t, config).mustClose(t)
	if len(setsIn(t, config.PinDir)) != 1 {
		t.Fatalf("sets: %+v", setsIn(t, config.PinDir))
	}
	config.NoPin = true
	k, status, err := openKernel(nil, config)
	if err != nil {
		t.Fatal(err)
	}
	k.mustClose(t)
	if line := status[len(status)-1]; line.Name != KeepStatus || !line.OK || !strings.Contains(line.Reason, "switched off") {
		t.Errorf("status %+v", line)
	}
	if sets := setsIn(t, config.PinDir); len(sets) != 0 {
		t.Errorf("left: %+v", sets)
	}
}

func TestPinsNeedABPFFileSystem(t *testing.T) {
	needsRoot(t)
	dir := filepath.Join(t.TempDir(), "not", "there")
	k, status, err := openKernel(nil, Config{PinDir: dir, StateDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	k.mustClose(t)
	if line := status[len(status)-1]; line.OK || line.Cure == "" || !strings.Contains(line.Reason, dir) {
		t.Errorf("status %+v", line)
	}
	if sets, err := PinnedSets(dir); err != nil || len(sets) != 0 {
		t.Errorf("sets %+v, %v", sets, err)
	}
}
