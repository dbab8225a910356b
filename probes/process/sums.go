package process

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
)

// reading is what a tree has used: the sums in the maps, which hold the share of the exited, and the living processes.
type reading struct {
	id     TreeID
	sums   bpf.LineageSums
	living bpf.LiveLive
	// processes are the living ones, when they were asked for. They are in the kernel's buffer, until the next snapshot.
	processes []bpf.LiveLiveProcess
	// bound: nobody is in both sums and living; whole: nor in neither.
	bound, whole bool
}

// read reads a tree.
//
// A process that exits between the two reads is in neither, and one that exits meanwhile may be in both. So the programs mark the
// beginning and the end of each such move, and a read in whose course one happened is repeated. What may still be missing is what a
// process used between the end of its last thread and the moment its task is freed, a few RCU grace periods: the counters stand still
// until it comes.
func (k *kernel) read(id TreeID, each bool, r *reading) error {
	r.id = id
	from := len(k.processes)
	for range 8 {
		var sums bpf.LineageSums
		if err := k.readSums(id, &sums); err != nil {
			return err
		}
		if k.reasons[groupTask] != "" {
			r.sums, r.bound, r.whole = sums, true, true
			return nil
		}
		if err := k.readLive(id, each); err != nil {
			return err
		}
		bound := sums.FoldsBegun == sums.FoldsDone && k.live.Torn == 0
		if bound || !r.bound {
			r.sums, r.living, r.bound = sums, *k.live, bound
			if each {
				k.processes = append(k.processes[:from], k.each[:min(int(r.living.Each), len(k.each))]...)
				r.processes = k.processes[from:]
			}
		}
		if !bound {
			continue
		}
		if err := k.readSums(id, &sums); err != nil {
			return err
		}
		if sums.FoldsBegun == r.sums.FoldsDone {
			r.sums, r.whole = sums, true
			return nil
		}
	}
	return nil
}

// fill turns a reading into what a snapshot says of the tree.
func (k *kernel) fill(r *reading, known *tree, dst *Tree) error {
	dst.ID = r.id
	sums, living, used := &r.sums, &r.living, &r.living.Used
	dst.Counters = Counters{
		DiskReadBytes:          sums.ReadBytes,
		DiskWriteBytes:         sums.WriteBytes,
		DiskReadOps:            sums.ReadOps,
		DiskWriteOps:           sums.WriteOps,
		DiskMetadataWriteBytes: sums.MetadataWriteBytes,
		DirtiedBytes:           sums.DirtiedBytes,
		DirtiedWrittenBytes:    sums.DirtiedWrittenBytes,
		CacheMissBytes:         sums.CacheMissBytes,
		IOReadBytes:            sums.Exited.Rchar + used.Rchar,
		IOWriteBytes:           sums.Exited.Wchar + used.Wchar,
		MinorFaults:            sums.Exited.MinorFaults + used.MinorFaults,
		MajorFaults:            sums.Exited.MajorFaults + used.MajorFaults,
		CPUNanos:               sums.Exited.CpuNanos + used.CpuNanos,
		ProcessesExited:        sums.ProcessesExited,
		ReclaimStallNanos:      sums.ReclaimNanos,
	}
	if k.reasons[groupLatency] == "" {
		if err := k.readHistograms(r.id, &dst.Counters); err != nil {
			return err
		}
	}
	dst.Gauges = Gauges{
		RSSBytes:  living.RssPages * k.pageBytes,
		SwapBytes: living.SwapPages * k.pageBytes,
		Processes: uint64(living.Processes),
	}
	dst.Waits = Waits{
		DiskNanos:     sums.RootDiskWaitNanos,
		ReclaimNanos:  sums.RootReclaimNanos,
		RunQueueNanos: sums.Exited.RunqueueNanos + used.RunqueueNanos,
	}
	known.forward(&dst.Counters, &dst.Waits, r.bound)
	return nil
}

// forward keeps the task counters from going back. Those of a reading that is no lower bound may be too high, and would then stay so:
// they stand still, and the next reading has what this one lacks.
func (t *tree) forward(now *Counters, waits *Waits, bound bool) {
	for _, pair := range [...][2]*uint64{
		{&now.IOReadBytes, &t.last.IOReadBytes},
		{&now.IOWriteBytes, &t.last.IOWriteBytes},
		{&now.MinorFaults, &t.last.MinorFaults},
		{&now.MajorFaults, &t.last.MajorFaults},
		{&now.CPUNanos, &t.last.CPUNanos},
		{&waits.RunQueueNanos, &t.lastRunQueueNanos},
	} {
		value, last := pair[0], pair[1]
		// The difference decides: a share that is taken back may carry a sum below zero.
		if !bound || int64(*value-*last) < 0 {
			*value = *last
		}
		*last = *value
	}
}

func (k *kernel) readSums(id TreeID, sum *bpf.LineageSums) error {
	if err := lookupElement(k.maps[bpf.LineageMapTrees].FD(), (*uint32)(&id), k.sumsBuffer); err != nil {
		return err
	}
	addWords(sum, k.sumsBuffer, k.cpus)
	return nil
}

func (k *kernel) readHistograms(id TreeID, dst *Counters) error {
	if err := lookupElement(k.maps[bpf.LineageMapLatencies].FD(), (*uint32)(&id), k.histogramsBuffer); err != nil {
		return err
	}
	var sum bpf.LineageHistograms
	addWords(&sum, k.histogramsBuffer, k.cpus)
	dst.ReadLatency, dst.WriteLatency = sum.Read, sum.Write
	dst.ReadLatencyNanos, dst.WriteLatencyNanos = sum.ReadNanos, sum.WriteNanos
	return nil
}

// addWords adds up the CPUs' copies of a struct of 64-bit words.
func addWords[T any](sum *T, copies []byte, cpus int) {
	words := int(unsafe.Sizeof(*sum)) / 8
	to := unsafe.Slice((*uint64)(unsafe.Pointer(sum)), words)
	from := unsafe.Slice((*uint64)(unsafe.Pointer(&copies[0])), words*cpus)
	clear(to)
	for cpu := range cpus {
		for i := range to {
			to[i] += from[cpu*words+i]
		}
	}
}

// readLive lets the kernel read the living processes of a tree into live and, with each, one by one into k.each.
func (k *kernel) readLive(id TreeID, each bool) error {
	k.question = bpf.LiveLiveQuestion{Tree: uint32(id)}
	if each {
		k.question.Each = 1
	}
	if k.walk != nil {
		return k.walkLive()
	}
	result, err := runProgram(k.programs[bpf.LiveProgReadLive].FD(), unsafe.Pointer(&k.question), unsafe.Sizeof(k.question))
	if err != nil {
		return err
	}
	if result != 0 {
		return fmt.Errorf("the kernel knows no members of it")
	}
	return nil
}

// walkLive does the same by a walk over all tasks.
func (k *kernel) walkLive() error {
	if err := errors.Join(
		k.maps[bpf.LiveMapLiveQuestions].Put(uint32(0), &k.question),
		k.maps[bpf.LiveMapLiveSum].Put(uint32(0), &bpf.LiveLive{}),
	); err != nil {
		return fmt.Errorf("ask iterator: %w", err)
	}
	return readIterator(k.walk)
}

func (k *kernel) readNode(dst *NodeCounters) error {
	zero := uint32(0)
	if err := lookupElement(k.maps[bpf.LineageMapNode].FD(), &zero, k.nodeBuffer); err != nil {
		return fmt.Errorf("read the node's sums: %w", err)
	}
	var sum bpf.LineageDevice
	addWords(&sum, k.nodeBuffer, k.cpus)
	*dst = NodeCounters{
		OtherWriteBytes:        sum.WriteBytes[bpf.BlockWriteClassCLASS_OTHER],
		UnattributedWriteBytes: sum.WriteBytes[bpf.BlockWriteClassCLASS_UNATTRIBUTED],
		SwapWriteBytes:         sum.WriteBytes[bpf.BlockWriteClassCLASS_SWAP],
		LowerWriteBytes:        sum.WriteBytes[bpf.BlockWriteClassCLASS_LOWER],
		ZeroesWriteBytes:       sum.WriteBytes[bpf.BlockWriteClassCLASS_ZEROES],
		MetadataWriteBytes:     sum.WriteBytes[bpf.BlockWriteClassCLASS_METADATA],
	}
	return nil
}

// device reads what one block device took and gave, by class; zero for one that has had no I/O since attaching.
func (k *kernel) device(major, minor uint32) (bpf.LineageDevice, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var sum bpf.LineageDevice
	number := major<<20 | minor // as the kernel has it, unlike user space's dev_t
	err := lookupElement(k.maps[bpf.LineageMapDevices].FD(), &number, k.nodeBuffer)
	if errors.Is(err, unix.ENOENT) {
		return sum, nil
	}
	if err == nil {
		addWords(&sum, k.nodeBuffer, k.cpus)
	}
	return sum, err
}

// lossNames are the sentences of the kinds of loss, in the order of enum loss.
func lossNames() [bpf.LineageLossLOSSES]string {
	return [...]string{
		bpf.LineageLossLOSS_MEMBERS: "a tree has more processes than can be listed",
		bpf.LineageLossLOSS_TREES:   "a process's tree could not be stored",
		bpf.LineageLossLOSS_INODES:  "the map of dirty files is full",
		bpf.LineageLossLOSS_PAGES:   "the map of dirty pages is full",
		bpf.LineageLossLOSS_DEVICES: "the map of devices is full",
		bpf.LineageLossLOSS_WALK:    "a block I/O of several owners has more pages than are looked at",
		bpf.LineageLossLOSS_RACE:    "a process changed its tree while it exited",
		bpf.LineageLossLOSS_RECLAIM: "the map of stalled threads is full",
		bpf.LineageLossLOSS_KILLS:   "a kill for want of memory found its queue full",
		bpf.LineageLossLOSS_WAITS:   "the map of threads that wait for a disk is full",
		bpf.LineageLossLOSS_LATENCY: "the map of block I/O in flight is full",
		bpf.LineageLossLOSS_ALONE:   "the agent stood still for too long, and nothing was counted meanwhile",
		bpf.LineageLossLOSS_MISSED:  "the kernel passed events by a program that it had interrupted",
	}
}

func (k *kernel) readLosses(dst *Snapshot) error {
	dst.LossCount = 0
	zero := uint32(0)
	if err := lookupElement(k.maps[bpf.LineageMapLosses].FD(), &zero, k.lossBuffer); err != nil {
		return fmt.Errorf("read losses: %w", err)
	}
	addWords(&k.losses, k.lossBuffer, k.cpus)
	k.losses[bpf.LineageLossLOSS_MISSED] = k.missed.read()
	for _, count := range k.losses {
		dst.LossCount += count
	}
	dst.Incomplete = k.incomplete()
	return nil
}

// incomplete names what was lost since attaching; the sentence is made anew only when a kind is lost for the first time.
func (k *kernel) incomplete() string {
	kinds := uint32(0)
	for kind, count := range k.losses {
		if count > 0 {
			kinds |= 1 << kind
		}
	}
	if kinds != k.lossKinds {
		k.lossKinds, k.lossText = kinds, ""
		for kind, name := range lossNames() {
			if kinds&(1<<kind) == 0 {
				continue
			}
			if k.lossText != "" {
				k.lossText += "; "
			}
			k.lossText += name
		}
	}
	return k.lossText
}
