package process

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// listAge is how old the list of processes may be when members are read. A process younger than that is found at the next
	// list, or reaches the tree through its parent.
	listAge = 10 * time.Millisecond
	// listShare is how many times its own cost the list lives, so that however often trees are read, listing takes a tenth of a
	// core at most. The list costs as much as the node has processes: the kernel gives no other way without CONFIG_PROC_CHILDREN.
	listShare = 10
)

// procTable is one walk over /proc.
type procTable struct {
	stats    map[int]Stat
	children map[int][]int
}

// descendants returns the pids below pid, parents first.
func (t *procTable) descendants(pid int) []int {
	queue := append([]int(nil), t.children[pid]...)
	for i := 0; i < len(queue); i++ {
		queue = append(queue, t.children[queue[i]]...)
	}
	return queue
}

// list walks /proc and takes the children of members in. The caller holds mu.
func (p *procfs) list() (*procTable, error) {
	begin := time.Now()
	names, err := p.entries()
	if err != nil {
		return nil, err
	}
	table := &procTable{stats: make(map[int]Stat, len(names)), children: make(map[int][]int, len(names))}
	for _, pid := range names {
		text, err := readProc(p.config.Root+"/"+strconv.Itoa(pid)+"/stat", p.buffer[:0])
		if err != nil {
			continue // it has exited since
		}
		p.buffer = text
		stat, err := parseStat(text)
		if err != nil {
			continue
		}
		table.stats[pid] = stat
		table.children[stat.PPID] = append(table.children[stat.PPID], pid)
	}
	var queue []*member
	for _, m := range p.members {
		queue = append(queue, m)
	}
	for i := 0; i < len(queue); i++ {
		parent := queue[i]
		if table.stats[parent.PID].StartTicks != parent.StartTicks {
			continue
		}
		for _, pid := range table.children[parent.PID] {
			stat := table.stats[pid]
			if m := p.members[pid]; m != nil {
				if m.StartTicks == stat.StartTicks {
					continue
				}
				p.bury([]*member{m}) // the pid is another's now
			}
			queue = append(queue, p.join(&stat, parent.tree))
		}
	}
	p.listed, p.listedCost = p.now(), time.Since(begin)
	return table, nil
}

// listIfDue lists when the last list is too old; fresh says that it did. The caller holds mu.
func (p *procfs) listIfDue() (fresh bool, err error) {
	age := p.now().Sub(p.listed)
	if age >= 0 && age < max(listAge, listShare*p.listedCost) {
		return false, nil
	}
	_, err = p.list()
	return err == nil, err
}

// entries returns the pids in /proc.
func (p *procfs) entries() ([]int, error) {
	directory, err := os.Open(p.config.Root)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	defer directory.Close()
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	p.pids = p.pids[:0]
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil && pid > 0 {
			p.pids = append(p.pids, pid)
		}
	}
	return p.pids, nil
}

// refresh reads the members of the trees asked for (nil = of all), and notices which are gone. Parents are read before their
// children: a child that is waited for in between is then counted nowhere until the next look, instead of twice. The caller holds
// mu.
func (p *procfs) refresh(ids []TreeID) {
	p.order = p.order[:0]
	for _, m := range p.members {
		m.visited = false
	}
	for _, m := range p.members {
		p.visit(m, 0)
	}
	var gone []*member
	for _, m := range p.order {
		if (ids == nil || asked(ids, m.tree.id)) && !p.read(m) {
			m.gone = true
			gone = append(gone, m)
		}
	}
	if len(gone) == 0 {
		return
	}
	// Who has waited for them may be in a tree that was not asked for, and gone as well.
	for _, m := range p.order {
		if ids != nil && !asked(ids, m.tree.id) && !p.read(m) {
			m.gone = true
			gone = append(gone, m)
		}
	}
	slices.SortStableFunc(gone, func(a, b *member) int { return slices.Index(p.order, a) - slices.Index(p.order, b) })
	p.bury(gone)
}

func asked(ids []TreeID, id TreeID) bool { return slices.Contains(ids, id) }

// visit puts m behind its parents in order.
func (p *procfs) visit(m *member, depth int) {
	if m.visited {
		return
	}
	m.visited = true
	// Pids may be reused while this walks; depth bounds a loop that cannot be in one instant.
	if parent := p.members[m.ppid]; parent != nil && depth < 1000 {
		p.visit(parent, depth+1)
	}
	p.order = append(p.order, m)
}

// bury deals with members that are gone, given parents first. The kernel has added the whole life of each to the process that
// waited for it. Where that is a member, the tree of the dead keeps what it had seen of it, and the same is taken off from the tree
// that gets it all now.
//
// Of a child and a parent that are gone in the same look, the parent is taken to have waited for the child, as a shell does; had it
// died first instead, the child's share would be taken off and never come, and the tree's counters stand still for as much. The
// caller holds mu.
func (p *procfs) bury(gone []*member) {
	for _, m := range slices.Backward(gone) {
		delete(p.members, m.PID)
		p.unsettle(m.tree)
		if !m.exited {
			m.tree.exited++
		}
		share := m.last
		share.subtract(&m.base)
		m.tree.kept.add(&share)
		heir := p.members[m.ppid]
		if heir == nil || heir.reapsNone || heir.StartTicks > m.StartTicks {
			if !m.exited {
				m.tree.loss++ // a zombie's last reading was complete
			}
			continue
		}
		heir.tree.kept.subtract(&m.last)
		if heir.gone {
			heir.last.add(&m.last)
		}
	}
}

// read brings m up to date. It returns false when m is gone. The caller holds mu.
func (p *procfs) read(m *member) bool {
	prefix := p.config.Root + "/" + strconv.Itoa(m.PID)
	text, err := readProc(prefix+"/stat", p.buffer[:0])
	if err != nil {
		return false
	}
	p.buffer = text
	stat, err := parseStat(text)
	if err != nil || stat.StartTicks != m.StartTicks {
		return false
	}
	next := usage{
		minorFaults: int64(stat.MinorFaults + stat.ChildMinorFaults),
		majorFaults: int64(stat.MajorFaults + stat.ChildMajorFaults),
		cpuTicks:    int64(stat.CPUTicks + stat.ChildCPUTicks),
	}
	m.ppid = stat.PPID
	if stat.ChildMinorFaults != m.childFaults {
		m.childFaults = stat.ChildMinorFaults
		p.unsettle(m.tree) // maybe by a child that nobody saw
	}

	m.denied, m.absent = false, false
	text, err = readProc(prefix+"/io", p.buffer[:0])
	switch {
	case err == nil:
		p.buffer = text
		parseIO(text, &next)
	case errors.Is(err, fs.ErrPermission):
		m.denied = true
	case errors.Is(err, ErrGone):
		if _, err := os.Stat(prefix); err != nil {
			return false
		}
		m.absent = true
	default:
		return false
	}
	if m.denied || m.absent {
		next.readChars, next.writeChars = m.last.readChars, m.last.writeChars
		next.readBytes, next.writeBytes = m.last.readBytes, m.last.writeBytes
	}

	if stat.Zombie() {
		if !m.exited {
			m.exited = true
			m.tree.exited++
			p.unsettle(m.tree)
		}
		m.rss, m.swap = 0, 0
	} else {
		text, err = readProc(prefix+"/status", p.buffer[:0])
		if err != nil {
			return false
		}
		p.buffer = text
		parseStatus(text, m)
	}
	m.last = next
	return true
}

// parseIO reads /proc/PID/io (proc_pid_io(5)).
func parseIO(text []byte, into *usage) {
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte{':'})
		var counter *int64
		switch string(name) {
		case "rchar":
			counter = &into.readChars
		case "wchar":
			counter = &into.writeChars
		case "read_bytes":
			counter = &into.readBytes
		case "write_bytes":
			counter = &into.writeBytes
		default:
			continue
		}
		if number, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64); err == nil && number >= 0 {
			*counter = number
		}
	}
}

// parseStatus reads the memory and the ignored signals of /proc/PID/status (proc_pid_status(5)). VmRSS there is the sum over all
// CPUs since 6.16; before, it may lag by some pages per CPU or thread.
func parseStatus(text []byte, m *member) {
	m.rss, m.swap, m.highest = 0, 0, 0
	for line := range bytes.Lines(text) {
		name, value, _ := bytes.Cut(line, []byte{':'})
		var bytesOf *uint64
		switch string(name) {
		case "VmRSS":
			bytesOf = &m.rss
		case "VmSwap":
			bytesOf = &m.swap
		case "VmHWM":
			bytesOf = &m.highest
		case "SigIgn":
			mask, err := strconv.ParseUint(string(bytes.TrimSpace(value)), 16, 64)
			m.reapsNone = err == nil && mask&(1<<(uint(unix.SIGCHLD)-1)) != 0
			continue
		default:
			continue
		}
		kilobytes := bytes.TrimSuffix(bytes.TrimSpace(value), []byte(" kB"))
		if number, err := strconv.ParseUint(string(kilobytes), 10, 53); err == nil {
			*bytesOf = number * 1024
		}
	}
}
