package store

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prov4ml/agent/record"
)

var (
	// ErrClosed says that the store was closed before the call was recorded.
	ErrClosed = errors.New("store is closed")
	// ErrQueueFull says that the disk does not keep up: Config.MaxQueueBytes of calls wait for their commit.
	ErrQueueFull = errors.New("too many calls wait for the disk")
	// ErrNoSpace says that the file system or its quota is full.
	ErrNoSpace = errors.New("no space left for the record store")
	// ErrTooNew says that a newer agent made the file.
	ErrTooNew = errors.New("the file is from a newer prov4ml-agent; use that one, or another state directory")
	// ErrForeign says that the file is a SQLite database of something else.
	ErrForeign = errors.New("the file is not a prov4ml record store; use another directory")
	// ErrLocked says that another agent uses the file.
	ErrLocked = errors.New("another prov4ml-agent uses this record store")
)

// Defaults of Config.
const (
	DefaultMaxBytes      = 1 << 30
	DefaultMaxQueueBytes = 32 << 20
	DefaultSyncEvery     = time.Second
)

// Config says where the records are and how much of them is kept.
type Config struct {
	// Path of the file, records.db by custom. Its directory is made if it is missing.
	Path string
	// MaxBytes bounds what the records take in the file; 0 = DefaultMaxBytes (1 GiB, about a million records). Beyond it the
	// oldest are removed. The log beside the file comes on top: 16 MiB as a rule, some 80 MiB under a load without a pause.
	MaxBytes int64
	// MaxAge bounds the age of the records, by the end of their window; 0 = no bound.
	MaxAge time.Duration
	// MaxQueueBytes bounds the memory of calls that wait for their commit; 0 = DefaultMaxQueueBytes (32 MiB).
	MaxQueueBytes int
	// SyncEvery is what a power cut may cost; 0 = DefaultSyncEvery (1 s).
	SyncEvery time.Duration
	// LockWait is how long Open waits for another agent to leave the file; 0 = not at all.
	LockWait time.Duration
	// Log takes what the operator should know; nil = nothing is logged.
	Log *slog.Logger
	// Now is the clock for MaxAge; nil = time.Now.
	Now func() time.Time
}

func (c *Config) setDefaults() {
	if c.MaxBytes == 0 {
		c.MaxBytes = DefaultMaxBytes
	}
	if c.MaxQueueBytes == 0 {
		c.MaxQueueBytes = DefaultMaxQueueBytes
	}
	if c.SyncEvery == 0 {
		c.SyncEvery = DefaultSyncEvery
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
}

// Validate names the first field that cannot be.
func (c Config) Validate() error {
	switch {
	case c.Path == "":
		return errors.New("store: Path is empty")
	case c.MaxBytes < 0:
		return fmt.Errorf("store: MaxBytes is %d; it must not be negative", c.MaxBytes)
	case c.MaxAge < 0:
		return fmt.Errorf("store: MaxAge is %v; it must not be negative", c.MaxAge)
	case c.MaxQueueBytes < 0:
		return fmt.Errorf("store: MaxQueueBytes is %d; it must not be negative", c.MaxQueueBytes)
	case c.SyncEvery < 0:
		return fmt.Errorf("store: SyncEvery is %v; it must not be negative", c.SyncEvery)
	case c.LockWait < 0:
		return fmt.Errorf("store: LockWait is %v; it must not be negative", c.LockWait)
	}
	return nil
}

// Stored is a record with its number.
type Stored struct {
	Seq    int64
	Record *record.LogCall
}

// Store is an open record store. Its methods may be called from any goroutine.
type Store struct {
	config Config
	lock   *fileLock
	queue  queue
	writer sync.WaitGroup // the writer; it ends when the queue is closed and empty
	others sync.WaitGroup // the syncer and the checkpointer; stop ends them
	stop   context.CancelFunc

	// Tokens: something was committed since the last sync; enough was committed for a checkpoint.
	unsynced, unsaved chan struct{}
	transactions      atomic.Uint64 // that were begun

	// The constants of these names; tests lower them.
	heldPages     int64
	keptProcesses int

	// turn is held by who writes the file. It guards what follows, and the writing part of db.
	turn            sync.Mutex
	batch           batch     // what is being committed
	sinceCheckpoint int       // about what the log has grown since then, bytes
	sinceLook       int64     // bytes of records since the size was looked at
	sinceForget     int       // records since the processes were thinned out
	looked          time.Time // when the age was looked at
	troubled        time.Time // when the file last failed
	broken          bool      // db is closed: the damaged file could not be replaced yet

	// swap is held for writing, besides turn, while a damaged file is replaced; for reading while the file is read.
	swap sync.RWMutex
	db   *database

	// mu guards what follows. Who holds turn alone changes last and removed, and reads them without mu.
	mu      sync.Mutex
	closed  bool
	news    chan struct{}
	last    int64 // the last committed record's number
	removed int64 // all up to this one are gone
	recent  recent
	readers map[cursorKey]*Reader
	cursors map[cursorKey]cursor // as committed
	// unreadable is the highest number that could not be decoded.
	unreadable int64
	stats      Stats // without what Stats computes
}

// Open opens the store and takes its lock, waiting for it as long as Config.LockWait says.
func Open(ctx context.Context, config Config) (*Store, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	config.setDefaults()
	path, err := filepath.Abs(config.Path)
	if err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	config.Path = path
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the store's directory: %w", err)
	}
	lock, err := acquire(ctx, path+".lock", config.LockWait)
	if err != nil {
		return nil, err
	}
	s := &Store{
		config:        config,
		lock:          lock,
		heldPages:     heldPages,
		keptProcesses: keptProcesses,
		unsynced:      make(chan struct{}, 1),
		unsaved:       make(chan struct{}, 1),
		readers:       map[cursorKey]*Reader{},
		cursors:       map[cursorKey]cursor{},
	}
	s.queue.init(config.MaxQueueBytes)
	if err := s.open(ctx); err != nil {
		lock.release()
		return nil, err
	}
	run, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.writer.Go(s.write)
	s.others.Go(func() { s.syncLog(run) })
	s.others.Go(func() { s.checkpoint(run) })
	return s, nil
}

// open opens the file, replacing a damaged one, and reads where it stands.
func (s *Store) open(ctx context.Context) error {
	db, err := openDatabase(ctx, s.config.Path)
	if err == nil {
		if err = db.check(ctx); err == nil {
			err = s.adopt(ctx, db)
		}
		if err != nil {
			_ = db.close()
		}
	}
	if damaged(err) {
		return s.renew(ctx, err)
	}
	return err
}

// adopt makes db the current file.
func (s *Store) adopt(ctx context.Context, db *database) error {
	var first, last sql.NullInt64
	if err := db.conn.QueryRowContext(ctx, sqlBounds).Scan(&first, &last); err != nil {
		return fmt.Errorf("read the records' numbers: %w", err)
	}
	counts, err := readCounts(ctx, db)
	if err != nil {
		return err
	}
	cursors, err := readCursors(ctx, db)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.db = db
	s.removed = max(s.removed, counts[counterRemoved])
	if first.Valid {
		s.removed = max(s.removed, first.Int64-1)
	}
	s.last = max(s.last, s.removed, last.Int64)
	s.stats.RemovedDelivered = counts[counterDelivered]
	s.stats.RemovedUndelivered = counts[counterUndelivered]
	for k, c := range cursors {
		s.last = max(s.last, c.seq)
		s.cursors[k] = c
	}
	return nil
}

func readCounts(ctx context.Context, db *database) (map[string]int64, error) {
	rows, err := db.conn.QueryContext(ctx, sqlCounts)
	if err != nil {
		return nil, fmt.Errorf("read the counters: %w", err)
	}
	defer func() { _ = rows.Close() }()
	counts := map[string]int64{}
	for rows.Next() {
		var name string
		var value int64
		if err := rows.Scan(&name, &value); err != nil {
			return nil, fmt.Errorf("read the counters: %w", err)
		}
		counts[name] = value
	}
	return counts, rows.Err()
}

// Close commits what is queued, makes it durable, and closes the file. Waits that are not over end with ErrClosed.
func (s *Store) Close() error {
	if !s.queue.close() {
		return nil
	}
	s.writer.Wait()
	s.stop()
	s.others.Wait()
	s.swap.Lock()
	defer s.swap.Unlock()
	err := s.db.close()
	s.db = nil
	s.mu.Lock()
	s.closed = true
	s.wake()
	s.mu.Unlock()
	s.lock.release()
	if err != nil {
		return fmt.Errorf("close record store: %w", err)
	}
	return nil
}

// Append queues a record and returns at once; it never waits for the disk. The records of a store are numbered in the order
// of these calls. The record belongs to the store from now on: nobody may change it.
//
// process names the logging process and state is what Recall gives back for it; both are committed together with the record.
// A nil state leaves what is there.
//
// wait returns the record's number once it is committed, or why it is not and never will be: ErrQueueFull, ErrNoSpace,
// ErrClosed or the file's error. When its context ends first, the record may still be committed. Nobody has to call it.
//
// The queue is bounded in bytes. When it is full, Append refuses the call: it does not block, since it is called under the
// process's lock. Callers that do not wait for each record should therefore bound how many they leave waiting.
func (s *Store) Append(rec *record.LogCall, process string, state []byte) (wait func(context.Context) (int64, error)) {
	blob, err := encode(rec)
	if err != nil {
		return func(context.Context) (int64, error) { return 0, err }
	}
	e := &entry{record: rec, blob: blob, process: process, state: state, done: make(chan struct{})}
	if err := s.queue.add(e); err != nil {
		if errors.Is(err, ErrQueueFull) {
			s.countRefused()
		}
		return func(context.Context) (int64, error) { return 0, err }
	}
	return func(ctx context.Context) (int64, error) { return s.wait(ctx, e) }
}

// encode makes a record's bytes.
func encode(rec *record.LogCall) ([]byte, error) {
	if err := record.CheckText(rec); err != nil {
		return nil, fmt.Errorf("encode the record: %w", err)
	}
	blob, err := rec.MarshalVT()
	if err != nil {
		return nil, fmt.Errorf("encode the record: %w", err)
	}
	return blob, nil
}

// decode reads a record's bytes.
func decode(blob []byte) (*record.LogCall, error) {
	rec := &record.LogCall{}
	if err := rec.UnmarshalVT(blob); err != nil {
		return nil, fmt.Errorf("decode the record: %w", err)
	}
	if err := record.CheckText(rec); err != nil {
		return nil, fmt.Errorf("decode the record: %w", err)
	}
	return rec, nil
}

// Recall returns the state that was last committed for a process; nil if there is none.
func (s *Store) Recall(process string) ([]byte, error) {
	var state []byte
	err := s.read(func(db *database) error {
		return db.recall.QueryRowContext(context.Background(), process).Scan(&state)
	})
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("recall a process: %w", err)
	}
	return state, nil
}

// Remembered returns the states that keep wants, by process, of all that Recall knows. The bytes that keep is given are valid only
// until it returns.
func (s *Store) Remembered(keep func(state []byte) bool) (map[string][]byte, error) {
	var kept map[string][]byte
	err := s.read(func(db *database) (err error) {
		kept = map[string][]byte{}
		rows, err := db.readers.QueryContext(context.Background(), sqlStates)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, rows.Close()) }()
		var process string
		var state sql.RawBytes
		for rows.Next() {
			if err := rows.Scan(&process, &state); err != nil {
				return err
			}
			if keep(state) {
				kept[process] = bytes.Clone(state)
			}
		}
		return rows.Err()
	})
	if err != nil {
		return nil, fmt.Errorf("recall the processes: %w", err)
	}
	return kept, nil
}

// read lets f use the file. When f finds it damaged, the file is replaced and f is called once more.
func (s *Store) read(f func(*database) error) error {
	for again := true; ; again = false {
		s.swap.RLock()
		db := s.db
		err := ErrClosed
		if db != nil {
			err = f(db)
		}
		s.swap.RUnlock()
		if !again || !damaged(err) {
			return err
		}
		if err := s.queue.reportDamage(db, err); err != nil {
			return err
		}
	}
}

// Records walks over all records that are committed when it is called, oldest first. It ends after an error.
func (s *Store) Records(ctx context.Context) iter.Seq2[Stored, error] {
	s.mu.Lock()
	last := s.last
	s.mu.Unlock()
	return func(yield func(Stored, error) bool) {
		walk(func(after int64) ([]Stored, error) { return s.fetch(ctx, after, last, walkRecords, walkBytes) }, yield)
	}
}

// Page of a walk: short enough to hold no snapshot of the file for long, which would keep the log from starting anew.
const (
	walkRecords = 256
	walkBytes   = 1 << 20
)

// walk yields the records a page at a time.
func walk(fetch func(after int64) ([]Stored, error), yield func(Stored, error) bool) {
	for after := int64(0); ; {
		records, err := fetch(after)
		if err != nil {
			yield(Stored{}, err)
			return
		}
		if len(records) == 0 {
			return
		}
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
			after = r.Seq
		}
	}
}

// fetch reads the records behind after up to last. One that cannot be decoded is passed over and counted: it must not keep the others
// from being delivered.
func (s *Store) fetch(ctx context.Context, after, last int64, maxRecords, maxBytes int) ([]Stored, error) {
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		var p page
		err := s.read(func(db *database) (err error) {
			p, err = db.fetch(after, last, maxRecords, maxBytes)
			return err
		})
		for _, u := range p.unreadable {
			s.countUnreadable(u.seq, u.err)
		}
		if err != nil || len(p.records) > 0 || p.through == after {
			return p.records, err
		}
		after = p.through
	}
}

// page is a part of the records.
type page struct {
	records    []Stored
	unreadable []unreadable
	through    int64 // the last number looked at
}

type unreadable struct {
	seq int64
	err error
}

// fetch reads at most maxRecords records behind after up to last, in order, and stops before maxBytes are exceeded, but not before the
// first one.
func (d *database) fetch(after, last int64, maxRecords, maxBytes int) (p page, err error) {
	p.through = after
	// A context that can end costs a goroutine a query; a page is short.
	rows, err := d.next.QueryContext(context.Background(), after, last, maxRecords)
	if err != nil {
		return p, fmt.Errorf("read records: %w", err)
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	size := 0
	for rows.Next() {
		var seq int64
		var blob sql.RawBytes
		if err := rows.Scan(&seq, &blob); err != nil {
			return p, fmt.Errorf("read records: %w", err)
		}
		if size += len(blob); size > maxBytes && len(p.records) > 0 {
			return p, nil
		}
		p.through = seq
		rec, err := decode(blob)
		if err != nil {
			p.unreadable = append(p.unreadable, unreadable{seq, err})
			continue
		}
		p.records = append(p.records, Stored{Seq: seq, Record: rec})
	}
	if err := rows.Err(); err != nil {
		return p, fmt.Errorf("read records: %w", err)
	}
	return p, nil
}
