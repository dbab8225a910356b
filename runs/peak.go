package runs

import "github.com/prov4ml/agent/probes/process"

// peak is the largest RSS of a tree over a stretch of time that may be several readings of the probe long. One follower in the
// probe serves all functions of a process: each reading goes into the stretch of each of them.
type peak struct {
	// bytes is the largest seen, a lower bound unless exact.
	bytes uint64
	// upper is never less than the true peak; meaningless when unbounded.
	upper     uint64
	unbounded bool
	// hertz is the lowest sampling rate of the stretch; 0 = not said.
	hertz float64
}

// include adds a stretch. The peak of two stretches is the larger one, and so are both its bounds.
func (p *peak) include(r process.PeakReading) {
	p.bytes = max(p.bytes, r.Bytes)
	switch {
	case r.Exact:
		p.upper = max(p.upper, r.Bytes)
	case r.UpperBytes == 0:
		p.unbounded = true
	default:
		p.upper = max(p.upper, r.UpperBytes)
	}
	if r.SampleHertz > 0 && (p.hertz == 0 || r.SampleHertz < p.hertz) {
		p.hertz = r.SampleHertz
	}
}

// floor says that the tree held at least this much at a moment inside the stretch.
func (p *peak) floor(bytes uint64) {
	p.bytes = max(p.bytes, bytes)
	p.upper = max(p.upper, bytes)
}

func (p *peak) exact() bool { return !p.unbounded && p.upper == p.bytes && p.bytes > 0 }
