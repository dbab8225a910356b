package store

import (
	"bytes"
	"cmp"
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"time"
)

// checkedBytes is the largest file whose structure is checked as a whole when it is opened; it takes about 0.1 s. Damage in
// a larger one shows when the page is read, and then the file is replaced just so.
const checkedBytes = 64 << 20

// check looks for damage.
func (d *database) check(ctx context.Context) error {
	info, err := os.Stat(d.path)
	if err != nil {
		return fmt.Errorf("check the record store: %w", err)
	}
	if info.Size() > checkedBytes {
		return nil
	}
	var verdict string
	if err := d.conn.QueryRowContext(ctx, `PRAGMA quick_check(1)`).Scan(&verdict); err != nil {
		return fmt.Errorf("check the record store: %w", err)
	}
	if verdict != "ok" {
		return fmt.Errorf("check the record store: %s: %w", verdict, errDamaged)
	}
	return nil
}

// errDamaged stands for SQLite's own error where quick_check answers in words.
var errDamaged = errors.New("database disk image is malformed")

// replace sets the damaged file aside and goes on with a new one. The writer calls it. It does nothing when db has been
// replaced already.
func (s *Store) replace(db *database, why error) error {
	if s.db != db {
		return nil
	}
	s.swap.Lock()
	defer s.swap.Unlock()
	_ = db.close() // what it says about a damaged file helps nobody
	err := s.renew(context.Background(), why)
	s.broken = err != nil
	return err
}

// reopen is for the time after a replacement that failed, for want of space perhaps.
func (s *Store) reopen() error {
	s.swap.Lock()
	defer s.swap.Unlock()
	err := s.open(context.Background())
	s.broken = err != nil
	return err
}

// renew sets the file aside, opens a new one and takes over what can be read of the old.
func (s *Store) renew(ctx context.Context, why error) error {
	aside, err := setAside(s.config.Path, s.config.Now())
	if err != nil {
		return fmt.Errorf("set the damaged record store aside: %w (damage: %w)", err, why)
	}
	db, err := openDatabase(ctx, s.config.Path)
	if err != nil {
		return err
	}
	rescued, lost := db.rescue(ctx, aside)
	// Memory knows the latest better than a damaged file.
	s.mu.Lock()
	held, cursors := s.recent.after(s.recent.first-1, recentRecords, math.MaxInt), maps.Clone(s.cursors)
	s.mu.Unlock()
	if err := db.putAgain(held, cursors); err != nil {
		return errors.Join(err, db.close())
	}
	if err := s.adopt(ctx, db); err != nil {
		return errors.Join(err, db.close())
	}
	s.mu.Lock()
	s.stats.SetAside++
	s.stats.SetAsidePath = aside
	s.mu.Unlock()
	s.config.Log.Error("the record store was damaged: set aside, a new one holds what could be read of it",
		"damage", why, "set_aside", aside, "records_read", rescued, "stopped_by", lost)
	return nil
}

// setAside renames a damaged file and its log.
func setAside(path string, now time.Time) (string, error) {
	stem := path + ".damaged-" + now.UTC().Format("20060102T150405Z")
	aside := stem
	for n := 2; ; n++ {
		if _, err := os.Lstat(aside); errors.Is(err, fs.ErrNotExist) {
			break
		}
		aside = fmt.Sprintf("%s-%d", stem, n)
	}
	if err := os.Rename(path, aside); err != nil {
		return "", err
	}
	// SQLite finds the log by the file's name. A log left behind would be applied to the new file.
	if err := os.Rename(path+"-wal", aside+"-wal"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := os.Remove(path + "-shm"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	return aside, nil
}

// rescue copies what can be read of a damaged file: the records from the front up to the damage and from the end down to it,
// the cursors, the counters, the processes. lost is the first error; nil = all was readable.
func (d *database) rescue(ctx context.Context, aside string) (records int64, lost error) {
	if err := fillUp(aside); err != nil {
		return 0, err
	}
	old, err := connect(aside, 1, "deferred")
	if err != nil {
		return 0, err
	}
	defer func() { _ = old.Close() }()
	for _, table := range []struct {
		query  string
		insert *sql.Stmt
	}{
		{sqlCounts, d.count},
		{sqlCursors, d.move},
		{`SELECT key, seq, state FROM processes`, d.keep},
	} {
		err := d.copyRows(ctx, old, table.query, nil, func(row []any) error {
			_, err := table.insert.ExecContext(ctx, row...)
			return err
		})
		lost = cmp.Or(lost, err)
	}
	const columns = `SELECT seq, run, function, context, step, start, end, record FROM records `
	var front int64
	add := func(row []any) error {
		blob, _ := row[7].([]byte)
		seq, _ := row[0].(int64)
		// A torn page can hold a record that SQLite takes for whole.
		if _, err := decode(blob); err != nil {
			return fmt.Errorf("record %d: %w", seq, err)
		}
		if _, err := d.insert.ExecContext(ctx, row...); err != nil {
			return err
		}
		records++
		front = max(front, seq)
		return nil
	}
	if err := d.copyRows(ctx, old, columns+`ORDER BY seq`, nil, add); err != nil {
		lost = cmp.Or(lost, err)
		_ = d.copyRows(ctx, old, columns+`WHERE seq > ? ORDER BY seq DESC`, []any{front}, add)
	}
	return records, lost
}

// fillUp gives a file that was cut the length that its header states: SQLite reads nothing at all of a shorter one.
func fillUp(path string) error {
	file, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	info, err := file.Stat()
	if err != nil {
		return err
	}
	// https://www.sqlite.org/fileformat.html: the page size is at offset 16 (1 = 65536), the number of pages at 28.
	var header [32]byte
	if n, _ := file.ReadAt(header[:], 0); n < len(header) {
		return nil
	}
	page := int64(binary.BigEndian.Uint16(header[16:]))
	if page == 1 {
		page = 1 << 16
	}
	size := page * int64(binary.BigEndian.Uint32(header[28:]))
	if bytes.HasPrefix(header[:], []byte("SQLite format 3\x00")) && info.Size() < size && size <= 2*DefaultMaxBytes {
		return file.Truncate(size)
	}
	return nil
}

// putAgain writes cursors, and those of the records that are not in the file.
func (d *database) putAgain(held []Stored, cursors map[cursorKey]cursor) error {
	for k, c := range cursors {
		if _, err := d.move.ExecContext(context.Background(), k.destination, k.signal, c.seq, c.state); err != nil {
			return fmt.Errorf("write a cursor: %w", err)
		}
	}
	for _, h := range held {
		var there bool
		if err := d.conn.QueryRowContext(context.Background(), `SELECT EXISTS (SELECT 1 FROM records WHERE seq = ?)`, h.Seq).Scan(&there); err != nil {
			return fmt.Errorf("look for record %d: %w", h.Seq, err)
		}
		if there {
			continue
		}
		blob, err := encode(h.Record)
		if err != nil {
			return err
		}
		if err := d.putRecord(h.Seq, h.Record, blob); err != nil {
			return err
		}
	}
	return nil
}

// copyRows hands the rows of a query on old to add, in one transaction that is kept whatever stops it.
func (d *database) copyRows(ctx context.Context, old *sql.DB, query string, args []any, add func(row []any) error) (err error) {
	rows, err := old.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	if _, err := d.begin.ExecContext(ctx); err != nil {
		return err
	}
	defer func() {
		if _, e := d.commit.ExecContext(ctx); e != nil {
			err = errors.Join(err, e)
		}
	}()
	row := make([]any, len(columns))
	into := make([]any, len(columns))
	for i := range row {
		into[i] = &row[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return err
		}
		if err := add(row); err != nil {
			return err
		}
	}
	return rows.Err()
}
