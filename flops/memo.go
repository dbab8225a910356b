package flops

import (
	"container/list"
	"sync"
)

// Memo keeps the totals of input signatures, so that a later call sends a few bytes instead of an operator list. It is
// bounded: the signature that was not asked for longest goes first, and its client sends the list again. Safe for
// use by several goroutines. Totals that went in are shared and must not be changed.
type Memo struct {
	limitBytes int64

	mu    sync.Mutex
	bytes int64
	// Most recently used first; of *memoEntry.
	order   *list.List
	entries map[memoKey]*list.Element
	// Signatures given up for lack of room.
	evicted uint64
}

type memoKey struct{ process, signature string }

type memoEntry struct {
	key    memoKey
	totals *Totals
	bytes  int64
}

// DefaultMemoBytes holds some 500 signatures of a large model with module paths: the latest, whichever process they are of. What is
// gone is asked for again.
const DefaultMemoBytes = 16 << 20

// NewMemo returns a memo of about limitBytes; 0 = DefaultMemoBytes.
func NewMemo(limitBytes int64) *Memo {
	if limitBytes <= 0 {
		limitBytes = DefaultMemoBytes
	}
	return &Memo{limitBytes: limitBytes, order: list.New(), entries: map[memoKey]*list.Element{}}
}

// Get returns the totals of a process's signature; false = never put, or given up.
func (m *Memo) Get(process, signature string) (*Totals, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e, ok := m.entries[memoKey{process, signature}]
	if !ok {
		return nil, false
	}
	m.order.MoveToFront(e)
	return e.Value.(*memoEntry).totals, true
}

// Put keeps totals under a process and signature, in place of older ones. Totals larger than the whole memo are not
// kept.
func (m *Memo) Put(process, signature string, t *Totals) {
	entry := &memoEntry{key: memoKey{process, signature}, totals: t}
	entry.bytes = t.footprint() + int64(len(process)+len(signature))
	m.mu.Lock()
	defer m.mu.Unlock()
	if old, ok := m.entries[entry.key]; ok {
		m.remove(old)
	}
	if entry.bytes > m.limitBytes {
		m.evicted++
		return
	}
	m.entries[entry.key] = m.order.PushFront(entry)
	m.bytes += entry.bytes
	for m.bytes > m.limitBytes {
		m.remove(m.order.Back())
		m.evicted++
	}
}

// MemoStats are the memo's size and how often it was too small.
type MemoStats struct {
	Signatures int
	Bytes      int64
	Evicted    uint64
}

// Stats returns the memo's present size.
func (m *Memo) Stats() MemoStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	return MemoStats{Signatures: len(m.entries), Bytes: m.bytes, Evicted: m.evicted}
}

// remove is called with the lock held.
func (m *Memo) remove(e *list.Element) {
	entry := e.Value.(*memoEntry)
	m.order.Remove(e)
	delete(m.entries, entry.key)
	m.bytes -= entry.bytes
}

// footprint is the memory that totals take, about: a group is its 20 counts and its name.
func (t *Totals) footprint() int64 {
	const fixed, perGroup, perUnknown = 1024, 400, 80
	n := int64(fixed + len(t.Method) + len(t.MissingReason))
	for _, groups := range [...][]Group{t.Operators, t.Modules, t.DTypes} {
		for i := range groups {
			n += perGroup + int64(len(groups[i].Name))
		}
	}
	for _, u := range t.Coverage.Unknown {
		n += perUnknown + int64(len(u.Name)+len(u.Reason))
	}
	for _, note := range t.Notes {
		n += int64(len(note))
	}
	return n
}
