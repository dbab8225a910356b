package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"math"
	"net/url"
	"os"
	"path/filepath"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// Archive reads the records of a file that nobody, or another agent, is writing. It takes no lock and changes no record.
type Archive struct {
	db        *database
	temporary string // a copy's directory; empty = the file itself is read
}

// OpenArchive opens a record store for reading: also one whose agent is running or was killed, one in a directory that cannot
// be written, and one on a network file system.
func OpenArchive(ctx context.Context, path string) (*Archive, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("open record store: %w", err)
	}
	query := url.Values{"mode": {"ro"}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busyTimeout.Milliseconds())}}
	if _, err := os.Stat(path + "-wal"); errors.Is(err, fs.ErrNotExist) {
		// Closed properly. Without this SQLite would make the log's index beside the file.
		query.Set("immutable", "1")
	}
	db, err := openReading(ctx, path, query)
	if err == nil {
		return &Archive{db: db}, nil
	}
	var e *sqlite.Error
	if !errors.As(err, &e) || e.Code()&0xff != sqlite3.SQLITE_CANTOPEN && e.Code()&0xff != sqlite3.SQLITE_READONLY {
		return nil, err
	}
	// There is a log, left by a killed agent, and its index can be neither read nor made here.
	return openCopy(ctx, path)
}

func openReading(ctx context.Context, path string, query url.Values) (*database, error) {
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.SetMaxOpenConns(1)
	d := &database{path: path, readers: db}
	version, err := fileVersion(ctx, db, path)
	if err == nil && version == 0 {
		err = fmt.Errorf("%s: %w", path, ErrForeign)
	}
	if err == nil {
		d.next, err = db.PrepareContext(ctx, sqlNext)
	}
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	d.statements = append(d.statements, d.next)
	return d, nil
}

func openCopy(ctx context.Context, path string) (_ *Archive, err error) {
	dir, err := os.MkdirTemp("", "prov4ml-")
	if err != nil {
		return nil, fmt.Errorf("copy %s to read it: %w", path, err)
	}
	a := &Archive{temporary: dir}
	copied := filepath.Join(dir, "records.db")
	for _, suffix := range []string{"-wal", ""} {
		if err = copyFile(path+suffix, copied+suffix, 0o600); err != nil {
			err = fmt.Errorf("copy %s to read it: %w", path, err)
			break
		}
	}
	if err == nil {
		a.db, err = openReading(ctx, copied, nil)
	}
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(dir))
	}
	return a, nil
}

// Records walks over the records, oldest first. It ends after an error; a record that cannot be decoded is one.
func (a *Archive) Records(ctx context.Context) iter.Seq2[Stored, error] {
	return func(yield func(Stored, error) bool) {
		walk(func(after int64) ([]Stored, error) {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			p, err := a.db.fetch(after, math.MaxInt64, walkRecords, walkBytes)
			if err == nil && len(p.unreadable) > 0 {
				err = fmt.Errorf("decode record %d: %w", p.unreadable[0].seq, p.unreadable[0].err)
			}
			return p.records, err
		}, yield)
	}
}

// Close closes the file.
func (a *Archive) Close() error {
	err := a.db.close()
	if a.temporary != "" {
		err = errors.Join(err, os.RemoveAll(a.temporary))
	}
	return err
}
