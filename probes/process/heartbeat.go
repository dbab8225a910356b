package process

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
)

// heart tells pinned programs that their agent is alive.
type heart struct {
	memory []byte
	beat   *uint64
	done   chan struct{}
	wg     sync.WaitGroup
}

// start writes the first beat before it returns.
func (h *heart) start(beats *ebpf.Map) error {
	var err error
	h.memory, err = unix.Mmap(beats.FD(), 0, os.Getpagesize(), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("map the heartbeat into memory: %w", err)
	}
	h.beat = &(*bpf.LineageHeartbeat)(unsafe.Pointer(&h.memory[0])).BeatNanos
	atomic.StoreUint64(h.beat, monotonicNanos())
	h.done = make(chan struct{})
	h.wg.Go(func() {
		clock := time.NewTicker(beatEvery)
		defer clock.Stop()
		for {
			select {
			case <-h.done:
				return
			case <-clock.C:
				atomic.StoreUint64(h.beat, monotonicNanos())
			}
		}
	})
	return nil
}

// stop writes a last beat: the programs go on from here alone.
func (h *heart) stop() error {
	if h.beat == nil {
		return nil
	}
	close(h.done)
	h.wg.Wait()
	atomic.StoreUint64(h.beat, monotonicNanos())
	h.beat = nil
	if err := unix.Munmap(h.memory); err != nil {
		return fmt.Errorf("unmap the heartbeat: %w", err)
	}
	return nil
}
