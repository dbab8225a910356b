package store

// Stats says how the store is doing. Counts are since Open unless they say otherwise.
type Stats struct {
	// Records is how many the file holds.
	Records int64
	// QueuedRecords and QueuedBytes wait for their commit.
	QueuedRecords int
	QueuedBytes   int
	// Commits is how many transactions held records or cursors.
	Commits uint64
	// Refused calls found the queue full, Failed ones could not be committed: they are lost, and their callers were told.
	Refused, Failed uint64
	// FailedSyncs counts syncs and checkpoints that failed: a power cut then may cost more than the last second.
	FailedSyncs uint64
	// LastError is the latest error of the file; empty = none.
	LastError string
	// RemovedDelivered and RemovedUndelivered count the records that the limits have removed since the file was made: those
	// that every destination had taken, and the others.
	RemovedDelivered, RemovedUndelivered int64
	// Unreadable counts records that could not be decoded and were passed over.
	Unreadable uint64
	// SetAside counts damaged files that were replaced, SetAsidePath is the latest.
	SetAside     uint64
	SetAsidePath string
	// Undelivered is how many records each reader has before it.
	Undelivered []Undelivered
}

// Undelivered is how far one reader is behind.
type Undelivered struct {
	Destination, Signal string
	Records             int64
}

// Stats returns how the store is doing.
func (s *Store) Stats() Stats {
	records, bytes := s.queue.waiting()
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.stats
	st.Records = s.last - s.removed
	st.QueuedRecords, st.QueuedBytes = records, bytes
	for k := range s.readers {
		st.Undelivered = append(st.Undelivered, Undelivered{
			Destination: k.destination,
			Signal:      k.signal,
			Records:     s.last - max(s.cursors[k].seq, s.removed),
		})
	}
	return st
}

func (s *Store) countRefused() {
	s.mu.Lock()
	s.stats.Refused++
	s.mu.Unlock()
}

func (s *Store) countFailedSync(err error) {
	s.mu.Lock()
	s.stats.FailedSyncs++
	s.stats.LastError = err.Error()
	s.mu.Unlock()
}

// countUnreadable counts each record once: readers come by in order, one or several times.
func (s *Store) countUnreadable(seq int64, err error) {
	s.mu.Lock()
	first := seq > s.unreadable
	if first {
		s.unreadable = seq
		s.stats.Unreadable++
	}
	s.mu.Unlock()
	if first {
		s.config.Log.Error("a record cannot be decoded and is passed over", "file", s.config.Path, "record", seq, "error", err)
	}
}
