package store

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/prov4ml/agent/record"
)

// housekeepingEvery is how often an idle writer looks for records that have grown too old.
const housekeepingEvery = time.Minute

// write is the writer: the goroutine that commits what nobody commits himself, and keeps the limits. It ends when the queue is
// closed and empty.
func (s *Store) write() {
	clock := time.NewTicker(housekeepingEvery)
	defer clock.Stop()
	for {
		select {
		case <-s.queue.ready:
		case <-clock.C:
		}
		if !s.turn.TryLock() {
			continue // who has it looks at the queue afterwards
		}
		open := s.commitQueue()
		s.enforceLimits()
		s.forget()
		s.endTurn()
		if !open {
			return
		}
	}
}

// lead lets a caller that waits commit the queue, its own entry in it, if nobody else is writing now. Handing the entry to the
// writer and waiting for the answer would take two switches between threads, as long as the commit itself.
func (s *Store) lead(e *entry) {
	if !s.turn.TryLock() {
		return
	}
	defer s.endTurn()
	select {
	case <-e.done:
	default:
		s.commitQueue()
	}
}

// endTurn gives up the right to write, and calls the writer for what has come meanwhile.
func (s *Store) endTurn() {
	due := s.isLookDue() || s.isForgettingDue()
	s.turn.Unlock()
	if due || s.queue.isWaiting() {
		s.queue.signal()
	}
}

// commitQueue commits a batch of what waits. open is false when the queue is closed and nothing is left.
func (s *Store) commitQueue() (open bool) {
	open = s.queue.take(&s.batch)
	for _, x := range s.batch.suspicions {
		x.err = s.replace(x.db, x.why)
		close(x.done)
	}
	s.commitBatch(&s.batch)
	return open
}

// commitBatch commits b and tells everyone who waits for it.
func (s *Store) commitBatch(b *batch) {
	if len(b.entries) == 0 && len(b.moves) == 0 {
		return
	}
	first, err := s.put(b)
	if damaged(err) && s.replace(s.db, err) == nil {
		first, err = s.put(b)
	}
	if err != nil {
		s.fail(b, err)
		return
	}
	s.mu.Lock()
	s.last += int64(len(b.entries))
	for i, e := range b.entries {
		s.recent.add(Stored{first + int64(i), e.record}, len(e.blob))
	}
	for _, m := range b.moves {
		s.cursors[m.key] = m.to
	}
	s.stats.Commits++
	s.wake()
	s.mu.Unlock()
	bytes := 0
	for i, e := range b.entries {
		e.seq = first + int64(i)
		bytes += len(e.blob) + len(e.state)
		e.blob, e.state = nil, nil
		close(e.done)
	}
	for _, m := range b.moves {
		close(m.done)
	}
	s.sinceLook += int64(bytes)
	s.sinceForget += len(b.entries)
	s.written(bytes)
}

// put writes a batch and returns the number of its first record.
func (s *Store) put(b *batch) (first int64, err error) {
	if s.broken {
		if err := s.reopen(); err != nil {
			return 0, err
		}
	}
	first = s.last + 1
	return first, s.transact(s.db, func() error { return s.db.put(b, first) })
}

// fail tells everyone in b that nothing was recorded.
func (s *Store) fail(b *batch, err error) {
	if full(err) {
		err = fmt.Errorf("%w: %w", ErrNoSpace, err)
	}
	s.mu.Lock()
	s.stats.Failed += uint64(len(b.entries))
	s.stats.LastError = err.Error()
	s.mu.Unlock()
	s.trouble(err)
	for _, e := range b.entries {
		e.err = err
		close(e.done)
	}
	for _, m := range b.moves {
		m.err = err
		close(m.done)
	}
}

// trouble logs an error of the file once, until a minute has passed without one.
func (s *Store) trouble(err error) {
	now := time.Now()
	if now.Sub(s.troubled) > time.Minute {
		s.config.Log.Error("cannot record", "file", s.config.Path, "error", err)
	}
	s.troubled = now
}

// transact runs f inside a transaction.
func (s *Store) transact(db *database, f func() error) error {
	s.transactions.Add(1)
	ctx := context.Background()
	if _, err := db.begin.ExecContext(ctx); err != nil {
		return fmt.Errorf("begin a transaction: %w", err)
	}
	err := f()
	if err == nil {
		if _, err = db.commit.ExecContext(ctx); err == nil {
			return nil
		}
		err = fmt.Errorf("commit: %w", err)
	}
	// SQLite may have rolled back already (a full disk does that); then this fails and means nothing.
	_, _ = db.rollback.ExecContext(ctx)
	return err
}

// put writes a batch; its first record gets the number first.
func (d *database) put(b *batch, first int64) error {
	ctx := context.Background()
	for i, e := range b.entries {
		if err := d.putRecord(first+int64(i), e.record, e.blob); err != nil {
			return err
		}
	}
	// Of each process the batch's last state counts, so walk back and keep the first that comes.
	clear(d.kept)
	for i := len(b.entries) - 1; i >= 0; i-- {
		e := b.entries[i]
		if e.state == nil {
			continue
		}
		if _, ok := d.kept[e.process]; ok {
			continue
		}
		d.kept[e.process] = struct{}{}
		if _, err := d.keep.ExecContext(ctx, e.process, first+int64(i), e.state); err != nil {
			return fmt.Errorf("write a process's state: %w", err)
		}
	}
	for _, m := range b.moves {
		if _, err := d.move.ExecContext(ctx, m.key.destination, m.key.signal, m.to.seq, m.to.state); err != nil {
			return fmt.Errorf("move a cursor: %w", err)
		}
	}
	return nil
}

// putRecord writes one record.
func (d *database) putRecord(seq int64, r *record.LogCall, blob []byte) error {
	var name, step any
	if r.Context != nil {
		name = *r.Context
	}
	if r.Step != nil {
		step = *r.Step
	}
	_, err := d.insert.ExecContext(context.Background(), seq, r.GetProcess().GetRunId(), functionName(r.Function), name, step,
		r.StartUnixNanos, r.EndUnixNanos, blob)
	if err != nil {
		return fmt.Errorf("write a record: %w", err)
	}
	return nil
}

// functionName is the function as the span is named: log_system_metrics.
func functionName(f record.Function) string {
	switch f {
	case record.Function_LOG_SYSTEM_METRICS:
		return "log_system_metrics"
	case record.Function_LOG_FLOPS_PER_BATCH:
		return "log_flops_per_batch"
	case record.Function_LOG_FLOPS_PER_EPOCH:
		return "log_flops_per_epoch"
	}
	return strings.ToLower(f.String())
}

// wake tells blocked readers that something has changed. s.mu is held.
func (s *Store) wake() {
	if s.news != nil {
		close(s.news)
		s.news = nil
	}
}

// changed returns a channel that is closed at the next change. s.mu is held.
func (s *Store) changed() <-chan struct{} {
	if s.news == nil {
		s.news = make(chan struct{})
	}
	return s.news
}
