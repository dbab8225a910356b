package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strconv"
	"time"

	"modernc.org/sqlite"
	sqlite3 "modernc.org/sqlite/lib"
)

// busyTimeout bounds the wait for a lock that a stranger holds on the file (somebody's sqlite3 shell): the agent's own
// connections don't lock each other out.
const busyTimeout = 5 * time.Second

// database is the open file: its connections and prepared statements.
type database struct {
	path string

	// For the holder of Store.turn: one connection, since a transaction belongs to one.
	writer *sql.DB
	conn   *sql.Conn
	begin, commit, rollback,
	insert, keep, move, count, remove, forget, aged, used *sql.Stmt

	kept map[string]struct{} // put's: processes whose state is written already

	// For the checkpointer goroutine alone.
	checkpointer *sql.DB

	// For everybody.
	readers      *sql.DB
	next, recall *sql.Stmt

	statements []*sql.Stmt

	// log is a descriptor of the -wal file, for fdatasync alone. SQLite's locks are on the other two files, so closing it
	// takes none away (POSIX locks fall with any close of their file in the process). For the syncer alone; nil before its first sync.
	log *os.File
}

// openDatabase opens the file, makes it ours when it is new, and prepares the statements.
func openDatabase(ctx context.Context, path string) (_ *database, err error) {
	d := &database{path: path, kept: map[string]struct{}{}}
	defer func() {
		if err != nil {
			_ = d.close()
		}
	}()
	// Without this every sync waits for the journal to write a time stamp too. SQLite's own Linux builds do the same.
	if _, err := sqlite.Fdatasync(true); err != nil {
		return nil, fmt.Errorf("select fdatasync: %w", err)
	}
	if d.writer, err = connect(path, 1, "immediate"); err != nil {
		return nil, err
	}
	if err := prepareSchema(ctx, d.writer, path); err != nil {
		return nil, err
	}
	if d.checkpointer, err = connect(path, 1, "deferred"); err != nil {
		return nil, err
	}
	if d.readers, err = connect(path, readerConnections, "deferred"); err != nil {
		return nil, err
	}
	if d.conn, err = d.writer.Conn(ctx); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	for _, s := range []struct {
		on    preparer
		stmt  **sql.Stmt
		query string
	}{
		{d.conn, &d.begin, `BEGIN IMMEDIATE`},
		{d.conn, &d.commit, `COMMIT`},
		{d.conn, &d.rollback, `ROLLBACK`},
		{d.conn, &d.insert, sqlInsert},
		{d.conn, &d.keep, sqlKeep},
		{d.conn, &d.move, sqlMove},
		{d.conn, &d.count, sqlCount},
		{d.conn, &d.remove, sqlRemove},
		{d.conn, &d.aged, sqlAged},
		{d.conn, &d.forget, sqlForget},
		{d.conn, &d.used, sqlUsed},
		{d.readers, &d.next, sqlNext},
		{d.readers, &d.recall, sqlRecall},
	} {
		if *s.stmt, err = s.on.PrepareContext(ctx, s.query); err != nil {
			return nil, fmt.Errorf("prepare %q: %w", s.query, err)
		}
		d.statements = append(d.statements, *s.stmt)
	}
	return d, nil
}

type preparer interface {
	PrepareContext(ctx context.Context, query string) (*sql.Stmt, error)
}

// readerConnections is enough for two destinations with two signals each; more readers wait for each other.
const readerConnections = 4

// connect opens a pool of at most n connections.
func connect(path string, n int, txlock string) (*sql.DB, error) {
	query := url.Values{
		"_txlock": {txlock},
		"_dqs":    {"0"},
		"_pragma": {
			"busy_timeout(" + strconv.FormatInt(busyTimeout.Milliseconds(), 10) + ")",
			"journal_mode(WAL)",
			"synchronous(NORMAL)",
			"wal_autocheckpoint(0)",
			"journal_size_limit(" + strconv.Itoa(logKeptBytes) + ")",
		},
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: query.Encode()}).String())
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	db.SetMaxOpenConns(n)
	db.SetMaxIdleConns(n)
	return db, nil
}

// fileVersion returns the file's schema version; 0 = it has no tables yet. It refuses what is not ours and what is newer.
func fileVersion(ctx context.Context, db querier, path string) (version int64, err error) {
	var id, tables int64
	if err := db.QueryRowContext(ctx, sqlVersion).Scan(&version, &id, &tables); err != nil {
		return 0, fmt.Errorf("read the version of %s: %w", path, err)
	}
	switch {
	case version == 0 && id == 0 && tables == 0:
		return 0, nil
	case id != applicationID:
		return 0, fmt.Errorf("%s: %w", path, ErrForeign)
	case version > schemaVersion:
		return 0, fmt.Errorf("%s has schema version %d and this agent knows %d: %w", path, version, schemaVersion, ErrTooNew)
	}
	return version, nil
}

type querier interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// prepareSchema creates the tables of a new file and checks that an old one is ours and not newer than we are.
func prepareSchema(ctx context.Context, db *sql.DB, path string) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer func() { _ = tx.Rollback() }()
	version, err := fileVersion(ctx, tx, path)
	if err != nil || version != 0 {
		return err
	}
	for _, q := range schema {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("create the tables of %s: %w", path, err)
		}
	}
	for _, q := range []string{
		fmt.Sprintf("PRAGMA user_version = %d", schemaVersion),
		fmt.Sprintf("PRAGMA application_id = %d", applicationID),
	} {
		if _, err := tx.ExecContext(ctx, q); err != nil {
			return fmt.Errorf("set the version of %s: %w", path, err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("create the tables of %s: %w", path, err)
	}
	return nil
}

// close closes the connections; the last one checkpoints and removes the log.
func (d *database) close() error {
	var errs []error
	if d.log != nil {
		errs = append(errs, d.log.Close())
	}
	// database/sql does not close those of a *sql.Conn; SQLite would keep the file open for them.
	for _, stmt := range d.statements {
		errs = append(errs, stmt.Close())
	}
	if d.conn != nil {
		errs = append(errs, d.conn.Close())
	}
	for _, db := range []*sql.DB{d.readers, d.checkpointer, d.writer} {
		if db != nil {
			errs = append(errs, db.Close())
		}
	}
	return errors.Join(errs...)
}

// damaged says that the error is the file's content, which no retry heals.
func damaged(err error) bool {
	if errors.Is(err, errDamaged) {
		return true
	}
	var e *sqlite.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Code() & 0xff {
	case sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB:
		return true
	}
	return false
}

// full says that the error is the lack of space.
func full(err error) bool {
	var e *sqlite.Error
	return errors.As(err, &e) && e.Code()&0xff == sqlite3.SQLITE_FULL
}
