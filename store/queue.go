package store

import (
	"context"
	"sync"

	"github.com/prov4ml/agent/record"
)

// entry is one record on its way into the file.
type entry struct {
	record  *record.LogCall
	blob    []byte
	process string
	state   []byte

	// Set before done is closed.
	seq  int64
	err  error
	done chan struct{}
}

// wait is what Append returns.
func (s *Store) wait(ctx context.Context, e *entry) (int64, error) {
	select {
	case <-e.done:
		return e.seq, e.err
	default:
	}
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	s.lead(e)
	select {
	case <-e.done:
		return e.seq, e.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// bytes is what the entry costs while it waits; the constant stands for what hangs on it.
func (e *entry) bytes() int { return len(e.blob) + len(e.state) + 256 }

// move is one step of a cursor on its way into the file.
type move struct {
	key cursorKey
	to  cursor

	// Set before done is closed.
	err  error
	done chan struct{}
}

// suspicion is a reader's word that the file is damaged.
type suspicion struct {
	db   *database
	why  error
	err  error
	done chan struct{}
}

// batch is what one commit takes.
type batch struct {
	entries    []*entry
	moves      []*move
	suspicions []*suspicion
}

func (b *batch) empty() bool {
	return len(b.entries) == 0 && len(b.moves) == 0 && len(b.suspicions) == 0
}

// batchRecords bounds a commit, so that the first of many waiting calls need not wait for the last.
const batchRecords = 1024

// queue holds what is not committed yet. Only the holder of Store.turn takes.
type queue struct {
	maxBytes int
	// ready holds a token when something may be waiting, or when the queue is closed.
	ready chan struct{}

	mu     sync.Mutex
	batch  batch
	bytes  int
	closed bool
}

func (q *queue) init(maxBytes int) {
	q.maxBytes = maxBytes
	q.ready = make(chan struct{}, 1)
}

func (q *queue) add(e *entry) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	if q.bytes+e.bytes() > q.maxBytes && len(q.batch.entries) > 0 {
		return ErrQueueFull
	}
	q.bytes += e.bytes()
	q.batch.entries = append(q.batch.entries, e)
	q.signal()
	return nil
}

func (q *queue) addMove(m *move) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return ErrClosed
	}
	q.batch.moves = append(q.batch.moves, m)
	q.signal()
	return nil
}

// reportDamage asks the writer to replace the file, and waits for that.
func (q *queue) reportDamage(db *database, why error) error {
	s := &suspicion{db: db, why: why, done: make(chan struct{})}
	q.mu.Lock()
	if q.closed {
		q.mu.Unlock()
		return ErrClosed
	}
	q.batch.suspicions = append(q.batch.suspicions, s)
	q.signal()
	q.mu.Unlock()
	<-s.done
	return s.err
}

func (q *queue) signal() {
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

// take moves what waits into b, whose slices it reuses. open is false when the queue is closed and nothing is left.
func (q *queue) take(b *batch) (open bool) {
	clear(b.entries)
	clear(b.moves)
	clear(b.suspicions)
	b.entries, b.moves, b.suspicions = b.entries[:0], b.moves[:0], b.suspicions[:0]
	q.mu.Lock()
	defer q.mu.Unlock()
	b.moves, q.batch.moves = q.batch.moves, b.moves
	b.suspicions, q.batch.suspicions = q.batch.suspicions, b.suspicions
	if len(q.batch.entries) <= batchRecords {
		b.entries, q.batch.entries = q.batch.entries, b.entries
	} else {
		b.entries = append(b.entries, q.batch.entries[:batchRecords]...)
		rest := copy(q.batch.entries, q.batch.entries[batchRecords:])
		clear(q.batch.entries[rest:])
		q.batch.entries = q.batch.entries[:rest]
	}
	for _, e := range b.entries {
		q.bytes -= e.bytes()
	}
	return !q.closed || !b.empty()
}

// close refuses what comes from now on; it is false when the queue was closed already.
func (q *queue) close() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.closed {
		return false
	}
	q.closed = true
	q.signal()
	return true
}

// isWaiting says whether the writer has something to do: commit, or end.
func (q *queue) isWaiting() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return !q.batch.empty() || q.closed
}

// waiting says how much waits.
func (q *queue) waiting() (records, bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.batch.entries), q.bytes
}
