package process

import (
	"time"

	"github.com/cilium/ebpf"
)

// The kernel runs no program on a CPU on which it is in the middle of that program already. Up to 6.19 that happens only in an
// interrupt; from 7.0 on a program can be preempted, and the events of all tasks that run there meanwhile pass it by. The kernel counts
// them (bpf_prog_info.recursion_misses).
const missedEvery = 100 * time.Millisecond

// missed reads these counts, not more often than missedEvery, since it takes a system call for each program.
type missed struct {
	programs []*ebpf.Program
	// opened are those of programs that an agent before this one attached.
	opened []*ebpf.Program
	next   time.Time
	sum    uint64
}

func (m *missed) watch(l *loaded) {
	for name, attached := range l.links {
		program := l.programs[name]
		if program == nil {
			info, err := attached.Info()
			if err != nil {
				continue
			}
			if program, err = ebpf.NewProgramFromID(info.Program); err != nil {
				continue // without CAP_SYS_ADMIN; what it misses is not told
			}
			m.opened = append(m.opened, program)
		}
		m.programs = append(m.programs, program)
	}
}

func (m *missed) read() uint64 {
	now := time.Now()
	if now.Before(m.next) {
		return m.sum
	}
	m.next = now.Add(missedEvery)
	m.sum = 0
	for _, program := range m.programs {
		if stats, err := program.Stats(); err == nil {
			m.sum += stats.RecursionMisses
		}
	}
	return m.sum
}

func (m *missed) close() {
	for _, program := range m.opened {
		_ = program.Close()
	}
}
