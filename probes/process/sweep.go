package process

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cilium/ebpf/link"

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
	if k.programs[bpf.DirtyProgSweepInodes] == nil || k.programs[bpf.DirtyProgSweepPages] == nil {
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
			left, err := k.sweep()
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

// sweep removes what nothing will ask for again and says what is left.
func (k *kernel) sweep() (bpf.DirtySwept, error) {
	var left bpf.DirtySwept
	if err := k.maps[bpf.DirtyMapSweeps].Put(uint32(0), &left); err != nil {
		return left, fmt.Errorf("clear sweep's answer: %w", err)
	}
	for _, walk := range [...]struct{ program, over string }{
		{bpf.DirtyProgSweepInodes, bpf.DirtyMapInodes}, {bpf.DirtyProgSweepPages, bpf.DirtyMapPages},
	} {
		iterator, err := link.AttachIter(link.IterOptions{Program: k.programs[walk.program], Map: k.maps[walk.over]})
		if err != nil {
			return left, fmt.Errorf("attach sweep: %w", err)
		}
		if err := errors.Join(readIterator(iterator), iterator.Close()); err != nil {
			return left, err
		}
	}
	if err := k.maps[bpf.DirtyMapSweeps].Lookup(uint32(0), &left); err != nil {
		return left, fmt.Errorf("read sweep's answer: %w", err)
	}
	return left, nil
}
