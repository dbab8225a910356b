package flops

import (
	"fmt"
	"strconv"
	"strings"
)

// Peak is a device's dense peak per dtype, in FLOP/s (1 multiply-accumulate = 2), without the factor that structured
// sparsity would give, with accumulation in 32 bits where the device has a choice.
type Peak struct {
	// The device's name as NVML gives it.
	Name string
	// table, mig or override.
	Source string
	rates  rates
}

// rates are FLOP/s by the unit that computes; 0 = the device has none, or it is not known.
type rates struct {
	// fp64 is the faster of vector and tensor cores, which matrix products use.
	fp64, fp32, tf32, bf16, fp16, fp8, fp4, int8 float64
}

// Of returns the peak for a dtype that products are computed in; false = not known or the device cannot.
func (p Peak) Of(dtype string) (flopsPerSecond float64, ok bool) {
	r := p.rates.of(canonicalDType(dtype))
	if r == nil || *r <= 0 {
		return 0, false
	}
	return *r, true
}

// of returns the place of a dtype's peak; nil = there is none.
func (r *rates) of(dtype string) *float64 {
	switch dtype {
	case "float64", "complex128":
		return &r.fp64
	case "float32", "complex64":
		return &r.fp32
	case "tfloat32":
		return &r.tf32
	case "bfloat16":
		return &r.bf16
	case "float16", "complex32":
		return &r.fp16
	case "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz", "float8", "fp8":
		return &r.fp8
	case "float4_e2m1fn_x2", "float4", "fp4":
		return &r.fp4
	case "int8", "uint8", "qint8", "quint8":
		return &r.int8
	}
	return nil
}

// PeakOf returns the peak of a device by its exact NVML name: a part of a name is no evidence (an L40S is no L4). A MIG
// instance, whose name ends in "MIG 1g.10gb", has its slices' share. False = unknown: then there is no utilization.
func PeakOf(name string) (Peak, bool) {
	if parent, profile, isMIG := strings.Cut(name, " MIG "); isMIG {
		share, ok := migShare(parent, profile)
		if !ok {
			return Peak{}, false
		}
		p, ok := PeakOf(parent)
		if !ok {
			return Peak{}, false
		}
		p = p.Scaled(share)
		p.Name, p.Source = name, "mig"
		return p, true
	}
	r, ok := table(name)
	if !ok {
		return Peak{}, false
	}
	for _, v := range [...]*float64{&r.fp64, &r.fp32, &r.tf32, &r.bf16, &r.fp16, &r.fp8, &r.fp4, &r.int8} {
		*v *= 1e12
	}
	return Peak{Name: name, Source: "table", rates: r}, true
}

// Scaled returns the peak of a share of the device: the multiprocessors of a MIG instance by those of the device.
func (p Peak) Scaled(share float64) Peak {
	for _, v := range [...]*float64{
		&p.rates.fp64, &p.rates.fp32, &p.rates.tf32, &p.rates.bf16, &p.rates.fp16, &p.rates.fp8, &p.rates.fp4, &p.rates.int8,
	} {
		*v *= share
	}
	return p
}

// migShare reads a MIG profile such as 1g.10gb, 3g.40gb.me or 1c.3g.20gb: compute slices out of the device's seven
// (an A30's four).
func migShare(parent, profile string) (share float64, ok bool) {
	if strings.Contains(profile, " ") {
		return 0, false
	}
	of := 7
	if strings.HasSuffix(parent, "A30") {
		of = 4
	}
	parts := strings.Split(profile, ".")
	count := parts[0]
	compute, isCompute := strings.CutSuffix(count, "c")
	if isCompute {
		// A compute instance inside a GPU instance.
		count = compute
	} else if count, ok = strings.CutSuffix(count, "g"); !ok {
		return 0, false
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 1 || n > of {
		return 0, false
	}
	return float64(n) / float64(of), true
}

// Override is a peak that the user states, per dtype, for all devices.
type Override struct {
	set rates
}

// maxOverrideFLOPS is beyond any device: a larger value is a mistake in the unit.
const maxOverrideFLOPS = 1e18

// ParseOverride reads "bf16=989e12,tf32=494.7e12": dtypes (fp64, fp32, tf32, bf16, fp16, fp8, fp4, int8 or torch's
// names) and dense FLOP/s of one device. Empty = no override.
func ParseOverride(s string) (*Override, error) {
	if strings.TrimSpace(s) == "" {
		return nil, nil
	}
	o := &Override{}
	for _, part := range strings.Split(s, ",") {
		key, value, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok {
			return nil, fmt.Errorf("peak %q: want dtype=FLOP/s, as in bf16=989e12", part)
		}
		place := o.set.of(canonicalDType(strings.ToLower(strings.TrimSpace(key))))
		if place == nil {
			return nil, fmt.Errorf("peak of %q: want one of fp64, fp32, tf32, bf16, fp16, fp8, fp4, int8", key)
		}
		rate, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err != nil || rate <= 0 || rate > maxOverrideFLOPS || rate != rate {
			return nil, fmt.Errorf("peak of %s is %q: want FLOP/s above 0 and at most 1e18, as in 989e12", key, value)
		}
		if *place != 0 {
			return nil, fmt.Errorf("peak of %s is given twice", key)
		}
		*place = rate
	}
	return o, nil
}

// PeakOf returns the peak of a device with the stated dtypes in the place of the table's; a device that the table
// lacks has the stated ones alone. A nil override is the table.
func (o *Override) PeakOf(name string) (Peak, bool) {
	p, known := PeakOf(name)
	if o == nil {
		return p, known
	}
	if !known {
		p = Peak{Name: name}
	}
	stated := o.set
	for _, v := range [...]struct{ to, from *float64 }{
		{&p.rates.fp64, &stated.fp64},
		{&p.rates.fp32, &stated.fp32},
		{&p.rates.tf32, &stated.tf32},
		{&p.rates.bf16, &stated.bf16},
		{&p.rates.fp16, &stated.fp16},
		{&p.rates.fp8, &stated.fp8},
		{&p.rates.fp4, &stated.fp4},
		{&p.rates.int8, &stated.int8},
	} {
		if *v.from > 0 {
			*v.to = *v.from
		}
	}
	p.Source = "override"
	return p, true
}

// PeaksOf returns the peaks of the devices that a process tree uses. If one is not known there are none, and missing
// names it: a utilization of a part of the devices would be too high.
func (o *Override) PeaksOf(names []string) (peaks []Peak, missing string) {
	for _, name := range names {
		p, ok := o.PeakOf(name)
		if !ok {
			return nil, fmt.Sprintf("no known peak of %q: state it in PROV4ML_PEAK_FLOPS", name)
		}
		peaks = append(peaks, p)
	}
	return peaks, ""
}
