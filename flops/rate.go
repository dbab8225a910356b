package flops

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"
)

// Rate is FLOP/s over an elapsed time; false where no time has passed.
func Rate(flops Number, elapsed time.Duration) (flopsPerSecond float64, ok bool) {
	if elapsed <= 0 {
		return 0, false
	}
	return flops.Float64() / elapsed.Seconds(), true
}

// Utilization is the share of the devices' dense peak that a piece of work reached.
type Utilization struct {
	// 0..1 where everything is right; more is a wrong peak, a wrong count or a wrong time.
	Value float64
	// FLOP/s that the devices could do of this mix of dtypes: what Value divides by.
	PeakFLOPS float64
	// Value is above 1.
	Suspect bool
	// Where the peaks come from, joined by "+" if they differ.
	Source string
	// Why there is no value; then the others are zero.
	Missing string
}

// WorkByDType returns the headline by dtype, for Utilize; with everything executed, recomputation included, it gives
// the hardware's utilization instead of the model's.
func (t *Totals) WorkByDType(executed bool) map[string]Number {
	work := map[string]Number{}
	for _, g := range t.DTypes {
		n := g.FLOPs()
		if executed {
			n = g.Executed()
		}
		if !n.IsZero() {
			work[g.Name] = n
		}
	}
	return work
}

// Utilize divides the ideal time of the work on the devices by the elapsed time: sum over dtypes of FLOP / peak, each
// at its own peak, so that mixtures of float8, bfloat16 and tfloat32 are right. Devices add up: each is assumed to do
// a share. If a dtype that did work has no known peak on one of the devices, there is no value.
func Utilize(work map[string]Number, devices []Peak, elapsed time.Duration) Utilization {
	if elapsed <= 0 {
		return Utilization{Missing: "no time has passed"}
	}
	if len(devices) == 0 {
		return Utilization{Missing: "no device"}
	}
	var ideal, flops float64
	for _, dtype := range slices.Sorted(maps.Keys(work)) {
		n := work[dtype].Float64()
		if n == 0 {
			continue
		}
		var peak float64
		for _, d := range devices {
			p, ok := d.Of(dtype)
			if !ok {
				return Utilization{Missing: fmt.Sprintf("no known peak of %s for %s", d.Name, dtypeOrNone(dtype))}
			}
			peak += p
		}
		ideal += n / peak
		flops += n
	}
	if ideal == 0 {
		return Utilization{Missing: "no work"}
	}
	u := Utilization{Value: ideal / elapsed.Seconds(), PeakFLOPS: flops / ideal}
	if math.IsInf(u.Value, 0) || math.IsNaN(u.Value) || math.IsInf(u.PeakFLOPS, 0) || math.IsNaN(u.PeakFLOPS) {
		return Utilization{Missing: "the count exceeds a float64"}
	}
	u.Suspect = u.Value > 1
	var sources []string
	for _, d := range devices {
		sources = appendNew(sources, d.Source)
	}
	u.Source = strings.Join(sources, "+")
	return u
}

func dtypeOrNone(dtype string) string {
	if dtype == "" {
		return "an unknown dtype"
	}
	return dtype
}
