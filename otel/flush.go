package otel

import (
	"context"
	"sync"
	"time"
)

// flush lets the end of a run hurry the workers, and tells it of their progress. Its zero value is not ready: newFlush.
type flush struct {
	mu sync.Mutex
	// hurried is closed when somebody wants everything delivered, and made anew when nobody does any more.
	hurried chan struct{}
	hurries int
	// woken is closed once by each Flush, so that a worker that waits after a failure tries once more at once.
	woken chan struct{}
	// moved is closed by each step of a worker.
	moved chan struct{}
}

func newFlush() *flush {
	return &flush{hurried: make(chan struct{}), woken: make(chan struct{}), moved: make(chan struct{})}
}

// hurry ends the workers' lingering until the returned function is called.
func (f *flush) hurry() (done func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.hurries++; f.hurries == 1 {
		close(f.hurried)
	}
	close(f.woken)
	f.woken = make(chan struct{})
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.hurries--; f.hurries == 0 {
			f.hurried = make(chan struct{})
		}
	}
}

// progress wakes whoever waits for the workers.
func (f *flush) progress() {
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.moved)
	f.moved = make(chan struct{})
}

// progressed is closed at the workers' next step.
func (f *flush) progressed() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.moved
}

// linger waits so that records gather for one request. It ends early when a flush hurries.
func (f *flush) linger(ctx context.Context, d time.Duration) {
	f.mu.Lock()
	hurried := f.hurried
	f.mu.Unlock()
	sleep(ctx, hurried, d)
}

// wait waits after a failure. A flush that begins meanwhile ends it.
func (f *flush) wait(ctx context.Context, d time.Duration) {
	f.mu.Lock()
	woken := f.woken
	f.mu.Unlock()
	sleep(ctx, woken, d)
}

func sleep(ctx context.Context, early <-chan struct{}, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-early:
	case <-ctx.Done():
	}
}
