package process

import (
	"bytes"
	"fmt"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/cilium/ebpf/ringbuf"
	"golang.org/x/sys/unix"

	"github.com/prov4ml/agent/bpf"
)

// Kill is a process that the kernel killed for want of memory, of the node or of a cgroup.
type Kill struct {
	// Tree is the innermost tree of the process.
	Tree TreeID
	// PID and Name (the first 15 bytes of it) of the process.
	PID  int
	Name string
	Time time.Time
	// What it held then, as the kernel's counters stood, which each CPU may be behind with (lib/percpu_counter.c). All 0 before kernel
	// 6.9, where the kill is told at its end.
	FileBytes, AnonBytes, SwapBytes, ShmemBytes uint64
}

// KillNotifier is a Probe that tells of kills.
type KillNotifier interface {
	// NotifyKills has receive called for each kill of a process of a tree from now on, from one goroutine, while the victim is still
	// exiting. A later call takes the place of an earlier one; receive must not call Close.
	NotifyKills(receive func(Kill)) error
}

// killReader passes on what the kernel tells.
type killReader struct {
	ring    *ringbuf.Reader
	receive func(Kill)
	wg      sync.WaitGroup
}

func (r *killReader) stop() {
	if r.ring == nil {
		return
	}
	_ = r.ring.Close() // wakes the reader
	r.wg.Wait()
}

func (r *killReader) run() {
	var raw ringbuf.Record
	page := uint64(os.Getpagesize())
	for {
		if err := r.ring.ReadInto(&raw); err != nil {
			return // it is closed, or cannot be polled, now or ever
		}
		if len(raw.RawSample) < int(unsafe.Sizeof(bpf.OomKill{})) {
			continue
		}
		var kill bpf.OomKill
		copy(unsafe.Slice((*byte)(unsafe.Pointer(&kill)), unsafe.Sizeof(kill)), raw.RawSample)
		name := unsafe.Slice((*byte)(unsafe.Pointer(&kill.Name[0])), len(kill.Name))
		name, _, _ = bytes.Cut(name, []byte{0})
		r.receive(Kill{
			Tree: TreeID(kill.Tree), PID: int(kill.Tgid), Name: string(name), Time: wallTime(kill.Nanos),
			FileBytes: kill.Pages[0] * page, AnonBytes: kill.Pages[1] * page, SwapBytes: kill.Pages[2] * page, ShmemBytes: kill.Pages[3] * page,
		})
	}
}

// wallTime is the wall clock at a moment of CLOCK_MONOTONIC.
func wallTime(nanos uint64) time.Time {
	now := time.Now()
	var monotonic unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &monotonic); err != nil {
		return now
	}
	return now.Add(time.Duration(int64(nanos) - monotonic.Nano()))
}

// NotifyKills implements KillNotifier.
func (k *kernel) NotifyKills(receive func(Kill)) error {
	if reason := k.reasons[groupKills]; reason != "" {
		return fmt.Errorf("tell of kills: %s: %w", reason, ErrUnsupported)
	}
	ring, err := ringbuf.NewReader(k.maps[bpf.OomMapKills])
	if err != nil {
		return fmt.Errorf("read the ring of kills: %w", err)
	}
	k.kills.stop()
	k.kills.ring, k.kills.receive = ring, receive
	k.kills.wg.Go(k.kills.run)
	return nil
}

// NotifyKills implements KillNotifier.
func (c *composed) NotifyKills(receive func(Kill)) error { return c.kernel.NotifyKills(receive) }
