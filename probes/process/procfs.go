package process

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// ProcfsConfig says where and why. The zero value is that of a live machine.
type ProcfsConfig struct {
	// Root is where procfs is mounted; default /proc.
	Root string
	// Missing says why eBPF does not answer, with the cure, for the values that only eBPF has; empty = "needs eBPF".
	Missing string
}

// NewProcfs makes a probe that needs no right and no kernel feature but /proc. Strategy:
//
// A tree's members are found by walking /proc from parent to child and are kept by pid and start time, so that a member whose
// parent exits stays one. Each member has a base, what its counters stood at when it joined; a tree's value is what its members
// have counted since, plus what those that are gone leave behind.
//
// When a process is waited for, the kernel adds its CPU time, its faults and its I/O to those of the parent that waits. So a
// child's share, its last moments included and even if it was never seen here, reaches the tree through its parent. It is lost
// where nobody in the tree waits: an orphan (init waits for it), and children of a parent that ignores SIGCHLD. Of those the last
// reading is kept, and the loss is counted.
//
// What it cannot see: whether a byte reached a device. write_bytes of /proc/PID/io counts a page when it is made dirty, in the
// window in which that happens, and also if it is truncated before it is ever written. A process made and orphaned between two
// looks, whose parent exits at once, is never found.
func NewProcfs(config ProcfsConfig) Probe {
	if config.Root == "" {
		config.Root = "/proc"
	}
	if config.Missing == "" {
		config.Missing = "needs eBPF"
	}
	return &procfs{
		config: config, now: time.Now,
		trees: map[TreeID]*procTree{}, members: map[int]*member{},
		peaks: map[*procPeak]struct{}{},
	}
}

// procfs is the probe. mu guards everything.
type procfs struct {
	config ProcfsConfig
	now    func() time.Time

	mu      sync.Mutex
	trees   map[TreeID]*procTree
	nextID  TreeID
	members map[int]*member
	order   []*member // scratch: members, parents first
	buffer  []byte    // scratch: a file's text
	pids    []int     // scratch: a directory's entries

	// listed is when the whole of /proc was last walked and how long that took.
	listed     time.Time
	listedCost time.Duration

	peaks   map[*procPeak]struct{}
	sampler *procSampler
	closed  bool
}

// procTree is one tree.
type procTree struct {
	id TreeID
	// parent is the tree around it, 0 = none.
	parent TreeID
	// kept is what members that are gone leave behind. It may be negative for a while: what their parent has taken over is taken
	// off here.
	kept usage
	// reported are the counters as last given out: they never fall.
	reported Counters
	exited   uint64
	loss     uint64
}

// member is a living process of a tree, or one that has not been waited for.
type member struct {
	probes.Process
	ppid    int
	tree    *procTree
	base    usage // what its counters stood at when it joined
	last    usage // what they stood at when last read
	rss     uint64
	swap    uint64
	highest uint64 // VmHWM
	// reapsNone says that the kernel adds its children to nobody: it ignores SIGCHLD.
	reapsNone bool
	exited    bool
	// denied says that /proc/PID/io may not be read, absent that the kernel has none.
	denied, absent bool
	// childFaults are the minor faults of children that it has waited for: they grow with each, seen here or not.
	childFaults uint64
	visited     bool // scratch of refresh
	gone        bool // it is no more, which bury has not dealt with yet
}

// usage is what one process has counted in its life, the children that it has waited for included.
type usage struct {
	readChars, writeChars, readBytes, writeBytes, minorFaults, majorFaults, cpuTicks int64
}

func (u *usage) add(o *usage) {
	u.readChars += o.readChars
	u.writeChars += o.writeChars
	u.readBytes += o.readBytes
	u.writeBytes += o.writeBytes
	u.minorFaults += o.minorFaults
	u.majorFaults += o.majorFaults
	u.cpuTicks += o.cpuTicks
}

func (u *usage) subtract(o *usage) {
	u.readChars -= o.readChars
	u.writeChars -= o.writeChars
	u.readBytes -= o.readBytes
	u.writeBytes -= o.writeBytes
	u.minorFaults -= o.minorFaults
	u.majorFaults -= o.majorFaults
	u.cpuTicks -= o.cpuTicks
}

// maxTrees bounds what a caller can make the probe keep.
const maxTrees = 1 << 16

// Track makes p the root of a tree.
func (p *procfs) Track(root probes.Process) (Tracked, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	stat, err := ReadStat(p.config.Root, root.PID)
	if err != nil {
		return Tracked{}, fmt.Errorf("track pid %d: %w", root.PID, err)
	}
	if stat.StartTicks != root.StartTicks || stat.Zombie() {
		return Tracked{}, fmt.Errorf("track pid %d: %w", root.PID, ErrGone)
	}
	if len(p.trees) >= maxTrees {
		return Tracked{}, fmt.Errorf("track pid %d: %d trees are the most that are followed", root.PID, maxTrees)
	}
	table, err := p.list()
	if err != nil {
		return Tracked{}, fmt.Errorf("track pid %d: %w", root.PID, err)
	}
	p.refresh(nil)

	var outside *procTree
	if m := p.members[root.PID]; m != nil && m.StartTicks == root.StartTicks {
		outside = m.tree
	}
	p.nextID++
	tree := &procTree{id: p.nextID}
	if outside != nil {
		tree.parent = outside.id
	}
	p.trees[tree.id] = tree
	p.take(&stat, outside, tree)
	for _, pid := range table.descendants(root.PID) {
		stat := table.stats[pid]
		p.take(&stat, outside, tree)
	}
	return Tracked{ID: tree.id, Parent: tree.parent}, nil
}

// take moves a process from the tree outside (nil = none) to tree, where it starts at 0. One that is in another tree stays there:
// that tree is now inside the new one.
func (p *procfs) take(stat *Stat, outside, tree *procTree) {
	m := p.members[stat.PID]
	switch {
	case m == nil:
		m = p.join(stat, tree)
		p.read(m)
		m.base = m.last
	case m.tree == outside:
		left := m.last
		left.subtract(&m.base)
		outside.kept.add(&left)
		m.tree, m.base = tree, m.last
	case m.tree != tree && outside != nil && m.tree.parent == outside.id, m.tree != tree && outside == nil && m.tree.parent == 0:
		m.tree.parent = tree.id
	}
}

// join makes a process a member of tree, whole: its base is 0.
func (p *procfs) join(stat *Stat, tree *procTree) *member {
	m := &member{Process: stat.Process, ppid: stat.PPID, tree: tree}
	p.members[stat.PID] = m
	p.unsettle(tree)
	return m
}

// Release gives up a tree. What its members count from the last snapshot on is the parent's.
func (p *procfs) Release(id TreeID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	tree := p.trees[id]
	if tree == nil {
		return
	}
	delete(p.trees, id)
	parent := p.trees[tree.parent]
	if parent != nil {
		parent.loss += tree.loss
	}
	for pid, m := range p.members {
		if m.tree != tree {
			continue
		}
		if parent == nil {
			delete(p.members, pid)
			continue
		}
		m.tree, m.base = parent, m.last
		p.unsettle(parent)
	}
	for _, other := range p.trees {
		if other.parent == id {
			other.parent = tree.parent
		}
	}
}

// Resumed returns nothing: what procfs measures ends with the agent.
func (p *procfs) Resumed() []Resumed { return nil }

// Note does nothing: the probe finds by itself which tree is in which.
func (p *procfs) Note(TreeID, TreeID, []byte) error { return nil }

// Snapshot reads the trees.
func (p *procfs) Snapshot(ids []TreeID, peak Peak, dst *Snapshot) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("read process trees: the probe is closed")
	}
	fresh, err := p.listIfDue()
	if err != nil {
		return fmt.Errorf("read process trees: %w", err)
	}
	p.refresh(ids)

	dst.Trees = slices.Grow(dst.Trees[:0], len(ids))[:len(ids)]
	dst.Node, dst.Peak, dst.LossCount, dst.Incomplete = NodeCounters{}, PeakReading{}, 0, ""
	var denied, absent, readable int
	for i, id := range ids {
		tree := p.trees[id]
		if tree == nil {
			return fmt.Errorf("read process trees: tree %d is not followed", id)
		}
		dst.Trees[i] = Tree{ID: id}
		p.fill(tree, &dst.Trees[i])
		dst.LossCount += tree.loss
		for _, m := range p.members {
			switch {
			case m.tree != tree:
			case m.denied:
				denied++
			case m.absent:
				absent++
			default:
				readable++
			}
		}
	}
	if dst.LossCount > 0 {
		dst.Incomplete = "a process that nobody in the tree waited for has exited: what it did since it was last read is lost"
	}
	p.groups(dst, denied, absent, readable)
	if follow, ok := peak.(*procPeak); ok && follow != nil {
		dst.Peak = follow.take(p, fresh)
	}
	return nil
}

// groups says how the values were measured.
func (p *procfs) groups(dst *Snapshot, denied, absent, readable int) {
	procfs := func(state record.State, reason string) Group {
		return Group{State: state, Source: record.Source_PROCFS, Reason: reason}
	}
	missing := func(what string) Group { return procfs(record.State_UNSUPPORTED, what+": "+p.config.Missing) }
	const lost = "/proc keeps nothing of an orphan that has exited: of one, what it did since it was last read is not counted"
	dst.Task = procfs(record.State_INCOMPLETE, lost)
	dst.Memory = procfs(record.State_OK, "")
	dst.Calls = procfs(record.State_INCOMPLETE, lost)
	dst.Disk = procfs(record.State_INCOMPLETE,
		"/proc/PID/io counts a write when the page is made dirty, not when a device takes it, and a truncated page as well")
	var reason string
	switch {
	case denied > 0:
		reason = fmt.Sprintf("/proc/PID/io of %d of %d processes may not be read: run the agent as the same user or as root, "+
			"or give it CAP_SYS_PTRACE", denied, denied+absent+readable)
	case absent > 0:
		reason = "the kernel has no /proc/PID/io (CONFIG_TASK_IO_ACCOUNTING)"
	}
	if reason != "" {
		state := record.State_INCOMPLETE
		if readable == 0 {
			state = record.State_UNSUPPORTED
		}
		dst.Disk, dst.Calls = procfs(state, reason), procfs(state, reason)
	}
	dst.Blocks = missing("operations, metadata, cache misses and what the rest of the node wrote")
	dst.Dirty = missing("dirty pages by their owner")
	dst.Latency = missing("latency of requests")
	dst.Reclaim = missing("time in reclaim")
	dst.DiskWait = missing("time blocked on a disk")
	dst.RunQueue = missing("time without a CPU")
}

// fill gives the counters of a tree, which never fall, and its memory.
func (p *procfs) fill(tree *procTree, dst *Tree) {
	sum := tree.kept
	for _, m := range p.members {
		if m.tree != tree {
			continue
		}
		sum.add(&m.last)
		sum.subtract(&m.base)
		if !m.exited {
			dst.Processes++
			dst.RSSBytes += m.rss
			dst.SwapBytes += m.swap
		}
	}
	// Between the end of a child and the next look at the parent that has taken over its share, the sum is short by it.
	r := &tree.reported
	raise := func(counter *uint64, value int64) { *counter = max(*counter, uint64(max(value, 0))) }
	raise(&r.DiskReadBytes, sum.readBytes)
	raise(&r.DiskWriteBytes, sum.writeBytes)
	raise(&r.IOReadBytes, sum.readChars)
	raise(&r.IOWriteBytes, sum.writeChars)
	raise(&r.MinorFaults, sum.minorFaults)
	raise(&r.MajorFaults, sum.majorFaults)
	raise(&r.CPUNanos, sum.cpuTicks*TickNanos)
	r.ProcessesExited = tree.exited
	dst.Counters = *r
}

// Status says what procfs gives.
func (p *procfs) Status() []probes.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	status := probes.Status{Name: "process trees (/proc)", OK: true, Source: record.Source_PROCFS}
	if _, err := p.list(); err != nil {
		status.OK, status.Reason, status.Cure = false, err.Error(), "mount procfs at "+p.config.Root
	}
	io := probes.Status{Name: "process I/O (/proc/PID/io)", OK: true, Source: record.Source_PROCFS}
	if _, err := readProc(p.config.Root+"/self/io", p.buffer[:0]); err != nil {
		io.OK, io.Reason = false, err.Error()
		if errors.Is(err, fs.ErrNotExist) {
			io.Cure = "use a kernel with CONFIG_TASK_IO_ACCOUNTING"
		}
	}
	return []probes.Status{status, io}
}

// Close stops sampling.
func (p *procfs) Close() error {
	p.mu.Lock()
	p.closed = true
	stop := p.stopSampler()
	p.mu.Unlock()
	stop()
	return nil
}
