package main

import (
	"os"
	"runtime"
	"sync"
)

// burstProcessors bounds the processors of a burst. Go's own choice, one for each CPU, would have the agent wake up threads all over a
// node, each with a cache of memory of its own.
const burstProcessors = 4

// processors is how much of the agent runs at the same time: one goroutine, and some while a burst of records is exported.
//
// A log call is a chain of short steps. With a second processor Go's scheduler wakes a thread to look for work at most of them
// (proc.go: wakep), which costs as much as the steps and takes caches from the training. With one, a call would wait
// for an export of many records: the scheduler looks at sockets only when a goroutine pauses, or after 10 ms.
type processors struct {
	many int

	mu     sync.Mutex
	bursts int
}

// limitProcessors begins with one, unless the user has chosen a number.
func limitProcessors() *processors {
	if os.Getenv("GOMAXPROCS") != "" {
		return &processors{}
	}
	return &processors{many: min(runtime.GOMAXPROCS(1), burstProcessors)}
}

// burst lets more run at the same time until the function that it returns is called.
func (p *processors) burst() (over func()) {
	p.change(1)
	return func() { p.change(-1) }
}

func (p *processors) change(by int) {
	if p.many <= 1 {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.bursts += by
	switch {
	case by > 0 && p.bursts == 1:
		runtime.GOMAXPROCS(p.many)
	case p.bursts == 0:
		runtime.GOMAXPROCS(1)
	}
}
