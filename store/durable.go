package store

import (
	"context"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// checkpointBytes is about what the log grows between two checkpoints.
	checkpointBytes = 8 << 20
	// heldPages is the length of the log (in pages of 4 KiB: 64 MiB) beyond which a checkpoint may hold up commits.
	heldPages = 16384
	// logKeptBytes is the size to which SQLite cuts the log when it starts it anew.
	logKeptBytes = 16 << 20
)

// written is called after each commit of some bytes of records.
func (s *Store) written(bytes int) {
	select {
	case s.unsynced <- struct{}{}:
	default:
	}
	// A commit writes whole pages: about three besides those that hold the records.
	if s.sinceCheckpoint += bytes + 3*4096; s.sinceCheckpoint < checkpointBytes {
		return
	}
	s.sinceCheckpoint = 0
	select {
	case s.unsaved <- struct{}{}:
	default:
	}
}

// syncLog makes commits survive a power cut. It syncs the log through a descriptor of its own, beside the writer: a commit
// under synchronous=FULL would make every call that comes meanwhile wait for the disk, seconds if the training is writing a
// checkpoint. An idle store is not touched.
func (s *Store) syncLog(ctx context.Context) {
	for {
		select {
		case <-s.unsynced:
		case <-ctx.Done():
			return
		}
		select {
		case <-time.After(s.config.SyncEvery):
		case <-ctx.Done():
			return // closing the file syncs it
		}
		if err := s.read((*database).syncLog); err != nil {
			s.countFailedSync(err)
		}
	}
}

func (d *database) syncLog() error {
	if d.log == nil {
		var err error
		if d.log, err = os.OpenFile(d.path+"-wal", os.O_RDWR, 0); err != nil {
			return fmt.Errorf("open the log: %w", err)
		}
	}
	if err := unix.Fdatasync(int(d.log.Fd())); err != nil {
		return fmt.Errorf("sync the log: %w", err)
	}
	return nil
}

// checkpoint copies the log into the file when enough has been written, so that SQLite can start the log anew.
func (s *Store) checkpoint(ctx context.Context) {
	for {
		select {
		case <-s.unsaved:
		case <-ctx.Done():
			return
		}
		if err := s.copyLog(); err != nil {
			s.countFailedSync(err)
		}
	}
}

// copyLog copies the log into the file. The log starts anew with the first commit that finds all of it copied and no reader
// in it. A commit that comes during a pass spoils that, so up to three passes follow each other, each with less to copy and
// none holding up a commit. Only when commits leave no gap at all and the log has grown long, a last short pass holds them up.
func (s *Store) copyLog() error {
	const passes = 3
	var pages int64
	pass := func(db *database) (err error) {
		pages, err = db.copyLog()
		return err
	}
	for range passes {
		before := s.transactions.Load()
		if err := s.read(pass); err != nil || s.transactions.Load() == before {
			return err
		}
	}
	if pages < s.heldPages {
		return nil
	}
	s.turn.Lock()
	defer s.endTurn()
	return pass(s.db)
}

// copyLog copies what the log holds when it begins, and returns how many pages that were since the log started.
func (d *database) copyLog() (pages int64, err error) {
	var busy, copied int64
	// PASSIVE waits for nobody. It copies no further than the oldest reader has read; readers are short.
	if err := d.checkpointer.QueryRow(`PRAGMA wal_checkpoint(PASSIVE)`).Scan(&busy, &pages, &copied); err != nil {
		return 0, fmt.Errorf("checkpoint: %w", err)
	}
	return pages, nil
}
