package process

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
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
	// readings are those of the snapshot being taken, processes what they have of the living.
	readings  []reading
	processes []bpf.LiveLiveProcess
	// walk reads living processes where the kernel cannot run read_live.
	walk *link.Iter

	// membersSpec and crowdSpec make a tree's two maps of members.
	membersSpec, crowdSpec *ebpf.MapSpec

	// losses by kind, and the sentence for the kinds (a bit each) that there were.
	losses    [bpf.LineageLossLOSSES]uint64
	lossKinds uint32
	lossText  string

	kills killReader

	missed  missed
	sampler kernelSampler
	sweeper sweeper

	// set is nil when counting ends with the agent.
	set     *pinSet
	heart   heart
	resumed []Resumed
}

type tree struct {
	root   probes.Process
	parent TreeID
	// last is what was answered last: no counter ever goes back.
	last              Counters
	lastRunQueueNanos uint64
}

func newKernel(l *loaded) *kernel {
	return &kernel{loaded: l, pageBytes: uint64(os.Getpagesize()), trees: map[TreeID]*tree{}}
}

// openKernel loads the programs, or goes on with those of the agent before this one. It returns an error that wraps ErrUnsupported when
// trees cannot be followed; the status lines are there in both cases. What else cannot be had is in reasons.
func openKernel(refuse func(program string) error, config Config) (*kernel, []probes.Status, error) {
	var limit time.Duration
	set, whyNot := config.pinSet()
	if set != nil {
		if config.NoPin {
			whyNot = errNoPin
			if err := removeSet(set.dir); err != nil {
				whyNot = err
			}
			set = nil
		} else {
			limit = set.limit
		}
	}
	kept := "pinned"
	if set != nil {
		k, err := takeOver(refuse, set)
		if k != nil {
			k.sayKept(fmt.Sprintf("goes on in %s, which the agent before this one has left", set.dir), nil)
			k.run()
			return k, k.status, nil
		}
		if err != nil {
			kept = fmt.Sprintf("pinned anew, for the set there could not be used (%v)", err)
			err = removeSet(set.dir)
		}
		if err != nil {
			set, whyNot = nil, err
		}
	}
	k := newKernel(load(refuse, limit, nil))
	if reason := k.reasons[groupTrees]; reason != "" {
		return nil, k.status, errors.Join(fmt.Errorf("follow process trees by eBPF: %s: %w", reason, ErrUnsupported), k.detach())
	}
	if err := k.prepare(); err != nil {
		return nil, k.status, errors.Join(err, k.detach())
	}
	if limit > 0 {
		if err := k.heart.start(k.maps[heartbeatFile]); err != nil {
			return nil, k.status, errors.Join(err, k.detach())
		}
	}
	if set != nil {
		if !k.complete() {
			whyNot = errors.New("procfs measures a part here, and that ends with the agent")
		} else if whyNot = set.make(k.loaded); whyNot == nil {
			k.set = set
			k.sayKept(kept+" in "+set.dir, nil)
		}
	}
	if whyNot != nil {
		k.sayKept("", whyNot)
	}
	k.run()
	return k, k.status, nil
}

// errNoPin says that the user wants no pins.
var errNoPin = errors.New("switched off")

// complete says that procfs has nothing to add.
func (k *kernel) complete() bool {
	for _, g := range [...]group{groupDisk, groupTask, groupMemory, groupTrees} {
		if k.reasons[g] != "" {
			return false
		}
	}
	return true
}

// sayKept adds the line about pins.
func (k *kernel) sayKept(detail string, err error) {
	line := probes.Status{Name: KeepStatus, OK: err == nil || errors.Is(err, errNoPin), Source: record.Source_EBPF, Reason: detail}
	if err != nil {
		line.Reason = err.Error()
		if errors.Is(err, errNoBPFFS) {
			line.Cure = "mount -t bpf bpf /sys/fs/bpf"
		}
	}
	k.status = append(k.status, line)
}

// run starts what works beside the callers.
func (k *kernel) run() {
	k.missed.watch(k.loaded)
	k.sampler.start(k)
	k.sweeper.start(k)
}

func (k *kernel) prepare() error {
	perCPU := func(bytes uintptr) []byte { return make([]byte, (int(bytes)+7)/8*8*k.cpus) }
	k.sumsBuffer = perCPU(unsafe.Sizeof(bpf.LineageSums{}))
	k.histogramsBuffer = perCPU(unsafe.Sizeof(bpf.LineageHistograms{}))
	k.nodeBuffer = perCPU(unsafe.Sizeof(bpf.LineageDevice{}))
	k.lossBuffer = perCPU(unsafe.Sizeof(bpf.LineageLosses{}))
	lineage, err := bpf.LoadLineage()
	if err != nil {
		return fmt.Errorf("read object: %w", err)
	}
	k.membersSpec = lineage.Maps[bpf.LineageMapMembers].InnerMap
	k.crowdSpec = lineage.Maps[bpf.LineageMapCrowds].InnerMap
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
	if walk := k.programs[bpf.LiveProgWalkLive]; walk != nil {
		if k.walk, err = link.AttachIter(link.IterOptions{Program: walk}); err != nil {
			return fmt.Errorf("attach iterator: %w", err)
		}
	}
	if learn := k.programs[bpf.LiveProgLearnOffsets]; learn != nil {
		if _, err := runProgram(learn.FD(), nil, 0); err != nil {
			return fmt.Errorf("learn where per-CPU counters are: %w", err)
		}
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
	dst.Trees, k.readings, k.processes = dst.Trees[:0], k.readings[:0], k.processes[:0]
	for _, id := range ids {
		known := k.trees[id]
		if known == nil {
			return fmt.Errorf("read tree %d: not tracked", id)
		}
		dst.Trees, k.readings = append(dst.Trees, Tree{}), append(k.readings, reading{})
		last := len(k.readings) - 1
		if err := k.read(id, following != nil, &k.readings[last]); err != nil {
			return fmt.Errorf("read tree %d: %w", id, err)
		}
		if err := k.fill(&k.readings[last], known, &dst.Trees[last]); err != nil {
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
	return k.detach()
}

// detach gives back what is ours. Programs and maps that are pinned stay.
func (k *kernel) detach() error {
	err := k.heart.stop()
	if k.set != nil {
		k.set.close()
	}
	for _, memory := range [...][]byte{k.liveMemory, k.eachMemory} {
		if memory != nil {
			err = errors.Join(err, unix.Munmap(memory))
		}
	}
	k.live, k.each = nil, nil
	k.missed.close()
	if k.walk != nil {
		err = errors.Join(err, k.walk.Close())
	}
	return errors.Join(err, k.close())
}
