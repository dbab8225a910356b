package process

import (
	"errors"
	"sync"

	"github.com/prov4ml/agent/probes"
)

// composed is eBPF for the groups of values that it gives on this node, and procfs for the others that procfs knows: bytes of disk
// I/O, task counters, memory.
type composed struct {
	kernel *kernel
	files  Probe

	mu sync.Mutex
	// ids are procfs's numbers of the trees.
	ids     map[TreeID]TreeID
	asked   []TreeID
	reading Snapshot
}

// Track implements Probe.
func (c *composed) Track(p probes.Process) (Tracked, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tracked, err := c.kernel.Track(p)
	if err != nil {
		return Tracked{}, err
	}
	other, err := c.files.Track(p)
	if err != nil {
		c.kernel.Release(tracked.ID)
		return Tracked{}, err
	}
	c.ids[tracked.ID] = other.ID
	return tracked, nil
}

// Release implements Probe.
func (c *composed) Release(id TreeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kernel.Release(id)
	if other, ok := c.ids[id]; ok {
		c.files.Release(other)
		delete(c.ids, id)
	}
}

// Resumed implements Probe. What procfs measures ends with the agent, and so does all of it.
func (c *composed) Resumed() []Resumed { return nil }

// Note implements Probe.
func (c *composed) Note(id, parent TreeID, note []byte) error { return c.kernel.Note(id, parent, note) }

// others are procfs's numbers; the result is valid until the next call.
func (c *composed) others(ids []TreeID) []TreeID {
	c.asked = c.asked[:0]
	for _, id := range ids {
		c.asked = append(c.asked, c.ids[id])
	}
	return c.asked
}

type composedPeak struct {
	owner         *composed
	kernel, files Peak
}

// NewPeak implements Probe.
func (c *composed) NewPeak(ids []TreeID) Peak {
	c.mu.Lock()
	defer c.mu.Unlock()
	return &composedPeak{owner: c, kernel: c.kernel.NewPeak(ids), files: c.files.NewPeak(c.others(ids))}
}

// SetTrees implements Peak.
func (p *composedPeak) SetTrees(ids []TreeID) {
	p.owner.mu.Lock()
	defer p.owner.mu.Unlock()
	p.kernel.SetTrees(ids)
	p.files.SetTrees(p.owner.others(ids))
}

// Close implements Peak.
func (p *composedPeak) Close() {
	p.kernel.Close()
	p.files.Close()
}

// Snapshot implements Probe.
func (c *composed) Snapshot(ids []TreeID, following Peak, dst *Snapshot) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ofKernel, ofFiles Peak
	if following != nil {
		p, ok := following.(*composedPeak)
		if !ok || p.owner != c {
			return errors.New("read peak: it belongs to another probe")
		}
		ofKernel, ofFiles = p.kernel, p.files
	}
	if err := c.kernel.Snapshot(ids, ofKernel, dst); err != nil {
		return err
	}
	if err := c.files.Snapshot(c.others(ids), ofFiles, &c.reading); err != nil {
		return err
	}
	without := func(g group) bool { return c.kernel.reasons[g] != "" }
	if without(groupDisk) {
		// What only the block layer tells stays as unsupported as eBPF said.
		dst.Blocks, dst.Disk = dst.Disk, c.reading.Disk
	}
	if without(groupTask) {
		dst.Task, dst.Calls = c.reading.Task, c.reading.Calls
	}
	if without(groupMemory) {
		dst.Memory, dst.Peak = c.reading.Memory, c.reading.Peak
	}
	for i := range dst.Trees {
		to, from := &dst.Trees[i], &c.reading.Trees[i]
		if without(groupDisk) {
			to.DiskReadBytes, to.DiskWriteBytes = from.DiskReadBytes, from.DiskWriteBytes
		}
		if without(groupTask) {
			to.IOReadBytes, to.IOWriteBytes = from.IOReadBytes, from.IOWriteBytes
			to.MinorFaults, to.MajorFaults, to.CPUNanos = from.MinorFaults, from.MajorFaults, from.CPUNanos
		}
		if without(groupMemory) {
			to.Gauges = from.Gauges
		}
	}
	if c.reading.LossCount > 0 {
		dst.LossCount += c.reading.LossCount
		if dst.Incomplete != "" {
			dst.Incomplete += "; "
		}
		dst.Incomplete += c.reading.Incomplete
	}
	return nil
}

// Status implements Probe.
func (c *composed) Status() []probes.Status {
	return append(c.kernel.Status(), c.files.Status()...)
}

// Close implements Probe.
func (c *composed) Close() error {
	return errors.Join(c.files.Close(), c.kernel.Close())
}
