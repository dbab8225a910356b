// Package process measures what process trees do: bytes at the block layer and at the system call, page faults, memory, CPU time.
//
// It measures by eBPF (attached tracepoints that sum inside the kernel, see ../../bpf/README.md) and, for each group of
// values that eBPF cannot give on this node, by procfs. Every group says which of the two answered.
//
// A tree is a process and all its descendants, the exited and the orphaned included. Trees nest: a task is counted in its
// innermost tree only, so whoever wants the sum over a tree and the trees inside it adds them up.
package process

import (
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// TreeID names a tree in the kernel's maps. 0 is every process in no tree.
type TreeID uint32

// Group says how one group of values was measured.
type Group struct {
	State  record.State
	Source record.Source
	// Reason says why State is not OK.
	Reason string
}

// Counters only grow. They are cumulative since the tree was made and hold the share of processes that have exited.
type Counters struct {
	// Data that reached or came from a block device, metadata apart. Group Disk.
	DiskReadBytes, DiskWriteBytes uint64
	// Bios as submitted. Group Blocks.
	DiskReadOps, DiskWriteOps uint64
	// Bytes of REQ_META bios of submitters in the tree. Group Blocks.
	DiskMetadataWriteBytes uint64
	// Bytes of page cache that the tree made dirty: whole pages. Group Dirty.
	DirtiedBytes uint64
	// Bytes of dirty page cache of this tree that were written by the device, its share of DiskWriteBytes. Group Dirty.
	DirtiedWrittenBytes uint64
	// Bytes of non-metadata read bios into file-mapped pages that were not up to date. Group Blocks.
	CacheMissBytes uint64
	// Log2 histograms in ns of request issue to completion: bucket i holds [2^i, 2^(i+1)). Group Latency.
	ReadLatency, WriteLatency [64]uint64
	// Sums of what is in them, in ns. Group Latency.
	ReadLatencyNanos, WriteLatencyNanos uint64
	// rchar and wchar: what system calls asked for and got. Group Calls.
	IOReadBytes, IOWriteBytes uint64
	// Group Task.
	MinorFaults, MajorFaults uint64
	CPUNanos                 uint64
	// Processes (thread groups) of the tree that have exited. Group Task.
	ProcessesExited uint64
	// Time its threads spent in direct and memcg reclaim. Group Reclaim.
	ReclaimStallNanos uint64
}

// Waits are what the threads of a tree's root process have waited since the tree was made, the exited included. They only grow.
type Waits struct {
	// Blocked on a disk, until they might run again. Group DiskWait.
	DiskNanos uint64
	// In direct and memcg reclaim. Group Reclaim.
	ReclaimNanos uint64
	// Ready to run and without a CPU. Group RunQueue.
	RunQueueNanos uint64
}

// Gauges are values of the moment of the snapshot. Group Memory.
type Gauges struct {
	RSSBytes, SwapBytes uint64
	Processes           uint64
}

// NodeCounters are bytes written on all devices that no tree paid for, and what other trees and the rest of the node wrote.
// They only grow. Group Blocks.
type NodeCounters struct {
	// Data written by processes in no tree.
	OtherWriteBytes uint64
	// Data whose writer is not known: dirtied before attaching, by a kernel thread, or the entry was lost.
	UnattributedWriteBytes uint64
	SwapWriteBytes         uint64
	// Data counted a second time by a stacked device (loop, dm, md).
	LowerWriteBytes  uint64
	ZeroesWriteBytes uint64
	// Metadata of the whole node, trees included.
	MetadataWriteBytes uint64
}

// Tree is the reading of one tree, nested trees excluded.
type Tree struct {
	ID TreeID
	Counters
	Gauges
	Waits Waits
}

// PeakReading is the largest RSS sum of a set of trees since the previous snapshot that named the same Peak.
type PeakReading struct {
	// The largest seen; a lower bound unless Exact.
	Bytes uint64
	Exact bool
	// Never less than the true peak. 0 = no upper bound known.
	UpperBytes uint64
	// Rate at which RSS was sampled.
	SampleHertz float64
}

// Snapshot is one consistent read.
type Snapshot struct {
	// Trees in the order asked for.
	Trees []Tree
	Node  NodeCounters
	Peak  PeakReading

	Disk, Dirty, Latency, Task, Memory, Reclaim, DiskWait, RunQueue Group
	// Blocks is what only the block layer itself can tell. The zero Group: as Disk.
	Blocks Group
	// Calls is what only /proc/PID/io or the task's own counters tell. The zero Group: as Task.
	Calls Group

	// Incomplete says that something was lost since attaching (a full map, a dropped event), and what. It is sticky per kind of
	// loss: LossCount grows by every loss, so a window lost something when LossCount differs at its two ends.
	LossCount  uint64
	Incomplete string
}

// Peak follows the largest RSS of a set of trees between two snapshots. It belongs to the Probe that made it.
type Peak interface {
	// SetTrees changes the set within a window: a nested tree was made.
	SetTrees(ids []TreeID)
	// Close stops following.
	Close()
}

// Tracked is the answer to Track.
type Tracked struct {
	ID TreeID
	// Parent is the innermost tree that the process was in; 0 = none.
	Parent TreeID
	// Set names the counting that the tree is part of: as long as it is the same, an ID is the same tree and its counters go on,
	// also from one Probe to the next. 0 = it ends with the Probe.
	Set uint64
}

// Resumed is a tree that was counted on while no agent was there.
type Resumed struct {
	// Parent is the tree it is directly inside: the one last given to Note, or what that was released to.
	Tracked
	Root probes.Process
	// Note is what was last given to Note.
	Note []byte
}

// Probe measures trees. Its methods may be called from any goroutine.
type Probe interface {
	// Track makes p the root of a tree of its own: p and those of its present descendants that share its present innermost
	// tree. It returns ErrGone when p has exited or the pid belongs to another process now. Counting starts at 0.
	Track(p probes.Process) (Tracked, error)
	// Resumed returns the trees that a Probe of an earlier process has left, in no order. They are tracked.
	Resumed() []Resumed
	// Note says which tree (0 = none) a tree is directly inside, and keeps with it what the next agent needs, at most 4,072 bytes, for
	// as long as it is counted. It is written when Note returns.
	Note(id, parent TreeID, note []byte) error
	// Release gives up a tree that nobody will read again; descendants that live on go to its parent.
	Release(id TreeID)
	// NewPeak starts following the RSS of a set of trees.
	NewPeak(ids []TreeID) Peak
	// Snapshot reads the trees into dst, whose slices it reuses. With peak not nil it reads the peak and starts it anew.
	Snapshot(ids []TreeID, peak Peak, dst *Snapshot) error
	// Status says what works, one line a probe.
	Status() []probes.Status
	// Close detaches, except what is pinned, which counts on for the next agent.
	Close() error
}
