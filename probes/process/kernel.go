package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// kernel measures by eBPF. The sums of trees are in maps and are read here; what living processes have used since is read by one
// run of a program over the tree's members.
type kernel struct {
	*loaded
	pageBytes uint64

	// lineage serialises making and giving up trees, which takes some ms; it is taken before mu.
	lineage sync.Mutex
	last    TreeID

	// mu serialises what shares the buffers below and the maps that programs answer in.
	mu    sync.Mutex
	trees map[TreeID]*tree

	sumsBuffer, histogramsBuffer, nodeBuffer, lossBuffer []byte
	liveMemory, eachMemory                               []byte
	live                                                 *bpf.LiveLive
	each                                                 []bpf.LiveLiveProcess
	question                                             bpf.LiveLiveQuestion

	// memberSpec makes a tree's map of members.
	memberSpec *ebpf.MapSpec

	// losses by kind, and the sentence for the kinds (a bit each) that there were.
	losses    [bpf.LineageLossLOSSES]uint64
	lossKinds uint32
	lossText  string

	kills killReader

	sampler kernelSampler
	sweeper sweeper
}

type tree struct {
	parent TreeID
	// last is what was answered last: no counter ever goes back.
	last              Counters
	lastRunQueueNanos uint64
}

// openKernel loads the programs. It returns an error that wraps ErrUnsupported when trees cannot be followed; the status lines are there
// in both cases. What else cannot be had is in reasons.
func openKernel(refuse func(program string) error) (*kernel, []probes.Status, error) {
	k := &kernel{loaded: load(refuse), pageBytes: uint64(os.Getpagesize()), trees: map[TreeID]*tree{}}
	if reason := k.reasons[groupTrees]; reason != "" {
		return nil, k.status, errors.Join(fmt.Errorf("follow process trees by eBPF: %s: %w", reason, ErrUnsupported), k.close())
	}
	if err := k.prepare(); err != nil {
		return nil, k.status, errors.Join(err, k.close())
	}
	k.sampler.start(k)
	k.sweeper.start(k)
	return k, k.status, nil
}

func (k *kernel) prepare() error {
	perCPU := func(bytes uintptr) []byte { return make([]byte, (int(bytes)+7)/8*8*k.cpus) }
	k.sumsBuffer = perCPU(unsafe.Sizeof(bpf.LineageSums{}))
	k.histogramsBuffer = perCPU(unsafe.Sizeof(bpf.LineageHistograms{}))
	k.nodeBuffer = perCPU(unsafe.Sizeof(bpf.LineageDevice{}))
	k.lossBuffer = perCPU(8)
	lineage, err := bpf.LoadLineage()
	if err != nil {
		return fmt.Errorf("read object: %w", err)
	}
	k.memberSpec = lineage.Maps[bpf.LineageMapMembers].InnerMap
	if k.reasons[groupTask] != "" {
		return nil
	}
	if k.liveMemory, err = mapMemory(k.maps[bpf.LiveMapLiveSum].FD(), unsafe.Sizeof(bpf.LiveLive{})); err != nil {
		return err
	}
	entries := int(k.maps[bpf.LiveMapEachLive].MaxEntries())
	if k.eachMemory, err = mapMemory(k.maps[bpf.LiveMapEachLive].FD(), uintptr(entries)*unsafe.Sizeof(bpf.LiveLiveProcess{})); err != nil {
		return err
	}
	k.live = (*bpf.LiveLive)(unsafe.Pointer(&k.liveMemory[0]))
	k.each = unsafe.Slice((*bpf.LiveLiveProcess)(unsafe.Pointer(&k.eachMemory[0])), entries)
	if k.reasons[groupMemory] != "" {
		return nil
	}
	if _, err := runProgram(k.programs[bpf.LiveProgLearnOffsets].FD(), nil, 0); err != nil {
		return fmt.Errorf("learn where per-CPU counters are: %w", err)
	}
	return nil
}

// mapMemory maps the values of an array map into our memory, to be read without system calls.
func mapMemory(fd int, size uintptr) ([]byte, error) {
	page := os.Getpagesize()
	memory, err := unix.Mmap(fd, 0, (int(size)+page-1)/page*page, unix.PROT_READ, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map values into memory: %w", err)
	}
	return memory, nil
}

// Snapshot implements Probe.
func (k *kernel) Snapshot(ids []TreeID, following Peak, dst *Snapshot) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	dst.Trees = dst.Trees[:0]
	for _, id := range ids {
		known := k.trees[id]
		if known == nil {
			return fmt.Errorf("read tree %d: not tracked", id)
		}
		dst.Trees = append(dst.Trees, Tree{})
		read := &dst.Trees[len(dst.Trees)-1]
		if err := k.readTree(id, known, read); err != nil {
			return fmt.Errorf("read tree %d: %w", id, err)
		}
	}
	if err := k.readNode(&dst.Node); err != nil {
		return err
	}
	dst.Peak = PeakReading{}
	if following != nil {
		p, ok := following.(*kernelPeak)
		if !ok || p.kernel != k {
			return errors.New("read peak: it belongs to another probe")
		}
		if err := k.readPeak(p, &dst.Peak); err != nil {
			return err
		}
	}
	dst.Disk, dst.Dirty, dst.Latency = k.groupOf(groupDisk), k.groupOf(groupDirty), k.groupOf(groupLatency)
	dst.Task, dst.Memory, dst.Reclaim = k.groupOf(groupTask), k.groupOf(groupMemory), k.groupOf(groupReclaim)
	dst.DiskWait, dst.RunQueue = k.groupOf(groupWait), k.groupOf(groupTask)
	dst.Blocks, dst.Calls = Group{}, Group{} // as Disk and Task
	return k.readLosses(dst)
}

func (k *kernel) groupOf(g group) Group {
	if reason := k.reasons[g]; reason != "" {
		return Group{State: record.State_UNSUPPORTED, Source: record.Source_EBPF, Reason: reason}
	}
	return Group{State: record.State_OK, Source: record.Source_EBPF}
}

// Status implements Probe.
func (k *kernel) Status() []probes.Status {
	return append([]probes.Status(nil), k.status...)
}

// Close implements Probe.
func (k *kernel) Close() error {
	k.sampler.stop()
	k.sweeper.stop()
	k.kills.stop()
	k.lineage.Lock()
	defer k.lineage.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	var err error
	for _, memory := range [...][]byte{k.liveMemory, k.eachMemory} {
		if memory != nil {
			err = errors.Join(err, unix.Munmap(memory))
		}
	}
	k.live, k.each = nil, nil
	return errors.Join(err, k.close())
}
