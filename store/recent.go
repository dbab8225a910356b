package store

// recentRecords bounds the records that are kept in memory besides the file: some megabytes.
const recentRecords = 512

// recent holds the records committed last, so that readers which keep up neither read the file nor decode. Store.mu guards
// it.
type recent struct {
	// ring[i] holds the record whose number is i modulo its length.
	ring  [recentRecords]recentRecord
	first int64 // the oldest number it holds
	next  int64 // the number after the newest; first == next: it holds none
}

type recentRecord struct {
	stored Stored
	bytes  int
}

// add adds the record after the newest.
func (r *recent) add(s Stored, bytes int) {
	if s.Seq != r.next {
		r.first = s.Seq
	}
	r.ring[s.Seq%recentRecords] = recentRecord{s, bytes}
	r.next = s.Seq + 1
	r.first = max(r.first, r.next-recentRecords)
}

// after returns what Reader.Next returns for a cursor at seq; nil = the file must be asked.
func (r *recent) after(seq int64, maxRecords, maxBytes int) []Stored {
	if seq+1 < r.first || seq+1 >= r.next {
		return nil
	}
	n, bytes := 0, 0
	for ; n < maxRecords && seq+1+int64(n) < r.next; n++ {
		bytes += r.ring[(seq+1+int64(n))%recentRecords].bytes
		if bytes > maxBytes && n > 0 {
			break
		}
	}
	out := make([]Stored, n)
	for i := range out {
		out[i] = r.ring[(seq+1+int64(i))%recentRecords].stored
	}
	return out
}
