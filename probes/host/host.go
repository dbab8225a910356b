// Package host measures the whole machine, whatever the process trees on it do: memory in use, CPU time, fullness of file
// systems.
//
// Memory and CPU come from /proc/meminfo and /proc/stat. Both files cost more the larger the machine is (the kernel sums every
// CPU and every interrupt for one read of /proc/stat), so all callers share one reading that is at most Config.MaxAge old. The
// training waits for it in most calls, so the three lines are read from open files: 34 µs with cold caches, where gopsutil, which
// reads all of them, takes 151 µs. gopsutil answers for whatever is not found that way.
// With the default of 10 ms nothing is lost for CPU time, which the kernel counts in ticks of 10 ms; memory is at most that much
// behind. A file system is asked at each call.
//
// What it cannot see: limits of the container that the caller lives in. A host with free memory says so even where a cgroup is full.
package host

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/shirou/gopsutil/v3/common"
	"github.com/shirou/gopsutil/v3/cpu"
	"github.com/shirou/gopsutil/v3/mem"

	"github.com/prov4ml/agent/probes"
	"github.com/prov4ml/agent/record"
)

// Config says where to read. The zero value is that of a live machine.
type Config struct {
	// ProcRoot is where procfs is mounted; default /proc.
	ProcRoot string
	// Paths are further places whose file systems are measured, as the caller sees them: "/data" is /proc/PID/root/data.
	// Default none: the caller's root file system only.
	Paths []string
	// MaxAge is how old the shared reading of memory and CPU time may be; default 10 ms, negative reads at each call.
	MaxAge time.Duration
}

// Value is a percentage 0..100 and how well it is known.
type Value struct {
	// Percent is meaningless unless State is OK.
	Percent float64
	State   record.State
	// Reason says why State is not OK.
	Reason string
}

// CPUTimes is a point on the machine's CPU clock. Its only use is to be handed back to CPU later.
type CPUTimes struct {
	// Ticks as seconds since boot, summed over CPUs.
	busy, total float64
	known       bool
}

// Seconds gives the point for keeping; At makes it again, until the next boot.
func (t CPUTimes) Seconds() (busy, total float64, known bool) { return t.busy, t.total, t.known }

// At is the inverse of CPUTimes.Seconds.
func At(busy, total float64, known bool) CPUTimes {
	return CPUTimes{busy: busy, total: total, known: known}
}

// Probe measures the machine. Its methods may be called from any goroutine.
type Probe struct {
	config Config
	gather context.Context
	now    func() time.Time

	mu      sync.Mutex
	meminfo procFile
	stat    procFile
	taken   time.Time
	memory  Value
	times   CPUTimes
	reason  string
}

// New makes a probe. It reads nothing yet.
func New(config Config) *Probe {
	if config.ProcRoot == "" {
		config.ProcRoot = "/proc"
	}
	if config.MaxAge == 0 {
		config.MaxAge = 10 * time.Millisecond
	}
	return &Probe{
		config:  config,
		meminfo: procFile{path: config.ProcRoot + "/meminfo"},
		stat:    procFile{path: config.ProcRoot + "/stat"},
		gather:  context.WithValue(context.Background(), common.EnvKey, common.EnvMap{common.HostProcEnvKey: config.ProcRoot}),
		now:     time.Now,
	}
}

// Memory returns the share of the machine's memory that no process could get: 100 * (total - available) / total. The kernel's
// "available" counts reclaimable cache as free, which "used" of free(1) does not always.
func (p *Probe) Memory() Value {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.refresh()
	return p.memory
}

// CPU returns the share of all CPUs' time since prev that was not idle, and the point to hand in next time. Waiting for a disk
// counts as idle. Without a previous point, and within one tick of it, the share is absent.
func (p *Probe) CPU(prev CPUTimes) (Value, CPUTimes) {
	p.mu.Lock()
	p.refresh()
	times, reason := p.times, p.reason
	p.mu.Unlock()
	switch {
	case !times.known:
		return Value{State: record.State_UNSUPPORTED, Reason: reason}, times
	case !prev.known:
		return Value{State: record.State_ABSENT, Reason: "host CPU: no earlier reading"}, times
	case times.total <= prev.total:
		return Value{State: record.State_ABSENT, Reason: "host CPU: the window is shorter than the kernel's clock tick"}, prev
	}
	// idle and iowait may step back on some kernels (nohz accounting), so the quotient is held in its range.
	percent := 100 * (times.busy - prev.busy) / (times.total - prev.total)
	return Value{Percent: min(max(percent, 0), 100), State: record.State_OK}, times
}

// Paths returns the further paths of the configuration.
func (p *Probe) Paths() []string { return p.config.Paths }

// Status says whether the machine can be read.
func (p *Probe) Status() []probes.Status {
	memory := p.Memory()
	times, _ := p.CPU(CPUTimes{})
	status := []probes.Status{
		{Name: "host memory (/proc/meminfo)", OK: memory.State == record.State_OK, Source: record.Source_HOST, Reason: memory.Reason},
		{Name: "host CPU (/proc/stat)", OK: times.State != record.State_UNSUPPORTED, Source: record.Source_HOST},
	}
	for i := range status {
		if !status[i].OK {
			status[i].Cure = "mount procfs at " + p.config.ProcRoot
		}
	}
	if !status[1].OK {
		status[1].Reason = times.Reason
	}
	return status
}

// refresh reads memory and CPU time anew when the shared reading is too old. The caller holds mu.
func (p *Probe) refresh() {
	now := p.now()
	if age := now.Sub(p.taken); !p.taken.IsZero() && age >= 0 && age < p.config.MaxAge {
		return
	}
	p.memory = p.readMemory()
	p.times, p.reason = p.readTimes()
	p.taken = now
}

var errEmpty = errors.New("no such line")

func (p *Probe) readMemory() Value {
	if head, err := p.meminfo.read(); err == nil {
		if total, available, err := parseMemory(head); err == nil {
			return memoryInUse(total, available)
		}
	}
	stat, err := mem.VirtualMemoryWithContext(p.gather)
	// gopsutil swallows the error of opening the file and leaves zeros.
	if err == nil && stat.Total == 0 {
		err = errEmpty
	}
	if err != nil {
		return Value{State: record.State_UNSUPPORTED, Reason: fmt.Sprintf("read memory from %s/meminfo: %v", p.config.ProcRoot, err)}
	}
	return memoryInUse(stat.Total, stat.Available)
}

func memoryInUse(total, available uint64) Value {
	available = min(available, total)
	return Value{Percent: 100 * float64(total-available) / float64(total), State: record.State_OK}
}

func (p *Probe) readTimes() (CPUTimes, string) {
	if head, err := p.stat.read(); err == nil {
		if times, err := parseTimes(head); err == nil {
			return times, ""
		}
	}
	stats, err := cpu.TimesWithContext(p.gather, false)
	if err == nil && len(stats) == 0 {
		err = errEmpty
	}
	if err != nil {
		return CPUTimes{}, fmt.Sprintf("read CPU times from %s/stat: %v", p.config.ProcRoot, err)
	}
	// guest and guest_nice are inside user and nice already.
	t := stats[0]
	busy := t.User + t.Nice + t.System + t.Irq + t.Softirq + t.Steal
	return CPUTimes{busy: busy, total: busy + t.Idle + t.Iowait, known: true}, ""
}
