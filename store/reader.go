package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

type cursorKey struct{ destination, signal string }

type cursor struct {
	seq   int64
	state []byte
}

// Reader hands one destination the records of one signal in order, each until the receiver has taken it. One goroutine uses
// it.
type Reader struct {
	store *Store
	key   cursorKey
}

// Reader returns the reader of a destination ("otlp", a file's path) and a signal ("traces", "metrics"). A destination that
// the file has not seen before starts at the oldest record. Calls with the same names return the same Reader.
func (s *Store) Reader(destination, signal string) (*Reader, error) {
	if destination == "" || signal == "" {
		return nil, errors.New("store: a reader needs the name of a destination and of a signal")
	}
	key := cursorKey{destination, signal}
	s.mu.Lock()
	defer s.mu.Unlock()
	r, ok := s.readers[key]
	if !ok {
		r = &Reader{store: s, key: key}
		s.readers[key] = r
	}
	return r, nil
}

// Next returns the records behind the cursor, at most maxRecords of them with at most maxBytes of stored size together, but
// one at least. It waits until there is one, and returns the context's error when that ends first, ErrClosed when the store
// is closed. Until Advance, the next call returns the same records and perhaps more.
func (r *Reader) Next(ctx context.Context, maxRecords, maxBytes int) ([]Stored, error) {
	if maxRecords <= 0 {
		return nil, fmt.Errorf("store: maxRecords is %d; it must be at least 1", maxRecords)
	}
	s := r.store
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		s.mu.Lock()
		after, last, news := s.cursors[r.key].seq, s.last, s.changed()
		closed := s.closed
		records := s.recent.after(after, maxRecords, maxBytes)
		s.mu.Unlock()
		if closed {
			return nil, ErrClosed
		}
		if len(records) > 0 {
			return records, nil
		}
		if after < last {
			// The file may hold more already: commits that nobody was told of yet.
			records, err := s.fetch(ctx, after, last, maxRecords, maxBytes)
			if err != nil || len(records) > 0 {
				return records, err
			}
		}
		select {
		case <-news:
		case <-ctx.Done():
		}
	}
}

// Behind returns how many records stand behind seq: 0 says that Next could not have returned more than up to it.
func (r *Reader) Behind(seq int64) int64 {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return r.store.last - max(seq, r.store.removed)
}

// Advance moves the cursor to seq, a number that Next has returned or the cursor's own, and keeps state beside it: for a
// file, its inode and length. It returns when the move is committed. After a power cut the cursor may stand up to a second
// behind, never before a record that is lost; a destination whose own data must not be behind the cursor syncs it first.
func (r *Reader) Advance(ctx context.Context, seq int64, state []byte) error {
	s := r.store
	s.mu.Lock()
	at, last := s.cursors[r.key].seq, s.last
	s.mu.Unlock()
	if seq < at || seq > last {
		return fmt.Errorf("store: cursor of %s %s cannot move from %d to %d: the last record is %d",
			r.key.destination, r.key.signal, at, seq, last)
	}
	m := &move{key: r.key, to: cursor{seq: seq, state: slices.Clone(state)}, done: make(chan struct{})}
	if err := s.queue.addMove(m); err != nil {
		return err
	}
	select {
	case <-m.done:
		return m.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Seq returns the number of the last record that the receiver has taken; 0 = none.
func (r *Reader) Seq() int64 { return r.at().seq }

// State returns what the last Advance kept; nil if it kept nothing.
func (r *Reader) State() []byte { return slices.Clone(r.at().state) }

func (r *Reader) at() cursor {
	r.store.mu.Lock()
	defer r.store.mu.Unlock()
	return r.store.cursors[r.key]
}

func readCursors(ctx context.Context, db *database) (_ map[cursorKey]cursor, err error) {
	rows, err := db.conn.QueryContext(ctx, sqlCursors)
	if err != nil {
		return nil, fmt.Errorf("read the cursors: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	cursors := map[cursorKey]cursor{}
	for rows.Next() {
		var k cursorKey
		var c cursor
		if err := rows.Scan(&k.destination, &k.signal, &c.seq, &c.state); err != nil {
			return nil, fmt.Errorf("read the cursors: %w", err)
		}
		cursors[k] = c
	}
	return cursors, rows.Err()
}
