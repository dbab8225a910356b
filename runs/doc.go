// Package runs knows who logs: which process, in which tree, of which run, since when. It turns a log call into a record: it
// measures the caller's tree now, subtracts what it had measured at the end of the window before, and hands the record to the
// store in the order of the windows.
//
// A process that says hello or logs has a tree of its own: itself and all its descendants. Trees nest, and the probe counts a task
// in its innermost tree only; this package adds the nested trees up on reading, those that have been given up included.
//
// Locks, in the order in which they may be taken: making (one tree is made or given up at a time), the lock of one process (its
// windows), forest (which tree is in which). None is held while a disk is waited for, except making, which only a process's first
// call takes.
package runs
