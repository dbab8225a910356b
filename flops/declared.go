package flops

// Declare reads a count that was made elsewhere: a registered formula, a cost analysis, the user. Forward must be a
// positive decimal integer; 0 and -1, as a cost analysis answers when it does not know, are refused. An empty
// backward is 0. The error is a *FieldError for forward, backward or dtype.
func Declare(forward, backward, dtype string) (*Declared, error) {
	f, err := ParseNumber(forward)
	if err != nil {
		return nil, refuse("forward", "%v; leave the whole count out and give the reason when it is unknown", err)
	}
	if f.IsZero() {
		return nil, refuse("forward", "0 is no count: leave the whole count out and give the reason when it is unknown")
	}
	d := &Declared{Forward: f, DType: dtype}
	if backward != "" {
		if d.Backward, err = ParseNumber(backward); err != nil {
			return nil, refuse("backward", "%v", err)
		}
	}
	if len(dtype) > MaxDType {
		return nil, refuse("dtype", "%d bytes: the limit is %d", len(dtype), MaxDType)
	}
	return d, nil
}

// Totals returns the declared count as the cost of one batch or epoch, of no operator and no module.
func (d *Declared) Totals(method string) *Totals {
	s := Sums{
		Forward:  Work{FLOPs: d.Forward, MACs: d.Forward.Over(2)},
		Backward: Work{FLOPs: d.Backward, MACs: d.Backward.Over(2)},
	}
	return &Totals{
		Sums:     s,
		DTypes:   []Group{{Name: canonicalDType(d.DType), Executions: NumberOf(1), Sums: s}},
		Coverage: Coverage{Declared: NumberOf(1)},
		Method:   method,
		Training: !d.Backward.IsZero(),
	}
}

// Missing returns totals that say why nothing was counted.
func Missing(method, reason string) *Totals {
	return &Totals{Method: method, MissingReason: reason}
}
