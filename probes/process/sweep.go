package process

import (
	"sync"
	"time"
	"unsafe"

	"github.com/prov4ml/agent/bpf"
)

// The maps of dirty inodes and pages have no event that says an entry is done with (a truncated page, an inode that goes away),
// so they are swept: often while they are filling up.
const (
	sweepEvery     = 10 * time.Second
	sweepEveryFull = time.Second
	// sweepFull is the part of a map that calls for sweeping often.
	sweepFull = 8
)

type sweeper struct {
	done chan struct{}
	wg   sync.WaitGroup
}

func (s *sweeper) start(k *kernel) {
	s.done = make(chan struct{})
	program := k.programs[bpf.DirtyProgSweep]
	if program == nil {
		return
	}
	inodes, pages := k.maps[bpf.DirtyMapInodes].MaxEntries(), k.maps[bpf.DirtyMapPages].MaxEntries()
	s.wg.Go(func() {
		timer := time.NewTimer(sweepEvery)
		defer timer.Stop()
		for {
			select {
			case <-s.done:
				return
			case <-timer.C:
			}
			next := sweepEvery
			left, err := sweep(program.FD())
			if err == nil && (left.InodesLeft > inodes/sweepFull || left.PagesLeft > pages/sweepFull) {
				next = sweepEveryFull
			}
			timer.Reset(next)
		}
	})
}

func (s *sweeper) stop() {
	close(s.done)
	s.wg.Wait()
}

// sweep removes what nothing will ask for again.
func sweep(program int) (bpf.DirtySwept, error) {
	var left bpf.DirtySwept
	_, err := runProgram(program, unsafe.Pointer(&left), unsafe.Sizeof(left))
	return left, err
}
