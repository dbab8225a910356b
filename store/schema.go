package store

// schemaVersion is the file's PRAGMA user_version. An agent refuses a file with a higher one.
const schemaVersion = 1

// applicationID is the file's PRAGMA application_id, "p4ml": it tells file(1) and us what the file is.
const applicationID = 0x70346d6c

// schema makes an empty file ours. The columns beside the blob are for people and their SQL; the agent reads seq and record
// only. No index but the primary key's: every reader walks in the order of seq.
var schema = [...]string{
	// seq is given by the writer, not by SQLite: AUTOINCREMENT would dirty one more page with every commit.
	`CREATE TABLE records (
		seq      INTEGER PRIMARY KEY,
		run      TEXT NOT NULL,
		function TEXT NOT NULL,
		context  TEXT,
		step     INTEGER,
		start    INTEGER NOT NULL, -- Unix time, ns
		end      INTEGER NOT NULL, -- Unix time, ns
		record   BLOB NOT NULL     -- prov4ml.record.LogCall
	)`,
	// What the agent must remember of a logging process to go on where it was, also when the process's records are gone.
	// seq is its latest record: it says which rows are the oldest.
	`CREATE TABLE processes (
		key   TEXT PRIMARY KEY,
		seq   INTEGER NOT NULL,
		state BLOB NOT NULL
	) WITHOUT ROWID`,
	`CREATE TABLE cursors (
		destination TEXT NOT NULL,
		signal      TEXT NOT NULL,
		seq         INTEGER NOT NULL,
		state       BLOB,
		PRIMARY KEY (destination, signal)
	) WITHOUT ROWID`,
	// Counters that outlive a restart; the names are constants below.
	`CREATE TABLE counters (
		name  TEXT PRIMARY KEY,
		value INTEGER NOT NULL
	) WITHOUT ROWID`,
}

// Names in the table counters.
const (
	// counterRemoved is the highest number that the limits have removed: the next number is above it even in an empty file.
	counterRemoved = "removed_through"
	// counterDelivered and counterUndelivered count the removed records.
	counterDelivered   = "removed_delivered"
	counterUndelivered = "removed_undelivered"
)

const (
	sqlInsert = `INSERT INTO records (seq, run, function, context, step, start, end, record) VALUES (?, ?, ?, ?, ?, ?, ?, ?)`
	sqlKeep   = `INSERT INTO processes (key, seq, state) VALUES (?, ?, ?)
		ON CONFLICT (key) DO UPDATE SET seq = excluded.seq, state = excluded.state`
	sqlRecall = `SELECT state FROM processes WHERE key = ?`
	sqlStates = `SELECT key, state FROM processes`
	sqlMove   = `INSERT INTO cursors (destination, signal, seq, state) VALUES (?, ?, ?, ?)
		ON CONFLICT (destination, signal) DO UPDATE SET seq = excluded.seq, state = excluded.state`
	sqlCursors = `SELECT destination, signal, seq, state FROM cursors`
	sqlCount   = `INSERT INTO counters (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value`
	sqlCounts  = `SELECT name, value FROM counters`
	sqlNext    = `SELECT seq, record FROM records WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?`
	sqlBounds  = `SELECT (SELECT min(seq) FROM records), (SELECT max(seq) FROM records)`
	sqlRemove  = `DELETE FROM records WHERE seq <= ?`
	// The last of the oldest ? records that ended before a time. It walks from the front and stops: no index is needed.
	sqlAged = `SELECT max(seq) FROM (SELECT seq, end FROM records ORDER BY seq LIMIT ?) WHERE end < ?`
	// All processes but the ? that logged last.
	sqlForget  = `DELETE FROM processes WHERE seq <= (SELECT seq FROM processes ORDER BY seq DESC LIMIT 1 OFFSET ?)`
	sqlUsed    = `SELECT (page_count - freelist_count) * page_size FROM pragma_page_count(), pragma_freelist_count(), pragma_page_size()`
	sqlVersion = `SELECT user_version, application_id, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version(), pragma_application_id()`
)
