package cgroup

import (
	"sync"
	"time"
)

// maxKept bounds what is kept of cgroups: more than a node has jobs.
const maxKept = 1024

// lately keeps what was read lately, for all who ask. Its methods may be called from any goroutine.
type lately[K comparable, V any] struct {
	mu   sync.Mutex
	kept map[K]aged[V]
}

type aged[V any] struct {
	value V
	taken time.Time
}

// get returns what was put for key, if that is younger than age.
func (l *lately[K, V]) get(key K, now time.Time, age time.Duration) (value V, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	known, ok := l.kept[key]
	return known.value, ok && now.Sub(known.taken) < age
}

func (l *lately[K, V]) put(key K, value V, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.kept == nil || len(l.kept) >= maxKept {
		l.kept = map[K]aged[V]{}
	}
	l.kept[key] = aged[V]{value, now}
}

func (l *lately[K, V]) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.kept = nil
}
