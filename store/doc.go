// Package store keeps log calls in one SQLite file until they are delivered, and afterwards as long as the limits allow.
//
// What it promises. A call is acknowledged when its transaction is committed. The death of the agent (SIGKILL, OOM, panic)
// loses nothing acknowledged, a power cut costs at most about the last second, and neither ever costs the file.
//
// How. The file is in WAL mode with synchronous=NORMAL: a commit is a write(2) to the log and waits for no disk. There is one
// writing connection and one at a time who uses it: a caller that waits for its record, or else the writer goroutine. The calls
// that arrive meanwhile share the next commit. What makes commits survive a power cut runs beside it: once a second fdatasync(2)
// on the log, and now and then a checkpoint on a connection of its own (wal_autocheckpoint=0). So no call waits for a disk, not
// even while a training script writes its own checkpoint.
//
// Numbers. The records of a file are numbered 1, 2, 3 ... in the order of their Append calls, without gaps; the limits
// remove from the front, and damage can leave a gap. A number is never given twice.
//
// Cursors. Each destination and signal has a cursor, the number of the last record that the receiver has taken. It moves
// through the same connection, so a cursor never stands before a record that a crash could take away.
//
// What it does not do: WAL needs shared memory, so the file must lie on a local file system; see FindPlace.
package store
