package store

import (
	"context"
	"database/sql"
	"fmt"
	"time"
)

const (
	// removeRecords bounds one removal, so that the calls which come meanwhile wait a few milliseconds at most. It is no less
	// than a commit adds: removing keeps up with any load.
	removeRecords = batchRecords
	// lookBytes is how much may be written between two looks at the file's size.
	lookBytes = 256 << 10
	// keptProcesses bounds how many processes are remembered: those that logged last. Half a million bytes to a few dozen
	// megabytes, far more processes than log on a node between two starts of the agent.
	keptProcesses = 1 << 16
)

// enforceLimits removes the oldest records while they are too many or too old. All destinations read in order, so the oldest
// are also those that were delivered first: one rule serves both. One call removes a bounded number and asks to be called
// again if there is more to do.
func (s *Store) enforceLimits() {
	now := s.config.Now()
	over := s.isLookDue()
	old := s.config.MaxAge > 0 && now.Sub(s.looked) >= housekeepingEvery
	if !over && !old {
		return
	}
	through, err := s.excess(now, over, old)
	if err == nil && through > s.removed {
		if err = s.remove(through); err == nil {
			s.queue.signal()
			return
		}
	}
	if err != nil {
		s.trouble(err)
	}
	if over {
		s.sinceLook = 0
	}
	if old {
		s.looked = now
	}
}

// isLookDue says whether enough has been written to look at the size again.
func (s *Store) isLookDue() bool { return s.sinceLook >= min(lookBytes, s.config.MaxBytes/16) }

// excess returns the last of the records that must go now; 0 = none.
func (s *Store) excess(now time.Time, over, old bool) (through int64, err error) {
	ctx := context.Background()
	if over {
		var used int64
		if err := s.db.used.QueryRowContext(ctx).Scan(&used); err != nil {
			return 0, fmt.Errorf("read the size of the records: %w", err)
		}
		if used > s.config.MaxBytes {
			// The last record stays, however small the limit.
			through = min(s.removed+removeRecords, s.last-1)
		}
	}
	if old {
		var aged sql.NullInt64
		if err := s.db.aged.QueryRowContext(ctx, removeRecords, now.Add(-s.config.MaxAge).UnixNano()).Scan(&aged); err != nil {
			return 0, fmt.Errorf("look for old records: %w", err)
		}
		through = max(through, aged.Int64)
	}
	return through, nil
}

// remove removes all records up to through and counts them.
func (s *Store) remove(through int64) error {
	s.mu.Lock()
	taken := s.takenByAll()
	n := through - s.removed
	undelivered := min(n, max(0, through-taken))
	delivered := s.stats.RemovedDelivered + n - undelivered
	undelivered += s.stats.RemovedUndelivered
	s.mu.Unlock()
	ctx := context.Background()
	db := s.db
	err := s.transact(db, func() error {
		if _, err := db.remove.ExecContext(ctx, through); err != nil {
			return fmt.Errorf("remove old records: %w", err)
		}
		for name, value := range map[string]int64{
			counterRemoved:     through,
			counterDelivered:   delivered,
			counterUndelivered: undelivered,
		} {
			if _, err := db.count.ExecContext(ctx, name, value); err != nil {
				return fmt.Errorf("count removed records: %w", err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.stats.RemovedUndelivered == 0 && undelivered > 0 {
		s.config.Log.Warn("the record store is full: records that no destination has taken are removed, the oldest first",
			"file", s.config.Path, "max_bytes", s.config.MaxBytes, "max_age", s.config.MaxAge)
	}
	s.removed = through
	s.stats.RemovedDelivered, s.stats.RemovedUndelivered = delivered, undelivered
	s.mu.Unlock()
	s.written(0)
	return nil
}

// takenByAll is the number up to which every destination has taken the records; those count that have a Reader, or, as long
// as none has, those that the file knows. s.mu is held.
func (s *Store) takenByAll() int64 {
	taken := s.last
	if len(s.readers) > 0 {
		for k := range s.readers {
			taken = min(taken, s.cursors[k].seq)
		}
		return taken
	}
	for _, c := range s.cursors {
		taken = min(taken, c.seq)
	}
	return taken
}

func (s *Store) isForgettingDue() bool { return s.sinceForget >= s.keptProcesses }

// forget drops the processes that logged longest ago, once as many records were added as processes are kept.
func (s *Store) forget() {
	if !s.isForgettingDue() {
		return
	}
	s.sinceForget = 0
	db := s.db
	err := s.transact(db, func() error {
		_, err := db.forget.ExecContext(context.Background(), s.keptProcesses)
		return err
	})
	if err != nil {
		s.trouble(fmt.Errorf("forget old processes: %w", err))
	}
}
