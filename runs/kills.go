package runs

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/probes/cgroup"
	"github.com/prov4ml/agent/probes/process"
	"github.com/prov4ml/agent/record"
)

// killed puts a kill for want of memory on the next record of every process in whose tree the victim was, and makes it the reason of
// the end of their runs. It reads the victim's cgroup first, since what filled it goes away with the victim.
func (t *Tracker) killed(kill process.Kill) {
	// The kernel numbers the victim in the first pid namespace. In another one that number is nobody's, or a stranger's.
	stat, err := process.ReadStat(t.config.ProcRoot, kill.PID)
	known := err == nil && stat.Comm == kill.Name
	// Any bytes make a name, and 15 of them may end within a letter; a record's texts are UTF-8.
	kill.Name = strings.ToValidUTF8(kill.Name, "\uFFFD")
	event := &record.Event{Name: record.EventOOMKill, TimeUnixNanos: kill.Time.UnixNano(), Attributes: victim(&kill)}
	var memory cgroup.Memory
	filled := ""
	if known {
		memory = t.cgroup.Read(kill.PID, nil)
		if memory.State == record.State_OK {
			var parts []*record.Reading
			parts, filled = filling(&memory)
			event.Attributes = append(event.Attributes, parts...)
		}
		if used, size, ok := sharedMemory(t.config.ProcRoot, kill.PID); ok {
			event.Attributes = append(event.Attributes, amount(record.OOMDevShmUsedBytes, used), amount(record.OOMDevShmSizeBytes, size))
		}
	}
	failure := fmt.Sprintf("the kernel killed process %d (%s) for want of memory", kill.PID, kill.Name)
	if filled != "" && memory.LimitBytes.State == record.State_OK {
		failure += fmt.Sprintf("; cgroup %s has a limit of %d bytes and was filled by %s", memory.Path, memory.LimitBytes.Amount, filled)
	}

	t.forest.mu.RLock()
	var around []*tree
	for at := t.forest.byID[kill.Tree]; at != nil; at = at.parent {
		around = append(around, at)
	}
	t.forest.mu.RUnlock()
	for _, at := range around {
		t.mu.RLock()
		s := t.subjects[at.root.PID]
		t.mu.RUnlock()
		if s == nil || s.tree != at {
			continue
		}
		s.mu.Lock()
		if len(s.events) < maxKills {
			s.events = append(s.events, event)
		}
		s.failure = failure
		s.mu.Unlock()
	}
}

// maxKills is how many kills one record tells of: a span holds 128 events.
const maxKills = 16

func victim(kill *process.Kill) []*record.Reading {
	readings := []*record.Reading{
		amount(record.OOMPID, uint64(kill.PID)),
		{Name: record.OOMProcessName, Value: &record.Reading_Text{Text: kill.Name}, State: record.State_OK, Source: record.Source_EBPF},
	}
	if kill.AnonBytes+kill.FileBytes+kill.SwapBytes+kill.ShmemBytes > 0 {
		readings = append(readings, amount(record.OOMProcessAnonBytes, kill.AnonBytes), amount(record.OOMProcessFileBytes, kill.FileBytes),
			amount(record.OOMProcessShmemBytes, kill.ShmemBytes), amount(record.OOMProcessSwapBytes, kill.SwapBytes))
	}
	return readings
}

// filling says what the cgroup was filled with: the values, and the name of the largest.
func filling(m *cgroup.Memory) (readings []*record.Reading, largest string) {
	readings = append(readings, &record.Reading{Name: record.OOMCgroupPath, Value: &record.Reading_Text{Text: m.Path}, State: record.State_OK, Source: record.Source_CGROUP})
	for _, whole := range [...]struct {
		name  string
		value cgroup.Value
	}{{record.OOMCgroupUsageBytes, m.UsageBytes}, {record.OOMCgroupLimitBytes, m.LimitBytes}} {
		if whole.value.State == record.State_OK {
			readings = append(readings, amount(whole.name, whole.value.Amount))
		}
	}
	var most uint64
	for _, part := range [...]struct {
		name, word string
		value      cgroup.Value
	}{
		{record.OOMCgroupAnonBytes, "anonymous memory", m.AnonBytes},
		{record.OOMCgroupFileBytes, "page cache", m.FileBytes},
		{record.OOMCgroupShmemBytes, "shared memory", m.ShmemBytes},
		{record.OOMCgroupKernelBytes, "kernel memory", m.KernelBytes},
	} {
		if part.value.State != record.State_OK {
			continue
		}
		readings = append(readings, amount(part.name, part.value.Amount))
		if part.value.Amount > most {
			most, largest = part.value.Amount, part.word
		}
	}
	if largest != "" {
		readings = append(readings, &record.Reading{Name: record.OOMFilledBy, Value: &record.Reading_Text{Text: largest}, State: record.State_OK, Source: record.Source_CGROUP})
	}
	return readings, largest
}

func amount(name string, n uint64) *record.Reading {
	return &record.Reading{Name: name, Value: &record.Reading_Integer{Integer: int64(n)}, State: record.State_OK, Source: record.Source_EBPF}
}

// sharedMemory is how full /dev/shm is as the process sees it; ok is false where it has none.
func sharedMemory(procRoot string, pid int) (used, size uint64, ok bool) {
	var stat unix.Statfs_t
	if err := unix.Statfs(procRoot+"/"+strconv.Itoa(pid)+"/root/dev/shm", &stat); err != nil || stat.Type != unix.TMPFS_MAGIC {
		return 0, 0, false
	}
	return (stat.Blocks - stat.Bfree) * uint64(stat.Bsize), stat.Blocks * uint64(stat.Bsize), true
}
