package runs

import (
	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/probes/host"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

// sample is what the counters of a tree and all trees inside it stood at, at one moment.
type sample struct {
	tree process.Counters
	// waits are of the process itself.
	waits process.Waits
	node  process.NodeCounters
	// gauges of the moment.
	gauges process.Gauges
	loss   uint64
	cpu    host.CPUTimes
	cgroup cgroup.Memory
	// known says that the tree could be read; without it every value is unknown.
	known bool
}

// groups of a snapshot, in the order in which their reasons are told.
type group int

const (
	disk group = iota
	blocks
	dirty
	latency
	task
	calls
	memory
	reclaim
	diskWait
	runQueue
)

// groupNames begin the sentence that says why a group is not OK.
var groupNames = [...]string{
	disk: "disk", blocks: "disk operations and node", dirty: "dirty pages", latency: "disk latency", task: "processes",
	calls: "system calls", memory: "memory", reclaim: "reclaim", diskWait: "waiting for disks", runQueue: "waiting for a CPU",
}

func groupOf(s *process.Snapshot, g group) *process.Group {
	switch g {
	case disk:
		return &s.Disk
	case blocks:
		if s.Blocks == (process.Group{}) {
			return &s.Disk
		}
		return &s.Blocks
	case dirty:
		return &s.Dirty
	case latency:
		return &s.Latency
	case task:
		return &s.Task
	case calls:
		if s.Calls == (process.Group{}) {
			return &s.Task
		}
		return &s.Calls
	case memory:
		return &s.Memory
	case diskWait:
		return &s.DiskWait
	case runQueue:
		return &s.RunQueue
	}
	return &s.Reclaim
}

// quantity is one value that adds up over windows.
type quantity struct {
	name  string
	group group
	of    func(*sample) uint64
	// nanos says that it counts ns and is given in seconds.
	nanos bool
}

// quantities is the table of all that adds up. Its order is that of state.Sums: changing it changes the state's schema version.
var quantities = [...]quantity{
	{name: record.DiskReadBytes, group: disk, of: func(s *sample) uint64 { return s.tree.DiskReadBytes }},
	{name: record.DiskWriteBytes, group: disk, of: func(s *sample) uint64 { return s.tree.DiskWriteBytes }},
	{name: record.DiskReadOps, group: blocks, of: func(s *sample) uint64 { return s.tree.DiskReadOps }},
	{name: record.DiskWriteOps, group: blocks, of: func(s *sample) uint64 { return s.tree.DiskWriteOps }},
	{name: record.DiskMetadataWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.tree.DiskMetadataWriteBytes }},
	{name: record.DiskDirtiedBytes, group: dirty, of: func(s *sample) uint64 { return s.tree.DirtiedBytes }},
	{name: record.CacheMissBytes, group: blocks, of: func(s *sample) uint64 { return s.tree.CacheMissBytes }},
	{name: record.DiskOtherWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.node.OtherWriteBytes }},
	{name: record.DiskUnattributedWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.node.UnattributedWriteBytes }},
	{name: record.DiskSwapWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.node.SwapWriteBytes }},
	{name: record.DiskLowerWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.node.LowerWriteBytes }},
	{name: record.DiskZeroesWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.node.ZeroesWriteBytes }},
	{name: record.DiskNodeMetadataWriteBytes, group: blocks, of: func(s *sample) uint64 { return s.node.MetadataWriteBytes }},
	{name: record.IOReadBytes, group: calls, of: func(s *sample) uint64 { return s.tree.IOReadBytes }},
	{name: record.IOWriteBytes, group: calls, of: func(s *sample) uint64 { return s.tree.IOWriteBytes }},
	{name: record.MemoryMinorFaults, group: task, of: func(s *sample) uint64 { return s.tree.MinorFaults }},
	{name: record.MemoryMajorFaults, group: task, of: func(s *sample) uint64 { return s.tree.MajorFaults }},
	{name: record.MemoryReclaimStallSeconds, group: reclaim, of: func(s *sample) uint64 { return s.tree.ReclaimStallNanos }, nanos: true},
	{name: record.CPUSeconds, group: task, of: func(s *sample) uint64 { return s.tree.CPUNanos }, nanos: true},
	{name: record.ProcessesExited, group: task, of: func(s *sample) uint64 { return s.tree.ProcessesExited }},
	{name: record.WaitDiskSeconds, group: diskWait, of: func(s *sample) uint64 { return s.waits.DiskNanos }, nanos: true},
	{name: record.WaitReclaimSeconds, group: reclaim, of: func(s *sample) uint64 { return s.waits.ReclaimNanos }, nanos: true},
	{name: record.WaitRunqueueSeconds, group: runQueue, of: func(s *sample) uint64 { return s.waits.RunQueueNanos }, nanos: true},
}

// add puts the counters of one tree on top of into.
func add(into, from *process.Counters) {
	into.DiskReadBytes += from.DiskReadBytes
	into.DiskWriteBytes += from.DiskWriteBytes
	into.DiskReadOps += from.DiskReadOps
	into.DiskWriteOps += from.DiskWriteOps
	into.DiskMetadataWriteBytes += from.DiskMetadataWriteBytes
	into.DirtiedBytes += from.DirtiedBytes
	into.DirtiedWrittenBytes += from.DirtiedWrittenBytes
	into.CacheMissBytes += from.CacheMissBytes
	into.ReadLatencyNanos += from.ReadLatencyNanos
	into.WriteLatencyNanos += from.WriteLatencyNanos
	for i := range into.ReadLatency {
		into.ReadLatency[i] += from.ReadLatency[i]
		into.WriteLatency[i] += from.WriteLatency[i]
	}
	into.IOReadBytes += from.IOReadBytes
	into.IOWriteBytes += from.IOWriteBytes
	into.MinorFaults += from.MinorFaults
	into.MajorFaults += from.MajorFaults
	into.CPUNanos += from.CPUNanos
	into.ProcessesExited += from.ProcessesExited
	into.ReclaimStallNanos += from.ReclaimStallNanos
}

// pending is what the tree made dirty and no device has written yet. Approximate: a truncated file's pages are never written, and
// the kernel tells nobody that they were dropped.
func (s *sample) pending() uint64 { return grown(s.tree.DirtiedBytes, s.tree.DirtiedWrittenBytes) }

// grown is now - before, never below 0.
func grown(now, before uint64) uint64 { return now - min(before, now) }
