package runs

// percentile returns the q-quantile (0 < q <= 1) of the values that now holds and before did not, in seconds, interpolated inside
// its bucket: bucket i holds [2^i, 2^(i+1)) ns. ok is false when there are none.
func percentile(now, before *[64]uint64, q float64) (seconds float64, ok bool) {
	var total uint64
	for i := range now {
		total += grown(now[i], before[i])
	}
	if total == 0 {
		return 0, false
	}
	rank := q * float64(total)
	var below float64
	for i := range now {
		count := float64(grown(now[i], before[i]))
		if count > 0 && below+count >= rank {
			lower := float64(uint64(1) << i)
			return lower * (1 + (rank-below)/count) / 1e9, true
		}
		below += count
	}
	return 0, false // not reached: rank <= total
}
