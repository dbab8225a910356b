package runs

import (
	"time"

	"github.com/prov4ml/agent/record"
)

// histogram is the record's of the values that now holds and before did not; nil when there are none.
func histogram(name string, now, before *[64]uint64, nanos uint64) *record.Histogram {
	first, last := -1, -1
	for i := range now {
		if grown(now[i], before[i]) > 0 {
			last = i
			if first < 0 {
				first = i
			}
		}
	}
	if first < 0 {
		return nil
	}
	h := &record.Histogram{Name: name, First: uint32(first), Counts: make([]uint64, last-first+1), SumSeconds: time.Duration(nanos).Seconds()}
	for i := range h.Counts {
		h.Counts[i] = grown(now[first+i], before[first+i])
	}
	return h
}
