package process

import (
	"sync"
	"time"

	"github.com/prov4ml/agent/bpf"
)

// kernelPeak follows the RSS of a set of trees.
type kernelPeak struct {
	kernel *kernel
	ids    []TreeID
	pages  uint64
}

type kernelSampler struct {
	wg   sync.WaitGroup
	done chan struct{}
}

func (s *kernelSampler) start(*kernel) { s.done = make(chan struct{}) }
func (s *kernelSampler) stop()         { close(s.done); s.wg.Wait() }

// NewPeak implements Probe.
func (k *kernel) NewPeak(ids []TreeID) Peak {
	return &kernelPeak{kernel: k, ids: append([]TreeID(nil), ids...)}
}

func (p *kernelPeak) SetTrees(ids []TreeID) {
	p.kernel.mu.Lock()
	defer p.kernel.mu.Unlock()
	p.ids = append(p.ids[:0], ids...)
}

func (p *kernelPeak) Close() {}

func (k *kernel) readPeak(p *kernelPeak, dst *PeakReading) error {
	_ = time.Now
	_ = bpf.LiveLive{}
	return nil
}
